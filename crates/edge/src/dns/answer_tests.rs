use super::*;
use crate::view::tests::network_view;
use crate::view::{NameRecord, NetworkView};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode as Code};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name as FullName, RData, Record, RecordType};
use proptest::prelude::*;
use warren_model::policy::Group;

const SEALED: &[&str] = &[];
/// A member.
const ASKER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 10));
const OPEN: &[&str] = &["192.0.2.53:53"];

fn zone(forward: &[&str]) -> Zone {
    let record = |name: &str, ipv4: &str, ipv6: &str| NameRecord {
        name: name.into(),
        ipv4: Some(ipv4.parse().unwrap()),
        ipv6: ipv6.parse().unwrap(),
        scope: None,
    };
    Zone::build(&NetworkView {
        names: vec![
            record("worker.vm.internal", "10.0.1.10", "fd12:3456:789a:1::2"),
            record("db.internal", "10.0.2.10", "fd12:3456:789a:1::3"),
        ],
        forward: forward.iter().map(|address| address.parse().unwrap()).collect(),
        ..network_view()
    })
    .unwrap()
}

fn question(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(FullName::from_ascii(name).unwrap(), record_type));
    message
}

fn with_edns(mut message: Message) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_version(0);
    message.set_edns(edns);
    message
}

fn bytes(zone: &Zone, packet: &[u8]) -> Option<Vec<u8>> {
    bytes_for(ASKER, zone, packet)
}

fn bytes_for(asker: IpAddr, zone: &Zone, packet: &[u8]) -> Option<Vec<u8>> {
    let mut buffer = [0; wire::MAX_UDP];
    match respond(zone, packet, &mut buffer, true, Some(asker)) {
        Outcome::Reply { length, .. } => Some(buffer[..length].to_vec()),
        Outcome::Forward => panic!("forwarded"),
        Outcome::Outside => {
            let query = Query::parse(packet).unwrap();
            let error = prohibited(format!("{} is not allowed", query.name));
            let length = refuse(&query.head, &mut buffer, true, ResponseCode::NxDomain, error);
            Some(buffer[..length].to_vec())
        }
        Outcome::Ignore => None,
    }
}

fn ask(zone: &Zone, message: &Message) -> Message {
    let reply = bytes(zone, &message.to_vec().unwrap()).expect("an answer");
    Message::from_vec(&reply).expect("an answer that parses")
}

fn get(zone: &Zone, name: &str, record_type: RecordType) -> Message {
    ask(zone, &question(name, record_type))
}

/// The answer as a few lines that can be read.
fn show(message: &Message) -> String {
    let mut lines = vec![format!(
        "{:?}{}{}",
        message.metadata.response_code,
        if message.metadata.authoritative { " aa" } else { "" },
        if message.metadata.truncation { " tc" } else { "" },
    )];
    lines.extend(message.answers.iter().map(|record| format!("answer {record}")));
    lines.extend(message.authorities.iter().map(|record| format!("authority {record}")));
    lines.extend(error(message).map(|(code, text)| format!("error {code} {text}")));
    lines.join("\n")
}

fn error(message: &Message) -> Option<(u16, String)> {
    let option = message.edns.as_ref()?.option(EdnsCode::Unknown(15))?;
    let EdnsOption::Unknown(_, octets) = option else { panic!("a parsed option 15") };
    Some((u16::from_be_bytes([octets[0], octets[1]]), String::from_utf8(octets[2..].to_vec()).unwrap()))
}

fn record(record: &Record) -> &RData {
    &record.data
}

#[test]
fn a_name_of_the_network_has_both_addresses() {
    let zone = zone(SEALED);
    assert_eq!(
        show(&get(&zone, "worker.vm.internal.", RecordType::A)),
        "NoError aa\nanswer worker.vm.internal. 5 IN A 10.0.1.10"
    );
    assert_eq!(
        show(&get(&zone, "worker.vm.internal.", RecordType::AAAA)),
        "NoError aa\nanswer worker.vm.internal. 5 IN AAAA fd12:3456:789a:1::2"
    );
    assert_eq!(
        show(&get(&zone, "gateway.internal.", RecordType::A)),
        "NoError aa\nanswer gateway.internal. 5 IN A 10.0.0.1"
    );
}

