//! What a create or an update of a machine asks for, parsed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use warren_model::access::HostCapacity;
use warren_model::name::InvalidName;
use warren_model::record::{DeclaredPort, Limits};
use warren_model::{Code, ImageName, Label, LabelKey, LabelValue, Tag, wire};

use crate::bootstrap::DEFAULT;
use crate::error::{Answer, ApiError};

/// How many ports a machine may declare.
pub(crate) const PORTS: usize = 256;
/// How many tags and how many labels a machine may have.
const MARKS: usize = 64;
/// MiB of memory that a machine has when nothing is asked for.
const DEFAULT_MEMORY_MIB: u64 = 512;
/// What a machine gets where disks can be limited and nothing was asked for.
const DEFAULT_DISK_GIB: u64 = 10;
const LEAST_MEMORY_MIB: u64 = 64;
/// 16 TiB: beyond it, a number is a mistake and not a wish.
const MOST_MEMORY_MIB: u64 = 16 * 1024 * 1024;
const LEAST_CPUS: f64 = 0.1;
const MOST_CPUS: f64 = 1024.0;
const DISK_GIB: std::ops::RangeInclusive<u64> = 1..=1024;

pub(crate) struct Wanted {
    pub name: Option<Label>,
    /// A network's id or name.
    pub network: String,
    pub address: Option<Ipv4Addr>,
    pub image: ImageName,
    pub ports: Vec<DeclaredPort>,
    pub tags: BTreeSet<Tag>,
    pub labels: BTreeMap<LabelKey, LabelValue>,
}

impl Wanted {
    pub fn parse(asked: &wire::CreateMachine) -> Answer<Self> {
        let address = asked.private_ip.as_deref().map(|text| {
            text.parse::<Ipv4Addr>().map_err(|_| {
                let text: String = text.chars().take(64).collect();
                ApiError::new(
                    Code::AddressMalformed,
                    format!("{text:?} is not an IPv4 address: write it like 10.0.1.20, or leave private_ip out"),
                )
            })
        });
        Ok(Self {
            name: asked.name.as_deref().map(str::parse).transpose().map_err(bad_name)?,
            network: asked.network.clone().unwrap_or_else(|| DEFAULT.to_owned()),
            address: address.transpose()?,
            image: match &asked.image {
                Some(image) => image.parse().map_err(bad_name)?,
                None => ImageName::default_image(),
            },
            ports: ports(&asked.ports)?,
            tags: tags(&asked.tags)?,
            labels: labels(&asked.labels)?,
        })
    }
}

pub(crate) fn bad_name(error: InvalidName) -> ApiError {
    ApiError::new(error.code(), error.to_string())
}

