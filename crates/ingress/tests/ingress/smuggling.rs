//! Requests that two servers could read differently. None reaches a machine as more than one, or as another.

use tokio::io::AsyncWriteExt;

use crate::lab::{Lab, Machine, head};

/// What must never reach a machine as a request of its own.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n";

/// Sends `bytes`, and gives what came back until the connection ended, with the requests that the machine got.
async fn attack(bytes: &str) -> (String, Vec<String>) {
    let machine = Machine::named("reached").await;
    let lab = Lab::one(&machine).await;
    let mut raw = lab.raw("a.example").await;
    raw.send(bytes).await;
    let answers = raw.rest().await;
    (answers, machine.got().into_iter().map(|got| got.line).collect())
}

fn post(headers: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a.example\r\n{headers}\r\n{body}")
}

#[tokio::test]
async fn what_is_not_clear_is_refused_and_ends_the_connection() {
    let chunked = format!("0\r\n\r\n{HIDDEN}");
    for bytes in [
        post(&format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", chunked.len()), &chunked),
        post(&format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", chunked.len()), &chunked),
        post("Content-Length: 0\r\nContent-Length: 46\r\n", HIDDEN),
        post("Content-Length: 0\r\nContent-Length: 0\r\n", HIDDEN),
        post("Content-Length: 0, 0\r\n", HIDDEN),
        post("Content-Length: +0\r\n", HIDDEN),
        post("Content-Length: -1\r\n", HIDDEN),
        post("Content-Length: 0x0\r\n", HIDDEN),
        post("Content-Length:\r\n", HIDDEN),
        post("Content-Length: 99999999999999999999999\r\n", HIDDEN),
        post("Transfer-Encoding: gzip\r\n", &chunked),
        post("Transfer-Encoding: gzip, chunked\r\n", &chunked),
        post("Transfer-Encoding: chunked, identity\r\n", &chunked),
        post("Transfer-Encoding: xchunked\r\n", &chunked),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &chunked),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", &chunked),
        post("Transfer-Encoding : chunked\r\n", &chunked),
        post(" Transfer-Encoding: chunked\r\n", &chunked),
        post("X: 1\r\n Transfer-Encoding: chunked\r\n", &chunked),
        post("X: 1\r\n\tfolded\r\n", HIDDEN),
        post("X: 1\rTransfer-Encoding: chunked\r\n", &chunked),
        post("X: 1\0\r\n", HIDDEN),
        post("X\n: 1\r\n", HIDDEN),
        post("X: 1\nContent-Length: 0\r\n", HIDDEN),
        post("No colon\r\n", HIDDEN),
        "POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\nHost: a.example\n\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a.example\r\n\n".to_owned(),
        "GET /\r\nHost: a.example\r\n\r\n".to_owned(),
        "GET / HTTP/1.2\r\nHost: a.example\r\n\r\n".to_owned(),
        "GET / HTTP/2.0\r\nHost: a.example\r\n\r\n".to_owned(),
        "GET  / HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(),
        "GET / x HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(),
        "GET /\u{1} HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(),
        "G(T / HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ] {
        let (answers, got) = attack(&bytes).await;
        assert!(got.is_empty(), "{bytes:?} reached the machine as {got:?}");
        assert!(
            answers.starts_with("HTTP/1.1 400 ") && answers.matches("HTTP/1.1").count() == 1,
            "{bytes:?}: {answers}"
        );
        assert!(answers.contains("\"code\":\"request_malformed\""), "{bytes:?}: {answers}");
    }
}

#[tokio::test]
async fn a_chunked_body_that_is_wrong_is_no_request() {
    let extension = format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(20_000));
    let trailers = format!("0\r\n{}\r\n", format!("X-T: {}\r\n", "t".repeat(1000)).repeat(70));
    for body in [
        "x\r\n\r\n",
        "-1\r\nx\r\n0\r\n\r\n",
        "0x1\r\nx\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\nx\r\n0\r\n\r\n",
        "1\r\nxy\r\n0\r\n\r\n",
        "1\nx\n0\n\n",
        "1;a\nb\r\nx\r\n0\r\n\r\n",
        "1\r\nx0\r\n\r\n",
        &extension,
        &trailers,
    ] {
        let (answers, got) = attack(&(post("Transfer-Encoding: chunked\r\n", body) + HIDDEN)).await;
        assert!(got.is_empty(), "{:.80?} reached the machine as {got:?}", body);
        assert!(!answers.contains("HTTP/1.1 200"), "{:.80?}: {answers}", body);
    }
}

#[tokio::test]
async fn requests_that_follow_each_other_are_answered_in_order_until_one_is_refused() {
    let machine = Machine::answering(|got| async move { http::Response::new(crate::lab::body(got.line)) }).await;
    let lab = Lab::one(&machine).await;
    let mut raw = lab.raw("a.example").await;
    let good = "GET /one HTTP/1.1\r\nHost: a.example\r\n\r\n\
         POST /two HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n\
         a;x=\"y\"\r\n0123456789\r\n5\r\nGET /\r\n0\r\nX-T: 1\r\n\r\n\
         POST /three HTTP/1.1\r\nHost: a.example\r\nContent-Length: 7\r\n\r\nGET / H\
         GET /four HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let bad = "GET /five HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n";
    raw.send(&format!("{good}{bad}{HIDDEN}")).await;
    for path in ["GET /one", "POST /two", "POST /three", "GET /four"] {
        let answer = raw.answer().await;
        assert_eq!((answer.status, answer.body), (200, format!("{path} HTTP/1.1")));
    }
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "request_malformed"));
    assert_eq!(raw.rest().await, "");
    let got = machine.got();
    assert_eq!(got.len(), 4);
    assert_eq!((got[1].body.as_str(), got[2].body.as_str()), ("0123456789GET /", "GET / H"));
}

#[tokio::test]
async fn the_same_bytes_one_by_one_mean_the_same() {
    let machine = Machine::named("a").await;
    let lab = Lab::one(&machine).await;
    let mut raw = lab.raw("a.example").await;
    let bytes = "POST /one HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n3;e=1\r\nabc\r\n0\r\n\r\n\
         POST /two HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi\
         GET /three HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n";
    for byte in bytes.bytes() {
        raw.0.write_all(&[byte]).await.unwrap();
        raw.0.flush().await.unwrap();
    }
    let statuses = [raw.answer().await.status, raw.answer().await.status, raw.answer().await.status];
    assert_eq!(statuses, [200, 200, 400]);
    assert_eq!(machine.got().iter().map(|got| got.body.clone()).collect::<Vec<_>>(), ["abc", "hi"]);
}

#[tokio::test]
async fn a_machine_cannot_answer_a_request_that_was_not_asked() {
    // One response with another behind it: the second one is for nobody.
    let machine = Machine::raw(|mut stream| async move {
        while !head(&mut stream).await.is_empty() {
            let both = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine".to_owned()
                + "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother";
            if stream.write_all(both.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let lab = Lab::one(&machine).await;
    for _ in 0..20 {
        let answer = lab.get("a.example", "/").await;
        assert_ne!(answer.body, "other");
    }
}
