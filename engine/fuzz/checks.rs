//! What must hold for any bytes. The fuzz targets and `engine/tests/meter_fuzz.rs` call the same functions.

use std::collections::BTreeMap;
use tollgate_engine::{
    json::{self, ErrorKind, Kind},
    meter::{Fed, Framing, Meter, Metered, Provider},
    price::{Price, PriceTable},
    sse::{Block, Reader},
};

/// The JSON reader agrees with another one on what is JSON and what it says; edits change what they name and no more.
pub(crate) fn json(data: &[u8]) {
    let theirs = serde_json::from_slice::<serde_json::Value>(data);
    let doc = match json::parse(data) {
        Ok(doc) => doc,
        Err(error) => {
            assert!(error.offset <= data.len());
            match error.kind {
                // Refused for more than grammar.
                ErrorKind::DuplicateKey
                | ErrorKind::TooDeep
                | ErrorKind::TooManyValues
                | ErrorKind::TooLong => {}
                ErrorKind::UnexpectedEnd
                | ErrorKind::UnexpectedByte
                | ErrorKind::ByteOrderMark
                | ErrorKind::NotUtf8
                | ErrorKind::ControlCharacter
                | ErrorKind::BadEscape
                | ErrorKind::LoneSurrogate
                | ErrorKind::BadNumber
                | ErrorKind::TrailingData => assert!(theirs.is_err(), "refused: {error}"),
            }
            return;
        }
    };
    // The other reader refuses numbers no float holds; skipping numbers, it must agree.
    serde_json::from_slice::<serde::de::IgnoredAny>(data).expect("accepted what is not JSON");
    if let Ok(theirs) = theirs {
        same(doc.root(), &theirs);
    }
    let mut scratch = String::new();
    for text in doc.strings() {
        assert_eq!(doc.text().get(text.span()), Some(text.raw()));
        assert_eq!(text.len(), text.resolve(&mut scratch).len());
    }
    let Some(edits) = doc
        .root()
        .set_members(&[("max_tokens", "7"), ("n\"", "[]")])
    else {
        assert_ne!(doc.root().kind(), Kind::Object);
        return;
    };
    let edited = json::splice(data, edits).expect("edits are in bounds");
    let edited = json::parse(&edited).expect("an edited object is an object");
    let raw = |doc: &json::Document<'_>| -> BTreeMap<String, String> {
        let entries = doc.root().entries();
        entries
            .map(|(key, value)| (key.into_owned(), value.raw().to_owned()))
            .collect()
    };
    let mut expected = raw(&doc);
    expected.insert("max_tokens".into(), "7".into());
    expected.insert("n\"".into(), "[]".into());
    assert_eq!(raw(&edited), expected);
}

fn same(ours: json::Value<'_, '_>, theirs: &serde_json::Value) {
    use serde_json::Value;
    match theirs {
        Value::Null => assert!(ours.is_null()),
        Value::Bool(value) => assert_eq!(ours.as_bool(), Some(*value)),
        Value::Number(value) => {
            assert_eq!(ours.kind(), Kind::Number);
            assert_eq!(ours.as_u64(), value.as_u64());
        }
        Value::String(value) => assert_eq!(ours.as_str().as_deref(), Some(value.as_str())),
        Value::Array(values) => {
            assert_eq!(ours.items().count(), values.len());
            ours.items()
                .zip(values)
                .for_each(|(ours, theirs)| same(ours, theirs));
        }
        Value::Object(members) => {
            assert_eq!(ours.entries().count(), members.len());
            for (key, theirs) in members {
                same(ours.get(key).expect("a member"), theirs);
            }
        }
    }
}

/// The event reader tells of the events the standard does, loses no byte, and does not care about cuts.
pub(crate) fn sse(data: &[u8]) {
    let expected = dispatched(data);
    for size in chunk_sizes(data) {
        let mut reader = Reader::default();
        let mut seen = Vec::new();
        let mut bytes = Vec::new();
        let mut take = |reader: &mut Reader| {
            while let Some(block) = reader.next_block() {
                match block {
                    Block::Event(event) => {
                        bytes.extend_from_slice(event.raw);
                        if !event.data.is_empty() {
                            seen.push((event.name.to_vec(), event.data.to_vec()));
                        }
                    }
                    Block::Oversize(raw) => bytes.extend_from_slice(raw),
                }
            }
        };
        for chunk in data.chunks(size) {
            reader.push(chunk);
            take(&mut reader);
        }
        reader.end();
        take(&mut reader);
        bytes.extend_from_slice(reader.pending());
        assert_eq!(bytes, data, "chunks of {size}");
        assert_eq!(seen, expected, "chunks of {size}");
    }
}

/// Name and data of each event, by the letter of the standard and with no thought for streams.
fn dispatched(data: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rest = data.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(data);
    let (mut name, mut buffer) = (Vec::new(), Vec::new());
    let mut events = Vec::new();
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        let (line, after) = rest.split_at(end);
        rest = after.strip_prefix(b"\r\n").unwrap_or(&after[1..]);
        if line.is_empty() {
            buffer.pop();
            let event = (std::mem::take(&mut name), std::mem::take(&mut buffer));
            if !event.1.is_empty() {
                events.push(event);
            }
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if field == b"event" {
            name = value.to_vec();
        } else if field == b"data" {
            buffer.extend_from_slice(value);
            buffer.push(b'\n');
        }
    }
    events
}

/// The meter reads the same however the bytes are cut, and sends on what came, but for one kind of frame.
pub(crate) fn meter(data: &[u8]) {
    for provider in [Provider::OpenAiChat, Provider::AnthropicMessages] {
        for (framing, hide) in [
            (Framing::Json, false),
            (Framing::Sse, false),
            (Framing::Sse, true),
        ] {
            let [whole, cut] = chunk_sizes(data).map(|size| {
                let mut meter = Meter::new(provider, framing, hide);
                let mut sent = Vec::new();
                for chunk in data.chunks(size) {
                    match meter.feed(chunk) {
                        Fed::All => sent.extend_from_slice(chunk),
                        Fed::Instead(bytes) => sent.extend_from_slice(&bytes),
                        Fed::Until(_) => panic!("it may go on"),
                    }
                }
                let mut metered = meter.finish();
                sent.append(&mut metered.rest);
                (metered, sent)
            });
            assert_eq!(whole, cut);
            let (metered, sent) = whole;
            consistent(&metered);
            if sent != data {
                assert!(hide && provider == Provider::OpenAiChat && sent.len() < data.len());
            }
        }
    }
}

fn consistent(metered: &Metered) {
    let usage = metered.usage;
    if metered.complete {
        assert!(usage.input_tokens.is_some() && usage.output_tokens.is_some() && !metered.failed);
    }
}

/// Names from outside never make a look-up fail, and never find a price in an empty table.
pub(crate) fn price(data: &[u8]) {
    let name = String::from_utf8_lossy(data);
    let mut table = PriceTable::default();
    assert_eq!(table.find(&name), None);
    table.models.insert("gpt-4o".into(), Price::flat(1, 1));
    if table.find(&name).is_some() {
        assert!(name.contains("gpt-4o"));
    }
    let _ = serde_json::from_slice::<PriceTable>(data);
}

/// All at once, and in pieces whose size the data decides.
fn chunk_sizes(data: &[u8]) -> [usize; 2] {
    let small = 1 + usize::from(data.last().copied().unwrap_or(0) % 13);
    [data.len().max(1), small]
}
