//! Egress: what `open` opens, and what it never does.

mod common;
#[path = "common/resolver.rs"]
mod resolver;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use common::{Options, Server, eventually, text};
use resolver::Resolver;
use warren_lab::outside::HOST;
use warren_lab::{Internet, Lab, NOT_GLOBAL, Namespace, PUBLIC_V4, PUBLIC_V6, Running};

/// The host's addresses towards the internet.
const HOST_V4: &str = HOST[0];
const HOST_V6: &str = HOST[1];
/// The host's other addresses: a private network behind it, and a second public one.
const HOST_OTHERS: [&str; 4] = ["192.168.50.1", "fd50::1", "185.199.108.7", "2a04:4e42::7"];
const SOON: Duration = Duration::from_secs(30);

/// The internet, and a host on it that does not forward.
struct Online {
    // Dropped in this order: the server before what it stands on.
    server: Server,
    _resolv_conf: ResolvConf,
    _canary: Running,
    lan: Namespace,
    resolver: Resolver,
    internet: Internet,
}

/// What `ip netns exec` shows as `/etc/resolv.conf`; see ip-netns(8).
struct ResolvConf(PathBuf);

impl ResolvConf {
    fn new(host: &Namespace) -> Self {
        let directory = PathBuf::from("/etc/netns").join(host.name());
        std::fs::create_dir_all(&directory).unwrap();
        let text = format!("nameserver {PUBLIC_V4}\nnameserver {PUBLIC_V6}\n");
        std::fs::write(directory.join("resolv.conf"), text).unwrap();
        Self(directory)
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        // Goes with the last one.
        let _ = std::fs::remove_dir("/etc/netns");
    }
}

impl Online {
    /// A server that was given consent to forward.
    fn new() -> Self {
        Self::with(&["--forwarding"], |_, _| {})
    }

    fn with(arguments: &[&str], prepare: impl FnOnce(&Namespace, &Namespace)) -> Self {
        let lab = Lab::new();
        let internet = Internet::new(&lab);
        let resolver = Resolver::new(&internet);
        let host = internet.host(&lab, "host");
        let lan = lab.namespace("lan");
        lab.connect(&host, "lan0", &lan, "eth0");
        for address in HOST_OTHERS {
            let length = if address.contains(':') { 64 } else { 24 };
            host.run(&format!("ip addr add {address}/{length} dev lan0 {}", nodad(address)));
        }
        for (address, gateway) in [("192.168.50.2/24", "192.168.50.1"), ("fd50::2/64", "fd50::1")] {
            lan.run(&format!("ip addr add {address} dev eth0 {}", nodad(address)));
            lan.run(&format!("ip route add default via {gateway}"));
        }
        internet.namespace.run(&format!("ip route add 192.168.50.0/24 via {HOST_V4}"));
        internet.namespace.run(&format!("ip route add fd50::/64 via {HOST_V6}"));
        // A new namespace may start with what the root namespace has.
        forwards(&host, "0");
        prepare(&host, &lan);
        let canary = host.spawn("python3 -m http.server 80 --bind :: --directory /var/empty");
        let resolv_conf = ResolvConf::new(&host);
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let server = Server::start_in(lab, host, Options { arguments, netns_exec: true, ..Options::default() });
        Self { server, _resolv_conf: resolv_conf, _canary: canary, lan, resolver, internet }
    }

    /// An open network `out` with machine `a`.
    fn open(&self) {
        self.server.ok(&["network", "create", "out", "--egress", "open"]);
        self.server.ok(&["machine", "create", "a", "--network", "out"]);
    }
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { "nodad" } else { "" }
}

fn forwards(host: &Namespace, value: &str) {
    for family in ["ipv4", "ipv6"] {
        host.run(&format!("sysctl -qw net.{family}.conf.all.forwarding={value}"));
    }
}

/// The targets to which a TCP connection from the machine is made, all tried at once.
fn reached(server: &Server, machine: &str, targets: &[(String, u16)]) -> Vec<String> {
    let script = format!(
        "import socket\n\
         from concurrent.futures import ThreadPoolExecutor\n\
         targets={:?}\n\
         def reaches(target):\n\
         \x20   try: socket.create_connection(target,1.5).close()\n\
         \x20   except OSError: return\n\
         \x20   print(*target)\n\
         with ThreadPoolExecutor(32) as pool: list(pool.map(reaches,targets))\n",
        targets
    );
    let output = server.ok(&["exec", machine, "--", "python3", "-c", &script]);
    output.lines().map(str::to_owned).collect()
}

