//! Certificates and keys on disk, for their owner only.
//!
//! ```text
//! authority.pem, authority.key    the server's own authority
//! internal/HOST                   certificates of its making: chain and key
//! acme-HASH/HOST                  those of the authority at the directory with this hash
//! acme-HASH/account.json          the account there
//! acme-HASH/.orders               what was ordered there
//! ```

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use tempfile::NamedTempFile;
use warren_certs::acme::Credentials;
use warren_certs::authority::Authority;
use warren_certs::{Certificate, KeyPem};
use warren_model::policy::HostName;

use super::orders::Memory;

const INTERNAL: &str = "internal";
const ACME: &str = "acme-";
const ACCOUNT: &str = "account.json";
/// No host name begins with a dot.
const ORDERS: &str = ".orders";
/// How long the certificate of a name that is public no more is kept, for when it is again.
const KEPT_FOR: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Why something is not on disk as it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be written: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is of no use: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
}

/// The folder of one source of certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folder(PathBuf);

#[derive(Debug, Clone)]
pub(super) struct Files {
    directory: PathBuf,
}

impl Files {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// For certificates of the server's own authority.
    pub fn internal(&self) -> Folder {
        Folder(self.directory.join(INTERNAL))
    }

    /// For certificates of the authority at this address.
    pub fn acme(&self, url: &str) -> Folder {
        let hash = blake3::hash(url.as_bytes()).to_hex();
        Folder(self.directory.join(format!("{ACME}{}", &hash[..16])))
    }

    /// The folders of all sources of certificates that are, or were, used.
    pub fn folders(&self) -> Vec<Folder> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let folders = names.filter(|name| name == INTERNAL || name.starts_with(ACME));
        folders.map(|name| Folder(self.directory.join(name))).collect()
    }

    /// `None` where none was made yet.
    pub fn authority(&self) -> Result<Option<Authority>, FilesError> {
        let path = self.root();
        // The key is written first: without a root there was no authority yet.
        let Some(root) = read(&path)? else { return Ok(None) };
        let key = self.directory.join("authority.key");
        let unusable = |path: PathBuf, reason: String| FilesError::Unusable { path, reason };
        let text = read(&key)?.ok_or_else(|| unusable(key, "it is not there".to_owned()))?;
        Authority::load(&root, &KeyPem::new(text)).map(Some).map_err(|error| unusable(path, error.to_string()))
    }

    pub fn keep_authority(&self, authority: &Authority) -> Result<(), FilesError> {
        write(&self.directory.join("authority.key"), authority.key_pem().expose())?;
        write(&self.root(), authority.root_pem())
    }

    fn root(&self) -> PathBuf {
        self.directory.join("authority.pem")
    }
}

impl Folder {
    /// `None` where there is none that can be used.
    pub fn certificate(&self, host: &HostName) -> Option<Certificate> {
        let path = self.of(host);
        let unusable = |reason: String| FilesError::Unusable { path: path.clone(), reason };
        let text = read(&path).transpose()?;
        let certificate =
            text.and_then(|text| Certificate::from_pem(&text, &text).map_err(|error| unusable(error.to_string())));
        match certificate {
            Ok(certificate) if certificate.covers(host) => Some(certificate),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(%error, "the certificate is had anew");
                None
            }
        }
    }

    pub fn keep(&self, host: &HostName, certificate: &Certificate) -> Result<(), FilesError> {
        write(&self.of(host), &format!("{}{}", certificate.chain_pem(), certificate.key_pem().expose()))
    }

    /// Removes certificates and keys of names that are not in use: those that have expired, and those that were not in use
    /// for 7 days. To be called often, for a file's time says when its name was last seen in use.
    pub fn clean(&self, in_use: &BTreeSet<HostName>, now: Timestamp) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.parse::<HostName>().ok());
        for host in names.filter(|host| host.as_str() != ACCOUNT) {
            let outcome = match in_use.contains(&host) {
                true => fs::File::open(self.of(&host)).and_then(|file| file.set_modified(now.into())),
                false if self.is_over(&host, now) => fs::remove_file(self.of(&host)),
                false => Ok(()),
            };
            // It is looked at again the next time.
            if let Err(error) = outcome {
                tracing::warn!(%host, %error, "the file of its certificate cannot be looked after");
            }
        }
    }

    fn is_over(&self, host: &HostName, now: Timestamp) -> bool {
        let used_at = fs::metadata(self.of(host)).and_then(|file| file.modified()).ok();
        let used_at = used_at.and_then(|at| Timestamp::try_from(at).ok());
        used_at.is_some_and(|at| now.duration_since(at) >= KEPT_FOR)
            || self.certificate(host).is_some_and(|certificate| certificate.validity().not_after < now)
    }

    /// What was ordered of the authority; nothing where that cannot be read.
    pub fn orders(&self) -> Memory {
        let path = self.0.join(ORDERS);
        let read = read(&path).map_err(|error| error.to_string());
        let memory = read.and_then(|text| {
            text.map_or(Ok(Memory::default()), |text| serde_json::from_str(&text).map_err(|error| error.to_string()))
        });
        memory.unwrap_or_else(|error| {
            tracing::warn!(file = %path.display(), error, "what was ordered of the authority is not known");
            Memory::default()
        })
    }

    pub fn keep_orders(&self, memory: &Memory) -> Result<(), FilesError> {
        let path = self.0.join(ORDERS);
        let text = serde_json::to_string(memory)
            .map_err(|error| FilesError::Unusable { path: path.clone(), reason: error.to_string() })?;
        write(&path, &text)
    }

    /// `None` where none was made yet, or what is there cannot be read.
    pub fn account(&self) -> Option<Credentials> {
        let text = read(&self.0.join(ACCOUNT)).ok().flatten()?;
        serde_json::from_str(&text).ok()
    }

    pub fn keep_account(&self, credentials: &Credentials) -> Result<(), FilesError> {
        let path = self.0.join(ACCOUNT);
        let text = serde_json::to_string(credentials)
            .map_err(|error| FilesError::Unusable { path: path.clone(), reason: error.to_string() })?;
        write(&path, &text)
    }

    fn of(&self, host: &HostName) -> PathBuf {
        self.0.join(host.as_str())
    }
}

