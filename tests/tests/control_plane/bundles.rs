//! Policies, bundles, and how gates hear of them.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use tollgate_control_plane::Settings;
use tollgate_engine::bundle::{Bundle, Payload, Texts};
use tollgate_engine::identity;

use crate::harness::{Gate, Plane, Reply, START, Workspace, holder, text};

const POLICY: &str = "scope: global\ncapabilities:\n  allow: ['model:small']\n";

pub(crate) async fn poll(gate: &Gate<'_>, query: &str, etag: Option<&str>) -> Reply {
    let workspace = gate.workspace;
    let mut request = Request::get(workspace.path(&format!("/gate/bundle{query}")))
        .header("authorization", format!("Bearer {}", gate.key));
    if let Some(etag) = etag {
        request = request.header("if-none-match", etag);
    }
    workspace
        .plane
        .send(request.body(Body::empty()).unwrap())
        .await
}

/// The bundle as a gate that runs `before` takes it.
pub(crate) async fn installed(gate: &Gate<'_>, before: &Bundle) -> Bundle {
    let reply = poll(gate, "", None).await;
    assert_eq!(reply.status, 200);
    let workspace = gate.workspace;
    let bundle = before
        .successor(
            &reply.body,
            &gate.trust,
            &workspace.id,
            "default",
            workspace.plane.now(),
        )
        .unwrap();
    assert_eq!(
        reply.headers["etag"].to_str().unwrap(),
        bundle.etag().unwrap()
    );
    bundle
}

pub(crate) fn payload(bundle: &Bundle) -> &Payload {
    bundle.payload().unwrap()
}

fn names(bundle: &Bundle) -> Vec<&str> {
    let documents = &payload(bundle).documents;
    documents
        .iter()
        .map(|document| document.name.as_str())
        .collect()
}

#[tokio::test]
async fn a_gate_installs_what_is_published() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    // Before the first policy there is a bundle already: one that denies everything.
    let first = installed(&gate, &Bundle::closed()).await;
    assert_eq!((first.revision(), names(&first).len()), (1, 0));
    assert_eq!(payload(&first).expires_at, START + 86_400);
    assert!(!payload(&first).prices.models.is_empty());
    let applied = workspace.apply(POLICY).await.json();
    assert_eq!(
        applied,
        json!({"applied": [{"name": "test", "version": 1, "changed": true}], "warnings": [], "revision": 2})
    );
    let second = installed(&gate, &first).await;
    assert_eq!((second.revision(), names(&second)), (2, vec!["test"]));
    // The same again is no change.
    let again = workspace.apply(POLICY).await.json();
    assert_eq!(
        (&again["applied"][0]["changed"], &again["revision"]),
        (&json!(false), &json!(2))
    );
    // An operator sees the same bytes as a gate.
    let path = workspace.path("/bundle");
    assert_eq!(
        plane.get(&workspace.operator, &path).await.body,
        poll(&gate, "", None).await.body
    );
}

#[tokio::test]
async fn a_poll_waits_for_the_next_bundle_and_wakes_for_it() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let etag = poll(&gate, "", None).await.headers["etag"]
        .to_str()
        .unwrap()
        .to_owned();
    let unchanged = poll(&gate, "", Some(&etag)).await;
    assert_eq!((unchanged.status.as_u16(), unchanged.body.len()), (304, 0));
    assert_eq!(unchanged.headers["etag"], etag.as_str());
    let changed = poll(&gate, "?wait=50", Some("\"0-0\"")).await;
    assert_eq!(changed.status, 200);
    // A change elsewhere wakes nobody here; one here does, long before the 50 s are over.
    let elsewhere = plane.workspace().await;
    let waiting = poll(&gate, "?wait=50", Some(&etag));
    let publishing = async {
        assert_eq!(elsewhere.apply(POLICY).await.status, 200);
        assert_eq!(workspace.apply(POLICY).await.status, 200);
    };
    let both = async { tokio::join!(waiting, publishing) };
    let (woken, ()) = tokio::time::timeout(Duration::from_secs(20), both)
        .await
        .unwrap();
    assert_eq!(woken.status, 200);
    assert_ne!(woken.headers["etag"], etag.as_str());
}

