//! Pause and kill, as callers feel them: how soon, and what becomes of streams that are under way.

use std::{
    io::{BufRead as _, BufReader},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tollgate_tests::process::wait_until;
use tollgate_tests::whole::{Whole as _, budget, chat_body, client};

use crate::scene::Scene;

/// How soon an order is kept, with a live control plane. Less than a second on a machine that does nothing else; the rest is for one that does.
const BOUND: Duration = Duration::from_secs(3);

/// Orders it, and says when the control plane had taken it in.
fn order(scene: &Scene, scope: &str, order: &str) -> Instant {
    let workspace = &scene.stack.workspace;
    let path = format!("/v1/workspaces/{}/halts/{scope}", workspace.id);
    let body = json!({"order": order, "reason": "it loops"}).to_string();
    scene
        .stack
        .control_plane
        .call(&workspace.operator_key, "PUT", &path, &body)
        .unwrap_or_else(|error| panic!("{error:#}"));
    Instant::now()
}

/// How long after `ordered` a call has this verdict.
fn until(scene: &Scene, ordered: Instant, verdict: (u16, &str)) -> Duration {
    wait_until("the order to be kept", 2 * BOUND, || {
        (scene.chat("hello", &[]).verdict() == verdict).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
    ordered.elapsed()
}

#[test]
fn pause_and_resume_reach_every_worker_at_once() {
    let scene = Scene::start("paused", &budget("1"));
    assert_eq!(scene.chat("hello", &[]).status, 200);
    let agent = format!("agent:{}", scene.agent);
    for scope in [agent.as_str(), "team:robots", "global"] {
        let paused = until(&scene, order(&scene, scope, "paused"), (403, "halt.paused"));
        println!("{scope} was paused after {paused:?}");
        assert!(paused < BOUND);
        // Connections are spread over the workers; none of them lets one more through.
        let reached = scene.reached().len();
        for _ in 0..16 {
            assert_eq!(scene.chat("hello", &[]).verdict(), (403, "halt.paused"));
        }
        assert_eq!(scene.reached().len(), reached);
        let resumed = until(&scene, order(&scene, scope, "running"), (200, ""));
        println!("{scope} was resumed after {resumed:?}");
        assert!(resumed < BOUND);
    }
}

#[test]
fn a_kill_ends_a_stream_that_is_under_way() {
    let scene = Scene::start("killed", &budget("1"));
    a_stream_ends(&scene, "team:robots", "this team");
    // The upstream's side is given up, too: what was reserved is settled.
    assert_eq!(scene.chat("hello", &[]).verdict(), (403, "halt.killed"));
}

#[test]
fn a_killed_run_ends_its_stream_and_its_agent_goes_on() {
    let scene = Scene::start("killed-run", &budget("1"));
    a_stream_ends(&scene, &format!("run:{}:{RUN}", scene.agent), "this run");
    let run = [("x-tollgate-run", RUN)];
    assert_eq!(scene.chat("hello", &run).verdict(), (403, "halt.killed"));
    let other = [("x-tollgate-run", "night:8")];
    assert_eq!(scene.chat("hello", &other).status, 200);
    assert_eq!(scene.chat("hello", &[]).status, 200);
}

/// The run to which every stream here belongs.
const RUN: &str = "night:7";

/// A stream is under way, `scope` is killed, and its caller is told of whom that is so.
fn a_stream_ends(scene: &Scene, scope: &str, whom: &str) {
    let mut body = chat_body("a long story");
    body["stream"] = true.into();
    let knobs = [
        ("x-stand-in-delay-ms", "50"),
        ("x-stand-in-completion-tokens", "100"),
        ("x-tollgate-run", RUN),
    ];
    let request = scene
        .request("/v1/chat/completions", &knobs)
        .body(body.to_string().into_bytes())
        .unwrap();
    let mut response = client().run(request).unwrap();
    assert_eq!(response.status(), 200);
    let mut lines = BufReader::new(response.body_mut().as_reader()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("data: "), "{first}");

    let ordered = order(scene, scope, "killed");
    // The connection is broken off behind the last event.
    let data: Vec<String> = lines
        .map_while(Result::ok)
        .filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
        .collect();
    let ended = ordered.elapsed();
    println!("the stream ended after {ended:?}");
    assert!(ended < BOUND);
    let last: Value = serde_json::from_str(data.last().unwrap()).unwrap();
    assert_eq!(
        last,
        json!({"error": {
            "message": format!("tollgate: an operator has killed {whom}: it loops"),
            "type": "permission_error", "param": null, "code": "halt.killed",
        }})
    );
    let record = &scene.records(1)[0];
    assert_eq!(
        (&record["end"], &record["estimated"], &record["outcome"]),
        (&json!("cut"), &json!(true), &json!("allow")),
        "{record}"
    );
    assert_eq!(record["reasons"][0]["rule"], "halt.killed");
    assert_ne!(record["cost_nano_usd"], "0", "{record}");
}
