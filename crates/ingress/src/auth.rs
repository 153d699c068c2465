//! The credentials in front of a site. No I/O.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderMap};

use crate::snapshot::{Auth, SecretHash};

/// The longest credentials that are looked at, in bytes.
const MAX_CREDENTIALS: usize = 4096;

/// What a client is asked for (RFC 9110 §11.6.1).
pub(crate) fn challenge(auth: &Auth) -> &'static str {
    match auth {
        Auth::Bearer { .. } => "Bearer realm=\"preview\"",
        Auth::Basic { .. } => "Basic realm=\"preview\", charset=\"UTF-8\"",
    }
}

/// Whether a request has the credentials. Those of an unknown user take as long as a wrong password.
pub(crate) fn allows(auth: &Auth, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Some((scheme, credentials)) = value.to_str().ok().and_then(|value| value.split_once(' ')) else { return false };
    let credentials = credentials.trim_matches(' ');
    if credentials.len() > MAX_CREDENTIALS {
        return false;
    }
    match auth {
        Auth::Bearer { token } => scheme.eq_ignore_ascii_case("bearer") & token.matches(credentials.as_bytes()),
        Auth::Basic { user, password } => {
            let decoded = STANDARD.decode(credentials).unwrap_or_default();
            let colon = decoded.iter().position(|byte| *byte == b':').unwrap_or(decoded.len());
            let (said_user, said_password) = decoded.split_at(colon);
            let said_password = said_password.get(1..).unwrap_or_default();
            let user = SecretHash::of(user.as_bytes()).matches(said_user);
            scheme.eq_ignore_ascii_case("basic") & user & password.matches(said_password) & (colon < decoded.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(auth: &Auth, values: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        allows(auth, &headers)
    }

    #[test]
    fn a_bearer_token_is_let_through_and_nothing_else() {
        let auth = Auth::Bearer { token: SecretHash::of(b"t0ken") };
        assert!(check(&auth, &["Bearer t0ken"]) && check(&auth, &["bearer  t0ken"]));
        for wrong in ["Bearer t0ke", "Bearer", "Bearer ", "Basic t0ken", "t0ken"] {
            assert!(!check(&auth, &[wrong]), "{wrong}");
        }
        assert!(!check(&auth, &[]));
        assert!(!check(&auth, &["Bearer t0ken", "Bearer t0ken"]));
    }

    #[test]
    fn a_user_with_its_password_is_let_through_and_nobody_else() {
        let auth = Auth::Basic { user: "ann".into(), password: SecretHash::of(b"pass:word") };
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert!(check(&auth, &[&basic("ann:pass:word")]));
        for wrong in ["ann:pass", "bob:pass:word", "ann", ":", "", "annpass:word", "ann:pass:word "] {
            assert!(!check(&auth, &[&basic(wrong)]), "{wrong}");
        }
        assert!(!check(&auth, &["Basic %%%"]));
        let empty = Auth::Basic { user: String::new(), password: SecretHash::of(b"") };
        assert!(!check(&empty, &["Basic %%%"]) && !check(&empty, &["Basic "]));
        assert!(check(&empty, &[&basic(":")]));
    }
}