#[tokio::test]
async fn a_poll_in_vain_ends_after_its_wait() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let etag = poll(&gate, "", None).await.headers["etag"]
        .to_str()
        .unwrap()
        .to_owned();
    for tag in [
        etag.clone(),
        format!("W/{etag}"),
        format!("\"x\", {etag}"),
        "*".to_owned(),
    ] {
        assert_eq!(
            poll(&gate, "?wait=1", Some(&tag)).await.status,
            304,
            "{tag}"
        );
    }
    let long = poll(&gate, "?wait=56", None).await;
    assert_eq!(
        (long.status.as_u16(), long.problem().as_str()),
        (400, "malformed")
    );
    let unknown = poll(&gate, "?channel=canary", None).await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.problem().as_str()),
        (404, "not-found")
    );
}

#[tokio::test]
async fn nothing_of_a_bad_set_goes_live() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    assert_eq!(workspace.apply(POLICY).await.status, 200);
    let before = installed(&gate, &Bundle::closed()).await;
    let set =
        "scope: team:blue\nnetwork: {}\n---\nscope: team:red\nbudget:\n  daily_limit_usd: plenty\n";
    let reply = workspace.apply(set).await;
    assert_eq!(
        (reply.status.as_u16(), reply.problem().as_str()),
        (422, "policy-refused")
    );
    let findings = reply.json()["diagnostics"].clone();
    let parsed = tollgate_policy::parse("test.yaml", set.as_bytes(), false);
    assert_eq!(findings.as_array().unwrap().len(), parsed.diagnostics.len());
    assert_eq!(findings[0]["line"], 6);
    assert_eq!(findings[0]["message"], parsed.diagnostics[0].message);
    // Fine each, but not together.
    let twice =
        "apiVersion: tollgate/v1\nkind: Policy\nmetadata:\n  name: twice\nspec:\n  scope: global\n";
    let reply = workspace.apply(&format!("{twice}---\n{twice}")).await;
    assert_eq!(reply.problem(), "policy-refused");
    let reply = workspace.apply(&"#".repeat((1 << 20) + 1)).await;
    assert_eq!(reply.problem(), "policy-refused");
    let reply = workspace.apply(&"#".repeat((1 << 20) + 2)).await;
    assert_eq!(reply.problem(), "too-large");
    assert_eq!(names(&installed(&gate, &before).await), ["test"]);
    assert_eq!(
        installed(&gate, &before).await.revision(),
        before.revision()
    );
    assert_eq!(
        workspace.get("/policies").await.as_array().unwrap().len(),
        1
    );
}

#[tokio::test]
async fn a_workspace_starts_with_guardrails_unless_told_otherwise() {
    let plane = Plane::new().await;
    let made = plane
        .call(
            &plane.root_key(),
            "POST",
            "/v1/workspaces",
            json!({"name": plane.name()}),
        )
        .await
        .json();
    let key = text(&made["operator"]["key"]);
    let path = format!("/v1/workspaces/{}/policies", text(&made["id"]));
    let listed = plane.get(&key, &path).await.json();
    assert_eq!(
        (
            &listed[0]["name"],
            &listed[0]["version"],
            &listed[0]["author"]
        ),
        (
            &json!("default-guardrails"),
            &json!(1),
            &made["operator"]["id"]
        )
    );
    let shown = plane
        .get(&key, &format!("{path}/default-guardrails"))
        .await
        .json();
    assert_eq!(shown["text"], tollgate_policy::GUARDRAILS);
    let bare = plane.workspace().await;
    assert_eq!(bare.get("/policies").await, json!([]));
}

