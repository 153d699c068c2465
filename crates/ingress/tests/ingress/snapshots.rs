//! Snapshots that replace each other.

use std::time::{Duration, Instant};

use futures::StreamExt;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;
use tokio_tungstenite::{accept_async, client_async};
use warren_ingress::{Auth, Limits, SecretHash, SiteCounters, Snapshot, SnapshotError};
use warren_model::NetworkNumber;

use crate::lab::{Lab, Machine, certificate, eventually, get, head, site};

/// Long for a cut, and less than unused connections are kept.
const CUT: Duration = Duration::from_secs(15);

/// Begins a response and goes on for ever; speaks WebSocket at `/socket`; says nothing at `/silent`.
async fn endless() -> Machine {
    Machine::raw(|mut stream| async move {
        let mut peeked = [0; 12];
        while stream.peek(&mut peeked).await.is_ok_and(|count| (1..12).contains(&count)) {}
        if peeked.starts_with(b"GET /socket") {
            let mut socket = accept_async(stream).await.unwrap();
            while let Some(Ok(_)) = socket.next().await {}
            return;
        }
        head(&mut stream).await;
        if !peeked.starts_with(b"GET /silent") {
            let begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhere\r\n";
            stream.write_all(begun).await.unwrap();
        }
        let _ = stream.read_buf(&mut Vec::new()).await;
    })
    .await
}

#[tokio::test]
async fn a_site_that_is_gone_is_cut_and_its_neighbour_is_not() {
    let (a, b) = (endless().await, endless().await);
    let mut lab = Lab::start(vec![site("a.example", a.address), site("b.example", b.address)]).await;
    let mut raw = lab.raw("a.example").await;
    raw.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    raw.until("here").await;
    let mut silent = lab.raw("a.example").await;
    silent.send("GET /silent HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let mut two = lab.http2("a.example").await;
    let mut response = two.send_request(get("https://a.example/")).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    let stream = lab.tls("a.example", &["http/1.1"]).await.unwrap();
    let (mut socket, _) = client_async("wss://a.example/socket", stream).await.unwrap();
    let mut neighbour = lab.raw("b.example").await;
    neighbour.send("GET / HTTP/1.1\r\nHost: b.example\r\n\r\n").await;
    neighbour.until("here").await;
    eventually("all are under way", || lab.counters("a.example").open_requests == 4).await;

    let began = Instant::now();
    lab.change(|snapshot| drop(snapshot.sites.remove(0)));
    let rest = raw.rest().await;
    assert!(!rest.contains("0\r\n\r\n"), "{rest}");
    assert!(response.body_mut().frame().await.unwrap().is_err());
    assert!(socket.next().await.is_none_or(|message| message.is_err()));
    let answer = silent.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "host_unknown"));
    assert!(began.elapsed() < CUT, "{:?}", began.elapsed());

    assert_eq!(two.send_request(get("https://a.example/")).await.unwrap().status(), 404);
    assert!(tokio::time::timeout(Duration::from_millis(300), neighbour.0.read_u8()).await.is_err(), "it was cut, too");
    assert_eq!(lab.counters("b.example").open_requests, 1);
    assert_eq!(lab.ingress.counters().len(), 1);
}

#[tokio::test]
async fn a_site_that_moved_or_locked_its_door_is_cut_and_keeps_its_counters() {
    let (old, new) = (endless().await, Machine::named("new").await);
    let mut lab = Lab::one(&old).await;
    let mut raw = lab.raw("a.example").await;
    raw.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    raw.until("here").await;
    // Other changes are none to it.
    lab.change(|snapshot| {
        snapshot.https_port = Some(443);
        snapshot.sites[0].limits.max_body_bytes = 1;
        snapshot.sites.push(site("b.example", new.address));
    });
    assert!(tokio::time::timeout(Duration::from_millis(300), raw.0.read_u8()).await.is_err(), "it was cut");
    lab.change(|snapshot| snapshot.sites[0].port = new.address.port());
    raw.rest().await;
    assert_eq!(lab.get("a.example", "/").await.body, "new");
    assert_eq!(lab.counters("a.example").requests, 2);

    lab.change(|snapshot| snapshot.sites[0].port = old.address.port());
    let mut raw = lab.raw("a.example").await;
    raw.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    raw.until("here").await;
    lab.change(|snapshot| snapshot.sites[0].auth = Some(Auth::Bearer { token: SecretHash::of(b"x") }));
    raw.rest().await;
    assert_eq!(lab.get("a.example", "/").await.status, 401);
}

