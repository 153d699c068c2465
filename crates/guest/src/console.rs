//! The console log: what the agent says, and what background children and abandoned commands write.
//!
//! Two files of at most 1 MiB each; the older one is given up. Writing is done by one thread, so that a full or
//! hanging disk holds back only who writes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc};

use crate::startup;

/// The newer file.
pub const LOG: &str = "/var/log/warren-console.log";

/// When a file is as long as this, the next one begins. In bytes.
const LONGEST: u64 = 1 << 20;

/// Writes that wait for the disk.
const WAITING: usize = 16;

/// Writes that a follower may be behind before it loses some.
const BEHIND: usize = 64;

/// The way to the console log.
#[derive(Debug, Clone)]
pub struct Console {
    writes: mpsc::Sender<Bytes>,
    follow: broadcast::Sender<Bytes>,
}

impl Console {
    pub fn start() -> Self {
        let (writes, mut waiting) = mpsc::channel::<Bytes>(WAITING);
        let (follow, _) = broadcast::channel(BEHIND);
        let followers = follow.clone();
        let thread = std::thread::Builder::new().name("console".into()).stack_size(256 << 10);
        let spawned = thread.spawn(move || {
            let mut log = Log::open(PathBuf::from(LOG), LONGEST);
            startup_output(&log);
            while let Some(bytes) = waiting.blocking_recv() {
                if log.write(&bytes) {
                    startup_output(&log);
                }
                // Nobody follows: that is no failure.
                let _ = followers.send(bytes);
            }
        });
        // Without the thread the channel is closed, and writes are dropped: a machine without a log is still a machine.
        drop(spawned);
        Self { writes, follow }
    }

    /// A line of the agent's own. Dropped when the disk is far behind.
    pub fn say(&self, line: &str) {
        let _ = self.writes.try_send(Bytes::from(format!("warren: {line}\n")));
    }

    /// What a command wrote; waits while the disk is behind.
    pub async fn write(&self, bytes: Bytes) {
        let _ = self.writes.send(bytes).await;
    }

    /// Whatever is written from now on.
    pub fn follow(&self) -> broadcast::Receiver<Bytes> {
        self.follow.subscribe()
    }
}

/// The last `tail` bytes of both files. Blocking.
pub fn tail(path: &Path, tail: u64) -> Vec<u8> {
    let newer = last_bytes(path, tail);
    let missing = tail.saturating_sub(newer.len() as u64);
    let mut bytes = if missing > 0 { last_bytes(&older(path), missing) } else { Vec::new() };
    bytes.extend_from_slice(&newer);
    bytes
}

fn last_bytes(path: &Path, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let most = most.min(2 * LONGEST);
    let read = regular(OpenOptions::new().read(true), path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        file.take(most).read_to_end(&mut bytes)
    });
    if read.is_err() {
        bytes.clear();
    }
    bytes
}

fn startup_output(log: &Log) {
    if let Some(file) = &log.file {
        startup::redirect_output(file);
    }
}

/// Opens a regular file and nothing else: what lies there is the machine's, and a FIFO would block.
fn regular(options: &mut OpenOptions, path: &Path) -> std::io::Result<File> {
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::ErrorKind::InvalidInput.into()) }
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

struct Log {
    path: PathBuf,
    longest: u64,
    file: Option<File>,
    length: u64,
}

impl Log {
    fn open(path: PathBuf, longest: u64) -> Self {
        let mut log = Self { path, longest, file: None, length: 0 };
        log.reopen();
        log
    }

    fn reopen(&mut self) {
        if let Some(directory) = self.path.parent() {
            let _ = std::fs::create_dir_all(directory);
        }
        self.file = regular(OpenOptions::new().append(true).create(true).mode(0o600), &self.path).ok();
        self.length = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |meta| meta.len());
    }

    /// Says whether another file was begun.
    fn write(&mut self, bytes: &[u8]) -> bool {
        let full = self.length + bytes.len() as u64 > self.longest;
        let rotated = full || self.file.is_none();
        if rotated {
            if full {
                let _ = std::fs::rename(&self.path, older(&self.path));
            }
            self.reopen();
        }
        if let Some(file) = &mut self.file
            && file.write_all(bytes).is_ok()
        {
            self.length += bytes.len() as u64;
        }
        rotated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_its_tail_spans_both_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut log = Log::open(path.clone(), 100);
        for n in 0..50 {
            log.write(format!("line {n:04}\n").as_bytes());
        }
        let files: Vec<u64> = [&path, &older(&path)].iter().map(|p| std::fs::metadata(p).unwrap().len()).collect();
        assert!(files.iter().all(|length| *length <= 100), "{files:?}");
        assert_eq!(tail(&path, 20), b"line 0048\nline 0049\n");
        assert!(tail(&path, 1000).starts_with(b"line 00"));
    }

    #[test]
    fn a_fifo_in_place_of_the_log_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut log = Log::open(path.clone(), 100);
        log.write(b"lost");
        assert!(tail(&path, 10).is_empty());
    }
}
