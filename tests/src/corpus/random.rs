//! Cases that nobody thought of: valid policies, calls and answers, drawn by dice.
//!
//! What is right is not known here. All hosts have to agree with the first, and the reference evaluator in `policy/tests` holds the engine itself.
//! A case has one set of policies and several calls, so that what one call leaves in the ledger is there for the next; each call with its answer is
//! counted as a triple. Case `random/SEED/INDEX` comes out the same whatever else is drawn: `--filter` finds it again.
//!
//! Only what every host can be sent is drawn: a path that a URL parser leaves alone, header values in ASCII, no body where `fetch` takes none. What
//! HTTP stacks read differently has cases of its own, written by hand.

use super::case::{
    Agent, Answer, AnswerEnd, BundleState, Call, Case, Step, Token, TokenHeader, TokenKind,
    Upstream,
};
use crate::simulate::Dice;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// Calls in a case. More would leave less to policies, fewer make more processes to start.
const CALLS: usize = 10;
/// Between calls. Longer than a gate in workerd takes, in its own time, to tell what it has done; and short enough that a token lives for all of them.
const PAUSES_SECS: [i64; 4] = [30, 45, 61, 300];

const MODELS: [&str; 6] = [
    "gpt-4o",
    "gpt-4o-mini",
    "claude-haiku-4-5",
    "claude-sonnet-4-5",
    "gpt-5-mini",
    "house-model",
];
const TOOLS: [&str; 5] = ["bash", "git", "git_push", "file_write", "Mail"];
const HOSTS: [&str; 5] = [
    "a.example",
    "b.example",
    "api.b.example",
    "other.test",
    "10.1.2.3",
];
const TEAMS: [&str; 3] = ["platform", "red", "blue"];
const PER: [&str; 5] = ["agent", "agent", "team", "org", "workspace"];
/// Names of runs. Few, so that calls meet again in one.
const RUNS: [&str; 4] = ["one", "one", "two", "ticket:4711.a-b_c"];
const SESSIONS: [&str; 2] = ["session-1", "s,2"];
/// What no run can be named.
const BAD_RUNS: [&str; 4] = ["", "a b", "one,two", "mcp:84097828"];
/// Seconds that a run may last. No sum of [`PAUSES_SECS`] is one of them: on its last second two gates may be a moment apart.
const TIMEOUTS_SECS: [i64; 4] = [20, 53, 200, 3_000];
const ZONES: [&str; 4] = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"];
/// Each is in some prompts, see [`TEXTS`].
const PATTERNS: [&str; 5] = [
    "key-[a-z]{4,8}",
    r"\b\d{3}-\d{2}-\d{4}\b",
    r"(?i)password\s*[:=]\s*\S+",
    "straße|日本.",
    "a[^b]{3}c",
];
const TEXTS: [&str; 8] = [
    "hello",
    "use key-abcdefgh please",
    "ssn 123-45-6789",
    "PassWord = hunter2",
    "die Straße, die straße",
    "日本語",
    "a\u{0}\u{1f}\"\\c",
    "nothing to see here, move along, and then some more words so that tokens add up",
];
const ATOMS: [&str; 12] = [
    "governance_level >= L2",
    "model == 'gpt-4o'",
    "args.path.startsWith('/tmp/')",
    "has(args.path)",
    "args.n % 3 == 1",
    "size(args.list) > 2",
    "args.list[0] == 'x'",
    "estimated_cost_usd > 0.0001",
    "now.getHours() < 12",
    "team == 'platform'",
    "path.contains('mcp')",
    "'git' in tools",
];

/// The first `calls` triples of a seed, in cases.
#[must_use]
pub fn cases(calls: usize, seed: u64) -> Vec<Case> {
    (0..calls.div_ceil(CALLS))
        .map(|index| {
            let left = calls - index * CALLS;
            case(seed, index, left.min(CALLS))
        })
        .collect()
}

