//! The policy checker as a WebAssembly module for browsers: the same code that `tollgate check` and the control plane run, so that an
//! editor says of a policy what they will say. `cargo xtask wasm` makes it, with the JavaScript and the types around it.

use tollgate_policy::{Report, check_together, json_schema, parse};
use wasm_bindgen::prelude::wasm_bindgen;

/// What is wrong with a policy file, as the JSON that `tollgate check --format json` prints. `path` is what the file is called: it names a
/// document that does not name itself. `strict` makes unknown keys errors.
#[wasm_bindgen]
pub fn check(path: &str, text: &str, strict: bool) -> String {
    let mut parsed = [parse(path, text.as_bytes(), strict)];
    check_together(&mut parsed);
    let report = Report::of(std::iter::once(path).zip(&parsed));
    // Texts and numbers always serialise.
    serde_json::to_string(&report).unwrap_or_default()
}

/// The JSON Schema of policies, for completion.
#[wasm_bindgen]
pub fn schema() -> String {
    json_schema().to_string()
}
