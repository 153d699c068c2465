//! Somebody's laptop, behind an address translator on the internet, and what `wg-quick` makes on it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::{Lab, Namespace, Output};

/// The host's address, as the laptop knows it.
pub const SERVER: &str = "203.0.113.1";
/// The address under which the host sees the laptop.
pub const TRANSLATED: &str = "203.0.113.2";

/// A laptop with a default route through a translator that masquerades it, as at home.
pub struct Laptop {
    pub namespace: Namespace,
    _translator: Namespace,
    /// Where configurations are.
    directory: TempDir,
    /// What interfaces are named: `wireguard-go` keeps its control sockets by the names of interfaces, for the whole
    /// machine, so no other lab may have the same ones.
    word: String,
    configurations: AtomicU32,
}

/// An interface on a laptop that `wg-quick` brought up. It goes with its handle, also after a failure: the process that
/// serves it would keep the namespace.
pub struct Tunnel<'l> {
    laptop: &'l Laptop,
    configuration: PathBuf,
    is_up: bool,
}

impl Laptop {
    /// Gives the host an interface `wan1` with the address [`SERVER`], beyond which the laptop is.
    pub fn new(lab: &Lab, host: &Namespace) -> Self {
        let (translator, namespace) = (lab.namespace("translator"), lab.namespace("laptop"));
        lab.connect(host, "wan1", &translator, "wan");
        lab.connect(&translator, "lan", &namespace, "out");
        host.run(&format!("ip addr add {SERVER}/24 dev wan1"));
        for line in [
            &*format!("ip addr add {TRANSLATED}/24 dev wan"),
            "ip addr add 192.168.77.1/24 dev lan",
            "sysctl -qw net.ipv4.ip_forward=1",
            "nft add table ip nat",
            "nft add chain ip nat out { type nat hook postrouting priority 100 ; }",
            "nft add rule ip nat out oifname wan masquerade",
        ] {
            translator.run(line);
        }
        namespace.run("ip addr add 192.168.77.2/24 dev out");
        namespace.run("ip route add default via 192.168.77.1");
        let word = lab.prefix()[lab.prefix().len().saturating_sub(6)..].to_owned();
        let directory = tempfile::Builder::new().prefix("warren-laptop-").tempdir().expect("a directory can be made");
        Self { namespace, _translator: translator, directory, word, configurations: AtomicU32::new(0) }
    }

    /// A place for another configuration, where nobody else can read it. Its interface is named after it.
    pub fn configuration(&self) -> PathBuf {
        let number = self.configurations.fetch_add(1, Ordering::Relaxed);
        self.directory.path().join(format!("w{}{number}.conf", self.word))
    }

    /// Brings up what the file says; the error is what `wg-quick` said.
    pub fn up(&self, configuration: &Path) -> Result<Tunnel<'_>, String> {
        self.quick("up", configuration)?;
        Ok(Tunnel { laptop: self, configuration: configuration.to_owned(), is_up: true })
    }

    fn quick(&self, verb: &str, configuration: &Path) -> Result<(), String> {
        // `wg` looks at the control sockets of all interfaces of the machine, and removes one that nobody listens on,
        // also one that another laptop's program has just made: one at a time.
        let turn = File::create(std::env::temp_dir().join("warren-lab-wg-quick.lock"));
        let turn = turn.and_then(|file| file.lock().map(|()| file)).map_err(|error| format!("no turn: {error}"))?;
        let Output { success, stdout, stderr } =
            self.namespace.attempt(&format!("timeout 60 wg-quick {verb} {}", configuration.display()));
        drop(turn);
        if success { Ok(()) } else { Err(format!("wg-quick {verb}: {stdout}{stderr}")) }
    }
}

impl Tunnel<'_> {
    pub fn interface(&self) -> String {
        self.configuration.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Takes the interface down; the error is what `wg-quick` said.
    pub fn down(mut self) -> Result<(), String> {
        self.is_up = false;
        self.laptop.quick("down", &self.configuration)
    }
}

impl Drop for Tunnel<'_> {
    fn drop(&mut self) {
        if self.is_up
            && let Err(error) = self.laptop.quick("down", &self.configuration)
        {
            eprintln!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_tunnel_goes_with_its_handle_also_after_a_panic() {
        let lab = Lab::new();
        let laptop = Laptop::new(&lab, &lab.namespace("host"));
        let configuration = laptop.configuration();
        let text = "[Interface]\nPrivateKey = AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\nAddress = 10.9.9.9/32\n";
        std::fs::write(&configuration, text).unwrap();
        let links = || laptop.namespace.run("ip -o link show");
        let mut name = String::new();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let tunnel = laptop.up(&configuration).unwrap();
            name = tunnel.interface();
            assert!(links().contains(&name));
            panic!("as a test does whose assertion fails");
        }));
        assert!(outcome.is_err());
        assert!(!links().contains(&name), "{}", links());
        assert!(laptop.up(&configuration).unwrap().down().is_ok());
        assert!(!links().contains(&name), "{}", links());
        assert!(laptop.up(Path::new("/nonexistent/none.conf")).is_err());
    }
}
