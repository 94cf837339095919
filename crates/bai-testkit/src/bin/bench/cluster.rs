//! A site on PostgreSQL, etcd and Redis, made by the original: the same requests to the original and to `bai gateway`, one
//! after the other on the same rows.
//!
//! The rows are those of a site after some years: 300,000 sessions, of which 300 run, on an agent that is a row and a
//! heartbeat.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bai_testkit::cast::{self, Role};
use bai_testkit::services::Site;
use serde_json::{Value, json};
use tokio::time::interval;

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
/// Of the others, as many ended on each day before [`LAST_DAY`].
const ENDED_IN_A_DAY: u32 = 100;
const LAST_DAY: &str = "2019-07-01";
/// Less than what the managers wait for.
const BEAT: Duration = Duration::from_secs(1);

/// A request that is measured, and who signs it.
struct Load {
    what: &'static str,
    method: &'static str,
    target: &'static str,
    body: Value,
    signers: Signers,
}

#[derive(Clone, Copy)]
enum Signers {
    User,
    /// [`KEYPAIRS`] of the user's, in turn.
    Many,
    Superadmin,
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
    furnish(&site)?;
    tokio::select! {
        table = compare(&site) => table?.print(),
        error = beat(&site) => error,
    }
}

async fn compare(site: &Site) -> Result<Comparison> {
    let loads = loads();
    let address: SocketAddr = site.endpoint().trim_start_matches("http://").parse()?;

    let original = site.start_original();
    let its = measure_all(address, &loads).await.context("the original")?;
    original.stop();
    let manager = site.start_ours(&beside_this("bai")?);
    let ours = measure_all(address, &loads).await.context("ours")?;
    manager.stop();

    let mut table = Comparison::default();
    for ((load, its), ours) in loads.iter().zip(its).zip(ours) {
        let ours = ours.with_context(|| format!("{} is not served", load.what))?;
        table.row(load.what, ours, its);
    }
    Ok(table)
}

fn loads() -> Vec<Load> {
    let get = |what, target, signers| Load {
        what,
        method: "GET",
        target,
        body: Value::Null,
        signers,
    };
    vec![
        get("GET /auth/test, one keypair", "/auth/test?echo=x", Signers::User),
        get(
            "GET /auth/test, 1000 keypairs",
            "/auth/test?echo=x",
            Signers::Many,
        ),
        get("GET /manager/status", "/manager/status", Signers::User),
        get(
            "GET /config/resource-slots",
            "/config/resource-slots",
            Signers::User,
        ),
        get("GET /kernel/{session}", "/kernel/bench-1", Signers::User),
        get("GET /resource/presets", "/resource/presets", Signers::User),
        Load {
            what: "POST /resource/check-presets",
            method: "POST",
            target: "/resource/check-presets",
            body: json!({ "group": "default" }),
            signers: Signers::User,
        },
        // The original adds up no more than one session.
        get(
            "GET /resource/usage/period, 100 sessions",
            "/resource/usage/period?group_id=2de2b969-1d04-48a6-af16-0bc8adb3c831&start_date=20190601&end_date=20190602",
            Signers::Superadmin,
        ),
    ]
}

/// What each load measures; nothing where the server fails to answer.
async fn measure_all(address: SocketAddr, loads: &[Load]) -> Result<Vec<Option<Measured>>> {
    let mut all = Vec::new();
    for wanted in loads {
        let requests: Vec<Vec<u8>> = wanted
            .signers
            .keypairs()
            .iter()
            .map(|keypair| keypair.request(address, wanted.method, wanted.target, &wanted.body))
            .collect::<Result<_>>()?;
        let first = requests.first().context("a keypair")?;
        let (status, _) = Connection::open(address).await?.exchange(first).await?;
        if status != 200 {
            all.push(None);
            continue;
        }
        // Once to warm up: connections to the services, caches.
        load(address, &requests, CONNECTIONS, LOAD / 5)
            .await
            .context(wanted.what)?;
        all.push(Some(
            load(address, &requests, CONNECTIONS, LOAD)
                .await
                .context(wanted.what)?,
        ));
    }
    Ok(all)
}

