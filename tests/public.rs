//! Public previews, from the internet: what was mapped answers over HTTPS, and nothing else does.

mod common;

use std::cell::Cell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::{Options, Server, eventually, text};
use tempfile::TempDir;
use warren_lab::outside::HOST;
use warren_lab::pebble::Pebble;
use warren_lab::{Internet, Lab};
use warren_reconcile::crash;

const SOON: Duration = Duration::from_secs(30);
const SERVE: &str = include_str!("public/serve.py");
const SOCKET: &str = include_str!("public/socket.py");

/// A server that publishes, on an internet.
struct World {
    // Dropped in this order: the server before what it stands on.
    server: Server,
    folder: TempDir,
    internet: Internet,
}

/// What a request from the internet got.
#[derive(Debug, PartialEq)]
struct Got {
    /// 0 when there was no answer.
    status: u16,
    body: String,
}

impl World {
    /// With the server's own authority.
    fn new() -> Self {
        let world = Self::with(&[], |_, _| {});
        world.trust_authority();
        world
    }

    fn with(arguments: &[&str], prepare: impl FnOnce(&Internet, &mut Vec<String>)) -> Self {
        let lab = Lab::new();
        let internet = Internet::new(&lab);
        let host = internet.host(&lab, "host");
        let usual =
            ["--https-listen", "0.0.0.0:443", "--http-listen", "0.0.0.0:80", "--preview-suffix", "preview.example"];
        let mut all: Vec<String> = usual.iter().chain(arguments).map(|argument| (*argument).to_owned()).collect();
        prepare(&internet, &mut all);
        let server = Server::start_in(lab, host, Options { arguments: all, ..Options::default() });
        Self { server, folder: tempfile::tempdir().unwrap(), internet }
    }

    fn trust_authority(&self) {
        std::fs::write(self.root(), self.server.ok(&["domain", "ca"])).unwrap();
    }

    /// The root that clients trust.
    fn root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// A machine that says its name on port 8080.
    fn machine(&self, name: &str, more: &[&str]) {
        let create = ["machine", "create", name, "--port", "web=8080/http"];
        self.server.ok(&[&create, more].concat());
        self.serve(name, 8080);
    }

    fn serve(&self, machine: &str, port: u16) {
        let script =
            format!("cat > /root/serve.py; nohup python3 /root/serve.py {machine} {port} </dev/null >/root/log 2>&1 &");
        let started = self.server.run_with_input(&["exec", machine, "--", "sh", "-c", &script], SERVE.as_bytes());
        assert!(started.status.success(), "{}", text(&started.stderr));
        let listens = || self.server.reaches(machine, "127.0.0.1", port);
        assert!(eventually(SOON, listens), "{machine} does not listen");
    }

    fn map(&self, host: &str, to: &str) {
        self.server.ok(&["domain", "map", host, to]);
    }

    fn curl(&self, url: &str, more: &[&str]) -> Output {
        let authority = url.split('/').nth(2).unwrap();
        let (host, port) =
            authority.split_once(':').unwrap_or((authority, if url.starts_with("https") { "443" } else { "80" }));
        let mut command = Command::new("curl");
        command
            .args([
                "-sS",
                "--max-time",
                "30",
                "-w",
                "\n%{http_code}",
                "--resolve",
                &format!("{host}:{port}:{}", HOST[0]),
                "--cacert",
            ])
            .arg(self.root())
            .args(more)
            .arg(url);
        self.internet.namespace.enter(|| command.output()).unwrap()
    }

    fn get(&self, url: &str, more: &[&str]) -> Got {
        let answer = text(&self.curl(url, more).stdout);
        let (body, status) = answer.rsplit_once('\n').unwrap_or_default();
        Got { status: status.parse().unwrap_or(0), body: body.to_owned() }
    }

    /// Who answers under a name, over HTTPS.
    #[track_caller]
    fn who(&self, host: &str) -> String {
        let got = self.get(&format!("https://{host}/"), &[]);
        assert_eq!(got.status, 200, "{got:?}\n{}\n{}", self.server.log(), self.edge_log());
        got.body.lines().next().unwrap_or_default().to_owned()
    }

    fn edge_log(&self) -> String {
        std::fs::read_to_string(self.server.data_dir().join("edge.log")).unwrap_or_default()
    }

    /// Opens a WebSocket under a name.
    fn socket(&self, host: &str) -> Socket {
        let mut command = Command::new("python3");
        command.args(["-c", SOCKET, host, HOST[0]]).arg(self.root());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = self.internet.namespace.enter(|| command.spawn()).unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut socket = Socket { child, said };
        assert_eq!(socket.says(), "open");
        socket
    }
}

