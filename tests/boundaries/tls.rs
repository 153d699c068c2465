//! Cases about TLS.

use std::time::Duration;

use crate::common::eventually;
use crate::table::{Case, Check, Expected};
use crate::world::{API, API_AT, CANARY, CANARY_AT, World, is_to};

pub const CASES: &[Case] = &[
    Case {
        number: 20,
        text: "an allowed server name to a foreign address",
        expected: Expected::Denied,
        run: foreign_address,
    },
    Case {
        number: 21,
        text: "CONNECT to an allowed name, and another server name inside",
        expected: Expected::Denied,
        run: connect_and_other_name,
    },
    Case { number: 24, text: "TLS without a server name", expected: Expected::Denied, run: nameless },
    Case {
        number: 25,
        text: "encrypted ClientHello: refused; GREASE passes; no keys from DNS",
        expected: Expected::Both,
        run: ech,
    },
    Case { number: 26, text: "a ClientHello in segments of one byte", expected: Expected::Both, run: segments },
    Case { number: 27, text: "a ClientHello in many TLS records", expected: Expected::Both, run: records },
    Case { number: 28, text: "a ClientHello longer than a packet", expected: Expected::Allowed, run: long_hello },
    Case { number: 29, text: "a ClientHello that stalls", expected: Expected::Denied, run: stalled },
];

const STALLED: &str = "stalled.allowed.example";
const STALLED_AT: &str = "151.101.1.29";

/// Starts what takes a while, so that it is over when its case comes.
pub fn begin(world: &World) {
    world.outside.names.addresses(STALLED, &[STALLED_AT]);
    world.start(
        "agent",
        "stalled",
        &format!(
            "def stall(pieces):\n\
             \x20   start, stream = time.time(), tcp({STALLED:?}, 443)\n\
             \x20   for piece in pieces: quietly(lambda: stream.sendall(piece)); time.sleep(1)\n\
             \x20   stream.settimeout(60)\n\
             \x20   heard = quietly(lambda: stream.recv(100))\n\
             \x20   return time.time() - start\n\
             whole = hello({STALLED:?})\n\
             print('took', together(lambda: stall([whole[:40]]), lambda: stall([]), lambda: stall([whole[i:i+2] for i in range(8)])), flush=True)"
        ),
    );
}

fn server_names(check: &Check) -> Vec<String> {
    check.log().server_names(check.mark)
}

fn arrived(check: &Check, path: &str) -> bool {
    check.log().requests(check.mark).iter().any(|head| head.contains(path))
}

fn foreign_address(check: &mut Check) {
    let tries = format!("together(*[lambda a=a: tls(a, sni={API:?}) for a in {CANARY_AT:?}])");
    check.py("agent", &tries);
    check.py("agent", &format!("curl('--resolve', '{API}:443:{}', 'https://{API}/case20')", CANARY_AT[0]));
    check.nothing_to(&CANARY_AT);
    check.denial("agent", None, |item| is_to(item, CANARY_AT[0]));
    check.py("control", &tries);
    check.something_to(&CANARY_AT);
    check.py("agent", &format!("curl('https://{API}/case20-control')"));
    check.must("the name at its own address is reached", arrived(check, "/case20-control"));
}

fn connect_and_other_name(check: &mut Check) {
    check.py(
        "agent",
        &format!(
            "together(lambda: tls({CANARY:?}, stream=proxied('{API}:443')[0]),\n\
             \x20        lambda: proxied('{API}:443')[0].sendall(hello({CANARY:?})),\n\
             \x20        lambda: tls('', sni='www.allowed.example', stream=proxied('{API}:443')[0]))\n\
             time.sleep(0.5)"
        ),
    );
    let names = server_names(check);
    check.never(&format!("other server name ({names:?})"), !names.is_empty());
    check.denial("agent", None, |item| item["name"].as_str().is_some_and(|name| name == CANARY));
    check.py("agent", &format!("ask(tls({API:?}, stream=proxied('{API}:443')[0]), request({API:?}, '/case21'))"));
    check.must("the same name inside passes", arrived(check, "/case21"));
}

fn nameless(check: &mut Check) {
    check.py(
        "agent",
        &format!(
            "together(lambda: tls({API:?}, sni=''), lambda: tcp({API:?}, 443).sendall(hello(None)),\n\
             \x20        lambda: tls('', sni='', stream=proxied('{API}:443')[0]))\n\
             time.sleep(0.5)"
        ),
    );
    let names = server_names(check);
    check.never(&format!("TLS without a name ({names:?})"), !names.is_empty());
    check.denial("agent", Some("web"), |item| item["layer"] == "tls");
    check.py("agent", &format!("curl('https://{API}/case24')"));
    check.must("TLS with the name passes", arrived(check, "/case24"));
}

