//! What all connections share.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::admit::Admission;
use crate::certificates::Tls;
use crate::counters::Refused;
use crate::limits::Limits;
use crate::room::Room;
use crate::table::Table;
use crate::upstream::Dial;

pub(crate) struct Shared {
    pub table: ArcSwap<Table>,
    /// Held while the table is replaced.
    pub applying: Mutex<()>,
    pub tls: Tls,
    /// By way of `room`.
    pub dial: Arc<dyn Dial>,
    pub room: Arc<Room>,
    pub limits: Limits,
    pub admission: Arc<Admission>,
    pub started: Instant,
    /// Requests that were for no site.
    pub refused: Refused,
    pub connections_refused: AtomicU64,
    pub handshakes_failed: AtomicU64,
}

impl Shared {
    /// Nanoseconds since the beginning.
    pub fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
