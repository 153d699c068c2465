//! Where answers go: JSON for scripts, text for people.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use warren_model::wire::Page;

use super::failure::Failure;
use crate::client::error::ClientError;

/// How answers are written to stdout.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    pub json: bool,
}

impl Output {
    /// One thing. `render` says it to a person.
    pub fn object<T: DeserializeOwned>(&self, answer: Value, render: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if self.json { self.json(&answer) } else { self.text(&render(&read(answer)?)) }
    }

    /// A list. `empty` is what a person is told instead of a table without rows.
    pub fn list<T: DeserializeOwned>(
        &self,
        page: Page<Value>,
        empty: &str,
        render: impl FnOnce(&[T]) -> String,
    ) -> Result<(), Failure> {
        if self.json {
            return self.json(&page);
        }
        if page.items.is_empty() {
            note(empty);
            return Ok(());
        }
        let items = page.items.into_iter().map(read).collect::<Result<Vec<T>, _>>()?;
        self.text(&render(&items))?;
        if page.next.is_some() {
            note("There are more; leave --limit out to see all.");
        }
        Ok(())
    }

    /// One document of a stream, on one line.
    pub fn line<T: DeserializeOwned>(&self, document: Value, render: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if self.json { self.text(&document.to_string()) } else { self.text(&render(&read(document)?)) }
    }

    /// That something was done to the thing that was named. The server's answer if it gave one.
    pub fn done(&self, answer: Value, sentence: &str) -> Result<(), Failure> {
        match (self.json, answer) {
            (true, Value::Null) => self.json(&serde_json::json!({})),
            (true, answer) => self.json(&answer),
            (false, _) => self.text(sentence),
        }
    }

    /// A document: laid out for a person who looks at it, on one line for a program.
    pub fn json(&self, document: &impl Serialize) -> Result<(), Failure> {
        let text = if io::stdout().is_terminal() {
            serde_json::to_string_pretty(document)
        } else {
            serde_json::to_string(document)
        };
        self.text(&text.map_err(ClientError::NotUnderstood)?)
    }

    /// Text, and the end of its line if it has none.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| match text.ends_with('\n') {
            true => Ok(()),
            false => stdout.write_all(b"\n"),
        });
        written.and_then(|()| stdout.flush()).map_err(Failure::stdout)
    }
}

/// Reads what the server sent as one of the shapes that this build knows.
pub fn read<T: DeserializeOwned>(document: Value) -> Result<T, Failure> {
    Ok(serde_json::from_value(document).map_err(ClientError::NotUnderstood)?)
}

/// Tells a person something on stderr. Nobody listening is no failure.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
