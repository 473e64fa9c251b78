//! The stand-in says what the providers say. The prompt of every call here has three words, the reply eight unless asked otherwise.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use tollgate_stand_in::requests::Requests;
use tower::ServiceExt as _;

const KEY: &str = "sk-test-not-a-key";

struct Answer {
    status: u16,
    headers: axum::http::HeaderMap,
    /// `None` when the connection broke.
    body: Option<Vec<u8>>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(self.body.as_deref().expect("a whole body")).expect("UTF-8")
    }

    fn json(&self) -> Value {
        serde_json::from_str(self.text()).expect("a JSON document")
    }

    /// The data of each event, in order.
    fn events(&self) -> Vec<Value> {
        self.text()
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .filter_map(|data| serde_json::from_str(data).ok())
            .collect()
    }
}

fn call(path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let router = tollgate_stand_in::router(KEY, Requests::default());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = router
            .oneshot(request.body(Body::from(body.to_string())).unwrap())
            .await
            .unwrap();
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX)
            .await
            .ok()
            .map(|bytes| bytes.to_vec());
        Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        }
    })
}

fn openai(extra_headers: &[(&str, &str)], extra: Value) -> Answer {
    let mut body =
        json!({"model": "gpt-5", "messages": [{"role": "user", "content": "three words here"}]});
    merge(&mut body, extra);
    let authorization = format!("Bearer {KEY}");
    call(
        "/v1/chat/completions",
        &[&[("authorization", authorization.as_str())], extra_headers].concat(),
        &body,
    )
}

fn anthropic(extra_headers: &[(&str, &str)], extra: Value) -> Answer {
    let mut body = json!({"model": "claude-sonnet-5", "max_tokens": 100, "messages": [{"role": "user", "content": "three words here"}]});
    merge(&mut body, extra);
    call(
        "/v1/messages",
        &[
            &[("x-api-key", KEY), ("anthropic-version", "2023-06-01")],
            extra_headers,
        ]
        .concat(),
        &body,
    )
}

fn merge(into: &mut Value, extra: Value) {
    if let (Some(into), Value::Object(extra)) = (into.as_object_mut(), extra) {
        into.extend(extra);
    }
}

#[test]
fn a_completion_counts_words() {
    let answer = openai(&[], json!({}));
    assert_eq!(answer.status, 200);
    let body = answer.json();
    assert_eq!(
        body["choices"][0]["message"]["content"],
        "The gate let this call through to me."
    );
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let usage = &body["usage"];
    assert_eq!(
        (
            &usage["prompt_tokens"],
            &usage["completion_tokens"],
            &usage["total_tokens"]
        ),
        (&3.into(), &8.into(), &11.into())
    );
}

#[test]
fn several_choices_cost_several_times() {
    let body = openai(&[("x-stand-in-reasoning-tokens", "2")], json!({"n": 3})).json();
    assert_eq!(body["choices"].as_array().map(Vec::len), Some(3));
    // 3 × (8 said + 2 thought), of which 3 × 2 thought.
    assert_eq!(body["usage"]["completion_tokens"], 30);
    assert_eq!(
        body["usage"]["completion_tokens_details"]["reasoning_tokens"],
        6
    );
}

#[test]
fn a_stream_reports_usage_only_when_asked() {
    let silent = openai(&[], json!({"stream": true}));
    assert!(silent.text().ends_with("data: [DONE]\n\n"));
    assert!(!silent.text().contains("usage"), "{}", silent.text());

    let events = openai(
        &[],
        json!({"stream": true, "stream_options": {"include_usage": true}}),
    )
    .events();
    // A role, eight words, a finish reason, the usage.
    assert_eq!(events.len(), 11);
    let (last, others) = events.split_last().unwrap();
    assert!(
        others
            .iter()
            .all(|chunk| chunk.get("usage") == Some(&Value::Null))
    );
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["total_tokens"], 11);
    let said: String = others
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(said, "The gate let this call through to me.");
}

#[test]
fn max_tokens_ends_the_reply() {
    let body = openai(&[], json!({"max_completion_tokens": 2})).json();
    assert_eq!(body["choices"][0]["message"]["content"], "The gate");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["usage"]["completion_tokens"], 2);
}

#[test]
fn a_message_counts_the_cache_apart_from_the_input() {
    let body = anthropic(
        &[
            ("x-stand-in-cached-tokens", "1"),
            ("x-stand-in-cache-write-tokens", "1"),
        ],
        json!({"system": "two more"}),
    )
    .json();
    let usage = &body["usage"];
    // Five words in all: one read, one written, three left.
    assert_eq!(usage["input_tokens"], 3);
    assert_eq!(
        (
            &usage["cache_read_input_tokens"],
            &usage["cache_creation_input_tokens"]
        ),
        (&1.into(), &1.into())
    );
    assert_eq!(usage["output_tokens"], 8);
    assert_eq!(body["stop_reason"], "end_turn");
}

