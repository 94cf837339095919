//! Claims: pieces of work that the holder of a lease has set out to do, for as long as that lease lives.
//!
//! A process renews one lease, whatever the number of its claims. When the lease ends, each of them goes to whoever asks
//! first; to a holder whose claim went so, [`Tx::fence_claim`] says it before anything is written.
//!
//! Not here: which work there is, and when somebody may take it from others (`bai-core`).

use chrono::{DateTime, Utc};

use crate::driver::{Row, params};
use crate::lease::Lease;
use crate::{Error, Reader, Result, Tx};

/// A lease under which work is claimed, whether it lives or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The name of the lease.
    pub lease: String,
    /// Its token when the claim was made.
    pub token: i64,
}

impl Reader {
    /// Who claimed a piece of work last.
    pub async fn claim_on(&self, name: &str) -> Result<Option<Claim>> {
        let sql = "SELECT lease, token FROM bai_claim WHERE name = $1";
        let read = |row: &Row| {
            Ok(Claim {
                lease: row.get("lease")?,
                token: row.get("token")?,
            })
        };
        self.first(sql, params![name], read).await
    }

    /// Whether there is work whose lease had ended at `now`.
    pub async fn has_abandoned_claims(&self, now: DateTime<Utc>) -> Result<bool> {
        let sql = "SELECT count(*) AS n FROM bai_claim c WHERE NOT EXISTS (SELECT 1 FROM bai_lease l \
                   WHERE l.name = c.lease AND l.token = c.token AND l.expires_at > $1)";
        Ok(self.count(sql, params![now]).await? > 0)
    }
}

impl Tx {
    /// Claims a piece of work under a lease. False means that it is claimed under another one, which had not ended at
    /// `now`. To be committed before the work begins.
    ///
    /// # Errors
    /// [`Error::Contention`].
    pub async fn claim(&mut self, name: &str, lease: &Lease, now: DateTime<Utc>) -> Result<bool> {
        let sql = "INSERT INTO bai_claim (name, lease, token) VALUES ($1, $2, $3) \
                   ON CONFLICT (name) DO UPDATE SET lease = excluded.lease, token = excluded.token \
                   WHERE (bai_claim.lease = excluded.lease AND bai_claim.token = excluded.token) \
                   OR NOT EXISTS (SELECT 1 FROM bai_lease l WHERE l.name = bai_claim.lease \
                   AND l.token = bai_claim.token AND l.expires_at > $4)";
        let params = params![name, &lease.name, lease.token, now];
        Ok(self.execute(sql, params).await? > 0)
    }

    /// Makes this unit of work one that can be committed only while the work is claimed under the lease. To come before
    /// anything else in it that locks.
    ///
    /// # Errors
    /// [`Error::Fenced`] when somebody else has claimed it, or the claim was given back.
    pub async fn fence_claim(&mut self, name: &str, lease: &Lease) -> Result<()> {
        let for_share = self.for_share();
        let sql = "SELECT token FROM bai_claim WHERE name = $1 AND lease = $2 AND token = $3".to_owned()
            + for_share;
        let params = params![name, &lease.name, lease.token];
        let token = self.first(sql, params, |row| row.get::<i64>("token")).await?;
        match token {
            Some(_) => Ok(()),
            None => Err(Error::Fenced {
                name: name.to_owned(),
            }),
        }
    }

    /// Gives a claim back. One that has gone already is left alone.
    pub async fn release_claim(&mut self, name: &str, lease: &Lease) -> Result<()> {
        let sql = "DELETE FROM bai_claim WHERE name = $1 AND lease = $2 AND token = $3";
        self.execute(sql, params![name, &lease.name, lease.token]).await?;
        Ok(())
    }
}
