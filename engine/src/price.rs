//! What models cost. Integers only: prices in pico-USD per token, money in nano-USD, rounded up once at the very end.
//!
//! Deliberately not here: prices by service tier (`priority`, `flex`, `batch`), by region, per image, per audio token or
//! per search. A model that is billed by those has no entry, and a model without an entry is never free.

use crate::{meter::Usage, sorted::Map};
use alloc::{format, string::String};
use serde::{Deserialize, Serialize};

const PICO_PER_NANO: u128 = 1_000;
const NANO_PER_USD: u64 = 1_000_000_000;
const NANO_PER_CENT: u64 = NANO_PER_USD / 100;

/// Price of one model, in pico-USD (10⁻¹² US dollars) per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Fresh input.
    pub input: u64,
    /// Output.
    pub output: u64,
    /// Input read from the provider's cache; `None`: as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<u64>,
    /// Input written to the provider's cache; `None`: as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<u64>,
    /// Input written to the cache to be kept for long; `None`: as `cache_write`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_long: Option<u64>,
    /// Output spent on reasoning; `None`: as `output`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<u64>,
    /// What a call with a long prompt costs instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_context: Option<LongContext>,
    /// Most tokens the model takes in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_input_tokens: Option<u64>,
    /// Most tokens the model puts out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
    /// It may put out tokens that nobody is shown, so that what was seen of a broken answer says nothing of its cost.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub reasons: bool,
}

/// Prices of a whole call, first token included, once its input is longer than a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LongContext {
    /// These prices hold when the call has more input tokens than this.
    pub above_input_tokens: u64,
    /// Fresh input.
    pub input: u64,
    /// Output.
    pub output: u64,
    /// Input read from the provider's cache; `None`: as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<u64>,
    /// Input written to the provider's cache; `None`: as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<u64>,
    /// Input written to the cache to be kept for long; `None`: as `cache_write`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_long: Option<u64>,
}

/// The prices that hold for one call, with every default filled in.
#[derive(Clone, Copy)]
struct Rates {
    input: u64,
    cached_input: u64,
    cache_write: u64,
    cache_write_long: u64,
    output: u64,
    reasoning: u64,
}

impl Price {
    /// One price for all input and one for all output.
    pub const fn flat(input: u64, output: u64) -> Price {
        Price {
            input,
            output,
            cached_input: None,
            cache_write: None,
            cache_write_long: None,
            reasoning: None,
            long_context: None,
            max_input_tokens: None,
            max_output_tokens: None,
            reasons: false,
        }
    }

    /// What no call costs less under, or sets aside less, than under either: of each part the dearer one. What a price leaves out counts as what
    /// stands for it, and a bound that only one of them knows is not known. Of two lengths from which a prompt is long the shorter holds for both.
    pub fn dearest(self, other: Price) -> Price {
        let base = self.base_rates().dearest(other.base_rates());
        let long = [self, other]
            .iter()
            .filter_map(|price| price.long_rates(u64::MAX))
            .fold(base, Rates::dearest);
        let above = [self.long_context, other.long_context];
        let above = above.into_iter().flatten();
        let larger = |one: Option<u64>, two: Option<u64>| Some(one?.max(two?));
        Price {
            input: base.input,
            output: base.output,
            cached_input: Some(base.cached_input),
            cache_write: Some(base.cache_write),
            cache_write_long: Some(base.cache_write_long),
            reasoning: Some(base.reasoning),
            long_context: above.map(|long| long.above_input_tokens).min().map(
                |above_input_tokens| LongContext {
                    above_input_tokens,
                    input: long.input,
                    // Reasoning has no price of its own there.
                    output: long.output.max(long.reasoning),
                    cached_input: Some(long.cached_input),
                    cache_write: Some(long.cache_write),
                    cache_write_long: Some(long.cache_write_long),
                },
            ),
            max_input_tokens: larger(self.max_input_tokens, other.max_input_tokens),
            max_output_tokens: larger(self.max_output_tokens, other.max_output_tokens),
            reasons: self.reasons || other.reasons,
        }
    }

    fn base_rates(&self) -> Rates {
        let cache_write = self.cache_write.unwrap_or(self.input);
        Rates {
            input: self.input,
            cached_input: self.cached_input.unwrap_or(self.input),
            cache_write,
            cache_write_long: self.cache_write_long.unwrap_or(cache_write),
            output: self.output,
            reasoning: self.reasoning.unwrap_or(self.output),
        }
    }

    fn long_rates(&self, input_tokens: u64) -> Option<Rates> {
        let long = self
            .long_context
            .filter(|long| input_tokens > long.above_input_tokens)?;
        let cache_write = long.cache_write.unwrap_or(long.input);
        Some(Rates {
            input: long.input,
            cached_input: long.cached_input.unwrap_or(long.input),
            cache_write,
            cache_write_long: long.cache_write_long.unwrap_or(cache_write),
            output: long.output,
            reasoning: long.output,
        })
    }
}

impl Rates {
    fn dearest(self, other: Rates) -> Rates {
        Rates {
            input: self.input.max(other.input),
            cached_input: self.cached_input.max(other.cached_input),
            cache_write: self.cache_write.max(other.cache_write),
            cache_write_long: self.cache_write_long.max(other.cache_write_long),
            output: self.output.max(other.output),
            reasoning: self.reasoning.max(other.reasoning),
        }
    }

    fn dearest_input(&self) -> u64 {
        self.input
            .max(self.cached_input)
            .max(self.cache_write)
            .max(self.cache_write_long)
    }
}