fn on_port_80(addresses: &[&str]) -> Vec<(String, u16)> {
    addresses.iter().map(|address| ((*address).to_owned(), 80)).collect()
}

fn connects(from: &Namespace, address: &str, port: u16) -> bool {
    let target = SocketAddr::new(address.parse().unwrap(), port);
    from.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(1)).is_ok())
}

#[test]
fn a_machine_of_an_open_network_reaches_the_internet_in_both_families() {
    let online = Online::new();
    online.open();
    let server = &online.server;
    assert_eq!(server.fetch("a", &format!("http://{PUBLIC_V4}/")), HOST_V4, "masqueraded to the host's address");
    assert_eq!(server.fetch("a", &format!("http://[{PUBLIC_V6}]/")), HOST_V6);
    server.exec("a", &format!("ping -c1 -W2 {PUBLIC_V4} && ping -c1 -W2 {PUBLIC_V6}"));
    let routers = text(&server.in_router(2, &["ip", "route"]).stdout);
    assert!(routers.contains("default via"), "{routers}");
}

#[test]
fn open_egress_reaches_nothing_but_the_public_internet() {
    let online = Online::new();
    online.open();
    let server = &online.server;
    server.ok(&["network", "create", "other", "--egress", "open"]);
    let neighbour = server.json(&["machine", "create", "b", "--network", "other"]);
    let neighbours: Vec<&str> = ["private_ip", "private_ip6"].map(|key| neighbour[key].as_str().unwrap()).into();
    server.exec("b", "nohup python3 -m http.server 80 --bind :: >/dev/null 2>&1 &");

    // The controls: everything that is to be out of reach answers to somebody.
    let host = &server.host;
    let own: Vec<&str> = [HOST_V4, HOST_V6].into_iter().chain(HOST_OTHERS).collect();
    for address in NOT_GLOBAL.iter().chain(&own) {
        assert!(eventually(SOON, || connects(host, address, 80)), "the host does not reach {address}");
    }
    for address in [HOST_V4, HOST_V6] {
        let outside = &online.internet.namespace;
        assert!(eventually(SOON, || connects(outside, address, 80)), "{address} is not reached from outside");
    }
    server.ok(&["machine", "create", "c", "--network", "other"]);
    assert_eq!(
        reached(server, "c", &on_port_80(&neighbours)).len(),
        2,
        "the neighbour does not answer its own network"
    );
    assert!(eventually(SOON, || reached(server, "a", &on_port_80(&[PUBLIC_V4, PUBLIC_V6])).len() == 2));

    let mut targets = on_port_80(&NOT_GLOBAL);
    targets.extend(on_port_80(&own));
    targets.extend(on_port_80(&neighbours));
    targets.extend(on_port_80(&[
        "::ffff:10.99.0.1",
        "0.0.0.0",
        "169.254.1.1",
        "169.254.1.2",
        "240.0.0.1",
        "192.168.50.2",
        "fd50::2",
    ]));
    let api: u16 = server.url().rsplit(':').next().unwrap().parse().unwrap();
    targets.extend(own.iter().chain(&["127.0.0.1", "169.254.1.2", "169.254.1.1"]).map(|a| ((*a).to_owned(), api)));
    let inside = text(&host.run("ip -o addr show").into_bytes());
    for address in inside.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()) {
        if !own.contains(&address) {
            targets.push((address.to_owned(), api));
        }
    }
    let transit = text(&server.in_router(2, &["ip", "-o", "addr", "show", "scope", "global"]).stdout);
    for address in transit.lines().filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()) {
        targets.extend([(address.to_owned(), 80), (address.to_owned(), api)]);
    }
    assert_eq!(reached(server, "a", &targets), Vec::<String>::new());
}

