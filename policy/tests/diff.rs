//! What a change of policies does, in words.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use tollgate_policy::{Change, Document, Effect, Position, diff, diff_of_some, json_schema, parse};

fn documents(text: &str) -> Vec<Document> {
    let parsed = parse("case.yaml", text.as_bytes(), false);
    assert!(!parsed.has_errors(), "{:?}", parsed.diagnostics);
    parsed.documents
}

fn v1(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: {name}}}, spec: {spec}}}\n"
    )
}

/// `effect rule: message` of each change from one spec to another.
#[track_caller]
fn changes(old: &str, new: &str) -> Vec<String> {
    let changes = diff(&documents(&v1("a", old)), &documents(&v1("a", new)));
    let shown = changes
        .iter()
        .map(|change| format!("{} {}: {}", change.effect, change.rule, change.message));
    shown.collect()
}

#[test]
fn what_is_the_same_is_no_change() {
    let spec = "{network: {allowlist: [a.example, b.example]}, budget: {daily_limit_usd: 5}}";
    let other = "{budget: {daily_limit_usd: 5.00}, network: {allowlist: [B.example, a.example]}}";
    assert_eq!(changes(spec, spec), [""; 0]);
    assert_eq!(changes(spec, other), [""; 0]);
}

#[test]
fn a_tool_named_beside_a_star_that_denies_is_one_more() {
    assert_eq!(
        changes(
            "{tools: {'*': {allow: false}, git: {}}}",
            "{tools: {'*': {allow: false}, git: {}, mail: {}}}",
        ),
        ["widens tools (not under `*`): adds mail"]
    );
}

/// `name (scope) effect rule: message` of each change from one set to another.
fn said(old: &[Document], new: &[Document]) -> Vec<String> {
    let changes = diff(old, new).into_iter();
    let shown = changes.map(|change| {
        let Change {
            document,
            scope,
            rule,
            effect,
            message,
        } = change;
        format!("{document} ({scope}) {effect} {rule}: {message}")
    });
    shown.collect()
}

const OPENS: &str =
    "; agents under no other document could call nothing, and may now call what it leaves open";
const SHUTS: &str = "; agents under no other document may now call nothing";

fn document(name: &str, rollout: &str, scope: &str, more: &str) -> String {
    format!(
        "---\n{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: {name}, rollout: {rollout}}}, spec: {{scope: '{scope}'{more}}}}}\n"
    )
}

/// The first document over somebody opens what it does not close, and without the last one nothing is open.
#[test]
fn who_is_under_no_document_may_call_nothing() {
    const AGENT: &str = "agent:00000000-0000-4000-8000-00000000000a";
    // Beside a document of the first scope, one of the second comes or goes.
    for (beside, scope, among, alone) in [
        ("global", "global", true, false),
        ("global", "team:a", true, false),
        ("team:a", "team:a", true, false),
        // Nobody is in two teams.
        ("team:a", "team:b", false, true),
        ("org:a", "org:b", false, true),
        // Some are under the other one, and some are not.
        ("team:a", "global", true, true),
        ("org:a", "team:a", true, true),
        (AGENT, "team:a", true, true),
        ("team:a", AGENT, true, true),
        // Under a document of a tool alone nobody may call anything, and it is about calls that others are about too.
        ("tool:t", "team:a", false, true),
        ("team:a", "tool:t", true, false),
        ("tool:t", "tool:t", true, false),
    ] {
        let old = document("old", "enforce", beside, "");
        let both = old.clone() + &document("one", "enforce", scope, "");
        let (old, both) = (documents(&old), documents(&both));
        let expected = |effects: [&str; 2], what: &str, then: &str| -> Vec<String> {
            let [effect, opposite] = effects;
            let among = among.then(|| format!("one ({scope}) {effect} : {what}"));
            let alone = alone.then(|| format!("one ({scope}) {opposite} : {what}{then}"));
            among.into_iter().chain(alone).collect()
        };
        assert_eq!(
            said(&old, &both),
            expected(["narrows", "widens"], "is new", OPENS)
        );
        assert_eq!(
            said(&both, &old),
            expected(["widens", "narrows"], "is gone", SHUTS)
        );
        // A document in shadow lets nobody do anything.
        let tried = |rollout| {
            let old = document("old", "shadow", "global", "");
            documents(&(old + &document("one", rollout, "team:a", "")))
        };
        assert_eq!(
            said(&tried("shadow"), &tried("enforce")),
            [format!(
                "one (team:a) widens : was in shadow and is enforced now{OPENS}"
            )]
        );
    }
}

