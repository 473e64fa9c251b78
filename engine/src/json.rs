//! A strict JSON reader that keeps every byte where it was.
//!
//! The gate decides on what a body says, and the provider acts on what the same body says. They must read the same thing,
//! so a text that two honest parsers may read differently is refused here: anything outside the RFC 8259 grammar, a key
//! that appears twice in one object (compared after unescaping), a lone surrogate, a byte order mark, trailing data.
//!
//! [`parse`] writes one flat tape of 16-byte nodes, without recursion and without an allocation per node; strings are
//! borrowed from the input. Edits are byte splices, so what the gate did not mean to change stays as the caller wrote it.
//!
//! ```
//! use tollgate_engine::json;
//!
//! let body = br#"{"model":"gpt-4o","stream":true}"#;
//! let doc = json::parse(body).unwrap();
//! let model = doc.root().get("model").and_then(|v| v.as_str()).unwrap();
//! assert_eq!(model, "gpt-4o");
//!
//! let edits = doc.root().set_members(&[("max_tokens", "256")]).unwrap();
//! assert_eq!(
//!     json::splice(body, edits).unwrap(),
//!     br#"{"model":"gpt-4o","stream":true,"max_tokens":256}"#,
//! );
//! ```
//!
//! [`read`] makes a value of a Rust type of a text: so are this house's own formats read.
//!
//! Deliberately not here: a value type to build or to own, numbers as floats (a token is text, or a `u64` where it is
//! one), a lenient mode.

mod typed;

pub use typed::{Mismatch, read, read_member};

use crate::sorted::{sort_by, sort_by_key};
use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Containers inside containers. Chat requests with nested tool schemas stay under 20; other readers stop between 64 and
/// 1000, and a body only some of them read must not pass.
pub const MAX_DEPTH: usize = 64;

/// Nodes of one document: values, and keys. 262 144 × 16 bytes = 4 MiB of tape, the most one body may make a gate allocate
/// (Envoy's wasm memory grows and never shrinks). A 1 MiB body of five-digit array elements has 175 000.
pub const MAX_NODES: usize = 1 << 18;

/// Bytes of one document. Offsets are `u32`; body caps of the hosts lie far below.
pub const MAX_BYTES: usize = 64 << 20;

/// Up to this many members, keys are compared pair by pair (at most 28 comparisons, nearly all ended by the length);
/// above it they are sorted by hash, so that an object of 100 000 keys costs no more per key than one of ten.
const PAIRWISE_MEMBERS: usize = 8;

/// What a text was refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The text ends inside a value, or is empty.
    UnexpectedEnd,
    /// A byte that the grammar does not allow here.
    UnexpectedByte,
    /// The text starts with a byte order mark.
    ByteOrderMark,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// A control character inside a string that is not escaped.
    ControlCharacter,
    /// A backslash followed by something that is no escape.
    BadEscape,
    /// Half of a surrogate pair, which is no character.
    LoneSurrogate,
    /// A number outside the grammar: leading zero, bare point, missing digits.
    BadNumber,
    /// The same key twice in one object.
    DuplicateKey,
    /// Something after the end of the value.
    TrailingData,
    /// More than [`MAX_DEPTH`] nested containers.
    TooDeep,
    /// More than [`MAX_NODES`] values and keys.
    TooManyValues,
    /// More than [`MAX_BYTES`] bytes.
    TooLong,
}

/// Why and where a text was refused. Never holds content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// What was wrong.
    pub kind: ErrorKind,
    /// Byte offset of it.
    pub offset: usize,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            ErrorKind::UnexpectedEnd => "json ends before the value does",
            ErrorKind::UnexpectedByte => "json has a byte the grammar does not allow",
            ErrorKind::ByteOrderMark => "json starts with a byte order mark, send it without",
            ErrorKind::NotUtf8 => "json is not utf-8",
            ErrorKind::ControlCharacter => "json string holds a raw control character, escape it",
            ErrorKind::BadEscape => "json string holds an unknown escape",
            ErrorKind::LoneSurrogate => "json string holds half a surrogate pair",
            ErrorKind::BadNumber => "json number is malformed",
            ErrorKind::DuplicateKey => "json object repeats a key, send each key once",
            ErrorKind::TrailingData => "json is followed by more data, send one value",
            ErrorKind::TooDeep => "json is nested deeper than 64 levels",
            ErrorKind::TooManyValues => "json has more than 262144 values and keys",
            ErrorKind::TooLong => "json is longer than 64 MiB",
        };
        write!(f, "{what} (byte {})", self.offset)
    }
}

