//! Names. The client's are any text and not unique; Warren's are DNS labels and unique in an account.

use warren_model::Label;

use crate::error::{Answer, ApiError};
use crate::secret;

/// Characters that are kept of a name, so that one can be told from others of the same name.
const KEPT: usize = 48;

/// The label nearest to a text; `None` where nothing of it can stand in one.
pub(super) fn nearest(text: &str) -> Option<Label> {
    if let Ok(label) = text.parse() {
        return Some(label);
    }
    let mut near = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        match c {
            'a'..='z' | '0'..='9' => near.push(c),
            _ if !near.ends_with('-') => near.push('-'),
            _ => {}
        }
        if near.len() == KEPT {
            break;
        }
    }
    near.trim_matches('-').parse().ok()
}

/// The name with something after it that no other has.
pub(super) fn another(name: &str) -> Answer<String> {
    let kept: String = name.chars().take(KEPT).collect();
    let random = u32::from_be_bytes(secret::random()?);
    let another = format!("{}-{random:08x}", kept.trim_end_matches('-'));
    another.parse::<Label>().map(|label| label.to_string()).map_err(|_| ApiError::internal())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_stays_and_everything_else_becomes_one() {
        let near = |text: &str| nearest(text).map(|label| label.to_string());
        assert_eq!(near("agent-network").as_deref(), Some("agent-network"));
        assert_eq!(near("My  Agent_7!").as_deref(), Some("my-agent-7"));
        assert_eq!(near("日本"), None);
        assert_eq!(near(""), None);
        let long = "x".repeat(63);
        assert_eq!(near(&long), Some(long.clone()));
        assert_ne!(another(&long).unwrap(), another(&long).unwrap());
    }
}
