//! YAML as a tree with positions: only what a plain document needs.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use super::PolicyError;

/// How deep values may lie in each other. A policy needs five.
pub(super) const MAX_DEPTH: usize = 16;

/// Where something begins. Both count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub line: usize,
    pub column: usize,
}

impl Position {
    pub(super) const START: Self = Self { line: 1, column: 1 };

    pub(super) fn error(self, message: impl Into<String>) -> PolicyError {
        PolicyError { line: self.line, column: self.column, message: message.into() }
    }
}

#[derive(Debug, PartialEq)]
pub(super) struct Node {
    pub at: Position,
    pub kind: Kind,
}

#[derive(Debug, PartialEq)]
pub(super) enum Kind {
    /// `plain`: written without quotes, so that it may mean something else than a text.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    /// In the order written. No key is there twice.
    Mapping(Vec<(Key, Node)>),
}

#[derive(Debug, PartialEq)]
pub(super) struct Key {
    pub at: Position,
    pub text: String,
}

/// Reads one document. An empty one is an empty mapping.
pub(super) fn load(text: &str, errors: &mut Vec<PolicyError>) -> Option<Node> {
    let mut stack: Vec<Open> = Vec::new();
    let mut root: Option<Node> = None;
    let mut documents = 0;
    let mut aliased = false;
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = match event {
            Ok(found) => found,
            Err(error) => {
                errors.push(position(error.marker()).error(format!("this is not YAML: {}", error.info())));
                return None;
            }
        };
        let at = position(&span.start);
        let node = match event {
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    errors.push(at.error("a policy is one document: this is a second one"));
                    return None;
                }
                continue;
            }
            Event::StreamEnd => break,
            Event::Nothing | Event::StreamStart | Event::DocumentEnd => continue,
            Event::Alias(_) => {
                errors.push(at.error("aliases are not read: write the value out"));
                aliased = true;
                Node { at, kind: Kind::Sequence(Vec::new()) }
            }
            Event::Scalar(text, style, anchor, tag) => {
                refuse_extras(at, anchor, tag.is_some(), errors);
                Node { at, kind: Kind::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain } }
            }
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) if stack.len() >= MAX_DEPTH => {
                refuse_extras(at, anchor, tag.is_some(), errors);
                errors.push(at.error("values lie too deep in each other"));
                return None;
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_extras(at, anchor, tag.is_some(), errors);
                stack.push(Open { at, items: Items::Sequence(Vec::new()) });
                continue;
            }
            Event::MappingStart(anchor, tag) => {
                refuse_extras(at, anchor, tag.is_some(), errors);
                stack.push(Open {
                    at,
                    items: Items::Mapping { seen: Default::default(), pairs: Vec::new(), key: None },
                });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match stack.pop() {
                Some(Open { at, items: Items::Sequence(items) }) => Node { at, kind: Kind::Sequence(items) },
                Some(Open { at, items: Items::Mapping { pairs, .. } }) => Node { at, kind: Kind::Mapping(pairs) },
                None => continue,
            },
        };
        match stack.last_mut() {
            Some(open) => open.take(node, errors),
            None => root = Some(node),
        }
    }
    // What an alias stands for is unknown, so that the rest would be misread.
    if aliased {
        return None;
    }
    let empty = Node { at: Position::START, kind: Kind::Mapping(Vec::new()) };
    match root {
        Some(Node { kind: Kind::Scalar { text, plain: true }, .. }) if text.is_empty() => Some(empty),
        None => Some(empty),
        root => root,
    }
}

impl Node {
    /// Where a JSON pointer (RFC 6901) leads, or the nearest thing around it. A network or tag is where its name is; an
    /// entry of a list is also found by its text.
    pub(super) fn position(&self, pointer: &str) -> Position {
        let mut node = self;
        let mut at = self.at;
        for (depth, segment) in pointer.split('/').skip(1).enumerate() {
            let found = match &node.kind {
                Kind::Mapping(pairs) => pairs.iter().find(|(key, _)| key.text == segment).map(|(key, value)| {
                    // Of the parts themselves and of what is in rules and tests, the value is meant.
                    let named = depth == 1 && matches!(value.kind, Kind::Mapping(_) | Kind::Sequence(_));
                    (if named { key.at } else { value.at }, value)
                }),
                Kind::Sequence(items) => {
                    let by_index = segment.parse::<usize>().ok().and_then(|index| items.get(index));
                    let is_it = |item: &&Node| matches!(&item.kind, Kind::Scalar { text, .. } if text == segment);
                    by_index.or_else(|| items.iter().find(is_it)).map(|item| (item.at, item))
                }
                Kind::Scalar { .. } => None,
            };
            match found {
                Some((position, value)) => (at, node) = (position, value),
                None => break,
            }
        }
        at
    }
}

/// A sequence or mapping whose end is yet to come.
struct Open {
    at: Position,
    items: Items,
}

enum Items {
    Sequence(Vec<Node>),
    Mapping {
        seen: std::collections::HashSet<String>,
        pairs: Vec<(Key, Node)>,
        /// The key that waits for its value; `None` inside when the pair is to be left out.
        key: Option<Option<Key>>,
    },
}

impl Open {
    fn take(&mut self, node: Node, errors: &mut Vec<PolicyError>) {
        match &mut self.items {
            Items::Sequence(items) => items.push(node),
            Items::Mapping { seen, pairs, key } => match key.take() {
                Some(Some(key)) => pairs.push((key, node)),
                Some(None) => {}
                None => {
                    let Node { at, kind } = node;
                    *key = Some(match kind {
                        Kind::Scalar { text, .. } if seen.insert(text.clone()) => Some(Key { at, text }),
                        Kind::Scalar { text, .. } => {
                            errors.push(at.error(format!("{:?} is here twice", shown(&text))));
                            None
                        }
                        _ => {
                            errors.push(at.error("a key is a text"));
                            None
                        }
                    });
                }
            },
        }
    }
}

/// The beginning of a text, for messages.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Whether an unquoted text means something else than a text in YAML 1.2 (core schema, §10.3.2) or JSON.
pub(super) fn is_no_text(text: &str) -> bool {
    const WORDS: [&str; 10] = ["", "~", "null", "Null", "NULL", "true", "True", "TRUE", "false", "False"];
    const FLOATS: [&str; 3] = [".inf", ".nan", ".NaN"];
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') && text.parse::<f64>().is_ok();
    let radix = |prefix: &str, radix: u32| {
        text.strip_prefix(prefix).is_some_and(|digits| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix)))
    };
    WORDS.contains(&text)
        || text == "FALSE"
        || FLOATS.iter().any(|word| word.eq_ignore_ascii_case(unsigned))
        || number
        || radix("0x", 16)
        || radix("0o", 8)
}

fn refuse_extras(at: Position, anchor: usize, tagged: bool, errors: &mut Vec<PolicyError>) {
    if anchor != 0 {
        errors.push(at.error("anchors are not read: leave out the & and its name"));
    }
    if tagged {
        errors.push(at.error("YAML tags are not read: leave out the ! and its name"));
    }
}

/// The parser counts lines from 1 and columns from 0.
fn position(marker: &Marker) -> Position {
    Position { line: marker.line().max(1), column: marker.col() + 1 }
}
