//! Cases about names and their resolution.

use std::time::Duration;

use serde_json::Value;
use warren_lab::outside::{Answer, RESOLVERS};

use crate::common::eventually;
use crate::table::{Case, Check, Expected};
use crate::world::{API, API_AT, BAD_ANSWERS, CANARY, CANARY_AT, SIBLING, is_to};

pub const CASES: &[Case] = &[
    Case { number: 8, text: "DNS over UDP to any other server", expected: Expected::Denied, run: other_server_udp },
    Case { number: 9, text: "DNS over TCP to any other server", expected: Expected::Denied, run: other_server_tcp },
    Case { number: 10, text: "DNS over TLS and QUIC", expected: Expected::Denied, run: dot },
    Case { number: 11, text: "DNS over HTTPS by address or unlisted name", expected: Expected::Denied, run: doh },
    Case {
        number: 12,
        text: "an unlisted name: NXDOMAIN that says why, and no query",
        expected: Expected::Denied,
        run: unlisted_name,
    },
    Case { number: 13, text: "a proxied request for a denied name", expected: Expected::Denied, run: proxied_name },
    Case { number: 14, text: "long labels and TXT under an allowed wildcard", expected: Expected::Denied, run: tunnel },
    Case { number: 15, text: "an allowed name that leads inside", expected: Expected::Denied, run: leads_inside },
    Case {
        number: 16,
        text: "an allowed name that is another name for what is inside",
        expected: Expected::Denied,
        run: alias,
    },
    Case {
        number: 17,
        text: "the answer changes between resolving and connecting",
        expected: Expected::Both,
        run: rebinding,
    },
    Case { number: 18, text: "an unlisted name on the same address", expected: Expected::Denied, run: sibling },
    Case { number: 19, text: "the answer's time is over during a flow", expected: Expected::Both, run: expiry },
    Case { number: 38, text: "names in mixed case (0x20)", expected: Expected::Both, run: mixed_case },
];

/// Servers that are not the network's own.
const OTHERS: [&str; 4] = [RESOLVERS[0], RESOLVERS[1], "9.9.9.9", "2620:fe::fe"];

fn names_this(item: &Value, name: &str) -> bool {
    item["name"].as_str().is_some_and(|said| said.trim_end_matches('.').eq_ignore_ascii_case(name))
}

fn was_asked(check: &Check, part: &str) -> bool {
    check.log().queries(check.mark).iter().any(|name| name.contains(part))
}

fn other_server(check: &mut Check, tcp: bool) {
    let flag = if tcp { "True" } else { "False" };
    let tries = |name: &str| {
        format!("together(*[lambda s=s: lookup({name:?}, server=s, over_tcp={flag}) for s in {OTHERS:?}])")
    };
    for machine in ["agent", "lonely"] {
        check.py(machine, &tries("secret.case8.example"));
    }
    let asked = was_asked(check, "case8");
    check.never("query", asked);
    let packets = |check: &Check| {
        let for_dns = |to: &&&str| {
            check.log().packets_to(check.mark, to.parse().unwrap()).iter().any(|packet| packet.port == Some(53))
        };
        OTHERS[2..].iter().filter(for_dns).count()
    };
    let count = packets(check);
    check.never("packet to another resolver", count > 0);
    check.denial("agent", None, |item| is_to(item, OTHERS[2]) && item["port"] == 53);
    check.py("control", &tries("open.case8.example"));
    check.must("an open network asks whom it likes", check.world.soon(|| was_asked(check, "open.case8")));
}

fn other_server_udp(check: &mut Check) {
    other_server(check, false);
}

fn other_server_tcp(check: &mut Check) {
    other_server(check, true);
}

fn dot(check: &mut Check) {
    let tries = "together(*[lambda s=s: touch(s, 853, hello('dns.quad9.net')) for s in ('9.9.9.9', '2620:fe::fe')], \
                 *[lambda s=s: udp(s, 853, os.urandom(1200)) for s in ('9.9.9.9', '2620:fe::fe')], \
                 lambda: touch('dns.quad9.net', 853))";
    check.py("agent", tries);
    check.py("agent", &format!("together(lambda: touch({API:?}, 853, hello({API:?})), lambda: udp({API:?}, 853))"));
    check.nothing_to(&["9.9.9.9", "2620:fe::fe"]);
    let packets = check.world.packets(check.mark, &API_AT);
    check.never("other port of an allowed name", packets > 0);
    check.denial("agent", None, |item| item["port"] == 853);
    check.py("control", tries);
    check.something_to(&["9.9.9.9", "2620:fe::fe"]);
}

