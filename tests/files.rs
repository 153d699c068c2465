//! Files in both directions, and no path that leaves a machine.

mod common;

use common::{Server, text};

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
    ] {
        let output = server.run(&["cp", &escape, "-"]);
        assert!(!text(&output.stdout).contains("host"), "{escape} left the machine");
        assert_eq!(output.status.code(), Some(1), "{escape}");
    }
    // Nothing hangs on what is not a file.
    server.exec("a", "mkfifo /root/fifo");
    assert_eq!(server.run(&["cp", "a:/root/fifo", "-"]).status.code(), Some(1));
    assert_eq!(server.run(&["cp", "a:/dev/zero", "-"]).status.code(), Some(1));
}
