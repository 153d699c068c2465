//! Whether names are still their accounts' own: the records of verified claims are looked for again.
//!
//! ```text
//! found ─────────────────────────── looked for again in a week
//! no answer ─────────────────────── the claim stays, looked for again in hours
//! gone ── since less than 3 days ── the claim stays, its account is told, looked for again in hours
//!      ├─ since 3 days ──────────┐
//!      └─ and another account ───┴─ the claim ends, and what was mapped by it is public no more
//!         proved the name since,
//!         and its record is there
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{StreamExt as _, future};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use warren_model::AccountId;
use warren_model::domain::{CLAIM_LOOKED_FOR_DAYS, CLAIM_MISSING_DAYS, Domain, DomainClaim, DomainProof, owners};
use warren_model::policy::HostName;
use warren_model::record::EventKind;
use warren_store::{Store, StoreError, TxnBuilder, TxnOutcome, Typed, Versioned, domain as records, schema};

use super::claims::{Missing, look};
use crate::error::Answer;
use crate::mutation::{News, by_server};

/// Claims that are looked at together, each another account's, and how soon after one the next is begun.
const AT_ONCE: usize = 4;
const PACE: Duration = Duration::from_millis(250);
/// When a record that was not found is looked for again.
const AGAIN: SignedDuration = SignedDuration::from_hours(6);
/// Claims of others that are looked at together because of one.
const RIVALS_AT_ONCE: usize = 8;
/// Claims that one read takes.
const CHUNK: usize = 500;

/// Looks for the records that are due, and withdraws what no proof counts for any more, for ever.
pub(crate) async fn run(store: Arc<dyn Store>, resolvers: Vec<SocketAddr>, every: Duration) {
    // Apart, so that a silent name server does not keep public what is not proved.
    tokio::join!(look_for_due(&*store, &resolvers, every), withdraw(&*store, every));
}

async fn look_for_due(store: &dyn Store, resolvers: &[SocketAddr], every: Duration) {
    if resolvers.is_empty() {
        return;
    }
    let (mut read, mut pace) = (interval_at(Instant::now() + every, every), interval(PACE));
    for timer in [&mut read, &mut pace] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let (mut turns, mut looks) = (Turns::default(), FuturesUnordered::new());
    loop {
        tokio::select! {
            _ = read.tick() => {
                let now = Timestamp::now();
                match claims(store, |claim| claim.is_due(now)).await {
                    Ok(due) => turns.renew(due.into_iter().map(|read| read.record).collect()),
                    Err(error) => tracing::warn!(%error, "it is not known which claims to names are due"),
                }
            }
            Some(account) = looks.next() => turns.end(account),
            _ = pace.tick(), if looks.len() < AT_ONCE && turns.is_anyone_next() => {
                looks.extend(turns.begin().map(|(account, host)| async move {
                    look_if_due(store, resolvers, account, &host).await;
                    account
                }));
            }
        }
    }
}

/// Withdraws what was not withdrawn with its claim, because the server ended in between, or was mapped at that moment.
async fn withdraw(store: &dyn Store, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let domains = match store.list_all(&schema::domains()).await {
            Ok((domains, _)) => domains,
            Err(error) => {
                tracing::warn!(%error, "it is not known which domains are still proved");
                continue;
            }
        };
        let proved = domains.iter().filter(|read| read.record.proof == DomainProof::Txt);
        let accounts: BTreeSet<AccountId> = proved.map(|read| read.record.account).collect();
        for account in accounts {
            if let Err(error) = withdraw_uncovered(store, account).await {
                let reason = error.problem.detail;
                tracing::warn!(%account, reason, "it is not known whether the account's domains are still proved");
            }
        }
    }
}

