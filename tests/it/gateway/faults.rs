//! What may happen to each service of a running manager: absent, refusing, silent, slow, with another password, full. What
//! cannot be served meanwhile is 503 with `Retry-After` and the name of the service, the log says why and names the
//! setting, and everything goes on when the fault is over: without a restart, and with nothing lost.

use std::time::Duration;

use bai::client::Client;
use bai_backplane::config::Config;
use bai_backplane::kv;
use bai_model::SecretKey;
use bai_model::random::Random as _;
use bai_testkit::ambient::{SeededRandom, WallClock};
use bai_testkit::services::{Etcd, Missing, Postgres, Proxy, Redis, etcd, postgres, redis};
use reqwest::Method;
use serde_json::{Value, json};

use super::cluster::run;
use super::{Daemon, PATIENCE, Place};
use crate::crash::says;

/// How long a fault may take to show, and to be over: each request may wait for a service's deadline.
const LIMIT: Duration = Duration::from_secs(120);

/// A manager with sessions on this host, and a proxy before each of its services, which want passwords.
struct Site {
    postgres: Postgres,
    etcd: Etcd,
    redis: Redis,
    before_postgres: Proxy,
    before_etcd: Proxy,
    before_redis: Proxy,
    place: Place,
}

impl Site {
    fn start(start_postgres: fn() -> Result<Postgres, Missing>) -> Result<Self, Missing> {
        let (postgres, etcd, redis) = (
            start_postgres()?,
            // The tests fill it.
            Etcd::start_with_room_for(4 << 20)?,
            Redis::start_with_password()?,
        );
        etcd.enable_auth();
        let site = Self {
            before_postgres: Proxy::start(&format!("127.0.0.1:{}", postgres.port())),
            before_etcd: Proxy::start(&etcd.address()),
            before_redis: Proxy::start(&redis.address()),
            postgres,
            etcd,
            redis,
            place: Place::empty(),
        };
        site.place.write(
            &format!(
                "[etcd]\nnamespace = 'site'\n[db]\naddr = '{}'\nname = 'postgres'\nuser = 'postgres'\n\
                 password = '{}'\n",
                site.before_postgres.address(),
                postgres::PASSWORD,
            ),
            "",
            &format!(
                "local-agent = true\ndata-dir = '{}'\nconfig-store = 'etcd://root:{}@{}?timeout=1'\n",
                site.place.path("data").display(),
                etcd::PASSWORD,
                site.before_etcd.address(),
            ),
        );
        for (key, value) in [
            ("config/redis/addr", site.before_redis.address().as_str()),
            ("config/redis/password", redis::PASSWORD),
        ] {
            run(&site.place, &["etcd", "put", key, value]);
        }
        Ok(site)
    }

    fn client(&self) -> Client {
        let account = self.account("superadmin");
        let text = |name: &str| account[name].as_str().unwrap();
        let secret_key = SecretKey::new(text("secret_key").to_owned());
        Client::new(&self.place.url(""), text("access_key"), secret_key).unwrap()
    }

    /// Of those that the first start made.
    fn account(&self, name: &str) -> Value {
        let credentials = std::fs::read(self.place.path("data/credentials.json")).unwrap();
        let credentials: Value = serde_json::from_slice(&credentials).unwrap();
        credentials[name].clone()
    }

    /// Writes until the store has no room.
    async fn fill_etcd(&self) {
        let uri = format!("etcd://root:{}@{}", etcd::PASSWORD, self.etcd.address());
        let kv = kv::open(&uri, std::sync::Arc::new(WallClock)).await.unwrap();
        let config = Config::new(kv, "filler");
        let large = "x".repeat(200 << 10);
        while config.put("large", &large).await.is_ok() {}
    }
}

/// What a client asks for, and the service that it cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// A look-up in the database.
    LogIn,
    /// etcd's, with a number from the database.
    Status,
    /// A change in etcd.
    SetStatus,
    /// A row that needs room, an image, an agent.
    Create,
    /// Code in a session that is there all the time.
    Run,
}

