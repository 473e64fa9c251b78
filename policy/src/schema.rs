//! The JSON Schema of policies, for editors: what the decoder asked for when it read documents that have everything.
//!
//! So there is one source. A field the decoder does not ask for is in no schema, and a test finds one that it asks for and the
//! documents here do not have. The schema knows shapes; names, zones, patterns and conditions are for `tollgate check`.

use crate::{
    Severity,
    decode::{Findings, Shape},
    diagnostic::codes,
    document::{self, AGENT_ASSEMBLY_V1, TOLLGATE_V1},
    yaml::{self, Node},
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A document with every field, and one with what a field may be instead.
const WHOLE: [&str; 2] = [
    r#"
apiVersion: tollgate/v1
kind: Policy
metadata: {name: whole, version: "1", description: d, rollout: enforce, replaces: "0"}
spec:
  version: "1"
  scope: global
  network: {allowlist: [a.example], denylist: [private]}
  schedule: {active_hours: {start: "09:00", end: "18:00", timezone: UTC}}
  budget:
    {hourly_limit_usd: 1, daily_limit_usd: 1, weekly_limit_usd: 1, monthly_limit_usd: 1, hourly_limit_tokens: 1, daily_limit_tokens: 1,
     weekly_limit_tokens: 1, monthly_limit_tokens: 1, per: agent, each: model, timezone: UTC, action_on_exceed: deny, warn_at: [80], on_lost: forfeit, lower_max_tokens: true,
     unknown_model: {input_usd_per_million: 1, output_usd_per_million: 1}}
  prices: {ANY: {input_usd_per_million: 1, output_usd_per_million: 1, cached_input_usd_per_million: 1, max_output_tokens: 1}}
  rate: {requests_per_minute: 1, per: agent, each: model}
  data: {sensitive_patterns: [a], action: block, mask_pii: true, applies_to: both, exempt_tools: [a], tool_output_is_data: true}
  tools: {ANY: {allow: true, limit_per_hour: 1, cost_usd: 1, requires_approval_if: "true"}}
  capabilities: {allow: ["model:a"], deny: ["model:a"]}
  approval_timeout_secs: 1
  agent:
    id: 00000000-0000-4000-8000-00000000000a
    name: a
    tools: [{name: a, enabled: true, requires_approval: true, approval_config: {timeout_seconds: 1, auto_deny_on_timeout: true, notify_channels: [a]}}]
    budget: {max_tokens: 1, max_cost_usd: 1, max_iterations: 1}
    termination: {on_goal_achieved: true, on_budget_exceeded: true, on_timeout: 1, max_iterations: 1, error_threshold: 1}
    execution: {timeout_seconds: 1, enable_pause: true, enable_cancel: true}
    audit: {log_all_events: true, retention_days: 1, include_message_content: true}
  approval: {timeout_seconds: 1, escalation_role: r, auto_deny_on_timeout: true, notify_channels: [a]}
"#,
    r#"{apiVersion: tollgate/v1, kind: Policy, metadata: {name: other}, spec: {budget: {daily_limit_usd: 1, unknown_model: deny}}}"#,
];

/// Documents without anything they must have.
const EMPTY: [&str; 2] = [
    "{apiVersion: tollgate/v1}",
    "{metadata: {}, spec: {schedule: {active_hours: {}}, budget: {daily_limit_usd: 1, unknown_model: {}}, prices: {ANY: {}}, rate: {}, agent: {tools: [{}]}}}",
];

/// Stands for any key of a map whose keys are the author's.
const ANY: &str = "ANY";

/// A form that documents have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    TollgateV1,
    AgentAssemblyV1,
    Flat,
}

/// The JSON Schema (draft 2020-12) of one policy document, in any of the three forms. It takes unknown keys for errors, as `--strict` does.
pub fn json_schema() -> Value {
    let forms = [Form::TollgateV1, Form::AgentAssemblyV1, Form::Flat];
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tollgate policy",
        "anyOf": forms.map(|form| Source::new(form).of("")),
    })
}

/// What is asked for where `text`, a document of `tollgate/v1`, is read in this form.
fn read(text: &str, form: Form) -> Findings {
    let text = match form {
        Form::TollgateV1 | Form::Flat => text.to_string(),
        Form::AgentAssemblyV1 => text.replace(TOLLGATE_V1, AGENT_ASSEMBLY_V1),
    };
    let mut findings = Findings::new(Vec::new(), true);
    for node in &yaml::read(text.as_bytes(), &mut Vec::new()) {
        let node = match form {
            Form::TollgateV1 | Form::AgentAssemblyV1 => Some(node),
            Form::Flat => spec(node),
        };
        if let Some(node) = node {
            document::read(node, "whole", &mut findings);
        }
    }
    findings
}

/// A document's `spec`, which is a flat document by itself.
fn spec(node: &Node) -> Option<&Node> {
    let yaml::Value::Map(entries) = &node.value else {
        return None;
    };
    let spec = entries.iter().find(|entry| entry.key == "spec")?;
    Some(&spec.node)
}

/// Where the schema comes from.
struct Source {
    shapes: BTreeMap<String, Vec<Shape>>,
    required: Vec<String>,
}

impl Source {
    fn new(form: Form) -> Source {
        let mut shapes: BTreeMap<String, Vec<Shape>> = BTreeMap::new();
        for text in WHOLE {
            for (path, shape) in read(text, form).shapes {
                let known = shapes.entry(path).or_default();
                if !known.contains(&shape) {
                    known.push(shape);
                }
            }
        }
        let required = EMPTY
            .iter()
            .flat_map(|text| read(text, form).finish().0)
            .filter(|finding| finding.severity == Severity::Error && finding.code == codes::MISSING)
            .map(|finding| finding.path)
            .collect();
        Source { shapes, required }
    }

    fn of(&self, path: &str) -> Value {
        let shapes = self.shapes.get(path).map_or(&[][..], Vec::as_slice);
        let mut schemas: Vec<Value> = shapes.iter().map(|shape| self.one(path, shape)).collect();
        match (schemas.pop(), schemas.is_empty()) {
            (Some(only), true) => only,
            (Some(last), false) => {
                schemas.push(last);
                json!({"anyOf": schemas})
            }
            (None, _) => json!({}),
        }
    }

    fn one(&self, path: &str, shape: &Shape) -> Value {
        match shape {
            // Unquoted numbers and words count as the text they are written as.
            Shape::Text => json!({"type": ["string", "number", "boolean"]}),
            Shape::Remark => json!({"type": ["string", "number", "boolean", "null"]}),
            Shape::Boolean => json!({"type": "boolean"}),
            Shape::Integer(least, most) => {
                json!({"type": "integer", "minimum": least, "maximum": most})
            }
            Shape::Choice(words) => json!({"enum": words}),
            Shape::List => json!({"type": "array", "items": self.of(&format!("{path}[0]"))}),
            Shape::Object(keys) if keys.is_empty() => {
                let any = yaml::child(path, ANY);
                json!({"type": "object", "additionalProperties": self.of(&any)})
            }
            Shape::Object(keys) => self.object(path, keys),
        }
    }

    fn object(&self, path: &str, keys: &[&'static str]) -> Value {
        let child = |key: &str| yaml::child(path, key);
        let properties: Map<String, Value> = keys
            .iter()
            .map(|key| ((*key).to_string(), self.of(&child(key))))
            .collect();
        let required: Vec<&&str> = keys
            .iter()
            .filter(|key| self.required.contains(&child(key)))
            .collect();
        json!({
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        })
    }
}
