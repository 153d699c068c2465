//! Cases about addresses.

use crate::table::{Case, Check, Expected};
use crate::world::{API, BEHIND_HOST, CANARY_AT, MATE_AT, RANGE_AT, is_to};

use warren_lab::outside::HOST;

pub const CASES: &[Case] = &[
    Case { number: 1, text: "an unlisted IPv4 address", expected: Expected::Denied, run: unlisted_v4 },
    Case { number: 2, text: "an unlisted IPv6 address", expected: Expected::Denied, run: unlisted_v6 },
    Case { number: 3, text: "embedded and odd forms of addresses", expected: Expected::Denied, run: odd_forms },
    Case { number: 4, text: "metadata and link-local addresses", expected: Expected::Denied, run: metadata },
    Case {
        number: 5,
        text: "the host's own addresses, the proxies' ports, the API",
        expected: Expected::Denied,
        run: host,
    },
    Case { number: 6, text: "an address that another network has, too", expected: Expected::Allowed, run: twins },
    Case { number: 7, text: "multicast and mDNS", expected: Expected::Denied, run: multicast },
];

fn unlisted(check: &mut Check, canary: &'static str, listed: &str) {
    let tries = format!(
        "together(*[lambda port=port: touch({canary:?}, port) for port in (22, 80, 443, 8443)], lambda: udp({canary:?}, 7))"
    );
    check.py("agent", &tries);
    check.nothing_to(&[canary]);
    check.denial("agent", None, |item| is_to(item, canary) && item["suggested_rule"].is_object());
    check.again();
    // The listed address, on its ports and no other; the same canary from a network that is open.
    check.py("agent", &format!("together(lambda: touch({listed:?}, 8443), lambda: touch({listed:?}, 8444))"));
    let ports: Vec<_> = check.log().packets_to(check.mark, listed.parse().unwrap()).iter().map(|p| p.port).collect();
    check.must("a listed address on its port only", ports == [Some(8443)]);
    check.py("control", &tries);
    check.something_to(&[canary]);
}

fn unlisted_v4(check: &mut Check) {
    unlisted(check, CANARY_AT[0], RANGE_AT[0]);
}

fn unlisted_v6(check: &mut Check) {
    unlisted(check, CANARY_AT[1], RANGE_AT[1]);
}

fn odd_forms(check: &mut Check) {
    // 185.199.108.9 as one number, in hexadecimal, in octal, and inside IPv6 addresses.
    let forms = "['::ffff:185.199.108.9', '::185.199.108.9', '64:ff9b::b9c7:6c09', '2002:b9c7:6c09::1', '3116854281', \
                 '0xb9c76c09', '0271.0307.0154.011', '185.199.27657', '0.0.0.0', '::', '::ffff:10.99.0.1', '10.99.1']";
    check.py(
        "agent",
        &format!(
            "forms = {forms}\n\
             together(*[lambda form=form: touch(form, 80) for form in forms])\n\
             bracketed = ['[' + form + ']' if ':' in form else form for form in forms]\n\
             together(*[lambda form=form: curl('http://' + form + '/', patience=2) for form in bracketed],\n\
             \x20        *[lambda form=form: proxied(form + ':80') for form in bracketed],\n\
             \x20        *[lambda form=form: ask(tcp(GATEWAY, 3128), request(form, 'http://' + form + '/')) for form in bracketed])"
        ),
    );
    let canaries = ["185.199.108.9", "64:ff9b::b9c7:6c09", "2002:b9c7:6c09::1", "10.99.0.1", "::ffff:185.199.108.9"];
    check.nothing_to(&canaries);
    let strays: Vec<_> = check.log().packets(check.mark).into_iter().filter(|packet| packet.port == Some(80)).collect();
    check.never(&format!("other packet to port 80 ({strays:?})"), !strays.is_empty());
    check.denial("agent", None, |item| is_to(item, "185.199.108.9"));
    check.py("control", "touch('::ffff:185.199.108.9', 80)");
    check.something_to(&["185.199.108.9"]);
}

fn metadata(check: &mut Check) {
    const METADATA: [&str; 4] = ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192"];
    let tries = format!(
        "together(*[lambda host=host, port=port: touch(host, port) for host in {METADATA:?} + ['fe80::1%eth0', \
         'fe80::a9fe:a9fe%eth0'] for port in (80, 443)])"
    );
    for machine in ["agent", "control", "lonely"] {
        check.py(machine, &tries);
        check.py(
            machine,
            "together(*[lambda host=host: proxied(host + ':80') for host in ('169.254.169.254', '[fd00:ec2::254]')])",
        );
    }
    check.nothing_to(&METADATA);
    check.denial("agent", None, |item| is_to(item, "169.254.169.254"));
    check.denial("control", None, |item| is_to(item, "169.254.169.254"));
    let world = &check.world;
    world.on_host(&format!("together(*[lambda host=host: touch(host, 80) for host in {METADATA:?}])"));
    check.something_to(&METADATA);
}

