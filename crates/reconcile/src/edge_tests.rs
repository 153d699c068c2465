use std::collections::VecDeque;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use ulid::Ulid;
use warren_edge::{EdgeLog, Operator, PublicStatus, QueryCounters};
use warren_model::session::{TunnelKey, WireGuardKey};
use warren_model::{MemberNumber, UlaPrefix};

use super::*;
use crate::names;
use crate::policy::AccountPolicy;
use crate::samples;
use crate::sight::Sight;

/// What a peer at the control socket says and was asked. It stands for an edge, so that there is one that answers out of
/// the ordinary.
#[derive(Default)]
struct Script {
    status: Value,
    /// Instead of the status before, once it was asked to listen.
    status_when_listening: Option<Value>,
    /// For what the next views and changes are answered with; the empty list of who was refused after that.
    answers: VecDeque<Value>,
    /// The name of each request and how many bytes it has.
    asked: Vec<(String, usize)>,
}

struct FakeEdge {
    directory: tempfile::TempDir,
    script: Arc<Mutex<Script>>,
}

impl FakeEdge {
    fn start(status: EdgeStatus) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = Script { status: serde_json::to_value(status).unwrap(), ..Script::default() };
        let script = Arc::new(Mutex::new(script));
        let listener = UnixListener::bind(directory.path().join("control")).unwrap();
        let all = Arc::clone(&script);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(attend(stream, Arc::clone(&all)));
            }
        });
        Self { directory, script }
    }

    fn link(&self) -> EdgeLink {
        EdgeLink::new(SpawnConfig {
            executable: "/nonexistent".into(),
            arguments: Vec::new(),
            control: self.directory.path().join("control"),
            uid: 65534,
            gid: 65534,
            log: EdgeLog::Discard,
        })
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// The views and changes that it was given since it was last asked: their names and lengths.
    fn given(&self) -> Vec<(String, usize)> {
        let asked = std::mem::take(&mut self.script().asked);
        asked.into_iter().filter(|(name, _)| name.ends_with("_network")).collect()
    }

    fn names_given(&self) -> Vec<String> {
        self.given().into_iter().map(|(name, _)| name).collect()
    }
}

/// Ends with the connection.
async fn attend(mut stream: UnixStream, script: Arc<Mutex<Script>>) -> std::io::Result<()> {
    loop {
        let length = stream.read_u32().await?;
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).await?;
        let request: Value = serde_json::from_slice(&body).unwrap();
        let name = match &request {
            Value::String(name) => name.clone(),
            other => other.as_object().unwrap().keys().next().unwrap().clone(),
        };
        let answer = {
            let mut script = script.lock().unwrap();
            script.asked.push((name.clone(), body.len()));
            match name.as_str() {
                "hello" => json!({ "hello": { "protocol": request["hello"]["protocol"], "pid": 1 } }),
                "status" => json!({ "status": script.status }),
                "listen" => {
                    script.status = script.status_when_listening.take().unwrap();
                    json!("done")
                }
                "put_network" | "change_network" => script.answers.pop_front().unwrap_or(json!({ "put": [] })),
                "remove_network" => json!("done"),
                other => panic!("nobody asks for {other} here"),
            }
        };
        if answer.is_null() {
            // It ends at this point.
            return Ok(());
        }
        let answer = serde_json::to_vec(&answer).unwrap();
        stream.write_u32(answer.len() as u32).await?;
        stream.write_all(&answer).await?;
    }
}

fn number(number: u16) -> NetworkNumber {
    NetworkNumber::new(number).unwrap()
}

fn session(number: u64) -> SessionId {
    SessionId::from_ulid(Ulid::from_parts(number, 1))
}

fn status(networks: &[(u16, u64)]) -> EdgeStatus {
    EdgeStatus {
        pid: 1,
        version: String::new(),
        networks: networks.iter().map(|(network, generation)| (number(*network), *generation)).collect(),
        queries: QueryCounters::default(),
        names: 0,
        tunnel: None,
        devices: networks.iter().map(|(network, _)| number(*network)).collect(),
        refused: Vec::new(),
        public: PublicStatus::default(),
    }
}

