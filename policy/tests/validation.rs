//! What a document may say, row by row: each case gives exactly the findings written beside it.

use tollgate_policy::{Diagnostic, Parsed, codes, parse};

/// `code path`, one per finding, errors marked with `!`; without [`open`].
fn findings(text: &str) -> Vec<String> {
    let mut all = shown(&parse("case.yaml", text.as_bytes(), false));
    all.retain(|finding| !["P304 ", "P304 spec"].contains(&finding.as_str()));
    all
}

/// Whether it is told that a document has no rule. Most cases here have none: they are about one field.
fn open(text: &str) -> bool {
    let parsed = parse("case.yaml", text.as_bytes(), false);
    let of_all = |d: &Diagnostic| d.code == codes::BROAD && ["", "spec"].contains(&&*d.path);
    parsed.diagnostics.iter().any(of_all)
}

fn shown(parsed: &Parsed) -> Vec<String> {
    let mark = |d: &Diagnostic| if d.is_error() { "!" } else { "" };
    let all = parsed.diagnostics.iter();
    all.map(|d| format!("{}{} {}", mark(d), d.code, d.path))
        .collect()
}

/// A `tollgate/v1` document with this `spec`, written in flow style.
fn v1(spec: &str) -> String {
    format!("{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: case}}, spec: {spec}}}")
}

#[track_caller]
fn all(cases: &[(&str, &[&str])]) {
    for (text, expected) in cases {
        assert_eq!(findings(text), *expected, "findings of: {text}");
    }
}

#[test]
fn a_file_without_a_known_key_is_no_policy() {
    // A compose file, a package, a workflow: `version` alone makes no policy either.
    all(&[
        (
            "version: '3'\nservices: {web: {image: nginx}}\nnetworks: {back: {}}\n",
            &["!P006 ", "P101 services", "P101 networks"],
        ),
        (
            r#"{"name": "app", "version": "1.0.0", "dependencies": {}}"#,
            &["!P006 ", "P101 name", "P101 dependencies"],
        ),
        (
            "on: push\njobs: {test: {runs-on: ubuntu}}\n",
            &["!P006 ", "P101 on", "P101 jobs"],
        ),
        ("netwrok: {allowlist: []}", &["!P006 ", "P101 netwrok"]),
        ("{}", &["!P006 "]),
        ("scope: global\n---\nname: x\n", &["!P006 ", "P101 name"]),
        ("scope: global\nname: x\n", &["P101 name"]),
    ]);
    let parsed = parse("compose.yaml", b"services: {}", false);
    assert!(parsed.documents.is_empty());
    let message = &parsed.diagnostics[0].message;
    assert!(message.contains("keep the file apart"), "{message}");
}

#[test]
fn a_document_that_restricts_nothing_is_warned_about() {
    for text in [
        "scope: team:a",
        "agent: {id: 01234567-89ab-cdef-0123-456789abcdef}",
        "tools: {bash: {allow: true}}",
        "capabilities: {allow: [network_outbound], deny: [file_read]}",
        "approval: {timeout_seconds: 5}",
        "schedule: {}",
        "data: {sensitive_patterns: []}",
        "scope: team:a\nnetwrok: {}",
        &v1("{}"),
        &v1("{rate: {requests_per_minute: 0}}"),
        &v1("{network: {denylist: []}}"),
    ] {
        assert!(open(text), "{text}");
    }
    for text in [
        "network: {}",
        "schedule: {active_hours: {start: '09:00', end: '18:00', timezone: UTC}}",
        "tools: {bash: {allow: false}}",
        "tools: {bash: {limit_per_hour: 1}}",
        "tools: {bash: {requires_approval_if: 'true'}}",
        "capabilities: {allow: ['model:a']}",
        "capabilities: {deny: [network_outbound]}",
        "data: {sensitive_patterns: [x]}",
        "budget: {daily_limit_usd: 1}",
        "agent: {budget: {max_tokens: 1}}",
        "agent: {audit: {retention_days: 1}}",
        "agent: {execution: {enable_pause: false}}",
        &v1("{network: {denylist: [private]}}"),
        &v1("{prices: {m: {input_usd_per_million: 1, output_usd_per_million: 1}}}"),
        &v1("{rate: {requests_per_minute: 1}}"),
        &v1("{data: {mask_pii: true}}"),
        &v1("{data: {tool_output_is_data: true}}"),
        &v1("{tools: {web: {cost_usd: 1}}}"),
        // Another thing is to be mended first.
        "scope: nobody",
    ] {
        assert!(!open(text), "{text}");
    }
    let at = |text: &str| {
        let parsed = parse("case.yaml", text.as_bytes(), false);
        let found = &parsed.diagnostics[0];
        (found.line, found.column, found.path.clone())
    };
    assert_eq!(at("# mine\nscope: global\n"), (2, 1, String::new()));
    let enveloped =
        "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {name: a}\nspec: {scope: global}\n";
    assert_eq!(at(enveloped), (4, 1, "spec".to_string()));
}

#[test]
fn network_allowlist_entries_must_not_be_empty() {
    all(&[
        (
            "network: {allowlist: ['']}",
            &["!P105 network.allowlist[0]"],
        ),
        (
            "network: {allowlist: [a.example, '  ']}",
            &["!P105 network.allowlist[1]"],
        ),
        ("network: {allowlist: []}", &[]),
        ("network: {}", &[]),
        ("network:", &["!P102 network"]),
        (
            "network: {allowlist: a.example}",
            &["!P102 network.allowlist"],
        ),
    ]);
}

