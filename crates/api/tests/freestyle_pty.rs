//! Terminals in the dialect of npm `freestyle@0.1.63`: they go on while nobody is attached.

mod common;

use std::net::SocketAddr;

use common::{Lab, lab, with_header};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

type Socket = WebSocketStream<TcpStream>;

async fn connect(address: SocketAddr, path: &str, headers: &[(&'static str, &str)]) -> Result<Socket, u16> {
    let mut request = format!("ws://{address}/compat/freestyle{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

struct World {
    lab: Lab,
    address: SocketAddr,
    bearer: String,
}

async fn world() -> World {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/machines", json!({ "name": "m" })).await.expect(201);
    let (address, bearer) = (lab.listen().await, format!("Bearer {}", lab.root));
    World { lab, address, bearer }
}

impl World {
    async fn socket(&self, path: &str) -> Result<Socket, u16> {
        connect(self.address, path, &[("authorization", &self.bearer)]).await
    }

    async fn sessions(&self) -> Value {
        let path = "/compat/freestyle/v1/vms/m/pty/sessions";
        self.lab.get(&self.lab.root, path).await.expect(200).body["sessions"].clone()
    }

    async fn close(&self, id: &str) -> common::Answered {
        self.lab.delete(&self.lab.root, &format!("/compat/freestyle/v1/vms/m/pty/sessions/{id}")).await
    }
}

/// The next frame that is no ping; `None` at the end.
async fn next(socket: &mut Socket) -> Option<Message> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Ping(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            Some(Ok(message)) => return Some(message),
        }
    }
}

async fn next_json(socket: &mut Socket) -> Value {
    serde_json::from_str(next(socket).await.unwrap().to_text().unwrap()).unwrap()
}

#[tokio::test]
async fn a_terminal_is_typed_into_left_and_found_again() {
    let world = world().await;
    let mut socket = world.socket("/v1/vms/m/pty?cols=100&rows=30&exec=cat&sessionId=mine").await.unwrap();
    assert_eq!(next_json(&mut socket).await, json!({ "type": "sessionInfo", "sessionId": "mine" }));
    socket.send(Message::binary(b"hello".to_vec())).await.unwrap();
    assert_eq!(next(&mut socket).await.unwrap(), Message::binary(b"hello".to_vec()));
    let listed = world.sessions().await;
    assert_eq!(
        (&listed[0]["attachedCount"], &listed[0]["cols"], &listed[0]["user"]),
        (&json!(1), &json!(100), &json!("root"))
    );
    socket.close(None).await.unwrap();
    while world.sessions().await[0]["attachedCount"] != 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(world.sessions().await[0]["running"], true);
    assert_eq!(world.socket("/v1/vms/m/pty?exec=cat&sessionId=mine").await.err(), Some(409));

    let mut socket = world.socket("/v1/vms/m/pty/sessions/mine?cols=80&rows=24").await.unwrap();
    assert_eq!(next_json(&mut socket).await["type"], "sessionInfo");
    assert_eq!(next(&mut socket).await.unwrap(), Message::binary(b"hello".to_vec()));
    // A frame that means nothing changes nothing.
    socket.send(Message::text("{\"type\":\"nonsense\"}")).await.unwrap();
    socket.send(Message::text(json!({ "type": "signal", "signal": "SIGINT" }).to_string())).await.unwrap();
    assert_eq!(next(&mut socket).await.unwrap(), Message::binary(b"\x03".to_vec()));
    socket.send(Message::text(json!({ "type": "signal", "signal": "SIGKILL" }).to_string())).await.unwrap();
    assert_eq!(next_json(&mut socket).await, json!({ "type": "exited", "exitCode": 143 }));
    assert!(next(&mut socket).await.is_none());
    assert_eq!(world.sessions().await[0]["exitCode"], 143);
    assert_eq!(world.socket("/v1/vms/m/pty/sessions/mine").await.err(), Some(410));
    // Its name is free again.
    world.socket("/v1/vms/m/pty?exec=cat&sessionId=mine").await.unwrap();
}

#[tokio::test]
async fn a_session_that_is_closed_is_gone_with_whoever_is_attached() {
    let world = world().await;
    let mut socket = world.socket("/v1/vms/m/pty?exec=cat").await.unwrap();
    let id = next_json(&mut socket).await["sessionId"].as_str().unwrap().to_owned();
    assert!(id.starts_with("pty-"), "{id}");
    assert_eq!(world.close(&id).await.expect(200).body, json!({ "sessionId": id, "exitCode": null }));
    assert!(next(&mut socket).await.is_none());
    assert_eq!(world.sessions().await, json!([]));
    world.close(&id).await.said("SESSION_NOT_FOUND");
    assert_eq!(world.socket(&format!("/v1/vms/m/pty/sessions/{id}")).await.err(), Some(404));
}

#[tokio::test]
async fn sessions_are_bounded_and_their_names_are_checked() {
    let world = world().await;
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(world.socket("/v1/vms/m/pty?exec=hang").await.unwrap());
    }
    assert_eq!(world.socket("/v1/vms/m/pty?exec=hang").await.err(), Some(429));
    for bad in ["a%20b", &"x".repeat(65)] {
        assert_eq!(world.socket(&format!("/v1/vms/m/pty?sessionId={bad}")).await.err(), Some(400));
    }
    assert_eq!(world.socket("/v1/vms/none/pty").await.err(), Some(404));
    assert_eq!(connect(world.address, "/v1/vms/m/pty", &[]).await.err(), Some(401));
    let ended = world.sessions().await[3]["sessionId"].as_str().unwrap().to_owned();
    world.close(&ended).await.expect(200);
    world.socket("/v1/vms/m/pty?exec=hang").await.unwrap();
}

#[tokio::test]
async fn a_session_belongs_to_a_user_and_a_revoked_token_is_cut_off() {
    let world = world().await;
    let lab = &world.lab;
    let identity = lab.post(&lab.root, "/v1/identities", json!({})).await.expect(201).at("/id");
    let grant = format!("/v1/identities/{identity}/machines/m");
    lab.put(&lab.root, &grant, json!({ "verbs": ["shell"], "users": ["bob"] })).await.expect(200);
    let token = lab.post(&lab.root, &format!("/v1/identities/{identity}/tokens"), json!({})).await.expect(201);
    let token_header = ("x-freestyle-identity-access-token", token.at("/token"));
    let token_header = (token_header.0, token_header.1.as_str());

    let _root = world.socket("/v1/vms/m/pty?exec=cat&sessionId=root").await.unwrap();
    let mut bob = connect(world.address, "/v1/vms/m/pty?exec=cat&sessionId=bob", &[token_header]).await.unwrap();
    assert_eq!(next_json(&mut bob).await["sessionId"], "bob");
    let as_token = |method: &str, path: &str| {
        let request = common::request(method, &format!("/compat/freestyle/v1/vms/m/pty{path}"), "", None);
        with_header(request, token_header.0, token_header.1)
    };
    let listed = lab.call(as_token("GET", "/sessions")).await.expect(200);
    assert_eq!((listed.body["sessions"].as_array().unwrap().len(), listed.at("/sessions/0/user")), (1, "bob".into()));
    assert_eq!(connect(world.address, "/v1/vms/m/pty/sessions/root", &[token_header]).await.err(), Some(403));
    lab.call(as_token("DELETE", "/sessions/root")).await.said("VM_ACCESS_DENIED");
    let as_alice = [("authorization", world.bearer.as_str()), ("x-freestyle-vm-linux-user-id", "alice")];
    assert_eq!(connect(world.address, "/v1/vms/m/pty/sessions/bob", &as_alice).await.err(), Some(403));

    lab.delete(&lab.root, &format!("/v1/tokens/{}", token.at("/id"))).await.expect(204);
    let cut = tokio::time::timeout(std::time::Duration::from_secs(5), next(&mut bob)).await;
    assert!(cut.expect("the socket is closed").is_none());
    // Its command ends too, and no other.
    let ended = async {
        while world.sessions().await[1]["running"] == true {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(5), ended).await.expect("the command has ended");
    assert_eq!(world.sessions().await[0]["running"], true);
}
