//! What happens when a process dies, or policy changes under load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::scene::{Scene, wait_for};

fn budget(per_day_usd: &str) -> String {
    format!(
        "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: budget
spec:
  scope: global
  budget:
    per: agent
    daily_limit_usd: {per_day_usd}
"
    )
}

#[test]
fn without_its_control_plane_a_gate_spends_its_lease_and_no_more() {
    // A call's worst case is some 220,000 nano-USD: 100 × 2,000 for the answer, 250 for each byte of a body of about 100. The first lease is half
    // of the limit, about 11 of them; what calls really cost (16,250) is less, so it lasts for more.
    let mut scene = Scene::start("orphan", &budget("0.005"));
    assert_eq!(scene.chat("hello", &[]).status, 200);
    scene.stack.control_plane.process.kill().unwrap();

    let mut served = 0;
    let denied = loop {
        let answer = scene.chat("hello", &[]);
        if answer.status != 200 {
            break answer;
        }
        served += 1;
        // 0.005 USD over 16,250 nano-USD each is 307.
        assert!(served <= 307, "more than the whole limit was spent");
    };
    assert!(served >= 10, "the lease covered {served} calls only");
    assert_eq!(
        denied.verdict(),
        (503, "budget.daily_limit_usd"),
        "{}",
        denied.body
    );

    scene.stack.restart_control_plane().unwrap();
    wait_for("calls to be served again", || {
        (scene.chat("hello", &[]).status == 200).then_some(())
    });
    // Nothing of what happened meanwhile is missing: the calls above, and one denial at least.
    let records = scene.records(served + 2);
    assert!(records.iter().any(|record| record["status"] == 503));
    assert_eq!(scene.ask("audit/gaps"), serde_json::json!([]));
}

#[test]
fn an_envoy_that_was_killed_comes_back_as_another_and_overspends_nothing() {
    let mut scene = Scene::start("killed", &budget("0.005"));
    for _ in 0..3 {
        assert_eq!(scene.chat("hello", &[]).status, 200);
    }
    let holder = |scene: &Scene| {
        let budget = scene.budget("|nano_usd|day@UTC")?;
        Some(budget["holders"][0]["holder"].as_str()?.to_owned())
    };
    let before = wait_for("the first holder", || holder(&scene));
    let granted: u64 = {
        let budget = scene.budget("|nano_usd|day@UTC").unwrap();
        budget["holders"][0]["granted"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    };

    scene.stack.restart_gate().unwrap();
    let mut served = 0;
    let denied = loop {
        let answer = scene.chat("hello", &[]);
        if answer.status != 200 {
            break answer;
        }
        served += 1;
        assert!(served < 400, "no end");
    };
    assert_eq!(
        denied.verdict(),
        (429, "budget.daily_limit_usd"),
        "{}",
        denied.body
    );
    // What the first had been leased is not given again.
    assert!(
        16_250 * served <= 5_000_000 - granted,
        "{served} calls after {granted} were leased"
    );

    wait_for("the second holder beside the first", || {
        let budget = scene.budget("|nano_usd|day@UTC")?;
        let holders = budget["holders"].as_array()?;
        let known = holders.iter().any(|one| one["holder"] == before.as_str());
        (holders.len() == 2 && known).then_some(())
    });
}

#[test]
fn a_policy_edit_is_live_within_two_seconds_and_no_call_is_lost() {
    const ALLOWED: &str = "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: models
spec:
  scope: global
  capabilities:
    allow: ['model:gpt-5*']
";
    let scene = Scene::start("edit", ALLOWED);
    let edited = ALLOWED.replace("gpt-5*", "gpt-4*");
    let stop = AtomicBool::new(false);
    let took = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut verdicts = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let answer = scene.chat("hello", &[]);
                        verdicts.push((Instant::now(), answer.status));
                    }
                    verdicts
                })
            })
            .collect();
        wait_for("some calls", || (scene.reached().len() >= 20).then_some(()));
        let stack = &scene.stack;
        let applied = Instant::now();
        stack
            .control_plane
            .apply_policy(&stack.workspace, &edited)
            .unwrap();
        wait_for("the edit", || {
            (scene.chat("hello", &[]).status == 403).then_some(())
        });
        let live = Instant::now();
        // Both workers, and no way back: whatever comes from now on is denied.
        let reached = scene.reached().len();
        for _ in 0..20 {
            assert_eq!(scene.chat("hello", &[]).status, 403);
        }
        stop.store(true, Ordering::Relaxed);
        for caller in callers {
            for (at, status) in caller.join().unwrap() {
                assert!(matches!(status, 200 | 403), "{status}");
                assert!(
                    status == 403 || at <= live + Duration::from_millis(500),
                    "late"
                );
            }
        }
        // Those on their way when the edit came.
        assert!(scene.reached().len() <= reached + 4);
        live - applied
    });
    assert!(took < Duration::from_secs(2), "{took:?}");
}
