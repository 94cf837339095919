//! The composition root: builds a running system out of the crates below, bottom up, and takes it down in the opposite
//! order. Sockets are bound first and served last.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bai_agent::{Agent, AgentOptions};
use bai_backplane::config::Config;
use bai_backplane::{broker, kv};
use bai_core::{Manager, ManagerOptions};
use bai_gateway::GatewayOptions;
use bai_model::AgentId;
use bai_model::random::Random;
use bai_model::time::Clock;
use bai_proto::sandbox::Refusal;
use bai_store::Store;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::credentials::Credentials;
use crate::seed::seed;
use crate::sessions::{self, RuntimeChoice, Sessions};
use crate::system::{SystemClock, SystemRandom};

/// Namespace of the configuration store's keys.
const NAMESPACE: &str = "local";
/// The embedded configuration store, in the data directory.
const CONFIG_FILE: &str = "config.db";
/// Events of an agent that may wait for the manager.
const EVENT_BACKLOG: usize = 1024;

/// What a system on one machine is made of.
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// Holds the sessions' files and, unless `ephemeral`, the databases.
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    /// Nothing is kept and sandboxes die with this process.
    pub ephemeral: bool,
    /// Only this image is wanted; others need not be looked for.
    pub only_image: Option<String>,
    /// Serve on an address that other hosts reach although sessions are only sandboxed processes.
    pub allow_process_runtime: bool,
    /// What sessions are made of.
    pub runtime: RuntimeChoice,
}

/// A running system: manager, gateway and an agent in one process.
#[derive(Debug)]
pub struct Stack {
    /// Where the API listens, `http://127.0.0.1:8081`.
    pub endpoint: String,
    /// Made by this start, if the database was empty.
    pub new_credentials: Option<Credentials>,
    pub manager: Arc<Manager>,
    /// A sentence about what sessions are here.
    pub sessions: String,
    agent: Arc<Agent>,
    stopping: CancellationToken,
    server: JoinHandle<()>,
    ephemeral: bool,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Stack {
    /// Starts everything. When it returns, the API answers.
    ///
    /// # Errors
    /// With a sentence that names the part that would not start and what to do.
    pub async fn start(options: StackOptions) -> Result<Self> {
        if !options.listen.ip().is_loopback() && !options.allow_process_runtime {
            bail!(
                "refusing to listen on {}: sessions run as sandboxed processes, which do not protect this machine from \
                 strangers. Listen on 127.0.0.1, or pass --allow-process-runtime if everybody who can reach the \
                 address may run programs here",
                options.listen
            );
        }
        let listener = TcpListener::bind(options.listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {}", options.listen))?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let random: Arc<dyn Random> = Arc::new(SystemRandom);

        let (database, config_uri) = backends(&options);
        let store = Store::open(&database)
            .await
            .with_context(|| format!("cannot open the database {database}"))?;
        let new_credentials = if store.reader().count_users().await? == 0 {
            let kept = (!options.ephemeral).then_some(options.data_dir.as_path());
            Some(
                seed(&store, random.as_ref(), clock.now(), kept)
                    .await
                    .context("cannot fill the new database")?,
            )
        } else {
            None
        };
        let config = open_config(&config_uri, Arc::clone(&clock)).await?;
        let broker = broker::open("memory:", Arc::clone(&clock)).await?;
        let manager = Manager::start(ManagerOptions {
            store,
            config,
            registries: bai_registry::Options::default(),
            broker,
            clock: Arc::clone(&clock),
            random: Arc::clone(&random),
        })
        .await?;

        let (events, incoming) = mpsc::channel(EVENT_BACKLOG);
        let Sessions {
            runtime,
            images,
            saying: sessions,
        } = sessions::choose(&options).await?;
        let id = AgentId("i-local".to_owned());
        let mut agent_options = AgentOptions::new(
            id.clone(),
            options.data_dir.clone(),
            runtime,
            clock.clone(),
            random.clone(),
            events,
        );
        agent_options.images = images;
        let agent = Agent::start(agent_options)
            .await
            .context("cannot start the agent")?;
        let rpc: Arc<dyn bai_proto::agent::AgentRpc> = agent.clone();
        manager.attach_agent(id, rpc, incoming);
        manager
            .wait_for_agent()
            .await
            .context("the agent did not register")?;

        let stopping = CancellationToken::new();
        let gateway = GatewayOptions {
            clock,
            random,
            stopping: stopping.clone(),
        };
        let router = bai_gateway::router(Arc::clone(&manager), gateway);
        let server = tokio::spawn(bai_gateway::serve(listener, router, stopping.clone()));
        let ephemeral = options.ephemeral;
        Ok(Self {
            endpoint,
            new_credentials,
            manager,
            sessions,
            agent,
            stopping,
            server,
            ephemeral,
        })
    }

    /// Protections that this machine refuses to sessions, as far as those that were started have shown.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.agent.refusals()
    }

    /// Stops serving, lets running requests end, and stops the rest. Sessions of a system with data on disk go on and
    /// are found again at the next start; those of an ephemeral one end.
    pub async fn stop(self) {
        self.stopping.cancel();
        if let Err(error) = self.server.await {
            tracing::error!(%error, "the server ended badly");
        }
        self.manager.shutdown().await;
        self.agent.shutdown(self.ephemeral).await;
    }
}

/// The configuration of the server whose data is in `data_dir`, while that server does not run: the file belongs to one
/// process at a time.
///
/// # Errors
/// When no server ever ran there, or the file cannot be opened.
pub async fn open_embedded_config(data_dir: &Path) -> Result<Config> {
    let file = data_dir.join(CONFIG_FILE);
    if !file.exists() {
        bail!(
            "{} has no configuration store; start a server there with `bai up`, or name another directory with --data-dir",
            data_dir.display()
        );
    }
    open_config(&format!("embedded://{}", file.display()), Arc::new(SystemClock)).await
}

async fn open_config(uri: &str, clock: Arc<dyn Clock>) -> Result<Config> {
    let kv = kv::open(uri, clock).await;
    let kv = kv.with_context(|| format!("cannot open the configuration store {uri}"))?;
    Ok(Config::new(kv, NAMESPACE))
}

/// The addresses of the databases.
fn backends(options: &StackOptions) -> (String, String) {
    if options.ephemeral {
        return ("sqlite::memory:".to_owned(), "memory:".to_owned());
    }
    let file = |name: &str| options.data_dir.join(name).display().to_string();
    (
        format!("sqlite://{}", file("bai.db")),
        format!("embedded://{}", file(CONFIG_FILE)),
    )
}

pub(crate) fn unwritable(folder: &Path) -> String {
    format!(
        "cannot write below {}; choose another directory with --data-dir",
        folder.display()
    )
}
