//! Keeps what the edge publishes like the records.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};
use tokio::time::{Instant, timeout};
use warren_edge::{EdgeClient, PoolStatus, PublicGeneration, PublicStatus};
use warren_ingress::Kind;
use warren_model::NetworkId;
use warren_model::domain::{Domain, DomainProof};
use warren_model::policy::HostName;
use warren_model::record::Network;

use super::certificates::orders::Holder;
use super::snapshot::{self, Content, Published};
use super::{PublicListeners, Served};
use crate::world::{KnownNetwork, World, blocking, lock};
use crate::{ReconcileError, crash};

/// How often the edge is asked whether it has all that it should have and how the sockets to machines are used, and how
/// long something that cannot be had is left alone.
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// How often everything is looked at, whatever changed: certificates, and the operator's files.
const WHOLE_EVERY: Duration = Duration::from_secs(5);
/// How long a network that is being changed may keep the others waiting.
const BUSY_FOR: Duration = Duration::from_millis(200);
/// How long the start of the server may wait for the edge.
const BEGINS_WITHIN: Duration = Duration::from_secs(5);
/// Sockets to the machines of one network: how many at first, and at most. A socket takes about 4 KiB of the kernel.
const FIRST_SOCKETS: usize = 64;
const MOST_SOCKETS: usize = 1024;

/// What the edge was found to have, or was given.
struct Brought {
    generation: Option<PublicGeneration>,
    published: Vec<Published>,
    /// Everything is there, so that nothing has to be done before something changes.
    whole: bool,
    at: Instant,
}

/// Opens the listeners, so that what is mapped as soon as the server is ready has somewhere to be served. What cannot be
/// done yet is left to [`keep`].
pub(crate) async fn begin(world: &World) {
    if world.public.is_on()
        && let Ok(Err(error)) = timeout(BEGINS_WITHIN, bring(world)).await
    {
        tracing::warn!(error = %error.chain(), "nothing is public yet");
    }
}

/// Keeps what the edge publishes like the records, for ever.
pub(crate) async fn keep(world: Arc<World>) {
    let mut last: Option<Brought> = None;
    loop {
        let outcome = match last.take() {
            // Nothing changed, as far as this side knows.
            Some(brought) if brought.whole && brought.at.elapsed() < WHOLE_EVERY => look_after(&world, brought).await,
            _ => bring(&world).await.map(Some),
        };
        match outcome {
            Ok(brought) => {
                last = brought;
                *lock(&world.public.late) = None;
                if last.is_none() {
                    continue;
                }
            }
            Err(error) => {
                let reason = error.chain();
                let mut late = lock(&world.public.late);
                if late.as_ref() != Some(&reason) {
                    tracing::warn!(reason, "what is public cannot be brought up to date, and is tried again");
                }
                *late = Some(reason);
            }
        }
        let changed = world.public.changed.notified();
        let woken = match world.public.is_on() {
            true => timeout(ASKED_EVERY, changed).await.is_ok(),
            // Only another edge could have something that is to be taken back.
            false if last.is_some() => {
                changed.await;
                true
            }
            false => timeout(ASKED_EVERY, changed).await.is_ok(),
        };
        if woken {
            last = None;
        }
    }
}

/// What may differ although no record does; `None` when all is to be looked at.
async fn look_after(world: &World, brought: Brought) -> Result<Option<Brought>, ReconcileError> {
    let client = world.edge.client().await?;
    let status = client.public().await?;
    if status.generation != brought.generation {
        return Ok(None);
    }
    fit_dialers(world, &client, &status, &brought.published).await?;
    Ok(Some(brought))
}

