//! What models cost. Integers only: prices in pico-USD per token, money in nano-USD.

use alloc::{collections::BTreeMap, string::String};
use serde::{Deserialize, Serialize};

/// Price of one model, in pico-USD (10⁻¹² US dollars) per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Fresh input.
    pub input: u64,
    /// Output, reasoning included.
    pub output: u64,
    /// Input read from the provider's cache; `None`: as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<u64>,
    /// Input written to the provider's cache; `None`: as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<u64>,
    /// Most tokens the model puts out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
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
    pub models: BTreeMap<String, Price>,
}
