//! Cases about what changes, and what breaks.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use warren_lab::outside::{Mark, Seen};

use crate::common::eventually;
use crate::table::{Case, Check, Expected};
use crate::world::{API, API_AT, CANARY, CANARY_AT, CUT, MATE_AT, POLICY, RANGE_AT, is_to};

pub const CASES: &[Case] = &[
    Case {
        number: 46,
        text: "the address of a machine that was deleted, given to another one",
        expected: Expected::Denied,
        run: reused_address,
    },
    Case { number: 47, text: "an open flow after its rule is revoked", expected: Expected::Denied, run: revoked },
    Case { number: 48, text: "the daemon is down", expected: Expected::Both, run: daemon_down },
    Case { number: 49, text: "the edge is killed", expected: Expected::Both, run: edge_killed },
    Case {
        number: 50,
        text: "root in the machine changes its own network",
        expected: Expected::Denied,
        run: own_network,
    },
    Case {
        number: 51,
        text: "the proxy, the resolver or the compiler crashes",
        expected: Expected::Denied,
        run: crashes,
    },
    Case { number: 52, text: "an empty allowlist", expected: Expected::Denied, run: nothing_allowed },
    Case { number: 53, text: "a new machine, from its first packet on", expected: Expected::Denied, run: first_packet },
];

const BACK: Duration = Duration::from_secs(45);

/// A `nft` that can be made to fail: rules that cannot be loaded are what a compiler's crash comes to.
pub struct Breakable {
    directory: TempDir,
}

impl Breakable {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let real = ["/usr/sbin/nft", "/sbin/nft"].into_iter().find(|path| Path::new(path).exists()).unwrap();
        let script = format!("#!/bin/sh\n[ -e \"$(dirname \"$0\")/broken\" ] && exit 1\nexec {real} \"$@\"\n");
        let path = directory.path().join("nft");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    /// The variable that makes a server use it.
    pub fn environment(&self) -> (String, String) {
        let path = format!("{}:{}", self.directory.path().display(), std::env::var("PATH").unwrap());
        ("PATH".to_owned(), path)
    }

    /// Whether it fails from now on.
    pub fn fails(&self, fails: bool) {
        let flag = self.directory.path().join("broken");
        if fails { std::fs::write(flag, "").unwrap() } else { std::fs::remove_file(flag).unwrap() }
    }
}

/// Asks for an allowed page and tries two forbidden ways, again and again.
const RESTLESS: &str = "end, number = time.time() + SECONDS, 0\n\
     def good(): \n\
     \x20   stream = socket.create_connection((API, 80), 1)\n\
     \x20   stream.sendall(request(API, f'/{CASE}-good-{number}')); stream.settimeout(1)\n\
     \x20   if b'200 OK' not in stream.recv(4096): raise OSError\n\
     \x20   return True\n\
     while time.time() < end and not os.path.exists(f'/root/calm-{CASE}'):\n\
     \x20   number += 1\n\
     \x20   print(number, quietly(good), bool(quietly(lambda: touch(AT, 80))), bool(quietly(lambda: touch(CANARY, 80))), flush=True)\n\
     \x20   quietly(lambda: udp(AT, 53, listen=False)); quietly(lambda: udp(AT, 443, listen=False))\n\
     \x20   time.sleep(0.1)\n\
     print('over')";

fn restless(check: &Check, name: &str, seconds: u32) {
    let ends =
        format!("API, CANARY, AT, CASE, SECONDS = {API:?}, {CANARY:?}, {:?}, {name:?}, {seconds}\n", CANARY_AT[0]);
    check.world.start("agent", name, &format!("{ends}{RESTLESS}"));
    let begun = check.world.soon(|| good_since(check, name, check.mark).is_some());
    assert!(begun, "the control does not reach the outside: {}", check.world.output("agent", name));
}

/// When a good request of this name came last since then.
fn good_since(check: &Check, name: &str, mark: Mark) -> Option<SystemTime> {
    let is_good = |seen: &Seen| matches!(seen, Seen::Request { head, .. } if head.contains(&format!("/{name}-good-")));
    check.log().since(mark).iter().rev().find(|entry| is_good(&entry.seen)).map(|entry| entry.at)
}

/// Ends a restless script, so that it disturbs no other case.
fn calm(check: &mut Check, name: &str) {
    check.world.server.exec("agent", &format!("touch /root/calm-{name}"));
    let is_over = check.world.soon(|| check.world.output("agent", name).contains("over"));
    check.must("what goes on has its end", is_over);
}

