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

/// The configuration of one link. Its file goes when this is dropped.
#[derive(Debug)]
pub struct Config {
    path: PathBuf,
    link: String,
    /// Holds what `wg-quick` says, and the file where no other place was named.
    private: tempfile::TempDir,
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

    #[cfg(test)]
    pub fn at(program: PathBuf) -> Self {
        Self(program)
    }

    /// Brings the link up.
    pub async fn up(&self, config: &Config) -> Result<(), Failure> {
        let Err(failure) = self.run("up", &config.path, config.private.path()).await else { return Ok(()) };
        // It takes back what it did, unless it was ended itself.
        if let Err(more) = self.down(config).await {
            note(&format!("warren: {more}"));
        }
        Err(failure)
    }

    /// Takes the link down, if it is still there.
    pub async fn down(&self, config: &Config) -> Result<(), Failure> {
        if is_there(&config.link) { self.run("down", &config.path, config.private.path()).await } else { Ok(()) }
    }

    /// Takes a link down whose configuration somebody else left, if it is still there.
    pub async fn remove(&self, link: &str, config: &Path) -> Result<(), Failure> {
        if !is_there(link) {
            return Ok(());
        }
        self.run("down", config, left::directory()?.path()).await
    }

    /// `wg-quick` with this file; what it says goes to a file in the directory.
    async fn run(&self, verb: &str, config: &Path, directory: &Path) -> Result<(), Failure> {
        let failed = |source| Failure::local(format!("cannot run {}", self.0.display()), source);
        // Not a pipe: a WireGuard that stays behind may hold it open.
        let said = directory.join(verb);
        let log = File::create(&said).map_err(failed)?;
        let mut command = Command::new(&self.0);
        command.arg(verb).arg(config).stdout(log.try_clone().map_err(failed)?).stderr(log);
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
    /// Writes the file, for nobody else to read: in this directory, else in one that is made for it. The link has the
    /// file's name. Whoever comes after this process finds what it made, should it be killed.
    pub fn write(directory: Option<&Path>, session: &str, link: &str, text: &str) -> Result<Self, Failure> {
        let private = left::directory()?;
        let directory = match directory {
            Some(directory) => {
                let failed = |source| Failure::local(format!("cannot use {}", directory.display()), source);
                fs::create_dir_all(directory).map_err(failed)?;
                fs::canonicalize(directory).map_err(failed)?
            }
            None => private.path().to_owned(),
        };
        let path = directory.join(format!("{link}.conf"));
        let made = Made { session: session.to_owned(), link: link.to_owned(), config: path.clone() };
        let made = made
            .write(private.path())
            .map_err(|source| Failure::local(format!("cannot write in {}", private.path().display()), source))?;
        let failed = |source| Failure::local(format!("cannot write {}", path.display()), source);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path).map_err(failed)?;
        // From here on it is ours to remove.
        let config = Self { path: path.clone(), link: link.to_owned(), private, _made: made };
        file.write_all(text.as_bytes()).map_err(failed)?;
        Ok(config)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn link(&self) -> &str {
        &self.link
    }
}

/// Whether the link may be there: only Linux says so in a file, see proc(5).
fn is_there(link: &str) -> bool {
    let Ok(links) = fs::read_to_string("/proc/net/dev") else { return true };
    links.lines().any(|line| line.split(':').next().is_some_and(|name| name.trim() == link))
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

    #[test]
    fn a_configuration_is_its_owners_alone_and_goes_when_it_is_done_with() {
        let home = tempfile::tempdir().unwrap();
        let named = home.path().join("new");
        for directory in [None, Some(named.as_path())] {
            let config = Config::write(directory, "ses_01", "wg-abc", "text").unwrap();
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
                assert!(Config::write(directory, "ses_01", "wg-abc", "other").is_err());
            }
            drop(config);
            assert!(!path.exists());
        }
        assert!(named.exists());
    }
}
