//! A manager with a thousand agents on PostgreSQL, etcd and Redis: what their heartbeats cost it, how fast it places
//! sessions, and how long one takes.
//!
//! The agents are `bai simulate-agents`: they speak ZeroMQ, answer at once and run nothing, so that what is measured is the
//! manager with its services, all on this machine.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bai_model::AccessKey;
use bai_model::time::Clock as _;
use bai_store::Store;
use bai_testkit::ambient::WallClock;
use bai_testkit::cast::{self, Role};
use bai_testkit::services::{Etcd, Missing, Postgres, Redis};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::beside_this;
use crate::client::{Connection, Keypair};
use crate::table::{Table, median, millis};

const AGENTS: usize = 1000;
/// Sessions that have ended before.
const ENDED: u32 = 50_000;
const IMAGE: &str = "index.docker.io/lablup/lua:5.3-alpine3.8";
const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
/// How long heartbeats are watched, and how long sessions that are made as fast as that goes.
const WATCHED: Duration = Duration::from_secs(15);
const CROWD: Duration = Duration::from_secs(10);
/// How long that goes on before it is watched: until statements are prepared and planned for good on every connection.
const WARMING_UP: Duration = Duration::from_secs(5);
/// Requesters at the same time.
const REQUESTERS: usize = 256;
/// Sessions that are made one after the other.
const SINGLE: usize = 200;
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures it and prints a table; says why when that cannot be.
pub async fn measure() -> Result<()> {
    let site = match Site::start() {
        Ok(site) => site?,
        Err(missing) => {
            return crate::say(&format!("SKIPPED: a thousand agents, because {missing}"));
        }
    };
    let mut table = Table::default();
    let manager = site.start_manager().await?;
    let begun = Instant::now();
    let _agents = site.start_agents()?;
    site.until_alive().await?;
    table.row(
        &format!("{AGENTS} agents registered after"),
        &millis(begun.elapsed()),
        "",
    );

    // What registering them has left to do.
    sleep(Duration::from_secs(5)).await;
    let [load] = loads_during(WATCHED, || Ok([cpu_time(manager.id())?])).await?;
    table.row("heartbeats, of one core", &percent(load), "15 %");

    table.row(
        "one commit of the database, median",
        &millis(median(site.commits().await?)),
        "",
    );
    let single = Requester::new(&site, 0)?.create(0..SINGLE, None).await?;
    let mut until_call = site.until_calls(&single)?;
    until_call.sort();
    let p99 = until_call.get(SINGLE * 99 / 100).copied().unwrap_or_default();
    table.row(
        "one session at a time, until the call, p99",
        &millis(p99),
        "15 ms",
    );
    table.row(
        "one session at a time, until the call, median",
        &millis(median(until_call)),
        "3 ms",
    );
    let whole = single.iter().map(|made| made.took).collect();
    table.row(
        "one session at a time, whole answer, median",
        &millis(median(whole)),
        "",
    );

    let mut crowd = JoinSet::new();
    let begin = Instant::now() + WARMING_UP;
    let end = begin + CROWD;
    for number in 1..=REQUESTERS {
        let requester = Requester::new(&site, number);
        crowd.spawn(async move { requester?.create(0..usize::MAX, Some(end)).await });
    }
    sleep(WARMING_UP).await;
    let cpu_times = || Ok([cpu_time(manager.id())?, site.database_time()?]);
    let [manager_load, database_load] = loads_during(CROWD, cpu_times).await?;
    let made: Vec<Vec<Made>> = crowd.join_all().await.into_iter().collect::<Result<_>>()?;
    let made = made.iter().flatten();
    let made = made.filter(|made| (begin..end).contains(&made.done));
    let made: Vec<Duration> = made.map(|made| made.took).collect();
    let rate = made.len() as f64 / CROWD.as_secs_f64();
    table.row(
        &format!("sessions placed and started, {REQUESTERS} at a time"),
        &format!("{rate:.0}/s"),
        "2000/s",
    );
    table.row("their median", &millis(median(made)), "");
    table.row("the manager meanwhile, of one core", &percent(manager_load), "");
    table.row("the database meanwhile, of one core", &percent(database_load), "");
    table.print()
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

/// The access key of a requester.
fn requesting(number: usize) -> String {
    format!("AKIABENCH{number:011}")
}

/// Who asks for sessions, each with a keypair of its own.
struct Requester {
    number: usize,
    address: SocketAddr,
    keypair: Keypair,
}

impl Requester {
    fn new(site: &Site, number: usize) -> Result<Self> {
        let (_, secret_key) = Role::User.keypair().context("a keypair")?;
        Ok(Self {
            number,
            address: site.address,
            keypair: Keypair {
                access_key: requesting(number),
                secret_key: secret_key.to_owned(),
            },
        })
    }

    /// Makes sessions one after the other.
    async fn create(&self, numbers: std::ops::Range<usize>, until: Option<Instant>) -> Result<Vec<Made>> {
        let mut connection = Connection::open(self.address).await?;
        let mut all = Vec::new();
        for number in numbers {
            let wanted = json!({
                "lang": IMAGE, "clientSessionToken": format!("bench-{}-{number}", self.number),
                "config": { "resources": { "cpu": "1", "mem": "64m" } },
            });
            let request = self
                .keypair
                .request(self.address, "POST", "/kernel/create", &wanted)?;
            let (at, begun) = (WallClock.now(), Instant::now());
            let (status, body) = connection.exchange(&request).await?;
            ensure!(
                status == 201,
                "no session: {status} {}",
                String::from_utf8_lossy(&body)
            );
            let done = Instant::now();
            let took = done - begun;
            all.push(Made { at, took, done });
            if until.is_some_and(|until| done > until) {
                break;
            }
        }
        Ok(all)
    }
}

/// A session that was made.
struct Made {
    /// When it was asked for.
    at: DateTime<Utc>,
    took: Duration,
    done: Instant,
}

/// Services, and a `manager.toml` for them.
struct Site {
    postgres: Postgres,
    etcd: Etcd,
    redis: Redis,
    folder: TempDir,
    bai: PathBuf,
    address: SocketAddr,
    events: SocketAddr,
}

impl Site {
    fn start() -> Result<Result<Self>, Missing> {
        let (postgres, etcd, redis) = (Postgres::start_durable()?, Etcd::start()?, Redis::start()?);
        Ok(Self::fill(postgres, etcd, redis))
    }

    fn fill(postgres: Postgres, etcd: Etcd, redis: Redis) -> Result<Self> {
        let free = || TcpListener::bind("127.0.0.1:0")?.local_addr();
        let site = Self {
            postgres,
            etcd,
            redis,
            folder: TempDir::with_prefix("bai-bench-")?,
            bai: beside_this("bai")?,
            address: free()?,
            events: free()?,
        };
        let (database, etcd) = (site.postgres.socket_uri("postgres"), site.etcd.address());
        let config = format!(
            "[etcd]\nnamespace = 'bench'\naddr = '{etcd}'\n[bai]\ndatabase = '{database}'\n[manager]\nservice-addr = \
             '{}'\nevent-listen-addr = '{}'\n[logging]\nlevel = 'WARNING'\n",
            site.address, site.events,
        );
        fs::write(site.config(), config)?;
        site.command(&["schema", "oneshot"])?;
        let mut fixture = cast::fixture();
        fixture["keypair_resource_policies"][0]["max_concurrent_sessions"] = json!(1_000_000);
        let (access_key, _) = Role::User.keypair().context("a keypair")?;
        let keypairs = fixture["keypairs"].as_array_mut().context("keypairs")?;
        let of_user = keypairs
            .iter()
            .find(|keypair| keypair["access_key"] == access_key);
        let mut keypair = of_user.context("a keypair")?.clone();
        keypair["rate_limit"] = json!(1_000_000_000);
        for number in 0..=REQUESTERS {
            keypair["access_key"] = json!(requesting(number));
            keypairs.push(keypair.clone());
        }
        site.put("fixture.json", &fixture, &["fixture", "populate"])?;
        site.command(&["etcd", "put", "config/redis/addr", &site.redis.address()])?;
        site.command(&[
            "etcd",
            "put",
            "config/docker/registry/index.docker.io",
            "https://registry-1.docker.io",
        ])?;
        let image = "images/index.docker.io/lablup%2Flua/5.3-alpine3.8";
        for (key, value) in [
            ("", DIGEST),
            ("/resource/cpu/min", "1"),
            ("/resource/mem/min", "64m"),
        ] {
            site.command(&["etcd", "put", &format!("{image}{key}"), value])?;
        }
        site.past()?;
        Ok(site)
    }

    /// Sessions that ended long ago.
    fn past(&self) -> Result<()> {
        let (access_key, _) = Role::User.keypair().context("a keypair")?;
        let sql = format!(
            "INSERT INTO kernels (id, sess_id, role, agent_addr, domain_name, group_id, user_uuid, access_key, image, registry, \
             occupied_slots, occupied_shares, repl_in_port, repl_out_port, stdin_port, stdout_port, created_at, terminated_at, \
             status, num_queries) \
             SELECT uuid_generate_v4(), 'past-' || n, 'master', 'tcp://127.0.0.1:1', 'default', m.group_id, u.uuid, \
             k.access_key, '{IMAGE}', 'index.docker.io', '{{\"cpu\": \"1\", \"mem\": \"67108864\"}}', '{{}}', 0, 0, 0, 0, \
             now() - interval '2 days', now() - interval '1 day', 'TERMINATED', 0 \
             FROM generate_series(1, {ENDED}) n, users u JOIN keypairs k ON k.\"user\" = u.uuid \
             AND k.access_key = '{access_key}' JOIN association_groups_users m ON m.user_id = u.uuid"
        );
        self.postgres.psql("postgres", &sql)?;
        self.postgres.psql("postgres", "VACUUM ANALYZE")?;
        Ok(())
    }

    /// How long the database takes to keep one small change.
    async fn commits(&self) -> Result<Vec<Duration>> {
        let store = Store::open(&self.postgres.uri("postgres")).await?;
        let used = [(AccessKey::from(requesting(0).as_str()), 1, DateTime::UNIX_EPOCH)];
        let mut times = Vec::new();
        for _ in 0..SINGLE {
            let mut tx = store.begin().await?;
            tx.record_usage(&used).await?;
            let begun = Instant::now();
            tx.commit().await?;
            times.push(begun.elapsed());
        }
        store.close().await;
        Ok(times)
    }

    /// Where the agents write down when they were called.
    fn creations(&self) -> PathBuf {
        self.folder.path().join("creations")
    }

    /// From each request to the call of the agent, of all sessions that there are, made one after the other.
    fn until_calls(&self, made: &[Made]) -> Result<Vec<Duration>> {
        let creations = fs::read_to_string(self.creations())?;
        let calls: Vec<i64> = creations.lines().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(
            calls.len() == made.len(),
            "{} sessions, {} calls",
            made.len(),
            calls.len()
        );
        let until = |(made, call): (&Made, i64)| {
            let micros = u64::try_from(call - made.at.timestamp_micros());
            Ok(Duration::from_micros(
                micros.context("a call before its request")?,
            ))
        };
        made.iter().zip(calls).map(until).collect()
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("manager.toml")
    }

    fn command(&self, words: &[&str]) -> Result<()> {
        let output = Command::new(&self.bai)
            .args(words)
            .arg("--config")
            .arg(self.config())
            .output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "bai {words:?}: {error}");
        Ok(())
    }

    fn put(&self, name: &str, content: &Value, words: &[&str]) -> Result<()> {
        let file = self.folder.path().join(name);
        fs::write(&file, content.to_string())?;
        let file = file.display().to_string();
        self.command(&[words, &[&file]].concat())
    }

    async fn start_manager(&self) -> Result<Process> {
        let config = self.config().display().to_string();
        let manager = Process::start(&self.bai, &["gateway", "--config", &config])?;
        let listens = async {
            while Connection::open(self.address).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, listens)
            .await
            .context("the manager does not start")?;
        Ok(manager)
    }

    fn start_agents(&self) -> Result<Process> {
        let (count, events) = (AGENTS.to_string(), self.events.to_string());
        let image = format!("{IMAGE}={DIGEST}");
        let creations = self.creations().display().to_string();
        let words = [
            "simulate-agents",
            "--count",
            &count,
            "--manager",
            &events,
            "--image",
            &image,
            "--creations",
            &creations,
        ];
        Process::start(&self.bai, &words)
    }

    /// What the database has taken of a processor, in all its processes.
    fn database_time(&self) -> Result<Duration> {
        let server = self.postgres.process()?;
        let mut taken = cpu_time(server)?;
        for entry in fs::read_dir("/proc")? {
            let Ok(process) = entry?.file_name().to_string_lossy().parse() else {
                continue;
            };
            // Any of them may end meanwhile, and counts for the server then.
            if stat(process, 1).is_ok_and(|parent| parent == server.to_string()) {
                taken += cpu_time(process).unwrap_or_default();
            }
        }
        Ok(taken)
    }

    async fn until_alive(&self) -> Result<()> {
        let alive = "SELECT count(*) FROM agents WHERE status = 'ALIVE'";
        let all = async {
            while self.postgres.psql("postgres", alive)?.trim() != AGENTS.to_string() {
                sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        };
        timeout(PATIENCE, all).await.context("not all agents are alive")?
    }
}

/// A process of ours, ended when dropped.
struct Process(Child);

impl Process {
    fn start(program: &PathBuf, words: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    fn id(&self) -> u32 {
        self.0.id()
    }
}

/// How much of one core each takes for a while, of those whose time on a processor until now is told.
async fn loads_during<const N: usize>(
    period: Duration,
    cpu_times: impl Fn() -> Result<[Duration; N]>,
) -> Result<[f64; N]> {
    let (before, begun) = (cpu_times()?, Instant::now());
    sleep(period).await;
    let (after, took) = (cpu_times()?, begun.elapsed());
    let load = |each: usize| after[each].saturating_sub(before[each]).as_secs_f64() / took.as_secs_f64();
    Ok(std::array::from_fn(load))
}

/// Of a process, and of its children that have ended, in user and system mode.
fn cpu_time(process: u32) -> Result<Duration> {
    let ticks = |field: usize| -> Result<u64> { Ok(stat(process, field)?.parse()?) };
    // A tick is ten milliseconds wherever Linux runs.
    Ok(Duration::from_millis(
        10 * (ticks(11)? + ticks(12)? + ticks(13)? + ticks(14)?),
    ))
}

/// A field of what the system tells of a process, counted from the one after its name.
fn stat(process: u32, field: usize) -> Result<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name may contain anything.
    let (_, fields) = stat.rsplit_once(')').context("a stat")?;
    let field = fields.split_whitespace().nth(field).context("a field")?;
    Ok(field.to_owned())
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = Command::new("kill").arg(self.0.id().to_string()).status();
        _ = self.0.wait();
    }
}
