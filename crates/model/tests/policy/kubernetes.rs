//! The cases of Kubernetes' network policy conformance (sig-network, `test/e2e/network/netpol/network_policy.go`) in the
//! words of this policy.
//!
//! A namespace is a network, a pod's label a tag. Kubernetes allows until a policy selects a pod; here nothing is
//! allowed until a rule says so, so that each case says what is left. Ports have no names here: a named port is its
//! number. Whether a pod reaches itself is left out, as it is there. Every verdict is asked of the evaluator and of the
//! compiled rules of both ends.

use std::net::IpAddr;

use warren_model::Label;
use warren_model::policy::{Directory, NetworkRules, Policy, Ports, Protocol, compile};
use warren_model::record::Egress;

use super::common::{judge, label, member, network, now, policy};
use super::router::Router;

/// Everything but what comes to `x/a`.
const BUT_XA: &str = "x,y,z > y,z,x/b,x/c";
/// Everything but what leaves `x/a`.
const BUT_FROM_XA: &str = "x/b,x/c,y,z > x,y,z";
const ALL: &str = "x,y,z > x,y,z";

/// One policy and what it has to come to.
struct Step {
    /// Tags given before: `x/b updated`.
    tags: &'static [&'static str],
    /// `FROM,… > TO,… [PORT,…]`: `x` is a network, `x/a` a tag in it; `!` in front forbids.
    rules: Vec<&'static str>,
    /// For a port, who does not reach whom; `+` in front makes an exception.
    expected: Vec<(&'static str, Vec<&'static str>)>,
}

struct Case {
    name: &'static str,
    steps: Vec<Step>,
}

