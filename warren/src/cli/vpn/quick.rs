//! `wg-quick`, and the file that it takes.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::left::{self, Made};
use crate::cli::failure::Failure;
use crate::cli::output::note;

/// The program, and where it is.
#[derive(Debug)]
pub struct Quick(PathBuf);

/// The configuration of one link. Its files go when this is dropped.
#[derive(Debug)]
pub struct Config {
    link: String,
    /// Holds the file that `wg-quick` gets, and what it says.
    private: tempfile::TempDir,
    /// A second one, where a place was named for it.
    copy: Option<PathBuf>,
    /// Kept open: whose lock it is lives.
    _made: File,
}

impl Quick {
    pub fn find() -> Result<Self, Failure> {
        for program in ["wg", "wg-quick"] {
            if find_program(program).is_none() {
                return Err(Failure::Said(format!(
                    "{program} is not installed, and `warren vpn up` needs it: install the package wireguard-tools \
                     (`apt-get install wireguard-tools`), or use `warren vpn open` with another WireGuard"
                )));
            }
        }
        find_program("wg-quick").map(Self).ok_or_else(|| Failure::Said("wg-quick is not installed".to_owned()))
    }

    /// A program that stands for it. Written by another process: what this one starts meanwhile would have the file open,
    /// too, and what is open to be written is not run (ETXTBSY, execve(2)).
    #[cfg(test)]
    pub fn written(program: PathBuf, text: &str) -> Self {
        let mut write = std::process::Command::new("sh");
        write.args(["-c", "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"", "sh", text]).arg(&program);
        assert!(write.status().unwrap().success());
        Self(program)
    }

    /// Brings the link up.
    pub async fn up(&self, config: &mut Config) -> Result<(), Failure> {
        let Err(failure) = self.run("up", &config.link, config.private.path()).await else { return Ok(()) };
        // It takes back what it did, unless it was ended itself.
        if let Err(more) = self.down(config).await {
            note(&format!("warren: {more}"));
        }
        Err(failure)
    }

    /// Takes the link down, if it is still there. Where that fails, the configuration stays, and the failure says where.
    pub async fn down(&self, config: &mut Config) -> Result<(), Failure> {
        let done = self.remove(&config.link, config.private.path()).await;
        if done.is_err() && is_there(&config.link) {
            config.private.disable_cleanup(true);
        }
        done
    }

    /// Takes a link down, if it is still there, by its configuration in this directory: nobody but this user can have
    /// written there. The failure says how to do it by hand.
    pub async fn remove(&self, link: &str, directory: &Path) -> Result<(), Failure> {
        if !is_there(link) {
            return Ok(());
        }
        let config = file_in(directory, link);
        if !config.exists() {
            return Err(Failure::Said(format!("its configuration is gone: take it away with `ip link del {link}`")));
        }
        match self.run("down", link, directory).await {
            Err(failure) if is_there(link) => Err(Failure::Said(format!(
                "{failure}\nThe link {link} is still there: take it away with `wg-quick down {}`",
                config.display()
            ))),
            done => done,
        }
    }

    /// `wg-quick` with the link's configuration in this directory; what it says goes to a file there.
    async fn run(&self, verb: &str, link: &str, directory: &Path) -> Result<(), Failure> {
        let failed = |source| Failure::local(format!("cannot run {}", self.0.display()), source);
        // Not a pipe: a WireGuard that stays behind may hold it open.
        let said = directory.join(verb);
        let log = File::create(&said).map_err(failed)?;
        let mut command = Command::new(&self.0);
        command.arg(verb).arg(file_in(directory, link)).stdout(log.try_clone().map_err(failed)?).stderr(log);
        if is_root() {
            // Ctrl-C is meant for us: half a link would stay.
            #[cfg(unix)]
            command.process_group(0);
            command.stdin(Stdio::null());
        }
        let status = command.status().await.map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read_to_string(&said).unwrap_or_default();
        let mut text = format!("`wg-quick {verb}` failed ({status})");
        if let Some(way_out) = way_out(&said) {
            text = format!("{text}: {way_out}");
        }
        Err(Failure::Said(format!("{text}\n{}", said.trim_end())))
    }
}

/// What to do about what `wg-quick` said. That the kernel has no WireGuard it says also where it goes on without.
fn way_out(said: &str) -> Option<&'static str> {
    let lacks = |program: &str| said.contains(&format!("{program}: command not found"));
    let no_kernel = said.contains("Unknown device type") || said.contains("Operation not supported");
    if lacks("resolvconf") {
        Some("`--dns` needs a program that `apt-get install openresolv` brings: install it, or leave --dns out")
    } else if said.contains("sudo: not found") {
        Some("run it as root")
    } else if said.contains("File exists") {
        Some(
            "another link has these addresses or routes: `ip address` lists links, and `ip link del LINK` removes one that \
             nobody needs",
        )
    } else if no_kernel && (lacks("wireguard-go") || !said.contains("Falling back")) {
        Some(
            "where the kernel has no WireGuard, install wireguard-go (`apt-get install wireguard-go`), or name another \
             program with WG_QUICK_USERSPACE_IMPLEMENTATION",
        )
    } else {
        None
    }
}

impl Config {
    /// Writes the file, for nobody else to read, in a directory that is made for it, and a copy of it to the one that is
    /// named. `wg-quick` runs what is in a configuration as root, so the copy is never given to it: others may be able to
    /// write there. Whoever comes after this process finds what it made, should it be killed.
    pub fn write(directory: Option<&Path>, session: &str, link: &str, text: &str) -> Result<Self, Failure> {
        let private = left::directory()?;
        let path = file_in(private.path(), link);
        let copy = match directory {
            Some(directory) => {
                let failed = |source| Failure::local(format!("cannot use {}", directory.display()), source);
                fs::create_dir_all(directory).map_err(failed)?;
                Some(file_in(&fs::canonicalize(directory).map_err(failed)?, link))
            }
            None => None,
        };
        let config = copy.clone().unwrap_or_else(|| path.clone());
        let made = Made { session: session.to_owned(), link: link.to_owned(), config }
            .write(private.path())
            .map_err(|source| Failure::local(format!("cannot write in {}", private.path().display()), source))?;
        let mut config = Self { link: link.to_owned(), private, copy: None, _made: made };
        write_new(&path, text)?;
        if let Some(copy) = copy {
            // What is there already is not ours to remove.
            write_new(&copy, text)?;
            config.copy = Some(copy);
        }
        Ok(config)
    }