#[tokio::test]
async fn a_document_that_replaces_another_version_is_refused() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let policy = |version: &str, replaces: &str| {
        format!(
            "apiVersion: tollgate/v1\nkind: Policy\nmetadata:\n  name: cap\n  version: '{version}'\n  replaces: '{replaces}'\nspec: {{}}\n"
        )
    };
    let refused = async |policy: &str| {
        let reply = workspace.apply(policy).await;
        assert_eq!(
            (reply.status.as_u16(), reply.problem().as_str()),
            (422, "policy-refused")
        );
        let finding = reply.json()["diagnostics"][0].clone();
        assert_eq!(
            (&finding["code"], &finding["line"]),
            (&json!("P403"), &json!(6))
        );
        text(&finding["message"])
    };
    // Nothing is there yet.
    let message = refused(&policy("2", "1")).await;
    assert!(message.contains("there is none of this name"), "{message}");
    let first =
        "apiVersion: tollgate/v1\nkind: Policy\nmetadata:\n  name: cap\n  version: '1'\nspec: {}\n";
    assert_eq!(workspace.apply(first).await.status, 200);
    assert_eq!(workspace.apply(&policy("2", "1")).await.status, 200);
    // The same again is no change, and replaces nothing.
    assert_eq!(workspace.apply(&policy("2", "1")).await.status, 200);
    // Somebody else who also began from version 1.
    let message = refused(&policy("3", "1")).await;
    assert!(
        message.contains("the one in place is version `2`"),
        "{message}"
    );
    assert_eq!(workspace.apply(&policy("3", "2")).await.status, 200);
}

#[tokio::test]
async fn a_document_in_shadow_is_in_the_bundle_and_decides_nothing() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let tried = "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {name: tried, rollout: shadow}\nspec: {network: {}}\n";
    assert_eq!(workspace.apply(tried).await.status, 200);
    let bundle = installed(&gate, &Bundle::closed()).await;
    assert_eq!(names(&bundle), [""; 0]);
    assert_eq!(payload(&bundle).shadow[0].name, "tried");
}

#[tokio::test]
async fn a_deleted_policy_is_gone_from_the_bundle() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    assert_eq!(workspace.apply(POLICY).await.status, 200);
    plane.advance(10);
    let edited = POLICY.replace("small", "large");
    assert_eq!(
        workspace.apply(&edited).await.json()["applied"][0]["version"],
        2
    );
    plane.advance(10);
    let policy = workspace.path("/policies/test");
    let deleted = plane
        .call(&workspace.operator, "DELETE", &policy, Value::Null)
        .await;
    assert_eq!(deleted.status, 204);
    assert_eq!(plane.get(&workspace.operator, &policy).await.status, 404);
    assert_eq!(names(&installed(&gate, &Bundle::closed()).await), [""; 0]);
    // The same text after a deletion is a change.
    assert_eq!(
        workspace.apply(&edited).await.json()["applied"][0]["version"],
        4
    );
}

#[tokio::test]
async fn a_revoked_agent_is_named_in_the_next_bundle() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let agent = workspace.agent("blue").await;
    let before = installed(&gate, &Bundle::closed()).await;
    let path = workspace.path(&format!("/agents/{agent}"));
    for _ in 0..2 {
        let reply = plane
            .call(&workspace.operator, "DELETE", &path, Value::Null)
            .await;
        assert_eq!(reply.status, 204);
    }
    let after = installed(&gate, &before).await;
    assert_eq!(payload(&after).revoked_agents, [agent.as_str()]);
    assert_eq!(after.revision(), before.revision() + 1);
    let reply = workspace
        .post(&format!("/agents/{agent}/tokens"), Value::Null)
        .await;
    assert_eq!(
        (reply.status.as_u16(), reply.problem().as_str()),
        (409, "conflict")
    );
}

