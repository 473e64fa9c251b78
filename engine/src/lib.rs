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
//! Run-time core of every Tollgate gate.
extern crate alloc;

pub mod bundle;
pub mod bytes;
pub mod envelope;
pub mod identity;
pub mod journal;
pub mod json;
pub mod lease;
pub mod ledger;
pub mod meter;
pub mod price;
pub mod sse;
pub mod time;
