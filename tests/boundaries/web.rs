//! Cases about HTTP, the proxy on the gateway, WebSocket and QUIC.

use serde_json::Value;

use crate::table::{Case, Check, Expected};
use crate::world::{API, API_AT, CANARY, CANARY_AT, CUT, POLICY};

pub const CASES: &[Case] = &[
    Case {
        number: 22,
        text: "the request's host is not the connection's name",
        expected: Expected::Denied,
        run: other_host,
    },
    Case { number: 23, text: "games with the host on one connection", expected: Expected::Denied, run: host_games },
    Case { number: 30, text: "CONNECT to an address", expected: Expected::Denied, run: connect_address },
    Case { number: 31, text: "absolute form with another Host", expected: Expected::Denied, run: absolute_form },
    Case { number: 32, text: "a redirect to an unlisted name", expected: Expected::Both, run: redirect },
    Case {
        number: 33,
        text: "WebSocket on an allowed host, until it is revoked",
        expected: Expected::Both,
        run: websocket,
    },
    Case { number: 34, text: "QUIC, and the way back to TCP", expected: Expected::Both, run: quic },
];

fn heads(check: &Check) -> String {
    check.log().requests(check.mark).concat()
}

fn is_about(item: &Value, name: &str) -> bool {
    item["name"].as_str().is_some_and(|said| said == name)
}

fn other_host(check: &mut Check) {
    let said = check.py(
        "agent",
        &format!(
            "print(ask(tcp({API:?}, 80), request({CANARY:?}, '/case22-plain')))\n\
             ask(proxied('{API}:80')[0], request({CANARY:?}, '/case22-proxied'))\n\
             ask(tcp({API:?}, 80), request('www.allowed.example', '/case22-listed'))\n\
             ask(tcp({API:?}, 80), request({:?}, '/case22-address'))\n\
             ask(tcp({API:?}, 80), 'GET /case22-none HTTP/1.1\\r\\n\\r\\n')\n\
             tls({API:?}, sni='www.allowed.example')",
            CANARY_AT[0]
        ),
    );
    let came = heads(check);
    for way in ["plain", "proxied", "listed", "address", "none"] {
        check.never(&format!("{way} request"), came.contains(&format!("/case22-{way}")));
    }
    let at_foreign = check.log().server_names(check.mark);
    check.never(&format!("other name at the address ({at_foreign:?})"), !at_foreign.is_empty());
    check.must("it is said as 403", said.starts_with("HTTP/1.1 403"));
    let recorded = check.denial("agent", None, |item| is_about(item, CANARY) && item["layer"] == "http");
    let id = recorded.as_ref().and_then(|item| item["id"].as_str()).unwrap_or("none").to_owned();
    check.must(&format!("the answer says {id}"), said.contains(&id));
    // Inside TLS the host is not visible: what is spliced stays end to end.
    check.py(
        "agent",
        &format!("ask(tls({API:?}), request({CANARY:?}, '/case22-inside'))\ncurl('http://{API}/case22-control')"),
    );
    check.must("the right host passes", heads(check).contains("/case22-control"));
}

