//! The control plane of a run: its rules are the product's ([`tollgate_control_plane::leases::rules`]), its store a map that can be put
//! back to an earlier state. Histories run on the real service and its database too (`real`), and must come out the same.

use super::{Mutation, scenario::Limits};
use ed25519_dalek::{Signer as _, SigningKey};
use std::collections::BTreeMap;
use tollgate_control_plane::leases::{
    rules::{self, Epoch, Lease, Others, Terms, Wanted},
    runs::Run,
};
use tollgate_engine::{
    bundle::{self, Payload, etag},
    bytes::{Digest, to_base64url},
    decide::limit_on,
    envelope::{
        BUNDLE_TYPE, Envelope, EnvelopeSignature, LEASES_TYPE, PublicKey,
        pre_authentication_encoding,
    },
    identity::{self, Caller, Claims, GovernanceLevel, TokenHeader},
    journal::{Batch, Position, Receipt, SealKey},
    lease::{Answer, Grant, Request},
    ledger::Account,
    price::{Price, PriceTable},
    time::Time,
    upkeep::{Errand, Kind, PROBLEM_TYPE},
};

/// The workspace of every run.
pub(super) const WORKSPACE: &str = "ws-00000000-0000-4000-8000-000000000001";
/// What gates prove themselves with.
pub(super) const ENROLMENT_KEY: &str = "enrolment-key-of-the-simulator";
/// The model that is called: 150 nano-USD per input token, 600 per output token.
pub(super) const MODEL: &str = "gpt-4o-mini";
/// Names the signing key.
const KEY_ID: &str = "simulator";

/// Agents and their teams.
pub(super) const AGENTS: [(&str, &str); 4] = [
    ("00000000-0000-4000-8000-00000000000a", "blue"),
    ("00000000-0000-4000-8000-00000000000b", "blue"),
    ("00000000-0000-4000-8000-00000000000c", "red"),
    ("00000000-0000-4000-8000-00000000000d", "red"),
];

/// A control plane, as its gates and its operator meet it.
pub(super) trait Plane {
    /// Publishes the policy that sets these limits.
    fn publish(&mut self, limits: &Limits, now: Time);
    /// Answers an errand: status and body. What it commits is committed when it returns.
    fn answer(&mut self, errand: &Errand, now: Time) -> (u16, Vec<u8>);
    /// Whether gates have been asked since the last look for what they do not use.
    fn recalled(&mut self) -> bool;
    /// Copies what is committed.
    fn back_up(&mut self);
    /// Starts again with the last copy. Gives how long it grants nothing then, in milliseconds; `None` when there was no copy.
    fn restore(&mut self, now: Time) -> Option<i64>;
    /// Starts again with what is committed.
    fn restart(&mut self, now: Time);
    /// The token of an agent.
    fn token(&self, agent: &str, team: &str, now: Time) -> String;
    /// The keys that gates trust.
    fn trust(&self) -> Vec<PublicKey>;
}

/// What is committed.
#[derive(Clone, Debug, Default)]
struct Ledger {
    epochs: BTreeMap<String, u64>,
    leases: BTreeMap<(Account, i64), BTreeMap<(String, u64), Lease>>,
    journals: BTreeMap<(String, u64), Vec<StoredBatch>>,
    /// When runs began, by agent and name.
    runs: BTreeMap<(String, String), i64>,
    learning_until_ms: i64,
}

/// A batch, and where its journal stands behind it.
type StoredBatch = (Position, Vec<u8>);

/// The holder has what was never given, so far as is known.
struct KnowsMore;

/// As in the product.
const LEARN_AGAIN_AFTER_MS: i64 = 600_000;

/// A control plane in memory.
#[derive(Debug)]
pub(super) struct Memory {
    key: SigningKey,
    payload: Payload,
    envelope: Vec<u8>,
    ledger: Ledger,
    backup: Option<Ledger>,
    recall: Recall,
    term_ms: i64,
    mutation: Option<Mutation>,
}

/// What is wanted back from gates. Nothing of it is stored.
#[derive(Debug, Default)]
struct Recall {
    wanted: Wanted,
    /// Gates are to be told.
    now: bool,
}

