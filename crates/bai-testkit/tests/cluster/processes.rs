//! Three real processes, of which one does the timers. What it does is seen where it cannot lie: PostgreSQL notes which
//! process declared an agent lost.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use bai_model::time::Clock as _;
use bai_model::{AgentId, AgentStatus, ResourceSlot};
use bai_store::agent::NewAgent;
use bai_store::{Reader, Store};
use bai_testkit::ambient::WallClock;
use serde_json::json;

use crate::site::{Site, eventually};

/// Notes who writes that an agent is lost.
const AUDIT: &str = "CREATE TABLE audit (number serial, who text); \
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
    INSERT INTO audit (who) VALUES (current_setting('application_name')); RETURN NEW; END $$; \
    CREATE TRIGGER note AFTER UPDATE OF status ON agents FOR EACH ROW \
    WHEN (NEW.status::text = 'LOST' AND OLD.status::text <> 'LOST') EXECUTE FUNCTION note();";

struct Process {
    child: Child,
    /// Of its lease.
    name: String,
}

impl Process {
    fn start(site: &Site) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_manager"))
            .args(site.uris())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut name = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut name)
            .unwrap();
        let name = name.trim().to_owned();
        assert!(!name.is_empty(), "it started");
        Self { child, name }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("sh")
            .args(["-c", r#"kill -s "$0" "$1""#, signal, &pid])
            .status();
        assert!(sent.unwrap().success());
    }

    fn application(&self) -> String {
        format!("bai-{}", self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended needs no end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn holder(reader: &Reader) -> Option<String> {
    Some(reader.claim_on("timers").await.unwrap()?.lease)
}

/// Lets an agent be there that nobody hears of, and says who declares it lost.
async fn who_loses_an_agent(site: &Site, store: &Store) -> String {
    let agent = NewAgent {
        id: AgentId("i-silent".to_owned()),
        region: "local".to_owned(),
        addr: "tcp://127.0.0.1:6001".to_owned(),
        version: "19.06.0".to_owned(),
        available_slots: ResourceSlot::default(),
        compute_plugins: json!({}),
    };
    let mut tx = store.begin().await.unwrap();
    tx.upsert_agent(&agent, WallClock.now()).await.unwrap();
    tx.commit().await.unwrap();
    eventually("the agent is lost", || async {
        let row = store.reader().agent(&agent.id).await.unwrap()?;
        (row.status == AgentStatus::Lost).then_some(())
    })
    .await;
    let last = "SELECT who FROM audit ORDER BY number DESC LIMIT 1";
    site.postgres.psql("postgres", last).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_processes_does_the_timers() {
    let Some(site) = Site::start("three managers") else {
        return;
    };
    let store = site.store().await;
    site.postgres.psql("postgres", AUDIT).unwrap();
    let reader = store.reader();
    let mut processes: Vec<Process> = (0..3).map(|_| Process::start(&site)).collect();
    let first = eventually("somebody has the timers", || holder(&reader)).await;
    let mut take = |name: &str| {
        let index = processes.iter().position(|process| process.name == name);
        processes.remove(index.expect("one of ours"))
    };
    let next = |old: String| {
        let reader = &reader;
        async move {
            eventually("somebody else has the timers", || async {
                holder(reader).await.filter(|holder| *holder != old)
            })
            .await
        }
    };

    let killed = take(&first);
    assert_eq!(who_loses_an_agent(&site, &store).await, killed.application());
    let at = Instant::now();
    drop(killed);
    let second = next(first).await;
    println!("the timers of a killed manager moved after {:?}", at.elapsed());

    let paused = take(&second);
    assert_eq!(who_loses_an_agent(&site, &store).await, paused.application());
    let at = Instant::now();
    paused.signal("STOP");
    let third = next(second.clone()).await;
    println!("the timers of a paused manager moved after {:?}", at.elapsed());
    let mut stopped = take(&third);
    assert_eq!(who_loses_an_agent(&site, &store).await, stopped.application());
    paused.signal("CONT");
    assert_eq!(
        who_loses_an_agent(&site, &store).await,
        stopped.application(),
        "one who comes back late takes nothing"
    );

    let at = Instant::now();
    drop(stopped.child.stdin.take());
    assert!(stopped.child.wait().unwrap().success());
    let last = next(third).await;
    println!(
        "the timers of a manager that stopped moved after {:?}",
        at.elapsed()
    );
    assert_eq!(last, second);
    assert_eq!(who_loses_an_agent(&site, &store).await, paused.application());
    let count = site
        .postgres
        .psql("postgres", "SELECT count(*) FROM audit")
        .unwrap();
    assert_eq!(count.trim(), "5", "each loss was written once");
}
