//! JSON as the tree that it is in YAML, in a fraction of the time.

use std::collections::HashSet;

use super::yaml::{Key, Kind, MAX_DEPTH, Node, Position};

/// Reads a text that is JSON (RFC 8259) and nothing but; `None` for anything else, which the YAML reader then explains:
/// other YAML, a repeated key, values too deep in each other.
pub(super) fn load(text: &str) -> Option<Node> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let mut reader = Reader { text, at: 0, known: Position::START, known_at: 0 };
    reader.space();
    let root = reader.value(0)?;
    reader.space();
    (reader.at == text.len()).then_some(root)
}

struct Reader<'t> {
    text: &'t str,
    /// The byte that comes next.
    at: usize,
    /// A position already counted, and its byte: counting goes on from there.
    known: Position,
    known_at: usize,
}

impl<'t> Reader<'t> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn position(&mut self) -> Position {
        for letter in self.text[self.known_at..self.at].chars() {
            if letter == '\n' {
                self.known = Position { line: self.known.line + 1, column: 1 };
            } else {
                self.known.column += 1;
            }
        }
        self.known_at = self.at;
        self.known
    }

    fn value(&mut self, depth: usize) -> Option<Node> {
        let at = self.position();
        let kind = match self.peek()? {
            b'{' | b'[' if depth >= MAX_DEPTH => return None,
            b'{' => self.object(depth)?,
            b'[' => self.array(depth)?,
            b'"' => Kind::Scalar { text: self.string()?, plain: false },
            _ => {
                let rest = &self.text[self.at..];
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c))).unwrap_or(rest.len());
                let word = &rest[..end];
                // What is a number or a word, the JSON library knows.
                serde_json::from_str::<serde_json::Value>(word).ok()?;
                self.at += end;
                Kind::Scalar { text: word.to_owned(), plain: true }
            }
        };
        Some(Node { at, kind })
    }

    fn object(&mut self, depth: usize) -> Option<Kind> {
        let mut pairs: Vec<(Key, Node)> = Vec::new();
        let mut seen: HashSet<String> = HashSet::new();
        self.take(b'{')?;
        self.space();
        if self.take(b'}').is_some() {
            return Some(Kind::Mapping(pairs));
        }
        loop {
            let at = self.position();
            let text = self.string()?;
            // Few keys are compared faster than they are hashed.
            let repeated = if pairs.len() < 16 {
                pairs.iter().any(|(key, _)| key.text == text)
            } else {
                if seen.is_empty() {
                    seen.extend(pairs.iter().map(|(key, _)| key.text.clone()));
                }
                !seen.insert(text.clone())
            };
            if repeated {
                return None;
            }
            self.space();
            self.take(b':')?;
            self.space();
            pairs.push((Key { at, text }, self.value(depth + 1)?));
            self.space();
            if self.take(b'}').is_some() {
                return Some(Kind::Mapping(pairs));
            }
            self.take(b',')?;
            self.space();
        }
    }

    fn array(&mut self, depth: usize) -> Option<Kind> {
        let mut items = Vec::new();
        self.take(b'[')?;
        self.space();
        if self.take(b']').is_some() {
            return Some(Kind::Sequence(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.take(b']').is_some() {
                return Some(Kind::Sequence(items));
            }
            self.take(b',')?;
            self.space();
        }
    }

    fn string(&mut self) -> Option<String> {
        let start = self.at;
        self.take(b'"')?;
        let mut plain = true;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => {
                    plain = false;
                    self.at += 2;
                }
                // A line break in a string is YAML, where it means a space.
                ..0x20 => return None,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        // Both ends are quotation marks, and so whole characters.
        let quoted = self.text.get(start..self.at)?;
        if plain { Some(quoted[1..quoted.len() - 1].to_owned()) } else { serde_json::from_str(quoted).ok() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::yaml;
    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let text = "[a-zäß€0-9 :,{}#&*!|>'\"%@`/.\\\\-]{0,12}";
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            text.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map(text, inner, 0..6).prop_map(|pairs| pairs.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_is_the_yaml_that_it_is(value in value()) {
            let document = json!({"root": value});
            for text in [document.to_string(), serde_json::to_string_pretty(&document).unwrap()] {
                let mut errors = Vec::new();
                let yaml = yaml::load(&text, &mut errors);
                prop_assert!(errors.is_empty(), "{:?}", errors);
                prop_assert_eq!(load(&text), yaml);
            }
        }

        #[test]
        fn whatever_the_text_reading_it_ends(text in "\\{([\\[\\]{}:,\"\\\\0-9a-u \n€]|true|\"a\":){0,40}") {
            if load(&text).is_some() {
                prop_assert!(serde_json::from_str::<Value>(&text).is_ok(), "{}", text);
            }
        }
    }

    #[test]
    fn what_is_not_plain_json_is_left_to_the_other_reader() {
        for text in [
            "",
            "[]",
            "{a: 1}",
            "{\"a\": 1, \"a\": 2}",
            "{\"a\": 01}",
            "{\"a\": 1,}",
            "{} {}",
            "{\"a\": nul}",
            "{\"a",
            "{\"a\\",
        ] {
            assert_eq!(load(text), None, "{text}");
        }
        let many: String = (0..40).map(|index| format!("\"k{}\": 1,", index % 39)).collect();
        assert_eq!(load(&format!("{{{many}\"z\": 1}}")), None);
        assert_eq!(load(&format!("{{\"a\": {}{}}}", "[".repeat(99), "]".repeat(99))), None);
        let escaped = load(r#"{"a": "\ud83d\ude00\/\n"}"#).unwrap();
        let Kind::Mapping(pairs) = escaped.kind else { panic!() };
        assert!(matches!(&pairs[0].1.kind, Kind::Scalar { text, .. } if text == "\u{1f600}/\n"));
    }
}
