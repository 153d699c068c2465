//! TCP segments that follow each other into one large packet, for which the kernel then goes its way once (what Linux
//! calls GRO). Splitting the large packet gives the same segments again.

use std::io::IoSlice;
use std::ops::Range;

use super::frame::Head;
use super::virtio::{Header, Kind};
use super::{IPV6_HEADER, TCP, fold, pseudo_header, read16, read32, sum, write16};

/// Segments in one packet at most.
const PIECES: usize = 128;
/// Flows that are put together at the same time.
const TRAINS: usize = 8;
/// Bytes of a packet at most.
const LARGEST: usize = 65_535;

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;

/// Where packets go.
pub trait Sink<T> {
    /// What has to stand before a packet that goes there.
    fn head(&self, to: &T, header: &Header, version4: bool) -> Head;

    /// `pieces` are the head and the parts of one packet.
    fn write(&mut self, to: &T, pieces: &[IoSlice<'_>]);
}

/// Segments on their way to their devices. They stay in the caller's buffer until [`Coalescer::flush`].
pub struct Coalescer<T> {
    trains: Vec<Train<T>>,
    /// Emptied lists, for the next trains.
    spare: Vec<Vec<Range<usize>>>,
}

/// Segments of one flow, without gaps.
struct Train<T> {
    to: T,
    first: Segment,
    /// Where the payloads stand, behind the first segment.
    more: Vec<Range<usize>>,
    /// What comes next in the stream.
    sequence: u32,
    payload: usize,
    last_id: u16,
    ids: Ids,
    pushed: bool,
    closed: bool,
}

/// How the identifications of IPv4 go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ids {
    Unknown,
    Rising,
    /// They say nothing, as the packets cannot be fragmented (RFC 6864 §4.1).
    Constant,
}

/// A TCP packet with data, in the caller's buffer.
#[derive(Clone)]
struct Segment {
    at: Range<usize>,
    version4: bool,
    transport: usize,
    headers: usize,
}

enum Found {
    /// Data that may be put together with other data.
    Data(Segment),
    /// Something else of a TCP flow; addresses and ports stand in these places.
    Other(Range<usize>, Range<usize>),
    Foreign,
}

impl<T: Clone + PartialEq> Coalescer<T> {
    pub fn new() -> Self {
        Self { trains: Vec::with_capacity(TRAINS), spare: (0..=TRAINS).map(|_| Vec::with_capacity(PIECES)).collect() }
    }

    /// Takes one whole packet, which stands at `at`, and writes what cannot wait.
    pub fn push(&mut self, buffer: &mut [u8], at: Range<usize>, to: &T, sink: &mut impl Sink<T>) {
        match find(buffer, at.clone()) {
            Found::Foreign => whole(buffer, at, to, sink),
            Found::Other(addresses, ports) => {
                // It must not overtake what came before it.
                if let Some(place) = self.place(buffer, to, addresses, ports) {
                    self.send(place, buffer, sink);
                }
                whole(buffer, at, to, sink);
            }
            Found::Data(segment) => {
                if let Some(place) = self.place(buffer, to, segment.addresses(), segment.ports()) {
                    if self.trains[place].append(buffer, &segment) {
                        return;
                    }
                    self.send(place, buffer, sink);
                }
                if self.trains.len() == TRAINS {
                    self.send(0, buffer, sink);
                }
                let more = self.spare.pop().unwrap_or_default();
                self.trains.push(Train::new(buffer, segment, to.clone(), more));
            }
        }
    }

    /// Writes all that is left.
    pub fn flush(&mut self, buffer: &mut [u8], sink: &mut impl Sink<T>) {
        while !self.trains.is_empty() {
            self.send(0, buffer, sink);
        }
    }

    fn place(&self, buffer: &[u8], to: &T, addresses: Range<usize>, ports: Range<usize>) -> Option<usize> {
        self.trains.iter().position(|train| {
            buffer[train.first.ports()] == buffer[ports.clone()]
                && buffer[train.first.addresses()] == buffer[addresses.clone()]
                && train.to == *to
        })
    }

    fn send(&mut self, place: usize, buffer: &mut [u8], sink: &mut impl Sink<T>) {
        let mut train = self.trains.remove(place);
        train.send(buffer, sink);
        train.more.clear();
        self.spare.push(train.more);
    }
}

fn whole<T>(buffer: &[u8], at: Range<usize>, to: &T, sink: &mut impl Sink<T>) {
    let head = sink.head(to, &Header::WHOLE, buffer[at.start] >> 4 == 4);
    sink.write(to, &[IoSlice::new(head.bytes()), IoSlice::new(&buffer[at])]);
}

impl Segment {
    fn addresses(&self) -> Range<usize> {
        let range = if self.version4 { 12..20 } else { 8..40 };
        self.at.start + range.start..self.at.start + range.end
    }

    fn ports(&self) -> Range<usize> {
        let transport = self.at.start + self.transport;
        transport..transport + 4
    }

    fn payload(&self) -> Range<usize> {
        self.at.start + self.headers..self.at.end
    }

    fn tcp<'b>(&self, buffer: &'b [u8]) -> &'b [u8] {
        &buffer[self.at.start + self.transport..self.at.start + self.headers]
    }
}

