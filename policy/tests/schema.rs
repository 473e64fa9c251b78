//! The JSON Schema and the decoder say the same about the shape of a document.

use serde_json::{Value, json};
use tollgate_policy::{codes, json_schema, parse};

/// A document with everything.
fn whole() -> Value {
    json!({
        "apiVersion": "tollgate/v1",
        "kind": "Policy",
        "metadata": {"name": "whole", "version": "1.0", "description": "all of it"},
        "spec": {
            "version": "1",
            "scope": "global",
            "network": {"allowlist": ["a.example"]},
            "schedule": {"active_hours": {"start": "09:00", "end": "18:00", "timezone": "UTC"}},
            "budget": {
                "hourly_limit_usd": 1, "daily_limit_usd": 2.5, "weekly_limit_usd": "3", "monthly_limit_usd": 4,
                "hourly_limit_tokens": 1, "daily_limit_tokens": 2, "weekly_limit_tokens": 3, "monthly_limit_tokens": 4,
                "per": "team", "timezone": "Asia/Taipei", "action_on_exceed": "suspend",
                "unknown_model": {"input_usd_per_million": 1, "output_usd_per_million": 2},
                "warn_at": [50, 100], "on_lost": "release", "lower_max_tokens": true, "each": "model",
            },
            "prices": {"m": {"input_usd_per_million": 1, "output_usd_per_million": 2, "cached_input_usd_per_million": 0, "max_output_tokens": 9}},
            "rate": {"requests_per_minute": 60, "per": "org"},
            "data": {"sensitive_patterns": ["x+"], "action": "block", "mask_pii": true, "exempt_tools": ["calc"], "tool_output_is_data": true},
            "tools": {"bash": {"allow": true, "limit_per_hour": 3, "cost_usd": 0.01, "requires_approval_if": "true"}},
            "capabilities": {"allow": ["model:a"], "deny": ["mcp_tool:b"]},
            "approval_timeout_secs": 1,
            "approval": {"timeout_seconds": 5, "escalation_role": "r"},
            "agent": {
                "name": "a",
                "audit": {"log_all_events": true, "retention_days": 90, "include_message_content": false},
                "execution": {"enable_pause": true, "enable_cancel": true},
            },
        },
    })
}

/// Whether `value` is what `schema` describes. Knows the keywords that the schema uses and no others.
fn fits(schema: &Value, value: &Value) -> bool {
    schema
        .as_object()
        .unwrap()
        .iter()
        .all(|(keyword, of)| match keyword.as_str() {
            "$schema" | "title" => true,
            "anyOf" => of
                .as_array()
                .unwrap()
                .iter()
                .any(|schema| fits(schema, value)),
            "enum" => of.as_array().unwrap().contains(value),
            "type" => {
                let kinds = of.as_array().cloned().unwrap_or_else(|| vec![of.clone()]);
                kinds.iter().any(|kind| match kind.as_str().unwrap() {
                    "string" => value.is_string(),
                    "number" => value.is_number(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    "array" => value.is_array(),
                    "object" => value.is_object(),
                    other => panic!("unknown type {other}"),
                })
            }
            "minimum" => value
                .as_i64()
                .is_none_or(|value| value >= of.as_i64().unwrap()),
            "maximum" => value
                .as_u64()
                .is_none_or(|value| value <= of.as_u64().unwrap()),
            "items" => value
                .as_array()
                .is_none_or(|items| items.iter().all(|item| fits(of, item))),
            "required" => value.as_object().is_none_or(|map| {
                of.as_array()
                    .unwrap()
                    .iter()
                    .all(|key| map.contains_key(key.as_str().unwrap()))
            }),
            "properties" => value.as_object().is_none_or(|map| {
                map.iter()
                    .all(|(key, value)| of.get(key).is_none_or(|schema| fits(schema, value)))
            }),
            "additionalProperties" => value.as_object().is_none_or(|map| {
                let known = |key: &String| {
                    schema
                        .get("properties")
                        .is_some_and(|properties| properties.get(key).is_some())
                };
                map.iter()
                    .filter(|(key, _)| !known(key))
                    .all(|(_, value)| of != &json!(false) && fits(of, value))
            }),
            other => panic!("the schema uses `{other}`, which this test does not know"),
        })
}

/// Every place in `value`, as JSON pointers.
fn places(value: &Value, at: &str, places: &mut Vec<String>) {
    places.push(at.to_string());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                self::places(value, &format!("{at}/{key}"), places);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                self::places(value, &format!("{at}/{index}"), places);
            }
        }
        _ => {}
    }
}

#[track_caller]
fn agree(schema: &Value, document: &Value, shapes: &mut usize) {
    let text = document.to_string();
    let errors: Vec<&str> = parse("case.json", text.as_bytes(), true)
        .diagnostics
        .iter()
        .filter(|finding| finding.is_error())
        .map(|finding| finding.code)
        .collect();
    let about_shape = errors.iter().any(|code| {
        [
            codes::UNKNOWN_KEY,
            codes::WRONG_TYPE,
            codes::MISSING,
            codes::API_VERSION,
            codes::NUMBER,
            codes::CHOICE,
            codes::NEEDS_TOLLGATE_V1,
        ]
        .contains(code)
    });
    let fits = fits(schema, document);
    assert!(fits || !errors.is_empty(), "only the schema refuses {text}");
    assert!(
        !fits || !about_shape,
        "only the decoder refuses {text}: {errors:?}"
    );
    *shapes += usize::from(about_shape);
}

