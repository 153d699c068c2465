//! The quick starts of `docs/quickstart`, run as they are written: every line of them but what installs packages, in one shell
//! for each computer that a page speaks of, and what they show is compared with what is shown.
//!
//! | fence | is |
//! | --- | --- |
//! | `sh`, `sh host` | typed in a root shell on the host |
//! | `sh laptop` | typed on the operator's laptop |
//! | `sh install` | not run: the client that `scripts/install-client.sh` installs is in the directory of the page, and has to have these versions |
//! | `text` | what the block before it shows; [`page::matches`] says what `…` stands for |
//! | `ini` | a file's text, for reading |
//!
//! The host and the laptop are network namespaces, with 203.0.113.1 and 203.0.113.2 on the wire between them. What a
//! reader has and they do not:
//!
//! - `/var/lib/warren` is a directory of the test, mounted over that name for the shell. A server leaves the shell's mount
//!   namespace, so `WARREN_DATA_DIR` tells it the same directory by its other name, and `WARREN_POOL_DIR` where images
//!   are that were built already.
//! - `sudo` runs its arguments, since the shells are root's.
//! - `ssh` on the laptop runs its arguments on the host; a socket that it forwards (`-MS`, until `-S … -O exit`) is a
//!   symbolic link to the host's.

#[path = "../common/mod.rs"]
mod common;

mod page;
mod shell;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Server, WARREN, npm, pool, text, uninstall};
use page::{Block, Place, blocks, matches};
use shell::Shell;
use tempfile::TempDir;
use warren_lab::{Lab, Namespace};

const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A host and a laptop, until they are dropped; then nothing is left of what a page began.
struct World {
    host: Namespace,
    laptop: Namespace,
    directory: TempDir,
    /// Of what a page installs, once it has.
    installation: Option<String>,
    _lab: Lab,
}

