//! The control plane's side of a case: signs its bundle and its tokens, grants leases by its policy, keeps what it is told.
//!
//! A double, because a case has its own clock and wants its grants on the dot. The real one is under test in its own crate and, with a real
//! gate, end to end.

use super::{
    case::{AGENT, Agent, BundleState, Case, PROVIDER_KEY, Step, TokenKind, Upstream, WORKSPACE},
    wire::{self, Message, Server},
};
use anyhow::{Context as _, Result, bail};
use ed25519_dalek::{Signer as _, SigningKey};
use std::{collections::BTreeMap, io::Write as _};
use tollgate_engine::{
    bundle::{self, Payload},
    bytes::to_base64url,
    decide,
    envelope::{
        BUNDLE_TYPE, Envelope, EnvelopeSignature, LEASES_TYPE, PublicKey,
        pre_authentication_encoding,
    },
    identity::{self, Caller, Claims, GovernanceLevel, TokenHeader},
    journal::{Batch, Receipt, SealKey, hmac},
    lease::{Answer, Grant, Request},
    ledger::{Account, Unit},
    time::Time,
};

/// How long its leases live.
const LEASE_TERM_SECS: i64 = 60;
/// The gates' key.
const ENROLMENT_KEY: &str = "enrolment-key-of-the-corpus";
/// Names the signing key.
const KEY_ID: &str = "corpus";

/// The control plane of one case.
#[derive(Debug)]
pub struct ControlPlane {
    key: SigningKey,
    /// The compiled policy; its revision and times are set by [`ControlPlane::bundle`].
    pub payload: Payload,
    caller: Caller,
    start: Time,
    granted: BTreeMap<(Account, i64), u64>,
    /// By account and start of the window.
    settled: BTreeMap<(Account, i64), u64>,
    reserved: BTreeMap<Account, u64>,
    /// How often calls were approved.
    approvals: BTreeMap<Account, u64>,
    /// Whether the next one that asks is.
    approves: bool,
    /// When runs began.
    runs: BTreeMap<String, i64>,
    records: Vec<Vec<u8>>,
    last_batch: Vec<u8>,
}

fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// The key that gates trust in every case.
pub fn trusted() -> PublicKey {
    PublicKey {
        key_id: KEY_ID.to_string(),
        public_key: signing_key().verifying_key().to_bytes().to_vec(),
    }
}

