//! The price table that ships with Tollgate; `prices/import.py` writes it.

use crate::document::{Document, ModelPrice, Rollout};
use std::{collections::BTreeMap, sync::LazyLock};
use tollgate_engine::price::{Price, PriceTable};

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

/// What a document says of a model, and what it leaves out.
fn whole(said: &ModelPrice) -> Price {
    let known = builtin().find(&said.model);
    Price {
        cached_input: said.cached_input,
        max_input_tokens: known.and_then(|known| known.max_input_tokens),
        max_output_tokens: said
            .max_output_tokens
            .or(known.and_then(|known| known.max_output_tokens)),
        // Of a model that nobody here knows nobody knows whether it reasons.
        reasons: known.is_none_or(|known| known.reasons),
        ..Price::flat(said.input, said.output)
    }
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
