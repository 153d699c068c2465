//! Small random policies: what `explain` and `reach` promise is what packets do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use serde_json::Value;

use crate::common::{Options, Server, eventually, text};

const ROUNDS: u64 = 6;
const PORTS: [u16; 3] = [7001, 7002, 7003];
const MACHINES: [(&str, &str, &str); 4] =
    [("a", "one", "red"), ("b", "one", "blue"), ("c", "one", "red"), ("d", "two", "blue")];
const RESPOND: &str = include_str!("respond.py");

/// Numbers that follow from a seed (xorshift64*), so that what failed can be tried again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }
}

/// A policy of a few rules over the machines.
fn policy(random: &mut Random) -> String {
    let subjects = [
        "net:one",
        "net:two",
        "one/a",
        "one/b",
        "one/c",
        "two/d",
        "one/tag:red",
        "one/tag:blue",
        "two/tag:blue",
        "one/10.51.0.10",
        "10.51.0.10/31",
        "10.0.0.0/8",
    ];
    let ports =
        ["", "[tcp/7001]", "[tcp/7001-7002]", "[udp/7002]", "[udp]", "[tcp]", "[tcp/7003, udp/7001-7003]", "[icmp]"];
    let mut policy = String::from("networks:\n");
    for network in ["one", "two"] {
        let _ = writeln!(policy, "  {network}: {{intra: {}}}", random.one(&["allow", "deny", "deny"]));
    }
    for (list, most) in [("forbid", 2), ("allow", 4)] {
        let count = random.below(most + 1);
        let _ = writeln!(policy, "{list}:{}", if count == 0 { " []" } else { "" });
        for number in 0..count {
            let ports = match random.one(&ports) {
                "" => String::new(),
                ports => format!(", ports: {ports}"),
            };
            let (from, to) = (random.one(&subjects), random.one(&subjects));
            let _ = writeln!(policy, "  - {{id: {list}-{number}, from: \"{from}\", to: \"{to}\"{ports}}}");
        }
    }
    policy
}

/// Applies the next policy that is one: rules that leave nothing of another are refused.
fn apply_next(server: &Server, random: &mut Random) -> String {
    for _ in 0..100 {
        let policy = policy(random);
        let Err(problem) = server.try_apply(&policy) else { return policy };
        let errors = problem["errors"].as_array().into_iter().flatten();
        let contradicts =
            errors.map(|error| error["message"].as_str().unwrap_or_default().contains(" allows nothing: "));
        assert!(contradicts.clone().count() > 0 && contradicts.clone().all(|is| is), "{problem}\n{policy}");
    }
    panic!("a hundred policies in a row contradict themselves");
}

/// Sends one text to every port of every other machine, in both protocols and both families.
fn probe(round: u64, from: &str, addresses: &BTreeMap<&str, [String; 2]>) -> String {
    let targets: Vec<(&str, &str, usize)> = addresses
        .iter()
        .filter(|(to, _)| **to != from)
        .flat_map(|(to, two)| two.iter().enumerate().map(move |(family, address)| (*to, address.as_str(), family)))
        .collect();
    format!(
        "import socket,time\n\
         from concurrent.futures import ThreadPoolExecutor\n\
         def tcp(to):\n\
         \x20 try:\n\
         \x20  with socket.create_connection(to[:2],1.2) as s: s.sendall(to[2])\n\
         \x20 except OSError: pass\n\
         def udp(to):\n\
         \x20 try:\n\
         \x20  with socket.socket(socket.AF_INET6 if ':' in to[0] else socket.AF_INET,socket.SOCK_DGRAM) as s: s.sendto(to[2],to[:2])\n\
         \x20 except OSError: pass\n\
         all=[(a,p,f'{round} {from}>{{m}} {{f}}'.encode()) for m,a,f in {targets:?} for p in {PORTS:?}]\n\
         with ThreadPoolExecutor(40) as pool: list(pool.map(tcp,all)); list(pool.map(udp,all))\n\
         time.sleep(0.1)\n"
    )
}

/// Whether what `reach` lists for a pair covers a port: `tcp/7001-7002`, `udp`, `any`.
fn covers(open: &Value, protocol: &str, port: u16) -> bool {
    open.as_array().into_iter().flatten().filter_map(Value::as_str).any(|listed| match listed.split_once('/') {
        None => listed == "any" || listed == protocol,
        Some((said, range)) => {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            said == protocol && (first.parse().unwrap_or(1)..=last.parse().unwrap_or(0)).contains(&port)
        }
    })
}

