//! Rules that let any protocol through.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren_model::denial::Layer;
use warren_model::policy::Application;

use super::{ACCESS_DENIED, GOOD, OTHER, Setup, drain, expect, head, problem, send};

#[tokio::test]
async fn bytes_pass_both_ways_at_once() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut client = setup.dial().await;
    send(&mut client, [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]).await;
    let mut server = setup.accept().await;
    expect(&mut server, &[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]).await;
    send(&mut server, "N").await;
    expect(&mut client, b"N").await;
}

#[tokio::test]
async fn a_single_letter_does_not_wait_for_more() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut client = setup.dial().await;
    send(&mut client, "x").await;
    let mut server = setup.accept().await;
    expect(&mut server, b"x").await;
    send(&mut client, "y\nz").await;
    expect(&mut server, b"y\nz").await;
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut client = setup.dial().await;
    let mut server = setup.accept().await;
    send(&mut server, "220 mail.example\r\n").await;
    expect(&mut client, b"220 mail.example\r\n").await;
    send(&mut client, "EHLO x\r\n").await;
    expect(&mut server, b"EHLO x\r\n").await;
}

#[tokio::test]
async fn a_client_that_speaks_late_is_still_checked() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut client = setup.dial().await;
    let mut server = setup.accept().await;
    send(&mut client, super::hello::real(OTHER)).await;
    let (told, _) = drain(&mut client).await;
    assert_eq!(told, ACCESS_DENIED);
    assert!(drain(&mut server).await.0.is_empty(), "bytes that were refused reached the server");
    assert_eq!(setup.gate.refusal().await.layer, Layer::Tls);
}

#[tokio::test]
async fn a_client_that_says_nothing_and_closes_hears_the_server_out() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut client = setup.dial().await;
    client.shutdown().await.unwrap();
    let mut server = setup.accept().await;
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    send(&mut server, "time").await;
    drop(server);
    assert_eq!(drain(&mut client).await, (b"time".to_vec(), false));
}

#[tokio::test]
async fn http_is_recognized_and_checked() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut client = setup.dial().await;
    send(&mut client, format!("GET / HTTP/1.1\r\nHost: {OTHER}\r\n\r\n")).await;
    let (head, body) = problem(&mut client).await;
    assert!(head.starts_with("http/1.1 403"), "{head}");
    assert!(body["detail"].as_str().unwrap().contains(OTHER));
    setup.nothing_went_out().await;
}

#[tokio::test]
async fn a_request_line_in_two_packets_is_still_http() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut client = setup.dial().await;
    send(&mut client, "GE").await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    send(&mut client, format!("T / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")).await;
    let mut server = setup.accept().await;
    assert!(head(&mut server).await.starts_with("GET / HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_request_line_that_comes_too_slowly_to_be_checked_is_cut() {
    for begin in ["GET / HT", "x"] {
        let setup = Setup::transparent(Application::Tcp).await;
        let mut client = setup.dial().await;
        send(&mut client, begin).await;
        let mut server = setup.accept().await;
        expect(&mut server, begin.as_bytes()).await;
        let rest = if begin == "x" { " / HTTP/1.1\r\n" } else { "TP/1.1\r\n" };
        send(&mut client, format!("{rest}Host: {OTHER}\r\n\r\n")).await;
        assert_eq!(drain(&mut server).await, (Vec::new(), true));
        assert!(drain(&mut client).await.1);
        assert_eq!(setup.gate.refusal().await.layer, Layer::Http);
    }
}

#[tokio::test]
async fn a_request_after_very_many_empty_lines_is_cut() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut client = setup.dial().await;
    let empty = vec![b'\n'; 1 << 20];
    let (_, mut server) = tokio::join!(send(&mut client, &empty), async {
        let mut server = setup.accept().await;
        expect(&mut server, &empty).await;
        server
    });
    send(&mut client, format!("GET / HTTP/1.1\r\nHost: {OTHER}\r\n\r\n")).await;
    assert_eq!(drain(&mut server).await, (Vec::new(), true));
    assert_eq!(setup.gate.refusal().await.layer, Layer::Http);
}

#[tokio::test]
async fn a_name_that_is_only_mentioned_is_not_admitted() {
    let setup = Setup::transparent(Application::Tls).await;
    setup.gate.allow(OTHER, Application::Tls);
    let mut client = setup.dial().await;
    send(&mut client, super::hello::real(OTHER)).await;
    drain(&mut client).await;
    assert_eq!(setup.gate.refusal().await.name.as_deref(), Some(OTHER));
    assert_eq!(setup.gate.admitted.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn http2_without_tls_is_told_to_use_http1() {
    let setup = Setup::transparent(Application::Tcp).await;
    let mut client = setup.dial().await;
    send(&mut client, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let (told, reset) = drain(&mut client).await;
    assert_eq!((told.len(), told[25], reset), (26, 13, false));
    setup.nothing_went_out().await;
    let refusal = setup.gate.refusal().await;
    assert_eq!(refusal.layer, Layer::Http);
    assert_eq!(refusal.reason, "HTTP/2 without TLS to good.example cannot be checked: use HTTP/1.1");
}
