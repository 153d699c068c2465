//! An authority on the internet: pebble, the test server of Let's Encrypt, with names that lead to the host.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use warren_lab::Internet;
use warren_lab::outside::HOST;

use crate::common::eventually;

/// Where the authority is.
const AT: &str = warren_lab::PUBLIC_V4;
const PORT: u16 = 14_000;
const MANAGEMENT: u16 = 15_000;

pub struct Pebble {
    folder: TempDir,
    child: Child,
    _names: Names,
}

impl Pebble {
    pub fn start(internet: &Internet) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let mut params = CertificateParams::default();
        // Who has the name of its issuer signed itself, as OpenSSL sees it.
        params.distinguished_name.push(DnType::CommonName, "an authority's authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![AT.to_owned()]).unwrap().signed_by(&key, &root).unwrap();
        std::fs::write(file("ca.pem"), root.pem()).unwrap();
        std::fs::write(file("chain.pem"), leaf.pem()).unwrap();
        std::fs::write(file("key.pem"), key.serialize_pem()).unwrap();
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("{AT}:{PORT}"),
            "managementListenAddress": format!("{AT}:{MANAGEMENT}"),
            "certificate": file("chain.pem"),
            "privateKey": file("key.pem"),
            "httpPort": 80,
            "tlsPort": 443,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        std::fs::write(file("config.json"), config.to_string()).unwrap();
        let names = Names::start(internet);
        let log = std::fs::File::create(file("pebble.log")).unwrap();
        let child = internet.namespace.enter(|| {
            Command::new("pebble")
                .arg("-config")
                .arg(file("config.json"))
                .args(["-dnsserver", &format!("{AT}:53")])
                .envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_WFE_NONCEREJECT", "0")])
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
        });
        let child = child.expect("pebble is installed: run scripts/install-deps.sh test");
        let pebble = Self { folder, child, _names: names };
        let answers = |port| {
            let at: SocketAddr = format!("{AT}:{port}").parse().unwrap();
            internet.namespace.enter(|| TcpStream::connect_timeout(&at, Duration::from_millis(200))).is_ok()
        };
        assert!(eventually(Duration::from_secs(15), || answers(PORT) && answers(MANAGEMENT)), "{}", pebble.log());
        pebble
    }

    pub fn directory(&self) -> String {
        format!("https://{AT}:{PORT}/dir")
    }

    /// What the directory itself is vouched for by.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The root of what it issues.
    pub fn root_file(&self, internet: &Internet) -> PathBuf {
        let path = self.folder.path().join("root.pem");
        let (ca, out) = (self.ca_file(), path.display().to_string());
        let line = format!("curl -sS --fail --cacert {} -o {out} https://{AT}:{MANAGEMENT}/roots/0", ca.display());
        internet.namespace.run(&line);
        path
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("pebble.log")).unwrap_or_default()
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A name server for which every name is the host.
struct Names {
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Names {
    fn start(internet: &Internet) -> Self {
        let socket = internet.namespace.enter(|| UdpSocket::bind((AT, 53))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let server = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
                let question = query.queries[0].clone();
                let mut answer = Message::response(query.metadata.id, OpCode::Query);
                if question.query_type() == RecordType::A {
                    let data = RData::A(A(HOST[0].parse().unwrap()));
                    answer.add_answer(Record::from_rdata(question.name().clone(), 1, data));
                }
                answer.add_query(question);
                let _ = socket.send_to(&answer.to_vec().unwrap(), from);
            }
        });
        Self { stop, server: Some(server) }
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
