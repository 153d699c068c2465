//! Pages of lists.
//!
//! A cursor is opaque, and good only for the list, account and filters that it came from.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use warren_model::{AccountId, Code};

use crate::error::{Answer, ApiError};

/// How many items a page has when nothing is asked for.
pub(crate) const DEFAULT_LIMIT: usize = 100;
/// How many items a page may have.
pub(crate) const MAX_LIMIT: usize = 1000;

/// Where in which list a page begins.
pub(crate) struct Paging {
    /// The list, account and filters.
    scope: String,
    /// The last key of the page before.
    pub after: Option<String>,
    pub limit: usize,
}

impl Paging {
    /// `list` names the list and its filters.
    pub fn parse(list: &str, account: AccountId, limit: Option<usize>, cursor: Option<&str>) -> Answer<Self> {
        let limit = limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(ApiError::new(Code::InvalidQuery, format!("limit is 1 to {MAX_LIMIT}, not {limit}")));
        }
        let scope = format!("{account} {list}");
        let after = cursor.map(|cursor| read(&scope, cursor)).transpose()?;
        Ok(Self { scope, after, limit })
    }

    /// The cursor of the page that begins after this key.
    pub fn next(&self, last_key: &str) -> String {
        let mut bytes = seal(&self.scope, last_key).to_vec();
        bytes.extend_from_slice(last_key.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }
}

const SEAL: usize = 8;

fn seal(scope: &str, key: &str) -> [u8; SEAL] {
    let mut hasher = blake3::Hasher::new_derive_key("warren list cursor v1");
    hasher.update(scope.as_bytes()).update(&[0]).update(key.as_bytes());
    let mut seal = [0u8; SEAL];
    seal.copy_from_slice(&hasher.finalize().as_bytes()[..SEAL]);
    seal
}

fn read(scope: &str, cursor: &str) -> Answer<String> {
    let refused = || {
        ApiError::new(
            Code::InvalidCursor,
            "hand back 'next' of the page before, unchanged, with the same filters; or leave cursor out to begin again",
        )
    };
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| refused())?;
    let (found, key) = bytes.split_at_checked(SEAL).ok_or_else(refused)?;
    let key = std::str::from_utf8(key).map_err(|_| refused())?;
    if found == seal(scope, key) { Ok(key.to_owned()) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ulid::Ulid;

    #[test]
    fn a_cursor_reads_back_only_in_its_own_list_and_account() {
        let (mine, other) =
            (AccountId::from_ulid(Ulid::from_parts(1, 1)), AccountId::from_ulid(Ulid::from_parts(1, 2)));
        let cursor = Paging::parse("machines", mine, None, None).unwrap().next("machine-name/x/y");
        let again = Paging::parse("machines", mine, None, Some(&cursor)).unwrap();
        assert_eq!(again.after.as_deref(), Some("machine-name/x/y"));
        for (list, account) in [("machines", other), ("networks", mine)] {
            let error = Paging::parse(list, account, None, Some(&cursor)).err().unwrap();
            assert_eq!(error.problem.code, Code::InvalidCursor);
        }
        for bad in ["", "AAAA", "!!!!", "AAAAAAAAAAAAAAAA"] {
            assert!(Paging::parse("machines", mine, None, Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_limit_is_1_to_1000() {
        let account = AccountId::from_ulid(Ulid::from_parts(1, 1));
        for (limit, good) in [(0, false), (1, true), (1000, true), (1001, false)] {
            assert_eq!(Paging::parse("x", account, Some(limit), None).is_ok(), good);
        }
    }
}
