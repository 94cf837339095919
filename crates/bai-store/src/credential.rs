//! Everything that a signed request is judged by, in one statement (`http-api.md` 3, speed rule: one round trip, no
//! lock).

use bai_model::{AccessKey, KeypairResourcePolicy, SecretKey, UserId, UserRole};

use crate::driver::{Row, params};
use crate::policy::{policy_columns, read_policy};
use crate::{Reader, Result};

/// A keypair with its user, its user's domain and its policy. Whether it may be used is the reader's decision.
#[derive(Clone, Debug)]
pub struct CredentialRow {
    /// `keypairs.access_key`.
    pub access_key: AccessKey,
    /// `keypairs.secret_key`, never empty.
    pub secret_key: SecretKey,
    /// `keypairs.is_active`; NULL means no.
    pub keypair_is_active: bool,
    /// `keypairs.is_admin`; NULL means no.
    pub is_admin: bool,
    /// Requests in 15 minutes.
    pub rate_limit: Option<i64>,
    /// `users.uuid`.
    pub user: UserId,
    /// `keypairs.user_id`, the owner's e-mail address as 19.06 copies it.
    pub user_id: Option<String>,
    /// `users.username`.
    pub username: Option<String>,
    /// `users.email`.
    pub email: String,
    /// `users.role`; NULL means an ordinary user.
    pub role: UserRole,
    /// `users.is_active`; may be NULL in old rows.
    pub user_is_active: Option<bool>,
    /// `users.domain_name`; may be NULL in old rows.
    pub domain_name: Option<String>,
    /// `domains.is_active` of that domain.
    pub domain_is_active: Option<bool>,
    /// The policy of the keypair.
    pub policy: KeypairResourcePolicy,
}

fn read(row: &Row) -> Result<CredentialRow> {
    Ok(CredentialRow {
        access_key: row.get("access_key")?,
        secret_key: row.get("secret_key")?,
        keypair_is_active: row.opt("keypair_is_active")?.unwrap_or(false),
        is_admin: row.opt("is_admin")?.unwrap_or(false),
        rate_limit: row.opt("rate_limit")?,
        user: row.get("user_uuid")?,
        user_id: row.opt("user_id")?,
        username: row.opt("username")?,
        email: row.get("email")?,
        role: row.opt("role")?.unwrap_or(UserRole::User),
        user_is_active: row.opt("user_is_active")?,
        domain_name: row.opt("domain_name")?,
        domain_is_active: row.opt("domain_is_active")?,
        policy: read_policy(row)?,
    })
}

impl Reader {
    /// The credential behind an access key, active or not. A keypair without a secret is none: anybody could sign with
    /// the empty key.
    pub async fn credential_by_access_key(&self, access_key: &AccessKey) -> Result<Option<CredentialRow>> {
        let sql = concat!(
            "SELECT k.access_key, k.secret_key, k.is_active AS keypair_is_active, k.is_admin, k.rate_limit, k.user_id, \
             u.uuid AS user_uuid, u.username, u.email, u.role, u.is_active AS user_is_active, u.domain_name, \
             d.is_active AS domain_is_active, ",
            policy_columns!(),
            " FROM keypairs k \
             JOIN users u ON u.uuid = k.\"user\" \
             JOIN keypair_resource_policies p ON p.name = k.resource_policy \
             LEFT JOIN domains d ON d.name = u.domain_name \
             WHERE k.access_key = $1 AND k.secret_key <> ''"
        );
        self.first(sql, params![access_key], read).await
    }
}
