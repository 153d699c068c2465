use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode as Code};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, RecordType};
use proptest::prelude::*;
use warren_model::denial::Denial;

use super::*;
use crate::dns::wire::MAX_UDP;
use crate::names::Ledger;
use crate::network::Shared;
use crate::view::NetworkView;
use crate::view::tests::{member, rule, view_with};

const WEB: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 3));

struct Lab {
    network: Arc<Network>,
    _directory: tempfile::TempDir,
}

/// Two members; the rules are those of `web` only: an id, a pattern, and ports.
fn view(rules: &[(&str, &str, &[&str])]) -> NetworkView {
    view_with(rules.iter().map(|(id, pattern, ports)| rule(id, pattern, ports)).collect())
}

impl Lab {
    fn new(view: &NetworkView) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shared = Shared::new(Ledger::open(directory.path(), "names").unwrap());
        Self { network: Network::new(view, shared).unwrap(), _directory: directory }
    }

    fn outcome(&self, source: IpAddr, packet: &[u8], buffer: &mut [u8]) -> Outcome {
        let (zone, outside) = (self.network.zone.load(), self.network.outside.load());
        respond(&self.network, (&zone, &outside), source, packet, buffer, true)
    }

    fn ask(&self, source: IpAddr, name: &str, record_type: RecordType) -> Message {
        let mut message = Message::new(5, MessageType::Query, OpCode::Query);
        message.add_query(Question::query(Name::from_ascii(name).unwrap(), record_type));
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        message.set_edns(edns);
        let mut buffer = [0; MAX_UDP];
        match self.outcome(source, &message.to_vec().unwrap(), &mut buffer) {
            Outcome::Reply { length, .. } => Message::from_vec(&buffer[..length]).unwrap(),
            other => panic!("{name}: {other:?}"),
        }
    }

    fn forwards(&self, source: IpAddr, name: &str) -> bool {
        let mut message = Message::new(5, MessageType::Query, OpCode::Query);
        message.add_query(Question::query(Name::from_ascii(name).unwrap(), RecordType::A));
        matches!(self.outcome(source, &message.to_vec().unwrap(), &mut [0; MAX_UDP]), Outcome::Forward)
    }

    fn address(&self, source: IpAddr, name: &str) -> Option<IpAddr> {
        self.ask(source, name, RecordType::A).answers.first().map(|record| match &record.data {
            RData::A(address) => IpAddr::V4(address.0),
            other => panic!("{other}"),
        })
    }

    fn denials(&self) -> Vec<Denial> {
        self.network.shared.all_denials.take(0).denials
    }
}

/// Code and text of the extended error.
fn error(message: &Message) -> Option<(u16, String)> {
    let option = message.edns.as_ref()?.option(EdnsCode::Unknown(15))?;
    let EdnsOption::Unknown(_, octets) = option else { panic!("a parsed option 15") };
    Some((u16::from_be_bytes([octets[0], octets[1]]), String::from_utf8(octets[2..].to_vec()).unwrap()))
}

#[test]
fn an_allowed_name_has_a_synthetic_address_of_each_family_that_leads_back_to_it() {
    let lab = Lab::new(&view(&[("api", "api.example.com", &["tcp/443"])]));
    for (record_type, range) in [(RecordType::A, "198.18.0.0/15"), (RecordType::AAAA, "fd12:3456:789a:1:ffff::/80")] {
        let answer = lab.ask(WEB, "API.Example.com.", record_type);
        assert_eq!(answer.metadata.response_code, Code::NoError);
        let address = match &answer.answers[0].data {
            RData::A(address) => IpAddr::V4(address.0),
            RData::AAAA(address) => IpAddr::V6(address.0),
            other => panic!("{other}"),
        };
        assert!(range.parse::<ipnet::IpNet>().unwrap().contains(&address), "{address}");
        assert_eq!(answer.answers[0].ttl, 60);
        assert!(answer.authorities.is_empty() && error(&answer).is_none());
        let machine = member(2, "web").id;
        assert_eq!(lab.network.names.name_of(machine, address).unwrap().as_str(), "api.example.com");
    }
    assert!(lab.denials().is_empty());
}

