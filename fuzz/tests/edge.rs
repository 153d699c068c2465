//! What machines and servers outside send to the edge, and what the daemon says to it.

use std::sync::Arc;

use serde_json::json;
use ulid::Ulid;
use warren_edge::{NameRecord, NetworkChange, NetworkView, fuzz};
use warren_fuzz::{Target, run};
use warren_model::policy::{Group, Member};
use warren_model::{MachineId, MemberNumber};

/// Larger than anything that is read in one piece.
const LONGEST: usize = 20 << 10;
const MEMORY: u64 = 8 << 20;

/// A network with one machine, which may reach nothing outside.
fn view() -> NetworkView {
    let member = Member {
        id: MachineId::from_ulid(Ulid::from_parts(1, 3)).into(),
        network: "lab".parse().unwrap(),
        name: "web".parse().unwrap(),
        number: MemberNumber::new(2).unwrap(),
        ipv4: "10.0.1.2".parse().unwrap(),
        ipv6: "fd12:3456:789a:1::2".parse().unwrap(),
        tags: Default::default(),
    };
    let name = NameRecord { name: "web.vm.internal".into(), ipv4: Some(member.ipv4), ipv6: member.ipv6, scope: None };
    NetworkView {
        names: vec![name],
        groups: [(member.ipv4.into(), Group(1)), (member.ipv6.into(), Group(1))].into(),
        members: vec![member],
        resolvers: vec!["192.0.2.53:53".parse().unwrap()],
        ..fuzz::network()
    }
}

/// Labels in wire form.
fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').filter(|label| !label.is_empty());
    labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).chain([0]).collect()
}

/// A question with EDNS.
fn question(text: &str, record_type: u16) -> Vec<u8> {
    let head = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    [&head[..], &name(text), &record_type.to_be_bytes(), &[0, 1], &opt].concat()
}

#[test]
fn dns_questions() {
    let view = view();
    let open = NetworkView { forward: view.resolvers.clone(), ..view.clone() };
    let reverse6 = format!("{}ip6.arpa", "2.0.0.0.".repeat(8));
    let asked = [
        ("web.vm.internal", 1),
        ("WEB.vm.internal", 28),
        ("gateway.internal", 255),
        ("none.vm.internal", 1),
        ("api.example.com", 1),
        ("2.1.0.10.in-addr.arpa", 12),
        (&reverse6, 12),
        ("", 2),
    ];
    run(&Target {
        name: "dns_questions",
        seeds: asked.map(|(text, record_type)| question(text, record_type)).to_vec(),
        words: &[b"\x08internal\0", b"\x02vm", b"\xc0\x0c", b"\x00\x00\x29\x04\xd0", b"\x3f", b"\x07in-addr\x04arpa\0"],
        longest: 4096,
        memory: MEMORY,
        parse: &|packet| match (fuzz::question(&view, packet), fuzz::question(&open, packet)) {
            (Ok(closed), Ok(open)) => Ok(closed ^ open.rotate_left(1)),
            (Ok(way) | Err(way), _) => Err(way),
        },
    });
}

/// An answer to what was asked for, with these records under its own name or that of `under`.
fn answered(records: &[(&[u8], u16, &[u8])]) -> Vec<u8> {
    let head = [0, 7, 0x81, 0x80, 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
    let mut message = [&head[..], b"\x01x\x07example\x03com\0\0\x01\0\x01"].concat();
    for (owner, record_type, data) in records {
        message.extend_from_slice(owner);
        message.extend(record_type.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 60]);
        message.extend((data.len() as u16).to_be_bytes());
        message.extend_from_slice(data);
    }
    message
}