/// Gate settings as JSON, and the environment its secrets are in.
pub fn settings(upstream: Upstream) -> (String, Vec<(&'static str, String)>) {
    let upstream = match upstream {
        Upstream::Llm => serde_json::json!({
            "host": "api.openai.com",
            "llm": true,
            "keys": {"openai": "env:OPENAI_API_KEY", "anthropic": "env:ANTHROPIC_API_KEY"},
        }),
        Upstream::Any => serde_json::json!({}),
    };
    let settings = serde_json::json!({
        "workspace": WORKSPACE,
        "trust": [trusted()],
        "enrolment_key": "env:TOLLGATE_ENROLMENT_KEY",
        "upstream": upstream,
    });
    let secrets = vec![
        ("TOLLGATE_ENROLMENT_KEY", ENROLMENT_KEY.to_string()),
        ("OPENAI_API_KEY", PROVIDER_KEY.to_string()),
        ("ANTHROPIC_API_KEY", PROVIDER_KEY.to_string()),
    ];
    (settings.to_string(), secrets)
}

/// A control plane over HTTP.
///
/// # Errors
/// When there is no port.
pub fn serve(
    answer: impl Fn(&Message) -> Result<Vec<u8>> + Send + Sync + 'static,
) -> Result<Server> {
    Server::start(move |request, stream| {
        // A gate that has gone meanwhile asks again.
        let _ = stream.write_all(&response(answer(&request)));
    })
}

/// An answer, or what is wrong.
pub fn response(answer: Result<Vec<u8>>) -> Vec<u8> {
    answer.unwrap_or_else(|error| wire::response(500, &[], format!("{error:#}").as_bytes()))
}

/// The UUID of the first, second… agent for whom the caller acts: `…00b`, `…00c`….
fn principal(number: usize) -> String {
    format!("00000000-0000-4000-8000-{:012x}", 0xb + number)
}

impl ControlPlane {
    /// Compiles the case's policies.
    pub fn new(case: &Case) -> Result<ControlPlane> {
        let start = case.start()?;
        let (issued_at, expires_at) = match case.bundle {
            BundleState::Short => (start.secs(), start.secs() + 60),
            _ => (start.secs() - 60, start.secs() + 2 * 86_400),
        };
        let mut documents = Vec::new();
        if !case.policies.trim().is_empty() {
            let parsed = tollgate_policy::parse("case.yaml", case.policies.as_bytes(), true);
            if let Some(error) = parsed.diagnostics.iter().find(|finding| finding.is_error()) {
                bail!("the policy is refused: {}: {}", error.path, error.message);
            }
            documents = parsed.documents;
        }
        let compiled = tollgate_policy::compile(&documents, issued_at, expires_at)
            .map_err(|error| anyhow::anyhow!("the policy does not compile: {error}"))?;
        let caller = |agent: &str, of: &Agent, acts_for| {
            let level = GovernanceLevel::parse(&of.level).context("level must be L0 to L3")?;
            Ok::<_, anyhow::Error>(Caller {
                workspace: WORKSPACE.to_string(),
                agent: agent.to_string(),
                org: of.org.clone(),
                team: of.team.clone(),
                level,
                acts_for,
            })
        };
        let numbered = || case.agent.acts_for.iter().enumerate();
        let mut revoked = vec![AGENT.to_string()];
        revoked.retain(|_| case.agent.revoked);
        revoked.extend(
            numbered()
                .filter(|(_, of)| of.revoked)
                .map(|(number, _)| principal(number)),
        );
        let acts_for = numbered()
            .map(|(number, of)| caller(&principal(number), of, Vec::new()))
            .collect::<Result<Vec<_>>>()?;
        let caller = caller(AGENT, &case.agent, acts_for)?;
        Ok(ControlPlane {
            key: signing_key(),
            payload: Payload {
                format: bundle::FORMAT,
                workspace: WORKSPACE.to_string(),
                channel: "default".to_string(),
                revision: 1,
                issued_at,
                expires_at,
                documents: compiled.documents,
                shadow: compiled.shadow,
                automata: compiled.automata,
                calendars: compiled.calendars,
                prices: compiled.prices,
                token_keys: vec![trusted()],
                revoked_agents: revoked,
                halts: case.halts.clone(),
            },
            caller,
            start,
            granted: BTreeMap::new(),
            settled: BTreeMap::new(),
            reserved: BTreeMap::new(),
            approvals: BTreeMap::new(),
            approves: false,
            runs: BTreeMap::new(),
            records: Vec::new(),
            last_batch: Vec::new(),
        })
    }

    /// The control plane of a case, and its bundle where there is one.
    pub fn with_bundle(case: &Case) -> Result<(ControlPlane, Option<Vec<u8>>)> {
        let mut control_plane = ControlPlane::new(case)?;
        let bundle = match case.bundle {
            BundleState::Missing => None,
            BundleState::Present | BundleState::Short => Some(control_plane.bundle(1)?),
        };
        Ok((control_plane, bundle))
    }

    /// The signed bundle, as this revision.
    pub fn bundle(&mut self, revision: u64) -> Result<Vec<u8>> {
        self.payload.revision = revision;
        self.seal(BUNDLE_TYPE, &serde_json::to_vec(&self.payload)?)
    }

    /// Signs anything.
    pub fn seal(&self, payload_type: &str, payload: &[u8]) -> Result<Vec<u8>> {
        let signed = pre_authentication_encoding(payload_type, payload);
        Ok(serde_json::to_vec(&Envelope {
            payload: payload.to_vec(),
            payload_type: payload_type.to_string(),
            signatures: vec![EnvelopeSignature {
                keyid: KEY_ID.to_string(),
                sig: self.key.sign(&signed).to_bytes().to_vec(),
            }],
        })?)
    }

    /// Begins with a step; gives the credential of its call.
    pub fn begin(&mut self, step: &Step) -> Result<Option<String>> {
        self.approves = step.approved;
        self.token(step.call.token.kind)
    }

    /// The credential of a call.
    pub fn token(&self, kind: TokenKind) -> Result<Option<String>> {
        let issued = match kind {
            TokenKind::Expired => self.start.secs() - 7_200,
            TokenKind::Future => self.start.secs() + 3_600,
            _ => self.start.secs(),
        };
        let life = match kind {
            TokenKind::Long => 86_400,
            _ => 3_600,
        };
        let claims = Claims {
            aud: match kind {
                TokenKind::Foreign => WORKSPACE.replace("0001", "0002"),
                _ => WORKSPACE.to_string(),
            },
            ..Claims::of(&self.caller, issued, issued + life, "t-1".to_string())
        };
        let header = TokenHeader {
            alg: match kind {
                TokenKind::AlgNone => "none".to_string(),
                TokenKind::AlgHmac => "HS256".to_string(),
                _ => "EdDSA".to_string(),
            },
            typ: match kind {
                TokenKind::OtherType => "JWT".to_string(),
                _ => identity::TOKEN_TYPE.to_string(),
            },
            kid: KEY_ID.to_string(),
        };
        let mut signed = identity::signing_input(&header, &claims).context("claims")?;
        if kind == TokenKind::BringsKey {
            let jwk = serde_json::json!({
                "alg": "EdDSA", "typ": identity::TOKEN_TYPE, "kid": KEY_ID,
                "jwk": {"kty": "OKP", "crv": "Ed25519", "x": to_base64url(&[1; 32])},
            });
            let claims = signed.split_once('.').map(|(_, claims)| claims.to_string());
            signed = format!(
                "{}.{}",
                to_base64url(jwk.to_string().as_bytes()),
                claims.unwrap_or_default()
            );
        }
        let signature = match kind {
            TokenKind::AlgNone => Vec::new(),
            TokenKind::AlgHmac => {
                hmac(self.key.verifying_key().as_bytes(), &[signed.as_bytes()]).to_vec()
            }
            TokenKind::OtherKey => SigningKey::from_bytes(&[8; 32])
                .sign(signed.as_bytes())
                .to_bytes()
                .to_vec(),
            _ => self.key.sign(signed.as_bytes()).to_bytes().to_vec(),
        };
        if kind == TokenKind::Tampered {
            // The claims still decode: a letter of the team's name is another one.
            let forged = Claims {
                team: Some("finance".to_string()),
                ..claims
            };
            signed = identity::signing_input(&header, &forged).context("claims")?;
        }
        Ok(match kind {
            TokenKind::None => None,
            TokenKind::Garbage => Some("not-a-token".to_string()),
            _ => Some(format!("{signed}.{}", to_base64url(&signature))),
        })
    }

    /// Answers a gate: status and body. `path` is the errand's, without the workspace's prefix.
    pub fn answer(&mut self, path: &str, body: &[u8], now: Time) -> Result<(u16, Vec<u8>)> {
        let errand = path
            .split_once("/gate/")
            .map(|(_, errand)| errand.split('?').next().unwrap_or_default());
        match errand {
            Some("leases") => Ok((200, self.lease(serde_json::from_slice(body)?, now)?)),
            Some("audit") => {
                let batch =
                    Batch::read(body).map_err(|fault| anyhow::anyhow!("bad batch: {fault}"))?;
                // The same bytes again are one batch: the gate has not heard of the receipt.
                if self.last_batch != body {
                    self.records
                        .extend(batch.records.iter().map(|record| record.to_vec()));
                    self.last_batch = body.to_vec();
                }
                let root = SealKey::root(ENROLMENT_KEY);
                let key = SealKey::derive(&root, &batch.header.holder);
                Ok((200, serde_json::to_vec(&Receipt::of(&batch, &key))?))
            }
            _ => bail!("unexpected errand {path}"),
        }
    }

    fn lease(&mut self, request: Request, now: Time) -> Result<Vec<u8>> {
        let mut grants = Vec::new();
        for ask in request.asks {
            let (payload, caller) = (&self.payload, &self.caller);
            let of_call = ask.account.unit == Unit::Approvals;
            if !of_call
                && decide::limits_on(payload, caller, &ask.account)
                    .next()
                    .is_none()
            {
                continue;
            }
            // Nothing is leased where there are only alerts.
            let limit = decide::limit_on(payload, caller, &ask.account).unwrap_or(0);
            let limit = match of_call {
                true => {
                    let approvals = self.approvals.entry(ask.account.clone()).or_default();
                    let approves = ask.want > 0 && std::mem::take(&mut self.approves);
                    *approvals += u64::from(approves);
                    *approvals
                }
                false => limit,
            };
            let span = self
                .span(&ask.account, ask.window_start, limit, now)
                .context("no such window")?;
            // The time of a run is used up by passing.
            let limit = match ask.account.unit {
                _ if span.1 <= now.secs() => 0,
                Unit::Seconds => 1_000,
                _ => limit,
            };
            // A gate that has forgotten its cell of a run begins another, at another second. What became of the first counts.
            let before = |of: &BTreeMap<(Account, i64), u64>| -> u64 {
                let others = of.iter().filter(|((account, start), _)| {
                    ask.account.run.is_some()
                        && *account == ask.account
                        && *start != ask.window_start
                });
                others.map(|(_, amount)| amount).sum()
            };
            let settled_before = before(&self.settled);
            let limit = limit.saturating_sub(settled_before);
            let granted = self
                .granted
                .entry((ask.account.clone(), ask.window_start))
                .or_default();
            // What was given back is there to be granted again.
            let held = granted.saturating_sub(ask.returned);
            let wanted = held.saturating_add(ask.want);
            let given = wanted.min(limit).max(held);
            *granted = given.saturating_add(ask.returned);
            let unmet = wanted > given;
            let place = (ask.account.clone(), ask.window_start);
            let settled = self.settled.entry(place).or_default();
            *settled = (*settled).max(ask.settled);
            self.reserved.insert(ask.account.clone(), ask.reserved);
            grants.push(Grant {
                window_start: span.0,
                window_end: span.1,
                seq: ask.seq,
                granted: *granted,
                returned: ask.returned,
                settled: ask.settled,
                // There is one holder.
                spent: ask.settled.saturating_add(settled_before),
                lifted_ms: 0,
                expires_ms: now.millis() + LEASE_TERM_SECS * 1_000,
                retry_ms: match unmet {
                    // It may be granted any moment.
                    true if of_call => now.millis() + 1_000,
                    true => span.1 * 1_000,
                    false => 0,
                },
                keep: u64::MAX,
                account: ask.account,
            });
        }
        let answer = Answer {
            workspace: WORKSPACE.to_string(),
            holder: request.holder,
            epoch: 1,
            issued_ms: now.millis(),
            learning: false,
            grants,
        };
        self.seal(LEASES_TYPE, &serde_json::to_vec(&answer)?)
    }

    /// Of a run: from when its gate heard of it, to so long after the first call as it may last.
    fn span(&mut self, account: &Account, start: i64, limit: u64, now: Time) -> Option<(i64, i64)> {
        if let Some(run) = &account.run {
            let began = *self.runs.entry(run.clone()).or_insert(now.secs());
            let lasts = match account.unit {
                Unit::Seconds => i64::try_from(limit).ok()?,
                _ => 86_400,
            };
            return Some((start, began + lasts));
        }
        decide::span_of(
            &account.window,
            &self.payload.calendars,
            Time::from_secs(start),
        )
        .map(|span| (span.start, span.end))
    }

    /// Records delivered since the last call.
    pub fn take_records(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.records)
    }

    /// What was reported as used, by account, where it is anything, without the entity's id where it is the caller's; and whether nothing is reserved any more.
    pub fn spent(&self) -> (BTreeMap<String, u64>, bool) {
        let mut spent: BTreeMap<&Account, u64> = BTreeMap::new();
        // In the latest window; of a run, in all of them. One before may be told of later: what is left of it is given back.
        for ((account, _), used) in &self.settled {
            let sum = spent.entry(account).or_default();
            *sum = match account.run {
                Some(_) => sum.saturating_add(*used),
                None => *used,
            };
        }
        let spent = spent
            .into_iter()
            .filter(|(_, used)| *used > 0)
            .map(|(account, used)| {
                let level = account.level.name();
                let caller = &self.caller;
                let own = [&caller.agent, &caller.workspace]
                    .into_iter()
                    .chain(&caller.team)
                    .chain(&caller.org)
                    .any(|id| *id == account.id);
                let name = account.to_string();
                let name = match own {
                    true => name.replacen(&format!("{level}:{}", account.id), level, 1),
                    false => name,
                };
                (name, used)
            })
            .collect();
        (spent, self.reserved.values().all(|reserved| *reserved == 0))
    }
}