fn reused_address(check: &mut Check) {
    const ADDRESS: &str = "10.77.0.50";
    check.world.create("gone", "dev", &["--ip", ADDRESS, "--tag", "agent"]);
    let visit = |path: &str| {
        format!("print(lookup({API:?})['answers'], curl('http://{API}/{path}')); touch({:?}, 8443)", RANGE_AT[0])
    };
    let said = check.py("gone", &visit("case46-gone"));
    check.must("the first one is served", check.log().requests(check.mark).concat().contains("/case46-gone"));
    check.something_to(&RANGE_AT[..1]);
    let remembered = said.split('\'').nth(1).unwrap_or("198.18.0.1").to_owned();
    check.world.server.ok(&["machine", "rm", "gone"]);
    check.world.create("heir", "dev", &["--ip", ADDRESS]);
    check.again();
    check.py("heir", &visit("case46-heir"));
    check.py(
        "heir",
        &format!("together(lambda: ask(tcp({remembered:?}, 80), request({API:?}, '/case46-old')), lambda: tls({remembered:?}, sni={API:?}),\n\
                  \x20        lambda: ask(proxied('{API}:80')[0], request({API:?}, '/case46-proxy')))"),
    );
    check.nothing_to(&RANGE_AT);
    check.nothing_to(&API_AT);
    let came = check.log().requests(check.mark);
    check.never(&format!("request of the heir ({came:?})"), !came.is_empty());
    check.denial("heir", None, |item| item["name"] == API || is_to(item, &remembered));
    check.world.server.ok(&["machine", "rm", "heir"]);
}

fn revoked(check: &mut Check) {
    // One flow by address, one by name, one that only hears; another one of each kind of rule goes on.
    check.world.start(
        "agent",
        "flows",
        &format!(
            "flows = {{'address': tcp({0:?}, 8443), 'address6': tcp({1:?}, 8443), 'name': tcp('db.allowed.example', 5432), 'kept': tcp('git.allowed.example', 22)}}\n\
             flows['name'].sendall(bytes([0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f])); hear(flows['name']); hear(flows['kept'])\n\
             ticks = tcp({0:?}, 8443); ticks.sendall(b'ticks\\n'); ticks.settimeout(0.1)\n\
             end, number, last = time.time() + 120, 0, 0\n\
             for stream in flows.values(): stream.settimeout(0.05)\n\
             while time.time() < end and not os.path.exists('/root/calm-flows'):\n\
             \x20   number += 1\n\
             \x20   for name, stream in flows.items():\n\
             \x20       quietly(lambda: stream.sendall(f'case47-{{name}}-{{number}};'.encode())); quietly(lambda: stream.recv(65536))\n\
             \x20   if quietly(lambda: ticks.recv(65536)): last = time.time(); print('tick', last, flush=True)\n\
             \x20   time.sleep(0.02)\n\
             print('over')",
            RANGE_AT[0], RANGE_AT[1]
        ),
    );
    let names = ["address", "address6", "name", "kept"];
    for name in names {
        let flows = check.world.soon(|| check.log().heard(check.mark, &format!("case47-{name}-3;")));
        check.must(&format!("{name} flows"), flows);
    }
    let revoked: Vec<&str> =
        POLICY.lines().filter(|line| !["{id: range", "{id: db"].iter().any(|rule| line.contains(rule))).collect();
    check.world.apply(&revoked.join("\n"));
    let applied = SystemTime::now();
    std::thread::sleep(Duration::from_secs(4));
    let late = |at: SystemTime| at.duration_since(applied).unwrap_or_default();
    for name in &names[..3] {
        let last = check.log().last_heard(check.mark, &format!("case47-{name}-")).map_or(Duration::ZERO, late);
        check.must(&format!("{name}: cut after {last:?}"), last < CUT);
    }
    let kept = check.log().last_heard(check.mark, "case47-kept-").map_or(Duration::ZERO, late);
    check.must(&format!("what is still allowed goes on (heard after {kept:?})"), kept > CUT + CUT / 4);
    let said = check.world.output("agent", "flows");
    let tick =
        said.lines().filter_map(|line| line.strip_prefix("tick ")?.parse::<f64>().ok()).next_back().unwrap_or(0.0);
    let since = tick - applied.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    check.must(&format!("and nothing comes in ({since:.2} s)"), tick > 0.0 && since < CUT.as_secs_f64());
    check.denial("agent", None, |item| is_to(item, RANGE_AT[0]));
    check.world.apply(POLICY);
    calm(check, "flows");
}

