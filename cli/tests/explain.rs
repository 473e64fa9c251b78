//! `tollgate explain` shows every document a call meets and what would turn the outcome.

use serde_json::{Value, json};
use std::{path::PathBuf, process::Command};

const POLICIES: &str = r#"
apiVersion: tollgate/v1
kind: Policy
metadata: {name: everybody}
spec:
  network: {allowlist: [api.openai.com]}
  tools: {bash: {allow: false}}
---
apiVersion: tollgate/v1
kind: Policy
metadata: {name: platform}
spec: {scope: "team:platform", capabilities: {deny: ["model:gpt-4o"]}, budget: {daily_limit_usd: 1}}
---
apiVersion: tollgate/v1
kind: Policy
metadata: {name: finance}
spec: {scope: "team:finance", network: {}}
"#;

fn explain(model: &str, more: &[&str]) -> String {
    let file = |name: &str, content: &str| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{model}{}-{name}", more.concat()));
        std::fs::write(&path, content).unwrap();
        path
    };
    let request = format!(
        r#"{{"url": "https://api.openai.com/v1/chat/completions", "body": {{"model": "{model}", "max_tokens": 10, "messages": []}}}}"#
    );
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .arg("explain")
        .arg("--policy")
        .arg(file("policies.yaml", POLICIES))
        .arg("--request")
        .arg(file("request.json", &request))
        .args(["--team", "platform"])
        .args(more)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_denial_says_what_would_let_it_pass() {
    assert_eq!(
        explain("gpt-4o", &[]),
        "deny\n  \
         capabilities.deny (platform): the model `gpt-4o` is denied\n\
         \n\
         everybody (global) applies\n  \
         passes   network.allowlist: hosts that may be called: api.openai.com\n  \
         silent   tools.bash.allow: the tool `bash` may not be used\n\
         \n\
         finance (team:finance) does not apply to this call\n\
         \n\
         platform (team:platform) applies\n  \
         refuses  capabilities.deny: models denied: gpt-4o\n  \
         passes   budget.daily_limit_usd: at most $1.00 per agent and day (UTC)\n\
         \n\
         to let it pass, all of these:\n  \
         capabilities.deny (platform): use another model, or remove what names `gpt-4o` from the list\n"
    );
}

#[test]
fn an_allowance_says_what_would_be_refused() {
    let text = explain("gpt-4o-mini", &[]);
    assert!(text.starts_with("allow\n"), "{text}");
    assert!(
        text.contains(
            "what would be refused:\n  \
             network.allowlist (everybody): a host that is not listed\n  \
             tools.bash.allow (everybody): a call that offers or calls `bash`\n  \
             capabilities.deny (platform): a model on the list\n"
        ),
        "{text}"
    );
}

#[test]
fn programs_get_the_same() {
    let value: Value = serde_json::from_str(&explain("gpt-4o", &["--json"])).unwrap();
    assert_eq!(value["outcome"], "deny");
    let documents = value["documents"].as_array().unwrap();
    assert_eq!(documents.len(), 3);
    assert_eq!(documents[1]["document"], "finance");
    assert_eq!(documents[1]["applies"], false);
    assert_eq!(documents[2]["rules"][0]["verdict"], "refuses");
}

/// What is said of one policy, `p` with this `spec`, and a request.
fn of(name: &str, spec: &str, request: &Value, more: &[&str]) -> String {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("explain-{name}"));
    std::fs::create_dir_all(&dir).unwrap();
    let mut policy =
        "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {name: p}\nspec:\n".to_string();
    for line in spec.lines() {
        policy += &format!("  {line}\n");
    }
    std::fs::write(dir.join("p.yaml"), policy).unwrap();
    std::fs::write(dir.join("request.txt"), request.to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .arg("explain")
        .arg("--policy")
        .arg(dir.join("p.yaml"))
        .arg("--request")
        .arg(dir.join("request.txt"))
        .args(more)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": "gpt-4o", "max_tokens": 10, "messages": []});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    json!({"url": "https://api.openai.com/v1/chat/completions", "body": body})
}

/// The lines below the last heading.
fn advice(text: &str) -> &str {
    let (_, advice) = text.rsplit_once("\n\n").unwrap();
    advice.split_once(":\n").unwrap().1
}

#[test]
fn a_document_keeps_its_scope_when_nobody_is_named() {
    let text = of(
        "scope",
        "scope: team:platform\nnetwork: {}\n",
        &chat(json!({})),
        &[],
    );
    assert!(text.contains("p (team:platform) applies\n"), "{text}");
}

