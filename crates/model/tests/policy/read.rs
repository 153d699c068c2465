use std::time::Instant;

use proptest::prelude::*;
use warren_model::policy::read::{MAX_BYTES, MAX_RULES};
use warren_model::policy::{Application, Intra, Join, Policy, Subject, Target, read};

use super::arbitrary;

const WHOLE: &str = r#"# What the platform team agreed on.
networks:
  dev:  {join: token, intra: deny}
  prod: {join: invite}
tagOwners: {agent: [platform], db: [platform]}
forbid:
  - {id: no-prod, from: net:dev, to: net:prod, reason: "customers' data"}
allow:
  - {id: agent-db, from: dev/tag:agent, to: dev/tag:db, ports: [tcp/5432]}
  - id: gh
    from: dev/tag:agent
    to: {name: "*.github.com"}
    ports: [tcp/443]
    as: tls
    owner: platform
    expires: 2027-01-31T12:00:00Z
  - {id: nas, from: dev/agent, to: {cidr: 192.168.0.0/24}}
tests:
  - {from: dev/tag:agent, to: dev/tag:db, port: tcp/5432, expect: allow, by: agent-db}
  - {from: dev/tag:agent, to: {name: api.github.com}, port: tcp/443, expect: allow, by: gh}
"#;

/// `line:column message` of everything that is wrong.
fn errors(text: &str) -> Vec<String> {
    let errors = read(text).expect_err(text);
    errors.iter().map(|error| format!("{}:{} {}", error.line, error.column, error.message)).collect()
}

/// The only thing that is wrong.
#[track_caller]
fn assert_refused(text: &str, expected: &str) {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].starts_with(expected), "{:?} is not {expected:?}", errors[0]);
}

#[test]
fn a_whole_document_is_read() {
    let policy = read(WHOLE).unwrap().policy;
    let dev = policy.networks["dev"];
    assert_eq!((dev.join, dev.intra), (Some(Join::Token), Intra::Deny));
    assert_eq!(policy.intra(&"prod".parse().unwrap()), Intra::Allow);
    assert_eq!(policy.tag_owners.len(), 2);
    assert_eq!(policy.forbid[0].reason.as_deref(), Some("customers' data"));
    let gh = &policy.allow[1];
    assert!(matches!(&gh.to, Target::Outside(pattern) if pattern.to_string() == "*.github.com"));
    assert_eq!((gh.application, gh.owner.as_deref()), (Some(Application::Tls), Some("platform")));
    assert_eq!(gh.expires.unwrap().to_string(), "2027-01-31T12:00:00Z");
    assert_eq!(policy.allow[2].to, Target::Inside(Subject::Range(None, "192.168.0.0/24".parse().unwrap())));
    assert_eq!(policy.tests[1].by.as_ref().unwrap().as_str(), "gh");
}

#[test]
fn json_is_read_alike() {
    let policy = read(WHOLE).unwrap().policy;
    for json in [serde_json::to_string(&policy).unwrap(), serde_json::to_string_pretty(&policy).unwrap()] {
        assert_eq!(read(&json).unwrap().policy, policy);
    }
    let tabs = "{\n\t\"allow\": [\n\t\t{\"id\": \"a\", \"from\": \"net:dev\", \"to\": \"1.2.3.4\"}\n\t]\n}\n";
    assert_eq!(read(tabs).unwrap().policy.allow.len(), 1);
}

#[test]
fn an_empty_document_is_an_empty_policy() {
    for text in ["", "{}", "---\n", "# nothing yet\n"] {
        assert_eq!(read(text).unwrap().policy, Policy::default(), "{text:?}");
    }
}

#[test]
fn the_hash_does_not_depend_on_how_it_is_written() {
    let one = read("allow: [{id: a, from: net:dev, to: 10.0.0.1}]").unwrap().policy;
    let other = read("allow:\n- to: {cidr: 10.0.0.1/32}\n  from: net:dev\n  id: a\n").unwrap().policy;
    assert_eq!(one.hash(), other.hash());
}

