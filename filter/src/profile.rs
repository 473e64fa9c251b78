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
pub(crate) fn tell() {}

#[cfg(feature = "profile")]
mod measured {
    use crate::host;
    use proxy_wasm::types::LogLevel;
    use std::{cell::RefCell, mem};

    /// Told of after so many of the most frequent.
    const ENOUGH: usize = 2_000;

    /// What was run, and what each time took; nanoseconds by Envoy's clock, which counts microseconds.
    type Table = Vec<(&'static str, Vec<u64>)>;

    thread_local! {
        static TABLE: RefCell<Table> = const { RefCell::new(Vec::new()) };
    }

    /// Runs it, and takes down how long that takes.
    pub(crate) fn timed<R>(what: &'static str, run: impl FnOnce() -> R) -> R {
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

    /// Writes to Envoy's log what has come together, and begins anew.
    pub(crate) fn tell() {
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
}
