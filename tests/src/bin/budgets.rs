//! How well budgets are used and what a reservation costs, for `cargo xtask bench --only budgets`. To be built with `--release`.

use anyhow::{Context as _, Result, ensure};
use std::{collections::HashMap, hint::black_box, time::Instant};
use tollgate_engine::{
    lease::Grant,
    ledger::{Account, Cell, Op, Span},
    time::Time,
};
use tollgate_tests::simulate::{self, Options, Scenario};

/// Simulated installations for each line of the table.
const SEEDS: u64 = 20;
const GATES: usize = 20;
/// …and for the calls that wait.
const STEADY_SEEDS: u64 = 3;
/// The best of so many rounds: what it takes, not what the machine did besides.
const ROUNDS: u32 = 15;
const CALLS_PER_ROUND: u32 = 20_000;

fn main() -> Result<()> {
    println!(
        "| calls that the budget is for | used when the first call was refused | kept by one gate | at risk with it |"
    );
    println!("|---|---|---|---|");
    for calls in [300, 1_000, 4_000] {
        let (mut used, mut kept, mut at_risk) = (Vec::new(), 0, 0);
        for seed in 1..=SEEDS {
            // A quarter more calls than the budget is for.
            let outcome = simulate::run(
                &Scenario::busy(seed, GATES, calls * 5 / 4, 80),
                &Options::default(),
            );
            ensure!(
                outcome.violations.is_empty(),
                "seed {seed}: {:?}",
                outcome.violations
            );
            let (spent, limit) = outcome
                .first_refusal
                .with_context(|| format!("seed {seed}: no call was refused"))?;
            used.push(spent * 1_000 / limit);
            kept = kept.max(outcome.most_kept);
            at_risk = at_risk.max(outcome.most_at_risk);
        }
        used.sort_unstable();
        let per_cent = |thousandths: u64| format!("{}.{} %", thousandths / 10, thousandths % 10);
        let middle = used.get(used.len() / 2).copied().unwrap_or_default();
        let least = used.first().copied().unwrap_or_default();
        println!(
            "| {calls} | {} at the median, {} at the least | {} at the most | {} at the most |",
            per_cent(middle),
            per_cent(least),
            per_cent(kept),
            per_cent(at_risk)
        );
    }
    let (mut calls, mut waited) = (0, 0);
    for seed in 1..=STEADY_SEEDS {
        let outcome = simulate::run(&Scenario::steady(seed), &Options::default());
        calls += outcome.allowed + outcome.denied;
        waited += outcome.waited;
    }
    println!(
        "\nThree gates under a steady load of 50 calls a second, and a budget for four times as many: {waited} of {calls} calls waited for the control plane (goal: one in a thousand)."
    );
    println!(
        "\nFour accounts reserved and settled, native: {} ns.",
        four_accounts()?
    );
    Ok(())
}

/// Nanoseconds for a call's reservations in four accounts, and their settlement, cells read from and written to a map.
fn four_accounts() -> Result<u128> {
    const NOW: Time = Time::from_secs(1_795_168_805);
    let span = Span {
        start: 1_795_132_800,
        end: 1_795_219_200,
    };
    let names = [
        "workspace:ws-1|nano_usd|day@UTC",
        "team:platform|tokens|day@UTC",
        "agent:00000000-0000-4000-8000-00000000000a|nano_usd|day@UTC",
        "agent:00000000-0000-4000-8000-00000000000a|tokens|day@UTC",
    ];
    let accounts: Vec<Account> = names
        .iter()
        .filter_map(|name| Account::parse(name))
        .collect();
    ensure!(accounts.len() == names.len(), "an account has no reading");
    let mut cells: HashMap<String, Vec<u8>> = HashMap::new();
    let mut apply = |account: &Account, op: &Op| -> Result<()> {
        let key = account.cell_key();
        let cell = op
            .apply(cells.get(&key).map(Vec::as_slice), NOW)
            .map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        cells.insert(key, cell);
        Ok(())
    };
    for account in &accounts {
        let grant = Grant {
            account: account.clone(),
            window_start: span.start,
            window_end: span.end,
            seq: 1,
            granted: 1 << 60,
            returned: 0,
            settled: 0,
            spent: 0,
            lifted_ms: 0,
            expires_ms: NOW.millis() + 60_000,
            retry_ms: 0,
            keep: u64::MAX,
        };
        apply(account, &Op::Refill { grant, epoch: 1 })?;
    }
    let mut best = u128::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..CALLS_PER_ROUND {
            for account in &accounts {
                apply(black_box(account), &Op::Reserve { span, amount: 9 })?;
            }
            for account in &accounts {
                let settle = Op::Settle {
                    start: span.start,
                    reserved: 9,
                    used: 4,
                };
                apply(black_box(account), &settle)?;
            }
        }
        best = best.min(start.elapsed().as_nanos() / u128::from(CALLS_PER_ROUND));
    }
    ensure!(
        cells
            .values()
            .all(|cell| Cell::decode(cell).slots().len() == 1),
        "a cell has gone astray"
    );
    Ok(best)
}
