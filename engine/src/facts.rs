//! What a gate saw of a call, normalised. Hosts hand over header pairs and body bytes; every reading of them is here, so that no two
//! hosts can disagree.
//!
//! The rule throughout: what decides must have one reading. A header that decides and comes twice, a JSON key that decides and is
//! spelt in another case, a body in an encoding nobody here undoes: each is refused, never guessed.

use crate::{
    bundle::{Document, Limit, Payload, Scope, Searched},
    bytes::{self, Digest},
    json::{self, Kind, Value},
    ledger::{Unit, Window},
    meter::Provider,
};
use alloc::{
    borrow::Cow,
    string::{String, ToString},
    vec::Vec,
};
use core::{fmt, net::Ipv6Addr};

/// Request or response headers as a host has them, pseudo-headers (`:method`, `:path`, `:authority`, `:status`) included.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'h, 'a>(pub &'h [(&'a [u8], &'a [u8])]);

/// A header that must be single came more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeated;

impl<'a> Headers<'_, 'a> {
    /// The value of `name` (lower case), `None` when absent.
    pub fn only(self, name: &str) -> Result<Option<&'a [u8]>, Repeated> {
        let mut values = self
            .0
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()));
        let first = values.next().map(|(_, value)| *value);
        match values.next() {
            Some(_) => Err(Repeated),
            None => Ok(first),
        }
    }

    /// The first value of `name` (lower case), as text; for headers that decide nothing.
    pub fn first(self, name: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()))
            .and_then(|(_, value)| core::str::from_utf8(value).ok())
    }

    /// Whether `name` (lower case) is there at all.
    pub fn has(self, name: &str) -> bool {
        self.0
            .iter()
            .any(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// What kind of endpoint is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// A generation that is understood and metered.
    Llm(Provider),
    /// Anthropic's token counting: names a model, generates nothing, costs nothing.
    CountTokens,
    /// Something of an LLM API that is not understood: it may generate and cost.
    LlmUnknown,
    /// A JSON-RPC message of the Model Context Protocol.
    Mcp,
    /// Any other call.
    Plain,
}

impl Route {
    /// The name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Route::Llm(Provider::OpenAiChat) => "openai_chat",
            Route::Llm(Provider::AnthropicMessages) => "anthropic_messages",
            Route::CountTokens => "anthropic_count_tokens",
            Route::LlmUnknown => "llm_unknown",
            Route::Mcp => "mcp",
            Route::Plain => "plain",
        }
    }
}

/// How the caller expects to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's error object.
    OpenAi,
    /// Anthropic's error object.
    Anthropic,
    /// A JSON-RPC error.
    Mcp,
    /// RFC 9457 problem+json.
    Problem,
}

/// Why a call could not be read. Each is a denial with this rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The reason's rule.
    pub rule: &'static str,
    /// What to tell the caller; never quotes content.
    pub message: Cow<'static, str>,
}

impl Unreadable {
    fn repeated(name: &str) -> Unreadable {
        Unreadable {
            rule: "request.repeated_header",
            message: Cow::Owned(["the header ", name, " comes more than once"].concat()),
        }
    }

    const fn new(rule: &'static str, message: &'static str) -> Unreadable {
        Unreadable {
            rule,
            message: Cow::Borrowed(message),
        }
    }
}

/// The head of a call.
#[derive(Clone)]
pub struct Head {
    /// `GET`, `POST`, …
    pub method: String,
    /// The host that will be called: lower-case, without port and trailing dot.
    pub host: String,
    /// Path without the query.
    pub path: String,
    /// Path with the query, percent-decoded, for scanning. A `+` is left as it is.
    pub target: Vec<u8>,
    /// By path alone; the body may refine it.
    pub route: Route,
    /// How to answer; the body may refine it.
    pub dialect: Dialect,
    /// What the body claims to be.
    pub body: BodyKind,
    /// `mcp-method`, which must agree with the body.
    pub mcp_method: Option<String>,
    /// `mcp-name`, which must agree with the body.
    pub mcp_name: Option<String>,
    /// The agent's run that the call belongs to.
    pub run: Option<String>,
    /// The agent says that its run is done, and that this is the last call of it.
    pub done: bool,
}

/// The header in which an agent names its run.
pub const RUN_HEADER: &str = "x-tollgate-run";

/// The header in which an agent says, with [`ACHIEVED`], that its run has done what it was for.
pub const GOAL_HEADER: &str = "x-tollgate-goal";

/// The only thing that [`GOAL_HEADER`] says.
pub const ACHIEVED: &str = "achieved";

/// Bytes of a run's name. A UUID has 36, a trace and a span together 49.
pub const MAX_RUN_BYTES: usize = 128;

/// Whether a run can have this name.
pub fn is_run(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (1..=MAX_RUN_BYTES).contains(&name.len()) && name.bytes().all(plain)
}

