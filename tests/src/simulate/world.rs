//! Time, the network, the weather: everything that happens happens here, one event after the other, in the order the dice give.

use super::{
    Mutation, Options, Outcome,
    auditor::{Auditor, Promise},
    dice::Dice,
    plane::{AGENTS, ENROLMENT_KEY, MODEL, Memory, Plane, WORKSPACE},
    process::{Answered, CallSpec, Process, Worker},
    real::Real,
    scenario::{Fault, Limits, Scenario},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};
use tollgate_engine::{
    decide::{Cause, Charge, Reason},
    gate::Config,
    ledger::Unit,
    time::Time,
    upkeep::{Errand, Kind, RECALL},
};

const MS: i64 = 1_000;
const SEC: i64 = 1_000 * MS;

/// Lines of the trace that are kept.
const TRACE_LINES: usize = 20_000;
/// Steps of one run; one that takes more is stuck.
const MAX_STEPS: u64 = 2_000_000;
/// How long the control plane holds a request for a bundle that has not changed.
const LONG_POLL_US: i64 = 25 * SEC;
/// Clocks are at most so far off once things have calmed down: gates take no answer that is five minutes old.
const CALM_SKEW_US: i64 = 240 * SEC;
/// Calls that a probe makes of one agent at most.
const MAX_PROBES: u64 = 120;

/// Where an answer goes.
#[derive(Clone, Copy, Debug)]
struct Sender {
    gate: usize,
    worker: u64,
    token: u64,
}

enum Event {
    Run(Rc<Worker>),
    Tick(Rc<Worker>, u64),
    Call(usize, CallSpec),
    Upstream(Rc<Worker>, u64),
    ClientLeaves(Rc<Worker>, u64, u64),
    AtPlane(Sender, Errand),
    AtGate(Sender, u16, Vec<u8>),
    Weather,
    StartGate(usize),
    StartPlane,
}

/// Everything of one run.
pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) mutation: Option<Mutation>,
    pub(super) auditor: RefCell<Auditor>,
    dice: RefCell<Dice>,
    now_us: Cell<i64>,
    ids: Cell<u64>,
    events: RefCell<BTreeMap<(i64, u64), Event>>,
    /// Requests for a bundle that the control plane holds, and when it would answer them.
    held: RefCell<Vec<(Sender, (i64, u64))>>,
    plane: RefCell<Box<dyn Plane>>,
    plane_up: Cell<bool>,
    plane_skew_us: Cell<i64>,
    /// After a restore: when the control plane's clock shows this it grants again.
    learning_until_ms: Cell<Option<i64>>,
    config: Config,
    tokens: Vec<String>,
    processes: Vec<Rc<Process>>,
    limits: Cell<Limits>,
    calm: Cell<bool>,
    probing: Cell<bool>,
    faults: Cell<u64>,
    allowed: Cell<u64>,
    denied: Cell<u64>,
    waited: Cell<u64>,
    /// How the last probe ended.
    probed: Cell<Option<bool>>,
    trace: Option<RefCell<VecDeque<String>>>,
    seen_enough: Cell<bool>,
}

impl World {
    /// Runs a scenario to its end.
    pub(super) fn run(scenario: &Scenario, options: &Options) -> Outcome {
        let world = World::new(scenario, options);
        world.begin();
        world.go_until(scenario.start_secs * SEC + scenario.storm_secs * SEC);
        world.calm_down();
        world.finish()
    }

