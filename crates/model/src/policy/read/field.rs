//! Reading the fields of one mapping.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use super::PolicyError;
use super::yaml::{Key, Kind, Node, Position, is_no_text, shown};
use crate::policy::near::nearest;

/// What is collected while a document is read.
pub(super) struct Notes<'e> {
    pub errors: &'e mut Vec<PolicyError>,
}

impl Notes<'_> {
    pub(super) fn error(&mut self, at: Position, message: impl Into<String>) {
        self.errors.push(at.error(message));
    }

    /// A text that is no number, truth value or nothing.
    pub(super) fn text<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        match &node.kind {
            Kind::Scalar { text, plain: true } if is_no_text(text) => {
                let message = match text.as_str() {
                    "" => format!("{what} has no value"),
                    _ => format!("{what} is a text: write {text:?} with the quotes"),
                };
                self.error(node.at, message);
                None
            }
            Kind::Scalar { text, .. } => Some(text),
            Kind::Sequence(_) => {
                self.error(node.at, format!("{what} is one text, not a list"));
                None
            }
            Kind::Mapping(_) => {
                self.error(node.at, format!("{what} is a text, not a mapping"));
                None
            }
        }
    }

    /// A text that parses.
    pub(super) fn parsed<T>(&mut self, node: &Node, what: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        let text = self.text(node, what)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(node.at, error.to_string());
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&mut self, node: &Node, what: &str, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(node, what)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let hint = hint(text, known.iter().copied());
            self.error(node.at, format!("{:?} is no {what}: use {}{hint}", shown(text), known.join(", ")));
        }
        found
    }

    pub(super) fn sequence<'n>(&mut self, node: &'n Node, what: &str) -> &'n [Node] {
        match &node.kind {
            Kind::Sequence(items) => items,
            _ => {
                self.error(node.at, format!("{what} is a list"));
                &[]
            }
        }
    }

    pub(super) fn mapping<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [(Key, Node)]> {
        match &node.kind {
            Kind::Mapping(pairs) => Some(pairs),
            _ => {
                self.error(node.at, format!("{what} is a mapping"));
                None
            }
        }
    }

    /// The fields of a mapping, by key; unknown ones are refused.
    pub(super) fn fields<'n>(&mut self, node: &'n Node, what: &str, known: &[&'static str]) -> Option<Fields<'n>> {
        let pairs = self.mapping(node, what)?;
        let mut fields = BTreeMap::new();
        for (key, value) in pairs {
            if known.contains(&key.text.as_str()) {
                fields.insert(key.text.as_str(), value);
            } else {
                let hint = hint(&key.text, known.iter().copied());
                self.error(key.at, format!("{what} has no {:?}{hint}", shown(&key.text)));
            }
        }
        Some(Fields { at: node.at, fields })
    }
}

/// The known fields that a mapping has.
pub(super) struct Fields<'n> {
    pub at: Position,
    fields: BTreeMap<&'n str, &'n Node>,
}

impl<'n> Fields<'n> {
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.fields.get(key).copied()
    }

    /// A field that has to be there.
    pub(super) fn need(&self, key: &str, what: &str, notes: &mut Notes<'_>) -> Option<&'n Node> {
        let found = self.get(key);
        if found.is_none() {
            notes.error(self.at, format!("{what} needs {key:?}"));
        }
        found
    }
}

/// `: did you mean "x"?` where a known word is near.
fn hint<'k>(text: &str, known: impl Iterator<Item = &'k str>) -> String {
    nearest(text, known).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default()
}
