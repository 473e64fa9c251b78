//! Searching what comes back, before the caller has it.
//!
//! A stream of events is searched as it passes: what a model says in pieces is read as the text it is, and an event waits only as long as a match
//! may be under way in it. Every other answer is held until it is whole. What only warns about itself (a name, an id) is a text of its own.

use crate::{
    automaton::{Automaton, Compiled, Unreadable},
    bundle::{Document, Payload},
    decide::{Cause, Reason},
    json::{self, Edit, Role, Value},
    passage::Passage,
    redact::{self, Masker},
    scan::{self, Hits, Scanner},
    sse::{self, Block},
};
use alloc::{
    borrow::Cow,
    collections::VecDeque,
    format,
    rc::Rc,
    string::{String, ToString},
    vec::Vec,
};
use core::{cell::RefCell, fmt, ops::Range};

/// How much of a stream waits at most for a match to end: 256 KiB, a hundred times what a private key has. A pattern that goes on for longer
/// (`begin.*`) would hold back the whole answer.
const MAX_HELD_BYTES: usize = 256 << 10;
/// How many texts a stream may bring at the same time: answers asked for (128 at the most with OpenAI), each with its tool calls.
const MAX_TEXTS: usize = 1_024;
/// Nesting within a piece of a stream. Providers have three levels.
const MAX_DEPTH: usize = 8;

/// What is looked for in the answers to calls under the same documents.
pub(crate) struct Watch {
    patterns: Vec<Compiled>,
    /// As the documents have them.
    rules: Vec<Rule>,
    scanner: RefCell<Scanner>,
}

/// What a document says about a match of these patterns.
struct Rule {
    patterns: Vec<usize>,
    /// That of a rule by which it is taken out is [`Cause::Redaction`].
    reason: Reason,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("patterns", &self.patterns.len())
            .finish_non_exhaustive()
    }
}

/// What is to become of a text in which something was found.
enum Verdict {
    Pass,
    /// Matches of these patterns are to be taken out.
    TakeOut(Vec<usize>),
    Block(Vec<Reason>),
}

impl Watch {
    /// For calls under `documents`, which are of `payload`.
    pub(crate) fn of(documents: &[&Document], payload: &Payload) -> Result<Watch, Unreadable> {
        let patterns = scan::distinct(documents.iter().flat_map(|document| document.searched()));
        let place = |pattern: &String| patterns.binary_search(&pattern.as_str()).ok();
        let mut rules = Vec::new();
        for document in documents {
            let blocking = document.data.patterns.iter().enumerate();
            rules.extend(blocking.map(|(index, pattern)| Rule {
                patterns: place(pattern).into_iter().collect(),
                reason: Reason {
                    rule: format!("data.sensitive_patterns[{index}]").into(),
                    document: Some(document.name.clone()),
                    message: "the answer matches a sensitive pattern".into(),
                    cause: Cause::Policy,
                },
            }));
            rules.extend(document.data.redactions.iter().map(|redaction| Rule {
                patterns: redaction.patterns.iter().filter_map(place).collect(),
                reason: Reason {
                    rule: redaction.rule.clone().into(),
                    document: Some(document.name.clone()),
                    message: "what matches a sensitive pattern is taken out of the answer".into(),
                    cause: Cause::Redaction,
                },
            }));
        }
        let compiled = patterns.iter().map(|pattern| payload.compiled(pattern));
        let compiled: Option<Vec<&Compiled>> = compiled.collect();
        let compiled = compiled.ok_or(Unreadable)?;
        let automata: Vec<&Automaton> = compiled.iter().map(|compiled| &compiled.forward).collect();
        Ok(Watch {
            scanner: RefCell::new(Scanner::of_passages(&automata)?),
            patterns: compiled.into_iter().cloned().collect(),
            rules,
        })
    }