/// Keeps its connections open, and tells when one is closed.
async fn lasting() -> (Machine, UnboundedReceiver<()>) {
    let (closed, seen) = unbounded_channel();
    let machine = Machine::raw(move |mut stream| {
        let closed = closed.clone();
        async move {
            head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            while stream.read_buf(&mut Vec::new()).await.is_ok_and(|count| count > 0) {}
            closed.send(()).unwrap();
        }
    })
    .await;
    (machine, seen)
}

#[tokio::test]
async fn unused_connections_to_a_machine_that_is_gone_are_closed() {
    let (machine, mut closed) = lasting().await;
    let mut lab = Lab::one(&machine).await;
    assert_eq!(lab.get("a.example", "/").await.body, "ok");
    assert!(timeout(Duration::from_millis(200), closed.recv()).await.is_err(), "it is kept");
    lab.change(|snapshot| snapshot.sites.clear());
    timeout(CUT, closed.recv()).await.expect("it is still open").unwrap();
}

#[tokio::test]
async fn unused_connections_are_closed_in_time_also_where_nobody_can_come_in() {
    let (machine, mut closed) = lasting().await;
    let limits = Limits { upstream_idle: Duration::from_millis(100), ..Limits::default() };
    let mut lab = Lab::with(vec![site("a.example", machine.address)], limits).await;
    assert_eq!(lab.get("a.example", "/").await.body, "ok");
    lab.stop_listening();
    timeout(CUT, closed.recv()).await.expect("it is still open").unwrap();
}

#[tokio::test]
async fn a_network_that_is_cut_is_connected_to_anew() {
    let machine = endless().await;
    let other = Machine::named("other").await;
    let mut sites = vec![site("a.example", machine.address), site("b.example", other.address)];
    sites[1].network = NetworkNumber::new(2).unwrap();
    let lab = Lab::start(sites).await;
    let mut b = lab.raw("b.example").await;
    b.send("GET / HTTP/1.1\r\nHost: b.example\r\n\r\n").await;
    b.answer().await;
    for _ in 0..2 {
        let mut raw = lab.raw("a.example").await;
        raw.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        raw.until("here").await;
        timeout(CUT, lab.ingress.cut(NetworkNumber::FIRST).ended()).await.expect("it goes on");
        raw.rest().await;
    }
    b.send("GET / HTTP/1.1\r\nHost: b.example\r\n\r\n").await;
    assert_eq!((b.answer().await.body, other.connections()), ("other".to_owned(), 1), "another network goes on");
}

#[tokio::test]
async fn a_snapshot_that_is_refused_changes_nothing() {
    let machine = Machine::named("a").await;
    let lab = Lab::one(&machine).await;
    let refused = |change: fn(&mut Snapshot)| {
        let mut snapshot = lab.snapshot.clone();
        snapshot.sites.push(site("b.example", "127.0.0.1:1".parse().unwrap()));
        change(&mut snapshot);
        lab.ingress.apply(&snapshot).unwrap_err()
    };
    let error = refused(|snapshot| snapshot.certificates.push(certificate(&["192.0.2.1"])));
    assert!(matches!(error, SnapshotError::Certificate { index: 1, .. }), "{error:?}");
    let error = refused(|snapshot| snapshot.certificates[0].key_pem = certificate(&["a.example"]).key_pem);
    assert!(matches!(error, SnapshotError::Certificate { index: 0, .. }), "{error:?}");
    assert!(matches!(refused(|snapshot| snapshot.sites[1].addresses.clear()), SnapshotError::NoAddress(_)));
    assert!(matches!(refused(|snapshot| snapshot.sites[1].port = 0), SnapshotError::NoPort(_)));
    assert!(matches!(refused(|snapshot| snapshot.https_port = Some(0)), SnapshotError::NoHttpsPort));
    let error = refused(|snapshot| snapshot.sites[1].host = snapshot.sites[0].host.clone());
    assert!(matches!(error, SnapshotError::DuplicateHost(_)), "{error:?}");
    let error = refused(|snapshot| snapshot.sites[1].id = snapshot.sites[0].id.clone());
    assert!(matches!(error, SnapshotError::DuplicateId(_)), "{error:?}");
    let error = refused(|snapshot| drop(snapshot.challenges.insert("a/b".into(), "x".into())));
    assert!(matches!(error, SnapshotError::Token(_)), "{error:?}");
    assert_eq!(lab.get("a.example", "/").await.body, "a");
    let hosts = |counters: Vec<SiteCounters>| counters.into_iter().map(|one| one.host.to_string()).collect::<Vec<_>>();
    assert_eq!(hosts(lab.ingress.counters()), ["a.example"]);
    let asked = ["b.example", "a.example"].map(|host| host.parse().unwrap());
    assert_eq!(hosts(lab.ingress.counters_of(&asked)), ["a.example"]);
}
