//! What was ordered of the certificate authority, for whom, and what could not be had. Pure.
//!
//! To an authority the whole installation is one customer. Let's Encrypt (<https://letsencrypt.org/docs/rate-limits/>)
//! takes 300 new orders of one in 3 hours, issues 50 certificates for names below one registered domain and 5 for the very
//! same name in 7 days, and lets 5 verifications of a name fail in an hour. So no account may use that up for the others:
//! where a bound is shared, an account has had at most as much as is left of it, which is half when it is alone. Renewals
//! do not count, here as there.

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use warren_model::AccountId;
use warren_model::domain::owners;
use warren_model::policy::HostName;

/// For how long an order counts.
const ORDERS_WITHIN: SignedDuration = SignedDuration::from_hours(3);
/// For how long a certificate counts.
const ISSUED_WITHIN: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How long a name waits for room while orders are under way.
const UNDER_WAY: SignedDuration = SignedDuration::from_mins(5);
/// How far the clock may be set back before what was noted is thrown away, as being of another time.
const SET_BACK: SignedDuration = SignedDuration::from_hours(1);
/// After the time at which a name is tried again, its failures are forgotten after this.
const FORGIVEN_AFTER: SignedDuration = SignedDuration::from_hours(24);
/// Names whose failures are remembered. No more than [`OrderLimits::orders`] are added in 3 hours, so that whoever is
/// pushed out was due again long ago.
const SETBACKS: usize = 4096;

/// How many certificates may be ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderLimits {
    /// Orders in 3 hours, however they end.
    pub orders: usize,
    /// Certificates in 7 days for names below one registered domain.
    pub same_domain: usize,
    /// Certificates in 7 days for one name.
    pub same_name: usize,
}

impl Default for OrderLimits {
    /// Less than what Let's Encrypt has, for what was forgotten and what others order there.
    fn default() -> Self {
        Self { orders: 250, same_domain: 45, same_name: 4 }
    }
}

/// Who has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::public) struct Holder {
    pub account: AccountId,
    /// It is below the preview suffix, where all accounts have names.
    pub suffix: bool,
}

/// Why a certificate is not ordered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wait {
    pub until: Timestamp,
    bound: Bound,
    most: usize,
    /// What is left is for other accounts.
    left_to_others: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Bound {
    Orders,
    Domain(HostName),
    Name(HostName),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { until, bound, most, left_to_others } = self;
        match bound {
            Bound::Orders => write!(f, "this server orders at most {most} certificates in 3 hours")?,
            Bound::Domain(domain) => {
                write!(f, "this server orders at most {most} certificates for names below {domain} in 7 days")?;
            }
            Bound::Name(host) => write!(f, "this server orders at most {most} certificates for {host} in 7 days")?,
        }
        let left = if *left_to_others { ", and what is left is for other accounts" } else { "" };
        write!(f, "{left}: it is ordered at {until:.0} or later")
    }
}

/// How often in a row a certificate could not be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Setback {
    pub failures: u32,
    pub problem: String,
    /// When it is tried again.
    pub not_before: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    at: Timestamp,
    account: AccountId,
    host: HostName,
    domain: HostName,
    state: OrderState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OrderState {
    Open,
    Issued,
    Failed,
}

/// What is remembered of orders, whether their names are still public or not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Memory {
    /// The oldest first.
    orders: Vec<Order>,
    setbacks: BTreeMap<HostName, Setback>,
}

impl Memory {
    /// Notes that a first certificate is ordered for a name now, if that may be.
    pub fn order(&mut self, limits: OrderLimits, holder: Holder, host: &HostName, now: Timestamp) -> Result<(), Wait> {
        self.forget(now);
        let domain = owners(host).pop().unwrap_or_else(|| host.clone());
        self.fits(Bound::Orders, limits.orders, holder.account, true, now)?;
        self.fits(Bound::Domain(domain.clone()), limits.same_domain, holder.account, holder.suffix, now)?;
        self.fits(Bound::Name(host.clone()), limits.same_name, holder.account, false, now)?;
        self.orders.push(Order {
            at: now,
            account: holder.account,
            host: host.clone(),
            domain,
            state: OrderState::Open,
        });
        Ok(())
    }

