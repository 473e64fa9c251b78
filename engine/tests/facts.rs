//! What a call says has one reading, and what has more than one is refused.

mod issuer;

use issuer::{document, payload};
use tollgate_engine::{
    bundle::{Document, Limit, Names, Payload, Scope, Texts},
    facts::{
        BodyKind, Dialect, Facts, Head, Headers, MEDIA_TOKENS, Route, Unreadable, Upstream,
        bodies_matter, normal_host, read_json,
    },
    json::{self, MAX_DEPTH},
    ledger::{Unit, Window},
    meter::Provider,
};

const ANYWHERE: Upstream = Upstream {
    host: None,
    llm: false,
};

fn llm() -> Upstream {
    Upstream {
        host: Some("api.openai.com".to_string()),
        llm: true,
    }
}

/// Reads a head; `headers` come after a `POST` to a path of a host.
fn head(path: &str, headers: &[(&str, &str)], upstream: &Upstream) -> Result<Head, Unreadable> {
    let mut pairs: Vec<(&[u8], &[u8])> = vec![
        (b":method", b"POST"),
        (b":path", path.as_bytes()),
        (b":authority", b"host.example"),
    ];
    pairs.extend(
        headers
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes())),
    );
    Head::read(Headers(&pairs), upstream)
}

fn raw_head(headers: &[(&str, &[u8])], upstream: &Upstream) -> Result<Head, &'static str> {
    let pairs: Vec<(&[u8], &[u8])> = headers
        .iter()
        .map(|(name, value)| (name.as_bytes(), *value))
        .collect();
    Head::read(Headers(&pairs), upstream).map_err(|why| why.rule)
}

#[test]
fn what_a_call_keeps_of_its_head_has_a_bound() {
    // A slash and so many letters: 8,192 bytes, and one more.
    let path = |letters: usize| format!("/{}", "a".repeat(letters));
    assert_eq!(
        head(&path(8_191), &[], &ANYWHERE).unwrap().path,
        path(8_191)
    );
    let refused = head(&path(8_192), &[], &ANYWHERE).unwrap_err();
    assert_eq!(refused.rule, "request.target");
}

#[test]
fn host_names() {
    for (authority, host) in [
        ("example.com", Some("example.com")),
        ("EXAMPLE.Com", Some("example.com")),
        ("example.com.", Some("example.com")),
        ("example.com:443", Some("example.com")),
        ("example.com.:443", Some("example.com")),
        ("my_service", Some("my_service")),
        ("xn--bcher-kva.example", Some("xn--bcher-kva.example")),
        ("127.0.0.1:8080", Some("127.0.0.1")),
        ("[::1]", Some("::1")),
        ("[::1]:443", Some("::1")),
        // One address, one spelling (RFC 5952).
        ("[0:0:0:0:0:0:0:1]", Some("::1")),
        ("[2001:DB8::0:1]", Some("2001:db8::1")),
        ("[::ffff:127.0.0.1]", Some("::ffff:127.0.0.1")),
        ("", None),
        (".", None),
        ("..", None),
        (".example.com", None),
        ("example..com", None),
        ("example.com..", None),
        ("example.com:", None),
        ("example.com:80:80", None),
        ("example.com:http", None),
        ("example.com:-1", None),
        ("user@example.com", None),
        ("example.com/path", None),
        ("example.com?", None),
        ("example.com#", None),
        ("example.com\\", None),
        ("exa mple.com", None),
        ("example.com ", None),
        ("example%2ecom", None),
        ("ex\u{e4}mple.com", None),
        ("example\u{3002}com", None),
        ("*.example.com", None),
        ("[", None),
        ("[]", None),
        ("[::1", None),
        ("::1", None),
        ("[::1]x", None),
        ("[::1]:", None),
        ("[::1]443", None),
        ("[fe80::1%25eth0]", None),
        // A name in brackets is no address, though all its letters are hexadecimal.
        ("[cafe.de]", None),
        ("[1.2.3.4]", None),
    ] {
        assert_eq!(normal_host(authority).as_deref(), host, "{authority}");
    }
    let long = |length: usize| [&"a.".repeat(length / 2), "b"].concat();
    assert!(normal_host(&long(252)).is_some());
    assert_eq!(normal_host(&long(254)), None);
}

