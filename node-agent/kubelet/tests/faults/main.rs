//! Faults of all that a node leans on, and what the kubelet makes of them.
//!
//! `storms`: containerd that is slow, answers errors, loses answers, breaks connections, dies and comes back, by seeded
//! plans. `kills`: the agent killed at every step of a pod's start and stop. `bad_neighbours`: pods that do harm, a full
//! disk, a registry that hangs. `away`: the API gone, clocks that jump, many pods at once, on a runtime in memory.

#[path = "../common/mod.rs"]
mod common;

mod away;
mod bad_neighbours;
mod kills;
mod proxy;
mod storms;

/// Numbers that follow from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for index in (1..list.len()).rev() {
            list.swap(index, self.below(index as u64 + 1) as usize);
        }
    }
}
