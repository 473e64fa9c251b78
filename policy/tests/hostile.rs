//! Files written to hurt the reader: refused in under a second, with a place, without a panic.

use std::time::{Duration, Instant};
use tollgate_policy::{MAX_DIAGNOSTICS, codes, parse};

/// Parses within a second and gives the codes of the first errors.
#[track_caller]
fn refused(text: &[u8]) -> Vec<&'static str> {
    let start = Instant::now();
    let parsed = parse("hostile.yaml", text, false);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "took {took:?}");
    assert!(parsed.has_errors(), "was accepted");
    assert!(parsed.documents.is_empty());
    assert!(parsed.diagnostics.len() <= MAX_DIAGNOSTICS + 1);
    assert!(
        parsed
            .diagnostics
            .iter()
            .all(|d| d.line > 0 && d.column > 0)
    );
    assert!(parsed.diagnostics.iter().all(|d| d.message.len() < 1_000));
    parsed
        .diagnostics
        .iter()
        .filter(|d| d.is_error())
        .map(|d| d.code)
        .collect()
}

#[test]
fn an_alias_bomb() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    let found = refused(text.as_bytes());
    // 10 anchors, and 9 aliases in 9 lines.
    assert_eq!(found, vec![codes::REFUSED_YAML; 10 + 81]);
}

#[test]
fn a_hundred_thousand_aliases() {
    let text = format!("a: &a x\nb: [{}]\n", "*a,".repeat(100_000));
    let found = refused(text.as_bytes());
    assert!(found.contains(&codes::REFUSED_YAML));
}

#[test]
fn deep_nesting() {
    for open in ["[", "{a: ", "- ", "? ", "[{a: "] {
        let text = open.repeat(200_000);
        let found = refused(&text.as_bytes()[..text.len().min(1 << 20)]);
        assert!(
            found
                .iter()
                .all(|code| [codes::OVER_LIMIT, codes::SYNTAX].contains(code)),
            "{open}: {found:?}"
        );
    }
    let mut block = String::new();
    for depth in 0..300 {
        block.push_str(&format!("{}a:\n", " ".repeat(depth)));
    }
    assert_eq!(refused(block.as_bytes()), [codes::OVER_LIMIT]);
}

#[test]
fn nesting_has_an_exact_limit() {
    // The document is one mapping, so 31 lists inside it make 32 collections.
    let nested = |lists: usize| {
        format!(
            "network: {{}}\nx: {}{}",
            "[".repeat(lists),
            "]".repeat(lists)
        )
    };
    let fine = parse("case.yaml", nested(31).as_bytes(), false);
    assert_eq!(fine.diagnostics.len(), 1, "only the unknown key");
    assert!(!fine.has_errors());
    assert_eq!(refused(nested(32).as_bytes()), [codes::OVER_LIMIT]);
}

#[test]
fn sizes_have_exact_limits() {
    let scalar = |bytes: usize| format!("network: {{}}\nx: {}", "a".repeat(bytes));
    assert!(!parse("case.yaml", scalar(64 << 10).as_bytes(), false).has_errors());
    assert_eq!(
        refused(scalar((64 << 10) + 1).as_bytes()),
        [codes::OVER_LIMIT]
    );

    let file = |bytes: usize| format!("scope: global\n{}\n", "#".repeat(bytes - 15));
    assert!(!parse("case.yaml", file(1 << 20).as_bytes(), false).has_errors());
    assert_eq!(refused(file((1 << 20) + 1).as_bytes()), [codes::UNREADABLE]);

    // Two mappings, two keys and a list are five values.
    let values = |count: usize| format!("network: {{}}\nx: [{}]", "1,".repeat(count - 5));
    assert!(!parse("case.yaml", values(50_000).as_bytes(), false).has_errors());
    assert_eq!(refused(values(50_001).as_bytes()), [codes::OVER_LIMIT]);
}

#[test]
fn tags_anchors_merges_and_directives() {
    for text in [
        "scope: !!python/object/apply:os.system [ls]",
        "scope: !!str global",
        "scope: ! global",
        "!policy {scope: global}",
        "scope: &s global",
        "scope: *s",
        "<<: {scope: global}",
        "network: {allowlist: [*.slack.com]}",
        "? [a]\n: b",
        "? {a: b}\n: c",
        "{[a]: b}",
        "%YAML 1.2\n---\nscope: global",
        "%TAG ! tag:x,2000:\n---\nscope: global",
    ] {
        assert_eq!(refused(text.as_bytes()), [codes::REFUSED_YAML], "{text}");
    }
}

#[test]
fn a_refused_value_is_reported_once() {
    let text = "network: &n {allowlist: [*a]}\nbudget: !b {daily_limit_usd: 5}\n";
    assert_eq!(refused(text.as_bytes()), vec![codes::REFUSED_YAML; 3]);
}

#[test]
fn an_error_behind_ten_thousand_warnings() {
    let mut text = String::from("apiVersion: tollgate/v1\nkind: Policy\nmetadata:\n  name: a\n");
    for key in 0..10_000 {
        text.push_str(&format!("  versio{key}: 1\n"));
    }
    text.push_str("spec: {scope: nobody}\n");
    let found = refused(text.as_bytes());
    assert_eq!(
        found,
        [codes::OVER_LIMIT],
        "what is not shown refuses the file all the same"
    );
}

