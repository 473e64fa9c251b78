//! Documents into what a gate runs, and the days of time zones.

use tollgate_engine::{
    bundle::{Level, OtherTools, Scope, Texts},
    condition::{Instruction, Program},
    ledger::{Unit, Window},
};
use tollgate_policy::{
    CompileError, Diagnostic, Document, MAX_DOCUMENTS, check_together, codes, compile, parse, zone,
};

/// 2026-11-20T00:00:00Z: 20,777 days since the epoch.
const NOV_20: i64 = 20_777 * 86_400;
const DAY: i64 = 86_400;

fn documents(text: &str) -> Vec<Document> {
    let parsed = parse("case.yaml", text.as_bytes(), true);
    // Some have no rule, and are told so.
    let others = |d: &&Diagnostic| d.code != codes::BROAD;
    let found: Vec<_> = parsed.diagnostics.iter().filter(others).collect();
    assert!(found.is_empty(), "{text}: {found:?}");
    parsed.documents
}

fn v1(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: {name}}}, spec: {spec}}}\n"
    )
}

#[test]
fn every_enforced_field_reaches_the_bundle() {
    let text = v1(
        "all",
        "{scope: 'team:platform',
          network: {allowlist: [API.example, '*.slack.com']},
          capabilities: {allow: ['model:gpt-*', 'mcp_tool:git'], deny: ['model:gpt-5', network_outbound]},
          schedule: {active_hours: {start: '22:00', end: '06:30', timezone: europe/berlin}},
          tools: {bash: {allow: false}, git: {allow: true}, Search: {limit_per_hour: 7}},
          data: {sensitive_patterns: ['a\\d']},
          budget: {daily_limit_usd: 2.5, daily_limit_tokens: 1000, per: team, timezone: europe/berlin,
                   unknown_model: {input_usd_per_million: 2.50, output_usd_per_million: '10'}},
          rate: {requests_per_minute: 30, per: org}}",
    );
    let compiled = compile(&documents(&text), NOV_20, NOV_20 + DAY).expect("compiles");
    let document = &compiled.documents[0];
    assert_eq!(document.scope, Scope::Team("platform".into()));
    let hosts: Vec<&str> = document
        .network
        .hosts
        .iter()
        .flatten()
        .map(|host| host.0.as_str())
        .collect();
    assert_eq!(hosts, ["api.example", "*.slack.com"]);
    assert!(document.network.denied);
    assert_eq!(document.models.allow, Some(Texts::from_iter(["gpt-*"])));
    assert_eq!(document.models.deny, Texts::from_iter(["gpt-5"]));
    assert_eq!(document.mcp_tools.allow, Some(Texts::from_iter(["git"])));
    assert_eq!(document.tools.denied, Texts::from_iter(["bash"]));
    assert_eq!(document.data.patterns, ["(?u)(?:a[0-9])"]);

    let rules: Vec<_> = document
        .limits
        .iter()
        .map(|limit| (limit.rule.as_str(), limit.unit, limit.amount, limit.per))
        .collect();
    assert_eq!(
        rules,
        [
            ("rate.requests_per_minute", Unit::Calls, 30, Level::Org),
            ("tools.Search.limit_per_hour", Unit::Calls, 7, Level::Agent),
            (
                "budget.daily_limit_usd",
                Unit::NanoUsd,
                2_500_000_000,
                Level::Team
            ),
            (
                "budget.daily_limit_tokens",
                Unit::Tokens,
                1_000,
                Level::Team
            ),
        ]
    );
    assert_eq!(document.limits[0].window, Window::Minute);
    assert_eq!(
        document.limits[2].window,
        Window::Day("Europe/Berlin".to_string())
    );
    assert_eq!(
        (
            &document.limits[1].window,
            document.limits[1].tool.as_deref()
        ),
        (&Window::Hour, Some("search")),
        "a tool is the same in any case"
    );
    let active = document.active.as_ref().expect("has hours");
    assert_eq!(active.hours, "22:00-06:30 Europe/Berlin");
    assert_eq!(
        document.limits[3].unknown_model, None,
        "prices are for money"
    );
    let price = document.limits[2].unknown_model.expect("has a price");
    // 2.50 USD per 10⁶ tokens is 2,500,000 pico-USD per token.
    assert_eq!((price.input, price.output), (2_500_000, 10_000_000));
    let zones: Vec<&str> = compiled.calendars.iter().map(|c| c.zone.as_str()).collect();
    assert_eq!(zones, ["Europe/Berlin"]);
}

