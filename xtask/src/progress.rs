//! One line per thing that takes time, on standard error, so that standard output stays the result.

use std::fmt::Display;

/// Says what is being done, in cargo's own shape: a right-aligned verb, then the object.
pub fn say(verb: &str, what: impl Display) {
    eprintln!("{verb:>12} {what}");
}