/// The run that a call names: in its own header, or by its MCP session. Whoever has a session's id can speak in it, so of that only a digest
/// goes any further.
fn run_of(named: Option<&[u8]>, session: Option<&[u8]>) -> Result<Option<String>, Unreadable> {
    let Some(named) = named else {
        let digest = |session: &[u8]| Digest::of(session).to_string();
        let short = |digest: String| digest.chars().take(32).collect::<String>();
        return Ok(session.map(|session| ["mcp:", &short(digest(session))].concat()));
    };
    match core::str::from_utf8(named) {
        Ok(run) if is_run(run) && !run.starts_with("mcp:") => Ok(Some(run.to_string())),
        _ => Err(Unreadable::new(
            "request.run",
            "`x-tollgate-run` must be 1 to 128 letters, digits, `-`, `_`, `.` and `:`, and must not begin with `mcp:`",
        )),
    }
}

/// Whether a call says that its run is done.
fn is_done(goal: Option<&[u8]>, run: Option<&[u8]>) -> Result<bool, Unreadable> {
    let refused = |message| Err(Unreadable::new("request.goal", message));
    match (goal, run) {
        (None, _) => Ok(false),
        (Some(said), _) if said != ACHIEVED.as_bytes() => {
            refused("`x-tollgate-goal` says `achieved` or is not there")
        }
        (Some(_), None) => {
            refused("`x-tollgate-goal` is of a run, and the call names none; send `x-tollgate-run`")
        }
        (Some(_), Some(_)) => Ok(true),
    }
}

impl fmt::Debug for Head {
    /// What a record may hold: no query, and nothing else the caller can hide content in.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("method", &self.method)
            .field("host", &self.host)
            .field("path", &self.path)
            .field("route", &self.route)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

/// Bytes of path and query. It is what servers take (nginx's `large_client_header_buffers` and Apache's `LimitRequestLine` by default), and keeps what a call that
/// waits for its body holds in a gate to a few times as much.
pub const MAX_TARGET_BYTES: usize = 8 << 10;

/// What a body can be read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// JSON in UTF-8.
    Json,
    /// Text in UTF-8.
    Text,
    /// No content type.
    Unstated,
    /// Anything else: cannot be inspected.
    Opaque,
    /// Compressed: cannot be inspected.
    Encoded,
}

/// Where calls go from this gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The one host all calls go to; `None` when the gate is a forward proxy and the caller names it.
    pub host: Option<String>,
    /// Whether that is an LLM API, so that a `POST` which is not understood may cost money.
    pub llm: bool,
}

/// Headers that decide and therefore must be single.
const SINGLE: [&str; 12] = [
    ":method",
    ":path",
    ":authority",
    "content-type",
    "content-encoding",
    "content-length",
    "host",
    "mcp-method",
    "mcp-name",
    "mcp-session-id",
    RUN_HEADER,
    GOAL_HEADER,
];

impl Head {
    /// Reads the head of a request.
    pub fn read(headers: Headers<'_, '_>, upstream: &Upstream) -> Result<Head, Unreadable> {
        let text = |bytes: &[u8]| core::str::from_utf8(bytes).ok().map(String::from);
        for (_, value) in headers.0 {
            if core::str::from_utf8(value).is_err() {
                return Err(Unreadable::new(
                    "request.header_encoding",
                    "a header is not UTF-8",
                ));
            }
        }
        let mut single = [None; SINGLE.len()];
        for (slot, name) in single.iter_mut().zip(SINGLE) {
            *slot = headers
                .only(name)
                .map_err(|Repeated| Unreadable::repeated(name))?;
        }
        let [
            method,
            target,
            authority,
            content_type,
            content_encoding,
            _,
            host_header,
            mcp_method,
            mcp_name,
            session,
            run,
            goal,
        ] = single;
        // Two lines in one: whoever passed the call on may join them (RFC 9110 §5.3), and no content type read here has a comma, nor has a run's
        // name. A session's id may have one, but no space behind it.
        for (name, value, joint) in [
            ("content-type", content_type, &b","[..]),
            (RUN_HEADER, run, b","),
            ("mcp-session-id", session, b", "),
        ] {
            if value.is_some_and(|value| value.windows(joint.len()).any(|part| part == joint)) {
                return Err(Unreadable::repeated(name));
            }
        }
        let method = method.and_then(text).unwrap_or_default();
        let target = target.and_then(text).unwrap_or_default();
        let host = match &upstream.host {
            Some(host) => host.clone(),
            None => called_host(authority, host_header)?,
        };
        if method.is_empty() || !target.starts_with('/') {
            return Err(Unreadable::new(
                "request.target",
                "the request has no method or no absolute path",
            ));
        }
        // RFC 9110 §9.3.8: the answer to it is the request, with the credentials that the gate adds. Behind a tunnel nobody looks (§9.3.6).
        if matches!(method.as_str(), "TRACE" | "CONNECT") {
            return Err(Unreadable::new(
                "request.method",
                "TRACE and CONNECT do not go through a gate",
            ));
        }
        if target.len() > MAX_TARGET_BYTES {
            return Err(Unreadable::new(
                "request.target",
                "the path and query have more than 8,192 bytes",
            ));
        }
        let path = target
            .split(['?', '#'])
            .next()
            .unwrap_or_default()
            .to_string();
        let llm = upstream.llm || is_llm_host(&host);
        let route = route_of(&method, &path, llm);
        let body = match content_encoding {
            Some(encoding) if !encoding.eq_ignore_ascii_case(b"identity") => BodyKind::Encoded,
            _ => body_kind(content_type),
        };
        let dialect = match route {
            Route::Llm(Provider::AnthropicMessages) | Route::CountTokens => Dialect::Anthropic,
            Route::Llm(Provider::OpenAiChat) => Dialect::OpenAi,
            _ if headers.has("anthropic-version") => Dialect::Anthropic,
            _ if is_mcp(&path) || headers.has("mcp-protocol-version") => Dialect::Mcp,
            _ if llm => Dialect::OpenAi,
            _ => Dialect::Problem,
        };
        Ok(Head {
            target: percent_decoded(&target),
            method,
            host,
            path,
            route,
            dialect,
            body,
            mcp_method: mcp_method.and_then(text),
            mcp_name: mcp_name.and_then(text),
            done: is_done(goal, run.or(session))?,
            run: run_of(run, session)?,
        })
    }
}

