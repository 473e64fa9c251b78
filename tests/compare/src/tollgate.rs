//! Ours.

use super::{Call, Engine, MEASURED, agent};
use anyhow::{Result, anyhow};
use tollgate_engine::{
    bundle::{FORMAT, Payload},
    decide::{Outcome, decide},
    facts::{BodyKind, Dialect, Facts, Head, Route},
    identity::{Caller, GovernanceLevel},
    meter::Provider,
    scan::Hits,
    time::Time,
};

const NOW: i64 = 1_795_132_800;

struct Tollgate {
    payload: Payload,
    facts: Facts,
    head: Head,
    caller: Caller,
    agents: Vec<String>,
}

/// The policy, with a document for each of `agents` agents.
pub(crate) fn payload(agents: usize) -> Result<Payload> {
    let mut documents = read(include_str!("../policies/tollgate.yaml"))?;
    for number in 0..agents {
        documents.extend(read(&format!(
            "apiVersion: tollgate/v1\nkind: Policy\nmetadata: {{name: agent-{number}}}\nspec:\n  scope: agent:{}\n  capabilities: {{deny: ['model:gpt-4o']}}\n",
            agent(number)
        ))?);
    }
    let compiled = tollgate_policy::compile(&documents, NOW, NOW + 86_400)?;
    Ok(Payload {
        format: FORMAT,
        workspace: "ws".to_owned(),
        channel: "default".to_owned(),
        revision: 1,
        issued_at: NOW,
        expires_at: NOW + 86_400,
        documents: compiled.documents,
        calendars: compiled.calendars,
        prices: tollgate_policy::prices::builtin(),
        token_keys: Vec::new(),
        revoked_agents: Vec::new(),
    })
}

pub(crate) fn load(agents: usize) -> Result<Box<dyn Engine>> {
    Ok(Box::new(Tollgate {
        payload: payload(agents)?,
        facts: facts(&MEASURED),
        head: head(&MEASURED),
        caller: caller(&MEASURED, 0),
        agents: Vec::new(),
    }))
}

fn read(text: &str) -> Result<Vec<tollgate_policy::Document>> {
    let parsed = tollgate_policy::parse("compare.yaml", text.as_bytes(), true);
    match parsed.has_errors() {
        true => Err(anyhow!("{:?}", parsed.diagnostics)),
        false => Ok(parsed.documents),
    }
}

fn head(call: &Call) -> Head {
    let (path, route, dialect) = match call.mcp_tool {
        Some(_) => ("/mcp", Route::Mcp, Dialect::Mcp),
        None if call.model.is_some() => (
            "/v1/chat/completions",
            Route::Llm(Provider::OpenAiChat),
            Dialect::OpenAi,
        ),
        None => ("/", Route::Plain, Dialect::Problem),
    };
    Head {
        method: "POST".to_owned(),
        host: call.host.to_owned(),
        path: path.to_owned(),
        target: path.as_bytes().to_vec(),
        route,
        dialect,
        body: BodyKind::Json,
        mcp_method: None,
        mcp_name: None,
    }
}

fn facts(call: &Call) -> Facts {
    let mut facts = Facts::of_head(&head(call), false);
    facts.said.model = call.model.map(str::to_owned);
    facts.said.tools = call.tools.iter().map(|tool| (*tool).to_owned()).collect();
    facts.said.mcp_tool = call.mcp_tool.map(str::to_owned);
    facts.said.prompt_tokens_bound = 500;
    facts
}

fn caller(call: &Call, number: usize) -> Caller {
    Caller {
        workspace: "ws".to_owned(),
        agent: agent(number),
        org: Some("acme".to_owned()),
        team: call.team.map(str::to_owned),
        level: GovernanceLevel::L1,
    }
}

impl Engine for Tollgate {
    fn allows(&mut self, call: &Call, number: usize) -> Result<bool> {
        let decision = decide(
            &self.payload,
            &[],
            &caller(call, number),
            &head(call),
            &facts(call),
            &Hits::default(),
            Time::from_secs(NOW),
        );
        Ok(decision.outcome == Outcome::Allow)
    }

    fn prepare(&mut self, agents: usize) -> Result<()> {
        self.agents = (0..agents).map(agent).collect();
        Ok(())
    }

    fn decide(&mut self, number: usize) -> bool {
        // Who calls has just been read from a token, like all other facts.
        self.caller.agent.clear();
        self.caller.agent.push_str(&self.agents[number]);
        let decision = decide(
            &self.payload,
            &[],
            &self.caller,
            &self.head,
            &self.facts,
            &Hits::default(),
            Time::from_secs(NOW),
        );
        decision.outcome == Outcome::Allow
    }
}
