//! HTTP through the transparent proxy.

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use warren_model::denial::Layer;
use warren_model::policy::Application;

use super::{ACCESS_DENIED, Fake, GOOD, OTHER, QUICK, Setup, drain, expect, head, problem, send, soon};

async fn setup() -> (Setup, TcpStream) {
    let setup = Setup::transparent(Application::Http).await;
    let client = setup.dial().await;
    (setup, client)
}

/// Sends an ordinary request; returns the server's end, which has read it.
async fn asked(setup: &Setup, client: &mut TcpStream) -> TcpStream {
    send(client, format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")).await;
    let mut server = setup.accept().await;
    head(&mut server).await;
    server
}

/// The same, and the server answers without a body.
async fn answered(setup: &Setup, client: &mut TcpStream, answer: &str) -> TcpStream {
    let mut server = asked(setup, client).await;
    send(&mut server, answer).await;
    head(client).await;
    server
}

/// Sends a request that has to be refused with 403 before anything goes out, and returns the document.
async fn refused(request: &str) -> serde_json::Value {
    let (setup, mut client) = setup().await;
    send(&mut client, request).await;
    let (head, body) = problem(&mut client).await;
    assert!(head.contains(" 403 forbidden\r\n"), "{head}");
    setup.nothing_went_out().await;
    assert_eq!(setup.gate.refusal().await.layer, Layer::Http);
    body
}

#[tokio::test]
async fn a_request_for_the_name_passes_unchanged() {
    let (setup, mut client) = setup().await;
    let request = format!("POST /a?b=c HTTP/1.1\r\nHost: {GOOD}\r\nX-Odd-Case: 1\r\nContent-Length: 4\r\n\r\nbody");
    send(&mut client, &request).await;
    let mut server = setup.accept().await;
    expect(&mut server, request.as_bytes()).await;
    let response = "HTTP/1.1 201 Created\r\nX-Other: 2\r\nContent-Length: 2\r\n\r\nok";
    send(&mut server, response).await;
    expect(&mut client, response.as_bytes()).await;
    assert!(setup.gate.refusals().is_empty());
    let (sent, received) = setup.gate.carried();
    assert_eq!((sent, received), (request.len() as u64, response.len() as u64));
}

#[tokio::test]
async fn a_refusal_says_everything() {
    let body = refused("GET / HTTP/1.1\r\nHost: other.example\r\n\r\n").await;
    assert_eq!(body["type"], "urn:warren:problem:denied_by_policy");
    assert_eq!((&body["status"], &body["code"]), (&403.into(), &"denied_by_policy".into()));
    assert!(body["denial"].as_str().unwrap().starts_with("dny_"));
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.contains("the request is for other.example, and the connection is to good.example"), "{detail}");
    assert!(body.get("rule").is_none(), "no rule allows that name: {body}");
}

#[tokio::test]
async fn whoever_a_request_is_for_has_to_be_clear() {
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example\r\nHost: other.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example\r\nHost: good.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@good.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.example, other.example\r\n\r\n",
        "GET http://other.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
        "GET http://good.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n",
        "GET http://good.example@other.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
        "CONNECT good.example:80 HTTP/1.1\r\nHost: good.example\r\n\r\n",
        "CONNECT other.example:443 HTTP/1.1\r\nHost: good.example\r\n\r\n",
    ] {
        let body = refused(request).await;
        assert_eq!(body["code"], "denied_by_policy", "{request:?}");
    }
}

