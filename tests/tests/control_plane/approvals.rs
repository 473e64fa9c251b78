//! Held calls: who is asked, for how long, who may say yes, and that a yes is good for one call.

use crate::harness::{Gate, Journal, Plane, START, Workspace, ask, holder, text};
use serde_json::{Value, json};
use std::{
    io::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};
use tollgate_control_plane::{Settings, read_channels};
use tollgate_engine::{
    bytes::to_hex,
    journal::hmac,
    lease::{Ask, Grant},
    ledger::{Account, Cell, Op, Span},
    time::Time,
    upkeep::ask_for,
};
use tollgate_tests::{
    corpus::wire::{self, Message, Server},
    simulate::Dice,
};
use xtask::process::wait_until;

const CALL: &str = "apr-00000000000000000000000000000001";

/// Puts policies into service.
async fn apply(workspace: &Workspace<'_>, specs: &[(&str, &str)]) {
    let documents = specs.iter().map(|(name, spec)| {
        format!("---\n{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: {name}}}, spec: {spec}}}\n")
    });
    let reply = workspace.apply(&documents.collect::<String>()).await;
    assert_eq!(reply.status, 200, "{}", reply.json());
}

/// The record of a call, as a gate writes it; what it has been held for by each document.
fn record(agent: &str, at: i64, outcome: &str, by: &[&str]) -> Value {
    let reasons = by
        .iter()
        .map(|document| json!({"rule": "tools.refund.requires_approval_if", "document": document}));
    json!({
        "id": format!("d-{at}"), "at_ms": at * 1_000, "kind": "exchange", "agent": agent, "outcome": outcome, "approval": CALL,
        "tools": ["refund"], "reasons": reasons.collect::<Vec<Value>>(),
    })
}

/// A gate, its journal, and how often it has asked.
struct Side<'g> {
    gate: &'g Gate<'g>,
    holder: String,
    epoch: u64,
    journal: Journal,
    account: String,
    seq: u64,
}

impl<'g> Side<'g> {
    async fn new(gate: &'g Gate<'g>, number: u32, agent: &str) -> Side<'g> {
        let holder = holder(number);
        let epoch = gate.leased(&holder, 0, Vec::new()).await.epoch;
        Side {
            journal: gate.journal(&holder, epoch),
            account: format!("agent:{agent}|approvals|run:{CALL}"),
            gate,
            holder,
            epoch,
            seq: 0,
        }
    }

    async fn records(&mut self, record: Value) {
        let batch = self.journal.seal_records(&[record], 0);
        assert_eq!(self.gate.submit(&batch).await.status, 200);
    }

    /// Asks for the call, having had `granted`, given back `returned` and used `settled`.
    async fn asks(&mut self, granted: u64, returned: u64, settled: u64, want: u64) -> Grant {
        self.seq += 1;
        let asked = Ask {
            granted,
            returned,
            ..ask(&self.account, START, self.seq, settled, want)
        };
        let answer = self
            .gate
            .leased(&self.holder, self.epoch, vec![asked])
            .await;
        assert_eq!(answer.grants.len(), 1);
        answer.grants[0].clone()
    }
}

