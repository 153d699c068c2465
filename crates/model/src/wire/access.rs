//! Identities, what is granted to them, and their tokens.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Reference;
use crate::grant::Verb;

#[cfg(feature = "openapi")]
use utoipa::ToSchema;

shape! {
    /// Somebody who may operate machines that are granted to them, and nothing else.
    pub struct Identity {
        pub id: String,
        pub name: Option<String>,
        /// What its owner notes about it; Warren does not read it.
        pub metadata: BTreeMap<String, String>,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub created_at: Timestamp,
    }
}

shape! {
    #[derive(Default)]
    #[serde(deny_unknown_fields)]
    pub struct CreateIdentity {
        /// One DNS label, which no other identity of the account has.
        #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub name: Option<String>,
        /// At most 64 entries, each a label key and value.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub metadata: BTreeMap<String, String>,
    }
}

shape! {
    /// What is to be changed; what is absent stays.
    #[derive(Default)]
    #[serde(deny_unknown_fields)]
    pub struct UpdateIdentity {
        #[cfg_attr(feature = "openapi", schema(pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub name: Option<String>,
        /// All of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub metadata: Option<BTreeMap<String, String>>,
    }
}

shape! {
    /// What an identity may do with a machine, or with every machine of a network.
    pub struct Grant {
        pub identity: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub machine: Option<Reference>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub network: Option<Reference>,
        pub verbs: BTreeSet<Verb>,
        /// The machine's users that commands may run as; null for every one.
        pub users: Option<BTreeSet<String>>,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub granted_at: Timestamp,
        /// The key that granted it.
        pub granted_by: String,
    }
}

shape! {
    #[derive(Default)]
    #[serde(deny_unknown_fields)]
    pub struct GrantAccess {
        /// Everything but `stop` when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub verbs: Option<BTreeSet<Verb>>,
        /// The machine's users that commands may run as, by name; every one when absent. `files` needs `root` among them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub users: Option<BTreeSet<String>>,
    }
}

shape! {
    /// A token of an identity, without its secret.
    pub struct Token {
        pub id: String,
        pub identity: String,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub created_at: Timestamp,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub expires_at: Timestamp,
        /// To the minute.
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub last_used_at: Option<Timestamp>,
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub revoked_at: Option<Timestamp>,
        /// The secret: only in the answer that created it, and never again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub token: Option<String>,
        /// Why `token` is absent, when an answer is repeated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub detail: Option<String>,
    }
}

shape! {
    #[derive(Default)]
    #[serde(deny_unknown_fields)]
    pub struct CreateToken {
        /// Seconds until it is no longer valid: 1 to 31,536,000; 86,400 (a day) when absent.
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 31_536_000))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub expires_in_seconds: Option<u64>,
    }
}
