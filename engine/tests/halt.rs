//! Whom an operator has stopped makes no call, and what is killed is ended in a way that clients can read.

mod issuer;

use issuer::{AGENT, LISTED_HOST, NOW, Towards, budgeted, claims, gate, halt, token};
use tollgate_engine::{
    bundle::Searched,
    exchange::{End, Exchange, Finished, Output, Step},
    facts::{Headers, RUN_HEADER},
    gate::Gate,
    halt::{Halt, Kind},
    identity::{Actor, Claims},
    ledger::Op,
    reply::REASON_HEADER,
    sse,
};

/// Answers pass as they come: what a search of them would hold back is not the question here.
fn running(halts: Vec<Halt>) -> Gate {
    let mut payload = budgeted(1);
    payload.halts = halts;
    payload.documents.change(|documents| {
        for document in documents {
            document.data.searched_in = Searched::Requests;
        }
    });
    gate(Towards::Llm, &payload)
}

/// The next bundle.
fn stop(gate: &mut Gate, halts: Vec<Halt>) {
    let mut payload = budgeted(2);
    payload.halts = halts;
    gate.install(&issuer::bundle(&payload), NOW).unwrap();
}

fn begin(gate: &mut Gate, path: &str) -> (Exchange, Step) {
    begin_as(gate, &claims(), path, &[])
}

/// By this caller, with these headers beside.
fn begin_as(
    gate: &mut Gate,
    claims: &Claims,
    path: &str,
    more: &[(&[u8], &[u8])],
) -> (Exchange, Step) {
    let bearer = format!("Bearer {}", token(claims));
    let pairs: [(&[u8], &[u8]); 5] = [
        (b":method", b"POST"),
        (b":path", path.as_bytes()),
        (b":authority", LISTED_HOST.as_bytes()),
        (b"authorization", bearer.as_bytes()),
        (b"content-type", b"application/json"),
    ];
    let pairs = [pairs.as_slice(), more].concat();
    Exchange::begin(gate, Headers(&pairs), true, NOW, 1)
}

const CHAT: &str = "/v1/chat/completions";
const BODY: &[u8] = br#"{"model":"gpt-4o","messages":[],"stream":true,"max_tokens":50,"stream_options":{"include_usage":true}}"#;

/// A stream whose head has passed.
fn streaming(gate: &mut Gate) -> Exchange {
    let begun = begin(gate, CHAT);
    streaming_on(gate, begun)
}

/// What has begun so.
fn streaming_on(gate: &mut Gate, (mut exchange, step): (Exchange, Step)) -> Exchange {
    assert!(matches!(step, Step::NeedBody { .. }));
    let step = exchange.body(gate, BODY, NOW);
    assert!(matches!(step, Step::Swap(_)), "{step:?}");
    let step = exchange.swapped(gate, Ok(Vec::new()), NOW);
    assert!(matches!(step, Step::Forward(_)), "{step:?}");
    exchange.response_head(Headers(&[
        (b":status", b"200"),
        (b"content-type", b"text/event-stream; charset=utf-8"),
    ]));
    assert!(exchange.streams() && exchange.meters());
    exchange
}

fn record(finished: &Finished) -> serde_json::Value {
    serde_json::from_slice(&finished.record).unwrap()
}

/// Rule and message of a refusal.
fn refused(step: Step) -> (String, String) {
    let Step::Reply { reply, .. } = step else {
        panic!("{step:?}");
    };
    assert_eq!(reply.status, 403);
    let rule = reply
        .headers
        .iter()
        .find(|(name, _)| *name == REASON_HEADER);
    let body: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(body["error"]["type"], "permission_error");
    let message = body["error"]["message"].as_str().unwrap();
    (rule.unwrap().1.clone(), message.to_string())
}

#[test]
fn who_is_stopped_is_refused_before_anything_is_read() {
    let agent = format!("agent:{AGENT}");
    for (scope, whom) in [
        ("global", "workspace"),
        ("org:acme", "organisation"),
        ("team:platform", "team"),
        (agent.as_str(), "agent"),
    ] {
        let (exchange, step) = begin(&mut running(vec![halt(scope, Kind::Paused)]), CHAT);
        let (rule, message) = refused(step);
        assert_eq!(rule, "halt.paused", "{scope}");
        assert_eq!(
            message,
            format!("tollgate: an operator has paused this {whom}: it buys too much")
        );
        let record = record(&exchange.finish(End::Complete, NOW));
        assert_eq!(record["outcome"], "deny");
        assert_eq!(record["reasons"][0]["rule"], "halt.paused");
    }
    let others = [
        "org:else",
        "team:else",
        "agent:00000000-0000-4000-8000-0000000000ff",
        "tool:git",
    ];
    let halts = others.map(|scope| halt(scope, Kind::Killed)).into();
    let (_, step) = begin(&mut running(halts), CHAT);
    assert!(matches!(step, Step::NeedBody { .. }), "{step:?}");
}

