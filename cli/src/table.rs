//! Answers for people: columns, times, money. Programs get the same as `--json`.

use serde_json::Value;
use std::io::{self, Write as _};
use tollgate_engine::{ledger::Unit, time::Time};

/// A column: its title, and what stands in it.
pub(crate) type Column<'a> = (&'a str, &'a dyn Fn(&Value) -> String);

/// Prints `rows`, each column as wide as its widest cell; `none` when there are no rows.
pub(crate) fn print(rows: &Value, columns: &[Column<'_>], none: &str) -> io::Result<()> {
    let rows = rows.as_array().map_or(&[][..], Vec::as_slice);
    let mut out = io::stdout().lock();
    if rows.is_empty() {
        return writeln!(out, "{none}");
    }
    let mut lines: Vec<Vec<String>> = vec![
        columns
            .iter()
            .map(|(title, _)| (*title).to_owned())
            .collect(),
    ];
    lines.extend(rows.iter().map(|row| {
        let cells = columns.iter().map(|(_, cell)| printable(&cell(row)));
        cells.collect()
    }));
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for line in lines {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            text.push_str(&format!("{cell:width$}  "));
        }
        writeln!(out, "{}", text.trim_end())?;
    }
    Ok(())
}

/// Prints JSON for programs.
pub(crate) fn json(value: &Value) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Text that others chose, harmless to a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// The field as text; `-` when it is missing or null. `/` goes down, as in a JSON pointer.
pub(crate) fn text(row: &Value, field: &str) -> String {
    match row.pointer(&format!("/{field}")) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// A field that is a list of texts; `-` when there are none.
pub(crate) fn list_of(row: &Value, field: &str) -> String {
    let list = row.pointer(&format!("/{field}")).and_then(Value::as_array);
    let texts = list.into_iter().flatten().filter_map(Value::as_str);
    let texts: Vec<&str> = texts.collect();
    match texts.is_empty() {
        true => "-".to_owned(),
        false => texts.join(", "),
    }
}

/// A field of milliseconds since the Unix epoch.
pub(crate) fn when_ms(row: &Value, field: &str) -> String {
    let millis = row.pointer(&format!("/{field}")).and_then(Value::as_i64);
    millis.map_or_else(|| "-".to_owned(), |at| Time::from_millis(at).to_string())
}

/// A field of seconds since the Unix epoch.
pub(crate) fn when_secs(row: &Value, field: &str) -> String {
    let secs = row.pointer(&format!("/{field}")).and_then(Value::as_i64);
    secs.map_or_else(|| "-".to_owned(), |at| Time::from_secs(at).to_string())
}

/// A field of 10⁻⁹ US dollars in decimal digits.
pub(crate) fn usd(row: &Value, field: &str) -> String {
    let amount = row.pointer(&format!("/{field}")).and_then(Value::as_str);
    amount
        .and_then(|amount| amount.parse().ok())
        .map_or_else(|| "-".to_owned(), dollars)
}

/// A field of an amount in `unit`, in decimal digits.
pub(crate) fn amount(row: &Value, field: &str, unit: Option<Unit>) -> String {
    match unit {
        Some(Unit::NanoUsd) => usd(row, field),
        Some(
            Unit::Calls
            | Unit::Tokens
            | Unit::Errors
            | Unit::Seconds
            | Unit::Goals
            | Unit::Approvals,
        )
        | None => text(row, field),
    }
}

/// Dollars with as many digits as the amount has, two at least.
fn dollars(nano_usd: u64) -> String {
    let (whole, fraction) = (nano_usd / 1_000_000_000, nano_usd % 1_000_000_000);
    let digits = format!("{fraction:09}");
    let digits = digits.trim_end_matches('0');
    format!("${whole}.{digits:0<2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_keeps_every_digit() {
        assert_eq!(dollars(0), "$0.00");
        assert_eq!(dollars(1), "$0.000000001");
        assert_eq!(dollars(12_500_000_000), "$12.50");
    }

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
