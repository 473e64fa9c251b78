//! The price table that ships with Tollgate; `prices/import.py` writes it.

use crate::document::{Document, ModelPrice, Rollout};
use std::{collections::BTreeMap, sync::LazyLock};
use tollgate_engine::price::{LongContext, Price, PriceTable};

/// The built-in prices, with their date and source inside.
pub fn builtin() -> &'static PriceTable {
    static TABLE: LazyLock<PriceTable> = LazyLock::new(|| {
        // A test reads the file; a table without models would leave every model without a price, and none is free then.
        serde_json::from_str(include_str!("../prices/models.json")).unwrap_or_default()
    });
    &TABLE
}

/// The same, and over it what the documents that are enforced say of models; where several name one, the dearest, part by part.
pub(crate) fn with(documents: &[Document]) -> PriceTable {
    let enforced = documents
        .iter()
        .filter(|document| document.rollout == Rollout::Enforce);
    let mut dearest: BTreeMap<&String, Price> = BTreeMap::new();
    for said in enforced.flat_map(|document| &document.prices) {
        let price = whole(said);
        dearest
            .entry(&said.model)
            .and_modify(|other| *other = other.dearest(price))
            .or_insert(price);
    }
    let mut table = builtin().clone();
    for (model, price) in dearest {
        table.models.insert(model.clone(), price);
    }
    table
}

/// What a document says of a model, and for what it leaves out what the table has, in proportion: who pays less for input pays less for writing it to
/// a cache.
fn whole(said: &ModelPrice) -> Price {
    let known = builtin().find(&said.model).copied();
    let known = known.unwrap_or(match said.model.to_ascii_lowercase().contains("claude") {
        true => CLAUDE,
        false => OTHER,
    });
    let by_input = |price| scaled(price, said.input, known.input);
    let by_output = |price| scaled(price, said.output, known.output);
    Price {
        input: said.input,
        output: said.output,
        cached_input: said.cached_input,
        cache_write: known.cache_write.map(by_input),
        cache_write_long: known.cache_write_long.map(by_input),
        reasoning: known.reasoning.map(by_output),
        long_context: known.long_context.map(|long| LongContext {
            input: by_input(long.input),
            output: by_output(long.output),
            cached_input: said.cached_input.map(|cached| {
                let known = known.cached_input.unwrap_or(known.input);
                scaled(long.cached_input.unwrap_or(long.input), cached, known)
            }),
            cache_write: long.cache_write.map(by_input),
            cache_write_long: long.cache_write_long.map(by_input),
            ..long
        }),
        max_output_tokens: said.max_output_tokens.or(known.max_output_tokens),
        ..known
    }
}

/// In place of a price of the table, for proportions: what all of Anthropic's models have in it. Writing to the cache costs 1.25 times the input,
/// for an hour twice.
const CLAUDE: Price = Price {
    input: 4,
    cache_write: Some(5),
    cache_write_long: Some(8),
    ..OTHER
};

/// Of a model that nobody here knows nobody knows whether it reasons.
const OTHER: Price = Price {
    reasons: true,
    ..Price::flat(1, 1)
};

/// What costs `price` where another part costs `old`, where that costs `new`; rounded up.
fn scaled(price: u64, new: u64, old: u64) -> u64 {
    // Nothing in the table is free; a test says so.
    let exact = (u128::from(price) * u128::from(new)).div_ceil(u128::from(old.max(1)));
    u64::try_from(exact).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_file_is_a_price_table() {
        let table = super::builtin();
        assert!(table.find("gpt-4o-mini").is_some() && table.find("claude-haiku-4-5").is_some());
        assert!(!table.source.is_empty() && !table.date.is_empty());
    }
}
