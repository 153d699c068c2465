//! When to ask for the next certificate. Pure: times come in, times go out.
//!
//! Moments are spread by the certificate's name, so that a host with many names does not ask for all at once, and so
//! that a restart does not change them.

use jiff::{SignedDuration, Timestamp};
use warren_model::policy::HostName;

use crate::Validity;

/// At most this long before the end; for long-lived certificates a third would be years.
const MAX_MARGIN: SignedDuration = SignedDuration::from_hours(30 * 24);
/// The first pause after a failure. With its doublings there are four attempts in the first hour, where public
/// authorities allow five failed verifications of a name.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_mins(5);
const MAX_PAUSE: SignedDuration = SignedDuration::from_hours(6);

/// When the authority would like a certificate to be renewed (RFC 9773 §4.2). `start` is before `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    pub start: Timestamp,
    pub end: Timestamp,
    /// How long this answer holds: 1 minute to 1 day (RFC 9773 §4.3).
    pub ask_again: SignedDuration,
}

impl Window {
    /// RFC 9773 §4.3.2 wants limits on what the authority says.
    pub(crate) fn pause(said: SignedDuration) -> SignedDuration {
        said.clamp(SignedDuration::from_mins(1), SignedDuration::from_hours(24))
    }
}

/// When to renew a certificate; a time that has passed means now.
///
/// Without a window: when a third of the lifetime is left and at most 30 days, earlier by up to a tenth of that. With
/// one: at a moment inside it, but never in the last tenth of the lifetime.
pub fn due(validity: Validity, window: Option<&Window>, name: &HostName) -> Timestamp {
    let lifetime = validity.lifetime();
    let at = match window {
        Some(window) => {
            let picked = part(window.end.duration_since(window.start), name, "window");
            let latest = minus(validity.not_after, lifetime / 10);
            plus(window.start, picked).min(latest)
        }
        None => {
            let margin = (lifetime / 3).min(MAX_MARGIN);
            minus(validity.not_after, margin.saturating_add(part(margin / 10, name, "margin")))
        }
    };
    at.max(validity.not_before)
}

/// When to try again after `failures` failures in a row (1 for the first): 5 minutes after the first, twice as long
/// after each, 6 hours at most, later by up to a tenth of that; and not before the time that the authority gave.
pub fn after_failure(failures: u32, now: Timestamp, not_before: Option<Timestamp>, name: &HostName) -> Timestamp {
    let doublings = failures.saturating_sub(1).min(16);
    let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(MAX_PAUSE);
    let spread = part(pause / 10, name, "failure");
    let own = plus(now, pause.saturating_add(spread));
    // Spread here too: everyone was given the same time.
    not_before.map_or(own, |given| own.max(plus(given, spread.min(SignedDuration::from_mins(1)))))
}

/// A part of the whole, the same for the same name: 0 up to the whole, which is left out.
fn part(whole: SignedDuration, name: &HostName, purpose: &str) -> SignedDuration {
    let hash = blake3::hash(format!("{purpose} {name}").as_bytes());
    let [a, b, c, d, ..] = *hash.as_bytes();
    let thousandth = i64::from(u32::from_be_bytes([a, b, c, d])) * 1000 / (i64::from(u32::MAX) + 1);
    let milliseconds = whole.as_millis().max(0) / 1000 * i128::from(thousandth);
    SignedDuration::from_millis(i64::try_from(milliseconds).unwrap_or(0))
}

fn plus(at: Timestamp, duration: SignedDuration) -> Timestamp {
    at.saturating_add(duration).unwrap_or(at)
}