    fn new(scenario: &Scenario, options: &Options) -> Rc<World> {
        let start = Time::from_secs(scenario.start_secs);
        let mut plane: Box<dyn Plane> = match options.database {
            true => Box::new(Real::new(scenario.term_secs, start)),
            false => Box::new(Memory::new(scenario.term_secs, options.mutation)),
        };
        plane.publish(&scenario.limits, start);
        let settings = serde_json::json!({
            "workspace": WORKSPACE,
            "trust": plane.trust(),
            "enrolment_key": "env:ENROLMENT_KEY",
            "upstream": {"host": "api.openai.com", "llm": true},
        });
        let config = Config::read(settings.to_string().as_bytes(), |_| {
            Some(ENROLMENT_KEY.to_owned())
        })
        .unwrap_or_else(|error| panic!("{error}"));
        let tokens = AGENTS
            .iter()
            .map(|(agent, team)| plane.token(agent, team, start))
            .collect();
        Rc::new(World {
            mutation: options.mutation,
            auditor: RefCell::new(Auditor::new(scenario.limits)),
            // Not the numbers that made the scenario.
            dice: RefCell::new(Dice::new(scenario.seed ^ 0x5EED)),
            now_us: Cell::new(scenario.start_secs * SEC),
            ids: Cell::new(0),
            events: RefCell::default(),
            held: RefCell::default(),
            plane: RefCell::new(plane),
            plane_up: Cell::new(true),
            plane_skew_us: Cell::new(0),
            learning_until_ms: Cell::new(None),
            config,
            tokens,
            processes: (0..scenario.gates)
                .map(|number| Rc::new(Process::new(number)))
                .collect(),
            limits: Cell::new(scenario.limits),
            calm: Cell::new(false),
            probing: Cell::new(false),
            faults: Cell::new(0),
            allowed: Cell::new(0),
            denied: Cell::new(0),
            waited: Cell::new(0),
            probed: Cell::new(None),
            trace: options.trace.then(RefCell::default),
            seen_enough: Cell::new(false),
            scenario: scenario.clone(),
        })
    }

    // What workers need of it.

    pub(super) fn now_us(&self) -> i64 {
        self.now_us.get()
    }

    pub(super) fn next_id(&self) -> u64 {
        self.ids.set(self.ids.get() + 1);
        self.ids.get()
    }

    pub(super) fn bits(&self) -> u64 {
        self.dice.borrow_mut().bits()
    }

    pub(super) fn entropy(&self) -> u128 {
        (u128::from(self.bits()) << 64) | u128::from(self.bits())
    }

    pub(super) fn token(&self, agent: usize) -> &str {
        &self.tokens[agent]
    }

    fn roll<R>(&self, roll: impl FnOnce(&mut Dice) -> R) -> R {
        roll(&mut self.dice.borrow_mut())
    }

    /// Has something happen later, and gives its place among all that happens.
    fn at(&self, after_us: i64, event: Event) -> (i64, u64) {
        let key = (self.now_us.get() + after_us.max(0), self.next_id());
        self.events.borrow_mut().insert(key, event);
        key
    }

    pub(super) fn run_soon(&self, worker: &Rc<Worker>) {
        let after = self.roll(|dice| dice.between(1, 30));
        self.at(after, Event::Run(Rc::clone(worker)));
    }

    pub(super) fn tick_at(&self, worker: &Rc<Worker>, number: u64, after_ms: i64) {
        self.at(after_ms * MS, Event::Tick(Rc::clone(worker), number));
    }

    fn note(&self, line: impl FnOnce() -> String) {
        let Some(trace) = &self.trace else { return };
        if self.seen_enough.get() {
            return;
        }
        let mut trace = trace.borrow_mut();
        if trace.len() == TRACE_LINES {
            trace.pop_front();
        }
        let since_ms = self.now_us.get() / MS - self.scenario.start_secs * 1_000;
        trace.push_back(format!("{since_ms:>8} ms  {}", line()));
    }

    /// Whether this goes wrong now, so many times in a thousand.
    fn strikes(&self, fault: Fault, per_mille: u64) -> bool {
        let strikes = self.roll(|dice| dice.chance(per_mille));
        let strikes = strikes && !self.calm.get() && self.scenario.has(fault);
        if strikes {
            self.faults.set(self.faults.get() + 1);
        }
        strikes
    }

    // The network.

    /// How long a message takes.
    fn passage_us(&self) -> i64 {
        let late = self.strikes(Fault::Delay, self.scenario.delays);
        self.roll(|dice| match late {
            false => dice.between(MS, 15 * MS),
            true if dice.chance(200) => dice.between(SEC, 20 * SEC),
            true => dice.between(15 * MS, 3 * SEC),
        })
    }

    pub(super) fn send(&self, gate: usize, worker: u64, token: u64, errand: Errand) {
        let sender = Sender {
            gate,
            worker,
            token,
        };
        // The host's own answer when none comes.
        self.at(errand.timeout_ms * MS, Event::AtGate(sender, 0, Vec::new()));
        if self.processes[gate].cut_off_until_us.get() > self.now_us.get() {
            return;
        }
        if self.strikes(Fault::Loss, self.scenario.loss) {
            self.note(|| format!("gate {gate}: a request ({:?}) is lost", errand.kind));
            return;
        }
        if self.strikes(Fault::Duplicate, self.scenario.duplicates) {
            self.at(
                self.passage_us() * 2,
                Event::AtPlane(sender, errand.clone()),
            );
        }
        self.at(self.passage_us(), Event::AtPlane(sender, errand));
    }

