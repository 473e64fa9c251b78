#![no_main]

#[path = "../calls.rs"]
mod calls;
#[path = "../../tests/issuer/mod.rs"]
mod issuer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    calls::in_order(data);
    calls::out_of_order(data);
});
