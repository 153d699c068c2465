//! One end of a tunnel in the network namespace it is started in, until stdin ends.
//!
//! `endpoint DEVICE ADDRESS/LENGTH PORT PRIVATE-KEY [PEER-KEY RANGE[,RANGE] [ENDPOINT]]...`
//!
//! Peers are separated by `--`.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;

use warren_tunnel::{Device, DeviceKind, Gateway, Limits, NetworkKey, Peer, PeerId, Sockets, open_device};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, address, port, private, peers @ ..] = arguments.as_slice() else {
        return Err("too few arguments".into());
    };
    let tun = open_device(device, DeviceKind::Tun)?;
    for line in [vec!["address", "add", address, "dev", device], vec!["link", "set", device, "up", "mtu", "1420"]] {
        if !Command::new("ip").args(&line).status()?.success() {
            return Err(format!("ip {} failed", line.join(" ")).into());
        }
    }
    let sockets = Sockets::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port.parse()?))?;
    let gateway = Gateway::start(sockets, private.parse()?, Limits::default())?;
    let network = NetworkKey(0);
    gateway.add_network(network, tun, Device::Tun { mtu: 1420 })?;
    for (number, peer) in peers.split(|argument| argument == "--").enumerate() {
        let [key, ranges, endpoint @ ..] = peer else { return Err("a peer needs a key and a range".into()) };
        gateway.add_peer(&Peer {
            id: PeerId(number as u128),
            network,
            public_key: key.parse()?,
            preshared_key: None,
            addresses: ranges.split(',').map(str::parse).collect::<Result<_, _>>()?,
            mac: None,
            only: None,
            reachable: true,
            endpoint: endpoint.first().map(|text| text.parse()).transpose()?,
            expires: None,
            idle_limit: None,
            keepalive: None,
        })?;
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    for peer in gateway.peers() {
        eprintln!("{peer:?}");
    }
    eprintln!("{:?}", gateway.status());
    Ok(())
}
