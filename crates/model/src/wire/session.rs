//! Operator sessions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Counters, Reference};
use crate::client_config::Endpoint;
use crate::session::WireGuardKey;

#[cfg(feature = "openapi")]
use utoipa::ToSchema;

shape! {
    /// What an operator asks for.
    #[derive(Default)]
    #[serde(deny_unknown_fields)]
    pub struct OpenSession {
        /// Seconds that it lives: 5 to 86,400; 3,600 (an hour) when absent. It ends with the key that opens it.
        #[cfg_attr(feature = "openapi", schema(minimum = 5, maximum = 86_400))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ttl_seconds: Option<u64>,
        /// It ends when no data came from it for so many seconds: 5 to 86,400; 1,800 (half an hour) when absent.
        #[cfg_attr(feature = "openapi", schema(minimum = 5, maximum = 86_400))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub idle_seconds: Option<u64>,
        /// The operator's public key, in base64; the session is closed when nobody comes with it within ten minutes. The
        /// server makes a key pair when absent, and hands the private key out once.
        #[cfg_attr(feature = "openapi", schema(min_length = 44, max_length = 44))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub public_key: Option<String>,
        /// The only thing that the session reaches; the whole network when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub only: Option<OpenSessionOnly>,
        /// Let machines open connections to the operator's machine, as far as policy allows; no when absent: the operator
        /// is sent only what answers them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reachable: Option<bool>,
        /// Send all of the operator's names to the network's resolver; no when absent. Not together with `only`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub dns: Option<bool>,
    }
}

shape! {
    #[serde(deny_unknown_fields)]
    pub struct OpenSessionOnly {
        /// A machine of the network, by id or name.
        pub machine: String,
        /// Only this port of it, over TCP and UDP.
        #[cfg_attr(feature = "openapi", schema(minimum = 1))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub port: Option<u16>,
    }
}

shape! {
    /// An operator in a network, over WireGuard.
    pub struct Session {
        pub id: String,
        /// What it is called where members are named, such as in denials.
        pub name: String,
        pub network: Reference,
        /// The only thing that it reaches; null for the whole network.
        pub only: Option<SessionOnly>,
        /// Whether machines may open connections to the operator's machine, as far as policy allows.
        pub reachable: bool,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Ipv4))]
        pub private_ip: Ipv4Addr,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = Ipv6))]
        pub private_ip6: Ipv6Addr,
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        pub public_key: WireGuardKey,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub created_at: Timestamp,
        #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
        pub expires_at: Timestamp,
        /// It ends when no data came from it for so many seconds.
        pub idle_seconds: u64,
        /// The key that opened it.
        pub opened_by: String,
        /// The name of that key, or its id where it has none.
        pub operator: String,
        /// Why nothing of it passes for now; absent while it passes. What keeps it out is tried again by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub hindrance: Option<String>,
        /// What the tunnel says of it; null while it says nothing.
        pub status: Option<SessionStatus>,
    }
}

shape! {
    pub struct SessionOnly {
        pub machine: Reference,
        pub port: Option<u16>,
    }
}

shape! {
    /// A session's tunnel, since the server's WireGuard last started.
    pub struct SessionStatus {
        /// From where the operator was last heard; null before the first handshake.
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        pub endpoint: Option<SocketAddr>,
        /// Sent and received by the operator.
        pub traffic: Counters,
        /// Packets of the operator that were not its own, or not allowed.
        pub refused_packets: u64,
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub last_handshake_at: Option<Timestamp>,
        /// When data last came from the operator.
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
        pub last_data_at: Option<Timestamp>,
    }
}

shape! {
    /// A session that was just opened, with what the operator's WireGuard needs.
    pub struct OpenedSession {
        #[serde(flatten)]
        pub session: Session,
        /// `id` once more.
        pub session_id: String,
        /// A complete file for `wg-quick`. It holds the private key where the server made it.
        pub client_config: String,
        /// Only where the server made the key pair, only in the answer that opened the session, and never again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub client_private_key: Option<String>,
        /// Where the server's WireGuard is reached: `HOST:PORT`.
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        pub endpoint: Endpoint,
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        pub server_public_key: WireGuardKey,
        /// The operator's addresses, as `Address` has them.
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        pub addresses: Vec<IpNet>,
        /// What goes into the tunnel, as `AllowedIPs` has it.
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        pub allowed_ips: Vec<IpNet>,
        /// The network's resolver, where `dns` was asked for.
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub dns: Vec<IpAddr>,
        /// Why the private key is absent, when an answer is repeated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub detail: Option<String>,
    }
}
