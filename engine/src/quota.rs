//! What a caller is told of its limits, in the fields that clients know: `ratelimit-policy` and `ratelimit`
//! (draft-ietf-httpapi-ratelimit-headers-10, both lists of RFC 9651).
//!
//! A policy is named by the field that sets it and whose calls it counts, such as `"rate.requests_per_minute/agent"`; with `/acts_for/1` behind it where
//! that is the first for whom the caller acts, and so on. What is left is what is known here to be left: other gates may have used some of it within
//! the last second.

use crate::{
    decide::{Alert, Charge},
    ledger::{Span, Unit, Window},
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
    for (charge, taken) in charges.filter(|(charge, _)| !charge.alert) {
        let name = name(charge);
        let Span { start, end } = charge.span;
        let unit = match charge.account.unit {
            // The draft's own default.
            Unit::Calls => "",
            Unit::Tokens => ";qu=\"tokens\"",
            Unit::NanoUsd => ";qu=\"nano-usd\"",
            // Nothing that a caller could pace itself by.
            Unit::Errors | Unit::Seconds | Unit::Goals => continue,
        };
        let rest = charge.limit.saturating_sub(taken).min(MAX_INTEGER);
        // A run has no length that is known here, and does not start afresh.
        let (window, time) = match charge.account.window {
            Window::Run => (String::new(), String::new()),
            _ => (
                format!(";w={}", end.saturating_sub(start)),
                format!(";t={}", end.saturating_sub(now.secs()).max(0)),
            ),
        };
        let comma = if policies.is_empty() { "" } else { ", " };
        policies.push_str(&format!(
            "{comma}{name};q={}{window}{unit}",
            charge.limit.min(MAX_INTEGER),
        ));
        left.push_str(&format!("{comma}{name};r={rest}{time}"));
    }
    match policies.is_empty() {
        true => Vec::new(),
        false => Vec::from([(POLICY_HEADER, policies), (LEFT_HEADER, left)]),
    }
}

/// The names of alerts that are exceeded; `None` where there are none.
pub(crate) fn warning<'a>(alerts: impl Iterator<Item = &'a Alert>) -> Option<String> {
    let names: Vec<String> = alerts
        .map(|alert| quoted(&format!("{} @ {}", alert.rule, alert.document)))
        .collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// A string of RFC 9651 §3.3.3: printable ASCII. A rule may contain a tool's name as its author wrote it.
fn name(charge: &Charge) -> String {
    let level = charge.account.level.name();
    quoted(&match charge.principal {
        0 => format!("{}/{level}", charge.rule),
        number => format!("{}/{level}/acts_for/{number}", charge.rule),
    })
}

fn quoted(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| match c {
            '"' | '\\' => '?',
            c if c == ' ' || c.is_ascii_graphic() => c,
            _ => '?',
        })
        .collect();
    format!("\"{text}\"")
}
