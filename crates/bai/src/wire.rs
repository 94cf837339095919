//! The composition root: builds a running system out of the crates below, bottom up, and takes it down in the opposite
//! order. Sockets are bound first and served last. One path for both: a server on one machine ([`StackOptions::embedded`])
//! and a manager of a cluster ([`StackOptions::cluster`]).

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bai_agent::{Agent, AgentOptions};
use bai_backplane::broker::Broker;
use bai_backplane::config::Config;
use bai_backplane::kv::Presence;
use bai_core::{Manager, ManagerOptions};
use bai_gateway::{GatewayOptions, ServeOptions};
use bai_model::AgentId;
use bai_model::random::Random;
use bai_model::time::Clock;
use bai_proto::event::{EventReceiver, ReceiverOptions};
use bai_proto::sandbox::Refusal;
use bai_proto::zmtp::{AllowList, Tls};
use bai_store::Store;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{AgentTls, HostPort, Loaded};
use crate::credentials::Credentials;
use crate::daemon::listen::listen;
use crate::seed::seed;
use crate::sessions::{self, RuntimeChoice, Sessions};
use crate::site::{Parts, Site};
use crate::system::{SystemClock, SystemRandom};

/// Events of an agent that may wait for the manager.
const EVENT_BACKLOG: usize = 1024;
/// How long a cluster believes that a manager lives which says nothing.
const REGISTRATION_TTL: Duration = Duration::from_secs(10);
/// An agent of the same process is silent only when the machine is stuck.
const EMBEDDED_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(30);
/// Agents speak every three seconds; whoever is not heard by then is not lost yet.
const LEAST_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(4);

/// What a system is made of.
#[derive(Debug)]
pub struct StackOptions {
    pub site: Site,
    /// How long services of the site may be absent at the start.
    pub patience: Duration,
    /// Where the API listens. Bound already, so that a taken address is known first.
    pub listener: TcpListener,
    pub serve: ServeOptions,
    pub registries: bai_registry::Options,
    /// What a database without accounts gets.
    pub accounts: FirstAccounts,
    /// Sessions run in this process too.
    pub agent: Option<LocalAgent>,
    /// How agents on other hosts are heard and called, if they are.
    pub agents: Option<RemoteAgents>,
    /// How long an agent may be silent before it is lost.
    pub heartbeat_timeout: Duration,
}

/// How agents on other hosts are heard and called.
#[derive(Clone, Debug)]
pub struct RemoteAgents {
    /// Where events are taken.
    pub listen: HostPort,
    /// Where agents are told to send them.
    pub advertise: HostPort,
    pub events: ReceiverOptions,
}

impl RemoteAgents {
    /// As `manager.toml` says.
    fn configured(loaded: &Loaded) -> Result<Self> {
        let (manager, bai) = (&loaded.config.manager, &loaded.config.bai);
        let tls = bai.agent_tls.as_ref().map(agent_tls).transpose()?;
        let listen = manager.event_listen_addr.clone();
        Ok(Self {
            advertise: bai.event_advertise_addr.clone().unwrap_or_else(|| listen.clone()),
            listen,
            events: ReceiverOptions {
                allow: AllowList::parse(&bai.event_peers).context("bai.event-peers")?,
                tls,
                check_sources: bai.check_event_sources,
                ..ReceiverOptions::default()
            },
        })
    }

    /// Begins to take events.
    async fn listen(self, manager: &Arc<Manager>, stop: CancellationToken) -> Result<JoinHandle<()>> {
        let context = || format!("cannot listen on {} (manager.event-listen-addr)", self.listen);
        let resolved = tokio::net::lookup_host((self.listen.host.as_str(), self.listen.port)).await;
        let address = resolved.with_context(context)?.next();
        let address = address.context("the name has no address").with_context(context)?;
        if address.ip().is_unspecified() && self.advertise == self.listen {
            tracing::warn!(
                "agents are told to send their events to {}, which leads nowhere from other hosts: set \
                 event-advertise-addr in [bai]",
                self.advertise
            );
        }
        let receiver = EventReceiver::bind(address, self.events).await;
        let receiver = receiver.with_context(context)?;
        let (events, received) = mpsc::channel(EVENT_BACKLOG);
        manager.hear_agents(received);
        Ok(tokio::spawn(receiver.run(events, stop)))
    }
}