/// What nobody knows may be there, or not.
#[test]
fn of_some_documents_it_is_said_for_those_under_others_and_for_those_who_are_not() {
    let one = documents(&document("one", "enforce", "team:a", ""));
    let effects = |old: &[Document], new: &[Document]| -> Vec<(Effect, String)> {
        let changes = diff_of_some(old, new).into_iter();
        changes
            .map(|change| (change.effect, change.message))
            .collect()
    };
    assert_eq!(
        effects(&[], &one),
        [
            (Effect::Narrows, "is new".to_string()),
            (Effect::Widens, format!("is new{OPENS}"))
        ]
    );
    assert_eq!(
        effects(&one, &[]),
        [
            (Effect::Widens, "is gone".to_string()),
            (Effect::Narrows, format!("is gone{SHUTS}"))
        ]
    );
}

#[test]
fn a_scope_that_grows_or_shrinks_leaves_nobody_or_reaches_nobody() {
    let of = |scope| documents(&document("one", "enforce", scope, ""));
    assert_eq!(
        said(&of("team:a"), &of("global")),
        [format!(
            "one (global) widens : now applies to global{OPENS}"
        )]
    );
    assert_eq!(
        said(&of("global"), &of("team:a")),
        [format!(
            "one (global) narrows : no longer applies to global{SHUTS}"
        )]
    );
    assert_eq!(
        said(&of("team:a"), &of("team:b")),
        [
            format!("one (team:a) narrows : no longer applies to team:a{SHUTS}"),
            format!("one (team:b) widens : now applies to team:b{OPENS}")
        ]
    );
    assert_eq!(said(&of("tool:a"), &of("tool:A")), [""; 0]);
}

#[test]
fn another_scope_or_rollout_does_not_hide_other_content() {
    let strict = ", tools: {bash: {allow: false}}, budget: {daily_limit_usd: 5}";
    let loose = ", budget: {daily_limit_usd: 5000000}";
    let content = |scope: &str, effect: &str| {
        [
            format!(
                "one ({scope}) {effect} budget.daily_limit_usd (per agent, UTC): from $5.00 to $5000000.00"
            ),
            format!("one ({scope}) {effect} tools.bash.allow: is gone: false"),
        ]
    };
    for (old, new, first, effect) in [
        // Those under both may do more.
        (
            ("enforce", "global"),
            ("enforce", "team:a"),
            vec!["one (global) widens : no longer applies to global"],
            "widens",
        ),
        // Nobody was under both.
        (
            ("enforce", "team:b"),
            ("enforce", "team:a"),
            vec![
                "one (team:b) widens : no longer applies to team:b",
                "one (team:a) narrows : now applies to team:a",
            ],
            "alters",
        ),
        // What was in shadow stopped nothing.
        (
            ("shadow", "team:b"),
            ("enforce", "team:a"),
            vec!["one (team:a) narrows : was in shadow, for team:b, and is enforced now"],
            "alters",
        ),
        (
            ("enforce", "team:b"),
            ("shadow", "team:a"),
            vec!["one (team:b) widens : was enforced and is in shadow now, for team:a"],
            "alters",
        ),
    ] {
        let of = |(rollout, scope), more| {
            let all = document("all", "enforce", "global", "");
            documents(&(all + &document("one", rollout, scope, more)))
        };
        let expected: Vec<String> = first
            .into_iter()
            .map(str::to_string)
            .chain(content("team:a", effect))
            .collect();
        assert_eq!(said(&of(old, strict), &of(new, loose)), expected);
    }
}

#[test]
fn a_document_in_shadow_narrows_nothing() {
    let of = |rollout: &str, budget: u32| {
        let budget = format!(", budget: {{daily_limit_usd: {budget}}}");
        documents(&document("a", rollout, "global", &budget))
    };
    let (enforced, shadow) = (of("enforce", 5), of("shadow", 5));
    assert_eq!(
        said(&[], &shadow),
        ["a (global) alters : is new, in shadow"]
    );
    assert_eq!(said(&shadow, &[]), ["a (global) alters : is gone"]);
    assert_eq!(
        said(&shadow, &of("shadow", 4)),
        ["a (global) alters budget.daily_limit_usd (per agent, UTC): from $5.00 to $4.00"]
    );
    assert_eq!(
        said(&shadow, &enforced),
        [format!(
            "a (global) widens : was in shadow and is enforced now{OPENS}"
        )]
    );
    assert_eq!(
        said(&enforced, &shadow),
        [format!(
            "a (global) narrows : was enforced and is in shadow now{SHUTS}"
        )]
    );
}

