//! A text that comes in pieces, searched as if it had come whole.
//!
//! What may already go on is everything before the last place at which no match is under way. The automaton knows such places: it is then in the
//! state it starts in. For that the first step of every pattern is a copy of its own ([`entered_apart`]): otherwise `a*b` would look the same
//! before and behind an `a`.

use crate::{
    automaton::{self, Automaton, Unreadable},
    scan::{CACHE_FILLS, Scanner},
};
use alloc::{vec, vec::Vec};
use regex_automata::{
    Anchored,
    hybrid::LazyStateID,
    nfa::thompson::{BuildError, Builder, NFA, State, Transition},
    util::{primitives::StateID, start},
};

/// Memory that the copies may take beside the patterns themselves.
const ENTERED_NFA_BYTES: usize = 8 << 20;

/// A text on its way.
#[derive(Debug, Default)]
pub(crate) struct Passage {
    /// The byte before what is held, where there is one, and then what is held.
    text: Vec<u8>,
    /// How many bytes of `text` are not held: 0 or 1.
    context: usize,
    /// Where the search stands, behind the last byte of `text`.
    state: Option<(LazyStateID, Generation)>,
    /// Bytes of `text` behind which no match is under way.
    closed: usize,
    /// Patterns found in those…
    found: Vec<usize>,
    /// …and behind them.
    found_open: Vec<usize>,
}

/// The search takes more effort than it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GaveUp;

/// A scanner's states are good until its cache is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Generation {
    resets: u64,
    clears: usize,
}

/// What the automaton starts from depends on the byte before: none, no letter, a letter, the two ends of lines.
const BEFORE: [Option<u8>; 5] = [None, Some(b' '), Some(b'a'), Some(b'\n'), Some(b'\r')];

impl Passage {
    /// Adds a piece.
    pub(crate) fn feed(&mut self, scanner: &mut Scanner, piece: &[u8]) -> Result<(), GaveUp> {
        let from = self.text.len();
        self.text.extend_from_slice(piece);
        // Whatever else was searched for meanwhile may have emptied the cache, and working out the starts may empty it as well.
        for _ in 0..CACHE_FILLS {
            if self.walk(scanner, from)? {
                return Ok(());
            }
        }
        self.state = None;
        scanner.reset();
        Err(GaveUp)
    }

    /// The text is over: nothing is under way any more.
    pub(crate) fn end(&mut self, scanner: &mut Scanner) -> Result<(), GaveUp> {
        self.feed(scanner, &[])?;
        if let Some((state, _)) = self.state.take() {
            let (dfa, cache) = scanner.parts();
            let last = dfa.next_eoi_state(cache, state).map_err(|_| GaveUp)?;
            note(scanner, last, &mut self.found_open);
        }
        self.close(self.text.len());
        Ok(())
    }

    /// The held bytes that may go on, as far as what was found in them does not forbid it, with the byte before them: the text, how many bytes
    /// of it are context, and what was found.
    pub(crate) fn closed(&self) -> (&[u8], usize, &[usize]) {
        let text = self.text.get(..self.closed).unwrap_or_default();
        (text, self.context.min(text.len()), &self.found)
    }

    /// All that was found in what is held.
    pub(crate) fn found(&self) -> impl Iterator<Item = usize> {
        self.found.iter().chain(&self.found_open).copied()
    }

    /// Forgets what is closed, but for its last byte.
    pub(crate) fn let_go(&mut self) {
        let gone = self.closed.saturating_sub(1);
        self.text.drain(..gone);
        self.closed -= gone;
        self.context = self.closed;
        self.found.clear();
    }

    fn close(&mut self, at: usize) {
        self.closed = at;
        self.found.append(&mut self.found_open);
    }

