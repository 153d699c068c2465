//! What a create asks for, parsed: what Warren can do is translated, what would be another machine without it is
//! refused, and what makes no difference is passed over.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use warren_model::record::Protocol;
use warren_model::{Code, wire};

use super::code::Said;
use super::error::{Answer, Refusal};
use super::layer::{Address, GivenDomain, GivenFile, Layer, Port};
use super::{name, snapshots};
use crate::routes::files::check_path;

/// Holds the name that was asked for, where the machine has another.
pub(super) const NAME_LABEL: &str = "freestyle/name";

/// Files that one create may have.
const MOST_FILES: usize = 1000;
/// Domains that one create may have: each is waited for.
const MOST_DOMAINS: usize = 16;

/// What Warren cannot do, and what to do instead.
const REFUSED: [(&str, Said, &str); 10] = [
    ("aptDeps", Said::CreateVmBadRequest, "install packages with exec, or import an image that has them"),
    ("baseImage", Said::CreateVmBadRequest, "pull or import an image, and create machines from it"),
    ("dockerCredentials", Said::CreateVmBadRequest, "give them to the server that pulls images"),
    ("git", Said::InvalidGitRepoSpecError, "clone repositories with exec"),
    ("gitRepos", Said::InvalidGitRepoSpecError, "clone repositories with exec"),
    ("groups", Said::CreateVmBadRequest, "make groups with exec"),
    ("systemd", Said::CreateVmBadRequest, "machines have no systemd: start programs with exec"),
    ("udpHolePunchPorts", Said::CreateVmBadRequest, "machines are reached in their private network only"),
    ("users", Said::CreateVmBadRequest, "make users with exec"),
    ("workdir", Said::CreateVmBadRequest, "commands start in the home of their user: change there with cd"),
];

/// A file to be written into the new machine.
pub(super) struct NewFile {
    pub path: String,
    pub content: Bytes,
    pub mode: u32,
}

/// What was asked for, in Warren's words.
pub(super) struct Wanted {
    pub machine: wire::CreateMachine,
    pub files: Vec<NewFile>,
    pub domains: Vec<GivenDomain>,
}

impl Wanted {
    pub fn parse(mut outermost: Layer) -> Answer<Self> {
        let mut wanted = Self { machine: wire::CreateMachine::default(), files: Vec::new(), domains: Vec::new() };
        if let Some(text) = outermost.name.take() {
            wanted.machine.name = name::nearest(&text).map(|name| name.to_string());
            if wanted.machine.name.as_ref() != Some(&text) {
                wanted.machine.labels.insert(NAME_LABEL.to_owned(), text);
            }
        }
        let mut nics = std::mem::take(&mut outermost.nics).into_iter();
        if let Some(nic) = nics.next() {
            if nic.mode != "routed" {
                return Err(bad("the mode of a network interface is \"routed\""));
            }
            wanted.machine.network = Some(nic.vpc);
            wanted.machine.private_ip = match nic.ipv4 {
                Some(Address::This(address)) => Some(address),
                Some(Address::Any(false)) => return Err(bad("ipv4 is an address, or true for any")),
                Some(Address::Any(true)) | None => None,
            };
        }
        if nics.next().is_some() {
            return Err(bad("a machine is in one VPC: give one network interface"));
        }
        // The innermost layer is what the others build on, so the outermost that says something is right.
        let mut files = BTreeMap::new();
        let mut layers = vec![outermost];
        while let Some(mut layer) = layers.pop() {
            let inner = [layer.snapshot.take(), layer.template.take(), layer.spec.take()];
            layers.extend(inner.into_iter().flatten().map(|inner| *inner));
            wanted.build_on(layer, &mut files)?;
        }
        if wanted.domains.len() > MOST_DOMAINS {
            return Err(Refusal::unsupported(
                Said::InvalidDomains,
                format!("'domains' are at most {MOST_DOMAINS}: map the others afterwards"),
            ));
        }
        if files.len() > MOST_FILES {
            return Err(bad(format!("'additionalFiles' are at most {MOST_FILES}: write the others with vm.fs")));
        }
        for (path, file) in files {
            wanted.files.push(new_file(path, file)?);
        }
        Ok(wanted)
    }

