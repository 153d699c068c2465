//! An internet, a server on it, machines, and the policy that the catalogue is about.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use warren_lab::Lab;
use warren_lab::outside::{Answer, HOST, Mark, Outside, RESOLVERS, SSH_ON_443};

use crate::common::{Options, Server, eventually, text};
use crate::state::Breakable;

/// How machines are made. Every driver has to pass the same table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Container,
}

impl Driver {
    /// What `machine create` is told beside the rest.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Container => &[],
        }
    }
}

/// Within what time a flow that is no longer allowed is cut: less than the 2 s after which the daemon looks at everything
/// by itself.
pub const CUT: Duration = Duration::from_millis(1900);

/// Allowed by name, for the web.
pub const API: &str = "api.allowed.example";
pub const API_AT: [&str; 2] = ["151.101.1.10", "2a04:4e42::10"];
/// On the same addresses, and in no rule.
pub const SIBLING: &str = "sibling.unlisted.example";
/// In no rule, and on addresses of its own.
pub const CANARY: &str = "canary.unlisted.example";
pub const CANARY_AT: [&str; 2] = ["185.199.108.9", "2a04:4e42:200::9"];
/// Allowed by address, on tcp/8443 and udp/7.
pub const RANGE_AT: [&str; 2] = ["45.33.32.9", "2a01:7e00::9"];
/// In networks of the same range, machines with this address.
pub const MATE_AT: &str = "10.77.0.20";
/// Another address of the host, of a private network behind it.
pub const BEHIND_HOST: &str = "192.168.50.1";

pub const POLICY: &str = r#"
networks:
  dev: {intra: deny}
  empty: {intra: deny}
forbid:
  - {id: no-bad, from: net:dev, to: {name: bad.wild.example}}
allow:
  - {id: web, from: dev/tag:agent, to: {name: "*.allowed.example"}, ports: [tcp/80, tcp/443]}
  - {id: github, from: dev/tag:agent, to: {name: "*.github.com"}, ports: [tcp/443]}
  - {id: wild, from: dev/tag:agent, to: {name: "**.wild.example"}, ports: [tcp/443]}
  - {id: git, from: dev/tag:agent, to: {name: git.allowed.example}, ports: [tcp/22]}
  - {id: db, from: dev/tag:agent, to: {name: db.allowed.example}, ports: [tcp/5432]}
  - {id: range, from: dev/tag:agent, to: "45.33.32.0/24", ports: [tcp/8443, udp/7]}
  - {id: range6, from: dev/tag:agent, to: "2a01:7e00::/32", ports: [tcp/8443, udp/7]}
  - {id: mates, from: dev/tag:agent, to: dev/mate, ports: [tcp/8080-8081, udp/9]}
"#;

pub struct World {
    // Dropped in this order: the server before what it stands on.
    pub server: Server,
    pub outside: Outside,
    pub nft: Breakable,
    driver: Driver,
    beginning: Mark,
}

impl World {
    /// A server on an internet, without networks of its own making.
    pub fn new(driver: Driver) -> Self {
        let lab = Lab::new();
        let (outside, host) = Outside::new(&lab);
        host.run(&format!("ip addr add {BEHIND_HOST}/24 dev lo"));
        let mut all: Vec<String> = vec!["--forwarding".to_owned()];
        for resolver in RESOLVERS {
            all.extend(["--resolver".to_owned(), resolver.to_owned()]);
        }
        let nft = Breakable::new();
        let options = Options { arguments: all, environment: vec![nft.environment()], ..Options::default() };
        let beginning = outside.log.mark();
        let world = Self { server: Server::start_in(lab, host, options), outside, nft, driver, beginning };
        world.name_the_world();
        world
    }

