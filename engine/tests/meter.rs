//! The meter reads the same from every recorded response however it is cut, and changes no byte but the frame it was told
//! to hide.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use tollgate_engine::meter::{Fed, Framing, MAX_JSON_BYTES, Meter, Metered, Provider, Usage};
use tollgate_engine::{price, sse};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    model: Option<String>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cached_input_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
    cache_write_long_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
    complete: bool,
    failed: bool,
    output_content_bytes: u64,
    /// By the built-in price table; `null` where the table does not know the model or the usage is unknown.
    cost_nano_usd: Option<u64>,
}

impl Expected {
    fn metered(&self) -> Metered {
        Metered {
            usage: Usage {
                input_tokens: self.input_tokens,
                output_tokens: self.output_tokens,
                cached_input_tokens: self.cached_input_tokens,
                cache_write_tokens: self.cache_write_tokens,
                cache_write_long_tokens: self.cache_write_long_tokens,
                reasoning_tokens: self.reasoning_tokens,
            },
            model: self.model.clone(),
            complete: self.complete,
            failed: self.failed,
            output_content_bytes: self.output_content_bytes,
            counts_all: true,
            rest: Vec::new(),
        }
    }
}

struct Sample {
    name: String,
    provider: Provider,
    framing: Framing,
    bytes: Vec<u8>,
    expected: Expected,
}

fn samples() -> Vec<Sample> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/providers");
    let expected = std::fs::read(folder.join("expected.json")).unwrap();
    let expected: BTreeMap<String, Expected> = serde_json::from_slice(&expected).unwrap();

    let mut on_disk: Vec<String> = Vec::new();
    for provider in ["openai", "anthropic"] {
        for entry in std::fs::read_dir(folder.join(provider)).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            on_disk.push(format!("{provider}/{file}"));
        }
    }
    on_disk.sort();
    let listed: Vec<String> = expected.keys().cloned().collect();
    assert_eq!(
        on_disk, listed,
        "every sample has an expectation, and the other way round"
    );

    let sample = |(name, expected): (String, Expected)| Sample {
        provider: if name.starts_with("openai/") {
            Provider::OpenAiChat
        } else {
            Provider::AnthropicMessages
        },
        framing: if name.ends_with(".sse") {
            Framing::Sse
        } else {
            Framing::Json
        },
        bytes: std::fs::read(folder.join(&name)).unwrap(),
        name,
        expected,
    };
    expected.into_iter().map(sample).collect()
}

/// Feeds the chunks; what was metered, and the bytes a client gets.
fn meter<'a>(
    provider: Provider,
    framing: Framing,
    hide: bool,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Metered, Vec<u8>) {
    let mut meter = Meter::new(provider, framing, hide);
    let mut sent = Vec::new();
    for chunk in chunks {
        match meter.feed(chunk) {
            Fed::All => sent.extend_from_slice(chunk),
            Fed::Instead(bytes) => sent.extend_from_slice(&bytes),
            Fed::Until(_) => panic!("it may go on"),
        }
    }
    let mut metered = meter.finish();
    sent.append(&mut metered.rest);
    (metered, sent)
}

#[test]
fn every_sample_means_what_is_expected_of_it() {
    for sample in samples() {
        let (metered, sent) = meter(sample.provider, sample.framing, false, [&sample.bytes[..]]);
        assert_eq!(metered, sample.expected.metered(), "{}", sample.name);
        assert_eq!(sent, sample.bytes, "{}", sample.name);
    }
}

#[test]
fn cuts_do_not_matter() {
    for sample in samples() {
        let bytes = &sample.bytes;
        for hide in [false, true] {
            let run = |chunks: &mut dyn Iterator<Item = &[u8]>| {
                let chunks: Vec<&[u8]> = chunks.collect();
                meter(sample.provider, sample.framing, hide, chunks)
            };
            let whole = run(&mut [&bytes[..]].into_iter());
            assert_eq!(whole.0, sample.expected.metered(), "{}", sample.name);
            for cut in 0..=bytes.len() {
                let (left, right) = bytes.split_at(cut);
                let two = run(&mut [left, right].into_iter());
                assert_eq!(two, whole, "{} cut at {cut}, hiding: {hide}", sample.name);
            }
            assert_eq!(
                run(&mut bytes.chunks(1)),
                whole,
                "{} byte by byte",
                sample.name
            );
            assert_eq!(
                run(&mut bytes.chunks(7)),
                whole,
                "{} by 7 bytes",
                sample.name
            );
        }
    }
}

