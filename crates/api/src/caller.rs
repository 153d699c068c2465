//! Who calls, and what they may do with a machine.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::FromRequestParts;
use http::request::Parts;
use jiff::Timestamp;
use warren_model::grant::GrantTarget;
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
    who: Who,
    /// What the route needs on a machine, for a token.
    needs: &'static [Verb],
    leave: Arc<Mutex<Leave>>,
}

#[derive(Debug, Clone, Copy)]
enum Who {
    Key(KeyId),
    Token(TokenId, IdentityId),
}

/// By what this request acts, and what it was let do by that. One lock holds both: what is allowed while something is
/// taken back is either not allowed, or ended.
#[derive(Debug)]
struct Leave {
    credential: Credential,
    permitted: Vec<Permitted>,
}

#[derive(Debug)]
struct Permitted {
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
        let (who, key_name, root) = match &credential {
            Credential::Key(key) => (Who::Key(key.value.id), key.value.name.clone(), key.value.root),
            Credential::Token { token, .. } => (Who::Token(token.value.id, token.value.identity), None, false),
        };
        let leave = Arc::new(Mutex::new(Leave { credential, permitted: Vec::new() }));
        Self { account, key_name, root, request_id, who, needs, leave }
    }

    /// The key that calls; `None` for a token.
    pub fn key(&self) -> Option<KeyId> {
        match self.who {
            Who::Key(key) => Some(key),
            Who::Token(..) => None,
        }
    }

    /// The token that calls, and whose it is; `None` for a key.
    pub fn token(&self) -> Option<(TokenId, IdentityId)> {
        match self.who {
            Who::Key(_) => None,
            Who::Token(token, identity) => Some((token, identity)),
        }
    }

    /// The hash of the secret of the key that calls, by which its record is found; `None` for a token.
    pub fn key_hash(&self) -> Option<String> {
        match &self.leave().credential {
            Credential::Key(key) => Some(key.value.hash.clone()),
            Credential::Token { .. } => None,
        }
    }

    /// The key that calls, on routes that no token may call.
    pub fn must_be_key(&self) -> Answer<KeyId> {
        self.key().ok_or_else(ApiError::internal)
    }

    /// What was granted with this verb; `None` for a key, which needs no grant.
    pub fn granted(&self, verb: Verb) -> Option<Vec<GrantTarget>> {
        let leave = self.leave();
        let grants = leave.grants()?.iter();
        Some(grants.filter(|grant| grant.permission.verbs().contains(&verb)).map(|grant| grant.target).collect())
    }

    /// Whether the machine exists for the caller.
    pub fn knows(&self, machine: &Machine) -> bool {
        machine.account == self.account
            && self.leave().grants().is_none_or(|grants| on(grants, machine).next().is_some())
    }

    /// Whether the caller may do one of these with the machine.
    pub fn may_any(&self, machine: &Machine, verbs: &[Verb]) -> bool {
        self.leave().grants().is_none_or(|grants| verbs.iter().any(|verb| may(grants, machine, *verb, None)))
    }

    /// Refuses a token whose identity may not do with the machine what the route does. As whom is another question,
    /// see [`Caller::act_as`].
    pub fn permit(&self, machine: &Machine) -> Answer<()> {
        let mut leave = self.leave();
        self.needs.iter().try_for_each(|verb| leave.allow(machine, *verb, None))
    }

    /// The user that a command runs as: who was asked for, else root, else the only one that was granted.
    pub fn act_as(&self, machine: &Machine, verb: Verb, asked: Option<String>) -> Answer<Option<String>> {
        let mut leave = self.leave();
        let Some(grants) = leave.grants() else { return Ok(asked) };
        let user = asked.unwrap_or_else(|| usual_user(grants, machine, verb));
        leave.allow(machine, verb, Some(&user))?;
        Ok(Some(user))
    }

    /// Looks again whether the caller's secret is valid, where that may have changed: for a caller who took time to say
    /// what to do.
    pub async fn look_again(&self, api: &Api) -> Answer<()> {
        let now = Timestamp::now();
        let old = self.leave().credential.clone();
        if !old.is_stale(now) {
            return Ok(());
        }
        let renewed = api.credentials.renew(&*api.store, &old, now).await?.ok_or_else(ApiError::unauthorized)?;
        if self.leave().go_on_with(renewed) { Ok(()) } else { Err(ApiError::unauthorized()) }
    }

    /// Until the caller may no longer do what this request was let do: its secret was revoked or has expired, or a
    /// grant was taken back.
    pub async fn over(&self, api: &Api) {
        loop {
            let old = self.leave().credential.clone();
            old.stale().await;
            match api.credentials.renew(&*api.store, &old, Timestamp::now()).await {
                Ok(renewed) => {
                    if !renewed.is_some_and(|renewed| self.leave().go_on_with(renewed)) {
                        return;
                    }
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "a stream ends: whether its caller may go on could not be read");
                    return;
                }
            }
        }
    }

    fn leave(&self) -> MutexGuard<'_, Leave> {
        // Nothing here is left half changed.
        self.leave.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leave {
    /// `None` for a key, which needs no grant.
    fn grants(&self) -> Option<&[Grant]> {
        match &self.credential {
            Credential::Key(_) => None,
            Credential::Token { grants, .. } => Some(&grants.value),
        }
    }

    fn allow(&mut self, machine: &Machine, verb: Verb, user: Option<&str>) -> Answer<()> {
        let Some(grants) = self.grants() else { return Ok(()) };
        if !may(grants, machine, verb, user) {
            return Err(refused(machine, verb, user));
        }
        self.permitted.push(Permitted { machine: machine.clone(), verb, user: user.map(str::to_owned) });
        Ok(())
    }

    /// Whether everything that was permitted still is.
    fn go_on_with(&mut self, credential: Credential) -> bool {
        self.credential = credential;
        let Some(grants) = self.grants() else { return true };
        self.permitted.iter().all(|done| may(grants, &done.machine, done.verb, done.user.as_deref()))
    }
}

fn on<'a>(grants: &'a [Grant], machine: &'a Machine) -> impl Iterator<Item = &'a Grant> {
    grants.iter().filter(|grant| grant.target.covers(machine.id, machine.network))
}

fn may(grants: &[Grant], machine: &Machine, verb: Verb, user: Option<&str>) -> bool {
    on(grants, machine).any(|grant| match user {
        Some(user) => grant.permission.allows(verb, user),
        None => grant.permission.verbs().contains(&verb),
    })
}

/// Root, unless only one other user was granted.
fn usual_user(grants: &[Grant], machine: &Machine, verb: Verb) -> String {
    let mut named = BTreeSet::new();
    for permission in on(grants, machine).map(|grant| &grant.permission) {
        match permission.users() {
            _ if !permission.verbs().contains(&verb) => {}
            None => return LinuxUser::ROOT.to_owned(),
            Some(users) => named.extend(users.iter().map(LinuxUser::as_str)),
        }
    }
    match named.len() {
        1 => named.into_iter().collect(),
        _ => LinuxUser::ROOT.to_owned(),
    }
}

fn refused(machine: &Machine, verb: Verb, user: Option<&str>) -> ApiError {
    let (name, owner) = (&machine.name, "the owner of its account can grant it");
    ApiError::new(
        Code::Forbidden,
        match user {
            Some(user) => format!("this token may not act as user {user:?} in machine {name} for '{verb}': {owner}"),
            None => format!("this token's identity was not granted '{verb}' on machine {name}: {owner}"),
        },
    )
}