#[test]
fn lists_narrow_and_widen_by_what_they_mean() {
    assert_eq!(
        changes(
            "{network: {allowlist: [a.example, b.example]}, capabilities: {deny: ['model:x']}}",
            "{network: {allowlist: [b.example, c.example]}, capabilities: {deny: ['model:y']}}",
        ),
        [
            "narrows capabilities.deny (model): adds y",
            "widens capabilities.deny (model): removes x",
            "widens network.allowlist: adds c.example",
            "narrows network.allowlist: removes a.example",
        ]
    );
    // The first entry closes a kind, the last one gone opens it.
    assert_eq!(
        changes(
            "{}",
            "{capabilities: {allow: ['model:x', network_outbound]}}"
        ),
        [
            "narrows capabilities.allow (model): is new: x",
            // It closes nothing.
            "alters capabilities.allow (network_outbound): is new: all",
        ]
    );
    assert_eq!(
        changes("{network: {}}", "{}"),
        ["widens network.allowlist: is gone: none"]
    );
}

#[test]
fn limits_and_conditions_say_from_what_to_what() {
    assert_eq!(
        changes(
            "{budget: {daily_limit_usd: 5, per: team}, rate: {requests_per_minute: 10}, tools: {t: {limit_per_hour: 3}}}",
            "{budget: {daily_limit_usd: 4, per: team, action_on_exceed: suspend}, rate: {requests_per_minute: 20},
              tools: {t: {allow: false, limit_per_hour: 3}}}",
        ),
        [
            "narrows budget.action_on_exceed: is new: suspend",
            "narrows budget.daily_limit_usd (per team, UTC): from $5.00 to $4.00",
            "widens rate.requests_per_minute (per agent): from 10 calls to 20 calls",
            "narrows tools.t.allow: is new: false",
        ]
    );
    assert_eq!(
        changes(
            "{tools: {t: {requires_approval_if: 'governance_level >= L2'}},
              schedule: {active_hours: {start: '09:00', end: '18:00', timezone: UTC}}}",
            "{tools: {t: {requires_approval_if: 'governance_level >= L1'}},
              schedule: {active_hours: {start: '09:00', end: '17:00', timezone: UTC}}}",
        ),
        [
            "alters schedule.active_hours: from 09:00-18:00 UTC to 09:00-17:00 UTC",
            "alters tools.t.requires_approval_if: from governance_level >= L2 to governance_level >= L1",
        ]
    );
}

#[test]
fn how_approvals_are_asked_for_is_part_of_their_rules() {
    assert_eq!(
        changes(
            "{tools: {t: {requires_approval_if: 'true'}}, approval: {timeout_seconds: 60}}",
            "{tools: {t: {requires_approval_if: 'true'}}, approval_timeout_secs: 60,
              approval: {escalation_role: org-admin, notify_channels: [ops, sec]}}",
        ),
        ["alters approval: from within 60 s to within 60 s, by org-admin, told to ops, sec"]
    );
}

#[test]
fn what_is_kept_and_who_may_be_stopped_is_told() {
    assert_eq!(
        changes(
            "{agent: {audit: {retention_days: 30}}}",
            "{agent: {audit: {retention_days: 90, include_message_content: true}, execution: {enable_cancel: false}}}",
        ),
        [
            "alters agent.audit.include_message_content: from false to true",
            "alters agent.audit.retention_days: from 30 to 90",
            "alters agent.execution.enable_cancel: from true to false",
        ]
    );
}

