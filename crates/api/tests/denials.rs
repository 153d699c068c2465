//! What was refused: pages, streams, and the answers of commands that ran into it.

mod common;

use common::places::places;
use common::{Answered, Lab, request, with_header};
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::json;
use ulid::Ulid;
use warren_model::denial::{Denial, Layer};
use warren_model::policy::Protocol;
use warren_model::{AccountId, DenialId, MachineId};

fn denial(account: AccountId, machine: MachineId, n: u64) -> Denial {
    Denial {
        id: DenialId::from_ulid(Ulid::from_parts(1_000 + n, 1)),
        time: Timestamp::now(),
        account,
        network: warren_model::NetworkId::from_ulid(Ulid::from_parts(1, 1)),
        member: Some(machine.into()),
        to: Some([203, 0, 113, 7].into()),
        name: Some(format!("n{n}.example.com")),
        port: Some(443),
        protocol: Protocol::Tcp,
        layer: Layer::Dns,
        rule: None,
        reason: "no rule allows it".into(),
        suggested_rule: None,
        count: 1,
    }
}

async fn ids(lab: &Lab, key: &str, machine: &str) -> (AccountId, MachineId) {
    let id = lab.get(key, &format!("/v1/machines/{machine}")).await.expect(200).at("/id").parse().unwrap();
    let account = lab.get(key, "/v1/whoami").await.at("/account/id").parse().unwrap();
    (account, id)
}

#[tokio::test]
async fn denials_are_listed_by_account_machine_and_page() {
    let lab = places().await;
    let (account, agent) = ids(&lab, &lab.root, "agent").await;
    let (_, db) = ids(&lab, &lab.root, "db").await;
    let stranger = AccountId::from_ulid(Ulid::from_parts(9, 9));
    for n in 0..5 {
        lab.boundaries.refuse(denial(account, if n == 3 { db } else { agent }, n));
    }
    lab.boundaries.refuse(denial(stranger, agent, 7));
    let names = |answer: &Answered| -> Vec<String> {
        answer.body["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap()[..2].to_owned())
            .collect()
    };
    let all = lab.get(&lab.root, "/v1/denials").await.expect(200);
    assert_eq!(
        (names(&all), all.at("/next")),
        (["n0", "n1", "n2", "n3", "n4"].map(String::from).to_vec(), "null".into())
    );
    assert_eq!((all.at("/items/0/machine"), all.at("/items/3/machine")), ("agent".into(), "db".into()));
    for field in
        ["id", "time", "machine", "to", "name", "port", "protocol", "layer", "rule", "reason", "suggested_rule"]
    {
        assert!(all.body["items"][0].get(field).is_some(), "{field}");
    }
    assert_eq!(names(&lab.get(&lab.root, "/v1/denials?limit=2").await.expect(200)), ["n3", "n4"]);
    assert_eq!(names(&lab.get(&lab.root, "/v1/denials?machine=db").await.expect(200)), ["n3"]);
    let page = lab.get(&lab.root, &format!("/v1/denials?limit=2&after={}", all.at("/items/0/id"))).await.expect(200);
    assert_eq!(names(&page), ["n1", "n2"]);
    let next = lab.get(&lab.root, &format!("/v1/denials?limit=2&cursor={}", page.at("/next"))).await.expect(200);
    assert_eq!(names(&next), ["n3", "n4"]);
    let other = lab.account("other").await;
    assert_eq!(lab.get(&other, "/v1/denials").await.expect(200).body["items"], json!([]));
}

#[tokio::test]
async fn denials_are_followed_and_resumed_without_a_gap() {
    let lab = places().await;
    let (account, agent) = ids(&lab, &lab.root, "agent").await;
    for n in 0..3 {
        lab.boundaries.refuse(denial(account, agent, n));
    }
    let first = lab.get(&lab.root, "/v1/denials").await.at("/items/0/id");
    let resumed = with_header(request("GET", "/v1/denials?follow=true", &lab.root, None), "last-event-id", &first);
    let mut stream = lab.send(resumed).await.into_body().into_data_stream();
    let fresh = request("GET", "/v1/denials?follow=true&machine=agent", &lab.root, None);
    let mut live = lab.send(fresh).await.into_body().into_data_stream();
    lab.boundaries.refuse(denial(account, agent, 3));
    let mut text = String::new();
    while text.matches("\n\n").count() < 3 {
        text += std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap();
    }
    let seen: Vec<_> = (0..5).filter(|n| text.contains(&format!("n{n}.example"))).collect();
    assert_eq!(seen, [1, 2, 3], "{text}");
    assert!(text.contains("id: dny_"), "{text}");
    let chunk = live.next().await.unwrap().unwrap();
    assert!(std::str::from_utf8(&chunk).unwrap().contains("n3.example"), "only what is new");
}

#[tokio::test]
async fn an_exec_tells_what_was_refused_while_it_ran() {
    let lab = places().await;
    let (account, agent) = ids(&lab, &lab.root, "agent").await;
    let (_, db) = ids(&lab, &lab.root, "db").await;
    let exec = || lab.post(&lab.root, "/v1/machines/agent/exec", json!({ "command": ["true"] }));
    assert!(exec().await.expect(200).body.get("denials").is_none());
    let past = Denial { time: Timestamp::UNIX_EPOCH, ..denial(account, agent, 0) };
    let during = Timestamp::now() + jiff::SignedDuration::from_secs(60);
    lab.boundaries.refuse(past);
    lab.boundaries.refuse(Denial { time: during, ..denial(account, agent, 1) });
    lab.boundaries.refuse(Denial { time: during, ..denial(account, db, 2) });
    let answer = exec().await.expect(200);
    assert_eq!(answer.body["denials"].as_array().unwrap().len(), 1);
    assert_eq!(answer.at("/denials/0/name"), "n1.example.com");
}