    /// What the rules with this cause say where these patterns were found.
    fn reasons(&self, cause: Cause, found: &[usize]) -> impl Iterator<Item = &Reason> {
        let rules = self
            .rules
            .iter()
            .filter(move |rule| rule.reason.cause == cause);
        let found = |rule: &&Rule| rule.patterns.iter().any(|id| found.contains(id));
        rules.filter(found).map(|rule| &rule.reason)
    }

    fn verdict(&self, found: Vec<usize>) -> Verdict {
        if found.is_empty() {
            return Verdict::Pass;
        }
        let blocked: Vec<Reason> = self.reasons(Cause::Policy, &found).cloned().collect();
        match blocked.is_empty() {
            true => Verdict::TakeOut(found),
            false => Verdict::Block(blocked),
        }
    }

    fn verdict_on(&self, hits: &Hits) -> Result<Verdict, Vec<Reason>> {
        match hits.is_unfinished() {
            true => Err(too_dear()),
            false => {
                let found = (0..self.patterns.len()).filter(|id| hits.has(*id));
                Ok(self.verdict(found.collect()))
            }
        }
    }

    /// Searches a whole text.
    fn search(&self, text: &[u8]) -> Result<Verdict, Vec<Reason>> {
        let mut hits = Hits::default();
        self.scanner.borrow_mut().search(text, &mut hits);
        self.verdict_on(&hits)
    }

    /// What takes these patterns out.
    fn maskers(&self, patterns: &[usize]) -> Result<Vec<Masker>, Vec<Reason>> {
        let compiled = patterns.iter().filter_map(|id| self.patterns.get(*id));
        let maskers = compiled.map(Masker::new);
        maskers.collect::<Result<_, _>>().map_err(|_| too_dear())
    }

    /// Stops what is not to have anything in it.
    fn clean(&self, verdict: Verdict) -> Result<(), Vec<Reason>> {
        match verdict {
            Verdict::Pass => Ok(()),
            Verdict::TakeOut(patterns) => Err(self.out_of_place(&patterns)),
            Verdict::Block(reasons) => Err(reasons),
        }
    }

    /// Why an answer is stopped in which these patterns cannot be taken out.
    fn out_of_place(&self, patterns: &[usize]) -> Vec<Reason> {
        let insisted = self
            .reasons(Cause::Redaction, patterns)
            .map(|reason| Reason {
                cause: Cause::Policy,
                message: "the answer matches a sensitive pattern where it cannot be taken out"
                    .into(),
                ..reason.clone()
            });
        insisted.collect()
    }
}

fn too_dear() -> Vec<Reason> {
    Vec::from([Reason::of_gate(
        Cause::Policy,
        "data.unsearchable",
        "searching the answer for sensitive patterns takes more effort, or more waiting, than a gate spends on one call",
    )])
}

/// An answer that must not go on.
pub(crate) struct Stop {
    /// What may still go out of it; whole events.
    pub(crate) sent: Vec<u8>,
    /// Why.
    pub(crate) reasons: Vec<Reason>,
}

/// One answer on its way.
pub(crate) struct Sift {
    watch: Rc<Watch>,
    body: Body,
    taken: Taken,
}

/// What an answer of one piece is by its head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    /// Whoever asked reads it as JSON.
    pub(crate) json: bool,
    /// It is in a character encoding of which only the ASCII part is known here.
    pub(crate) only_ascii: bool,
}

enum Body {
    Whole { body: Vec<u8>, form: Form },
    Events { reader: sse::Reader, events: Events },
}

/// What was taken out.
#[derive(Default)]
struct Taken {
    /// Stretches.
    count: u64,
    /// Of which patterns.
    patterns: Vec<usize>,
}

impl Taken {
    fn note(&mut self, stretches: usize, patterns: &[usize]) {
        self.count = self.count.saturating_add(stretches as u64);
        for id in patterns {
            if !self.patterns.contains(id) {
                self.patterns.push(*id);
            }
        }
    }
}