/// A field that permits widens where it comes and narrows where it goes, if there is something that it permits.
#[test]
fn what_permits_widens_where_it_comes() {
    const LIMIT: &str = "daily_limit_usd: 5";
    const RUN: &str = "agent: {budget: {max_cost_usd: 5}}, ";
    const PRICE: &str = "unknown_model: {input_usd_per_million: 2.5, output_usd_per_million: 10}";
    const SHOWN: &str =
        "budget.unknown_model: is new: input $2.50, output $10.00 per million tokens";
    let budget = |fields: &str| format!("{{budget: {{{fields}}}}}");
    let run = |fields: &str| format!("{{{RUN}budget: {{{fields}}}}}");
    let data = |fields: &str| format!("{{data: {{{fields}}}}}");
    for (without, with, what, effect, opposite) in [
        (
            budget(LIMIT),
            budget(&format!("{LIMIT}, action_on_exceed: alert")),
            "budget.action_on_exceed: is new: alert",
            "widens",
            "narrows",
        ),
        (
            budget(LIMIT),
            budget(&format!("{LIMIT}, action_on_exceed: suspend")),
            "budget.action_on_exceed: is new: suspend",
            "narrows",
            "widens",
        ),
        (
            budget(LIMIT),
            budget(&format!("{LIMIT}, on_lost: release")),
            "budget.on_lost: is new: release",
            "widens",
            "narrows",
        ),
        (
            budget(LIMIT),
            budget(&format!("{LIMIT}, lower_max_tokens: true")),
            "budget.lower_max_tokens: is new: true",
            "widens",
            "narrows",
        ),
        (
            budget(LIMIT),
            budget(&format!("{LIMIT}, warn_at: [50]")),
            "budget.warn_at: is new: 50 %",
            "alters",
            "alters",
        ),
        (
            budget(LIMIT),
            budget(&format!("{LIMIT}, {PRICE}")),
            SHOWN,
            "widens",
            "narrows",
        ),
        // It is for limits of runs too.
        (run(""), run(PRICE), SHOWN, "widens", "narrows"),
        // Nothing is limited.
        (budget(""), budget(PRICE), SHOWN, "alters", "alters"),
        (
            data("mask_pii: true"),
            data("mask_pii: true, exempt_tools: [git]"),
            "data.exempt_tools: is new: git",
            "widens",
            "narrows",
        ),
        (
            data("mask_pii: true"),
            data("mask_pii: true, applies_to: requests"),
            "data.applies_to: is new: requests",
            "widens",
            "narrows",
        ),
        (
            data(""),
            data("applies_to: requests"),
            "data.applies_to: is new: requests",
            "alters",
            "alters",
        ),
        (
            "{}".to_string(),
            "{tools: {git: {cost_usd: 0.5}}}".to_string(),
            "tools.git.cost_usd: is new: $0.50",
            "narrows",
            "widens",
        ),
    ] {
        assert_eq!(changes(&without, &with), [format!("{effect} {what}")]);
        let gone = what.replace("is new", "is gone");
        assert_eq!(changes(&with, &without), [format!("{opposite} {gone}")]);
    }
    // With the whole budget comes no permission.
    assert_eq!(
        changes("{}", &budget(&format!("{LIMIT}, on_lost: release"))),
        [
            "narrows budget.daily_limit_usd (per agent, UTC): is new: $5.00",
            "alters budget.on_lost: is new: release",
        ]
    );
}

#[test]
fn from_one_permission_or_restriction_to_another() {
    let budget = |fields: &str| format!("{{budget: {{{fields}}}}}");
    assert_eq!(
        changes(
            &budget("daily_limit_usd: 5, action_on_exceed: alert"),
            &budget("daily_limit_usd: 5, action_on_exceed: suspend")
        ),
        ["narrows budget.action_on_exceed: from alert to suspend"]
    );
    // What only warns may be any amount.
    assert_eq!(
        changes(
            &budget("daily_limit_usd: 5, action_on_exceed: alert"),
            &budget("daily_limit_usd: 9, action_on_exceed: alert")
        ),
        ["alters budget.daily_limit_usd (per agent, UTC): from $5.00 to $9.00"]
    );
    assert_eq!(
        changes(
            "{data: {mask_pii: true, applies_to: requests, exempt_tools: [a, b]}, tools: {t: {cost_usd: 1}}}",
            "{data: {mask_pii: true, applies_to: responses, exempt_tools: [b, c]}, tools: {t: {cost_usd: 2}}}"
        ),
        [
            "alters data.applies_to: from requests to responses",
            "widens data.exempt_tools: adds c",
            "narrows data.exempt_tools: removes a",
            "narrows tools.t.cost_usd: from $1.00 to $2.00",
        ]
    );
}