    /// Goes over the text from `from`, or over all of it where the state it stood in is gone. False when that happens on the way.
    fn walk(&mut self, scanner: &mut Scanner, from: usize) -> Result<bool, GaveUp> {
        let starts = starts(scanner)?;
        let now = scanner.generation();
        let (mut state, from) = match self.state {
            Some((state, of)) if of == now => (state, from),
            _ => {
                let from = self.closed.max(self.context);
                self.found_open.clear();
                let before = from.checked_sub(1).and_then(|at| self.text.get(at));
                (start(scanner, before.copied())?, from)
            }
        };
        if scanner.generation() != now {
            self.state = None;
            return Ok(false);
        }
        let (_, cache) = scanner.parts();
        cache.search_start(from);
        for at in from..self.text.len() {
            let Some(byte) = self.text.get(at) else { break };
            let (dfa, cache) = scanner.parts();
            let Ok(next) = dfa.next_state(cache, state, *byte) else {
                scanner.reset();
                self.state = None;
                return Err(GaveUp);
            };
            state = next;
            if state.is_match() {
                note(scanner, state, &mut self.found_open);
            } else if state.is_quit() || state.is_dead() {
                return Err(GaveUp);
            }
            if scanner.generation() != now {
                // The states known to be at rest are others now.
                self.state = None;
                return Ok(false);
            }
            if starts.contains(&state) {
                self.close(at + 1);
            }
        }
        let (_, cache) = scanner.parts();
        cache.search_finish(self.text.len());
        self.state = Some((state, now));
        Ok(true)
    }
}

/// Notes the patterns that match in `state`.
fn note(scanner: &mut Scanner, state: LazyStateID, found: &mut Vec<usize>) {
    if !state.is_match() {
        return;
    }
    let (dfa, cache) = scanner.parts();
    for index in 0..dfa.match_len(cache, state) {
        let pattern = dfa.match_pattern(cache, state, index).as_usize();
        if !found.contains(&pattern) {
            found.push(pattern);
        }
    }
}

fn start(scanner: &mut Scanner, before: Option<u8>) -> Result<LazyStateID, GaveUp> {
    let config = start::Config::new()
        .look_behind(before)
        .anchored(Anchored::No);
    let (dfa, cache) = scanner.parts();
    dfa.start_state(cache, &config).map_err(|_| GaveUp)
}

/// The states in which no match is under way.
fn starts(scanner: &mut Scanner) -> Result<[LazyStateID; BEFORE.len()], GaveUp> {
    let mut starts = [LazyStateID::default(); BEFORE.len()];
    for (at, before) in starts.iter_mut().zip(BEFORE) {
        *at = start(scanner, before)?;
    }
    Ok(starts)
}

impl Scanner {
    /// As [`Scanner::new`], for texts that come in pieces.
    pub(crate) fn of_passages(patterns: &[&Automaton]) -> Result<Scanner, Unreadable> {
        let nfa = automaton::forward(patterns.iter().copied())?;
        let nfa = entered_apart(&nfa)?;
        Scanner::of_nfa(nfa, patterns.len())
    }

    fn generation(&self) -> Generation {
        Generation {
            resets: self.resets,
            clears: self.cache.clear_count(),
        }
    }
}

impl From<BuildError> for Unreadable {
    fn from(_: BuildError) -> Unreadable {
        Unreadable
    }
}

/// The same patterns, found anywhere, with their first steps apart: a state that is reached by a byte of a match is none that a match starts in.
fn entered_apart(nfa: &NFA) -> Result<NFA, Unreadable> {
    let mut builder = Builder::new();
    builder.set_utf8(nfa.is_utf8());
    builder.set_look_matcher(nfa.look_matcher().clone());
    builder.set_size_limit(Some(ENTERED_NFA_BYTES))?;
    let mut entries = Vec::with_capacity(nfa.pattern_len());
    for pattern in nfa.patterns() {
        let Some(start) = nfa.start_pattern(pattern) else {
            continue;
        };
        builder.start_pattern()?;
        let mut copies = Copies {
            builder: &mut builder,
            first: vec![None; nfa.states().len()],
            later: vec![None; nfa.states().len()],
            due: Vec::new(),
        };
        let entry = copies.of(start, true)?;
        while let Some((id, is_first, place)) = copies.due.pop() {
            let copy = copies.copy(nfa.state(id), is_first)?;
            copies.builder.patch(place, copy)?;
        }
        builder.finish_pattern(entry)?;
        entries.push(entry);
    }
    let entry = builder.add_union(entries)?;
    let any = builder.add_range(Transition {
        start: 0,
        end: u8::MAX,
        next: StateID::default(),
    })?;
    let anywhere = builder.add_union(vec![entry, any])?;
    builder.patch(any, anywhere)?;
    Ok(builder.build(entry, anywhere)?)
}

