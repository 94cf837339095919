//! Counts of what has happened to the site as a whole: who decided by what was before finds out that it is no longer so.

use crate::driver::{Row, params};
use crate::{Reader, Result, Tx};

/// How often all sessions were told to end at once.
const ENDINGS: &str = "endings";
/// How often somebody decided by quotas and by what agents have left.
const PLACEMENTS: &str = "placements";

impl Reader {
    /// How often all sessions were told to end at once.
    pub async fn session_endings(&self) -> Result<i64> {
        let sql = "SELECT value FROM bai_counter WHERE name = $1";
        let value = self
            .first(sql, params![ENDINGS], |row: &Row| row.get("value"))
            .await?;
        Ok(value.unwrap_or(0))
    }
}

impl Tx {
    /// Counts that all sessions are told to end in this unit of work, which has locked placement
    /// ([`Tx::lock_placement`]): what is recorded after it sees the new count.
    pub async fn count_session_ending(&mut self) -> Result<()> {
        self.count_one(ENDINGS).await?;
        Ok(())
    }

    /// Makes this the only unit of work, of all processes, that decides by quotas and by what agents have left, until it
    /// ends. To be called before the first look at either. (One lock for all: most sites have one domain, whose quota
    /// every creation must look at anyway; and there is nothing to deadlock with.)
    ///
    /// Gives the number of this turn, one more than the last one that was committed: whoever had that one knows that nobody
    /// has decided anything since.
    ///
    /// # Errors
    /// [`crate::Error::Contention`] when it takes too long.
    pub async fn lock_placement(&mut self) -> Result<i64> {
        // The row is locked by the counting.
        self.count_one(PLACEMENTS).await
    }

    async fn count_one(&mut self, name: &'static str) -> Result<i64> {
        let sql = "INSERT INTO bai_counter (name, value) VALUES ($1, 1) \
                   ON CONFLICT (name) DO UPDATE SET value = bai_counter.value + 1 RETURNING value";
        let value = self.first(sql, params![name], |row: &Row| row.get("value"));
        Ok(value.await?.unwrap_or(1))
    }
}
