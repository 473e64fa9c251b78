//! Patterns as they travel: automata over bytes, made when a policy is published.
//!
//! A gate has no compiler for regular expressions. It reads the states of each pattern's automaton (Thompson's construction), checks every one, and
//! searches with what they make together.
//!
//! # Form
//! The states one after the other, numbered by their place; the first is where a search begins. Numbers are LEB128. A state begins with one: its kind in
//! the two lowest bits, a count above them.
//!
//! | kind | | the count | what follows |
//! |---|---|---|---|
//! | 0 | goes on with a byte of one of these ranges, which ascend | of ranges | for each its first byte, its last byte, the next state |
//! | 1 | goes on with each of these states, of which the first is preferred | of states, two at least | the states |
//! | 2 | goes on where a condition holds | which one, see [`LOOKS`] | the next state |
//! | 3 | the pattern has matched | 0 | |
//!
//! A next state is written as its distance from this one, zigzag (0, -1, 1, -2, … as 0, 1, 2, 3, …), so that what repeats looks the same.

use alloc::{string::String, vec, vec::Vec};
use regex_automata::{
    nfa::thompson::{Builder, NFA, State, Transition},
    util::{look::Look, primitives::StateID},
};
use serde::{Deserialize, Serialize};

/// Memory for the states of all patterns together, in bytes: some 130,000 states. A gate walks states when it meets new text.
pub const MAX_STATES_BYTES: usize = 4 << 20;

/// The conditions, by their number. All are about single bytes: a gate has no tables of Unicode.
const LOOKS: [Look; 6] = [
    Look::Start,
    Look::End,
    Look::StartLF,
    Look::EndLF,
    Look::WordAscii,
    Look::WordAsciiNegate,
];

/// A pattern and what searches for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compiled {
    /// The pattern in normal form, as documents name it.
    pub pattern: String,
    /// Reads a text from left to right, and says where matches end.
    pub forward: Automaton,
    /// Reads from right to left, and says where they begin; of patterns that are taken out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backward: Option<Automaton>,
}

/// One pattern's states, in the form above. Anything may be in it until it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Automaton(#[serde(with = "crate::bytes::base64")] pub Vec<u8>);

/// These are no automata, or they are too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

impl Automaton {
    /// What `nfa`, compiled from one pattern, does with a text from its beginning on. `None` where it has what this form has no words for, such as
    /// groups that capture or word boundaries by Unicode's rules.
    pub fn of(nfa: &NFA) -> Option<Automaton> {
        // In the order in which they are come upon, so that next states are near.
        let mut order = Vec::new();
        let mut places: Vec<Option<usize>> = vec![None; nfa.states().len()];
        let mut to_do = vec![nfa.start_anchored()];
        while let Some(id) = to_do.pop() {
            let place = places.get_mut(id.as_usize())?;
            if place.is_none() {
                *place = Some(order.len());
                let state = nfa.states().get(id.as_usize())?;
                order.push(state);
                next_states(state, &mut to_do);
            }
        }
        let mut written = Vec::new();
        for (place, state) in order.into_iter().enumerate() {
            let next = |id: &StateID| -> Option<u64> {
                let next = (*places.get(id.as_usize())?)?;
                let distance = i64::try_from(next).ok()? - i64::try_from(place).ok()?;
                Some(zigzag(distance))
            };
            let ranges: &[Transition] = match state {
                State::ByteRange { trans } => core::slice::from_ref(trans),
                State::Sparse(sparse) => &sparse.transitions,
                State::Fail => &[],
                State::Union { alternates } => {
                    begin(&mut written, Kind::Either, alternates.len());
                    for id in alternates {
                        write_number(&mut written, next(id)?);
                    }
                    continue;
                }
                State::BinaryUnion { alt1, alt2 } => {
                    begin(&mut written, Kind::Either, 2);
                    write_number(&mut written, next(alt1)?);
                    write_number(&mut written, next(alt2)?);
                    continue;
                }
                State::Look { look, next: id } => {
                    let which = LOOKS.iter().position(|known| known == look)?;
                    begin(&mut written, Kind::Where, which);
                    write_number(&mut written, next(id)?);
                    continue;
                }
                State::Match { .. } => {
                    begin(&mut written, Kind::Matched, 0);
                    continue;
                }
                State::Dense(_) | State::Capture { .. } => return None,
            };
            begin(&mut written, Kind::Bytes, ranges.len());
            for range in ranges {
                written.extend([range.start, range.end]);
                write_number(&mut written, next(&range.next)?);
            }
        }
        Some(Automaton(written))
    }
}

/// What searches for all of these at once, anywhere in a text; a match names a pattern by its place.
pub(crate) fn forward<'a>(
    automata: impl Iterator<Item = &'a Automaton>,
) -> Result<NFA, Unreadable> {
    let mut builder = Builder::new();
    let mut states = Reader::begin(&mut builder)?;
    let mut starts = Vec::new();
    for automaton in automata {
        starts.push(states.pattern(&automaton.0)?);
    }
    let from_here = match *starts {
        [only] => only,
        _ => {
            let choice = states.builder.add_union(starts);
            states.added(choice)?
        }
    };
    // From here, or else from the next byte on.
    let prefix = states.id(1)?;
    let any = Transition {
        start: 0,
        end: 0xff,
        next: prefix,
    };
    let next_byte = states.builder.add_range(any);
    let next_byte = states.added(next_byte)?;
    let either = states.builder.add_union(vec![from_here, next_byte]);
    states.added(either)?;
    builder.build(from_here, prefix).map_err(|_| Unreadable)
}

