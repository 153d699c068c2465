//! What is forwarded: among members, to and from linked networks, and out.

use warren_model::policy::GLOBAL_V6;
use warren_model::policy::compile::{Default as ByDefault, OUTSIDE};

use super::refusing::chain;
use super::{Chain, Context, checks};
use crate::firewall::Refusal;
use crate::firewall::shape::Scope;

/// How fast one member may begin flows to the internet, and how many at once. Each takes a place in the connection
/// tables of the router and of the host until it times out, and those tables are everybody's.
const BEGINNING: &str = "limit rate over 200/second burst 1000 packets";

/// Who began flows of late: a family's set, the type of its keys, and where a packet has the key.
pub(super) const BEGINNERS: [(&str, &str, &str); 2] =
    [("beginners4", "ipv4_addr", "ip saddr"), ("beginners6", "ipv6_addr", "ip6 saddr")];

/// What the checks wrote on a packet stays here: the next queue would take it for something else.
const CLEAN: &str = "meta mark set 0 meta priority set 0";

pub(super) fn chains(context: &Context<'_>) -> Vec<Chain> {
    let Context { shape, .. } = context;
    let mut all = vec![between(context)];
    if shape.inside != Scope::All || shape.links {
        all.push(passing(context));
    }
    if shape.inside != Scope::All {
        all.extend(checks::of_members("inside", default(shape.inside), "passing", Refusal::Network));
    }
    if shape.links {
        all.extend(checks::of_members("across", ByDefault::Refuse, "passing", Refusal::Network));
    }
    if let Some(scope) = shape.outside {
        all.extend(outside(context, scope));
    }
    all
}

fn default(scope: Scope) -> ByDefault {
    if scope == Scope::Only { ByDefault::Refuse } else { ByDefault::Accept }
}

fn between(context: &Context<'_>) -> Chain {
    let Context { spec, shape, uplink, .. } = context;
    let among = if shape.inside == Scope::All { "passing" } else { "inside" };
    let first = Chain::hooked("between", "filter hook forward priority filter; policy drop")
        .rules_if(shape.outside.is_some(), [format!("iifname \"{uplink}\" goto from_internet")]);
    let leaves = format!("oifname \"{uplink}\" goto to_internet");
    let refuse = format!("goto {}", chain(Refusal::Network));
    if shape.links {
        let (four, six) = (spec.cidr, spec.cidr6);
        return first
            .rule(format!("ip saddr {four} ip daddr {four} goto {among}"))
            .rule(format!("ip6 saddr {six} ip6 daddr {six} goto {among}"))
            .rule("iifname . ip saddr @linked4 goto across")
            .rule("iifname . ip6 saddr @linked6 goto across")
            .rule("oifname . ip daddr @linked4 goto across")
            .rule("oifname . ip6 daddr @linked6 goto across")
            .rules_if(shape.outside.is_some(), [leaves])
            .rule(refuse);
    }
    if shape.inside != Scope::All {
        return first.rules_if(shape.outside.is_some(), [leaves]).rule("goto inside");
    }
    first
        .rule("ip daddr @receivers4 accept")
        .rule("ip6 daddr @receivers6 accept")
        .rules_if(shape.outside.is_some(), [leaves])
        .rule(refuse)
}

/// Where everything ends that may pass, on its way to a member of this network or of another one.
fn passing(context: &Context<'_>) -> Chain {
    Chain::new("passing")
        .rule(format!("ip daddr @receivers4 {CLEAN} accept"))
        .rule(format!("ip6 daddr @receivers6 {CLEAN} accept"))
        .rules_if(
            context.shape.links,
            [
                format!("oifname . ip daddr @linked4 {CLEAN} accept"),
                format!("oifname . ip6 daddr @linked6 {CLEAN} accept"),
            ],
        )
        .rule(format!("goto {}", chain(Refusal::Network)))
}

fn outside(context: &Context<'_>, scope: Scope) -> Vec<Chain> {
    let uplink = &context.uplink;
    let refuse = chain(Refusal::Egress);
    let checked = scope != Scope::All;
    let verdict = if checked { "jump outside_by_origin" } else { "goto outside_passing" };
    let mut all = vec![
        Chain::new("to_internet")
            .rule("meta nfproto . ip daddr @private4 goto to_outside")
            .rule("meta nfproto . ip6 daddr @private6 goto to_outside")
            .rule(format!("ip daddr @not_global4 goto {refuse}"))
            .rule(format!("ip6 daddr != {GLOBAL_V6} goto {refuse}"))
            .rule(format!("ip6 daddr @not_global6 goto {refuse}"))
            .rule("goto to_outside"),
        Chain::new("to_outside")
            .rule("# what masquerade would not touch must not leave with its private source")
            .rule("ct state invalid drop")
            .rule("# an error of a member about a flow that may be anybody's")
            .rules_if(checked, [format!("ct state related goto {refuse}")])
            .rules_if(checked, [format!("{} goto outside_passing", checks::JUDGED)])
            .rule(verdict)
            .rules_if(checked, [format!("goto {refuse}")]),
        Chain::new("from_internet")
            .rules_if(checked, [format!("{} goto outside_passing", checks::JUDGED)])
            .rule(format!("ct state established {verdict}"))
            .rule(format!("ct state related {verdict}"))
            .rule("drop"),
        Chain::new("outside_passing")
            .rule(format!("iifname \"{uplink}\" ip daddr @egress_received4 {CLEAN} accept"))
            .rule(format!("iifname \"{uplink}\" ip6 daddr @egress_received6 {CLEAN} accept"))
            .rule(format!("iifname \"{uplink}\" drop"))
            .rule("# what is not in the table yet and would come into it; not every packet that nobody answered")
            .rules(BEGINNERS.map(|(set, _, key)| {
                format!(
                    "ct state new ct status ! confirmed update @{set} {{ {key} {BEGINNING} }} counter name flooded drop"
                )
            }))
            .rule(format!("ip saddr @egress_sent4 {CLEAN} accept"))
            .rule(format!("ip6 saddr @egress_sent6 {CLEAN} accept"))
            .rule("drop"),
    ];
    if checked {
        all.extend(checks::of_outside("outside", default(scope), "outside_passing", OUTSIDE.0));
    }
    all.push(
        Chain::hooked("leaving", "nat hook postrouting priority srcnat; policy accept")
            .rule(format!("oifname \"{uplink}\" masquerade")),
    );
    all
}