    /// The world of the catalogue: `agent` and `mate` in `dev`, `twin` at the mate's address in another network, `lonely`
    /// where nothing is allowed, and `control` where egress is open.
    pub fn of_the_catalogue(driver: Driver) -> Self {
        let world = Self::new(driver);
        let server = &world.server;
        for (network, more) in
            [("dev", &[][..]), ("twins", &[]), ("empty", &["--egress", "deny"]), ("free", &["--egress", "open"])]
        {
            let cidr = if network == "twins" || network == "dev" { "10.77.0.0/24" } else { "10.88.0.0/24" };
            server.ok(&[&["network", "create", network, "--cidr", cidr][..], more].concat());
        }
        world.create("agent", "dev", &["--ip", "10.77.0.10", "--tag", "agent"]);
        world.create("mate", "dev", &["--ip", MATE_AT]);
        world.create("twin", "twins", &["--ip", MATE_AT]);
        world.create("lonely", "empty", &[]);
        world.create("control", "free", &[]);
        world.apply(POLICY);
        for port in [80, 8888] {
            world.outside.listen_in(&server.host, port);
        }
        world
    }

    fn name_the_world(&self) {
        let names = &self.outside.names;
        names.addresses(API, &API_AT);
        names.addresses(SIBLING, &API_AT);
        names.addresses(CANARY, &CANARY_AT);
        names.addresses("www.allowed.example", &["151.101.1.11", "2a04:4e42::11"]);
        names.addresses("*.allowed.example", &["151.101.1.13"]);
        names.addresses("git.allowed.example", &["140.82.112.4"]);
        names.addresses("db.allowed.example", &["3.33.130.190"]);
        names.addresses("four.allowed.example", &["151.101.1.14"]);
        names.addresses("ssh443.allowed.example", &[&SSH_ON_443.to_string()]);
        names.addresses("*.wild.example", &["151.101.1.12"]);
        names.addresses("*.unlisted.example", &["185.199.108.10"]);
        for name in ["a.github.com", "github.com", "evilgithub.com", "github.com.evil.example", "x.y.github.com"] {
            names.addresses(name, &["140.82.112.3"]);
        }
        for (name, addresses) in BAD_ANSWERS {
            names.addresses(name, addresses);
        }
        names.addresses("inner.unlisted.example", &["10.99.0.1", "fd00:ec2::254"]);
        names.set("alias.allowed.example", Answer::Alias("inner.unlisted.example".to_owned()));
        names.set("ech.allowed.example", Answer::WithEch(vec!["151.101.1.15".parse().unwrap()]));
    }

    /// Creates a machine that can probe.
    pub fn create(&self, name: &str, network: &str, more: &[&str]) -> Value {
        let arguments = [&["machine", "create", name, "--network", network], self.driver.arguments(), more].concat();
        let made = self.server.json(&arguments);
        self.equip(name);
        made
    }

    /// Gives a machine the probe and the authority's certificate.
    pub fn equip(&self, machine: &str) {
        let script = "cat > /root/probe.py";
        let probe = self.server.run_with_input(&["exec", machine, "--", "sh", "-c", script], PROBE.as_bytes());
        assert!(probe.status.success(), "{}", text(&probe.stderr));
        let certificate = self.outside.certificate().as_bytes();
        let given = self.server.run_with_input(&["exec", machine, "--", "sh", "-c", "cat > /root/ca.pem"], certificate);
        assert!(given.status.success(), "{}", text(&given.stderr));
    }

    /// Runs Python in a machine, with the probe at hand; what it printed. A mistake in the code fails the test.
    #[track_caller]
    pub fn py(&self, machine: &str, code: &str) -> String {
        let output = self.py_output(machine, code);
        assert!(output.status.success(), "{}\n{code}\n{}", text(&output.stderr), self.server.log());
        text(&output.stdout).trim().to_owned()
    }

    pub fn py_output(&self, machine: &str, code: &str) -> Output {
        let code = format!("import sys; sys.path.insert(0, '/root'); from probe import *\n{code}");
        self.server.run(&["exec", "--timeout", "30s", machine, "--", "python3", "-c", &code])
    }

