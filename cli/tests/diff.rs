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

/// A folder of these files, and of no others.
fn folder(name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    for (path, text) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn tollgate(command: &str, paths: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .arg(command)
        .args(paths)
        .output()
        .unwrap()
}

#[test]
fn folders_are_read_with_what_is_below_them() {
    let old = folder(
        "below-old",
        &[
            ("teams/a.yaml", "network: {allowlist: [a.example]}\n"),
            ("B.YAML", "network: {}\n"),
        ],
    );
    let new = folder(
        "below-new",
        &[
            ("teams/a.yaml", "network: {allowlist: ['*']}\n"),
            ("B.YAML", "budget: {daily_limit_usd: 1}\n"),
        ],
    );
    let output = tollgate("diff", &[&old, &new]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("a (global)\n  widens   network.allowlist") && text.contains("B (global)\n"),
        "{text}"
    );
}

#[test]
fn what_is_no_policy_of_a_folder_is_left_out() {
    let files = [
        ("p.yaml", "network: {}\n"),
        ("p.test.json", "{}"),
        ("P.TEST.YAML", "{}"),
        (".git/x.yaml", "not: [a, policy"),
        ("call.txt", "not: [a, policy"),
    ];
    let dir = folder("left-out", &files);
    let output = tollgate("diff", &[&dir, &dir]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "no difference\n",
        "{output:?}"
    );
    let output = tollgate("check", &[&dir]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "ok: 1 policy\n",
        "{output:?}"
    );
}

#[test]
fn a_folder_without_policies_is_no_set_of_them() {
    let (full, empty) = (
        folder("some", &[("p.yaml", "network: {}\n")]),
        folder("none", &[("sub/README", "")]),
    );
    for (command, paths) in [
        ("diff", vec![&*full, &*empty]),
        ("diff", vec![&*empty, &*empty]),
        ("check", vec![&*empty]),
    ] {
        let output = tollgate(command, &paths);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains("no policy file (*.yaml, *.yml, *.json) in `")
                && text.contains("none` or below it"),
            "{text}"
        );
    }
}

/// A folder as Kubernetes mounts a ConfigMap, and links that lead back up.
#[cfg(unix)]
#[test]
fn links_are_followed_and_nothing_is_read_twice() {
    use std::os::unix::fs::symlink;
    let dir = folder(
        "links",
        &[
            ("..2026/p.yaml", "network: {}\n"),
            ("sub/q.yaml", "network: {}\n"),
        ],
    );
    symlink("..2026", dir.join("..data")).unwrap();
    symlink("..data/p.yaml", dir.join("p.yaml")).unwrap();
    symlink("..", dir.join("sub/up")).unwrap();
    symlink("sub", dir.join("again")).unwrap();
    let output = tollgate("check", &[&dir]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "ok: 2 policies\n",
        "{output:?}"
    );
    symlink("nowhere", dir.join("lost.yaml")).unwrap();
    let output = tollgate("check", &[&dir]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("lost.yaml"),
        "{output:?}"
    );
}

#[test]
fn a_file_that_is_too_large_is_told_by_the_limit() {
    let large = format!("# {}\n", "x".repeat(5 << 20));
    let dir = folder("large", &[("p.yaml", &large)]);
    for command in ["check", "diff"] {
        let output = tollgate(
            command,
            &vec![dir.as_path(); if command == "diff" { 2 } else { 1 }],
        );
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(
            text.contains("the file has more than 1048576 bytes; split it"),
            "{text}"
        );
    }
}

/// A call as an export holds it, of 2026-11-20 or so many hours later.
fn recorded(id: &str, hours: i64, about: Value) -> Value {
    const NOON: i64 = 1_795_176_000_000; // 2026-11-20T12:00:00Z
    let mut record = json!({
        "id": id, "at_ms": NOON + hours * 3_600_000, "kind": "call", "revision": 7,
        "agent": "00000000-0000-4000-8000-00000000000a", "team": "platform", "org": "acme", "level": "L1",
        "method": "POST", "host": "api.openai.com", "path": "/v1/chat/completions", "route": "openai_chat",
        "model": "gpt-5-mini", "mcp_method": null, "tools": [], "outcome": "allow", "reasons": [],
        "status": 200, "reserved_nano_usd": "5000", "uninspected": false
    });
    for (key, value) in about.as_object().unwrap() {
        record[key] = value.clone();
    }
    record
}