impl core::error::Error for Error {}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number token.
    Number,
    /// A string; also every key.
    String,
    /// `[…]`
    Array,
    /// `{…}`
    Object,
}

/// One value or key on the tape. A container is followed by its children; an object's children alternate key, value.
#[derive(Clone, Copy, Debug)]
struct Node {
    kind: Kind,
    /// A string with at least one escape.
    escaped: bool,
    is_key: bool,
    /// Bytes of the value, quotes and brackets included.
    start: u32,
    end: u32,
    /// Index of the first node after this one and all its children.
    next: u32,
}

/// A parsed text: the tape, and the text it points into.
#[derive(Debug)]
pub struct Document<'t> {
    text: &'t str,
    nodes: Vec<Node>,
    root: Node,
}

impl<'t> Document<'t> {
    /// The value the text holds.
    pub fn root(&self) -> Value<'_, 't> {
        Value {
            doc: self,
            index: 0,
            node: self.root,
        }
    }

    /// The text as it came.
    pub fn text(&self) -> &'t str {
        self.text
    }

    /// Every string and every number token in text order, keys included: all that a content scan has to see.
    pub fn strings(&self) -> impl Iterator<Item = Text<'t>> + '_ {
        self.nodes.iter().filter_map(|node| self.token(*node))
    }

    fn value(&self, index: u32) -> Option<Value<'_, 't>> {
        let node = *self.nodes.get(index as usize)?;
        Some(Value {
            doc: self,
            index,
            node,
        })
    }

    fn token(&self, node: Node) -> Option<Text<'t>> {
        text_of(self.text, node)
    }
}

/// One value of a document. A small copy, to be passed by value.
#[derive(Clone, Copy)]
pub struct Value<'d, 't> {
    doc: &'d Document<'t>,
    index: u32,
    node: Node,
}

impl fmt::Debug for Value<'_, '_> {
    /// Kind and place only: a value may hold what must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.node.kind, self.span())
    }
}

impl<'d, 't> Value<'d, 't> {
    /// What this value is.
    pub fn kind(self) -> Kind {
        self.node.kind
    }

    /// Its bytes in the input, quotes and brackets included.
    pub fn span(self) -> Range<usize> {
        self.node.start as usize..self.node.end as usize
    }

    /// Its text in the input, quotes and brackets included.
    pub fn raw(self) -> &'t str {
        self.doc.text.get(self.span()).unwrap_or_default()
    }

    /// The member of that name; `None` when there is none or this is no object.
    pub fn get(self, key: &str) -> Option<Value<'d, 't>> {
        let mut members = self.members();
        members.find_map(|(name, value)| (name == *key).then_some(value))
    }

    /// The elements of an array; none for anything else.
    pub fn items(self) -> impl Iterator<Item = Value<'d, 't>> {
        self.children(Kind::Array)
    }

    /// Key and value of each member of an object; none for anything else.
    pub fn entries(self) -> impl Iterator<Item = (Cow<'t, str>, Value<'d, 't>)> {
        self.members().map(|(key, value)| (key.to_cow(), value))
    }

    /// Like [`Value::entries`], with keys that are not unescaped yet.
    pub fn members(self) -> impl Iterator<Item = (Text<'t>, Value<'d, 't>)> {
        let mut children = self.children(Kind::Object);
        core::iter::from_fn(move || {
            let key = children.next()?.text()?;
            Some((key, children.next()?))
        })
    }

    /// The string, unescaped; borrowed from the input when it has no escapes.
    pub fn as_str(self) -> Option<Cow<'t, str>> {
        self.text().map(Text::to_cow)
    }

    /// The string, not unescaped yet.
    pub fn text(self) -> Option<Text<'t>> {
        (self.node.kind == Kind::String)
            .then(|| self.doc.token(self.node))
            .flatten()
    }

    /// The number as written.
    pub fn as_number(self) -> Option<&'t str> {
        (self.node.kind == Kind::Number).then(|| self.raw())
    }

    /// The number when it is written as digits alone and fits. `1.0`, `1e3`, `-0` and 2^64 are `None`: what a provider
    /// makes of those is its own choice, so the gate does not guess.
    pub fn as_u64(self) -> Option<u64> {
        self.as_number()?.parse().ok()
    }

    /// `true` or `false`.
    pub fn as_bool(self) -> Option<bool> {
        (self.node.kind == Kind::Bool).then(|| self.raw() == "true")
    }

    /// Whether this is `null`.
    pub fn is_null(self) -> bool {
        self.node.kind == Kind::Null
    }

    /// Edits that give this object these members (raw JSON each): an existing value is replaced where it stands, a new
    /// member is appended. `None` when this is no object. Ask once per object for all members to set: two answers for one
    /// empty object would not know of each other's comma.
    pub fn set_members(self, members: &[(&str, &str)]) -> Option<Vec<Edit>> {
        if self.node.kind != Kind::Object {
            return None;
        }
        let last = self.children(Kind::Object).last();
        let mut needs_comma = last.is_some();
        let append_at = last.map_or(self.span().start + 1, |value| value.span().end);

        let mut edits = Vec::with_capacity(members.len());
        for (key, raw_value) in members {
            if let Some(value) = self.get(key) {
                edits.push(Edit::new(value.span(), raw_value));
                continue;
            }
            let mut added = String::new();
            if needs_comma {
                added.push(',');
            }
            needs_comma = true;
            quote(key, &mut added);
            added.push(':');
            added.push_str(raw_value);
            edits.push(Edit::new(append_at..append_at, &added));
        }
        Some(edits)
    }

    fn children(self, of: Kind) -> impl Iterator<Item = Value<'d, 't>> {
        let end = if self.node.kind == of {
            self.node.next
        } else {
            0
        };
        let mut index = self.index + 1;
        core::iter::from_fn(move || {
            if index >= end {
                return None;
            }
            let child = self.doc.value(index)?;
            index = child.node.next;
            Some(child)
        })
    }
}

