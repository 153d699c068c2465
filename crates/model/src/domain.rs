//! Host names that lead from the public internet to one port of one machine.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::id::{AccountId, DomainId, KeyId, MachineId, NetworkId};
use crate::policy::{HostName, InvalidHost};

/// Domains that an account may have, and claims.
pub const MAX_DOMAINS: usize = 1_000;
/// Domains of one server at most: what is published goes to the edge in one message, with all certificates.
pub const MAX_DOMAINS_OF_SERVER: usize = 8_000;
/// How often the TXT record of a verified claim is looked for.
pub const CLAIM_LOOKED_FOR_DAYS: i64 = 7;
/// How long a claim still counts when its record is gone.
pub const CLAIM_MISSING_DAYS: i64 = 3;
/// What stands before the code in a TXT record.
pub const TXT_PREFIX: &str = "warren-verification=";

/// Characters of a bearer token, all of them visible ASCII.
const BEARER: std::ops::RangeInclusive<usize> = 16..=512;
const USER: std::ops::RangeInclusive<usize> = 1..=64;
/// Characters of a password; visible ASCII and spaces.
const PASSWORD: std::ops::RangeInclusive<usize> = 8..=256;

/// Why a host name cannot lead to a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDomain {
    #[error(transparent)]
    Host(#[from] InvalidHost),
    #[error("{0:?} is a wildcard: map every name by itself")]
    Wildcard(String),
    #[error("{0:?} is not in ASCII: write it as DNS has it, with labels like xn--bcher-kva")]
    NotAscii(String),
    #[error("{0:?} has a '_', which names of web sites do not have")]
    Underscore(String),
    #[error("{0:?} is a public suffix, below which others register names: name a domain of your own")]
    PublicSuffix(String),
}

/// Reads a host name that may lead to a machine: lower case, at least two labels, no address, no wildcard, no public
/// suffix (<https://publicsuffix.org>), nothing that is only known inside.
pub fn host_name(text: &str) -> Result<HostName, InvalidDomain> {
    let shown = || text.chars().take(80).collect::<String>();
    if text.contains('*') {
        return Err(InvalidDomain::Wildcard(shown()));
    }
    if !text.is_ascii() {
        return Err(InvalidDomain::NotAscii(shown()));
    }
    let host: HostName = text.parse()?;
    if host.as_str().contains('_') {
        return Err(InvalidDomain::Underscore(shown()));
    }
    if psl::suffix_str(host.as_str()) == Some(host.as_str()) {
        return Err(InvalidDomain::PublicSuffix(shown()));
    }
    Ok(host)
}

/// Whether the name has at least one label more than the suffix, and ends in it.
pub fn is_below(host: &HostName, suffix: &HostName) -> bool {
    let front = host.as_str().strip_suffix(suffix.as_str()).and_then(|front| front.strip_suffix('.'));
    front.is_some_and(|front| !front.is_empty())
}

/// Labels that nobody takes directly below the preview suffix, nor anything below them: people and programs believe that
/// these are the operator's own. In part from <https://ldpreload.com/blog/names-to-reserve>.
const RESERVED: [&str; 24] = [
    // What a site's visitors take for the site itself.
    "www",
    "api",
    "admin",
    "login",
    // Servers of a domain (RFC 2219), which clients try without being told.
    "mail",
    "webmail",
    "mx",
    "smtp",
    "imap",
    "pop",
    "pop3",
    "ftp",
    "ns",
    "ns1",
    "ns2",
    "dns",
    // Asked for settings: of mail programs, proxies and tunnels of a network, policies (RFC 8461) and keys of mail.
    "autoconfig",
    "autodiscover",
    "wpad",
    "isatap",
    "mta-sts",
    "openpgpkey",
    // Means a computer itself.
    "localhost",
    "localdomain",
];

/// Whether a name below the preview suffix is kept for the suffix's owner: it is at or below a reserved label, or one
/// that begins with `_`, as names of services and proofs do (RFC 8552).
pub fn is_reserved(host: &HostName, suffix: &HostName) -> bool {
    let front = host.as_str().strip_suffix(suffix.as_str()).and_then(|front| front.strip_suffix('.'));
    let label = front.and_then(|front| front.rsplit('.').next());
    label.is_some_and(|label| label.starts_with('_') || RESERVED.contains(&label))
}

