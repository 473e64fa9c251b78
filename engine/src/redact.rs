//! Taking out of a body what patterns match, and nothing else.
//!
//! Works on the values of a JSON body, unescaped, or on text as it is. What was taken out is counted, never kept. The caller reads the result
//! afresh and searches it again: what still matches there (a key, a match that the edit itself has made) must not pass.

use crate::{
    automaton::{self, Compiled, Unreadable},
    json::{self, Document, Edit, Role},
    sorted::sort_by_key,
};
use alloc::{string::String, vec::Vec};
use core::ops::Range;
use regex_automata::{
    Anchored, Input, MatchKind,
    hybrid::{
        dfa,
        regex::{Cache, Regex},
    },
};

/// What stands where something was taken out.
pub const REPLACEMENT: &str = "[REDACTED]";

/// The search for all matches of a pattern in a text takes at most so many steps per byte…
const STEPS_PER_BYTE: usize = 16;
/// …and so many beside. A pattern such as `a.*b|a` looks from every `a` to the end of the text; nothing interrupts a worker.
const STEPS: usize = 1 << 16;

/// Memory of the lazy automata of one pattern, one for each direction, while a body is worked on.
const CACHE_BYTES: usize = 1 << 19;
/// A search that has emptied that so often gives up.
const CACHE_FILLS: usize = 3;

/// Why nothing was taken out: it would have cost too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GaveUp;

/// A body without what was sensitive in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted {
    /// The body.
    pub body: Vec<u8>,
    /// How many stretches were taken out.
    pub count: u64,
}

/// One pattern, as it is looked for from left to right, as RE2 does: the first match, then the first behind it.
pub struct Masker {
    regex: Regex,
    cache: Cache,
}

impl Masker {
    /// Of a pattern that has automata for both directions.
    pub fn new(pattern: &Compiled) -> Result<Masker, Unreadable> {
        let dfa = |nfa, config: dfa::Config| {
            let config = config
                .cache_capacity(CACHE_BYTES)
                .minimum_cache_clear_count(Some(CACHE_FILLS))
                .skip_cache_capacity_check(true);
            let builder = dfa::DFA::builder().configure(config).build_from_nfa(nfa);
            builder.map_err(|_| Unreadable)
        };
        let backward = pattern.backward.as_ref().ok_or(Unreadable)?;
        let forward = automaton::forward([&pattern.forward].into_iter())?;
        let forward = dfa(forward, dfa::Config::new())?;
        // Of all beginnings that a match could have, the first.
        let backward = automaton::backward(backward)?;
        let backward = dfa(backward, dfa::Config::new().match_kind(MatchKind::All))?;
        let regex = Regex::builder().build_from_dfas(forward, backward);
        let cache = regex.create_cache();
        Ok(Masker { regex, cache })
    }

    /// Adds every stretch of `text` from `from` on that it matches to `found`. What is before only says what the text begins behind.
    pub fn find(
        &mut self,
        text: &[u8],
        from: usize,
        found: &mut Vec<Range<usize>>,
    ) -> Result<(), GaveUp> {
        let mut steps = text
            .len()
            .saturating_mul(STEPS_PER_BYTE)
            .saturating_add(STEPS);
        let mut from = from;
        while let Some(end) = self.end_of_next(text, from, &mut steps)? {
            let (_, backward) = self.cache.as_parts_mut();
            // The stretches between matches do not overlap, so all searches for beginnings together pass the text once.
            let before = Input::new(text).span(from..end).anchored(Anchored::Yes);
            let start = self.regex.reverse().try_search_rev(backward, &before);
            let start = start.map_err(|_| GaveUp)?.ok_or(GaveUp)?.offset();
            if start < end {
                found.push(start..end);
            }
            // No pattern that a policy may have matches nothing.
            from = end.max(from + 1);
        }
        Ok(())
    }

