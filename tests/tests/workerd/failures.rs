//! What happens when a process dies, or policy changes under load.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tollgate_tests::clock::Clock;
use tollgate_tests::corpus::wire::{self, Server};
use tollgate_tests::whole::{Whole as _, budget, chat_body, client, models, under_load, wait_for};

use crate::scene::Scene;

/// Calls until one is denied; gives how many were served, and the denial's verdict.
fn spend_all(scene: &Scene, at_most: u64) -> (u64, u16, String) {
    let mut served = 0;
    loop {
        let answer = scene.chat("hello", &[]);
        if answer.status != 200 {
            let (status, rule) = answer.verdict();
            return (served, status, rule.to_owned());
        }
        served += 1;
        assert!(served <= at_most, "more than {at_most} calls were served");
    }
}

// A call's worst case is some 220,000 nano-USD: 100 × 2,000 for the answer, 250 for each byte of a body of about 100. It really costs 16,250:
// 250 for one word in, 8 × 2,000 for those out. So 0.005 USD are 307 calls.
const COST: u64 = 16_250;
const LIMIT: u64 = 5_000_000;

#[test]
fn without_its_control_plane_a_gate_spends_its_lease_and_no_more() {
    // The first lease is a 96th of it, nearly five times the worst case.
    let mut scene = Scene::start("orphan", &budget("0.1"));
    assert_eq!(scene.chat("hello", &[]).status, 200);
    scene.stack.control_plane.process.kill().unwrap();

    let (served, status, rule) = spend_all(&scene, 100_000_000 / 96 / COST);
    assert!(served >= 40, "the lease covered {served} calls only");
    assert_eq!((status, rule.as_str()), (503, "budget.daily_limit_usd"));

    scene.stack.restart_control_plane().unwrap();
    wait_for("calls to be served again", || {
        (scene.chat("hello", &[]).status == 200).then_some(())
    });
    // Nothing of what happened meanwhile is missing: the calls above, and one denial at least.
    let records = scene.records(usize::try_from(served).unwrap() + 2);
    assert!(records.iter().any(|record| record["status"] == 503));
    assert_eq!(scene.ask("audit/gaps"), json!([]));
}

/// A worker that was killed between reservation and settlement, twice: while the provider thinks, and in the middle of its answer. What it comes back
/// as is the same holder with the same leases; what was reserved is not spent again, and what cannot be on record is said to be missing: counted where
/// the call was noted, which it is a moment after it went out, and else as what a lost keeper may have had under way.
#[test]
fn a_worker_that_was_killed_comes_back_as_itself_and_overspends_nothing() {
    let mut clock = None;
    let mut scene = Scene::start_as("killed", &budget("0.005"), |plan| {
        let clock = clock.insert(Clock::new(&plan.folder).unwrap());
        plan.environment = clock.environment();
    });
    for _ in 0..3 {
        assert_eq!(scene.chat("hello", &[]).status, 200);
    }
    scene.records(3);
    let holder = |scene: &Scene| {
        let budget = scene.budget("|nano_usd|day@UTC")?;
        let holders = budget["holders"].as_array()?;
        (holders.len() == 1).then(|| holders[0]["holder"].as_str().map(str::to_owned))?
    };
    let before = wait_for("the holder", || holder(&scene));

    // Reserved, and the provider has not said a word.
    std::thread::scope(|scope| {
        let slow = [("x-stand-in-head-delay-ms", "60000")];
        let request = scene
            .request("/v1/chat/completions", &slow)
            .body(chat_body("hello").to_string().into_bytes())
            .unwrap();
        let call = scope.spawn(|| client().run(request).is_err());
        wait_for("the call to reach the provider", || {
            (scene.reached().len() == 4).then_some(())
        });
        scene.stack.restart_gate().unwrap();
        assert!(call.join().unwrap());
    });

    // In the middle of an answer.
    let mut body = chat_body("hello");
    body["stream"] = true.into();
    let slow = [("x-stand-in-delay-ms", "2000")];
    let request = scene
        .request("/v1/chat/completions", &slow)
        .body(body.to_string().into_bytes())
        .unwrap();
    let mut response = client().run(request).unwrap();
    let mut lines = BufReader::new(response.body_mut().as_reader()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("data: "));
    scene.stack.restart_gate().unwrap();
    drop(lines);
    drop(response);

    // The two lost calls may have cost what was set aside for them, some 220,000 each: nobody gets it again.
    let lost = 2 * 200_000;
    let (served, status, rule) = spend_all(&scene, LIMIT / COST);
    assert_eq!((status, rule.as_str()), (429, "budget.daily_limit_usd"));
    assert!(
        COST * (3 + served) + lost <= LIMIT,
        "{served} calls after two that were lost"
    );
    assert_eq!(
        holder(&scene),
        Some(before),
        "the same holder, with what it had been leased"
    );

    // Nothing is missing but the two, and a quarter of an hour later, when no call can be under way any more, that is said.
    assert_eq!(scene.ask("audit/gaps"), json!([]));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut later = now.unwrap() + Duration::from_secs(16 * 60);
    let clock = clock.unwrap();
    wait_for("the gate to say what is missing", || {
        // Its alarm goes by this clock, and a clock that was set stands still.
        later += Duration::from_secs(1);
        let now = i64::try_from(later.as_nanos()).unwrap();
        clock.set(now).unwrap();
        scene.chat("hello", &[]);
        let gaps = scene.ask("audit/gaps");
        let gaps = gaps.as_array()?.iter();
        assert!(gaps.clone().all(|gap| gap["kind"] == "dropped"));
        let missing: u64 = gaps.filter_map(|gap| gap["records"].as_u64()).sum();
        let answer = scene.ask("audit?limit=1000");
        let records = answer["records"].as_array()?.iter();
        let lost = records.filter(|entry| entry["record"]["kind"] == "worker_lost");
        let lost: Vec<_> = lost.map(|entry| &entry["record"]).collect();
        for record in &lost {
            assert!(
                record["heard_ms"].as_i64() < record["at_ms"].as_i64(),
                "{record}"
            );
        }
        // The second was noted: its provider had sent something. At most one was lost before it could be.
        assert!(missing <= 2 && lost.len() <= 2, "{missing}, {lost:?}");
        (missing == 2 || (missing == 1 && !lost.is_empty())).then_some(())
    });
}