/// The names whose owner also owns this one: itself, and every parent up to the one that was registered below a public
/// suffix.
pub fn owners(host: &HostName) -> Vec<HostName> {
    let registered = psl::domain_str(host.as_str()).unwrap_or(host.as_str());
    let mut owners = Vec::new();
    let mut rest = host.as_str();
    loop {
        owners.extend(rest.parse::<HostName>());
        match rest.split_once('.') {
            Some((_, parent)) if rest != registered => rest = parent,
            _ => return owners,
        }
    }
}

/// Why a secret cannot be asked for in front of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAuth {
    #[error("a bearer token has {} to {} characters of visible ASCII", BEARER.start(), BEARER.end())]
    Bearer,
    #[error("a user has {} to {} characters of visible ASCII, and no ':'", USER.start(), USER.end())]
    User,
    #[error("a password has {} to {} characters of ASCII", PASSWORD.start(), PASSWORD.end())]
    Password,
}

/// What a request has to bring in its `Authorization` header before anything of it reaches the machine. The secrets
/// themselves are nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DomainAuth {
    /// RFC 6750.
    Bearer {
        /// blake3 of the token, in hex.
        hash: String,
    },
    /// RFC 7617.
    Basic {
        user: String,
        /// blake3 of the password, in hex.
        hash: String,
    },
}

impl DomainAuth {
    pub fn bearer(token: &str) -> Result<Self, InvalidAuth> {
        if !BEARER.contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidAuth::Bearer);
        }
        Ok(Self::Bearer { hash: blake3::hash(token.as_bytes()).to_hex().to_string() })
    }

    pub fn basic(user: &str, password: &str) -> Result<Self, InvalidAuth> {
        if !USER.contains(&user.len()) || !user.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
            return Err(InvalidAuth::User);
        }
        let printable = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        if !PASSWORD.contains(&password.len()) || !password.bytes().all(printable) {
            return Err(InvalidAuth::Password);
        }
        Ok(Self::Basic { user: user.to_owned(), hash: blake3::hash(password.as_bytes()).to_hex().to_string() })
    }

    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Bearer { .. } => "bearer",
            Self::Basic { .. } => "basic",
        }
    }
}

/// A limit outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{limit} is {least} to {most}, not {given}")]
pub struct LimitOutOfRange {
    pub limit: &'static str,
    pub least: u64,
    pub most: u64,
    pub given: u64,
}

/// What a domain lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DomainLimits {
    /// From all clients together, over time.
    pub requests_per_second: u32,
    /// At once, before the rate counts; at least one second's worth.
    pub burst: u32,
    /// Bytes of a request's body.
    pub max_body_bytes: u64,
    /// How long a connection may rest with nothing going either way, in seconds.
    pub idle_seconds: u32,
    /// Requests and upgraded connections under way.
    pub concurrent: u32,
}

impl Default for DomainLimits {
    fn default() -> Self {
        Self { requests_per_second: 500, burst: 1_000, max_body_bytes: 100 << 20, idle_seconds: 300, concurrent: 512 }
    }
}

impl DomainLimits {
    /// The burst that goes with a rate where none was asked for: two seconds' worth.
    pub fn usual_burst(requests_per_second: u32) -> u32 {
        requests_per_second.saturating_mul(2)
    }

    /// Ranges: 1 to 1,000,000 requests per second, a burst of that to 2,000,000, 1 KiB to 64 GiB of body, 1 to 3,600
    /// seconds of rest, 1 to 8,192 under way.
    pub fn check(&self) -> Result<(), LimitOutOfRange> {
        let within = |limit, least: u64, most: u64, given: u64| {
            if (least..=most).contains(&given) { Ok(()) } else { Err(LimitOutOfRange { limit, least, most, given }) }
        };
        within("requests_per_second", 1, 1_000_000, self.requests_per_second.into())?;
        within("burst", self.requests_per_second.into(), 2_000_000, self.burst.into())?;
        within("max_body_bytes", 1 << 10, 64 << 30, self.max_body_bytes)?;
        within("idle_seconds", 1, 3_600, self.idle_seconds.into())?;
        within("concurrent", 1, 8_192, self.concurrent.into())
    }
}

/// Why the account was allowed to take the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DomainProof {
    /// It is below the preview suffix, where every name is free to take.
    Suffix,
    /// A TXT record of its owner's said so.
    Txt,
}