#[test]
fn dns_answers_from_outside() {
    let here: &[u8] = b"\xc0\x0c";
    // Priority 1, target ".", an IPv4 hint and an ECH configuration.
    let https = [0, 1, 0, 0, 4, 0, 4, 1, 1, 1, 1, 0, 5, 0, 3, 1, 2, 3];
    run(&Target {
        name: "dns_answers_from_outside",
        seeds: vec![
            answered(&[(here, 1, &[1, 1, 1, 1]), (here, 1, &[8, 8, 8, 8])]),
            answered(&[(here, 5, b"\x01y\xc0\x0e"), (b"\x01y\xc0\x0e", 1, &[1, 1, 1, 1])]),
            answered(&[(here, 65, &https)]),
            answered(&[(here, 16, b"\x04text"), (here, 1, &[10, 0, 0, 1])]),
            answered(&[]),
        ],
        words: &[b"\xc0\x0c", b"\xc0\x0e", b"\x00\x05\x00\x01", b"\x00\x1c\x00\x01", b"\x00\x41\x00\x01", b"\x00\x04"],
        longest: 4096,
        memory: MEMORY,
        parse: &fuzz::upstream_answer,
    });
}

/// What a client of TLS sends first.
fn hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let server = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), server).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    // The random parts are the only ones that differ from run to run: random, session id, key share.
    bytes[11..43].fill(7);
    bytes
}

/// The same message in records of so many bytes.
fn cut(hello: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat();
    hello[5..].chunks(size).flat_map(record).collect()
}

#[test]
fn tls_client_hellos() {
    let whole = hello("api.example.com");
    let change_cipher_spec = [20, 3, 3, 0, 1, 1];
    run(&Target {
        name: "tls_client_hellos",
        seeds: vec![cut(&whole, 1), cut(&whole, 100), hello("192.0.2.1"), whole],
        words: &[
            b"\x00\x00\x00\x05\x00\x03\x00\x00\x00",
            b"\xfe\x0d\x00\x00",
            b"\x00\x2a\x00\x00",
            b"\xff\xce",
            &change_cipher_spec,
            b"\x17\x03\x03",
            b"\x16\x03\x01",
            b"example.com",
        ],
        longest: LONGEST,
        memory: MEMORY,
        parse: &fuzz::client_hello,
    });
}

#[test]
fn tls_server_answers() {
    let server_hello = |random: [u8; 32]| {
        let body = [&[3, 3][..], &random, &[0, 0x13, 1, 0, 0, 0]].concat();
        let message = [&[2, 0, 0, body.len() as u8], &body[..]].concat();
        [&[22, 3, 3, 0, message.len() as u8], &message[..]].concat()
    };
    let retry = *b"\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\xb8\x91\xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c";
    run(&Target {
        name: "tls_server_answers",
        seeds: vec![server_hello([7; 32]), server_hello(retry), cut(&server_hello(retry), 3)],
        words: &[&retry, b"\x15\x03\x03\x00\x02\x02\x28", b"\x16\x03\x03"],
        longest: 2048,
        memory: MEMORY,
        parse: &fuzz::server_answer,
    });
}

