//! Networks that policy joins.

use crate::common::Server;

const LINK: &str = "networks:\n  left: {intra: deny}\n\
                    allow:\n  - {id: over, from: left/tag:in, to: right/tag:out, ports: [tcp/8080]}\n";

/// Networks `left` with `a` (tag in) and `b`, and `right` with `c` (tag out) and `d`, all serving.
fn two(left: &str, right: &str) -> Server {
    let server = Server::start();
    for (network, cidr) in [("left", left), ("right", right)] {
        server.ok(&["network", "create", network, "--cidr", cidr]);
    }
    for (machine, network, tag) in
        [("a", "left", "in"), ("b", "left", "none"), ("c", "right", "out"), ("d", "right", "none")]
    {
        server.ok(&["machine", "create", machine, "--network", network, "--tag", tag]);
        server.serve(machine, machine);
    }
    server
}

/// Who answers when each machine goes to each other one's address, in one family: pairs such as `a>c`.
fn met(server: &Server, key: &str) -> Vec<String> {
    let machines = ["a", "b", "c", "d"];
    let address = |machine: &str| server.json(&["machine", "show", machine])[key].as_str().unwrap().to_owned();
    let urls: Vec<String> = machines
        .iter()
        .map(|machine| address(machine))
        .map(|address| {
            if address.contains(':') { format!("http://[{address}]:8080/") } else { format!("http://{address}:8080/") }
        })
        .collect();
    let mut all = Vec::new();
    for (from, own) in machines.iter().zip(&urls) {
        let others: Vec<&str> = urls.iter().filter(|url| *url != own).map(String::as_str).collect();
        let script =
            format!("for u in {}; do curl -sS --globoff --max-time 2 \"$u\" 2>/dev/null; done; true", others.join(" "));
        all.extend(server.exec(from, &script).lines().map(|to| format!("{from}>{to}")));
    }
    all.sort();
    all
}

#[test]
fn a_rule_joins_two_networks_in_one_direction_and_for_nobody_else() {
    let server = two("10.31.0.0/24", "10.32.0.0/24");
    let apart = ["a>b", "b>a", "c>d", "d>c"];
    assert_eq!(met(&server, "private_ip"), apart);
    assert_eq!(met(&server, "private_ip6"), apart);
    server.apply(LINK);
    for key in ["private_ip", "private_ip6"] {
        assert_eq!(met(&server, key), ["a>c", "c>d", "d>c"], "{key}");
    }
    // Undone, they are apart again.
    server.apply("networks:\n  left: {intra: allow}\n");
    assert_eq!(met(&server, "private_ip"), apart);
    assert_eq!(met(&server, "private_ip6"), apart);
    let routes = crate::common::text(&server.in_router(2, &["ip", "-4", "route"]).stdout);
    assert!(!routes.contains("10.32."), "a route stays: {routes}");
}

#[test]
fn networks_whose_ranges_overlap_are_joined_over_ipv6_only() {
    let server = two("10.33.0.0/24", "10.33.0.0/24");
    server.apply(LINK);
    assert_eq!(met(&server, "private_ip6"), ["a>c", "c>d", "d>c"]);
    // The same IPv4 addresses are there twice: each machine meets its own network's.
    let server_of =
        |from: &str, address: &str| server.exec(from, &format!("curl -sS --max-time 2 http://{address}:8080/ || true"));
    let d = server.json(&["machine", "show", "d"])["private_ip"].as_str().unwrap().to_owned();
    assert_eq!(server_of("c", &d).trim(), "d");
    assert_eq!(server_of("a", &d).trim(), "", "IPv4 was joined although the ranges overlap");
    assert_eq!(met(&server, "private_ip").iter().filter(|pair| pair.starts_with('a')).count(), 0);
    assert!(server.explain("left/a", "right/c", "tcp/8080").0);
}

#[test]
fn a_link_carries_no_names_and_no_way_out() {
    let server = two("10.34.0.0/24", "10.35.0.0/24");
    server.apply(LINK);
    assert_ne!(server.try_exec("a", "getent hosts d.vm.internal").0, 0, "a name of the other network was answered");
    for gateway in ["10.35.0.1", "169.254.169.254"] {
        assert!(!server.reaches("a", gateway, 53) && !server.reaches("a", gateway, 3128), "{gateway}");
    }
}
