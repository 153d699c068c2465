//! Who calls, and what they may do with a machine.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::FromRequestParts;
use http::request::Parts;
use jiff::Timestamp;
use warren_model::record::{Grant, Machine};
use warren_model::{AccountId, Code, IdentityId, KeyId, Label, LinuxUser, TokenId, Verb};

use crate::credentials::Credential;
use crate::error::{Answer, ApiError};
use crate::outer::RequestId;
use crate::state::{Api, Shared};

/// Who calls, and in which account they act.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub account: AccountId,
    /// The key's name; it may own tags.
    pub key_name: Option<Label>,
    pub root: bool,
    pub request_id: RequestId,
    credential: Credential,
    /// What the route needs on a machine, for a token.
    needs: &'static [Verb],
    /// What this request was let do, so that it can be ended once that is no longer allowed.
    leave: Arc<Mutex<Vec<Leave>>>,
}

#[derive(Debug, Clone)]
struct Leave {
    machine: Machine,
    verb: Verb,
    /// As whom; `None` where that was not asked.
    user: Option<String>,
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Answer<Self> {
        parts.extensions.get::<Self>().cloned().ok_or_else(ApiError::internal)
    }
}

impl Caller {
    pub fn new(account: AccountId, credential: Credential, needs: &'static [Verb], request_id: RequestId) -> Self {
        let (key_name, root) = match &credential {
            Credential::Key(key) => (key.value.name.clone(), key.value.root),
            Credential::Token { .. } => (None, false),
        };
        Self { account, key_name, root, request_id, credential, needs, leave: Arc::default() }
    }

    /// The key that calls; `None` for a token.
    pub fn key(&self) -> Option<KeyId> {
        match &self.credential {
            Credential::Key(key) => Some(key.value.id),
            Credential::Token { .. } => None,
        }
    }

    /// The token that calls, and whose it is; `None` for a key.
    pub fn token(&self) -> Option<(TokenId, IdentityId)> {
        match &self.credential {
            Credential::Key(_) => None,
            Credential::Token { token, .. } => Some((token.value.id, token.value.identity)),
        }
    }

    /// The key that calls, on routes that no token may call.
    pub fn must_be_key(&self) -> Answer<KeyId> {
        self.key().ok_or_else(ApiError::internal)
    }

    /// What was granted on the machine; `None` for a key, which needs no grant.
    fn grants_on<'a>(&'a self, machine: &'a Machine) -> Option<impl Iterator<Item = &'a Grant>> {
        match &self.credential {
            Credential::Key(_) => None,
            Credential::Token { grants, .. } => Some(on(&grants.value, machine)),
        }
    }

    /// Whether the machine exists for the caller.
    pub fn knows(&self, machine: &Machine) -> bool {
        machine.account == self.account && self.grants_on(machine).is_none_or(|mut grants| grants.next().is_some())
    }

    /// Whether the machine is in the caller's lists.
    pub fn sees(&self, machine: &Machine) -> bool {
        machine.account == self.account
            && self.grants_on(machine).is_none_or(|grants| may(grants, Verb::View, None))
    }

    /// Refuses a token whose identity may not do with the machine what the route does. As whom is another question,
    /// see [`Caller::act_as`].
    pub fn permit(&self, machine: &Machine) -> Answer<()> {
        self.needs.iter().try_for_each(|verb| self.allow(machine, *verb, None))
    }

    /// The user that a command runs as: who was asked for, else root, else the only one that was granted.
    pub fn act_as(&self, machine: &Machine, verb: Verb, asked: Option<String>) -> Answer<Option<String>> {
        let Some(grants) = self.grants_on(machine) else { return Ok(asked) };
        let mut named = BTreeSet::new();
        let mut anyone = false;
        for permission in grants.map(|grant| &grant.permission).filter(|permission| permission.verbs().contains(&verb)) {
            match permission.users() {
                None => anyone = true,
                Some(users) => named.extend(users.iter().map(LinuxUser::as_str)),
            }
        }
        let user = match (asked, named.len()) {
            (Some(asked), _) => asked,
            (None, 1) if !anyone => named.into_iter().collect(),
            (None, _) => LinuxUser::ROOT.to_owned(),
        };
        self.allow(machine, verb, Some(&user))?;
        Ok(Some(user))
    }

    fn allow(&self, machine: &Machine, verb: Verb, user: Option<&str>) -> Answer<()> {
        let Some(grants) = self.grants_on(machine) else { return Ok(()) };
        if !may(grants, verb, user) {
            let name = &machine.name;
            let owner = "the owner of its account can grant it";
            return Err(ApiError::new(Code::Forbidden, match user {
                Some(user) => format!("this token may not act as user {user:?} in machine {name} for '{verb}': {owner}"),
                None => format!("this token's identity was not granted '{verb}' on machine {name}: {owner}"),
            }));
        }
        let leave = Leave { machine: machine.clone(), verb, user: user.map(str::to_owned) };
        self.leave.lock().unwrap_or_else(PoisonError::into_inner).push(leave);
        Ok(())
    }

    /// Until the caller may no longer do what this request was let do: its secret was revoked or has expired, or a
    /// grant was taken back.
    pub async fn over(&self, api: &Api) {
        let mut credential = self.credential.clone();
        loop {
            credential.stale().await;
            match api.credentials.renew(&*api.store, &credential, Timestamp::now()).await {
                Ok(Some(renewed)) if self.still(&renewed) => credential = renewed,
                Ok(_) => return,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "a stream ends: whether its caller may go on could not be read");
                    return;
                }
            }
        }
    }

    fn still(&self, credential: &Credential) -> bool {
        let Credential::Token { grants, .. } = credential else { return true };
        let leave = self.leave.lock().unwrap_or_else(PoisonError::into_inner);
        leave.iter().all(|leave| may(on(&grants.value, &leave.machine), leave.verb, leave.user.as_deref()))
    }
}

fn on<'a>(grants: &'a [Grant], machine: &'a Machine) -> impl Iterator<Item = &'a Grant> {
    grants.iter().filter(|grant| grant.target.covers(machine.id, machine.network))
}

fn may<'a>(mut grants: impl Iterator<Item = &'a Grant>, verb: Verb, user: Option<&str>) -> bool {
    grants.any(|grant| match user {
        Some(user) => grant.permission.allows(verb, user),
        None => grant.permission.verbs().contains(&verb),
    })
}