#[test]
fn the_guardrails_of_a_new_workspace_are_a_policy() {
    let [guardrails] = documents(tollgate_policy::GUARDRAILS)
        .try_into()
        .unwrap_or_else(|all| panic!("one document, not {all:?}"));
    assert_eq!(guardrails.name, tollgate_policy::GUARDRAILS_NAME);
    let compiled = compile(&[guardrails], NOV_20, NOV_20 + DAY).unwrap();
    let limits = &compiled.documents[0].limits;
    let shown: Vec<(&str, u64)> = limits.iter().map(|l| (l.rule.as_str(), l.amount)).collect();
    assert_eq!(
        shown,
        [
            ("rate.requests_per_minute", 60),
            ("budget.daily_limit_usd", 10_000_000_000)
        ]
    );
}

#[test]
fn an_agent_block_is_a_document_for_the_agent() {
    let text = "agent:
  id: 01234567-89AB-cdef-0123-456789abcdef
  tools:
  - {name: '*', enabled: false}
  - {name: web_search, enabled: true}
  - {name: refund, requires_approval: true}
  - {name: drop_table, enabled: false}
";
    let parsed = parse("support.yaml", text.as_bytes(), true);
    assert_eq!(parsed.diagnostics, []);
    let compiled = compile(&parsed.documents, NOV_20, NOV_20 + DAY).unwrap();
    let document = &compiled.documents[0];
    assert_eq!(document.name, "support");
    let scope = "agent:01234567-89ab-cdef-0123-456789abcdef";
    assert_eq!(document.scope.to_string(), scope);
    assert_eq!(document.tools.denied, Texts::from_iter(["drop_table"]));
    assert_eq!(document.tools.approvals[0].tool, "refund");
    let always = Program(vec![Instruction::Bool(true)]);
    assert_eq!(document.tools.approvals[0].condition, always);
    assert_eq!(
        document.tools.others,
        Some(OtherTools {
            named: Texts::from_iter(["web_search", "refund", "drop_table"]),
            denied: true,
            approval: None,
            cost_nano_usd: None,
        })
    );
    // A limit on them is of them all together, and of this document's.
    let counted = v1(
        "a",
        "{tools: {'*': {limit_per_hour: 9}, Git: {limit_per_hour: 5}}}",
    );
    let compiled = compile(&documents(&counted), NOV_20, NOV_20 + DAY).unwrap();
    let document = &compiled.documents[0];
    let limits = document.limits.iter();
    let limits: Vec<(&str, Option<&str>, u64)> = limits
        .map(|limit| (limit.rule.as_str(), limit.tool.as_deref(), limit.amount))
        .collect();
    assert_eq!(
        limits,
        [
            ("tools.*.limit_per_hour", Some("*a"), 9),
            ("tools.Git.limit_per_hour", Some("git"), 5),
        ]
    );
    let [others, git] = &document.limits[..] else {
        unreachable!("there are two")
    };
    let counts = |limit, used: &str| document.counts(limit, [used].into_iter());
    assert!(counts(others, "anything") && !counts(others, "GIT") && counts(git, "GIT"));
    // A star that restricts nothing says nothing.
    let open = v1("a", "{tools: {'*': {allow: true}, git: {allow: false}}}");
    let compiled = compile(&documents(&open), NOV_20, NOV_20 + DAY).unwrap();
    assert_eq!(compiled.documents[0].tools.others, None);
}

