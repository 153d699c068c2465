//! Images: the trees that machine disks are made from.
//!
//! An image is built from a recipe (`images/` in the source tree) with `mmdebstrap`, imported from a root file
//! system archive, or pulled from a registry. Each way it is made in the pool's work directory and gets its name as the last step, so that an
//! image with a name is whole.
//!
//! | file | holds |
//! | --- | --- |
//! | [`store`] | listing, finding, removing; who may do what at the same time |
//! | `recipe` | the recipes that are compiled in |
//! | `build` | mmdebstrap |
//! | `sources` | the part of the host's APT configuration that a build needs |
//! | `import`, `stream`, `extract` | taking an archive that nobody vouches for |
//! | [`pull`], `layer` | taking an image from a registry, layer by layer |

mod build;
mod error;
mod extract;
mod import;
mod layer;
pub mod pull;
mod recipe;
mod record;
mod sources;
pub mod store;
mod stream;
#[cfg(test)]
mod tests;

pub use error::ImageError;
pub(crate) use record::read_record;
pub use store::ImageStore;