/// A call that is held, by its name.
pub(crate) async fn held(workspace: &Workspace<'_>) -> &'static str {
    let agent = workspace.agent("team").await;
    let gate = workspace.gate().await;
    let number = workspace.plane.name();
    let number = number.trim_start_matches('n').parse().unwrap();
    let mut side = Side::new(&gate, number, &agent).await;
    side.records(record(&agent, START, "hold", &[])).await;
    CALL
}

async fn says(workspace: &Workspace<'_>, key: &str, verdict: &str) -> (u16, Value) {
    let path = workspace.path(&format!("/approvals/{CALL}"));
    let body = json!({"verdict": verdict, "reason": "seen the invoice"});
    let reply = workspace.plane.call(key, "PUT", &path, body).await;
    (reply.status.as_u16(), reply.json())
}

async fn state(workspace: &Workspace<'_>) -> String {
    text(&workspace.get(&format!("/approvals/{CALL}")).await["state"])
}

const ASKS: &str = "{tools: {refund: {requires_approval_if: 'true'}}}";

#[tokio::test]
async fn a_grant_is_good_for_one_call_at_one_gate() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    apply(&workspace, &[("p", ASKS)]).await;
    let agent = workspace.agent("blue").await;
    let gates = (workspace.gate().await, workspace.gate().await);
    let mut one = Side::new(&gates.0, 1, &agent).await;
    let mut other = Side::new(&gates.1, 2, &agent).await;

    // Before anybody is asked, and while nobody has answered, there is nothing, for a second.
    let nothing = one.asks(0, 0, 0, 1).await;
    assert_eq!(
        (nothing.granted, nothing.retry_ms),
        (0, START * 1_000 + 1_000)
    );
    let path = format!("/approvals/{CALL}");
    let unknown = plane.get(&workspace.operator, &workspace.path(&path)).await;
    assert_eq!(unknown.status, 404);
    one.records(record(&agent, START, "hold", &["p"])).await;
    let asked = workspace.get(&path).await;
    assert_eq!(asked["state"], "pending");
    assert_eq!(
        (&asked["number"], &asked["agent"]),
        (&json!(1), &json!(agent))
    );
    assert_eq!(asked["expires_ms"], (START + 300) * 1_000);
    assert_eq!(asked["record"], record(&agent, START, "hold", &["p"]));
    assert_eq!(
        workspace.get("/approvals?state=pending").await,
        json!([asked])
    );
    assert_eq!(workspace.get("/approvals?state=granted").await, json!([]));
    assert_eq!(one.asks(0, 0, 0, 1).await.granted, 0);

    plane.advance(10);
    let (status, granted) = says(&workspace, &workspace.operator, "granted").await;
    assert_eq!((status, &granted["state"]), (200, &json!("granted")));
    assert_eq!(granted["until_ms"], (START + 310) * 1_000);
    assert_eq!(granted["reason"], "seen the invoice");

    // Whoever asks first has it, until then; asked again, it has that one.
    let first = one.asks(0, 0, 0, 1).await;
    assert_eq!((first.granted, first.keep, first.retry_ms), (1, 0, 0));
    assert_eq!(other.asks(0, 0, 0, 1).await.granted, 0);
    one.seq -= 1;
    assert_eq!(one.asks(0, 0, 0, 1).await.granted, 1);
    assert_eq!(one.asks(1, 0, 0, 1).await.granted, 1);
    // What it has given back is the other's.
    assert_eq!(one.asks(1, 1, 0, 0).await.granted, 1);
    assert_eq!(other.asks(0, 0, 0, 1).await.granted, 1);
    assert_eq!(one.asks(1, 1, 0, 1).await.granted, 1);

    // The call has been made: there is no other.
    plane.advance(5);
    other
        .records(record(&agent, START + 14, "allow", &[]))
        .await;
    let used = workspace.get(&path).await;
    assert_eq!(
        (&used["state"], &used["used_by"]),
        (&json!("used"), &json!(format!("d-{}", START + 14)))
    );
    assert_eq!(other.asks(1, 0, 1, 1).await.granted, 1);
    assert_eq!(one.asks(1, 1, 0, 1).await.granted, 1);
    assert_eq!(
        says(&workspace, &workspace.operator, "granted").await.0,
        409
    );

    // What was held before and comes late asks nobody; held again, it does, and a second grant is a second call.
    other
        .records(record(&agent, START + 13, "hold", &["p"]))
        .await;
    assert_eq!(state(&workspace).await, "used");
    other
        .records(record(&agent, START + 15, "hold", &["p"]))
        .await;
    assert_eq!(workspace.get(&path).await["number"], 2);
    assert_eq!(
        says(&workspace, &workspace.operator, "granted").await.0,
        200
    );
    assert_eq!(other.asks(1, 0, 1, 1).await.granted, 2);
    assert_eq!(one.asks(1, 1, 0, 1).await.granted, 1);
    let kinds: Vec<String> = workspace
        .get("/events")
        .await
        .as_array()
        .unwrap()
        .iter()
        .map(|event| text(&event["kind"]))
        .collect();
    assert_eq!(
        kinds,
        [
            "approval_granted",
            "approval_requested",
            "approval_granted",
            "approval_requested"
        ]
    );
}

