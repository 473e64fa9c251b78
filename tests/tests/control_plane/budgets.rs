//! What operators see of budgets, and what they can do about them.

use crate::harness::{Gate, Known, Plane, START, Workspace, ask, holder, text};
use serde_json::{Value, json};
use tollgate_engine::lease::Grant;

/// 2026-11-20T00:00:00Z, eight hours before START.
const DAY: i64 = START - 8 * 3_600;
const TERM_SECS: i64 = 60;

/// A hundred nano-USD a day for everybody together; the account.
async fn limited(workspace: &Workspace<'_>) -> String {
    let policy = "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {name: house}\n\
        spec: {scope: global, budget: {daily_limit_usd: 0.000000100, per: workspace}}\n";
    assert_eq!(workspace.apply(policy).await.status, 200);
    workspace.agent("blue").await;
    format!("workspace:{}|nano_usd|day@UTC", workspace.id)
}

/// The first holder: its ask with this number, what it has used, and what it wants.
async fn told(gate: &Gate<'_>, account: &str, asked: (u64, u64, u64)) -> Grant {
    let (seq, settled, want) = asked;
    let epoch = u64::from(seq > 1);
    let asks = vec![ask(account, DAY, seq, settled, want)];
    gate.leased(&holder(1), epoch, asks).await.grants[0].clone()
}

/// An operator's `POST` with a reason.
async fn post(workspace: &Workspace<'_>, path: &str) -> (u16, Value) {
    let reply = workspace.post(path, json!({"reason": "INC-1"})).await;
    (reply.status.as_u16(), reply.json())
}

fn encoded(account: &str) -> String {
    account.replace('|', "%7C").replace('@', "%40")
}

#[tokio::test]
async fn a_limit_that_is_nearly_used_is_warned_of_once_per_threshold() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let account = limited(&workspace).await;
    let gate = workspace.gate().await;
    told(&gate, &account, (1, 0, 60)).await;
    // 60 here, 19 there: 79 of 100.
    told(&gate, &account, (2, 60, 0)).await;
    gate.leased(&holder(2), 0, vec![ask(&account, DAY, 1, 0, 40)])
        .await;
    let other = |seq, settled| vec![ask(&account, DAY, seq, settled, 0)];
    gate.leased(&holder(2), 1, other(2, 19)).await;
    assert_eq!(workspace.get("/events").await, json!([]));
    let grants = gate.leased(&holder(2), 1, other(3, 20)).await.grants;
    assert_eq!((grants[0].settled, grants[0].spent), (20, 80));
    assert_eq!(workspace.get("/budgets").await[0]["warned"], json!([80]));
    gate.leased(&holder(2), 1, other(4, 29)).await;
    gate.leased(&holder(2), 1, other(5, 40)).await;
    assert_eq!(
        workspace.get("/budgets").await[0]["warned"],
        json!([80, 90])
    );
    let events = workspace.get("/events").await;
    let events: Vec<(String, String, String)> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| {
            assert_eq!(event["by"], Value::Null);
            let field = |field: &str| text(&event[field]);
            (field("kind"), field("subject"), field("message"))
        })
        .collect();
    let warning = |percent| {
        (
            "budget_warning".to_owned(),
            account.clone(),
            format!("{percent} % of $0.0000001 are used; it resets at 2026-11-21T00:00:00Z"),
        )
    };
    assert_eq!(events, [warning(90), warning(80)]);
}

#[tokio::test]
async fn warnings_are_of_the_limit_there_is() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let account = limited(&workspace).await;
    let gate = workspace.gate().await;
    told(&gate, &account, (1, 0, 70)).await;
    told(&gate, &account, (2, 70, 0)).await;
    let limit = async |nano_usd: u32| {
        let policy = format!(
            "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {{name: house}}\n\
             spec: {{budget: {{daily_limit_usd: 0.{nano_usd:09}, per: workspace}}}}\n"
        );
        assert_eq!(workspace.apply(&policy).await.status, 200);
    };
    let warned = async || workspace.get("/budgets").await[0]["warned"].clone();
    let warnings = async || {
        let events = workspace.get("/events").await;
        let all: Vec<String> = events
            .as_array()
            .into_iter()
            .flatten()
            .filter(|event| event["kind"] == "budget_warning")
            .map(|event| text(&event["message"]))
            .collect();
        all
    };
    assert_eq!(warned().await, json!([]));
    // 70 of 80 are 87.5 %. Nothing more is used: the limit has come to it.
    limit(80).await;
    told(&gate, &account, (3, 70, 0)).await;
    assert_eq!(warned().await, json!([80]));
    let resets = "are used; it resets at 2026-11-21T00:00:00Z";
    let of_80 = format!("80 % of $0.00000008 {resets}");
    assert_eq!(warnings().await, [of_80.as_str()]);
    // Of 10,000 they are 0.7 %.
    limit(10_000).await;
    told(&gate, &account, (4, 71, 0)).await;
    assert_eq!(warned().await, json!([]));
    // Back at 80 it is what was said already.
    limit(80).await;
    told(&gate, &account, (5, 71, 0)).await;
    assert_eq!(warned().await, json!([80]));
    assert_eq!(warnings().await, [of_80]);
}

