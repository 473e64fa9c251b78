//! Money is exact, rounded up once, never below what a call can cost, and never looked up under a cheaper name.

use tollgate_engine::meter::Usage;
use tollgate_engine::price::{LongContext, Price, PriceTable, cost, usd, worst_case};

fn usage(input: u64, output: u64) -> Usage {
    Usage {
        input_tokens: Some(input),
        output_tokens: Some(output),
        ..Usage::default()
    }
}

/// Claude Sonnet 4.5: 3, 15, 0.30, 3.75 and 6 USD per million tokens.
fn sonnet() -> Price {
    Price {
        cached_input: Some(300_000),
        cache_write: Some(3_750_000),
        cache_write_long: Some(6_000_000),
        ..Price::flat(3_000_000, 15_000_000)
    }
}

#[test]
fn every_kind_of_token_has_its_price() {
    // 1 000 000 input tokens at 2.50 USD per million and 100 000 output tokens at 10: 2.50 + 1.00 USD.
    let flat = Price::flat(2_500_000, 10_000_000);
    assert_eq!(cost(&usage(1_000_000, 100_000), &flat), Some(3_500_000_000));

    let all = Usage {
        cached_input_tokens: Some(400),
        cache_write_tokens: Some(300),
        cache_write_long_tokens: Some(100),
        reasoning_tokens: Some(50),
        ..usage(1000, 80)
    };
    // 300 fresh × 3 000 + 400 read × 300 + 200 written × 3 750 + 100 for long × 6 000 + 80 output × 15 000, in nano-USD:
    // 900 000 + 120 000 + 750 000 + 600 000 + 1 200 000
    assert_eq!(cost(&all, &sonnet()), Some(3_570_000));
    // Without prices of their own: 1000 × 3 000 + 80 × 15 000.
    assert_eq!(
        cost(&all, &Price::flat(3_000_000, 15_000_000)),
        Some(4_200_000)
    );
    // Reasoning at 20 000: 30 × 15 000 + 50 × 20 000 = 1 450 000 instead of 1 200 000.
    let reasoning = Price {
        reasoning: Some(20_000_000),
        ..sonnet()
    };
    assert_eq!(cost(&all, &reasoning), Some(3_820_000));
}

#[test]
fn rounds_up_once_at_the_end() {
    // gpt-5-nano's cached input: 5 000 pico-USD; 130 pico-USD is the cheapest token in the imported list.
    let cheap = Price::flat(130, 130);
    assert_eq!(cost(&usage(1, 0), &cheap), Some(1));
    // 10 × 130 = 1300 pico is 2 nano, not 10 times the 1 nano of one token.
    assert_eq!(cost(&usage(10, 0), &cheap), Some(2));
    // 5 × 130 + 5 × 130 likewise: the parts are not rounded.
    assert_eq!(cost(&usage(5, 5), &cheap), Some(2));
    // 100 × 130 = 13 000 pico is 13 nano exactly.
    assert_eq!(cost(&usage(100, 0), &cheap), Some(13));
    assert_eq!(cost(&usage(0, 0), &cheap), Some(0));
}

#[test]
fn unknown_tokens_have_no_cost() {
    let price = Price::flat(1_000_000, 1_000_000);
    assert_eq!(cost(&Usage::default(), &price), None);
    let no_output = Usage {
        output_tokens: None,
        ..usage(10, 0)
    };
    assert_eq!(cost(&no_output, &price), None);
    let no_input = Usage {
        input_tokens: None,
        ..usage(0, 10)
    };
    assert_eq!(cost(&no_input, &price), None);
}

#[test]
fn a_long_prompt_makes_the_whole_call_dearer() {
    // gpt-5.5: 5 and 30 USD per million, 10 and 45 above 272 000 input tokens, cached 0.50 and 1.
    let price = Price {
        cached_input: Some(500_000),
        long_context: Some(LongContext {
            above_input_tokens: 272_000,
            input: 10_000_000,
            output: 45_000_000,
            cached_input: Some(1_000_000),
            cache_write: None,
            cache_write_long: None,
        }),
        ..Price::flat(5_000_000, 30_000_000)
    };
    // 272 000 × 5 000 + 10 × 30 000
    assert_eq!(cost(&usage(272_000, 10), &price), Some(1_360_300_000));
    // 272 001 × 10 000 + 10 × 45 000
    assert_eq!(cost(&usage(272_001, 10), &price), Some(2_720_460_000));
    // 200 000 of it cached: 72 001 × 10 000 + 200 000 × 1 000 + 10 × 45 000
    let cached = Usage {
        cached_input_tokens: Some(200_000),
        ..usage(272_001, 10)
    };
    assert_eq!(cost(&cached, &price), Some(920_460_000));
    assert_eq!(worst_case(272_000, 10, &price), 1_360_300_000);
    assert_eq!(worst_case(272_001, 10, &price), 2_720_460_000);
}

