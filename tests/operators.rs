//! Operators in a network, with the tools that they have: `wg-quick` on a laptop behind an address translator.

mod common;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use common::{Options, Server, eventually};
use jiff::Timestamp;
use serde_json::Value;
use warren_lab::Lab;
use warren_lab::laptop::{Laptop, SERVER, TRANSLATED, Tunnel};

const SOON: Duration = Duration::from_secs(30);

struct World {
    server: Server,
    laptop: Laptop,
}

impl World {
    fn new() -> Self {
        let lab = Lab::new();
        let host = lab.namespace("host");
        let laptop = Laptop::new(&lab, &host);
        let arguments = vec!["--vpn-endpoint".to_owned(), format!("{SERVER}:51820")];
        let options = Options { arguments, ..Options::default() };
        Self { server: Server::start_in(lab, host, options), laptop }
    }

    /// A machine that serves a page on the ports 8080 and 9090 of both families.
    fn machine(&self, name: &str, network: &str) -> [String; 2] {
        let made = self.server.json(&["machine", "create", name, "--network", network]);
        self.server.serve(name, name);
        self.server.exec(name, "cd /srv/www && nohup python3 -m http.server 9090 --bind :: >/dev/null 2>&1 &");
        ["private_ip", "private_ip6"].map(|key| made[key].as_str().unwrap().to_owned())
    }

    /// Opens a session, and what stock tools make of it.
    fn join(&self, arguments: &[&str]) -> (String, Tunnel<'_>) {
        let opened = self.server.json(&[&["vpn", "open"], arguments].concat());
        (opened["session_id"].as_str().unwrap().to_owned(), up(&self.laptop, &opened))
    }

    fn fetch(&self, address: &str, port: u16) -> Option<String> {
        fetch(&self.laptop, address, port)
    }

    /// Packets that the network's router sent to operators.
    fn sent(&self) -> u64 {
        let counter = format!("/sys/class/net/w{}o/statistics/tx_packets", self.server.installation());
        common::text(&self.server.in_router(2, &["cat", &counter]).stdout).trim().parse().unwrap()
    }

    fn session(&self, id: &str) -> Option<Value> {
        session(&self.server, id)
    }
}

/// What listens on the laptop, on one port of every address of both families.
struct Listening {
    port: u16,
    _tcp: TcpListener,
    udp: UdpSocket,
}

impl Listening {
    fn new(world: &World) -> Self {
        world.laptop.namespace.enter(|| {
            let tcp = TcpListener::bind("[::]:0").unwrap();
            let port = tcp.local_addr().unwrap().port();
            let udp = UdpSocket::bind(("::", port)).unwrap();
            udp.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            Self { port, _tcp: tcp, udp }
        })
    }

    /// Of a connection, a datagram and an echo request that a machine sends to each address, those that arrive. All of
    /// them at the same time, as what is refused takes as long as it is waited for.
    fn reached(&self, world: &World, machine: &str, addresses: &[String; 2]) -> [[bool; 3]; 2] {
        std::thread::scope(|scope| {
            let asking = addresses.each_ref().map(|address| {
                let connects = scope.spawn(move || world.server.reaches(machine, address, self.port));
                let ping = format!("ping -n -c 1 -W 1 {address}");
                let is_answered = scope.spawn(move || world.server.try_exec(machine, &ping).0 == 0);
                (address, connects, is_answered)
            });
            let mut send = "import socket".to_owned();
            for address in addresses {
                let family = if address.contains(':') { "AF_INET6" } else { "AF_INET" };
                let to = format!("(b'{address}', ('{address}', {}))", self.port);
                send.push_str(&format!("; socket.socket(socket.{family}, socket.SOCK_DGRAM).sendto{to}"));
            }
            world.server.exec(machine, &format!("python3 -c \"{send}\""));
            let (mut heard, mut buffer) = (Vec::new(), [0; 64]);
            while heard.len() < addresses.len()
                && let Ok(length) = self.udp.recv(&mut buffer)
            {
                heard.push(common::text(&buffer[..length]));
            }
            asking.map(|(address, connects, is_answered)| {
                [connects.join().unwrap(), heard.contains(address), is_answered.join().unwrap()]
            })
        })
    }
}

