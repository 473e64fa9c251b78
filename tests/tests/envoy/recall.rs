//! What one gate does not use, when a call at another one needs it.

use tollgate_tests::whole::{Whole as _, answer, budget, chat_body, share, wait_for};
use ureq::http::Request;

use crate::killed::{COST, Gate};
use crate::scene::Scene;

/// In nano-USD and a day: what 738 calls cost.
const LIMIT: u64 = 12_000_000;
/// What a gate may keep of it: a 96th.
const KEPT: u64 = LIMIT / 96;

#[test]
fn what_a_gate_at_rest_keeps_is_there_for_a_call_at_another() {
    let scene = Scene::start("recall", &budget("0.012"));
    let body = chat_body("hello").to_string().into_bytes();
    // Used and kept by every gate that has called.
    let shares = || {
        let budget = scene.budget("|nano_usd|day@UTC")?;
        let holders = budget["holders"].as_array()?.iter().map(share);
        holders.collect::<Option<Vec<(u64, u64)>>>()
    };
    // One gate makes a single call, and keeps a little for the next.
    let request = scene.request("/v1/chat/completions", &[]);
    assert_eq!(answer(request.body(body.clone()).unwrap()).status, 200);
    let kept = wait_for(
        "the first gate to have told and given back",
        || match shares()?.as_slice() {
            [(COST, kept)] if *kept <= KEPT => Some(*kept),
            _ => None,
        },
    );
    assert!(kept > COST, "{kept}");

    // Another one uses up the rest of the budget, and what the first does not need.
    let other = Gate::start(&scene, 1);
    let call = || {
        let request = Request::post(other.envoy.url("/v1/chat/completions"))
            .header("authorization", format!("Bearer {}", scene.token))
            .header("content-type", "application/json")
            .body(body.clone());
        answer(request.unwrap())
    };
    loop {
        let answered = call();
        if answered.status != 200 {
            let refused = (429, "budget.daily_limit_usd");
            assert_eq!(answered.verdict(), refused, "{}", answered.body);
            break;
        }
    }
    // Half a minute before it would have come by itself.
    wait_for("the first gate to have nothing left", || {
        let [first, second] = shares()?.try_into().ok()?;
        (first.min(second) == (COST, 0)).then_some(())
    });
    let spent = COST * u64::try_from(scene.reached().len()).unwrap();
    assert!(spent <= LIMIT, "{spent}");
}
