//! Leases: which of several processes does the work that only one may do, such as timers.
//!
//! A lease is held until it expires or is released, and its token grows with each holder. A holder may be slow, its clock
//! wrong and its lease gone without its knowing; therefore every unit of work that it guards begins with [`Tx::fence`],
//! which fails when somebody else has the lease and keeps it from going to anybody until the unit of work ends.
//!
//! Time is an argument. Clocks that differ by more than the time to live make leases change hands too often, and nothing
//! worse.

use chrono::{DateTime, Utc};

use crate::driver::{Row, params};
use crate::{Error, Reader, Result, Tx};

/// A lease as its holder has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The work.
    pub name: String,
    /// The process that does it.
    pub holder: String,
    /// Which holder this is; every next one has a larger token.
    pub token: i64,
    /// Until when nobody else can have it.
    pub expires_at: DateTime<Utc>,
}

fn read(row: &Row) -> Result<Lease> {
    Ok(Lease {
        name: row.get("name")?,
        holder: row.get("holder")?,
        token: row.get("token")?,
        expires_at: row.get("expires_at")?,
    })
}

impl Reader {
    /// The lease as it was last held, expired or not.
    pub async fn lease(&self, name: &str) -> Result<Option<Lease>> {
        let sql = "SELECT name, holder, token, expires_at FROM bai_lease WHERE name = $1";
        self.first(sql, params![name], read).await
    }
}

impl Tx {
    /// Takes a lease that nobody has at the time `now`. `None` means that somebody has it, be it the same `holder`: that
    /// one renews. To be committed before the work begins.
    ///
    /// # Errors
    /// [`Error::Contention`].
    pub async fn acquire_lease(
        &mut self,
        name: &str,
        holder: &str,
        now: DateTime<Utc>,
        expires_at: DateTime<Utc>,
    ) -> Result<Option<Lease>> {
        let sql = "INSERT INTO bai_lease (name, holder, token, expires_at) VALUES ($1, $2, 1, $4) \
                   ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, token = bai_lease.token + 1, \
                   expires_at = excluded.expires_at WHERE bai_lease.expires_at <= $3 \
                   RETURNING name, holder, token, expires_at";
        self.first(sql, params![name, holder, now, expires_at], read)
            .await
    }

    /// Keeps a lease for longer. False means that it has gone to somebody else, and that the work must stop. One that has
    /// expired and that nobody took is kept.
    pub async fn renew_lease(&mut self, lease: &mut Lease, expires_at: DateTime<Utc>) -> Result<bool> {
        let sql = "UPDATE bai_lease SET expires_at = $3 WHERE name = $1 AND token = $2";
        let params = params![&lease.name, lease.token, expires_at];
        let is_held = self.execute(sql, params).await? > 0;
        if is_held {
            lease.expires_at = expires_at;
        }
        Ok(is_held)
    }

    /// Gives a lease back, so that somebody else can have it at once. One that has gone already is left alone.
    pub async fn release_lease(&mut self, lease: &Lease, now: DateTime<Utc>) -> Result<()> {
        let sql = "UPDATE bai_lease SET token = token + 1, expires_at = $3 WHERE name = $1 AND token = $2";
        self.execute(sql, params![&lease.name, lease.token, now]).await?;
        Ok(())
    }

    /// Forgets the leases whose name starts with `prefix` and that ended before `moment`. Their holders, should they still
    /// live, find out when they renew.
    pub async fn forget_leases(&mut self, prefix: &str, moment: DateTime<Utc>) -> Result<u64> {
        let sql = "DELETE FROM bai_lease WHERE substr(name, 1, length($1)) = $1 AND expires_at < $2";
        self.execute(sql, params![prefix, moment]).await
    }

    /// Makes this unit of work one that only the holder of the lease can commit. Fences of one lease do not wait for each
    /// other; taking the lease waits for them.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lease has gone to somebody else, or was given back.
    pub async fn fence(&mut self, lease: &Lease) -> Result<()> {
        let for_share = self.for_share();
        let sql = "SELECT token FROM bai_lease WHERE name = $1".to_owned() + for_share;
        let token = self
            .first(sql, params![&lease.name], |row| row.get::<i64>("token"))
            .await?;
        if token == Some(lease.token) {
            Ok(())
        } else {
            Err(Error::Fenced {
                name: lease.name.clone(),
            })
        }
    }
}