#[tokio::test]
async fn the_next_window_is_warned_of_anew() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let account = limited(&workspace).await;
    let gate = workspace.gate().await;
    told(&gate, &account, (1, 0, 80)).await;
    told(&gate, &account, (2, 80, 0)).await;
    plane.advance(86_400);
    let asks = |seq, settled, want| vec![ask(&account, DAY + 86_400, seq, settled, want)];
    gate.leased(&holder(1), 1, asks(1, 0, 80)).await;
    gate.leased(&holder(1), 1, asks(2, 80, 0)).await;
    let events = workspace.get("/events").await;
    assert_eq!(events.as_array().map(Vec::len), Some(2), "{events}");
}

#[tokio::test]
async fn what_a_lost_gate_held_can_be_released() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let account = limited(&workspace).await;
    let gate = workspace.gate().await;
    told(&gate, &account, (1, 0, 60)).await;
    told(&gate, &account, (2, 20, 0)).await;
    let path = format!("/holders/{}/release", holder(1));
    // It lives, and nobody of that name does.
    assert_eq!(post(&workspace, &path).await.0, 409);
    let nobody = format!("/holders/{}/release", holder(9));
    assert_eq!(post(&workspace, &nobody).await.0, 404);
    plane.advance(2 * TERM_SECS + 1);
    let forfeited = async || {
        let row = workspace.get("/budgets").await[0].clone();
        assert!(!text(&row["holders"][0]["gate"]).is_empty());
        (text(&row["forfeited"]), text(&row["available"]))
    };
    assert_eq!(forfeited().await, ("40".to_owned(), "40".to_owned()));
    let (status, released) = post(&workspace, &path).await;
    assert_eq!((status, &released["accounts"]), (200, &json!(1)));
    assert_eq!(forfeited().await, ("0".to_owned(), "80".to_owned()));
    // Whoever comes next may have it.
    let asks = vec![ask(&account, DAY, 1, 0, 100)];
    let next = gate.leased(&holder(2), 0, asks).await;
    assert_eq!(next.grants[0].granted, 80);
    // Should it be alive after all, it is told to begin anew, and what it says then counts beside that.
    let late = vec![ask(&account, DAY, 3, 25, 5)];
    let refused = gate.lease(&holder(1), 1, late).await.unwrap_err();
    assert_eq!(refused.status, 409);
    let again = gate
        .leased(&holder(1), 0, vec![ask(&account, DAY, 4, 0, 5)])
        .await;
    assert_eq!(again.grants[0].granted, 0);
    let events = workspace.get("/events").await;
    assert_eq!(events[0]["kind"], "budget_released");
    assert_eq!(events[0]["subject"], holder(1));
    assert_eq!(events[0]["message"], "INC-1");
    // Released twice, there is nothing more.
    plane.advance(2 * TERM_SECS + 1);
    assert_eq!(post(&workspace, &path).await.1["accounts"], 0);
}

/// All of the account, as the budgets show it: forfeited, and left for others.
async fn left(workspace: &Workspace<'_>) -> (String, String) {
    let row = workspace.get("/budgets").await[0].clone();
    (text(&row["forfeited"]), text(&row["available"]))
}