#[test]
fn active_hours_need_start_end_and_timezone() {
    const HOURS: &str = "schedule.active_hours";
    let full = |start: &str, end: &str, zone: &str| {
        format!("schedule: {{active_hours: {{start: {start}, end: {end}, timezone: {zone}}}}}")
    };
    assert_eq!(findings(&full("09:00", "18:00", "UTC")), [""; 0]);
    assert_eq!(
        findings(&full("'00:00'", "'23:59'", "asia/taipei")),
        [""; 0]
    );
    assert_eq!(
        findings("schedule: {active_hours: {}}"),
        [
            format!("!P103 {HOURS}.start"),
            format!("!P103 {HOURS}.end"),
            format!("!P103 {HOURS}.timezone"),
        ]
    );
    for time in [
        "9:00",
        "09:0",
        "24:00",
        "09:60",
        "0900",
        "'09:00:00'",
        "'-1:00'",
        "'+9:00'",
        "noon",
    ] {
        assert_eq!(
            findings(&full(time, "'23:00'", "UTC")),
            [format!("!P203 {HOURS}.start")],
            "start {time}"
        );
        assert_eq!(
            findings(&full("'00:00'", time, "UTC")),
            [format!("!P203 {HOURS}.end")],
            "end {time}"
        );
    }
    for (start, end) in [("'18:00'", "'09:00'"), ("'09:00'", "'09:00'")] {
        assert_eq!(
            findings(&full(start, end, "UTC")),
            [format!("!P203 {HOURS}.end")],
            "{start} to {end}"
        );
    }
    // Over midnight, in the wider language; never all day by accident.
    let wide = |start: &str, end: &str| {
        findings(&v1(&format!(
            "{{schedule: {{active_hours: {{start: '{start}', end: '{end}', timezone: UTC}}}}}}"
        )))
    };
    assert_eq!(wide("22:00", "06:00"), [""; 0]);
    assert_eq!(wide("22:00", "22:00"), [format!("!P203 spec.{HOURS}.end")]);
    for zone in ["Mars/Olympus", "''", "UTC+1", "Etc/Unknown", "Local"] {
        assert_eq!(
            findings(&full("'09:00'", "'18:00'", zone)),
            [format!("!P204 {HOURS}.timezone")],
            "zone {zone}"
        );
    }
    assert_eq!(
        findings("schedule: {}"),
        ["P303 schedule"],
        "nothing to enforce"
    );
}

#[test]
fn a_limit_is_not_below_that_of_a_shorter_period() {
    let spec = |fields: &str| findings(&v1(&format!("{{budget: {{{fields}}}}}")));
    assert_eq!(
        spec("hourly_limit_usd: 1, daily_limit_usd: 2, weekly_limit_usd: 3, monthly_limit_usd: 4"),
        [""; 0]
    );
    assert_eq!(
        spec("weekly_limit_usd: 3, hourly_limit_usd: 4"),
        ["!P214 spec.budget.weekly_limit_usd"]
    );
    assert_eq!(
        spec("hourly_limit_tokens: 10, monthly_limit_tokens: 9, daily_limit_usd: 1"),
        ["!P214 spec.budget.monthly_limit_tokens"]
    );
    assert_eq!(
        findings("budget: {weekly_limit_usd: 3, hourly_limit_tokens: 4}"),
        [
            "!P107 budget.weekly_limit_usd",
            "!P107 budget.hourly_limit_tokens"
        ]
    );
}

#[test]
fn budgets_must_be_above_zero_and_in_order() {
    all(&[
        (
            "budget: {daily_limit_usd: 0}",
            &["!P205 budget.daily_limit_usd"],
        ),
        (
            "budget: {daily_limit_usd: -1}",
            &["!P205 budget.daily_limit_usd"],
        ),
        ("budget: {daily_limit_usd: 0.000000001}", &[]),
        (
            "budget: {daily_limit_usd: 0.0000000001}",
            &["!P205 budget.daily_limit_usd"],
        ),
        (
            "budget: {daily_limit_usd: lots}",
            &["!P205 budget.daily_limit_usd"],
        ),
        (
            "budget: {daily_limit_usd: .inf}",
            &["!P205 budget.daily_limit_usd"],
        ),
        (
            "budget: {daily_limit_usd: null}",
            &["!P102 budget.daily_limit_usd"],
        ),
        (
            "budget: {daily_limit_usd: [5]}",
            &["!P102 budget.daily_limit_usd"],
        ),
        (
            "budget: {monthly_limit_usd: 0}",
            &["!P205 budget.monthly_limit_usd"],
        ),
        ("budget: {monthly_limit_usd: 5}", &[]),
        (
            "budget: {daily_limit_usd: 10, monthly_limit_usd: 9.99}",
            &["!P214 budget.monthly_limit_usd"],
        ),
        ("budget: {daily_limit_usd: 10, monthly_limit_usd: 10}", &[]),
        (
            "budget: {daily_limit_usd: 1, timezone: Nowhere/City}",
            &["!P204 budget.timezone"],
        ),
        ("budget: {daily_limit_usd: 1, timezone: Europe/Berlin}", &[]),
        ("budget: {daily_limit_usd: 1, action_on_exceed: deny}", &[]),
        (
            "budget: {daily_limit_usd: 1, action_on_exceed: suspend}",
            &[],
        ),
        (
            "budget: {daily_limit_usd: 1, action_on_exceed: panic}",
            &["!P207 budget.action_on_exceed"],
        ),
    ]);
}

#[test]
fn sensitive_patterns_must_be_re2() {
    all(&[
        (
            "data: {sensitive_patterns: ['(']}",
            &["!P208 data.sensitive_patterns[0]"],
        ),
        (
            "data: {sensitive_patterns: ['a', '(?=b)']}",
            &["!P208 data.sensitive_patterns[1]"],
        ),
        (
            "data: {sensitive_patterns: ['']}",
            &["!P105 data.sensitive_patterns[0]"],
        ),
        (
            "data: {sensitive_patterns: ['a*']}",
            &["!P210 data.sensitive_patterns[0]"],
        ),
        (
            "data: {sensitive_patterns: ['a**']}",
            &["!P209 data.sensitive_patterns[0]"],
        ),
        (
            "data: {sensitive_patterns: ['a{1001}']}",
            &["!P211 data.sensitive_patterns[0]"],
        ),
        (
            "data: {sensitive_patterns: [{a: b}]}",
            &["!P102 data.sensitive_patterns[0]"],
        ),
        ("data: {sensitive_patterns: [secret]}", &[]),
    ]);
    let list = |count: usize| format!("data: {{sensitive_patterns: [{}]}}", "a,".repeat(count));
    assert_eq!(findings(&list(64)), [""; 0]);
    assert_eq!(findings(&list(65)), ["!P004 data.sensitive_patterns"]);
    let long = |chars: usize| format!("data: {{sensitive_patterns: ['{}']}}", "é".repeat(chars));
    assert_eq!(findings(&long(1_024)), [""; 0]);
    assert_eq!(findings(&long(1_025)), ["!P211 data.sensitive_patterns[0]"]);
}

