//! The example policies of `agent-assembly/v1` load unchanged: each gives exactly the findings written here.

use tollgate_policy::{Capability, Host, Parsed, Severity, parse};

fn findings(parsed: &Parsed, severity: Severity) -> Vec<(&str, &str)> {
    let of_severity = parsed.diagnostics.iter().filter(|d| d.severity == severity);
    of_severity.map(|d| (d.code, d.path.as_str())).collect()
}

/// Parses an example, strictly: its keys are all known.
fn check(file: &str, text: &str, errors: &[(&str, &str)], warnings: &[(&str, &str)]) -> Parsed {
    let parsed = parse(file, text.as_bytes(), true);
    assert_eq!(
        findings(&parsed, Severity::Error),
        errors,
        "errors of {file}"
    );
    assert_eq!(
        findings(&parsed, Severity::Warning),
        warnings,
        "warnings of {file}"
    );
    parsed
}

#[test]
fn the_envelope_example_loads() {
    let text = include_str!("agent-assembly/envelope.yaml");
    let parsed = check("envelope.yaml", text, &[], &[]);
    let document = &parsed.documents[0];
    assert_eq!(document.name, "my-policy");
    assert_eq!(document.version.as_deref(), Some("1.0.0"));
    assert_eq!(document.description.as_deref(), Some("..."));
    assert_eq!(document.scope.to_string(), "team:platform");
    let host = Host::Exact("api.openai.com".to_string());
    assert_eq!(document.network.as_deref(), Some([host].as_slice()));
    let budget = document.budget.as_ref().expect("has a budget");
    // 25.0 USD in units of 10⁻⁹ USD.
    assert_eq!(
        (budget.limits.len(), budget.limits[0].amount),
        (1, 25_000_000_000)
    );
    assert_eq!(budget.timezone, "UTC");
}

#[test]
fn the_flat_example_loads_under_the_name_of_its_file() {
    let text = include_str!("agent-assembly/flat.yaml");
    let parsed = check("some/folder/flat.yaml", text, &[], &[]);
    assert_eq!(parsed.documents[0].name, "flat");
    assert_eq!(parsed.documents[0].version.as_deref(), Some("1.0"));
    assert_eq!(parsed.documents[0].scope.to_string(), "global");
}

#[test]
fn examples_without_unenforced_fields_load_clean() {
    check(
        "budget-only.yaml",
        include_str!("agent-assembly/budget-only.yaml"),
        &[],
        &[],
    );
    check(
        "allowlist.yaml",
        include_str!("agent-assembly/allowlist.yaml"),
        &[],
        &[],
    );
    check(
        "no-pii.yaml",
        include_str!("agent-assembly/no-pii.yaml"),
        &[],
        &[],
    );
}

#[test]
fn capabilities_out_of_a_gates_sight_are_warned_about() {
    let text = include_str!("agent-assembly/capabilities.yaml");
    let warnings = [
        ("P302", "spec.capabilities.allow[0]"),
        ("P302", "spec.capabilities.deny[0]"),
        ("P302", "spec.capabilities.deny[1]"),
    ];
    let parsed = check("capabilities.yaml", text, &[], &warnings);
    let capabilities = &parsed.documents[0].capabilities;
    assert_eq!(
        capabilities.allow,
        [
            Capability::OutOfSight("file_read"),
            Capability::NetworkOutbound,
            Capability::McpTool("git".to_string()),
            Capability::McpTool("bash".to_string()),
        ]
    );
}

#[test]
fn the_guarded_tools_example_loads() {
    let text = include_str!("agent-assembly/guarded-tools.yaml");
    let parsed = check("guarded-tools.yaml", text, &[], &[]);
    let bash = &parsed.documents[0].tools[0];
    assert!(bash.allow && bash.limit_per_hour == Some(10));
    let condition = bash.requires_approval_if.as_ref().expect("has a condition");
    assert_eq!(condition.text, "governance_level >= L2");
}

#[test]
fn the_business_hours_example_loads() {
    let text = include_str!("agent-assembly/business-hours.yaml");
    let parsed = check("business-hours.yaml", text, &[], &[]);
    let hours = parsed.documents[0]
        .active_hours
        .as_ref()
        .expect("has hours");
    assert_eq!(hours.to_string(), "09:00-18:00 America/New_York");
}

#[test]
fn the_full_example_loads() {
    let text = include_str!("agent-assembly/full.yaml");
    let warnings = [
        ("P302", "spec.capabilities.allow[0]"),
        ("P302", "spec.capabilities.deny[0]"),
        ("P303", "spec.approval_timeout_secs"),
        ("P303", "spec.approval"),
    ];
    let parsed = check("full.yaml", text, &[], &warnings);
    let document = &parsed.documents[0];
    let tools: Vec<_> = document
        .tools
        .iter()
        .map(|tool| (tool.name.as_str(), tool.allow, tool.limit_per_hour))
        .collect();
    assert_eq!(
        tools,
        [("bash", true, Some(10)), ("file_write", false, None)]
    );
    let budget = document.budget.as_ref().expect("has a budget");
    let limits: Vec<_> = budget
        .limits
        .iter()
        .map(|limit| (limit.field, limit.amount))
        .collect();
    assert_eq!(
        limits,
        [
            ("daily_limit_usd", 25_000_000_000),
            ("monthly_limit_usd", 500_000_000_000)
        ]
    );
}

#[test]
fn the_fragments_load_as_documents_of_one_file() {
    let text = include_str!("agent-assembly/sections.yaml");
    let warnings = [
        ("P302", "capabilities.allow[0]"),
        ("P302", "capabilities.deny[0]"),
        ("P302", "capabilities.deny[1]"),
        ("P303", "approval"),
        // The last fragment has nothing else.
        ("P304", ""),
    ];
    check("sections.yaml", text, &[], &warnings);
}
