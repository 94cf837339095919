//! Counting requests against limits, with the broker or without it.
//!
//! The limit is no lock on a door: whoever is counted has shown a signature. So the broker's absence stops nobody, and a
//! limit still holds: each manager counts for itself until the broker is back, and a keypair gets its limit at each of
//! them at most.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bai_backplane::broker::{Broker, Counters as _, MemoryBroker};
use bai_model::time::Clock;
use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::Result;

/// How long a request waits for the broker's count.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long the broker is left alone after it did not answer.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct RateCounter {
    broker: Arc<dyn Broker>,
    own: MemoryBroker,
    /// Until when the broker is not asked.
    away_until: Mutex<Option<Instant>>,
}

impl RateCounter {
    pub(crate) fn new(broker: Arc<dyn Broker>, clock: Arc<dyn Clock>) -> Self {
        Self {
            broker,
            own: MemoryBroker::new(clock),
            away_until: Mutex::new(None),
        }
    }

    /// Counts a request; says how many there were in the window that ends now.
    pub(crate) async fn hit(&self, key: &str, now: DateTime<Utc>, window: Duration) -> Result<u64> {
        let away_until = *self.away();
        if away_until.is_some_and(|until| Instant::now() < until) {
            return Ok(self.own.hit(key, now, window).await?);
        }
        let was_away = away_until.is_some();
        let why = match tokio::time::timeout(PATIENCE, self.broker.hit(key, now, window)).await {
            Ok(Ok(count)) => {
                if was_away {
                    tracing::info!("the broker counts requests again");
                    *self.away() = None;
                }
                return Ok(count);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        if !was_away {
            tracing::warn!(
                why,
                "the broker does not count requests; this manager counts them for itself"
            );
        }
        *self.away() = Some(Instant::now() + PAUSE);
        Ok(self.own.hit(key, now, window).await?)
    }

    fn away(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.away_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
