//! The filter in a real Envoy: as it is deployed, with one worker, at the case's own time.
//!
//! Each case has an Envoy of its own, since cells and tokens live as long as its process. Its wall clock stands still at the step's time; what a
//! gate does between calls is due by that clock, so it is put forward where a report or the end of a wait is what comes next.

use super::{
    Host, caller,
    case::{Answer, BundleState, Case, Seen, SeenUpstream, Step as Script},
    control_plane::{self, ControlPlane},
    native::Native,
    upstream::{self, Notices},
    wire::{self, Message, Server},
};
use crate::{Scratch, built, clock::Clock};
use anyhow::{Context as _, Result, bail};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tollgate_engine::{
    bundle::CLOCK_SKEW_SECS, exchange::LEASE_WAIT_MS, lease::Request, time::Time,
};
use xtask::{
    envoy::{Envoy, Run, Settings},
    process,
};

/// For anything that happens by itself.
const DEADLINE: Duration = Duration::from_secs(10);

/// The Envoy host.
#[derive(Debug, Default)]
pub struct InEnvoy;

impl Host for InEnvoy {
    fn name(&self) -> &'static str {
        "envoy"
    }

    fn run(&self, case: &Case) -> Result<Vec<Seen>> {
        // Says what there is to wait for. Whether it came is judged by what was seen, like everywhere else.
        let awaited = Native.run(case)?;
        let scene = Scene::start(case)?;
        let start = case.start()?;
        (1..)
            .zip(case.steps.iter().zip(&awaited))
            .map(|(number, (step, awaited))| {
                scene
                    .step(number, step, awaited, start.plus_secs(step.at))
                    .with_context(|| format!("step {number}"))
            })
            .collect()
    }
}

/// What the servers beside Envoy share with the script.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    clock: Clock,
}

struct State {
    now: Time,
    control_plane: ControlPlane,
    bundle: Option<Vec<u8>>,
    /// The bundle has been handed out.
    has_bundle: bool,
    greeted: bool,
    /// Answers that the control plane has given, but for refusals.
    given: u64,
    /// The latest that the clock has ever shown. Whatever a gate does every second is due a second after it at the latest.
    latest: Time,
    script: Option<Script>,
    reached: Option<SeenUpstream>,
    over: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_clock(&self, state: &mut State, now: Time) -> Result<()> {
        state.now = now;
        state.latest = state.latest.max(now);
        self.clock.set(now.micros().saturating_mul(1_000))
    }

    /// The control plane's side. A bundle request is held open when there is nothing new, as the real one does.
    fn control_plane(&self, request: &Message) -> Result<Vec<u8>> {
        let path = request.word(1);
        let mut state = self.state();
        if path.contains("/gate/bundle") {
            if let (Some(bundle), false) = (&state.bundle, state.has_bundle) {
                let bundle = wire::response(200, &[], bundle);
                state.has_bundle = true;
                state.given += 1;
                return Ok(bundle);
            }
            let _state = self.changed.wait_while(state, |state| !state.over);
            return Ok(wire::response(304, &[], b""));
        }
        let now = state.now;
        if path.ends_with("/gate/leases") {
            let asked: Request = serde_json::from_slice(&request.body)?;
            let down = state
                .script
                .as_ref()
                .is_some_and(|step| !step.control_plane);
            if down && asked.asks.iter().any(|ask| ask.want > 0) {
                // Nobody will answer: the wait is over.
                self.set_clock(&mut state, now.plus_millis(LEASE_WAIT_MS))?;
                return Ok(wire::response(503, &[], b""));
            }
            state.greeted = true;
        }
        let (status, body) = state.control_plane.answer(path, &request.body, now)?;
        state.given += u64::from(status == 200);
        Ok(wire::response(status, &[], &body))
    }

    /// The upstream's side.
    fn reached(&self, seen: SeenUpstream) -> Option<Answer> {
        let mut state = self.state();
        state.reached = Some(seen);
        Some(state.script.as_ref()?.answer.clone())
    }
}

/// An Envoy between two servers.
struct Scene {
    envoy: Envoy,
    shared: Arc<Shared>,
    _servers: [Server; 2],
    _scratch: Scratch,
}

