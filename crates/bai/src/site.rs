//! The shared services of a site, its database, configuration store and broker: where they are, and how they are opened
//! by a server or by an administrator's command.
//!
//! Invariants: `Store::open_with`, `kv::open` and `broker::open` are called here and nowhere else in this crate; no other
//! code asks which kind of service it got; an address is printed without its password.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bai_backplane::broker::{self, Broker};
use bai_backplane::config::Config;
use bai_backplane::kv;
use bai_model::image_ref::quote;
use bai_model::time::Clock;
use bai_store::{Store, StoreOptions};
use tokio::time::{Instant, sleep, sleep_until};

use crate::cmd;
use crate::config::{self, Address, Db, Environment, Etcd, HostPort, Loaded, ManagerConfig};
use crate::daemon::account::prepare_folder;
use crate::daemon::lock::lock;
use crate::system::SystemClock;

/// Namespace of the embedded configuration store's keys.
const NAMESPACE: &str = "local";
/// The databases of a server on one machine, in its data directory.
const DATABASE_FILE: &str = "bai.db";
const CONFIG_FILE: &str = "config.db";
/// Between attempts to reach a service that is not there yet.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often the log says that a service is still waited for.
const REMINDER: Duration = Duration::from_secs(10);

/// Which services a site has.
#[derive(Clone, Debug)]
pub struct Site {
    database: Address,
    /// The setting that the database's address comes from.
    database_setting: String,
    config_store: Address,
    namespace: String,
    broker: BrokerPlace,
    /// The directory that holds the databases, when they belong to one server at a time.
    data_dir: Option<PathBuf>,
}

#[derive(Clone, Debug)]
enum BrokerPlace {
    At(Address),
    /// Where `config/redis/*` in the configuration store says (`http-api.md` 5.6).
    AsConfigured,
}

/// The services of a site, open.
#[derive(Debug)]
pub struct Parts {
    pub store: Store,
    pub config: Config,
    pub broker: Arc<dyn Broker>,
}

impl Site {
    /// One that forgets everything with its process.
    pub fn ephemeral() -> Self {
        Self::embedded_at("sqlite::memory:".to_owned(), "memory:".to_owned(), None)
    }

    /// One whose databases are files in `data_dir`.
    pub fn embedded(data_dir: &Path) -> Self {
        let file = |name: &str| data_dir.join(name).display().to_string();
        Self::embedded_at(
            format!("sqlite://{}", file(DATABASE_FILE)),
            format!("embedded://{}", file(CONFIG_FILE)),
            Some(data_dir.to_owned()),
        )
    }

    fn embedded_at(database: String, config_store: String, data_dir: Option<PathBuf>) -> Self {
        Self {
            database: Address::new(database),
            database_setting: "--data-dir".to_owned(),
            config_store: Address::new(config_store),
            namespace: NAMESPACE.to_owned(),
            broker: BrokerPlace::At(Address::new("memory:".to_owned())),
            data_dir,
        }
    }

    /// One at these addresses, without a configuration file.
    pub fn at(database: Address, config_store: Address, namespace: &str, broker: Option<Address>) -> Self {
        Self {
            database,
            database_setting: "--database".to_owned(),
            config_store,
            namespace: namespace.to_owned(),
            broker: broker.map_or(BrokerPlace::AsConfigured, BrokerPlace::At),
            data_dir: None,
        }
    }

    /// The one that a configuration file describes.
    pub fn configured(loaded: &Loaded) -> Self {
        let config = &loaded.config;
        let file = loaded.path.display();
        let (database, key) = match (&config.bai.database, &config.db) {
            (Some(address), _) => (address.clone(), "bai.database"),
            (None, Some(db)) => (postgres(db), "[db]"),
            (None, None) => unreachable!("a configuration without both is refused"),
        };
        let config_store = config.bai.config_store.clone();
        let broker = config.bai.broker.clone();
        Self {
            database,
            database_setting: format!("{key} in {file}"),
            config_store: config_store.unwrap_or_else(|| etcd(&config.etcd)),
            namespace: config.etcd.namespace.clone(),
            broker: broker.map_or(BrokerPlace::AsConfigured, BrokerPlace::At),
            data_dir: None,
        }
    }

