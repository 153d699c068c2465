use super::*;
use hickory_proto::op::MessageType;
use hickory_proto::rr::rdata::svcb::{Alpn, EchConfigList, IpHint, Mandatory, SVCB, SvcParamKey};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS};
use hickory_proto::rr::{DNSClass, Name, Record};
use proptest::prelude::*;

const ID: u16 = 0xbeef;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// The question of a client for the A record of `x.example`, spelled as given.
fn asked(spelled: &str) -> Vec<u8> {
    let mut message = Message::new(5, MessageType::Query, OpCode::Query);
    message.add_query(Question::query(name(spelled), RecordType::A));
    message.to_vec().unwrap()[12..].to_vec()
}

fn answer(data: Vec<RData>) -> Message {
    let mut message = Message::response(ID, OpCode::Query);
    message.add_query(Question::query(name("x.example."), RecordType::A));
    message.add_answers(data.into_iter().map(|data| Record::from_rdata(name("x.example."), 60, data)));
    message
}

fn global() -> RData {
    RData::A(A::new(93, 184, 216, 34))
}

#[test]
fn the_question_that_is_sent_parses_and_asks_for_recursion() {
    let message = Message::from_vec(&ask(ID, &asked("x.example."))).unwrap();
    assert_eq!(message.metadata.id, ID);
    assert!(message.metadata.recursion_desired);
    assert_eq!(message.queries[0].name(), &name("x.example."));
    assert_eq!(message.max_payload(), 1232);
}

#[test]
fn only_the_answer_to_this_question_is_believed() {
    let bytes = answer(vec![global()]).to_vec().unwrap();
    let question = asked("X.exAMple.");
    assert!(matches!(read(ID, &question, &bytes), Said::Answer(_)));
    assert!(matches!(read(ID + 1, &question, &bytes), Said::Nothing));
    assert!(matches!(read(ID, &asked("y.example."), &bytes), Said::Nothing));
    assert!(matches!(read(ID, &question, &ask(ID, &question)), Said::Nothing), "a question");
    let mut other_type = question.clone();
    // HTTPS is type 65, `A` as a letter, and 97 would be `a`.
    let at = other_type.len() - 3;
    other_type[at] = 65;
    assert!(matches!(read(ID, &other_type, &bytes), Said::Nothing));
}

#[test]
fn failures_and_truncation_are_told_apart() {
    let question = asked("x.example.");
    let mut message = answer(vec![]);
    message.metadata.truncation = true;
    assert!(matches!(read(ID, &question, &message.to_vec().unwrap()), Said::Truncated));
    let mut message = answer(vec![]);
    message.metadata.response_code = UpstreamCode::ServFail;
    assert!(matches!(read(ID, &question, &message.to_vec().unwrap()), Said::Failure(UpstreamCode::ServFail)));
    message.queries.clear();
    assert!(matches!(read(ID, &question, &message.to_vec().unwrap()), Said::Failure(UpstreamCode::ServFail)));
    let mut message = answer(vec![]);
    message.metadata.response_code = UpstreamCode::NXDomain;
    assert!(matches!(read(ID, &question, &message.to_vec().unwrap()), Said::Answer(_)));
}

#[test]
fn an_answer_that_leads_inside_is_found_wherever_it_hides() {
    let bad = [
        RData::A(A::new(10, 0, 0, 1)),
        RData::A(A::new(169, 254, 169, 254)),
        RData::A(A::new(0, 0, 0, 0)),
        RData::AAAA(AAAA("::ffff:10.0.0.1".parse().unwrap())),
        RData::AAAA(AAAA("fd00::1".parse().unwrap())),
        RData::HTTPS(HTTPS(SVCB::new(
            1,
            name("."),
            vec![(SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A::new(127, 0, 0, 1)])))],
        ))),
    ];
    for data in bad {
        let text = data.to_string();
        assert!(first_not_global(&answer(vec![global(), data])).is_some(), "{text}");
    }
    assert!(first_not_global(&answer(vec![RData::CNAME(CNAME(name("y.example."))), global()])).is_none());
}

#[test]
fn what_is_relayed_is_spelled_as_the_client_asked_and_holds_no_more_than_it_needs() {
    let mut said = answer(vec![global()]);
    said.metadata.authoritative = true;
    said.metadata.authentic_data = true;
    said.add_additional(Record::from_rdata(name("evil.example."), 60, global()));
    said.add_authority(Record::from_rdata(name("evil.example."), 60, RData::CNAME(CNAME(name("x.example.")))));
    let mut client = Message::new(0x77, MessageType::Query, OpCode::Query);
    client.add_query(Question::query(name("X.eXample."), RecordType::A));
    let packet = client.to_vec().unwrap();
    let query = wire::Query::parse(&packet).unwrap();
    let bytes = relay(&query.head, &said, 512).unwrap();
    assert_eq!(bytes[12..packet.len()], packet[12..]);
    let relayed = Message::from_vec(&bytes).unwrap();
    assert_eq!(relayed.metadata.id, 0x77);
    assert_eq!((relayed.answers.len(), relayed.authorities.len(), relayed.additionals.len()), (1, 0, 0));
    assert!(!relayed.metadata.authoritative && !relayed.metadata.authentic_data && relayed.edns.is_none());
    assert_eq!(relayed.queries[0].query_class(), DNSClass::IN);
}

#[test]
fn what_does_not_fit_is_marked_as_truncated() {
    let said = answer(vec![global(); 100]);
    let mut client = Message::new(0x77, MessageType::Query, OpCode::Query);
    client.add_query(Question::query(name("x.example."), RecordType::A));
    let packet = client.to_vec().unwrap();
    let query = wire::Query::parse(&packet).unwrap();
    let relayed = Message::from_vec(&relay(&query.head, &said, 512).unwrap()).unwrap();
    assert!(relayed.metadata.truncation && relayed.answers.is_empty());
    assert_eq!(Message::from_vec(&relay(&query.head, &said, 65535).unwrap()).unwrap().answers.len(), 100);
}

#[test]
fn the_key_to_an_encrypted_hello_never_reaches_a_machine() {
    let ech = || (SvcParamKey::EchConfigList, SvcParamValue::EchConfigList(EchConfigList(vec![1, 2, 3])));
    let alpn = || (SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(vec!["h2".into()])));
    let needed = (SvcParamKey::Mandatory, SvcParamValue::Mandatory(Mandatory(vec![SvcParamKey::EchConfigList])));
    let service = |parameters| RData::HTTPS(HTTPS(SVCB::new(1, name("."), parameters)));
    let said = answer(vec![service(vec![alpn(), ech()]), service(vec![needed, ech()])]);
    let packet = ask(1, &asked("x.example."));
    let query = wire::Query::parse(&packet).unwrap();
    let relayed = Message::from_vec(&relay(&query.head, &said, 512).unwrap()).unwrap();
    assert_eq!(relayed.answers.iter().map(|record| &record.data).collect::<Vec<_>>(), [&service(vec![alpn()])]);
}

proptest! {
    #[test]
    fn a_hostile_resolver_never_causes_a_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        tail in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let question = asked("x.example.");
        let mut bytes = answer(vec![global(), RData::CNAME(CNAME(name("y.example.")))]).to_vec().unwrap();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.extend(tail);
        let packet = ask(1, &question);
        let query = wire::Query::parse(&packet).unwrap();
        if let Said::Answer(message) = read(ID, &question, &bytes) {
            first_not_global(&message);
            relay(&query.head, &message, 512);
        }
    }
}
