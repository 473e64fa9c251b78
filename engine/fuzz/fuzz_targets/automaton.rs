#![no_main]

#[path = "../formats.rs"]
#[allow(dead_code)]
mod formats;
#[path = "../../tests/issuer/mod.rs"]
mod issuer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    formats::automaton(data);
});