async fn bring(world: &World) -> Result<Brought, ReconcileError> {
    let public = &world.public;
    let client = world.edge.client().await?;
    let status = client.public().await?;
    crash::point("before", "public-", "listen");
    let listeners = listen(world, &client, &status).await?;
    crash::point("after", "public-", "listen");
    let heard = listeners.is_ok();
    set_listeners(world, listeners);

    let published = if public.is_on() { published(world) } else { Vec::new() };
    let out_of_reach = fit_dialers(world, &client, &status, &published).await?;

    let holder = |domain: &Domain| Holder { account: domain.account, suffix: domain.proof == DomainProof::Suffix };
    let hosts: BTreeMap<HostName, Holder> =
        published.iter().map(|one| (one.domain.host.clone(), holder(&one.domain))).collect();
    let certificates = Arc::clone(&public.certificates);
    let held = blocking(move || Ok::<_, ReconcileError>(certificates.prepare(&hosts, Timestamp::now()))).await?;
    public.wanted.notify_one();
    let challenges = lock(&public.challenges).clone();
    let told = challenges.keys().cloned().collect();

    // Not the port that was had: where HTTPS is wanted and is not there, nothing is served without it.
    let https = public.settings.https.map(|wanted| https_port(world).unwrap_or(wanted.port().max(1)));
    let content = Content { published: published.clone(), certificates: held, https_port: https };
    let is_empty = content.is_empty() && challenges.is_empty();
    let (wanted, snapshot) = {
        let mut last = lock(&public.last);
        let (content, generation) = last.follow(content, snapshot::generation);
        let wanted =
            PublicGeneration { content: generation, challenges: snapshot::generation_of_challenges(&challenges) };
        // An edge that has nothing is not given nothing.
        let is_due = match status.generation {
            Some(there) => there.content != wanted.content,
            None => !is_empty,
        };
        (wanted, is_due.then(|| content.snapshot(challenges.clone())))
    };
    let generation = (status.generation.is_some() || snapshot.is_some()).then_some(wanted);
    if public.is_on() {
        // Before what was counted of names that are public no more is gone.
        public.metrics.count(&client.public_counters(None).await?);
    }
    if let Some(snapshot) = snapshot {
        let names = snapshot.sites.len();
        crash::point("before", "public-", "put");
        client.put_public(wanted, snapshot).await?;
        crash::point("after", "public-", "put");
        tracing::info!(names, "what is public was handed to the edge");
    } else if generation != status.generation {
        client.put_challenges(wanted.challenges, challenges).await?;
    }
    let reached = published.iter().filter(|one| !out_of_reach.contains(&one.domain.network));
    let domains = reached.map(|one| (one.domain.host.clone(), Arc::clone(&one.domain))).collect();
    public.served.send_replace(Some(Served { domains, challenges: told }));
    Ok(Brought { generation, published, whole: heard && out_of_reach.is_empty(), at: Instant::now() })
}

fn published(world: &World) -> Vec<Published> {
    let desired = world.desired.read();
    snapshot::published(desired.domains(), |id| desired.machine(id), |id| desired.network(id))
}

fn https_port(world: &World) -> Option<u16> {
    let listeners = lock(&world.public.listeners);
    listeners.as_ref().ok().and_then(|listeners| listeners.https).map(|address| address.port())
}

fn set_listeners(world: &World, listeners: Result<PublicListeners, String>) {
    let mut known = lock(&world.public.listeners);
    if *known != listeners {
        match &listeners {
            Ok(PublicListeners { https: None, http: None }) => {}
            Ok(there) => tracing::info!(https = ?there.https, http = ?there.http, "the public can come in"),
            Err(reason) => tracing::warn!(reason, "the public cannot come in"),
        }
        *known = listeners;
    }
}

/// Makes sure that the public can reach the edge where it should. The inner error is for a person: a port that cannot be
/// had.
async fn listen(
    world: &World,
    client: &EdgeClient,
    status: &PublicStatus,
) -> Result<Result<PublicListeners, String>, ReconcileError> {
    let settings = &world.public.settings;
    let mut there = PublicListeners::default();
    let mut missing = Vec::new();
    for (kind, wanted) in [(Kind::Https, settings.https), (Kind::Http, settings.http)] {
        let listens = status.listening.get(&kind).and_then(|addresses| addresses.first()).copied();
        let fits = |wanted: SocketAddr| {
            let fits = |at: &SocketAddr| at.ip() == wanted.ip() && (wanted.port() == 0 || at.port() == wanted.port());
            listens.filter(fits)
        };
        let had = match wanted {
            Some(wanted) if fits(wanted).is_some() => fits(wanted),
            _ => {
                if listens.is_some() {
                    client.listen_public(kind, Vec::new()).await?;
                }
                match wanted.map(|wanted| (wanted, warren_kernel::public_sockets(wanted))) {
                    None => None,
                    Some((_, Ok(sockets))) => {
                        let address = sockets.first().and_then(|socket| socket.local_addr().ok());
                        client.listen_public(kind, sockets).await?;
                        address
                    }
                    Some((wanted, Err(error))) => {
                        let spoken = if kind == Kind::Https { "HTTPS" } else { "HTTP" };
                        missing.push(format!("TCP port {wanted} for {spoken} cannot be had: {error}"));
                        None
                    }
                }
            }
        };
        match kind {
            Kind::Https => there.https = had,
            Kind::Http => there.http = had,
        }
    }
    Ok(if missing.is_empty() { Ok(there) } else { Err(missing.join("; ")) })
}