    fn build_on(&mut self, layer: Layer, files: &mut BTreeMap<String, GivenFile>) -> Answer<()> {
        let machine = &mut self.machine;
        machine.cpus = machine.cpus.or(layer.cpus);
        // Out of range saturates, and is then refused.
        machine.memory_mib = machine.memory_mib.or(layer.memory_gib.map(|gib| (gib * 1024.0) as u64));
        machine.disk_gib = machine.disk_gib.or(layer.disk_gib);
        if machine.ports.is_empty() {
            machine.ports = declared(&layer.ports);
        }
        if self.domains.is_empty() {
            self.domains = layer.domains;
        }
        for (path, file) in layer.files {
            files.entry(path).or_insert(file);
        }
        if layer.of_snapshot {
            return Err(snapshots::none());
        }
        let other = layer.other.or_else(|| (!layer.nics.is_empty()).then(|| "nics".to_owned()));
        // The name of a layer is that of a recipe, and not of a machine.
        let Some(field) = other else { return Ok(()) };
        Err(match REFUSED.iter().find(|(refused, ..)| *refused == field) {
            Some((_, said, advice)) => {
                Refusal::unsupported(*said, format!("Warren has nothing for '{field}': {advice}"))
            }
            None => bad(format!("'{field}' is not a field of a create")),
        })
    }
}

/// Ports are facts for people and agents, each named once.
fn declared(ports: &[Port]) -> Vec<wire::Port> {
    let mut declared: Vec<wire::Port> = Vec::new();
    for asked in ports {
        let protocol = asked.protocol.unwrap_or(Protocol::Tcp);
        if !declared.iter().any(|known| known.port == asked.target_port && known.protocol == protocol) {
            let name = format!("{}-{}", protocol.as_str(), asked.target_port);
            declared.push(wire::Port { name, port: asked.target_port, protocol });
        }
    }
    declared
}

fn new_file(path: String, file: GivenFile) -> Answer<NewFile> {
    check_path(&path).map_err(|error| bad(error.problem.detail))?;
    let content = decode(file.content, file.encoding.as_deref())?;
    Ok(NewFile { path, content, mode: if file.executable { 0o755 } else { 0o644 } })
}

/// The bytes of a file's content as the client sends it.
pub(super) fn decode(content: String, encoding: Option<&str>) -> Answer<Bytes> {
    match encoding {
        None | Some("utf8" | "utf-8") => Ok(content.into()),
        Some("base64") => STANDARD.decode(content).map(Bytes::from).map_err(|_| {
            Refusal::unsupported(Said::InvalidBase64Content, "the content is not base64 with the usual alphabet")
        }),
        Some(_) => {
            Err(Refusal::unsupported(Said::InvalidParameters, "the encoding of a file is \"utf-8\" or \"base64\""))
        }
    }
}

