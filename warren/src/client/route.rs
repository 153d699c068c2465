//! Paths of the API with their parameters, escaped.

use std::fmt::{self, Display, Write};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Everything but the unreserved characters of RFC 3986 §2.3.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A path below `/v1` and its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    text: String,
    has_query: bool,
    /// A part is empty: it would be a path to something else.
    nameless: bool,
}

impl Route {
    /// `Route::new(&["machines", "worker"])` is `/v1/machines/worker`.
    pub fn new(parts: &[&str]) -> Self {
        let mut text = String::from("/v1");
        for part in parts {
            text.push('/');
            // A lone dot or two would be taken as a step in the path, escaped or not.
            match *part {
                "." => text.push_str("%2E"),
                ".." => text.push_str("%2E%2E"),
                part => text.extend(utf8_percent_encode(part, ESCAPED)),
            }
        }
        Self { text, has_query: false, nameless: parts.contains(&"") }
    }

    /// Whether an empty text stands where a name or id belongs.
    pub fn is_nameless(&self) -> bool {
        self.nameless
    }

    /// Adds a query parameter.
    pub fn query(mut self, key: &str, value: impl Display) -> Self {
        let mark = if self.has_query { '&' } else { '?' };
        self.has_query = true;
        let value = value.to_string();
        // Writing into a String does not fail.
        let _ = write!(self.text, "{mark}{key}={}", utf8_percent_encode(&value, ESCAPED));
        self
    }

    /// Adds a query parameter if there is a value.
    pub fn maybe(self, key: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.query(key, value),
            None => self,
        }
    }

    /// The path and its query, from the first slash on.
    #[cfg(test)]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_parameters_cannot_change_the_path() {
        let route = Route::new(&["machines", "a/../b?c", "files"]).query("path", "/x y&z=1").maybe("mode", None::<u32>);
        assert_eq!(route.as_str(), "/v1/machines/a%2F..%2Fb%3Fc/files?path=%2Fx%20y%26z%3D1");
        assert_eq!(Route::new(&["machines", ".."]).as_str(), "/v1/machines/%2E%2E");
    }

    #[test]
    fn parameters_are_joined() {
        let route = Route::new(&["events"]).query("follow", false).query("limit", 5);
        assert_eq!(route.as_str(), "/v1/events?follow=false&limit=5");
    }
}
