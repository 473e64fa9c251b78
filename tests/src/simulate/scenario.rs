//! What a seed means: how many gates, under which limits, in what weather.

use super::dice::Dice;
use std::collections::BTreeSet;
use tollgate_engine::{
    bundle::Level,
    ledger::{Account, Unit},
};

/// What may go wrong. A failing seed is tried again without each of them, to see which it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A message does not arrive.
    Loss,
    /// A message arrives twice.
    Duplicate,
    /// A message takes long, so that later ones overtake it.
    Delay,
    /// A gate hears nothing of the control plane for a while.
    Partition,
    /// An Envoy dies and starts again, with nothing.
    GateCrash,
    /// One worker's VM dies; what its process shares stays.
    WorkerCrash,
    /// The control plane dies, before or after a commit, and is down for a while.
    PlaneCrash,
    /// The control plane starts again with yesterday's database.
    Restore,
    /// A node's clock is off, or jumps.
    Clock,
    /// Somebody changes the limits.
    Policy,
    /// A caller goes away in the middle.
    ClientLeaves,
    /// The provider breaks off, or answers with an error.
    Upstream,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 12] = [
        Fault::Loss,
        Fault::Duplicate,
        Fault::Delay,
        Fault::Partition,
        Fault::GateCrash,
        Fault::WorkerCrash,
        Fault::PlaneCrash,
        Fault::Restore,
        Fault::Clock,
        Fault::Policy,
        Fault::ClientLeaves,
        Fault::Upstream,
    ];
}

/// The limits of a run's policy; `None` where it sets none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls per agent and minute.
    pub agent_calls: Option<u64>,
    /// Calls of the workspace per minute.
    pub workspace_calls: Option<u64>,
    /// Tokens per team and day.
    pub team_tokens: Option<u64>,
    /// Nano-USD per team and day.
    pub team_nano_usd: Option<u64>,
    /// Nano-USD of the workspace per day.
    pub workspace_nano_usd: Option<u64>,
    /// Nano-USD per run of an agent.
    pub run_nano_usd: Option<u64>,
}

impl Limits {
    /// The limit on an account, as the auditor sees it.
    pub fn on(&self, account: &Account) -> Option<u64> {
        match (account.level, account.unit) {
            (Level::Agent, Unit::Calls) => self.agent_calls,
            (Level::Agent, Unit::NanoUsd) if account.run.is_some() => self.run_nano_usd,
            (Level::Workspace, Unit::Calls) => self.workspace_calls,
            (Level::Team, Unit::Tokens) => self.team_tokens,
            (Level::Team, Unit::NanoUsd) => self.team_nano_usd,
            (Level::Workspace, Unit::NanoUsd) => self.workspace_nano_usd,
            _ => None,
        }
    }

    /// The policy that sets them.
    pub fn policy(&self) -> String {
        let document = |name: &str,
                        per: &str,
                        calls: Option<u64>,
                        tokens: Option<u64>,
                        nano_usd: Option<u64>| {
            let mut text = format!(
                "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {{name: {name}}}\nspec:\n  scope: global\n"
            );
            if let Some(calls) = calls {
                text += &format!("  rate: {{requests_per_minute: {calls}, per: {per}}}\n");
            }
            if tokens.is_some() || nano_usd.is_some() {
                text += &format!("  budget:\n    per: {per}\n");
            }
            if let Some(tokens) = tokens {
                text += &format!("    daily_limit_tokens: {tokens}\n");
            }
            if let Some(nano_usd) = nano_usd {
                let (dollars, rest) = (nano_usd / 1_000_000_000, nano_usd % 1_000_000_000);
                text += &format!("    daily_limit_usd: {dollars}.{rest:09}\n");
            }
            text
        };
        let by_run = self.run_nano_usd.map_or(String::new(), |nano_usd| {
            let (dollars, rest) = (nano_usd / 1_000_000_000, nano_usd % 1_000_000_000);
            format!(
                "---\napiVersion: tollgate/v1\nkind: Policy\nmetadata: {{name: by-run}}\nspec:\n  agent: {{budget: {{max_cost_usd: {dollars}.{rest:09}}}}}\n"
            )
        });
        let others = [
            document("by-agent", "agent", self.agent_calls, None, None),
            document(
                "by-team",
                "team",
                None,
                self.team_tokens,
                self.team_nano_usd,
            ),
            document(
                "by-workspace",
                "workspace",
                self.workspace_calls,
                None,
                self.workspace_nano_usd,
            ),
        ]
        .join("---\n");
        others + &by_run
    }

