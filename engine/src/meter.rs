//! What a provider says a call used, read from its response bytes as they pass.
//!
//! A [`Meter`] never delays or changes a response and never fails: what it cannot read is unknown (`None`), which is not
//! zero. There is one exception to "never changes": a client that streams without asking for usage does not expect the
//! frame that carries it, so where the gate itself asked the provider (`stream_options.include_usage`), the meter takes
//! that one frame out again.
//!
//! Providers disagree on what their numbers mean; [`Usage`] has one meaning, stated there.

use alloc::string::String;
use alloc::vec::Vec;

use crate::json::{self, Document, Kind, Value};
use crate::sse::{self, Block};

/// The longest JSON response that is read; past it the usage is unknown. Chat responses are bounded by the output limit of
/// the models: 128 000 tokens at 4 bytes are 0.5 MiB, escaped or with log probabilities up to eight times that.
pub const MAX_JSON_BYTES: usize = 4 << 20;

/// No token of a vocabulary in use is longer: the longest of `o200k_base` are 128 spaces.
const MAX_TOKEN_BYTES: u64 = 128;

/// A longer model name is none; the longest in use is around 60 bytes.
const MAX_MODEL_BYTES: usize = 256;

/// Whose wire format a response has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// `POST …/chat/completions` of OpenAI and of the many that speak it.
    OpenAiChat,
    /// `POST /v1/messages` of Anthropic.
    AnthropicMessages,
}

/// How a response is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One JSON value.
    Json,
    /// Server-sent events.
    Sse,
}

/// What a call used, in one meaning for all providers. `None` is unknown, `Some(0)` is a zero the provider stated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All input tokens: those read from a cache and those written to one are included. (OpenAI's `prompt_tokens` is
    /// this; Anthropic's `input_tokens` leaves both out, so they are added.)
    pub input_tokens: Option<u64>,
    /// All output tokens, reasoning included.
    pub output_tokens: Option<u64>,
    /// Of the input, how many were read from a cache.
    pub cached_input_tokens: Option<u64>,
    /// Of the input, how many were written to a cache.
    pub cache_write_tokens: Option<u64>,
    /// Of those written to a cache, how many to be kept for long (Anthropic's one hour), which costs more.
    pub cache_write_long_tokens: Option<u64>,
    /// Of the output, how many were spent on reasoning.
    pub reasoning_tokens: Option<u64>,
}

/// What is known of a response when it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metered {
    /// What the provider said it used, as far as it came.
    pub usage: Usage,
    /// The model the provider says answered.
    pub model: Option<String>,
    /// The response ended as it should and its input and output tokens are known. Otherwise settle on an estimate.
    pub complete: bool,
    /// The provider answered with an error, instead of a response or in the middle of one.
    pub failed: bool,
    /// Bytes of text, reasoning and tool arguments that went by: what to settle on when the usage is unknown. Where a
    /// response could not be read, all its bytes. A token is at least one byte in byte-level vocabularies, so no visible
    /// output has more tokens than this.
    pub output_content_bytes: u64,
    /// Output is put out as it comes into being, or all of it was read: more than what went by there was not. A JSON response is sent when it is
    /// finished, and paid for whole, however little of it came.
    pub counts_all: bool,
    /// Bytes still held back, to be sent now. Always empty unless a usage frame was to be hidden.
    pub rest: Vec<u8>,
}

/// What to send on for a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fed {
    /// The chunk as it is.
    All,
    /// These bytes instead; possibly none.
    Instead(Vec<u8>),
    /// These bytes instead, and nothing behind them: with the event that ends there the response has surely more output tokens than it may have.
    /// However the bytes were cut, it is the same one.
    Until(Vec<u8>),
}

/// Reads one response.
#[derive(Debug)]
pub struct Meter {
    provider: Provider,
    body: Body,
    tally: Tally,
    most_output_tokens: u64,
}

#[derive(Debug)]
enum Body {
    Json {
        buffer: Vec<u8>,
        length: u64,
    },
    Sse {
        reader: sse::Reader,
        hide_usage_frame: bool,
    },
}

impl Meter {
    /// A meter for one response. `hide_usage_frame` is for a stream whose usage frame only the gate asked for.
    pub fn new(provider: Provider, framing: Framing, hide_usage_frame: bool) -> Meter {
        let body = match framing {
            Framing::Json => Body::Json {
                buffer: Vec::new(),
                length: 0,
            },
            Framing::Sse => Body::Sse {
                reader: sse::Reader::default(),
                hide_usage_frame,
            },
        };
        Meter {
            provider,
            body,
            tally: Tally::default(),
            most_output_tokens: u64::MAX,
        }
    }

    /// Ends an event stream that has surely more output tokens than this.
    pub fn at_most(self, output_tokens: u64) -> Meter {
        Meter {
            most_output_tokens: output_tokens,
            ..self
        }
    }