fn agent_tls(files: &AgentTls) -> Result<Tls> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (authority, cert, key) = (read(&files.authority)?, read(&files.cert)?, read(&files.key)?);
    Tls::new(&authority, &cert, &key)
        .context("agent-tls-authority, agent-tls-cert and agent-tls-key in [bai]")
}

/// Whether a database without accounts gets some, with random keys.
#[derive(Clone, Debug)]
pub enum FirstAccounts {
    /// The operator makes them.
    None,
    /// Their keys are known to this process only.
    Ephemeral,
    /// Their keys are written below this directory.
    Kept(PathBuf),
}

/// The agent of this host.
#[derive(Clone, Debug)]
pub struct LocalAgent {
    /// Different for every host of a site: managers end what runs on an agent without being recorded for it.
    pub id: AgentId,
    /// Holds the sessions' files.
    pub data_dir: PathBuf,
    /// Sandboxes die with this process.
    pub ephemeral: bool,
    /// Only this image is wanted; others need not be looked for.
    pub only_image: Option<String>,
    /// What sessions are made of.
    pub runtime: RuntimeChoice,
    /// The engine's network for sessions that are containers; `None` is the engine's default.
    pub docker_network: Option<String>,
}

impl LocalAgent {
    fn scratch_root(&self) -> PathBuf {
        self.data_dir.join("scratch")
    }
}

/// What a server on one machine is asked for.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
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
    /// The engine's network for sessions that are containers; `None` is the engine's default.
    pub docker_network: Option<String>,
}

impl StackOptions {
    /// A server on one machine: everything in one directory, or nowhere.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn embedded(options: EmbeddedOptions) -> Result<Self> {
        if !options.allow_process_runtime {
            refuse_strangers(options.listen, "pass --allow-process-runtime")?;
        }
        let listener = TcpListener::bind(options.listen);
        let listener = listener.with_context(|| format!("cannot listen on {}", options.listen))?;
        let (site, accounts) = if options.ephemeral {
            (Site::ephemeral(), FirstAccounts::Ephemeral)
        } else {
            let kept = FirstAccounts::Kept(options.data_dir.clone());
            (Site::embedded(&options.data_dir), kept)
        };
        Ok(Self {
            site,
            patience: Duration::ZERO,
            listener,
            serve: ServeOptions::default(),
            registries: bai_registry::Options::default(),
            accounts,
            agent: Some(LocalAgent {
                id: AgentId("i-local".to_owned()),
                data_dir: options.data_dir,
                ephemeral: options.ephemeral,
                only_image: options.only_image,
                runtime: options.runtime,
                docker_network: options.docker_network,
            }),
            agents: None,
            heartbeat_timeout: EMBEDDED_HEARTBEAT_TIMEOUT,
        })
    }

    /// A manager of a cluster, or of a small site with a configuration file.
    ///
    /// # Errors
    /// When strangers could run programs here and nobody said that they may.
    pub fn cluster(
        loaded: &Loaded,
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Result<Self> {
        let config = &loaded.config;
        let data_dir = config.bai.data_dir.clone();
        let agent = match data_dir.clone().filter(|_| config.bai.local_agent) {
            None => None,
            Some(data_dir) => Some(LocalAgent {
                id: AgentId(node_id()?),
                data_dir,
                ephemeral: false,
                only_image: None,
                runtime: RuntimeChoice::Process,
                docker_network: None,
            }),
        };
        if agent.is_some() && !config.bai.allow_process_runtime {
            let remedy = "set allow-process-runtime = true in [bai]";
            refuse_strangers(listener.local_addr()?, remedy)?;
        }
        Ok(Self {
            site: Site::configured(loaded),
            patience: Duration::from_secs_f64(config.bai.start_timeout),
            listener,
            serve: ServeOptions {
                tls,
                drain: Duration::from_secs_f64(config.bai.drain_timeout),
            },
            registries: registries(loaded),
            accounts: data_dir.map_or(FirstAccounts::None, FirstAccounts::Kept),
            agent,
            agents: Some(RemoteAgents::configured(loaded)?),
            heartbeat_timeout: Duration::from_secs_f64(config.manager.heartbeat_timeout)
                .max(LEAST_HEARTBEAT_TIMEOUT),
        })
    }
}