#[test]
fn letter_case_does_not_matter_and_comes_back_as_it_was_asked() {
    let zone = zone(SEALED);
    let packet = question("wOrKeR.vM.InTeRnAl.", RecordType::A).to_vec().unwrap();
    let reply = bytes(&zone, &packet).unwrap();
    assert_eq!(reply[12..packet.len()], packet[12..]);
    assert_eq!(reply[reply.len() - 4..], [10, 0, 1, 10]);
}

#[test]
fn a_name_that_is_missing_and_a_type_that_is_missing_are_told_apart_and_carry_the_soa() {
    let zone = zone(SEALED);
    let soa = "authority internal. 1 IN SOA gateway.internal. hostmaster.internal. 7 3600 600 86400 1";
    assert_eq!(show(&get(&zone, "nobody.vm.internal.", RecordType::A)), format!("NXDomain aa\n{soa}"));
    assert_eq!(show(&get(&zone, "worker.vm.internal.", RecordType::MX)), format!("NoError aa\n{soa}"));
    assert_eq!(show(&get(&zone, "vm.internal.", RecordType::A)), format!("NoError aa\n{soa}"));
    assert_eq!(show(&get(&zone, "internal.", RecordType::A)), format!("NoError aa\n{soa}"));
    assert_eq!(show(&get(&zone, "a.worker.vm.internal.", RecordType::A)), format!("NXDomain aa\n{soa}"));
}

#[test]
fn the_zone_says_who_serves_it() {
    let zone = zone(SEALED);
    assert_eq!(
        show(&get(&zone, "internal.", RecordType::SOA)),
        "NoError aa\nanswer internal. 1 IN SOA gateway.internal. hostmaster.internal. 7 3600 600 86400 1"
    );
    assert_eq!(
        show(&get(&zone, "internal.", RecordType::NS)),
        "NoError aa\nanswer internal. 5 IN NS gateway.internal."
    );
    assert_eq!(get(&zone, "0.10.in-addr.arpa.", RecordType::SOA).answers.len(), 1);
}

#[test]
fn a_question_for_every_type_gets_one_small_record() {
    let reply = get(&zone(SEALED), "worker.vm.internal.", RecordType::ANY);
    let RData::HINFO(hinfo) = record(&reply.answers[0]) else { panic!("{reply:?}") };
    assert_eq!(&*hinfo.cpu, b"RFC8482");
}

#[test]
fn addresses_of_the_network_have_reverse_names() {
    let zone = zone(SEALED);
    let ptr = |name| show(&get(&zone, name, RecordType::PTR));
    assert_eq!(
        ptr("10.1.0.10.in-addr.arpa."),
        "NoError aa\nanswer 10.1.0.10.in-addr.arpa. 5 IN PTR worker.vm.internal."
    );
    assert_eq!(ptr("1.0.0.10.in-addr.arpa."), "NoError aa\nanswer 1.0.0.10.in-addr.arpa. 5 IN PTR gateway.internal.");
    let soa = |apex| format!("authority {apex} 1 IN SOA gateway.internal. hostmaster.internal. 7 3600 600 86400 1");
    assert_eq!(ptr("9.9.0.10.in-addr.arpa."), format!("NXDomain aa\n{}", soa("0.10.in-addr.arpa.")));
    assert_eq!(ptr("x.10.1.0.10.in-addr.arpa."), format!("NXDomain aa\n{}", soa("0.10.in-addr.arpa.")));
    assert_eq!(ptr("1.0.10.in-addr.arpa."), format!("NoError aa\n{}", soa("0.10.in-addr.arpa.")));
    assert_eq!(ptr("10.in-addr.arpa."), format!("NoError aa\n{}", soa("10.in-addr.arpa.")));
    assert_eq!(ptr("010.1.0.10.in-addr.arpa."), format!("NXDomain aa\n{}", soa("0.10.in-addr.arpa.")));
}