fn host_games(check: &mut Check) {
    let games = format!(
        r"host, evil = {API:?}, {CANARY:?}
good = request(host, '/case23-good')
games = {{
    'second': [good, request(evil, '/case23-second')],
    'pipelined': [good + request(evil, '/case23-pipelined')],
    'two-hosts': [f'GET /case23-two-hosts HTTP/1.1\r\nHost: {{host}}\r\nHost: {{evil}}\r\n\r\n'],
    'two-hosts-back': [f'GET /case23-two-hosts-back HTTP/1.1\r\nHost: {{evil}}\r\nHost: {{host}}\r\n\r\n'],
    'space': [f'GET /case23-space HTTP/1.1\r\nHost : {{evil}}\r\nHost: {{host}}\r\n\r\n'],
    'folded': [f'GET /case23-folded HTTP/1.1\r\nHost:\r\n {{evil}}\r\n\r\n'],
    'folded-after': [f'GET /case23-folded-after HTTP/1.1\r\nHost: {{host}}\r\n {{evil}}\r\n\r\n'],
    'bare-lf': [f'GET /case23-bare-lf HTTP/1.1\nHost: {{evil}}\n\n'],
    'bare-cr': [f'GET /case23-bare-cr HTTP/1.1\r\nX: a\rHost: {{evil}}\r\nHost: {{host}}\r\n\r\n'],
    'absolute': [f'GET http://{{evil}}/case23-absolute HTTP/1.1\r\nHost: {{host}}\r\n\r\n'],
    'at': [f'GET /case23-at HTTP/1.1\r\nHost: {{host}}@{{evil}}\r\n\r\n'],
    'comma': [f'GET /case23-comma HTTP/1.1\r\nHost: {{host}}, {{evil}}\r\n\r\n'],
    'port': [f'GET /case23-port HTTP/1.1\r\nHost: {{evil}}:80\r\n\r\n'],
    'nul': [f'GET /case23-nul HTTP/1.1\r\nHost: {{host}}\0.{{evil}}\r\n\r\n'],
    'zero-nine': ['GET /case23-zero-nine\r\n'],
    'length-and-chunked': ['POST /case23-post HTTP/1.1\r\nHost: ' + host + '\r\nContent-Length: 4\r\n'
        'Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n' + request(evil, '/case23-length-and-chunked').decode()],
    'two-lengths': ['POST /case23-post HTTP/1.1\r\nHost: ' + host + '\r\nContent-Length: 0\r\nContent-Length: 200\r\n\r\n'
        + request(evil, '/case23-two-lengths').decode()],
    'odd-coding': ['POST /case23-post HTTP/1.1\r\nHost: ' + host + '\r\nTransfer-Encoding: xchunked\r\n\r\n'
        + request(evil, '/case23-odd-coding').decode()],
    'odd-length': ['POST /case23-post HTTP/1.1\r\nHost: ' + host + '\r\nContent-Length: +0\r\n\r\n'
        + request(evil, '/case23-odd-length').decode()],
    'after-chunked': ['POST /case23-post HTTP/1.1\r\nHost: ' + host + '\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'
        + request(evil, '/case23-after-chunked').decode()],
    'fake-upgrade': [f'GET /case23-upgrade HTTP/1.1\r\nHost: {{host}}\r\nConnection: Upgrade\r\nUpgrade: nothing\r\n\r\n',
        request(evil, '/case23-fake-upgrade')],
    'connect-inside': [f'CONNECT {{evil}}:80 HTTP/1.1\r\nHost: {{host}}\r\n\r\n', request(evil, '/case23-connect-inside')],
    'h2-prior': [b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes(9)],
}}
def play(pieces, stream):
    for piece in pieces: ask(stream, piece) if piece is not pieces[-1] else (quietly(lambda: stream.sendall(
        piece.encode() if isinstance(piece, str) else piece)), hear(stream, 0.7))
works = [lambda p=p: play(p, tcp(host, 80)) for p in games.values()]
works += [lambda p=p: play(p, proxied(host + ':80')[0]) for p in games.values()]
together(*works)
print(' '.join(games))"
    );
    let names = check.py("agent", &games);
    let (came, log) = (heads(check), check.log());
    let heard = log.heard(check.mark, CANARY);
    let passed = |name: &&str| {
        let path = format!("/case23-{name}");
        came.match_indices(&path).any(|(at, _)| !came[at + path.len()..].starts_with('-'))
    };
    let through: Vec<&str> = names.split(' ').filter(passed).collect();
    check.never(&format!("trick ({through:?})"), !through.is_empty());
    check.never("other host anywhere in a stream", heard);
    check.must(&format!("{} tricks were played", names.split(' ').count()), names.starts_with("second "));
    check.must("the good requests pass", came.contains("/case23-good"));
    check.denial("agent", None, |item| is_about(item, CANARY) && item["layer"] == "http");
    let kept = check.py(
        "agent",
        &format!(
            "s = tcp({API:?}, 80)\nprint([ask(s, request({API:?}, f'/case23-kept-{{i}}'))[9:12] for i in range(3)])"
        ),
    );
    check.must(&format!("a kept connection goes on ({kept})"), heads(check).contains("/case23-kept-2"));
}

fn connect_address(check: &mut Check) {
    let said = check.py(
        "agent",
        &format!(
            "targets = ['{}:443', '[{}]:443', '10.99.0.1:80', '[::ffff:185.199.108.9]:443', '3116854281:443', '0xb9c76c09:443', \
             '{}:443', '198.18.0.1:443', '127.0.0.1:22', '[::1]:22', 'localhost:22', '{API}.:443:443', '{API}', ':443', '*:443']\n\
             print([proxied(t)[1][9:12] for t in targets])",
            CANARY_AT[0], CANARY_AT[1], API_AT[0]
        ),
    );
    check.nothing_to(&[CANARY_AT[0], CANARY_AT[1], "10.99.0.1", API_AT[0], "127.0.0.1"]);
    check.never(&format!("tunnel ({said})"), said.contains("200"));
    check.denial("agent", None, |item| item["layer"] == "proxy" && item["port"] == 443);
    check.py("agent", &format!("ask(tls({API:?}, stream=proxied('{API}:443')[0]), request({API:?}, '/case30'))"));
    check.must("CONNECT to the name passes", heads(check).contains("/case30"));
    check.py("control", &format!("touch({:?}, 443)", CANARY_AT[0]));
    check.something_to(&CANARY_AT[..1]);
}