fn daemon_down(check: &mut Check) {
    restless(check, "case48", 120);
    check.world.server.kill();
    let mark = check.world.mark();
    let served = eventually(BACK, || good_since(check, "case48", mark).is_some());
    std::thread::sleep(Duration::from_millis(3000));
    check.must("what is allowed passes without a daemon", served);
    check.nothing_to(&CANARY_AT);
    let asked = check.log().queries(check.mark).contains(&CANARY.to_owned());
    check.never("query for the canary", asked);
    check.world.server.up().unwrap();
    let rounds = || check.world.output("agent", "case48").lines().count();
    let many = eventually(BACK, || rounds() > 10);
    check.must(&format!("{} rounds were tried", rounds()), many);
    check.denial("agent", None, |item| is_to(item, CANARY_AT[0]));
    calm(check, "case48");
}

fn edge_killed(check: &mut Check) {
    restless(check, "case49", 120);
    check.world.server.kill_edge();
    let mark = check.world.mark();
    let killed = SystemTime::now();
    let mut back = None;
    eventually(BACK, || {
        back = good_since(check, "case49", mark);
        back.is_some()
    });
    let took = back.and_then(|at| at.duration_since(killed).ok()).map_or(u128::MAX, |took| took.as_millis());
    check.must(&format!("it is back after {took} ms"), took < BACK.as_millis());
    check.nothing_to(&CANARY_AT);
    let asked = check.log().queries(check.mark).contains(&CANARY.to_owned());
    check.never("query for the canary", asked);
    calm(check, "case49");
    check.nothing_to(&CANARY_AT);
}

fn own_network(check: &mut Check) {
    let said = check.py(
        "agent",
        &format!(
            "def ip(line): return subprocess.run(['ip'] + line.split(), capture_output=True, text=True).stderr\n\
             tried = lambda: together(lambda: touch({0:?}, 80), lambda: udp({0:?}, 443), lambda: touch({1:?}, 80), lambda: touch('169.254.169.254', 80))\n\
             before = [subprocess.run(['ip', f, 'route', 'show'], capture_output=True, text=True).stdout for f in ('-4', '-6')]\n\
             own = own_address()\n\
             for line in ('rule add pref 1 table 77', 'route add default via 169.254.1.1 dev eth0 onlink table 77', 'rule flush', 'rule add pref 0 table local',\n\
             \x20            'rule add pref 32766 table main', 'neigh flush dev eth0', 'link set eth0 mtu 9000', 'link set eth0 promisc on',\n\
             \x20            'link set eth0 arp off', 'link set eth0 arp on', 'addr add 10.77.0.1/32 dev eth0', 'addr add 93.184.216.2/32 dev eth0',\n\
             \x20            'addr add 198.18.0.1/32 dev lo'):\n\
             \x20   ip(line); tried()\n\
             ip('route flush table all'); ip('route flush cache'); tried()\n\
             ip('link set eth0 down'); ip('link set eth0 address 02:6d:00:00:00:99'); ip('link set eth0 up')\n\
             ip(f'addr replace {{own}}/32 dev eth0'); ip('route replace 169.254.1.1 dev eth0'); ip('route replace default via 169.254.1.1 dev eth0 onlink'); tried()\n\
             print(before)",
            CANARY_AT[0], CANARY_AT[1]
        ),
    );
    check.nothing_to(&CANARY_AT);
    check.nothing_to(&["169.254.169.254"]);
    check.denial("agent", None, |item| is_to(item, CANARY_AT[0]));
    check.must(&format!("it had a way ({})", said.replace('\n', " ")), said.contains("default"));
    check.world.server.ok(&["machine", "restart", "agent"]);
    check.world.equip("agent");
    check.py("agent", &format!("curl('http://{API}/case50')"));
    check.must("after a restart the allowed way works", check.log().requests(check.mark).concat().contains("/case50"));
}

