//! Policies and denials with the built command, against a small server.

#[allow(dead_code)]
mod fake;

use std::io::Write;
use std::process::Stdio;

use fake::Fake;
use fake::run::{command, document, err, out, warren};

#[test]
fn a_policy_is_applied_from_a_file_or_stdin_and_shown_as_it_was_written() {
    let server = Fake::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.yaml");
    std::fs::write(&file, "allow: []  # ours\n").unwrap();
    let path = file.to_str().unwrap();
    let output = warren(&server, &["policy", "apply", path]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(out(&output), "version 2 (0123456789ab) is in force\n");
    assert_eq!(err(&output), "warren: warning: rule a is about dev/x, and there is no such machine\n");
    assert!(out(&warren(&server, &["policy", "show"])).contains("allow: []  # ours\n"));

    let mut child = command(&server)
        .args(["--json", "policy", "apply", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"forbid: []\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((document(&out(&output))["version"].as_u64(), err(&output).as_str()), (Some(2), ""));
    assert_eq!(document(&out(&warren(&server, &["--json", "policy", "show"])))["text"], "forbid: []\n");

    // A program that wrote nothing has not asked for a policy without rules.
    for nothing in ["", " \n"] {
        let empty = dir.path().join("empty.yaml");
        std::fs::write(&empty, nothing).unwrap();
        let output = warren(&server, &["policy", "apply", empty.to_str().unwrap()]);
        assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""), "{}", err(&output));
    }
    assert_eq!(document(&out(&warren(&server, &["--json", "policy", "show"])))["text"], "forbid: []\n");

    let output = warren(&server, &["policy", "apply", path, "--dry-run"]);
    assert!(out(&output).contains("opens:\n  dev/agent -> dev/db  tcp/5432\ncloses nothing\n"), "{}", out(&output));
    assert_eq!(document(&out(&warren(&server, &["--json", "policy", "show"])))["text"], "forbid: []\n");
}

#[test]
fn what_is_wrong_in_a_file_is_said_where_it_is_wrong() {
    let server = Fake::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.yaml");
    std::fs::write(&file, "wrong: 1\n").unwrap();
    let path = file.to_str().unwrap();
    let output = warren(&server, &["policy", "apply", path]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""));
    assert_eq!(err(&output), format!("{path}:2:5: unknown key\n{path}:9:5: no network \u{241b}[2J\n"));
    let output = warren(&server, &["--json", "policy", "apply", path]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""));
    let problem = document(&err(&output));
    assert_eq!((&problem["code"], &problem["errors"][1]["line"]), (&"policy_invalid".into(), &9.into()));

    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    let output = warren(&server, &["policy", "apply", path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("not text in UTF-8"), "{}", err(&output));
    std::fs::write(&file, "#".repeat(2 << 20)).unwrap();
    assert!(err(&warren(&server, &["policy", "apply", path])).contains("larger than"));
    let output = warren(&server, &["policy", "apply", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("cannot read /nonexistent"), "{}", err(&output));
}

#[test]
fn tests_that_fail_end_with_1() {
    let server = Fake::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.yaml");
    std::fs::write(&file, "failing").unwrap();
    let path = file.to_str().unwrap();
    let output = warren(&server, &["policy", "test", path]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), "1 of 2 tests fail\n"));
    assert_eq!(err(&output), format!("{path}:7:3: test fails: from dev/a to dev/b\n"));
    let output = warren(&server, &["--json", "policy", "test", path]);
    assert_eq!((output.status.code(), document(&out(&output))["passed"].as_bool()), (Some(1), Some(false)));
    let output = warren(&server, &["policy", "test"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), "2 tests pass\n"));
}

#[test]
fn versions_are_listed_compared_and_brought_back() {
    let server = Fake::start();
    let history = out(&warren(&server, &["policy", "history"]));
    assert_eq!(history.lines().count(), 3, "{history}");
    assert!(history.lines().nth(1).unwrap().ends_with("in force"), "{history}");
    for (args, first) in [
        (&["policy", "diff"][..], "version 1 -> version 2"),
        (&["policy", "diff", "0"], "version 0 -> version 2"),
        (&["policy", "diff", "0", "1"], "version 0 -> version 1"),
        (&["policy", "rollback", "1"], "version 3 (0123456789ab) is in force"),
        (&["policy", "rollback", "1", "--dry-run"], "would be version 3 (0123456789ab)"),
    ] {
        let output = warren(&server, args);
        assert_eq!(out(&output).lines().next(), Some(first), "{args:?}: {}", err(&output));
    }
    let output = warren(&server, &["policy", "show", "--version", "9"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("see `warren policy history` (policy_version_not_found)"), "{}", err(&output));
}

#[test]
fn an_explanation_can_be_read_by_people_and_programs() {
    let server = Fake::start();
    let args = ["explain", "worker", "api.example.com", "--port", "tcp/443"];
    let output = warren(&server, &args);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).starts_with("deny  worker -> api.example.com  tcp/443\n"), "{}", out(&output));
    assert!(out(&output).contains("  - {\"id\":\"allow-it\",\"from\":\"dev/agent\""), "{}", out(&output));
    let answer = document(&out(&warren(&server, &[&["--json"][..], &args].concat())));
    assert_eq!((&answer["verdict"], &answer["missing_rule"]["id"]), (&"deny".into(), &"allow-it".into()));
    assert_eq!(answer["near_misses"][0]["rule"], "web");
    let reach = warren(&server, &["reach", "--network", "prod"]);
    assert!(out(&reach).contains("prod/agent  dev/db"), "{}", out(&reach));
}

#[test]
fn denials_are_listed_and_followed() {
    let server = Fake::start();
    let list = document(&out(&warren(&server, &["--json", "denials", "--machine", "worker", "--limit", "3"])));
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
    let text = out(&warren(&server, &["denials"]));
    assert_eq!(text.lines().count(), 5, "{text}");
    let output = warren(&server, &["denials", "--follow", "--json"]);
    // The server breaks off after the first denials and ends for good after the second connection.
    let ids: Vec<_> = out(&output).lines().map(|line| document(line)["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids, ["dny_1", "dny_2", "dny_3"], "{}", err(&output));
    assert_eq!((output.status.code(), &document(&err(&output))["code"]), (Some(1), &"not_ready".into()));
}

#[test]
fn what_a_command_was_refused_is_told_after_its_own_output() {
    let server = Fake::start();
    let output = warren(&server, &["exec", "worker", "--", "curl"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(6), ""));
    let expected = "curl: (6) no such host\n\
                    warren: refused: worker -> api.example.com tcp/443: no rule allows it (rule: none allows it); see \
                    `warren explain worker api.example.com --port tcp/443`\n";
    assert_eq!(err(&output), expected);
    let output = warren(&server, &["--json", "exec", "worker", "--", "curl"]);
    let result = document(&out(&output));
    assert_eq!((&result["denials"][0]["id"], err(&output).as_str()), (&"dny_1".into(), ""));
    assert_eq!(output.status.code(), Some(6));
}