fn doh(check: &mut Check) {
    let tries = "together(lambda: curl('-k', 'https://8.8.8.8/dns-query?dns=AAAB', patience=2), \
                 lambda: curl('--resolve', 'dns.google:443:8.8.8.8', 'https://dns.google/dns-query?dns=AAAB', patience=2), \
                 lambda: curl('https://dns.google/dns-query?dns=AAAB', patience=2), \
                 lambda: curl('-x', f'http://{GATEWAY}:3128', 'https://dns.google/dns-query?dns=AAAB', patience=2))";
    check.world.outside.names.addresses("dns.google", &["8.8.8.8"]);
    check.py("agent", tries);
    check.nothing_to(&["8.8.8.8"]);
    let asked = was_asked(check, "dns.google");
    check.never("query", asked);
    check.denial("agent", None, |item| is_to(item, "8.8.8.8") || names_this(item, "dns.google"));
    check.py("control", "curl('--resolve', 'dns.google:443:8.8.8.8', 'https://dns.google/dns-query?dns=AAAB')");
    check.something_to(&["8.8.8.8"]);
}

fn unlisted_name(check: &mut Check) {
    let said = check.py(
        "agent",
        &format!(
            "udp_said, tcp_said = lookup({CANARY:?}), lookup({CANARY:?}, over_tcp=True)\n\
             aaaa, https, txt = [lookup({CANARY:?}, kind) for kind in (28, 65, 16)]\n\
             start = time.time()\n\
             try: socket.getaddrinfo({CANARY:?}, 443); failed = False\n\
             except socket.gaierror as error: failed = error.errno == socket.EAI_NONAME\n\
             print(json.dumps([udp_said, tcp_said, aaaa, https, txt, failed, time.time() - start]))"
        ),
    );
    let said: Value = serde_json::from_str(&said).unwrap_or_default();
    for (place, over) in [(0, "UDP"), (1, "TCP"), (2, "AAAA"), (3, "HTTPS"), (4, "TXT")] {
        let right = said[place]["status"] == 3 && said[place]["errors"][0][0] == 18 && said[place]["authority"] == 0;
        check.must(&format!("NXDOMAIN with error 18 ({over})"), right);
    }
    check.must(
        &format!("glibc fails at once ({:.2} s)", said[6].as_f64().unwrap_or(99.0)),
        // Without an answer it would ask again after five seconds (resolv.conf(5), `timeout`).
        said[5] == true && said[6].as_f64() < Some(4.0),
    );
    let asked = was_asked(check, "canary");
    check.never("query", asked);
    let text = said[0]["errors"][0][1].as_str().unwrap_or_default().to_owned();
    let recorded = check.denial("agent", None, |item| names_this(item, CANARY) && item["layer"] == "dns");
    let id = recorded.as_ref().and_then(|item| item["id"].as_str()).unwrap_or("none").to_owned();
    check.must(&format!("the answer says {id}"), text.contains(&id));
    // One that nobody asked for before: answers are remembered.
    check.py("agent", "curl('http://fresh.allowed.example/case12')");
    check.must("an allowed name resolves and is asked for", was_asked(check, "fresh.allowed.example"));
    check.py("control", &format!("lookup({CANARY:?})"));
    check.must("the canary is asked for from an open network", was_asked(check, CANARY));
}

