//! Compressed archives that arrive in pieces and are read on a thread that may block.

use std::io::{self, BufRead, BufReader, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

/// What zstd may ask for to decompress: 2^27 bytes, its own default for untrusted input (RFC 8878, window size).
const ZSTD_WINDOW_LOG: u32 = 27;
/// What xz may ask for, in bytes.
const XZ_MEMORY: u64 = 256 << 20;
/// Pieces that wait to be read.
const WAITING: usize = 8;

/// A part of an archive. One that is dropped half way never sends the end.
pub(super) enum Piece {
    Data(Bytes),
    Failed(io::Error),
    End,
}

impl From<io::Result<Bytes>> for Piece {
    fn from(piece: io::Result<Bytes>) -> Self {
        piece.map_or_else(Self::Failed, Self::Data)
    }
}

/// Where pieces go in, and where they are read.
pub(super) fn channel() -> (mpsc::Sender<Piece>, PieceReader) {
    let (sender, receiver) = mpsc::channel(WAITING);
    let reader =
        PieceReader { receiver, current: Bytes::new(), ended: false, failure: None, hasher: blake3::Hasher::new() };
    (sender, reader)
}

/// Reads one archive after the other, and digests them.
pub(super) struct PieceReader {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
    failure: Option<String>,
    hasher: blake3::Hasher,
}

impl PieceReader {
    /// What went wrong with the pieces, which says more than what the archive looked like because of it.
    pub fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    /// Reads what follows the end of the archive, and answers with the digest of all of it. The next archive can be
    /// read then.
    pub fn finish(&mut self) -> Result<String, String> {
        io::copy(self, &mut io::sink()).map_err(|error| error.to_string())?;
        self.ended = false;
        let digest = self.hasher.finalize().to_hex().to_string();
        self.hasher.reset();
        Ok(digest)
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            let failure = match self.receiver.blocking_recv() {
                Some(Piece::Data(data)) => {
                    self.hasher.update(&data);
                    self.current = data;
                    continue;
                }
                Some(Piece::End) => {
                    self.ended = true;
                    continue;
                }
                Some(Piece::Failed(error)) => error.to_string(),
                None => "the sender went away".to_owned(),
            };
            self.failure = Some(failure.clone());
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, failure));
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// Tells the compression by the first bytes.
pub(super) fn decompress(reader: &mut PieceReader) -> io::Result<Box<dyn Read + '_>> {
    let mut buffered = BufReader::with_capacity(1 << 16, reader);
    let start = buffered.fill_buf()?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(buffered))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        Box::new(decoder)
    } else if start.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
            .map_err(io::Error::other)?;
        Box::new(liblzma::bufread::XzDecoder::new_stream(buffered, stream))
    } else {
        Box::new(buffered)
    })
}
