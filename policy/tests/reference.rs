//! A slow, obvious evaluator beside the engine: random policies and calls, decided by both. It shares no code with the engine; policies go to
//! the engine as the text a person would write.

use std::{collections::BTreeSet, fmt::Write as _};
use tollgate_engine::{
    bundle::{FORMAT, Payload},
    decide::{Decision, Outcome},
    exchange::{Exchange, Step},
    facts::{Headers, Upstream},
    gate::{Config, Gate, Secret},
    identity::{Caller, GovernanceLevel},
    ledger::Refusal,
    time::Time,
};
use tollgate_policy::{compile, parse};

/// Policy sets of a run, and calls to each: 100,000 decisions.
const SETS: u64 = 1_000;
const CALLS: u64 = 100;

/// 2026-11-20T00:00:00Z.
const MIDNIGHT: i64 = 20_777 * 86_400;

const HOSTS: [&str; 5] = [
    "a.example",
    "b.example",
    "api.b.example",
    "c.example",
    "10.0.0.7",
];
const TOOLS: [&str; 3] = ["bash", "git", "mail"];
const MODELS: [&str; 3] = ["gpt-4o", "gpt-4o-mini", "claude-haiku-4-5"];
const TEAMS: [&str; 2] = ["red", "blue"];
const AGENTS: [&str; 2] = [
    "00000000-0000-4000-8000-00000000000a",
    "00000000-0000-4000-8000-00000000000b",
];

/// splitmix64 (Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.roll(n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len() as u64) as usize]
    }

    fn some<T: Copy>(&mut self, of: &[T]) -> Vec<T> {
        of.iter().copied().filter(|_| self.one_in(2)).collect()
    }
}

