//! Frames inside a streaming request or answer: one byte of kind, four of length (big endian), the payload.
//!
//! The payload of a *bulk* frame is handed on as it comes, so that its length costs no memory; any other frame is
//! collected first, and its length is bounded.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes before a payload.
pub const HEADER: usize = 5;

/// The longest payload of a bulk frame, in bytes.
const LONGEST_BULK: usize = 1 << 20;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The JSON document that opens a stream.
    Head,
    /// File content, log, stdin or stdout. Bulk.
    Data,
    /// Stderr. Bulk.
    Errors,
    /// How a command ended, as JSON. The last frame of an exec.
    Exit,
    /// Why a stream that had begun cannot go on, as JSON. The last frame.
    Refused,
    /// Everything was sent. The last frame of a file.
    End,
    /// No more stdin.
    StdinClosed,
    /// A terminal's new size, as JSON.
    Resize,
    /// A signal, as JSON.
    Signal,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::Head,
        Kind::Data,
        Kind::Errors,
        Kind::Exit,
        Kind::Refused,
        Kind::End,
        Kind::StdinClosed,
        Kind::Resize,
        Kind::Signal,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }

    fn is_bulk(self) -> bool {
        matches!(self, Kind::Data | Kind::Errors)
    }
}

/// One frame, or a part of a bulk frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub payload: Bytes,
}

/// Bytes that are no frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("there is no frame of kind {0}")]
    UnknownKind(u8),
    #[error("a frame of {length} bytes is longer than {most}")]
    TooLong { length: usize, most: usize },
}

/// The bytes of a frame.
///
/// # Panics
///
/// When the payload is 4 GiB or longer.
pub fn encode(kind: Kind, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER + payload.len());
    put_header(&mut bytes, kind, payload.len());
    bytes.put_slice(payload);
    bytes.freeze()
}

/// The five bytes before a payload of `length` bytes.
///
/// # Panics
///
/// When `length` does not fit 32 bits.
pub fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    put_header(&mut &mut bytes[..], kind, length);
    bytes
}

fn put_header(out: &mut impl BufMut, kind: Kind, length: usize) {
    out.put_u8(kind as u8);
    out.put_u32(u32::try_from(length).expect("no caller has a payload of 4 GiB"));
}

/// Makes frames out of chunks.
#[derive(Debug)]
pub struct Decoder {
    chunk: Bytes,
    collected: BytesMut,
    state: State,
    longest: usize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    Bulk { kind: Kind, left: usize },
    Whole { kind: Kind, length: usize },
}

impl Decoder {
    /// `longest` bounds the frames that are collected, in bytes.
    pub fn new(longest: usize) -> Self {
        Self { chunk: Bytes::new(), collected: BytesMut::new(), state: State::Header, longest }
    }

    /// Takes the next chunk; only after [`Decoder::next_frame`] said that there is no frame left.
    pub fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty());
        self.chunk = chunk;
    }

    /// Whether a frame has begun and not ended.
    pub fn is_inside_frame(&self) -> bool {
        !matches!(self.state, State::Header) || !self.collected.is_empty()
    }

    /// The next frame, or `None` when another chunk is needed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Malformed> {
        loop {
            match self.state {
                State::Header => {
                    let Some(mut header) = self.take_whole(HEADER) else { return Ok(None) };
                    let byte = header.get_u8();
                    let kind = Kind::from_byte(byte).ok_or(Malformed::UnknownKind(byte))?;
                    let length = header.get_u32() as usize;
                    let most = if kind.is_bulk() { LONGEST_BULK } else { self.longest };
                    if length > most {
                        return Err(Malformed::TooLong { length, most });
                    }
                    self.state = match kind.is_bulk() {
                        true => State::Bulk { kind, left: length },
                        false => State::Whole { kind, length },
                    };
                }
                State::Bulk { left: 0, .. } => self.state = State::Header,
                State::Bulk { kind, left } => {
                    if self.chunk.is_empty() {
                        return Ok(None);
                    }
                    let payload = self.chunk.split_to(left.min(self.chunk.len()));
                    self.state = State::Bulk { kind, left: left - payload.len() };
                    return Ok(Some(Frame { kind, payload }));
                }
                State::Whole { kind, length } => {
                    let Some(payload) = self.take_whole(length) else { return Ok(None) };
                    self.state = State::Header;
                    return Ok(Some(Frame { kind, payload }));
                }
            }
        }
    }

    fn take_whole(&mut self, length: usize) -> Option<Bytes> {
        if self.collected.is_empty() && self.chunk.len() >= length {
            return Some(self.chunk.split_to(length));
        }
        let missing = length - self.collected.len();
        let part = self.chunk.split_to(missing.min(self.chunk.len()));
        self.collected.extend_from_slice(&part);
        (self.collected.len() == length).then(|| self.collected.split().freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(chunks: impl IntoIterator<Item = Bytes>) -> Result<Vec<Frame>, Malformed> {
        let mut decoder = Decoder::new(1000);
        let mut frames = Vec::new();
        for chunk in chunks {
            decoder.push(chunk);
            while let Some(frame) = decoder.next_frame()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn an_empty_frame_without_bulk_is_a_frame() {
        let frames = decode([encode(Kind::End, b""), encode(Kind::StdinClosed, b"")]).unwrap();
        assert_eq!(frames.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::End, Kind::StdinClosed]);
    }

    #[test]
    fn a_frame_that_is_too_long_or_of_no_kind_is_refused() {
        assert!(matches!(decode([encode(Kind::Exit, &[0; 1001])]), Err(Malformed::TooLong { .. })));
        assert!(matches!(decode([Bytes::from_static(&[9, 0, 0, 0, 0])]), Err(Malformed::UnknownKind(9))));
        assert!(matches!(decode([Bytes::from_static(&[1, 255, 255, 255, 255])]), Err(Malformed::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn frames_read_back_however_they_are_cut(
            payloads in prop::collection::vec((0u8..9, prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cut in 1usize..50,
        ) {
            let mut wire = BytesMut::new();
            let mut expected: Vec<(u8, Vec<u8>)> = Vec::new();
            for (kind, payload) in &payloads {
                wire.extend_from_slice(&encode(Kind::from_byte(*kind).unwrap(), payload));
                expected.push((*kind, payload.clone()));
            }
            let frames = decode(wire.freeze().chunks(cut).map(Bytes::copy_from_slice)).unwrap();
            let bytes = |wanted: u8| -> Vec<u8> {
                expected.iter().filter(|(k, _)| *k == wanted).flat_map(|(_, p)| p.clone()).collect()
            };
            for kind in 0..9 {
                let got: Vec<u8> =
                    frames.iter().filter(|f| f.kind as u8 == kind).flat_map(|f| f.payload.to_vec()).collect();
                prop_assert_eq!(got, bytes(kind));
            }
        }

        #[test]
        fn random_bytes_never_panic(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..64)) {
            let _ = decode(chunks.into_iter().map(Bytes::from));
        }
    }
}
