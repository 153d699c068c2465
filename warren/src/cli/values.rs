//! What people write on a command line, read into what it means.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use warren_model::domain::{self, InvalidDomain};
use warren_model::policy::InvalidHost;
use warren_model::record::Protocol;
use warren_model::wire::Port;

/// A length of time: `500ms`, `30s`, `5m`, `2h`, or seconds without a unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(format!("{unit:?} is no unit of time; write 500ms, 30s, 5m, 2h or 1d")),
    };
    let number: f64 = number.parse().map_err(|_| "write a number and a unit, such as 30s or 5m".to_owned())?;
    let length = Duration::try_from_secs_f64(number * seconds).map_err(|_| "that is too long".to_owned())?;
    if length.is_zero() { Err("it has to be more than nothing".to_owned()) } else { Ok(length) }
}

/// Whole seconds from 1 to 3600 (an hour): a [`duration`].
pub fn seconds(text: &str) -> Result<u32, String> {
    let length = duration(text)?;
    let whole = u32::try_from(length.as_secs()).ok().filter(|seconds| (1..=3600).contains(seconds));
    whole.filter(|_| length.subsec_nanos() == 0).ok_or_else(|| "it is 1s to 1h, in whole seconds".to_owned())
}

/// The time limit of a command: a [`duration`] from 1 ms to 24 h.
pub fn time_limit(text: &str) -> Result<Duration, String> {
    let length = duration(text)?;
    if length > warren_model::access::LONGEST_EXEC {
        return Err("a command may run for 24h at most".to_owned());
    }
    Ok(length.max(Duration::from_millis(1)))
}

/// A number of bytes: `4096`, `64k`, `1M`, `2G`, in steps of 1,024.
pub fn byte_count(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let bare = lower.trim_end_matches("ib").trim_end_matches('b');
    let (number, factor) = match bare.as_bytes().last() {
        Some(b'k') => (&bare[..bare.len() - 1], 1 << 10),
        Some(b'm') => (&bare[..bare.len() - 1], 1 << 20),
        Some(b'g') => (&bare[..bare.len() - 1], 1 << 30),
        _ => (bare, 1),
    };
    let number: u64 = number.parse().map_err(|_| "write a number of bytes, such as 4096, 64k or 1M".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "that is too much".to_owned())
}

/// A declared port: `web=8080/http`, with `tcp` where no protocol is named, and the port itself where no name is.
pub fn port(text: &str) -> Result<Port, String> {
    let help = "write NAME=PORT/PROTOCOL, such as web=8080/http; the protocol is tcp, udp, http or https";
    let (name, rest) = match text.split_once('=') {
        Some((name, rest)) => (Some(name), rest),
        None => (None, text),
    };
    let (port, protocol) = rest.split_once('/').unwrap_or((rest, "tcp"));
    let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or(format!("{port:?} is no port; {help}"))?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "http" => Protocol::Http,
        "https" => Protocol::Https,
        other => return Err(format!("{other:?} is no protocol; {help}")),
    };
    let name = name.map_or_else(|| format!("port-{port}"), str::to_owned);
    Ok(Port { name, port, protocol })
}

/// A resolver: `192.0.2.1`, `192.0.2.1:5353`, `fd00::1` or `[fd00::1]:5353`; port 53 where none is named.
#[cfg_attr(not(feature = "server"), allow(dead_code))]
pub fn resolver(text: &str) -> Result<SocketAddr, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = match (text.parse::<SocketAddr>(), bare.parse::<IpAddr>()) {
        (Ok(address), _) => address,
        (_, Ok(address)) => SocketAddr::new(address, 53),
        _ => return Err(format!("{text:?} is no address; write IP or IP:PORT, such as 9.9.9.9 or [fd00::1]:53")),
    };
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(format!("no resolver can answer at {text}"));
    }
    Ok(address)
}

/// A host name that can lead to a machine: `app.example.com`.
pub fn host(text: &str) -> Result<String, String> {
    match domain::host_name(text) {
        Ok(host) => Ok(host.to_string()),
        Err(_) if text.split_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => {
            Err(format!("{text:?} is a machine and a port; the host name comes first: HOST MACHINE:PORT"))
        }
        Err(error) => Err(no_host(&error)),
    }
}