/// A policy as the reference understands it.
#[derive(Clone, Debug, Default)]
struct Policy {
    scope: String,
    hosts: Option<Vec<String>>,
    /// `network.denylist`
    hosts_denied: Vec<&'static str>,
    models_allowed: Vec<&'static str>,
    models_denied: Vec<&'static str>,
    tools_allowed: Vec<&'static str>,
    tools_denied: Vec<&'static str>,
    /// `tools.<name>.allow: false`
    forbidden: Option<&'static str>,
    /// `tools.<name>.requires_approval_if: governance_level >= L<n>`
    approval: Option<(&'static str, u64)>,
    /// `tools."*".allow: false`
    closed: bool,
    /// `tools."*".requires_approval_if: governance_level >= L<n>`
    others_ask: Option<u64>,
    /// From and to, in hours UTC.
    hours: Option<(u64, u64)>,
    /// A budget that no call to a model fits into.
    stopped: bool,
    /// It counts each model by itself.
    each_model: bool,
    /// The same, but it only warns.
    warned: bool,
    /// A text that must not be in the content.
    secret: bool,
    /// It is taken out of it.
    redacts: bool,
    /// `data.exempt_tools`
    exempt: Option<&'static str>,
    /// `agent.budget.max_iterations`, and more of them than there are calls.
    loops: bool,
    /// `agent.termination.error_threshold`, and none fails.
    fails: bool,
}

#[derive(Clone, Debug)]
struct Call {
    agent: &'static str,
    team: Option<&'static str>,
    level: u64,
    host: &'static str,
    hour: u64,
    what: What,
    secret: bool,
    /// Whether it names the run it belongs to.
    run: bool,
    /// For whom the caller acts: agent, team and level.
    acts_for: Vec<Who>,
}

type Who = (&'static str, Option<&'static str>, u64);

#[derive(Clone, Debug)]
enum What {
    Chat {
        model: &'static str,
        tools: Vec<&'static str>,
    },
    Mcp(&'static str),
    Get,
}

fn random_policy(dice: &mut Dice) -> Policy {
    let scope = match dice.roll(8) {
        0 => format!("tool:{}", dice.pick(&TOOLS)),
        1 => format!("agent:{}", dice.pick(&AGENTS)),
        2 | 3 => format!("team:{}", dice.pick(&TEAMS)),
        4 => "org:acme".to_string(),
        _ => "global".to_string(),
    };
    let of_tool = scope.starts_with("tool:");
    let mut policy = Policy {
        scope,
        ..Policy::default()
    };
    if dice.one_in(3) {
        let mut hosts: Vec<String> = dice
            .some(&HOSTS)
            .iter()
            .map(|host| host.to_string())
            .collect();
        if dice.one_in(2) {
            hosts.push("*.b.example".to_string());
        }
        policy.hosts = Some(hosts);
    }
    if dice.one_in(6) {
        policy.hosts_denied = dice.some(&["b.example", "*.b.example", "10.0.0.0/28", "private"]);
    }
    if dice.one_in(5) {
        policy.models_allowed = dice.some(&MODELS);
    }
    if dice.one_in(4) {
        policy.models_denied = dice.some(&MODELS);
    }
    if dice.one_in(5) {
        policy.tools_allowed = dice.some(&TOOLS);
    }
    if dice.one_in(4) {
        policy.tools_denied = dice.some(&TOOLS);
    }
    if dice.one_in(4) {
        policy.forbidden = Some(dice.pick(&TOOLS));
    }
    if dice.one_in(4) {
        policy.approval = Some((dice.pick(&TOOLS), dice.roll(4)));
    }
    policy.closed = dice.one_in(6);
    if dice.one_in(6) {
        policy.others_ask = Some(dice.roll(4));
    }
    if dice.one_in(5) {
        let (start, end) = (dice.roll(24), dice.roll(24));
        policy.hours = (start != end).then_some((start, end));
    }
    policy.stopped = dice.one_in(12);
    policy.each_model = policy.stopped && dice.one_in(2);
    policy.warned = !policy.stopped && dice.one_in(8);
    policy.secret = dice.one_in(4);
    policy.redacts = dice.one_in(2);
    policy.exempt = dice.one_in(2).then(|| dice.pick(&TOOLS));
    policy.loops = !of_tool && dice.one_in(12);
    policy.fails = !of_tool && dice.one_in(12);
    policy
}

fn random_who(dice: &mut Dice) -> Who {
    (
        dice.pick(&AGENTS),
        dice.pick(&[None, Some("red"), Some("blue")]),
        dice.roll(4),
    )
}

fn random_call(dice: &mut Dice) -> Call {
    let (agent, team, level) = random_who(dice);
    Call {
        agent,
        team,
        level,
        host: dice.pick(&HOSTS),
        hour: dice.roll(24),
        what: match dice.roll(4) {
            0 => What::Get,
            1 => What::Mcp(dice.pick(&TOOLS)),
            _ => What::Chat {
                model: dice.pick(&MODELS),
                tools: dice.some(&TOOLS),
            },
        },
        secret: dice.one_in(2),
        run: !dice.one_in(3),
        acts_for: match dice.roll(8) {
            0 => (0..1 + dice.roll(3)).map(|_| random_who(dice)).collect(),
            _ => Vec::new(),
        },
    }
}

/// The policy as a person would write it.
fn written(name: &str, policy: &Policy) -> String {
    written_as(name, "enforce", policy)
}

fn written_as(name: &str, rollout: &str, policy: &Policy) -> String {
    let mut tools: Vec<(&str, String)> = Vec::new();
    if let Some(tool) = policy.forbidden {
        tools.push((tool, "allow: false".to_string()));
    }
    if let Some((tool, level)) = policy.approval {
        let field = format!("requires_approval_if: 'governance_level >= L{level}'");
        match tools.iter_mut().find(|(name, _)| *name == tool) {
            Some((_, fields)) => *fields += &format!(", {field}"),
            None => tools.push((tool, field)),
        }
    }
    let ask = policy.others_ask.map_or(String::new(), |level| {
        format!(", requires_approval_if: 'governance_level >= L{level}'")
    });
    if policy.closed || !ask.is_empty() {
        tools.push(("'*'", format!("allow: {}{ask}", !policy.closed)));
    }
    let quoted = |kind: &str, names: &[&str]| -> Vec<String> {
        names
            .iter()
            .map(|name| format!("'{kind}:{name}'"))
            .collect()
    };
    let allow = [
        quoted("model", &policy.models_allowed),
        quoted("mcp_tool", &policy.tools_allowed),
    ];
    let deny = [
        quoted("model", &policy.models_denied),
        quoted("mcp_tool", &policy.tools_denied),
    ];
    let mut spec = format!("scope: '{}'", policy.scope);
    let list = |hosts: &[String]| -> String {
        let hosts: Vec<String> = hosts.iter().map(|host| format!("'{host}'")).collect();
        hosts.join(", ")
    };
    let hosts_denied: Vec<String> = policy.hosts_denied.iter().map(|h| h.to_string()).collect();
    let denylist = format!("denylist: [{}]", list(&hosts_denied));
    match (&policy.hosts, hosts_denied.is_empty()) {
        (Some(hosts), _) => {
            write!(
                spec,
                ", network: {{allowlist: [{}], {denylist}}}",
                list(hosts)
            )
            .unwrap();
        }
        (None, false) => write!(spec, ", network: {{{denylist}}}").unwrap(),
        (None, true) => {}
    }
    let (allow, deny) = (allow.concat().join(", "), deny.concat().join(", "));
    write!(spec, ", capabilities: {{allow: [{allow}], deny: [{deny}]}}").unwrap();
    let tools: Vec<String> = tools
        .iter()
        .map(|(name, fields)| format!("{name}: {{{fields}}}"))
        .collect();
    write!(spec, ", tools: {{{}}}", tools.join(", ")).unwrap();
    if let Some((start, end)) = policy.hours {
        write!(spec, ", schedule: {{active_hours: {{start: '{start:02}:00', end: '{end:02}:00', timezone: UTC}}}}").unwrap();
    }
    if policy.stopped {
        let each = if policy.each_model {
            ", each: model"
        } else {
            ""
        };
        write!(spec, ", budget: {{daily_limit_tokens: 1{each}}}").unwrap();
    }
    if policy.warned {
        spec += ", budget: {daily_limit_tokens: 1, action_on_exceed: alert}";
    }
    if policy.secret {
        let exempt = policy.exempt.unwrap_or_default();
        let exempt = match exempt {
            "" => String::new(),
            tool => format!(", exempt_tools: [{tool}]"),
        };
        write!(
            spec,
            ", data: {{sensitive_patterns: ['key-[a-z]+'], action: {}{exempt}}}",
            if policy.redacts { "redact" } else { "block" }
        )
        .unwrap();
    }
    let mut agent = Vec::new();
    if policy.loops {
        agent.push("budget: {max_iterations: 1000}");
    }
    if policy.fails {
        agent.push("termination: {error_threshold: 1000}");
    }
    if !agent.is_empty() {
        write!(spec, ", agent: {{{}}}", agent.join(", ")).unwrap();
    }
    format!(
        "---\n{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: {name}, rollout: {rollout}}}, spec: {{{spec}}}}}\n"
    )
}

/// The rule by which a policy stops all calls to models; which of several policies says so is not asked.
const STOPS: &str = "budget.daily_limit_tokens";

/// Outcome and reasons, as `rule @ document`.
type Verdict = (&'static str, Vec<String>);

/// What the reference says: outcome and reasons as `rule @ document`, in any order.
/// What the caller and everybody for whom it acts would be told, each for itself: the hardest of the outcomes, and of every reason as many as one of
/// them is given.
fn reference(policies: &[(String, Policy)], call: &Call) -> Verdict {
    let (mut outcome, mut reasons) = reference_for_one(policies, call);
    let mut stopped = stopped(policies, call);
    for (agent, team, level) in &call.acts_for {
        let theirs = Call {
            agent,
            team: *team,
            level: *level,
            ..call.clone()
        };
        stopped.extend(self::stopped(policies, &theirs));
        let (other, more) = reference_for_one(policies, &theirs);
        outcome = harder(outcome, other);
        for reason in &more {
            let count = |among: &[String]| among.iter().filter(|one| *one == reason).count();
            while count(&reasons) < count(&more) {
                reasons.push(reason.clone());
            }
        }
    }
    // Whom no policy covers nothing else is said to.
    if let Some(none) = reasons.iter().find(|reason| *reason == "policy.none") {
        return ("deny", vec![none.clone()]);
    }
    if !stopped.is_empty() {
        outcome = "deny";
    }
    reasons.extend(stopped.iter().map(|_| STOPS.to_string()));
    reasons.sort_unstable();
    (outcome, reasons)
}

/// The accounts with nothing in them that the caller's call would be counted in. Of limits that count the same, one is asked: any of those that let
/// nothing through. Each tool is counted by itself.
fn stopped(
    policies: &[(String, Policy)],
    call: &Call,
) -> BTreeSet<(&'static str, &'static str, bool)> {
    let What::Chat { tools, .. } = &call.what else {
        return BTreeSet::new();
    };
    let counted = |policy: &Policy| match policy.scope.strip_prefix("tool:") {
        Some(tool) => tools.iter().copied().find(|used| *used == tool),
        None => is_for(policy, call).then_some("all"),
    };
    policies
        .iter()
        .filter(|(_, policy)| policy.stopped)
        .filter_map(|(_, policy)| Some((call.agent, counted(policy)?, policy.each_model)))
        .collect()
}

fn is_for(policy: &Policy, call: &Call) -> bool {
    policy.scope == "global"
        || policy.scope == "org:acme"
        || policy.scope == format!("agent:{}", call.agent)
        || call
            .team
            .is_some_and(|team| policy.scope == format!("team:{team}"))
}

fn harder(one: &'static str, other: &'static str) -> &'static str {
    let order = ["deny", "hold", "redact", "allow"];
    let hardest = order.into_iter().find(|o| *o == one || *o == other);
    hardest.unwrap()
}

fn reference_for_one(policies: &[(String, Policy)], call: &Call) -> Verdict {
    let (model, mcp, used) = match &call.what {
        What::Chat { model, tools } => (Some(*model), None, tools.clone()),
        What::Mcp(tool) => (None, Some(*tool), vec![*tool]),
        What::Get => (None, None, Vec::new()),
    };
    let is_for_caller = |policy: &Policy| is_for(policy, call);
    if !policies.iter().any(|(_, policy)| is_for_caller(policy)) {
        return ("deny", vec!["policy.none".to_string()]);
    }
    let mut denials = Vec::new();
    let mut holds = Vec::new();
    let mut cuts = Vec::new();
    for (name, policy) in policies {
        let for_tool = used
            .iter()
            .any(|tool| policy.scope == format!("tool:{tool}"));
        if !is_for_caller(policy) && !for_tool {
            continue;
        }
        let mut deny = |rule: &str| denials.push(format!("{rule} @ {name}"));
        if let Some((start, end)) = policy.hours {
            // Walk from the first hour to the last and see whether this one comes by.
            let mut hour = start;
            let mut inside = false;
            while hour != end {
                inside |= hour == call.hour;
                hour = (hour + 1) % 24;
            }
            if !inside {
                deny("schedule.active_hours");
            }
        }
        if let Some(hosts) = &policy.hosts {
            let below_b =
                call.host == "api.b.example" && hosts.iter().any(|host| host == "*.b.example");
            if !below_b && !hosts.iter().any(|host| host == call.host) {
                deny("network.allowlist");
            }
        }
        if policy.hosts_denied.iter().any(|denied| match *denied {
            "*.b.example" => call.host == "api.b.example",
            "10.0.0.0/28" | "private" => call.host == "10.0.0.7",
            host => call.host == host,
        }) {
            deny("network.denylist");
        }
        if let Some(model) = model {
            if policy.models_denied.contains(&model) {
                deny("capabilities.deny");
            } else if !policy.models_allowed.is_empty() && !policy.models_allowed.contains(&model) {
                deny("capabilities.allow");
            }
        }
        if let Some(tool) = policy.forbidden.filter(|tool| used.contains(tool)) {
            deny(&format!("tools.{tool}.allow"));
        }
        let named = |tool: &str| {
            policy.forbidden == Some(tool)
                || policy.approval.is_some_and(|(named, _)| named == tool)
        };
        let others: Vec<&&str> = used.iter().filter(|tool| !named(tool)).collect();
        if policy.closed {
            for _ in &others {
                deny("tools.*.allow");
            }
        }
        if let Some(tool) = mcp {
            if policy.tools_denied.contains(&tool) {
                deny("capabilities.deny");
            } else if !policy.tools_allowed.is_empty() && !policy.tools_allowed.contains(&tool) {
                deny("capabilities.allow");
            }
        }
        let exempt = mcp.is_some() && mcp == policy.exempt;
        if policy.secret && call.secret && !exempt && !matches!(call.what, What::Get) {
            match policy.redacts {
                true => cuts.push(format!("data.sensitive_patterns[0] @ {name}")),
                false => deny("data.sensitive_patterns[0]"),
            }
        }
        if let Some((tool, level)) = policy.approval
            && used.contains(&tool)
            && call.level >= level
        {
            holds.push(format!("tools.{tool}.requires_approval_if @ {name}"));
        }
        if policy.others_ask.is_some_and(|level| call.level >= level) {
            for _ in &others {
                holds.push(format!("tools.*.requires_approval_if @ {name}"));
            }
        }
    }
    // What is counted by run must not be escaped by naming none. Loops are calls to models.
    for (name, policy) in policies.iter().filter(|(_, policy)| is_for_caller(policy)) {
        if policy.loops && !call.run && matches!(call.what, What::Chat { .. }) {
            denials.push(format!("agent.budget.max_iterations @ {name}"));
        }
        if policy.fails && !call.run {
            denials.push(format!("agent.termination.error_threshold @ {name}"));
        }
    }
    let outcome = match (denials.is_empty(), holds.is_empty(), cuts.is_empty()) {
        (false, _, _) => "deny",
        (true, false, _) => "hold",
        (true, true, false) => "redact",
        (true, true, true) => "allow",
    };
    let mut reasons = [denials, holds, cuts].concat();
    reasons.sort_unstable();
    (outcome, reasons)
}

fn gate(text: &str) -> Gate {
    let parsed = parse("set.yaml", text.as_bytes(), true);
    assert!(!parsed.has_errors(), "{:?}\n{text}", parsed.diagnostics);
    let compiled = compile(&parsed.documents, MIDNIGHT, MIDNIGHT + 86_400).unwrap();
    let mut gate = Gate::new(Config {
        workspace: "ws".to_string(),
        channel: "default".to_string(),
        trust: Vec::new(),
        enrolment_key: Secret::new(String::new()),
        upstream: Upstream {
            host: None,
            llm: false,
        },
        openai_key: None,
        anthropic_key: None,
        body_cap_bytes: 1 << 20,
    });
    gate.install_local(Payload {
        format: FORMAT,
        workspace: "ws".to_string(),
        channel: "default".to_string(),
        revision: 1,
        issued_at: MIDNIGHT,
        expires_at: MIDNIGHT + 86_400,
        documents: compiled.documents,
        shadow: compiled.shadow,
        automata: compiled.automata,
        calendars: compiled.calendars,
        prices: compiled.prices,
        token_keys: Vec::new(),
        revoked_agents: Vec::new(),
        halts: Vec::new(),
    })
    .unwrap();
    gate
}

/// What the engine says, in the same words.
fn engine(gate: &mut Gate, call: &Call) -> Verdict {
    both(gate, call).0
}

/// The same, and what it says of documents in shadow.
fn both(gate: &mut Gate, call: &Call) -> (Verdict, Verdict) {
    let text = if call.secret { "key-abc" } else { "hello" };
    let (method, path, body) = match &call.what {
        What::Chat { model, tools } => {
            let tools: Vec<String> = tools
                .iter()
                .map(|tool| format!(r#"{{"type":"function","function":{{"name":"{tool}"}}}}"#))
                .collect();
            let tools = tools.join(",");
            let body = format!(
                r#"{{"model":"{model}","messages":[{{"role":"user","content":"{text}"}}],"tools":[{tools}]}}"#
            );
            ("POST", "/v1/chat/completions", body)
        }
        What::Mcp(tool) => {
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{{"text":"{text}"}}}}}}"#
            );
            ("POST", "/mcp", body)
        }
        What::Get => ("GET", "/", String::new()),
    };
    let mut pairs: Vec<(&[u8], &[u8])> = vec![
        (b":method", method.as_bytes()),
        (b":authority", call.host.as_bytes()),
        (b":path", path.as_bytes()),
        (b"content-type", b"application/json"),
    ];
    if call.run {
        pairs.push((b"x-tollgate-run", b"task-1"));
    }
    let one = |agent: &str, team: Option<&str>, level: u64| Caller {
        workspace: "ws".to_string(),
        agent: agent.to_string(),
        org: Some("acme".to_string()),
        team: team.map(str::to_string),
        level: GovernanceLevel::parse(&format!("L{level}")).unwrap(),
        acts_for: Vec::new(),
    };
    let acts_for = call.acts_for.iter();
    let caller = Caller {
        acts_for: acts_for
            .map(|(agent, team, level)| one(agent, *team, *level))
            .collect(),
        ..one(call.agent, call.team, call.level)
    };
    let now = Time::from_secs(MIDNIGHT + i64::try_from(call.hour).unwrap() * 3_600 + 1_800);
    let (mut exchange, mut step) =
        Exchange::begin_as(gate, caller, Headers(&pairs), !body.is_empty(), now, 0);
    loop {
        step = match step {
            Step::NeedBody { .. } => exchange.body(gate, body.as_bytes(), now),
            // Nobody is there to approve it.
            Step::Swap(_) if exchange.decision().outcome == Outcome::Hold => {
                exchange.swapped(gate, Err((0, Refusal::NOTHING_LEFT)), now)
            }
            Step::Swap(_) => exchange.swapped(gate, Ok(Vec::new()), now),
            Step::Forward(_) | Step::Reply { .. } => break,
            Step::AwaitLease { .. } => panic!("nothing was refused"),
        }
    }
    let shadow = exchange.shadow().map(in_words);
    (
        in_words(exchange.decision()),
        shadow.unwrap_or(("allow", Vec::new())),
    )
}

