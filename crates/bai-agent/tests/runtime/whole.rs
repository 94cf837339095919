//! What a manager asks of an agent, on whichever runtime, from creation to the end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bai_agent::Images;
use bai_agent::runtime::Runtime;
use bai_model::{KernelId, RunId};
use bai_proto::agent::{AgentRpc, BatchOptions, ExecuteMode, ExecuteRequest, Mount};
use bai_proto::event::AgentImage;
use bytes::Bytes;

use crate::site::{Site, config, new_id, printed, soon};

/// Creation, runs, files, folders, restart, another agent process, end. The image has a shell.
pub async fn life(dir: &Path, runtime: Arc<dyn Runtime>, images: Images, image: &AgentImage) {
    let folder = "00112233445566778899aabbccddeeff";
    let shared = dir.join("volumes/local").join(folder);
    std::fs::create_dir_all(&shared).expect("made");
    std::fs::write(shared.join("note"), "from outside").expect("written");
    let mut site = Site::start(dir, runtime.clone(), images.clone()).await;
    let id = new_id();
    let mut wanted = config(image);
    wanted.environ = BTreeMap::from([("ASKED".to_owned(), "for".to_owned())]);
    let labels = &mut wanted.image.labels;
    labels.insert(
        "ai.backend.envs.corecount".to_owned(),
        "OMP_NUM_THREADS,CORES".to_owned(),
    );
    labels.insert(
        "ai.backend.features".to_owned(),
        "batch query uid-match".to_owned(),
    );
    wanted.mounts = vec![Mount {
        name: "shared".to_owned(),
        host: "local".to_owned(),
        folder: folder.to_owned(),
        writable: false,
    }];
    let created = soon(site.agent.create_kernel(id, wanted.clone()))
        .await
        .expect("a kernel");
    let sh = async |site: &Site, command: &str| batch(site, id, None, command).await;
    assert_eq!(
        sh(&site, "echo $ASKED-$OMP_NUM_THREADS-$CORES; pwd").await.0,
        "for-1-1\n/home/work\n"
    );
    let (said, _) = sh(&site, "echo $LOCAL_USER_ID; id -u").await;
    let ids: Vec<&str> = said.lines().collect();
    assert!(ids.len() == 2 && ids[0] == ids[1] && ids[0] != "0", "{said}");
    assert_eq!(sh(&site, "cat shared/note").await.0, "from outside");
    assert_ne!(
        sh(&site, "echo x > shared/note").await.1,
        Some(0),
        "it is read-only"
    );

    // Each step of a batch is reported, and none runs after a build that failed.
    assert_eq!(
        batch(&site, id, Some("echo building > built"), "cat built; exit 3").await,
        ("building\n".to_owned(), Some(3))
    );
    assert_eq!(
        batch(&site, id, Some("false"), "echo never").await,
        (String::new(), Some(127))
    );

    let upload = site
        .agent
        .upload_file(id, "deep/data.txt".to_owned(), Bytes::from_static(b"text"));
    soon(upload).await.expect("uploaded");
    assert_eq!(
        sh(&site, "cat deep/data.txt && echo more >> deep/data.txt")
            .await
            .0,
        "text"
    );
    let archive = soon(site.agent.download_file(id, "deep/data.txt".to_owned())).await;
    let mut archive = tar::Archive::new(std::io::Cursor::new(archive.expect("downloaded")));
    let mut entry = archive
        .entries()
        .expect("readable")
        .next()
        .expect("one")
        .expect("readable");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut entry, &mut text).expect("text");
    assert_eq!(text, "textmore\n");
    let listed = soon(site.agent.list_files(id, "deep".to_owned()))
        .await
        .expect("listed");
    assert!(listed.files.contains("data.txt"), "{listed:?}");
    assert!(
        soon(site.agent.get_logs(id))
            .await
            .expect("a log")
            .contains("building")
    );

    let restarted = soon(site.agent.restart_kernel(id, wanted))
        .await
        .expect("restarted");
    assert_ne!(restarted.container_id, created.container_id);
    assert_eq!(
        sh(&site, "cat built shared/note; echo $CORES").await.0,
        "building\nfrom outside1\n"
    );

    site = site.crash(dir, runtime, images).await;
    assert_eq!(site.agent.list_kernels().await, Ok(vec![id]));
    assert_eq!(sh(&site, "echo still here").await.0, "still here\n");
    let stats = soon(site.agent.destroy_kernel(id))
        .await
        .expect("destroyed")
        .expect("statistics");
    assert_ne!(stats["mem"]["stats.max"], "0", "{stats}");
    assert_eq!(site.terminated().await, (id, "user-requested".to_owned()));
    assert!(!dir.join("scratch").join(id.to_string()).exists());
    assert!(shared.join("note").exists(), "a folder is not the kernel's");
}