#[test]
fn only_the_usage_frame_is_hidden() {
    let mut hidden = Vec::new();
    for sample in samples() {
        let (_, sent) = meter(sample.provider, sample.framing, true, [&sample.bytes[..]]);
        if sent == sample.bytes {
            continue;
        }
        // The frame is the one whose JSON starts its choices with `[]`; cut it out of the text by hand.
        let text = String::from_utf8(sample.bytes).unwrap();
        let at = text.rfind("\"choices\":[],\"usage\":{").unwrap();
        let start = text[..at].rfind("data: ").unwrap();
        let end = at + text[at..].find("data: [DONE]").unwrap();
        assert_eq!(
            String::from_utf8(sent).unwrap(),
            [&text[..start], &text[end..]].concat(),
            "{}",
            sample.name
        );
        hidden.push(sample.name);
    }
    let expected = [
        "openai/stream-azure.sse",
        "openai/stream-reasoning.sse",
        "openai/stream-tools.sse",
        "openai/stream-usage-crlf.sse",
        "openai/stream-usage.sse",
    ];
    assert_eq!(hidden, expected);
}

#[test]
fn whole_events_are_not_held_back_while_hiding() {
    let event: &[u8] = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let mut meter = Meter::new(Provider::OpenAiChat, Framing::Sse, true);
    assert_eq!(meter.feed(event), Fed::All);
    assert_eq!(meter.feed(b"data: {"), Fed::Instead(vec![]));
    assert_eq!(
        meter.feed(b"}\n\nda"),
        Fed::Instead(b"data: {}\n\n".to_vec())
    );
    assert_eq!(meter.finish().rest, b"da");
}

#[test]
fn nothing_is_held_back_without_hiding() {
    let mut meter = Meter::new(Provider::OpenAiChat, Framing::Sse, false);
    assert_eq!(meter.feed(b"data: {"), Fed::All);
    assert_eq!(meter.finish().rest, b"");
}

#[test]
fn the_provider_shows_in_the_response() {
    for sample in samples() {
        let detected = Provider::detect(sample.framing, &sample.bytes);
        assert_eq!(detected, Some(sample.provider), "{}", sample.name);
    }
    assert_eq!(Provider::detect(Framing::Json, b"{}"), None);
    assert_eq!(Provider::detect(Framing::Json, b"<html>"), None);
    assert_eq!(Provider::detect(Framing::Sse, b"data: [DONE]\n\n"), None);
}

fn openai(body: &str) -> Metered {
    meter(
        Provider::OpenAiChat,
        Framing::Json,
        false,
        [body.as_bytes()],
    )
    .0
}

fn anthropic(usage: &str) -> Usage {
    let body = format!("{{\"type\":\"message\",\"content\":[],\"usage\":{usage}}}");
    meter(
        Provider::AnthropicMessages,
        Framing::Json,
        false,
        [body.as_bytes()],
    )
    .0
    .usage
}

#[test]
fn what_is_no_plain_count_is_unknown() {
    for odd in [
        "-1",
        "1.5",
        "1e3",
        "18446744073709551616",
        "\"7\"",
        "true",
        "[7]",
        "null",
        "{}",
    ] {
        let body = format!("{{\"usage\":{{\"prompt_tokens\":{odd},\"completion_tokens\":3}}}}");
        let metered = openai(&body);
        assert_eq!(metered.usage.input_tokens, None, "{odd}");
        assert_eq!(metered.usage.output_tokens, Some(3), "{odd}");
        assert!(!metered.complete, "{odd}");
    }
    let most =
        openai("{\"usage\":{\"prompt_tokens\":18446744073709551615,\"completion_tokens\":0}}");
    assert_eq!(most.usage.input_tokens, Some(u64::MAX));
    assert_eq!(most.usage.output_tokens, Some(0), "a stated zero is known");
    assert!(most.complete);
    for odd in ["[]", "7", "\"x\"", "{}"] {
        assert_eq!(
            openai(&format!("{{\"usage\":{odd}}}")).usage,
            Usage::default(),
            "{odd}"
        );
    }
}

