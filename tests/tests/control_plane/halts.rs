//! Pause, kill, resume: who may be stopped, what gates are told, and what stays on record.

use crate::harness::{Plane, START, Workspace, text};
use serde_json::{Value, json};
use tollgate_engine::{
    bundle::{Bundle, Payload},
    halt::Halt,
};

/// The gates' bundle.
async fn bundle(workspace: &Workspace<'_>, gate: &crate::harness::Gate<'_>) -> Payload {
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
        .clone()
}

/// What it says about it.
async fn halts(workspace: &Workspace<'_>, gate: &crate::harness::Gate<'_>) -> Vec<Halt> {
    bundle(workspace, gate).await.halts
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

/// YAML has many ways to write the same key: what counts is what the document says.
#[tokio::test]
async fn who_is_not_to_be_stopped_may_be_written_in_other_letters() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    workspace.agent("calm").await;
    let policy = r#"{apiVersion: tollgate/v1, kind: Policy, metadata: {name: one}, spec: {scope: 'team:calm', agent: {execution: {"enable\u005fpause": false}}}}"#;
    assert_eq!(workspace.apply(policy).await.status, 200);
    assert_eq!(order(&workspace, "team:calm", "paused").await.0, 409);
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

const DAY: i64 = 86_400;

#[tokio::test]
async fn one_run_of_an_agent_is_stopped_by_its_name() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let agent = workspace.agent("blue").await;
    // What a run may be called, and the longest.
    let longest = "r".repeat(128);
    let names = [
        "night:7",
        "mcp:0123456789abcdef0123456789abcdef",
        "..",
        &longest,
    ];
    for name in names {
        let scope = format!("run:{agent}:{name}");
        let (status, done) = order(&workspace, &scope, "killed").await;
        assert_eq!((status, &done["scope"]), (200, &json!(scope)));
        plane.advance(1);
    }
    assert_eq!(
        order(&workspace, &format!("agent:{agent}"), "paused")
            .await
            .0,
        200
    );
    // The agent first, which is more than a run of it.
    let shown = serde_json::to_value(halts(&workspace, &gate).await).unwrap();
    let scope = format!("agent:{agent}");
    assert_eq!(
        shown[0],
        json!({"scope": scope, "kind": "paused", "reason": "it loops"})
    );
    let mut stopped: Vec<&Value> = shown.as_array().unwrap()[1..].iter().collect();
    stopped.sort_by_key(|halt| text(&halt["run"]));
    let expected = ["..", names[1], "night:7", &longest]
        .map(|run| json!({"scope": scope, "run": run, "kind": "killed", "reason": "it loops"}));
    assert_eq!(stopped, expected.iter().collect::<Vec<_>>());

    let listed = workspace.get("/halts").await;
    let first = &listed[0];
    assert_eq!(first["scope"], format!("run:{agent}:night:7"));
    assert_eq!(
        (&first["kind"], &first["reason"], &first["at_ms"]),
        (&json!("killed"), &json!("it loops"), &json!(START * 1_000))
    );
    assert!(!text(&first["by_name"]).is_empty());

    let scope = text(&first["scope"]);
    assert_eq!(order(&workspace, &scope, "running").await.0, 200);
    let shown = halts(&workspace, &gate).await;
    assert!(
        shown
            .iter()
            .all(|halt| halt.run.as_deref() != Some("night:7"))
    );
    assert_eq!(shown.len(), 4);
    let events = workspace.get("/events").await;
    assert_eq!(
        (&events[0]["kind"], &events[0]["subject"]),
        (&json!("resumed"), &json!(scope))
    );
    assert_eq!(events[0]["by"], first["by"]);
}