/// Hosts of LLM APIs that are reached by way of a gate for any host; those that begin with `.` or `-` with whatever stands before. By the documentation of
/// each provider, November 2026.
const LLM_HOSTS: [&str; 17] = [
    "api.openai.com",
    ".openai.azure.com",
    ".services.ai.azure.com",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "aiplatform.googleapis.com",
    "-aiplatform.googleapis.com",
    "api.mistral.ai",
    "api.cohere.com",
    "api.groq.com",
    "api.deepseek.com",
    "api.x.ai",
    "api.perplexity.ai",
    "api.together.xyz",
    "api.fireworks.ai",
    "openrouter.ai",
    "router.huggingface.co",
];

fn is_llm_host(host: &str) -> bool {
    let mut known = LLM_HOSTS.iter();
    known.any(|known| match known.starts_with(['.', '-']) {
        true => host.ends_with(known),
        false => host == *known,
    })
}

/// Gemini's methods that generate, which stand behind a model's name in the path (`/models/gemini-2.5-pro:generateContent`;
/// <https://ai.google.dev/api/all-methods>)…
const GEMINI_METHODS: [&str; 5] = [
    "generateContent",
    "streamGenerateContent",
    "batchGenerateContent",
    "embedContent",
    "batchEmbedContents",
];
/// …and Bedrock's (`/model/anthropic.claude-3/converse`;
/// <https://docs.aws.amazon.com/bedrock/latest/APIReference/API_Operations_Amazon_Bedrock_Runtime.html>).
const BEDROCK_METHODS: [&str; 5] = [
    "converse",
    "converse-stream",
    "invoke",
    "invoke-with-response-stream",
    "invoke-with-bidirectional-stream",
];

/// The model that a method of an LLM API is called of by this path, wherever it is mounted.
fn method_of(path: &str) -> Option<&str> {
    let path = path.trim_end_matches('/');
    if let Some((model, method)) = path.rsplit_once('/')
        && BEDROCK_METHODS.contains(&method)
        && let Some((_, model)) = model.rsplit_once("/model/")
    {
        return Some(model);
    }
    let (model, method) = path.rsplit_once(':')?;
    GEMINI_METHODS
        .contains(&method)
        .then(|| model.rsplit('/').next().unwrap_or(model))
}

/// A path as whoever serves it may decode it.
fn decoded(path: &str) -> String {
    String::from_utf8_lossy(&percent_decoded(path)).into_owned()
}

/// The model that a path names: as in [`method_of`], and in Azure's deployments (`/deployments/gpt-4o/chat/completions`), which go by it and not by the body.
fn model_by_path(path: &str) -> Option<String> {
    let path = decoded(path);
    let deployment = path.trim_end_matches('/').rsplit_once("/deployments/");
    let deployment = deployment.and_then(|(_, rest)| rest.split('/').next());
    deployment.or(method_of(&path)).map(String::from)
}

/// By path. A generation is recognised wherever the API is mounted; anything else on an LLM host that can carry a body is unknown.
fn route_of(method: &str, path: &str, llm: bool) -> Route {
    let sends = !matches!(method, "GET" | "HEAD" | "OPTIONS");
    match path {
        _ if !sends => Route::Plain,
        _ if path.ends_with("/chat/completions") => Route::Llm(Provider::OpenAiChat),
        _ if path.ends_with("/v1/messages") => Route::Llm(Provider::AnthropicMessages),
        _ if path.ends_with("/v1/messages/count_tokens") => Route::CountTokens,
        _ if llm || method_of(&decoded(path)).is_some() => Route::LlmUnknown,
        _ => Route::Plain,
    }
}

