//! Images, disks, the container driver and the host's end of the guest agent.
//!
//! | module | holds |
//! | --- | --- |
//! | [`image`] | images: built with mmdebstrap, imported from an archive, pulled from a registry |
//! | [`disk`] | machine disks: btrfs snapshots, or overlay directories |
//! | [`driver`] | the contract of a machine driver, and the container driver over an OCI runtime |
//! | [`agent`] | the connections of the agents in running machines, and what can be asked of them |

pub mod agent;
pub mod disk;
pub mod driver;
pub mod image;

mod files;
mod helper;
