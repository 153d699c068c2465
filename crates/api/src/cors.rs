//! Which pages may call the API from a browser (Fetch standard, CORS protocol).

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::compat::freestyle;
use crate::guard::{ACCOUNT_HEADER, API_KEY_HEADER};
use crate::idempotency::{IDEMPOTENCY_KEY, REPLAYED};
use crate::outer::REQUEST_ID;
use crate::routes::files::{FILE_MODE, FILE_SIZE};

/// How long a browser may remember an answer.
const REMEMBERED: Duration = Duration::from_secs(600);

/// `None` where no page may. Credentials of the browser's own (cookies) are never asked for: a page sends a token in a
/// header, so that no other page can send it for it.
pub(crate) fn layer(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    let own = HeaderName::from_static;
    let methods = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let asked = [
        AUTHORIZATION,
        CONTENT_TYPE,
        REQUEST_ID,
        own(API_KEY_HEADER),
        own(ACCOUNT_HEADER),
        own(IDEMPOTENCY_KEY),
        own("last-event-id"),
        own(freestyle::TOKEN_HEADER),
        own(freestyle::USER_HEADER),
    ];
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods(methods)
            .allow_headers(asked.into_iter().chain(freestyle::SDK_HEADERS.map(own)).collect::<Vec<_>>())
            .expose_headers([
                LOCATION,
                RETRY_AFTER,
                REQUEST_ID,
                own(REPLAYED),
                own(FILE_MODE),
                own(FILE_SIZE),
                own(freestyle::TRACE_HEADER),
            ])
            .max_age(REMEMBERED),
    )
}