/// What part a string or number token plays in its document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The key of a member.
    Key,
    /// A string value.
    String,
    /// A number token, as written.
    Number,
}

/// A string or number token, unescaped on demand.
#[derive(Clone, Copy)]
pub struct Text<'t> {
    raw: &'t str,
    escaped: bool,
    role: Role,
    start: usize,
}

impl fmt::Debug for Text<'_> {
    /// Role and place only, as for [`Value`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.role, self.span())
    }
}

impl<'t> Text<'t> {
    /// Key, string or number.
    pub fn role(self) -> Role {
        self.role
    }

    /// Its bytes in the input, without quotes.
    pub fn span(self) -> Range<usize> {
        self.start..self.start + self.raw.len()
    }

    /// As written, without quotes.
    pub fn raw(self) -> &'t str {
        self.raw
    }

    /// Unescaped; borrowed from the input when there is nothing to unescape.
    pub fn to_cow(self) -> Cow<'t, str> {
        if !self.escaped {
            return Cow::Borrowed(self.raw);
        }
        let mut out = String::new();
        self.unescape_into(&mut out);
        Cow::Owned(out)
    }

    /// Unescaped, with the caller's buffer for the case that needs one: a scan of many strings allocates once.
    pub fn resolve<'s>(self, scratch: &'s mut String) -> &'s str
    where
        't: 's,
    {
        if !self.escaped {
            return self.raw;
        }
        scratch.clear();
        self.unescape_into(scratch);
        scratch
    }

    /// Bytes after unescaping.
    pub fn len(self) -> usize {
        if self.escaped {
            Unescaped::new(self.raw).count()
        } else {
            self.raw.len()
        }
    }

    /// Whether there is nothing between the quotes.
    pub fn is_empty(self) -> bool {
        self.raw.is_empty()
    }

    fn unescape_into(self, out: &mut String) {
        out.reserve(self.raw.len());
        let mut rest = self.raw;
        while let Some((plain, after)) = rest.split_once('\\') {
            out.push_str(plain);
            // The tape holds valid escapes only; were one not, the rest would be dropped rather than misread.
            let Ok((character, length)) = escape(after.as_bytes()) else {
                return;
            };
            out.push(character);
            rest = after.get(length..).unwrap_or_default();
        }
        out.push_str(rest);
    }

    fn same(self, other: Text<'_>) -> bool {
        if self.escaped || other.escaped {
            Unescaped::new(self.raw).eq(Unescaped::new(other.raw))
        } else {
            self.raw == other.raw
        }
    }
}

