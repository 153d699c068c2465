//! What goes through, and how.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::lab::{Body, Lab, Machine, PATIENCE, body, eventually, get, head, site, text};

fn channel_body() -> (mpsc::UnboundedSender<Frame<Bytes>>, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let frames =
        futures::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    (sender, BodyExt::boxed(StreamBody::new(frames.map(Ok))))
}

#[tokio::test]
async fn requests_of_both_versions_reach_the_machine_and_are_answered() {
    let machine = Machine::answering(|got| async move {
        Response::builder().status(201).header("x-own", "1").body(body(format!("[{}]", got.body))).unwrap()
    })
    .await;
    let lab = Lab::one(&machine).await;
    let mut one = lab.http1("a.example").await;
    let mut two = lab.http2("a.example").await;
    let post = |uri: &str| Request::post(uri).body(body("hello")).unwrap();
    let mut request = post("/x?y=1");
    request.headers_mut().insert("host", "a.example".parse().unwrap());
    let first = one.send_request(request).await.unwrap();
    let second = two.send_request(post("https://a.example/x?y=1")).await.unwrap();
    for response in [first, second] {
        assert_eq!((response.status().as_u16(), response.headers()["x-own"].to_str().unwrap()), (201, "1"));
        assert_eq!(text(response).await, "[hello]");
    }
    for got in machine.got() {
        assert_eq!((got.line.as_str(), got.body.as_str()), ("POST /x?y=1 HTTP/1.1", "hello"));
        assert_eq!(got.map()["host"], "a.example");
        assert_eq!(got.map()["content-length"], "5");
    }
    let counters = lab.counters("a.example");
    assert_eq!((counters.requests, counters.bytes_in, counters.bytes_out), (2, 10, 14));
    assert_eq!((counters.open_connections, counters.open_requests), (2, 0));
    assert!(counters.refused.is_empty());
    drop((one, two));
    eventually("the connections are gone", || lab.counters("a.example").open_connections == 0).await;
    assert_eq!(lab.ingress.totals().open_connections, 0);
}

#[tokio::test]
async fn a_machine_learns_who_asked_from_us_alone() {
    let machine = Machine::named("a").await;
    let lab = Lab::one(&machine).await;
    let mut raw = lab.raw("a.example").await;
    raw.send(
        "GET https://a.example:8443/p HTTP/1.1\r\nHost: A.EXAMPLE:8443\r\nConnection: x-mine, keep-alive\r\nX-Mine: 1\r\n\
         X-Forwarded-For: 10.0.0.1\r\nX_Forwarded_For: 10.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: evil\r\n\
         Forwarded: for=10.0.0.1\r\nX-Real-IP: 10.0.0.1\r\nUpgrade: h2c\r\nTE: gzip\r\nKeep-Alive: 1\r\n\
         Proxy-Authorization: x\r\nAccept: */*\r\n\r\n",
    )
    .await;
    assert_eq!(raw.answer().await.status, 200);
    let got = machine.got().remove(0);
    assert_eq!(got.line, "GET /p HTTP/1.1");
    let mut pairs: Vec<_> = got.map().into_iter().collect();
    pairs.sort_unstable();
    let expected = [
        ("accept", "*/*"),
        ("forwarded", "for=127.0.0.1;proto=https;host=\"a.example:8443\""),
        ("host", "a.example:8443"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "a.example:8443"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "127.0.0.1"),
    ];
    assert_eq!(pairs, expected);
}

