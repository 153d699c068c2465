//! Every refusal counts, is reported, and is answered, in the chain of its kind.
//!
//! The count of a member is exact. Reports are for single refusals, so that a member's are limited. A report's prefix
//! is its [`Refusal`].

use super::{Chain, Context};
use crate::firewall::Refusal;
use crate::spec::NFLOG_GROUP;

/// Whose refusals were reported of late: a set, the type of its keys, and where a packet has the key.
pub(super) const TALKERS: [(&str, &str, &str); 3] = [
    ("talkers4", "ipv4_addr", "ip saddr"),
    ("talkers6", "ipv6_addr", "ip6 saddr"),
    // The address of a liar may be anyone's.
    ("liars", "ifname", "iifname"),
];

/// How many refusals of one member are reported.
const REPORTS: &str = "limit rate 10/second burst 20 packets";
/// How much of a packet: every header that is understood, and none of the content of most.
const BYTES: u16 = 128;

pub(super) fn chains(_: &Context<'_>) -> Vec<Chain> {
    let mut all: Vec<Chain> = [Refusal::Network, Refusal::Egress, Refusal::Names, Refusal::Gateway]
        .into_iter()
        .map(|refusal| {
            Chain::new(chain(refusal))
                .rule("ip saddr @refused4")
                .rule("ip6 saddr @refused6")
                .rules(TALKERS[..2].iter().map(|talkers| report(talkers, refusal)))
                .rule("meta l4proto tcp reject with tcp reset")
                .rule("reject with icmpx admin-prohibited")
        })
        .collect();
    all.push(
        Chain::new(chain(Refusal::Spoofed))
            .rule("counter name spoofed")
            .rule(report(&TALKERS[2], Refusal::Spoofed))
            .rule("drop"),
    );
    all
}

/// The chain that refuses a packet.
pub(super) fn chain(refusal: Refusal) -> String {
    format!("refuse_{refusal}")
}

fn report((set, _, key): &(&str, &str, &str), refusal: Refusal) -> String {
    format!("update @{set} {{ {key} {REPORTS} }} log prefix \"{refusal}\" group {NFLOG_GROUP} snaplen {BYTES}")
}