impl PartialEq<str> for Text<'_> {
    fn eq(&self, other: &str) -> bool {
        if self.escaped {
            Unescaped::new(self.raw).eq(other.bytes())
        } else {
            self.raw == other
        }
    }
}

/// One replacement of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Which bytes of the original go; empty to insert.
    pub span: Range<usize>,
    /// What stands there instead.
    pub with: Vec<u8>,
}

impl Edit {
    /// Replaces `span` by `with`.
    pub fn new(span: Range<usize>, with: &str) -> Edit {
        Edit {
            span,
            with: with.as_bytes().into(),
        }
    }
}

/// The bytes with the edits made, every other byte untouched. Edits come in any order, those at one place stay in the
/// given order. `None` when two overlap or one lies outside.
pub fn splice(bytes: &[u8], mut edits: Vec<Edit>) -> Option<Vec<u8>> {
    sort_by_key(&mut edits, |edit| edit.span.start);
    let added: usize = edits.iter().map(|edit| edit.with.len()).sum();
    let mut out = Vec::with_capacity(bytes.len() + added);
    let mut done = 0;
    for edit in &edits {
        out.extend_from_slice(bytes.get(done..edit.span.start)?);
        out.extend_from_slice(&edit.with);
        bytes.get(edit.span.clone())?;
        done = edit.span.end;
    }
    out.extend_from_slice(bytes.get(done..)?);
    Some(out)
}

/// Appends `text` as a JSON string with its quotes.
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                out.push_str("\\u00");
                out.push(if control < '\u{10}' { '0' } else { '1' });
                let low = u32::from(control) & 0xF;
                out.extend(char::from_digit(low, 16));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// Whether these bytes begin as a JSON object, or an array of objects, does. Such a body is JSON to servers that do not look at the content
/// type, so one without a single reading must not pass as mere text.
pub(crate) fn opens_like_one(body: &[u8]) -> bool {
    let body = body.trim_ascii_start();
    match body.split_first() {
        Some((b'{', _)) => true,
        Some((b'[', rest)) => rest.trim_ascii_start().starts_with(b"{"),
        _ => false,
    }
}

/// Reads one JSON text. Time is linear in its length (sorting the hashes of a large object's keys aside).
pub fn parse(bytes: &[u8]) -> Result<Document<'_>, Error> {
    parse_up_to(MAX_NODES, bytes)
}

fn parse_up_to(max_nodes: usize, bytes: &[u8]) -> Result<Document<'_>, Error> {
    let fail = |kind, offset| Err(Error { kind, offset });
    if bytes.len() > MAX_BYTES {
        return fail(ErrorKind::TooLong, MAX_BYTES);
    }
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        return fail(ErrorKind::ByteOrderMark, 0);
    }
    let text = match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return fail(ErrorKind::NotUtf8, error.valid_up_to()),
    };
    let mut reader = Reader {
        text,
        bytes,
        at: 0,
        // Chat bodies have a node per 20 to 60 bytes.
        nodes: Vec::with_capacity((bytes.len() / 16 + 4).min(4096)),
        max_nodes,
        open: [0; MAX_DEPTH],
        depth: 0,
        hashes: Vec::new(),
    };
    reader.document()?;
    let nodes = reader.nodes;
    match nodes.first() {
        Some(&root) => Ok(Document { text, nodes, root }),
        None => fail(ErrorKind::UnexpectedEnd, 0),
    }
}

struct Reader<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    nodes: Vec<Node>,
    max_nodes: usize,
    /// Indexes of the containers not closed yet: the first `depth` of them.
    open: [u32; MAX_DEPTH],
    depth: usize,
    /// For objects above [`PAIRWISE_MEMBERS`]; kept to be reused.
    hashes: Vec<(u64, u32)>,
}

