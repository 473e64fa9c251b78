//! The case format, and how a run is judged by it.

use super::upstream::STILL_HERE;
use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tollgate_engine::{halt::Halt, time::Time};

/// The workspace of every case.
pub const WORKSPACE: &str = "ws-00000000-0000-4000-8000-000000000001";
/// The agent that calls, unless a case revokes it.
pub const AGENT: &str = "00000000-0000-4000-8000-00000000000a";
/// The provider's key that gates hold in every case. Only its place is tested.
pub const PROVIDER_KEY: &str = "provider-key-of-the-corpus";
/// When a case starts, unless it says otherwise: five seconds past a full minute, 2026-11-20 10:00:05 UTC.
const NOW: &str = "2026-11-20T10:00:05Z";

/// A case file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its path below the corpus, without extension.
    #[serde(skip)]
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// Policy documents, as YAML text.
    pub policies: String,
    /// Who calls.
    #[serde(default)]
    pub agent: Agent,
    /// When the script starts (RFC 3339, UTC).
    #[serde(default = "default_now")]
    pub now: String,
    /// Where calls go.
    #[serde(default)]
    pub upstream: Upstream,
    /// What bundle the gate has.
    #[serde(default)]
    pub bundle: BundleState,
    /// Whom operators have stopped.
    #[serde(default)]
    pub halts: Vec<Halt>,
    /// The script.
    pub steps: Vec<Step>,
}

fn default_now() -> String {
    NOW.to_string()
}

/// Who calls.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// Team, `platform` unless set.
    pub team: Option<String>,
    /// Organisation, `acme` unless set.
    pub org: Option<String>,
    /// `L0` to `L3`.
    pub level: String,
    /// The bundle revokes it.
    pub revoked: bool,
    /// For whom it acts, the agents `…00b`, `…00c` and so on: first the one that began it.
    pub acts_for: Vec<Agent>,
}

impl Default for Agent {
    fn default() -> Agent {
        Agent {
            team: Some("platform".to_string()),
            org: Some("acme".to_string()),
            level: "L1".to_string(),
            revoked: false,
            acts_for: Vec::new(),
        }
    }
}

/// Where calls go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upstream {
    /// An LLM API at `api.openai.com`; the gate holds its keys.
    #[default]
    Llm,
    /// Wherever the caller says (`authority` of the call); the gate holds no keys.
    Any,
}

/// What bundle the gate has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BundleState {
    /// One that holds these policies.
    #[default]
    Present,
    /// None yet.
    Missing,
    /// One that expires a minute after the case starts.
    Short,
}

/// One call.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Seconds after the start.
    #[serde(default)]
    pub at: i64,
    /// Whether the control plane answers lease requests.
    #[serde(default = "yes")]
    pub control_plane: bool,
    /// Whether an operator has approved the call before it is made.
    #[serde(default)]
    pub approved: bool,
    /// The call.
    pub call: Call,
    /// What the upstream answers when it is reached.
    #[serde(default)]
    pub answer: Answer,
    /// What must come of it; only drawn cases do not say.
    pub expect: Option<Expect>,
}

fn yes() -> bool {
    true
}

/// A request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// `POST` unless set.
    #[serde(default = "post")]
    pub method: String,
    /// Path and query.
    pub path: String,
    /// `host[:port]` the caller names.
    #[serde(default = "authority")]
    pub authority: String,
    /// Further headers, in order; a value `hex:…` is bytes. With a body and no `content-type` here, `application/json` is added.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The agent's credential.
    #[serde(default)]
    pub token: Token,
    /// The body as text.
    #[serde(default)]
    pub body: Option<String>,
    /// The body as hex.
    #[serde(default)]
    pub body_hex: Option<String>,
    /// A body of that many spaces inside a JSON string.
    #[serde(default)]
    pub body_filler: Option<usize>,
}

fn post() -> String {
    "POST".to_string()
}

fn authority() -> String {
    "gate.example".to_string()
}

/// The agent's credential.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Token {
    /// What kind of token.
    pub kind: TokenKind,
    /// Which header carries it.
    pub header: TokenHeader,
}

/// What kind of token a call brings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// A good one.
    #[default]
    Valid,
    /// None at all.
    None,
    /// Issued two hours before the case starts.
    Expired,
    /// Issued an hour after the case starts.
    Future,
    /// Good for a day.
    Long,
    /// For another workspace, signed by the right key.
    Foreign,
    /// Signed by a key nobody trusts, under a trusted name.
    OtherKey,
    /// One character of the claims changed.
    Tampered,
    /// `alg: none`, no signature.
    AlgNone,
    /// `alg: HS256`, keyed with the public key's bytes.
    AlgHmac,
    /// A header that brings its own key.
    BringsKey,
    /// Without the `typ` of an agent token.
    OtherType,
    /// Not a token.
    Garbage,
}