pub(crate) fn ports(asked: &[wire::Port]) -> Answer<Vec<DeclaredPort>> {
    let refused = |detail: String| Err(ApiError::new(Code::InvalidPort, detail));
    if asked.len() > PORTS {
        return refused(format!("a machine declares at most {PORTS} ports: leave some out"));
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    let mut ports = Vec::with_capacity(asked.len());
    for asked in asked {
        if asked.port == 0 {
            return refused("port 0 is not a port: use 1 to 65535".to_owned());
        }
        let name: Label = asked.name.parse().map_err(bad_name)?;
        if !names.insert(name.clone()) {
            return refused(format!("two ports are named {name}: give each a name of its own"));
        }
        if !numbers.insert((asked.port, asked.protocol)) {
            return refused(format!("port {} is declared twice: leave one out", asked.port));
        }
        ports.push(DeclaredPort { name, port: asked.port, protocol: asked.protocol });
    }
    Ok(ports)
}

pub(crate) fn tags(asked: &[String]) -> Answer<BTreeSet<Tag>> {
    let tags: BTreeSet<Tag> = asked.iter().map(|tag| tag.parse()).collect::<Result<_, _>>().map_err(bad_name)?;
    few("tags", tags.len())?;
    Ok(tags)
}

pub(crate) fn labels(asked: &BTreeMap<String, String>) -> Answer<BTreeMap<LabelKey, LabelValue>> {
    few("labels", asked.len())?;
    asked.iter().map(|(key, value)| Ok((key.parse()?, value.parse()?))).collect::<Result<_, _>>().map_err(bad_name)
}

fn few(what: &str, count: usize) -> Answer<()> {
    if count <= MARKS { Ok(()) } else { Err(ApiError::invalid(format!("a machine has at most {MARKS} {what}"))) }
}

/// The limits that were asked for, or those that a machine has by default, if this host can give them.
pub(crate) fn limits(asked: &wire::CreateMachine, host: HostCapacity) -> Answer<Limits> {
    let out_of_range = |detail: String| Err(ApiError::new(Code::LimitOutOfRange, detail));
    let unavailable = |detail: String| Err(ApiError::new(Code::LimitUnavailable, detail));

    let cpus = asked.cpus.unwrap_or(f64::min(1.0, host.cpus));
    if !(LEAST_CPUS..=MOST_CPUS).contains(&cpus) {
        return out_of_range(format!("cpus is {LEAST_CPUS} to {MOST_CPUS}, not {cpus}"));
    }
    if cpus > host.cpus {
        return unavailable(format!("this host has {} processors, not {cpus}: ask for fewer", host.cpus));
    }
    let memory_mib = asked.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB.min(host.memory_mib));
    if !(LEAST_MEMORY_MIB..=MOST_MEMORY_MIB).contains(&memory_mib) {
        return out_of_range(format!("memory_mib is {LEAST_MEMORY_MIB} to {MOST_MEMORY_MIB}, not {memory_mib}"));
    }
    if memory_mib > host.memory_mib {
        return unavailable(format!("this host has {} MiB of memory, not {memory_mib}: ask for less", host.memory_mib));
    }
    if let Some(disk_gib) = asked.disk_gib {
        if !DISK_GIB.contains(&disk_gib) {
            return out_of_range(format!("disk_gib is {} to {}, not {disk_gib}", DISK_GIB.start(), DISK_GIB.end()));
        }
        match host.disk_gib {
            None => {
                return unavailable(
                    "this host cannot limit disks: leave disk_gib out, or give the server a btrfs pool directory"
                        .to_owned(),
                );
            }
            Some(most) if disk_gib > most => {
                return unavailable(format!("this host has {most} GiB of disk, not {disk_gib}: ask for less"));
            }
            Some(_) => {}
        }
    }
    // Where a disk can be limited, it is: one machine must not fill the host for all.
    let disk_gib = asked.disk_gib.or(host.disk_gib.map(|most| most.min(DEFAULT_DISK_GIB)));
    // In range, so the cast is exact to a thousandth.
    Ok(Limits { cpus_milli: (cpus * 1000.0).round() as u32, memory_mib, disk_gib })
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::record::Protocol;

    const HOST: HostCapacity = HostCapacity { cpus: 2.0, memory_mib: 4096, disk_gib: Some(100) };

    fn asked(json: &str) -> wire::CreateMachine {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_limit_is_told_apart_by_whether_any_host_could_give_it() {
        let code = |json: &str| limits(&asked(json), HOST).map_err(|error| error.problem.code);
        for json in
            [r#"{"cpus":0.05}"#, r#"{"cpus":-1}"#, r#"{"cpus":1e9}"#, r#"{"memory_mib":63}"#, r#"{"disk_gib":0}"#]
        {
            assert_eq!(code(json), Err(Code::LimitOutOfRange), "{json}");
        }
        for json in [r#"{"cpus":2.5}"#, r#"{"memory_mib":4097}"#, r#"{"disk_gib":101}"#] {
            assert_eq!(code(json), Err(Code::LimitUnavailable), "{json}");
        }
        let no_disk = HostCapacity { disk_gib: None, ..HOST };
        assert!(limits(&asked(r#"{"disk_gib":1}"#), no_disk).is_err());
        assert_eq!(code("{}"), Ok(Limits { cpus_milli: 1000, memory_mib: 512, disk_gib: Some(DEFAULT_DISK_GIB) }));
        assert_eq!(limits(&asked("{}"), no_disk).map(|limits| limits.disk_gib).ok(), Some(None));
        assert_eq!(code(r#"{"cpus":0.1}"#).unwrap().cpus_milli, 100);
    }

    #[test]
    fn ports_have_names_and_numbers_of_their_own() {
        let port = |name: &str, port| wire::Port { name: name.into(), port, protocol: Protocol::Tcp };
        assert!(ports(&[port("a", 1), port("b", 2)]).is_ok());
        for bad in [vec![port("a", 0)], vec![port("a", 1), port("a", 2)], vec![port("a", 1), port("b", 1)]] {
            assert_eq!(ports(&bad).unwrap_err().problem.code, Code::InvalidPort);
        }
        assert_eq!(ports(&[port("A", 1)]).unwrap_err().problem.code, Code::InvalidName);
    }
}
