//! What policies say of prices, over what the table has: nothing becomes cheaper by what a document leaves out.

use tollgate_engine::price::{Price, PriceTable, worst_case};
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

/// US dollars per million tokens, of pico-USD per token.
fn usd(pico: u64) -> String {
    format!("{}.{:06}", pico / 1_000_000, pico % 1_000_000)
}

#[test]
fn a_price_that_says_what_the_table_does_changes_nothing() {
    let table = tollgate_policy::prices::builtin();
    let all: Vec<String> = table
        .models
        .iter()
        .map(|(model, price)| {
            let cached = price
                .cached_input
                .map(|cached| format!(", cached_input_usd_per_million: {}", usd(cached)));
            format!(
                "'{model}': {{input_usd_per_million: {}, output_usd_per_million: {}{}}}",
                usd(price.input),
                usd(price.output),
                cached.unwrap_or_default()
            )
        })
        .collect();
    let said = prices(&[&format!("{{{}}}", all.join(", "))]);
    for (model, price) in table.models.iter() {
        assert_eq!(said.models.get(model), Some(price), "{model}");
    }
}

#[test]
fn what_is_left_out_costs_in_proportion_what_it_does_in_the_table() {
    // Claude Sonnet 4.5 costs 3 and 15 USD per million, 3.75 where the cache is written and 6 for an hour: 1.25 and 2 times the input. A third and a
    // fifth of that, and 1,250,001.25 is rounded up.
    for (input, write, long) in [
        ("1", 1_250_000, 2_000_000),
        ("1.000001", 1_250_002, 2_000_002),
    ] {
        let said = format!(
            "{{claude-sonnet-4-5: {{input_usd_per_million: {input}, output_usd_per_million: 3}}}}"
        );
        // A snapshot is found under its model's name, and may be named itself.
        let dated = said.replace("4-5", "4-5-20250929");
        for (model, said) in [
            ("claude-sonnet-4-5", said),
            ("claude-sonnet-4-5-20250929", dated),
        ] {
            let price = price(model, &[&said]);
            assert_eq!(price.cached_input, None, "as other input");
            assert_eq!(price.cache_write, Some(write));
            assert_eq!(price.cache_write_long, Some(long));
        }
    }
}

#[test]
fn a_long_prompt_is_as_much_dearer_as_in_the_table() {
    // gpt-5.5 costs 5 and 30 USD per million, 0.50 from the cache; beyond 272,000 tokens 10, 45 and 1: twice the input, one and a half times the output.
    let said = "input_usd_per_million: 1, output_usd_per_million: 10";
    let long = price("gpt-5.5", &[&format!("{{gpt-5.5: {{{said}}}}}")])
        .long_context
        .unwrap();
    assert_eq!(long.above_input_tokens, 272_000);
    assert_eq!((long.input, long.output), (2_000_000, 15_000_000));
    assert_eq!(long.cached_input, None, "as other input");
    let cached = format!("{{gpt-5.5: {{{said}, cached_input_usd_per_million: 0.2}}}}");
    let long = price("gpt-5.5", &[&cached]).long_context.unwrap();
    assert_eq!(long.cached_input, Some(400_000));
}

#[test]
fn a_claude_that_the_table_does_not_know_writes_its_cache_as_all_do() {
    for (model, price) in tollgate_policy::prices::builtin().models.iter() {
        if model.contains("claude") {
            assert_eq!(price.cache_write.unwrap() * 4, price.input * 5, "{model}");
            assert_eq!(price.cache_write_long.unwrap(), price.input * 2, "{model}");
        }
    }
    let said = |model| {
        let said = format!("{{{model}: {{input_usd_per_million: 4, output_usd_per_million: 8}}}}");
        price(model, &[&said])
    };
    for model in ["claude-next", "eu.anthropic.claude-sonnet-4-5-v1", "Claude"] {
        let price = said(model);
        assert_eq!(price.cache_write, Some(5_000_000), "{model}");
        assert_eq!(price.cache_write_long, Some(8_000_000), "{model}");
    }
    assert_eq!(
        said("house"),
        Price {
            reasons: true,
            ..Price::flat(4_000_000, 8_000_000)
        }
    );
}

#[test]
fn what_is_free_is_free_in_every_part() {
    for model in [
        "claude-sonnet-4-5",
        "claude-next",
        "claude-haiku-5-5",
        "gpt-5.5",
        "house",
    ] {
        let said = format!("{{{model}: {{input_usd_per_million: 0, output_usd_per_million: 0}}}}");
        assert_eq!(worst_case(1_000_000, 1_000_000, &price(model, &[&said])), 0);
    }
}

#[test]
fn a_price_as_large_as_any_is_no_overflow() {
    // The most a price can be, i64::MAX pico-USD, for what costs 1.25 and 2 times as much.
    let most = usd(9_223_372_036_854_775_807);
    let said = |model: &str| {
        let said =
            format!("{{{model}: {{input_usd_per_million: '{most}', output_usd_per_million: 1}}}}");
        price(model, &[&said])
    };
    let sonnet = said("claude-sonnet-4-5");
    // 9,223,372,036,854,775,807 x 1.25 = 11,529,215,046,068,469,758.75
    assert_eq!(sonnet.cache_write, Some(11_529_215_046_068_469_759));
    assert_eq!(sonnet.cache_write_long, Some(18_446_744_073_709_551_614));
    // A long prompt of Claude Haiku 5.5 costs five times as much, which no number holds.
    let long = said("claude-haiku-5-5").long_context.unwrap();
    assert_eq!(long.input, u64::MAX);
}
