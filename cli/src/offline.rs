//! Deciding without a gate: policy files, a request, and the engine. Budgets and rates count as unused.

pub(crate) use crate::who::Who;

use crate::once::{Once, OnceMap};
use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::Value;
use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};
use tollgate_engine::{
    bundle::{FORMAT, Payload},
    decide::Outcome,
    exchange::{Exchange, Step},
    facts::{Headers, Upstream},
    gate::{Config, DEFAULT_BODY_CAP_BYTES, Gate, Secret},
    identity::Caller,
    ledger::Refusal,
    time::Time,
};
use tollgate_policy::{Document, MAX_FILE_BYTES, compile, parse};

/// The workspace of a decision that leaves no trace.
pub(crate) const WORKSPACE: &str = "ws-00000000-0000-0000-0000-000000000000";

/// How long the bundle of an offline decision lives: a day, as a gate's would.
const BUNDLE_SECS: i64 = 86_400;

/// A request as a file holds it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default = "post")]
    method: String,
    url: String,
    #[serde(default)]
    headers: OnceMap,
    /// Text goes as it is; anything else is sent as JSON.
    #[serde(default)]
    body: Option<Once>,
}

fn post() -> String {
    "POST".to_string()
}

/// What a file holds; `-` is standard input.
pub(crate) fn read_text(file: &Path) -> Result<String> {
    match file.as_os_str() == "-" {
        true => io::read_to_string(io::stdin()),
        false => fs::read_to_string(file),
    }
    .with_context(|| format!("cannot read {}", file.display()))
}

/// Reads an instant.
pub(crate) fn instant(text: &str) -> Result<Time> {
    let instant = text
        .parse::<jiff::Timestamp>()
        .with_context(|| format!("`{text}` is not an RFC 3339 instant"))?;
    Ok(Time::from_micros(instant.as_microsecond()))
}

/// A policy file, one byte more than is accepted at most: the rest would only be refused.
pub(crate) fn read_policy(file: &Path) -> Result<Vec<u8>> {
    let limit = u64::try_from(MAX_FILE_BYTES)?.saturating_add(1);
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .with_context(|| cannot_read(file))?;
    Ok(bytes)
}

pub(crate) fn cannot_read(file: &Path) -> String {
    format!("cannot read `{}`", file.display())
}

/// Reads policy files as one set. Every error of every file is in the message; warnings go to standard error.
pub(crate) fn documents(files: &[PathBuf]) -> Result<Vec<Document>> {
    let mut parsed = Vec::new();
    for file in files {
        let bytes = read_policy(file)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        parsed.push(parse(&name, &bytes, false));
    }
    tollgate_policy::check_together(&mut parsed);
    let mut documents = Vec::new();
    let mut complaints = String::new();
    for (file, parsed) in files.iter().zip(parsed) {
        for finding in &parsed.diagnostics {
            let found = format!(
                "{}:{}:{}: {}: {}: {}",
                file.display(),
                finding.line,
                finding.column,
                finding.code,
                finding.path,
                finding.message
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
    Ok(documents)
}

/// Decides one request at `now`, up to the point where a gate would send it on or answer it; then the status is that of the answer.
/// `llm` puts the gate in front of an LLM API.
pub(crate) fn decide(
    documents: &[Document],
    who: &Who,
    llm: bool,
    request: &Request,
    now: Time,
) -> Result<Decided> {
    let meant = who.meant(documents)?;
    let payload = payload(documents, now)?;
    let mut gate = Gate::new(Config {
        workspace: WORKSPACE.to_string(),
        channel: "default".to_string(),
        trust: Vec::new(),
        enrolment_key: Secret::new(String::new()),
        upstream: Upstream { host: None, llm },
        openai_key: None,
        anthropic_key: None,
        body_cap_bytes: DEFAULT_BODY_CAP_BYTES,
    });
    gate.install_local(payload)
        .map_err(|error| anyhow!("the policies do not run: {error}"))?;
    let (exchange, status) = drive(&mut gate, meant.caller.clone(), request, now)?;
    meant.check(documents, &exchange.explain(&gate, now))?;
    Ok(Decided {
        taken_for: meant.note,
        gate,
        exchange,
        status,
    })
}

/// A request decided.
pub(crate) struct Decided {
    /// Whom the policies made of a caller that nobody named.
    pub(crate) taken_for: Option<String>,
    /// The gate that did.
    pub(crate) gate: Gate,
    /// The call, decided and not sent.
    pub(crate) exchange: Exchange,
    /// The status of the gate's own answer; `None` when the call may go out.
    pub(crate) status: Option<u16>,
}

/// What a gate would run from `now` on, for a day.
pub(crate) fn payload(documents: &[Document], now: Time) -> Result<Payload> {
    let (issued_at, expires_at) = (now.secs(), now.secs().saturating_add(BUNDLE_SECS));
    let compiled = compile(documents, issued_at, expires_at)
        .map_err(|error| anyhow!("the policies do not compile: {error}"))?;
    Ok(Payload {
        format: FORMAT,
        workspace: WORKSPACE.to_string(),
        channel: "default".to_string(),
        revision: 1,
        issued_at,
        expires_at,
        documents: compiled.documents,
        shadow: compiled.shadow,
        automata: compiled.automata,
        calendars: compiled.calendars,
        prices: compiled.prices,
        token_keys: Vec::new(),
        revoked_agents: Vec::new(),
        halts: Vec::new(),
    })
}

fn drive(
    gate: &mut Gate,
    caller: Caller,
    request: &Request,
    now: Time,
) -> Result<(Exchange, Option<u16>)> {
    let (authority, target) = split_url(&request.url)?;
    let body = match request.body.as_ref().map(|Once(body)| body) {
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
    for (name, value) in &request.headers.0 {
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
            // Nobody is there to approve it.
            Step::Swap(_) if exchange.decision().outcome == Outcome::Hold => {
                exchange.swapped(gate, Err((0, Refusal::NOTHING_LEFT)), now)
            }
            // Nothing is used yet, and what can never fit was refused before.
            Step::Swap(_) => exchange.swapped(gate, Ok(Vec::new()), now),
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
