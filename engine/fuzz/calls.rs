//! One call from first header to record, with every choice of caller, host, control plane and upstream taken from the input.
//! The fuzz target and `engine/tests/exchange.rs` run the same.

use crate::issuer::{self, Towards};
use std::{cell::RefCell, collections::BTreeMap};
use tollgate_engine::{
    bundle::{Payload, Redaction, Texts},
    decide::Outcome,
    exchange::{
        CellOp, End, Exchange, Finished, Forward, LEASE_WAIT_MS, Output, Step, TOOL_OUTPUT_IS_DATA,
        Want,
    },
    facts::Headers,
    gate::Gate,
    halt::Kind,
    identity::TOKEN_HEADER,
    journal::MAX_RECORD_BYTES,
    json,
    lease::Grant,
    ledger::{Account, Cell, Op, Refusal, Unit},
    redact::REPLACEMENT,
    reply::{DECISION_HEADER, REASON_HEADER, Reply},
    time::Time,
};

/// Begins what stands in prompts, queries, header values and responses, and every key of [`issuer::config`]. Names (of models, tools, methods,
/// hosts) are recorded, so it stands in none.
const SECRET: &str = "canary-";
/// The same as `Debug` shows bytes.
const SECRET_IN_DECIMAL: &str = "99, 97, 110, 97, 114, 121, 45";

/// Drives one call in the order of the contract. Whatever comes of it: nothing panics, the record is one line of JSON without a secret, and
/// what was reserved is settled, once. Returns how it ended: `sent`, `left`, or the rule that denied it.
pub(crate) fn in_order(input: &[u8]) -> String {
    let mut choices = Choices(input);
    let call = Call::choose(&mut choices);
    with_gate(choices.below(GATES), |gate| {
        let mut world = World::new(&mut choices, call.names_hold_secret());
        world.drive(gate, &call, &mut choices)
    })
}

/// Calls the exchange's functions in any order. A verdict that was given stands, and a denied call is never sent on.
pub(crate) fn out_of_order(input: &[u8]) {
    let mut choices = Choices(input);
    let call = Call::choose(&mut choices);
    with_gate(choices.below(GATES), |gate| {
        let mut world = World::new(&mut choices, call.names_hold_secret());
        world.misdrive(gate, &call, &mut choices);
    });
}

const GATES: usize = 4;

/// Runs the newest bundle once its caller is killed.
fn with_killed<T>(run: impl FnOnce(&Gate) -> T) -> T {
    thread_local! {
        static KILLED: Gate = {
            let mut payload = issuer::payload(2);
            payload.halts = vec![issuer::halt("team:platform", Kind::Killed)];
            issuer::gate(Towards::Llm, &payload)
        };
    }
    KILLED.with(run)
}

/// Gates are kept from call to call, as a host does.
fn with_gate<T>(which: usize, run: impl FnOnce(&mut Gate) -> T) -> T {
    thread_local! {
        static KEPT: RefCell<Vec<Gate>> = RefCell::new(gates());
    }
    KEPT.with_borrow_mut(|gates| run(&mut gates[which % GATES]))
}

fn gates() -> Vec<Gate> {
    // Rules that look at nothing but the host.
    let mut open = issuer::payload(1);
    open.documents.change(|documents| {
        documents[0].data.patterns = Vec::new();
        documents[0].tools.denied = Texts::NONE;
    });
    // What others block is taken out here, and models are told what tool output is.
    let mut budgeted = issuer::budgeted(1);
    budgeted.documents.change(|documents| {
        let blocked = core::mem::take(&mut documents[0].data.patterns);
        documents[0].data.redactions = vec![Redaction {
            rule: "data.sensitive_patterns[0]".to_string(),
            patterns: blocked,
        }];
        documents[0].data.tool_output_is_data = true;
    });
    let gates: [(Towards, Payload); GATES] = [
        (Towards::Llm, budgeted),
        (Towards::Anywhere, issuer::budgeted(1)),
        (Towards::Llm, open.clone()),
        (Towards::Anywhere, open),
    ];
    gates
        .map(|(towards, payload)| issuer::gate(towards, &payload))
        .into()
}

