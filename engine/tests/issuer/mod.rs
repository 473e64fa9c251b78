//! What a control plane issues, signed with fixed keys: bundles, lease answers, agent tokens. And a gate that trusts it.
//!
//! The fuzz targets use it too.
#![allow(dead_code, reason = "each test program uses its part")]

use ed25519_dalek::{Signer as _, SigningKey};
use regex_automata::{nfa::thompson, util::syntax};
use tollgate_engine::{
    automaton::{Automaton, Compiled, MAX_STATES_BYTES},
    bundle::{
        self, Data, Document, HostPattern, Level, Limit, Names, Network, Part, Payload, Scope,
        Texts, Tools,
    },
    bytes::to_base64url,
    envelope::{BUNDLE_TYPE, Envelope, EnvelopeSignature, PublicKey, pre_authentication_encoding},
    gate::{Config, Gate},
    halt::{self, Halt},
    identity::{self, Claims, GovernanceLevel, TokenHeader},
    lease::Grant,
    ledger::{Account, Span, Unit, Window},
    price::{Price, PriceTable},
    scan,
    time::Time,
};

/// The first grant of so much, of which all may be kept.
pub(crate) fn grant(account: &Account, window: Span, granted: u64, expires: Time) -> Grant {
    Grant {
        account: account.clone(),
        window_start: window.start,
        window_end: window.end,
        seq: 1,
        granted,
        returned: 0,
        settled: 0,
        spent: 0,
        lifted_ms: 0,
        keep: u64::MAX,
        expires_ms: expires.millis(),
        retry_ms: 0,
    }
}

/// Stops whoever is in `scope`.
pub(crate) fn halt(scope: &str, kind: halt::Kind) -> Halt {
    Halt {
        scope: Scope::parse(scope).unwrap(),
        run: None,
        kind,
        reason: "it buys too much".to_string(),
    }
}

/// The workspace of every test.
pub(crate) const WORKSPACE: &str = "ws-00000000-0000-4000-8000-000000000001";
/// Another tenant.
pub(crate) const OTHER_WORKSPACE: &str = "ws-00000000-0000-4000-8000-000000000002";
/// The agent that calls.
pub(crate) const AGENT: &str = "00000000-0000-4000-8000-00000000000a";
/// When tests begin: 2026-11-20 10:00:00 UTC. (`date -u -d '2026-11-20 10:00:00' +%s`.)
pub(crate) const NOW: Time = Time::from_secs(1_795_168_800);
/// The key that gates trust, by name.
pub(crate) const KEY_ID: &str = "house";
/// What the operator's environment holds. The canary of the tests that look for leaks.
pub(crate) const ENROLMENT_KEY: &str = "canary-enrolment-key";
/// As above.
pub(crate) const OPENAI_KEY: &str = "canary-openai-key";
/// As above.
pub(crate) const ANTHROPIC_KEY: &str = "canary-anthropic-key";
/// A host on the allowlist of [`payload`].
pub(crate) const LISTED_HOST: &str = "api.example.com";

