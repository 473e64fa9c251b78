//! What comes back is searched before the caller has it, however it is cut.

mod issuer;

use issuer::{LISTED_HOST, NOW, Towards, budgeted, claims, gate, token};
use tollgate_engine::{
    bundle::Redaction,
    exchange::{End, Exchange, Finished, Output, Step},
    facts::Headers,
    gate::Gate,
    json,
    sse::{Block, Reader},
};

const BODY: &[u8] = br#"{"model":"gpt-4o","messages":[],"stream":true,"max_tokens":5000,"stream_options":{"include_usage":true}}"#;

/// A gate whose one document has these patterns: blocked, or taken out.
fn searching(patterns: &[&str], redact: bool) -> Gate {
    let mut payload = budgeted(1);
    payload.documents.change(|documents| {
        let patterns: Vec<String> = patterns.iter().map(|pattern| pattern.to_string()).collect();
        documents[0].data.patterns.clear();
        match redact {
            false => documents[0].data.patterns = patterns,
            true => {
                documents[0].data.redactions = vec![Redaction {
                    rule: "data.sensitive_patterns[0]".to_string(),
                    patterns,
                }];
            }
        }
    });
    gate(Towards::Llm, &payload)
}

/// A call whose answer's head, of this type, has passed.
fn answered(gate: &mut Gate, content_type: &str) -> (Exchange, Option<usize>) {
    let bearer = format!("Bearer {}", token(&claims()));
    let pairs: [(&[u8], &[u8]); 5] = [
        (b":method", b"POST"),
        (b":path", b"/v1/chat/completions"),
        (b":authority", LISTED_HOST.as_bytes()),
        (b"authorization", bearer.as_bytes()),
        (b"content-type", b"application/json"),
    ];
    let (mut exchange, _) = Exchange::begin(gate, Headers(&pairs), true, NOW, 1);
    let step = exchange.body(gate, BODY, NOW);
    assert!(matches!(step, Step::Swap(_)), "{step:?}");
    let step = exchange.swapped(gate, Ok(Vec::new()), NOW);
    assert!(matches!(step, Step::Forward(_)), "{step:?}");
    let head = exchange.response_head(Headers(&[
        (b":status", b"200"),
        (b"content-type", content_type.as_bytes()),
    ]));
    (exchange, head.hold)
}

fn event(text: &str) -> String {
    let mut quoted = String::new();
    json::quote(text, &mut quoted);
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":{quoted}}}}}]}}\n\n")
}

/// What comes of a stream that arrives in chunks of so many bytes, and whether it was cut.
fn streamed(gate: &mut Gate, stream: &str, chunk_bytes: usize) -> (String, bool, Finished) {
    let (mut exchange, hold) = answered(gate, "text/event-stream");
    assert_eq!(hold, None);
    let mut out = Vec::new();
    let mut cut = false;
    for chunk in stream.as_bytes().chunks(chunk_bytes) {
        match exchange.response_chunk(gate, chunk, false) {
            Output::Pass => out.extend_from_slice(chunk),
            Output::Replace(bytes) => out.extend(bytes),
            Output::Cut(bytes) => {
                out.extend(bytes);
                cut = true;
                break;
            }
            Output::Answer(_) => panic!("a stream is answered"),
        }
    }
    if !cut {
        match exchange.response_chunk(gate, b"", true) {
            Output::Pass => {}
            Output::Replace(bytes) => out.extend(bytes),
            Output::Cut(bytes) => {
                out.extend(bytes);
                cut = true;
            }
            Output::Answer(_) => panic!("a stream is answered"),
        }
    }
    let finished = exchange.finish(End::Complete, NOW);
    (String::from_utf8(out).unwrap(), cut, finished)
}

/// The text that a client makes of it.
fn told(stream: &str) -> String {
    let mut reader = Reader::default();
    reader.push(stream.as_bytes());
    let mut text = String::new();
    while let Some(Block::Event(event)) = reader.next_block() {
        if let Ok(doc) = json::parse(&event.data) {
            let choice = doc.root().get("choices").and_then(|all| all.items().next());
            let delta = choice.and_then(|choice| choice.get("delta"));
            let content = delta.and_then(|delta| delta.get("content")?.as_str());
            text += &content.unwrap_or_default();
        }
    }
    assert_eq!(reader.pending(), b"", "half an event goes out");
    text
}

#[test]
fn a_secret_in_pieces_is_stopped_before_any_of_it_is_out() {
    let text = "it is key-abcdefgh, remember";
    let mut gate = searching(&["key-[a-z]{8}"], false);
    for first in 0..text.len() {
        for second in [first, first + 1, (first + 7).min(text.len())] {
            let pieces = [&text[..first], &text[first..second], &text[second..]];
            let stream: String = pieces.iter().map(|piece| event(piece)).collect();
            for chunk_bytes in [1, 64, 4_096] {
                let (out, cut, finished) = streamed(&mut gate, &stream, chunk_bytes);
                let told = told(&out);
                assert!(cut, "{pieces:?}");
                assert!("it is ".starts_with(&told), "{told:?} is out of {pieces:?}");
                assert!(out.ends_with("\"code\":\"data.sensitive_patterns[0]\"}}\n\n"));
                let record = String::from_utf8(finished.record).unwrap();
                assert!(record.contains("\"outcome\":\"deny\""), "{record}");
                assert!(!record.contains("key-"), "{record}");
            }
        }
    }
}

