#![no_std]
//! Run-time core.
extern crate alloc;

pub mod json;
