use super::*;
use crate::view::tests::{member, view_with};
use proptest::prelude::*;
use warren_model::denial::Layer;
use warren_model::policy::Target;

const WEB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 2));

fn rule(id: &str, pattern: &str, ports: &[&str], application: Option<Application>) -> NameRule {
    NameRule { application, ..crate::view::tests::rule(id, pattern, ports) }
}

fn outside(rules: Vec<NameRule>, open: bool) -> Outside {
    let mut view = view_with(rules);
    if open {
        view.forward = vec!["192.0.2.53:53".parse().unwrap()];
    }
    Outside::build(&view)
}

fn host(text: &str) -> HostName {
    text.parse().unwrap()
}

#[test]
fn a_port_decides_what_is_spoken_unless_the_rule_says() {
    let rules = vec![
        rule("web", "a.example.com", &[], None),
        rule("git", "b.example.com", &["tcp/443"], Some(Application::Tcp)),
    ];
    let outside = outside(rules, false);
    let spoken = |name: &str, port| outside.decide(WEB, &host(name), Some(port)).application;
    assert_eq!(spoken("a.example.com", 443), Application::Tls);
    assert_eq!(spoken("a.example.com", 80), Application::Http);
    assert_eq!(spoken("a.example.com", 22), Application::Tcp);
    assert_eq!(spoken("b.example.com", 443), Application::Tcp);
}

#[test]
fn both_addresses_of_a_member_are_judged_alike_and_nobody_else_may_do_anything() {
    let outside = outside(vec![rule("api", "api.example.com", &["tcp/443"], None)], false);
    let api = host("api.example.com");
    let six = IpAddr::V6(member(2, "web").ipv6);
    let mapped = "::ffff:10.0.1.2".parse().unwrap();
    for source in [WEB, six, mapped] {
        let decision = outside.decide(source, &api, Some(443));
        assert!(decision.allowed, "{source}");
        assert_eq!((decision.rule.unwrap().as_str(), decision.reason.as_str()), ("api", "rule api allows it"));
    }
    let other = outside.decide("10.0.1.3".parse().unwrap(), &api, Some(443));
    assert_eq!((other.allowed, other.rule), (false, None));
    assert_eq!(other.reason, "no rule allows lab/other to reach api.example.com on tcp/443");
    let stranger = outside.decide("10.0.9.9".parse().unwrap(), &api, Some(443));
    assert_eq!((stranger.allowed, stranger.rule), (false, None));
    assert!(!outside.emptied().decide(WEB, &api, Some(443)).allowed);
}

#[test]
fn a_rule_that_forbids_wins_on_its_ports() {
    let rules = vec![rule("all", "*.example.com", &[], None), rule("no-mail", "m.example.com", &["tcp/25"], None)];
    let sealed = outside(rules, false);
    assert!(sealed.decide(WEB, &host("m.example.com"), Some(443)).allowed);
    assert!(sealed.decide(WEB, &host("m.example.com"), None).allowed, "on some port");
    let refused = sealed.decide(WEB, &host("m.example.com"), Some(25));
    assert_eq!((refused.allowed, refused.reason.as_str()), (false, "rule no-mail forbids it"));
}

#[test]
fn an_open_network_reaches_every_name_that_is_not_forbidden() {
    let rules = vec![rule("no-x", "x.example.com", &[], None), rule("no-mail", "m.example.com", &["tcp/25"], None)];
    let open = outside(rules, true);
    let allowed = |name: &str, port| open.decide(WEB, &host(name), port).allowed;
    assert!(allowed("any.example.net", Some(443)) && allowed("any.example.net", None));
    assert!(allowed("m.example.com", None) && allowed("m.example.com", Some(443)));
    assert!(!allowed("m.example.com", Some(25)));
    assert!(!allowed("x.example.com", None) && !allowed("x.example.com", Some(443)));
}

#[test]
fn the_rule_that_is_missing_is_suggested_where_one_would_help() {
    let outside = outside(vec![rule("all", "**.example.com", &[], None)], false);
    let refusal = |name: Option<&str>, to: Option<&str>, rule: Option<RuleId>| Refusal {
        source: WEB,
        to: to.map(|to| to.parse().unwrap()),
        name: name.map(str::to_owned),
        port: Some(443),
        layer: Layer::Tls,
        rule,
        reason: String::new(),
    };
    let by_name = outside.suggest(&refusal(Some("api.example.net"), Some("198.18.3.4"), None)).unwrap();
    assert_eq!(by_name.to, Target::Outside("api.example.net".parse().unwrap()));
    assert_eq!(by_name.ports, ["tcp/443".parse().unwrap()]);
    let by_address = outside.suggest(&refusal(None, Some("93.184.216.34"), None)).unwrap();
    assert!(matches!(by_address.to, Target::Inside(_)));
    let long = refusal(Some("a.example.com"), None, Some(RuleId::builtin(WILDCARD_LIMIT)));
    assert!(outside.suggest(&long).is_some());
    for rule in ["no-x".parse().unwrap(), RuleId::builtin("name-limit")] {
        assert_eq!(outside.suggest(&refusal(Some("a.example.com"), None, Some(rule))), None);
    }
    assert_eq!(outside.suggest(&refusal(Some("not a name"), Some("93.184.216.34"), None)), None);
    assert_eq!(outside.suggest(&refusal(None, Some("169.254.169.254"), None)), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_index_changes_no_decision(
        patterns in proptest::collection::vec(("(\\*\\.|\\*\\*\\.)?([ab]\\.){0,3}x\\.example", any::<bool>(), 0u16..3), 0..12),
        name in "([ab]\\.){0,5}x\\.example",
        port in proptest::option::of(1u16..4),
    ) {
        let rules: Vec<NameRule> = patterns
            .iter()
            .enumerate()
            .map(|(index, (pattern, forbid, port))| {
                let ports = if *port == 0 { vec![] } else { vec![format!("tcp/{port}")] };
                let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
                rule(&format!("{}r{index}", if *forbid { "no-" } else { "" }), pattern, &ports, None)
            })
            .collect();
        let host = host(&name);
        let expected = NameRule::decide(&rules, &host, port);
        let found = outside(rules, false).decide(WEB, &host, port);
        prop_assert_eq!((found.allowed, found.rule), (expected.allowed, expected.rule));
    }
}

#[test]
fn many_rules_cost_a_name_nothing() {
    let rules = (0..50_000).map(|index| rule(&format!("r{index}"), &format!("n{index}.example.com"), &[], None));
    let outside = outside(rules.collect(), false);
    let host = host("n49999.example.com");
    let begun = std::time::Instant::now();
    for _ in 0..1000 {
        assert!(outside.decide(WEB, &host, Some(443)).allowed);
    }
    // Comparing with every rule would take minutes.
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
}
