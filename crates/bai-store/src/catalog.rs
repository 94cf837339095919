//! The columns of the 19.06 tables and what they hold (`data-model.md` 3): for lengths and for fixtures.
//!
//! Not here: constraints and defaults of the database (`migrations/`).

use Kind::{Boolean, Enum, Integer, Json, Slots, Text, Texts, Time, Uuid};

use crate::driver::{EnumType, Param};
use crate::{Error, Result};

/// What a column holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Text of at most so many characters.
    Text(usize),
    Integer,
    Boolean,
    Uuid,
    Time,
    Json,
    /// JSON with resource amounts.
    Slots,
    /// An array of texts.
    Texts,
    Enum(EnumType),
}

/// A table of the 19.06 schema.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// The columns that make a row unique; none for `vfolder_permissions`.
    pub(crate) key: &'static [&'static str],
    pub(crate) columns: &'static [(&'static str, Kind)],
}

/// The table of this name. `alembic_version` is nobody's business.
pub(crate) fn table(name: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.name == name)
}

/// Refuses texts that are longer than their columns or have a NUL in them, as PostgreSQL would.
///
/// # Errors
/// [`Error::TooLong`], [`Error::Unstorable`].
pub(crate) fn check_lengths(name: &'static str, values: &[(&'static str, Param)]) -> Result<()> {
    let columns = table(name).map_or(&[][..], |table| table.columns);
    for (column, param) in values {
        let Param::Text(Some(text)) = param else { continue };
        if text.contains('\0') {
            return Err(Error::Unstorable(format!("{name}.{column} has a NUL character")));
        }
        let Some((_, Text(limit))) = columns.iter().find(|(name, _)| name == column) else {
            continue;
        };
        // Bytes are never fewer than characters, and counting characters costs more.
        if text.len() > *limit && text.chars().count() > *limit {
            return Err(Error::TooLong {
                table: name,
                column,
                limit: *limit,
            });
        }
    }
    Ok(())
}

/// Every table, in an order in which rows can be inserted.
pub(crate) static TABLES: &[Table] = &[
    Table {
        name: "agents",
        key: &["id"],
        columns: &[
            ("id", Text(64)),
            ("status", Enum(EnumType::AgentStatus)),
            ("region", Text(64)),
            ("available_slots", Slots),
            ("occupied_slots", Slots),
            ("addr", Text(128)),
            ("first_contact", Time),
            ("lost_at", Time),
            ("version", Text(64)),
            ("compute_plugins", Json),
        ],
    },
    Table {
        name: "domains",
        key: &["name"],
        columns: &[
            ("name", Text(64)),
            ("description", Text(512)),
            ("is_active", Boolean),
            ("created_at", Time),
            ("modified_at", Time),
            ("total_resource_slots", Slots),
            ("allowed_vfolder_hosts", Texts),
            ("integration_id", Text(512)),
        ],
    },
    Table {
        name: "groups",
        key: &["id"],
        columns: &[
            ("id", Uuid),
            ("name", Text(64)),
            ("description", Text(512)),
            ("is_active", Boolean),
            ("created_at", Time),
            ("modified_at", Time),
            ("integration_id", Text(512)),
            ("domain_name", Text(64)),
            ("total_resource_slots", Slots),
            ("allowed_vfolder_hosts", Texts),
        ],
    },
    Table {
        name: "users",
        key: &["uuid"],
        columns: &[
            ("uuid", Uuid),
            ("username", Text(64)),
            ("email", Text(64)),
            ("password", Text(usize::MAX)),
            ("need_password_change", Boolean),
            ("full_name", Text(64)),
            ("description", Text(500)),
            ("is_active", Boolean),
            ("created_at", Time),
            ("integration_id", Text(512)),
            ("domain_name", Text(64)),
            ("role", Enum(EnumType::UserRole)),
        ],
    },
    Table {
        name: "association_groups_users",
        key: &["user_id", "group_id"],
        columns: &[("user_id", Uuid), ("group_id", Uuid)],
    },
    Table {
        name: "keypair_resource_policies",
        key: &["name"],
        columns: &[
            ("name", Text(256)),
            ("created_at", Time),
            ("default_for_unspecified", Enum(EnumType::DefaultForUnspecified)),
            ("total_resource_slots", Slots),
            ("max_concurrent_sessions", Integer),
            ("max_containers_per_session", Integer),
            ("max_vfolder_count", Integer),
            ("max_vfolder_size", Integer),
            ("idle_timeout", Integer),
            ("allowed_vfolder_hosts", Texts),
        ],
    },
    Table {
        name: "keypairs",
        key: &["access_key"],
        columns: &[
            ("user_id", Text(256)),
            ("access_key", Text(20)),
            ("secret_key", Text(40)),
            ("is_active", Boolean),
            ("is_admin", Boolean),
            ("created_at", Time),
            ("last_used", Time),
            ("concurrency_used", Integer),
            ("rate_limit", Integer),
            ("num_queries", Integer),
            ("user", Uuid),
            ("resource_policy", Text(256)),
        ],
    },
    Table {
        name: "kernels",
        key: &["id"],
        columns: &[
            ("id", Uuid),
            ("sess_id", Text(64)),
            ("role", Text(16)),
            ("agent", Text(64)),
            ("agent_addr", Text(128)),
            ("domain_name", Text(64)),
            ("group_id", Uuid),
            ("user_uuid", Uuid),
            ("access_key", Text(20)),
            ("image", Text(512)),
            ("registry", Text(512)),
            ("tag", Text(64)),
            ("container_id", Text(64)),
            ("occupied_slots", Slots),
            ("occupied_shares", Json),
            ("environ", Texts),
            ("kernel_host", Text(128)),
            ("repl_in_port", Integer),
            ("repl_out_port", Integer),
            ("stdin_port", Integer),
            ("stdout_port", Integer),
            ("service_ports", Json),
            ("created_at", Time),
            ("terminated_at", Time),
            ("status", Enum(EnumType::KernelStatus)),
            ("status_info", Text(usize::MAX)),
            ("num_queries", Integer),
            ("last_stat", Json),
        ],
    },
    Table {
        name: "resource_presets",
        key: &["name"],
        columns: &[("name", Text(256)), ("resource_slots", Slots)],
    },
    Table {
        name: "vfolders",
        key: &["id"],
        columns: &[
            ("id", Uuid),
            ("host", Text(128)),
            ("name", Text(64)),
            ("max_files", Integer),
            ("max_size", Integer),
            ("num_files", Integer),
            ("cur_size", Integer),
            ("created_at", Time),
            ("last_used", Time),
            ("user", Uuid),
            ("group", Uuid),
        ],
    },
    Table {
        name: "vfolder_attachment",
        key: &["vfolder", "kernel"],
        columns: &[("vfolder", Uuid), ("kernel", Uuid)],
    },
    Table {
        name: "vfolder_invitations",
        key: &["id"],
        columns: &[
            ("id", Uuid),
            ("permission", Enum(EnumType::VFolderPermission)),
            ("inviter", Text(256)),
            ("invitee", Text(256)),
            ("state", Text(10)),
            ("created_at", Time),
            ("vfolder", Uuid),
        ],
    },
    Table {
        name: "vfolder_permissions",
        key: &[],
        columns: &[
            ("permission", Enum(EnumType::VFolderPermission)),
            ("vfolder", Uuid),
            ("user", Uuid),
        ],
    },
];
