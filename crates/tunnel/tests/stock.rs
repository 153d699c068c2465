//! Debian's own WireGuard (`wireguard-go` and `wg`) as the operator's end, and as the one that is called.

mod common;

use common::{HOST, PORT, SERVER4, SERVER6, World, answers, at_host, carries, eventually};
use warren_lab::{Namespace, Running};
use warren_tunnel::{Peer, PeerId, PresharedKey, PrivateKey};

/// The flag of a socket that listens, in `/proc/net/unix` (`__SO_ACCEPTCON` in linux/net.h).
const LISTENS: &str = "00010000";

/// The other program, until this goes.
struct Stock {
    _running: Running,
    name: String,
}

impl Drop for Stock {
    fn drop(&mut self) {
        // It leaves its control socket behind when it is killed.
        let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.name));
    }
}

/// The tool's socket has the device's name, for all namespaces together: it has to be nobody else's.
fn stock(world: &World, laptop: &Namespace, key: &PrivateKey, gateway: &str) -> Stock {
    let mut name = format!("w{}", world.lab.prefix()[4..].replace('-', ""));
    name.truncate(15);
    let running = laptop.spawn(&format!("wireguard-go -f {name}"));
    let stock = Stock { _running: running, name: name.clone() };
    // `wg` is not asked before: it removes a control socket that nobody listens on, also one that was just made.
    let path = format!(" /var/run/wireguard/{name}.sock");
    let listens = |line: &str| line.ends_with(&path) && line.split(' ').nth(3) == Some(LISTENS);
    eventually("wireguard-go", || laptop.run("cat /proc/net/unix").lines().any(listens));
    let directory = std::env::temp_dir();
    let path = directory.join(format!("{name}.conf"));
    let private = key.to_base64();
    std::fs::write(&path, format!("[Interface]\nPrivateKey = {}\n{gateway}", *private)).unwrap();
    let set = laptop.attempt(&format!("wg setconf {name} {}", path.display()));
    std::fs::remove_file(&path).unwrap();
    assert!(set.success, "{}", set.stderr);
    for line in [
        format!("ip address add 10.0.9.2/32 dev {name}"),
        format!("ip address add fd00:9::2/128 dev {name} nodad"),
        format!("ip link set {name} up mtu 1420"),
        format!("ip route add 10.0.0.0/24 dev {name}"),
        format!("ip route add fd00:1::/64 dev {name}"),
    ] {
        laptop.run(&line);
    }
    stock
}

#[test]
fn a_stock_client_calls_with_a_preshared_key() {
    let world = World::new();
    let router = world.network(1);
    calls(&world, &router);
}

#[test]
fn a_stock_client_calls_a_network_with_a_tap_device() {
    let world = World::new();
    let router = world.tap_network(1);
    calls(&world, &router);
}

fn calls(world: &World, router: &Namespace) {
    let key = PrivateKey::generate().unwrap();
    let preshared_key = Some(PresharedKey::from_bytes(&[3; 32]));
    world.gateway.add_peer(&Peer { preshared_key, ..world.peer(2, key.public_key()) }).unwrap();
    let section = format!(
        "[Peer]\nPublicKey = {}\nPresharedKey = AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\nEndpoint = {HOST}:{PORT}\n\
         AllowedIPs = 10.0.0.0/24, fd00:1::/64\n",
        world.gateway.public_key()
    );
    let running = stock(world, &world.laptop, &key, &section);
    answers(&world.laptop, SERVER4);
    answers(&world.laptop, SERVER6);
    carries(&world.laptop, router, SERVER4, 10 << 20);
    carries(router, &world.laptop, "10.0.9.2", 10 << 20);
    carries(router, &world.laptop, "fd00:9::2", 10 << 20);
    assert_eq!(world.gateway.peer(PeerId(2)).unwrap().refused, 0);
    world.gateway.remove_peer(PeerId(2)).unwrap();
    assert!(!world.laptop.pings(SERVER4));
    drop(running);
}

#[test]
fn a_stock_end_is_called() {
    let world = World::new();
    let router = world.network(1);
    let key = PrivateKey::generate().unwrap();
    let section = format!(
        "ListenPort = 4500\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.0.0.0/24, fd00:1::/64\n",
        world.gateway.public_key()
    );
    let running = stock(&world, &world.laptop, &key, &section);
    let endpoint = Some((common::LAPTOP, 4500).into());
    world.gateway.add_peer(&Peer { endpoint, ..world.peer(2, key.public_key()) }).unwrap();
    answers(&router, "10.0.9.2");
    carries(&world.laptop, &router, SERVER6, 1 << 20);
    assert_ne!(world.gateway.peer(PeerId(2)).unwrap().endpoint, Some(at_host()));
    drop(running);
}
