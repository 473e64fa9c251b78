//! `tollgate meter` prints what every recorded response means, unknown as null, and refuses only what it cannot read.

use serde_json::{Value, json};
use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

fn meter(args: &[&str], response: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .arg("meter")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A child that refused its arguments does not read its input.
    let _ = child.stdin.take().unwrap().write_all(response);
    child.wait_with_output().unwrap()
}

fn report(args: &[&str], response: &[u8]) -> Value {
    let output = meter(&[args, &["--json"]].concat(), response);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn samples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/providers")
}

/// A request file in the test's own scratch folder.
fn request(name: &str, content: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, content).unwrap();
    path.into_os_string().into_string().unwrap()
}

#[test]
fn every_sample_is_reported() {
    let expected = std::fs::read(samples().join("expected.json")).unwrap();
    let expected: serde_json::Map<String, Value> = serde_json::from_slice(&expected).unwrap();
    assert!(expected.len() > 20);
    for (file, expected) in expected {
        let (provider, _) = file.split_once('/').unwrap();
        let content_type = if file.ends_with(".sse") {
            "text/event-stream; charset=utf-8"
        } else {
            "application/json"
        };
        let response = std::fs::read(samples().join(&file)).unwrap();
        let complete = expected["complete"].as_bool().unwrap();
        assert_eq!(
            report(&["--content-type", content_type], &response),
            json!({
                "provider": provider,
                "model": expected["model"],
                "input_tokens": expected["input_tokens"],
                "output_tokens": expected["output_tokens"],
                "cached_input_tokens": expected["cached_input_tokens"],
                "cache_write_tokens": expected["cache_write_tokens"],
                "reasoning_tokens": expected["reasoning_tokens"],
                "cost_nano_usd": expected["cost_nano_usd"],
                "estimated": !complete,
            }),
            "{file}"
        );
    }
}

#[test]
fn the_media_type_is_compared_without_case_and_parameters() {
    let response = std::fs::read(samples().join("openai/stream-usage.sse")).unwrap();
    for content_type in [
        "text/event-stream",
        "Text/Event-Stream",
        " text/event-stream ;charset=UTF-8",
    ] {
        let report = report(&["--content-type", content_type], &response);
        assert_eq!(report["input_tokens"], 31, "{content_type}");
    }
    for content_type in [
        "",
        "text/html",
        "json",
        "application/x-ndjson",
        "text/event-streams",
    ] {
        let output = meter(&["--content-type", content_type], &response);
        assert_eq!(output.status.code(), Some(2), "{content_type}");
        assert!(output.stdout.is_empty());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.contains("give `application/json` or `text/event-stream`"),
            "{said}"
        );
    }
    assert_eq!(
        meter(&[], b"").status.code(),
        Some(2),
        "the type is required"
    );
}

#[test]
fn a_request_names_what_the_response_does_not() {
    let response = br#"{"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":10}}"#;
    let body = request("body.json", r#"{"model":"gpt-4o-mini","messages":[]}"#);
    let with_body = report(
        &["--content-type", "application/json", "--request", &body],
        response,
    );
    assert_eq!(with_body["model"], "gpt-4o-mini");
    // 1000 × 150 + 10 × 600 nano-USD.
    assert_eq!(with_body["cost_nano_usd"], 156_000);

    let whole = request(
        "whole.json",
        r#"{"method":"POST","url":"https://api.anthropic.com/v1/messages?beta=true","headers":{},
            "body":"{\"model\":\"claude-haiku-4-5\"}"}"#,
    );
    // The response shows nothing: broken off at once.
    let broken = report(
        &["--content-type", "text/event-stream", "--request", &whole],
        b"event: mess",
    );
    assert_eq!(broken["provider"], "anthropic");
    assert_eq!(broken["model"], "claude-haiku-4-5");
    assert_eq!(broken["output_tokens"], Value::Null);
    assert_eq!(broken["cost_nano_usd"], Value::Null);
    assert_eq!(broken["estimated"], true);

    let object = request(
        "object.json",
        r#"{"method":"POST","url":"https://llm.example/v1/chat/completions","body":{"model":"claude-haiku-4-5"}}"#,
    );
    let compatible = report(
        &["--content-type", "application/json", "--request", &object],
        b"{}",
    );
    assert_eq!(
        compatible["provider"], "openai",
        "the path says whose format it is"
    );
}

#[test]
fn a_response_that_says_nothing_is_unknown_and_no_error() {
    for response in [&b""[..], b"{", b"<html>", b"\xff\xfe", b"[1]"] {
        let report = report(&["--content-type", "application/json"], response);
        let object = report.as_object().unwrap();
        assert_eq!(object.len(), 9);
        assert_eq!(report["estimated"], true);
        let unknown = object.iter().filter(|(_, value)| value.is_null()).count();
        assert_eq!(unknown, 8, "{report}");
    }
}

#[test]
fn a_request_that_cannot_be_read_is_refused() {
    let repeated = request("repeated.json", r#"{"model":"a","model":"b"}"#);
    for file in [repeated.as_str(), "/no/such/file"] {
        let output = meter(
            &["--content-type", "application/json", "--request", file],
            b"{}",
        );
        assert_eq!(output.status.code(), Some(2), "{file}");
        assert!(String::from_utf8(output.stderr).unwrap().contains(file));
    }
}

#[test]
fn people_get_lines() {
    let response = std::fs::read(samples().join("openai/stream-truncated.sse")).unwrap();
    let output = meter(&["--content-type", "text/event-stream"], &response);
    let expected = "\
provider             openai
model                gpt-4o-mini-2024-07-18
input tokens         unknown
output tokens        unknown
cached input tokens  unknown
cache write tokens   unknown
reasoning tokens     unknown
cost                 unknown
estimated            yes
";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);

    let response = std::fs::read(samples().join("anthropic/message.json")).unwrap();
    let output = meter(&["--content-type", "application/json"], &response);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("cost                 $0.000042\n"), "{text}");

    let hostile = br#"{"choices":[],"model":"\u001b[2Jm","usage":{}}"#;
    let output = meter(&["--content-type", "application/json"], hostile);
    assert!(!output.stdout.contains(&0x1b));
}
