//! WebSockets through the ingress.

use std::num::NonZeroU32;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::lab::{Lab, Machine, PATIENCE, eventually, head};

async fn echo() -> Machine {
    Machine::raw(|stream| async move {
        let Ok(mut socket) = accept_async(stream).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.unwrap();
            }
        }
    })
    .await
}

async fn connect(lab: &Lab) -> WebSocketStream<TlsStream<TcpStream>> {
    let stream = lab.tls("a.example", &["http/1.1"]).await.unwrap();
    let (socket, response) = client_async("wss://a.example/socket", stream).await.unwrap();
    assert_eq!(response.status(), 101);
    socket
}

#[tokio::test]
async fn messages_go_both_ways_until_the_socket_closes() {
    let lab = Lab::one(&echo().await).await;
    let mut socket = connect(&lab).await;
    for size in [1, 1000, 300_000] {
        let message = Message::binary(vec![7u8; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap(), message);
    }
    let counters = lab.counters("a.example");
    assert_eq!((counters.open_requests, counters.open_connections, counters.requests), (1, 1, 1));
    assert!(counters.bytes_in > 301_000 && counters.bytes_out > 301_000, "{counters:?}");
    socket.close(None).await.unwrap();
    while timeout(PATIENCE, socket.next()).await.unwrap().is_some() {}
    drop(socket);
    eventually("it is gone", || lab.counters("a.example").open_requests == 0).await;
    eventually("its connection, too", || lab.ingress.totals().open_connections == 0).await;
}

#[tokio::test]
async fn a_socket_on_which_nothing_moves_is_ended() {
    let mut lab = Lab::one(&echo().await).await;
    lab.change(|snapshot| snapshot.sites[0].limits.idle_seconds = NonZeroU32::new(3).unwrap());
    let mut socket = connect(&lab).await;
    // What moves goes on.
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        socket.send(Message::text("x")).await.unwrap();
        assert!(timeout(PATIENCE, socket.next()).await.unwrap().unwrap().is_ok());
    }
    let ended = timeout(PATIENCE, socket.next()).await.expect("it goes on");
    assert!(ended.is_none_or(|message| message.is_err()));
}

#[tokio::test]
async fn only_a_websocket_that_was_asked_for_is_switched_to() {
    let machine = Machine::raw(|mut stream| async move {
        let mut have = head(&mut stream).await;
        let other = if have.starts_with(b"GET /other") { "other" } else { "websocket" };
        let answer =
            format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {other}\r\n\r\nsecret");
        stream.write_all(answer.as_bytes()).await.unwrap();
        let _ = stream.read_buf(&mut have).await;
    })
    .await;
    let lab = Lab::one(&machine).await;
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for (line, upgrade) in [
        ("GET /", ""),
        ("GET /", "Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        ("GET /", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n"),
        ("GET /", "Upgrade: websocket\r\n"),
        ("POST /", websocket),
        ("GET /other", websocket),
    ] {
        let mut raw = lab.raw("a.example").await;
        raw.send(&format!("{line} HTTP/1.1\r\nHost: a.example\r\n{upgrade}\r\n")).await;
        let answer = raw.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (502, "preview_unreachable"), "{line} {upgrade}");
    }
    // Who speaks HTTP/1.0 cannot ask for it (RFC 9110 §7.8).
    let mut raw = lab.raw("a.example").await;
    raw.send(&format!("GET / HTTP/1.0\r\nHost: a.example\r\n{websocket}\r\n")).await;
    assert_eq!(raw.answer().await.status, 502);
    let mut raw = lab.raw("a.example").await;
    raw.send(&format!("GET / HTTP/1.1\r\nHost: a.example\r\n{websocket}\r\n")).await;
    let head = raw.until("secret").await.to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: websocket\r\n"), "{head}");
}

#[tokio::test]
async fn a_refusal_of_the_machine_to_switch_is_passed_on() {
    let lab = Lab::one(&Machine::named("no").await).await;
    let mut raw = lab.raw("a.example").await;
    raw.send("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "no"));
    eventually("nothing is under way", || lab.counters("a.example").open_requests == 0).await;
}

#[tokio::test]
async fn what_follows_a_request_to_switch_is_read_as_what_was_agreed_on() {
    let machine = Machine::raw(|mut stream| async move {
        let asked = head(&mut stream).await;
        // Late, so that what follows is there before.
        tokio::time::sleep(Duration::from_millis(100)).await;
        if asked.starts_with(b"GET /no") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext").await.unwrap();
            return;
        }
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut buffer = vec![0; 100];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..count]).await.unwrap();
        }
    })
    .await;
    let lab = Lab::one(&machine).await;
    let ask = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    };
    let mut raw = lab.raw("a.example").await;
    raw.send(&(ask("/yes") + "\n\nno HTTP at all\r\n\r\n")).await;
    raw.until("\n\nno HTTP at all\r\n\r\n").await;
    raw.send("more").await;
    raw.until("more").await;

    let mut raw = lab.raw("a.example").await;
    raw.send(&(ask("/no") + "GET / HTTP/1.1\r\nHost: a.example\r\n\r\nno HTTP\r\n\r\n")).await;
    assert_eq!(raw.answer().await.body, "no");
    assert_eq!(raw.answer().await.body, "next");
    assert_eq!(raw.answer().await.code(), "request_malformed");
}