/// Where MCP servers are mounted by custom; the specification leaves the path open.
fn is_mcp(path: &str) -> bool {
    path.ends_with("/mcp")
}

/// The host a caller names. Where `host` stands beside `:authority` it must say the same: the next hop may go by either.
fn called_host(authority: Option<&[u8]>, host: Option<&[u8]>) -> Result<String, Unreadable> {
    let normal = |value: &[u8]| core::str::from_utf8(value).ok().and_then(normal_host);
    let named = authority.or(host).and_then(normal);
    if host.is_some_and(|host| normal(host) != named) {
        return Err(Unreadable::new(
            "request.host",
            "`host` and `:authority` do not name the same host",
        ));
    }
    named.ok_or(Unreadable::new(
        "request.host",
        "the host is not a plain DNS name or address",
    ))
}

/// Lower-case, without port and trailing dot; `None` for what is not letters, digits, hyphens and dots, or a bracketed IPv6 address.
pub fn normal_host(authority: &str) -> Option<String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']')?;
            // Through its parsed form, so that one address has one spelling (RFC 5952).
            let address: Ipv6Addr = address.parse().ok()?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':')?),
            };
            (address.to_string(), port)
        }
        None => {
            let (host, port) = match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            };
            let host = host.strip_suffix('.').unwrap_or(host);
            let plain = !host.is_empty()
                && host.len() <= 253
                && host.split('.').all(|label| {
                    !label.is_empty()
                        && label
                            .bytes()
                            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                });
            if !plain {
                return None;
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    let port_is_fine =
        port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    port_is_fine.then_some(host)
}

/// What a content type lets us read (RFC 9110 §8.3.1: type and subtype are case-insensitive, parameters follow `;`).
fn body_kind(content_type: Option<&[u8]>) -> BodyKind {
    let Some(value) = content_type.and_then(|bytes| core::str::from_utf8(bytes).ok()) else {
        return BodyKind::Unstated;
    };
    let mut parts = value.split(';');
    let essence = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    let utf8 = parts.all(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        !name.trim().eq_ignore_ascii_case("charset")
            || value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
            || value
                .trim()
                .trim_matches('"')
                .eq_ignore_ascii_case("us-ascii")
    });
    match essence.as_str() {
        _ if !utf8 => BodyKind::Opaque,
        "application/json" => BodyKind::Json,
        _ if essence.ends_with("+json") => BodyKind::Json,
        _ if essence.starts_with("text/") => BodyKind::Text,
        _ => BodyKind::Opaque,
    }
}

/// The bytes that a path or query stands for.
pub(crate) fn percent_decoded(text: &str) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// What a body says, as far as it decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The model asked for.
    pub model: Option<String>,
    /// Tools offered to the model, by name, in order.
    pub tools: Vec<String>,
    /// JSON-RPC method.
    pub mcp_method: Option<String>,
    /// The tool an MCP `tools/call` names.
    pub mcp_tool: Option<String>,
    /// The arguments it is called with.
    pub mcp_arguments: Option<Arguments>,
    /// JSON-RPC id, as JSON text, to answer with.
    pub mcp_id: Option<String>,
    /// A stream was asked for.
    pub stream: bool,
    /// …and the usage frame with it.
    pub asked_usage: bool,
    /// Tools are offered to the model, or it is told what tools have put out.
    pub tools_at_work: bool,
    /// Most tokens of one answer, where the caller set it.
    pub max_output_tokens: Option<u64>,
    /// How many answers (`n`).
    pub answers: u64,
    /// A dearer service than the price table knows was asked for (`service_tier: priority`, `speed: fast`).
    pub premium: bool,
    /// Most tokens the prompt can come to: no tokenizer in use makes more tokens than there are bytes, and what comes by reference
    /// counts at [`MEDIA_TOKENS`]. But for `files` and `hosted`.
    pub prompt_tokens_bound: u64,
    /// Files are part of the prompt. Their pages may come to more than their bytes, but to no more than the model takes in.
    pub files: bool,
    /// Tools are among those offered that the provider runs itself. What they find becomes prompt, as often as they are run, and may be charged by the use:
    /// nothing bounds that.
    pub hosted: bool,
    /// MCP servers that the provider is told to call itself, by host.
    pub connects: Vec<String>,
}

/// The arguments of a tool call, as JSON text. Conditions read them; nothing prints them.
#[derive(Clone, PartialEq, Eq)]
pub struct Arguments(String);

impl Arguments {
    /// The JSON.
    pub fn json(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arguments({} bytes)", self.0.len())
    }
}

