//! Who may do what. The table names every route of the API document; a route that is not in it fails the test.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use crate::{
    agents::token,
    approvals::held,
    bundles::poll,
    harness::{Plane, Workspace, text},
};

/// Whom a route lets in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum For {
    /// Everybody, key or not; answers with a bare status.
    Anybody,
    /// The root key alone.
    Root,
    /// The root key, and any operator for what its workspace may see.
    AnyOperator,
    /// The root key and the workspace's operators.
    KeyKeepers,
    /// The workspace's operators.
    Operators,
    /// The workspace's gates.
    Gates,
    /// The workspace's agents, by their tokens.
    Agents,
}

const ROUTES: &[(&str, &str, For)] = &[
    ("GET", "/healthz", For::Anybody),
    ("GET", "/readyz", For::Anybody),
    ("GET", "/metrics", For::AnyOperator),
    ("GET", "/openapi.json", For::AnyOperator),
    ("GET", "/v1/workspaces", For::AnyOperator),
    ("POST", "/v1/workspaces", For::Root),
    ("GET", "/v1/workspaces/{workspace}", For::KeyKeepers),
    (
        "GET",
        "/v1/workspaces/{workspace}/operators",
        For::KeyKeepers,
    ),
    (
        "POST",
        "/v1/workspaces/{workspace}/operators",
        For::KeyKeepers,
    ),
    (
        "DELETE",
        "/v1/workspaces/{workspace}/operators/{id}",
        For::KeyKeepers,
    ),
    ("GET", "/v1/workspaces/{workspace}/agents", For::Operators),
    ("POST", "/v1/workspaces/{workspace}/agents", For::Operators),
    (
        "DELETE",
        "/v1/workspaces/{workspace}/agents/{id}",
        For::Operators,
    ),
    (
        "POST",
        "/v1/workspaces/{workspace}/agents/{id}/tokens",
        For::Operators,
    ),
    (
        "POST",
        "/v1/workspaces/{workspace}/tokens/exchange",
        For::Agents,
    ),
    ("GET", "/v1/workspaces/{workspace}/halts", For::Operators),
    (
        "PUT",
        "/v1/workspaces/{workspace}/halts/{scope}",
        For::Operators,
    ),
    ("GET", "/v1/workspaces/{workspace}/events", For::Operators),
    (
        "GET",
        "/v1/workspaces/{workspace}/approvals",
        For::Operators,
    ),
    (
        "GET",
        "/v1/workspaces/{workspace}/approvals/{name}",
        For::Operators,
    ),
    (
        "PUT",
        "/v1/workspaces/{workspace}/approvals/{name}",
        For::Operators,
    ),
    ("GET", "/v1/workspaces/{workspace}/policies", For::Operators),
    ("PUT", "/v1/workspaces/{workspace}/policies", For::Operators),
    (
        "POST",
        "/v1/workspaces/{workspace}/policies",
        For::Operators,
    ),
    (
        "GET",
        "/v1/workspaces/{workspace}/policies/{name}",
        For::Operators,
    ),
    (
        "DELETE",
        "/v1/workspaces/{workspace}/policies/{name}",
        For::Operators,
    ),
    (
        "GET",
        "/v1/workspaces/{workspace}/policies/{name}/versions",
        For::Operators,
    ),
    (
        "GET",
        "/v1/workspaces/{workspace}/policies/{name}/versions/{version}",
        For::Operators,
    ),
    (
        "POST",
        "/v1/workspaces/{workspace}/policies/{name}/rollback",
        For::Operators,
    ),
    ("GET", "/v1/workspaces/{workspace}/bundle", For::Operators),
    ("GET", "/v1/workspaces/{workspace}/gates", For::Operators),
    ("POST", "/v1/workspaces/{workspace}/gates", For::Operators),
    (
        "DELETE",
        "/v1/workspaces/{workspace}/gates/{id}",
        For::Operators,
    ),
    ("GET", "/v1/workspaces/{workspace}/budgets", For::Operators),
    (
        "POST",
        "/v1/workspaces/{workspace}/budgets/{account}/lift",
        For::Operators,
    ),
    (
        "POST",
        "/v1/workspaces/{workspace}/holders/{holder}/release",
        For::Operators,
    ),
    ("GET", "/v1/workspaces/{workspace}/usage", For::Operators),
    ("GET", "/v1/workspaces/{workspace}/audit", For::Operators),
    (
        "GET",
        "/v1/workspaces/{workspace}/audit/gaps",
        For::Operators,
    ),
    (
        "GET",
        "/v1/workspaces/{workspace}/audit/export",
        For::Operators,
    ),
    ("GET", "/v1/workspaces/{workspace}/gate/bundle", For::Gates),
    ("POST", "/v1/workspaces/{workspace}/gate/leases", For::Gates),
    ("POST", "/v1/workspaces/{workspace}/gate/audit", For::Gates),
];