fn crashes(check: &mut Check) {
    // No daemon to start it again: what the edge did stays undone, and nothing else takes its place.
    restless(check, "case51", 180);
    check.world.server.kill();
    check.world.server.kill_edge();
    std::thread::sleep(Duration::from_millis(300));
    let mark = check.world.mark();
    std::thread::sleep(Duration::from_secs(3));
    check.never("request without an edge", good_since(check, "case51", mark).is_some());
    check.nothing_to(&CANARY_AT);
    check.world.server.up().unwrap();
    let mark = check.world.mark();
    check.must("it is back with the daemon", eventually(BACK, || good_since(check, "case51", mark).is_some()));
    // Rules that cannot be loaded: whatever becomes of them, nothing is open that no rule allows.
    let late = format!("{POLICY}  - {{id: late, from: net:twins, to: \"{}/32\", ports: [tcp/80]}}\n", CANARY_AT[0]);
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), late).unwrap();
    check.world.nft.fails(true);
    // It would wait until the rules are in force.
    let mut applying = check.world.server.spawn(&["policy", "apply", file.path().to_str().unwrap()]);
    std::thread::sleep(Duration::from_secs(1));
    check.py("lonely", &format!("touch({:?}, 80)", CANARY_AT[0]));
    check.py("twin", &format!("touch({:?}, 443)", CANARY_AT[0]));
    check.world.nft.fails(false);
    let _ = applying.kill();
    applying.wait().unwrap();
    check.nothing_to(&CANARY_AT);
    check.world.apply(POLICY);
    check.again();
    check.py("agent", &format!("touch({:?}, 80), curl('http://{API}/case51-end')", CANARY_AT[0]));
    check.must("and policy goes on", check.log().requests(check.mark).concat().contains("/case51-end"));
    calm(check, "case51");
    check.nothing_to(&CANARY_AT);
}

fn nothing_allowed(check: &mut Check) {
    check.py(
        "lonely",
        &format!(
            "together(*[lambda a=a, p=p: touch(a, p) for a in {CANARY_AT:?} + {RANGE_AT:?} + {API_AT:?} for p in (22, 53, 80, 443, 8443)],\n\
             \x20        *[lambda n=n: curl(f'https://{{n}}/case52', patience=2) for n in ({API:?}, {CANARY:?}, 'a.github.com')],\n\
             \x20        *[lambda n=n: proxied(n + ':443') for n in ({API:?}, {CANARY:?}, {:?})],\n\
             \x20        *[lambda a=a: udp(a, 7) for a in {RANGE_AT:?}], lambda: touch({MATE_AT:?}, 8080), lambda: tls('198.18.0.1', sni={API:?}))",
            CANARY_AT[0]
        ),
    );
    let all = [CANARY_AT, RANGE_AT, API_AT].concat();
    check.nothing_to(&all);
    let queries = check.log().queries(check.mark);
    check.never(&format!("query ({queries:?})"), !queries.is_empty());
    let denial = check.denial("lonely", None, |item| item["name"] == API);
    let suggested = denial.map(|item| item["suggested_rule"].to_string()).unwrap_or_default();
    check.must(
        &format!("the missing rule is told: {suggested}"),
        suggested.contains(API) && suggested.contains("empty/lonely"),
    );
    check.py("control", &format!("touch({:?}, 443)", CANARY_AT[0]));
    check.something_to(&CANARY_AT[..1]);
}

fn first_packet(check: &mut Check) {
    // Several at once, each trying from its first moment on; then the same machines started again.
    let server = &check.world.server;
    let tries = format!(
        "exec 2>/dev/null; for i in 1 2 3 4 5 6; do for a in {} {}; do timeout 0.3 bash -c \": > /dev/tcp/$a/80\"; \
         bash -c \"echo x > /dev/udp/$a/443\"; done; done; true",
        CANARY_AT[0], RANGE_AT[0]
    );
    std::thread::scope(|scope| {
        for name in ["new-1", "new-2", "new-3"] {
            let tries = &tries;
            scope.spawn(move || {
                server.ok(&["machine", "create", name, "--network", "dev", "--tag", "agent"]);
                server.run(&["exec", "--no-settle", name, "--", "bash", "-c", tries]);
                server.ok(&["machine", "restart", name]);
                server.run(&["exec", "--no-settle", name, "--", "bash", "-c", tries]);
            });
        }
    });
    check.nothing_to(&CANARY_AT);
    let others: Vec<_> = check.log().packets_to(check.mark, RANGE_AT[0].parse().unwrap());
    check.never(&format!("packet to another port of the listed range ({others:?})"), !others.is_empty());
    check.denial("new-1", None, |item| is_to(item, CANARY_AT[0]));
    check.world.server.exec("new-1", &format!("timeout 1 bash -c ': > /dev/tcp/{}/8443'; true", RANGE_AT[0]));
    check.something_to(&RANGE_AT[..1]);
    check.world.server.exec("control", &format!("timeout 1 bash -c ': > /dev/tcp/{}/80'; true", CANARY_AT[0]));
    check.something_to(&CANARY_AT[..1]);
    for name in ["new-1", "new-2", "new-3"] {
        check.world.server.ok(&["machine", "rm", name]);
    }
}
