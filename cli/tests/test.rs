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

#[test]
fn test_files_are_known_by_their_names_in_any_case() {
    let json = r#"{"agent": {"team": "platform"}, "cases": [{"name": "a", "call": {"url": "https://api.openai.com/v1/models", "method": "GET"}, "expect": {"outcome": "allow"}}]}"#;
    let dir = folder(
        "names",
        &[
            ("platform.YML", POLICY),
            ("X.TEST.yaml", CASES),
            ("y.test.json", json),
        ],
    );
    let output = run(&dir, &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stdout(&output).starts_with("4 passed, 0 failed\n"));
    // A file that is named is one of cases, and no policy, whatever its name.
    fs::rename(dir.join("y.test.json"), dir.join("cases.json")).unwrap();
    let output = run(&dir.join("cases.json"), &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[cfg(unix)]
#[test]
fn links_to_test_files_are_followed() {
    use std::os::unix::fs::symlink;
    let dir = folder(
        "linked-cases",
        &[
            ("..2026/platform.yaml", POLICY),
            ("..2026/platform.test.yaml", CASES),
        ],
    );
    symlink("..2026", dir.join("..data")).unwrap();
    symlink("..data/platform.yaml", dir.join("platform.yaml")).unwrap();
    symlink("..data/platform.test.yaml", dir.join("platform.test.yaml")).unwrap();
    symlink(".", dir.join("round")).unwrap();
    let output = run(&dir, &[]);
    assert!(
        stdout(&output).starts_with("3 passed, 0 failed\n"),
        "{output:?}"
    );
}

#[test]
fn without_a_case_nothing_is_run() {
    let dir = folder(
        "no-cases",
        &[("platform.yaml", POLICY), ("a.test.yaml", "cases: []\n")],
    );
    let output = run(&dir, &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("a.test.yaml`: it has no cases"));
    let alone = folder("no-policies", &[("a.test.yaml", CASES)]);
    let output = run(&alone, &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no policy file"));
}

#[test]
fn what_cannot_be_run_stops_nothing_else() {
    let odd = CASES.replace("outcome: allow", "outcome: alow");
    let dir = folder(
        "others-run",
        &[
            ("platform.yaml", POLICY),
            ("a.test.yaml", "cases: [\n"),
            ("b.test.yaml", CASES),
            ("c.test.yaml", &odd),
        ],
    );
    let junit = dir.join("junit.xml");
    let output = run(&dir, &["--junit", junit.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("a.test.yaml"));
    let text = stdout(&output);
    assert!(
        text.contains("c.test.yaml: the small model passes\n  cannot be run: `outcome` must be"),
        "{text}"
    );
    assert!(
        text.contains("5 passed, 1 failed, 1 file could not be run\n"),
        "{text}"
    );
    let junit = fs::read_to_string(junit).unwrap();
    assert!(
        junit.contains("tests=\"1\" failures=\"0\" errors=\"1\"")
            && junit.contains("<error message=\""),
        "{junit}"
    );
}

#[test]
fn a_body_with_a_key_twice_is_no_request() {
    let twice = CASES.replace(
        "{model: gpt-4o-mini,",
        "{model: gpt-4o, model: gpt-4o-mini,",
    );
    let dir = folder(
        "twice",
        &[("platform.yaml", POLICY), ("platform.test.yaml", &twice)],
    );
    let output = run(&dir, &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("duplicate mapping key: model"),
        "{output:?}"
    );
}

#[test]
fn a_case_that_depends_on_who_calls_has_to_say_so() {
    let policy = "scope: global\ntools: {bash: {requires_approval_if: \"team == 'platform'\"}}\n";
    let cases = r#"
cases:
- name: nobody in particular
  call: {url: https://api.openai.com/v1/chat/completions, body: {model: gpt-4o, messages: [], tools: [{type: function, function: {name: bash}}]}}
  expect: {outcome: allow}
- name: one of them
  agent: {team: platform}
  call: {url: https://api.openai.com/v1/chat/completions, body: {model: gpt-4o, messages: [], tools: [{type: function, function: {name: bash}}]}}
  expect: {outcome: hold, reasons: [tools.bash.requires_approval_if @ p]}
- name: an agent of no such name
  agent: {id: nobody}
  call: {url: https://api.openai.com/v1/chat/completions, body: {model: gpt-4o, messages: []}}
  expect: {outcome: allow}
"#;
    let dir = folder("who", &[("p.yaml", policy), ("p.test.yaml", cases)]);
    let output = run(&dir, &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = stdout(&output);
    assert!(
        text.contains(
            "cannot be run: `tools.bash.requires_approval_if` of `p` asks for the caller's team"
        ),
        "{text}"
    );
    assert!(
        text.contains("`nobody` is not the UUID of an agent"),
        "{text}"
    );
    assert!(text.contains("1 passed, 2 failed\n"), "{text}");
}
