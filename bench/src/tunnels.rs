//! Two ends of a WireGuard tunnel over a wire of their own: Warren's, or another one's at both ends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use warren_tunnel::{
    Device, DeviceKind, Gateway, Limits, NetworkKey, Peer, PeerId, PrivateKey, PublicKey, Sockets, open_device,
};

use crate::interrupt;
use crate::namespace::Namespace;
use crate::options::{Options, TunnelEnd};
use crate::process::Owned;
use crate::wires::RawPair;

/// The tunnel's port at both ends.
pub const PORT: u16 = 51820;
/// The addresses inside, of the near and the far end.
const INSIDE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
const MTU: u16 = 1420;
/// What is needed to run the others.
const INSTALL: &str = "it may have to be installed: scripts/install-deps.sh bench, and cargo install gotatun-cli";
const START: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Warren,
    /// Debian's.
    WireguardGo,
    /// `gotatun-cli` of crates.io.
    Gotatun,
}

/// Who may call an end.
pub struct Caller {
    pub key: PublicKey,
    pub inside: Ipv4Addr,
    pub endpoint: Option<SocketAddr>,
}

/// One end; it ends with this value.
pub struct End {
    process: Owned,
    pub key: PublicKey,
    pub device: String,
}

/// Both ends of a tunnel that carries packets.
pub struct Tunnel {
    // In the order in which they have to go.
    _ends: [End; 2],
    pub wire: RawPair,
}

impl Tunnel {
    /// What is at the far end.
    pub const FAR: IpAddr = IpAddr::V4(INSIDE[1]);

    pub fn new(options: &Options, kind: Kind) -> anyhow::Result<Self> {
        let wire = RawPair::new()?;
        let (near_key, far_key) = (PrivateKey::generate()?, PrivateKey::generate()?);
        let far_end = Caller {
            key: far_key.public_key(),
            inside: INSIDE[1],
            endpoint: Some(SocketAddr::new(RawPair::FAR, PORT)),
        };
        let near_end = Caller { key: near_key.public_key(), inside: INSIDE[0], endpoint: None };
        let far = End::start(options, kind, &wire.far, &far_key, &[near_end])?;
        let near = End::start(options, kind, &wire.near, &near_key, &[far_end])?;
        for (namespace, end, inside) in [(&wire.near, &near, INSIDE[0]), (&wire.far, &far, INSIDE[1])] {
            namespace.ip(&["address", "add", &format!("{inside}/24"), "dev", &end.device])?;
            namespace.ip(&["link", "set", &end.device, "up", "mtu", &MTU.to_string()])?;
        }
        let tunnel = Self { _ends: [near, far], wire };
        let pinged = tunnel.wire.near.command("ping")?.args(["-c", "1", "-W", "5", &Self::FAR.to_string()]).output()?;
        ensure!(pinged.status.success(), "the tunnel of {kind:?} carries nothing");
        Ok(tunnel)
    }
}

impl End {
    /// An end whose device has no address yet.
    pub fn start(
        options: &Options,
        kind: Kind,
        namespace: &Namespace,
        key: &PrivateKey,
        callers: &[Caller],
    ) -> anyhow::Result<Self> {
        let mut random = [0; 4];
        getrandom::fill(&mut random).context("the kernel gives no random numbers")?;
        // The others' control sockets have this name, for all namespaces together.
        let device = format!("wb{:08x}", u32::from_be_bytes(random));
        let public = key.public_key();
        if kind == Kind::Warren {
            let process = start_ours(namespace, &device, key, callers)?;
            return Ok(Self { process, key: public, device });
        }
        let mut command = match kind {
            Kind::Gotatun => {
                let mut command = namespace.command(&options.gotatun)?;
                command.arg("--disable-drop-privileges");
                command
            }
            _ => namespace.command("wireguard-go")?,
        };
        command.args(["-f", &device]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Owned::spawn(&mut command)?;
        configure(&mut process, kind, &device, key, callers)?;
        Ok(Self { process, key: public, device })
    }

    /// Bytes of the process that are in memory.
    pub fn resident(&mut self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.child().id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no size in the status")?;
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes * 1024)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // The others leave their control socket behind when they are killed.
        let _ = self.process.terminate();
        let _ = std::fs::remove_file(control(&self.device));
    }
}