impl Memory {
    pub(super) fn new(term_secs: u32, mutation: Option<Mutation>) -> Memory {
        let key = SigningKey::from_bytes(&[7; 32]);
        let price = Price {
            max_output_tokens: Some(16_384),
            ..Price::flat(150_000, 600_000)
        };
        let mut prices = PriceTable::default();
        prices.models.insert(MODEL.to_owned(), price);
        Memory {
            payload: Payload {
                format: bundle::FORMAT,
                workspace: WORKSPACE.to_owned(),
                channel: "default".to_owned(),
                revision: 0,
                issued_at: 0,
                expires_at: 0,
                documents: Vec::new().into(),
                shadow: Vec::new().into(),
                automata: Vec::new(),
                calendars: Vec::new(),
                prices,
                token_keys: vec![public(&key)],
                revoked_agents: Vec::new(),
                halts: Vec::new(),
            },
            key,
            envelope: Vec::new(),
            ledger: Ledger::default(),
            backup: None,
            recall: Recall::default(),
            term_ms: i64::from(term_secs) * 1_000,
            mutation,
        }
    }

    fn seal(&self, payload_type: &str, payload: &[u8]) -> Vec<u8> {
        let signed = pre_authentication_encoding(payload_type, payload);
        json(&Envelope {
            payload: payload.to_vec(),
            payload_type: payload_type.to_owned(),
            signatures: vec![EnvelopeSignature {
                keyid: KEY_ID.to_owned(),
                sig: self.key.sign(&signed).to_bytes().to_vec(),
            }],
        })
    }

    fn bundle(&self, errand: &Errand) -> (u16, Vec<u8>) {
        let current = etag(self.payload.revision, Digest::of(&json(&self.payload)));
        let known = errand
            .headers
            .iter()
            .any(|(name, value)| *name == "if-none-match" && *value == current);
        if known {
            (304, Vec::new())
        } else {
            (200, self.envelope.clone())
        }
    }

    fn limit(&self, account: &Account) -> Option<u64> {
        AGENTS
            .iter()
            .filter_map(|(agent, team)| {
                let caller = Caller {
                    workspace: WORKSPACE.to_owned(),
                    agent: (*agent).to_owned(),
                    org: None,
                    team: Some((*team).to_owned()),
                    level: GovernanceLevel::default(),
                    acts_for: Vec::new(),
                };
                limit_on(&self.payload, &caller, account)
            })
            .min()
    }

    /// Takes down what was used under earlier epochs. That stands, however the rest is answered.
    fn take_down_late(&mut self, request: &Request) {
        let known = self.ledger.epochs.get(&request.holder).copied();
        let (Epoch::Running(running) | Epoch::New(running) | Epoch::Stale(running)) =
            rules::epoch(known, request.epoch);
        for ask in request.asks.iter().filter(|ask| ask.epoch < running) {
            let window = (ask.account.clone(), ask.window_start);
            let leases = self.ledger.leases.get_mut(&window);
            let holder = (request.holder.clone(), ask.epoch);
            if let Some(lease) = leases.and_then(|leases| leases.get_mut(&holder)) {
                lease.settled = lease.settled.max(ask.settled);
            }
        }
    }

    fn lease(&mut self, request: &Request, now: Time) -> (u16, Vec<u8>) {
        self.take_down_late(request);
        // A transaction works on a copy, which is kept or not.
        let before = self.ledger.clone();
        let (status, body) = match self.answer_leases(request, now) {
            Err(KnowsMore) => {
                self.ledger = before.clone();
                self.ledger.learning_until_ms = now.millis() + rules::learning_ms(self.term_ms);
                self.answer_leases(request, now)
                    .unwrap_or((500, Vec::new()))
            }
            Ok(answer) => answer,
        };
        if status != 200 {
            self.ledger = before;
        }
        (status, body)
    }

