//! The server is killed at random moments, while clients create, use, restart and end sessions, and started again: no
//! acknowledged session is lost, none is doubled, no sandbox is left without an owner, and no slot leaks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bai::client::Client;
use bai_model::random::Random;
use bai_model::{KernelStatus, SecretKey};
use bai_store::{Reader, Store};
use bai_testkit::ambient::SeededRandom;
use bai_testkit::services::processes_of;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::server::{Home, Up};

/// How often the server is killed. `BAI_CRASH_ROUNDS` asks for more than the test suite has time for.
const ROUNDS: u64 = 6;
const WORKERS: u64 = 4;
/// How long the server may take after a start to make the world agree with its records.
const SETTLE: Duration = Duration::from_secs(60);

/// What the clients know of a session.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    /// Its creation was asked for.
    Asked,
    /// Its creation was acknowledged.
    Created,
    /// Its end was asked for.
    Ending,
    /// Its end was acknowledged.
    Ended,
}

#[derive(Clone)]
struct Clients {
    sessions: Arc<Mutex<BTreeMap<String, Known>>>,
    acknowledged: Arc<watch::Sender<u64>>,
    random: Arc<SeededRandom>,
}

impl Clients {
    fn below(&self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit
    }

    fn note(&self, session: &str, known: Known) {
        self.sessions.lock().unwrap().insert(session.to_owned(), known);
        if matches!(known, Known::Created | Known::Ended) {
            self.acknowledged.send_modify(|count| *count += 1);
        }
    }

    /// Takes a session that is there, so that nobody else ends it.
    fn take_one_to_end(&self) -> Option<String> {
        let mut sessions = self.sessions.lock().unwrap();
        let created = |(_, known): &(&String, &Known)| **known == Known::Created;
        let count = sessions.iter().filter(created).count();
        let chosen = usize::try_from(self.below(count.max(1) as u64)).unwrap();
        let name = sessions.iter().filter(created).nth(chosen)?.0.clone();
        sessions.insert(name.clone(), Known::Ending);
        Some(name)
    }

    /// Works until the server is gone.
    async fn work(self, client: Client, prefix: String) {
        for number in 0.. {
            let name = format!("{prefix}-{number}");
            self.note(&name, Known::Asked);
            let wanted = json!({
                "lang": "shell", "clientSessionToken": name, "config": { "resources": { "cpu": 1, "mem": "64m" } },
            });
            match answer(&client, Method::POST, "/kernel/create", Some(&wanted)).await {
                Some(Ok(_)) => self.note(&name, Known::Created),
                // There is no room.
                Some(Err(_)) => self.note(&name, Known::Ended),
                None => return,
            }
            let act = self.below(4);
            if act == 0
                && answer(&client, Method::PATCH, &format!("/kernel/{name}"), None)
                    .await
                    .is_none()
            {
                return;
            }
            if act == 1 && says(&client, &name, number).await.is_none() {
                return;
            }
            if let Some(name) = self.take_one_to_end() {
                match answer(&client, Method::DELETE, &format!("/kernel/{name}"), None).await {
                    Some(_) => self.note(&name, Known::Ended),
                    None => return,
                }
            }
        }
    }
}

/// The server's answer, a refusal as its text, or `None` when the server went away.
pub async fn answer(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Option<Result<Value, String>> {
    let text = match client.call(method.clone(), path, body).await {
        Ok(value) => return Some(Ok(value)),
        Err(error) => format!("{error:#}"),
    };
    assert!(!text.contains("Internal server error"), "{method} {path}: {text}");
    let is_refusal = text
        .split(' ')
        .next()
        .is_some_and(|status| status.parse::<u16>().is_ok());
    is_refusal.then_some(Err(text))
}

/// Runs a command in a session; what it printed, a refusal, or `None` when the server went away.
pub async fn says(client: &Client, session: &str, number: u64) -> Option<Result<String, String>> {
    let path = format!("/kernel/{session}");
    let run_id = format!("run-{number}");
    let mut wanted = json!({ "mode": "query", "code": format!("echo {number}"), "runId": run_id });
    let mut printed = String::new();
    loop {
        let reply = match answer(client, Method::POST, &path, Some(&wanted)).await? {
            Ok(reply) => reply,
            Err(refusal) => return Some(Err(refusal)),
        };
        for item in reply["result"]["console"].as_array().into_iter().flatten() {
            printed.push_str(item[1].as_str().unwrap_or_default());
        }
        if reply["result"]["status"] == "finished" {
            return Some(Ok(printed));
        }
        wanted = json!({ "mode": "continue", "code": "", "runId": run_id });
    }
}

fn client(up: &Up) -> Client {
    let secret_key = SecretKey::new(up.setting("BACKEND_SECRET_KEY").to_owned());
    Client::new(
        up.setting("BACKEND_ENDPOINT"),
        up.setting("BACKEND_ACCESS_KEY"),
        secret_key,
    )
    .unwrap()
}

/// Waits until no session is between two states.
async fn settled(reader: &Reader) {
    const BETWEEN: [KernelStatus; 3] = [
        KernelStatus::Preparing,
        KernelStatus::Restarting,
        KernelStatus::Terminating,
    ];
    let deadline = Instant::now() + SETTLE;
    loop {
        let unsettled = reader.kernels_with_status(&BETWEEN).await.unwrap();
        if unsettled.is_empty() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "still between two states: {unsettled:#?}"
        );
        tokio::task::yield_now().await;
    }
}