#[tokio::test]
async fn what_a_lost_gate_held_is_released_where_the_policy_says_so() {
    for (on_lost, after) in [("forfeit", ("40", "40")), ("release", ("15", "65"))] {
        let plane = Plane::new().await;
        let workspace = plane.workspace().await;
        let account = limited(&workspace).await;
        let policy = format!(
            "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {{name: house}}\n\
             spec: {{budget: {{daily_limit_usd: 0.000000100, per: workspace, on_lost: {on_lost}}}}}\n"
        );
        assert_eq!(workspace.apply(&policy).await.status, 200);
        let gate = workspace.gate().await;
        told(&gate, &account, (1, 0, 60)).await;
        // 20 are used, 15 under way: those may have been spent by now.
        let mut asked = ask(&account, DAY, 2, 20, 0);
        asked.reserved = 15;
        gate.leased(&holder(1), 1, vec![asked]).await;
        // Two terms after it was last heard of, and not before.
        plane.advance(2 * TERM_SECS);
        plane.state.upkeep().await.unwrap();
        assert_eq!(left(&workspace).await, ("0".to_owned(), "40".to_owned()));
        plane.advance(1);
        plane.state.upkeep().await.unwrap();
        assert_eq!(
            left(&workspace).await,
            (after.0.to_owned(), after.1.to_owned()),
            "{on_lost}"
        );
        plane.state.upkeep().await.unwrap();
        let events = workspace.get("/events").await;
        let released: Vec<&Value> = events
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["kind"] == "budget_released")
            .collect();
        assert_eq!(
            released.len(),
            usize::from(on_lost == "release"),
            "{events}"
        );
        // Should it be alive after all, what it knew counts no more.
        let late = gate
            .lease(&holder(1), 1, vec![ask(&account, DAY, 3, 25, 5)])
            .await;
        assert_eq!(late.is_err(), on_lost == "release");
    }
}

/// A hundred nano-USD a day for everybody together, of which others may have what a lost gate does not use; the account.
async fn released(workspace: &Workspace<'_>) -> String {
    let account = limited(workspace).await;
    let policy = "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {name: house}\n\
        spec: {budget: {daily_limit_usd: 0.000000100, per: workspace, on_lost: release}}\n";
    assert_eq!(workspace.apply(policy).await.status, 200);
    account
}

#[tokio::test]
async fn what_living_gates_hold_is_not_released_when_nobody_listened() {
    let plane = Plane::new().await;
    let (known, account) = {
        let workspace = plane.workspace().await;
        let account = released(&workspace).await;
        let gate = workspace.gate().await;
        told(&gate, &account, (1, 0, 60)).await;
        (Known::of(&workspace, &gate), account)
    };
    // An hour's outage: the gate had no way to say that it lives.
    let plane = plane.restarted(3_600).await;
    let workspace = known.workspace(&plane);
    let gate = known.gate(&workspace);
    plane.state.upkeep().await.unwrap();
    assert_eq!(left(&workspace).await, ("0".to_owned(), "40".to_owned()));
    let gates = workspace.get("/gates").await;
    assert_eq!(gates[0]["holders"][0]["lost"], false, "{gates}");
    let path = format!("/holders/{}/release", holder(1));
    let (status, problem) = post(&workspace, &path).await;
    assert_eq!(status, 409, "{problem}");
    // Started at 09:00:00: two terms are over at 09:02:00, and it is lost a second later.
    let detail = text(&problem["detail"]);
    assert!(detail.contains("2026-11-20T09:02:01Z"), "{detail}");
    // It has used half of it meanwhile, and says so.
    assert_eq!(told(&gate, &account, (2, 30, 0)).await.settled, 30);

    // Who says nothing for two terms in which somebody listened is lost.
    let plane = plane.restarted(3_600).await;
    let workspace = known.workspace(&plane);
    plane.advance(2 * TERM_SECS);
    plane.state.upkeep().await.unwrap();
    assert_eq!(left(&workspace).await, ("0".to_owned(), "40".to_owned()));
    plane.advance(1);
    plane.state.upkeep().await.unwrap();
    assert_eq!(left(&workspace).await, ("0".to_owned(), "70".to_owned()));
}

#[tokio::test]
async fn nobody_is_lost_while_it_is_being_learned_what_gates_hold() {
    let plane = Plane::new().await;
    let (known, account) = {
        let workspace = plane.workspace().await;
        let account = limited(&workspace).await;
        let gate = workspace.gate().await;
        told(&gate, &account, (1, 0, 60)).await;
        (Known::of(&workspace, &gate), account)
    };
    let plane = plane.restarted(3_600).await;
    plane.advance(2 * TERM_SECS + 1);
    let workspace = known.workspace(&plane);
    let gate = known.gate(&workspace);
    let lost = async || {
        let gates = workspace.get("/gates").await;
        let holders = gates[0]["holders"].as_array().cloned().unwrap_or_default();
        let first = holders.iter().find(|one| one["holder"] == holder(1));
        first.map(|one| one["lost"].clone())
    };
    assert_eq!(lost().await, Some(json!(true)));
    // Another gate knows more than the database: it was put back, and so is what it says of the first.
    let mut more = ask(&account, DAY, 1, 0, 0);
    more.granted = 20;
    gate.leased(&holder(2), 0, vec![]).await;
    assert!(gate.leased(&holder(2), 1, vec![more]).await.learning);
    assert_eq!(lost().await, Some(json!(false)));
    let path = format!("/holders/{}/release", holder(1));
    let (status, problem) = post(&workspace, &path).await;
    assert_eq!(status, 409, "{problem}");
    // Learning began at 09:02:01 and lasts a term.
    let detail = text(&problem["detail"]);
    assert!(detail.contains("2026-11-20T09:03:01Z"), "{detail}");
    plane.advance(TERM_SECS);
    assert_eq!(post(&workspace, &path).await.0, 200);
}