/// How a configured site talks to image registries.
pub fn registries(loaded: &Loaded) -> bai_registry::Options {
    let mut options = bai_registry::Options::default();
    if !loaded.config.docker_registry.ssl_verify {
        options.trust = bai_registry::Trust::Anybody;
    }
    options
}

fn refuse_strangers(address: SocketAddr, remedy: &str) -> Result<()> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    bail!(
        "refusing to listen on {address}: sessions run as sandboxed processes, which do not protect this machine from \
         strangers. Listen on 127.0.0.1, or {remedy} if everybody who can reach the address may run programs here"
    )
}

/// A running system: manager and gateway, perhaps with an agent, in one process.
#[derive(Debug)]
pub struct Stack {
    /// Where the API listens, `http://127.0.0.1:8081`.
    pub endpoint: String,
    /// Made by this start, if the database was empty.
    pub new_credentials: Option<Credentials>,
    pub manager: Arc<Manager>,
    /// A sentence about what sessions are here.
    pub sessions: Option<String>,
    agent: Option<(Arc<Agent>, LocalAgent)>,
    registration: Option<Presence>,
    hearing: Option<JoinHandle<()>>,
    stopping: CancellationToken,
    server: JoinHandle<()>,
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
        let scheme = if options.serve.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let endpoint = format!("{scheme}://{}", options.listener.local_addr()?);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let random: Arc<dyn Random> = Arc::new(SystemRandom);

        let Parts {
            store,
            config,
            broker,
        } = options.site.open(options.patience, &clock).await?;
        let new_credentials =
            first_accounts(&store, &options.accounts, random.as_ref(), clock.as_ref()).await?;
        let manager = Manager::start(ManagerOptions {
            store,
            config: config.clone(),
            registries: options.registries,
            broker: Arc::clone(&broker),
            clock: Arc::clone(&clock),
            random: Arc::clone(&random),
            heartbeat_timeout: options.heartbeat_timeout,
            agent_tls: options
                .agents
                .as_ref()
                .and_then(|agents| agents.events.tls.clone()),
        })
        .await?;
        let (agent, sessions) = match options.agent {
            None => (None, None),
            Some(local) => {
                let started = start_agent(&manager, &local, broker, Arc::clone(&clock), Arc::clone(&random));
                let (agent, saying) = started.await?;
                (Some((agent, local)), Some(saying))
            }
        };