/// Which header carries the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenHeader {
    /// `authorization: Bearer …`, as OpenAI's SDK sends its key.
    #[default]
    Authorization,
    /// `x-api-key: …`, as Anthropic's SDK sends its key.
    XApiKey,
    /// `x-tollgate-token: …`.
    XTollgateToken,
}

/// A response.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// `content-type`.
    pub content_type: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// The body, in the chunks it comes in.
    pub chunks: Vec<String>,
    /// A recorded response below `tests/fixtures/providers`, in one chunk.
    pub file: Option<String>,
    /// How it ends.
    pub end: AnswerEnd,
}

impl Default for Answer {
    fn default() -> Answer {
        Answer {
            status: 200,
            content_type: "application/json".to_string(),
            headers: Vec::new(),
            chunks: vec!["{}".to_string()],
            file: None,
            end: AnswerEnd::Whole,
        }
    }
}

impl Answer {
    /// The chunks, from wherever they come.
    pub fn chunks(&self) -> Result<Vec<Vec<u8>>> {
        match &self.file {
            Some(file) => {
                let path = xtask::root().join("tests/fixtures/providers").join(file);
                let bytes = std::fs::read(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                Ok(vec![bytes])
            }
            None => Ok(self
                .chunks
                .iter()
                .map(|chunk| chunk.clone().into_bytes())
                .collect()),
        }
    }
}

/// How a response ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerEnd {
    /// As it should.
    #[default]
    Whole,
    /// The caller hangs up after the last chunk given here.
    ClientLeaves,
    /// The upstream hangs up after the last chunk given here.
    UpstreamBreaks,
}

/// What must come of a call. What is absent is not looked at, `outcome` and `reasons` always are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// `allow`, `redact`, `hold` or `deny`.
    pub outcome: String,
    /// The call reached the upstream, and what is denied is its answer.
    #[serde(default)]
    pub answer_denied: bool,
    /// In order; each `rule` or `rule @ document`.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// What the caller got.
    #[serde(default)]
    pub status: Option<u16>,
    /// The caller's `retry-after`.
    #[serde(default)]
    pub retry_after: Option<String>,
    /// The caller's `ratelimit-policy`.
    #[serde(default)]
    pub limits: Option<String>,
    /// The caller's `ratelimit`.
    #[serde(default)]
    pub left: Option<String>,
    /// What the caller got, whole; decision ids are written `d-*`.
    #[serde(default)]
    pub body: Option<String>,
    /// Parts of what the caller got.
    #[serde(default)]
    pub body_contains: Vec<String>,
    /// The body the upstream got.
    #[serde(default)]
    pub upstream_body: Option<String>,
    /// Credential headers the upstream got, all of them.
    #[serde(default)]
    pub upstream_credentials: Option<BTreeMap<String, String>>,
    /// Fields of the record, each compared with what is there.
    #[serde(default)]
    pub record: BTreeMap<String, serde_json::Value>,
    /// Used so far, by account (`agent|nano_usd|day@UTC`), all accounts.
    #[serde(default)]
    pub spent: Option<BTreeMap<String, u64>>,
}

/// What was seen of a step. Hosts must agree on every byte of its JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// What the caller got.
    pub status: u16,
    /// `x-tollgate-reason`.
    pub reason: Option<String>,
    /// `retry-after`.
    pub retry_after: Option<String>,
    /// `ratelimit-policy`.
    pub limits: Option<String>,
    /// `ratelimit`.
    pub left: Option<String>,
    /// `content-type`.
    pub content_type: Option<String>,
    /// Body, decision ids written `d-*`; what is not UTF-8 is replaced.
    pub body: String,
    /// What reached the upstream.
    pub upstream: Option<SeenUpstream>,
    /// The record, with `id`, `decide_us` and `latency_ms` taken out.
    pub record: serde_json::Value,
    /// Used so far, by account; the entity's id is left out, and so is what is 0.
    pub spent: BTreeMap<String, u64>,
}

/// Headers that say who calls or what for, and are looked for at the upstream.
pub const CREDENTIALS: [&str; 9] = [
    "authorization",
    "x-api-key",
    "x-tollgate-token",
    "cookie",
    "api-key",
    "openai-organization",
    "proxy-authorization",
    "x-http-method-override",
    "x-original-url",
];