#[tokio::test]
async fn a_grant_ends_with_its_time_and_can_be_taken_back_until_a_gate_has_it() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    apply(&workspace, &[("p", ASKS)]).await;
    let agent = workspace.agent("blue").await;
    let gate = workspace.gate().await;
    let mut side = Side::new(&gate, 1, &agent).await;
    side.records(record(&agent, START, "hold", &["p"])).await;
    assert_eq!(
        says(&workspace, &workspace.operator, "granted").await.0,
        200
    );
    assert_eq!(
        says(&workspace, &workspace.operator, "granted").await.0,
        409
    );
    assert_eq!(says(&workspace, &workspace.operator, "denied").await.0, 200);
    assert_eq!(side.asks(0, 0, 0, 1).await.granted, 0);

    // Who has said no is not asked again before that decision is five minutes old.
    plane.advance(299);
    side.records(record(&agent, START + 299, "hold", &["p"]))
        .await;
    assert_eq!(state(&workspace).await, "denied");
    plane.advance(1);
    side.records(record(&agent, START + 300, "hold", &["p"]))
        .await;
    assert_eq!(state(&workspace).await, "pending");

    // Leased a second before its end, it ends with it, whatever the lease term is; and what is left of it is nobody's.
    assert_eq!(
        says(&workspace, &workspace.operator, "granted").await.0,
        200
    );
    plane.advance(299);
    let last = side.asks(0, 0, 0, 1).await;
    assert_eq!((last.granted, last.expires_ms), (1, (START + 600) * 1_000));
    assert_eq!(says(&workspace, &workspace.operator, "denied").await.0, 409);
    plane.advance(1);
    assert_eq!(state(&workspace).await, "lapsed");
    assert_eq!(side.asks(1, 1, 0, 1).await.granted, 1);

    // Nobody decides: it is over after five minutes.
    side.records(record(&agent, START + 601, "hold", &["p"]))
        .await;
    plane.advance(300);
    assert_eq!(state(&workspace).await, "expired");
    assert_eq!(
        says(&workspace, &workspace.operator, "granted").await.0,
        409
    );
    let listed = workspace.get("/approvals").await;
    let numbers: Vec<&Value> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["number"])
        .collect();
    assert_eq!(numbers, [3, 2, 1]);
    let before = workspace
        .get(&format!("/approvals?limit=1&before={}", listed[0]["id"]))
        .await;
    assert_eq!(before, json!([listed[1]]));
    for wrong in ["limit=0", "limit=1001", "before=-1", "state=open"] {
        let path = workspace.path(&format!("/approvals?{wrong}"));
        assert_eq!(
            plane.get(&workspace.operator, &path).await.status,
            422,
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn policies_say_how_long_a_request_waits_and_who_is_asked() {
    let wait = |expires: Option<i64>| {
        expires
            .map(|secs| json!((START + secs) * 1_000))
            .unwrap_or(Value::Null)
    };
    for (specs, expires, roles, channels) in [
        (vec![ASKS], Some(300), json!([]), json!([])),
        (
            vec!["{tools: {refund: {requires_approval_if: 'true'}}, approval_timeout_secs: 60}"],
            Some(60),
            json!([]),
            json!([]),
        ),
        (
            vec![
                "{tools: {refund: {requires_approval_if: 'true'}}, approval_timeout_secs: 60, approval: {timeout_seconds: 600, escalation_role: org-admin}}",
            ],
            Some(600),
            json!(["org-admin"]),
            json!([]),
        ),
        (
            vec![
                "{agent: {tools: [{name: refund, requires_approval: true, approval_config: {timeout_seconds: 90, auto_deny_on_timeout: true, notify_channels: ['slack:approvals']}}]}, approval_timeout_secs: 60}",
            ],
            Some(90),
            json!([]),
            json!(["slack:approvals"]),
        ),
        (
            vec![
                "{agent: {tools: [{name: refund, requires_approval: true, approval_config: {auto_deny_on_timeout: false}}]}}",
            ],
            None,
            json!([]),
            json!([]),
        ),
        // Of several the shortest time, and everybody.
        (
            vec![
                "{tools: {refund: {requires_approval_if: 'true'}}, approval: {timeout_seconds: 600, escalation_role: org-admin, notify_channels: [a]}}",
                "{tools: {refund: {requires_approval_if: 'true'}}, approval: {escalation_role: security-team, auto_deny_on_timeout: false, notify_channels: [b, a]}}",
            ],
            Some(300),
            json!(["org-admin", "security-team"]),
            json!(["a", "b"]),
        ),
    ] {
        let plane = Plane::new().await;
        let workspace = plane.workspace().await;
        let names = ["p", "q"];
        let named: Vec<(&str, &str)> = names.into_iter().zip(specs.iter().copied()).collect();
        apply(&workspace, &named).await;
        let agent = workspace.agent("blue").await;
        let gate = workspace.gate().await;
        let mut side = Side::new(&gate, 1, &agent).await;
        side.records(record(&agent, START, "hold", &names[..specs.len()]))
            .await;
        let asked = workspace.get(&format!("/approvals/{CALL}")).await;
        assert_eq!(asked["expires_ms"], wait(expires), "{specs:?}");
        assert_eq!(
            (&asked["roles"], &asked["channels"]),
            (&roles, &channels),
            "{specs:?}"
        );
        if expires.is_none() {
            plane.advance(40 * 86_400);
            assert_eq!(
                says(&workspace, &workspace.operator, "granted").await.0,
                200
            );
        }
    }
}

/// A record has room for 16 reasons: the document that wants a role may be the one that is not in it.
#[tokio::test]
async fn where_a_record_does_not_tell_who_asks_every_role_is_wanted() {
    const SECOND: &str = "{tools: {refund: {requires_approval_if: 'true'}}, approval: {timeout_seconds: 60, escalation_role: org-admin}}";
    let rule = "tools.refund.requires_approval_if";
    let reason = |document: &str| json!({"rule": rule, "document": document});
    let rate = json!({"rule": "rate.requests_per_minute", "document": "p"});
    for (reasons, more, roles) in [
        // It is told: the second does not ask.
        (vec![reason("p")], 0, json!([])),
        (vec![reason("p"), reason("q")], 0, json!(["org-admin"])),
        (vec![reason("p"); 16], 0, json!([])),
        (vec![reason("p"); 16], 1, json!(["org-admin"])),
        (vec![rate], 0, json!(["org-admin"])),
        (vec![], 0, json!(["org-admin"])),
    ] {
        let plane = Plane::new().await;
        let workspace = plane.workspace().await;
        apply(&workspace, &[("p", ASKS), ("q", SECOND)]).await;
        let agent = workspace.agent("blue").await;
        let gate = workspace.gate().await;
        let mut side = Side::new(&gate, 1, &agent).await;
        let mut held = record(&agent, START, "hold", &[]);
        held["reasons"] = json!(reasons);
        held["asked_by_more"] = more.into();
        side.records(held).await;
        let asked = workspace.get(&format!("/approvals/{CALL}")).await;
        assert_eq!(asked["roles"], roles, "{reasons:?}");
        let may = roles == json!([]);
        let (status, _) = says(&workspace, &workspace.operator, "granted").await;
        assert_eq!(status, if may { 200 } else { 403 }, "{reasons:?}");
    }
}

/// Who may approve stands in the policy that asks: without it nobody is asked, and the call is held.
#[tokio::test]
async fn nobody_is_asked_for_a_policy_that_nobody_knows() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    apply(&workspace, &[("p", ASKS)]).await;
    let agent = workspace.agent("blue").await;
    let gate = workspace.gate().await;
    let mut side = Side::new(&gate, 1, &agent).await;
    side.records(record(&agent, START, "hold", &["p", "gone"]))
        .await;
    assert_eq!(workspace.get("/approvals").await, json!([]));
    let told = events(&workspace, "approval_unasked").await;
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("nobody knows who may approve"), "{told:?}");
    // Nor where a record does not tell, and one that may ask is not read any more.
    plane.execute("UPDATE policies SET text = 'scope: ['").await;
    side.records(record(&agent, START + 1, "hold", &[])).await;
    assert_eq!(workspace.get("/approvals").await, json!([]));
}