/// Who knocks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    Nobody,
    Guesser,
    RevokedOperator,
    RevokedGate,
    OtherOperator,
    OtherGate,
    RevokedAgent,
    OtherAgent,
    Agent,
    Gate,
    Operator,
    Root,
}

// Those who are let in come last, so that what is deleted was still there when the others tried.
const EVERYBODY: [Who; 12] = [
    Who::Nobody,
    Who::Guesser,
    Who::RevokedOperator,
    Who::RevokedGate,
    Who::OtherOperator,
    Who::OtherGate,
    Who::RevokedAgent,
    Who::OtherAgent,
    Who::Agent,
    Who::Gate,
    Who::Operator,
    Who::Root,
];

/// The status of a refusal; `None` for whoever is let in.
fn refusal(route: For, who: Who) -> Option<u16> {
    let of_agent = matches!(who, Who::Agent | Who::OtherAgent);
    let strangers = matches!(
        who,
        Who::Nobody | Who::Guesser | Who::RevokedOperator | Who::RevokedGate | Who::RevokedAgent
    ) || of_agent && route != For::Agents;
    let allowed: &[Who] = match route {
        For::Anybody => return None,
        For::Root => &[Who::Root],
        For::AnyOperator => &[Who::Root, Who::Operator, Who::OtherOperator],
        For::KeyKeepers => &[Who::Root, Who::Operator],
        For::Operators => &[Who::Operator],
        For::Gates => &[Who::Gate],
        For::Agents => &[Who::Agent],
    };
    let in_a_workspace = !matches!(route, For::Root | For::AnyOperator);
    match who {
        _ if strangers => Some(401),
        who if allowed.contains(&who) => None,
        Who::OtherOperator | Who::OtherGate | Who::OtherAgent if in_a_workspace => Some(404),
        _ => Some(403),
    }
}

/// Puts the names of things that exist into a path.
async fn filled(template: &str, workspace: &Workspace<'_>) -> String {
    let path = template.replace("{workspace}", &workspace.id);
    let mut path = path
        .replace("{scope}", "global")
        .replace("{account}", "agent:a%7Ccalls%7Cminute")
        .replace("{holder}", "h-00000000000000000000000000000001");
    if path.contains("/approvals/{name}") {
        path = path.replace("{name}", held(workspace).await);
    }
    if path.contains("{name}") {
        let name = workspace.plane.name();
        let policy = format!(
            "apiVersion: tollgate/v1\nkind: Policy\nmetadata:\n  name: {name}\nspec:\n  scope: global\n"
        );
        assert_eq!(workspace.apply(&policy).await.status, 200);
        path = path.replace("{name}", &name).replace("{version}", "1");
    }
    if path.contains("{id}") {
        let id = if path.contains("/agents/") {
            workspace.agent("team").await
        } else {
            let kind = if path.contains("/gates/") {
                "/gates"
            } else {
                "/operators"
            };
            let made = workspace.post(kind, json!({"name": "spare"})).await;
            text(&made.json()["id"])
        };
        path = path.replace("{id}", &id);
    }
    path
}

