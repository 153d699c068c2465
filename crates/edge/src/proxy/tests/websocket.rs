//! WebSocket through both proxies.

use futures::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{accept_async, client_async};
use warren_model::policy::Application;

use super::{GOOD, Setup, drain, head, send, soon};

#[tokio::test]
async fn a_websocket_passes_and_dies_on_revocation() {
    for application in [Application::Http, Application::Tcp] {
        let setup = Setup::transparent(application).await;
        let serving = async {
            let mut socket = accept_async(setup.accept().await).await.unwrap();
            socket.send(Message::text("welcome")).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                if message.is_text() {
                    socket.send(message).await.unwrap();
                }
            }
        };
        let asking = async {
            let (mut socket, response) = client_async(format!("ws://{GOOD}/chat"), setup.dial().await).await.unwrap();
            assert_eq!(response.status(), 101);
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("welcome"));
            for text in ["one".to_owned(), "x".repeat(200_000)] {
                socket.send(Message::text(text.clone())).await.unwrap();
                assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
            }
            setup.gate.revoke();
            assert!(!matches!(socket.next().await, Some(Ok(_))), "it lives on");
        };
        soon(async { tokio::join!(serving, asking) }).await;
        assert!(setup.gate.refusals().is_empty());
        assert!(setup.gate.carried().0 > 200_000);
    }
}

#[tokio::test]
async fn a_server_that_does_not_want_it_says_so_itself() {
    let setup = Setup::transparent(Application::Http).await;
    let mut client = setup.dial().await;
    send(
        &mut client,
        format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"),
    )
    .await;
    let mut server = setup.accept().await;
    let asked = head(&mut server).await.to_ascii_lowercase();
    assert!(asked.contains("upgrade: websocket") && asked.contains("connection: upgrade"), "{asked}");
    send(&mut server, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn only_a_get_without_a_body_asks_for_it() {
    for (method, length) in [("GET", "Content-Length: 4\r\n"), ("POST", "")] {
        let setup = Setup::transparent(Application::Http).await;
        let mut client = setup.dial().await;
        let upgrade = format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{length}");
        send(&mut client, format!("{method} / HTTP/1.1\r\nHost: {GOOD}\r\n{upgrade}\r\n")).await;
        let mut server = setup.accept().await;
        let asked = head(&mut server).await.to_ascii_lowercase();
        assert!(!asked.contains("upgrade"), "{asked}");
    }
}

#[tokio::test]
async fn a_server_cannot_switch_unasked() {
    for switch in ["h2c", "websocket"] {
        let setup = Setup::transparent(Application::Http).await;
        let mut client = setup.dial().await;
        send(&mut client, format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n")).await;
        let mut server = setup.accept().await;
        head(&mut server).await;
        send(
            &mut server,
            format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {switch}\r\n\r\nx"),
        )
        .await;
        let (answer, _) = drain(&mut client).await;
        assert!(answer.starts_with(b"HTTP/1.1 502"), "{}", String::from_utf8_lossy(&answer));
    }
}