impl World {
    fn new() -> Self {
        let lab = Lab::new();
        let [host, laptop] = ["host", "laptop"].map(|name| lab.namespace(name));
        lab.connect(&host, "eth0", &laptop, "eth0");
        host.run("ip addr add 203.0.113.1/24 dev eth0");
        laptop.run("ip addr add 203.0.113.2/24 dev eth0");
        let directory = tempfile::Builder::new().prefix("warren-quickstart-").tempdir().unwrap();
        let world = Self { host, laptop, directory, installation: None, _lab: lab };
        for name in ["data", "host", "laptop", "host-bin", "laptop-bin"] {
            fs::create_dir(world.path(name)).unwrap();
        }
        for name in ["host-bin", "laptop-bin"] {
            symlink(WARREN, world.path(name).join("warren")).unwrap();
            program(&world.path(name).join("sudo"), "exec \"$@\"");
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A root shell on the host.
    fn host_shell(&self) -> Shell {
        let (data, pool) = (self.path("data"), pool());
        let mounts = format!(
            "mount -t tmpfs tmpfs /var/lib\nmkdir /var/lib/warren\nmount --bind {} /var/lib/warren",
            data.display()
        );
        let path = format!("{}:{SEARCH_PATH}", self.path("host-bin").display());
        let settings = [
            ("PATH", path.as_str()),
            ("WARREN_DATA_DIR", data.to_str().unwrap()),
            ("WARREN_POOL_DIR", pool.to_str().unwrap()),
        ];
        Shell::start(&self.host, &self.path("host"), &settings, &mounts)
    }

    /// A shell on the laptop, from which the host can be reached with `ssh`.
    fn laptop_shell(&self, host: &Shell) -> Shell {
        let ssh = format!(
            "case $1 in\n\
             -MS) ln -s \"/proc/{pid}/root${{4#*:}}\" \"${{4%%:*}}\" ;;\n\
             -S) ;;\n\
             *) shift; exec nsenter --target {pid} --mount --net env -i PATH={SEARCH_PATH} sh -c \"cd {home} && $*\" ;;\n\
             esac",
            pid = host.pid(),
            home = self.path("host").display()
        );
        program(&self.path("laptop-bin").join("ssh"), &ssh);
        // The control sockets of wireguard-go are named like links, which other namespaces may have too.
        let mounts = "mkdir -p /run/wireguard\nmount -t tmpfs tmpfs /run/wireguard";
        let path = format!("{}:{SEARCH_PATH}", self.path("laptop-bin").display());
        Shell::start(&self.laptop, &self.path("laptop"), &[("PATH", &path)], mounts)
    }

    /// Puts the client into the page's directory. It is the one that all tests use, so that a registry is needed once;
    /// the page has to name the packages that it has.
    fn install(&self, commands: &str) {
        let packages = npm::client().join("node_modules");
        let wanted = commands.trim().strip_prefix("npm install ").expect("a page installs packages of npm");
        for (name, version) in wanted.split(' ').map(|package| package.split_once('@').expect("a version is named")) {
            let program = packages.join(".bin").join(name);
            let installed = match name {
                "node" => text(&Command::new(program).arg("--version").output().unwrap().stdout),
                _ => {
                    let described = fs::read(packages.join(name).join("package.json")).unwrap();
                    let described: serde_json::Value = serde_json::from_slice(&described).unwrap();
                    described["version"].as_str().unwrap().to_owned()
                }
            };
            let installed = installed.trim().trim_start_matches('v');
            let is_so = installed == version || installed.starts_with(&format!("{version}."));
            assert!(is_so, "the page installs {name} {version}, and {installed} is tested");
        }
        symlink(packages, self.path("host").join("node_modules")).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("host").join("warren.log")).unwrap_or_default()
    }

    /// Follows a page to its end.
    fn follow(mut self, page: &str) {
        let text = fs::read_to_string(pages().join(format!("{page}.md"))).unwrap();
        let blocks = blocks(&text);
        for block in blocks.iter().filter(|block| block.place == Place::Install) {
            self.install(&block.commands);
        }
        let mut host = self.host_shell();
        let mut laptop = blocks.iter().any(|block| block.place == Place::Laptop).then(|| self.laptop_shell(&host));
        for block in &blocks {
            let shell = match block.place {
                Place::Host => &mut host,
                Place::Laptop => laptop.as_mut().unwrap(),
                Place::Install => continue,
            };
            let said = shell.run(&block.commands);
            self.remember();
            let said = said.unwrap_or_else(|failed| {
                panic!("{}\n{}\nthe server's log:\n{}", at(page, block), failed.0, self.log())
            });
            // Shown when the test fails, and with --nocapture.
            println!("{}{said}\n", block.commands.lines().map(|line| format!("# {line}\n")).collect::<String>());
            if let Some(shown) = &block.shown {
                assert!(
                    matches(shown, &said),
                    "{}\nis said to show:\n{shown}\nand shows:\n{said}\nthe server's log:\n{}",
                    at(page, block),
                    self.log()
                );
            }
        }
        let installation = self.installation.as_ref().expect("a page starts a server");
        assert_eq!(Server::traces(installation), Vec::<String>::new(), "a page takes all of it away again");
        assert_eq!(self.laptop.run("ip -o link show type tun"), "", "and its links");
    }

    fn remember(&mut self) {
        if let Ok(traces) = fs::read_to_string(self.path("data").join("installation.json")) {
            let traces: serde_json::Value = serde_json::from_str(&traces).unwrap();
            self.installation = traces["installation"].as_str().map(str::to_owned);
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.path("data").join("installation.json").exists() {
            let outcome = uninstall(self.host.name(), &self.path("data"));
            if !outcome.status.success() {
                eprintln!("uninstall failed: {}\n{}", text(&outcome.stderr), self.log());
            }
        }
        // What a page began and did not end.
        for namespace in [&self.host, &self.laptop] {
            let Ok(output) = Command::new("ip").args(["netns", "pids", namespace.name()]).output() else { continue };
            for pid in text(&output.stdout).lines() {
                let _ = Command::new("kill").args(["-9", pid]).status();
            }
        }
    }
}

fn program(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn pages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/quickstart")
}

fn at(page: &str, block: &Block) -> String {
    format!("docs/quickstart/{page}.md:{}:\n{}", block.line, block.commands)
}

#[test]
fn every_page_is_followed() {
    let mut found: Vec<_> = fs::read_dir(pages()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    found.sort();
    assert_eq!(found, ["curl.md", "freestyle.md", "wg-quick.md"], "a page that no test below follows");
}

#[test]
fn the_quick_start_with_curl_works_as_it_is_written() {
    World::new().follow("curl");
}

#[test]
fn the_quick_start_with_the_freestyle_client_works_as_it_is_written() {
    World::new().follow("freestyle");
}

#[test]
fn the_quick_start_with_wg_quick_works_as_it_is_written() {
    World::new().follow("wg-quick");
}