impl Sift {
    /// For an answer of one piece…
    pub(crate) fn whole(watch: Rc<Watch>, form: Form) -> Sift {
        let body = Vec::new();
        Sift::new(watch, Body::Whole { body, form })
    }

    /// …and for one of events.
    pub(crate) fn events(watch: Rc<Watch>) -> Sift {
        let events = Body::Events {
            reader: sse::Reader::default(),
            events: Events::default(),
        };
        Sift::new(watch, events)
    }

    fn new(watch: Rc<Watch>, body: Body) -> Sift {
        let taken = Taken::default();
        Sift { watch, body, taken }
    }

    /// The next bytes, and whether they are the last. What comes back may go out.
    pub(crate) fn feed(&mut self, bytes: &[u8], end: bool) -> Result<Vec<u8>, Stop> {
        let mut out = Vec::new();
        let watch = &*self.watch;
        let fed = match &mut self.body {
            Body::Whole { body, form } => {
                body.extend_from_slice(bytes);
                match end {
                    true => whole(watch, *form, body, &mut self.taken).map(|left| out = left),
                    false => Ok(()),
                }
            }
            Body::Events { reader, events } => {
                reader.push(bytes);
                if end {
                    reader.end();
                }
                events.take(watch, reader, end, &mut self.taken, &mut out)
            }
        };
        match fed {
            Ok(()) => Ok(out),
            Err(reasons) => Err(Stop { sent: out, reasons }),
        }
    }

    /// How many stretches were taken out.
    pub(crate) fn taken_out(&self) -> u64 {
        self.taken.count
    }

    /// What had them taken out.
    pub(crate) fn reasons(&self) -> impl Iterator<Item = &Reason> {
        self.watch.reasons(Cause::Redaction, &self.taken.patterns)
    }
}

/// Why an answer is stopped that its reader may read otherwise than it would be searched.
fn unreadable(message: impl Into<Cow<'static, str>>) -> Vec<Reason> {
    Vec::from([Reason::of_gate(
        Cause::Policy,
        "response.unreadable",
        message,
    )])
}

fn not_one_reading(error: &json::Error) -> Vec<Reason> {
    unreadable(format!(
        "the answer looks like JSON and is none with a single reading ({error}), so it cannot be searched as the policy wants it"
    ))
}

const NOT_UTF8: &str = "the answer is in another character encoding than UTF-8, so it cannot be searched as the policy wants it";

/// What may go out of a whole body.
fn whole(
    watch: &Watch,
    form: Form,
    body: &[u8],
    taken: &mut Taken,
) -> Result<Vec<u8>, Vec<Reason>> {
    if (form.only_ascii && !body.is_ascii()) || is_wide(body) {
        return Err(unreadable(NOT_UTF8));
    }
    // Readers skip it.
    let (mark, text) = match body.strip_prefix(b"\xEF\xBB\xBF") {
        Some(text) => (&b"\xEF\xBB\xBF"[..], text),
        None => (&b""[..], body),
    };
    let mut out = mark.to_vec();
    match json::parse(text) {
        Ok(doc) => out.extend(piece(watch, text, Some(&doc), taken)?),
        // Clients that asked for a stream read one whatever the answer says it is.
        Err(_) if has_data_line(text) => out.extend(stream_in_one(watch, text, taken)?),
        Err(error) if looks_like_json(text, form) => {
            // One value in each line (NDJSON), or nothing that can be read.
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                match json::parse(line) {
                    Ok(doc) => out.extend(piece(watch, line, Some(&doc), taken)?),
                    Err(_) if line.trim_ascii().is_empty() => out.extend_from_slice(line),
                    Err(_) => return Err(not_one_reading(&error)),
                }
            }
        }
        Err(_) => out.extend(piece(watch, text, None, taken)?),
    }
    Ok(out)
}