/// The input, read as a list of choices; when it is used up, every choice is the first.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: usize) -> usize {
        (usize::from(self.byte()) << 8 | usize::from(self.byte())) % limit.max(1)
    }

    fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == of - 1
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Drops, repeats, flips, cuts or inserts, once or a few times.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len() + 1);
            let until = at + self.below(bytes.len() + 1 - at).min(24);
            match self.below(5) {
                0 => {
                    bytes.splice(at..at, self.pick(TOKENS).iter().copied());
                }
                1 => {
                    bytes.drain(at..until);
                }
                2 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
                3 => {
                    let again = bytes[at..until].to_vec();
                    bytes.splice(at..at, again);
                }
                _ => bytes.truncate(at),
            }
        }
    }
}

/// What decides, and what confuses readers.
const TOKENS: &[&[u8]] = &[
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"1e9",
    b"18446744073709551616",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r\n\r\n",
    b"\0",
    b"data: ",
    b"[DONE]",
    b"\"model\":\"gpt-4o\",",
    b"\"Model\":\"x\",",
    b"\"stream\":true,",
    b"\"stream_options\":{},",
    b"\"stream_options\":7,",
    b"\"max_tokens\":99999999999,",
    b"\"n\":3,",
    b"\"tools\":[{\"name\":\"shell\"}],",
    b"\"jsonrpc\":\"2.0\",",
    b"\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":6},",
    b"\"error\":{},",
    b"key-abcdefgh",
];

const BODIES: &[&str] = &[
    r#"{"model":"gpt-4o","messages":[{"role":"user","content":"canary-content"}],"max_tokens":100}"#,
    r#"{"model":"gpt-4o","messages":[{"role":"user","content":"canary-content"}],"stream":true}"#,
    r#"{"model":"gpt-4o","messages":[],"stream":true,"stream_options":{"include_usage":false},"user":"canary-content"}"#,
    r#"{"model":"claude","max_tokens":50,"system":"canary-content","messages":[{"role":"user","content":[{"type":"image"},{"type":"text","text":"hi"}]}],"tools":[{"name":"git"}]}"#,
    r#"{"model":"gpt-4o","messages":[],"tools":[{"type":"function","function":{"name":"shell","description":"canary-content"}}]}"#,
    r#"{"model":"unknown","messages":[]}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"git","arguments":{"a":"canary-content"}}}"#,
    r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"shell"}}"#,
    r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#,
    r#"[{"jsonrpc":"2.0"}]"#,
    "canary-content and key-abcdefgh",
    "",
    "null",
    "{}",
];

const METHODS: &[&str] = &["POST", "POST", "POST", "PUT", "GET", "DELETE", "post", ""];
const PATHS: &[&str] = &[
    "/v1/chat/completions",
    "/v1/messages",
    "/mcp",
    "/v1/responses",
    "/v1/messages/count_tokens",
    "/v1/chat/completions?trace=canary-content",
    "/upload?a=key-abcdefgh",
    "/",
    "",
    "*",
];
const AUTHORITIES: &[&str] = &[
    "api.example.com",
    "api.openai.com:443",
    "elsewhere.example",
    "[::1]:80",
    "no host",
];
const CONTENT_TYPES: &[Option<&str>] = &[
    Some("application/json"),
    None,
    Some("text/plain"),
    Some("application/octet-stream"),
    Some("application/json; charset=utf-16"),
    Some("application/problem+json"),
];
const MORE_HEADERS: &[(&str, &str)] = &[
    ("x-note", "canary-content"),
    ("accept-encoding", "gzip"),
    ("anthropic-version", "2023-06-01"),
    ("mcp-method", "tools/call"),
    ("mcp-name", "git"),
    ("content-encoding", "gzip"),
    ("content-encoding", "identity"),
    ("content-length", "7"),
    ("content-length", "99999999999"),
    ("host", "api.example.com"),
    ("x-api-key", "canary-own-key"),
    ("authorization", "Bearer canary-own-key"),
    ("content-type", "text/plain"),
];