    fn fits(&self, bound: Bound, most: usize, account: AccountId, shared: bool, now: Timestamp) -> Result<(), Wait> {
        let within = if bound == Bound::Orders { ORDERS_WITHIN } else { ISSUED_WITHIN };
        let counts = |order: &&Order| match &bound {
            Bound::Orders => true,
            Bound::Domain(domain) => order.state != OrderState::Failed && order.domain == *domain,
            Bound::Name(host) => order.state != OrderState::Failed && order.host == *host,
        };
        let counted = || self.orders.iter().filter(|order| now.duration_since(order.at) < within).filter(counts);
        let left = most.saturating_sub(counted().count());
        let own = counted().filter(|order| order.account == account).count();
        let left_to_others = shared && left > 0 && own >= left;
        if left > 0 && !left_to_others {
            return Ok(());
        }
        let oldest = counted().map(|order| order.at).min().unwrap_or(now);
        let mut until = oldest.saturating_add(within).unwrap_or(now);
        // One that is under way may come to nothing. Else nothing changes before the oldest counts no more.
        if counted().any(|order| order.state == OrderState::Open) {
            until = until.min(now.saturating_add(UNDER_WAY).unwrap_or(now));
        }
        Err(Wait { until, bound, most, left_to_others })
    }

    pub fn setback(&self, host: &HostName) -> Option<&Setback> {
        self.setbacks.get(host)
    }

    /// The order for this name has failed. It does not count where it never came to the authority (`placed`).
    pub fn failed(&mut self, host: &HostName, placed: bool, setback: Setback, now: Timestamp) {
        // A renewal has none.
        if placed {
            self.close(host, OrderState::Failed);
        } else {
            self.orders.retain(|order| order.state != OrderState::Open || order.host != *host);
        }
        self.setbacks.insert(host.clone(), setback);
        self.forget(now);
        while self.setbacks.len() > SETBACKS {
            let first = self.setbacks.iter().min_by_key(|(_, setback)| setback.not_before);
            let Some(first) = first.map(|(host, _)| host.clone()) else { return };
            self.setbacks.remove(&first);
        }
    }

    /// The name has a certificate.
    pub fn issued(&mut self, host: &HostName) {
        self.close(host, OrderState::Issued);
        self.setbacks.remove(host);
    }

    fn close(&mut self, host: &HostName, state: OrderState) {
        let open = self.orders.iter_mut().filter(|order| order.state == OrderState::Open && order.host == *host);
        open.for_each(|order| order.state = state);
    }

