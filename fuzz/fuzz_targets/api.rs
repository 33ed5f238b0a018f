//! All targets of the API in one program: the first byte of an input chooses which one gets the rest.

#![no_main]

#[path = "../../control-plane/api/tests/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((choice, input)) = bytes.split_first() {
        targets::ALL[usize::from(*choice) % targets::ALL.len()].1(input);
    }
});