#[test]
fn the_worst_case_takes_the_dearest_rate() {
    // 1000 × 6 000 (written to be kept for long) + 80 × 15 000
    assert_eq!(worst_case(1000, 80, &sonnet()), 7_200_000);
    // Nothing dearer than the input price: 1000 × 2 500 + 80 × 10 000
    let gpt_4o = Price {
        cached_input: Some(1_250_000),
        ..Price::flat(2_500_000, 10_000_000)
    };
    assert_eq!(worst_case(1000, 80, &gpt_4o), 3_300_000);
    let reasoning = Price {
        reasoning: Some(20_000_000),
        ..gpt_4o
    };
    assert_eq!(worst_case(1000, 80, &reasoning), 4_100_000);
}

#[test]
fn of_two_prices_each_part_counts_where_it_is_dearer() {
    // Output is a pico-dollar dearer, and hides nothing of the other.
    let dearest = Price::flat(0, 25_000_001).dearest(Price::flat(5_000_000, 25_000_000));
    assert_eq!((dearest.input, dearest.output), (5_000_000, 25_000_001));
    // What is not said counts as input: 1000 read from the cache at 5 000, not at 1 000.
    let said = Price {
        cached_input: Some(1_000_000),
        ..Price::flat(4_000_000, 0)
    };
    let cached = Usage {
        cached_input_tokens: Some(1000),
        ..usage(1000, 0)
    };
    let dearest = said.dearest(Price::flat(5_000_000, 0));
    assert_eq!(cost(&cached, &dearest), Some(5_000_000));
    // Written for long is written where it has no price: 1000 at 7 000, not at the 6 000 that the other says.
    let written = Price {
        cache_write: Some(7_000_000),
        ..Price::flat(1_000_000, 0)
    };
    let long = Usage {
        cache_write_tokens: Some(1000),
        cache_write_long_tokens: Some(1000),
        ..usage(1000, 0)
    };
    assert_eq!(cost(&long, &written.dearest(sonnet())), Some(7_000_000));
    // And reasoning is output: 10 at 15 000, not at 9 000.
    let reasoning = Price {
        reasoning: Some(9_000_000),
        ..Price::flat(0, 8_000_000)
    };
    let thought = Usage {
        reasoning_tokens: Some(10),
        ..usage(0, 10)
    };
    assert_eq!(cost(&thought, &reasoning.dearest(sonnet())), Some(150_000));
}

#[test]
fn of_two_prices_what_bounds_less_counts() {
    let most = |input, output, reasons| Price {
        max_input_tokens: input,
        max_output_tokens: output,
        reasons,
        ..Price::flat(1, 1)
    };
    let dearest = most(Some(8), Some(100), false).dearest(most(Some(9), Some(50), true));
    assert_eq!(dearest.max_input_tokens, Some(9));
    assert_eq!(dearest.max_output_tokens, Some(100));
    assert!(dearest.reasons);
    // What nobody knows may be more than what is known.
    for (one, two) in [(None, Some(100)), (Some(100), None)] {
        let dearest = most(one, one, false).dearest(most(two, two, false));
        assert_eq!(dearest.max_input_tokens, None);
        assert_eq!(dearest.max_output_tokens, None);
        assert!(!dearest.reasons);
    }
}

#[test]
fn of_two_prices_a_long_prompt_is_the_shorter_one() {
    let long = |above_input_tokens, input, output| {
        Some(LongContext {
            above_input_tokens,
            input,
            output,
            cached_input: None,
            cache_write: None,
            cache_write_long: None,
        })
    };
    let one = Price {
        long_context: long(200, 6_000, 7_000),
        ..Price::flat(1_000, 2_000)
    };
    let two = Price {
        long_context: long(100, 5_000, 8_000),
        ..Price::flat(3_000, 1_000)
    };
    for dearest in [one.dearest(two), two.dearest(one)] {
        // 100 x 3 + 10 x 2 nano-USD, then 101 x 6 + 10 x 8.
        assert_eq!(cost(&usage(100, 10), &dearest), Some(320));
        assert_eq!(cost(&usage(101, 10), &dearest), Some(686));
    }
    // The other costs always the same, 9 and 9, and is the dearer one above 200 too.
    let dearest = one.dearest(Price::flat(9_000, 9_000));
    assert_eq!(cost(&usage(201, 10), &dearest), Some(1_899));
}