/// The verified claims of other accounts that speak against a claim, those to the same name first.
pub(super) async fn rivals(store: &dyn Store, claim: &DomainClaim) -> Result<Vec<Versioned<DomainClaim>>, StoreError> {
    let rivals = claims(store, |other| {
        other.account != claim.account
            && other.verified_at.is_some()
            && (owners(&other.host).contains(&claim.host) || owners(&claim.host).contains(&other.host))
    });
    let mut rivals = rivals.await?;
    rivals.sort_by_key(|read| read.record.host != claim.host);
    Ok(rivals)
}

/// Has these claims looked at again from now on.
pub(super) fn make_due(
    mut txn: TxnBuilder,
    claims: &[Versioned<DomainClaim>],
    now: Timestamp,
) -> Result<TxnBuilder, StoreError> {
    for read in claims {
        // Also one that is due already: a look at it that is under way does not count any more.
        let due = DomainClaim { recheck_at: Some(now), ..read.record.clone() };
        txn = txn.unchanged(read).put(&key(&due), &due)?;
    }
    Ok(txn)
}

/// Looks at the first of these claims, which are due, while somebody waits. The others, and those of which nothing
/// comes, stay due.
pub(super) async fn look_at_first(store: &dyn Store, resolvers: &[SocketAddr], claims: &[Versioned<DomainClaim>]) {
    let first = claims.iter().take(RIVALS_AT_ONCE).map(|read| &read.record);
    future::join_all(first.map(|claim| look_if_due(store, resolvers, claim.account, &claim.host))).await;
}

/// Looks at a claim, unless it was looked at or has ended meanwhile.
async fn look_if_due(store: &dyn Store, resolvers: &[SocketAddr], account: AccountId, host: &HostName) {
    let look = async {
        match store.read(&schema::domain_claim(account, host)).await? {
            Some(read) if read.record.is_due(Timestamp::now()) => recheck(store, resolvers, read).await,
            _ => Ok(()),
        }
    };
    if let Err(error) = look.await {
        tracing::warn!(%host, %account, reason = error.problem.detail, "a claim to a name was not looked at");
    }
}

/// Looks for the record of a verified claim, and notes what comes of it. One that changes meanwhile is left as it is.
pub(super) async fn recheck(store: &dyn Store, resolvers: &[SocketAddr], read: Versioned<DomainClaim>) -> Answer<()> {
    let claim = &read.record;
    let txn = TxnBuilder::new().unchanged(&read);
    if claim.dropped && !is_needed(store, claim).await? {
        txn.delete(&key(claim)).commit(store).await?;
        return Ok(());
    }
    let found = look(resolvers, claim).await;
    let is_gone = found.as_ref().is_err_and(|missing| missing.certain);
    let contested = is_gone && is_contested(store, resolvers, claim).await?;
    let now = Timestamp::now();
    let (account, host) = (claim.account, &claim.host);
    match judged(claim, &found, contested, now) {
        Verdict::Stays(claim) => {
            txn.put(&key(&claim), &claim)?.commit(store).await?;
        }
        Verdict::Missing(claim) => {
            let message = format!(
                "the TXT record that proves {host} is gone: unless {} says {} again, nothing that was mapped by it is \
                 public {CLAIM_MISSING_DAYS} days from now",
                claim.record_name(),
                claim.record_value()
            );
            let txn = txn.put(&key(&claim), &claim)?;
            let news = news(EventKind::DomainProofMissing, account, message);
            by_server(txn, account, now, "domain.miss", host, &json!({ "host": host }), [news])?.commit(store).await?;
        }
        Verdict::Ends(pending) => {
            let txn = if claim.dropped { txn.delete(&key(claim)) } else { txn.put(&key(claim), &pending)? };
            let message = format!("{host} has to be proved again: the TXT record that did is gone");
            let news = news(EventKind::DomainProofLost, account, message);
            let txn = by_server(txn, account, now, "domain.lapse", host, &json!({ "host": host }), [news])?;
            if let TxnOutcome::Committed(_) = txn.commit(store).await? {
                tracing::info!(%host, %account, contested, "a claim has ended: its record is gone");
                withdraw_uncovered(store, account).await?;
            }
        }
    }
    Ok(())
}

