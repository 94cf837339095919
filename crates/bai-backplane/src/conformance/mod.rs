//! What every implementation of [`ConfigKv`](crate::kv::ConfigKv) and [`Broker`](crate::broker::Broker) must do, as
//! generic cases (feature `conformance`). A test file stamps all of them for one implementation with
//! [`kv_conformance!`](crate::kv_conformance) or [`broker_conformance!`](crate::broker_conformance).
//!
//! Invariants: cases know only the traits, and pass time through a [`Passage`], so that services with a clock of their own
//! can join; each case keeps to its own names; nothing sleeps: what must come is waited for, with a limit.
//!
//! Not here: what only one implementation does (files, crashes); that is in the tests beside it.

pub mod broker;
pub mod kv;
pub mod lease;

use std::any::Any;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bai_model::time::Clock;
use chrono::{DateTime, TimeDelta, Utc};

/// How long a case waits for something that must happen.
const LIMIT: Duration = Duration::from_secs(20);

/// Lets time go by for an implementation: moves the clock that it was given, or waits where it has its own.
#[async_trait]
pub trait Passage: Send + Sync {
    async fn pass(&self, time: Duration);
}

/// A clock that moves by hand only.
#[derive(Debug)]
pub struct ManualClock(Mutex<DateTime<Utc>>);

impl ManualClock {
    /// A clock that stands in July 2019.
    pub fn new() -> Self {
        Self(Mutex::new(
            DateTime::UNIX_EPOCH + TimeDelta::seconds(1_563_206_400),
        ))
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Passage for ManualClock {
    async fn pass(&self, time: Duration) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now += TimeDelta::from_std(time).expect("a time span that fits");
    }
}

/// What a case works on.
pub struct Subject<T: ?Sized> {
    pub it: Arc<T>,
    pub time: Arc<dyn Passage>,
    /// Whatever must live as long: a folder, a server.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// Waits for what must happen.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {LIMIT:?} in vain for {what}"),
    }
}

/// Stamps one test per case; `$setup` is an async function without arguments that gives a [`Subject`], or `None` when it
/// has said why there cannot be one here.
#[doc(hidden)]
#[macro_export]
macro_rules! stamp_cases {
    ($suite:ident, $setup:path: $($case:ident)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let subject: Option<$crate::conformance::Subject<_>> = $setup().await.into();
            if let Some(subject) = subject {
                $crate::conformance::$suite::$case(&subject).await;
            }
        }
    )* };
}