#[test]
fn random_policies_do_to_packets_what_they_promise() {
    // Rules to ranges outside need both.
    let arguments = ["--forwarding", "--private-range", "10.0.0.0/8"].map(str::to_owned).to_vec();
    let options = Options { arguments, ..Options::default() };
    let server = Server::start_with(options);
    server.ok(&["network", "create", "one", "--cidr", "10.51.0.0/24"]);
    server.ok(&["network", "create", "two", "--cidr", "10.52.0.0/24"]);
    let mut addresses = BTreeMap::new();
    for (machine, network, tag) in MACHINES {
        let made = server.json(&["machine", "create", machine, "--network", network, "--tag", tag]);
        addresses.insert(machine, ["private_ip", "private_ip6"].map(|key| made[key].as_str().unwrap().to_owned()));
        let given =
            server.run_with_input(&["exec", machine, "--", "sh", "-c", "cat > /root/respond.py"], RESPOND.as_bytes());
        assert!(given.status.success(), "{}", text(&given.stderr));
        server.exec(
            machine,
            "nohup python3 /root/respond.py >/dev/null 2>&1 & while ! test -e /root/responds; do sleep 0.05; done",
        );
    }
    let seed = match std::env::var("WARREN_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64,
    };
    // Past the capture of the test's output, so that it is known also when the test passes.
    let _ = writeln!(std::io::stderr(), "random policies: WARREN_SEED={seed}");
    let mut random = Random(seed | 1);
    let (mut allowed, mut denied) = (0, 0);
    for round in 0..ROUNDS {
        let policy = apply_next(&server, &mut random);
        let promised = promised(&server);
        std::thread::scope(|scope| {
            for (machine, ..) in MACHINES {
                let (server, script) = (&server, probe(round, machine, &addresses));
                scope.spawn(move || server.ok(&["exec", machine, "--", "python3", "-c", &script]));
            }
        });
        let arrivals = |machine: &str| server.exec(machine, "cat /root/arrived 2>/dev/null; true");
        let line = |flow: &Flow, family: usize| {
            let (from, to, protocol, port) = flow;
            format!("{protocol} {port} {round} {from}>{to} {family}")
        };
        let mut arrived: BTreeSet<String> = BTreeSet::new();
        // What was sent last may still wait to be written down.
        eventually(Duration::from_secs(30), || {
            arrived = MACHINES.map(|(machine, ..)| arrivals(machine)).concat().lines().map(str::to_owned).collect();
            let came = |flow| [0, 1].iter().all(|family| arrived.contains(&line(flow, *family)));
            promised.iter().filter(|(_, verdict)| **verdict).all(|(flow, _)| came(flow))
        });
        for (flow, verdict) in promised {
            let came = [0, 1].map(|family| arrived.contains(&line(&flow, family)));
            let (from, to, protocol, port) = flow;
            let what = format!("WARREN_SEED={seed}, round {round}: {from} to {to} on {protocol}/{port} (IPv4, IPv6)");
            assert_eq!(came, [verdict; 2], "{what}\n{policy}");
            if verdict { allowed += 1 } else { denied += 1 }
        }
    }
    assert!(allowed > 0 && denied > 0, "WARREN_SEED={seed}: {allowed} allowed, {denied} denied: nothing was compared");
}

/// From, to, protocol and port.
type Flow = (&'static str, &'static str, &'static str, u16);
type Promised = BTreeMap<Flow, bool>;

/// What `explain` says of every pair, port and protocol; `reach` has to say the same.
fn promised(server: &Server) -> Promised {
    let reach = server.json(&["reach"]);
    let mut all = Promised::new();
    for (from, from_network, _) in MACHINES {
        let from_name = format!("{from_network}/{from}");
        let row = reach["items"].as_array().unwrap().iter().find(|row| row["from"] == from_name.as_str());
        for (to, to_network, _) in MACHINES.into_iter().filter(|(to, ..)| *to != from) {
            let name = format!("{to_network}/{to}");
            let cell = row.and_then(|row| row["to"].as_array()?.iter().find(|cell| cell["to"] == name.as_str()));
            for (protocol, port) in ["tcp", "udp"].into_iter().flat_map(|protocol| PORTS.map(|port| (protocol, port))) {
                let listed = cell.is_some_and(|cell| covers(&cell["open"], protocol, port));
                let (verdict, rule) = server.explain(&from_name, &name, &format!("{protocol}/{port}"));
                assert_eq!(
                    listed, verdict,
                    "reach and explain differ: {from_name} to {name}, {protocol}/{port}, {rule:?}"
                );
                all.insert((from, to, protocol, port), verdict);
            }
        }
    }
    all
}