#[test]
fn an_operator_behind_a_translator_is_a_member_until_the_session_is_closed() {
    let world = World::new();
    world.server.ok(&["network", "create", "vm", "--cidr", "10.0.0.0/16"]);
    let [ipv4, ipv6] = world.machine("web", "vm");
    assert_eq!(world.fetch(&ipv4, 8080), None, "nobody is in the network before");
    let (id, tunnel) = world.join(&["vm"]);
    assert_eq!(world.fetch(&ipv4, 8080).as_deref(), Some("web"));
    assert_eq!(world.fetch(&ipv6, 8080).as_deref(), Some("web"));
    let session = world.session(&id).unwrap();
    assert_eq!(session["private_ip"], "10.0.5.10");
    assert!(session["status"]["endpoint"].as_str().unwrap().starts_with(&format!("{TRANSLATED}:")), "{session}");
    assert!(session["status"]["traffic"]["received_bytes"].as_u64().unwrap() > 0, "{session}");

    // A large page needs what the path allows to be found out, in both directions.
    world.server.exec("web", "cd /srv/www && head -c 3000000 /dev/urandom > large && md5sum < large > sum");
    let directory = tempfile::tempdir().unwrap();
    let large = directory.path().join("large");
    world.laptop.namespace.run(&format!("curl -s -m 20 -o {} http://{ipv4}:8080/large", large.display()));
    let sum = world.laptop.namespace.run(&format!("md5sum {}", large.display()));
    let expected = world.server.exec("web", "cat /srv/www/sum");
    assert_eq!(sum.split(' ').next(), expected.split(' ').next());

    // A connection that is open when the session is closed.
    let before = world.sent();
    let download = format!("curl -s -m 60 --limit-rate 50k -o /dev/null http://{ipv4}:8080/large");
    let download = world.laptop.namespace.spawn(&download);
    assert!(eventually(SOON, || world.sent() > before + 20), "the download is not under way");
    world.server.ok(&["vpn", "close", &id]);
    let closed = world.sent();
    assert_eq!(world.fetch(&ipv4, 8080), None);
    assert_eq!(world.sent(), closed, "packets still go to somebody who left");
    assert!(world.session(&id).is_none());
    drop(download);
    tunnel.down().unwrap();

    let events = world.server.json(&["events"]);
    let kinds: Vec<&str> =
        events["items"].as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"session_opened") && kinds.contains(&"session_closed"), "{kinds:?}");
    assert!(!kinds.contains(&"drift_repaired"), "{events:#}");
    let audit = world.server.json(&["audit", "log"]).to_string();
    assert!(audit.contains("session.open") && audit.contains("session.close"), "{audit}");
    for secret in ["PrivateKey", "client_private_key"] {
        assert!(!audit.contains(secret) && !world.server.log().contains(secret));
    }
}

#[test]
fn a_session_outlives_the_daemon_and_the_edge() {
    let mut world = World::new();
    world.server.ok(&["network", "create", "vm", "--cidr", "10.0.0.0/16"]);
    let [ipv4, _] = world.machine("web", "vm");
    let opened = world.server.json(&["vpn", "open", "vm"]);
    let id = opened["session_id"].as_str().unwrap();
    let tunnel = up(&world.laptop, &opened);
    let passes = || fetch(&world.laptop, &ipv4, 8080).as_deref() == Some("web");
    assert!(passes());
    let received = |server: &Server| {
        let listed = session(server, id).unwrap();
        listed["status"]["traffic"]["received_packets"].as_u64().unwrap()
    };
    let before = received(&world.server);
    world.server.kill();
    assert!(passes(), "without a daemon");
    world.server.up().unwrap();
    assert!(passes(), "with the next one");
    assert!(received(&world.server) > before, "another tunnel would have counted from nothing");

    // The edge is what has the keys of the tunnel; WireGuard agrees on new ones when it hears nothing for 15 s.
    world.server.kill_edge();
    let back = eventually(Duration::from_secs(90), passes);
    assert!(back, "{}", world.server.log());
    assert!(session(&world.server, id).is_some());
    tunnel.down().unwrap();
}

#[test]
fn a_session_ends_at_its_time_and_no_packet_passes_after() {
    let mut world = World::new();
    world.server.ok(&["network", "create", "vm", "--cidr", "10.0.0.0/16"]);
    let [ipv4, _] = world.machine("web", "vm");
    let opened = world.server.json(&["vpn", "open", "vm", "--ttl", "20s"]);
    let until: Timestamp = opened["expires_at"].as_str().unwrap().parse().unwrap();
    let tunnel = up(&world.laptop, &opened);
    assert_eq!(fetch(&world.laptop, &ipv4, 8080).as_deref(), Some("web"));
    let before = world.server.json(&["events"]).to_string();
    assert!(Timestamp::now() < until && !before.contains("session_closed"), "{until}: {before}");

    // Nobody has to tell the edge that the time is over.
    world.server.kill();
    let rest = until.duration_since(Timestamp::now());
    std::thread::sleep(Duration::try_from(rest).unwrap_or_default());
    assert_eq!(fetch(&world.laptop, &ipv4, 8080), None);
    world.server.up().unwrap();
    assert!(world.server.waits_for_event("session_closed", SOON));
    let events = world.server.json(&["events"]).to_string();
    assert!(events.contains("has expired"), "{events}");
    assert_eq!(fetch(&world.laptop, &ipv4, 8080), None, "with another daemon");
    tunnel.down().unwrap();
}

