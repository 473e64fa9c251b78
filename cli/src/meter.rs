//! `tollgate meter`: what a recorded provider response used and cost, read as a gate would read it.

use anyhow::{Context as _, bail};
use serde::Serialize;
use std::{
    fmt::Write as _,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};
use tollgate_engine::{
    json::{self, Value},
    meter::{Framing, Meter, Provider},
    price,
};

/// The longest response or request that is read. A gate stops far earlier.
const MAX_INPUT_BYTES: u64 = 64 << 20;

/// Read a provider's response from standard input and print what it used and cost.
///
/// Exit code 0 whatever the response holds: what it does not say is unknown, not zero. 2: the input cannot be read.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Media type of the response: `application/json` or `text/event-stream`.
    #[arg(long, value_name = "TYPE")]
    content_type: String,
    /// The request: its JSON body, or `{method, url, headers, body}`. Names provider and model where the response does not.
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    provider: Option<&'static str>,
    model: Option<String>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cached_input_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
    cost_nano_usd: Option<u64>,
    /// The usage did not come whole from the provider.
    estimated: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match measure(&args, io::stdin().lock()) {
        Ok(report) => {
            let text = if args.json {
                serde_json::to_string(&report)? + "\n"
            } else {
                human(&report)
            };
            io::stdout().write_all(text.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(ExitCode::from(2))
        }
    }
}

fn measure(args: &Args, response: impl io::Read) -> anyhow::Result<Report> {
    let framing = framing(&args.content_type)?;
    let request = match &args.request {
        Some(path) => read_request(path).with_context(|| format!("`{}`", path.display()))?,
        None => Request::default(),
    };
    let response = read_all(response).context("standard input")?;

    let provider = Provider::detect(framing, &response).or(request.provider);
    let Some(provider) = provider else {
        eprintln!("warning: neither response nor request has the shape of a known provider");
        return Ok(Report {
            provider: None,
            model: request.model,
            input_tokens: None,
            output_tokens: None,
            cached_input_tokens: None,
            cache_write_tokens: None,
            reasoning_tokens: None,
            cost_nano_usd: None,
            estimated: true,
        });
    };
    let mut meter = Meter::new(provider, framing, false);
    meter.feed(&response);
    let metered = meter.finish();

    let model = metered.model.or(request.model);
    let prices = tollgate_policy::prices::builtin();
    let price = model.as_deref().and_then(|model| prices.find(model));
    let usage = metered.usage;
    Ok(Report {
        provider: Some(name(provider)),
        cost_nano_usd: price.and_then(|price| price::cost(&usage, price)),
        model,
        input_tokens: usage.input_tokens,
        output_tokens: usage.output_tokens,
        cached_input_tokens: usage.cached_input_tokens,
        cache_write_tokens: usage.cache_write_tokens,
        reasoning_tokens: usage.reasoning_tokens,
        estimated: !metered.complete,
    })
}

fn name(provider: Provider) -> &'static str {
    match provider {
        Provider::OpenAiChat => "openai",
        Provider::AnthropicMessages => "anthropic",
    }
}

/// The framing a media type stands for; letter case and parameters do not matter.
fn framing(content_type: &str) -> anyhow::Result<Framing> {
    let essence = content_type.split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    match essence.as_str() {
        "text/event-stream" => Ok(Framing::Sse),
        "application/json" => Ok(Framing::Json),
        other if other.starts_with("application/") && other.ends_with("+json") => Ok(Framing::Json),
        _ => bail!(
            "cannot read a response of type `{content_type}`; give `application/json` or `text/event-stream`"
        ),
    }
}

/// What a request says about who will answer.
#[derive(Debug, Default, PartialEq)]
struct Request {
    provider: Option<Provider>,
    model: Option<String>,
}

fn read_request(path: &Path) -> anyhow::Result<Request> {
    let bytes = read_all(std::fs::File::open(path)?)?;
    let doc = json::parse(&bytes)?;
    let root = doc.root();
    let Some(url) = root.get("url").and_then(Value::as_str) else {
        return Ok(Request::from_body(root));
    };
    let mut request = match root.get("body") {
        // A body is JSON, or text that holds JSON; anything else says nothing.
        Some(body) => match body.as_str() {
            Some(text) => match json::parse(text.as_bytes()) {
                Ok(doc) => Request::from_body(doc.root()),
                Err(_) => Request::default(),
            },
            None => Request::from_body(body),
        },
        None => Request::default(),
    };
    let path = url.split(['?', '#']).next().unwrap_or_default();
    if path.ends_with("/chat/completions") {
        request.provider = Some(Provider::OpenAiChat);
    } else if path.ends_with("/messages") {
        request.provider = Some(Provider::AnthropicMessages);
    }
    Ok(request)
}

impl Request {
    /// The two request bodies look much alike; the model tells them apart.
    fn from_body(body: Value<'_, '_>) -> Request {
        let model = body.get("model").and_then(Value::as_str);
        let provider = model.as_deref().map(|model| {
            let name = model.rsplit('/').next().unwrap_or(model);
            if name.starts_with("claude-") {
                Provider::AnthropicMessages
            } else {
                Provider::OpenAiChat
            }
        });
        Request {
            provider,
            model: model.map(Into::into),
        }
    }
}

fn read_all(from: impl io::Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_INPUT_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_INPUT_BYTES {
        bail!("longer than {MAX_INPUT_BYTES} bytes");
    }
    Ok(bytes)
}

fn human(report: &Report) -> String {
    let tokens = [
        ("input tokens", report.input_tokens),
        ("output tokens", report.output_tokens),
        ("cached input tokens", report.cached_input_tokens),
        ("cache write tokens", report.cache_write_tokens),
        ("reasoning tokens", report.reasoning_tokens),
    ];
    let unknown = || "unknown".to_string();
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{label:<20} {value}");
    };
    line("provider", report.provider.map_or_else(unknown, Into::into));
    line(
        "model",
        report.model.as_deref().map_or_else(unknown, printable),
    );
    for (label, count) in tokens {
        line(label, count.map_or_else(unknown, |count| count.to_string()));
    }
    line(
        "cost",
        report.cost_nano_usd.map_or_else(unknown, price::usd),
    );
    line(
        "estimated",
        if report.estimated { "yes" } else { "no" }.into(),
    );
    text
}

/// The model name comes from outside: a terminal must not obey what is in it.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
