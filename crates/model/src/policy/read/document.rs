//! What each part of the document means.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use super::field::{Fields, Notes};
use super::yaml::{Kind, Node, Position, shown};
use super::{MAX_RULES, MAX_TESTS, PolicyError};
use crate::name::{Label, Tag};
use crate::policy::{
    Application, Expect, HostName, HostPattern, Intra, Join, NetworkSettings, Policy, Ports, Protocol, Rule, RuleId,
    Subject, Target, Test, TestTarget,
};

/// The parts of a document.
pub(in crate::policy) const PARTS: [&str; 5] = ["networks", "tagOwners", "forbid", "allow", "tests"];
pub(in crate::policy) const NETWORK: [&str; 2] = ["join", "intra"];
pub(in crate::policy) const RULE: [&str; 8] = ["id", "from", "to", "ports", "as", "owner", "expires", "reason"];
pub(in crate::policy) const TEST: [&str; 5] = ["from", "to", "port", "expect", "by"];
pub(in crate::policy) const TARGET: [&str; 2] = ["name", "cidr"];

pub(in crate::policy) const JOIN: [(&str, Join); 3] =
    [("open", Join::Open), ("token", Join::Token), ("invite", Join::Invite)];
pub(in crate::policy) const INTRA: [(&str, Intra); 2] = [("allow", Intra::Allow), ("deny", Intra::Deny)];
pub(in crate::policy) const EXPECT: [(&str, Expect); 2] = [("allow", Expect::Allow), ("deny", Expect::Deny)];
pub(in crate::policy) const APPLICATION: [(&str, Application); 3] =
    [("tls", Application::Tls), ("http", Application::Http), ("tcp", Application::Tcp)];

/// The longest owner or reason, in characters.
pub(in crate::policy) const MAX_NOTE: usize = 500;

/// Reads what it can; what it cannot is an error.
pub(super) fn read(root: &Node, errors: &mut Vec<PolicyError>) -> Policy {
    let mut notes = Notes { errors };
    let mut policy = Policy::default();
    if let Some(parts) = notes.fields(root, "the policy", &PARTS) {
        policy.networks = networks(&parts, &mut notes);
        policy.tag_owners = tag_owners(&parts, &mut notes);
        let mut ids = HashMap::new();
        policy.forbid = rules(&parts, "forbid", &mut ids, &mut notes);
        policy.allow = rules(&parts, "allow", &mut ids, &mut notes);
        if policy.forbid.len() + policy.allow.len() > MAX_RULES {
            notes.error(root.at, format!("the policy has more than {MAX_RULES} rules"));
        }
        policy.tests = tests(&parts, &mut notes);
    }
    policy
}

fn networks(parts: &Fields<'_>, notes: &mut Notes<'_>) -> BTreeMap<Label, NetworkSettings> {
    let mut networks = BTreeMap::new();
    let Some(pairs) = parts.get("networks").and_then(|node| notes.mapping(node, "networks")) else { return networks };
    for (key, node) in pairs {
        let name = match key.text.parse::<Label>() {
            Ok(name) => Some(name),
            Err(error) => {
                notes.error(key.at, error.to_string());
                None
            }
        };
        let Some(fields) = notes.fields(node, "a network", &NETWORK) else { continue };
        let settings = NetworkSettings {
            join: fields.get("join").and_then(|node| notes.word(node, "way to join", &JOIN)),
            intra: fields.get("intra").and_then(|node| notes.word(node, "intra", &INTRA)).unwrap_or_default(),
        };
        if let Some(name) = name {
            networks.insert(name, settings);
        }
    }
    networks
}