    /// The database's address with its password.
    pub fn database(&self) -> &Address {
        &self.database
    }

    /// The setting that the database's address comes from.
    pub fn database_options(&self) -> StoreOptions {
        StoreOptions {
            setting: self.database_setting.clone(),
            ..StoreOptions::default()
        }
    }

    /// Opens all services, in the order of `http-api.md` 6.3, waiting up to `patience` for each that is not there yet.
    ///
    /// # Errors
    /// With the service and the setting that names it.
    pub async fn open(&self, patience: Duration, clock: &Arc<dyn Clock>) -> Result<Parts> {
        let config = self.open_config(patience, clock).await?;
        let store = self.open_store(patience).await?;
        let broker = self.open_broker(&config, patience, clock).await?;
        Ok(Parts {
            store,
            config,
            broker,
        })
    }

    /// Opens the configuration store alone.
    ///
    /// # Errors
    /// As [`Site::open`].
    pub async fn open_config(&self, patience: Duration, clock: &Arc<dyn Clock>) -> Result<Config> {
        open_config(&self.config_store, &self.namespace, patience, clock).await
    }

    /// Opens the database alone, and brings its schema up to date.
    ///
    /// # Errors
    /// As [`Site::open`].
    pub async fn open_store(&self, patience: Duration) -> Result<Store> {
        let what = format!("the database {}", self.database);
        let options = self.database_options();
        let open = async || Store::open_with(self.database.expose(), &options).await;
        patiently(&what, patience, bai_store::Error::is_retryable, open).await
    }

    /// Opens the broker alone, which `config` may name.
    ///
    /// # Errors
    /// As [`Site::open`].
    pub async fn open_broker(
        &self,
        config: &Config,
        patience: Duration,
        clock: &Arc<dyn Clock>,
    ) -> Result<Arc<dyn Broker>> {
        let address = match &self.broker {
            BrokerPlace::At(address) => address.clone(),
            BrokerPlace::AsConfigured => configured_broker(config).await?,
        };
        let what = format!("the broker {address}");
        patiently(&what, patience, bai_backplane::Error::is_retryable, async || {
            let broker = broker::open(address.expose(), Arc::clone(clock)).await?;
            broker.get("bai").await?;
            Ok(broker)
        })
        .await
    }

    /// Keeps a server from starting on the databases of one machine while a command uses them, and refuses where one runs.
    ///
    /// # Errors
    /// When a server runs on them, or never did.
    pub fn lock(&self) -> Result<Option<fs::File>> {
        const RUNNING: &str = "a server runs on this directory, and its databases belong to it: stop the server (its \
                               sessions go on), run this command again and start the server again; or name another \
                               directory with --data-dir";
        let Some(data_dir) = &self.data_dir else {
            return Ok(None);
        };
        if !data_dir.join(CONFIG_FILE).exists() {
            bail!(
                "{} has no configuration store; start a server there with `bai up`, name another directory with \
                 --data-dir, or a cluster's manager.toml with --config",
                data_dir.display()
            );
        }
        lock(data_dir, RUNNING).map(Some)
    }
}

/// Opens a configuration store, waiting up to `patience` for it.
///
/// # Errors
/// With its address.
pub async fn open_config(
    store: &Address,
    namespace: &str,
    patience: Duration,
    clock: &Arc<dyn Clock>,
) -> Result<Config> {
    let what = format!("the configuration store {store}");
    let kv = patiently(&what, patience, bai_backplane::Error::is_retryable, async || {
        let kv = kv::open(store.expose(), Arc::clone(clock)).await?;
        // Opening asks nobody; this does.
        kv.get(&format!("/sorna/{namespace}/manager/status")).await?;
        Ok(kv)
    });
    Ok(Config::new(kv.await?, namespace))
}