impl Reader<'_> {
    fn document(&mut self) -> Result<(), Error> {
        loop {
            self.skip_whitespace();
            if self.value()? == Progress::Opened {
                continue;
            }
            // A value is complete. Close what it completes, up to the next comma.
            loop {
                self.skip_whitespace();
                let Some(container) = self.innermost() else {
                    return match self.peek() {
                        None => Ok(()),
                        Some(_) => self.fail(ErrorKind::TrailingData),
                    };
                };
                match (self.peek(), container) {
                    (Some(b','), Kind::Object) => {
                        self.at += 1;
                        self.skip_whitespace();
                        self.key()?;
                        break;
                    }
                    (Some(b','), _) => {
                        self.at += 1;
                        break;
                    }
                    (Some(b'}'), Kind::Object) | (Some(b']'), Kind::Array) => self.close()?,
                    _ => return self.unexpected(),
                }
            }
        }
    }

    /// Reads a scalar or an empty container, or opens a container and stops before its first value.
    fn value(&mut self) -> Result<Progress, Error> {
        match self.peek() {
            Some(b'"') => self.string(false)?,
            Some(b'{') => {
                self.open(Kind::Object)?;
                if self.peek() == Some(b'}') {
                    self.close()?;
                } else {
                    self.key()?;
                    return Ok(Progress::Opened);
                }
            }
            Some(b'[') => {
                self.open(Kind::Array)?;
                if self.peek() == Some(b']') {
                    self.close()?;
                } else {
                    return Ok(Progress::Opened);
                }
            }
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.literal(b"true", Kind::Bool)?,
            Some(b'f') => self.literal(b"false", Kind::Bool)?,
            Some(b'n') => self.literal(b"null", Kind::Null)?,
            _ => return self.unexpected(),
        }
        Ok(Progress::Complete)
    }

    /// Reads a key and its colon, with the whitespace before the colon.
    fn key(&mut self) -> Result<(), Error> {
        if self.peek() != Some(b'"') {
            return self.unexpected();
        }
        self.string(true)?;
        self.skip_whitespace();
        if self.peek() != Some(b':') {
            return self.unexpected();
        }
        self.at += 1;
        Ok(())
    }

    fn open(&mut self, kind: Kind) -> Result<(), Error> {
        let index = offset(self.nodes.len());
        match self.open.get_mut(self.depth) {
            Some(slot) => *slot = index,
            None => return self.fail(ErrorKind::TooDeep),
        }
        self.depth += 1;
        let start = self.at;
        self.at += 1;
        self.push(kind, start, false, false)?;
        self.skip_whitespace();
        Ok(())
    }

    /// Closes the innermost container, whose bracket is the next byte.
    fn close(&mut self) -> Result<(), Error> {
        self.at += 1;
        self.depth = self.depth.saturating_sub(1);
        let next = offset(self.nodes.len());
        let end = offset(self.at);
        let Some(&index) = self.open.get(self.depth) else {
            return Ok(());
        };
        if let Some(node) = self.nodes.get_mut(index as usize) {
            node.next = next;
            node.end = end;
            if node.kind == Kind::Object {
                return self.refuse_duplicate_keys(index);
            }
        }
        Ok(())
    }

    fn innermost(&self) -> Option<Kind> {
        let index = *self.open.get(self.depth.checked_sub(1)?)?;
        Some(self.nodes.get(index as usize)?.kind)
    }

    fn string(&mut self, is_key: bool) -> Result<(), Error> {
        let start = self.at;
        self.at += 1;
        let mut escaped = false;
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let Some(stop) = string_stop(rest) else {
                self.at = self.bytes.len();
                return self.fail(ErrorKind::UnexpectedEnd);
            };
            self.at += stop;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return self.push(Kind::String, start, escaped, is_key);
                }
                Some(b'\\') => {
                    escaped = true;
                    let after = self.bytes.get(self.at + 1..).unwrap_or_default();
                    match escape(after) {
                        Ok((_, length)) => self.at += 1 + length,
                        Err(kind) => return self.fail(kind),
                    }
                }
                _ => return self.fail(ErrorKind::ControlCharacter),
            }
        }
    }

    fn number(&mut self) -> Result<(), Error> {
        let start = self.at;
        self.take(|byte| byte == b'-');
        let sound = (self.take(|byte| byte == b'0') || self.digits())
            && (!self.take(|byte| byte == b'.') || self.digits())
            && (!self.take(|byte| matches!(byte, b'e' | b'E')) || self.exponent());
        let ends_here = !matches!(
            self.peek(),
            Some(b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b'+' | b'-')
        );
        if sound && ends_here {
            self.push(Kind::Number, start, false, false)
        } else if self.peek().is_none() {
            self.fail(ErrorKind::UnexpectedEnd)
        } else {
            self.fail(ErrorKind::BadNumber)
        }
    }

    fn exponent(&mut self) -> bool {
        self.take(|byte| matches!(byte, b'+' | b'-'));
        self.digits()
    }

    /// Takes digits; whether there was one.
    fn digits(&mut self) -> bool {
        let start = self.at;
        while self.take(|byte| byte.is_ascii_digit()) {}
        self.at > start
    }

    fn take(&mut self, accept: impl Fn(u8) -> bool) -> bool {
        let taken = self.peek().is_some_and(accept);
        self.at += usize::from(taken);
        taken
    }

    fn literal(&mut self, word: &[u8], kind: Kind) -> Result<(), Error> {
        let start = self.at;
        for byte in word {
            if self.peek() != Some(*byte) {
                return self.unexpected();
            }
            self.at += 1;
        }
        self.push(kind, start, false, false)
    }

    fn push(&mut self, kind: Kind, start: usize, escaped: bool, is_key: bool) -> Result<(), Error> {
        if self.nodes.len() >= self.max_nodes {
            return self.fail(ErrorKind::TooManyValues);
        }
        self.nodes.push(Node {
            kind,
            escaped,
            is_key,
            start: offset(start),
            end: offset(self.at),
            next: offset(self.nodes.len() + 1),
        });
        Ok(())
    }

    fn refuse_duplicate_keys(&mut self, object: u32) -> Result<(), Error> {
        let more = keys_of(self.text, &self.nodes, object).nth(PAIRWISE_MEMBERS);
        if more.is_some() {
            return self.refuse_duplicates_among_many(object);
        }
        let mut seen: [Option<Text<'_>>; PAIRWISE_MEMBERS] = [None; PAIRWISE_MEMBERS];
        let keys = keys_of(self.text, &self.nodes, object).enumerate();
        for (count, (_, key)) in keys {
            if seen.iter().take(count).flatten().any(|t| t.same(key)) {
                return Err(duplicate_at(key));
            }
            if let Some(slot) = seen.get_mut(count) {
                *slot = Some(key);
            }
        }
        Ok(())
    }

    /// Sorted by hash, equal keys are neighbours up to collisions; a run of one hash is sorted by content, so that keys
    /// made to collide cost a logarithm and not a square.
    fn refuse_duplicates_among_many(&mut self, object: u32) -> Result<(), Error> {
        let (text, nodes) = (self.text, &self.nodes);
        self.hashes.clear();
        self.hashes
            .extend(keys_of(text, nodes, object).map(|(index, key)| (hash(key), index)));
        self.hashes.sort_unstable();

        let key_at = |index: u32| {
            let node = *nodes.get(index as usize)?;
            text_of(text, node)
        };
        let mut first: Option<Text<'_>> = None;
        for run in self.hashes.chunk_by(|a, b| a.0 == b.0) {
            if run.len() == 1 {
                continue;
            }
            let mut colliding: Vec<Text<'_>> = run.iter().filter_map(|k| key_at(k.1)).collect();
            sort_by(&mut colliding, |a, b| {
                Unescaped::new(a.raw).cmp(Unescaped::new(b.raw))
            });
            for pair in colliding.windows(2) {
                if let [a, b] = pair
                    && a.same(*b)
                    && first.is_none_or(|found| b.start < found.start)
                {
                    first = Some(*b);
                }
            }
        }
        first.map_or(Ok(()), |key| Err(duplicate_at(key)))
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn unexpected<T>(&self) -> Result<T, Error> {
        match self.peek() {
            None => self.fail(ErrorKind::UnexpectedEnd),
            Some(_) => self.fail(ErrorKind::UnexpectedByte),
        }
    }

    fn fail<T>(&self, kind: ErrorKind) -> Result<T, Error> {
        Err(Error {
            kind,
            offset: self.at,
        })
    }
}

#[derive(PartialEq, Eq)]
enum Progress {
    Complete,
    Opened,
}

/// Lossless: `parse` refuses more than [`MAX_BYTES`], and there are no more nodes than bytes.
fn offset(at: usize) -> u32 {
    at as u32
}

fn text_of(text: &str, node: Node) -> Option<Text<'_>> {
    let quotes = match node.kind {
        Kind::String => 1,
        Kind::Number => 0,
        Kind::Null | Kind::Bool | Kind::Array | Kind::Object => return None,
    };
    let role = match (node.kind, node.is_key) {
        (Kind::Number, _) => Role::Number,
        (_, true) => Role::Key,
        (_, false) => Role::String,
    };
    let start = node.start as usize + quotes;
    Some(Text {
        raw: text.get(start..node.end as usize - quotes)?,
        escaped: node.escaped,
        role,
        start,
    })
}