/// Whether a text is JSON, or CSV of quotes, in UTF-16 or UTF-32, which some readers find out from its first bytes (RFC 4627 §3), or says so itself.
fn is_wide(body: &[u8]) -> bool {
    let first = body.get(..4).unwrap_or(body);
    let opens = first.iter().find(|byte| **byte != 0);
    body.starts_with(b"\xFF\xFE")
        || body.starts_with(b"\xFE\xFF")
        || (first.contains(&0) && opens.is_some_and(|byte| b"{[\"".contains(byte)))
}

/// Whether a reader of events would find one in this text.
fn has_data_line(text: &[u8]) -> bool {
    let mut lines = text.split(|byte| matches!(byte, b'\n' | b'\r'));
    lines.any(|line| {
        line.strip_prefix(b"data")
            .is_some_and(|rest| matches!(rest, [] | [b':', ..]))
    })
}

fn looks_like_json(text: &[u8], form: Form) -> bool {
    let opens = text.trim_ascii_start().first();
    json::opens_like_one(text) || (form.json && opens.is_some_and(|byte| b"[\"".contains(byte)))
}

/// What may go out of a stream of events that came in one piece. Whoever reads it as a mere text must find nothing either.
fn stream_in_one(watch: &Watch, text: &[u8], taken: &mut Taken) -> Result<Vec<u8>, Vec<Reason>> {
    let mut reader = sse::Reader::default();
    reader.push(text);
    reader.end();
    let mut out = Vec::new();
    Events::default().take(watch, &mut reader, true, taken, &mut out)?;
    watch.clean(watch.search(&out)?)?;
    Ok(out)
}

/// What may go out of a text, which is this JSON or none.
fn piece(
    watch: &Watch,
    text: &[u8],
    doc: Option<&json::Document<'_>>,
    taken: &mut Taken,
) -> Result<Vec<u8>, Vec<Reason>> {
    let found = match doc {
        Some(doc) => search_values(watch, doc)?,
        None => watch.search(text)?,
    };
    let patterns = match found {
        Verdict::Pass => return Ok(text.to_vec()),
        Verdict::Block(reasons) => return Err(reasons),
        Verdict::TakeOut(patterns) => patterns,
    };
    let mut maskers = watch.maskers(&patterns)?;
    let redacted = match doc {
        Some(doc) => redact::json(doc, &mut maskers),
        None => redact::text(text, &mut maskers),
    };
    let redacted = redacted.map_err(|_| too_dear())?;
    // What is left must be clean, and read as it was.
    let left = match (doc, json::parse(&redacted.body)) {
        (Some(_), Ok(left)) => search_values(watch, &left)?,
        (Some(_), Err(_)) => return Err(watch.out_of_place(&patterns)),
        (None, _) => watch.search(&redacted.body)?,
    };
    watch.clean(left)?;
    taken.note(
        usize::try_from(redacted.count).unwrap_or(usize::MAX),
        &patterns,
    );
    Ok(redacted.body)
}

/// Searches every string and number, keys too.
fn search_values(watch: &Watch, doc: &json::Document<'_>) -> Result<Verdict, Vec<Reason>> {
    let mut hits = Hits::default();
    let mut scratch = String::new();
    let mut scanner = watch.scanner.borrow_mut();
    for text in doc.strings() {
        scanner.search(text.resolve(&mut scratch).as_bytes(), &mut hits);
    }
    watch.verdict_on(&hits)
}

/// Events that wait, and the texts that they bring.
#[derive(Default)]
struct Events {
    waiting: VecDeque<Waiting>,
    /// The number of the first that waits.
    first: u64,
    texts: Vec<Told>,
    held_bytes: usize,
}

/// An event that waits.
struct Waiting {
    raw: Vec<u8>,
    data: Data,
    edits: Vec<Edit>,
    /// Pieces in it of which it is not known yet whether a match is under way.
    open: usize,
}