/// A host name that leads to a machine's port. While the record is there, the port is public.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    pub id: DomainId,
    pub account: AccountId,
    pub host: HostName,
    pub network: NetworkId,
    pub machine: MachineId,
    pub port: u16,
    pub auth: Option<DomainAuth>,
    pub limits: DomainLimits,
    /// Whether the burst in `limits` was asked for. Records of before this was noted do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_asked_for: Option<bool>,
    pub proof: DomainProof,
    pub created_at: Timestamp,
    /// The key that mapped it.
    pub created_by: KeyId,
}

impl Domain {
    /// Whether its burst follows its rate: nobody asked for another one.
    pub fn burst_follows(&self) -> bool {
        let DomainLimits { requests_per_second, burst, .. } = self.limits;
        !self.burst_asked_for.unwrap_or(burst != DomainLimits::usual_burst(requests_per_second))
    }
}

/// An account says that a name is its own, and proves it with a TXT record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainClaim {
    pub account: AccountId,
    pub host: HostName,
    /// 128 random bits in hex.
    pub code: String,
    /// A client of Freestyle's was told to make the record, and names it in its own way.
    pub freestyle: bool,
    pub created_at: Timestamp,
    pub verified_at: Option<Timestamp>,
    /// When its record is looked for again, once it was verified; `None`: [`CLAIM_LOOKED_FOR_DAYS`] after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recheck_at: Option<Timestamp>,
    /// Since when its record is known to be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<Timestamp>,
    /// Its account wants it no more, and has names mapped by it: it is there for them only, and is looked for as before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
}

impl DomainClaim {
    /// Whether its record is to be looked for again.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let usual = |at| at + SignedDuration::from_hours(24 * CLAIM_LOOKED_FOR_DAYS);
        self.verified_at.is_some_and(|at| self.recheck_at.unwrap_or_else(|| usual(at)) <= now)
    }

    /// When it ends, unless its record is found before.
    pub fn ends_at(&self) -> Option<Timestamp> {
        self.missing_since.map(|since| since + SignedDuration::from_hours(24 * CLAIM_MISSING_DAYS))
    }

    /// Whether it covers a name that is mapped.
    pub fn covers(&self, host: &HostName) -> bool {
        self.verified_at.is_some() && owners(host).contains(&self.host)
    }

    /// The name of the TXT record that proves it.
    pub fn record_name(&self) -> String {
        format!("_warren.{}", self.host)
    }

    /// What the record says.
    pub fn record_value(&self) -> String {
        format!("{TXT_PREFIX}{}", self.code)
    }

    /// The names at which the record is looked for.
    pub fn record_names(&self) -> Vec<String> {
        let theirs = self.freestyle.then(|| format!("_freestyle_custom_hostname.{}", self.host));
        std::iter::once(self.record_name()).chain(theirs).collect()
    }
}

/// How far a domain's certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum CertificateState {
    /// On its way; until then clients that come over TLS are turned away.
    #[default]
    Pending,
    Valid,
    /// There is none, or it has expired; it is tried again.
    Failed,
    /// The server listens for plain HTTP only.
    None,
}

impl CertificateState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Valid => "valid",
            Self::Failed => "failed",
            Self::None => "none",
        }
    }
}

impl fmt::Display for CertificateState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known of a domain's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DomainCertificate {
    pub state: CertificateState,
    /// Why it is pending or failed, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
}

/// What went through a domain since its edge started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DomainTraffic {
    /// All requests that came, refused or not.
    pub requests: u64,
    /// Those of them that were not answered by the machine.
    pub refused: u64,
    /// Bytes that the machine sent.
    pub sent_bytes: u64,
    /// Bytes that the machine received.
    pub received_bytes: u64,
    /// Requests and upgraded connections under way.
    pub open: u64,
}