#[test]
fn what_an_agent_block_sets_for_a_run_is_counted_by_run() {
    let text = "apiVersion: agent-assembly/v1\nkind: Policy\nmetadata: {name: a}\nspec:
  budget: {daily_limit_usd: 1}
  agent:
    budget: {max_tokens: 100000, max_cost_usd: 10.00, max_iterations: 50}
    termination: {on_budget_exceeded: true, on_timeout: 3600, error_threshold: 3}
    execution: {timeout_seconds: 7200}
";
    let compiled = compile(&documents(text), NOV_20, NOV_20 + DAY).unwrap();
    let limits = compiled.documents[0].limits.iter();
    let of_runs = limits.filter(|limit| limit.window == Window::Run);
    let shown: Vec<(&str, Unit, u64, bool)> = of_runs
        .map(|limit| {
            assert_eq!(limit.per, Level::Agent);
            (limit.rule.as_str(), limit.unit, limit.amount, limit.suspend)
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("agent.budget.max_tokens", Unit::Tokens, 100_000, true),
            (
                "agent.budget.max_cost_usd",
                Unit::NanoUsd,
                10_000_000_000,
                true
            ),
            ("agent.budget.max_iterations", Unit::Calls, 50, false),
            ("agent.termination.on_timeout", Unit::Seconds, 3_600, false),
            ("agent.termination.error_threshold", Unit::Errors, 3, false),
            (
                "agent.execution.timeout_seconds",
                Unit::Seconds,
                7_200,
                false
            ),
        ]
    );
}

#[test]
fn a_budget_says_what_it_warns_of() {
    let limit = |fields: &str| {
        let text = v1(
            "a",
            &format!("{{budget: {{daily_limit_usd: 1, {fields}}}}}"),
        );
        let compiled = compile(&documents(&text), NOV_20, NOV_20 + DAY).unwrap();
        let limit = compiled.documents[0].limits[0].clone();
        (
            limit.alert,
            limit.suspend,
            limit.warnings().collect::<Vec<u8>>(),
        )
    };
    assert_eq!(limit(""), (false, false, vec![80, 90]));
    assert_eq!(
        limit("action_on_exceed: suspend, warn_at: [90, 50, 90]"),
        (false, true, vec![50, 90])
    );
    assert_eq!(
        limit("action_on_exceed: alert"),
        (true, false, vec![80, 90, 100])
    );
    assert_eq!(
        limit("action_on_exceed: alert, warn_at: [100]"),
        (true, false, vec![100])
    );
}

/// What a tool's own `approval_config` does not say, the document says.
#[test]
fn approvals_of_one_tool_differ_in_what_is_said_of_it() {
    let of_tool = |config: &str| {
        let spec = format!(
            "{{agent: {{tools: [{{name: refund, requires_approval: true, approval_config: {config}}}]}},
               approval: {{timeout_seconds: 60, notify_channels: [slack], auto_deny_on_timeout: false, escalation_role: sec}}}}"
        );
        let documents = documents(&v1("approvals", &spec));
        let asked = documents[0].approvals_of("tools.refund.requires_approval_if");
        asked.to_string()
    };
    for (config, asked) in [
        ("{}", "within 60 s, or later, by sec, told to slack"),
        (
            "{timeout_seconds: 90}",
            "within 90 s, or later, by sec, told to slack",
        ),
        (
            "{auto_deny_on_timeout: true}",
            "within 60 s, by sec, told to slack",
        ),
        (
            "{notify_channels: [mail]}",
            "within 60 s, or later, by sec, told to mail",
        ),
        ("{notify_channels: []}", "within 60 s, or later, by sec"),
    ] {
        assert_eq!(of_tool(config), asked, "{config}");
    }
}

