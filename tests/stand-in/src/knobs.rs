//! What a caller can ask the stand-in to be, by request header. Every header starts with `x-stand-in-`.
//!
//! | header | value | effect |
//! |---|---|---|
//! | `reply` | text | what the model says; its words are its tokens |
//! | `completion-tokens` | number | how many words the model says when no `reply` is given; 8 by default |
//! | `cached-tokens` | number | so many of the prompt's tokens count as read from the cache |
//! | `cache-write-tokens` | number | so many of the others count as written to the cache |
//! | `reasoning-tokens` | number | tokens the model thinks before it speaks; part of the completion |
//! | `model` | name | the model that the answer names, where it is not the one that was asked for |
//! | `no-usage` | any | no usage is reported |
//! | `status` | number | an error of this status, in the provider's own shape |
//! | `head-delay-ms` | number | wait before the answer's head |
//! | `delay-ms` | number | wait before each piece of its body |
//! | `split` | number | send the body in pieces of so many bytes, wherever that cuts |
//! | `cut-after` | number | after so many pieces the connection breaks |
//! | `pad` | number | the model says one more word, of so many bytes |
//! | `gzip` | any | the body is compressed and says so, whatever the request accepts |
//! | `garbage` | any | the body is 64 bytes of nothing, and says it is what it should have been |

use std::time::Duration;

use axum::http::HeaderMap;

/// The headers above, read. One that does not read as its type is as good as absent: a test that relies on it will see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "one field per row of the table above")]
pub struct Knobs {
    pub reply: Option<String>,
    pub completion_tokens: Option<u64>,
    pub cached_tokens: u64,
    pub cache_write_tokens: u64,
    pub reasoning_tokens: u64,
    pub model: Option<String>,
    pub no_usage: bool,
    pub status: Option<u16>,
    pub head_delay: Duration,
    pub delay: Duration,
    pub split: Option<usize>,
    pub cut_after: Option<usize>,
    pub pad: usize,
    pub gzip: bool,
    pub garbage: bool,
}

impl Knobs {
    pub(crate) fn from_headers(headers: &HeaderMap) -> Self {
        let text = |name: &str| {
            headers
                .get(format!("x-stand-in-{name}"))
                .and_then(|value| value.to_str().ok())
        };
        let number = |name: &str| text(name).and_then(|value| value.parse::<u64>().ok());
        let size = |name: &str| number(name).and_then(|value| usize::try_from(value).ok());
        Self {
            reply: text("reply").map(str::to_owned),
            completion_tokens: number("completion-tokens"),
            cached_tokens: number("cached-tokens").unwrap_or(0),
            cache_write_tokens: number("cache-write-tokens").unwrap_or(0),
            reasoning_tokens: number("reasoning-tokens").unwrap_or(0),
            model: text("model").map(str::to_owned),
            no_usage: text("no-usage").is_some(),
            status: number("status").and_then(|value| u16::try_from(value).ok()),
            head_delay: Duration::from_millis(number("head-delay-ms").unwrap_or(0)),
            delay: Duration::from_millis(number("delay-ms").unwrap_or(0)),
            split: size("split").filter(|bytes| *bytes > 0),
            cut_after: size("cut-after"),
            pad: size("pad").unwrap_or(0),
            gzip: text("gzip").is_some(),
            garbage: text("garbage").is_some(),
        }
    }
}
