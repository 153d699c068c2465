//! The whole matrix: what every machine reaches.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use serde::Deserialize;
use warren_model::policy::{Destination, Expect, Member, NOT_GLOBAL_V4, Policy, Protocol, Subject, Target};
use warren_model::record::{self, Machine};
use warren_model::wire;

use super::change::{example, lone_address};
use super::pieces::{self, View};
use super::{Limit, apart, scene};
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::directory::Census;
use crate::error::Answer;
use crate::extract::Query;
use crate::resolve;
use crate::state::Shared;

/// How many pairs a page holds, at most; one sender at least.
const PAIRS: usize = 20_000;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ReachQuery {
    /// Only what machines in this network reach, by id or name.
    network: Option<String>,
    /// Items on a page, 1 to 1000; 100 when absent, and fewer where each has much to say.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// Show what every machine reaches by the policy in force
#[utoipa::path(get, path = "/v1/reach", operation_id = "show_reach", tag = "policy",
    params(ReachQuery), responses((status = 200, body = wire::Page<wire::Reach>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<ReachQuery>,
) -> Answer<Json<wire::Page<wire::Reach>>> {
    let scope = format!("reach {}", query.network.as_deref().unwrap_or_default());
    let paging = Paging::parse(&scope, caller.account, query.limit, query.cursor.as_deref())?;
    let network = match &query.network {
        Some(given) => Some(resolve::network(&api, caller.account, given).await?.record.name),
        None => None,
    };
    let (edition, census) = scene(&api, &caller).await?;
    let census = Arc::new(census);
    let members = &census.directory.members;
    let senders: Vec<usize> = (0..members.len())
        .filter(|index| network.as_ref().is_none_or(|network| members[*index].network == *network))
        .filter(|index| paging.after.as_ref().is_none_or(|after| members[*index].full_name() > *after))
        .collect();
    let size = paging.limit.min(PAIRS.div_ceil(members.len().max(1))).max(1);
    let now = Timestamp::now();
    let work = census.clone();
    let (items, senders) = apart(move || {
        let limit = Limit::new();
        let mut items = Vec::new();
        for index in senders.iter().take(size) {
            // A page may be short, but never empty while there is something to say.
            if limit.check().is_err() && !items.is_empty() {
                break;
            }
            items.push(reach(&edition.policy, &work, *index, now));
        }
        (items, senders)
    })
    .await?;
    let more = items.len() < senders.len();
    let last = items.len().checked_sub(1).and_then(|last| senders.get(last)).filter(|_| more);
    let next = last.map(|last| paging.next(&census.directory.members[*last].full_name()));
    Ok(Json(wire::Page { items, next }))
}

fn reach(policy: &Policy, census: &Census, sender: usize, now: Timestamp) -> wire::Reach {
    let directory = &census.directory;
    let from = &directory.members[sender];
    let view = View::new(policy, directory, from, now);
    let others = directory.members.iter().zip(&census.machines).filter(|(to, _)| to.id != from.id);
    wire::Reach {
        from: from.full_name(),
        machine: from.name.to_string(),
        network: from.network.to_string(),
        to: others.map(|(to, machine)| reached(&view, to, machine)).collect(),
        names: names(&view),
        internet: internet(&view),
    }
}

fn reached(view: &View, to: &Member, machine: &Machine) -> wire::ReachedMachine {
    let destination = Destination::Member(to);
    let declared = machine.ports.iter().map(|port| {
        let protocol = match port.protocol {
            record::Protocol::Udp => Protocol::Udp,
            record::Protocol::Tcp | record::Protocol::Http | record::Protocol::Https => Protocol::Tcp,
        };
        let verdict = view.judge_port(destination, protocol, port.port);
        wire::ReachedPort {
            name: port.name.to_string(),
            port: format!("{protocol}/{}", port.port),
            verdict: if verdict.allowed { Expect::Allow } else { Expect::Deny },
            rule: verdict.rule.map(|rule| rule.to_string()),
        }
    });
    wire::ReachedMachine {
        to: to.full_name(),
        open: pieces::texts(&view.open(destination)),
        declared: declared.collect(),
    }
}

/// Whether addresses of the public internet that no rule names are reached.
fn internet(view: &View) -> bool {
    let named = view.rules().filter_map(|rule| match &rule.to {
        Target::Inside(Subject::Range(None, range)) if range.prefix_len() > 0 => Some(*range),
        _ => None,
    });
    let everywhere = IpNet::V4(Ipv4Net::default());
    let fixed = NOT_GLOBAL_V4.iter().filter_map(|text| text.parse().ok());
    let apart: BTreeSet<IpNet> = named.chain(fixed).chain([everywhere]).collect();
    lone_address(everywhere, &apart).is_some_and(|address| !view.open(Destination::Address(address)).is_empty())
}

/// The names outside that rules are about, each with what is open.
fn names(view: &View) -> Vec<wire::ReachedName> {
    let patterns = view.rules().filter_map(|rule| match &rule.to {
        Target::Outside(pattern) => Some(pattern),
        Target::Inside(_) => None,
    });
    let patterns: BTreeSet<_> = patterns.collect();
    patterns
        .into_iter()
        .filter_map(|pattern| Some((pattern, example(pattern)?)))
        .map(|(pattern, name)| {
            let destination = Destination::Name(&name);
            let open = view.open(destination);
            let mut rules: Vec<String> = open
                .iter()
                .filter_map(|piece| view.judge(destination, piece).rule)
                .map(|rule| rule.to_string())
                .collect();
            rules.sort();
            rules.dedup();
            wire::ReachedName { name: pattern.to_string(), open: pieces::texts(&open), rules }
        })
        .collect()
}
