//! The denials on disk: one JSON object a line, in two files that take turns.
//!
//! A record that was counted on is written again; the last line with its id is the one that holds.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use warren_model::MemberId;
use warren_model::denial::Denial;

/// At this size, in bytes, the file becomes the older one.
const TURN: u64 = 16 << 20;

/// How many records of one member are logged in a second.
const LOGGED: u32 = 20;

/// Keeps one member from filling the log, and so from hiding what was refused to others.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    second: Option<Instant>,
    logged: HashMap<Option<MemberId>, u32>,
}

impl Shares {
    /// Whether this record still has a place in this second.
    pub fn admit(&mut self, denial: &Denial, now: Instant) -> bool {
        if self.second.is_none_or(|second| now.duration_since(second) >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.logged.clear();
        }
        let logged = self.logged.entry(denial.member).or_default();
        *logged += 1;
        *logged <= LOGGED
    }
}

/// Appends the records. What is written is not synced: a denial that a power loss takes was seen all the same.
pub(crate) fn append(path: &Path, denials: &[Denial]) -> io::Result<()> {
    let mut text = Vec::new();
    for denial in denials {
        serde_json::to_writer(&mut text, denial)?;
        text.push(b'\n');
    }
    let mut file = open(path)?;
    if file.metadata()?.len() > TURN {
        std::fs::rename(path, older(path))?;
        file = open(path)?;
    }
    file.write_all(&text)
}

/// What both files hold, oldest first. A line that a crash cut short is passed over.
pub(crate) fn read(path: &Path) -> io::Result<Vec<Denial>> {
    let mut denials = Vec::new();
    for path in [older(path), path.to_owned()] {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).split(b'\n') {
            denials.extend(serde_json::from_slice::<Denial>(&line?).ok());
        }
    }
    Ok(denials)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ulid::Ulid;
    use warren_model::denial::Layer;
    use warren_model::policy::Protocol;
    use warren_model::{AccountId, DenialId, MachineId, NetworkId};

    fn denial() -> Denial {
        Denial {
            id: DenialId::from_ulid(Ulid::from_parts(1, 1)),
            time: jiff::Timestamp::UNIX_EPOCH,
            account: AccountId::from_ulid(Ulid::from_parts(1, 1)),
            network: NetworkId::from_ulid(Ulid::from_parts(1, 1)),
            member: None,
            to: None,
            name: Some("example.com".into()),
            port: None,
            protocol: Protocol::Udp,
            layer: Layer::Dns,
            rule: None,
            reason: "no rule allows it".into(),
            suggested_rule: None,
            count: 2,
        }
    }

    #[test]
    fn a_member_that_is_refused_often_leaves_room_in_the_log() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        let logged = |shares: &mut Shares, machine: u64, at| {
            let member = Some(MachineId::from_ulid(Ulid::from_parts(machine, 1)).into());
            let denial = Denial { member, ..denial() };
            (0..100).filter(|_| shares.admit(&denial, at)).count()
        };
        assert_eq!([logged(&mut shares, 1, now), logged(&mut shares, 2, now)], [20, 20]);
        assert_eq!(logged(&mut shares, 1, now), 0);
        assert_eq!(logged(&mut shares, 1, now + Duration::from_secs(1)), 20);
    }

    #[test]
    fn records_read_back_as_written_and_a_torn_line_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("denials.log");
        let denial = denial();
        assert_eq!(read(&path).unwrap(), []);
        append(&path, std::slice::from_ref(&denial)).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"id\":\"dny_").unwrap();
        assert_eq!(read(&path).unwrap(), [denial]);
    }
}