/// What reached the upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SeenUpstream {
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Those of [`CREDENTIALS`] that came.
    pub credentials: BTreeMap<String, String>,
    /// `accept-encoding`, if it came.
    pub accept_encoding: Option<String>,
    /// Body.
    pub body: String,
}

impl Seen {
    /// Takes what differs by nature out of `record` and `body`: ids and times.
    pub fn normalise(mut self) -> Seen {
        if let Some(fields) = self.record.as_object_mut() {
            if let Some(id) = fields
                .remove("id")
                .and_then(|id| id.as_str().map(String::from))
            {
                self.body = self.body.replace(&id, "d-*");
            }
            fields.remove("decide_us");
            fields.remove("latency_ms");
            fields.remove("revision");
            if let Some(content) = fields.get_mut("content") {
                without_what_came_late(content);
            }
        }
        self
    }
}

/// Takes out what an upstream sent on whose caller had left: how much of it a gate still sees is a matter of luck.
fn without_what_came_late(content: &mut serde_json::Value) {
    let mut bytes = content["answer_bytes"].as_u64().unwrap_or(0);
    if let Some(answer) = content["answer"].as_str() {
        let mut answer = answer;
        while let Some(before) = answer.strip_suffix(STILL_HERE) {
            answer = before;
            bytes -= STILL_HERE.len() as u64;
        }
        let answer = answer.to_string();
        content["answer"] = answer.into();
        content["answer_bytes"] = bytes.into();
    }
}

impl Case {
    /// Reads a case file.
    pub fn read(name: &str, text: &str) -> Result<Case> {
        let mut case: Case =
            serde_saphyr::from_str(text).map_err(|error| anyhow::anyhow!("{error}"))?;
        case.name = name.to_string();
        ensure!(!case.steps.is_empty(), "a case needs a step");
        case.start()?;
        for step in &case.steps {
            let expect = step.expect.as_ref();
            let expect = expect.context("a step says what is expected of it")?;
            ensure!(
                matches!(
                    expect.outcome.as_str(),
                    "allow" | "redact" | "hold" | "deny"
                ),
                "`outcome` must be allow, redact, hold or deny"
            );
            ensure!(
                (expect.outcome != "allow") != expect.reasons.is_empty(),
                "what is denied or held has reasons and nothing else has"
            );
        }
        Ok(case)
    }

    /// What it counts for in the summary: a file is one, what was drawn is as many as it has calls.
    pub fn count(&self) -> usize {
        let drawn = self.steps.iter().filter(|step| step.expect.is_none());
        drawn.count().max(1)
    }

    /// What was drawn, for whoever has to find out why hosts differ.
    pub fn told(&self) -> String {
        let mut told = format!(
            "{}, {}, {:?}\n{}",
            self.name, self.now, self.agent, self.policies
        );
        for (step, number) in self.steps.iter().zip(1..) {
            let Step {
                at, call, answer, ..
            } = step;
            let body = call.bytes().ok().flatten().unwrap_or_default();
            told += &format!(
                "{number}. at {at}: {:?} {} {} {:?} {} -> {answer:?}\n",
                call.token,
                call.method,
                call.path,
                call.headers,
                String::from_utf8_lossy(&body).escape_debug(),
            );
        }
        told
    }

    /// When the script starts.
    pub fn start(&self) -> Result<Time> {
        parse_utc(&self.now)
            .map(Time::from_secs)
            .with_context(|| format!("`now` is not RFC 3339 in UTC: `{}`", self.now))
    }

