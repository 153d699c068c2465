//! What was seen, against what policy says.
//!
//! A refusal proves nothing by itself: a dead listener, a dead link and a probe that did not run look the same. So a
//! negative counts only together with its positives: the canary at the far end is reachable from where nothing restricts
//! it, the sender's own allowed path works, and, where the enforcing layer counts, its counter moved. Whatever lacks one
//! of them is inconclusive, and inconclusive is never a pass.

use warren_model::audit::Verdict;
use warren_model::probe::Outcome;

use crate::report::{Canary, Evidence, Observed};

/// What was seen, the verdict, and why.
pub fn judge(allowed: bool, evidence: &Evidence) -> (Observed, Verdict, String) {
    let observed = observed(evidence);
    let (verdict, because) = match (allowed, observed) {
        (_, Observed::Unknown) => (Verdict::Inconclusive, unknown(evidence)),
        (true, Observed::Reached) => reached_as_promised(evidence),
        (true, Observed::NotReached) => not_reached_though_promised(evidence),
        (false, Observed::Reached) => (Verdict::Fail, "policy refuses it, and it got through".to_owned()),
        (false, Observed::NotReached) => refused(evidence),
    };
    (observed, verdict, because)
}

fn observed(evidence: &Evidence) -> Observed {
    // What came out at the far end did get there, whatever the sender says.
    if evidence.token_seen {
        return Observed::Reached;
    }
    match &evidence.outcome {
        None | Some(Outcome::NotTried { .. }) => Observed::Unknown,
        // Somebody nearer has the address too; only the token tells.
        Some(_) if evidence.canary == Canary::TokenOnly => Observed::NotReached,
        Some(Outcome::Echoed | Outcome::Connected | Outcome::Addresses { .. }) => Observed::Reached,
        // That a name does not exist is an answer that the resolver gave; that it failed to find out is none.
        Some(Outcome::NoAddress { code: NO_ERROR | NO_SUCH_NAME, .. }) => Observed::NotReached,
        Some(Outcome::NoAddress { .. }) => Observed::Unknown,
        Some(Outcome::Silent) if evidence.canary == Canary::Resolver => Observed::Unknown,
        // A reset from where no canary is may come from the very place that was not to be reached.
        Some(Outcome::Reset | Outcome::Prohibited { .. } | Outcome::Unreachable { .. } | Outcome::Silent) => {
            Observed::NotReached
        }
    }
}

/// RFC 1035 §4.1.1.
const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;

fn unknown(evidence: &Evidence) -> String {
    match &evidence.outcome {
        None => "the sender's probe said nothing about it".to_owned(),
        Some(Outcome::NotTried { why }) => format!("it could not be tried: {why}"),
        Some(Outcome::NoAddress { code, .. }) => format!("the resolver answered with code {code}, which says neither"),
        Some(_) => "the resolver did not answer".to_owned(),
    }
}

fn reached_as_promised(evidence: &Evidence) -> (Verdict, String) {
    match evidence.canary {
        Canary::Token if !evidence.token_seen => (
            Verdict::Inconclusive,
            "the sender says that it got through, and its token did not come out at the canary".to_owned(),
        ),
        Canary::Token | Canary::TokenOnly => (Verdict::Pass, "the token came out at the canary".to_owned()),
        Canary::Service => (Verdict::Pass, "the service that has the port answered".to_owned()),
        Canary::Outside | Canary::Refusal => (Verdict::Pass, "the far end answered".to_owned()),
        Canary::Resolver => (Verdict::Pass, "the resolver answered with addresses".to_owned()),
    }
}

fn not_reached_though_promised(evidence: &Evidence) -> (Verdict, String) {
    match missing_control(evidence) {
        Some(missing) => (Verdict::Inconclusive, missing),
        None => (Verdict::Fail, "policy allows it, both ends work, and it did not get through".to_owned()),
    }
}

fn refused(evidence: &Evidence) -> (Verdict, String) {
    if let Some(missing) = missing_control(evidence) {
        return (Verdict::Inconclusive, missing);
    }
    let counted = evidence.counter.map(|counter| counter.moved_enough());
    match (evidence.canary, counted) {
        (_, Some(false)) => (
            Verdict::Inconclusive,
            "it did not get through, and the counter of refusals did not move as often as was tried".to_owned(),
        ),
        (Canary::Refusal, None) => match &evidence.outcome {
            Some(Outcome::Prohibited { .. }) => {
                (Verdict::Pass, "no canary can be there; the refusal itself came back as prohibited".to_owned())
            }
            _ => (
                Verdict::Inconclusive,
                "no canary can be there, and nothing says that it was refused and not lost".to_owned(),
            ),
        },
        (_, Some(true)) => (Verdict::Pass, "it did not get through, and the refusals were counted".to_owned()),
        (_, None) => (Verdict::Pass, "it did not get through, and both controls did".to_owned()),
    }
}

