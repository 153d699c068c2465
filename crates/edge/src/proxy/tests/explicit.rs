//! The proxy on the gateway.

use std::sync::atomic::Ordering::Relaxed;

use warren_model::denial::Layer;
use warren_model::policy::Application;

use super::hello::real;
use super::{ACCESS_DENIED, CANARY, GOOD, OTHER, PRIVATE, Setup, drain, expect, head, problem, send, soon};

async fn connect(setup: &Setup, to: &str) -> tokio::net::TcpStream {
    let mut client = setup.dial().await;
    send(&mut client, format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n")).await;
    client
}

#[tokio::test]
async fn a_connection_to_an_allowed_name_is_made() {
    let setup = Setup::explicit(Application::Tls).await;
    let mut client = connect(&setup, &format!("{GOOD}:{}", setup.port())).await;
    assert_eq!(head(&mut client).await, "HTTP/1.1 200 OK\r\n\r\n");
    let hello = real(GOOD);
    send(&mut client, &hello).await;
    let mut server = setup.accept().await;
    let mut bytes = vec![0; hello.len()];
    soon(tokio::io::AsyncReadExt::read_exact(&mut server, &mut bytes)).await.unwrap();
    assert_eq!(bytes, hello);
    send(&mut server, "whatever").await;
    expect(&mut client, b"whatever").await;
}

#[tokio::test]
async fn the_first_bytes_may_come_with_the_request() {
    let setup = Setup::explicit(Application::Tcp).await;
    let mut client = setup.dial().await;
    let to = format!("{GOOD}:{}", setup.port());
    send(&mut client, format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n\0early")).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    expect(&mut setup.accept().await, b"\0early").await;
}

#[tokio::test]
async fn another_server_name_in_an_allowed_connection_is_refused() {
    let setup = Setup::explicit(Application::Tls).await;
    let mut client = connect(&setup, &format!("{GOOD}:{}", setup.port())).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    send(&mut client, real(OTHER)).await;
    assert_eq!(drain(&mut client).await.0, ACCESS_DENIED);
    setup.nothing_went_out().await;
    assert_eq!(setup.gate.refusal().await.name.unwrap(), OTHER);
}

#[tokio::test]
async fn a_name_that_is_not_allowed_is_refused_before_it_is_resolved() {
    let setup = Setup::explicit(Application::Tls).await;
    let mut client = connect(&setup, "other.example:443").await;
    let (head, body) = problem(&mut client).await;
    assert!(head.starts_with("http/1.1 403"), "{head}");
    assert_eq!(body["detail"], "no rule allows other.example on tcp/443");
    assert_eq!(setup.gate.looked_up.load(Relaxed), 0);
    let refused = setup.gate.refusal().await;
    assert_eq!((refused.layer, refused.port), (Layer::Proxy, Some(443)));
}

#[tokio::test]
async fn addresses_are_refused_in_every_spelling() {
    for to in ["127.0.0.2:443", "[::1]:443", "[::ffff:127.0.0.2]:443", "2130706434:443", "0x7f.2:443", "127.2:443"] {
        let setup = Setup::explicit(Application::Tcp).await;
        let mut client = connect(&setup, to).await;
        let (head, body) = problem(&mut client).await;
        assert!(head.starts_with("http/1.1 403"), "{to}: {head}");
        assert_eq!(body["code"], "denied_by_policy");
        assert_eq!(setup.gate.refusal().await.layer, Layer::Proxy);
        setup.nothing_went_out().await;
    }
}

#[tokio::test]
async fn names_inside_and_the_proxy_itself_are_refused() {
    for to in ["localhost:3128", "gateway.internal:3128", "worker.vm.internal:80"] {
        let setup = Setup::explicit(Application::Tcp).await;
        let (head, _) = problem(&mut connect(&setup, to).await).await;
        assert!(head.starts_with("http/1.1 403"), "{to}: {head}");
    }
}

#[tokio::test]
async fn a_name_that_leads_inside_is_refused() {
    let setup = Setup::explicit(Application::Tcp).await;
    setup.gate.resolve(GOOD, &[PRIVATE]);
    let (head, body) = problem(&mut connect(&setup, &format!("{GOOD}:{}", setup.port())).await).await;
    assert!(head.starts_with("http/1.1 403"), "{head}");
    assert_eq!(body["rule"], "builtin:not-global");
}

#[tokio::test]
async fn a_server_that_fails_is_told_from_policy() {
    let setup = Setup::explicit(Application::Tcp).await;
    setup.gate.resolve(GOOD, &["127.0.0.9".parse().unwrap()]);
    let (head, body) = problem(&mut connect(&setup, &format!("{GOOD}:{}", setup.port())).await).await;
    assert!(head.starts_with("http/1.1 502"), "{head}");
    assert_eq!(body["code"], "upstream_failed");
    assert!(setup.gate.refusals().is_empty());

    setup.gate.allow("unknown.example", Application::Tls);
    let (head, body) = problem(&mut connect(&setup, "unknown.example:443").await).await;
    assert!(head.starts_with("http/1.1 502"), "{head}");
    assert!(body["detail"].as_str().unwrap().contains("does not exist"), "{body}");
}

#[tokio::test]
async fn a_url_without_a_path_becomes_a_request_for_the_root() {
    for (rest, asked) in [("", "/"), ("?b", "/?b"), ("#x", "/"), ("#@evil.example/x", "/")] {
        let setup = Setup::explicit(Application::Http).await;
        let authority = format!("{GOOD}:{}", setup.port());
        let mut client = setup.dial().await;
        send(&mut client, format!("GET http://{authority}{rest} HTTP/1.1\r\nHost: {authority}\r\n\r\n")).await;
        let mut server = setup.accept().await;
        let head = head(&mut server).await;
        assert!(head.starts_with(&format!("GET {asked} HTTP/1.1\r\n")), "{rest}: {head}");
    }
}

#[tokio::test]
async fn a_request_for_a_whole_url_is_passed_on() {
    let setup = Setup::explicit(Application::Http).await;
    let authority = format!("{GOOD}:{}", setup.port());
    let mut client = setup.dial().await;
    send(
        &mut client,
        format!("GET http://{authority}/a?b HTTP/1.1\r\nHost: {authority}\r\nProxy-Connection: keep-alive\r\n\r\n"),
    )
    .await;
    let mut server = setup.accept().await;
    assert_eq!(head(&mut server).await, format!("GET /a?b HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
    send(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    expect(&mut client, b"ok").await;
    // The next request of the same connection goes elsewhere.
    setup.gate.allow(OTHER, Application::Http);
    let other = format!("{OTHER}:{}", setup.port());
    send(&mut client, format!("GET http://{other}/ HTTP/1.1\r\nHost: {other}\r\n\r\n")).await;
    let (mut elsewhere, _) = soon(setup.canary.accept()).await.unwrap();
    assert_eq!(elsewhere.local_addr().unwrap().ip(), CANARY);
    assert!(head(&mut elsewhere).await.contains(OTHER));
}

#[tokio::test]
async fn the_host_that_a_server_reads_is_the_one_that_was_judged() {
    let setup = Setup::explicit(Application::Http).await;
    let authority = format!("{GOOD}:{}", setup.port());
    let mut client = setup.dial().await;
    let mut server = None;
    // RFC 9112 §3.2.2: a whole URL counts, whatever Host says; on every request of a connection.
    for (version, host) in [
        ("1.1", format!("Host: {GOOD}:81\r\n")),
        ("1.1", format!("Host: {GOOD}\r\n")),
        ("1.1", format!("Host: {authority}\r\nConnection: Host\r\n")),
        ("1.0", String::new()),
    ] {
        send(&mut client, format!("GET http://{authority}/ HTTP/{version}\r\n{host}\r\n")).await;
        let server = match server.as_mut() {
            Some(server) => server,
            None => server.insert(setup.accept().await),
        };
        let asked = head(server).await.to_ascii_lowercase();
        assert_eq!(asked, format!("get / http/1.1\r\nhost: {authority}\r\n\r\n"), "{host:?}");
        send(server, "HTTP/1.1 204 No Content\r\n\r\n").await;
        head(&mut client).await;
    }
}

#[tokio::test]
async fn every_request_is_checked() {
    let setup = Setup::explicit(Application::Http).await;
    for (target, host, layer) in [
        ("http://other.example/", OTHER, Layer::Proxy),
        ("http://good.example/", OTHER, Layer::Proxy),
        ("http://other.example/", GOOD, Layer::Proxy),
        ("http://127.0.0.2/", "127.0.0.2", Layer::Proxy),
    ] {
        setup.gate.refused.lock().unwrap().clear();
        let mut client = setup.dial().await;
        send(&mut client, format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let (head, _) = problem(&mut client).await;
        assert!(head.starts_with("http/1.1 403"), "{target} {host}: {head}");
        assert_eq!(setup.gate.refusal().await.layer, layer);
    }
    setup.nothing_went_out().await;
}

#[tokio::test]
async fn a_rule_for_tls_lets_no_plain_request_through() {
    let setup = Setup::explicit(Application::Tls).await;
    let authority = format!("{GOOD}:{}", setup.port());
    let mut client = setup.dial().await;
    send(&mut client, format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n")).await;
    let (head, body) = problem(&mut client).await;
    assert!(head.starts_with("http/1.1 403"), "{head}");
    assert_eq!(body["rule"], "the-rule");
    setup.nothing_went_out().await;
}

#[tokio::test]
async fn what_is_no_request_to_a_proxy_is_explained() {
    for request in [
        "GET / HTTP/1.1\r\nHost: gateway\r\n\r\n",
        "GET https://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n",
        "CONNECT good.example HTTP/1.1\r\nHost: good.example\r\n\r\n",
    ] {
        let setup = Setup::explicit(Application::Tcp).await;
        let mut client = setup.dial().await;
        send(&mut client, request).await;
        let (head, body) = problem(&mut client).await;
        assert!(head.starts_with("http/1.1 400"), "{request}: {head}");
        assert_eq!(body["code"], "proxy_request_invalid");
        assert!(body["detail"].as_str().unwrap().contains("CONNECT"), "{body}");
        assert!(setup.gate.refusals().is_empty());
    }
}

#[tokio::test]
async fn http_in_a_connection_is_checked_where_the_rule_is_for_http() {
    let setup = Setup::explicit(Application::Http).await;
    let mut client = connect(&setup, &format!("{GOOD}:{}", setup.port())).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    send(&mut client, format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")).await;
    let mut server = setup.accept().await;
    head(&mut server).await;
    send(&mut server, "HTTP/1.1 204 No Content\r\n\r\n").await;
    head(&mut client).await;
    send(&mut client, format!("GET / HTTP/1.1\r\nHost: {OTHER}\r\n\r\n")).await;
    let (said, _) = problem(&mut client).await;
    assert!(said.starts_with("http/1.1 403"), "{said}");
}

#[tokio::test]
async fn revoking_cuts_a_connection_that_was_asked_for() {
    let setup = Setup::explicit(Application::Tcp).await;
    let mut client = connect(&setup, &format!("{GOOD}:{}", setup.port())).await;
    head(&mut client).await;
    let mut server = setup.accept().await;
    // Before anything was said on it.
    setup.gate.revoke();
    assert!(drain(&mut client).await.1);
    assert!(drain(&mut server).await.1);
}
