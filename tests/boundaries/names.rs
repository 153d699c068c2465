//! Cases about how names are written.

use crate::table::{Case, Check, Expected};
use crate::world::{API, CANARY_AT};

pub const CASES: &[Case] = &[
    Case { number: 35, text: "what a wildcard means", expected: Expected::Both, run: wildcard },
    Case { number: 36, text: "trailing dots and letter case", expected: Expected::Both, run: spelling },
    Case {
        number: 37,
        text: "punycode, underscores and names that only look allowed",
        expected: Expected::Both,
        run: odd_names,
    },
];

fn wildcard(check: &mut Check) {
    let visit = "together(*[lambda n=n, w=w: curl(*w, f'https://{n}/case35-{n}') for n in names for w in ([], ['-x', f'http://{GATEWAY}:3128'])])";
    let denied = ["github.com", "evilgithub.com", "github.com.evil.example", "x.y.github.com", "bad.wild.example"];
    check.py("agent", &format!("names = {denied:?}\n{visit}"));
    let (names, asked) = (check.log().server_names(check.mark), check.log().queries(check.mark));
    check.never(&format!("other name ({names:?})"), !names.is_empty());
    check.never(&format!("query ({asked:?})"), !asked.is_empty());
    check.nothing_to(&["140.82.112.3", "151.101.1.12"]);
    check.denial("agent", None, |item| item["name"] == "evilgithub.com");
    check.denial("agent", Some("no-bad"), |item| item["name"] == "bad.wild.example");
    check.again();
    let allowed = ["a.github.com", "good.wild.example", "x.deep.wild.example"];
    check.world.outside.names.addresses("x.deep.wild.example", &["151.101.1.12"]);
    check.py("agent", &format!("names = {allowed:?}\n{visit}"));
    let names = check.log().server_names(check.mark);
    for name in allowed {
        let twice = names.iter().filter(|said| *said == name).count() == 2;
        check.must(&format!("{name}, with and without the proxy"), twice);
    }
}

fn spelling(check: &mut Check) {
    check.py(
        "agent",
        "together(*[lambda n=n, i=i: curl(f'http://{n}/case36-{i}') for i, n in enumerate(\n\
         \x20   ['api.allowed.example.', 'API.ALLOWED.EXAMPLE', 'Api.Allowed.Example.'])],\n\
         \x20        *[lambda n=n, i=i: curl(f'https://{n}/case36-tls-{i}') for i, n in enumerate(\n\
         \x20   ['api.allowed.example.', 'API.ALLOWED.EXAMPLE'])],\n\
         \x20        lambda: curl('-x', f'http://{GATEWAY}:3128', 'https://API.allowed.example./case36-proxied'),\n\
         \x20        *[lambda n=n: curl(f'{s}://{n}/case36-denied') for s in ('http', 'https') for n in\n\
         \x20   ('CANARY.UNLISTED.EXAMPLE', 'canary.unlisted.example.', 'Canary.Unlisted.Example.')],\n\
         \x20        lambda: proxied('CANARY.unlisted.EXAMPLE.:443'))",
    );
    let came = check.log().requests(check.mark).concat();
    for path in ["0", "1", "2", "tls-0", "tls-1", "proxied"] {
        check.must(&format!("/case36-{path}"), came.contains(&format!("/case36-{path} ")));
    }
    check.never("denied request", came.contains("/case36-denied"));
    check.nothing_to(&CANARY_AT);
    check.denial("agent", None, |item| item["name"].as_str().is_some_and(|name| name.starts_with("canary.")));
}

fn odd_names(check: &mut Check) {
    let names = &check.world.outside.names;
    for name in ["xn--bcher-kva.allowed.example", "_service.allowed.example"] {
        names.addresses(name, &["151.101.1.37"]);
    }
    check.py(
        "agent",
        "together(*[lambda n=n: curl(f'http://{n}/case37-{n}') for n in ('xn--bcher-kva.allowed.example', '_service.allowed.example')])",
    );
    let came = check.log().requests(check.mark).concat();
    check.must("punycode under a wildcard", came.contains("/case37-xn--"));
    check.must("an underscore", came.contains("/case37-_service"));
    check.again();
    // Labels that hold dots, zeros, UTF-8 and other letters that look alike; an allowed name with something behind it.
    check.py(
        "agent",
        r"label = [[b'api.allowed', b'example'], [b'api.allowed.example'], [b'api', b'allowed', b'example\0'], [b'api\0', b'allowed', b'example'],
         ['\u0430pi'.encode(), b'allowed', b'example'], ['\u212a'.encode(), b'wild', b'example'], [b'api', b'allowed', b'example', b'evil', b'example'],
         [b'api allowed', b'example'], [b'*', b'unlisted', b'example'], [b'-', b'unlisted', b'example'], [b'api', b'allowed\\', b'example'],
         [b'x' * 63, b'x' * 63, b'x' * 63, b'unlisted', b'example']]
print([(lookup('', labels=l) or {}).get('answers') for l in label])
hosts = ['api.allowed.example.canary.unlisted.example', 'api.allowed.example%00.canary.unlisted.example', 'api%2eallowed%2eexample',
         'api.allowed.example\\.canary.unlisted.example', 'api\u3002allowed\u3002example', 'api..allowed.example', '.api.allowed.example',
         'evil-api.allowed.example.', 'apixallowed.example', 'allowed.example', 'api.allowed.example:80@canary.unlisted.example']
together(*[lambda h=h: quietly(lambda: proxied(h + ':80')[0].sendall(request(h, '/case37-odd'))) for h in hosts if h != 'evil-api.allowed.example.'],
         *[lambda h=h: curl(f'http://{h}/case37-odd', patience=2) for h in hosts if 'evil' not in h and '%2e' not in h and '\u3002' not in h])",
    );
    let came = check.log().requests(check.mark).concat();
    check.never("request by an odd name", came.contains("/case37-odd"));
    let asked: Vec<String> = check.log().queries(check.mark);
    check.never(&format!("query for an odd name ({asked:?})"), !asked.is_empty());
    check.nothing_to(&CANARY_AT);
    check.denial("agent", None, |item| item["name"].as_str().is_some_and(|name| name.contains("unlisted.example")));
    let heard = check.py("agent", &format!("print(len(curl('http://{API}/case37')))"));
    check.must(
        &format!("the plain name passes ({heard} bytes)"),
        check.log().requests(check.mark).concat().contains("/case37 "),
    );
}
