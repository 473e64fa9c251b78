//! A cell never lets more be reserved than was leased, whatever arrives twice, late, out of order or from another epoch.

mod issuer;
mod random;

use random::Random;
use std::{
    collections::BTreeMap,
    sync::{Barrier, Mutex},
};
use tollgate_engine::{
    bundle::Level,
    lease::Grant,
    ledger::{ASK_TIMEOUT_MS, Account, Cell, Op, Refusal, SUSPENDED, Slot, Span, Unit, Window},
    time::Time,
};

/// Start of the first window, seconds. Windows are minutes.
const START: i64 = 1_795_168_800;

const fn span(window: i64) -> Span {
    Span {
        start: START + window * 60,
        end: START + window * 60 + 60,
    }
}

fn at(millis: i64) -> Time {
    Time::from_secs(START).plus_millis(millis)
}

fn millis(after_start: i64) -> i64 {
    START * 1_000 + after_start
}

fn account() -> Account {
    Account::parse("agent:a|calls|minute").unwrap()
}

/// A grant for the first window that lives for a minute.
fn grant(seq: u64, granted: u64) -> Grant {
    Grant {
        seq,
        ..issuer::grant(&account(), span(0), granted, at(60_000))
    }
}

fn refill(grant: Grant, epoch: u64) -> Op {
    Op::Refill { grant, epoch }
}

fn reserve(amount: u64) -> Op {
    Op::Reserve {
        span: span(0),
        amount,
    }
}

/// A cell under a sequence of changes.
#[derive(Debug, Default)]
struct Store(Option<Vec<u8>>);

impl Store {
    fn try_apply(&mut self, op: &Op, now: Time) -> Result<(), Refusal> {
        self.0 = Some(op.apply(self.0.as_deref(), now)?);
        Ok(())
    }

    #[track_caller]
    fn apply(&mut self, op: &Op, now: Time) {
        assert_eq!(self.try_apply(op, now), Ok(()), "{op:?}");
    }

    fn cell(&self) -> Cell {
        self.0.as_deref().map(Cell::decode).unwrap_or_default()
    }

    /// Granted, settled and reserved in a window.
    fn amounts(&self, window: i64) -> Option<(u64, u64, u64)> {
        let cell = self.cell();
        let slot = cell.slot(span(window).start)?;
        Some((slot.granted, slot.settled, slot.reserved))
    }
}

/// A cell with a lease of 10 in epoch 1.
fn leased() -> Store {
    let mut store = Store::default();
    store.apply(&Op::Ask { span: span(0) }, at(0));
    store.apply(&refill(grant(1, 10), 1), at(10));
    store
}

#[test]
fn from_nothing_nothing_is_spent() {
    assert_eq!(
        Store::default().try_apply(&reserve(1), at(0)),
        Err(Refusal::NoLease)
    );
    let mut asked = Store::default();
    asked.apply(&Op::Ask { span: span(0) }, at(0));
    assert_eq!(asked.try_apply(&reserve(1), at(0)), Err(Refusal::NoLease));
    assert_eq!(asked.try_apply(&reserve(0), at(0)), Err(Refusal::NoLease));
}

#[test]
fn a_lease_is_spent_to_the_last_and_no_further() {
    let mut store = leased();
    store.apply(&reserve(7), at(20));
    store.apply(&reserve(3), at(20));
    assert_eq!(store.try_apply(&reserve(1), at(20)), Err(Refusal::Short));
    assert_eq!(store.amounts(0), Some((10, 0, 10)));
    // 7 were reserved and 4 used: 3 are free again.
    let settle = Op::Settle {
        start: span(0).start,
        reserved: 7,
        used: 4,
    };
    store.apply(&settle, at(30));
    assert_eq!(store.amounts(0), Some((10, 4, 3)));
    assert_eq!(store.try_apply(&reserve(4), at(30)), Err(Refusal::Short));
    store.apply(&reserve(3), at(30));
    // A call that did not go out gives all back.
    let void = Op::Void {
        start: span(0).start,
        reserved: 3,
    };
    store.apply(&void, at(40));
    assert_eq!(store.amounts(0), Some((10, 4, 3)));
}

#[test]
fn what_was_used_beyond_the_reservation_is_kept_and_stops_the_next() {
    let mut store = leased();
    store.apply(&reserve(5), at(20));
    let settle = Op::Settle {
        start: span(0).start,
        reserved: 5,
        used: 12,
    };
    store.apply(&settle, at(30));
    assert_eq!(store.amounts(0), Some((10, 12, 0)));
    assert_eq!(store.try_apply(&reserve(1), at(30)), Err(Refusal::Short));
    // 15 in all: 3 are left.
    store.apply(&refill(grant(2, 15), 1), at(40));
    assert_eq!(store.try_apply(&reserve(4), at(40)), Err(Refusal::Short));
    store.apply(&reserve(3), at(40));
}

