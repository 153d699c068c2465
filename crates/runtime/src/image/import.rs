//! Taking an archive from outside: a stream of bytes, through a decompressor, into a draft.

use std::io;

use futures::StreamExt;
use tokio::sync::mpsc;
use warren_model::ImageName;
use warren_model::access::{ByteStream, ImageInfo, ImageProgress};

use super::error::ImageError;
use super::extract::{self, ExtractError};
use super::record::Draft;
use super::stream::{self, Piece, PieceReader};
use crate::disk::Pool;
use crate::disk::layout::Layout;
use crate::files;

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
    let (sender, reader) = stream::channel();
    let (layout, name) = (pool.layout().clone(), name.clone());
    let unpacking = tokio::task::spawn_blocking(move || unpack(&layout, &name, reader, &progress));
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
    mut reader: PieceReader,
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
    let extracted = stream::decompress(&mut reader)
        .map_err(ExtractError::Archive)
        .and_then(|archive| extract::extract(archive, &draft.root(), say));
    // What went wrong with the upload says more than what the archive looked like because of it.
    if let Some(reason) = reader.take_failure() {
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

pub(super) fn translate(error: ExtractError, root: &std::path::Path) -> ImageError {
    match error {
        ExtractError::Target(source) => ImageError::io("cannot unpack into", root)(source),
        other => ImageError::invalid(warren_model::problem::chain(&other)),
    }
}

/// A btrfs in a file must not be filled beyond what its host still has.
pub(super) fn room_on_host(layout: &Layout) -> io::Result<()> {
    let (free, _) = files::free_and_total(&layout.directory)?;
    if free < 64 << 20 && layout.is_btrfs() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
}