/// As they stand in the document that the block comes from, indented.
#[test]
fn the_agent_blocks_of_the_reference_load() {
    let first = r#"
agent:
  name: "Customer Support Agent"
  tools:
  # Allowed without approval
  - name: knowledge_base_search
    enabled: true
    requires_approval: false
  # Requires human approval
  - name: refund_payment
    enabled: true
    requires_approval: true
    approval_config:
      timeout_seconds: 300
      auto_deny_on_timeout: true
      notify_channels: ["slack:approvals"]
  # Completely disabled
  - name: database_write
    enabled: false
"#;
    let second = r#"
agent:
  budget:
    max_tokens: 100000  # Total token limit
    max_cost_usd: 10.00  # Maximum cost in USD
    max_iterations: 50  # Maximum execution loops
  # Termination conditions
  termination:
    on_goal_achieved: true  # Stop when goal complete
    on_budget_exceeded: true  # Stop when budget hit
    on_timeout: 3600  # Stop after 1 hour
"#;
    let whole = r#"
agent:
  id: "agent-123"
  name: "Production Agent"
  # Tool permissions
  tools:
  - name: "*"
    enabled: false  # Deny all by default
  - name: web_search
    enabled: true
  - name: file_read
    enabled: true
  - name: file_write
    enabled: true
    requires_approval: true
  # Budget limits
  budget:
    max_tokens: 500000
    max_cost_usd: 50.00
    max_iterations: 100
  # Execution controls
  execution:
    timeout_seconds: 7200
    enable_pause: true
    enable_cancel: true
  # Audit settings
  audit:
    log_all_events: true
    retention_days: 90
    include_message_content: true
"#;
    for (text, limits) in [(first, 0), (second, 5), (whole, 4)] {
        let parsed = parse("agent.yaml", text.as_bytes(), false);
        let errors: Vec<_> = parsed.diagnostics.iter().filter(|d| d.is_error()).collect();
        assert!(errors.is_empty(), "{errors:?}");
        let compiled = compile(&parsed.documents, NOV_20, NOV_20 + DAY).unwrap();
        assert_eq!(compiled.documents[0].limits.len(), limits);
    }
}

#[test]
fn a_document_in_shadow_stands_apart() {
    let text = "---\n{apiVersion: tollgate/v1, kind: Policy, metadata: {name: a, rollout: shadow}, spec: {budget: {daily_limit_usd: 1, timezone: Asia/Taipei}}}\n";
    let compiled = compile(&documents(&(v1("b", "{}") + text)), NOV_20, NOV_20 + DAY).unwrap();
    let names = |documents: &[tollgate_engine::bundle::Document]| -> Vec<String> {
        documents.iter().map(|d| d.name.clone()).collect()
    };
    assert_eq!(names(&compiled.documents), ["b"]);
    assert_eq!(names(&compiled.shadow), ["a"]);
    // It may say that a call is larger than the whole limit, and for that needs the days.
    assert_eq!(compiled.calendars[0].zone, "Asia/Taipei");
}

#[test]
fn an_allow_list_closes_only_the_kinds_it_names() {
    let compiled = |spec: &str| {
        compile(&documents(&v1("a", spec)), NOV_20, NOV_20 + DAY)
            .expect("compiles")
            .documents[0]
            .clone()
    };
    let plain = compiled("{capabilities: {allow: [network_outbound]}}");
    assert!(plain.models.is_open() && plain.mcp_tools.is_open() && !plain.network.denied);
    let models = compiled("{capabilities: {allow: ['model:a']}}");
    assert!(models.models.allow.is_some() && models.mcp_tools.is_open());
    let tools = compiled("{capabilities: {allow: ['mcp_tool:a']}}");
    assert!(tools.models.is_open() && tools.mcp_tools.allow.is_some());
}

#[test]
fn a_denylist_alone_leaves_other_hosts_open() {
    let text = v1(
        "a",
        "{network: {denylist: [a.example, 10.0.0.0/8, private]}}",
    ) + &v1("b", "{network: {denylist: [a.example], allowlist: []}}");
    let compiled = compile(&documents(&text), NOV_20, NOV_20 + DAY).unwrap();
    let [a, b] = &*compiled.documents else {
        panic!("{compiled:?}")
    };
    assert_eq!(a.network.hosts, None);
    assert_eq!(b.network.hosts, Some(Vec::new()));
    let hosts: Vec<&str> = a
        .network
        .denied_hosts
        .iter()
        .map(|host| host.0.as_str())
        .collect();
    assert_eq!(hosts[..3], ["a.example", "localhost", "*.localhost"]);
    // What `private` says again is there once.
    let ranges: Vec<String> = a
        .network
        .denied_addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ranges[..3], ["10.0.0.0/8", "0.0.0.0/8", "100.64.0.0/10"]);
}

