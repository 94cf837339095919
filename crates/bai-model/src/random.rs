//! Randomness as an argument: the operating system's generator in a server, a seeded one in tests.

/// A source of random bytes. Implementations used for credentials must be cryptographic.
pub trait Random: Send + Sync + std::fmt::Debug {
    fn fill(&self, bytes: &mut [u8]);
}
