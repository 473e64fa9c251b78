//! Budgets of runs through the API.

use serde_json::json;
use tollgate_engine::lease::{self, Answer, Grant};

use crate::harness::{Plane, START, Workspace, ask, holder};

/// 100 tokens a run, which may last a minute.
const POLICY: &str = "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {name: runs}\n\
    spec: {agent: {budget: {max_tokens: 100}, termination: {on_timeout: 60}}}\n";

const DAY: i64 = 86_400;

async fn limited(workspace: &Workspace<'_>) -> String {
    let applied = workspace.apply(POLICY).await;
    assert_eq!(applied.status, 200, "{}", applied.json());
    workspace.agent("blue").await
}

fn only(answer: &Answer) -> &Grant {
    match answer.grants.as_slice() {
        [grant] => grant,
        grants => panic!("expected one grant, not {grants:?}"),
    }
}

#[tokio::test]
async fn all_cells_of_a_run_share_its_budget() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = limited(&workspace).await;
    let gate = workspace.gate().await;
    let account = format!("agent:{agent}|tokens|run:r");
    let first = gate
        .leased(&holder(1), 0, vec![ask(&account, START, 1, 0, 60)])
        .await;
    assert_eq!((only(&first).granted, only(&first).retry_ms), (60, 0));
    // Another gate hears of it later, and by another clock. 40 are left.
    let second = gate
        .leased(&holder(2), 0, vec![ask(&account, START + 7, 1, 0, 30)])
        .await;
    assert_eq!(
        (only(&second).granted, only(&second).window_start),
        (30, START + 7)
    );
    // The first used 40 of its 60, gives the rest back, and forgets the run.
    let back = lease::Ask {
        granted: 60,
        returned: 20,
        ..ask(&account, START, 2, 40, 0)
    };
    gate.leased(&holder(1), 1, vec![back]).await;
    // Its next cell has nothing of the first: 100 − 40 − 30 are left for it.
    let next = gate
        .leased(&holder(1), 1, vec![ask(&account, START + 50, 1, 0, 40)])
        .await;
    assert_eq!((only(&next).granted, only(&next).spent), (30, 40));
    assert_ne!(only(&next).retry_ms, 0);
    // What was sent to the first comes again, late: it changes nothing.
    let replay = gate
        .leased(&holder(1), 1, vec![ask(&account, START, 1, 0, 60)])
        .await;
    assert_eq!((only(&replay).granted, only(&replay).returned), (60, 20));

    assert_eq!(workspace.get("/budgets").await, json!([]));
    let shown = workspace.get("/budgets?run=r").await;
    assert_eq!(
        (
            &shown[0]["account"],
            &shown[0]["settled"],
            &shown[0]["leased"],
            &shown[0]["available"]
        ),
        (&json!(account), &json!("40"), &json!("60"), &json!("0"))
    );
    assert_eq!(shown.as_array().map(Vec::len), Some(1));
    assert_eq!(workspace.get("/budgets?run=s").await, json!([]));
    for no_run in ["", "a%20b", &"r".repeat(129)] {
        let path = workspace.path(&format!("/budgets?run={no_run}"));
        let reply = plane.get(&workspace.operator, &path).await;
        assert_eq!(reply.problem(), "malformed", "{no_run}");
    }
}

#[tokio::test]
async fn a_run_ends_by_its_first_call_whoever_heard_of_it() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = limited(&workspace).await;
    let gate = workspace.gate().await;
    let account = |unit: &str| format!("agent:{agent}|{unit}|run:r");
    let begun = gate
        .leased(&holder(1), 0, vec![ask(&account("tokens"), START, 1, 0, 1)])
        .await;
    assert_eq!(only(&begun).window_end, START + DAY);
    plane.advance(40);
    let time = gate
        .leased(
            &holder(2),
            0,
            vec![ask(&account("seconds"), START + 40, 1, 0, 1)],
        )
        .await;
    assert_eq!(only(&time).window_end, START + 60);
    assert!(only(&time).granted > 0);
    plane.advance(20);
    let over = gate
        .leased(
            &holder(3),
            0,
            vec![ask(&account("seconds"), START + 60, 1, 0, 1)],
        )
        .await;
    assert_eq!(
        (only(&over).granted, only(&over).window_end),
        (0, START + 60)
    );
    // Its tokens last as long as a run may.
    plane.advance(DAY - 60);
    let over = gate
        .leased(
            &holder(3),
            1,
            vec![ask(&account("tokens"), START + DAY, 1, 0, 1)],
        )
        .await;
    assert_eq!(
        (only(&over).granted, only(&over).window_end),
        (0, START + DAY)
    );
}

#[tokio::test]
async fn the_time_of_a_run_is_used_as_it_passes_and_leased_to_nobody() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = limited(&workspace).await;
    let gate = workspace.gate().await;
    let account = format!("agent:{agent}|seconds|run:r");
    let asks = vec![ask(&account, START, 1, 0, 1)];
    gate.leased(&holder(1), 0, asks).await;
    let shown = async || {
        let budget = workspace.get("/budgets?run=r").await[0].clone();
        assert_eq!(budget["account"], json!(account));
        assert_eq!(budget["holders"], json!([]));
        let fields = [
            "limit",
            "settled",
            "reserved",
            "leased",
            "forfeited",
            "available",
        ];
        fields.map(|field| budget[field].clone())
    };
    assert_eq!(shown().await, ["60", "0", "0", "0", "0", "60"]);
    plane.advance(25);
    assert_eq!(shown().await, ["60", "25", "0", "0", "0", "35"]);
    plane.advance(34);
    assert_eq!(shown().await, ["60", "59", "0", "0", "0", "1"]);
    // A shorter time than has passed leaves none.
    let shorter = POLICY.replace("on_timeout: 60", "on_timeout: 30");
    assert_eq!(workspace.apply(&shorter).await.status, 200);
    assert_eq!(shown().await, ["30", "30", "0", "0", "0", "0"]);
}

#[tokio::test]
async fn an_agent_begins_so_many_runs_in_an_hour() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = limited(&workspace).await;
    let gate = workspace.gate().await;
    // All of them now.
    plane
        .execute(
            "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 10000)
             INSERT INTO runs (workspace, agent, run, began_ms) SELECT a.workspace, a.id, 'r' || n, a.created_ms FROM number, agents AS a",
        )
        .await;
    let other = workspace.agent("blue").await;
    let run = |agent: &str, name: &str, seq| {
        let account = format!("agent:{agent}|tokens|run:{name}");
        vec![ask(&account, START, seq, 0, 1)]
    };
    let refused = gate.leased(&holder(1), 0, run(&agent, "more", 1)).await;
    assert_eq!((only(&refused).granted, only(&refused).window_end), (0, 0));
    // One that it has begun goes on, and others are free to begin.
    let known = gate.leased(&holder(1), 1, run(&agent, "r77", 1)).await;
    assert!(only(&known).granted > 0);
    let others = gate.leased(&holder(1), 1, run(&other, "more", 1)).await;
    assert!(only(&others).granted > 0);
    plane.advance(3_601);
    let later = gate.leased(&holder(1), 1, run(&agent, "more", 2)).await;
    assert!(only(&later).granted > 0);
}
