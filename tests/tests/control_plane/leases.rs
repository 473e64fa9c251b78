//! Leases through the API. The rules themselves have their tests beside them.

use serde_json::{Value, json};
use std::time::Duration;
use tollgate_engine::lease::{self, Answer, Grant};

use crate::bundles::poll;
use crate::harness::{Plane, START, Workspace, ask, holder};

/// So many calls a minute for every agent of `scope`.
fn rate(scope: &str, requests: u32) -> String {
    format!(
        "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {{name: '{scope}'}}\n\
         spec: {{scope: '{scope}', rate: {{requests_per_minute: {requests}, per: agent}}}}\n"
    )
}

/// START is a full minute.
const MINUTE: i64 = START;
const TERM_SECS: i64 = 60;

fn calls(agent: &str) -> String {
    format!("agent:{agent}|calls|minute")
}

fn only(answer: &Answer) -> &Grant {
    match answer.grants.as_slice() {
        [grant] => grant,
        grants => panic!("expected one grant, not {grants:?}"),
    }
}

async fn limited(workspace: &Workspace<'_>) -> String {
    let applied = workspace.apply(&rate("global", 10)).await;
    assert_eq!(applied.status, 200, "{}", applied.json());
    workspace.agent("blue").await
}

#[tokio::test]
async fn a_greeting_gives_an_epoch_and_every_greeting_a_newer_one() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    assert_eq!(gate.leased(&holder(1), 0, vec![]).await.epoch, 1);
    assert_eq!(gate.leased(&holder(1), 0, vec![]).await.epoch, 2);
    assert_eq!(gate.leased(&holder(2), 0, vec![]).await.epoch, 1);
    assert_eq!(gate.leased(&holder(1), 2, vec![]).await.epoch, 2);
    let stale = gate.lease(&holder(1), 1, vec![]).await.unwrap_err();
    assert_eq!(
        (stale.status.as_u16(), stale.problem().as_str()),
        (409, "stale-epoch")
    );
    // Newer than ours: we gave it, and our database was put back since. It stands.
    let answer = gate.leased(&holder(1), 7, vec![]).await;
    assert_eq!((answer.epoch, answer.learning), (7, true));
    assert_eq!(gate.leased(&holder(1), 0, vec![]).await.epoch, 8);
}

#[tokio::test]
async fn two_holders_share_a_limit_and_get_no_more() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = limited(&workspace).await;
    let gate = workspace.gate().await;
    let account = calls(&agent);
    // One call is needed: it gets 60 / 16 = 3.75 seconds of one a second, 3 in whole calls, less than half of the 10.
    let first = gate
        .leased(&holder(1), 0, vec![ask(&account, MINUTE, 1, 0, 1)])
        .await;
    assert_eq!(only(&first).granted, 3);
    assert_eq!(only(&first).window_end, MINUTE + 60);
    assert_eq!(only(&first).expires_ms, (START + TERM_SECS) * 1_000);
    // 7 left, two holders: half of a share is 7 / 4 = 1, and 2 are wanted.
    let second = gate
        .leased(&holder(2), 0, vec![ask(&account, MINUTE, 1, 0, 2)])
        .await;
    assert_eq!(only(&second).granted, 2);
    // 5 left and 9 wanted: all 5, and word that there is no more for a second.
    let rest = gate
        .leased(&holder(2), 1, vec![ask(&account, MINUTE, 2, 2, 9)])
        .await;
    assert_eq!(
        (only(&rest).granted, only(&rest).retry_ms),
        (7, START * 1_000 + 1_000)
    );
    let none = gate
        .leased(&holder(1), 1, vec![ask(&account, MINUTE, 2, 3, 1)])
        .await;
    assert_eq!((only(&none).granted, only(&none).settled), (3, 3));
    // The next minute is another window.
    plane.advance(60);
    let fresh = gate
        .leased(&holder(1), 1, vec![ask(&account, MINUTE + 60, 3, 0, 1)])
        .await;
    assert_eq!(only(&fresh).granted, 3);
}