/// What the edge says of one domain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DomainStatus {
    pub certificate: DomainCertificate,
    pub traffic: DomainTraffic,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_one_that_somebody_can_own() {
        assert_eq!(host_name("App.Example.COM.").unwrap().as_str(), "app.example.com");
        assert_eq!(host_name("xn--bcher-kva.example").unwrap().as_str(), "xn--bcher-kva.example");
        for (text, refused) in [
            ("*.example.com", InvalidDomain::Wildcard("*.example.com".into())),
            ("b\u{fc}cher.example", InvalidDomain::NotAscii("b\u{fc}cher.example".into())),
            ("a_b.example.com", InvalidDomain::Underscore("a_b.example.com".into())),
            ("co.uk", InvalidDomain::PublicSuffix("co.uk".into())),
            ("GitHub.io", InvalidDomain::PublicSuffix("GitHub.io".into())),
        ] {
            assert_eq!(host_name(text), Err(refused), "{text}");
        }
        for text in ["", "example", "a..b", "203.0.113.7", "[::1]", "::1", "vm.internal", "a.localhost", "a b.example"]
        {
            assert!(matches!(host_name(text), Err(InvalidDomain::Host(_))), "{text}");
        }
    }

    #[test]
    fn owners_are_the_name_and_its_parents_up_to_what_was_registered() {
        let owners = |text: &str| owners(&host(text)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(owners("a.b.example.com"), ["a.b.example.com", "b.example.com", "example.com"]);
        assert_eq!(owners("example.co.uk"), ["example.co.uk"]);
        // Whoever has the parent of a public suffix does not own what others registered below it.
        assert_eq!(owners("a.user.github.io"), ["a.user.github.io", "user.github.io"]);
        assert_eq!(owners("a.b.test"), ["a.b.test", "b.test"]);
    }

    #[test]
    fn below_is_at_least_one_label_more() {
        let suffix = host("preview.example");
        for below in ["a.preview.example", "a.b.preview.example"] {
            assert!(is_below(&host(below), &suffix), "{below}");
        }
        for not in ["preview.example", "apreview.example", "a.preview.example.com", "other.example"] {
            assert!(!is_below(&host(not), &suffix), "{not}");
        }
    }

    #[test]
    fn what_clients_try_by_themselves_is_kept_for_the_owner_of_the_suffix() {
        let suffix = host("preview.example");
        for kept in ["www", "api", "mail", "wpad", "autoconfig", "a.www", "b.a.autodiscover", "_dmarc", "a._tcp"] {
            assert!(is_reserved(&host(&format!("{kept}.preview.example")), &suffix), "{kept}");
        }
        // Below a name that somebody took, they are its owner's.
        for free in ["www.shop", "wwww", "www-a", "my-api", "wpad.a.b"] {
            assert!(!is_reserved(&host(&format!("{free}.preview.example")), &suffix), "{free}");
        }
        for other in ["www.other.example", "wwwpreview.example", "preview.example"] {
            assert!(!is_reserved(&host(other), &suffix), "{other}");
        }
    }

    #[test]
    fn secrets_are_kept_as_hashes_and_have_a_length() {
        let bearer = DomainAuth::bearer("0123456789abcdef").unwrap();
        let basic = DomainAuth::basic("alice", "correct horse").unwrap();
        for auth in [bearer, basic] {
            let text = serde_json::to_string(&auth).unwrap();
            assert!(!text.contains("0123456789abcdef") && !text.contains("correct horse"), "{text}");
            assert_eq!(serde_json::from_str::<DomainAuth>(&text).unwrap(), auth);
        }
        for short in ["", "0123456789abcde", "0123456789 abcdef", "0123456789abcde\u{e9}"] {
            assert_eq!(DomainAuth::bearer(short), Err(InvalidAuth::Bearer), "{short}");
        }
        assert_eq!(DomainAuth::basic("a:b", "12345678"), Err(InvalidAuth::User));
        assert_eq!(DomainAuth::basic("", "12345678"), Err(InvalidAuth::User));
        assert_eq!(DomainAuth::basic("a", "1234567"), Err(InvalidAuth::Password));
        assert_eq!(DomainAuth::basic("a", "1234567\n"), Err(InvalidAuth::Password));
    }

    #[test]
    fn limits_have_ranges_and_the_usual_ones_are_within() {
        let usual = DomainLimits::default();
        assert_eq!(usual.check(), Ok(()));
        assert_eq!(usual.burst, DomainLimits::usual_burst(usual.requests_per_second));
        let limit = |limits: DomainLimits| limits.check().unwrap_err().limit;
        assert_eq!(limit(DomainLimits { requests_per_second: 0, ..usual }), "requests_per_second");
        assert_eq!(limit(DomainLimits { burst: usual.requests_per_second - 1, ..usual }), "burst");
        assert_eq!(limit(DomainLimits { max_body_bytes: 1023, ..usual }), "max_body_bytes");
        assert_eq!(limit(DomainLimits { idle_seconds: 3601, ..usual }), "idle_seconds");
        assert_eq!(limit(DomainLimits { concurrent: 0, ..usual }), "concurrent");
    }
}