impl Scene {
    fn start(case: &Case) -> Result<Scene> {
        let scratch = Scratch::new("corpus");
        let start = case.start()?;
        let (control_plane, bundle) = ControlPlane::with_bundle(case)?;
        let clock = Clock::new(scratch.path())?;
        let environment = clock.environment();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                now: start,
                control_plane,
                bundle,
                has_bundle: false,
                greeted: false,
                given: 0,
                latest: start,
                script: None,
                reached: None,
                over: false,
            }),
            changed: Condvar::new(),
            clock,
        });
        shared.set_clock(&mut shared.state(), start)?;
        let upstream = {
            let shared = Arc::clone(&shared);
            upstream::serve(Notices::AtOnce, move |seen| shared.reached(seen))?
        };
        let control_plane = {
            let shared = Arc::clone(&shared);
            control_plane::serve(move |request| shared.control_plane(request))?
        };
        let (settings, secrets) = control_plane::settings(case.upstream);
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let configuration = Settings {
            listen: loopback,
            admin: loopback,
            filter: built::filter().to_path_buf(),
            configuration: serde_json::from_str(&settings)?,
            upstream: upstream.address.into(),
            control_plane: control_plane.address.into(),
            access_log: scratch.path().join("access.log"),
        }
        .render()?;
        let run = Run {
            binary: built::envoy().to_path_buf(),
            folder: scratch.path().to_path_buf(),
            concurrency: 1,
            environment: environment
                .into_iter()
                .chain(
                    secrets
                        .into_iter()
                        .map(|(name, value)| (name.into(), value.into())),
                )
                .collect(),
        };
        let mut envoy = Envoy::start(&run, &configuration)?;
        if case.bundle != BundleState::Missing {
            envoy.wait_for_bundle(DEADLINE)?;
        }
        process::wait_until("the greeting", DEADLINE, || {
            shared.state().greeted.then_some(())
        })?;
        Ok(Scene {
            envoy,
            shared,
            _servers: [upstream, control_plane],
            _scratch: scratch,
        })
    }

    /// Step number `number` of the script, the first being 1.
    fn step(&self, number: u64, script: &Script, awaited: &Seen, now: Time) -> Result<Seen> {
        self.settle_down(now)?;
        let token = {
            let mut state = self.shared.state();
            state.script = Some(script.clone());
            state.reached = None;
            self.shared.set_clock(&mut state, now)?;
            state.control_plane.begin(script)?
        };
        let answer = caller::call(self.envoy.listen, script, token.as_deref(), awaited)?;
        let record = self.record(number)?;
        self.report(awaited)?;
        let mut state = self.shared.state();
        let upstream = state.reached.take();
        caller::seen(&answer, upstream, &record, &state.control_plane)
    }

    /// Before the clock is put far forward: an answer that is on its way would be too old to a gate then, and the pause after that never over.
    fn settle_down(&self, now: Time) -> Result<()> {
        if now.secs() - self.shared.state().now.secs() < CLOCK_SKEW_SECS {
            return Ok(());
        }
        let given = self.shared.state().given;
        process::wait_until("the gate to have its answers", DEADLINE, || {
            let taken = self.envoy.stat("cluster.control_plane.upstream_rq_200");
            (taken.ok().flatten()? >= given).then_some(())
        })
    }

    /// The one record of the call, and of `calls` so far.
    fn record(&self, calls: u64) -> Result<Vec<u8>> {
        // Delivered in the gate's eyes too: were the clock put forward before, and back for the next step, the next batch would never be due.
        process::wait_until("the record", DEADLINE, || {
            let delivered = self.envoy.stat("wasmcustom.tollgate_journal_delivered");
            (delivered.ok().flatten()? >= calls).then_some(())
        })
        .with_context(|| self.said())?;
        let mut records = self.shared.state().control_plane.take_records();
        match (records.pop(), records.len()) {
            (Some(record), 0) => Ok(record),
            (_, others) => bail!("{} records of one call", others + 1),
        }
    }

    /// What the gate says of itself: why something did not come.
    fn said(&self) -> String {
        let log = self.envoy.process.output().unwrap_or_default();
        let numbers = self.envoy.prometheus().unwrap_or_default();
        let own: Vec<&str> = numbers
            .lines()
            .filter(|line| line.starts_with("tollgate_"))
            .collect();
        format!("its log:\n{log}\nits numbers:\n{}", own.join("\n"))
    }

    /// Lets the gate report what was used.
    fn report(&self, awaited: &Seen) -> Result<()> {
        let mut state = self.shared.state();
        if state.control_plane.spent().0 == awaited.spent {
            return Ok(());
        }
        let due = state.latest.plus_secs(1);
        self.shared.set_clock(&mut state, due)?;
        drop(state);
        // Should it not come, the comparison says what came instead.
        let _ = process::wait_until("the report", DEADLINE, || {
            (self.shared.state().control_plane.spent().0 == awaited.spent).then_some(())
        });
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.changed.notify_all();
    }
}