fn minus(at: Timestamp, duration: SignedDuration) -> Timestamp {
    at.saturating_sub(duration).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 24 * 3600;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn valid(days: i64) -> Validity {
        Validity { not_before: at(0), not_after: at(days * DAY) }
    }

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    fn window(start: i64, end: i64) -> Window {
        Window { start: at(start), end: at(end), ask_again: SignedDuration::from_hours(6) }
    }

    #[test]
    fn ninety_days_are_renewed_when_thirty_to_thirty_three_are_left() {
        for host in ["a.example.com", "b.example.com", "shop.example.org"] {
            let due = due(valid(90), None, &name(host)).as_second();
            assert!((57 * DAY..=60 * DAY).contains(&due), "{host}: {due}");
        }
    }

    #[test]
    fn short_lives_keep_a_third_and_long_ones_thirty_days() {
        let short = due(valid(6), None, &name("a.example.com")).as_second();
        assert!((4 * DAY - DAY / 5..=4 * DAY).contains(&short), "{short}");
        let long = due(valid(3650), None, &name("a.example.com")).as_second();
        assert!((3617 * DAY..=3620 * DAY).contains(&long), "{long}");
    }

    #[test]
    fn names_are_spread_and_each_keeps_its_moment() {
        let of = |index: usize| due(valid(90), None, &name(&format!("host-{index}.example.com")));
        let moments: std::collections::BTreeSet<_> = (0..100).map(of).collect();
        assert!(moments.len() > 80, "{}", moments.len());
        assert_eq!(of(7), of(7));
    }

    #[test]
    fn the_authoritys_window_goes_before_the_third() {
        let due = due(valid(90), Some(&window(10 * DAY, 12 * DAY)), &name("a.example.com")).as_second();
        assert!((10 * DAY..12 * DAY).contains(&due), "{due}");
    }

    #[test]
    fn a_window_in_the_last_tenth_is_not_waited_for() {
        let due = due(valid(90), Some(&window(89 * DAY, 90 * DAY)), &name("a.example.com")).as_second();
        assert_eq!(due, 81 * DAY);
    }

    #[test]
    fn a_certificate_that_ends_before_it_begins_is_due_at_once() {
        let upside_down = Validity { not_before: at(10 * DAY), not_after: at(DAY) };
        assert!(due(upside_down, None, &name("a.example.com")) <= at(10 * DAY));
    }

    #[test]
    fn pauses_double_up_to_six_hours() {
        let now = at(1_000_000);
        let pause = |failures| after_failure(failures, now, None, &name("a.example.com")).as_second() - 1_000_000;
        for (failures, least) in [(0, 300), (1, 300), (2, 600), (3, 1200), (4, 2400), (8, 21_600), (u32::MAX, 21_600)] {
            let pause = pause(failures);
            assert!((least..=least + least / 10).contains(&pause), "{failures}: {pause}");
        }
    }

    #[test]
    fn the_time_that_the_authority_gave_is_kept() {
        let (now, given) = (at(1_000_000), at(1_500_000));
        let next = after_failure(1, now, Some(given), &name("a.example.com"));
        assert!((1_500_000..=1_500_060).contains(&next.as_second()), "{next}");
        let passed = after_failure(1, now, Some(at(5)), &name("a.example.com"));
        assert!(passed.as_second() >= 1_000_300, "{passed}");
    }

    #[test]
    fn the_authoritys_pause_is_bounded() {
        assert_eq!(Window::pause(SignedDuration::ZERO), SignedDuration::from_mins(1));
        assert_eq!(Window::pause(SignedDuration::from_hours(6)), SignedDuration::from_hours(6));
        assert_eq!(Window::pause(SignedDuration::MAX), SignedDuration::from_hours(24));
    }

    proptest! {
        #[test]
        fn renewal_is_inside_the_validity_whatever_the_authority_says(
            lifetime in 60i64..4000 * DAY, start in any::<i32>(), length in 1i64..4000 * DAY, asked in any::<bool>(),
        ) {
            let validity = Validity { not_before: at(0), not_after: at(lifetime) };
            let window = window(i64::from(start), i64::from(start) + length);
            let due = due(validity, asked.then_some(&window), &name("a.example.com"));
            prop_assert!(due >= validity.not_before && due < validity.not_after);
        }

        #[test]
        fn a_pause_is_never_shorter_than_the_last(failures in 1u32..100) {
            let pause = |failures| after_failure(failures, at(0), None, &name("a.example.com"));
            prop_assert!(pause(failures + 1) >= pause(failures));
        }
    }
}
