//! `docs/policy.md` is true: its examples load without a finding, and its table has every code and no other.

use tollgate_policy::{codes, parse};

const DOCS: &str = include_str!("../../docs/policy.md");

#[test]
fn the_examples_load() {
    let examples: Vec<&str> = DOCS
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!examples.is_empty());
    for example in examples {
        assert_eq!(
            parse("example.yaml", example.as_bytes(), true).diagnostics,
            [],
            "{example}"
        );
    }
}

#[test]
fn the_table_has_every_code() {
    let mut listed: Vec<&str> = DOCS
        .lines()
        .filter_map(|line| line.strip_prefix("| P")?.get(..3))
        .collect();
    listed.sort_unstable();
    let mut known: Vec<&str> = codes::ALL
        .iter()
        .filter_map(|code| code.strip_prefix('P'))
        .collect();
    known.sort_unstable();
    assert_eq!(listed, known);
    known.dedup();
    assert_eq!(known.len(), codes::ALL.len(), "no code twice");
}
