use std::path::Path;

use warren_model::policy::schema;

#[test]
fn the_committed_schema_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/policy.schema.json");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&schema()).unwrap() + "\n").unwrap();
    }
    // Compared as values: the order of keys depends on features of serde_json that other crates switch on.
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        serde_json::from_str::<serde_json::Value>(&committed).ok() == Some(schema()),
        "openapi/policy.schema.json is not what the code describes: UPDATE_OPENAPI=1 cargo test -p warren-model --test policy"
    );
}