#[test]
fn reverse_names_of_synthetic_addresses_say_the_name_to_who_has_it() {
    let lab = Lab::new(&view(&[("api", "api.example.com", &[])]));
    let Some(IpAddr::V4(four)) = lab.address(WEB, "api.example.com.") else { panic!("no address") };
    let [a, b, c, d] = four.octets();
    let reverse = format!("{d}.{c}.{b}.{a}.in-addr.arpa.");
    let answer = lab.ask(WEB, &reverse, RecordType::PTR);
    assert_eq!(answer.answers[0].data.to_string(), "api.example.com.");
    assert_eq!(lab.ask(OTHER, &reverse, RecordType::PTR).metadata.response_code, Code::NXDomain);
}

#[test]
fn an_allowed_name_has_no_other_record() {
    let lab = Lab::new(&view(&[("api", "api.example.com", &["tcp/443"])]));
    for record_type in [RecordType::HTTPS, RecordType::SVCB, RecordType::TXT, RecordType::MX, RecordType::CNAME] {
        let answer = lab.ask(WEB, "api.example.com.", record_type);
        assert_eq!(answer.metadata.response_code, Code::NoError, "{record_type}");
        assert!(answer.answers.is_empty() && answer.authorities.is_empty(), "{record_type}");
        assert!(error(&answer).is_none(), "{record_type}");
    }
    assert!(lab.denials().is_empty());
}

#[test]
fn any_other_name_is_refused_with_the_id_of_the_record_of_it() {
    let lab = Lab::new(&view(&[("api", "api.example.com", &["tcp/443"]), ("no-x", "x.example.com", &[])]));
    let cases = [
        (WEB, "evil.example.", None, "no rule allows lab/web to reach evil.example"),
        (OTHER, "api.example.com.", None, "no rule allows lab/other to reach api.example.com"),
        (WEB, "example.com.", None, "no rule allows lab/web to reach example.com"),
        (WEB, "x.example.com.", Some("no-x"), "rule no-x forbids it"),
    ];
    for (source, name, rule, reason) in cases {
        let answer = lab.ask(source, name, RecordType::A);
        assert_eq!(answer.metadata.response_code, Code::NXDomain, "{name}");
        assert!(answer.answers.is_empty() && answer.authorities.is_empty(), "{name}");
        let denial = lab.denials().pop().unwrap();
        assert_eq!(error(&answer), Some((18, format!("{}: {reason}", denial.id))));
        assert_eq!((denial.rule.as_ref().map(|rule| rule.as_str()), denial.reason.as_str()), (rule, reason));
        assert_eq!((denial.layer, denial.port, denial.count), (Layer::Dns, None, 1));
        assert_eq!(denial.name.as_deref(), name.strip_suffix('.'));
    }
    assert_eq!(lab.denials().len(), cases.len());
}

#[test]
fn what_is_not_the_name_of_a_host_outside_is_refused_and_says_why() {
    let lab = Lab::new(&view(&[("all", "**.example.com", &[])]));
    for (name, recorded) in [("worker.", true), ("8.8.8.8.in-addr.arpa.", true), ("a-.example.com.", true)] {
        let answer = lab.ask(WEB, name, RecordType::A);
        assert_eq!(answer.metadata.response_code, Code::NXDomain, "{name}");
        let (code, text) = error(&answer).unwrap();
        assert_eq!((code, text.starts_with("dny_")), (18, recorded), "{text}");
    }
    let before = lab.denials().len();
    for name in ["localhost.", "printer.local.", "1.1.168.192.in-addr.arpa.", "1.0.18.198.in-addr.arpa."] {
        let answer = lab.ask(WEB, name, RecordType::A);
        assert_eq!((answer.metadata.response_code, error(&answer).unwrap().0), (Code::NXDomain, 18), "{name}");
    }
    assert_eq!(lab.denials().len(), before, "names that nobody looks up outside are no attempt to");
}