/// Whatever two prices say and leave out, under the dearest nothing costs less than under either.
#[test]
fn no_usage_costs_less_at_the_dearest_of_two_prices() {
    let mut random = random();
    for _ in 0..20_000 {
        let mut some = || (random(2) == 0).then(|| random(1_000));
        let mut one = || Price {
            cached_input: some(),
            cache_write: some(),
            cache_write_long: some(),
            reasoning: some(),
            long_context: some().map(|above_input_tokens| LongContext {
                above_input_tokens,
                input: some().unwrap_or(0),
                output: some().unwrap_or(0),
                cached_input: some(),
                cache_write: some(),
                cache_write_long: some(),
            }),
            ..Price::flat(some().unwrap_or(0), some().unwrap_or(0))
        };
        let (one, two) = (one(), one());
        let dearest = one.dearest(two);
        let (input, output) = (random(1_000), random(1_000));
        let cached = random(input + 1);
        let written = random(input - cached + 1);
        let used = Usage {
            cached_input_tokens: Some(cached),
            cache_write_tokens: Some(written),
            cache_write_long_tokens: Some(random(written + 1)),
            reasoning_tokens: Some(random(output + 1)),
            ..usage(input, output)
        };
        for price in [one, two] {
            assert!(cost(&used, &price) <= cost(&used, &dearest));
            let least = worst_case(input, output, &price);
            assert!(least <= worst_case(input, output, &dearest), "{price:?}");
        }
    }
}

#[test]
fn money_saturates_instead_of_wrapping() {
    let dear = Price::flat(u64::MAX, u64::MAX);
    assert_eq!(cost(&usage(u64::MAX, u64::MAX), &dear), Some(u64::MAX));
    assert_eq!(worst_case(u64::MAX, u64::MAX, &dear), u64::MAX);
    // A provider whose parts exceed the whole is charged for the parts: 5 × 300 + 7 × 3 750 + 4 × 15 000.
    let odd = Usage {
        cached_input_tokens: Some(5),
        cache_write_tokens: Some(7),
        reasoning_tokens: Some(4),
        ..usage(1, 2)
    };
    assert_eq!(cost(&odd, &sonnet()), Some(87_750));
}

/// The built-in table covers any call within its bounds, whatever the split of its tokens.
#[test]
fn no_usage_within_the_bounds_costs_more_than_the_worst_case() {
    let mut random = random();
    let table = builtin();
    for price in table.models.values() {
        for _ in 0..200 {
            let (bound, most) = (random(600_000) + 1, random(130_000) + 1);
            let (input, output) = (random(bound + 1), random(most + 1));
            let cached = random(input + 1);
            let written = random(input - cached + 1);
            let used = Usage {
                cached_input_tokens: Some(cached),
                cache_write_tokens: Some(written),
                cache_write_long_tokens: Some(random(written + 1)),
                reasoning_tokens: Some(random(output + 1)),
                ..usage(input, output)
            };
            let worst = worst_case(bound, most, price);
            assert!(
                cost(&used, price).unwrap() <= worst,
                "{used:?} within {bound}, {most}"
            );
        }
    }
}