#[test]
fn prices_are_told_whole_and_in_the_units_they_are_written_in() {
    let price = |more: &str| {
        format!(
            "{{prices: {{m: {{input_usd_per_million: 2.5, output_usd_per_million: 0.075{more}}}}}}}"
        )
    };
    assert_eq!(
        changes(
            &price(""),
            &price(", cached_input_usd_per_million: 0.000001, max_output_tokens: 9")
        ),
        [
            "alters prices.m: from input $2.50, output $0.075 per million tokens to input $2.50, output $0.075, cached input $0.000001 per million tokens, at most 9 output tokens"
        ]
    );
}

/// With what [`WITH_AGENT_TOOLS`] has, everything that a document can say.
const FULL: &str = r#"{"apiVersion": "tollgate/v1", "kind": "Policy",
"metadata": {"name": "full", "version": "1", "description": "for people", "rollout": "enforce", "replaces": "0"},
"spec": {"scope": "global",
"schedule": {"active_hours": {"start": "09:00", "end": "18:00", "timezone": "UTC"}},
"network": {"allowlist": ["a.example"], "denylist": ["private"]},
"capabilities": {"allow": ["model:a", "mcp_tool:a", "network_outbound", "file_read"],
    "deny": ["model:b", "mcp_tool:b", "network_outbound", "file_write"]},
"tools": {"git": {"allow": false, "limit_per_hour": 1, "cost_usd": 1, "requires_approval_if": "true"},
    "*": {"allow": false, "limit_per_hour": 1, "cost_usd": 1, "requires_approval_if": "true"}},
"approval": {"timeout_seconds": 20, "escalation_role": "admin", "notify_channels": ["ops"], "auto_deny_on_timeout": false},
"data": {"sensitive_patterns": ["abc"], "action": "redact", "mask_pii": true, "tool_output_is_data": true, "applies_to": "requests",
    "exempt_tools": ["git"]},
"prices": {"m": {"input_usd_per_million": 1, "output_usd_per_million": 2, "cached_input_usd_per_million": 1, "max_output_tokens": 9}},
"budget": {"hourly_limit_usd": 1, "daily_limit_usd": 2, "weekly_limit_usd": 3, "monthly_limit_usd": 4,
    "hourly_limit_tokens": 1, "daily_limit_tokens": 2, "weekly_limit_tokens": 3, "monthly_limit_tokens": 4,
    "per": "team", "each": "model", "timezone": "Asia/Tokyo", "action_on_exceed": "suspend", "warn_at": [50], "on_lost": "release",
    "lower_max_tokens": true, "unknown_model": {"input_usd_per_million": 1, "output_usd_per_million": 2}},
"rate": {"requests_per_minute": 5, "per": "team", "each": "model"},
"agent": {"budget": {"max_tokens": 1, "max_cost_usd": 1, "max_iterations": 1},
    "termination": {"on_budget_exceeded": true, "on_timeout": 5, "on_goal_achieved": true, "error_threshold": 1, "max_iterations": 1},
    "execution": {"timeout_seconds": 5, "enable_pause": false, "enable_cancel": false},
    "audit": {"retention_days": 5, "include_message_content": true}}}}"#;

const WITH_AGENT_TOOLS: &str = r#"{"apiVersion": "tollgate/v1", "kind": "Policy", "metadata": {"name": "full"},
"spec": {"approval_timeout_secs": 10, "agent": {"id": "00000000-0000-4000-8000-00000000000a",
    "tools": [{"name": "git", "enabled": false, "requires_approval": true,
        "approval_config": {"timeout_seconds": 5, "auto_deny_on_timeout": false, "notify_channels": ["ops"]}},
        {"name": "mail", "approval_config": {"timeout_seconds": 5}}]}}}"#;

/// Fields that leave a document as it is, whatever they say; and whom one is for, which cannot be others where there are prices, and is tried above.
const NOT_TRIED: &[&str] = &[
    "/apiVersion",
    "/kind",
    "/spec/agent/name",
    "/spec/agent/audit/log_all_events",
    "/spec/scope",
];

/// Where something stands that has no parts but items of lists, which count as parts.
fn leaves(value: &Value, path: String, out: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                leaves(value, format!("{path}/{key}"), out);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                leaves(value, format!("{path}/{index}"), out);
            }
        }
        _ => out.push(path),
    }
}

