//! The Spin component in the stand-in for Spin, at the case's own time, on a fresh instance for every call.
//!
//! What one instance leaves in the key-value store the next one goes on with, so the whole ledger is under test. An instance is done when it has settled,
//! delivered and reported, or has given up; that is what is waited for.

use super::{
    Host, caller,
    case::{Case, Seen, SeenUpstream, Step as Script},
    control_plane::{self, ControlPlane},
    native::Native,
    upstream::{self, Notices},
    wire::{self, Message, Server},
};
use crate::{
    built,
    spin_host::{App, Clock, Reuse, SpinHost, Values},
};
use anyhow::{Context as _, Result, bail};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tollgate_engine::{exchange::LEASE_WAIT_MS, lease::Request, time::Time};
use xtask::process;

/// For anything that happens by itself.
const DEADLINE: Duration = Duration::from_secs(20);

/// The Spin host.
#[derive(Debug, Default)]
pub struct InSpin;

impl Host for InSpin {
    fn name(&self) -> &'static str {
        "spin"
    }

    fn skipped(&self) -> &'static [(&'static str, &'static str)] {
        SKIPPED
    }

    fn run(&self, case: &Case) -> Result<Vec<Seen>> {
        // Says what there is to wait for. Whether it came is judged by what was seen, like everywhere else.
        let awaited = Native.run(case)?;
        let scene = Scene::start(case)?;
        let start = case.start()?;
        let steps = case.steps.iter().zip(&awaited);
        (1..)
            .zip(steps)
            .map(|(number, (step, awaited))| {
                scene
                    .step(step, awaited, start.plus_secs(step.at))
                    .with_context(|| format!("step {number}: the gate says: {}", scene.gate.log()))
            })
            .collect()
    }
}

/// Cases that come out differently on fresh instances, by the beginning of their names.
const SKIPPED: &[(&str, &str)] = &[(
    "bundle/expired",
    "an instance that starts with an expired bundle does not run it, and denies with bundle.missing",
)];

/// What the servers beside the gate share with the script.
struct Shared {
    state: Mutex<State>,
    clock: Clock,
}

struct State {
    now: Time,
    control_plane: ControlPlane,
    bundle: Option<Vec<u8>>,
    script: Option<Script>,
    reached: Option<SeenUpstream>,
    records: Vec<Vec<u8>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_clock(&self, state: &mut State, now: Time) {
        state.now = now;
        self.clock.set(now);
    }

    fn control_plane(&self, request: &Message) -> Result<Vec<u8>> {
        let path = request.word(1);
        let mut state = self.state();
        if path.contains("/gate/bundle") {
            return Ok(match &state.bundle {
                Some(bundle) if request.header("if-none-match").is_none() => {
                    wire::response(200, &[], bundle)
                }
                _ => wire::response(304, &[], b""),
            });
        }
        let now = state.now;
        if path.ends_with("/gate/leases") {
            let asked: Request = serde_json::from_slice(&request.body)?;
            let script = state.script.as_ref();
            let down = script.is_some_and(|step| !step.control_plane);
            if down && asked.asks.iter().any(|ask| ask.want > 0) {
                // Nobody will answer: the wait is over.
                self.set_clock(&mut state, now.plus_millis(LEASE_WAIT_MS));
                return Ok(wire::response(503, &[], b""));
            }
        }
        let (status, body) = state.control_plane.answer(path, &request.body, now)?;
        let records = state.control_plane.take_records();
        state.records.extend(records);
        Ok(wire::response(status, &[], &body))
    }
}

/// A gate between two servers.
struct Scene {
    gate: SpinHost,
    shared: Arc<Shared>,
    _servers: [Server; 2],
}

impl Scene {
    fn start(case: &Case) -> Result<Scene> {
        let start = case.start()?;
        let (control_plane, bundle) = ControlPlane::with_bundle(case)?;
        let clock = Clock::default();
        clock.set(start);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                now: start,
                control_plane,
                bundle,
                script: None,
                reached: None,
                records: Vec::new(),
            }),
            clock: clock.clone(),
        });
        let upstream = {
            let shared = Arc::clone(&shared);
            upstream::serve(Notices::AtOnce, move |seen| {
                let mut state = shared.state();
                state.reached = Some(seen);
                Some(state.script.as_ref()?.answer.clone())
            })?
        };
        let control_plane = {
            let shared = Arc::clone(&shared);
            control_plane::serve(move |request| shared.control_plane(request))?
        };
        let hosts = [&upstream, &control_plane].map(|server| format!("http://{}", server.address));
        let (settings, secrets) = control_plane::settings(case.upstream);
        let mut variables = vec![
            ("gate".to_string(), settings),
            ("upstream".to_string(), hosts[0].clone()),
            ("control_plane".to_string(), hosts[1].clone()),
        ];
        let secrets = secrets.into_iter();
        variables.extend(secrets.map(|(name, value)| (name.to_lowercase(), value)));
        let app = App {
            variables: variables.into_iter().collect(),
            allowed_outbound_hosts: hosts.to_vec(),
            values: Values::default(),
            reuse: Reuse::NEVER,
            clock,
            optimised: false,
        };
        Ok(Scene {
            gate: SpinHost::start(built::spin(), app)?,
            shared,
            _servers: [upstream, control_plane],
        })
    }

    fn step(&self, script: &Script, awaited: &Seen, now: Time) -> Result<Seen> {
        let token = {
            let mut state = self.shared.state();
            state.script = Some(script.clone());
            state.reached = None;
            self.shared.set_clock(&mut state, now);
            state.control_plane.begin(script)?
        };
        let answer = caller::call(self.gate.listen, script, token.as_deref(), awaited)?;
        self.finish(awaited)?;
        let mut state = self.shared.state();
        let mut records = std::mem::take(&mut state.records);
        let (Some(record), true) = (records.pop(), records.is_empty()) else {
            bail!("not one record of one call");
        };
        let upstream = state.reached.take();
        caller::seen(&answer, upstream, &record, &state.control_plane)
    }

    /// Until the instance has done all that it will.
    fn finish(&self, awaited: &Seen) -> Result<()> {
        let mut put_forward = false;
        process::wait_until("the instance to end", DEADLINE, || {
            let mut state = self.shared.state();
            let recorded = !state.records.is_empty();
            if recorded && !put_forward && state.control_plane.spent().0 != awaited.spent {
                // A report is due a second after what it would follow.
                put_forward = true;
                let due = state.now.plus_secs(1);
                self.shared.set_clock(&mut state, due);
            }
            (self.gate.running() == 0).then_some(())
        })
    }
}