    fn answer_leases(&mut self, request: &Request, now: Time) -> Result<(u16, Vec<u8>), KnowsMore> {
        let known = self.ledger.epochs.get(&request.holder).copied();
        let learning_until_ms = self.ledger.learning_until_ms;
        let suspects = now.millis() >= learning_until_ms.saturating_add(LEARN_AGAIN_AFTER_MS);
        let epoch = match rules::epoch(known, request.epoch) {
            Epoch::Running(epoch) if suspects && known.unwrap_or(0) < epoch => {
                return Err(KnowsMore);
            }
            Epoch::Running(epoch) | Epoch::New(epoch) => epoch,
            Epoch::Stale(running) if self.mutation == Some(Mutation::NoEpochCheck) => running,
            Epoch::Stale(_) => return Ok(refusal(409)),
        };
        self.ledger.epochs.insert(request.holder.clone(), epoch);
        let mut grants = Vec::new();
        let mut wanted = Vec::new();
        for ask in &request.asks {
            let (account, start) = (ask.account.clone(), ask.window_start);
            let Some(limit) = self.limit(&account) else {
                continue;
            };
            let run = account.run.as_ref().map(|run| {
                let runs = &mut self.ledger.runs;
                let began = runs.entry((account.id.clone(), run.clone()));
                Run {
                    began: Some(*began.or_insert(now.secs())),
                }
            });
            let span = match run {
                Some(run) => Some(run.span(&account, limit, start)),
                None => rules::window(&self.payload, &account, start, now),
            };
            let Some(span) = span else {
                continue;
            };
            let holder = (request.holder.clone(), epoch);
            // Every window of a run counts.
            let all: Vec<(bool, Lease)> = self
                .ledger
                .leases
                .iter()
                .filter(|((of, at), _)| *of == account && (run.is_some() || *at == span.start))
                .flat_map(|((_, at), leases)| {
                    let is_mine = |of: &(String, u64)| *at == span.start && *of == holder;
                    let leases = leases.iter();
                    leases.map(move |(of, lease)| (is_mine(of), *lease))
                })
                .collect();
            let mine = all.iter().find(|(mine, _)| *mine).map(|(_, lease)| *lease);
            let others: Vec<Lease> = all
                .iter()
                .filter(|(mine, _)| !mine)
                .map(|(_, lease)| *lease)
                .collect();
            let mut asked = rules::Ask::of(ask, epoch);
            match (self.mutation, mine) {
                (Some(Mutation::NoSequenceCheck), Some(mine)) => asked.seq = mine.seq + 1,
                (Some(Mutation::NoEpochCheck), _) => asked = rules::Ask::of(ask, ask.epoch),
                _ => {}
            }
            if suspects && asked.knows_more(mine) {
                return Err(KnowsMore);
            }
            let terms = Terms {
                limit: run.map_or(limit, |_| Run::limit(&account, limit, span, now)),
                window_ms: span.end.saturating_sub(span.start).saturating_mul(1_000),
                now_ms: now.millis(),
                term_ms: self.term_ms,
                learning_until_ms: match self.mutation {
                    Some(Mutation::NoLearning) => 0,
                    _ => learning_until_ms,
                },
            };
            let rest = Others {
                wait: self.recall.wanted.has(&account, now),
                ..Others::of(&others, now.millis())
            };
            let lease = rules::answer(mine, asked, rest, terms);
            if rules::recalls(&lease, &asked, rest, &terms) {
                wanted.push(account.clone());
            }
            let leases = self.ledger.leases.entry((account.clone(), span.start));
            leases.or_default().insert(holder, lease);
            let elsewhere: u64 = others.iter().map(|lease| lease.settled).sum();
            let spent = elsewhere + lease.settled;
            grants.push(Grant {
                account,
                window_start: span.start,
                window_end: span.end,
                seq: ask.seq,
                granted: lease.granted,
                returned: lease.returned,
                settled: lease.settled,
                spent,
                lifted_ms: 0,
                expires_ms: lease.expires_ms,
                retry_ms: lease.retry_ms,
                keep: rules::keep(&lease, rest, &terms),
            });
        }
        self.recall.now |= self.recall.wanted.want(&wanted, now);
        let answer = Answer {
            workspace: WORKSPACE.to_owned(),
            holder: request.holder.clone(),
            epoch,
            issued_ms: now.millis(),
            learning: now.millis() < learning_until_ms,
            grants,
        };
        Ok((200, self.seal(LEASES_TYPE, &json(&answer))))
    }

    fn take_in(&mut self, body: &[u8]) -> (u16, Vec<u8>) {
        let Ok(batch) = Batch::read(body) else {
            return refusal(400);
        };
        let header = &batch.header;
        let key = SealKey::derive(&SealKey::root(ENROLMENT_KEY), &header.holder);
        if header.workspace != WORKSPACE || batch.verify(&key).is_err() {
            return refusal(403);
        }
        let receipt = (200, json(&Receipt::of(&batch, &key)));
        let stored = self
            .ledger
            .journals
            .entry((header.holder.clone(), header.epoch))
            .or_default();
        if stored.iter().any(|(_, bytes)| bytes == body) {
            return receipt;
        }
        let expected = stored.last().map_or_else(
            || Position::start(WORKSPACE, &header.holder, header.epoch),
            |(position, _)| position.clone(),
        );
        let follows = header.first_seq == expected.next_seq && header.previous == expected.head;
        if !follows && header.first_seq <= expected.next_seq {
            return refusal(409);
        }
        stored.push((batch.position_after(), body.to_vec()));
        receipt
    }
}