#[test]
fn ipv6_addresses_of_the_network_have_reverse_names() {
    let zone = zone(SEALED);
    let apex = "0.0.0.0.1.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.";
    let ptr = |host: &str| show(&get(&zone, &format!("{host}.{apex}"), RecordType::PTR));
    let name = format!("2.0.0.0.0.0.0.0.0.0.0.0.{apex}");
    assert_eq!(ptr("2.0.0.0.0.0.0.0.0.0.0.0"), format!("NoError aa\nanswer {name} 5 IN PTR worker.vm.internal."));
    let soa = format!("authority {apex} 1 IN SOA gateway.internal. hostmaster.internal. 7 3600 600 86400 1");
    assert_eq!(ptr("9.0.0.0.0.0.0.0.0.0.0.0"), format!("NXDomain aa\n{soa}"));
    assert_eq!(ptr("0.0"), format!("NoError aa\n{soa}"));
}

/// The network of [`zone`] where `worker` and `db` do not see each other, but `worker` sees `far` of another network,
/// over IPv6 alone.
fn scoped() -> Zone {
    let (own, other, far) = (Group(7), Group(8), Group(9));
    let record = |name: &str, ipv4: Option<&str>, ipv6: &str, scope| NameRecord {
        name: name.into(),
        ipv4: ipv4.map(|address| address.parse().unwrap()),
        ipv6: ipv6.parse().unwrap(),
        scope: Some(scope),
    };
    let groups = [("10.0.1.10", own), ("fd12:3456:789a:1::2", own), ("10.0.2.10", other)];
    Zone::build(&NetworkView {
        names: vec![
            record("worker.vm.internal", Some("10.0.1.10"), "fd12:3456:789a:1::2", own),
            record("db.internal", Some("10.0.2.10"), "fd12:3456:789a:1::3", other),
            record("far.vm.internal", None, "fd12:3456:789a:2::2", far),
            record("near.vm.internal", Some("10.9.1.10"), "fd12:3456:789a:2::3", far),
        ],
        groups: groups.map(|(address, group)| (address.parse().unwrap(), group)).into(),
        sight: [(own, [far].into())].into(),
        ..network_view()
    })
    .unwrap()
}

#[test]
fn what_is_not_there_for_the_asker_is_answered_like_what_does_not_exist() {
    let zone = scoped();
    let [worker, worker6, db] =
        ["10.0.1.10", "fd12:3456:789a:1::2", "10.0.2.10"].map(|address| address.parse::<IpAddr>().unwrap());
    // Hidden, and one of the same length that nobody has.
    let ip6 = |network: char, last: char| {
        format!("{last}{}{network}.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.", ".0".repeat(15) + ".")
    };
    let pairs = [
        (worker, "db.internal.".to_owned(), "dc.internal.".to_owned()),
        (worker6, "db.internal.".to_owned(), "dc.internal.".to_owned()),
        (worker, "x.db.internal.".to_owned(), "x.dc.internal.".to_owned()),
        (worker, "10.2.0.10.in-addr.arpa.".to_owned(), "11.2.0.10.in-addr.arpa.".to_owned()),
        (worker, ip6('1', '3'), ip6('1', '4')),
        (db, "worker.vm.internal.".to_owned(), "wormer.vm.internal.".to_owned()),
        (db, "far.vm.internal.".to_owned(), "fat.vm.internal.".to_owned()),
        (db, "10.1.9.10.in-addr.arpa.".to_owned(), "11.1.9.10.in-addr.arpa.".to_owned()),
        (db, ip6('2', '2'), ip6('2', '4')),
    ];
    for (asker, hidden, missing) in pairs {
        for record_type in [RecordType::A, RecordType::AAAA, RecordType::PTR, RecordType::ANY, RecordType::TXT] {
            let ask = |name: &str| {
                let packet = question(name, record_type).to_vec().unwrap();
                let reply = bytes_for(asker, &zone, &packet).unwrap();
                // All but the question itself.
                (reply[..12].to_vec(), reply[packet.len()..].to_vec())
            };
            assert_eq!(ask(&hidden), ask(&missing), "{hidden} {record_type} for {asker}");
            assert_eq!(ask(&hidden).0[3] & 0xf, 3, "{hidden} {record_type} for {asker} is NXDOMAIN");
        }
    }
}

