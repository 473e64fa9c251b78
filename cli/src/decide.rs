//! `tollgate decide`: what a gate would say to one request, offline. The engine decides, as in every gate; budgets are taken as unused.

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, io::Read as _, path::PathBuf, process::ExitCode};
use tollgate_engine::{
    bundle::{FORMAT, Payload, Scope},
    decide::{Outcome, Reason},
    exchange::{Exchange, Step},
    facts::{Headers, Upstream},
    gate::{Config, DEFAULT_BODY_CAP_BYTES, Gate, Secret},
    identity::{Caller, GovernanceLevel},
    time::Time,
};
use tollgate_policy::{Diagnostic, compile, parse, prices};

/// The workspace of a decision that leaves no trace.
const WORKSPACE: &str = "ws-00000000-0000-0000-0000-000000000000";

/// An agent that no document names.
const NO_AGENT: &str = "00000000-0000-0000-0000-000000000000";

/// Decide one request by policy files, as a gate would.
///
/// The caller is who --agent, --team and --org say; without any of them it is somebody to whom every document applies. A token in the
/// request is not looked at. Budgets and rates count as unused.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Policy files, YAML or JSON.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    policy: Vec<PathBuf>,
    /// The request: `{"method", "url", "headers", "body"}` as JSON; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
    /// Decide as of this instant instead of now.
    #[arg(long, value_name = "RFC3339")]
    now: Option<String>,
    /// The calling agent's UUID.
    #[arg(long)]
    agent: Option<String>,
    /// The agent's team.
    #[arg(long)]
    team: Option<String>,
    /// The agent's organisation.
    #[arg(long)]
    org: Option<String>,
    /// The agent's governance level, L0 to L3.
    #[arg(long, default_value = "L0")]
    level: String,
    /// The gate stands in front of an LLM API: any POST it does not understand may cost money.
    #[arg(long)]
    llm: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A request as a file holds it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    #[serde(default = "post")]
    method: String,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, Value>,
    /// Text goes as it is; anything else is sent as JSON.
    #[serde(default)]
    body: Option<Value>,
}

fn post() -> String {
    "POST".to_string()
}

/// What is printed.
#[derive(Serialize)]
struct Verdict<'v> {
    outcome: Outcome,
    reasons: &'v [Reason],
    status: Option<u16>,
    worst_case_nano_usd: Option<String>,
    charges: Vec<Charged>,
}

#[derive(Serialize)]
struct Charged {
    account: String,
    amount: String,
    limit: String,
    rule: String,
    document: String,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let now = match &args.now {
        Some(text) => text
            .parse::<jiff::Timestamp>()
            .with_context(|| format!("`--now {text}` is not an RFC 3339 instant"))?,
        None => jiff::Timestamp::now(),
    };
    let now = Time::from_micros(now.as_microsecond());
    let mut payload = policies(&args.policy, now)?;
    let request = request(&args.request)?;
    let anybody = args.agent.is_none() && args.team.is_none() && args.org.is_none();
    if anybody {
        for document in &mut payload.documents {
            if !matches!(document.scope, Scope::Tool(_)) {
                document.scope = Scope::Global;
            }
        }
    }
    let somewhere = || anybody.then(|| "any".to_string());
    let caller = Caller {
        workspace: WORKSPACE.to_string(),
        agent: args.agent.unwrap_or_else(|| NO_AGENT.to_string()),
        org: args.org.or_else(somewhere),
        team: args.team.or_else(somewhere),
        level: GovernanceLevel::parse(&args.level)
            .ok_or_else(|| anyhow!("`--level` must be L0, L1, L2 or L3"))?,
    };
    let mut gate = Gate::new(Config {
        workspace: WORKSPACE.to_string(),
        channel: "default".to_string(),
        trust: Vec::new(),
        enrolment_key: Secret::new(String::new()),
        upstream: Upstream {
            host: None,
            llm: args.llm,
        },
        openai_key: None,
        anthropic_key: None,
        body_cap_bytes: DEFAULT_BODY_CAP_BYTES,
    });
    gate.install_local(payload)
        .map_err(|error| anyhow!("the policies do not run: {error}"))?;
    let (exchange, status) = decide(&mut gate, caller, &request, now)?;
    print(&exchange, status, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Compiles the files; every error of every file is in the message.
fn policies(files: &[PathBuf], now: Time) -> Result<Payload> {
    let mut documents = Vec::new();
    let mut parsed = Vec::new();
    for file in files {
        let bytes =
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        parsed.push(parse(&name, &bytes, false));
    }
    tollgate_policy::check_together(&mut parsed);
    let mut complaints = String::new();
    for (file, parsed) in files.iter().zip(parsed) {
        for finding in &parsed.diagnostics {
            let Diagnostic {
                code,
                path,
                message,
                line,
                column,
                ..
            } = finding;
            let found = format!(
                "{}:{line}:{column}: {code}: {path}: {message}",
                file.display()
            );
            if finding.is_error() {
                complaints += "\n";
                complaints += &found;
            } else {
                eprintln!("warning: {found}");
            }
        }
        documents.extend(parsed.documents);
    }
    if !complaints.is_empty() {
        bail!("the policies have errors:{complaints}");
    }
    // A bundle that lives for a day around the instant in question.
    let (issued_at, expires_at) = (now.secs(), now.secs().saturating_add(86_400));
    let compiled = compile(&documents, issued_at, expires_at)
        .map_err(|error| anyhow!("the policies do not compile: {error}"))?;
    Ok(Payload {
        format: FORMAT,
        workspace: WORKSPACE.to_string(),
        channel: "default".to_string(),
        revision: 1,
        issued_at,
        expires_at,
        documents: compiled.documents,
        calendars: compiled.calendars,
        prices: prices::builtin(),
        token_keys: Vec::new(),
        revoked_agents: Vec::new(),
    })
}

fn request(file: &PathBuf) -> Result<Request> {
    let mut text = String::new();
    if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text)?;
    } else {
        text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
    }
    serde_json::from_str(&text).with_context(|| {
        format!(
            "{}: a request is {{\"method\", \"url\", \"headers\", \"body\"}} as JSON",
            file.display()
        )
    })
}

