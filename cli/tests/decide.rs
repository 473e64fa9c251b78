//! `tollgate decide` says what a gate would say, and its JSON keeps its shape.

use serde_json::{Value, json};
use std::{
    path::PathBuf,
    process::{Command, Output},
};

const POLICY: &str = r#"
apiVersion: agent-assembly/v1
kind: Policy
metadata: {name: production}
spec:
  scope: team:platform
  network: {allowlist: [api.openai.com]}
  budget: {daily_limit_usd: 25.0}
  capabilities: {deny: ["model:gpt-4o"]}
  data: {sensitive_patterns: ["key-[a-z]{8}"]}
"#;

/// A file in the test's own scratch folder.
fn file(name: &str, content: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, content).unwrap();
    path.into_os_string().into_string().unwrap()
}

fn decide(name: &str, policy: &str, request: &str, more: &[&str]) -> Output {
    let policy = file(&format!("{name}.yaml"), policy);
    let request = file(&format!("{name}.json"), request);
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["decide", "--policy", &policy, "--request", &request])
        .args(more)
        .output()
        .unwrap()
}

fn verdict(name: &str, request: &Value, more: &[&str]) -> Value {
    let output = decide(
        name,
        POLICY,
        &request.to_string(),
        &[more, &["--json"]].concat(),
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn chat(model: &str, text: &str) -> Value {
    json!({
        "method": "POST",
        "url": "https://api.openai.com/v1/chat/completions",
        "headers": {"content-type": "application/json"},
        "body": {"model": model, "max_tokens": 10, "messages": [{"role": "user", "content": text}]},
    })
}

#[test]
fn an_allowed_call_says_what_it_takes() {
    let found = verdict("allowed", &chat("gpt-4o-mini", "hi"), &[]);
    assert_eq!(found["outcome"], "allow");
    assert_eq!(found["reasons"], json!([]));
    // The body as sent: {"max_tokens":10,"messages":[{"content":"hi","role":"user"}],"model":"gpt-4o-mini"} has 17 + 12 + 30 + 2 + 22 = 83 bytes
    // (field by field). 83 x 150 + 10 x 600 = 18,450 nano-USD.
    assert_eq!(found["worst_case_nano_usd"], "18450");
    assert_eq!(
        found["charges"],
        json!([{
            "account": "agent:00000000-0000-0000-0000-000000000000|nano_usd|day@UTC",
            "amount": "18450",
            "limit": "25000000000",
            "rule": "budget.daily_limit_usd",
            "document": "production",
        }])
    );
}

#[test]
fn a_denied_call_names_every_rule() {
    let mut request = chat("gpt-4o", "use key-abcdefgh");
    request["url"] = json!("http://evil.example:8080/v1/chat/completions");
    let found = verdict("denied", &request, &[]);
    assert_eq!(
        found["reasons"],
        json!([
            {"rule": "network.allowlist", "document": "production", "message": "the host `evil.example` is not on the allowlist"},
            {"rule": "capabilities.deny", "document": "production", "message": "the model `gpt-4o` is denied"},
            {"rule": "data.sensitive_patterns[0]", "document": "production", "message": "the content matches a sensitive pattern"},
        ])
    );
    assert_eq!(found["outcome"], "deny");
    assert_eq!(found["status"], 403);
    assert!(!found.to_string().contains("abcdefgh"));
}

#[test]
fn flags_say_who_calls() {
    let request = chat("gpt-4o", "hi");
    let ours = verdict("ours", &request, &["--team", "platform"]);
    assert_eq!(ours["reasons"][0]["rule"], "capabilities.deny");
    let others = verdict("others", &request, &["--team", "finance"]);
    assert_eq!(others["reasons"][0]["rule"], "policy.none");
}

#[test]
fn a_body_may_be_text_and_is_taken_as_it_is() {
    let mut request = chat("gpt-4o-mini", "hi");
    request["body"] = json!(r#"{"model":"gpt-4o-mini","model":"gpt-4o"}"#);
    let found = verdict("text", &request, &[]);
    assert_eq!(found["reasons"][0]["rule"], "request.json");
}

#[test]
fn the_instant_is_an_argument() {
    // A minute before midnight the day's budget resets at midnight.
    let mut request = chat("gpt-4o-mini", "hi");
    request["body"]["max_tokens"] = json!(100_000_000);
    let found = verdict("instant", &request, &["--now", "2026-11-20T23:59:00Z"]);
    let message = found["reasons"][0]["message"].as_str().unwrap();
    assert!(
        message.contains("it resets at 2026-11-21T00:00:00Z"),
        "{message}"
    );
}

#[test]
fn bad_input_is_exit_2_with_its_place() {
    let complaint = |output: Output| {
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    let request = chat("gpt-4o-mini", "hi").to_string();
    let bad = complaint(decide(
        "bad-policy",
        "budget: {daily_limit_usd: -1}\n",
        &request,
        &[],
    ));
    assert!(
        bad.contains("bad-policy.yaml:1:") && bad.contains("budget.daily_limit_usd"),
        "{bad}"
    );
    let bad = complaint(decide("bad-request", POLICY, "{}", &[]));
    assert!(bad.contains("missing field `url`"), "{bad}");
    let bad = complaint(decide("bad-url", POLICY, r#"{"url":"ftp://x"}"#, &[]));
    assert!(bad.contains("`url` must start with http"), "{bad}");
    let bad = complaint(decide("bad-now", POLICY, &request, &["--now", "yesterday"]));
    assert!(bad.contains("--now yesterday"), "{bad}");
}

/// Without a name the caller is one whom every document covers, and its scopes stay what they are.
#[test]
fn a_caller_that_is_not_named_is_the_one_the_policies_are_about() {
    let bash = json!({
        "url": "https://api.openai.com/v1/chat/completions",
        "body": {"model": "gpt-4o", "messages": [], "tools": [{"type": "function", "function": {"name": "bash"}}]},
    })
    .to_string();
    let policy = |scope: &str, condition: &str| {
        format!("scope: {scope}\ntools: {{bash: {{requires_approval_if: \"{condition}\"}}}}\n")
    };
    let first = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines().next().unwrap_or_default().to_string()
    };

    let ours = policy("team:platform", "team == 'platform'");
    let output = decide("meant", &ours, &bash, &[]);
    assert_eq!(first(&output), "hold", "{output:?}");
    let note = String::from_utf8_lossy(&output.stderr);
    assert!(
        note.contains("one whom every policy covers: team `platform`"),
        "{note}"
    );

    let id = "ABCDEF00-0000-4000-8000-00000000000A";
    let agents = policy(
        &format!("agent:{id}"),
        &format!("agent == '{}'", id.to_lowercase()),
    );
    assert_eq!(first(&decide("agents", &agents, &bash, &[])), "hold");
    assert_eq!(
        first(&decide("agents", &agents, &bash, &["--agent", id])),
        "hold"
    );

    // Nothing says whose organisation it is.
    let output = decide("org", &policy("team:platform", "org == 'acme'"), &bash, &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("asks for the caller's organisation") && said.contains("`--org`"),
        "{said}"
    );
    // The condition is not about this call.
    let plain = json!({"url": "https://api.openai.com/v1/models", "method": "GET"}).to_string();
    let output = decide(
        "plain",
        &policy("team:platform", "org == 'acme'"),
        &plain,
        &[],
    );
    assert_eq!(first(&output), "allow", "{output:?}");
}

#[test]
fn policies_of_several_teams_have_no_caller_of_their_own() {
    let complaint = |name: &str, policy: &str, more: &[&str]| {
        let request = chat("gpt-4o", "hi").to_string();
        let output = decide(name, policy, &request, more);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let two = "scope: team:platform\n---\nscope: team:finance\n---\nscope: global\n";
    let text = complaint("two-teams", two, &[]);
    assert!(
        text.contains("these policies are about several teams, `finance` and `platform`: say which one calls, with `--team`"),
        "{text}"
    );
    let text = complaint("no-uuid", two, &["--agent", "nobody"]);
    assert!(
        text.contains("`nobody` is not the UUID of an agent"),
        "{text}"
    );
}

#[test]
fn a_key_that_is_there_twice_is_refused() {
    let request = r#"{"url": "https://api.openai.com/v1/chat/completions", "body": {"a": [{"model": 1, "model": 2}]}}"#;
    let output = decide("twice", POLICY, request, &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("the key `model` is there twice"));
    let request = r#"{"url": "https://api.openai.com/", "headers": {"a": "1", "a": "2"}}"#;
    let output = decide("twice", POLICY, request, &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("the key `a` is there twice"));
}
