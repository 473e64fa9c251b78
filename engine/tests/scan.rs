//! A scan finds what another matcher finds, in any text, and its answer names the pattern.

mod issuer;
mod random;

use issuer::compiled;
use random::Random;
use tollgate_engine::{
    automaton::{Automaton, Unreadable},
    scan::{Hits, Scanner, distinct},
};

/// A scanner of these patterns.
fn scanner(patterns: &[&str]) -> Scanner {
    let automata: Vec<Automaton> = patterns
        .iter()
        .map(|pattern| {
            compiled(pattern)
                .unwrap_or_else(|| panic!("{patterns:?}"))
                .forward
        })
        .collect();
    Scanner::new(&automata.iter().collect::<Vec<_>>()).unwrap_or_else(|_| panic!("{patterns:?}"))
}

/// Which of these are found, by place.
fn found(scanner: &mut Scanner, count: usize, text: &[u8]) -> Vec<bool> {
    let mut hits = Hits::default();
    scanner.search(text, &mut hits);
    (0..count).map(|pattern| hits.has(pattern)).collect()
}

/// The scanner and the `regex` crate, each pattern by itself, agree on every text. How often something was found.
fn agree(patterns: &[String], texts: impl IntoIterator<Item = Vec<u8>>) -> usize {
    let refs: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let mut scanner = scanner(&refs);
    let regexes: Vec<regex::bytes::Regex> = patterns
        .iter()
        .map(|pattern| {
            let mut builder = regex::bytes::RegexBuilder::new(pattern);
            builder.unicode(false).build().unwrap()
        })
        .collect();
    let mut matches = 0;
    for text in texts {
        let expected: Vec<bool> = regexes.iter().map(|regex| regex.is_match(&text)).collect();
        let found = found(&mut scanner, patterns.len(), &text);
        assert_eq!(found, expected, "{patterns:?} in {}", text.escape_ascii());
        matches += found.iter().filter(|found| **found).count();
    }
    matches
}

/// A pattern of few letters, so that texts of the same letters match it now and then.
fn pattern(random: &mut Random, depth: usize) -> String {
    const ATOMS: [&str; 20] = [
        "a", "b", "c", "ab", "ca", ".", "[ab]", "[^a]", "[a-c]", r"\d", r"\w", r"\s", r"\W", "-",
        r"\.", "^", "$", r"\b", r"\B", "(?i:A)",
    ];
    const REPEATS: [&str; 11] = [
        "", "", "", "*", "+", "?", "{2}", "{0,2}", "{2,}", "*?", "{1,3}?",
    ];
    let mut out = String::new();
    for _ in 0..=random.below(3) {
        let atom = if depth > 0 && random.one_in(3) {
            let (one, other) = (pattern(random, depth - 1), pattern(random, depth - 1));
            match random.below(3) {
                0 => format!("({one}|{other})"),
                1 => format!("(?:{one})"),
                _ => format!("(?:{one}{other})"),
            }
        } else {
            random.pick(&ATOMS).to_string()
        };
        out.push_str(&atom);
        out.push_str(random.pick::<&str>(&REPEATS));
    }
    out
}

fn text(random: &mut Random) -> Vec<u8> {
    const PIECES: [&[u8]; 16] = [
        b"a",
        b"b",
        b"c",
        b"ab",
        b"aab",
        b"A",
        b"1",
        b"-",
        b".",
        b" ",
        b"\n",
        b"_",
        "\u{e9}".as_bytes(),
        "\u{20ac}".as_bytes(),
        b"\xff",
        b"\xc3",
    ];
    let length = random.below(14);
    (0..length)
        .flat_map(|_| random.pick(&PIECES).to_vec())
        .collect()
}

#[test]
fn a_scan_agrees_with_another_matcher() {
    let mut random = Random::new(3);
    let mut matches = 0;
    for _ in 0..1_000 {
        let patterns: Vec<String> = (0..=random.below(4))
            .map(|_| pattern(&mut random, 2))
            .collect();
        let texts: Vec<Vec<u8>> = (0..12).map(|_| text(&mut random)).collect();
        matches += agree(&patterns, texts);
    }
    // 1,000 × 3 × 12 answers, more or less; among them many of each kind.
    assert!((8_000..30_000).contains(&matches), "{matches} matches");
}

