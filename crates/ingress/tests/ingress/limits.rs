//! What is refused, and that it stays with the one who caused it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use warren_ingress::{Auth, Limits, SecretHash};

use crate::lab::{Lab, Machine, PATIENCE, body, eventually, get, head, site, text, within_a_second};

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

#[tokio::test]
async fn a_site_with_too_many_requests_is_limited_and_its_neighbour_is_not() {
    let (a, b) = (Machine::named("a").await, Machine::named("b").await);
    within_a_second(async || {
        let mut lab = Lab::start(vec![site("a.example", a.address), site("b.example", b.address)]).await;
        lab.change(|snapshot| {
            snapshot.sites[0].limits.requests_per_second = number(1);
            snapshot.sites[0].limits.burst = number(3);
        });
        let mut raw = lab.raw("a.example").await;
        let began = Instant::now();
        let mut statuses = Vec::new();
        for round in 0..6 {
            // A new snapshot is no new start.
            if round == 5 {
                lab.change(|snapshot| snapshot.https_port = Some(443));
            }
            raw.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
            let answer = raw.answer().await;
            if answer.status == 429 {
                assert_eq!((answer.code().as_str(), answer.header("retry-after")), ("rate_limited", Some("1")));
            }
            statuses.push(answer.status);
        }
        if began.elapsed() >= Duration::from_secs(1) {
            return false;
        }
        assert_eq!(statuses, [200, 200, 200, 429, 429, 429]);
        for _ in 0..10 {
            assert_eq!(lab.get("b.example", "/").await.status, 200);
        }
        assert_eq!(lab.counters("a.example").refused["rate_limited"], 3);
        assert!(lab.counters("b.example").refused.is_empty());
        sleep(Duration::from_millis(1100)).await;
        raw.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 200);
        true
    })
    .await;
}