#[test]
fn network_without_entries_allows_nothing() {
    let hosts = |text: &str| {
        let parsed = parse("a.yaml", text.as_bytes(), true);
        assert!(!parsed.has_errors(), "{text}");
        let compiled = compile(&parsed.documents, NOV_20, NOV_20 + DAY).expect("compiles");
        compiled.documents[0].network.hosts.as_ref().map(Vec::len)
    };
    assert_eq!(hosts("scope: global"), None);
    assert_eq!(hosts("network: {}"), Some(0));
    assert_eq!(hosts("network: {allowlist: []}"), Some(0));
    assert_eq!(hosts("network: {allowlist: [a.example]}"), Some(1));
    assert_eq!(hosts("network: {allowlist: [a.example, '*']}"), None);
}

#[test]
fn documents_stand_from_broad_to_narrow_in_any_order_given() {
    let mut text = String::new();
    for (name, scope) in [
        ("e", "tool:x"),
        ("z", "global"),
        ("d", "agent:01234567-89ab-cdef-0123-456789abcdef"),
        ("b", "org:o"),
        ("c", "team:t"),
        ("a", "global"),
    ] {
        text.push_str(&v1(name, &format!("{{scope: '{scope}'}}")));
    }
    let mut given = documents(&text);
    let order = |given: &[Document]| -> String {
        let compiled = compile(given, NOV_20, NOV_20 + DAY).expect("compiles");
        compiled.documents.iter().map(|d| d.name.as_str()).collect()
    };
    assert_eq!(order(&given), "azbcde");
    given.reverse();
    assert_eq!(order(&given), "azbcde");
}

#[test]
fn what_does_not_make_a_bundle_is_said() {
    let one = documents("scope: global");
    let twice = [one.clone(), one.clone()].concat();
    let error = compile(&twice, NOV_20, NOV_20 + DAY).expect_err("a name twice");
    assert_eq!(error, CompileError::DuplicateName("case".to_string()));

    let many = vec![one[0].clone(); MAX_DOCUMENTS + 1];
    let error = compile(&many, NOV_20, NOV_20 + DAY).expect_err("too many");
    assert_eq!(error, CompileError::TooManyDocuments(MAX_DOCUMENTS + 1));

    let budget = documents("budget: {daily_limit_usd: 1}");
    let error =
        compile(&budget, NOV_20, NOV_20 + 400 * DAY).expect_err("400 days and one on each side");
    assert_eq!(error, CompileError::Calendar("UTC".to_string()));
    assert!(compile(&budget, NOV_20, NOV_20 + 398 * DAY).is_ok());
    assert!(compile(&budget, i64::MIN, i64::MAX).is_err());
}

#[test]
fn patterns_too_large_together_are_refused_before_a_gate_refuses_them() {
    // A file is under what a gate compiles in all; six of them are over.
    let file = |letter: char| {
        let mut text = String::new();
        for index in 0..8 {
            let spec = format!("{{data: {{sensitive_patterns: ['{letter}{index}[^a]{{400}}']}}}}");
            text.push_str(&v1(&format!("{letter}{index}"), &spec));
        }
        parse("case.yaml", text.as_bytes(), true)
    };
    let mut files: Vec<_> = ('a'..='f').map(file).collect();
    assert!(files.iter().all(|file| !file.has_errors()));
    let all: Vec<Document> = files
        .iter()
        .flat_map(|file| file.documents.clone())
        .collect();
    let error = compile(&all, NOV_20, NOV_20 + DAY).expect_err("too large");
    assert_eq!(error, CompileError::Patterns);
    check_together(&mut files);
    let refused: Vec<&str> = files
        .iter()
        .flat_map(|file| &file.diagnostics)
        .map(|d| d.code)
        .collect();
    assert_eq!(refused, [codes::PATTERN_TOO_LARGE]);
}

