//! What the audit keeps on the host: its key, and the reports of each account.
//!
//! ```text
//! DIR/key                      the private key, PKCS#8, 0600
//! DIR/{account}/report.json …  the newest report; the ones before it below earlier/
//! ```

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use warren_audit::Report;
use warren_audit::bundle;
use warren_audit::report::Link;
use warren_audit::sign::{KeyError, SigningKey, sha256};
use warren_model::AccountId;
use warren_model::audit::SignedReport;

/// How many reports of an account are kept here.
const KEPT: u64 = 50;

/// Why the audit's own files are of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeptError {
    #[error("{path}: {source}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}: {source}")]
    Key {
        path: PathBuf,
        #[source]
        source: KeyError,
    },
    #[error("{path} is no report any more, so that no other can be chained to it: move its directory away")]
    Report { path: PathBuf },
}

/// The directory.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    directory: PathBuf,
}

/// The report before.
pub(crate) struct Before {
    pub link: Link,
    /// `None` where it is of a format that this Warren does not know.
    pub report: Option<Report>,
}

impl Kept {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The key; made when there is none. Blocking.
    pub fn key(&self) -> Result<SigningKey, KeptError> {
        let path = self.directory.join("key");
        let at = |source| KeptError::File { path: path.clone(), source };
        let bad = |source| KeptError::Key { path: path.clone(), source };
        match fs::read(&path) {
            Ok(bytes) => return SigningKey::read(&bytes).map_err(bad),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
            Err(_) => {}
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(at)?;
        let (key, bytes) = SigningKey::generate().map_err(bad)?;
        let temporary = self.directory.join("key.new");
        let write = || {
            let mut file =
                fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            fs::File::open(&self.directory)?.sync_all()
        };
        write().map_err(at)?;
        Ok(key)
    }

    /// The account's newest report. Blocking.
    pub fn newest(&self, account: AccountId) -> Result<Option<Before>, KeptError> {
        #[derive(Deserialize)]
        struct Number {
            number: u64,
        }
        let directory = self.of(account);
        let newest = bundle::newest(&directory).map_err(|source| KeptError::File { path: directory, source })?;
        let Some(path) = newest else { return Ok(None) };
        let bytes = fs::read(&path).map_err(|source| KeptError::File { path: path.clone(), source })?;
        let report: Option<Report> = serde_json::from_slice(&bytes).ok();
        let number = serde_json::from_slice::<Number>(&bytes).map_err(|_| KeptError::Report { path })?.number;
        Ok(Some(Before { link: Link { number, sha256: sha256(&bytes) }, report }))
    }

    /// Keeps a report, and forgets the oldest. Blocking.
    pub fn keep(&self, account: AccountId, signed: &SignedReport) -> Result<(), KeptError> {
        let directory = self.of(account);
        let at = |source| KeptError::File { path: directory.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(at)?;
        bundle::write(&directory, signed).map_err(at)?;
        if let Some(old) = signed.number.checked_sub(KEPT) {
            forget(&bundle::earlier(&directory, old)).map_err(at)?;
        }
        Ok(())
    }

    fn of(&self, account: AccountId) -> PathBuf {
        self.directory.join(account.bare())
    }
}

fn forget(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