#[tokio::test]
async fn who_has_no_credentials_uses_up_nothing_of_those_who_have() {
    let machine = Machine::named("a").await;
    within_a_second(async || {
        let mut lab = Lab::one(&machine).await;
        lab.change(|snapshot| {
            snapshot.sites[0].auth = Some(Auth::Bearer { token: SecretHash::of(b"t0ken") });
            snapshot.sites[0].limits.requests_per_second = number(1);
            snapshot.sites[0].limits.burst = number(3);
        });
        let mut raw = lab.raw("a.example").await;
        let began = Instant::now();
        let mut ask = async |credentials: &str| {
            raw.send(&format!("GET / HTTP/1.1\r\nHost: a.example\r\n{credentials}\r\n")).await;
            raw.answer().await.status
        };
        let guess = "Authorization: Bearer guess\r\n";
        let (mut strangers, mut owner) = (Vec::new(), Vec::new());
        for credentials in ["", guess, "", guess, ""] {
            strangers.push(ask(credentials).await);
        }
        for _ in 0..4 {
            owner.push(ask("Authorization: Bearer t0ken\r\n").await);
        }
        if began.elapsed() >= Duration::from_secs(1) {
            return false;
        }
        assert_eq!(strangers, [401, 401, 401, 429, 429], "guesses are limited as well");
        assert_eq!(owner, [200, 200, 200, 429]);
        true
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let machine = Machine::named("a").await;
    let mut lab = Lab::one(&machine).await;
    lab.change(|snapshot| snapshot.sites[0].limits.max_body_bytes = 1000);
    let mut raw = lab.raw("a.example").await;
    raw.send("POST / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n").await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    assert_eq!(machine.connections(), 0, "it was not even begun");

    let mut raw = lab.raw("a.example").await;
    raw.send("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let chunk = format!("1f4\r\n{}\r\n", "x".repeat(500));
    raw.send(&chunk.repeat(3)).await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));

    let mut two = lab.http2("a.example").await;
    let post = |size: usize| Request::post("https://a.example/").body(body("x".repeat(size))).unwrap();
    assert_eq!(two.send_request(post(1001)).await.unwrap().status(), 413);
    assert_eq!(two.send_request(post(1000)).await.unwrap().status(), 200);
    assert_eq!(machine.got().len(), 1);
    assert_eq!(lab.counters("a.example").refused["body_too_large"], 3);
}

#[tokio::test]
async fn headers_that_are_too_large_or_too_many_are_refused() {
    let machine = Machine::named("a").await;
    let lab = Lab::one(&machine).await;
    let large = format!("X-Large: {}\r\n", "x".repeat(66_000));
    let many: String = (0..128).map(|index| format!("X-{index}: 1\r\n")).collect();
    for headers in [&large, &many] {
        let mut raw = lab.raw("a.example").await;
        raw.send(&format!("GET / HTTP/1.1\r\nHost: a.example\r\n{headers}\r\n")).await;
        assert_eq!(raw.answer().await.status, 431);
    }
    let fits: String = (0..127).map(|index| format!("X-{index}: {}\r\n", "x".repeat(400))).collect();
    let mut raw = lab.raw("a.example").await;
    raw.send(&format!("GET / HTTP/1.1\r\nHost: a.example\r\n{fits}\r\n")).await;
    assert_eq!(raw.answer().await.status, 200);

    let mut two = lab.http2("a.example").await;
    let mut request = get("https://a.example/");
    for index in 0..129 {
        request.headers_mut().insert(http::HeaderName::try_from(format!("x-{index}")).unwrap(), "1".parse().unwrap());
    }
    let response = two.send_request(request).await.unwrap();
    assert_eq!(response.status(), 431);
    assert!(text(response).await.contains("headers_too_large"));
    let mut request = get("https://a.example/");
    for index in 0..20 {
        let value = "x".repeat(4000).parse().unwrap();
        request.headers_mut().insert(http::HeaderName::try_from(format!("x-{index}")).unwrap(), value);
    }
    if let Ok(response) = two.send_request(request).await {
        assert_eq!(response.status(), 431);
    }
    assert_eq!(machine.got().len(), 1);
}

#[tokio::test]
async fn a_client_that_sends_its_headers_slowly_is_ended() {
    let limits = Limits { header: Duration::from_millis(500), ..Limits::default() };
    let machine = Machine::named("a").await;
    let lab = Lab::with(vec![site("a.example", machine.address)], limits).await;
    let began = Instant::now();
    let mut raw = lab.raw("a.example").await;
    for byte in "GET / HTTP/1.1\r\nHost: a.example\r\nX: ".chars().chain("y".repeat(1000).chars()) {
        if raw.0.write_all(&[byte as u8]).await.is_err() || raw.0.flush().await.is_err() {
            break;
        }
        if began.elapsed() > PATIENCE {
            panic!("it goes on");
        }
        sleep(Duration::from_millis(20)).await;
    }
    raw.rest().await;
    // Where every byte buys time, they take 20 s.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    // Who says nothing at all, neither in the one version nor in the other.
    let mut silent = lab.raw("a.example").await;
    silent.rest().await;
    let mut silent = lab.tls("a.example", &["h2"]).await.unwrap();
    timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await.expect("it goes on").ok();
    let mut silent = lab.raw_plain().await;
    silent.rest().await;
    assert!(machine.got().is_empty());
    eventually("they are gone", || lab.ingress.totals().open_connections == 0).await;
}

#[tokio::test]
async fn a_body_that_stops_coming_is_ended() {
    let limits = Limits { body: Duration::from_secs(2), ..Limits::default() };
    let machine = Machine::named("a").await;
    let lab = Lab::with(vec![site("a.example", machine.address)], limits).await;
    let mut raw = lab.raw("a.example").await;
    raw.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10\r\n\r\n").await;
    // Slow is not stopped.
    for _ in 0..5 {
        sleep(Duration::from_millis(500)).await;
        raw.send("x").await;
    }
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"));
    raw.rest().await;
    assert!(machine.got().is_empty());
}

#[tokio::test]
async fn a_body_that_trickles_is_ended() {
    let grace = Duration::from_secs(2);
    let limits = Limits { body_grace: grace, ..Limits::default() };
    let machine = Machine::named("a").await;
    let lab = Lab::with(vec![site("a.example", machine.address)], limits).await;
    let began = Instant::now();
    let mut raw = lab.raw_plain().await;
    raw.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000\r\n\r\n").await;
    let answer = {
        let (mut read, mut write) = raw.0.split();
        let trickle = async {
            while write.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(50)).await;
            }
            std::future::pending::<()>().await;
        };
        let mut have = [0; 4096];
        tokio::select! {
            count = timeout(PATIENCE, read.read(&mut have)) => {
                String::from_utf8_lossy(&have[..count.expect("it goes on").unwrap()]).into_owned()
            }
            () = trickle => unreachable!("it has no end"),
        }
    };
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("request_timeout"), "{answer}");
    assert!(began.elapsed() >= grace, "{:?}", began.elapsed());
    assert_eq!(lab.counters("a.example").refused["request_timeout"], 1);

    // As slowly in time, and with enough bytes each time.
    let mut raw = lab.raw_plain().await;
    raw.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 10000\r\n\r\n").await;
    for _ in 0..10 {
        sleep(Duration::from_millis(300)).await;
        raw.send(&"x".repeat(1000)).await;
    }
    assert_eq!(raw.answer().await.status, 200);
    eventually("nothing is left", || lab.counters("a.example").open_requests == 0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_ended() {
    let machine = Machine::raw(|mut stream| async move {
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while stream.write_all(&[0; 65536]).await.is_ok() {}
    })
    .await;
    let mut lab = Lab::one(&machine).await;
    lab.change(|snapshot| snapshot.sites[0].limits.idle_seconds = number(3));
    let mut raw = lab.raw("a.example").await;
    raw.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let mut two = lab.http2("a.example").await;
    let response = two.send_request(get("https://a.example/")).await.unwrap();
    eventually("both are under way", || lab.counters("a.example").open_requests == 2).await;
    eventually("both were ended", || lab.counters("a.example").open_requests == 0).await;
    drop((raw, response));
}

#[tokio::test]
async fn a_site_takes_so_many_requests_at_once() {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let machine = Machine::answering(move |_| {
        let held = held.clone();
        async move {
            let _ = held.acquire().await;
            http::Response::new(body("done"))
        }
    })
    .await;
    let other = Machine::named("b").await;
    let mut lab = Lab::start(vec![site("a.example", machine.address), site("b.example", other.address)]).await;
    lab.change(|snapshot| snapshot.sites[0].limits.concurrent = number(2));
    let two = lab.http2("a.example").await;
    let ask = || {
        let mut two = two.clone();
        tokio::spawn(async move { two.send_request(get("https://a.example/")).await.unwrap() })
    };
    let waiting = [ask(), ask()];
    eventually("two are under way", || machine.got().len() == 2).await;
    let refused = ask().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(text(refused).await.contains("server_busy"));
    assert_eq!(lab.get("b.example", "/").await.status, 200);
    gate.add_permits(100);
    for response in waiting {
        assert_eq!(text(response.await.unwrap()).await, "done");
    }
    assert_eq!(ask().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_source_that_holds_its_share_leaves_room_for_another() {
    let machine = Machine::named("a").await;
    let mut lab = Lab::one(&machine).await;
    lab.change(|snapshot| snapshot.sites[0].limits.concurrent = number(24));
    let mut slow = Vec::new();
    for _ in 0..24 {
        let mut raw = lab.raw_plain_from([127, 0, 0, 1]).await;
        raw.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000\r\n\r\nx").await;
        slow.push(raw);
    }
    eventually("all have come", || lab.counters("a.example").requests == 24).await;
    let get = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let mut other = lab.raw_plain_from([127, 0, 0, 2]).await;
    other.send(get).await;
    assert_eq!(other.answer().await.status, 200);
    let mut same = lab.raw_plain_from([127, 0, 0, 1]).await;
    same.send(get).await;
    let answer = same.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "server_busy"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    eventually("only the share is under way", || lab.counters("a.example").open_requests == 16).await;
    assert_eq!(lab.counters("a.example").refused["server_busy"], 9);
    drop(slow);
    eventually("they are gone", || lab.counters("a.example").open_requests == 0).await;
    same.send(get).await;
    assert_eq!(same.answer().await.status, 200);
}

#[tokio::test]
async fn a_machine_that_is_not_there_is_told_from_one_that_is_late() {
    let silent = Machine::raw(|mut stream| async move {
        let mut have = Vec::new();
        while stream.read_buf(&mut have).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    let garbage = Machine::raw(|mut stream| async move {
        head(&mut stream).await;
        stream.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
        let _ = stream.read_buf(&mut Vec::new()).await;
    })
    .await;
    // It has its port, so that nobody else gets it, and does not listen.
    let gone = TcpSocket::new_v4().unwrap();
    gone.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let limits = Limits { connect: Duration::from_secs(2), ..Limits::default() };
    let mut lab = Lab::with(vec![site("a.example", gone.local_addr().unwrap())], limits).await;
    let told = async |lab: &Lab| {
        let answer = lab.get("a.example", "/").await;
        (answer.status, answer.code())
    };
    assert_eq!(told(&lab).await, (502, "preview_unreachable".into()));
    lab.change(|snapshot| snapshot.sites[0].port = garbage.address.port());
    assert_eq!(told(&lab).await, (502, "preview_unreachable".into()));
    lab.change(|snapshot| {
        snapshot.sites[0].port = silent.address.port();
        snapshot.sites[0].limits.idle_seconds = number(3);
    });
    assert_eq!(told(&lab).await, (504, "preview_timeout".into()));
    let late = lab.http2("a.example").await.send_request(get("https://a.example/")).await.unwrap();
    assert_eq!(late.status(), 504, "by HTTP/2, too");
    lab.change(|snapshot| snapshot.sites[0].addresses = vec!["192.0.2.1".parse().unwrap()]);
    assert_eq!(told(&lab).await, (504, "preview_timeout".into()));
    let machine = Machine::named("a").await;
    lab.change(|snapshot| {
        snapshot.sites[0].addresses = vec!["192.0.2.1".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        snapshot.sites[0].port = machine.address.port();
    });
    assert_eq!(lab.get("a.example", "/").await.body, "a", "the second address is tried");
}

#[tokio::test]
async fn one_source_has_so_many_connections() {
    let limits = Limits { connections_per_source: 3, ..Limits::default() };
    let machine = Machine::named("a").await;
    let lab = Lab::with(vec![site("a.example", machine.address)], limits).await;
    let open = [lab.raw("a.example").await, lab.raw("a.example").await, lab.raw("a.example").await];
    let mut refused = TcpStream::connect(lab.https).await.unwrap();
    assert_eq!(timeout(PATIENCE, refused.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0);
    assert_eq!(lab.ingress.totals().connections_refused, 1);
    drop(open);
    eventually("they are gone", || lab.ingress.totals().open_connections == 0).await;
    assert_eq!(lab.get("a.example", "/").await.status, 200);
}

#[tokio::test]
async fn credentials_are_asked_for_and_stay_with_us() {
    let machine = Machine::named("a").await;
    let mut lab = Lab::one(&machine).await;
    let ask = async |lab: &Lab, credentials: &str| {
        let mut raw = lab.raw("a.example").await;
        raw.send(&format!("GET / HTTP/1.1\r\nHost: a.example\r\n{credentials}\r\n")).await;
        raw.answer().await
    };
    // Without any of ours, the machine's own are its own.
    assert_eq!(ask(&lab, "Authorization: Bearer theirs\r\n").await.status, 200);
    assert_eq!(machine.got()[0].map()["authorization"], "Bearer theirs");

    lab.change(|snapshot| snapshot.sites[0].auth = Some(Auth::Bearer { token: SecretHash::of(b"t0ken") }));
    let refused = ask(&lab, "").await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "unauthorized"));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"preview\""));
    assert_eq!(ask(&lab, "Authorization: Bearer wrong\r\n").await.status, 401);
    assert_eq!(ask(&lab, "Authorization: Bearer t0ken\r\n").await.status, 200);

    let password = SecretHash::of(b"s3cret");
    lab.change(|snapshot| snapshot.sites[0].auth = Some(Auth::Basic { user: "ann".into(), password }));
    let basic =
        |text: &str| format!("Authorization: Basic {}\r\n", base64::engine::general_purpose::STANDARD.encode(text));
    let refused = ask(&lab, "Authorization: Bearer t0ken\r\n").await;
    assert_eq!(refused.header("www-authenticate"), Some("Basic realm=\"preview\", charset=\"UTF-8\""));
    assert_eq!(ask(&lab, &basic("bob:s3cret")).await.status, 401);
    assert_eq!(ask(&lab, &basic("ann:s3cret")).await.status, 200);
    let got = machine.got();
    assert_eq!(got.len(), 3);
    assert!(got[1..].iter().all(|got| !got.headers.contains_key("authorization")));
    assert_eq!(lab.counters("a.example").refused["unauthorized"], 4);
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let machine = Machine::raw(|mut stream| async move {
        let mut have = Vec::new();
        while stream.read_buf(&mut have).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    let lab = Lab::one(&machine).await;
    let stream = lab.tls("a.example", &["h2"]).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut sent = 0;
    for _ in 0..20_000 {
        let Ok(ready) = sender.clone().ready().await else { break };
        sender = ready;
        let request = Request::get("https://a.example/").body(()).unwrap();
        let Ok((_, mut stream)) = sender.send_request(request, true) else { break };
        stream.send_reset(h2::Reason::CANCEL);
        sent += 1;
    }
    let ended = timeout(PATIENCE, connection).await.expect("the connection goes on").unwrap();
    let error = ended.expect_err("it ended well");
    assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM), "after {sent}: {error}");
    eventually("nothing is left", || lab.counters("a.example").open_requests == 0).await;
}

#[tokio::test]
async fn headers_without_end_end_the_connection() {
    let machine = Machine::named("a").await;
    let lab = Lab::one(&machine).await;
    let mut stream = lab.tls("a.example", &["h2"]).await.unwrap();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    // HEADERS without END_HEADERS, and then CONTINUATION (RFC 9113 §6.10) with a literal field of 1,000 bytes each.
    bytes.extend(frame(1, 0, 1, &[0x82, 0x87, 0x84]));
    let field = [&[0x00, 0x01, b'x', 0x7f, 0xe9, 0x06][..], &[b'y'; 1000]].concat();
    stream.write_all(&bytes).await.unwrap();
    let mut sent = 0;
    let send = async {
        while sent < 100_000 && stream.write_all(&frame(9, 0, 1, &field)).await.is_ok() {
            sent += 1;
        }
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    timeout(PATIENCE, send).await.expect("the connection goes on");
    assert!(sent < 100_000, "it took them all");
    eventually("it is gone", || lab.ingress.totals().open_connections == 0).await;
    assert!(machine.got().is_empty());
}
