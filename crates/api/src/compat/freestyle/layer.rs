//! A create as it is sent: layers, one in another.
//!
//! It is read straight into what is used of it, so that it takes hardly more memory than it has bytes; of a field that
//! is not used only its name stays.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use warren_model::record::Protocol;

/// Layers of one create; the client sends at most four.
const MOST_LAYERS: usize = 16;
/// Characters of a field's name that are told.
const SHOWN: usize = 64;

/// What makes no difference: a machine that was created is ready, runs until it is stopped and keeps its disk.
const PASSED_OVER: [&str; 8] = [
    "activityThresholdBytes",
    "discriminator",
    "idleTimeoutSeconds",
    "persistence",
    "readySignalTimeoutSeconds",
    "recreate",
    "skipCache",
    "waitForReadySignal",
];

/// What one layer says.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    pub name: Option<String>,
    pub nics: Vec<Nic>,
    pub cpus: Option<f64>,
    pub memory_gib: Option<f64>,
    pub disk_gib: Option<u64>,
    pub ports: Vec<Port>,
    pub domains: Vec<GivenDomain>,
    pub files: BTreeMap<String, GivenFile>,
    pub snapshot: Option<Box<Layer>>,
    pub template: Option<Box<Layer>>,
    pub spec: Option<Box<Layer>>,
    /// Whether it names a snapshot.
    pub of_snapshot: bool,
    /// The first other field that says something.
    pub other: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nic {
    pub vpc: String,
    pub mode: String,
    pub ipv4: Option<Address>,
    /// There is one interface, and it is the default one.
    #[expect(dead_code, reason = "accepted, and without a meaning here")]
    default: Option<bool>,
    #[expect(dead_code, reason = "accepted, and without a meaning here")]
    backend: Option<String>,
}

#[derive(Debug)]
pub(crate) enum Address {
    /// `true` for any.
    Any(bool),
    This(String),
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Port {
    pub target_port: u16,
    /// Nothing is public because a port is named.
    #[expect(dead_code, reason = "accepted, and without a meaning here")]
    port: Option<u16>,
    pub protocol: Option<Protocol>,
}

#[derive(Debug, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct GivenDomain {
    pub domain: String,
    pub vm_port: Option<u16>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GivenFile {
    pub content: String,
    pub encoding: Option<String>,
    #[serde(default)]
    pub executable: bool,
}

impl Layer {
    fn count(&self) -> usize {
        let inner = [&self.snapshot, &self.template, &self.spec];
        1 + inner.into_iter().flatten().map(|inner| inner.count()).sum::<usize>()
    }

    fn read<'de, A: MapAccess<'de>>(&mut self, field: &str, map: &mut A) -> Result<(), A::Error> {
        match field {
            "name" => self.name = map.next_value()?,
            "nics" => self.nics = map.next_value::<Option<_>>()?.unwrap_or_default(),
            "vcpuCount" => self.cpus = map.next_value()?,
            "memSizeGb" => self.memory_gib = map.next_value()?,
            "rootfsSizeGb" => self.disk_gib = map.next_value()?,
            "ports" => self.ports = map.next_value::<Option<_>>()?.unwrap_or_default(),
            "domains" => self.domains = map.next_value::<Option<_>>()?.unwrap_or_default(),
            "additionalFiles" => self.files = map.next_value::<Option<_>>()?.unwrap_or_default(),
            "snapshot" => self.snapshot = map.next_value()?,
            "template" => self.template = map.next_value()?,
            "spec" => self.spec = map.next_value()?,
            "snapshotId" => self.of_snapshot = !map.next_value::<Silent>()?.0,
            passed if PASSED_OVER.contains(&passed) => drop(map.next_value::<IgnoredAny>()?),
            "workdir" => {
                let workdir = map.next_value::<Option<String>>()?;
                self.note(field, workdir.is_none_or(|workdir| workdir.is_empty() || workdir == "/"));
            }
            _ => {
                let Silent(silent) = map.next_value()?;
                self.note(field, silent);
            }
        }
        Ok(())
    }

    fn note(&mut self, field: &str, silent: bool) {
        if !silent && self.other.is_none() {
            self.other = Some(shown(field));
        }
    }
}

fn shown(field: &str) -> String {
    field.chars().take(SHOWN).collect()
}

impl<'de> Deserialize<'de> for Layer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Layer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Layer, A::Error> {
                let mut layer = Layer::default();
                while let Some(field) = map.next_key::<String>()? {
                    layer
                        .read(&field, &mut map)
                        .map_err(|error| A::Error::custom(format!("'{}' does not fit: {error}", shown(&field))))?;
                }
                if layer.count() > MOST_LAYERS {
                    return Err(A::Error::custom(format!("a create has at most {MOST_LAYERS} layers")));
                }
                Ok(layer)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = Address;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, or true for any")
            }

            fn visit_bool<E: Error>(self, any: bool) -> Result<Address, E> {
                Ok(Address::Any(any))
            }

            fn visit_str<E: Error>(self, address: &str) -> Result<Address, E> {
                Ok(Address::This(address.to_owned()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// Whether a value says nothing; the value itself is not kept.
struct Silent(bool);

impl<'de> Deserialize<'de> for Silent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Listen;

        impl<'de> Visitor<'de> for Listen {
            type Value = Silent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_unit<E: Error>(self) -> Result<Silent, E> {
                Ok(Silent(true))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Silent, E> {
                Ok(Silent(!value))
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<Silent, E> {
                Ok(Silent(false))
            }

            fn visit_u64<E: Error>(self, _: u64) -> Result<Silent, E> {
                Ok(Silent(false))
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<Silent, E> {
                Ok(Silent(false))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Silent, E> {
                Ok(Silent(text.is_empty()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Silent, A::Error> {
                let mut silent = true;
                while items.next_element::<IgnoredAny>()?.is_some() {
                    silent = false;
                }
                Ok(Silent(silent))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Silent, A::Error> {
                let mut silent = true;
                while let Some((_, Silent(value))) = fields.next_entry::<IgnoredAny, Silent>()? {
                    silent &= value;
                }
                Ok(Silent(silent))
            }
        }

        deserializer.deserialize_any(Listen)
    }
}
