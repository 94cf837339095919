//! The dependency table of `ARCHITECTURE.md`, enforced: which crate of ours may use which, and which libraries a crate
//! must never see. A departure needs an ADR.
//!
//! The table is data, so that a change to it is visible in review. Ordinary and build dependencies follow it strictly.
//! Tests of a crate may also use the crate itself (for a feature of its own) and the test kit.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::report::say;
use crate::shell;

/// What one crate may use.
#[derive(Debug)]
struct Row {
    name: &'static str,
    /// Crates of ours that it may use.
    may_use: &'static [&'static str],
    /// Libraries that would bring something in which has its place elsewhere.
    never: &'static [&'static str],
}

/// Serving, calling and storing.
const EDGES: &[&str] = &[
    "axum",
    "hyper",
    "hyper-util",
    "tower",
    "tower-http",
    "reqwest",
    "async-graphql",
    "sqlx",
];
/// The same for crates that store.
const WEB: &[&str] = &[
    "axum",
    "hyper",
    "hyper-util",
    "tower",
    "tower-http",
    "reqwest",
    "async-graphql",
];

/// The same for the crate that calls registries.
const SERVERS: &[&str] = &["axum", "async-graphql", "sqlx", "tower-http"];

const TABLE: &[Row] = &[
    Row {
        name: "bai-model",
        may_use: &[],
        never: &[
            "tokio",
            "sqlx",
            "axum",
            "hyper",
            "http",
            "reqwest",
            "rand",
            "async-trait",
        ],
    },
    Row {
        name: "bai-proto",
        may_use: &["bai-model"],
        never: EDGES,
    },
    Row {
        name: "bai-store",
        may_use: &["bai-model"],
        never: WEB,
    },
    Row {
        name: "bai-backplane",
        may_use: &["bai-model"],
        never: WEB,
    },
    // A leaf: what it is asked for and answers are plain values.
    Row {
        name: "bai-registry",
        may_use: &[],
        never: SERVERS,
    },
    Row {
        name: "bai-core",
        may_use: &[
            "bai-model",
            "bai-proto",
            "bai-registry",
            "bai-store",
            "bai-backplane",
        ],
        never: EDGES,
    },
    // Not the store, the backplane or the protocols: everything goes through an operation of the core.
    Row {
        name: "bai-gateway",
        may_use: &["bai-core", "bai-model"],
        never: &["sqlx", "reqwest"],
    },
    Row {
        name: "bai-agent",
        may_use: &["bai-model", "bai-proto", "bai-backplane"],
        never: EDGES,
    },
    Row {
        name: "bai-runner",
        may_use: &["bai-proto"],
        never: &["tokio", "sqlx", "axum", "hyper", "reqwest", "async-trait"],
    },
    Row {
        name: "bai",
        may_use: &[
            "bai-agent",
            "bai-backplane",
            "bai-core",
            "bai-gateway",
            "bai-model",
            "bai-proto",
            "bai-registry",
            "bai-store",
        ],
        never: &["sqlx"],
    },
    Row {
        name: "bai-testkit",
        may_use: PRODUCT,
        never: &["sqlx"],
    },
    Row {
        name: "it",
        may_use: TESTS,
        never: &["sqlx"],
    },
    Row {
        name: "xtask",
        may_use: &[],
        never: &["tokio", "sqlx"],
    },
];

/// All but the runner, which is a program and not a library.
const PRODUCT: &[&str] = &[
    "bai",
    "bai-agent",
    "bai-backplane",
    "bai-core",
    "bai-gateway",
    "bai-model",
    "bai-proto",
    "bai-registry",
    "bai-store",
];
const TESTS: &[&str] = &[
    "bai",
    "bai-agent",
    "bai-backplane",
    "bai-core",
    "bai-gateway",
    "bai-model",
    "bai-proto",
    "bai-registry",
    "bai-store",
    "bai-testkit",
];

/// One dependency as a manifest states it.
#[derive(Clone, Debug)]
struct Edge {
    from: String,
    to: String,
    is_dev: bool,
    default_features: bool,
    features: Vec<String>,
}