#[test]
fn an_expired_lease_refuses() {
    let mut store = leased();
    store.apply(&reserve(1), at(59_999));
    assert_eq!(
        store.try_apply(&reserve(1), at(60_000)),
        Err(Refusal::NoLease)
    );
    // Renewed without a word about amounts, it goes on where it was.
    let renewed = Grant {
        expires_ms: millis(90_000),
        ..grant(2, 10)
    };
    store.apply(&refill(renewed, 1), at(60_000));
    store.apply(&reserve(9), at(60_000));
    assert_eq!(
        store.try_apply(&reserve(1), at(60_000)),
        Err(Refusal::Short)
    );
}

#[test]
fn what_is_exhausted_says_until_when() {
    let mut store = leased();
    let last = Grant {
        retry_ms: millis(45_000),
        ..grant(2, 12)
    };
    store.apply(&refill(last, 1), at(20));
    let retry_ms = millis(45_000);
    assert_eq!(
        store.try_apply(&reserve(13), at(44_999)),
        Err(Refusal::Exhausted { retry_ms, left: 12 })
    );
    // What is left may be spent all the same.
    store.apply(&reserve(12), at(44_999));
    assert_eq!(
        store.try_apply(&reserve(1), at(45_000)),
        Err(Refusal::Short)
    );
}

/// A call that was refused because it needed more than there is says nothing about a smaller one.
#[test]
fn what_is_left_is_worth_renewing_when_there_is_no_more() {
    let mut store = leased();
    let retry_ms = millis(90_000);
    let none_left = Grant {
        retry_ms,
        ..grant(2, 10)
    };
    store.apply(&refill(none_left, 1), at(20));
    assert_eq!(
        store.try_apply(&reserve(11), at(59_999)),
        Err(Refusal::Exhausted { retry_ms, left: 10 })
    );
    for amount in [1, 10, 11] {
        let reserved = store.try_apply(&reserve(amount), at(60_000));
        assert_eq!(reserved, Err(Refusal::NoLease), "{amount}");
    }
    // With nothing left there is nothing to renew.
    store.apply(&reserve(10), at(59_999));
    assert_eq!(
        store.try_apply(&reserve(1), at(60_000)),
        Err(Refusal::Exhausted { retry_ms, left: 0 })
    );
}

#[test]
fn what_is_exhausted_is_so_by_a_clock_set_back_too() {
    let mut store = leased();
    let none_left = |seq| {
        refill(
            Grant {
                retry_ms: millis(60_000),
                ..grant(seq, 10)
            },
            1,
        )
    };
    store.apply(&none_left(2), at(5_000));
    // Set back by five seconds, it asks once more, for the answer may be of another time…
    assert_eq!(store.try_apply(&reserve(11), at(0)), Err(Refusal::Short));
    store.apply(&Op::Ask { span: span(0) }, at(0));
    store.apply(&none_left(3), at(1));
    // …and takes the same answer for one.
    assert_eq!(
        store.try_apply(&reserve(11), at(1)),
        Err(Refusal::Exhausted {
            retry_ms: millis(60_000),
            left: 10,
        })
    );
}

#[test]
fn one_asks_at_a_time() {
    let ask = Op::Ask { span: span(0) };
    let mut store = Store::default();
    store.apply(&ask, at(0));
    let timeout = ASK_TIMEOUT_MS;
    for soon in [0, 1, timeout - 1] {
        assert_eq!(store.try_apply(&ask, at(soon)), Err(Refusal::AlreadyAsked));
    }
    // The answer is lost: asked again, under the next number.
    store.apply(&ask, at(timeout));
    assert_eq!(store.cell().slot(span(0).start).unwrap().seq, 2);
    // A clock set back by a minute does not stop asking for a minute.
    store.apply(&ask, at(timeout - 60_000));
    assert_eq!(store.cell().slot(span(0).start).unwrap().seq, 3);
    // An answer lets the next ask at once.
    store.apply(&refill(grant(3, 1), 1), at(10));
    store.apply(&ask, at(10));
}

#[test]
fn what_lay_idle_when_the_clock_was_set_back_stays_idle() {
    let mut store = leased();
    store.apply(&reserve(4), at(50_000));
    // Set back by half a minute: the last use is out of reach, and the six that nobody needs go back.
    store.apply(&Op::Ask { span: span(0) }, at(20_000));
    let slot = |store: &Store| *store.cell().slot(span(0).start).unwrap();
    assert_eq!(slot(&store).returned, 6);
    // When the clock comes to where the last use was, nothing has been used again.
    assert!(slot(&store).is_idle(at(50_000)));
}

#[test]
fn a_refill_that_comes_again_changes_nothing() {
    let mut store = leased();
    store.apply(&reserve(4), at(20));
    store.apply(&refill(grant(2, 15), 1), at(30));
    let before = store.0.clone();
    for replay in [grant(2, 15), grant(1, 10), grant(0, 1_000)] {
        store.apply(&refill(replay, 1), at(40));
        assert_eq!(store.0, before);
    }
}

#[test]
fn answers_in_the_wrong_order_count_once() {
    let mut store = leased();
    store.apply(&refill(grant(3, 30), 1), at(20));
    let before = store.0.clone();
    store.apply(&refill(grant(2, 20), 1), at(30));
    assert_eq!(store.0, before);
    // Amounts are cumulative: one that names less takes nothing away.
    store.apply(&refill(grant(4, 5), 1), at(40));
    assert_eq!(store.amounts(0), Some((30, 0, 0)));
}