        let stopping = CancellationToken::new();
        let gateway = GatewayOptions {
            clock,
            random,
            stopping: stopping.clone(),
        };
        let router = bai_gateway::router(Arc::clone(&manager), gateway);
        let (registration, hearing) = match options.agents {
            None => (None, None),
            Some(agents) => {
                let advertise = agents.advertise.to_string();
                let hearing = agents.listen(&manager, stopping.clone()).await?;
                (Some(register(&config, &advertise).await?), Some(hearing))
            }
        };
        // Nothing is waited for from here on: whoever gets through is served by a stack that can be stopped.
        let listener = listen(options.listener).with_context(|| format!("cannot listen on {endpoint}"))?;
        let serving = bai_gateway::serve_with(listener, router, options.serve, stopping.clone());
        let server = tokio::spawn(serving);
        Ok(Self {
            endpoint,
            new_credentials,
            manager,
            sessions,
            agent,
            registration,
            hearing,
            stopping,
            server,
        })
    }

    /// Protections that this machine refuses to sessions, as far as those that were started have shown.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.agent
            .as_ref()
            .map(|(agent, _)| agent.refusals())
            .unwrap_or_default()
    }

    /// Stops serving, lets running requests end, and stops the rest. Sessions of a system with data on disk go on and
    /// are found again at the next start; those of an ephemeral one end.
    pub async fn stop(self) {
        self.stopping.cancel();
        if let Some(registration) = self.registration {
            registration.withdraw().await;
        }
        if let Err(error) = self.server.await {
            tracing::error!(%error, "the server ended badly");
        }
        if let Some(hearing) = self.hearing
            && let Err(error) = hearing.await
        {
            tracing::error!(%error, "hearing agents ended badly");
        }
        self.manager.shutdown().await;
        if let Some((agent, local)) = self.agent {
            agent.shutdown(local.ephemeral).await;
        }
    }
}

async fn first_accounts(
    store: &Store,
    accounts: &FirstAccounts,
    random: &dyn Random,
    clock: &dyn Clock,
) -> Result<Option<Credentials>> {
    if store.reader().count_users().await? > 0 {
        return Ok(None);
    }
    let kept = match accounts {
        FirstAccounts::None => {
            tracing::warn!(
                "the database has no users: load some with `bai fixture populate FILE`, or set data-dir in [bai], below \
                 which the next start writes the keys of new ones"
            );
            return Ok(None);
        }
        FirstAccounts::Ephemeral => None,
        FirstAccounts::Kept(data_dir) => Some(data_dir.as_path()),
    };
    let seeded = seed(store, random, clock.now(), kept).await;
    seeded.map(Some).context("cannot fill the new database")
}

async fn start_agent(
    manager: &Arc<Manager>,
    local: &LocalAgent,
    broker: Arc<dyn Broker>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
) -> Result<(Arc<Agent>, String)> {
    let (events, incoming) = mpsc::channel(EVENT_BACKLOG);
    let Sessions {
        runtime,
        images,
        saying,
        ..
    } = sessions::choose(&sessions::Wanted {
        data_dir: &local.data_dir,
        scratch_root: &local.scratch_root(),
        runtime: local.runtime,
        ephemeral: local.ephemeral,
        only_image: local.only_image.as_deref(),
        user: None,
        network: local.docker_network.as_deref(),
    })
    .await?;
    let id = local.id.clone();
    let mut options = AgentOptions::new(id.clone(), local.data_dir.clone(), runtime, clock, random, events);
    options.images = images;
    options.publish = Some(broker);
    let agent = Agent::start(options).await.context("cannot start the agent")?;
    let rpc: Arc<dyn bai_proto::agent::AgentRpc> = agent.clone();
    manager.attach_agent(id, rpc, incoming);
    manager
        .wait_for_agent()
        .await
        .context("the agent did not register")?;
    Ok((agent, saying))
}

/// Tells agents that there is a manager, and where it wants their events (`http-api.md` 5.6).
async fn register(config: &Config, event_address: &str) -> Result<Presence> {
    let id = node_id()?;
    let pairs = [
        ("nodes/manager", id.as_str()),
        ("nodes/manager/event_addr", event_address),
    ];
    let registered = config.announce(&pairs, REGISTRATION_TTL).await;
    registered.context("cannot register with the configuration store")
}

/// What this host is called among the nodes of a site.
pub(crate) fn node_id() -> Result<String> {
    let host = nix::unistd::gethostname().context("this host has no name")?;
    Ok(format!("i-{}", host.to_string_lossy()))
}

pub(crate) fn unwritable(folder: &Path) -> String {
    format!(
        "cannot write below {}; choose another directory with --data-dir",
        folder.display()
    )
}
