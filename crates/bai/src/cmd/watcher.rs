//! `bai watcher`: starts, stops and resets the agent of this host for whoever has the site's token
//! (`agent-protocol.md` 7.12). A process of its own, because it outlives the agent.
//!
//! Invariants: nothing is done without the token; the token that everybody knows does not open anything unless the
//! configuration says so; commands of the system are run without a shell.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bai_gateway::{ServeOptions, serve_with};
use bai_model::time::Clock;
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::agent::FileArgs;
use crate::config::Environment;
use crate::config::agent::{AgentConfig, Watcher};
use crate::daemon::end::End;
use crate::daemon::notify::Notifier;
use crate::daemon::tls::Certificate;
use crate::daemon::{listen, log};
use crate::node::open_config;
use crate::system::SystemClock;

const TOKEN_KEY: &str = "config/watcher/token";
/// What 19.06 takes when the site has no token.
const DEFAULT_TOKEN: &str = "insecure";
const TOKEN_HEADER: &str = "X-BackendAI-Watcher-Token";
/// How long a command of the system may take: stopping an agent ends its sessions.
const COMMAND: Duration = Duration::from_secs(150);
/// Between the answer to a shutdown and the shutdown.
const FAREWELL: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  bai watcher --config /etc/backend.ai/agent.toml
  curl -H \"X-BackendAI-Watcher-Token: $TOKEN\" http://127.0.0.1:6009/

GET / says how the agent's service is. POST /soft-reset reloads it, /hard-reset stops it, restarts Docker and starts it,
/shutdown stops it and powers the host off. The token is config/watcher/token in the configuration store.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    file: FileArgs,
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// When the configuration is not valid, there is no token, or the address cannot be listened on.
pub fn run(args: &Args, verbose: u8) -> Result<ExitCode> {
    let environment = Environment::of_process();
    let Some(loaded) = args.file.load(&environment)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let config = &loaded.config;
    let log = log::start(&config.logging, &config.debug, &environment, verbose)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start")?;
    let ended = runtime.block_on(watch(config, &Notifier::new(&environment)));
    if let Err(error) = &ended {
        tracing::error!("the watcher cannot run: {error:#}");
    }
    drop(log);
    ended.map(|()| ExitCode::SUCCESS)
}

async fn watch(config: &AgentConfig, notifier: &Notifier) -> Result<()> {
    let watcher = &config.watcher;
    let mut end = End::listen()?;
    let certificate = match (&watcher.ssl_cert, &watcher.ssl_key) {
        (Some(chain), Some(key)) if watcher.ssl_enabled => Some(Certificate::read(
            (chain, "watcher.ssl-cert"),
            (key, "watcher.ssl-key"),
        )?),
        _ => None,
    };
    let token = tokio::select! {
        token = find_token(config) => token?,
        _ = end.received() => return Ok(()),
    };
    let listener = listen::bind(&watcher.service_addr, "watcher.service-addr")?;
    let options = ServeOptions {
        tls: certificate.as_ref().map(Certificate::server).transpose()?,
        ..ServeOptions::default()
    };
    let stopping = CancellationToken::new();
    let service = Arc::new(Service {
        token,
        settings: watcher.clone(),
    });
    let serving = serve_with(
        listen::listen(listener)?,
        router(service),
        options,
        stopping.clone(),
    );
    let serving = tokio::spawn(serving);
    tracing::info!(
        service = watcher.target_service,
        "watching at {}",
        watcher.service_addr
    );
    notifier.ready("watching");
    end.received().await;
    notifier.stopping();
    stopping.cancel();
    serving.await.context("the watcher failed")?;
    Ok(())
}

/// The site's token, read once.
async fn find_token(config: &AgentConfig) -> Result<String> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let site = open_config(config, &clock).await?;
    let token = site.get(TOKEN_KEY).await;
    let token = token.with_context(|| format!("cannot read {TOKEN_KEY} from the configuration store"))?;
    let token = token.filter(|token| !token.is_empty());
    match token {
        Some(token) if token != DEFAULT_TOKEN => Ok(token),
        _ if config.watcher.allow_default_token => Ok(DEFAULT_TOKEN.to_owned()),
        _ => bail!(
            "the site has no token for its watchers but the one that everybody knows: set one with `bai etcd put \
             {TOKEN_KEY} \"$(openssl rand -hex 32)\"`, or allow-default-token = true in [watcher] if everybody who reaches \
             {} may power this host off",
            config.watcher.service_addr
        ),
    }
}

#[derive(Debug)]
struct Service {
    token: String,
    settings: Watcher,
}

fn router(service: Arc<Service>) -> Router {
    let mut routes = Router::new()
        .route("/", get(status))
        .route("/hard-reset", post(hard_reset))
        .route("/shutdown", post(shutdown));
    if service.settings.soft_reset_available {
        routes = routes.route("/soft-reset", post(soft_reset));
    }
    routes
        .layer(middleware::from_fn_with_state(Arc::clone(&service), admit))
        .with_state(service)
}