    /// Reads the next bytes, cut anywhere, and says what to send on. Only when a frame is to be hidden are bytes held
    /// back: those of an event that is not whole yet.
    pub fn feed(&mut self, chunk: &[u8]) -> Fed {
        match &mut self.body {
            Body::Json { buffer, length } => {
                *length = length.saturating_add(chunk.len() as u64);
                if *length <= MAX_JSON_BYTES as u64 {
                    buffer.extend_from_slice(chunk);
                } else {
                    *buffer = Vec::new();
                }
                Fed::All
            }
            Body::Sse {
                reader,
                hide_usage_frame,
            } => {
                let hide = *hide_usage_frame;
                let held_back = !reader.pending().is_empty();
                reader.push(chunk);
                let most = self.most_output_tokens;
                let read = read_blocks(reader, self.provider, &mut self.tally, hide, most);
                let rest = reader.pending().len();
                if read.beyond {
                    // What nobody gets is not counted either.
                    *reader = sse::Reader::default();
                    // Where nothing is held back, what the event began with has been sent.
                    let sent = chunk.get(..chunk.len().saturating_sub(rest));
                    Fed::Until(match hide {
                        true => read.forward,
                        false => sent.unwrap_or_default().to_vec(),
                    })
                } else if hide && (held_back || rest > 0 || read.hid_one) {
                    Fed::Instead(read.forward)
                } else {
                    Fed::All
                }
            }
        }
    }

    /// The response is over, whole or broken.
    pub fn finish(mut self) -> Metered {
        let mut rest = Vec::new();
        let mut counts_all = true;
        match &mut self.body {
            Body::Json { buffer, length } => match json::parse(buffer) {
                Ok(doc) => self.tally.response(self.provider, &doc),
                Err(_) => {
                    self.tally.content_bytes = *length;
                    counts_all = false;
                }
            },
            Body::Sse {
                reader,
                hide_usage_frame,
            } => {
                reader.end();
                let read = read_blocks(
                    reader,
                    self.provider,
                    &mut self.tally,
                    *hide_usage_frame,
                    u64::MAX,
                );
                self.tally.add_content(reader.pending().len());
                if *hide_usage_frame {
                    rest = read.forward;
                    rest.extend_from_slice(reader.pending());
                }
            }
        }
        let usage = self.tally.usage(self.provider);
        let known = usage.input_tokens.is_some() && usage.output_tokens.is_some();
        Metered {
            usage,
            model: self.tally.model,
            complete: known && self.tally.ended && !self.tally.failed,
            failed: self.tally.failed,
            output_content_bytes: self.tally.content_bytes,
            counts_all,
            rest,
        }
    }
}

impl Provider {
    /// Whose format these response bytes have, judged by their shape; `None` when they do not say.
    pub fn detect(framing: Framing, response: &[u8]) -> Option<Provider> {
        match framing {
            Framing::Json => shape(&json::parse(response).ok()?),
            Framing::Sse => {
                let mut reader = sse::Reader::default();
                reader.push(response);
                reader.end();
                while let Some(block) = reader.next_block() {
                    if let Block::Event(event) = block
                        && let Ok(doc) = json::parse(&event.data)
                        && let Some(provider) = shape(&doc)
                    {
                        return Some(provider);
                    }
                }
                None
            }
        }
    }
}

fn shape(doc: &Document<'_>) -> Option<Provider> {
    let root = doc.root();
    // Every message and every event of Anthropic has a `type`, its errors too; no chat completion has one.
    if root
        .get("type")
        .is_some_and(|kind| kind.kind() == Kind::String)
    {
        return Some(Provider::AnthropicMessages);
    }
    let is_chat = root.get("choices").is_some() || root.get("error").is_some();
    is_chat.then_some(Provider::OpenAiChat)
}

struct Read {
    forward: Vec<u8>,
    hid_one: bool,
    /// With the last block that was read the response went beyond what it may have.
    beyond: bool,
}

/// Reads the blocks that are whole, up to the one that goes beyond `most_output_tokens`; collects what to forward only when something may have to be hidden.
fn read_blocks(
    reader: &mut sse::Reader,
    provider: Provider,
    tally: &mut Tally,
    hide: bool,
    most_output_tokens: u64,
) -> Read {
    let mut read = Read {
        forward: Vec::new(),
        hid_one: false,
        beyond: false,
    };
    while let Some(block) = reader.next_block() {
        let (raw, is_usage_frame) = match block {
            Block::Event(event) => (event.raw, tally.event(provider, &event.data)),
            Block::Oversize(raw) => {
                tally.add_content(raw.len());
                (raw, false)
            }
        };
        if hide && is_usage_frame {
            read.hid_one = true;
        } else if hide {
            read.forward.extend_from_slice(raw);
        }
        if !reader.is_in_oversize() && tally.least_output_tokens(provider) > most_output_tokens {
            read.beyond = true;
            break;
        }
    }
    read
}

