//! Connecting to servers outside: the addresses that were checked, and no others.

use std::io;
use std::net::{IpAddr, SocketAddr};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::proxy::gate::{Gate, Limits};

/// Why there is no connection. Policy had no part in it, except in [`DialError::Forbidden`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("none of its addresses may be connected to")]
    Forbidden,
    #[error("it did not answer within {0} seconds")]
    TimedOut(u64),
    #[error("connecting failed: {0}")]
    Failed(#[source] io::Error),
}

/// Connects to the first of these addresses that answers (RFC 8305 §5): IPv6 and IPv4 in turn, each a little after the
/// one before.
pub(crate) async fn dial<G: Gate>(
    gate: &G,
    addresses: &[IpAddr],
    port: u16,
    limits: &Limits,
) -> Result<TcpStream, DialError> {
    let allowed: Vec<IpAddr> = addresses.iter().copied().filter(|address| gate.may_dial(*address)).collect();
    let racing = timeout(limits.connect, race(in_turn(&allowed), port, limits));
    racing.await.unwrap_or(Err(DialError::TimedOut(limits.connect.as_secs())))
}

async fn race(addresses: Vec<IpAddr>, port: u16, limits: &Limits) -> Result<TcpStream, DialError> {
    let mut waiting = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut last = DialError::Forbidden;
    loop {
        match waiting.next() {
            Some(address) => attempts.push(connect(SocketAddr::new(address, port))),
            None if attempts.is_empty() => return Err(last),
            None => {}
        }
        let more = waiting.len() > 0;
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(stream) => return Ok(stream),
                Err(error) => last = DialError::Failed(error),
            },
            () = sleep(limits.stagger), if more => {}
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// IPv6 first, then one of each family in turn, each family in the order given (RFC 8305 §4).
fn in_turn(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let (mut six, mut four) = (addresses.iter().filter(|a| a.is_ipv6()), addresses.iter().filter(|a| a.is_ipv4()));
    let mut ordered = Vec::with_capacity(addresses.len());
    while ordered.len() < addresses.len() {
        ordered.extend(six.next());
        ordered.extend(four.next());
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_ipv6_begins() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let mixed = addresses(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2"]);
        let expected = addresses(&["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "192.0.2.3"]);
        assert_eq!(in_turn(&mixed), expected);
        assert!(in_turn(&[]).is_empty());
    }
}