/// What is wrong with the host name of a web site; policies, which have addresses too, have other words for it.
pub fn no_host(error: &InvalidDomain) -> String {
    match error {
        InvalidDomain::Host(InvalidHost::Address(text)) => {
            format!("{text:?} is an address; write a name that leads to the server in DNS, such as app.example.com")
        }
        InvalidDomain::Host(InvalidHost::Malformed(text)) | InvalidDomain::Underscore(text) => format!(
            "{text:?} is no host name; write labels of letters, digits and '-' with dots between them, such as \
             app.example.com"
        ),
        InvalidDomain::Host(InvalidHost::SingleLabel(text)) => {
            format!("{text:?} has no dot; write the whole name, such as app.example.com")
        }
        InvalidDomain::Host(InvalidHost::Inside(text)) => {
            format!("{text:?} is a name that is only known inside; write a public one, such as app.example.com")
        }
        other => other.to_string(),
    }
}

/// `key=value`, where the value may hold more of `=` or nothing.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// A variable for a command: `KEY=VALUE`, or `KEY` for the value it has here.
pub fn variable(text: &str) -> Result<(String, String), String> {
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    if !warren_model::access::is_variable_name(name) {
        return Err(format!("{name:?} is not the name of a variable: use letters, digits and '_', not a digit first"));
    }
    if text.contains('=') {
        return pair(text);
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(_) => Err(format!("{text} is not set here; write {text}=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        for (text, millis) in [("30s", 30_000), ("5m", 300_000), ("500ms", 500), ("2", 2_000), ("1.5h", 5_400_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "s", "5x", "-1s", "0", "1s2m", "1e3s", "9999999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(time_limit("25h").is_err());
    }

    #[test]
    fn byte_counts_are_read() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("64k", 65_536), ("1MiB", 1 << 20), ("2GB", 2 << 30)] {
            assert_eq!(byte_count(text), Ok(bytes), "{text}");
        }
        for bad in ["", "k", "1.5M", "-1", "99999999999999999G"] {
            assert!(byte_count(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_are_read() {
        let web = Port { name: "web".into(), port: 8080, protocol: Protocol::Http };
        assert_eq!(port("web=8080/http"), Ok(web));
        assert_eq!(port("db=5432").unwrap().protocol, Protocol::Tcp);
        assert_eq!(port("53/udp").unwrap().name, "port-53");
        for bad in ["web", "web=0", "web=65536", "web=80/sctp", "web=", "=80/"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn resolvers_are_read() {
        for (text, address) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("9.9.9.9:5353", "9.9.9.9:5353"),
            ("fd00::1", "[fd00::1]:53"),
            ("[fd00::1]", "[fd00::1]:53"),
            ("[fd00::1]:54", "[fd00::1]:54"),
        ] {
            assert_eq!(resolver(text), Ok(address.parse().unwrap()), "{text}");
        }
        for bad in
            ["", "dns.example", "9.9.9", "9.9.9.9:", "9.9.9.9:0", "9.9.9.9:65536", "0.0.0.0", "::", "224.0.0.1", "[::1"]
        {
            assert!(resolver(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_are_whole_and_an_hour_at_most() {
        for (text, expected) in [("1", 1), ("300", 300), ("5m", 300), ("1h", 3600)] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for bad in ["0", "500ms", "1.5s", "3601", "2h", "-1", "x"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_is_a_name_and_what_is_wrong_with_it_is_said_in_its_own_words() {
        assert_eq!(host("App.Example.com.").as_deref(), Ok("app.example.com"));
        for (bad, says) in [
            ("203.0.113.7", "is an address"),
            ("worker:8080", "HOST MACHINE:PORT"),
            ("worker", "has no dot"),
            ("a_b.example", "letters, digits and '-'"),
            ("a..example", "letters, digits and '-'"),
            ("web.vm.internal", "only known inside"),
            ("*.example.com", "wildcard"),
            ("co.uk", "public suffix"),
        ] {
            let said = host(bad).unwrap_err();
            assert!(said.contains(says) && !said.contains("range") && !said.contains("'_'"), "{said}");
        }
    }

    #[test]
    fn pairs_and_variables_are_read() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(pair("a="), Ok(("a".into(), String::new())));
        assert!(pair("a").is_err() && pair("=b").is_err());
        assert!(variable("PATH").is_ok());
        assert!(variable("A_VARIABLE_THAT_NOBODY_SETS").is_err());
    }
}
