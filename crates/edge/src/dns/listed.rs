//! Names outside, where policy decides about each of them: nobody is asked about a name until a connection to it has
//! been allowed.
//!
//! | the name | answered with |
//! | --- | --- |
//! | is allowed, on some port | A and AAAA: the synthetic address that the proxy knows it by; every other type: no data |
//! | is not | NXDOMAIN, and the refusal's id and reason |
//!
//! That there is no HTTPS record is on purpose: its `ech` and its alternative endpoints lead around the proxy's checks.

use std::net::IpAddr;

use warren_model::denial::Layer;
use warren_model::policy::{HostName, RuleId};

use crate::denials::Refusal;
use crate::dns::answer::{self, Kind, Outcome, prohibited};
use crate::dns::wire::{self, ExtendedError, Query, ResponseCode, record_type};
use crate::dns::zone::Zone;
use crate::names::AssignError;
use crate::network::Network;
use crate::outside::Outside;

/// Types that programs ask for by themselves. Under a wildcard, any other is a way to talk to whoever serves the domain,
/// and is recorded although nobody is asked.
const ORDINARY: [u16; 15] = [2, 5, 6, 12, 13, 15, 33, 35, 43, 44, 48, 52, 64, 65, 257];

/// Answers a message, whatever it asks for; never says [`Outcome::Outside`].
pub(crate) fn respond(
    network: &Network,
    (zone, outside): (&Zone, &Outside),
    source: IpAddr,
    packet: &[u8],
    buffer: &mut [u8],
    udp: bool,
) -> Outcome {
    let asker = outside.may_ask(source).then(|| source.to_canonical());
    let outcome = answer::respond(zone, packet, buffer, udp, asker);
    // Where names are looked up as they are, only a rule that forbids one matters.
    let decided = match outcome {
        Outcome::Outside => true,
        Outcome::Forward => outside.has_rules(source),
        _ => return outcome,
    };
    match Query::parse(packet) {
        Ok(query) if decided => {
            let mut reply = Reply { network, outside, source, query: &query, buffer, udp };
            reply.decide().unwrap_or(outcome)
        }
        _ => outcome,
    }
}

struct Reply<'a> {
    network: &'a Network,
    outside: &'a Outside,
    source: IpAddr,
    query: &'a Query<'a>,
    buffer: &'a mut [u8],
    udp: bool,
}

impl Reply<'_> {
    /// `None`: the resolvers outside are to be asked.
    fn decide(&mut self) -> Option<Outcome> {
        let name = &self.query.name;
        let Some(member) = self.outside.member(self.source) else {
            return Some(self.refuse_unrecorded(format!("{} is not a member of this network", self.source)));
        };
        if let Some(address) = answer::address_of(name)
            && let Some(host) = self.network.names.name_of(member.id, address)
            && let Some(octets) = wire::encode(host.as_str())
        {
            let length = match self.query.record_type {
                record_type::PTR => answer::pointer(&self.query.head, self.buffer, self.udp, &octets),
                _ => answer::no_data(&self.query.head, self.buffer, self.udp, None),
            };
            return Some(done(length, Kind::Answered));
        }
        if !self.outside.open && (answer::is_local_only(name) || answer::is_private_reverse(name)) {
            return Some(self.refuse_unrecorded(format!("{name} is never looked up outside this network")));
        }
        let shown = name.to_string();
        let host: HostName = match shown.parse() {
            Ok(host) => host,
            Err(_) if self.outside.open => return None,
            Err(error) => return Some(self.refuse(shown, None, error.to_string())),
        };
        let decision = self.outside.decide(self.source, &host, None);
        if !decision.allowed {
            return Some(self.refuse(shown, decision.rule, decision.reason));
        }
        if self.outside.open {
            return None;
        }
        let wildcard = self.outside.is_by_wildcard(self.source, &host);
        Some(match self.query.record_type {
            record_type::A | record_type::AAAA => self.address(member.id, &host, wildcard),
            record_type::ANY => done(answer::every_type(&self.query.head, self.buffer, self.udp), Kind::Answered),
            ordinary if !wildcard || ORDINARY.contains(&ordinary) => self.no_data(None),
            other => {
                let reason = format!("only addresses are answered for names outside, not type {other}");
                let text = self.record(shown, Some(RuleId::builtin("name-types")), reason);
                self.no_data(Some(prohibited(text)))
            }
        })
    }

    fn address(&mut self, machine: warren_model::MemberId, host: &HostName, wildcard: bool) -> Outcome {
        let (four, six) = match self.network.names.assign(machine, host, wildcard) {
            Ok(addresses) => addresses,
            Err(error @ (AssignError::TooFast | AssignError::Full)) => {
                let reason = format!("{host} gets no address: {error}");
                return self.refuse(host.to_string(), Some(error.rule()), reason);
            }
            Err(error @ (AssignError::NoMember | AssignError::Unrecorded)) => {
                let error = ExtendedError { code: 0, text: format!("{host} gets no address: {error}") };
                let code = ResponseCode::ServFail;
                return done(answer::refuse(&self.query.head, self.buffer, self.udp, code, error), Kind::Malformed);
            }
        };
        let address = if self.query.record_type == record_type::A { four.into() } else { six.into() };
        done(answer::synthetic(&self.query.head, self.buffer, self.udp, address), Kind::Answered)
    }

    fn no_data(&mut self, error: Option<ExtendedError>) -> Outcome {
        let kind = if error.is_some() { Kind::Prohibited } else { Kind::Negative };
        done(answer::no_data(&self.query.head, self.buffer, self.udp, error), kind)
    }

    fn refuse(&mut self, name: String, rule: Option<RuleId>, reason: String) -> Outcome {
        let text = self.record(name, rule, reason);
        self.refuse_unrecorded(text)
    }

    fn refuse_unrecorded(&mut self, text: String) -> Outcome {
        let code = ResponseCode::NxDomain;
        let length = answer::refuse(&self.query.head, self.buffer, self.udp, code, prohibited(text));
        done(length, Kind::Prohibited)
    }

    /// Records a refusal; returns what to say of it.
    fn record(&self, name: String, rule: Option<RuleId>, reason: String) -> String {
        let denial = self.network.denials.refuse(Refusal {
            source: self.source,
            to: None,
            name: Some(name),
            port: None,
            layer: Layer::Dns,
            rule,
            reason,
        });
        format!("{}: {}", denial.id, denial.reason)
    }
}

fn done(length: usize, kind: Kind) -> Outcome {
    match length {
        0 => Outcome::Ignore,
        length => Outcome::Reply { length, kind },
    }
}

#[cfg(test)]
#[path = "listed_tests.rs"]
mod tests;