    /// Starts Python in a machine that goes on by itself, also without a daemon.
    pub fn start(&self, machine: &str, name: &str, code: &str) {
        let code = format!("import sys; sys.path.insert(0, '/root'); from probe import *\n{code}");
        let write = format!("cat > /root/{name}.py; rm -f /root/{name}.out");
        let written = self.server.run_with_input(&["exec", machine, "--", "sh", "-c", &write], code.as_bytes());
        assert!(written.status.success(), "{}", text(&written.stderr));
        self.server.exec(machine, &format!("nohup python3 -u /root/{name}.py >/root/{name}.out 2>&1 &"));
    }

    /// What a script that was started has printed so far.
    pub fn output(&self, machine: &str, name: &str) -> String {
        self.server.try_exec(machine, &format!("cat /root/{name}.out")).1
    }

    /// Runs Python in the host's namespace, where nothing is forbidden, with the probe at hand.
    pub fn on_host(&self, code: &str) -> String {
        let prelude = PROBE.replace("open('/etc/resolv.conf')", "['nameserver 127.0.0.1']").replace("'eth0'", "'wan0'");
        let code = format!("{prelude}\n{code}");
        let output = self.server.host.enter(|| {
            let mut child = Command::new("timeout")
                .args(["20", "python3", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(code.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        format!("{}{}", text(&output.stdout), text(&output.stderr)).trim().to_owned()
    }

    /// Applies a policy, which has to be accepted.
    #[track_caller]
    pub fn apply(&self, policy: &str) -> Value {
        self.server.apply(policy)
    }

    /// Before anything.
    pub fn beginning(&self) -> Mark {
        self.beginning
    }

    pub fn mark(&self) -> Mark {
        self.outside.log.mark()
    }

    /// How many packets went to any of these addresses since then.
    pub fn packets(&self, mark: Mark, addresses: &[&str]) -> usize {
        let count = |address: &&str| self.outside.log.packets_to(mark, address.parse().unwrap()).len();
        addresses.iter().map(count).sum()
    }

    /// Waits for something that takes a moment to be seen.
    pub fn soon(&self, holds: impl FnMut() -> bool) -> bool {
        eventually(Duration::from_secs(30), holds)
    }

    /// How often each record of a refusal has counted so far.
    pub fn counts(&self) -> HashMap<String, u64> {
        let count =
            |item: &Value| (item["id"].as_str().unwrap_or_default().to_owned(), item["count"].as_u64().unwrap_or(1));
        self.server.denials().iter().map(count).collect()
    }

    /// The first refusal that was recorded, or counted again, after `before`, and that is like this.
    pub fn recorded(&self, before: &HashMap<String, u64>, like: impl Fn(&Value) -> bool) -> Option<Value> {
        let mut found = None;
        self.soon(|| {
            let news = |item: &&Value| {
                let id = item["id"].as_str().unwrap_or_default();
                before.get(id).is_none_or(|count| item["count"].as_u64().unwrap_or(1) > *count)
            };
            found = self.server.denials().iter().filter(news).find(|item| like(item)).cloned();
            found.is_some()
        });
        found
    }
}

/// Names that a rule allows and that lead where nothing may go.
pub const BAD_ANSWERS: [(&str, &[&str]); 8] = [
    ("private.allowed.example", &["10.99.0.1"]),
    ("shared.allowed.example", &["100.64.3.3"]),
    ("metadata.allowed.example", &["169.254.169.254", "fd00:ec2::254"]),
    ("host.allowed.example", &HOST),
    ("behind.allowed.example", &[BEHIND_HOST]),
    ("loopback.allowed.example", &["127.0.0.1", "::1"]),
    ("mapped.allowed.example", &["::ffff:10.99.0.1", "64:ff9b::a63:1", "2002:a63:1::"]),
    ("member.allowed.example", &["10.77.0.20", "198.18.0.1"]),
];

const PROBE: &str = include_str!("probe.py");

/// Whether a record is about this machine.
pub fn is_of(item: &Value, machine: &str) -> bool {
    [&item["machine"], &item["machine"]["name"], &item["machine_name"]].iter().any(|said| **said == machine)
}

/// Whether a record is about this address.
pub fn is_to(item: &Value, address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    item["to"].as_str().and_then(|to| to.parse::<IpAddr>().ok()) == Some(address)
}
