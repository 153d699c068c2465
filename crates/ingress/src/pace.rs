//! How slowly the body of a request may come. No I/O.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::Limits;

/// Only the time counts in which the client was waited for: where the machine is slow, the client is not.
#[derive(Debug)]
pub(crate) struct Pace {
    /// How long nothing may come.
    patience: Duration,
    /// How long may be waited in all, whatever came.
    grace: Duration,
    /// Bytes a second after that, on average; no matter where zero.
    rate: u64,
    received: u64,
    waited: Duration,
    since: Option<Instant>,
}

impl Pace {
    pub fn new(limits: &Limits) -> Self {
        let (patience, grace, rate) = (limits.body, limits.body_grace, limits.body_rate.into());
        Self { patience, grace, rate, received: 0, waited: Duration::ZERO, since: None }
    }

    /// Something came. `now` is asked only after a wait.
    pub fn came(&mut self, bytes: u64, now: impl FnOnce() -> Instant) {
        self.received = self.received.saturating_add(bytes);
        if let Some(since) = self.since.take() {
            self.waited += now().saturating_duration_since(since);
        }
    }

    /// Nothing came. Says at the beginning of a wait when it has to be over, and then no more.
    pub fn wait(&mut self, now: impl FnOnce() -> Instant) -> Option<Instant> {
        if self.since.is_some() {
            return None;
        }
        let now = now();
        self.since = Some(now);
        let earned = self.received.saturating_mul(1_000).checked_div(self.rate);
        let budget = earned.map_or(Duration::MAX, Duration::from_millis).max(self.grace);
        Some(now + budget.saturating_sub(self.waited).min(self.patience))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// After how many seconds a body is given up of which so many bytes come at each interval.
    fn given_up(bytes: u64, interval: Duration) -> Option<u64> {
        let start = Instant::now();
        let (mut pace, mut now) = (Pace::new(&Limits::default()), start);
        while now - start < 600 * SECOND {
            let deadline = pace.wait(|| now).unwrap();
            assert_eq!(pace.wait(|| now), None, "a wait begins once");
            if deadline < now + interval {
                return Some((deadline - start).as_secs());
            }
            now += interval;
            pace.came(bytes, || now);
        }
        None
    }

    #[test]
    fn a_trickle_has_its_grace_and_no_more() {
        assert_eq!(given_up(1, 25 * SECOND), Some(30));
        assert_eq!(given_up(1_000, SECOND), Some(30));
        assert_eq!(given_up(1_100, SECOND), None);
    }

    #[test]
    fn what_stops_is_given_up_however_much_came() {
        assert_eq!(given_up(1 << 20, 31 * SECOND), Some(30));
        assert_eq!(given_up(1 << 20, 29 * SECOND), None);
    }

    #[test]
    fn who_is_not_waited_for_is_not_slow() {
        let start = Instant::now();
        let mut pace = Pace::new(&Limits::default());
        pace.came(10, || unreachable!("nobody waited"));
        // The machine took ten minutes to ask for more.
        assert_eq!(pace.wait(|| start + 600 * SECOND), Some(start + 630 * SECOND));
    }

    #[test]
    fn without_a_rate_only_what_stops_is_given_up() {
        let start = Instant::now();
        let mut pace = Pace::new(&Limits { body_rate: 0, ..Limits::default() });
        pace.wait(|| start);
        pace.came(1, || start + 600 * SECOND);
        assert_eq!(pace.wait(|| start + 600 * SECOND), Some(start + 630 * SECOND));
    }
}
