//! One question about the policy in force: would this pass, and why.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use warren_model::policy::{
    Destination, Directory, Expect, Flow, Member, Policy, Ports, Rule, Verdict, evaluate, near_misses, suggest,
};
use warren_model::wire;

use super::operator::{self, Operator};
use super::pieces::{self, Piece, View};
use super::places::{self, Goal, Meant};
use super::{Limit, TooLong, apart, change, scene};
use crate::caller::Caller;
use crate::directory::Census;
use crate::error::{Answer, ApiError};
use crate::extract::JsonBody;
use crate::state::Shared;

/// Ask what the policy in force says about a flow
///
/// Where `from`, `to` or `port` mean several, the verdict is `allow` only when every one is allowed, and the answer is
/// about the first that is not. An operator's session is also held to what it was opened for.
#[utoipa::path(post, path = "/v1/explain", operation_id = "explain", tag = "policy",
    request_body = wire::Explain, responses((status = 200, body = wire::Explanation)))]
pub(crate) async fn explain(
    State(api): State<Shared>,
    caller: Caller,
    JsonBody { value, .. }: JsonBody<wire::Explain>,
) -> Answer<Json<wire::Explanation>> {
    let ports: Ports = value.port.parse().map_err(|error| ApiError::invalid(format!("port: {error}")))?;
    let (edition, census) = scene(&api, &caller).await?;
    let sender = operator::named(&api, &caller, "from", &value.from, &census).await?;
    let receiver = operator::named(&api, &caller, "to", &value.to, &census).await?;
    let Census { mut directory, .. } = census;
    let senders = match &sender {
        Some(operator) => Meant { members: vec![operator.member.clone()], made_up: false },
        None => places::senders(&value.from, &directory)?,
    };
    let (goals, nobody) = match &receiver {
        Some(operator) => (vec![Goal::Member(operator.member.clone())], false),
        None => places::goals(&value.to, &directory, &edition.policy)?,
    };
    // Behind the others, so that nobody else is meant by what the question says of them.
    directory.members.extend([&sender, &receiver].into_iter().flatten().map(|operator| operator.member.clone()));
    let now = Timestamp::now();
    let made_up = senders.made_up || nobody;
    let question = Question { directory: Arc::new(directory), senders, goals, ports, sender, receiver };
    let mut explanation = apart({
        let edition = edition.clone();
        move || question.answer(&edition.policy, now)
    })
    .await??
    .ok_or_else(|| ApiError::invalid("from and to are the same: what it sends to itself crosses no network"))?;
    if made_up {
        explanation.reason.push_str("; no such machine is there yet");
    }
    explanation.policy = edition.hash.clone();
    Ok(Json(explanation))
}

struct Question {
    directory: Arc<Directory>,
    senders: Meant,
    goals: Vec<Goal>,
    ports: Ports,
    /// The session that sends, and the one that is sent to.
    sender: Option<Operator>,
    receiver: Option<Operator>,
}

/// A flow with what was said about it.
struct Judged<'a> {
    from: &'a Member,
    to: &'a Goal,
    piece: Piece,
    verdict: Verdict,
    /// Policy would let it pass, and a session does not.
    withheld: bool,
}

impl Question {
    /// `None` when nobody would send anything to another.
    fn answer(&self, policy: &Policy, now: Timestamp) -> Result<Option<wire::Explanation>, TooLong> {
        let limit = Limit::new();
        // One sender of each kind is enough, and so is one receiver, or two where a sender is one of them.
        let senders = change::classes(&[policy], self.senders.members.iter());
        let receivers = self.goals.iter().filter_map(|goal| match goal {
            Goal::Member(member) => Some(member),
            Goal::Address(_) | Goal::Name(_) => None,
        });
        let classes = change::classes(&[policy], receivers);
        let stand_for: Vec<&Member> = classes.iter().flat_map(|class| class.iter().copied().take(2)).collect();
        let goals = self.goals.iter().filter(|goal| match goal {
            Goal::Member(member) => stand_for.contains(&member),
            Goal::Address(_) | Goal::Name(_) => true,
        });
        let goals: Vec<&Goal> = goals.collect();

        let mut first: Option<Judged> = None;
        for class in &senders {
            for from in class.iter().take(2) {
                let view = View::new(policy, &self.directory, from, now);
                let others: Vec<&Goal> = goals.iter().copied().filter(|goal| !is_self(from, goal)).collect();
                // Of a range that somebody or something is in, what nobody has does not count.
                let is_met = |goal: &Goal| !matches!(goal, Goal::Address(address) if view.is_vacant(*address));
                let any = others.iter().any(|goal| is_met(goal));
                for to in others.into_iter().filter(|goal| !any || is_met(goal)) {
                    for piece in pieces::within(pieces::pieces(view.toward(to.destination())), self.ports) {
                        limit.check()?;
                        let mut verdict = view.judge(to.destination(), &piece);
                        let withheld = self.withheld(from, to, &piece).filter(|_| verdict.allowed);
                        let is_withheld = withheld.is_some();
                        if let Some(reason) = withheld {
                            verdict = Verdict { allowed: false, rule: None, reason };
                        }
                        let denied = !verdict.allowed;
                        let judged = Judged { from, to, piece, verdict, withheld: is_withheld };
                        if denied {
                            return Ok(Some(self.explain(&judged, policy, now)));
                        }
                        first.get_or_insert(judged);
                    }
                }
            }
        }
        Ok(first.map(|judged| self.explain(&judged, policy, now)))
    }

