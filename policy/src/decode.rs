//! From the tree to typed values, telling everything that is wrong on the way.
//!
//! A decoder asks a [`Table`] for the keys it knows with [`Table::take`]; what nobody asked for is an unknown key, and what was asked
//! for is what "did you mean" chooses from. So the list of known keys is written once, as the code that reads them.

use crate::{
    diagnostic::{Diagnostic, Position, Severity, codes},
    yaml::{Entry, Node, Value, child, item, shown},
};

/// Findings of one file that are kept; the rest is counted. A person reads a screen of them, not ten thousand.
pub const MAX_DIAGNOSTICS: usize = 200;

/// Bytes of a name: of documents, organisations, teams, tools, models. Longer ones do not fit a console column nor a header.
pub const MAX_NAME_BYTES: usize = 200;

/// Where findings go.
pub(crate) struct Findings {
    pub(crate) diagnostics: Vec<Diagnostic>,
    dropped: usize,
    strict: bool,
    errors: usize,
    /// Patterns of the file so far.
    pub(crate) patterns: usize,
    /// What was asked for, by path: where the JSON Schema comes from.
    pub(crate) shapes: Vec<(String, Shape)>,
}

/// What a field was asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Text,
    /// Text, or nothing.
    Remark,
    Boolean,
    /// From, to.
    Integer(u64, u64),
    Choice(Vec<&'static str>),
    List,
    /// Its known keys; none where they are the author's own.
    Object(Vec<&'static str>),
}

/// Shapes kept: some hundred fields, and no more for a file of thousands of tools.
const MAX_SHAPES: usize = 256;

impl Findings {
    pub(crate) fn new(diagnostics: Vec<Diagnostic>, strict: bool) -> Findings {
        let errors = diagnostics.iter().filter(|d| d.is_error()).count();
        let mut all = Findings {
            diagnostics,
            dropped: 0,
            strict,
            errors,
            patterns: 0,
            shapes: Vec::new(),
        };
        all.dropped = all.diagnostics.len().saturating_sub(MAX_DIAGNOSTICS);
        all.diagnostics.truncate(MAX_DIAGNOSTICS);
        all
    }

    /// Errors so far, kept or not.
    pub(crate) fn errors(&self) -> usize {
        self.errors
    }

    pub(crate) fn asked(&mut self, path: &str, shape: Shape) {
        if self.shapes.len() < MAX_SHAPES {
            self.shapes.push((path.to_string(), shape));
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.diagnostics.len() >= MAX_DIAGNOSTICS
    }

    fn push(&mut self, diagnostic: Diagnostic) {
        if diagnostic.is_error() {
            self.errors = self.errors.saturating_add(1);
        }
        if self.is_full() {
            self.dropped = self.dropped.saturating_add(1);
        } else {
            self.diagnostics.push(diagnostic);
        }
    }

    pub(crate) fn error(
        &mut self,
        at: Position,
        path: &str,
        code: &'static str,
        message: impl Into<String>,
    ) {
        self.push(diagnostic(Severity::Error, at, path, code, message.into()));
    }

    pub(crate) fn warn(
        &mut self,
        at: Position,
        path: &str,
        code: &'static str,
        message: impl Into<String>,
    ) {
        self.push(diagnostic(
            Severity::Warning,
            at,
            path,
            code,
            message.into(),
        ));
    }

    /// An error in a field's value, with the value that was probably meant.
    pub(crate) fn suggest(
        &mut self,
        field: &Field<'_>,
        code: &'static str,
        message: String,
        suggestion: Option<String>,
    ) {
        let found = diagnostic(Severity::Error, field.node.at, &field.path, code, message);
        self.push(Diagnostic {
            suggestion,
            ..found
        });
    }

    /// The findings in the order of the file, and whether one of them is an error.
    pub(crate) fn finish(mut self) -> (Vec<Diagnostic>, bool) {
        self.diagnostics.sort_by_key(|d| (d.line, d.column));
        if self.dropped > 0 {
            let severity = if self.errors > 0 {
                Severity::Error
            } else {
                Severity::Warning
            };
            let last = self.diagnostics.last();
            let at = last.map_or(Position::default(), |d| Position {
                line: d.line,
                column: d.column,
            });
            let message = format!("{} more findings are not shown", self.dropped);
            self.diagnostics
                .push(diagnostic(severity, at, "", codes::OVER_LIMIT, message));
        }
        (self.diagnostics, self.errors > 0)
    }

    fn wrong_type(&mut self, field: &Field<'_>, expected: &str) {
        if matches!(field.node.value, Value::Refused) {
            return;
        }
        let message = if field.node.is_null() {
            format!("expected {expected}, found nothing; give it a value or remove the key")
        } else {
            format!("expected {expected}, found {}", found(field.node))
        };
        self.error(field.node.at, &field.path, codes::WRONG_TYPE, message);
    }

    /// The field as a mapping.
    pub(crate) fn table<'n>(&mut self, field: &Field<'n>) -> Option<Table<'n>> {
        match &field.node.value {
            Value::Map(entries) => Some(Table {
                path: field.path.clone(),
                at: field.key_at,
                left: entries.iter().collect(),
                known: Vec::new(),
            }),
            _ => {
                self.wrong_type(field, "a mapping");
                None
            }
        }
    }

    /// The items of a list.
    pub(crate) fn list<'n>(&mut self, field: &Field<'n>) -> Option<Vec<Field<'n>>> {
        self.asked(&field.path, Shape::List);
        match &field.node.value {
            Value::List(nodes) => Some(
                nodes
                    .iter()
                    .enumerate()
                    .map(|(index, node)| Field {
                        path: item(&field.path, index),
                        key_at: node.at,
                        node,
                    })
                    .collect(),
            ),
            _ => {
                self.wrong_type(field, "a list");
                None
            }
        }
    }

    /// Any text. Unquoted numbers and words count as the text they are written as: a version may be `1.10`.
    pub(crate) fn text<'n>(&mut self, field: &Field<'n>) -> Option<&'n str> {
        self.asked(&field.path, Shape::Text);
        self.written(field)
    }

    /// Text, without saying that any would do.
    pub(crate) fn written<'n>(&mut self, field: &Field<'n>) -> Option<&'n str> {
        match &field.node.value {
            Value::Scalar { text, .. } if !field.node.is_null() => Some(text),
            _ => {
                self.wrong_type(field, "text");
                None
            }
        }
    }

    /// A name that people and logs can show: not empty, no control characters, no spaces at its ends, at most [`MAX_NAME_BYTES`].
    pub(crate) fn name<'n>(&mut self, field: &Field<'n>) -> Option<&'n str> {
        let text = self.text(field)?;
        match name_problem(text) {
            None => Some(text),
            Some((code, problem)) => {
                self.error(field.node.at, &field.path, code, problem);
                None
            }
        }
    }

    /// `true` or `false`, without quotes.
    pub(crate) fn boolean(&mut self, field: &Field<'_>) -> Option<bool> {
        self.asked(&field.path, Shape::Boolean);
        if let Value::Scalar {
            text, plain: true, ..
        } = &field.node.value
        {
            match text.as_str() {
                "true" | "True" | "TRUE" => return Some(true),
                "false" | "False" | "FALSE" => return Some(false),
                _ => {}
            }
        }
        self.wrong_type(field, "`true` or `false`");
        None
    }

    /// A whole number from `least` to `most`, in decimal digits without quotes.
    pub(crate) fn integer(&mut self, field: &Field<'_>, least: u64, most: u64) -> Option<u64> {
        self.asked(&field.path, Shape::Integer(least, most));
        let Value::Scalar {
            text, plain: true, ..
        } = &field.node.value
        else {
            self.wrong_type(field, "a whole number");
            return None;
        };
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            self.wrong_type(field, "a whole number");
            return None;
        }
        if digits.len() > 1 && digits.starts_with('0') {
            let message = format!(
                "`{}` begins with a zero, which some readers of YAML take for octal; write it without",
                shown(text)
            );
            self.error(field.node.at, &field.path, codes::NUMBER, message);
            return None;
        }
        match text.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                let message = format!("must be from {least} to {most}, found {}", shown(text));
                self.error(field.node.at, &field.path, codes::NUMBER, message);
                None
            }
        }
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        field: &Field<'_>,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let words = choices.iter().map(|(word, _)| *word).collect();
        self.asked(&field.path, Shape::Choice(words));
        let text = self.written(field)?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let words: Vec<&'static str> = choices.iter().map(|(word, _)| *word).collect();
        let listed: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
        let message = format!("must be {}, found `{}`", listed.join(" or "), shown(text));
        let meant = nearest(text, &words).map(str::to_string);
        self.suggest(field, codes::CHOICE, message, meant);
        None
    }
}

