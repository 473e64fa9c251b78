//! Server-sent events, read from a byte stream that may be cut anywhere.
//!
//! The grammar is that of the HTML standard, section "event stream interpretation": lines end in LF, CR or CRLF, a blank
//! line ends an event, `:` starts a comment, several `data` lines are joined by LF, one byte order mark may come first.
//!
//! The reader hands out *blocks*: everything up to and including a blank line, so the blocks and [`Reader::pending`]
//! together are the stream, byte for byte. A caller that drops one block and forwards the others has hidden that event and
//! changed nothing else. Comments and stray blank lines are blocks without data.
//!
//! ```
//! use tollgate_engine::sse::{Block, Reader};
//!
//! let mut reader = Reader::default();
//! reader.push(b"event: ping\ndata: {}\n\ndata: {\"a\"");
//! let Some(Block::Event(event)) = reader.next_block() else { panic!() };
//! assert_eq!((event.name, &*event.data), (&b"ping"[..], &b"{}"[..]));
//! assert!(reader.next_block().is_none());
//! assert_eq!(reader.pending(), b"data: {\"a\"");
//! ```

use alloc::borrow::Cow;
use alloc::vec::Vec;

/// The longest event that is read. Providers send a few hundred bytes at a time, at most one whole tool call; 1 MiB is the
/// most a stream may make a gate hold back. A longer event is passed on as [`Block::Oversize`], unread, up to its end.
pub const MAX_EVENT_BYTES: usize = 1 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// A part of the stream, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Block<'a> {
    /// One whole event.
    Event(Event<'a>),
    /// A part of an event longer than [`MAX_EVENT_BYTES`], to be passed on as it is.
    Oversize(&'a [u8]),
}

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Value of the last `event` field; empty when there was none, which the standard reads as `message`.
    pub name: &'a [u8],
    /// Values of the `data` fields joined by LF. An event without data is not dispatched to anybody.
    pub data: Cow<'a, [u8]>,
    /// The bytes of the event, blank line included.
    pub raw: &'a [u8],
}

/// Reads blocks from chunks: [`push`](Reader::push) one, then take blocks until there is none.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: Vec<u8>,
    /// Up to here the buffer has been handed out.
    taken: usize,
    /// Up to here it has been searched for the end of the block; each byte is looked at once.
    searched: usize,
    line: Line,
    /// A block has been handed out, so a byte order mark is no longer one.
    started: bool,
    /// Inside an event that became too long.
    oversize: bool,
    ended: bool,
}

/// Where a stream of events stands that passes by unread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    line: Line,
    /// An event has begun and not ended.
    inside: bool,
}

impl Place {
    /// Goes over the next bytes.
    pub fn pass(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.step(*byte);
        }
    }

    /// How many of the next bytes belong to the event that has begun, 0 between two events; `None` when it does not end in them.
    pub fn rest_of_event(self, bytes: &[u8]) -> Option<usize> {
        let mut place = self;
        let mut length = 0;
        for byte in bytes {
            if !place.inside {
                break;
            }
            place.step(*byte);
            length += 1;
        }
        (!place.inside).then_some(length)
    }

    fn step(&mut self, byte: u8) {
        self.line = match (byte, self.line) {
            (b'\n', Line::Blank) => {
                self.inside = false;
                Line::Blank
            }
            // The second blank line by CR ends the event; an LF behind it belongs to a line of its own, which is blank.
            (b'\r', Line::Blank | Line::BlankAfterCr) => {
                self.inside = false;
                Line::BlankAfterCr
            }
            (b'\n', _) => Line::Blank,
            (b'\r', _) => Line::BlankAfterCr,
            _ => {
                self.inside = true;
                Line::Filled
            }
        };
    }
}

/// What the search has seen of the current line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    /// Nothing yet.
    #[default]
    Blank,
    /// Nothing yet, and the line before ended in CR: an LF here still belongs to it.
    BlankAfterCr,
    /// Something.
    Filled,
    /// The block is over, by a CR: an LF here still belongs to it.
    BlockOverAfterCr,
}

impl Reader {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, chunk: &[u8]) {
        // What is left after the last blocks is shorter than the chunk that ended them, so this copies each byte once.
        self.buffer.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        self.buffer.extend_from_slice(chunk);
    }

    /// The stream is over. Only an event that ends in CR can still come out; it was waiting for a possible LF.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The next block, when it is whole.
    pub fn next_block(&mut self) -> Option<Block<'_>> {
        let start = self.taken;
        let whole = self.search();
        let length = self.searched - start;
        if self.oversize || length > MAX_EVENT_BYTES {
            self.oversize = !whole;
        } else if !whole {
            return None;
        } else {
            self.taken = self.searched;
            let is_first = !core::mem::replace(&mut self.started, true);
            let raw = self.buffer.get(start..self.taken)?;
            return Some(Block::Event(read_event(raw, is_first)));
        }
        self.started = true;
        self.taken = self.searched;
        let raw = self.buffer.get(start..self.taken)?;
        (whole || !raw.is_empty()).then_some(Block::Oversize(raw))
    }

    /// The bytes of the event that is not whole yet.
    pub fn pending(&self) -> &[u8] {
        self.buffer.get(self.taken..).unwrap_or_default()
    }

    /// Whether the last block was a part of an event that goes on.
    pub(crate) fn is_in_oversize(&self) -> bool {
        self.oversize
    }

    /// Moves `searched` to the end of the block or of the buffer; whether the block is whole.
    fn search(&mut self) -> bool {
        while let Some(&byte) = self.buffer.get(self.searched) {
            if self.line == Line::BlockOverAfterCr {
                self.searched += usize::from(byte == b'\n');
                self.line = Line::Blank;
                return true;
            }
            self.searched += 1;
            self.line = match (byte, self.line) {
                (b'\n', Line::Blank) => return true,
                (b'\r', Line::Blank | Line::BlankAfterCr) => Line::BlockOverAfterCr,
                // Ends a filled line, or completes the CRLF that did.
                (b'\n', _) => Line::Blank,
                (b'\r', _) => Line::BlankAfterCr,
                _ => Line::Filled,
            };
        }
        let whole = self.ended && self.line == Line::BlockOverAfterCr;
        if whole {
            self.line = Line::Blank;
        }
        whole
    }
}

fn read_event(raw: &[u8], is_first: bool) -> Event<'_> {
    let text = match raw.strip_prefix(BYTE_ORDER_MARK) {
        Some(rest) if is_first => rest,
        _ => raw,
    };
    let mut name: &[u8] = b"";
    let mut data: Option<Cow<'_, [u8]>> = None;
    // A CRLF is seen as two line ends; the empty line between them means nothing here.
    for line in text.split(|byte| matches!(byte, b'\r' | b'\n')) {
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => {
                let (field, rest) = line.split_at(colon);
                let value = rest.strip_prefix(b":").unwrap_or(rest);
                (field, value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &b""[..]),
        };
        match field {
            b"event" => name = value,
            b"data" => match &mut data {
                None => data = Some(Cow::Borrowed(value)),
                Some(lines) => {
                    let lines = lines.to_mut();
                    lines.push(b'\n');
                    lines.extend_from_slice(value);
                }
            },
            // Comments (an empty field name), `id`, `retry`, and what the standard says to ignore.
            _ => {}
        }
    }
    Event {
        name,
        data: data.unwrap_or_default(),
        raw,
    }
}