    /// Other numbers for the same limits.
    pub fn changed(&self, dice: &mut Dice) -> Limits {
        let mut scale =
            |limit: Option<u64>| limit.map(|limit| (limit * (30 + dice.below(150)) / 100).max(1));
        Limits {
            agent_calls: scale(self.agent_calls),
            workspace_calls: scale(self.workspace_calls),
            team_tokens: scale(self.team_tokens),
            team_nano_usd: scale(self.team_nano_usd),
            workspace_nano_usd: scale(self.workspace_nano_usd),
            run_nano_usd: scale(self.run_nano_usd),
        }
    }
}

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Where all of it comes from.
    pub seed: u64,
    /// What may go wrong.
    pub faults: BTreeSet<Fault>,
    /// How many Envoys.
    pub gates: usize,
    /// How long a lease lasts.
    pub term_secs: u32,
    /// When it begins, seconds since the Unix epoch.
    pub start_secs: i64,
    /// How long things go wrong.
    pub storm_secs: i64,
    /// Calls in that time.
    pub calls: u64,
    /// How many in a thousand of them are the first gate's; the others are spread over all.
    pub hot: u64,
    /// The first policy.
    pub limits: Limits,
    /// Share of messages that are lost, per mille; the same for the next two.
    pub loss: u64,
    /// …that come twice.
    pub duplicates: u64,
    /// …that take long.
    pub delays: u64,
    /// Mean time between two larger faults.
    pub fault_every_ms: i64,
}

/// What a call costs: half of at most 50 tokens of output and of a body of 50 to 170 bytes.
const TYPICAL_NANO_USD: u64 = 16_000;

/// Runs that calls belong to: three of each agent.
const RUNS: u64 = 12;

/// 2026-11-20T23:55:00Z: five minutes before every UTC day's limits start afresh.
const EVENING: i64 = 1_795_218_900;

impl Scenario {
    /// The run of a seed.
    pub fn of(seed: u64) -> Scenario {
        let mut dice = Dice::new(seed);
        let gates = match dice.below(100) {
            0..30 => 1 + dice.below(2),
            30..85 => 3 + dice.below(5),
            85..98 => 8 + dice.below(8),
            _ => 20 + dice.below(31),
        };
        let calls = 60 + dice.below(240);
        // What the calls would take without limits: about 70 tokens and 17,000 nano-USD each, in two teams; of calls, so many a minute.
        let storm_secs = dice.between(20, 90);
        let mut share = |all: u64, present: u64| {
            let limit = (all * (15 + dice.below(120)) / 100).max(1);
            dice.chance(present).then_some(limit)
        };
        let per_minute = calls * 60 / storm_secs.unsigned_abs();
        let limits = Limits {
            agent_calls: share(per_minute / 4, 600),
            workspace_calls: share(per_minute, 400),
            team_tokens: share(calls * 70 / 2, 500),
            team_nano_usd: share(calls * 17_000 / 2, 600),
            workspace_nano_usd: share(calls * 17_000, 700),
            run_nano_usd: share(calls * 17_000 / RUNS, 400),
        };
        let mut weather = |most: u64| match dice.below(3) {
            0 => 0,
            1 => dice.below(most / 5 + 1),
            _ => dice.below(most + 1),
        };
        let (loss, duplicates, delays) = (weather(200), weather(300), weather(300));
        // Half of all runs know only some faults: in a hurricane little gets done.
        let some = dice.chance(500);
        let faults = Fault::ALL
            .into_iter()
            .filter(|_| !some || dice.chance(400))
            .collect();
        Scenario {
            seed,
            faults,
            gates: usize::try_from(gates).unwrap_or(1),
            term_secs: *dice.pick(&[15, 30, 30, 60]),
            start_secs: EVENING + dice.between(0, 330),
            storm_secs,
            calls,
            hot: 0,
            limits,
            loss,
            duplicates,
            delays,
            fault_every_ms: dice.between(1_500, 12_000),
        }
    }

    /// Fair weather, one gate of `gates` with nine tenths of the calls, and a budget of the workspace for a day that `of_hundred` in a hundred
    /// of them use up.
    pub fn busy(seed: u64, gates: usize, calls: u64, of_hundred: u64) -> Scenario {
        Scenario {
            faults: BTreeSet::new(),
            gates,
            term_secs: 60,
            // Noon: no day ends.
            start_secs: EVENING - 43_200,
            storm_secs: 600,
            calls,
            hot: 900,
            limits: Limits {
                agent_calls: None,
                workspace_calls: None,
                team_tokens: None,
                team_nano_usd: None,
                workspace_nano_usd: Some(calls * TYPICAL_NANO_USD * of_hundred / 100),
                run_nano_usd: None,
            },
            loss: 0,
            duplicates: 0,
            delays: 0,
            fault_every_ms: 3_600_000,
            ..Scenario::of(seed)
        }
    }

    /// Fair weather, three gates and a steady load: fifty calls a second for ten minutes, and a budget of the workspace for a day that is for four
    /// times as many.
    pub fn steady(seed: u64) -> Scenario {
        Scenario {
            hot: 0,
            ..Scenario::busy(seed, 3, 30_000, 400)
        }
    }

    /// Whether this may go wrong.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}