#[test]
fn an_older_epoch_is_refused() {
    let mut store = Store::default();
    store.apply(&refill(grant(1, 10), 5), at(10));
    let before = store.0.clone();
    store.apply(&refill(grant(9, 1_000), 4), at(20));
    assert_eq!(store.0, before);
}

#[test]
fn a_newer_epoch_starts_afresh_but_for_calls_under_way() {
    let mut store = leased();
    store.apply(&reserve(4), at(20));
    store.apply(
        &Op::Settle {
            start: span(0).start,
            reserved: 4,
            used: 4,
        },
        at(20),
    );
    store.apply(&reserve(5), at(20));
    store.apply(&refill(grant(2, 10), 2), at(30));
    // Of the new 10, 5 stand behind the call under way.
    assert_eq!(store.amounts(0), Some((10, 0, 5)));
    store.apply(&reserve(5), at(30));
    assert_eq!(store.try_apply(&reserve(1), at(30)), Err(Refusal::Short));
    // When the old call settles, it takes back its own reservation and not the new call's.
    store.apply(
        &Op::Settle {
            start: span(0).start,
            reserved: 5,
            used: 1,
        },
        at(40),
    );
    assert_eq!(store.amounts(0), Some((10, 1, 5)));
}

#[test]
fn the_window_before_is_still_there_for_late_settlements() {
    let mut store = leased();
    store.apply(&reserve(6), at(59_000));
    let next = |seq, granted| Grant {
        window_start: span(1).start,
        window_end: span(1).end,
        expires_ms: millis(120_000),
        ..grant(seq, granted)
    };
    store.apply(&Op::Ask { span: span(1) }, at(60_000));
    store.apply(&refill(next(1, 8), 1), at(60_010));
    store.apply(
        &Op::Settle {
            start: span(0).start,
            reserved: 6,
            used: 2,
        },
        at(61_000),
    );
    assert_eq!(store.amounts(0), Some((10, 2, 0)));
    assert_eq!(store.amounts(1), Some((8, 0, 0)), "not in the new window");
    // A window further on, the first one makes room; what settles in it now has no place.
    store.apply(&Op::Ask { span: span(2) }, at(120_000));
    assert_eq!(store.amounts(0), None);
    store.apply(
        &Op::Settle {
            start: span(0).start,
            reserved: 1,
            used: 1,
        },
        at(121_000),
    );
    assert_eq!(store.amounts(1), Some((8, 0, 0)));
    // And it does not come back.
    assert_eq!(
        store.try_apply(&Op::Ask { span: span(0) }, at(121_000)),
        Err(Refusal::NoLease)
    );
    let before = store.0.clone();
    store.apply(&refill(grant(9, 99), 1), at(121_000));
    assert_eq!(store.0, before);
}

#[test]
fn amounts_saturate_and_never_wrap() {
    let mut store = Store::default();
    store.apply(&refill(grant(1, u64::MAX), 1), at(10));
    store.apply(&reserve(u64::MAX), at(10));
    assert_eq!(store.try_apply(&reserve(1), at(10)), Err(Refusal::Short));
    let settle = Op::Settle {
        start: span(0).start,
        reserved: u64::MAX,
        used: u64::MAX,
    };
    store.apply(&settle, at(10));
    store.apply(&settle, at(10));
    assert_eq!(store.amounts(0), Some((u64::MAX, u64::MAX, 0)));
    assert_eq!(store.try_apply(&reserve(1), at(10)), Err(Refusal::Short));
    // Times at both ends.
    let ask = Op::Ask { span: span(0) };
    for micros in [i64::MIN, -1, 0, i64::MAX] {
        let _ = store.try_apply(&ask, Time::from_micros(micros));
        let _ = store.try_apply(&reserve(1), Time::from_micros(micros));
    }
    assert_eq!(store.amounts(0), Some((u64::MAX, u64::MAX, 0)));
}

/// A cell as its documentation describes it, in the plainest form.
#[derive(Debug, Default)]
struct Model(BTreeMap<i64, Lease>);

#[derive(Clone, Debug, Default, PartialEq)]
struct Lease {
    granted: u64,
    returned: u64,
    settled: u64,
    reserved: u64,
    expires_ms: i64,
    retry_ms: i64,
    heard_ms: i64,
    seq: u64,
    asked_ms: i64,
    reported: u64,
    spent: u64,
    told: u64,
    chunk: u64,
    keep: u64,
    used_ms: i64,
    epoch: u64,
}

impl Lease {
    fn is_blank(&self) -> bool {
        (self.granted, self.settled, self.reserved) == (0, 0, 0) && self.retry_ms != SUSPENDED
    }
}

