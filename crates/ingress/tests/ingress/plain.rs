//! The plain listener.

use crate::lab::{Answer, Lab, Machine};

async fn ask(lab: &Lab, host: &str, path: &str) -> Answer {
    let mut raw = lab.raw_plain().await;
    raw.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    raw.answer().await
}

#[tokio::test]
async fn a_published_name_is_redirected_to_https() {
    let machine = Machine::named("a").await;
    let mut lab = Lab::one(&machine).await;
    for (port, expected) in [(443, "https://a.example/x?y=1"), (8443, "https://a.example:8443/x?y=1")] {
        lab.change(|snapshot| snapshot.https_port = Some(port));
        let answer = ask(&lab, "A.example:80", "/x?y=1").await;
        assert_eq!((answer.status, answer.header("location")), (308, Some(expected)));
    }
    assert!(machine.got().is_empty());
    let unknown = ask(&lab, "c.example", "/").await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "host_unknown"));
    assert_eq!(lab.ingress.totals().refused["host_unknown"], 1);
}

#[tokio::test]
async fn without_an_https_listener_the_plain_one_serves() {
    let machine = Machine::named("a").await;
    let lab = Lab::one(&machine).await;
    assert_eq!(ask(&lab, "a.example", "/x").await.body, "a");
    let got = machine.got().remove(0);
    assert_eq!(got.map()["x-forwarded-proto"], "http");
    assert_eq!(got.map()["forwarded"], "for=127.0.0.1;proto=http;host=a.example");
}

#[tokio::test]
async fn only_challenges_that_are_known_are_answered_and_for_any_host() {
    let machine = Machine::named("a").await;
    let mut lab = Lab::one(&machine).await;
    lab.change(|snapshot| {
        snapshot.https_port = Some(443);
        snapshot.challenges.insert("tok-en_1".into(), "tok-en_1.thumb".into());
    });
    for host in ["a.example", "whoever.example"] {
        let answer = ask(&lab, host, "/.well-known/acme-challenge/tok-en_1").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "tok-en_1.thumb"));
        for other in ["tok-en_2", "", "tok-en_1/", "../x"] {
            let answer = ask(&lab, host, &format!("/.well-known/acme-challenge/{other}")).await;
            assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{other}");
        }
    }
    assert!(machine.got().is_empty());
}

#[tokio::test]
async fn a_host_that_is_none_is_refused() {
    let lab = Lab::one(&Machine::named("a").await).await;
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x@a.example\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n",
        "GET ftp://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
    ] {
        let mut raw = lab.raw_plain().await;
        raw.send(head).await;
        let answer = raw.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "request_malformed"), "{head}");
        assert_eq!(raw.rest().await, "", "the connection ends");
    }
    let mut raw = lab.raw_plain().await;
    raw.send("CONNECT a.example:22 HTTP/1.1\r\nHost: a.example:22\r\n\r\n").await;
    assert_eq!(raw.answer().await.code(), "method_not_allowed");
    raw.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert_eq!(raw.answer().await.body, "a", "what follows is read as HTTP");
}