fn step(rules: &[&'static str], expected: &[(&'static str, &[&'static str])]) -> Step {
    let expected = expected.iter().map(|(port, denied)| (*port, denied.to_vec())).collect();
    Step { tags: &[], rules: rules.to_vec(), expected }
}

fn tagged(tags: &'static [&'static str], step: Step) -> Step {
    Step { tags, ..step }
}

fn case(name: &'static str, steps: impl Into<Vec<Step>>) -> Case {
    Case { name, steps: steps.into() }
}

fn by_selectors() -> Vec<Case> {
    let from_y = || [step(&[BUT_XA, "y > x/a"], &[("tcp/80", &["x/* x/a", "z/* x/a"])])];
    let from_xb = || [step(&[BUT_XA, "x/b > x/a"], &[("tcp/80", &["* x/a", "+x/b x/a"])])];
    vec![
        case("should support a 'default-deny-ingress' policy", [step(&["x,y,z > y,z"], &[("tcp/80", &["* x/*"])])]),
        case("should support a 'default-deny-all' policy", [step(&["y,z > y,z"], &[("tcp/80", &["* x/*", "x/* *"])])]),
        case(
            "should enforce policy to allow traffic from pods within server namespace based on PodSelector",
            from_xb(),
        ),
        case(
            "should enforce policy to allow ingress traffic for a target",
            [step(&["x,y,z > y,z,x/a"], &[("tcp/80", &["* x/b", "* x/c"])])],
        ),
        case(
            "should enforce policy to allow ingress traffic from pods in all namespaces",
            [step(&[ALL], &[("tcp/80", &[])])],
        ),
        case(
            "should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector",
            from_y(),
        ),
        case("should enforce policy based on PodSelector with MatchExpressions", from_xb()),
        case("should enforce policy based on NamespaceSelector with MatchExpressions", from_y()),
        case(
            "should enforce policy based on PodSelector or NamespaceSelector",
            [step(&[BUT_XA, "y,z,x/b > x/a"], &[("tcp/80", &["x/c x/a"])])],
        ),
        case(
            "should enforce policy based on PodSelector and NamespaceSelector",
            [step(&[BUT_XA, "y/b,z/b > x/a"], &[("tcp/80", &["* x/a", "+y/b x/a", "+z/b x/a"])])],
        ),
        case(
            "should enforce policy based on Multiple PodSelectors and NamespaceSelectors",
            [step(&[BUT_XA, "y/b,y/c,z/b,z/c > x/a"], &[("tcp/80", &["x/* x/a", "y/a x/a", "z/a x/a"])])],
        ),
        case(
            "should enforce policy based on any PodSelectors",
            [step(&[BUT_XA, "x/b,x/c > x/a"], &[("tcp/80", &["* x/a", "+x/b x/a", "+x/c x/a"])])],
        ),
        case(
            "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and \
             NamespaceSelector",
            [step(&[BUT_XA, "y/a > x/a"], &[("tcp/80", &["* x/a", "+y/a x/a"])])],
        ),
        case(
            "should enforce policy to allow traffic based on NamespaceSelector with MatchLabels using default ns label",
            from_y(),
        ),
        case(
            "should enforce policy based on NamespaceSelector with MatchExpressions using default ns label",
            [step(&[BUT_FROM_XA, "x/a > x,z"], &[("tcp/80", &["x/a y/*"])])],
        ),
        case(
            "should deny ingress from pods on other namespaces",
            [step(&["x > x", "x,y,z > y,z"], &[("tcp/80", &["y/* x/*", "z/* x/*"])])],
        ),
    ]
}

fn by_ports() -> Vec<Case> {
    let from_y: &[&str] = &["x/* x/a", "z/* x/a"];
    vec![
        case("should enforce policy based on Ports", [step(&[BUT_XA, "y > x/a tcp/81"], &[("tcp/81", from_y)])]),
        case(
            "should enforce multiple, stacked policies with overlapping podSelectors",
            [
                step(&[BUT_XA, "y > x/a tcp/81"], &[("tcp/81", from_y), ("tcp/80", &["* x/a"])]),
                step(&[BUT_XA, "y > x/a tcp/81", "y > x/a tcp/80"], &[("tcp/81", from_y), ("tcp/80", from_y)]),
            ],
        ),
        case("should support allow-all policy", [step(&[ALL], &[("tcp/80", &[]), ("tcp/81", &[])])]),
        case(
            "should allow ingress access on one named port",
            [step(&["x,y,z > y,z", "x,y,z > x tcp/81"], &[("tcp/81", &[]), ("tcp/80", &["* x/*"])])],
        ),
        case(
            "should allow ingress access from namespace on one named port",
            [step(&[BUT_XA, "y > x/a tcp/80"], &[("tcp/80", from_y), ("tcp/81", &["* x/a"])])],
        ),
        case(
            "should allow egress access on one named port",
            [step(&["y,z > x,y,z", "x > x,y,z tcp/80"], &[("tcp/80", &[]), ("tcp/81", &["x/* *"])])],
        ),
        case(
            "should enforce ingress policy allowing any port traffic to a server on a specific protocol",
            [step(&[BUT_XA, "x,y,z > x/a tcp"], &[("tcp/80", &[]), ("udp/80", &["* x/a"])])],
        ),
        case(
            "should enforce multiple ingress policies with ingress allow-all policy taking precedence",
            [
                step(&["x,y,z > y,z", "x,y,z > x tcp/80"], &[("tcp/81", &["* x/*"])]),
                step(&["x,y,z > y,z", "x,y,z > x tcp/80", "x,y,z > x"], &[("tcp/81", &[])]),
            ],
        ),
        case(
            "should enforce multiple egress policies with egress allow-all policy taking precedence",
            [
                step(&["y,z > x,y,z", "x > x,y,z tcp/80"], &[("tcp/81", &["x/* *"])]),
                step(&["y,z > x,y,z", "x > x,y,z tcp/80", "x > x,y,z"], &[("tcp/81", &[])]),
            ],
        ),
        case(
            "should not mistakenly treat 'protocol: SCTP' as 'protocol: TCP', even if the plugin doesn't support SCTP",
            [step(&["x,y,z > y,z", "x,y,z > x/a icmp"], &[("tcp/81", &["* x/*"])])],
        ),
        case(
            "should properly isolate pods that are selected by a policy allowing SCTP, even if the plugin doesn't support SCTP",
            [step(&[BUT_XA, "x,y,z > x/a udp"], &[("tcp/81", &["* x/a"])])],
        ),
        case(
            "should not allow access by TCP when a policy specifies only UDP",
            [step(&[BUT_XA, "x,y,z > x/a udp/81"], &[("tcp/81", &["* x/a"]), ("udp/81", &[])])],
        ),
    ]
}

fn by_direction_and_range() -> Vec<Case> {
    vec![
        case(
            "should deny egress from pods based on PodSelector",
            [step(&[ALL, "!x/a > x,y,z"], &[("tcp/80", &["x/a *"])])],
        ),
        case(
            "should deny egress from all pods in a namespace",
            [step(&[ALL, "!x > x,y,z"], &[("tcp/80", &["x/* *"])])],
        ),
        case(
            "should work with Ingress, Egress specified together",
            [step(
                &["x/b,x/c,y,z > y,z,x/b,x/c", "x/b > x/a", "x/a > y,z,x/b,x/c tcp/80"],
                &[("tcp/80", &["* x/a", "+x/b x/a"]), ("tcp/81", &["* x/a", "x/a *", "+x/b x/a"])],
            )],
        ),
        case(
            "should support denying of egress traffic on the client side (even if the server explicitly allows this traffic)",
            [step(&["x/b,x/c,y,z > x,z,y/c", "x/a > y/a"], &[("tcp/80", &["x/a *", "* y/a", "+x/a y/a", "* y/b"])])],
        ),
        case(
            "should enforce egress policy allowing traffic to a server in a different namespace based on PodSelector and \
             NamespaceSelector",
            [step(&[BUT_FROM_XA, "x/a > y/a"], &[("tcp/80", &["x/a *", "+x/a y/a"])])],
        ),
        case(
            "should allow egress access to server in CIDR block",
            [step(&[BUT_FROM_XA, "x/a > 10.0.2.12/32"], &[("tcp/80", &["x/a *", "+x/a y/b"])])],
        ),
        case(
            "should enforce except clause while egress access to server in CIDR block",
            [step(&[BUT_FROM_XA, "x/a > 0.0.0.0/4", "!x/a > 10.0.1.12/32"], &[("tcp/80", &["x/a x/b"])])],
        ),
        case(
            "should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed",
            [
                step(&[BUT_FROM_XA, "x/a > 0.0.0.0/4", "!x/a > 10.0.1.12/32"], &[("tcp/80", &["x/a x/b"])]),
                step(&[BUT_FROM_XA, "x/a > 10.0.1.12/32"], &[("tcp/80", &["x/a *", "+x/a x/b"])]),
            ],
        ),
        case(
            "should enforce policies to check ingress and egress policies can be controlled independently based on PodSelector",
            [step(&[ALL], &[("tcp/80", &[])]), step(&[ALL, "!x,y,z > x/a"], &[("tcp/80", &["* x/a"])])],
        ),
    ]
}

fn by_change() -> Vec<Case> {
    vec![
        case(
            "should enforce updated policy",
            [step(&[ALL], &[("tcp/81", &[])]), step(&["x,y,z > y,z"], &[("tcp/81", &["* x/*"])])],
        ),
        case(
            "should allow ingress access from updated namespace",
            [
                step(&[BUT_XA, "y/updated > x/a"], &[("tcp/80", &["* x/a"])]),
                tagged(
                    &["y/a updated", "y/b updated", "y/c updated"],
                    step(&[BUT_XA, "y/updated > x/a"], &[("tcp/80", &["* x/a", "+y/* x/a"])]),
                ),
            ],
        ),
        case(
            "should allow ingress access from updated pod",
            [
                step(&[BUT_XA, "x/updated > x/a"], &[("tcp/80", &["* x/a"])]),
                tagged(&["x/b updated"], step(&[BUT_XA, "x/updated > x/a"], &[("tcp/80", &["* x/a", "+x/b x/a"])])),
            ],
        ),
        case(
            "should deny ingress access to updated pod",
            [
                step(&[ALL, "!x,y,z > x/isolated"], &[("tcp/80", &[])]),
                tagged(&["x/a isolated"], step(&[ALL, "!x,y,z > x/isolated"], &[("tcp/80", &["* x/a"])])),
            ],
        ),
        case(
            "should stop enforcing policies after they are deleted",
            [step(&["y,z > y,z"], &[("tcp/80", &["* x/*", "x/* *"])]), step(&[ALL], &[("tcp/80", &[])])],
        ),
    ]
}

fn by_protocol() -> Vec<Case> {
    let from_y: &[&str] = &["x/* x/a", "z/* x/a"];
    vec![
        case(
            "using UDP should support a 'default-deny-ingress' policy",
            [step(&["x,y,z > y,z"], &[("udp/80", &["* x/*"])])],
        ),
        case(
            "using UDP should enforce policy based on Ports",
            [step(&[BUT_XA, "y > x/a udp/81"], &[("udp/81", from_y), ("udp/80", &["* x/a"])])],
        ),
        case(
            "using UDP should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and \
             NamespaceSelector",
            [step(&[BUT_XA, "y/a > x/a"], &[("udp/80", &["* x/a", "+y/a x/a"])])],
        ),
        case(
            "using SCTP should support a 'default-deny-ingress' policy",
            [step(&["x,y,z > y,z"], &[("other", &["* x/*"])])],
        ),
        // SCTP has no ports here: a rule with ports is never about it.
        case(
            "using SCTP should enforce policy based on Ports",
            [step(&[BUT_XA, "y > x/a tcp,udp,icmp"], &[("other", &["* x/a"])])],
        ),
        case(
            "using SCTP should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and \
             NamespaceSelector",
            [step(&[BUT_XA, "y/a > x/a"], &[("other", &["* x/a", "+y/a x/a"])])],
        ),
    ]
}

/// Three networks with three machines each, named and tagged alike.
fn cluster(tags: &[&str]) -> Directory {
    let mut directory = Directory::default();
    for (index, namespace) in ["x", "y", "z"].iter().enumerate() {
        network(&mut directory, namespace, &format!("10.0.{}.0/24", index + 1), Egress::Deny);
        for (host, pod) in ["a", "b", "c"].iter().enumerate() {
            member(&mut directory, &format!("{namespace}/{pod}@10.0.{}.{} {pod}", index + 1, host + 11));
        }
    }
    for text in tags {
        let (place, tag) = text.split_once(' ').unwrap();
        let (namespace, pod) = place.split_once('/').unwrap();
        let is_meant = |member: &&mut warren_model::policy::Member| {
            member.network.as_str() == namespace && member.name.as_str() == pod
        };
        directory.members.iter_mut().find(is_meant).unwrap().tags.insert(tag.parse().unwrap());
    }
    directory
}

fn translated(rules: &[&str]) -> Policy {
    let subject = |text: &str| match text.split_once('/') {
        None => format!("net:{text}"),
        Some((namespace, tag)) if namespace.parse::<IpAddr>().is_err() => format!("{namespace}/tag:{tag}"),
        Some(_) => text.to_owned(),
    };
    let (mut forbid, mut allow) = (Vec::new(), Vec::new());
    for text in rules {
        let (list, text) = match text.strip_prefix('!') {
            Some(rest) => (&mut forbid, rest),
            None => (&mut allow, *text),
        };
        let words: Vec<&str> = text.split(' ').collect();
        let ports: Vec<&str> = words.get(3).map(|ports| ports.split(',').collect()).unwrap_or_default();
        for from in words[0].split(',') {
            for to in words[2].split(',') {
                list.push((subject(from), subject(to), ports.clone()));
            }
        }
    }
    let written = |list: Vec<(String, String, Vec<&str>)>, name: &str| -> Vec<serde_json::Value> {
        let rule = |(index, (from, to, ports)): (usize, (String, String, Vec<&str>))| {
            let mut rule = serde_json::json!({"id": format!("{name}-{index}"), "from": from, "to": to});
            if !ports.is_empty() {
                rule["ports"] = ports.into();
            }
            rule
        };
        list.into_iter().enumerate().map(rule).collect()
    };
    let closed = serde_json::json!({"intra": "deny"});
    let text = serde_json::json!({
        "networks": {"x": closed, "y": closed, "z": closed},
        "forbid": written(forbid, "forbid"),
        "allow": written(allow, "allow"),
    });
    policy(&text.to_string())
}

fn is_denied(denied: &[&str], from: &str, to: &str) -> bool {
    let fits = |pattern: &str, place: &str| {
        pattern == "*" || pattern == place || pattern.strip_suffix('*').is_some_and(|front| place.starts_with(front))
    };
    let mut answer = false;
    for text in denied {
        let (sign, pair) = match text.strip_prefix('+') {
            Some(rest) => (false, rest),
            None => (true, *text),
        };
        let (one, other) = pair.split_once(' ').unwrap();
        if fits(one, from) && fits(other, to) {
            answer = sign;
        }
    }
    answer
}

/// What is wrong with a step.
fn faults(step: &Step) -> Vec<String> {
    let directory = cluster(step.tags);
    let policy = translated(&step.rules);
    let compiled = |network: &Label| -> NetworkRules { compile(&policy, &directory, network, now()).unwrap() };
    let names = ["x", "y", "z"].map(label);
    let rules = names.each_ref().map(compiled);
    let mut faults = Vec::new();
    for (port, denied) in &step.expected {
        for from in &directory.members {
            for to in directory.members.iter().filter(|to| to.id != from.id) {
                let (source, goal) = (format!("{}/{}", from.network, from.name), format!("{}/{}", to.network, to.name));
                let expected = !is_denied(denied, &source, &goal);
                let judged = judge(&policy, &directory, &source, &goal, port).allowed;
                let (protocol, number) = match port.parse::<Ports>() {
                    Ok(ports) => (ports.protocol, ports.single().unwrap_or(0)),
                    Err(_) => (Protocol::Other, 0),
                };
                let both = [(IpAddr::V4(from.ipv4), IpAddr::V4(to.ipv4)), (IpAddr::V6(from.ipv6), IpAddr::V6(to.ipv6))];
                let passes = both.map(|(sender, receiver)| {
                    let ends = [&from.network, &to.network];
                    ends.into_iter().all(|network| {
                        let index = names.iter().position(|name| name == network).unwrap();
                        Router { rules: &rules[index], directory: &directory, network }
                            .passes(sender, receiver, protocol, number)
                    })
                });
                if judged != expected || passes != [expected; 2] {
                    faults.push(format!(
                        "{source} to {goal} on {port}: expected {expected}, judged {judged}, passes {passes:?}"
                    ));
                }
            }
        }
    }
    faults
}

#[test]
fn every_case_of_kubernetes_comes_out_as_there() {
    let cases =
        [by_selectors(), by_ports(), by_direction_and_range(), by_change(), by_protocol()].into_iter().flatten();
    let mut failed = 0;
    let mut count = 0;
    for case in cases {
        let faults: Vec<String> = case.steps.iter().flat_map(faults).collect();
        println!("{} {}", if faults.is_empty() { "ok    " } else { "FAILED" }, case.name);
        for fault in &faults {
            println!("         {fault}");
        }
        failed += usize::from(!faults.is_empty());
        count += 1;
    }
    println!("{count} cases, {failed} failed");
    assert_eq!(failed, 0);
}

#[test]
fn a_port_of_sctp_cannot_be_written() {
    let text = "allow: [{id: a, from: net:x, to: net:x, ports: [sctp/81]}]";
    assert!(warren_model::policy::read(text).is_err());
}