fn case(seed: u64, index: usize, calls: usize) -> Case {
    let mut dice = Dice::new(seed);
    // A seed's cases begin far from each other and from those of the next seed.
    dice = Dice::new(dice.bits() ^ index as u64);
    let dice = &mut dice;
    let mut at = 0;
    // Else nearly all calls would be denied for something or other, and few would be metered and counted.
    let open = dice.chance(500);
    let upstream = if dice.chance(700) {
        Upstream::Llm
    } else {
        Upstream::Any
    };
    Case {
        name: format!("random/{seed}/{index}"),
        about: "Drawn by dice.".to_string(),
        policies: policies(dice, open),
        agent: Agent {
            acts_for: match dice.chance(250) {
                true => (0..1 + dice.below(2)).map(|_| somebody(dice)).collect(),
                false => Vec::new(),
            },
            ..somebody(dice)
        },
        now: format!(
            "2026-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            1 + dice.below(12),
            1 + dice.below(28),
            dice.below(24),
            dice.below(60),
            dice.below(60)
        ),
        upstream,
        halts: Vec::new(),
        bundle: BundleState::Present,
        steps: (0..calls)
            .map(|_| {
                let step = step(dice, upstream, at, open);
                at += *dice.pick(&PAUSES_SECS);
                step
            })
            .collect(),
    }
}

/// A caller, or one for whom it acts.
fn somebody(dice: &mut Dice) -> Agent {
    Agent {
        team: dice.chance(850).then(|| dice.pick(&TEAMS).to_string()),
        org: dice.chance(850).then(|| "acme".to_string()),
        level: format!("L{}", dice.below(4)),
        revoked: dice.chance(10),
        acts_for: Vec::new(),
    }
}

// Policies.

/// `open` is whether they only count: nothing but a limit stands against a call.
fn policies(dice: &mut Dice, open: bool) -> String {
    let mut text = String::new();
    for number in 0..=dice.below(if open { 2 } else { 3 }) {
        let document = json!({
            "apiVersion": "tollgate/v1",
            "kind": "Policy",
            "metadata": {"name": format!("p{number}")},
            "spec": spec(dice, open),
        });
        // JSON is YAML.
        let _ = writeln!(text, "---\n{document}");
    }
    text
}

fn spec(dice: &mut Dice, open: bool) -> Value {
    let scope = match dice.below(10) {
        _ if open => "global".to_string(),
        0 => format!("tool:{}", dice.pick(&TOOLS)),
        1 => "agent:00000000-0000-4000-8000-00000000000a".to_string(),
        2 | 3 => format!("team:{}", dice.pick(&TEAMS)),
        4 => "org:acme".to_string(),
        _ => "global".to_string(),
    };
    let of_tool = scope.starts_with("tool:");
    let mut spec = Map::new();
    spec.insert("scope".to_string(), scope.into());
    let mut add = |name: &str, value: Value| spec.insert(name.to_string(), value);
    if !open && dice.chance(250) {
        let mut hosts = some(dice, &HOSTS);
        hosts.extend(some(
            dice,
            &["*.b.example", "*.example", "api.openai.com", "*"],
        ));
        add("network", json!({"allowlist": hosts}));
    }
    if !open && dice.chance(350) {
        add("capabilities", capabilities(dice));
    }
    let with_tools = !open && dice.chance(400);
    if with_tools {
        add("tools", tools(dice));
    }
    if !of_tool && dice.chance(300) {
        add("agent", agent(dice, with_tools));
    }
    if !open && dice.chance(350) {
        let mut data = json!({"sensitive_patterns": some(dice, &PATTERNS)});
        if dice.chance(400) {
            data["action"] = json!("redact");
        }
        if dice.chance(200) {
            data["mask_pii"] = json!(true);
        }
        if dice.chance(300) {
            data["applies_to"] = json!(dice.pick(&["requests", "responses"]));
        }
        add("data", data);
    }
    if !open && dice.chance(200) {
        let start = dice.below(24);
        let end = (start + 1 + dice.below(23)) % 24;
        add(
            "schedule",
            json!({"active_hours": {
                "start": format!("{start:02}:{:02}", dice.below(60)),
                "end": format!("{end:02}:{:02}", dice.below(60)),
                "timezone": dice.pick(&ZONES),
            }}),
        );
    }
    if dice.chance(500) {
        add("budget", budget(dice));
    }
    if dice.chance(350) {
        let calls = *dice.pick(&[0, 1, 1, 2, 3, 50]);
        let mut rate = json!({"requests_per_minute": calls, "per": per(dice)});
        if dice.chance(300) {
            rate["each"] = "model".into();
        }
        add("rate", rate);
    }
    Value::Object(spec)
}

