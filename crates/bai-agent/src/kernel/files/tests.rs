use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use super::*;

/// A kernel's folders with traps in them, and what is outside.
struct Bed {
    tree: Tree,
    dir: TempDir,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        for folder in ["work/sub", "shared/deep", "readonly", "outside"] {
            fs::create_dir_all(path(folder)).expect("made");
        }
        fs::write(path("outside/secret"), "secret").expect("written");
        symlink(path("outside"), path("work/away")).expect("linked");
        symlink(path("outside/secret"), path("work/secret")).expect("linked");
        symlink("../outside", path("work/up")).expect("linked");
        symlink("sub", path("work/down")).expect("linked");
        let mounts = vec![
            ("data".to_owned(), path("shared"), true),
            ("fixed".to_owned(), path("readonly"), false),
        ];
        // Mounted folders are seen as empty ones in the work folder.
        fs::create_dir(path("work/data")).expect("made");
        Self {
            tree: Tree {
                work: path("work"),
                mounts,
            },
            dir,
        }
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).expect("there")
    }

    fn upload(&self, path: &str) -> Result<(), AgentError> {
        self.tree.upload(path, b"data", "unique")
    }

    /// Whether nothing has come to be outside.
    fn assert_outside_untouched(&self) {
        let names = fs::read_dir(self.dir.path().join("outside"))
            .expect("readable")
            .count();
        assert_eq!((names, self.read("outside/secret").as_str()), (1, "secret"));
    }
}

const LEAD_OUT: [&str; 11] = [
    "..",
    "../outside/secret",
    "sub/../../outside/secret",
    "/home/work/../outside",
    "/etc/passwd",
    "/home/workshop/x",
    "/",
    "away/secret",
    "up/secret",
    "secret/x",
    "a\0b",
];

fn kind(error: &AgentError) -> String {
    error.repr().split('(').next().unwrap_or_default().to_owned()
}

/// Member names and contents.
fn members(archive: &[u8]) -> Vec<(String, String)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("entries");
    let member = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.expect("an entry");
        let mut content = String::new();
        entry.read_to_string(&mut content).expect("text");
        (entry.path().expect("a path").display().to_string(), content)
    };
    entries.map(member).collect()
}

#[test]
fn nothing_outside_can_be_reached() {
    let bed = Bed::new();
    for path in LEAD_OUT {
        assert!(bed.upload(path).is_err(), "{path}");
        let error = bed.tree.download(path).expect_err(path);
        assert_eq!(kind(&error), "FileNotFoundError", "{path}");
        let listing = bed.tree.list(path);
        assert_eq!(
            (listing.files.as_str(), listing.errors.as_str()),
            ("", "No such file or directory"),
            "{path}"
        );
        assert_eq!(listing.abspath, None, "{path}");
    }
    assert_eq!(kind(&bed.upload("../x").expect_err("outside")), "PermissionError");
    assert_eq!(
        kind(&bed.upload("away/x").expect_err("outside")),
        "PermissionError"
    );
    bed.assert_outside_untouched();
    // A link that is written to is replaced, not followed.
    bed.upload("secret").expect("uploaded");
    assert_eq!(bed.read("work/secret"), "data");
    bed.assert_outside_untouched();
}

#[test]
fn links_that_change_meanwhile_lead_nowhere() {
    let bed = Bed::new();
    let work = bed.dir.path().join("work");
    fs::create_dir(work.join("swap")).expect("made");
    symlink(bed.dir.path().join("outside"), work.join("swap-link")).expect("linked");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let work = fs::File::open(&work).expect("open");
            while !stop.load(Ordering::Relaxed) {
                let exchange = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                nix::fcntl::renameat2(&work, "swap", &work, "swap-link", exchange).expect("exchanged");
            }
        });
        let (mut uploads, mut refusals) = (0, 0);
        for _ in 0..2000 {
            match bed.upload("swap/new") {
                Ok(()) => uploads += 1,
                Err(_) => refusals += 1,
            }
            assert!(bed.tree.download("swap/secret").is_err());
            assert!(!bed.tree.list("swap").files.contains("secret"));
        }
        stop.store(true, Ordering::Relaxed);
        // Whether both have happened is the machine's business.
        assert_eq!(uploads + refusals, 2000);
    });
    bed.assert_outside_untouched();
}

#[test]
fn files_come_out_as_they_went_in() {
    let bed = Bed::new();
    bed.upload("new/folder/a.txt").expect("uploaded");
    assert_eq!(bed.read("work/new/folder/a.txt"), "data");
    let left = fs::read_dir(bed.dir.path().join("work/new/folder"))
        .expect("readable")
        .count();
    assert_eq!(left, 1, "no intermediate file is left");
    for path in [
        "new/folder/a.txt",
        "/home/work/new/folder/a.txt",
        "new/../new/folder/./a.txt",
    ] {
        let archive = bed.tree.download(path).expect(path);
        assert_eq!(members(&archive), [("a.txt".to_owned(), "data".to_owned())]);
    }
    // Through a link that stays inside.
    bed.upload("down/b.txt").expect("uploaded");
    assert_eq!(bed.read("work/sub/b.txt"), "data");
    assert_eq!(
        kind(&bed.upload("sub").expect_err("a folder")),
        "IsADirectoryError"
    );
    assert_eq!(kind(&bed.upload("").expect_err("a folder")), "IsADirectoryError");
    assert_eq!(
        kind(&bed.upload("sub/b.txt/c").expect_err("a file")),
        "NotADirectoryError"
    );
}

