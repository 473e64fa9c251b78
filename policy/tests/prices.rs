//! What policies say of prices, over what the table has: nothing becomes cheaper by what a document leaves out.

use tollgate_engine::price::{Price, PriceTable};
use tollgate_policy::{compile, parse};

/// The prices of a bundle, of documents that each say these.
fn prices(documents: &[&str]) -> PriceTable {
    let text: String = (0..)
        .zip(documents)
        .map(|(number, prices)| {
            format!(
                "---\n{{apiVersion: tollgate/v1, kind: Policy, metadata: {{name: p{number}}}, spec: {{prices: {prices}}}}}\n"
            )
        })
        .collect();
    let parsed = parse("case.yaml", text.as_bytes(), true);
    assert_eq!(parsed.diagnostics, [], "{text}");
    // A day of 2026.
    let (from, to) = (20_777 * 86_400, 20_778 * 86_400);
    compile(&parsed.documents, from, to).unwrap().prices
}

fn price(model: &str, documents: &[&str]) -> Price {
    *prices(documents).find(model).unwrap()
}

#[test]
fn of_several_documents_the_dearest_counts_part_by_part() {
    let dear_input =
        "{house: {input_usd_per_million: 10, output_usd_per_million: 20, max_output_tokens: 100}}";
    let dear_output = "{house: {input_usd_per_million: 1, output_usd_per_million: 20.000001, cached_input_usd_per_million: 0, max_output_tokens: 50}}";
    for documents in [[dear_input, dear_output], [dear_output, dear_input]] {
        let price = price("house", &documents);
        assert_eq!((price.input, price.output), (10_000_000, 20_000_001));
        // Where it is not said, what is read from the cache costs as other input.
        assert_eq!(price.cached_input, Some(10_000_000));
        assert_eq!(price.max_output_tokens, Some(100));
    }
}

#[test]
fn what_a_document_leaves_open_another_one_does_not_narrow() {
    let narrow = |model| {
        format!(
            "{{{model}: {{input_usd_per_million: 1, output_usd_per_million: 3, max_output_tokens: 9}}}}"
        )
    };
    let open =
        |model| format!("{{{model}: {{input_usd_per_million: 1, output_usd_per_million: 2}}}}");
    // The table has 16,384 for gpt-4o-mini, and nothing of a house's own model.
    for (model, most) in [("gpt-4o-mini", Some(16_384)), ("house", None)] {
        let (narrow, open) = (narrow(model), open(model));
        for documents in [[&*narrow, &*open], [&*open, &*narrow]] {
            assert_eq!(price(model, &documents).max_output_tokens, most, "{model}");
        }
        assert_eq!(price(model, &[&narrow]).max_output_tokens, Some(9));
    }
}
