//! The process runtime with the real runner: life and death of kernels, limits, adoption.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bai_agent::Images;
use bai_agent::runtime::process::{Options, ProcessRuntime};
use bai_agent::runtime::{KernelSpec, Runtime};
use bai_model::KernelId;
use bai_proto::agent::{AgentRpc, ServiceStart};
use bai_proto::event::AgentImage;

use crate::site::{Site, config, new_id, soon};
use crate::{conform, reach, whole};

/// The runner, from `BAI_RUNNER` or from the target directory that this test was built into.
fn runner() -> Option<PathBuf> {
    let found = std::env::var_os("BAI_RUNNER").map(PathBuf::from).or_else(|| {
        let exe = std::env::current_exe().ok()?;
        Some(exe.parent()?.parent()?.join("bai-runner"))
    });
    let found = found.filter(|path| path.is_file());
    if found.is_none() {
        println!("SKIPPED: bai-runner is not built; `cargo build -p bai-runner` or set BAI_RUNNER");
    }
    found
}

struct Bench {
    runtime: ProcessRuntime,
    spec: KernelSpec,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(index: u32, options: Options) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let spec = conform::spec(dir.path(), index);
        Some(Self {
            runtime: ProcessRuntime::new(runner()?, options),
            spec,
            _dir: dir,
        })
    }

    async fn start(&self) -> String {
        self.runtime
            .start(&self.spec)
            .await
            .expect("the kernel starts")
            .container_id
    }

    async fn sh(&self, command: &str) -> (String, Option<i32>) {
        conform::sh(&self.runtime, &self.spec, command).await
    }

    async fn kill(&self, id: &str) {
        self.runtime.kill(&self.spec, id).await.expect("killed");
        assert!(groups_of(&self.spec.kernel).is_empty(), "no cgroup is left");
        assert!(self.runtime.adopt(&self.spec, id).await.expect("asked").is_none());
    }
}

/// The content of a file of a kernel's cgroups.
fn group_file(kernel: &KernelId, file: &str) -> Option<String> {
    let found = groups_of(kernel)
        .into_iter()
        .find_map(|dir| std::fs::read_to_string(dir.join(file)).ok());
    found.map(|text| text.trim().to_owned())
}

/// Directories of a kernel in any cgroup hierarchy.
fn groups_of(kernel: &KernelId) -> Vec<PathBuf> {
    let name = format!("bai-{kernel}");
    let mut found = Vec::new();
    let mut queue = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = queue.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_name().to_str() == Some(&name) {
                found.push(entry.path());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                queue.push(entry.path());
            }
        }
    }
    found
}

/// Ended children of this process that nobody has reaped, whose start has failed.
fn zombies() -> usize {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let status = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("status")).ok();
    let ours = format!("PPid:\t{}\n", std::process::id());
    entries
        .filter_map(status)
        .filter(|status| status.contains(&ours) && status.contains("State:\tZ"))
        .count()
}

