//! Asking the resolvers outside, for networks whose machines may look up more than their own names.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::Message;

use crate::dns::answer::{self, Outcome, prohibited};
use crate::dns::exchange::{self, AskError};
use crate::dns::listed;
use crate::dns::stats::QueryCounters;
use crate::dns::upstream;
use crate::dns::wire::{ExtendedError, MAX_UDP, Query, ResponseCode, extended_error};
use crate::network::Network;

/// Answers a question that [`answer::respond`] said to forward; `None` when there is nothing to send.
pub(crate) async fn answer(network: Arc<Network>, source: IpAddr, packet: Vec<u8>, udp: bool) -> Option<Vec<u8>> {
    let query = Query::parse(&packet).ok()?;
    let mut counted = QueryCounters::default();
    let result = look_up(&network, source, &query).await;
    let mut buffer = vec![0; MAX_UDP];
    // What is allowed may have changed while the question was under way.
    let (zone, outside) = (network.zone.load_full(), network.outside.load_full());
    if let Outcome::Reply { length, kind } =
        listed::respond(&network, (&zone, &outside), source, &packet, &mut buffer, udp)
    {
        counted.count(kind);
        network.stats.add(&counted);
        buffer.truncate(length);
        return Some(buffer);
    }
    let (code, error) = match result {
        Ok(message) => match upstream::first_not_global(&message) {
            None => {
                counted.forwarded += 1;
                network.stats.add(&counted);
                let limit = if udp { query.head.udp_limit() } else { usize::from(u16::MAX) };
                return upstream::relay(&query.head, &message, limit);
            }
            Some(address) => {
                counted.prohibited += 1;
                let text = format!("{} leads to {address}, which is not a public address", query.name);
                (ResponseCode::NxDomain, prohibited(text))
            }
        },
        Err(error) => {
            counted.failed += 1;
            (ResponseCode::ServFail, error.explain(&query))
        }
    };
    network.stats.add(&counted);
    let length = answer::refuse(&query.head, &mut buffer, udp, code, error);
    buffer.truncate(length);
    (length > 0).then_some(buffer)
}

/// Why a question was not answered by a resolver outside.
#[derive(Debug, thiserror::Error)]
enum LookUpError {
    #[error("too many questions of this network are being looked up at the same time")]
    Busy,
    #[error(transparent)]
    Ask(#[from] AskError),
}

impl LookUpError {
    fn explain(&self, query: &Query<'_>) -> ExtendedError {
        let code = match self {
            Self::Busy => 0,
            Self::Ask(AskError::Silent | AskError::Failure(_)) => extended_error::NO_REACHABLE_AUTHORITY,
            Self::Ask(AskError::Network(_)) => extended_error::NETWORK_ERROR,
        };
        ExtendedError { code, text: format!("{}: {self}", query.name) }
    }
}

async fn look_up(network: &Network, source: IpAddr, query: &Query<'_>) -> Result<Box<Message>, LookUpError> {
    let _slot = network.lookups.take(source).ok_or(LookUpError::Busy)?;
    let _place = network.shared.lookups.try_acquire().map_err(|_| LookUpError::Busy)?;
    let resolvers = network.zone.load().forward.clone();
    Ok(exchange::ask(&resolvers, query.head.question).await?)
}
