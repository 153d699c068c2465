//! Peers that lie.
//!
//! This process dials the hub's socket itself, as the first process of a machine would, and answers whatever it likes.
//! Whatever that is, the caller gets an error in time, and the hub lives on.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use h2::server::SendResponse;
use http::{Request, Response};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use warren_guest::frame::{Kind, encode};
use warren_guest::protocol::operation;
use warren_model::access::{ExecOutput, MachineAccess, WriteOptions};
use warren_model::{Code, MachineId};
use warren_runtime::agent::AgentHub;

use crate::lab::{SOON, bytes_of, command, eventually};

/// A hub that takes this process for the first one of a machine.
struct Liar {
    hub: AgentHub,
    machine: MachineId,
    _directory: tempfile::TempDir,
}

impl Liar {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let hub = AgentHub::new(directory.path().to_owned()).unwrap();
        let machine = MachineId::from_ulid(ulid::Ulid::generate());
        hub.open(machine, nix::unistd::getuid().as_raw()).await.unwrap();
        hub.accept_from(machine, std::process::id() as i32);
        Self { hub, machine, _directory: directory }
    }

    async fn dial(&self) -> UnixStream {
        let socket = self.hub.directory().join(self.machine.bare()).join("agent.sock");
        loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => return stream,
                // The backlog is full, as the agent would find it.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Says hello as an agent does, and leaves every other request to `answer`.
    async fn meet<F, A>(&self, answer: F)
    where
        F: Fn(Request<h2::RecvStream>, SendResponse<Bytes>) -> A + Send + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let stream = self.dial().await;
        tokio::spawn(async move {
            let mut connection = h2::server::Builder::new().handshake::<_, Bytes>(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                if request.uri().path() == operation::HELLO {
                    let hello = serde_json::json!({ "protocol": 1, "version": "liar\u{1b}[31m" }).to_string();
                    let mut body = respond.send_response(Response::new(()), false).unwrap();
                    body.send_data(hello.into(), true).unwrap();
                } else {
                    tokio::spawn(answer(request, respond));
                }
            }
        });
        self.hub.connected(self.machine, SOON).await.unwrap();
    }

    /// The answer to every plain operation, as an error's code.
    async fn everything_fails(&self) -> Vec<Code> {
        let (hub, machine) = (&self.hub, self.machine);
        let mut codes = Vec::new();
        codes.push(soon(hub.stat(machine, "/x")).await.map(drop).unwrap_err().code);
        codes.push(soon(hub.list_directory(machine, "/x")).await.map(drop).unwrap_err().code);
        codes.push(soon(hub.listening_ports(machine)).await.map(drop).unwrap_err().code);
        codes.push(soon(hub.read_file(machine, "/x")).await.map(drop).unwrap_err().code);
        let options = WriteOptions::default();
        codes.push(soon(hub.write_file(machine, "/x", options, bytes_of(b"x"))).await.map(drop).unwrap_err().code);
        codes
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("an answer in time")
}

