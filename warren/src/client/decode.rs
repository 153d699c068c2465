//! Documents out of a stream of bytes: server-sent events (WHATWG HTML §9.2) or one JSON document a line.

use bytes::BytesMut;
use serde_json::Value;

use super::error::{ClientError, Refusal};

/// The longest line that is taken, in bytes.
const LONGEST_LINE: usize = 4 << 20;

/// Takes chunks as they come; gives documents as soon as they are whole.
#[derive(Debug)]
pub struct Decoder {
    format: Format,
    buffer: BytesMut,
    /// The data lines of the event that is being read.
    data: String,
    broken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Events,
    Lines,
}

type Document = Result<Value, ClientError>;

impl Decoder {
    pub fn for_content_type(content_type: &str) -> Self {
        let format = if content_type.starts_with("text/event-stream") { Format::Events } else { Format::Lines };
        Self { format, buffer: BytesMut::new(), data: String::new(), broken: false }
    }

    pub fn push(&mut self, chunk: &[u8]) -> Vec<Document> {
        let mut documents = Vec::new();
        if self.broken {
            return documents;
        }
        self.buffer.extend_from_slice(chunk);
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(end + 1);
            self.line(&line, &mut documents);
        }
        if self.buffer.len() > LONGEST_LINE || self.data.len() > LONGEST_LINE {
            self.broken = true;
            documents.push(Err(ClientError::BrokenOff("a line of the answer is longer than 4 MiB".into())));
        }
        documents
    }

    /// What the end of the stream completes: a last line without an end. An event needs its empty line.
    pub fn finish(&mut self) -> Vec<Document> {
        let mut documents = Vec::new();
        if self.format == Format::Lines && !self.broken {
            let rest = self.buffer.split();
            self.line(&rest, &mut documents);
        }
        documents
    }

    fn line(&mut self, line: &[u8], documents: &mut Vec<Document>) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end_matches(['\n', '\r']);
        match self.format {
            Format::Lines if line.trim().is_empty() => {}
            Format::Lines => documents.push(parse(line)),
            Format::Events if line.is_empty() => {
                if !self.data.is_empty() {
                    documents.push(parse(&std::mem::take(&mut self.data)));
                }
            }
            // `event`, `id` and `retry` repeat what the documents say; a colon first is a comment (keep-alive).
            Format::Events => {
                if let Some(data) = line.strip_prefix("data:") {
                    if !self.data.is_empty() {
                        self.data.push('\n');
                    }
                    self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
                }
            }
        }
    }
}

/// A stream that has begun cannot change its status, so a failure comes as a problem document among the others.
fn parse(text: &str) -> Document {
    let document: Value = serde_json::from_str(text).map_err(ClientError::NotUnderstood)?;
    match problem_in(&document) {
        Some(problem) => Err(ClientError::Refused(Refusal { document: problem.clone() })),
        None => Ok(document),
    }
}

fn problem_in(document: &Value) -> Option<&Value> {
    let is_problem = |value: &Value| {
        value.get("type").and_then(Value::as_str).is_some_and(|kind| kind.starts_with("urn:warren:problem:"))
    };
    [Some(document), document.get("problem")].into_iter().flatten().find(|value| is_problem(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn all(content_type: &str, text: &str, chunk: usize) -> Vec<Value> {
        let mut decoder = Decoder::for_content_type(content_type);
        let mut documents = Vec::new();
        for piece in text.as_bytes().chunks(chunk) {
            documents.extend(decoder.push(piece));
        }
        documents.extend(decoder.finish());
        documents.into_iter().map(|document| document.unwrap()).collect()
    }

    #[test]
    fn events_come_whole_however_they_are_cut() {
        let text = ": hello\r\n\r\nid: 1\r\nevent: x\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\ndata:{\"b\":\"ü\"}\n\ndata: {\"cut\":1}\n";
        for chunk in [1, 2, 3, 7, 1000] {
            assert_eq!(all("text/event-stream; charset=utf-8", text, chunk), [json!({"a": 1}), json!({"b": "ü"})]);
        }
    }

    #[test]
    fn lines_come_whole_and_the_last_needs_no_end() {
        for chunk in [1, 5, 1000] {
            assert_eq!(
                all("application/x-ndjson", "{\"a\":1}\n\n{\"b\":2}", chunk),
                [json!({"a": 1}), json!({"b": 2})]
            );
        }
    }

    #[test]
    fn a_problem_in_the_stream_is_an_error() {
        let mut decoder = Decoder::for_content_type("application/x-ndjson");
        let text = br#"{"type":"urn:warren:problem:image_build_failed","code":"image_build_failed","detail":"No."}"#;
        let mut documents = decoder.push(text);
        documents.extend(decoder.finish());
        let error = documents.remove(0).unwrap_err();
        assert_eq!(error.to_string(), "No. (image_build_failed)");
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let mut decoder = Decoder::for_content_type("application/x-ndjson");
        let chunk = vec![b'x'; LONGEST_LINE + 1];
        assert!(decoder.push(&chunk)[0].is_err());
        assert!(decoder.push(b"\n").is_empty());
    }
}
