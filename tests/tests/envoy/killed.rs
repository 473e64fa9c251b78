//! Three gates on one budget under load, killed one after the other.
//!
//! `TOLLGATE_ROUNDS=20 cargo test -p tollgate-tests --test envoy killed -- --nocapture` prints the table of `docs/budgets.md`.

use std::fs;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;
use tollgate_tests::whole::{DEADLINE, Whole as _, budget, chat_body, client, upstream, wait_for};
use ureq::Agent;
use ureq::http::Request;
use xtask::envoy::{Envoy, Run, Settings};
use xtask::stack::{gate_secrets, gate_settings};

use crate::scene::{Scene, alone};

const GATES: usize = 3;
/// One of each gate without [`ROUNDS`] in the environment.
const USUAL_ROUNDS: usize = GATES;
const ROUNDS: &str = "TOLLGATE_ROUNDS";
const CALLERS_PER_GATE: usize = 2;

/// In nano-USD, per agent and day: each round has an agent of its own.
const LIMIT: u64 = 10_000_000;
/// What the stand-in's answer to a call costs: a prompt token at 250 and 8 of an answer at 2,000 nano-USD.
pub(crate) const COST: u64 = 250 + 8 * 2_000;
/// Calls of a round before a gate is killed: about a third of what the budget holds.
const BEFORE: usize = 200;
/// Denials one after the other that make a caller give up. The gate that was killed is back by then.
const ENOUGH: usize = 5;

/// One more gate than a scene has.
pub(crate) struct Gate {
    run: Run,
    settings: Settings,
    pub(crate) envoy: Envoy,
}

impl Gate {
    pub(crate) fn start(scene: &Scene, number: usize) -> Gate {
        let (workspace, upstream) = (&scene.stack.workspace, upstream(&scene.provider));
        let (mut settings, mut run) = alone(scene, gate_settings(workspace, &upstream));
        run.environment = gate_secrets(workspace, &upstream);
        run.folder = scene.file(&format!("gate-{number}"));
        fs::create_dir_all(&run.folder).unwrap();
        settings.access_log = run.folder.join("access.log");
        let envoy = Gate::started(&run, &settings);
        Gate {
            run,
            settings,
            envoy,
        }
    }

    fn started(run: &Run, settings: &Settings) -> Envoy {
        let mut envoy = Envoy::start(run, &settings.render().unwrap()).unwrap();
        envoy
            .wait_for_bundle(DEADLINE)
            .unwrap_or_else(|error| panic!("{error:#}"));
        envoy
    }

    /// On the ports it had, where its callers go on calling.
    fn kill_and_restart(&mut self) {
        self.settings.listen = self.envoy.listen;
        self.settings.admin = self.envoy.admin;
        self.envoy.process.kill().unwrap();
        self.envoy = Gate::started(&self.run, &self.settings);
    }
}

/// Status and first reason, of an answer that came whole.
fn called(client: &Agent, request: Request<Vec<u8>>) -> Result<(u16, String), ureq::Error> {
    let mut response = client.run(request)?;
    let reason = response.headers().get("x-tollgate-reason");
    let reason = reason.map_or("", |reason| reason.to_str().unwrap());
    let (status, reason) = (response.status().as_u16(), reason.to_owned());
    response.body_mut().read_to_vec()?;
    Ok((status, reason))
}

/// One round: its callers call until the budget is used up, while one gate is killed and comes back.
fn round(scene: &Scene, gates: &mut [Gate], number: usize) {
    let (control_plane, workspace) = scene.control_plane();
    let name = format!("robot-of-round-{number}");
    let agent = control_plane
        .create_agent(workspace, &name, "robots")
        .unwrap();
    let token = control_plane.issue_token(workspace, &agent).unwrap();
    scene.provider.forget_requests();
    let body = chat_body("hello").to_string().into_bytes();
    let (denied, broken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let killed = number % gates.len();
    thread::scope(|scope| {
        for gate in gates.iter() {
            let listen = gate.envoy.listen;
            let url = gate.envoy.url("/v1/chat/completions");
            for _ in 0..CALLERS_PER_GATE {
                let (url, token, body) = (url.clone(), &token, &body);
                let (denied, broken) = (&denied, &broken);
                scope.spawn(move || {
                    let client = client();
                    let mut in_a_row = 0;
                    while in_a_row < ENOUGH {
                        let request = Request::post(&url)
                            .header("authorization", format!("Bearer {token}"))
                            .header("content-type", "application/json")
                            .body(body.clone())
                            .unwrap();
                        match called(&client, request) {
                            Ok((200, _)) => in_a_row = 0,
                            // The gate is back, and has no policy yet.
                            Ok((503, reason)) if reason == "bundle.missing" => {}
                            Ok((status, reason)) => {
                                let known = reason == "budget.daily_limit_usd";
                                assert!(known, "{status} {reason}");
                                denied.fetch_add(1, Ordering::Relaxed);
                                in_a_row += 1;
                            }
                            // Its gate has been killed.
                            Err(_) => {
                                broken.fetch_add(1, Ordering::Relaxed);
                                wait_for("the gate to be back", || TcpStream::connect(listen).ok());
                            }
                        }
                    }
                });
            }
        }
        wait_for("calls under way", || {
            (scene.reached().len() >= BEFORE).then_some(())
        });
        gates[killed].kill_and_restart();
    });

    let admitted = scene.reached().len();
    let spent = COST * u64::try_from(admitted).unwrap();
    assert!(
        spent <= LIMIT,
        "round {number}: {admitted} calls cost {spent}"
    );
    let account = format!("agent:{agent}|nano_usd|day@UTC");
    let amount = |budget: &Value, field: &str| -> u64 {
        let text = budget[field].as_str().unwrap_or_default();
        text.parse().unwrap_or_else(|_| panic!("{field}: {budget}"))
    };
    // What the gates tell comes to what the provider has seen, but for what the one that was killed could not tell any more.
    let budget = wait_for("the gates to have told", || {
        let budget = scene.budget(&account)?;
        (amount(&budget, "reserved") == 0 || broken.load(Ordering::Relaxed) > 0).then_some(budget)
    });
    assert!(amount(&budget, "settled") <= spent, "{budget}");
    println!(
        "| {number} | {} | {admitted} | {spent} | {:.1} % | {} | {} |",
        killed + 1,
        100.0 * spent as f64 / LIMIT as f64,
        denied.into_inner(),
        broken.into_inner()
    );
}

#[test]
fn three_gates_killed_in_turn_never_overspend() {
    let rounds = match std::env::var(ROUNDS) {
        Ok(rounds) => rounds.parse().expect("TOLLGATE_ROUNDS is a number"),
        Err(_) => USUAL_ROUNDS,
    };
    let scene = Scene::start("killed", &budget("0.01"));
    let mut gates: Vec<Gate> = (0..GATES)
        .map(|number| Gate::start(&scene, number))
        .collect();
    println!(
        "| round | gate killed | calls admitted | cost, nano-USD | of the limit | denied | broken off |"
    );
    println!("|---|---|---|---|---|---|---|");
    for number in 1..=rounds {
        round(&scene, &mut gates, number);
    }
}