const JSON_ANSWER: &str = r#"{"id":"1","object":"chat.completion","model":"gpt-4o","choices":[{"message":{"role":"assistant","content":"canary-content"}}],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14}}"#;
const ANTHROPIC_ANSWER: &str = r#"{"type":"message","model":"claude","content":[{"type":"text","text":"canary-content"}],"usage":{"input_tokens":9,"output_tokens":4}}"#;
const STREAM: &str = "data: {\"model\":\"gpt-4o\",\"choices\":[{\"delta\":{\"content\":\"canary-content\"}}]}\n\ndata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";
const ANTHROPIC_STREAM: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude\",\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"canary-content\"}}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":4}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

const ANSWERS: &[(&str, &str)] = &[
    ("application/json", JSON_ANSWER),
    ("text/event-stream", STREAM),
    ("application/json", ANTHROPIC_ANSWER),
    ("text/event-stream; charset=utf-8", ANTHROPIC_STREAM),
    (
        "application/json",
        r#"{"error":{"message":"canary-content"}}"#,
    ),
    ("text/html", "canary-content"),
    ("", ""),
];
const STATUSES: &[&str] = &["200", "429", "500", "504", "100", "x", ""];

/// A request.
struct Call {
    headers: Vec<(Vec<u8>, Vec<u8>)>,
    body: Option<Vec<u8>>,
    token: String,
}

impl Call {
    fn choose(choices: &mut Choices<'_>) -> Call {
        thread_local! {
            static TOKENS: [String; 3] = {
                let good = issuer::claims();
                let mut expired = issuer::claims();
                expired.iat -= 7_200;
                expired.exp -= 7_200;
                let mut lonely = issuer::claims();
                (lonely.org, lonely.team) = (None, None);
                [&good, &expired, &lonely].map(issuer::token)
            };
        }
        let token = TOKENS.with(|tokens| tokens[choices.below(10).saturating_sub(7)].clone());
        let body = (!choices.one_in(6)).then(|| {
            let mut body = choices.pick(BODIES).as_bytes().to_vec();
            if !choices.one_in(3) {
                choices.damage(&mut body);
            }
            body
        });
        let mut headers: Vec<(&str, String)> = vec![
            (":method", choices.pick(METHODS).to_string()),
            (":path", choices.pick(PATHS).to_string()),
            (":authority", choices.pick(AUTHORITIES).to_string()),
        ];
        let bearer = format!("Bearer {token}");
        match choices.below(8) {
            0..=2 => headers.push(("authorization", bearer)),
            3 => headers.push(("x-api-key", token.clone())),
            4 => headers.push((TOKEN_HEADER, token.clone())),
            5 => headers.extend([
                (TOKEN_HEADER, token.clone()),
                ("authorization", bearer),
                ("x-api-key", token.clone()),
            ]),
            6 => headers.push(("authorization", "Bearer canary-not-a-token".to_string())),
            _ => {}
        }
        if let Some(content_type) = choices.pick(CONTENT_TYPES) {
            headers.push(("content-type", content_type.to_string()));
        }
        for _ in 0..choices.below(3) {
            let (name, value) = choices.pick(MORE_HEADERS);
            headers.push((name, value.to_string()));
        }
        let mut headers: Vec<(Vec<u8>, Vec<u8>)> = headers
            .into_iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), value.into_bytes()))
            .collect();
        if choices.one_in(4) {
            let some = choices.below(headers.len());
            let (name, value) = &mut headers[some];
            let damaged = if choices.one_in(4) { name } else { value };
            choices.damage(damaged);
        }
        Call {
            headers,
            body,
            token,
        }
    }

    /// Whether damage has carried the canary to where a name stands: names are recorded and shown.
    fn names_hold_secret(&self) -> bool {
        let holds = |value: &serde_json::Value| value.to_string().contains(SECRET);
        let body = self.body.as_deref().unwrap_or_default();
        let body = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
        let tools = |key: &str| {
            let tools = body[key].as_array().cloned().unwrap_or_default();
            tools.into_iter().any(|mut tool| {
                // The one place below `tools` where the canary belongs.
                if let Some(function) = tool["function"].as_object_mut() {
                    function.remove("description");
                }
                holds(&tool)
            })
        };
        let head = self.headers.iter().any(|(name, value)| {
            let value = value.split(|byte| matches!(byte, b'?' | b'#')).next();
            [&b":method"[..], b":path", b":authority", b"host"]
                .iter()
                .any(|known| name.eq_ignore_ascii_case(known))
                && value.is_some_and(|value| has(value, SECRET))
        });
        head || ["model", "method", "id"]
            .iter()
            .any(|key| holds(&body[*key]))
            || ["name", "uri"]
                .iter()
                .any(|key| holds(&body["params"][*key]))
            || tools("tools")
            || tools("functions")
    }

    fn pairs(&self) -> Vec<(&[u8], &[u8])> {
        let headers = self.headers.iter();
        headers
            .map(|(name, value)| (name.as_slice(), value.as_slice()))
            .collect()
    }
}

