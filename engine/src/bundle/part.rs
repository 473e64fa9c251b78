//! A part of a document that few documents have.

use alloc::boxed::Box;
use core::ops::{Deref, DerefMut};
use serde::{Deserialize, Serialize};

/// A `T` behind a pointer, and no memory where it says nothing: which is seen without reading it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Part<T>(Option<Box<T>>);

/// What may say nothing.
pub trait Silent: Clone + PartialEq + 'static {
    /// What says nothing.
    const SILENT: &'static Self;
}

impl<T> Part<T> {
    /// Whether it is not there. One that is there may say nothing all the same.
    pub fn is_absent(&self) -> bool {
        self.0.is_none()
    }
}

impl<T: Silent> From<T> for Part<T> {
    fn from(part: T) -> Part<T> {
        Part((part != *T::SILENT).then(|| Box::new(part)))
    }
}

impl<T: Silent> Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::SILENT)
    }
}

impl<T: Silent> DerefMut for Part<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_with(|| Box::new(T::SILENT.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Data, Names, Network, Tools};
    use super::*;

    fn says_nothing<T: Silent + Default + core::fmt::Debug>() {
        assert_eq!(T::default(), *T::SILENT);
        let mut part = Part::from(T::default());
        assert!(part.is_absent());
        assert_eq!(*part, T::default());
        // Whoever may change it has it, and what is read of it is the same.
        let _: &mut T = &mut part;
        assert!(!part.is_absent());
        assert_eq!(*part, T::default());
    }

    #[test]
    fn what_says_nothing_is_absent() {
        says_nothing::<Network>();
        says_nothing::<Names>();
        says_nothing::<Tools>();
        says_nothing::<Data>();
        let closed = Network {
            denied: true,
            ..Network::default()
        };
        let part = Part::from(closed.clone());
        assert!(!part.is_absent());
        assert_eq!(*part, closed);
    }
}
