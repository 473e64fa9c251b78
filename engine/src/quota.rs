//! What a caller is told of its limits, in the fields that clients know: `ratelimit-policy` and `ratelimit`
//! (draft-ietf-httpapi-ratelimit-headers-10, both lists of RFC 9651).
//!
//! A policy is named by the field that sets it and whose calls it counts, such as `"rate.requests_per_minute/agent"`. What is left is what is
//! known here to be left: other gates may have used some of it within the last second.

use crate::{
    decide::Charge,
    ledger::{Span, Unit},
    time::Time,
};
use alloc::{format, string::String, vec::Vec};

/// The limits, and how long their windows are.
const POLICY_HEADER: &str = "ratelimit-policy";
/// What is left of them, and for how long.
const LEFT_HEADER: &str = "ratelimit";
/// Largest integer of RFC 9651 §3.3.1. More is shown as this.
const MAX_INTEGER: u64 = 999_999_999_999_999;

/// The fields for limits of which so much is taken.
pub(crate) fn headers<'c>(
    charges: impl Iterator<Item = (&'c Charge, u64)>,
    now: Time,
) -> Vec<(&'static str, String)> {
    let (mut policies, mut left) = (String::new(), String::new());
    for (charge, taken) in charges {
        let name = name(charge);
        let Span { start, end } = charge.span;
        let unit = match charge.account.unit {
            // The draft's own default.
            Unit::Calls => "",
            Unit::Tokens => ";qu=\"tokens\"",
            Unit::NanoUsd => ";qu=\"nano-usd\"",
        };
        let rest = charge.limit.saturating_sub(taken).min(MAX_INTEGER);
        let comma = if policies.is_empty() { "" } else { ", " };
        policies.push_str(&format!(
            "{comma}{name};q={};w={}{unit}",
            charge.limit.min(MAX_INTEGER),
            end.saturating_sub(start)
        ));
        left.push_str(&format!(
            "{comma}{name};r={rest};t={}",
            end.saturating_sub(now.secs()).max(0)
        ));
    }
    match policies.is_empty() {
        true => Vec::new(),
        false => Vec::from([(POLICY_HEADER, policies), (LEFT_HEADER, left)]),
    }
}

/// A string of RFC 9651 §3.3.3: printable ASCII. A rule may contain a tool's name as its author wrote it.
fn name(charge: &Charge) -> String {
    let rule: String = charge
        .rule
        .chars()
        .map(|c| match c {
            '"' | '\\' => '?',
            c if c == ' ' || c.is_ascii_graphic() => c,
            _ => '?',
        })
        .collect();
    format!("\"{rule}/{}\"", charge.account.level.name())
}