    /// Everything in `seen` that is not as expected.
    pub fn judge(&self, seen: &[Seen]) -> Vec<String> {
        let mut complaints = Vec::new();
        for (index, (step, seen)) in self.steps.iter().zip(seen).enumerate() {
            let Some(expect) = &step.expect else { continue };
            let mut check = |what: &str, expected: String, found: String| {
                if expected != found {
                    complaints.push(format!(
                        "step {}: {what}: expected {expected}, found {found}",
                        index + 1
                    ));
                }
            };
            let text = |value: Option<&serde_json::Value>| {
                value.map_or("nothing".to_string(), ToString::to_string)
            };
            check(
                "outcome",
                format!("{:?}", expect.outcome),
                text(seen.record.get("outcome")),
            );
            let reasons: Vec<String> = seen
                .record
                .get("reasons")
                .and_then(|reasons| reasons.as_array())
                .into_iter()
                .flatten()
                .map(|reason| {
                    let part = |key| reason.get(key).and_then(|value| value.as_str());
                    match part("document") {
                        Some(document) => {
                            format!("{} @ {document}", part("rule").unwrap_or_default())
                        }
                        None => part("rule").unwrap_or_default().to_string(),
                    }
                })
                .collect();
            check(
                "reasons",
                format!("{:?}", expect.reasons),
                format!("{reasons:?}"),
            );
            if let Some(status) = expect.status {
                check("status", status.to_string(), seen.status.to_string());
            }
            for (name, expected, got) in [
                ("retry-after", &expect.retry_after, &seen.retry_after),
                ("ratelimit-policy", &expect.limits, &seen.limits),
                ("ratelimit", &expect.left, &seen.left),
            ] {
                if expected.is_some() {
                    check(name, format!("{expected:?}"), format!("{got:?}"));
                }
            }
            if let Some(body) = &expect.body {
                check("body", format!("{body:?}"), format!("{:?}", seen.body));
            }
            for part in &expect.body_contains {
                if !seen.body.contains(part) {
                    check(
                        "body",
                        format!("something with {part:?}"),
                        format!("{:?}", seen.body),
                    );
                }
            }
            let upstream = seen.upstream.as_ref();
            check(
                "reached the upstream",
                (expect.answer_denied || matches!(expect.outcome.as_str(), "allow" | "redact"))
                    .to_string(),
                upstream.is_some().to_string(),
            );
            if let Some(body) = &expect.upstream_body {
                check(
                    "upstream body",
                    format!("{body:?}"),
                    format!(
                        "{:?}",
                        upstream
                            .map(|upstream| &upstream.body)
                            .unwrap_or(&String::new())
                    ),
                );
            }
            if let Some(credentials) = &expect.upstream_credentials {
                check(
                    "upstream credentials",
                    format!("{credentials:?}"),
                    format!(
                        "{:?}",
                        upstream
                            .map(|upstream| &upstream.credentials)
                            .unwrap_or(&BTreeMap::new())
                    ),
                );
            }
            for (field, value) in &expect.record {
                check(
                    &format!("record.{field}"),
                    value.to_string(),
                    text(seen.record.get(field)),
                );
            }
            if let Some(spent) = &expect.spent {
                let mut spent = spent.clone();
                spent.retain(|_, used| *used > 0);
                check("spent", format!("{spent:?}"), format!("{:?}", seen.spent));
            }
        }
        complaints
    }
}

impl Call {
    /// The body's bytes, `None` when there is none.
    pub fn bytes(&self) -> Result<Option<Vec<u8>>> {
        match (&self.body, &self.body_hex, self.body_filler) {
            (None, None, None) => Ok(None),
            (Some(text), None, None) => Ok(Some(text.trim_end_matches('\n').as_bytes().to_vec())),
            (None, Some(hex), None) => Ok(Some(
                tollgate_engine::bytes::from_hex(hex).context("`body_hex` is not hex")?,
            )),
            (None, None, Some(length)) => Ok(Some(
                format!("{{\"filler\":\"{}\"}}", " ".repeat(length)).into_bytes(),
            )),
            _ => bail!("a call has one body"),
        }
    }

    /// The headers a client would send, without pseudo-headers; `token` is the credential's text.
    pub fn headers(
        &self,
        token: Option<&str>,
        body_length: Option<usize>,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let mut headers = Vec::new();
        if let Some(token) = token {
            headers.push(match self.token.header {
                TokenHeader::Authorization => (
                    "authorization".to_string(),
                    format!("Bearer {token}").into_bytes(),
                ),
                TokenHeader::XApiKey => ("x-api-key".to_string(), token.as_bytes().to_vec()),
                TokenHeader::XTollgateToken => {
                    ("x-tollgate-token".to_string(), token.as_bytes().to_vec())
                }
            });
        }
        let has_type = self
            .headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if let Some(length) = body_length {
            if !has_type {
                headers.push(("content-type".to_string(), b"application/json".to_vec()));
            }
            headers.push((
                "content-length".to_string(),
                length.to_string().into_bytes(),
            ));
        }
        for (name, value) in &self.headers {
            // `content-type: ""` in a case means: none at all.
            if value.is_empty() && name == "content-type" {
                continue;
            }
            let value = match value.strip_prefix("hex:") {
                Some(hex) => {
                    tollgate_engine::bytes::from_hex(hex).context("a header is not hex")?
                }
                None => value.clone().into_bytes(),
            };
            headers.push((name.clone(), value));
        }
        Ok(headers)
    }
}

/// Seconds since the Unix epoch of `YYYY-MM-DDThh:mm:ssZ`.
fn parse_utc(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if text.len() != 20 || !text.ends_with('Z') {
        return None;
    }
    // Days from civil date, Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (days_from_civil).
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let yoe = year.rem_euclid(400);
    let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    let days = era * 146_097 + doe - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}
