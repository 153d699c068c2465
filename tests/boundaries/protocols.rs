//! Cases about other protocols, relays, and forged packets.

use crate::table::{Case, Check, Expected};
use crate::world::{API, API_AT, CANARY, CANARY_AT, MATE_AT, RANGE_AT, is_to};

use warren_lab::outside::SSH_ON_443;

pub const CASES: &[Case] = &[
    Case { number: 39, text: "without proxy variables", expected: Expected::Both, run: no_variables },
    Case {
        number: 40,
        text: "a relay inside the machine, and one in a neighbour",
        expected: Expected::Denied,
        run: relay,
    },
    Case { number: 41, text: "SSH on 22 or 443", expected: Expected::Both, run: ssh },
    Case { number: 42, text: "ICMP with a payload", expected: Expected::Denied, run: icmp },
    Case { number: 43, text: "SCTP, GRE, ESP, and raw sockets", expected: Expected::Denied, run: other_protocols },
    Case {
        number: 44,
        text: "forged addresses, ARP and router advertisements",
        expected: Expected::Denied,
        run: forged,
    },
    Case { number: 45, text: "fragments and extension headers", expected: Expected::Denied, run: fragments },
];

fn no_variables(check: &mut Check) {
    let bare = "env = {'PATH': os.environ['PATH']}\n\
                def bare(url): subprocess.run(['curl', '-sS', '--noproxy', '*', '--cacert', CA, '--max-time', '3', url], env=env, capture_output=True)\n";
    check.py(
        "agent",
        &format!(
            "{bare}together(*[lambda u=u: bare(u) for u in ('https://{CANARY}/case39', 'http://{}/case39')])",
            CANARY_AT[0]
        ),
    );
    check.nothing_to(&CANARY_AT);
    check.denial("agent", None, |item| is_to(item, CANARY_AT[0]) || item["name"] == CANARY);
    let said = check.py("agent", &format!("{bare}bare('https://{API}/case39-bare'); bare('http://{API}/case39-plain')\nprint([k for k in os.environ if 'proxy' in k.lower()])"));
    let came = check.log().requests(check.mark).concat();
    check.must("an allowed name passes without them", came.contains("/case39-bare") && came.contains("/case39-plain"));
    check.must(&format!("none is set ({said})"), said == "[]");
    let told = "facts = ''\n\
                for _ in range(50):\n\
                \x20   facts = open('/etc/warren/facts.md').read()\n\
                \x20   if ':3128' in facts: break\n\
                \x20   time.sleep(0.1)\n\
                print(facts)";
    let facts = check.py("agent", told);
    check.must("machines are told of the proxy", facts.contains("http://gateway.internal:3128"));
}

fn relay(check: &mut Check) {
    let inside = format!(
        "def serve(port, target):\n\
         \x20   listener = socket.create_server(('', port))\n\
         \x20   def work():\n\
         \x20       while True:\n\
         \x20           stream, _ = listener.accept()\n\
         \x20           data = hear(stream)\n\
         \x20           other = tcp(*target)\n\
         \x20           if other: other.sendall(data); stream.sendall(hear(other))\n\
         \x20           stream.close()\n\
         \x20   threading.Thread(target=work, daemon=True).start()\n\
         serve(9991, ({:?}, 80)); serve(9992, ({CANARY:?}, 80)); serve(9993, ({API:?}, 80))\n\
         for port in (9991, 9992): touch('127.0.0.1', port, request({API:?}, '/case40'))\n\
         touch('127.0.0.1', 9993, request({CANARY:?}, '/case40-host'))\n\
         touch('127.0.0.1', 9993, request({API:?}, '/case40-own'))",
        CANARY_AT[0]
    );
    check.py("agent", &inside);
    check.nothing_to(&CANARY_AT);
    let came = check.log().requests(check.mark).concat();
    check.never("request past a relay", came.contains("/case40 ") || came.contains("/case40-host"));
    check.must("what is allowed passes a relay, too", came.contains("/case40-own"));
    check.denial("agent", None, |item| is_to(item, CANARY_AT[0]));
    // The neighbour may be reached, but may reach nobody itself: neither for the agent, nor with the agent's addresses.
    let address = check.py("agent", &format!("print(lookup({API:?})['answers'][0])"));
    check.world.start(
        "mate",
        "relay",
        &format!(
            "listener = socket.create_server(('', 8081)); print('listens')\n\
             while True:\n\
             \x20   stream, _ = listener.accept()\n\
             \x20   data = hear(stream)\n\
             \x20   for target in ({API:?}, {address:?}):\n\
             \x20       other = tcp(target, 80)\n\
             \x20       if other: quietly(lambda: other.sendall(data)); quietly(lambda: stream.sendall(hear(other)))\n\
             \x20   stream.sendall(b'tried'); stream.close()"
        ),
    );
    check.world.soon(|| check.world.output("mate", "relay").contains("listens"));
    let said = check.py(
        "agent",
        &format!(
            "s = tcp({MATE_AT:?}, 8081); s.sendall(request({API:?}, '/case40-mate')); print(hear(s, 8), hear(s, 8))"
        ),
    );
    check.must(&format!("the neighbour was asked ({said})"), said.contains("tried"));
    check.never("request past the neighbour", check.log().requests(check.mark).concat().contains("/case40-mate"));
    check.denial("mate", None, |item| item["name"] == API);
}

