//! What is open is cut when it is no longer allowed, and nothing else is disturbed.

use std::time::{Duration, SystemTime};

use warren_lab::outside::Outside;

use crate::common::eventually;
use crate::world::{API, Driver, World};

/// Seconds within which what is forbidden is cut; see [`crate::world::CUT`].
const CUT: f64 = crate::world::CUT.as_millis() as f64 / 1000.0;

const OPEN: &str = "networks:\n  dev: {intra: deny}\n\
    allow:\n  \
    - {id: to-b, from: dev/a, to: dev/b, ports: [tcp/9000]}\n  \
    - {id: to-c, from: dev/a, to: dev/c, ports: [tcp/9000]}\n  \
    - {id: web, from: dev/a, to: {name: api.allowed.example}, ports: [tcp/80, tcp/443]}\n  \
    - {id: other, from: dev/a, to: {name: www.allowed.example}, ports: [tcp/80, tcp/443]}\n";

/// Says the time at every line that it hears, and says a line itself every 20 ms, on both ends of each flow.
const TALK: &str = "def talk(name, stream, seconds=60):\n\
    \x20   stream.settimeout(0.02)\n\
    \x20   end = time.time() + seconds\n\
    \x20   while time.time() < end:\n\
    \x20       try: stream.sendall(b'x' * 10)\n\
    \x20       except socket.timeout: pass\n\
    \x20       except OSError as error: print('ended', name, time.time(), error, flush=True); return\n\
    \x20       try:\n\
    \x20           if stream.recv(65536): print('heard', name, time.time(), flush=True)\n\
    \x20           else: print('ended', name, time.time(), 'closed', flush=True); return\n\
    \x20       except socket.timeout: pass\n\
    \x20       except OSError as error: print('ended', name, time.time(), error, flush=True); return\n\
    \x20       time.sleep(0.01)\n";

const SERVE: &str = "listener = socket.create_server(('::', 9000), family=socket.AF_INET6, dualstack_ipv6=True); print('listens', flush=True)\n\
    while True:\n\
    \x20   stream, peer = listener.accept()\n\
    \x20   threading.Thread(target=talk, args=('peer-' + ('6' if ':' in peer[0].replace('::ffff:', '') else '4'), stream), daemon=True).start()\n";

