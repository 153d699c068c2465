//! Warren's ingress and those that it is compared with: each ends TLS for one site and passes requests to one server.
//!
//! A client, a router on which the ingresses run, and a server, with a raw veth pair in between each. All of them go
//! before whatever else the machine does: what others take would be missing on one side of a pair only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;

use crate::interrupt;
use crate::namespace::Namespace;
use crate::options::Options;
use crate::outside::link;
use crate::process::{Owned, Precedence, on_processor};
use crate::proxies::make_certificate;
use crate::stats::Samples;
use crate::wires::Placement;

/// The name of the site.
const HOST: &str = "www.example.com";
const CLIENT_LINK: [&str; 2] = ["10.254.0.1", "10.254.0.2"];
const SERVER_LINK: [&str; 2] = ["10.255.0.1", "10.255.0.2"];
const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 254, 0, 2));
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 255, 0, 2)), 8080);
/// Bytes of an answer's body.
const BODY: usize = 1000;
/// Requests under way at the same time.
const IN_FLIGHT: usize = 64;
/// Of which so many are on one HTTP/2 connection.
const STREAMS: usize = 8;
/// Connections are open, and connections to the server are, before requests count.
const WARM_UP: Duration = Duration::from_millis(500);
const START: Duration = Duration::from_secs(20);

/// What is needed to run them; `make bench` installs and builds it.
const INSTALL: &str = "it may be missing: scripts/install-deps.sh bench, and for Warren's own cargo build --release -p \
                       warren-ingress --example ingress";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The example of `crates/ingress`.
    Warren,
    /// Debian's.
    Haproxy,
    /// Debian's.
    Caddy,
}

/// What clients speak; the server gets HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// What a client saw.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub per_second: f64,
    /// Milliseconds within which 99 of 100 requests were answered.
    pub p99: f64,
    /// How busy the processor of the ingress was, 0 to 1, and that of who asks and who answers.
    pub busy: [f64; 2],
}

/// The way to a server, without an ingress yet. Client and server share one processor; ingresses have another one.
pub struct World {
    // In the order in which they have to go.
    _server: Owned,
    client: Namespace,
    router: Namespace,
    _beyond: Namespace,
    directory: TempDir,
    _precedence: Precedence,
    ends_cpu: Option<usize>,
    ingress_cpu: Option<usize>,
}

/// One that runs until this is dropped.
pub struct Ingress<'w> {
    world: &'w World,
    _process: Owned,
    kind: Kind,
    at: SocketAddr,
}

impl World {
    pub fn new() -> anyhow::Result<Self> {
        let (ends_cpu, ingress_cpu) = Placement::Apart.cpus()?;
        let precedence = Precedence::take()?;
        let (client, router, beyond) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        link((&client, "eth0"), (&router, "client0"), CLIENT_LINK)?;
        link((&router, "server0"), (&beyond, "eth0"), SERVER_LINK)?;
        let directory = tempfile::Builder::new().prefix("warren-bench-ingress-").tempdir_in("/run")?;
        make_certificate(directory.path(), HOST)?;
        let config = write(&directory, "server.cfg", &server())?;
        let server = run(&beyond, "haproxy", &["-f", &config], &directory, ends_cpu)?;
        let world = Self {
            _server: server,
            client,
            router,
            _beyond: beyond,
            directory,
            _precedence: precedence,
            ends_cpu,
            ingress_cpu,
        };
        await_port(&world.router, SERVER).context("the server behind the ingresses does not answer")?;
        Ok(world)
    }