fn ssh(check: &mut Check) {
    let on_443 = SSH_ON_443.to_string();
    let said = check.py(
        "agent",
        &format!(
            "together(*[lambda h=h, p=p: touch(h, p, b'SSH-2.0-case41\\r\\n') for h, p in (({API:?}, 22), ({API:?}, 443), ({:?}, 22), ({:?}, 443), ({CANARY:?}, 22))])\n\
             print(touch('ssh443.allowed.example', 443, b'SSH-2.0-case41-first\\r\\n'), hear(tcp('ssh443.allowed.example', 443), 2))\n\
             together(lambda: ask(proxied({API:?} + ':22')[0], 'SSH-2.0-case41'), lambda: ask(proxied({API:?} + ':443')[0], 'SSH-2.0-case41'))",
            CANARY_AT[0], CANARY_AT[0]
        ),
    );
    check.nothing_to(&CANARY_AT);
    check.never("SSH to another port", check.log().opened(check.mark).iter().any(|end| end.port() == 22));
    check.never("SSH instead of TLS", check.log().heard(check.mark, "SSH-2.0-case41"));
    check.never(&format!("banner of {on_443} ({said})"), said.contains("OpenSSH"));
    check.denial("agent", None, |item| item["port"] == 22);
    check.denial("agent", Some("web"), |item| item["port"] == 443 && item["layer"] == "tls");
    let said =
        check.py("agent", "s = tcp('git.allowed.example', 22); print(hear(s)); s.sendall(b'SSH-2.0-listed'); hear(s)");
    check.must(
        "a listed name on 22 speaks first and is heard",
        said.contains("SSH-2.0-OpenSSH") && check.log().heard(check.mark, "SSH-2.0-listed"),
    );
    check.py("agent", "s = tcp('db.allowed.example', 5432); s.sendall(bytes([0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f])); hear(s); s.sendall(b'startup-case41'); hear(s)");
    check.must("so does a client that speaks first", check.log().heard(check.mark, "startup-case41"));
}

fn icmp(check: &mut Check) {
    let tries = format!(
        "together(*[lambda a=a: subprocess.run(['ping', '-n', '-c', '2', '-i', '0.2', '-W', '1', '-s', '1000', '-p', '63617365', a]) for a in {CANARY_AT:?} + {RANGE_AT:?}])\n\
         for kind in (0, 3, 13, 40):\n\
         \x20   body = bytes([kind, 0, 0, 0, 1, 1, 1, 1]) + b'case42' * 20\n\
         \x20   frame(ip4({:?}, 1, body[:2] + struct.pack('!H', checksum(body)) + body[4:]))",
        CANARY_AT[0]
    );
    check.py("agent", &tries);
    check.nothing_to(&CANARY_AT);
    check.nothing_to(&RANGE_AT);
    check.denial("agent", None, |item| item["protocol"] == "icmp");
    check.py("control", &tries);
    check.something_to(&CANARY_AT);
}

