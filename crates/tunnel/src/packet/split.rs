//! Large packets, as the kernel hands them over, into packets that fit the tunnel (what a network card does with TSO
//! and USO).

use super::virtio::{Header, Kind};
use super::{IPV6_HEADER, TCP, UDP, fold, pseudo_header, read16, read32, sum, write16, write32};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// The transport header's offset of the flags of TCP.
const FLAGS: usize = 13;

/// A packet, ready to be split.
#[derive(Debug)]
pub struct Split<'p> {
    packet: &'p [u8],
    /// What the pieces carry.
    payload: &'p [u8],
    version4: bool,
    kind: Kind,
    /// Where the transport header begins.
    transport: usize,
    headers: usize,
    segment: usize,
    /// Where one packet's checksum begins and stands, when it is missing.
    checksum: Option<(usize, usize)>,
    piece: usize,
    pieces: usize,
}

impl<'p> Split<'p> {
    /// Nothing when the header does not fit the packet.
    pub fn new(header: &Header, packet: &'p [u8]) -> Option<Self> {
        let version4 = packet.first()? >> 4 == 4;
        let whole = Self {
            packet,
            payload: &[],
            version4,
            kind: header.kind,
            transport: 0,
            headers: packet.len(),
            segment: 0,
            checksum: None,
            piece: 0,
            pieces: 1,
        };
        let start = usize::from(header.checksum_start);
        if header.kind == Kind::Whole {
            let place = start + usize::from(header.checksum_offset);
            if header.needs_checksum && place + 2 > packet.len() {
                return None;
            }
            return Some(Self { checksum: header.needs_checksum.then_some((start, place)), ..whole });
        }
        let (transport, protocol) = if version4 {
            let length = usize::from(packet[0] & 15) * 4;
            (length, *packet.get(9)?)
        } else {
            // Extension headers may stand between; where the checksum begins is where they end.
            (start, if header.kind == Kind::Udp { UDP } else { TCP })
        };
        let minimum = if version4 { 20 } else { IPV6_HEADER };
        let headers = match (header.kind, protocol, version4) {
            (Kind::Tcp4, TCP, true) | (Kind::Tcp6, TCP, false) => {
                transport + usize::from(packet.get(transport + 12)? >> 4) * 4
            }
            (Kind::Udp, UDP, _) => transport + 8,
            _ => return None,
        };
        let least = transport + if header.kind == Kind::Udp { 8 } else { 20 };
        let segment = usize::from(header.segment);
        if transport < minimum || headers < least || headers >= packet.len() || segment == 0 {
            return None;
        }
        let payload = &packet[headers..];
        Some(Self { payload, transport, headers, segment, pieces: payload.len().div_ceil(segment), ..whole })
    }

    /// The length of the next packet; nothing behind the last.
    pub fn next_length(&self) -> Option<usize> {
        let left = self.payload.len() - (self.piece * self.segment).min(self.payload.len());
        (self.piece < self.pieces).then(|| self.headers + left.min(self.segment))
    }

    /// Writes the next packet into `out`, which has its length.
    pub fn write(&mut self, out: &mut [u8]) {
        let piece = self.piece;
        self.piece += 1;
        if self.kind == Kind::Whole {
            out.copy_from_slice(self.packet);
            if let Some((start, place)) = self.checksum {
                let sum = !fold(sum(&out[start..], 0));
                // Only UDP has checksums of which zero says that there is none; for the others both zeros are the same.
                write16(out, place, if sum == 0 { 0xffff } else { sum });
            }
            return;
        }
        let at = piece * self.segment;
        let length = out.len() - self.headers;
        out[..self.headers].copy_from_slice(&self.packet[..self.headers]);
        out[self.headers..].copy_from_slice(&self.payload[at..at + length]);
        let total = out.len();
        let (addresses, protocol) = if self.version4 {
            write16(out, 2, total as u16);
            let id = read16(out, 4).wrapping_add(piece as u16);
            write16(out, 4, id);
            write16(out, 10, 0);
            let checksum = !fold(sum(&out[..self.transport], 0));
            write16(out, 10, checksum);
            (12..20, if self.kind == Kind::Udp { UDP } else { TCP })
        } else {
            write16(out, 4, (total - IPV6_HEADER) as u16);
            (8..40, if self.kind == Kind::Udp { UDP } else { TCP })
        };
        let before = pseudo_header(&out[addresses], protocol, total - self.transport);
        let transport = &mut out[self.transport..];
        if self.kind == Kind::Udp {
            let length = transport.len() as u16;
            write16(transport, 4, length);
            write16(transport, 6, 0);
            let checksum = !fold(sum(transport, before));
            write16(transport, 6, if checksum == 0 { 0xffff } else { checksum });
        } else {
            let sequence = read32(transport, 4).wrapping_add(at as u32);
            write32(transport, 4, sequence);
            if piece + 1 < self.pieces {
                transport[FLAGS] &= !(FIN | PSH);
            }
            if piece > 0 {
                // Said once (RFC 3168 §6.1.2).
                transport[FLAGS] &= !CWR;
            }
            write16(transport, 16, 0);
            let checksum = !fold(sum(transport, before));
            write16(transport, 16, checksum);
        }
    }
}