    fn plane_now(&self) -> Time {
        Time::from_micros(self.now_us.get() + self.plane_skew_us.get())
    }

    fn at_plane(&self, sender: Sender, errand: &Errand) {
        if !self.plane_up.get() {
            return;
        }
        if self.strikes(Fault::PlaneCrash, 2) {
            self.note(|| "the control plane dies before it commits".to_owned());
            self.kill_plane();
            return;
        }
        let now = self.plane_now();
        let learning = self.learning_until_ms.get();
        if learning.is_some_and(|until_ms| until_ms <= now.millis()) {
            self.learning_until_ms.set(None);
            self.auditor.borrow_mut().learned();
        }
        let (status, body) = self.plane.borrow_mut().answer(errand, now);
        self.committed(sender, errand, status, &body);
        if self.plane.borrow_mut().recalled() {
            self.note(|| "gates are asked for what they do not use".to_owned());
            self.recall();
        }
        if self.strikes(Fault::PlaneCrash, 2) {
            self.note(|| "…and dies before it answers".to_owned());
            self.kill_plane();
            return;
        }
        if self.strikes(Fault::Loss, self.scenario.loss) {
            self.note(|| format!("the answer to gate {} is lost", sender.gate));
            return;
        }
        let is_held = errand.kind == Kind::Bundle && status == 304;
        let after = if is_held { LONG_POLL_US } else { 0 } + self.passage_us();
        let when = self.at(after, Event::AtGate(sender, status, body));
        if is_held {
            self.held.borrow_mut().push((sender, when));
        }
    }

    /// Answers every request for a bundle that is held.
    fn recall(&self) {
        for (sender, when) in self.held.take() {
            let answer = self.events.borrow_mut().remove(&when);
            if answer.is_some() && !self.strikes(Fault::Loss, self.scenario.loss) {
                let asked = Event::AtGate(sender, RECALL, Vec::new());
                self.at(self.passage_us(), asked);
            }
        }
    }

    /// Tells the auditor what the control plane just did, whoever will hear of it.
    fn committed(&self, sender: Sender, errand: &Errand, status: u16, body: &[u8]) {
        let gate = sender.gate;
        let mut auditor = self.auditor.borrow_mut();
        match errand.kind {
            Kind::Bundle => {}
            Kind::Journal => {
                self.note(|| format!("gate {gate}: a batch is answered with {status}"));
                if status == 200 {
                    auditor.acknowledged(&errand.body);
                }
            }
            Kind::Leases => {
                let Ok(request) = serde_json::from_slice(&errand.body) else {
                    return;
                };
                let answer = super::plane::read_answer(body);
                self.note(|| lease_line(gate, &request, status, answer.as_ref()));
                if let Some(answer) = answer {
                    auditor.leased(&request, &answer);
                }
            }
        }
    }

    fn at_gate(&self, sender: Sender, status: u16, body: Vec<u8>) {
        let process = &self.processes[sender.gate];
        if status != 0 && process.cut_off_until_us.get() > self.now_us.get() {
            return;
        }
        let worker = process
            .workers
            .borrow()
            .iter()
            .find(|worker| worker.id == sender.worker)
            .cloned();
        if let Some(worker) = worker {
            worker.answered(sender.token, status, body);
        }
    }

    // The provider.

    pub(super) fn forwarded(&self, worker: &Rc<Worker>, spec: &CallSpec, charges: &[Charge]) {
        self.note(|| format!("gate {}: call {} goes out", worker.process.number, spec.id));
        self.auditor.borrow_mut().forwarded(spec.id, charges);
        self.at(spec.takes_us, Event::Upstream(Rc::clone(worker), spec.id));
    }

