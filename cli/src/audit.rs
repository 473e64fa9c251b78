//! `tollgate audit`: see, export and check what was decided.

use crate::{
    api::{Connection, query},
    operate::{Output, agent_id, agent_names, named},
    table::{self, text, usd, when_ms},
};
use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};
use tollgate_control_plane::{audit::verify, public_key};
use tollgate_engine::{bytes::from_base64, envelope::PublicKey};

/// See, export and check what was decided.
#[derive(Debug, Args)]
pub(crate) struct Audit {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the newest records, newest last.
    List {
        /// How many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
        /// Only records of this agent: its id, or its name while it is in service.
        #[arg(long)]
        agent: Option<String>,
        /// Only records with this outcome.
        #[arg(long, value_parser = ["allow", "redact", "hold", "deny"])]
        outcome: Option<String>,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Print the record of one decision, as the gate wrote it.
    Show {
        /// As the caller was told it in `x-tollgate-decision`.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// List records that are missing, records that gates dropped, and forks.
    Gaps {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// List what operators did about calls, and what was noticed about budgets, newest last.
    Events {
        /// How many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Write everything to a file that `tollgate audit verify` can check anywhere.
    Export {
        /// The file; `-` is standard output.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        connection: Connection,
    },
    /// Check an export, offline. Exit code 0 and one line when it is whole; 1 and the first fault, with its line, when it is not.
    Verify {
        /// The export.
        path: PathBuf,
        /// The key to trust (`tollgate workspace show` prints it): base64, or a file with it. Without it the key in the export itself is
        /// taken, which proves only that the file is one piece.
        #[arg(long, value_name = "BASE64|FILE")]
        public_key: Option<String>,
    },
}

impl Audit {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::List {
                limit,
                agent,
                outcome,
                connection,
                output,
            } => list(limit, agent, outcome, connection, &output),
            Command::Show { id, connection } => show(id, connection),
            Command::Gaps { connection, output } => gaps(connection, &output),
            Command::Events {
                limit,
                connection,
                output,
            } => events(limit, connection, &output),
            Command::Export { output, connection } => export(&output, connection),
            Command::Verify { path, public_key } => check(&path, public_key.as_deref()),
        }
    }
}

fn events(limit: u32, connection: Connection, output: &Output) -> anyhow::Result<ExitCode> {
    let api = connection.open()?;
    let query = query(&[("limit", Some(limit.to_string()))]);
    let mut events = api.get(&api.at(&format!("/events{query}"))?)?;
    if let Some(events) = events.as_array_mut() {
        events.reverse();
    }
    if output.json {
        table::json(&events)?;
        return Ok(ExitCode::SUCCESS);
    }
    table::print(
        &events,
        &[
            ("AT", &|row| when_ms(row, "at_ms")),
            ("WHAT", &|row| text(row, "kind")),
            ("WHOM", &|row| text(row, "subject")),
            ("BY", &|row| text(row, "by_name")),
            ("WHY", &|row| text(row, "message")),
        ],
        "nobody has been stopped, no call has been held, and no budget has come near its limit",
    )?;
    Ok(ExitCode::SUCCESS)
}

fn list(
    limit: u32,
    agent: Option<String>,
    outcome: Option<String>,
    connection: Connection,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let api = connection.open()?;
    let agent = agent.map(|agent| agent_id(&api, agent)).transpose()?;
    let mut records = Vec::new();
    let mut before = None;
    // An answer ends also where it would be too long.
    while let Some(left) = (limit as usize)
        .checked_sub(records.len())
        .filter(|left| *left > 0)
    {
        let query = query(&[
            ("newest", Some("true".into())),
            ("limit", Some(left.to_string())),
            ("after", before),
            ("agent", agent.clone()),
            ("outcome", outcome.clone()),
        ]);
        let mut page = api.get(&api.at(&format!("/audit{query}"))?)?;
        if let Value::Array(more) = page["records"].take() {
            records.extend(more);
        }
        before = page["next"].as_i64().map(|next| next.to_string());
        if before.is_none() {
            break;
        }
    }
    records.reverse();
    let records = Value::Array(records);
    if output.json {
        table::json(&records)?;
        return Ok(ExitCode::SUCCESS);
    }
    let names = agent_names(&api)?;
    table::print(
        &records,
        &[
            ("TIME", &|row| when_ms(row, "record/at_ms")),
            ("AGENT", &|row| named(&names, text(row, "record/agent"))),
            ("OUTCOME", &|row| text(row, "record/outcome")),
            ("HOST", &|row| text(row, "record/host")),
            ("MODEL OR TOOL", &|row| subject(&row["record"])),
            ("STATUS", &|row| text(row, "record/status")),
            ("TOKENS", &|row| tokens(&row["record"])),
            ("COST", &|row| usd(row, "record/cost_nano_usd")),
            ("REASONS", &|row| reasons(&row["record"])),
            ("ID", &|row| text(row, "record/id")),
        ],
        "no records",
    )?;
    Ok(ExitCode::SUCCESS)
}

fn show(id: String, connection: Connection) -> anyhow::Result<ExitCode> {
    let api = connection.open()?;
    let page = api.get(&api.at(&format!("/audit{}", query(&[("id", Some(id))])))?)?;
    let Some(row) = page["records"].get(0) else {
        eprintln!("no record of this decision; gates deliver theirs about once a second");
        return Ok(ExitCode::from(1));
    };
    table::json(&row["record"])?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn subject(record: &Value) -> String {
    let mut words: Vec<&str> = Vec::new();
    words.extend(record["model"].as_str());
    words.extend(record["mcp_method"].as_str());
    words.extend(
        record["tools"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str),
    );
    if words.is_empty() {
        "-".to_owned()
    } else {
        words.join(" ")
    }
}

fn tokens(record: &Value) -> String {
    let usage = &record["usage"];
    match (
        usage["input_tokens"].as_u64(),
        usage["output_tokens"].as_u64(),
    ) {
        (None, None) => "-".to_owned(),
        (input, output) => {
            let shown = |tokens: Option<u64>| tokens.map_or("?".to_owned(), |n| n.to_string());
            let estimated = record["estimated"] == Value::Bool(true);
            let mark = if estimated { "~" } else { "" };
            format!("{mark}{}+{}", shown(input), shown(output))
        }
    }
}

pub(crate) fn reasons(record: &Value) -> String {
    let rules: Vec<&str> = record["reasons"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|reason| reason["rule"].as_str())
        .collect();
    if rules.is_empty() {
        "-".to_owned()
    } else {
        rules.join(" ")
    }
}

fn gaps(connection: Connection, output: &Output) -> anyhow::Result<ExitCode> {
    let api = connection.open()?;
    let gaps = api.get(&api.at("/audit/gaps")?)?;
    if output.json {
        table::json(&gaps)?;
    } else {
        table::print(
            &gaps,
            &[
                ("FOUND", &|row| when_ms(row, "found_ms")),
                ("KIND", &|row| text(row, "kind")),
                ("HOLDER", &|row| text(row, "holder")),
                ("EPOCH", &|row| text(row, "epoch")),
                ("FROM RECORD", &|row| text(row, "from_seq")),
                ("RECORDS", &|row| text(row, "records")),
            ],
            "no gaps",
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn export(output: &Path, connection: Connection) -> anyhow::Result<ExitCode> {
    let api = connection.open()?;
    let mut export = api.stream(&api.at("/audit/export")?)?;
    if output == Path::new("-") {
        let mut out = io::stdout().lock();
        io::copy(&mut export, &mut out).context("the export broke off")?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    // Under its name only when it is complete.
    let mut name = output.as_os_str().to_owned();
    name.push(".unfinished");
    let unfinished = PathBuf::from(name);
    let mut file = File::create(&unfinished)
        .with_context(|| format!("cannot write `{}`", unfinished.display()))?;
    let bytes = io::copy(&mut export, &mut file).with_context(|| {
        format!(
            "the export broke off; `{}` is not whole",
            unfinished.display()
        )
    })?;
    file.sync_all()?;
    fs::rename(&unfinished, output)
        .with_context(|| format!("cannot write `{}`", output.display()))?;
    eprintln!("{bytes} bytes written to {}", output.display());
    Ok(ExitCode::SUCCESS)
}

fn check(path: &Path, key: Option<&str>) -> anyhow::Result<ExitCode> {
    let export = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let key = key.map(pinned).transpose()?;
    match verify(&export, key.as_ref()) {
        Ok(whole) => {
            println!("{whole}");
            Ok(ExitCode::SUCCESS)
        }
        Err(fault) => {
            println!("not whole: {}", table::printable(&fault.to_string()));
            Ok(ExitCode::from(1))
        }
    }
}

/// The key itself, or what is in the file of this name: 32 bytes in base64, or a key as the API shows it.
fn pinned(text: &str) -> anyhow::Result<PublicKey> {
    let content = match decoded(text) {
        Some(key) => return Ok(key),
        None => fs::read_to_string(text)
            .with_context(|| format!("`{text}` is neither a key in base64 nor a file with one"))?,
    };
    decoded(content.trim())
        .or_else(|| serde_json::from_str(&content).ok())
        .ok_or_else(|| anyhow!("`{text}` does not hold a key: 32 bytes in base64, or {{\"key_id\", \"public_key\"}}"))
}

fn decoded(text: &str) -> Option<PublicKey> {
    Some(public_key(from_base64(text)?.try_into().ok()?))
}