#[tokio::test]
async fn who_has_a_role_alone_can_use_and_give_it() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    apply(&workspace, &[("p", "{tools: {refund: {requires_approval_if: 'true'}}, approval: {escalation_role: org-admin}}")]).await;
    let agent = workspace.agent("blue").await;
    let gate = workspace.gate().await;
    let mut side = Side::new(&gate, 1, &agent).await;
    side.records(record(&agent, START, "hold", &["p"])).await;

    let operators = workspace.path("/operators");
    let make = async |key: &str, roles: &[&str]| {
        let body = json!({"name": plane.name(), "roles": roles});
        plane.call(key, "POST", &operators, body).await
    };
    assert_eq!(make(&workspace.operator, &["org-admin"]).await.status, 403);
    let admin = make(&plane.root_key(), &["org-admin", "auditor"]).await;
    assert_eq!(admin.status, 201);
    let admin = text(&admin.json()["key"]);
    assert_eq!(make(&admin, &["org-admin"]).await.status, 201);
    assert_eq!(
        make(&admin, &["org-admin", "security-team"]).await.status,
        403
    );
    assert_eq!(make(&admin, &[""]).await.status, 422);
    let listed = workspace.get("/operators").await;
    let roles: Vec<&Value> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["roles"])
        .collect();
    assert_eq!(roles.len(), 3);
    assert!(roles.contains(&&json!(["auditor", "org-admin"])) && roles.contains(&&json!([])));

    let (status, why) = says(&workspace, &workspace.operator, "granted").await;
    assert_eq!(status, 403);
    assert!(
        text(&why["detail"]).contains("approved by `org-admin`"),
        "{why}"
    );
    assert_eq!(state(&workspace).await, "pending");
    assert_eq!(says(&workspace, &admin, "granted").await.0, 200);
    // To say no takes no role.
    assert_eq!(says(&workspace, &workspace.operator, "denied").await.0, 200);
}

