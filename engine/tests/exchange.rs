//! One call: whatever it brings and however it is driven, it ends in one record, settles once, and lets no secret out.

mod issuer;
mod random;

#[path = "../fuzz/calls.rs"]
mod calls;

use issuer::{
    ANTHROPIC_KEY, KEY_ID, LISTED_HOST, NOW, OPENAI_KEY, Towards, budgeted, claims, config,
    document, gate, payload, token,
};
use random::Random;
use std::collections::BTreeMap;
use tollgate_engine::{
    bundle::{Level, Payload, Redaction, Scope, Searched},
    decide::{Decision, Outcome},
    exchange::{End, Exchange, Finished, Forward, Output, Step},
    facts::Headers,
    gate::Gate,
    identity::TOKEN_HEADER,
    journal::MAX_RECORD_BYTES,
    ledger::{Account, Cell, Op, Refusal},
    price::Price,
    reply::{REASON_HEADER, REDACTED_HEADER, Reply, WARNING_HEADER},
};

fn try_calls<T>(seed: u64, calls: usize, drive: fn(&[u8]) -> T) -> Vec<T> {
    let mut random = Random::new(seed);
    (0..calls)
        .map(|number| {
            let length = random.below(160);
            let input = random.bytes(length);
            let outcome = std::panic::catch_unwind(|| drive(&input));
            outcome.unwrap_or_else(|_| panic!("call {number}: {input:?}"))
        })
        .collect()
}

#[test]
fn a_call_that_does_not_pass_is_denied_without_a_reason_too() {
    assert_eq!(Decision::against(Vec::new()).outcome, Outcome::Deny);
}

#[test]
fn calls_in_order() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for came_of_it in try_calls(1, 35_000, calls::in_order) {
        *seen.entry(came_of_it).or_default() += 1;
    }
    // The calls were of many kinds: sent, left, and denied for most of what a call can be denied for.
    assert!(seen["sent"] > 1_000 && seen["left"] > 100, "{seen:?}");
    assert!(seen.len() > 25, "{seen:?}");
}

#[test]
fn calls_out_of_order() {
    assert_eq!(try_calls(2, 20_000, calls::out_of_order).len(), 20_000);
}

/// A call by its headers and its body.
struct Call<'a> {
    path: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    body: Option<&'a str>,
}

const CHAT: &str = "/v1/chat/completions";

fn post<'a>(path: &'a str, content_type: &'a str, body: &'a str) -> Call<'a> {
    Call {
        path,
        headers: vec![("content-type", content_type)],
        body: Some(body),
    }
}

impl Call<'_> {
    /// Up to the first step; the token comes as the API key unless the call brings credentials of its own.
    fn begin(&self, gate: &mut Gate) -> (Exchange, Step) {
        let bearer = format!("Bearer {}", token(&claims()));
        let mut pairs: Vec<(&[u8], &[u8])> = vec![
            (b":method", b"POST"),
            (b":path", self.path.as_bytes()),
            (b":authority", LISTED_HOST.as_bytes()),
        ];
        let own = ["authorization", "x-api-key", TOKEN_HEADER];
        if !self.headers.iter().any(|(name, _)| own.contains(name)) {
            pairs.push((b"authorization", bearer.as_bytes()));
        }
        pairs.extend(
            self.headers
                .iter()
                .map(|(name, value)| (name.as_bytes(), value.as_bytes())),
        );
        Exchange::begin(gate, Headers(&pairs), self.body.is_some(), NOW, 1)
    }

    /// Up to the verdict, with all the leases it wants.
    fn decide(&self, gate: &mut Gate) -> (Exchange, Step) {
        let (mut exchange, mut step) = self.begin(gate);
        loop {
            step = match step {
                Step::NeedBody { .. } => {
                    exchange.body(gate, self.body.unwrap_or_default().as_bytes(), NOW)
                }
                Step::Swap(_) => exchange.swapped(gate, Ok(Vec::new()), NOW),
                Step::AwaitLease { .. } | Step::Forward(_) | Step::Reply { .. } => {
                    return (exchange, step);
                }
            };
        }
    }

    /// `allow`, or the first reason.
    fn verdict(&self, gate: &mut Gate) -> String {
        match self.decide(gate).1 {
            Step::Forward(_) => "allow".to_string(),
            Step::Reply { reply, .. } => reason(&reply),
            other => panic!("{other:?}"),
        }
    }

    fn forward(&self, gate: &mut Gate) -> Forward {
        match self.decide(gate).1 {
            Step::Forward(forward) => forward,
            other => panic!("{other:?}"),
        }
    }
}

