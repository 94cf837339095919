//! The people of the tests, with the keypairs of the original's sample fixture, so that recordings of the original can be
//! replayed as they are.

use serde_json::{Value, json};

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Anonymous,
    Superadmin,
    DomainAdmin,
    User,
    Monitor,
}

impl Role {
    pub const SIGNING: [Self; 4] = [Self::Superadmin, Self::DomainAdmin, Self::User, Self::Monitor];

    /// Access key and secret key; of nobody for [`Role::Anonymous`].
    pub fn keypair(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Anonymous => None,
            Self::Superadmin => Some(("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")),
            Self::DomainAdmin => Some(("AKIAHUKCHDEZGEXAMPLE", "domain-admin-secret-key-for-the-tests-00")),
            Self::User => Some(("AKIANABBDUSEREXAMPLE", "user-secret-key-for-the-tests-0000000000")),
            Self::Monitor => Some(("AKIANAMONITOREXAMPLE", "monitor-secret-key-for-the-tests-0000000")),
        }
    }

    fn email(self) -> &'static str {
        match self {
            Self::Anonymous => "",
            Self::Superadmin => "admin@lablup.com",
            Self::DomainAdmin => "domain-admin@lablup.com",
            Self::User => "user@lablup.com",
            Self::Monitor => "monitor@lablup.com",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "",
            Self::Superadmin => "superadmin",
            Self::DomainAdmin => "admin",
            Self::User => "user",
            Self::Monitor => "monitor",
        }
    }
}

/// The password of everybody.
pub const PASSWORD: &str = "wJalrXUt";

/// The cast as a fixture file (`data-model.md` 9): one domain, one group, one policy of five sessions, and the original's presets.
pub fn fixture() -> Value {
    const GROUP: &str = "2de2b969-1d04-48a6-af16-0bc8adb3c831";
    let mut users = Vec::new();
    let mut members = Vec::new();
    let mut keypairs = Vec::new();
    for (number, role) in Role::SIGNING.into_iter().enumerate() {
        let Some((access_key, secret_key)) = role.keypair() else {
            continue;
        };
        let uuid = format!("00000000-0000-4000-8000-00000000000{number}");
        users.push(json!({
            "uuid": uuid, "username": role.email(), "email": role.email(), "password": PASSWORD, "need_password_change": false,
            "full_name": role.name(), "description": "", "is_active": true, "domain_name": "default", "role": role.name(),
        }));
        members.push(json!({ "user_id": uuid, "group_id": GROUP }));
        keypairs.push(json!({
            "user_id": role.email(), "access_key": access_key, "secret_key": secret_key, "is_active": true,
            "is_admin": matches!(role, Role::Superadmin | Role::DomainAdmin), "resource_policy": "default",
            "concurrency_used": 0, "rate_limit": 30000, "num_queries": 0, "user": uuid,
        }));
    }
    json!({
        "domains": [{
            "name": "default", "description": "The default domain", "is_active": true, "total_resource_slots": {},
            "allowed_vfolder_hosts": [],
        }],
        "groups": [{
            "id": GROUP, "name": "default", "description": "The default group", "is_active": true, "domain_name": "default",
            "total_resource_slots": {}, "allowed_vfolder_hosts": [],
        }],
        "users": users,
        "association_groups_users": members,
        "keypair_resource_policies": [{
            "name": "default", "default_for_unspecified": "UNLIMITED", "total_resource_slots": {},
            "max_concurrent_sessions": 5, "max_containers_per_session": 1, "max_vfolder_count": 10, "max_vfolder_size": 0,
            "idle_timeout": 600, "allowed_vfolder_hosts": ["local"],
        }],
        "keypairs": keypairs,
        "resource_presets": [
            preset("small", &json!({ "cpu": "1", "mem": "2147483648" })),
            preset(
                "small-gpu",
                &json!({ "cpu": "1", "mem": "2147483648", "cuda.device": "1", "cuda.shares": "0.3" }),
            ),
            preset("medium", &json!({ "cpu": "2", "mem": "4294967296" })),
            preset(
                "medium-gpu",
                &json!({ "cpu": "2", "mem": "4294967296", "cuda.device": "1", "cuda.shares": "1.0" }),
            ),
            preset("large", &json!({ "cpu": "4", "mem": "8589934592" })),
            preset(
                "large-gpu",
                &json!({ "cpu": "4", "mem": "8589934592", "cuda.device": "2", "cuda.shares": "2.0" }),
            ),
        ],
    })
}

fn preset(name: &str, slots: &Value) -> Value {
    json!({ "name": name, "resource_slots": slots })
}