#[test]
fn a_kill_is_named_before_a_pause() {
    let halts = vec![
        halt("global", Kind::Paused),
        halt("team:platform", Kind::Killed),
    ];
    let (_, step) = begin(&mut running(halts), CHAT);
    assert_eq!(refused(step).0, "halt.killed");
}

/// Only the run of this name.
fn run(name: &str, scope: &str, kind: Kind) -> Halt {
    Halt {
        run: Some(name.to_string()),
        ..halt(scope, kind)
    }
}

/// What the agent's calls of the run of this name say.
fn of_run(name: &str) -> [(&[u8], &[u8]); 1] {
    [(RUN_HEADER.as_bytes(), name.as_bytes())]
}

#[test]
fn a_run_is_stopped_and_no_other() {
    let agent = format!("agent:{AGENT}");
    for (kind, rule) in [(Kind::Paused, "halt.paused"), (Kind::Killed, "halt.killed")] {
        let mut gate = running(vec![run("night:7", &agent, kind)]);
        let (exchange, step) = begin_as(&mut gate, &claims(), CHAT, &of_run("night:7"));
        let done = kind.name();
        let message = format!("tollgate: an operator has {done} this run: it buys too much");
        assert_eq!(refused(step), (rule.to_string(), message));
        let record = record(&exchange.finish(End::Complete, NOW));
        assert_eq!(record["run"], "night:7");
        assert_eq!(record["reasons"][0]["rule"], rule);
        // Names are compared exactly, and a call of no run is of none that is stopped.
        for other in ["night:70", "night", "Night:7", "7"] {
            let (_, step) = begin_as(&mut gate, &claims(), CHAT, &of_run(other));
            assert!(matches!(step, Step::NeedBody { .. }), "{other}: {step:?}");
        }
        let (_, step) = begin(&mut gate, CHAT);
        assert!(matches!(step, Step::NeedBody { .. }), "{step:?}");
    }
    // Another agent's run of the same name is another run.
    let other = "agent:00000000-0000-4000-8000-0000000000ff";
    let mut gate = running(vec![run("night:7", other, Kind::Killed)]);
    let (_, step) = begin_as(&mut gate, &claims(), CHAT, &of_run("night:7"));
    assert!(matches!(step, Step::NeedBody { .. }), "{step:?}");
}

/// `printf s-1 | sha256sum | head -c 32`
const SESSION: &str = "mcp:6a840baf5d8c3ff241688aeb14546e65";

#[test]
fn a_session_is_stopped_as_the_run_that_it_is() {
    let agent = format!("agent:{AGENT}");
    let mut gate = running(vec![run(SESSION, &agent, Kind::Killed)]);
    let mut of_session = |id: &[u8]| {
        let session: [(&[u8], &[u8]); 1] = [(b"mcp-session-id", id)];
        begin_as(&mut gate, &claims(), "/mcp", &session).1
    };
    let Step::Reply { reply, .. } = of_session(b"s-1") else {
        panic!("the session is killed, and its call passes");
    };
    assert_eq!(reply.status, 403);
    assert!(reply.body.contains("killed this run"), "{}", reply.body);
    let step = of_session(b"s-2");
    assert!(matches!(step, Step::NeedBody { .. }), "{step:?}");
}

/// As the call counts in the run of its name of each.
#[test]
fn a_run_of_whoever_is_acted_for_is_stopped_too() {
    let planner = "00000000-0000-4000-8000-0000000000bb";
    let claims = Claims {
        sub: planner.to_string(),
        act: Some(Box::new(Actor {
            sub: AGENT.to_string(),
            org: None,
            team: Some("platform".to_string()),
            level: claims().level,
            act: None,
        })),
        ..claims()
    };
    let scope = format!("agent:{planner}");
    let mut gate = running(vec![run("r", &scope, Kind::Paused)]);
    let (_, step) = begin_as(&mut gate, &claims, CHAT, &of_run("r"));
    assert_eq!(
        refused(step).1,
        format!(
            "tollgate: an operator has paused this run of the agent `{planner}` (for which this agent acts): it buys too much"
        )
    );
    let (_, step) = begin_as(&mut gate, &claims, CHAT, &of_run("s"));
    assert!(matches!(step, Step::NeedBody { .. }), "{step:?}");
    // By itself it has a run of its own of that name.
    let own = issuer::claims();
    let (_, step) = begin_as(&mut gate, &own, CHAT, &of_run("r"));
    assert!(matches!(step, Step::NeedBody { .. }), "{step:?}");
}