#[tokio::test]
async fn every_route_lets_in_whom_it_should_and_nobody_else() {
    let plane = Plane::new().await;
    let (ours, theirs) = (plane.workspace().await, plane.workspace().await);
    let (gate, other_gate, revoked_gate) =
        (ours.gate().await, theirs.gate().await, ours.gate().await);
    let revoked = ours
        .post("/operators", json!({"name": "gone"}))
        .await
        .json();
    let (agent, other_agent, revoked_agent) = (
        ours.agent("here").await,
        theirs.agent("there").await,
        ours.agent("gone").await,
    );
    let tokens = [
        token(&ours, &agent).await,
        token(&theirs, &other_agent).await,
        token(&ours, &revoked_agent).await,
    ];
    for path in [
        format!("/operators/{}", text(&revoked["id"])),
        format!("/gates/{}", revoked_gate.id),
        format!("/agents/{revoked_agent}"),
    ] {
        let reply = plane
            .call(&ours.operator, "DELETE", &ours.path(&path), Value::Null)
            .await;
        assert_eq!(reply.status, 204, "{path}");
    }
    // A key that exists, with another secret.
    let (id, _) = ours.operator.split_once('.').unwrap();
    let guessed = format!("{id}.{}", "A".repeat(43));
    let root = plane.root_key();
    let key = |who: Who| match who {
        Who::Nobody => "",
        Who::Guesser => guessed.as_str(),
        Who::RevokedOperator => revoked["key"].as_str().unwrap(),
        Who::RevokedGate => &revoked_gate.key,
        Who::OtherOperator => &theirs.operator,
        Who::OtherGate => &other_gate.key,
        Who::Agent => &tokens[0],
        Who::OtherAgent => &tokens[1],
        Who::RevokedAgent => &tokens[2],
        Who::Gate => &gate.key,
        Who::Operator => &ours.operator,
        Who::Root => &root,
    };
    let document: Value = serde_json::to_value(tollgate_control_plane::openapi()).unwrap();
    for (method, template, route) in ROUTES {
        let documented = &document["paths"][template][method.to_lowercase()]["responses"];
        let path = filled(template, &ours).await;
        for who in EVERYBODY {
            let reply = plane.call(key(who), method, &path, Value::Null).await;
            let status = reply.status.as_u16();
            let cell = format!("{who:?} {method} {template}: {status}");
            assert!(
                !documented[status.to_string()].is_null(),
                "{cell} is not documented"
            );
            match refusal(*route, who) {
                Some(expected) => {
                    assert_eq!(status, expected, "{cell}");
                    let word = match expected {
                        401 => "unauthenticated",
                        403 => "forbidden",
                        _ => "not-found",
                    };
                    assert_eq!(reply.problem(), word, "{cell}");
                }
                // Without a body some of them have more to say, but not about the key or the path.
                None => assert!(
                    matches!(status, 200 | 201 | 204 | 400 | 415 | 422),
                    "{cell}: {}",
                    String::from_utf8_lossy(&reply.body)
                ),
            }
            if *route == For::Anybody {
                assert!(reply.body.is_empty(), "{cell} says more than a status");
            }
        }
    }
}

#[test]
fn every_route_is_in_the_table() {
    let document: Value = serde_json::to_value(tollgate_control_plane::openapi()).unwrap();
    let (mut documented, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            documented.insert((method.to_uppercase(), path.clone()));
            let name = text(&operation["operationId"]);
            assert!(
                names.insert(name.clone()),
                "two operations are called `{name}`"
            );
            let open = operation["security"] == json!([{}]);
            let (_, _, route) = ROUTES
                .iter()
                .find(|(m, p, _)| *m == method.to_uppercase() && p == path)
                .unwrap_or_else(|| panic!("{method} {path} is not in the table of this test"));
            assert_eq!(
                open,
                *route == For::Anybody,
                "{method} {path} documents its security"
            );
            let scheme = match route {
                For::Gates => "gate",
                For::Agents => "agent",
                _ => "operator",
            };
            assert!(
                open || operation["security"] == json!([{scheme: []}]),
                "{method} {path}"
            );
        }
    }
    let listed: BTreeSet<(String, String)> = ROUTES
        .iter()
        .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    assert_eq!(documented, listed);
}