struct Socket {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Socket {
    fn says(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn echoes(&mut self) -> bool {
        writeln!(self.child.stdin.as_mut().unwrap(), "a word").unwrap();
        self.says() == "echo"
    }

    /// Waits until the other end closes it; not for ever.
    fn ends(mut self) -> bool {
        drop(self.child.stdin.take());
        self.says() == "cut"
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn one_port_of_one_machine_is_public_until_it_is_unmapped_and_nothing_else_is() {
    let world = World::new();
    let server = &world.server;
    world.machine("web", &[]);
    world.serve("web", 9090);
    world.machine("db", &[]);
    // What is public is not the policy's business: mapping is an act of its own.
    server.apply("networks: {default: {intra: deny}}");
    assert_eq!(world.get("https://app.preview.example/", &[]).status, 0, "nothing is public by default");
    world.map("app.preview.example", "web:8080");
    assert_eq!(world.who("app.preview.example"), "web");

    let over_ipv6 =
        world.get("https://app.preview.example/", &["--resolve", "app.preview.example:443:[2606:2800:220::2]"]);
    assert!(over_ipv6.body.contains("x-forwarded-for: 2606:2800:220::1\n"), "{over_ipv6:?}");
    let over_http2 = world.get("https://app.preview.example/page?x=1", &["--http2"]);
    assert!(over_http2.body.contains("GET /page?x=1 HTTP/1.1\n"), "{over_http2:?}");
    assert!(over_http2.body.contains("x-forwarded-for: 93.184.216.1\n"), "{over_http2:?}");
    let traffic = &server.json(&["domain", "show", "app.preview.example"])["traffic"];
    assert_eq!((traffic["requests"].as_u64(), traffic["refused"].as_u64()), (Some(3), Some(0)), "{traffic}");
    let redirected = text(&world.curl("http://app.preview.example/page", &["-i"]).stdout);
    assert!(redirected.contains(" 308 ") && redirected.contains("https://app.preview.example/page"), "{redirected}");

    for elsewhere in
        ["https://app.preview.example:9090/", "http://app.preview.example:8080/", "http://app.preview.example:9090/"]
    {
        assert_eq!(world.get(elsewhere, &[]).status, 0, "{elsewhere}");
    }
    for (host, to) in [("a", "web:9090"), ("b", "db:22")] {
        server.refused_as("port_not_declared", &["domain", "map", &format!("{host}.preview.example"), to]);
    }
    server.refused_as("domain_not_verified", &["domain", "map", "app.elsewhere.example", "web:8080"]);
    // Whose a name is has an answer of its own, for programs too.
    let claimed = server.run(&["domain", "verify", "app.elsewhere.example", "--json"]);
    let claim: serde_json::Value = serde_json::from_slice(&claimed.stdout).unwrap();
    assert_eq!((claimed.status.code(), &claim["state"]), (Some(4), &"pending".into()), "{claim}");
    let free = server.run(&["domain", "verify", "app.preview.example"]);
    assert_eq!(free.status.code(), Some(1));
    assert!(text(&free.stderr).contains("no TXT record is needed"), "{}", text(&free.stderr));
    assert_eq!(world.get("https://db.preview.example/", &[]).status, 0, "the handshake is refused");
    assert_eq!(world.get("http://db.preview.example/", &[]).status, 404);
    let shown = server.json(&["domain", "ls"]);
    assert_eq!(shown["items"].as_array().unwrap().len(), 1);
    let mut socket = world.socket("app.preview.example");
    assert!(socket.echoes());
    server.ok(&["domain", "unmap", "app.preview.example"]);
    assert!(socket.ends());
    assert_eq!(world.get("https://app.preview.example/", &[]).status, 0);
    assert_eq!(world.get("http://app.preview.example/", &[]).status, 404);
    // Nothing is left by which the network could be reached.
    world.map("app.preview.example", "web:8080");
    assert_eq!(world.who("app.preview.example"), "web");
}

#[test]
fn no_host_header_leads_to_the_control_api_or_to_another_machine() {
    let world = World::new();
    let server = &world.server;
    world.machine("web", &["--port", "api=7070/http"]);
    let api = server.url().trim_start_matches("http://").to_owned();
    let port = api.rsplit(':').next().unwrap().to_owned();
    server.ok(&["machine", "set", "web", "--port", "web=8080/http", "--port", &format!("api={port}/tcp")]);
    world.map("app.preview.example", "web:8080");
    world.map("back.preview.example", &format!("web:{port}"));

    // The port is the API's, and the machine is not the host.
    let got = world.get("https://back.preview.example/v1/whoami", &[]);
    assert_eq!(got.status, 502, "{got:?}");
    for host in ["127.0.0.1", "localhost", &api, "api.sock", "10.0.0.1", "gateway.internal", "web.vm.internal:8080", ""]
    {
        let header = format!("Host: {host}");
        let plain = world.get("http://app.preview.example/v1/whoami", &["-H", &header]);
        assert!([400, 404].contains(&plain.status), "{host}: {plain:?}");
        let secure = world.get("https://app.preview.example/v1/whoami", &["--http1.1", "-H", &header]);
        assert!([400, 404, 421].contains(&secure.status), "{host}: {secure:?}");
        assert!(!secure.body.contains("account") && !plain.body.contains("account"), "{secure:?} {plain:?}");
    }
    for target in [format!("http://{api}/v1/whoami"), "http://back.preview.example/".to_owned()] {
        let got = world.get("https://app.preview.example/", &["--http1.1", "--request-target", &target]);
        assert!([400, 404, 421].contains(&got.status), "{target}: {got:?}");
    }
    let connect = world.get("https://app.preview.example/", &["--http1.1", "-X", "CONNECT", "--request-target", &api]);
    assert!([400, 404, 405, 421].contains(&connect.status), "{connect:?}");
    assert_eq!(world.who("app.preview.example"), "web");
    let listens_for_the_public = world.get(&format!("http://app.preview.example:{port}/v1/whoami"), &[]);
    assert_eq!(listens_for_the_public.status, 0, "{listens_for_the_public:?}");
}

#[test]
fn previews_go_on_without_the_daemon_and_come_back_with_another_edge() {
    let mut world = World::new();
    world.machine("web", &[]);
    world.map("app.preview.example", "web:8080");
    assert_eq!(world.who("app.preview.example"), "web");
    let mut socket = world.socket("app.preview.example");

    world.server.kill();
    // More than the machine's sockets are, one after the other: each is used again.
    for _ in 0..100 {
        assert_eq!(world.who("app.preview.example"), "web");
    }
    assert!(socket.echoes());

    world.server.up().unwrap();
    assert!(socket.echoes(), "another daemon leaves connections alone");
    assert_eq!(world.who("app.preview.example"), "web");
    let before = world.server.log().matches("what is public was handed to the edge").count();
    world.server.restart();
    assert_eq!(world.who("app.preview.example"), "web");
    let handed = || world.server.log().matches("what is public was handed to the edge").count();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(handed(), before, "the edge has it already");

    let edge = world.server.edge();
    world.server.kill_edge();
    assert!(socket.ends());
    let is_back = || world.get("https://app.preview.example/", &[]).status == 200;
    assert!(eventually(SOON, is_back), "{}", world.server.log());
    assert_ne!(world.server.edge(), edge);

    world.server.ok(&["domain", "unmap", "app.preview.example"]);
    world.server.restart();
    assert_eq!(world.get("https://app.preview.example/", &[]).status, 0);
    world.map("app.preview.example", "web:8080");
    assert_eq!(world.who("app.preview.example"), "web");
    let left = world.server.uninstall();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_crash_on_the_way_to_what_is_public_leaves_it_public_or_not_and_nothing_between() {
    let mut world = World::new();
    world.machine("web", &[]);
    let usual = world.server.options();
    for (index, point) in crash::public_points().into_iter().enumerate() {
        let host = format!("at-{index}.preview.example");
        // Another edge, which has nothing yet, so that every step is taken.
        world.server.kill();
        world.server.kill_edge();
        let environment = vec![(crash::VARIABLE.to_owned(), point.clone())];
        world.server.set_options(Options { environment, ..usual.clone() });
        if world.server.up().is_ok() {
            // It may have died already, or while it is asked.
            world.server.run(&["domain", "map", &host, "web:8080"]);
            assert!(world.server.wait_for_end(SOON), "{point} was never reached\n{}", world.server.log());
        }
        world.server.set_options(usual.clone());
        world.server.up().unwrap();
        let mapped = world.server.run(&["domain", "show", &host]).status.success();
        let served = || (world.get(&format!("https://{host}/"), &[]).status == 200) == mapped;
        assert!(eventually(SOON, served), "{point}: mapped is {mapped}\n{}", world.server.log());
        if !mapped {
            world.map(&host, "web:8080");
        }
        assert_eq!(world.who(&host), "web", "{point}");
    }
}

#[test]
fn two_accounts_with_the_same_addresses_are_not_mixed_up() {
    let mut world = World::new();
    for account in ["one", "two"] {
        world.server.act_as_new(account);
        world.server.ok(&["network", "create", "lab", "--cidr", "10.77.0.0/24"]);
        let name = format!("of-{account}");
        world.machine(&name, &["--network", "lab", "--ip", "10.77.0.10"]);
        world.map(&format!("{account}.preview.example"), &format!("{name}:8080"));
        world.server.refused_as("domain_taken", &["domain", "map", "one.preview.example", &format!("{name}:8080")]);
    }
    for _ in 0..5 {
        assert_eq!(world.who("one.preview.example"), "of-one");
        assert_eq!(world.who("two.preview.example"), "of-two");
    }
    let crossed = world.get("https://two.preview.example/", &["--http1.1", "-H", "Host: one.preview.example"]);
    assert_eq!(crossed.status, 421, "{crossed:?}");
    world.server.refused_as("not_found", &["domain", "unmap", "one.preview.example"]);
    assert_eq!(world.who("one.preview.example"), "of-one");
}

#[test]
fn a_machine_that_stops_keeps_its_name_and_one_that_goes_takes_it_along() {
    let world = World::new();
    let server = &world.server;
    server.ok(&["network", "create", "lab", "--cidr", "10.77.0.0/24"]);
    world.machine("web", &["--network", "lab", "--ip", "10.77.0.10"]);
    world.map("app.preview.example", "web:8080");
    assert_eq!(world.who("app.preview.example"), "web");
    server.ok(&["machine", "stop", "web"]);
    assert_eq!(world.get("https://app.preview.example/", &[]).status, 502);
    server.ok(&["machine", "start", "web"]);
    world.serve("web", 8080);
    assert_eq!(world.who("app.preview.example"), "web");

    server.ok(&["machine", "rm", "web"]);
    assert_eq!(world.get("https://app.preview.example/", &[]).status, 0);
    assert_eq!(server.json(&["domain", "ls"])["items"], serde_json::json!([]));
    // Whoever has the address next has not inherited the name.
    world.machine("other", &["--network", "lab", "--ip", "10.77.0.10"]);
    assert_eq!(world.get("https://app.preview.example/", &[]).status, 0);
    world.map("other.preview.example", "other:8080");
    assert_eq!(world.who("other.preview.example"), "other");
    server.ok(&["machine", "rm", "other"]);
    server.ok(&["network", "rm", "lab"]);
    let left = world.server.json(&["network", "ls"]);
    assert!(!left.to_string().contains("lab"), "{left}");
}

#[test]
fn a_network_that_somebody_took_away_is_reached_again_once_it_is_mended() {
    let world = World::new();
    world.machine("web", &[]);
    world.map("app.preview.example", "web:8080");
    assert_eq!(world.who("app.preview.example"), "web");
    let router = format!("warren-{}-n1", world.server.installation());
    let is_back = || world.get("https://app.preview.example/", &[]).body.starts_with("web\n");
    // Its sockets, those of the edge among them, keep the namespace itself alive.
    assert!(Command::new("ip").args(["netns", "delete", &router]).status().unwrap().success());
    let is_mended = || Path::new("/run/netns").join(&router).exists();
    assert!(eventually(Duration::from_secs(60), is_mended), "{}", world.server.log());
    assert!(eventually(Duration::from_secs(60), is_back), "{}", world.server.log());
}

#[test]
fn more_at_once_than_there_are_sockets_at_first_are_all_served() {
    let world = World::new();
    world.machine("web", &[]);
    world.map("app.preview.example", "web:8080");
    // One source has an eighth of it.
    world.server.ok(&["domain", "set", "app.preview.example", "--concurrent", "1024"]);
    let tries = Cell::new(0);
    let together = |count: usize| {
        tries.set(tries.get() + 1);
        let url = format!("https://app.preview.example/together/{count}/{}", tries.get());
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..count).map(|_| scope.spawn(|| world.get(&url, &["--http1.1"]).status)).collect();
            asking.into_iter().all(|asking| asking.join().unwrap() == 200)
        })
    };
    assert!(together(50), "{}", world.edge_log());
    // The daemon sees that most of them were in use, and adds some.
    assert!(eventually(Duration::from_secs(60), || together(100)), "{}", world.edge_log());
}

#[test]
fn a_port_that_cannot_be_had_is_told_and_had_later() {
    let lab = Lab::new();
    let internet = Internet::new(&lab);
    let host = internet.host(&lab, "host");
    let occupant = host.enter(|| TcpListener::bind("0.0.0.0:443")).unwrap();
    let arguments = ["--https-listen", "0.0.0.0:443", "--preview-suffix", "preview.example"].map(str::to_owned).into();
    let server = Server::start_in(lab, host, Options { arguments, ..Options::default() });
    let world = World { server, folder: tempfile::tempdir().unwrap(), internet };
    world.machine("web", &[]);
    let problem = world.server.refused(&["domain", "map", "app.preview.example", "web:8080"]);
    assert_eq!(problem["code"], "ingress_unavailable", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("0.0.0.0:443"), "{problem}");
    drop(occupant);
    let maps = || world.server.run(&["domain", "map", "app.preview.example", "web:8080"]).status.success();
    assert!(eventually(SOON, maps));
    world.trust_authority();
    assert_eq!(world.who("app.preview.example"), "web");
}

#[test]
fn the_operators_own_certificate_is_used_and_read_again_when_it_changes() {
    let files = tempfile::tempdir().unwrap();
    let write = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        std::fs::write(files.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(files.path().join("chain.pem"), made.cert.pem()).unwrap();
        made.cert.pem()
    };
    let first = write(&["*.preview.example"]);
    let path = |name: &str| files.path().join(name).display().to_string();
    let world = World::with(&["--tls-cert", &path("chain.pem"), "--tls-key", &path("key.pem")], |_, _| {});
    let trust = |pem: &str| std::fs::write(world.root(), pem).unwrap();
    world.machine("web", &[]);
    world.map("app.preview.example", "web:8080");
    world.map("a.b.preview.example", "web:8080");
    trust(&first);
    assert_eq!(world.who("app.preview.example"), "web");
    // A wildcard is one label: the other name's comes from the server's authority.
    world.trust_authority();
    assert_eq!(world.who("a.b.preview.example"), "web");
    assert_eq!(world.get("https://app.preview.example/", &[]).status, 0, "another authority");

    let second = write(&["*.preview.example"]);
    trust(&second);
    let is_new = || world.get("https://app.preview.example/", &[]).status == 200;
    assert!(eventually(Duration::from_secs(60), is_new), "{}", world.server.log());
    std::fs::write(files.path().join("chain.pem"), "spoiled").unwrap();
    let certificate = || world.server.json(&["domain", "show", "app.preview.example"])["certificate"].clone();
    let is_told = || certificate()["detail"].as_str().is_some_and(|detail| detail.contains("chain.pem"));
    assert!(eventually(Duration::from_secs(60), is_told), "{}", certificate());
    assert_eq!((certificate()["state"].as_str(), is_new()), (Some("valid"), true), "the one before stays");
}

#[test]
fn certificates_are_had_from_an_authority_by_acme_and_kept() {
    let mut pebble = None;
    let mut world = World::with(&["--acme-email", "ops@example.com"], |internet, arguments| {
        let started = Pebble::on(internet);
        arguments.extend(["--acme-directory".to_owned(), started.directory(), "--acme-ca".to_owned()]);
        arguments.push(started.ca_file().display().to_string());
        pebble = Some(started);
    });
    let pebble = pebble.unwrap();
    std::fs::write(world.root(), pebble.root(Some(&world.internet))).unwrap();
    world.machine("web", &[]);
    for host in ["app", "shop", "blog"] {
        world.map(&format!("{host}.preview.example"), "web:8080");
    }
    let state = |host: &str| world.server.json(&["domain", "show", host])["certificate"]["state"].clone();
    for host in ["app.preview.example", "shop.preview.example", "blog.preview.example"] {
        let is_valid = || state(host) == "valid";
        assert!(eventually(Duration::from_secs(60), is_valid), "{}\n{}", world.server.log(), pebble.log());
        assert!(eventually(SOON, || world.get(&format!("https://{host}/"), &[]).status == 200), "{}", pebble.log());
    }
    assert!(!world.server.run(&["domain", "ca"]).status.success(), "there is no authority of the server's own");
    let issued = |pebble: &Pebble| pebble.log().matches("Issued certificate").count();
    let before = issued(&pebble);
    assert_eq!(before, 3, "{}", pebble.log());
    let found = files_below(&world.server.data_dir().join("public"));
    assert!(found.iter().any(|path| path.ends_with("account.json")), "{found:?}");
    world.server.restart();
    assert_eq!(world.who("app.preview.example"), "web");
    assert!(eventually(SOON, || world.server.json(&["domain", "show", "app.preview.example"])["certificate"]["state"]
        == "valid"));
    assert_eq!(issued(&pebble), before, "what was issued is kept");
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
