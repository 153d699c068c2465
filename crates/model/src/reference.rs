//! References to images in registries: `ghcr.io/acme/tool:1.2`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::name::{ImageName, InvalidName};
use crate::problem::Code;

/// Where a reference without a registry leads, and what it is called there.
const HUB: &str = "docker.io";
/// The host that speaks for [`HUB`].
const HUB_HOST: &str = "registry-1.docker.io";
/// Where the Hub keeps the images that have no owner.
const HUB_LIBRARY: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// The longest repository name (OCI distribution specification, "Pulling manifests").
const LONGEST_REPOSITORY: usize = 255;
/// How much of a digest stands in a name that is made from it.
const SHORT_DIGEST: usize = 12;

/// Why a reference was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a reference to an image: {rule}; write it like alpine:3.20 or ghcr.io/acme/tool@sha256:…")]
pub struct InvalidReference {
    text: String,
    rule: &'static str,
}

impl InvalidReference {
    pub fn code(&self) -> Code {
        Code::ReferenceInvalid
    }
}

/// An image in a registry: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, as Docker and the OCI distribution specification write
/// it. Without a host it is on the Docker Hub, without tag and digest its tag is `latest`.
///
/// Every part can stand in a URL as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageReference {
    /// The host, and the port where one is given, that answers for the registry.
    pub fn host(&self) -> &str {
        if self.registry == HUB { HUB_HOST } else { &self.registry }
    }

    /// Whether the registry is this machine, which alone may be spoken to in the clear.
    pub fn is_loopback(&self) -> bool {
        let name = host_of(&self.registry);
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        name == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// What to ask the registry for: the digest, else the tag.
    pub fn version(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name that the image gets when none is given: `tool:1.2` for `ghcr.io/acme/tool:1.2`, `tool:latest` without a
    /// tag, and the beginning of the digest where there is only that.
    ///
    /// # Errors
    ///
    /// Tags may be longer than names, and hold two dots in a row.
    pub fn image_name(&self) -> Result<ImageName, InvalidName> {
        let (_, last) = self.repository.rsplit_once('/').unwrap_or(("", &self.repository));
        let version = match (&self.tag, &self.digest) {
            (Some(tag), _) => tag,
            (None, Some(digest)) => &digest.hex()[..SHORT_DIGEST],
            (None, None) => DEFAULT_TAG,
        };
        format!("{last}:{version}").to_ascii_lowercase().parse()
    }
}

impl FromStr for ImageReference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let refuse = |rule| InvalidReference { text: text.chars().take(300).collect(), rule };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest =
                    digest.parse().map_err(|_| refuse("a digest is sha256: or sha512: and its hexadecimal digits"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            // A colon before a slash is that of a port.
            Some((before, tag)) if !tag.contains('/') => (before, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse(
                "a tag is 1 to 128 letters, digits, '_', '.' and '-', and begins with none of the last two",
            ));
        }
        let (registry, repository) = match rest.split_once('/') {
            Some((host, path)) if host == "localhost" || host.contains(['.', ':']) => (host, path.to_owned()),
            Some(_) => (HUB, rest.to_owned()),
            None => (HUB, format!("{HUB_LIBRARY}{rest}")),
        };
        let registry = match registry.to_ascii_lowercase() {
            hub if hub == "index.docker.io" || hub == HUB_HOST => HUB.to_owned(),
            other => other,
        };
        let repository = match registry == HUB && !repository.contains('/') {
            true => format!("{HUB_LIBRARY}{repository}"),
            false => repository,
        };
        if !is_host(&registry) {
            return Err(refuse("its registry is no host with an optional port"));
        }
        if repository.len() > LONGEST_REPOSITORY || !repository.split('/').all(is_path_part) {
            return Err(refuse("a path has lower-case letters and digits, with '.', '_', '__' or '-' in between"));
        }
        Ok(Self { registry, repository, tag: tag.map(str::to_owned), digest })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.tag, &self.digest) {
            (Some(tag), _) => write!(f, ":{tag}")?,
            (None, None) => write!(f, ":{DEFAULT_TAG}")?,
            (None, Some(_)) => {}
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl Serialize for ImageReference {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// The digest of a manifest or blob: `sha256:` or `sha512:` and lower-case hexadecimal digits (OCI image
/// specification, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Digest(String);

/// A digest that is none, or of an algorithm that Warren does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest of SHA-256 or SHA-512")]
pub struct InvalidDigest(String);

impl Digest {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &str {
        self.0.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }

    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let length = match text.split_once(':') {
            Some(("sha256", _)) => 64,
            Some(("sha512", _)) => 128,
            _ => 0,
        };
        let digest = Self(text.to_owned());
        let hex = digest.hex();
        let valid = length > 0 && hex.len() == length;
        if valid && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(digest)
        } else {
            Err(InvalidDigest(text.chars().take(150).collect()))
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The host without its port; an IPv6 address keeps its brackets.
fn host_of(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    }
}

fn is_host(registry: &str) -> bool {
    let host = host_of(registry);
    let port = registry[host.len()..].strip_prefix(':');
    if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return false;
    }
    if let Some(address) = host.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` (OCI distribution specification).
fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !tag.starts_with(['.', '-'])
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (OCI distribution specification).
fn is_path_part(part: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (part.bytes().next(), part.bytes().last()) else { return false };
    let separators = part.split(|c: char| c.is_ascii() && word(c as u8)).filter(|separator| !separator.is_empty());
    let fine = |separator: &str| [".", "_", "__"].contains(&separator) || separator.bytes().all(|b| b == b'-');
    word(first) && word(last) && separators.into_iter().all(fine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> ImageReference {
        text.parse().unwrap()
    }

    #[test]
    fn a_reference_is_read_as_docker_reads_it() {
        let hex = "ab".repeat(32);
        for (text, host, repository, version, whole) in [
            ("alpine", HUB_HOST, "library/alpine", "latest", "docker.io/library/alpine:latest"),
            ("alpine:3.20", HUB_HOST, "library/alpine", "3.20", "docker.io/library/alpine:3.20"),
            ("docker.io/alpine", HUB_HOST, "library/alpine", "latest", "docker.io/library/alpine:latest"),
            ("acme/tool", HUB_HOST, "acme/tool", "latest", "docker.io/acme/tool:latest"),
            ("GHCR.io/a/b__c/d-e:V1", "ghcr.io", "a/b__c/d-e", "V1", "ghcr.io/a/b__c/d-e:V1"),
            ("localhost:5000/x", "localhost:5000", "x", "latest", "localhost:5000/x:latest"),
            ("localhost/x:1", "localhost", "x", "1", "localhost/x:1"),
            ("[::1]:5000/x:1", "[::1]:5000", "x", "1", "[::1]:5000/x:1"),
            (
                &format!("r.io/x:1@sha256:{hex}"),
                "r.io",
                "x",
                &format!("sha256:{hex}"),
                &format!("r.io/x:1@sha256:{hex}"),
            ),
        ] {
            let reference = read(text);
            let found = (reference.host(), reference.repository(), reference.version(), reference.to_string());
            assert_eq!(found, (host, repository, version, whole.to_owned()), "{text}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for text in ["localhost/x", "localhost:5000/x", "127.0.0.1:5000/x", "127.1.2.3/x", "[::1]:5000/x"] {
            assert!(read(text).is_loopback(), "{text}");
        }
        for text in ["x", "10.0.0.1:5000/x", "localhost.example.com/x", "127.0.0.1.example.com/x", "[fe80::1]:5000/x"] {
            assert!(!read(text).is_loopback(), "{text}");
        }
    }

    #[test]
    fn an_image_is_named_after_its_last_part_and_tag() {
        let hex = "ab".repeat(32);
        for (text, name) in [
            ("alpine:3.20", "alpine:3.20"),
            ("alpine", "alpine:latest"),
            ("ghcr.io/acme/tool:RC1", "tool:rc1"),
            (&format!("r.io/x@sha256:{hex}"), "x:abababababab"),
            (&format!("r.io/x:1@sha256:{hex}"), "x:1"),
        ] {
            assert_eq!(read(text).image_name().unwrap().as_str(), name);
        }
        assert!(read("x:1..2").image_name().is_err());
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(256);
        for bad in [
            "",
            "/",
            ":",
            "@",
            "Alpine",
            "a b",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:-x",
            "a:.x",
            "a:x y",
            "a@sha256:12",
            "a@md5:00",
            "../x",
            "a/../b",
            "a/./b",
            ".a",
            "a.",
            "a..b",
            "a___b",
            "http://r.io/x",
            "r.io:0/x",
            "r.io:99999/x",
            "r.io:/x",
            "-r.io/x",
            "[::1/x",
            "[r.io]/x",
            "r.io/x?y",
            "r.io/x#y",
            "r.io/x%2e",
            "user@r.io/x",
            "ä.io/x",
            "r.io/ä",
            &long,
        ] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_reads_back(text in "([a-z0-9.:-]{1,12}/)?[a-z0-9._/-]{1,20}(:[A-Za-z0-9._-]{1,9})?") {
            if let Ok(reference) = text.parse::<ImageReference>() {
                let again: ImageReference = reference.to_string().parse().unwrap();
                prop_assert_eq!(again.to_string(), reference.to_string());
                prop_assert_eq!(again.host(), reference.host());
            }
        }

        #[test]
        fn no_text_is_a_panic(text in ".{0,40}") {
            let _ = text.parse::<ImageReference>();
        }
    }
}
