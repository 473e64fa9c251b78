//! Limits, with two workers drawing on them at once.

use serde_json::Value;
use ureq::http::HeaderValue;
use xtask::stack::Stack;

use tollgate_tests::whole::{Whole as _, answer, at_once, chat_body, wait_for, within_a_minute};

use crate::scene::Scene;

const CALLERS: usize = 40;

fn rate(calls_per_minute: usize) -> String {
    format!(
        "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: rate
spec:
  scope: global
  rate:
    per: agent
    requests_per_minute: {calls_per_minute}
"
    )
}

/// Sends a burst of an agent that has not called yet, and gives how many of it were admitted; the rest must have been told why.
fn burst(scene: &Scene, agent: &str) -> usize {
    let Stack {
        control_plane,
        workspace,
        ..
    } = &scene.stack;
    let agent = control_plane
        .create_agent(workspace, agent, "robots")
        .unwrap();
    let token = control_plane.issue_token(workspace, &agent).unwrap();
    let bearer = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    let body = chat_body("hello").to_string().into_bytes();
    let answers = at_once(CALLERS, || {
        let request = scene.request("/v1/chat/completions", &[]);
        let mut request = request.body(body.clone()).unwrap();
        request
            .headers_mut()
            .insert("authorization", bearer.clone());
        request
    });
    let (admitted, denied): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == 200);
    for answer in denied {
        assert_eq!(
            answer.verdict(),
            (429, "rate.requests_per_minute"),
            "{}",
            answer.body
        );
        let wait: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
    }
    admitted.len()
}

fn a_burst_admits_exactly(cap: usize) {
    let scene = Scene::start(&format!("burst-{cap}"), &rate(cap));
    // A burst over the edge of a minute may rightly admit twice as many; another agent's comes after the edge.
    let mut attempt = 0;
    let (admitted, reached) = within_a_minute(|| {
        attempt += 1;
        scene.provider().forget_requests();
        let admitted = burst(&scene, &format!("robot-{attempt}"));
        (admitted, scene.reached().len())
    });
    assert_eq!((admitted, reached), (cap, cap));
}

// With one worker's share below one call, about that of two workers, and well above it.

#[test]
fn a_burst_of_40_against_1_a_minute_admits_1() {
    a_burst_admits_exactly(1);
}

#[test]
fn a_burst_of_40_against_5_a_minute_admits_5() {
    a_burst_admits_exactly(5);
}

#[test]
fn a_burst_of_40_against_17_a_minute_admits_17() {
    a_burst_admits_exactly(17);
}

#[test]
fn a_budget_in_dollars_is_not_overspent_by_many_at_once() {
    // One call's worst case: a token of the prompt is at least a byte of the body, and 100 tokens come back at most. The limit below covers
    // a few calls at their worst, and more of them one after the other, since each really costs 250 + 8 × 2,000 = 16,250 nano-USD.
    const LIMIT: u64 = 1_000_000;
    let scene = Scene::start(
        "dollars",
        "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: budget
spec:
  scope: global
  budget:
    per: team
    daily_limit_usd: 0.001
",
    );
    let body = chat_body("hello").to_string().into_bytes();
    let mut admitted = 0;
    let mut rounds = 0;
    // Until nothing more is let through: then the limit has been met, and was never passed.
    loop {
        let answers = at_once(20, || {
            let request = scene.request("/v1/chat/completions", &[("x-stand-in-delay-ms", "5")]);
            request.body(body.clone()).unwrap()
        });
        let served = answers.iter().filter(|answer| answer.status == 200).count();
        for denied in answers.iter().filter(|answer| answer.status != 200) {
            assert_eq!(
                denied.verdict(),
                (429, "budget.daily_limit_usd"),
                "{}",
                denied.body
            );
        }
        admitted += served;
        rounds += 1;
        assert!(
            rounds < 50,
            "a budget for about 50 calls let {admitted} pass"
        );
        let probe = answer(
            scene
                .request("/v1/chat/completions", &[])
                .body(body.clone())
                .unwrap(),
        );
        if probe.status == 200 {
            admitted += 1;
        } else if served == 0 {
            break;
        }
    }
    assert_eq!(scene.reached().len(), admitted);
    let spent = 16_250 * u64::try_from(admitted).unwrap();
    assert!(spent <= LIMIT, "{admitted} calls cost {spent}");
    // What is left is less than one call's worst case: 100 × 2,000 for the answer and less than 250 × 250 for the question.
    assert!(LIMIT - spent < 262_500, "{admitted} calls cost {spent}");
    wait_for("the ledger to have heard of all of it", || {
        let budget = scene.budget("|nano_usd|day@UTC")?;
        let settled: u64 = number(&budget["settled"])?;
        assert!(settled <= spent);
        (settled == spent && budget["reserved"] == "0").then_some(())
    });
}

fn number(text: &Value) -> Option<u64> {
    text.as_str()?.parse().ok()
}
