//! Control groups of kernels, version 1 and version 2, as far as this process may make them.
//!
//! Each kernel gets a group `bai-<kernel id>` in every usable hierarchy, below the agent's own group where that is
//! possible. Limits are written before the runner starts; it enters the groups before it does anything else.
//!
//! Invariants: a controller that cannot be used is named in [`Cgroups::refusals`]; a group is removed only when empty.
//!
//! Not here: limits by rlimits, which hold instead (`bai-runner`); measurements (`super::stats`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bai_model::KernelId;
use bai_proto::sandbox::Refusal;

/// Controllers that limit, with what is lost where they are refused.
const LIMITING: [(&str, &str); 4] = [
    (
        "memory",
        "only the memory of each single process is limited, by RLIMIT_DATA",
    ),
    (
        "cpu",
        "a session can use all the time of the CPUs that it is bound to",
    ),
    (
        "cpuset",
        "a session is bound to its CPUs by affinity, which it can change",
    ),
    ("pids", "processes are limited by RLIMIT_NPROC"),
];
/// Controllers that only measure, for version 1; nothing is lost without them but numbers.
const MEASURING: [&str; 2] = ["cpuacct", "blkio"];
const PREFIX: &str = "bai-";
/// Younger empty groups may belong to a kernel that another agent is just starting.
const ORPHAN_AGE: Duration = Duration::from_secs(60);

/// The places below which kernels' groups are made.
#[derive(Debug, Default)]
pub struct Cgroups {
    /// Version 1: a directory for each usable controller.
    per_controller: BTreeMap<&'static str, PathBuf>,
    /// Version 2: one directory, and the controllers that it passes on.
    unified: Option<(PathBuf, Vec<&'static str>)>,
    pub refusals: Vec<Refusal>,
}

/// What a kernel may use.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Bytes; 0 for no limit.
    pub memory: u64,
    pub cpus: Vec<usize>,
    pub processes: u64,
}

/// The groups of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    pub dirs: Vec<PathBuf>,
    pub limits_memory: bool,
}

impl Cgroups {
    /// Finds out what this process may use, by trying.
    pub fn detect() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let found = hierarchies(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
        let mut cgroups = Self::default();
        let mut reasons = BTreeMap::new();
        for controller in LIMITING.map(|(name, _)| name).into_iter().chain(MEASURING) {
            let Some(dir) = found.get(controller) else {
                continue;
            };
            match try_make(dir) {
                Ok(()) => drop(cgroups.per_controller.insert(controller, dir.clone())),
                Err(error) => drop(reasons.insert(controller, format!("{}: {error}", dir.display()))),
            }
        }
        if let Some(own) = found.get("") {
            cgroups.unified = delegated(own);
            for (controller, _) in LIMITING {
                reasons
                    .entry(controller)
                    .or_insert_with(|| format!("{} is not delegated to this user", own.display()));
            }
        }
        for (controller, loss) in LIMITING {
            if !cgroups.offers(controller) {
                let reason = reasons
                    .remove(controller)
                    .unwrap_or_else(|| "no such hierarchy is mounted".to_owned());
                let reason = format!("{reason}; {loss}");
                cgroups.refusals.push(Refusal {
                    protection: format!("{controller} cgroup"),
                    reason,
                });
            }
        }
        cgroups
    }

    fn offers(&self, controller: &str) -> bool {
        self.per_controller.contains_key(controller)
            || self
                .unified
                .as_ref()
                .is_some_and(|(_, controllers)| controllers.contains(&controller))
    }

    /// Makes the groups of a kernel with their limits. What cannot be set is returned beside.
    pub fn create(&self, kernel: KernelId, wanted: &Wanted) -> io::Result<(Groups, Vec<Refusal>)> {
        let name = format!("{PREFIX}{kernel}");
        let mut groups = Groups::default();
        let mut refusals = Vec::new();
        let outcome = self.fill(&name, wanted, &mut groups, &mut refusals);
        if outcome.is_err() {
            groups.dirs.iter().for_each(|dir| drop(fs::remove_dir(dir)));
        }
        outcome.map(|()| (groups, refusals))
    }