/// Most input tokens of one image that is named rather than contained in the body. OpenAI's dearest image (high detail) is
/// 2,833 tokens on `gpt-4o-mini`-class accounting times 12 tiles = 36,835 (OpenAI, "Images and vision", cost of images); rounded up.
pub const MEDIA_TOKENS: u64 = 40_000;

/// What a body turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The kind of call, refined by the body.
    pub route: Route,
    /// How to answer, refined by the body.
    pub dialect: Dialect,
    /// What the body says.
    pub said: Said,
    /// A body went through that was not read (no rule asked for it).
    pub uninspected: bool,
}

impl Facts {
    /// The facts of a call whose body is not there or not looked at.
    pub fn of_head(head: &Head, uninspected: bool) -> Facts {
        Facts {
            route: head.route,
            dialect: head.dialect,
            said: Said {
                answers: 1,
                ..Said::default()
            },
            uninspected,
        }
    }

    /// Whether these are facts of the same call with other content: all that names something is alike.
    pub fn decides_like(&self, other: &Facts) -> bool {
        let names = |facts: &Facts| Facts {
            said: Said {
                mcp_arguments: None,
                prompt_tokens_bound: 0,
                ..facts.said.clone()
            },
            ..facts.clone()
        };
        names(self) == names(other)
    }

    /// What the body names and a record holds.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let Said {
            model, mcp_method, ..
        } = &self.said;
        let named = [model, mcp_method].into_iter().flatten();
        named.map(String::as_str).chain(self.tools())
    }

    /// The tools this call uses or offers.
    pub fn tools(&self) -> impl Iterator<Item = &str> {
        self.said
            .tools
            .iter()
            .map(String::as_str)
            .chain(self.said.mcp_tool.as_deref())
    }
}

/// Request fields that buy a dearer service: OpenAI "Priority processing", Anthropic "Fast mode".
const PREMIUM: [(&str, &str); 2] = [("service_tier", "priority"), ("speed", "fast")];

/// Keys that decide, by place. One of them in another case is refused: a reader that ignores case (Go's `encoding/json` does) would
/// take it for the real one.
const DECIDING_LLM: [&str; 15] = [
    "model",
    "models",
    "fallbacks",
    "messages",
    "tools",
    "functions",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "service_tier",
    "speed",
    "web_search_options",
    "mcp_servers",
];
const DECIDING_RPC: [&str; 4] = ["jsonrpc", "method", "params", "id"];

/// Reads a JSON body. `doc` must be the whole body of a call with this `head`.
pub fn read_json(head: &Head, doc: &json::Document<'_>) -> Result<Facts, Unreadable> {
    let root = doc.root();
    let mut facts = Facts::of_head(head, false);
    let is_llm = matches!(
        head.route,
        Route::Llm(_) | Route::CountTokens | Route::LlmUnknown
    );
    if root.kind() != Kind::Object {
        return match head.route {
            Route::Llm(_) | Route::CountTokens => Err(Unreadable::new(
                "request.json",
                "the body of this call must be a JSON object",
            )),
            // A batch of JSON-RPC messages: the protocol dropped them (MCP 2025-06-18), and each would need a verdict of its own.
            _ if head.dialect == Dialect::Mcp && root.kind() == Kind::Array
                || root.items().any(is_message) =>
            {
                Err(Unreadable::new(
                    "mcp.batch",
                    "JSON-RPC batches are not supported; send one message per request",
                ))
            }
            _ => Ok(facts),
        };
    }
    one_spelling(root, &DECIDING_LLM)?;
    if (root.get("jsonrpc").is_some() || calls_tool(root.get("method")))
        && !matches!(head.route, Route::Llm(_) | Route::CountTokens)
    {
        if root.get("model").is_some() {
            return Err(Unreadable::new(
                "request.json",
                "the body is a JSON-RPC message and also names a model; it can be only one of them",
            ));
        }
        read_rpc(head, root, &mut facts)?;
        return Ok(facts);
    }
    one_spelling(root, &DECIDING_RPC)?;
    let model = root.get("model");
    if !is_llm && model.is_none() {
        return Ok(facts);
    }
    facts.said.model = text_of(model, "model")?;
    if let Some(by_path) = is_llm.then(|| model_by_path(&head.path)).flatten() {
        let named = facts.said.model.as_deref();
        // Gemini's bodies have it as `models/…`.
        let named = named.map(|named| named.strip_prefix("models/").unwrap_or(named));
        if named.is_some_and(|named| named != by_path) {
            return Err(Unreadable::new(
                "request.model",
                "the path and the body name different models; what goes by the path must be named alike in `model`, or only in the path",
            ));
        }
        facts.said.model = Some(by_path);
    }
    // OpenRouter and LiteLLM go on to these.
    for key in ["models", "fallbacks"] {
        if root.get(key).is_some_and(is_there) {
            return Err(Unreadable {
                rule: "request.model",
                message: Cow::Owned(
                    [
                        "`",
                        key,
                        "` names further models that may be called instead; name one in `model`",
                    ]
                    .concat(),
                ),
            });
        }
    }
    if head.route == Route::Plain && facts.said.model.is_some() {
        facts.route = Route::LlmUnknown;
    }
    read_llm(root, &mut facts.said, doc.text().len())?;
    Ok(facts)
}

