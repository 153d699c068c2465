//! What was proved about names has to stay true.

mod common;

use std::time::{Duration, Instant};

use common::dns::{Dns, Txt};
use common::domains::{claim, machine, map, prove};
use common::{Lab, lab_with};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use warren_model::AccountId;
use warren_model::domain::DomainClaim;
use warren_store::{Op, Store, Txn, TxnBuilder, TxnOutcome, Typed, schema};

const RECORD: &str = "_warren.example.com";

/// A server that looks all the time which claims are due, with `example.com` proved and `shop.example.com` mapped by the
/// root key's account.
async fn proved() -> (Lab, Dns) {
    let dns = Dns::start().await;
    let lab = lab_with(|config| {
        config.resolvers = vec![dns.address];
        config.recheck_claims_every = Duration::from_millis(50);
    })
    .await;
    lab.publisher.listen();
    machine(&lab, &lab.root, "web").await;
    prove(&lab, &dns, &lab.root, "example.com").await;
    map(&lab, &lab.root, "shop.example.com").await.expect(201);
    (lab, dns)
}

async fn stored(lab: &Lab) -> Vec<DomainClaim> {
    let (claims, _) = lab.store.list_all(&schema::all_domain_claims()).await.unwrap();
    claims.into_iter().map(|read| read.record).collect()
}

/// Makes the only claim due, with its record missed since so many hours.
async fn due(lab: &Lab, missing: Option<i64>) {
    let before = stored(lab).await.remove(0);
    let ago = |hours| Timestamp::now() - SignedDuration::from_hours(hours);
    let claim = DomainClaim { recheck_at: Some(ago(1)), missing_since: missing.map(ago), ..before };
    put(lab, &[claim]).await;
}

/// Writes claims, all at once.
async fn put(lab: &Lab, claims: &[DomainClaim]) {
    let put = |txn: TxnBuilder, claim: &DomainClaim| {
        txn.put(&schema::domain_claim(claim.account, &claim.host), claim).unwrap()
    };
    claims.iter().fold(TxnBuilder::new(), put).commit(&*lab.store).await.unwrap();
}

/// The claim of an account to a name.
async fn of(lab: &Lab, host: &str, is_account: impl Fn(AccountId) -> bool) -> DomainClaim {
    let wanted = |claim: &DomainClaim| claim.host.as_str() == host && is_account(claim.account);
    stored(lab).await.into_iter().find(wanted).unwrap()
}

/// Waits until the claim was looked at.
async fn looked(lab: &Lab) {
    until("it was not looked at", async || {
        stored(lab).await.iter().all(|claim| claim.recheck_at.is_none_or(|at| at > Timestamp::now()))
    })
    .await;
}

