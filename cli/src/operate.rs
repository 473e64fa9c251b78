//! The commands that look after a workspace: each is one or two calls of the API and a table.

use crate::{
    api::{self, Connection, query, segment},
    halt,
    offline::read_text,
    table::{self, amount, list_of, printable, text, usd, when_ms, when_secs},
};
use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};
use tollgate_engine::{bytes::from_base64, ledger::Account};

/// The answer as JSON, for programs.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Prints `value` as JSON when asked for, else lets `human` do it.
pub(crate) fn show(
    output: &Output,
    value: &Value,
    human: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    if output.json {
        table::json(value)?;
    } else {
        human()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Make and list workspaces.
#[derive(Debug, Args)]
pub(crate) struct Workspace {
    #[command(subcommand)]
    command: WorkspaceCommand,
}

#[derive(Debug, Subcommand)]
enum WorkspaceCommand {
    /// Make a workspace and its first operator key, which is shown once. Needs the root key.
    Create {
        /// What people call it.
        name: String,
        /// Start without the policy `default-guardrails`; nothing is allowed until another is applied.
        #[arg(long)]
        no_guardrails: bool,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// List the workspaces this key can see.
    List {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Show a workspace and the keys to trust in it.
    Show {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
}

impl Workspace {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            WorkspaceCommand::Create {
                name,
                no_guardrails,
                connection,
                output,
            } => {
                let made = connection.open()?.post(
                    "/v1/workspaces",
                    &json!({"name": name, "guardrails": !no_guardrails}),
                )?;
                show(&output, &made, || {
                    println!("workspace  {}", text(&made, "id"));
                    println!("key        {}", text(&made, "operator/key"));
                    match no_guardrails {
                        true => {
                            println!("policies   none; nothing is allowed until one is applied")
                        }
                        false => println!(
                            "policies   default-guardrails; `tollgate policy show default-guardrails` prints it"
                        ),
                    }
                    println!("Keep the key; it is not shown again. To use both:");
                    println!(
                        "  export TOLLGATE_WORKSPACE={} TOLLGATE_KEY=…",
                        text(&made, "id")
                    );
                    Ok(())
                })
            }
            WorkspaceCommand::List { connection, output } => {
                let all = connection.open()?.get("/v1/workspaces")?;
                show(&output, &all, || {
                    Ok(table::print(
                        &all,
                        &[
                            ("ID", &|row| text(row, "id")),
                            ("NAME", &|row| text(row, "name")),
                            ("CREATED", &|row| when_ms(row, "created_ms")),
                        ],
                        "no workspaces; `tollgate workspace create NAME` makes one",
                    )?)
                })
            }
            WorkspaceCommand::Show { connection, output } => {
                let api = connection.open()?;
                let workspace = api.get(&api.at("")?)?;
                show(&output, &workspace, || {
                    println!("id       {}", text(&workspace, "id"));
                    println!("name     {}", printable(&text(&workspace, "name")));
                    println!("created  {}", when_ms(&workspace, "created_ms"));
                    for key in workspace["trust"].as_array().into_iter().flatten() {
                        println!(
                            "trust    {} {}",
                            text(key, "key_id"),
                            text(key, "public_key")
                        );
                    }
                    Ok(())
                })
            }
        }
    }
}

/// Register agents and issue their tokens.
#[derive(Debug, Args)]
pub(crate) struct Agent {
    #[command(subcommand)]
    command: AgentCommand,
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// Register an agent.
    Create {
        /// What people call it; unique among the agents in service.
        name: String,
        /// Its team.
        #[arg(long)]
        team: Option<String>,
        /// Its organisation.
        #[arg(long)]
        org: Option<String>,
        /// How closely it is watched.
        #[arg(long, default_value = "L1", value_parser = ["L0", "L1", "L2", "L3"])]
        level: String,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// List agents, revoked ones included.
    List {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Revoke an agent: its tokens stop counting at every gate.
    Revoke {
        /// Its id, or its name while it is in service.
        agent: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Issue a token, good for an hour. Prints the token and nothing else.
    Token {
        /// Its id, or its name while it is in service.
        agent: String,
        /// File with the token of the agent that sends this one: what it does is then decided on, and paid for, as done by both. `-` reads standard
        /// input.
        #[arg(long, value_name = "FILE")]
        acts_for: Option<PathBuf>,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
}

/// The id of the agent that `agent` means: the one of this id, else the one in service of this name.
pub(crate) fn agent_id(api: &api::Api, agent: String) -> anyhow::Result<String> {
    let all = api.get(&api.at("/agents")?)?;
    Ok(id_of(&all, &agent).unwrap_or(agent))
}

fn id_of(agents: &Value, agent: &str) -> Option<String> {
    let agents = agents.as_array()?;
    let by_id = agents.iter().find(|row| row["id"] == *agent);
    let named = |row: &&Value| row["name"] == *agent && row["revoked_ms"].is_null();
    let row = by_id.or_else(|| agents.iter().find(named))?;
    Some(text(row, "id"))
}

impl Agent {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            AgentCommand::Create {
                name,
                team,
                org,
                level,
                connection,
                output,
            } => {
                let api = connection.open()?;
                let mut new = json!({"name": name, "level": level});
                for (field, value) in [("team", team), ("org", org)] {
                    if let Some(value) = value {
                        new[field] = value.into();
                    }
                }
                let agent = api.post(&api.at("/agents")?, &new)?;
                show(&output, &agent, || {
                    println!("{}", text(&agent, "id"));
                    Ok(())
                })
            }
            AgentCommand::List { connection, output } => {
                let api = connection.open()?;
                let all = api.get(&api.at("/agents")?)?;
                show(&output, &all, || {
                    Ok(table::print(
                        &all,
                        &[
                            ("ID", &|row| text(row, "id")),
                            ("NAME", &|row| text(row, "name")),
                            ("TEAM", &|row| text(row, "team")),
                            ("ORG", &|row| text(row, "org")),
                            ("LEVEL", &|row| text(row, "level")),
                            ("CREATED", &|row| when_ms(row, "created_ms")),
                            ("REVOKED", &|row| when_ms(row, "revoked_ms")),
                        ],
                        "no agents; `tollgate agent create NAME` registers one",
                    )?)
                })
            }
            AgentCommand::Revoke { agent, connection } => {
                let api = connection.open()?;
                let id = agent_id(&api, agent)?;
                api.delete(&api.at(&format!("/agents/{}", segment(&id)))?)?;
                println!("revoked {}", printable(&id));
                Ok(ExitCode::SUCCESS)
            }
            AgentCommand::Token {
                agent,
                acts_for,
                connection,
                output,
            } => {
                let subject = acts_for.as_deref().map(read_text).transpose()?;
                let api = connection.open()?;
                let id = agent_id(&api, agent)?;
                let path = api.at(&format!("/agents/{}/tokens", segment(&id)))?;
                let mut token = api.post(&path, &Value::Null)?;
                if let Some(subject) = subject {
                    let path = api.at("/tokens/exchange")?;
                    let asked = json!({ "subject_token": subject.trim() });
                    token = api.bearing(&text(&token, "token")).post(&path, &asked)?;
                }
                show(&output, &token, || {
                    println!("{}", text(&token, "token"));
                    Ok(())
                })
            }
        }
    }
}

/// Enrol gates and see what runs.
#[derive(Debug, Args)]
pub(crate) struct Gate {
    #[command(subcommand)]
    command: GateCommand,
}

#[derive(Debug, Subcommand)]
enum GateCommand {
    /// Enrol a gate; its key is shown once.
    Enrol {
        /// Where it stands, or what for.
        name: String,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// List enrolments with what runs under them.
    List {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Revoke an enrolment: its key opens nothing any more.
    Revoke {
        /// Its id.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

impl Gate {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            GateCommand::Enrol {
                name,
                connection,
                output,
            } => {
                let api = connection.open()?;
                let gate = api.post(&api.at("/gates")?, &json!({"name": name}))?;
                show(&output, &gate, || {
                    println!("id         {}", text(&gate, "id"));
                    println!("workspace  {}", text(&gate, "workspace"));
                    println!("key        {}", text(&gate, "key"));
                    for key in gate["trust"].as_array().into_iter().flatten() {
                        println!(
                            "trust      {} {}",
                            text(key, "key_id"),
                            text(key, "public_key")
                        );
                    }
                    println!("Keep the key; it is not shown again.");
                    Ok(())
                })
            }
            GateCommand::List { connection, output } => {
                let api = connection.open()?;
                let gates = api.get(&api.at("/gates")?)?;
                show(&output, &gates, || {
                    Ok(table::print(
                        &holders(&gates),
                        &[
                            ("ID", &|row| text(row, "id")),
                            ("NAME", &|row| text(row, "name")),
                            ("REVOKED", &|row| when_ms(row, "revoked_ms")),
                            ("HOLDER", &|row| text(row, "runs/holder")),
                            ("EPOCH", &|row| text(row, "runs/epoch")),
                            ("REVISION", &|row| text(row, "runs/revision")),
                            ("LAST SEEN", &|row| when_ms(row, "runs/last_seen_ms")),
                            ("LOST", &|row| text(row, "runs/lost")),
                        ],
                        "no gates; `tollgate gate enrol NAME` enrols one",
                    )?)
                })
            }
            GateCommand::Revoke { id, connection } => {
                let api = connection.open()?;
                api.delete(&api.at(&format!("/gates/{}", segment(&id)))?)?;
                println!("revoked {}", printable(&id));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// A row per holder, or one for an enrolment under which nothing runs.
fn holders(gates: &Value) -> Value {
    let mut rows = Vec::new();
    for gate in gates.as_array().into_iter().flatten() {
        let running = gate["holders"].as_array().map_or(&[][..], Vec::as_slice);
        for holder in running {
            let mut row = gate.clone();
            row["runs"] = holder.clone();
            rows.push(row);
        }
        if running.is_empty() {
            rows.push(gate.clone());
        }
    }
    Value::Array(rows)
}

/// Make, list and revoke operator keys.
#[derive(Debug, Args)]
pub(crate) struct Operator {
    #[command(subcommand)]
    command: OperatorCommand,
}

#[derive(Debug, Subcommand)]
enum OperatorCommand {
    /// Make an operator key; it is shown once.
    Create {
        /// Whose key, or what for.
        name: String,
        /// What its bearer is beside being an operator, where a policy names who approves (`approval.escalation_role`); may be given several times.
        /// Takes the root key, or a key that has the role.
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// List operator keys, without their secrets.
    List {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Revoke an operator key, at once.
    Revoke {
        /// Its id.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

impl Operator {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            OperatorCommand::Create {
                name,
                roles,
                connection,
                output,
            } => {
                let api = connection.open()?;
                let key = api.post(
                    &api.at("/operators")?,
                    &json!({"name": name, "roles": roles}),
                )?;
                show(&output, &key, || {
                    println!("id   {}", text(&key, "id"));
                    println!("key  {}", text(&key, "key"));
                    println!("Keep the key; it is not shown again.");
                    Ok(())
                })
            }
            OperatorCommand::List { connection, output } => {
                let api = connection.open()?;
                let keys = api.get(&api.at("/operators")?)?;
                show(&output, &keys, || {
                    Ok(table::print(
                        &keys,
                        &[
                            ("ID", &|row| text(row, "id")),
                            ("NAME", &|row| text(row, "name")),
                            ("ROLES", &|row| list_of(row, "roles")),
                            ("CREATED", &|row| when_ms(row, "created_ms")),
                            ("LAST USED", &|row| when_ms(row, "last_used_ms")),
                            ("REVOKED", &|row| when_ms(row, "revoked_ms")),
                        ],
                        "no operator keys; `tollgate operator create NAME` makes one",
                    )?)
                })
            }
            OperatorCommand::Revoke { id, connection } => {
                let api = connection.open()?;
                api.delete(&api.at(&format!("/operators/{}", segment(&id)))?)?;
                println!("revoked {}", printable(&id));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// See what is left.
#[derive(Debug, Args)]
pub(crate) struct Budget {
    #[command(subcommand)]
    command: BudgetCommand,
}

#[derive(Debug, Subcommand)]
enum BudgetCommand {
    /// List the accounts that gates spend from, in their running windows.
    List {
        /// Those of the runs of this name instead.
        #[arg(long)]
        run: Option<String>,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Show who holds what of one account.
    Show {
        /// As `tollgate budget list` shows it: `<level>:<id>|<unit>|<window>`.
        account: String,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        output: Output,
    },
    /// Let an account be spent from again that its budget has suspended.
    Lift {
        /// As `tollgate budget list` shows it.
        account: String,
        /// Why; it stays on record.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Release what a lost gate was leased and has not reported as used. Only when it is gone for good: what it spent and did not report is
    /// not counted.
    Release {
        /// Its name for itself, as `tollgate budget show` and `tollgate gate list` have it: `h-…`.
        holder: String,
        /// Why; it stays on record.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Amounts of a budget or of a holder's part in it, in the account's unit.
fn in_unit(account: &str, row: &Value, field: &str) -> String {
    amount(
        row,
        field,
        Account::parse(account).map(|account| account.unit),
    )
}

/// Where budgets are: all, or those of runs of one name.
fn budgets_path(api: &api::Api, run: Option<&str>) -> anyhow::Result<String> {
    let query = run.map_or(String::new(), |run| format!("?run={}", segment(run)));
    api.at(&format!("/budgets{query}"))
}

fn list_budgets(
    run: Option<&str>,
    connection: Connection,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let api = connection.open()?;
    let budgets = api.get(&budgets_path(&api, run)?)?;
    let in_unit = |row: &Value, field: &str| in_unit(&text(row, "account"), row, field);
    show(output, &budgets, || {
        Ok(table::print(
            &budgets,
            &[
                ("ACCOUNT", &|row| text(row, "account")),
                ("LIMIT", &|row| in_unit(row, "limit")),
                ("SPENT", &|row| in_unit(row, "settled")),
                ("UNDER WAY", &|row| in_unit(row, "reserved")),
                ("LEASED", &|row| in_unit(row, "leased")),
                ("FORFEITED", &|row| in_unit(row, "forfeited")),
                ("AVAILABLE", &|row| in_unit(row, "available")),
                ("RESETS", &|row| when_secs(row, "resets_at")),
            ],
            "nothing has been spent from any budget in its running window",
        )?)
    })
}

fn show_budget(account: &str, connection: Connection, output: &Output) -> anyhow::Result<ExitCode> {
    let api = connection.open()?;
    let run = Account::parse(account).and_then(|account| account.run);
    let budgets = api.get(&budgets_path(&api, run.as_deref())?)?;
    let budget = budgets
        .as_array()
        .into_iter()
        .flatten()
        .find(|budget| text(budget, "account") == account)
        .with_context(|| {
            format!("nothing has been spent from `{account}` in its running window; `tollgate budget list` shows what has")
        })?;
    show(output, budget, || {
        for (name, field) in [
            ("limit", "limit"),
            ("spent", "settled"),
            ("under way", "reserved"),
            ("leased", "leased"),
            ("forfeited", "forfeited"),
            ("available", "available"),
        ] {
            println!("{name:<10} {}", in_unit(account, budget, field));
        }
        println!("{:<10} {}", "resets", when_secs(budget, "resets_at"));
        for percent in budget["warned"].as_array().into_iter().flatten() {
            println!("{:<10} {percent} % are used", "warned");
        }
        println!();
        Ok(table::print(
            &budget["holders"],
            &[
                ("GATE", &|row| text(row, "gate")),
                ("HOLDER", &|row| text(row, "holder")),
                ("GRANTED", &|row| in_unit(account, row, "granted")),
                ("RETURNED", &|row| in_unit(account, row, "returned")),
                ("SPENT", &|row| in_unit(account, row, "settled")),
                ("UNDER WAY", &|row| in_unit(account, row, "reserved")),
                ("LEASE ENDS", &|row| when_ms(row, "expires_ms")),
                ("LOST", &|row| text(row, "lost")),
            ],
            "no gate has anything of it",
        )?)
    })
}

impl Budget {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            BudgetCommand::List {
                run,
                connection,
                output,
            } => list_budgets(run.as_deref(), connection, &output),
            BudgetCommand::Show {
                account,
                connection,
                output,
            } => show_budget(&account, connection, &output),
            BudgetCommand::Lift {
                account,
                reason,
                connection,
            } => {
                let api = connection.open()?;
                let path = api.at(&format!("/budgets/{}/lift", segment(&account)))?;
                api.post(&path, &json!({"reason": reason}))?;
                println!("lifted; gates hear of it within a second");
                Ok(ExitCode::SUCCESS)
            }
            BudgetCommand::Release {
                holder,
                reason,
                connection,
            } => {
                let api = connection.open()?;
                let path = api.at(&format!("/holders/{}/release", segment(&holder)))?;
                let released = api.post(&path, &json!({"reason": reason}))?;
                println!(
                    "released what it held of {} accounts",
                    text(&released, "accounts")
                );
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Workspace,
    Org,
    Team,
    Agent,
    Model,
    Tool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Step {
    Hour,
    Day,
}

/// Count calls, tokens and cost.
#[derive(Debug, Args)]
pub(crate) struct Usage {
    /// What to count by; `agent` and `model`, one after the other, without it.
    #[arg(long)]
    by: Option<By>,
    /// From this time on, RFC 3339; the last 24 hours without it.
    #[arg(long, value_name = "TIME")]
    from: Option<jiff::Timestamp>,
    /// Up to this time, RFC 3339.
    #[arg(long, value_name = "TIME")]
    to: Option<jiff::Timestamp>,
    /// A row per hour or UTC day.
    #[arg(long)]
    step: Option<Step>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

fn word(value: impl ValueEnum) -> Option<String> {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
}

impl Usage {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let api = self.connection.open()?;
        let names = agent_names(&api)?;
        let mut answers = Vec::new();
        for by in self.by.map_or(vec![By::Agent, By::Model], |by| vec![by]) {
            let query = query(&[
                ("by", word(by)),
                ("from", self.from.map(|at| at.as_second().to_string())),
                ("to", self.to.map(|at| at.as_second().to_string())),
                ("step", self.step.and_then(word)),
            ]);
            answers.push(api.get(&api.at(&format!("/usage{query}"))?)?);
        }
        if self.output.json {
            let answer = match <[Value; 1]>::try_from(answers) {
                Ok([only]) => only,
                Err(all) => Value::Array(all),
            };
            table::json(&answer)?;
            return Ok(ExitCode::SUCCESS);
        }
        for answer in &answers {
            let by = text(answer, "by").to_uppercase();
            table::print(
                &answer["rows"],
                &[
                    ("FROM", &|row| when_secs(row, "start")),
                    (&by, &|row| named(&names, text(row, "key"))),
                    ("CALLS", &|row| text(row, "calls")),
                    ("DENIED", &|row| text(row, "denied")),
                    ("INPUT", &|row| text(row, "input_tokens")),
                    ("CACHED", &|row| text(row, "cached_input_tokens")),
                    ("OUTPUT", &|row| text(row, "output_tokens")),
                    ("REASONING", &|row| text(row, "reasoning_tokens")),
                    ("ESTIMATED", &|row| text(row, "estimated")),
                    ("COST", &|row| usd(row, "cost_nano_usd")),
                ],
                &format!("no usage by {}", by.to_lowercase()),
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Names of the workspace's agents, by id.
pub(crate) fn agent_names(api: &api::Api) -> anyhow::Result<BTreeMap<String, String>> {
    let agents = api.get(&api.at("/agents")?)?;
    Ok(agents
        .as_array()
        .into_iter()
        .flatten()
        .map(|agent| (text(agent, "id"), text(agent, "name")))
        .collect())
}

/// The name of an agent, where `id` is one's.
pub(crate) fn named(names: &BTreeMap<String, String>, id: String) -> String {
    names.get(&id).cloned().unwrap_or(id)
}

/// Show at a glance how a workspace is doing.
#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

impl Status {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let api = self.connection.open()?;
        let workspace = api.get(&api.at("")?)?;
        let envelope = api.get(&api.at("/bundle")?)?;
        // For showing only, so it is not verified: a gate does that.
        let bundle: Value = envelope["payload"]
            .as_str()
            .and_then(from_base64)
            .and_then(|payload| serde_json::from_slice(&payload).ok())
            .unwrap_or_default();
        let gates = api.get(&api.at("/gates")?)?;
        let gaps = api.get(&api.at("/audit/gaps")?)?;
        let halts = api.get(&api.at("/halts")?)?;
        let count = |value: &Value| value.as_array().map_or(0, Vec::len);
        let running = |row: &&Value| row["runs"]["lost"] == Value::Bool(false);
        let rows = holders(&gates);
        let live: Vec<&Value> = rows
            .as_array()
            .into_iter()
            .flatten()
            .filter(running)
            .collect();
        let current = |row: &&&Value| row["runs"]["revision"] == bundle["revision"];
        let status = json!({
            "url": api.url(),
            "workspace": workspace["id"],
            "name": workspace["name"],
            "revision": bundle["revision"],
            "documents": count(&bundle["documents"]),
            "issued_at": bundle["issued_at"],
            "expires_at": bundle["expires_at"],
            "gates": live.len(),
            "gates_on_current_revision": live.iter().filter(current).count(),
            "gaps": count(&gaps),
            "halts": halts,
        });
        show(&self.output, &status, || {
            println!("control plane  {}", api.url());
            println!(
                "workspace      {} ({})",
                printable(&text(&status, "name")),
                text(&status, "workspace")
            );
            println!(
                "bundle         revision {}, {}, signed {}, good until {}",
                text(&status, "revision"),
                match text(&status, "documents").as_str() {
                    "1" => "1 document".to_owned(),
                    count => format!("{count} documents"),
                },
                when_secs(&status, "issued_at"),
                when_secs(&status, "expires_at")
            );
            println!(
                "gates          {} running, {} of them on this revision",
                text(&status, "gates"),
                text(&status, "gates_on_current_revision")
            );
            println!(
                "audit          {}",
                match count(&gaps) {
                    0 => "no gaps".to_owned(),
                    gaps => format!("{gaps} gaps or forks; `tollgate audit gaps` lists them"),
                }
            );
            for halt in halts.as_array().into_iter().flatten() {
                println!("{:<13}  {}", text(halt, "kind"), halt::told(&api, halt)?);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_means_its_agent_whatever_others_are_called() {
        let agents = json!([
            {"id": "a", "name": "b", "revoked_ms": null},
            {"id": "b", "name": "c", "revoked_ms": null},
            {"id": "d", "name": "e", "revoked_ms": 1},
            {"id": "f", "name": "e", "revoked_ms": null},
        ]);
        let of = |agent: &str| id_of(&agents, agent);
        assert_eq!(of("b").as_deref(), Some("b"));
        assert_eq!(of("c").as_deref(), Some("b"));
        assert_eq!(of("d").as_deref(), Some("d"));
        assert_eq!(of("e").as_deref(), Some("f"));
        assert_eq!(of("g"), None);
    }
}