fn in_words(decision: &Decision) -> Verdict {
    let mut reasons: Vec<String> = decision
        .reasons
        .iter()
        .map(|reason| match &reason.document {
            Some(document) if reason.rule != STOPS => {
                format!("{} @ {document}", reason.rule)
            }
            _ => reason.rule.to_string(),
        })
        .collect();
    reasons.sort_unstable();
    let outcome = serde_json::to_value(decision.outcome).unwrap();
    let outcome = ["allow", "redact", "hold", "deny"]
        .into_iter()
        .find(|known| outcome == *known)
        .unwrap();
    (outcome, reasons)
}

#[test]
fn the_engine_agrees_with_the_reference() {
    let mut seen = [0_u64; 4];
    for set in 0..SETS {
        let mut dice = Dice(set);
        let mut policies: Vec<(String, Policy)> = (0..1 + dice.roll(4))
            .map(|index| (format!("p{index}"), random_policy(&mut dice)))
            .collect();
        let texts: Vec<String> = policies
            .iter()
            .map(|(name, policy)| written(name, policy))
            .collect();
        let mut one = gate(&texts.concat());
        // Neither the order of documents…
        let reversed: Vec<String> = texts.iter().rev().cloned().collect();
        let mut other = gate(&reversed.concat());
        // …nor one more of them can let through what was not.
        policies.push(("more".to_string(), random_policy(&mut dice)));
        let more = texts.concat() + &written("more", &policies[policies.len() - 1].1);
        let mut narrower = gate(&more);
        // Documents in shadow are heard beside, and change nothing.
        let mut tried: Vec<(String, Policy)> = (0..1 + dice.roll(2))
            .map(|index| (format!("s{index}"), random_policy(&mut dice)))
            .collect();
        let tried_texts = tried
            .iter()
            .map(|(name, policy)| written_as(name, "shadow", policy));
        let mut watched = gate(&(texts.concat() + &tried_texts.collect::<String>()));
        // The reference denies whom no document covers; of documents in shadow that is not asked.
        let covering = Policy {
            scope: "global".to_string(),
            ..Policy::default()
        };
        tried.push(("covering".to_string(), covering));
        for number in 0..CALLS {
            let call = random_call(&mut dice);
            let expected = reference(&policies[..policies.len() - 1], &call);
            let found = engine(&mut one, &call);
            assert_eq!(
                found,
                expected,
                "set {set}, call {number}: {call:?}\n{}",
                texts.concat()
            );
            seen[["allow", "redact", "hold", "deny"]
                .iter()
                .position(|known| *known == found.0)
                .unwrap()] += 1;
            if number % 10 == 0 {
                assert_eq!(
                    both(&mut watched, &call),
                    (found.clone(), reference(&tried, &call)),
                    "set {set}, beside shadow: {call:?}\n{}{tried:?}",
                    texts.concat()
                );
                assert_eq!(
                    engine(&mut other, &call),
                    found,
                    "set {set}, reversed: {call:?}"
                );
                let after = engine(&mut narrower, &call);
                let rank = |outcome: &str| {
                    ["allow", "redact", "hold", "deny"]
                        .iter()
                        .position(|known| *known == outcome)
                };
                // Who is under no policy is denied, and a first policy may allow: that is no widening of another one.
                if found.1 != ["policy.none"] {
                    assert!(
                        rank(after.0) >= rank(found.0),
                        "set {set}: {call:?}\n{more}"
                    );
                    assert!(
                        found.1.iter().all(|reason| after.1.contains(reason)),
                        "set {set}: {call:?}\n{more}"
                    );
                }
            }
        }
    }
    // Every answer is met often enough to mean something.
    assert!(
        seen.iter().all(|count| *count > SETS * CALLS / 200),
        "{seen:?}"
    );
}
