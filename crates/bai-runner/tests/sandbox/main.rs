//! The sandbox as a user inside and an agent outside experience it, started by root and by an ordinary user.
#![expect(
    clippy::print_stdout,
    reason = "tests say what they skip and what they measure"
)]

mod harness;

use std::fs;
use std::os::unix::fs::MetadataExt;

use self::harness::{Kernel, Starter, starters};

#[test]
fn the_report_names_what_is_in_force() {
    for starter in starters() {
        let kernel = Kernel::new(starter);
        let launched = kernel.launch();
        println!("{starter:?}: {:?} in {:?}", launched.report, launched.took);
        assert_eq!(launched.report.fatal, None);
        for protection in [
            "user namespace",
            "pid namespace",
            "private root",
            "no_new_privs",
            "no capabilities",
            "seccomp",
        ] {
            assert!(launched.has(protection), "{starter:?}: {protection}");
        }
    }
}

#[test]
fn a_user_inside_is_work_and_owns_its_folder() {
    for starter in starters() {
        let kernel = Kernel::new(starter);
        let mut session = kernel.start();
        assert_eq!(
            session.ok("id -un; id -u; id -g; hostname; pwd; echo $GREETING"),
            "work\n1000\n1000\nkernel\n/home/work\nhello"
        );
        session.ok("echo x > /home/work/file && mkdir d && mv file d/ && cp d/file .");
        let file = fs::metadata(kernel.path("work/file")).expect("the file is on the host");
        assert_eq!(
            (file.uid(), file.gid()),
            (kernel.spec.host_uid, kernel.spec.host_gid)
        );
        assert_eq!(session.ok("cat /home/config/environ.txt"), "A=b");
        session.fails("touch /home/config/x");
        session.ok("echo x > /tmp/x && echo x > /dev/shm/x && echo x > /dev/null && head -c1 /dev/urandom >/dev/null");
        assert!(!std::path::Path::new("/tmp/x").exists(), "/tmp is private");
    }
}