#[test]
fn what_is_taken_out_is_taken_out_of_the_text_that_pieces_make() {
    let text = "a key-abcdefgh, key-ijklmnopé key-short";
    let expected = "a [REDACTED], [REDACTED]é key-short";
    let mut gate = searching(&["key-[a-z]{8}"], true);
    let cuts: Vec<usize> = (0..text.len())
        .filter(|at| text.is_char_boundary(*at))
        .collect();
    for (place, first) in cuts.iter().enumerate() {
        for second in cuts.iter().skip(place).step_by(5) {
            let pieces = [&text[..*first], &text[*first..*second], &text[*second..]];
            let stream: String = pieces.iter().map(|piece| event(piece)).collect();
            let (out, cut, finished) = streamed(&mut gate, &stream, 100);
            assert!(!cut);
            assert_eq!(told(&out), expected, "{pieces:?}");
            let record = String::from_utf8(finished.record).unwrap();
            assert!(record.contains("\"redacted_answer\":2"), "{record}");
        }
    }
}

#[test]
fn what_has_nothing_in_it_passes_byte_for_byte() {
    let stream = [
        ": hello\r\n\r\n",
        &event("nothing, "),
        "event: x\ndata: {\"choices\" : [ {\"index\":0,\ndata: \"delta\":{\"content\":\"ke\\u0079-ab\"}} ]}\nid: 4\n\n",
        &event("c. Nothing."),
        "data: no json\n\n",
        "data: [DONE]\n\n",
    ]
    .concat();
    for redact in [false, true] {
        let mut gate = searching(&["key-[a-z]{8}", r"[a-z]+@[a-z]+\.com"], redact);
        for chunk_bytes in [1, 3, 50, 10_000] {
            let (out, cut, _) = streamed(&mut gate, &stream, chunk_bytes);
            assert_eq!((out.as_str(), cut), (stream.as_str(), false));
        }
    }
}

#[test]
fn an_event_waits_only_while_a_match_may_be_under_way() {
    let mut gate = searching(&["key-[a-z]{8}"], true);
    let (mut exchange, _) = answered(&mut gate, "text/event-stream");
    let mut next = |text: &str| match exchange.response_chunk(&gate, event(text).as_bytes(), false)
    {
        Output::Pass => text.to_string(),
        Output::Replace(bytes) => told(std::str::from_utf8(&bytes).unwrap()),
        other => panic!("{other:?}"),
    };
    assert_eq!(next("At once. "), "At once. ");
    assert_eq!(next("A key"), "");
    assert_eq!(next("hole. "), "A keyhole. ");
    assert_eq!(next("key-abcdef"), "");
    assert_eq!(next("gh"), "");
    // The match might go on; an automaton says that it is over one byte late.
    assert_eq!(next("."), "");
    assert_eq!(next(" "), "[REDACTED]. ");
}

#[test]
fn a_match_without_an_end_does_not_hold_back_for_ever() {
    let mut gate = searching(&["(?s)begin.*end"], true);
    let piece = event(&"x".repeat(1_000));
    // Less than 256 KiB, then more.
    let stream = [event("begin"), piece.repeat(240), event("end")].concat();
    let (out, _, _) = streamed(&mut gate, &stream, 10_000);
    assert_eq!(told(&out), "[REDACTED]", "{out}");
    let stream = [event("begin"), piece.repeat(260), event("end")].concat();
    let (out, cut, _) = streamed(&mut gate, &stream, 10_000);
    assert!(cut && out.contains("data.unsearchable"), "{out}");
    assert_eq!(told(&out), "");
}

#[test]
fn an_answer_of_one_piece_is_held_up_to_the_cap() {
    let mut gate = searching(&["key-[a-z]{8}"], false);
    let (mut exchange, hold) = answered(&mut gate, "application/json");
    assert_eq!(hold, Some(gate.config.body_cap_bytes));
    assert!(exchange.searches_answer());
    let Output::Answer(reply) = exchange.response_over_cap() else {
        panic!("it goes on");
    };
    assert_eq!(reply.status, 403);
    assert!(
        reply.body.contains("response.body_too_large"),
        "{}",
        reply.body
    );
    assert!(!exchange.wants_response());
    // Whatever comes after that does not go out.
    assert_eq!(
        exchange.response_chunk(&gate, b"more", true),
        Output::Cut(Vec::new())
    );
}

#[test]
fn a_stream_that_outruns_what_was_reserved_is_cut() {
    let mut gate = searching(&[], false);
    // 5,000 tokens were reserved; none has more than 128 bytes.
    let fits = event(&"x".repeat(5_000 * 128));
    let (out, cut, _) = streamed(&mut gate, &fits, 10_000);
    assert_eq!((out.as_str(), cut), (fits.as_str(), false));
    let beyond = event(&"x".repeat(128));
    let stream = [fits.as_str(), &beyond, &event("more"), &usage(9_999)].concat();
    let last = "the answer goes on beyond the 5000 tokens that were reserved";
    // The same event is the last, however the bytes come, and nothing behind it is counted.
    let whole = stream.len();
    for size in [97, fits.len() - 3, fits.len(), fits.len() + 9, whole] {
        let (out, cut, finished) = streamed(&mut gate, &stream, size);
        assert!(cut, "in pieces of {size}");
        let (before, after) = out.split_at(fits.len() + beyond.len());
        assert!(before == [fits.as_str(), &beyond].concat(), "{size}");
        assert!(after.contains(last) && !after.contains("more"), "{after}");
        let record = String::from_utf8(finished.record).unwrap();
        assert!(record.contains("\"end\":\"cut\""), "{record}");
        assert!(record.contains("\"output_tokens\":null"), "{record}");
    }
}

/// What a provider says at the end of a stream.
fn usage(output: u64) -> String {
    let usage =
        format!(r#"{{"choices":[],"usage":{{"prompt_tokens":5,"completion_tokens":{output}}}}}"#);
    format!("data: {usage}\n\n")
}
