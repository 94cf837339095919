//! Who the session is: user and group 1000 inside, mapped to one unprivileged user and group of the host.
//!
//! Invariants: exactly one user and one group are mapped, never 0 inside; what is mapped outside is never root, unless
//! the machine's root asked for precisely that; supplementary groups are empty wherever the kernel lets us.
//!
//! Not here: the namespaces themselves (`super`).

use std::fs;
use std::io;

use bai_proto::sandbox::SandboxSpec;
use nix::sys::prctl::set_dumpable;
use nix::unistd::{Gid, Pid, Uid, getegid, geteuid, getgroups, setgroups, setresgid, setresuid};

use super::control::{Fatal, Ledger, OrFatal};

/// User and group id of `work` inside.
pub const WORK: u32 = 1000;
const NO_GROUPS: &str = "no supplementary groups";

/// How this process relates to the user that the session runs as.
#[derive(Clone, Copy)]
pub struct Identity {
    uid: u32,
    gid: u32,
    /// Root maps a user that is not itself; anybody else can only map themselves.
    pub privileged: bool,
}

impl Identity {
    /// Decides how to map, and becomes the host user at once where root is not allowed to administer the system.
    pub fn establish(spec: &SandboxSpec, ledger: &mut Ledger) -> Result<Self, Fatal> {
        let (uid, gid) = (spec.host_uid, spec.host_gid);
        let mut identity = Self {
            uid,
            gid,
            privileged: geteuid().is_root(),
        };
        if identity.privileged {
            if (uid == 0 || gid == 0) && is_the_machines_root() {
                return Err(Fatal("refusing to map the session to the host's root".to_owned()));
            }
            match setgroups(&[]) {
                Ok(()) => ledger.enforced(NO_GROUPS),
                Err(_) => keep_groups(gid, ledger),
            }
            if !may_administer() {
                become_user(uid, gid)?;
                identity.privileged = false;
            }
        } else {
            if (uid, gid) != (geteuid().as_raw(), getegid().as_raw()) {
                return Err(Fatal(format!(
                    "only root can run a session as another user ({uid}:{gid})"
                )));
            }
            keep_groups(gid, ledger);
        }
        Ok(identity)
    }

    /// Writes the maps of `process`, from outside its new user namespace.
    pub fn write_maps(self, process: Pid) -> Result<(), Fatal> {
        let write = |file: &str, text: String| {
            fs::write(format!("/proc/{process}/{file}"), text)
                .or_fatal(format!("write {file} of the session"))
        };
        write("setgroups", "deny".to_owned())?;
        write("uid_map", format!("{WORK} {} 1\n", self.uid))?;
        write("gid_map", format!("{WORK} {} 1\n", self.gid))
    }

    /// Becomes `work` inside the user namespace. The capabilities over the namespace stay: its user 0 does not exist,
    /// so the kernel sees no root giving up its identity.
    pub fn assume(self) -> Result<(), Fatal> {
        become_user(WORK, WORK)
    }
}

fn become_user(uid: u32, gid: u32) -> Result<(), Fatal> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(gid, gid, gid).or_fatal("become the session's group")?;
    setresuid(uid, uid, uid).or_fatal("become the session's user")?;
    // Changing the user hides this process's /proc entries, among them its user map, from itself.
    set_dumpable(true).or_fatal("make the process writable by its own user")
}

/// Whether user 0 here is user 0 of the machine, not the root of somebody's user namespace.
fn is_the_machines_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().take(2).eq(["0", "0"])
}

/// Whether root here has CAP_SYS_ADMIN, which many containers take away.
fn may_administer() -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_some_and(|set| set & CAP_SYS_ADMIN != 0)
}

fn keep_groups(gid: u32, ledger: &mut Ledger) {
    let others = getgroups()
        .unwrap_or_default()
        .into_iter()
        .filter(|group| group.as_raw() != gid)
        .count();
    if others == 0 {
        ledger.enforced(NO_GROUPS);
    } else {
        let reason = format!(
            "this user cannot leave its {others} supplementary groups; files that they may read and that are \
             mounted into the session can be read there"
        );
        ledger.refused(NO_GROUPS, reason);
    }
}

/// Says which switch of this machine refuses user namespaces.
pub fn explain_user_namespace(error: &io::Error) -> Fatal {
    let setting = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let advice = if setting("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        "set the sysctl kernel.unprivileged_userns_clone=1"
    } else if setting("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        "set the sysctl user.max_user_namespaces to a number above 0"
    } else if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        "set the sysctl kernel.apparmor_restrict_unprivileged_userns=0 or give bai-runner an AppArmor profile with \
         `userns,`"
    } else if fs::metadata("/proc/self/ns/user").is_err() {
        "the kernel is built without CONFIG_USER_NS"
    } else if error.raw_os_error() == Some(libc::ENOSPC) {
        "the limit of nested or concurrent namespaces is reached, see the sysctls user.max_*_namespaces"
    } else {
        "no sysctl forbids it, so a seccomp filter or a security module around this process does; a container needs \
         permission for unshare(CLONE_NEWUSER)"
    };
    Fatal(format!(
        "the machine refuses a user namespace ({error}): {advice}"
    ))
}