#[test]
fn multicast_stays_inside_and_nobody_comes_in_from_outside() {
    let online = Online::new();
    online.open();
    let server = &online.server;
    let outside = &online.internet.namespace;
    outside.run("nft add table inet canary");
    outside.run("nft add chain inet canary arriving { type filter hook prerouting priority -300 ; }");
    outside.run("nft add rule inet canary arriving udp dport 5353 counter");
    let counted = || {
        let rules = outside.run("nft list chain inet canary arriving");
        let packets = rules.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        packets.unwrap_or_else(|| panic!("no counter in {rules}"))
    };
    let send = |targets: &str| {
        let script = format!(
            "import socket\n\
             for target in {targets}:\n\
             \x20   s=socket.socket(socket.AF_INET6 if ':' in target else socket.AF_INET,socket.SOCK_DGRAM)\n\
             \x20   s.setsockopt(socket.IPPROTO_IP,socket.IP_MULTICAST_TTL,8)\n\
             \x20   if ':' in target: s.setsockopt(socket.IPPROTO_IPV6,socket.IPV6_MULTICAST_HOPS,8)\n\
             \x20   try: s.sendto(b'x',(target,5353))\n\
             \x20   except OSError: pass\n"
        );
        server.ok(&["exec", "a", "--", "python3", "-c", &script]);
    };
    send("['224.0.0.251','239.1.2.3','255.255.255.255','ff02::fb','ff05::2','ff0e::1']");
    assert_eq!(counted(), 0, "multicast went out");
    send(&format!("['{PUBLIC_V4}','{PUBLIC_V6}']"));
    assert!(eventually(SOON, || counted() == 2), "the control was not counted");

    // From outside: to the machine's own addresses, by way of the host.
    let machine = server.json(&["machine", "show", "a"]);
    server.serve("a", "inside");
    for (key, via) in [("private_ip", HOST_V4), ("private_ip6", HOST_V6)] {
        let address = machine[key].as_str().unwrap();
        outside.run(&format!("ip route add {address} via {via}"));
        assert!(!connects(outside, address, 8080), "{address} was reached from outside");
        assert!(!connects(&online.lan, address, 8080), "{address} was reached from behind the host");
        assert!(!connects(&server.host, address, 8080), "{address} was reached from the host");
    }
}

#[test]
fn forwarding_that_was_switched_on_serves_nobody_but_the_networks() {
    let online = Online::with(&["--forwarding"], |host, lan| {
        // The control: without Warren, forwarding would join the host's links.
        forwards(host, "1");
        assert!(eventually(SOON, || lan.pings(PUBLIC_V4) && lan.pings(PUBLIC_V6)));
        forwards(host, "0");
    });
    online.open();
    assert_eq!(online.server.host.run("sysctl -n net.ipv4.conf.all.forwarding").trim(), "1");
    assert_eq!(online.server.host.run("sysctl -n net.ipv6.conf.all.forwarding").trim(), "1");
    assert!(!online.lan.pings(PUBLIC_V4) && !online.lan.pings(PUBLIC_V6), "the host became a router");
    assert!(!online.internet.namespace.pings("192.168.50.2") && !online.internet.namespace.pings("fd50::2"));
    assert_eq!(online.server.fetch("a", &format!("http://{PUBLIC_V4}/")), HOST_V4);
}

#[test]
fn names_are_resolved_through_the_hosts_resolvers_in_open_networks_only() {
    let online = Online::new();
    online.open();
    let server = &online.server;
    server.ok(&["machine", "create", "d"]);
    assert_eq!(server.fetch("a", "-6 http://www.example/"), HOST_V6);
    assert_eq!(server.fetch("a", "-4 http://www.example/"), HOST_V4);
    assert!(server.exec("a", "getent hosts a.vm.internal").contains("a.vm.internal"));
    assert_ne!(server.try_exec("a", "getent hosts missing.example").0, 0);
    assert!(online.resolver.was_asked("missing.example."));

    // An outside name that leads inside is of no use but for an attack.
    assert_ne!(server.try_exec("a", "getent ahosts rebind.example").0, 0);
    assert!(online.resolver.was_asked(resolver::REBINDING));

    // Names of a network never leave it, and a sealed network asks nobody.
    assert_ne!(server.try_exec("a", "getent hosts secret.vm.internal").0, 0);
    assert!(!online.resolver.was_asked("secret.vm.internal."));
    assert_ne!(server.try_exec("d", "getent hosts leak.example").0, 0);
    assert!(!online.resolver.was_asked("leak.example."));
}

