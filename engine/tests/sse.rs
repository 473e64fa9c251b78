//! The event-stream reader follows the standard's grammar, loses no byte, and does not care where the stream is cut.

use tollgate_engine::sse::{Block, MAX_EVENT_BYTES, Reader};

/// One block, owned: name, data and raw bytes as text.
type Seen = (String, String, String);

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn read<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Seen>, String) {
    let mut reader = Reader::default();
    let mut seen = Vec::new();
    let mut take = |reader: &mut Reader| {
        while let Some(block) = reader.next_block() {
            seen.push(match block {
                Block::Event(event) => (text(event.name), text(&event.data), text(event.raw)),
                Block::Oversize(raw) => ("oversize".into(), String::new(), text(raw)),
            });
        }
    };
    for chunk in chunks {
        reader.push(chunk);
        take(&mut reader);
    }
    reader.end();
    take(&mut reader);
    let pending = text(reader.pending());
    (seen, pending)
}

/// Name and data of the events somebody would be told of.
fn dispatched(stream: &str) -> Vec<(String, String)> {
    let (seen, _) = read([stream.as_bytes()]);
    seen.into_iter()
        .filter(|(_, data, _)| !data.is_empty())
        .map(|(name, data, _)| (name, data))
        .collect()
}

fn one(name: &str, data: &str) -> Vec<(String, String)> {
    vec![(name.into(), data.into())]
}

#[test]
fn reads_the_fields_of_the_standard() {
    assert_eq!(dispatched("data: a\n\n"), one("", "a"));
    assert_eq!(dispatched("event: ping\ndata: {}\n\n"), one("ping", "{}"));
    assert_eq!(
        dispatched("data:a\n\n"),
        one("", "a"),
        "the space is optional"
    );
    assert_eq!(
        dispatched("data:  a\n\n"),
        one("", " a"),
        "only one space goes"
    );
    assert_eq!(dispatched("data: a:b: c\n\n"), one("", "a:b: c"));
    assert_eq!(dispatched("data: a\ndata: b\ndata\n\n"), one("", "a\nb\n"));
    assert_eq!(dispatched("data\ndata\n\n"), one("", "\n"));
    assert_eq!(dispatched("event: a\nevent: b\ndata: x\n\n"), one("b", "x"));
    assert_eq!(
        dispatched(": comment\nid: 7\nretry: 10\nfoo: bar\ndata: x\n\n"),
        one("", "x")
    );
    assert_eq!(
        dispatched("Data: x\n data: y\n\n"),
        [],
        "field names are exact"
    );
    assert_eq!(dispatched("\u{feff}data: x\n\n"), one("", "x"));
    assert_eq!(dispatched("data: x\n\n\u{feff}data: y\n\n"), one("", "x"));
    assert_eq!(
        dispatched("data\n\nevent: a\n\n:\n\n\n\n"),
        [],
        "without data there is no event"
    );
    assert_eq!(dispatched("data: never ended\n"), []);
}

#[test]
fn every_line_ending_ends_a_line() {
    for stream in [
        "data: a\ndata: b\n\ndata: c\n\n",
        "data: a\rdata: b\r\rdata: c\r\r",
        "data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n",
        "data: a\rdata: b\r\n\rdata: c\n\r",
        "data: a\ndata: b\r\n\ndata: c\r\n\n",
    ] {
        let expected = [one("", "a\nb"), one("", "c")].concat();
        assert_eq!(dispatched(stream), expected, "{stream:?}");
    }
}

#[test]
fn blocks_carry_their_whole_line_ending() {
    let (seen, pending) = read([&b"data: a\r\n\r\ndata: b\r\rdata: c\n\n\n: tail\n"[..]]);
    let raw: Vec<_> = seen.iter().map(|(_, _, raw)| raw.as_str()).collect();
    assert_eq!(raw, ["data: a\r\n\r\n", "data: b\r\r", "data: c\n\n", "\n"]);
    assert_eq!(pending, ": tail\n");
}

#[test]
fn a_block_that_ends_in_cr_waits_for_the_lf_that_may_follow() {
    let mut reader = Reader::default();
    reader.push(b"data: a\r\n\r");
    assert_eq!(reader.next_block(), None);
    assert_eq!(reader.pending(), b"data: a\r\n\r");
    reader.push(b"\n");
    let Some(Block::Event(event)) = reader.next_block() else {
        panic!("the block is whole")
    };
    assert_eq!(event.raw, b"data: a\r\n\r\n");
    assert!(reader.pending().is_empty());

    reader.push(b"data: b\r\r");
    assert_eq!(reader.next_block(), None);
    reader.end();
    let Some(Block::Event(event)) = reader.next_block() else {
        panic!("nothing can follow any more")
    };
    assert_eq!(&*event.data, b"b");
    assert_eq!(reader.next_block(), None);
}

#[test]
fn cuts_do_not_matter_and_no_byte_is_lost() {
    let stream = "\u{feff}event: a\r\ndata: 1\r\ndata: é\r\n\r\n: hi\r\rdata: 2\n\n\r\ndata: 3\r\n\ndata: 4\n\rx";
    let whole = read([stream.as_bytes()]);
    assert_eq!(
        whole
            .0
            .iter()
            .filter(|(_, data, _)| !data.is_empty())
            .count(),
        4
    );
    let joined: String = whole.0.iter().map(|(_, _, raw)| raw.as_str()).collect();
    assert_eq!(joined + &whole.1, stream);

    let bytes = stream.as_bytes();
    for cut in 0..=bytes.len() {
        // Pending bytes may end inside a character, but the blocks never do.
        assert_eq!(read([&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
    }
    assert_eq!(read(bytes.chunks(1)), whole);
}

#[test]
fn an_event_too_long_is_passed_on_unread_and_the_next_one_is_read() {
    let long = format!("data: {}\n\n", "x".repeat(MAX_EVENT_BYTES));
    let stream = format!("data: a\n\n{long}data: b\n\n");
    for chunk in [stream.len(), 70_000, 4096, 4095] {
        let (seen, pending) = read(stream.as_bytes().chunks(chunk));
        assert_eq!(pending, "");
        assert_eq!(seen.first().unwrap().1, "a");
        assert_eq!(seen.last().unwrap().1, "b");
        let middle = &seen[1..seen.len() - 1];
        assert!(
            middle.iter().all(|(name, _, _)| name == "oversize"),
            "chunk {chunk}"
        );
        let joined: String = middle.iter().map(|(_, _, raw)| raw.as_str()).collect();
        assert_eq!(joined, long, "chunk {chunk}");
    }
}

#[test]
fn the_limit_is_exact() {
    // "data: " and the two LF are 8 bytes.
    let event = |length: usize| format!("data: {}\n\n", "x".repeat(length - 8));
    let (seen, _) = read([event(MAX_EVENT_BYTES).as_bytes()]);
    assert_eq!(seen[0].1.len(), MAX_EVENT_BYTES - 8);
    let (seen, _) = read([event(MAX_EVENT_BYTES + 1).as_bytes()]);
    assert_eq!(seen[0].0, "oversize");
}

#[test]
fn never_holds_back_more_than_one_event() {
    let mut reader = Reader::default();
    for _ in 0..64 {
        reader.push(&[b'x'; 65_536]);
        while reader.next_block().is_some() {}
        assert!(reader.pending().len() <= MAX_EVENT_BYTES);
    }
    assert!(
        reader.pending().is_empty(),
        "an oversize event is not held back"
    );
}