#[tokio::test]
async fn the_name_may_be_written_in_every_way_and_a_whole_url_says_what_the_host_is() {
    for (target, host, sent) in [
        ("/x", "GOOD.example.:PORT", "GOOD.example.:PORT"),
        ("/x", "good.example:", "good.example:"),
        ("http://Good.Example./x", "GOOD.example.:PORT", "good.example:PORT"),
        ("http://good.example:PORT/x", "good.example", "good.example:PORT"),
        ("http://good.example:PORT/x", "good.example:81", "good.example:PORT"),
    ] {
        let (setup, mut client) = setup().await;
        let [target, host, sent] = [target, host, sent].map(|text| text.replace("PORT", &setup.port().to_string()));
        send(&mut client, format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let mut server = setup.accept().await;
        expect(&mut server, format!("GET /x HTTP/1.1\r\nHost: {sent}\r\n\r\n").as_bytes()).await;
    }
}

#[tokio::test]
async fn a_request_for_another_port_than_the_connections_is_refused() {
    for (target, host) in [("/", "good.example:81"), ("http://good.example:81/", "good.example")] {
        let body = refused(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let detail = body["detail"].as_str().unwrap();
        assert!(detail.starts_with("the request is for good.example:81, and the connection is to port "), "{detail}");
    }
}

#[tokio::test]
async fn a_later_request_for_another_port_is_refused() {
    let (setup, mut client) = setup().await;
    let mut server = answered(&setup, &mut client, "HTTP/1.1 204 No Content\r\n\r\n").await;
    send(&mut client, format!("GET / HTTP/1.1\r\nHost: {GOOD}:81\r\n\r\n")).await;
    assert!(problem(&mut client).await.0.starts_with("http/1.1 403"));
    assert_eq!(drain(&mut server).await.0, b"", "the refused request reached the server");
}

#[tokio::test]
async fn a_pipelined_request_for_another_name_is_refused() {
    let (setup, mut client) = setup().await;
    let other = format!("GET /2 HTTP/1.1\r\nHost: {OTHER}\r\n\r\n");
    send(&mut client, format!("GET /1 HTTP/1.1\r\nHost: {GOOD}\r\n\r\n{other}{other}")).await;
    let mut server = setup.accept().await;
    assert!(head(&mut server).await.starts_with("GET /1 "));
    send(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    expect(&mut client, b"ok").await;
    let (head, _) = problem(&mut client).await;
    assert!(head.starts_with("http/1.1 403") && head.contains("connection: close"), "{head}");
    assert_eq!(drain(&mut client).await, (Vec::new(), false), "a request after the refused one was answered");
    assert_eq!(drain(&mut server).await.0, b"", "the refused request reached the server");
    assert_eq!(setup.gate.refusals().len(), 1);
}

#[tokio::test]
async fn requests_of_one_connection_share_one_to_the_server() {
    let (setup, mut client) = setup().await;
    send(&mut client, format!("GET /1 HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")).await;
    let mut server = setup.accept().await;
    for number in 1..4 {
        assert!(head(&mut server).await.starts_with(&format!("GET /{number} ")));
        send(&mut server, "HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 204"));
        send(&mut client, format!("GET /{} HTTP/1.1\r\nHost: {GOOD}\r\n\r\n", number + 1)).await;
    }
}

#[tokio::test]
async fn a_server_that_closed_in_between_is_connected_to_again() {
    let (setup, mut client) = setup().await;
    for _ in 0..3 {
        answered(&setup, &mut client, "HTTP/1.1 204 No Content\r\n\r\n").await;
    }
}

/// The reason for which the second request of a connection is refused, when policy changes like this before it.
async fn refused_after(change: impl FnOnce(&Fake)) -> String {
    let (setup, mut client) = setup().await;
    drop(answered(&setup, &mut client, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await);
    change(&setup.gate);
    send(&mut client, format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")).await;
    let (head, body) = problem(&mut client).await;
    assert!(head.starts_with("http/1.1 403"), "{head}");
    setup.nothing_went_out().await;
    body["detail"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn each_request_is_decided_anew() {
    let reason = refused_after(Fake::forbid).await;
    assert!(reason.starts_with("no rule allows good.example"), "{reason}");
}

#[tokio::test]
async fn a_rule_that_becomes_one_for_tls_ends_http() {
    let reason = refused_after(|gate| gate.allow(GOOD, Application::Tls)).await;
    assert!(reason.contains("lets TLS to good.example"), "{reason}");
}

#[tokio::test]
async fn empty_lines_before_a_request_are_passed_over_however_many_there_are() {
    let (setup, mut client) = setup().await;
    send(&mut client, vec![b'\n'; 1 << 20]).await;
    send(&mut client, format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")).await;
    let mut server = setup.accept().await;
    assert!(head(&mut server).await.starts_with("GET / HTTP/1.1\r\n"));
}

#[tokio::test]
async fn revoking_cuts_a_response_that_is_under_way() {
    let (setup, mut client) = setup().await;
    let mut server = answered(&setup, &mut client, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegin").await;
    expect(&mut client, b"begin").await;
    setup.gate.revoke();
    assert!(drain(&mut client).await.1);
    assert!(drain(&mut server).await.1);
}

#[tokio::test]
async fn a_length_and_an_encoding_together_hide_no_request() {
    // The body ends by its chunks, and only that is said to the server.
    let (setup, mut client) = setup().await;
    let smuggled = format!("GET /admin HTTP/1.1\r\nHost: {OTHER}\r\n\r\n");
    send(
        &mut client,
        format!(
            "POST / HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}",
            5 + smuggled.len()
        ),
    )
    .await;
    let mut server = setup.accept().await;
    let first = head(&mut server).await.to_ascii_lowercase();
    assert!(first.contains("transfer-encoding: chunked") && !first.contains("content-length"), "{first}");
    expect(&mut server, b"0\r\n\r\n").await;
    send(&mut server, "HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 204"));
    // RFC 9112 §6.1: the connection ends, and what follows is not looked at.
    assert_eq!(drain(&mut client).await.0, b"");
    assert_eq!(drain(&mut server).await.0, b"");
}

#[tokio::test]
async fn an_answer_with_a_length_and_an_encoding_ends_by_its_chunks() {
    let (setup, mut client) = setup().await;
    let mut server = asked(&setup, &mut client).await;
    let body = "5\r\nwhole\r\n0\r\n\r\n";
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    send(&mut server, answer).await;
    let said = head(&mut client).await.to_ascii_lowercase();
    assert!(said.contains("transfer-encoding: chunked") && !said.contains("content-length"), "{said}");
    expect(&mut client, body.as_bytes()).await;
}

#[tokio::test]
async fn what_cannot_be_delimited_beyond_doubt_is_refused() {
    for headers in [
        "Content-Length: 3\r\nContent-Length: 5\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: 3, 5\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "X: a\r\n Transfer-Encoding: chunked\r\n",
        "X\0: a\r\n",
    ] {
        let (setup, mut client) = setup().await;
        send(&mut client, format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\n{headers}\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n"))
            .await;
        let (answer, _) = drain(&mut client).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 400"), "{headers:?}: {answer}");
        setup.nothing_went_out().await;
    }
}

/// The status of the answer to a request with these headers, of which nothing goes out.
async fn status_of(headers: &str) -> String {
    let (setup, mut client) = setup().await;
    // The proxy may close before everything was written.
    let request = format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n{headers}\r\n");
    let _ = tokio::io::AsyncWriteExt::write_all(&mut client, request.as_bytes()).await;
    let (answer, _) = drain(&mut client).await;
    setup.nothing_went_out().await;
    String::from_utf8_lossy(&answer).chars().skip(9).take(3).collect()
}

#[tokio::test]
async fn headers_are_bounded_in_number() {
    assert_eq!(status_of(&"X: 1\r\n".repeat(101)).await, "431");
}

#[tokio::test]
async fn headers_are_bounded_in_size() {
    assert_eq!(status_of(&format!("X: {}\r\n", "a".repeat(200 << 10))).await, "431");
}

#[tokio::test]
async fn headers_are_bounded_in_time() {
    let (setup, mut client) = setup().await;
    send(&mut client, format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nX-Slow: ")).await;
    let begun = std::time::Instant::now();
    drain(&mut client).await;
    assert!(begun.elapsed() < QUICK.idle / 3);
    setup.nothing_went_out().await;
}

#[tokio::test]
async fn headers_for_the_proxy_stay_with_the_proxy() {
    let (setup, mut client) = setup().await;
    send(
        &mut client,
        format!(
            "GET / HTTP/1.1\r\nHost: {GOOD}\r\nConnection: X-Mine, Host, Upgrade\r\nX-Mine: 1\r\nUpgrade: h2c\r\n\
             Proxy-Authorization: secret\r\nTE: gzip\r\nAccept: */*\r\n\r\n"
        ),
    )
    .await;
    let mut server = setup.accept().await;
    assert_eq!(head(&mut server).await, format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nAccept: */*\r\n\r\n"));
}

#[tokio::test]
async fn a_server_that_fails_is_not_taken_for_policy() {
    let (setup, mut client) = setup().await;
    setup.gate.resolve(GOOD, &["127.0.0.9".parse().unwrap()]);
    send(&mut client, format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")).await;
    let (head, body) = problem(&mut client).await;
    assert!(head.starts_with("http/1.1 502"), "{head}");
    assert!(body["detail"].as_str().unwrap().starts_with("Policy allows it, but good.example"), "{body}");
    assert!(setup.gate.refusals().is_empty());
}

#[tokio::test]
async fn tls_where_http_is_all_there_is_gets_an_alert() {
    let (setup, mut client) = setup().await;
    send(&mut client, super::hello::real(GOOD)).await;
    assert_eq!(drain(&mut client).await.0, ACCESS_DENIED);
    setup.nothing_went_out().await;
}

#[tokio::test]
async fn a_client_that_closed_its_side_gets_its_answer() {
    let (setup, mut client) = setup().await;
    send(&mut client, format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")).await;
    tokio::io::AsyncWriteExt::shutdown(&mut client).await.unwrap();
    let mut server = setup.accept().await;
    head(&mut server).await;
    send(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let (answer, reset) = drain(&mut client).await;
    assert!(answer.ends_with(b"ok") && !reset);
}

#[tokio::test]
async fn an_answer_arrives_that_comes_before_the_request_was_sent() {
    for _ in 0..20 {
        let (setup, client) = setup().await;
        let (mut read, mut write) = client.into_split();
        let sending = tokio::spawn(async move {
            let head = format!("POST / HTTP/1.1\r\nHost: {GOOD}\r\nContent-Length: 16777216\r\n\r\n");
            let _ = tokio::io::AsyncWriteExt::write_all(&mut write, head.as_bytes()).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut write, &vec![b'x'; 16 << 20]).await;
            write
        });
        let mut server = setup.accept().await;
        head(&mut server).await;
        send(&mut server, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 6\r\n\r\nenough").await;
        // With the body unread, which is a reset.
        drop(server);
        let mut answer = Vec::new();
        let _ = soon(read.read_to_end(&mut answer)).await;
        assert!(answer.starts_with(b"HTTP/1.1 413") && answer.ends_with(b"enough"), "{:?}", answer.escape_ascii());
        drop(sending.await);
    }
}

#[tokio::test]
async fn a_refusal_arrives_though_the_client_is_still_sending() {
    let (setup, client) = setup().await;
    let (mut read, mut write) = client.into_split();
    let sending = tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: {OTHER}\r\nContent-Length: 600000\r\n\r\n");
        let _ = tokio::io::AsyncWriteExt::write_all(&mut write, head.as_bytes()).await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut write, &vec![b'x'; 600_000]).await;
        write
    });
    let mut answer = Vec::new();
    soon(read.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 403") && answer.ends_with(b"}"), "{}", String::from_utf8_lossy(&answer));
    drop(sending.await);
    setup.nothing_went_out().await;
}