fn has(text: &[u8], part: &str) -> bool {
    String::from_utf8_lossy(text).contains(part)
}

/// Whatever surrounds the exchange: the store, the clock, and an eye on what comes out.
struct World {
    cells: BTreeMap<Account, Vec<u8>>,
    now: Time,
    /// What a control plane leases of an account when asked, and before it is asked.
    granted: u64,
    leased_before: bool,
    secrets_expected: bool,
}

impl World {
    fn new(choices: &mut Choices<'_>, secrets_expected: bool) -> World {
        World {
            cells: BTreeMap::new(),
            now: issuer::NOW,
            granted: choices.pick(&[1 << 40, 0, 1, 50_000]),
            leased_before: !choices.one_in(3),
            secrets_expected,
        }
    }

    fn drive(&mut self, gate: &mut Gate, call: &Call, choices: &mut Choices<'_>) -> String {
        let pairs = call.pairs();
        let (mut exchange, mut step) = Exchange::begin(
            gate,
            Headers(&pairs),
            call.body.is_some(),
            self.now,
            u128::from(choices.byte()),
        );
        let mut came_of_it = "left".to_string();
        let mut end = choices.pick(&[End::Complete, End::ClientLeft, End::UpstreamBroken]);
        let mut swaps = 0;
        loop {
            self.now = self.now.plus_millis(choices.below(400) as i64);
            self.look_at(&step, &exchange);
            // The caller may leave while the gate waits for something.
            let waits = matches!(step, Step::NeedBody { .. } | Step::AwaitLease { .. });
            if waits && choices.one_in(12) {
                if let Step::AwaitLease { undo, .. } = &step {
                    self.apply_all(undo);
                }
                end = End::ClientLeft;
                break;
            }
            step = match step {
                Step::NeedBody { cap } if choices.one_in(20) => {
                    assert!(cap > 0);
                    exchange.body_over_cap(gate, self.now)
                }
                Step::NeedBody { .. } => {
                    let body = call.body.as_deref().unwrap_or_default();
                    exchange.body(gate, body, self.now)
                }
                Step::Swap(ops) => {
                    swaps += 1;
                    assert!(swaps < 100, "a call that waits for ever");
                    if self.leased_before {
                        ops.iter().for_each(|op| self.lease(&op.account, &op.op));
                    }
                    let result = self.swap(&ops);
                    exchange.swapped(gate, result, self.now)
                }
                Step::AwaitLease {
                    undo,
                    wants,
                    deadline,
                } => {
                    assert!(deadline <= issuer::NOW.plus_secs(40_000));
                    self.apply_all(&undo);
                    if choices.one_in(2) {
                        self.now = self.now.max(deadline);
                    } else {
                        self.now = self.now.plus_millis(50);
                        wants.iter().for_each(|want| self.grant(want));
                    }
                    exchange.retry()
                }
                Step::Forward(forward) => {
                    came_of_it = "sent".to_string();
                    self.check_forward(call, &forward);
                    assert!(exchange.wants_response());
                    self.respond(gate, &mut exchange, choices);
                    break;
                }
                Step::Reply { reply, undo } => {
                    self.apply_all(&undo);
                    came_of_it = self.check_reply(&exchange, &reply);
                    assert!(!exchange.wants_response());
                    break;
                }
            };
        }
        let forwarded = came_of_it == "sent";
        let id = exchange.id().to_string();
        let finished = exchange.finish(end, self.now);
        self.check_finished(&finished, &id, Some(forwarded));
        self.apply_all(&finished.ops);
        for (account, cell) in &self.cells {
            for slot in Cell::decode(cell).slots() {
                assert_eq!(slot.reserved, 0, "{account} after the end");
                if account.unit == Unit::Calls {
                    assert_eq!(slot.settled, u64::from(forwarded));
                }
                if !forwarded {
                    assert_eq!(slot.settled, 0, "{account}: nothing was sent");
                }
            }
        }
        came_of_it
    }

