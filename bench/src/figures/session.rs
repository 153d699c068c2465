//! Operators' sessions, through the API of a server: how soon the first packet is answered, and what an open session
//! takes of everything that it is made of.
//!
//! The operator's end is Warren's engine in a namespace of its own, one link away from the server. The clock of a
//! session starts before its request, and stops when a datagram to a machine of the network has come back.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use warren_model::wire;
use warren_tunnel::{PrivateKey, PublicKey};

use super::tunnel::{Calls, GIVE_UP as HANDSHAKE};
use crate::api::Client;
use crate::interrupt;
use crate::options::Options;
use crate::report::{Row, Unit, Wanted};
use crate::server::Server;
use crate::sessions::{ENDPOINT, Laptop};
use crate::stats::Samples;
use crate::traffic::first_reply;

/// Sessions that are opened to see how long one takes.
const OPENED: usize = 30;
/// Sessions that are open at once; an account has no more.
const SESSIONS: usize = 1000;
/// Sessions that are open before memory is measured for the first time: what the first one brings along is not what
/// each one takes.
const FIRST: usize = 10;
/// Of those that are opened last, it is told separately how long one takes.
const LAST: usize = 50;
/// What the server does after its answers is done, too.
const SETTLED: Duration = Duration::from_secs(2);
const GIVE_UP: Duration = Duration::from_secs(10);
const NETWORK: &str = "operators";
const PATH: &str = "/v1/networks/operators/sessions";
/// What the kernel's part is called.
const KERNEL: &str = "kernel, of all the machine";
/// The machine's port that gives every datagram back (RFC 862).
const ECHO: u16 = 7;
const ECHO_PROGRAM: &str = "\
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('0.0.0.0', 7))
while True:
    s.sendto(*s.recvfrom(64))
";

/// A server with a network, and somebody outside.
struct World {
    // In the order in which they have to go.
    laptop: Laptop,
    client: Client,
    server: Server,
}

impl World {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let server = Server::start_with(options, &["--vpn-endpoint", &ENDPOINT.to_string()])?;
        let mut client = server.client()?;
        let _: Value = client.post("/v1/networks", &json!({ "name": NETWORK, "cidr": "10.0.0.0/16" }))?;
        Ok(Self { laptop: Laptop::new(&server)?, client, server })
    }

    /// A machine that gives datagrams back.
    fn echo(&mut self) -> anyhow::Result<SocketAddr> {
        let machine: wire::Machine = self.client.post("/v1/machines", &json!({ "network": NETWORK }))?;
        let command = ["sh", "-c", "python3 -c \"$0\" >/dev/null 2>&1 &", ECHO_PROGRAM];
        let path = format!("/v1/machines/{}/exec", machine.id);
        let result: wire::ExecResult = self.client.post(&path, &json!({ "command": command }))?;
        ensure!(result.status == 0, "the echo did not start: {}", result.stderr);
        Ok(SocketAddr::new(machine.private_ip.into(), ECHO))
    }

    /// Opens so many more, and makes the handshake of each; how many milliseconds every opening took.
    fn open_many(&mut self, count: usize) -> anyhow::Result<Vec<f64>> {
        let (mut keys, mut taken) = (Vec::new(), Vec::new());
        let mut server = None;
        for _ in 0..count {
            interrupt::check()?;
            let key = PrivateKey::generate()?;
            let began = Instant::now();
            let opened = open(&mut self.client, &key.public_key())?;
            taken.push(milliseconds(began.elapsed()));
            server = Some(PublicKey::from_bytes(*opened.server_public_key.as_bytes()));
            keys.push(key);
        }
        let socket = self.laptop.namespace.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
        socket.connect(ENDPOINT)?;
        socket.set_read_timeout(Some(HANDSHAKE))?;
        Calls { socket, to: server.context("no session was asked for")? }.open(&keys)?;
        Ok(taken)
    }

    /// Bytes that are taken: by each of the server's processes, and by the kernel for the whole machine.
    fn memory(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        std::thread::sleep(SETTLED);
        let mut parts = self.server.memory()?;
        ensure!(parts.len() >= 2, "of the server's processes only these were found: {:?}", parts.keys());
        parts.insert(KERNEL.to_owned(), kernel_memory()?);
        Ok(parts)
    }
}

