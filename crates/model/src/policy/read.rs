//! A document in YAML or JSON becomes a policy.
//!
//! JSON is read as the YAML that it is, only faster. Whatever the document does not say plainly is refused: unknown and repeated
//! keys, anchors, aliases, tags, several documents, numbers where a text is meant.

pub(super) mod document;
mod field;
mod json;
mod yaml;

use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;

use self::yaml::{Node, Position};
use super::check::{Finding, check};
use super::{Directory, Policy};
use crate::name::Label;

/// The longest document, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// The most rules that a policy may have, allowing and forbidding ones together.
pub const MAX_RULES: usize = 20_000;
/// The most tests that a policy may have.
pub const MAX_TESTS: usize = 20_000;
/// The most errors that are listed.
pub const MAX_ERRORS: usize = 100;

/// What is wrong with a document, and where. Lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyError {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for PolicyError {}

/// A valid policy, and the text that it was read from.
#[derive(Debug, Clone)]
pub struct ReadPolicy {
    pub policy: Policy,
    text: String,
}

/// Reads a document. Refused with everything that is wrong, in the order of the text, up to [`MAX_ERRORS`].
pub fn read(text: &str) -> Result<ReadPolicy, Vec<PolicyError>> {
    if text.len() > MAX_BYTES {
        let message = format!("the document has {} bytes: at most {MAX_BYTES} are read", text.len());
        return Err(vec![Position::START.error(message)]);
    }
    let mut errors = Vec::new();
    let policy = load(text, &mut errors).map(|root| document::read(&root, &mut errors));
    match policy {
        Some(policy) if errors.is_empty() => Ok(ReadPolicy { policy, text: text.to_owned() }),
        _ => Err(sorted(errors)),
    }
}

impl ReadPolicy {
    /// Checks the policy against who is there; `keys` are the names of the account's keys. Refused with everything that
    /// is wrong, in the order of the text.
    pub fn check(&self, directory: &Directory, keys: &BTreeSet<Label>, now: Timestamp) -> Result<(), Vec<PolicyError>> {
        check(&self.policy, directory, keys, now).map_err(|findings| {
            let root = load(&self.text, &mut Vec::new());
            let position = |pointer: &str| root.as_ref().map_or(Position::START, |root| root.position(pointer));
            let place = |finding: Finding| position(&finding.pointer).error(finding.message);
            sorted(findings.into_iter().map(place).collect())
        })
    }

    /// The line and column of what a JSON pointer leads to, or of the nearest thing around it.
    pub fn position(&self, pointer: &str) -> (usize, usize) {
        let root = load(&self.text, &mut Vec::new());
        let at = root.map_or(Position::START, |root| root.position(pointer));
        (at.line, at.column)
    }
}

fn load(text: &str, errors: &mut Vec<PolicyError>) -> Option<Node> {
    json::load(text).or_else(|| yaml::load(text, errors))
}

fn sorted(mut errors: Vec<PolicyError>) -> Vec<PolicyError> {
    errors.sort_by_key(|error| (error.line, error.column));
    if errors.len() > MAX_ERRORS {
        let more = errors.len() - MAX_ERRORS;
        errors.truncate(MAX_ERRORS);
        if let Some(last) = errors.last().cloned() {
            errors.push(PolicyError { message: format!("and {more} more"), ..last });
        }
    }
    errors
}
