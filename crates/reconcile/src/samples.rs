//! Records for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ulid::Ulid;
use warren_model::record::{DeclaredPort, Egress, Limits, Machine, Network, Power, Protocol};
use warren_model::{AccountId, ImageName, MachineId, MemberNumber, NetworkId, NetworkNumber};

pub(crate) fn network(egress: Egress) -> Network {
    Network {
        id: NetworkId::from_ulid(Ulid::from_parts(1, 1)),
        account: AccountId::from_ulid(Ulid::from_parts(1, 2)),
        name: "lab".parse().unwrap(),
        number: NetworkNumber::FIRST,
        cidr: "192.168.10.0/24".parse().unwrap(),
        egress,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        deleting: false,
    }
}

/// A member of [`network`].
pub(crate) fn machine(number: u32, name: &str, power: Power) -> Machine {
    Machine {
        id: MachineId::from_ulid(Ulid::from_parts(u64::from(number), 3)),
        account: AccountId::from_ulid(Ulid::from_parts(1, 2)),
        network: network(Egress::Deny).id,
        name: name.parse().unwrap(),
        member: MemberNumber::new(number).unwrap(),
        ipv4: Ipv4Addr::from(0xc0a8_0a00 + number),
        image: ImageName::default_image(),
        limits: Limits { cpus_milli: 1000, memory_mib: 512, disk_gib: None },
        ports: vec![DeclaredPort { name: "web".parse().unwrap(), port: 8080, protocol: Protocol::Http }],
        tags: BTreeSet::new(),
        labels: BTreeMap::new(),
        uid_slot: 8,
        power,
        boot: 1,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    }
}
