//! The system-call filter: what no program of a session needs and what has opened kernels before.
//!
//! A list of what is refused, not of what is allowed: sessions run arbitrary programs in arbitrary languages, and a
//! missing harmless call would break them in odd ways. Debugging one's own processes (`ptrace`) stays possible: the
//! pid namespace bounds it, and the session's own first processes are not dumpable, hence not traceable.
//!
//! Invariants: `clone3` answers ENOSYS, so that C libraries fall back to `clone`, whose flags a filter can read; every
//! refused call is refused under its x32 number too; another architecture's calls kill the caller.
//!
//! Not here: installing it at the right moment (`super::confine`).

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule,
};

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Refused whatever the arguments.
const REFUSED: &[c_long] = &[
    // Mounts and roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Namespaces.
    libc::SYS_unshare,
    libc::SYS_setns,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Keys of the host's users are not in any namespace.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Administration.
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
    // A file by number gets around every directory above it.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // Memory placement on other people's nodes.
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_kcmp,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[c_long] = &[];

/// Namespace flags of `clone`; `CLONE_NEWTIME` shares a bit with the exit signal and exists for `clone3` only.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Execution domains that ordinary programs ask for: Linux, 32 bits, uname 2.6, without address randomisation
/// (debuggers), and the question which one it is.
const PERSONALITIES: [u64; 6] = [0, 8, 0x2_0000, 0x2_0008, 0x4_0000, 0xffff_ffff];

/// Families that reach the hypervisor or the kernel's crypto code, whatever the network namespace.
const SOCKET_FAMILIES: [i32; 3] = [libc::AF_VSOCK, libc::AF_ALG, libc::AF_PACKET];

/// Ioctls that push characters into a terminal's input as if they were typed.
const TERMINAL_INJECTION: [u64; 2] = [0x5412 /* TIOCSTI */, 0x541c /* TIOCLINUX */];

/// The filters in the order in which to install them.
pub fn filters() -> Result<Vec<BpfProgram>, seccompiler::Error> {
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok(vec![
        compile(refused()?, libc::EPERM)?,
        compile(unknown, libc::ENOSYS)?,
    ])
}

fn compile(rules: Rules, errno: i32) -> Result<BpfProgram, seccompiler::Error> {
    let refuse = SeccompAction::Errno(errno as u32);
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(with_x32(rules), SeccompAction::Allow, refuse, arch)?.try_into()?)
}

fn refused() -> Result<Rules, seccompiler::Error> {
    let mut rules: Rules = REFUSED
        .iter()
        .chain(REFUSED_HERE)
        .map(|call| (*call, Vec::new()))
        .collect();
    let flags = NAMESPACES.map(|flag| flag as u32 as u64);
    rules.insert(
        libc::SYS_clone,
        any_of(0, flags.map(|flag| (Op::MaskedEq(flag), flag)))?,
    );
    rules.insert(
        libc::SYS_socket,
        any_of(0, SOCKET_FAMILIES.map(|family| (Op::Eq, family as u64)))?,
    );
    rules.insert(
        libc::SYS_ioctl,
        any_of(1, TERMINAL_INJECTION.map(|request| (Op::Eq, request)))?,
    );
    let strange = PERSONALITIES.map(|personality| condition(0, Op::Ne, personality));
    let strange = strange.into_iter().collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_personality, vec![SeccompRule::new(strange)?]);
    Ok(rules)
}

fn any_of<const N: usize>(
    argument: u8,
    values: [(Op, u64); N],
) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    let rule = |(operation, value)| Ok(SeccompRule::new(vec![condition(argument, operation, value)?])?);
    values.into_iter().map(rule).collect()
}

/// Arguments are compared as the kernel takes them: 32 bits, whatever is above.
fn condition(argument: u8, operation: Op, value: u64) -> Result<SeccompCondition, seccompiler::Error> {
    Ok(SeccompCondition::new(argument, Len::Dword, operation, value)?)
}

/// The same rules for the x32 numbers of the calls, and all of those that exist only there.
#[cfg(target_arch = "x86_64")]
fn with_x32(mut rules: Rules) -> Rules {
    const X32: c_long = 0x4000_0000;
    let twins: Rules = rules
        .iter()
        .map(|(call, rules)| (call | X32, rules.clone()))
        .collect();
    rules.extend(twins);
    rules.extend((512..548).map(|call| (call | X32, Vec::new())));
    rules
}

#[cfg(not(target_arch = "x86_64"))]
fn with_x32(rules: Rules) -> Rules {
    rules
}