/// From the request for a session to the first packet that was answered.
pub fn measure_open(options: &Options) -> anyhow::Result<Row> {
    eprintln!("opening sessions");
    let mut world = World::new(options)?;
    let echo = world.echo()?;
    let (mut whole, mut called, mut joined, mut replied) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for turn in 0..=options.many(OPENED) {
        interrupt::check()?;
        let operator = world.laptop.operator(turn)?;
        let began = Instant::now();
        let opened = open(&mut world.client, &operator.key)?;
        let after_call = Instant::now();
        operator.join(&opened)?;
        let after_join = Instant::now();
        world.laptop.namespace.enter(|| first_reply(echo, GIVE_UP))?;
        let end = Instant::now();
        world.client.delete(&format!("/v1/sessions/{}", opened.session_id))?;
        if turn > 0 {
            whole.push(milliseconds(end - began));
            called.push(milliseconds(after_call - began));
            joined.push(milliseconds(after_join - after_call));
            replied.push(milliseconds(end - after_join));
        }
    }
    let part = |what: &str, samples: Vec<f64>| -> anyhow::Result<String> {
        Ok(format!("{what:<32} {:.1} ms", Samples::new(samples)?.median()))
    };
    let whole = Samples::new(whole)?;
    let notes = [
        format!("p95 {:.1} ms of {}; medians of the parts:", whole.percentile(95.0), whole.len()),
        part("the call", called)?,
        part("the operator's address, routes", joined)?,
        part("handshake, first reply", replied)?,
    ];
    let what = "session call to first answered packet";
    Ok(Row::alone("session-open", what, Unit::Milliseconds, whole, Wanted::AtMost(200.0)).note(notes))
}

/// How much more the server and the kernel take with so many sessions open, each of which has made its handshake.
pub fn measure_memory(options: &Options) -> anyhow::Result<Row> {
    let count = options.many(SESSIONS) - FIRST;
    let (mut taken, mut parts) = (Vec::new(), BTreeMap::new());
    let (mut opening, mut last_ones) = (Vec::new(), Vec::new());
    for _ in 0..options.pairs().min(3) {
        eprintln!("opening {} sessions", FIRST + count);
        let mut world = World::new(options)?;
        world.open_many(FIRST)?;
        let before = world.memory()?;
        let mut each = world.open_many(count)?;
        last_ones.extend_from_slice(&each[count - count.min(LAST)..]);
        opening.append(&mut each);
        let after = world.memory()?;
        let mut whole = 0.0;
        for (part, bytes) in &after {
            let grown = *bytes as f64 - before.get(part).copied().unwrap_or_default() as f64;
            let share = grown / count as f64 / 1e3;
            whole += share;
            parts.entry(part.clone()).or_insert_with(Vec::new).push(share);
        }
        taken.push(whole);
    }
    let mut notes = Vec::new();
    for (part, shares) in parts {
        notes.push(format!("{part:<26} {:>6.1} kB", Samples::new(shares)?.median()));
    }
    let opening = Samples::new(opening)?;
    notes.push(format!(
        "opened one after the other: median {:.1} ms, p99 {:.1} ms; of the last {LAST} {:.1} ms",
        opening.median(),
        opening.percentile(99.0),
        Samples::new(last_ones)?.median()
    ));
    let what = format!("an open session among {}: server and kernel", FIRST + count);
    let row = Row::alone("session-memory", what, Unit::Kilobytes, Samples::new(taken)?, Wanted::AtMost(20.0));
    Ok(row.note(notes))
}

fn open(client: &mut Client, key: &PublicKey) -> anyhow::Result<wire::OpenedSession> {
    client.post(PATH, &json!({ "public_key": key.to_string() }))
}

/// What the kernel cannot give back when it is asked to, and what it keeps for each processor (proc_meminfo(5)): set
/// elements, routes and neighbours are in there, files and their names are not.
fn kernel_memory() -> anyhow::Result<u64> {
    kernel_bytes(&std::fs::read_to_string("/proc/meminfo")?).context("/proc/meminfo does not tell of slabs")
}

fn kernel_bytes(meminfo: &str) -> Option<u64> {
    let kibibytes = |name: &str| -> Option<u64> {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some((kibibytes("SUnreclaim")? + kibibytes("Percpu")?) * 1024)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_part_is_read_out_of_meminfo() {
        let text =
            "Slab:             400 kB\nSReclaimable:     100 kB\nSUnreclaim:       300 kB\nPercpu:            20 kB\n";
        assert_eq!(kernel_bytes(text), Some(320 * 1024));
        assert_eq!(kernel_bytes("SUnreclaim: 300 kB\n"), None);
    }
}