fn host(check: &mut Check) {
    let world = &check.world;
    let api: u16 = world.server.url().rsplit(':').next().unwrap().parse().unwrap();
    let mut own: Vec<String> = [HOST[0], HOST[1], BEHIND_HOST, "127.0.0.1"].map(str::to_owned).to_vec();
    let shown = world.server.host.run("ip -o addr show");
    let address = |line: &str| line.split_whitespace().nth(3)?.split('/').next().map(str::to_owned);
    own.extend(shown.lines().filter_map(address).filter(|address| !address.starts_with("fe80") && address != "::1"));
    for network in 2..=5 {
        let router = world.server.in_router(network, &["ip", "-o", "addr", "show", "scope", "global"]);
        own.extend(crate::common::text(&router.stdout).lines().filter_map(address));
    }
    own.sort();
    own.dedup();
    let bracketed: Vec<String> =
        own.iter().map(|a| if a.contains(':') { format!("[{a}]") } else { a.clone() }).collect();
    let tries = format!(
        "marker = b'GET /v1/server HTTP/1.1\\r\\nHost: warren\\r\\n\\r\\n'\n\
         targets = [(host, port) for host in {own:?} for port in (80, 8888, {api}, 3129) if host != '127.0.0.1']\n\
         heard = together(*[lambda t=t: touch(*t, marker) for t in targets])\n\
         asked = [f'{{host}}:{{port}}' for host in {bracketed:?} for port in (80, 8888, {api})]\n\
         asked += ['localhost:{api}', 'localhost.localdomain:80', 'ip6-localhost:80']\n\
         said = together(*[lambda t=t: ask(proxied(t)[0], marker) for t in asked])\n\
         print([t for t, h in zip(targets + asked, heard + said) if h and b'HTTP/1.1 200' in (h if isinstance(h, bytes) else h.encode())])"
    );
    let reached: Vec<String> = ["agent", "control", "lonely"].iter().map(|machine| world.py(machine, &tries)).collect();
    check.never(&format!("answer of the API ({reached:?})"), reached.iter().any(|heard| heard != "[]"));
    let came = check.log().opened(check.mark);
    check.never(&format!("connection to the host ({came:?})"), came.iter().any(|end| [80, 8888].contains(&end.port())));
    check.denial("agent", None, |item| is_to(item, HOST[0]));
    // The control: from where nothing is forbidden, all of that answers.
    let world = &check.world;
    let heard = world.on_host(&format!(
        "touch({:?}, 80), touch({BEHIND_HOST:?}, 8888)\nprint(b'HTTP/1.1' in touch('127.0.0.1', {api}, b'GET / HTTP/1.1\\r\\nHost: w\\r\\n\\r\\n'))",
        HOST[0]
    ));
    let ports: Vec<u16> = check.log().opened(check.mark).iter().map(|end| end.port()).collect();
    check.must("the host reaches all of that", ports.contains(&80) && ports.contains(&8888) && heard == "True");
}

fn twins(check: &mut Check) {
    for machine in ["mate", "twin"] {
        check.world.server.serve(machine, machine);
    }
    let page = format!("print(curl('http://{MATE_AT}:8080/'))");
    let heard = check.py("agent", &page);
    check.must(&format!("the own network's machine ({heard})"), heard == "mate");
    let heard = check.py("twin", &page);
    check.must(&format!("each in its own network ({heard})"), heard == "twin");
    // Its other ports stay closed, and so does the twin's IPv6 address.
    let twin = check.world.server.json(&["machine", "show", "twin"])["private_ip6"].as_str().unwrap().to_owned();
    let heard = check.py("agent", &format!("print(touch({twin:?}, 8080, b'GET / HTTP/1.0\\r\\n\\r\\n'))"));
    check.never(&format!("way to the other network's machine ({heard})"), heard != "b''");
    check.denial("agent", None, |item| is_to(item, &twin));
}

fn multicast(check: &mut Check) {
    let sniff = "stream = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); stream.bind(('eth0', 0))\n\
                 print('listens', flush=True)\n\
                 end = time.time() + 20\n\
                 while time.time() < end:\n\
                 \x20   data, about = stream.recvfrom(2048)\n\
                 \x20   if about[2] != 4 and b'marker07' in data: print('heard', data[data.index(b'marker07'):][:10])\n\
                 \x20   if about[2] != 4 and b'marker07-e' in data: break";
    check.world.start("mate", "sniff", sniff);
    check.world.soon(|| check.world.output("mate", "sniff").contains("listens"));
    let send = "for target in ('224.0.0.251', '239.1.2.3', '255.255.255.255', '10.77.0.255', 'ff02::fb', 'ff05::2', 'ff0e::1'):\n\
                \x20   v6 = ':' in target\n\
                \x20   s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)\n\
                \x20   s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n\
                \x20   s.setsockopt(*((41, 18, 8) if v6 else (0, 33, 8)))\n\
                \x20   quietly(lambda: s.sendto(b'marker07-m', (target, 5353)))\n";
    for machine in ["agent", "control"] {
        check.py(machine, send);
    }
    let went =
        |check: &Check| check.log().packets(check.mark).iter().filter(|packet| packet.port == Some(5353)).count();
    let count = went(check);
    check.never(&format!("multicast outside ({count})"), count > 0);
    check.py("agent", &format!("udp({MATE_AT:?}, 9, b'marker07-e', listen=False)"));
    check.world.soon(|| check.world.output("mate", "sniff").contains("marker07-e"));
    let heard = check.world.output("mate", "sniff");
    check.never("multicast inside", heard.contains("marker07-m"));
    check.must("what is for the neighbour arrives", heard.contains("marker07-e"));
    check.py("control", &format!("udp({:?}, 5353, listen=False)", CANARY_AT[0]));
    check.must("unicast to that port arrives", check.world.soon(|| went(check) > 0));
    let heard = check.py("agent", &format!("print(curl('http://{API}/case07'))"));
    check.must(&format!("the web goes on ({heard})"), heard.contains("/case07"));
}
