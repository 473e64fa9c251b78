//! A list of strings in one allocation.

use super::Short;
use alloc::{string::String, vec::Vec};
use core::fmt;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Strings one behind the other, each after its length. A call meets a document that was long not needed, and reading it is waiting for memory:
/// so for a list of names once, and not again for each name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Texts(Short<22>);

/// A length is written as two digits of this base, and a digit as the character with that number: these all are characters.
const BASE: usize = 0xD800;

impl Texts {
    /// No strings.
    pub const NONE: Texts = Texts(Short::EMPTY);

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.as_bytes().is_empty()
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &str> + Clone {
        let mut rest = &*self.0;
        core::iter::from_fn(move || {
            let mut digits = rest.chars();
            let [high, low] = [digits.next()?, digits.next()?].map(number);
            let (text, behind) = digits.as_str().split_at_checked(high * BASE + low)?;
            rest = behind;
            Some(text)
        })
    }
}

fn number(digit: char) -> usize {
    usize::try_from(u32::from(digit)).unwrap_or(0)
}

fn digit(number: usize) -> char {
    let digit = u32::try_from(number).ok().and_then(char::from_u32);
    digit.unwrap_or_default()
}

impl<T: AsRef<str>> FromIterator<T> for Texts {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Texts {
        let mut all = String::new();
        for text in texts {
            let text = text.as_ref();
            // No string is as long as BASE times BASE: that is 3 GB.
            all.extend([digit(text.len() / BASE), digit(text.len() % BASE)]);
            all.push_str(text);
        }
        Texts(all.as_str().into())
    }
}

impl fmt::Debug for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for Texts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Texts, D::Error> {
        Ok(Vec::<String>::deserialize(deserializer)?.iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_string_comes_back() {
        let long = |length: usize| "ä".repeat(length / 2);
        let lists: [&[&str]; 6] = [
            &[],
            &[""],
            &["", "", "a"],
            &["gpt-4o", "\u{0}\u{1}", "日本語", "\n"],
            &[&long(126), &long(128), &long(0xD7FE), &long(0xD800)],
            &[&long(0xD802), "b"],
        ];
        for list in lists {
            let texts: Texts = list.iter().collect();
            assert_eq!(texts.iter().collect::<Vec<_>>(), list);
            assert_eq!(texts.is_empty(), list.is_empty());
            let json = serde_json::to_vec(&texts).unwrap();
            assert_eq!(json, serde_json::to_vec(list).unwrap());
            assert_eq!(serde_json::from_slice::<Texts>(&json).unwrap(), texts);
        }
    }
}
