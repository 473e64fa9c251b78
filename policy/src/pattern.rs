//! Sensitive patterns: regular expressions that mean here what they mean to RE2.
//!
//! A policy says RE2; a gate searches with `regex-automata`. The two agree on nearly everything, and what they do not agree on is
//! refused with the spelling that both read alike, never guessed. What is left is rewritten so that it keeps RE2's meaning (`\d`, `\w`,
//! `\s`, `\b` are ASCII, everything else works on Unicode characters) and put into a normal form that needs no flags and no Unicode tables,
//! because that is what is compiled for gates. Every row of the table in `tests/re2.rs` was compared with google-re2.

use crate::diagnostic::codes;
use regex_automata::{nfa::thompson, util::syntax};
use regex_syntax::ast::{
    self, AssertionKind, Ast, ClassPerlKind, ClassSetItem, ErrorKind, Flag, FlagsItemKind,
    GroupKind, HexLiteralKind, Literal, LiteralKind, RepetitionKind, RepetitionRange, Span,
};
use tollgate_engine::{
    automaton::{Automaton, Compiled, MAX_STATES_BYTES},
    scan::{Hits, Scanner},
};

/// Characters of one pattern. The longest of the well-known secret detectors has about 300.
pub const MAX_PATTERN_CHARS: usize = 1_024;
/// Patterns of one document.
pub const MAX_PATTERNS: usize = 64;
/// Patterns of one file. The slowest take 3 ms each without optimisation; one file must not keep the control plane busy.
pub const MAX_FILE_PATTERNS: usize = 512;
/// Most that a counted repetition may say, nested ones multiplied: RE2's own limit.
pub const MAX_REPETITION: u32 = 1_000;
/// Bytes of the automaton of one pattern: `\S{1000}` has 290 KB. A gate walks these states when it meets new text.
pub const MAX_AUTOMATON_BYTES: usize = 512 << 10;
/// Groups inside each other; keeps every later walk shallow.
const MAX_NESTING: u32 = 50;

/// A pattern that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// As its author wrote it.
    pub source: String,
    /// As it is compiled for gates. `(?u)` is part of it; no other option matters.
    pub normal: String,
}

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternError {
    /// One of the `PATTERN…` [`codes`].
    pub code: &'static str,
    /// What is wrong and how to write it.
    pub message: String,
    /// The character it is about, from 1, where it is about one.
    pub at: Option<usize>,
}

impl Pattern {
    /// Checks `source` and gives it its normal form.
    pub fn parse(source: &str) -> Result<Pattern, PatternError> {
        if source.is_empty() {
            return Err(error(codes::EMPTY, "must not be empty"));
        }
        if source.chars().nth(MAX_PATTERN_CHARS).is_some() {
            let message = format!("has more than {MAX_PATTERN_CHARS} characters; split it");
            return Err(error(codes::PATTERN_TOO_LARGE, message));
        }
        let ast = ast::parse::ParserBuilder::new()
            .nest_limit(MAX_NESTING)
            .build()
            .parse(source)
            .map_err(|why| not_parsed(source, &why))?;
        let edits = ast::visit(
            &ast,
            Re2Check {
                source,
                edits: Vec::new(),
                room: vec![MAX_REPETITION],
            },
        )?;
        let hir = regex_syntax::ParserBuilder::new()
            .unicode(true)
            .utf8(false)
            .nest_limit(MAX_NESTING + 10)
            .build()
            .parse(&rewritten(source, &edits))
            .map_err(|why| {
                error(
                    codes::PATTERN,
                    format!("is not a regular expression: {why}"),
                )
            })?;
        match hir.properties().minimum_len() {
            Some(0) => {
                let message = "matches the empty text, so it would block every call; \
                               require at least one character";
                return Err(error(codes::PATTERN_POINTLESS, message));
            }
            None => return Err(error(codes::PATTERN_POINTLESS, "can never match")),
            Some(_) => {}
        }
        thompson::Compiler::new()
            .configure(thompson::Config::new().nfa_size_limit(Some(MAX_AUTOMATON_BYTES)))
            .build_from_hir(&hir)
            .map_err(|_| {
                let message = format!(
                    "compiles to more than {MAX_AUTOMATON_BYTES} bytes; lower its repetition counts"
                );
                error(codes::PATTERN_TOO_LARGE, message)
            })?;
        Ok(Pattern {
            source: source.to_string(),
            normal: format!("(?u){hir}"),
        })
    }

    /// As gates get it, where they take out what it matches.
    pub fn compile(&self) -> Option<Compiled> {
        compile(&self.normal, true)
    }