/// Whether a name of the account's is mapped by this claim.
pub(super) async fn is_needed(store: &dyn Store, claim: &DomainClaim) -> Result<bool, StoreError> {
    let domains = proved_domains(store, claim.account).await?;
    Ok(domains.iter().any(|read| claim.covers(&read.record.host)))
}

/// What a look at a claim comes to.
#[derive(Debug, PartialEq)]
enum Verdict {
    Stays(DomainClaim),
    /// The same, for the first time without its record.
    Missing(DomainClaim),
    /// It is to be proved again.
    Ends(DomainClaim),
}

fn judged(claim: &DomainClaim, found: &Result<(), Missing>, contested: bool, now: Timestamp) -> Verdict {
    let at =
        |claim: &DomainClaim, again: SignedDuration| DomainClaim { recheck_at: Some(now + again), ..claim.clone() };
    match found {
        Ok(()) => {
            let week = SignedDuration::from_hours(24 * CLAIM_LOOKED_FOR_DAYS);
            Verdict::Stays(DomainClaim { missing_since: None, ..at(claim, week) })
        }
        // That nobody answers says nothing about whose the name is.
        Err(missing) if !missing.certain => Verdict::Stays(at(claim, AGAIN)),
        Err(_) if contested || claim.ends_at().is_some_and(|end| end <= now) => {
            Verdict::Ends(DomainClaim { verified_at: None, recheck_at: None, missing_since: None, ..claim.clone() })
        }
        Err(_) if claim.missing_since.is_some() => Verdict::Stays(at(claim, AGAIN)),
        Err(_) => Verdict::Missing(DomainClaim { missing_since: Some(now), ..at(claim, AGAIN) }),
    }
}

/// Whether another account has proved the name, or one above it, after this one did, and its record is there.
async fn is_contested(store: &dyn Store, resolvers: &[SocketAddr], claim: &DomainClaim) -> Answer<bool> {
    let owners = owners(&claim.host);
    let newer = |other: &DomainClaim| {
        other.account != claim.account
            && other.verified_at > claim.verified_at
            && other.missing_since.is_none()
            && !other.dropped
            && owners.contains(&other.host)
    };
    let mut newer = claims(store, newer).await?;
    newer.sort_by_key(|read| Reverse(read.record.verified_at));
    newer.truncate(RIVALS_AT_ONCE);
    // What was true when it was proved need not be now: both records may have gone together.
    let looks = future::join_all(newer.iter().map(|read| look(resolvers, &read.record))).await;
    Ok(looks.iter().any(Result::is_ok))
}

/// Withdraws what an account has public by proofs that do not count any more.
async fn withdraw_uncovered(store: &dyn Store, account: AccountId) -> Answer<()> {
    'domains: for read in proved_domains(store, account).await? {
        let Domain { id, host, network, machine, port, .. } = &read.record;
        let mut txn = TxnBuilder::new();
        for owner in owners(host) {
            let key = schema::domain_claim(account, &owner);
            let claim = store.read(&key).await?;
            if claim.as_ref().is_some_and(|claim| claim.record.covers(host)) {
                continue 'domains;
            }
            txn = txn.same(&key, claim.as_ref());
        }
        let now = Timestamp::now();
        let message = format!(
            "{host} leads nowhere any more: its account has to prove again that it is its own, and port {port} is not \
             public under it"
        );
        let news = News {
            network: Some(*network),
            machine: Some(*machine),
            ..news(EventKind::DomainWithdrawn, account, message)
        };
        let told = json!({ "host": host, "machine": machine, "port": port });
        let txn = records::remove(store, txn, &read).await?;
        let txn = by_server(txn, account, now, "domain.unmap", id, &told, [news])?;
        // What has changed meanwhile is looked at again with the next pass.
        if let TxnOutcome::Committed(_) = txn.commit(store).await? {
            tracing::info!(%host, %account, "it is public no more: its account has to prove it again");
        }
    }
    Ok(())
}

