//! A site on PostgreSQL, etcd and Redis, made by the original: the same requests to the original and to `bai gateway`, one
//! after the other on the same rows.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bai_testkit::cast::{self, Role};
use bai_testkit::services::Site;
use serde_json::{Value, json};

use crate::beside_this;
use crate::client::{Connection, Keypair, Measured, load};
use crate::table::Comparison;

const CONNECTIONS: usize = 32;
const LOAD: Duration = Duration::from_secs(5);
/// Keypairs that sign in turn.
const KEYPAIRS: usize = 1000;
/// Rows of sessions, and how many of them are alive.
const KERNELS: u32 = 300_000;
const ALIVE: u32 = 300;

/// A request that is measured, with the keypairs that sign it in turn.
struct Load {
    what: &'static str,
    method: &'static str,
    target: &'static str,
    body: Value,
    keypairs: usize,
}

/// Measures both and prints a table; says why when that cannot be.
pub async fn measure() -> Result<()> {
    let processors = std::thread::available_parallelism()?.get();
    let site = match Site::start(&cast::fixture(), processors) {
        Ok(site) => site,
        Err(missing) => {
            return crate::say(&format!(
                "SKIPPED: the comparison with the original, because {missing}"
            ));
        }
    };
    let keypairs = furnish(&site)?;
    let loads = loads();
    let address: SocketAddr = site.endpoint().trim_start_matches("http://").parse()?;

    let original = site.start_original();
    let its = measure_all(address, &loads, &keypairs)
        .await
        .context("the original")?;
    original.stop();
    let manager = site.start_ours(&beside_this("bai")?);
    let ours = measure_all(address, &loads, &keypairs).await.context("ours")?;
    manager.stop();

    let mut table = Comparison::default();
    for ((load, its), ours) in loads.iter().zip(its).zip(ours) {
        table.row(load.what, ours, its);
    }
    table.print()
}

fn loads() -> Vec<Load> {
    let get = |what, target, keypairs| Load {
        what,
        method: "GET",
        target,
        body: Value::Null,
        keypairs,
    };
    vec![
        get("signed GET /auth/test, one keypair", "/auth/test?echo=x", 1),
        get(
            "signed GET /auth/test, 1000 keypairs",
            "/auth/test?echo=x",
            KEYPAIRS,
        ),
        get("GET /folders, 10 folders", "/folders", 1),
        get("GET /resource/presets", "/resource/presets", 1),
        Load {
            what: "POST /resource/check-presets, 300000 kernels",
            method: "POST",
            target: "/resource/check-presets",
            body: json!({ "group": "default" }),
            keypairs: 1,
        },
    ]
}

/// What each load measures; nothing where the server does not serve it.
async fn measure_all(
    address: SocketAddr,
    loads: &[Load],
    keypairs: &[Keypair],
) -> Result<Vec<Option<Measured>>> {
    let mut all = Vec::new();
    for wanted in loads {
        let signers = keypairs.iter().take(wanted.keypairs);
        let requests: Vec<Vec<u8>> = signers
            .map(|keypair| keypair.request(address, wanted.method, wanted.target, &wanted.body))
            .collect::<Result<_>>()?;
        let first = requests.first().context("a keypair")?;
        let (status, _) = Connection::open(address).await?.exchange(first).await?;
        all.push(if status == 404 {
            None
        } else {
            // Once to warm up: connections to the services, caches.
            load(address, &requests, CONNECTIONS, LOAD / 5).await?;
            Some(
                load(address, &requests, CONNECTIONS, LOAD)
                    .await
                    .context(wanted.what)?,
            )
        });
    }
    Ok(all)
}

/// Rows as a site has them after some years: made in the database, because nobody wants to wait for the API.
fn furnish(site: &Site) -> Result<Vec<Keypair>> {
    let (access_key, secret_key) = Role::User.keypair().context("a keypair")?;
    site.psql(&format!(
        "INSERT INTO keypairs SELECT (jsonb_populate_record(k, jsonb_build_object('access_key', 'AKIABENCH' || n))).* \
         FROM keypairs k, generate_series(1, {KEYPAIRS}) n WHERE k.access_key = '{access_key}'; \
         UPDATE keypairs SET rate_limit = 1000000000; \
         INSERT INTO agents (id, status, region, available_slots, occupied_slots, addr, first_contact, version, compute_plugins) \
         VALUES ('i-bench', 'ALIVE', 'local', '{{\"cpu\": \"1000\", \"mem\": \"1099511627776\"}}', '{{}}', \
         'tcp://127.0.0.1:1', now(), '19.06.0', '{{}}'); \
         INSERT INTO kernels (id, sess_id, role, agent, agent_addr, domain_name, group_id, user_uuid, access_key, image, \
         registry, occupied_slots, occupied_shares, repl_in_port, repl_out_port, stdin_port, stdout_port, created_at, \
         terminated_at, status, num_queries) \
         SELECT uuid_generate_v4(), 'bench-' || n, 'master', 'i-bench', 'tcp://127.0.0.1:1', 'default', m.group_id, u.uuid, \
         k.access_key, 'index.docker.io/lablup/lua:5.3-alpine3.8', 'index.docker.io', \
         '{{\"cpu\": \"1\", \"mem\": \"67108864\"}}', '{{}}', 0, 0, 0, 0, now(), \
         CASE WHEN n > {ALIVE} THEN now() END, \
         (CASE WHEN n > {ALIVE} THEN 'TERMINATED' ELSE 'RUNNING' END)::kernelstatus, 0 \
         FROM generate_series(1, {KERNELS}) n, users u JOIN keypairs k ON k.\"user\" = u.uuid \
         AND k.access_key = '{access_key}' JOIN association_groups_users m ON m.user_id = u.uuid; \
         INSERT INTO vfolders (id, host, name, created_at, \"user\", max_files, max_size, num_files, cur_size) \
         SELECT uuid_generate_v4(), 'local', 'folder-' || n, now(), u.uuid, 1000, 1048576, 0, 0 \
         FROM generate_series(1, 10) n, users u WHERE u.email = 'user@lablup.com'"
    ));
    // Outside of a transaction.
    site.psql("VACUUM ANALYZE");
    let secret_key = secret_key.to_owned();
    let first = Keypair {
        access_key: access_key.to_owned(),
        secret_key: secret_key.clone(),
    };
    let others = (1..KEYPAIRS).map(|number| Keypair {
        access_key: format!("AKIABENCH{number}"),
        secret_key: secret_key.clone(),
    });
    Ok([first].into_iter().chain(others).collect())
}