#[test]
fn the_host_is_named_once() {
    let get: [(&str, &[u8]); 2] = [(":method", b"GET"), (":path", b"/")];
    let host = |more: &[(&str, &[u8])], upstream: &Upstream| {
        raw_head(&[&get, more].concat(), upstream).map(|head| head.host)
    };
    let found = |name: &str| Ok(name.to_string());
    assert_eq!(
        host(&[(":authority", b"a.example")], &ANYWHERE),
        found("a.example")
    );
    assert_eq!(
        host(&[("host", b"a.example:80")], &ANYWHERE),
        found("a.example")
    );
    assert_eq!(
        host(
            &[(":authority", b"a.example:443"), ("host", b"A.example")],
            &ANYWHERE
        ),
        found("a.example")
    );
    assert_eq!(
        host(
            &[(":authority", b"a.example"), ("host", b"b.example")],
            &ANYWHERE
        ),
        Err("request.host")
    );
    assert_eq!(
        host(&[(":authority", b"a.example"), ("host", b"?")], &ANYWHERE),
        Err("request.host")
    );
    assert_eq!(
        host(&[(":authority", b"?"), ("host", b"?")], &ANYWHERE),
        Err("request.host")
    );
    assert_eq!(host(&[], &ANYWHERE), Err("request.host"));
    for twice in ["host", "Host", ":authority"] {
        assert_eq!(
            host(&[(twice, b"a.example"), (twice, b"a.example")], &ANYWHERE),
            Err("request.repeated_header")
        );
    }
    // Where all calls go to one host, the caller does not choose it.
    assert_eq!(
        host(
            &[(":authority", b"a.example"), ("host", b"b.example")],
            &llm()
        ),
        found("api.openai.com")
    );
}

#[test]
fn headers_that_decide_come_once_and_are_text() {
    for name in [
        ":method",
        ":path",
        ":authority",
        "content-type",
        "Content-Type",
        "content-encoding",
        "content-length",
        "host",
        "mcp-method",
        "mcp-name",
    ] {
        let value = if name == ":path" { "/" } else { "x" };
        let once = if name.starts_with(':') { 1 } else { 2 };
        let headers = vec![(name, value); once];
        let refused = head("/", &headers, &llm()).map_err(|why| why.rule);
        assert_eq!(refused.err(), Some("request.repeated_header"), "{name}");
    }
    // Others may come as often as they like.
    assert!(head("/", &[("accept", "a"), ("accept", "b")], &llm()).is_ok());
    let not_text: [(&str, &[u8]); 3] =
        [(":method", b"GET"), (":path", b"/"), ("x-note", b"a\xffb")];
    assert_eq!(
        raw_head(&not_text, &llm()).err(),
        Some("request.header_encoding")
    );
}

#[test]
fn a_request_has_a_method_and_an_absolute_path() {
    for (method, path) in [
        (&b"GET"[..], &b""[..]),
        (b"GET", b"x"),
        (b"GET", b"*"),
        (b"GET", b"http://host.example/"),
        (b"", b"/"),
    ] {
        let headers = [(":method", method), (":path", path)];
        assert_eq!(raw_head(&headers, &llm()).err(), Some("request.target"));
    }
    assert_eq!(raw_head(&[], &llm()).err(), Some("request.target"));
    // CONNECT has no path: no tunnel through a gate.
    let connect: [(&str, &[u8]); 2] = [(":method", b"CONNECT"), (":authority", b"a.example:443")];
    assert_eq!(raw_head(&connect, &llm()).err(), Some("request.target"));
}

#[test]
fn content_types() {
    use BodyKind::{Encoded, Json, Opaque, Text, Unstated};
    let kind = |headers: &[(&str, &str)]| head("/", headers, &llm()).unwrap().body;
    for (content_type, body) in [
        ("application/json", Json),
        ("Application/JSON", Json),
        (" application/json ", Json),
        ("application/json; charset=utf-8", Json),
        ("application/json;charset=\"UTF-8\"", Json),
        ("application/json; Charset = utf-8", Json),
        ("application/json; charset=us-ascii", Json),
        ("application/json; boundary=x", Json),
        ("application/json; charset=utf-16", Opaque),
        ("application/json; charset=latin1", Opaque),
        ("application/json; charset", Opaque),
        ("application/json; charset=utf-8; charset=utf-7", Opaque),
        ("application/problem+json", Json),
        ("application/vnd.api+json", Json),
        ("text/plain", Text),
        ("text/event-stream; charset=utf-8", Text),
        ("text/plain; charset=utf-7", Opaque),
        ("application/jsonl", Opaque),
        ("application/x-ndjson", Opaque),
        ("application/x-www-form-urlencoded", Opaque),
        ("multipart/form-data; boundary=x", Opaque),
        ("application/octet-stream", Opaque),
        ("", Opaque),
        (";", Opaque),
        ("json", Opaque),
    ] {
        assert_eq!(
            kind(&[("content-type", content_type)]),
            body,
            "{content_type}"
        );
    }
    assert_eq!(kind(&[]), Unstated);
    // Two values in one line, as a proxy joins them, are two values.
    for joined in ["application/json, text/plain", ",", "text/plain,"] {
        let refused = head("/", &[("content-type", joined)], &llm());
        assert_eq!(refused.unwrap_err().rule, "request.repeated_header");
    }
    for (encoding, body) in [
        ("identity", Json),
        ("Identity", Json),
        ("gzip", Encoded),
        ("br", Encoded),
        ("", Encoded),
        ("identity, gzip", Encoded),
    ] {
        let headers = [
            ("content-type", "application/json"),
            ("content-encoding", encoding),
        ];
        assert_eq!(kind(&headers), body, "{encoding}");
    }
}

