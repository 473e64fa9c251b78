//! Chat completions as OpenAI's API sends them.

use serde_json::{Value, json};

use crate::answer::Answer;
use crate::knobs::Knobs;
use crate::usage::Exchange;

const ID: &str = "chatcmpl-stand-in";
const CREATED_UNIX_S: u64 = 1_741_569_952;
const FINGERPRINT: &str = "fp_stand_in";

pub(crate) fn answer(body: &[u8], knobs: &Knobs) -> Answer {
    let Ok(request) = serde_json::from_slice::<Value>(body) else {
        return refusal(
            400,
            "invalid_request_error",
            None,
            "We could not parse the JSON body of your request.",
        );
    };
    if let Some(status) = knobs.status {
        return error_of_status(status);
    }
    let Some(model) = request["model"].as_str() else {
        return refusal(
            400,
            "invalid_request_error",
            None,
            "you must provide a model parameter",
        );
    };
    let Some(messages) = request["messages"].as_array() else {
        return refusal(
            400,
            "invalid_request_error",
            None,
            "Missing required parameter: 'messages'.",
        );
    };
    let prompt: Vec<&Value> = messages.iter().map(|message| &message["content"]).collect();
    let max_tokens = request["max_completion_tokens"]
        .as_u64()
        .or_else(|| request["max_tokens"].as_u64());
    let completion = Completion {
        model: knobs.model.as_deref().unwrap_or(model),
        choices: request["n"].as_u64().unwrap_or(1).clamp(1, 128),
        exchange: &Exchange::new(&prompt, max_tokens, knobs),
        report_usage: !knobs.no_usage,
    };
    if request["stream"] == true {
        let include_usage = request["stream_options"]["include_usage"] == true;
        completion.events(include_usage)
    } else {
        completion.document()
    }
}

struct Completion<'a> {
    model: &'a str,
    choices: u64,
    exchange: &'a Exchange,
    report_usage: bool,
}

impl Completion<'_> {
    fn document(&self) -> Answer {
        let text: String = self.exchange.deltas().collect();
        let choice = |index: u64| {
            json!({
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": null, "annotations": []},
                "logprobs": null,
                "finish_reason": self.finish_reason(),
            })
        };
        let mut body = json!({
            "id": ID,
            "object": "chat.completion",
            "created": CREATED_UNIX_S,
            "model": self.model,
            "choices": (0..self.choices).map(choice).collect::<Vec<_>>(),
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        });
        if self.report_usage {
            body["usage"] = self.usage();
        }
        Answer::Document { status: 200, body }
    }

    /// Usage comes in a frame of its own, without choices, before the end, and only when asked for; when it was, every other
    /// chunk says `"usage": null`.
    fn events(&self, include_usage: bool) -> Answer {
        let chunk = |choices: Value, usage: Option<Value>| {
            let mut chunk = json!({
                "id": ID,
                "object": "chat.completion.chunk",
                "created": CREATED_UNIX_S,
                "model": self.model,
                "service_tier": "default",
                "system_fingerprint": FINGERPRINT,
                "choices": choices,
            });
            if include_usage && self.report_usage {
                chunk["usage"] = usage.unwrap_or(Value::Null);
            }
            event(&chunk.to_string())
        };
        let choice = |index: u64, delta: Value, finish_reason: Option<&str>| {
            chunk(
                json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": finish_reason}]),
                None,
            )
        };
        let mut events = Vec::new();
        for index in 0..self.choices {
            events.push(choice(
                index,
                json!({"role": "assistant", "content": "", "refusal": null}),
                None,
            ));
            events.extend(
                self.exchange
                    .deltas()
                    .map(|delta| choice(index, json!({"content": delta}), None)),
            );
            events.push(choice(index, json!({}), Some(self.finish_reason())));
        }
        if include_usage && self.report_usage {
            events.push(chunk(json!([]), Some(self.usage())));
        }
        events.push(event("[DONE]"));
        Answer::Events(events)
    }

    fn finish_reason(&self) -> &'static str {
        if self.exchange.cut_short {
            "length"
        } else {
            "stop"
        }
    }

    fn usage(&self) -> Value {
        let exchange = self.exchange;
        let completion_tokens = self.choices * exchange.completion_tokens();
        json!({
            "prompt_tokens": exchange.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": exchange.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": exchange.cached_tokens,
                "cache_write_tokens": exchange.cache_write_tokens,
                "audio_tokens": 0,
            },
            "completion_tokens_details": {
                "reasoning_tokens": self.choices * exchange.reasoning_tokens,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        })
    }
}

fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}

pub(crate) fn wrong_key() -> Answer {
    refusal(
        401,
        "invalid_request_error",
        Some("invalid_api_key"),
        "Incorrect API key provided.",
    )
}

pub(crate) fn refusal(status: u16, kind: &str, code: Option<&str>, message: &str) -> Answer {
    Answer::Document {
        status,
        body: json!({"error": {"message": message, "type": kind, "param": null, "code": code}}),
    }
}

fn error_of_status(status: u16) -> Answer {
    match status {
        429 => refusal(
            429,
            "tokens",
            Some("rate_limit_exceeded"),
            "Rate limit reached. Please try again in 1s.",
        ),
        500.. => refusal(
            status,
            "server_error",
            None,
            "The server had an error while processing your request. Sorry about that!",
        ),
        _ => refusal(
            status,
            "invalid_request_error",
            None,
            "The stand-in was asked to refuse.",
        ),
    }
}