    fn forget(&mut self, now: Timestamp) {
        self.orders.retain(|order| {
            let within = if order.state == OrderState::Failed { ORDERS_WITHIN } else { ISSUED_WITHIN };
            (-SET_BACK..within).contains(&now.duration_since(order.at))
        });
        self.setbacks.retain(|_, setback| now.duration_since(setback.not_before) < FORGIVEN_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use ulid::Ulid;

    use super::*;

    const HOUR: i64 = 3600;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(2_000_000_000 + second).unwrap()
    }

    fn holder(account: u64, suffix: bool) -> Holder {
        Holder { account: AccountId::from_ulid(Ulid::from_parts(account, 1)), suffix }
    }

    fn host(text: &str) -> HostName {
        text.parse().unwrap()
    }

    /// How many orders for ever new names are let through.
    fn ordered(memory: &mut Memory, who: Holder, now: Timestamp, domain: impl Fn(usize) -> String) -> usize {
        let limits = OrderLimits::default();
        let name = |n: usize| host(&format!("n{}-{n}.{}", who.account, domain(n)).to_lowercase());
        let had = (0..1000).map(name).filter(|name| {
            let is_ordered = memory.order(limits, who, name, now).is_ok();
            memory.issued(name);
            is_ordered
        });
        had.count()
    }

    #[test]
    fn one_account_has_half_of_all_orders_and_what_it_does_not_get_is_for_the_others() {
        let mut memory = Memory::default();
        let domain = |n: usize| format!("d{n}.example");
        assert_eq!(ordered(&mut memory, holder(1, false), at(0), domain), 125);
        assert_eq!(ordered(&mut memory, holder(1, false), at(3 * HOUR - 1), domain), 0);
        assert_eq!(ordered(&mut memory, holder(2, false), at(10), |n| format!("e{n}.example")), 63);
        let wait = memory.order(OrderLimits::default(), holder(1, false), &host("a.test.example"), at(20)).unwrap_err();
        assert_eq!(wait.until, at(3 * HOUR));
        assert!(wait.to_string().contains("at most 250") && wait.to_string().contains("other accounts"), "{wait}");
        for account in 3..20 {
            ordered(&mut memory, holder(account, false), at(30), |n| format!("f{account}-{n}.example"));
        }
        let all = memory.orders.iter().filter(|order| order.at >= at(0)).count();
        assert!(all <= 250, "{all}");
        // The window slides.
        assert!(memory.order(OrderLimits::default(), holder(1, false), &host("a.test.example"), at(3 * HOUR)).is_ok());
    }

    #[test]
    fn below_the_suffix_accounts_share_the_domain_and_a_domain_of_its_own_is_an_accounts() {
        let mut memory = Memory::default();
        let suffix = |_| "preview.example.com".to_owned();
        assert_eq!(ordered(&mut memory, holder(1, true), at(0), suffix), 23);
        assert_eq!(ordered(&mut memory, holder(2, true), at(0), suffix), 11);
        assert_eq!(ordered(&mut memory, holder(1, true), at(7 * 24 * HOUR - 1), suffix), 0);
        assert_eq!(ordered(&mut memory, holder(1, true), at(7 * 24 * HOUR), suffix), 23);
        let mut memory = Memory::default();
        assert_eq!(ordered(&mut memory, holder(1, false), at(0), |_| "own.example.org".to_owned()), 45);
        // What is not of the same registered domain is not counted with it.
        assert!(memory.order(OrderLimits::default(), holder(1, false), &host("a.example.net"), at(0)).is_ok());
    }

    #[test]
    fn orders_that_failed_count_as_orders_and_not_as_certificates() {
        let mut memory = Memory::default();
        let setback = |now| Setback { failures: 1, problem: "no".into(), not_before: now };
        for n in 0..125 {
            let name = host(&format!("n{n}.preview.example.com"));
            memory.order(OrderLimits::default(), holder(1, true), &name, at(n)).unwrap();
            memory.failed(&name, true, setback(at(n)), at(n));
        }
        let name = host("last.preview.example.com");
        assert!(memory.order(OrderLimits::default(), holder(1, true), &name, at(200)).is_err(), "as orders");
        assert!(memory.order(OrderLimits::default(), holder(2, true), &name, at(200)).is_ok(), "as certificates");
    }

    #[test]
    fn while_orders_are_under_way_a_name_does_not_wait_for_the_oldest() {
        let mut memory = Memory::default();
        let own = |n: usize| host(&format!("n{n}.example.com"));
        let order = |memory: &mut Memory, n| memory.order(OrderLimits::default(), holder(1, false), &own(n), at(0));
        for n in 0..45 {
            order(&mut memory, n).unwrap();
        }
        assert_eq!(order(&mut memory, 45).unwrap_err().until, at(300));
        (0..45).for_each(|n| memory.issued(&own(n)));
        assert_eq!(order(&mut memory, 45).unwrap_err().until, at(7 * 24 * HOUR));
    }

    #[test]
    fn what_never_came_to_the_authority_does_not_count_and_a_failed_renewal_takes_nothing_back() {
        let mut memory = Memory::default();
        let setback = || Setback { failures: 1, problem: "no".into(), not_before: at(0) };
        let own = |n: usize| host(&format!("n{n}.example.com"));
        for n in 0..500 {
            memory.order(OrderLimits::default(), holder(1, false), &own(n), at(0)).unwrap();
            memory.failed(&own(n), false, setback(), at(0));
        }
        for n in 0..45 {
            memory.order(OrderLimits::default(), holder(1, false), &own(n), at(0)).unwrap();
            memory.issued(&own(n));
            memory.failed(&own(n), true, setback(), at(0));
        }
        assert!(memory.order(OrderLimits::default(), holder(1, false), &own(99), at(0)).is_err());
    }

    #[test]
    fn one_name_is_not_had_again_and_again() {
        let mut memory = Memory::default();
        let count = (0..100).filter(|n| {
            memory.order(OrderLimits::default(), holder(1, false), &host("a.example.com"), at(n * HOUR)).is_ok()
        });
        assert_eq!(count.count(), 4);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten_in_time() {
        let mut memory = Memory::default();
        for n in 0..5000 {
            let setback = Setback { failures: 3, problem: "no".into(), not_before: at(n) };
            memory.failed(&host(&format!("n{n}.example.com")), true, setback, at(0));
        }
        assert_eq!(memory.setbacks.len(), SETBACKS);
        assert!(
            memory.setback(&host("n0.example.com")).is_none() && memory.setback(&host("n4999.example.com")).is_some()
        );
        memory.order(OrderLimits::default(), holder(1, false), &host("a.example.com"), at(0)).unwrap();
        memory.forget(at(4999 + 24 * HOUR));
        assert_eq!((memory.setbacks.len(), memory.orders.len()), (0, 1));
        memory.forget(at(7 * 24 * HOUR));
        assert_eq!(memory, Memory::default());
        // A clock that was wrong by years does not stop orders for years.
        memory.order(OrderLimits::default(), holder(1, false), &host("a.example.com"), at(365 * 24 * HOUR)).unwrap();
        memory.forget(at(0));
        assert_eq!(memory, Memory::default());
    }

    #[test]
    fn what_is_remembered_survives_as_json() {
        let mut memory = Memory::default();
        memory.order(OrderLimits::default(), holder(1, true), &host("a.example.com"), at(0)).unwrap();
        memory.failed(
            &host("a.example.com"),
            true,
            Setback { failures: 2, problem: "no".into(), not_before: at(9) },
            at(1),
        );
        let text = serde_json::to_string(&memory).unwrap();
        assert_eq!(serde_json::from_str::<Memory>(&text).unwrap(), memory);
    }
}
