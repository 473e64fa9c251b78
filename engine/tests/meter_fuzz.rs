//! Mutated responses never make a parser fail, disagree with another reader, or depend on where the bytes were cut. The
//! checks are those of the fuzz targets; here they run on every `cargo test`, from one seed.

use std::path::PathBuf;

#[path = "../fuzz/checks.rs"]
mod checks;

const ITERATIONS: usize = 20_000;

/// What a mutation likes to insert: everything the grammars turn on, and edges of numbers.
const TOKENS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"\\",
    b"\\u",
    b"\\ud83d",
    b"\\udc00",
    b"\\u0000",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\r\r",
    b"\0",
    b"\xEF\xBB\xBF",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"data: ",
    b"data",
    b"event: ",
    b": ",
    b"[DONE]",
    b"null",
    b"true",
    b"-",
    b"0",
    b"1e999",
    b"18446744073709551616",
    b"-1",
    b"1.5",
    b"\"usage\":",
    b"\"model\":",
    b"\"choices\":[],",
    b"\"error\":{},",
    b"\"type\":\"message_start\",",
    b"\"prompt_tokens\":",
    b"\"a\":1,\"a\":2",
];

struct Mutator {
    state: u64,
    seeds: Vec<Vec<u8>>,
}

impl Mutator {
    /// xorshift64: the same mutations on every machine.
    fn below(&mut self, limit: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state % limit.max(1) as u64) as usize
    }

    fn next(&mut self) -> Vec<u8> {
        let pick = self.below(self.seeds.len());
        let mut bytes = self.seeds[pick].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let until = at + self.below(bytes.len() + 1 - at);
            match self.below(6) {
                0 => {
                    bytes.drain(at..until);
                }
                1 => bytes.truncate(at),
                2 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << (until % 8);
                    }
                }
                3 => {
                    let again = bytes[at..until.min(at + 64)].to_vec();
                    bytes.splice(at..at, again);
                }
                4 => {
                    let other = self.below(self.seeds.len());
                    let tail = self.below(self.seeds[other].len() + 1);
                    bytes.truncate(at);
                    bytes.extend_from_slice(&self.seeds[other][tail..]);
                }
                _ => {
                    let token = TOKENS[self.below(TOKENS.len())];
                    bytes.splice(at..at, token.iter().copied());
                }
            }
        }
        bytes
    }
}

fn mutations(extension: &str, more: &[&[u8]]) -> Mutator {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/providers");
    let mut seeds: Vec<Vec<u8>> = more.iter().map(|seed| seed.to_vec()).collect();
    let mut files = Vec::new();
    for provider in ["openai", "anthropic"] {
        let entries = std::fs::read_dir(folder.join(provider)).unwrap();
        files.extend(entries.map(|entry| entry.unwrap().path()));
    }
    files.sort();
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    assert!(files.len() > 5, "the samples are there");
    seeds.extend(files.iter().map(|file| std::fs::read(file).unwrap()));
    Mutator {
        state: 0x2545_F491_4F6C_DD1D,
        seeds,
    }
}

fn run(mut mutator: Mutator, check: fn(&[u8])) -> usize {
    let seeds = mutator.seeds.clone();
    seeds.iter().for_each(|seed| check(seed));
    for _ in 0..ITERATIONS {
        let input = mutator.next();
        let found = std::panic::catch_unwind(|| check(&input));
        assert!(found.is_ok(), "input: {}", input.escape_ascii());
    }
    ITERATIONS
}

#[test]
fn json_agrees_with_another_reader() {
    let corners: &[&[u8]] = &[
        br#"{"a":[1,-0,1.5e-7,{"b":"\u00e9\ud83d\ude00\n"}],"c":{"":null},"d":true}"#,
        br#"[[[[[[[[]]]]]]]]"#,
        br#"{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10,"\u006b":11}"#,
        "\"\u{7ff}\u{800}\u{ffff}\u{10ffff}\"".as_bytes(),
    ];
    assert_eq!(run(mutations("json", corners), checks::json), ITERATIONS);
}

#[test]
fn sse_agrees_with_the_letter_of_the_standard() {
    let corners: &[&[u8]] = &[
        b"\xEF\xBB\xBFdata: a\r\rdata: b\n\ndata\n\n:c\r\n\r\n",
        b"event: a\ndata: 1\ndata:2\ndata:  3\n\n\n\n",
    ];
    assert_eq!(run(mutations("sse", corners), checks::sse), ITERATIONS);
}

#[test]
fn streams_are_metered_under_any_damage() {
    assert_eq!(run(mutations("sse", &[]), checks::meter), ITERATIONS);
}

#[test]
fn bodies_are_metered_under_any_damage() {
    assert_eq!(run(mutations("json", &[]), checks::meter), ITERATIONS);
}

#[test]
fn model_names_are_looked_up_under_any_damage() {
    let names: &[&[u8]] = &[
        b"openai/gpt-4o-2024-08-06",
        b"ft:gpt-4o:acme::1",
        b"gpt-4o-latest",
    ];
    assert_eq!(run(mutations("json", names), checks::price), ITERATIONS);
}