/// Patterns as the policy compiler ships them: Unicode on, classes spelt out as ranges, look-around in its ASCII form.
#[test]
fn patterns_in_normal_form_agree_as_well() {
    const NORMAL: [&str; 8] = [
        r"(?u)[0-9]{3}",
        r"(?u)(?-u:\b)[A-Za-z]{2}(?-u:\b)",
        r"(?u)[\u{e0}-\u{ff}]+a",
        r"(?u)[^\n]a",
        r"(?u)[\u{0}-\u{9}\u{b}-\u{10ffff}]b",
        r"(?u)\A(?:ab)",
        r"(?u)c\z",
        r"(?u)\u{20ac}(?:[Aa][Bb]?)",
    ];
    let patterns = NORMAL.map(String::from);
    let mut random = Random::new(4);
    let texts: Vec<Vec<u8>> = (0..6_000).map(|_| text(&mut random)).collect();
    assert!(agree(&patterns, texts) > 3_000);
}

/// Real detectors, real neighbours of what they look for.
#[test]
fn the_edges_of_a_match_are_where_they_should_be() {
    let patterns = [
        r"\b\d{3}-\d{2}-\d{4}\b",
        r"(?i)password\s*[:=]\s*\S+",
        r"\bAKIA[0-9A-Z]{16}\b",
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    ]
    .map(String::from);
    // Assembled here, so that no scanner of this repository finds a key.
    let key = format!("AK{}{}", "IA", "ABCDEFGHIJKLMNOP");
    for (text, places) in [
        ("123-45-6789", &[0][..]),
        ("x 123-45-6789.", &[0]),
        ("1123-45-6789", &[]),
        ("123-45-67890", &[]),
        ("x123-45-6789", &[]),
        ("\u{e9}123-45-6789", &[0]),
        ("PassWord :=", &[1]),
        ("password = ", &[]),
        (&key, &[2]),
        (&format!("{key}Q"), &[]),
        (&format!("({key}) 000-00-0000"), &[0, 2]),
        ("-----BEGIN RSA PRIVATE KEY-----", &[3]),
        ("", &[]),
    ] {
        let refs: Vec<&str> = patterns.iter().map(String::as_str).collect();
        let mut scanner = scanner(&refs);
        let wanted: Vec<bool> = (0..4).map(|place| places.contains(&place)).collect();
        assert_eq!(found(&mut scanner, 4, text.as_bytes()), wanted, "{text}");
        agree(&patterns, [text.as_bytes().to_vec()]);
    }
}

/// Texts and patterns that make a backtracking matcher run for ages. A lazy DFA does not mind them.
#[test]
fn text_that_is_hostile_to_backtracking_is_searched_to_its_end() {
    let patterns = ["(?:a*)*d", "[ab]{200}g"].map(String::from);
    let mut random = Random::new(8);
    let mut hostile: Vec<u8> = (0..1 << 16).map(|_| random.pick(b"aaab")).collect();
    let refs: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let mut scanner = scanner(&refs);
    assert_eq!(found(&mut scanner, 2, &hostile), [false; 2]);
    hostile.extend(b"a".repeat(300));
    for (place, end) in b"dg".iter().enumerate() {
        let mut text = hostile.clone();
        text.push(*end);
        let places: Vec<bool> = (0..2).map(|other| other == place).collect();
        assert_eq!(found(&mut scanner, 2, &text), places);
    }
}

/// Patterns that have as many states as the text has bytes. The search gives up after bounded work, says so, and is as good as new.
#[test]
fn a_search_that_would_never_be_fast_gives_up_and_says_so() {
    let patterns = ["(?:a|b)*a(?:a|b){14}c", "secret"];
    let mut random = Random::new(9);
    let hostile: Vec<u8> = (0..1 << 20).map(|_| random.pick(b"ab")).collect();
    let mut scanner = scanner(&patterns);
    for _ in 0..3 {
        let mut hits = Hits::default();
        scanner.search(&hostile, &mut hits);
        assert!(hits.is_unfinished() && !hits.is_empty());
        // Nothing more is worth searching for this call.
        scanner.search(b"a secret", &mut hits);
        assert!(hits.is_unfinished() && !hits.has(1));
        let mut hits = Hits::default();
        scanner.search(b"a secret", &mut hits);
        assert!(hits.has(1) && !hits.has(0) && !hits.is_unfinished());
    }
}

