//! What HTTP asks of whoever stands between a client and a server: of the ingress in front of machines, and of the proxy
//! that carries machines' requests to names outside.
//!
//! Whom a request is for is not here: the two have different answers. The ingress looks up any plain name; the proxy
//! takes only names that a rule of a policy can be about, and says of others what is wrong with them.
//!
//! | module | holds |
//! | --- | --- |
//! | [`framing`] | where messages end |
//! | [`hop`] | headers that are about one connection only |
//! | [`request`] | requests on their way to a server |
//! | [`closing`] | ends of connections at which the last message still arrives |

#![forbid(unsafe_code)]

pub mod closing;
pub mod framing;
pub mod hop;
pub mod request;

/// Whether a byte may be in a token, as methods and the names of headers are (RFC 9110 §5.6.2).
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