#[test]
fn somebody_in_another_network_is_there_by_the_addresses_that_lead_to_them() {
    let zone = scoped();
    let far = |record_type| show(&get(&zone, "far.vm.internal.", record_type));
    assert_eq!(far(RecordType::AAAA), "NoError aa\nanswer far.vm.internal. 5 IN AAAA fd12:3456:789a:2::2");
    let none = far(RecordType::A);
    assert!(none.starts_with("NoError aa\nauthority internal."), "{none}");
    assert_eq!(
        show(&get(&zone, "near.vm.internal.", RecordType::A)),
        "NoError aa\nanswer near.vm.internal. 5 IN A 10.9.1.10"
    );
    let reverse = "10.1.9.10.in-addr.arpa.";
    let pointer = format!("NoError aa\nanswer {reverse} 5 IN PTR near.vm.internal.");
    assert_eq!(show(&get(&zone, reverse, RecordType::PTR)), pointer);
    let other = show(&get(&zone, reverse, RecordType::TXT));
    assert!(other.starts_with(&format!("NoError aa\nauthority {reverse} 1 IN SOA ")), "{other}");
    let reverse = format!("2{}.2.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.", ".0".repeat(15));
    let pointer = format!("NoError aa\nanswer {reverse} 5 IN PTR far.vm.internal.");
    assert_eq!(show(&get(&zone, &reverse, RecordType::PTR)), pointer);
}

#[test]
fn a_network_that_is_not_open_leaves_every_other_name_to_policy() {
    let zone = zone(SEALED);
    for name in ["x.example.", "com.", ".", "8.8.8.8.in-addr.arpa.", "printer.local.", "xinternal."] {
        let packet = question(name, RecordType::A).to_vec().unwrap();
        assert!(matches!(respond(&zone, &packet, &mut [0; 1232], true, Some(ASKER)), Outcome::Outside), "{name}");
        let refused = get(&zone, name, RecordType::A);
        assert_eq!(show(&refused), "NXDomain", "{name}");
        assert!(refused.edns.is_none(), "nobody asked with EDNS");
    }
}

#[test]
fn somebody_who_is_not_a_member_is_refused_whatever_is_asked() {
    for name in ["worker.vm.internal.", "nobody.vm.internal.", "x.example.", "10.1.0.10.in-addr.arpa."] {
        let packet = with_edns(question(name, RecordType::A)).to_vec().unwrap();
        for zone in [zone(SEALED), zone(OPEN)] {
            let mut buffer = [0; wire::MAX_UDP];
            let Outcome::Reply { length, .. } = respond(&zone, &packet, &mut buffer, true, None) else {
                panic!("{name}")
            };
            assert_eq!(show(&Message::from_vec(&buffer[..length]).unwrap()), "Refused", "{name}");
        }
    }
}

