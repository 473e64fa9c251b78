//! Stopping calls, and letting them go again.

use crate::{
    api::{self, Connection, segment},
    operate::{agent_id, agent_names},
    table::{printable, text},
};
use serde_json::json;
use std::process::ExitCode;

/// Whose calls, and why.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    whom: Whom,
}

#[derive(Debug, clap::Subcommand)]
enum Whom {
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
    let (why, kind, name) = match args.whom {
        Whom::Agent { agent, why } => (why, "agent", agent),
        Whom::Team { team, why } => (why, "team", team),
        Whom::Org { org, why } => (why, "org", org),
        Whom::Workspace { why } => (why, "global", String::new()),
    };
    let api = why.connection.open()?;
    let scope = match kind {
        "global" => kind.to_owned(),
        "agent" => format!("agent:{}", agent_id(&api, name)?),
        kind => format!("{kind}:{name}"),
    };
    let body = json!({"order": order.name(), "reason": why.reason});
    let path = api.at(&format!("/halts/{}", segment(&scope)))?;
    let done = api.put_json(&path, &body)?;
    println!(
        "{} {}; bundle revision {} tells the gates",
        order.name(),
        printable(&shown(&api, &scope)?),
        text(&done, "revision")
    );
    Ok(ExitCode::SUCCESS)
}

/// A scope as people know it.
pub(crate) fn shown(api: &api::Api, scope: &str) -> anyhow::Result<String> {
    Ok(match scope.split_once(':') {
        Some(("agent", id)) => {
            let name = agent_names(api)?.remove(id);
            format!("agent {}", name.as_deref().unwrap_or(id))
        }
        Some((kind, name)) => format!("{kind} {name}"),
        None => "workspace".to_owned(),
    })
}