impl Plane for Memory {
    fn publish(&mut self, limits: &Limits, now: Time) {
        let policy = limits.policy();
        let parsed = tollgate_policy::parse("simulated.yaml", policy.as_bytes(), true);
        let faults: Vec<_> = parsed
            .diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.is_error())
            .collect();
        assert!(faults.is_empty(), "{faults:?} in\n{policy}");
        let (issued_at, expires_at) = (now.secs(), now.secs() + 2 * 86_400);
        let compiled = tollgate_policy::compile(&parsed.documents, issued_at, expires_at)
            .unwrap_or_else(|error| panic!("the policy does not compile: {error}"));
        self.payload.revision += 1;
        self.payload.issued_at = issued_at;
        self.payload.expires_at = expires_at;
        self.payload.documents = compiled.documents;
        self.payload.automata = compiled.automata;
        self.payload.calendars = compiled.calendars;
        self.envelope = self.seal(BUNDLE_TYPE, &json(&self.payload));
    }

    fn answer(&mut self, errand: &Errand, now: Time) -> (u16, Vec<u8>) {
        match errand.kind {
            Kind::Bundle => self.bundle(errand),
            Kind::Journal => self.take_in(&errand.body),
            Kind::Leases => match serde_json::from_slice(&errand.body) {
                Ok(request) => self.lease(&request, now),
                Err(_) => (422, Vec::new()),
            },
        }
    }

    fn recalled(&mut self) -> bool {
        std::mem::take(&mut self.recall.now)
    }

    fn back_up(&mut self) {
        self.backup = Some(self.ledger.clone());
    }

    fn restore(&mut self, now: Time) -> Option<i64> {
        self.ledger = self.backup.clone()?;
        self.recall = Recall::default();
        let learning_ms = rules::learning_ms(self.term_ms);
        self.ledger.learning_until_ms = now.millis() + learning_ms;
        Some(learning_ms)
    }

    fn restart(&mut self, _: Time) {
        self.recall = Recall::default();
    }

    fn token(&self, agent: &str, team: &str, now: Time) -> String {
        token(&self.key, KEY_ID.to_owned(), (agent, team), now)
    }

    fn trust(&self) -> Vec<PublicKey> {
        vec![public(&self.key)]
    }
}

/// The token of an agent, signed with `key` of this name.
pub(super) fn token(key: &SigningKey, kid: String, whose: (&str, &str), now: Time) -> String {
    let header = TokenHeader {
        alg: "EdDSA".to_owned(),
        typ: identity::TOKEN_TYPE.to_owned(),
        kid,
    };
    let (agent, team) = whose;
    let caller = Caller {
        workspace: WORKSPACE.to_owned(),
        agent: agent.to_owned(),
        org: None,
        team: Some(team.to_owned()),
        level: GovernanceLevel::default(),
        acts_for: Vec::new(),
    };
    // Gates' clocks may be far off; whether they know their callers is not what is asked here.
    let (issued_at, expires_at) = (now.secs() - 1_500, now.secs() + 2_000);
    let claims = Claims::of(&caller, issued_at, expires_at, "t-1".to_owned());
    let signed = identity::signing_input(&header, &claims).unwrap_or_default();
    let signature = key.sign(signed.as_bytes()).to_bytes();
    format!("{signed}.{}", to_base64url(&signature))
}

/// What a signed answer to a lease request says.
pub(super) fn read_answer(body: &[u8]) -> Option<Answer> {
    let envelope: Envelope = serde_json::from_slice(body).ok()?;
    serde_json::from_slice(&envelope.payload).ok()
}

fn public(key: &SigningKey) -> PublicKey {
    PublicKey {
        key_id: KEY_ID.to_owned(),
        public_key: key.verifying_key().to_bytes().to_vec(),
    }
}

/// As the real one refuses.
fn refusal(status: u16) -> (u16, Vec<u8>) {
    let kind = format!("{PROBLEM_TYPE}simulated");
    (status, json(&serde_json::json!({ "type": kind })))
}

fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