#[test]
fn not_text() {
    assert_eq!(refused(b"scope: gl\xffobal"), [codes::UNREADABLE]);
    assert_eq!(refused(b"\xff\xfes\0c\0"), [codes::UNREADABLE]);
    assert_eq!(refused(b"scope: 'open"), [codes::SYNTAX]);
    assert_eq!(refused(b"{\"scope\": \"global\""), [codes::SYNTAX]);
    assert_eq!(refused(b"a:\n\tb: c"), [codes::SYNTAX]);
    assert!(!parse("bom.yaml", b"\xef\xbb\xbfscope: global", false).has_errors());
}

#[test]
fn hostile_patterns() {
    for pattern in [
        "((((((((((a{10}){10}){10}){10}){10}){10}){10}){10}){10}){10})",
        "(a{1,1000}){1,1000}",
        "(a|b|c|d|e|f){1000}[^x]{1000}",
        "(?:[^a]{500}){2}(?:[^b]{500}){2}",
    ] {
        let text = format!("data: {{sensitive_patterns: ['{pattern}']}}");
        assert_eq!(
            refused(text.as_bytes()),
            [codes::PATTERN_TOO_LARGE],
            "{pattern}"
        );
    }
    for pattern in [
        "(".repeat(1_000),
        format!("{}a{}", "(".repeat(500), ")".repeat(500)),
        "[".repeat(1_000),
    ] {
        let text = format!("data: {{sensitive_patterns: ['{pattern}']}}");
        let found = refused(text.as_bytes());
        assert!(found == [codes::PATTERN], "{found:?}");
    }
}

#[test]
fn more_patterns_than_a_file_may_have() {
    // 64 in each document: the ninth goes over 512.
    let mut text = String::new();
    for document in 0..100 {
        text.push_str("---\ndata:\n  sensitive_patterns:\n");
        for pattern in 0..64 {
            text.push_str(&format!("  - d{document}p{pattern}\\S{{1,9}}\n"));
        }
    }
    let found = refused(text.as_bytes());
    assert_eq!(found, [codes::OVER_LIMIT; 92]);
}

/// Every mutation of real policies is read without a panic, and nothing takes long.
#[test]
fn mutated_policies_do_not_panic() {
    let seeds = [
        include_str!("agent-assembly/full.yaml"),
        include_str!("agent-assembly/sections.yaml"),
        r#"{"apiVersion":"tollgate/v1","kind":"Policy","metadata":{"name":"j"},"spec":{"rate":{"requests_per_minute":5,"per":"team"},"budget":{"daily_limit_usd":"1e-3","daily_limit_tokens":7,"unknown_model":{"input_usd_per_million":2.5,"output_usd_per_million":1}},"data":{"sensitive_patterns":["(?i)k{2,3}[^a-c\\d]"]}}}"#,
    ];
    let pieces: &[&[u8]] = &[
        b"\xff",
        b"\0",
        b"\n",
        b"\t",
        b"  ",
        b": ",
        b"- ",
        b"[",
        b"]",
        b"{",
        b"}",
        b"&a ",
        b"*a",
        b"!t ",
        b"---\n",
        b"...\n",
        b"'",
        b"\"",
        b"\\",
        b"|\n",
        b">\n",
        b"#",
        b"%",
        b"? ",
        b"<<",
        b"~",
        b"\xe2\x80\xa8",
        b"\xef\xbb\xbf",
        b"\r",
        b"9",
        b"-",
        b"(",
        b"{1000}",
        b"\\u0000",
    ];
    // xorshift64*, seeded: the same mutations in every run.
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let mixed = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(mixed).expect("31 bits") % below.max(1)
    };
    let mut accepted = 0;
    for round in 0..6_000 {
        let mut text = seeds[round % seeds.len()].as_bytes().to_vec();
        for _ in 0..=random(4) {
            let at = random(text.len());
            match random(4) {
                0 => {
                    let end = (at + random(12)).min(text.len());
                    text.drain(at..end);
                }
                1 => {
                    let piece = pieces[random(pieces.len())];
                    text.splice(at..at, piece.iter().copied());
                }
                2 => {
                    let end = (at + random(40)).min(text.len());
                    let copy = text[at..end].to_vec();
                    let to = random(text.len());
                    text.splice(to..to, copy);
                }
                _ => text[at] = u8::try_from(random(256)).expect("a byte"),
            }
        }
        let parsed = parse("mutated.yaml", &text, round % 2 == 0);
        accepted += usize::from(!parsed.has_errors());
        for document in &parsed.documents {
            assert!(!document.name.is_empty());
        }
        let again = parse("mutated.yaml", &text, round % 2 == 0);
        assert_eq!(
            parsed.diagnostics, again.diagnostics,
            "reading is deterministic"
        );
    }
    assert!(accepted > 0, "some mutations leave a policy whole");
}