/// The keys of an object with their indexes.
fn keys_of<'t>(
    text: &'t str,
    nodes: &[Node],
    object: u32,
) -> impl Iterator<Item = (u32, Text<'t>)> {
    let mut index = object + 1;
    core::iter::from_fn(move || {
        let this = index;
        let key = *nodes.get(this as usize)?;
        index = nodes.get(this as usize + 1)?.next;
        Some((this, text_of(text, key)?))
    })
}

fn duplicate_at(key: Text<'_>) -> Error {
    Error {
        kind: ErrorKind::DuplicateKey,
        offset: key.start.saturating_sub(1),
    }
}

/// FNV-1a over the unescaped bytes.
fn hash(key: Text<'_>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    const BASIS: u64 = 0xCBF2_9CE4_8422_2325;
    if key.escaped {
        Unescaped::new(key.raw).fold(BASIS, step)
    } else {
        key.raw.bytes().fold(BASIS, step)
    }
}

/// Index of the first byte a string cannot just contain: quote, backslash, control character. Eight bytes at a time, as
/// most of a chat body is string content. In each word the lowest flagged byte is exact; borrows only flag bytes above it.
fn string_stop(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = ONES << 7;
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word & HIGHS;

    let (words, tail) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let hit = quote | backslash | below(word, b' ');
        if hit != 0 {
            return Some(index * 8 + hit.trailing_zeros() as usize / 8);
        }
    }
    let stop = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..b' ');
    Some(words.len() * 8 + tail.iter().position(stop)?)
}

