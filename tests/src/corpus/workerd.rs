//! The Cloudflare Worker in a real workerd, at the case's own time.
//!
//! Each case has a storage of its own, and a wall clock that stands still at the step's time. The object's alarm goes by it too, and brings records and
//! reports: after each step the clock is put forward until they have come. In a Durable Object time never goes back; a step that lies before where the
//! clock has come to is for a new workerd, which goes on with what it finds in its storage.

use super::{
    Host, caller,
    case::{Case, Seen, SeenUpstream, Step as Script},
    control_plane::{self, ControlPlane},
    native::Native,
    upstream::{self, Notices},
    wire::{self, Message, Server},
};
use crate::{Scratch, built, clock::Clock};
use anyhow::{Context as _, Result, bail};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tollgate_engine::{exchange::LEASE_WAIT_MS, lease::Request, time::Time};
use xtask::{
    process,
    workerd::{Run, Workerd},
};

/// What an alarm brings comes in this time, or not in this round. workerd looks at the clock again after the time that an alarm was set for, which is a
/// second at most; the rest is for a machine that has other things to do.
const ROUND: Duration = Duration::from_secs(4);
/// The errands of a round are under way so soon after its first.
const ERRANDS: Duration = Duration::from_millis(300);
/// How often the clock is put forward before what has not come is given up: once for the greeting, once for what came of the call, and spares.
const ROUNDS: usize = 6;
/// Errands are due again a second after they were done.
const DUE_SECS: i64 = 2;
/// How often a case is begun anew because the machine did not keep up.
const TRIES: usize = 3;
/// What the gate says of an answer that did not come in time, and of one that it had read and not looked at when the clock went on: it is too old then.
const GIVEN_UP: [&str; 2] = [
    "no answer from the control plane",
    "the control plane's answer is not one to act on",
];

/// The workerd host.
#[derive(Debug, Default)]
pub struct InWorkerd;

impl Host for InWorkerd {
    fn name(&self) -> &'static str {
        "workerd"
    }

    fn skipped(&self) -> &'static [(&'static str, &'static str)] {
        SKIPPED
    }

    fn run(&self, case: &Case) -> Result<Vec<Seen>> {
        // Says what there is to wait for. Whether it came is judged by what was seen, like everywhere else.
        let awaited = Native.run(case)?;
        let mut seen = run(case, &awaited)?;
        for _ in 1..TRIES {
            let Err(GivenUp(log)) = seen else { break };
            eprintln!("{} on workerd is begun anew: {log}", case.name);
            seen = run(case, &awaited)?;
        }
        seen.map_err(|GivenUp(log)| anyhow::anyhow!("no answer: {log}"))
    }
}

/// A call was not answered, after the gate had given up an answer of the control plane's. For that it waits a second, as time really goes; a machine that is
/// so busy has it give up rightly. It would ask again after a pause, but that goes by the clock, which stands still here. So there is nothing to be
/// seen of the case. Holds what the gate has logged.
struct GivenUp(String);

fn run(case: &Case, awaited: &[Seen]) -> Result<Result<Vec<Seen>, GivenUp>> {
    let mut scene = Scene::new(case)?;
    let start = case.start()?;
    let seen = (1..)
        .zip(case.steps.iter().zip(awaited))
        .map(|(number, (step, awaited))| {
            scene
                .step(step, awaited, start.plus_secs(step.at))
                .with_context(|| format!("step {number}: {}", scene.log()))
        })
        .collect::<Result<Vec<_>>>();
    match seen {
        Err(error)
            if scene.unanswered && GIVEN_UP.iter().any(|said| scene.log().contains(said)) =>
        {
            Ok(Err(GivenUp(format!("{error:#}"))))
        }
        seen => seen.map(Ok),
    }
}

