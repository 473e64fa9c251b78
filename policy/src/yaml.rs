//! YAML text into a tree that remembers where everything stood.
//!
//! The tree keeps scalars as text with their quoting and types nothing: `NO`, `25.10` and `09:00` mean what the field that holds them
//! says. JSON is read by the same path, for JSON documents are YAML. What lets a small file grow large or mean something that cannot be
//! seen in place is refused: anchors, aliases, tags, directives, merge keys and keys that are not plain text.

use crate::diagnostic::{Diagnostic, Position, Severity, codes};
use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, Span};
use std::{borrow::Cow, collections::HashSet};

/// Bytes of a policy file. The longest reference policy has 0.9 KB; 1 MiB is room for a thousand of them.
pub const MAX_FILE_BYTES: usize = 1 << 20;
/// Collections inside each other. The language itself needs five.
pub const MAX_DEPTH: usize = 32;
/// Bytes of one scalar. The longest legitimate one is a description or an approval condition.
pub const MAX_SCALAR_BYTES: usize = 64 << 10;
/// Scalars, lists and mappings of a file: bounds memory (about 100 bytes each) and the time a file of `[],[],…` takes.
pub const MAX_NODES: usize = 50_000;

/// A value and where it stood.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Value,
}

#[derive(Debug)]
pub(crate) enum Value {
    /// Text as written, after escapes; `plain` when it had no quotes, so that it may also be a number, a boolean or nothing.
    Scalar {
        text: String,
        plain: bool,
        /// Characters before it, where it stands in the file as it is.
        quote: Option<usize>,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// Something that is already reported; whoever meets it says nothing more.
    Refused,
}

impl Node {
    /// Whether this is YAML's nothing: an empty value, `~` or `null` without quotes.
    pub(crate) fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar { text, plain, .. } => {
                *plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            _ => false,
        }
    }

    /// Whether this is a list of nothing.
    pub(crate) fn is_empty_list(&self) -> bool {
        matches!(&self.value, Value::List(items) if items.is_empty())
    }

    /// Where this character of the text stands (from 1), as far as that can be told: that of the value at worst.
    pub(crate) fn character(&self, number: usize) -> Position {
        let Value::Scalar {
            text,
            quote: Some(quote),
            ..
        } = &self.value
        else {
            return self.at;
        };
        let before: String = text.chars().take(number.saturating_sub(1)).collect();
        let line = before.rsplit('\n').next().unwrap_or_default();
        Position {
            line: self.at.line + before.matches('\n').count(),
            column: self.at.column + quote + line.chars().count(),
        }
    }
}

/// A key and its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_at: Position,
    pub(crate) node: Node,
}

/// A collection that is not closed yet.
struct Open {
    at: Position,
    refused: bool,
    children: Children,
}

enum Children {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        seen: HashSet<String>,
        key: Option<Key>,
    },
}

struct Key {
    text: String,
    at: Position,
    /// Reported; its value is dropped with it.
    refused: bool,
}

/// Reads every document of `bytes`; empty ones are left out. After a syntax error or a limit the documents before it are returned.
pub(crate) fn read(bytes: &[u8], diagnostics: &mut Vec<Diagnostic>) -> Vec<Node> {
    let mut reader = Reader {
        documents: Vec::new(),
        open: Vec::new(),
        nodes: 0,
        diagnostics,
    };
    let start = Position { line: 1, column: 1 };
    if bytes.len() > MAX_FILE_BYTES {
        // Readers stop one byte behind the limit, so how many there are is not known.
        let message = format!("the file has more than {MAX_FILE_BYTES} bytes; split it");
        reader.error(start, codes::UNREADABLE, message);
        return reader.documents;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + unix_lines(&String::from_utf8_lossy(before))
                .matches('\n')
                .count();
            let at = Position { line, column: 1 };
            let message = "the file is not UTF-8 text".to_string();
            reader.error(at, codes::UNREADABLE, message);
            return reader.documents;
        }
    };
    let options = granit_parser::options! {
        disallow_directives: true,
        emit_unresolved_aliases: true,
    };
    for event in Parser::new_from_str_with_options(text, options) {
        let going_on = match event {
            Ok((event, span)) => {
                let source = span.byte_range().and_then(|range| text.get(range));
                reader.event(event, span, source.unwrap_or_default())
            }
            Err(error) => {
                let at = position(error.marker().line(), error.marker().col());
                let (code, message) = match error.kind() {
                    ErrorKind::DirectiveDisallowed => (
                        codes::REFUSED_YAML,
                        "`%` directives are not accepted; remove the line, or quote the value"
                            .to_string(),
                    ),
                    _ => (codes::SYNTAX, format!("this is not YAML: {}", error.info())),
                };
                reader.error(at, code, message);
                false
            }
        };
        if !going_on {
            break;
        }
    }
    reader.documents
}

