//! The real clock and the real randomness: the only places that read them.

use bai_model::random::Random;
use bai_model::time::Clock;
use chrono::{DateTime, Utc};
use rand::TryRng;

/// The wall clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::from(std::time::SystemTime::now())
    }
}

/// The operating system's generator.
#[derive(Clone, Copy, Debug)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        // Without randomness there are no secrets; going on would be worse than stopping.
        rand::rngs::SysRng
            .try_fill_bytes(bytes)
            .expect("the operating system gives no random bytes");
    }
}
