//! Netlink by hand: requests, dumps and nftables batches, in process.
//!
//! Only the few messages Warren needs are encoded. Numbers come from the kernel's `linux/netlink.h`,
//! `linux/rtnetlink.h` and `linux/netfilter/nf_tables.h`.

mod message;
mod socket;

pub(crate) use message::{Attributes, Message, be32, be64, native32, text};
pub(crate) use socket::{BatchError, Family, Reply, Socket, Watch};

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub(crate) const ACK: u16 = 0x4;
/// `NLM_F_ROOT | NLM_F_MATCH`.
pub(crate) const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub(crate) const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub(crate) const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
