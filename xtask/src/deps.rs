//! The dependency table of the house, enforced: which crate may use which. A departure needs an ADR.

use anyhow::{Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// Who may use whom.
const TABLE: &[(&str, &[&str])] = &[
    ("bai-model", &[]),
    ("bai-proto", &["bai-model"]),
    ("bai-store", &["bai-model"]),
    ("bai-backplane", &["bai-model"]),
    (
        "bai-core",
        &["bai-model", "bai-proto", "bai-store", "bai-backplane"],
    ),
    ("bai-gateway", &["bai-core", "bai-model"]),
    ("bai-agent", &["bai-model", "bai-proto", "bai-backplane"]),
    ("bai-runner", &["bai-proto"]),
    (
        "bai",
        &[
            "bai-model",
            "bai-proto",
            "bai-store",
            "bai-backplane",
            "bai-core",
            "bai-gateway",
            "bai-agent",
        ],
    ),
    (
        "bai-testkit",
        &[
            "bai-model",
            "bai-proto",
            "bai-store",
            "bai-backplane",
            "bai-core",
            "bai-gateway",
            "bai-agent",
            "bai",
        ],
    ),
    ("xtask", &[]),
];

/// Whether `user` may depend on `used`. Crates that are not in the table are tests.
fn is_allowed(user: &str, used: &str) -> bool {
    // A crate may use itself for its tests, with features that products do not have.
    user == used
        || TABLE
            .iter()
            .find(|(name, _)| *name == user)
            .is_none_or(|(_, allowed)| allowed.contains(&used))
}

/// Compares the workspace with the table.
pub fn check() -> Result<()> {
    let metadata = MetadataCommand::new().no_deps().exec()?;
    let ours: Vec<&str> = metadata
        .packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let mut forbidden = Vec::new();
    for package in &metadata.packages {
        for dependency in &package.dependencies {
            let is_ours = ours.contains(&dependency.name.as_str());
            if is_ours
                && dependency.kind != DependencyKind::Development
                && !is_allowed(&package.name, &dependency.name)
            {
                forbidden.push(format!("{} must not use {}", package.name, dependency.name));
            }
        }
    }
    if forbidden.is_empty() {
        Ok(())
    } else {
        bail!("{}", forbidden.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_only_go_down() {
        assert!(is_allowed("bai-gateway", "bai-core"));
        for (user, used) in [
            ("bai-gateway", "bai-store"),
            ("bai-runner", "bai-model"),
            ("bai-store", "bai-proto"),
            ("bai-agent", "bai-core"),
        ] {
            assert!(!is_allowed(user, used), "{user} {used}");
        }
    }
}