#[test]
fn wildcards_bound_what_names_can_carry() {
    let lab = Lab::new(&view(&[("all", "**.example.com", &[]), ("exact", "a.b.c.d.e.f.g.h.i.example.com", &[])]));
    let label = "x".repeat(50);
    assert!(lab.address(WEB, "a.b.c.d.e.f.g.h.example.com.").is_some());
    assert!(lab.address(WEB, "a.b.c.d.e.f.g.h.i.example.com.").is_some(), "named by a rule");
    for long in ["z.b.c.d.e.f.g.h.i.example.com.".to_owned(), format!("{label}.{label}.{label}.example.com.")] {
        assert_eq!(lab.address(WEB, &long), None, "{long}");
        let denial = lab.denials().pop().unwrap();
        assert_eq!(denial.rule.unwrap().as_str(), "builtin:wildcard-limit");
    }
    let given = (0..100).filter(|index| lab.address(WEB, &format!("n{index}.example.com.")).is_some()).count();
    assert_eq!(given, 59, "one was given before");
    assert_eq!(lab.denials().pop().unwrap().rule.unwrap().as_str(), "builtin:name-limit");
    assert!(lab.address(WEB, "n3.example.com.").is_some(), "known names go on");

    let answer = lab.ask(WEB, "c2VjcmV0.example.com.", RecordType::TXT);
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (Code::NoError, 0));
    let denial = lab.denials().pop().unwrap();
    assert_eq!(denial.rule.as_ref().unwrap().as_str(), "builtin:name-types");
    assert!(error(&answer).unwrap().1.starts_with(&denial.id.to_string()));
}

#[test]
fn who_is_not_a_member_is_refused_and_the_gateway_knows_its_own_names_only() {
    let lab = Lab::new(&view(&[("api", "api.example.com", &[])]));
    let stranger = "10.0.9.9".parse().unwrap();
    for name in ["gateway.internal.", "api.example.com."] {
        let answer = lab.ask(stranger, name, RecordType::A);
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (Code::Refused, 0), "{name}");
    }
    let gateway = "10.0.0.1".parse().unwrap();
    assert!(lab.address(gateway, "gateway.internal.").is_some());
    assert_eq!(lab.ask(gateway, "api.example.com.", RecordType::A).metadata.response_code, Code::NXDomain);
}

#[test]
fn an_open_network_refuses_only_what_a_rule_forbids() {
    let mut open = view(&[("no-x", "x.example.com", &[]), ("no-y", "y.example.com", &["tcp/25"])]);
    open.forward = vec!["192.0.2.53:53".parse().unwrap()];
    let lab = Lab::new(&open);
    assert!(lab.forwards(WEB, "anything.example."));
    assert!(lab.forwards(WEB, "y.example.com."), "forbidden on one port only");
    assert!(lab.forwards(OTHER, "x.example.com."), "not about this member");
    assert_eq!(lab.address(WEB, "x.example.com."), None);
    assert_eq!(lab.denials().len(), 1);
}

#[test]
fn a_new_snapshot_counts_from_the_next_question_on_and_addresses_stay() {
    let rules = view(&[("api", "api.example.com", &[])]);
    let lab = Lab::new(&rules);
    let given = lab.address(WEB, "api.example.com.");
    lab.network.update(&view(&[])).unwrap();
    assert_eq!(lab.address(WEB, "api.example.com."), None);
    lab.network.update(&rules).unwrap();
    assert_eq!(lab.address(WEB, "api.example.com."), given);
    lab.network.end();
    assert_eq!(lab.ask(WEB, "gateway.internal.", RecordType::A).metadata.response_code, Code::Refused);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_arrives_is_survived_and_never_asked_about_outside(
        body in proptest::collection::vec(any::<u8>(), 0..300),
        labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..30), 0..8),
        record_type in any::<u16>(),
        member in any::<bool>(),
    ) {
        thread_local!(static LAB: Lab = Lab::new(&view(&[("all", "**.example.com", &[]), ("one", "*.b.example", &["tcp/1"])])));
        let question: Vec<u8> = labels
            .iter()
            .flat_map(|label| std::iter::once(label.len() as u8).chain(label.iter().copied()))
            .chain(*b"\x07example\x03com\0")
            .chain(record_type.to_be_bytes())
            .chain([0, 1])
            .collect();
        let header = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0".as_slice();
        LAB.with(|lab| {
            let source = if member { WEB } else { "192.0.2.1".parse().unwrap() };
            for packet in [body.clone(), [header, &body].concat(), [header, &question].concat()] {
                let mut buffer = [0; MAX_UDP];
                match lab.outcome(source, &packet, &mut buffer) {
                    Outcome::Reply { length, .. } => assert!((12..=MAX_UDP).contains(&length)),
                    Outcome::Ignore => {}
                    other => panic!("{other:?}"),
                }
            }
        });
    }
}