#[test]
fn a_policy_edit_is_live_within_two_seconds_and_no_call_is_lost() {
    let scene = Scene::start("edit", &models("['model:gpt-5*']"));
    let edited = models("['model:gpt-4*']");
    let call = || scene.chat("hello", &[]).status;
    let (statuses, took) = under_load(call, || {
        wait_for("some calls", || (scene.reached().len() >= 20).then_some(()));
        let stack = &scene.stack;
        let applied = Instant::now();
        stack
            .control_plane
            .apply_policy(&stack.workspace, &edited)
            .unwrap();
        wait_for("the edit", || (call() == 403).then_some(()));
        let live = applied.elapsed();
        // No way back.
        for _ in 0..20 {
            assert_eq!(call(), 403);
        }
        live
    });
    for status in statuses {
        assert!(matches!(status, 200 | 403), "{status}");
    }
    // The keeper asks once a second, and an isolate asks the keeper once a second.
    assert!(took < Duration::from_millis(2_500), "{took:?}");
}

/// The keeper is gone with all that it knew, and the control plane is away: a cold isolate decides by the bundle that it finds in KV.
#[test]
fn a_cold_isolate_finds_its_bundle_in_kv() {
    const POLICY: &str = "
apiVersion: tollgate/v1
kind: Policy
metadata:
  name: models
spec:
  scope: global
  capabilities:
    deny: ['model:gpt-5*']
";
    // A KV namespace is, to workerd, a server that has values at paths.
    let values: Arc<Mutex<BTreeMap<String, Vec<u8>>>> = Arc::default();
    let kept = Arc::clone(&values);
    let namespace = Server::start(move |request, stream| {
        let key = request.word(1).split('?').next().unwrap_or_default();
        let mut kept = kept.lock().unwrap();
        let response = match (request.word(0), kept.get(key)) {
            ("GET", Some(value)) => wire::response(200, &[], value),
            ("GET", None) => wire::response(404, &[], b""),
            _ => {
                kept.insert(key.to_owned(), request.body);
                wire::response(200, &[], b"")
            }
        };
        let _ = stream.write_all(&response);
    })
    .unwrap();
    let mut folder = None;
    let mut scene = Scene::start_as("kv", POLICY, |plan| {
        plan.bundles = Some(namespace.address);
        folder = Some(plan.folder.clone());
    });
    let denied = (403, "capabilities.deny");
    assert_eq!(scene.chat("hello", &[]).verdict(), denied);
    let names: Vec<String> = values.lock().unwrap().keys().cloned().collect();
    assert_eq!(names, [format!("/{}%20default", scene.stack.workspace.id)]);

    scene.stack.control_plane.process.kill().unwrap();
    scene.stack.gate.process.kill().unwrap();
    fs::remove_dir_all(folder.unwrap().join("keeper")).unwrap();
    scene.stack.restart_gate().unwrap();
    assert_eq!(scene.chat("hello", &[]).verdict(), denied);
}
