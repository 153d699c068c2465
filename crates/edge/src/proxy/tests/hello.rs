//! Reading ClientHellos.

use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::ServerName as TlsName;

use super::{GOOD, host};
use crate::proxy::tls::{AnswerReader, ClientHello, HelloReader, Hidden, MAX_HELLO, ServerName, Unreadable};

pub(super) const SERVER_NAME: u16 = 0;
pub(super) const KEY_SHARE: u16 = 51;
pub(super) const ECH: u16 = 0xfe0d;
/// The random of a server that asks for another ClientHello.
pub(super) const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11,
    0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

fn with_length16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

pub(super) fn server_name(name: &[u8]) -> (u16, Vec<u8>) {
    (SERVER_NAME, with_length16(&[&[0][..], &with_length16(name)].concat()))
}

/// An outer `encrypted_client_hello`, as GREASE and as the real thing.
pub(super) fn outer() -> (u16, Vec<u8>) {
    let mut content = vec![0, 0, 1, 0, 1, 7];
    content.extend(with_length16(&[9; 32]));
    content.extend(with_length16(&[5; 144]));
    (ECH, content)
}

/// A handshake message in records of this size.
pub(super) fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &with_length16(part)].concat()).collect()
}

/// A ClientHello as a message, without its records.
pub(super) fn message(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([0x55; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    let extensions: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, content)| [&kind.to_be_bytes()[..], &with_length16(content)].concat())
        .collect();
    body.extend(with_length16(&extensions));
    let length = (body.len() as u32).to_be_bytes();
    [&[1, length[1], length[2], length[3]], &body[..]].concat()
}

pub(super) fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    records(&message(extensions), 16_000)
}