impl Model {
    /// The newest two windows are kept, but those that were never leased anything make room first. None older than one that was leased
    /// something is opened again.
    fn open(&mut self, start: i64) -> Option<&mut Lease> {
        if !self.0.contains_key(&start) && self.0.len() == 2 {
            let leased: Vec<i64> = (self.0.iter())
                .filter(|(_, lease)| !lease.is_blank())
                .map(|(start, _)| *start)
                .collect();
            if leased.first().is_some_and(|oldest| start < *oldest) {
                return None;
            }
            let all: Vec<i64> = self.0.keys().copied().collect();
            let leaves = match leased.len() {
                2 => all[0],
                _ => *all.iter().find(|start| !leased.contains(start)).unwrap(),
            };
            self.0.remove(&leaves);
        }
        Some(self.0.entry(start).or_default())
    }

    fn apply(&mut self, op: &Op, now_ms: i64) -> Result<(), Refusal> {
        match op {
            Op::Reserve { span, amount } => {
                let lease = self.0.get_mut(&span.start).ok_or(Refusal::NoLease)?;
                let live = now_ms < lease.expires_ms;
                // In numbers that cannot overflow.
                let taken = u128::from(lease.returned)
                    + u128::from(lease.settled)
                    + u128::from(lease.reserved);
                let fits = taken + u128::from(*amount) <= u128::from(lease.granted)
                    // Nothing fits in less than nothing, but nothing is left to take from nothing.
                    || *amount == 0;
                if lease.retry_ms == SUSPENDED {
                    Err(Refusal::Exhausted {
                        retry_ms: span.end * 1_000,
                        left: 0,
                    })
                } else if live && fits {
                    lease.reserved += amount;
                    lease.used_ms = now_ms;
                    Ok(())
                } else if !live && taken < u128::from(lease.granted) {
                    Err(Refusal::NoLease)
                } else if lease.heard_ms <= now_ms && now_ms < lease.retry_ms {
                    Err(Refusal::Exhausted {
                        retry_ms: lease.retry_ms,
                        left: lease
                            .granted
                            .saturating_sub(u64::try_from(taken).unwrap_or(u64::MAX)),
                    })
                } else if live {
                    Err(Refusal::Short)
                } else {
                    Err(Refusal::NoLease)
                }
            }
            Op::Look { .. } | Op::Count { .. } => {
                unreachable!("what runs and alerts do is not in this model")
            }
            Op::Void { start, reserved } => {
                if let Some(lease) = self.0.get_mut(start) {
                    lease.reserved = lease.reserved.saturating_sub(*reserved);
                }
                Ok(())
            }
            Op::Settle {
                start,
                reserved,
                used,
            } => {
                if let Some(lease) = self.0.get_mut(start) {
                    lease.reserved = lease.reserved.saturating_sub(*reserved);
                    lease.settled = lease.settled.saturating_add(*used);
                }
                Ok(())
            }
            Op::Suspend {
                start,
                limit,
                amount,
            } => {
                if let Some(lease) = self.0.get_mut(start) {
                    let unreported = lease.settled.saturating_sub(lease.reported);
                    let used = u128::from(lease.spent) + u128::from(unreported);
                    if used + u128::from(*amount) > u128::from(*limit) {
                        lease.retry_ms = SUSPENDED;
                        lease.heard_ms = now_ms;
                    }
                }
                Ok(())
            }
            Op::Ask { span } => {
                let lease = self.open(span.start).ok_or(Refusal::NoLease)?;
                if lease.asked_ms != 0 && (now_ms - lease.asked_ms).abs() < 1_000 {
                    return Err(Refusal::AlreadyAsked);
                }
                // Five seconds without a call, or one where little is left for all: what is left is given back.
                let idle_ms = if lease.chunk == 0 { 1_000 } else { 5_000 };
                let taken = lease.returned.saturating_add(lease.settled);
                let taken = taken.saturating_add(lease.reserved);
                let left = lease.granted.saturating_sub(taken);
                let before = lease.returned;
                // And of what is in use, what is above the part that may be kept: the less, the more calls have reserved.
                let stays = lease.keep.saturating_sub(lease.reserved / 8);
                if left > stays {
                    lease.returned += left - stays;
                }
                if (now_ms - lease.used_ms).abs() >= idle_ms {
                    lease.returned += left.min(stays);
                    // Of a clock that was set back: as if it had been used that long ago.
                    if now_ms < lease.used_ms {
                        lease.used_ms = now_ms - idle_ms;
                    }
                }
                // Who gives something back knows of something to be had, whatever was said.
                if lease.returned > before && lease.retry_ms != SUSPENDED {
                    lease.retry_ms = 0;
                }
                lease.asked_ms = now_ms;
                lease.seq += 1;
                Ok(())
            }
            Op::Refill { grant, epoch } => {
                let Some(lease) = self.open(grant.window_start) else {
                    return Ok(());
                };
                if grant.seq < lease.seq || *epoch < lease.epoch {
                    return Ok(());
                }
                let suspended = lease.retry_ms == SUSPENDED && grant.lifted_ms <= lease.heard_ms;
                if *epoch > lease.epoch {
                    *lease = Lease {
                        epoch: *epoch,
                        reserved: lease.reserved,
                        // Counted before any lease, and so under none.
                        settled: if lease.epoch == 0 { lease.settled } else { 0 },
                        ..Lease::default()
                    };
                }
                lease.seq = grant.seq;
                lease.asked_ms = 0;
                if grant.granted > lease.granted {
                    lease.chunk = grant.granted - lease.granted;
                    lease.granted = grant.granted;
                    lease.used_ms = now_ms;
                }
                lease.keep = grant.keep;
                if lease.chunk > grant.keep {
                    lease.chunk = grant.keep;
                }
                lease.told = lease.told.max(grant.returned);
                lease.reported = lease.reported.max(grant.settled);
                lease.spent = lease.spent.max(grant.spent);
                lease.expires_ms = grant.expires_ms;
                let retry_ms = if suspended { SUSPENDED } else { grant.retry_ms };
                if lease.retry_ms != retry_ms || now_ms < lease.heard_ms {
                    lease.retry_ms = retry_ms;
                    lease.heard_ms = now_ms;
                }
                Ok(())
            }
        }
    }
}