fn proxied_name(check: &mut Check) {
    let said = check.py(
        "agent",
        &format!(
            "print(proxied('{CANARY}:443')[1])\n\
             print(ask(tcp(GATEWAY, 3128), request({CANARY:?}, 'http://{CANARY}/case13')).split('\\r\\n')[0])\n\
             curl('-x', f'http://{{GATEWAY}}:3128', 'https://{CANARY}/case13')"
        ),
    );
    check.must(
        &format!("403 ({})", said.replace('\n', ", ")),
        said.lines().filter(|line| line.contains(" 403 ")).count() == 2,
    );
    let asked = was_asked(check, "canary");
    check.never("query", asked);
    check.nothing_to(&CANARY_AT);
    check.denial("agent", None, |item| names_this(item, CANARY) && item["layer"] == "proxy");
    check.py("agent", &format!("curl('-x', f'http://{{GATEWAY}}:3128', 'https://{API}/case13')"));
    check.must(
        "an allowed name passes the proxy",
        check.log().requests(check.mark).iter().any(|head| head.contains("/case13")),
    );
}

fn tunnel(check: &mut Check) {
    // It has used up what a machine may say by choosing names, so it is a machine of its own.
    check.world.create("spy", "dev", &["--tag", "agent"]);
    // 200 names of 60 bytes of secrets each, in four ways: asked for, as TXT, by connecting, and through the proxy.
    let names = "names = [f'{place:04x}' + os.urandom(28).hex() + '.wild.example' for place in range(200)]\n";
    check.py(
        "spy",
        &format!(
            "{names}together(*[lambda n=n: lookup(n, kind, patience=0.5) for n in names for kind in (1, 16)])\n\
             together(*[lambda n=n: socket.create_connection((n, 443), 0.5).close() for n in names[:60]])\n\
             together(*[lambda n=n: proxied(n + ':443')[0].close() for n in names[60:]])\n\
             deep = '.'.join(os.urandom(28).hex() for _ in range(4)) + '.wild.example'\n\
             lookup(deep), lookup(deep, 16)"
        ),
    );
    let asked: Vec<String> = check.log().queries(check.mark).into_iter().filter(|name| name.len() > 60).collect();
    let mut names = asked.clone();
    names.sort();
    names.dedup();
    check.never(&format!("more than 64 of 200 names outside ({})", names.len()), names.len() > 64);
    let reported =
        check.denial("spy", None, |item| item["name"].as_str().is_some_and(|name| name.ends_with("wild.example")));
    check.must("what was refused is reported", reported.is_some());
    check.py("agent", "curl('https://short.wild.example/case14')");
    let arrived = check.log().server_names(check.mark).iter().any(|name| name == "short.wild.example");
    check.must("a short name under the wildcard works", arrived);
    check.world.server.ok(&["machine", "rm", "spy"]);
}

fn leads_inside(check: &mut Check) {
    let names: Vec<&str> = BAD_ANSWERS.iter().map(|(name, _)| *name).collect();
    check.py(
        "agent",
        &format!(
            "names = {names:?}\n\
             together(*[lambda n=n, s=s: curl(f'{{s}}://{{n}}/case15', patience=3) for n in names for s in ('http', 'https')])\n\
             together(*[lambda n=n: ask(proxied(n + ':80')[0], request(n, '/case15')) for n in names])"
        ),
    );
    let bad: Vec<&str> = BAD_ANSWERS.iter().flat_map(|(_, addresses)| *addresses).copied().collect();
    check.nothing_to(&bad);
    let came = check.log().opened(check.mark);
    check.never(&format!("connection to the host ({came:?})"), !came.is_empty());
    for name in ["private.allowed.example", "host.allowed.example"] {
        check.denial("agent", None, |item| names_this(item, name));
    }
    check.must("the names were asked for", was_asked(check, "private.allowed.example"));
    check.world.on_host("touch('10.99.0.1', 80)");
    check.something_to(&["10.99.0.1"]);
}

fn alias(check: &mut Check) {
    check.py(
        "agent",
        "together(lambda: curl('http://alias.allowed.example/case16'), lambda: proxied('alias.allowed.example:80'))",
    );
    check.nothing_to(&["10.99.0.1", "fd00:ec2::254"]);
    check.must("the name was asked for", was_asked(check, "alias.allowed.example"));
    check.denial("agent", None, |item| names_this(item, "alias.allowed.example"));
    check.world.outside.names.set("good-alias.allowed.example", Answer::Alias(SIBLING.to_owned()));
    check.py("agent", "curl('http://good-alias.allowed.example/case16')");
    let arrived = check.log().requests(check.mark).iter().any(|head| head.contains("/case16"));
    check.must("another name for a public address passes", arrived);
}