    /// The provider bills a call.
    pub(super) fn billed(&self, spec: &CallSpec, output_tokens: u64) {
        let (input, output) = match spec.answer {
            Answered::Error => (0, 0),
            Answered::Json | Answered::Stream | Answered::Broken => {
                (spec.prompt_tokens, output_tokens)
            }
        };
        self.auditor
            .borrow_mut()
            .billed(spec.id, |charge| match charge.account.unit {
                Unit::Calls => charge.amount,
                Unit::Tokens => input + output,
                Unit::NanoUsd => input * 150 + output * 600,
                Unit::Errors | Unit::Seconds | Unit::Goals | Unit::Approvals => 0,
            });
    }

    /// A call waits for the control plane, for the first time.
    pub(super) fn waits(&self) {
        self.waited.set(self.waited.get() + 1);
    }

    pub(super) fn allowed(&self, _: &CallSpec) {
        self.allowed.set(self.allowed.get() + 1);
        self.probed.set(Some(true));
    }

    pub(super) fn denied(
        &self,
        worker: &Worker,
        spec: &CallSpec,
        reasons: &[Reason],
        charges: &[Charge],
    ) {
        self.denied.set(self.denied.get() + 1);
        self.probed.set(Some(false));
        let gate = worker.process.number;
        let Some(reason) = reasons.first() else {
            return;
        };
        self.note(|| {
            format!(
                "gate {gate}: call {} is denied: {}: {}",
                spec.id, reason.rule, reason.message
            )
        });
        let charge = charges.iter().find(|charge| {
            charge.rule == reason.rule && Some(&charge.document) == reason.document.as_ref()
        });
        if let (Cause::Budget, Some(charge)) = (reason.cause, charge) {
            self.auditor.borrow_mut().refused_by(charge);
        }
        if !self.probing.get() {
            return;
        }
        match (reason.cause, charge) {
            (Cause::Rate | Cause::Budget, Some(charge)) => self.was_used_up(gate, spec.id, charge),
            // More than the whole limit.
            (Cause::Rate | Cause::Budget, None) => {}
            _ => {
                let what = format!("call {}: {}: {}", spec.id, reason.rule, reason.message);
                self.auditor.borrow_mut().broken(Promise::Served, what);
            }
        }
    }

    /// Things are calm, and a call was refused for want of budget: there must be none left.
    fn was_used_up(&self, gate: usize, call: u64, charge: &Charge) {
        let living: BTreeSet<(String, u64)> = self
            .processes
            .iter()
            .filter_map(|process| process.holder())
            .map(|holder| (holder.id, holder.epoch))
            .collect();
        let mut auditor = self.auditor.borrow_mut();
        let left = auditor.left(&charge.account, charge.span.start, &living);
        if left >= charge.amount {
            let shares = auditor.shares(&charge.account, charge.span.start);
            let what = format!(
                "call {call} at gate {gate} needed {} of {}, and {left} of {} were left:{shares}",
                charge.amount, charge.account, charge.limit
            );
            auditor.broken(Promise::NoStarvation, what);
        }
    }

    // Faults.

    fn kill_plane(&self) {
        self.plane_up.set(false);
        let down = self.roll(|dice| dice.between(100 * MS, 15 * SEC));
        self.at(down, Event::StartPlane);
    }

    fn kill_gate(self: &Rc<Self>, gate: usize) {
        for spec in self.processes[gate].kill(self) {
            self.bill_lost(&spec);
        }
        let down = self.roll(|dice| dice.between(0, 8 * SEC));
        self.at(down, Event::StartGate(gate));
    }

    /// The gate is gone; the provider bills what it has done until it noticed.
    fn bill_lost(&self, spec: &CallSpec) {
        let output = self.roll(|dice| dice.below(spec.output_tokens + 1));
        self.billed(spec, output);
    }

