//! The documents of a bundle, found by scope: a call meets a handful of them, however many there are.

use super::{Document, Scope};
use crate::{decide::covers_one, identity::Caller, sorted::sort_by_key};
use alloc::{vec, vec::Vec};
use core::{fmt, iter, ops::Deref};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Documents in the bundle's order, with a hash table over their scopes. What is hashed was signed by the control plane, so nobody but
/// the policies' own authors can make scopes collide.
#[derive(Clone, Default)]
pub struct Documents {
    all: Vec<Document>,
    /// The place in `all` of the first document of a scope, or [`NONE`]; open addressing, a power of two and at most half full.
    slots: Vec<u32>,
    /// For each document the next one of the same scope, or [`NONE`].
    next: Vec<u32>,
}

/// A place at which there is no document: a bundle of so many would not be read.
const NONE: u32 = u32::MAX;

impl Documents {
    /// The documents that apply to everything `caller` does, broadest scope first; then those for whom it acts, each document once.
    pub fn covering<'d, 'c>(
        &'d self,
        caller: &'c Caller,
    ) -> impl Iterator<Item = &'d Document> + use<'d, 'c> {
        let others = caller.acts_for.iter().enumerate();
        let theirs = others.flat_map(move |(at, one)| {
            let before = move || caller.all().take(at + 1);
            self.covering_one(one)
                .filter(move |document| !before().any(|other| covers_one(&document.scope, other)))
        });
        self.covering_one(caller).chain(theirs)
    }

    fn covering_one<'d>(&'d self, caller: &Caller) -> impl Iterator<Item = &'d Document> + use<'d> {
        [
            self.first(Key(Kind::Global, "")),
            caller
                .org
                .as_ref()
                .map_or(NONE, |org| self.first(Key(Kind::Org, org))),
            caller
                .team
                .as_ref()
                .map_or(NONE, |team| self.first(Key(Kind::Team, team))),
            self.first(Key(Kind::Agent, &caller.agent)),
        ]
        .into_iter()
        .flat_map(|first| self.chain(first))
        .filter_map(|at| self.at(at))
    }

    /// The documents of the scopes `tool:…` of any of `tools`, each once, in the bundle's order.
    pub fn about<'d, 't>(
        &'d self,
        tools: impl Iterator<Item = &'t str>,
    ) -> impl Iterator<Item = &'d Document> {
        let mut found: Vec<u32> = tools
            .flat_map(|tool| self.chain(self.first(Key(Kind::Tool, tool))))
            .collect();
        sort_by_key(&mut found, |at| *at);
        found.dedup();
        found.into_iter().filter_map(|at| self.at(at))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Lets `edit` change them, and finds them anew.
    pub fn change(&mut self, edit: impl FnOnce(&mut Vec<Document>)) {
        let mut all = core::mem::take(&mut self.all);
        edit(&mut all);
        *self = all.into();
    }

    fn at(&self, place: u32) -> Option<&Document> {
        self.all.get(usize::try_from(place).ok()?)
    }

    fn chain(&self, first: u32) -> impl Iterator<Item = u32> + Clone {
        let found = |at: u32| (at != NONE).then_some(at);
        iter::successors(found(first), move |at| {
            let next = self.next.get(usize::try_from(*at).ok()?);
            next.copied().and_then(found)
        })
    }

    fn first(&self, key: Key<'_>) -> u32 {
        self.slot(key)
            .and_then(|slot| self.slots.get(slot))
            .copied()
            .unwrap_or(NONE)
    }

    /// The slot of `key`, or the empty one where it would stand. `None` only where there are no slots.
    fn slot(&self, key: Key<'_>) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        // Half of the slots are empty, so the search ends.
        let mut slot = key.hash() & mask;
        loop {
            let at = *self.slots.get(slot)?;
            match self.at(at) {
                Some(document) if !key.is(&document.scope) => slot = (slot + 1) & mask,
                Some(_) | None => return Some(slot),
            }
        }
    }
}

/// A scope, for comparing and hashing without a copy of its name.
#[derive(Clone, Copy)]
struct Key<'k>(Kind, &'k str);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Global,
    Org,
    Team,
    Agent,
    Tool,
}

impl<'k> Key<'k> {
    fn of(scope: &'k Scope) -> Key<'k> {
        match scope {
            Scope::Global => Key(Kind::Global, ""),
            Scope::Org(id) => Key(Kind::Org, id),
            Scope::Team(id) => Key(Kind::Team, id),
            Scope::Agent(id) => Key(Kind::Agent, id),
            Scope::Tool(id) => Key(Kind::Tool, id),
        }
    }

    /// Tools are the same in any case.
    fn is(self, scope: &Scope) -> bool {
        let Key(kind, id) = Key::of(scope);
        kind == self.0
            && match kind {
                Kind::Tool => id.eq_ignore_ascii_case(self.1),
                Kind::Global | Kind::Org | Kind::Team | Kind::Agent => id == self.1,
            }
    }

    /// FNV-1a over eight bytes at a time, folded so that the low bits depend on all of them.
    fn hash(self) -> usize {
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for chunk in self.1.as_bytes().chunks(8) {
            let word = chunk.iter().fold(0_u64, |word, byte| {
                word << 8 | u64::from(byte.to_ascii_lowercase())
            });
            hash = (hash ^ word).wrapping_mul(PRIME);
            hash ^= hash >> 32;
        }
        hash = (hash ^ u64::from(self.0.number())).wrapping_mul(PRIME);
        hash ^= hash >> 32;
        // The low 32 bits everywhere, so that a gate of 32 bits finds what one of 64 finds.
        usize::try_from(hash & 0xffff_ffff).unwrap_or(0)
    }
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Kind::Global => 0,
            Kind::Org => 1,
            Kind::Team => 2,
            Kind::Agent => 3,
            Kind::Tool => 4,
        }
    }
}

impl From<Vec<Document>> for Documents {
    fn from(all: Vec<Document>) -> Documents {
        let slots = all.len().saturating_mul(2).next_power_of_two();
        let mut documents = Documents {
            next: vec![NONE; all.len()],
            slots: vec![NONE; slots],
            all,
        };
        // From the last, so that the first of a scope stands at the head of its chain.
        for place in (0..documents.all.len()).rev() {
            let at = u32::try_from(place).unwrap_or(NONE);
            let document = documents.at(at);
            let slot = document.and_then(|document| documents.slot(Key::of(&document.scope)));
            if let Some(head) = slot.and_then(|slot| documents.slots.get_mut(slot)) {
                let after = core::mem::replace(head, at);
                if let Some(next) = documents.next.get_mut(place) {
                    *next = after;
                }
            }
        }
        documents
    }
}

impl FromIterator<Document> for Documents {
    fn from_iter<I: IntoIterator<Item = Document>>(documents: I) -> Documents {
        documents.into_iter().collect::<Vec<_>>().into()
    }
}

impl Deref for Documents {
    type Target = [Document];

    fn deref(&self) -> &[Document] {
        &self.all
    }
}

impl fmt::Debug for Documents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.all.fmt(f)
    }
}

impl Serialize for Documents {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.all.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Documents {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Documents, D::Error> {
        Vec::deserialize(deserializer).map(Documents::from)
    }
}