const ALL: [Ask; 5] = [Ask::LogIn, Ask::Status, Ask::SetStatus, Ask::Create, Ask::Run];
const NEEDS_DATABASE: &[Ask] = &[Ask::LogIn, Ask::Status, Ask::Create, Ask::Run];
const NEEDS_ETCD: &[Ask] = &[Ask::Status, Ask::SetStatus, Ask::Create, Ask::Run];

/// One client, and what it needs to know.
struct Asker {
    client: Client,
    http: reqwest::Client,
    url: String,
    log_in: Value,
    /// A text that no database can make shorter.
    noise: String,
}

impl Asker {
    fn new(site: &Site) -> Self {
        let account = site.account("user");
        let mut noise = vec![0; 8 << 10];
        SeededRandom::default().fill(&mut noise);
        Self {
            client: site.client(),
            http: reqwest::Client::builder().timeout(PATIENCE).build().unwrap(),
            url: site.place.url(""),
            log_in: json!({
                "type": "keypair", "domain": "default", "username": account["email"], "password": account["password"],
            }),
            noise: noise.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// Whether it was served; the words of the 503 where it was not. Any other refusal is a defect.
    async fn ask(&self, ask: Ask) -> Result<(), String> {
        match ask {
            Ask::LogIn => {
                let log_in = self.http.post(format!("{}/auth/authorize", self.url));
                unsigned(log_in.json(&self.log_in)).await
            }
            Ask::Status => unsigned(self.http.get(format!("{}/manager/status", self.url))).await,
            Ask::SetStatus => {
                let status = json!({ "status": "running" });
                self.signed(Method::PUT, "/manager/status", Some(&status)).await
            }
            Ask::Create => {
                let wanted = json!({
                    "lang": "shell", "clientSessionToken": "passing",
                    "config": { "resources": { "cpu": 1, "mem": "64m" }, "environ": { "NOISE": self.noise } },
                });
                self.signed(Method::POST, "/kernel/create", Some(&wanted)).await?;
                self.signed(Method::DELETE, "/kernel/passing", None).await
            }
            Ask::Run => match says(&self.client, "lasting", 42)
                .await
                .expect("the server is there")
            {
                Ok(said) => {
                    assert_eq!(said, "42\n");
                    Ok(())
                }
                Err(refusal) => Err(unavailable(refusal)),
            },
        }
    }

    async fn signed(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(), String> {
        let answer = self.client.call(method, path, body).await;
        answer
            .map(drop)
            .map_err(|error| unavailable(format!("{error:#}")))
    }
}

/// What a client is told, which must be that a service is away.
fn unavailable(refusal: String) -> String {
    assert!(refusal.starts_with("503 "), "{refusal}");
    refusal
}

async fn unsigned(request: reqwest::RequestBuilder) -> Result<(), String> {
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let comes_again = answer.headers().contains_key("retry-after");
    let text = answer.text().await.unwrap();
    match status {
        200 => Ok(()),
        503 => {
            assert!(comes_again, "{text}");
            Err(text)
        }
        other => panic!("{other} {text}"),
    }
}

/// Begins or ends a fault.
type Turn = fn(&Site);

/// Something that happens to a service.
struct Fault {
    name: &'static str,
    begin: Turn,
    end: Turn,
    /// What cannot be served meanwhile; all else is.
    refused: &'static [Ask],
    /// What the log says of it, beside the service.
    logged: &'static str,
}

/// A service: its faults, and how it is called in answers and in the log.
struct Service {
    answered: &'static str,
    logged: &'static str,
    faults: Vec<Fault>,
}

const fn fault(
    name: &'static str,
    (begin, end): (Turn, Turn),
    refused: &'static [Ask],
    logged: &'static str,
) -> Fault {
    Fault {
        name,
        begin,
        end,
        refused,
        logged,
    }
}

fn slow(proxy: &Proxy) {
    proxy.delay(Duration::from_millis(20));
}

fn database() -> Service {
    Service {
        answered: "the database is not available",
        logged: "PostgreSQL at 127.0.0.1:",
        faults: vec![
            fault(
                "absent",
                (
                    |site| site.postgres.stop(),
                    |site| site.postgres.start_again().unwrap(),
                ),
                NEEDS_DATABASE,
                "([db] in ",
            ),
            fault(
                "refusing",
                (
                    |site| site.before_postgres.refuse(),
                    |site| site.before_postgres.pass(),
                ),
                NEEDS_DATABASE,
                "([db] in ",
            ),
            fault(
                "slow",
                (
                    |site| slow(&site.before_postgres),
                    |site| site.before_postgres.pass(),
                ),
                &[],
                "",
            ),
            fault(
                "with another password",
                (
                    |site| {
                        let change = "ALTER ROLE postgres PASSWORD 'hunter2'";
                        site.postgres.psql("postgres", change).unwrap();
                        site.before_postgres.cut();
                    },
                    |site| {
                        let change = format!("ALTER ROLE postgres PASSWORD '{}'", postgres::PASSWORD);
                        site.postgres.psql("postgres", &change).unwrap();
                    },
                ),
                NEEDS_DATABASE,
                "check the user and the password",
            ),
        ],
    }
}

fn configuration_store() -> Service {
    Service {
        answered: "etcd is not available",
        logged: "etcd at 127.0.0.1:",
        faults: vec![
            fault(
                "absent",
                (|site| site.etcd.kill(), |site| site.etcd.start_again()),
                NEEDS_ETCD,
                "(see etcd.addr or bai.config-store)",
            ),
            fault(
                "refusing",
                (|site| site.before_etcd.refuse(), |site| site.before_etcd.pass()),
                NEEDS_ETCD,
                "(see etcd.addr or bai.config-store)",
            ),
            fault(
                "silent",
                (|site| site.before_etcd.hold(), |site| site.before_etcd.pass()),
                NEEDS_ETCD,
                "(see etcd.addr or bai.config-store)",
            ),
            fault(
                "stopped",
                (|site| site.etcd.pause(), |site| site.etcd.resume()),
                NEEDS_ETCD,
                "(see etcd.addr or bai.config-store)",
            ),
            fault(
                "slow",
                (|site| slow(&site.before_etcd), |site| site.before_etcd.pass()),
                &[],
                "",
            ),
            fault(
                "with another password",
                (
                    |site| site.etcd.change_password("hunter2"),
                    |site| site.etcd.change_password(etcd::PASSWORD),
                ),
                NEEDS_ETCD,
                "(see etcd.user and etcd.password, or bai.config-store)",
            ),
            fault(
                "full",
                (
                    |site| tokio::runtime::Handle::current().block_on(site.fill_etcd()),
                    |site| site.etcd.make_room(),
                ),
                &[Ask::SetStatus],
                "is full: compact and defragment it",
            ),
        ],
    }
}

/// Nobody waits for it: requests are counted without it.
fn broker() -> Service {
    Service {
        answered: "",
        logged: "Redis at 127.0.0.1:",
        faults: vec![
            fault(
                "absent",
                (|site| site.redis.kill(), |site| site.redis.start_again()),
                &[],
                "(see config/redis/addr",
            ),
            fault(
                "refusing",
                (|site| site.before_redis.refuse(), |site| site.before_redis.pass()),
                &[],
                "(see config/redis/addr",
            ),
            fault(
                "silent",
                (|site| site.before_redis.hold(), |site| site.before_redis.pass()),
                &[],
                "(see config/redis/addr",
            ),
            fault(
                "slow",
                (|site| slow(&site.before_redis), |site| site.before_redis.pass()),
                &[],
                "",
            ),
            fault(
                "with another password",
                (
                    |site| {
                        site.redis.change_password("hunter2");
                        site.before_redis.cut();
                    },
                    |site| site.redis.change_password(redis::PASSWORD),
                ),
                &[],
                "(see config/redis/password",
            ),
            fault(
                "without memory",
                (|site| site.redis.fill_memory(), |site| site.redis.make_room()),
                &[],
                "OOM",
            ),
            fault(
                "with a full disk",
                (|site| site.redis.fill_disk(), |site| site.redis.make_room()),
                &[],
                "MISCONF",
            ),
        ],
    }
}

/// Goes through the faults of services, one after the other, on one manager.
async fn go_through(site: &Site, services: Vec<Service>) {
    let mut daemon = tokio::task::block_in_place(|| site.place.start(&[]));
    let asker = Asker::new(site);
    let wanted = json!({
        "lang": "shell", "clientSessionToken": "lasting", "config": { "resources": { "cpu": 1, "mem": "64m" } },
    });
    asker
        .signed(Method::POST, "/kernel/create", Some(&wanted))
        .await
        .unwrap();
    for service in services {
        for fault in &service.faults {
            pass_through(site, &mut daemon, &asker, &service, fault).await;
        }
    }
    asker
        .signed(Method::DELETE, "/kernel/lasting", None)
        .await
        .unwrap();
    let left = "SELECT sess_id, status FROM kernels WHERE status <> 'TERMINATED'";
    assert_eq!(site.postgres.psql("postgres", left).unwrap(), "");
    let counted = "SELECT DISTINCT concurrency_used FROM keypairs";
    assert_eq!(site.postgres.psql("postgres", counted).unwrap(), "0");
    for password in [etcd::PASSWORD, "hunter2"] {
        assert!(!daemon.log().contains(password), "{}", daemon.log());
    }
    tokio::task::block_in_place(|| daemon.stop());
}

async fn pass_through(site: &Site, daemon: &mut Daemon, asker: &Asker, service: &Service, fault: &Fault) {
    let before = daemon.log().len();
    tokio::task::block_in_place(|| (fault.begin)(site));
    let mut refused: Vec<Ask> = fault.refused.to_vec();
    let has_shown =
        |log: &str| log.contains(fault.logged) && (fault.logged.is_empty() || log.contains(service.logged));
    let shows = async {
        loop {
            for ask in ALL {
                let Err(said) = asker.ask(ask).await else { continue };
                // Whoever asks is looked up in the database every two seconds.
                let is_signed = ask == Ask::SetStatus && service.answered.starts_with("the database");
                let expected = (fault.refused.contains(&ask) || is_signed) && said.contains(service.answered);
                assert!(expected, "{} {}: {ask:?}: {said}", service.logged, fault.name);
                refused.retain(|awaited| *awaited != ask);
            }
            if refused.is_empty() && has_shown(&daemon.log()[before..]) {
                break;
            }
        }
    };
    if tokio::time::timeout(LIMIT, shows).await.is_err() {
        let log = &daemon.log()[before..];
        panic!(
            "{} {} does not show in {refused:?} or {log}",
            service.logged, fault.name
        );
    }
    tokio::task::block_in_place(|| (fault.end)(site));
    let goes_on = async {
        'again: loop {
            for ask in ALL {
                if asker.ask(ask).await.is_err() {
                    continue 'again;
                }
            }
            break;
        }
    };
    if tokio::time::timeout(LIMIT, goes_on).await.is_err() {
        let log = &daemon.log()[before..];
        panic!("{} {} is not over: {log}", service.logged, fault.name);
    }
    daemon.wait_for("a manager that lives", |_| true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_each_service_is_told_and_made_up_for() {
    match tokio::task::block_in_place(|| Site::start(Postgres::start)) {
        Ok(site) => go_through(&site, vec![database(), configuration_store(), broker()]).await,
        Err(missing) => println!("SKIPPED: faults of a manager's services, because {missing}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_the_database_is_told_and_made_up_for() {
    let full = fault(
        "with a full disk",
        (|site| site.postgres.fill_disk(), |site| site.postgres.make_room()),
        &[Ask::Create],
        "No space left on device",
    );
    let service = Service {
        faults: vec![full],
        ..database()
    };
    match tokio::task::block_in_place(|| Site::start(|| Postgres::start_on_disk_of(128 << 20))) {
        Ok(site) => go_through(&site, vec![service]).await,
        Err(missing) => println!("SKIPPED: a full disk of a manager's database, because {missing}"),
    }
}
