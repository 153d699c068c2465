//! `warren vpn` against a small server and, where links are made, in a network namespace with a small `wg-quick`.
#![cfg(target_os = "linux")]

#[allow(dead_code)]
mod fake;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fake::Fake;
use fake::run::{bare, document, err, out, warren};
use fake::vpn::KEY;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn sessions(server: &Fake) -> Vec<Value> {
    let listed = document(&out(&warren(server, &["vpn", "ls", "--json"])));
    listed["items"].as_array().unwrap().clone()
}

#[test]
fn what_open_prints_is_the_configuration_and_nothing_else() {
    let server = Fake::start();
    let output = warren(&server, &["vpn", "open", "agents", "--ttl", "8h", "--idle", "10m", "--only", "worker:8080"]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert_eq!(out(&output), "[Interface]\nPrivateKey = c2VjcmV0\nAddress = 192.168.10.5/32\n");
    assert!(err(&output).contains("private key") && !err(&output).contains("c2VjcmV0"), "{}", err(&output));
    let open = sessions(&server);
    let only = json!({"machine": "worker", "port": 8080});
    assert_eq!(open[0]["asked"], json!({"ttl_seconds": 28_800, "idle_seconds": 600, "only": only}));

    let output = warren(&server, &["vpn", "open", "agents", "--public-key", KEY, "--dns"]);
    assert!(err(&output).contains("Put your private key"), "{}", err(&output));
    assert_eq!(sessions(&server)[1]["asked"], json!({"public_key": KEY, "dns": true}));

    let output = warren(&server, &["vpn", "open", "agents", "--json"]);
    assert_eq!((document(&out(&output))["client_private_key"].as_str(), err(&output).as_str()), (Some("c2VjcmV0"), ""));
    for wrong in [&["--public-key", "x"][..], &["--only", "worker:web"], &["--ttl", "soon"], &["--config-dir", "/x"]] {
        let output = warren(&server, &[&["vpn", "open", "agents"], wrong].concat());
        assert_eq!((output.status.code(), out(&output).as_str()), (Some(2), ""), "{wrong:?}");
    }
    let output = warren(&server, &["vpn", "open", "closed"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("0.0.0.0:51820 is in use (vpn_unavailable)"), "{}", err(&output));
}

#[test]
fn a_session_whose_configuration_nobody_reads_is_closed_again() {
    let server = Fake::start();
    let mut child = fake::run::command(&server)
        .args(["vpn", "open", "agents"])
        .stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(sessions(&server), Vec::<Value>::new());
}

#[test]
fn sessions_are_listed_and_closed_one_or_several() {
    let server = Fake::start();
    for _ in 0..3 {
        warren(&server, &["vpn", "open", "agents"]);
    }
    let table = out(&warren(&server, &["vpn", "ls", "agents"]));
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("anna") && table.contains("everything"), "{table}");
    let ids: Vec<_> = sessions(&server).iter().map(|session| session["id"].as_str().unwrap().to_owned()).collect();
    let output = warren(&server, &["vpn", "close", &ids[0]]);
    assert_eq!(out(&output), format!("closed {}\n", ids[0]));
    let output = warren(&server, &["vpn", "close", &ids[0], &ids[1], "--json"]);
    assert_eq!(output.status.code(), Some(1), "one of them was gone");
    assert_eq!(document(&out(&output))["items"], json!([{"session": ids[1]}]));
    assert_eq!(sessions(&server).len(), 1);
}

/// A network namespace of its own, a route in it, and a `wg-quick` that makes a link that carries nothing.
struct Laptop {
    server: Fake,
    directory: tempfile::TempDir,
}

/// Writes down what it was asked, and what was in the file. Fails where `fails` is beside it.
const WG_QUICK: &str = r#"#!/bin/sh
here=$(dirname "$0")
link=$(basename "$2" .conf)
echo "$1 $link $(stat -c %a "$2")" >> "$here/asked"
case $1 in
up)
    cp "$2" "$here/config"
    ip link add "$link" type veth peer name "p$link" || exit 1
    if [ -e "$here/fails" ]; then echo "RTNETLINK answers: Operation not supported"; exit 1; fi ;;
down) ip link del "$link" ;;
esac
"#;