/// A signing key; another one for every number.
pub(crate) fn key(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

/// The key that gates trust.
pub(crate) fn house() -> SigningKey {
    key(7)
}

/// A key's public half under a name.
pub(crate) fn public(key_id: &str, key: &SigningKey) -> PublicKey {
    PublicKey {
        key_id: key_id.to_string(),
        public_key: key.verifying_key().to_bytes().to_vec(),
    }
}

/// An envelope signed by these.
pub(crate) fn envelope(
    payload_type: &str,
    payload: &[u8],
    signers: &[(&str, &SigningKey)],
) -> Envelope {
    let signed = pre_authentication_encoding(payload_type, payload);
    Envelope {
        payload: payload.to_vec(),
        payload_type: payload_type.to_string(),
        signatures: signers
            .iter()
            .map(|(key_id, key)| EnvelopeSignature {
                keyid: (*key_id).to_string(),
                sig: key.sign(&signed).to_bytes().to_vec(),
            })
            .collect(),
    }
}

/// JSON of anything.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// An envelope of anything, signed by the house.
pub(crate) fn sealed<T: serde::Serialize>(payload_type: &str, payload: &T) -> Vec<u8> {
    json(&envelope(
        payload_type,
        &json(payload),
        &[(KEY_ID, &house())],
    ))
}

/// The signed bundle of a payload.
pub(crate) fn bundle(payload: &Payload) -> Vec<u8> {
    sealed(BUNDLE_TYPE, &whole(payload))
}

/// The payload with what its patterns compile to, as far as they do.
pub(crate) fn whole(payload: &Payload) -> Payload {
    let documents = payload.documents.iter().chain(payload.shadow.iter());
    let patterns = scan::distinct(documents.flat_map(Document::searched));
    Payload {
        automata: patterns.into_iter().filter_map(compiled).collect(),
        ..payload.clone()
    }
}

/// What the policy compiler makes of a pattern.
pub(crate) fn compiled(pattern: &str) -> Option<Compiled> {
    let automaton = |reverse: bool| {
        let config = thompson::Config::new()
            .utf8(false)
            .reverse(reverse)
            .which_captures(thompson::WhichCaptures::None)
            .nfa_size_limit(Some(MAX_STATES_BYTES));
        let nfa = thompson::Compiler::new()
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .configure(config)
            .build(pattern);
        Automaton::of(&nfa.ok()?)
    };
    Some(Compiled {
        pattern: pattern.to_string(),
        forward: automaton(false)?,
        backward: Some(automaton(true)?),
    })
}

/// A small policy: two hosts, one tool denied, one pattern; issued a minute ago, for a day.
pub(crate) fn payload(revision: u64) -> Payload {
    whole(&Payload {
        format: bundle::FORMAT,
        workspace: WORKSPACE.to_string(),
        channel: "default".to_string(),
        revision,
        issued_at: NOW.secs() - 60,
        expires_at: NOW.secs() + 86_400,
        documents: vec![Document {
            network: Network {
                hosts: Some(vec![
                    HostPattern(LISTED_HOST.to_string()),
                    HostPattern("api.openai.com".to_string()),
                ]),
                ..Network::default()
            }
            .into(),
            tools: Tools {
                denied: Texts::from_iter(["shell"]),
                ..Tools::default()
            }
            .into(),
            data: Data {
                patterns: vec!["key-[a-z]{8}".to_string()],
                ..Data::default()
            }
            .into(),
            ..document("base")
        }]
        .into(),
        shadow: Vec::new().into(),
        automata: Vec::new(),
        calendars: Vec::new(),
        prices: PriceTable::default(),
        token_keys: vec![public(KEY_ID, &house())],
        revoked_agents: Vec::new(),
        halts: Vec::new(),
    })
}

/// A document that says nothing.
pub(crate) fn document(name: &str) -> Document {
    Document {
        name: name.to_string(),
        scope: Scope::Global,
        active: None,
        network: Part::default(),
        models: Names::default(),
        mcp_tools: Part::default(),
        tools: Part::default(),
        data: Part::default(),
        limits: Vec::new(),
    }
}

/// A bundle for calls to models: rates and budgets in every unit, one priced model (1 nano-USD per input token, 2 per output token).
pub(crate) fn budgeted(revision: u64) -> Payload {
    let limit = |per, unit, amount| Limit {
        rule: format!("budget.{}", Unit::name(unit)),
        per,
        unit,
        window: Window::Minute,
        tool: None,
        each_model: false,
        amount,
        suspend: false,
        alert: false,
        warn_at: Vec::new(),
        release_lost: false,
        lowers: false,
        unknown_model: None,
    };
    let mut payload = payload(revision);
    let limits = vec![
        limit(Level::Workspace, Unit::Calls, 1_000_000),
        limit(Level::Agent, Unit::Tokens, 10_000_000),
        limit(Level::Team, Unit::NanoUsd, 100_000_000),
    ];
    payload
        .documents
        .change(|documents| documents[0].limits = limits);
    let price = Price {
        max_output_tokens: Some(4_096),
        ..Price::flat(1_000, 2_000)
    };
    payload.prices.models.insert("gpt-4o".to_string(), price);
    payload.prices.models.insert("claude".to_string(), price);
    payload
}

/// Where a gate's calls go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Towards {
    /// An LLM API; the gate holds its keys.
    Llm,
    /// Wherever the caller says.
    Anywhere,
}

/// A gate's settings.
pub(crate) fn config(towards: Towards) -> Config {
    let upstream = match towards {
        Towards::Llm => serde_json::json!({
            "host": "api.openai.com", "llm": true,
            "keys": {"openai": "env:OPENAI", "anthropic": "env:ANTHROPIC"},
        }),
        Towards::Anywhere => serde_json::json!({}),
    };
    let settings = serde_json::json!({
        "workspace": WORKSPACE,
        "trust": [public(KEY_ID, &house())],
        "enrolment_key": "env:ENROLMENT",
        "upstream": upstream,
    });
    let secret = |name: &str| {
        Some(match name {
            "OPENAI" => OPENAI_KEY.to_string(),
            "ANTHROPIC" => ANTHROPIC_KEY.to_string(),
            _ => ENROLMENT_KEY.to_string(),
        })
    };
    Config::read(settings.to_string().as_bytes(), secret).unwrap()
}

/// A gate that runs a bundle.
pub(crate) fn gate(towards: Towards, payload: &Payload) -> Gate {
    let mut gate = Gate::new(config(towards));
    gate.install(&bundle(payload), NOW).unwrap();
    gate
}

/// What an agent's token says: good for an hour from now.
pub(crate) fn claims() -> Claims {
    Claims {
        iss: identity::ISSUER.to_string(),
        aud: WORKSPACE.to_string(),
        sub: AGENT.to_string(),
        org: Some("acme".to_string()),
        team: Some("platform".to_string()),
        level: GovernanceLevel::L1,
        iat: NOW.secs(),
        exp: NOW.secs() + 3_600,
        jti: "t-1".to_string(),
        act: None,
    }
}

/// The header of every agent token.
pub(crate) fn token_header() -> TokenHeader {
    TokenHeader {
        alg: "EdDSA".to_string(),
        typ: identity::TOKEN_TYPE.to_string(),
        kid: KEY_ID.to_string(),
    }
}

/// The token of these claims.
pub(crate) fn token(claims: &Claims) -> String {
    signed_parts(&json(&token_header()), &json(claims))
}

/// Header and claims as they are, encoded and signed by the house.
pub(crate) fn signed_parts(header: &[u8], claims: &[u8]) -> String {
    let signed = format!("{}.{}", to_base64url(header), to_base64url(claims));
    let signature = house().sign(signed.as_bytes()).to_bytes();
    format!("{signed}.{}", to_base64url(&signature))
}
