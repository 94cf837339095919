//! `[etcd]`: where the site's shared configuration is.

use serde::Serialize;

use super::section::Problems;
use super::value::{HostPort, host_port, secret_or_blank, text, text_or_blank};
use super::{Secret, bai};

#[derive(Clone, Debug, Serialize)]
pub struct Etcd {
    /// Keys are below `/sorna/{namespace}/`.
    pub namespace: String,
    pub addr: HostPort,
    /// Empty: no authentication.
    pub user: String,
    pub password: Secret,
}

impl Etcd {
    pub(super) fn read(problems: &mut Problems<'_>) -> Option<Self> {
        let mut section = problems.section("etcd", true);
        let namespace = section.required("namespace", "\"local\"", text);
        if namespace.as_ref().is_some_and(|name| name.contains('/')) {
            section.wrong("namespace", "must not contain a slash");
        }
        let addr = section.or("addr", bai::local(2379), host_port);
        let user = section.or("user", String::new(), text_or_blank);
        let password = section.or("password", Secret::default(), secret_or_blank);
        if user.is_empty() && !password.is_empty() {
            section.wrong("password", "is of no use without etcd.user");
        }
        section.end();
        Some(Self {
            namespace: namespace?,
            addr,
            user,
            password,
        })
    }
}
