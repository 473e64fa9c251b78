//! Damaged bundles, lease answers, batches, tokens and cells never make a reader fail, and never pass for what they are not. The checks are
//! those of the fuzz targets; here they run on every `cargo test`, from one seed.

mod issuer;
mod random;

#[path = "../fuzz/formats.rs"]
mod formats;

use random::Random;
use std::{fs, path::PathBuf};
use tollgate_engine::upkeep::Holder;

const TOKENS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\u0000",
    b",",
    b":",
    b".",
    b"=",
    b"\n",
    b" ",
    b"null",
    b"-1",
    b"0",
    b"18446744073709551615",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"1e9",
    b"\"\"",
    b"\xff",
    b"|",
    b"day@UTC",
    b"tool:",
];

fn damage(seed: u64, rounds: usize, seeds: &[Vec<u8>], check: fn(&[u8])) {
    let mut random = Random::new(seed);
    seeds.iter().for_each(|seed| check(seed));
    for _ in 0..rounds {
        let mut input = random.pick(seeds);
        random.mutate(&mut input, TOKENS);
        let outcome = std::panic::catch_unwind(|| check(&input));
        assert!(outcome.is_ok(), "input: {}", input.escape_ascii());
    }
}

fn golden(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    fs::read(folder.join(name)).unwrap()
}

#[test]
fn bundles() {
    let mut seeds = formats::bundle_seeds();
    seeds.extend([11, 12].map(|revision| issuer::json(&issuer::payload(revision))));
    seeds.push(issuer::json(&issuer::budgeted(11)));
    seeds.push(golden("bundle-payload.json"));
    damage(1, 3_000, &seeds, formats::bundle);
}

#[test]
fn automata() {
    const PATTERNS: [&str; 5] = [
        r"(?u)(?-u:\b)[A-Za-z]{2}(?-u:\b)",
        "(?:a|b)*a(?:a|b){3}c",
        r"(?u)[\u{e0}-\u{ffff}]+a$",
        "^a.*?b|c",
        "(?m)^[a-z]{1,9}$",
    ];
    let seeds: Vec<Vec<u8>> = PATTERNS
        .iter()
        .flat_map(|pattern| {
            let compiled = issuer::compiled(pattern).unwrap();
            [compiled.forward.0, compiled.backward.unwrap().0]
        })
        .collect();
    seeds
        .iter()
        .for_each(|seed| assert!(formats::automaton(seed)));
    let mut random = Random::new(6);
    let mut read = 0;
    for _ in 0..20_000 {
        let mut input = random.pick(&seeds);
        random.mutate(&mut input, &[&[3], &[1 << 2], &[2 << 2 | 1], &[0x80]]);
        read += usize::from(formats::automaton(&input));
    }
    // Some are automata still.
    assert!((500..15_000).contains(&read), "{read}");
}

#[test]
fn lease_answers() {
    let answer = golden("lease-answer-payload.json");
    // The holder of the file is the one that the check plays.
    let holder = Holder::new(formats::HOLDER).id;
    assert!(String::from_utf8_lossy(&answer).contains(&holder));
    damage(2, 5_000, &[answer], formats::lease_answer);
}

#[test]
fn batches() {
    let both = golden("batches.ndjson");
    let second = both.split(|byte| *byte == b'\n').count() / 2;
    let lines: Vec<&[u8]> = both.split_inclusive(|byte| *byte == b'\n').collect();
    let second = lines[second..].concat();
    assert!(second.starts_with(b"{\"format\":1"));
    damage(3, 10_000, &[both, second], formats::batch);
}

#[test]
fn tokens() {
    let seeds = [
        issuer::token(&issuer::claims()).into_bytes(),
        issuer::json(&issuer::claims()),
        issuer::json(&issuer::token_header()),
    ];
    damage(4, 4_000, &seeds, formats::token);
}

#[test]
fn stored_values() {
    let seeds = [
        golden("cell.bin"),
        br#"{"reserve":{"span":{"start":0,"end":60},"amount":"5"}}"#.to_vec(),
        br#"{"settle":{"start":0,"reserved":"18446744073709551615","used":"7"}}"#.to_vec(),
        br#"{"ask":{"span":{"start":-9223372036854775808,"end":9223372036854775807}}}"#.to_vec(),
        br#"{"refill":{"grant":{"account":"agent:a|calls|minute","window_start":0,"window_end":60,"seq":1,"granted":"5","settled":"0","expires_ms":9223372036854775807,"retry_ms":0},"epoch":1}}"#.to_vec(),
        b"agent:00000000-0000-4000-8000-00000000000a|calls|hour".to_vec(),
        b"team:a:b|nano_usd|month@Europe/Berlin".to_vec(),
    ];
    damage(5, 20_000, &seeds, formats::stored);
}