#[test]
fn a_run_is_stopped_with_its_agent_as_well() {
    let agent = format!("agent:{AGENT}");
    let halts = vec![
        halt(&agent, Kind::Paused),
        run("r", &agent, Kind::Paused),
        run("s", &agent, Kind::Killed),
    ];
    let mut gate = running(halts);
    for (name, rule, whom) in [
        ("r", "halt.paused", "this agent"),
        ("s", "halt.killed", "this run"),
        ("t", "halt.paused", "this agent"),
    ] {
        let (_, step) = begin_as(&mut gate, &claims(), CHAT, &of_run(name));
        let (told, message) = refused(step);
        assert_eq!(told, rule, "{name}");
        assert!(message.contains(whom), "{name}: {message}");
    }
}

#[test]
fn a_killed_run_ends_its_streams_and_leaves_the_others() {
    let agent = format!("agent:{AGENT}");
    let mut gate = running(Vec::new());
    let mut streams = [Some("r"), Some("s"), None].map(|name| {
        let begun = match name {
            Some(name) => begin_as(&mut gate, &claims(), CHAT, &of_run(name)),
            None => begin(&mut gate, CHAT),
        };
        streaming_on(&mut gate, begun)
    });
    stop(&mut gate, vec![run("r", &agent, Kind::Killed)]);
    let last = LAST.replace("workspace", "run").into_bytes();
    let [first, others @ ..] = &mut streams;
    let cut = first.response_chunk(&gate, FIRST.as_bytes(), false);
    assert_eq!(cut, Output::Cut(last));
    for other in others {
        let passed = other.response_chunk(&gate, FIRST.as_bytes(), false);
        assert_eq!(passed, Output::Pass);
    }
}