#[test]
fn schema_and_decoder_agree_on_every_change_of_one_place() {
    let schema = json_schema();
    let whole = whole();
    let parsed = parse("whole.json", whole.to_string().as_bytes(), true);
    assert!(!parsed.has_errors(), "{:?}", parsed.diagnostics);
    assert!(fits(&schema, &whole));
    let mut all = Vec::new();
    places(&whole, "", &mut all);
    let other = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(1.5),
        json!(""),
        json!("x"),
        json!("deny"),
        json!([]),
        json!(["x"]),
        json!({}),
        json!({"x": 1}),
    ];
    let mut shapes = 0;
    for place in &all {
        for other in &other {
            let mut changed = whole.clone();
            *changed.pointer_mut(place).unwrap() = other.clone();
            agree(&schema, &changed, &mut shapes);
        }
        let mut changed = whole.clone();
        if let Some(map) = changed.pointer_mut(place).unwrap().as_object_mut() {
            map.insert("surprise".to_string(), json!({"x": 1}));
            agree(&schema, &changed, &mut shapes);
        }
        if let Some((parent, key)) = place.rsplit_once('/') {
            let mut changed = whole.clone();
            if let Some(map) = changed.pointer_mut(parent).unwrap().as_object_mut() {
                map.remove(key);
                agree(&schema, &changed, &mut shapes);
            }
        }
    }
    assert!(shapes > 300, "{shapes} changes were about shape");
}

/// Puts what `whole` has and `part` has not into `part`, one thing at a time.
fn added(whole: &Value, part: &Value, all: &Value, at: &str, changed: &mut Vec<Value>) {
    let (Some(whole), Some(part)) = (whole.as_object(), part.as_object()) else {
        return;
    };
    for (key, value) in whole {
        match part.get(key) {
            Some(part) => added(value, part, all, &format!("{at}/{key}"), changed),
            None => {
                let mut more = all.clone();
                let place = more.pointer_mut(at).unwrap().as_object_mut().unwrap();
                place.insert(key.clone(), value.clone());
                changed.push(more);
            }
        }
    }
}

#[test]
fn what_tollgate_v1_adds_fits_no_older_form() {
    let schema = json_schema();
    let whole = whole();
    let spec = json!({
        "scope": "global", "version": "1",
        "network": {"allowlist": ["a.example"]},
        "budget": {"daily_limit_usd": 2.5, "monthly_limit_usd": 4, "action_on_exceed": "suspend", "timezone": "UTC"},
        "data": {"sensitive_patterns": ["x+"]},
        "tools": {"bash": {"allow": true, "limit_per_hour": 3, "requires_approval_if": "true"}},
        "approval": {"timeout_seconds": 5},
    });
    let older = json!({"apiVersion": "agent-assembly/v1", "kind": "Policy", "metadata": {"name": "a"}, "spec": spec});
    for (document, whole) in [(&spec, &whole["spec"]), (&older, &whole)] {
        let parsed = parse("case.json", document.to_string().as_bytes(), true);
        assert!(!parsed.has_errors(), "{:?}", parsed.diagnostics);
        assert!(fits(&schema, document));
        let (mut changed, mut shapes) = (Vec::new(), 0);
        added(whole, document, document, "", &mut changed);
        for changed in &changed {
            agree(&schema, changed, &mut shapes);
        }
        // Limits per hour and week and in tokens are 6; the rest of `budget` but the zone 6; `prices`, `rate`, four of `data`, a tool's cost.
        assert_eq!(shapes, 6 + 6 + 2 + 4 + 1);
        let mut alert = document.clone();
        let budget = alert.as_object_mut().unwrap();
        let budget = match budget.get_mut("spec") {
            Some(spec) => &mut spec["budget"],
            None => &mut budget["budget"],
        };
        budget["action_on_exceed"] = json!("alert");
        agree(&schema, &alert, &mut shapes);
        assert_eq!(shapes, 6 + 6 + 2 + 4 + 1 + 1);
    }
}

#[test]
fn the_flat_form_fits_too() {
    let schema = json_schema();
    let flat =
        json!({"version": "1.0", "scope": "global", "network": {"allowlist": ["api.openai.com"]}});
    assert!(fits(&schema, &flat));
    assert!(!fits(&schema, &json!({"scope": "global", "netwrok": {}})));
}

/// Keys that documents may have and the schema does not know would be ones that nobody put into the documents it is made from.
#[test]
fn the_schema_leaves_nothing_open() {
    fn open(schema: &Value) -> bool {
        match schema {
            Value::Object(map) => map.is_empty() || map.values().any(open),
            Value::Array(items) => items.iter().any(open),
            _ => false,
        }
    }
    assert!(!open(&json_schema()));
}