/// Kernels that have a sandbox, by the names that the sandboxes' processes carry.
pub fn sandboxes(folder: &Path) -> BTreeSet<String> {
    let named = |line: &String| Some(line.split_once(" sandbox ")?.1.trim().to_owned());
    processes_of(folder).iter().filter_map(named).collect()
}

/// What must hold whenever the server has settled.
async fn check(up: &Up, clients: &Clients, round: u64) {
    let store = Store::open(&up.home.database()).await.unwrap();
    let reader = store.reader();
    settled(&reader).await;
    let client = client(up);
    let known = clients.sessions.lock().unwrap().clone();
    for (name, known) in known {
        let said = says(&client, &name, round).await.expect("the server is there");
        match known {
            Known::Created => assert_eq!(said, Ok(format!("{round}\n")), "{name} was acknowledged"),
            Known::Ended => assert!(said.is_err(), "{name} was ended and answers {said:?}"),
            // The server died in between: one or the other, but wholly.
            Known::Asked | Known::Ending => {
                assert!(
                    said.is_err() || said == Ok(format!("{round}\n")),
                    "{name}: {said:?}"
                );
            }
        }
        let now = if said.is_ok() {
            Known::Created
        } else {
            Known::Ended
        };
        clients.sessions.lock().unwrap().insert(name, now);
    }
    let live: Vec<_> = reader
        .kernels_with_status(&[KernelStatus::Running])
        .await
        .unwrap();
    let names: BTreeSet<_> = live.iter().map(|row| row.sess_id.clone()).collect();
    assert_eq!(names.len(), live.len(), "a session is there twice: {live:#?}");
    let recorded: BTreeSet<String> = live.iter().map(|row| row.id.to_string()).collect();
    assert_eq!(sandboxes(up.home.path()), recorded, "sandboxes and records");
    for row in reader
        .kernels_with_status(&[KernelStatus::Terminated])
        .await
        .unwrap()
    {
        assert!(
            row.status_info.is_some_and(|reason| !reason.is_empty()),
            "{} ended without a reason",
            row.id
        );
    }
    assert_eq!(
        reader.check_accounting().await.unwrap(),
        [],
        "counters and records"
    );
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_again_and_again_loses_and_leaks_nothing() {
    let rounds = std::env::var("BAI_CRASH_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok());
    let clients = Clients {
        sessions: Arc::default(),
        acknowledged: Arc::new(watch::Sender::new(0)),
        random: Arc::default(),
    };
    let mut up = tokio::task::block_in_place(Up::start);
    for round in 0..rounds.unwrap_or(ROUNDS) {
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..WORKERS {
            workers.spawn(
                clients
                    .clone()
                    .work(client(&up), format!("crash-{round}-{worker}")),
            );
        }
        let mut acknowledged = clients.acknowledged.subscribe();
        let enough = *acknowledged.borrow() + 3 + clients.below(30);
        acknowledged.wait_for(|count| *count >= enough).await.unwrap();
        up = tokio::task::block_in_place(|| {
            let home = up.stop("-KILL");
            Up::start_in(home)
        });
        println!(
            "round {round}: killed after {} acknowledgements",
            *acknowledged.borrow()
        );
        while let Some(worker) = workers.join_next().await {
            worker.unwrap();
        }
        check(&up, &clients, round).await;
    }
    let client = client(&up);
    let known = clients.sessions.lock().unwrap().clone();
    for (name, known) in known {
        if known == Known::Created {
            client
                .call(Method::DELETE, &format!("/kernel/{name}"), None)
                .await
                .unwrap();
        }
    }
    let home = tokio::task::block_in_place(|| up.stop("-TERM"));
    assert!(processes_of(home.path()).is_empty());
}

#[test]
fn a_first_start_that_is_killed_is_made_up_for_by_the_next() {
    let traces = Home::new().traces();
    for trace in traces {
        let home = Home::new();
        let mut child = home
            .server()
            .stderr(fs::File::create(home.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + SETTLE;
        while !home.has(trace) {
            assert!(Instant::now() < deadline, "{trace} does not appear");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let up = Up::start_in(home);
        let output = up.run(&["--rm", "shell", "-c", "echo works"]);
        assert_eq!(
            output.stdout, b"works\n",
            "killed when {trace} appeared: {output:?}"
        );
    }
}
