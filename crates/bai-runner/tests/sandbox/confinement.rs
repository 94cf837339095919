//! What a session cannot see, do and reach.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use bai_proto::sandbox::{Bind, Network};

use crate::harness::{Kernel, Starter, starters};

#[test]
fn the_report_names_what_is_in_force() {
    for starter in starters() {
        let launched = Kernel::new(starter).launch();
        println!("{starter:?}: {:?} in {:?}", launched.report, launched.took);
        assert_eq!(launched.report.fatal, None);
        for protection in [
            "user namespace",
            "pid namespace",
            "mount namespace",
            "private root",
            "no_new_privs",
            "no capabilities",
            "seccomp",
        ] {
            assert!(launched.has(protection), "{starter:?}: {protection}");
        }
        let mut names: Vec<_> = launched.report.enforced.iter().collect();
        names.extend(launched.report.refused.iter().map(|refusal| &refusal.protection));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(
            names.len(),
            count,
            "each protection is named once: {:?}",
            launched.report
        );
    }
}

#[test]
fn a_user_inside_is_work_and_owns_its_folder() {
    for starter in starters() {
        let kernel = Kernel::new(starter);
        let mut session = kernel.start();
        assert_eq!(
            session.ok("id -un; id -u; id -g; hostname; pwd"),
            "work\n1000\n1000\nkernel\n/home/work"
        );
        session.ok("echo x > /home/work/file && mkdir d && mv file d/ && cp d/file . && ln file again");
        let file = fs::metadata(kernel.path("work/file")).expect("the file is on the host");
        assert_eq!(
            (file.uid(), file.gid()),
            (kernel.spec.host_uid, kernel.spec.host_gid)
        );
        assert_eq!(session.ok("cat /home/config/environ.txt"), "A=b");
        session.fails("echo x > /home/config/environ.txt");
        session.fails("touch /home/config/x");
        session.ok("echo x > /tmp/bai-x && echo x > /dev/shm/x && echo x > /dev/null && head -c1 /dev/urandom | wc -c");
        assert!(!Path::new("/tmp/bai-x").exists(), "/tmp is private");
    }
}

#[test]
fn the_host_is_not_visible() {
    for starter in starters() {
        let kernel = Kernel::new(starter);
        let mut session = kernel.start();
        for path in [
            "/etc/shadow",
            "/root",
            "/sys/kernel",
            "/run/bai",
            "/home/work/../..//boot",
            "/dev/mem",
            "/dev/vda",
        ] {
            session.fails(&format!("ls -d {path}"));
        }
        session.fails(&format!("ls {}", kernel.dir()));
        let processes = session.ok("ls /proc | grep -c '^[0-9]'");
        assert!(
            processes.parse::<u32>().expect("a number") < 10,
            "{starter:?}: {processes} processes are visible"
        );
        assert_eq!(session.ok("cat /proc/self/cgroup | grep -c bai; true"), "0");
        let mounts = session.ok("cut -d' ' -f2 /proc/mounts");
        assert!(!mounts.contains(kernel.dir()), "{mounts}");
    }
}

#[test]
fn the_system_cannot_be_written() {
    for starter in starters() {
        let mut session = Kernel::new(starter).start();
        for path in [
            "/x",
            "/usr/x",
            "/usr/bin/x",
            "/etc/x",
            "/home/x",
            "/dev/x",
            "/run/x",
            "/var/x",
            "/lib/x",
            "/proc/x",
        ] {
            session.fails(&format!("touch {path}"));
            session.fails(&format!("mkdir {path}"));
        }
        session.fails("rm -f /etc/passwd; test ! -e /etc/passwd");
        session.fails("chmod 777 / /etc /usr");
        session.fails("echo 1 > /proc/sys/kernel/core_pattern");
        session.fails("echo 1 > /proc/sysrq-trigger");
    }
}

#[test]
fn privileges_are_gone_for_good() {
    for starter in starters() {
        let mut session = Kernel::new(starter).start();
        let status = session.ok("cat /proc/self/status");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(
                status.contains(&format!("{set}:\t0000000000000000")),
                "{starter:?}: {status}"
            );
        }
        assert!(
            status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"),
            "{starter:?}: {status}"
        );
        assert!(
            status.contains("Groups:\t \n") || status.contains("Groups:\t\n"),
            "{starter:?}: {status}"
        );
        for command in [
            "unshare --user true",
            "unshare --map-root-user --mount true",
            "mount -t tmpfs none /tmp",
            "umount -l /proc",
            "chroot / true",
            "nsenter --target 1 --pid true",
            "dmesg",
            "hostname other",
            "date -s 2020-01-01",
            "su -c true",
            "kill -9 1; kill -0 1 && exit 1",
            "cat /proc/1/environ",
            "cat /proc/1/maps",
            "ls /proc/1/fd/",
            "mknod /tmp/null c 1 3",
        ] {
            session.fails(command);
        }
        assert_eq!(session.ok("echo alive"), "alive");
    }
}