impl Signers {
    fn keypairs(self) -> Vec<Keypair> {
        let role = if matches!(self, Self::Superadmin) {
            Role::Superadmin
        } else {
            Role::User
        };
        let (access_key, secret_key) = role.keypair().unwrap_or_default();
        let keypair = |access_key: String| Keypair {
            access_key,
            secret_key: secret_key.to_owned(),
        };
        let one = keypair(access_key.to_owned());
        match self {
            Self::User | Self::Superadmin => vec![one],
            Self::Many => (1..=KEYPAIRS)
                .map(|number| keypair(format!("AKIABENCH{number}")))
                .collect(),
        }
    }
}

/// Speaks for the agent, so that neither manager takes it for lost. Does not end by itself but with an error.
async fn beat(site: &Site) -> Result<()> {
    let mut interval = interval(BEAT);
    loop {
        interval.tick().await;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let beat = format!("HSET last_seen i-bench {}", now.as_secs_f64());
        let answers = site.redis.commands(&["SELECT 2", &beat]);
        ensure!(
            answers.iter().all(|answer| !answer.starts_with('-')),
            "Redis: {answers:?}"
        );
    }
}

/// Rows as a site has them after some years: made in the database, because nobody wants to wait for the API.
fn furnish(site: &Site) -> Result<()> {
    let (access_key, _) = Role::User.keypair().context("a keypair")?;
    site.psql(&format!(
        "INSERT INTO keypairs SELECT (jsonb_populate_record(k, jsonb_build_object('access_key', 'AKIABENCH' || n))).* \
         FROM keypairs k, generate_series(1, {KEYPAIRS}) n WHERE k.access_key = '{access_key}'; \
         UPDATE keypairs SET rate_limit = 1000000000; \
         INSERT INTO agents (id, status, region, available_slots, occupied_slots, addr, first_contact, version, compute_plugins) \
         VALUES ('i-bench', 'ALIVE', 'local', '{{\"cpu\": \"1000\", \"mem\": \"1099511627776\"}}', \
         '{{\"cpu\": \"{ALIVE}\", \"mem\": \"0\"}}', 'tcp://127.0.0.1:1', now(), '19.06.0', '{{}}'); \
         INSERT INTO kernels (id, sess_id, role, agent, agent_addr, domain_name, group_id, user_uuid, access_key, image, \
         registry, occupied_slots, occupied_shares, repl_in_port, repl_out_port, stdin_port, stdout_port, created_at, \
         terminated_at, status, num_queries) \
         SELECT uuid_generate_v4(), 'bench-' || n, 'master', 'i-bench', 'tcp://127.0.0.1:1', 'default', m.group_id, u.uuid, \
         k.access_key, 'index.docker.io/lablup/lua:5.3-alpine3.8', 'index.docker.io', \
         '{{\"cpu\": \"1\", \"mem\": \"67108864\"}}', '{{}}', 0, 0, 0, 0, \
         CASE WHEN n > {ALIVE} THEN t.at - interval '1 hour' ELSE now() END, CASE WHEN n > {ALIVE} THEN t.at END, \
         (CASE WHEN n > {ALIVE} THEN 'TERMINATED' ELSE 'RUNNING' END)::kernelstatus, 0 \
         FROM generate_series(1, {KERNELS}) n CROSS JOIN LATERAL \
         (SELECT timestamptz '{LAST_DAY} 12:00Z' - n / {ENDED_IN_A_DAY} * interval '1 day' AS at) t, \
         users u JOIN keypairs k ON k.\"user\" = u.uuid \
         AND k.access_key = '{access_key}' JOIN association_groups_users m ON m.user_id = u.uuid"
    ));
    // Outside of a transaction.
    site.psql("VACUUM ANALYZE");
    Ok(())
}
