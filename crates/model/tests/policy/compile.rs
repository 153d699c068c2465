use std::net::IpAddr;

use warren_model::NetworkNumber;
use warren_model::policy::compile::{Carrier, Default, Exception};
use warren_model::policy::{CompileError, Directory, Group, NameRule, NetworkRules, Policy, PortRange, compile};
use warren_model::record::Egress;

use super::common::{judge, label, member, network, now, policy, world};

fn compiled(text: &str, network: &str) -> NetworkRules {
    compile(&policy(text), &world(), &label(network), now()).unwrap()
}

fn group(rules: &NetworkRules, address: &str) -> Group {
    rules.groups[&address.parse::<IpAddr>().unwrap()]
}

fn exception(from: Group, to: Group, carrier: Carrier, first: u16, last: u16) -> Exception {
    Exception { from, to, carrier, ports: PortRange { first, last } }
}

#[test]
fn without_rules_nothing_is_to_be_looked_up() {
    let rules = compiled("{}", "dev");
    assert_eq!((rules.inside, rules.outside, rules.exits), (Default::Accept, Default::Refuse, false));
    assert!(rules.groups.is_empty() && rules.exceptions.is_empty() && rules.classes.is_empty());
    assert!(rules.links.is_empty() && rules.private_exits.is_empty() && rules.names.is_empty());
    let rules = compiled("{}", "lab");
    assert_eq!((rules.outside, rules.exits, rules.groups.len()), (Default::Accept, true, 0));
}

#[test]
fn rules_that_change_nothing_leave_the_fast_path() {
    let text = "allow:
- {id: inside, from: net:dev, to: dev/db}
- {id: elsewhere, from: net:prod, to: prod/db}
- {id: gone, from: net:dev, to: 8.8.8.8, expires: 2025-01-01T00:00:00Z}
forbid:
- {id: gone-too, from: net:dev, to: net:dev, expires: 2025-01-01T00:00:00Z}";
    let rules = compiled(text, "dev");
    assert!(rules.groups.is_empty() && rules.exceptions.is_empty() && !rules.exits);
}

#[test]
fn members_that_no_rule_tells_apart_share_a_group() {
    let rules = compiled("forbid: [{id: f, from: dev/tag:agent, to: dev/db, ports: [tcp/22]}]", "dev");
    assert_eq!(group(&rules, "10.0.1.1"), group(&rules, "10.0.1.2"));
    assert_eq!(group(&rules, "10.0.1.1"), group(&rules, "fd01:203:405:1::2"));
    let distinct: std::collections::BTreeSet<_> = rules.groups.values().collect();
    assert_eq!(distinct.len(), 3);
    let (agent, db) = (group(&rules, "10.0.1.1"), group(&rules, "10.0.2.1"));
    assert_eq!(rules.exceptions, [exception(agent, db, Carrier::Tcp, 22, 22)].into());
}

#[test]
fn ports_are_cut_where_rules_overlap() {
    let text = "networks: {dev: {intra: deny}}
allow:
- {id: a, from: dev/agent, to: dev/db, ports: [tcp/10-20, tcp/15-30, udp]}
- {id: b, from: dev/agent, to: dev/db, ports: [tcp/31]}
forbid:
- {id: f, from: net:dev, to: dev/db, ports: [tcp/12, udp/53]}";
    let rules = compiled(text, "dev");
    let (agent, db) = (group(&rules, "10.0.1.1"), group(&rules, "10.0.2.1"));
    let of = |carrier, first, last| exception(agent, db, carrier, first, last);
    assert_eq!(
        rules.exceptions,
        [of(Carrier::Tcp, 10, 11), of(Carrier::Tcp, 13, 31), of(Carrier::Udp, 0, 52), of(Carrier::Udp, 54, 65535),]
            .into()
    );
}