    /// With one thread, on a processor of its own; returns when it takes connections.
    pub fn ingress(&self, options: &Options, kind: Kind) -> anyhow::Result<Ingress<'_>> {
        let certificate = self.directory.path().join("proxy.pem");
        let certificate = certificate.to_str().context("the path of a temporary directory is text")?;
        let at = SocketAddr::new(ROUTER, kind.port());
        let start = |program: &str, arguments: &[&str]| {
            run(&self.router, program, arguments, &self.directory, self.ingress_cpu).context(INSTALL)
        };
        let mut process = match kind {
            Kind::Warren => {
                let program = options
                    .ingress
                    .canonicalize()
                    .with_context(|| format!("there is no program at {}: {INSTALL}", options.ingress.display()))?;
                let program = program.to_str().context("the path of Warren's ingress is not text")?;
                start(program, &[&at.to_string(), &SERVER.to_string(), certificate, certificate, "1", HOST])?
            }
            Kind::Haproxy => {
                start("haproxy", &["-f", &write(&self.directory, "haproxy.cfg", &haproxy(at, certificate))?])?
            }
            Kind::Caddy => {
                let config = write(&self.directory, "Caddyfile", &caddy(at, certificate, &self.directory))?;
                start("caddy", &["run", "--adapter", "caddyfile", "--config", &config])?
            }
        };
        if let Err(error) = await_port(&self.client, at) {
            let ended = process.child().try_wait()?;
            bail!(
                "{kind:?} does not answer ({}): {error}; {INSTALL}",
                ended.map_or_else(|| "it runs".to_owned(), |status| status.to_string())
            );
        }
        Ok(Ingress { world: self, _process: process, kind, at })
    }
}

impl Ingress<'_> {
    /// Asks for as long as this, with connections that are kept alive.
    pub fn ask(&self, protocol: Protocol, duration: Duration) -> anyhow::Result<Seen> {
        let log = self.world.directory.path().join("requests");
        let (connections, streams) = match protocol {
            Protocol::Http1 => (IN_FLIGHT, 1),
            Protocol::Http2 => (IN_FLIGHT / STREAMS, STREAMS),
        };
        let mut command = self.world.client.command("h2load")?;
        command
            .args(["--threads=1", "--tls13-ciphers=TLS_AES_128_GCM_SHA256"])
            .arg(format!("--clients={connections}"))
            .arg(format!("--max-concurrent-streams={streams}"))
            .arg(format!("--warm-up-time={}ms", WARM_UP.as_millis()))
            .arg(format!("--duration={}ms", duration.as_millis()))
            .arg(format!("--connect-to={}", self.at))
            .arg(format!("--log-file={}", log.display()))
            .args((protocol == Protocol::Http1).then_some("--h1"))
            .arg(format!("https://{HOST}/"))
            .stdin(Stdio::null());
        let cpus = [self.world.ingress_cpu, self.world.ends_cpu];
        let before = spent(cpus)?;
        let output = on_processor(self.world.ends_cpu, || command.output().context("cannot run h2load"))?;
        let after = spent(cpus)?;
        let busy = [0, 1].map(|which| {
            let [idle, all] = [0, 1].map(|field| after[which][field] - before[which][field]);
            1.0 - idle / all
        });
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "h2load failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        ensure!(
            said.contains(" 0 failed, 0 errored, 0 timeout"),
            "{:?} did not answer everything: {}",
            self.kind,
            said.lines().find(|line| line.starts_with("requests:")).unwrap_or_default()
        );
        let taken = durations(&std::fs::read_to_string(&log)?).with_context(|| format!("{:?}", self.kind))?;
        std::fs::remove_file(&log)?;
        let taken = Samples::new(taken)?;
        Ok(Seen { per_second: taken.len() as f64 / duration.as_secs_f64(), p99: taken.percentile(99.0), busy })
    }
}

impl Kind {
    fn port(self) -> u16 {
        match self {
            Self::Warren => 8443,
            Self::Haproxy => 8444,
            Self::Caddy => 8445,
        }
    }
}

/// Milliseconds of each request in h2load's log: when it began, its status, and microseconds until its end. Of a request
/// whose head was answered before those that count, h2load tells no status; it is left out.
fn durations(log: &str) -> anyhow::Result<Vec<f64>> {
    let mut taken = Vec::new();
    for line in log.lines() {
        let mut fields = line.split('\t').skip(1);
        match (fields.next(), fields.next()) {
            (Some("200"), Some(microseconds)) => taken.push(microseconds.parse::<f64>()? / 1e3),
            (Some("0"), _) => {}
            _ => bail!("a request was not answered as it should be: {line}"),
        }
    }
    Ok(taken)
}

