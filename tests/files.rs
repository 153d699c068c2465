//! Files in both directions, and no path that leaves a machine.

mod common;

use common::{Server, text};
use serde_json::json;

#[test]
fn files_travel_both_ways_and_no_path_escapes() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("data");
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&source, &content).unwrap();
    server.ok(&["cp", source.to_str().unwrap(), "a:/root/data"]);
    let back = directory.path().join("back");
    server.ok(&["cp", "a:/root/data", back.to_str().unwrap()]);
    assert_eq!(std::fs::read(&back).unwrap(), content);
    assert_eq!(server.run(&["cp", "a:/root/data", "-"]).stdout, content);
    let output = server.run_with_input(&["cp", "-", "a:/root/stream"], b"streamed");
    assert!(output.status.success());
    assert_eq!(server.exec("a", "cat /root/stream"), "streamed");

    // What a link or dots point at is inside the machine, never on the host.
    let marker = directory.path().join("marker");
    std::fs::write(&marker, "host").unwrap();
    let path = marker.to_str().unwrap();
    server.exec("a", &format!("ln -s {path} /root/link; ln -s / /root/up"));
    for escape in [
        format!("a:{path}"),
        "a:/root/link".to_owned(),
        format!("a:/root/up{path}"),
        format!("a:/../../../../../..{path}"),
        format!("a:/proc/1/root{path}"),
        format!("a:/proc/self/root/../..{path}"),
    ] {
        let output = server.run(&["cp", &escape, "-"]);
        assert!(!text(&output.stdout).contains("host"), "{escape} left the machine");
        assert_eq!(output.status.code(), Some(1), "{escape}");
        // Writing there makes a file in the machine, or is refused; the host's stays as it is.
        server.run_with_input(&["cp", "-", &escape], b"overwritten");
        assert_eq!(std::fs::read_to_string(&marker).unwrap(), "host", "{escape} left the machine");
    }
    // Nothing hangs on what is not a file.
    server.exec("a", "mkfifo /root/fifo");
    assert_eq!(server.run(&["cp", "a:/root/fifo", "-"]).status.code(), Some(1));
    assert_eq!(server.run(&["cp", "a:/dev/zero", "-"]).status.code(), Some(1));
    assert_eq!(server.run_with_input(&["cp", "-", "a:/root/fifo"], b"x").status.code(), Some(1));
}

#[test]
fn directories_are_copied_with_what_is_in_them() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    server.ok(&["machine", "create", "b"]);
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    std::fs::create_dir_all(tree.join("deep/er")).unwrap();
    std::fs::write(tree.join("one"), "1").unwrap();
    std::fs::write(tree.join("deep/er/two"), "2").unwrap();
    server.ok(&["cp", tree.to_str().unwrap(), "a:/srv"]);
    assert_eq!(server.exec("a", "cat /srv/tree/one /srv/tree/deep/er/two"), "12");
    server.ok(&["cp", "a:/srv/tree", "b:/srv"]);
    assert_eq!(server.exec("b", "cat /srv/tree/one /srv/tree/deep/er/two"), "12");
    let back = directory.path().join("back");
    std::fs::create_dir(&back).unwrap();
    server.ok(&["cp", "b:/srv/tree", back.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(back.join("tree/deep/er/two")).unwrap(), "2");

    // What is left out is named, and the copy does not pass for a whole one.
    std::os::unix::fs::symlink("/nowhere", tree.join("dangling")).unwrap();
    let output = server.run(&["cp", tree.to_str().unwrap(), "a:/root"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("dangling"), "{}", text(&output.stderr));
    assert_eq!(server.exec("a", "cat /root/tree/one /root/tree/deep/er/two"), "12");
}

#[test]
fn every_file_operation_answers_and_refuses_by_its_code() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    let call = |method: &str, rest: &str, body: &str| {
        server.http(method, &format!("/v1/machines/a/files{rest}"), &[], body.as_bytes())
    };
    assert_eq!(call("POST", "/directories", r#"{"path":"/srv/x/y","parents":true}"#).0, 201);
    assert_eq!(call("PUT", "?path=/srv/x/y/f&mode=0600", "hello").0, 200);
    let (status, info) = call("GET", "/stat?path=/srv/x/y/f", "");
    assert_eq!((status, &info["size"]), (200, &json!(5)), "{info}");
    assert_eq!(server.exec("a", "stat -c '%a %U' /srv/x/y/f").trim(), "600 root");
    let (status, list) = call("GET", "/list?path=/srv/x", "");
    assert_eq!((status, list["items"].as_array().unwrap().len()), (200, 1), "{list}");

    let long = format!("?path=/{}", "x".repeat(4096));
    let rows: &[(&str, u16, &str, &str, &str)] = &[
        ("path_not_found", 404, "GET", "?path=/nowhere", ""),
        ("path_not_found", 404, "GET", "/stat?path=/nowhere/at/all", ""),
        ("path_not_found", 404, "GET", "/list?path=/nowhere", ""),
        ("path_not_found", 404, "DELETE", "?path=/nowhere", ""),
        ("path_not_found", 404, "PUT", "?path=/nowhere/f", "x"),
        ("path_not_found", 404, "POST", "/directories", r#"{"path":"/nowhere/at/all"}"#),
        ("path_conflict", 409, "GET", "?path=/srv", ""),
        ("path_conflict", 409, "GET", "/list?path=/srv/x/y/f", ""),
        ("path_conflict", 409, "PUT", "?path=/srv", "x"),
        ("path_conflict", 409, "PUT", "?path=/srv/x/y/f/g", "x"),
        ("path_conflict", 409, "DELETE", "?path=/srv/x", ""),
        ("path_conflict", 409, "POST", "/directories", r#"{"path":"/srv/x/y/f"}"#),
        ("path_denied", 403, "PUT", "?path=/run/warren/f", "x"),
        ("path_invalid", 422, "GET", "?path=relative", ""),
        ("path_invalid", 422, "GET", &long, ""),
        ("path_invalid", 422, "GET", "/stat?path=/a%00b", ""),
        ("invalid_query", 400, "GET", "", ""),
        ("invalid_query", 400, "GET", "?path=/srv&more=1", ""),
        ("invalid_query", 400, "PUT", "?path=/srv/f&mode=rw", "x"),
    ];
    for (code, status, method, rest, body) in rows {
        let (answered, problem) = call(method, rest, body);
        assert_eq!((&problem["code"], answered), (&json!(code), *status), "{method} {rest}: {problem}");
    }
    assert_eq!(call("DELETE", "?path=/srv/x&recursive=true", "").0, 204);
    assert_ne!(server.try_exec("a", "test -e /srv/x").0, 0);
    server.ok(&["machine", "stop", "a"]);
    assert_eq!(call("GET", "?path=/etc/hostname", "").1["code"], "machine_not_running");
}