#[test]
fn an_error_says_where() {
    assert_refused("allow:\n  - {id: a, from: net:dev, to: 'net:'}\n", "2:32 \"net:\" names nobody");
    assert_refused("allow:\n- id: a\n  from: dev\n  to: net:dev\n", "3:9 \"dev\" names nobody");
    assert_refused(
        "{\"allow\": [\n {\"id\": \"A\", \"from\": \"net:dev\", \"to\": \"net:dev\"}]}",
        "2:9 \"A\" is not the id",
    );
    assert_refused("allow: [", "2:1 this is not YAML");
}

#[test]
fn all_errors_are_listed_in_the_order_of_the_text() {
    let text = "forbids: []\nallow:\n- {id: a, from: net:dev, to: 10.0.0.1/8}\n- {id: a!, from: nobody, to: net:dev, ports: [tcp/0]}\n";
    let errors = errors(text);
    assert_eq!(errors.len(), 5, "{errors:#?}");
    assert!(errors[0].ends_with("did you mean \"forbid\"?"), "{errors:#?}");
    assert!(errors[1].contains("write 10.0.0.0/8"), "{errors:#?}");
}

#[test]
fn what_is_not_plain_is_refused() {
    assert_refused("alow: []", "1:1 the policy has no \"alow\"; did you mean \"allow\"?");
    assert_refused("allow: []\nallow: []", "2:1 \"allow\" is here twice");
    assert_refused("networks: {dev: {}, dev: {}}", "1:21 \"dev\" is here twice");
    assert_refused("allow: &all []", "1:8 anchors are not read");
}

#[test]
fn an_alias_is_refused_and_never_expanded() {
    let errors = errors("forbid: &none []\nallow: *none");
    assert_eq!(errors.len(), 2, "{errors:#?}");
    assert!(errors[1].starts_with("2:8 aliases are not read"), "{errors:#?}");
}

#[test]
fn tags_documents_and_depth_are_refused() {
    assert_refused("allow: !!seq []", "1:8 YAML tags are not read");
    assert_refused("allow: []\n---\nallow: []\n", "2:1 a policy is one document");
    assert_refused(&format!("allow: {}{}", "[".repeat(100), "]".repeat(100)), "1:23 values lie too deep");
    let nested: String = (0..100).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert!(errors(&nested).iter().any(|error| error.contains("too deep")));
}

#[test]
fn what_is_no_text_is_refused_where_a_text_is_meant() {
    for value in ["5", "1.5", "true", "null", "~", "0x10", "-1", "1e3", ".inf", "[a]", "{a: b}"] {
        let text = format!("allow: [{{id: {value}, from: net:dev, to: net:dev}}]");
        assert_eq!(errors(&text).len(), 1, "{value}");
        let text = format!("allow: [{{id: a, from: {value}, to: net:dev}}]");
        assert_eq!(errors(&text).len(), 1, "{value}");
    }
    assert_eq!(read("allow: [{id: '5', from: net:dev, to: net:dev}]").unwrap().policy.allow[0].id.as_str(), "5");
    assert_refused("allow: [{id: a, from: , to: net:dev}]", "1:21 from has no value");
    assert_refused("[]", "1:1 the policy is a mapping");
    assert_refused("allow: {}", "1:8 allow is a list");
    assert_refused("allow: [a]", "1:9 a rule is a mapping");
    assert_refused("allow: [{id: a, from: net:dev, to: net:dev, ports: tcp/1}]", "1:52 ports is a list");
}

