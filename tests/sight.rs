//! What machines are told of each other and of what is outside: nothing that does not exist for them.

mod common;

use std::time::Duration;

use common::{Options, Server, eventually, text};
use warren_lab::Lab;
use warren_lab::outside::{Outside, RESOLVERS};

/// How long the facts may lag behind.
const SOON: Duration = Duration::from_secs(30);

const APART: &str = "\
networks:
  lab: {intra: deny}
allow:
  - {id: db, from: lab/a, to: lab/b, ports: [tcp/8080]}
";
const LINKED: &str = "  - {id: over, from: lab/a, to: prod/d, ports: [tcp/8080]}\n";

/// Asks the resolver and prints all of the answer but the question, in hexadecimal.
const ASK: &str = r#"
import socket, struct, sys
def ask(name, kind):
    labels = b''.join(bytes([len(label)]) + label.encode() for label in name.split('.'))
    query = struct.pack('>6H', 7, 0x100, 1, 0, 0, 0) + labels + b'\0' + struct.pack('>2H', kind, 1)
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(20)
    s.sendto(query, ([line.split()[1] for line in open('/etc/resolv.conf') if line.startswith('nameserver')][0], 53))
    answer = s.recv(4096)
    return (answer[:12] + answer[len(query):]).hex()
for name in sys.argv[1:]:
    print(*[ask(name, kind) for kind in (1, 28, 12, 255)])
"#;

fn resolves(server: &Server, machine: &str, name: &str) -> bool {
    server.try_exec(machine, &format!("getent ahosts {name}")).0 == 0
}

fn facts(server: &Server, machine: &str) -> String {
    server.exec(machine, "cat /etc/warren/facts.md")
}

fn reverse(address: &str) -> String {
    let mut octets: Vec<&str> = address.split('.').collect();
    octets.reverse();
    format!("{}.in-addr.arpa", octets.join("."))
}

#[test]
fn members_that_policy_keeps_apart_do_not_exist_for_each_other() {
    let server = Server::start();
    for (network, cidr) in [("lab", "10.61.0.0/24"), ("prod", "10.62.0.0/24")] {
        server.ok(&["network", "create", network, "--cidr", cidr]);
    }
    for (machine, network) in [("a", "lab"), ("b", "lab"), ("c", "lab"), ("d", "prod"), ("e", "prod")] {
        server.ok(&["machine", "create", machine, "--network", network, "--port", "web=8080/http"]);
    }
    server.serve("d", "over");
    let address = |name: &str| server.json(&["machine", "show", name])["private_ip"].as_str().unwrap().to_owned();
    let sees = |who: &str| -> String {
        ["a", "b", "c", "d", "e"]
            .into_iter()
            .filter(|name| resolves(&server, who, &format!("{name}.vm.internal")))
            .collect()
    };
    let told = |who: &str, names: &str| {
        let is_told = || {
            let facts = facts(&server, who);
            let members = facts.split("## Members").nth(1).unwrap_or_default();
            let told =
                ["a", "b", "c", "d", "e"].into_iter().filter(|name| members.contains(&format!("- {name}.vm.internal")));
            told.collect::<String>() == names
        };
        assert!(eventually(SOON, is_told), "{who} is told {}", facts(&server, who));
    };
    assert_eq!(["a", "c", "d"].map(sees), ["abc", "abc", "de"]);
    told("a", "abc");

    server.apply(&format!("{APART}{LINKED}"));
    assert_eq!(["a", "b", "c", "d", "e"].map(sees), ["abd", "ab", "c", "ade", "de"]);
    told("a", "bd");
    told("b", "a");
    told("c", "");
    told("d", "ade");
    told("e", "de");
    assert!(facts(&server, "a").contains("d.vm.internal (network prod): 10.62.0."), "{}", facts(&server, "a"));
    assert_eq!(server.fetch("a", "http://d.vm.internal:8080/"), "over");
    assert!(server.exec("a", &format!("getent hosts {}", address("d"))).contains("d.vm.internal"));

    // Byte for byte like what does not exist, by name and by address, here and in the other network.
    let hidden =
        ["c.vm.internal".to_owned(), reverse(&address("c")), "e.vm.internal".to_owned(), reverse(&address("e"))];
    let missing = ["x.vm.internal".to_owned(), reverse("10.61.0.9"), "y.vm.internal".to_owned(), reverse("10.62.0.9")];
    let asked = |names: &[String]| {
        server.run(
            &[&["exec", "a", "--", "python3", "-c", ASK], &*names.iter().map(String::as_str).collect::<Vec<_>>()]
                .concat(),
        )
    };
    let (hidden, missing) = (asked(&hidden), asked(&missing));
    assert!(hidden.status.success(), "{}", text(&hidden.stderr));
    assert_eq!(text(&hidden.stdout), text(&missing.stdout));

    // Undone, it is gone at once.
    server.apply(APART);
    assert_eq!(["a", "d"].map(sees), ["ab", "de"]);
    told("a", "b");
    told("d", "de");
    server.apply("networks:\n  lab: {intra: allow}\n");
    assert_eq!(sees("c"), "abc");
    told("c", "abc");
}