    /// Whether it matches anywhere in `text`.
    pub(crate) fn finds(&self, text: &str) -> bool {
        let mut found = Hits::default();
        let compiled = compile(&self.normal, false);
        let scanner = compiled.and_then(|compiled| Scanner::new(&[&compiled.forward]).ok());
        if let Some(mut scanner) = scanner {
            scanner.search(text.as_bytes(), &mut found);
        }
        !found.is_empty()
    }
}

/// Compiles a pattern in normal form; with `backward` so that gates can take out what it matches. `None` for one that was not checked here, or is too
/// large.
pub(crate) fn compile(normal: &str, backward: bool) -> Option<Compiled> {
    let automaton = |reverse: bool| {
        let nfa = thompson::Compiler::new()
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .configure(
                thompson::Config::new()
                    .utf8(false)
                    .reverse(reverse)
                    .which_captures(thompson::WhichCaptures::None)
                    .nfa_size_limit(Some(MAX_STATES_BYTES)),
            )
            .build(normal);
        Automaton::of(&nfa.ok()?)
    };
    Some(Compiled {
        pattern: normal.to_string(),
        forward: automaton(false)?,
        backward: match backward {
            true => Some(automaton(true)?),
            false => None,
        },
    })
}

/// Whether a gate takes all of these together.
pub(crate) fn fit_together<'c>(compiled: impl Iterator<Item = &'c Compiled>) -> bool {
    let forward: Vec<&Automaton> = compiled.map(|compiled| &compiled.forward).collect();
    Scanner::new(&forward).is_ok()
}

fn error(code: &'static str, message: impl Into<String>) -> PatternError {
    PatternError {
        code,
        message: message.into(),
        at: None,
    }
}

fn error_at(code: &'static str, at: usize, message: impl Into<String>) -> PatternError {
    PatternError {
        at: Some(at),
        ..error(code, message)
    }
}

/// The text of a span.
fn text<'s>(source: &'s str, span: &Span) -> &'s str {
    source
        .get(span.start.offset..span.end.offset)
        .unwrap_or_default()
}

/// The character a span begins at, from 1.
fn place(source: &str, span: &Span) -> usize {
    source
        .get(..span.start.offset)
        .map_or(1, |before| before.chars().count() + 1)
}

/// A difference between RE2 and the gate, with its place in the pattern.
fn differs(source: &str, span: &Span, why: &str) -> PatternError {
    let at = place(source, span);
    let message = format!("at character {at}: {why}");
    error_at(codes::PATTERN_NOT_RE2, at, message)
}

/// Explains what the parser did not accept: an error to RE2 too, or something that only RE2 reads.
fn not_parsed(source: &str, why: &ast::Error) -> PatternError {
    let span = why.span();
    let rest = source.get(span.start.offset..).unwrap_or_default();
    let re2_only = match why.kind() {
        ErrorKind::EscapeUnrecognized | ErrorKind::ClassEscapeInvalid => match text(source, span) {
            r"\C" => Some(r"`\C` is not read here; write `(?s:.)`"),
            r"\Q" => Some(
                r"`\Q…\E` is not read here; write the text with `\` before each special character",
            ),
            _ => None,
        },
        ErrorKind::UnsupportedBackreference => Some(
            r"octal escapes are not read here, and RE2 has no backreferences; write `\x53` for an octal `\123`",
        ),
        ErrorKind::RepetitionMissing
        | ErrorKind::RepetitionCountUnclosed
        | ErrorKind::RepetitionCountDecimalEmpty
            if rest.starts_with('{') =>
        {
            Some(r"write a literal `{` as `\{`")
        }
        ErrorKind::RepetitionCountDecimalEmpty => Some(r"write a literal `{` as `\{`"),
        ErrorKind::ClassRangeLiteral => {
            Some(r"write a literal `-` as `\-`, or put it last in the class")
        }
        ErrorKind::ClassUnclosed if rest.get(1..).is_some_and(|class| class.contains('[')) => {
            Some(r"the class is not closed, or a `[` in it must be written `\[`")
        }
        ErrorKind::FlagDuplicate { .. } => Some("write each flag once"),
        ErrorKind::GroupNameInvalid => {
            Some("name a group with ASCII letters, digits and `_` only, beginning with a letter")
        }
        ErrorKind::GroupNameDuplicate { .. } => Some("give each group a name of its own"),
        _ => None,
    };
    match re2_only {
        Some(hint) => differs(source, span, hint),
        None => {
            let hint = match why.kind() {
                ErrorKind::UnsupportedLookAround => "; RE2 has no look-around",
                ErrorKind::NestLimitExceeded(_) => "; nest fewer groups",
                ErrorKind::EscapeUnrecognized if text(source, span) == r"\Z" => r"; write `\z`",
                _ => "",
            };
            let at = place(source, span);
            let message = format!(
                "is not a regular expression: at character {at}: {}{hint}",
                why.kind()
            );
            error_at(codes::PATTERN, at, message)
        }
    }
}

