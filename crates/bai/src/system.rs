//! The real clock and the real randomness: the only places that read them.

use bai_model::random::Random;
use bai_model::time::Clock;
use chrono::{DateTime, Utc};
use rand::Rng;

/// The wall clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::from(std::time::SystemTime::now())
    }
}

/// A generator for secrets, one for each thread, seeded again and again by the operating system.
#[derive(Clone, Copy, Debug)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        rand::rng().fill_bytes(bytes);
    }
}
