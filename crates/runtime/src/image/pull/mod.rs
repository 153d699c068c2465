//! Taking an image from an OCI or Docker registry.
//!
//! The manifest says by digest which layers make up the image; each is unpacked over the ones below it while it
//! arrives, and nothing gets a name before the last digest was right.
//!
//! | file | holds |
//! | --- | --- |
//! | `registry` | what is asked of a registry, tokens, digests |
//! | `manifest` | what it answers, and which of its images fits this host |
//! | `transport` | HTTP over TLS |

mod error;
mod manifest;
mod registry;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transport;

use tokio::sync::mpsc;
use warren_model::access::{ImageInfo, ImageProgress};
use warren_model::{ImageName, ImageReference};

pub use error::PullError;

use self::manifest::Descriptor;
use self::registry::Registry;
use super::error::ImageError;
use super::extract::{ExtractError, LARGEST, Unpacking};
use super::import::{room_on_host, translate};
use super::record::{self, Draft};
use super::stream::{self, Piece, PieceReader};
use crate::disk::Pool;
use crate::disk::layout::Layout;
use crate::files::{self, blocking};

/// How much arrives between two words about it, in bytes.
const STEP: u64 = 1 << 20;

/// Pulls an image under a name, in place of an image that has it.
pub(super) async fn pull(
    pool: &Pool,
    name: &ImageName,
    reference: &ImageReference,
    progress: mpsc::Sender<ImageProgress>,
) -> Result<ImageInfo, ImageError> {
    let layout = pool.layout().clone();
    let image = layout.image(name);
    let failed = |source| ImageError::Pull { reference: reference.to_string(), source };
    let stage = format!("asking {} for the image", reference.host());
    let _ = progress.try_send(ImageProgress { stage, fraction: Some(0.0) });
    let mut registry = Registry::new(reference.clone());
    let remote = registry.resolve().await.map_err(failed)?;
    let (reading, there) = (layout.clone(), name.clone());
    let there = blocking(move || record::read_record(&reading, &there)).await;
    let there = there.map_err(ImageError::io("cannot read the record of", &image))?;
    if let Some(info) = there.filter(|info| info.digest == remote.digest.as_str()) {
        return Ok(info);
    }
    if !pool.has_room().map_err(ImageError::io("cannot measure the room for", &image))? {
        return Err(ImageError::HostDiskFull);
    }
    let total = total_size(&remote.layers).map_err(failed)?;
    let (sender, reader) = stream::channel();
    let work = Work {
        layout,
        name: name.clone(),
        digest: remote.digest.to_string(),
        source: reference.to_string(),
        layers: remote.layers.len(),
    };
    let unpacking = tokio::task::spawn_blocking(move || work.run(reader));
    let feeding = feed(&mut registry, &remote.layers, total, sender, &progress);
    let (fed, unpacked) = tokio::join!(feeding, unpacking);
    let unpacked = unpacked.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    // What went wrong with the download says more than what the archive looked like because of it.
    fed.map_err(failed)?;
    unpacked
}

/// Hands every layer over, checked. Ends early when nobody takes them any more.
async fn feed(
    registry: &mut Registry,
    layers: &[Descriptor],
    total: u64,
    sender: mpsc::Sender<Piece>,
    progress: &mpsc::Sender<ImageProgress>,
) -> Result<(), PullError> {
    let mut told = 0;
    let mut done = 0;
    for (number, layer) in layers.iter().enumerate() {
        let arriving = async {
            let mut blob = registry.blob(layer, "a layer").await?;
            while let Some(data) = blob.next().await? {
                done += data.len() as u64;
                if done == total || done - told >= STEP {
                    told = done;
                    let stage = format!(
                        "layer {} of {}, {} of {} MiB",
                        number + 1,
                        layers.len(),
                        done.div_ceil(1 << 20),
                        total.div_ceil(1 << 20)
                    );
                    let fraction = Some(done as f32 / total.max(1) as f32);
                    let _ = progress.try_send(ImageProgress { stage, fraction });
                }
                if sender.send(Piece::Data(data)).await.is_err() {
                    return Ok(false);
                }
            }
            Ok(sender.send(Piece::End).await.is_ok())
        };
        let arrived: Result<bool, PullError> = tokio::select! {
            arrived = arriving => arrived,
            () = sender.closed() => Ok(false),
        };
        match arrived {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                let _ = sender.send(Piece::Failed(std::io::Error::other(error.to_string()))).await;
                return Err(error);
            }
        }
    }
    Ok(())
}

fn total_size(layers: &[Descriptor]) -> Result<u64, PullError> {
    let total = layers.iter().try_fold(0, |total: u64, layer| total.checked_add(layer.size));
    total.filter(|total| *total <= LARGEST).ok_or(PullError::TooLarge { what: "the image", limit: LARGEST })
}

/// What is done on a thread that may block.
struct Work {
    layout: Layout,
    name: ImageName,
    digest: String,
    source: String,
    layers: usize,
}

impl Work {
    fn run(self, mut reader: PieceReader) -> Result<ImageInfo, ImageError> {
        let Self { layout, name, .. } = &self;
        let image = layout.image(name);
        let failed = |context| ImageError::io(context, &image);
        let _lock = layout.lock_image(name, true).map_err(failed("cannot lock"))?;
        if layout.image_is_in_use(name).map_err(failed("cannot tell who uses"))? {
            return Err(ImageError::InUse { name: name.clone() });
        }
        let draft = Draft::new(layout).map_err(failed("cannot start"))?;
        let root = draft.root();
        let unpacked = self.unpack(&mut reader, &root);
        if let Some(reason) = reader.take_failure() {
            return Err(ImageError::invalid(format!("the download broke off: {reason}")));
        }
        unpacked.map_err(|error| translate(error, &root))?;
        let size = files::tree_size(&root).map_err(failed("cannot measure"))?;
        let info = ImageInfo {
            name: name.to_string(),
            digest: self.digest.clone(),
            size,
            source: self.source.clone(),
            created_at: jiff::Timestamp::now(),
        };
        draft.publish(&info, name).map_err(failed("cannot store"))?;
        Ok(info)
    }

    fn unpack(&self, reader: &mut PieceReader, root: &std::path::Path) -> Result<(), ExtractError> {
        let room = |_| room_on_host(&self.layout);
        room(0).map_err(ExtractError::Target)?;
        let mut tree = Unpacking::new(root, room)?;
        for _ in 0..self.layers {
            tree.layer(stream::decompress(reader).map_err(ExtractError::Archive)?)?;
            reader.finish().map_err(|reason| ExtractError::Archive(std::io::Error::other(reason)))?;
        }
        tree.finish()
    }
}