#[tokio::test]
async fn what_a_holder_gives_back_is_there_for_others() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = limited(&workspace).await;
    let gate = workspace.gate().await;
    let account = calls(&agent);
    let first = vec![ask(&account, MINUTE, 1, 0, 8)];
    assert_eq!(only(&gate.leased(&holder(1), 0, first).await).granted, 8);
    // It used 3 of its 8 and gives 4 back: 10 − (8 − 4) = 6 for others.
    let back = lease::Ask {
        granted: 8,
        returned: 4,
        ..ask(&account, MINUTE, 2, 3, 0)
    };
    let answer = gate.leased(&holder(1), 1, vec![back.clone()]).await;
    assert_eq!((only(&answer).granted, only(&answer).returned), (8, 4));
    let second = vec![ask(&account, MINUTE, 1, 0, 9)];
    assert_eq!(only(&gate.leased(&holder(2), 0, second).await).granted, 6);
    // Told again, late, it is given back once.
    gate.leased(&holder(1), 1, vec![back]).await;
    let row = workspace.get("/budgets").await[0].clone();
    assert_eq!(
        (&row["settled"], &row["leased"], &row["available"]),
        (&json!("3"), &json!("7"), &json!("0"))
    );
    assert_eq!(row["holders"][0]["returned"], "4");
}

#[tokio::test]
async fn what_another_gate_does_not_use_is_asked_for_before_a_call_is_refused() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let daily = "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {name: day}\nspec: {budget: {daily_limit_tokens: 1000}}\n";
    assert_eq!(workspace.apply(daily).await.status, 200);
    let agent = workspace.agent("blue").await;
    let gate = workspace.gate().await;
    let etag = poll(&gate, "", None).await.headers["etag"]
        .to_str()
        .unwrap()
        .to_owned();
    let day = START - START % 86_400;
    let account = format!("agent:{agent}|tokens|day@UTC");
    let asks = |seq, granted, returned, settled, want| {
        vec![lease::Ask {
            granted,
            returned,
            ..ask(&account, day, seq, settled, want)
        }]
    };
    // One gate has 900 of 1,000 and uses 100; another needs 200, and nobody listens: there is no point in waiting.
    let first = gate.leased(&holder(1), 0, asks(1, 0, 0, 0, 900)).await;
    assert_eq!(only(&first).granted, 900);
    gate.leased(&holder(1), 1, asks(2, 900, 0, 100, 0)).await;
    let short = gate.leased(&holder(2), 0, asks(1, 0, 0, 0, 200)).await;
    assert_eq!(only(&short).granted, 100);
    assert_ne!(only(&short).retry_ms, 0);
    // A gate that holds no request open hears of it when it looks for policy the next time, a second later at most.
    let looks = || poll(&gate, "", Some(&etag));
    assert_eq!(looks().await.status.as_u16(), 204);
    plane.advance(1);
    assert_eq!(looks().await.status.as_u16(), 304);

    let rest = async {
        let asked = poll(&gate, "?wait=50", Some(&etag)).await;
        assert_eq!((asked.status.as_u16(), asked.body.len()), (204, 0));
        let report = gate.leased(&holder(1), 1, asks(3, 900, 0, 100, 0)).await;
        // A call waits: nothing may stay but what calls have reserved.
        assert_eq!(only(&report).keep, 0);
        gate.leased(&holder(1), 1, asks(4, 900, 800, 100, 0)).await
    };
    let needs = async {
        for seq in 2..100 {
            // Within a second nobody is asked twice; and the first gate may not listen yet.
            plane.advance(2);
            let answer = gate.leased(&holder(2), 1, asks(seq, 100, 0, 0, 100)).await;
            if only(&answer).retry_ms == 0 {
                return answer;
            }
        }
        panic!("nothing came back");
    };
    let (returned, granted) = tokio::join!(rest, needs);
    assert_eq!(only(&returned).returned, 800);
    assert_eq!(only(&granted).granted, 200);
    // Whoever asks for more than everybody has waits a moment, and is told so.
    let asked = poll(&gate, "?wait=50", Some(&etag));
    let more = async {
        plane.advance(2);
        gate.leased(&holder(2), 1, asks(100, 200, 0, 200, 2_000))
            .await
    };
    let (more, _) = tokio::join!(more, tokio::time::timeout(Duration::from_secs(1), asked));
    assert_ne!(only(&more).retry_ms, 0);
}