/// Amounts: mostly small, now and then at the edges.
fn some_amount(random: &mut Random) -> u64 {
    match random.below(20) {
        0 => 0,
        1 => u64::MAX / 4,
        _ => random.below(40) as u64,
    }
}

fn some_op(random: &mut Random, now_ms: i64) -> Op {
    let window = (now_ms / 1_000 - START).div_euclid(60) + random.below(3) as i64 - 1;
    let span = span(window);
    if random.one_in(60) {
        return Op::Suspend {
            start: span.start,
            limit: some_amount(random),
            amount: some_amount(random),
        };
    }
    match random.below(10) {
        0..=3 => Op::Reserve {
            span,
            amount: some_amount(random),
        },
        4 => Op::Void {
            start: span.start,
            reserved: some_amount(random),
        },
        5 | 6 => Op::Settle {
            start: span.start,
            reserved: some_amount(random),
            used: some_amount(random),
        },
        7 => Op::Ask { span },
        _ => Op::Refill {
            grant: Grant {
                account: account(),
                window_start: span.start,
                window_end: span.end,
                seq: random.below(12) as u64,
                granted: some_amount(random).saturating_mul(8),
                returned: some_amount(random),
                settled: some_amount(random),
                spent: some_amount(random),
                lifted_ms: now_ms - random.below(60_000) as i64,
                expires_ms: now_ms + random.below(120_000) as i64 - 20_000,
                keep: match random.below(4) {
                    0 => 0,
                    1 => u64::MAX,
                    _ => some_amount(random),
                },
                retry_ms: if random.one_in(4) {
                    now_ms + random.below(60_000) as i64
                } else {
                    0
                },
            },
            epoch: random.below(4) as u64,
        },
    }
}

/// Any changes whatever, sensible or not: the cell does what the model does.
#[test]
fn a_cell_behaves_as_its_model() {
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let (mut store, mut model) = (Store::default(), Model::default());
        let mut now_ms = millis(0);
        for step in 0..150 {
            // Mostly forward, sometimes by a window, sometimes back.
            now_ms += match random.below(12) {
                0 => 60_000,
                1 => -1_500,
                _ => random.below(900) as i64,
            };
            let op = some_op(&mut random, now_ms);
            let expected = model.apply(&op, now_ms);
            let got = store.try_apply(&op, Time::from_millis(now_ms));
            assert_eq!(got, expected, "seed {seed}, step {step}: {op:?}");
            let cell = store.cell();
            let slots: BTreeMap<i64, Lease> = cell
                .slots()
                .iter()
                .map(|slot| {
                    let lease = Lease {
                        granted: slot.granted,
                        returned: slot.returned,
                        settled: slot.settled,
                        reserved: slot.reserved,
                        expires_ms: slot.expires_ms,
                        retry_ms: slot.retry_ms,
                        heard_ms: slot.heard_ms,
                        seq: slot.seq,
                        asked_ms: slot.asked_ms,
                        reported: slot.reported,
                        spent: slot.spent,
                        chunk: slot.chunk,
                        keep: slot.keep,
                        told: slot.told,
                        used_ms: slot.used_ms,
                        epoch: slot.epoch,
                    };
                    (slot.start, lease)
                })
                .collect();
            assert_eq!(slots, model.0, "seed {seed}, step {step}: {op:?}");
            if let Some(bytes) = &store.0 {
                assert_eq!(&cell.encode(), bytes);
            }
        }
    }
}