fn read(path: &Path) -> Result<Option<String>, FilesError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FilesError::Read { path: path.to_owned(), source }),
    }
}

/// Replaces the file as a whole; it is on disk when this returns.
fn write(path: &Path, text: &str) -> Result<(), FilesError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // Such a file is made for its owner only.
        let mut file = NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| FilesError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use warren_certs::authority::LEAF_LIFETIME;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_is_kept_is_read_back_and_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path().join("public"));
        assert!(files.authority().unwrap().is_none());
        let authority = Authority::create("test", at(0)).unwrap();
        files.keep_authority(&authority).unwrap();
        assert_eq!(files.authority().unwrap().unwrap().root_pem(), authority.root_pem());

        let host: HostName = "app.preview.example".parse().unwrap();
        let folder = files.internal();
        assert_eq!(folder.certificate(&host), None);
        let certificate = authority.issue(&host, LEAF_LIFETIME, at(0)).unwrap();
        folder.keep(&host, &certificate).unwrap();
        assert_eq!(folder.certificate(&host), Some(certificate));

        let account = Credentials {
            directory: "https://ca.example/dir".to_owned(),
            account: "https://ca.example/1".to_owned(),
            key: KeyPem::new("a key".to_owned()),
        };
        let acme = files.acme(&account.directory);
        acme.keep_account(&account).unwrap();
        assert_eq!(acme.account(), Some(account));
        assert_eq!(files.acme("https://other.example/dir").account(), None);

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let public = directory.path().join("public");
        assert_eq!([mode(&public), mode(&public.join("internal"))], [0o700; 2]);
        for file in ["authority.key", "authority.pem", "internal/app.preview.example"] {
            assert_eq!(mode(&public.join(file)), 0o600, "{file}");
        }
    }

    #[test]
    fn half_an_authority_is_none_or_told_and_never_replaced_in_silence() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path().to_owned());
        files.keep_authority(&Authority::create("test", at(0)).unwrap()).unwrap();
        fs::write(directory.path().join("authority.key"), "spoiled").unwrap();
        assert!(matches!(files.authority(), Err(FilesError::Unusable { .. })));
        fs::remove_file(directory.path().join("authority.key")).unwrap();
        assert!(matches!(files.authority(), Err(FilesError::Unusable { .. })));
        fs::remove_file(directory.path().join("authority.pem")).unwrap();
        assert!(files.authority().unwrap().is_none());
    }

    #[test]
    fn what_expired_goes_with_its_name_and_nothing_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path().to_owned());
        let authority = Authority::create("test", at(0)).unwrap();
        let folder = files.internal();
        let hosts: Vec<HostName> = ["a.example", "b.example", "c.example"].map(|host| host.parse().unwrap()).into();
        for (host, hours) in hosts.iter().zip([1, 1, 1000]) {
            folder.keep(host, &authority.issue(host, SignedDuration::from_hours(hours), at(0)).unwrap()).unwrap();
        }
        folder.clean(&[hosts[0].clone()].into(), at(7200));
        let there: Vec<bool> = hosts.iter().map(|host| folder.certificate(host).is_some()).collect();
        assert_eq!(there, [true, false, true]);
    }

    #[test]
    fn the_key_of_a_name_goes_when_it_was_not_in_use_for_a_week_and_never_while_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path().to_owned());
        let now = Timestamp::now();
        let after = |hours: i64| now + SignedDuration::from_hours(hours);
        let authority = Authority::create("test", now).unwrap();
        let folder = files.acme("https://ca.example/dir");
        let hosts: Vec<HostName> = ["a.example", "b.example"].map(|host| host.parse().unwrap()).into();
        for host in &hosts {
            folder.keep(host, &authority.issue(host, SignedDuration::from_hours(5000), now).unwrap()).unwrap();
        }
        fs::write(folder.of(&"spoiled.example".parse().unwrap()), "a key").unwrap();
        folder.keep_orders(&Memory::default()).unwrap();
        let there = || {
            let names = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<BTreeSet<_>>()
        };
        let all = there();
        assert_eq!(all.len(), 4);
        let both: BTreeSet<HostName> = hosts.iter().cloned().collect();
        folder.clean(&both, after(100));
        // From here on `b` is unmapped.
        let one = BTreeSet::from([hosts[0].clone()]);
        folder.clean(&one, after(7 * 24 + 99));
        assert_eq!(there(), [".orders", "a.example", "b.example"].map(str::to_owned).into(), "a week is not over");
        folder.clean(&one, after(7 * 24 + 101));
        assert_eq!(there(), [".orders", "a.example"].map(str::to_owned).into());
        folder.clean(&one, after(10_000));
        assert_eq!(there(), [".orders", "a.example"].map(str::to_owned).into(), "what is in use stays, expired or not");
        assert_eq!(files.folders(), std::slice::from_ref(&folder));
    }
}
