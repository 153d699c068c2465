//! What the public sends to a preview.

use warren_fuzz::{Target, run};
use warren_ingress::fuzz;

const MEMORY: u64 = 8 << 20;

#[test]
fn request_heads() {
    let head = |lines: &[&str]| format!("POST /a?b HTTP/1.1\r\nHost: a.example\r\n{}\r\n\r\n", lines.join("\r\n"));
    let seeds = [
        head(&["Content-Length: 12", "Accept: */*"]),
        head(&["Transfer-Encoding: chunked", "Trailer: X-T"]),
        head(&["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAA"]),
        "GET http://a.example/ HTTP/1.0\r\n\r\n".to_owned(),
    ];
    run(&Target {
        name: "request_heads",
        seeds: seeds.map(String::into_bytes).to_vec(),
        words: &[
            b"\r\n",
            b"\n",
            b"\r",
            b"Content-Length: ",
            b"Transfer-Encoding: chunked",
            b" ",
            b"\t",
            b"\0",
            b"+1",
            b"HTTP/1.1",
        ],
        longest: 20 << 10,
        memory: MEMORY,
        parse: &fuzz::head,
    });
}

#[test]
fn chunked_bodies() {
    run(&Target {
        name: "chunked_bodies",
        seeds: vec![b"5;a=\"b\"\r\nhello\r\n0A\r\n0123456789\r\n000\r\nX-T: 1\r\n\r\n".to_vec(), b"0\r\n\r\n".to_vec()],
        words: &[b"\r\n", b"0\r\n\r\n", b";", b"ffffffffffffffff", b"10000000000000000", b"\n"],
        longest: 20 << 10,
        memory: MEMORY,
        parse: &fuzz::chunks,
    });
}