#[test]
fn approval_conditions_name_levels_zero_to_three() {
    let bad = "!P212 tools.t.requires_approval_if";
    for (condition, known) in [
        ("governance_level >= L2", true),
        ("governance_level == L0 || governance_level == L3", true),
        ("governance_level >= L4", false),
        ("governance_level>L10", false),
        ("model != 'L4'", true),
        ("model != 'it\\\\'s L4' && L4", false),
        ("model == \\\"L9\\\"", true),
        ("XL4", false),
        ("", false),
        ("  ", false),
    ] {
        let text = format!("tools: {{t: {{requires_approval_if: \"{condition}\"}}}}");
        let expected: &[&str] = if known { &[] } else { &[bad] };
        assert_eq!(findings(&text), expected, "condition {condition}");
    }
}

#[test]
fn tools_are_named_exactly() {
    all(&[
        ("tools: {bash: {allow: false}}", &[]),
        ("tools: {bash: {}}", &["P303 tools.bash"]),
        ("tools: {bash: }", &["!P102 tools.bash"]),
        ("tools: {bash: {allow: no}}", &["!P102 tools.bash.allow"]),
        (
            "tools: {bash: {allow: 'false'}}",
            &["!P102 tools.bash.allow"],
        ),
        ("tools: {'ba*': {allow: false}}", &["!P106 tools[\"ba*\"]"]),
        ("tools: {'': {allow: false}}", &["!P105 tools[\"\"]"]),
        (
            "tools: {a.b: {allow: maybe}}",
            &["!P102 tools[\"a.b\"].allow"],
        ),
        (
            "tools: {bash: {limit_per_hour: 10}, other: {limit_per_hour: 0}}",
            &[],
        ),
        (
            "{scope: 'tool:bash', tools: {bash: {limit_per_hour: 10}}}",
            &[],
        ),
        (
            "tools: {bash: {limit_per_hour: -1}}",
            &["!P206 tools.bash.limit_per_hour"],
        ),
        (
            "tools: {bash: {limit_per_hour: 1.5}}",
            &["!P102 tools.bash.limit_per_hour"],
        ),
        (
            "tools: {bash: {limit_per_hour: '10'}}",
            &["!P102 tools.bash.limit_per_hour"],
        ),
        (
            "tools: {bash: {limit_per_hour: 010}}",
            &["!P206 tools.bash.limit_per_hour"],
        ),
        ("tools: []", &["!P102 tools"]),
    ]);
}

#[test]
fn capabilities_are_known_words() {
    all(&[
        (
            "capabilities: {allow: ['model:gpt-4o', 'mcp_tool:git', network_outbound]}",
            &[],
        ),
        ("capabilities: {deny: ['model:gpt-*']}", &[]),
        (
            "capabilities: {allow: [fly]}",
            &["!P213 capabilities.allow[0]"],
        ),
        (
            "capabilities: {deny: ['model:']}",
            &["!P213 capabilities.deny[0]"],
        ),
        (
            "capabilities: {deny: ['mcp_tool:']}",
            &["!P213 capabilities.deny[0]"],
        ),
        (
            "capabilities: {deny: [File_Read]}",
            &["!P213 capabilities.deny[0]"],
        ),
        (
            "capabilities: {deny: ['tool:bash']}",
            &["!P213 capabilities.deny[0]"],
        ),
        (
            "capabilities: {deny: [terminal_exec]}",
            &["P302 capabilities.deny[0]"],
        ),
        ("capabilities: {allow: []}", &["P303 capabilities.allow"]),
        ("capabilities: {allow: null}", &["!P102 capabilities.allow"]),
    ]);
}

#[test]
fn approval_timeouts_are_above_zero() {
    all(&[
        ("approval_timeout_secs: 0", &["!P206 approval_timeout_secs"]),
        (
            "approval_timeout_secs: -5",
            &["!P206 approval_timeout_secs"],
        ),
        (
            "approval_timeout_secs: soon",
            &["!P102 approval_timeout_secs"],
        ),
        (
            "approval_timeout_secs: 300",
            &["P303 approval_timeout_secs"],
        ),
        (
            "approval: {timeout_seconds: 0}",
            &["P303 approval", "!P206 approval.timeout_seconds"],
        ),
        (
            "approval: {escalation_role: ''}",
            &["P303 approval", "!P105 approval.escalation_role"],
        ),
        (
            "approval_timeout_secs: 60\napproval: {timeout_seconds: 9, escalation_role: org-admin}\ntools: {t: {requires_approval_if: 'true'}}",
            &[],
        ),
        (
            "approval: {auto_deny_on_timeout: false, notify_channels: [ops]}",
            &[
                "P303 approval",
                "!P107 approval.auto_deny_on_timeout",
                "!P107 approval.notify_channels",
            ],
        ),
        (
            &v1(
                "{tools: {t: {requires_approval_if: 'true'}}, approval: {auto_deny_on_timeout: no, notify_channels: ['', ops]}}",
            ),
            &[
                "!P102 spec.approval.auto_deny_on_timeout",
                "!P105 spec.approval.notify_channels[0]",
            ],
        ),
    ]);
}