/// What a real client sends first.
pub(super) fn real(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = TlsName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Option<ClientHello>, Unreadable> {
    HelloReader::new().push(bytes)
}

fn name_of(bytes: &[u8]) -> ServerName {
    read(bytes).unwrap().unwrap().server_name
}

#[test]
fn a_real_hello_is_read() {
    let read = read(&real(GOOD)).unwrap().unwrap();
    assert_eq!(read, ClientHello { server_name: ServerName::Host(host(GOOD)), hidden: Hidden::No, early_data: false });
    assert_eq!(name_of(&real("192.0.2.1")), ServerName::Absent);
}

#[test]
fn letter_case_and_a_trailing_dot_make_no_difference() {
    assert_eq!(name_of(&hello(&[server_name(b"GOOD.example.")])), ServerName::Host(host(GOOD)));
}

#[test]
fn one_byte_at_a_time_and_one_byte_a_record_are_the_same_message() {
    for bytes in [real(GOOD), records(&message(&[server_name(GOOD.as_bytes())]), 1)] {
        let mut reader = HelloReader::new();
        let (last, before) = bytes.split_last().unwrap();
        for byte in before {
            assert_eq!(reader.push(&[*byte]).unwrap(), None);
        }
        assert_eq!(reader.push(&[*last]).unwrap().unwrap().server_name, ServerName::Host(host(GOOD)));
        assert_eq!(reader.consumed(), bytes.len());
    }
}

#[test]
fn what_follows_the_message_is_left_alone() {
    let first = hello(&[server_name(GOOD.as_bytes())]);
    let mut reader = HelloReader::new();
    assert!(reader.push(&[&first[..], &[20, 3, 3, 0, 1, 1, 99, 99]].concat()).unwrap().is_some());
    assert_eq!(reader.consumed(), first.len());
}

#[test]
fn unknown_and_grease_extensions_are_passed_over() {
    let bytes = hello(&[
        (0x0a0a, vec![]),
        (KEY_SHARE, vec![1; 1216 + 8]),
        server_name(GOOD.as_bytes()),
        (0xfafa, vec![0]),
        outer(),
        (21, vec![0; 300]),
    ]);
    let read = read(&bytes).unwrap().unwrap();
    assert_eq!((read.server_name, read.hidden), (ServerName::Host(host(GOOD)), Hidden::Outer));
}

#[test]
fn hidden_names_that_are_no_grease_are_told_apart() {
    for extension in [(ECH, vec![1]), (0xffce, vec![1; 40]), (0xfe08, vec![])] {
        let bytes = hello(&[server_name(GOOD.as_bytes()), extension.clone(), (0x1a1a, vec![])]);
        assert_eq!(read(&bytes).unwrap().unwrap().hidden, Hidden::Certainly, "{extension:?}");
    }
    let both = hello(&[(0xffce, vec![]), outer()]);
    assert_eq!(read(&both).unwrap().unwrap().hidden, Hidden::Certainly);
}

#[test]
fn what_two_readers_could_read_in_two_ways_is_refused() {
    let good = server_name(GOOD.as_bytes());
    let two_names = {
        let one = [&[0][..], &with_length16(GOOD.as_bytes())].concat();
        (SERVER_NAME, with_length16(&[&one[..], &one[..]].concat()))
    };
    let mut shared = message(std::slice::from_ref(&good));
    shared.extend([20, 0, 0, 0]);
    let mut trailing = message(std::slice::from_ref(&good));
    trailing.push(0);
    trailing[3] += 1;
    for (what, bytes) in [
        ("two server names", hello(&[good.clone(), server_name(b"other.example")])),
        ("two names in one", hello(&[two_names])),
        ("an empty name", hello(&[server_name(b"")])),
        ("another kind of name", hello(&[(SERVER_NAME, with_length16(&[1, 0, 1, 97]))])),
        ("something after the name", hello(&[(SERVER_NAME, [good.1.clone(), vec![0]].concat())])),
        ("the same extension twice", hello(&[good.clone(), (7, vec![]), (7, vec![])])),
        ("another message in its record", records(&shared, 16_000)),
        ("something after the extensions", records(&trailing, 16_000)),
        ("a record without content", [&[22, 3, 1, 0, 0][..], &hello(std::slice::from_ref(&good))].concat()),
        ("a broken encrypted hello", hello(&[good.clone(), (ECH, vec![0, 1])])),
        ("an encrypted hello of no kind", hello(&[good.clone(), (ECH, vec![2])])),
    ] {
        assert!(matches!(read(&bytes), Err(Unreadable::Malformed(_))), "{what}: {:?}", read(&bytes));
    }
}

#[test]
fn what_is_no_hello_is_told_at_once() {
    assert_eq!(read(b"GET / HTTP/1.1\r\n"), Err(Unreadable::NotTls));
    assert_eq!(read(&[22, 2]), Err(Unreadable::NotTls));
    assert_eq!(read(&[0x80, 0x2e, 1, 3, 1]), Err(Unreadable::NotTls), "SSLv2");
    assert_eq!(read(&[22, 3, 1, 0, 4, 2]), Err(Unreadable::NotHello));
    assert_eq!(read(&[22, 3, 1, 0, 4, 1, 0xff, 0, 0]), Err(Unreadable::TooLong));
    assert!(matches!(read(&[22, 3, 1, 0xff, 0xff]), Err(Unreadable::Malformed(_))));
    // Records of one byte make a message of allowed size too long on the wire.
    let padded = records(&message(&[server_name(GOOD.as_bytes()), (21, vec![0; MAX_HELLO / 5])]), 1);
    assert_eq!(read(&padded), Err(Unreadable::TooLong));
}

#[test]
fn a_name_that_is_no_host_name_is_kept_for_the_record() {
    assert_eq!(name_of(&hello(&[server_name(b"192.0.2.1")])), ServerName::Other("192.0.2.1".to_owned()));
    assert_eq!(
        name_of(&hello(&[server_name(b"good.example\0.evil")])),
        ServerName::Other("good.example?.evil".to_owned())
    );
}

#[test]
fn a_wish_for_another_hello_is_seen() {
    let answer = |random: [u8; 32]| [&[22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3][..], &random].concat();
    assert_eq!(AnswerReader::new().push(&answer(RETRY)), Some(true));
    assert_eq!(AnswerReader::new().push(&answer([1; 32])), Some(false));
    assert_eq!(AnswerReader::new().push(&answer(RETRY)[..20]), None);
    assert_eq!(AnswerReader::new().push(&[21, 3, 3, 0, 2, 2, 40]), Some(false), "an alert");
    assert_eq!(AnswerReader::new().push(b"HTTP/1.1 400"), Some(false));
}

#[test]
fn a_second_hello_may_come_after_other_records() {
    let again = hello(&[server_name(GOOD.as_bytes())]);
    let change = [20, 3, 3, 0, 1, 1];
    let early = [23, 3, 3, 0, 3, 1, 2, 3];
    let both = [&early[..], &change, &again].concat();
    assert!(HelloReader::second(true).push(&both).unwrap().is_some());
    assert_eq!(HelloReader::second(false).push(&both), Err(Unreadable::NotTls));
    assert!(HelloReader::second(false).push(&[&change[..], &again].concat()).unwrap().is_some());
    assert_eq!(HelloReader::new().push(&[&change[..], &again].concat()), Err(Unreadable::NotTls));
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = read(&bytes);
        let _ = AnswerReader::new().push(&bytes);
    }

    #[test]
    fn a_damaged_hello_gets_an_answer(at in 0usize..400, byte in any::<u8>(), cut in 0usize..400) {
        let mut bytes = hello(&[server_name(GOOD.as_bytes()), outer(), (KEY_SHARE, vec![3; 90])]);
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = read(&bytes);
        let _ = read(&bytes[..cut.min(bytes.len())]);
    }

    #[test]
    fn however_a_hello_is_cut_it_says_the_same(
        cuts in proptest::collection::vec(0usize..2000, 0..12), size in 1usize..2000, padding in 0usize..1500
    ) {
        let message = message(&[(0x2a2a, vec![]), server_name(GOOD.as_bytes()), outer(), (21, vec![0; padding])]);
        let bytes = records(&message, size);
        let whole = read(&bytes).unwrap().unwrap();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % bytes.len()).collect();
        cuts.sort_unstable();
        let mut reader = HelloReader::new();
        let mut before = 0;
        for cut in cuts {
            prop_assert_eq!(reader.push(&bytes[before..cut]).unwrap(), None);
            before = cut;
        }
        prop_assert_eq!(reader.push(&bytes[before..]).unwrap(), Some(whole));
    }
}
