//! How the stand-in counts: one token is one word, a run of anything but white space.
//!
//! The prompt is the text of every message (and of Anthropic's `system`); names, roles, tools and images count nothing. The reply is cut
//! to what `max_tokens` leaves after the reasoning tokens, and then says that it ended for length.

use serde_json::Value;

use crate::knobs::Knobs;

/// How many words the model says when nobody says otherwise.
const REPLY_TOKENS: u64 = 8;

/// What it says, over and over.
const WORDS: [&str; 8] = ["The", "gate", "let", "this", "call", "through", "to", "me."];

/// One exchange, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What the model says, word by word.
    pub words: Vec<String>,
    /// Whether `max_tokens` cut it short.
    pub cut_short: bool,
    /// All tokens of the prompt, cached or not.
    pub prompt_tokens: u64,
    /// Those read from the cache.
    pub cached_tokens: u64,
    /// Those written to the cache; none of them was read from it.
    pub cache_write_tokens: u64,
    /// Those thought, not said.
    pub reasoning_tokens: u64,
}

impl Exchange {
    pub(crate) fn new(prompt: &[&Value], max_tokens: Option<u64>, knobs: &Knobs) -> Self {
        let prompt_tokens = prompt.iter().map(|content| words_in(content)).sum();
        let cached_tokens = knobs.cached_tokens.min(prompt_tokens);
        let max_tokens = max_tokens.unwrap_or(u64::MAX);
        let reasoning_tokens = knobs.reasoning_tokens.min(max_tokens);
        let mut words: Vec<String> = match &knobs.reply {
            Some(reply) => reply.split_whitespace().map(str::to_owned).collect(),
            None => {
                // Bounded before anything is made of it: the number is a caller's.
                let said = knobs
                    .completion_tokens
                    .unwrap_or(REPLY_TOKENS)
                    .min(max_tokens.saturating_add(1))
                    .min(1 << 20);
                (0..said)
                    .zip(WORDS.iter().cycle())
                    .map(|(_, word)| (*word).to_owned())
                    .collect()
            }
        };
        if knobs.pad > 0 {
            words.push("x".repeat(knobs.pad));
        }
        let left = usize::try_from(max_tokens - reasoning_tokens).unwrap_or(usize::MAX);
        let cut_short = words.len() > left || knobs.reasoning_tokens > max_tokens;
        words.truncate(left);
        Self {
            words,
            cut_short,
            prompt_tokens,
            cached_tokens,
            cache_write_tokens: knobs.cache_write_tokens.min(prompt_tokens - cached_tokens),
            reasoning_tokens,
        }
    }

    /// The reply in the pieces a stream sends it in; together they are the words with one space between.
    pub fn deltas(&self) -> impl Iterator<Item = String> {
        self.words.iter().enumerate().map(|(index, word)| {
            if index == 0 {
                word.clone()
            } else {
                format!(" {word}")
            }
        })
    }

    /// Words said and tokens thought.
    #[must_use]
    pub fn completion_tokens(&self) -> u64 {
        self.words.len() as u64 + self.reasoning_tokens
    }
}

/// Content is text, or a list of parts of which some have text, or a list of blocks that hold content in turn (tool results).
fn words_in(content: &Value) -> u64 {
    match content {
        Value::String(text) => text.split_whitespace().count() as u64,
        Value::Array(parts) => parts
            .iter()
            .map(|part| words_in(&part["text"]) + words_in(&part["content"]))
            .sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_word_is_a_token_wherever_the_text_is() {
        let prompt = [
            json!("two words"),
            json!([{"type": "text", "text": "and three more"}, {"type": "image"}]),
        ];
        let exchange = Exchange::new(&prompt.each_ref(), None, &Knobs::default());
        assert_eq!(exchange.prompt_tokens, 5);
        assert_eq!(
            exchange.deltas().collect::<String>(),
            "The gate let this call through to me."
        );
        assert_eq!(exchange.completion_tokens(), 8);
        assert!(!exchange.cut_short);
    }

    #[test]
    fn max_tokens_covers_thinking_and_speaking() {
        let knobs = Knobs {
            reasoning_tokens: 3,
            completion_tokens: Some(10),
            ..Knobs::default()
        };
        let exchange = Exchange::new(&[], Some(5), &knobs);
        assert_eq!(
            (
                exchange.words.len(),
                exchange.reasoning_tokens,
                exchange.cut_short
            ),
            (2, 3, true)
        );
    }

    #[test]
    fn the_cache_cannot_hold_more_than_the_prompt() {
        let knobs = Knobs {
            cached_tokens: 3,
            cache_write_tokens: 9,
            ..Knobs::default()
        };
        let exchange = Exchange::new(&[&json!("one two three four five")], None, &knobs);
        assert_eq!(
            (exchange.cached_tokens, exchange.cache_write_tokens),
            (3, 2)
        );
    }
}
