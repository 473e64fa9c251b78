//! A string that is in place where it is short.

use alloc::boxed::Box;
use core::{fmt, ops::Deref};

/// Text of up to `N` bytes without an allocation of its own: among thousands of documents every pointer that is followed is waiting for memory.
/// `N` is less than 256.
#[derive(Clone, PartialEq, Eq)]
pub struct Short<const N: usize>(Held<N>);

/// What is short is [`Held::Here`], and what is not is not: so two are equal where their texts are.
#[derive(Clone, PartialEq, Eq)]
enum Held<const N: usize> {
    /// Zeros behind the text.
    Here {
        length: u8,
        bytes: [u8; N],
    },
    There(Box<str>),
}

impl<const N: usize> Short<N> {
    /// Nothing.
    pub const EMPTY: Short<N> = Short(Held::Here {
        length: 0,
        bytes: [0; N],
    });

    /// As [`str::as_bytes`], without a look at whether it is text.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Held::Here { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Held::There(text) => text.as_bytes(),
        }
    }
}

impl<const N: usize> From<&str> for Short<N> {
    fn from(text: &str) -> Short<N> {
        let mut bytes = [0; N];
        let place = bytes.get_mut(..text.len());
        match (place, u8::try_from(text.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(text.as_bytes());
                Short(Held::Here { length, bytes })
            }
            _ => Short(Held::There(text.into())),
        }
    }
}

impl<const N: usize> Deref for Short<N> {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            // It was made of text.
            Held::Here { .. } => core::str::from_utf8(self.as_bytes()).unwrap_or_default(),
            Held::There(text) => text,
        }
    }
}

impl<const N: usize> Default for Short<N> {
    fn default() -> Short<N> {
        Short::EMPTY
    }
}

impl<const N: usize> fmt::Debug for Short<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<const N: usize> fmt::Display for Short<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString as _;

    #[test]
    fn text_comes_back_wherever_it_is() {
        for text in ["", "abc", "abcd", "abcde", "äö", "äöü", "\u{0}"] {
            let short = Short::<4>::from(text);
            assert_eq!((&*short, short.as_bytes()), (text, text.as_bytes()));
            assert_eq!(matches!(short.0, Held::Here { .. }), text.len() <= 4);
            assert_eq!(short.to_string(), text);
            assert_eq!(short, Short::from(text));
            assert_ne!(short, Short::from("abcdX"));
        }
        assert_ne!(Short::<4>::from("a"), Short::from("a\u{0}"));
        // A length that no byte holds.
        let long = "a".repeat(300);
        assert_eq!(*Short::<400>::from(long.as_str()), *long);
    }
}
