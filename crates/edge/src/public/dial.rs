//! Which sockets reach the machines of which network.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use warren_ingress::{Dial, Upstream};
use warren_model::NetworkNumber;

use super::pool::{Pool, PoolStatus};

/// The pools of all networks.
#[derive(Debug)]
pub(super) struct Dialers {
    pools: Mutex<BTreeMap<NetworkNumber, Arc<Pool>>>,
    runtime: Handle,
}

impl Dialers {
    pub fn new(runtime: Handle) -> Self {
        Self { pools: Mutex::default(), runtime }
    }

    pub fn add(&self, network: NetworkNumber, sockets: Vec<OwnedFd>) -> io::Result<()> {
        self.pools().entry(network).or_insert_with(|| Pool::new(self.runtime.clone())).add(sockets)
    }

    pub fn remove(&self, network: NetworkNumber) {
        let pool = self.pools().remove(&network);
        if let Some(pool) = pool {
            pool.close();
        }
    }

    pub fn status(&self) -> BTreeMap<NetworkNumber, PoolStatus> {
        self.pools().iter().map(|(network, pool)| (*network, pool.status())).collect()
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<NetworkNumber, Arc<Pool>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dial for Dialers {
    fn dial(&self, network: NetworkNumber, to: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Upstream>>> {
        let pool = self.pools().get(&network).cloned();
        async move {
            let unreachable = || io::Error::from(io::ErrorKind::NetworkUnreachable);
            let SocketAddr::V4(to) = to else { return Err(unreachable()) };
            let connection = pool.ok_or_else(unreachable)?.connect(to).await?;
            Ok(Box::new(connection) as Box<dyn Upstream>)
        }
        .boxed()
    }
}