#[tokio::test]
async fn a_url_without_a_path_is_a_request_for_the_root() {
    let machine = Machine::named("a").await;
    let lab = Lab::one(&machine).await;
    for (target, expected) in [
        ("http://a.example", "/"),
        ("https://a.example?y=1", "/?y=1"),
        ("http://a.example/#part", "/"),
        ("http://a.example#part", "/"),
        ("a.example:80", "/"),
    ] {
        let mut raw = lab.raw("a.example").await;
        raw.send(&format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n")).await;
        assert_eq!(raw.answer().await.status, 200, "{target}");
        let got = machine.got().pop().unwrap();
        assert_eq!(got.line, format!("GET {expected} HTTP/1.1"), "{target}");
    }
}

#[tokio::test]
async fn an_event_arrives_before_the_response_ends() {
    let machine = Machine::raw(|mut stream| async move {
        head(&mut stream).await;
        let begun = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(begun).await.unwrap();
        stream.write_all(b"9\r\ndata: 1\n\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let lab = Lab::one(&machine).await;
    let mut raw = lab.raw("a.example").await;
    raw.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert!(raw.until("data: 1\n\n").await.contains("text/event-stream"));

    let mut two = lab.http2("a.example").await;
    let mut response = two.send_request(get("https://a.example/")).await.unwrap();
    let frame = timeout(PATIENCE, response.body_mut().frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "data: 1\n\n");
    assert_eq!(lab.counters("a.example").open_requests, 2);
    drop((raw, response, two));
    eventually("the requests ended", || lab.counters("a.example").open_requests == 0).await;
}

#[tokio::test]
async fn a_body_goes_on_while_the_client_still_sends_it() {
    let (seen, mut parts) = mpsc::unbounded_channel();
    let machine = Machine::raw(move |mut stream| {
        let seen = seen.clone();
        async move {
            let mut have = Vec::new();
            while stream.read_buf(&mut have).await.is_ok_and(|count| count > 0) {
                seen.send(String::from_utf8(have.clone()).unwrap()).unwrap();
                if have.ends_with(b"0\r\n\r\n") {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await.unwrap();
                    have.clear();
                }
            }
        }
    })
    .await;
    let lab = Lab::one(&machine).await;
    let (sender, stream) = channel_body();
    let mut two = lab.http2("a.example").await;
    let request = Request::post("https://a.example/").body(stream).unwrap();
    let response = tokio::spawn(async move { two.send_request(request).await });
    sender.send(Frame::data("first".into())).unwrap();
    let mut arrives = async |what: &str| {
        let find = async { while !parts.recv().await.unwrap().contains(what) {} };
        timeout(PATIENCE, find).await.expect(what);
    };
    arrives("first").await;
    sender.send(Frame::data("second".into())).unwrap();
    arrives("second").await;
    drop(sender);
    assert_eq!(text(response.await.unwrap().unwrap()).await, "done");
}

#[tokio::test]
async fn trailers_are_kept_both_ways() {
    let machine = Machine::answering(|got| async move {
        let (sender, stream) = channel_body();
        sender.send(Frame::data("data".into())).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", got.trailers["x-in"].clone());
        sender.send(Frame::trailers(trailers)).unwrap();
        Response::builder().header("trailer", "x-sum").body(stream).unwrap()
    })
    .await;
    let lab = Lab::one(&machine).await;
    let mut raw = lab.raw("a.example").await;
    raw.send(
        "POST / HTTP/1.1\r\nHost: a.example\r\nTE: trailers\r\nTrailer: x-in\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nhi\r\n0\r\nx-in: one\r\n\r\n",
    )
    .await;
    raw.until("0\r\nx-sum: one\r\n\r\n").await;

    let mut two = lab.http2("a.example").await;
    let (sender, stream) = channel_body();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-in", "two".parse().unwrap());
    sender.send(Frame::trailers(trailers)).unwrap();
    drop(sender);
    let request =
        Request::post("https://a.example/").header("te", "trailers").header("trailer", "x-in").body(stream).unwrap();
    let response = two.send_request(request).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "two");
}

#[tokio::test]
async fn trailers_say_nothing_that_only_we_may_say() {
    let machine = Machine::named("a").await;
    let lab = Lab::one(&machine).await;
    let names = "x-in, x-forwarded-for, X_Forwarded_For, forwarded, x-real-ip";
    let mut raw = lab.raw("a.example").await;
    raw.send(&format!(
        "POST / HTTP/1.1\r\nHost: a.example\r\nTrailer: {names}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\
         x-in: 1\r\nX-Forwarded-For: 10.0.0.1\r\nX_Forwarded_For: 10.0.0.1\r\nForwarded: for=10.0.0.1\r\n\
         X-Real-IP: 10.0.0.1\r\n\r\n"
    ))
    .await;
    assert_eq!(raw.answer().await.status, 200);
    let mut two = lab.http2("a.example").await;
    let (sender, stream) = channel_body();
    let mut trailers = HeaderMap::new();
    for name in names.split(", ") {
        trailers.insert(http::HeaderName::try_from(name).unwrap(), "10.0.0.1".parse().unwrap());
    }
    sender.send(Frame::trailers(trailers)).unwrap();
    drop(sender);
    let request = Request::post("https://a.example/").header("trailer", names).body(stream).unwrap();
    assert_eq!(two.send_request(request).await.unwrap().status(), 200);
    for got in machine.got() {
        assert_eq!(got.trailers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["x-in"]);
    }
}

#[tokio::test]
async fn a_response_has_one_end_for_every_client() {
    let machine = Machine::raw(|mut stream| async move {
        while let asked @ [_, ..] = &head(&mut stream).await[..] {
            let answer: &[u8] = match asked {
                [b'G', b'E', b'T', b' ', b'/', b'1', ..] => {
                    b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n8\r\nthewhole\r\n0\r\n\r\n"
                }
                [b'G', b'E', b'T', b' ', b'/', b'2', ..] => b"Content-Length: 8, 8\r\n\r\nthewhole",
                _ => b"Content-Length: 8\r\nContent-Length: 8\r\n\r\nthewhole",
            };
            stream.write_all(&[b"HTTP/1.1 200 OK\r\n", answer].concat()).await.unwrap();
        }
    })
    .await;
    let lab = Lab::one(&machine).await;
    for path in ["/1", "/2", "/3"] {
        let mut raw = lab.raw("a.example").await;
        raw.send(&format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")).await;
        let all = raw.rest().await;
        let lengths: Vec<_> = all.lines().filter_map(|line| line.strip_prefix("content-length: ")).collect();
        assert!(lengths.is_empty() && path == "/1" || lengths == ["8"], "{path}: {all}");
        assert!(all.contains("thewhole"), "{path}: {all}");
        let mut two = lab.http2("a.example").await;
        let response = two.send_request(get(&format!("https://a.example{path}"))).await.unwrap();
        let lengths: Vec<_> = response.headers().get_all("content-length").iter().cloned().collect();
        assert!(lengths.is_empty() && path == "/1" || lengths == ["8"], "{path}: {lengths:?}");
        assert_eq!(text(response).await, "thewhole", "{path}");
    }
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it() {
    let machine = Machine::answering(|got| async move { Response::new(body(got.body)) }).await;
    let lab = Lab::one(&machine).await;
    let mut raw = lab.raw("a.example").await;
    raw.send("PUT / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    assert_eq!(raw.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    raw.send("hello").await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    assert!(!machine.got()[0].headers.contains_key("expect"));
}

#[tokio::test]
async fn responses_without_a_body_keep_what_they_say_of_it() {
    let machine = Machine::raw(|mut stream| async move {
        let mut have = Vec::new();
        while stream.read_buf(&mut have).await.is_ok_and(|count| count > 0) {
            if !have.ends_with(b"\r\n\r\n") {
                continue;
            }
            let answer: &[u8] = match &have[..4] {
                b"HEAD" => b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
                _ => b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
            };
            stream.write_all(answer).await.unwrap();
            have.clear();
        }
    })
    .await;
    let lab = Lab::one(&machine).await;
    let mut raw = lab.raw("a.example").await;
    raw.send("HEAD / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert!(raw.until("\r\n\r\n").await.contains("content-length: 1234"));
    raw.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.header("etag")), (304, Some("\"x\"")));
    assert_eq!(machine.connections(), 1);
}

#[tokio::test]
async fn connections_to_a_machine_are_used_again() {
    let machine = Machine::named("a").await;
    let lab = Lab::one(&machine).await;
    let mut one = lab.http1("a.example").await;
    for _ in 0..20 {
        let mut request = get("/");
        request.headers_mut().insert("host", "a.example".parse().unwrap());
        let response = one.send_request(request).await.unwrap();
        assert_eq!(text(response).await, "a");
        one.ready().await.unwrap();
    }
    // Other clients get them, too.
    assert_eq!(lab.get("a.example", "/").await.body, "a");
    assert!(machine.connections() <= 2, "{}", machine.connections());
}

#[tokio::test]
async fn a_connection_that_the_machine_closed_in_between_is_no_failure() {
    let machine = Machine::raw(|mut stream| async move {
        // Says that it stays open, and goes.
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let lab = Lab::one(&machine).await;
    let mut raw = lab.raw("a.example").await;
    for _ in 0..50 {
        raw.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 200);
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_taken_for_a_whole_one() {
    let machine = Machine::raw(|mut stream| async move {
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    })
    .await;
    let lab = Lab::one(&machine).await;
    let mut raw = lab.raw("a.example").await;
    raw.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let all = raw.rest().await;
    assert!(all.contains("half") && !all.contains("0\r\n\r\n"), "{all}");
    let mut two = lab.http2("a.example").await;
    let response = two.send_request(get("https://a.example/")).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn two_machines_on_one_listener_are_told_apart() {
    let (a, b) = (Machine::named("a").await, Machine::named("b").await);
    let lab = Lab::start(vec![site("a.example", a.address), site("b.example", b.address)]).await;
    assert_eq!(lab.get("a.example", "/").await.body, "a");
    assert_eq!(lab.get("b.example", "/").await.body, "b");
    assert_eq!((a.got().len(), b.got().len()), (1, 1));
}

#[tokio::test]
async fn a_large_body_arrives_as_it_was_sent() {
    let machine = Machine::answering(|got| async move { Response::new(body(got.body)) }).await;
    let lab = Lab::one(&machine).await;
    let large: String = (0..400_000).map(|index| format!("{index:x}\r\n")).collect();
    let mut one = lab.http1("a.example").await;
    let mut two = lab.http2("a.example").await;
    let streamed = || {
        let (sender, stream) = channel_body();
        let mut rest = large.as_bytes();
        for size in (1..).map(|size| size * 97 % 40_000 + 1) {
            let (part, after) = rest.split_at(size.min(rest.len()));
            sender.send(Frame::data(Bytes::copy_from_slice(part))).unwrap();
            rest = after;
            if rest.is_empty() {
                return stream;
            }
        }
        unreachable!("sizes go on for ever")
    };
    let post = |uri: &str, body| Request::post(uri).header("host", "a.example").body(body).unwrap();
    for sent in [body(large.clone()), streamed()] {
        assert!(text(one.send_request(post("/", sent)).await.unwrap()).await == large);
        one.ready().await.unwrap();
    }
    for sent in [body(large.clone()), streamed()] {
        assert!(text(two.send_request(post("https://a.example/", sent)).await.unwrap()).await == large);
    }
    let size = large.len() as u64 * 4;
    let counters = lab.counters("a.example");
    assert_eq!((counters.bytes_in, counters.bytes_out), (size, size));
    assert!(machine.got().iter().all(|got| got.body == large));
}
