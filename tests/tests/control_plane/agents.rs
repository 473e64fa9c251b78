//! Agents that act for others.

use serde_json::{Value, json};
use tollgate_engine::{
    bundle::Bundle,
    identity::{self, Caller, GovernanceLevel, MAX_CHAIN},
};

use crate::{
    bundles::{installed, payload},
    harness::{Plane, Reply, START, Workspace, text},
};

/// A token of an agent, from an operator.
pub(crate) async fn token(workspace: &Workspace<'_>, agent: &str) -> String {
    let path = format!("/agents/{agent}/tokens");
    text(&workspace.post(&path, Value::Null).await.json()["token"])
}

/// The agent of `actor` asks to act for that of `subject`.
async fn exchange(workspace: &Workspace<'_>, actor: &str, subject: &str) -> Reply {
    let path = workspace.path("/tokens/exchange");
    let body = json!({"subject_token": subject});
    workspace.plane.call(actor, "POST", &path, body).await
}

fn refusal(reply: &Reply) -> (u16, String) {
    (reply.status.as_u16(), text(&reply.json()["detail"]))
}

#[tokio::test]
async fn an_agent_acts_for_whom_it_has_the_token_of() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    let planner = workspace.agent("plans").await;
    let searcher = workspace.agent("searches").await;
    let reader = workspace.agent("reads").await;
    let planners = token(&workspace, &planner).await;
    plane.advance(600);
    let searchers = token(&workspace, &searcher).await;
    let sent = exchange(&workspace, &searchers, &planners).await;
    assert_eq!(sent.status, 201);
    // It lasts no longer than the one it was made from.
    assert_eq!(sent.json()["expires_at"], START + 3_600);
    let readers = token(&workspace, &reader).await;
    let sent = exchange(&workspace, &readers, &text(&sent.json()["token"])).await;
    assert_eq!(sent.status, 201);

    let bundle = installed(&gate, &Bundle::closed()).await;
    let keys = &payload(&bundle).token_keys;
    let last = text(&sent.json()["token"]);
    let (caller, until) =
        identity::verify(last.as_bytes(), keys, &workspace.id, plane.now()).unwrap();
    let one = |agent: &str, team: &str| Caller {
        workspace: workspace.id.clone(),
        agent: agent.to_owned(),
        org: None,
        team: Some(team.to_owned()),
        level: GovernanceLevel::L2,
        acts_for: Vec::new(),
    };
    let expected = Caller {
        acts_for: vec![one(&planner, "plans"), one(&searcher, "searches")],
        ..one(&reader, "reads")
    };
    assert_eq!(caller, expected);
    assert_eq!(until.secs(), START + 3_600);
}

#[tokio::test]
async fn what_is_no_chain_is_refused_with_the_reason() {
    let plane = Plane::new().await;
    let (workspace, other) = (plane.workspace().await, plane.workspace().await);
    let (planner, searcher) = (workspace.agent("a").await, workspace.agent("b").await);
    let (planners, searchers) = (
        token(&workspace, &planner).await,
        token(&workspace, &searcher).await,
    );
    let said = |reply: Reply, what: &str| {
        let (status, detail) = refusal(&reply);
        assert_eq!(status, 422, "{what}: {detail}");
        assert!(detail.contains(what), "{detail}");
        // Tokens are for nobody's log.
        assert!(!detail.contains("eyJ"), "{detail}");
    };
    let strangers = token(&other, &other.agent("c").await).await;
    said(
        exchange(&workspace, &searchers, &strangers).await,
        "for another workspace",
    );
    said(
        exchange(&workspace, &searchers, "eyJ.not.a-token").await,
        "`subject_token`",
    );
    said(
        exchange(&workspace, &searchers, &searchers).await,
        "does not act for itself",
    );
    let sent = exchange(&workspace, &searchers, &planners).await.json();
    let acting = text(&sent["token"]);
    said(
        exchange(&workspace, &acting, &planners).await,
        "send the agent's own",
    );
    // Round in a circle.
    said(
        exchange(&workspace, &planners, &acting).await,
        "does not act for itself",
    );
    let mut longest = acting;
    for number in 2..=MAX_CHAIN {
        let next = token(&workspace, &workspace.agent(&format!("t{number}")).await).await;
        let reply = exchange(&workspace, &next, &longest).await;
        if number == MAX_CHAIN {
            said(reply, "no more than 8 agents");
            break;
        }
        assert_eq!(reply.status, 201, "{number}");
        longest = text(&reply.json()["token"]);
    }
    // Whose agent is revoked, or whose hour is over, neither sends nor is sent.
    let path = workspace.path(&format!("/agents/{planner}"));
    plane
        .call(&workspace.operator, "DELETE", &path, Value::Null)
        .await;
    said(
        exchange(&workspace, &searchers, &planners).await,
        "the agent has been revoked",
    );
    let reply = exchange(&workspace, &planners, &searchers).await;
    assert_eq!(reply.status, 401);
    plane.advance(3_600);
    let reply = exchange(&workspace, &searchers, &planners).await;
    assert_eq!(reply.status, 401);
}

/// Commands take an id or a name: what is an id must mean one agent.
#[tokio::test]
async fn an_agent_is_not_called_as_ids_are() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let id = workspace.agent("blue").await;
    for name in [id.to_uppercase(), id.replace('-', ""), id] {
        let body = json!({"name": name, "level": "L1"});
        let refused = workspace.post("/agents", body).await;
        assert_eq!(refused.status, 422, "{name}");
        let said = refused.json();
        assert!(text(&said["detail"]).contains("this is a UUID"), "{said}");
    }
}