#[test]
fn recorded_calls_are_decided_again() {
    let old = "
scope: team:platform
capabilities: {allow: ['model:gpt-5*', 'model:o3']}
tools: {git: {requires_approval_if: 'args.force == true'}, mail: {requires_approval_if: 'args.many == true'}}
data: {sensitive_patterns: ['sk-[a-z]{20}']}
budget: {daily_limit_usd: 5}
";
    let new = "
scope: team:platform
capabilities: {allow: ['model:gpt-5-mini', 'model:o3']}
schedule: {active_hours: {start: '08:00', end: '13:00', timezone: UTC}}
tools: {bash: {allow: false}, git: {requires_approval_if: 'args.force == true || governance_level == L0'}, mail: {requires_approval_if: 'args.many == true'}}
data: {sensitive_patterns: ['sk-[a-z]{20}']}
budget: {daily_limit_usd: 5}
";
    let mcp = json!({"route": "mcp", "path": "/mcp", "model": null, "mcp_method": "tools/call", "tools": ["git"], "reserved_nano_usd": null});
    let approved = |tool: &str| {
        let rule = format!("tools.{tool}.requires_approval_if");
        let mut about = mcp.clone();
        about["approved"] = json!([{"rule": rule, "document": "team"}]);
        about["tools"] = json!([tool]);
        about
    };
    let by = |rule: &str, document: Value| json!({"outcome": "deny", "reasons": [{"rule": rule, "document": document}]});
    let records = [
        // Nothing that changed is about it.
        recorded("a", 0, json!({})),
        // The model is no longer allowed.
        recorded("b", 0, json!({"model": "gpt-5"})),
        // The next day at three in the afternoon is out of hours.
        recorded("c", 27, json!({})),
        // The tool is denied now.
        recorded("d", 0, json!({"tools": ["bash"]})),
        // The pattern that matched then stands in both.
        recorded("e", 0, by("data.sensitive_patterns[0]", json!("team"))),
        // So does the budget that was used up then.
        recorded("f", 0, by("budget.daily_limit_usd", json!("team"))),
        // Denied for its model then and now: nothing else needs to be known.
        recorded("g", 0, {
            let mut about = by("capabilities.allow", json!("team"));
            about["model"] = json!("claude-haiku-4-5");
            about
        }),
        // What the tool was asked to do is not recorded, and the condition is another.
        recorded("h", 0, mcp.clone()),
        // What somebody approved then needs approval now, as far as can be told.
        recorded("j", 0, approved("git")),
        recorded("k", 0, approved("mail")),
        // No policy had been asked.
        recorded("i", 0, by("identity.expired", Value::Null)),
    ];
    let mut export = "{\"tollgate_export\":1}\n".to_owned();
    for record in &records {
        export += &format!("{record}\n");
    }
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("replayed.jsonl");
    fs::write(&file, export).unwrap();
    let file = file.to_str().unwrap();

    let output = diff("replay-json", old, new, &["--json", "--replay", file]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let replay = &value["replay"];
    assert_eq!(
        json!([
            replay["calls"],
            replay["same"],
            replay["otherwise"],
            replay["cannot_tell"],
            replay["before_policy"]
        ]),
        json!([10, 5, 3, 2, 1])
    );
    let changed = |index: usize| {
        let call = &replay["changed"][index];
        json!([call["id"], call["was"], call["now"], call["reasons"]])
    };
    assert_eq!(
        changed(0),
        json!(["b", "allow", "deny", ["capabilities.allow @ team"]])
    );
    assert_eq!(
        changed(1),
        json!(["c", "allow", "deny", ["schedule.active_hours @ team"]])
    );
    assert_eq!(
        changed(2),
        json!(["d", "allow", "deny", ["tools.bash.allow @ team"]])
    );
    assert_eq!(
        replay["because_of"],
        json!({"tools.git.requires_approval_if @ team": 2})
    );

    let output = diff("replay-words", old, new, &["--replay", file]);
    let words = String::from_utf8(output.stdout).unwrap();
    for line in [
        "10 recorded calls: 5 the same, 3 otherwise, 2 cannot be told; 1 more were refused before any policy was asked\n",
        "  2026-11-20T12:00:00Z  b  00000000-0000-4000-8000-00000000000a  POST api.openai.com/v1/chat/completions: was allow, now deny by capabilities.allow @ team\n",
        "  tools.git.requires_approval_if @ team: 2\n",
    ] {
        assert!(words.contains(line), "{line}{words}");
    }

    fs::write(file, "{}\n").unwrap();
    let output = diff("no-export", old, new, &["--replay", file]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is no export"));
}

/// What a call cost then says nothing of what it costs by other prices.
#[test]
fn by_other_prices_a_recorded_call_cannot_be_told() {
    let policy = |spec: &str| {
        format!(
            "{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: team}}, spec: {{{spec}}}}}\n"
        )
    };
    let price = |input: &str, most: &str| {
        format!(
            ", prices: {{gpt-5-mini: {{input_usd_per_million: {input}, output_usd_per_million: 2, max_output_tokens: {most}}}}}"
        )
    };
    let unknown = |input: &str| {
        format!(", unknown_model: {{input_usd_per_million: {input}, output_usd_per_million: 2}}")
    };
    let money = |more: &str| format!("budget: {{daily_limit_usd: 5{more}}}");
    let tokens = "budget: {daily_limit_tokens: 5000000}";
    let asking = "tools: {git: {requires_approval_if: 'estimated_cost_usd > 0.001'}, mail: {limit_per_hour: 9}}";
    let tool = |cost: &str| {
        format!("budget: {{daily_limit_usd: 5}}, tools: {{git: {{cost_usd: {cost}}}}}")
    };
    let mcp = json!({"route": "mcp", "path": "/mcp", "model": null, "mcp_method": "tools/call", "tools": ["git"], "reserved_nano_usd": "1000000"});
    let house = json!({"model": "house"});
    let offered = json!({"tools": ["git"]});
    let asked = format!("{asking}{}", price("1", "9"));
    for (old, new, about, [same, otherwise, cannot_tell]) in [
        (
            money("") + &price("1", "9"),
            money("") + &price("1", "9"),
            json!({}),
            [1, 0, 0],
        ),
        (
            money("") + &price("1", "9"),
            money("") + &price("900", "9"),
            json!({}),
            [0, 0, 1],
        ),
        (
            money(""),
            money("") + &price("900", "9"),
            json!({}),
            [0, 0, 1],
        ),
        // Another model's price.
        (
            money(&unknown("1")),
            money(&unknown("1")) + &price("900", "9"),
            house.clone(),
            [1, 0, 0],
        ),
        (
            money(&unknown("1")),
            money(&unknown("900")),
            house.clone(),
            [0, 0, 1],
        ),
        (
            money(&unknown("1")),
            money(&unknown("900")),
            json!({}),
            [0, 0, 1],
        ),
        // Tokens cost the same whatever they cost, but how many there may be is another matter.
        (
            tokens.to_string() + &price("1", "9"),
            tokens.to_string() + &price("900", "9"),
            json!({}),
            [1, 0, 0],
        ),
        (
            tokens.to_string() + &price("1", "9"),
            tokens.to_string() + &price("1", "99"),
            json!({}),
            [0, 0, 1],
        ),
        // Which model it was is not known.
        (
            money(""),
            money("") + &price("900", "9"),
            json!({"model": null, "uninspected": true}),
            [0, 0, 1],
        ),
        // A condition asks for it: $0.000005 then.
        (asked.clone(), asked.clone(), offered.clone(), [1, 0, 0]),
        (
            asked.clone(),
            format!("{asking}{}", price("900", "9")),
            offered.clone(),
            [0, 0, 1],
        ),
        (asked.clone(), asked.clone(), json!({}), [1, 0, 0]),
        // What a tool costs the policies say themselves.
        (tool("0.001"), tool("0.001"), mcp.clone(), [1, 0, 0]),
        (tool("0.001"), tool("6"), mcp.clone(), [0, 0, 1]),
        (
            "tools: {git: {cost_usd: 0.001, requires_approval_if: 'estimated_cost_usd > 1.0'}}"
                .to_string(),
            "tools: {git: {cost_usd: 2, requires_approval_if: 'estimated_cost_usd > 1.0'}}"
                .to_string(),
            mcp.clone(),
            [0, 1, 0],
        ),
    ] {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("priced.jsonl");
        let record = recorded("a", 0, about.clone());
        fs::write(&file, format!("{{\"tollgate_export\":1}}\n{record}\n")).unwrap();
        let (old, new) = (policy(&old), policy(&new));
        let more = ["--json", "--replay", file.to_str().unwrap()];
        let output = diff("replay-prices", &old, &new, &more);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        let replay = &value["replay"];
        assert_eq!(
            json!([replay["same"], replay["otherwise"], replay["cannot_tell"]]),
            json!([same, otherwise, cannot_tell]),
            "{old}{new}{about}"
        );
    }
}