fn other_protocols(check: &mut Check) {
    let tries = format!(
        "for number in (132, 47, 50, 51, 33, 136, 4, 41, 2, 89, 103, 112, 255):\n\
         \x20   body = struct.pack('!HHII', 5000, 443, 0, 0) + b'case43' * 8\n\
         \x20   def raw(target=None, family=None):\n\
         \x20       s = socket.socket(family, socket.SOCK_RAW, number); s.sendto(body, (target, 0))\n\
         \x20   quietly(lambda: raw({0:?}, socket.AF_INET)); quietly(lambda: raw({1:?}, socket.AF_INET6))\n\
         \x20   if WIRE: frame(ip4({0:?}, number, body)); frame(ip6({1:?}, number, body)); frame(ip4('45.33.32.9', number, body))\n\
         \x20   if number in (4, 41) and WIRE: frame(ip4({0:?}, 4, ip4('45.33.32.9', 17, datagram(7, b'case43'))))\n\
         quietly(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).connect(({0:?}, 443)))\n\
         if WIRE:\n\
         \x20   for flags in (0x10, 0x12, 0x04, 0x01, 0x00, 0x29): frame(ip4({0:?}, 6, syn(443, flags, ends=(own_address(), {0:?}))))",
        CANARY_AT[0], CANARY_AT[1]
    );
    check.py("agent", &format!("WIRE = True\n{tries}"));
    check.nothing_to(&CANARY_AT);
    check.nothing_to(&RANGE_AT[..1]);
    check.denial("agent", None, |item| item["protocol"] == "other" && is_to(item, CANARY_AT[0]));
    check.world.on_host(&format!("WIRE = False\n{tries}"));
    check.something_to(&CANARY_AT);
    let kinds = check.log().packets_to(check.mark, CANARY_AT[0].parse().unwrap());
    check.must(&format!("{} kinds from where nothing is forbidden", kinds.len()), kinds.len() >= 10);
}