#[tokio::test]
async fn a_gate_that_was_given_the_call_has_it_also_where_the_database_has_forgotten() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    apply(&workspace, &[("p", ASKS)]).await;
    let agent = workspace.agent("blue").await;
    let (first, second) = (workspace.gate().await, workspace.gate().await);
    let mut one = Side::new(&first, 1, &agent).await;
    let mut other = Side::new(&second, 2, &agent).await;
    one.records(record(&agent, START, "hold", &["p"])).await;
    assert_eq!(
        says(&workspace, &workspace.operator, "granted").await.0,
        200
    );
    assert_eq!(one.asks(0, 0, 0, 1).await.granted, 1);
    // As after a restore.
    plane.execute("DELETE FROM leases").await;
    plane
        .execute("UPDATE approvals SET holder = NULL, epoch = NULL")
        .await;
    one.seq = 0;
    // It is told to be patient, and the other gets nothing meanwhile, nor afterwards.
    assert_eq!(one.asks(1, 0, 0, 0).await.granted, 1);
    assert_eq!(other.asks(0, 0, 0, 1).await.granted, 0);
    plane.advance(61);
    assert_eq!(one.asks(1, 0, 0, 0).await.granted, 1);
    assert_eq!(other.asks(0, 0, 0, 1).await.granted, 0);
}

#[tokio::test]
async fn an_agent_that_makes_up_calls_does_not_bury_those_of_others() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    apply(&workspace, &[("p", ASKS)]).await;
    let (agent, other) = (workspace.agent("blue").await, workspace.agent("blue").await);
    let gate = workspace.gate().await;
    let mut side = Side::new(&gate, 1, &agent).await;
    let named = |number: usize, agent: &str| {
        let mut record = record(agent, START, "hold", &["p"]);
        record["approval"] = json!(format!("apr-{number:032x}"));
        record
    };
    let records: Vec<Value> = (0..150).map(|number| named(number, &agent)).collect();
    let batch = side.journal.seal_records(&records, 0);
    assert_eq!(gate.submit(&batch).await.status, 200);
    side.records(named(200, &other)).await;
    let listed = workspace.get("/approvals?limit=1000").await;
    assert_eq!(listed.as_array().unwrap().len(), 101);
    assert_eq!(listed[0]["agent"], other);
    assert_eq!(
        events(&workspace, "approval_unasked").await,
        [
            "100 of its calls wait for approval; what it sends beyond those is held and nobody is asked"
        ]
    );
    // What is no name of a call is no request.
    let mut strange = record(&other, START, "hold", &["p"]);
    strange["approval"] = json!("apr-1");
    side.records(strange).await;
    assert_eq!(
        workspace
            .get("/approvals?limit=1000")
            .await
            .as_array()
            .unwrap()
            .len(),
        101
    );
}