#[tokio::test]
async fn what_an_earlier_epoch_of_a_living_gate_holds_can_be_had_again() {
    for by_policy in [true, false] {
        let plane = Plane::new().await;
        let workspace = plane.workspace().await;
        let account = match by_policy {
            true => released(&workspace).await,
            false => limited(&workspace).await,
        };
        let gate = workspace.gate().await;
        told(&gate, &account, (1, 0, 60)).await;
        told(&gate, &account, (2, 20, 0)).await;
        // It greets again and lives on in its second epoch, with ten of its own.
        let asks = vec![ask(&account, DAY, 1, 0, 10)];
        assert_eq!(gate.leased(&holder(1), 0, asks).await.epoch, 2);
        let path = format!("/holders/{}/release", holder(1));
        // Its first lease ends after a term, and what it holds is lost after two more.
        let lives = async |secs| {
            plane.advance(secs);
            gate.leased(&holder(1), 2, vec![]).await;
            plane.state.upkeep().await.unwrap();
            let row = workspace.get("/budgets").await[0].clone();
            ["leased", "forfeited", "available"].map(|field| text(&row[field]))
        };
        for _ in 0..3 {
            assert_eq!(lives(TERM_SECS).await, ["50", "0", "30"]);
            assert_eq!(post(&workspace, &path).await.0, 409);
        }
        match by_policy {
            true => assert_eq!(lives(1).await, ["10", "0", "70"]),
            false => {
                assert_eq!(lives(1).await, ["10", "40", "30"]);
                let row = workspace.get("/budgets").await[0].clone();
                let lost = [0, 1].map(|number| row["holders"][number]["lost"].clone());
                assert_eq!(lost, [json!(true), json!(false)]);
                let (status, done) = post(&workspace, &path).await;
                assert_eq!((status, &done["accounts"]), (200, &json!(1)), "{done}");
                assert_eq!(lives(1).await, ["10", "0", "70"]);
            }
        }
        let events = workspace.get("/events").await;
        assert_eq!(events[0]["kind"], "budget_released", "{events}");
        // It goes on in its epoch with what it has there; there is nothing more to release.
        let report = vec![ask(&account, DAY, 2, 5, 0)];
        let answer = gate.leased(&holder(1), 2, report).await;
        let grant = &answer.grants[0];
        assert_eq!((answer.epoch, grant.granted, grant.settled), (2, 10, 5));
        assert_eq!(post(&workspace, &path).await.0, 409);
    }
}

#[tokio::test]
async fn an_earlier_epoch_is_not_released_when_nobody_listened() {
    let plane = Plane::new().await;
    let known = {
        let workspace = plane.workspace().await;
        let account = released(&workspace).await;
        let gate = workspace.gate().await;
        told(&gate, &account, (1, 0, 60)).await;
        // Its greeting came twice, and it does not know of its second epoch.
        gate.leased(&holder(1), 0, vec![]).await;
        Known::of(&workspace, &gate)
    };
    let plane = plane.restarted(3_600).await;
    let workspace = known.workspace(&plane);
    plane.state.upkeep().await.unwrap();
    assert_eq!(left(&workspace).await, ("0".to_owned(), "40".to_owned()));
}

