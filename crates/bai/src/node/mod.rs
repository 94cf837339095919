//! An agent of a site, put together: what `bai agent` runs. The order is that of `agent-protocol.md` 7.2: the manager's
//! address, the site's settings, the sessions of before, calls, and only then the word that the agent is there.
//!
//! Invariants: a manager that has heard of the agent can call it; the first heartbeat goes before `instance_started`, on the
//! same connection; nothing but the start waits for the configuration store or the broker.

mod address;
mod claim;
mod devices;
mod events;
mod manager;
mod region;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bai_agent::{Agent, AgentOptions, Identity};
use bai_backplane::config::{Config, Scope};
use bai_model::AgentId;
use bai_model::random::Random;
use bai_model::time::Clock;
use bai_proto::agent::AgentRpc;
use bai_proto::event::EventSender;
use bai_proto::rpc::{RpcServer, ServerOptions};
use bai_proto::zmtp::{AllowList, Limits, LinkOptions, Tls};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::address::Address;
use self::claim::{Claim, note_status};
use crate::config::Loaded;
use crate::config::agent::{AgentConfig, TlsFiles};
use crate::daemon::account::prepare_folder;
use crate::daemon::lock::lock;
use crate::sessions::{self, RuntimeChoice, Sessions};
use crate::site;
use crate::system::{SystemClock, SystemRandom};
use crate::wire::node_id;

/// As often as agents of 19.06 (`agent-protocol.md` 3.2).
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Events that may wait to be passed on.
const BACKLOG: usize = 1024;
/// What comes on a connection for events: nothing but commands.
const LIMITS: Limits = Limits {
    frames: 8,
    bytes: 1 << 16,
};
/// Where folders of users are when the site does not say.
const MOUNT: &str = "/mnt";

/// A running agent of a site.
#[derive(Debug)]
pub struct Node {
    agent: Arc<Agent>,
    claim: Claim,
    site: Config,
    /// Cancelled to take no more calls.
    no_calls: CancellationToken,
    calls: JoinHandle<()>,
    /// Cancelled when the last event was told.
    last_event: CancellationToken,
    events: JoinHandle<()>,
    /// Tasks that only watch; they end with this.
    watching: CancellationToken,
    /// A sentence for whoever starts it.
    pub saying: String,
    _lock: fs::File,
}

impl Node {
    /// Starts the agent: waits for the configuration store and a manager, finds the sessions of before, and joins the site.
    /// `status` is told what is waited for.
    ///
    /// # Errors
    /// What cannot be had, with the setting that names it. Sessions of before go on.
    pub async fn start(loaded: &Loaded<AgentConfig>, status: impl Fn(&str)) -> Result<Self> {
        let config = &loaded.config;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let id = match &config.agent.id {
            Some(id) => id.clone(),
            None => node_id()?,
        };
        let lock = take_folders(config)?;
        status("waiting for the configuration store");
        let site = open_config(config, &clock).await?;
        let site = site.for_agent(&config.agent.scaling_group, &id);
        let address = address::find(&config.agent.rpc_listen_addr, &site).await?;
        let claim = Claim::take(
            &site,
            &id,
            &address.endpoint.to_string(),
            &config.bai.data_dir,
            random.as_ref(),
        )
        .await?;
        status("waiting for a manager");
        let manager = manager::find(&site).await;
        status("looking for sessions of before");
        note_status(&site, "starting").await?;
        let sessions = open_sessions(config, &address).await?;
        let saying = sessions.saying.clone();
        let (sink, told) = mpsc::channel(BACKLOG);
        let options = AgentOptions {
            events: sink,
            ..agent_options(
                config,
                &site,
                &id,
                &address,
                sessions,
                clock.clone(),
                random.clone(),
            )
            .await?
        };
        let agent = Agent::start(options).await.context("cannot start the agent")?;

        let tls = config.bai.tls.as_ref().map(read_tls).transpose()?;
        let (no_calls, last_event, watching) = (
            CancellationToken::new(),
            CancellationToken::new(),
            CancellationToken::new(),
        );
        let server = ServerOptions {
            allow: AllowList::parse(&config.bai.allow_managers).context("bai.allow-managers")?,
            tls: tls.clone(),
            ..ServerOptions::new(clock, Arc::clone(&random))
        };
        let rpc: Arc<dyn AgentRpc> = agent.clone();
        let server = RpcServer::bind(address.listen, rpc, server).await;
        let server =
            server.with_context(|| format!("cannot listen on {} (agent.rpc-listen-addr)", address.listen))?;
        let tasks = TaskTracker::new();
        let calls = tasks.spawn(server.run(no_calls.clone()));
        site.put_in(Scope::Node, "ip", &address.endpoint.host)
            .await
            .context("cannot note the agent's address in the configuration store")?;
        note_status(&site, "running").await?;

        let link = LinkOptions {
            limits: LIMITS,
            tls,
            random,
        };
        let sender = EventSender::connect(AgentId(id), manager.clone(), link.clone());
        let (current, followed) = watch::channel(manager);
        for watcher in [
            tokio::spawn(
                watching
                    .clone()
                    .run_until_cancelled_owned(manager::follow(site.clone(), current)),
            ),
            tokio::spawn(
                watching
                    .clone()
                    .run_until_cancelled_owned(claim.guard(site.clone())),
            ),
        ] {
            // They end with `watching`; there is nothing to wait for.
            drop(watcher);
        }
        // The first heartbeat waits in the channel since the agent's start.
        agent.tell_started().await;
        let events = tasks.spawn(events::forward(told, sender, followed, link, last_event.clone()));
        tracing::info!(agent.id = %agent.id(), "calls are taken at {}", address.endpoint);
        Ok(Self {
            agent,
            claim,
            site,
            no_calls,
            calls,
            last_event,
            events,
            watching,
            saying,
            _lock: lock,
        })
    }

