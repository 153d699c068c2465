//! What identities may do with machines, one by one or all of a network.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use jiff::Timestamp;
use warren_model::grant::{GrantTarget, Permission, Verb};
use warren_model::name::InvalidName;
use warren_model::record::{EventKind, Grant, Identity};
use warren_model::{Code, LinuxUser, wire};
use warren_store::{TxnBuilder, TxnOutcome, Typed, schema};

use super::{ListQuery, identities};
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named, NamedPair, Query};
use crate::mutation::{ATTEMPTS, Deed, News, contended};
use crate::resolve;
use crate::state::{Api, Shared};

/// Grants per identity.
const GRANTS: usize = 1000;
/// Users that one grant names.
const USERS: usize = 64;

/// List what was granted to an identity
#[utoipa::path(get, path = "/v1/identities/{identity}/grants", operation_id = "list_grants", tag = "identities",
    params(("identity" = String, Path, description = "Id or name"), ListQuery),
    responses((status = 200, body = wire::Page<wire::Grant>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Query(query): Query<ListQuery>,
) -> Answer<Json<wire::Page<wire::Grant>>> {
    let identity = resolve::identity(&api, caller.account, &given).await?.record.id;
    let scope = format!("grants {identity}");
    let paging = Paging::parse(&scope, caller.account, query.limit, query.cursor.as_deref())?;
    let (page, more) = api.store.list_page(&schema::grants_of(identity), paging.after.clone(), paging.limit).await?;
    let next = page.last().filter(|_| more).map(|last| paging.next(&last.key));
    let mut items = Vec::with_capacity(page.len());
    for grant in page {
        items.extend(view(&api, &grant.record).await?);
    }
    Ok(Json(wire::Page { items, next }))
}

/// Grant an identity something on a machine
///
/// In place of what was granted on this machine before. What was granted on the machine's network adds to it.
#[utoipa::path(put, path = "/v1/identities/{identity}/machines/{machine}", operation_id = "grant_machine",
    tag = "identities", request_body = wire::GrantAccess, responses((status = 200, body = wire::Grant)),
    params(("identity" = String, Path, description = "Id or name"),
        ("machine" = String, Path, description = "Id or name")))]
pub(crate) async fn grant_machine(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(identity, machine): NamedPair,
    JsonBody { value, .. }: JsonBody<wire::GrantAccess>,
) -> Answer<Json<wire::Grant>> {
    let about = About::machine(&api, &caller, &machine).await?;
    let granted = grant(&api, &caller, &identity, about, value, Expect::Anything).await?;
    granted.map(Json).ok_or_else(ApiError::internal)
}

/// Take back what was granted on a machine
///
/// At once, in streams that are open too. Where nothing was granted on it, that is said: what was meant may be another.
#[utoipa::path(delete, path = "/v1/identities/{identity}/machines/{machine}", operation_id = "revoke_machine",
    tag = "identities", responses((status = 204, description = "Taken back")),
    params(("identity" = String, Path, description = "Id or name"),
        ("machine" = String, Path, description = "Id or name")))]
pub(crate) async fn revoke_machine(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(identity, machine): NamedPair,
) -> Answer<StatusCode> {
    let about = About::machine(&api, &caller, &machine).await?;
    revoke(&api, &caller, &identity, about).await
}

/// Grant an identity something on every machine of a network
///
/// Those that come later too. In place of what was granted on this network before.
#[utoipa::path(put, path = "/v1/identities/{identity}/networks/{network}", operation_id = "grant_network",
    tag = "identities", request_body = wire::GrantAccess, responses((status = 200, body = wire::Grant)),
    params(("identity" = String, Path, description = "Id or name"),
        ("network" = String, Path, description = "Id or name")))]
pub(crate) async fn grant_network(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(identity, network): NamedPair,
    JsonBody { value, .. }: JsonBody<wire::GrantAccess>,
) -> Answer<Json<wire::Grant>> {
    let about = About::network(&api, &caller, &network).await?;
    let granted = grant(&api, &caller, &identity, about, value, Expect::Anything).await?;
    granted.map(Json).ok_or_else(ApiError::internal)
}

