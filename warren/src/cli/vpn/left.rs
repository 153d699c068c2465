//! What a `vpn up` that was killed left behind: its link, its configuration and its session.
//!
//! Each `vpn up` has a directory of its own, and in it a file that names what it made. It locks that file (flock(2)) for
//! as long as it lives; the kernel gives the lock back however it ends. What is not locked is nobody's any more.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

#[cfg(unix)]
use super::quick::own_user;
use super::quick::{Quick, remove_copy};
use crate::cli::failure::Failure;
use crate::cli::output::note;
use crate::client::Client;

/// How the directories begin.
const PREFIX: &str = "warren-vpn-";
/// The file in each.
const MADE: &str = "made.json";

/// What one `vpn up` makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// The session's id.
    pub session: String,
    pub link: String,
    /// Where a person finds the configuration. What `wg-quick` gets is in the directory of this, and named like the link.
    pub config: PathBuf,
}

impl Made {
    /// Names what is made, before it is made. It is there for as long as the lock is kept.
    pub fn write(&self, directory: &Path) -> std::io::Result<File> {
        let mut file = File::create_new(directory.join(MADE))?;
        file.lock()?;
        file.write_all(serde_json::to_string(self)?.as_bytes())?;
        Ok(file)
    }
}

/// Takes away what is left of those that were killed, in the directory for temporary files. What cannot be taken away is
/// told, and left.
pub async fn clear(quick: &Quick, client: &Client) {
    clear_in(&std::env::temp_dir(), quick, client).await;
}

async fn clear_in(parent: &Path, quick: &Quick, client: &Client) {
    for Left { directory, made, _lock } in find(parent) {
        let link = &made.link;
        if let Err(failure) = quick.remove(link, &directory).await {
            note(&format!("warren: a `vpn up` that was killed left the link {link}, which stays: {failure}"));
            continue;
        }
        // It may be another server's, or over. What still lives ends when it is idle.
        let closed = super::close(client, &made.session).await.is_ok();
        if made.config.parent() != Some(&directory) {
            remove_copy(&made.config);
        }
        if let Err(error) = fs::remove_dir_all(&directory) {
            note(&format!("warren: {} stays: {error}", directory.display()));
        }
        let session = if closed { " and its session" } else { "" };
        note(&format!("Took away what a `vpn up` that was killed left: {link}{session}."));
    }
}

/// What somebody left who is dead.
#[derive(Debug)]
struct Left {
    directory: PathBuf,
    made: Made,
    /// So that no other `vpn up` takes it away at the same time.
    _lock: File,
}

fn find(parent: &Path) -> Vec<Left> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let own = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)));
    own.map(|entry| entry.path()).filter(|directory| is_own(directory)).filter_map(look).collect()
}

/// `None` while its owner lives, and where the owner has not said yet what it makes.
fn look(directory: PathBuf) -> Option<Left> {
    let mut lock = File::open(directory.join(MADE)).ok()?;
    lock.try_lock().ok()?;
    let mut text = String::new();
    lock.read_to_string(&mut text).ok()?;
    let made: Made = serde_json::from_str(&text).ok()?;
    Some(Left { directory, made, _lock: lock })
}

/// Whether nobody but this user can have written there: `wg-quick` runs what is in a configuration, as root.
#[cfg(unix)]
fn is_own(directory: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (fs::symlink_metadata(directory), own_user()) {
        (Ok(found), Some(own)) => found.is_dir() && found.uid() == own && found.mode() & 0o077 == 0,
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_own(_: &Path) -> bool {
    false
}

/// Makes a directory that [`find`] knows, among those for temporary files.
pub fn directory() -> Result<tempfile::TempDir, Failure> {
    directory_in(&std::env::temp_dir())
        .map_err(|source| Failure::local("cannot make a directory for the configuration", source))
}

fn directory_in(parent: &Path) -> std::io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    builder.tempdir_in(parent)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::quick::file_in;
    use super::super::tests::server;
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn own(parent: &Path) -> (PathBuf, Made) {
        let directory = directory_in(parent).unwrap().keep();
        let config = directory.join("wg-abc.conf");
        (directory, Made { session: "ses_01".into(), link: "wg-abc".into(), config })
    }

    /// Closing it would not do: a process that another test starts has it too until it runs its program.
    fn die(owner: File) {
        owner.unlock().unwrap();
    }

    #[test]
    fn only_what_nobody_holds_any_more_is_found() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, made) = own(parent.path());
        let alive = made.write(&directory).unwrap();
        assert!(find(parent.path()).is_empty(), "its owner lives");
        die(alive);
        let found = find(parent.path());
        assert_eq!((found.len(), &found[0].directory, &found[0].made), (1, &directory, &made));
        assert!(find(parent.path()).is_empty(), "somebody is at it");
    }

    #[tokio::test]
    async fn what_a_killed_one_left_goes_with_its_session() {
        let parent = tempfile::tempdir().unwrap();
        let elsewhere = parent.path().join("named");
        fs::create_dir(&elsewhere).unwrap();
        // Stands for `wg-quick`: writes down what it is asked to do, and what is in the file.
        let (program, told) = (parent.path().join("quick"), parent.path().join("told"));
        let quick = Quick::written(program, &format!("#!/bin/sh\n(echo $1; cat \"$2\") >> {}\n", told.display()));
        let (client, asked, _directory) = server("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        // A link that is there; the other one is not.
        for (session, link) in [("ses_01", "lo"), ("ses_02", "wg-gone")] {
            let directory = directory_in(parent.path()).unwrap().keep();
            let config = file_in(&elsewhere, link);
            // Others may have changed it meanwhile.
            fs::write(&config, "PostDown = reboot\n").unwrap();
            fs::write(file_in(&directory, link), format!("{link}\n")).unwrap();
            die(Made { session: session.into(), link: link.into(), config }.write(&directory).unwrap());
        }
        clear_in(parent.path(), &quick, &client).await;
        assert_eq!(fs::read_to_string(&told).unwrap(), "down\nlo\n");
        let mut closed: Vec<_> = asked.try_iter().collect();
        closed.sort();
        assert_eq!(closed, ["DELETE /v1/sessions/ses_01", "DELETE /v1/sessions/ses_02"]);
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        assert!(
            !fs::read_dir(parent.path())
                .unwrap()
                .flatten()
                .any(|e| e.file_name().to_string_lossy().starts_with(PREFIX))
        );
    }

    #[test]
    fn what_others_could_have_written_is_not_touched() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, made) = own(parent.path());
        die(made.write(&directory).unwrap());
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(find(parent.path()).is_empty(), "everybody may write there");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        let elsewhere = parent.path().join("elsewhere");
        fs::rename(&directory, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &directory).unwrap();
        assert!(find(parent.path()).is_empty(), "a link to somewhere");
        fs::remove_file(&directory).unwrap();
        fs::rename(&elsewhere, &directory).unwrap();
        assert_eq!(find(parent.path()).len(), 1);
    }

    #[test]
    fn a_directory_that_says_nothing_yet_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let (directory, _) = own(parent.path());
        assert!(find(parent.path()).is_empty());
        File::create(directory.join(MADE)).unwrap();
        assert!(find(parent.path()).is_empty() && directory.exists());
    }
}