/// Gives the edge as many sockets to the machines of each network as are used there, and takes back those of networks
/// without a domain. Answers which networks cannot be reached yet.
async fn fit_dialers(
    world: &World,
    client: &EdgeClient,
    status: &PublicStatus,
    published: &[Published],
) -> Result<BTreeSet<NetworkId>, ReconcileError> {
    let networks: BTreeMap<_, _> = published.iter().map(|one| (one.network.number, &one.network)).collect();
    for number in status.dialers.keys().filter(|number| !networks.contains_key(number)) {
        client.remove_dialers(*number).await?;
    }
    let out_of_reach = fit_pools(status, networks.into_values(), |network, more| {
        let (network, known) = (Arc::clone(network), world.known_network(network.id));
        fit_pool(world, client, network, known, more).boxed()
    })
    .await?;
    let ids = out_of_reach.keys().copied().collect();
    *lock(&world.public.trouble) = out_of_reach;
    Ok(ids)
}

/// Adds what is lacking, by `fit`. Answers which networks cannot be reached yet, and why.
async fn fit_pools<'a>(
    status: &PublicStatus,
    networks: impl Iterator<Item = &'a Arc<Network>>,
    fit: impl Fn(&Arc<Network>, usize) -> BoxFuture<'a, Result<(), ReconcileError>>,
) -> Result<BTreeMap<NetworkId, String>, ReconcileError> {
    let mut out_of_reach = BTreeMap::new();
    let mut room = status.room;
    for network in networks {
        let there = status.dialers.get(&network.number).copied().unwrap_or_default();
        let more = wanted(there).saturating_sub(there.sockets);
        if more > share(there, room) {
            if there.sockets == 0 {
                let reason = "the edge has no room for sockets to the machines of its network";
                out_of_reach.insert(network.id, reason.to_owned());
            }
            continue;
        }
        room -= more;
        if let Err(error) = fit(network, more).await {
            // What is wrong with one network keeps no other waiting.
            if matches!(&error, ReconcileError::Edge(error) if error.is_broken()) {
                return Err(error);
            }
            let reason = match &error {
                ReconcileError::NetworkMissing(_) => "its network is still being made".to_owned(),
                other => {
                    tracing::warn!(network = %network.name, error = %other.chain(), "its machines cannot be reached from outside");
                    "the machines of its network cannot be reached".to_owned()
                }
            };
            if there.sockets == 0 {
                out_of_reach.insert(network.id, reason);
            }
        }
    }
    Ok(out_of_reach)
}

async fn fit_pool(
    world: &World,
    client: &EdgeClient,
    network: Arc<Network>,
    known: Arc<AsyncMutex<KnownNetwork>>,
    more: usize,
) -> Result<(), ReconcileError> {
    if more == 0 {
        return Ok(());
    }
    // Held until the edge has them: sockets of a namespace that has just been replaced lead nowhere.
    let _there = there(&known, network.id).await?;
    let (kernel, spec) = (world.kernel.clone(), world.network_spec(&network));
    crash::point("before", "public-", "dialers");
    let sockets = blocking(move || kernel.dialers(&spec, more)).await?;
    client.add_dialers(network.number, sockets).await?;
    crash::point("after", "public-", "dialers");
    Ok(())
}

