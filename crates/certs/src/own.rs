//! A certificate chain and a private key that the operator has as files.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use warren_model::policy::HostName;
use zeroize::Zeroizing;

use crate::{Certificate, InvalidCertificate, InvalidChain, InvalidKey};

/// Chains are a few kilobytes.
const MAX_FILE: u64 = 1 << 20;

/// What the files hold, and what an operator should know about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    pub certificate: Certificate,
    pub warnings: Vec<Warning>,
}

impl Own {
    pub fn covers(&self, name: &HostName) -> bool {
        self.certificate.covers(name)
    }
}

/// What is odd about files that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    Expired {
        path: PathBuf,
        at: Timestamp,
    },
    NotYetValid {
        path: PathBuf,
        from: Timestamp,
    },
    /// Positions count from 1.
    OutOfOrder {
        path: PathBuf,
        position: usize,
    },
    KeyReadableByOthers {
        path: PathBuf,
        mode: u32,
    },
    /// A name that no preview can have.
    NameOfNoUse {
        path: PathBuf,
        name: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { path, at } => {
                write!(f, "the certificate in {} expired at {at}: clients refuse it; renew it", path.display())
            }
            Self::NotYetValid { path, from } => write!(
                f,
                "the certificate in {} is not valid before {from}: check the clock of this host, or wait",
                path.display()
            ),
            Self::OutOfOrder { path, position } => write!(
                f,
                "certificate number {position} in {} was not issued by the next one: put them in order, \
                 the host's first",
                path.display()
            ),
            Self::KeyReadableByOthers { path, mode } => write!(
                f,
                "the private key {} has mode {mode:04o}: others than its owner can read it; chmod 600 it",
                path.display()
            ),
            Self::NameOfNoUse { path, name } => {
                write!(f, "the name {name:?} in {} is of no use for a preview", path.display())
            }
        }
    }
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    #[error("cannot read {}: {source}; check the path and that the server may read it", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is larger than {MAX_FILE} bytes, which no certificate or key is; check the path", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is not text; certificates and keys are read as PEM: convert it with openssl", path.display())]
    NotText { path: PathBuf },
    #[error("the certificate file {} cannot be used: {source}", path.display())]
    Chain { path: PathBuf, source: InvalidChain },
    #[error("the key file {} cannot be used: {source}", path.display())]
    Key { path: PathBuf, source: InvalidKey },
    #[error(
        "the key in {} does not belong to the first certificate in {}; give the key that the certificate was requested \
         with, and put the host's certificate first",
        key.display(), certificate.display()
    )]
    Mismatch { certificate: PathBuf, key: PathBuf },
}

/// Reads both files, which may be the same one. Blocks while it reads.
pub fn read(certificate: &Path, key: &Path, now: Timestamp) -> Result<Own, OwnError> {
    let (chain_text, _) = read_file(certificate)?;
    let (key_text, mode) = read_file(key)?;
    let read = Certificate::from_pem(&chain_text, &key_text).map_err(|error| match error {
        InvalidCertificate::Chain(source) => OwnError::Chain { path: certificate.to_owned(), source },
        InvalidCertificate::Key(source) => OwnError::Key { path: key.to_owned(), source },
        InvalidCertificate::Mismatch => OwnError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() },
    })?;
    let path = || certificate.to_owned();
    let validity = read.validity();
    let mut warnings = Vec::new();
    if validity.not_after < now {
        warnings.push(Warning::Expired { path: path(), at: validity.not_after });
    }
    if validity.not_before > now {
        warnings.push(Warning::NotYetValid { path: path(), from: validity.not_before });
    }
    warnings.extend(read.out_of_order().map(|position| Warning::OutOfOrder { path: path(), position }));
    if mode & 0o007 != 0 {
        warnings.push(Warning::KeyReadableByOthers { path: key.to_owned(), mode });
    }
    warnings.extend(read.other_names().iter().map(|name| Warning::NameOfNoUse { path: path(), name: name.clone() }));
    Ok(Own { certificate: read, warnings })
}

