//! What a change of policies does, in words.

use tollgate_policy::{Change, Document, Effect, diff, diff_of_some, parse};

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
