//! Numbers that look random and are the same on every machine.
#![allow(dead_code, reason = "each test program uses its part")]

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Another sequence for every seed.
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `limit`; 0 when there is none.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// One in `of`.
    pub(crate) fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    /// One of these.
    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// Bytes of any value.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_be_bytes()[0]).collect()
    }

    /// Damages `bytes` in one place or a few: drops, repeats, flips, overwrites, cuts, inserts one of `tokens`.
    pub(crate) fn mutate(&mut self, bytes: &mut Vec<u8>, tokens: &[&[u8]]) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len() + 1);
            let until = at + self.below(bytes.len() + 1 - at).min(32);
            match self.below(6) {
                0 => {
                    bytes.drain(at..until);
                }
                1 => bytes.truncate(at),
                2 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << (until % 8);
                    }
                }
                3 => {
                    let again = bytes[at..until].to_vec();
                    bytes.splice(at..at, again);
                }
                4 => {
                    let noise = self.bytes(until - at);
                    bytes.splice(at..until, noise);
                }
                _ => {
                    let token = self.pick(tokens).to_vec();
                    bytes.splice(at..at, token);
                }
            }
        }
    }
}