/// Opens the broker that `config` names, or the one at `given`, for a process that can do without it for a while: nobody
/// is asked whether it is there.
///
/// # Errors
/// When the address makes no sense, or the configuration store does not answer.
pub async fn lazy_broker(
    given: Option<&Address>,
    config: &Config,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<dyn Broker>> {
    let address = match given {
        Some(address) => address.clone(),
        None => configured_broker(config).await?,
    };
    let broker = broker::open(address.expose(), Arc::clone(clock)).await;
    broker.with_context(|| format!("cannot use the broker {address}"))
}

/// Which site an administrator's command is for.
#[derive(Clone, Debug, clap::Args)]
pub struct SiteArgs {
    /// The site of this manager.toml [default: as BACKEND_CONFIG_FILE says, or the first of ./manager.toml,
    /// ~/.config/backend.ai/manager.toml and /etc/backend.ai/manager.toml]
    #[arg(
        short = 'f',
        long,
        visible_alias = "config-path",
        value_name = "FILE",
        global = true,
        conflicts_with = "data_dir"
    )]
    config: Option<PathBuf>,
    /// The site of a server on this machine, which must not be running [default without a manager.toml: bai below the
    /// user's data folder]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
}

/// A site that a command is for, with what the configuration says beside.
#[derive(Debug)]
pub struct Chosen {
    pub site: Site,
    /// Of a site with a manager.toml.
    pub loaded: Option<Loaded>,
}

impl SiteArgs {
    /// Finds the site.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub fn choose(&self) -> Result<Chosen> {
        let environment = Environment::of_process();
        let is_configured = self.config.is_some() || config::locate::<ManagerConfig>(&environment).is_ok();
        if self.data_dir.is_some() || !is_configured {
            let data_dir = cmd::data_dir(self.data_dir.clone())?;
            return Ok(Chosen {
                site: Site::embedded(&data_dir),
                loaded: None,
            });
        }
        let loaded = config::load(self.config.as_deref(), &environment)?;
        Ok(Chosen {
            site: Site::configured(&loaded),
            loaded: Some(loaded),
        })
    }
}

impl Chosen {
    /// Opens the configuration store for a command. The second value is to be kept until the command ends.
    ///
    /// # Errors
    /// As [`Site::open_config`] and [`Site::lock`].
    pub async fn open_config(&self) -> Result<(Config, Option<fs::File>)> {
        let lock = self.site.lock()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Ok((self.site.open_config(Duration::ZERO, &clock).await?, lock))
    }

    /// Opens the database for a command, bringing its schema up to date.
    ///
    /// # Errors
    /// As [`Site::open_store`].
    pub async fn open_store(&self) -> Result<Store> {
        if let Some(data_dir) = &self.site.data_dir {
            prepare_folder(data_dir, 0o700, None)
                .with_context(|| format!("cannot make {}", data_dir.display()))?;
        }
        self.site.open_store(Duration::ZERO).await
    }
}

