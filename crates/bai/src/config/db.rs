//! `[db]`: where the site's PostgreSQL is.

use serde::Serialize;

use super::Secret;
use super::section::Problems;
use super::value::{HostPort, host_port, one_of, secret, slug, text};

#[derive(Clone, Debug, Serialize)]
pub struct Db {
    #[serde(rename = "type")]
    kind: &'static str,
    pub addr: HostPort,
    pub name: String,
    pub user: String,
    pub password: Secret,
}

impl Db {
    pub(super) fn read(problems: &mut Problems<'_>) -> Option<Self> {
        let mut section = problems.section("db", true);
        let kind = section.or("type", "postgresql", one_of(&[("postgresql", "postgresql")]));
        let addr = section.required("addr", "\"127.0.0.1:5432\"", host_port);
        let name = section.required("name", "\"backend\"", slug(2..=64));
        let user = section.required("user", "\"postgres\"", text);
        let password = section.required("password", "\"…\"", secret);
        section.end();
        Some(Self {
            kind,
            addr: addr?,
            name: name?,
            user: user?,
            password: password?,
        })
    }
}