    /// Why a session at one of the ends lets nothing pass.
    fn withheld(&self, from: &Member, to: &Goal, piece: &Piece) -> Option<String> {
        let by_sender = self.sender.as_ref().and_then(|session| session.keeps_from(to, piece, &self.directory));
        by_sender.or_else(|| self.receiver.as_ref()?.keeps_out(from, &self.directory))
    }

    fn explain(&self, judged: &Judged, policy: &Policy, now: Timestamp) -> wire::Explanation {
        let Judged { from, to, piece, verdict, withheld } = judged;
        let flow = Flow { from, to: to.destination(), protocol: piece.protocol, port: piece.port() };
        // No rule helps where it is not policy that refuses.
        let missing_rule = suggest(&flow).filter(|_| !verdict.allowed && verdict.rule.is_none() && !withheld);
        let near_misses = match verdict.allowed || *withheld {
            true => Vec::new(),
            false => near_misses(policy, &self.directory, &flow, now),
        };
        wire::Explanation {
            verdict: if verdict.allowed { Expect::Allow } else { Expect::Deny },
            rule: verdict.rule.as_ref().map(ToString::to_string),
            reason: verdict.reason.clone(),
            from: from.full_name(),
            to: to.destination().to_string(),
            port: pieces::texts(std::slice::from_ref(piece)).remove(0),
            pairs: (self.senders.members.len() * self.goals.len()) as u64,
            missing_rule: missing_rule.filter(|rule| helps(rule, policy, &self.directory, &flow, now)),
            near_misses,
            path: path(from, to, verdict.allowed, &self.directory),
            policy: String::new(),
        }
    }
}

fn is_self(from: &Member, to: &Goal) -> bool {
    matches!(to, Goal::Member(to) if to.id == from.id && to.network == from.network && to.ipv4 == from.ipv4)
        && !is_made_up(from)
}

/// One that stands for several may well send to another of them.
fn is_made_up(member: &Member) -> bool {
    member.id == warren_model::MachineId::from_ulid(ulid::Ulid::nil()).into()
}

/// Whether the policy with this rule would allow the flow: nothing lifts what is built in.
fn helps(rule: &Rule, policy: &Policy, directory: &Directory, flow: &Flow, now: Timestamp) -> bool {
    let mut policy = policy.clone();
    policy.allow.push(rule.clone());
    evaluate(&policy, directory, flow, now).allowed
}

/// Where a flow passes, up to where it is refused.
fn path(from: &Member, to: &Goal, allowed: bool, directory: &Directory) -> Vec<String> {
    let own = &from.network;
    let mut path = vec![format!("{} ({})", from.full_name(), from.ipv4)];
    let holder = match to.destination() {
        Destination::Member(member) => Some(member),
        Destination::Address(address) => directory.at(own, address),
        Destination::Name(_) => None,
    };
    let stations = match (to, holder) {
        (_, Some(member)) if member.network == *own => vec![format!("network {own}")],
        (_, Some(member)) => vec![format!("network {own}"), format!("link to network {}", member.network)],
        (Goal::Name(_), None) => vec![format!("resolver and proxy of network {own}")],
        _ => vec![format!("network {own}"), "uplink of the host".to_owned()],
    };
    if allowed {
        path.extend(stations);
        path.push(match holder {
            Some(member) => format!("{} ({})", member.full_name(), member.ipv4),
            None => to.destination().to_string(),
        });
    } else {
        path.extend(stations.into_iter().take(1).map(|station| format!("{station}: refused")));
    }
    path
}