/// Take back what was granted on a network
///
/// At once, in streams that are open too. Where nothing was granted on it, that is said: what was meant may be another.
#[utoipa::path(delete, path = "/v1/identities/{identity}/networks/{network}", operation_id = "revoke_network",
    tag = "identities", responses((status = 204, description = "Taken back")),
    params(("identity" = String, Path, description = "Id or name"),
        ("network" = String, Path, description = "Id or name")))]
pub(crate) async fn revoke_network(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(identity, network): NamedPair,
) -> Answer<StatusCode> {
    let about = About::network(&api, &caller, &network).await?;
    revoke(&api, &caller, &identity, about).await
}

async fn revoke(api: &Api, caller: &Caller, identity: &str, about: About) -> Answer<StatusCode> {
    let called = about.called.clone();
    match take_back(api, caller, identity, about).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::new(
            Code::NotFound,
            format!(
                "nothing was granted to {identity} on {called}: see GET /v1/identities/{identity}/grants for what was"
            ),
        )),
    }
}

/// What a grant is about, and how a message calls it.
pub(crate) struct About {
    pub target: GrantTarget,
    called: String,
}

impl About {
    pub async fn machine(api: &Api, caller: &Caller, given: &str) -> Answer<Self> {
        let machine = resolve::machine(api, caller, given).await?.record;
        Ok(Self { target: GrantTarget::Machine(machine.id), called: format!("machine {}", machine.name) })
    }

    async fn network(api: &Api, caller: &Caller, given: &str) -> Answer<Self> {
        let network = resolve::network(api, caller.account, given).await?.record;
        Ok(Self { target: GrantTarget::Network(network.id), called: format!("network {}", network.name) })
    }

    fn news(&self, identity: &Identity, kind: EventKind, what: &str) -> News {
        let (network, machine) = match self.target {
            GrantTarget::Machine(id) => (None, Some(id)),
            GrantTarget::Network(id) => (Some(id), None),
        };
        let message = format!("identity {} {what} on {}", identities::called(identity), self.called);
        News { kind, account: identity.account, network, machine, message }
    }
}

/// What has to have been granted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    Anything,
    Nothing,
    /// Something, whose verbs stay but for those that the users do not allow.
    Verbs,
}

/// `None` when something else had been granted before than was expected.
pub(crate) async fn grant(
    api: &Api,
    caller: &Caller,
    identity: &str,
    about: About,
    mut asked: wire::GrantAccess,
    expected: Expect,
) -> Answer<Option<wire::Grant>> {
    for _ in 0..ATTEMPTS {
        let now = Timestamp::now();
        let read = resolve::identity(api, caller.account, identity).await?;
        let identity = &read.record;
        let key = schema::grant(identity.id, about.target);
        let before = api.store.read(&key).await?;
        match (expected, &before) {
            (Expect::Nothing, Some(_)) | (Expect::Verbs, None) => return Ok(None),
            (Expect::Verbs, Some(before)) => asked.verbs = Some(kept(&before.record.permission, &asked)),
            _ => {}
        }
        let permission = permission(&asked)?;
        if let Some(same) = before.as_ref().filter(|before| before.record.permission == permission) {
            return answer(api, &same.record).await.map(Some);
        }
        if before.is_none() && api.store.count(schema::grants_of(identity.id).as_str()).await? >= GRANTS {
            return Err(ApiError::new(
                Code::QuotaExceeded,
                format!("an identity has at most {GRANTS} grants: grant it a network instead of its machines"),
            ));
        }
        let grant = Grant {
            identity: identity.id,
            target: about.target,
            permission: permission.clone(),
            granted_at: now,
            granted_by: caller.must_be_key()?,
        };
        // Written as it was, so that it cannot be deleted, or granted something else, at the same time.
        let txn = TxnBuilder::new().unchanged(&read).put(&schema::identity(identity.id), identity)?;
        let txn = txn.same(&key, before.as_ref());
        let txn = match about.target {
            GrantTarget::Machine(id) => txn.exists(&schema::machine(id)),
            GrantTarget::Network(id) => txn.exists(&schema::network(id)),
        };
        let verbs: Vec<_> = permission.verbs().iter().map(|verb| verb.as_str()).collect();
        let news = about.news(identity, EventKind::AccessGranted, &format!("was granted {}", verbs.join(", ")));
        let deed = Deed { caller, now, action: "identity.grant" };
        let target = format!("{}/{}", identity.id, about.target);
        let txn = deed.record(txn.put(&key, &grant)?, target, &asked, [news])?;
        if let TxnOutcome::Committed(_) = txn.commit(&*api.store).await? {
            api.credentials.forget_grants(identity.id);
            return answer(api, &grant).await.map(Some);
        }
    }
    Err(contended())
}