fn capabilities(dice: &mut Dice) -> Value {
    let names = [
        "model:gpt-4o*",
        "model:gpt-4o",
        "model:*",
        "model:claude-*",
        "mcp_tool:git",
        "mcp_tool:git*",
        "mcp_tool:bash",
        "mcp_tool:*",
    ];
    let allow = if dice.chance(500) {
        some(dice, &names)
    } else {
        Vec::new()
    };
    let mut deny = some(
        dice,
        &[
            "model:gpt-4o",
            "model:house-*",
            "mcp_tool:MAIL",
            "mcp_tool:git_*",
        ],
    );
    if dice.chance(50) {
        deny.push("network_outbound");
    }
    json!({"allow": allow, "deny": deny})
}

fn tools(dice: &mut Dice) -> Value {
    let mut tools = Map::new();
    let mut names = some(dice, &TOOLS);
    names.extend(dice.chance(150).then_some("*"));
    for name in names {
        let mut rules = Map::new();
        if dice.chance(200) {
            rules.insert("allow".to_string(), dice.chance(500).into());
        }
        if dice.chance(300) {
            rules.insert("limit_per_hour".to_string(), (1 + dice.below(3)).into());
        }
        if dice.chance(500) {
            rules.insert("requires_approval_if".to_string(), condition(dice).into());
        }
        tools.insert(name.to_string(), Value::Object(rules));
    }
    Value::Object(tools)
}

/// `with_tools` is whether tools have entries elsewhere; then they can have none here.
fn agent(dice: &mut Dice, with_tools: bool) -> Value {
    let mut agent = Map::new();
    if !with_tools && dice.chance(400) {
        let mut names = some(dice, &TOOLS);
        names.extend(dice.chance(150).then_some("*"));
        let tools = names.into_iter().map(|name| {
            let mut tool = Map::from_iter([("name".to_string(), name.into())]);
            if dice.chance(500) {
                tool.insert("enabled".to_string(), dice.chance(600).into());
            }
            if dice.chance(300) {
                tool.insert("requires_approval".to_string(), dice.chance(700).into());
            }
            Value::Object(tool)
        });
        agent.insert("tools".to_string(), tools.collect());
    }
    let mut part = |name: &str, fields: &[(&str, Value)], dice: &mut Dice| {
        let fields = fields.iter().filter(|_| dice.chance(400));
        let fields: Map<String, Value> = fields
            .map(|(name, value)| ((*name).to_string(), value.clone()))
            .collect();
        agent.insert(name.to_string(), fields.into());
    };
    let budget = [
        ("max_tokens", json!(dice.pick(&[60, 300, 2_000, 9_000_000]))),
        (
            "max_cost_usd",
            json!(dice.pick(&["0.00003", "0.001", "0.05", "3"])),
        ),
        ("max_iterations", json!(1 + dice.below(4))),
    ];
    part("budget", &budget, dice);
    let termination = [
        ("on_budget_exceeded", json!(dice.chance(700))),
        ("on_goal_achieved", json!(dice.chance(500))),
        ("on_timeout", json!(dice.pick(&TIMEOUTS_SECS))),
        ("max_iterations", json!(1 + dice.below(4))),
        ("error_threshold", json!(1 + dice.below(3))),
    ];
    part("termination", &termination, dice);
    let execution = [("timeout_seconds", json!(dice.pick(&TIMEOUTS_SECS)))];
    part("execution", &execution, dice);
    let audit = [("include_message_content", json!(true))];
    part("audit", &audit, dice);
    Value::Object(agent)
}

