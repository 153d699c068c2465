//! How sessions end at somebody's wish. The reconciler ends those that expire or are idle, and [`heard`] those to which
//! nobody came.

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;
use warren_model::record::EventKind;
use warren_model::session::Session;
use warren_model::{Code, MachineId, SessionId};
use warren_store::session::{self, Open, Why};
use warren_store::{StoreError, TxnBuilder, TxnOutcome};

use super::heard;
use super::open::audited;
use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::idempotency::Claim;
use crate::mutation::{ATTEMPTS, Deed, News, contended};
use crate::state::Api;

/// Closes a session and waits until nothing of it passes. One that is gone already is closed.
pub(crate) async fn close(api: &Api, caller: &Caller, id: SessionId) -> Answer<()> {
    let deadline = Instant::now() + api.config.operation_deadline;
    remove(api, caller, id, "session.close", &Why::Closed, None).await?;
    cut(api, &[id], deadline).await
}

/// Takes back a session that could not be opened.
pub(super) async fn undo(api: &Api, caller: &Caller, id: SessionId, reason: String, claim: &Claim) -> Answer<()> {
    remove(api, caller, id, "session.open.undo", &Why::NotOpened(reason), Some(claim)).await
}

async fn remove(
    api: &Api,
    caller: &Caller,
    id: SessionId,
    action: &'static str,
    why: &Why,
    claim: Option<&Claim>,
) -> Answer<()> {
    for _ in 0..ATTEMPTS {
        let Some(open) = Open::read(&*api.store, id).await? else { return Ok(()) };
        let session = open.session.record.clone();
        let session = &session;
        let now = Timestamp::now();
        let mut txn = TxnBuilder::new();
        // Nobody can have come to one of which nothing passed.
        let open = if claim.is_some() { vec![open] } else { heard::certain(&*api.tunnels, vec![open]).await };
        for open in open {
            txn = open.close(txn, now)?;
        }
        if let Some(claim) = claim {
            txn = claim.undo(txn);
        }
        let deed = Deed { caller, now, action };
        let request = closing(api, caller, session, why).await?;
        let txn = deed.record(txn, id, &request, [news(session, why)])?;
        if let TxnOutcome::Committed(_) = txn.commit(&*api.store).await? {
            return Ok(());
        }
    }
    Err(contended())
}

/// What the audit log says of a session that ends.
async fn closing(api: &Api, caller: &Caller, session: &Session, why: &Why) -> Answer<Value> {
    let mut request = audited(api, caller, session).await?;
    request["reason"] = why.to_string().into();
    Ok(request)
}

/// Closes every session that reaches a machine which is being deleted, and nothing else. Whoever commits this changes the
/// machine's record too, and then [cuts](cut) the sessions.
pub(crate) async fn close_only_for(
    api: &Api,
    mut txn: TxnBuilder,
    caller: &Caller,
    now: Timestamp,
    machine: MachineId,
) -> Answer<(TxnBuilder, Vec<SessionId>)> {
    let open = heard::certain(&*api.tunnels, session::only_for(&*api.store, machine).await?).await;
    let mut ids = Vec::with_capacity(open.len());
    for one in open {
        let session = &one.session.record;
        let deed = Deed { caller, now, action: "session.close" };
        let request = closing(api, caller, session, &Why::MachineDeleted).await?;
        let news = [news(session, &Why::MachineDeleted)];
        txn = deed.record(one.close(txn, now)?, session.id, &request, news)?;
        ids.push(session.id);
    }
    Ok((txn, ids))
}

/// Adds to a transaction that something ends which sessions need; answers what is to be told, and of which sessions.
pub(crate) async fn put_closed(
    api: &Api,
    mut txn: TxnBuilder,
    open: Vec<Open>,
    why: &Why,
    now: Timestamp,
) -> Result<(TxnBuilder, Vec<News>, Vec<SessionId>), StoreError> {
    let open = heard::certain(&*api.tunnels, open).await;
    let (mut told, mut ids) = (Vec::with_capacity(open.len()), Vec::with_capacity(open.len()));
    for one in &open {
        txn = one.close(txn, now)?;
        told.push(news(&one.session.record, why));
        ids.push(one.session.record.id);
    }
    Ok((txn, told, ids))
}

/// Waits until nothing passes of sessions whose records are gone.
pub(crate) async fn cut(api: &Api, ids: &[SessionId], deadline: Instant) -> Answer<()> {
    let all = futures::future::join_all(ids.iter().map(|id| api.tunnels.closed(*id)));
    match tokio::time::timeout_at(deadline, all).await {
        Ok(_) => Ok(()),
        Err(_) => Err(ApiError::new(
            Code::DeadlineExceeded,
            "what was asked for is done, but the tunnels have not confirmed that nothing passes any more: the server's \
             log says more",
        )),
    }
}

pub(super) fn news(session: &Session, why: &Why) -> News {
    News {
        kind: EventKind::SessionClosed,
        account: session.account,
        network: Some(session.network),
        machine: None,
        message: session::message(session, why),
    }
}
