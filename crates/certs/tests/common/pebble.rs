//! Pebble, the test server of Let's Encrypt, as a process. `scripts/install-deps.sh` installs it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use warren_certs::acme::Directory;

use super::{Answers, Names, ServerTls, stub};

pub struct Pebble {
    pub tls: ServerTls,
    port: u16,
    management: u16,
    child: Child,
    _names: Names,
}

/// The key with which a customer's account is bound in [`Pebble::for_customers`].
pub const CUSTOMER: (&str, &str) = ("kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W");

impl Pebble {
    /// A server that fetches challenges from `answers`.
    pub async fn start(answers: &Answers) -> Self {
        Self::launch(answers, false).await
    }

    /// One that asks for an external account.
    pub async fn for_customers(answers: &Answers) -> Self {
        Self::launch(answers, true).await
    }

    pub fn directory(&self) -> Directory {
        Directory::new(&format!("https://127.0.0.1:{}/dir", self.port), Some(&self.tls.ca_file())).unwrap()
    }

    /// The root below which certificates are issued, as PEM.
    pub async fn root(&self) -> String {
        stub::get(&self.tls, self.management, "/roots/0").await
    }

    /// Ends the process and waits for it.
    pub async fn stop(mut self) -> ServerTls {
        self.child.kill().await.unwrap();
        self.tls
    }

    async fn launch(answers: &Answers, customers: bool) -> Self {
        // It takes its ports by number, and another may be faster.
        for _ in 0..5 {
            let names = Names::start().await;
            if let Some(started) = Self::attempt(answers, customers, names).await {
                return started;
            }
        }
        panic!("pebble did not start");
    }

    async fn attempt(answers: &Answers, customers: bool, names: Names) -> Option<Self> {
        let tls = ServerTls::new();
        let (port, management) = free_ports();
        let file = |name: &str| tls.folder.path().join(name);
        let mut config = json!({
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": file("chain.pem"),
            "privateKey": file("key.pem"),
            "httpPort": answers.port,
            // For a kind of challenge that is not used.
            "tlsPort": 1,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": customers,
        });
        if customers {
            config["externalAccountMACKeys"] = json!({ CUSTOMER.0: CUSTOMER.1 });
        }
        std::fs::write(file("config.json"), json!({ "pebble": config }).to_string()).unwrap();
        let log = std::fs::File::create(file("pebble.log")).unwrap();
        let child = Command::new("pebble")
            .arg("-strict")
            .arg("-config")
            .arg(file("config.json"))
            .arg("-dnsserver")
            .arg(names.address.to_string())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("PEBBLE_VA_NOSLEEP", "1")
            // Each certificate is verified anew, and no test hangs on chance.
            .env("PEBBLE_AUTHZREUSE", "0")
            .env("PEBBLE_WFE_NONCEREJECT", "0")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        let mut child = match child {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                panic!("pebble is not installed: run scripts/install-deps.sh test")
            }
            other => other.unwrap(),
        };
        for _ in 0..200 {
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            let both = [port, management].map(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
            let [first, second] = both;
            if first.await.is_ok() && second.await.is_ok() {
                return Some(Self { tls, port, management, child, _names: names });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }
}

fn free_ports() -> (u16, u16) {
    let both = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let [first, second] = both.map(|listener| listener.local_addr().unwrap().port());
    (first, second)
}
