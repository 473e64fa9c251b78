//! Amounts are read exactly or refused.

use tollgate_policy::money::{MoneyError, nano_usd, pico_usd_per_token};

#[test]
fn dollars_become_nano_dollars() {
    for (text, nano) in [
        ("0", 0),
        ("0.0", 0),
        ("-0", 0),
        ("1", 1_000_000_000),
        ("25.0", 25_000_000_000),
        ("25.10", 25_100_000_000),
        (".5", 500_000_000),
        ("5.", 5_000_000_000),
        ("0.1", 100_000_000),
        ("0.000000001", 1),
        ("0.0000000010", 1),
        ("1e-9", 1),
        ("1E3", 1_000_000_000_000),
        ("1.5e+2", 150_000_000_000),
        ("1000e-3", 1_000_000_000),
        ("0e999", 0),
        // 0.1 + 0.2 is not 0.3 in floats.
        ("0.3", 300_000_000),
        // The most a ledger holds, i64::MAX nano-USD.
        ("9223372036.854775807", 9_223_372_036_854_775_807),
    ] {
        assert_eq!(nano_usd(text), Ok(nano), "{text}");
    }
}

#[test]
fn what_is_not_exact_is_refused() {
    for (text, why) in [
        ("", MoneyError::NotANumber),
        (".", MoneyError::NotANumber),
        ("-", MoneyError::NotANumber),
        ("$5", MoneyError::NotANumber),
        ("5 USD", MoneyError::NotANumber),
        ("1,000", MoneyError::NotANumber),
        ("1_000", MoneyError::NotANumber),
        ("1.2.3", MoneyError::NotANumber),
        ("0x10", MoneyError::NotANumber),
        ("010", MoneyError::NotANumber),
        ("1e", MoneyError::NotANumber),
        ("1e1e1", MoneyError::NotANumber),
        ("1e1000", MoneyError::NotANumber),
        ("1e--1", MoneyError::NotANumber),
        (".inf", MoneyError::NotANumber),
        (".nan", MoneyError::NotANumber),
        ("٥", MoneyError::NotANumber),
        ("-1", MoneyError::Negative),
        ("-0.000000001", MoneyError::Negative),
        ("0.0000000001", MoneyError::TooFine(9)),
        ("1e-10", MoneyError::TooFine(9)),
        ("1e-999", MoneyError::TooFine(9)),
        ("9223372036.854775808", MoneyError::TooLarge),
        ("1e10", MoneyError::TooLarge),
        ("1e999", MoneyError::TooLarge),
        ("99999999999999999999999", MoneyError::TooLarge),
    ] {
        assert_eq!(nano_usd(text), Err(why), "{text}");
    }
}

#[test]
fn prices_become_pico_dollars_per_token() {
    // 2.50 USD per 10⁶ tokens = 2.5·10⁻⁶ USD per token = 2,500,000 pico-USD per token.
    assert_eq!(pico_usd_per_token("2.50"), Ok(2_500_000));
    assert_eq!(pico_usd_per_token("0.000001"), Ok(1));
    assert_eq!(pico_usd_per_token("0.0000001"), Err(MoneyError::TooFine(6)));
}