    /// Where a person may look: the named place, if there is one.
    pub fn path(&self) -> PathBuf {
        self.copy.clone().unwrap_or_else(|| file_in(self.private.path(), &self.link))
    }

    pub fn link(&self) -> &str {
        &self.link
    }
}

/// The configuration of a link is named like it.
pub fn file_in(directory: &Path, link: &str) -> PathBuf {
    directory.join(format!("{link}.conf"))
}

/// A file for nobody else to read. None is left behind where it could not be written to its end.
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |source| Failure::local(format!("cannot write {}", path.display()), source);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(|source| {
        remove_copy(path);
        failed(source)
    })
}

/// Removes a copy, if what is there is still this user's file; whoever else can write there may have put something in its
/// place. Nothing is read or run, and a link to elsewhere is not followed.
pub fn remove_copy(path: &Path) {
    if is_own_file(path) {
        // Somebody may have taken it away.
        let _ = fs::remove_file(path);
    }
}

#[cfg(unix)]
fn is_own_file(path: &Path) -> bool {
    // Only Linux says as whom this process runs; elsewhere the name has to do, which is the session's.
    let is_mine = |found: &fs::Metadata| own_user().is_none_or(|own| std::os::unix::fs::MetadataExt::uid(found) == own);
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && is_mine(&found))
}

#[cfg(not(unix))]
fn is_own_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// Whether the link may be there: only Linux says so in a file, see proc(5).
fn is_there(link: &str) -> bool {
    let Ok(links) = fs::read_to_string("/proc/net/dev") else { return true };
    links.lines().any(|line| line.split(':').next().is_some_and(|name| name.trim() == link))
}

impl Drop for Config {
    fn drop(&mut self) {
        // What is in the private directory goes with that.
        if let Some(copy) = &self.copy {
            remove_copy(copy);
        }
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| is_program(file))
}

#[cfg(unix)]
fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_program(file: &Path) -> bool {
    file.is_file()
}

/// Whether `wg-quick` does it all itself. It asks for a password with sudo otherwise, on the terminal.
fn is_root() -> bool {
    #[cfg(unix)]
    return own_user() == Some(0);
    #[cfg(not(unix))]
    false
}