    fn misdrive(&mut self, gate: &mut Gate, call: &Call, choices: &mut Choices<'_>) {
        let pairs = call.pairs();
        let (mut exchange, first) =
            Exchange::begin(gate, Headers(&pairs), call.body.is_some(), self.now, 1);
        let mut forwards = 0;
        let mut steps = vec![first];
        for _ in 0..choices.below(12) {
            if let Some(step) = steps.pop() {
                self.look_at(&step, &exchange);
                match step {
                    Step::Forward(_) => forwards += 1,
                    Step::Reply { .. }
                    | Step::NeedBody { .. }
                    | Step::Swap(_)
                    | Step::AwaitLease { .. } => {}
                }
                assert!(forwards <= 1, "sent on twice");
                let decision = exchange.decision();
                let answer_denied = decision
                    .reasons
                    .iter()
                    .any(|reason| is_of_answers(&reason.rule));
                assert!(
                    forwards == 0 || decision.outcome <= Outcome::Redact || answer_denied,
                    "denied and sent on"
                );
            }
            self.now = self.now.plus_millis(choices.below(3_000) as i64 - 500);
            let body = call.body.as_deref().unwrap_or_default();
            let refused = choices.below(5);
            match choices.below(8) {
                0 => steps.push(exchange.body(gate, body, self.now)),
                1 => steps.push(exchange.body_over_cap(gate, self.now)),
                2 => steps.push(exchange.swapped(
                    gate,
                    Ok(vec![u64::MAX; choices.below(5)]),
                    self.now,
                )),
                3 => {
                    let refusal = choices.pick(&[
                        Refusal::NoLease,
                        Refusal::Short,
                        Refusal::AlreadyAsked,
                        Refusal::Exhausted {
                            retry_ms: i64::MAX,
                            left: 100,
                        },
                    ]);
                    steps.push(exchange.swapped(gate, Err((refused, refusal)), self.now));
                }
                4 => steps.push(exchange.retry()),
                5 => {
                    exchange.response_head(Headers(&[(b":status", b"200")]));
                }
                6 => {
                    exchange.response_chunk(gate, b"data: {}\n\n", choices.one_in(2));
                }
                _ => self.respond(gate, &mut exchange, choices),
            }
        }
        let id = exchange.id().to_string();
        let finished = exchange.finish(End::Complete, self.now);
        self.check_finished(&finished, &id, None);
        assert!(
            finished
                .ops
                .iter()
                .all(|op| matches!(op.op, Op::Settle { .. }))
        );
    }

