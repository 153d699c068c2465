//! Bodies of requests that are cut short, by the machine or by the client.

use std::io;

use futures::future::join;
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::lab::{Lab, Machine, PATIENCE, eventually, head};

/// Larger than all buffers on the way together.
const LARGE: usize = 16 << 20;

/// Refuses every request as soon as it has its head, and closes with the body unread: that is a reset.
async fn refusing() -> Machine {
    Machine::raw(|mut stream| async move {
        let mut have = Vec::new();
        while !have.windows(4).any(|window| window == b"\r\n\r\n") {
            if stream.read_buf(&mut have).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let answer = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 6\r\n\r\nenough";
        stream.write_all(answer).await.unwrap();
    })
    .await
}

#[tokio::test]
async fn an_answer_arrives_that_comes_before_the_body_was_sent() {
    let lab = Lab::one(&refusing().await).await;
    for _ in 0..40 {
        let stream = lab.tls("a.example", &["http/1.1"]).await.unwrap();
        let (mut reading, mut writing) = split(stream);
        let send = async {
            let head = format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {LARGE}\r\n\r\n");
            writing.write_all(head.as_bytes()).await?;
            let part = [b'x'; 16 << 10];
            for _ in 0..LARGE / part.len() {
                writing.write_all(&part).await?;
            }
            io::Result::Ok(())
        };
        let read = async {
            let mut answer = Vec::new();
            let _ = reading.read_to_end(&mut answer).await;
            answer
        };
        let (_, answer) = timeout(PATIENCE, join(send, read)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("enough"), "{answer:?}");
    }
}

#[tokio::test]
async fn what_a_client_did_not_finish_is_no_whole_request() {
    let (seen, mut ends) = mpsc::unbounded_channel();
    let machine = Machine::raw(move |mut stream| {
        let seen = seen.clone();
        async move {
            let mut have = head(&mut stream).await;
            while stream.read_buf(&mut have).await.is_ok_and(|count| count > 0) {}
            seen.send(String::from_utf8(have).unwrap()).unwrap();
        }
    })
    .await;
    let lab = Lab::one(&machine).await;
    let came = |bytes| {
        let lab = &lab;
        async move { eventually("it is under way", || lab.counters("a.example").bytes_in == bytes).await }
    };
    let framings = ["Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"];
    for (framing, bytes) in framings.into_iter().zip([4, 8]) {
        let mut raw = lab.raw("a.example").await;
        raw.send(&format!("POST / HTTP/1.1\r\nHost: a.example\r\n{framing}")).await;
        came(bytes).await;
        drop(raw);
        let got = timeout(PATIENCE, ends.recv()).await.expect("the machine's connection ends").unwrap();
        assert!(got.contains("half") && !got.ends_with("0\r\n\r\n"), "{got:?}");
    }
    let mut two = lab.http2("a.example").await;
    let (sender, receiver) = mpsc::unbounded_channel::<Frame<bytes::Bytes>>();
    let frames =
        futures::stream::unfold(receiver, |mut receiver| async move { Some((Ok(receiver.recv().await?), receiver)) });
    let request = Request::post("https://a.example/").body(BodyExt::boxed(StreamBody::new(frames))).unwrap();
    sender.send(Frame::data("half".into())).unwrap();
    let asking = tokio::spawn(async move { two.send_request(request).await.map(drop) });
    came(12).await;
    asking.abort();
    let got = timeout(PATIENCE, ends.recv()).await.expect("the machine's connection ends").unwrap();
    assert!(!got.ends_with("0\r\n\r\n"), "{got:?}");
    drop(sender);
    eventually("nothing is under way", || lab.counters("a.example").open_requests == 0).await;
}
