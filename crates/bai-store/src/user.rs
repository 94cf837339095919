//! Users (`data-model.md` 6, 7.6).

use bai_model::{UserId, UserRole};
use chrono::{DateTime, Utc};

use crate::driver::{Row, params};
use crate::{Reader, Result, Tx};

/// An account. Not printable: it carries the password's hash.
#[derive(Clone)]
pub struct UserRow {
    /// The key.
    pub uuid: UserId,
    /// Unique, if there is one.
    pub username: Option<String>,
    /// What the user logs in with; unique.
    pub email: String,
    /// The bcrypt hash (`data-model.md` 8.2); without one nobody can log in.
    pub password: Option<String>,
    /// Stored only.
    pub need_password_change: Option<bool>,
    /// Stored only.
    pub full_name: Option<String>,
    /// Stored only.
    pub description: Option<String>,
    /// May be NULL in old rows.
    pub is_active: Option<bool>,
    /// When it was made.
    pub created_at: Option<DateTime<Utc>>,
    /// Stored only.
    pub integration_id: Option<String>,
    /// May be NULL in old rows.
    pub domain_name: Option<String>,
    /// NULL is read as an ordinary user.
    pub role: UserRole,
}

/// An account to be added.
#[derive(Clone)]
pub struct NewUser {
    /// The key.
    pub uuid: UserId,
    /// Unique, if there is one.
    pub username: Option<String>,
    /// What the user logs in with; unique.
    pub email: String,
    /// The bcrypt hash, never the password.
    pub password: Option<String>,
    /// Stored only.
    pub need_password_change: bool,
    /// Stored only.
    pub full_name: Option<String>,
    /// Stored only.
    pub description: Option<String>,
    /// Whether the user gets in.
    pub is_active: bool,
    /// The user's domain.
    pub domain_name: String,
    /// The user's role.
    pub role: UserRole,
}

fn read(row: &Row) -> Result<UserRow> {
    Ok(UserRow {
        uuid: row.get("uuid")?,
        username: row.opt("username")?,
        email: row.get("email")?,
        password: row.opt("password")?,
        need_password_change: row.opt("need_password_change")?,
        full_name: row.opt("full_name")?,
        description: row.opt("description")?,
        is_active: row.opt("is_active")?,
        created_at: row.opt("created_at")?,
        integration_id: row.opt("integration_id")?,
        domain_name: row.opt("domain_name")?,
        role: row.opt("role")?.unwrap_or(UserRole::User),
    })
}

macro_rules! select_users {
    ($rest:literal) => {
        concat!(
            "SELECT uuid, username, email, password, need_password_change, full_name, description, is_active, \
             created_at, integration_id, domain_name, role FROM users ",
            $rest
        )
    };
}

impl Reader {
    /// The user of a domain who logs in with this address.
    pub async fn user_by_email(&self, domain: &str, email: &str) -> Result<Option<UserRow>> {
        let sql = select_users!("WHERE email = $1 AND domain_name = $2");
        self.first(sql, params![email, domain], read).await
    }

    /// The user with this key.
    pub async fn user_by_uuid(&self, user: UserId) -> Result<Option<UserRow>> {
        self.first(select_users!("WHERE uuid = $1"), params![user], read)
            .await
    }

    /// How many users there are.
    pub async fn count_users(&self) -> Result<i64> {
        self.count("SELECT count(*) AS n FROM users", params![]).await
    }
}

impl Tx {
    /// Adds a user.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] on `pk_users`, `ix_users_email`, `uq_users_username` or for a missing domain,
    /// [`crate::Error::TooLong`].
    pub async fn insert_user(&mut self, user: &NewUser, at: DateTime<Utc>) -> Result<()> {
        let values = vec![
            ("uuid", user.uuid.into()),
            ("username", user.username.as_deref().into()),
            ("email", (&user.email).into()),
            ("password", user.password.as_deref().into()),
            ("need_password_change", user.need_password_change.into()),
            ("full_name", user.full_name.as_deref().into()),
            ("description", user.description.as_deref().into()),
            ("is_active", user.is_active.into()),
            ("created_at", at.into()),
            ("domain_name", (&user.domain_name).into()),
            ("role", user.role.into()),
        ];
        self.insert("users", values, "").await?;
        Ok(())
    }
}