/// A tool call that leaves `jsonrpc` out is one to a server that does not insist on it.
fn calls_tool(method: Option<Value<'_, '_>>) -> bool {
    let method = method.and_then(Value::text);
    method.is_some_and(|method| method == *"tools/call")
}

/// Whether somebody may take this entry of a list for a message of JSON-RPC, however its keys are spelt.
fn is_message(entry: Value<'_, '_>) -> bool {
    entry.members().any(|(key, value)| {
        same_but_for_case(key, "jsonrpc")
            || same_but_for_case(key, "method") && calls_tool(Some(value))
    })
}

fn read_rpc(head: &Head, root: Value<'_, '_>, facts: &mut Facts) -> Result<(), Unreadable> {
    one_spelling(root, &DECIDING_RPC)?;
    // On an LLM host a body alone does not make a call one of MCP, or a word in it would take the call out of every budget.
    if head.route != Route::LlmUnknown || is_mcp(&head.path) {
        facts.route = Route::Mcp;
    }
    facts.dialect = Dialect::Mcp;
    let said = &mut facts.said;
    said.mcp_method = text_of(root.get("method"), "method")?;
    said.mcp_id = root
        .get("id")
        .filter(|id| matches!(id.kind(), Kind::String | Kind::Number))
        .map(|id| id.raw().to_string());
    let mut name = None;
    if let Some(params) = root.get("params") {
        one_spelling(params, &["name", "uri", "arguments"])?;
        name = match said.mcp_method.as_deref() {
            Some("resources/read") => text_of(params.get("uri"), "params.uri")?,
            _ => text_of(params.get("name"), "params.name")?,
        };
    }
    if said.mcp_method.as_deref() == Some("tools/call") {
        said.mcp_tool = Some(name.clone().ok_or(Unreadable::new(
            "mcp.tool_name",
            "tools/call names no tool in params.name",
        ))?);
        // Leaving them out is calling with none.
        let arguments = root
            .get("params")
            .and_then(|params| params.get("arguments"));
        let json = arguments.map_or("{}", Value::raw);
        said.mcp_arguments = Some(Arguments(json.to_string()));
    }
    // SEP-2243: the headers repeat what the body says; a caller that says two things is lying in one of them.
    let lies = |header: &Option<String>, body: Option<&str>| {
        header
            .as_deref()
            .is_some_and(|header| body != Some(mcp_header(header).as_ref()))
    };
    if lies(&head.mcp_method, said.mcp_method.as_deref()) || lies(&head.mcp_name, name.as_deref()) {
        return Err(Unreadable::new(
            "mcp.header_mismatch",
            "the mcp-method or mcp-name header does not agree with the body",
        ));
    }
    Ok(())
}

/// A value of an `mcp-…` header; what plain text cannot carry comes as `=?base64?…?=` (SEP-2243).
fn mcp_header(value: &str) -> Cow<'_, str> {
    value
        .strip_prefix("=?base64?")
        .and_then(|rest| rest.strip_suffix("?="))
        .and_then(bytes::from_base64)
        .and_then(|decoded| String::from_utf8(decoded).ok())
        .map_or(Cow::Borrowed(value), Cow::Owned)
}

