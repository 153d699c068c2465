//! Domains: host names that lead to a machine's port.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Reference;
use crate::domain::{DomainCertificate, DomainLimits, DomainProof, DomainTraffic};

#[cfg(feature = "openapi")]
use utoipa::ToSchema;

shape! {
    /// A host name that leads to a machine's port: what is public.
    pub struct Domain {
        pub id: String,
        pub host: String,
        /// Where it is served: `https://app.example.com`, with a port where it is not the usual one.
        pub url: String,
        pub machine: Reference,
        pub network: Reference,
        pub port: u16,
        /// What a request has to bring: `bearer`, `basic`, or nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub auth: Option<String>,
        pub limits: DomainLimits,
        /// Why the account was allowed to take the name.
        pub proof: DomainProof,
        pub certificate: DomainCertificate,
        /// Why nobody reaches it for now, and what to do; absent while it is served.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub hindrance: Option<String>,
        /// Since the edge started.
        pub traffic: DomainTraffic,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub created_at: Timestamp,
        /// The key that mapped it.
        pub created_by: String,
    }
}

/// What a request has to bring in its `Authorization` header before anything of it reaches the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RequireAuth {
    /// Nothing.
    Open {},
    Bearer {
        /// 16 to 512 characters of visible ASCII.
        token: String,
    },
    Basic {
        /// 1 to 64 characters of visible ASCII, and no ':'.
        user: String,
        /// 8 to 256 characters of ASCII.
        password: String,
    },
}

shape! {
    /// Limits that are to be other than usual, or other than before.
    #[derive(Copy, Default)]
    #[serde(deny_unknown_fields)]
    pub struct AskLimits {
        /// 1 to 1,000,000; 500 when absent, or what it was.
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1_000_000))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub requests_per_second: Option<u32>,
        /// `requests_per_second` to 2,000,000; when absent, what was asked for before, or twice that.
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 2_000_000))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub burst: Option<u32>,
        /// 1,024 (1 KiB) to 68,719,476,736 (64 GiB); 104,857,600 (100 MiB) when absent.
        #[cfg_attr(feature = "openapi", schema(minimum = 1_024, maximum = 68_719_476_736_u64))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_body_bytes: Option<u64>,
        /// 1 to 3,600; 300 when absent.
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 3_600))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub idle_seconds: Option<u32>,
        /// 1 to 8,192; 512 when absent.
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 8_192))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub concurrent: Option<u32>,
    }
}

shape! {
    #[serde(deny_unknown_fields)]
    pub struct CreateDomain {
        /// The name; one below the server's preview suffix is made up when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub host: Option<String>,
        /// A machine's id or name.
        pub machine: String,
        /// One of the machine's declared ports.
        #[cfg_attr(feature = "openapi", schema(minimum = 1))]
        pub port: u16,
        /// Nothing when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub auth: Option<RequireAuth>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub limits: Option<AskLimits>,
    }
}

shape! {
    /// What to change of a domain; what is absent stays as it is.
    #[derive(Default)]
    #[serde(deny_unknown_fields)]
    pub struct UpdateDomain {
        /// A machine's id or name. Goes with `port`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub machine: Option<String>,
        /// One of the machine's declared ports.
        #[cfg_attr(feature = "openapi", schema(minimum = 1))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub port: Option<u16>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub auth: Option<RequireAuth>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub limits: Option<AskLimits>,
    }
}

/// Whether an account has proved that a name is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ClaimState {
    /// The TXT record was not found yet.
    Pending,
    Verified,
}

shape! {
    /// A name that an account says is its own. Once verified, it and every name below it can be mapped.
    pub struct DomainClaim {
        pub host: String,
        pub state: ClaimState,
        /// The TXT record that proves it.
        pub record: TxtRecord,
        /// What the last look for the record found, when that was just now and it was not there; or when the claim ends,
        /// as the record is gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub detail: Option<String>,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub created_at: Timestamp,
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub verified_at: Option<Timestamp>,
    }
}

shape! {
    /// A record to set in DNS.
    pub struct TxtRecord {
        /// `_warren.example.com`
        pub name: String,
        /// `warren-verification=…`
        pub value: String,
    }
}

shape! {
    #[serde(deny_unknown_fields)]
    pub struct ClaimDomain {
        /// A host name that is not below the server's preview suffix.
        pub host: String,
    }
}