#[test]
fn scopes_have_a_kind_and_an_identifier() {
    all(&[
        ("scope: global", &[]),
        ("scope: org:acme", &[]),
        ("scope: team:platform", &[]),
        ("scope: tool:slack-mcp", &[]),
        ("scope: agent:01234567-89ab-cdef-0123-456789abcdef", &[]),
        (
            "scope: agent:0123456789abcdef0123456789abcdef",
            &["!P201 scope"],
        ),
        (
            "scope: agent:01234567-89ab-cdef-0123-456789abcdeg",
            &["!P201 scope"],
        ),
        (
            "scope: agent:01234567-89ab-cdef-0123-456789abcdef-",
            &["!P201 scope"],
        ),
        ("scope: 'agent:'", &["!P201 scope"]),
        ("scope: 'org:'", &["!P201 scope"]),
        ("scope: 'team:'", &["!P201 scope"]),
        ("scope: 'tool:'", &["!P201 scope"]),
        ("scope: 'team: platform'", &["!P201 scope"]),
        ("scope: project:foo", &["!P201 scope"]),
        ("scope: Global", &["!P201 scope"]),
        ("scope: global:all", &["!P201 scope"]),
        ("scope: ''", &["!P201 scope"]),
        // Nobody has such a name, so nothing would be covered.
        ("scope: 'team:*'", &["!P201 scope"]),
        ("scope: org:acme*", &["!P201 scope"]),
        ("scope: tool:gmail_*", &["!P201 scope"]),
        ("scope: [global]", &["!P102 scope"]),
    ]);
    let upper = "scope: agent:01234567-89AB-CDEF-0123-456789ABCDEF";
    let parsed = parse("case.yaml", upper.as_bytes(), false);
    let scope = parsed.documents[0].scope.to_string();
    assert_eq!(scope, "agent:01234567-89ab-cdef-0123-456789abcdef");
}

#[test]
fn unknown_keys_warn_and_strict_makes_them_errors() {
    let text = "netwrok: {}\nbudget: {dayly_limit_usd: 5}\ncolour: red\n";
    let parsed = parse("case.yaml", text.as_bytes(), false);
    assert_eq!(
        shown(&parsed),
        [
            "P101 netwrok",
            "P304 ",
            "P303 budget",
            "P101 budget.dayly_limit_usd",
            "P101 colour"
        ]
    );
    let meant: Vec<_> = parsed
        .diagnostics
        .iter()
        .map(|d| d.suggestion.as_deref())
        .collect();
    assert_eq!(
        meant,
        [Some("network"), None, None, Some("daily_limit_usd"), None]
    );
    assert!(
        parsed.diagnostics[0]
            .message
            .contains("did you mean `network`?")
    );
    assert_eq!(parsed.documents.len(), 1, "the document is accepted");

    let strict = parse("case.yaml", text.as_bytes(), true);
    assert_eq!(
        shown(&strict),
        [
            "!P101 netwrok",
            "!P101 budget.dayly_limit_usd",
            "!P101 colour"
        ]
    );
    assert!(strict.documents.is_empty());
}

#[test]
fn duplicate_keys_are_errors_at_every_level() {
    all(&[
        ("scope: global\nscope: org:a\n", &["!P005 scope"]),
        (
            "network: {allowlist: [a.example], allowlist: []}",
            &["!P005 network.allowlist"],
        ),
        ("tools: {a: {allow: true}, \"a\": {}}", &["!P005 tools.a"]),
        (
            r#"{"scope": "global", "sc\u006fpe": "global"}"#,
            &["!P005 scope"],
        ),
        (&v1("{tools: {}, tools: {}}"), &["!P005 spec.tools"]),
    ]);
}

#[test]
fn envelopes_are_complete() {
    all(&[
        (
            "apiVersion: agent-assembly/v1",
            &["!P103 kind", "!P103 metadata", "!P103 spec"],
        ),
        (
            "spec: {}",
            &["!P103 apiVersion", "!P103 kind", "!P103 metadata"],
        ),
        (
            "{apiVersion: agent-assembly/v2, kind: Polizei, metadata: {}, spec: []}",
            &[
                "!P104 apiVersion",
                "!P207 kind",
                "!P103 metadata.name",
                "!P102 spec",
            ],
        ),
        (
            "{apiVersion: tollgate/v1, kind: Policy, metadata: {name: ''}, spec: {}}",
            &["!P105 metadata.name"],
        ),
        (
            "{apiVersion: tollgate/v1, kind: Policy, metadata: {name: \"a\\tb\"}, spec: {}}",
            &["!P106 metadata.name"],
        ),
        (
            "{apiVersion: tollgate/v1, kind: Policy, metadata: {name: a}, network: {}, spec: {}}",
            &["!P108 network"],
        ),
        ("[]", &["!P102 "]),
        ("just text", &["!P102 "]),
        ("", &["!P006 "]),
        ("---\n---\n# nothing\n", &["!P006 "]),
        ("agent: {name: x}", &["P303 agent.name"]),
    ]);
}

