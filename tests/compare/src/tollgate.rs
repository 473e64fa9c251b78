//! Ours.

use super::{Call, Engine, MEASURED, agent};
use anyhow::{Result, anyhow};
use serde_json::json;
use tollgate_engine::{
    bundle::{FORMAT, Payload},
    decide::{Outcome, decide},
    facts::{Facts, Head, Headers, Upstream},
    identity::{Caller, GovernanceLevel},
    scan::Hits,
    time::Time,
};

const NOW: i64 = 1_795_132_800;

struct Tollgate {
    payload: Payload,
    facts: Facts,
    head: Head,
    callers: Vec<Caller>,
}

/// The policy, with a document for each of `agents` agents, which denies it these models.
pub(crate) fn payload(agents: usize, denied: &str) -> Result<Payload> {
    let mut documents = read(include_str!("../policies/tollgate.yaml"))?;
    for number in 0..agents {
        documents.extend(read(&format!(
            "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {{name: agent-{number}}}\nspec:\n  scope: agent:{}\n  capabilities: {{deny: [{denied}]}}\n",
            agent(number)
        ))?);
    }
    let compiled = tollgate_policy::compile(&documents, NOW, NOW + 86_400)?;
    // As text, so that a field that is added to bundles is not missed here, where no build of the workspace looks.
    Ok(serde_json::from_value(json!({
        "format": FORMAT,
        "workspace": "ws",
        "channel": "default",
        "revision": 1,
        "issued_at": NOW,
        "expires_at": NOW + 86_400,
        "documents": compiled.documents,
        "automata": compiled.automata,
        "calendars": compiled.calendars,
        "prices": compiled.prices,
        "token_keys": [],
        "revoked_agents": [],
    }))?)
}

pub(crate) const ONE_MODEL: &str = "'model:gpt-4o'";
const THREE_MODELS: &str = "'model:gpt-4o', 'model:o1-pro', 'model:claude-opus-*'";

pub(crate) fn load(agents: usize) -> Result<Box<dyn Engine>> {
    of(payload(agents, ONE_MODEL)?)
}

/// A longer list, which is not in place.
pub(crate) fn load_longer(agents: usize) -> Result<Box<dyn Engine>> {
    of(payload(agents, THREE_MODELS)?)
}

fn of(payload: Payload) -> Result<Box<dyn Engine>> {
    Ok(Box::new(Tollgate {
        payload,
        facts: facts(&MEASURED)?,
        head: head(&MEASURED)?,
        callers: Vec::new(),
    }))
}

fn read(text: &str) -> Result<Vec<tollgate_policy::Document>> {
    let parsed = tollgate_policy::parse("compare.yaml", text.as_bytes(), true);
    match parsed.has_errors() {
        true => Err(anyhow!("{:?}", parsed.diagnostics)),
        false => Ok(parsed.documents),
    }
}

fn head(call: &Call) -> Result<Head> {
    let path = match call.mcp_tool {
        Some(_) => "/mcp",
        None if call.model.is_some() => "/v1/chat/completions",
        None => "/",
    };
    let pairs = [
        (":method", "POST"),
        (":authority", call.host),
        (":path", path),
        ("content-type", "application/json"),
    ];
    let pairs = pairs.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let upstream = Upstream {
        host: None,
        llm: call.model.is_some(),
    };
    Head::read(Headers(&pairs), &upstream).map_err(|why| anyhow!("{}", why.message))
}

fn facts(call: &Call) -> Result<Facts> {
    let mut facts = Facts::of_head(&head(call)?, false);
    facts.said.model = call.model.map(str::to_owned);
    facts.said.tools = call.tools.iter().map(|tool| (*tool).to_owned()).collect();
    facts.said.mcp_tool = call.mcp_tool.map(str::to_owned);
    facts.said.prompt_tokens_bound = 500;
    Ok(facts)
}

fn caller(call: &Call, number: usize) -> Caller {
    Caller {
        workspace: "ws".to_owned(),
        agent: agent(number),
        org: Some("acme".to_owned()),
        team: call.team.map(str::to_owned),
        level: GovernanceLevel::L1,
        acts_for: Vec::new(),
    }
}

impl Engine for Tollgate {
    fn allows(&mut self, call: &Call, number: usize) -> Result<bool> {
        let decision = decide(
            &self.payload,
            &[],
            &caller(call, number),
            &head(call)?,
            &facts(call)?,
            &Hits::default(),
            Time::from_secs(NOW),
        );
        Ok(decision.outcome == Outcome::Allow)
    }

    fn prepare(&mut self, agents: &[usize]) -> Result<()> {
        self.callers = agents
            .iter()
            .map(|number| caller(&MEASURED, *number))
            .collect();
        Ok(())
    }

    fn decide(&mut self, place: usize) -> bool {
        let decision = decide(
            &self.payload,
            &[],
            &self.callers[place],
            &self.head,
            &self.facts,
            &Hits::default(),
            Time::from_secs(NOW),
        );
        decision.outcome == Outcome::Allow
    }
}