fn reason(reply: &Reply) -> String {
    let mut headers = reply.headers.iter();
    headers
        .find(|(name, _)| *name == REASON_HEADER)
        .unwrap()
        .1
        .clone()
}

fn record(finished: &Finished) -> serde_json::Value {
    serde_json::from_slice(&finished.record).unwrap()
}

/// Tools are judged, content is not.
fn tools_only() -> Payload {
    let mut payload = payload(1);
    payload
        .documents
        .change(|documents| documents[0].data.patterns = Vec::new());
    payload
}

#[test]
fn patterns_in_shadow_are_searched_and_stop_nothing() {
    let mut tried = payload(1);
    tried
        .documents
        .change(|documents| documents[0].data.patterns = Vec::new());
    let mut shadow = issuer::document("tried");
    // As many states as the text has bytes: a search for this gives up, one for the other does not.
    shadow.data.patterns = vec!["secret".to_string(), "(a|b)*a(a|b){12}".to_string()];
    tried.shadow = vec![shadow].into();
    let mut gate = gate(Towards::Anywhere, &tried);
    let found = |exchange: &Exchange| -> Vec<String> {
        let shadow = exchange.shadow().unwrap();
        shadow.reasons.iter().map(|r| r.rule.to_string()).collect()
    };
    let call = post("/rpc", "application/json", r#"{"a":"secret"}"#);
    let (exchange, step) = call.decide(&mut gate);
    assert!(matches!(step, Step::Forward(_)), "{step:?}");
    assert_eq!(found(&exchange), ["data.sensitive_patterns[0]"]);
    let record = record(&exchange.finish(End::Complete, NOW));
    assert_eq!(record["outcome"], "allow");
    assert_eq!(
        record["shadow"],
        serde_json::json!({"outcome": "deny", "reasons": [{"rule": "data.sensitive_patterns[0]", "document": "tried"}]})
    );
    // What cannot be searched for them passes too.
    let bytes = post("/rpc", "application/octet-stream", "secret");
    let (exchange, step) = bytes.decide(&mut gate);
    assert!(matches!(step, Step::Forward(_)), "{step:?}");
    assert_eq!(found(&exchange), [""; 0]);
    tried
        .documents
        .change(|documents| documents[0].data.patterns = vec!["other".to_string()]);
    gate.install(
        &issuer::bundle(&Payload {
            revision: 2,
            ..tried
        }),
        NOW,
    )
    .unwrap();
    let mut dice = 1_u32;
    let mut letter = || {
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if dice >> 31 == 0 { 'a' } else { 'b' }
    };
    let text: String = (0..1 << 18).map(|_| letter()).collect();
    let body = format!(r#"{{"a":"{text}"}}"#);
    let (exchange, step) = post("/rpc", "application/json", &body).decide(&mut gate);
    assert!(matches!(step, Step::Forward(_)), "{step:?}");
    assert_eq!(found(&exchange)[0], "data.unsearchable");
}

#[test]
fn the_query_is_searched_whatever_the_body() {
    let mut gate = gate(Towards::Anywhere, &payload(1));
    let found = "data.sensitive_patterns[0]";
    for body in [None, Some(""), Some("{}")] {
        for (path, verdict) in [
            ("/?a=key-abcdefgh", found),
            ("/?a=key%2dabcdefgh", found),
            ("/key-abcdefgh", found),
            ("/?a=key-abc", "allow"),
        ] {
            let call = Call {
                path,
                headers: vec![("content-type", "application/json")],
                body,
            };
            assert_eq!(call.verdict(&mut gate), verdict, "{path} with {body:?}");
        }
    }
}

/// What a pattern matches stands in no record, wherever in the call it was, and whoever made it.
#[test]
fn what_is_matched_is_not_on_record() {
    let mut named = payload(1);
    named
        .documents
        .change(|documents| documents[0].data.searched_in = Searched::Both);
    let mut gate = gate(Towards::Anywhere, &named);
    let json = "application/json";
    let tool = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"key-abcdefgh"}}"#;
    let method = r#"{"jsonrpc":"2.0","id":1,"method":"key-abcdefgh"}"#;
    let offered = r#"{"model":"gpt-4o","messages":[],"tools":[{"type":"function","function":{"name":"git"}},{"name":"key-abcdefgh"}]}"#;
    let veiled = "[REDACTED]";
    for (call, field, recorded) in [
        (post("/bot/key-abcdefgh/send", json, "{}"), "path", veiled),
        (post("/bot/key%2Dabcdefgh/send", json, "{}"), "path", veiled),
        // Unread, and unknown.
        (post("/bot/key-abcdefgh/send", json, "{"), "path", veiled),
        (
            Call {
                headers: vec![("authorization", "Bearer nobody")],
                ..post("/bot/key-abcdefgh/send", json, "{}")
            },
            "path",
            veiled,
        ),
        (post("/rpc", json, tool), "path", "/rpc"),
        (post("/rpc", json, tool), "tools", r#"["[REDACTED]"]"#),
        (post("/rpc", json, method), "mcp_method", veiled),
        (
            post(CHAT, json, r#"{"model":"key-abcdefgh","messages":[]}"#),
            "model",
            veiled,
        ),
        (post(CHAT, json, offered), "model", "gpt-4o"),
        (
            post(CHAT, json, offered),
            "tools",
            r#"["git","[REDACTED]"]"#,
        ),
    ] {
        let (exchange, step) = call.decide(&mut gate);
        assert!(matches!(step, Step::Reply { .. }), "{step:?}");
        let finished = exchange.finish(End::Complete, NOW);
        let record = record(&finished);
        let found = match &record[field] {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        assert_eq!(found, recorded, "{field} of {}", call.path);
        let whole = String::from_utf8(finished.record).unwrap();
        assert!(!whole.contains("abcdefgh"), "{whole}");
    }
    // A caller that leaves before it is judged.
    let (exchange, step) = post("/key-abcdefgh", json, "{}").begin(&mut gate);
    assert!(matches!(step, Step::NeedBody { .. }), "{step:?}");
    let left = record(&exchange.finish(End::ClientLeft, NOW));
    assert_eq!(left["path"], veiled);
}

/// A `+` in a query is a space to those who read forms, and a `+` to others.
#[test]
fn a_plus_is_searched_as_itself_and_as_a_space() {
    let mut both = payload(1);
    let patterns = ["a b", r"c\+d"].map(String::from).to_vec();
    both.documents
        .change(|documents| documents[0].data.patterns = patterns);
    let mut gate = gate(Towards::Anywhere, &both);
    for (path, verdict) in [
        ("/?q=a+b", "data.sensitive_patterns[0]"),
        ("/?q=a%20b", "data.sensitive_patterns[0]"),
        ("/?q=c+d", "data.sensitive_patterns[1]"),
        ("/?q=c%2Bd", "data.sensitive_patterns[1]"),
        ("/?q=a-b", "allow"),
    ] {
        let call = Call {
            path,
            headers: Vec::new(),
            body: None,
        };
        assert_eq!(call.verdict(&mut gate), verdict, "{path}");
    }
}

/// A server that reads JSON whatever the content type says must not be told to by a content type that says something else.
#[test]
fn a_content_type_hides_no_json() {
    let mut gate = gate(Towards::Anywhere, &tools_only());
    let shell = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"shell"}}"#;
    let twice = r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"git","name":"shell"}}"#;
    for (path, content_type, body, verdict) in [
        ("/rpc", "application/json", shell, "tools.shell.allow"),
        ("/rpc", "text/plain", shell, "tools.shell.allow"),
        ("/mcp", "application/json", shell, "tools.shell.allow"),
        ("/mcp", "text/plain", shell, "request.content_type"),
        (
            "/mcp",
            "application/octet-stream",
            shell,
            "request.content_type",
        ),
        (
            "/mcp",
            "application/x-www-form-urlencoded",
            "a=b",
            "request.content_type",
        ),
        // JSON with two readings is not mere text.
        ("/rpc", "text/plain", twice, "request.json"),
        (
            "/rpc",
            "text/plain",
            " \n[ {\"a\":1,\"a\":2}]",
            "request.json",
        ),
        ("/rpc", "text/plain", "{not json", "request.json"),
        // Text is.
        ("/rpc", "text/plain", "[INFO] all is well", "allow"),
        ("/rpc", "text/plain", "all is well", "allow"),
        ("/rpc", "text/plain", "42", "allow"),
        // What nobody can read passes where no rule looks at content, and is counted.
        ("/rpc", "application/octet-stream", "bytes", "allow"),
    ] {
        let call = post(path, content_type, body);
        assert_eq!(call.verdict(&mut gate), verdict, "{content_type} {body}");
    }
    let unstated = |body| Call {
        path: "/rpc",
        headers: Vec::new(),
        body: Some(body),
    };
    assert_eq!(unstated(shell).verdict(&mut gate), "tools.shell.allow");
    assert_eq!(unstated(twice).verdict(&mut gate), "request.json");
    assert_eq!(unstated("bytes").verdict(&mut gate), "allow");
    let (exchange, _) = unstated("bytes").decide(&mut gate);
    assert_eq!(
        record(&exchange.finish(End::Complete, NOW))["uninspected"],
        true
    );
    let (exchange, _) = post("/rpc", "text/plain", "fine").decide(&mut gate);
    assert_eq!(
        record(&exchange.finish(End::Complete, NOW))["uninspected"],
        false
    );
}