/// A work folder in memory takes what it may and no more; it outlives restarts and agents, and goes with its kernel.
pub async fn life_in_memory(dir: &Path, runtime: Arc<dyn Runtime>, images: Images, image: &AgentImage) {
    const SIZE: u64 = 8 << 20;
    let mut site = Site::start_with(dir, runtime.clone(), images.clone(), Some(SIZE)).await;
    let id = new_id();
    let work = dir.join("scratch").join(id.to_string()).join("work");
    let mounts = || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("readable");
        mounts
            .lines()
            .filter(|line| line.split(' ').nth(1) == work.to_str())
            .count()
    };
    let wanted = config(image);
    soon(site.agent.create_kernel(id, wanted.clone()))
        .await
        .expect("a kernel");
    if mounts() == 0 {
        println!("SKIPPED: work folders in memory, because mounting is refused here");
        return;
    }
    let record = dir
        .join("scratch")
        .join(id.to_string())
        .join("config/resource.txt");
    let record = std::fs::read_to_string(record).expect("readable");
    assert!(record.contains("\nSCRATCH_SIZE=8m\n"), "{record}");
    let (said, code) = batch(&site, id, None, "head -c 16m /dev/zero > large").await;
    assert!(said.contains("No space left on device"), "{said} {code:?}");
    // What is full is the session's folder and not the agent's.
    let upload = site
        .agent
        .upload_file(id, "more".to_owned(), Bytes::from(vec![0; 4096]));
    soon(upload).await.expect_err("there is no room");
    assert_eq!(
        batch(&site, id, None, ": > large; echo kept > file").await.1,
        Some(0)
    );
    soon(site.agent.restart_kernel(id, wanted))
        .await
        .expect("restarted");
    assert_eq!(batch(&site, id, None, "cat file").await.0, "kept\n");
    site = site.crash(dir, runtime, images).await;
    assert_eq!(batch(&site, id, None, "cat file").await.0, "kept\n");
    let listed = soon(site.agent.list_files(id, ".".to_owned())).await;
    assert!(listed.expect("listed").files.contains("file"));
    assert_eq!(mounts(), 1);
    soon(site.agent.destroy_kernel(id)).await.expect("destroyed");
    assert_eq!(mounts(), 0);
    assert!(!work.exists());
}

/// A session whose first program was killed for want of memory says so.
pub async fn want_of_memory(dir: &Path, runtime: Arc<dyn Runtime>, images: Images, image: &AgentImage) {
    let mut site = Site::start(dir, runtime, images).await;
    let id = new_id();
    soon(site.agent.create_kernel(id, config(image)))
        .await
        .expect("a kernel");
    batch(&site, id, None, "head -c 700m /dev/zero | tail -c 600m | wc -c").await;
    let last = ExecuteRequest {
        run_id: Some(RunId("last".to_owned())),
        mode: ExecuteMode::Batch,
        code: String::new(),
        batch: BatchOptions {
            exec: Some("kill -9 -1".to_owned()),
            ..BatchOptions::default()
        },
        // Nobody sees its end.
        flush_timeout: Some(Duration::ZERO),
    };
    soon(site.agent.execute(id, last)).await.expect("begun");
    assert_eq!(site.terminated().await, (id, "out-of-memory".to_owned()));
}

/// Runs a batch to its end: what it printed, and its exit code.
async fn batch(site: &Site, id: KernelId, build: Option<&str>, exec: &str) -> (String, Option<i32>) {
    let steps = BatchOptions {
        clean: None,
        build: build.map(str::to_owned),
        exec: Some(exec.to_owned()),
    };
    let run = RunId::generate(site.random.as_ref(), 32);
    let replies = site.batch(id, run.as_str(), steps).await;
    let said = replies.iter().map(printed).collect();
    (said, replies.last().and_then(|reply| reply.exit_code))
}