fn absolute_form(check: &mut Check) {
    check.py(
        "agent",
        &format!(
            "def through(url, host, path=''): return ask(tcp(GATEWAY, 3128), request(host, url + path))\n\
             together(lambda: through('http://{API}', {CANARY:?}, '/case31-host'),\n\
             \x20        lambda: through('http://{CANARY}', {API:?}, '/case31-url'),\n\
             \x20        lambda: through('http://{API}@{CANARY}', {API:?}, '/case31-user'),\n\
             \x20        lambda: through('http://{CANARY}#@{API}', {API:?}, '/case31-mark'),\n\
             \x20        lambda: through('http://{API}:80@{CANARY}:80', {API:?}, '/case31-both'),\n\
             \x20        lambda: through('http://{CANARY}\\\\@{API}', {API:?}, '/case31-slash'),\n\
             \x20        lambda: through('ftp://{API}', {API:?}, '/case31-ftp'),\n\
             \x20        lambda: through('', {API:?}, '/case31-origin'))\n\
             s = tcp(GATEWAY, 3128)\n\
             ask(s, request({API:?}, 'http://{API}/case31-first'))\n\
             ask(s, request({CANARY:?}, 'http://{CANARY}/case31-then'))"
        ),
    );
    let came = check.log().requests(check.mark);
    check.never(&format!("request that names the canary ({came:?})"), came.iter().any(|head| head.contains("canary")));
    for way in ["url", "user", "mark", "both", "slash", "ftp", "then"] {
        check.never(&format!("{way} request"), came.iter().any(|head| head.contains(&format!("/case31-{way}"))));
    }
    check.nothing_to(&CANARY_AT);
    let asked = check.log().queries(check.mark).contains(&CANARY.to_owned());
    check.never("query for it", asked);
    check.denial("agent", None, |item| is_about(item, CANARY));
    let first = came.iter().find(|head| head.contains("/case31-first"));
    check.must(
        "the allowed name passes, with a path alone",
        first.is_some_and(|head| head.starts_with("GET /case31-first ")),
    );
}

fn redirect(check: &mut Check) {
    check.py("agent", &format!("curl('-L', 'http://{API}/redirect?to=http://{CANARY}/case32')"));
    let came = heads(check);
    check.must("the first request arrives", came.contains("/redirect?to="));
    check.never("request to where it leads", came.contains("GET /case32"));
    check.nothing_to(&CANARY_AT);
    check.denial("agent", None, |item| is_about(item, CANARY));
    check.py("control", &format!("curl('-L', 'http://{API}/redirect?to=http://{CANARY}/case32')"));
    check.something_to(&CANARY_AT[..1]);
}

fn websocket(check: &mut Check) {
    check.world.start(
        "agent",
        "ws",
        &format!(
            "plain, safe = tcp({API:?}, 80), tls({API:?})\n\
             print('up', websocket(plain, {API:?}), websocket(safe, {API:?}))\n\
             end, number = time.time() + 60, 0\n\
             while time.time() < end:\n\
             \x20   number += 1\n\
             \x20   for name, stream in (('plain', plain), ('safe', safe)):\n\
             \x20       text = f'case33-{{name}}-{{number}}'\n\
             \x20       if quietly(lambda: message(stream, text)) != text: print('cut', name, time.time()); stream.close()\n\
             \x20   time.sleep(0.05)"
        ),
    );
    for name in ["plain", "safe"] {
        let passes = check.world.soon(|| check.log().heard(check.mark, &format!("case33-{name}-5")));
        check.must(&format!("{name} messages pass"), passes);
    }
    let mark = check.world.mark();
    check.world.apply(&POLICY.replace("- {id: web,", "- {id: web, expires: 2001-01-01T00:00:00Z,"));
    let applied = std::time::SystemTime::now();
    std::thread::sleep(std::time::Duration::from_secs(4));
    let last = ["plain", "safe"].map(|name| check.log().last_heard(mark, &format!("case33-{name}")));
    let late = last.iter().flatten().filter_map(|at| at.duration_since(applied).ok()).max().unwrap_or_default();
    check.must(&format!("both are cut at once ({} ms)", late.as_millis()), late < CUT);
    let said = check.world.output("agent", "ws");
    check.must("the machine sees the end", said.matches("cut").count() >= 2);
    check.world.apply(POLICY);
    check.again();
    check.py("agent", &format!("curl('http://{API}/case33')"));
    check.must("allowed again, it passes again", heads(check).contains("/case33"));
}

fn quic(check: &mut Check) {
    let said = check.py(
        "agent",
        &format!(
            "start = time.time()\n\
             addresses = lookup({API:?})['answers'] + lookup({API:?}, 28)['answers']\n\
             together(*[lambda a=a: udp(a, 443, b'\\xc0\\0\\0\\0\\1' + os.urandom(1195)) for a in addresses + {API_AT:?}])\n\
             print(len(addresses), round(time.time() - start, 2))\n\
             curl('https://{API}/case34')"
        ),
    );
    let udp = check
        .log()
        .packets(check.mark)
        .iter()
        .filter(|packet| packet.protocol == 17 && packet.port == Some(443))
        .count();
    check.never(&format!("QUIC packet ({udp})"), udp > 0);
    check.denial("agent", None, |item| item["protocol"] == "udp" && item["port"] == 443);
    check.must(&format!("TCP follows ({said} s)"), heads(check).contains("/case34"));
    check.py("control", &format!("udp({:?}, 443, os.urandom(1200), listen=False)", API_AT[0]));
    check.something_to(&API_AT[..1]);
}