/// The copies of one pattern's states.
struct Copies<'b> {
    builder: &'b mut Builder,
    /// Of those before the first byte of a match, by the original's number…
    first: Vec<Option<StateID>>,
    /// …and of those behind it.
    later: Vec<Option<StateID>>,
    /// Originals that are still to be copied, whether for before the first byte, and where to.
    due: Vec<(StateID, bool, StateID)>,
}

impl Copies<'_> {
    /// The copy of a state, made sooner or later.
    fn of(&mut self, id: StateID, is_first: bool) -> Result<StateID, Unreadable> {
        let copies = match is_first {
            true => &mut self.first,
            false => &mut self.later,
        };
        if let Some(Some(copy)) = copies.get(id.as_usize()) {
            return Ok(*copy);
        }
        let place = self.builder.add_empty()?;
        if let Some(copy) = copies.get_mut(id.as_usize()) {
            *copy = Some(place);
        }
        self.due.push((id, is_first, place));
        Ok(place)
    }

    fn step(&mut self, step: Transition) -> Result<Transition, Unreadable> {
        let next = self.of(step.next, false)?;
        Ok(Transition { next, ..step })
    }

    fn copy(&mut self, state: &State, is_first: bool) -> Result<StateID, Unreadable> {
        match state {
            State::ByteRange { trans } => {
                let step = self.step(*trans)?;
                Ok(self.builder.add_range(step)?)
            }
            State::Sparse(sparse) => {
                let steps = sparse.transitions.iter();
                let steps = steps
                    .map(|step| self.step(*step))
                    .collect::<Result<_, Unreadable>>()?;
                Ok(self.builder.add_sparse(steps)?)
            }
            State::Dense(dense) => {
                let nowhere = StateID::default();
                let steps = (0..=u8::MAX).zip(dense.transitions.iter().copied());
                let steps = steps.filter(|(_, next)| *next != nowhere);
                let steps = steps.map(|(byte, next)| {
                    self.step(Transition {
                        start: byte,
                        end: byte,
                        next,
                    })
                });
                let steps = steps.collect::<Result<_, Unreadable>>()?;
                Ok(self.builder.add_sparse(steps)?)
            }
            State::Look { look, next } => {
                let next = self.of(*next, is_first)?;
                Ok(self.builder.add_look(next, *look)?)
            }
            State::Union { alternates } => {
                let copies = alternates.iter().map(|next| self.of(*next, is_first));
                let copies = copies.collect::<Result<_, Unreadable>>()?;
                Ok(self.builder.add_union(copies)?)
            }
            State::BinaryUnion { alt1, alt2 } => {
                let copies = vec![self.of(*alt1, is_first)?, self.of(*alt2, is_first)?];
                Ok(self.builder.add_union(copies)?)
            }
            State::Capture { next, .. } => self.of(*next, is_first),
            State::Fail => Ok(self.builder.add_fail()?),
            State::Match { .. } => Ok(self.builder.add_match()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    fn compiled(patterns: &[&str]) -> Vec<Automaton> {
        let compiled = patterns.iter().map(|pattern| {
            let syntax = regex_automata::util::syntax::Config::new()
                .unicode(false)
                .utf8(false);
            let compiler = NFA::compiler()
                .syntax(syntax)
                .configure(
                    NFA::config()
                        .utf8(false)
                        .which_captures(regex_automata::nfa::thompson::WhichCaptures::None),
                )
                .build(pattern)
                .unwrap();
            Automaton::of(&compiler).unwrap()
        });
        compiled.collect()
    }

    fn scanner(patterns: &[&str]) -> Scanner {
        let compiled = compiled(patterns);
        Scanner::of_passages(&compiled.iter().collect::<Vec<_>>()).unwrap()
    }

    /// What may go on after each piece, and what was found in the end.
    fn pass(patterns: &[&str], pieces: &[&str]) -> (Vec<String>, Vec<usize>) {
        let mut scanner = scanner(patterns);
        let mut passage = Passage::default();
        let mut gone = Vec::new();
        let mut found = Vec::new();
        let mut take = |passage: &mut Passage| {
            let (text, context, closed) = passage.closed();
            gone.push(String::from_utf8_lossy(&text[context..]).into_owned());
            found.extend_from_slice(closed);
            passage.let_go();
        };
        for piece in pieces {
            passage.feed(&mut scanner, piece.as_bytes()).unwrap();
            take(&mut passage);
        }
        passage.end(&mut scanner).unwrap();
        take(&mut passage);
        found.sort_unstable();
        found.dedup();
        (gone, found)
    }

    #[test]
    fn what_can_be_no_match_any_more_goes_on_at_once() {
        let (gone, found) = pass(
            &["key-[a-z]{4}"],
            &["hello w", "orld, ke", "n has a key", "."],
        );
        assert_eq!(gone, ["hello w", "orld, ", "ken has a ", "key.", ""]);
        assert_eq!(found, [0; 0]);
    }

    #[test]
    fn a_match_is_found_wherever_it_is_cut() {
        let text = "the key-abcd is out";
        for cut in 0..text.len() {
            let (gone, found) = pass(&["key-[a-z]{4}"], &[&text[..cut], &text[cut..]]);
            assert_eq!(gone.concat(), text);
            assert_eq!(found, [0], "cut at {cut}");
        }
        let bytes: Vec<&str> = text
            .split_inclusive("")
            .filter(|byte| !byte.is_empty())
            .collect();
        assert_eq!(pass(&["key-[a-z]{4}"], &bytes).1, [0]);
    }

    #[test]
    fn nothing_of_a_match_goes_before_its_end() {
        // The beginning of each looks like what a match may begin with anew.
        for (pattern, text) in [
            ("a*b", "xaaab"),
            (r"\w*secret\w*", ".mysecret9"),
            (r"\s*pass:\s*\S+", "x  pass: 1"),
        ] {
            let mut scanner = scanner(&[pattern]);
            let mut passage = Passage::default();
            for byte in text.as_bytes() {
                passage.feed(&mut scanner, &[*byte]).unwrap();
            }
            let (gone, context, _) = passage.closed();
            assert_eq!(gone.len() - context, 1, "{pattern} in {text}");
        }
    }

    #[test]
    fn words_and_lines_end_where_they_end() {
        let (gone, found) = pass(
            &[r"\bid [0-9]{3}\b"],
            &["an id 12", "3", "4, an id 123", "."],
        );
        assert_eq!(found, [0]);
        assert_eq!(gone, ["an ", "", "id 1234, an ", "", "id 123."]);
        assert_eq!(pass(&[r"\bid [0-9]{3}\b"], &["an id 123", "4"]).1, [0; 0]);
        assert_eq!(pass(&[r"\bid [0-9]{3}\b"], &["grid 123."]).1, [0; 0]);
        assert_eq!(pass(&[r"\bid [0-9]{3}\b"], &["gr", "id 123."]).1, [0; 0]);
        assert_eq!(pass(&[r"(?m)^id$"], &["x\n", "id"]).1, [0]);
        assert_eq!(pass(&[r"(?m)^id$"], &["x\n", "id", "x"]).1, [0; 0]);
        assert_eq!(pass(&["^id"], &["x", "id"]).1, [0; 0]);
        assert_eq!(pass(&["^id"], &["i", "d"]).1, [0]);
    }

    #[test]
    fn an_emptied_cache_is_searched_again_from_what_is_held() {
        let mut scanner = scanner(&["key-[a-z]{4}"]);
        let mut passage = Passage::default();
        passage.feed(&mut scanner, b"a key-ab").unwrap();
        passage.let_go();
        scanner.reset();
        passage.feed(&mut scanner, b"cd.").unwrap();
        assert_eq!(passage.found().collect::<Vec<_>>(), [0]);
    }

    /// The same as in one piece, for texts of few letters cut everywhere.
    #[test]
    fn it_finds_in_pieces_what_it_finds_in_one() {
        let patterns = ["ab+c", "(a|b)*cc", r"\bca\b", "b a", "^c", "a$"];
        let compiled = compiled(&patterns);
        let mut whole = Scanner::new(&compiled.iter().collect::<Vec<_>>()).unwrap();
        for number in 0..4_u32.pow(6) {
            let letter = |place: u32| b"abc "[(number / 4_u32.pow(place) % 4) as usize];
            let text: Vec<u8> = (0..6).map(letter).collect();
            let mut hits = crate::scan::Hits::default();
            whole.search(&text, &mut hits);
            let expected: Vec<usize> = (0..patterns.len()).filter(|id| hits.has(*id)).collect();
            let text = String::from_utf8(text).unwrap();
            let (gone, found) = pass(&patterns, &[&text[..2], &text[2..3], &text[3..]]);
            assert_eq!(found, expected, "{text:?}");
            assert_eq!(gone.concat(), text);
        }
    }
}
