//! The handlers, one module per thing. Which of them may be called by whom is said in `table.rs`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::idempotency::REPLAYED;

pub(crate) mod accounts;
pub(crate) mod audit;
pub(crate) mod create;
pub(crate) mod denials;
pub(crate) mod domains;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod files;
pub(crate) mod grants;
pub(crate) mod identities;
pub(crate) mod images;
pub(crate) mod inside;
pub(crate) mod keys;
pub(crate) mod machines;
pub(crate) mod networks;
pub(crate) mod policy;
pub(crate) mod power;
pub(crate) mod server;
pub(crate) mod sessions;
pub(crate) mod tokens;
pub(crate) mod topology;
pub(crate) mod views;
pub(crate) mod wanted;

/// The query of a list without filters.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Items on a page, 1 to 1000; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `next` of the page before.
    pub cursor: Option<String>,
}

/// What a request created.
pub(crate) enum Made<T> {
    Now(T),
    /// By an earlier request with the same idempotency key.
    Before(T),
}

impl<T: Serialize> Made<T> {
    pub fn respond(&self, location: impl FnOnce(&T) -> String) -> Response {
        match self {
            Self::Now(thing) => created(location(thing), thing),
            Self::Before(thing) => replayed(thing),
        }
    }

    pub fn thing(self) -> T {
        match self {
            Self::Now(thing) | Self::Before(thing) => thing,
        }
    }
}

/// 201, and where the new thing is.
pub(crate) fn created(location: String, body: &impl Serialize) -> Response {
    let location = HeaderValue::from_str(&location).unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::CREATED, [(header::LOCATION, location)], Json(body)).into_response()
}

/// 200 with what was created before by the same request.
pub(crate) fn replayed(body: &impl Serialize) -> Response {
    (StatusCode::OK, [(HeaderName::from_static(REPLAYED), HeaderValue::from_static("true"))], Json(body))
        .into_response()
}

/// Why an answer that is repeated has no secret in it.
pub(crate) const SECRET_NOT_REPEATED: &str =
    "the secret was shown once, in the first answer, and is not repeated: create another one if it was lost";
