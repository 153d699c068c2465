//! What every handler shares, and the router that is built from the authorization table.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use axum::Router;
use tokio_util::sync::{CancellationToken, DropGuard};
use utoipa_axum::router::UtoipaMethodRouterExt;
use warren_model::access::{Images, MachineAccess};
use warren_model::audit::Audits;
use warren_model::{AccountId, Code};
use warren_store::Store;

use crate::boundaries::Boundaries;
use crate::compat::freestyle;
use crate::config::ApiConfig;
use crate::credentials::Credentials;
use crate::error::ApiError;
use crate::host::Host;
use crate::metrics::Metrics;
use crate::places::Places;
use crate::policies::PolicyCache;
use crate::publisher::Publisher;
use crate::routes::domains::recheck;
use crate::routes::sessions;
use crate::tunnels::Tunnels;
use crate::{cors, guard, outer, sweep, table, txt};

pub(crate) type Shared = Arc<Api>;

pub(crate) struct Api {
    pub config: ApiConfig,
    /// Read through [`Deref`]: handlers say `api.store`.
    parts: Parts,
    pub policies: PolicyCache,
    pub credentials: Credentials,
    pub requests: Arc<Places>,
    pub streams: Arc<Places>,
    /// For looks at TXT records that somebody waits for.
    pub lookups: Arc<Places>,
    pub metrics: Metrics,
    pub turns: Turns,
    pub freestyle: freestyle::State,
    /// Ends the background tasks with the router.
    _background: DropGuard,
}

impl Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// Lets one create of an account at a time choose its numbers. Compares in the store are what makes them safe; this
/// only spares creates the conflicts with one another, and makes the quota exact.
#[derive(Default)]
pub(crate) struct Turns(Mutex<HashMap<AccountId, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    pub async fn take(&self, account: AccountId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            turns.retain(|known, turn| *known == account || Arc::strong_count(turn) > 1);
            turns.entry(account).or_default().clone()
        };
        turn.lock_owned().await
    }
}

/// What the API stands on; the wiring gives it.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub access: Arc<dyn MachineAccess>,
    pub images: Arc<dyn Images>,
    pub host: Arc<dyn Host>,
    pub boundaries: Arc<dyn Boundaries>,
    pub audits: Arc<dyn Audits>,
    pub tunnels: Arc<dyn Tunnels>,
    pub publisher: Arc<dyn Publisher>,
}

/// The whole API as one service. Has to be called inside a tokio runtime: it starts the tasks that keep what
/// is remembered true and remove what has expired; they end with the router.
pub fn router(config: ApiConfig, parts: Parts) -> Router {
    let background = CancellationToken::new();
    let credentials = Credentials::default();
    credentials.follow(&parts.store, &background);
    let sweep = sweep::run(parts.store.clone(), config.keep_events);
    tokio::spawn(background.clone().run_until_cancelled_owned(sweep));
    let recheck = recheck::run(parts.store.clone(), config.resolvers.clone(), config.recheck_claims_every);
    tokio::spawn(background.clone().run_until_cancelled_owned(recheck));
    let listen = sessions::heard::keep(parts.store.clone(), parts.tunnels.clone(), config.look_for_operators_every);
    tokio::spawn(background.clone().run_until_cancelled_owned(listen));
    let api: Shared = Arc::new(Api {
        requests: Places::new(config.max_requests),
        streams: Places::new(config.max_streams),
        lookups: Places::new(txt::AT_ONCE),
        config,
        parts,
        policies: PolicyCache::default(),
        credentials,
        metrics: Metrics::default(),
        turns: Turns::default(),
        freestyle: freestyle::State::default(),
        _background: background.drop_guard(),
    });

    let cors = cors::layer(&api.config.cors_origins);
    let mut router = Router::new();
    for route in table::all() {
        let state = (api.clone(), route.row);
        let (_, _, handler) = (route.handler)()
            .map(|handler| handler.route_layer(axum::middleware::from_fn_with_state(state, guard::guard)));
        router = router.route(route.row.path, handler);
    }
    let router = router
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(axum::middleware::from_fn_with_state(api.clone(), outer::outer));
    match cors {
        Some(cors) => router.layer(cors).with_state(api),
        None => router.with_state(api),
    }
}

async fn no_such_route() -> ApiError {
    ApiError::new(Code::RouteNotFound, "there is no such route: GET /openapi.json lists them all")
}

async fn no_such_method() -> ApiError {
    ApiError::new(
        Code::MethodNotAllowed,
        "this route does not take this method: the 'Allow' header says which ones it takes",
    )
}
