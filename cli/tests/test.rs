//! `tollgate test` runs the cases beside policies, and says what differs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const POLICY: &str = r#"
apiVersion: tollgate/v1
kind: Policy
metadata: {name: platform}
spec:
  scope: team:platform
  network: {allowlist: [api.openai.com]}
  capabilities: {deny: ["model:gpt-4o"]}
"#;

const CASES: &str = r#"
agent: {team: platform}
cases:
- name: the small model passes
  call: {url: https://api.openai.com/v1/chat/completions, body: {model: gpt-4o-mini, messages: []}}
  expect: {outcome: allow}
- name: the large one does not
  call: {url: https://api.openai.com/v1/chat/completions, body: {model: gpt-4o, messages: []}}
  expect: {outcome: deny, reasons: [capabilities.deny @ platform], status: 403}
- name: another team has no policy
  agent: {team: other}
  call: {url: https://api.openai.com/v1/models, method: GET}
  expect: {outcome: deny, reasons: [policy.none]}
"#;

/// A fresh folder of these files.
fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&dir);
    for (path, content) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

fn run(dir: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .arg("test")
        .arg(dir)
        .args(more)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn what_is_as_expected_passes_and_rules_are_covered() {
    let dir = folder(
        "passes",
        &[
            ("below/platform.yaml", POLICY),
            ("below/platform.test.yaml", CASES),
        ],
    );
    let output = run(&dir, &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        stdout(&output),
        "3 passed, 0 failed\n\
         1 of 2 rules refused a call in some case\n  \
         never refused: network.allowlist @ platform\n"
    );
}

#[test]
fn what_differs_is_shown_and_counted() {
    let wrong = CASES
        .replace(
            "deny, reasons: [policy.none]",
            "deny, reasons: [network.allowlist @ platform]",
        )
        .replace("outcome: allow", "outcome: deny");
    let dir = folder(
        "fails",
        &[("platform.yaml", POLICY), ("platform.test.yaml", &wrong)],
    );
    let junit = dir.join("junit.xml");
    let output = run(&dir, &["--junit", junit.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let file = dir.join("platform.test.yaml");
    let file = file.display();
    assert_eq!(
        stdout(&output),
        format!(
            "FAIL {file}: the small model passes\n  \
             outcome: expected deny, found allow\n\
             FAIL {file}: another team has no policy\n  \
             reasons:\n    \
             - network.allowlist @ platform\n    \
             + policy.none: no policy applies to this agent; nothing is allowed until one does\n\
             1 passed, 2 failed\n\
             1 of 2 rules refused a call in some case\n  \
             never refused: network.allowlist @ platform\n"
        )
    );
    let junit = fs::read_to_string(junit).unwrap();
    assert!(
        junit.contains("tests=\"3\" failures=\"2\"")
            && junit.contains("name=\"the large one does not\"/>")
            && junit.contains("<failure message=\"outcome: expected deny, found allow\">"),
        "{junit}"
    );
}

#[test]
fn what_cannot_be_run_is_no_success() {
    let empty = folder("empty", &[("platform.yaml", POLICY)]);
    assert_eq!(run(&empty, &[]).status.code(), Some(2));
    let unknown = CASES.replace("outcome: allow", "outcom: allow");
    let dir = folder(
        "unknown-field",
        &[("platform.yaml", POLICY), ("platform.test.yaml", &unknown)],
    );
    let output = run(&dir, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("outcom"));
    let bad = folder(
        "bad-policy",
        &[
            ("platform.yaml", "scope: nobody\n"),
            ("platform.test.yaml", CASES),
        ],
    );
    assert_eq!(run(&bad, &[]).status.code(), Some(2));
}