#[test]
fn a_session_for_one_machine_or_port_reaches_nothing_else() {
    let world = World::new();
    world.server.ok(&["network", "create", "vm", "--cidr", "10.0.0.0/16"]);
    let [web, web6] = world.machine("web", "vm");
    let [other, _] = world.machine("other", "vm");
    let (id, tunnel) = world.join(&["vm", "--only", "web"]);
    assert_eq!(world.fetch(&web, 8080).as_deref(), Some("web"));
    assert_eq!(world.fetch(&web, 9090).as_deref(), Some("web"));
    // What the client's own routes leave out, it may still send.
    let (laptop, interface) = (&world.laptop.namespace, tunnel.interface());
    let peer = laptop.run(&format!("wg show {interface} peers"));
    laptop.run(&format!("wg set {interface} peer {} allowed-ips 0.0.0.0/0,::/0", peer.trim()));
    laptop.run(&format!("ip route add {other} dev {interface}"));
    assert_eq!(world.fetch(&other, 8080), None);
    assert!(world.session(&id).unwrap()["status"]["refused_packets"].as_u64().unwrap() > 0);
    tunnel.down().unwrap();
    world.server.ok(&["vpn", "close", &id]);

    let (_, tunnel) = world.join(&["vm", "--only", "web:8080"]);
    assert_eq!(world.fetch(&web, 8080).as_deref(), Some("web"));
    assert_eq!(world.fetch(&web6, 8080).as_deref(), Some("web"));
    assert_eq!(world.fetch(&web, 9090), None);
    assert!(!world.laptop.namespace.pings(&web));
    tunnel.down().unwrap();
}

#[test]
fn an_operator_goes_through_policy_and_a_refusal_names_the_session() {
    let world = World::new();
    world.server.ok(&["network", "create", "vm", "--cidr", "10.0.0.0/16"]);
    let [web, _] = world.machine("web", "vm");
    world.server.apply(
        "networks: {vm: {intra: deny}}\nallow: [{id: ops, from: \"vm/tag:operator\", to: vm/web, ports: [tcp/8080]}]",
    );
    let (id, _tunnel) = world.join(&["vm"]);
    assert_eq!(world.fetch(&web, 8080).as_deref(), Some("web"));
    assert_eq!(world.fetch(&web, 9090), None);
    let name = format!("session-{}", &id[id.len() - 8..]);
    let told = eventually(SOON, || {
        world.server.denials().iter().any(|denial| denial["machine"] == name.as_str() && denial["port"] == 9090)
    });
    assert!(told, "{:#?}", world.server.denials());
    assert!(world.server.explain("vm/tag:operator", "vm/web", "tcp/8080").0);
    // What is taken back ends for operators as it does for machines.
    world.server.apply("networks: {vm: {intra: deny}}");
    assert_eq!(world.fetch(&web, 8080), None);
}

#[test]
fn machines_open_nothing_towards_an_operator_who_did_not_ask_for_it() {
    let world = World::new();
    world.server.ok(&["network", "create", "vm", "--cidr", "10.0.0.0/16"]);
    let [web, web6] = world.machine("web", "vm");
    let listening = Listening::new(&world);
    let refused = |id: &str| world.session(id).unwrap()["status"]["refused_packets"].as_u64().unwrap();
    let own = |id: &str| {
        let session = world.session(id).unwrap();
        ["private_ip", "private_ip6"].map(|key| session[key].as_str().unwrap().to_owned())
    };
    let answered = || {
        assert_eq!(world.fetch(&web, 8080).as_deref(), Some("web"));
        assert_eq!(world.fetch(&web6, 8080).as_deref(), Some("web"));
        assert!(world.laptop.namespace.pings(&web) && world.laptop.namespace.pings(&web6));
        let found = world.laptop.namespace.run("dig +short +tries=1 @10.0.0.1 web.vm.internal");
        assert_eq!(found.trim(), web);
    };

    let (id, tunnel) = world.join(&["vm"]);
    assert_eq!(world.session(&id).unwrap()["reachable"], false);
    answered();
    assert_eq!(refused(&id), 0);
    assert_eq!(listening.reached(&world, "web", &own(&id)), [[false; 3]; 2]);
    assert!(refused(&id) >= 6, "{}", world.session(&id).unwrap());
    answered();
    tunnel.down().unwrap();
    world.server.ok(&["vpn", "close", &id]);

    let (id, _tunnel) = world.join(&["vm", "--reachable"]);
    assert_eq!(world.session(&id).unwrap()["reachable"], true);
    // The kernel takes up to a second to find a new device ready for IPv6.
    assert!(eventually(SOON, || world.laptop.namespace.pings(&web6)));
    assert_eq!(listening.reached(&world, "web", &own(&id)), [[true; 3]; 2]);
    assert_eq!(refused(&id), 0);
    // Policy has the last word, also where the operator asked for it.
    world.server.apply("forbid: [{id: laptops, from: \"net:vm\", to: \"vm/tag:operator\"}]");
    assert_eq!(listening.reached(&world, "web", &own(&id)), [[false; 3]; 2]);
    answered();
    assert_eq!(refused(&id), 0, "policy comes first");
}