fn condition(dice: &mut Dice) -> String {
    let mut condition = (*dice.pick(&ATOMS)).to_string();
    for _ in 0..dice.below(4) {
        let not = if dice.chance(300) { "!" } else { "" };
        let (operator, atom) = (*dice.pick(&["&&", "||"]), *dice.pick(&ATOMS));
        condition = format!("({condition}) {operator} {not}({atom})");
    }
    condition
}

fn budget(dice: &mut Dice) -> Value {
    let mut budget = Map::new();
    let action = match dice.below(6) {
        0 => Some("suspend"),
        1 | 2 => Some("alert"),
        _ => None,
    };
    // What only warns does so once it is used up: it is little.
    let most = if action == Some("alert") { 2 } else { 6 };
    // A shorter period may not have more than a longer one.
    if dice.chance(700) {
        let usd = ["0.000001", "0.00001", "0.0001", "0.001", "0.05", "3"];
        ascending(dice, &usd[..most], "usd", &mut budget);
    }
    if budget.is_empty() || dice.chance(300) {
        let tokens = ["5", "60", "300", "2000", "60000", "9000000"];
        ascending(dice, &tokens[..most], "tokens", &mut budget);
    }
    budget.insert("per".to_string(), per(dice).into());
    budget.insert("timezone".to_string(), (*dice.pick(&ZONES)).into());
    if dice.chance(500) {
        let (input, output) = *dice.pick(&[(5, 25), (5, 25), (0, 0)]);
        let price = json!({"input_usd_per_million": input, "output_usd_per_million": output});
        budget.insert("unknown_model".to_string(), price);
    }
    if dice.chance(300) {
        budget.insert("each".to_string(), "model".into());
    }
    if action != Some("alert") && dice.chance(300) {
        budget.insert("lower_max_tokens".to_string(), true.into());
    }
    if let Some(action) = action {
        budget.insert("action_on_exceed".to_string(), action.into());
    }
    if dice.chance(300) {
        let parts = [1, 50, 50, 80, 99, 100];
        let parts: Vec<i32> = parts.into_iter().filter(|_| dice.chance(400)).collect();
        budget.insert("warn_at".to_string(), parts.into());
    }
    Value::Object(budget)
}

/// Limits for some periods, at least one, none below that of a shorter one.
fn ascending(dice: &mut Dice, amounts: &[&str], unit: &str, budget: &mut Map<String, Value>) {
    let mut least = 0;
    let certain = dice.below(4);
    for (number, period) in (0..).zip(["hourly", "daily", "weekly", "monthly"]) {
        if number == certain || dice.chance(200) {
            let at = least + dice.below((amounts.len() - least) as u64) as usize;
            let amount = amounts[at].parse::<serde_json::Number>();
            budget.insert(
                format!("{period}_limit_{unit}"),
                amount.map_or(Value::Null, Value::Number),
            );
            least = at;
        }
    }
}

fn per(dice: &mut Dice) -> &'static str {
    let who: &&str = dice.pick(&PER);
    who
}

// Calls.

