//! Whether names are still their accounts' own: the records of verified claims are looked for again.
//!
//! ```text
//! found ─────────────────────────── looked for again in a week
//! no answer ─────────────────────── the claim stays, looked for again in hours
//! gone ── since less than 3 days ── the claim stays, its account is told, looked for again in hours
//!      ├─ since 3 days ──────────┐
//!      └─ and another account ───┴─ the claim ends, and what was mapped by it is public no more
//!         proved the name since
//! ```

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, future, stream};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use warren_model::AccountId;
use warren_model::domain::{CLAIM_LOOKED_FOR_DAYS, CLAIM_MISSING_DAYS, Domain, DomainClaim, DomainProof, owners};
use warren_model::record::EventKind;
use warren_store::{Store, StoreError, TxnBuilder, TxnOutcome, Typed, Versioned, domain as records, schema};

use super::claims::{Missing, look};
use crate::error::Answer;
use crate::mutation::{News, by_server};

/// Claims that are looked at together, and how soon after one the next is begun.
const AT_ONCE: usize = 4;
const PACE: Duration = Duration::from_millis(250);
/// When a record that was not found is looked for again.
const AGAIN: SignedDuration = SignedDuration::from_hours(6);
/// Older claims that are looked at while somebody waits; others follow with the next pass.
const RIVALS_AT_ONCE: usize = 8;
/// Claims that one read takes.
const CHUNK: usize = 500;

/// Looks for the records that are due, for ever.
pub(crate) async fn run(store: Arc<dyn Store>, resolvers: Vec<SocketAddr>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = pass(&*store, &resolvers).await {
            tracing::warn!(reason = error.problem.detail, "claims to names were not all looked at");
        }
    }
}

async fn pass(store: &dyn Store, resolvers: &[SocketAddr]) -> Answer<()> {
    let now = Timestamp::now();
    if !resolvers.is_empty() {
        let due = claims(store, |claim| claim.is_due(now)).await?;
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pace = Mutex::new(pace);
        let looks = due.into_iter().map(async |read| {
            pace.lock().await.tick().await;
            recheck(store, resolvers, read).await
        });
        let mut looks = stream::iter(looks).buffer_unordered(AT_ONCE);
        while let Some(outcome) = looks.next().await {
            if let Err(error) = outcome {
                // The others are looked at all the same, and this one with the next pass.
                tracing::warn!(reason = error.problem.detail, "a claim to a name was not looked at");
            }
        }
    }
    // What was not withdrawn with its claim, because the server ended in between, or was mapped at that moment.
    let (domains, _) = store.list_all(&schema::domains()).await?;
    let proved = domains.iter().filter(|read| read.record.proof == DomainProof::Txt);
    let accounts: BTreeSet<AccountId> = proved.map(|read| read.record.account).collect();
    for account in accounts {
        withdraw_uncovered(store, account).await?;
    }
    Ok(())
}

/// Another account has proved this name just now: the claims of others that it speaks against are looked at at once.
pub(super) async fn contest(store: &dyn Store, resolvers: &[SocketAddr], proved: &DomainClaim) -> Answer<()> {
    let rivals = claims(store, |claim| {
        claim.account != proved.account
            && claim.verified_at.is_some()
            && (owners(&claim.host).contains(&proved.host) || owners(&proved.host).contains(&claim.host))
    });
    let mut rivals = rivals.await?;
    rivals.sort_by_key(|read| read.record.host != proved.host);
    for read in rivals.split_off(rivals.len().min(RIVALS_AT_ONCE)) {
        let soon = DomainClaim { recheck_at: Some(Timestamp::now()), ..read.record.clone() };
        // One that has changed meanwhile was looked at, or is over.
        TxnBuilder::new().unchanged(&read).put(&key(&soon), &soon)?.commit(store).await?;
    }
    future::try_join_all(rivals.into_iter().map(|read| recheck(store, resolvers, read))).await?;
    Ok(())
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
    let contested = is_gone && is_contested(store, claim).await?;
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

/// Whether another account has proved the name, or one above it, after this one did.
async fn is_contested(store: &dyn Store, claim: &DomainClaim) -> Answer<bool> {
    let owners = owners(&claim.host);
    let newer = |other: &DomainClaim| {
        other.account != claim.account && other.verified_at > claim.verified_at && owners.contains(&other.host)
    };
    Ok(!claims(store, newer).await?.is_empty())
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
        let txn = by_server(records::remove(txn, &read), account, now, "domain.unmap", id, &told, [news])?;
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
