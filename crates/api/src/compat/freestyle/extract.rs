//! What the client sends: bodies without a media type, and headers of its own.

use axum::extract::{FromRequest, FromRequestParts, Request};
use bytes::Bytes;
use http::request::Parts;
use http_body::Body as _;
use serde::de::DeserializeOwned;

use super::USER_HEADER;
use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::extract::{collect, parse};
use crate::guard::shares;
use crate::places::Place;
use crate::state::Shared;

/// A JSON object, whatever media type it is said to have, and the bytes it came in. No body at all counts as `{}`. It
/// may be so many times as large as bodies usually are; of those that are larger than usual there are few at once.
pub(crate) struct Body<T, const TIMES: usize = 1> {
    pub value: T,
    pub bytes: Bytes,
    /// Held for as long as the body is.
    pub place: Option<Place>,
}

impl<T: DeserializeOwned, const TIMES: usize> FromRequest<Shared> for Body<T, TIMES> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Shared) -> Answer<Self> {
        let usual = request.body().size_hint().upper().is_some_and(|length| length <= api.config.body_limit as u64);
        let place = match TIMES {
            0 | 1 => None,
            _ if usual => None,
            _ => {
                let caller = request.extensions().get::<Caller>().ok_or_else(ApiError::internal)?;
                let place = api.freestyle.uploads.take();
                let place =
                    place.and_then(|mut place| shares(caller).all(|holder| place.assign(holder)).then_some(place));
                Some(place.ok_or_else(ApiError::busy)?)
            }
        };
        let bytes = collect(request, api, api.config.body_limit * TIMES).await?;
        Ok(Self { value: parse(&bytes)?, bytes, place })
    }
}

/// The Linux user that the call acts as, where one was named.
pub(crate) struct AsUser(pub Option<String>);

impl FromRequestParts<Shared> for AsUser {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Answer<Self> {
        let Some(value) = parts.headers.get(USER_HEADER) else { return Ok(Self(None)) };
        let user = value.to_str().ok().filter(|user| !user.is_empty());
        let user = user.ok_or_else(|| ApiError::invalid(format!("'{USER_HEADER}' is the name of a Linux user")))?;
        Ok(Self(Some(user.to_owned())))
    }
}