    fn weather(self: &Rc<Self>) {
        if self.calm.get() {
            return;
        }
        let every = self.scenario.fault_every_ms * MS;
        let next = self.roll(|dice| dice.between(every / 4, every * 7 / 4));
        self.at(next, Event::Weather);
        let fault = self.roll(|dice| {
            *dice.pick(&[
                Fault::Partition,
                Fault::GateCrash,
                Fault::WorkerCrash,
                Fault::PlaneCrash,
                Fault::Restore,
                Fault::Clock,
                Fault::Policy,
            ])
        });
        let gates = self.processes.len() as u64;
        let gate = usize::try_from(self.roll(|dice| dice.below(gates))).unwrap_or(0);
        if !self.strikes(fault, 1_000) {
            return;
        }
        let process = &self.processes[gate];
        match fault {
            Fault::Partition => {
                let until = self.now_us.get() + self.roll(|dice| dice.between(SEC, 40 * SEC));
                process.cut_off_until_us.set(until);
                self.note(|| format!("gate {gate} is cut off"));
            }
            Fault::GateCrash => {
                if process.is_up() {
                    self.note(|| format!("gate {gate} dies"));
                    self.kill_gate(gate);
                }
            }
            Fault::WorkerCrash => {
                if process.is_up() {
                    let index = usize::try_from(self.roll(|dice| dice.below(2))).unwrap_or(0);
                    self.note(|| format!("worker {index} of gate {gate} dies"));
                    for spec in process.kill_worker(index, self, &self.config) {
                        self.bill_lost(&spec);
                    }
                }
            }
            Fault::PlaneCrash => {
                if self.plane_up.get() {
                    self.note(|| "the control plane dies".to_owned());
                    self.kill_plane();
                }
            }
            Fault::Restore => self.restore_or_back_up(),
            Fault::Clock => {
                let skew = self.roll(|dice| match dice.below(10) {
                    0 => dice.between(-900 * SEC, 900 * SEC),
                    1..5 => dice.between(-200 * SEC, 200 * SEC),
                    _ => dice.between(-5 * SEC, 5 * SEC),
                });
                if self.roll(|dice| dice.chance(150)) {
                    let skew = skew.clamp(-CALM_SKEW_US, CALM_SKEW_US) / 10;
                    self.note(|| format!("the control plane's clock is {} ms off", skew / MS));
                    self.plane_skew_us.set(skew);
                } else {
                    self.note(|| format!("the clock of gate {gate} is {} ms off", skew / MS));
                    self.set_clock(gate, skew);
                }
            }
            Fault::Policy => {
                let limits = self.roll(|dice| self.scenario.limits.changed(dice));
                self.note(|| format!("new limits: {limits:?}"));
                self.limits.set(limits);
                self.plane.borrow_mut().publish(&limits, self.plane_now());
                self.auditor.borrow_mut().limits_changed(limits);
            }
            Fault::Loss
            | Fault::Duplicate
            | Fault::Delay
            | Fault::ClientLeaves
            | Fault::Upstream => {}
        }
    }

    fn set_clock(&self, gate: usize, skew_us: i64) {
        let process = &self.processes[gate];
        if skew_us < process.skew_us.replace(skew_us) {
            process.was_set_back.set(true);
        }
    }

    fn restore_or_back_up(&self) {
        let mut plane = self.plane.borrow_mut();
        if self.roll(|dice| dice.chance(500)) {
            self.note(|| "a backup is made".to_owned());
            plane.back_up();
            self.auditor.borrow_mut().backed_up();
            return;
        }
        let Some(learning_ms) = plane.restore(self.plane_now()) else {
            return;
        };
        self.note(|| "the control plane starts again from its backup".to_owned());
        self.plane_up.set(true);
        self.auditor.borrow_mut().restored();
        let until_ms = self.plane_now().millis() + learning_ms;
        self.learning_until_ms.set(Some(until_ms));
    }

    // The course of a run.

    fn begin(self: &Rc<Self>) {
        for gate in 0..self.processes.len() {
            let after = self.roll(|dice| dice.between(0, 2 * SEC));
            self.at(after, Event::StartGate(gate));
            if self.scenario.has(Fault::Clock) && self.roll(|dice| dice.chance(300)) {
                let skew = self.roll(|dice| dice.between(-60 * SEC, 60 * SEC));
                self.processes[gate].skew_us.set(skew);
            }
        }
        let mut when = SEC;
        let mean =
            self.scenario.storm_secs * SEC / i64::try_from(self.scenario.calls).unwrap_or(i64::MAX);
        let mut left = self.scenario.calls;
        while left > 0 {
            let together = match self.roll(|dice| dice.below(20)) {
                0 => self.roll(|dice| 1 + dice.below(20)).min(left),
                _ => 1,
            };
            let gate = self.some_gate();
            for _ in 0..together {
                when += self.roll(|dice| dice.between(0, mean * 2));
            }
            for _ in 0..together {
                let spec = self.some_call();
                let spread = self.roll(|dice| dice.between(0, 200));
                self.at(when + spread, Event::Call(gate, spec));
            }
            left -= together;
        }
        self.at(self.scenario.fault_every_ms * MS, Event::Weather);
    }