impl<T> Train<T> {
    fn new(buffer: &[u8], first: Segment, to: T, more: Vec<Range<usize>>) -> Self {
        let tcp = first.tcp(buffer);
        let payload = first.payload().len();
        let pushed = tcp[13] & PSH != 0;
        Self {
            to,
            sequence: read32(tcp, 4).wrapping_add(payload as u32),
            payload,
            last_id: read16(buffer, first.at.start + 4),
            ids: Ids::Unknown,
            pushed,
            closed: pushed,
            first,
            more,
        }
    }

    /// False when this segment does not continue the train.
    fn append(&mut self, buffer: &[u8], segment: &Segment) -> bool {
        let payload = segment.payload();
        let size = self.first.payload().len();
        if self.closed
            || self.more.len() + 1 == PIECES
            || segment.headers != self.first.headers
            || payload.len() > size
            || self.first.headers + self.payload + payload.len() > LARGEST
        {
            return false;
        }
        let (ip, first_ip) = (&buffer[segment.at.clone()], &buffer[self.first.at.clone()]);
        let mut ids = self.ids;
        if segment.version4 {
            // Type of service; do-not-fragment; time to live.
            if ip[1] != first_ip[1] || ip[6] != first_ip[6] || ip[8] != first_ip[8] {
                return false;
            }
            let id = read16(ip, 4);
            ids = if id == self.last_id.wrapping_add(1) {
                Ids::Rising
            } else if id == self.last_id && ip[6] & 0x40 != 0 {
                Ids::Constant
            } else {
                return false;
            };
            if self.ids != Ids::Unknown && self.ids != ids {
                return false;
            }
        } else if ip[..4] != first_ip[..4] || ip[7] != first_ip[7] {
            return false;
        }
        let (tcp, first_tcp) = (segment.tcp(buffer), self.first.tcp(buffer));
        // Acknowledgement and length of the header; window; urgent pointer and options.
        if read32(tcp, 4) != self.sequence
            || tcp[8..13] != first_tcp[8..13]
            || (tcp[13] ^ first_tcp[13]) & !PSH != 0
            || tcp[14..16] != first_tcp[14..16]
            || tcp[18..] != first_tcp[18..]
        {
            return false;
        }
        self.pushed = tcp[13] & PSH != 0;
        self.closed = self.pushed || payload.len() < size;
        self.sequence = self.sequence.wrapping_add(payload.len() as u32);
        self.payload += payload.len();
        self.last_id = if segment.version4 { read16(ip, 4) } else { 0 };
        self.ids = ids;
        self.more.push(payload);
        true
    }

    fn send(&self, buffer: &mut [u8], sink: &mut impl Sink<T>) {
        let first = &self.first;
        if self.more.is_empty() {
            return whole(buffer, first.at.clone(), &self.to, sink);
        }
        let headers = &mut buffer[first.at.start..first.at.start + first.headers];
        let total = first.headers + self.payload;
        if first.version4 {
            write16(headers, 2, total as u16);
            write16(headers, 10, 0);
            let checksum = !fold(sum(&headers[..first.transport], 0));
            write16(headers, 10, checksum);
        } else {
            write16(headers, 4, (total - IPV6_HEADER) as u16);
        }
        let addresses = if first.version4 { 12..20 } else { 8..40 };
        let before = fold(pseudo_header(&headers[addresses], TCP, total - first.transport));
        // The kernel adds the rest.
        write16(headers, first.transport + 16, before);
        if self.pushed {
            headers[first.transport + 13] |= PSH;
        }
        let header = Header {
            kind: if first.version4 { Kind::Tcp4 } else { Kind::Tcp6 },
            needs_checksum: true,
            header_length: first.headers as u16,
            segment: first.payload().len() as u16,
            checksum_start: first.transport as u16,
            checksum_offset: 16,
        };
        let head = sink.head(&self.to, &header, first.version4);
        let mut pieces = [IoSlice::new(&[]); PIECES + 1];
        pieces[0] = IoSlice::new(head.bytes());
        pieces[1] = IoSlice::new(&buffer[first.at.clone()]);
        for (piece, at) in pieces[2..].iter_mut().zip(&self.more) {
            *piece = IoSlice::new(&buffer[at.clone()]);
        }
        sink.write(&self.to, &pieces[..self.more.len() + 2]);
    }
}

fn find(buffer: &[u8], at: Range<usize>) -> Found {
    let packet = &buffer[at.clone()];
    let version4 = packet[0] >> 4 == 4;
    let transport = if version4 {
        // Options, or fragments.
        if packet[0] != 0x45 || packet[6] & 0xbf != 0 || packet[7] != 0 || packet[9] != TCP {
            return Found::Foreign;
        }
        20
    } else {
        if packet[6] != TCP {
            return Found::Foreign;
        }
        IPV6_HEADER
    };
    if packet.len() < transport + 20 {
        return Found::Foreign;
    }
    let tcp = &packet[transport..];
    let headers = transport + usize::from(tcp[12] >> 4) * 4;
    let segment = Segment { at, version4, transport, headers };
    let plain = tcp[13] & !(PSH | ECE) == ACK && headers >= transport + 20 && headers < packet.len();
    let other = || Found::Other(segment.addresses(), segment.ports());
    if !plain || version4 && fold(sum(&packet[..transport], 0)) != 0xffff {
        return other();
    }
    let addresses = if version4 { 12..20 } else { 8..40 };
    // With a wrong checksum it passes as it is, and the kernel finds it.
    if fold(sum(tcp, pseudo_header(&packet[addresses], TCP, tcp.len()))) != 0xffff {
        return other();
    }
    Found::Data(segment)
}