#[test]
fn a_calendar_reaches_a_day_further_on_both_sides() {
    let text = "budget: {daily_limit_usd: 1, timezone: Asia/Taipei}";
    let compiled = compile(&documents(text), NOV_20, NOV_20 + 2 * DAY).expect("compiles");
    // Taipei is UTC+8 all year: its midnights are at 16:00 UTC. From Nov 19 00:00 UTC the day began on Nov 18 at 16:00 UTC;
    // until Nov 23 00:00 UTC it ends on Nov 23 at 16:00 UTC.
    let midnight = |days: i64| NOV_20 + days * DAY - 8 * 3_600;
    let expected: Vec<i64> = (-1..=4).map(midnight).collect();
    assert_eq!(compiled.calendars[0].days, expected);
}

#[test]
fn days_of_clock_changes_are_23_and_25_hours_long() {
    let lengths = |zone: &str, from: i64, days: i64| -> Vec<i64> {
        let edges = zone::midnights(zone, from, from + days * DAY).expect("has days");
        edges
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) / 3_600)
            .collect()
    };
    // Berlin goes back on Sunday 2026-10-25 and forward on Sunday 2027-03-28. 2026-10-24T00:00Z is 27 days before Nov 20.
    assert_eq!(lengths("Europe/Berlin", NOV_20 - 27 * DAY, 2), [24, 25, 24]);
    // 2027-03-27T00:00Z is 127 days after Nov 20: 10 left in November, 31, 31, 28, 27.
    assert_eq!(
        lengths("Europe/Berlin", NOV_20 + 127 * DAY, 2),
        [24, 23, 24]
    );
    // Beirut skips midnight itself: Sunday 2027-03-28 begins at 01:00, 23 hours before the next midnight.
    assert_eq!(lengths("Asia/Beirut", NOV_20 + 127 * DAY, 2), [24, 23, 24]);
    // Samoa skipped Friday 2011-12-30: no day is missing in time, and none is empty. 2011-12-29T12:00Z is 15,337.5 days after the epoch.
    assert_eq!(
        lengths("Pacific/Apia", 15_337 * DAY + 43_200, 2),
        [24, 24, 24]
    );
}

#[test]
fn zone_names_are_canonical() {
    assert_eq!(
        zone::canonical("asia/taipei").as_deref(),
        Some("Asia/Taipei")
    );
    assert_eq!(zone::canonical("UTC").as_deref(), Some("UTC"));
    assert_eq!(zone::canonical("Europe/Nowhere"), None);
    assert_eq!(zone::canonical(""), None);
    assert_eq!(zone::canonical("EST5EDT,M3.2.0,M11.1.0"), None);
}

#[test]
fn weeks_begin_on_monday_and_months_on_their_first() {
    // Nov 20 is a Friday: its week began on Monday Nov 16, in Taipei at Nov 15 16:00 UTC.
    let monday = |days: i64| NOV_20 + days * DAY - 8 * 3_600;
    assert_eq!(
        zone::mondays("Asia/Taipei", NOV_20, NOV_20 + 2 * DAY),
        Some(vec![monday(-4), monday(3)])
    );
    // Nov 1 is 19 days before; December begins 11 days after, January 42.
    assert_eq!(
        zone::months("UTC", NOV_20, NOV_20 + 12 * DAY),
        Some(vec![
            NOV_20 - 19 * DAY,
            NOV_20 + 11 * DAY,
            NOV_20 + 42 * DAY
        ])
    );
    // Berlin's October 2026 is an hour longer: from Sep 30 22:00 UTC to Oct 31 23:00 UTC.
    assert_eq!(
        zone::months("Europe/Berlin", NOV_20 - 40 * DAY, NOV_20 - 30 * DAY),
        Some(vec![
            NOV_20 - 50 * DAY - 2 * 3_600,
            NOV_20 - 19 * DAY - 3_600
        ])
    );
    assert_eq!(zone::months("Nowhere", NOV_20, NOV_20), None);
}

