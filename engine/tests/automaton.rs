//! How compiled patterns travel: what a compiler's automaton is written as, and that nothing else than an automaton is read. That what is read searches
//! as the pattern says is shown in `scan.rs` and `redact.rs`, whose patterns all come this way; what is damaged, in `formats_fuzz.rs`.

mod issuer;

use issuer::compiled;
use tollgate_engine::{
    automaton::{Automaton, Compiled, Unreadable},
    redact::Masker,
    scan::{Hits, Scanner},
};

fn read(bytes: &[u8]) -> Result<Scanner, Unreadable> {
    Scanner::new(&[&Automaton(bytes.to_vec())])
}

#[track_caller]
fn refused(bytes: &[u8]) {
    assert_eq!(read(bytes).err(), Some(Unreadable));
    let compiled = Compiled {
        pattern: String::new(),
        forward: compiled("a").unwrap().forward,
        backward: Some(Automaton(bytes.to_vec())),
    };
    assert_eq!(Masker::new(&compiled).err(), Some(Unreadable));
}

/// `a` and on to the next state; matched.
const A: [u8; 5] = [1 << 2, b'a', b'a', 2, 3];

#[test]
fn automata_are_written_as_their_states() {
    let forward = |pattern: &str| compiled(pattern).unwrap().forward.0;
    assert_eq!(forward("a"), A);
    // Two ranges, both to the next state.
    assert_eq!(forward("[a-cx]"), [2 << 2, b'a', b'c', 2, b'x', b'x', 2, 3]);
    // Once more, or on: from the choice one back to `a`, or one ahead.
    assert_eq!(forward("a+"), [1 << 2, b'a', b'a', 2, 2 << 2 | 1, 1, 2, 3]);
    // On rather than once more.
    assert_eq!(forward("a+?"), [1 << 2, b'a', b'a', 2, 2 << 2 | 1, 2, 1, 3]);
    // The fifth condition: the edge of a word.
    assert_eq!(forward(r"\ba"), [&[4 << 2 | 2, 2][..], &A].concat());
    // Nothing goes on with no byte at all.
    assert_eq!(forward("[a&&b]"), [0]);
    // From right to left, and the edges of a text change places.
    let both = compiled("^ab").unwrap();
    let (a, b) = ([1 << 2, b'a', b'a', 2], [1 << 2, b'b', b'b', 2]);
    assert_eq!(both.forward.0, [&[2, 2][..], &a, &b, &[3]].concat());
    let backward = both.backward.unwrap().0;
    assert_eq!(backward, [&b[..], &a, &[1 << 2 | 2, 2], &[3]].concat());
}

#[test]
fn what_the_form_has_no_words_for_is_not_written() {
    for pattern in [r"(?u)\b", r"(?u)\B", r"\b{start}a", "(?mR)a$"] {
        assert_eq!(compiled(pattern), None, "{pattern}");
    }
}

#[test]
fn what_is_no_automaton_is_not_read() {
    assert!(read(&A).is_ok());
    for end in 0..A.len() {
        refused(&A[..end]);
    }
    let to = |next: u8| [1 << 2, b'a', b'a', next, 3];
    assert!(read(&to(0)).is_ok(), "to itself");
    // One before the first, and one behind the last.
    refused(&to(1));
    refused(&to(4));
    let ranges =
        |one: [u8; 2], other: [u8; 2]| [2 << 2, one[0], one[1], 4, other[0], other[1], 2, 3, 3];
    assert!(read(&ranges(*b"ac", *b"de")).is_ok());
    refused(&ranges(*b"ac", *b"ce"));
    refused(&ranges(*b"de", *b"ac"));
    refused(&ranges(*b"ca", *b"de"));
    refused(&ranges(*b"ac", *b"ed"));
    // A choice of none, of one, of one that is itself.
    refused(&[1, 3]);
    refused(&[1 << 2 | 1, 2, 3]);
    refused(&[1 << 2 | 1, 0]);
    // Six conditions there are.
    assert!(read(&[5 << 2 | 2, 2, 3]).is_ok());
    refused(&[6 << 2 | 2, 2, 3]);
    // A match of what?
    refused(&[1 << 2 | 3]);
    // The same number in more bytes is the same; more than 32 bits are none.
    assert!(read(&[1 << 2, b'a', b'a', 0x82, 0, 3]).is_ok());
    refused(&[1 << 2, b'a', b'a', 0x82, 0x80, 0x80, 0x80, 0x80, 0, 3]);
    refused(&[1 << 2, b'a', b'a', 0xff, 0xff, 0xff, 0xff, 0x1f, 3]);
    refused(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    // A million states.
    refused(&A.repeat(1 << 20));
}

#[test]
fn a_pattern_does_not_reach_into_another() {
    let good = Automaton(A.to_vec());
    let reaches = Automaton(vec![1 << 2, b'a', b'a', 1, 3]);
    assert!(Scanner::new(&[&good, &good]).is_ok());
    assert_eq!(Scanner::new(&[&good, &reaches]).err(), Some(Unreadable));
    let reaches = Automaton(vec![1 << 2, b'a', b'a', 4, 3]);
    assert_eq!(Scanner::new(&[&reaches, &good]).err(), Some(Unreadable));
}

/// Circles that take no byte are walked once.
#[test]
fn circles_end() {
    let circle = [2 << 2 | 1, 2, 0, 2 << 2 | 1, 1, 2, 1 << 2, b'a', b'a', 2, 3];
    let mut scanner = read(&circle).unwrap();
    let mut hits = Hits::default();
    scanner.search(b"xxa", &mut hits);
    assert!(hits.has(0));
}
