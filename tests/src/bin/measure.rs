//! What a call into the WIT component costs, for `cargo xtask bench --only edge`. To be built with `--release`: the host counts too.

use anyhow::{Context as _, Result};
use serde_json::json;
use std::{hint::black_box, time::Instant};
use tollgate_tests::{
    built,
    component::{
        Component,
        calls::{Caller, GovernanceLevel},
    },
    corpus::{
        case::{AGENT, Agent, BundleState, Case, TokenKind, Upstream},
        control_plane::{self, ControlPlane},
    },
};

/// The patterns, model list, budget and rate of the other benchmarks.
const POLICY: &str = r#"
apiVersion: tollgate/v1
kind: Policy
metadata: {name: bench}
spec:
  capabilities: {allow: ["model:gpt-5-mini*"]}
  data: {sensitive_patterns: ['sk-[A-Za-z0-9_-]{20,}', 'AKIA[0-9A-Z]{16}']}
  budget: {daily_limit_usd: 1000000}
  rate: {requests_per_minute: 1000000000}
"#;

/// The best of so many rounds: what it takes, not what the machine did besides.
const ROUNDS: u32 = 9;

fn main() -> Result<()> {
    let case = Case {
        name: "measure".to_owned(),
        about: String::new(),
        policies: POLICY.to_owned(),
        agent: Agent::default(),
        now: "2026-11-20T10:00:05Z".to_owned(),
        upstream: Upstream::Llm,
        halts: Vec::new(),
        bundle: BundleState::Present,
        steps: Vec::new(),
    };
    let now = case.start()?.micros();
    let mut control_plane = ControlPlane::new(&case)?;
    let envelope = control_plane.bundle(1)?;
    let token = control_plane.token(TokenKind::Valid)?.context("a token")?;
    let (settings, secrets) = control_plane::settings(Upstream::Llm);
    let secrets: Vec<_> = secrets
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();

    let component = Component::load_optimised(built::component())?;
    let mut instance = component.instance()?;
    let gate = instance
        .calls(|calls, store| calls.gate().call_open(store, settings.as_bytes(), &secrets))?
        .map_err(anyhow::Error::msg)?;
    instance
        .calls(|calls, store| calls.gate().call_install(store, gate, &envelope, now))?
        .map_err(|error| anyhow::anyhow!("the bundle is refused: {}", error.message))?;

    let header = |name: &str, value: &str| (name.into(), value.into());
    let headers: Vec<(Vec<u8>, Vec<u8>)> = vec![
        header(":method", "POST"),
        header(":path", "/v1/chat/completions"),
        header(":authority", "gate.example"),
        header("content-type", "application/json"),
        header("authorization", &format!("Bearer {token}")),
    ];
    let prompt: String = "The quick brown fox jumps over the lazy dog. "
        .chars()
        .cycle()
        .take(2_000)
        .collect();
    let body = json!({"model": "gpt-5-mini", "max_completion_tokens": 100, "messages": [{"role": "user", "content": prompt}]});
    let body = body.to_string();
    let caller = Caller {
        agent: AGENT.to_owned(),
        team: Some("platform".to_owned()),
        org: Some("acme".to_owned()),
        level: GovernanceLevel::L1,
        acts_for: Vec::new(),
    };

    let call_ns = best(20_000, || {
        instance.calls(|calls, store| calls.gate().call_revision(store, gate))
    })?;
    let decide_ns = best(2_000, || {
        let decision = instance.calls(|calls, store| {
            calls.call_decide(store, gate, &caller, &headers, Some(body.as_bytes()), now)
        })?;
        Ok(decision.outcome)
    })?;
    let exchange_ns = best(2_000, || {
        let (exchange, _) = instance.calls(|calls, store| {
            calls
                .exchange()
                .call_begin(store, gate, &headers, true, now, (0, 7))
        })?;
        instance.calls(|calls, store| {
            calls
                .exchange()
                .call_body(store, exchange, gate, body.as_bytes(), now)
        })?;
        instance.drop(exchange)
    })?;
    let instance_ns = best(200, || component.instance())?;
    println!(
        "{}",
        json!({
            "call_ns": call_ns,
            "decide_ns": decide_ns,
            "exchange_ns": exchange_ns,
            "instance_ns": instance_ns,
            "body_bytes": body.len(),
        })
    );
    Ok(())
}

/// Nanoseconds per call.
fn best<T>(calls: u32, mut call: impl FnMut() -> Result<T>) -> Result<u128> {
    let mut best = u128::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..calls {
            black_box(call()?);
        }
        best = best.min(start.elapsed().as_nanos() / u128::from(calls));
    }
    Ok(best)
}