/// Numbers below what is asked for, the same each time.
fn random() -> impl FnMut(u64) -> u64 {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

fn builtin() -> PriceTable {
    serde_json::from_str(include_str!("../../policy/prices/models.json")).unwrap()
}

fn table(names: &[(&str, u64)]) -> PriceTable {
    PriceTable {
        models: names
            .iter()
            .map(|(name, price)| ((*name).into(), Price::flat(*price, *price)))
            .collect(),
        ..PriceTable::default()
    }
}

#[test]
fn names_match_as_a_whole() {
    let table = table(&[
        ("gpt-4o", 1),
        ("gpt-4o-2024-05-13", 2),
        ("claude-haiku-4-5", 3),
        ("ft:gpt-4o-2024-08-06", 4),
        ("gpt-5-chat-latest", 5),
    ]);
    let find = |name: &str| table.find(name).map(|price| price.input);
    for (name, expected) in [
        ("gpt-4o", Some(1)),
        ("openai/gpt-4o", Some(1)),
        ("gpt-4o-2024-08-06", Some(1)),
        ("openai/gpt-4o-2024-08-06", Some(1)),
        ("gpt-4o-latest", Some(1)),
        ("gpt-4o-2024-05-13", Some(2)),
        ("claude-haiku-4-5-20251001", Some(3)),
        ("anthropic/claude-haiku-4-5-20251001", Some(3)),
        ("claude-haiku-4-5-latest", Some(3)),
        ("ft:gpt-4o-2024-08-06:acme::id1", Some(4)),
        ("gpt-5-chat-latest", Some(5)),
        // Relatives, other vendors, other spellings.
        ("gpt-4o-mini", None),
        ("gpt-4o-mini-2024-07-18", None),
        ("gpt-4", None),
        ("gpt", None),
        ("", None),
        ("GPT-4o", None),
        ("gpt-4o ", None),
        ("azure/gpt-4o", None),
        ("openai/openai/gpt-4o", None),
        ("claude-haiku-4", None),
        ("claude-haiku-4-5-20251001-thinking", None),
        ("ft:gpt-4o:acme::id1", None),
        ("gpt-5-chat", None),
        // Not dates.
        ("gpt-4o-0613", None),
        ("gpt-4o-2024-08", None),
        ("gpt-4o-2024-08-6", None),
        ("gpt-4o-1024-08-06", None),
        ("gpt-4o-2024-0a-06", None),
        ("gpt-4o2024-08-06", None),
        ("gpt-4o-2024-08-06-2024-08-06", None),
        ("gpt-4o-latest-latest", None),
        ("gpt-4o-２０２４-08-06", None),
        ("-20251001", None),
        ("-latest", None),
    ] {
        assert_eq!(find(name), expected, "{name:?}");
    }
}

#[test]
fn the_built_in_table_knows_the_usual_models() {
    let table = builtin();
    assert_eq!(table.date.len(), "2026-11-20".len());
    assert!(table.source.contains("litellm 1."), "{}", table.source);
    // USD per million tokens × 10⁶ = pico-USD per token; from the providers' price pages.
    for (model, input, output) in [
        ("gpt-4o", 2_500_000, 10_000_000),
        ("gpt-4o-mini", 150_000, 600_000),
        ("gpt-4o-mini-2024-07-18", 150_000, 600_000),
        ("gpt-4.1", 2_000_000, 8_000_000),
        ("o4-mini", 1_100_000, 4_400_000),
        ("gpt-5-nano", 50_000, 400_000),
        ("claude-sonnet-4-5", 3_000_000, 15_000_000),
        ("claude-haiku-4-5-20251001", 1_000_000, 5_000_000),
    ] {
        let price = table.find(model).expect(model);
        assert_eq!((price.input, price.output), (input, output), "{model}");
        assert!(price.max_output_tokens.is_some(), "{model}");
    }
    for (name, price) in table.models.iter() {
        assert!(price.input > 0 && price.output > 0, "{name} is not free");
        let dearest = [
            price.cached_input,
            price.cache_write,
            price.cache_write_long,
        ];
        // A slip of a factor of a thousand would show here.
        assert!(
            dearest
                .into_iter()
                .flatten()
                .all(|p| p > 0 && p <= 3 * price.input),
            "{name}"
        );
        assert!(price.output < 1_000_000_000, "{name}");
    }
}

#[test]
fn tables_are_read_strictly() {
    let unknown = r#"{"source":"","date":"","models":{"m":{"input":1,"output":1,"free":true}}}"#;
    assert!(serde_json::from_str::<PriceTable>(unknown).is_err());
    for price in [
        r#"{"input":1}"#,
        r#"{"input":-1,"output":1}"#,
        r#"{"input":0.5,"output":1}"#,
    ] {
        assert!(serde_json::from_str::<Price>(price).is_err(), "{price}");
    }
    let text = serde_json::to_string(&sonnet()).unwrap();
    assert_eq!(
        text,
        r#"{"input":3000000,"output":15000000,"cached_input":300000,"cache_write":3750000,"cache_write_long":6000000}"#
    );
    assert_eq!(serde_json::from_str::<Price>(&text).unwrap(), sonnet());
}

#[test]
fn amounts_are_written_exactly() {
    for (nano, text) in [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (10_050, "$0.00001005"),
        (5_000_000, "$0.005"),
        (10_000_000, "$0.01"),
        (12_500_000_000, "$12.50"),
        (12_000_000_000, "$12.00"),
        (1_234_567_890_123, "$1234.567890123"),
        (u64::MAX, "$18446744073.709551615"),
    ] {
        assert_eq!(usd(nano), text);
    }
}