#[test]
fn additions_need_tollgate_v1() {
    all(&[
        ("rate: {requests_per_minute: 5}", &["!P107 rate"]),
        (
            "budget: {daily_limit_tokens: 5, per: team}",
            &["!P107 budget.daily_limit_tokens", "!P107 budget.per"],
        ),
        (
            &v1("{rate: {requests_per_minute: 0}}"),
            &["P303 spec.rate.requests_per_minute"],
        ),
        (&v1("{rate: {requests_per_minute: 5, per: workspace}}"), &[]),
        (
            &v1("{rate: {per: team}}"),
            &["!P103 spec.rate.requests_per_minute"],
        ),
        (
            &v1("{rate: {requests_per_minute: 5, per: planet}}"),
            &["!P207 spec.rate.per"],
        ),
        (
            &v1("{rate: {requests_per_minute: many}}"),
            &["!P102 spec.rate.requests_per_minute"],
        ),
        (&v1("{budget: {daily_limit_tokens: 1, per: org}}"), &[]),
        (
            &v1("{budget: {daily_limit_tokens: 0}}"),
            &["!P206 spec.budget.daily_limit_tokens"],
        ),
        (
            &v1("{budget: {daily_limit_tokens: 9223372036854775808}}"),
            &["!P206 spec.budget.daily_limit_tokens"],
        ),
        (
            &v1("{budget: {daily_limit_usd: 1, unknown_model: deny}}"),
            &[],
        ),
        (
            &v1("{budget: {unknown_model: deny}}"),
            &["P303 spec.budget"],
        ),
        (
            &v1("{budget: {daily_limit_tokens: 1, unknown_model: deny}}"),
            &["P303 spec.budget.unknown_model"],
        ),
        (
            &v1(
                "{budget: {unknown_model: deny, lower_max_tokens: true}, agent: {budget: {max_tokens: 1}}}",
            ),
            &["P303 spec.budget.unknown_model"],
        ),
        (
            &v1("{budget: {unknown_model: deny}, agent: {budget: {max_cost_usd: 1}}}"),
            &[],
        ),
        (&v1("{budget: {daily_limit_usd: 1, on_lost: release}}"), &[]),
        (
            &v1(
                "{budget: {daily_limit_usd: 1, each: model}, rate: {requests_per_minute: 1, each: model}}",
            ),
            &[],
        ),
        (
            &v1("{rate: {requests_per_minute: 1, each: tool}}"),
            &["!P207 spec.rate.each"],
        ),
        (
            &v1("{scope: 'tool:bash', rate: {requests_per_minute: 1, each: model}}"),
            &[],
        ),
        (
            &v1("{budget: {daily_limit_usd: 1, lower_max_tokens: true}}"),
            &[],
        ),
        (
            &v1("{budget: {daily_limit_usd: 1, lower_max_tokens: most}}"),
            &["!P102 spec.budget.lower_max_tokens"],
        ),
        (
            &v1("{budget: {daily_limit_usd: 1, action_on_exceed: alert, lower_max_tokens: true}}"),
            &["P303 spec.budget.lower_max_tokens"],
        ),
        (
            &v1("{budget: {daily_limit_usd: 1, on_lost: keep}}"),
            &["!P207 spec.budget.on_lost"],
        ),
        (
            &v1("{budget: {daily_limit_usd: 1, unknown_model: allow}}"),
            &["!P207 spec.budget.unknown_model"],
        ),
        (
            &v1(
                "{budget: {daily_limit_usd: 1, unknown_model: {input_usd_per_million: '2.50', output_usd_per_million: 10}}}",
            ),
            &[],
        ),
        (
            &v1(
                "{budget: {daily_limit_usd: 1, unknown_model: {input_usd_per_million: 0.0000001}}}",
            ),
            &[
                "!P103 spec.budget.unknown_model.output_usd_per_million",
                "!P205 spec.budget.unknown_model.input_usd_per_million",
            ],
        ),
    ]);
}

#[test]
fn prices_are_of_models_and_for_everybody() {
    let prices = |of: &str| v1(&format!("{{prices: {of}}}"));
    all(&[
        (
            &prices(
                "{m: {input_usd_per_million: 0, output_usd_per_million: 1.5, cached_input_usd_per_million: 0.1, max_output_tokens: 5}}",
            ),
            &[],
        ),
        (
            &prices("{m: {input_usd_per_million: 1}}"),
            &["!P103 spec.prices.m.output_usd_per_million"],
        ),
        (
            &prices("{'gpt*': {input_usd_per_million: 1, output_usd_per_million: 1}}"),
            &["!P106 spec.prices[\"gpt*\"]"],
        ),
        (
            &prices(
                "{m: {input_usd_per_million: -1, output_usd_per_million: 1, max_output_tokens: 0}}",
            ),
            &[
                "!P205 spec.prices.m.input_usd_per_million",
                "!P206 spec.prices.m.max_output_tokens",
            ],
        ),
        (
            &v1(
                "{scope: 'team:a', prices: {m: {input_usd_per_million: 1, output_usd_per_million: 1}}}",
            ),
            &["!P201 spec.prices"],
        ),
        ("prices: {}", &["!P107 prices"]),
    ]);
}

#[test]
fn rollout_and_replaces_are_of_tollgate_v1() {
    let with = |fields: &str| {
        findings(&format!(
            "{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: case, {fields}}}, spec: {{}}}}"
        ))
    };
    assert_eq!(with("rollout: enforce"), [""; 0]);
    assert_eq!(with("rollout: shadow, replaces: 1.10"), [""; 0]);
    assert_eq!(with("rollout: dark"), ["!P207 metadata.rollout"]);
    assert_eq!(with("rollout: true"), ["!P207 metadata.rollout"]);
    assert_eq!(with("replaces: ''"), ["!P105 metadata.replaces"]);
    assert_eq!(with("replaces: [1]"), ["!P102 metadata.replaces"]);
    let older = "{apiVersion: agent-assembly/v1, kind: Policy, metadata: {name: case, rollout: shadow, replaces: '1'}, spec: {}}";
    assert_eq!(
        findings(older),
        ["!P107 metadata.rollout", "!P107 metadata.replaces"]
    );
}

#[test]
fn tool_documents_count_the_calls_that_use_it() {
    all(&[
        (
            &v1(
                "{scope: 'tool:bash', budget: {daily_limit_usd: 1}, rate: {requests_per_minute: 1}, tools: {Bash: {limit_per_hour: 1}}}",
            ),
            &[],
        ),
        (
            &v1(
                "{scope: 'tool:bash', budget: {daily_limit_usd: 1, per: team}, rate: {requests_per_minute: 1, per: workspace}}",
            ),
            &[],
        ),
        (
            &v1(
                "{scope: 'tool:bash', budget: {daily_limit_usd: 1, each: model}, rate: {requests_per_minute: 1, per: org, each: model}}",
            ),
            &[],
        ),
        (
            &v1(
                "{scope: 'tool:a|b', budget: {daily_limit_usd: 1, per: team}, rate: {requests_per_minute: 1, per: workspace}}",
            ),
            &["!P301 spec.budget", "!P301 spec.rate"],
        ),
        (
            &v1(
                "{scope: 'tool:a|b', budget: {daily_limit_usd: 1, each: model}, rate: {requests_per_minute: 1}}",
            ),
            &[],
        ),
        (
            &v1("{scope: 'tool:bash', tools: {git: {limit_per_hour: 1}}}"),
            &[],
        ),
        (
            &v1(
                "{scope: 'tool:bash', network: {allowlist: [a.example]}, data: {sensitive_patterns: [x]}}",
            ),
            &[],
        ),
    ]);
}