#[test]
fn a_calendar_has_the_windows_that_limits_count_in_and_one_before() {
    let text = v1(
        "case",
        "{budget: {weekly_limit_usd: 1, monthly_limit_usd: 2, hourly_limit_usd: 0.5}}",
    );
    let compiled = compile(&documents(&text), NOV_20, NOV_20 + DAY).expect("compiles");
    assert_eq!(compiled.calendars.len(), 1);
    let calendar = &compiled.calendars[0];
    assert_eq!(calendar.days, [0_i64; 0]);
    // Nov 19 less a week is Thursday the 12th, whose Monday is the 9th; Nov 22 and a week is Sunday the 29th, before Monday the 30th.
    let mondays: Vec<i64> = (0..4).map(|week| NOV_20 + (7 * week - 11) * DAY).collect();
    assert_eq!(calendar.weeks, mondays);
    // Nov 19 less 31 days is Oct 19; Nov 22 and 31 days is Dec 23.
    assert_eq!(
        calendar.months,
        [
            NOV_20 - 50 * DAY,
            NOV_20 - 19 * DAY,
            NOV_20 + 11 * DAY,
            NOV_20 + 42 * DAY
        ]
    );
}

/// Whether an instant is inside, by asking a clock of the zone.
fn shown(zone: &str, start: u32, end: u32, at: i64) -> bool {
    let clock = jiff::Timestamp::from_second(at)
        .unwrap()
        .in_tz(zone)
        .unwrap()
        .time();
    let seconds = i64::from(clock.hour()) * 3_600
        + i64::from(clock.minute()) * 60
        + i64::from(clock.second());
    let (start, end) = (i64::from(start) * 60, i64::from(end) * 60);
    match start < end {
        true => start <= seconds && seconds < end,
        false => start <= seconds || seconds < end,
    }
}

#[test]
fn active_hours_are_what_clocks_show() {
    // In Berlin on Sunday 2027-03-28 clocks go from 02:00 to 03:00 at 01:00 UTC; on 2026-10-25 from 03:00 back to 02:00.
    let spring = NOV_20 + 128 * DAY;
    let autumn = NOV_20 - 26 * DAY;
    let open = |start, end, day: i64| {
        zone::open_hours("Europe/Berlin", start, end, day - 7_200, day + 79_200)
            .expect("has hours")
            .into_iter()
            .map(|(start, end)| (start - day, end - day))
            .collect::<Vec<_>>()
    };
    // 01:30 to 03:30 is 00:30 UTC to 01:30 UTC: an hour, the other is skipped.
    assert_eq!(open(90, 210, spring), [(1_800, 5_400)]);
    // 02:15 to 02:45 is not shown on that day.
    assert_eq!(open(135, 165, spring), [(0, 0); 0]);
    // 02:15 to 02:45 is shown twice, at 00:15 UTC and 01:15 UTC.
    assert_eq!(open(135, 165, autumn), [(900, 2_700), (4_500, 6_300)]);
    // 22:00 to 06:00 over that night, from midnight 2026-10-24 22:00 UTC: up to 06:00 (05:00 UTC), and again from 22:00 (21:00 UTC).
    assert_eq!(
        open(1_320, 360, autumn),
        [(-7_200, 18_000), (75_600, 79_200)]
    );
}

#[test]
fn active_hours_agree_with_clocks_everywhere() {
    // Zones with changes at odd times: at midnight, by half an hour, of a whole day, of 45 minutes' offset, none.
    for (zone, around) in [
        ("Europe/Berlin", NOV_20 + 128 * DAY),
        ("America/New_York", NOV_20 - 19 * DAY),
        ("Asia/Beirut", NOV_20 + 128 * DAY),
        ("Australia/Lord_Howe", NOV_20 + 135 * DAY),
        ("Pacific/Apia", 15_338 * DAY),
        ("Asia/Kathmandu", NOV_20),
        ("Africa/Casablanca", NOV_20 + 80 * DAY),
    ] {
        let (from, until) = (around - 2 * DAY, around + 2 * DAY);
        for (start, end) in [
            (540, 1_080),
            (0, 1),
            (120, 180),
            (1_320, 360),
            (1, 0),
            (23, 22),
        ] {
            let open = zone::open_hours(zone, start, end, from, until).expect("has hours");
            assert!(open.windows(2).all(|pair| pair[0].1 < pair[1].0), "{zone}");
            for at in (from..until).step_by(60) {
                let inside = open.iter().any(|(start, end)| *start <= at && at < *end);
                assert_eq!(
                    inside,
                    shown(zone, start, end, at),
                    "{zone} {start}-{end} at {at}"
                );
            }
        }
    }
}