#[test]
fn a_message_stream_starts_with_the_input_and_ends_with_the_output() {
    let answer = anthropic(&[], json!({"stream": true}));
    let events = answer.events();
    let types: Vec<&str> = events
        .iter()
        .filter_map(|event| event["type"].as_str())
        .collect();
    assert_eq!(types[..3], ["message_start", "content_block_start", "ping"]);
    assert_eq!(
        types[11..],
        ["content_block_stop", "message_delta", "message_stop"]
    );
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], 3);
    assert_eq!(events[0]["message"]["usage"]["output_tokens"], 1);
    assert_eq!(events[12]["usage"]["output_tokens"], 8);
    assert!(
        answer.text().starts_with("event: message_start\ndata: {"),
        "{}",
        answer.text()
    );
}

#[test]
fn without_its_key_a_provider_answers_in_its_own_shape() {
    let body = json!({"model": "m", "messages": []});
    let answer = call(
        "/v1/chat/completions",
        &[("authorization", "Bearer agent")],
        &body,
    );
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (401, &"invalid_api_key".into())
    );
    let answer = call(
        "/v1/messages",
        &[("x-api-key", "agent"), ("anthropic-version", "2023-06-01")],
        &body,
    );
    assert_eq!(
        (answer.status, &answer.json()["error"]["type"]),
        (401, &"authentication_error".into())
    );
    let both = [
        ("x-api-key", KEY),
        ("authorization", "Bearer agent"),
        ("anthropic-version", "2023-06-01"),
    ];
    assert_eq!(
        call("/v1/messages", &both, &body).status,
        401,
        "the agent's credential came through beside the key"
    );
    let answer = call("/v1/other", &[], &body);
    assert_eq!(
        (answer.status, &answer.json()["error"]["type"]),
        (404, &"invalid_request_error".into())
    );
}

#[test]
fn knobs_break_what_they_say_they_break() {
    let plain = openai(&[], json!({}));
    let split = openai(&[("x-stand-in-split", "7")], json!({}));
    assert_eq!(split.body, plain.body);
    assert_eq!(
        openai(
            &[("x-stand-in-split", "7"), ("x-stand-in-cut-after", "3")],
            json!({})
        )
        .body,
        None
    );
    assert_eq!(
        openai(&[("x-stand-in-garbage", "1")], json!({})).body,
        Some(vec![0xfe; 64])
    );
    let gzip = openai(&[("x-stand-in-gzip", "1")], json!({}));
    assert_eq!(gzip.headers["content-encoding"], "gzip");
    assert_eq!(gzip.body.unwrap()[..2], [0x1f, 0x8b]);
    let huge = openai(&[("x-stand-in-pad", "3000000")], json!({}));
    assert!(huge.text().len() > 3_000_000);
    assert_eq!(huge.json()["usage"]["completion_tokens"], 9);
    let limited = anthropic(&[("x-stand-in-status", "429")], json!({}));
    assert_eq!(
        (limited.status, &limited.json()["error"]["type"]),
        (429, &"rate_limit_error".into())
    );
    assert_eq!(limited.headers["retry-after"], "1");
    assert_eq!(
        openai(&[("x-stand-in-no-usage", "1")], json!({}))
            .json()
            .get("usage"),
        None
    );
}

#[test]
fn tools_answer_with_their_arguments() {
    let rpc = |method: &str, params: Value| {
        call(
            "/mcp",
            &[],
            &json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}),
        )
        .json()
    };
    assert_eq!(
        rpc("initialize", json!({"protocolVersion": "2025-06-18"}))["result"]["protocolVersion"],
        "2025-06-18"
    );
    assert_eq!(
        rpc("tools/list", json!({}))["result"]["tools"][0]["name"],
        "echo"
    );
    let called = rpc("tools/call", json!({"name": "echo", "arguments": {"a": 1}}));
    assert_eq!(
        (&called["id"], &called["result"]["content"][0]["text"]),
        (&7.into(), &r#"{"a":1}"#.into())
    );
    assert_eq!(
        rpc("tools/call", json!({"name": "no_such"}))["error"]["code"],
        -32602
    );
    assert_eq!(rpc("no/such", json!({}))["error"]["code"], -32601);
}

#[test]
fn it_remembers_what_it_was_sent() {
    let stand_in = tollgate_stand_in::StandIn::start(([127, 0, 0, 1], 0).into(), KEY).unwrap();
    let mut connection = std::net::TcpStream::connect(stand_in.address()).unwrap();
    let request = "POST /v1/other?q=1 HTTP/1.1\r\nhost: h\r\nX-Twice: a\r\nX-Twice: b\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi";
    std::io::Write::write_all(&mut connection, request.as_bytes()).unwrap();
    std::io::read_to_string(&mut connection).unwrap();
    let [received] = &stand_in.requests()[..] else {
        panic!("one request, not {:?}", stand_in.requests())
    };
    assert_eq!(
        (
            received.method.as_str(),
            received.path.as_str(),
            received.body.as_str()
        ),
        ("POST", "/v1/other?q=1", "hi")
    );
    assert_eq!(received.header("x-twice").collect::<Vec<_>>(), ["a", "b"]);
    assert!(received.complete);
    stand_in.forget_requests();
    assert_eq!(stand_in.requests(), []);
}
