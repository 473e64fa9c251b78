//! Searching content for patterns.
//!
//! All patterns of a bundle become one lazily built DFA: exact, one pass, linear in the text whatever the text is. `regex-lite` would be
//! smaller but reads 2–5 MB/s inside V8; a DFA built ahead explodes on common patterns (a card number alone is 13 MB). There are no Unicode
//! tables here: the compiler ships patterns in a normal form of explicit ranges that means what RE2 means.

use alloc::{string::String, vec::Vec};
use regex_automata::{
    Input, MatchKind, PatternSet,
    hybrid::dfa::{Cache, DFA},
    nfa::thompson,
    util::syntax,
};

/// Memory of the lazy DFA's states per worker. 1 MiB holds the warm set of dozens of patterns; when hostile text fills it, it is cleared and
/// built again, which costs time in proportion to the text and never the answer.
const CACHE_BYTES: usize = 1 << 20;

/// Compiled size allowed for all patterns together.
const NFA_BYTES: usize = 4 << 20;

/// The patterns of one bundle.
#[derive(Debug)]
pub struct Scanner {
    dfa: DFA,
    cache: Cache,
    count: usize,
}

/// The patterns do not compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotCompiled;

impl Scanner {
    /// Compiles `patterns`; a hit names one by its place in the list.
    pub fn new(patterns: &[&str]) -> Result<Scanner, NotCompiled> {
        let dfa = DFA::builder()
            .configure(
                DFA::config()
                    .match_kind(MatchKind::All)
                    .cache_capacity(CACHE_BYTES)
                    .skip_cache_capacity_check(true),
            )
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .thompson(
                thompson::Config::new()
                    .utf8(false)
                    .nfa_size_limit(Some(NFA_BYTES)),
            )
            .build_many(patterns)
            .map_err(|_| NotCompiled)?;
        let cache = dfa.create_cache();
        Ok(Scanner {
            dfa,
            cache,
            count: patterns.len(),
        })
    }

    /// Adds the patterns found in `text` to `hits`. A search that cannot finish counts as a hit of every pattern: never as none.
    pub fn search(&mut self, text: &[u8], hits: &mut Hits) {
        if self.count == 0 {
            return;
        }
        let input = Input::new(text);
        // The common answer is "nothing", and this loop gives it fastest.
        match self
            .dfa
            .try_search_fwd(&mut self.cache, &input.clone().earliest(true))
        {
            Ok(None) => return,
            Ok(Some(_)) => {}
            Err(_) => return hits.all(self.count),
        }
        let mut set = PatternSet::new(self.count);
        match self
            .dfa
            .try_which_overlapping_matches(&mut self.cache, &input, &mut set)
        {
            Ok(()) => set.iter().for_each(|id| hits.add(id.as_usize())),
            Err(_) => hits.all(self.count),
        }
    }
}

/// Which patterns were found, by their place in the bundle's list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hits(Vec<usize>);

impl Hits {
    fn add(&mut self, pattern: usize) {
        if let Err(at) = self.0.binary_search(&pattern) {
            self.0.insert(at, pattern);
        }
    }

    fn all(&mut self, count: usize) {
        self.0 = (0..count).collect();
    }

    /// Whether `pattern` was found.
    pub fn has(&self, pattern: usize) -> bool {
        self.0.binary_search(&pattern).is_ok()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The distinct patterns of a list of lists, sorted, and so numbered.
pub fn distinct<'a>(lists: impl Iterator<Item = &'a [String]>) -> Vec<&'a str> {
    let mut patterns: Vec<&str> = lists.flatten().map(String::as_str).collect();
    patterns.sort_unstable();
    patterns.dedup();
    patterns
}