#[test]
fn first_bytes_of_a_connection() {
    run(&Target {
        name: "first_bytes_of_a_connection",
        seeds: vec![
            b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec(),
            b"\r\nFROB  http://a.example/ http/1.0\n".to_vec(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            vec![22, 3, 1, 0, 200, 1],
        ],
        words: &[b"GET ", b"CONNECT ", b" HTTP/1.1\r\n", b"\r\n", b"\t", b" ", b"\x16\x03\x01", b"PRI * HTTP/2.0"],
        // Each beginning of an input is looked at.
        longest: 512,
        memory: MEMORY,
        parse: &fuzz::first_bytes,
    });
}

#[test]
fn authorities() {
    run(&Target {
        name: "authorities",
        seeds: ["api.example.com:443", "A.example.", "xn--bcher-kva.example:1", "a_b.example:65535", "a.example:"]
            .map(|text| text.as_bytes().to_vec())
            .to_vec(),
        words: &[
            b"@",
            b"[::1]",
            b":443",
            b".",
            b"%2e",
            b"\\",
            b"/",
            b"0x7f",
            b".internal",
            b"user:pass@",
            b"\xe3\x80\x82",
        ],
        longest: 512,
        memory: MEMORY,
        parse: &fuzz::requested_authority,
    });
}

#[test]
fn heads_of_requests() {
    run(&Target {
        name: "heads_of_requests",
        seeds: [
            "/index.html\nHost: a.example\nContent-Length: 3\nConnection: keep-alive, X-Own\nX-Own: 1",
            "http://a.example:81/x\nHost: A.example:81\nTransfer-Encoding: chunked\nTE: trailers",
            "a.example:443\nHost: a.example:443\nProxy-Authorization: Basic x",
            "/chat\nHost: a.example\nConnection: Upgrade\nUpgrade: websocket\nHTTP2-Settings: AA",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec(),
        words: &[
            b"\nHost: ",
            b"\nContent-Length: ",
            b"\nTransfer-Encoding: chunked",
            b"\nConnection: ",
            b"Host",
            b"content-length",
            b"upgrade",
            b", ",
            b"http://",
            b"@",
            b"\nUpgrade: websocket",
        ],
        longest: 4096,
        memory: MEMORY,
        parse: &fuzz::request_head,
    });
}

#[test]
fn control_frames() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let frame = |body: &[u8]| [&(body.len() as u32).to_be_bytes(), body].concat();
    run(&Target {
        name: "control_frames",
        seeds: vec![vec![], frame(b""), vec![0; 16 << 10], [frame(b"{}"), frame(b"[1]"), frame(&[b' '; 300])].concat()],
        words: &[&[0, 0, 0, 0], &[0, 0, 0, 1, b'x'], &[4, 0, 0, 0], &[4, 0, 0, 1]],
        longest: LONGEST,
        memory: MEMORY,
        parse: &|bytes| fuzz::control_frames(&runtime, bytes),
    });
}

#[test]
fn control_messages() {
    let put = |view: NetworkView| json!({"put_network": {"view": view, "sockets": true, "device": true}});
    let changed =
        NetworkView { generation: 8, members: Vec::new(), operators: Vec::new(), groups: Default::default(), ..view() };
    let seeds = [
        put(view()),
        json!("status"),
        json!({"listen": {"key": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}}),
        json!({"sessions": {"network": 1}}),
        json!({"listen_public": {"kind": "https"}}),
        json!({"add_dialers": {"network": 1}}),
        json!({"public_counters": {"hosts": ["a.example.com"]}}),
        json!({"put_public": {"generation": {"content": 7, "challenges": 8}, "snapshot": warren_ingress::Snapshot::default()}}),
        json!({"put_challenges": {"generation": 7, "challenges": {"token": "answer"}}}),
        json!({"change_network": {"change": NetworkChange::between(&view(), &changed).unwrap()}}),
        json!({"hello": {"protocol": 2}}),
        json!({"remove_network": {"number": 1}}),
        json!({"take_denials": {"after": 7}}),
        json!({"hello": {"protocol": 2, "pid": 1}}),
        json!({"refused": {"code": "malformed", "message": "m"}}),
        json!({"open_flows": []}),
        json!({"flow_counters": {"network": 1}}),
        json!({"status": {"pid": 1, "version": "0", "networks": {"1": 7}, "queries": warren_edge::QueryCounters::default(), "names": 0,
            "tunnel": null, "devices": [1], "refused": [],
            "public": {"generation": {"content": 7, "challenges": 8}, "listening": {"https": ["[::]:443"]}, "dialers": {}, "room": 64}}}),
    ];
    let seeds = seeds.iter().map(|seed| seed.to_string().into_bytes()).collect();
    run(&Target {
        name: "control_messages",
        seeds,
        words: &[
            b"null",
            b"[]",
            b"{}",
            b"\"\"",
            b"\"a.internal\"",
            b"1e9",
            b"\"::/0\"",
            b"\"\\u0000\"",
            b"[",
            b"{\"",
            b",",
        ],
        longest: LONGEST,
        memory: MEMORY,
        parse: &fuzz::control_message,
    });
}
