//! What is said to a resolver outside, and what is believed of its answer. No I/O.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, OpCode, Query as Question, ResponseCode as UpstreamCode};
use hickory_proto::rr::rdata::svcb::{SvcParamKey, SvcParamValue};
use hickory_proto::rr::{RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::dns::wire::{self, Head, MAX_UDP, ResponseCode, Status, Writer};

/// The message that asks `question` (name, type and class as the client spelled them).
pub(crate) fn ask(id: u16, question: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(wire::HEADER + question.len() + 11);
    message.extend(id.to_be_bytes());
    // Recursion desired; one question, one additional record.
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 1]);
    message.extend(question);
    // OPT: root name, type 41, our size as the class, no extended code, version 0, no flags, no options.
    message.extend([0, 0, 41]);
    message.extend((MAX_UDP as u16).to_be_bytes());
    message.extend([0; 6]);
    message
}

/// What a message from a resolver is.
#[derive(Debug)]
pub(crate) enum Said {
    /// Not the answer to this question: forged, late, or not DNS.
    Nothing,
    /// The answer does not fit UDP.
    Truncated,
    /// The resolver cannot say.
    Failure(UpstreamCode),
    Answer(Box<Message>),
}

/// Reads what came from the resolver that was asked `question` under `id`.
pub(crate) fn read(id: u16, question: &[u8], bytes: &[u8]) -> Said {
    let Some((header, body)) = bytes.split_first_chunk::<{ wire::HEADER }>() else { return Said::Nothing };
    let is_answer = header[2] & 0xf8 == 0x80;
    if !is_answer || header[..2] != id.to_be_bytes() {
        return Said::Nothing;
    }
    let repeated = header[4..6] == [0, 1] && same_question(question, body);
    let code = UpstreamCode::from(0, header[3] & 0xf);
    let succeeded = matches!(code, UpstreamCode::NoError | UpstreamCode::NXDomain);
    // A resolver that could not read the question may leave it out.
    if !repeated {
        return if !succeeded && header[4..6] == [0, 0] { Said::Failure(code) } else { Said::Nothing };
    }
    if header[2] & 0x02 != 0 {
        return Said::Truncated;
    }
    if !succeeded {
        return Said::Failure(code);
    }
    match Message::from_vec(bytes) {
        Ok(message) => Said::Answer(Box::new(message)),
        Err(_) => Said::Failure(UpstreamCode::FormErr),
    }
}

/// Names are compared without regard to letter case, type and class octet by octet.
fn same_question(question: &[u8], body: &[u8]) -> bool {
    let Some(name_length) = question.len().checked_sub(4) else { return false };
    body.get(..question.len()).is_some_and(|repeated| {
        repeated[..name_length].eq_ignore_ascii_case(&question[..name_length])
            && repeated[name_length..] == question[name_length..]
    })
}

/// The first address in an answer that is not on the public internet.
///
/// A name outside that leads to an address inside is either an attack (DNS rebinding) or of no use, since `open`
/// egress reaches the public internet only. Address hints of SVCB and HTTPS records count as well.
pub(crate) fn first_not_global(message: &Message) -> Option<IpAddr> {
    let refused = |address: &IpAddr| !warren_model::policy::is_global(*address);
    message.answers.iter().find_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)).filter(refused),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)).filter(refused),
        RData::SVCB(service) => hints(&service.svc_params).find(refused),
        RData::HTTPS(service) => hints(&service.0.svc_params).find(refused),
        _ => None,
    })
}

fn hints<K>(parameters: &[(K, SvcParamValue)]) -> impl Iterator<Item = IpAddr> {
    parameters.iter().flat_map(|(_, value)| match value {
        SvcParamValue::Ipv4Hint(list) => list.0.iter().map(|address| IpAddr::V4(address.0)).collect(),
        SvcParamValue::Ipv6Hint(list) => list.0.iter().map(|address| IpAddr::V6(address.0)).collect(),
        _ => Vec::new(),
    })
}

/// The answer to the client: the resolver's records, and of its other sections only the SOA that lets a negative
/// answer be remembered. `limit` is the longest message, in bytes; what is longer is marked as truncated.
pub(crate) fn relay(head: &Head<'_>, said: &Message, limit: usize) -> Option<Vec<u8>> {
    let question = Question::read(&mut BinDecoder::new(head.question)).ok()?;
    let mut message = Message::response(head.id, OpCode::Query);
    message.metadata.recursion_desired = said.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = said.metadata.response_code;
    message.add_query(question);
    message.answers.extend(said.answers.iter().filter_map(without_ech));
    message.authorities.extend(said.authorities.iter().filter(|r| r.record_type() == RecordType::SOA).cloned());
    if head.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP as u16).set_version(0);
        message.set_edns(edns);
    }
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    let mut buffer = vec![0; limit.min(wire::PLAIN_UDP)];
    let status = Status { code: ResponseCode::NoError, authoritative: false, truncated: true };
    let length = Writer::new(&mut buffer, head, status).and_then(|w| w.finish(head, status.code, None)).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// A record without the key to an encrypted ClientHello (RFC 9849): what a machine says first is to be readable. One that
/// cannot be used without the key is left out.
fn without_ech(record: &Record) -> Option<Record> {
    let mut record = record.clone();
    let parameters = match &mut record.data {
        RData::SVCB(service) => &mut service.svc_params,
        RData::HTTPS(service) => &mut service.0.svc_params,
        _ => return Some(record),
    };
    let needs = parameters.iter().any(|(_, value)| match value {
        SvcParamValue::Mandatory(keys) => keys.0.contains(&SvcParamKey::EchConfigList),
        _ => false,
    });
    parameters.retain(|(key, _)| *key != SvcParamKey::EchConfigList);
    (!needs).then_some(record)
}

#[cfg(test)]
#[path = "upstream_tests.rs"]
mod tests;
