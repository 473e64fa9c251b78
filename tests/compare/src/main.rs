//! Decides the same calls by the same policy with Tollgate, Cedar and Rego, holds their verdicts together, and measures a decision on facts
//! that are parsed already. Prints a table; `cargo xtask bench --only policy` puts it into the report.
//!
//! Each engine is used as its own documentation says is fast: policies compiled once, requests built before the clock starts. Cedar's
//! policies are its own language's words for ours, a `forbid` each; in Rego the rules of single agents are data. Neither has budgets,
//! so there are none here.

mod cedar;
mod loading;
mod rego;
mod tollgate;

use anyhow::{Context as _, Result, ensure};
use std::{fmt::Write as _, hint::black_box, time::Instant};

/// Who calls where with what.
#[derive(Clone, Copy)]
struct Call {
    host: &'static str,
    model: Option<&'static str>,
    tools: &'static [&'static str],
    mcp_tool: Option<&'static str>,
    team: Option<&'static str>,
    allowed: bool,
}

const MODEL: &str = "gpt-4o-mini";

/// What is measured; the others are there to show that all three engines run the same policy.
const MEASURED: Call = Call {
    host: "api.openai.com",
    model: Some(MODEL),
    tools: &["search", "calendar"],
    mcp_tool: None,
    team: Some("platform"),
    allowed: true,
};

/// Each refused by one document and by that alone, where it is refused.
const CALLS: [Call; 13] = [
    MEASURED,
    Call {
        host: "files.slack.com",
        model: None,
        tools: &[],
        team: None,
        allowed: false,
        ..MEASURED
    },
    Call {
        host: "hooks.slack.com",
        model: None,
        tools: &[],
        ..MEASURED
    },
    Call {
        host: "evil.example",
        tools: &[],
        allowed: false,
        ..MEASURED
    },
    Call {
        host: "hooks.slack.com",
        allowed: false,
        ..MEASURED
    },
    Call {
        model: Some("gpt-5-mini"),
        allowed: false,
        ..MEASURED
    },
    Call {
        model: Some("gpt-5-mini"),
        team: None,
        ..MEASURED
    },
    Call {
        model: Some("gpt-4o-audio-preview"),
        team: None,
        allowed: false,
        ..MEASURED
    },
    Call {
        model: Some("gpt-4o"),
        allowed: false,
        ..MEASURED
    },
    Call {
        tools: &["bash"],
        allowed: false,
        ..MEASURED
    },
    Call {
        tools: &["delete_repo"],
        team: None,
        allowed: false,
        ..MEASURED
    },
    Call {
        tools: &["mail"],
        allowed: false,
        ..MEASURED
    },
    Call {
        model: None,
        tools: &[],
        mcp_tool: Some("git_push"),
        allowed: false,
        ..MEASURED
    },
];

/// Agents with a document of their own.
const MANY: usize = 10_000;

/// The agent with this number. Not in the order of the numbers, so that neighbours are not neighbours in memory.
fn agent(number: usize) -> String {
    let mixed = (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    format!(
        "{:08x}-{:04x}-4000-8000-{number:012x}",
        mixed >> 32,
        mixed & 0xffff
    )
}

/// An engine with the policy loaded.
trait Engine {
    /// Whether the call of this agent is allowed.
    fn allows(&mut self, call: &Call, agent: usize) -> Result<bool>;
    /// Gets ready to decide [`MEASURED`] for each of these agents.
    fn prepare(&mut self, agents: &[usize]) -> Result<()>;
    /// Decides it for the one at this place among them.
    fn decide(&mut self, place: usize) -> bool;
}

/// Calls whose facts have just been read when the clock starts, as they have been where a gate decides.
const AT_ONCE: usize = 50;

/// An engine with a document for each of so many agents, which decides so many calls in a round.
struct Loaded {
    engine: Box<dyn Engine>,
    agents: usize,
    calls: usize,
    next: usize,
}

impl Loaded {
    fn of(
        load: fn(usize) -> Result<Box<dyn Engine>>,
        agents: usize,
        calls: usize,
    ) -> Result<Loaded> {
        let mut engine = load(agents)?;
        for (number, call) in CALLS.iter().enumerate() {
            ensure!(
                engine.allows(call, agents - 1)? == call.allowed,
                "call {number} with {agents} agents"
            );
        }
        Ok(Loaded {
            engine,
            agents,
            calls,
            next: 0,
        })
    }

    /// Nanoseconds per decision.
    fn round(&mut self) -> Result<u128> {
        let mut took = 0;
        for _ in 0..self.calls / AT_ONCE {
            // A step that is prime to the number of agents meets all of them, far apart.
            let callers = [(); AT_ONCE].map(|()| {
                self.next = (self.next + 7_919) % self.agents;
                self.next
            });
            self.engine.prepare(&callers)?;
            let start = Instant::now();
            for place in 0..AT_ONCE {
                ensure!(
                    black_box(self.engine.decide(black_box(place))),
                    "the measured call is allowed"
                );
            }
            took += start.elapsed().as_nanos();
        }
        Ok(took / self.calls as u128)
    }
}

/// Nanoseconds per decision with few documents and with many: for each the least of many rounds, since other programs on the machine only
/// ever add. By turns, so that a machine that gets slower does so for both.
fn measure(few: &mut Loaded, many: &mut Loaded) -> Result<(u128, u128)> {
    const ROUNDS: usize = 61;
    let mut least = (u128::MAX, u128::MAX);
    for _ in 0..ROUNDS {
        least = (least.0.min(few.round()?), least.1.min(many.round()?));
    }
    Ok(least)
}

fn main() -> Result<()> {
    let mut report = String::from(
        "| engine | 10 documents | 10,009 documents: one more for each of 10,000 agents |\n|---|---|---|\n",
    );
    let engines: [(&str, fn(usize) -> Result<Box<dyn Engine>>, usize); 4] = [
        ("Tollgate", tollgate::load, 20_000),
        (
            "Tollgate, three models in each agent's document and not one",
            tollgate::load_longer,
            20_000,
        ),
        ("cedar-policy 4.14.1", cedar::load, 2_000),
        ("regorus 0.14.1 (RVM)", rego::load, 2_000),
    ];
    let mut tollgate = (0, 0);
    for (name, load, calls) in engines {
        let mut few = Loaded::of(load, 1, calls).context(name)?;
        // Cedar looks at every policy for every request.
        let fewer = if name.starts_with("cedar") { 40 } else { 1 };
        let mut many = Loaded::of(load, MANY, calls / fewer).context(name)?;
        let (small, large) = measure(&mut few, &mut many)?;
        if name == "Tollgate" {
            tollgate = (small, large);
        }
        writeln!(report, "| {name} | {small} ns | {large} ns |")?;
    }
    writeln!(
        report,
        "\nGoals: Tollgate at most 1,000 ns with 10 documents, and at most 1.3 times its own figure with 10,009 (here {}.{:02} times).",
        tollgate.1 / tollgate.0,
        tollgate.1 * 100 / tollgate.0 % 100
    )?;
    loading::report(&mut report)?;
    print!("{report}");
    Ok(())
}