/// How many characters are before `text` in `source`, which begins at `at`, where it stands there as it is: on one line, or in a block of lines that
/// begin in the same column.
fn quote(source: &str, text: &str, at: Position) -> Option<usize> {
    let within = |mark| source.strip_prefix(mark)?.strip_suffix(mark);
    let quoted = |inside: &str| inside == text && !text.contains('\n');
    if ['"', '\''].into_iter().filter_map(within).any(quoted) {
        return Some(1);
    }
    let indent = at.column.saturating_sub(1);
    let source = unix_lines(source);
    let mut written = source.trim_end().split('\n');
    let mut lines = text.trim_end().split('\n');
    let same = written.next() == lines.next()
        && lines.all(|line| {
            let written = written.next();
            written.is_some_and(|written| written.get(indent..).unwrap_or_default() == line)
        })
        && written.next().is_none();
    same.then_some(0)
}

/// `text` with `\n` at the end of each line. YAML also ends lines with `\r\n` and `\r` (YAML 1.2.2 §5.4).
pub fn unix_lines(text: &str) -> Cow<'_, str> {
    match text.contains('\r') {
        true => Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n")),
        false => Cow::Borrowed(text),
    }
}

fn position(line: usize, column_from_0: usize) -> Position {
    Position {
        line,
        column: column_from_0.saturating_add(1),
    }
}