#[test]
fn all_errors_come_at_once_with_their_places() {
    let text = "\
scope: project:foo
network:
  allowlist:
    - \"\"
budget:
  daily_limit_usd: -1
  timezone: Nowhere
data:
  sensitive_patterns: [\"(\"]
capabilities:
  deny: [fly]
approval_timeout_secs: 0
";
    let parsed = parse("case.yaml", text.as_bytes(), false);
    let places: Vec<(&str, usize, usize)> = parsed
        .diagnostics
        .iter()
        .map(|d| (d.code, d.line, d.column))
        .collect();
    // Counted in the text above.
    assert_eq!(
        places,
        [
            (codes::SCOPE, 1, 8),
            (codes::EMPTY, 4, 7),
            (codes::MONEY, 6, 20),
            (codes::TIME_ZONE, 7, 13),
            // The bracket, and not the quote before it.
            (codes::PATTERN, 9, 25),
            (codes::CAPABILITY, 11, 10),
            (codes::NUMBER, 12, 24),
        ]
    );
}

#[test]
fn what_is_wrong_within_a_text_is_shown_there_where_it_stands_as_it_is() {
    let places = |value: &str| -> Vec<(usize, usize)> {
        let text = format!("tools:\n  mail:\n    requires_approval_if: {value}\n");
        let parsed = parse("case.yaml", text.as_bytes(), false);
        let found = parsed.diagnostics.iter();
        found.map(|found| (found.line, found.column)).collect()
    };
    // The value begins in column 27; `y` is the eleventh character of it.
    assert_eq!(places("x == 1 || y"), [(3, 27), (3, 37)]);
    assert_eq!(places("  x == 1 || y  # who knows"), [(3, 29), (3, 39)]);
    assert_eq!(places("\"x == 1 || y\""), [(3, 28), (3, 38)]);
    assert_eq!(places("team == 'é' || x"), [(3, 42)]);
    assert_eq!(places("'team == \"é\" || x'"), [(3, 43)]);
    // A block begins in its own first line.
    assert_eq!(places("|\n      team == tool || x"), [(4, 23)]);
    let block = "|\n      team == tool\n\n        || x ||\n      y\n";
    assert_eq!(places(block), [(6, 12), (7, 7)]);
    // Written with escapes or folded: where the value begins.
    assert_eq!(places("'team == ''a'' || x'"), [(3, 27)]);
    assert_eq!(places("\"team == \\\"a\\\" || x\""), [(3, 27)]);
    assert_eq!(places("team == tool\n      || x"), [(3, 27)]);
    assert_eq!(places(">\n      team == tool\n      || x"), [(4, 7)]);
}

#[test]
fn json_is_read_like_yaml() {
    let text = "{\n\t\"apiVersion\": \"agent-assembly/v1\",\n\t\"kind\": \"Policy\",\n\t\"metadata\": {\"name\": \"j\"},\n\t\"spec\": {\"scope\": \"team:a\\/b\", \"network\": {\"allowlist\": [\"*.example.com\"]}}\n}\n";
    let parsed = parse("j.json", text.as_bytes(), true);
    assert_eq!(shown(&parsed), [""; 0]);
    assert_eq!(parsed.documents[0].scope.to_string(), "team:a/b");
}

#[test]
fn a_file_may_hold_several_documents_of_different_names() {
    let one = v1("{}");
    assert_eq!(
        findings(&format!("{one}\n---\nscope: global\n---\nscope: global\n")),
        [""; 0]
    );
    assert_eq!(
        findings(&format!("{one}\n---\n{one}\n")),
        ["!P401 metadata.name"]
    );
    let parsed = parse("p.yaml", b"scope: global\n---\nscope: org:a\n", false);
    let names: Vec<_> = parsed.documents.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["p", "p#2"]);

    let mut files = [
        parse("p.yaml", b"scope: global", false),
        parse("q/p.yml", b"scope: global", false),
    ];
    tollgate_policy::check_together(&mut files);
    assert!(!files[0].has_errors());
    // A flat document has no `metadata`.
    assert_eq!(shown(&files[1]), ["P304 ", "!P401 "]);
    let message = &files[1].diagnostics[1].message;
    assert!(message.contains("rename a file"), "{message}");
    assert!(files[1].documents.is_empty());
}

#[test]
fn text_stays_as_written() {
    let text = v1("{capabilities: {allow: ['model:NO', model:1.10]}}");
    let parsed = parse("case.yaml", text.as_bytes(), false);
    assert_eq!(shown(&parsed), [""; 0]);
    let allow = &parsed.documents[0].capabilities.allow;
    let model = |name: &str| tollgate_policy::Capability::Model(name.to_string());
    assert_eq!(*allow, [model("NO"), model("1.10")]);

    let named =
        "{apiVersion: tollgate/v1, kind: Policy, metadata: {name: NO, version: 1.10}, spec: {}}";
    let parsed = parse("case.yaml", named.as_bytes(), false);
    assert_eq!(parsed.documents[0].name, "NO");
    assert_eq!(parsed.documents[0].version.as_deref(), Some("1.10"));
}

