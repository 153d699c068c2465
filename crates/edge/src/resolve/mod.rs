//! Where a name that a rule allows leads, for the proxy.
//!
//! The proxy resolves for itself and dials what was checked here; a machine never sees these addresses. An answer is
//! believed only when **every** address in it is on the public internet.

mod read;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;
use warren_model::policy::HostName;

use crate::dns::exchange::{self, AskError};
use crate::dns::wire;
use crate::outside::Outside;

pub(crate) use read::read;

/// How long an answer holds, whatever it says itself.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// How long a failure holds.
const NEGATIVE: Duration = Duration::from_secs(5);
/// The names of one network that are remembered.
const NAMES: usize = 4096;
/// Names of one network that are looked up at the same time.
const LOOKUPS: usize = 256;

/// Why a name leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error("no resolver is configured: start Warren with --resolver")]
    NoResolver,
    #[error("{0} does not exist")]
    NoSuchName(HostName),
    #[error("{0} has no address")]
    NoAddress(HostName),
    /// A refusal, not a failure.
    #[error("{host} leads to {address}, which is not a public address")]
    NotGlobal { host: HostName, address: IpAddr },
    #[error("no resolver answered for {0} in time")]
    Silent(HostName),
    #[error("the resolvers answered {code} for {host}")]
    Failure { host: HostName, code: ResponseCode },
    #[error("the resolvers could not be reached: {0}")]
    Network(std::io::ErrorKind),
}

impl ResolveError {
    /// Whether policy refused, rather than the resolvers failed.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::NotGlobal { .. })
    }
}

/// Addresses and how long they hold.
pub(crate) type Found = (Vec<IpAddr>, Duration);

/// Resolves the names of one network, which shares nothing with another: neither answers nor how fast they come.
#[derive(Debug)]
pub(crate) struct Resolver {
    outside: Arc<ArcSwap<Outside>>,
    known: Mutex<HashMap<HostName, Arc<Slot>>>,
    lookups: Semaphore,
}

/// A name that is known or being looked up. Who asks first looks up; when it gives up, the next goes on.
#[derive(Debug)]
struct Slot {
    began: Instant,
    answer: OnceCell<Known>,
}

#[derive(Debug, Clone)]
struct Known {
    result: Result<Vec<IpAddr>, ResolveError>,
    until: Instant,
    resolvers: Arc<[SocketAddr]>,
}

impl Resolver {
    pub fn new(outside: Arc<ArcSwap<Outside>>) -> Self {
        Self { outside, known: Mutex::default(), lookups: Semaphore::new(LOOKUPS) }
    }

    /// The addresses of a name, all of them public, at least one, in the order of the answer with IPv6 first.
    ///
    /// Takes up to 4.5 seconds when resolvers are silent.
    pub async fn look_up(&self, host: &HostName) -> Result<Vec<IpAddr>, ResolveError> {
        let resolvers = self.outside.load().resolvers.clone();
        if resolvers.is_empty() {
            return Err(ResolveError::NoResolver);
        }
        let slot = self.slot(host, &resolvers);
        let known = slot.answer.get_or_init(|| async {
            // Never closed, so this waits and does not fail.
            let _place = self.lookups.acquire().await;
            let result = ask(&resolvers, host).await;
            let (result, holds) = match result {
                Ok((addresses, ttl)) => (Ok(addresses), ttl.clamp(TTL.0, TTL.1)),
                Err(error) => (Err(error), NEGATIVE),
            };
            Known { result, until: Instant::now() + holds, resolvers: resolvers.clone() }
        });
        known.await.result.clone()
    }

    fn slot(&self, host: &HostName, resolvers: &Arc<[SocketAddr]>) -> Arc<Slot> {
        let now = Instant::now();
        let holds =
            |slot: &Slot| slot.answer.get().is_none_or(|known| now < known.until && known.resolvers == *resolvers);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = known.get(host).filter(|slot| holds(slot)) {
            return slot.clone();
        }
        if known.len() >= NAMES && !known.contains_key(host) {
            known.retain(|_, slot| holds(slot));
            if known.len() >= NAMES
                && let Some(oldest) = known.iter().min_by_key(|(_, slot)| slot.began).map(|(host, _)| host.clone())
            {
                known.remove(&oldest);
            }
        }
        let slot = Arc::new(Slot { began: now, answer: OnceCell::new() });
        known.insert(host.clone(), slot.clone());
        slot
    }
}

/// Asks for both families at once. One that fails does not matter when the other has addresses, but one that is refused
/// does.
async fn ask(resolvers: &[SocketAddr], host: &HostName) -> Result<Found, ResolveError> {
    let one = async |record_type: RecordType| {
        let question = question(host, record_type)?;
        let message = exchange::ask(resolvers, &question).await.map_err(|error| match error {
            AskError::Silent => ResolveError::Silent(host.clone()),
            AskError::Failure(code) => ResolveError::Failure { host: host.clone(), code },
            AskError::Network(kind) => ResolveError::Network(kind),
        })?;
        read(host, record_type, &message)
    };
    match tokio::join!(one(RecordType::AAAA), one(RecordType::A)) {
        (Err(refused), _) | (_, Err(refused)) if refused.is_refusal() => Err(refused),
        (Ok((mut six, ttl6)), Ok((four, ttl4))) => {
            six.extend(four);
            Ok((six, ttl6.min(ttl4)))
        }
        (Ok(found), Err(_)) | (Err(_), Ok(found)) => Ok(found),
        // That there is no such address of one family says less than why there is none of the other.
        (Err(ResolveError::NoAddress(_) | ResolveError::NoSuchName(_)), Err(error)) | (Err(error), Err(_)) => {
            Err(error)
        }
    }
}

fn question(host: &HostName, record_type: RecordType) -> Result<Vec<u8>, ResolveError> {
    // A host name is always a name on the wire.
    let name = wire::encode(host.as_str()).ok_or_else(|| ResolveError::NoSuchName(host.clone()))?;
    let mut question = name.into_vec();
    question.extend(u16::from(record_type).to_be_bytes());
    question.extend(wire::CLASS_IN.to_be_bytes());
    Ok(question)
}

#[cfg(test)]
mod tests;