/// What the usage costs in nano-USD; `None` when input or output tokens are unknown. A part that is unknown (cached,
/// written, reasoning) is billed as the rest. Saturates at `u64::MAX`, which no limit covers.
pub fn cost(usage: &Usage, price: &Price) -> Option<u64> {
    let input = usage.input_tokens?;
    let output = usage.output_tokens?;
    let cached = usage.cached_input_tokens.unwrap_or(0);
    let written_long = usage.cache_write_long_tokens.unwrap_or(0);
    let written = usage.cache_write_tokens.unwrap_or(0);
    let reasoning = usage.reasoning_tokens.unwrap_or(0);

    let rates = price
        .long_rates(input)
        .unwrap_or_else(|| price.base_rates());
    let fresh = input.saturating_sub(cached).saturating_sub(written);
    Some(nano(&[
        (fresh, rates.input),
        (cached, rates.cached_input),
        (written.saturating_sub(written_long), rates.cache_write),
        (written_long, rates.cache_write_long),
        (output.saturating_sub(reasoning), rates.output),
        (reasoning, rates.reasoning),
    ]))
}

/// The most a call can cost in nano-USD: every prompt token at the dearest rate an input token can have, every output
/// token at the dearer of output and reasoning. Not below [`cost`] of any usage within the two bounds.
pub fn worst_case(prompt_tokens_bound: u64, max_output_tokens: u64, price: &Price) -> u64 {
    let base = price.base_rates();
    let long = price.long_rates(prompt_tokens_bound);
    let long = long.as_ref().unwrap_or(&base);
    let input = base.dearest_input().max(long.dearest_input());
    let output = base.output.max(base.reasoning).max(long.output);
    nano(&[(prompt_tokens_bound, input), (max_output_tokens, output)])
}

/// Σ tokens × pico-USD, rounded up to nano-USD.
fn nano(parts: &[(u64, u64)]) -> u64 {
    let pico = parts.iter().fold(0_u128, |sum, (tokens, price)| {
        // A product of two u64 fits; six of them may not.
        sum.saturating_add(u128::from(*tokens) * u128::from(*price))
    });
    u64::try_from(pico.div_ceil(PICO_PER_NANO)).unwrap_or(u64::MAX)
}

/// An amount of nano-USD for people: `$12.50`, `$0.00001005`; never rounded.
pub fn usd(nano_usd: u64) -> String {
    let (whole, fraction) = (nano_usd / NANO_PER_USD, nano_usd % NANO_PER_USD);
    if fraction.is_multiple_of(NANO_PER_CENT) {
        return format!("${whole}.{:02}", fraction / NANO_PER_CENT);
    }
    let text = format!("${whole}.{fraction:09}");
    text.trim_end_matches('0').into()
}

/// A dated table of prices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceTable {
    /// Where the numbers come from.
    pub source: String,
    /// When they were read, `YYYY-MM-DD`.
    pub date: String,
    /// By model name.
    pub models: Map<String, Price>,
}

impl PriceTable {
    /// The price of a model; `None` when the table does not know it, which is never to be read as zero.
    ///
    /// Tried in this order, the name always as a whole and never as a prefix, so that a model is not charged as its
    /// smaller or larger relative:
    /// 1. the name as it is;
    /// 2. without a vendor in front: `openai/…`, `anthropic/…`;
    /// 3. a fine-tuned model (`ft:<base>:<org>:…`) as `ft:<base>`, never as `<base>`, which is cheaper;
    /// 4. without a date at the end (`-YYYY-MM-DD`, `-YYYYMMDD`) or `-latest`: a snapshot costs what its model does, unless
    ///    it has an entry of its own.
    pub fn find(&self, model: &str) -> Option<&Price> {
        self.entry(model).map(|(_, price)| price)
    }

    /// The same, with the name that the table has it under.
    pub fn entry(&self, model: &str) -> Option<(&str, &Price)> {
        let entry = |name: &str| {
            let (name, price) = self.models.get_key_value(name)?;
            Some((name.as_str(), price))
        };
        if let Some(found) = entry(model) {
            return Some(found);
        }
        let name = VENDORS
            .iter()
            .find_map(|vendor| model.strip_prefix(vendor))
            .unwrap_or(model);
        let name = fine_tuned_base(name).unwrap_or(name);
        entry(name).or_else(|| entry(without_date(name)?))
    }
}

const VENDORS: [&str; 2] = ["openai/", "anthropic/"];

/// `ft:<base>` of `ft:<base>:<org>:…`.
fn fine_tuned_base(name: &str) -> Option<&str> {
    const PREFIX: &str = "ft:";
    let base = name.strip_prefix(PREFIX)?;
    name.get(..PREFIX.len() + base.find(':')?)
}

fn without_date(name: &str) -> Option<&str> {
    if let Some(base) = name.strip_suffix("-latest") {
        return Some(base);
    }
    [SEPARATED_DATE, COMPACT_DATE].into_iter().find_map(|date| {
        let (base, suffix) = name.split_at_checked(name.len().checked_sub(date.len())?)?;
        let fits = suffix.bytes().zip(date.bytes()).all(|(byte, shape)| {
            if shape == b'0' {
                byte.is_ascii_digit()
            } else {
                byte == shape
            }
        });
        fits.then_some(base)
    })
}

/// A `0` stands for any digit; years start with 2.
const SEPARATED_DATE: &str = "-2000-00-00";
const COMPACT_DATE: &str = "-20000000";
