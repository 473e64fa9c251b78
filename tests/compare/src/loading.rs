//! What policies cost before the first decision: to check them, and to bring a bundle of them into a gate.

use anyhow::{Result, anyhow, ensure};
use ed25519_dalek::{Signer as _, SigningKey};
use std::{fmt::Write as _, time::Instant};
use tollgate_engine::{
    bundle::Payload,
    envelope::{BUNDLE_TYPE, Envelope, EnvelopeSignature, PublicKey, pre_authentication_encoding},
    facts::Upstream,
    gate::{Config, Gate, Secret},
    time::Time,
};

const DOCUMENTS: usize = 1_000;
const RULES: usize = 10_000;

/// A document with something of everything.
fn document(number: usize) -> String {
    format!(
        r#"apiVersion: tollgate/v1
kind: Policy
metadata: {{name: team-{number}, version: "1", description: What this team may do.}}
spec:
  scope: team:t{number}
  network: {{allowlist: [api.openai.com, api.anthropic.com, "*.t{number}.example"]}}
  schedule: {{active_hours: {{start: "08:00", end: "20:00", timezone: Europe/Berlin}}}}
  capabilities: {{allow: ["model:gpt-4o*", "mcp_tool:git"], deny: ["mcp_tool:git_push"]}}
  tools:
    bash: {{requires_approval_if: "governance_level >= L2 && !args.path.startsWith('/tmp/')"}}
    mail: {{allow: false, limit_per_hour: 10}}
  data: {{sensitive_patterns: ['(?i)password-{number}\s*[:=]\s*\S+']}}
  budget: {{daily_limit_usd: 25.00, monthly_limit_usd: 400.00, timezone: Europe/Berlin}}
  rate: {{requests_per_minute: 120, per: team}}
"#
    )
}

/// Milliseconds, the least of a few rounds.
fn least(mut run: impl FnMut() -> Result<()>) -> Result<u128> {
    let mut least = u128::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        run()?;
        least = least.min(start.elapsed().as_millis());
    }
    Ok(least)
}

pub(crate) fn report(out: &mut String) -> Result<()> {
    let texts: Vec<String> = (0..DOCUMENTS).map(document).collect();
    let checking = least(|| {
        let mut parsed: Vec<_> = texts
            .iter()
            .map(|text| tollgate_policy::parse("team.yaml", text.as_bytes(), true))
            .collect();
        tollgate_policy::check_together(&mut parsed);
        // A thousand different patterns are more than one gate takes; nothing else is wrong with them.
        let errors = parsed.iter().flat_map(|file| &file.diagnostics);
        ensure!(
            errors
                .filter(|found| found.is_error())
                .all(|found| found.code == "P211")
        );
        Ok(())
    })?;
    let payload = super::tollgate::payload(RULES, super::tollgate::ONE_MODEL)?;
    let envelope = signed(&payload)?;
    let trust = PublicKey {
        key_id: "k".to_owned(),
        public_key: key().verifying_key().to_bytes().to_vec(),
    };
    let loading = least(|| {
        let mut gate = Gate::new(Config {
            workspace: payload.workspace.clone(),
            channel: payload.channel.clone(),
            trust: vec![trust.clone()],
            enrolment_key: Secret::new(String::new()),
            upstream: Upstream {
                host: None,
                llm: false,
            },
            openai_key: None,
            anthropic_key: None,
            body_cap_bytes: 1 << 20,
        });
        gate.install(&envelope, Time::from_secs(payload.issued_at))
            .map_err(|error| anyhow!("{error}"))
    })?;
    writeln!(
        out,
        "\nChecking {DOCUMENTS} documents with something of everything, zones, patterns and conditions included: {checking} ms (goal: 1,000 ms). \
         A signed bundle of 10,009 documents, {} KB: verified, read and ready to decide in {loading} ms, native (goal, in the filter: 50 ms).",
        envelope.len().div_ceil(1_000)
    )?;
    Ok(())
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn signed(payload: &Payload) -> Result<Vec<u8>> {
    let payload = serde_json::to_vec(payload)?;
    let signature = key().sign(&pre_authentication_encoding(BUNDLE_TYPE, &payload));
    Ok(serde_json::to_vec(&Envelope {
        payload,
        payload_type: BUNDLE_TYPE.to_owned(),
        signatures: vec![EnvelopeSignature {
            keyid: "k".to_owned(),
            sig: signature.to_bytes().to_vec(),
        }],
    })?)
}