/// What a gate says it was granted beyond what we know shows that our database is an old one.
#[tokio::test]
async fn a_database_put_back_learns_from_its_gates_before_it_grants() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = limited(&workspace).await;
    let gate = workspace.gate().await;
    let account = calls(&agent);
    gate.leased(&holder(1), 0, vec![]).await;
    let told = |seq, want| lease::Ask {
        granted: 7,
        returned: 1,
        ..ask(&account, MINUTE, seq, 2, want)
    };
    let answer = gate.leased(&holder(1), 1, vec![told(9, 2)]).await;
    assert!(answer.learning);
    // What it has stands, and it gets no more; nobody else gets anything.
    assert_eq!((only(&answer).granted, only(&answer).retry_ms), (7, 0));
    let other = gate
        .leased(&holder(2), 0, vec![ask(&account, MINUTE, 1, 0, 1)])
        .await;
    assert_eq!((only(&other).granted, other.learning), (0, true));
    // One term later, in the next minute: nothing is held back any more.
    plane.advance(TERM_SECS);
    let later = gate
        .leased(&holder(2), 1, vec![ask(&account, MINUTE + 60, 1, 0, 1)])
        .await;
    assert_eq!((only(&later).granted, later.learning), (3, false));
    // In the minute that was learned of, what the first one had is gone: 10 − (7 − 1) = 4.
    let same = gate
        .leased(&holder(2), 1, vec![ask(&account, MINUTE, 2, 0, 9)])
        .await;
    assert_eq!(only(&same).granted, 4);
    // A gate that keeps saying so does not keep its workspace waiting.
    let again = lease::Ask {
        granted: 9,
        ..told(10, 0)
    };
    let answer = gate.leased(&holder(1), 1, vec![again]).await;
    assert!(!answer.learning);
}

#[tokio::test]
async fn a_replay_gives_the_same_answer_and_an_old_number_changes_nothing() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = limited(&workspace).await;
    let gate = workspace.gate().await;
    let account = calls(&agent);
    let first = gate
        .leased(&holder(1), 0, vec![ask(&account, MINUTE, 1, 0, 1)])
        .await;
    let again = gate
        .leased(&holder(1), 1, vec![ask(&account, MINUTE, 1, 0, 1)])
        .await;
    assert_eq!(only(&again), only(&first));
    let more = gate
        .leased(&holder(1), 1, vec![ask(&account, MINUTE, 2, 3, 1)])
        .await;
    let old = gate
        .leased(&holder(1), 1, vec![ask(&account, MINUTE, 1, 0, 9)])
        .await;
    assert_eq!(
        (only(&old).seq, only(&old).granted),
        (1, only(&more).granted)
    );
}

#[tokio::test]
async fn a_new_epoch_starts_afresh_and_what_the_old_one_had_stays_gone() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = limited(&workspace).await;
    let gate = workspace.gate().await;
    let account = calls(&agent);
    let first = gate
        .leased(&holder(1), 0, vec![ask(&account, MINUTE, 1, 0, 6)])
        .await;
    assert_eq!(only(&first).granted, 6);
    // 4 are left for the new epoch, however many it wants.
    let second = gate
        .leased(&holder(1), 0, vec![ask(&account, MINUTE, 1, 0, 10)])
        .await;
    assert_eq!((second.epoch, only(&second).granted), (2, 4));
    // The first may still be spent from, by whoever has not heard of the second.
    let budgets = workspace.get("/budgets").await;
    assert_eq!(budgets[0]["forfeited"], "0");
    assert_eq!(budgets[0]["leased"], "10");
    assert_eq!(budgets[0]["available"], "0");
}

