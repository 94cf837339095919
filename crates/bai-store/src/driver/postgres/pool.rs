//! Connections: lent for a statement or a transaction, replaced when they break, refused at once while the database is
//! away.
//!
//! The library's pool tests a connection whenever it comes back and insists on connecting for as long as it may; this one
//! (`deadpool`) does neither. A restart of the database is noticed by the first statement that fails, and every idle
//! connection is closed then. While nothing can be reached, one caller at a time tries again, after 100 ms and up to 2 s
//! apart; the others are told at once.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{
    self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult, TimeoutType,
};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::time::{Instant, timeout};

use super::failure::{self, Failure};
use super::{connect_options, place};
use crate::store::StoreOptions;
use crate::{Error, Result};

/// A connection that was idle for longer is asked whether it lives: firewalls forget silent ones.
const IDLE: Duration = Duration::from_secs(60);
/// A connection that is older is replaced, so that it does not hold on to an old server or to memory.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// Between attempts to reach a database that is away.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// What the server gets beyond `statement_timeout` to tell that it has run out.
const GRACE: Duration = Duration::from_secs(2);

/// Makes connections for the pool.
struct Connector(PgConnectOptions);

impl managed::Manager for Connector {
    type Type = PgConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<PgConnection, sqlx::Error> {
        self.0.connect().await
    }

    async fn recycle(&self, connection: &mut PgConnection, metrics: &Metrics) -> RecycleResult<sqlx::Error> {
        if metrics.age() > LIFETIME {
            return Err(RecycleError::message("old"));
        }
        if metrics.last_used() > IDLE {
            connection.ping().await?;
        }
        Ok(())
    }
}

/// The connections to one database. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

struct Shared {
    idle: managed::Pool<Connector>,
    connect: PgConnectOptions,
    place: String,
    options: StoreOptions,
    outage: Mutex<Option<Outage>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.0.place).finish()
    }
}

/// The database cannot be reached.
struct Outage {
    reason: String,
    attempts: u32,
    /// Until then nobody tries.
    next_attempt: Instant,
}

