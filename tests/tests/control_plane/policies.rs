//! What was in service before, the way back to it, and sets of files.

use serde_json::{Value, json};
use tollgate_control_plane::Settings;

use crate::harness::{Plane, START, Workspace, text};

const POLICY: &str = "scope: team:blue\ncapabilities:\n  allow: ['model:small']\n";

/// Applies `POLICY`, then allows another model, then puts a limit, ten seconds apart each.
async fn three_versions(workspace: &Workspace<'_>) -> [String; 3] {
    let second = POLICY.replace("'model:small'", "'model:small', 'model:large'");
    let third = format!("{second}budget:\n  daily_limit_usd: 5\n");
    let versions = [POLICY.to_owned(), second, third];
    for (at, version) in versions.iter().enumerate() {
        let applied = workspace.apply(version).await.json();
        assert_eq!(applied["applied"][0]["version"], at + 1);
        workspace.plane.advance(10);
    }
    versions
}

async fn rollback(workspace: &Workspace<'_>, version: Option<i64>) -> crate::harness::Reply {
    let target = version.map_or(json!({}), |version| json!({"version": version}));
    workspace.post("/policies/test/rollback", target).await
}

#[tokio::test]
async fn every_version_says_who_applied_it_when_and_what_changed() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let [first, ..] = three_versions(&workspace).await;
    let path = workspace.path("/policies/test");
    let deleted = plane.call(&workspace.operator, "DELETE", &path, Value::Null);
    assert_eq!(deleted.await.status, 204);

    let operator = &workspace.get("/operators").await[0];
    let version = |number: i64, deleted: bool, changes: Value| {
        json!({
            "version": number, "deleted": deleted, "restores": null, "author": operator["id"], "author_name": operator["name"],
            "applied_ms": (START + 10 * (number - 1)) * 1_000, "changes": changes,
        })
    };
    let change = |rule: &str, effect: &str, message: &str| json!({"scope": "team:blue", "rule": rule, "effect": effect, "message": message});
    let all = [
        // For those under another policy, and for those who are not.
        version(
            4,
            true,
            json!([
                change("", "widens", "is gone"),
                change(
                    "",
                    "narrows",
                    "is gone; agents under no other document may now call nothing"
                )
            ]),
        ),
        version(
            3,
            false,
            json!([change(
                "budget.daily_limit_usd (per agent, UTC)",
                "narrows",
                "is new: $5.00"
            )]),
        ),
        version(
            2,
            false,
            json!([change("capabilities.allow (model)", "widens", "adds large")]),
        ),
        version(
            1,
            false,
            json!([
                change("", "narrows", "is new"),
                change(
                    "",
                    "widens",
                    "is new; agents under no other document could call nothing, and may now call what it leaves open"
                )
            ]),
        ),
    ];
    assert_eq!(workspace.get("/policies/test/versions").await, json!(all));
    // A page: the oldest on it is compared with what is not on it.
    let page = workspace.get("/policies/test/versions?before=4&limit=1");
    assert_eq!(page.await, json!(all[1..2]));
    let beyond = workspace.get("/policies/test/versions?before=1");
    assert_eq!(beyond.await, json!([]));
    for query in ["?limit=0", "?limit=101", "?before=0"] {
        let path = workspace.path(&format!("/policies/test/versions{query}"));
        assert_eq!(plane.get(&workspace.operator, &path).await.status, 400);
    }
    // Each can be read as it was applied; the deletion has no text.
    let one = workspace.get("/policies/test/versions/1").await;
    assert_eq!((&one["text"], &one["version"]), (&json!(first), &json!(1)));
    let four = workspace.get("/policies/test/versions/4").await;
    assert_eq!(four["text"], Value::Null);
    let five = workspace.path("/policies/test/versions/5");
    assert_eq!(plane.get(&workspace.operator, &five).await.status, 404);
}

#[tokio::test]
async fn a_rollback_is_a_new_version_in_a_new_bundle() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let [first, second, _] = three_versions(&workspace).await;
    // The first bundle has no policy; then one for each version.
    let done = rollback(&workspace, None).await;
    assert_eq!(done.status, 200);
    assert_eq!(
        done.json(),
        json!({"name": "test", "version": 4, "restores": 2, "revision": 5})
    );
    let live = workspace.get("/policies/test").await;
    assert_eq!(
        (&live["text"], &live["version"]),
        (&json!(second), &json!(4))
    );
    let newest = &workspace.get("/policies/test/versions").await[0];
    assert_eq!(newest["restores"], 2);
    assert_eq!(newest["changes"][0]["message"], "is gone: $5.00");

    assert_eq!(rollback(&workspace, Some(1)).await.json()["version"], 5);
    assert_eq!(workspace.get("/policies/test").await["text"], json!(first));
    // Out of service and back.
    let path = workspace.path("/policies/test");
    plane
        .call(&workspace.operator, "DELETE", &path, Value::Null)
        .await;
    assert_eq!(rollback(&workspace, None).await.json()["restores"], 5);
    assert_eq!(workspace.get("/policies/test").await["text"], json!(first));
}

