//! Cedar.

use super::{Call, Engine, MEASURED, agent};
use anyhow::Result;
use cedar_policy::{
    Authorizer, Context, Decision, Entities, EntityId, EntityTypeName, EntityUid, PolicySet,
    Request,
};
use serde_json::json;
use std::str::FromStr as _;

struct Cedar {
    authorizer: Authorizer,
    policies: PolicySet,
    /// Agents of the team, and outside it.
    entities: [Entities; 2],
    requests: Vec<Request>,
}

pub(crate) fn load(agents: usize) -> Result<Box<dyn Engine>> {
    let mut text = include_str!("../policies/policy.cedar").to_owned();
    for number in 0..agents {
        text += &format!(
            "forbid(principal == Agent::\"{}\", action, resource) when {{ context has model && context.model == \"gpt-4o\" }};\n",
            agent(number)
        );
    }
    let entities = |team: bool| {
        let agents = (0..agents).map(|number| {
            let mut parents = vec![json!({"type": "Org", "id": "acme"})];
            if team {
                parents.push(json!({"type": "Team", "id": "platform"}));
            }
            json!({"uid": {"type": "Agent", "id": agent(number)}, "attrs": {}, "parents": parents})
        });
        Entities::from_json_value(agents.collect(), None)
    };
    Ok(Box::new(Cedar {
        authorizer: Authorizer::new(),
        policies: PolicySet::from_str(&text)?,
        entities: [entities(true)?, entities(false)?],
        requests: Vec::new(),
    }))
}

fn request(call: &Call, number: usize) -> Result<Request> {
    let uid = |kind: &str, id: &str| -> Result<EntityUid> {
        Ok(EntityUid::from_type_name_and_id(
            EntityTypeName::from_str(kind)?,
            EntityId::new(id),
        ))
    };
    let mut context = json!({"host": call.host, "tools": call.tools});
    if let Some(model) = call.model {
        context["model"] = model.into();
    }
    if let Some(tool) = call.mcp_tool {
        context["mcp_tool"] = tool.into();
    }
    Ok(Request::new(
        uid("Agent", &agent(number))?,
        uid("Action", "call")?,
        uid("Host", call.host)?,
        Context::from_json_value(context, None)?,
        None,
    )?)
}

impl Engine for Cedar {
    fn allows(&mut self, call: &Call, number: usize) -> Result<bool> {
        let entities = &self.entities[usize::from(call.team.is_none())];
        let answer =
            self.authorizer
                .is_authorized(&request(call, number)?, &self.policies, entities);
        Ok(answer.decision() == Decision::Allow)
    }

    fn prepare(&mut self, agents: &[usize]) -> Result<()> {
        self.requests = agents
            .iter()
            .map(|number| request(&MEASURED, *number))
            .collect::<Result<_>>()?;
        Ok(())
    }

    fn decide(&mut self, place: usize) -> bool {
        let answer =
            self.authorizer
                .is_authorized(&self.requests[place], &self.policies, &self.entities[0]);
        answer.decision() == Decision::Allow
    }
}
