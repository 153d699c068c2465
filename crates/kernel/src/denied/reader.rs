//! `nfnetlink_log`: the messages that say what to report, and the reports (`linux/netfilter/nfnetlink_log.h`).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use warren_model::{MacAddress, NetworkNumber};

use super::{DeniedPacket, Headers, parse};
use crate::namespace;
use crate::netlink::{Attributes, Family, Message, Socket, be32, text};
use crate::route;
use crate::spec::NFLOG_GROUP;

/// `NFNL_SUBSYS_ULOG`, with `NFULNL_MSG_PACKET` and `NFULNL_MSG_CONFIG`.
const PACKET: u16 = 4 << 8;
const CONFIG: u16 = 4 << 8 | 1;
/// `NFULNL_CFG_CMD_BIND`, `NFULNL_COPY_PACKET`, `NFULNL_CFG_F_SEQ`.
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const NUMBERED: u16 = 1;

/// How much of a packet is copied: an IPv6 header and several extension headers.
const COPIED: u32 = 128;
/// The kernel takes a buffer of that size for each report, whatever its length, out of what may wait in the socket.
const REPORT: u32 = 1024;
const BUFFER: usize = 1 << 20;
/// A report, the answer to a configuration, and what the kernel says about one link are a good deal shorter.
const LONGEST: usize = 16 * 1024;
/// How many messages are read in one turn.
const PER_TURN: usize = 128;
const MOST_LINKS: usize = 4096;

pub(super) struct Reader {
    log: Socket,
    route: Socket,
    /// The number that the next report should have.
    next: Option<u32>,
    links: HashMap<u32, String>,
}

#[derive(Debug, Default)]
pub(super) struct Losses {
    pub(super) overrun: u64,
    pub(super) malformed: u64,
}

/// A report, in parts.
struct Report<'a> {
    kind: &'a str,
    inbound: Option<u32>,
    mac: Option<MacAddress>,
    number: Option<u32>,
    packet: &'a [u8],
}

impl Reader {
    /// Binds to the group.
    ///
    /// # Errors
    /// `EBUSY`, `EEXIST` or `EPERM` while another socket is bound to it.
    pub(super) fn open(inside: BorrowedFd<'_>) -> Result<Self, Errno> {
        let (mut log, route) = namespace::enter(inside, || -> Result<_, Errno> {
            Ok((Socket::open_small(Family::Netfilter, LONGEST)?, Socket::open_small(Family::Route, LONGEST)?))
        })??;
        log.make_room(BUFFER)?;
        log.apply(vec![bind()])?;
        Ok(Self { log, route, next: None, links: HashMap::new() })
    }

