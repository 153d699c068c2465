//! Requests on their way to a server. No I/O.

use http::uri::PathAndQuery;
use http::{Method, Request, Uri};

/// A request without a body once more, with `nothing` for a body, where sending it twice does no harm (RFC 9110 §9.2.2):
/// a server may close an idle connection while a request is on its way.
pub fn once_more<B, N>(request: &Request<B>, nothing: N) -> Option<Request<N>> {
    if ![Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method()) {
        return None;
    }
    let mut again = Request::new(nothing);
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

/// The target without the server: `/path?query`, or `*` (RFC 9112 §3.2).
pub fn to_origin(uri: &Uri) -> Uri {
    // An absolute form may end with its authority or go on with a fragment, and a request line needs a path
    // (RFC 9112 §3.2.1); an empty one equals "/" here but is written as nothing.
    let path = match uri.path_and_query() {
        Some(path) if path != "/" => path.clone(),
        _ => PathAndQuery::from_static("/"),
    };
    Uri::from(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_for_a_server_has_a_path() {
        for (target, expected) in [
            ("/x?y=1", "/x?y=1"),
            ("*", "*"),
            ("http://a.example/x#z", "/x"),
            ("http://a.example", "/"),
            ("http://a.example#z", "/"),
            ("http://a.example?y=1", "/?y=1"),
            ("a.example:80", "/"),
        ] {
            assert_eq!(to_origin(&target.parse().unwrap()).to_string(), expected, "{target}");
        }
    }

    #[test]
    fn only_what_changes_nothing_is_sent_once_more() {
        let request = |method: &str| Request::builder().method(method).uri("/x").header("a", "1").body("body").unwrap();
        for method in ["GET", "HEAD", "OPTIONS"] {
            let again = once_more(&request(method), ()).unwrap();
            assert_eq!((again.method().as_str(), again.uri().path()), (method, "/x"));
            assert_eq!(again.headers()["a"], "1");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "FROB"] {
            assert!(once_more(&request(method), ()).is_none(), "{method}");
        }
    }
}
