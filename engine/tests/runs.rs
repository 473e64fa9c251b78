//! Accounts of runs: cells that begin when a gate first hears of a run, and go when nobody needs them.

mod issuer;

use tollgate_engine::{
    lease::Grant,
    ledger::{Account, Cell, Op, Refusal, Span},
    time::Time,
};

const NOW: Time = Time::from_secs(1_000_000);
const SECOND: i64 = 1_000;

fn account(run: &str) -> Account {
    Account::parse(&format!("agent:a|tokens|run:{run}")).unwrap()
}

fn after_secs(secs: i64) -> Time {
    NOW.plus_millis(secs * SECOND)
}

fn reserve(amount: u64) -> Op {
    Op::Reserve {
        span: Span::RUN,
        amount,
    }
}

fn grant(seq: u64, granted: u64) -> Grant {
    let window = Span {
        start: NOW.secs(),
        end: NOW.secs() + 86_400,
    };
    Grant {
        seq,
        ..issuer::grant(&account("r"), window, granted, after_secs(60))
    }
}

fn refill(grant: Grant) -> Op {
    Op::Refill { grant, epoch: 1 }
}

/// Applies all, each a second after the other, and gives the cell.
fn run(ops: &[Op]) -> Vec<u8> {
    let mut cell = Vec::new();
    for (second, op) in (0..).zip(ops) {
        cell = op.apply(Some(&cell), after_secs(second)).unwrap();
    }
    cell
}

const ASK: Op = Op::Ask { span: Span::RUN };

#[test]
fn a_cell_begins_when_its_gate_hears_of_the_run() {
    assert_eq!(reserve(1).apply(None, NOW), Err(Refusal::NoLease));
    let cell = Cell::decode(&run(&[ASK]));
    let slot = cell.slot(Span::RUN.start).unwrap();
    assert_eq!(
        (slot.start, slot.end, slot.seq),
        (NOW.secs(), NOW.secs() + 86_400, 1)
    );
    // Asked again later, it is the same.
    let again = Cell::decode(&run(&[ASK, refill(grant(1, 10)), ASK]));
    assert_eq!(again.slots().len(), 1);
    assert_eq!(again.slots()[0].start, NOW.secs());
}

#[test]
fn what_is_leased_can_be_spent_and_no_more() {
    let cell = run(&[ASK, refill(grant(1, 10)), reserve(7)]);
    let late = after_secs(5);
    assert_eq!(reserve(4).apply(Some(&cell), late), Err(Refusal::Short));
    let settle = Op::Settle {
        start: Span::RUN.start,
        reserved: 7,
        used: 5,
    };
    let cell = settle.apply(Some(&cell), late).unwrap();
    assert!(reserve(5).apply(Some(&cell), late).is_ok());
    assert_eq!(reserve(6).apply(Some(&cell), late), Err(Refusal::Short));
}

#[test]
fn looking_takes_nothing_and_needs_something() {
    let look = Op::Look { span: Span::RUN };
    let cell = run(&[ASK, refill(grant(1, 1)), look.clone(), look.clone()]);
    assert_eq!(Cell::decode(&cell).slots()[0].reserved, 0);
    let used = Op::Settle {
        start: Span::RUN.start,
        reserved: 0,
        used: 1,
    };
    let cell = used.apply(Some(&cell), after_secs(5)).unwrap();
    assert_eq!(look.apply(Some(&cell), after_secs(5)), Err(Refusal::Short));
}

#[test]
fn a_run_that_is_over_lets_nothing_pass() {
    let ends = Grant {
        window_end: NOW.secs() + 20,
        ..grant(1, 10)
    };
    let cell = run(&[ASK, refill(ends)]);
    assert!(reserve(1).apply(Some(&cell), after_secs(19)).is_ok());
    let over = Err(Refusal::Exhausted {
        retry_ms: after_secs(20).millis(),
        left: 0,
    });
    assert_eq!(reserve(1).apply(Some(&cell), after_secs(20)), over);
    assert_eq!(
        Op::Look { span: Span::RUN }.apply(Some(&cell), after_secs(20)),
        over
    );
}

#[test]
fn a_cell_is_done_when_nothing_is_left_and_all_is_told() {
    let settle = Op::Settle {
        start: Span::RUN.start,
        reserved: 10,
        used: 4,
    };
    // Used at second 2; idle, and so given back, half a minute later.
    let spent = run(&[ASK, refill(grant(1, 10)), reserve(10), settle]);
    let done = |cell: &[u8], secs| Cell::decode(cell).is_done(after_secs(secs));
    assert!(!done(&spent, 40), "six are left");
    let returned = ASK.apply(Some(&spent), after_secs(40)).unwrap();
    assert!(!done(&returned, 41), "nobody has heard of it");
    let told = refill(Grant {
        returned: 6,
        settled: 4,
        ..grant(2, 10)
    });
    let told = told.apply(Some(&returned), after_secs(41)).unwrap();
    assert!(done(&told, 41));
    let forgotten = |secs| Cell::decode(&told).is_forgotten(after_secs(secs));
    assert!(!forgotten(601) && forgotten(602));
}

#[test]
fn a_cell_with_a_call_under_way_stays_until_an_hour_after_the_run() {
    let cell = run(&[ASK, refill(grant(1, 10)), reserve(10)]);
    let done = |secs| Cell::decode(&cell).is_done(after_secs(secs));
    assert!(!done(86_400 + 3_599) && done(86_400 + 3_600));
}

#[test]
fn what_was_meant_for_a_cell_that_has_gone_is_not_for_the_next() {
    // The same run, heard of again a minute later.
    let next = ASK.apply(None, after_secs(60)).unwrap();
    let late = refill(grant(9, 10))
        .apply(Some(&next), after_secs(61))
        .unwrap();
    assert_eq!(late, next);
    assert_eq!(
        reserve(1).apply(Some(&late), after_secs(61)),
        Err(Refusal::NoLease)
    );
    // Nor does it make one.
    let none = refill(grant(9, 10)).apply(None, after_secs(61)).unwrap();
    assert_eq!(Cell::decode(&none).slots(), []);
}

#[test]
fn two_cells_that_begin_in_one_second_by_a_clock_put_back_do_not_add_up() {
    // The control plane answers an old number with what it has down for the first: 10 granted, 6 given back, 4 used.
    let old = Grant {
        returned: 6,
        settled: 4,
        ..grant(1, 10)
    };
    let cell = run(&[ASK, refill(old)]);
    assert_eq!(Cell::decode(&cell).slots()[0].available(), 0);
}

#[test]
fn accounts_of_runs_have_one_spelling() {
    for text in [
        "agent:a|tokens|run:r",
        "agent:a|errors|run:mcp:0a",
        "agent:a|seconds|run:r.1_2-3",
    ] {
        assert_eq!(Account::parse(text).unwrap().to_string(), text);
    }
    for wrong in [
        "agent:a|tokens|run",
        "agent:a|tokens|run:",
        "team:a|tokens|run:r",
        "agent:a|errors|day@UTC",
        "agent:a|seconds|minute",
        "team:a|errors|run:r",
    ] {
        assert_eq!(Account::parse(wrong), None, "{wrong}");
    }
}