fn tunnel(key: &TunnelKey, listening: &str) -> Option<TunnelStatus> {
    let (public_key, listening) = (public_key(key), vec![listening.parse().unwrap()]);
    Some(TunnelStatus { public_key, listening, foreign: 0, refused: 0, dropped: 0, handshakes: 0 })
}

/// A view of network 1 with so many operators.
fn view(operators: u32) -> Arc<NetworkView> {
    let network = samples::network(warren_model::record::Egress::Deny);
    let ula = UlaPrefix::from_random([1, 2, 3, 4, 5]);
    let policy = AccountPolicy::of(&[&network], &[], "", ula);
    let sight = Sight::of(&network, ula, policy.rules(network.id), &policy.directory, [].iter(), |_| None);
    let operator = |n: u32| Operator {
        session: session(n.into()),
        number: MemberNumber::new(n + 2).unwrap(),
        public_key: WireGuardKey::from_bytes([n as u8; 32]),
        ipv4: (0x0a00_0000 + n).into(),
        ipv6: (0xfd00_u128 << 112 | u128::from(n)).into(),
        only: None,
        reachable: false,
        expires_at: Timestamp::UNIX_EPOCH,
        idle_seconds: 600,
    };
    Arc::new(names::network_view(&network, ula, &sight, &policy, (0..operators).map(operator).collect(), &[]))
}

#[test]
fn of_an_edge_that_is_taken_over_everything_that_is_not_whole_is_done_again() {
    let [whole, wanting, without_device] = [1, 2, 3].map(number);
    let devices = [whole, wanting].into();
    let status = EdgeStatus { devices, refused: vec![(wanting, session(1))], ..status(&[(1, 7), (2, 7), (3, 7)]) };
    let all = known(status).networks;
    assert!(all[&whole].is_whole(7, true) && all[&whole].is_whole(7, false));
    assert!(!all[&whole].is_whole(8, false), "it has another generation");
    assert!(!all[&wanting].is_whole(7, true), "who was refused is tried again");
    assert!(all[&without_device].is_whole(7, false) && !all[&without_device].is_whole(7, true));
}

#[tokio::test]
async fn what_the_edge_says_after_it_began_to_listen_takes_the_place_of_what_was_known() {
    let settings = TunnelSettings { listen: "127.0.0.1:0".parse().unwrap(), key: TunnelKey::from_bytes([7; 32]) };
    let edge = FakeEdge::start(status(&[(1, 7), (2, 7)]));
    let begun = EdgeStatus {
        tunnel: tunnel(&settings.key, "127.0.0.1:1234"),
        devices: [number(1)].into(),
        refused: vec![(number(1), session(1))],
        ..status(&[(1, 7), (2, 7)])
    };
    edge.script().status_when_listening = Some(serde_json::to_value(begun).unwrap());
    let link = edge.link();
    link.client().await.unwrap();
    let of = |network| link.held(number(network)).unwrap();
    assert!(of(1).is_whole(7, true) && of(2).is_whole(7, true));
    let everybody = || BTreeSet::from([session(1), session(2)]);
    assert_eq!(link.inside(number(1), everybody()), [].into(), "nobody, before it listens");

    let (gateway, begun) = link.try_listen(&settings).await.unwrap();
    assert_eq!((gateway.listening.port(), begun), (1234, Begun::Now));
    assert!(!of(1).is_whole(7, true) && !of(2).is_whole(7, true), "one was refused, and a device was unfit");
    assert_eq!(link.inside(number(1), everybody()), [session(2)].into());
    assert_eq!(link.try_listen(&settings).await.unwrap().1, Begun::Before, "it has its sockets");
}

