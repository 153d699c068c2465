//! The built command against a small server: what it sends, what it prints, how it ends.

mod fake;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use fake::Fake;
use fake::run::{bare, command, document, err, out, warren};
use serde_json::{Value, json};

fn fed(command: &mut Command, stdin: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let bytes = stdin.to_vec();
    let writer = std::thread::spawn(move || {
        // A command that ends early closes the pipe.
        let _ = pipe.write_all(&bytes);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

#[test]
fn an_answer_is_one_json_object_or_a_readable_text() {
    let server = Fake::start();
    let output = warren(&server, &["--json", "network", "show", "lab"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(document(&out(&output))["cidr"], "192.168.10.0/24");
    assert_eq!(document(&out(&output))["from_the_future"], true, "nothing that the server says is lost");
    assert_eq!(err(&output), "");

    let output = warren(&server, &["network", "show", "lab"]);
    assert!(out(&output).contains("cidr     192.168.10.0/24\n"), "{}", out(&output));
}

#[test]
fn the_key_and_the_account_are_sent() {
    let server = Fake::start();
    let output = warren(&server, &["--account", "acme", "--json", "whoami"]);
    let answer = document(&out(&output));
    assert_eq!(answer["authorization"], "Bearer wk_test");
    assert_eq!(answer["account"]["name"], "acme");
}

#[test]
fn a_key_that_came_to_nothing_is_not_the_root_key() {
    let server = Fake::start();
    for output in [
        command(&server).env("WARREN_API_KEY", "").arg("whoami").output().unwrap(),
        warren(&server, &["--key", "", "whoami"]),
        // A secret is named nowhere, not even in a request.
        warren(&server, &["token", "revoke", "wt_secret"]),
    ] {
        assert_eq!((output.status.code(), out(&output).as_str()), (Some(2), ""), "{}", err(&output));
        assert!(!err(&output).contains("wt_secret"), "{}", err(&output));
    }
}

#[test]
fn an_empty_log_proves_nothing() {
    let log = tempfile::NamedTempFile::new().unwrap();
    for json in [&[][..], &["--json"]] {
        let output = bare().args(["audit", "verify-log"]).arg(log.path()).args(json).output().unwrap();
        assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""), "{}", err(&output));
    }
}

#[test]
fn a_list_is_all_of_its_pages_unless_limited() {
    let server = Fake::start();
    let all = document(&out(&warren(&server, &["--json", "network", "ls"])));
    assert_eq!(all["items"].as_array().unwrap().len(), 5);
    assert_eq!(all["next"], Value::Null);
    let some = document(&out(&warren(&server, &["--json", "network", "ls", "--limit", "3"])));
    assert_eq!(some["items"].as_array().unwrap().len(), 3);
    assert!(some["next"].is_string());
    let table = out(&warren(&server, &["network", "ls"]));
    assert_eq!(table.lines().count(), 6, "{table}");
}

#[test]
fn a_refusal_ends_with_1_and_says_what_to_do() {
    let server = Fake::start();
    let output = warren(&server, &["network", "show", "none"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(out(&output), "");
    assert_eq!(err(&output), "warren: there is no network none: see `warren network ls` (not_found)\n");

    let output = warren(&server, &["--json", "network", "show", "none"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""));
    let problem = document(&err(&output));
    assert_eq!((&problem["code"], &problem["status"]), (&json!("not_found"), &json!(404)));
    assert_eq!(problem["request_id"], "req_1");
}

#[test]
fn a_server_that_is_not_there_ends_with_3_and_the_next_step() {
    // Of a port that nobody listens on.
    let url = "http://127.0.0.1:1";
    let output = bare().args(["--url", url, "network", "ls"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(err(&output).contains("warren up"), "{}", err(&output));
    let output = bare().args(["--url", url, "--json", "network", "ls"]).output().unwrap();
    assert_eq!(document(&err(&output))["code"], "server_not_reached");
    let output = bare().args(["--url", url, "exec", "worker", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "3 could be the command's own");
}

#[cfg(unix)]
#[test]
fn without_a_url_the_socket_and_key_of_the_data_directory_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let output = bare().env("WARREN_DATA_DIR", dir.path()).args(["whoami"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let server = Fake::start_unix(&dir.path().join("api.sock"));
    std::fs::write(dir.path().join("root.key"), "wk_root\n").unwrap();
    let output = bare().env("WARREN_DATA_DIR", dir.path()).args(["--json", "whoami"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(document(&out(&output))["authorization"], "Bearer wk_root");
    let output = bare().args(["--url", &server.url, "--json", "whoami"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
}

#[test]
fn wrong_usage_ends_with_2() {
    for args in [
        &["network"][..],
        &["machine", "create", "--port", "web"],
        &["exec", "worker"],
        &["--url", "127.0.0.1:7070", "whoami"],
        &["--url", "http://192.0.2.1:7070", "whoami"],
        &["cp", "a", "b"],
    ] {
        let output = bare().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", err(&output));
    }
}

#[test]
fn a_missing_image_is_built_before_its_machine() {
    let server = Fake::start();
    let output = warren(&server, &["machine", "create", "worker", "--port", "web=8080/http"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(err(&output).contains("debian: installing packages"), "{}", err(&output));
    assert!(out(&output).contains("hostname    worker.vm.internal\n"), "{}", out(&output));
    // Now it is there.
    let output = warren(&server, &["--json", "machine", "create", "worker"]);
    assert_eq!(err(&output), "");
    assert_eq!(document(&out(&output))["private_ip"], "10.0.1.10");
}

#[test]
fn a_build_that_fails_is_a_failure() {
    let server = Fake::start();
    let output = warren(&server, &["--json", "image", "build", "broken"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""));
    assert_eq!(document(&err(&output))["code"], "image_build_failed");
}

#[test]
fn an_image_is_pulled_under_the_name_that_its_reference_has() {
    let server = Fake::start();
    let output = warren(&server, &["image", "pull", "alpine:3.20"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(err(&output).contains("alpine:3.20: layer 1 of 2, 3 of 5 MiB"), "{}", err(&output));
    assert!(out(&output).contains("docker.io/library/alpine:3.20"), "{}", out(&output));
    let output = warren(&server, &["--json", "image", "pull", "ghcr.io/acme/tool", "--name", "mine"]);
    assert_eq!(err(&output), "");
    let image = document(&out(&output));
    assert_eq!((&image["name"], &image["source"]), (&"mine".into(), &"ghcr.io/acme/tool:latest".into()));
    let output = warren(&server, &["--json", "image", "pull", "lost.example/x:1"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""));
    assert_eq!(document(&err(&output))["code"], "registry_unavailable");
    assert_eq!(warren(&server, &["image", "pull", "http://r.io/x"]).status.code(), Some(2));
}

#[test]
fn a_command_keeps_its_streams_and_status() {
    let server = Fake::start();
    let input: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let output = fed(command(&server).args(["exec", "worker", "--", "cat"]), &input);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(output.stdout == input, "{} bytes came back", output.stdout.len());

    let output = warren(&server, &["exec", "worker", "--", "fail"]);
    assert_eq!(output.status.code(), Some(42));
    assert_eq!((out(&output).as_str(), err(&output).as_str()), ("to stdout\n", "to stderr\n"));

    let output = warren(&server, &["--json", "exec", "worker", "--", "fail"]);
    assert_eq!(output.status.code(), Some(42));
    let result = document(&out(&output));
    assert_eq!((&result["stdout"], &result["stderr"]), (&json!("to stdout\n"), &json!("to stderr\n")));
    assert_eq!((&result["status"], &result["truncated"]), (&json!(42), &json!(false)));
}

#[test]
fn a_command_that_did_not_run_ends_as_in_a_shell() {
    let server = Fake::start();
    let ends = [("slow", 124), ("lost", 125), ("refused", 126), ("missing", 127)];
    for (name, status) in ends {
        let output = warren(&server, &["exec", "worker", "--", name]);
        assert_eq!(output.status.code(), Some(status), "{name}: {}", err(&output));
        assert!(!err(&output).is_empty());
    }
    let output = warren(&server, &["exec", "stopped", "--", "true"]);
    assert_eq!(output.status.code(), Some(125), "{}", err(&output));
    assert!(err(&output).contains("machine_not_running"));
}

#[test]
fn a_closed_stdout_is_quiet() {
    let server = Fake::start();
    let run = |args: &[&str]| {
        let mut child = command(&server)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        child.wait_with_output().unwrap()
    };
    let output = run(&["events", "--follow", "--json"]);
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""));
    let output = run(&["exec", "worker", "--", "yes"]);
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(141), ""));
}

#[cfg(unix)]
#[test]
fn signals_are_passed_on_to_the_command() {
    let server = Fake::start();
    let mut child = command(&server)
        .args(["exec", "worker", "--", "wait"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The command says when it runs.
    let mut first = [0u8; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    assert_eq!(&first, b"ready\n");
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn events_come_one_a_line_and_resume_where_they_broke_off() {
    let server = Fake::start();
    let output = warren(&server, &["events", "--follow", "--json"]);
    // The server breaks off after the first events and ends for good after the second connection.
    let lines: Vec<Value> = out(&output).lines().map(document).collect();
    let revisions: Vec<_> = lines.iter().map(|event| event["revision"].as_u64().unwrap()).collect();
    assert_eq!(revisions, [1, 2, 3], "{}", err(&output));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(document(&err(&output))["code"], "events_expired");
}

#[test]
fn a_limit_shows_the_newest_events_and_the_first_ones_after_a_revision() {
    let server = Fake::start();
    let revisions = |args: &[&str]| {
        let page = document(&out(&warren(&server, &[&["--json", "events"], args].concat())));
        let items = page["items"].as_array().unwrap().clone();
        items.iter().map(|event| event["revision"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(revisions(&[]), [1, 2, 3, 4, 5]);
    assert_eq!(revisions(&["--limit", "3"]), [3, 4, 5]);
    assert_eq!(revisions(&["--limit", "9"]), [1, 2, 3, 4, 5]);
    assert_eq!(revisions(&["--after", "1", "--limit", "3"]), [2, 3, 4]);
}

#[test]
fn several_machines_are_all_tried_and_each_failure_is_told() {
    let server = Fake::start();
    let output = warren(&server, &["machine", "stop", "a", "none", "b"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(out(&output), "a is stopped\nb is stopped\n");
    assert_eq!(err(&output), "warren: there is no machine none: see `warren machine ls` (not_found)\n");
    let output = warren(&server, &["machine", "rm", "a", "b"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), "removed a\nremoved b\n"));

    let output = warren(&server, &["--json", "machine", "rm", "a", "none"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(document(&out(&output)), json!({"items": [{"machine": "a"}], "next": null}));
    assert_eq!(document(&err(&output))["code"], "not_found");
    let output = warren(&server, &["--json", "machine", "stop", "a"]);
    assert_eq!(document(&out(&output))["state"], "stopped", "one machine is one object");
    let output = warren(&server, &["--json", "machine", "rm", "none"]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""));
}

#[test]
fn an_empty_name_is_wrong_usage_and_nothing_is_sent() {
    let server = Fake::start();
    for args in [&["machine", "show", ""][..], &["network", "show", ""], &["machine", "rm", ""], &["logs", ""]] {
        let output = warren(&server, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", err(&output));
        assert_eq!(err(&output), "warren: a name or id is empty: write it out\n");
    }
    let output = warren(&server, &["exec", "", "--", "true"]);
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
}

#[test]
fn files_and_directories_go_in_and_come_out() {
    let server = Fake::start();
    let dir = tempfile::tempdir().unwrap();
    let site = dir.path().join("site");
    std::fs::create_dir_all(site.join("sub/empty")).unwrap();
    std::fs::write(site.join("index.html"), "<p>hello</p>").unwrap();
    std::fs::write(site.join("sub/a b?.bin"), vec![9u8; 300_000]).unwrap();
    let output = warren(&server, &["--json", "cp", site.to_str().unwrap(), "worker:/srv"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(document(&out(&output)), json!({"files": 2, "directories": 3, "skipped": 0, "bytes": 300_012}));

    let back = dir.path().join("back");
    let output = warren(&server, &["cp", "worker:/srv/site", back.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(std::fs::read(back.join("sub/a b?.bin")).unwrap(), vec![9u8; 300_000]);
    assert!(back.join("sub/empty").is_dir());

    let output = warren(&server, &["cp", "worker:/srv/site/index.html", "-"]);
    assert_eq!(out(&output), "<p>hello</p>");
    let output = fed(command(&server).args(["cp", "-", "worker:/srv/stream"]), b"streamed");
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let output = warren(&server, &["cp", "worker:/srv/stream", "other:/srv/copied"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(out(&warren(&server, &["cp", "other:/srv/copied", "-"])), "streamed");
    let output = warren(&server, &["cp", "worker:/none", "-"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_machine_that_names_files_outside_its_directory_writes_nothing() {
    let server = Fake::start();
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    let output = warren(&server, &["cp", "evil:/srv", inside.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(!dir.path().join("escaped").exists());
}

#[test]
fn completions_are_printed_without_a_server() {
    let output = bare().args(["completion", "bash"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(out(&output).contains("_warren"));
}