/// Reads what follows a backslash: the character, and how many bytes it took.
fn escape(after: &[u8]) -> Result<(char, usize), ErrorKind> {
    let simple = match after.first() {
        None => return Err(ErrorKind::UnexpectedEnd),
        Some(b'"') => '"',
        Some(b'\\') => '\\',
        Some(b'/') => '/',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return unicode_escape(after),
        Some(_) => return Err(ErrorKind::BadEscape),
    };
    Ok((simple, 1))
}

/// `uXXXX`, or `uXXXX\uXXXX` for a surrogate pair.
fn unicode_escape(after: &[u8]) -> Result<(char, usize), ErrorKind> {
    let first = four_digits(after, 1)?;
    if let Some(character) = char::from_u32(first) {
        return Ok((character, 5));
    }
    let is_high = (0xD800..0xDC00).contains(&first);
    if !is_high || after.get(5..7) != Some(b"\\u") {
        return Err(ErrorKind::LoneSurrogate);
    }
    let second = four_digits(after, 7)?;
    if !(0xDC00..0xE000).contains(&second) {
        return Err(ErrorKind::LoneSurrogate);
    }
    let scalar = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
    let character = char::from_u32(scalar).ok_or(ErrorKind::LoneSurrogate)?;
    Ok((character, 11))
}

fn four_digits(bytes: &[u8], from: usize) -> Result<u32, ErrorKind> {
    (from..from + 4).try_fold(0, |value, at| {
        let byte = *bytes.get(at).ok_or(ErrorKind::UnexpectedEnd)?;
        let digit = char::from(byte).to_digit(16).ok_or(ErrorKind::BadEscape)?;
        Ok(value << 4 | digit)
    })
}

/// The bytes of a string after unescaping, without a buffer: for comparing and hashing.
struct Unescaped<'t> {
    rest: &'t [u8],
    /// The UTF-8 of the last escape, from `emitted` on.
    character: [u8; 4],
    emitted: usize,
    length: usize,
}

impl<'t> Unescaped<'t> {
    fn new(raw: &'t str) -> Unescaped<'t> {
        Unescaped {
            rest: raw.as_bytes(),
            character: [0; 4],
            emitted: 0,
            length: 0,
        }
    }
}

impl Iterator for Unescaped<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        if self.emitted == self.length {
            let (&first, rest) = self.rest.split_first()?;
            self.rest = rest;
            if first != b'\\' {
                return Some(first);
            }
            let (character, consumed) = escape(rest).ok()?;
            self.rest = rest.get(consumed..)?;
            self.length = character.encode_utf8(&mut self.character).len();
            self.emitted = 0;
        }
        let byte = self.character.get(self.emitted).copied();
        self.emitted += 1;
        byte
    }
}