fn read_llm(root: Value<'_, '_>, said: &mut Said, body_bytes: usize) -> Result<(), Unreadable> {
    said.stream = flag_of(root.get("stream"), "stream")?;
    if let Some(options) = root.get("stream_options").filter(|value| !value.is_null()) {
        one_spelling(options, &["include_usage"])?;
        said.asked_usage = flag_of(options.get("include_usage"), "stream_options.include_usage")?;
    }
    let limits = [
        count_of(root.get("max_tokens"), "max_tokens")?,
        count_of(root.get("max_completion_tokens"), "max_completion_tokens")?,
    ];
    said.max_output_tokens = limits.into_iter().flatten().max();
    said.answers = count_of(root.get("n"), "n")?.unwrap_or(1).max(1);
    said.premium = PREMIUM.iter().any(|(key, value)| {
        root.get(key)
            .and_then(Value::text)
            .is_some_and(|text| text == **value)
    });
    // `functions` is what OpenAI called them first; it still answers to it.
    let of_bedrock = root.get("toolConfig");
    for (place, wrong) in [
        (root.get("tools"), "`tools` must be a list"),
        (root.get("functions"), "`functions` must be a list"),
        (
            of_bedrock.and_then(|config| config.get("tools")),
            "`toolConfig.tools` must be a list",
        ),
    ] {
        let Some(tools) = place.filter(|tools| is_there(*tools)) else {
            continue;
        };
        if tools.kind() != Kind::Array {
            return Err(Unreadable::new("request.json", wrong));
        }
        for tool in tools.items() {
            read_tool(tool, &mut said.tools)?;
            said.hosted |= is_hosted(tool);
            for key in ["server_url", "connector_id"] {
                read_connection(tool.get(key), said)?;
            }
        }
    }
    // Of the models that search before they answer, wherever the answer goes.
    if root.get("web_search_options").is_some_and(is_there) {
        said.tools.push("web_search".to_string());
        said.hosted = true;
    }
    let servers = root.get("mcp_servers").filter(|servers| is_there(*servers));
    for server in servers.into_iter().flat_map(Value::items) {
        one_spelling(server, &["url"])?;
        let url = server.get("url");
        read_connection(url.or(Some(server)), said)?;
        said.tools.push("mcp_toolset".to_string());
        said.hosted = true;
    }
    said.tools_at_work = !said.tools.is_empty();
    let mut media: u64 = 0;
    for message in root.get("messages").into_iter().flat_map(Value::items) {
        media = media.saturating_add(media_parts(message, &mut said.files));
        said.tools_at_work = said.tools_at_work || is_tool_output(message);
    }
    said.prompt_tokens_bound = u64::try_from(body_bytes)
        .unwrap_or(u64::MAX)
        .saturating_add(media.saturating_mul(MEDIA_TOKENS));
    Ok(())
}

/// Adds the names in one entry of the offered tools. OpenAI nests a name under the tool's type (`function`, `custom`), Bedrock under `toolSpec`, Anthropic does
/// not; Gemini has lists of them. A tool that the provider runs has only a type; of Gemini's, only a key (`{"googleSearch": {}}`). Whatever of these is there counts: a
/// harmless name in one place must not hide another.
fn read_tool(tool: Value<'_, '_>, names: &mut Vec<String>) -> Result<(), Unreadable> {
    const NESTED: [&str; 3] = ["function", "custom", "toolSpec"];
    const LISTS: [&str; 2] = ["functionDeclarations", "function_declarations"];
    one_spelling(tool, &["name", "type"])?;
    one_spelling(tool, &NESTED)?;
    one_spelling(tool, &LISTS)?;
    let before = names.len();
    let nameless = Unreadable::new("request.json", "an entry of `tools` has no name");
    let nested = NESTED.into_iter().filter_map(|key| tool.get(key));
    let lists = LISTS.into_iter().filter_map(|key| tool.get(key));
    for inner in nested.chain(lists.flat_map(Value::items)) {
        one_spelling(inner, &["name"])?;
        names.push(text_of(inner.get("name"), "tools[].name")?.ok_or(nameless.clone())?);
    }
    let own = tool.get("name").filter(|name| is_there(*name));
    let kind = tool.get("type").filter(|kind| is_there(*kind));
    names.extend(text_of(own, "tools[].name")?);
    if names.len() == before {
        names.extend(text_of(kind, "tools[].type")?);
    }
    if own.is_none() && kind.is_none() {
        let settings = |(_, value): &(_, Value<'_, '_>)| value.kind() == Kind::Object;
        let keys = tool
            .members()
            .filter(settings)
            .map(|(key, _)| key.to_cow().into_owned());
        names.extend(keys.filter(|key| !NESTED.contains(&key.as_str())));
    }
    if names.len() == before {
        return Err(nameless);
    }
    Ok(())
}

fn is_there(value: Value<'_, '_>) -> bool {
    !value.is_null()
}

/// Whether the provider runs this tool itself: one that has a type, but for those whose types say that the caller does (Anthropic, "Tool use with Claude",
/// client tools; OpenAI's have no others).
fn is_hosted(tool: Value<'_, '_>) -> bool {
    const CALLERS: [&str; 6] = [
        "function",
        "custom",
        "bash_",
        "text_editor_",
        "computer_",
        "memory_",
    ];
    let kind = tool.get("type").and_then(Value::as_str);
    kind.is_some_and(|kind| {
        let mut callers = CALLERS.into_iter();
        !callers.any(|ours| kind == ours || ours.ends_with('_') && kind.starts_with(ours))
    })
}

/// Adds the host of an MCP server that the provider is told to call, by its URL; or what the provider knows it as.
fn read_connection(place: Option<Value<'_, '_>>, said: &mut Said) -> Result<(), Unreadable> {
    let Some(place) = place.filter(|place| is_there(*place)) else {
        return Ok(());
    };
    let host = place.as_str().and_then(|place| {
        let (_, rest) = place.split_once("://").unwrap_or(("", &place));
        normal_host(rest.split(['/', '?', '#']).next()?)
    });
    said.connects.push(host.ok_or(Unreadable::new(
        "request.json",
        "an MCP server that the provider is told to call has no plain URL",
    ))?);
    Ok(())
}

