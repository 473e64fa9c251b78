//! `tollgate diff` says in words and JSON what a new set of policies changes.

use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn diff(name: &str, old: &str, new: &str, more: &[&str]) -> Output {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&dir);
    for (side, text) in [("old", old), ("new", new)] {
        fs::create_dir_all(dir.join(side)).unwrap();
        fs::write(dir.join(side).join("team.yaml"), text).unwrap();
        fs::write(dir.join(side).join("team.test.yaml"), "not: [a, policy").unwrap();
    }
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .arg("diff")
        .args([dir.join("old"), dir.join("new/team.yaml")])
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn in_words_and_in_json() {
    let old =
        "scope: team:platform\nnetwork: {allowlist: [a.example]}\nbudget: {daily_limit_usd: 5}\n";
    let new = "scope: team:platform\nnetwork: {allowlist: [a.example, b.example]}\nbudget: {daily_limit_usd: 2.5}\n";
    let output = diff("words", old, new, &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "team (team:platform)\n  \
         narrows  budget.daily_limit_usd (per agent, UTC): from $5.00 to $2.50\n  \
         widens   network.allowlist: adds b.example\n"
    );
    let output = diff("json", old, new, &["--json"]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        value[1],
        json!({"document": "team", "scope": "team:platform", "rule": "network.allowlist", "effect": "widens", "message": "adds b.example"})
    );
    let output = diff("same", old, old, &[]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "no difference\n");
    let output = diff("broken", old, "scope: nobody\n", &[]);
    assert_eq!(output.status.code(), Some(2));
}