/// Drives the exchange up to the point where a gate would send the request on, or answer it.
fn decide(
    gate: &mut Gate,
    caller: Caller,
    request: &Request,
    now: Time,
) -> Result<(Exchange, Option<u16>)> {
    let (authority, target) = split_url(&request.url)?;
    let body = match &request.body {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone().into_bytes()),
        Some(json) => Some(serde_json::to_vec(json)?),
    };
    let mut headers: Vec<(String, String)> = vec![
        (":method".to_string(), request.method.clone()),
        (":authority".to_string(), authority),
        (":path".to_string(), target),
    ];
    let mut typed = false;
    for (name, value) in &request.headers {
        let name = name.to_ascii_lowercase();
        typed |= name == "content-type";
        let values = match value {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            let value = value
                .as_str()
                .ok_or_else(|| anyhow!("the header `{name}` must be text or a list of texts"))?;
            headers.push((name.clone(), value.to_string()));
        }
    }
    if body.is_some() && !typed {
        headers.push(("content-type".to_string(), "application/json".to_string()));
    }
    let pairs: Vec<(&[u8], &[u8])> = headers
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
        .collect();
    let (mut exchange, mut step) =
        Exchange::begin_as(gate, caller, Headers(&pairs), body.is_some(), now, 0);
    loop {
        step = match step {
            Step::NeedBody { .. } => exchange.body(gate, body.as_deref().unwrap_or_default(), now),
            // Nothing is used yet, and what can never fit was refused before.
            Step::Swap(_) => exchange.swapped(gate, Ok(()), now),
            Step::Forward(_) => return Ok((exchange, None)),
            Step::Reply { reply, .. } => return Ok((exchange, Some(reply.status))),
            Step::AwaitLease { .. } => {
                bail!("the engine asked for a lease although none is needed")
            }
        }
    }
}

/// `host[:port]` and path with query of an absolute URL.
fn split_url(url: &str) -> Result<(String, String)> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"))
        .ok_or_else(|| anyhow!("`url` must start with http:// or https://: `{url}`"))?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    let target = match target.chars().next() {
        Some('/') => target.to_string(),
        _ => format!("/{target}"),
    };
    Ok((authority.to_string(), target))
}

fn print(exchange: &Exchange, status: Option<u16>, json: bool) -> Result<()> {
    let decision = exchange.decision();
    let verdict = Verdict {
        outcome: decision.outcome,
        reasons: &decision.reasons,
        status,
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
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&verdict)?);
        return Ok(());
    }
    let outcome = serde_json::to_value(verdict.outcome)?;
    println!("{}", outcome.as_str().unwrap_or_default());
    for reason in verdict.reasons {
        let document = reason
            .document
            .as_ref()
            .map_or(String::new(), |document| format!(" ({document})"));
        println!("  {}{document}: {}", reason.rule, reason.message);
    }
    for charge in &verdict.charges {
        println!(
            "  takes up to {} of {} from {} ({}, {})",
            charge.amount, charge.limit, charge.account, charge.document, charge.rule
        );
    }
    Ok(())
}
