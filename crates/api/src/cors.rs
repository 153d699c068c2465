//! Which pages may call the API from a browser (Fetch standard, CORS protocol).

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::guard::{ACCOUNT_HEADER, API_KEY_HEADER};
use crate::idempotency::{IDEMPOTENCY_KEY, REPLAYED};
use crate::outer::REQUEST_ID;

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
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods(methods)
            .allow_headers([
                AUTHORIZATION,
                CONTENT_TYPE,
                REQUEST_ID,
                own(API_KEY_HEADER),
                own(ACCOUNT_HEADER),
                own(IDEMPOTENCY_KEY),
                own("last-event-id"),
            ])
            .expose_headers([LOCATION, RETRY_AFTER, REQUEST_ID, own(REPLAYED)])
            .max_age(REMEMBERED),
    )
}