    /// The first gates have most of the calls.
    fn some_gate(&self) -> usize {
        let hot = self.scenario.hot;
        if hot > 0 && self.roll(|dice| dice.chance(hot)) {
            return 0;
        }
        let gates = self.processes.len() as u64;
        let place = self.roll(|dice| dice.below(1_000) * dice.below(1_000) / 1_000);
        usize::try_from(place * gates / 1_000).unwrap_or(0)
    }

    fn some_call(&self) -> CallSpec {
        let leaves = self.strikes(Fault::ClientLeaves, 120);
        let upstream = self.strikes(Fault::Upstream, 120);
        self.roll(|dice| {
            let agent = usize::try_from(dice.below(AGENTS.len() as u64)).unwrap_or(0);
            let padding = usize::try_from(dice.below(120)).unwrap_or(0);
            let max_tokens = 1 + dice.below(50);
            let body = format!(
                r#"{{"model":"{MODEL}","max_tokens":{max_tokens},"messages":[]{}}}"#,
                " ".repeat(padding)
            )
            .into_bytes();
            let output_tokens = 1 + dice.below(max_tokens);
            let takes_us = match dice.below(10) {
                0 => dice.between(SEC, 30 * SEC),
                _ => dice.between(5 * MS, 2 * SEC),
            };
            CallSpec {
                id: self.next_id(),
                agent,
                prompt_tokens: 1 + dice.below(body.len() as u64),
                body,
                output_tokens,
                answer: match upstream {
                    true => *dice.pick(&[Answered::Error, Answered::Broken]),
                    false => *dice.pick(&[Answered::Json, Answered::Json, Answered::Stream]),
                },
                takes_us,
                leaves_after_us: leaves.then(|| dice.between(0, takes_us)),
            }
        })
    }

    fn go_until(self: &Rc<Self>, until_us: i64) {
        while let Some(event) = self.next_event(until_us) {
            self.step(event);
        }
        self.now_us.set(until_us);
    }

    fn next_event(&self, until_us: i64) -> Option<Event> {
        let mut events = self.events.borrow_mut();
        let first = events.first_entry()?;
        let (when, _) = *first.key();
        let mut auditor = self.auditor.borrow_mut();
        if when > until_us || auditor.step > MAX_STEPS {
            return None;
        }
        auditor.step += 1;
        // What comes after the first broken promise explains nothing.
        self.seen_enough.set(!auditor.violations.is_empty());
        self.now_us.set(when);
        Some(first.remove())
    }

    fn step(self: &Rc<Self>, event: Event) {
        match event {
            Event::Run(worker) => worker.run(),
            Event::Tick(worker, number) => worker.ticked(number),
            Event::Call(gate, spec) => self.call(gate, spec),
            Event::Upstream(worker, call) => worker.upstream_answered(call),
            Event::ClientLeaves(worker, call, words) => worker.client_left(call, words),
            Event::AtPlane(sender, errand) => self.at_plane(sender, &errand),
            Event::AtGate(sender, status, body) => self.at_gate(sender, status, body),
            Event::Weather => self.weather(),
            Event::StartGate(gate) => {
                let process = &self.processes[gate];
                if !process.is_up() {
                    self.note(|| format!("gate {gate} starts"));
                    process.start(self, &self.config);
                }
            }
            Event::StartPlane => {
                if !self.plane_up.replace(true) {
                    self.note(|| "the control plane starts".to_owned());
                    self.plane.borrow_mut().restart(self.plane_now());
                }
            }
        }
    }

    fn call(&self, gate: usize, spec: CallSpec) {
        let index = usize::try_from(self.roll(|dice| dice.below(2))).unwrap_or(0);
        let Some(worker) = self.processes[gate].workers.borrow().get(index).cloned() else {
            return;
        };
        if let Some(after) = spec.leaves_after_us {
            let words = self.roll(|dice| dice.below(spec.output_tokens + 1));
            self.at(
                after,
                Event::ClientLeaves(Rc::clone(&worker), spec.id, words),
            );
        }
        worker.call(spec);
    }