#[tokio::test]
async fn what_a_gate_used_before_it_was_released_is_taken_down_when_it_says_so() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let account = limited(&workspace).await;
    let gate = workspace.gate().await;
    told(&gate, &account, (1, 0, 60)).await;
    told(&gate, &account, (2, 20, 0)).await;
    plane.advance(2 * TERM_SECS + 1);
    let path = format!("/holders/{}/release", holder(1));
    assert_eq!(post(&workspace, &path).await.0, 200);
    let books = async || {
        let row = workspace.get("/budgets").await[0].clone();
        ["settled", "available"].map(|field| text(&row[field]))
    };
    assert_eq!(books().await, ["20", "80"]);
    // It lived after all, and had used 35 by then. It has to begin anew, and the books are true.
    let late = || {
        let mut late = ask(&account, DAY, 3, 35, 5);
        late.granted = 60;
        vec![late]
    };
    let refused = gate.lease(&holder(1), 1, late()).await.unwrap_err();
    assert_eq!(refused.problem(), "stale-epoch");
    assert_eq!(books().await, ["35", "65"]);
    // Said again, or in an old message, it changes nothing, and nobody else's does.
    gate.lease(&holder(1), 1, late()).await.unwrap_err();
    let old = vec![ask(&account, DAY, 2, 20, 0)];
    gate.lease(&holder(1), 1, old).await.unwrap_err();
    assert_eq!(books().await, ["35", "65"]);
    // What it used until the answer to its greeting came, it says with its first report.
    assert_eq!(gate.leased(&holder(1), 0, vec![]).await.epoch, 3);
    let request = json!({
        "holder": holder(1), "epoch": 3, "revision": 1,
        "asks": [{"account": account, "window_start": DAY, "seq": 4, "epoch": 1, "granted": "60", "returned": "0", "settled": "41", "reserved": "0", "want": "0"}],
    });
    let reply = plane
        .call(&gate.key, "POST", &workspace.path("/gate/leases"), request)
        .await;
    assert_eq!(reply.status, 200);
    assert_eq!(books().await, ["41", "59"]);
}

#[tokio::test]
async fn an_operator_lifts_a_suspension() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let account = limited(&workspace).await;
    let on_exceed = async |action: &str| {
        let policy = format!(
            "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {{name: house}}\n\
             spec: {{budget: {{daily_limit_usd: 0.000000100, per: workspace, action_on_exceed: {action}}}}}\n"
        );
        assert_eq!(workspace.apply(&policy).await.status, 200);
    };
    let gate = workspace.gate().await;
    let path = format!("/budgets/{}/lift", encoded(&account));
    // Nothing has been spent from it yet.
    assert_eq!(post(&workspace, &path).await.0, 404);
    let grant = told(&gate, &account, (1, 0, 60)).await;
    assert_eq!(grant.lifted_ms, 0);
    // Nobody suspends anybody.
    let (status, problem) = post(&workspace, &path).await;
    assert_eq!(status, 409, "{problem}");
    let detail = text(&problem["detail"]);
    assert!(detail.contains("action_on_exceed: suspend"), "{detail}");
    assert_eq!(workspace.get("/events").await, json!([]));
    on_exceed("suspend").await;
    plane.advance(5);
    let (status, lifted) = post(&workspace, &path).await;
    assert_eq!((status, &lifted["account"]), (200, &json!(account)));
    plane.advance(1);
    let grant = told(&gate, &account, (2, 20, 0)).await;
    assert_eq!(grant.lifted_ms, (START + 5) * 1_000);
    let events = workspace.get("/events").await;
    assert_eq!(
        (&events[0]["kind"], &events[0]["subject"]),
        (&json!("budget_lifted"), &json!(account))
    );
    let reply = workspace.post(&path, json!({"reason": ""})).await;
    assert_eq!(reply.status, 422);
    // A gate that has suspended somebody keeps to it when the policy does so no more.
    on_exceed("deny").await;
    assert_eq!(post(&workspace, &path).await.0, 200);
}

#[tokio::test]
async fn a_budget_that_only_warns_is_counted_and_leases_nothing() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let policy = "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {name: alerts}\n\
        spec: {budget: {daily_limit_tokens: 100, action_on_exceed: alert, warn_at: [50]}}\n";
    assert_eq!(workspace.apply(policy).await.status, 200);
    let agent = workspace.agent("blue").await;
    let account = format!("agent:{agent}|tokens|day@UTC");
    let gate = workspace.gate().await;
    told(&gate, &account, (1, 0, 0)).await;
    let grant = told(&gate, &account, (2, 49, 0)).await;
    assert_eq!((grant.granted, grant.settled, grant.retry_ms), (0, 49, 0));
    assert_eq!(workspace.get("/events").await, json!([]));
    told(&gate, &account, (3, 130, 0)).await;
    let events = workspace.get("/events").await;
    let messages: Vec<&str> = events
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|event| event["message"].as_str())
        .collect();
    assert_eq!(messages.len(), 2, "{messages:?}");
    for (message, part) in messages.iter().zip(["100 %", "50 %"]) {
        assert!(
            message.starts_with(&format!("{part} of 100 tokens are used")),
            "{message}"
        );
    }
    let budget = workspace.get("/budgets").await[0].clone();
    assert_eq!(
        (
            &budget["limit"],
            &budget["settled"],
            &budget["available"],
            &budget["warned"]
        ),
        (&json!("100"), &json!("130"), &json!("0"), &json!([50, 100]))
    );
}
