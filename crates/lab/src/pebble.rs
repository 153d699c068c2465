//! A certificate authority that speaks ACME: pebble, the test server of Let's Encrypt, as a process.
//!
//! `scripts/install-deps.sh` installs it. It comes with a name server of its own, which says where challenges are fetched.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;

use crate::outside::HOST;
use crate::{Internet, Namespace, PUBLIC_V4};

/// A name that does not exist, nor does one below it; all others lead to whoever is to answer challenges.
pub const NOBODY: &str = "nobody.example.net";

const PATIENCE: Duration = Duration::from_secs(30);

/// A running authority.
pub struct Pebble {
    tls: ServerTls,
    directory: SocketAddr,
    management: SocketAddr,
    log: PathBuf,
    child: Child,
    _names: Names,
}

impl Pebble {
    /// On loopback, in this process's own namespace. Challenges are fetched from `challenges`, a port of loopback.
    pub fn on_loopback(challenges: u16) -> Self {
        let here = Ipv4Addr::LOCALHOST;
        // It takes its ports by number, and another may be faster.
        for _ in 0..5 {
            let free = [(); 2].map(|()| TcpListener::bind((here, 0)).expect("loopback has free ports"));
            let ports = free.map(|listener| listener.local_addr().expect("a listener has an address").port());
            let place = Place { namespace: None, at: here, ports, names: 0, lead_to: here, challenges };
            if let Some(pebble) = place.start() {
                return pebble;
            }
        }
        panic!("pebble did not start");
    }

    /// On an internet, whose name server is this one, too: each name leads to the internet's host, where challenges are
    /// fetched from port 80.
    pub fn on(internet: &Internet) -> Self {
        let place = Place {
            namespace: Some(&internet.namespace),
            at: PUBLIC_V4.parse().expect("it is an IPv4 address"),
            ports: [14_000, 15_000],
            names: 53,
            lead_to: HOST[0].parse().expect("it is an IPv4 address"),
            challenges: 80,
        };
        place.start().expect("pebble starts")
    }

    /// The URL of the directory.
    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.directory)
    }

    /// What the directory itself is vouched for by: a file of PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.tls.ca_file()
    }

    /// The root of what it issues, as PEM. `internet`: where it is, if not on loopback.
    pub fn root(&self, internet: Option<&Internet>) -> String {
        let url = format!("https://{}/roots/0", self.management);
        let ask = || Command::new("curl").args(["-sS", "--fail", "--cacert"]).arg(self.ca_file()).arg(&url).output();
        let output = match internet {
            Some(internet) => internet.namespace.enter(ask),
            None => ask(),
        };
        let output = output.expect("curl is installed");
        assert!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("PEM is text")
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The certificate of a server's TLS for one address, and the root that signed it, as files.
pub struct ServerTls {
    folder: TempDir,
}

impl ServerTls {
    pub fn new(address: IpAddr) -> Self {
        let folder = tempfile::tempdir().expect("a directory can be made");
        let mut params = CertificateParams::default();
        // Who has the name of its issuer signed itself, as OpenSSL sees it.
        params.distinguished_name.push(DnType::CommonName, "an authority's authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pair = || KeyPair::generate().expect("a key can be made");
        let root = CertifiedIssuer::self_signed(params, pair()).expect("a certificate can be signed");
        let key = pair();
        let params = CertificateParams::new(vec![address.to_string()]).expect("an address can be in a certificate");
        let leaf = params.signed_by(&key, &root).expect("a certificate can be signed");
        let tls = Self { folder };
        for (path, text) in
            [(tls.ca_file(), root.pem()), (tls.chain_file(), leaf.pem()), (tls.key_file(), key.serialize_pem())]
        {
            std::fs::write(&path, text).expect("a new directory can be written to");
        }
        tls
    }

    /// The root.
    pub fn ca_file(&self) -> PathBuf {
        self.folder().join("ca.pem")
    }

    pub fn chain_file(&self) -> PathBuf {
        self.folder().join("chain.pem")
    }

    pub fn key_file(&self) -> PathBuf {
        self.folder().join("key.pem")
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Where an authority is, and whom it asks.
struct Place<'a> {
    namespace: Option<&'a Namespace>,
    at: Ipv4Addr,
    /// Of the directory, and of what is only for tests.
    ports: [u16; 2],
    /// The port of the name server; 0 for any.
    names: u16,
    lead_to: Ipv4Addr,
    challenges: u16,
}

impl Place<'_> {
    fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self.namespace {
            Some(namespace) => namespace.enter(work),
            None => work(),
        }
    }

    /// `None` where it ended at once, as it does without its ports.
    fn start(&self) -> Option<Pebble> {
        let tls = ServerTls::new(self.at.into());
        let [directory, management] = self.ports.map(|port| SocketAddr::from((self.at, port)));
        let config = format!(
            "{{\"pebble\":{{\"listenAddress\":\"{directory}\",\"managementListenAddress\":\"{management}\",\
             \"certificate\":{:?},\"privateKey\":{:?},\"httpPort\":{},\"tlsPort\":1,\"ocspResponderURL\":\"\",\
             \"externalAccountBindingRequired\":false}}}}",
            tls.chain_file(),
            tls.key_file(),
            self.challenges,
        );
        let (settings, log) = (tls.folder().join("config.json"), tls.folder().join("pebble.log"));
        std::fs::write(&settings, config).expect("a new directory can be written to");
        let names = Names::start(self);
        let mut command = Command::new("pebble");
        command.arg("-strict").arg("-config").arg(&settings).args(["-dnsserver", &names.address.to_string()]);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("PEBBLE_VA_NOSLEEP", "1");
        // Each certificate is verified anew, and no test hangs on chance.
        command.env("PEBBLE_AUTHZREUSE", "0").env("PEBBLE_WFE_NONCEREJECT", "0");
        let file = File::create(&log).expect("a new directory can be written to");
        let again = file.try_clone().expect("a file can be had twice");
        command.stdin(Stdio::null()).stdout(again).stderr(file);
        let child = self.enter(|| command.spawn());
        if child.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            panic!("pebble is not installed: run scripts/install-deps.sh test");
        }
        let child = child.expect("pebble can be started");
        let mut pebble = Pebble { tls, directory, management, log, child, _names: names };
        let start = Instant::now();
        let listens = |at: SocketAddr| self.enter(move || TcpStream::connect_timeout(&at, PATIENCE)).is_ok();
        while pebble.child.try_wait().expect("a child can be asked for").is_none() {
            if listens(directory) && listens(management) {
                return Some(pebble);
            }
            assert!(start.elapsed() < PATIENCE, "{}", pebble.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }
}

/// A name server, until it is dropped.
struct Names {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Names {
    fn start(place: &Place<'_>) -> Self {
        let socket = place.enter(|| UdpSocket::bind((place.at, place.names))).expect("the port is free");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket takes a timeout");
        let address = socket.local_addr().expect("a socket has an address");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, lead_to) = (Arc::clone(&stop), place.lead_to);
        let server = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
                if let Ok(answer) = answer(&query, lead_to).to_vec() {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { address, stop, server: Some(server) }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn answer(query: &Message, lead_to: Ipv4Addr) -> Message {
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    for question in &query.queries {
        answer.add_query(question.clone());
        let owner = question.name().clone();
        let text = owner.to_ascii().to_lowercase();
        if text.trim_end_matches('.').ends_with(NOBODY) {
            answer.metadata.response_code = ResponseCode::NXDomain;
        } else if question.query_type() == RecordType::A {
            answer.add_answer(Record::from_rdata(owner, 1, RData::A(A(lead_to))));
        }
    }
    answer
}
