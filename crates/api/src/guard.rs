//! Who calls, whether the table lets them, and within which bounds.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::HeaderMap;
use http::request::Parts;
use http_body::{Frame, SizeHint};
use jiff::Timestamp;
use warren_model::{AccountId, Code};
use warren_store::{Typed, schema};

use crate::caller::Caller;
use crate::compat::freestyle;
use crate::credentials::Credential;
use crate::error::{Answer, ApiError};
use crate::outer::RequestId;
use crate::places::{Holder, Place, Places};
use crate::resolve;
use crate::state::{Api, Shared};
use crate::table::{CallerKind, Class, Row};

/// With it the root key acts in another account.
pub(crate) const ACCOUNT_HEADER: &str = "x-warren-account";
/// A secret without a scheme before it.
pub(crate) const API_KEY_HEADER: &str = "x-api-key";
/// What a WebSocket speaks, and before a secret: browsers set no header of a WebSocket but its protocols.
pub(crate) const PROTOCOL: &str = "warren";
const SECRET_PROTOCOL: &str = "warren.secret.";

/// A place among the streams; it is given back when the last copy is dropped.
#[derive(Clone)]
pub(crate) struct StreamPlace(#[expect(dead_code, reason = "held for its drop")] Arc<Place>);

impl FromRequestParts<Shared> for StreamPlace {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Answer<Self> {
        parts.extensions.get::<Self>().cloned().ok_or_else(ApiError::internal)
    }
}

/// Runs before every handler.
pub(crate) async fn guard(State((api, row)): State<(Shared, &'static Row)>, request: Request, next: Next) -> Response {
    admit(api, row, request, next).await.unwrap_or_else(ApiError::into_response)
}

async fn admit(api: Shared, row: &'static Row, mut request: Request, next: Next) -> Answer<Response> {
    let mut place = match row.class {
        Class::Free => None,
        Class::Read | Class::Write => Some(place(&api.requests)?),
        Class::Stream => Some(place(&api.streams)?),
    };
    let mut over = None;
    if !row.allows(CallerKind::Nobody) {
        let request_id = request.extensions().get::<RequestId>().cloned().ok_or_else(ApiError::internal)?;
        let caller = identify(&api, row, request.headers(), request_id).await?;
        // The operator's own key is bounded by what is free only.
        if let Some(place) = place.as_mut().filter(|_| !caller.root)
            && !shares(&caller).all(|holder| place.assign(holder))
        {
            return Err(ApiError::busy());
        }
        if row.class == Class::Stream {
            let (api, caller) = (api.clone(), caller.clone());
            over = Some(Box::pin(async move { caller.over(&api).await }) as Over);
        }
        request.extensions_mut().insert(caller);
    }
    match row.class {
        Class::Free => Ok(next.run(request).await),
        Class::Read => tokio::time::timeout(api.config.request_timeout, next.run(request)).await.map_err(|_| {
            ApiError::new(Code::DeadlineExceeded, "reading took too long: ask for less at once, or try again")
        }),
        // In a task of its own, so that a client that hangs up does not leave it half done.
        Class::Write => tokio::spawn(async move {
            let response = next.run(request).await;
            drop(place);
            response
        })
        .await
        .map_err(|_| ApiError::internal()),
        Class::Stream => {
            let place = place.map(|permit| StreamPlace(Arc::new(permit)));
            if let Some(place) = &place {
                request.extensions_mut().insert(place.clone());
            }
            let response = tokio::select! {
                response = next.run(request) => response,
                () = async { match &mut over { Some(over) => over.await, None => std::future::pending().await } } => {
                    return Err(ApiError::unauthorized());
                }
            };
            Ok(response.map(|body| Body::new(Held { body, over, _place: place })))
        }
    }
}

/// A token takes of its identity's share and of its account's.
pub(crate) fn shares(caller: &Caller) -> impl Iterator<Item = Holder> {
    let identity = caller.token().map(|(_, identity)| Holder::Identity(identity));
    identity.into_iter().chain([Holder::Account(caller.account)])
}

fn place(places: &Arc<Places>) -> Answer<Place> {
    places.take().ok_or_else(ApiError::busy)
}

async fn identify(api: &Api, row: &'static Row, headers: &HeaderMap, request_id: RequestId) -> Answer<Caller> {
    let now = Timestamp::now();
    let found = api.credentials.find(&*api.store, presented(row, headers)?, now).await?;
    let credential = found.ok_or_else(ApiError::unauthorized)?;
    credential.note_use(&api.store, now);
    let (kind, own) = match &credential {
        Credential::Key(key) if key.value.root => (CallerKind::Root, key.value.account),
        Credential::Key(key) => (CallerKind::Account, key.value.account),
        Credential::Token { token, .. } => (CallerKind::Token, token.value.account),
    };
    if !row.allows(kind) {
        return Err(ApiError::new(
            Code::Forbidden,
            match kind {
                CallerKind::Token => {
                    "a token only operates the machines that its identity was granted: use a key of the account"
                }
                _ => "only the root key may do that: use the key in root.key of the server's data directory",
            },
        ));
    }
    let account = match headers.get(ACCOUNT_HEADER) {
        None => own,
        Some(named) => acting_account(api, kind, own, named.to_str().unwrap_or_default()).await?,
    };
    Ok(Caller::new(account, credential, row.token.unwrap_or_default(), request_id))
}

/// The secret that was sent. No secret, two different ones and an unreadable one get the same answer as a wrong one.
fn presented<'a>(row: &Row, headers: &'a HeaderMap) -> Answer<&'a str> {
    let mut found = None;
    for (name, value) in headers {
        let secret = match name.as_str() {
            "authorization" => value.to_str().ok().and_then(|text| {
                let (scheme, secret) = text.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
            }),
            API_KEY_HEADER => value.to_str().ok(),
            freestyle::TOKEN_HEADER if !row.is_native() => value.to_str().ok(),
            "sec-websocket-protocol" => {
                let protocols = value.to_str().unwrap_or_default().split(',').map(str::trim);
                let mut secrets = protocols.filter_map(|protocol| protocol.strip_prefix(SECRET_PROTOCOL));
                match (secrets.next(), secrets.next()) {
                    (Some(secret), None) => Some(secret),
                    (Some(_), Some(_)) => None,
                    (None, _) => continue,
                }
            }
            _ => continue,
        };
        match (secret, found) {
            (Some(secret), None) => found = Some(secret),
            (Some(secret), Some(other)) if secret == other => {}
            _ => return Err(ApiError::unauthorized()),
        }
    }
    found.ok_or_else(ApiError::unauthorized)
}

async fn acting_account(api: &Api, kind: CallerKind, own: AccountId, named: &str) -> Answer<AccountId> {
    if kind == CallerKind::Root {
        return Ok(resolve::account(api, named).await?.record.id);
    }
    let account = api.store.read(&schema::account(own)).await?;
    if account.is_some_and(|own| own.record.name.as_str() == named || own.record.id.to_string() == named) {
        Ok(own)
    } else {
        Err(ApiError::new(
            Code::Forbidden,
            format!("only the root key may act in another account: leave '{ACCOUNT_HEADER}' out"),
        ))
    }
}

type Over = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A body that keeps its place until it has been sent, and breaks off when its caller may no longer read it.
struct Held {
    body: Body,
    over: Option<Over>,
    _place: Option<StreamPlace>,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.over.as_mut().is_some_and(|over| over.as_mut().poll(context).is_ready()) {
            self.over = None;
            self.body = Body::empty();
            return Poll::Ready(Some(Err(axum::Error::new(Ended))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the caller may no longer read this")]
struct Ended;
