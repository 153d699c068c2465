//! Hosts that lack something: room on a disk, the OCI runtime, a kernel feature. What was asked for fails cleanly, the
//! answer says which, and nothing half-made stays.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Options, Server, WARREN, text};
use tempfile::TempDir;

/// An ext4 of its own that goes with its handle. It is sparse, so filling it costs the host nothing.
struct SmallDisk {
    _directory: TempDir,
    mount: PathBuf,
}

impl SmallDisk {
    fn new(megabytes: u64) -> Self {
        let directory = tempfile::Builder::new().prefix("warren-test-disk-").tempdir().unwrap();
        let (image, mount) = (directory.path().join("image"), directory.path().join("disk"));
        std::fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        std::fs::create_dir(&mount).unwrap();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", image.to_str().unwrap()]);
        run("mount", &["-o", "loop", image.to_str().unwrap(), mount.to_str().unwrap()]);
        Self { _directory: directory, mount }
    }

    fn free_megabytes(&self) -> u64 {
        let said = run("df", &["--output=avail", "-m", self.mount.to_str().unwrap()]);
        said.lines().last().unwrap().trim().parse().unwrap()
    }

    /// Leaves so much free.
    fn fill(&self, megabytes_left: u64) {
        let size = format!("{}M", self.free_megabytes() - megabytes_left);
        run("fallocate", &["-l", &size, self.filler().to_str().unwrap()]);
    }

    /// Leaves nothing free.
    fn fill_up(&self) {
        self.fill(1);
        let rest = self.mount.join("rest");
        // Ends with an error, when the last byte is taken.
        Command::new("dd")
            .args(["if=/dev/zero", "bs=4096", "status=none", &format!("of={}", rest.display())])
            .status()
            .unwrap();
    }

