//! `tollgate decide`: what a gate would say to one request, offline; `tollgate explain`: and why. The engine decides, as in every gate;
//! budgets are taken as unused.

use crate::{
    folder,
    offline::{self, Decided, Request, Who},
};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use tollgate_engine::{
    decide::{Met, Outcome, Reason, Verdict},
    time::Time,
};

/// Decide one request by policy files, as a gate would.
///
/// The caller is who --agent, --team and --org say. Without any of them it is somebody whom every document covers; where there can be no such
/// caller, or a condition asks for what nothing says, you are asked to say who calls. A token in the request is not looked at. Budgets and rates count as unused.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    call: CallArgs,
}

/// Explain one decision: every document the call meets, what each rule says to it, and what would turn the outcome.
///
/// Takes what `tollgate decide` takes.
#[derive(clap::Args)]
pub(crate) struct Explain {
    #[command(flatten)]
    call: CallArgs,
}

#[derive(clap::Args)]
struct CallArgs {
    /// Policy files, YAML or JSON, or folders, searched with what is below them.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    policy: Vec<PathBuf>,
    /// The request: `{"method", "url", "headers", "body"}` as JSON; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Decide as of this instant instead of now.
    #[arg(long, value_name = "RFC3339")]
    now: Option<String>,
    #[command(flatten)]
    who: Who,
    /// The gate stands in front of an LLM API: any POST it does not understand may cost money.
    #[arg(long)]
    llm: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl CallArgs {
    fn decide(&self) -> Result<(Decided, Time)> {
        let now = match &self.now {
            Some(text) => offline::instant(text).with_context(|| format!("bad `--now {text}`"))?,
            None => Time::from_micros(jiff::Timestamp::now().as_microsecond()),
        };
        let documents = offline::documents(&folder::policies(&self.policy)?)?;
        let request = request(&self.request)?;
        let decided = offline::decide(&documents, &self.who, self.llm, &request, now)?;
        if let Some(caller) = &decided.taken_for {
            eprintln!(
                "note: nobody is named, so the caller is one whom every policy covers: {caller}"
            );
        }
        Ok((decided, now))
    }
}

/// What is printed.
#[derive(Serialize)]
struct Said<'v> {
    outcome: Outcome,
    reasons: &'v [Reason],
    status: Option<u16>,
    worst_case_nano_usd: Option<String>,
    charges: Vec<Charged>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<InShadow<'v>>,
}

/// What documents in shadow would have made of it.
#[derive(Serialize)]
struct InShadow<'v> {
    outcome: Outcome,
    reasons: &'v [Reason],
}

#[derive(Serialize)]
struct Charged {
    account: String,
    amount: String,
    limit: String,
    rule: String,
    document: String,
}

#[derive(Serialize)]
struct Explained<'v> {
    #[serde(flatten)]
    said: Said<'v>,
    documents: Vec<Met>,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let (decided, _) = args.call.decide()?;
    let said = said(&decided);
    if args.call.json {
        println!("{}", serde_json::to_string_pretty(&said)?);
    } else {
        print(&said)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn explain(args: Explain) -> Result<ExitCode> {
    let (decided, now) = args.call.decide()?;
    let explained = Explained {
        said: said(&decided),
        documents: decided.exchange.explain(&decided.gate, now),
    };
    if args.call.json {
        println!("{}", serde_json::to_string_pretty(&explained)?);
    } else {
        print(&explained.said)?;
        print!("{}", in_words(&explained));
    }
    Ok(ExitCode::SUCCESS)
}

fn request(file: &Path) -> Result<Request> {
    let text = offline::read_text(file)?;
    serde_json::from_str(&text).with_context(|| {
        format!(
            "{}: a request is {{\"method\", \"url\", \"headers\", \"body\"}} as JSON",
            file.display()
        )
    })
}

fn said(decided: &Decided) -> Said<'_> {
    let decision = decided.exchange.decision();
    Said {
        outcome: decision.outcome,
        reasons: &decision.reasons,
        status: decided.status,
        worst_case_nano_usd: decision
            .worst_case_nano_usd
            .map(|amount| amount.to_string()),
        charges: decision
            .charges
            .iter()
            .map(|charge| Charged {
                account: charge.account.to_string(),
                amount: charge.amount.to_string(),
                limit: charge.limit.to_string(),
                rule: charge.rule.clone(),
                document: charge.document.clone(),
            })
            .collect(),
        shadow: decided.exchange.shadow().map(|shadow| InShadow {
            outcome: shadow.outcome,
            reasons: &shadow.reasons,
        }),
    }
}

fn print(said: &Said<'_>) -> Result<()> {
    println!("{}", word(said.outcome)?);
    print_reasons(said.reasons);
    for charge in &said.charges {
        println!(
            "  takes up to {} of {} from {} ({}, {})",
            charge.amount, charge.limit, charge.account, charge.document, charge.rule
        );
    }
    if let Some(shadow) = &said.shadow {
        println!("in shadow, without effect: {}", word(shadow.outcome)?);
        print_reasons(shadow.reasons);
    }
    Ok(())
}

fn word(outcome: Outcome) -> Result<String> {
    let outcome = serde_json::to_value(outcome)?;
    Ok(outcome.as_str().unwrap_or_default().to_string())
}

fn print_reasons(reasons: &[Reason]) {
    for reason in reasons {
        let document = reason
            .document
            .as_ref()
            .map_or(String::new(), |document| format!(" ({document})"));
        println!("  {}{document}: {}", reason.rule, reason.message);
    }
}

fn in_words(explained: &Explained<'_>) -> String {
    let mut out = String::new();
    for met in &explained.documents {
        let applies = match (met.applies, met.shadow) {
            (true, false) => "applies",
            (true, true) => "applies in shadow, without effect",
            (false, _) => "does not apply to this call",
        };
        out += &format!("\n{} ({}) {applies}\n", met.document, met.scope);
        if !met.applies {
            continue;
        }
        if met.rules.is_empty() {
            out += "  restricts nothing\n";
        }
        for rule in &met.rules {
            let verdict = match rule.verdict {
                Verdict::Passes => "passes ",
                Verdict::Refuses => "refuses",
                Verdict::Redacts => "redacts",
                Verdict::Holds => "holds  ",
                Verdict::Silent => "silent ",
            };
            out += &format!("  {verdict}  {}: {}\n", rule.rule, rule.says);
        }
    }
    let ruled = |wanted: &[Verdict]| -> Vec<String> {
        let rules = explained.documents.iter().flat_map(|met| {
            let applying = met.rules.iter().filter(|_| met.applies && !met.shadow);
            applying.map(move |rule| (met, rule))
        });
        rules
            .filter(|(_, rule)| wanted.contains(&rule.verdict) && !rule.otherwise.is_empty())
            .map(|(met, rule)| format!("  {} ({}): {}\n", rule.rule, met.document, rule.otherwise))
            .collect()
    };
    let refusing = ruled(&[Verdict::Refuses, Verdict::Redacts, Verdict::Holds]);
    let turns = ruled(&[Verdict::Passes, Verdict::Silent]);
    if !refusing.is_empty() {
        out += match explained.said.outcome {
            Outcome::Redact => "\nto let it pass as it is, all of these:\n",
            Outcome::Allow | Outcome::Hold | Outcome::Deny => "\nto let it pass, all of these:\n",
        };
        out += &refusing.concat();
    } else if explained.said.outcome == Outcome::Allow && !turns.is_empty() {
        out += "\nwhat would be refused:\n";
        out += &turns.concat();
    }
    out
}
