//! Bodies, queries and path segments, with refusals that say what to do.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, IgnoredAny};
use warren_model::Code;

use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::state::{Api, Shared};

/// A JSON object, and the bytes it came in. No body at all counts as `{}`. It may be so many times as large as bodies
/// usually are.
pub(crate) struct JsonBody<T, const TIMES: usize = 1> {
    pub value: T,
    pub bytes: Bytes,
}

impl<T: DeserializeOwned, const TIMES: usize> FromRequest<Shared> for JsonBody<T, TIMES> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Shared) -> Answer<Self> {
        let media_type = request.headers().get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?").to_owned());
        let limit = api.config.body_limit * TIMES;
        refuse_announced(&request, limit)?;
        if media_type.as_deref().is_some_and(|given| !is_json(given)) {
            return Err(ApiError::new(
                Code::UnsupportedMediaType,
                "send the body as JSON, with 'Content-Type: application/json'",
            ));
        }
        let bytes = collect(request, api, limit).await?;
        if !bytes.is_empty() && media_type.is_none() {
            return Err(ApiError::new(
                Code::UnsupportedMediaType,
                "say what the body is, with 'Content-Type: application/json'",
            ));
        }
        Ok(Self { value: parse(&bytes)?, bytes })
    }
}

/// A whole body of at most so many bytes.
///
/// Whoever sent it may have been refused meanwhile.
pub(crate) async fn collect(request: Request, api: &Api, limit: usize) -> Answer<Bytes> {
    refuse_announced(&request, limit)?;
    let caller = request.extensions().get::<Caller>().cloned();
    let collected = Limited::new(request.into_body(), limit).collect();
    let bytes = match tokio::time::timeout(api.config.request_timeout, collected).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large(limit)),
        Ok(Err(_)) => return Err(ApiError::new(Code::InvalidJson, "the body broke off: send all of it")),
        Err(_) => return Err(ApiError::new(Code::RequestTimeout, "the body came too slowly: send it again")),
    };
    if let Some(caller) = caller {
        caller.look_again(api).await?;
    }
    Ok(bytes)
}

/// Refuses a body that is said to be too large, before any of it is read.
fn refuse_announced(request: &Request, limit: usize) -> Answer<()> {
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match announced {
        Some(length) if length > limit as u64 => Err(too_large(limit)),
        _ => Ok(()),
    }
}

fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(Code::BodyTooLarge, format!("a JSON body has at most {limit} bytes: send less"))
}

/// A JSON object; no bytes at all count as `{}`.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Answer<T> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    // serde takes an array for a struct; the contract does not.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(match serde_json::from_slice::<IgnoredAny>(bytes) {
            Ok(_) => ApiError::invalid("the body has to be a JSON object"),
            Err(error) => ApiError::new(Code::InvalidJson, format!("the body is not JSON: {error}")),
        });
    }
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => ApiError::invalid(format!("the body does not fit: {error}")),
        _ => ApiError::new(Code::InvalidJson, format!("the body is not JSON: {error}")),
    })
}

/// Query parameters; unknown ones are refused.
pub(crate) struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Answer<Self> {
        axum::extract::Query::<T>::from_request_parts(parts, api)
            .await
            .map(|query| Self(query.0))
            .map_err(|rejection: QueryRejection| ApiError::new(Code::InvalidQuery, text_of(&rejection)))
    }
}

fn text_of(rejection: &QueryRejection) -> String {
    let text = rejection.body_text();
    let reason = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
    format!("the query does not fit: {reason}")
}

/// The one name or id in a path.
pub(crate) struct Named(pub String);

impl FromRequestParts<Shared> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Answer<Self> {
        Path::<String>::from_request_parts(parts, api)
            .await
            .map(|path| Self(path.0))
            .map_err(|_: PathRejection| not_text())
    }
}

/// The two names or ids in a path, in their order.
pub(crate) struct NamedPair(pub String, pub String);

impl FromRequestParts<Shared> for NamedPair {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Answer<Self> {
        let path = Path::<(String, String)>::from_request_parts(parts, api).await;
        path.map(|Path((one, other))| Self(one, other)).map_err(|_: PathRejection| not_text())
    }
}

fn not_text() -> ApiError {
    ApiError::new(Code::NotFound, "the name in the path is not text: use the thing's name or id")
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::wire::CreateNetwork;

    fn code(body: &str) -> Code {
        parse::<CreateNetwork>(body.as_bytes()).err().unwrap().problem.code
    }

    #[test]
    fn what_is_not_json_is_told_from_what_does_not_fit() {
        for body in ["{", "nonsense", "{\"name\":\"a\"} x", "\u{0}"] {
            assert_eq!(code(body), Code::InvalidJson, "{body}");
        }
        for body in ["[]", "null", "\"a\"", "[\"a\"]", "{}", "", r#"{"name":1}"#, r#"{"name":"a","extra":1}"#] {
            assert_eq!(code(body), Code::InvalidRequest, "{body}");
        }
        assert!(parse::<CreateNetwork>(br#" {"name":"a"} "#).is_ok());
    }

    #[test]
    fn json_may_carry_parameters_and_suffixes() {
        for good in ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/x+json"] {
            assert!(is_json(good), "{good}");
        }
        for bad in ["text/plain", "application/x-www-form-urlencoded", "", "json"] {
            assert!(!is_json(bad), "{bad}");
        }
    }
}
