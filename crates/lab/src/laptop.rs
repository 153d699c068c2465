//! Somebody's laptop, behind an address translator on the internet.

use crate::{Lab, Namespace};

/// The host's address, as the laptop knows it.
pub const SERVER: &str = "203.0.113.1";
/// The address under which the host sees the laptop.
pub const TRANSLATED: &str = "203.0.113.2";

/// A laptop with a default route through a translator that masquerades it, as at home.
pub struct Laptop {
    pub namespace: Namespace,
    _translator: Namespace,
    word: String,
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
        Self { namespace, _translator: translator, word }
    }

    /// A name for an interface that no other lab has: `wireguard-go` keeps its control sockets by the names of
    /// interfaces, for the whole machine.
    pub fn interface(&self, number: u32) -> String {
        format!("w{}{number}", self.word)
    }
}
