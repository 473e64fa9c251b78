//! The price table that ships with Tollgate; `prices/import.py` writes it.

use tollgate_engine::price::PriceTable;

/// The built-in prices, with their date and source inside.
pub fn builtin() -> PriceTable {
    // A test reads the file; a table without models would leave every model without a price, and none is free then.
    serde_json::from_str(include_str!("../prices/models.json")).unwrap_or_default()
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