impl Pool {
    /// Connects once, so that a wrong address is told at once.
    pub(in crate::driver) async fn open(uri: &str, options: &StoreOptions) -> Result<Self> {
        let connect = connect_options(uri, options)?;
        let idle = managed::Pool::builder(Connector(connect.clone()))
            .max_size(options.connections)
            // The one that was used last has its statements prepared.
            .queue_mode(QueueMode::Lifo)
            .wait_timeout(Some(options.connect_deadline))
            .create_timeout(Some(options.connect_deadline))
            .recycle_timeout(Some(options.connect_deadline))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| Error::Database(error.into()))?;
        let pool = Self(Arc::new(Shared {
            idle,
            place: place(&connect, &options.setting),
            connect,
            options: options.clone(),
            outage: Mutex::new(None),
        }));
        let first = pool.0.idle.get().await;
        if let Err(PoolError::Backend(error)) = &first
            && let Failure::Refused(reason) = failure::of_connecting(error)
        {
            return Err(Error::Address {
                uri: pool.0.place.clone(),
                reason,
            });
        }
        pool.lend(first)?;
        Ok(pool)
    }

    /// A connection that is nobody else's.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the database is away, does not want us, or all connections are busy.
    pub(super) async fn get(&self) -> Result<Connection> {
        self.admit()?;
        let result = self.0.idle.get().await;
        self.lend(result)
    }

    fn lend(&self, result: Result<Object<Connector>, PoolError<sqlx::Error>>) -> Result<Connection> {
        let error = match result {
            Ok(object) => {
                self.is_back();
                return Ok(Connection::new(self.clone(), object));
            }
            Err(error) => error,
        };
        let place = &self.0.place;
        match error {
            PoolError::Backend(error) => match failure::of_connecting(&error) {
                Failure::Refused(reason) => Err(Error::Unavailable(format!("{place}: {reason}").into())),
                Failure::Lost => Err(self.is_away(error.to_string())),
                Failure::Other => Err(Error::Unavailable(format!("{place}: {error}").into())),
            },
            PoolError::Timeout(TimeoutType::Wait) => Err(Error::Unavailable(
                format!(
                    "all {} connections to {place} have been busy for {:?}; raise the number of connections",
                    self.0.options.connections, self.0.options.connect_deadline
                )
                .into(),
            )),
            PoolError::Timeout(_) => {
                Err(self.is_away(format!("no answer within {:?}", self.0.options.connect_deadline)))
            }
            closed => Err(Error::Database(format!("{place}: {closed}").into())),
        }
    }

    /// Closes what is idle now, and the rest when it comes back.
    pub(in crate::driver) fn close(&self) {
        self.0.idle.close();
    }

    /// How to make a connection beside the pool.
    pub(super) fn connect_options(&self) -> &PgConnectOptions {
        &self.0.connect
    }

    pub(super) fn place(&self) -> &str {
        &self.0.place
    }

    /// Refuses at once while the database is away, but for the one caller that may try now.
    fn admit(&self) -> Result<()> {
        let mut outage = self.0.outage.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(outage) = outage.as_mut() else {
            return Ok(());
        };
        let now = Instant::now();
        if now < outage.next_attempt {
            return Err(Error::Unavailable(outage.reason.clone().into()));
        }
        // Nobody else needs to wait for this attempt.
        outage.next_attempt = now + self.0.options.connect_deadline;
        Ok(())
    }

    fn is_back(&self) {
        let outage = self
            .0
            .outage
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if outage.is_some() {
            tracing::info!(database = self.0.place, "the database is back");
        }
    }

    fn is_away(&self, reason: String) -> Error {
        let reason = format!("{} cannot be reached: {reason}", self.0.place);
        let mut outage = self.0.outage.lock().unwrap_or_else(PoisonError::into_inner);
        if outage.is_none() {
            tracing::warn!(reason, "the database is away");
        }
        let attempts = outage.as_ref().map_or(0, |outage| outage.attempts);
        let pause = FIRST_PAUSE
            .saturating_mul(1 << attempts.min(8))
            .min(LONGEST_PAUSE);
        *outage = Some(Outage {
            reason: reason.clone(),
            attempts: attempts + 1,
            next_attempt: Instant::now() + pause,
        });
        Error::Unavailable(reason.into())
    }

    /// Closes every idle connection: the one that just broke is hardly alone.
    fn drain(&self) {
        self.0.idle.retain(|_, _| false);
    }
}

/// A connection lent by the pool. It goes back when dropped, unless it is broken.
pub(super) struct Connection {
    pool: Pool,
    /// Gone once it is closed.
    object: Option<Object<Connector>>,
    /// Whether an answer is outstanding or the connection failed.
    is_broken: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("is_broken", &self.is_broken)
            .finish_non_exhaustive()
    }
}

impl Connection {
    fn new(pool: Pool, object: Object<Connector>) -> Self {
        Self {
            pool,
            object: Some(object),
            is_broken: false,
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Whether it was made for this use: then there is no point in trying another one.
    pub(super) fn is_new(&self) -> bool {
        self.object
            .as_ref()
            .is_none_or(|object| Object::metrics(object).recycle_count == 0)
    }

    /// Does something with the connection before its deadline. A connection whose work was given up, by the deadline or
    /// because the caller went away, is closed.
    pub(super) async fn within<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T> {
        let Some(object) = self.object.as_mut().filter(|_| !self.is_broken) else {
            return Err(Error::Unavailable(
                format!("the connection to {} broke", self.pool.0.place).into(),
            ));
        };
        self.is_broken = true;
        let deadline = self.pool.0.options.statement_timeout + GRACE;
        match timeout(deadline, work(object)).await {
            Ok(Ok(done)) => {
                self.is_broken = false;
                Ok(done)
            }
            Ok(Err(error)) => {
                self.is_broken = failure::is_loss(&error);
                if self.is_broken {
                    self.pool.drain();
                }
                Err(failure::classify(error, &self.pool.0.place))
            }
            Err(_) => {
                self.pool.drain();
                Err(Error::Unavailable(
                    format!("{} did not answer within {deadline:?}", self.pool.0.place).into(),
                ))
            }
        }
    }

    /// Closes the connection instead of giving it back.
    pub(super) fn close(mut self) {
        self.is_broken = true;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.is_broken
            && let Some(object) = self.object.take()
        {
            drop(Object::take(object));
        }
    }
}
