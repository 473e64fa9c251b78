//! Five hundred simulated installations, and the proof that the auditor would notice.
//!
//! A seed that fails here fails again with `cargo xtask simulate --seeds 1 --from SEED`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, RangeInclusive};
use tollgate_tests::simulate::{
    self, Fault, Mutation, Options, Outcome, Promise, Scenario, Summary,
};

/// Runs seeds until `stop` says of an outcome that it is enough; by seed.
fn run_seeds(
    seeds: RangeInclusive<u64>,
    options: Options,
    stop: impl Fn(&Outcome) -> bool,
) -> BTreeMap<u64, Outcome> {
    let mut outcomes = BTreeMap::new();
    simulate::run_all(seeds, &options, |seed, outcome| {
        let enough = stop(&outcome);
        outcomes.insert(seed, outcome);
        match enough {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    outcomes
}

/// Runs so many seeds, of which none may break a promise. A quiet run would prove nothing: more than `busy` calls were let through and refused,
/// leases granted, and things that went wrong.
#[track_caller]
fn keep_every_promise(seeds: u64, options: Options, busy: u64) {
    let mut summary = Summary::default();
    for (seed, outcome) in run_seeds(1..=seeds, options, |_| false) {
        summary.add(&outcome);
        for violation in &outcome.violations {
            println!("seed {seed}: {violation}");
        }
    }
    println!("{summary}");
    assert_eq!((summary.seeds, summary.violations), (seeds, 0));
    let counts = [
        summary.allowed,
        summary.denied,
        summary.grants,
        summary.faults,
    ];
    assert!(counts.iter().all(|count| *count > busy), "{summary:?}");
}

#[test]
fn five_hundred_installations_keep_every_promise() {
    keep_every_promise(500, Options::default(), 10_000);
}

#[test]
fn a_seed_is_one_history() {
    let options = Options {
        trace: true,
        ..Options::default()
    };
    for seed in [3, 44, 500] {
        let scenario = Scenario::of(seed);
        let first = simulate::run(&scenario, &options);
        let second = simulate::run(&scenario, &options);
        assert!(first.trace.len() > 50, "{}", first.trace.len());
        assert_eq!(first.trace, second.trace);
        assert_eq!(
            (first.steps, first.faults, first.grants),
            (second.steps, second.faults, second.grants)
        );
    }
}

/// The rules that five hundred installations ran on stand in the service among SQL, transactions and files. It keeps every promise too…
#[test]
fn the_service_on_its_database_keeps_every_promise() {
    let options = Options {
        database: true,
        ..Options::default()
    };
    keep_every_promise(8, options, 300);
}

/// …and does what they do, step for step. A restored database is noticed by marks in files that the rules know nothing of, so that is left out,
/// as are clocks by which they are written.
#[test]
fn the_service_and_the_rules_write_one_history() {
    let mut grants = 0;
    for seed in 1..=5 {
        let mut scenario = Scenario::of(seed);
        for fault in [Fault::Restore, Fault::Clock] {
            scenario.faults.remove(&fault);
        }
        let [rules, service] = [false, true].map(|database| {
            let options = Options {
                trace: true,
                database,
                ..Options::default()
            };
            simulate::run(&scenario, &options)
        });
        let mut lines = rules.trace.iter().zip(&service.trace);
        if let Some((one, other)) = lines.find(|(one, other)| one != other) {
            panic!("seed {seed}, by the rules and by the service:\n{one}\n{other}");
        }
        assert_eq!(rules.trace.len(), service.trace.len(), "seed {seed}");
        let sums = |of: &Outcome| (of.steps, of.faults, of.grants, of.allowed, of.denied);
        assert_eq!(sums(&rules), sums(&service), "seed {seed}");
        grants += service.grants;
    }
    assert!(grants > 500, "{grants}");
}

/// Takes a safeguard out, and gives the first seed by which the auditor names one of `promises`.
#[track_caller]
fn noticed_by(mutation: Mutation, seeds: RangeInclusive<u64>, promises: &[Promise]) -> u64 {
    let named = |outcome: &Outcome| {
        let mut violations = outcome.violations.iter();
        violations.any(|violation| promises.contains(&violation.promise))
    };
    let options = Options {
        mutation: Some(mutation),
        ..Options::default()
    };
    let outcomes = run_seeds(seeds.clone(), options, named);
    let broken: BTreeSet<Promise> = outcomes
        .values()
        .flat_map(|outcome| &outcome.violations)
        .map(|violation| violation.promise)
        .collect();
    let Some((seed, _)) = outcomes.iter().find(|(_, outcome)| named(outcome)) else {
        panic!("{mutation:?} was not noticed in seeds {seeds:?}; broken: {broken:?}");
    };
    println!("{mutation:?} is noticed by seed {seed}: {broken:?}");
    *seed
}

#[test]
fn without_reservations_too_much_is_spent() {
    let promises = [Promise::NoOverspend, Promise::WithinLeases];
    noticed_by(Mutation::NoReservation, 1..=50, &promises);
}

#[test]
fn without_the_check_of_epochs_gates_believe_what_is_gone() {
    let promises = [
        Promise::NoOverspend,
        Promise::WithinLeases,
        Promise::WithinLimit,
        Promise::BelievedIsGranted,
    ];
    // A gate keeps so little that few installations have anything to believe in.
    noticed_by(Mutation::NoEpochCheck, 1..=100, &promises);
}

#[test]
fn without_the_check_of_numbers_a_replay_counts() {
    noticed_by(
        Mutation::NoSequenceCheck,
        1..=50,
        &[Promise::ReplayChangesNothing],
    );
}

#[test]
fn without_the_void_reservations_leak() {
    noticed_by(Mutation::NoVoid, 1..=50, &[Promise::ResolvedOnce]);
}

#[test]
fn without_the_learning_time_a_restored_control_plane_grants_twice() {
    let promises = [Promise::NoOverspend, Promise::WithinLimit];
    noticed_by(Mutation::NoLearning, 1..=300, &promises);
}

#[test]
fn a_failing_seed_is_made_small() {
    let options = Options {
        mutation: Some(Mutation::NoVoid),
        ..Options::default()
    };
    let seed = noticed_by(Mutation::NoVoid, 1..=50, &[Promise::ResolvedOnce]);
    let scenario = Scenario::of(seed);
    let (small, outcome) = simulate::shrink(&scenario, &options);
    assert!(small.faults.is_subset(&scenario.faults));
    assert!(
        small.faults.len() < Fault::ALL.len() / 2,
        "{:?}",
        small.faults
    );
    assert!(small.gates <= scenario.gates && small.calls <= scenario.calls);
    assert!(!outcome.violations.is_empty() && !outcome.trace.is_empty());
}