#[test]
fn an_open_network_forwards_only_names_that_mean_something_outside() {
    let zone = zone(OPEN);
    for name in ["x.example.", "8.8.8.8.in-addr.arpa.", "192.in-addr.arpa.", "2.ip6.arpa.", "a.internal.example."] {
        let packet = question(name, RecordType::A).to_vec().unwrap();
        assert!(matches!(respond(&zone, &packet, &mut [0; 1232], true, Some(ASKER)), Outcome::Forward), "{name}");
    }
    let local = [
        "localhost.",
        "a.localhost.",
        "printer.local.",
        "x.invalid.",
        "x.onion.",
        "x.home.arpa.",
        "worker.",
        "1.1.168.192.in-addr.arpa.",
        "254.169.in-addr.arpa.",
        "127.in-addr.arpa.",
        "1.1.1.10.in-addr.arpa.",
        "c.f.ip6.arpa.",
        "0.8.e.f.ip6.arpa.",
        "_dns.resolver.arpa.",
    ];
    for name in local {
        let reply = ask(&zone, &with_edns(question(name, RecordType::A)));
        assert_eq!(reply.metadata.response_code, Code::NXDomain, "{name}");
        assert!(reply.authorities.is_empty(), "{name}");
        assert_eq!(error(&reply).unwrap().0, 18, "{name}");
    }
    assert_eq!(get(&zone, "nobody.internal.", RecordType::A).metadata.response_code, Code::NXDomain);
}

#[test]
fn edns_is_answered_with_edns_and_a_later_version_is_refused() {
    let zone = zone(SEALED);
    let mut message = with_edns(question("worker.vm.internal.", RecordType::A));
    message.edns.as_mut().unwrap().set_dnssec_ok(true);
    let reply = ask(&zone, &message);
    let edns = reply.edns.as_ref().unwrap();
    assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1232, 0, false));

    message.edns.as_mut().unwrap().set_version(1);
    let reply = ask(&zone, &message);
    // 16 is BADVERS in an OPT record and BADSIG in a TSIG record.
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert!(reply.answers.is_empty());
}

#[test]
fn what_is_not_a_question_gets_the_code_that_says_so() {
    let zone = zone(SEALED);
    let good = question("worker.vm.internal.", RecordType::A).to_vec().unwrap();
    let code = |packet: &[u8]| bytes(&zone, packet).map(|reply| reply[3] & 0xf);
    let changed = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet[at] = value;
        packet
    };
    assert_eq!(code(&good[..11]), None, "too short");
    assert_eq!(code(&changed(2, 0x81)), None, "an answer");
    assert_eq!(code(&changed(2, 0x11)), Some(4), "opcode 2");
    assert_eq!(code(&changed(5, 0)), Some(1), "no question");
    assert_eq!(code(&changed(5, 2)), Some(1), "two questions");
    assert_eq!(code(&changed(12, 0xc0)), Some(1), "a pointer in the question");
    assert_eq!(code(&changed(12, 64)), Some(1), "a reserved label");
    assert_eq!(code(&good[..good.len() - 1]), Some(1), "cut");
    assert_eq!(code(&changed(11, 1)), Some(1), "a record that is not there");
    assert_eq!(code(&changed(good.len() - 1, 3)), Some(5), "class CHAOS");
    assert_eq!(code(&changed(good.len() - 3, 252)), Some(5), "a zone transfer");
    assert_eq!(code(&changed(good.len() - 3, 41)), Some(1), "OPT as a type");
}

#[test]
fn two_opt_records_are_one_too_many() {
    let mut packet = with_edns(question("worker.vm.internal.", RecordType::A)).to_vec().unwrap();
    let opt = packet[packet.len() - 11..].to_vec();
    packet.extend(opt);
    packet[11] = 2;
    assert_eq!(bytes(&zone(SEALED), &packet).unwrap()[3] & 0xf, 1);
}

#[test]
fn an_error_text_is_cut_to_what_the_client_takes() {
    let label = "x".repeat(60);
    let name = format!("{label}.{label}.{label}.{label}.");
    let mut message = with_edns(question(&name, RecordType::A));
    message.edns.as_mut().unwrap().set_max_payload(100);
    let reply = bytes(&zone(SEALED), &message.to_vec().unwrap()).unwrap();
    assert!(reply.len() <= 512);
    let (code, text) = error(&Message::from_vec(&reply).unwrap()).unwrap();
    assert_eq!(code, 18);
    assert!(text.starts_with("xxx"));
}