/// Tries until it works, it cannot work, or `patience` is at an end.
async fn patiently<T, E: Display>(
    what: &str,
    patience: Duration,
    is_retryable: impl Fn(&E) -> bool,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T> {
    let started = Instant::now();
    let deadline = started + patience;
    let mut pause = FIRST_PAUSE;
    let mut reminded: Option<Instant> = None;
    loop {
        let error = match attempt().await {
            Ok(opened) => {
                if reminded.is_some() {
                    tracing::info!("{what} is there now");
                }
                return Ok(opened);
            }
            Err(error) => error,
        };
        let now = Instant::now();
        if !is_retryable(&error) || now >= deadline {
            let waited = if reminded.is_some() {
                format!(" (waited {} s for it)", started.elapsed().as_secs())
            } else {
                String::new()
            };
            return Err(anyhow!("cannot use {what}: {error}{waited}"));
        }
        if reminded.is_none_or(|last| now.duration_since(last) >= REMINDER) {
            tracing::warn!(%error, "waiting for {what}");
            reminded = Some(now);
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = sleep_until(deadline) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn postgres(db: &Db) -> Address {
    Address::new(format!(
        "postgres://{}:{}@{}/{}",
        quote(&db.user),
        quote(db.password.expose()),
        db.addr,
        quote(&db.name)
    ))
}

/// The address of a configured etcd.
pub fn etcd(etcd: &Etcd) -> Address {
    let credentials = match etcd.user.as_str() {
        "" => String::new(),
        user => format!("{}:{}@", quote(user), quote(etcd.password.expose())),
    };
    Address::new(format!("etcd://{credentials}{}", etcd.addr))
}

/// Redis as 19.06 configures it.
async fn configured_broker(config: &Config) -> Result<Address> {
    let read = async |key: &str| {
        let value = config.get(key).await;
        value.with_context(|| format!("cannot read {key} from the configuration store"))
    };
    let address = read("config/redis/addr").await?;
    let address = address.unwrap_or_else(|| "127.0.0.1:6379".to_owned());
    let address = HostPort::parse(&address).with_context(|| {
        format!(
            "config/redis/addr is {address:?} in the configuration store, and not host:port: correct it with `bai etcd \
             put config/redis/addr HOST:PORT`"
        )
    })?;
    let password = read("config/redis/password").await?.unwrap_or_default();
    let credentials = match password.as_str() {
        "" => String::new(),
        password => format!(":{}@", quote(password)),
    };
    Ok(Address::new(format!("redis://{credentials}{address}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str) -> Loaded {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("manager.toml");
        fs::write(&path, text).expect("a file");
        config::load(Some(&path), &Environment::default()).expect("a valid configuration")
    }

    #[test]
    fn passwords_of_any_kind_reach_their_service_and_no_log() {
        let site = Site::configured(&loaded(
            "[etcd]\nnamespace = 'x'\naddr = '[::1]:2379'\nuser = 'a@b'\npassword = 'p/w:@'\n\
             [db]\naddr = 'db:5432'\nname = 'backend'\nuser = 'post gres'\npassword = 'p%?#'\n[manager]\n",
        ));
        assert_eq!(
            site.database.expose(),
            "postgres://post%20gres:p%25%3F%23@db:5432/backend"
        );
        assert_eq!(site.config_store.expose(), "etcd://a%40b:p%2Fw%3A%40@[::1]:2379");
        let shown = format!("{site:?}");
        assert!(!shown.contains("p%2F") && !shown.contains("p%25"), "{shown}");
    }

    #[tokio::test]
    async fn redis_is_where_the_configuration_store_says() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let site = Site::ephemeral();
        let config = site.open_config(Duration::ZERO, &clock).await.expect("memory");
        let address = configured_broker(&config).await.expect("the default");
        assert_eq!(address.expose(), "redis://127.0.0.1:6379");
        for (key, value) in [("addr", "redis:6380"), ("password", "p@ss")] {
            let key = format!("config/redis/{key}");
            config.put(&key, value).await.expect("a put");
        }
        let address = configured_broker(&config).await.expect("an address");
        assert_eq!(address.expose(), "redis://:p%40ss@redis:6380");
        config.put("config/redis/addr", "redis").await.expect("a put");
        let error = configured_broker(&config).await.expect_err("no port");
        assert!(
            error.to_string().contains("bai etcd put config/redis/addr"),
            "{error}"
        );
    }

    /// Time stands still but for waiting, which ends at once.
    #[tokio::test(start_paused = true)]
    async fn a_service_is_waited_for_until_the_deadline() {
        let started = Instant::now();
        let mut attempts = 0;
        let waited = patiently(
            "the database",
            Duration::from_secs(60),
            |_: &String| true,
            async || {
                attempts += 1;
                Err::<(), _>("it is not there (db.addr)".to_owned())
            },
        );
        let error = waited.await.expect_err("it never comes");
        assert_eq!(
            error.to_string(),
            "cannot use the database: it is not there (db.addr) (waited 60 s for it)"
        );
        assert_eq!(started.elapsed(), Duration::from_secs(60));
        assert!((30..40).contains(&attempts), "{attempts}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_comes_is_used_and_a_hopeless_one_is_not_waited_for() {
        let mut attempts = 0;
        let came = patiently(
            "etcd",
            Duration::from_secs(60),
            |_: &String| true,
            async || {
                attempts += 1;
                if attempts < 3 {
                    Err("away".to_owned())
                } else {
                    Ok(attempts)
                }
            },
        );
        assert_eq!(came.await.expect("it comes"), 3);
        let hopeless = patiently(
            "etcd",
            Duration::from_secs(60),
            |_: &String| false,
            async || Err::<(), _>("no such scheme".to_owned()),
        );
        let error = hopeless.await.expect_err("it is hopeless");
        assert_eq!(error.to_string(), "cannot use etcd: no such scheme");
    }
}
