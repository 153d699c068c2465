//! Which sockets reach the machines of which network.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use nix::sys::resource::{Resource, getrlimit};
use tokio::runtime::Handle;
use warren_ingress::{Dial, Upstream};
use warren_model::NetworkNumber;

use super::pool::{Pool, PoolStatus, Prepared};

type Pools = BTreeMap<NetworkNumber, Arc<Pool>>;

/// The pools of all networks.
#[derive(Debug)]
pub(super) struct Dialers {
    pools: Mutex<Pools>,
    runtime: Handle,
    /// Sockets that all of them may have together.
    most: usize,
}

impl Dialers {
    /// With room for as many sockets as a quarter of the descriptors that the process may have: clients need as many again,
    /// and everything else has to go on.
    pub fn new(runtime: Handle) -> Self {
        let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
        Self::with_room(runtime, usize::try_from(descriptors / 4).unwrap_or(usize::MAX))
    }

    fn with_room(runtime: Handle, most: usize) -> Self {
        Self { pools: Mutex::default(), runtime, most }
    }

    /// Adds all of these sockets, or none. [`io::ErrorKind::QuotaExceeded`] where there is no room for them.
    pub fn add(&self, network: NetworkNumber, sockets: Vec<OwnedFd>) -> io::Result<()> {
        // Before the lock, which everybody who dials takes.
        let sockets = Prepared::new(sockets)?;
        if sockets.count() == 0 {
            return Ok(());
        }
        let mut pools = self.pools();
        if sockets.count() > self.most.saturating_sub(count(&pools)) {
            let message = format!("the networks have {} sockets to their machines together at most", self.most);
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, message));
        }
        pools.entry(network).or_insert_with(|| Pool::new(self.runtime.clone())).add(sockets);
        Ok(())
    }

    /// Whether there were any.
    pub fn remove(&self, network: NetworkNumber) -> bool {
        let pool = self.pools().remove(&network);
        pool.inspect(|pool| pool.close()).is_some()
    }

    /// How many more sockets can be added.
    pub fn room(&self) -> usize {
        self.most.saturating_sub(count(&self.pools()))
    }

    pub fn status(&self) -> BTreeMap<NetworkNumber, PoolStatus> {
        self.pools().iter().map(|(network, pool)| (*network, pool.status())).collect()
    }

    fn find(&self, network: NetworkNumber, to: SocketAddr) -> io::Result<(Arc<Pool>, SocketAddrV4)> {
        match (self.pools().get(&network), to) {
            (Some(pool), SocketAddr::V4(to)) => Ok((pool.clone(), to)),
            _ => Err(io::ErrorKind::NetworkUnreachable.into()),
        }
    }

    fn pools(&self) -> MutexGuard<'_, Pools> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(pools: &Pools) -> usize {
    pools.values().map(|pool| pool.status().sockets).sum()
}

impl Dial for Dialers {
    fn dial(&self, network: NetworkNumber, to: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Upstream>>> {
        let found = self.find(network, to);
        async move {
            let (pool, to) = found?;
            Ok(Box::new(pool.connect(to).await?) as Box<dyn Upstream>)
        }
        .boxed()
    }

    fn dial_patiently(
        &self,
        network: NetworkNumber,
        to: SocketAddr,
    ) -> BoxFuture<'static, io::Result<Box<dyn Upstream>>> {
        let found = self.find(network, to);
        async move {
            let (pool, to) = found?;
            Ok(Box::new(pool.connect_patiently(to).await?) as Box<dyn Upstream>)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use rustix::net::{AddressFamily, SocketType, socket};

    use super::*;

    fn number(number: u16) -> NetworkNumber {
        NetworkNumber::new(number).unwrap()
    }

    fn sockets(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()).collect()
    }

    #[tokio::test]
    async fn sockets_that_are_of_no_use_leave_no_pool() {
        let dialers = Dialers::new(Handle::current());
        let mut some = sockets(1);
        some.push(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().into());
        assert_eq!(dialers.add(number(1), some).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        dialers.add(number(1), Vec::new()).unwrap();
        assert_eq!(dialers.status(), BTreeMap::new());
        let dialed = dialers.dial(number(1), ([127, 0, 0, 1], 1).into()).await.map(drop);
        assert_eq!(dialed.unwrap_err().kind(), io::ErrorKind::NetworkUnreachable, "none is waited for");
    }

    #[tokio::test]
    async fn the_sockets_of_all_networks_are_bounded() {
        let dialers = Dialers::with_room(Handle::current(), 4);
        dialers.add(number(1), sockets(2)).unwrap();
        dialers.add(number(2), sockets(1)).unwrap();
        assert_eq!(dialers.room(), 1);
        assert_eq!(dialers.add(number(3), sockets(2)).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        assert!(!dialers.status().contains_key(&number(3)), "all are refused");
        assert!(dialers.remove(number(1)) && !dialers.remove(number(1)));
        dialers.add(number(3), sockets(3)).unwrap();
        assert_eq!(dialers.room(), 0);
    }
}