fn forged(check: &mut Check) {
    let sniff = "stream = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); stream.bind(('eth0', 0))\n\
                 print('listens', flush=True)\n\
                 end = time.time() + 25\n\
                 while time.time() < end:\n\
                 \x20   data, about = stream.recvfrom(2048)\n\
                 \x20   if about[2] == 4: continue\n\
                 \x20   print('heard', data.hex(), flush=True)\n\
                 \x20   if b'case44-end' in data: break";
    check.world.start("mate", "forged", sniff);
    check.world.soon(|| check.world.output("mate", "forged").contains("listens"));
    let to = CANARY_AT[0];
    let (mate6, agent6) = (ipv6_of(check, "mate"), ipv6_of(check, "agent"));
    for machine in ["control", "agent"] {
        // Sources that are not its own, outside and to the neighbour.
        check.py(
            machine,
            &format!(
                "for source in ('10.88.0.200', '10.77.0.1', {MATE_AT:?}, '1.2.3.4', '127.0.0.1', '0.0.0.0', '93.184.216.2'):\n\
                 \x20   frame(ip4({to:?}, 17, datagram(4444, b'case44-forged'), source=source))\n\
                 \x20   frame(ip4({to:?}, 6, syn(4444, ends=(source, {to:?})), source=source))\n\
                 \x20   frame(ip4({MATE_AT:?}, 17, datagram(9, b'case44-forged'), source=source))\n\
                 for source in ({mate6:?}, 'fd00::1', 'fe80::99', '2606:2800:220::2', '::', '::1'):\n\
                 \x20   for target, port in (({:?}, 4444), ({mate6:?}, 9)):\n\
                 \x20       frame(ip6(target, 17, datagram(port, b'case44-forged', ends=(source, target)), source=source))\n\
                 frame(ip4({to:?}, 17, datagram(4444, b'case44-forged')), mac=bytes.fromhex('026d00000099'))",
                CANARY_AT[1]
            ),
        );
    }
    check.py(
        "agent",
        &format!(
            "stream, own = link()\n\
             arp = lambda kind, who, what: struct.pack('!HHBBH', 1, 0x800, 6, 4, kind) + own + socket.inet_aton(who) + ROUTER + socket.inet_aton(what)\n\
             for mac in (ROUTER, b'\\xff' * 6):\n\
             \x20   for kind in (1, 2): stream.send(mac + own + b'\\x08\\x06' + arp(kind, {MATE_AT:?}, '169.254.1.1') + b'case44-forged')\n\
             def advertise(kind, body, target='ff02::1', source='fe80::1'):\n\
             \x20   made = bytes([kind, 0, 0, 0]) + body\n\
             \x20   pseudo = socket.inet_pton(10, source) + socket.inet_pton(10, target) + struct.pack('!II', len(made), 58)\n\
             \x20   made = made[:2] + struct.pack('!H', checksum(pseudo + made)) + made[4:]\n\
             \x20   packet = bytearray(ip6(target, 58, made, source=source)); packet[7] = 255\n\
             \x20   for mac in (ROUTER, bytes.fromhex('333300000001')): stream.send(mac + own + b'\\x86\\xdd' + bytes(packet))\n\
             advertise(134, struct.pack('!BBHII', 64, 0, 1800, 0, 0) + b'case44-forged---')\n\
             advertise(136, b'\\x60\\0\\0\\0' + socket.inet_pton(10, {mate6:?}) + b'\\2\\1' + own)\n\
             advertise(134, struct.pack('!BBHII', 64, 0, 1800, 0, 0), target={mate6:?}, source={agent6:?})\n\
             time.sleep(0.3)\n\
             udp({MATE_AT:?}, 9, b'case44-end', listen=False)"
        ),
    );
    check.world.soon(|| check.world.output("mate", "forged").contains(&hex("case44-end")));
    let heard = check.world.output("mate", "forged");
    check.must("an honest packet arrives", heard.contains(&hex("case44-end")));
    check.never("forged packet inside", heard.contains(&hex("case44-forged")));
    // An Ethernet frame of IPv6 and ICMPv6 whose type is 134.
    let is_advertisement = |hex: &str| {
        [(24, "86dd"), (40, "3a"), (108, "86")]
            .iter()
            .all(|(at, part)| hex.get(*at..).is_some_and(|rest| rest.starts_with(part)))
    };
    let advertised = heard.lines().filter_map(|line| line.strip_prefix("heard ")).any(is_advertisement);
    check.never("router advertisement inside", advertised);
    let strays = check.log().packets(check.mark).iter().filter(|packet| packet.port == Some(4444)).count();
    check.never(&format!("forged packet outside ({strays})"), strays > 0);
    check.py("control", &format!("frame(ip4({to:?}, 17, datagram(4445, b'case44-honest')))"));
    check.must(
        "an honest one from an open network arrives",
        check.world.soon(|| check.log().packets(check.mark).iter().any(|packet| packet.port == Some(4445))),
    );
}