    /// Leaves the site. Sessions end, or go on and are found again by the next agent (`agent-protocol.md` 7.3).
    pub async fn stop(self, destroy_sessions: bool) {
        self.no_calls.cancel();
        // A panic is in the log.
        _ = self.calls.await;
        self.agent.shutdown(destroy_sessions).await;
        self.last_event.cancel();
        _ = self.events.await;
        self.watching.cancel();
        if let Err(error) = note_status(&self.site, "terminated").await {
            tracing::debug!("{error:#}");
        }
        self.claim.release().await;
    }
}

/// Makes the agent's folders, and takes them for this process.
fn take_folders(config: &AgentConfig) -> Result<fs::File> {
    const HELD: &str = "an agent runs on this directory: stop it, or name another one with data-dir in [bai]";
    let (data_dir, scratch_root) = (&config.bai.data_dir, &config.container.scratch_root);
    for (folder, mode, setting) in [
        (data_dir, 0o711, "bai.data-dir"),
        (scratch_root, 0o711, "container.scratch-root"),
    ] {
        prepare_folder(folder, mode, None)
            .with_context(|| format!("cannot make {} ({setting})", folder.display()))?;
    }
    lock(data_dir, HELD)
}

/// Opens the site's configuration, once it is there.
///
/// # Errors
/// When it does not come in time, or makes no sense.
pub(crate) async fn open_config(config: &AgentConfig, clock: &Arc<dyn Clock>) -> Result<Config> {
    let store = config.bai.config_store.clone();
    let store = store.unwrap_or_else(|| site::etcd(&config.etcd));
    let patience = Duration::from_secs_f64(config.bai.start_timeout);
    site::open_config(&store, &config.etcd.namespace, patience, clock).await
}

async fn open_sessions(config: &AgentConfig, address: &Address) -> Result<Sessions> {
    let wanted = sessions::Wanted {
        data_dir: &config.bai.data_dir,
        scratch_root: &config.container.scratch_root,
        runtime: config.bai.runtime,
        ephemeral: false,
        only_image: None,
        user: config.container.user(),
        network: config.bai.network.as_deref(),
    };
    let sessions = sessions::choose(&wanted).await?;
    let is_reached = !address.listen.ip().is_loopback() || !address.ports.is_loopback();
    let is_open = is_reached && !config.bai.allow_process_runtime;
    if sessions.chosen == RuntimeChoice::Process && is_open {
        bail!(
            "refusing to serve managers at {}: sessions would be sandboxed processes, which do not protect this machine from \
             strangers. Install Docker, or set allow-process-runtime = true in [bai] if every user of the site may run \
             programs here",
            address.endpoint
        );
    }
    Ok(sessions)
}

async fn agent_options(
    config: &AgentConfig,
    site: &Config,
    id: &str,
    address: &Address,
    sessions: Sessions,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
) -> Result<AgentOptions> {
    let setting = async |key: &str| {
        let value = site.get(key).await;
        value.with_context(|| format!("cannot read {key} from the configuration store"))
    };
    let mount = setting("volumes/_mount").await?.filter(|path| !path.is_empty());
    let prefix = setting("volumes/_fsprefix").await?.unwrap_or_default();
    let broker = site::lazy_broker(config.bai.broker.as_ref(), site, &clock).await?;
    let (resources, gpus) = devices::find(config, sessions.chosen).await?;
    // Replaced by the caller, who has the other end.
    let (nowhere, _) = mpsc::channel(1);
    let data_dir = config.bai.data_dir.clone();
    let options = AgentOptions::new(
        AgentId(id.to_owned()),
        data_dir,
        sessions.runtime,
        clock,
        random,
        nowhere,
    );
    let kernel_host = config.container.kernel_host.clone();
    Ok(AgentOptions {
        identity: Identity {
            addr: address.endpoint.to_string(),
            region: region::find(config).await,
        },
        // Where managers reach sessions' ports is where they are opened, unless it is a name or not of this host.
        listen: address.ports,
        // Never empty, which a manager would take for an address.
        kernel_host: Some(kernel_host.unwrap_or_else(|| address.kernel_host())),
        allow: AllowList::parse(&config.bai.allow_managers).context("bai.allow-managers")?,
        scratch_root: config.container.scratch_root.clone(),
        memory_scratch: config.container.memory_scratch(),
        port_range: config.container.port_range.0.clone(),
        resources,
        gpus,
        mounts_root: mount.map_or_else(|| PathBuf::from(MOUNT), PathBuf::from),
        mount_prefix: prefix.trim_start_matches('/').to_owned(),
        images: sessions.images,
        publish: Some(broker),
        heartbeat_period: Some(HEARTBEAT),
        ..options
    })
}

fn read_tls(files: &TlsFiles) -> Result<Tls> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {} ([bai.tls])", path.display()));
    let (authority, certificate, key) = (
        read(&files.authority)?,
        read(&files.certificate)?,
        read(&files.key)?,
    );
    Tls::new(&authority, &certificate, &key).context("[bai.tls]")
}
