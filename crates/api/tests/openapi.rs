//! The committed document is the one that the code describes.

use std::path::Path;

#[test]
fn the_committed_document_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/warren.json");
    let generated = warren_api::openapi().to_pretty_json().unwrap() + "\n";
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "openapi/warren.json is not what the code describes: UPDATE_OPENAPI=1 cargo test -p warren-api --test openapi"
    );
}

#[test]
fn every_reference_leads_somewhere_and_the_version_is_3_1() {
    let document = serde_json::to_value(warren_api::openapi()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut waiting = vec![&document];
    let mut found = 0;
    while let Some(value) = waiting.pop() {
        match value {
            serde_json::Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref").and_then(|reference| reference.as_str()) {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{reference}");
                    found += 1;
                }
                waiting.extend(fields.values());
            }
            serde_json::Value::Array(items) => waiting.extend(items),
            _ => {}
        }
    }
    assert!(found > 50);
}

#[test]
fn every_row_of_the_table_is_an_operation() {
    let document = serde_json::to_value(warren_api::openapi()).unwrap();
    for row in warren_api::table::rows().iter().filter(|row| row.is_native()) {
        let operation = &document["paths"][row.path][row.method.to_lowercase()];
        assert!(operation["operationId"].is_string(), "{} {}", row.method, row.path);
        assert!(operation["responses"]["default"].is_object(), "{} {}", row.method, row.path);
        assert_eq!(operation["security"].as_array().unwrap().is_empty(), row.nobody, "{} {}", row.method, row.path);
    }
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.keys().all(|path| !path.starts_with("/compat")), "another product's dialect is in the document");
}