#[tokio::test]
async fn what_cannot_be_gone_back_to_is_said_and_changes_nothing() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let nothing = rollback(&workspace, None).await;
    assert_eq!(nothing.status, 404);
    assert_eq!(workspace.apply(POLICY).await.status, 200);
    let path = workspace.path("/policies/test");
    plane
        .call(&workspace.operator, "DELETE", &path, Value::Null)
        .await;
    assert_eq!(workspace.apply(POLICY).await.status, 200);
    for (version, status) in [
        // Version 2 is the deletion.
        (None, 422),
        (Some(2), 422),
        (Some(3), 422),
        (Some(0), 404),
        (Some(4), 404),
        (Some(-1), 404),
    ] {
        let reply = rollback(&workspace, version).await;
        assert_eq!(reply.status, status, "{version:?}");
    }
    assert_eq!(workspace.get("/policies/test").await["version"], 3);
}

/// What an older version of this program took and this one does not must not come back unchecked.
#[tokio::test]
async fn a_version_that_is_not_read_any_more_is_refused_with_its_errors() {
    let plane = Plane::with(Settings::default()).await;
    let workspace = plane.workspace().await;
    three_versions(&workspace).await;
    plane
        .execute("UPDATE policies SET text = 'scope: nobody' WHERE version = 1")
        .await;
    let reply = rollback(&workspace, Some(1)).await;
    assert_eq!(
        (reply.status.as_u16(), reply.problem().as_str()),
        (422, "policy-refused")
    );
    assert_eq!(reply.json()["diagnostics"][0]["code"], "P201");
    let versions = workspace.get("/policies/test/versions").await;
    assert_eq!(versions.as_array().unwrap().len(), 3);
    // What it changed cannot be told, nor what the next one changed.
    assert_eq!(
        [&versions[1]["changes"], &versions[2]["changes"]],
        [&Value::Null, &Value::Null]
    );
}

fn named(name: &str, spec: &str) -> String {
    format!("apiVersion: tollgate/v1\nkind: Policy\nmetadata:\n  name: {name}\nspec:\n{spec}")
}

#[tokio::test]
async fn a_set_of_files_goes_live_in_one_bundle() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let pair = format!(
        "{}---\n{}",
        named("one", "  network: {}\n"),
        named("two", "  network: {}\n")
    );
    let set = json!({"files": [
        {"path": "policies/pair.yaml", "text": pair},
        {"path": "policies/flat.yaml", "text": "network: {}\nextra: 1\n"},
    ]});
    let reply = workspace.post("/policies", set).await;
    assert_eq!(reply.status, 200);
    let applied = reply.json();
    let names: Vec<String> = applied["applied"]
        .as_array()
        .unwrap()
        .iter()
        .map(|policy| text(&policy["name"]))
        .collect();
    assert_eq!(names, ["one", "two", "flat"]);
    assert_eq!(applied["revision"], 2);
    let warning = &applied["warnings"][0];
    assert_eq!(
        (&warning["file"], &warning["code"], &warning["line"]),
        (&json!("policies/flat.yaml"), &json!("P101"), &json!(2))
    );
}

#[tokio::test]
async fn nothing_of_a_bad_set_goes_live_and_all_its_errors_come_at_once() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let set = json!({"files": [
        {"path": "good.yaml", "text": named("good", "  network: {}\n")},
        {"path": "bad.yaml", "text": "scope: nobody\nrate:\n  requests_per_minute: 1\n"},
        {"path": "again.yaml", "text": named("good", "  network: {}\n")},
    ]});
    let reply = workspace.post("/policies", set).await;
    assert_eq!(
        (reply.status.as_u16(), reply.problem().as_str()),
        (422, "policy-refused")
    );
    let found: Vec<(String, String)> = reply.json()["diagnostics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| (text(&found["file"]), text(&found["code"])))
        .collect();
    let expected = [
        ("bad.yaml", "P201"),
        // A flat document is of the older language, which has no rates.
        ("bad.yaml", "P107"),
        ("again.yaml", "P401"),
    ]
    .map(|(file, code)| (file.to_owned(), code.to_owned()));
    assert_eq!(found, expected);
    assert_eq!(workspace.get("/policies").await, json!([]));

    for (set, status) in [
        (json!({"files": []}), 422),
        (json!({"files": [{"path": "", "text": ""}]}), 422),
        (json!({"files": [{"path": "a\u{1b}", "text": ""}]}), 422),
        (json!({"files": [{"path": "a.yaml"}]}), 422),
        (json!({"fils": []}), 422),
        (
            json!({"files": [{"path": "a.yaml", "text": "#".repeat(8 << 20)}]}),
            413,
        ),
    ] {
        assert_eq!(workspace.post("/policies", set).await.status, status);
    }
    // Strict: what was a warning is an error.
    let set =
        json!({"strict": true, "files": [{"path": "a.yaml", "text": "scope: global\nextra: 1\n"}]});
    assert_eq!(workspace.post("/policies", set).await.status, 422);
    assert_eq!(workspace.get("/policies").await, json!([]));
}