struct Reader<'d> {
    documents: Vec<Node>,
    open: Vec<Open>,
    nodes: usize,
    diagnostics: &'d mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn error(&mut self, at: Position, code: &'static str, message: String) {
        let path = self.path();
        self.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            code,
            path,
            message,
            line: at.line,
            column: at.column,
            suggestion: None,
        });
    }

    /// The field that is being read.
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match &open.children {
                Children::List(nodes) => path = item(&path, nodes.len()),
                Children::Map { key: Some(key), .. } => path = child(&path, &key.text),
                Children::Map { .. } => {}
            }
        }
        path
    }

    /// Takes one event and its text in the file; `false` when reading must stop.
    fn event(&mut self, event: Event<'_>, span: Span, source: &str) -> bool {
        let at = position(span.start.line(), span.start.col());
        match event {
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd
            | Event::Anchor(..) => true,
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                let message = "aliases (`*name`) are not accepted: write the value out; \
                               quote a value that begins with `*`";
                self.error(at, codes::REFUSED_YAML, message.to_string());
                self.value(Node {
                    at,
                    value: Value::Refused,
                })
            }
            Event::Scalar(text, style, anchor, tag) => {
                let refused = self.properties(at, anchor, tag.is_some());
                if text.len() > MAX_SCALAR_BYTES {
                    let message = format!("a value has more than {MAX_SCALAR_BYTES} bytes");
                    self.error(at, codes::OVER_LIMIT, message);
                    return false;
                }
                let value = if refused {
                    Value::Refused
                } else {
                    Value::Scalar {
                        quote: quote(source, &text, at),
                        text: text.into_owned(),
                        plain: style == ScalarStyle::Plain,
                    }
                };
                self.value(Node { at, value })
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.start(at, anchor, tag.is_some(), Children::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                let children = Children::Map {
                    entries: Vec::new(),
                    seen: HashSet::new(),
                    key: None,
                };
                self.start(at, anchor, tag.is_some(), children)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(done) => {
                    let value = match done.children {
                        _ if done.refused => Value::Refused,
                        Children::List(nodes) => Value::List(nodes),
                        Children::Map { entries, .. } => Value::Map(entries),
                    };
                    self.value(Node { at: done.at, value })
                }
                None => true,
            },
            // The parser may learn new events; what this does not know it does not pass over.
            _ => {
                let message = "this YAML feature is not accepted".to_string();
                self.error(at, codes::REFUSED_YAML, message);
                false
            }
        }
    }

    /// Reports an anchor or a tag; `true` when there was one.
    fn properties(&mut self, at: Position, anchor: usize, tagged: bool) -> bool {
        if anchor != 0 {
            let message = "anchors (`&name`) are not accepted: write the value out; \
                           quote a value that begins with `&`";
            self.error(at, codes::REFUSED_YAML, message.to_string());
        }
        if tagged {
            let message = "tags (`!name`) are not accepted: the field decides the type; \
                           quote a value that begins with `!`";
            self.error(at, codes::REFUSED_YAML, message.to_string());
        }
        anchor != 0 || tagged
    }

    fn start(&mut self, at: Position, anchor: usize, tagged: bool, children: Children) -> bool {
        let refused = self.properties(at, anchor, tagged);
        if self.open.len() >= MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} collections inside each other");
            self.error(at, codes::OVER_LIMIT, message);
            return false;
        }
        self.open.push(Open {
            at,
            refused,
            children,
        });
        true
    }

    /// Puts a finished node into the innermost open collection, or makes it a document.
    fn value(&mut self, node: Node) -> bool {
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > MAX_NODES {
            let message = format!("more than {MAX_NODES} values in one file; split it");
            self.error(node.at, codes::OVER_LIMIT, message);
            return false;
        }
        let at = node.at;
        let problem = match self.open.last_mut().map(|open| &mut open.children) {
            None => {
                if !node.is_null() {
                    self.documents.push(node);
                }
                None
            }
            Some(Children::List(nodes)) => {
                nodes.push(node);
                None
            }
            Some(Children::Map { entries, seen, key }) => match key.take() {
                None => {
                    let (read, problem) = as_key(&node, seen);
                    *key = Some(read);
                    problem
                }
                Some(key) if key.refused => None,
                Some(key) => {
                    entries.push(Entry {
                        key: key.text,
                        key_at: key.at,
                        node,
                    });
                    None
                }
            },
        };
        if let Some((code, message)) = problem {
            self.error(at, code, message);
        }
        true
    }
}

/// The path of field `key` of the mapping at `path`; a key that would not read back is quoted.
pub(crate) fn child(path: &str, key: &str) -> String {
    let plain = !key.is_empty()
        && key
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    match (plain, path.is_empty()) {
        (true, true) => shown(key),
        (true, false) => format!("{path}.{}", shown(key)),
        (false, _) => format!("{path}[\"{}\"]", shown(key)),
    }
}

/// The path of the item at `index` of the list at `path`.
pub(crate) fn item(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// A node in the place of a key, and what is wrong with it.
fn as_key(node: &Node, seen: &mut HashSet<String>) -> (Key, Option<(&'static str, String)>) {
    let (text, problem) = match &node.value {
        Value::Scalar {
            text, plain: true, ..
        } if text == "<<" => {
            let message = "merge keys (`<<`) are not accepted: write the fields out";
            (
                text.as_str(),
                Some((codes::REFUSED_YAML, message.to_string())),
            )
        }
        Value::Scalar { text, .. } if !seen.insert(text.clone()) => {
            let message = format!("`{}` is already there; remove one", shown(text));
            (text.as_str(), Some((codes::DUPLICATE_KEY, message)))
        }
        Value::Scalar { text, .. } => (text.as_str(), None),
        Value::List(_) | Value::Map(_) => {
            let message = "a key must be plain text, not a list or a mapping";
            ("", Some((codes::REFUSED_YAML, message.to_string())))
        }
        Value::Refused => ("", None),
    };
    let refused = problem.is_some() || matches!(node.value, Value::Refused);
    let key = Key {
        text: text.to_string(),
        at: node.at,
        refused,
    };
    (key, problem)
}

/// `text` as a message may quote it: one line, without control characters, at most 60 characters.
pub(crate) fn shown(text: &str) -> String {
    const CHARS: usize = 60;
    let mut out: String = text
        .chars()
        .take(CHARS)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(CHARS).is_some() {
        out.push('…');
    }
    out
}
