//! Rego, compiled for regorus' virtual machine, the faster of its two evaluators.

use super::{Call, Engine, MEASURED, agent};
use anyhow::{Result, anyhow};
use regorus::{Value, languages::rego::compiler::Compiler, rvm::vm::RegoVM};
use serde_json::json;

const ENTRY: &str = "data.tollgate.allow";

struct Rego {
    machine: RegoVM,
    inputs: Vec<Value>,
}

pub(crate) fn load(agents: usize) -> Result<Box<dyn Engine>> {
    let rules: serde_json::Map<String, serde_json::Value> = (0..agents)
        .map(|number| (agent(number), json!(["gpt-4o"])))
        .collect();
    let data = Value::from_json_str(&json!({"agents": rules}).to_string())?;
    let mut engine = regorus::Engine::new();
    engine.add_policy(
        "policy.rego".to_owned(),
        include_str!("../policies/policy.rego").to_owned(),
    )?;
    engine.add_data(data.clone())?;
    let compiled = engine.compile_with_entrypoint(&ENTRY.into())?;
    let program =
        Compiler::compile_from_policy(&compiled, &[ENTRY]).map_err(|error| anyhow!("{error:?}"))?;
    let mut machine = RegoVM::new();
    machine.load_program(program);
    machine
        .set_data(data)
        .map_err(|error| anyhow!("{error:?}"))?;
    Ok(Box::new(Rego {
        machine,
        inputs: Vec::new(),
    }))
}

fn input(call: &Call, number: usize) -> Result<Value> {
    let mut input =
        json!({"host": call.host, "tools": call.tools, "org": "acme", "agent": agent(number)});
    for (field, value) in [
        ("model", call.model),
        ("mcp_tool", call.mcp_tool),
        ("team", call.team),
    ] {
        if let Some(value) = value {
            input[field] = value.into();
        }
    }
    Value::from_json_str(&input.to_string())
}

impl Rego {
    fn run(&mut self, input: Value) -> Result<bool> {
        self.machine.set_input(input);
        let answer = self
            .machine
            .execute()
            .map_err(|error| anyhow!("{error:?}"))?;
        Ok(answer == Value::Bool(true))
    }
}

impl Engine for Rego {
    fn allows(&mut self, call: &Call, number: usize) -> Result<bool> {
        self.run(input(call, number)?)
    }

    fn prepare(&mut self, agents: &[usize]) -> Result<()> {
        self.inputs = agents
            .iter()
            .map(|number| input(&MEASURED, *number))
            .collect::<Result<_>>()?;
        Ok(())
    }

    fn decide(&mut self, place: usize) -> bool {
        let input = self.inputs[place].clone();
        self.run(input).unwrap_or(false)
    }
}