/// Text is searched as it stands, also where it is JSON and the strings in it are searched as well.
#[test]
fn text_that_is_json_is_searched_both_ways() {
    let mut across = payload(1);
    let patterns = [r#""secret":"#, "key-[a-z]{8}"].map(String::from).to_vec();
    across
        .documents
        .change(|documents| documents[0].data.patterns = patterns);
    let mut gate = gate(Towards::Anywhere, &across);
    for (body, verdict) in [
        (r#"{"secret":1}"#, "data.sensitive_patterns[0]"),
        (r#"{"a":"\u006bey-abcdefgh"}"#, "data.sensitive_patterns[1]"),
        (r#"{"a":"harmless"}"#, "allow"),
    ] {
        assert_eq!(
            post("/", "text/plain", body).verdict(&mut gate),
            verdict,
            "{body}"
        );
    }
}

#[test]
fn the_token_goes_no_further_wherever_it_stands() {
    let token = token(&claims());
    let bearer = format!("Bearer {token}");
    let trailed = format!("Bearer {token} ");
    for (headers, gone) in [
        (
            vec![("authorization", bearer.as_str())],
            vec!["authorization"],
        ),
        (vec![("x-api-key", token.as_str())], vec!["x-api-key"]),
        (vec![(TOKEN_HEADER, token.as_str())], vec![]),
        (
            vec![
                (TOKEN_HEADER, token.as_str()),
                ("authorization", &bearer),
                ("x-api-key", &token),
            ],
            vec!["authorization", "x-api-key"],
        ),
        (
            vec![(TOKEN_HEADER, token.as_str()), ("authorization", &trailed)],
            vec!["authorization"],
        ),
        // Credentials of the caller's own, for the upstream, stay.
        (
            vec![
                (TOKEN_HEADER, token.as_str()),
                ("authorization", "Bearer own"),
                ("x-api-key", "own"),
            ],
            vec![],
        ),
    ] {
        let mut gate = gate(Towards::Anywhere, &payload(1));
        // What is not there need not be taken out.
        let own = headers.iter().any(|(name, _)| *name == TOKEN_HEADER);
        let mut expected = if own { vec![TOKEN_HEADER] } else { Vec::new() };
        expected.extend(gone);
        let call = Call {
            path: "/",
            headers,
            body: None,
        };
        let forward = call.forward(&mut gate);
        assert_eq!(forward.remove, expected);
        assert!(forward.set.is_empty());
    }
}

#[test]
fn the_gates_key_takes_the_place_of_the_callers() {
    let mut gate = gate(Towards::Llm, &tools_only());
    for (path, name, value) in [
        (CHAT, "authorization", format!("Bearer {OPENAI_KEY}")),
        ("/v1/messages", "x-api-key", ANTHROPIC_KEY.to_string()),
    ] {
        let body = r#"{"model":"m","messages":[],"max_tokens":1}"#;
        let forward = post(path, "application/json", body).forward(&mut gate);
        assert_eq!(forward.set, [(name, value.clone())]);
        // The token came in `authorization`, and goes where the gate's key does not take its place.
        let gone: &[&str] = match name {
            "authorization" => &[],
            _ => &["authorization"],
        };
        assert_eq!(forward.remove, gone);
        let shown = format!("{forward:?}");
        assert!(shown.contains(name) && !shown.contains(&value), "{shown}");
    }
    let shown = format!("{gate:?} {:?}", config(Towards::Llm));
    assert!(
        shown.contains("Secret(…)") && !shown.contains("canary"),
        "{shown}"
    );
    assert!(shown.contains(KEY_ID), "public keys are no secret");
}

/// A verdict once given stands, whatever a host does next.
#[test]
fn a_host_out_of_order_changes_nothing() {
    let state = "gate.state";
    let reply = |step: Step| match step {
        Step::Reply { reply, undo } => {
            assert!(undo.is_empty());
            reason(&reply)
        }
        other => panic!("{other:?}"),
    };
    let body = r#"{"model":"gpt-4o","messages":[],"max_tokens":1}"#;
    let call = post(CHAT, "application/json", body);

    // A body that nobody asked for, an answer to no swap, a second try of none.
    let mut gate = gate(Towards::Llm, &budgeted(1));
    let (mut exchange, step) = call.begin(&mut gate);
    assert!(matches!(step, Step::NeedBody { .. }));
    assert_eq!(
        reply(exchange.swapped(&mut gate, Ok(Vec::new()), NOW)),
        state
    );
    let finished = exchange.finish(End::Complete, NOW);
    assert_eq!(record(&finished)["outcome"], "deny");
    assert_eq!(finished.ops, []);

    let (mut exchange, _) = call.begin(&mut gate);
    assert_eq!(reply(exchange.retry()), state);

    // Twice the body: what was reserved for the first is settled.
    let (mut exchange, step) = call.decide(&mut gate);
    assert!(matches!(step, Step::Forward(_)));
    assert_eq!(reply(exchange.body(&mut gate, b"{}", NOW)), state);
    assert_eq!(reply(exchange.body_over_cap(&gate, NOW)), state);
    assert_eq!(
        reply(exchange.swapped(&mut gate, Ok(Vec::new()), NOW)),
        state
    );
    assert_eq!(
        reply(exchange.swapped(&mut gate, Err((0, Refusal::Short)), NOW)),
        state
    );
    assert_eq!(reply(exchange.retry()), state);
    assert!(exchange.wants_response());
    let finished = exchange.finish(End::Complete, NOW);
    assert_eq!(record(&finished)["outcome"], "allow");
    assert_eq!(finished.ops.len(), 3, "calls, tokens, money");

    // A denial stays one.
    let denied = post(CHAT, "application/json", r#"{"model":7}"#);
    let (mut exchange, step) = denied.decide(&mut gate);
    assert_eq!(reply(step), "request.json");
    assert_eq!(
        reply(exchange.swapped(&mut gate, Ok(Vec::new()), NOW)),
        state
    );
    assert_eq!(reply(exchange.body(&mut gate, body.as_bytes(), NOW)), state);
    exchange.response_head(Headers(&[(b":status", b"200")]));
    assert_eq!(exchange.response_chunk(&gate, b"x", true), Output::Pass);
    let finished = exchange.finish(End::Complete, NOW);
    assert_eq!(record(&finished)["outcome"], "deny");
    assert_eq!(record(&finished)["status"], 400);
    assert_eq!(finished.ops, []);

    // A refusal of an operation that was not there.
    let (mut exchange, _) = call.begin(&mut gate);
    let swap = exchange.body(&mut gate, body.as_bytes(), NOW);
    assert!(matches!(swap, Step::Swap(_)));
    let step = exchange.swapped(&mut gate, Err((99, Refusal::Short)), NOW);
    assert!(matches!(step, Step::Reply { .. }));
}

/// A stream broken off at every byte, in every way: what was reserved is given back, and at least what was said is charged.
#[test]
fn every_cut_of_a_stream_settles_once() {
    let stream = concat!(
        "data: {\"model\":\"gpt-4o\",\"choices\":[{\"delta\":{\"content\":\"four\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":3}}\n\n",
        "data: [DONE]\n\n",
    );
    let body = r#"{"model":"gpt-4o","messages":[],"stream":true,"max_tokens":50}"#;
    let mut gate = gate(Towards::Llm, &budgeted(1));
    for cut in 0..=stream.len() {
        for end in [End::Complete, End::ClientLeft, End::UpstreamBroken] {
            let call = post(CHAT, "application/json", body);
            let (mut exchange, step) = call.begin(&mut gate);
            assert!(matches!(step, Step::NeedBody { .. }));
            let Step::Swap(ops) = exchange.body(&mut gate, body.as_bytes(), NOW) else {
                panic!("nothing to reserve");
            };
            let reserved: BTreeMap<Account, u64> = ops
                .iter()
                .map(|op| match op.op {
                    Op::Reserve { amount, .. } => (op.account.clone(), amount),
                    _ => panic!("{op:?}"),
                })
                .collect();
            let step = exchange.swapped(&mut gate, Ok(Vec::new()), NOW);
            assert!(matches!(step, Step::Forward(_)));
            exchange.response_head(Headers(&[
                (b":status", b"200"),
                (b"content-type", b"text/event-stream"),
            ]));
            exchange.response_chunk(&gate, &stream.as_bytes()[..cut], false);
            if end == End::Complete {
                exchange.response_chunk(&gate, b"", true);
            }
            let finished = exchange.finish(end, NOW);
            assert_eq!(finished.ops.len(), reserved.len());
            for op in &finished.ops {
                let Op::Settle {
                    reserved: given_back,
                    used,
                    ..
                } = op.op
                else {
                    panic!("{op:?}");
                };
                assert_eq!(given_back, reserved[&op.account]);
                assert!(used <= given_back, "cut at {cut}: {used} of {given_back}");
                assert!(used > 0, "cut at {cut}: free of charge");
            }
            // Only the whole stream is taken at its word: 20 in, 3 out, at 1 and 2 nano-USD.
            let exact = record(&finished);
            if exact["estimated"] == false {
                assert_eq!(end, End::Complete);
                assert_eq!(exact["cost_nano_usd"], "26");
            }
        }
    }
}

#[test]
fn a_record_is_bounded_whatever_the_call_is_called() {
    let mut gate = gate(Towards::Anywhere, &tools_only());
    let odd = "\\u0001".repeat(4_000);
    let tools = vec![format!("{{\"name\":\"{odd}\"}}"); 20].join(",");
    let path = format!("/v1/chat/completions?{}", "x".repeat(8_000));
    let long_path = format!("/{}", "\"".repeat(8_000));
    let model = format!(r#"{{"model":"{odd}","messages":[],"tools":[{tools}]}}"#);
    let rpc =
        format!(r#"{{"jsonrpc":"2.0","id":"{odd}","method":"{odd}","params":{{"name":"{odd}"}}}}"#);
    let mut longest = 0;
    for (path, body) in [
        (path.as_str(), &model),
        ("/rpc", &rpc),
        (&long_path, &model),
    ] {
        let (exchange, _) = post(path, "application/json", body).decide(&mut gate);
        let finished = exchange.finish(End::Complete, NOW);
        assert!(!finished.record.contains(&b'\n'));
        longest = longest.max(finished.record.len());
        assert!(longest <= MAX_RECORD_BYTES, "{longest}");
    }
    // Eight tools and a model of 128 bytes, each byte written as six: 6,912.
    assert!(longest > 6_912, "{longest}");
    // Sixteen reasons at most, of documents with names as long as anybody likes.
    let mut wordy = tools_only();
    wordy.documents = (0..40)
        .map(|number| {
            let mut document = document(&format!("{number}{}", "\u{1}".repeat(4_000)));
            document.network.denied = true;
            document.tools.denied = ["\u{1}".repeat(4_000)].iter().collect();
            document
        })
        .collect();
    let mut gate = issuer::gate(Towards::Anywhere, &wordy);
    let (exchange, _) = post(CHAT, "application/json", &model).decide(&mut gate);
    let finished = exchange.finish(End::Complete, NOW);
    let reasons = record(&finished);
    assert_eq!(reasons["reasons"].as_array().unwrap().len(), 16);
    assert!(
        finished.record.len() <= MAX_RECORD_BYTES,
        "{}",
        finished.record.len()
    );
}

/// …where a policy asks for it: bounded, whole characters, and nothing of what does not pass.
#[test]
fn a_record_holds_the_begin_of_what_passed() {
    let recorded = |mut payload: Payload| {
        payload
            .documents
            .change(|documents| documents[0].data.recorded = true);
        issuer::gate(Towards::Llm, &payload)
    };
    let mut gate = recorded(tools_only());
    let body = format!(
        r#"{{"model":"gpt-4o","max_tokens":1,"messages":[],"xy":"{}"}}"#,
        "é".repeat(3_000)
    );
    let call = post(CHAT, "application/json", &body);
    let answer = |kind: &'static [u8], gate: &mut Gate| {
        let (mut exchange, step) = call.decide(gate);
        assert!(matches!(step, Step::Forward(_)), "{step:?}");
        exchange.response_head(Headers(&[(b":status", b"200"), (b"content-type", kind)]));
        for chunk in [[1; 3_000], [1; 3_000]] {
            exchange.response_chunk(gate, &chunk, false);
        }
        let finished = exchange.finish(End::UpstreamBroken, NOW);
        assert!(finished.record.len() <= MAX_RECORD_BYTES);
        record(&finished)["content"].clone()
    };
    let content = answer(b"application/json", &mut gate);
    let begin = body.get(..body.floor_char_boundary(4_096)).unwrap();
    assert_eq!(begin.len(), 4_095);
    assert_eq!(
        content,
        serde_json::json!({
            "request": begin, "request_bytes": body.len(),
            "answer": "\u{1}".repeat(4_096), "answer_bytes": 6_000,
        })
    );
    // What is no text is not kept.
    let content = answer(b"image/png", &mut gate);
    assert!(content["answer"].is_null(), "{content}");

    let mut gate = recorded(budgeted(1));
    let (mut exchange, _) = call.begin(&mut gate);
    let step = exchange.body(&mut gate, body.as_bytes(), NOW);
    assert!(matches!(step, Step::Swap(_)));
    exchange.swapped(&mut gate, Err((0, Refusal::NOTHING_LEFT)), NOW);
    let denied = record(&exchange.finish(End::Complete, NOW));
    assert_eq!(denied["outcome"], "deny");
    assert!(denied.get("content").is_none(), "{denied}");
}

/// The caller leaves at each point where a call can wait.
#[test]
fn whoever_leaves_early_is_charged_nothing() {
    let body = r#"{"model":"gpt-4o","messages":[],"max_tokens":1}"#;
    let call = post(CHAT, "application/json", body);
    let mut gate = gate(Towards::Llm, &budgeted(1));
    let (exchange, _) = call.begin(&mut gate);
    let finished = exchange.finish(End::ClientLeft, NOW);
    assert_eq!(finished.ops, []);
    assert_eq!(record(&finished)["outcome"], "deny");

    let (mut exchange, _) = call.begin(&mut gate);
    let Step::Swap(ops) = exchange.body(&mut gate, body.as_bytes(), NOW) else {
        panic!("nothing to reserve");
    };
    // The second of three is refused: the first is given back at once.
    let step = exchange.swapped(&mut gate, Err((1, Refusal::NoLease)), NOW);
    let Step::AwaitLease { undo, wants, .. } = step else {
        panic!("{step:?}");
    };
    assert_eq!((undo.len(), wants.len()), (1, 3));
    assert_eq!(undo[0].account, ops[0].account);
    let finished = exchange.finish(End::ClientLeft, NOW);
    assert_eq!(finished.ops, []);
    // Given back to a cell that was never written: nothing is there.
    let cell = undo[0].op.apply(None, NOW).unwrap();
    assert_eq!(Cell::decode(&cell).slots(), []);
}

#[test]
fn the_answer_says_how_much_was_taken_out() {
    let mut payload = budgeted(1);
    payload.documents.change(|documents| {
        documents[0].limits.clear();
        documents[0].data.redactions = vec![Redaction {
            rule: "data.sensitive_patterns[0]".to_string(),
            patterns: vec!["cut-[0-9]".to_string()],
        }];
    });
    let mut gate = gate(Towards::Llm, &payload);
    let said = |gate: &mut _, content: &str| {
        let body = format!(r#"{{"model":"gpt-4o","max_tokens":1,"messages":["{content}"]}}"#);
        let (mut exchange, step) = post(CHAT, "application/json", &body).decide(gate);
        let Step::Forward(forward) = step else {
            panic!("{step:?}");
        };
        let head = exchange.response_head(Headers(&[(b":status", b"200")]));
        let mut headers = head.set.into_iter();
        let count = headers.find(|(name, _)| *name == REDACTED_HEADER);
        (forward, count.map(|(_, count)| count))
    };
    let (forward, count) = said(&mut gate, "cut-1, cut-2");
    let sent = forward.body.unwrap();
    assert_eq!(
        String::from_utf8(sent.clone()).unwrap(),
        r#"{"model":"gpt-4o","max_tokens":1,"messages":["[REDACTED], [REDACTED]"]}"#
    );
    assert!(
        forward
            .set
            .contains(&("content-length", sent.len().to_string()))
    );
    assert_eq!(count.as_deref(), Some("2"));
    let (forward, count) = said(&mut gate, "cut");
    assert_eq!((forward.body, count), (None, None));
}

#[test]
fn an_alert_that_is_used_up_is_named_in_answer_and_record() {
    let mut payload = budgeted(1);
    payload.documents.change(|documents| {
        let limits = &mut documents[0].limits;
        limits.retain(|limit| limit.rule == "budget.tokens");
        limits[0].alert = true;
        limits[0].amount = 100;
    });
    let mut gate = gate(Towards::Llm, &payload);
    let body = r#"{"model":"gpt-4o","messages":[],"max_tokens":1}"#;
    let call = post(CHAT, "application/json", body);
    for (taken, warning) in [(99, None), (100, Some("\"budget.tokens @ base\""))] {
        let (mut exchange, _) = call.begin(&mut gate);
        let Step::Swap(ops) = exchange.body(&mut gate, body.as_bytes(), NOW) else {
            panic!("nothing to count");
        };
        assert!(matches!(ops[0].op, Op::Count { .. }), "{ops:?}");
        let step = exchange.swapped(&mut gate, Ok(vec![taken]), NOW);
        assert!(matches!(step, Step::Forward(_)));
        let head = exchange.response_head(Headers(&[(b":status", b"200")]));
        let named = head.set.iter().find(|(name, _)| *name == WARNING_HEADER);
        assert_eq!(named.map(|(_, names)| names.as_str()), warning);
        // Of what is only counted nothing is left to tell.
        assert!(
            !head
                .set
                .iter()
                .any(|(name, _)| name.starts_with("ratelimit"))
        );
        let recorded = record(&exchange.finish(End::Complete, NOW))["warnings"].clone();
        let rule = warning.map(|_| "budget.tokens");
        assert_eq!(recorded[0]["rule"].as_str(), rule);
    }
}

/// A document of the caller's team that has models the table does not know for nothing in, and for a dollar more out, takes nothing off the price that
/// everybody's budget counts by.
#[test]
fn of_what_unknown_models_cost_the_dearest_counts_part_by_part() {
    let mut payload = budgeted(1);
    payload.documents.change(|documents| {
        documents[0]
            .limits
            .retain(|limit| limit.rule == "budget.nano_usd");
        let mut narrower = document("narrower");
        narrower.scope = Scope::Team("platform".into());
        narrower.limits = documents[0].limits.clone();
        documents[0].limits[0].unknown_model = Some(Price::flat(5_000_000, 25_000_000));
        narrower.limits[0].per = Level::Agent;
        narrower.limits[0].unknown_model = Some(Price::flat(0, 26_000_000));
        documents.push(narrower);
    });
    let mut gate = gate(Towards::Llm, &payload);
    let body = r#"{"model":"house-model","messages":[],"max_tokens":10}"#;
    let call = post(CHAT, "application/json", body);
    let (mut exchange, step) = call.decide(&mut gate);
    assert!(matches!(step, Step::Forward(_)), "{step:?}");
    exchange.response_head(Headers(&[
        (b":status", b"200"),
        (b"content-type", b"application/json"),
    ]));
    let answer = br#"{"usage":{"prompt_tokens":19,"completion_tokens":10}}"#;
    exchange.response_chunk(&gate, answer, true);
    let finished = exchange.finish(End::Complete, NOW);
    // 53 bytes x 5,000 + 10 x 26,000 nano-USD, of either budget; used are 19 x 5,000 + 10 x 26,000.
    let settled: Vec<(u64, u64)> = finished
        .ops
        .iter()
        .map(|op| match op.op {
            Op::Settle { reserved, used, .. } => (reserved, used),
            _ => panic!("{op:?}"),
        })
        .collect();
    assert_eq!(settled, [(525_000, 355_000); 2]);
    assert_eq!(record(&finished)["cost_nano_usd"], "355000");
}
