//! One netlink message: a header, a fixed part, attributes. Every attribute starts at a multiple of four.

/// The length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;

/// A message that is being written. The socket fills in its length and sequence number.
#[derive(Clone)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(fixed);
        let mut message = Self { bytes };
        message.align();
        message
    }

    pub(crate) fn put(mut self, kind: u16, payload: &[u8]) -> Self {
        let length = (4 + payload.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.align();
        self
    }

    /// A text with the zero byte that the kernel expects after names.
    pub(crate) fn put_text(self, kind: u16, text: &str) -> Self {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        self.put(kind, &payload)
    }

    pub(crate) fn nest(self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        self.nest_after(kind, &[], inside)
    }

    /// Attributes inside an attribute, after a fixed part (as in `VETH_INFO_PEER`).
    pub(crate) fn nest_after(mut self, kind: u16, fixed: &[u8], inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        self.align();
        let mut done = inside(self);
        let length = (done.bytes.len() - start) as u16;
        done.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        done.bytes[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        done
    }

    pub(super) fn add_flags(&mut self, flags: u16) {
        let old = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&(old | flags).to_ne_bytes());
    }

    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    fn align(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// The attributes in a stretch of bytes; stops at the first that does not fit.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        Iterator::find(&mut { self }, |(found, _)| *found == kind).map(|(_, payload)| payload)
    }

    pub(crate) fn nested(self, kind: u16) -> Option<Self> {
        self.find(kind).map(Attributes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, payload))
    }
}

pub(crate) fn be32(payload: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(payload.get(..4)?.try_into().ok()?))
}

pub(crate) fn be64(payload: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(payload.get(..8)?.try_into().ok()?))
}

pub(crate) fn native32(payload: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(payload.get(..4)?.try_into().ok()?))
}

/// A name, up to its zero byte.
pub(crate) fn text(payload: &[u8]) -> Option<&str> {
    std::str::from_utf8(payload.split(|byte| *byte == 0).next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_as_written() {
        let bytes = Message::new(16, 1, &[9; 4])
            .put(1, &[1, 2, 3])
            .nest(2, |inside| inside.put_text(3, "veth").put(4, &7u32.to_ne_bytes()))
            .finish(5);
        assert_eq!(bytes.len() as u32, native32(&bytes).unwrap());
        let attributes = Attributes(&bytes[HEADER + 4..]);
        assert_eq!(attributes.find(1), Some(&[1u8, 2, 3][..]));
        let nested = attributes.nested(2).unwrap();
        assert_eq!(nested.find(3).and_then(text), Some("veth"));
        assert_eq!(nested.find(4).and_then(native32), Some(7));
    }

    #[test]
    fn a_cut_or_lying_attribute_ends_the_list() {
        assert_eq!(Attributes(&[255, 0, 1, 0, 5]).count(), 0);
        assert_eq!(Attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(Attributes(&[4, 0]).count(), 0);
    }
}