/// Where an event's data are.
enum Data {
    /// In one line of it.
    Line(Range<usize>),
    /// In several: joined, and the event's name.
    Lines { joined: Vec<u8>, name: Vec<u8> },
}

/// A text that is told in pieces.
struct Told {
    name: TextName,
    passage: Passage,
    pieces: VecDeque<Piece>,
}

/// Which text of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TextName {
    /// Of which answer or block.
    of: u64,
    /// Where in it.
    path: String,
}

/// A piece of a text in an event.
struct Piece {
    event: u64,
    /// Quotes included.
    span: Range<usize>,
    /// Bytes of it that are held.
    left: usize,
    /// What is left of those that are not.
    kept: Vec<u8>,
    changed: bool,
}

impl Events {
    fn take(
        &mut self,
        watch: &Watch,
        reader: &mut sse::Reader,
        end: bool,
        taken: &mut Taken,
        out: &mut Vec<u8>,
    ) -> Result<(), Vec<Reason>> {
        while let Some(block) = reader.next_block() {
            match block {
                Block::Event(event) => self.event(watch, &event, taken)?,
                Block::Oversize(_) => return Err(too_dear()),
            }
            self.let_go(out)?;
        }
        if end {
            self.end(watch, taken, |_| true)?;
            self.let_go(out)?;
            // An event that is not whole goes to nobody, unless a client reads it all the same.
            let rest = reader.pending();
            self.stand_alone(watch, rest, taken)?;
            self.let_go(out)?;
        }
        match self.held_bytes > MAX_HELD_BYTES || self.texts.len() > MAX_TEXTS {
            true => Err(too_dear()),
            false => Ok(()),
        }
    }

    fn event(
        &mut self,
        watch: &Watch,
        event: &sse::Event<'_>,
        taken: &mut Taken,
    ) -> Result<(), Vec<Reason>> {
        let data: &[u8] = &event.data;
        let doc = match json::parse(data) {
            Ok(doc) => doc,
            Err(error) if json::opens_like_one(data) => return Err(not_one_reading(&error)),
            Err(_) => {
                if data == b"[DONE]" {
                    self.end(watch, taken, |_| true)?;
                }
                return self.stand_alone(watch, event.raw, taken);
            }
        };
        for line in besides_data(event.raw) {
            watch.clean(watch.search(line)?)?;
        }
        let told = told(doc.root());
        let number = self.first.saturating_add(self.waiting.len() as u64);
        let mut waiting = Waiting {
            raw: event.raw.to_vec(),
            data: match &event.data {
                Cow::Borrowed(line) => {
                    let start =
                        (line.as_ptr() as usize).saturating_sub(event.raw.as_ptr() as usize);
                    Data::Line(start..start + line.len())
                }
                Cow::Owned(joined) => Data::Lines {
                    joined: joined.clone(),
                    name: event.name.to_vec(),
                },
            },
            edits: Vec::new(),
            open: 0,
        };
        let mut scratch = String::new();
        for token in doc.strings() {
            let span = token.span();
            let text = token.resolve(&mut scratch);
            if let Some((_, name)) = told.iter().find(|(start, _)| *start == span.start) {
                if text.is_empty() {
                    continue;
                }
                waiting.open += 1;
                let piece = Piece {
                    event: number,
                    span: span.start.saturating_sub(1)..span.end + 1,
                    left: text.len(),
                    kept: Vec::new(),
                    changed: false,
                };
                self.tell(watch, name, piece, text)?;
                continue;
            }
            let patterns = match watch.search(text.as_bytes())? {
                Verdict::Pass => continue,
                Verdict::Block(reasons) => return Err(reasons),
                Verdict::TakeOut(patterns) => patterns,
            };
            if token.role() == Role::Key {
                return Err(watch.out_of_place(&patterns));
            }
            let mut maskers = watch.maskers(&patterns)?;
            let edit = redact::token(token, text, &mut maskers).map_err(|_| too_dear())?;
            let Some((edit, count)) = edit else { continue };
            taken.note(count, &patterns);
            waiting.edits.push(edit);
        }
        self.held_bytes = self.held_bytes.saturating_add(waiting.raw.len());
        self.waiting.push_back(waiting);
        self.look_through(watch, taken)?;
        match over(doc.root()) {
            Over::Nothing => Ok(()),
            Over::All => self.end(watch, taken, |_| true),
            Over::One(of) => self.end(watch, taken, |name| name.of == of),
            Over::Some(several) => self.end(watch, taken, |name| several.contains(&name.of)),
        }
    }