fn missing_control(evidence: &Evidence) -> Option<String> {
    if !evidence.canary_control.reached {
        return Some(format!("the canary's own control failed: {}", evidence.canary_control.what));
    }
    (!evidence.sender_control.reached)
        .then(|| format!("the sender's own control failed: {}", evidence.sender_control.what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Control, Counter};
    use proptest::prelude::*;

    fn outcome() -> impl Strategy<Value = Option<Outcome>> {
        let address = "10.0.0.1".parse().unwrap();
        prop::sample::select(vec![
            None,
            Some(Outcome::Echoed),
            Some(Outcome::Connected),
            Some(Outcome::Reset),
            Some(Outcome::Prohibited { by: Some(address) }),
            Some(Outcome::Unreachable { by: None }),
            Some(Outcome::Silent),
            Some(Outcome::Addresses { addresses: vec![address] }),
            Some(Outcome::NoAddress { code: 3, extended: Some(18) }),
            Some(Outcome::NoAddress { code: 2, extended: None }),
            Some(Outcome::NotTried { why: "no route".into() }),
        ])
    }

    prop_compose! {
        fn evidence()(
            canary in prop::sample::select(vec![
                Canary::Token, Canary::TokenOnly, Canary::Service, Canary::Outside, Canary::Resolver, Canary::Refusal,
            ]),
            outcome in outcome(),
            token_seen in any::<bool>(),
            far in any::<bool>(),
            near in any::<bool>(),
            counter in prop::option::of((0u64..4, 0u64..8, 0u64..4)),
        ) -> Evidence {
            let control = |reached| Control { reached, what: "a control".into() };
            Evidence {
                canary, outcome, token_seen,
                canary_control: control(far),
                sender_control: control(near),
                counter: counter.map(|(before, after, attempts)| Counter { before, after, attempts }),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn a_negative_passes_only_with_both_positives_and_a_counter_that_moved(evidence in evidence()) {
            let (observed, verdict, _) = judge(false, &evidence);
            if verdict == Verdict::Pass {
                prop_assert_eq!(observed, Observed::NotReached);
                prop_assert!(!evidence.token_seen);
                prop_assert!(evidence.canary_control.reached && evidence.sender_control.reached);
                prop_assert!(evidence.counter.is_none_or(|counter| counter.moved_enough()));
            }
        }

        #[test]
        fn a_token_where_none_may_come_is_always_a_failure(mut evidence in evidence()) {
            evidence.token_seen = true;
            prop_assert_eq!(judge(false, &evidence).1, Verdict::Fail);
        }

        #[test]
        fn a_positive_passes_only_when_it_was_reached(evidence in evidence()) {
            let (observed, verdict, _) = judge(true, &evidence);
            if verdict == Verdict::Pass {
                prop_assert_eq!(observed, Observed::Reached);
                prop_assert!(evidence.token_seen || evidence.canary != Canary::Token);
            }
        }

        #[test]
        fn a_sender_alone_cannot_make_a_promise_to_our_own_canary_pass(mut evidence in evidence()) {
            evidence.canary = Canary::Token;
            evidence.token_seen = false;
            prop_assert_ne!(judge(true, &evidence).1, Verdict::Pass);
        }

        #[test]
        fn what_nobody_saw_is_inconclusive(mut evidence in evidence(), allowed in any::<bool>()) {
            evidence.token_seen = false;
            evidence.outcome = None;
            prop_assert_eq!(judge(allowed, &evidence).1, Verdict::Inconclusive);
        }

        #[test]
        fn taking_a_control_away_never_turns_anything_into_a_pass(evidence in evidence(), allowed in any::<bool>()) {
            let before = judge(allowed, &evidence).1;
            for end in 0..2 {
                let mut less = evidence.clone();
                let control = if end == 0 { &mut less.canary_control } else { &mut less.sender_control };
                control.reached = false;
                let after = judge(allowed, &less).1;
                prop_assert!(after != Verdict::Pass || before == Verdict::Pass);
            }
        }
    }
}
