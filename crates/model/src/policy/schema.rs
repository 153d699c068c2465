//! The JSON Schema of the document, for editors.

use serde_json::{Map, Value, json};

use super::read::document::{APPLICATION, EXPECT, INTRA, JOIN, MAX_NOTE};
use super::read::{MAX_RULES, MAX_TESTS};

const LABEL: &str = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
const TAG: &str = "[a-z0-9][a-z0-9._-]{0,62}";
const PORTS: &str = "^(icmp|(tcp|udp)(/[0-9]{1,5}(-[0-9]{1,5})?)?)$";

/// The JSON Schema (draft 2020-12) of a policy. What it refuses the reader refuses as well; the reader refuses more.
pub fn schema() -> Value {
    let range = "[0-9a-fA-F.:]+(/[0-9]{1,3})?";
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Warren policy",
        "description": "What may talk to what in an account: forbid wins over allow, and what nothing allows is denied.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "networks": {
                "description": "What holds for a network as a whole.",
                "type": "object",
                "propertyNames": { "pattern": anchored(LABEL) },
                "additionalProperties": { "$ref": "#/$defs/network" },
            },
            "tagOwners": {
                "description": "The names of the keys that may give a tag.",
                "type": "object",
                "propertyNames": { "pattern": anchored(TAG) },
                "additionalProperties": {
                    "type": "array",
                    "uniqueItems": true,
                    "items": { "type": "string", "pattern": anchored(LABEL) },
                },
            },
            "forbid": rules("Rules that win over every allowing one."),
            "allow": rules("Rules, any of which is enough where nothing forbids."),
            "tests": {
                "description": "Claims that have to be true, or the policy is refused.",
                "type": "array",
                "maxItems": MAX_TESTS,
                "items": { "$ref": "#/$defs/test" },
            },
        },
        "$defs": {
            "network": {
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "join": { "description": "How others may join it.", "enum": words(&JOIN) },
                    "intra": {
                        "description": "Whether its members reach each other without a rule.",
                        "enum": words(&INTRA),
                        "default": "allow",
                    },
                },
            },
            "rule": {
                "type": "object",
                "additionalProperties": false,
                "required": ["id", "from", "to"],
                "properties": {
                    "id": {
                        "description": "Unique among all rules of the policy.",
                        "type": "string",
                        "pattern": anchored(TAG),
                    },
                    "from": { "$ref": "#/$defs/subject" },
                    "to": { "$ref": "#/$defs/target" },
                    "ports": {
                        "description": "Left out: every protocol and port.",
                        "type": "array",
                        "minItems": 1,
                        "uniqueItems": true,
                        "items": { "$ref": "#/$defs/ports" },
                    },
                    "as": {
                        "description": "What is spoken, for a rule to a name; by port when left out.",
                        "enum": words(&APPLICATION),
                    },
                    "owner": note("Who answers for it."),
                    "expires": {
                        "description": "From then on it is as if it were not there.",
                        "type": "string",
                        "format": "date-time",
                    },
                    "reason": note("Why it is there; said to whom it concerns."),
                },
            },
            "test": {
                "type": "object",
                "additionalProperties": false,
                "required": ["from", "to", "port", "expect"],
                "properties": {
                    "from": { "$ref": "#/$defs/subject" },
                    "to": { "$ref": "#/$defs/target" },
                    "port": { "$ref": "#/$defs/ports" },
                    "expect": { "enum": words(&EXPECT) },
                    "by": {
                        "description": "The rule that has to decide.",
                        "type": "string",
                        "pattern": format!("^(builtin:[a-z-]+|{TAG})$"),
                    },
                },
            },
            "subject": {
                "description": "net:NETWORK, NETWORK/tag:TAG, NETWORK/MACHINE, NETWORK/CIDR, an address or a CIDR.",
                "type": "string",
                "pattern": format!("^(net:{LABEL}|{LABEL}/tag:{TAG}|{LABEL}/{LABEL}|({LABEL}/)?{range})$"),
            },
            "target": {
                "anyOf": [
                    { "$ref": "#/$defs/subject" },
                    {
                        "description": "A name outside: exact, *.NAME for one label more, **.NAME for one or more.",
                        "type": "object",
                        "additionalProperties": false,
                        "required": ["name"],
                        "properties": { "name": { "type": "string", "minLength": 3, "maxLength": 257 } },
                    },
                    {
                        "description": "An address or CIDR.",
                        "type": "object",
                        "additionalProperties": false,
                        "required": ["cidr"],
                        "properties": { "cidr": { "type": "string", "pattern": anchored(range) } },
                    },
                ],
            },
            "ports": {
                "description": "tcp/5432, udp/5000-5010, tcp, udp or icmp.",
                "type": "string",
                "pattern": PORTS,
            },
        },
    })
}

fn rules(description: &str) -> Value {
    json!({
        "description": description,
        "type": "array",
        "maxItems": MAX_RULES,
        "items": { "$ref": "#/$defs/rule" },
    })
}

fn note(description: &str) -> Value {
    let mut note = Map::new();
    note.insert("description".to_owned(), description.into());
    note.insert("type".to_owned(), "string".into());
    note.insert("minLength".to_owned(), 1.into());
    note.insert("maxLength".to_owned(), MAX_NOTE.into());
    Value::Object(note)
}

fn words<T>(words: &[(&str, T)]) -> Value {
    words.iter().map(|(word, _)| Value::from(*word)).collect()
}

fn anchored(pattern: &str) -> String {
    format!("^{pattern}$")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::policy::read::document::{NETWORK, PARTS, RULE, TARGET, TEST};

    #[test]
    fn the_schema_knows_exactly_the_keys_that_the_reader_knows() {
        let schema = schema();
        let keys = |pointer: &str| -> BTreeSet<String> {
            let at = |pointer: &str| schema.pointer(pointer).unwrap().as_object().unwrap().keys().cloned();
            at(&format!("{pointer}/properties")).collect()
        };
        let of = |known: &[&str]| known.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(keys(""), of(&PARTS));
        assert_eq!(keys("/$defs/network"), of(&NETWORK));
        assert_eq!(keys("/$defs/rule"), of(&RULE));
        assert_eq!(keys("/$defs/test"), of(&TEST));
        let targets: BTreeSet<String> =
            [1, 2].into_iter().flat_map(|index| keys(&format!("/$defs/target/anyOf/{index}"))).collect();
        assert_eq!(targets, of(&TARGET));
    }
}