fn ech(check: &mut Check) {
    // An outer ClientHello (RFC 9849 §5): kind 0, a cipher, a configuration, a key, and the inner one encrypted.
    let outer = "grease = (0xfe0d, b'\\0\\0\\1\\0\\1\\x2a' + struct.pack('!H', 32) + os.urandom(32) + struct.pack('!H', 208) + os.urandom(208))\n";
    check.py(
        "agent",
        &format!(
            "{outer}for name in ('cloudflare-ech.com', 'public.unlisted.example'):\n\
             \x20   quietly(lambda: touch({API:?}, 443, hello(name, [grease])))\n\
             \x20   stream = proxied({API:?} + ':443')[0]\n\
             \x20   quietly(lambda: stream.sendall(hello(name, [grease])))"
        ),
    );
    let names = server_names(check);
    check.never(&format!("other outer name ({names:?})"), !names.is_empty());
    check.denial("agent", None, |item| item["layer"] == "tls" || item["layer"] == "proxy");
    let said = check.py(
        "agent",
        &format!(
            "{outer}touch({API:?}, 443, hello({API:?}, [grease]))\n\
             print([a for kind in (65, 64) for a in lookup('ech.allowed.example', kind)['answers']])"
        ),
    );
    check.must("GREASE with the name passes", server_names(check).contains(&API.to_owned()));
    check.never(&format!("keys from DNS ({said})"), said.contains("fe0d"));
    let given = check.py("control", "print(lookup('ech.allowed.example', 65)['answers'])");
    check.must("an open network gets the record", given.contains("65:"));
}

fn shaped(check: &mut Check, shape: &str, number: u16) {
    let path = format!("/case{number}");
    check.py(
        "agent",
        &format!(
            "together(lambda: shaped(tcp({API:?}, 443), {CANARY:?}, {shape}, '{path}-denied'),\n\
             \x20        lambda: shaped(proxied('{API}:443')[0], {CANARY:?}, {shape}, '{path}-denied'))"
        ),
    );
    let names = server_names(check);
    check.never(&format!("other name ({names:?})"), !names.is_empty());
    check.denial("agent", None, |item| item["name"].as_str().is_some_and(|name| name == CANARY));
    check.py(
        "agent",
        &format!(
            "together(lambda: shaped(tcp({API:?}, 443), {API:?}, {shape}, '{path}-direct'),\n\
             \x20        lambda: shaped(proxied('{API}:443')[0], {API:?}, {shape}, '{path}-proxied'))"
        ),
    );
    check.must("the allowed name passes", arrived(check, &format!("{path}-direct")));
    check.must("and through the proxy", arrived(check, &format!("{path}-proxied")));
}

fn segments(check: &mut Check) {
    shaped(check, "byte_by_byte", 26);
}

fn records(check: &mut Check) {
    shaped(check, "in_records", 27);
}

fn long_hello(check: &mut Check) {
    // X25519MLKEM768 has a key share of 1216 bytes (draft-ietf-tls-ecdhe-mlkem §3.1); then a real handshake as long.
    let heard = check.py(
        "agent",
        &format!(
            "made = hello({API:?}, share=(4588, 1216))\n\
             touch({API:?}, 443, made)\n\
             protocols = ['http/1.1'] + ['x' * 200 + str(i) for i in range(20)]\n\
             print(len(made), len(shaped(tcp({API:?}, 443), {API:?}, lambda s, d: s.sendall(d), '/case28', protocols)))"
        ),
    );
    check.must("the hello with an ML-KEM key share arrives", server_names(check).len() == 2);
    check.must(&format!("a whole handshake passes ({heard})"), arrived(check, "/case28"));
    let at = API_AT.map(|address| check.world.packets(check.mark, &[address]));
    check.must("at its own address", at.iter().sum::<usize>() >= 2);
}

fn stalled(check: &mut Check) {
    let ended = eventually(Duration::from_secs(45), || check.world.output("agent", "stalled").contains("took"));
    let said = check.world.output("agent", "stalled");
    check.must(&format!("it is given up ({})", said.trim()), ended && !said.contains("None"));
    let names = check.log().server_names(check.world.beginning());
    check.never("hello that was not whole", names.iter().any(|name| name == STALLED));
    let heard = check.log().heard(check.world.beginning(), "stalled.allowed");
    check.never("part of it", heard);
    check.py("agent", &format!("curl('https://{STALLED}/case29')"));
    check.must("a prompt client is served", arrived(check, "/case29"));
}
