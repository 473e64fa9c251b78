//! A deterministic simulator of a whole installation: real gates, the real rules of the control plane, and everything between them that
//! can go wrong, from one seed.
//!
//! Deliberately not here: threads, sockets, wall clocks. Time is a number, chance is [`Dice`], and one seed gives one history, step for
//! step. An [`auditor`] with a model of its own watches every step.

mod auditor;
mod dice;
mod plane;
mod process;
mod real;
mod scenario;
mod world;

pub use auditor::{Promise, Violation};
pub use dice::Dice;
pub use scenario::{Fault, Limits, Scenario};

use std::{
    fmt, iter,
    ops::{ControlFlow, RangeInclusive},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

/// A safeguard taken out, to see that the auditor notices. None of these is a switch in the product: they are made where the simulator
/// drives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing is set aside before a call goes out.
    NoReservation,
    /// Messages of an older epoch count.
    NoEpochCheck,
    /// Messages with an older number count.
    NoSequenceCheck,
    /// What was reserved before one account refused is kept.
    NoVoid,
    /// A restored control plane grants at once.
    NoLearning,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 5] = [
        Mutation::NoReservation,
        Mutation::NoEpochCheck,
        Mutation::NoSequenceCheck,
        Mutation::NoVoid,
        Mutation::NoLearning,
    ];
}

/// How to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The safeguard to take out.
    pub mutation: Option<Mutation>,
    /// Keep the last lines of what happened.
    pub trace: bool,
    /// The real service on its database stands for the control plane. It knows no mutations of its own.
    pub database: bool,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Events.
    pub steps: u64,
    /// Things that went wrong on purpose.
    pub faults: u64,
    /// Grants that gave a holder more than it had.
    pub grants: u64,
    /// Calls let through.
    pub allowed: u64,
    /// Calls refused.
    pub denied: u64,
    /// Promises broken.
    pub violations: Vec<Violation>,
    /// What of a budget was used, or under way, when it refused a call for the first time, and the budget.
    pub first_refusal: Option<(u64, u64)>,
    /// The most of a budget that one gate kept, once it had reported, beside what its calls under way may use; in thousandths of the budget.
    pub most_kept: u64,
    /// The same just before it reported: what would have gone with it if it had died then.
    pub most_at_risk: u64,
    /// Calls that waited for the control plane.
    pub waited: u64,
    /// The last lines of what happened, when asked for.
    pub trace: Vec<String>,
}

/// Runs a scenario.
pub fn run(scenario: &Scenario, options: &Options) -> Outcome {
    world::World::run(scenario, options)
}

/// Runs seeds on all processors, and tells `each` what came of them as they come to their ends, until it has heard enough.
///
/// # Panics
/// When a run does.
pub fn run_all(
    seeds: RangeInclusive<u64>,
    options: &Options,
    mut each: impl FnMut(u64, Outcome) -> ControlFlow<()>,
) {
    let next = AtomicU64::new(*seeds.start());
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (next, seeds, tell) = (&next, &seeds, tell.clone());
            scope.spawn(move || {
                let taken = iter::repeat_with(|| next.fetch_add(1, Ordering::SeqCst));
                for seed in taken.take_while(|seed| seeds.contains(seed)) {
                    let outcome = run(&Scenario::of(seed), options);
                    if tell.send((seed, outcome)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(tell);
        // Who hears no more drops its end, and then nobody begins another.
        let _ = told
            .into_iter()
            .try_for_each(|(seed, outcome)| each(seed, outcome));
    });
}

/// A failing run made small: the fewest faults and gates with which it still breaks the same promise.
pub fn shrink(scenario: &Scenario, options: &Options) -> (Scenario, Outcome) {
    let traced = Options {
        trace: true,
        ..*options
    };
    let mut best = scenario.clone();
    let mut outcome = run(&best, &traced);
    let Some(promise) = outcome
        .violations
        .first()
        .map(|violation| violation.promise)
    else {
        return (best, outcome);
    };
    let mut attempt = |make_smaller: &dyn Fn(&mut Scenario)| {
        let mut candidate = best.clone();
        make_smaller(&mut candidate);
        let tried = run(&candidate, &traced);
        let same = |violation: &Violation| violation.promise == promise;
        if tried.violations.iter().any(same) {
            (best, outcome) = (candidate, tried);
        }
    };
    for fault in Fault::ALL {
        attempt(&|scenario| {
            scenario.faults.remove(&fault);
        });
    }
    for gates in [1, 2, 3, 5] {
        attempt(&|scenario| scenario.gates = scenario.gates.min(gates));
    }
    for part in [8, 4, 2] {
        attempt(&|scenario| scenario.calls = (scenario.calls / part).max(1));
    }
    (best, outcome)
}

/// What came of many runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Runs.
    pub seeds: u64,
    /// Events in all.
    pub steps: u64,
    /// Things that went wrong on purpose.
    pub faults: u64,
    /// Grants that gave a holder more than it had.
    pub grants: u64,
    /// Calls let through.
    pub allowed: u64,
    /// Calls refused.
    pub denied: u64,
    /// Promises broken.
    pub violations: u64,
}

impl Summary {
    /// Adds a run.
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.steps += outcome.steps;
        self.faults += outcome.faults;
        self.grants += outcome.grants;
        self.allowed += outcome.allowed;
        self.denied += outcome.denied;
        self.violations += outcome.violations.len() as u64;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "simulate: {} seeds, {} steps, {} faults, {} grants, {} violations",
            self.seeds, self.steps, self.faults, self.grants, self.violations
        )
    }
}