#[test]
fn the_host_that_is_refused_is_the_one_to_add() {
    let request = json!({
        "url": "https://api.anthropic.com/v1/messages",
        "body": {
            "model": "claude-haiku-4-5", "max_tokens": 10, "messages": [],
            "mcp_servers": [{"type": "url", "name": "a", "url": "https://evil.example/mcp"}],
        },
    });
    let text = of(
        "hosts",
        "network: {allowlist: [api.anthropic.com]}\n",
        &request,
        &[],
    );
    assert_eq!(
        advice(&text),
        "  network.allowlist (p): add `evil.example` to the list, or name only hosts on it\n"
    );
    let text = of(
        "denied-hosts",
        "network: {denylist: ['*.example']}\n",
        &request,
        &[],
    );
    assert_eq!(
        advice(&text),
        "  network.denylist (p): name other hosts, or take what means `evil.example` off the list\n"
    );
}

#[test]
fn what_a_call_lacks_is_what_lets_it_pass() {
    let run = of(
        "run",
        "agent: {budget: {max_cost_usd: 1}}\n",
        &chat(json!({})),
        &[],
    );
    assert_eq!(
        advice(&run),
        "  agent.budget.max_cost_usd (p): name a run in `x-tollgate-run`\n"
    );
    let id = "00000000-0000-4000-8000-00000000000a";
    let per = |whom: &str| format!("budget: {{daily_limit_usd: 1, per: {whom}}}\n");
    let team = of("team", &per("team"), &chat(json!({})), &["--agent", id]);
    assert_eq!(
        advice(&team),
        "  budget.daily_limit_usd (p): give the agent a team, or count by something else (`per`)\n"
    );
    let org = of("org", &per("org"), &chat(json!({})), &["--agent", id]);
    assert!(
        advice(&org).contains("give the agent an organisation"),
        "{org}"
    );
    let large = of(
        "large",
        "budget: {daily_limit_tokens: 500}\n",
        &chat(json!({"max_tokens": 1000})),
        &[],
    );
    assert!(
        advice(&large)
            .contains("budget.daily_limit_tokens (p): ask for at most 500 tokens instead of 10"),
        "{large}"
    );
    let unknown = of(
        "unknown",
        "budget: {daily_limit_usd: 1, monthly_limit_usd: 2}\n",
        &chat(json!({"model": "mine"})),
        &[],
    );
    assert_eq!(
        advice(&unknown),
        "  budget.unknown_model (p): use a model with a known price, or set one: `budget.unknown_model`, `prices`\n"
    );
}

#[test]
fn what_only_warns_refuses_nothing() {
    let policy = "budget: {daily_limit_usd: 1, action_on_exceed: alert}\nnetwork: {allowlist: [api.openai.com]}\n";
    let text = of("alert", policy, &chat(json!({})), &[]);
    assert!(
        text.contains("budget.daily_limit_usd: a warning beyond $1.00 per agent and day (UTC)\n"),
        "{text}"
    );
    assert_eq!(
        advice(&text),
        "  network.allowlist (p): a host that is not listed\n"
    );
}

#[test]
fn patterns_that_are_not_looked_for_are_silent() {
    let secret = chat(json!({"user": "key-abcdefgh"}));
    let policy = "data: {sensitive_patterns: ['key-[a-z]{8}'], applies_to: responses}\n";
    let text = of("answers", policy, &secret, &[]);
    assert!(
        text.contains(
            "silent   data.sensitive_patterns[0]: answers that match this pattern may not pass\n"
        ),
        "{text}"
    );
    assert_eq!(
        advice(&text),
        "  data.sensitive_patterns[0] (p): an answer that matches it\n"
    );

    let call = json!({
        "url": "https://mcp.example/mcp",
        "headers": {"accept": "application/json, text/event-stream"},
        "body": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "Vault", "arguments": {"key": "key-abcdefgh"}}},
    });
    for action in ["block", "redact"] {
        let policy = format!(
            "data: {{sensitive_patterns: ['key-[a-z]{{8}}'], exempt_tools: [vault], action: {action}}}\n"
        );
        let text = of(action, &policy, &call, &[]);
        assert!(
            text.starts_with("allow\n") && text.contains("silent   data.sensitive_patterns[0]"),
            "{text}"
        );
        assert!(
            advice(&text).contains("in a call of another tool"),
            "{text}"
        );
    }
}

#[test]
fn a_search_that_gives_up_is_a_rule_that_refuses() {
    // As many states as the text has bytes.
    let mut seed = 9_u64;
    let hostile: String = (0..1 << 19)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if seed >> 63 == 0 { 'a' } else { 'b' }
        })
        .collect();
    let policy = "data: {sensitive_patterns: ['(?:a|b)*a(?:a|b){14}c']}\n";
    let text = of("hostile", policy, &chat(json!({"user": hostile})), &[]);
    assert!(text.starts_with("deny\n  data.unsearchable (p)"), "{text}");
    assert!(
        text.contains("  refuses  data.unsearchable: ")
            && text.contains("  silent   data.sensitive_patterns[0]: "),
        "{text}"
    );
    assert_eq!(
        advice(&text),
        "  data.unsearchable (p): send less, or write the patterns so that they begin with what is fixed\n"
    );
}