/// `open` is whether it is a call as it should be, to a model.
fn step(dice: &mut Dice, upstream: Upstream, at: i64, open: bool) -> Step {
    let mut call = Call {
        method: "POST".to_string(),
        path: String::new(),
        authority: match upstream {
            Upstream::Llm => "gate.example".to_string(),
            Upstream::Any => (*dice.pick(&HOSTS)).to_string(),
        },
        headers: Vec::new(),
        token: match open {
            true => Token::default(),
            false => token(dice),
        },
        body: None,
        body_hex: None,
        body_filler: None,
    };
    let streamed = match dice.below(if open { 12 } else { 20 }) {
        0..=8 => chat(dice, &mut call),
        9..=11 => messages(dice, &mut call),
        12..=15 => mcp(dice, &mut call),
        _ => plain(dice, &mut call),
    };
    if open {
        let anthropic = call.path.contains("messages");
        let path = if anthropic {
            "/v1/messages"
        } else {
            "/v1/chat/completions"
        };
        call.path = path.to_string();
    }
    if let Some(body) = call.body.take() {
        let mut bytes = body.into_bytes();
        if !open && dice.chance(150) {
            damage(dice, &mut bytes);
        }
        call.body_hex = Some(tollgate_engine::bytes::to_hex(&bytes));
        if !open && dice.chance(60) {
            let kind = *dice.pick(&[
                "application/json; charset=utf-8",
                "APPLICATION/JSON",
                "text/plain",
                "application/x-www-form-urlencoded",
                "application/octet-stream",
                "",
            ]);
            call.headers
                .push(("content-type".to_string(), kind.to_string()));
        }
        if !open && dice.chance(30) {
            let coding = *dice.pick(&["gzip", "identity", "br"]);
            call.headers
                .push(("content-encoding".to_string(), coding.to_string()));
        }
    }
    run(dice, &mut call, open);
    Step {
        at,
        control_plane: true,
        // Of those that are held half.
        approved: dice.chance(500),
        answer: answer(dice, &call, streamed),
        call,
        expect: None,
    }
}

/// Which run a call belongs to: by name, by an MCP session, by both, or none.
fn run(dice: &mut Dice, call: &mut Call, open: bool) {
    let mut add = |name: &str, value: &str| {
        call.headers.push((name.to_string(), value.to_string()));
    };
    if dice.chance(if open { 900 } else { 500 }) {
        let named = open || dice.chance(960);
        let name = *dice.pick(if named { &RUNS[..] } else { &BAD_RUNS });
        add("x-tollgate-run", name);
        if dice.chance(100) {
            let said = if dice.chance(900) {
                "achieved"
            } else {
                "maybe"
            };
            add("x-tollgate-goal", said);
        }
        if !open && dice.chance(10) {
            let again: &&str = dice.pick(&RUNS);
            add("x-tollgate-run", again);
        }
    }
    if dice.chance(200) {
        let session: &&str = dice.pick(&SESSIONS);
        add("mcp-session-id", session);
    }
}

fn token(dice: &mut Dice) -> Token {
    use TokenKind::{AlgNone, Expired, Foreign, Garbage, OtherKey, Tampered, Valid};
    let kind = if dice.chance(950) {
        Valid
    } else {
        *dice.pick(&[
            TokenKind::None,
            Expired,
            Foreign,
            OtherKey,
            Tampered,
            AlgNone,
            Garbage,
        ])
    };
    let header = *dice.pick(&[
        TokenHeader::Authorization,
        TokenHeader::XApiKey,
        TokenHeader::XTollgateToken,
    ]);
    Token { kind, header }
}

/// Whether a stream is asked for, as everywhere below.
fn chat(dice: &mut Dice, call: &mut Call) -> bool {
    let streamed = dice.chance(400);
    call.path = (*dice.pick(&[
        "/v1/chat/completions",
        "/v1/chat/completions",
        "/v1/chat/completions?trace=1",
        "/openai/deployments/d/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
    ]))
    .to_string();
    let mut body = json!({
        "model": dice.pick(&MODELS),
        "messages": [{"role": "user", "content": dice.pick(&TEXTS)}],
    });
    let bounds = ["max_tokens", "max_completion_tokens"];
    for bound in some(dice, &bounds) {
        body[bound] = (*dice.pick(&[1, 10, 200, 100_000])).into();
    }
    if dice.chance(300) {
        let offered = some(dice, &TOOLS).into_iter();
        body["tools"] = offered
            .map(|name| json!({"type": "function", "function": {"name": name, "parameters": {}}}))
            .collect();
    }
    if streamed {
        body["stream"] = true.into();
    }
    for (name, value) in [
        ("stream_options", json!({"include_usage": dice.chance(500)})),
        ("n", json!(dice.below(4))),
        (
            "service_tier",
            json!(dice.pick(&["auto", "flex", "priority"])),
        ),
        ("metadata", json!({"note": dice.pick(&TEXTS)})),
    ] {
        if dice.chance(120) {
            body[name] = value;
        }
    }
    call.body = Some(body.to_string());
    streamed
}