fn control(device: &str) -> String {
    format!("/var/run/wireguard/{device}.sock")
}

fn start_ours(namespace: &Namespace, device: &str, key: &PrivateKey, callers: &[Caller]) -> anyhow::Result<Owned> {
    let mut command = namespace.command(std::env::current_exe()?)?;
    command.args(["tunnel", "--device", device, "--port", &PORT.to_string()]);
    let mut process = Owned::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let child = process.child();
    let stdin = child.stdin.as_mut().context("the end has no stdin")?;
    let mut lines = format!("{}\n", *key.to_base64());
    for Caller { key, inside, endpoint } in callers {
        let endpoint = endpoint.map_or(String::new(), |at| at.to_string());
        lines.push_str(&format!("{key} {inside}/32 {endpoint}\n"));
    }
    lines.push('\n');
    stdin.write_all(lines.as_bytes())?;
    let mut ready = String::new();
    BufReader::new(child.stdout.as_mut().context("the end has no stdout")?).read_line(&mut ready)?;
    ensure!(ready.trim() == "ready", "an end of the tunnel did not start");
    Ok(process)
}

/// Over the control socket that both of the others have (wireguard.com/xplatform).
fn configure(
    process: &mut Owned,
    kind: Kind,
    device: &str,
    key: &PrivateKey,
    callers: &[Caller],
) -> anyhow::Result<()> {
    let path = control(device);
    let deadline = Instant::now() + START;
    let mut stream = loop {
        interrupt::check()?;
        if let Ok(stream) = UnixStream::connect(&path) {
            break stream;
        }
        if let Some(status) = process.child().try_wait()? {
            bail!("{kind:?} ended at once with {status}; {INSTALL}");
        }
        ensure!(Instant::now() < deadline, "{kind:?} did not start within {START:?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut text = format!("set=1\nprivate_key={}\nlisten_port={PORT}\n", hex(key.to_bytes().as_slice()));
    for Caller { key, inside, endpoint } in callers {
        text.push_str(&format!("public_key={}\nallowed_ip={inside}/32\n", hex(key.as_bytes())));
        if let Some(endpoint) = endpoint {
            text.push_str(&format!("endpoint={endpoint}\n"));
        }
    }
    stream.write_all((text + "\n").as_bytes())?;
    stream.set_read_timeout(Some(START))?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    ensure!(answer.trim() == "errno=0", "{kind:?} refuses its configuration: {}", answer.trim());
    Ok(())
}

/// Plays one end of Warren's, in the namespace it is started in: its key and its peers come over stdin, up to an empty
/// line, and when stdin ends, it ends.
pub fn run(end: &TunnelEnd) -> anyhow::Result<()> {
    let mut lines = std::io::stdin().lines();
    let key: PrivateKey = lines.next().context("no key")??.parse()?;
    let device = open_device(&end.device, DeviceKind::Tun).context("cannot make a device")?;
    let sockets = Sockets::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, end.port)).context("cannot take the port")?;
    let gateway = Gateway::start(sockets, key, Limits::default())?;
    let network = NetworkKey(0);
    gateway.add_network(network, device, Device::Tun { mtu: MTU })?;
    for (number, line) in lines.by_ref().enumerate() {
        let line = line?;
        let mut words = line.split_whitespace();
        let (Some(key), Some(inside)) = (words.next(), words.next()) else { break };
        let endpoint = words.next().map(str::parse).transpose()?;
        gateway.add_peer(&Peer {
            id: PeerId(number as u128),
            network,
            public_key: key.parse()?,
            preshared_key: None,
            addresses: vec![inside.parse()?],
            mac: None,
            only: None,
            // Whoever calls is an operator, to whom nothing begins.
            reachable: endpoint.is_some(),
            endpoint,
            expires: None,
            idle_limit: None,
            keepalive: None,
        })?;
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