#[test]
fn each_field_has_its_rules() {
    let rule = |fields: &str| format!("allow: [{{id: a, from: net:dev, {fields}}}]");
    assert_refused("allow: [{id: a, to: net:dev}]", "1:9 a rule needs \"from\"");
    assert_refused("allow: [{id: a, from: {name: a.example}, to: net:dev}]", "1:23 from is a text, not a mapping");
    assert_refused("allow: [{id: builtin:intra, from: net:dev, to: net:dev}]", "1:14 \"builtin:intra\" is not the id");
    assert_refused(&rule("to: {name: \"*.com\"}"), "1:43 \"*.com\" allows everything below a public suffix");
    assert_refused(&rule("to: {name: 1.2.3.4}"), "1:43 \"1.2.3.4\" is an address");
    assert_refused(&rule("to: {name: cloudflare-ech.com}"), "1:43 \"cloudflare-ech.com\" is a shared outer name");
    assert_refused(&rule("to: {name: bad_-.com}"), "1:43");
    assert_refused(&rule("to: {name: a.example, cidr: 1.2.3.4}"), "1:36 a destination is either");
    assert_refused(&rule("to: {}"), "1:36 a destination is either");
    assert_refused(&rule("to: {cidr: net:dev}"), "1:43 net:dev is no CIDR");
    assert_refused(&rule("to: {host: a.example}"), "1:37 a destination has no \"host\"");
    assert_refused(&rule("to: net:dev, as: tls"), "1:49 \"as\" is for rules to a name");
    assert_refused(&rule("to: {name: a.example}, as: quic"), "1:59 \"quic\" is no protocol: use tls, http, tcp");
    assert_refused(&rule("to: {name: a.example}, ports: [udp/443]"), "1:63 a name is reached over TCP only");
    assert_refused(&rule("to: {name: a.example}, ports: [icmp]"), "1:63 a name is reached over TCP only");
    assert_refused(&rule("to: net:dev, ports: []"), "1:52 \"ports\" is empty");
    assert_refused(&rule("to: net:dev, ports: [tcp/1, tcp/1]"), "1:60 tcp/1 is here twice");
    assert_refused(&rule("to: net:dev, expires: tomorrow"), "1:54 \"tomorrow\" is no instant");
    assert_refused(&rule("to: net:dev, expires: 2026-01-01"), "1:54 \"2026-01-01\" is no instant");
    assert_refused(&rule("to: net:dev, owner: ''"), "1:52 owner is one line");
    assert_refused(&rule("to: net:dev, reason: \"a\\nb\""), "1:53 reason is one line");
    assert_refused("networks: {dev: {intra: maybe}}", "1:25 \"maybe\" is no intra: use allow, deny");
    assert_refused(
        "networks: {dev: {join: tokens}}",
        "1:24 \"tokens\" is no way to join: use open, token, invite; did you mean \"token\"?",
    );
    assert_refused("networks: {Dev: {}}", "1:12 \"Dev\" is not a valid name");
    assert_refused("tagOwners: {db: platform}", "1:17 the owners of a tag is a list");
    assert_refused("tagOwners: {db: [a, a]}", "1:21 a is here twice");
    assert_refused(
        "tests: [{from: net:dev, to: {name: \"*.a.example\"}, port: tcp/1, expect: deny}]",
        "1:36 \"*.a.example\" is not a host name",
    );
    assert_refused("tests: [{from: net:dev, to: net:dev, port: [tcp/1], expect: deny}]", "1:44 port is one text");
    assert_refused(
        "tests: [{from: net:dev, to: net:dev, port: tcp/1, expect: deny, by: builtin:magic}]",
        "1:69 \"builtin:magic\" is no built-in rule",
    );
    read("tests: [{from: net:dev, to: net:dev, port: tcp/1, expect: allow, by: builtin:intra}]").unwrap();
}

#[test]
fn an_id_is_unique_in_the_whole_policy() {
    let text = "forbid: [{id: a, from: net:dev, to: net:dev}]\nallow: [{id: a, from: net:dev, to: net:dev}]";
    assert_refused(text, "2:14 rule a is there twice: first at line 1, column 15");
}

