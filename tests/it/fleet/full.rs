//! The disk with the sessions' folders is full, or the one with the engine's data: nothing can be started, nothing is held
//! for what was not, and everything goes on when there is room.

use std::fs;
use std::io::Write as _;
use std::process::Command;

use bai_model::AgentStatus;
use bai_testkit::services::Docker;

use super::containers::{self, IMAGE};
use super::{Fleet, Member, PATIENCE, create, create_of, destroy, until};
use crate::crash::says;

/// Mounts a small disk that nobody else sees, and becomes the agent.
const ON_SMALL_DISK: &str = r#"mkdir -p "$0" && mount -t tmpfs -o size=8m,mode=755 none "$0" && exec "$@""#;

fn can_mount() -> bool {
    let mounted = Command::new("unshare")
        .args(["--mount", "sh", "-c", "mount -t tmpfs none /mnt"])
        .output();
    mounted.is_ok_and(|output| output.status.success())
}

fn on_small_disk(fleet: &Fleet) -> Member {
    let mut member = fleet.member("i-full", "127.0.0.1", "runtime = 'process'");
    let scratch = member.place.path("scratch").display().to_string();
    member.place.enter = ["unshare", "--mount", "sh", "-c", ON_SMALL_DISK, &scratch]
        .map(str::to_owned)
        .to_vec();
    member
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_sessions_until_there_is_room() {
    if !can_mount() {
        return println!("SKIPPED: a full disk of an agent, because this is not root or must not mount");
    }
    let fleet = match Fleet::start("127.0.0.1").await {
        Ok(fleet) => fleet,
        Err(missing) => return println!("SKIPPED: a full disk of an agent, because {missing}"),
    };
    let mut member = on_small_disk(&fleet);
    member.start();
    fleet.until_status(&member, AgentStatus::Alive, PATIENCE).await;
    let client = fleet.client();
    create(&client, "before").await.unwrap();
    assert_eq!(says(&client, "before", 1).await.unwrap(), Ok("1\n".to_owned()));

    // As the agent sees it.
    let scratch = member.place.path("scratch");
    let seen = format!("/proc/{}/root{}/.filler", member.pid(), scratch.display());
    let mut filler = fs::File::create(&seen).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    for name in ["during-1", "during-2"] {
        let refusal = create(&client, name).await.unwrap_err();
        let expected = "500 Kernel creation has failed.: OSError(\"the kernel's folder cannot be written: No space left on device";
        assert!(refusal.starts_with(expected), "{refusal}");
    }
    fleet.converge(&[&member]).await;
    assert_eq!(fleet.sessions_of(&member).await, ["before".to_owned()].into());
    assert_eq!(says(&client, "before", 2).await.unwrap(), Ok("2\n".to_owned()));

    fs::remove_file(&seen).unwrap();
    drop(filler);
    let starts = async || create(&client, "after").await.is_ok();
    until("a session", PATIENCE, starts).await;
    assert_eq!(says(&client, "after", 3).await.unwrap(), Ok("3\n".to_owned()));
    for name in ["before", "after"] {
        destroy(&client, name).await.unwrap();
    }
    fleet.converge(&[&member]).await;
    member.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_without_room_refuses_sessions_until_there_is_some() {
    let engine = Docker::start_on_disk(64 << 20);
    let started = match engine {
        Ok(engine) => containers::start_on(engine).await,
        Err(missing) => Err(missing),
    };
    let (fleet, member, engine) = match started {
        Ok(started) => started,
        Err(missing) => return println!("SKIPPED: a full disk of an engine, because {missing}"),
    };
    let client = fleet.client();
    for name in ["before", "ended"] {
        create_of(&client, IMAGE, name).await.unwrap();
        assert_eq!(says(&client, name, 1).await.unwrap(), Ok("1\n".to_owned()));
    }

    let filler = tokio::task::block_in_place(|| engine.fill());
    // What fails first depends on how little room is left: making a container, or starting it.
    for name in ["during-1", "during-2", "during-3"] {
        let refusal = create_of(&client, IMAGE, name).await.unwrap_err();
        assert!(
            refusal.starts_with("500 Kernel creation has failed.: "),
            "{refusal}"
        );
        assert!(refusal.contains("the container engine cannot "), "{refusal}");
        assert!(
            refusal.contains("no space left on device; make room where the engine keeps its data"),
            "{refusal}"
        );
    }
    fleet.converge(&[&member]).await;
    let running = ["before".to_owned(), "ended".to_owned()];
    assert_eq!(fleet.sessions_of(&member).await, running.into());
    assert_eq!(says(&client, "before", 2).await.unwrap(), Ok("2\n".to_owned()));
    destroy(&client, "ended").await.unwrap();
    fleet.converge(&[&member]).await;

    fs::remove_file(&filler).unwrap();
    let starts = async || create_of(&client, IMAGE, "after").await.is_ok();
    until("a session", PATIENCE, starts).await;
    assert_eq!(says(&client, "before", 3).await.unwrap(), Ok("3\n".to_owned()));
    assert_eq!(says(&client, "after", 3).await.unwrap(), Ok("3\n".to_owned()));
    for name in ["before", "after"] {
        destroy(&client, name).await.unwrap();
    }
    fleet.converge(&[&member]).await;
    assert_eq!(engine.docker(&["ps", "-aq"]).unwrap(), "");
    member.end().await;
}