#[tokio::test]
async fn what_a_lost_holder_had_is_forfeited_until_the_window_ends() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let policy = "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {name: house}\n\
        spec: {scope: global, budget: {daily_limit_usd: 0.000000100, per: workspace}}\n";
    let applied = workspace.apply(policy).await;
    assert_eq!(applied.status, 200, "{}", applied.json());
    workspace.agent("blue").await;
    let gate = workspace.gate().await;
    let account = format!("workspace:{}|nano_usd|day@UTC", workspace.id);
    // 2026-11-20T00:00:00Z, eight hours before START.
    let day = START - 8 * 3_600;
    let first = gate
        .leased(&holder(1), 0, vec![ask(&account, day, 1, 0, 60)])
        .await;
    assert_eq!(only(&first).granted, 60);
    gate.leased(&holder(1), 1, vec![ask(&account, day, 2, 20, 0)])
        .await;
    let budget = async || workspace.get("/budgets").await[0].clone();
    let row = budget().await;
    assert_eq!(
        (
            &row["limit"],
            &row["settled"],
            &row["leased"],
            &row["forfeited"],
            &row["available"]
        ),
        (
            &json!("100"),
            &json!("20"),
            &json!("40"),
            &json!("0"),
            &json!("40")
        )
    );
    assert_eq!(row["resets_at"], day + 86_400);
    // Two terms of silence: lost. One second later than that, to be past and not at it.
    plane.advance(2 * TERM_SECS + 1);
    let row = budget().await;
    assert_eq!(
        (
            &row["settled"],
            &row["leased"],
            &row["forfeited"],
            &row["available"]
        ),
        (&json!("20"), &json!("0"), &json!("40"), &json!("40"))
    );
    assert_eq!(row["holders"][0]["lost"], true);
    // Another holder gets what is left and none of what is forfeited.
    let second = gate
        .leased(&holder(2), 0, vec![ask(&account, day, 1, 0, 100)])
        .await;
    assert_eq!(only(&second).granted, 40);
    // The lost one comes back and tells what it really used: nothing is counted twice.
    gate.leased(&holder(1), 1, vec![ask(&account, day, 3, 55, 0)])
        .await;
    let row = budget().await;
    assert_eq!(
        (
            &row["settled"],
            &row["leased"],
            &row["forfeited"],
            &row["available"]
        ),
        (&json!("55"), &json!("45"), &json!("0"), &json!("0"))
    );
}

#[tokio::test]
async fn windows_far_from_now_and_accounts_without_a_limit_get_no_grant() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = limited(&workspace).await;
    let gate = workspace.gate().await;
    let granted = async |account: &str, start: i64| {
        let asks = vec![ask(account, start, 1, 0, 1)];
        gate.leased(&holder(1), 1, asks).await.grants.len()
    };
    gate.leased(&holder(1), 0, vec![]).await;
    let account = calls(&agent);
    // The window before and after, with clocks five minutes apart: six minutes either way, and no further.
    for (start, expected) in [
        (MINUTE - 360, 1),
        (MINUTE + 360, 1),
        (MINUTE - 420, 0),
        (MINUTE + 420, 0),
        (MINUTE + 1, 0),
    ] {
        assert_eq!(
            granted(&account, start).await,
            expected,
            "{}",
            start - MINUTE
        );
    }
    for account in [
        calls("00000000-0000-0000-0000-000000000000"),
        format!("agent:{agent}|tokens|minute"),
        format!("agent:{agent}|calls|day@UTC"),
        format!("workspace:{}|calls|minute", workspace.id),
    ] {
        assert_eq!(granted(&account, MINUTE).await, 0, "{account}");
    }
}