/// A count as a provider states it. What is there but no plain number makes a sum unknown, what is absent does not.
#[derive(Clone, Copy, Debug, Default)]
enum Count {
    #[default]
    Absent,
    Known(u64),
    Unreadable,
}

impl Count {
    /// Takes the member when there is one. Counts of a stream are cumulative: the last one holds.
    fn update(&mut self, from: Value<'_, '_>, key: &str) {
        match from.get(key) {
            Some(value) if !value.is_null() => {
                *self = value.as_u64().map_or(Count::Unreadable, Count::Known);
            }
            _ => {}
        }
    }

    fn known(self) -> Option<u64> {
        match self {
            Count::Known(count) => Some(count),
            Count::Absent | Count::Unreadable => None,
        }
    }

    fn known_or_none_spent(self) -> Option<u64> {
        match self {
            Count::Known(count) => Some(count),
            Count::Absent => Some(0),
            Count::Unreadable => None,
        }
    }
}

/// What was read so far, in the provider's own meaning.
#[derive(Debug, Default)]
struct Tally {
    input: Count,
    output: Count,
    total: Count,
    cached: Count,
    cache_write: Count,
    cache_write_long: Count,
    reasoning: Count,
    model: Option<String>,
    ended: bool,
    failed: bool,
    content_bytes: u64,
}

impl Tally {
    /// Tokens that the response surely has by now: as many as the provider has said, or as its text cannot be written with fewer.
    fn least_output_tokens(&self, provider: Provider) -> u64 {
        let said = self.usage(provider).output_tokens.unwrap_or(0);
        said.max(self.content_bytes / MAX_TOKEN_BYTES)
    }

    /// Reads a whole JSON response.
    fn response(&mut self, provider: Provider, doc: &Document<'_>) {
        let root = doc.root();
        self.failed = is_present(root, "error");
        self.ended = true;
        self.take_model(root);
        self.take_usage(provider, root);
        match provider {
            Provider::OpenAiChat => self.take_choices(root),
            Provider::AnthropicMessages => {
                let blocks = root.get("content").into_iter().flat_map(Value::items);
                blocks.for_each(|block| self.take_anthropic_content(block));
            }
        }
    }

    /// Reads one event of a stream; whether it is the frame that carries usage and nothing else.
    fn event(&mut self, provider: Provider, data: &[u8]) -> bool {
        if data.is_empty() {
            return false;
        }
        if provider == Provider::OpenAiChat && data == b"[DONE]" {
            self.ended = true;
            return false;
        }
        let Ok(doc) = json::parse(data) else {
            self.add_content(data.len());
            return false;
        };
        let root = doc.root();
        self.failed |= is_present(root, "error");
        match provider {
            Provider::OpenAiChat => self.openai_chunk(root),
            Provider::AnthropicMessages => {
                self.anthropic_event(root);
                false
            }
        }
    }

    fn openai_chunk(&mut self, root: Value<'_, '_>) -> bool {
        self.take_model(root);
        self.take_usage(Provider::OpenAiChat, root);
        self.take_choices(root);
        if !is_present(root, "usage") {
            return false;
        }
        // Usage comes with the end: in a frame of its own, or with the last of the content.
        let mut choices = root.get("choices").into_iter().flat_map(Value::items);
        self.ended |= choices.all(|choice| is_present(choice, "finish_reason"));
        let choices = root.get("choices");
        choices.is_some_and(|c| c.kind() == Kind::Array && c.items().next().is_none())
    }

    fn anthropic_event(&mut self, root: Value<'_, '_>) {
        match root.get("type").and_then(Value::as_str).as_deref() {
            Some("message_start") => {
                if let Some(message) = root.get("message") {
                    self.take_model(message);
                    self.take_usage(Provider::AnthropicMessages, message);
                    // A first guess, not a count: what was written is in the deltas.
                    self.output = Count::Absent;
                }
            }
            Some("content_block_start") => {
                if let Some(block) = root.get("content_block") {
                    self.take_anthropic_content(block);
                }
            }
            Some("content_block_delta") => {
                if let Some(delta) = root.get("delta") {
                    self.take_anthropic_content(delta);
                }
            }
            Some("message_delta") => {
                self.take_usage(Provider::AnthropicMessages, root);
                let delta = root.get("delta");
                self.ended |= delta.is_some_and(|delta| is_present(delta, "stop_reason"));
            }
            Some("message_stop") => self.ended = true,
            // `ping`, `content_block_stop`, `error` (seen by its member), and what is added later.
            _ => {}
        }
    }