/// A channel that answers with the next of these statuses each time, and the last from then on; and what it was told.
fn channel(statuses: &'static [u16]) -> (Server, Arc<Mutex<Vec<Message>>>) {
    let told: Arc<Mutex<Vec<Message>>> = Arc::default();
    let heard = Arc::clone(&told);
    let server = Server::start(move |request, stream| {
        let mut heard = heard.lock().unwrap();
        let status = statuses.get(heard.len()).or(statuses.last()).unwrap();
        heard.push(request);
        let _ = stream.write_all(&wire::response(*status, &[], b""));
    });
    (server.unwrap(), told)
}

/// A control plane with these channels.
async fn telling(channels: &str) -> Plane {
    Plane::with(Settings {
        channels: read_channels(channels).unwrap(),
        ..Settings::default()
    })
    .await
}

async fn events(workspace: &Workspace<'_>, kind: &str) -> Vec<String> {
    let events = workspace.get("/events").await;
    let events = events.as_array().unwrap().iter();
    let of_kind = events.filter(|event| event["kind"] == kind);
    of_kind.map(|event| text(&event["message"])).collect()
}

#[tokio::test]
async fn the_channels_of_a_policy_are_told_and_who_cannot_be_told_is_put_on_record() {
    let (fine, told) = channel(&[503, 200]);
    let (gone, refused) = channel(&[410]);
    let channels = format!(
        r#"{{"slack:approvals": {{"workspaces": ["*"], "url": "http://{}/hook", "secret": "s3"}}, "gone": {{"workspaces": ["*"], "url": "http://{}/"}}}}"#,
        fine.address, gone.address
    );
    let plane = telling(&channels).await;
    let workspace = plane.workspace().await;
    apply(
        &workspace,
        &[("p", "{tools: {refund: {requires_approval_if: 'true'}}, approval: {notify_channels: ['slack:approvals', gone, nowhere]}}")],
    )
    .await;
    let agent = workspace.agent("blue").await;
    let gate = workspace.gate().await;
    let mut side = Side::new(&gate, 1, &agent).await;
    let mut held = record(&agent, START, "hold", &["p"]);
    held["host"] = json!("shop.example");
    held["content"] = json!({"request": "very private"});
    side.records(held).await;
    plane.state.notify().await.unwrap();
    assert_eq!(told.lock().unwrap().len(), 1);
    assert_eq!(refused.lock().unwrap().len(), 1);
    let mut untold = events(&workspace, "approval_untold").await;
    untold.sort();
    assert_eq!(
        untold,
        [
            "the channel `gone` was not told: it answered 410",
            "the channel `nowhere` was not told: this workspace has no channel of that name",
        ]
    );
    // Who could not hear it is told again a little later, once.
    plane.state.notify().await.unwrap();
    assert_eq!(told.lock().unwrap().len(), 1);
    plane.advance(2);
    for _ in 0..2 {
        plane.state.notify().await.unwrap();
    }
    let told = told.lock().unwrap().clone();
    assert_eq!(told.len(), 2);
    let message = &told[1];
    let body: Value = serde_json::from_slice(&message.body).unwrap();
    let said = text(&body["text"]);
    for part in [
        "wants to use refund at shop.example",
        "until 2026-11-20T08:05:00Z",
        CALL,
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(
        (&body["approval"], &body["agent"], &body["team"]),
        (&json!(CALL), &json!(agent), &json!("blue"))
    );
    assert!(!String::from_utf8_lossy(&message.body).contains("private"));
    let at = message.header("x-tollgate-timestamp").unwrap();
    assert_eq!(at, (START + 2).to_string());
    let mac = hmac(b"s3", &[at.as_bytes(), b".", &message.body]);
    assert_eq!(
        message.header("x-tollgate-signature").unwrap(),
        format!("sha256={}", to_hex(&mac))
    );
    assert_eq!(refused.lock().unwrap().len(), 1);
    assert_eq!(
        refused.lock().unwrap()[0].header("x-tollgate-signature"),
        None
    );
}

/// A name in a policy leads to the channels of its own workspace only, and a channel that does not answer keeps no other from being told.
#[tokio::test]
async fn channels_are_of_their_workspaces_and_do_not_wait_for_one_another() {
    let (theirs, heard) = channel(&[200]);
    // The slow one answers when the other has been told.
    let (fine, told) = channel(&[200]);
    let seen = Arc::clone(&told);
    let slow = Server::start(move |_, stream| {
        let is_told = || (!seen.lock().unwrap().is_empty()).then_some(());
        let status = match wait_until("the other", Duration::from_secs(5), is_told) {
            Ok(()) => 200,
            Err(_) => 500,
        };
        let _ = stream.write_all(&wire::response(status, &[], b""));
    })
    .unwrap();
    let channels = format!(
        r#"{{"theirs": {{"workspaces": ["ws-00000000-0000-4000-8000-0000000000ff"], "url": "http://{}/"}},
            "a-slow": {{"workspaces": ["*"], "url": "http://{}/"}}, "fine": {{"workspaces": ["*"], "url": "http://{}/"}}}}"#,
        theirs.address, slow.address, fine.address
    );
    let plane = telling(&channels).await;
    let workspace = plane.workspace().await;
    apply(
        &workspace,
        &[("p", "{tools: {refund: {requires_approval_if: 'true'}}, approval: {notify_channels: [a-slow, fine, theirs]}}")],
    )
    .await;
    let agent = workspace.agent("blue").await;
    let gate = workspace.gate().await;
    let mut side = Side::new(&gate, 1, &agent).await;
    side.records(record(&agent, START, "hold", &["p"])).await;
    plane.state.notify().await.unwrap();
    assert_eq!(told.lock().unwrap().len(), 1);
    assert_eq!(heard.lock().unwrap().len(), 0);
    assert_eq!(
        events(&workspace, "approval_untold").await,
        ["the channel `theirs` was not told: this workspace has no channel of that name"]
    );
    // The slow one said 200, so nothing is left to be told.
    plane.advance(60);
    plane.state.notify().await.unwrap();
    assert_eq!(told.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_channel_that_is_down_is_given_up_and_nobody_is_told_of_what_is_decided() {
    let (down, tries) = channel(&[500]);
    let channels = format!(
        r#"{{"ops": {{"workspaces": ["*"], "url": "http://{}/"}}}}"#,
        down.address
    );
    let plane = telling(&channels).await;
    let workspace = plane.workspace().await;
    apply(
        &workspace,
        &[("p", "{tools: {refund: {requires_approval_if: 'true'}}, approval: {timeout_seconds: 86400, notify_channels: [ops]}}")],
    )
    .await;
    let agent = workspace.agent("blue").await;
    let gate = workspace.gate().await;
    let mut side = Side::new(&gate, 1, &agent).await;
    side.records(record(&agent, START, "hold", &["p"])).await;
    for _ in 0..12 {
        plane.state.notify().await.unwrap();
        plane.advance(1_000);
    }
    assert_eq!(tries.lock().unwrap().len(), 10);
    assert_eq!(
        events(&workspace, "approval_untold").await,
        ["the channel `ops` was not told: it answered 500"]
    );

    let mut next = record(&agent, START + 12_000, "hold", &["p"]);
    next["approval"] = json!("apr-00000000000000000000000000000002");
    side.records(next).await;
    let path = workspace.path("/approvals/apr-00000000000000000000000000000002");
    let no = json!({"verdict": "denied", "reason": "no"});
    assert_eq!(
        plane
            .call(&workspace.operator, "PUT", &path, no)
            .await
            .status,
        200
    );
    plane.state.notify().await.unwrap();
    assert_eq!(tries.lock().unwrap().len(), 10);
    assert_eq!(events(&workspace, "approval_untold").await.len(), 1);
}

/// A gate as it is: a cell that calls reserve from, and asks whose answers are lost, late or there twice.
struct Real<'g> {
    side: Side<'g>,
    cell: Cell,
    /// What it has asked, and may be there twice.
    asked: Vec<Ask>,
    /// Answers that have not come, or may come again.
    answers: Vec<Grant>,
    under_way: u64,
}

