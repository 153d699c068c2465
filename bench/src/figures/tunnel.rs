//! The WireGuard of operators: what it carries and how many handshakes it answers, against others; what a session
//! takes.
//!
//! Throughput is that of one TCP stream, with the same program at both ends of the tunnel; both ends, sender and
//! receiver share the processors as the kernel likes. Handshakes come from many peers whose initiations were written
//! before, so that the sender has little to do while it counts answers.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use warren_tunnel::{PrivateKey, Probe, PublicKey};

use crate::interrupt;
use crate::options::Options;
use crate::report::{Row, Unit, Wanted};
use crate::stats::{Samples, in_turn};
use crate::tunnels::{Caller, End, Kind, PORT, Tunnel};
use crate::wires::{Placement, RawPair, Wire};

/// Open sessions, and peers that make handshakes.
const SESSIONS: usize = 1000;
/// Handshakes of each peer in one sample.
const ROUNDS: usize = 5;
/// Initiations under way at the same time. With 128 of them, both programs would count themselves under load.
const WINDOW: usize = 64;
/// How long an answer is waited for.
pub(super) const GIVE_UP: Duration = Duration::from_millis(500);

/// One stream through a tunnel with Warren's engine at both ends, and through one with the other at both ends.
pub fn measure_throughput(options: &Options, kind: Kind) -> anyhow::Result<Row> {
    let (name, against, wanted) = match kind {
        Kind::Gotatun => ("tunnel-gotatun", "gotatun-cli", 1.6),
        _ => ("tunnel-wireguard-go", "wireguard-go", 2.5),
    };
    eprintln!("throughput of the tunnel, against {against}");
    let (ours, theirs) = (Tunnel::new(options, Kind::Warren)?, Tunnel::new(options, kind)?);
    let wire = |tunnel| -> anyhow::Result<Wire<'_>> {
        let Tunnel { wire, .. }: &Tunnel = tunnel;
        Wire::new(&wire.near, &wire.far, Tunnel::FAR, Placement::Free)
    };
    let (ours, theirs) = (wire(&ours)?, wire(&theirs)?);
    let sample = options.sample();
    let pairs = in_turn(options.pairs(), || ours.throughput(1, sample), || theirs.throughput(1, sample))?;
    let what = format!("WireGuard, 1 TCP stream / {against} at both ends");
    Ok(Row::compared(name, what, Unit::GigabitsPerSecond, pairs, Wanted::RatioAtLeast(wanted)))
}

/// How much more memory the gateway takes with so many sessions open than with one.
pub fn measure_memory(options: &Options) -> anyhow::Result<Row> {
    eprintln!("opening {SESSIONS} sessions");
    let mut taken = Vec::new();
    for _ in 0..options.pairs().min(3) {
        let resident = |sessions| -> anyhow::Result<f64> {
            let mut answering = Answering::new(options, Kind::Warren, sessions)?;
            answering.calls.open(&answering.callers)?;
            Ok(answering.end.resident()? as f64)
        };
        let (one, many) = (resident(1)?, resident(SESSIONS + 1)?);
        taken.push((many - one) / SESSIONS as f64 / 1e3);
    }
    let what = format!("memory of an open session, among {SESSIONS}");
    Ok(Row::alone("tunnel-memory", what, Unit::Kilobytes, Samples::new(taken)?, Wanted::AtMost(20.0)))
}

/// Handshakes that are answered in a second.
pub fn measure_handshakes(options: &Options) -> anyhow::Result<Row> {
    eprintln!("handshakes of {SESSIONS} peers");
    let ours = Answering::new(options, Kind::Warren, SESSIONS)?;
    let theirs = Answering::new(options, Kind::WireguardGo, SESSIONS)?;
    let rounds = options.many(ROUNDS * 10).div_ceil(10);
    let pairs = in_turn(options.pairs(), || ours.rate(rounds), || theirs.rate(rounds))?;
    let what = "handshakes answered / wireguard-go";
    Ok(Row::compared("tunnel-handshakes", what, Unit::PerSecond, pairs, Wanted::RatioAtLeast(1.0)))
}

/// An end that answers, and those who call it.
struct Answering {
    // In the order in which they have to go.
    end: End,
    calls: Calls,
    callers: Vec<PrivateKey>,
    _wire: RawPair,
}

/// The socket of all callers.
pub(super) struct Calls {
    pub socket: UdpSocket,
    pub to: PublicKey,
}

impl Answering {
    fn new(options: &Options, kind: Kind, count: usize) -> anyhow::Result<Self> {
        let wire = RawPair::new()?;
        let callers: Vec<PrivateKey> = (0..count).map(|_| PrivateKey::generate()).collect::<Result<_, _>>()?;
        let admitted: Vec<Caller> = callers
            .iter()
            .zip(0x0a64_0000_u32..)
            .map(|(key, inside)| Caller { key: key.public_key(), inside: Ipv4Addr::from(inside), endpoint: None })
            .collect();
        let end = End::start(options, kind, &wire.far, &PrivateKey::generate()?, &admitted)?;
        // The device is up, or wireguard-go has no socket.
        wire.far.ip(&["link", "set", &end.device, "up", "mtu", "1420"])?;
        let socket = wire.near.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
        socket.connect(SocketAddr::new(RawPair::FAR, PORT))?;
        socket.set_read_timeout(Some(GIVE_UP))?;
        let calls = Calls { socket, to: end.key };
        Ok(Self { end, calls, callers, _wire: wire })
    }

    /// Handshakes a second: of every caller, so many times.
    fn rate(&self, rounds: usize) -> anyhow::Result<f64> {
        let mut initiations = Vec::with_capacity(rounds * self.callers.len());
        let now = SystemTime::now();
        for round in 0..rounds {
            interrupt::check()?;
            // Timestamps count in steps of about 17 ms.
            let at = now + Duration::from_millis(20) * u32::try_from(round)?;
            for (caller, index) in self.callers.iter().zip(0..) {
                initiations.push(Probe::begin(caller, &self.calls.to, index, at).context("no initiation")?.1);
            }
        }
        let (mut sent, mut answered, mut lost) = (0, 0, 0);
        let mut buffer = [0; 256];
        let began = Instant::now();
        while answered + lost < initiations.len() {
            while sent < initiations.len() && sent - answered - lost < WINDOW {
                self.calls.socket.send(&initiations[sent])?;
                sent += 1;
            }
            match self.calls.socket.recv(&mut buffer) {
                Ok(length) if Probe::index(&buffer[..length]).is_some() => answered += 1,
                Ok(_) => {}
                Err(_) => lost = sent - answered,
            }
        }
        ensure!(answered > initiations.len() / 2, "of {sent} initiations only {answered} were answered");
        Ok(answered as f64 / began.elapsed().as_secs_f64())
    }
}

impl Calls {
    /// Opens a session of each of these.
    pub fn open(&self, callers: &[PrivateKey]) -> anyhow::Result<()> {
        let mut buffer = [0; 256];
        for (caller, index) in callers.iter().zip(0..) {
            interrupt::check()?;
            let begun = Probe::begin(caller, &self.to, index, SystemTime::now());
            let (probe, initiation) = begun.context("no initiation")?;
            self.socket.send(&initiation)?;
            let length = self.socket.recv(&mut buffer).context("an initiation was not answered")?;
            let keepalive = probe.finish(&buffer[..length]).context("a handshake failed")?;
            self.socket.send(&keepalive)?;
        }
        // The last one has to arrive.
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }
}
