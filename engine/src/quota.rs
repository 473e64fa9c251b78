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
use alloc::{
    string::{String, ToString},
    vec::Vec,
};

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
        let unit = match charge.account.unit {
            // The draft's own default.
            Unit::Calls => "",
            Unit::Tokens => ";qu=\"tokens\"",
            Unit::NanoUsd => ";qu=\"nano-usd\"",
            // Nothing that a caller could pace itself by.
            Unit::Errors | Unit::Seconds | Unit::Goals | Unit::Approvals => continue,
        };
        for list in [&mut policies, &mut left] {
            match list.is_empty() {
                // Four limits have room in it.
                true => list.reserve(256),
                false => list.push_str(", "),
            }
            push_name(list, charge);
        }
        push_parameter(&mut policies, ";q=", charge.limit);
        push_parameter(&mut left, ";r=", charge.limit.saturating_sub(taken));
        // A run has no length that is known here, and does not start afresh.
        if charge.account.window != Window::Run {
            let Span { start, end } = charge.span;
            let secs_from = |begin| u64::try_from(end.saturating_sub(begin)).unwrap_or(0);
            push_parameter(&mut policies, ";w=", secs_from(start));
            push_parameter(&mut left, ";t=", secs_from(now.secs()));
        }
        policies.push_str(unit);
    }
    match policies.is_empty() {
        true => Vec::new(),
        false => Vec::from([(POLICY_HEADER, policies), (LEFT_HEADER, left)]),
    }
}

fn push_parameter(list: &mut String, name: &str, number: u64) {
    list.push_str(name);
    list.push_str(&number.min(MAX_INTEGER).to_string());
}

/// The names of alerts that are exceeded; `None` where there are none.
pub(crate) fn warning<'a>(alerts: impl Iterator<Item = &'a Alert>) -> Option<String> {
    let mut names = String::new();
    for alert in alerts {
        if !names.is_empty() {
            names.push_str(", ");
        }
        push_quoted(&mut names, &[&alert.rule, " @ ", &alert.document]);
    }
    (!names.is_empty()).then_some(names)
}

fn push_name(list: &mut String, charge: &Charge) {
    let level = charge.account.level.name();
    match charge.principal {
        0 => push_quoted(list, &[&charge.rule, "/", level]),
        number => {
            let number = number.to_string();
            push_quoted(list, &[&charge.rule, "/", level, "/acts_for/", &number]);
        }
    }
}

/// A string of RFC 9651 §3.3.3: printable ASCII. A rule may contain a tool's name as its author wrote it.
fn push_quoted(list: &mut String, parts: &[&str]) {
    let is_plain = |c: char| c == ' ' || (c.is_ascii_graphic() && !matches!(c, '"' | '\\'));
    list.push('"');
    for part in parts {
        match part.chars().all(is_plain) {
            true => list.push_str(part),
            false => list.extend(part.chars().map(|c| if is_plain(c) { c } else { '?' })),
        }
    }
    list.push('"');
}