#[tokio::test]
async fn a_limit_that_is_no_more_is_reported_to_the_end_and_given_back() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = workspace.agent("blue").await;
    let gate = workspace.gate().await;
    let apply = async |spec: &str| {
        let head = "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {name: day}\nspec: ";
        let applied = workspace.apply(&format!("{head}{spec}\n")).await;
        assert_eq!(applied.status, 200, "{}", applied.json());
    };
    // The calendar knows the days of a time zone only as long as a document has it.
    apply("{budget: {daily_limit_tokens: 1000, timezone: Pacific/Chatham}}").await;
    let account = format!("agent:{agent}|tokens|day@Pacific/Chatham");
    // START is 08:00 UTC; Chatham is 13:45 ahead in its summer, so it is 21:45 there.
    let day = START - (21 * 3_600 + 45 * 60);
    let first = vec![ask(&account, day, 1, 0, 40)];
    assert_eq!(only(&gate.leased(&holder(1), 0, first).await).granted, 40);

    apply("{rate: {requests_per_minute: 10}}").await;
    // It used 30 before it heard of that, and has 10 left.
    let report = |seq: u64, returned: u64, want: u64, ahead: bool| lease::Ask {
        granted: 40,
        returned,
        ahead,
        ..ask(&account, day, seq, 30, want)
    };
    let heard = gate
        .leased(&holder(1), 1, vec![report(2, 0, 10, true)])
        .await;
    let (granted, settled) = (only(&heard).granted, only(&heard).settled);
    assert_eq!((granted, settled, only(&heard).keep), (40, 30, 0));
    assert_eq!((only(&heard).seq, only(&heard).retry_ms), (2, 0));
    let back = gate
        .leased(&holder(1), 1, vec![report(3, 10, 0, false)])
        .await;
    assert_eq!((only(&back).returned, only(&back).settled), (10, 30));
    // A call that waits for it hears of the policy instead, and whoever has leased nothing is not written down.
    for (number, asked) in [
        (1, report(4, 10, 10, false)),
        (2, ask(&account, day, 1, 0, 0)),
    ] {
        let answer = gate
            .leased(&holder(number), u64::from(number == 1), vec![asked])
            .await;
        assert_eq!(answer.grants, [], "holder {number}");
    }
    // Set again on the same day it counts what was used.
    apply("{budget: {daily_limit_tokens: 40, timezone: Pacific/Chatham}}").await;
    let asks = vec![ask(&account, day, 2, 0, 100)];
    assert_eq!(only(&gate.leased(&holder(2), 1, asks).await).granted, 10);
}

#[tokio::test]
async fn the_smallest_limit_in_force_counts() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let (blue, red) = (workspace.agent("blue").await, workspace.agent("red").await);
    let policies = [
        rate("global", 10),
        rate("team:blue", 4),
        rate(&format!("agent:{red}"), 3),
    ];
    let policies = policies.join("---\n");
    let applied = workspace.apply(&policies).await;
    assert_eq!(applied.status, 200, "{}", applied.json());
    let gate = workspace.gate().await;
    let green = workspace.agent("green").await;
    let asks = [&blue, &red, &green].map(|agent| ask(&calls(agent), MINUTE, 1, 0, 100));
    let answer = gate.leased(&holder(1), 0, asks.to_vec()).await;
    let granted: Vec<u64> = answer.grants.iter().map(|grant| grant.granted).collect();
    assert_eq!(granted, [4, 3, 10]);
}

#[tokio::test]
async fn what_a_team_may_use_a_tool_for_is_leased_apart_from_all_else() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let blue = workspace.agent("blue").await;
    let policy = rate("tool:Bash", 6).replace("per: agent", "per: team, each: model");
    let applied = workspace.apply(&policy).await;
    assert_eq!(applied.status, 200, "{}", applied.json());
    let gate = workspace.gate().await;
    let asks = [
        "team:blue|calls|minute|model:gpt-4o|tool:bash",
        "team:blue|calls|minute|model:*|tool:bash",
        // None of these is limited: another tool, no model, no tool, a team that nobody is in, each agent.
        "team:blue|calls|minute|model:gpt-4o|tool:git",
        "team:blue|calls|minute|tool:bash",
        "team:blue|calls|minute|model:gpt-4o",
        "team:red|calls|minute|model:gpt-4o|tool:bash",
        &format!("agent:{blue}|calls|minute|model:gpt-4o|tool:bash"),
    ]
    .map(|account| ask(account, MINUTE, 1, 0, 100));
    let answer = gate.leased(&holder(1), 0, asks.to_vec()).await;
    let granted = answer.grants.iter();
    let granted: Vec<_> = granted
        .map(|grant| (grant.account.to_string(), grant.granted))
        .collect();
    let expected =
        ["gpt-4o", "*"].map(|model| (format!("team:blue|calls|minute|model:{model}|tool:bash"), 6));
    assert_eq!(granted, expected);
}

