//! Ring 3: the API in process, by roles, a file for each resource.

mod accounts;
mod agents;
mod bad_input;
mod config;
mod edge;
mod lifecycle;
mod manager;
mod resource;
mod session;
mod stream;

use bai_model::{KernelId, KernelStatus};
use bai_testkit::{Api, Role};
use serde_json::{Value, json};

/// Creates a session of the cast's image.
pub async fn create(api: &Api, role: Role, name: &str) -> Value {
    let body = json!({ "lang": "python", "clientSessionToken": name });
    api.call(role, "POST", "/kernel/create", &body).await.view()
}

/// What every test of sessions ends with: counters equal sums, and nothing runs without an owner.
pub async fn assert_clean(api: &Api) {
    assert_eq!(
        api.store
            .reader()
            .check_accounting()
            .await
            .expect("an accounting"),
        []
    );
    let live = api
        .store
        .reader()
        .count_live_sessions_total()
        .await
        .expect("a count");
    assert_eq!(
        live,
        i64::try_from(api.agent.kernels().len()).expect("a small number")
    );
}

/// Waits until a kernel's record is in this state.
pub async fn until(api: &Api, kernel: KernelId, status: KernelStatus) {
    let reached = async {
        loop {
            let row = api.store.reader().kernel(kernel).await.unwrap().unwrap();
            if row.status == Some(status) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let deadline = std::time::Duration::from_secs(30);
    tokio::time::timeout(deadline, reached)
        .await
        .unwrap_or_else(|_| panic!("kernel {kernel} never became {status}"));
}

/// Waits until something is so.
pub async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let reached = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    let deadline = std::time::Duration::from_secs(30);
    tokio::time::timeout(deadline, reached)
        .await
        .unwrap_or_else(|_| panic!("it never came to this: {what}"));
}

/// Waits until the agent was called.
pub async fn until_called(api: &Api, call: &str) {
    eventually(call, || api.agent.calls().iter().any(|made| made == call)).await;
}