#[tokio::test]
async fn keys_are_nowhere_in_the_data_directory_but_in_the_root_key_file() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let secrets: Vec<String> = [&workspace.operator, &gate.key, &plane.root_key()]
        .iter()
        .map(|key| key.split_once('.').unwrap().1.to_owned())
        .collect();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(plane.scratch.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for secret in &secrets {
            if bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes())
            {
                found.push((path.file_name().unwrap().to_owned(), secret.clone()));
            }
        }
    }
    assert_eq!(found, [("root.key".into(), secrets[2].clone())]);
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_can_read_the_data_directory() {
    use std::os::unix::fs::PermissionsExt as _;
    let scratch = tollgate_tests::Scratch::new("private");
    let data = scratch.path().join("data");
    let open = async || {
        tollgate_control_plane::ControlPlane::open(&data, Default::default())
            .await
            .unwrap()
    };
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    open().await.close().await;
    // As a backup may have brought them back.
    for name in ["signing.key", "pepper.key", "root.key", "tollgate.db"] {
        let wide = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(data.join(name), wide).unwrap();
    }
    let _plane = open().await;
    assert_eq!(mode(&data), 0o700);
    for entry in std::fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[tokio::test]
async fn a_key_is_one_header_of_one_form() {
    use axum::body::Body;
    use axum::http::Request;
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let key = &workspace.operator;
    let cases: [(&[String], u16); 6] = [
        (&[format!("Bearer {key}")], 200),
        (&[format!("bearer {key}")], 200),
        (&[format!("Bearer {key}"), format!("Bearer {key}")], 401),
        (std::slice::from_ref(key), 401),
        (&[format!("Basic {key}")], 401),
        (&[format!("Bearer {key}x")], 401),
    ];
    for (values, expected) in cases {
        let mut request = Request::get(workspace.path("/agents"));
        for value in values {
            request = request.header("authorization", value);
        }
        let reply = plane.send(request.body(Body::empty()).unwrap()).await;
        // Not the values: they are keys.
        assert_eq!(reply.status, expected, "{} headers", values.len());
        if expected == 401 {
            assert_eq!(reply.headers["www-authenticate"], "Bearer");
        }
    }
}

#[tokio::test]
async fn what_axum_refuses_is_a_problem_too() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let (key, agents) = (workspace.operator.as_str(), workspace.path("/agents"));
    let reply = plane.bytes(key, "POST", &agents, b"{}").await;
    assert_eq!(
        (reply.status.as_u16(), reply.problem().as_str()),
        (415, "media-type")
    );
    for (body, status, problem) in [
        (json!({"name": "a", "level": "L9"}), 422, "invalid"),
        (
            json!({"name": "a", "level": "L1", "levle": 1}),
            422,
            "invalid",
        ),
        (json!({"name": "", "level": "L1"}), 422, "invalid"),
        (json!({"name": "a\u{1b}[2J", "level": "L1"}), 422, "invalid"),
        (
            json!({"name": "a", "team": "a|b", "level": "L1"}),
            422,
            "invalid",
        ),
        (
            json!({"name": "a".repeat(20_000), "level": "L1"}),
            413,
            "too-large",
        ),
    ] {
        let reply = plane.call(key, "POST", &agents, body).await;
        assert_eq!(
            (reply.status.as_u16(), reply.problem().as_str()),
            (status, problem)
        );
    }
    for path in [
        "/audit?limit=0",
        "/audit?limit=-1",
        "/audit?nonsense=1",
        "/audit?after=9007199254740992",
        "/usage?by=colour",
        "/usage?from=-1",
    ] {
        let reply = plane.get(key, &workspace.path(path)).await;
        assert_eq!(
            (reply.status.as_u16(), reply.problem().as_str()),
            (400, "malformed"),
            "{path}"
        );
    }
    let reply = plane.call(key, "PATCH", &agents, Value::Null).await;
    assert_eq!(
        (reply.status.as_u16(), reply.problem().as_str()),
        (405, "method-not-allowed")
    );
    let reply = plane.get(key, "/v2").await;
    assert_eq!(
        (reply.status.as_u16(), reply.problem().as_str()),
        (404, "not-found")
    );
}

#[tokio::test]
async fn last_use_is_noted_to_the_minute() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let used = async || workspace.get("/operators").await[0]["last_used_ms"].clone();
    // It is noted beside the request.
    let noted = async || {
        let now = plane.now().millis();
        let seen = async { while used().await != now {} };
        tokio::time::timeout(Duration::from_secs(20), seen)
            .await
            .unwrap();
    };
    noted().await;
    let first = plane.now().millis();
    plane.advance(59);
    // Whatever the first of these might have had noted, the second would see: the workspace is made after it, by the same writer.
    assert_eq!(used().await, first);
    plane.workspace().await;
    assert_eq!(used().await, first);
    plane.advance(1);
    noted().await;
    // A clock that was ahead is put right.
    plane.advance(-3_600);
    noted().await;
}