/// Calls of a well-behaved host and a control plane whose answers come twice, late and out of order. The auditor knows what was leased in
/// all and counts what was let through by itself.
#[test]
fn no_interleaving_spends_more_than_was_leased() {
    let (mut admitted, mut refused) = (0_u64, 0_u64);
    for seed in 0..400 {
        let mut random = Random::new(1_000 + seed);
        let mut store = Store::default();
        let mut now_ms = millis(0);
        let mut epoch = 1;
        // What the control plane has leased, by window and epoch; every answer it ever gave.
        let mut leased: BTreeMap<(i64, u64), u64> = BTreeMap::new();
        let mut answers: Vec<(Grant, u64)> = Vec::new();
        // What calls have taken: the worst case while under way, then what they used.
        let mut under_way: Vec<(i64, u64, u64)> = Vec::new();
        let mut taken: BTreeMap<(i64, u64), u64> = BTreeMap::new();
        for step in 0..200 {
            let pause = if random.one_in(20) { 50_000 } else { 300 };
            now_ms += random.below(pause) as i64;
            let now = Time::from_millis(now_ms);
            let span = span((now_ms / 1_000 - START).div_euclid(60));
            match random.below(10) {
                0..=3 => {
                    let amount = random.below(30) as u64;
                    if store.try_apply(&Op::Reserve { span, amount }, now).is_ok() {
                        let cell = store.cell();
                        let slot = cell.slot(span.start).unwrap();
                        assert!(slot.settled + slot.reserved <= slot.granted || amount == 0);
                        assert!(now_ms < slot.expires_ms);
                        under_way.push((span.start, slot.epoch, amount));
                        *taken.entry((span.start, slot.epoch)).or_default() += amount;
                        admitted += 1;
                    } else {
                        refused += 1;
                    }
                }
                4..=6 if !under_way.is_empty() => {
                    let (start, in_epoch, reserved) =
                        under_way.swap_remove(random.below(under_way.len()));
                    let used = random.below(reserved as usize + 1) as u64;
                    let op = match random.one_in(4) {
                        true => Op::Void { start, reserved },
                        false => Op::Settle {
                            start,
                            reserved,
                            used,
                        },
                    };
                    let kept = if matches!(op, Op::Void { .. }) {
                        0
                    } else {
                        used
                    };
                    *taken.get_mut(&(start, in_epoch)).unwrap() -= reserved - kept;
                    store.apply(&op, now);
                }
                7 => {
                    // An ask and its answer, which may be lost now and come later.
                    if store.try_apply(&Op::Ask { span }, now).is_err() {
                        continue;
                    }
                    let seq = store.cell().slot(span.start).unwrap().seq;
                    if random.one_in(15) {
                        epoch += 1;
                    }
                    let granted = leased.entry((span.start, epoch)).or_default();
                    *granted += random.below(60) as u64;
                    let grant = Grant {
                        seq,
                        ..issuer::grant(&account(), span, *granted, now.plus_millis(20_000))
                    };
                    answers.push((grant.clone(), epoch));
                    if !random.one_in(3) {
                        store.apply(&refill(grant, epoch), now);
                    }
                }
                _ if !answers.is_empty() => {
                    let (grant, epoch) = random.pick(&answers);
                    store.apply(&refill(grant, epoch), now);
                }
                _ => {}
            }
            for (window, taken) in &taken {
                let leased = leased.get(window).copied().unwrap_or(0);
                assert!(
                    *taken <= leased,
                    "seed {seed}, step {step}: {taken} of {leased} in {window:?}"
                );
            }
        }
    }
    // The runs were worth something: much was let through, and much was not.
    assert!(admitted > 5_000 && refused > 5_000, "{admitted} {refused}");
}

/// Threads that reserve by compare-and-swap on one store admit exactly what the lease covers.
fn race(threads: usize, tries: usize, granted: u64, amount: u64, settle_used: Option<u64>) -> u64 {
    let mut start = Store::default();
    start.apply(&refill(grant(1, granted), 1), at(0));
    // Value and version: the least that a store with compare-and-swap has.
    let store = Mutex::new((start.0, 0_u64));
    let swap = |op: &Op| -> Result<(), Refusal> {
        loop {
            let (old, version) = store.lock().unwrap().clone();
            // The change is worked out while others may write.
            let new = op.apply(old.as_deref(), at(10))?;
            let mut held = store.lock().unwrap();
            if held.1 == version {
                *held = (Some(new), version + 1);
                return Ok(());
            }
        }
    };
    let barrier = Barrier::new(threads);
    let admitted: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let mut admitted = 0;
                    for _ in 0..tries {
                        if swap(&reserve(amount)).is_ok() {
                            admitted += 1;
                            if let Some(used) = settle_used {
                                let settle = Op::Settle {
                                    start: span(0).start,
                                    reserved: amount,
                                    used,
                                };
                                swap(&settle).unwrap();
                            }
                        }
                    }
                    admitted
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .sum()
    });
    let (bytes, _) = store.into_inner().unwrap();
    let cell = Cell::decode(&bytes.unwrap());
    let slot = cell.slot(span(0).start).unwrap();
    match settle_used {
        Some(used) => assert_eq!((slot.settled, slot.reserved), (admitted * used, 0)),
        None => assert_eq!((slot.settled, slot.reserved), (0, admitted * amount)),
    }
    admitted
}

#[test]
fn a_burst_admits_exactly_what_is_leased() {
    // Fewer than threads, more than threads, all of them.
    assert_eq!(race(8, 50, 3, 1, None), 3);
    assert_eq!(race(8, 50, 137, 1, None), 137);
    assert_eq!(race(8, 50, 10_000, 1, None), 400);
    // ⌊1000 / 7⌋ = 142.
    assert_eq!(race(8, 50, 1_000, 7, None), 142);
    // Each reserves 7 and uses 5. Calls that overlap may be refused while others hold their worst case, never let through beyond the
    // lease: at most ⌊(500 − 7) / 5⌋ + 1 = 99, and at least ⌊(500 − 8 × 7) / 5⌋ = 88.
    let admitted = race(8, 50, 500, 7, Some(5));
    assert!((88..=99).contains(&admitted), "{admitted}");
}