    /// Reads until nothing waits, or the limit is reached.
    pub(super) fn read(&mut self, network: NetworkNumber, mut each: impl FnMut(DeniedPacket)) -> Result<Losses, Errno> {
        let mut losses = Losses::default();
        let Self { log, route, next, links } = self;
        for _ in 0..PER_TURN {
            let read = log.receive_waiting(|kind, payload| {
                if kind != PACKET {
                    return;
                }
                let Some(report) = report(payload) else {
                    losses.malformed += 1;
                    return;
                };
                if let Some(number) = report.number {
                    losses.overrun += u64::from(next.map_or(0, |next| number.wrapping_sub(next)));
                    *next = Some(number.wrapping_add(1));
                }
                let (Ok(kind), Some(headers)) = (report.kind.parse(), parse(report.packet)) else {
                    losses.malformed += 1;
                    return;
                };
                each(DeniedPacket {
                    network,
                    kind,
                    source: headers.source,
                    destination: headers.destination,
                    protocol: headers.protocol,
                    source_port: headers.source_port,
                    destination_port: headers.destination_port,
                    inbound: report.inbound.and_then(|index| name(links, route, index)),
                    mac: report.mac,
                });
            });
            match read {
                // The gap in the numbers tells how many.
                Ok(()) | Err(Errno::ENOBUFS) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(losses)
    }

    pub(super) fn forget_links(&mut self) {
        self.links.clear();
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.log.as_fd()
    }
}

fn bind() -> Message {
    let [high, low] = NFLOG_GROUP.to_be_bytes();
    // In one message, so that no report comes before it is said how.
    let mut mode = COPIED.to_be_bytes().to_vec();
    mode.extend([COPY_PACKET, 0]);
    Message::new(CONFIG, 0, &[0, 0, high, low])
        .put(1, &[BIND])
        .put(2, &mode)
        .put(3, &REPORT.to_be_bytes())
        // In hundredths of a second; with a threshold of one nothing waits.
        .put(4, &1u32.to_be_bytes())
        .put(5, &1u32.to_be_bytes())
        .put(6, &NUMBERED.to_be_bytes())
}

/// `NFULA_IFINDEX_INDEV`, `NFULA_HWADDR`, `NFULA_PAYLOAD`, `NFULA_PREFIX`, `NFULA_SEQ`, after a `struct nfgenmsg`.
fn report(payload: &[u8]) -> Option<Report<'_>> {
    let attributes = Attributes(payload.get(4..)?);
    Some(Report {
        kind: attributes.find(10).and_then(text).unwrap_or_default(),
        inbound: attributes.find(4).and_then(be32),
        mac: attributes.find(8).and_then(mac),
        number: attributes.find(12).and_then(be32),
        packet: attributes.find(9)?,
    })
}

/// A `struct nfulnl_msg_packet_hw`: the address's length, two bytes of padding, and room for eight bytes of address.
fn mac(payload: &[u8]) -> Option<MacAddress> {
    let [0, 6, _, _, address @ ..] = payload else { return None };
    Some(MacAddress::from_octets(*address.first_chunk()?))
}

/// The headers of the packet in a report; `None` when it is no report.
pub(crate) fn headers_in_report(payload: &[u8]) -> Option<Option<Headers>> {
    report(payload).map(|report| parse(report.packet))
}

fn name(links: &mut HashMap<u32, String>, route: &mut Socket, index: u32) -> Option<String> {
    if let Some(name) = links.get(&index) {
        return Some(name.clone());
    }
    let name = route::link_by_index(route, index).ok()??.name;
    if links.len() >= MOST_LINKS {
        links.clear();
    }
    links.insert(index, name.clone());
    Some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use warren_model::MemberNumber;

    use super::*;

    #[test]
    fn a_report_is_taken_apart() {
        let attribute = |kind: u16, payload: &[u8]| {
            let mut bytes = ((payload.len() + 4) as u16).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(payload);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let parts = [attribute(4, &[0, 0, 0, 7]), attribute(10, b"network\0"), attribute(12, &[0, 0, 1, 0])];
        let hardware = attribute(8, &[0, 6, 0, 0, 2, 0x6d, 0, 0, 0, 9, 0, 0]);
        let mut payload = vec![2, 0, 0, 5];
        payload.extend(parts.concat());
        payload.extend(&hardware);
        assert!(report(&payload).is_none(), "without a packet it says nothing");
        payload.extend(attribute(9, &[0x45, 0]));
        let report = report(&payload).unwrap();
        assert_eq!((report.kind, report.inbound, report.number), ("network", Some(7), Some(256)));
        assert_eq!(report.mac.and_then(|mac| mac.member()).map(MemberNumber::get), Some(9));
        assert_eq!(report.packet, [0x45, 0]);
    }

    #[test]
    fn an_address_of_another_kind_of_hardware_is_no_mac() {
        for payload in [&[][..], &[0, 6], &[0, 6, 0, 0, 2, 0x6d, 0, 0, 0], &[0, 8, 0, 0, 2, 0x6d, 0, 0, 0, 9, 0, 0]] {
            assert_eq!(mac(payload), None, "{payload:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_reports_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(report) = report(&bytes) {
                let _ = parse(report.packet);
            }
        }
    }
}
