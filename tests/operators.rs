//! Operators in a network, with the tools that they have: `wg-quick` on a laptop behind an address translator.

mod common;

use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{Options, Server, eventually};
use serde_json::Value;
use tempfile::TempDir;
use warren_lab::Lab;
use warren_lab::laptop::{Laptop, SERVER, TRANSLATED};

/// A session is closed, and nothing of it passes, after this.
const CUT_WITHIN: Duration = Duration::from_secs(1);

struct World {
    server: Server,
    laptop: Laptop,
    directory: TempDir,
    tunnels: AtomicU32,
}

/// An interface on the laptop, until it is dropped.
struct Tunnel<'w> {
    world: &'w World,
    config: PathBuf,
}

impl World {
    fn new() -> Self {
        let lab = Lab::new();
        let host = lab.namespace("host");
        let laptop = Laptop::new(&lab, &host);
        let arguments = vec!["--vpn-endpoint".to_owned(), format!("{SERVER}:51820")];
        let options = Options { arguments, ..Options::default() };
        let server = Server::start_in(lab, host, options);
        let directory = tempfile::tempdir().unwrap();
        Self { server, laptop, directory, tunnels: AtomicU32::new(0) }
    }

    /// A machine that serves a page on port 8080 of both families, and another one on port 9090.
    fn machine(&self, name: &str, network: &str) -> [String; 2] {
        let made = self.server.json(&["machine", "create", name, "--network", network]);
        self.server.exec(
            name,
            &format!(
                "mkdir -p /www && echo {name} > /www/index.html && cd /www && for port in 8080 9090; do \
                 python3 -m http.server --bind :: $port >/dev/null 2>&1 & done; \
                 until python3 -c \"import socket;[socket.create_connection(('127.0.0.1',p)) for p in (8080,9090)]\" \
                 2>/dev/null; do sleep 0.05; done"
            ),
        );
        ["private_ip", "private_ip6"].map(|key| made[key].as_str().unwrap().to_owned())
    }

    /// Opens a session, and what stock tools make of it.
    fn join(&self, arguments: &[&str]) -> (String, Tunnel<'_>) {
        let opened = self.server.json(&[&["vpn", "open"], arguments].concat());
        let tunnel = self.up(opened["client_config"].as_str().unwrap());
        (opened["session_id"].as_str().unwrap().to_owned(), tunnel)
    }

    fn up(&self, config: &str) -> Tunnel<'_> {
        let number = self.tunnels.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.path().join(format!("{}.conf", self.laptop.interface(number)));
        std::fs::write(&path, config).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        self.laptop.namespace.run(&format!("wg-quick up {}", path.display()));
        Tunnel { world: self, config: path }
    }

    fn fetch(&self, address: &str, port: u16) -> Option<String> {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let page = self.laptop.namespace.attempt(&format!("curl -s -g -m 2 http://{host}:{port}/"));
        page.success.then(|| page.stdout.trim().to_owned())
    }

    fn session(&self, id: &str) -> Option<Value> {
        let listed = self.server.json(&["vpn", "ls"]);
        listed["items"].as_array().unwrap().iter().find(|session| session["id"] == id).cloned()
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

    /// Of a connection, a datagram and an echo request that a machine sends there, those that arrive.
    fn reached(&self, world: &World, machine: &str, address: &str) -> [bool; 3] {
        let connected = world.server.reaches(machine, address, self.port);
        let family = if address.contains(':') { "AF_INET6" } else { "AF_INET" };
        let send = format!(
            "python3 -c \"import socket; socket.socket(socket.{family}, socket.SOCK_DGRAM)\
             .sendto(b'call', ('{address}', {}))\"",
            self.port
        );
        world.server.exec(machine, &send);
        let mut buffer = [0; 16];
        let heard = self.udp.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == b"call");
        [connected, heard, world.server.try_exec(machine, &format!("ping -n -c 1 -W 1 {address}")).0 == 0]
    }
}