async fn until(reason: &str, done: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !done().await {
        assert!(started.elapsed() < Duration::from_secs(30), "{reason}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn is_mapped(lab: &Lab) -> bool {
    lab.get(&lab.root, "/v1/domains/shop.example.com").await.status == 200
}

async fn told(lab: &Lab, kind: &str) -> usize {
    let page = lab.get(&lab.root, "/v1/events?follow=false&limit=1000").await.expect(200);
    page.body["items"].as_array().unwrap().iter().filter(|event| event["kind"] == kind).count()
}

async fn audited(lab: &Lab, action: &str) -> Vec<Value> {
    let entries = lab.stored().await.into_iter().filter(|(key, _)| key.starts_with("audit/"));
    let entries = entries.map(|(_, value)| serde_json::from_slice::<Value>(&value).unwrap());
    entries.filter(|entry| entry["action"] == action).collect()
}

#[tokio::test]
async fn a_name_whose_record_is_gone_for_three_days_is_public_no_more() {
    let (lab, dns) = proved().await;
    map(&lab, &lab.root, "free.preview.example").await.expect(201);
    dns.set(RECORD, Txt::Says(vec!["v=spf1 -all".into()]));
    due(&lab, Some(71)).await;
    looked(&lab).await;
    assert!(is_mapped(&lab).await, "three days are not over");

    due(&lab, Some(72)).await;
    until("it is still mapped", async || !is_mapped(&lab).await).await;
    let listed = lab.get(&lab.root, "/v1/domain-claims").await.expect(200);
    assert_eq!((listed.at("/items/0/state"), listed.at("/items/0/verified_at")), ("pending".into(), "null".into()));
    map(&lab, &lab.root, "other.example.com").await.expect(403).refused("domain_not_verified");
    lab.get(&lab.root, "/v1/domains/free.preview.example").await.expect(200);
    assert_eq!((told(&lab, "domain_proof_lost").await, told(&lab, "domain_withdrawn").await), (1, 1));
    let (lapsed, unmapped) = (audited(&lab, "domain.lapse").await, audited(&lab, "domain.unmap").await);
    assert_eq!((lapsed.len(), unmapped.len()), (1, 1));
    assert_eq!(
        (&lapsed[0]["target"], &unmapped[0]["request"]["host"]),
        (&"example.com".into(), &"shop.example.com".into())
    );
    assert!(lapsed[0].get("key").is_none() && unmapped[0]["request"].get("auth").is_none());
}

#[tokio::test]
async fn a_record_that_is_missed_is_told_and_may_come_back() {
    let (lab, dns) = proved().await;
    let value = claim(&lab, &lab.root, "example.com").await.expect(200).at("/record/value");
    dns.set(RECORD, Txt::Nothing);
    due(&lab, None).await;
    looked(&lab).await;
    assert_eq!(told(&lab, "domain_proof_missing").await, 1);
    let shown = lab.get(&lab.root, "/v1/domain-claims").await.expect(200);
    assert_eq!(shown.at("/items/0/state"), "verified");
    assert!(shown.at("/items/0/detail").contains("the claim ends at"), "{}", shown.text);
    assert!(is_mapped(&lab).await);
    dns.says(RECORD, &value);
    let again = claim(&lab, &lab.root, "example.com").await.expect(200);
    assert!(again.at("/state") == "verified" && again.body.get("detail").is_none(), "{}", again.text);
}

#[tokio::test]
async fn a_name_stays_public_while_dns_does_not_answer() {
    let (lab, dns) = proved().await;
    for answer in [Txt::Fails, Txt::Silent] {
        dns.set(RECORD, answer);
        due(&lab, Some(999)).await;
        looked(&lab).await;
        assert!(is_mapped(&lab).await);
        assert_eq!(claim(&lab, &lab.root, "example.com").await.expect(200).at("/state"), "verified");
    }
    assert_eq!(told(&lab, "domain_withdrawn").await, 0);
}

#[tokio::test]
async fn a_domain_that_changed_hands_is_the_new_owners_at_once() {
    let (lab, dns) = proved().await;
    let other = lab.account("other").await;
    machine(&lab, &other, "web").await;
    let claimed = claim(&lab, &other, "example.com").await.expect(201);
    map(&lab, &other, "shop.example.com").await.expect(403).refused("domain_not_verified");
    dns.says(RECORD, &claimed.at("/record/value"));
    assert_eq!(claim(&lab, &other, "example.com").await.expect(200).at("/state"), "verified");
    assert!(!is_mapped(&lab).await);
    assert_eq!(claim(&lab, &lab.root, "example.com").await.expect(200).at("/state"), "pending");
    map(&lab, &other, "shop.example.com").await.expect(201);
    assert_eq!(audited(&lab, "domain.lapse").await.len(), 1);
}

#[tokio::test]
async fn who_proves_a_name_below_anothers_takes_nothing_of_it_at_once() {
    let (lab, dns) = proved().await;
    let other = lab.account("other").await;
    dns.set(RECORD, Txt::Nothing);
    prove(&lab, &dns, &other, "a.example.com").await;
    assert!(is_mapped(&lab).await);
    assert_eq!(told(&lab, "domain_proof_missing").await, 1);
    let own = stored(&lab).await.into_iter().find(|claim| claim.host.as_str() == "example.com").unwrap();
    assert!(own.verified_at.is_some() && own.missing_since.is_some());
}

#[tokio::test]
async fn who_proved_a_name_once_and_has_no_record_ends_nobodys_claim_at_once() {
    let (lab, dns) = proved().await;
    let owner = stored(&lab).await.remove(0);
    let contractor = lab.account("contractor").await;
    let value = claim(&lab, &contractor, "example.com").await.expect(201).at("/record/value");
    dns.set(RECORD, Txt::Says(vec![owner.record_value(), value.clone()]));
    claim(&lab, &contractor, "example.com").await.expect(200);
    let proved = of(&lab, "example.com", |account| account != owner.account).await;
    assert!(proved.verified_at > owner.verified_at && proved.missing_since.is_none());

    let hour = SignedDuration::from_hours(1);
    let later = DomainClaim { recheck_at: Some(Timestamp::now() + hour), ..proved };
    let theirs = [
        // It is known to be gone, and DNS has it again.
        (DomainClaim { missing_since: Some(Timestamp::now() - hour), ..later.clone() }, Txt::Says(vec![value.clone()])),
        (DomainClaim { dropped: true, ..later.clone() }, Txt::Says(vec![value.clone()])),
        // It went together with the owner's, and was not looked for since.
        (later.clone(), Txt::Nothing),
    ];
    for (theirs, answer) in theirs {
        dns.set(RECORD, answer);
        let mine = DomainClaim { recheck_at: Some(Timestamp::now() - hour), ..owner.clone() };
        put(&lab, &[mine, theirs.clone()]).await;
        looked(&lab).await;
        let mine = of(&lab, "example.com", |account| account == owner.account).await;
        assert!(mine.verified_at.is_some() && mine.missing_since.is_some(), "{theirs:?}");
        assert!(is_mapped(&lab).await, "{theirs:?}");
    }
    dns.says(RECORD, &value);
    put(&lab, &[DomainClaim { recheck_at: Some(Timestamp::now() - hour), ..owner.clone() }, later]).await;
    until("it is still mapped", async || !is_mapped(&lab).await).await;
}

#[tokio::test]
async fn older_claims_are_looked_at_again_though_the_request_that_contested_them_ended() {
    let (lab, dns) = common::domains::provable().await;
    prove(&lab, &dns, &lab.root, "shop.example.com").await;
    let older = stored(&lab).await.remove(0);
    let other = lab.account("other").await;
    let value = claim(&lab, &other, "example.com").await.expect(201).at("/record/value");
    dns.says(RECORD, &value);
    dns.set("_warren.shop.example.com", Txt::Silent);
    let verified = async {
        until("it was not verified", async || {
            of(&lab, "example.com", |account| account != older.account).await.verified_at.is_some()
        })
        .await;
    };
    tokio::select! {
        answered = claim(&lab, &other, "example.com") => panic!("it did not look: {}", answered.text),
        () = verified => {}
    }
    let older = of(&lab, "shop.example.com", |account| account == older.account).await;
    assert!(older.recheck_at.is_some_and(|at| at <= Timestamp::now()), "{older:?}");
}

#[tokio::test]
async fn a_name_is_verified_also_when_looking_at_older_claims_fails() {
    let (lab, dns) = common::domains::provable().await;
    prove(&lab, &dns, &lab.root, "example.com").await;
    map(&lab, &lab.root, "shop.example.com").await.expect(201);
    let older = stored(&lab).await.remove(0).account;
    let other = lab.account("other").await;
    let value = claim(&lab, &other, "example.com").await.expect(201).at("/record/value");
    dns.says(RECORD, &value);
    let garbage = Op::Put { key: "domain/shop.example.com".to_owned(), value: b"{".to_vec(), lease: None };
    let written = lab.store.txn(Txn { compares: Vec::new(), ops: vec![garbage] }).await.unwrap();
    assert!(matches!(written, TxnOutcome::Committed(_)));
    assert_eq!(claim(&lab, &other, "example.com").await.expect(200).at("/state"), "verified");
    assert!(of(&lab, "example.com", |account| account == older).await.verified_at.is_none(), "it was looked at");
}

#[tokio::test]
async fn names_of_one_account_with_a_silent_name_server_hold_up_no_other_account() {
    let (lab, dns) = proved().await;
    let first = stored(&lab).await.remove(0);
    let other = lab.account("other").await;
    prove(&lab, &dns, &other, "other.example").await;
    let others = of(&lab, "other.example", |_| true).await;
    let past = Some(Timestamp::now() - SignedDuration::from_hours(1));
    let silent = (0..12).map(|n| {
        let host = format!("n{n}.example");
        dns.set(&format!("_warren.{host}"), Txt::Silent);
        DomainClaim { host: host.parse().unwrap(), recheck_at: past, ..first.clone() }
    });
    put(&lab, &silent.collect::<Vec<_>>()).await;
    // The looks at these are under way, and each takes 8 seconds.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    dns.set("_warren.other.example", Txt::Nothing);
    put(&lab, &[DomainClaim { recheck_at: past, ..others.clone() }]).await;
    TxnBuilder::new().delete(&schema::domain_claim(first.account, &first.host)).commit(&*lab.store).await.unwrap();
    let done = async || {
        let is_missed = of(&lab, "other.example", |_| true).await.missing_since.is_some();
        is_missed && !is_mapped(&lab).await
    };
    let limit = Duration::from_secs(5);
    let started = Instant::now();
    until("others waited", async || done().await || started.elapsed() > limit).await;
    assert!(done().await, "others waited for the looks at one account's claims");
}

#[tokio::test]
async fn what_a_dropped_claim_proved_is_still_looked_for() {
    let (lab, dns) = proved().await;
    lab.delete(&lab.root, "/v1/domain-claims/example.com").await.expect(204);
    assert_eq!(lab.get(&lab.root, "/v1/domain-claims").await.expect(200).body["items"].as_array().unwrap().len(), 0);
    assert!(is_mapped(&lab).await);
    dns.set(RECORD, Txt::Nothing);
    due(&lab, Some(100)).await;
    until("it is still mapped", async || !is_mapped(&lab).await).await;
    assert!(stored(&lab).await.is_empty());
}

#[tokio::test]
async fn one_account_has_eight_looks_under_way_and_others_are_not_kept_out() {
    let (lab, dns) = common::domains::provable().await;
    let other = lab.account("other").await;
    claim(&lab, &other, "quick.example").await.expect(201);
    let hosts: Vec<String> = (0..12).map(|n| format!("n{n}.example")).collect();
    for host in &hosts {
        claim(&lab, &lab.root, host).await.expect(201);
        dns.set(&format!("_warren.{host}"), Txt::Silent);
    }
    let all = futures::future::join_all(hosts.iter().map(|host| claim(&lab, &lab.root, host)));
    let quick = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        claim(&lab, &other, "quick.example").await.expect(200)
    };
    let (all, quick) = futures::join!(all, quick);
    assert!(quick.at("/detail").contains("NXDOMAIN"), "{}", quick.text);
    let busy = all.iter().filter(|answered| answered.status == 503 && answered.code() == "server_busy").count();
    assert_eq!((busy, all.iter().filter(|answered| answered.status == 200).count()), (4, 8));
    // The places are free again.
    dns.set("_warren.n0.example", Txt::Nothing);
    claim(&lab, &lab.root, "n0.example").await.expect(200);
}
