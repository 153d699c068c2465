//! Terminals in the dialect of npm `freestyle@0.1.63`: they go on while nobody is attached.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

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

const TOKEN: &str = "x-freestyle-identity-access-token";
const USER: &str = "x-freestyle-vm-linux-user-id";
const SOON: Duration = Duration::from_secs(30);

struct Token {
    secret: String,
    id: String,
    grant: String,
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

    /// Until the listed sessions are as they should be.
    async fn until(&self, holds: impl Fn(&Value) -> bool) {
        let waited = async {
            while !holds(&self.sessions().await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(SOON, waited).await.is_err() {
            panic!("waited in vain: {}", self.sessions().await);
        }
    }

    /// The token of a new identity, which may use terminals as these users; its id, and where its grant is.
    async fn token(&self, users: &[&str]) -> Token {
        let lab = &self.lab;
        let identity = lab.post(&lab.root, "/v1/identities", json!({})).await.expect(201).at("/id");
        let grant = format!("/v1/identities/{identity}/machines/m");
        if !users.is_empty() {
            lab.put(&lab.root, &grant, json!({ "verbs": ["shell"], "users": users })).await.expect(200);
        }
        let made = lab.post(&lab.root, &format!("/v1/identities/{identity}/tokens"), json!({})).await.expect(201);
        Token { secret: made.at("/token"), id: made.at("/id"), grant }
    }

    async fn socket_of(&self, secret: &str, path: &str) -> Result<Socket, u16> {
        connect(self.address, path, &[(TOKEN, secret)]).await
    }

    async fn ask(&self, secret: &str, method: &str, path: &str) -> common::Answered {
        let path = format!("/compat/freestyle/v1/vms/m/pty/sessions{path}");
        self.lab.call(with_header(common::request(method, &path, "", None), TOKEN, secret)).await
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
    world.until(|listed| listed[0]["attachedCount"] == 0).await;
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
async fn a_name_is_one_of_a_user_and_others_are_not_typed_into() {
    let world = world().await;
    let bob = world.token(&["bob"]).await;
    let mut bobs = world.socket_of(&bob.secret, "/v1/vms/m/pty?exec=cat&sessionId=work").await.unwrap();
    assert_eq!(next_json(&mut bobs).await["sessionId"], "work");

    // The owner who names nobody is root, which has none of this name; who may see whose it is is told.
    assert_eq!(world.socket("/v1/vms/m/pty/sessions/work").await.err(), Some(403));
    world.close("work").await.said("SESSION_USER_MISMATCH");
    let mut roots = world.socket("/v1/vms/m/pty?exec=cat&sessionId=work").await.unwrap();
    assert_eq!(next_json(&mut roots).await["sessionId"], "work");
    roots.send(Message::binary(b"secret".to_vec())).await.unwrap();
    assert_eq!(next(&mut roots).await.unwrap(), Message::binary(b"secret".to_vec()));
    bobs.send(Message::binary(b"own".to_vec())).await.unwrap();
    assert_eq!(next(&mut bobs).await.unwrap(), Message::binary(b"own".to_vec()));

    let listed = world.ask(&bob.secret, "GET", "").await.expect(200);
    assert_eq!((listed.body["sessions"].as_array().unwrap().len(), listed.at("/sessions/0/user")), (1, "bob".into()));
    let mut again = world.socket_of(&bob.secret, "/v1/vms/m/pty/sessions/work").await.unwrap();
    assert_eq!(next_json(&mut again).await["type"], "sessionInfo");
    assert_eq!(next(&mut again).await.unwrap(), Message::binary(b"own".to_vec()));
    let as_bob = [("authorization", world.bearer.as_str()), (USER, "bob")];
    let mut owner = connect(world.address, "/v1/vms/m/pty/sessions/work", &as_bob).await.unwrap();
    assert_eq!(next_json(&mut owner).await["type"], "sessionInfo");
    assert_eq!(next(&mut owner).await.unwrap(), Message::binary(b"own".to_vec()));

    world.ask(&bob.secret, "DELETE", "/work").await.expect(200);
    assert_eq!(world.sessions().await.as_array().unwrap().len(), 1);
    assert_eq!(world.sessions().await[0]["user"], "root");
}

#[tokio::test]
async fn a_session_that_the_list_hides_is_not_there() {
    let world = world().await;
    let account = world.lab.account("other").await;
    let lab = &world.lab;
    let identity = lab.post(&account, "/v1/identities", json!({})).await.expect(201).at("/id");
    let foreign = lab.post(&account, &format!("/v1/identities/{identity}/tokens"), json!({})).await.expect(201);
    let (bob, ungranted) = (world.token(&["bob"]).await, world.token(&[]).await);
    let mut socket = world.socket("/v1/vms/m/pty?exec=cat&sessionId=mine").await.unwrap();
    assert_eq!(next_json(&mut socket).await["sessionId"], "mine");
    for (secret, said) in [
        (&foreign.at("/token"), "VM_NOT_FOUND"),
        (&ungranted.secret, "VM_NOT_FOUND"),
        (&bob.secret, "SESSION_NOT_FOUND"),
    ] {
        for user in [None, Some("root")] {
            let mut headers = vec![(TOKEN, secret.as_str())];
            headers.extend(user.map(|user| (USER, user)));
            let attached = connect(world.address, "/v1/vms/m/pty/sessions/mine", &headers).await;
            assert_eq!(attached.err(), Some(404), "{said} as {user:?}");
            let path = "/compat/freestyle/v1/vms/m/pty/sessions/mine";
            let request = headers.iter().fold(common::request("DELETE", path, "", None), |request, (name, value)| {
                with_header(request, name, value)
            });
            let refused = lab.call(request).await.said(said);
            // The same as of a session that nobody has.
            let none = world.ask(secret, "DELETE", "/none").await.said(said);
            assert_eq!(refused.body["message"], none.body["message"]);
        }
    }
    socket.send(Message::binary(b"unharmed".to_vec())).await.unwrap();
    assert_eq!(next(&mut socket).await.unwrap(), Message::binary(b"unharmed".to_vec()));
    assert_eq!(world.sessions().await[0]["attachedCount"], 1);
}

#[tokio::test]
async fn one_identity_does_not_fill_a_machine() {
    let world = world().await;
    let bob = world.token(&["bob"]).await;
    for _ in 0..4 {
        world.socket_of(&bob.secret, "/v1/vms/m/pty?exec=hang").await.unwrap();
    }
    assert_eq!(world.socket_of(&bob.secret, "/v1/vms/m/pty?exec=hang").await.err(), Some(429));
    world.socket("/v1/vms/m/pty?exec=hang").await.unwrap();
    let other = world.token(&["bob"]).await;
    world.socket_of(&other.secret, "/v1/vms/m/pty?exec=hang").await.unwrap();
    let ended = world.ask(&bob.secret, "GET", "").await.at("/sessions/0/sessionId");
    world.ask(&bob.secret, "DELETE", &format!("/{ended}")).await.expect(200);
    world.socket_of(&bob.secret, "/v1/vms/m/pty?exec=hang").await.unwrap();
}

#[tokio::test]
async fn a_terminal_ends_with_the_token_or_the_grant_that_opened_it_and_no_other_does() {
    let world = world().await;
    let lab = &world.lab;
    let _root = world.socket("/v1/vms/m/pty?exec=cat&sessionId=root").await.unwrap();
    for (number, by_grant) in [(1, false), (2, true)] {
        let bob = world.token(&["bob"]).await;
        let path = format!("/v1/vms/m/pty?exec=cat&sessionId=bob-{number}");
        let mut socket = world.socket_of(&bob.secret, &path).await.unwrap();
        assert_eq!(next_json(&mut socket).await["type"], "sessionInfo");
        if by_grant {
            lab.delete(&lab.root, &bob.grant).await.expect(204);
        } else {
            lab.delete(&lab.root, &format!("/v1/tokens/{}", bob.id)).await.expect(204);
        }
        let cut = tokio::time::timeout(SOON, next(&mut socket)).await;
        assert!(cut.expect("the socket is closed").is_none());
        // Its command ends too.
        world.until(|listed| listed[number]["running"] == false).await;
    }
    assert_eq!(world.sessions().await[0]["running"], true);
}
