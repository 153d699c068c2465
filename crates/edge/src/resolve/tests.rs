use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use hickory_proto::op::{Message, OpCode, Query as Question};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record};
use proptest::prelude::*;

use super::*;
use crate::dns::upstream::{self, Said};
use crate::view::tests::network_view;

const GLOBAL4: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);

fn host(text: &str) -> HostName {
    text.parse().unwrap()
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn a(text: &str) -> RData {
    RData::A(A(text.parse().unwrap()))
}

fn alias(text: &str) -> RData {
    RData::CNAME(CNAME(name(text)))
}

/// An answer to a question for the addresses of `x.example.com`: owners, times to live and data.
fn answer(records: &[(&str, u32, RData)]) -> Message {
    let mut message = Message::response(7, OpCode::Query);
    message.add_query(Question::query(name("x.example.com."), RecordType::A));
    message.add_answers(records.iter().map(|(owner, ttl, data)| Record::from_rdata(name(owner), *ttl, data.clone())));
    message
}

fn read_a(records: &[(&str, u32, RData)]) -> Result<Found, ResolveError> {
    read(&host("x.example.com"), RecordType::A, &answer(records))
}

#[test]
fn aliases_are_followed_and_the_shortest_time_to_live_holds() {
    let found = read_a(&[
        ("X.example.COM.", 300, alias("y.example.net.")),
        ("z.example.org.", 90, a("93.184.216.34")),
        ("y.example.net.", 30, alias("z.example.org.")),
        ("z.example.org.", 60, a("93.184.216.35")),
        ("z.example.org.", 60, a("93.184.216.35")),
        ("stranger.example.", 5, a("93.184.216.99")),
    ]);
    let expected = ["93.184.216.34", "93.184.216.35"].map(|text| text.parse::<IpAddr>().unwrap());
    assert_eq!(found, Ok((expected.to_vec(), Duration::from_secs(30))));
}

#[test]
fn one_address_that_is_not_public_refuses_the_whole_answer_wherever_it_is() {
    for bad in ["10.0.0.1", "169.254.169.254", "127.0.0.1", "0.0.0.0", "198.18.0.7", "192.168.1.1"] {
        let direct = read_a(&[("x.example.com.", 60, a("93.184.216.34")), ("x.example.com.", 60, a(bad))]);
        let aliased = read_a(&[("x.example.com.", 60, alias("y.example.")), ("y.example.", 60, a(bad))]);
        let beside = read_a(&[("x.example.com.", 60, a("93.184.216.34")), ("other.example.", 60, a(bad))]);
        for result in [direct, aliased, beside] {
            let error = result.unwrap_err();
            assert!(error.is_refusal());
            assert_eq!(error.to_string(), format!("x.example.com leads to {bad}, which is not a public address"));
        }
    }
}

#[test]
fn an_answer_without_an_address_of_the_name_has_none() {
    let none = |records: &[(&str, u32, RData)]| {
        assert_eq!(read_a(records), Err(ResolveError::NoAddress(host("x.example.com"))))
    };
    none(&[]);
    none(&[("x.example.com.", 60, alias("y.example."))]);
    none(&[("x.example.com.", 60, alias("y.example.")), ("y.example.", 60, alias("x.example.com."))]);
    none(&[("other.example.", 60, a("93.184.216.34"))]);
    none(&[("x.example.com.", 60, RData::AAAA(AAAA("2606:4700::1111".parse().unwrap())))]);
}

/// A resolver outside that counts its questions and says what the name tells it to.
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Upstream {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (address, asked) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counter = asked.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                counter.fetch_add(1, SeqCst);
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let question = &query.queries[0];
                let (owner, six) = (question.name().clone(), question.query_type() == RecordType::AAAA);
                let text = owner.to_ascii();
                let mut said = Message::response(query.metadata.id, OpCode::Query);
                said.add_query(question.clone());
                let data = match text.split('.').next().unwrap() {
                    "gone" => {
                        said.metadata.response_code = ResponseCode::NXDomain;
                        None
                    }
                    "broken6" if six => {
                        said.metadata.response_code = ResponseCode::ServFail;
                        None
                    }
                    "rebind6" if six => Some(RData::AAAA(AAAA("fd00::1".parse().unwrap()))),
                    "slow" => {
                        std::thread::sleep(Duration::from_millis(100));
                        Some(RData::A(A(GLOBAL4))).filter(|_| !six)
                    }
                    "both" if six => Some(RData::AAAA(AAAA("2606:4700::1111".parse().unwrap()))),
                    _ if six => None,
                    _ => Some(RData::A(A(GLOBAL4))),
                };
                said.add_answers(data.map(|data| Record::from_rdata(owner, 0, data)));
                socket.send_to(&said.to_vec().unwrap(), peer).unwrap();
            }
        });
        Self { address, asked }
    }

    fn resolver(&self) -> Resolver {
        resolver(vec![self.address])
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

fn resolver(resolvers: Vec<SocketAddr>) -> Resolver {
    let mut view = network_view();
    view.resolvers = resolvers;
    Resolver::new(Arc::new(ArcSwap::from_pointee(Outside::build(&view))))
}

#[tokio::test]
async fn both_families_are_asked_for_and_one_that_fails_does_no_harm() {
    let upstream = Upstream::start();
    let resolver = upstream.resolver();
    let both = resolver.look_up(&host("both.example.com")).await.unwrap();
    assert_eq!(both, ["2606:4700::1111".parse::<IpAddr>().unwrap(), GLOBAL4.into()]);
    assert_eq!(upstream.asked(), 2);
    assert_eq!(resolver.look_up(&host("four.example.com")).await.unwrap(), [IpAddr::from(GLOBAL4)]);
    assert_eq!(resolver.look_up(&host("broken6.example.com")).await.unwrap(), [IpAddr::from(GLOBAL4)]);
    let gone = host("gone.example.com");
    assert_eq!(resolver.look_up(&gone).await, Err(ResolveError::NoSuchName(gone.clone())));
}

#[tokio::test]
async fn an_address_of_one_family_that_is_not_public_refuses_the_other() {
    let upstream = Upstream::start();
    let error = upstream.resolver().look_up(&host("rebind6.example.com")).await.unwrap_err();
    assert!(matches!(error, ResolveError::NotGlobal { address, .. } if address.to_string() == "fd00::1"));
}

#[tokio::test]
async fn questions_for_a_name_at_the_same_time_are_asked_once() {
    let upstream = Upstream::start();
    let resolver = upstream.resolver();
    let slow = host("slow.example.com");
    let (one, two, three) = tokio::join!(resolver.look_up(&slow), resolver.look_up(&slow), resolver.look_up(&slow));
    assert_eq!((one.as_ref(), two.as_ref()), (three.as_ref(), three.as_ref()));
    assert!(one.is_ok());
    assert_eq!(upstream.asked(), 2, "one for each family");
}

#[tokio::test]
async fn who_gives_up_leaves_the_question_to_the_next() {
    let upstream = Upstream::start();
    let resolver = upstream.resolver();
    let slow = host("slow.example.com");
    let given_up = tokio::time::timeout(Duration::from_millis(5), resolver.look_up(&slow)).await;
    assert!(given_up.is_err());
    assert!(resolver.look_up(&slow).await.is_ok());
}

#[tokio::test]
async fn an_answer_holds_a_second_at_least_and_only_for_the_resolvers_that_gave_it() {
    let (first, second) = (Upstream::start(), Upstream::start());
    let resolver = first.resolver();
    let name = host("four.example.com");
    loop {
        let (before, begun) = (first.asked(), Instant::now());
        for _ in 0..10 {
            resolver.look_up(&name).await.unwrap();
        }
        // A machine that took longer has rightly asked again.
        if begun.elapsed() < TTL.0 {
            assert_eq!(first.asked() - before, 2, "its time to live is 0");
            break;
        }
        tokio::time::sleep(TTL.0).await;
    }
    let before = first.asked();
    let mut view = network_view();
    view.resolvers = vec![second.address];
    resolver.outside.store(Arc::new(Outside::build(&view)));
    resolver.look_up(&name).await.unwrap();
    assert_eq!((first.asked(), second.asked()), (before, 2));
    tokio::time::sleep(Duration::from_millis(1050)).await;
    resolver.look_up(&name).await.unwrap();
    assert_eq!(second.asked(), 4);
}

#[tokio::test]
async fn without_a_resolver_that_answers_there_is_an_error_that_says_so() {
    let name = host("x.example.com");
    assert_eq!(resolver(vec![]).look_up(&name).await, Err(ResolveError::NoResolver));
    let error = resolver(vec!["127.0.0.1:1".parse().unwrap()]).look_up(&name).await.unwrap_err();
    assert!(matches!(error, ResolveError::Network(_)), "{error:?}");
    let upstream = Upstream::start();
    let behind_another = resolver(vec!["127.0.0.1:1".parse().unwrap(), upstream.address]);
    assert!(behind_another.look_up(&name).await.is_ok());
}

#[tokio::test]
async fn what_is_remembered_is_bounded() {
    let resolver = resolver(vec!["127.0.0.1:1".parse().unwrap()]);
    let resolvers: Arc<[SocketAddr]> = vec!["127.0.0.1:1".parse().unwrap()].into();
    for index in 0..NAMES + 100 {
        let slot = resolver.slot(&host(&format!("n{index}.example.com")), &resolvers);
        let known = Known { result: Ok(vec![]), until: Instant::now() + TTL.1, resolvers: resolvers.clone() };
        slot.answer.set(known).unwrap();
    }
    assert_eq!(resolver.known.lock().unwrap().len(), NAMES);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_resolver_says_no_address_is_found_that_is_not_public(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        tail in proptest::collection::vec(any::<u8>(), 0..64),
        garbage in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let question = question(&host("x.example.com"), RecordType::A).unwrap();
        let records =
            [("x.example.com.", 9, alias("y.example.")), ("y.example.", 9, a("93.184.216.34")), ("y.example.", 9, a("10.0.0.1"))];
        let mut bytes = answer(&records[..2 + usize::from(garbage.len() % 2 == 0)]).to_vec().unwrap();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.extend(tail);
        for bytes in [bytes, garbage] {
            if let Said::Answer(message) = upstream::read(7, &question, &bytes)
                && let Ok((addresses, _)) = read(&host("x.example.com"), RecordType::A, &message)
            {
                prop_assert!(!addresses.is_empty());
                prop_assert!(addresses.into_iter().all(warren_model::policy::is_global));
            }
        }
    }
}