    /// What is no JSON: searched as it stands.
    fn stand_alone(
        &mut self,
        watch: &Watch,
        raw: &[u8],
        taken: &mut Taken,
    ) -> Result<(), Vec<Reason>> {
        if raw.is_empty() {
            return Ok(());
        }
        let raw = match watch.search(raw)? {
            Verdict::Pass => raw.to_vec(),
            Verdict::Block(reasons) => return Err(reasons),
            Verdict::TakeOut(patterns) => {
                let mut maskers = watch.maskers(&patterns)?;
                let redacted = redact::text(raw, &mut maskers).map_err(|_| too_dear())?;
                let left = redacted.body;
                // The end of the event must stay where it is.
                let ending = raw.get(raw.trim_ascii_end().len()..).unwrap_or_default();
                if redacted.count == 0 || !left.ends_with(ending) {
                    return Err(watch.out_of_place(&patterns));
                }
                taken.note(
                    usize::try_from(redacted.count).unwrap_or(usize::MAX),
                    &patterns,
                );
                left
            }
        };
        self.held_bytes = self.held_bytes.saturating_add(raw.len());
        self.waiting.push_back(Waiting {
            data: Data::Line(0..0),
            raw,
            edits: Vec::new(),
            open: 0,
        });
        Ok(())
    }

    /// Adds a piece to its text.
    fn tell(
        &mut self,
        watch: &Watch,
        name: &TextName,
        piece: Piece,
        text: &str,
    ) -> Result<(), Vec<Reason>> {
        let known = self.texts.iter().position(|told| told.name == *name);
        let at = known.unwrap_or(self.texts.len());
        if known.is_none() {
            self.texts.push(Told {
                name: name.clone(),
                passage: Passage::default(),
                pieces: VecDeque::new(),
            });
        }
        let Some(told) = self.texts.get_mut(at) else {
            return Ok(());
        };
        told.pieces.push_back(piece);
        let mut scanner = watch.scanner.borrow_mut();
        let fed = told.passage.feed(&mut scanner, text.as_bytes());
        fed.map_err(|_| too_dear())
    }

    /// Ends the texts that are told to their end.
    fn end(
        &mut self,
        watch: &Watch,
        taken: &mut Taken,
        which: impl Fn(&TextName) -> bool,
    ) -> Result<(), Vec<Reason>> {
        for told in self.texts.iter_mut().filter(|told| which(&told.name)) {
            let mut scanner = watch.scanner.borrow_mut();
            told.passage.end(&mut scanner).map_err(|_| too_dear())?;
        }
        self.look_through(watch, taken)?;
        self.texts.retain(|told| !which(&told.name));
        Ok(())
    }