fn one(value: &Value) -> Option<Document> {
    let parsed = parse("case.yaml", value.to_string().as_bytes(), false);
    let mut document = parsed.documents.into_iter().next()?;
    // Where it stands says nothing.
    document.at = Position { line: 1, column: 1 };
    if let Some(replaces) = &mut document.replaces {
        replaces.at = document.at;
    }
    Some(document)
}

/// Every way to write one leaf otherwise that can be read, or to leave it away.
fn otherwise(policy: &Value, leaf: &str) -> Vec<Document> {
    let mut others = vec![json!(true), json!(false), json!(3), json!(4), json!(7)];
    for word in [
        "3",
        "global",
        "team:b",
        "10:30",
        "Europe/Berlin",
        "other",
        "model:other",
        "mcp_tool:other",
        "terminal_exec",
        "shadow",
        "org",
        "responses",
        "block",
        "alert",
        "deny",
        "forfeit",
    ] {
        others.push(json!(word));
    }
    let mut found = Vec::new();
    for other in others {
        let mut policy = policy.clone();
        *policy.pointer_mut(leaf).unwrap() = other;
        found.extend(one(&policy));
    }
    let mut policy = policy.clone();
    let (parent, key) = leaf.rsplit_once('/').unwrap();
    match policy.pointer_mut(parent).unwrap() {
        Value::Object(members) => {
            members.remove(key);
        }
        Value::Array(items) => {
            items.remove(key.parse().unwrap());
        }
        _ => unreachable!(),
    }
    found.extend(one(&policy));
    found
}

#[test]
fn whatever_differs_is_told() {
    for policy in [FULL, WITH_AGENT_TOOLS] {
        let policy: Value = serde_json::from_str(policy).unwrap();
        let document = one(&policy).expect("it is read");
        let mut all = Vec::new();
        leaves(&policy, String::new(), &mut all);
        for leaf in all {
            if NOT_TRIED.contains(&&*leaf) {
                continue;
            }
            let mut others = otherwise(&policy, &leaf);
            others.retain(|other| *other != document);
            assert!(!others.is_empty(), "{leaf} can be something else");
            for other in others {
                let (old, new) = ([document.clone()], [other]);
                assert_ne!(diff(&old, &new), [], "{leaf}: {new:?}");
                assert_ne!(diff(&new, &old), [], "{leaf}: {new:?}");
            }
        }
    }
}

/// So that the test above tries every field.
#[test]
fn the_full_policies_have_every_field_of_the_schema() {
    fn keys(schema: &Value, found: &mut BTreeSet<String>) {
        match schema {
            Value::Object(members) => {
                if let Some(Value::Object(properties)) = members.get("properties") {
                    found.extend(properties.keys().cloned());
                }
                members.values().for_each(|value| keys(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| keys(value, found)),
            _ => {}
        }
    }
    let mut known = BTreeSet::new();
    keys(&json_schema(), &mut known);
    assert!(known.len() > 50, "{known:?}");
    for key in known {
        let written = format!("\"{key}\":");
        let idle = NOT_TRIED
            .iter()
            .any(|path| path.ends_with(&format!("/{key}")));
        assert!(
            idle || FULL.contains(&written) || WITH_AGENT_TOOLS.contains(&written),
            "{key}"
        );
    }
}

#[test]
fn documents_come_go_and_move() {
    let old = documents(&(v1("gone", "{}") + &v1("moved", "{scope: 'team:a'}")));
    let new = documents(&(v1("moved", "{scope: 'team:b'}") + &v1("new", "{}")));
    let found: Vec<_> = diff(&old, &new)
        .into_iter()
        .map(|change| {
            (
                change.document,
                change.scope.to_string(),
                change.effect,
                change.message,
            )
        })
        .collect();
    let expected = [
        ("gone", "global", Effect::Widens, "is gone"),
        (
            "moved",
            "team:a",
            Effect::Widens,
            "no longer applies to team:a",
        ),
        ("moved", "team:b", Effect::Narrows, "now applies to team:b"),
        ("new", "global", Effect::Narrows, "is new"),
    ]
    .map(|(document, scope, effect, message)| {
        (
            document.to_string(),
            scope.to_string(),
            effect,
            message.to_string(),
        )
    });
    assert_eq!(found, expected);
}
