//! The resolvers that the host itself uses (resolv.conf(5)).

use std::net::{IpAddr, SocketAddr};

/// At most this many are used, as in glibc (MAXNS).
const MOST: usize = 3;

/// What `/etc/resolv.conf` names; none when it cannot be read.
pub fn of_this_host() -> Vec<SocketAddr> {
    parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .take(MOST)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nameservers_count() {
        let text =
            "# nameserver 9.9.9.9\nsearch example\nnameserver 192.0.2.1 # first\nnameserver\nnameserver fd00::1\n";
        assert_eq!(parse(text), ["192.0.2.1:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()]);
    }
}