    /// Where the next match at or behind `from` ends. Walks the automaton step by step: only so the effort has a bound.
    fn end_of_next(
        &mut self,
        text: &[u8],
        from: usize,
        steps: &mut usize,
    ) -> Result<Option<usize>, GaveUp> {
        if from > text.len() {
            return Ok(None);
        }
        let automaton = self.regex.forward();
        let (cache, _) = self.cache.as_parts_mut();
        let input = Input::new(text).span(from..text.len());
        let mut state = automaton
            .start_state_forward(cache, &input)
            .map_err(|_| GaveUp)?;
        let mut end = None;
        for (at, byte) in text.iter().enumerate().skip(from) {
            *steps = steps.checked_sub(1).ok_or(GaveUp)?;
            state = automaton
                .next_state(cache, state, *byte)
                .map_err(|_| GaveUp)?;
            if state.is_match() {
                // An automaton says so one byte late.
                end = Some(at);
            } else if state.is_dead() {
                return Ok(end);
            } else if state.is_quit() {
                return Err(GaveUp);
            }
        }
        let last = automaton.next_eoi_state(cache, state).map_err(|_| GaveUp)?;
        Ok(match last.is_match() {
            true => Some(text.len()),
            false => end,
        })
    }
}

/// Takes out of the strings and numbers of a JSON body what `maskers` match. Keys stay: without them it would be another body.
pub fn json(doc: &Document<'_>, maskers: &mut [Masker]) -> Result<Redacted, GaveUp> {
    let mut edits = Vec::new();
    let mut count = 0;
    let mut scratch = String::new();
    for token in doc.strings().filter(|token| token.role() != Role::Key) {
        let text = token.resolve(&mut scratch);
        if let Some((edit, stretches)) = self::token(token, text, maskers)? {
            count += stretches as u64;
            edits.push(edit);
        }
    }
    let body = json::splice(doc.text().as_bytes(), edits).ok_or(GaveUp)?;
    Ok(Redacted { body, count })
}

/// The edit that takes out of a string or number what `maskers` match, and of how many stretches; `None` where nothing matches. `text` is the token
/// unescaped.
pub(crate) fn token(
    token: json::Text<'_>,
    text: &str,
    maskers: &mut [Masker],
) -> Result<Option<(Edit, usize)>, GaveUp> {
    let stretches = stretches(text.as_bytes(), 0, maskers)?;
    if stretches.is_empty() {
        return Ok(None);
    }
    let (span, left) = match token.role() {
        // A number with a part taken out would be another number.
        Role::Number => (token.span(), REPLACEMENT.into()),
        Role::Key | Role::String => {
            let span = token.span();
            let quoted = span.start.saturating_sub(1)..span.end + 1;
            (quoted, without(text, &stretches))
        }
    };
    let mut written = String::with_capacity(left.len() + 2);
    json::quote(&left, &mut written);
    Ok(Some((Edit::new(span, &written), stretches.len())))
}

/// Takes out of a text what `maskers` match. Bytes that are no text are left to the search that follows.
pub fn text(body: &[u8], maskers: &mut [Masker]) -> Result<Redacted, GaveUp> {
    let Ok(text) = core::str::from_utf8(body) else {
        return Ok(Redacted {
            body: body.to_vec(),
            count: 0,
        });
    };
    let stretches = stretches(body, 0, maskers)?;
    Ok(Redacted {
        body: without(text, &stretches).into_bytes(),
        count: stretches.len() as u64,
    })
}

/// Where any of `maskers` matches from `from` on, in order; what overlaps or touches is one stretch.
pub(crate) fn stretches(
    text: &[u8],
    from: usize,
    maskers: &mut [Masker],
) -> Result<Vec<Range<usize>>, GaveUp> {
    let mut found = Vec::new();
    for masker in maskers {
        masker.find(text, from, &mut found)?;
    }
    sort_by_key(&mut found, |stretch| (stretch.start, stretch.end));
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(found.len());
    for stretch in found {
        match merged.last_mut() {
            Some(last) if stretch.start <= last.end => last.end = last.end.max(stretch.end),
            _ => merged.push(stretch),
        }
    }
    Ok(merged)
}

/// `text` with [`REPLACEMENT`] for each of `stretches`. Matches begin and end with characters; were one not to, the whole character goes.
fn without(text: &str, stretches: &[Range<usize>]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for stretch in stretches {
        let start = text.floor_char_boundary(stretch.start);
        out.push_str(text.get(done..start).unwrap_or_default());
        out.push_str(REPLACEMENT);
        done = text.ceil_char_boundary(stretch.end);
    }
    out.push_str(text.get(done..).unwrap_or_default());
    out
}
