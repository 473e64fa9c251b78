//! Stopping calls, and letting them go again.

use crate::{
    api::{self, Connection, segment},
    operate::{agent_id, agent_names},
    table::{printable, text, when_ms},
};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Whose calls, and why.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    whom: Whom,
}

#[derive(Debug, clap::Subcommand)]
enum Whom {
    /// One run of an agent. What is ordered holds for a day, which is as long as any run lasts.
    Run {
        /// Its agent's id, or its name while it is in service.
        agent: String,
        /// What its calls say in `x-tollgate-run`, or `mcp:…` as records have it.
        run: String,
        #[command(flatten)]
        why: Why,
    },
    /// One agent.
    Agent {
        /// Its id, or its name while it is in service.
        agent: String,
        #[command(flatten)]
        why: Why,
    },
    /// Every agent of a team.
    Team {
        /// The team.
        team: String,
        #[command(flatten)]
        why: Why,
    },
    /// Every agent of an organisation.
    Org {
        /// The organisation.
        org: String,
        #[command(flatten)]
        why: Why,
    },
    /// Every agent there is.
    Workspace {
        #[command(flatten)]
        why: Why,
    },
}

#[derive(Debug, clap::Args)]
struct Why {
    /// Why; callers read it when they are refused, and it stays on record.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    connection: Connection,
}

/// What is to become of the calls.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Pause,
    Resume,
    Kill,
}

impl Order {
    const fn name(self) -> &'static str {
        match self {
            Order::Pause => "paused",
            Order::Resume => "running",
            Order::Kill => "killed",
        }
    }
}

pub(crate) fn run(args: Args, order: Order) -> anyhow::Result<ExitCode> {
    let (why, kind, name, run) = match args.whom {
        Whom::Run { agent, run, why } => (why, "run", agent, run),
        Whom::Agent { agent, why } => (why, "agent", agent, String::new()),
        Whom::Team { team, why } => (why, "team", team, String::new()),
        Whom::Org { org, why } => (why, "org", org, String::new()),
        Whom::Workspace { why } => (why, "global", String::new(), String::new()),
    };
    let api = why.connection.open()?;
    let scope = match kind {
        "global" => kind.to_owned(),
        "agent" => format!("agent:{}", agent_id(&api, name)?),
        "run" => format!("run:{}:{run}", agent_id(&api, name)?),
        kind => format!("{kind}:{name}"),
    };
    let before = match order {
        Order::Resume => api.get(&api.at("/halts")?)?,
        Order::Pause | Order::Kill => Value::Null,
    };
    let body = json!({"order": order.name(), "reason": why.reason});
    let path = api.at(&format!("/halts/{}", segment(&scope)))?;
    let done = api.put_json(&path, &body)?;
    let whom = shown(&api, &scope)?;
    let whom = printable(&whom);
    let mut others = before.as_array().cloned().unwrap_or_default();
    let stopped = others.len();
    others.retain(|halt| halt["scope"] != scope);
    match order {
        Order::Resume if others.len() == stopped => println!("nothing was stopped as {whom}"),
        Order::Pause | Order::Resume | Order::Kill => println!(
            "{} {whom}; bundle revision {} tells the gates",
            order.name(),
            text(&done, "revision")
        ),
    }
    if let Order::Resume = order {
        let agents = api.get(&api.at("/agents")?)?;
        others.retain(|halt| meet(&agents, &scope, &text(halt, "scope")));
        for halt in &others {
            println!("still {} {}", text(halt, "kind"), told(&api, halt)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether an agent in service has calls that both scopes are about.
fn meet(agents: &Value, one: &str, other: &str) -> bool {
    let of_runs = one.starts_with("run:") && other.starts_with("run:");
    let mut agents = agents.as_array().into_iter().flatten();
    (!of_runs || one == other)
        && agents.any(|agent| {
            agent["revoked_ms"].is_null() && is_about(one, agent) && is_about(other, agent)
        })
}

fn is_about(scope: &str, agent: &Value) -> bool {
    match scope.split_once(':') {
        None => true,
        Some(("run", of_agent)) => {
            let id = of_agent.split(':').next();
            agent["id"].as_str() == id
        }
        Some(("agent", id)) => agent["id"] == *id,
        Some((level, name)) => agent[level] == *name,
    }
}

/// Who is stopped, by whom, when and why.
pub(crate) fn told(api: &api::Api, halt: &Value) -> anyhow::Result<String> {
    Ok(format!(
        "{}, by {} at {}: {}",
        printable(&shown(api, &text(halt, "scope"))?),
        printable(&text(halt, "by_name")),
        when_ms(halt, "at_ms"),
        printable(&text(halt, "reason"))
    ))
}

/// A scope as people know it.
pub(crate) fn shown(api: &api::Api, scope: &str) -> anyhow::Result<String> {
    let agent = |id: &str| {
        let name = agent_names(api)?.remove(id);
        Ok::<_, anyhow::Error>(match name {
            Some(name) => format!("agent {name} ({id})"),
            None => format!("agent {id}"),
        })
    };
    Ok(match scope.split_once(':') {
        Some(("agent", id)) => agent(id)?,
        Some(("run", of_agent)) => match of_agent.split_once(':') {
            Some((id, run)) => format!("run {run} of {}", agent(id)?),
            None => scope.to_owned(),
        },
        Some((kind, name)) => format!("{kind} {name}"),
        None => "workspace".to_owned(),
    })
}