fn alive(id: &str) -> bool {
    let pid = id.split('-').nth(1).expect("a pid");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

#[tokio::test]
async fn a_kernel_starts_works_and_is_killed() {
    let Some(bench) = Bench::new(1, Options::default()) else {
        return;
    };
    let begun = Instant::now();
    let id = bench.start().await;
    println!(
        "started in {:?}; refused: {:?}",
        begun.elapsed(),
        bench.runtime.refusals()
    );
    assert!(id.len() <= 64, "{id}");
    assert_eq!(
        bench.sh("echo $((6*7)); id -u").await,
        ("42\n1000".to_owned(), Some(0))
    );
    assert_eq!(bench.sh("nproc").await.0, "1");
    let sample = bench
        .runtime
        .measure(&bench.spec, &id)
        .await
        .expect("measurements");
    assert_ne!(sample.memory, 0, "{sample:?}");
    let begun = Instant::now();
    bench.kill(&id).await;
    println!("killed in {:?}", begun.elapsed());
    assert!(!alive(&id));
    bench.kill(&id).await;
}

#[tokio::test]
async fn a_kernel_on_a_leash_dies_with_its_agent() {
    let Some(bench) = Bench::new(
        3,
        Options {
            dies_with_agent: true,
            ..Options::default()
        },
    ) else {
        return;
    };
    let id = bench.start().await;
    let next = ProcessRuntime::new(runner().expect("found before"), Options::default());
    let Bench { runtime, spec, _dir } = bench;
    assert!(alive(&id));
    drop(runtime);
    let reason = tokio::time::timeout(Duration::from_secs(10), next.wait(&spec, &id))
        .await
        .expect("it ends");
    assert_eq!(reason, "self-terminated");
    assert!(!alive(&id));
    next.kill(&spec, &id).await.expect("cleaned up");
    assert!(groups_of(&spec.kernel).is_empty());
}

#[tokio::test]
async fn a_kernel_does_what_every_runtime_must() {
    let Some(bench) = Bench::new(2, Options::default()) else {
        return;
    };
    conform::works_and_is_killed(&bench.runtime, &bench.spec).await;
    conform::restarts_with_its_files(&bench.runtime, &bench.spec).await;
    conform::tells_of_its_end(&bench.runtime, &bench.spec).await;
    assert!(groups_of(&bench.spec.kernel).is_empty(), "no cgroup is left");
}

#[tokio::test]
async fn a_kernel_outlives_its_agent_and_is_adopted() {
    let Some(bench) = Bench::new(4, Options::default()) else {
        return;
    };
    let next = ProcessRuntime::new(runner().expect("found before"), Options::default());
    let Bench { runtime, spec, _dir } = bench;
    conform::outlives_its_agent(Box::new(runtime), &next, &spec).await;
    assert!(groups_of(&spec.kernel).is_empty());
}

#[tokio::test]
async fn want_of_memory_is_named_as_the_reason() {
    let Some(bench) = Bench::new(7, Options::default()) else {
        return;
    };
    let id = bench.start().await;
    let refusals = bench.runtime.refusals();
    bench.kill(&id).await;
    if refusals
        .iter()
        .any(|refusal| refusal.protection == "memory cgroup")
    {
        println!("SKIPPED: the memory cgroup, because this machine refuses it");
        return;
    }
    conform::names_want_of_memory(&bench.runtime, &bench.spec).await;
}

#[tokio::test]
async fn groups_carry_the_limits_and_all_processes() {
    let Some(bench) = Bench::new(
        8,
        Options {
            processes: 40,
            ..Options::default()
        },
    ) else {
        return;
    };
    let id = bench.start().await;
    let refused = bench.runtime.refusals();
    let kernel = &bench.spec.kernel;
    for (controller, v1, v2, value) in [
        ("memory", "memory.limit_in_bytes", "memory.max", "268435456"),
        ("cpu", "cpu.cfs_quota_us", "cpu.max", "100000"),
        ("cpuset", "cpuset.cpus", "cpuset.cpus", "0"),
        ("pids", "pids.max", "pids.max", "40"),
    ] {
        if refused
            .iter()
            .any(|refusal| refusal.protection == format!("{controller} cgroup"))
        {
            println!("SKIPPED: the {controller} cgroup, because this machine refuses it");
            continue;
        }
        let set = group_file(kernel, v1)
            .or_else(|| group_file(kernel, v2))
            .expect("a limit");
        assert_eq!(set.split(' ').next(), Some(value), "{controller}");
        assert!(group_file(kernel, "cgroup.procs").is_some_and(|pids| !pids.is_empty()));
    }
    let (_, code) = bench
        .sh("i=0; while [ $i -lt 100 ]; do sleep 30 & i=$((i+1)); done")
        .await;
    assert_ne!(code, Some(0), "processes are limited");
    bench.kill(&id).await;
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_leaves_nothing() {
    let Some(bench) = Bench::new(6, Options::default()) else {
        return;
    };
    conform::says_why_it_does_not_start(&bench.runtime, &bench.spec).await;
    // Those of tests beside this one go away.
    tokio::time::timeout(Duration::from_secs(10), async {
        while zombies() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("failed starts are reaped");
    let missing = ProcessRuntime::new(Path::new("/nonexistent/runner").into(), Options::default());
    let error = missing
        .start(&bench.spec)
        .await
        .expect_err("there is no runner")
        .to_string();
    assert!(error.contains("/nonexistent/runner"), "{error}");
    assert!(groups_of(&bench.spec.kernel).is_empty());
}

#[tokio::test]
async fn a_probe_says_what_this_machine_grants_and_leaves_nothing() {
    let Some(runner) = runner() else { return };
    let runtime = ProcessRuntime::new(runner, Options::default());
    let report = runtime.probe().await.expect("sandboxes are possible here");
    println!("{report:?}");
    assert!(report.enforced.iter().any(|name| name == "user namespace"));
    assert!(!Path::new(&format!("/proc/{}/stat", report.pid)).exists());
}

/// What a whole agent needs, with an image of this host's programs.
fn prepared(
    runtime_type: &str,
    program: &str,
) -> Option<(tempfile::TempDir, Arc<ProcessRuntime>, Images, AgentImage)> {
    let runtime = Arc::new(ProcessRuntime::new(runner()?, Options::default()));
    let label = |name: &str, value: &str| (format!("ai.backend.{name}"), value.to_owned());
    let image = AgentImage {
        canonical: "index.docker.io/lablup/test:1".to_owned(),
        digest: format!("sha256:{}", "0".repeat(64)),
        labels: [
            label("kernelspec", "1"),
            label("runtime-type", runtime_type),
            label("runtime-path", program),
        ]
        .into(),
        aliases: Vec::new(),
        resource_min: BTreeMap::new(),
    };
    let dir = tempfile::tempdir().expect("a folder");
    Some((dir, runtime, Images::Given(vec![image.clone()]), image))
}

#[tokio::test]
async fn an_agent_does_what_managers_ask() {
    let Some((dir, runtime, images, image)) = prepared("shell", "/bin/sh") else {
        return;
    };
    whole::life(dir.path(), runtime, images, &image).await;
}

#[tokio::test]
async fn work_folders_can_be_in_memory() {
    let Some((dir, runtime, images, image)) = prepared("shell", "/bin/sh") else {
        return;
    };
    whole::life_in_memory(dir.path(), runtime, images, &image).await;
}

#[tokio::test]
async fn a_terminal_is_typed_into_and_outlives_the_agent() {
    let Some((dir, runtime, images, image)) = prepared("shell", "/bin/sh") else {
        return;
    };
    reach::terminal(dir.path(), runtime, images, &image).await;
}

#[tokio::test]
async fn services_are_reached_by_their_ports() {
    let Some((dir, runtime, images, image)) = prepared("python", "/usr/bin/python3") else {
        return;
    };
    reach::ports(dir.path(), runtime, images, &image).await;
}

#[tokio::test]
async fn services_start_and_are_watched() {
    let Some((dir, runtime, images, image)) = prepared("python", "/usr/bin/python3") else {
        return;
    };
    reach::services(dir.path(), runtime, images, &image).await;
}

#[tokio::test]
async fn other_users_of_this_machine_reach_no_session() {
    let Some((dir, runtime, images, image)) = prepared("shell", "/bin/sh") else {
        return;
    };
    let is_root = nix::unistd::geteuid().is_root();
    let look = |prefix: &'static [&'static str], port: u16, listen: std::net::IpAddr| async move {
        // A terminal greets whoever may connect.
        let script = format!("exec 3<>/dev/tcp/{listen}/{port} && head -c 1 <&3 | wc -c");
        let words: Vec<&str> = prefix.iter().copied().chain(["bash", "-c", &script]).collect();
        let output = tokio::process::Command::new(words[0]).args(&words[1..]).output();
        let output = soon(output).await.ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let site = Site::start(dir.path(), runtime, images).await;
    let created = site
        .agent
        .create_kernel(new_id(), config(&image))
        .await
        .expect("a kernel");
    assert_eq!(
        look(&[], created.stdout_port, site.listen).await.as_deref(),
        Some("1")
    );
    let other: &[&str] = &["setpriv", "--reuid=65534", "--clear-groups"];
    match is_root {
        false => println!("SKIPPED: another user at a session's ports, because only root can become one"),
        true => match look(other, created.stdout_port, site.listen).await {
            Some(greeting) => assert_eq!(greeting, "0"),
            None => println!("SKIPPED: another user at a session's ports, because there is no setpriv"),
        },
    }
    site.agent.reset_agent().await.expect("ended");
}

/// A Python that has `notebook`: the one that `BAI_JUPYTER_PYTHON` names, or that of the test command.
fn jupyter_python() -> Option<String> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/interop/jupyter/bin/python");
    let python = match std::env::var("BAI_JUPYTER_PYTHON") {
        Ok(named) => PathBuf::from(named),
        Err(_) => made.parent()?.canonicalize().ok()?.join("python"),
    };
    let has_notebook = std::process::Command::new(&python)
        .args(["-c", "import notebook"])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    has_notebook.then(|| python.display().to_string())
}

#[tokio::test]
async fn jupyter_serves_where_it_is_installed() {
    let Some(python) = jupyter_python() else {
        println!(
            "SKIPPED: Jupyter as a service, because neither BAI_JUPYTER_PYTHON nor target/interop/jupyter, which \
             `cargo xtask test` makes, is a Python that has `notebook`"
        );
        return;
    };
    let Some((dir, runtime, images, mut image)) = prepared("python", &python) else {
        return;
    };
    let ports = (
        "ai.backend.service-ports".to_owned(),
        "jupyter:http:8080".to_owned(),
    );
    image.labels.extend([ports]);
    let site = Site::start(dir.path(), runtime, images).await;
    let (id, mut wanted) = (new_id(), config(&image));
    wanted.resource_slots = [("cpu", 1_i64), ("mem", 1 << 30)]
        .into_iter()
        .map(|(slot, amount)| (slot, amount.into()))
        .collect();
    let created = site.agent.create_kernel(id, wanted).await.expect("a kernel");
    let started = site
        .agent
        .start_service(id, "jupyter".to_owned(), serde_json::json!({}));
    assert_eq!(soon(started).await, Ok(ServiceStart::Started));
    let status = reach::get(&site, created.service_ports[0].host_port, "/api/status").await;
    assert!(
        status.contains("200 OK") && status.contains("\"kernels\""),
        "without a token: {status}"
    );
    site.agent.destroy_kernel(id).await.expect("ended");
}
