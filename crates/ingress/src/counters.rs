//! What happened to each site.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use warren_model::policy::HostName;

use crate::problem::Refusal;
use crate::rate::Bucket;
use crate::snapshot::SiteLimits;

/// What happened to one site since it was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteCounters {
    pub id: String,
    pub host: HostName,
    /// All that came, refused or not.
    pub requests: u64,
    /// Those that were not answered by the machine, by problem code.
    pub refused: BTreeMap<String, u64>,
    /// Bytes of request bodies, and from clients over WebSocket.
    pub bytes_in: u64,
    /// Bytes of response bodies, and to clients over WebSocket.
    pub bytes_out: u64,
    /// Client connections whose last request was for this site.
    pub open_connections: u32,
    /// Requests and WebSockets under way.
    pub open_requests: u32,
}

/// What happened to nobody's site.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Client connections.
    pub open_connections: u32,
    /// Connections that were closed at once, because there were too many.
    pub connections_refused: u64,
    /// TLS handshakes that failed; among them are those for names without a certificate.
    pub handshakes_failed: u64,
    /// Requests that were for no site, by problem code.
    pub refused: BTreeMap<String, u64>,
}

/// Refusals by reason.
#[derive(Debug, Default)]
pub(crate) struct Refused([AtomicU64; Refusal::ALL.len()]);

impl Refused {
    pub fn add(&self, refusal: Refusal) {
        self.0[refusal as usize].fetch_add(1, Relaxed);
    }

    pub fn by_code(&self) -> BTreeMap<String, u64> {
        let counted = Refusal::ALL.iter().map(|refusal| (refusal, self.0[*refusal as usize].load(Relaxed)));
        let mut by_code = BTreeMap::new();
        for (refusal, count) in counted.filter(|(_, count)| *count > 0) {
            *by_code.entry(refusal.code().as_str().to_owned()).or_default() += count;
        }
        by_code
    }
}

/// What is kept of a site while it is published, whatever of it changes.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub requests: AtomicU64,
    pub refused: Refused,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub connections: AtomicU32,
    pub open: AtomicU32,
    pub bucket: Bucket,
    /// For requests without the credentials that the site asks for.
    pub strangers: Bucket,
    /// Locked where a connection begins to be for the site or ends to be, and by no request.
    shares: Mutex<HashMap<IpAddr, Weak<Share>>>,
}

/// What one source has of a site. Its connections and requests hold it; without any it is forgotten.
#[derive(Debug)]
pub(crate) struct Share {
    pub state: Arc<State>,
    source: IpAddr,
    open: AtomicU32,
}

impl Share {
    /// Sources are those of [`crate::admit`].
    pub fn of(state: &Arc<State>, source: IpAddr) -> Arc<Self> {
        let mut shares = state.shares();
        if let Some(share) = shares.get(&source).and_then(Weak::upgrade) {
            return share;
        }
        let share = Arc::new(Self { state: state.clone(), source, open: AtomicU32::new(0) });
        shares.insert(source, Arc::downgrade(&share));
        share
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // The source may have come back meanwhile.
        if let Entry::Occupied(entry) = self.state.shares().entry(self.source)
            && entry.get().strong_count() == 0
        {
            entry.remove();
        }
    }
}

/// A request or WebSocket under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Flight(Arc<Share>);

impl Flight {
    /// Errors: the source, or the site, has as many already as it may have.
    pub fn begin(share: Arc<Share>, limits: &SiteLimits) -> Result<Self, Refusal> {
        // What is refused to a source is not counted for the site, not even for a moment.
        if share.open.fetch_add(1, Relaxed) >= limits.concurrent_per_source() {
            share.open.fetch_sub(1, Relaxed);
            return Err(Refusal::Crowd);
        }
        let flight = Self(share);
        let before = flight.state().open.fetch_add(1, Relaxed);
        if before < limits.concurrent.get() { Ok(flight) } else { Err(Refusal::Busy) }
    }

    pub fn state(&self) -> &State {
        &self.0.state
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.state().open.fetch_sub(1, Relaxed);
        self.0.open.fetch_sub(1, Relaxed);
    }
}

impl State {
    fn shares(&self) -> MutexGuard<'_, HashMap<IpAddr, Weak<Share>>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn read(&self, id: &str, host: &HostName) -> SiteCounters {
        SiteCounters {
            id: id.to_owned(),
            host: host.clone(),
            requests: self.requests.load(Relaxed),
            refused: self.refused.by_code(),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            open_connections: self.connections.load(Relaxed),
            open_requests: self.open.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn a_source_has_its_share_and_leaves_the_rest() {
        let limits = SiteLimits { concurrent: NonZeroU32::new(24).unwrap(), ..SiteLimits::default() };
        let state = Arc::new(State::default());
        let begin = |last| Flight::begin(Share::of(&state, IpAddr::from([192, 0, 2, last])), &limits);
        let mut held: Vec<_> = (0..16).map(|_| begin(1).unwrap()).collect();
        assert_eq!(begin(1).unwrap_err(), Refusal::Crowd);
        held.extend((0..8).map(|_| begin(2).unwrap()));
        assert_eq!(begin(2).unwrap_err(), Refusal::Busy);
        assert_eq!(state.open.load(Relaxed), 24, "what was refused is not counted");
        held.remove(0);
        assert!(begin(1).is_ok());
        assert_eq!(state.shares().len(), 2);
        held.clear();
        assert_eq!((state.open.load(Relaxed), state.shares().len()), (0, 0), "idle sources are forgotten");
    }

    #[test]
    fn all_connections_of_a_source_have_one_share() {
        let state = Arc::new(State::default());
        let source = IpAddr::from([192, 0, 2, 1]);
        let (one, same) = (Share::of(&state, source), Share::of(&state, source));
        assert!(Arc::ptr_eq(&one, &same));
        drop(one);
        assert!(Arc::ptr_eq(&same, &Share::of(&state, source)), "it is held still");
    }
}