/// Content parts of a message, or of a tool's result in one, that name or contain something other than text; and whether there are files among them.
/// Recursion ends with the document: [`json::MAX_DEPTH`].
fn media_parts(message: Value<'_, '_>, files: &mut bool) -> u64 {
    const MEDIA: [&str; 3] = ["image_url", "image", "input_audio"];
    const FILES: [&str; 2] = ["file", "document"];
    let parts = message.get("content").into_iter().flat_map(Value::items);
    parts
        .map(|part| {
            let kind = part.get("type").and_then(Value::text);
            let is_one_of =
                |kinds: &[&str]| kind.is_some_and(|kind| kinds.iter().any(|one| kind == **one));
            let is_file = is_one_of(&FILES);
            *files |= is_file;
            u64::from(is_file || is_one_of(&MEDIA)) + media_parts(part, files)
        })
        .sum()
}

/// Whether a message is, or contains, what a tool has put out: OpenAI's roles `tool` and `function`, Anthropic's `tool_result` and the like.
fn is_tool_output(message: Value<'_, '_>) -> bool {
    let is = |value: Option<Value<'_, '_>>, wanted: fn(&str) -> bool| {
        let text = value.and_then(Value::as_str);
        text.is_some_and(|text| wanted(&text))
    };
    is(message.get("role"), |role| {
        matches!(role, "tool" | "function")
    }) || message.get("content").is_some_and(|content| {
        let mut parts = content.items();
        parts.any(|part| is(part.get("type"), |kind| kind.ends_with("tool_result")))
    })
}

/// Refuses a key that differs from a deciding one by case alone.
fn one_spelling(object: Value<'_, '_>, deciding: &[&str]) -> Result<(), Unreadable> {
    for (key, _) in object.members() {
        let near = deciding
            .iter()
            .any(|known| key != **known && same_but_for_case(key, known));
        if near {
            return Err(Unreadable::new(
                "request.key_case",
                "a key that decides is spelt in another case",
            ));
        }
    }
    Ok(())
}

/// As Unicode's simple case folding has it, by which Go's `encoding/json` compares keys: beside the ASCII letters, U+017F is an `s` and
/// U+212A a `k`. `known` is lower-case ASCII.
fn same_but_for_case(key: json::Text<'_>, known: &str) -> bool {
    // Those two take three bytes at most where the letter takes one; nearly every key is ruled out here.
    if !(known.len()..=3 * known.len()).contains(&key.len()) {
        return false;
    }
    let folded = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        _ => c.to_ascii_lowercase(),
    };
    key.to_cow().chars().map(folded).eq(known.chars())
}

fn wrong_type(field: &str, wanted: &str) -> Unreadable {
    Unreadable {
        rule: "request.json",
        message: Cow::Owned(["`", field, "` must be ", wanted].concat()),
    }
}

fn text_of(value: Option<Value<'_, '_>>, field: &str) -> Result<Option<String>, Unreadable> {
    match value {
        None => Ok(None),
        Some(value) => value
            .as_str()
            .map(|text| Some(text.into_owned()))
            .ok_or_else(|| wrong_type(field, "text")),
    }
}

fn flag_of(value: Option<Value<'_, '_>>, field: &str) -> Result<bool, Unreadable> {
    match value.filter(|value| !value.is_null()) {
        None => Ok(false),
        Some(value) => value
            .as_bool()
            .ok_or_else(|| wrong_type(field, "true or false")),
    }
}

fn count_of(value: Option<Value<'_, '_>>, field: &str) -> Result<Option<u64>, Unreadable> {
    match value.filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .map(Some)
            .ok_or_else(|| wrong_type(field, "a whole number")),
    }
}

/// Whether any document of the bundle has a rule that needs to read bodies. Coarse on purpose: which documents apply may depend on the body.
pub fn bodies_matter(payload: &Payload) -> bool {
    payload.documents.iter().any(|document| {
        let Document {
            name: _,
            scope,
            active: _,
            network: _,
            models,
            mcp_tools,
            tools,
            data,
            limits,
        } = document;
        let searches = data.searched_in != Searched::Responses;
        matches!(scope, Scope::Tool(_))
            || !models.is_open()
            || !mcp_tools.is_open()
            || !tools.is_absent()
            || (searches && document.searched().next().is_some())
            || data.tool_output_is_data
            || data.recorded
            || limits.iter().any(counts_by_body)
    })
}

/// Whether what a call uses of it, or whether it is about that call, cannot be told without the call's body.
fn counts_by_body(limit: &Limit) -> bool {
    // The loops of a run are its calls to models.
    limit.unit != Unit::Calls
        || limit.tool.is_some()
        || limit.each_model
        || limit.window == Window::Run
}