#[test]
fn an_operator_of_one_account_does_not_meet_the_same_addresses_of_another() {
    let mut world = World::new();
    world.server.act_as_new("acme");
    world.server.ok(&["network", "create", "vm", "--cidr", "10.5.0.0/24"]);
    let acme = world.machine("acme", "vm");
    let key = world.server.key.clone();
    world.server.act_as_new("globex");
    world.server.ok(&["network", "create", "vm", "--cidr", "10.5.0.0/24"]);
    let globex = world.machine("globex", "vm");
    assert_eq!(acme[0], globex[0]);
    let (id, tunnel) = world.join(&["vm"]);
    assert_eq!(world.fetch(&globex[0], 8080).as_deref(), Some("globex"));
    assert_eq!(world.fetch(&acme[1], 8080), None, "another network's unique address is no way either");
    tunnel.down().unwrap();
    let mine = std::mem::replace(&mut world.server.key, key);
    world.server.refused_as("not_found", &["vpn", "close", &id]);
    assert!(world.server.json(&["vpn", "ls"])["items"].as_array().unwrap().is_empty());
    world.server.key = mine;
    assert!(world.session(&id).is_some());
}

#[test]
fn sessions_come_and_go_at_once_and_a_device_that_was_deleted_is_made_again() {
    let world = World::new();
    world.server.ok(&["network", "create", "vm", "--cidr", "10.0.0.0/16"]);
    let [web, _] = world.machine("web", "vm");
    for _ in 0..3 {
        let (id, tunnel) = world.join(&["vm"]);
        assert_eq!(world.fetch(&web, 8080).as_deref(), Some("web"));
        tunnel.down().unwrap();
        world.server.ok(&["vpn", "close", &id]);
    }
    assert!(!world.server.log().contains("will try again"), "{}", world.server.log());

    let (_, _tunnel) = world.join(&["vm"]);
    let device = format!("w{}o", world.server.installation());
    let deleted = world.server.in_router(2, &["ip", "link", "del", &device]);
    assert!(deleted.status.success(), "{}", common::text(&deleted.stderr));
    let back = eventually(Duration::from_secs(90), || world.fetch(&web, 8080).as_deref() == Some("web"));
    assert!(back, "{}", world.server.log());
}

#[test]
fn a_port_that_cannot_be_had_keeps_only_sessions_out_and_is_taken_when_it_is_free() {
    let lab = Lab::new();
    let host = lab.namespace("host");
    let taken = host.enter(|| std::net::UdpSocket::bind("0.0.0.0:51820").unwrap());
    let server = Server::start_in(lab, host, Options::default());
    server.ok(&["network", "create", "vm"]);
    let problem = server.refused(&["vpn", "open", "vm"]);
    assert_eq!(problem["code"], "vpn_unavailable");
    assert!(problem["detail"].as_str().unwrap().contains("51820"), "{problem}");
    server.ok(&["machine", "create", "web", "--network", "vm"]);
    drop(taken);
    let opens = eventually(SOON, || server.run(&["vpn", "open", "vm"]).status.success());
    assert!(opens, "{}", server.log());
}

/// Brings up the configuration of a session.
fn up<'l>(laptop: &'l Laptop, opened: &Value) -> Tunnel<'l> {
    let path = laptop.configuration();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
    file.write_all(opened["client_config"].as_str().unwrap().as_bytes()).unwrap();
    laptop.up(&path).unwrap()
}

fn fetch(laptop: &Laptop, address: &str, port: u16) -> Option<String> {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let page = laptop.namespace.attempt(&format!("curl -s -g --connect-timeout 2 -m 20 http://{host}:{port}/"));
    page.success.then(|| page.stdout.trim().to_owned())
}

fn session(server: &Server, id: &str) -> Option<Value> {
    let listed = server.json(&["vpn", "ls"]);
    listed["items"].as_array().unwrap().iter().find(|session| session["id"] == id).cloned()
}