/// Whether there was something to take back.
pub(crate) async fn take_back(api: &Api, caller: &Caller, identity: &str, about: About) -> Answer<bool> {
    for _ in 0..ATTEMPTS {
        let identity = resolve::identity(api, caller.account, identity).await?.record;
        let key = schema::grant(identity.id, about.target);
        let Some(read) = api.store.read(&key).await? else { return Ok(false) };
        let news = about.news(&identity, EventKind::AccessRevoked, "lost what was granted");
        let deed = Deed { caller, now: Timestamp::now(), action: "identity.revoke" };
        let target = format!("{}/{}", identity.id, about.target);
        let txn = deed.record(TxnBuilder::new().unchanged(&read).delete(&key), target, &(), [news])?;
        if let TxnOutcome::Committed(_) = txn.commit(&*api.store).await? {
            api.credentials.forget_grants(identity.id);
            return Ok(true);
        }
    }
    Err(contended())
}

/// The verbs of a permission that other users may have.
fn kept(before: &Permission, asked: &wire::GrantAccess) -> BTreeSet<Verb> {
    let mut verbs = before.verbs().clone();
    if asked.users.as_ref().is_some_and(|users| !users.contains(LinuxUser::ROOT)) {
        verbs.remove(&Verb::Files);
    }
    verbs
}

fn permission(asked: &wire::GrantAccess) -> Answer<Permission> {
    if asked.users.as_ref().is_some_and(|users| users.len() > USERS) {
        return Err(ApiError::invalid(format!("a grant names at most {USERS} users")));
    }
    let users = asked.users.as_ref().map(|users| users.iter().map(|user| user.parse()).collect());
    let users = users.transpose().map_err(|error: InvalidName| ApiError::new(error.code(), error.to_string()))?;
    let verbs = asked.verbs.clone().unwrap_or_else(|| {
        let mut usual = Verb::usual();
        // What is not asked for by name is left out where the users do not allow it.
        if users.as_ref().is_some_and(|users: &BTreeSet<LinuxUser>| !users.contains(LinuxUser::ROOT)) {
            usual.remove(&Verb::Files);
        }
        usual
    });
    Permission::new(verbs, users).map_err(|error| ApiError::invalid(error.to_string()))
}

async fn answer(api: &Api, grant: &Grant) -> Answer<wire::Grant> {
    let gone = || ApiError::new(Code::NotFound, "what the grant is about was deleted meanwhile");
    view(api, grant).await?.ok_or_else(gone)
}

/// `None` when what it is about is gone.
async fn view(api: &Api, grant: &Grant) -> Answer<Option<wire::Grant>> {
    let (mut machine, mut network) = (None, None);
    match grant.target {
        GrantTarget::Machine(id) => {
            let read = api.store.read(&schema::machine(id)).await?;
            machine = read.map(|read| wire::Reference { id: id.to_string(), name: read.record.name.to_string() });
        }
        GrantTarget::Network(id) => {
            let read = api.store.read(&schema::network(id)).await?;
            network = read.map(|read| wire::Reference { id: id.to_string(), name: read.record.name.to_string() });
        }
    }
    if machine.is_none() && network.is_none() {
        return Ok(None);
    }
    Ok(Some(wire::Grant {
        identity: grant.identity.to_string(),
        machine,
        network,
        verbs: grant.permission.verbs().clone(),
        users: grant.permission.users().map(|users| users.iter().map(ToString::to_string).collect()),
        granted_at: grant.granted_at,
        granted_by: grant.granted_by.to_string(),
    }))
}
