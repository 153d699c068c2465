//! The header before a packet of a TUN or TAP device with `IFF_VNET_HDR` (virtio 1.2 §5.1.6, without the count of buffers).

/// Bytes, which is also what `TUNGETVNETHDRSZ` says unless somebody changed it.
pub const HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`
pub const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_ECN`
const ECN: u8 = 0x80;

/// What one large packet has to be split into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: it is one packet.
    Whole,
    Tcp4,
    Tcp6,
    /// Datagrams over IPv4 or IPv6.
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// Whether only the pseudo header is in the checksum yet.
    pub needs_checksum: bool,
    /// The transport header and payload, in bytes.
    pub header_length: u16,
    /// Bytes of payload of each segment but the last.
    pub segment: u16,
    /// Where what is summed up begins.
    pub checksum_start: u16,
    /// Where in there the checksum stands.
    pub checksum_offset: u16,
}

impl Header {
    /// Of a packet with which there is nothing to do.
    pub const WHOLE: Self = Self {
        kind: Kind::Whole,
        needs_checksum: false,
        header_length: 0,
        segment: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// Nothing for a kind of packet that was not asked for.
    pub fn read(bytes: &[u8; HEADER]) -> Option<Self> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let kind = match bytes[1] & !ECN {
            0 => Kind::Whole,
            1 => Kind::Tcp4,
            4 => Kind::Tcp6,
            5 => Kind::Udp,
            _ => return None,
        };
        Some(Self {
            kind,
            needs_checksum: bytes[0] & NEEDS_CHECKSUM != 0,
            header_length: word(2),
            segment: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        })
    }

    /// The same when so many bytes stand before the packet.
    pub fn behind(&self, bytes: u16) -> Self {
        let more = |value: u16, counts: bool| if counts { value.saturating_add(bytes) } else { value };
        Self {
            header_length: more(self.header_length, self.header_length > 0),
            checksum_start: more(self.checksum_start, self.needs_checksum),
            ..*self
        }
    }

    /// The same when so many bytes are taken away before the packet. Nothing when the checksum begins in them.
    pub fn without(&self, bytes: u16) -> Option<Self> {
        let checksum_start = match self.checksum_start.checked_sub(bytes) {
            None if self.needs_checksum => return None,
            start => start.unwrap_or(0),
        };
        Some(Self { header_length: self.header_length.saturating_sub(bytes), checksum_start, ..*self })
    }

    pub fn write(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = if self.needs_checksum { NEEDS_CHECKSUM } else { 0 };
        bytes[1] = match self.kind {
            Kind::Whole => 0,
            Kind::Tcp4 => 1,
            Kind::Tcp6 => 4,
            Kind::Udp => 5,
        };
        for (at, word) in
            [(2, self.header_length), (4, self.segment), (6, self.checksum_start), (8, self.checksum_offset)]
        {
            bytes[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}
