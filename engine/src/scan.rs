//! Searching content for patterns.
//!
//! All patterns of a bundle become one lazily built DFA: exact, one pass, linear in the text whatever the text is. `regex-lite` would be
//! smaller but reads 2–5 MB/s inside V8; a DFA built ahead explodes on common patterns (a card number alone is 13 MB). Nothing is compiled
//! here: patterns come as automata ([`crate::automaton`]), and a search works out the states of the DFA that it needs.

use crate::{
    automaton::{self, Automaton, Unreadable},
    sorted::sort_by,
};
use alloc::{string::String, vec::Vec};
use regex_automata::{
    Input, MatchKind, PatternSet,
    hybrid::dfa::{Cache, DFA},
    nfa::thompson::NFA,
};

/// Memory of the lazy DFA's states per worker. 1 MiB holds the warm set of dozens of patterns; when it is full it is emptied and filled again.
const CACHE_BYTES: usize = 1 << 20;

/// A search that has emptied the cache this often…
pub(crate) const CACHE_FILLS: usize = 3;
/// …and then needs a new state more often than every so many bytes gives up. Some patterns have as many states as the text has bytes
/// (`(a|b)*a(a|b){12}` on random `a` and `b`); building them takes seconds per MiB, and nothing interrupts a worker. Ordinary text needs a new
/// state every few hundred bytes while the cache is cold and hardly any afterwards.
const BYTES_PER_STATE: usize = 16;

/// The patterns of one bundle.
#[derive(Debug)]
pub struct Scanner {
    dfa: DFA,
    pub(crate) cache: Cache,
    count: usize,
    /// How often the cache was thrown away because a search gave up.
    pub(crate) resets: u64,
}

impl Scanner {
    /// Of the forward automata of patterns; a hit names one by its place in the list.
    pub fn new(patterns: &[&Automaton]) -> Result<Scanner, Unreadable> {
        let nfa = automaton::forward(patterns.iter().copied())?;
        Scanner::of_nfa(nfa, patterns.len())
    }

    /// Searches for the `count` patterns of `nfa`.
    pub(crate) fn of_nfa(nfa: NFA, count: usize) -> Result<Scanner, Unreadable> {
        let dfa = DFA::builder()
            .configure(
                DFA::config()
                    .match_kind(MatchKind::All)
                    .cache_capacity(CACHE_BYTES)
                    .minimum_cache_clear_count(Some(CACHE_FILLS))
                    .minimum_bytes_per_state(Some(BYTES_PER_STATE))
                    .skip_cache_capacity_check(true),
            )
            .build_from_nfa(nfa)
            .map_err(|_| Unreadable)?;
        let cache = dfa.create_cache();
        Ok(Scanner {
            dfa,
            cache,
            count,
            resets: 0,
        })
    }

    /// The automaton and its states so far.
    pub(crate) fn parts(&mut self) -> (&DFA, &mut Cache) {
        (&self.dfa, &mut self.cache)
    }

    /// The next text starts afresh.
    pub(crate) fn reset(&mut self) {
        self.resets = self.resets.saturating_add(1);
        self.cache.reset(&self.dfa);
    }

    /// Adds the patterns found in `text` to `hits`. A search that gives up is noted there too: never as nothing found.
    pub fn search(&mut self, text: &[u8], hits: &mut Hits) {
        if self.count == 0 || hits.unfinished {
            return;
        }
        let input = Input::new(text);
        let mut set = PatternSet::new(self.count);
        // The common answer is "nothing", and the first loop gives it fastest.
        let searched = match self
            .dfa
            .try_search_fwd(&mut self.cache, &input.clone().earliest(true))
        {
            Ok(None) => return,
            Ok(Some(_)) => {
                self.dfa
                    .try_which_overlapping_matches(&mut self.cache, &input, &mut set)
            }
            Err(gave_up) => Err(gave_up),
        };
        match searched {
            Ok(()) => set.iter().for_each(|id| hits.add(id.as_usize())),
            Err(_) => {
                hits.unfinished = true;
                self.reset();
            }
        }
    }
}

/// What a search found, patterns by their place in the bundle's list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    patterns: Vec<usize>,
    unfinished: bool,
}

impl Hits {
    fn add(&mut self, pattern: usize) {
        if let Err(at) = self.patterns.binary_search(&pattern) {
            self.patterns.insert(at, pattern);
        }
    }

    /// Whether `pattern` was found.
    pub fn has(&self, pattern: usize) -> bool {
        self.patterns.binary_search(&pattern).is_ok()
    }

    /// Whether a search gave up, so that there may be more than was found.
    pub fn is_unfinished(&self) -> bool {
        self.unfinished
    }

    /// Whether everything was searched and nothing found.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty() && !self.unfinished
    }
}

/// The distinct patterns of a list, sorted, and so numbered.
pub fn distinct<'a>(patterns: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut patterns: Vec<&str> = patterns.collect();
    sort_by(&mut patterns, |a, b| a.cmp(b));
    patterns.dedup();
    patterns
}

/// Whether `pattern`, one of the bundle's `patterns`, was found.
pub fn has(patterns: &[String], hits: &Hits, pattern: &str) -> bool {
    let id = patterns.binary_search_by(|known| known.as_str().cmp(pattern));
    id.is_ok_and(|id| hits.has(id))
}
