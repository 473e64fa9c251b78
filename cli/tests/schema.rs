//! `tollgate schema` prints a JSON Schema.

use serde_json::Value;
use std::process::Command;

#[test]
fn it_is_json_with_the_fields_of_a_policy() {
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .arg("schema")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    let limit = "/anyOf/0/properties/spec/properties/tools/additionalProperties/properties/limit_per_hour/type";
    assert_eq!(
        schema.pointer(limit).and_then(Value::as_str),
        Some("integer")
    );
}