impl Laptop {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let server = Fake::start_unix(&directory.path().join("api.sock"));
        let laptop = Self { server, directory };
        laptop.program("wg", "#!/bin/sh\n");
        laptop.program("wg-quick", WG_QUICK);
        laptop
    }

    /// Writes a program. By another process: what this one starts meanwhile would have the file open, too, and what is
    /// open to be written is not run (ETXTBSY, execve(2)).
    fn program(&self, name: &str, text: &str) {
        let mut write = Command::new("sh");
        write.args(["-c", "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"", "sh", text]).arg(self.path(name));
        assert!(write.status().unwrap().success());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The command in the namespace, after these commands of a shell. What it leaves there is written to `left`.
    fn vpn(&self, before: &str, args: &[&str]) -> Command {
        let mut path = std::ffi::OsString::from(self.directory.path());
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--net", "sh", "-c"]);
        let script = format!(
            "{before}\n\"$@\" & child=$!; echo $child > {0}/pid; wait $child; status=$?\nip -o link > {0}/left; exit $status",
            self.directory.path().display()
        );
        command.arg(script).arg("sh").arg(bare().get_program()).args(["vpn", "up"]).args(args);
        command.env("PATH", path).env("WARREN_URL", &self.server.url).env("WARREN_API_KEY", "wk_test");
        command.env_remove("WARREN_DATA_DIR").env("TMPDIR", self.directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Waits until the command has joined; its line.
    fn joined(&self, child: &mut Child) -> String {
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }

    fn end(&self, signal: Signal) {
        kill(Pid::from_raw(self.read("pid").trim().parse().unwrap()), signal).unwrap();
    }

    /// Nothing is left: no link, no file, no session.
    fn assert_clean(&self) {
        assert!(!self.read("left").contains("wg-"), "{}", self.read("left"));
        assert_eq!(sessions(&self.server), Vec::<Value>::new());
        let left = std::fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("warren-vpn-")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn up_lasts_until_it_is_told_to_end_and_leaves_no_trace() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let laptop = Laptop::new();
        let mut child = laptop.vpn("", &["agents"]).spawn().unwrap();
        let line = laptop.joined(&mut child);
        assert!(line.starts_with("joined agents as 192.168.10.5 and fd12:3456:789a:1::5 over wg-00000001"), "{line}");
        let open = sessions(&laptop.server);
        let config = laptop.read("config");
        // The server got the public key alone, and is not taken at its word for the rest.
        let public = open[0]["asked"]["public_key"].as_str().unwrap();
        assert!(
            config.contains("PrivateKey = ") && !config.contains("c2VjcmV0") && !config.contains(public),
            "{config}"
        );
        assert!(config.contains("AllowedIPs = 192.168.10.0/24, fd12:3456:789a:1::/64\n"), "{config}");
        laptop.end(signal);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{signal} {}", err(&output));
        assert_eq!(laptop.read("asked"), "up wg-00000001 600\ndown wg-00000001 600\n");
        laptop.assert_clean();
    }
}

#[test]
fn up_ends_with_its_session() {
    for (network, status, said) in [("ended", 0, "has expired"), ("short", 1, "the session was closed")] {
        let laptop = Laptop::new();
        let output = laptop.vpn("", &[network, "--json"]).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{}", err(&output));
        assert!(err(&output).contains(said), "{}", err(&output));
        assert_eq!(document(&out(&output))["interface"], "wg-00000001");
        assert!(laptop.read("asked").ends_with("down wg-00000001 600\n"), "{}", laptop.read("asked"));
        laptop.assert_clean();
    }
}

#[test]
fn up_names_the_routes_that_are_in_the_way_and_offers_the_ula() {
    let laptop = Laptop::new();
    let route = "ip link add corp0 type veth peer name corp1 && ip addr add 192.168.0.9/16 dev corp0 && ip link set corp0 up || exit 9";
    let output = laptop.vpn(route, &["agents"]).output().unwrap();
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""), "{}", err(&output));
    assert!(err(&output).contains("192.168.10.0/24 of network agents overlaps"), "{}", err(&output));
    assert!(err(&output).contains("192.168.0.0/16 on corp0") && err(&output).contains("--ula"), "{}", err(&output));
    assert_eq!(laptop.read("asked"), "");
    laptop.assert_clean();

    let mut child = laptop.vpn(route, &["agents", "--ula"]).spawn().unwrap();
    assert!(laptop.joined(&mut child).contains("as fd12:3456:789a:1::5 over"));
    assert!(!laptop.read("config").contains("192.168."), "{}", laptop.read("config"));
    laptop.end(Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    laptop.assert_clean();
}

#[test]
fn whatever_fails_is_taken_back() {
    let laptop = Laptop::new();
    std::fs::write(laptop.path("fails"), "").unwrap();
    let output = laptop.vpn("", &["agents"]).output().unwrap();
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""), "{}", err(&output));
    let said = err(&output);
    assert!(said.contains("`wg-quick up` failed") && said.contains("install wireguard-go"), "{said}");
    assert_eq!(laptop.read("asked"), "up wg-00000001 600\ndown wg-00000001 600\n");
    laptop.assert_clean();

    // A configuration of that name is somebody else's.
    let laptop = Laptop::new();
    let kept = laptop.path("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(kept.join("wg-00000001.conf"), "theirs").unwrap();
    let output = laptop.vpn("", &["agents", "--config-dir", kept.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert_eq!(laptop.read("kept/wg-00000001.conf"), "theirs");
    laptop.assert_clean();
}

#[test]
fn without_wg_quick_it_is_said_what_to_install() {
    let server = Fake::start();
    let empty = tempfile::tempdir().unwrap();
    let mut command = fake::run::command(&server);
    let output = command.args(["vpn", "up", "agents"]).env("PATH", Path::new(empty.path())).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("wireguard-tools"), "{}", err(&output));
    assert_eq!(sessions(&server), Vec::<Value>::new());
}