fn ipv6_of(check: &Check, machine: &str) -> String {
    check.world.server.json(&["machine", "show", machine])["private_ip6"].as_str().unwrap_or_default().to_owned()
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn fragments(check: &mut Check) {
    let tries = "def pieces(to, whole, cut, protocol=17):\n\
                 \x20   number = int.from_bytes(os.urandom(2), 'big')\n\
                 \x20   frame(ip4(to, protocol, whole[:cut], fragment=0x2000, number=number))\n\
                 \x20   frame(ip4(to, protocol, whole[cut:], fragment=cut // 8, number=number))\n\
                 def chain6(to, headers, protocol, payload):\n\
                 \x20   kinds = [kind for kind, _ in headers] + [protocol]\n\
                 \x20   body = b''.join(bytes([kinds[i + 1]]) + rest for i, (_, rest) in enumerate(headers)) + payload\n\
                 \x20   frame(ip6(to, kinds[0], body))\n\
                 pad, route0, atomic = (60, b'\\0\\1\\4' + bytes(4)), (43, b'\\2\\0\\1' + bytes(4) + socket.inet_pton(10, CANARY6)), (44, b'\\0\\0\\0' + bytes(4))\n\
                 hop, long = (0, b'\\0\\1\\4' + bytes(4)), (60, b'\\x0f\\1\\x7c' + bytes(124))\n\
                 def all(v4, v6, port, text):\n\
                 \x20   pieces(v4, datagram(port, text * 8), 8); pieces(v4, datagram(port, text * 8), 24)\n\
                 \x20   pieces(v4, syn(port, ends=(own_address(), v4)), 8, 6); pieces(v4, syn(port, ends=(own_address(), v4)), 16, 6)\n\
                 \x20   frame(ip4(v4, 17, text * 8, fragment=185))\n\
                 \x20   frame(ip4(v4, 17, datagram(port, text), options=b'\\x83\\x07\\x04' + socket.inet_aton(CANARY4) + b'\\0'))\n\
                 \x20   frame(ip4(v4, 17, datagram(port, text), options=b'\\x94\\4\\0\\0'))\n\
                 \x20   ends = (own_address(True), v6)\n\
                 \x20   for headers in ([pad], [hop], [atomic], [hop, pad, atomic], [route0], [pad] * 6, [long], [atomic, pad], [(135, b'\\0' + bytes(6))], [(139, b'\\0' + bytes(6))]):\n\
                 \x20       chain6(v6, headers, 17, datagram(port, text, ends=ends)); chain6(v6, headers, 6, syn(port, ends=ends))\n\
                 \x20   first = (44, b'\\0\\0\\1' + os.urandom(4)); rest = (44, b'\\0\\0\\x08' + first[1][3:])\n\
                 \x20   whole = datagram(port, text * 8, ends=ends)\n\
                 \x20   chain6(v6, [first], 17, whole[:8]); chain6(v6, [rest], 17, whole[8:])\n";
    let ends = format!("CANARY4, CANARY6 = {:?}, {:?}\n", CANARY_AT[0], CANARY_AT[1]);
    // To a foreign address, and to a listed one with a port that is not listed; then pieces that overlap, so that the
    // listed port of the first one would be replaced.
    check.py(
        "agent",
        &format!(
            "{ends}{tries}all(CANARY4, CANARY6, 7, b'case45--')\n\
             all({0:?}, {1:?}, 45, b'case45--')\n\
             number = 4545\n\
             frame(ip4({0:?}, 17, datagram(7, b'case45--' * 2), fragment=0x2000, number=number))\n\
             frame(ip4({0:?}, 17, datagram(45, b'case45--' * 2), fragment=0x2000, number=number))\n\
             frame(ip4({0:?}, 17, b'case45--', fragment=3, number=number))\n\
             frame(ip4({0:?}, 6, syn(8443, ends=(own_address(), {0:?})), fragment=0x2000, number=46))\n\
             frame(ip4({0:?}, 6, syn(45, ends=(own_address(), {0:?}))[8:], fragment=1, number=46))",
            RANGE_AT[0], RANGE_AT[1]
        ),
    );
    check.nothing_to(&CANARY_AT);
    let listed = |check: &Check| -> Vec<_> {
        RANGE_AT.iter().flat_map(|to| check.log().packets_to(check.mark, to.parse().unwrap())).collect()
    };
    let arrived = listed(check);
    // ICMP is what the kernel answers to answers. Pieces without a port belong to one with a listed port.
    let is_listed = |port: Option<u16>| matches!(port, Some(7 | 8443));
    let strays: Vec<_> = arrived.iter().filter(|p| p.protocol != 1 && p.protocol != 58 && !is_listed(p.port)).collect();
    let firsts = arrived.iter().filter(|packet| packet.fragment && is_listed(packet.port)).count();
    let later = strays.iter().filter(|packet| packet.fragment && packet.port.is_none()).count();
    check.never(&format!("piece for a port that is not listed ({strays:?})"), later < strays.len() || later > firsts);
    check.denial("agent", None, |item| CANARY_AT.iter().any(|to| is_to(item, to)));
    let echoed = check
        .py("agent", &format!("print(*[len(udp(a, 7, b'case45-whole' * 250, patience=2)) for a in {RANGE_AT:?}])"));
    check.must(&format!("a long datagram that is allowed passes in pieces ({echoed})"), echoed == "3000 3000");
    check.py("control", &format!("{ends}{tries}all(CANARY4, CANARY6, 7, b'case45--')"));
    check.something_to(&CANARY_AT);
    check.never("packet to an allowed name's own address", check.world.packets(check.mark, &API_AT) > 0);
}
