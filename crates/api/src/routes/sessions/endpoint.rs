//! Where an operator's WireGuard finds the server's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::extract::FromRequestParts;
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use warren_model::client_config::Endpoint;

use crate::error::ApiError;
use crate::state::Shared;
use crate::tunnels::GatewayInfo;

/// The host that a request was sent to, without its port, as the client wrote it.
#[derive(Debug, Default)]
pub(crate) struct AskedHost(pub Option<String>);

impl FromRequestParts<Shared> for AskedHost {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, ApiError> {
        // HTTP/2 has it in the URI.
        let named = parts.headers.get(HOST).and_then(|value| value.to_str().ok()?.parse::<Authority>().ok());
        let authority = parts.uri.authority().cloned().or(named);
        Ok(Self(authority.map(|authority| authority.host().to_owned())))
    }
}

/// The endpoint, and what has to be said about it where it was only guessed.
pub(crate) fn choose(gateway: &GatewayInfo, asked: &AskedHost) -> (Endpoint, Option<String>) {
    if let Some(endpoint) = &gateway.endpoint {
        return (endpoint.clone(), None);
    }
    let (listen, port) = (gateway.listen.ip(), gateway.listen.port());
    if let Some(endpoint) = Endpoint::new(&listen.to_string(), port) {
        return (endpoint, None);
    }
    let speaks = |address: &IpAddr| listen.is_ipv6() || address.is_ipv4();
    let asked = asked.0.as_deref().filter(|host| leads_elsewhere(host, speaks));
    if let Some(endpoint) = asked.and_then(|host| Endpoint::new(host, port)) {
        return (endpoint, Some(guessed("the host under which the server was asked")));
    }
    let fallback = gateway.fallback.filter(speaks);
    if let Some(endpoint) = fallback.and_then(|address| Endpoint::new(&address.to_string(), port)) {
        return (endpoint, Some(guessed("an address of the server's host")));
    }
    // A host without any address of its own has no visitors but itself.
    let own = if listen.is_ipv6() { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    match Endpoint::new(&own.to_string(), port) {
        Some(endpoint) => (endpoint, Some(guessed("the server's own host, which has no other address"))),
        None => unreachable!("a loopback address is a host, and a socket that listens has a port"),
    }
}

fn guessed(what: &str) -> String {
    format!(
        "The endpoint is a guess: {what}. Where WireGuard is reached elsewhere, change it, or start the server with \
         --vpn-endpoint HOST:PORT."
    )
}

/// Whether the host is not the client's own.
fn leads_elsewhere(host: &str, speaks: impl Fn(&IpAddr) -> bool) -> bool {
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(address) => !address.to_canonical().is_loopback() && speaks(&address),
        Err(_) => {
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            host != "localhost" && !host.ends_with(".localhost") && host != "unix"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::session::WireGuardKey;

    fn said(listen: &str, endpoint: Option<&str>, asked: Option<&str>, fallback: Option<&str>) -> (String, bool) {
        let gateway = GatewayInfo {
            public_key: WireGuardKey::from_bytes([1; 32]),
            listen: listen.parse().unwrap(),
            endpoint: endpoint.map(|text| text.parse().unwrap()),
            fallback: fallback.map(|text| text.parse().unwrap()),
        };
        let (endpoint, note) = choose(&gateway, &AskedHost(asked.map(str::to_owned)));
        (endpoint.to_string(), note.is_some())
    }

    #[test]
    fn what_the_operator_of_the_server_says_counts_most() {
        let all = said("192.0.2.7:51820", Some("vpn.example:443"), Some("a.example"), Some("192.0.2.1"));
        assert_eq!(all, ("vpn.example:443".into(), false));
        assert_eq!(said("192.0.2.7:1", None, Some("a.example"), None), ("192.0.2.7:1".into(), false));
        assert_eq!(said("[fd00::7]:1", None, None, None), ("[fd00::7]:1".into(), false));
    }

    #[test]
    fn the_host_that_was_asked_counts_unless_it_is_the_clients_own() {
        let any = "0.0.0.0:51820";
        assert_eq!(said(any, None, Some("warren.example"), Some("10.0.0.9")), ("warren.example:51820".into(), true));
        assert_eq!(said(any, None, Some("192.0.2.9"), None), ("192.0.2.9:51820".into(), true));
        for own in [
            "localhost",
            "LOCALHOST.",
            "x.localhost",
            "127.0.0.1",
            "127.9.9.9",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
        ] {
            assert_eq!(said(any, None, Some(own), Some("10.0.0.9")), ("10.0.0.9:51820".into(), true), "{own}");
        }
        // Over IPv4 alone no IPv6 address is reached.
        assert_eq!(said(any, None, Some("[fd00::9]"), Some("10.0.0.9")), ("10.0.0.9:51820".into(), true));
        assert_eq!(said("[::]:9", None, Some("[fd00::9]"), None), ("[fd00::9]:9".into(), true));
    }

    #[test]
    fn a_host_without_addresses_is_reached_by_itself() {
        assert_eq!(said("0.0.0.0:51820", None, None, None), ("127.0.0.1:51820".into(), true));
        assert_eq!(said("[::]:51820", None, None, None), ("[::1]:51820".into(), true));
        assert_eq!(said("0.0.0.0:51820", None, None, Some("fd00::1")), ("127.0.0.1:51820".into(), true));
    }
}