/// What searches for the beginning of a match that ends where the search begins.
pub(crate) fn backward(automaton: &Automaton) -> Result<NFA, Unreadable> {
    let mut builder = Builder::new();
    builder.set_reverse(true);
    let start = Reader::begin(&mut builder)?.pattern(&automaton.0)?;
    builder.build(start, start).map_err(|_| Unreadable)
}

#[derive(Clone, Copy)]
enum Kind {
    Bytes = 0,
    Either = 1,
    Where = 2,
    Matched = 3,
}

fn begin(written: &mut Vec<u8>, kind: Kind, count: usize) {
    write_number(written, (count as u64) << 2 | kind as u64);
}

fn write_number(written: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        written.push(number as u8 | 0x80);
        number >>= 7;
    }
    written.push(number as u8);
}

const fn zigzag(distance: i64) -> u64 {
    (distance << 1 ^ distance >> 63).cast_unsigned()
}

/// Adds the states that one goes on with, the first last.
fn next_states(state: &State, to: &mut Vec<StateID>) {
    match state {
        State::ByteRange { trans } => to.push(trans.next),
        State::Sparse(sparse) => to.extend(sparse.transitions.iter().rev().map(|range| range.next)),
        State::Union { alternates } => to.extend(alternates.iter().rev()),
        State::BinaryUnion { alt1, alt2 } => to.extend([*alt2, *alt1]),
        State::Look { next, .. } => to.push(*next),
        // Those there are no words for are found when they are written.
        State::Dense(_) | State::Capture { .. } | State::Fail | State::Match { .. } => {}
    }
}

/// Puts states into a builder, which believes everything it is told.
struct Reader<'b> {
    builder: &'b mut Builder,
    /// Those in it.
    count: usize,
}

impl<'b> Reader<'b> {
    fn begin(builder: &'b mut Builder) -> Result<Reader<'b>, Unreadable> {
        builder
            .set_size_limit(Some(MAX_STATES_BYTES))
            .map_err(|_| Unreadable)?;
        Ok(Reader { builder, count: 0 })
    }

    /// The state that will be added after `more` others.
    fn id(&self, more: usize) -> Result<StateID, Unreadable> {
        StateID::new(self.count.saturating_add(more)).map_err(|_| Unreadable)
    }

    /// Counts what was added. The builder numbers states as they come, and refuses the one that is too many.
    fn added<E>(&mut self, state: Result<StateID, E>) -> Result<StateID, Unreadable> {
        let id = state.map_err(|_| Unreadable)?;
        self.count += 1;
        Ok(id)
    }

    /// Adds one pattern's. Gives its first.
    fn pattern(&mut self, bytes: &[u8]) -> Result<StateID, Unreadable> {
        let first = self.id(0)?;
        self.builder.start_pattern().map_err(|_| Unreadable)?;
        let mut input = Input {
            bytes,
            first: first.as_usize(),
            place: first.as_usize(),
            furthest: first.as_usize(),
        };
        while !input.bytes.is_empty() {
            self.state(&mut input)?;
            input.place += 1;
        }
        // All that lead on lead to one that is there.
        if input.furthest >= self.count {
            return Err(Unreadable);
        }
        self.builder.finish_pattern(first).map_err(|_| Unreadable)?;
        Ok(first)
    }

    fn state(&mut self, input: &mut Input<'_>) -> Result<(), Unreadable> {
        let begun = input.number()?;
        let count = begun >> 2;
        let state = match begun & 3 {
            0 => {
                let mut ranges: Vec<Transition> = Vec::new();
                for _ in 0..count {
                    let range = Transition {
                        start: input.byte()?,
                        end: input.byte()?,
                        next: input.next()?,
                    };
                    let ascends = ranges.last().is_none_or(|last| last.end < range.start);
                    if !ascends || range.start > range.end {
                        return Err(Unreadable);
                    }
                    ranges.push(range);
                }
                self.builder.add_sparse(ranges)
            }
            1 => {
                // One alone would be no choice, and a circle of such an endless walk for the builder.
                if count < 2 {
                    return Err(Unreadable);
                }
                let mut states = Vec::new();
                for _ in 0..count {
                    states.push(input.next()?);
                }
                self.builder.add_union(states)
            }
            2 => {
                let which = usize::try_from(count).ok().and_then(|at| LOOKS.get(at));
                let look = *which.ok_or(Unreadable)?;
                let next = input.next()?;
                self.builder.add_look(next, look)
            }
            _ => {
                if count > 0 {
                    return Err(Unreadable);
                }
                self.builder.add_match()
            }
        };
        self.added(state)?;
        Ok(())
    }
}

/// One pattern's bytes, as far as they are not read.
struct Input<'a> {
    bytes: &'a [u8],
    /// Its first state in the builder.
    first: usize,
    /// The state that is read.
    place: usize,
    /// The last one that another leads to.
    furthest: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, Unreadable> {
        let (byte, rest) = self.bytes.split_first().ok_or(Unreadable)?;
        self.bytes = rest;
        Ok(*byte)
    }

    /// 32 bits at most.
    fn number(&mut self) -> Result<u32, Unreadable> {
        let mut number = 0;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            let bits = u32::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(Unreadable);
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Unreadable)
    }

    /// A next state. That it is not beyond the last one is checked at the end.
    fn next(&mut self) -> Result<StateID, Unreadable> {
        let zigzag = self.number()?;
        let distance = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
        let distance = isize::try_from(distance).map_err(|_| Unreadable)?;
        let state = self.place.checked_add_signed(distance);
        let state = state.filter(|state| *state >= self.first);
        let state = state.ok_or(Unreadable)?;
        self.furthest = self.furthest.max(state);
        StateID::new(state).map_err(|_| Unreadable)
    }
}