    fn fill(
        &self,
        name: &str,
        wanted: &Wanted,
        groups: &mut Groups,
        refusals: &mut Vec<Refusal>,
    ) -> io::Result<()> {
        let mut dirs: Vec<PathBuf> = self.per_controller.values().map(|base| base.join(name)).collect();
        dirs.extend(self.unified.iter().map(|(base, _)| base.join(name)));
        dirs.dedup();
        for dir in dirs {
            match fs::create_dir(&dir) {
                // Of an earlier life of this kernel.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => groups.dirs.push(dir),
            }
        }
        let mut limit = |controller: &str, outcome: io::Result<()>| {
            if let Err(error) = &outcome {
                let loss = LIMITING
                    .iter()
                    .find(|(name, _)| *name == controller)
                    .map_or("", |(_, loss)| loss);
                let protection = format!("{controller} cgroup");
                refusals.push(Refusal {
                    protection,
                    reason: format!("{error}; {loss}"),
                });
            }
            outcome.is_ok()
        };
        if let Some(base) = self.per_controller.get("cpuset") {
            // A new group of version 1 has no CPU and no memory node, and then no process can enter it.
            limit("cpuset", seed_cpuset(base, &base.join(name), &wanted.cpus));
        }
        if let Some(base) = self.per_controller.get("memory").filter(|_| wanted.memory > 0) {
            let dir = base.join(name);
            groups.limits_memory = limit("memory", write(&dir, "memory.limit_in_bytes", wanted.memory));
            // Absent where the kernel does not account for swap.
            let _ = write(&dir, "memory.memsw.limit_in_bytes", wanted.memory);
        }
        if let Some(base) = self.per_controller.get("cpu").filter(|_| !wanted.cpus.is_empty()) {
            let dir = base.join(name);
            let outcome = write(&dir, "cpu.cfs_period_us", PERIOD)
                .and_then(|()| write(&dir, "cpu.cfs_quota_us", PERIOD * wanted.cpus.len() as u64));
            limit("cpu", outcome);
        }
        if let Some(base) = self.per_controller.get("pids") {
            limit("pids", write(&base.join(name), "pids.max", wanted.processes));
        }
        if let Some((base, controllers)) = &self.unified {
            let dir = base.join(name);
            let has = |controller| controllers.contains(&controller);
            if has("memory") && wanted.memory > 0 {
                groups.limits_memory = limit("memory", write(&dir, "memory.max", wanted.memory));
                let _ = write(&dir, "memory.swap.max", 0);
            }
            if has("cpu") && !wanted.cpus.is_empty() {
                let quota = PERIOD * wanted.cpus.len() as u64;
                limit("cpu", write(&dir, "cpu.max", format!("{quota} {PERIOD}")));
            }
            if has("cpuset") && !wanted.cpus.is_empty() {
                limit("cpuset", write(&dir, "cpuset.cpus", list(&wanted.cpus)));
            }
            if has("pids") {
                limit("pids", write(&dir, "pids.max", wanted.processes));
            }
        }
        Ok(())
    }