/// Text to put in the place of a span.
type Edit = (Span, &'static str);

fn rewritten(source: &str, edits: &[Edit]) -> String {
    let mut out = String::with_capacity(source.len());
    let mut done = 0;
    for (span, text) in edits {
        out.push_str(source.get(done..span.start.offset).unwrap_or_default());
        out.push_str(text);
        done = span.end.offset;
    }
    out.push_str(source.get(done..).unwrap_or_default());
    out
}

/// Walks a parsed pattern, refuses what RE2 reads differently, and notes what to rewrite.
struct Re2Check<'s> {
    source: &'s str,
    edits: Vec<Edit>,
    /// What counted repetitions may still multiply to, one entry per open repetition: RE2 divides in integers, so this does.
    room: Vec<u32>,
}

impl Re2Check<'_> {
    fn differs(&self, span: &Span, why: &str) -> Result<(), PatternError> {
        Err(differs(self.source, span, why))
    }

    fn literal(&self, literal: &Literal) -> Result<(), PatternError> {
        match literal.kind {
            LiteralKind::HexFixed(HexLiteralKind::X)
            | LiteralKind::HexBrace(HexLiteralKind::X)
            | LiteralKind::Verbatim
            | LiteralKind::Meta
            | LiteralKind::Superfluous
            | LiteralKind::Special(_) => Ok(()),
            LiteralKind::HexFixed(_) | LiteralKind::HexBrace(_) => {
                let why = format!(r"RE2 has no `\u`; write `\x{{{:X}}}`", u32::from(literal.c));
                self.differs(&literal.span, &why)
            }
            LiteralKind::Octal => self.differs(&literal.span, r"write octal as `\x`"),
        }
    }

    /// RE2's Perl classes are ASCII, and its `\s` has no vertical tab.
    fn perl(&mut self, class: &ast::ClassPerl) {
        let text = match (&class.kind, class.negated) {
            (ClassPerlKind::Digit, false) => "[0-9]",
            (ClassPerlKind::Digit, true) => "[^0-9]",
            (ClassPerlKind::Space, false) => r"[\t\n\f\r ]",
            (ClassPerlKind::Space, true) => r"[^\t\n\f\r ]",
            (ClassPerlKind::Word, false) => "[0-9A-Za-z_]",
            (ClassPerlKind::Word, true) => "[^0-9A-Za-z_]",
        };
        self.edits.push((class.span, text));
    }

    fn unicode_class(&self, span: &Span) -> Result<(), PatternError> {
        self.differs(
            span,
            r"`\p` classes are not read here; list the characters, such as `[a-zà-ÿ]`",
        )
    }

    fn flags(&self, flags: &ast::Flags) -> Result<(), PatternError> {
        for item in &flags.items {
            let why = match item.kind {
                FlagsItemKind::Negation
                | FlagsItemKind::Flag(
                    Flag::CaseInsensitive
                    | Flag::MultiLine
                    | Flag::DotMatchesNewLine
                    | Flag::SwapGreed,
                ) => continue,
                FlagsItemKind::Flag(Flag::Unicode) => "RE2 has no flag `u`; remove it",
                FlagsItemKind::Flag(Flag::CRLF) => r"RE2 has no flag `R`; write `\r?$`",
                FlagsItemKind::Flag(Flag::IgnoreWhitespace) => {
                    "RE2 has no flag `x`; write the pattern without spaces and comments"
                }
            };
            return self.differs(&item.span, why);
        }
        Ok(())
    }

    fn repetition(&mut self, repetition: &ast::Repetition) -> Result<(), PatternError> {
        let op = &repetition.op;
        match &*repetition.ast {
            Ast::Repetition(_) => {
                let why = "RE2 refuses a repetition of a repetition; put the inner one in `(?:…)`";
                return self.differs(&op.span, why);
            }
            Ast::Assertion(_) => {
                let why =
                    "an anchor or a word boundary need not be repeated; remove the repetition";
                return self.differs(&op.span, why);
            }
            _ => {}
        }
        let room = self.room.last().copied().unwrap_or(0);
        let mut left = room;
        if let RepetitionKind::Range(range) = &op.kind {
            if !is_plain_count(text(self.source, &op.span)) {
                let why = r"RE2 reads this as text, not as a count; write `{n}`, `{n,}` or `{n,m}` without spaces and leading zeros, or `\{` for a literal `{`";
                return self.differs(&op.span, why);
            }
            let count = match *range {
                RepetitionRange::Exactly(count) | RepetitionRange::AtLeast(count) => count,
                RepetitionRange::Bounded(_, most) => most,
            };
            left = room.checked_div(count).unwrap_or(room);
            if left == 0 {
                let at = place(self.source, &op.span);
                let message = format!(
                    "at character {at}: repeats more than {MAX_REPETITION} times, nested counts multiplied"
                );
                return Err(error_at(codes::PATTERN_TOO_LARGE, at, message));
            }
        }
        self.room.push(left);
        Ok(())
    }
}

