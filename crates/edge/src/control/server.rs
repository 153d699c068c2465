//! The edge's end: carries out what the daemon asks.

use std::collections::BTreeMap;
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use warren_ingress::Ending;
use warren_model::NetworkNumber;
use warren_model::problem::chain;

use crate::control::frame::Channel;
use crate::control::message::{EdgeStatus, PROTOCOL, Refusal, RefusalCode, Reply, Request};
use crate::dns::zone::ZoneError;
use crate::flows::{FlowCounters, OpenFlow};
use crate::network::{Listening, Network, Shared, Workers};
use crate::operators::{Operators, OperatorsError};
use crate::public::{Public, PublicError};
use crate::view::{NetworkView, Sockets};

/// The most connections in one answer to the daemon: no network has more.
const LISTED_FLOWS: usize = 10_000;
/// Control connections at the same time: the daemon, the one before it, and an operator's tools.
const CONNECTIONS: usize = 8;
/// How long an answer waits for what the request ends. The daemon gives up after ten seconds.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// Serves control connections until one of them asks to shut down.
pub(crate) async fn serve(
    listener: UnixListener,
    daemon_uid: u32,
    workers: Workers,
    public: Public,
    shared: Arc<Shared>,
) {
    let edge = Arc::new(Edge {
        networks: Mutex::default(),
        shared,
        workers,
        operators: Operators::default(),
        public,
        shutdown: Notify::new(),
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = edge.shutdown.notified() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    while connections.try_join_next().is_some() {}
                    let peer = stream.peer_cred().map(|peer| peer.uid());
                    if peer.is_ok_and(|uid| uid == daemon_uid) && connections.len() < CONNECTIONS {
                        connections.spawn(attend(edge.clone(), stream));
                    } else {
                        tracing::warn!("a control connection was refused");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a control connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

/// Everything that the edge holds.
struct Edge {
    networks: Mutex<BTreeMap<NetworkNumber, Running>>,
    shared: Arc<Shared>,
    workers: Workers,
    operators: Operators,
    public: Public,
    shutdown: Notify,
}

/// A network that is being answered for; ends when it is dropped.
struct Running {
    network: Arc<Network>,
    tasks: JoinSet<()>,
}

async fn attend(edge: Arc<Edge>, stream: UnixStream) {
    if let Err(error) = converse(&edge, Channel::new(stream)).await {
        tracing::warn!(%error, "a control connection broke");
    }
}

async fn converse(edge: &Edge, mut channel: Channel) -> io::Result<()> {
    let mut greeted = false;
    while let Some(message) = channel.receive().await? {
        let descriptors = channel.take_descriptors();
        let handle = || {
            let request = serde_json::from_slice::<Request<'_>>(&message)
                .map_err(|error| Refusal::new(RefusalCode::Malformed, error.to_string()))?;
            let ends = matches!(request, Request::Shutdown);
            let allowed = greeted || matches!(request, Request::Hello { .. } | Request::Shutdown);
            if !allowed {
                return Err(Refusal::new(RefusalCode::Protocol, "say hello first"));
            }
            let hello = matches!(request, Request::Hello { protocol: PROTOCOL });
            let (reply, ended) = edge.handle(request, descriptors)?;
            greeted |= hello;
            Ok((reply, ended, ends))
        };
        let (reply, ended, ends) =
            handle().unwrap_or_else(|refusal| (Reply::Refused(refusal), Ended::default(), false));
        // The answer means that the sockets are closed.
        ended.wait().await;
        channel.send(&serde_json::to_vec(&reply)?, &[]).await?;
        if ends {
            edge.shutdown.notify_one();
        }
    }
    Ok(())
}

/// What ends because of a request.
#[derive(Default)]
struct Ended {
    tasks: Option<JoinSet<()>>,
    connections: Ending,
}

impl Ended {
    /// What takes its time keeps no other network waiting.
    async fn wait(self) {
        let all = async {
            if let Some(mut tasks) = self.tasks {
                tasks.shutdown().await;
            }
            self.connections.ended().await;
        };
        if tokio::time::timeout(ENDS_WITHIN, all).await.is_err() {
            tracing::warn!("what was told to end is still ending");
        }
    }
}

impl Edge {
    /// Carries out a request; also returns what has to end because of it.
    fn handle(&self, request: Request<'_>, descriptors: Vec<OwnedFd>) -> Result<(Reply, Ended), Refusal> {
        let mut ended = Ended::default();
        let reply = match request {
            Request::Hello { protocol: _ } => Reply::Hello { protocol: PROTOCOL, pid: pid() },
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::PutNetwork { view, sockets, device } => {
                let (sockets, device) = split(descriptors, sockets, device)?;
                ended.tasks = self.put(&view, sockets)?;
                if ended.tasks.is_some() {
                    // The network was made anew: what leads to its machines is in a namespace that is gone.
                    ended.connections = self.public.remove_dialers(view.number);
                }
                // Those who are not to come in any more are out before the answer.
                match self.operators.put(view.number, device, &view.operators) {
                    Ok(refused) => Reply::Put(refused),
                    Err(error) => Reply::Refused(unfit(&error)),
                }
            }
            Request::ChangeNetwork { change } => {
                let network = self.networks().get(&change.number).map(|running| running.network.clone());
                let network = network.filter(|network| network.generation() == change.from).ok_or_else(|| {
                    let message = format!("of network {} there is another view here, or none", change.number);
                    Refusal::new(RefusalCode::Outdated, message)
                })?;
                network.change(&change);
                Reply::Put(self.operators.change(change.number, &change.operators, &change.ended))
            }
            Request::Listen { key } => {
                let sockets = descriptors.into_iter().map(UdpSocket::from).collect();
                self.operators.listen(sockets, &key).map_err(|error| unfit(&error))?;
                tracing::info!("operators can come in");
                Reply::Done
            }
            Request::Sessions { network } => Reply::Sessions(self.operators.sessions(network)),
            Request::Tunnel => Reply::Tunnel(self.operators.report()),
            Request::RemoveNetwork { number } => {
                self.operators.remove(number);
                ended.connections = self.public.remove_dialers(number);
                let removed = self.networks().remove(&number);
                if removed.is_some() {
                    tracing::info!(network = %number, "removed");
                }
                ended.tasks = removed.map(|running| {
                    running.network.end();
                    running.tasks
                });
                Reply::Done
            }
            Request::TakeDenials { after } => Reply::Denials(self.shared.all_denials.take(after)),
            Request::OpenFlows { network } => Reply::OpenFlows(self.open_flows(network)),
            Request::FlowCounters { network } => Reply::FlowCounters(self.flow_counters(network)),
            Request::ListenPublic { kind } => {
                ended.tasks = self.public.listen(kind, descriptors).map_err(|error| unpublished(&error))?;
                Reply::Done
            }
            Request::AddDialers { network } => {
                self.public.add_dialers(network, descriptors).map_err(|error| unpublished(&error))?;
                Reply::Done
            }
            Request::RemoveDialers { network } => {
                ended.connections = self.public.remove_dialers(network);
                Reply::Done
            }
            Request::PutPublic { generation, snapshot } => {
                ended.connections = self.public.put(generation, &snapshot).map_err(|error| unpublished(&error))?;
                tracing::info!(names = snapshot.sites.len(), "published");
                Reply::Done
            }
            Request::PutChallenges { generation, challenges } => {
                self.public.answer(generation, &challenges).map_err(|error| unpublished(&error))?;
                Reply::Done
            }
            Request::Public => Reply::Public(self.public.status()),
            Request::PublicCounters { hosts } => Reply::PublicCounters(self.public.counters(hosts.as_deref())),
            Request::Shutdown => Reply::Done,
        };
        Ok((reply, ended))
    }

    fn open_flows(&self, number: NetworkNumber) -> Vec<OpenFlow> {
        let network = self.networks().get(&number).map(|running| running.network.clone());
        let mut open = network.map_or_else(Vec::new, |network| network.flows.list(number));
        open.truncate(LISTED_FLOWS);
        open
    }

    fn flow_counters(&self, number: NetworkNumber) -> Vec<FlowCounters> {
        let network = self.networks().get(&number).map(|running| running.network.clone());
        network.map_or_else(Vec::new, |network| network.flows.counters(number))
    }

    fn status(&self) -> EdgeStatus {
        let networks = self.networks();
        let running = || networks.iter().map(|(number, running)| (*number, &running.network));
        EdgeStatus {
            pid: pid(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            networks: running().map(|(number, network)| (number, network.generation())).collect(),
            queries: self.shared.stats.read(),
            names: running().map(|(_, network)| network.names.count() as u64).sum(),
            tunnel: self.operators.status(),
            devices: self.operators.devices().into_iter().collect(),
            refused: self.operators.refused(),
            public: self.public.status(),
        }
    }

    fn put(&self, view: &NetworkView, sockets: Option<Sockets>) -> Result<Option<JoinSet<()>>, Refusal> {
        let invalid = |error: ZoneError| Refusal::new(RefusalCode::InvalidName, error.to_string());
        let listening = sockets
            .map(|sockets| Listening::new(sockets, &self.workers, view.number))
            .transpose()
            .map_err(|error| Refusal::new(RefusalCode::SocketsUnfit, error.to_string()))?;
        let mut ended = None;
        let mut networks = self.networks();
        match (networks.get_mut(&view.number), listening) {
            (None, None) => {
                let message = format!("network {} is new and needs its sockets", view.number);
                return Err(Refusal::new(RefusalCode::SocketsMissing, message));
            }
            (None, Some(listening)) => {
                let network = Network::new(view, self.shared.clone()).map_err(invalid)?;
                let tasks = listening.serve(&network);
                networks.insert(view.number, Running { network, tasks });
                tracing::info!(network = %view.number, names = view.names.len(), "answering");
            }
            (Some(running), listening) => {
                running.network.update(view).map_err(invalid)?;
                if let Some(listening) = listening {
                    ended = Some(std::mem::replace(&mut running.tasks, listening.serve(&running.network)));
                    tracing::info!(network = %view.number, "answering on new sockets");
                }
            }
        }
        Ok(ended)
    }

    fn networks(&self) -> MutexGuard<'_, BTreeMap<NetworkNumber, Running>> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sockets and the device that were announced; nothing else may have come.
fn split(
    mut descriptors: Vec<OwnedFd>,
    sockets: bool,
    device: bool,
) -> Result<(Option<Sockets>, Option<OwnedFd>), Refusal> {
    let expected = if sockets { Sockets::COUNT } else { 0 } + usize::from(device);
    if descriptors.len() != expected {
        let message = format!("{} descriptors arrived instead of {expected}", descriptors.len());
        return Err(Refusal::new(RefusalCode::SocketsMissing, message));
    }
    let device = if device { descriptors.pop() } else { None };
    Ok((<[_; Sockets::COUNT]>::try_from(descriptors).ok().map(Sockets::from_descriptors), device))
}

fn unfit(error: &OperatorsError) -> Refusal {
    Refusal::new(RefusalCode::SocketsUnfit, chain(error))
}

fn unpublished(error: &PublicError) -> Refusal {
    let code = match error {
        PublicError::Snapshot(_) => RefusalCode::InvalidPublic,
        PublicError::Threads(_) | PublicError::Listener(_) | PublicError::Dialer(..) => RefusalCode::SocketsUnfit,
    };
    Refusal::new(code, chain(error))
}

fn pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::NetworkChange;
    use crate::flows::FlowKey;
    use crate::names::Ledger;
    use crate::public::PublicGeneration;
    use crate::view::tests::{member, network_view, rule, view_with};
    use std::borrow::Cow;
    use std::net::{Ipv4Addr, TcpListener};
    use ulid::Ulid;
    use warren_ingress::Kind;
    use warren_model::MachineId;
    use warren_model::policy::{Application, Group, HostName};

    fn edge(networks: BTreeMap<NetworkNumber, Running>, shared: Arc<Shared>) -> Edge {
        Edge {
            networks: Mutex::new(networks),
            shared,
            workers: Workers::start(1).unwrap(),
            operators: Operators::default(),
            public: Public::start(1).unwrap(),
            shutdown: Notify::new(),
        }
    }

    #[tokio::test]
    async fn a_listener_that_is_taken_back_is_closed_before_the_answer() {
        let directory = tempfile::tempdir().unwrap();
        let edge = edge(BTreeMap::new(), Shared::new(Ledger::open(directory.path(), "names").unwrap()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let listen = |listeners| edge.handle(Request::ListenPublic { kind: Kind::Http }, listeners).unwrap().1;
        listen(vec![listener.into()]).wait().await;
        // Its only thread has something else to do for a while.
        edge.public.occupy(Duration::from_millis(300));
        listen(Vec::new()).wait().await;
        TcpListener::bind(at).expect("the port is free again");
        tokio::task::spawn_blocking(move || drop(edge)).await.unwrap();
    }

    #[tokio::test]
    async fn what_does_not_end_keeps_no_answer_waiting_for_ever() {
        // Nobody drives it, so that nothing of it ever ends.
        let stuck = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn_on(std::future::pending(), stuck.handle());
        let ended = Ended { tasks: Some(tasks), connections: Ending::default() };
        tokio::time::timeout(Duration::from_secs(60), ended.wait()).await.expect("it waits for ever");
        stuck.shutdown_background();
    }

    #[tokio::test]
    async fn a_change_that_begins_with_another_view_is_refused_and_one_that_fits_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let shared = Shared::new(Ledger::open(directory.path(), "names").unwrap());
        let view = |generation, members: &[u32]| NetworkView {
            generation,
            members: members.iter().map(|number| member(*number, "who")).collect(),
            ..network_view()
        };
        let (one, two, three) = (view(1, &[2]), view(2, &[2, 3]), view(3, &[3]));
        let network = Network::new(&one, shared.clone()).unwrap();
        let running = Running { network: network.clone(), tasks: JoinSet::new() };
        let edge = edge([(one.number, running)].into(), shared);
        let change = |before: &NetworkView, after: &NetworkView| {
            let change = NetworkChange::between(before, after).unwrap();
            let request = Request::ChangeNetwork { change: Box::new(Cow::Owned(change)) };
            edge.handle(request, Vec::new()).map(drop).map_err(|refusal| refusal.code)
        };
        let there = || {
            let outside = network.outside.load();
            let mut there: Vec<_> = outside.machines().collect();
            there.sort();
            (edge.status().networks[&one.number], there, network.names.count())
        };
        assert_eq!(change(&two, &three), Err(RefusalCode::Outdated));
        assert_eq!(there().0, 1);
        assert_eq!(change(&one, &two), Ok(()));
        assert_eq!(there(), (2, vec![two.members[0].id, two.members[1].id], 0));
        // Who joined is given addresses for names, and who left has none.
        let name: HostName = "a.example.com".parse().unwrap();
        assert!(two.members.iter().all(|member| network.names.assign(member.id, &name, false).is_ok()));
        assert_eq!(there().2, 2);
        assert_eq!(change(&one, &two), Err(RefusalCode::Outdated), "not twice");
        assert_eq!(change(&two, &three), Ok(()));
        assert_eq!(there(), (3, vec![two.members[1].id], 1));
        let elsewhere = |view: &NetworkView| NetworkView { number: NetworkNumber::new(9).unwrap(), ..view.clone() };
        assert_eq!(change(&elsewhere(&one), &elsewhere(&two)), Err(RefusalCode::Outdated), "of an unknown network");
        tokio::task::spawn_blocking(move || drop(edge)).await.unwrap();
    }

    #[tokio::test]
    async fn who_leaves_by_a_change_loses_its_connections_and_nobody_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let shared = Shared::new(Ledger::open(directory.path(), "names").unwrap());
        let mut before = view_with(vec![rule("all", "*.example.com", &["tcp/443"])]);
        let other = before.members[1].clone();
        before.groups.insert(other.ipv4.into(), Group(7));
        let after = NetworkView {
            members: vec![other.clone()],
            groups: [(other.ipv4.into(), Group(7))].into(),
            generation: before.generation + 1,
            ..before.clone()
        };
        let network = Network::new(&before, shared).unwrap();
        let open = [&before.members[0], &other].map(|member| {
            let key = FlowKey {
                member: member.id,
                source: member.ipv4.into(),
                host: "a.example.com".parse().unwrap(),
                port: 443,
                rule: "all".parse().unwrap(),
                application: Application::Tls,
            };
            network.flows.open(key, &network.outside)
        });
        assert_eq!(open.each_ref().map(|flow| flow.revoked.is_cancelled()), [false, false]);
        network.change(&NetworkChange::between(&before, &after).unwrap());
        assert_eq!(open.each_ref().map(|flow| flow.revoked.is_cancelled()), [true, false]);
    }

    #[tokio::test]
    async fn other_challenges_are_another_generation_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let edge = edge(BTreeMap::new(), Shared::new(Ledger::open(directory.path(), "names").unwrap()));
        let at = || edge.public.status().generation;
        let challenges = || [("token".to_owned(), "answer".to_owned())].into();
        let answer = |generation, challenges| {
            edge.handle(Request::PutChallenges { generation, challenges }, Vec::new()).map(drop).map_err(|no| no.code)
        };
        assert_eq!(answer(5, challenges()), Ok(()));
        assert_eq!(at(), None, "nothing is published");
        let generation = PublicGeneration { content: 1, challenges: 2 };
        edge.handle(Request::PutPublic { generation, snapshot: Box::default() }, Vec::new()).unwrap();
        assert_eq!(at(), Some(generation));
        assert_eq!(answer(5, challenges()), Ok(()));
        assert_eq!(at(), Some(PublicGeneration { content: 1, challenges: 5 }));
        assert_eq!(answer(6, [("to/ken".to_owned(), String::new())].into()), Err(RefusalCode::InvalidPublic));
        assert_eq!(at(), Some(PublicGeneration { content: 1, challenges: 5 }));
        tokio::task::spawn_blocking(move || drop(edge)).await.unwrap();
    }

    #[tokio::test]
    async fn however_many_connections_a_network_has_the_others_list_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let shared = Shared::new(Ledger::open(directory.path(), "names").unwrap());
        let mut networks = BTreeMap::new();
        let mut open = Vec::new();
        let numbers = [1, 2].map(|number| NetworkNumber::new(number).unwrap());
        for (number, count) in numbers.into_iter().zip([LISTED_FLOWS + 1, 1]) {
            let network = Network::new(&NetworkView { number, ..network_view() }, shared.clone()).unwrap();
            let key = FlowKey {
                member: MachineId::from_ulid(Ulid::from_parts(1, 1)).into(),
                source: Ipv4Addr::LOCALHOST.into(),
                host: "a.example.com".parse().unwrap(),
                port: 443,
                rule: "all".parse().unwrap(),
                application: Application::Tls,
            };
            open.extend((0..count).map(|_| network.flows.open(key.clone(), &network.outside)));
            networks.insert(number, Running { network, tasks: JoinSet::new() });
        }
        let edge = edge(networks, shared);
        let listed = |number| edge.open_flows(number).iter().filter(|flow| flow.network == number).count();
        assert_eq!(numbers.map(listed), [LISTED_FLOWS, 1]);
        assert_eq!(listed(NetworkNumber::new(3).unwrap()), 0);
        // A runtime may not be dropped inside another one.
        tokio::task::spawn_blocking(move || drop(edge)).await.unwrap();
    }
}
