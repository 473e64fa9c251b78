//! Pause, kill, resume: who may be stopped, what gates are told, and what stays on record.

use crate::harness::{Plane, START, Workspace, text};
use serde_json::{Value, json};
use tollgate_engine::{bundle::Bundle, halt::Halt};

/// What the gates' bundle says about it.
async fn halts(workspace: &Workspace<'_>, gate: &crate::harness::Gate<'_>) -> Vec<Halt> {
    let envelope = workspace.get("/bundle").await.to_string();
    Bundle::closed()
        .successor(
            envelope.as_bytes(),
            &gate.trust,
            &workspace.id,
            "default",
            workspace.plane.now(),
        )
        .unwrap()
        .payload()
        .unwrap()
        .halts
        .clone()
}

/// Status and body of an order.
async fn order(workspace: &Workspace<'_>, scope: &str, order: &str) -> (u16, Value) {
    let reply = workspace
        .plane
        .call(
            &workspace.operator,
            "PUT",
            &workspace.path(&format!("/halts/{scope}")),
            json!({"order": order, "reason": "it loops"}),
        )
        .await;
    (reply.status.as_u16(), reply.json())
}

#[tokio::test]
async fn who_is_stopped_is_named_in_the_next_bundle_until_resumed() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let agent = workspace.agent("blue").await;
    let scope = format!("agent:{agent}");
    assert_eq!(halts(&workspace, &gate).await, []);

    let (status, first) = order(&workspace, &scope, "paused").await;
    assert_eq!((status, &first["scope"]), (200, &json!(scope)));
    plane.advance(1);
    assert_eq!(order(&workspace, "team:blue", "killed").await.0, 200);
    plane.advance(1);
    let (_, third) = order(&workspace, &scope, "killed").await;
    assert_eq!(
        third["revision"].as_i64(),
        first["revision"].as_i64().map(|first| first + 2)
    );
    // The broader one first.
    let shown: Vec<Value> = halts(&workspace, &gate)
        .await
        .iter()
        .map(|halt| serde_json::to_value(halt).unwrap())
        .collect();
    assert_eq!(
        shown,
        [
            json!({"scope": "team:blue", "kind": "killed", "reason": "it loops"}),
            json!({"scope": scope, "kind": "killed", "reason": "it loops"}),
        ]
    );
    let listed = workspace.get("/halts").await;
    assert_eq!(listed[0]["scope"], "team:blue");
    assert_eq!(listed[0]["at_ms"], (START + 1) * 1_000);
    assert_eq!(listed[1]["scope"], scope);
    assert!(!text(&listed[1]["by_name"]).is_empty());

    // Said twice, it stays so.
    for _ in 0..2 {
        assert_eq!(order(&workspace, "team:blue", "running").await.0, 200);
    }
    assert_eq!(halts(&workspace, &gate).await.len(), 1);

    let events = workspace.get("/events").await;
    let told: Vec<(String, String, String)> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| {
            assert_eq!(event["by"], listed[0]["by"]);
            assert_eq!(event["message"], "it loops");
            (
                text(&event["kind"]),
                text(&event["subject"]),
                text(&event["by_name"]),
            )
        })
        .collect();
    let by = text(&listed[0]["by_name"]);
    let expected = [
        ("resumed", "team:blue"),
        ("resumed", "team:blue"),
        ("killed", scope.as_str()),
        ("killed", "team:blue"),
        ("paused", scope.as_str()),
    ];
    assert_eq!(
        told,
        expected.map(|(kind, subject)| (kind.to_owned(), subject.to_owned(), by.clone()))
    );
    let before = workspace
        .get(&format!("/events?limit=1&before={}", events[3]["id"]))
        .await;
    assert_eq!(before, json!([events[4]]));
}

#[tokio::test]
async fn nobody_is_stopped_by_a_name_that_is_spelt_wrong() {
    let plane = Plane::new().await;
    let (workspace, other) = (plane.workspace().await, plane.workspace().await);
    workspace.agent("blue").await;
    let stranger = other.agent("green").await;
    for scope in [
        "team:bleu",
        "org:acme",
        "team:green",
        "agent:00000000-0000-4000-8000-0000000000ff",
        &format!("agent:{stranger}"),
        "tool:git",
        "team:",
        "everybody",
    ] {
        assert_eq!(order(&workspace, scope, "paused").await.0, 404, "{scope}");
    }
    assert_eq!(workspace.get("/halts").await, json!([]));
    assert_eq!(workspace.get("/events").await, json!([]));
}

#[tokio::test]
async fn who_is_not_to_be_stopped_is_stopped_only_with_others() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let (calm, other) = (workspace.agent("calm").await, workspace.agent("calm").await);
    let policy = |name: &str, scope: &str, execution: &str| {
        format!(
            "---\n{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: {name}}}, spec: {{scope: '{scope}', agent: {{execution: {execution}}}}}}}\n"
        )
    };
    let one = policy("one", &format!("agent:{calm}"), "{enable_pause: false}");
    assert_eq!(workspace.apply(&one).await.status, 200);
    let scope = format!("agent:{calm}");
    let (status, why) = order(&workspace, &scope, "paused").await;
    assert_eq!(status, 409);
    let why = text(&why["detail"]);
    assert!(
        why.contains("`agent.execution.enable_pause: false`") && why.contains("(policy one)"),
        "{why}"
    );
    // It may be killed, its team paused, and others as ever.
    for (scope, what) in [
        (scope.as_str(), "killed"),
        ("team:calm", "paused"),
        (&format!("agent:{other}"), "paused"),
    ] {
        assert_eq!(order(&workspace, scope, what).await.0, 200, "{scope}");
    }
    // A document about the whole team keeps the team from it, but not the workspace in which there are others.
    let team = policy(
        "team",
        "team:calm",
        "{enable_cancel: false, enable_pause: false}",
    );
    assert_eq!(workspace.apply(&team).await.status, 200);
    for scope in ["team:calm", scope.as_str(), "global"] {
        for what in ["paused", "killed"] {
            assert_eq!(order(&workspace, scope, what).await.0, 409, "{scope}");
        }
    }
    workspace.agent("others").await;
    assert_eq!(order(&workspace, "global", "killed").await.0, 200);
    assert_eq!(order(&workspace, "global", "running").await.0, 200);
    // In shadow it is only tried out.
    let shadow = team.replace("name: team", "name: team, rollout: shadow");
    assert_eq!(workspace.apply(&shadow).await.status, 200);
    assert_eq!(order(&workspace, "team:calm", "killed").await.0, 200);
}

#[tokio::test]
async fn an_order_needs_a_reason_that_can_be_shown() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let path = workspace.path("/halts/global");
    let long = "x".repeat(301);
    for (order, reason, status) in [
        ("paused", "", 422),
        ("paused", "two\nlines", 422),
        ("paused", long.as_str(), 422),
        ("stopped", "why not", 422),
        ("paused", &long[1..], 200),
    ] {
        let body = json!({"order": order, "reason": reason});
        let reply = plane.call(&workspace.operator, "PUT", &path, body).await;
        assert_eq!(reply.status.as_u16(), status, "{order} {reason}");
    }
    for query in ["limit=0", "limit=1001", "before=-1"] {
        let path = workspace.path(&format!("/events?{query}"));
        assert_eq!(plane.get(&workspace.operator, &path).await.status, 422);
    }
}