fn tag_owners(parts: &Fields<'_>, notes: &mut Notes<'_>) -> BTreeMap<Tag, BTreeSet<Label>> {
    let mut owners = BTreeMap::new();
    let Some(pairs) = parts.get("tagOwners").and_then(|node| notes.mapping(node, "tagOwners")) else { return owners };
    for (key, node) in pairs {
        let tag = match key.text.parse::<Tag>() {
            Ok(tag) => Some(tag),
            Err(error) => {
                notes.error(key.at, error.to_string());
                None
            }
        };
        let mut keys: BTreeSet<Label> = BTreeSet::new();
        for node in notes.sequence(node, "the owners of a tag") {
            let Some(name) = notes.parsed::<Label>(node, "an owner") else { continue };
            if keys.contains(&name) {
                notes.error(node.at, format!("{name} is here twice"));
            }
            keys.insert(name);
        }
        if let Some(tag) = tag {
            owners.insert(tag, keys);
        }
    }
    owners
}

fn rules(parts: &Fields<'_>, list: &str, ids: &mut HashMap<RuleId, Position>, notes: &mut Notes<'_>) -> Vec<Rule> {
    let nodes = parts.get(list).map(|node| notes.sequence(node, list)).unwrap_or_default();
    if let Some(node) = nodes.get(MAX_RULES) {
        notes.error(node.at, format!("the policy has more than {MAX_RULES} rules"));
        return Vec::new();
    }
    let mut rules = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(fields) = notes.fields(node, "a rule", &RULE) else { continue };
        let id = fields.need("id", "a rule", notes).and_then(|node| {
            let id = notes.parsed::<RuleId>(node, "id")?;
            if let Some(first) = ids.get(&id) {
                let (line, column) = (first.line, first.column);
                notes.error(node.at, format!("rule {id} is there twice: first at line {line}, column {column}"));
                return None;
            }
            ids.insert(id.clone(), node.at);
            Some(id)
        });
        let from = fields.need("from", "a rule", notes).and_then(|node| notes.parsed::<Subject>(node, "from"));
        let to = fields.need("to", "a rule", notes).and_then(|node| target(node, notes));
        let outside = matches!(to, Some(Target::Outside(_)));
        let ports = fields.get("ports").map(|node| ports(node, outside, notes)).unwrap_or_default();
        let application = fields.get("as").and_then(|node| {
            if to.is_some() && !outside {
                notes.error(node.at, "\"as\" is for rules to a name: between addresses nothing is checked");
            }
            notes.word(node, "protocol", &APPLICATION)
        });
        let owner = fields.get("owner").and_then(|node| note(node, "owner", notes));
        let reason = fields.get("reason").and_then(|node| note(node, "reason", notes));
        let expires = fields.get("expires").and_then(|node| expires(node, notes));
        if let (Some(id), Some(from), Some(to)) = (id, from, to) {
            rules.push(Rule { id, from, to, ports, application, owner, expires, reason });
        }
    }
    rules
}

fn tests(parts: &Fields<'_>, notes: &mut Notes<'_>) -> Vec<Test> {
    let nodes = parts.get("tests").map(|node| notes.sequence(node, "tests")).unwrap_or_default();
    if let Some(node) = nodes.get(MAX_TESTS) {
        notes.error(node.at, format!("the policy has more than {MAX_TESTS} tests"));
        return Vec::new();
    }
    let mut tests = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(fields) = notes.fields(node, "a test", &TEST) else { continue };
        let from = fields.need("from", "a test", notes).and_then(|node| notes.parsed::<Subject>(node, "from"));
        let to = fields.need("to", "a test", notes).and_then(|node| test_target(node, notes));
        let port = fields.need("port", "a test", notes).and_then(|node| notes.parsed::<Ports>(node, "port"));
        let expect = fields.need("expect", "a test", notes).and_then(|node| notes.word(node, "expectation", &EXPECT));
        let by = fields.get("by").and_then(|node| decider(node, notes));
        if let (Some(from), Some(to), Some(port), Some(expect)) = (from, to, port, expect) {
            tests.push(Test { from, to, port, expect, by });
        }
    }
    tests
}

