//! What a change of policies does, in words.

use tollgate_policy::{Document, Effect, diff, parse};

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

#[test]
fn a_document_in_shadow_narrows_nothing() {
    let document = |rollout: &str, budget: u32| {
        documents(&format!(
            "{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: a, rollout: {rollout}}}, spec: {{budget: {{daily_limit_usd: {budget}}}}}}}"
        ))
    };
    let said = |old: &[Document], new: &[Document]| -> Vec<String> {
        let changes = diff(old, new).into_iter();
        let shown = changes.map(|c| format!("{} {}: {}", c.effect, c.rule, c.message));
        shown.collect()
    };
    let (enforced, shadow) = (document("enforce", 5), document("shadow", 5));
    assert_eq!(said(&[], &shadow), ["alters : is new, in shadow"]);
    assert_eq!(said(&shadow, &[]), ["alters : is gone"]);
    assert_eq!(
        said(&shadow, &document("shadow", 4)),
        ["alters budget.daily_limit_usd (per agent, UTC): from $5.00 to $4.00"]
    );
    assert_eq!(
        said(&shadow, &enforced),
        ["narrows : was in shadow and is enforced now"]
    );
    assert_eq!(
        said(&enforced, &shadow),
        ["widens : was enforced and is in shadow now"]
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
        ["narrows capabilities.allow (model): is new: x"]
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
        [
            "alters tools.t.requires_approval_if: asked for within 60 s; now within 60 s, by org-admin, told to ops, sec"
        ]
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