    /// No more faults: everything runs, everybody hears everybody, and no clock jumps any more. Two lease terms pass without a call.
    fn calm_down(self: &Rc<Self>) {
        self.calm.set(true);
        self.note(|| "calm".to_owned());
        for (gate, process) in self.processes.iter().enumerate() {
            process.cut_off_until_us.set(0);
            let skew = process.skew_us.get();
            process.skew_us.set(skew.clamp(-CALM_SKEW_US, CALM_SKEW_US));
            self.at(0, Event::StartGate(gate));
        }
        self.at(0, Event::StartPlane);
        // Late messages and slow answers first, then the terms.
        let quiet = 25 * SEC + 2 * i64::from(self.scenario.term_secs) * SEC;
        self.go_until(self.now_us.get() + quiet);
    }

    /// Spends what is left, from one gate, until it is refused.
    fn probe(self: &Rc<Self>) {
        self.probing.set(true);
        // A gate whose clock was set back may have to wait for windows that it has left for good.
        let in_time = |gate: &usize| !self.processes[*gate].was_set_back.get();
        let some = self.some_gate();
        let Some(gate) = (some..self.processes.len()).chain(0..some).find(in_time) else {
            return;
        };
        for agent in 0..AGENTS.len() {
            for _ in 0..MAX_PROBES {
                let mut spec = self.some_call();
                spec.agent = agent;
                spec.takes_us = MS;
                self.probed.set(None);
                self.at(0, Event::Call(gate, spec));
                let deadline = self.now_us.get() + 3 * SEC;
                while self.probed.get().is_none() && self.now_us.get() < deadline {
                    self.go_until(self.now_us.get() + 20 * MS);
                }
                match self.probed.get() {
                    Some(true) => {}
                    Some(false) => break,
                    None => {
                        let what = format!("a call at gate {gate} was neither sent nor refused");
                        self.auditor.borrow_mut().broken(Promise::Served, what);
                        break;
                    }
                }
            }
        }
    }

    fn finish(self: &Rc<Self>) -> Outcome {
        if self.auditor.borrow().violations.is_empty() {
            self.probe();
            // What was recorded last arrives.
            self.go_until(self.now_us.get() + 35 * SEC);
        }
        for process in &self.processes {
            for worker in process.workers.borrow().iter() {
                let open = worker.open_calls();
                if open > 0 {
                    let what = format!("{open} calls never ended at gate {}", process.number);
                    self.auditor
                        .borrow_mut()
                        .broken(Promise::ResolvedOnce, what);
                }
            }
        }
        let mut auditor = self.auditor.borrow_mut();
        auditor.close();
        let outcome = Outcome {
            steps: auditor.step,
            faults: self.faults.get(),
            grants: auditor.grants,
            allowed: self.allowed.get(),
            denied: self.denied.get(),
            violations: std::mem::take(&mut auditor.violations),
            first_refusal: auditor.first_refusal,
            most_kept: auditor.most_kept,
            most_at_risk: auditor.most_at_risk,
            waited: self.waited.get(),
            trace: self
                .trace
                .as_ref()
                .map(|trace| trace.borrow_mut().drain(..).collect())
                .unwrap_or_default(),
        };
        drop(auditor);
        self.take_apart();
        outcome
    }

    /// Workers and world know each other; what is not taken apart is never freed.
    fn take_apart(&self) {
        self.events.borrow_mut().clear();
        for process in &self.processes {
            let _ = process.kill(self);
        }
    }
}

fn lease_line(
    gate: usize,
    request: &tollgate_engine::lease::Request,
    status: u16,
    answer: Option<&tollgate_engine::lease::Answer>,
) -> String {
    let mut line = format!(
        "gate {gate}: leases: {} epoch {} asks",
        request.holder.get(..8).unwrap_or_default(),
        request.epoch
    );
    for ask in &request.asks {
        line += &format!(
            " [{} {} #{} settled {} reserved {} wants {}]",
            ask.account, ask.window_start, ask.seq, ask.settled, ask.reserved, ask.want
        );
    }
    let Some(answer) = answer else {
        return line + &format!("; answered with status {status}");
    };
    line += &format!("; epoch {} grants", answer.epoch);
    for grant in &answer.grants {
        line += &format!(
            " [{} {} #{} granted {}{}]",
            grant.account,
            grant.window_start,
            grant.seq,
            grant.granted,
            if grant.retry_ms == 0 {
                ""
            } else {
                " and no more"
            }
        );
    }
    line
}
