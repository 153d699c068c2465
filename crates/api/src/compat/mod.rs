//! Other products' dialects of HTTP, below `/compat/`. They translate; they hold no logic.

pub(crate) mod freestyle;

use http::Method;

/// How the answers to a request are said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Native,
    Freestyle(freestyle::Place),
}

impl Dialect {
    /// The dialect of a path, which need not have a route.
    pub fn of(method: &Method, path: &str) -> Self {
        match path.strip_prefix(freestyle::PREFIX) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                Self::Freestyle(freestyle::Place::of(method, rest))
            }
            _ => Self::Native,
        }
    }

    /// Whether a path is Warren's own.
    pub fn is_native(path: &str) -> bool {
        Self::of(&Method::GET, path) == Self::Native
    }
}