/// When a flow was last heard, in seconds since the epoch, and its longest pause from `since` on.
fn heard(output: &str, name: &str, since: f64) -> (f64, f64) {
    let times: Vec<f64> = output
        .lines()
        .filter_map(|line| line.strip_prefix("heard ")?.strip_prefix(name)?.trim().parse().ok())
        .collect();
    let late: Vec<f64> = times.iter().copied().filter(|time| *time >= since).collect();
    let pause = late.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    (times.last().copied().unwrap_or(0.0), pause)
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn open_flows_are_cut_in_both_directions_and_allowed_ones_go_on() {
    let world = World::new(Driver::Container);
    world.server.ok(&["network", "create", "dev", "--cidr", "10.40.0.0/24"]);
    world.apply(OPEN);
    let mut addresses = Vec::new();
    for machine in ["a", "b", "c"] {
        let made = world.create(machine, "dev", &[]);
        addresses
            .push((made["private_ip"].as_str().unwrap().to_owned(), made["private_ip6"].as_str().unwrap().to_owned()));
    }
    for machine in ["b", "c"] {
        world.start(machine, "serve", &format!("{TALK}{SERVE}"));
        assert!(world.soon(|| world.output(machine, "serve").contains("listens")));
    }
    let (b, c) = (&addresses[1], &addresses[2]);
    world.start(
        "a",
        "flows",
        &format!(
            "{TALK}\
             def ticks(name, stream, host, seconds=60):\n\
             \x20   stream.sendall(request(host, '/ticks')); stream.settimeout(seconds)\n\
             \x20   while True:\n\
             \x20       try: data = stream.recv(65536)\n\
             \x20       except OSError as error: data = None\n\
             \x20       if not data: print('ended', name, time.time(), flush=True); return\n\
             \x20       print('heard', name, time.time(), flush=True)\n\
             works = [(talk, ('b4', tcp({:?}, 9000))), (talk, ('b6', tcp({:?}, 9000))), (talk, ('c4', tcp({:?}, 9000))), (talk, ('c6', tcp({:?}, 9000))),\n\
             \x20        (ticks, ('api', tls('api.allowed.example'), 'api.allowed.example')), (ticks, ('www', tls('www.allowed.example'), 'www.allowed.example'))]\n\
             threads = [threading.Thread(target=work, args=about, daemon=True) for work, about in works]\n\
             [t.start() for t in threads]\n\
             time.sleep(60)",
            b.0, b.1, c.0, c.1
        ),
    );
    let flows = ["b4", "b6", "c4", "c6", "api", "www"];
    let all_flow = || {
        let output = world.output("a", "flows");
        flows.iter().all(|name| output.contains(&format!("heard {name} ")))
    };
    assert!(eventually(Duration::from_secs(30), all_flow), "{}", world.output("a", "flows"));

    let less: Vec<&str> = OPEN.lines().filter(|line| !line.contains("to-b") && !line.contains("id: web")).collect();
    let changing = now();
    world.apply(&format!("{}\n", less.join("\n")));
    let revoked = now();
    std::thread::sleep(Duration::from_secs(5));
    let (output, at_b) = (world.output("a", "flows"), world.output("b", "serve"));
    for name in ["b4", "b6", "api"] {
        let last = heard(&output, name, changing).0 - revoked;
        assert!(last < CUT, "{name} was heard {last:.2} s after it was revoked");
    }
    for name in ["peer-4", "peer-6"] {
        let last = heard(&at_b, name, changing).0 - revoked;
        assert!(last < CUT, "{name} heard the sender {last:.2} s after it was revoked");
    }
    for name in ["c4", "c6", "www"] {
        let (last, pause) = heard(&output, name, changing);
        assert!(last - revoked > 2.0 * CUT, "{name} was cut {:.2} s after", last - revoked);
        assert!(pause < CUT, "{name} stood still for {pause:.2} s");
        assert!(!output.contains(&format!("ended {name} ")), "{name} ended");
    }
    assert!(output.contains("ended api"), "the proxied flow is silent but open");

    // Allowed again, a new flow passes at once; a flow that begins in the other direction never did.
    world.apply(OPEN);
    assert!(world.server.reaches("a", &b.0, 9000), "it stays closed");
    assert!(!world.server.reaches("b", &addresses[0].0, 9000));
}

#[test]
fn a_change_reaches_new_flows_at_once() {
    let world = World::new(Driver::Container);
    world.server.ok(&["network", "create", "dev"]);
    world.create("a", "dev", &[]);
    let open = "allow:\n  - {id: web, from: dev/a, to: {name: api.allowed.example}, ports: [tcp/80]}\n\
                \x20 - {id: range, from: dev/a, to: 45.33.32.0/24, ports: [tcp/8443]}\n";
    let probe = format!(
        "print(bool(ask(tcp({API:?}, 80), request({API:?}, '/at-once')).startswith('HTTP/1.1 200')), bool(touch('45.33.32.9', 8443)))"
    );
    for _ in 0..3 {
        world.apply(open);
        assert_eq!(world.py("a", &probe).lines().next(), Some("True True"), "allowed, but not at once");
        world.apply("allow: []\n");
        let mark = world.mark();
        let said = world.py("a", &probe);
        assert_eq!(said.lines().next(), Some("False False"));
        assert!(
            world.outside.log.requests(mark).is_empty()
                && world.outside.log.packets_to(mark, "45.33.32.9".parse().unwrap()).is_empty()
        );
    }
}

#[test]
fn a_proxied_download_survives_the_daemon() {
    const BYTES: u64 = 6 << 20;
    let mut world = World::new(Driver::Container);
    world.server.ok(&["network", "create", "dev"]);
    world.apply("allow:\n  - {id: web, from: dev/a, to: {name: api.allowed.example}, ports: [tcp/80, tcp/443]}\n");
    world.create("a", "dev", &[]);
    let fetch = |url: &str, name: &str, proxy: &str| {
        format!(
            "with open('/root/{name}', 'wb') as copy:\n\
             \x20   made = subprocess.run(['curl', '-sS', '--http1.1', '--cacert', CA, '--max-time', '90', {proxy} '{url}://{API}/bytes?count={BYTES}&rate=800000'], stdout=copy)\n\
             print('done', made.returncode, hashlib.sha256(open('/root/{name}', 'rb').read()).hexdigest(), flush=True)"
        )
    };
    let kinds = [
        ("plain", fetch("http", "plain.copy", "")),
        ("safe", fetch("https", "safe.copy", "")),
        ("proxied", fetch("https", "proxied.copy", "'-x', f'http://{GATEWAY}:3128',")),
    ];
    let mark = world.mark();
    for (name, code) in &kinds {
        world.start("a", name, code);
    }
    assert!(world.soon(|| world.outside.log.requests(mark).len() == 3));
    std::thread::sleep(Duration::from_millis(700));
    for (name, _) in &kinds {
        assert!(!world.output("a", name).contains("done"), "{name} was over before the daemon was killed");
    }
    world.server.kill();
    std::thread::sleep(Duration::from_secs(1));
    world.server.up().unwrap();
    let sum = Outside::sha256_of(BYTES);
    for (name, _) in &kinds {
        let done = eventually(Duration::from_secs(90), || world.output("a", name).contains("done"));
        let said = world.output("a", name);
        assert!(done && said.contains(&format!("done 0 {sum}")), "{name}: {said}");
    }
}