#[test]
fn links_are_by_the_ranges_that_tell_networks_apart() {
    let text = "allow:
- {id: prod, from: net:dev, to: net:prod}
- {id: twin, from: net:twin, to: dev/db}";
    let rules = compiled(text, "dev");
    let texts = |number: u16| -> Vec<String> {
        rules.links[&NetworkNumber::new(number).unwrap()].iter().map(ToString::to_string).collect()
    };
    assert_eq!(texts(2), ["10.1.0.0/16", "fd01:203:405:2::/80"]);
    assert_eq!(texts(4), ["fd01:203:405:4::/80"]);
    assert!(rules.groups.contains_key(&"10.1.2.1".parse().unwrap()));
    // `twin/agent` is there by its IPv6 address alone: the IPv4 address is `dev/agent`'s.
    assert_eq!(group(&rules, "10.0.1.1"), group(&rules, "fd01:203:405:1::2"));
    assert_ne!(group(&rules, "10.0.1.1"), group(&rules, "fd01:203:405:4::2"));
    assert!(compiled(text, "lab").links.is_empty());
}

/// `a` and `b` have the same range, and both have traffic with `c`.
fn twins_with_a_friend() -> Directory {
    let mut directory = Directory::default();
    for (name, cidr) in [("a", "10.0.0.0/24"), ("b", "10.0.0.0/24"), ("c", "10.9.0.0/16"), ("d", "10.8.0.0/16")] {
        network(&mut directory, name, cidr, Egress::Deny);
    }
    for text in ["a/one@10.0.0.2", "b/one@10.0.0.2", "c/one@10.9.0.2", "d/one@10.8.0.2"] {
        member(&mut directory, text);
    }
    directory
}

#[test]
fn a_link_is_by_ipv4_only_where_that_is_clear_to_both_ends() {
    let directory = twins_with_a_friend();
    let has_ipv4 = |policy: &Policy, from: &str, to: &str| {
        let rules = compile(policy, &directory, &label(from), now()).unwrap();
        rules.links[&directory.networks[&label(to)].number].iter().any(|range| range.addr().is_ipv4())
    };
    let one = policy("allow: [{id: a, from: net:a, to: net:c}, {id: d, from: net:d, to: net:c}]");
    assert!(has_ipv4(&one, "a", "c") && has_ipv4(&one, "c", "a"));
    for second in ["from: net:b, to: net:c", "from: net:c, to: b/one", "from: 10.9.0.0/16, to: \"fd00::/8\""] {
        let both = policy(&format!(
            "allow: [{{id: a, from: net:a, to: net:c}}, {{id: d, from: net:d, to: net:c}}, {{id: b, {second}}}]"
        ));
        for (from, to) in [("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")] {
            assert!(!has_ipv4(&both, from, to), "{from} to {to} with {second}");
        }
        assert!(has_ipv4(&both, "d", "c") && has_ipv4(&both, "c", "d"), "{second}");
        let judged = |to: &str| judge(&both, &directory, "a/one", to, "tcp/80").allowed;
        assert!(!judged("10.9.0.2") && judged("fd01:203:405:3::2"), "{second}");
    }
    // A rule that can mean nobody there makes no link.
    let none = policy("allow: [{id: a, from: net:a, to: net:c}, {id: b, from: b/10.7.0.0/16, to: net:c}]");
    assert!(has_ipv4(&none, "a", "c") && has_ipv4(&none, "c", "a"));
}

#[test]
fn the_outside_is_cut_into_classes_without_what_is_built_in() {
    let text = "allow: [{id: all, from: dev/agent, to: 0.0.0.0/0, ports: [tcp/443]}]
forbid: [{id: f, from: net:dev, to: 9.0.0.0/8}]";
    let rules = compiled(text, "dev");
    assert!(rules.exits);
    let class = |text: &str| {
        let address: IpAddr = text.parse().unwrap();
        rules.classes.iter().find(|(range, _)| range.contains(&address)).map(|(_, class)| *class)
    };
    for closed in
        ["169.254.169.254", "127.0.0.1", "224.0.0.1", "255.255.255.255", "198.18.0.1", "9.9.9.9", "10.0.9.9", "::1"]
    {
        assert_eq!(class(closed), None, "{closed}");
    }
    assert_eq!(class("8.8.8.8"), class("192.168.1.1"));
    assert!(class("8.8.8.8").is_some());
    let private: Vec<String> = rules.private_exits.iter().map(ToString::to_string).collect();
    assert!(
        private.contains(&"192.168.0.0/16".to_owned()) && !private.contains(&"10.0.0.0/8".to_owned()),
        "{private:?}"
    );
    let outside = class("8.8.8.8").unwrap();
    let (agent, to_class) = (group(&rules, "10.0.1.1"), |exception: &&Exception| exception.to == outside);
    let exceptions: Vec<&Exception> = rules.exceptions.iter().filter(to_class).collect();
    assert_eq!(exceptions, [&exception(agent, outside, Carrier::Tcp, 443, 443)]);
}

