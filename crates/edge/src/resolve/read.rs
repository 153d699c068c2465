//! What is believed of an answer to a question for addresses.

use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use warren_model::policy::HostName;

use super::{Found, ResolveError};
use crate::dns::upstream;

/// How many names an answer may lead through (no resolver follows more).
const ALIASES: usize = 16;

/// The addresses of `host` in an answer, following its aliases, and how long the shortest-lived record on the way holds.
///
/// One address anywhere in the answer that is not public refuses all of it.
pub(crate) fn read(host: &HostName, record_type: RecordType, message: &Message) -> Result<Found, ResolveError> {
    if let Some(address) = upstream::first_not_global(message) {
        return Err(ResolveError::NotGlobal { host: host.clone(), address });
    }
    if message.metadata.response_code == ResponseCode::NXDomain {
        return Err(ResolveError::NoSuchName(host.clone()));
    }
    let no_address = || ResolveError::NoAddress(host.clone());
    let mut owner = Name::from_ascii(format!("{host}.")).map_err(|_| no_address())?;
    let mut ttl = u32::MAX;
    for _ in 0..=ALIASES {
        let mut alias = None;
        let mut addresses = Vec::new();
        for record in message.answers.iter().filter(|record| record.name == owner) {
            let address = match &record.data {
                RData::A(four) if record_type == RecordType::A => IpAddr::V4(four.0),
                RData::AAAA(six) if record_type == RecordType::AAAA => IpAddr::V6(six.0),
                RData::CNAME(name) => {
                    ttl = ttl.min(record.ttl);
                    alias = Some(name.0.clone());
                    continue;
                }
                _ => continue,
            };
            ttl = ttl.min(record.ttl);
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        match alias {
            _ if !addresses.is_empty() => return Ok((addresses, Duration::from_secs(ttl.into()))),
            Some(next) => owner = next,
            None => break,
        }
    }
    Err(no_address())
}