fn messages(dice: &mut Dice, call: &mut Call) -> bool {
    let streamed = dice.chance(400);
    call.path =
        (*dice.pick(&["/v1/messages", "/v1/messages", "/v1/messages/count_tokens"])).to_string();
    let mut body = json!({
        "model": dice.pick(&MODELS),
        "max_tokens": dice.pick(&[1, 10, 200, 64_000]),
        "messages": [{"role": "user", "content": [{"type": "text", "text": dice.pick(&TEXTS)}]}],
    });
    if dice.chance(300) {
        body["system"] = (*dice.pick(&TEXTS)).into();
    }
    if dice.chance(300) {
        let offered = some(dice, &TOOLS).into_iter();
        body["tools"] = offered
            .map(|name| json!({"name": name, "input_schema": {}}))
            .collect();
    }
    if streamed {
        body["stream"] = true.into();
    }
    call.body = Some(body.to_string());
    streamed
}

fn mcp(dice: &mut Dice, call: &mut Call) -> bool {
    call.path = (*dice.pick(&["/mcp", "/mcp", "/tools/mcp/"])).to_string();
    let id = dice
        .pick(&[json!(1), json!("a-1"), json!(null), json!(1.5)])
        .clone();
    let method = *dice.pick(&[
        "tools/call",
        "tools/call",
        "tools/call",
        "tools/list",
        "initialize",
        "notifications/initialized",
        "Tools/Call",
    ]);
    let mut arguments = Map::new();
    for (name, value) in [
        ("path", json!(dice.pick(&["/tmp/a", "/etc/passwd", ""]))),
        (
            "n",
            dice.pick(&[
                json!(1),
                json!(4),
                json!(2.5),
                json!("4"),
                json!(-9_000_000_000_i64),
            ])
            .clone(),
        ),
        ("list", json!(vec!["x"; dice.below(5) as usize])),
        ("text", json!(dice.pick(&TEXTS))),
    ] {
        if dice.chance(500) {
            arguments.insert(name.to_string(), value);
        }
    }
    let params = json!({"name": dice.pick(&TOOLS), "arguments": arguments});
    let mut body = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
    if dice.chance(50) {
        body = json!([body]);
    }
    call.body = Some(body.to_string());
    dice.chance(200)
}