    /// Removes the empty groups of kernels that are gone, left by an agent that was killed.
    pub fn remove_orphans(&self) {
        let bases = self
            .per_controller
            .values()
            .chain(self.unified.iter().map(|(base, _)| base));
        for entry in bases.flat_map(fs::read_dir).flatten().flatten() {
            let ours = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with(PREFIX));
            let born = entry.metadata().and_then(|meta| meta.modified()).ok();
            let age = born.and_then(|born| SystemTime::now().duration_since(born).ok());
            if ours && age.is_some_and(|age| age > ORPHAN_AGE) {
                // Fails for a group that holds processes, as it should.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

const PERIOD: u64 = 100_000;

impl Groups {
    /// Those of a process's groups whose paths contain `name`, as somebody else has made them for it. In others it is
    /// together with strangers. Blocking.
    pub fn of_process(pid: i32, name: &str) -> Option<Self> {
        let read = |path: &str| fs::read_to_string(path).ok();
        let own = read(&format!("/proc/{pid}/cgroup"))?;
        let own: Vec<&str> = own.lines().filter(|line| line.contains(name)).collect();
        let found = hierarchies(&own.join("\n"), &read("/proc/self/mountinfo")?);
        Some(Self {
            dirs: found.into_values().collect(),
            limits_memory: false,
        })
    }

    /// The content of a file in whichever group has it.
    pub fn read(&self, file: &str) -> Option<String> {
        self.dirs
            .iter()
            .find_map(|dir| fs::read_to_string(dir.join(file)).ok())
    }

    /// A number in a file that consists of it.
    pub fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    /// A number in a file of lines `name number`.
    pub fn field(&self, file: &str, name: &str) -> Option<u64> {
        field(&self.read(file)?, name)
    }

    /// Whether the kernel has killed a process in these groups for want of memory.
    pub fn ran_out_of_memory(&self) -> bool {
        let killed = self
            .field("memory.events", "oom_kill")
            .or_else(|| self.field("memory.oom_control", "oom_kill"));
        killed.is_some_and(|count| count > 0)
    }

    /// Removes the groups; waits for their last processes to leave, which takes the kernel a moment.
    pub async fn remove(&self) -> io::Result<()> {
        const DEADLINE: Duration = Duration::from_secs(10);
        for dir in &self.dirs {
            let removed = async {
                loop {
                    match fs::remove_dir(dir) {
                        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                        outcome => return outcome,
                    }
                }
            };
            tokio::time::timeout(DEADLINE, removed)
                .await
                .map_err(io::Error::from)
                .flatten()?;
        }
        Ok(())
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn write(dir: &Path, file: &str, value: impl ToString) -> io::Result<()> {
    let path = dir.join(file);
    fs::write(&path, value.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

fn seed_cpuset(base: &Path, dir: &Path, cpus: &[usize]) -> io::Result<()> {
    let inherited = |file: &str| fs::read_to_string(base.join(file)).map(|text| text.trim().to_owned());
    write(dir, "cpuset.mems", inherited("cpuset.effective_mems")?)?;
    // First what always works, so that the group is usable even if the choice is refused.
    write(dir, "cpuset.cpus", inherited("cpuset.effective_cpus")?)?;
    if cpus.is_empty() {
        Ok(())
    } else {
        write(dir, "cpuset.cpus", list(cpus))
    }
}

fn try_make(base: &Path) -> io::Result<()> {
    let dir = base.join(format!("{PREFIX}probe-{}", std::process::id()));
    match fs::create_dir(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::remove_dir(&dir),
    }
}

/// The directory of this process's group for each controller of version 1, and under the empty name for version 2.
fn hierarchies(own: &str, mountinfo: &str) -> BTreeMap<String, PathBuf> {
    let mut paths = BTreeMap::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        controllers
            .split(',')
            .for_each(|name| drop(paths.insert(name.to_owned(), path.to_owned())));
    }
    let mut found = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else {
            continue;
        };
        let mount: Vec<&str> = mount.split(' ').collect();
        let filesystem: Vec<&str> = filesystem.split(' ').collect();
        let (Some(root), Some(point)) = (mount.get(3), mount.get(4)) else {
            continue;
        };
        let names: Vec<&str> = match (filesystem.first(), filesystem.get(2)) {
            (Some(&"cgroup2"), _) => vec![""],
            (Some(&"cgroup"), Some(options)) => options.split(',').collect(),
            _ => continue,
        };
        for name in names {
            let Some(path) = paths.get(name) else { continue };
            // The mount may show only a part of the hierarchy, as in a container.
            let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
            found
                .entry(name.to_owned())
                .or_insert_with(|| Path::new(point).join(below));
        }
    }
    found
}

/// Version 2: the nearest group, from `own` upwards, below which this process may make limited groups. A group with
/// processes cannot have limited children, so the agent moves into a leaf where it is alone in its own group.
fn delegated(own: &Path) -> Option<(PathBuf, Vec<&'static str>)> {
    let passes = |dir: &Path| -> Vec<&'static str> {
        let enabled = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
        let enabled: Vec<&str> = enabled.split_ascii_whitespace().collect();
        LIMITING
            .map(|(name, _)| name)
            .into_iter()
            .filter(|name| enabled.contains(name))
            .collect()
    };
    let enable = |dir: &Path| {
        LIMITING
            .iter()
            .for_each(|(name, _)| drop(write(dir, "cgroup.subtree_control", format!("+{name}"))))
    };
    for dir in own
        .ancestors()
        .take_while(|dir| dir.join("cgroup.procs").exists() && try_make(dir).is_ok())
    {
        enable(dir);
        if dir == own && passes(dir).is_empty() && is_alone(dir) {
            let leaf = dir.join("bai.agent");
            let _ = fs::create_dir(&leaf);
            let _ = write(&leaf, "cgroup.procs", std::process::id());
            enable(dir);
        }
        let controllers = passes(dir);
        if !controllers.is_empty() {
            return Some((dir.to_owned(), controllers));
        }
    }
    None
}

fn is_alone(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.procs"))
        .is_ok_and(|text| text.trim() == std::process::id().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_hierarchies_of_both_versions() {
        let own = "4:memory:/a/b\n3:cpu,cpuacct:/\n1:name=systemd:/x\n0::/user.slice/u\n";
        let mounts = "35 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
                      37 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = hierarchies(own, mounts);
        let of = |name: &str| {
            found[name]
                .to_str()
                .expect("plain")
                .trim_end_matches('/')
                .to_owned()
        };
        assert_eq!(of("memory"), "/sys/fs/cgroup/memory/a/b");
        assert_eq!(
            (of("cpu"), of("cpuacct")),
            (
                "/sys/fs/cgroup/cpu,cpuacct".into(),
                "/sys/fs/cgroup/cpu,cpuacct".into()
            )
        );
        assert_eq!(of(""), "/sys/fs/cgroup/unified/user.slice/u");
        assert!(!found.contains_key("pids"));
    }

    #[test]
    fn a_container_sees_its_part_of_a_hierarchy() {
        let found = hierarchies(
            "4:memory:/docker/abc\n",
            "1 1 0:1 /docker/abc /cg/memory ro - cgroup cgroup rw,memory\n",
        );
        assert_eq!(found["memory"], Path::new("/cg/memory"));
    }

    #[test]
    fn limits_are_written_in_the_words_of_version_2() {
        let root = tempfile::tempdir().expect("a directory");
        let own = root.path().join("user/app");
        fs::create_dir_all(&own).expect("directories");
        let cgroups = Cgroups {
            unified: Some((own.clone(), vec!["memory", "cpu", "pids"])),
            ..Cgroups::default()
        };
        let wanted = Wanted {
            memory: 1 << 30,
            cpus: vec![0, 1],
            processes: 100,
        };
        let kernel = KernelId("00000000-0000-0000-0000-000000000001".parse().expect("an id"));
        let (groups, refusals) = cgroups.create(kernel, &wanted).expect("created");
        assert!(refusals.is_empty() && groups.limits_memory);
        assert_eq!(groups.read("cpu.max").as_deref(), Some("200000 100000"));
        assert_eq!(
            (groups.number("memory.max"), groups.number("memory.swap.max")),
            (Some(1 << 30), Some(0))
        );
    }

    #[test]
    fn counts_are_read_by_name() {
        assert_eq!(
            field("oom 3\noom_kill 2\noom_group_kill 0\n", "oom_kill"),
            Some(2)
        );
        assert_eq!(
            field("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "oom_kill"),
            Some(1)
        );
    }
}