#[tokio::test]
async fn a_token_is_good_for_an_hour_at_every_gate_of_the_workspace() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let agent = workspace.agent("blue").await;
    let issued = workspace
        .post(&format!("/agents/{agent}/tokens"), Value::Null)
        .await
        .json();
    assert_eq!(issued["expires_at"], START + 3_600);
    let bundle = installed(&gate, &Bundle::closed()).await;
    let keys = &payload(&bundle).token_keys;
    let token = text(&issued["token"]);
    let (caller, until) =
        identity::verify(token.as_bytes(), keys, &workspace.id, plane.now()).unwrap();
    assert_eq!(
        (caller.agent, caller.team, caller.org),
        (agent, Some("blue".into()), None)
    );
    assert_eq!(until.secs(), START + 3_600);
    plane.advance(3_600);
    let expired = identity::verify(token.as_bytes(), keys, &workspace.id, plane.now());
    assert_eq!(expired, Err(identity::IdentityError::Expired));
}

#[tokio::test]
async fn a_bundle_is_signed_anew_when_half_of_its_life_is_over() {
    let settings = Settings {
        bundle_ttl_secs: 1_000,
        ..Settings::default()
    };
    let plane = Plane::with(settings).await;
    let workspace = plane.workspace().await;
    assert_eq!(workspace.apply(POLICY).await.status, 200);
    let gate = workspace.gate().await;
    let bundle = installed(&gate, &Bundle::closed()).await;
    plane.advance(499);
    plane.state.upkeep().await.unwrap();
    assert_eq!(installed(&gate, &bundle).await.revision(), 2);
    plane.advance(1);
    plane.state.upkeep().await.unwrap();
    let renewed = installed(&gate, &bundle).await;
    assert_eq!((renewed.revision(), names(&renewed)), (3, vec!["test"]));
    assert_eq!(payload(&renewed).expires_at, START + 500 + 1_000);
}

/// A clock that was ahead: gates with the right time refuse what has not been issued yet.
#[tokio::test]
async fn a_bundle_from_the_future_is_signed_anew() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    plane.advance(3_600);
    assert_eq!(workspace.apply(POLICY).await.status, 200);
    plane.advance(-3_600);
    let early = poll(&gate, "", None).await.body;
    let refused =
        Bundle::closed().successor(&early, &gate.trust, &workspace.id, "default", plane.now());
    assert_eq!(
        refused.map(|bundle| bundle.revision()),
        Err(tollgate_engine::bundle::InstallError::FromTheFuture)
    );
    plane.state.upkeep().await.unwrap();
    let bundle = installed(&gate, &Bundle::closed()).await;
    assert_eq!((bundle.revision(), names(&bundle)), (3, vec!["test"]));
    assert_eq!(payload(&bundle).issued_at, START);
    // Once is enough.
    plane.state.upkeep().await.unwrap();
    assert_eq!(installed(&gate, &bundle).await.revision(), 3);
}

#[tokio::test]
async fn a_gate_that_is_revoked_while_it_waits_gets_no_bundle() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let (gate, other) = (workspace.gate().await, workspace.gate().await);
    let etag = poll(&gate, "", None).await.headers["etag"]
        .to_str()
        .unwrap()
        .to_owned();
    let path = workspace.path(&format!("/gates/{}", gate.id));
    let revoking = async {
        let reply = plane
            .call(&workspace.operator, "DELETE", &path, Value::Null)
            .await;
        assert_eq!(reply.status, 204);
    };
    let waiting = async {
        // Both wait before the one is revoked: they come first, and look only once.
        let (gone, stays, ()) = tokio::join!(
            poll(&gate, "?wait=50", Some(&etag)),
            poll(&other, "?wait=50", Some(&etag)),
            async {
                revoking.await;
                assert_eq!(workspace.apply(POLICY).await.status, 200);
            }
        );
        (gone, stays)
    };
    let (gone, stays) = tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap();
    assert_eq!(
        (gone.status.as_u16(), gone.problem().as_str()),
        (401, "unauthenticated")
    );
    assert_eq!(stays.status, 200);
}

