//! What accounts prove about names, and that it takes nothing from others.

mod common;

use common::dns::Txt;
use common::domains::{claim, machine, map, provable, prove, public};
use common::request;
use serde_json::json;
use warren_model::domain::DomainClaim;
use warren_store::{TxnBuilder, Typed, schema};

#[tokio::test]
async fn a_name_is_proved_with_a_record_and_covers_those_below_it() {
    let (lab, dns) = provable().await;
    map(&lab, &lab.root, "a.b.example.com").await.expect(403).refused("domain_not_verified");
    let claimed = claim(&lab, &lab.root, "B.example.com").await.expect(201);
    assert_eq!((claimed.at("/state"), claimed.at("/host")), ("pending".into(), "b.example.com".into()));
    assert_eq!(claimed.at("/record/name"), "_warren.b.example.com");
    let value = claimed.at("/record/value");
    let code = value.strip_prefix("warren-verification=").unwrap();
    assert!(code.len() == 32 && code.bytes().all(|byte| byte.is_ascii_hexdigit()), "{code}");
    assert!(claimed.body.get("detail").is_none());

    // What is wrong is told apart, and the code stays.
    let name = "_warren.b.example.com";
    let wrong = Txt::Says(vec!["v=spf1 -all".into(), value.replace('=', "")]);
    for (answer, said) in [
        (None, "NXDOMAIN"),
        (Some(Txt::Nothing), "has no TXT record"),
        (Some(Txt::Fails), "SERVFAIL"),
        (Some(wrong), "2 TXT record(s), and none says"),
        (Some(Txt::Says(vec![format!("{value}0")])), "none says"),
    ] {
        if let Some(answer) = answer {
            dns.set(name, answer);
        }
        let looked = claim(&lab, &lab.root, "b.example.com").await.expect(200);
        assert_eq!((looked.at("/state"), looked.at("/record/value")), ("pending".into(), value.clone()));
        assert!(looked.at("/detail").contains(said), "{said}: {}", looked.text);
        map(&lab, &lab.root, "b.example.com").await.expect(403).refused("domain_not_verified");
    }
    // Among others, and in an answer that takes TCP.
    dns.set(name, Txt::Says(vec!["x".repeat(600), value.clone()]));
    let verified = claim(&lab, &lab.root, "b.example.com").await.expect(200);
    assert_eq!(verified.at("/state"), "verified");
    verified.at("/verified_at").parse::<jiff::Timestamp>().unwrap();

    // It is not looked for again while somebody waits.
    dns.set(name, Txt::Fails);
    assert_eq!(claim(&lab, &lab.root, "b.example.com").await.expect(200).body, verified.body);
    assert_eq!(map(&lab, &lab.root, "a.b.example.com").await.expect(201).at("/proof"), "txt");
    map(&lab, &lab.root, "b.example.com").await.expect(201);
    for not in ["example.com", "c.example.com", "ab.example.com"] {
        map(&lab, &lab.root, not).await.expect(403).refused("domain_not_verified");
    }
    let listed = lab.get(&lab.root, "/v1/domain-claims").await.expect(200);
    assert_eq!(listed.body["items"], json!([verified.body]));

    // Without the claim nothing more can be mapped, and what is mapped stays.
    lab.delete(&lab.root, "/v1/domain-claims/b.example.com").await.expect(204);
    lab.delete(&lab.root, "/v1/domain-claims/b.example.com").await.expect(404).refused("not_found");
    map(&lab, &lab.root, "c.b.example.com").await.expect(403).refused("domain_not_verified");
    lab.get(&lab.root, "/v1/domains/b.example.com").await.expect(200);
}

#[tokio::test]
async fn nobody_proves_what_is_above_a_public_suffix_for_those_below_it() {
    let (lab, dns) = provable().await;
    // Names of customers are below `s3.amazonaws.com`, which is a public suffix, and not below `amazonaws.com` alone.
    prove(&lab, &dns, &lab.root, "amazonaws.com").await;
    map(&lab, &lab.root, "www.amazonaws.com").await.expect(201);
    map(&lab, &lab.root, "bucket.s3.amazonaws.com").await.expect(403).refused("domain_not_verified");
}

