//! The corpus, which every host runs, leaves out no field of a policy and no scope that a field may have.

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};
use tollgate_policy::json_schema;

/// Fields that no case needs, each with the reason.
const WITHOUT_A_CASE: &[(&str, &str)] = &[
    ("version", "for people; decides nothing"),
    (
        "approval",
        "how the control plane asks for approvals; no gate decides by it",
    ),
    ("approval_timeout_secs", "the same"),
];

/// Fields that hold for everybody, and so have their place in documents of the scope `global` alone.
const FOR_ALL: [&str; 1] = ["prices"];

const SCOPES: [&str; 5] = ["global", "org", "team", "agent", "tool"];

/// Stands for a key that the author chooses.
const ANY: &str = "*";

fn cases(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            cases(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "yaml") {
            found.push(path);
        }
    }
}

/// Every text of policies in a case.
fn policies<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if key == "policies" => found.push(text),
                    _ => policies(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| policies(item, found)),
        _ => {}
    }
}

/// The paths of `value` that `schema` knows.
fn walk(schema: &Value, value: Option<&Value>, path: &str, found: &mut dyn FnMut(&str, bool)) {
    for one in schema["anyOf"].as_array().into_iter().flatten() {
        walk(one, value, path, found);
    }
    for (key, below) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        let value = value.and_then(|value| value.get(key));
        found(&path, value.is_some());
        walk(below, value, &path, found);
    }
    if let Some(below) = schema
        .get("additionalProperties")
        .filter(|of| of.is_object())
    {
        let path = format!("{path}.{ANY}");
        let values: Vec<&Value> = value
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(|fields| fields.values())
            .collect();
        found(&path, !values.is_empty());
        walk(below, None, &path, found);
        for value in values {
            walk(below, Some(value), &path, found);
        }
    }
}

#[test]
fn every_field_has_a_case_at_every_scope_it_may_have() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus");
    let mut files = Vec::new();
    cases(&root, &mut files);
    assert!(files.len() > 50, "{} files", files.len());

    let schema = json_schema();
    let spec = &schema["anyOf"][0]["properties"]["spec"];
    let mut used: BTreeMap<String, bool> = BTreeMap::new();
    let mut cells: BTreeSet<(String, String)> = BTreeSet::new();
    for file in &files {
        let case: Value = serde_saphyr::from_str(&fs::read_to_string(file).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut texts = Vec::new();
        policies(&case, &mut texts);
        for text in texts.iter().flat_map(|text| text.split("---\n")) {
            let Ok(document) = serde_saphyr::from_str::<Value>(text) else {
                continue;
            };
            let document = document.get("spec").unwrap_or(&document);
            walk(spec, Some(document), "", &mut |path, is_there| {
                *used.entry(path[1..].to_string()).or_default() |= is_there;
            });
            let scope = document["scope"].as_str().unwrap_or("global");
            let scope = scope.split(':').next().unwrap_or_default();
            for field in document
                .as_object()
                .into_iter()
                .flat_map(|fields| fields.keys())
            {
                cells.insert((field.clone(), scope.to_string()));
            }
        }
    }
    let excused = |path: &str| {
        WITHOUT_A_CASE
            .iter()
            .any(|(field, _)| path == *field || path.starts_with(&format!("{field}.")))
    };
    let mut missing: Vec<String> = used
        .iter()
        .filter(|(path, used)| !**used && !excused(path))
        .map(|(path, _)| path.clone())
        .collect();
    for field in used.keys().filter(|path| !path.contains('.')) {
        for scope in SCOPES {
            let refused = scope != "global" && FOR_ALL.contains(&field.as_str());
            if !refused
                && !excused(field)
                && field != "scope"
                && !cells.contains(&(field.clone(), scope.to_string()))
            {
                missing.push(format!("{field} at the scope {scope}"));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "no case in tests/corpus for {missing:#?}"
    );
    // The walk found the fields at all.
    assert!(
        used.len() > 30 && used.contains_key("tools.*.requires_approval_if"),
        "{used:?}"
    );
}
