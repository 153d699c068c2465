//! Images: the trees that machine disks are made from.
//!
//! An image is built from a recipe (`images/` in the source tree) with `mmdebstrap`, or imported from a root file
//! system archive. Either way it is made in the pool's work directory and gets its name as the last step, so that an
//! image with a name is whole.
//!
//! | file | holds |
//! | --- | --- |
//! | [`store`] | listing, finding, removing; who may do what at the same time |
//! | `recipe` | the recipes that are compiled in |
//! | `build` | mmdebstrap |
//! | `sources` | the part of the host's APT configuration that a build needs |
//! | `import`, `extract` | taking an archive that nobody vouches for |

mod build;
mod error;
mod extract;
mod import;
mod recipe;
mod record;
mod sources;
pub mod store;
#[cfg(test)]
mod tests;

pub use error::ImageError;
pub(crate) use record::read_record;
pub use store::ImageStore;
