//! What an operator's WireGuard is given: the text that `wg-quick` takes.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::session::{TUNNEL_MTU, WireGuardKey};

/// Seconds between packets that keep the way through the operator's NAT open, as wg(8) advises.
pub const KEEPALIVE_SECONDS: u16 = 25;

/// Where a server's WireGuard is reached: `HOST:PORT`, the host a name, an IPv4 address or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
}

/// A text that is not `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not HOST:PORT: write it like vpn.example.com:51820 or [2001:db8::1]:51820")]
pub struct InvalidEndpoint(String);

impl Endpoint {
    /// A host as it stands before a port, or an IPv6 address without its brackets. `None` for what is no host, an
    /// address that stands for every one, and port 0.
    pub fn new(host: &str, port: u16) -> Option<Self> {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bare.unwrap_or(host).parse::<IpAddr>() {
            Ok(address) if address.is_unspecified() || address.is_multicast() => return None,
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            Ok(IpAddr::V4(address)) if bare.is_none() => address.to_string(),
            Err(_) if is_name(host) => host.to_ascii_lowercase(),
            _ => return None,
        };
        (port != 0).then_some(Self { host, port })
    }

    /// Without the port; an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

/// A DNS name (RFC 1123 §2.1); one that ends in digits alone is an address that is badly written.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let refused = || InvalidEndpoint(text.chars().take(80).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        // `2001:db8::1` is an address without a port, whatever its last group looks like.
        if host.contains(':') && !host.starts_with('[') {
            return Err(refused());
        }
        let port = port.parse().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()));
        port.and_then(|port| Self::new(host, port)).ok_or_else(refused)
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One interface with one peer. Its [`Display`](fmt::Display) is the file, with the private key in it where there is
/// one.
#[derive(Clone, Copy)]
pub struct ClientConfig<'a> {
    /// In base64. `None` writes a comment where it belongs.
    pub private_key: Option<&'a str>,
    /// Said above the file's first line, each line as a comment.
    pub notes: &'a [String],
    pub addresses: &'a [IpNet],
    /// Resolvers for all of the client's names; none usually.
    pub dns: &'a [IpAddr],
    pub server_public_key: &'a WireGuardKey,
    pub allowed_ips: &'a [IpNet],
    pub endpoint: &'a Endpoint,
}

impl fmt::Display for ClientConfig<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in self.notes {
            writeln!(f, "# {note}")?;
        }
        writeln!(f, "[Interface]")?;
        match self.private_key {
            Some(key) => writeln!(f, "PrivateKey = {key}")?,
            None => writeln!(f, "# PrivateKey = (put the private key here that belongs to your public key)")?,
        }
        writeln!(f, "Address = {}", listed(self.addresses))?;
        writeln!(f, "MTU = {TUNNEL_MTU}")?;
        if !self.dns.is_empty() {
            writeln!(f, "DNS = {}", listed(self.dns))?;
        }
        writeln!(f, "\n[Peer]\nPublicKey = {}", self.server_public_key)?;
        writeln!(f, "AllowedIPs = {}", listed(self.allowed_ips))?;
        writeln!(f, "Endpoint = {}\nPersistentKeepalive = {KEEPALIVE_SECONDS}", self.endpoint)
    }
}

fn listed<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read() {
        for (text, same) in [
            ("vpn.example.com:51820", "vpn.example.com:51820"),
            ("VPN.example:1", "vpn.example:1"),
            ("192.0.2.1:51820", "192.0.2.1:51820"),
            ("[2001:DB8::1]:51820", "[2001:db8::1]:51820"),
            ("host_1:65535", "host_1:65535"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), same, "{text}");
        }
        let long = format!("{}:1", "a.".repeat(127) + "aa");
        for text in [
            "",
            "host",
            "host:",
            ":51820",
            "host:0",
            "host:65536",
            "host:+1",
            "2001:db8::1",
            "2001:db8::1:51820",
            "[192.0.2.1]:1",
            "[host]:1",
            "0.0.0.0:1",
            "[::]:1",
            "224.0.0.1:1",
            "192.0.2.300:1",
            "a b:1",
            "a\nPostUp = reboot:1",
            "-a:1",
            "a..b:1",
            "user@host:1",
            &long,
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_config_is_what_wg_quick_takes() {
        let (key, endpoint) = (WireGuardKey::from_bytes([7; 32]), "vpn.example:51820".parse().unwrap());
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let (addresses, allowed) = (nets(&["10.0.5.10/32", "fd00::9/128"]), nets(&["10.0.0.0/16", "fd00:0:0:1::/64"]));
        let mut config = ClientConfig {
            private_key: Some("cHJpdmF0ZQ=="),
            notes: &[],
            addresses: &addresses,
            dns: &[],
            server_public_key: &key,
            allowed_ips: &allowed,
            endpoint: &endpoint,
        };
        assert_eq!(
            config.to_string(),
            "[Interface]\nPrivateKey = cHJpdmF0ZQ==\nAddress = 10.0.5.10/32, fd00::9/128\nMTU = 1420\n\n[Peer]\n\
             PublicKey = BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\nAllowedIPs = 10.0.0.0/16, fd00:0:0:1::/64\n\
             Endpoint = vpn.example:51820\nPersistentKeepalive = 25\n"
        );
        let (dns, notes) = (["10.0.0.1".parse().unwrap()], ["one".to_owned(), "two".to_owned()]);
        (config.private_key, config.dns, config.notes) = (None, &dns, &notes);
        let text = config.to_string();
        assert!(text.starts_with("# one\n# two\n[Interface]\n# PrivateKey = (put"), "{text}");
        assert!(text.contains("\nDNS = 10.0.0.1\n"), "{text}");
    }
}