#[tokio::test]
async fn what_is_no_run_of_an_agent_stops_nothing() {
    let plane = Plane::new().await;
    let (workspace, other) = (plane.workspace().await, plane.workspace().await);
    let agent = workspace.agent("blue").await;
    let stranger = other.agent("green").await;
    let long = "r".repeat(129);
    for scope in [
        "run:",
        "run::",
        "run::r",
        "run:r",
        &format!("run:{agent}"),
        &format!("run:{agent}:"),
        &format!("run:{agent}:{long}"),
        &format!("run:{agent}:two%20words"),
        &format!("run:{agent}:a%2Fb"),
        &format!("run:{agent}:%C3%A4"),
        &format!("run:{agent}:a%0Ab"),
        &format!("run:{agent}:50%25"),
        &format!("run:{}:r", agent.replace('-', "")),
        &format!("run:{stranger}:r"),
        "run:00000000-0000-4000-8000-0000000000ff:r",
        "run:team:blue",
        &format!("Run:{agent}:r"),
    ] {
        assert_eq!(order(&workspace, scope, "killed").await.0, 404, "{scope}");
    }
    assert_eq!(workspace.get("/halts").await, json!([]));
    // A colon says the same in either spelling (RFC 3986 §6.2.2.2).
    let encoded = format!("run%3A{agent}%3Aa%3Ab");
    let (status, done) = order(&workspace, &encoded, "paused").await;
    assert_eq!(
        (status, text(&done["scope"])),
        (200, format!("run:{agent}:a:b"))
    );
}

#[tokio::test]
async fn a_run_of_who_is_not_to_be_stopped_is_not_either() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = workspace.agent("calm").await;
    let policy = format!(
        "---\n{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: one}}, spec: {{scope: 'agent:{agent}', agent: {{execution: {{enable_cancel: false}}}}}}}}\n"
    );
    assert_eq!(workspace.apply(&policy).await.status, 200);
    let scope = format!("run:{agent}:r");
    assert_eq!(order(&workspace, &scope, "killed").await.0, 409);
    assert_eq!(order(&workspace, &scope, "paused").await.0, 200);
}

#[tokio::test]
async fn a_run_that_is_over_is_let_go() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let agent = workspace.agent("blue").await;
    let scope = |run: &str| format!("run:{agent}:{run}");
    assert_eq!(order(&workspace, &scope("r"), "killed").await.0, 200);
    assert_eq!(order(&workspace, "team:blue", "paused").await.0, 200);
    plane.advance(1);
    assert_eq!(order(&workspace, &scope("s"), "paused").await.0, 200);
    let stopped = async || {
        plane.state.upkeep().await.unwrap();
        let halts = halts(&workspace, &gate).await;
        let runs = halts.iter().map(|halt| halt.run.clone());
        runs.collect::<Vec<_>>()
    };
    let run = |name: &str| Some(name.to_owned());
    plane.advance(DAY - 2);
    assert_eq!(stopped().await, [None, run("r"), run("s")]);
    plane.advance(1);
    assert_eq!(stopped().await, [None, run("s")]);
    // Nobody did it, and that is on record.
    let event = &workspace.get("/events").await[0];
    assert_eq!(
        (&event["kind"], &event["subject"], &event["by"]),
        (&json!("resumed"), &json!(scope("r")), &Value::Null)
    );
    // Who orders it again begins a day again. A team is stopped until somebody lets it go.
    assert_eq!(order(&workspace, &scope("s"), "killed").await.0, 200);
    plane.advance(DAY - 1);
    assert_eq!(stopped().await, [None, run("s")]);
    plane.advance(1);
    assert_eq!(stopped().await, [None]);
}

#[tokio::test]
async fn runs_leave_room_to_stop_agents_and_nothing_keeps_the_workspace_from_it() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = workspace.agent("blue").await;
    let of_run = |name: &str| format!("run:{agent}:{name}");
    plane
        .execute(
            "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 249)
             INSERT INTO halts (workspace, scope, kind, reason, by, at_ms)
             SELECT a.workspace, 'run:' || a.id || ':r' || n, 'paused', 'why', (SELECT MIN(id) FROM operators WHERE workspace = a.workspace),
               a.created_ms
             FROM number, agents AS a",
        )
        .await;
    assert_eq!(order(&workspace, &of_run("r250"), "paused").await.0, 200);
    let (status, why) = order(&workspace, &of_run("r251"), "paused").await;
    assert_eq!(status, 409);
    assert!(
        text(&why["detail"]).contains("stop the agent instead"),
        "{why}"
    );
    // One that is stopped already can be killed, and let go.
    assert_eq!(order(&workspace, &of_run("r1"), "killed").await.0, 200);
    let whole = format!("agent:{agent}");
    assert_eq!(order(&workspace, &whole, "killed").await.0, 200);
    assert_eq!(order(&workspace, &whole, "running").await.0, 200);
    // As many again.
    plane
        .execute(
            "INSERT INTO halts (workspace, scope, kind, reason, by, at_ms)
             SELECT workspace, scope || '-', kind, reason, by, at_ms FROM halts",
        )
        .await;
    assert_eq!(order(&workspace, &whole, "killed").await.0, 409);
    assert_eq!(order(&workspace, "global", "killed").await.0, 200);
    assert_eq!(order(&workspace, &of_run("r1"), "running").await.0, 200);
}