/// As whom this process runs; only Linux says so, see proc(5).
#[cfg(unix)]
pub fn own_user() -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|own| std::os::unix::fs::MetadataExt::uid(&own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_follows_from_what_failed_and_not_from_what_came_before() {
        let before =
            "Error: Unknown device type.\n[!] Missing WireGuard kernel module. Falling back to slow userspace\n";
        let about = |more: &str| way_out(&format!("{before}{more}"));
        assert!(about("line 32: resolvconf: command not found").unwrap().contains("openresolv"));
        assert!(about("RTNETLINK answers: File exists").unwrap().contains("ip link del"));
        assert!(about("line 1: wireguard-go: command not found").unwrap().contains("install wireguard-go"));
        assert_eq!(about("something else"), None);
        assert!(way_out("Error: Unknown device type.").unwrap().contains("install wireguard-go"));
        assert_eq!(way_out("line 85: exec: sudo: not found"), Some("run it as root"));
    }

    /// Stands for `wg-quick`: writes down what is in the files that it gets, and fails.
    #[cfg(target_os = "linux")]
    fn failing(directory: &Path) -> Quick {
        let text = format!("#!/bin/sh\ncat \"$2\" >> {}\necho no way >&2\nexit 3\n", directory.join("ran").display());
        Quick::written(directory.join("quick"), &text)
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_copy_that_others_may_write_is_never_run_and_only_what_is_ours_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let quick = failing(home.path());
        let named = home.path().join("named");
        // The link is there in every namespace.
        let mut config = Config::write(Some(&named), "ses_01", "lo", "ours\n").unwrap();
        let copy = config.path();
        assert_eq!(copy, fs::canonicalize(&named).unwrap().join("lo.conf"));
        fs::write(&copy, "PostDown = reboot\n").unwrap();
        quick.up(&mut config).await.unwrap_err();
        quick.down(&mut config).await.unwrap_err();
        // Taking back what could not be begun is one of them.
        assert_eq!(fs::read_to_string(home.path().join("ran")).unwrap(), "ours\n".repeat(3));
        let private = config.private.path().to_owned();
        drop(config);
        assert!(!copy.exists());
        fs::remove_dir_all(private).unwrap();

        let config = Config::write(Some(&named), "ses_01", "lo", "ours\n").unwrap();
        let theirs = home.path().join("theirs");
        fs::write(&theirs, "").unwrap();
        fs::remove_file(&copy).unwrap();
        std::os::unix::fs::symlink(&theirs, &copy).unwrap();
        drop(config);
        assert!(theirs.exists() && copy.is_symlink(), "what was put in its place is not ours");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_configuration_of_a_link_that_stays_is_kept_and_named() {
        let home = tempfile::tempdir().unwrap();
        let quick = failing(home.path());
        let mut config = Config::write(None, "ses_01", "lo", "text").unwrap();
        let path = config.path();
        let failure = quick.down(&mut config).await.unwrap_err().to_string();
        drop(config);
        assert!(failure.contains("exit status: 3") && failure.contains("no way"), "{failure}");
        assert!(failure.contains(&format!("`wg-quick down {}`", path.display())), "{failure}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        // Where there is no link, there is nothing to keep it for.
        let mut config = Config::write(None, "ses_01", "wg-gone", "text").unwrap();
        let gone = config.path();
        quick.up(&mut config).await.unwrap_err();
        quick.down(&mut config).await.unwrap();
        drop(config);
        assert!(!gone.exists());
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_configuration_is_its_owners_alone_and_goes_when_it_is_done_with() {
        let home = tempfile::tempdir().unwrap();
        let named = home.path().join("new");
        for directory in [None, Some(named.as_path())] {
            let config = Config::write(directory, "ses_01", "wg-abc", "text").unwrap();
            let path = config.path();
            assert!(path.is_absolute() && path.ends_with("wg-abc.conf"), "{}", path.display());
            assert_eq!(fs::read_to_string(&path).unwrap(), "text");
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt as _;
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            }
            // What is there is not written over.
            if directory.is_some() {
                assert!(Config::write(directory, "ses_01", "wg-abc", "other").is_err());
            }
            drop(config);
            assert!(!path.exists());
        }
        assert!(named.exists());
    }
}
