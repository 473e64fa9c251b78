//! Money from decimal text into integers, exactly. A float never holds an amount.

use std::fmt;

/// Decimals of a US dollar that a ledger counts: nano-USD.
const NANO: u32 = 9;
/// USD per million tokens has this many decimals in pico-USD per token: 10⁻¹² · 10⁶ = 10⁻⁶.
const PICO_PER_TOKEN: u32 = 6;
/// Ledgers add amounts up in signed 64-bit integers.
const MOST: u64 = i64::MAX as u64;

/// Why a text is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoneyError {
    /// Not a decimal number such as `25`, `0.125` or `1e-3`.
    NotANumber,
    /// Below zero.
    Negative,
    /// Has digits behind the last decimal that is counted (the number of decimals).
    TooFine(u32),
    /// More than a ledger can hold.
    TooLarge,
}

impl fmt::Display for MoneyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MoneyError::NotANumber => f.write_str(
                "is not an amount; write digits with a point, such as 25.00, without separators or a currency sign",
            ),
            MoneyError::Negative => f.write_str("must not be negative"),
            MoneyError::TooFine(decimals) => {
                write!(f, "has more than the {decimals} decimals that are counted")
            }
            MoneyError::TooLarge => f.write_str("is more than can be counted"),
        }
    }
}

/// US dollars as nano-USD.
pub fn nano_usd(text: &str) -> Result<u64, MoneyError> {
    scaled(text, NANO)
}

/// US dollars per million tokens as pico-USD per token.
pub fn pico_usd_per_token(text: &str) -> Result<u64, MoneyError> {
    scaled(text, PICO_PER_TOKEN)
}

/// pico-USD per token as US dollars per million tokens: `2.50`, `0.075`; never rounded.
pub(crate) fn usd_per_million(pico_usd: u64) -> String {
    let exact = format!("{}.{:06}", pico_usd / 1_000_000, pico_usd % 1_000_000);
    let cents = exact.strip_suffix("0000");
    cents.map_or_else(
        || exact.trim_end_matches('0').to_string(),
        ToString::to_string,
    )
}

/// The decimal number in `text` times 10^`decimals`.
fn scaled(text: &str, decimals: u32) -> Result<u64, MoneyError> {
    let (unsigned, negative) = match text.strip_prefix('-') {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, small_integer(exponent)?),
        None => (unsigned, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    if digits().next().is_none() || !digits().all(|byte| byte.is_ascii_digit()) {
        return Err(MoneyError::NotANumber);
    }
    // `010` is eight to some readers of YAML and ten to others.
    if whole.len() > 1 && whole.starts_with('0') {
        return Err(MoneyError::NotANumber);
    }
    if digits().all(|byte| byte == b'0') {
        return Ok(0);
    }
    if negative {
        return Err(MoneyError::Negative);
    }
    // Digits from the first one down to the last place that is counted; where the text has fewer, zeros follow.
    let counted = i64::try_from(whole.len())
        .map_err(|_| MoneyError::TooLarge)?
        .saturating_add(exponent)
        .saturating_add(i64::from(decimals));
    let counted = usize::try_from(counted).unwrap_or(0);
    let mut amount: u64 = 0;
    for digit in digits().chain(std::iter::repeat(b'0')).take(counted) {
        amount = amount
            .checked_mul(10)
            .and_then(|amount| amount.checked_add(u64::from(digit.wrapping_sub(b'0'))))
            .filter(|amount| *amount <= MOST)
            .ok_or(MoneyError::TooLarge)?;
    }
    if digits().skip(counted).any(|byte| byte != b'0') {
        return Err(MoneyError::TooFine(decimals));
    }
    Ok(amount)
}

/// An exponent of at most three digits; amounts need two.
fn small_integer(text: &str) -> Result<i64, MoneyError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || digits.len() > 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(MoneyError::NotANumber);
    }
    text.parse().map_err(|_| MoneyError::NotANumber)
}