/// Cases that cannot get through workerd to the worker, by the beginning of their names.
const SKIPPED: &[(&str, &str)] = &[
    (
        "bundle/expired",
        "its second step needs another workerd, and a gate that starts with an expired bundle does not run it: it denies with bundle.missing",
    ),
    (
        "network/denylist",
        "a host in a spelling that fetch would write otherwise is denied there before any policy is asked: with request.host",
    ),
];

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
    /// How often the gate has asked for a bundle. It does so in every round.
    rounds: usize,
    /// How many of its requests the gate has not heard the end of.
    errands: usize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_clock(&self, state: &mut State, now: Time) -> Result<()> {
        state.now = now;
        self.clock.set(now.micros().saturating_mul(1_000))
    }

    fn control_plane(&self, request: &Message) -> Result<Vec<u8>> {
        let path = request.word(1);
        let mut state = self.state();
        if path.contains("/gate/bundle") {
            state.rounds += 1;
            return Ok(match (&state.bundle, request.header("if-none-match")) {
                (Some(bundle), None) => wire::response(200, &[], bundle),
                (Some(_), Some(_)) => wire::response(304, &[], b""),
                (None, _) => wire::response(404, &[], b""),
            });
        }
        let now = state.now;
        let script = state.script.as_ref();
        let down = script.is_some_and(|step| !step.control_plane);
        if path.ends_with("/gate/leases") {
            let asked: Request = serde_json::from_slice(&request.body)?;
            if down && asked.asks.iter().any(|ask| ask.want > 0) {
                // Nobody will answer: the wait is over.
                self.set_clock(&mut state, now.plus_millis(LEASE_WAIT_MS))?;
                return Ok(wire::response(503, &[], b""));
            }
        }
        let (status, body) = state.control_plane.answer(path, &request.body, now)?;
        Ok(wire::response(status, &[], &body))
    }
}

/// What a workerd stands between.
struct Scene {
    run: Run,
    workerd: Option<Workerd>,
    /// The last call has no answer.
    unanswered: bool,
    shared: Arc<Shared>,
    _servers: [Server; 2],
    _scratch: Scratch,
}