    fn respond(&mut self, gate: &Gate, exchange: &mut Exchange, choices: &mut Choices<'_>) {
        if choices.one_in(10) {
            return;
        }
        let (content_type, answer) = choices.pick(ANSWERS);
        let mut answer = answer.as_bytes().to_vec();
        if choices.one_in(2) {
            choices.damage(&mut answer);
        }
        let status = choices.pick(STATUSES);
        let mut headers: Vec<(&[u8], &[u8])> = vec![
            (b":status", status.as_bytes()),
            (b"content-type", content_type.as_bytes()),
        ];
        if choices.one_in(10) {
            headers.push((b"content-encoding", b"gzip"));
        }
        let head = exchange.response_head(Headers(&headers));
        for (name, value) in head.set {
            match name {
                DECISION_HEADER => assert_eq!(value, exchange.id()),
                "ratelimit" | "ratelimit-policy" => {
                    assert!(value.is_ascii() && value.len() < 1_000, "{value}");
                }
                _ => panic!("sets {name}"),
            }
        }
        let size = 1 + choices.below(200);
        let mut rest = answer.as_slice();
        let mut cut = false;
        while !rest.is_empty() {
            if choices.one_in(30) {
                return;
            }
            let (chunk, after) = rest.split_at(size.min(rest.len()));
            rest = after;
            let end = rest.is_empty() && size.is_multiple_of(2);
            let killed = exchange.wants_response() && choices.one_in(20);
            // What is searched or paid for may have to end by itself.
            let may_end =
                killed || exchange.searches_answer() || !exchange.decision().charges.is_empty();
            let output = if killed {
                with_killed(|gate| exchange.response_chunk(gate, chunk, end))
            } else {
                exchange.response_chunk(gate, chunk, end)
            };
            match output {
                Output::Pass | Output::Replace(_) => assert!(!cut, "more after the end"),
                Output::Cut(bytes) => {
                    // Whoever drives it out of order may have had it cut before.
                    assert!(bytes.is_empty() || may_end && !cut, "cut for nothing");
                    cut = true;
                }
                Output::Answer(_) => {
                    assert!(may_end && !cut, "answered for nothing");
                    assert!(!exchange.wants_response());
                    cut = true;
                }
            }
        }
        if choices.one_in(2) {
            exchange.response_chunk(gate, b"", true);
        }
    }

    fn apply_all(&mut self, ops: &[CellOp]) {
        for op in ops {
            assert!(self.apply(op).is_ok(), "{op:?} cannot be refused");
        }
    }

    fn apply(&mut self, op: &CellOp) -> Result<u64, Refusal> {
        let old = self.cells.get(&op.account).map(Vec::as_slice);
        let new = op.op.apply(old, self.now)?;
        let taken = op.op.taken(&Cell::decode(&new));
        self.cells.insert(op.account.clone(), new);
        Ok(taken)
    }

    fn swap(&mut self, ops: &[CellOp]) -> Result<Vec<u64>, (usize, Refusal)> {
        ops.iter()
            .enumerate()
            .map(|(index, op)| self.apply(op).map_err(|refusal| (index, refusal)))
            .collect()
    }

    fn grant(&mut self, want: &Want) {
        let expires = self.now.plus_millis(10 * LEASE_WAIT_MS);
        let grant = Grant {
            retry_ms: if self.granted == 0 {
                self.now.millis() + 500
            } else {
                0
            },
            ..issuer::grant(&want.account, want.span, self.granted, expires)
        };
        self.apply_all(&[CellOp {
            account: want.account.clone(),
            op: Op::Refill { grant, epoch: 1 },
        }]);
    }

    fn lease(&mut self, account: &Account, op: &Op) {
        if let Op::Reserve { span, amount } = op {
            self.grant(&Want {
                account: account.clone(),
                span: *span,
                amount: *amount,
            });
        }
    }

    /// No secret in what a host may print.
    fn look_at(&self, step: &Step, exchange: &Exchange) {
        self.no_secret("a step", format!("{step:?}").as_bytes());
        self.no_secret("an exchange", format!("{exchange:?}").as_bytes());
    }

