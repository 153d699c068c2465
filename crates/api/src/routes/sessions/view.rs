//! Sessions as the API shows them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use warren_model::record::Network;
use warren_model::session::{Session, SessionScope};
use warren_model::{AccountId, KeyId, NetworkId, SessionId, wire};
use warren_store::{StoreError, Typed, schema};

use crate::state::Api;
use crate::tunnels::SessionStatus;

/// What was read while a list is put together.
#[derive(Default)]
pub(crate) struct Views {
    networks: HashMap<NetworkId, (Network, BTreeMap<SessionId, SessionStatus>)>,
    operators: HashMap<KeyId, String>,
    /// The tunnels are not asked.
    silent: bool,
}

impl Views {
    /// For sessions of which no tunnel can have anything to say yet.
    pub fn without_status() -> Self {
        Self { silent: true, ..Self::default() }
    }

    /// `None` when the session's network went away while the list was put together.
    pub async fn session(&mut self, api: &Api, session: &Session) -> Result<Option<wire::Session>, StoreError> {
        let (network, statuses) = match self.networks.entry(session.network) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => match api.store.read(&schema::network(session.network)).await? {
                Some(read) if self.silent => unknown.insert((read.record, BTreeMap::new())),
                Some(read) => unknown.insert((read.record, api.tunnels.status(session.network).await)),
                None => return Ok(None),
            },
        };
        let operator = match self.operators.entry(session.opened_by) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(unknown) => unknown.insert(operator(api, session.account, session.opened_by).await?).clone(),
        };
        Ok(Some(wire::Session {
            id: session.id.to_string(),
            name: session.name().to_string(),
            network: wire::Reference { id: network.id.to_string(), name: network.name.to_string() },
            only: match &session.only {
                Some(scope) => Some(only(api, scope).await?),
                None => None,
            },
            reachable: session.reachable,
            private_ip: session.ipv4,
            private_ip6: session.ipv6(api.config.installation.ula, network.number),
            public_key: session.public_key,
            created_at: session.created_at,
            expires_at: session.expires_at,
            idle_seconds: session.idle_seconds,
            opened_by: session.opened_by.to_string(),
            operator,
            hindrance: if self.silent { None } else { api.tunnels.passes(session).err() },
            status: statuses.get(&session.id).map(status),
        }))
    }
}

/// The name of the key that opened a session, or its id where it has none.
pub(crate) async fn operator(api: &Api, account: AccountId, key: KeyId) -> Result<String, StoreError> {
    let record = match api.store.read(&schema::api_key_hash(account, key)).await? {
        Some(hash) => api.store.read(&schema::api_key(&hash.record)).await?.map(|read| read.record),
        // Nobody but root opens sessions with a key of another account.
        None => return Ok("root".to_owned()),
    };
    Ok(match record {
        Some(key) if key.root => "root".to_owned(),
        Some(named) => named.name.map_or_else(|| key.to_string(), |name| name.to_string()),
        None => key.to_string(),
    })
}

async fn only(api: &Api, scope: &SessionScope) -> Result<wire::SessionOnly, StoreError> {
    let machine = api.store.read(&schema::machine(scope.machine)).await?;
    let id = scope.machine.to_string();
    // It may have gone since the session was read, and the session with it.
    let name = machine.map_or_else(|| id.clone(), |read| read.record.name.to_string());
    Ok(wire::SessionOnly { machine: wire::Reference { id, name }, port: scope.port })
}

fn status(status: &SessionStatus) -> wire::SessionStatus {
    wire::SessionStatus {
        endpoint: status.endpoint,
        // The operator sends what the gateway receives.
        traffic: wire::Counters {
            sent_bytes: status.received_bytes,
            sent_packets: status.received_packets,
            received_bytes: status.sent_bytes,
            received_packets: status.sent_packets,
        },
        refused_packets: status.refused_packets,
        last_handshake_at: status.last_handshake_at,
        last_data_at: status.last_data_at,
    }
}