/// Another program that has the database locked stands for a full disk and for a writer with much to do.
#[tokio::test]
async fn who_only_reads_need_not_wait_for_the_writer() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let mut database = plane.database().await;
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut database)
        .await
        .unwrap();
    // Of both keys it would be noted that they are used. Writers wait for ten seconds.
    let reading = async {
        workspace.get("/gates").await;
        assert_eq!(poll(&gate, "", None).await.status, 200);
    };
    tokio::time::timeout(Duration::from_secs(8), reading)
        .await
        .unwrap();
    sqlx::query("ROLLBACK")
        .execute(&mut database)
        .await
        .unwrap();
}

/// Whoever has no key or token of a workspace does not learn whether it exists.
#[tokio::test]
async fn a_workspace_that_exists_answers_strangers_like_one_that_does_not() {
    let plane = Plane::new().await;
    let (ours, theirs) = (plane.workspace().await, plane.workspace().await);
    let gate = theirs.gate().await;
    let agent = theirs.agent("there").await;
    let token = token(&theirs, &agent).await;
    let nowhere = "ws-00000000-0000-4000-8000-000000000000";
    let strangers = [
        ("", 401),
        ("nonsense", 401),
        ("e30.e30.AAAA", 401),
        ("tgo_0000000000000000.A", 401),
        (&theirs.operator, 404),
        (&gate.key, 404),
        (&token, 404),
    ];
    for (method, template, route) in ROUTES {
        if !template.contains("{workspace}") {
            continue;
        }
        for (key, expected) in strangers {
            // An agent's token is no key elsewhere.
            let expected = match route {
                For::Agents => expected,
                _ if key == token => 401,
                _ => expected,
            };
            let mut answers = Vec::new();
            for workspace in [ours.id.as_str(), nowhere] {
                let path = template.replace("{workspace}", workspace);
                let reply = plane.call(key, method, &path, Value::Null).await;
                answers.push((reply.status.as_u16(), reply.json()));
            }
            assert_eq!(answers[0].0, expected, "{method} {template}");
            assert_eq!(answers[0], answers[1], "{method} {template}");
        }
    }
}

#[tokio::test]
async fn nothing_crosses_between_workspaces() {
    let plane = Plane::new().await;
    let (ours, theirs) = (plane.workspace().await, plane.workspace().await);
    let policy = "scope: global\nbudget:\n  daily_limit_usd: 1\n";
    assert_eq!(ours.apply(policy).await.status, 200);
    let agent = ours.agent("blue").await;
    let gate = ours.gate().await;
    // Their key on their own path, our ids.
    for (method, path) in [
        ("DELETE", format!("/agents/{agent}")),
        ("POST", format!("/agents/{agent}/tokens")),
        ("DELETE", format!("/gates/{}", gate.id)),
        ("GET", "/policies/test".to_owned()),
        ("DELETE", "/policies/test".to_owned()),
        ("GET", "/policies/test/versions".to_owned()),
        ("GET", "/policies/test/versions/1".to_owned()),
    ] {
        let reply = plane
            .call(&theirs.operator, method, &theirs.path(&path), Value::Null)
            .await;
        assert_eq!(reply.status, 404, "{method} {path}");
    }
    let rollback = theirs.post("/policies/test/rollback", json!({"version": 1}));
    assert_eq!(rollback.await.status, 404);
    for empty in ["/agents", "/policies", "/gates", "/budgets", "/audit/gaps"] {
        assert_eq!(theirs.get(empty).await, json!([]), "{empty}");
    }
    assert_eq!(ours.get("/agents").await[0]["revoked_ms"], Value::Null);
    assert_eq!(ours.get("/policies").await[0]["name"], "test");
    // Each operator sees its own workspace in the list, root sees both.
    let names = |list: Value| list.as_array().unwrap().len();
    assert_eq!(
        names(plane.get(&theirs.operator, "/v1/workspaces").await.json()),
        1
    );
    assert_eq!(
        names(plane.get(&plane.root_key(), "/v1/workspaces").await.json()),
        2
    );
}
