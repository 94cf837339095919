//! One binary of integration tests: [`api`] in process with a scripted agent, [`blackbox`] with the executable that users
//! start, [`recordings`] against what the original answered, [`coverage`] over all routes, [`routes`] for the generated page.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod api;
mod blackbox;
mod coverage;
mod recordings;
mod routes;
