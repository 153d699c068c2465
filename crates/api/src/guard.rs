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
use warren_model::record::ApiKey;
use warren_model::{AccountId, Code, KeyId, Label};
use warren_store::{Typed, schema};

use crate::error::{Answer, ApiError};
use crate::outer::RequestId;
use crate::places::{Place, Places};
use crate::state::{Api, Shared};
use crate::table::{CallerKind, Class, Row};
use crate::{resolve, secret};

/// With it the root key acts in another account.
pub(crate) const ACCOUNT_HEADER: &str = "x-warren-account";

/// Who calls, and in which account they act.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub account: AccountId,
    pub key: KeyId,
    /// The key's name; it may own tags.
    pub key_name: Option<Label>,
    pub root: bool,
    pub request_id: RequestId,
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Answer<Self> {
        parts.extensions.get::<Self>().cloned().ok_or_else(ApiError::internal)
    }
}

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
    if !row.allows(CallerKind::Nobody) {
        let request_id = request.extensions().get::<RequestId>().cloned().ok_or_else(ApiError::internal)?;
        let caller = identify(&api, row, request.headers(), request_id).await?;
        // The operator's own key is bounded by what is free only.
        if !caller.root && place.as_mut().is_some_and(|place| !place.assign(caller.account)) {
            return Err(ApiError::busy());
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
            let response = next.run(request).await;
            Ok(response.map(|body| Body::new(Held { body, _place: place })))
        }
    }
}

fn place(places: &Arc<Places>) -> Answer<Place> {
    places.take().ok_or_else(ApiError::busy)
}

async fn identify(api: &Api, row: &Row, headers: &HeaderMap, request_id: RequestId) -> Answer<Caller> {
    let now = Timestamp::now();
    let hash = secret::hash(presented(headers)?);
    let known = api
        .keys
        .find(&*api.store, &hash)
        .await?
        .filter(|known| known.is_valid(now))
        .ok_or_else(ApiError::unauthorized)?;
    known.note_use(&api.store, now);
    let key = &known.key;
    let kind = if key.root { CallerKind::Root } else { CallerKind::Account };
    if !row.allows(kind) {
        return Err(ApiError::new(
            Code::Forbidden,
            "only the root key may do that: use the key in root.key of the server's data directory",
        ));
    }
    let account = match headers.get(ACCOUNT_HEADER) {
        None => key.account,
        Some(named) => acting_account(api, key, named.to_str().unwrap_or_default()).await?,
    };
    Ok(Caller { account, key: key.id, key_name: key.name.clone(), root: key.root, request_id })
}

/// The secret that was sent. No secret, two different ones and an unreadable one get the same answer as a wrong one.
fn presented(headers: &HeaderMap) -> Answer<&str> {
    let bearer = headers.get(http::header::AUTHORIZATION).map(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let plain = headers.get("x-api-key").map(|value| value.to_str().ok());
    match (bearer, plain) {
        (Some(Some(secret)), None) | (None, Some(Some(secret))) => Ok(secret),
        (Some(Some(one)), Some(Some(other))) if one == other => Ok(one),
        _ => Err(ApiError::unauthorized()),
    }
}

async fn acting_account(api: &Api, key: &ApiKey, named: &str) -> Answer<AccountId> {
    if key.root {
        return Ok(resolve::account(api, named).await?.record.id);
    }
    let own = api.store.read(&schema::account(key.account)).await?;
    if own.is_some_and(|own| own.record.name.as_str() == named || own.record.id.to_string() == named) {
        Ok(key.account)
    } else {
        Err(ApiError::new(
            Code::Forbidden,
            format!("only the root key may act in another account: leave '{ACCOUNT_HEADER}' out"),
        ))
    }
}

/// A body that keeps its place until it has been sent.
struct Held {
    body: Body,
    _place: Option<StreamPlace>,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