#[test]
fn a_sealed_network_beside_an_open_one_reaches_nothing() {
    let online = Online::new();
    online.open();
    let server = &online.server;
    server.ok(&["machine", "create", "d"]);
    let neighbour = server.json(&["machine", "show", "a"]);
    server.serve("a", "open");
    let mut targets = on_port_80(&[PUBLIC_V4, PUBLIC_V6, HOST_V4, HOST_V6]);
    targets.extend(on_port_80(&NOT_GLOBAL));
    targets.extend(on_port_80(&HOST_OTHERS));
    targets.extend([(PUBLIC_V4.to_owned(), 53), (PUBLIC_V6.to_owned(), 53)]);
    targets.extend(["private_ip", "private_ip6"].map(|key| (neighbour[key].as_str().unwrap().to_owned(), 8080)));
    assert_eq!(reached(server, "d", &targets), Vec::<String>::new());
    let routes = text(&server.in_router(1, &["ip", "route"]).stdout);
    assert!(routes.contains("prohibit default") && !routes.contains("default via"), "{routes}");
    let links = text(&server.in_router(1, &["ip", "-o", "link"]).stdout);
    assert!(!links.contains(&format!("w{}u", server.installation())), "a sealed network has an uplink: {links}");
}

#[test]
fn private_and_egress_traffic_are_counted_apart() {
    const BYTES: u64 = 200_000;
    let online = Online::new();
    online.open();
    let server = &online.server;
    server.ok(&["machine", "create", "b", "--network", "out"]);
    let counters = |machine: &str| server.json(&["traffic", machine]);
    let count = |machine: &str, kind: &str, what: &str| counters(machine)[kind][what].as_u64().unwrap();
    assert_eq!(count("a", "egress", "sent_bytes") + count("a", "egress", "received_bytes"), 0);

    server.exec("b", &format!("mkdir -p /srv/www && head -c {BYTES} /dev/zero > /srv/www/zeros"));
    server.serve("b", "hello");
    server.exec("a", "curl -sS -o /dev/null http://b.vm.internal:8080/zeros");
    let private = count("a", "private", "received_bytes");
    assert!((BYTES..BYTES * 2).contains(&private), "{}", counters("a"));
    assert!(count("b", "private", "sent_bytes") >= BYTES, "{}", counters("b"));
    assert!(count("b", "private", "received_packets") > 0, "{}", counters("b"));
    assert_eq!(count("a", "egress", "sent_bytes") + count("a", "egress", "received_bytes"), 0, "{}", counters("a"));

    let before = count("a", "private", "sent_bytes");
    server.exec("a", &format!("head -c {BYTES} /dev/zero | curl -sS --data-binary @- http://{PUBLIC_V4}/ || true"));
    let sent = count("a", "egress", "sent_bytes");
    assert!(sent > 1_000, "{}", counters("a"));
    assert!(count("a", "egress", "received_bytes") > 0, "{}", counters("a"));
    assert_eq!(count("a", "private", "sent_bytes"), before, "egress was counted as private: {}", counters("a"));
    server.fetch("a", &format!("http://[{PUBLIC_V6}]/"));
    assert!(count("a", "egress", "sent_bytes") > sent, "IPv6 is not counted: {}", counters("a"));
    assert_eq!(count("b", "egress", "sent_bytes"), 0, "{}", counters("b"));
}

#[test]
fn without_consent_open_egress_is_refused_and_nothing_is_changed() {
    let online = Online::with(&[], |_, _| {});
    let server = &online.server;
    let before = settled(&server.host);
    server.refused_as("forwarding_required", &["network", "create", "out", "--egress", "open"]);
    let problem = server.refused(&["network", "create", "out", "--egress", "open"]);
    assert!(problem["detail"].as_str().unwrap().contains("--forwarding"), "{problem}");
    server.refused_as("not_found", &["network", "show", "out"]);
    server.ok(&["network", "create", "out"]);
    server.ok(&["machine", "create", "a", "--network", "out"]);
    assert_same(&settings(&server.host), &before);
    assert_eq!(reached(server, "a", &on_port_80(&[PUBLIC_V4, PUBLIC_V6])), Vec::<String>::new());
}