    fn check_forward(&self, call: &Call, forward: &Forward) {
        for (name, value) in &call.headers {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            let replaced = forward.set.iter().any(|(set, _)| *set == name);
            let goes_on = !replaced && !forward.remove.contains(&name.as_str());
            assert!(
                !goes_on || !has(value, &call.token) || !is_credential(&name),
                "the agent's token goes on in {name}"
            );
        }
        if let Some(body) = &forward.body {
            let length = ("content-length", body.len().to_string());
            assert!(forward.set.contains(&length));
            let redacted = has(body, REPLACEMENT);
            assert!(!redacted || !has(body, "key-abcdefgh"), "left in the body");
            let came = call.body.as_deref().unwrap_or_default();
            let doc = json::parse(body);
            assert_eq!(doc.is_ok(), json::parse(came).is_ok(), "another body");
            let options = doc.as_ref().ok().map(json::Document::root);
            let usage = options
                .and_then(|root| root.get("stream_options"))
                .and_then(|options| options.get("include_usage"))
                .and_then(json::Value::as_bool);
            let instructed = has(body, TOOL_OUTPUT_IS_DATA);
            assert!(
                redacted || instructed || usage == Some(true),
                "changed for nothing"
            );
        }
        for (name, value) in &forward.set {
            let is_key = [issuer::OPENAI_KEY, issuer::ANTHROPIC_KEY]
                .iter()
                .any(|key| value.contains(key));
            assert_eq!(is_key, is_credential(name), "{name}");
            assert!(!value.contains(issuer::ENROLMENT_KEY));
        }
    }

    fn check_reply(&self, exchange: &Exchange, reply: &Reply) -> String {
        assert!(
            [400, 401, 403, 413, 429, 503].contains(&reply.status),
            "{}",
            reply.status
        );
        let header = |wanted: &str| {
            let mut headers = reply.headers.iter();
            headers
                .find(|(name, _)| *name == wanted)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(header(DECISION_HEADER), Some(exchange.id()));
        let rule = header(REASON_HEADER).expect("a reason").to_string();
        assert_ne!(rule, "gate.state");
        for (name, value) in &reply.headers {
            let printable = |c: char| c == ' ' || c.is_ascii_graphic();
            assert!(value.chars().all(printable), "{name}: {value}");
            self.no_secret(name, value.as_bytes());
        }
        serde_json::from_str::<serde_json::Value>(&reply.body).expect("an answer is JSON");
        self.no_secret("an answer", reply.body.as_bytes());
        rule
    }

    fn check_finished(&self, finished: &Finished, id: &str, forwarded: Option<bool>) {
        let record = &finished.record;
        assert!(!record.contains(&b'\n') && record.len() <= MAX_RECORD_BYTES);
        let read: serde_json::Value = serde_json::from_slice(record).expect("a record is JSON");
        json::parse(record).expect("with a single reading");
        assert_eq!(read["id"], id);
        let allowed = read["outcome"] == "allow";
        assert!(allowed || read["outcome"] == "deny");
        let reasons = read["reasons"].as_array().into_iter().flatten();
        let mut rules = reasons.filter_map(|reason| reason["rule"].as_str());
        let answer_denied = rules.any(is_of_answers);
        if let Some(forwarded) = forwarded {
            assert_eq!(allowed || answer_denied, forwarded, "{read}");
        }
        self.no_secret("a record", record);
        self.no_secret("what is left", format!("{finished:?}").as_bytes());
    }

    fn no_secret(&self, place: &str, text: &[u8]) {
        if self.secrets_expected {
            return;
        }
        assert!(
            !has(text, SECRET) && !has(text, SECRET_IN_DECIMAL),
            "{place} holds a secret: {}",
            text.escape_ascii()
        );
    }
}

/// Where the token may be, and the provider's key must.
fn is_credential(name: &str) -> bool {
    ["authorization", "x-api-key", TOKEN_HEADER].contains(&name)
}

/// Whether a rule is about the upstream's answer: the call itself has passed.
fn is_of_answers(rule: &str) -> bool {
    rule.starts_with("response.")
}