    /// Settles what is known of the texts by now.
    fn look_through(&mut self, watch: &Watch, taken: &mut Taken) -> Result<(), Vec<Reason>> {
        for told in &mut self.texts {
            // A match that blocks does so wherever its text stands.
            if let Verdict::Block(reasons) = watch.verdict(told.passage.found().collect()) {
                return Err(reasons);
            }
            let (text, context, found) = told.passage.closed();
            let closed = text.len() - context;
            if closed == 0 {
                continue;
            }
            let mut stretches = Vec::new();
            if let Verdict::TakeOut(patterns) = watch.verdict(found.to_vec()) {
                let mut maskers = watch.maskers(&patterns)?;
                stretches =
                    redact::stretches(text, context, &mut maskers).map_err(|_| too_dear())?;
                if stretches.is_empty() {
                    return Err(watch.out_of_place(&patterns));
                }
                taken.note(stretches.len(), &patterns);
            }
            let mut at = context;
            while let Some(piece) = told.pieces.front_mut() {
                let until = (at + piece.left).min(text.len());
                piece.keep(text, at..until, &stretches);
                at = until;
                if piece.left > 0 {
                    break;
                }
                let Some(piece) = told.pieces.pop_front() else {
                    break;
                };
                let place = usize::try_from(piece.event.saturating_sub(self.first));
                let waiting = place.ok().and_then(|place| self.waiting.get_mut(place));
                let Some(waiting) = waiting else { continue };
                waiting.open = waiting.open.saturating_sub(1);
                if piece.changed {
                    let mut quoted = String::new();
                    json::quote(&String::from_utf8_lossy(&piece.kept), &mut quoted);
                    waiting.edits.push(Edit::new(piece.span, &quoted));
                }
            }
            told.passage.let_go();
        }
        Ok(())
    }

    /// Sends on the events that nothing in them holds back, in order.
    fn let_go(&mut self, out: &mut Vec<u8>) -> Result<(), Vec<Reason>> {
        while self.waiting.front().is_some_and(|event| event.open == 0) {
            let Some(event) = self.waiting.pop_front() else {
                break;
            };
            self.first = self.first.saturating_add(1);
            self.held_bytes = self.held_bytes.saturating_sub(event.raw.len());
            event.write(out).ok_or_else(too_dear)?;
        }
        Ok(())
    }
}

/// The lines of an event that are not its data: its name, its id, comments.
fn besides_data(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = raw.split(|byte| matches!(byte, b'\n' | b'\r'));
    lines.filter(|line| {
        let field = line.split(|byte| *byte == b':').next().unwrap_or_default();
        !line.is_empty() && field != b"data"
    })
}

impl Piece {
    /// Keeps of the held bytes `range` of `text` what is in none of `stretches`, with the replacement where one of those begins.
    fn keep(&mut self, text: &[u8], range: Range<usize>, stretches: &[Range<usize>]) {
        self.left = self.left.saturating_sub(range.len());
        let mut at = range.start;
        for stretch in stretches {
            if stretch.end <= at || stretch.start >= range.end {
                continue;
            }
            self.changed = true;
            if stretch.start >= range.start {
                self.kept
                    .extend_from_slice(text.get(at..stretch.start).unwrap_or_default());
                self.kept.extend_from_slice(redact::REPLACEMENT.as_bytes());
            }
            at = stretch.end.min(range.end);
        }
        self.kept
            .extend_from_slice(text.get(at..range.end).unwrap_or_default());
    }
}

impl Waiting {
    fn write(self, out: &mut Vec<u8>) -> Option<()> {
        if self.edits.is_empty() {
            out.extend_from_slice(&self.raw);
            return Some(());
        }
        match &self.data {
            Data::Line(line) => {
                let data = json::splice(self.raw.get(line.clone())?, self.edits)?;
                out.extend_from_slice(self.raw.get(..line.start)?);
                out.extend_from_slice(&data);
                out.extend_from_slice(self.raw.get(line.end..)?);
            }
            Data::Lines { joined, name } => {
                let data = json::splice(joined, self.edits)?;
                if !name.is_empty() {
                    out.extend_from_slice(b"event: ");
                    out.extend_from_slice(name);
                    out.push(b'\n');
                }
                for line in data.split(|byte| *byte == b'\n') {
                    out.extend_from_slice(b"data: ");
                    out.extend_from_slice(line);
                    out.push(b'\n');
                }
                out.push(b'\n');
            }
        }
        Some(())
    }
}

