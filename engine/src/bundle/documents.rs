//! The documents of a bundle, found by scope: a call meets a handful of them, however many there are.

use super::{Document, Scope};
use crate::{identity::Caller, sorted::sort_by_key};
use alloc::{vec, vec::Vec};
use core::{fmt, ops::Deref};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Documents in the bundle's order, with a hash table over their scopes. What is hashed was signed by the control plane, so nobody but
/// the policies' own authors can make scopes collide.
#[derive(Clone, Default)]
pub struct Documents {
    all: Vec<Document>,
    /// One for each scope that documents have; open addressing, a power of two and at most half full.
    slots: Vec<Slot>,
    /// For each document the place of the next one of the same scope, or [`NONE`].
    next: Vec<u32>,
}

/// Where the documents of a scope are found. With the whole hash, so that no other document is read on the way: among thousands each is in memory
/// that is in no cache.
#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    /// The place in `all` of the first, or [`NONE`].
    first: u32,
}

/// A place at which there is no document: a bundle of so many would not be read.
const NONE: u32 = u32::MAX;

impl Documents {
    /// The documents of a call by `caller` that uses `tools`: those that apply to everything the caller does, then those of the tools.
    pub fn met<'d, 't>(
        &'d self,
        caller: &Caller,
        tools: impl Iterator<Item = &'t str>,
    ) -> Vec<&'d Document> {
        let mut met = self.covering(caller);
        met.extend(self.about(tools));
        met
    }

    /// The documents that apply to everything `caller` does, broadest scope first; then those for whom it acts, each document once.
    pub fn covering(&self, caller: &Caller) -> Vec<&Document> {
        let mut found = Vec::with_capacity(USUALLY);
        for (at, one) in caller.all().enumerate() {
            let before = || caller.all().take(at).flat_map(keys);
            for key in keys(one) {
                if !before().any(|other| other == key) {
                    self.each(key, |_, document| found.push(document));
                }
            }
        }
        found
    }

    /// The documents of the scopes `tool:…` of any of `tools`, each once, in the bundle's order.
    pub fn about<'d, 't>(
        &'d self,
        tools: impl Iterator<Item = &'t str>,
    ) -> impl Iterator<Item = &'d Document> {
        let mut found = Vec::new();
        for tool in tools {
            self.each(Key(Kind::Tool, tool), |place, document| {
                found.push((place, document));
            });
        }
        sort_by_key(&mut found, |(place, _)| *place);
        found.dedup_by_key(|(place, _)| *place);
        found.into_iter().map(|(_, document)| document)
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

    /// The documents of one scope, each with its place, in the bundle's order.
    fn each<'d>(&'d self, key: Key<'_>, mut take: impl FnMut(u32, &'d Document)) {
        let slot = self.slot(key, key.hash());
        let slot = slot.and_then(|slot| self.slots.get(slot));
        let mut place = slot.map_or(NONE, |slot| slot.first);
        while let Some(document) = self.at(place) {
            take(place, document);
            place = self.after(place);
        }
    }

    /// The slot of `key` and its `hash`, or the empty one where it would stand. `None` only where there are no slots.
    fn slot(&self, key: Key<'_>, hash: u32) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        // Half of the slots are empty, so the search ends.
        let mut slot = usize::try_from(hash).ok()? & mask;
        loop {
            let Slot { hash: other, first } = *self.slots.get(slot)?;
            match self.at(first) {
                Some(one) if other != hash || !key.is(&one.scope) => slot = (slot + 1) & mask,
                Some(_) | None => return Some(slot),
            }
        }
    }

    fn at(&self, place: u32) -> Option<&Document> {
        self.all.get(usize::try_from(place).ok()?)
    }

    fn after(&self, place: u32) -> u32 {
        let next = usize::try_from(place).ok();
        let next = next.and_then(|place| self.next.get(place));
        next.copied().unwrap_or(NONE)
    }
}

/// How many documents a call meets, most often; where there are more, that costs a copy.
const USUALLY: usize = 16;

/// A scope, for comparing and hashing without a copy of its name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key<'k>(Kind, &'k str);

/// The scopes that cover everything an agent does, broadest first.
fn keys(caller: &Caller) -> impl Iterator<Item = Key<'_>> {
    let org = caller.org.as_deref().map(|id| Key(Kind::Org, id));
    let team = caller.team.as_deref().map(|id| Key(Kind::Team, id));
    let agent = Key(Kind::Agent, &caller.agent);
    [Some(Key(Kind::Global, "")), org, team, Some(agent)]
        .into_iter()
        .flatten()
}

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
        let (sought, id) = (self.0, self.1.as_bytes());
        match scope {
            Scope::Global => sought == Kind::Global,
            Scope::Org(org) => sought == Kind::Org && org.as_bytes() == id,
            Scope::Team(team) => sought == Kind::Team && team.as_bytes() == id,
            Scope::Agent(agent) => sought == Kind::Agent && agent.as_bytes() == id,
            Scope::Tool(tool) => sought == Kind::Tool && tool.as_bytes().eq_ignore_ascii_case(id),
        }
    }

    /// FNV-1a over eight bytes at a time, folded so that the low bits depend on all of them.
    fn hash(self) -> u32 {
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
        u32::try_from(hash & 0xffff_ffff).unwrap_or(0)
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
        let empty = Slot {
            hash: 0,
            first: NONE,
        };
        let slots = all.len().saturating_mul(2).next_power_of_two();
        let mut documents = Documents {
            slots: vec![empty; slots],
            next: vec![NONE; all.len()],
            all,
        };
        // From the last, so that the first of a scope stands at the head of its chain.
        for place in (0..documents.all.len()).rev() {
            let Some(document) = documents.all.get(place) else {
                continue;
            };
            let key = Key::of(&document.scope);
            let hash = key.hash();
            let first = u32::try_from(place).unwrap_or(NONE);
            let slot = documents.slot(key, hash);
            if let Some(head) = slot.and_then(|slot| documents.slots.get_mut(slot)) {
                let after = core::mem::replace(head, Slot { hash, first });
                if let Some(next) = documents.next.get_mut(place) {
                    *next = after.first;
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