/// System calls as a program would make them, without a tool in between.
#[test]
fn dangerous_system_calls_are_refused() {
    if !Path::new("/usr/bin/python3").exists() {
        println!("SKIPPED: system calls by number, because there is no /usr/bin/python3");
        return;
    }
    let script = r#"
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    ctypes.set_errno(0)
    result = libc.syscall(*args)
    print(name, "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()])
x86 = os.uname().machine == "x86_64"
if x86:
    call("clone3", 435, None, 0)
    call("io_uring_setup", 425, 1, None)
    call("bpf", 321, 0, None, 0)
    call("perf_event_open", 298, None, 0, -1, -1, 0)
    call("keyctl", 250, 0, 0, 0)
    call("init_module", 175, None, 0, None)
    call("kexec_load", 246, 0, 0, None, 0)
    call("userfaultfd", 323, 0)
    call("open_by_handle_at", 304, -1, None, 0)
    call("setns", 308, -1, 0)
    call("open_tree", 428, -100, b"/", 1)
    call("clone newuser", 56, 0x10000000, None, None, None, None)
    call("clone newnet", 56, 0x40000000 | 17, None, None, None, None)
    call("x32 mount", 0x40000000 | 165, None, None, None, 0, None)
    call("personality", 135, 0x0100000)
    call("ptrace 1", 101, 16, 1, None, None)
    call("vsock", 41, 40, 1, 0)
    call("tiocsti", 16, 0, 0x5412, None)
    call("tiocsti with noise", 16, 0, 0xffff00005412 & 0xffffffffffff, None)
"#;
    for starter in starters() {
        let kernel = Kernel::new(starter);
        fs::write(kernel.path("work/calls.py"), script).expect("a file");
        let said = kernel.start().ok("/usr/bin/python3 calls.py");
        for line in said.lines() {
            let (name, outcome) = line.rsplit_once(' ').expect("two words");
            let wanted = if name == "clone3" { "ENOSYS" } else { "EPERM" };
            assert_eq!(outcome, wanted, "{starter:?}: {name}");
        }
        assert_eq!(said.lines().count() > 15, cfg!(target_arch = "x86_64"));
    }
}

#[test]
fn an_isolated_network_has_a_loopback_only() {
    for starter in starters() {
        let mut session = Kernel::new(starter).start();
        assert_eq!(
            session.ok("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"),
            "lo"
        );
        assert_eq!(session.ok("cat /proc/net/route | wc -l"), "1");
        // Refused at once by a loopback that is up; unreachable otherwise.
        let said = session.sh("exec 3<>/dev/tcp/127.0.0.1/9").err
            + &session.sh("bash -c 'exec 3<>/dev/tcp/127.0.0.1/9'").err;
        assert!(said.contains("refused"), "{said}");
    }
}

#[test]
fn abstract_sockets_of_the_host_are_out_of_reach_even_on_its_network() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("bai-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("listening");
    for starter in starters() {
        let mut kernel = Kernel::new(starter);
        kernel.spec.network = Network::Host;
        let mut session = kernel.start();
        if !session.launched.has("landlock abi 6") && !session.launched.has("landlock abi 7") {
            println!("SKIPPED: abstract sockets, because this kernel's Landlock cannot scope them");
            continue;
        }
        let connect = format!("import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}')");
        let said = session.fails(&format!("/usr/bin/python3 -c \"{connect}\""));
        assert!(
            said.err.contains("PermissionError") || said.err.contains("not found"),
            "{said:?}"
        );
    }
}

#[test]
fn the_environment_is_clean() {
    for starter in starters() {
        let mut session = Kernel::new(starter).start();
        let environ = session.ok("env");
        assert!(environ.contains("GREETING=hello"), "{environ}");
        assert!(
            !environ.contains("SECRET") && !environ.contains("CARGO"),
            "{environ}"
        );
    }
}

#[test]
fn processes_memory_and_space_are_limited() {
    for starter in starters() {
        let mut kernel = Kernel::new(starter);
        kernel.spec.limits.memory = Some(128 << 20);
        kernel.spec.limits.file_size = Some(32 << 20);
        let mut session = kernel.start();
        session.fails("i=0; while [ $i -lt 200 ]; do sleep 30 & i=$((i+1)); done");
        session.sh("kill -9 $(grep -l '^sleep' /proc/[0-9]*/comm | cut -d/ -f3)");
        session.fails("head -c 300m /dev/zero | tail -c 200m | wc -c | grep -q 209715200");
        session.fails("head -c 100m /dev/zero > /tmp/big");
        session.fails("head -c 100m /dev/zero > big");
        assert_eq!(session.ok("ulimit -c; ulimit -n"), "0\n1024");
        assert_eq!(session.ok("echo alive"), "alive");
    }
}

#[test]
fn folders_are_mounted_as_asked() {
    for starter in starters() {
        let mut kernel = Kernel::new(starter);
        for (name, writable) in [("read", false), ("write", true)] {
            let source = kernel.make_dir(name);
            fs::write(Path::new(&source).join("file"), "text").expect("a file");
            kernel.spec.binds.push(Bind {
                source,
                target: format!("/home/work/sub/{name}"),
                writable,
            });
        }
        let mut session = kernel.start();
        assert_eq!(session.ok("cat sub/read/file sub/write/file"), "texttext");
        session.fails("touch sub/read/x");
        session.ok("touch sub/write/x && mv sub/write/x sub/write/y");
        assert!(kernel.path("write/y").exists());
    }
}

/// A session may leave links in its folder; when it is started again, a mount must not follow them.
#[test]
fn links_in_the_work_folder_lead_no_mount_astray() {
    for starter in starters() {
        let mut kernel = Kernel::new(starter);
        let source = kernel.make_dir("data");
        symlink("/usr", kernel.path("work/evil")).expect("a link");
        symlink("/etc/passwd", kernel.path("work/file")).expect("a link");
        for target in [
            "/home/work/evil",
            "/home/work/evil/local",
            "/home/work/../../etc",
            "relative/../..",
            "/",
        ] {
            kernel.spec.binds = vec![Bind {
                source: source.clone(),
                target: target.to_owned(),
                writable: true,
            }];
            let fatal = kernel.launch().report.fatal.clone();
            assert!(
                fatal
                    .as_deref()
                    .is_some_and(|reason| reason.contains("cannot mount")),
                "{target}: {fatal:?}"
            );
        }
        let file = kernel
            .path("config/environ.txt")
            .to_str()
            .expect("plain")
            .to_owned();
        kernel.spec.binds = vec![Bind {
            source: file,
            target: "/home/work/file".to_owned(),
            writable: true,
        }];
        assert!(kernel.launch().report.fatal.is_some());
    }
}

#[test]
fn what_cannot_be_built_is_explained() {
    for starter in starters() {
        let mut kernel = Kernel::new(starter);
        kernel.spec.work_dir = "/nonexistent".to_owned();
        let fatal = kernel
            .launch()
            .report
            .fatal
            .clone()
            .expect("there is no such folder");
        assert!(fatal.contains("/nonexistent"), "{fatal}");
        let mut kernel = Kernel::new(starter);
        kernel.spec.host_uid = if starter == Starter::Root { 0 } else { 12345 };
        let fatal = kernel
            .launch()
            .report
            .fatal
            .clone()
            .expect("nobody may map this user");
        assert!(fatal.contains("root"), "{fatal}");
    }
}

/// Containers hide parts of /proc, and then the kernel refuses a fresh one to whoever is inside.
#[test]
fn a_refused_proc_is_reported_and_replaced() {
    if !starters().contains(&Starter::Root) {
        return;
    }
    let mut kernel = Kernel::new(Starter::Root);
    kernel.surroundings = Some((&["unshare", "--mount"], "mount -t tmpfs none /proc/tty"));
    let mut session = kernel.start();
    let refused = &session.launched.report.refused;
    assert!(
        refused.len() == 1 && refused[0].protection == "private /proc",
        "{refused:?}"
    );
    assert_eq!(
        session.ok("readlink /proc/self/exe | grep -c readlink; head -c1 /proc/self/comm"),
        "1\nh"
    );
    session.fails("cat /proc/1/environ");
}

/// The sysctl belongs to a user namespace, so that a test can forbid nested ones without touching the machine.
#[test]
fn refused_user_namespaces_are_explained() {
    if !starters().contains(&Starter::Root) {
        return;
    }
    let mut kernel = Kernel::new(Starter::Root);
    kernel.start_as_root_of_a_user("echo 0 > /proc/sys/user/max_user_namespaces");
    let launched = kernel.launch();
    let fatal = launched.report.fatal.as_deref().expect("no sandbox");
    assert!(fatal.contains("user.max_user_namespaces"), "{fatal}");
}

/// Root of a container that has only its own user: it is nobody special outside.
#[test]
fn the_root_of_a_user_namespace_starts_sandboxes_too() {
    if !starters().contains(&Starter::Root) {
        return;
    }
    let mut kernel = Kernel::new(Starter::Root);
    kernel.start_as_root_of_a_user("true");
    let mut session = kernel.start();
    assert_eq!(session.ok("id -u; touch x && echo made"), "1000\nmade");
    session.fails("cat /etc/shadow");
}
