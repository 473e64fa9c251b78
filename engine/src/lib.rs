#![no_std]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]
//! Run-time core of every Tollgate gate: pure, sans-IO, the same on every host.
//!
//! A host drives it and it never calls back: no clock, no randomness, no network, no log. Time and entropy are arguments.
//!
//! - One [`gate::Gate`] per instance holds the verified bundle.
//! - One [`exchange::Exchange`] per call turns headers and bytes into [`exchange::Step`]s that the host carries out.
//! - [`ledger::Op`]s change cells; the host applies each in one atomic swap of its own store.
//! - [`upkeep::Upkeep`] names the errands between calls; the host runs them as HTTP requests and hands the answers back.
//!
//! So a host is four small things: bytes in, steps out, a swap, an HTTP client.
extern crate alloc;

pub mod address;
pub mod approval;
pub mod automaton;
pub mod bundle;
pub mod bytes;
pub mod condition;
pub mod decide;
pub mod envelope;
pub mod exchange;
pub mod facts;
pub mod gate;
pub mod halt;
pub mod identity;
pub mod journal;
pub mod json;
pub mod lease;
pub mod ledger;
pub mod meter;
mod passage;
pub mod price;
mod quota;
pub mod redact;
pub mod reply;
mod rpc;
pub mod scan;
pub mod shelf;
mod sift;
pub mod sorted;
pub mod sse;
pub mod time;
pub mod upkeep;