/// The text of a file and its permission bits.
fn read_file(path: &Path) -> Result<(Zeroizing<String>, u32), OwnError> {
    let failed = |source| OwnError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(OwnError::TooLarge { path: path.to_owned() });
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| OwnError::NotText { path: path.to_owned() })?;
    Ok((Zeroizing::new(text.to_owned()), metadata.permissions().mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;

    struct Files {
        folder: TempDir,
        now: Timestamp,
    }

    impl Files {
        fn new(names: &[&str]) -> Self {
            let files = Self { folder: tempfile::tempdir().unwrap(), now: Timestamp::now() };
            let key = KeyPair::generate().unwrap();
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            let at = |seconds: i64| time::OffsetDateTime::from_unix_timestamp(files.now.as_second() + seconds).unwrap();
            (params.not_before, params.not_after) = (at(-3600), at(3600));
            files.write("chain.pem", params.self_signed(&key).unwrap().pem().as_bytes(), 0o644);
            files.write("key.pem", key.serialize_pem().as_bytes(), 0o600);
            files
        }

        fn write(&self, name: &str, content: &[u8], mode: u32) {
            let path = self.folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        }

        fn read_at(&self, now: Timestamp) -> Result<Own, OwnError> {
            read(&self.folder.path().join("chain.pem"), &self.folder.path().join("key.pem"), now)
        }

        fn error(&self) -> OwnError {
            self.read_at(self.now).unwrap_err()
        }
    }

    #[test]
    fn good_files_are_read_without_a_warning() {
        let files = Files::new(&["shop.example.com", "*.preview.example.com"]);
        let own = files.read_at(files.now).unwrap();
        assert_eq!(own.warnings, []);
        assert!(own.covers(&"shop.example.com".parse().unwrap()));
        assert!(own.covers(&"a.preview.example.com".parse().unwrap()));
        assert!(!own.covers(&"a.b.preview.example.com".parse().unwrap()));
    }

    #[test]
    fn an_expired_or_early_certificate_is_a_warning() {
        let files = Files::new(&["shop.example.com"]);
        let late = files.read_at(files.now + SignedDuration::from_hours(2)).unwrap();
        assert!(matches!(late.warnings[..], [Warning::Expired { .. }]), "{:?}", late.warnings);
        let early = files.read_at(files.now - SignedDuration::from_hours(2)).unwrap();
        assert!(matches!(early.warnings[..], [Warning::NotYetValid { .. }]), "{:?}", early.warnings);
    }

    #[test]
    fn a_key_that_others_can_read_and_a_name_of_no_use_are_warnings() {
        let files = Files::new(&["shop.example.com", "localhost"]);
        std::fs::set_permissions(files.folder.path().join("key.pem"), PermissionsExt::from_mode(0o644)).unwrap();
        let own = files.read_at(files.now).unwrap();
        let texts: Vec<_> = own.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].contains("key.pem has mode 0644"), "{texts:?}");
        assert!(texts[1].contains("localhost"), "{texts:?}");
    }

    #[test]
    fn each_error_names_its_file() {
        let files = Files::new(&["shop.example.com"]);
        files.write("key.pem", b"nothing", 0o600);
        let error = files.error();
        assert!(matches!(&error, OwnError::Key { source: InvalidKey::Missing, .. }), "{error}");
        assert!(error.to_string().contains("key.pem"), "{error}");

        files.write("key.pem", KeyPair::generate().unwrap().serialize_pem().as_bytes(), 0o600);
        let error = files.error();
        assert!(matches!(error, OwnError::Mismatch { .. }), "{error}");
        assert!(error.to_string().contains("key.pem") && error.to_string().contains("chain.pem"), "{error}");

        files.write("chain.pem", b"nothing", 0o600);
        let error = files.error();
        assert!(matches!(&error, OwnError::Chain { source: InvalidChain::Missing, .. }), "{error}");
        assert!(error.to_string().contains("chain.pem"), "{error}");

        files.write("chain.pem", &[0xff, 0xfe], 0o600);
        assert!(matches!(files.error(), OwnError::NotText { .. }));
        files.write("chain.pem", &vec![b'a'; (1 << 20) + 1], 0o600);
        assert!(matches!(files.error(), OwnError::TooLarge { .. }));
        std::fs::remove_file(files.folder.path().join("chain.pem")).unwrap();
        assert!(matches!(files.error(), OwnError::Read { .. }));
        std::fs::create_dir(files.folder.path().join("chain.pem")).unwrap();
        assert!(matches!(files.error(), OwnError::Read { .. }));
    }
}