#[test]
fn the_agent_block_is_read_whole() {
    const ID: &str = "id: 01234567-89AB-cdef-0123-456789abcdef";
    let agent = |fields: &str| findings(&format!("agent: {{{ID}, {fields}}}"));
    assert_eq!(agent("name: Support, tools: []"), [""; 0]);
    all(&[
        ("agent: []", &["!P102 agent"]),
        ("agent: {}", &[]),
        ("agent: {id: agent-123}", &["P303 agent.id"]),
        (
            "agent: {id: 01234567-89ab-cdef-0123-456789abcdef}\nscope: team:a",
            &["!P201 agent.id"],
        ),
        (
            "agent: {tools: [{name: git, enabled: true}]}\ntools: {git: {allow: true}}",
            &["!P108 agent.tools"],
        ),
        ("agent: {tols: []}", &["P101 agent.tols"]),
    ]);
    assert_eq!(
        agent(
            "tools: [{name: git, enabled: true, requires_approval: false}, {name: '*', enabled: false}, {name: mail}]"
        ),
        [""; 0]
    );
    assert_eq!(
        agent("tools: [{enabled: false}, {name: ''}, {name: 'a*'}, {name: git}, {name: git}]"),
        [
            "!P103 agent.tools[0].name",
            "!P105 agent.tools[1].name",
            "!P106 agent.tools[2].name",
            "!P005 agent.tools[4].name",
        ]
    );
    assert_eq!(
        agent("tools: [{name: git, enabled: yes, requires_approval: 1}, git]"),
        [
            "!P102 agent.tools[0].enabled",
            "!P102 agent.tools[0].requires_approval",
            "!P102 agent.tools[1]",
        ]
    );
    assert_eq!(
        agent(
            "tools: [{name: git, requires_approval: true, approval_config: {timeout_seconds: 300, auto_deny_on_timeout: true, notify_channels: ['slack:approvals']}}]"
        ),
        [""; 0]
    );
    assert_eq!(
        agent(
            "tools: [{name: git, approval_config: {timeout_seconds: 0, auto_deny_on_timeout: 1, notify_channels: ['']}}]"
        ),
        [
            "P303 agent.tools[0].approval_config",
            "!P206 agent.tools[0].approval_config.timeout_seconds",
            "!P102 agent.tools[0].approval_config.auto_deny_on_timeout",
            "!P105 agent.tools[0].approval_config.notify_channels[0]",
        ]
    );
    assert_eq!(
        agent("budget: {max_tokens: 100000, max_cost_usd: 10.00, max_iterations: 50}"),
        [""; 0]
    );
    assert_eq!(
        agent("budget: {max_tokens: 0, max_cost_usd: 0, max_iterations: 0}"),
        [
            "!P206 agent.budget.max_tokens",
            "!P205 agent.budget.max_cost_usd",
            "!P206 agent.budget.max_iterations",
        ]
    );
    assert_eq!(
        agent(
            "budget: {max_tokens: 9}, termination: {on_goal_achieved: true, on_budget_exceeded: true, on_timeout: 3600, max_iterations: 5, error_threshold: 3}"
        ),
        [""; 0]
    );
    assert_eq!(
        agent("budget: {max_iterations: 9}, termination: {on_budget_exceeded: true}"),
        ["P303 agent.termination.on_budget_exceeded"]
    );
    assert_eq!(
        agent("termination: {on_timeout: 86401, max_iterations: 0, error_threshold: 0}"),
        [
            "!P206 agent.termination.on_timeout",
            "!P206 agent.termination.max_iterations",
            "!P206 agent.termination.error_threshold",
        ]
    );
    assert_eq!(
        agent("execution: {timeout_seconds: 86400, enable_pause: true, enable_cancel: false}"),
        [""; 0]
    );
    assert_eq!(
        agent("execution: {timeout_seconds: 86401}"),
        ["!P206 agent.execution.timeout_seconds"]
    );
    // A tool has no runs.
    assert_eq!(
        findings("scope: 'tool:git'\nagent: {budget: {max_tokens: 1}}"),
        ["!P301 agent"]
    );
    assert_eq!(
        agent("audit: {log_all_events: false, retention_days: 90, include_message_content: true}"),
        ["P303 agent.audit.log_all_events"]
    );
}

#[test]
fn a_star_stands_for_all_other_tools_in_tollgate_v1() {
    all(&[
        ("tools: {'*': {allow: false}}", &["!P107 tools[\"*\"]"]),
        (
            &v1("{tools: {'*': {allow: false}, git: {allow: true}}}"),
            &[],
        ),
        (&v1("{tools: {'*': {requires_approval_if: 'true'}}}"), &[]),
        (&v1("{tools: {'*': {limit_per_hour: 5}}}"), &[]),
        (
            &v1("{scope: 'tool:git', tools: {'*': {limit_per_hour: 5}}}"),
            &[],
        ),
        (
            &v1("{tools: {'**': {allow: false}}}"),
            &["!P106 spec.tools[\"**\"]"],
        ),
    ]);
}

#[test]
fn settings_that_gates_do_not_know_are_refused_and_not_ignored() {
    all(&[
        (
            &v1("{data: {action: block, exempt_tools: [calc]}}"),
            &["P303 spec.data"],
        ),
        (
            &v1(
                "{data: {sensitive_patterns: [x], action: redact, mask_pii: true, tool_output_is_data: true}}",
            ),
            &[],
        ),
        (
            &v1("{data: {sensitive_patterns: [key, '[A-Z]{8}'], action: redact}}"),
            &["!P210 spec.data.sensitive_patterns[1]"],
        ),
        (&v1("{data: {sensitive_patterns: ['[A-Z]{8}']}}"), &[]),
        (
            "data: {mask_pii: true, tool_output_is_data: true}",
            &["!P107 data.mask_pii", "!P107 data.tool_output_is_data"],
        ),
        (
            &v1("{tools: {web: {cost_usd: 0.001}, git: {cost_usd: 0}, '*': {cost_usd: 1}}}"),
            &["!P205 spec.tools.git.cost_usd"],
        ),
        ("tools: {web: {cost_usd: 1}}", &["!P107 tools.web.cost_usd"]),
        (&v1("{data: {action: mask}}"), &["!P207 spec.data.action"]),
        (
            &v1("{data: {exempt_tools: ['', calc, '*', 'git_*']}}"),
            &[
                "!P105 spec.data.exempt_tools[0]",
                "!P106 spec.data.exempt_tools[2]",
                "!P106 spec.data.exempt_tools[3]",
            ],
        ),
        (
            "data: {action: block, exempt_tools: []}",
            &["!P107 data.action", "!P107 data.exempt_tools"],
        ),
        (
            &v1(
                "{circuit_breaker: {failure_threshold: 3}, offline_mode: true, tool_costs_usd: {web: 0.001}}",
            ),
            &[
                "!P305 spec.circuit_breaker",
                "!P305 spec.offline_mode",
                "!P305 spec.tool_costs_usd",
            ],
        ),
    ]);
}

