//! What can be seen from outside: metrics with labels; and what cannot: secrets.

use std::fs;

use tollgate_tests::http;
use tollgate_tests::whole::{PROVIDER_KEY, Whole as _, chat_body, wait_for};

use crate::scene::Scene;

#[test]
fn metrics_tell_the_story_and_no_secret_is_anywhere() {
    let scene = Scene::start(
        "watched",
        "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: house
spec:
  scope: global
  capabilities:
    allow: ['model:gpt-5-mini']
  data:
    sensitive_patterns: ['needle-[0-9]{6}']
  budget:
    per: agent
    daily_limit_usd: 1
",
    );
    let prompt = "an unmistakable prompt";
    let found = "needle-314159";
    assert_eq!(scene.chat(prompt, &[]).status, 200);
    // In the path, too: that is in logs.
    let path = format!("/{found}/v1/chat/completions");
    assert_eq!(scene.post(&path, &chat_body(found), &[]).status, 403);
    let records = scene.records(2);

    let envoy = &scene.stack.envoy;
    // Counters show at once; histograms every five seconds, and the delivery of the records takes its time.
    let metrics = wait_for("the metrics of two calls", || {
        let metrics = envoy.prometheus().ok()?;
        let ours = metrics.lines().filter(|line| line.starts_with("tollgate_"));
        let ours: Vec<_> = ours.map(str::to_owned).collect();
        let shown = |line: &str| ours.iter().any(|shown| shown == line);
        (shown("tollgate_journal_delivered{} 2") && shown("tollgate_decide_us_count{} 2"))
            .then_some(ours)
    });
    let workspace = &scene.stack.workspace.id;
    let gauge = |name: &str, value: u64| {
        format!(r#"{name}{{workspace="{workspace}",channel="default"}} {value}"#)
    };
    for line in [
        r#"tollgate_decisions{outcome="allow",cause="none"} 1"#,
        r#"tollgate_decisions{outcome="deny",cause="policy"} 1"#,
        "tollgate_bundle_revision{",
        "tollgate_bundle_age_seconds{",
        "tollgate_bundle_install_us{",
        &gauge("tollgate_lease_accounts", 1),
        &gauge("tollgate_leases_live", 1),
        "tollgate_journal_enqueued{} 2",
        "tollgate_journal_dropped{} 0",
        &gauge("tollgate_journal_backlog", 0),
        "tollgate_uninspected{} 0",
        "tollgate_estimated{} 0",
        "tollgate_host_errors{} 0",
        "tollgate_leader_changes{} 1",
    ] {
        // The order of labels is Envoy's.
        let parts = |line: &str| {
            let mut parts: Vec<_> = line.split(['{', ',', '}']).map(str::to_owned).collect();
            parts.sort();
            parts
        };
        let shown = metrics
            .iter()
            .any(|shown| shown.starts_with(line) || parts(shown) == parts(line));
        assert!(shown, "no `{line}` in {metrics:#?}");
    }

    let decision = records[1]["id"].as_str().unwrap();
    let access = wait_for("the access log", || {
        let log = fs::read_to_string(scene.file("access.log")).ok()?;
        log.contains(decision).then_some(log)
    });
    let shown = format!("deny:data.sensitive_patterns[0]:{decision}");
    assert!(access.contains(&shown), "{access}");

    let read = |name: &str| fs::read_to_string(scene.file(name)).unwrap();
    let admin = |path: &str| {
        http::get(&format!("http://{}{path}", envoy.admin))
            .unwrap()
            .body
    };
    let places = [
        ("the access log", access),
        ("Envoy's log", read("envoy.log")),
        ("Envoy's configuration", read("envoy.yaml")),
        ("the control plane's log", read("control-plane.log")),
        ("the records", format!("{records:?}")),
        ("/config_dump", admin("/config_dump")),
        ("/stats", admin("/stats")),
        ("/stats/prometheus", admin("/stats/prometheus")),
    ];
    let secrets = [
        ("the agent's token", scene.token.as_str()),
        ("the provider's key", PROVIDER_KEY),
        (
            "the enrolment key",
            scene.stack.workspace.enrolment_key.as_str(),
        ),
        (
            "the operator's key",
            scene.stack.workspace.operator_key.as_str(),
        ),
        ("the root key", scene.stack.control_plane.root_key.as_str()),
        ("the prompt", prompt),
        ("what a pattern found", found),
    ];
    for (place, text) in &places {
        assert!(!text.is_empty(), "{place} is empty");
        for (secret, value) in secrets {
            assert!(!text.contains(value), "{secret} is in {place}");
        }
    }
}
