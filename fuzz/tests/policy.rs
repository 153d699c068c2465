//! What people write: policies, and the texts in them.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use jiff::Timestamp;
use warren_fuzz::{Seen, Target, kind, run};
use warren_model::policy::read::MAX_ERRORS;
use warren_model::policy::{
    Application, Directory, HostName, HostPattern, PolicyError, Ports, RuleId, Subject, read, run_tests,
};

const YAML: &str = "
# Who may reach what.
networks:
  dev: {intra: deny}
  prod:
    intra: allow
tagOwners:
  agent: [ops]
forbid:
  - id: no-prod
    from: net:dev
    to: net:prod
    reason: \"agents stay out\"
allow:
  - id: db
    from: dev/tag:agent
    to: dev/db
    ports: [tcp/5432, udp/1000-2000, icmp]
    owner: ops
    expires: 2027-01-01T00:00:00Z
  - {id: api, from: dev/worker, to: {name: '*.example.com'}, ports: [tcp/443], as: tls}
  - id: range
    from: net:dev
    to: 192.0.2.0/24
tests:
  - from: dev/worker
    to: net:prod
    port: tcp/22
    expect: deny
    by: no-prod
";

const JSON: &str = r#"{"networks": {"dev": {"intra": "deny"}}, "allow": [{"id": "a", "from": "net:dev",
  "to": {"name": "**.example.com"}, "ports": ["tcp/80", "tcp/1-65535"], "as": "http"}],
  "forbid": [{"id": "b", "from": "dev/fd00::/8", "to": "2001:db8::/32"}], "tests": []}"#;

#[test]
fn policy_documents() {
    run(&Target {
        name: "policy_documents",
        seeds: vec![YAML.into(), JSON.into(), b"{}".to_vec(), b"allow: []\n".to_vec()],
        words: &[
            b"allow:\n",
            b"  - id: ",
            b"from: net:dev\n",
            b"to: ",
            b"ports: [",
            b"{name: ",
            b"&a ",
            b"*a",
            b"!!str ",
            b"<<: ",
            b"---\n",
            b"...\n",
            b"? ",
            b": ",
            b"- ",
            b"[",
            b"]",
            b"{",
            b"}",
            b"|\n",
            b">-\n",
            b"\"",
            b"'",
            b"#",
            b"\\u0000",
            b"\t",
            b"\r\n",
            b"\xef\xbb\xbf",
            b"null",
            b"~",
            b"1e999",
            b"tcp/",
            b"\xe2\x80\xa8",
        ],
        longest: 16 << 10,
        // Errors quote what is wrong, and a hundred of them are kept.
        memory: 64 << 20,
        parse: &document,
    });
}

fn document(bytes: &[u8]) -> Seen {
    let text = std::str::from_utf8(bytes).map_err(|_| 0u64)?;
    let read_policy = match read(text) {
        Ok(read) => read,
        Err(errors) => return Err(refused(text, &errors)),
    };
    let directory = Directory::default();
    if let Err(errors) = read_policy.check(&directory, &BTreeSet::new(), Timestamp::UNIX_EPOCH) {
        refused(text, &errors);
    }
    // What was read is written as what reads the same.
    let policy = &read_policy.policy;
    let written = serde_json::to_string(policy).unwrap();
    let again = read(&written).unwrap_or_else(|errors| panic!("{written}: {}", errors[0]));
    assert_eq!(&again.policy, policy);
    assert_eq!(again.policy.hash(), policy.hash());
    let outcomes = run_tests(policy, &directory, Timestamp::UNIX_EPOCH);
    assert_eq!(outcomes.len(), policy.tests.len());
    Ok(kind((
        policy.networks.len().min(4),
        policy.allow.len().min(8),
        policy.forbid.len().min(8),
        policy.tests.len().min(8),
    )))
}

/// Every place is one in the text.
fn refused(text: &str, errors: &[PolicyError]) -> u64 {
    assert!((1..=MAX_ERRORS + 1).contains(&errors.len()));
    let lines = text.split(['\n', '\r']).count() + 1;
    for error in errors {
        assert!((1..=lines + 1).contains(&error.line), "line {} of {lines}: {}", error.line, error.message);
        assert!((1..=text.len() + 2).contains(&error.column), "{error}");
        assert!(!error.message.is_empty() && error.message.len() <= 4096, "{} bytes", error.message.len());
    }
    // The first words of a message tell which it is.
    kind(
        errors[0]
            .message
            .split_whitespace()
            .filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase()))
            .take(4)
            .collect::<Vec<_>>(),
    )
}

/// A text that is read is written as one that reads the same.
fn written_back<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) -> Result<T, u64> {
    let read: T = text.parse().map_err(|error: T::Err| {
        let message = error.to_string();
        assert!(message.len() <= 1024, "{} bytes", message.len());
        0u64
    })?;
    let written = read.to_string();
    let again = written.parse::<T>().unwrap_or_else(|error| panic!("{error}: {text:?} became {written:?}"));
    assert_eq!(again, read, "{text:?} became {written:?}");
    Ok(read)
}

#[test]
fn texts_in_policies() {
    let seeds = [
        "tcp/443",
        "udp/1-65535",
        "icmp",
        "udp",
        "net:dev",
        "dev/tag:agent",
        "dev/worker",
        "192.0.2.0/24",
        "2001:db8::/32",
        "dev/10.0.0.1",
        "api.example.com",
        "*.example.com",
        "**.example.co.uk",
        "a_b.example.",
        "rule-1.x_y",
        "tls",
    ];
    run(&Target {
        name: "texts_in_policies",
        seeds: seeds.map(|text| text.as_bytes().to_vec()).to_vec(),
        words: &[
            b"net:",
            b"/tag:",
            b"tcp/",
            b"*.",
            b"**.",
            b".internal",
            b"/32",
            b"::",
            b"0x",
            b"-",
            b"_",
            b"xn--",
            b"\xc3\xbc",
        ],
        longest: 600,
        memory: 1 << 20,
        parse: &|bytes| {
            let text = std::str::from_utf8(bytes).map_err(|_| 0u64)?;
            let name = written_back::<HostName>(text);
            let pattern = written_back::<HostPattern>(text);
            if let (Ok(name), Ok(pattern)) = (&name, &pattern) {
                assert!(pattern.matches(name), "a name that is a pattern matches itself");
            }
            if let Ok(pattern) = &pattern {
                assert_eq!(pattern.matches(pattern.name()), !pattern.is_wildcard());
            }
            let application = serde_json::from_value::<Application>(text.into()).is_ok();
            let read = [
                name.is_ok(),
                pattern.is_ok(),
                written_back::<Ports>(text).is_ok(),
                written_back::<Subject>(text).is_ok(),
                written_back::<RuleId>(text).is_ok(),
                application,
            ];
            let way = kind((read, text.len().min(8), text.contains('.')));
            if read.contains(&true) { Ok(way) } else { Err(way) }
        },
    });
}