fn bad(detail: impl Into<String>) -> Refusal {
    Refusal::new(Code::InvalidRequest, Said::CreateVmBadRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(value: Value) -> Answer<Wanted> {
        Wanted::parse(serde_json::from_str(&value.to_string()).map_err(|error| bad(error.to_string()))?)
    }

    #[test]
    fn what_the_client_sends_by_itself_asks_for_nothing() {
        let body = json!({ "template": null, "git": { "config": {}, "repos": [] }, "systemd": { "services": [] } });
        let wanted = parse(body).ok().unwrap();
        assert_eq!(wanted.machine, wire::CreateMachine::default());
        assert!(wanted.files.is_empty());
    }

    #[test]
    fn the_outermost_layer_that_says_something_is_right() {
        let wanted = parse(json!({ "spec": {
            "name": "recipe", "vcpuCount": 2, "additionalFiles": { "/a": { "content": "outer" } },
            "snapshot": {
                "vcpuCount": 4, "memSizeGb": 0.5, "ports": [{ "port": 443, "targetPort": 3000 }],
                "additionalFiles": {
                    "/a": { "content": "inner" }, "/b": { "content": "aGk=", "encoding": "base64", "executable": true },
                },
            },
        } }));
        let Wanted { machine, files, .. } = wanted.ok().unwrap();
        assert_eq!((machine.cpus, machine.memory_mib, machine.name), (Some(2.0), Some(512), None));
        assert_eq!((machine.ports[0].name.as_str(), machine.ports[0].port), ("tcp-3000", 3000));
        let files: Vec<_> = files.iter().map(|file| (file.path.as_str(), &file.content[..], file.mode)).collect();
        assert_eq!(files, [("/a", &b"outer"[..], 0o644), ("/b", &b"hi"[..], 0o755)]);
    }

    #[test]
    fn a_name_that_is_no_label_is_kept_beside_one() {
        let machine = parse(json!({ "name": "My Agent" })).ok().unwrap().machine;
        assert_eq!((machine.name.as_deref(), machine.labels[NAME_LABEL].as_str()), (Some("my-agent"), "My Agent"));
        let machine = parse(json!({ "name": "agent" })).ok().unwrap().machine;
        assert_eq!((machine.name.as_deref(), machine.labels.len()), (Some("agent"), 0));
    }

    #[test]
    fn what_would_be_another_machine_without_it_is_refused() {
        for body in [
            json!({ "snapshotId": "sc-1" }),
            json!({ "template": { "snapshotId": "sc-1" } }),
            json!({ "aptDeps": ["git"] }),
            json!({ "users": [{ "name": "bob" }] }),
            json!({ "workdir": "/srv" }),
            json!({ "git": { "repos": [{ "repo": "a", "path": "/a" }], "config": {} } }),
            json!({ "domains": [{ "domain": "a.example", "port": 80 }] }),
            json!({ "domains": vec![json!({ "domain": "a.example" }); 17] }),
            json!({ "nonsense": 1 }),
            json!({ "nics": [{ "vpc": "a", "mode": "bridged", "ipv4": true }] }),
            json!({ "nics": [{ "vpc": "a", "mode": "routed", "ipv4": false }] }),
            json!({ "nics": [{ "vpc": "a", "mode": "routed" }, { "vpc": "b", "mode": "routed" }] }),
            json!({ "nics": "all" }),
            json!({ "spec": { "nics": [{ "vpc": "a", "mode": "routed" }] } }),
            json!({ "nics": [{ "vpc": "a", "mode": "routed", "ipv4": [] }] }),
            json!({ "spec": [] }),
            json!({ "additionalFiles": { "a": { "content": "" } } }),
            json!({ "additionalFiles": { "/a": { "content": "%", "encoding": "base64" } } }),
        ] {
            assert!(parse(body.clone()).is_err(), "{body}");
        }
        let passed_over = json!({ "idleTimeoutSeconds": 5, "persistence": { "type": "persistent" }, "workdir": "/" });
        assert!(parse(passed_over).is_ok());
    }

    #[test]
    fn files_and_layers_are_counted() {
        let files = |count: usize| {
            let files: serde_json::Map<_, _> =
                (0..count).map(|n| (format!("/{n}"), json!({ "content": "" }))).collect();
            parse(json!({ "additionalFiles": files }))
        };
        assert_eq!(files(1000).ok().unwrap().files.len(), 1000);
        assert!(files(1001).is_err());
        let layers = |count: usize| parse((1..count).fold(json!({}), |inner, _| json!({ "spec": inner })));
        assert!(layers(16).is_ok());
        assert!(layers(17).is_err());
    }
}
