//! `wg-quick`, and the file that it takes.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::cli::failure::Failure;
use crate::cli::output::note;

/// The program, and where it is.
#[derive(Debug)]
pub struct Quick(PathBuf);

/// The configuration of one link. Its file goes when this is dropped.
#[derive(Debug)]
pub struct Config {
    path: PathBuf,
    link: String,
    /// Holds what `wg-quick` says, and the file where no other place was named.
    private: tempfile::TempDir,
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

    /// Brings the link up.
    pub async fn up(&self, config: &Config) -> Result<(), Failure> {
        let Err(failure) = self.run("up", config).await else { return Ok(()) };
        // It takes back what it did, unless it was ended itself.
        if config.link_is_there()
            && let Err(more) = self.run("down", config).await
        {
            note(&format!("warren: {more}"));
        }
        Err(failure)
    }

    /// Takes the link down, if it is still there.
    pub async fn down(&self, config: &Config) -> Result<(), Failure> {
        if config.link_is_there() { self.run("down", config).await } else { Ok(()) }
    }

    async fn run(&self, verb: &str, config: &Config) -> Result<(), Failure> {
        let failed = |source| Failure::local(format!("cannot run {}", self.0.display()), source);
        // Not a pipe: a WireGuard that stays behind may hold it open.
        let said = config.private.path().join(verb);
        let log = File::create(&said).map_err(failed)?;
        let mut command = Command::new(&self.0);
        command.arg(verb).arg(&config.path).stdout(log.try_clone().map_err(failed)?).stderr(log);
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
            "another link has these addresses or routes, perhaps of a `warren vpn up` that was killed: `ip link` lists \
             links, and `ip link del wg-…` removes one",
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
    /// Writes the file, for nobody else to read: in this directory, else in one that is made for it. The link has the
    /// file's name.
    pub fn write(directory: Option<&Path>, link: &str, text: &str) -> Result<Self, Failure> {
        let private = tempfile::Builder::new()
            .prefix("warren-vpn-")
            .tempdir()
            .map_err(|source| Failure::local("cannot make a directory for the configuration", source))?;
        let directory = match directory {
            Some(directory) => {
                let failed = |source| Failure::local(format!("cannot use {}", directory.display()), source);
                fs::create_dir_all(directory).map_err(failed)?;
                fs::canonicalize(directory).map_err(failed)?
            }
            None => private.path().to_owned(),
        };
        let path = directory.join(format!("{link}.conf"));
        let failed = |source| Failure::local(format!("cannot write {}", path.display()), source);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path).map_err(failed)?;
        // From here on it is ours to remove.
        let config = Self { path: path.clone(), link: link.to_owned(), private };
        file.write_all(text.as_bytes()).map_err(failed)?;
        Ok(config)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn link(&self) -> &str {
        &self.link
    }

    /// Whether the link may be there: only Linux says so in a file, see proc(5).
    fn link_is_there(&self) -> bool {
        let Ok(links) = fs::read_to_string("/proc/net/dev") else { return true };
        links.lines().any(|line| line.split(':').next().is_some_and(|link| link.trim() == self.link))
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // Where it is in the private directory, it goes with that.
        let _ = fs::remove_file(&self.path);
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
    return std::os::unix::fs::MetadataExt::uid(&match fs::metadata("/proc/self") {
        Ok(own) => own,
        Err(_) => return false,
    }) == 0;
    #[cfg(not(unix))]
    false
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
        assert!(about("RTNETLINK answers: File exists").unwrap().contains("ip link"));
        assert!(about("line 1: wireguard-go: command not found").unwrap().contains("install wireguard-go"));
        assert_eq!(about("something else"), None);
        assert!(way_out("Error: Unknown device type.").unwrap().contains("install wireguard-go"));
        assert_eq!(way_out("line 85: exec: sudo: not found"), Some("run it as root"));
    }

    #[test]
    fn a_configuration_is_its_owners_alone_and_goes_when_it_is_done_with() {
        let home = tempfile::tempdir().unwrap();
        let named = home.path().join("new");
        for directory in [None, Some(named.as_path())] {
            let config = Config::write(directory, "wg-abc", "text").unwrap();
            let path = config.path().to_owned();
            assert!(path.is_absolute() && path.ends_with("wg-abc.conf"), "{}", path.display());
            assert_eq!(fs::read_to_string(&path).unwrap(), "text");
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt as _;
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            }
            // What is there is not written over.
            if directory.is_some() {
                assert!(Config::write(directory, "wg-abc", "other").is_err());
            }
            drop(config);
            assert!(!path.exists());
        }
        assert!(named.exists());
    }
}
