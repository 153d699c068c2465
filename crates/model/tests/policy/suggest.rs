use std::net::IpAddr;

use proptest::prelude::*;
use warren_model::policy::{
    Destination, Flow, HostName, Policy, Protocol, Rule, evaluate, missing_rule, near_misses, read, suggest,
};

use super::arbitrary::{self, ADDRESSES};
use super::common::{find, now, policy, world};

fn suggested(from: &str, to: &str, protocol: Protocol, port: Option<u16>) -> Option<Rule> {
    let directory = world();
    let name = to.parse::<HostName>();
    let to = match (to.parse::<IpAddr>(), &name) {
        (Ok(address), _) => Destination::Address(address),
        (Err(_), Ok(name)) => Destination::Name(name),
        _ => Destination::Member(find(&directory, to)),
    };
    suggest(&Flow { from: find(&directory, from), to, protocol, port })
}

#[test]
fn the_missing_rule_is_the_smallest() {
    let json = |rule: Option<Rule>| serde_json::to_value(rule.unwrap()).unwrap();
    assert_eq!(
        json(suggested("dev/agent", "dev/db", Protocol::Tcp, Some(5432))),
        serde_json::json!({"id": "allow-agent-db-tcp-5432", "from": "dev/agent", "to": "dev/db", "ports": ["tcp/5432"]})
    );
    assert_eq!(
        json(suggested("dev/agent", "api.github.com", Protocol::Tcp, Some(443))),
        serde_json::json!({
            "id": "allow-agent-api.github.com-tcp-443", "from": "dev/agent", "to": {"name": "api.github.com"}, "ports": ["tcp/443"]
        })
    );
    assert_eq!(
        json(suggested("dev/agent", "2606:4700::1111", Protocol::Icmp, None)),
        serde_json::json!({
            "id": "allow-agent-2606-4700--1111-icmp", "from": "dev/agent", "to": "2606:4700::1111/128", "ports": ["icmp"]
        })
    );
    assert_eq!(
        json(suggested("dev/agent", "prod/db", Protocol::Other, None)),
        serde_json::json!({"id": "allow-agent-db-any", "from": "dev/agent", "to": "prod/db"})
    );
}

#[test]
fn where_no_rule_can_none_is_suggested() {
    for (to, protocol) in [
        ("169.254.169.254", Protocol::Tcp),
        ("::ffff:127.0.0.1", Protocol::Tcp),
        ("224.0.0.251", Protocol::Udp),
        ("198.18.0.1", Protocol::Tcp),
        ("api.github.com", Protocol::Udp),
    ] {
        assert_eq!(suggested("dev/agent", to, protocol, Some(80)), None, "{to}");
    }
}

#[test]
fn nothing_is_missing_where_the_flow_is_allowed_already() {
    let directory = world();
    let policy =
        policy("networks: {dev: {intra: deny}}\nallow: [{id: a, from: dev/agent, to: dev/db, ports: [tcp/22]}]");
    let missing = |from: &str, port: u16| {
        let to = Destination::Member(find(&directory, "dev/db"));
        let flow = Flow { from: find(&directory, from), to, protocol: Protocol::Tcp, port: Some(port) };
        (missing_rule(&policy, &directory, &flow, now()), suggest(&flow))
    };
    assert_eq!(missing("dev/agent", 22).0, None);
    for (from, port) in [("dev/agent", 23), ("dev/web", 22)] {
        let (found, suggested) = missing(from, port);
        assert!(found.is_some());
        assert_eq!(found, suggested, "{from} {port}");
    }
}

#[test]
fn rules_that_miss_by_one_thing_are_listed() {
    let policy = policy(
        "networks: {dev: {intra: deny}}
forbid: [{id: shadow, from: dev/web, to: dev/db, ports: [tcp/5432]}]
allow:
- {id: who, from: dev/web, to: dev/db}
- {id: whom, from: dev/agent, to: dev/web}
- {id: what, from: dev/agent, to: dev/db, ports: [tcp/5433, udp]}
- {id: when, from: dev/agent, to: dev/db, expires: 2025-12-31T00:00:00Z}
- {id: far, from: dev/web, to: dev/web}",
    );
    let directory = world();
    let misses = |from: &str| -> Vec<(String, String)> {
        let to = Destination::Member(find(&directory, "dev/db"));
        let flow = Flow { from: find(&directory, from), to, protocol: Protocol::Tcp, port: Some(5432) };
        near_misses(&policy, &directory, &flow, now())
            .into_iter()
            .map(|miss| (miss.rule.to_string(), miss.why))
            .collect()
    };
    let expected = [
        ("who", "it is from dev/web, not dev/agent"),
        ("whom", "it is to dev/web, not dev/db"),
        ("what", "it is for tcp/5433, udp, not tcp/5432"),
        ("when", "it expired at 2025-12-31T00:00:00Z"),
    ];
    assert_eq!(misses("dev/agent"), expected.map(|(rule, why)| (rule.to_owned(), why.to_owned())));
    let web = misses("dev/web");
    assert_eq!(web[0], ("shadow".to_owned(), "it forbids what rule who allows".to_owned()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_suggested_rule_allows_the_flow(
        (directory, policy) in (arbitrary::directory(), arbitrary::policy()),
        port in 1u16..,
    ) {
        let allow_only = Policy { forbid: Vec::new(), ..policy };
        for from in &directory.members {
            let members = directory.members.iter().map(Destination::Member);
            let addresses = ADDRESSES.iter().map(|text| Destination::Address(text.parse().unwrap()));
            for to in members.chain(addresses) {
                for protocol in Protocol::ALL {
                    let flow = Flow { from, to, protocol, port: protocol.has_ports().then_some(port) };
                    let Some(rule) = suggest(&flow) else { continue };
                    let text = serde_json::json!({"allow": [rule]}).to_string();
                    prop_assert!(read(&text).is_ok(), "{}", text);
                    let mut more = allow_only.clone();
                    more.allow.push(rule);
                    let verdict = evaluate(&more, &directory, &flow, now());
                    // Nobody is at an address in a network's range that no member has.
                    prop_assert!(verdict.allowed || verdict.reason.starts_with("no member"), "{}: {:?}", text, verdict);
                }
            }
        }
    }
}