#[test]
fn routes_and_dialects() {
    use Route::{CountTokens, Llm, LlmUnknown, Plain};
    let openai = Llm(Provider::OpenAiChat);
    let anthropic = Llm(Provider::AnthropicMessages);
    for (path, at_llm, elsewhere) in [
        ("/v1/chat/completions", openai, openai),
        (
            "/openai/deployments/x/chat/completions?api-version=1",
            openai,
            openai,
        ),
        ("/v1/chat/completions#x", openai, openai),
        ("/v1/messages", anthropic, anthropic),
        ("/anthropic/v1/messages?beta=true", anthropic, anthropic),
        ("/v1/messages/count_tokens", CountTokens, CountTokens),
        ("/v1/messages/batches", LlmUnknown, Plain),
        ("/v1/responses", LlmUnknown, Plain),
        ("/v1/chat/completions/", LlmUnknown, Plain),
        ("/v1/chat/Completions", LlmUnknown, Plain),
        ("/v1/chat/%63ompletions", LlmUnknown, Plain),
        ("/?/v1/messages", LlmUnknown, Plain),
        ("/mcp", LlmUnknown, Plain),
        ("/", LlmUnknown, Plain),
    ] {
        assert_eq!(head(path, &[], &llm()).unwrap().route, at_llm, "{path}");
        assert_eq!(
            head(path, &[], &ANYWHERE).unwrap().route,
            elsewhere,
            "{path}"
        );
    }
    // What cannot generate is plain; every method that is not known to be harmless can.
    for (method, route) in [
        ("GET", Plain),
        ("HEAD", Plain),
        ("OPTIONS", Plain),
        ("get", openai),
        ("PUT", openai),
        ("QUERY", openai),
    ] {
        let headers: [(&str, &[u8]); 2] = [
            (":method", method.as_bytes()),
            (":path", b"/v1/chat/completions"),
        ];
        assert_eq!(raw_head(&headers, &llm()).unwrap().route, route, "{method}");
    }
    let dialect = |path: &str, headers: &[(&str, &str)], upstream: &Upstream| {
        head(path, headers, upstream).unwrap().dialect
    };
    assert_eq!(
        dialect("/v1/chat/completions", &[], &ANYWHERE),
        Dialect::OpenAi
    );
    assert_eq!(dialect("/v1/messages", &[], &ANYWHERE), Dialect::Anthropic);
    assert_eq!(dialect("/mcp", &[], &ANYWHERE), Dialect::Mcp);
    assert_eq!(dialect("/servers/git/mcp", &[], &llm()), Dialect::Mcp);
    assert_eq!(
        dialect("/rpc", &[("mcp-protocol-version", "2025-06-18")], &ANYWHERE),
        Dialect::Mcp
    );
    assert_eq!(
        dialect("/", &[("anthropic-version", "2023-06-01")], &llm()),
        Dialect::Anthropic
    );
    assert_eq!(dialect("/v1/models", &[], &llm()), Dialect::OpenAi);
    assert_eq!(dialect("/v1/models", &[], &ANYWHERE), Dialect::Problem);
}

#[test]
fn percent_decoding() {
    for (path, target) in [
        ("/a%20b", &b"/a b"[..]),
        ("/%41%6a%6A", b"/Ajj"),
        ("/a+b", b"/a+b"),
        ("/%2B", b"/+"),
        ("/%", b"/%"),
        ("/%4", b"/%4"),
        ("/%zz", b"/%zz"),
        ("/%4%41", b"/%4A"),
        ("/%%41", b"/%A"),
        // Once is what servers do; what comes out is not decoded again.
        ("/%2541", b"/%41"),
        ("/%ff%00", b"/\xff\x00"),
        ("/?a=%26&b#c", b"/?a=&&b#c"),
        ("/%+41", b"/%+41"),
        ("/\u{e9}", "/\u{e9}".as_bytes()),
    ] {
        let read = head(path, &[], &llm()).unwrap();
        assert_eq!(read.target, target, "{path}");
    }
    let read = head("/a/b?secret=1#c", &[], &llm()).unwrap();
    assert_eq!(read.path, "/a/b", "the query is nobody's business");
}

/// Reads a body of a call to `path`.
fn body_at(path: &str, upstream: &Upstream, body: &str) -> Result<Facts, &'static str> {
    let head = head(path, &[], upstream).unwrap();
    let doc = json::parse(body.as_bytes()).map_err(|_| "not json")?;
    read_json(&head, &doc).map_err(|why| why.rule)
}

fn chat(body: &str) -> Result<Facts, &'static str> {
    body_at("/v1/chat/completions", &llm(), body)
}

fn rpc(body: &str) -> Result<Facts, &'static str> {
    body_at("/mcp", &ANYWHERE, body)
}

