//! What is taken out is what another matcher finds, nothing beside it changes, and hostile text ends the search instead of a worker.

mod issuer;
mod random;

use issuer::compiled;
use random::Random;
use std::ops::Range;
use tollgate_engine::{
    json,
    redact::{self, GaveUp, Masker, REPLACEMENT},
};

fn masker(pattern: &str) -> Masker {
    Masker::new(&compiled(pattern).unwrap()).unwrap()
}

fn maskers(patterns: &[&str]) -> Vec<Masker> {
    patterns.iter().map(|pattern| masker(pattern)).collect()
}

/// The body without what the patterns match, and how many stretches went.
fn redacted(body: &str, patterns: &[&str]) -> (String, u64) {
    let doc = json::parse(body.as_bytes()).unwrap();
    let redacted = redact::json(&doc, &mut maskers(patterns)).unwrap();
    (String::from_utf8(redacted.body).unwrap(), redacted.count)
}

#[test]
fn every_match_is_found_as_another_matcher_finds_it() {
    // Alternatives where the first wins, greedy and lazy repetition, ends of words and lines, characters of several bytes.
    const PATTERNS: [&str; 9] = [
        "ab|abc|b+",
        "a.*c",
        "a.*?c",
        r"(?-u:\b)a+(?-u:\b)",
        "(?m)^b|c$",
        "é[a-cé]*",
        "[^a]b",
        "c{2,3}",
        "[aA](?:b|é)c?",
    ];
    const ALPHABET: [&str; 7] = ["a", "b", "c", "é", " ", "\n", "-"];
    let mut random = Random::new(7);
    let mut found = 0;
    for pattern in PATTERNS {
        let mut masker = masker(&format!("(?u){pattern}"));
        let other = regex::bytes::Regex::new(&format!("(?u){pattern}")).unwrap();
        for _ in 0..2_000 {
            let length = random.below(24);
            let text: String = (0..length).map(|_| random.pick(&ALPHABET)).collect();
            let mut ours = Vec::new();
            masker.find(text.as_bytes(), 0, &mut ours).unwrap();
            let theirs: Vec<Range<usize>> = other
                .find_iter(text.as_bytes())
                .map(|found| found.range())
                .collect();
            assert_eq!(ours, theirs, "{pattern} in {text:?}");
            found += ours.len();
        }
    }
    assert!(found > 10_000, "{found}");
}

#[test]
fn strings_and_numbers_lose_what_matches_and_nothing_else_changes() {
    let body = r#" {"key-1":["key-22 and \"key-3\"", 4.50, 4111, true, null, {"a":"\u006bey-4\n"}], "b":"" } "#;
    let expected = r#" {"key-1":["[REDACTED] and \"[REDACTED]\"", 4.50, "[REDACTED]", true, null, {"a":"[REDACTED]\n"}], "b":"" } "#;
    assert_eq!(
        redacted(body, &["key-[0-9]+", "^411"]),
        (expected.to_string(), 4)
    );
    assert_eq!(redacted(body, &["nothing"]), (body.to_string(), 0));
}

#[test]
fn what_overlaps_or_touches_goes_as_one() {
    let taken = |patterns: &[&str]| redacted(r#"["one two three"]"#, patterns);
    let all = |left: &str| format!(r#"["{left}"]"#);
    assert_eq!(taken(&["one two", "two three"]), (all(REPLACEMENT), 1));
    assert_eq!(taken(&["one", " two"]), (all("[REDACTED] three"), 1));
    assert_eq!(
        taken(&["one", "three"]),
        (all("[REDACTED] two [REDACTED]"), 2)
    );
    assert_eq!(taken(&["o"]), (all("[REDACTED]ne tw[REDACTED] three"), 2));
}

#[test]
fn text_is_worked_on_as_it_is_and_bytes_that_are_none_are_left() {
    let text = redact::text("a key-1, \"é\"".as_bytes(), &mut maskers(&["key-[0-9]"])).unwrap();
    assert_eq!(
        (text.body, text.count),
        ("a [REDACTED], \"é\"".as_bytes().to_vec(), 1)
    );
    let bytes = redact::text(b"key-1 \xff", &mut maskers(&["key-[0-9]"])).unwrap();
    assert_eq!((bytes.body, bytes.count), (b"key-1 \xff".to_vec(), 0));
}

#[test]
fn a_search_that_would_take_long_gives_up() {
    // From every `a` to the end of the text: half a tera of steps.
    let hostile = "a".repeat(1 << 20);
    let mut found = Vec::new();
    let outcome = masker("a.*b|a").find(hostile.as_bytes(), 0, &mut found);
    assert_eq!(outcome, Err(GaveUp));
    // A million matches of an honest pattern are no trouble.
    let mut found = Vec::new();
    let mut masker = masker("a");
    assert_eq!(masker.find(hostile.as_bytes(), 0, &mut found), Ok(()));
    assert_eq!(found.len(), 1 << 20);
}