/// What each of these processors has spent on nothing, and altogether, in the kernel's unit (proc_stat(5)). The kernel's
/// work for packets counts as well, which is no process's.
fn spent(cpus: [Option<usize>; 2]) -> anyhow::Result<[[f64; 2]; 2]> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let [one, other] = cpus.map(|cpu| spent_by(&stat, cpu.unwrap_or_default()).context("a processor tells no times"));
    Ok([one?, other?])
}

fn spent_by(stat: &str, cpu: usize) -> Option<[f64; 2]> {
    let fields = stat.lines().find_map(|line| line.strip_prefix(&format!("cpu{cpu} ")))?;
    // User, nice, system, idle, iowait, irq, softirq, steal; what follows is part of the first two.
    let times: Vec<f64> = fields.split_whitespace().take(8).map(|field| field.parse().ok()).collect::<Option<_>>()?;
    Some([times.get(3)? + times.get(4)?, times.iter().sum()])
}

/// A server that answers at once, and is never what others wait for: HAProxy itself, which answers from memory.
fn server() -> String {
    format!(
        "{DEFAULTS}
frontend server
    bind {SERVER}
    http-request return status 200 content-type text/plain string \"{}\"
",
        "x".repeat(BODY)
    )
}

const DEFAULTS: &str = "\
global
    nbthread 1
    maxconn 1000
defaults
    mode http
    timeout connect 5s
    timeout client 1m
    timeout server 1m";

/// Chooses by name, and says who the client is, as Warren's does.
fn haproxy(at: SocketAddr, certificate: &str) -> String {
    format!(
        "{DEFAULTS}
frontend sites
    bind {at} ssl crt {certificate} alpn h2,http/1.1
    option forwardfor
    http-request set-header X-Forwarded-Proto https
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    use_backend site if {{ req.hdr(host) -i {HOST} }}
backend site
    server server {SERVER}
"
    )
}

fn caddy(at: SocketAddr, certificate: &str, directory: &TempDir) -> String {
    format!(
        "{{
    admin off
    auto_https off
    storage file_system {}
    log {{
        output discard
    }}
    servers {{
        protocols h1 h2
    }}
}}
https://{HOST}:{} {{
    bind {}
    tls {certificate} {certificate}
    reverse_proxy {SERVER}
}}
",
        directory.path().join("caddy").display(),
        at.port(),
        at.ip(),
    )
}

fn run(
    namespace: &Namespace,
    program: &str,
    arguments: &[&str],
    directory: &TempDir,
    cpu: Option<usize>,
) -> anyhow::Result<Owned> {
    let mut command = namespace.command(program)?;
    // Caddy keeps things at home, and would take a thread of Go for every processor of the machine.
    command.args(arguments).env("HOME", directory.path()).env("GOMAXPROCS", "1");
    command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    on_processor(cpu, || Owned::spawn(&mut command))
}

fn await_port(namespace: &Namespace, at: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + START;
    namespace.enter(|| {
        while TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_err() {
            interrupt::check()?;
            ensure!(Instant::now() < deadline, "no connection within {START:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    })
}

fn write(directory: &TempDir, name: &str, text: &str) -> anyhow::Result<String> {
    let path: PathBuf = directory.path().join(name);
    std::fs::write(&path, text)?;
    Ok(path.to_str().context("the path of a temporary directory is text")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_idle_also_while_it_waits_for_a_disk() {
        let stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu1 0 0 0 50 0 0 0 0 0 0\n";
        assert_eq!(spent_by(stat, 0), Some([9.0, 36.0]));
        assert_eq!(spent_by(stat, 1), Some([50.0, 50.0]));
        assert_eq!(spent_by(stat, 2), None);
    }

    #[test]
    fn requests_are_read_out_of_the_log_and_a_refusal_is_none() {
        let log = "1795341801\t200\t1500\n1795341802\t0\t90\n1795341802\t200\t250\n";
        assert_eq!(durations(log).unwrap(), [1.5, 0.25]);
        assert!(durations("1795341801\t200\t1500\n1795341802\t503\t250\n").is_err());
        assert!(durations("1795341801\t-1\t1500\n").is_err());
    }
}