impl Drop for Tunnel<'_> {
    fn drop(&mut self) {
        let down = self.world.laptop.namespace.attempt(&format!("wg-quick down {}", self.config.display()));
        if !std::thread::panicking() {
            assert!(down.success, "{}", down.stderr);
        }
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
    world.server.exec("web", "head -c 3000000 /dev/urandom > /www/large && md5sum < /www/large > /www/sum");
    let large = world.directory.path().join("large");
    world.laptop.namespace.run(&format!("curl -s -m 20 -o {} http://{ipv4}:8080/large", large.display()));
    let sum = world.laptop.namespace.run(&format!("md5sum {}", large.display()));
    let expected = world.server.exec("web", "cat /www/sum");
    assert_eq!(sum.split(' ').next(), expected.split(' ').next());

    // A connection that is open when the session is closed.
    let download = world
        .laptop
        .namespace
        .spawn(&format!("curl -s -m 60 --limit-rate 50k -o /dev/null -w %{{time_total}} http://{ipv4}:8080/large"));
    std::thread::sleep(Duration::from_millis(500));
    let before = world.server.in_router(2, &["sh", "-c", "cat /sys/class/net/*o/statistics/tx_packets"]);
    world.server.ok(&["vpn", "close", &id]);
    let closed = Instant::now();
    assert_eq!(world.fetch(&ipv4, 8080), None);
    assert!(world.session(&id).is_none());
    std::thread::sleep(CUT_WITHIN.saturating_sub(closed.elapsed()));
    let count = || world.server.in_router(2, &["sh", "-c", "cat /sys/class/net/*o/statistics/tx_packets"]);
    let after = count();
    assert_ne!(before.stdout, after.stdout, "the download was not under way");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(after.stdout, count().stdout, "packets still go to somebody who left");
    drop(download);
    drop(tunnel);

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
fn a_session_outlives_the_daemon_and_the_edge_and_ends_at_its_time() {
    let mut world = World::new();
    world.server.ok(&["network", "create", "vm", "--cidr", "10.0.0.0/16"]);
    let [ipv4, _] = world.machine("web", "vm");
    let short = world.server.json(&["vpn", "open", "vm", "--ttl", "60s"]);
    let opened = Instant::now();
    let config = world.server.json(&["vpn", "open", "vm"]);
    let id = config["session_id"].as_str().unwrap().to_owned();
    let path = {
        let tunnel = world.up(config["client_config"].as_str().unwrap());
        assert_eq!(world.fetch(&ipv4, 8080).as_deref(), Some("web"));
        let path = tunnel.config.clone();
        std::mem::forget(tunnel);
        path
    };
    let received =
        |world: &World| world.session(&id).unwrap()["status"]["traffic"]["received_packets"].as_u64().unwrap();
    let before = received(&world);
    world.server.kill();
    assert_eq!(world.fetch(&ipv4, 8080).as_deref(), Some("web"), "without a daemon");
    world.server.up().unwrap();
    assert_eq!(world.fetch(&ipv4, 8080).as_deref(), Some("web"), "with the next one");
    assert!(received(&world) > before, "another tunnel would have counted from nothing");

    // The edge is what has the keys of the tunnel; WireGuard agrees on new ones when it hears nothing for 15 s.
    world.server.kill_edge();
    let back = eventually(Duration::from_secs(40), || world.fetch(&ipv4, 8080).as_deref() == Some("web"));
    assert!(back, "{}", world.server.log());

    assert!(world.session(short["session_id"].as_str().unwrap()).is_some() || opened.elapsed().as_secs() >= 60);
    let ended = eventually(Duration::from_secs(70), || world.session(short["session_id"].as_str().unwrap()).is_none());
    assert!(ended && opened.elapsed() >= Duration::from_secs(59), "{:?}", opened.elapsed());
    assert!(world.session(&id).is_some());
    assert!(world.server.waits_for_event("session_closed", Duration::from_secs(2)));
    drop(Tunnel { world: &world, config: path });
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
    world.laptop.namespace.run(&format!(
        "wg set {} peer {} allowed-ips 0.0.0.0/0,::/0",
        interface(&tunnel),
        peer(&world, &tunnel)
    ));
    world.laptop.namespace.run(&format!("ip route add {other} dev {}", interface(&tunnel)));
    assert_eq!(world.fetch(&other, 8080), None);
    assert!(world.session(&id).unwrap()["status"]["refused_packets"].as_u64().unwrap() > 0);
    drop(tunnel);
    world.server.ok(&["vpn", "close", &id]);

    let (_, tunnel) = world.join(&["vm", "--only", "web:8080"]);
    assert_eq!(world.fetch(&web, 8080).as_deref(), Some("web"));
    assert_eq!(world.fetch(&web6, 8080).as_deref(), Some("web"));
    assert_eq!(world.fetch(&web, 9090), None);
    assert!(!world.laptop.namespace.pings(&web));
    drop(tunnel);
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
    let told = eventually(Duration::from_secs(5), || {
        world.server.denials().iter().any(|denial| denial["machine"] == name.as_str() && denial["port"] == 9090)
    });
    assert!(told, "{:#?}", world.server.denials());
    assert!(world.server.explain("vm/tag:operator", "vm/web", "tcp/8080").0);
    // What is taken back ends for operators as it does for machines.
    world.server.apply("networks: {vm: {intra: deny}}");
    assert!(eventually(Duration::from_secs(1), || world.fetch(&web, 8080).is_none()));
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
        assert_eq!(look_up(&world, "web.vm.internal").map(|address| address.to_string()), Some(web.clone()));
    };

    let (id, tunnel) = world.join(&["vm"]);
    assert_eq!(world.session(&id).unwrap()["reachable"], false);
    answered();
    assert_eq!(refused(&id), 0);
    for address in own(&id) {
        let before = refused(&id);
        assert_eq!(listening.reached(&world, "web", &address), [false; 3], "{address}");
        assert!(refused(&id) >= before + 3, "{}", world.session(&id).unwrap());
    }
    answered();
    drop(tunnel);
    world.server.ok(&["vpn", "close", &id]);

    let (id, _tunnel) = world.join(&["vm", "--reachable"]);
    assert_eq!(world.session(&id).unwrap()["reachable"], true);
    // The kernel takes up to a second to find a new device ready for IPv6.
    assert!(eventually(Duration::from_secs(10), || world.laptop.namespace.pings(&web6)));
    for address in own(&id) {
        assert_eq!(listening.reached(&world, "web", &address), [true; 3], "{address}");
    }
    assert_eq!(refused(&id), 0);
    // Policy has the last word, also where the operator asked for it.
    world.server.apply("forbid: [{id: laptops, from: \"net:vm\", to: \"vm/tag:operator\"}]");
    for address in own(&id) {
        assert_eq!(listening.reached(&world, "web", &address), [false; 3], "{address}");
    }
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
    drop(tunnel);
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
        drop(tunnel);
        world.server.ok(&["vpn", "close", &id]);
    }
    assert!(!world.server.log().contains("will try again"), "{}", world.server.log());

    let (_, _tunnel) = world.join(&["vm"]);
    let device = format!("w{}o", world.server.installation());
    let deleted = world.server.in_router(2, &["ip", "link", "del", &device]);
    assert!(deleted.status.success(), "{}", common::text(&deleted.stderr));
    let back = eventually(Duration::from_secs(30), || world.fetch(&web, 8080).as_deref() == Some("web"));
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
    let opens = eventually(Duration::from_secs(10), || server.run(&["vpn", "open", "vm"]).status.success());
    assert!(opens, "{}", server.log());
}

/// What the resolver of the network answers the laptop over UDP (RFC 1035 §4.1).
fn look_up(world: &World, name: &str) -> Option<Ipv4Addr> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let gateway: IpAddr = "10.0.0.1".parse().unwrap();
    let socket = world.laptop.namespace.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send_to(&query, (gateway, 53)).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).ok()?;
    // The one answer ends with its address.
    let is_one = answer[6..8] == [0, 1] && length >= query.len() + 16;
    let address: [u8; 4] = answer[query.len() + 12..query.len() + 16].try_into().unwrap();
    is_one.then(|| address.into())
}

fn interface(tunnel: &Tunnel<'_>) -> String {
    tunnel.config.file_stem().unwrap().to_string_lossy().into_owned()
}

fn peer(world: &World, tunnel: &Tunnel<'_>) -> String {
    world.laptop.namespace.run(&format!("wg show {} peers", interface(tunnel))).trim().to_owned()
}