/// What an account has mapped because it proved the names.
async fn proved_domains(store: &dyn Store, account: AccountId) -> Result<Vec<Versioned<Domain>>, StoreError> {
    let (marks, _) = store.list_all(&schema::domains_of(account)).await?;
    let mut domains = Vec::new();
    for host in marks.iter().filter_map(|mark| schema::host_in(&mark.key)) {
        let read = store.read(&schema::domain(&host)).await?;
        domains.extend(read.filter(|read| read.record.proof == DomainProof::Txt && read.record.account == account));
    }
    Ok(domains)
}

/// The claims of all accounts of which this is so.
async fn claims(
    store: &dyn Store,
    wanted: impl Fn(&DomainClaim) -> bool,
) -> Result<Vec<Versioned<DomainClaim>>, StoreError> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let (page, more) = store.list_page(&schema::all_domain_claims(), after, CHUNK).await?;
        after = page.last().map(|last| last.key.clone());
        found.extend(page.into_iter().filter(|read| wanted(&read.record)));
        if !more {
            return Ok(found);
        }
    }
}

/// Whose claims are looked at next: one of each account's in turn, so that nobody waits for all of another's.
#[derive(Debug, Default)]
struct Turns {
    /// Nobody is here twice, or without a name.
    waiting: VecDeque<(AccountId, VecDeque<HostName>)>,
    under_way: BTreeSet<AccountId>,
}

impl Turns {
    /// Takes what is due now in place of what was. Accounts that wait keep their places.
    fn renew(&mut self, mut due: Vec<DomainClaim>) {
        due.sort_by_key(|claim| claim.recheck_at.or(claim.verified_at));
        let mut names = BTreeMap::<AccountId, VecDeque<HostName>>::new();
        for claim in due {
            names.entry(claim.account).or_default().push_back(claim.host);
        }
        let before = std::mem::take(&mut self.waiting);
        let kept = before.into_iter().filter_map(|(account, _)| names.remove_entry(&account)).collect();
        self.waiting = kept;
        self.waiting.extend(names);
    }

    fn next(&self) -> Option<usize> {
        self.waiting.iter().position(|(account, _)| !self.under_way.contains(account))
    }

    fn is_anyone_next(&self) -> bool {
        self.next().is_some()
    }

    /// The claim that is looked at next. Its account has no other turn until this one has ended.
    fn begin(&mut self) -> Option<(AccountId, HostName)> {
        let (account, mut names) = self.waiting.remove(self.next()?)?;
        let host = names.pop_front()?;
        if !names.is_empty() {
            self.waiting.push_back((account, names));
        }
        self.under_way.insert(account);
        Some((account, host))
    }

    fn end(&mut self, account: AccountId) {
        self.under_way.remove(&account);
    }
}

fn key(claim: &DomainClaim) -> schema::Key<DomainClaim> {
    schema::domain_claim(claim.account, &claim.host)
}

fn news(kind: EventKind, account: AccountId, message: String) -> News {
    News { kind, account, network: None, machine: None, message }
}

#[cfg(test)]
mod tests {
    use ulid::Ulid;

    use super::*;

