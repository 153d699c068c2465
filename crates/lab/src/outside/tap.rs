//! Every packet that comes over the host's link, whoever it is for.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sys::socket::sockopt::{RcvBuf, ReceiveTimeout};
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket};
use nix::sys::time::TimeVal;

use super::log::{Log, Packet, Seen};
use crate::Namespace;

/// `PACKET_OUTGOING` of packet(7).
const OUTGOING: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Writes down what comes in over one link until it is dropped.
pub(crate) struct Tap {
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Tap {
    pub(crate) fn new(namespace: &Namespace, link: &str, log: Arc<Log>) -> Self {
        let (socket, index) = namespace.enter(|| {
            let index = nix::net::if_::if_nametoindex(link).expect("the link exists");
            let socket =
                socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
            (socket.expect("root opens packet sockets"), index as usize)
        });
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(0, 20_000)).expect("a time limit can be set");
        let _ = setsockopt(&socket, RcvBuf, &(8 << 20));
        let stop = Arc::new(AtomicBool::new(false));
        let reader = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let (mut buffer, mut flows) = ([0; 256], HashSet::new());
                while !stop.load(Ordering::Relaxed) {
                    let Ok((length, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) else {
                        continue;
                    };
                    if from.ifindex() != index || from.pkttype() == OUTGOING {
                        continue;
                    }
                    if let Some(packet) = parse(&buffer[..length.min(buffer.len())], &mut flows) {
                        log.add(Seen::Packet(packet));
                    }
                }
            }
        });
        Self { stop, reader: Some(reader) }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

type Flows = HashSet<(IpAddr, u16, IpAddr, u16)>;

/// `None` for what is not IP, for neighbour discovery, and for later packets of a TCP connection whose first one was
/// seen.
fn parse(bytes: &[u8], flows: &mut Flows) -> Option<Packet> {
    let (from, to, protocol, fragment, first, rest) = match bytes.first()? >> 4 {
        4 => {
            let header = usize::from(bytes[0] & 15) * 4;
            let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
            let word = u16::from_be_bytes([*bytes.get(6)?, *bytes.get(7)?]);
            let (fragment, first) = (word & 0x3fff != 0, word & 0x1fff == 0);
            (IpAddr::V4(address(12)?), IpAddr::V4(address(16)?), *bytes.get(9)?, fragment, first, bytes.get(header..)?)
        }
        6 => {
            let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?));
            let upper = upper_layer(*bytes.get(6)?, bytes.get(40..)?);
            (IpAddr::V6(address(8)?), IpAddr::V6(address(24)?), upper.0, upper.1, upper.2, upper.3)
        }
        _ => return None,
    };
    if protocol == 58 && rest.first().is_some_and(|kind| (133..=143).contains(kind)) {
        return None;
    }
    let port = |at: usize| Some(u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]));
    let has_ports = first && matches!(protocol, TCP | UDP);
    if has_ports && protocol == TCP {
        let flow = (from, port(0)?, to, port(2)?);
        let opens = rest.get(13).is_some_and(|flags| flags & 0x12 == 0x02);
        if opens {
            flows.insert(flow);
        } else if flows.contains(&flow) {
            return None;
        }
    }
    Some(Packet { from, to, protocol, port: if has_ports { port(2) } else { None }, fragment })
}

/// Behind the extension headers (RFC 8200 §4): the protocol, whether it is a fragment, whether it is the first one, and
/// what follows.
fn upper_layer(mut protocol: u8, mut rest: &[u8]) -> (u8, bool, bool, &[u8]) {
    let (mut fragment, mut first) = (false, true);
    while first {
        let length = match protocol {
            0 | 43 | 60 => rest.get(1).map(|words| (usize::from(*words) + 1) * 8),
            51 => rest.get(1).map(|words| (usize::from(*words) + 2) * 4),
            44 => {
                fragment = true;
                first = rest.get(2..4).is_some_and(|offset| u16::from_be_bytes([offset[0], offset[1]]) >> 3 == 0);
                Some(8)
            }
            _ => break,
        };
        let Some(next) = length.and_then(|length| rest.get(length..)) else { break };
        (protocol, rest) = (rest[0], next);
    }
    (protocol, fragment, first, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_seen_once_and_a_stray_packet_always() {
        let mut flows = Flows::new();
        let tcp = |source: u8, flags: u8| {
            let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 1, 1, 1, 1];
            packet.extend([0, source, 1, 187, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
            packet
        };
        assert_eq!(parse(&tcp(1, 2), &mut flows).and_then(|packet| packet.port), Some(443));
        assert_eq!(parse(&tcp(1, 16), &mut flows), None);
        assert!(parse(&tcp(2, 16), &mut flows).is_some());
    }

    #[test]
    fn extension_headers_hide_no_port() {
        let udp = [0, 1, 0, 53, 0, 8, 0, 0];
        let mut chain = vec![60, 0, 1, 4, 0, 0, 0, 0];
        chain.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        chain.extend(udp);
        assert_eq!(upper_layer(0, &chain), (17, false, true, &udp[..]));
        let mut later = vec![17, 0, 0, 8, 0, 0, 0, 1];
        later.extend(udp);
        assert_eq!(upper_layer(44, &later), (17, true, false, &udp[..]));
    }
}