#[test]
fn what_a_chat_says() {
    let body = r#"{"model":"gpt-4o","messages":[],"stream":true,"stream_options":{"include_usage":true},"max_tokens":5,"max_completion_tokens":7,"n":2}"#;
    let facts = chat(body).unwrap();
    let said = facts.said;
    assert_eq!(facts.route, Route::Llm(Provider::OpenAiChat));
    assert_eq!(said.model.as_deref(), Some("gpt-4o"));
    assert!(said.stream && said.asked_usage);
    // The larger of the two, since the provider may go by either.
    assert_eq!((said.max_output_tokens, said.answers), (Some(7), 2));
    assert_eq!(said.prompt_tokens_bound, body.len() as u64);
    let least = chat("{}").unwrap().said;
    assert_eq!((least.model, least.max_output_tokens), (None, None));
    assert_eq!((least.answers, least.stream), (1, false));
    // Null is the same as nothing.
    let nulls = r#"{"stream":null,"stream_options":null,"max_tokens":null,"n":null,"tools":null}"#;
    assert_eq!(chat(nulls).unwrap().said.answers, 1);
    assert_eq!(chat(r#"{"n":0}"#).unwrap().said.answers, 1);
}

#[test]
fn what_decides_is_of_its_type() {
    for body in [
        "[]",
        "\"text\"",
        "1",
        r#"{"model":1}"#,
        r#"{"model":null}"#,
        r#"{"model":["gpt-4o"]}"#,
        r#"{"model":{"id":"gpt-4o"}}"#,
        r#"{"stream":"true"}"#,
        r#"{"stream":1}"#,
        r#"{"stream_options":{"include_usage":"yes"}}"#,
        r#"{"max_tokens":"5"}"#,
        r#"{"max_tokens":-1}"#,
        r#"{"max_tokens":5.0}"#,
        r#"{"max_tokens":5e0}"#,
        r#"{"max_completion_tokens":18446744073709551616}"#,
        r#"{"n":1.5}"#,
        r#"{"n":[1]}"#,
        r#"{"tools":{}}"#,
        r#"{"tools":"shell"}"#,
        r#"{"tools":[1]}"#,
        r#"{"tools":[null]}"#,
        r#"{"tools":[{}]}"#,
        r#"{"tools":[{"name":1}]}"#,
        r#"{"tools":[{"type":"function","function":{}}]}"#,
        r#"{"tools":[{"type":"function","function":{"name":null}}]}"#,
        r#"{"tools":[{"type":"function","function":"shell"}]}"#,
        r#"{"functions":{"name":"shell"}}"#,
        r#"{"functions":["shell"]}"#,
    ] {
        assert_eq!(chat(body), Err("request.json"), "{body}");
    }
}

#[test]
fn keys_that_decide_have_one_spelling() {
    for body in [
        r#"{"Model":"x"}"#,
        r#"{"MODEL":"x"}"#,
        r#"{"\u004dodel":"x"}"#,
        r#"{"Messages":[]}"#,
        r#"{"Tools":[]}"#,
        r#"{"Functions":[]}"#,
        r#"{"sTream":true}"#,
        r#"{"Max_Tokens":1}"#,
        r#"{"N":1}"#,
        r#"{"Service_Tier":"priority"}"#,
        // A long s and a Kelvin sign, which simple case folding takes for an s and a k.
        "{\"tool\u{17f}\":[]}",
        "{\"\u{17f}tream\":true}",
        "{\"max_to\u{212a}ens\":1}",
        "{\"me\u{17f}\u{17f}ages\":[]}",
        r#"{"tools":[{"Name":"x"}]}"#,
        r#"{"tools":[{"Function":{"name":"x"}}]}"#,
        r#"{"tools":[{"type":"function","function":{"name":"x","NAME":"y"}}]}"#,
        r#"{"stream_options":{"Include_Usage":true}}"#,
    ] {
        assert_eq!(chat(body), Err("request.key_case"), "{body}");
    }
    for body in [
        r#"{"modeled":"x","mode":"y","xmodel":1,"model ":2}"#,
        r#"{"metadata":{"Model":"x","N":1}}"#,
        "{\"mod\u{e9}l\":1,\"\u{1d4c2}odel\":2}",
    ] {
        assert!(chat(body).is_ok(), "{body}");
    }
    for body in [
        r#"{"jsonrpc":"2.0","Method":"tools/call"}"#,
        r#"{"jsonrpc":"2.0","method":"tools/call","Params":{}}"#,
        r#"{"jsonrpc":"2.0","method":"tools/call","params":{"Name":"x"}}"#,
        "{\"jsonrpc\":\"2.0\",\"method\":\"tools/call\",\"param\u{17f}\":{}}",
    ] {
        assert_eq!(rpc(body), Err("request.key_case"), "{body}");
    }
}

#[test]
fn every_tool_that_is_offered_is_named() {
    let tools = |body: &str| chat(body).map(|facts| facts.said.tools);
    let names = |names: &[&str]| Ok(names.iter().map(ToString::to_string).collect::<Vec<_>>());
    for (body, found) in [
        (r#"{"tools":[]}"#, &[][..]),
        (
            r#"{"tools":[{"type":"function","function":{"name":"a"}}]}"#,
            &["a"],
        ),
        (
            r#"{"tools":[{"type":"custom","custom":{"name":"b"}}]}"#,
            &["b"],
        ),
        (r#"{"tools":[{"name":"c","input_schema":{}}]}"#, &["c"]),
        (r#"{"tools":[{"type":"web_search"}]}"#, &["web_search"]),
        (
            r#"{"tools":[{"type":"bash_20250124","name":"bash"}]}"#,
            &["bash"],
        ),
        (
            r#"{"functions":[{"name":"d"}],"tools":[{"name":"e"}]}"#,
            &["e", "d"],
        ),
        // A harmless name in one place does not hide another.
        (
            r#"{"tools":[{"type":"custom","function":{"name":"a"},"custom":{"name":"shell"}}]}"#,
            &["a", "shell"],
        ),
        (
            r#"{"tools":[{"type":"function","function":{"name":"a"},"name":"shell"}]}"#,
            &["a", "shell"],
        ),
        (r#"{"tools":[{"type":"x","name":null}]}"#, &["x"]),
        (r#"{"tools":[{"name":"\u0073hell"}]}"#, &["shell"]),
    ] {
        assert_eq!(tools(body), names(found), "{body}");
    }
}

/// What the provider does by itself for a call: which tools it runs, and which servers it calls.
#[test]
fn what_a_provider_is_told_to_do_is_read() {
    let said = |body: &str| {
        let said = chat(body).map(|facts| facts.said)?;
        Ok((said.hosted, said.tools.join(" "), said.connects.join(" ")))
    };
    let is =
        |hosted, tools: &str, connects: &str| Ok((hosted, tools.to_string(), connects.to_string()));
    for (body, expected) in [
        (
            r#"{"tools":[{"type":"function","function":{"name":"a"}}]}"#,
            is(false, "a", ""),
        ),
        (
            r#"{"tools":[{"type":"custom","name":"a"},{"name":"b"}]}"#,
            is(false, "a b", ""),
        ),
        (
            r#"{"tools":[{"type":"text_editor_20250728","name":"edit"}]}"#,
            is(false, "edit", ""),
        ),
        (
            r#"{"tools":[{"type":"web_search_20250305","name":"web_search"}]}"#,
            is(true, "web_search", ""),
        ),
        (
            r#"{"tools":[{"type":"functional","name":"a"}]}"#,
            is(true, "a", ""),
        ),
        (r#"{"web_search_options":{}}"#, is(true, "web_search", "")),
        (
            r#"{"web_search_options":null,"mcp_servers":null}"#,
            is(false, "", ""),
        ),
        (
            r#"{"mcp_servers":[{"type":"url","url":"https://Evil.example:8443/mcp?a","name":"e"}]}"#,
            is(true, "mcp_toolset", "evil.example"),
        ),
        (
            r#"{"tools":[{"type":"mcp","server_label":"e","server_url":"https://evil.example"}]}"#,
            is(true, "mcp", "evil.example"),
        ),
        (
            r#"{"tools":[{"type":"mcp","connector_id":"connector_gmail"}]}"#,
            is(true, "mcp", "connector_gmail"),
        ),
        (r#"{"mcp_servers":[{"name":"e"}]}"#, Err("request.json")),
        (
            r#"{"mcp_servers":[{"url":"https://a@evil.example/"}]}"#,
            Err("request.json"),
        ),
        (r#"{"mcp_servers":[{"url":7}]}"#, Err("request.json")),
        (
            r#"{"mcp_servers":[{"URL":"https://evil.example"}]}"#,
            Err("request.key_case"),
        ),
        (r#"{"MCP_servers":[]}"#, Err("request.key_case")),
    ] {
        assert_eq!(said(body), expected, "{body}");
    }
}

/// What comes by reference counts at a fixed number of tokens; the rest by its bytes.
#[test]
fn the_bound_on_a_prompt() {
    let bound = |body: &str| chat(body).unwrap().said.prompt_tokens_bound - body.len() as u64;
    assert_eq!(
        bound(r#"{"messages":[{"role":"user","content":"image"}]}"#),
        0
    );
    assert_eq!(
        bound(
            r#"{"messages":[{"content":[{"type":"text","text":"file"},{"type":"image_url","image_url":{"url":"https://x"}}]}]}"#
        ),
        MEDIA_TOKENS
    );
    assert_eq!(
        bound(
            r#"{"messages":[{"content":[{"type":"image"},{"type":"document"}]},{"content":[{"type":"file"},{"type":"input_audio"}]}]}"#
        ),
        4 * MEDIA_TOKENS
    );
    let files = |part: &str| {
        let body = format!(
            r#"{{"messages":[{{"content":[{{"type":"tool_result","content":[{part}]}}]}}]}}"#
        );
        chat(&body).unwrap().said.files
    };
    assert!(files(r#"{"type":"document"}"#) && files(r#"{"type":"file"}"#));
    assert!(!files(r#"{"type":"image"}"#) && !files(r#"{"type":"text","text":"file"}"#));
    // In the result of a tool.
    assert_eq!(
        bound(
            r#"{"messages":[{"content":[{"type":"tool_result","content":[{"type":"image"},{"type":"text"}]}]}]}"#
        ),
        MEDIA_TOKENS
    );
    for odd in [
        r#"{"messages":{"content":[{"type":"image"}]}}"#,
        r#"{"messages":[[{"type":"image"}],null,1]}"#,
        r#"{"messages":[{"content":{"type":"image"}}]}"#,
    ] {
        assert_eq!(bound(odd), 0, "{odd}");
    }
}

#[test]
fn what_an_mcp_message_says() {
    let facts = rpc(
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"git","arguments":{}}}"#,
    )
    .unwrap();
    assert_eq!((facts.route, facts.dialect), (Route::Mcp, Dialect::Mcp));
    assert_eq!(facts.said.mcp_method.as_deref(), Some("tools/call"));
    assert_eq!(facts.said.mcp_tool.as_deref(), Some("git"));
    assert_eq!(facts.said.mcp_id.as_deref(), Some("7"));
    assert_eq!(facts.tools().collect::<Vec<_>>(), ["git"]);
    // Anywhere, and without the word that says what it is: servers exist that do not insist.
    let anywhere = body_at(
        "/rpc",
        &ANYWHERE,
        r#"{"method":"tools/call","params":{"name":"git"}}"#,
    );
    assert_eq!(anywhere.unwrap().said.mcp_tool.as_deref(), Some("git"));
    // An answer, or a notification, calls nothing.
    for body in [
        r#"{"jsonrpc":"2.0","id":"a","result":{}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
        r#"{"jsonrpc":"2.0","method":"prompts/get","params":{"name":"git"}}"#,
    ] {
        assert_eq!(rpc(body).unwrap().said.mcp_tool, None, "{body}");
    }
    for (body, rule) in [
        (
            r#"{"jsonrpc":"2.0","method":"tools/call"}"#,
            "mcp.tool_name",
        ),
        (
            r#"{"jsonrpc":"2.0","method":"tools/call","params":{}}"#,
            "mcp.tool_name",
        ),
        (
            r#"{"jsonrpc":"2.0","method":"tools/call","params":["git"]}"#,
            "mcp.tool_name",
        ),
        (
            r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":null}}"#,
            "request.json",
        ),
        (
            r#"{"jsonrpc":"2.0","method":["tools/call"]}"#,
            "request.json",
        ),
        (r#"[{"jsonrpc":"2.0","method":"tools/list"}]"#, "mcp.batch"),
        (r#"[1,{"jsonrpc":"2.0"}]"#, "mcp.batch"),
        (
            r#"[{"id":1,"method":"tools/call","params":{"name":"a"}}]"#,
            "mcp.batch",
        ),
        (r#"[{},{"Method":"tools/call"}]"#, "mcp.batch"),
        (r#"[{"JSONRPC":"2.0"}]"#, "mcp.batch"),
    ] {
        assert_eq!(rpc(body), Err(rule), "{body}");
    }
    // Elsewhere a list is a list, unless it has messages in it.
    let list = |path, body| body_at(path, &ANYWHERE, body).map(|facts| facts.route);
    assert_eq!(list("/rows", r#"[{"method":"GET"},[]]"#), Ok(Route::Plain));
    assert_eq!(list("/mcp", r#"[{"method":"GET"},[]]"#), Err("mcp.batch"));
    assert_eq!(
        list("/rows", r#"[{"method":"tools/call"}]"#),
        Err("mcp.batch")
    );
    let id = |body: &str| rpc(body).unwrap().said.mcp_id;
    assert_eq!(
        id(r#"{"jsonrpc":"2.0","id":"a\"b"}"#).as_deref(),
        Some(r#""a\"b""#)
    );
    assert_eq!(id(r#"{"jsonrpc":"2.0","id":null}"#), None);
    assert_eq!(id(r#"{"jsonrpc":"2.0","id":{"a":1}}"#), None);
}

/// On a host of models a word in the body does not take a call out of the budgets, and no body is two things at once.
#[test]
fn a_message_to_a_tool_is_no_call_to_a_model() {
    let disguised = r#"{"jsonrpc":"2.0","assistant_id":"a"}"#;
    let route = |path, upstream: &Upstream| body_at(path, upstream, disguised).unwrap().route;
    assert_eq!(route("/v1/threads/1/runs", &llm()), Route::LlmUnknown);
    assert_eq!(route("/mcp", &llm()), Route::Mcp);
    assert_eq!(route("/v1/threads/1/runs", &ANYWHERE), Route::Mcp);
    let both = r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"git"},"model":"gpt-4o","input":"hi"}"#;
    for (path, upstream) in [
        ("/v1/responses", llm()),
        ("/mcp", llm()),
        ("/mcp", ANYWHERE),
        ("/", ANYWHERE),
    ] {
        assert_eq!(
            body_at(path, &upstream, both),
            Err("request.json"),
            "{path}"
        );
    }
    // Where the path says what is called, nothing in the body says otherwise.
    let chat = chat(r#"{"jsonrpc":"2.0","model":"gpt-4o"}"#).unwrap();
    assert_eq!(chat.route, Route::Llm(Provider::OpenAiChat));
    assert_eq!(chat.said.model.as_deref(), Some("gpt-4o"));
}

#[test]
fn a_model_named_anywhere_may_generate() {
    let route = |path, body| body_at(path, &ANYWHERE, body).unwrap().route;
    assert_eq!(route("/generate", r#"{"model":"x"}"#), Route::LlmUnknown);
    assert_eq!(route("/generate", r#"{"prompt":"x"}"#), Route::Plain);
    assert_eq!(
        route("/v1/messages/count_tokens", r#"{"model":"x"}"#),
        Route::CountTokens
    );
    assert_eq!(route("/list", r#"[{"model":"x"}]"#), Route::Plain);
}

/// Where a gate is the way to any host, the path or the host says that a call may generate though nothing in its body names a model.
#[test]
fn what_generates_is_known_by_its_path_or_host() {
    let route = |host: &str, path: &str| {
        let pairs: [(&str, &[u8]); 3] = [
            (":method", b"POST"),
            (":path", path.as_bytes()),
            (":authority", host.as_bytes()),
        ];
        raw_head(&pairs, &ANYWHERE).unwrap().route
    };
    for path in [
        "/v1beta/models/gemini-2.5-pro:generateContent",
        "/gw/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
        "/v1beta/models/gemini-2.5-pro%3AgenerateContent",
        "/v1beta/models/gemini-2.5-pro:embedContent/",
        "/model/anthropic.claude-3-haiku-20240307-v1:0/converse",
        "/model/anthropic.claude-3-haiku-20240307-v1%3A0/invoke-with-response-stream",
    ] {
        assert_eq!(route("gateway.example", path), Route::LlmUnknown, "{path}");
    }
    for path in [
        "/v1beta/models/gemini-2.5-pro:countTokens",
        "/models/generateContent",
        "/invoke",
        "/orders/7/invoke",
        "/model/7",
        "/v1/batches",
    ] {
        assert_eq!(route("gateway.example", path), Route::Plain, "{path}");
    }
    for host in [
        "api.openai.com",
        "API.OpenAI.com:443",
        "mine.openai.azure.com",
        "us-central1-aiplatform.googleapis.com",
    ] {
        assert_eq!(route(host, "/v1/batches"), Route::LlmUnknown, "{host}");
    }
    for host in [
        "openai.azure.com",
        "api.openai.com.example",
        "notapi.openai.com",
    ] {
        assert_eq!(route(host, "/v1/batches"), Route::Plain, "{host}");
    }
}

/// Those that are not metered offer tools too.
#[test]
fn tools_are_found_where_gemini_and_bedrock_have_them() {
    let gemini = "/v1beta/models/gemini-2.5-pro:generateContent";
    let bedrock = "/model/anthropic.claude-3-haiku-20240307-v1:0/converse";
    let tools = |path, body| body_at(path, &ANYWHERE, body).map(|facts| facts.said.tools);
    let names = |names: &[&str]| Ok(names.iter().map(ToString::to_string).collect::<Vec<_>>());
    for (path, body, expected) in [
        (
            gemini,
            r#"{"tools":[{"functionDeclarations":[{"name":"bash"},{"name":"git"}]},{"googleSearch":{}}]}"#,
            names(&["bash", "git", "googleSearch"]),
        ),
        (
            gemini,
            r#"{"tools":[{"function_declarations":[{"name":"bash"}],"code_execution":{}}]}"#,
            names(&["bash", "code_execution"]),
        ),
        (
            gemini,
            r#"{"tools":[{"functionDeclarations":[{"description":"bash"}]}]}"#,
            Err("request.json"),
        ),
        (
            bedrock,
            r#"{"toolConfig":{"tools":[{"toolSpec":{"name":"bash"}}]}}"#,
            names(&["bash"]),
        ),
        (
            bedrock,
            r#"{"toolConfig":{"tools":[{"name_":"bash"}]}}"#,
            Err("request.json"),
        ),
        (
            bedrock,
            r#"{"toolConfig":{"tools":{}}}"#,
            Err("request.json"),
        ),
    ] {
        assert_eq!(tools(path, body), expected, "{body}");
    }
}

#[test]
fn headers_and_body_tell_the_same_story() {
    let read = |headers: &[(&str, &str)]| {
        let head = head("/mcp", headers, &ANYWHERE).unwrap();
        let body = r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"g\u00eft"}}"#;
        let doc = json::parse(body.as_bytes()).unwrap();
        read_json(&head, &doc).map(drop).map_err(|why| why.rule)
    };
    let lie = Err("mcp.header_mismatch");
    assert_eq!(read(&[]), Ok(()));
    assert_eq!(read(&[("mcp-method", "tools/call")]), Ok(()));
    assert_eq!(read(&[("mcp-method", "tools/list")]), lie);
    assert_eq!(read(&[("mcp-method", "")]), lie);
    assert_eq!(read(&[("mcp-name", "g\u{ef}t")]), Ok(()));
    // base64 of "gït" in UTF-8.
    assert_eq!(read(&[("mcp-name", "=?base64?Z8OvdA==?=")]), Ok(()));
    for name in [
        "git",
        "=?base64?Z2l0?=",
        "=?base64?Z8OvdA?=",
        "=?base64?",
        "=?base64??=",
    ] {
        assert_eq!(read(&[("mcp-name", name)]), lie, "{name}");
    }
    let resource =
        r#"{"jsonrpc":"2.0","method":"resources/read","params":{"uri":"file:///a","name":"b"}}"#;
    for (name, outcome) in [("file:///a", Ok(())), ("b", lie)] {
        let head = head("/mcp", &[("mcp-name", name)], &ANYWHERE).unwrap();
        let doc = json::parse(resource.as_bytes()).unwrap();
        assert_eq!(
            read_json(&head, &doc).map(drop).map_err(|why| why.rule),
            outcome
        );
    }
}

#[test]
fn deep_and_wide_bodies_end() {
    let deep = |levels: usize| {
        let inside = "{\"content\":[".repeat(levels);
        let close = "]}".repeat(levels);
        format!("{{\"messages\":[{inside}{{\"type\":\"image\"}}{close}]}}")
    };
    // Each level is an object and an array; two more and the innermost stand around them.
    let most = (MAX_DEPTH - 3) / 2;
    assert!(chat(&deep(most)).is_ok());
    assert_eq!(chat(&deep(most + 1)), Err("not json"));
    assert_eq!(chat(&"[".repeat(1_000_000)), Err("not json"));
    let wide = format!(
        "{{\"tools\":[{}{{\"name\":\"last\"}}]}}",
        "{\"name\":\"a\"},".repeat(50_000)
    );
    assert_eq!(chat(&wide).unwrap().said.tools.len(), 50_001);
    let keys: Vec<String> = (0..50_000)
        .map(|number| format!("\"k{number}\":1"))
        .collect();
    assert!(chat(&format!("{{{}}}", keys.join(","))).is_ok());
}

#[test]
fn which_policies_need_bodies() {
    let one = |change: fn(&mut Document)| {
        let mut document = document("one");
        change(&mut document);
        bodies_matter(&Payload {
            documents: vec![issuer::document("nothing"), document].into(),
            ..payload(1)
        })
    };
    let limit = |unit| -> Limit {
        let limit = serde_json::json!({
            "rule": "r", "per": "agent", "unit": unit, "window": "minute", "amount": 1,
        });
        serde_json::from_value(limit).unwrap()
    };
    assert!(!one(|_| {}));
    assert!(!one(|document| document.network.denied = true));
    assert!(!one(|document| document.network.hosts = Some(Vec::new())));
    assert!(one(
        |document| document.data.patterns = vec!["a".to_string()]
    ));
    assert!(one(
        |document| document.tools.denied = Texts::from_iter(["a"])
    ));
    assert!(one(
        |document| document.models.deny = Texts::from_iter(["a"])
    ));
    assert!(one(|document| document.models = Names {
        allow: Some(Texts::NONE),
        deny: Texts::NONE
    }));
    assert!(one(
        |document| document.mcp_tools.deny = Texts::from_iter(["a"])
    ));
    assert!(one(|document| document.data.recorded = true));
    // Whether a call meets it, its body says.
    assert!(one(
        |document| document.scope = Scope::parse("tool:slack").unwrap()
    ));
    let calls = |change: fn(&mut Limit)| {
        let mut limit = limit(Unit::Calls);
        change(&mut limit);
        limit
    };
    for (limit, matters) in [
        (limit(Unit::Calls), false),
        (limit(Unit::Tokens), true),
        (limit(Unit::NanoUsd), true),
        // Those are about calls to tools and to models, and what a call is, its body says.
        (calls(|limit| limit.tool = Some("a".to_string())), true),
        (calls(|limit| limit.each_model = true), true),
        (calls(|limit| limit.window = Window::Run), true),
    ] {
        let mut document = document("limit");
        document.limits = vec![limit.clone()];
        let payload = Payload {
            documents: vec![document].into(),
            ..payload(1)
        };
        assert_eq!(bodies_matter(&payload), matters, "{limit:?}");
    }
}

#[test]
fn what_is_shown_of_a_head_has_no_query() {
    let head = head("/a?key=canary", &[("mcp-name", "canary")], &ANYWHERE).unwrap();
    let shown = format!("{head:?}");
    assert!(shown.contains("/a") && !shown.contains("canary"), "{shown}");
    // Bytes in decimal would be content as well: c, a, n.
    assert!(!shown.contains("99, 97, 110"), "{shown}");
}
