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
    assert_eq!(budget.daily_limit_nano_usd, Some(25_000_000_000));
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
fn what_is_not_enforced_is_an_error() {
    let tools = include_str!("agent-assembly/guarded-tools.yaml");
    let errors = [
        ("P301", "spec.tools.bash.limit_per_hour"),
        ("P301", "spec.tools.bash.requires_approval_if"),
    ];
    let parsed = check("guarded-tools.yaml", tools, &errors, &[]);
    assert!(
        parsed.documents.is_empty(),
        "a refused file gives no documents"
    );

    let hours = include_str!("agent-assembly/business-hours.yaml");
    let errors = [("P301", "spec.schedule.active_hours")];
    check("business-hours.yaml", hours, &errors, &[]);
}

#[test]
fn the_full_example_gives_all_its_findings_at_once() {
    let text = include_str!("agent-assembly/full.yaml");
    let errors = [
        ("P301", "spec.schedule.active_hours"),
        ("P301", "spec.budget.monthly_limit_usd"),
        ("P301", "spec.tools.bash.limit_per_hour"),
    ];
    let warnings = [
        ("P302", "spec.capabilities.allow[0]"),
        ("P302", "spec.capabilities.deny[0]"),
        ("P303", "spec.approval_timeout_secs"),
        ("P303", "spec.approval"),
    ];
    check("full.yaml", text, &errors, &warnings);
}

#[test]
fn the_fragments_load_as_documents_of_one_file() {
    let text = include_str!("agent-assembly/sections.yaml");
    let errors = [
        ("P301", "schedule.active_hours"),
        ("P301", "budget.monthly_limit_usd"),
        ("P301", "tools.bash.limit_per_hour"),
        ("P301", "tools.bash.requires_approval_if"),
        ("P301", "tools.file_write.limit_per_hour"),
    ];
    let warnings = [
        ("P302", "capabilities.allow[0]"),
        ("P302", "capabilities.deny[0]"),
        ("P302", "capabilities.deny[1]"),
        ("P303", "approval"),
    ];
    check("sections.yaml", text, &errors, &warnings);
}