#[tokio::test]
async fn resolvers_that_are_silent_or_missing_are_told_apart() {
    let (lab, dns) = provable().await;
    claim(&lab, &lab.root, "example.com").await.expect(201);
    dns.set("_warren.example.com", Txt::Silent);
    let started = std::time::Instant::now();
    let looked = claim(&lab, &lab.root, "example.com").await.expect(200);
    assert!(looked.at("/detail").contains("in time"), "{}", looked.text);
    // The look ends by itself after 8 s.
    assert!(started.elapsed() < std::time::Duration::from_secs(30), "{:?}", started.elapsed());

    let without = common::lab().await;
    claim(&without, &without.root, "example.com").await.expect(201);
    let looked = claim(&without, &without.root, "example.com").await.expect(200);
    assert!(looked.at("/detail").contains("--resolver"), "{}", looked.text);
}

#[tokio::test]
async fn what_one_account_proved_is_nothing_to_another_and_takes_nothing_over() {
    let (lab, dns) = provable().await;
    let other = lab.account("other").await;
    machine(&lab, &other, "web").await;
    prove(&lab, &dns, &lab.root, "example.com").await;
    let mine = map(&lab, &lab.root, "shop.example.com").await.expect(201);
    let own = claim(&lab, &lab.root, "example.com").await.expect(200).at("/record/value");

    // The other's code is another, and the record that is there says the first one.
    let claimed = claim(&lab, &other, "example.com").await.expect(201);
    assert_eq!(claim(&lab, &other, "example.com").await.expect(200).at("/state"), "pending");
    map(&lab, &other, "shop.example.com").await.expect(403).refused("domain_not_verified");
    assert_eq!(lab.get(&other, "/v1/domain-claims").await.expect(200).body["items"].as_array().unwrap().len(), 1);

    // With both proofs in DNS the name stays where it was mapped first.
    dns.set("_warren.example.com", Txt::Says(vec![own, claimed.at("/record/value")]));
    assert_eq!(claim(&lab, &other, "example.com").await.expect(200).at("/state"), "verified");
    let taken = map(&lab, &other, "shop.example.com").await.expect(409).refused("domain_taken");
    for hidden in [mine.at("/id"), mine.at("/machine/id"), mine.at("/created_by")] {
        assert!(!taken.text.contains(&hidden), "{}", taken.text);
    }
    assert_eq!(lab.get(&lab.root, "/v1/domains/shop.example.com").await.expect(200).body, mine.body);
    map(&lab, &other, "other.example.com").await.expect(201);
}

#[tokio::test]
async fn names_below_the_suffix_need_no_proof_and_get_none() {
    let lab = public().await;
    let refused = claim(&lab, &lab.root, "a.preview.example").await.expect(422).refused("domain_invalid");
    assert!(refused.at("/detail").contains("free to take"), "{}", refused.text);
    claim(&lab, &lab.root, "preview.example").await.expect(201);
}

#[tokio::test]
async fn a_dropped_claim_that_is_taken_back_keeps_the_record_that_proves_it() {
    let (lab, dns) = provable().await;
    let freestyle = async |method: &str| {
        let body = Some(json!({ "domain": "example.com" }).to_string());
        lab.call(request(method, "/compat/freestyle/domains/v1/verifications", &lab.root, body)).await.expect(200)
    };
    let code = freestyle("POST").await.at("/verificationCode");
    dns.says("_freestyle_custom_hostname.example.com", &code);
    freestyle("PUT").await;
    map(&lab, &lab.root, "shop.example.com").await.expect(201);
    lab.delete(&lab.root, "/v1/domain-claims/example.com").await.expect(204);
    claim(&lab, &lab.root, "example.com").await.expect(201);

    // Once its record was missed, it is looked for where it was.
    let read = lab.store.list_all(&schema::all_domain_claims()).await.unwrap().0.remove(0);
    let missed = DomainClaim { missing_since: Some(jiff::Timestamp::now()), ..read.record.clone() };
    let key = schema::domain_claim(missed.account, &missed.host);
    TxnBuilder::new().unchanged(&read).put(&key, &missed).unwrap().commit(&*lab.store).await.unwrap();
    let looked = claim(&lab, &lab.root, "example.com").await.expect(200);
    assert_eq!((looked.at("/state"), looked.body.get("detail")), ("verified".into(), None), "{}", looked.text);
}
