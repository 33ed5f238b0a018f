//! Tests of the pure cores.

mod desired;
mod endpoints;
mod maglev;
mod ranges;
mod services;
mod slots;
mod table;

/// xorshift64: every run draws the same.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