async fn answer_with(mut respond: SendResponse<Bytes>, status: u16, body: impl Into<Bytes>) {
    let response = Response::builder().status(status).body(()).unwrap();
    if let Ok(mut stream) = respond.send_response(response, false) {
        let _ = stream.send_data(body.into(), true);
        // Until the other end has taken it or given up.
        let _ = timeout(SOON, std::future::poll_fn(|cx| stream.poll_reset(cx))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_every_place_costs_the_connection_and_nothing_else() {
    let bodies: &[(u16, &str)] = &[
        (200, ""),
        (200, "null"),
        (200, "{"),
        (200, "[1,2,3]"),
        (200, r#"{"kind":"file","size":-1,"mode":0,"uid":0,"gid":0,"modified":0}"#),
        (
            200,
            r#"{"entries":[{"name":"../../etc","attributes":{"kind":"file","size":1,"mode":0,"uid":0,"gid":0,"modified":0}}]}"#,
        ),
        (200, r#"{"ports":[{"protocol":"http","address":"1.2.3.4","port":0}]}"#),
        (422, "no refusal"),
        (422, r#"{"code":"unauthorized","detail":"give me your key"}"#),
        (422, r#"{"code":"no_such_code","detail":""}"#),
        (500, "{}"),
        (302, "{}"),
    ];
    for &(status, body) in bodies {
        let liar = Liar::new().await;
        liar.meet(move |_, respond| answer_with(respond, status, body)).await;
        let error = soon(liar.hub.list_directory(liar.machine, "/x")).await.unwrap_err();
        assert_eq!(error.code, Code::AgentUnavailable, "{status} {body}: {error}");
        eventually("the connection is dropped", async || !liar.hub.is_connected(liar.machine)).await;
        // And the next one is as good as ever.
        liar.meet(|_, respond| answer_with(respond, 422, r#"{"code":"path_not_found","detail":"none\u0007"}"#)).await;
        let error = soon(liar.hub.stat(liar.machine, "/x")).await.unwrap_err();
        assert_eq!((error.code, error.detail.as_str()), (Code::PathNotFound, "none?"));
        assert_eq!(liar.hub.version(liar.machine).as_deref(), Some("liar31m"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_is_cut_off() {
    static SENT: AtomicU64 = AtomicU64::new(0);
    let liar = Liar::new().await;
    liar.meet(|_, mut respond| async move {
        let Ok(mut stream) = respond.send_response(Response::new(()), false) else { return };
        let piece = Bytes::from(vec![b'['; 64 << 10]);
        while warren_guest::stream::send(&mut stream, piece.clone(), false).await.is_ok() {
            SENT.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    })
    .await;
    let error = soon(liar.hub.list_directory(liar.machine, "/x")).await.unwrap_err();
    assert_eq!(error.code, Code::AgentUnavailable);
    assert!(SENT.load(Ordering::Relaxed) < 64 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_goes_away_fails_every_kind_of_call() {
    let liar = Liar::new().await;
    liar.meet(|_, respond| async move { drop(respond) }).await;
    let redialing = async {
        loop {
            if !liar.hub.is_connected(liar.machine) {
                liar.meet(|_, respond| async move { drop(respond) }).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let codes = tokio::select! {
        codes = liar.everything_fails() => codes,
        () = redialing => unreachable!("it never ends"),
    };
    assert!(codes.iter().all(|code| *code == Code::AgentUnavailable), "{codes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_ends_wrongly_ends_without_an_exit() {
    let exit = |json: &str| encode(Kind::Exit, json.as_bytes());
    let streams = [
        Bytes::from_static(b"\xff\xff\xff\xff\xff"),
        Bytes::from_static(b"\x01\xff\xff\xff\xff"),
        Bytes::from_static(b"\x03\x00"),
        Bytes::new(),
        exit("{}"),
        exit(r#"{"status":100000}"#),
        exit(r#"{"status":0,"signal":-9}"#),
        exit("x"),
        encode(Kind::Head, b"{}"),
        encode(Kind::End, b""),
    ];
    for stream in streams {
        let liar = Liar::new().await;
        let sent = stream.clone();
        liar.meet(move |_, respond| answer_with(respond, 200, sent.clone())).await;
        let mut session = soon(liar.hub.exec(liar.machine, command(&["x"]))).await.unwrap();
        while let Some(item) = soon(session.output.recv()).await {
            assert!(!matches!(item, ExecOutput::Exit(_)), "{stream:?}");
        }
        eventually("the connection is dropped", async || !liar.hub.is_connected(liar.machine)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn file_content_that_breaks_off_is_an_error_and_not_an_end() {
    let head = encode(Kind::Head, br#"{"kind":"file","size":3,"mode":420,"uid":0,"gid":0,"modified":0}"#);
    for rest in [Bytes::new(), encode(Kind::Errors, b"x"), Bytes::from_static(b"\x01\x00\x00\x00\x09abc")] {
        let liar = Liar::new().await;
        let sent = Bytes::from([&head[..], &encode(Kind::Data, b"abc"), &rest].concat());
        liar.meet(move |_, respond| answer_with(respond, 200, sent.clone())).await;
        let (_, mut content) = soon(liar.hub.read_file(liar.machine, "/x")).await.unwrap();
        let mut last = None;
        while let Some(item) = soon(content.next()).await {
            last = Some(item);
        }
        assert!(last.unwrap().is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_falls_silent_loses_its_connection_and_its_callers_are_told() {
    let liar = Liar::new().await;
    let stream = liar.dial().await;
    let silent = tokio::spawn(async move {
        let mut connection = h2::server::Builder::new().handshake::<_, Bytes>(stream).await.unwrap();
        let mut commands = Vec::new();
        // Once the command is answered, a moment for the answer to leave.
        let patience = |commands: &Vec<_>| if commands.is_empty() { SOON } else { Duration::from_secs(1) };
        while let Ok(Some(Ok((request, mut respond)))) = timeout(patience(&commands), connection.accept()).await {
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            if request.uri().path() == operation::HELLO {
                body.send_data(r#"{"protocol":1,"version":"1"}"#.into(), true).unwrap();
            } else {
                commands.push((request, body));
            }
        }
        // Not even a ping is answered any more, and nothing is closed.
        tokio::time::sleep(10 * SOON).await;
        drop((connection, commands));
    });
    liar.hub.connected(liar.machine, SOON).await.unwrap();
    let mut session = soon(liar.hub.exec(liar.machine, command(&["x"]))).await.unwrap();
    let begun = Instant::now();
    let item = timeout(3 * SOON, session.output.recv()).await.expect("the caller is told");
    assert!(item.is_none(), "{item:?}");
    assert!(begun.elapsed() > Duration::from_secs(5), "it was given time");
    eventually("the connection is dropped", async || !liar.hub.is_connected(liar.machine)).await;
    let error = soon(liar.hub.stat(liar.machine, "/x")).await.unwrap_err();
    assert_eq!(error.code, Code::AgentUnavailable);
    silent.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_does_not_read_bounds_what_a_peer_can_send() {
    static SENT: AtomicU64 = AtomicU64::new(0);
    let liar = Liar::new().await;
    liar.meet(|_, mut respond| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        let piece = encode(Kind::Data, &vec![0; 64 << 10]);
        while warren_guest::stream::send(&mut stream, piece.clone(), false).await.is_ok() {
            SENT.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    })
    .await;
    let session = soon(liar.hub.exec(liar.machine, command(&["x"]))).await.unwrap();
    eventually("it is sent", async || SENT.load(Ordering::Relaxed) >= 100_000).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sent = SENT.load(Ordering::Relaxed);
    assert!(sent < 4 << 20, "{sent} bytes went on their way");
    drop(session);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings_costs_the_connection() {
    let liar = Liar::new().await;
    let mut stream = liar.dial().await;
    let mut flood = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    for _ in 0..10_000 {
        flood.extend_from_slice(&[0, 0, 8, 6, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
    let begun = Instant::now();
    while stream.write_all(&flood[9 * usize::from(begun.elapsed() > Duration::ZERO)..]).await.is_ok() {
        assert!(begun.elapsed() < SOON, "it is put up with");
    }
    assert!(!liar.hub.is_connected(liar.machine));
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_never_stop_the_hub() {
    let liar = Liar::new().await;
    let mut runner = TestRunner::deterministic();
    let frame = (any::<u8>(), any::<u8>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..80)).prop_map(
        |(kind, flags, id, payload)| {
            let mut bytes = vec![0, 0, payload.len() as u8, kind % 12, flags];
            bytes.extend_from_slice(&(id % 6).to_be_bytes());
            bytes.extend_from_slice(&payload);
            bytes
        },
    );
    let noise = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..400),
        prop::collection::vec(frame, 0..40).prop_map(|frames| {
            let mut bytes = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
            bytes.extend(frames.concat());
            bytes
        }),
    ];
    let until = Instant::now() + Duration::from_secs(5);
    let mut rounds = 0;
    while Instant::now() < until || rounds <= 20 {
        let bytes = noise.new_tree(&mut runner).unwrap().current();
        let mut stream = liar.dial().await;
        let _ = stream.write_all(&bytes).await;
        drop(stream);
        rounds += 1;
    }
    println!("{rounds} rounds of noise");
    // Whoever behaves is met as ever.
    liar.meet(|_, respond| answer_with(respond, 422, r#"{"code":"path_not_found","detail":"none"}"#)).await;
    eventually("an honest answer", async || {
        liar.hub.stat(liar.machine, "/x").await.is_err_and(|error| error.code == Code::PathNotFound)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_answers_never_stop_the_hub() {
    let mut runner = TestRunner::deterministic();
    let answers = (prop_oneof![Just(200u16), Just(422), 100u16..999], prop::collection::vec(any::<u8>(), 0..200));
    let frames = prop::collection::vec((0u8..9, prop::collection::vec(any::<u8>(), 0..50)), 0..6).prop_map(|frames| {
        let mut bytes = Vec::new();
        for (kind, payload) in frames {
            bytes.push(kind);
            bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
            bytes.extend_from_slice(&payload);
        }
        bytes
    });
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let (status, noise) = answers.new_tree(&mut runner).unwrap().current();
        let framed = frames.new_tree(&mut runner).unwrap().current();
        let liar = Liar::new().await;
        let bodies = [Bytes::from(noise), Bytes::from(framed)];
        let status = if (200..=599).contains(&status) { status } else { 200 };
        liar.meet(move |request, respond| {
            let framed = matches!(request.uri().path(), operation::EXEC | operation::READ);
            answer_with(respond, status, bodies[usize::from(framed)].clone())
        })
        .await;
        if let Ok(mut session) = soon(liar.hub.exec(liar.machine, command(&["x"]))).await {
            while soon(session.output.recv()).await.is_some() {}
        }
        if liar.hub.is_connected(liar.machine) {
            assert!(soon(liar.hub.stat(liar.machine, "/x")).await.is_err());
        }
    }
}
