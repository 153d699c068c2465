//! Which ports are listening, and who listens.

use std::collections::HashSet;

use warren_guest::protocol::{MOST_PORTS, Ports};
use warren_model::access::ListeningPort;
use warren_model::record::Protocol;

use crate::procfs::{self, Socket};

/// Every listening port, at most [`MOST_PORTS`], by protocol, port and address. Blocking.
pub fn listening() -> Ports {
    let tcp = procfs::listening_tcp().into_iter().map(|socket| (Protocol::Tcp, socket));
    let udp = procfs::bound_udp().into_iter().map(|socket| (Protocol::Udp, socket));
    let mut found: Vec<(Protocol, Socket)> = tcp.chain(udp).collect();
    found.sort_by_key(|(protocol, socket)| (*protocol, socket.port, socket.address));
    found.dedup_by_key(|(protocol, socket)| (*protocol, socket.port, socket.address));
    found.truncate(MOST_PORTS);
    let inodes: HashSet<u64> = found.iter().map(|(_, socket)| socket.inode).collect();
    let holders = if inodes.is_empty() { Default::default() } else { procfs::holders(&inodes) };
    let ports = found.into_iter().map(|(protocol, socket)| {
        let pid = holders.get(&socket.inode).copied();
        ListeningPort {
            protocol,
            address: socket.address,
            port: socket.port,
            process: pid.and_then(procfs::name),
            pid: pid.and_then(|pid| u32::try_from(pid).ok()),
        }
    });
    Ports { ports: ports.collect() }
}
