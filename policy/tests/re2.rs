//! Sensitive patterns mean here what they mean to RE2.
//!
//! What a pattern matches is what google-re2 1.1, RE2's own Python binding, answered for the same pattern and text; the gate's answer comes from the
//! engine that searches bodies, given the pattern in its normal form.

use tollgate_engine::scan::{Hits, Scanner};
use tollgate_policy::{Pattern, codes};

/// Pattern, texts it is found in, texts it is not found in.
#[rustfmt::skip]
const READ_ALIKE: &[(&str, &[&str], &[&str])] = &[
    (r#"\d"#, &["7"], &["\u{667}", "a"]),
    (r#"\D"#, &["\u{667}", "é"], &["7"]),
    (r#"\w"#, &["_"], &["é", "-"]),
    (r#"\W"#, &["é", " "], &["a"]),
    (r#"\s"#, &[" ", "\u{c}"], &["\u{b}", "\u{a0}", "\u{85}"]),
    (r#"\S"#, &["\u{b}", "é"], &[" "]),
    (r#"[\s]"#, &["\t"], &["\u{b}"]),
    (r#"[^\s]"#, &["\u{b}"], &["\t"]),
    (r#"[[:space:]]"#, &["\u{b}"], &["\u{a0}"]),
    (r#"[[:alpha:]]"#, &["x"], &["é", "1"]),
    (r#"[[:^alpha:]]"#, &["é"], &["x"]),
    (r#"[^[:alpha:]]"#, &["é"], &["x"]),
    (r#"[[:word:]]"#, &["_"], &["é"]),
    (r#"\bkey\b"#, &["a key.", "ékey", "key\u{301}", "keyé"], &["monkey"]),
    (r#"a\Bb"#, &["ab"], &["a b"]),
    (r#"a\Bé"#, &[], &["aé"]),
    (r#"a.b"#, &["aéb", "a\u{1f600}b"], &["a\nb", "ab"]),
    (r#"(?s)a.b"#, &["a\nb"], &[]),
    (r#"a[^x]b"#, &["aéb", "a\nb"], &["axb"]),
    (r#"^.{3}$"#, &["été"], &["abcd"]),
    (r#"é"#, &["aéb"], &["e"]),
    (r#"[à-ü]"#, &["é"], &["e"]),
    (r#"(?i)É"#, &["é"], &["e"]),
    (r#"(?i)ß"#, &["ẞ"], &["ss"]),
    (r#"(?i)k"#, &["K", "K"], &["x"]),
    (r#"(?i)s"#, &["ſ", "S"], &[]),
    (r#"(?i)[a-z]"#, &["ſ", "K"], &["1"]),
    (r#"(?i)\w"#, &["ſ"], &["é"]),
    (r#"(?i)\W"#, &["é"], &["ſ", "k"]),
    (r#"(?i)[^k]"#, &["a"], &["K", "k"]),
    (r#"(?i)[[:alpha:]]"#, &["ſ"], &["é"]),
    (r#"(?i)\bk"#, &["k"], &["ſ"]),
    (r#"(?i)[\D]"#, &["ſ"], &["5"]),
    (r#"(?i)[\Wx]"#, &["X"], &["ſ", "a"]),
    (r#"(?i)[^\W]"#, &["ſ", "K"], &["é"]),
    (r#"(?i:a)b"#, &["Ab"], &["AB"]),
    (r#"(a(?i)b)c"#, &["aBc"], &["aBC"]),
    (r#"(?i)a|(?-i)b"#, &["A", "b"], &["B"]),
    (r#"(?U)a+b"#, &["aab"], &[]),
    (r#"(?m)^b$"#, &["a\nb\nc"], &["ab", "b\r\n"]),
    (r#"^b$"#, &["b"], &["a\nb\nc", "b\n"]),
    (r#"\Ab\z"#, &["b"], &["b\n"]),
    (r#"a{2}b"#, &["aab"], &["ab"]),
    (r#"^a{2,}$"#, &["aaa"], &["a"]),
    (r#"^a{2,3}?$"#, &["aa"], &["aaaa"]),
    (r#"^(?:a{2}){3}$"#, &["aaaaaa"], &["aaaaa"]),
    (r#"a{0}b"#, &["b"], &["a"]),
    (r#"(?:a+)*b"#, &["aab"], &[]),
    (r#"x|yz"#, &["yz"], &["z"]),
    (r#"(?P<name>a)"#, &["a"], &[]),
    (r#"(?<name>a)"#, &["a"], &[]),
    (r#"(?P<_1>a)"#, &["a"], &[]),
    (r#"\x41"#, &["A"], &["a"]),
    (r#"\x{1F600}"#, &["\u{1f600}"], &["x"]),
    (r#"\x80"#, &["\u{80}"], &["a"]),
    (r#"[\x41-\x43]"#, &["B"], &["D"]),
    (r#"\a\f\t\n\r\v"#, &["\u{7}\u{c}\t\n\r\u{b}"], &[]),
    (r#"\-\_\"\ \#\&\~\@"#, &["-_\" #&~@"], &[]),
    (r#"\.\*"#, &[".*"], &["ab"]),
    (r#"[]a]"#, &["]"], &["b"]),
    (r#"[^]a]"#, &["b"], &["]"]),
    (r#"[-a]"#, &["-"], &[]),
    (r#"[a-]"#, &["-"], &[]),
    (r#"[\w.-]+@x"#, &["a-b@x"], &["+@x"]),
    (r#"[a-b-c]"#, &["-", "c"], &[]),
    (r#"[$^.]"#, &["^"], &["a"]),
    (r#"[\[\]]"#, &["["], &["a"]),
    (r#"[:alpha:]"#, &["p", ":"], &["z"]),
    (r#"[&~|]"#, &["&"], &["a"]),
    (r#"}"#, &["}"], &[]),
    (r#"]"#, &["]"], &[]),
    (r#"a}"#, &["a}"], &[]),
    (r#"\{a\}"#, &["{a}"], &[]),
    (r#"a$b"#, &[], &["a$b", "ab"]),
    (r#"é\b"#, &["éa"], &["é"]),
    (r#"\$\d+"#, &["$5"], &["5"]),
    (r#"(?:a|b)c"#, &["bc"], &[]),
    (r#"(a)(b)"#, &["ab"], &[]),
    (r#"(?i)password\s*[:=]\s*\S+"#, &["PASSWORD : x", "paſsword=ü"], &["password="]),
    (r#"\b\d{3}-\d{2}-\d{4}\b"#, &["000-00-0000", "no 000-00-0000é"], &["1000-00-0000"]),
    (r#"sk-[a-zA-Z0-9]{48}"#, &["sk-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"], &["sk-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]),
];

/// Patterns that are refused, by code.
#[rustfmt::skip]
const REFUSED: &[(&str, &[&str])] = &[
    // Read by only one of the two, or read differently: `{`, `[`, `\p`, octal and `\Q` by RE2, flags `x`, `u`, `R`, nested repetitions and `\u` by the gate.
    (codes::PATTERN_NOT_RE2, &[
        r#"\C"#,
        r#"\Qa.b\E"#,
        r#"\123"#,
        r#"\0"#,
        r#"a{"#,
        r#"a{,2}"#,
        r#"{"#,
        r#"{"key":"#,
        r#"a{x}"#,
        r#"a{ 1 }"#,
        r#"a{01}"#,
        r#"a{1"#,
        r#"[a&&b]"#,
        r#"[a~~b]"#,
        r#"[[a]]"#,
        r#"[a[b]"#,
        r#"[[:foo:]]"#,
        r#"[a--b]"#,
        r#"[+--]"#,
        r#"[\w-z]"#,
        r#"[a-\w]"#,
        r#"\pL"#,
        r#"\p{Greek}"#,
        r#"\PL"#,
        r#"[\pL]"#,
        r#"\p{Emoji}"#,
        r#"\p{Script=Greek}"#,
        r#"a**"#,
        r#"a++"#,
        r#"a+*"#,
        r#"a{2}{3}"#,
        r#"a*??"#,
        r#"(?x) a"#,
        r#"(?u)a"#,
        r#"(?-u)a"#,
        r#"(?R)a$"#,
        r#"\u00e9"#,
        r#"\u{e9}"#,
        r#"\U000000e9"#,
        r#"[\u00e9]"#,
        r#"\<a"#,
        r#"a\>"#,
        r#"\b{start}a"#,
        r#"\b{end}a"#,
        r#"\b{start-half}a"#,
        r#"(?P<n.a>a)"#,
        r#"(?P<é>a)"#,
        r#"(?P<1n>a)"#,
        r#"^*a"#,
        r#"\b+a"#,
        r#"(?ii)a"#,
        r#"(a)\1"#,
        r#"(?P<n>a)(?P<n>b)"#,
    ]),
    // Read by neither.
    (codes::PATTERN, &[
        r#"(a"#,
        r#"a)"#,
        r#"[a"#,
        r#"*a"#,
        r#"a|*"#,
        r#"(?=a)"#,
        r#"(?!a)"#,
        r#"(?<=a)b"#,
        r#"\Z"#,
        r#"a\e"#,
        r#"\x4"#,
        r#"\x{110000}"#,
        r#"[z-a]"#,
        r#"a{2,1}"#,
        r#"(?#c)a"#,
        r#"a\"#,
        r#"(?z)a"#,
    ]),
    // Read by both, and of no use: would match everywhere, or nowhere.
    (codes::PATTERN_POINTLESS, &[
        r#"a*"#,
        r#"(?:)"#,
        r#"a|"#,
        r#"\b"#,
        r#"^$"#,
        r#"a{0}"#,
        r#"[^\s\S]"#,
        r#"x||yz"#,
    ]),
    // Read by the gate, too much for it or for RE2.
    (codes::PATTERN_TOO_LARGE, &[
        r#"a{1001}"#,
        r#"(?:a{100}){11}"#,
        r#"((a{3}){334}){1}"#,
        r#"(?:a{100,}){11}"#,
        r#"[^a]{1000}[^b]{1000}"#,
    ]),
];

fn found(pattern: &Pattern, text: &str) -> bool {
    let compiled = pattern.compile().expect("what is accepted compiles");
    let mut scanner = Scanner::new(&[&compiled.forward]).expect("the gate takes it");
    let mut hits = Hits::default();
    scanner.search(text.as_bytes(), &mut hits);
    !hits.is_empty()
}

#[test]
fn accepted_patterns_match_what_re2_matches() {
    for (source, inside, outside) in READ_ALIKE {
        let pattern = Pattern::parse(source).unwrap_or_else(|why| panic!("`{source}`: {why:?}"));
        assert_eq!(pattern.source, *source);
        for text in *inside {
            assert!(
                found(&pattern, text),
                "`{source}` in {text:?}, as {}",
                pattern.normal
            );
        }
        for text in *outside {
            assert!(
                !found(&pattern, text),
                "`{source}` not in {text:?}, as {}",
                pattern.normal
            );
        }
    }
}

#[test]
fn other_patterns_are_refused() {
    for (code, sources) in REFUSED {
        for source in *sources {
            match Pattern::parse(source) {
                Ok(pattern) => panic!("`{source}` was read as {}", pattern.normal),
                Err(why) => assert_eq!(why.code, *code, "`{source}`: {}", why.message),
            }
        }
    }
}

#[test]
fn long_repetitions_are_counted_exactly() {
    for source in ["a{1000}", "(?:a{100}){10}", "(?:a{10}){100}"] {
        let pattern = Pattern::parse(source).unwrap_or_else(|why| panic!("`{source}`: {why:?}"));
        assert!(found(&pattern, &"a".repeat(1_000)), "{source}");
        assert!(!found(&pattern, &"a".repeat(999)), "{source}");
    }
}

#[test]
fn advice_is_a_spelling_that_is_accepted() {
    for (refused, advice) in [
        (r"\C", "(?s:.)"),
        (r"\u00e9", r"\x{E9}"),
        ("a{b", r"\{"),
        ("[[a]", r"\["),
        (r"\123", r"\x53"),
    ] {
        let why = Pattern::parse(refused).expect_err("is refused");
        assert!(why.message.contains(advice), "`{refused}`: {}", why.message);
        assert!(Pattern::parse(advice).is_ok(), "{advice}");
    }
    // Octal 123 is 1·64 + 2·8 + 3 = 83, hexadecimal 53, an `S`.
    assert!(found(&Pattern::parse(r"\x53").expect("is a pattern"), "S"));
    let place = Pattern::parse(r"é\Cx").expect_err("is refused").message;
    assert!(place.starts_with("at character 2:"), "{place}");
}
