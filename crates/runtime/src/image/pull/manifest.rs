//! Manifests, indexes and configurations (OCI image specification 1.1; Docker's image manifest version 2, schema 2,
//! differs in its media types only).

use serde::Deserialize;
use serde::de::DeserializeOwned;
use warren_model::reference::Digest;

use super::error::PullError;

/// What an answer may be of that is asked for by tag or digest.
pub const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// The most layers. Docker makes 127 at most.
const MOST_LAYERS: usize = 512;
const CONFIGURATIONS: &[&str] =
    &["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Something that is named by its digest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

/// What a tag or digest leads to.
#[derive(Debug)]
pub enum Document {
    /// One manifest for each platform.
    Index(Vec<Descriptor>),
    Manifest {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Document {
    /// A document that could be read as either is neither (CVE-2021-41190).
    pub fn parse(bytes: &[u8]) -> Result<Self, PullError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Either {
            schema_version: u32,
            config: Option<Descriptor>,
            layers: Option<Vec<Descriptor>>,
            manifests: Option<Vec<Descriptor>>,
        }
        const WHAT: &str = "the manifest";
        let either: Either = parse(WHAT, bytes)?;
        if either.schema_version != 2 {
            return Err(PullError::malformed(WHAT, format!("its schema is {} and not 2", either.schema_version)));
        }
        match (either.manifests, either.config, either.layers) {
            (Some(manifests), None, None) => Ok(Self::Index(manifests)),
            (None, Some(config), Some(layers)) => Self::manifest(config, layers),
            _ => Err(PullError::malformed(WHAT, "it is neither that of one image nor a list of those")),
        }
    }

    fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Result<Self, PullError> {
        expect_type("the configuration", &config, CONFIGURATIONS)?;
        for layer in &layers {
            expect_type("a layer", layer, LAYERS)?;
        }
        if layers.is_empty() || layers.len() > MOST_LAYERS {
            let reason = format!("it has {} layers; 1 to {MOST_LAYERS} are possible", layers.len());
            return Err(PullError::malformed("the manifest", reason));
        }
        Ok(Self::Manifest { config, layers })
    }
}

/// The manifest of an index that this host can run.
pub fn choose(manifests: Vec<Descriptor>) -> Result<Descriptor, PullError> {
    let fits = |descriptor: &&Descriptor| descriptor.platform.as_ref().is_some_and(Platform::is_this);
    // Variants of one architecture ask for more of the processor than the plain one.
    let plain = |descriptor: &&Descriptor| {
        let variant = descriptor.platform.as_ref().map_or("", |platform| &platform.variant);
        ["", "v1", "v8"].contains(&variant)
    };
    let found = manifests.iter().filter(fits).find(plain).or_else(|| manifests.iter().find(fits));
    match found {
        Some(found) => Ok(found.clone()),
        None => {
            let mut offered: Vec<_> = manifests.iter().filter_map(|each| each.platform.as_ref()).map(shown).collect();
            offered.sort();
            offered.dedup();
            offered.truncate(20);
            let offered = if offered.is_empty() { "no platform".to_owned() } else { offered.join(", ") };
            Err(PullError::Platform { wanted: shown(&Platform::this()), offered })
        }
    }
}

/// Refuses an image that says itself that it is for another platform, or that has other layers than its manifest.
pub fn check_configuration(bytes: &[u8], layers: usize) -> Result<(), PullError> {
    #[derive(Deserialize)]
    struct Configuration {
        #[serde(flatten)]
        platform: Platform,
        rootfs: RootFileSystem,
    }
    #[derive(Deserialize)]
    struct RootFileSystem {
        diff_ids: Vec<Digest>,
    }
    const WHAT: &str = "the configuration";
    let configuration: Configuration = parse(WHAT, bytes)?;
    if !configuration.platform.is_this() {
        let wanted = shown(&Platform::this());
        return Err(PullError::Platform { wanted, offered: shown(&configuration.platform) });
    }
    let named = configuration.rootfs.diff_ids.len();
    if named != layers {
        return Err(PullError::malformed(WHAT, format!("it names {named} layers, and the manifest {layers}")));
    }
    Ok(())
}

impl Platform {
    fn this() -> Self {
        // Go's names, which the specification takes over.
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: String::new() }
    }

    fn is_this(&self) -> bool {
        let this = Self::this();
        (&self.os, &self.architecture) == (&this.os, &this.architecture)
    }
}

fn shown(platform: &Platform) -> String {
    let text = format!("{}/{}", platform.os, platform.architecture);
    text.chars().filter(|c| !c.is_control()).take(40).collect()
}

fn expect_type(what: &'static str, descriptor: &Descriptor, known: &[&str]) -> Result<(), PullError> {
    if known.contains(&descriptor.media_type.as_str()) {
        return Ok(());
    }
    Err(PullError::MediaType { what, found: descriptor.media_type.chars().take(120).collect() })
}

fn parse<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, PullError> {
    serde_json::from_slice(bytes).map_err(|error| PullError::malformed(what, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn descriptor(media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": format!("sha256:{}", "0".repeat(64)), "size": 1 })
    }

    fn read(document: &Value) -> Result<Document, PullError> {
        Document::parse(document.to_string().as_bytes())
    }

    #[test]
    fn a_document_that_could_be_two_things_is_refused() {
        let (config, layer) = (descriptor(CONFIGURATIONS[0]), descriptor(LAYERS[1]));
        let fine = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
        assert!(matches!(read(&fine).unwrap(), Document::Manifest { .. }));
        for (field, value) in [
            ("manifests", json!([])),
            ("schemaVersion", json!(1)),
            ("layers", json!([])),
            ("layers", json!([descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")])),
            ("config", descriptor("application/vnd.cncf.helm.config.v1+json")),
            ("config", json!({ "digest": "sha256:../../etc", "size": 1 })),
        ] {
            let mut bad = fine.clone();
            bad[field] = value;
            assert!(read(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_plain_manifest_of_this_platform_is_chosen() {
        let this = Platform::this();
        let of = |architecture: &str, variant: &str, size: u64| {
            let mut each = descriptor("application/vnd.oci.image.manifest.v1+json");
            each["size"] = size.into();
            each["platform"] = json!({ "os": "linux", "architecture": architecture, "variant": variant });
            each
        };
        let index = |manifests: &[Value]| match read(&json!({ "schemaVersion": 2, "manifests": manifests })).unwrap() {
            Document::Index(manifests) => manifests,
            Document::Manifest { .. } => panic!(),
        };
        let all = [of("unknown", "", 1), of(&this.architecture, "v9", 2), of(&this.architecture, "", 3)];
        assert_eq!(choose(index(&all)).unwrap().size, 3);
        assert_eq!(choose(index(&all[..2])).unwrap().size, 2);
        let error = choose(index(&all[..1])).unwrap_err().to_string();
        assert!(error.contains("linux/unknown"), "{error}");
    }
}
