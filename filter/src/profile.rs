//! Where the time of a call goes: what each of Envoy's callbacks takes here, and each call back to Envoy. Only in a filter that is built to measure it
//! (feature `profile`, for `cargo xtask bench --only filter`); in any other this is nothing.

#[cfg(feature = "profile")]
pub(crate) use measured::{tell, timed};

/// Runs it.
#[cfg(not(feature = "profile"))]
#[inline(always)]
pub(crate) fn timed<R>(_: &'static str, run: impl FnOnce() -> R) -> R {
    run()
}

/// Says nothing.
#[cfg(not(feature = "profile"))]
pub(crate) fn tell(_: &crate::store::Store) {}

#[cfg(feature = "profile")]
mod measured {
    use crate::{host, store::Store};
    use proxy_wasm::types::LogLevel;
    use std::{
        cell::{Cell, RefCell},
        mem,
    };
    use tollgate_engine::{
        exchange::CellOp,
        lease::Grant,
        ledger::{Account, Op, Span},
        time::Time,
        upkeep::Holder,
    };

    /// Told of after so many of the most frequent.
    const ENOUGH: usize = 2_000;

    /// The tick at which the loop runs: once V8 has compiled what it runs in.
    const LOOP_TICK: u32 = 20;
    /// The best of so many rounds, as of the native loop (`tests/src/bin/budgets.rs`).
    const ROUNDS: u32 = 15;
    const CALLS_PER_ROUND: u32 = 2_000;
    /// What a team's budgets and rate are; their cells lie together.
    const OF_ONE: [&str; 4] = [
        "team:platform|nano_usd|day@UTC",
        "team:platform|nano_usd|month@UTC",
        "team:platform|tokens|day@UTC",
        "team:platform|calls|minute",
    ];
    /// Those of the native loop, which lie in three places.
    const OF_THREE: [&str; 4] = [
        "workspace:ws-1|nano_usd|day@UTC",
        "team:platform|tokens|day@UTC",
        "agent:00000000-0000-4000-8000-00000000000a|nano_usd|day@UTC",
        "agent:00000000-0000-4000-8000-00000000000a|tokens|day@UTC",
    ];

    /// What was run, and what each time took; nanoseconds by Envoy's clock, which counts microseconds.
    type Table = Vec<(&'static str, Vec<u64>)>;

    thread_local! {
        static TABLE: RefCell<Table> = const { RefCell::new(Vec::new()) };
        static TICKS: Cell<u32> = const { Cell::new(0) };
        static IS_IN_LOOP: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs it, and takes down how long that takes.
    pub(crate) fn timed<R>(what: &'static str, run: impl FnOnce() -> R) -> R {
        if IS_IN_LOOP.get() {
            return run();
        }
        let begun = host::nanoseconds();
        let result = run();
        let took = host::nanoseconds().saturating_sub(begun);
        TABLE.with_borrow_mut(
            |table| match table.iter_mut().find(|(known, _)| *known == what) {
                Some((_, times)) => times.push(took),
                None => table.push((what, Vec::from([took]))),
            },
        );
        result
    }

    /// Writes to Envoy's log what has come together, and begins anew; and once, what four accounts take in a loop.
    pub(crate) fn tell(store: &Store) {
        TICKS.set(TICKS.get().saturating_add(1));
        // One of all workers: the first.
        let is_first = || host::set_shared("tollgate loop", b"begun", host::ABSENT).is_ok();
        if TICKS.get() == LOOP_TICK && is_first() {
            IS_IN_LOOP.set(true);
            let took = [OF_ONE, OF_THREE].map(|names| four_accounts(store, &names));
            IS_IN_LOOP.set(false);
            let line = format!("four accounts {}", serde_json::json!(took));
            host::log(LogLevel::Warn, &line);
        }
        let is_enough = |table: &Table| table.iter().any(|(_, times)| times.len() >= ENOUGH);
        if !TABLE.with_borrow(is_enough) {
            return;
        }
        let rows: Vec<serde_json::Value> = TABLE
            .with_borrow_mut(mem::take)
            .into_iter()
            .map(|(what, mut times)| {
                times.sort_unstable();
                // The slowest are those in which something else ran on this processor.
                let usual = times.len().saturating_sub(times.len() / 20).max(1);
                let spent: u64 = times.iter().take(usual).sum();
                let mean = spent.checked_div(u64::try_from(usual).unwrap_or(1));
                serde_json::json!({"what": what, "times": times.len(), "nanos": mean})
            })
            .collect();
        let line = format!("profile {}", serde_json::Value::from(rows));
        host::log(LogLevel::Warn, &line);
    }

    /// Nanoseconds for a call's reservations in four accounts and their settlement, in Envoy's shared data; of a holder that nobody else is. `None` when a
    /// change is refused.
    fn four_accounts(store: &Store, names: &[&str; 4]) -> Option<u64> {
        const NOW: Time = Time::from_secs(1_795_168_805);
        let span = Span {
            start: 1_795_132_800,
            end: 1_795_219_200,
        };
        let holder = Holder::new(host::random().ok()?);
        let accounts: Vec<Account> = names
            .iter()
            .filter_map(|name| Account::parse(name))
            .collect();
        let each = |op: &dyn Fn(&Account) -> Op| -> Vec<CellOp> {
            let change = |account: &Account| CellOp {
                account: account.clone(),
                op: op(account),
            };
            accounts.iter().map(change).collect()
        };
        let grants = each(&|account| Op::Refill {
            grant: Grant {
                account: account.clone(),
                window_start: span.start,
                window_end: span.end,
                seq: 1,
                granted: 1 << 60,
                returned: 0,
                settled: 0,
                spent: 0,
                lifted_ms: 0,
                expires_ms: NOW.millis().saturating_add(60_000),
                retry_ms: 0,
                keep: u64::MAX,
            },
            epoch: 1,
        });
        let reserve = each(&|_| Op::Reserve { span, amount: 9 });
        let settle = each(&|_| Op::Settle {
            start: span.start,
            reserved: 9,
            used: 4,
        });
        store.apply(&holder, &grants, NOW).ok()?;
        let mut best = u64::MAX;
        for _ in 0..ROUNDS {
            let begun = host::nanoseconds();
            for _ in 0..CALLS_PER_ROUND {
                store.apply(&holder, &reserve, NOW).ok()?;
                store.apply(&holder, &settle, NOW).ok()?;
            }
            let took = host::nanoseconds().saturating_sub(begun);
            best = best.min(took / u64::from(CALLS_PER_ROUND));
        }
        Some(best)
    }
}
