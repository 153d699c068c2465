//! `warren domain` against a small server.

#[allow(dead_code)]
mod fake;

use std::io::Write;

use fake::Fake;
use fake::domain::PEM;
use fake::run::{document, err, out, warren};
use serde_json::{Value, json};

fn file(content: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}

#[test]
fn a_port_is_mapped_with_what_was_asked_for_and_nothing_else() {
    let server = Fake::start();
    let output = warren(&server, &["--json", "domain", "map", "worker:8080"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let answer = document(&out(&output));
    assert_eq!(answer["asked"], json!({"machine": "worker", "port": 8080}));
    assert_eq!(answer["host"], "worker-8080-qwerty.preview.example");

    let token = file("0123456789abcdef\n");
    let mut args = vec!["--json", "domain", "map", "app.example.com", "worker:8080"];
    args.extend(["--auth-bearer-file", token.path().to_str().unwrap(), "--max-body", "1M", "--idle", "5"]);
    let answer = document(&out(&warren(&server, &args)));
    let expected = json!({
        "host": "app.example.com", "machine": "worker", "port": 8080,
        "auth": {"kind": "bearer", "token": "0123456789abcdef"},
        "limits": {"max_body_bytes": 1_048_576, "idle_seconds": 5},
    });
    assert_eq!(answer["asked"], expected);

    let shown = warren(&server, &["domain", "ls"]);
    assert!(out(&shown).contains("https://app.example.com"), "{}", out(&shown));
    assert_eq!(out(&shown).lines().count(), 3);
    let shown = out(&warren(&server, &["domain", "map", "b.example.com", "worker:8080"]));
    assert!(shown.contains("certificate  pending: it was asked for\n"), "{shown}");
}

#[test]
fn a_domain_is_changed_and_unmapped() {
    let server = Fake::start();
    let changed = warren(&server, &["--json", "domain", "set", "a.example", "--to", "other:80", "--open"]);
    let expected = json!({"machine": "other", "port": 80, "auth": {"kind": "open"}});
    assert_eq!(document(&out(&changed))["asked"], expected);
    assert_eq!(warren(&server, &["domain", "unmap", "a.example"]).status.code(), Some(1));
    warren(&server, &["domain", "map", "a.example", "worker:80"]);
    let unmapped = warren(&server, &["domain", "unmap", "a.example"]);
    assert_eq!((unmapped.status.code(), out(&unmapped).as_str()), (Some(0), "a.example leads nowhere any more\n"));
    let refused = warren(&server, &["domain", "map", "taken.example.com", "worker:80"]);
    assert_eq!((refused.status.code(), out(&refused).as_str()), (Some(1), ""));
    assert!(err(&refused).contains("(domain_taken)"), "{}", err(&refused));
}

#[test]
fn a_secret_that_cannot_be_read_is_not_sent_and_not_shown() {
    let server = Fake::start();
    let no_password = file("alice-and-her-password\n");
    for path in [no_password.path().to_str().unwrap(), "/nonexistent/secret"] {
        let output = warren(&server, &["domain", "map", "a.example", "worker:80", "--auth-basic-file", path]);
        assert!(!output.status.success() && out(&output).is_empty(), "{path}");
        assert!(err(&output).contains(path) && !err(&output).contains("her-password"), "{}", err(&output));
    }
    assert_eq!(document(&out(&warren(&server, &["--json", "domain", "ls"])))["items"], json!([]));
}

#[test]
fn verifying_says_what_to_set_then_what_is_missing_and_then_that_it_is_done() {
    for json_flag in [&[][..], &["--json"]] {
        let server = Fake::start();
        let verify = || warren(&server, &[&["domain", "verify", "example.com"], json_flag].concat());
        let (set, missing, done) = (verify(), verify(), verify());
        let statuses = [&set, &missing, &done].map(|output| output.status.code());
        assert_eq!(statuses, [Some(4), Some(4), Some(0)]);
        if json_flag.is_empty() {
            assert!(out(&set).contains("_warren.example.com") && out(&set).contains("warren-verification=00"));
            assert!(err(&set).contains("run this again"), "{}", err(&set));
            assert!(out(&missing).contains("(NXDOMAIN)"), "{}", out(&missing));
            assert!(out(&done).contains("state     verified"), "{}", out(&done));
        } else {
            let states = [&set, &missing, &done].map(|output| document(&out(output))["state"].clone());
            assert_eq!(states, [json!("pending"), json!("pending"), json!("verified")]);
            assert_eq!(err(&set), "");
            assert_eq!(document(&out(&missing))["record"]["name"], Value::from("_warren.example.com"));
        }
    }
}

#[test]
fn the_authority_is_printed_as_it_is() {
    let server = Fake::start();
    assert_eq!(out(&warren(&server, &["domain", "ca"])), PEM);
    assert_eq!(document(&out(&warren(&server, &["--json", "domain", "ca"]))), json!({"pem": PEM}));
}