/// The id of a rule, or of a built-in one.
fn decider(node: &Node, notes: &mut Notes<'_>) -> Option<RuleId> {
    let text = notes.text(node, "by")?;
    let Some(name) = text.strip_prefix("builtin:") else { return notes.parsed(node, "by") };
    let known = crate::policy::BUILTIN;
    if known.contains(&name) {
        return Some(RuleId::builtin(name));
    }
    notes.error(node.at, format!("{:?} is no built-in rule: there are {}", shown(text), known.join(", ")));
    None
}

fn ports(node: &Node, outside: bool, notes: &mut Notes<'_>) -> Vec<Ports> {
    let nodes = notes.sequence(node, "ports");
    if nodes.is_empty() && matches!(node.kind, Kind::Sequence(_)) {
        notes.error(node.at, "\"ports\" is empty: leave it out to mean every protocol and port");
    }
    let mut found: Vec<Ports> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(ports) = notes.parsed::<Ports>(node, "an entry of ports") else { continue };
        if outside && ports.protocol != Protocol::Tcp {
            notes.error(node.at, format!("a name is reached over TCP only, so {ports} cannot be in a rule to a name"));
        } else if found.contains(&ports) {
            notes.error(node.at, format!("{ports} is here twice"));
        } else {
            found.push(ports);
        }
    }
    found
}

fn target(node: &Node, notes: &mut Notes<'_>) -> Option<Target> {
    match written(node, notes)? {
        Written::Inside(subject) => Some(Target::Inside(subject)),
        Written::Name(node) => notes.parsed::<HostPattern>(node, "name").map(Target::Outside),
    }
}

fn test_target(node: &Node, notes: &mut Notes<'_>) -> Option<TestTarget> {
    match written(node, notes)? {
        Written::Inside(subject) => Some(TestTarget::Inside(subject)),
        Written::Name(node) => notes.parsed::<HostName>(node, "name").map(TestTarget::Outside),
    }
}

enum Written<'n> {
    Inside(Subject),
    Name(&'n Node),
}

/// A text, `{name: …}` or `{cidr: …}`.
fn written<'n>(node: &'n Node, notes: &mut Notes<'_>) -> Option<Written<'n>> {
    if !matches!(node.kind, Kind::Mapping(_)) {
        return notes.parsed::<Subject>(node, "to").map(Written::Inside);
    }
    let before = notes.errors.len();
    let fields = notes.fields(node, "a destination", &TARGET)?;
    match (fields.get("name"), fields.get("cidr")) {
        (Some(name), None) => Some(Written::Name(name)),
        (None, Some(cidr)) => {
            let subject = notes.parsed::<Subject>(cidr, "cidr")?;
            if !matches!(subject, Subject::Range(None, _)) {
                notes.error(cidr.at, format!("{subject} is no CIDR: write it like 203.0.113.0/24"));
                return None;
            }
            Some(Written::Inside(subject))
        }
        (None, None) if notes.errors.len() > before => None,
        _ => {
            notes.error(node.at, "a destination is either {name: …} or {cidr: …}");
            None
        }
    }
}

/// A text for people.
fn note(node: &Node, what: &str, notes: &mut Notes<'_>) -> Option<String> {
    let text = notes.text(node, what)?;
    if text.trim().is_empty() || text.chars().count() > MAX_NOTE || text.chars().any(char::is_control) {
        notes.error(node.at, format!("{what} is one line of 1 to {MAX_NOTE} characters"));
        return None;
    }
    Some(text.to_owned())
}

/// An instant as RFC 3339 §5.6 writes it.
fn expires(node: &Node, notes: &mut Notes<'_>) -> Option<Timestamp> {
    let text = notes.text(node, "expires")?;
    // The parser knows more than RFC 3339: time zones in brackets, and times without a zone's offset are not instants.
    let plain = text.len() <= 40 && text.bytes().all(|byte| byte.is_ascii_digit() || b"-+:.TZtz ".contains(&byte));
    match text.parse::<Timestamp>().ok().filter(|_| plain) {
        Some(instant) => Some(instant),
        None => {
            notes.error(node.at, format!("{:?} is no instant: write it like 2027-01-31T12:00:00Z", shown(text)));
            None
        }
    }
}