    fn take_model(&mut self, from: Value<'_, '_>) {
        if self.model.is_none()
            && let Some(model) = from.get("model").and_then(Value::as_str)
            && (1..=MAX_MODEL_BYTES).contains(&model.len())
        {
            self.model = Some(model.into_owned());
        }
    }

    fn take_usage(&mut self, provider: Provider, from: Value<'_, '_>) {
        let Some(usage) = from.get("usage") else {
            return;
        };
        match provider {
            Provider::OpenAiChat => {
                self.input.update(usage, "prompt_tokens");
                self.output.update(usage, "completion_tokens");
                self.total.update(usage, "total_tokens");
                if let Some(details) = usage.get("prompt_tokens_details") {
                    self.cached.update(details, "cached_tokens");
                    self.cache_write.update(details, "cache_write_tokens");
                }
                if let Some(details) = usage.get("completion_tokens_details") {
                    self.reasoning.update(details, "reasoning_tokens");
                }
            }
            Provider::AnthropicMessages => {
                self.input.update(usage, "input_tokens");
                self.output.update(usage, "output_tokens");
                self.cached.update(usage, "cache_read_input_tokens");
                self.cache_write
                    .update(usage, "cache_creation_input_tokens");
                if let Some(by_lifetime) = usage.get("cache_creation") {
                    let long = "ephemeral_1h_input_tokens";
                    self.cache_write_long.update(by_lifetime, long);
                }
                if let Some(details) = usage.get("output_tokens_details") {
                    self.reasoning.update(details, "thinking_tokens");
                }
            }
        }
    }

    /// Counts the content of an OpenAI response (`message`) or chunk (`delta`).
    fn take_choices(&mut self, root: Value<'_, '_>) {
        for choice in root.get("choices").into_iter().flat_map(Value::items) {
            let Some(said) = choice.get("delta").or_else(|| choice.get("message")) else {
                continue;
            };
            // `reasoning_content` and `reasoning` are what compatible providers call it.
            for key in ["content", "refusal", "reasoning_content", "reasoning"] {
                self.add_member(said, key);
            }
            if let Some(audio) = said.get("audio") {
                self.add_member(audio, "transcript");
            }
            let calls = said.get("tool_calls").into_iter().flat_map(Value::items);
            let functions = calls.filter_map(|call| call.get("function").or(call.get("custom")));
            for function in functions.chain(said.get("function_call")) {
                for key in ["name", "arguments", "input"] {
                    self.add_member(function, key);
                }
            }
        }
    }

    /// Counts the content of an Anthropic content block, or of a delta to one. Signatures are not generated text.
    fn take_anthropic_content(&mut self, block: Value<'_, '_>) {
        for key in ["text", "thinking", "partial_json", "name", "input", "data"] {
            self.add_member(block, key);
        }
    }

    fn add_member(&mut self, from: Value<'_, '_>, key: &str) {
        let Some(value) = from.get(key) else { return };
        match value.kind() {
            Kind::String => self.add_content(value.text().map_or(0, |text| text.len())),
            Kind::Array | Kind::Object | Kind::Number => self.add_content(value.raw().len()),
            Kind::Null | Kind::Bool => {}
        }
    }

    fn add_content(&mut self, bytes: usize) {
        self.content_bytes = self.content_bytes.saturating_add(bytes as u64);
    }

    fn usage(&self, provider: Provider) -> Usage {
        let (input_tokens, output_tokens) = match provider {
            Provider::OpenAiChat => (self.input.known(), self.openai_output()),
            Provider::AnthropicMessages => (self.anthropic_input(), self.output.known()),
        };
        Usage {
            input_tokens,
            output_tokens,
            cached_input_tokens: self.cached.known(),
            cache_write_tokens: self.cache_write.known(),
            cache_write_long_tokens: self.cache_write_long.known(),
            reasoning_tokens: self.reasoning.known(),
        }
    }

    /// Of those who speak OpenAI's format, xAI leaves reasoning out of `completion_tokens`. Its own total shows it.
    fn openai_output(&self) -> Option<u64> {
        let output = self.output.known()?;
        if let (Some(input), Some(total), Some(reasoning)) = (
            self.input.known(),
            self.total.known(),
            self.reasoning.known(),
        ) && let Some(apart) = output.checked_add(reasoning)
            && input.checked_add(apart) == Some(total)
        {
            return Some(apart);
        }
        Some(output)
    }

    fn anthropic_input(&self) -> Option<u64> {
        let read = self.cached.known_or_none_spent()?;
        let written = self.cache_write.known_or_none_spent()?;
        self.input.known()?.checked_add(read)?.checked_add(written)
    }
}

fn is_present(object: Value<'_, '_>, key: &str) -> bool {
    object.get(key).is_some_and(|value| !value.is_null())
}