fn diagnostic(
    severity: Severity,
    at: Position,
    path: &str,
    code: &'static str,
    message: String,
) -> Diagnostic {
    Diagnostic {
        severity,
        code,
        path: path.to_string(),
        message,
        line: at.line,
        column: at.column,
        suggestion: None,
    }
}

/// What keeps `text` from being a name.
pub(crate) fn name_problem(text: &str) -> Option<(&'static str, String)> {
    if text.is_empty() {
        return Some((codes::EMPTY, "must not be empty".to_string()));
    }
    if text.len() > MAX_NAME_BYTES {
        let message = format!("a name must not be longer than {MAX_NAME_BYTES} bytes");
        return Some((codes::BAD_NAME, message));
    }
    if text.chars().any(char::is_control) || text.trim() != text {
        let message = "a name must not have control characters, nor spaces at its ends";
        return Some((codes::BAD_NAME, message.to_string()));
    }
    None
}

fn found(node: &Node) -> String {
    match &node.value {
        Value::List(_) => "a list".to_string(),
        Value::Map(_) => "a mapping".to_string(),
        Value::Scalar {
            text, plain: true, ..
        } => format!("`{}`", shown(text)),
        Value::Scalar {
            text, plain: false, ..
        } => format!("the text \"{}\"", shown(text)),
        Value::Refused => "something refused".to_string(),
    }
}

