//! Certificates, names and sessions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, HandshakeKind};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use warren_ingress::Limits;

use crate::lab::{Lab, Machine, eventually, get, site, text};

#[tokio::test]
async fn a_name_without_a_certificate_is_refused_with_an_alert() {
    let machine = Machine::named("a").await;
    let lab = Lab::one(&machine).await;
    for name in ["c.example", "x.y.wild.example", "wild.example"] {
        let error = lab.tls(name, &["h2"]).await.unwrap_err();
        let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()).unwrap();
        assert_eq!(*error, rustls::Error::AlertReceived(AlertDescription::UnrecognisedName), "{name}");
    }
    // So is who names nobody.
    let error = lab.tls("127.0.0.1", &[]).await.unwrap_err();
    assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    eventually("they were counted", || lab.ingress.totals().handshakes_failed == 4).await;
}

#[tokio::test]
async fn a_wildcard_serves_names_below_and_others_under_it_are_unknown() {
    let machine = Machine::named("a").await;
    let lab = Lab::start(vec![site("x.wild.example", machine.address)]).await;
    assert_eq!(lab.get("x.wild.example", "/").await.body, "a");
    let answer = lab.get("y.wild.example", "/").await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "host_unknown"));
}

#[tokio::test]
async fn a_request_for_another_name_than_the_connection_is_misdirected() {
    let (a, b) = (Machine::named("a").await, Machine::named("b").await);
    let lab = Lab::start(vec![site("a.example", a.address), site("b.example", b.address)]).await;
    for head in
        ["GET / HTTP/1.1\r\nHost: b.example\r\n\r\n", "GET https://b.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n"]
    {
        let mut raw = lab.raw("a.example").await;
        raw.send(head).await;
        let answer = raw.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (421, "misdirected_request"));
        // The connection is good for its own name.
        raw.send("GET / HTTP/1.1\r\nHost: A.example:443\r\n\r\n").await;
        assert_eq!(raw.answer().await.body, "a");
    }
    let mut two = lab.http2("a.example").await;
    for (uri, status) in [("https://b.example/", 421), ("https://a.example/", 200), ("https://c.example/", 421)] {
        let response = two.send_request(get(uri)).await.unwrap();
        assert_eq!(response.status(), status, "{uri}");
    }
    assert!(b.got().is_empty());
    assert_eq!(lab.ingress.totals().refused["misdirected_request"], 4);
}

#[tokio::test]
async fn a_session_is_resumed_even_after_another_snapshot() {
    let machine = Machine::named("a").await;
    let mut lab = Lab::one(&machine).await;
    let connector = TlsConnector::from(Arc::new(lab.config(&["http/1.1"])));
    let mut kinds = Vec::new();
    for round in 0..3 {
        if round == 2 {
            lab.change(|snapshot| snapshot.https_port = Some(443));
        }
        let stream = TcpStream::connect(lab.https).await.unwrap();
        let mut stream = connector.connect(ServerName::try_from("a.example").unwrap(), stream).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
        let mut have = Vec::new();
        while !have.ends_with(b"\r\n\r\na") {
            assert!(stream.read_buf(&mut have).await.unwrap() > 0);
        }
        kinds.push(stream.get_ref().1.handshake_kind().unwrap());
    }
    assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed]);
}

#[tokio::test]
async fn a_client_without_alpn_is_served() {
    let lab = Lab::one(&Machine::named("a").await).await;
    let stream = lab.tls("a.example", &[]).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut request = get("/");
    request.headers_mut().insert("host", "a.example".parse().unwrap());
    assert_eq!(text(sender.send_request(request).await.unwrap()).await, "a");
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_ended() {
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let lab = Lab::with(vec![], limits).await;
    let began = Instant::now();
    let mut stream = TcpStream::connect(lab.https).await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    // By default it has 10 s.
    assert!((Duration::from_millis(290)..Duration::from_secs(9)).contains(&began.elapsed()), "{:?}", began.elapsed());
    eventually("it is counted", || lab.ingress.totals().handshakes_failed == 1).await;
}