#[tokio::test]
async fn two_workspaces_may_name_things_alike() {
    let plane = Plane::new().await;
    let (ours, theirs): (Workspace<'_>, Workspace<'_>) =
        (plane.workspace().await, plane.workspace().await);
    assert_eq!(ours.apply(POLICY).await.status, 200);
    assert_eq!(
        theirs.apply(&POLICY.replace("small", "large")).await.status,
        200
    );
    let (gate, other) = (ours.gate().await, theirs.gate().await);
    let bundle = installed(&gate, &Bundle::closed()).await;
    let foreign = poll(&other, "", None).await.body;
    let refused = bundle.successor(&foreign, &gate.trust, &ours.id, "default", plane.now());
    assert_eq!(
        refused.map(|bundle| bundle.revision()),
        Err(tollgate_engine::bundle::InstallError::ForeignWorkspace)
    );
    let allowed = &payload(&bundle).documents[0].models.allow;
    assert_eq!(*allowed, Some(Texts::from_iter(["small"])));
}

#[tokio::test]
async fn a_restored_control_plane_passes_what_its_gates_run() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let greet = async |revision: i64| {
        let body = json!({"holder": holder(1), "epoch": 0, "revision": revision, "asks": []});
        let path = workspace.path("/gate/leases");
        plane.call(&gate.key, "POST", &path, body).await
    };
    let upkeep = async || {
        plane.state.upkeep().await.unwrap();
        installed(&gate, &Bundle::closed()).await.revision()
    };
    let report = async |revision: i64| {
        assert_eq!(greet(revision).await.status, 200);
        upkeep().await
    };
    assert_eq!(report(1).await, 1);
    assert_eq!(report(7).await, 8);
    // However far ahead a gate says it is, it is followed in steps that other gates can follow.
    assert_eq!(report(5_000).await, 109);
    assert_eq!(upkeep().await, 210);
    // Skipped so far: 6 and twice 100. So 499,794 are left to skip, behind revision 210.
    for absurd in [500_005, 1 << 40, (1 << 53) - 1] {
        let refused = greet(absurd).await;
        assert_eq!(
            (refused.status.as_u16(), refused.problem().as_str()),
            (422, "invalid"),
            "{absurd}"
        );
        let detail = text(&refused.json()["detail"]);
        assert!(detail.contains("500004"), "{detail}");
    }
    assert_eq!(report(500_004).await, 311);
    // Once all are skipped nobody is followed any more, and nothing is published for it, whatever a gate once said.
    plane.execute("UPDATE bundles SET skipped = 499999").await;
    assert_eq!(upkeep().await, 313);
    plane
        .execute("UPDATE holders SET revision = 9007199254740991")
        .await;
    assert_eq!(upkeep().await, 313);
    // What is published for another reason has the next number.
    assert_eq!(workspace.apply(POLICY).await.status, 200);
    assert_eq!(upkeep().await, 314);
}

/// A bundle that gates would refuse must not be published: they would go on with the last one, and nobody would hear of it.
#[tokio::test]
async fn what_gates_would_not_take_is_not_published() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    // 800,000 bytes of hosts in each document: in a bundle, as base64 of JSON, 4/3 of that and more. The third passes 3 MiB.
    let hosts = |document: usize| {
        let host = |at: usize| format!("  - {at:05}.{}.d{document}.example\n", "h".repeat(61));
        format!(
            "scope: global\nnetwork:\n  allowlist:\n{}",
            (0..10_000).map(host).collect::<String>()
        )
    };
    let mut last = None;
    for document in 0..6 {
        let path = workspace.path(&format!("/policies?name=hosts-{document}"));
        let reply = plane
            .bytes(
                &workspace.operator,
                "PUT",
                &path,
                hosts(document).as_bytes(),
            )
            .await;
        if reply.status != 200 {
            last = Some((document, reply));
            break;
        }
    }
    let (document, refused) = last.unwrap();
    assert_eq!(document, 2);
    assert_eq!(refused.status, 422, "{}", refused.problem());
    let said = text(&refused.json()["diagnostics"][0]["message"]);
    assert!(
        said.contains("more than the 3145728 that may be; the rest of the 4194304 that gates take"),
        "{said}"
    );
    // Nothing of it is live.
    let policies = workspace.get("/policies").await;
    assert_eq!(policies.as_array().unwrap().len(), document);
}