fn rebinding(check: &mut Check) {
    let turns = ["151.101.1.20", "10.99.0.1"].map(|address| vec![address.parse().unwrap()]);
    check.world.outside.names.set_for("flip.allowed.example", Answer::InTurn(turns.into()), 0);
    check.py(
        "agent",
        "together(*[lambda i=i: curl(f'http://flip.allowed.example/case17-{i}', patience=2) for i in range(8)])",
    );
    check.nothing_to(&["10.99.0.1"]);
    check.something_to(&["151.101.1.20"]);
}

fn sibling(check: &mut Check) {
    let direct = API_AT[0];
    check.py(
        "agent",
        &format!(
            "tls({API:?}, sni={SIBLING:?}), tls({direct:?}, sni={SIBLING:?})\n\
             ask(tcp({API:?}, 80), request({SIBLING:?}, '/case18'))\n\
             tls({SIBLING:?})"
        ),
    );
    let (names, heads) = (check.log().server_names(check.mark), check.log().requests(check.mark));
    check.never("server name of the sibling", names.iter().any(|name| name == SIBLING));
    check.never("request for the sibling", heads.iter().any(|head| head.contains("/case18")));
    check.denial("agent", None, |item| names_this(item, SIBLING));
    check.py("agent", &format!("ask(tls({API:?}), request({API:?}, '/case18-control'))"));
    check.must(
        "the listed name on that address is reached",
        check.log().requests(check.mark).iter().any(|h| h.contains("/case18-control")),
    );
}

fn expiry(check: &mut Check) {
    let names = std::sync::Arc::clone(&check.world.outside.names);
    let at = |address: &str| Answer::Addresses(vec![address.parse().unwrap()]);
    names.set_for("short.allowed.example", at("151.101.1.21"), 1);
    // Another answer, once a connection lives on this one.
    let later = std::thread::spawn({
        let (log, mark, answer) = (std::sync::Arc::clone(&check.world.outside.log), check.mark, at("10.99.0.1"));
        move || {
            eventually(Duration::from_secs(20), || log.requests(mark).concat().contains("/case19-before"));
            names.set_for("short.allowed.example", answer, 1);
        }
    });
    let heard = check.py(
        "agent",
        "stream = tcp('short.allowed.example', 80)\n\
         print(ask(stream, request('short.allowed.example', '/case19-before')))\n\
         time.sleep(4)\n\
         print(ask(stream, request('short.allowed.example', '/case19-after')))\n\
         ask(tcp('short.allowed.example', 80), request('short.allowed.example', '/case19-next'))",
    );
    later.join().unwrap();
    let heads = check.log().requests(check.mark).concat();
    check.must(&format!("the flow lives ({} lines heard)", heard.lines().count()), heads.contains("/case19-after"));
    check.never("next connection on the old answer", heads.contains("/case19-next"));
    check.nothing_to(&["10.99.0.1"]);
}

fn mixed_case(check: &mut Check) {
    let said = check.py(
        "agent",
        &format!(
            "mixed, plain, bad = lookup('aPi.AlLoWeD.eXaMpLe'), lookup({API:?}), lookup('cAnArY.uNlIsTeD.eXaMpLe')\n\
             print(json.dumps([mixed, plain, bad]))\n\
             curl('http://aPi.AlLoWeD.eXaMpLe/case38')"
        ),
    );
    let said: Value = serde_json::from_str(&said).unwrap_or_default();
    let same = said[0]["answers"] == said[1]["answers"] && said[0]["answers"][0].is_string();
    check.must("the same answer", same);
    let echoed = said[0]["question"].as_str().is_some_and(|question| question.contains("AlLoWeD"));
    check.must("the question comes back as it was", echoed);
    check.must("the request arrives", check.log().requests(check.mark).iter().any(|head| head.contains("/case38")));
    check.must("a denied name is denied", said[2]["status"] == 3);
    let asked = was_asked(check, "canary");
    check.never("query for it", asked);
}