/// Members of a piece that name something or say how it ends; each is a text of its own.
const LABELS: [&str; 9] = [
    "role",
    "id",
    "type",
    "name",
    "object",
    "status",
    "stop_reason",
    "stop_sequence",
    "signature",
];

/// Where an event brings pieces of texts, by the place of their first byte: OpenAI's chat and completions (`choices[].delta`, `choices[].text`), its
/// responses (`delta`, a text), Anthropic's messages (`delta` and `content_block` with an `index`), Gemini's (`candidates[].content.parts[]`).
fn told(root: Value<'_, '_>) -> Vec<(usize, TextName)> {
    let mut found = Vec::new();
    for (place, choice) in (0..).zip(root.get("choices").into_iter().flat_map(Value::items)) {
        let of = index_of(choice, "index", place);
        for key in ["delta", "text", "message"] {
            if let Some(value) = choice.get(key) {
                pieces(value, of, key.to_string(), &mut found);
            }
        }
    }
    for (place, candidate) in (0..).zip(root.get("candidates").into_iter().flat_map(Value::items)) {
        let of = index_of(candidate, "index", place);
        if let Some(content) = candidate.get("content") {
            pieces(content, of, String::new(), &mut found);
        }
    }
    match root.get("type").and_then(Value::as_str).as_deref() {
        // A block's beginning may hold the beginning of its text.
        Some("content_block_delta" | "content_block_start") => {
            let of = index_of(root, "index", 0);
            for key in ["delta", "content_block"] {
                if let Some(value) = root.get(key) {
                    pieces(value, of, String::new(), &mut found);
                }
            }
        }
        Some(kind) if kind.ends_with(".delta") => {
            let of = index_of(root, "output_index", 0);
            let part = index_of(root, "content_index", 0);
            if let Some(value) = root.get("delta") {
                pieces(value, of, format!("{kind}.{part}"), &mut found);
            }
        }
        _ => {}
    }
    found
}

fn index_of(value: Value<'_, '_>, key: &str, otherwise: u64) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(otherwise)
}

/// The strings in `value` but for labels.
fn pieces(value: Value<'_, '_>, of: u64, path: String, found: &mut Vec<(usize, TextName)>) {
    let mut due = Vec::from([(value, path, 0)]);
    while let Some((value, path, depth)) = due.pop() {
        if depth > MAX_DEPTH {
            continue;
        }
        if let Some(text) = value.text() {
            found.push((text.span().start, TextName { of, path }));
            continue;
        }
        for (place, item) in (0..).zip(value.items()) {
            let place = index_of(item, "index", place);
            due.push((item, format!("{path}[{place}]"), depth + 1));
        }
        for (key, item) in value.entries() {
            if !LABELS.contains(&&*key) {
                due.push((item, format!("{path}.{key}"), depth + 1));
            }
        }
    }
}

/// Which texts an event ends.
enum Over {
    Nothing,
    All,
    One(u64),
    Some(Vec<u64>),
}

fn over(root: Value<'_, '_>) -> Over {
    match root.get("type").and_then(Value::as_str).as_deref() {
        Some("message_stop" | "response.completed" | "response.incomplete" | "response.failed") => {
            return Over::All;
        }
        Some("content_block_stop") => return Over::One(index_of(root, "index", 0)),
        Some("response.output_item.done") => return Over::One(index_of(root, "output_index", 0)),
        _ => {}
    }
    let ended = |key: &'static str, reason: &'static str| {
        let items = (0..).zip(root.get(key).into_iter().flat_map(Value::items));
        items.filter_map(move |(place, item)| {
            let ended = item.get(reason).is_some_and(|reason| !reason.is_null());
            ended.then(|| index_of(item, "index", place))
        })
    };
    let ended: Vec<u64> = ended("choices", "finish_reason")
        .chain(ended("candidates", "finishReason"))
        .collect();
    match ended.is_empty() {
        true => Over::Nothing,
        false => Over::Some(ended),
    }
}
