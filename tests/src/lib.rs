//! What the tests of the whole share. The product never links to it.

pub mod built;
pub mod clock;
pub mod component;
pub mod corpus;
mod scratch;
pub mod simulate;
pub mod spin_host;
pub mod trap;
pub mod whole;

pub use scratch::Scratch;
pub use tollgate_stand_in as stand_in;
pub use xtask::{envoy, http, process};