#[test]
fn a_field_of_another_place_or_form_is_refused_and_not_ignored() {
    all(&[
        (
            "tools: {bash: {enabled: false, requires_approval: true, approval_config: {timeout_seconds: 5}}}",
            &[
                "!P305 tools.bash.enabled",
                "!P305 tools.bash.requires_approval",
                "!P305 tools.bash.approval_config",
            ],
        ),
        (
            "agent: {tools: [{name: bash, allow: false, limit_per_hour: 1, cost_usd: 1, requires_approval_if: 'true'}]}",
            &[
                "!P305 agent.tools[0].allow",
                "!P305 agent.tools[0].limit_per_hour",
                "!P305 agent.tools[0].cost_usd",
                "!P305 agent.tools[0].requires_approval_if",
            ],
        ),
        (
            &v1("{rollout: shadow, replaces: '1'}"),
            &["!P108 spec.rollout", "!P108 spec.replaces"],
        ),
        (
            "network: {}\nrollout: shadow\nreplaces: '1'\n",
            &["!P108 rollout", "!P108 replaces"],
        ),
        (
            "{apiVersion: tollgate/v1, kind: Policy, rollout: shadow, metadata: {name: a, scope: 'team:a', budget: {}}, spec: {}}",
            &[
                "!P108 rollout",
                "!P108 metadata.scope",
                "!P108 metadata.budget",
            ],
        ),
    ]);
    let said = |text: &str| parse("case.yaml", text.as_bytes(), false).diagnostics[0].to_string();
    assert_eq!(
        said("tools: {bash: {enabled: false}}"),
        "1:16: error[P305] tools.bash.enabled: is not a field of `tools`: write `allow`"
    );
    assert_eq!(
        said("network: {}\nrollout: shadow"),
        "2:1: error[P108] rollout: `rollout` stands outside `metadata`, where it would be ignored; \
         move it under `metadata`, in a document of `tollgate/v1`"
    );
}

#[test]
fn what_has_no_effect_is_told() {
    const ID: &str = "id: 01234567-89ab-cdef-0123-456789abcdef";
    all(&[
        ("budget: {}", &["P303 budget"]),
        ("budget: {timezone: UTC}", &["P303 budget"]),
        // What is wrong comes first.
        (
            "budget: {daily_limit_usd: 0}",
            &["!P205 budget.daily_limit_usd"],
        ),
        ("data: {}", &["P303 data"]),
        ("data: {sensitive_patterns: []}", &["P303 data"]),
        (
            "data: {sensitive_patterns: ['(']}",
            &["!P208 data.sensitive_patterns[0]"],
        ),
        (&v1("{data: {mask_pii: false}}"), &["P303 spec.data"]),
        (&v1("{data: {mask_pii: true}}"), &[]),
        (
            &v1("{network: {denylist: []}}"),
            &["P303 spec.network.denylist"],
        ),
        (
            &v1("{budget: {daily_limit_usd: 1, warn_at: []}}"),
            &["P303 spec.budget.warn_at"],
        ),
        ("tools: {bash: {allow: true}, git: {}}", &["P303 tools.git"]),
        // An entry takes its tool out of what `*` says.
        (&v1("{tools: {'*': {allow: false}, git: {}}}"), &[]),
        (&v1("{tools: {'*': {}}}"), &[]),
        (
            &format!("agent: {{{ID}, tools: [{{name: git}}, {{name: mail, enabled: false}}]}}"),
            &["P303 agent.tools[0]"],
        ),
        (
            &format!("agent: {{{ID}, tools: [{{name: git}}, {{name: '*', enabled: false}}]}}"),
            &[],
        ),
    ]);
}

#[test]
fn places_are_counted_in_lines_as_yaml_ends_them() {
    for end in ["\n", "\r\n", "\r"] {
        let lines = [
            "network: {}",
            "tools:",
            "  mail:",
            "    requires_approval_if: |",
            "      team == tool",
            "        || x",
            "netwrok: {}",
            "",
        ];
        let parsed = parse("case.yaml", lines.join(end).as_bytes(), false);
        let found = parsed.diagnostics.iter();
        let places: Vec<_> = found.map(|d| (d.code, d.line, d.column)).collect();
        assert_eq!(places, [("P212", 6, 12), ("P101", 7, 1)], "{end:?}");
        let parsed = parse(
            "case.yaml",
            format!("a: 1{end}b: 2{end}")
                .as_bytes()
                .iter()
                .copied()
                .chain(*b"\xff")
                .collect::<Vec<u8>>()
                .as_slice(),
            false,
        );
        assert_eq!(
            (parsed.diagnostics[0].code, parsed.diagnostics[0].line),
            ("P001", 3),
            "{end:?}"
        );
    }
}

#[test]
fn a_zone_that_is_nearly_one_is_suggested() {
    for (written, meant) in [
        ("Europe/Berln", Some("Europe/Berlin")),
        ("America/NewYork", Some("America/New_York")),
        ("Taipei", Some("Asia/Taipei")),
        ("tokyo", Some("Asia/Tokyo")),
        ("Mars/Olympus", None),
        ("''", None),
        ("é", None),
    ] {
        let text = format!("budget: {{daily_limit_usd: 1, timezone: {written}}}");
        let parsed = tollgate_policy::parse("test.yaml", text.as_bytes(), false);
        let [found] = parsed.diagnostics.as_slice() else {
            panic!("{written}: {:?}", parsed.diagnostics);
        };
        assert_eq!((found.code, found.suggestion.as_deref()), ("P204", meant));
        if let Some(meant) = meant {
            let asked = format!("did you mean `{meant}`?");
            assert!(found.message.ends_with(&asked), "{}", found.message);
        }
    }
}

#[test]
fn a_budget_may_only_warn_in_tollgate_v1() {
    let budget = |fields: &str| {
        findings(&v1(&format!(
            "{{budget: {{daily_limit_usd: 1, {fields}}}}}"
        )))
    };
    assert_eq!(budget("action_on_exceed: alert"), [""; 0]);
    assert_eq!(budget("warn_at: [50, 100]"), [""; 0]);
    assert_eq!(
        budget("action_on_exceed: warn"),
        ["!P207 spec.budget.action_on_exceed"]
    );
    assert_eq!(
        budget("warn_at: [0, 101, x]"),
        [
            "!P206 spec.budget.warn_at[0]",
            "!P206 spec.budget.warn_at[1]",
            "!P102 spec.budget.warn_at[2]",
        ]
    );
    all(&[
        (
            "budget: {daily_limit_usd: 1, action_on_exceed: alert}",
            &["!P207 budget.action_on_exceed"],
        ),
        (
            "budget: {daily_limit_usd: 1, warn_at: [50]}",
            &["!P107 budget.warn_at"],
        ),
    ]);
}