#[test]
fn a_cell_is_read_as_it_was_written() {
    let mut random = Random::new(5);
    for _ in 0..500 {
        // Any two slots whatever: the bytes are 4 and then eighteen numbers each, little-endian.
        let mut bytes = vec![4];
        for _ in 0..random.below(3) * 18 {
            let number = match random.below(4) {
                0 => u64::MAX,
                1 => random.below(3) as u64,
                _ => random.next(),
            };
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let cell = Cell::decode(&bytes);
        assert_eq!(cell.encode(), bytes);
        assert_eq!(Cell::decode(&cell.encode()), cell);
    }
}

#[test]
fn what_is_not_a_cell_is_an_empty_one() {
    let mut random = Random::new(6);
    let empty = Cell::default();
    for length in 0..400 {
        let mut bytes = random.bytes(length);
        let whole = [1, 145, 289].contains(&length);
        if let Some(first) = bytes.first_mut() {
            *first = 4;
        }
        assert_eq!(Cell::decode(&bytes) == empty, !whole || length == 1);
        if let Some(first) = bytes.first_mut() {
            *first = if random.one_in(2) { 3 } else { 5 };
        }
        assert_eq!(Cell::decode(&bytes), empty, "another version");
    }
    // And nothing is spent from it.
    assert_eq!(
        reserve(1).apply(Some(&[4, 2, 3]), at(0)),
        Err(Refusal::NoLease)
    );
    assert_eq!(empty.encode(), [4]);
}

#[test]
fn changes_travel_unchanged() {
    let mut random = Random::new(7);
    for _ in 0..500 {
        let op = some_op(&mut random, millis(0));
        assert_eq!(Op::decode(&op.encode()), Some(op));
    }
    // Amounts are decimal strings: a JSON number is not exact beyond 2^53.
    let op = reserve(u64::MAX);
    assert_eq!(
        String::from_utf8(op.encode()).unwrap(),
        r#"{"reserve":{"span":{"start":1795168800,"end":1795168860},"amount":"18446744073709551615"}}"#
    );
    for bad in [
        &b""[..],
        b"{}",
        b"null",
        br#"{"reserve":{"span":{"start":0,"end":60},"amount":5}}"#,
        br#"{"reserve":{"span":{"start":0,"end":60},"amount":"-5"}}"#,
        br#"{"reserve":{"span":{"start":0,"end":60},"amount":"5","more":1}}"#,
        br#"{"spend":{"amount":"5"}}"#,
    ] {
        assert_eq!(Op::decode(bad), None);
    }
}

#[test]
fn accounts_are_read_as_they_are_written() {
    for text in [
        "workspace:ws-1|calls|minute",
        "org:acme|tokens|day@UTC",
        "team:a:b|nano_usd|day@America/New_York",
        "agent:00000000-0000-4000-8000-00000000000a|nano_usd|minute",
        "agent:a|nano_usd|week@UTC",
        "agent:a|nano_usd|month@Asia/Taipei",
        "agent:a|calls|hour",
        "agent:a|calls|hour|tool:bash",
        "agent:a|calls|hour|tool:a|tool:b c",
        "team:a:b|calls|hour|tool:bash",
        "org:acme|nano_usd|day@UTC|model:gpt-4o|tool:bash",
        "agent:a|tokens|hour|model:*|tool:a|model:b",
    ] {
        let account = Account::parse(text).unwrap();
        assert_eq!(account.to_string(), text);
        assert_eq!(account.cell_key(), format!("cell {text}"));
    }
    for text in [
        "",
        "agent",
        "agent:a",
        "agent:a|calls",
        "agent:|calls|minute",
        "robot:a|calls|minute",
        "agent:a|euros|minute",
        "agent:a|calls|year",
        "agent:a|calls|hour@UTC",
        "agent:a|calls|week@",
        "agent:a|calls|hour|tool:",
        "agent:a|calls|hour|bash",
        // A team may be named `a|calls|hour|tool:x`; what it spends must not be read as a tool's account.
        "team:a|calls|hour|tool:x|nano_usd|day@UTC",
        "team:a|calls|hour|model:x|nano_usd|day@UTC",
        "team:a|calls|hour|model:x|tool:y|nano_usd|day@UTC",
        "agent:a|calls|hour|model:",
        "agent:a|calls|hour|model:|tool:x",
        "agent:a|calls|hour|model:x|",
        "agent:a|calls|hour|model:x|tool:",
        "agent:a|calls|run:r|model:x",
        "agent:a|calls|day@",
        "agent:a|calls|day",
        "agent:a|calls|minute|more",
        "Agent:a|calls|minute",
    ] {
        assert_eq!(Account::parse(text), None, "{text}");
    }
    let account = Account {
        level: Level::Team,
        id: "a".to_string(),
        unit: Unit::NanoUsd,
        window: Window::Day("UTC".to_string()),
        tool: None,
        model: None,
        run: None,
    };
    assert_eq!(account.to_string(), "team:a|nano_usd|day@UTC");
}

#[test]
fn a_suspended_window_stays_closed_until_it_ends() {
    let mut store = leased();
    store.apply(&reserve(4), at(20));
    store.apply(&suspend(0, 0, 1), at(30));
    let exhausted = Err(Refusal::Exhausted {
        retry_ms: span(0).end * 1_000,
        left: 0,
    });
    assert_eq!(store.try_apply(&reserve(1), at(40)), exhausted);
    assert_eq!(store.try_apply(&reserve(0), at(40)), exhausted);
    // The calls under way still settle, and neither that nor a new grant or a new epoch opens it.
    let settle = Op::Settle {
        start: span(0).start,
        reserved: 4,
        used: 1,
    };
    store.apply(&settle, at(50));
    assert_eq!(store.amounts(0), Some((10, 1, 0)));
    store.apply(&refill(grant(2, 100), 1), at(60));
    assert_eq!(store.try_apply(&reserve(1), at(70)), exhausted);
    store.apply(&refill(grant(3, 100), 2), at(80));
    assert_eq!(store.try_apply(&reserve(1), at(90)), exhausted);
    // A window nobody has here has nothing to close, and is not made.
    store.apply(&suspend(1, 0, 1), at(100));
    assert_eq!(store.amounts(1), None);
}

fn suspend(window: i64, limit: u64, amount: u64) -> Op {
    Op::Suspend {
        start: span(window).start,
        limit,
        amount,
    }
}

#[test]
fn only_what_has_been_used_suspends() {
    let mut store = leased();
    // All ten are under way, none is used: 0 + 1 ≤ 10.
    store.apply(&reserve(10), at(20));
    store.apply(&suspend(0, 10, 1), at(21));
    let settle = Op::Settle {
        start: span(0).start,
        reserved: 10,
        used: 6,
    };
    store.apply(&settle, at(22));
    store.apply(&reserve(0), at(23));
    // Six here, and three elsewhere that the last grant told of, the six not among them: 9 + 1 ≤ 10.
    let told = Grant {
        spent: 3,
        ..grant(2, 10)
    };
    store.apply(&refill(told, 1), at(24));
    store.apply(&suspend(0, 10, 1), at(25));
    store.apply(&reserve(1), at(26));
    // Of two there is none left: 9 + 2 > 10.
    store.apply(&suspend(0, 10, 2), at(27));
    let exhausted = Err(Refusal::Exhausted {
        retry_ms: span(0).end * 1_000,
        left: 0,
    });
    assert_eq!(store.try_apply(&reserve(1), at(28)), exhausted);
}

#[test]
fn an_operator_lifts_what_was_suspended_before() {
    let mut store = leased();
    store.apply(&suspend(0, 0, 1), at(30));
    let lifted = |seq, lifted_ms| {
        let grant = Grant {
            lifted_ms,
            ..grant(seq, 10)
        };
        refill(grant, 1)
    };
    // Lifted before it was suspended.
    store.apply(&lifted(2, at(30).millis()), at(31));
    assert!(store.try_apply(&reserve(1), at(32)).is_err());
    store.apply(&lifted(3, at(33).millis()), at(34));
    store.apply(&reserve(1), at(35));
    // The same word again lifts nothing that was suspended later.
    store.apply(&suspend(0, 0, 1), at(36));
    store.apply(&lifted(4, at(33).millis()), at(37));
    assert!(store.try_apply(&reserve(1), at(38)).is_err());
}

#[test]
fn available_is_never_less_than_nothing() {
    let slot = Slot {
        granted: 5,
        settled: 4,
        reserved: 3,
        ..Slot::default()
    };
    assert_eq!(slot.available(), 0);
}

#[test]
fn what_is_only_counted_is_told_once_there_is_an_epoch_to_tell_it_under() {
    let count = Op::Count { span: span(0) };
    let used = |used| Op::Settle {
        start: span(0).start,
        reserved: 0,
        used,
    };
    let mut store = Store::default();
    store.apply(&count, at(10));
    store.apply(&used(5), at(20));
    store.apply(&Op::Ask { span: span(0) }, at(30));
    // Nothing is leased, and nothing taken down: the five were counted before the epoch.
    store.apply(&refill(grant(1, 0), 1), at(40));
    let slot = |store: &Store| Cell::decode(store.0.as_deref().unwrap()).slots()[0];
    let first = slot(&store);
    assert_eq!((first.epoch, first.settled, first.reported), (1, 5, 0));
    // Counted on, beside what is leased to nobody.
    store.apply(&count, at(50));
    store.apply(&used(7), at(60));
    assert_eq!(slot(&store).settled, 12);
    assert_eq!(store.try_apply(&reserve(1), at(70)), Err(Refusal::Short));
    // Under the next epoch it begins anew: the twelve are down under the first.
    store.apply(&refill(grant(2, 0), 2), at(80));
    assert_eq!(slot(&store).settled, 0);
}