#[test]
fn folders_come_out_whole_but_for_links_that_lead_away() {
    let bed = Bed::new();
    bed.upload("pack/z/deep").expect("uploaded");
    bed.upload("pack/a").expect("uploaded");
    let pack = bed.dir.path().join("work/pack");
    symlink("z/deep", pack.join("down")).expect("linked");
    symlink("../sub", pack.join("up")).expect("linked");
    symlink("/etc", pack.join("etc")).expect("linked");
    nix::unistd::mkfifo(&pack.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    let archive = bed.tree.download("pack").expect("downloaded");
    let names: Vec<String> = members(&archive).into_iter().map(|(name, _)| name).collect();
    let expected = ["pack", "pack/a", "pack/down", "pack/z", "pack/z/deep"];
    assert_eq!(
        names
            .iter()
            .map(|name| name.trim_end_matches('/'))
            .collect::<Vec<_>>(),
        expected
    );
    let whole = bed.tree.download("/home/work").expect("downloaded");
    assert_eq!(members(&whole)[0].0.trim_end_matches('/'), "work");
    // A pipe has no content, and nobody waits for one.
    assert_eq!(
        kind(&bed.tree.download("pack/pipe").expect_err("a pipe")),
        "FileNotFoundError"
    );
}

#[test]
fn what_is_too_large_is_refused() {
    let bed = Bed::new();
    let work = bed.dir.path().join("work");
    let write = |name: &str, size: usize| fs::write(work.join(name), vec![b'x'; size]).expect("written");
    let too_large = |path: &str| {
        bed.tree.download(path).expect_err("too large").repr() == "AssertionError('too large file.')"
    };
    write("large", MAX_DOWNLOAD);
    assert!(too_large("large"));
    // The archive counts: a header and two empty blocks are added to the content.
    write("nearly", MAX_DOWNLOAD - 512);
    assert!(too_large("nearly"));
    write("fits", MAX_DOWNLOAD - 4 * 512);
    assert!(
        bed.tree
            .download("fits")
            .is_ok_and(|archive| archive.len() < MAX_DOWNLOAD)
    );
    fs::create_dir(work.join("many")).expect("made");
    write("many/a", MAX_DOWNLOAD / 2);
    write("many/b", MAX_DOWNLOAD / 2);
    assert!(too_large("many"));
}

#[test]
fn what_is_missing_is_said_in_the_words_of_19_06() {
    let bed = Bed::new();
    let error = bed.tree.download("none").expect_err("missing");
    assert_eq!(
        error.repr(),
        "FileNotFoundError('Could not found the file: /home/work/none')"
    );
    let listing = bed.tree.list("none");
    assert_eq!(
        (listing.errors.as_str(), listing.abspath),
        ("No such file or directory", None)
    );
    bed.upload("file").expect("uploaded");
    let listing = bed.tree.list("file");
    assert_eq!(
        (listing.files.as_str(), listing.abspath.as_deref()),
        ("", Some("/home/work/file/\n"))
    );
    assert!(
        listing.errors.contains("Not a directory: '/home/work/file'"),
        "{}",
        listing.errors
    );
}

#[test]
fn listings_have_the_fields_that_clients_read() {
    let bed = Bed::new();
    let odd = "odd \"name\" \u{2603}";
    bed.upload(&format!("list/{odd}")).expect("uploaded");
    let list = bed.dir.path().join("work/list");
    fs::set_permissions(list.join(odd), fs::Permissions::from_mode(0o4750)).expect("set");
    fs::create_dir(list.join("folder")).expect("made");
    fs::set_permissions(list.join("folder"), fs::Permissions::from_mode(0o1777)).expect("set");
    symlink("/etc/passwd", list.join("link")).expect("linked");
    let listing = bed.tree.list("list");
    assert_eq!(
        (listing.errors.as_str(), listing.abspath.as_deref()),
        ("", Some("/home/work/list/\n"))
    );
    let entries: Vec<Value> = serde_json::from_str(&listing.files).expect("JSON");
    let fields: Vec<(&str, &str)> = entries
        .iter()
        .map(|entry| {
            (
                entry["filename"].as_str().expect("a name"),
                entry["mode"].as_str().expect("a mode"),
            )
        })
        .collect();
    assert_eq!(
        fields,
        [
            ("folder", "drwxrwxrwt"),
            ("link", "lrwxrwxrwx"),
            (odd, "-rwsr-x---")
        ]
    );
    assert_eq!(entries[2]["size"], 4);
    for name in ["ctime", "mtime", "atime"] {
        assert!(
            entries[2][name].as_f64().is_some_and(|seconds| seconds > 1e9),
            "{name}"
        );
    }
    assert_eq!(bed.tree.list("").abspath.as_deref(), Some("/home/work/\n"));
}

#[test]
fn mounted_folders_are_part_of_the_tree() {
    let bed = Bed::new();
    bed.upload("data/deep/x").expect("uploaded");
    assert_eq!(bed.read("shared/deep/x"), "data");
    assert!(bed.tree.list("data").files.contains("\"deep\""));
    assert!(bed.tree.download("data/deep/x").is_ok());
    let error = bed.upload("fixed/x").expect_err("read-only");
    assert!(
        error.repr().starts_with("PermissionError(") && error.repr().contains("read-only"),
        "{error}"
    );
    symlink(bed.dir.path().join("outside"), bed.dir.path().join("shared/away")).expect("linked");
    assert!(bed.upload("data/away/x").is_err() && bed.tree.download("data/away/secret").is_err());
    bed.assert_outside_untouched();
    fs::write(bed.dir.path().join("readonly/x"), "x").expect("written");
    assert_eq!(
        members(&bed.tree.download("fixed/x").expect("downloaded")),
        [("x".to_owned(), "x".to_owned())]
    );
}