#[test]
fn what_is_too_large_is_refused() {
    assert_refused(&" ".repeat(MAX_BYTES + 1), "1:1 the document has 1048577 bytes");
    let rule = |list: char, index: usize| format!("- {{id: {list}{index}, from: a/a, to: a/a}}\n");
    let rules = |list: char, count| (0..count).map(|index| rule(list, index)).collect::<String>();
    let text = format!("allow:\n{}forbid:\n{}", rules('a', MAX_RULES - 1), rules('f', 2));
    assert_refused(&text, "1:1 the policy has more than 20000 rules");
    assert_refused(&format!("allow:\n{}", rules('a', MAX_RULES + 1)), "20002:3 the policy has more than 20000 rules");
}

#[test]
fn the_example_of_the_documentation_is_read() {
    let docs = include_str!("../../../../docs/policy.md");
    let example = docs.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    assert_eq!(read(example).unwrap().policy.rules().count(), 4);
}

#[test]
fn time_grows_with_the_length_of_the_text_and_no_faster() {
    let fill = |unit: &str| unit.repeat(MAX_BYTES / 8 / unit.len());
    let plain = [
        "a\n", "a,", "? ", "?\n", "- ", "-\n", "a:\n", "a: b\n", "&a ", "'", "\"", "#", "\t", "\n", "...\n", "{", "[",
        ":", "a\n\n",
    ];
    let mut texts: Vec<String> = plain.map(fill).into();
    for (front, unit, back) in [
        ("[", "a,", "]"),
        ("{", "a,", ""),
        ("{", "a: b,", "}"),
        ("|\n", " a\n", ""),
        (">\n", "\n", ""),
        ("\"", "\\u0041", "\""),
        ("{\"allow\": [", "{},", "{}]}"),
        ("{\"allow\": \"", "a", "\"}"),
        ("{\"allow\": {", "\"\":0,", "\"\":0}}"),
    ] {
        texts.push(format!("{front}{}{back}", fill(unit)));
    }
    for text in texts {
        let before = Instant::now();
        let _ = read(&text);
        // A millionth of a second a byte would be slow; a square of the length would be hours.
        let took = before.elapsed();
        assert!(took.as_secs() < 60, "{:?}: {took:?}", &text[..10]);
    }
}

#[test]
fn no_more_than_a_hundred_errors_are_listed() {
    let text: String = (0..500).map(|index| format!("key-{index}: x\n")).collect();
    let errors = errors(&text);
    assert_eq!(errors.len(), 101);
    assert!(errors[100].ends_with("and 400 more"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_the_text_reading_it_ends(text in any::<String>()) {
        let _ = read(&text);
    }

    #[test]
    fn whatever_the_yaml_reading_it_ends(text in "([-?:,\\[\\]{}#&*!|>'\"%@`~ \t\na-z0-9/.]|allow|forbid|: |- |\n  ){0,80}") {
        if let Err(errors) = read(&text) {
            prop_assert!(!errors.is_empty());
            prop_assert!(errors.iter().all(|error| error.line > 0 && error.column > 0));
        }
    }

    #[test]
    fn a_damaged_document_is_read_or_refused(place in 0..WHOLE.len(), with in "[-{}\\[\\]:,&*!'\"# \n\ta]{0,3}", gone in 0usize..20) {
        let end = (place + gone).min(WHOLE.len());
        let _ = read(&format!("{}{with}{}", &WHOLE[..place], &WHOLE[end..]));
    }

    #[test]
    fn every_policy_reads_back_as_written(policy in arbitrary::policy()) {
        let mut policy = policy;
        for rule in policy.forbid.iter_mut().chain(&mut policy.allow) {
            let mut seen = Vec::new();
            rule.ports.retain(|ports| !seen.contains(ports) && { seen.push(*ports); true });
        }
        let json = serde_json::to_string(&policy).unwrap();
        prop_assert_eq!(read(&json).unwrap().policy, policy);
    }
}
