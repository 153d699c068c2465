//! Taking an archive from outside: a stream of bytes, through a decompressor, into a draft.

use std::io::{self, BufRead, BufReader, Read};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use warren_model::ImageName;
use warren_model::access::{ByteStream, ImageInfo, ImageProgress};

use super::error::ImageError;
use super::extract::{self, ExtractError};
use super::record::Draft;
use crate::disk::Pool;
use crate::disk::layout::Layout;
use crate::files;

/// What zstd may ask for to decompress: 2^27 bytes, its own default for untrusted input (RFC 8878, window size).
const ZSTD_WINDOW_LOG: u32 = 27;
/// What xz may ask for, in bytes.
const XZ_MEMORY: u64 = 256 << 20;

/// Imports an archive under a name, in place of an image that has it.
pub(super) async fn import(
    pool: &Pool,
    name: &ImageName,
    mut archive: ByteStream,
    progress: mpsc::Sender<ImageProgress>,
) -> Result<ImageInfo, ImageError> {
    let room = pool.has_room().map_err(ImageError::io("cannot measure the room for", &pool.layout().image(name)))?;
    if !room {
        return Err(ImageError::HostDiskFull);
    }
    let (sender, receiver) = mpsc::channel(8);
    let (layout, name) = (pool.layout().clone(), name.clone());
    let unpacking =
        tokio::task::spawn_blocking(move || unpack(&layout, &name, ChannelReader::new(receiver), &progress));
    let feeding = async move {
        while let Some(piece) = archive.next().await {
            let failed = piece.is_err();
            if sender.send(Piece::from(piece)).await.is_err() || failed {
                return;
            }
        }
        let _ = sender.send(Piece::End).await;
    };
    let ((), unpacked) = tokio::join!(feeding, unpacking);
    match unpacked {
        Ok(outcome) => outcome,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn unpack(
    layout: &Layout,
    name: &ImageName,
    mut reader: ChannelReader,
    progress: &mpsc::Sender<ImageProgress>,
) -> Result<ImageInfo, ImageError> {
    let image = layout.image(name);
    let failed = |context| ImageError::io(context, &image);
    let _lock = layout.lock_image(name, true).map_err(failed("cannot lock"))?;
    if layout.image_is_in_use(name).map_err(failed("cannot tell who uses"))? {
        return Err(ImageError::InUse { name: name.clone() });
    }
    let draft = Draft::new(layout).map_err(failed("cannot start"))?;
    let say = |unpacked: u64| {
        let stage = format!("unpacking, {} MiB so far", unpacked >> 20);
        let _ = progress.try_send(ImageProgress { stage, fraction: None });
        room_on_host(layout)
    };
    say(0).map_err(failed("cannot measure the room for"))?;
    let extracted = decompress(&mut reader)
        .map_err(ExtractError::Archive)
        .and_then(|stream| extract::extract(stream, &draft.root(), say));
    // What went wrong with the upload says more than what the archive looked like because of it.
    if let Some(reason) = reader.failure.take() {
        return Err(ImageError::invalid(format!("the upload broke off: {reason}")));
    }
    extracted.map_err(|error| translate(error, &draft.root()))?;
    let digest = reader.finish().map_err(|reason| ImageError::invalid(format!("the upload broke off: {reason}")))?;
    let size = files::tree_size(&draft.root()).map_err(failed("cannot measure"))?;
    let info = ImageInfo {
        name: name.to_string(),
        digest,
        size,
        source: "import".to_owned(),
        created_at: jiff::Timestamp::now(),
    };
    draft.publish(&info, name).map_err(failed("cannot store"))?;
    Ok(info)
}

fn translate(error: ExtractError, root: &std::path::Path) -> ImageError {
    match error {
        ExtractError::Target(source) => ImageError::io("cannot unpack into", root)(source),
        other => ImageError::invalid(crate::helper::chain(&other)),
    }
}

/// A btrfs in a file must not be filled beyond what its host still has.
fn room_on_host(layout: &Layout) -> io::Result<()> {
    let (free, _) = files::free_and_total(&layout.directory)?;
    if free < 64 << 20 && layout.is_btrfs() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
}

/// Tells the compression by the first bytes.
fn decompress(reader: &mut ChannelReader) -> io::Result<Box<dyn Read + '_>> {
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

/// A part of an upload. One that is dropped half way never sends the end.
enum Piece {
    Data(Bytes),
    Failed(io::Error),
    End,
}

impl From<io::Result<Bytes>> for Piece {
    fn from(piece: io::Result<Bytes>) -> Self {
        piece.map_or_else(Self::Failed, Self::Data)
    }
}

/// Reads an upload on a thread that may block, and digests it.
struct ChannelReader {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
    failure: Option<String>,
    hasher: blake3::Hasher,
}

impl ChannelReader {
    fn new(receiver: mpsc::Receiver<Piece>) -> Self {
        Self { receiver, current: Bytes::new(), ended: false, failure: None, hasher: blake3::Hasher::new() }
    }

    /// Reads what follows the end of the archive, and answers with the digest of the whole upload.
    fn finish(mut self) -> Result<String, String> {
        match io::copy(&mut self, &mut io::sink()) {
            Ok(_) => Ok(self.hasher.finalize().to_hex().to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Read for ChannelReader {
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