#[test]
fn names_that_are_not_text_are_shown_escaped() {
    let packet =
        [b"\0\x01\x01\0\0\x01\0\0\0\0\0\x01".as_slice(), b"\x04a\n.b\0\0\x01\0\x01", b"\0\0\x29\x04\xd0\0\0\0\0\0\0"]
            .concat();
    let reply = Message::from_vec(&bytes(&zone(SEALED), &packet).unwrap()).unwrap();
    assert_eq!(error(&reply).unwrap().1, "a\\010\\.b is not allowed");
}

/// What holds for every answer to anything.
fn check_any(zone: &Zone, packet: &[u8]) {
    for udp in [true, false] {
        let mut buffer = [0; wire::MAX_UDP];
        match respond(zone, packet, &mut buffer, udp, Some(ASKER)) {
            Outcome::Ignore => {}
            Outcome::Outside => {
                assert!(zone.forward.is_empty());
                let query = Query::parse(packet).expect("a question");
                assert!(!query.name.is_within(zone::INTERNAL));
            }
            Outcome::Forward => {
                assert!(!zone.forward.is_empty());
                let query = Query::parse(packet).expect("a question");
                assert!(!query.name.is_within(zone::INTERNAL));
            }
            Outcome::Reply { length, .. } => {
                assert!((wire::HEADER..=wire::MAX_UDP).contains(&length));
                assert_eq!(buffer[..2], packet[..2]);
                assert_ne!(buffer[2] & 0x80, 0);
                assert_eq!(packet[2] & 0x80, 0);
                let parsed = Message::from_vec(&buffer[..length]);
                // hickory refuses some questions that are legal octets; whatever it reads has to be consistent.
                if let Ok(message) = parsed {
                    assert!(message.answers.len() + message.authorities.len() <= 1);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
        check_any(&zone(SEALED), &packet);
        check_any(&zone(OPEN), &packet);
    }

    #[test]
    fn random_bytes_after_a_plausible_header_never_panic(
        id in any::<[u8; 2]>(),
        counts in any::<[u8; 2]>(),
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let header = [id[0], id[1], 1, 0, 0, 1, 0, 0, 0, counts[0] % 3, 0, counts[1] % 3];
        check_any(&zone(OPEN), &[&header, body.as_slice()].concat());
    }

    #[test]
    fn mutated_questions_never_panic(
        which in 0usize..6,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        do_cut in any::<bool>(),
    ) {
        let names = ["worker.vm.internal.", "internal.", "10.1.0.10.in-addr.arpa.", "x.example.", "2.0.0.ip6.arpa.", "."];
        let mut packet = with_edns(question(names[which], RecordType::A)).to_vec().unwrap();
        for (at, value) in edits {
            let at = at.index(packet.len());
            packet[at] = value;
        }
        if do_cut {
            packet.truncate(cut.index(packet.len()));
        }
        check_any(&zone(SEALED), &packet);
        check_any(&zone(OPEN), &packet);
    }

    #[test]
    fn every_well_formed_question_is_answered_with_its_own_id_and_question(
        labels in proptest::collection::vec("[a-zA-Z0-9_-]{1,20}", 0..8),
        record_type in any::<u16>(),
        class in prop_oneof![4 => Just(1u16), 1 => any::<u16>()],
    ) {
        let name = FullName::from_labels(labels.iter().map(|label| label.as_bytes())).unwrap();
        let mut message = with_edns(Message::new(9, MessageType::Query, OpCode::Query));
        let mut query = Question::query(name, RecordType::from(record_type));
        query.set_query_class(DNSClass::from(class));
        message.add_query(query);
        let packet = message.to_vec().unwrap();
        let reply = bytes(&zone(SEALED), &packet).expect("an answer");
        let question_length = packet.len() - 12 - 11;
        prop_assert_eq!(&reply[12..12 + question_length], &packet[12..12 + question_length]);
        prop_assert!(Message::from_vec(&reply).is_ok());
    }
}