#[test]
fn a_private_range_of_an_open_network_is_for_those_that_a_rule_names() {
    let rules = compiled("allow: [{id: nas, from: lab/rat, to: 192.168.0.0/24, ports: [tcp/445]}]", "lab");
    assert_eq!(rules.private_exits, ["192.168.0.0/24".parse().unwrap()].into());
    let (rat, mouse) = (group(&rules, "10.2.1.1"), group(&rules, "10.2.1.2"));
    let class = rules.classes[&"192.168.0.0/24".parse().unwrap()];
    let of = |from, carrier, first, last| exception(from, class, carrier, first, last);
    let mut expected: std::collections::BTreeSet<Exception> =
        [Carrier::Tcp, Carrier::Udp, Carrier::Icmp, Carrier::Other].map(|carrier| of(mouse, carrier, 0, 65535)).into();
    expected.extend([of(rat, Carrier::Tcp, 0, 444), of(rat, Carrier::Tcp, 446, 65535)]);
    expected.extend([Carrier::Udp, Carrier::Icmp, Carrier::Other].map(|carrier| of(rat, carrier, 0, 65535)));
    assert_eq!(rules.exceptions, expected);
}

#[test]
fn names_are_listed_per_group_with_forbidding_rules_first() {
    let text = "allow: [{id: gh, from: dev/tag:agent, to: {name: \"*.github.com\"}, ports: [tcp/443], as: tls}]
forbid: [{id: no, from: dev/agent, to: {name: gist.github.com}}]";
    let rules = compiled(text, "dev");
    let names = |address: &str| -> Vec<&str> {
        rules.names.get(&group(&rules, address)).into_iter().flatten().map(|rule| rule.id.as_str()).collect()
    };
    assert_eq!(names("10.0.1.1"), ["no", "gh"]);
    assert_eq!(names("10.0.1.2"), ["gh"]);
    assert!(names("10.0.2.1").is_empty());
    let decide =
        |name: &str, port| NameRule::decide(&rules.names[&group(&rules, "10.0.1.1")], &name.parse().unwrap(), port);
    let allowed = decide("api.github.com", Some(443));
    assert!(allowed.allowed && allowed.application == Some(warren_model::policy::Application::Tls));
    assert!(decide("api.github.com", None).allowed);
    assert!(!decide("api.github.com", Some(22)).allowed);
    let refused = decide("gist.github.com", None);
    assert_eq!((refused.allowed, refused.rule.unwrap().as_str()), (false, "no"));
    let unknown = decide("example.com", None);
    assert_eq!((unknown.allowed, unknown.rule), (false, None));
}

#[test]
fn an_unknown_network_is_an_error() {
    let error = compile(&policy("{}"), &world(), &label("nowhere"), now()).unwrap_err();
    assert_eq!(error, CompileError::UnknownNetwork(label("nowhere")));
}

#[test]
fn a_rule_about_the_range_of_another_network_opens_no_way_out() {
    for to in ["10.1.0.0/16", "10.1.2.1", "fd01:203:405:2::/80", "fd01:203:405::/48", "169.254.0.0/16", "10.0.2.0/24"] {
        let rules = compiled(&format!("allow: [{{id: a, from: net:dev, to: \"{to}\"}}]"), "dev");
        assert!(!rules.exits && rules.private_exits.is_empty() && rules.classes.is_empty(), "{to}: {rules:#?}");
    }
    // Where two networks have the range, the address alone tells neither.
    let text = "allow: [{id: a, from: net:prod, to: 10.0.0.0/16}]";
    let rules = compiled(text, "prod");
    assert!(rules.exits && rules.links.values().flatten().all(|range| range.to_string().contains(':')), "{rules:#?}");
}