#[test]
fn names_outside_need_no_proxy_variables_which_would_lead_away_from_members() {
    let lab = Lab::new();
    let (outside, host) = Outside::new(&lab);
    outside.names.addresses("api.allowed.example", &["151.101.1.10"]);
    let mut arguments = vec!["--forwarding".to_owned()];
    RESOLVERS.iter().for_each(|resolver| arguments.extend(["--resolver".to_owned(), (*resolver).to_owned()]));
    let server = Server::start_in(lab, host, Options { arguments, ..Options::default() });
    server.ok(&["machine", "create", "a"]);
    server.ok(&["machine", "create", "b"]);
    server.serve("b", "here");
    let certificate = outside.certificate().as_bytes();
    assert!(
        server.run_with_input(&["exec", "a", "--", "sh", "-c", "cat > /root/ca.pem"], certificate).status.success()
    );
    server.apply("allow:\n  - {id: api, from: default/a, to: {name: api.allowed.example}, ports: [tcp/443]}\n");
    let told = || facts(&server, "a").contains("- api.allowed.example on tcp/443 (rule api)");
    assert!(eventually(SOON, told), "{}", facts(&server, "a"));
    assert!(!facts(&server, "b").contains("api.allowed.example"), "{}", facts(&server, "b"));
    assert!(facts(&server, "a").contains("http://gateway.internal:3128"));
    assert_eq!(server.exec("a", "env | grep -ic _proxy || true").trim(), "0");

    let b = server.json(&["machine", "show", "b"])["private_ip"].as_str().unwrap().to_owned();
    let proxy = "http://10.0.0.1:3128";
    let set = format!(
        "export https_proxy={proxy} HTTPS_PROXY={proxy} http_proxy={proxy} HTTP_PROXY={proxy} \
         no_proxy=localhost,127.0.0.1,.internal,10.0.0.0/16 NO_PROXY=localhost,127.0.0.1,.internal,10.0.0.0/16; "
    );
    let curl = |url: &str| format!("curl -sS --cacert /root/ca.pem --max-time 5 {url}");
    let python = |url: &str| {
        format!(
            "SSL_CERT_FILE=/root/ca.pem python3 -c \"import urllib.request as r; print(r.urlopen('{url}', timeout=5).read().decode())\""
        )
    };
    let outside_name = "https://api.allowed.example/";
    let member = ["http://b.vm.internal:8080/".to_owned(), format!("http://{b}:8080/")];
    for variables in ["", &set] {
        for command in [curl(outside_name), python(outside_name)] {
            let page = server.exec("a", &format!("{variables}{command}"));
            assert!(page.contains("151.101.1.10 api.allowed.example"), "{variables}{command}: {page}");
        }
        for command in [curl(&member[0]), python(&member[0]), curl(&member[1])] {
            assert_eq!(server.exec("a", &format!("{variables}{command}")).trim(), "here", "{variables}{command}");
        }
    }
    assert_eq!(server.exec("a", &python(&member[1])).trim(), "here");
    let (status, _, error) = server.try_exec("a", &format!("{set}{}", python(&member[1])));
    assert!(status != 0 && error.contains("403"), "a range in no_proxy is understood: {error}");
    let refused = server.exec("a", &format!("{set}{} 2>&1 || true", curl("https://other.example/")));
    assert!(refused.contains("response 403"), "{refused}");
}