/// Ordinary text, much of it, with everything that people put into prompts: nothing gives up.
#[test]
fn ordinary_text_never_gives_up() {
    let patterns = [
        r"sk-[a-zA-Z0-9]{48}",
        r"\b\d{3}-\d{2}-\d{4}\b",
        r"(?i)password\s*[:=]\s*\S+",
        r"\b(?:\d[ -]?){13,16}\b",
        r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}",
        r"xox[baprs]-[0-9A-Za-z-]{10,48}",
    ];
    let mut scanner = scanner(&patterns);
    let mut random = Random::new(10);
    let alphabets: [&[u8]; 4] = [
        b"abcdefghijklmnopqrstuvwxyz      ,.",
        b"0123456789",
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
        b"{}[]\":,0123456789abcdef ",
    ];
    for alphabet in alphabets {
        let text: Vec<u8> = (0..1 << 19).map(|_| random.pick(alphabet)).collect();
        let mut hits = Hits::default();
        scanner.search(&text, &mut hits);
        assert!(!hits.is_unfinished(), "{}", alphabet.escape_ascii());
    }
}

#[test]
fn a_scan_leaves_nothing_behind() {
    let mut scanner = scanner(&["secret$", "^begin"]);
    assert_eq!(found(&mut scanner, 2, b"the secret"), [true, false]);
    assert_eq!(found(&mut scanner, 2, b"begin"), [false, true]);
    // Two texts are two texts: what begins in one does not end in the next.
    let mut hits = Hits::default();
    for part in [&b"not the sec"[..], b"ret but no beg", b"in"] {
        scanner.search(part, &mut hits);
    }
    assert!(hits.is_empty());
    // What was found stays found.
    scanner.search(b"secret", &mut hits);
    scanner.search(b"nothing", &mut hits);
    scanner.search(b"secret", &mut hits);
    assert!(hits.has(0) && !hits.has(1) && !hits.is_empty());
}

#[test]
fn patterns_are_numbered_by_their_order() {
    let documents = [
        vec!["b".to_string(), "a".to_string()],
        vec![],
        vec!["c".to_string(), "a".to_string(), "b".to_string()],
    ];
    let patterns = distinct(documents.iter().flatten().map(String::as_str));
    assert_eq!(patterns, ["a", "b", "c"]);
    let reversed = distinct(documents.iter().rev().flatten().map(String::as_str));
    assert_eq!(reversed, patterns, "whatever the order of the documents");
    let mut scanner = scanner(&patterns);
    assert_eq!(found(&mut scanner, 3, b"b"), [false, true, false]);
    assert_eq!(found(&mut scanner, 3, b"cab"), [true; 3]);
    assert_eq!(found(&mut scanner, 3, b"cb"), [false, true, true]);
    // However they are come upon.
    let (mut one, mut other) = (Hits::default(), Hits::default());
    scanner.search(b"c", &mut one);
    scanner.search(b"a", &mut one);
    scanner.search(b"ac", &mut other);
    assert_eq!(one, other);
    assert!(!one.has(3) && !one.has(usize::MAX));
}

#[test]
fn no_patterns_find_nothing() {
    let mut scanner = scanner(&[]);
    let mut hits = Hits::default();
    scanner.search(b"anything", &mut hits);
    scanner.search(b"", &mut hits);
    assert!(hits.is_empty());
    assert_eq!(distinct([].into_iter()), Vec::<&str>::new());
}

#[test]
fn the_empty_pattern_is_everywhere() {
    let mut scanner = scanner(&["", "a", "$"]);
    assert_eq!(found(&mut scanner, 3, b""), [true, false, true]);
    assert_eq!(found(&mut scanner, 3, b"a"), [true, true, true]);
    assert_eq!(found(&mut scanner, 3, b"\xff"), [true, false, true]);
}

#[test]
fn what_grows_too_large_together_is_refused() {
    // Each of 20,000 states and more, of 20 bytes at least; 4 MiB are less than 11 of them.
    let large: Vec<Automaton> = (0..11)
        .map(|number| {
            compiled(&format!("{number}(?:[ab]{{100}}c){{200}}"))
                .unwrap()
                .forward
        })
        .collect();
    assert!(Scanner::new(&[&large[0], &large[1]]).is_ok());
    let all: Vec<&Automaton> = large.iter().collect();
    assert_eq!(Scanner::new(&all).err(), Some(Unreadable));
}
