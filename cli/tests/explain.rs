//! `tollgate explain` shows every document a call meets and what would turn the outcome.

use serde_json::Value;
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
