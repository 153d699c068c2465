//! What every mutation writes beside its records: the audit entry and the events, in the same transaction.

use jiff::Timestamp;
use serde::Serialize;
use warren_model::record::{AuditEntry, Event, EventKind};
use warren_model::{AccountId, EventId, MachineId, NetworkId};
use warren_store::{TxnBuilder, schema};

use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::secret;

/// How often a mutation is tried again when something else changed what it read.
pub(crate) const ATTEMPTS: usize = 64;

/// Others kept changing what a mutation needed.
pub(crate) fn contended() -> ApiError {
    tracing::warn!("a transaction met a conflict {ATTEMPTS} times");
    ApiError::busy()
}

/// An event before it has an id.
#[derive(Debug, Clone)]
pub(crate) struct News {
    pub kind: EventKind,
    pub account: AccountId,
    pub network: Option<NetworkId>,
    pub machine: Option<MachineId>,
    pub message: String,
}

/// Who does what, for the audit log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deed<'a> {
    pub caller: &'a Caller,
    pub now: Timestamp,
    /// `machine.create`
    pub action: &'static str,
}

impl Deed<'_> {
    /// Adds the audit entry and the events. `request` is what was asked for and must not hold a secret.
    pub fn record(
        &self,
        txn: TxnBuilder,
        target: impl ToString,
        request: &impl Serialize,
        news: impl IntoIterator<Item = News>,
    ) -> Answer<TxnBuilder> {
        let entry = AuditEntry {
            id: EventId::from_ulid(secret::ulid(self.now)?),
            time: self.now,
            account: self.caller.account,
            key: self.caller.key(),
            token: self.caller.token().map(|(token, _)| token),
            action: self.action.to_owned(),
            target: target.to_string(),
            request_id: self.caller.request_id.as_str().to_owned(),
            request: serde_json::to_value(request).unwrap_or_default(),
        };
        write(txn, &entry, news)
    }
}

/// The same for what the server does by itself in an account: no key and no request stands for it.
pub(crate) fn by_server(
    txn: TxnBuilder,
    account: AccountId,
    now: Timestamp,
    action: &'static str,
    target: impl ToString,
    request: &impl Serialize,
    news: impl IntoIterator<Item = News>,
) -> Answer<TxnBuilder> {
    let entry = AuditEntry {
        id: EventId::from_ulid(secret::ulid(now)?),
        time: now,
        account,
        key: None,
        token: None,
        action: action.to_owned(),
        target: target.to_string(),
        request_id: String::new(),
        request: serde_json::to_value(request).unwrap_or_default(),
    };
    write(txn, &entry, news)
}

fn write(txn: TxnBuilder, entry: &AuditEntry, news: impl IntoIterator<Item = News>) -> Answer<TxnBuilder> {
    let mut txn = txn.put(&schema::audit(entry.id), entry)?;
    for News { kind, account, network, machine, message } in news {
        let id = EventId::from_ulid(secret::ulid(entry.time)?);
        let event = Event { id, time: entry.time, kind, account: Some(account), network, machine, message };
        txn = txn.put(&schema::event(id), &event)?;
    }
    Ok(txn)
}
