//! Messages as Anthropic's API sends them.

use serde_json::{Value, json};

use crate::answer::Answer;
use crate::knobs::Knobs;
use crate::usage::Exchange;

const ID: &str = "msg_stand_in";

pub(crate) fn answer(body: &[u8], knobs: &Knobs) -> Answer {
    let invalid = |message: &str| refusal(400, "invalid_request_error", message);
    let Ok(request) = serde_json::from_slice::<Value>(body) else {
        return invalid("The request body is not valid JSON");
    };
    if let Some(status) = knobs.status {
        return error_of_status(status);
    }
    let Some(model) = request["model"].as_str() else {
        return invalid("model: Field required");
    };
    let Some(messages) = request["messages"].as_array() else {
        return invalid("messages: Field required");
    };
    let Some(max_tokens) = request["max_tokens"].as_u64() else {
        return invalid("max_tokens: Field required");
    };
    let prompt: Vec<&Value> = messages
        .iter()
        .map(|message| &message["content"])
        .chain([&request["system"]])
        .collect();
    let message = Message {
        model: knobs.model.as_deref().unwrap_or(model),
        exchange: &Exchange::new(&prompt, Some(max_tokens), knobs),
        report_usage: !knobs.no_usage,
    };
    if request["stream"] == true {
        message.events()
    } else {
        message.document()
    }
}

struct Message<'a> {
    model: &'a str,
    exchange: &'a Exchange,
    report_usage: bool,
}

impl Message<'_> {
    fn document(&self) -> Answer {
        let text: String = self.exchange.deltas().collect();
        let body = self.envelope(
            json!([{"type": "text", "text": text}]),
            Some(self.stop_reason()),
            self.exchange.completion_tokens(),
        );
        Answer::Document { status: 200, body }
    }

    /// Input is reported at the start, output at the end; the output reported at the start is a beginning, not a total.
    fn events(&self) -> Answer {
        let mut events = vec![
            event(json!({"type": "message_start", "message": self.envelope(json!([]), None, 1)})),
            event(
                json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            ),
            event(json!({"type": "ping"})),
        ];
        events.extend(
            self.exchange.deltas().map(|text| {
                event(json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}))
            }),
        );
        events.push(event(json!({"type": "content_block_stop", "index": 0})));
        let mut end = json!({"type": "message_delta", "delta": {"stop_reason": self.stop_reason(), "stop_sequence": null}});
        if self.report_usage {
            end["usage"] = self.usage(self.exchange.completion_tokens());
        }
        events.push(event(end));
        events.push(event(json!({"type": "message_stop"})));
        Answer::Events(events)
    }

    fn envelope(&self, content: Value, stop_reason: Option<&str>, output_tokens: u64) -> Value {
        let mut envelope = json!({
            "id": ID,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": null,
        });
        if self.report_usage {
            envelope["usage"] = self.usage(output_tokens);
            envelope["usage"]["service_tier"] = "standard".into();
        }
        envelope
    }

    fn stop_reason(&self) -> &'static str {
        if self.exchange.cut_short {
            "max_tokens"
        } else {
            "end_turn"
        }
    }

    /// Unlike OpenAI's, `input_tokens` leaves out what was read from or written to the cache.
    fn usage(&self, output_tokens: u64) -> Value {
        let exchange = self.exchange;
        json!({
            "input_tokens": exchange.prompt_tokens - exchange.cached_tokens - exchange.cache_write_tokens,
            "cache_creation_input_tokens": exchange.cache_write_tokens,
            "cache_read_input_tokens": exchange.cached_tokens,
            "output_tokens": output_tokens,
            "output_tokens_details": {"thinking_tokens": exchange.reasoning_tokens.min(output_tokens)},
        })
    }
}

/// The event's name is the type of its data.
fn event(data: Value) -> String {
    format!(
        "event: {}\ndata: {data}\n\n",
        data["type"].as_str().unwrap_or_default()
    )
}

pub(crate) fn wrong_key() -> Answer {
    refusal(401, "authentication_error", "invalid x-api-key")
}

pub(crate) fn refusal(status: u16, kind: &str, message: &str) -> Answer {
    let body = json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_stand_in"});
    Answer::Document { status, body }
}

fn error_of_status(status: u16) -> Answer {
    match status {
        429 => refusal(
            429,
            "rate_limit_error",
            "This request would exceed your rate limit.",
        ),
        529 => refusal(529, "overloaded_error", "Overloaded"),
        500.. => refusal(status, "api_error", "Internal server error"),
        _ => refusal(
            status,
            "invalid_request_error",
            "The stand-in was asked to refuse.",
        ),
    }
}
