//! Decides a call in this process: `decide COMPONENT SETTINGS BUNDLE MODEL`, secrets in the environment.

use anyhow::{Error, Result, bail};
use std::{env, fs, time::SystemTime};
use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, Store};

mod bindings {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    wasmtime::component::bindgen!({ world: "gate", path: "../wit" });
}
use bindings::{
    Gate,
    exports::tollgate::policy::calls::{Caller, GovernanceLevel},
};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [component, settings, bundle, model] = arguments.as_slice() else {
        bail!("usage: decide COMPONENT SETTINGS BUNDLE MODEL");
    };
    let engine = Engine::default();
    let mut store = Store::new(&engine, ());
    let component = Component::from_file(&engine, component)?;
    let instance = Gate::instantiate(&mut store, &component, &Linker::new(&engine))?;
    let calls = instance.tollgate_policy_calls();

    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let now = i64::try_from(now.as_micros())?;
    let secrets: Vec<(String, String)> = env::vars().collect();
    let gate = calls
        .gate()
        .call_open(&mut store, &fs::read(settings)?, &secrets)?
        .map_err(Error::msg)?;
    calls
        .gate()
        .call_install(&mut store, gate, &fs::read(bundle)?, now)?
        .map_err(|refused| Error::msg(refused.message))?;
    let caller = Caller {
        agent: "00000000-0000-4000-8000-00000000000a".to_owned(),
        team: Some("platform".to_owned()),
        org: None,
        level: GovernanceLevel::L1,
        acts_for: Vec::new(),
    };
    let headers = [
        (":method", "POST"),
        (":path", "/v1/chat/completions"),
        (":authority", "api.openai.com"),
        ("content-type", "application/json"),
    ]
    .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    let body = serde_json::json!({"model": model, "max_tokens": 10, "messages": []}).to_string();
    let decision = calls.call_decide(
        &mut store,
        gate,
        &caller,
        &headers,
        Some(body.as_bytes()),
        now,
    )?;
    let outcome = format!("{:?}", decision.outcome);
    let outcome = outcome.trim_start_matches("Outcome::").to_lowercase();
    let rules = decision.reasons.into_iter().map(|reason| reason.rule);
    let words: Vec<String> = [outcome].into_iter().chain(rules).collect();
    println!("{}", words.join(" "));
    Ok(())
}
