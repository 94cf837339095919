//! A registry whose every answer is written in the test.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::header::AUTHORIZATION;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Path and query.
    pub target: String,
    pub authorization: String,
    /// Requests for this target before this one.
    pub earlier: usize,
}

/// Stops when it is dropped.
#[derive(Debug)]
pub struct Server {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves `answer` on loopback. It is given the server's own URL too.
    pub async fn start<R: IntoResponse>(
        answer: impl Fn(&str, &Seen) -> R + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::<Seen>::new()));
        let (own, log) = (url.clone(), Arc::clone(&seen));
        let router = Router::new().fallback(move |request: Request| {
            let response = respond(&own, &log, &request, &answer);
            async move { response }
        });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, seen, task }
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests so far whose target starts with this.
    pub fn seen_at(&self, start: &str) -> Vec<Seen> {
        self.seen()
            .into_iter()
            .filter(|seen| seen.target.starts_with(start))
            .collect()
    }
}

fn respond<R: IntoResponse>(
    own: &str,
    log: &Mutex<Vec<Seen>>,
    request: &Request,
    answer: &impl Fn(&str, &Seen) -> R,
) -> Response {
    let target = request.uri().path_and_query().unwrap().to_string();
    let authorization = request.headers().get(AUTHORIZATION);
    let authorization = authorization.map_or(String::new(), |value| value.to_str().unwrap().to_owned());
    let mut log = log.lock().unwrap();
    let earlier = log.iter().filter(|seen| seen.target == target).count();
    let seen = Seen {
        target,
        authorization,
        earlier,
    };
    log.push(seen.clone());
    drop(log);
    answer(own, &seen).into_response()
}

/// A configuration blob with one label, and its digest.
pub fn config() -> (String, String) {
    let blob = json!({ "config": { "Labels": { "ai.backend.kernelspec": "1" } } }).to_string();
    let digest = digest(&blob);
    (blob, digest)
}

/// The manifest of an image with that configuration.
pub fn manifest(config_digest: &str) -> Value {
    json!({
        "schemaVersion": 2,
        "config": { "digest": config_digest, "size": 10 },
        "layers": [{ "digest": digest("a layer"), "size": 7 }],
    })
}

pub fn digest(content: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}