fn plain(dice: &mut Dice, call: &mut Call) -> bool {
    call.path = (*dice.pick(&[
        "/",
        "/v1/models",
        "/v1/models?q=key%2Dabcdefgh",
        "/files/a%20b",
        "/v1/chat/completions",
        "/upload",
    ]))
    .to_string();
    call.method =
        (*dice.pick(&["GET", "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])).to_string();
    if matches!(call.method.as_str(), "POST" | "PUT" | "PATCH") {
        call.body = Some(match dice.below(3) {
            0 => (*dice.pick(&TEXTS)).to_string(),
            1 => json!({"note": dice.pick(&TEXTS)}).to_string(),
            _ => "a=1&password=hunter2".to_string(),
        });
    }
    false
}

/// What decides, and what confuses readers.
const SHARDS: [&[u8]; 24] = [
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[[[[",
    b"]",
    b",",
    b":",
    b"null",
    b"1e999",
    b"18446744073709551616",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r\n\r\n",
    b"\0",
    b"data: ",
    b"[DONE]",
    b"\"model\":\"gpt-4o\",",
    b"\"Model\":\"house-model\",",
    b"\"stream\":true,",
    b"\"max_tokens\":99999999999,",
    b"\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":6},",
];

/// Inserts, drops, flips, repeats or cuts, once or a few times.
fn damage(dice: &mut Dice, bytes: &mut Vec<u8>) {
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len() as u64 + 1) as usize;
        let until = at + dice.below((bytes.len() - at).min(24) as u64 + 1) as usize;
        match dice.below(5) {
            0 => {
                bytes.splice(at..at, dice.pick(&SHARDS).iter().copied());
            }
            1 => {
                bytes.drain(at..until);
            }
            2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.below(8);
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

// Answers.

/// Recorded answers, and whether they are streams.
const RECORDED: [(&str, bool); 14] = [
    ("openai/chat.json", false),
    ("openai/chat-cached-reasoning.json", false),
    ("openai/chat-tools.json", false),
    ("openai/chat-error.json", false),
    ("anthropic/message.json", false),
    ("anthropic/message-cached.json", false),
    ("anthropic/error.json", false),
    ("openai/stream-usage.sse", true),
    ("openai/stream-no-usage.sse", true),
    ("openai/stream-usage-crlf.sse", true),
    ("openai/stream-truncated.sse", true),
    ("openai/stream-error.sse", true),
    ("anthropic/stream.sse", true),
    ("anthropic/stream-stopped-before-end.sse", true),
];

fn answer(dice: &mut Dice, call: &Call, streamed: bool) -> Answer {
    // An answer may be another than was asked for.
    let is_stream = if dice.chance(950) {
        streamed
    } else {
        !streamed
    };
    let status = match dice.below(20) {
        0..=15 => 200,
        16 => 201,
        _ => *dice.pick(&[307, 400, 401, 404, 429, 500, 502, 504, 529]),
    };
    let content_type = match (is_stream, dice.below(20)) {
        (_, 0) => "text/plain",
        (_, 1) => "application/octet-stream",
        (true, _) => "text/event-stream",
        (false, 2) => "application/json; charset=utf-8",
        (false, _) => "application/json",
    };
    let mut answer = Answer {
        status,
        content_type: content_type.to_string(),
        ..Answer::default()
    };
    if dice.chance(30) {
        answer
            .headers
            .push(("content-encoding".to_string(), "gzip".to_string()));
    }
    if call.path.contains("mcp") || call.path == "/upload" {
        let result = json!({"jsonrpc": "2.0", "id": 1, "result": {"content": []}});
        answer.chunks = vec![match is_stream {
            true => format!("event: message\ndata: {result}\n\n"),
            false => result.to_string(),
        }];
        return answer;
    }
    let whole = match dice.below(3) {
        0 => drawn(dice, is_stream),
        _ => recorded(dice, is_stream),
    };
    let ends_cleanly = whole.ends_with("\n\n");
    // An answer that a gate has to hold is there whole or not at all.
    let passes = answer.content_type == "text/event-stream";
    if dice.chance(80) && is_stream && passes && ends_cleanly {
        // In one piece: how much a gate has seen when its caller leaves must not be left to chance.
        answer.chunks = vec![whole];
        answer.end = AnswerEnd::ClientLeaves;
        return answer;
    }
    let mut bytes = whole.into_bytes();
    if dice.chance(150) {
        damage(dice, &mut bytes);
    }
    answer.chunks = split(dice, &String::from_utf8_lossy(&bytes));
    if dice.chance(80) && passes {
        answer.end = AnswerEnd::UpstreamBreaks;
    }
    answer
}

fn recorded(dice: &mut Dice, is_stream: bool) -> String {
    let fitting: Vec<&str> = RECORDED
        .iter()
        .filter(|(_, stream)| *stream == is_stream)
        .map(|(file, _)| *file)
        .collect();
    let file = (*dice.pick(&fitting)).to_string();
    let recorded = Answer {
        file: Some(file),
        ..Answer::default()
    };
    let bytes = recorded.chunks().unwrap_or_default().concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn drawn(dice: &mut Dice, is_stream: bool) -> String {
    let usage = json!({
        "prompt_tokens": dice.below(3_000),
        "completion_tokens": dice.below(3_000),
        "prompt_tokens_details": {"cached_tokens": dice.below(4_000)},
    });
    let model = *dice.pick(&MODELS);
    if !is_stream {
        let choice = json!({"index": 0, "message": {"role": "assistant", "content": dice.pick(&TEXTS)}, "finish_reason": "stop"});
        let mut body =
            json!({"id": "c", "object": "chat.completion", "model": model, "choices": [choice]});
        if dice.chance(800) {
            body["usage"] = usage;
        }
        return body.to_string();
    }
    let chunk = |choices: Value, usage: &Value| {
        let chunk = json!({"id": "c", "object": "chat.completion.chunk", "model": model, "choices": choices, "usage": usage});
        format!("data: {chunk}\n\n")
    };
    let mut body = String::new();
    for _ in 0..dice.below(5) {
        let delta =
            json!([{"index": 0, "delta": {"content": dice.pick(&TEXTS)}, "finish_reason": null}]);
        body += &chunk(delta, &Value::Null);
        if dice.chance(100) {
            body += ": a comment\n\n";
        }
    }
    if dice.chance(700) {
        body += &chunk(json!([]), &usage);
    }
    if dice.chance(800) {
        body += "data: [DONE]\n\n";
    }
    body
}

/// In up to four pieces, anywhere but inside a character: a case holds its chunks as text.
fn split(dice: &mut Dice, text: &str) -> Vec<String> {
    let mut cuts: Vec<usize> = (0..dice.below(4))
        .map(|_| dice.below(text.len() as u64 + 1) as usize)
        .filter(|cut| text.is_char_boundary(*cut))
        .collect();
    cuts.extend([0, text.len()]);
    cuts.sort_unstable();
    cuts.windows(2)
        .filter_map(|ends| text.get(ends[0]..ends[1]))
        .map(str::to_string)
        .collect()
}

/// Any number of these, in their order.
fn some<'a>(dice: &mut Dice, among: &[&'a str]) -> Vec<&'a str> {
    among.iter().copied().filter(|_| dice.chance(400)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Host as _, native::Native};
    use super::*;
    use std::collections::BTreeMap;

    /// What is never met is not compared either.
    #[test]
    fn what_a_run_may_use_and_what_only_warns_is_met() {
        let mut met = BTreeMap::new();
        for case in cases(1_000, 1) {
            for seen in Native.run(&case).unwrap() {
                for list in ["reasons", "warnings"] {
                    for said in seen.record[list].as_array().into_iter().flatten() {
                        let rule = said["rule"].as_str().unwrap_or_default();
                        *met.entry(format!("{list}: {rule}")).or_insert(0) += 1;
                    }
                }
            }
        }
        for rule in [
            "reasons: agent.budget.max_tokens",
            "reasons: agent.budget.max_cost_usd",
            "reasons: agent.budget.max_iterations",
            "reasons: agent.termination.max_iterations",
            "reasons: agent.termination.on_timeout",
            "reasons: agent.termination.on_goal_achieved",
            "reasons: request.goal",
            "reasons: agent.execution.timeout_seconds",
            "reasons: agent.termination.error_threshold",
            "reasons: request.run",
            "warnings: budget.daily_limit_usd",
            "warnings: budget.daily_limit_tokens",
        ] {
            assert!(met.contains_key(rule), "{rule} in {met:#?}");
        }
    }

    #[test]
    fn a_case_is_the_same_however_many_are_drawn() {
        let text = |case: &Case| format!("{case:?}");
        let (few, many) = (cases(31, 7), cases(200, 7));
        let counted = |cases: &[Case]| cases.iter().map(|case| case.steps.len()).sum::<usize>();
        assert_eq!((few.len(), counted(&few)), (4, 31));
        assert_eq!((many.len(), counted(&many)), (20, 200));
        assert_eq!(text(&few[2]), text(&many[2]));
        assert_ne!(text(&many[2]), text(&cases(200, 8)[2]));
        assert_ne!(many[2].policies, many[3].policies);
    }
}