impl Real<'_> {
    fn does(&mut self, op: &Op, now: Time) -> bool {
        op.change(&mut self.cell, now).is_ok()
    }

    /// Tells what it has, and asks for a call; whatever becomes of the answer.
    async fn asks_anew(&mut self, wants: bool, now: Time) {
        if !self.does(&Op::Ask { span: Span::RUN }, now) {
            return;
        }
        let account = Account::parse(&self.side.account).unwrap();
        let slot = self.cell.slots()[0];
        let ask = ask_for(&account, &slot, 0, u64::from(wants));
        self.asked.push(ask.clone());
        self.sends(ask).await;
    }

    async fn sends(&mut self, ask: Ask) {
        let (gate, holder) = (self.side.gate, &self.side.holder);
        let answer = gate.leased(holder, self.side.epoch, vec![ask]).await;
        self.answers.extend(answer.grants);
    }

    fn hears(&mut self, grant: Grant, now: Time) {
        let epoch = self.side.epoch;
        self.does(&Op::Refill { grant, epoch }, now);
    }
}

/// Whatever is lost, late or said twice, and however often an operator says yes: never more calls than that.
#[tokio::test]
async fn there_are_never_more_calls_than_grants() {
    let (mut calls, mut yes) = (0, 0);
    for seed in 0..8 {
        let mut dice = Dice::new(seed);
        let plane = Plane::new().await;
        let workspace = plane.workspace().await;
        apply(&workspace, &[("p", ASKS)]).await;
        let agent = workspace.agent("blue").await;
        let gate = workspace.gate().await;
        let mut gates = Vec::new();
        for number in 1..=3 {
            gates.push(Real {
                side: Side::new(&gate, number, &agent).await,
                cell: Cell::default(),
                asked: Vec::new(),
                answers: Vec::new(),
                under_way: 0,
            });
        }
        let (mut let_through, mut granted) = (0_u64, 0_u64);
        for step in 0..300 {
            let now = plane.now();
            let at = usize::try_from(dice.below(3)).unwrap();
            let one = &mut gates[at];
            match dice.below(12) {
                0..=3 => {
                    let reserve = Op::Reserve {
                        span: Span::RUN,
                        amount: 1,
                    };
                    if one.does(&reserve, now) {
                        one.under_way += 1;
                        let_through += 1;
                    } else {
                        one.asks_anew(true, now).await;
                        if dice.chance(600)
                            && let Some(grant) = one.answers.last().cloned()
                        {
                            one.hears(grant, now);
                        }
                    }
                }
                4 | 5 if !one.answers.is_empty() => {
                    let index = usize::try_from(dice.below(one.answers.len() as u64)).unwrap();
                    let grant = match dice.chance(700) {
                        true => one.answers.swap_remove(index),
                        false => one.answers[index].clone(),
                    };
                    one.hears(grant, now);
                }
                6 if one.under_way > 0 => {
                    one.under_way -= 1;
                    let start = Span::RUN.start;
                    let op = match dice.chance(700) {
                        true => {
                            let at = now.secs();
                            one.side.records(record(&agent, at, "allow", &[])).await;
                            Op::Settle {
                                start,
                                reserved: 1,
                                used: 1,
                            }
                        }
                        false => {
                            let_through -= 1;
                            Op::Void { start, reserved: 1 }
                        }
                    };
                    assert!(one.does(&op, now));
                }
                7 if dice.chance(400) && !one.asked.is_empty() => {
                    let again = one.asked[dice.below(one.asked.len() as u64) as usize].clone();
                    one.sends(again).await;
                }
                7 => one.asks_anew(false, now).await,
                8 => {
                    let at = now.secs();
                    one.side.records(record(&agent, at, "hold", &["p"])).await;
                }
                9 | 10 => {
                    let said = says(&workspace, &workspace.operator, "granted").await.0;
                    granted += u64::from(said == 200);
                }
                _ if dice.chance(100) => plane.advance(dice.between(1, 400)),
                _ => plane.advance(dice.between(0, 3)),
            }
            assert!(
                let_through <= granted,
                "seed {seed}, step {step}: {let_through} calls, {granted} grants"
            );
        }
        (calls, yes) = (calls + let_through, yes + granted);
    }
    assert!(calls > 20 && yes > calls, "{calls} calls, {yes} grants");
}