#[test]
fn uninstall_leaves_the_host_as_it_was() {
    let harden = |host: &Namespace| {
        host.run("sysctl -qw net.ipv4.conf.all.accept_redirects=0");
        host.run("sysctl -qw net.ipv4.conf.lan0.forwarding=1");
        host.run("sysctl -qw net.ipv6.conf.wan0.accept_ra=1");
    };
    let mut before = BTreeSet::new();
    let mut online = Online::with(&["--forwarding"], |host, _| {
        harden(host);
        before = settled(host);
    });
    online.open();
    assert_eq!(online.server.fetch("a", &format!("http://{PUBLIC_V4}/")), HOST_V4);
    assert_ne!(settings(&online.server.host), before, "the control: something was changed");
    let left = online.server.uninstall();
    assert!(left.is_empty(), "{left:#?}");
    assert_same(&settings(&online.server.host), &before);
}

#[test]
fn uninstall_from_another_namespace_finds_the_one_that_the_server_ran_in() {
    for killed in [false, true] {
        let mut before = BTreeSet::new();
        let mut online = Online::with(&["--forwarding"], |host, _| before = settled(host));
        online.open();
        if killed {
            online.server.kill();
        }
        let elsewhere = Lab::new().namespace("elsewhere");
        forwards(&elsewhere, "1");
        let settings_elsewhere = settings(&elsewhere);
        let left = online.server.uninstall_from(&elsewhere);
        assert!(left.is_empty(), "{left:#?}");
        assert_same(&settings(&online.server.host), &before);
        assert_same(&settings(&elsewhere), &settings_elsewhere);
    }
}

#[test]
fn what_forwarded_before_goes_on_and_is_left_alone() {
    let mut before = BTreeSet::new();
    let mut online = Online::with(&[], |host, _| {
        forwards(host, "1");
        before = settled(host);
    });
    online.open();
    assert_eq!(online.server.fetch("a", &format!("http://{PUBLIC_V4}/")), HOST_V4);
    assert!(
        eventually(SOON, || online.lan.pings(PUBLIC_V4) && online.lan.pings(PUBLIC_V6)),
        "the host no longer forwards for others"
    );
    online.server.ok(&["network", "rm", "out", "--force"]);
    eventually(SOON, || settings(&online.server.host) == before);
    assert_same(&settings(&online.server.host), &before);
    online.server.ok(&["network", "create", "out", "--egress", "open"]);
    let left = online.server.uninstall();
    assert!(left.is_empty(), "{left:#?}");
    assert_same(&settings(&online.server.host), &before);
}

#[test]
fn a_lost_uplink_or_rule_of_the_host_is_made_anew() {
    let online = Online::new();
    online.open();
    let server = &online.server;
    let works = || server.try_exec("a", &format!("curl -sS --max-time 1 http://{PUBLIC_V4}/")).1 == HOST_V4;
    assert!(works());
    let installation = server.installation();
    for damage in [
        format!("ip link del w{installation}u2"),
        format!("nft delete table inet warren_{installation}"),
        "sysctl -qw net.ipv4.conf.all.forwarding=0".to_owned(),
    ] {
        server.host.run(&damage);
        assert!(
            eventually(SOON, || !server.host.run("nft list ruleset").is_empty() && works()),
            "{damage}\n{}",
            server.log()
        );
    }
    assert!(server.waits_for_event("drift_repaired", SOON));
}

/// Everything that open egress may change in the host's namespace: settings, links, addresses, routes, rules.
fn settings(host: &Namespace) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for command in [
        "sysctl net.ipv4.conf net.ipv6.conf",
        "ip -o link show",
        "ip -o addr show",
        "ip -o -4 route show table all",
        "ip -o -6 route show table all",
        "nft list ruleset",
    ] {
        // What the kernel chooses or counts down by itself.
        let steady = |line: &&str| !line.contains("stable_secret") && !line.contains("dadfailed");
        all.extend(host.run(command).lines().filter(steady).map(str::to_owned));
    }
    all
}

/// The same, when the kernel has made up its mind about the links' own addresses.
fn settled(host: &Namespace) -> BTreeSet<String> {
    assert!(eventually(SOON, || host.run("ip -6 addr show tentative").is_empty()));
    settings(host)
}

#[track_caller]
fn assert_same(now: &BTreeSet<String>, before: &BTreeSet<String>) {
    let (came, went): (Vec<_>, Vec<_>) = (now.difference(before).collect(), before.difference(now).collect());
    assert!(came.is_empty() && went.is_empty(), "came: {came:#?}\nwent: {went:#?}");
}