/// So that gates of before read every bundle in which no run is stopped, and none without knowing what it stops.
#[test]
fn a_halt_says_of_a_run_only_where_it_is_of_one() {
    let agent = format!("agent:{AGENT}");
    let whole = halt(&agent, Kind::Killed);
    let json = format!(r#"{{"scope":"{agent}","kind":"killed","reason":"it buys too much"}}"#);
    assert_eq!(serde_json::to_string(&whole).unwrap(), json);
    let one = run("r", &agent, Kind::Killed);
    let of_one = json.replace(r#","kind""#, r#","run":"r","kind""#);
    assert_eq!(serde_json::to_string(&one).unwrap(), of_one);
    for (halt, json) in [(whole, &json), (one, &of_one)] {
        let read: Halt = tollgate_engine::json::read(json.as_bytes()).unwrap();
        assert_eq!(read, halt);
    }
    // What a gate of before does with `run`, this one does with the next member of which it knows nothing.
    let next = of_one.replace("run", "call");
    assert!(tollgate_engine::json::read::<Halt>(next.as_bytes()).is_err());
}

#[test]
fn who_is_stopped_while_the_body_comes_in_is_refused() {
    let mut gate = running(Vec::new());
    let (mut exchange, step) = begin(&mut gate, CHAT);
    assert!(matches!(step, Step::NeedBody { .. }));
    stop(&mut gate, vec![halt("global", Kind::Paused)]);
    assert_eq!(
        refused(exchange.body(&mut gate, BODY, NOW)).0,
        "halt.paused"
    );
}

const FIRST: &str =
    "data: {\"model\":\"gpt-4o\",\"choices\":[{\"delta\":{\"content\":\"four\"}}]}\n\n";
const SECOND: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"five\"}}]}\r\n\r\n";
const LAST: &str = "data: {\"error\":{\"message\":\"tollgate: an operator has killed this workspace: it buys too much\",\"type\":\"permission_error\",\"param\":null,\"code\":\"halt.killed\"}}\n\n";

/// The kill comes after `passed` bytes of two events, and the rest in one piece.
fn killed_after(passed: usize) -> (String, Finished) {
    let stream = [FIRST, SECOND].concat();
    let mut gate = running(Vec::new());
    let mut exchange = streaming(&mut gate);
    let (before, after) = stream.as_bytes().split_at(passed);
    assert_eq!(exchange.response_chunk(&gate, before, false), Output::Pass);
    stop(&mut gate, vec![halt("global", Kind::Killed)]);
    let Output::Cut(last) = exchange.response_chunk(&gate, after, false) else {
        panic!("killed after {passed}, and not cut");
    };
    let more = exchange.response_chunk(&gate, b"data: more\n\n", false);
    assert_eq!(more, Output::Cut(Vec::new()));
    let got = [before, &last].concat();
    (
        String::from_utf8(got).unwrap(),
        exchange.finish(End::UpstreamBroken, NOW),
    )
}

#[test]
fn a_killed_stream_ends_between_two_events() {
    for passed in 0..FIRST.len() + SECOND.len() {
        let (got, finished) = killed_after(passed);
        let whole = match passed {
            0 => "",
            passed if passed <= FIRST.len() => FIRST,
            // The event is over with its second CR; the LF behind that says nothing.
            _ => concat!(
                "data: {\"model\":\"gpt-4o\",\"choices\":[{\"delta\":{\"content\":\"four\"}}]}\n\n",
                "data: {\"choices\":[{\"delta\":{\"content\":\"five\"}}]}\r\n\r"
            ),
        };
        assert_eq!(got, format!("{whole}{LAST}"), "killed after {passed}");
        let record = record(&finished);
        assert_eq!(record["end"], "cut");
        assert_eq!(record["outcome"], "allow");
        assert_eq!(record["reasons"][0]["rule"], "halt.killed");
        assert_eq!(record["estimated"], true);
        for op in &finished.ops {
            assert!(
                matches!(op.op, Op::Settle { used, .. } if used > 0),
                "{op:?}"
            );
        }
    }
}

#[test]
fn a_stream_cut_inside_an_event_waits_for_its_end() {
    let mut gate = running(Vec::new());
    let mut exchange = streaming(&mut gate);
    let pass = |output| assert_eq!(output, Output::Pass);
    pass(exchange.response_chunk(&gate, b"data: {\"a\"", false));
    stop(&mut gate, vec![halt("global", Kind::Killed)]);
    pass(exchange.response_chunk(&gate, b":1}\n", false));
    let cut = Output::Cut(format!("\n{LAST}").into_bytes());
    assert_eq!(exchange.response_chunk(&gate, b"\ndata: 2\n\n", false), cut);
}

#[test]
fn what_is_paused_comes_to_its_end() {
    let mut gate = running(Vec::new());
    let mut exchange = streaming(&mut gate);
    stop(&mut gate, vec![halt("global", Kind::Paused)]);
    let passed = exchange.response_chunk(&gate, FIRST.as_bytes(), false);
    assert_eq!(passed, Output::Pass);
    assert_eq!(exchange.response_chunk(&gate, b"", true), Output::Pass);
    let record = record(&exchange.finish(End::Complete, NOW));
    assert_eq!(record["end"], "complete");
}

#[test]
fn the_end_is_in_the_callers_dialect() {
    let mut gate = running(Vec::new());
    let (mut exchange, _) = begin(&mut gate, "/v1/messages");
    let body = br#"{"model":"claude","max_tokens":50,"messages":[],"stream":true}"#;
    let step = exchange.body(&mut gate, body, NOW);
    assert!(matches!(step, Step::Swap(_)), "{step:?}");
    exchange.swapped(&mut gate, Ok(Vec::new()), NOW);
    exchange.response_head(Headers(&[
        (b":status", b"200"),
        (b"content-type", b"text/event-stream"),
    ]));
    stop(&mut gate, vec![halt("team:platform", Kind::Killed)]);
    let last = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"permission_error\",\"message\":\"tollgate: an operator has killed this team: it buys too much\"}}\n\n";
    assert_eq!(
        exchange.response_chunk(&gate, b"event: ping\ndata: {}\n\n", false),
        Output::Cut(last.as_bytes().to_vec())
    );
}

#[test]
fn a_compressed_stream_just_ends() {
    let mut gate = running(Vec::new());
    let (mut exchange, _) = begin(&mut gate, CHAT);
    exchange.body(&mut gate, BODY, NOW);
    exchange.swapped(&mut gate, Ok(Vec::new()), NOW);
    exchange.response_head(Headers(&[
        (b":status", b"200"),
        (b"content-type", b"text/event-stream"),
        (b"content-encoding", b"gzip"),
    ]));
    stop(&mut gate, vec![halt("global", Kind::Killed)]);
    assert_eq!(
        exchange.response_chunk(&gate, b"\x1f\x8b", false),
        Output::Cut(Vec::new())
    );
}

/// Where the reader that keeps everything says that an event ends, the place that keeps nothing says so too.
#[test]
fn a_place_agrees_with_the_reader() {
    for number in 0..1_usize << 12 {
        let text: Vec<u8> = (0..12)
            .map(|bit| if number >> bit & 1 == 0 { b'\n' } else { b'a' })
            .collect();
        let mut reader = sse::Reader::default();
        reader.push(&text);
        let mut ends = vec![0];
        while let Some(block) = reader.next_block() {
            let sse::Block::Event(event) = block else {
                panic!("an event of 12 bytes is not too long");
            };
            ends.push(ends.last().unwrap() + event.raw.len());
        }
        for passed in 0..text.len() {
            let mut place = sse::Place::default();
            place.pass(&text[..passed]);
            let begun = *ends.iter().rev().find(|end| **end <= passed).unwrap();
            let rest = if text[begun..passed].contains(&b'a') {
                ends.iter()
                    .find(|end| **end > passed)
                    .map(|end| end - passed)
            } else {
                Some(0)
            };
            let found = place.rest_of_event(&text[passed..]);
            assert_eq!(found, rest, "{} after {passed}", text.escape_ascii());
        }
    }
}