    const HOUR: i64 = 3600;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(2_000_000_000 + second).unwrap()
    }

    fn claim() -> DomainClaim {
        DomainClaim {
            account: AccountId::from_ulid(Ulid::from_parts(1, 1)),
            host: "example.com".parse().unwrap(),
            code: "c".to_owned(),
            freestyle: false,
            created_at: at(-9),
            verified_at: Some(at(0)),
            recheck_at: None,
            missing_since: None,
            dropped: false,
        }
    }

    fn missing(certain: bool) -> Result<(), Missing> {
        Err(Missing { detail: "why".to_owned(), certain })
    }

    fn due(account: u128, host: &str, since: i64) -> DomainClaim {
        let account = AccountId::from_ulid(Ulid::from_parts(1, account));
        DomainClaim { account, host: host.parse().unwrap(), recheck_at: Some(at(since)), ..claim() }
    }

    #[test]
    fn accounts_take_turns_with_one_look_each() {
        let mut turns = Turns::default();
        turns.renew(vec![due(1, "b.com", 2), due(1, "a.com", 3), due(1, "c.com", 1), due(2, "d.com", 9)]);
        let mut begun = Vec::new();
        let mut begin = |turns: &mut Turns| {
            let (account, host) = turns.begin()?;
            begun.push(host.to_string());
            Some(account)
        };
        let first = begin(&mut turns).unwrap();
        let second = begin(&mut turns).unwrap();
        assert!(!turns.is_anyone_next() && begin(&mut turns).is_none(), "both have a look under way");
        turns.end(second);
        assert!(begin(&mut turns).is_none(), "it had one only");

        // One that comes later is next after those that wait, whatever its id is.
        turns.renew(vec![due(0, "e.com", 20), due(1, "a.com", 3), due(1, "b.com", 2)]);
        turns.end(first);
        let third = begin(&mut turns).unwrap();
        begin(&mut turns).unwrap();
        turns.end(third);
        begin(&mut turns).unwrap();
        turns.end(third);
        assert!(!turns.is_anyone_next());
        assert_eq!(begun, ["c.com", "d.com", "b.com", "e.com", "a.com"]);
    }

    #[test]
    fn a_claim_is_looked_at_every_week_while_its_record_is_there() {
        let first = claim();
        assert!(!first.is_due(at(7 * 24 * HOUR - 1)) && first.is_due(at(7 * 24 * HOUR)));
        assert!(!DomainClaim { verified_at: None, ..claim() }.is_due(at(365 * 24 * HOUR)), "it is not proved yet");
        let was_missing = DomainClaim { missing_since: Some(at(5)), ..claim() };
        let Verdict::Stays(found) = judged(&was_missing, &Ok(()), true, at(9)) else { panic!("it is there") };
        assert_eq!((found.missing_since, found.recheck_at), (None, Some(at(9 + 7 * 24 * HOUR))));
    }

    #[test]
    fn a_claim_ends_three_days_after_its_record_was_first_missed() {
        let Verdict::Missing(first) = judged(&claim(), &missing(true), false, at(0)) else { panic!("it counts") };
        assert_eq!((first.missing_since, first.verified_at), (Some(at(0)), Some(at(0))));
        assert_eq!(first.recheck_at, Some(at(6 * HOUR)));
        let almost = judged(&first, &missing(true), false, at(72 * HOUR - 1));
        assert!(matches!(almost, Verdict::Stays(still) if still.missing_since == Some(at(0))));
        let Verdict::Ends(over) = judged(&first, &missing(true), false, at(72 * HOUR)) else { panic!("it is over") };
        assert_eq!(over, DomainClaim { verified_at: None, ..claim() });
    }

    #[test]
    fn a_claim_does_not_end_because_nobody_answers() {
        let long_ago = DomainClaim { missing_since: Some(at(0)), ..claim() };
        let Verdict::Stays(still) = judged(&long_ago, &missing(false), true, at(999 * HOUR)) else {
            panic!("it stays")
        };
        assert_eq!(still, DomainClaim { recheck_at: Some(at(1005 * HOUR)), ..long_ago });
    }

    #[test]
    fn a_claim_without_its_record_ends_at_once_when_another_account_proved_the_name() {
        assert!(matches!(judged(&claim(), &missing(true), true, at(0)), Verdict::Ends(_)));
        assert!(matches!(judged(&claim(), &Ok(()), true, at(0)), Verdict::Stays(_)), "both have a record");
    }
}