#[tokio::test]
async fn an_edge_that_began_to_listen_without_anybody_hearing_of_it_is_asked_what_it_has() {
    let settings = TunnelSettings { listen: "127.0.0.1:0".parse().unwrap(), key: TunnelKey::from_bytes([7; 32]) };
    let edge = FakeEdge::start(status(&[(1, 7)]));
    let link = edge.link();
    link.client().await.unwrap();
    let listening = EdgeStatus { tunnel: tunnel(&settings.key, "127.0.0.1:1234"), ..status(&[(1, 7)]) };
    edge.script().status = serde_json::to_value(listening).unwrap();
    assert_eq!(link.try_listen(&settings).await.unwrap().1, Begun::Now);
    assert_eq!(link.inside(number(1), [session(1)].into()), [session(1)].into());
    assert_eq!(link.try_listen(&settings).await.unwrap().1, Begun::Before);
}

#[tokio::test]
async fn one_more_operator_costs_what_one_does_however_many_there_are() {
    let edge = FakeEdge::start(status(&[(1, 7)]));
    let link = edge.link();
    let many = view(1000);
    link.put(&many, None, None).await.unwrap();
    link.put(&view(1001), None, None).await.unwrap();
    link.put(&many, None, None).await.unwrap();
    let given = edge.given();
    let names: Vec<&str> = given.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["put_network", "change_network", "change_network"]);
    assert!(given[0].1 > 200_000 && given[1].1 < 1000 && given[2].1 < 1000, "{given:?}");
    assert!(link.has_whole(&many) && !link.has_whole(&view(1001)));
}

#[tokio::test]
async fn where_it_is_not_certain_what_the_edge_has_it_is_given_all() {
    let edge = FakeEdge::start(status(&[(1, 7)]));
    let link = edge.link();
    let refused = |code: &str| json!({ "refused": { "code": code, "message": "" } });
    link.put(&view(1), None, None).await.unwrap();
    edge.given();

    // It has another one, for whatever reason.
    edge.script().answers = [refused("outdated")].into();
    link.put(&view(2), None, None).await.unwrap();
    assert_eq!(edge.names_given(), ["change_network", "put_network"]);

    // It may have done half of it.
    edge.script().answers = [refused("sockets_unfit")].into();
    link.put(&view(3), None, None).await.unwrap_err();
    assert!(!link.has_whole(&view(3)));
    link.put(&view(3), None, None).await.unwrap();
    assert_eq!(edge.names_given(), ["change_network", "put_network"]);

    // It has nothing of the network: the next attempt brings sockets.
    edge.script().answers = [refused("outdated"), refused("sockets_missing")].into();
    link.put(&view(4), None, None).await.unwrap_err();
    assert_eq!(link.held(number(1)), None);
    link.put(&view(4), None, None).await.unwrap();
    edge.given();

    // The connection ends before the answer: nobody knows whether it was done.
    edge.script().answers = [Value::Null].into();
    assert!(matches!(link.put(&view(5), None, None).await, Err(ReconcileError::Edge(error)) if error.is_broken()));
    assert!(link.may_have(number(1)) && link.held(number(1)).is_none());
    link.put(&view(5), None, None).await.unwrap();
    assert_eq!(edge.names_given(), ["change_network", "put_network"]);
}

#[tokio::test]
async fn a_daemon_that_comes_back_to_what_it_wants_sends_what_changes_from_then_on() {
    let one = view(1);
    let edge = FakeEdge::start(status(&[(1, one.generation)]));
    let link = edge.link();
    link.client().await.unwrap();
    assert!(link.has_whole(&one));
    link.put(&view(2), None, None).await.unwrap();
    assert_eq!(edge.names_given(), ["change_network"]);
}

#[tokio::test]
async fn a_connection_that_broke_takes_no_other_along() {
    let edge = FakeEdge::start(status(&[(1, 7)]));
    let link = edge.link();
    let broken = link.client().await.unwrap();
    link.give_up(&broken).await;
    let next = link.client().await.unwrap();
    link.put(&view(1), None, None).await.unwrap();
    // Somebody else had the first one, too.
    link.give_up(&broken).await;
    assert!(Arc::ptr_eq(&link.client().await.unwrap(), &next));
    assert!(link.has_whole(&view(1)));
}