impl Scene {
    fn new(case: &Case) -> Result<Scene> {
        let scratch = Scratch::new("corpus-workerd");
        let start = case.start()?;
        let (control_plane, bundle) = ControlPlane::with_bundle(case)?;
        let clock = Clock::new(scratch.path())?;
        let environment = clock.environment();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                now: start,
                control_plane,
                bundle,
                script: None,
                reached: None,
                rounds: 0,
                errands: 0,
            }),
            clock,
        });
        shared.set_clock(&mut shared.state(), start)?;
        let upstream = {
            let shared = Arc::clone(&shared);
            upstream::serve(Notices::OnWriting, move |mut seen| {
                // What nobody asked for is asked for in so many words: Cloudflare would ask for more.
                seen.accept_encoding = seen.accept_encoding.filter(|asked| asked != "identity");
                let mut state = shared.state();
                state.reached = Some(seen);
                Some(state.script.as_ref()?.answer.clone())
            })?
        };
        let control_plane = {
            let shared = Arc::clone(&shared);
            Server::start(move |request, stream| {
                shared.state().errands += 1;
                let response = control_plane::response(shared.control_plane(&request));
                // It hangs up when it has read it, and before if it has ended.
                let _ = stream
                    .write_all(&response)
                    .and_then(|()| stream.set_read_timeout(Some(ROUND)))
                    .and_then(|()| stream.read_to_end(&mut Vec::new()));
                shared.state().errands -= 1;
            })?
        };
        let (settings, secrets) = control_plane::settings(case.upstream);
        let run = Run {
            binary: built::workerd().to_path_buf(),
            worker: built::cloudflare().to_path_buf(),
            folder: scratch.path().to_path_buf(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            gate: serde_json::from_str(&settings)?,
            upstream: upstream.address.into(),
            control_plane: control_plane.address.into(),
            bundles: None,
            pass_through: false,
            environment: environment
                .into_iter()
                .chain(
                    secrets
                        .into_iter()
                        .map(|(name, value)| (name.into(), value.into())),
                )
                .collect(),
        };
        Ok(Scene {
            run,
            workerd: None,
            unanswered: false,
            shared,
            _servers: [upstream, control_plane],
            _scratch: scratch,
        })
    }

    fn step(&mut self, script: &Script, awaited: &Seen, now: Time) -> Result<Seen> {
        if self.workerd.is_some() && now < self.shared.state().now {
            // Of one that ends while it is busy the next says on record that calls may be lost: it is let come to rest first.
            self.another_round()?;
            self.another_round()?;
            self.workerd = None;
        }
        let token = {
            let mut state = self.at_rest();
            state.script = Some(script.clone());
            state.reached = None;
            self.shared.set_clock(&mut state, now)?;
            state.control_plane.begin(script)?
        };
        let workerd = match self.workerd.take() {
            Some(workerd) => workerd,
            None => Workerd::start(&self.run)?,
        };
        let listen = self.workerd.insert(workerd).listen;
        self.unanswered = true;
        let answer = caller::call(listen, script, token.as_deref(), awaited)?;
        self.unanswered = false;
        let record = self.outcome(awaited)?;
        let mut state = self.shared.state();
        let upstream = state.reached.take();
        caller::seen(&answer, upstream, &record, &state.control_plane)
    }

    /// What the gate says.
    fn log(&self) -> String {
        let workerd = self.workerd.as_ref();
        let log = workerd.and_then(|workerd| workerd.process.output().ok());
        log.unwrap_or_default()
    }

    /// The one record of the call, after what was used has been reported.
    fn outcome(&self, awaited: &Seen) -> Result<Vec<u8>> {
        let mut records = Vec::new();
        for _ in 0..ROUNDS {
            let rounds = self.next_round()?;
            let (mut come, mut begun) = (false, None);
            // A round that brings nothing is followed by another, and so is one that does not come.
            let _ = process::wait_until("a round", ROUND, || {
                let mut state = self.shared.state();
                records.extend(state.control_plane.take_records());
                come = !records.is_empty() && state.control_plane.spent().0 == awaited.spent;
                if state.rounds > rounds {
                    begun.get_or_insert_with(Instant::now);
                }
                let over = begun.is_some_and(|begun: Instant| begun.elapsed() > ERRANDS);
                (come || over).then_some(())
            });
            if come {
                break;
            }
        }
        match (records.pop(), records.len()) {
            (Some(record), 0) => Ok(record),
            (None, _) => bail!("no record of the call"),
            (Some(last), _) => {
                records.push(last);
                let records: Vec<_> = records
                    .iter()
                    .map(|line| String::from_utf8_lossy(line))
                    .collect();
                bail!(
                    "these are the records of one call: {}",
                    records.join(" and ")
                )
            }
        }
    }

    /// What the gate was told in one round it has stored when it begins the next. When it begins none it has nothing left to do.
    fn another_round(&self) -> Result<()> {
        let rounds = self.next_round()?;
        let _ = process::wait_until("another round", ROUND, || {
            (self.shared.state().rounds > rounds).then_some(())
        });
        Ok(())
    }

    /// A clock that is put forward ends the gate's timers, and with them the wait for an answer that is on its way.
    /// So this comes back when none is, and while it is held none comes.
    fn at_rest(&self) -> MutexGuard<'_, State> {
        let told = || Some(self.shared.state()).filter(|state| state.errands == 0);
        process::wait_until("the gate to have been told", ROUND, told)
            .unwrap_or_else(|_| self.shared.state())
    }

    /// Puts the clock forward to where a round is due. Gives how many there were.
    fn next_round(&self) -> Result<usize> {
        let mut state = self.at_rest();
        let due = state.now.plus_secs(DUE_SECS);
        self.shared.set_clock(&mut state, due)?;
        Ok(state.rounds)
    }
}