/// The lock of a network that is on this host and that nobody is changing for longer than the others can wait.
async fn there(
    known: &AsyncMutex<KnownNetwork>,
    id: NetworkId,
) -> Result<MutexGuard<'_, KnownNetwork>, ReconcileError> {
    let known = timeout(BUSY_FOR, known.lock()).await.map_err(|_| ReconcileError::NetworkMissing(id))?;
    if known.router.is_none() { Err(ReconcileError::NetworkMissing(id)) } else { Ok(known) }
}

/// Twice as many as before, where three quarters were in use at once.
fn wanted(there: PoolStatus) -> usize {
    let grown = if there.most_used * 4 >= there.sockets * 3 { there.sockets * 2 } else { there.sockets };
    grown.clamp(FIRST_SOCKETS, MOST_SOCKETS).max(there.sockets)
}

/// How much of the edge's room for sockets a network may have: one that has some leaves half of it to those without.
fn share(there: PoolStatus, room: usize) -> usize {
    if there.sockets == 0 { room } else { room / 2 }
}

#[cfg(test)]
mod tests {
    use warren_model::NetworkNumber;
    use warren_model::record::Egress;

    use super::*;
    use crate::samples;

    fn network(number: u16) -> Arc<Network> {
        let id = NetworkId::from_ulid(ulid::Ulid::from_parts(number.into(), 1));
        let number = NetworkNumber::new(number).unwrap();
        Arc::new(Network { id, number, ..samples::network(Egress::Deny) })
    }

    #[tokio::test]
    async fn a_network_that_is_being_changed_keeps_no_other_waiting() {
        let [busy, free] = [network(1), network(2)];
        let known = AsyncMutex::<KnownNetwork>::default();
        let _worker = known.lock().await;
        let (known, fitted) = (&known, &std::sync::Mutex::new(Vec::new()));
        let status = PublicStatus { room: 4096, ..PublicStatus::default() };
        let fit = |network: &Arc<Network>, more| {
            let (id, is_busy) = (network.id, *network == busy);
            let fit = async move {
                if is_busy {
                    drop(there(known, id).await?);
                }
                lock(fitted).push((id, more));
                Ok(())
            };
            fit.boxed()
        };
        let fitting = fit_pools(&status, [&busy, &free].into_iter(), fit);
        let out_of_reach = timeout(Duration::from_secs(60), fitting).await.expect("it waits for ever").unwrap();
        assert_eq!(*lock(fitted), [(free.id, FIRST_SOCKETS)]);
        assert_eq!(out_of_reach.keys().collect::<Vec<_>>(), [&busy.id]);
        assert!(out_of_reach[&busy.id].contains("still being made"), "{out_of_reach:?}");
    }

    #[tokio::test]
    async fn an_edge_that_is_gone_is_asked_for_no_other_network() {
        let [one, other] = [network(1), network(2)];
        let status = PublicStatus { room: 4096, ..PublicStatus::default() };
        let asked = &std::sync::Mutex::new(0);
        let fit = |_: &Arc<Network>, _| {
            *lock(asked) += 1;
            async { Err(ReconcileError::Edge(warren_edge::EdgeError::Closed)) }.boxed()
        };
        assert!(fit_pools(&status, [&one, &other].into_iter(), fit).await.is_err());
        assert_eq!(*lock(asked), 1);
    }

    #[test]
    fn a_pool_that_grows_leaves_room_to_networks_that_have_none() {
        let mut room = 4096;
        let mut grown = 0;
        while share(PoolStatus { sockets: 64, most_used: 64 }, room) >= 64 {
            (room, grown) = (room - 64, grown + 1);
        }
        assert!(grown > 32 && share(PoolStatus::default(), room) >= 64, "{grown} {room}");
    }

    #[test]
    fn a_pool_grows_while_it_is_nearly_used_up_and_never_shrinks() {
        let wanted = |sockets, most_used| wanted(PoolStatus { sockets, most_used });
        assert_eq!([wanted(0, 0), wanted(10, 0), wanted(64, 0), wanted(64, 47)], [64; 4]);
        assert_eq!([wanted(64, 48), wanted(128, 64), wanted(512, 512)], [128, 128, 1024]);
        assert_eq!([wanted(1024, 1024), wanted(2000, 2000)], [1024, 2000]);
    }
}