    fn empty(&self) {
        for file in [self.filler(), self.mount.join("rest")] {
            let _ = std::fs::remove_file(file);
        }
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.mount).status();
    }
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// An image of a few directories: the agent brings all that a machine needs to start.
fn import_small_image(server: &Server, scratch: &Path) {
    let root = scratch.join("root");
    for directory in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    let archive = scratch.join("small.tar");
    run("tar", &["-C", root.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
    server.ok(&["image", "import", archive.to_str().unwrap(), "--name", "small"]);
}

fn nothing_half_made(server: &Server, machine: &str) {
    server.refused_as("not_found", &["machine", "show", machine]);
    assert_eq!(server.json(&["machine", "ls", "--state", "failed"])["items"], serde_json::json!([]));
    let traces = Server::traces(&server.installation());
    let left = traces.iter().filter(|trace| trace.contains("/roots/") || trace.starts_with("cgroup:"));
    assert_eq!(left.collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn who_starts_the_server_with_a_strict_umask_has_machines_all_the_same() {
    let wrapper = ["sh", "-c", "umask 077; exec \"$@\"", "sh"].map(str::to_owned).into();
    let server = Server::start_with(Options { wrapper, ..Options::default() });
    server.ok(&["machine", "create", "m", "--memory", "64"]);
    assert_eq!(server.exec("m", "id -u").trim(), "0");
    let store = std::fs::metadata(server.data_dir().join("warren.db")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&store) & 0o777, 0o600);
}

#[test]
fn a_pool_without_room_makes_a_create_fail_and_nothing_stays() {
    let disk = SmallDisk::new(4096);
    let pool = disk.mount.join("pool");
    let server = Server::start_with(Options { pool: Some(pool.clone()), ..Options::default() });
    let scratch = tempfile::tempdir().unwrap();
    import_small_image(&server, scratch.path());
    disk.fill(100);
    let problem = server.refused(&["machine", "create", "m", "--image", "small"]);
    assert_eq!((&problem["code"], &problem["status"]), (&"host_disk_full".into(), &507.into()), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("free some"), "{problem}");
    nothing_half_made(&server, "m");
    let archive = scratch.path().join("small.tar");
    server.refused_as("host_disk_full", &["image", "import", archive.to_str().unwrap(), "--name", "second"]);
    assert_eq!(server.json(&["image", "ls"])["items"].as_array().unwrap().len(), 1);

    disk.empty();
    let machine = server.json(&["machine", "create", "m", "--image", "small"]);
    assert_eq!(machine["state"], "running");
    drop(server);
    assert!(!pool.join("fs").exists(), "the pool stays mounted");
}

#[test]
fn a_pool_directory_without_room_is_named_and_the_server_does_not_start() {
    let disk = SmallDisk::new(64);
    let data = tempfile::tempdir().unwrap();
    let output = Command::new(WARREN)
        .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data.path().join("data"))
        .arg("--pool-dir")
        .arg(disk.mount.join("pool"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = text(&output.stderr);
    assert!(said.contains("too little room") && said.contains("--pool-dir"), "{said}");
    let data = data.path().join("data");
    run(WARREN, &["uninstall", "--data-dir", data.to_str().unwrap(), "--yes"]);
}

#[test]
fn a_data_directory_without_room_refuses_changes_and_still_reads() {
    let disk = SmallDisk::new(64);
    let mut server = Server::start_below(&disk.mount, Options::default());
    server.ok(&["machine", "create", "m", "--memory", "64"]);
    disk.fill_up();
    // What the database has left inside its own files may still take a few.
    let mut made = 0;
    let problem = loop {
        let output = server.run(&["network", "create", &format!("n{made}"), "--json"]);
        if !output.status.success() {
            break serde_json::from_slice::<serde_json::Value>(&output.stderr).unwrap();
        }
        made += 1;
        assert!(made < 2000, "the disk is never full");
    };
    assert_eq!(problem["code"], "host_disk_full", "{problem}");
    assert_eq!(server.json(&["network", "ls"])["items"].as_array().unwrap().len(), 1 + made);
    server.refused_as("host_disk_full", &["machine", "create", "other", "--memory", "64"]);
    assert!(server.is_running());
    assert_eq!(server.exec("m", "echo alive").trim(), "alive");

    disk.empty();
    server.ok(&["network", "create", "last"]);
    server.ok(&["machine", "create", "other", "--network", "last", "--memory", "64"]);
    server.restart();
    assert_eq!(server.json(&["network", "ls"])["items"].as_array().unwrap().len(), 2 + made);
    assert_eq!(server.exec("m", "echo alive").trim(), "alive");
}

#[test]
fn a_server_does_not_start_with_a_runtime_that_is_not_there() {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data");
    let output = Command::new(WARREN)
        .args(["up", "--listen", "127.0.0.1:0", "--runtime", "nope", "--data-dir"])
        .arg(&data)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = text(&output.stderr);
    assert!(said.contains("\"nope\"") && said.contains("apt-get install runc") && said.contains("--runtime"), "{said}");
    assert!(!data.exists(), "nothing was made");
}

#[test]
fn a_second_server_on_a_data_directory_is_told_of_the_first() {
    let mut server = Server::start();
    let output = Command::new(WARREN)
        .args(["up", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(server.data_dir())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    let holder = std::fs::read_to_string(server.data_dir().join("lock")).unwrap();
    assert!(said.contains(&format!("another server (process {holder})")), "{said}");
    assert!(!said.contains("EAGAIN"), "{said}");
    assert!(server.is_running());
}

#[test]
fn a_missing_runtime_is_named_and_nothing_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let runtime = scratch.path().join("runc");
    std::fs::write(&runtime, "#!/bin/sh\n").unwrap();
    let server = Server::start_with(Options {
        arguments: vec!["--runtime".into(), runtime.to_str().unwrap().into()],
        ..Options::default()
    });
    std::fs::remove_file(&runtime).unwrap();
    let problem = server.refused(&["machine", "create", "m"]);
    assert_eq!((&problem["code"], &problem["status"]), (&"runtime_missing".into(), &503.into()), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(runtime.to_str().unwrap()), "{problem}");
    nothing_half_made(&server, "m");
}

/// Starts the server as on a kernel before Linux 5.12, where mount_setattr(2) is not known.
const WITHOUT_IDMAPPED_MOUNTS: &str = "
import ctypes, os, struct, sys
load, equal, answer = 0x20, 0x15, 0x06
allow, no_such_call, mount_setattr = 0x7fff0000, 0x00050000 | 38, 442
program = b''.join(struct.pack('HBBI', *line) for line in [
    (load, 0, 0, 0), (equal, 0, 1, mount_setattr), (answer, 0, 0, no_such_call), (answer, 0, 0, allow)])
lines = ctypes.create_string_buffer(program, len(program))
filter = struct.pack('HxxxxxxP', 4, ctypes.addressof(lines))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(22, 2, ctypes.c_char_p(filter)) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn a_missing_kernel_feature_is_named_and_nothing_stays() {
    let server = Server::start_with(Options {
        wrapper: ["python3", "-c", WITHOUT_IDMAPPED_MOUNTS].map(str::to_owned).into(),
        ..Options::default()
    });
    let problem = server.refused(&["machine", "create", "m"]);
    assert_eq!((&problem["code"], &problem["status"]), (&"kernel_feature_missing".into(), &503.into()), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("idmapped mounts"), "{problem}");
    nothing_half_made(&server, "m");
    // What needs none of it works.
    server.ok(&["network", "create", "n"]);
}