/// `{n}`, `{n,}` or `{n,m}`, perhaps with `?`: the only forms RE2 takes for a count.
fn is_plain_count(text: &str) -> bool {
    let number = |digits: &str| {
        !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && (digits == "0" || !digits.starts_with('0'))
    };
    let inner = text.strip_suffix('?').unwrap_or(text);
    let Some(inner) = inner
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
    else {
        return false;
    };
    match inner.split_once(',') {
        None => number(inner),
        Some((least, most)) => number(least) && (most.is_empty() || number(most)),
    }
}

impl ast::Visitor for Re2Check<'_> {
    type Output = Vec<Edit>;
    type Err = PatternError;

    fn finish(self) -> Result<Vec<Edit>, PatternError> {
        Ok(self.edits)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), PatternError> {
        match ast {
            Ast::Empty(_)
            | Ast::Dot(_)
            | Ast::ClassBracketed(_)
            | Ast::Alternation(_)
            | Ast::Concat(_) => Ok(()),
            Ast::Flags(set) => self.flags(&set.flags),
            Ast::Literal(literal) => self.literal(literal),
            Ast::Assertion(assertion) => match assertion.kind {
                AssertionKind::StartLine
                | AssertionKind::EndLine
                | AssertionKind::StartText
                | AssertionKind::EndText => Ok(()),
                AssertionKind::WordBoundary => {
                    self.edits.push((assertion.span, r"(?-u:\b)"));
                    Ok(())
                }
                AssertionKind::NotWordBoundary => {
                    self.edits.push((assertion.span, r"(?-u:\B)"));
                    Ok(())
                }
                AssertionKind::WordBoundaryStart
                | AssertionKind::WordBoundaryEnd
                | AssertionKind::WordBoundaryStartAngle
                | AssertionKind::WordBoundaryEndAngle
                | AssertionKind::WordBoundaryStartHalf
                | AssertionKind::WordBoundaryEndHalf => self.differs(
                    &assertion.span,
                    r"RE2 has no such word boundary; write `\b`, or a literal `<` or `>` without `\`",
                ),
            },
            Ast::ClassUnicode(class) => self.unicode_class(&class.span),
            Ast::ClassPerl(class) => {
                self.perl(class);
                Ok(())
            }
            Ast::Repetition(repetition) => self.repetition(repetition),
            Ast::Group(group) => match &group.kind {
                GroupKind::CaptureIndex(_) => Ok(()),
                GroupKind::NonCapturing(flags) => self.flags(flags),
                GroupKind::CaptureName { name, .. } => {
                    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    if name.name.chars().all(word) {
                        return Ok(());
                    }
                    self.differs(
                        &name.span,
                        "name a group with ASCII letters, digits and `_` only",
                    )
                }
            },
        }
    }

    fn visit_post(&mut self, ast: &Ast) -> Result<(), PatternError> {
        if let Ast::Repetition(_) = ast {
            self.room.pop();
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), PatternError> {
        match item {
            ClassSetItem::Empty(_) | ClassSetItem::Ascii(_) | ClassSetItem::Union(_) => Ok(()),
            ClassSetItem::Literal(literal) => self.literal(literal),
            ClassSetItem::Range(range) => {
                self.literal(&range.start)?;
                self.literal(&range.end)
            }
            ClassSetItem::Unicode(class) => self.unicode_class(&class.span),
            ClassSetItem::Perl(class) => {
                self.perl(class);
                Ok(())
            }
            ClassSetItem::Bracketed(class) => self.differs(
                &class.span,
                r"RE2 takes `[` inside a class as a character; write it `\[` (named classes are `[[:alpha:]]`)",
            ),
        }
    }

    fn visit_class_set_binary_op_pre(
        &mut self,
        op: &ast::ClassSetBinaryOp,
    ) -> Result<(), PatternError> {
        self.differs(
            &op.span,
            r"RE2 has no `&&`, `--` or `~~` in classes; escape the characters with `\`",
        )
    }
}
