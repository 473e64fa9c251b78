//! `tollgate approval`: what gates hold, and what operators say to it.

use crate::{
    api::{Connection, query, segment},
    audit::{reasons, subject},
    operate::{Output, agent_names, named, show},
    table::{self, list_of, printable, text, when_ms},
};
use serde_json::{Value, json};
use std::process::ExitCode;

/// See which calls wait for somebody's approval, and grant or deny it.
#[derive(Debug, clap::Args)]
pub(crate) struct Approval {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the calls that wait, oldest first.
    List {
        /// Those that stand otherwise: `granted`, `denied`, `used`, `expired`, `lapsed`; `all` for everything.
        #[arg(long, default_value = "pending")]
        state: String,
        /// How many at most, the newest.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Show what is known of a call: who makes it, where to, with what, and what asks for approval.
    Show {
        /// Its name, as the caller was told it in `x-tollgate-approval`.
        name: String,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Let the call be made, once. Its caller sends it again.
    Grant {
        #[command(flatten)]
        said: Said,
        /// For how long; as long as the policy lets a request wait where it is not said.
        #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
        holds_secs: Option<u32>,
    },
    /// Do not let it be made. A grant that no gate has been given yet is taken back.
    Deny {
        #[command(flatten)]
        said: Said,
    },
}

#[derive(Debug, clap::Args)]
struct Said {
    /// The call's name, `apr-…`.
    name: String,
    /// Why; it stays on record.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    connection: Connection,
}

impl Approval {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::List {
                state,
                limit,
                connection,
                output,
            } => list(state, limit, connection, &output),
            Command::Show {
                name,
                connection,
                output,
            } => {
                let api = connection.open()?;
                let request = api.get(&api.at(&format!("/approvals/{}", segment(&name)))?)?;
                let names = agent_names(&api)?;
                show(&output, &request, || {
                    print(&request, &named(&names, text(&request, "agent")));
                    Ok(())
                })
            }
            Command::Grant { said, holds_secs } => {
                let mut body = json!({"verdict": "granted", "reason": said.reason});
                if let Some(secs) = holds_secs {
                    body["holds_secs"] = json!(secs);
                }
                decide(said, &body)
            }
            Command::Deny { said } => {
                let body = json!({"verdict": "denied", "reason": said.reason});
                decide(said, &body)
            }
        }
    }
}

fn list(
    state: String,
    limit: u32,
    connection: Connection,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let api = connection.open()?;
    let state = Some(state).filter(|state| state != "all");
    let waits = state.as_deref() == Some("pending");
    let query = query(&[("state", state), ("limit", Some(limit.to_string()))]);
    let mut requests = api.get(&api.at(&format!("/approvals{query}"))?)?;
    if let Some(requests) = requests.as_array_mut() {
        requests.reverse();
    }
    let names = agent_names(&api)?;
    show(output, &requests, || {
        Ok(table::print(
            &requests,
            &[
                ("CALL", &|row| text(row, "name")),
                ("ASKED", &|row| when_ms(row, "asked_ms")),
                ("STATE", &|row| text(row, "state")),
                ("UNTIL", &|row| when_ms(row, until(row))),
                ("AGENT", &|row| named(&names, text(row, "agent"))),
                ("HOST", &|row| text(row, "record/host")),
                ("MODEL OR TOOL", &|row| subject(&row["record"])),
                ("RULE", &|row| reasons(&row["record"])),
                ("BY", &|row| text(row, "by_name")),
            ],
            match waits {
                true => "no call waits for approval",
                false => "none",
            },
        )?)
    })
}

/// Until when a request stands as it does.
fn until(request: &Value) -> &'static str {
    match request["state"].as_str() {
        Some("granted" | "lapsed") => "until_ms",
        Some("used") => "used_ms",
        Some("denied") => "decided_ms",
        _ => "expires_ms",
    }
}

fn print(request: &Value, agent: &str) {
    let line = |title: &str, value: String| println!("{title:<9}{}", printable(&value));
    line("call", text(request, "name"));
    line("state", text(request, "state"));
    line("asked", when_ms(request, "asked_ms"));
    line("until", when_ms(request, until(request)));
    line("agent", agent.to_string());
    for field in ["method", "host", "path"] {
        line(field, text(&request["record"], field));
    }
    line("uses", subject(&request["record"]));
    line("rules", reasons(&request["record"]));
    match request["record"]["content"]["request"].as_str() {
        Some(content) => {
            let all = request["record"]["content"]["request_bytes"].as_u64();
            let shown = u64::try_from(content.len()).unwrap_or(u64::MAX);
            let rest = all.filter(|all| *all > shown);
            let rest = rest.map_or(String::new(), |all| {
                format!(" … ({shown} of {all} bytes: the rest is not on record)")
            });
            line("content", format!("{content}{rest}"));
        }
        None => line(
            "content",
            "not on record (`agent.audit.include_message_content` in a policy puts it there)"
                .to_string(),
        ),
    }
    line("roles", list_of(request, "roles"));
    line("notifies", list_of(request, "channels"));
    if !request["by"].is_null() {
        line("by", text(request, "by_name"));
        line("reason", text(request, "reason"));
    }
    if !request["used_by"].is_null() {
        line("decision", text(request, "used_by"));
    }
}

fn decide(said: Said, body: &Value) -> anyhow::Result<ExitCode> {
    let api = said.connection.open()?;
    let path = api.at(&format!("/approvals/{}", segment(&said.name)))?;
    let request = api.put_json(&path, body)?;
    match request["state"].as_str() {
        Some("granted") => println!(
            "granted until {}: the call passes once when it is sent again",
            when_ms(&request, "until_ms")
        ),
        _ => println!("denied"),
    }
    Ok(ExitCode::SUCCESS)
}