/// Lets those in who have the token.
async fn admit(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(TOKEN_HEADER)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let mut response = if bool::from(given.ct_eq(service.token.as_bytes())) {
        next.run(request).await
    } else {
        tracing::warn!("a request without the token was refused");
        let body =
            json!({ "error": format!("the header {TOKEN_HEADER} must be the site's token, {TOKEN_KEY}") });
        (StatusCode::FORBIDDEN, Json(body)).into_response()
    };
    let server = HeaderValue::from_static("BackendAI-AgentWatcher");
    response.headers_mut().insert(header::SERVER, server);
    response
}

async fn status(State(service): State<Arc<Service>>) -> Json<Value> {
    // Its exit code says the same as its word.
    let (word, _) = command("systemctl", &["is-active", &service.settings.target_service]).await;
    Json(json!({ "agent-status": word, "watcher-status": "active" }))
}

async fn soft_reset(State(service): State<Arc<Service>>) -> Response {
    all(&[("systemctl", &["reload", &service.settings.target_service])]).await
}

async fn hard_reset(State(service): State<Arc<Service>>) -> Response {
    let target = service.settings.target_service.as_str();
    all(&[
        ("systemctl", &["stop", target]),
        ("systemctl", &["restart", "docker.service"]),
        ("systemctl", &["start", target]),
    ])
    .await
}

async fn shutdown(State(service): State<Arc<Service>>) -> Response {
    let stopped = all(&[("systemctl", &["stop", &service.settings.target_service])]).await;
    // Detached: it ends with this host.
    drop(tokio::spawn(async {
        tokio::time::sleep(FAREWELL).await;
        command("shutdown", &["-h", "now"]).await;
    }));
    stopped
}

/// Runs commands one after the other to the end, also when one fails: a host that is being reset is in no good order.
async fn all(commands: &[(&str, &[&str])]) -> Response {
    let mut failure = None;
    for (program, arguments) in commands {
        let (said, succeeded) = command(program, arguments).await;
        if !succeeded {
            tracing::error!(said, "{program} {} failed", arguments.join(" "));
            failure.get_or_insert_with(|| format!("{program} {}: {said}", arguments.join(" ")));
        }
    }
    match failure {
        None => Json(json!({ "result": "ok" })).into_response(),
        Some(failure) => {
            let body = Json(json!({ "result": "failed", "error": failure }));
            (StatusCode::INTERNAL_SERVER_ERROR, body).into_response()
        }
    }
}

/// What a command says, and whether it succeeded.
async fn command(program: &str, arguments: &[&str]) -> (String, bool) {
    let running = Command::new(program).args(arguments).kill_on_drop(true).output();
    match tokio::time::timeout(COMMAND, running).await {
        Ok(Ok(output)) => {
            let (stdout, stderr) = (
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
            let said = if stdout.trim().is_empty() { stderr } else { stdout };
            (said.trim().to_owned(), output.status.success())
        }
        Ok(Err(error)) => (error.to_string(), false),
        Err(_) => ("it took too long".to_owned(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostPort;

    async fn ask(soft_reset: bool, method: &str, path: &str, token: Option<&str>) -> (StatusCode, String) {
        let settings = Watcher {
            service_addr: HostPort {
                host: "127.0.0.1".to_owned(),
                port: 6009,
            },
            ssl_enabled: false,
            ssl_cert: None,
            ssl_key: None,
            target_service: "no-such-unit.service".to_owned(),
            soft_reset_available: soft_reset,
            allow_default_token: false,
        };
        let token_of_site = "a-secret".to_owned();
        let service = Arc::new(Service {
            token: token_of_site,
            settings,
        });
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(TOKEN_HEADER, token);
        }
        let request = request.body(axum::body::Body::empty()).expect("a request");
        let response = tower::ServiceExt::oneshot(router(service), request)
            .await
            .expect("an answer");
        let server = response.headers()[header::SERVER].clone();
        assert_eq!(server, "BackendAI-AgentWatcher");
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 16)
            .await
            .expect("a body");
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn nothing_is_done_without_the_token() {
        for token in [
            None,
            Some(""),
            Some("insecure"),
            Some("a-secre"),
            Some("a-secret-"),
        ] {
            for path in ["/", "/nowhere"] {
                let (status, body) = ask(true, "GET", path, token).await;
                assert_eq!(status, StatusCode::FORBIDDEN, "{path} {token:?}");
                assert!(body.contains(TOKEN_HEADER), "{body}");
            }
            assert_eq!(
                ask(true, "POST", "/shutdown", token).await.0,
                StatusCode::FORBIDDEN
            );
        }
    }

    #[tokio::test]
    async fn with_the_token_the_service_is_asked_about() {
        let (status, body) = ask(false, "GET", "/", Some("a-secret")).await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("\"watcher-status\":\"active\""), "{body}");
        let (status, _) = ask(false, "POST", "/soft-reset", Some("a-secret")).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "it is not available");
    }
}