#[test]
fn a_sum_with_an_unreadable_part_is_unknown() {
    let whole = anthropic(
        r#"{"input_tokens":1,"cache_read_input_tokens":20,"cache_creation_input_tokens":300,"output_tokens":5}"#,
    );
    assert_eq!(whole.input_tokens, Some(321));
    let null = anthropic(r#"{"input_tokens":1,"cache_read_input_tokens":null,"output_tokens":5}"#);
    assert_eq!(
        (null.input_tokens, null.cached_input_tokens),
        (Some(1), None)
    );
    let odd = anthropic(r#"{"input_tokens":1,"cache_read_input_tokens":-20,"output_tokens":5}"#);
    assert_eq!((odd.input_tokens, odd.output_tokens), (None, Some(5)));
    let overflow = anthropic(
        r#"{"input_tokens":18446744073709551615,"cache_read_input_tokens":1,"output_tokens":5}"#,
    );
    assert_eq!(overflow.input_tokens, None);
}

#[test]
fn a_body_that_cannot_be_read_counts_with_all_its_bytes() {
    for body in [
        "",
        "{",
        "<html>busy</html>",
        r#"{"usage":{"prompt_tokens":1,"completion_tokens":1},"usage":{"prompt_tokens":0,"completion_tokens":0}}"#,
    ] {
        let metered = openai(body);
        assert_eq!(metered.usage, Usage::default(), "{body}");
        assert_eq!(metered.output_content_bytes, body.len() as u64, "{body}");
        assert!(!metered.complete && !metered.failed, "{body}");
    }
}

#[test]
fn a_json_body_over_the_limit_is_passed_and_counted() {
    let usage = r#"{"usage":{"prompt_tokens":1,"completion_tokens":1},"x":""#;
    let exact = format!(
        "{usage}{}\"}}",
        "x".repeat(MAX_JSON_BYTES - usage.len() - 2)
    );
    assert_eq!(exact.len(), MAX_JSON_BYTES);
    assert_eq!(openai(&exact).usage.input_tokens, Some(1));

    let over = exact + " ";
    let chunks = over.as_bytes().chunks(100_000);
    let (metered, sent) = meter(Provider::OpenAiChat, Framing::Json, false, chunks);
    assert_eq!(metered.usage, Usage::default());
    assert_eq!(metered.output_content_bytes, over.len() as u64);
    assert_eq!(sent.len(), over.len());
}

#[test]
fn a_damaged_event_does_not_spoil_the_others() {
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"abc\"}}],\"choices\":1}\n\n\
                  data: not json\n\n\
                  data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2}}\n\n\
                  data: [DONE]\n\n";
    let (metered, _) = meter(
        Provider::OpenAiChat,
        Framing::Sse,
        false,
        [stream.as_bytes()],
    );
    assert_eq!(metered.usage.input_tokens, Some(4));
    assert!(metered.complete);
    // The data of the two damaged events: the one that repeats a key, and "not json".
    let repeated = "{\"choices\":[{\"delta\":{\"content\":\"abc\"}}],\"choices\":1}";
    assert_eq!(metered.output_content_bytes, repeated.len() as u64 + 8);
}

#[test]
fn an_oversize_event_is_passed_and_counted_while_hiding() {
    let long = format!("data: {}\n\n", "x".repeat(sse::MAX_EVENT_BYTES));
    let stream = format!("{long}data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":4}}}}\n\n");
    let chunks = stream.as_bytes().chunks(9_973);
    let (metered, sent) = meter(Provider::OpenAiChat, Framing::Sse, true, chunks);
    assert!(sent == long.as_bytes());
    assert_eq!(metered.usage.input_tokens, Some(4));
    assert_eq!(metered.output_content_bytes, long.len() as u64);
}

#[test]
fn counts_of_a_stream_are_cumulative() {
    let event = |json: &str| format!("data: {json}\n\n");
    let stream = [
        event(
            r#"{"type":"message_start","message":{"model":"m","usage":{"input_tokens":10,"output_tokens":1}}}"#,
        ),
        event(r#"{"type":"message_delta","delta":{},"usage":{"output_tokens":7}}"#),
        event(
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":12,"output_tokens":9}}"#,
        ),
    ];
    let (broken, _) = meter(
        Provider::AnthropicMessages,
        Framing::Sse,
        false,
        stream[..2].iter().map(|event| event.as_bytes()),
    );
    assert_eq!(
        (broken.usage.input_tokens, broken.usage.output_tokens),
        (Some(10), Some(7))
    );
    assert!(!broken.complete, "it was not the last count");
    let (whole, _) = meter(
        Provider::AnthropicMessages,
        Framing::Sse,
        false,
        stream.iter().map(|event| event.as_bytes()),
    );
    assert_eq!(
        (whole.usage.input_tokens, whole.usage.output_tokens),
        (Some(12), Some(9))
    );
    assert!(whole.complete);
}

#[test]
fn a_model_name_without_measure_is_none() {
    let named = |model: &str| openai(&format!("{{\"model\":\"{model}\"}}")).model;
    assert_eq!(named("gpt-4o").as_deref(), Some("gpt-4o"));
    assert_eq!(named(&"x".repeat(256)).unwrap().len(), 256);
    assert_eq!(named(&"x".repeat(257)), None);
    assert_eq!(named(""), None);
}

#[test]
fn every_sample_costs_what_is_expected_of_it() {
    let table = include_str!("../../policy/prices/models.json");
    let table: price::PriceTable = serde_json::from_str(table).unwrap();
    for sample in samples() {
        let metered = sample.expected.metered();
        let price = metered.model.as_deref().and_then(|model| table.find(model));
        let cost = price.and_then(|price| price::cost(&metered.usage, price));
        assert_eq!(cost, sample.expected.cost_nano_usd, "{}", sample.name);
    }
}
