//! A part of a document that few documents have.

use alloc::boxed::Box;
use core::ops::{Deref, DerefMut};
use serde::{Deserialize, Serialize};

/// A `T` behind a pointer, and no memory where it says nothing: which is seen without reading it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Part<T>(Option<Box<T>>);

/// What may say nothing.
pub trait Silent: PartialEq + Sized + 'static {
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

impl<T: Silent + Default> DerefMut for Part<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}