#[tokio::test]
async fn a_holder_belongs_to_the_gate_that_named_it_first() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let (gate, other) = (workspace.gate().await, workspace.gate().await);
    gate.leased(&holder(1), 0, vec![]).await;
    let refused = other.lease(&holder(1), 0, vec![]).await.unwrap_err();
    assert_eq!(
        (refused.status.as_u16(), refused.problem().as_str()),
        (403, "forbidden")
    );
    let refused = gate.lease("h-1", 0, vec![]).await.unwrap_err();
    assert_eq!(
        (refused.status.as_u16(), refused.problem().as_str()),
        (422, "invalid")
    );
}

#[tokio::test]
async fn requests_out_of_range_are_refused_whole() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let agent = limited(&workspace).await;
    let gate = workspace.gate().await;
    let account = calls(&agent);
    let beyond = lease::Ask {
        reserved: u64::MAX,
        ..ask(&account, MINUTE, 1, 0, 1)
    };
    let refused = gate.lease(&holder(1), 0, vec![beyond]).await.unwrap_err();
    assert_eq!(refused.problem(), "invalid");
    let many = vec![ask(&account, MINUTE, 1, 0, 1); 257];
    let refused = gate.lease(&holder(1), 0, many).await.unwrap_err();
    assert_eq!(refused.problem(), "invalid");
    let refused = gate.lease(&holder(1), u64::MAX, vec![]).await.unwrap_err();
    assert_eq!(refused.problem(), "invalid");
    // None of them left a trace.
    assert_eq!(workspace.get("/gates").await[0]["holders"], json!([]));
    assert_eq!(workspace.get("/budgets").await, json!([]));
}

#[tokio::test]
async fn an_operator_sees_what_runs_where() {
    let plane = Plane::new().await;
    let workspace = plane.workspace().await;
    let gate = workspace.gate().await;
    gate.leased(&holder(1), 0, vec![]).await;
    let row = workspace.get("/gates").await[0]["holders"][0].clone();
    assert_eq!(
        row,
        json!({
            "holder": holder(1), "epoch": 1, "revision": 1, "first_seen_ms": START * 1_000,
            "last_seen_ms": START * 1_000, "lost": false
        })
    );
    plane.advance(2 * TERM_SECS + 1);
    assert_eq!(workspace.get("/gates").await[0]["holders"][0]["lost"], true);
}

/// xorshift64*: many orders of messages from one seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below
    }
}

/// Three gates that crash, greet again, lose answers and repeat themselves: what they were ever allowed to spend in the window stays
/// within the limit, and what the operator sees adds up.
#[tokio::test]
async fn whatever_gates_do_the_limit_holds() {
    const LIMIT: u64 = 10;
    for seed in 1..=8 {
        let plane = Plane::new().await;
        let workspace = plane.workspace().await;
        let agent = limited(&workspace).await;
        let gate = workspace.gate().await;
        let account = calls(&agent);
        let mut dice = Dice(seed);
        // Per holder: epoch, number, used in this epoch, allowed in this epoch.
        let mut holders = [(0_u64, 0_u64, 0_u64, 0_u64); 3];
        let mut spent = 0;
        for _ in 0..40 {
            let who = usize::try_from(dice.roll(3)).unwrap();
            let (epoch, seq, used, allowed) = &mut holders[who];
            let spend = dice.roll(*allowed - *used + 1);
            *used += spend;
            spent += spend;
            assert!(spent <= LIMIT, "seed {seed}: {spent} spent");
            if dice.roll(8) == 0 {
                (*epoch, *seq, *used, *allowed) = (0, 0, 0, 0);
            }
            *seq += u64::from(*seq == 0 || dice.roll(4) > 0);
            let asks = vec![ask(&account, MINUTE, *seq, *used, dice.roll(4))];
            let name = holder(u32::try_from(who).unwrap());
            let answer = gate.leased(&name, *epoch, asks).await;
            let lost = *epoch != 0 && dice.roll(4) == 0;
            if !lost {
                *epoch = answer.epoch;
                *allowed = only(&answer).granted;
            }
        }
        let row = workspace.get("/budgets").await[0].clone();
        let number = |field: &str| row[field].as_str().unwrap().parse::<u64>().unwrap();
        let sum = number("settled") + number("leased") + number("forfeited") + number("available");
        assert_eq!(
            (sum, &row["limit"]),
            (LIMIT, &Value::from("10")),
            "seed {seed}: {row}"
        );
    }
}