/// Who must stop an agent does not have to shorten policies first: those leave room for all halts there may be.
#[tokio::test]
async fn policies_leave_room_for_halts() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let agent = workspace.agent("blue").await;
    // Each host is 62 bytes of JSON and so 83 of the envelope: 3 MiB are 37,950 of them. So many less the few KiB of everything else.
    let apply = async |hosts: usize| {
        let host = |at: usize| format!("  - {at:05}.{}.example\n", "h".repeat(45));
        let policy = format!(
            "scope: global\nnetwork:\n  allowlist:\n{}",
            (0..hosts / 4).map(host).collect::<String>()
        );
        let mut refused = None;
        for document in 0..4 {
            let path = workspace.path(&format!("/policies?name=hosts-{document}"));
            let body = policy.as_bytes();
            let reply = plane.bytes(&workspace.operator, "PUT", &path, body).await;
            refused = (reply.status != 200).then_some(reply);
        }
        refused
    };
    assert!(apply(37_000).await.is_none());
    assert_eq!(apply(39_000).await.unwrap().status, 422);
    // As many as there may be, each as long as it may be.
    plane
        .execute(
            "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 499)
             INSERT INTO halts (workspace, scope, kind, reason, by, at_ms)
             SELECT a.workspace, 'run:' || a.id || ':' || printf('%0128d', n), 'paused',
               replace(printf('%0300d', 0), '0', char(128721)), (SELECT MIN(id) FROM operators WHERE workspace = a.workspace), a.created_ms
             FROM number, agents AS a",
        )
        .await;
    assert_eq!(
        order(&workspace, &format!("agent:{agent}"), "killed")
            .await
            .0,
        200
    );
    assert_eq!(order(&workspace, "global", "killed").await.0, 200);
    assert_eq!(halts(&workspace, &gate).await.len(), 501);
}

/// One policy that an older version took and this one does not read keeps nobody from being stopped.
#[tokio::test]
async fn calls_are_stopped_whatever_is_wrong_with_policies() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let agent = workspace.agent("blue").await;
    let policy = "scope: global\nnetwork:\n  allowlist: [a.example]\n";
    assert_eq!(workspace.apply(policy).await.status, 200);
    let before = bundle(&workspace, &gate).await;
    plane.execute("UPDATE policies SET text = 'scope: ['").await;
    plane.advance(60);
    let scope = format!("agent:{agent}");
    let (status, done) = order(&workspace, &scope, "killed").await;
    assert_eq!(
        (status, done["revision"].as_u64()),
        (200, Some(before.revision + 1))
    );
    // The policies of before, and no longer than they were good for.
    let after = bundle(&workspace, &gate).await;
    let documents = |payload: &Payload| serde_json::to_value(&payload.documents).unwrap();
    assert_eq!(documents(&after), documents(&before));
    assert_eq!(after.expires_at, before.expires_at);
    assert_eq!(after.halts.len(), 1);
    // An agent is revoked, and calls are let go, as well.
    let path = workspace.path(&format!("/agents/{agent}"));
    let revoked = plane
        .call(&workspace.operator, "DELETE", &path, Value::Null)
        .await;
    assert_eq!(revoked.status, 204);
    assert_eq!(bundle(&workspace, &gate).await.revoked_agents, [agent]);
    assert_eq!(order(&workspace, &scope, "running").await.0, 200);
    assert_eq!(bundle(&workspace, &gate).await.halts, []);
    // A policy cannot be changed by halves.
    assert_eq!(workspace.apply(policy).await.status, 200);
    plane.execute("UPDATE policies SET text = 'scope: ['").await;
    let path = workspace.path("/policies?name=other");
    let reply = plane
        .bytes(&workspace.operator, "PUT", &path, policy.as_bytes())
        .await;
    assert_eq!(reply.status, 500);
}
