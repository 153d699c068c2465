//! The host's part in an examination: canaries on its own addresses, and what it reaches itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use nix::ifaddrs::InterfaceAddress;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use warren_model::MemberId;
use warren_model::probe::Token;

use super::examine::HostSide;
use crate::world::{World, blocking, lock};

/// On so many of the host's addresses.
const MOST_CANARIES: usize = 4;
/// How long whoever connects to a canary may take to send its token.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a canary reads of a connection, in bytes.
const MOST: usize = 256;

/// Canaries that listen until this is dropped.
pub(crate) struct LiveHostSide<'a> {
    world: &'a World,
    canaries: Vec<SocketAddr>,
    seen: Arc<Mutex<BTreeSet<Token>>>,
    control: Vec<Token>,
    api: Option<SocketAddr>,
    _listeners: JoinSet<()>,
}

impl<'a> LiveHostSide<'a> {
    /// `tokens` are for the host's own control of its canaries.
    pub async fn open(world: &'a World, api: Option<SocketAddr>, tokens: &mut (dyn FnMut() -> Token + Send)) -> Self {
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let mut listeners = JoinSet::new();
        let mut canaries = Vec::new();
        for address in own_addresses(world) {
            // An address may go, or never have been ready (RFC 4862 §5.4).
            let Ok(listener) = TcpListener::bind((address, 0)).await else { continue };
            let Ok(at) = listener.local_addr() else { continue };
            canaries.push(at);
            listeners.spawn(listen(listener, Arc::clone(&seen)));
            if canaries.len() == MOST_CANARIES {
                break;
            }
        }
        let control = canaries.iter().map(|_| tokens()).collect();
        Self { world, canaries, seen, control, api, _listeners: listeners }
    }
}

#[async_trait]
impl HostSide for LiveHostSide<'_> {
    fn canaries(&self) -> Vec<SocketAddr> {
        self.canaries.clone()
    }

    async fn control(&self) -> BTreeSet<SocketAddr> {
        let reaching = self.canaries.iter().zip(&self.control).map(|(at, token)| async move {
            let exchange = async {
                let mut stream = TcpStream::connect(at).await?;
                stream.write_all(token.as_str().as_bytes()).await?;
                // The canary hangs up when it has the token.
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await?;
                io::Result::Ok(())
            };
            let _ = timeout(PATIENCE, exchange).await;
            lock(&self.seen).contains(token).then_some(*at)
        });
        join_all(reaching).await.into_iter().flatten().collect()
    }

    fn arrivals(&self) -> BTreeSet<Token> {
        lock(&self.seen).clone()
    }

    async fn refusals(&self, machines: &[MemberId]) -> BTreeMap<MemberId, u64> {
        let mut by_network: BTreeMap<_, Vec<_>> = BTreeMap::new();
        {
            let desired = self.world.desired.read();
            for machine in machines.iter().filter_map(|id| desired.machine(id.machine()?)) {
                if let Some(network) = desired.network(machine.network) {
                    by_network.entry(network.number).or_default().push((machine.id, machine.member));
                }
            }
        }
        let mut found = BTreeMap::new();
        for (number, members) in by_network {
            let kernel = self.world.kernel.clone();
            // Where the counters cannot be read there are none, and the report says so.
            let Ok(counters) = blocking(move || kernel.refused(number)).await else { continue };
            for (machine, member) in members {
                if let Some(counter) = counters.get(&member) {
                    found.insert(machine.into(), counter.packets);
                }
            }
        }
        found
    }

    async fn api(&self) -> Option<(u16, bool)> {
        let at = self.api?;
        Some((at.port(), reaches(at).await))
    }
}

/// Whether the host reaches this address and port over TCP.
pub(crate) async fn reaches(at: SocketAddr) -> bool {
    matches!(timeout(PATIENCE, TcpStream::connect(at)).await, Ok(Ok(_)))
}

async fn listen(listener: TcpListener, seen: Arc<Mutex<BTreeSet<Token>>>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(open.spawn(timeout(PATIENCE, take(stream, Arc::clone(&seen))))),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            Some(_) = open.join_next() => {}
        }
    }
}

async fn take(mut stream: TcpStream, seen: Arc<Mutex<BTreeSet<Token>>>) {
    let mut bytes = Vec::with_capacity(Token::LENGTH);
    while bytes.len() < MOST && matches!(stream.read_buf(&mut bytes).await, Ok(read) if read > 0) {
        if let Some(token) = Token::find(&bytes) {
            lock(&seen).insert(token);
            return;
        }
    }
}

/// The host's addresses, those that are nobody's but the host's first.
fn own_addresses(world: &World) -> Vec<IpAddr> {
    let prefix = format!("w{}", world.installation.id);
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut found: Vec<(bool, IpAddr)> = interfaces
        .filter_map(|interface| {
            let address = address_of(&interface)?;
            is_reachable(address).then(|| (interface.interface_name.starts_with(&prefix), address))
        })
        .collect();
    found.sort();
    found.dedup();
    found.into_iter().map(|(_, address)| address).collect()
}

/// Every address of the host, on whatever interface.
///
/// # Errors
/// When the kernel does not tell.
pub fn host_addresses() -> io::Result<BTreeSet<IpAddr>> {
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(|interface| address_of(&interface)).collect())
}

/// Whether an address is one of the host's, or has to be taken for one because they cannot be read.
pub(crate) fn is_own(address: IpAddr) -> bool {
    host_addresses().map_or(true, |own| own.contains(&address))
}

fn address_of(interface: &InterfaceAddress) -> Option<IpAddr> {
    let address = interface.address?;
    let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
    four.or_else(|| address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())))
}

fn is_reachable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(four) => four.is_link_local(),
        IpAddr::V6(six) => six.is_unicast_link_local(),
    };
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast() && !link_local
}
