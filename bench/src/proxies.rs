//! The proxies that Warren's is compared with, each in the router of a [`Detour`].

use std::fs::Permissions;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use crate::interrupt;
use crate::outside::{Detour, HOST, RESOLVER, SERVER};
use crate::process::Owned;
use crate::traffic::connected;

/// Bytes of a buffer of the copying proxy, one for each direction; Warren's have the same size.
const BUFFER: usize = 64 << 10;
/// Where Squid takes redirected connections.
const SQUID: u16 = 3129;
const START: Duration = Duration::from_secs(20);

/// What is needed to run them; `make bench` installs it.
const INSTALL: &str = "it may have to be installed: scripts/install-deps.sh bench";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This program: copies, and looks at nothing.
    Relay,
    /// HAProxy in TCP mode, by server name.
    Haproxy,
    /// Squid, intercepting: peeks at the server name and splices.
    Squid,
}

/// A proxy that runs until this is dropped.
pub struct Proxy {
    _process: Owned,
    _directory: TempDir,
    /// What a client dials.
    pub at: SocketAddr,
}

impl Proxy {
    /// On a processor of its own; returns when it carries connections.
    pub fn start(kind: Kind, detour: &Detour, cpu: Option<usize>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("warren-bench-proxy-").tempdir_in("/run")?;
        let here = SocketAddr::new(Detour::ROUTER, SERVER.port());
        let (process, at) = match kind {
            Kind::Relay => {
                let program = std::env::current_exe()?;
                let program = program.to_str().context("the own path is not text")?;
                let (listen, to) = (here.to_string(), SERVER.to_string());
                (detour.run(program, &["traffic", "relay", "--listen", &listen, "--to", &to], cpu)?, here)
            }
            Kind::Haproxy => {
                let path = write(&directory, "haproxy.cfg", &haproxy(here))?;
                (detour.run("haproxy", &["-f", &path], cpu).context(INSTALL)?, here)
            }
            Kind::Squid => {
                make_certificate(directory.path(), "router")?;
                redirect(detour)?;
                let path = write(&directory, "squid.conf", &squid(directory.path()))?;
                (detour.run("squid", &["-N", "-f", &path], cpu).context(INSTALL)?, SERVER)
            }
        };
        let mut proxy = Self { _process: process, _directory: directory, at };
        proxy.await_service(kind, detour)?;
        Ok(proxy)
    }

    fn await_service(&mut self, kind: Kind, detour: &Detour) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            interrupt::check()?;
            let at = self.at;
            if detour.client.enter(|| connected(at, Some(HOST), Duration::from_secs(2))).is_ok() {
                return Ok(());
            }
            if let Some(status) = self._process.child().try_wait()? {
                bail!("{kind:?} ended at once with {status}; {INSTALL}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("{kind:?} carried nothing within {START:?}")
    }
}

/// The role of the copying proxy: copies between whoever connects and one server, in one thread.
pub fn relay(listen: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (mut client, _) = listener.accept().await?;
            tokio::spawn(async move {
                // A side that goes away ends the connection, and the client's own measurement with an error.
                let Ok(mut server) = TcpStream::connect(to).await else { return };
                if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
                    return;
                }
                let _ = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await;
            });
        }
    })
}

fn haproxy(at: SocketAddr) -> String {
    format!(
        "global
    maxconn 1000
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
frontend names
    bind {at}
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req_ssl_hello_type 1 }} {{ req_ssl_sni -i {HOST} }}
    tcp-request content reject
    default_backend servers
backend servers
    server server {SERVER}
"
    )
}

fn squid(directory: &Path) -> String {
    let IpAddr::V4(router) = Detour::ROUTER else { unreachable!("the router has an IPv4 address") };
    format!(
        "http_port {router}:3128
https_port {router}:{SQUID} intercept ssl-bump tls-cert={directory}/proxy.pem generate-host-certificates=off
dns_nameservers {resolver}
acl named ssl::server_name {HOST}
acl first at_step SslBump1
ssl_bump peek first
ssl_bump splice named
ssl_bump terminate all
http_access allow all
cache deny all
access_log none
cache_log /dev/null
cache_store_log none
netdb_filename none
pid_filename none
coredump_dir none
pinger_enable off
shutdown_lifetime 0 seconds
visible_hostname router
",
        directory = directory.display(),
        resolver = RESOLVER.ip(),
    )
}

/// A certificate for this name and its key, in one file, `proxy.pem`. Squid wants to have one before it intercepts TLS,
/// though it is never shown to anybody.
pub fn make_certificate(directory: &Path, name: &str) -> anyhow::Result<()> {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", &format!("/CN={name}"), "-addext", &format!("subjectAltName=DNS:{name}")])
        .args(["-keyout", "proxy.pem", "-out", "proxy.pem"])
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .context("cannot run openssl")?;
    ensure!(output.status.success(), "openssl failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    std::fs::set_permissions(directory.join("proxy.pem"), Permissions::from_mode(0o644))?;
    Ok(std::fs::set_permissions(directory, Permissions::from_mode(0o755))?)
}

/// Hands Squid what goes to the server.
fn redirect(detour: &Detour) -> anyhow::Result<()> {
    let rules = format!(
        "add table ip detour {{ chain dialled {{ type nat hook prerouting priority dstnat; ip daddr {} tcp dport {} \
         redirect to :{SQUID}; }}; }}",
        SERVER.ip(),
        SERVER.port()
    );
    let output = detour.router.command("nft")?.arg(rules).stdin(Stdio::null()).output().context("cannot run nft")?;
    ensure!(output.status.success(), "nft failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn write(directory: &TempDir, name: &str, text: &str) -> anyhow::Result<String> {
    let path = directory.path().join(name);
    std::fs::write(&path, text)?;
    Ok(path.to_str().context("the path of a temporary directory is text")?.to_owned())
}