/// A value with its place in the document.
#[derive(Clone)]
pub(crate) struct Field<'n> {
    pub(crate) path: String,
    /// Where its key stood; for a list item where the item stood.
    pub(crate) key_at: Position,
    pub(crate) node: &'n Node,
}

/// A mapping whose keys are being taken out.
pub(crate) struct Table<'n> {
    pub(crate) path: String,
    pub(crate) at: Position,
    left: Vec<&'n Entry>,
    known: Vec<&'static str>,
}

impl<'n> Table<'n> {
    /// A mapping that is a whole document, if it is one.
    pub(crate) fn of_document(node: &'n Node) -> Option<Table<'n>> {
        match &node.value {
            Value::Map(entries) => Some(Table {
                path: String::new(),
                at: node.at,
                left: entries.iter().collect(),
                known: Vec::new(),
            }),
            _ => None,
        }
    }

    /// Whether no key is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Whether `key` is there and not taken.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.left.iter().any(|entry| entry.key == key)
    }

    /// Takes the value of a known key.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<Field<'n>> {
        self.known.push(key);
        self.take_silently(key)
    }

    /// Takes the value of a key that does not belong here, so that nobody is told to write it.
    pub(crate) fn take_silently(&mut self, key: &str) -> Option<Field<'n>> {
        let index = self.left.iter().position(|entry| entry.key == key)?;
        Some(field(&self.path, self.left.remove(index)))
    }

    /// Takes what is there, for mappings whose keys are the author's own.
    pub(crate) fn take_all(&mut self) -> Vec<(&'n str, Field<'n>)> {
        std::mem::take(&mut self.left)
            .into_iter()
            .map(|entry| (entry.key.as_str(), field(&self.path, entry)))
            .collect()
    }

    /// Reports every key that nobody took.
    pub(crate) fn finish(self, findings: &mut Findings) {
        findings.asked(&self.path, Shape::Object(self.known.clone()));
        let severity = if findings.strict {
            Severity::Error
        } else {
            Severity::Warning
        };
        for entry in &self.left {
            let path = child(&self.path, &entry.key);
            // Words are compared only for findings that are shown: a file of nothing but unknown keys stays quick.
            let suggestion = match findings.is_full() {
                true => None,
                false => nearest(&entry.key, &self.known),
            };
            let message = match suggestion {
                Some(known) => format!(
                    "unknown key `{}`, which is ignored; did you mean `{known}`?",
                    shown(&entry.key)
                ),
                None => format!("unknown key `{}`, which is ignored", shown(&entry.key)),
            };
            let mut finding =
                diagnostic(severity, entry.key_at, &path, codes::UNKNOWN_KEY, message);
            finding.suggestion = suggestion.map(str::to_string);
            findings.push(finding);
        }
    }
}

fn field<'n>(path: &str, entry: &'n Entry) -> Field<'n> {
    Field {
        path: child(path, &entry.key),
        key_at: entry.key_at,
        node: &entry.node,
    }
}

/// The known word that `text` was probably meant to be: at most a third of its letters wrong.
pub(crate) fn nearest<'k>(text: &str, known: &[&'k str]) -> Option<&'k str> {
    // No known word is longer than this; comparing a 64 KiB key letter by letter would only cost time.
    const LONGEST: usize = 40;
    if text.len() > LONGEST {
        return None;
    }
    known
        .iter()
        .map(|word| (edit_distance(&text.to_lowercase(), word), *word))
        .filter(|(distance, word)| *distance <= word.len().div_ceil(3).min(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Letters to insert, remove, change or swap with their neighbour (Damerau 1964, "optimal string alignment") to get from `a` to `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut two_back: Vec<usize> = Vec::new();
    let mut back: Vec<usize> = (0..=b.len()).collect();
    let mut before: Option<char> = None;
    for (row, x) in a.chars().enumerate() {
        let mut current = Vec::with_capacity(b.len() + 1);
        current.push(row + 1);
        for (column, y) in b.iter().enumerate() {
            let at = |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX);
            let changed = at(&back, column).saturating_add(usize::from(x != *y));
            let removed = at(&back, column + 1).saturating_add(1);
            let inserted = at(&current, column).saturating_add(1);
            let mut best = changed.min(removed).min(inserted);
            let left = column
                .checked_sub(1)
                .and_then(|index| b.get(index).map(|c| (index, *c)));
            if let (Some(before), Some((index, left))) = (before, left)
                && before == *y
                && left == x
            {
                best = best.min(at(&two_back, index).saturating_add(1));
            }
            current.push(best);
        }
        two_back = std::mem::replace(&mut back, current);
        before = Some(x);
    }
    back.last().copied().unwrap_or(0)
}