/// Reads the manifests and prints what breaks the table; true when nothing does.
pub fn run() -> Result<bool> {
    let metadata = MetadataCommand::new().current_dir(shell::root()).no_deps().exec();
    let metadata = metadata.context("cargo metadata failed")?;
    let mut members = BTreeSet::new();
    let mut edges = Vec::new();
    for package in metadata.workspace_packages() {
        members.insert(package.name.to_string());
        edges.extend(package.dependencies.iter().map(|dependency| Edge {
            from: package.name.to_string(),
            to: dependency.name.clone(),
            is_dev: dependency.kind == DependencyKind::Development,
            default_features: dependency.uses_default_features,
            features: dependency.features.clone(),
        }));
    }
    let broken = violations(&members, &edges);
    for line in &broken {
        say(line);
    }
    Ok(broken.is_empty())
}

/// The rule itself: one sentence for each thing that breaks it.
fn violations(members: &BTreeSet<String>, edges: &[Edge]) -> Vec<String> {
    let mut broken = Vec::new();
    for member in members {
        if row(member).is_none() {
            broken.push(format!("{member} has no row in the table of xtask/src/deps.rs"));
        }
    }
    for edge in edges {
        let Some(row) = row(&edge.from) else { continue };
        let Edge { from, to, is_dev, .. } = edge;
        if members.contains(to) {
            let for_tests = *is_dev && (from == to || to == "bai-testkit");
            if !for_tests && !row.may_use.contains(&to.as_str()) {
                broken.push(format!(
                    "{from} must not use {to}: the table of ARCHITECTURE.md has no such arrow"
                ));
            }
        } else if !is_dev && row.never.contains(&to.as_str()) {
            broken.push(format!("{from} must not use {to}: it belongs to another layer"));
        }
        let is_narrow = !edge.default_features
            && edge
                .features
                .iter()
                .all(|feature| ["runner", "zmtp"].contains(&feature.as_str()));
        if from == "bai-runner" && to == "bai-proto" && !is_narrow {
            broken.push(
                "bai-runner may use bai-proto only with the features `runner` and `zmtp`, and no default ones"
                    .into(),
            );
        }
    }
    broken
}

fn row(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str) -> Edge {
        let (from, to) = (from.to_owned(), to.to_owned());
        Edge {
            from,
            to,
            is_dev: false,
            default_features: true,
            features: Vec::new(),
        }
    }

    fn broken(edge: Edge) -> usize {
        let members = TABLE.iter().map(|row| row.name.to_owned()).collect();
        violations(&members, &[edge]).len()
    }

    #[test]
    fn arrows_go_down_only() {
        assert_eq!(broken(edge("bai-gateway", "bai-core")), 0);
        assert_eq!(broken(edge("bai-core", "bai-gateway")), 1);
        assert_eq!(broken(edge("bai-store", "bai-backplane")), 1);
        assert_eq!(broken(edge("bai-registry", "bai-model")), 1);
        assert_eq!(broken(edge("bai-agent", "bai-core")), 1);
    }

    #[test]
    fn the_gateway_sees_nothing_below_the_core() {
        for below in ["bai-store", "bai-backplane", "bai-proto"] {
            assert_eq!(broken(edge("bai-gateway", below)), 1, "{below}");
        }
    }

    #[test]
    fn the_runner_sees_the_narrow_half_of_the_protocol() {
        assert_eq!(broken(edge("bai-runner", "bai-proto")), 1);
        let mut narrow = edge("bai-runner", "bai-proto");
        narrow.default_features = false;
        narrow.features = vec!["runner".to_owned(), "zmtp".to_owned()];
        assert_eq!(broken(narrow.clone()), 0);
        narrow.features = vec!["zmq".to_owned()];
        assert_eq!(broken(narrow), 1);
        assert_eq!(broken(edge("bai-runner", "bai-model")), 1);
    }

    #[test]
    fn tests_may_use_the_test_kit_and_products_may_not() {
        let mut dev = edge("bai-gateway", "bai-testkit");
        assert_eq!(broken(dev.clone()), 1);
        dev.is_dev = true;
        assert_eq!(broken(dev), 0);
    }

    #[test]
    fn libraries_have_their_layer() {
        assert_eq!(broken(edge("bai-core", "axum")), 1);
        assert_eq!(broken(edge("bai-core", "sqlx")), 1);
        assert_eq!(broken(edge("bai-store", "sqlx")), 0);
        assert_eq!(broken(edge("bai-core", "reqwest")), 1);
        assert_eq!(broken(edge("bai-registry", "reqwest")), 0);
    }

    #[test]
    fn a_new_crate_needs_a_row() {
        let members = BTreeSet::from(["bai-surprise".to_owned()]);
        assert_eq!(violations(&members, &[]).len(), 1);
    }
}
