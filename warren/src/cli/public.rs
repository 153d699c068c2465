//! The settings of `warren up` that make machines' ports public.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use warren_certs::acme::{Directory, Email, InvalidEmail};
use warren_model::domain::InvalidDomain;
use warren_model::policy::HostName;

use super::values;

/// Where and how the server publishes, settled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublicArgs {
    pub https_listen: Option<SocketAddr>,
    pub http_listen: Option<SocketAddr>,
    /// The operator's own certificate; for names that it covers, it goes before all others.
    pub tls: Option<OwnCertificate>,
    /// Where certificates come from otherwise; the server's own authority when absent.
    pub acme: Option<Acme>,
    /// Every name below it is free to take.
    pub preview_suffix: Option<HostName>,
}

/// A certificate chain and its key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCertificate {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// An authority that speaks ACME (RFC 8555).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// `https://…`
    pub directory: String,
    /// PEM of the certificates that vouch for the directory itself, beside those that the host trusts.
    pub ca: Option<PathBuf>,
    pub email: Option<Email>,
}

/// What was said by flags, or by the environment where no flag was given. An empty text counts as absent.
#[derive(Debug, Clone, Default, Args)]
pub struct PublicFlags {
    /// Where published ports are served over HTTPS, such as 0.0.0.0:443 [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT", env = "WARREN_HTTPS_LISTEN", help_heading = "Publishing")]
    pub https_listen: Option<String>,
    /// Where plain HTTP is answered, such as 0.0.0.0:80: redirects to HTTPS, or the ports themselves where there is no
    /// HTTPS [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT", env = "WARREN_HTTP_LISTEN", help_heading = "Publishing")]
    pub http_listen: Option<String>,
    /// A certificate of your own with its chain, as PEM; used for the names that it covers
    #[arg(long, value_name = "FILE", env = "WARREN_TLS_CERT", help_heading = "Publishing")]
    pub tls_cert: Option<String>,
    /// Its private key, as PEM
    #[arg(long, value_name = "FILE", env = "WARREN_TLS_KEY", help_heading = "Publishing")]
    pub tls_key: Option<String>,
    /// The directory of an ACME authority that certificates come from [default: an authority of the server's own]
    #[arg(long, value_name = "URL", env = "WARREN_ACME_DIRECTORY", help_heading = "Publishing")]
    pub acme_directory: Option<String>,
    /// Certificates, as PEM, by which the directory itself is trusted [default: those that the host trusts]
    #[arg(long, value_name = "FILE", env = "WARREN_ACME_CA", help_heading = "Publishing")]
    pub acme_ca: Option<String>,
    /// Where the ACME authority writes to when something is wrong
    #[arg(long, value_name = "ADDRESS", env = "WARREN_ACME_EMAIL", help_heading = "Publishing")]
    pub acme_email: Option<String>,
    /// A domain of yours below which every account may take names, such as preview.example.com [default: none]
    #[arg(long, value_name = "DOMAIN", env = "WARREN_PREVIEW_SUFFIX", help_heading = "Publishing")]
    pub preview_suffix: Option<String>,
}

/// Why the settings of publishing are not usable, alone or together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPublic {
    #[error("{setting}: {text:?} is not ADDR:PORT; write it like 0.0.0.0:443 or [::]:443")]
    Address { setting: &'static str, text: String },
    #[error("https_listen and http_listen are both {0}: give each a port of its own")]
    SameAddress(SocketAddr),
    #[error("{given} needs {needed}, which was not given")]
    Needs { given: &'static str, needed: &'static str },
    #[error(
        "acme_directory needs http_listen too: the authority asks there whether a name leads here (RFC 8555 section 8.3), \
         on port 80 of the name"
    )]
    NoChallenges,
    #[error("acme_directory: {0}")]
    Directory(String),
    #[error("acme_email: {0}")]
    Email(#[from] InvalidEmail),
    #[error("preview_suffix: {0}")]
    Suffix(String),
    #[error("{setting}: there is no current directory to start {path} from")]
    NoCurrentDirectory { setting: &'static str, path: PathBuf },
}

/// Settles the settings: a flag wins over the file.
pub fn settle(flags: PublicFlags, file: PublicFlags) -> Result<PublicArgs, InvalidPublic> {
    let said = flags.or(file);
    said.check_needs()?;
    let https_listen = said.https_listen.map(|text| address("https_listen", text)).transpose()?;
    let http_listen = said.http_listen.map(|text| address("http_listen", text)).transpose()?;
    if let Some(same) = https_listen.filter(|https| Some(*https) == http_listen && https.port() != 0) {
        return Err(InvalidPublic::SameAddress(same));
    }
    let file = |setting, path: Option<String>| path.map(|path| absolute(setting, &path)).transpose();
    let tls = match (file("tls_cert", said.tls_cert)?, file("tls_key", said.tls_key)?) {
        (Some(chain), Some(key)) => Some(OwnCertificate { chain, key }),
        _ => None,
    };
    let email: Option<Email> = said.acme_email.map(|text| text.parse()).transpose()?;
    let ca = file("acme_ca", said.acme_ca)?;
    let acme = said.acme_directory.map(|directory| match Directory::check(&directory) {
        Ok(()) => Ok(Acme { directory, ca, email }),
        Err(error) => Err(InvalidPublic::Directory(error.to_string())),
    });
    let preview_suffix = said.preview_suffix.map(|text| suffix(&text)).transpose()?;
    Ok(PublicArgs { https_listen, http_listen, tls, acme: acme.transpose()?, preview_suffix })
}

impl PublicFlags {
    /// What is said here, or there where nothing is said here.
    fn or(self, other: Self) -> Self {
        let either = |one: Option<String>, other: Option<String>| one.or(other).filter(|text| !text.is_empty());
        Self {
            https_listen: either(self.https_listen, other.https_listen),
            http_listen: either(self.http_listen, other.http_listen),
            tls_cert: either(self.tls_cert, other.tls_cert),
            tls_key: either(self.tls_key, other.tls_key),
            acme_directory: either(self.acme_directory, other.acme_directory),
            acme_ca: either(self.acme_ca, other.acme_ca),
            acme_email: either(self.acme_email, other.acme_email),
            preview_suffix: either(self.preview_suffix, other.preview_suffix),
        }
    }

    /// No setting is there without those that it is of no use without.
    fn check_needs(&self) -> Result<(), InvalidPublic> {
        let any_listener = self.https_listen.as_ref().or(self.http_listen.as_ref());
        for (given, setting, needed, other) in [
            ("tls_cert", &self.tls_cert, "tls_key", self.tls_key.as_ref()),
            ("tls_key", &self.tls_key, "tls_cert", self.tls_cert.as_ref()),
            ("tls_cert", &self.tls_cert, "https_listen", self.https_listen.as_ref()),
            ("acme_ca", &self.acme_ca, "acme_directory", self.acme_directory.as_ref()),
            ("acme_email", &self.acme_email, "acme_directory", self.acme_directory.as_ref()),
            ("acme_directory", &self.acme_directory, "https_listen", self.https_listen.as_ref()),
            ("preview_suffix", &self.preview_suffix, "https_listen or http_listen", any_listener),
        ] {
            if setting.is_some() && other.is_none() {
                return Err(InvalidPublic::Needs { given, needed });
            }
        }
        match self.acme_directory.is_some() && self.http_listen.is_none() {
            true => Err(InvalidPublic::NoChallenges),
            false => Ok(()),
        }
    }
}

fn address(setting: &'static str, text: String) -> Result<SocketAddr, InvalidPublic> {
    text.parse().map_err(|_| InvalidPublic::Address { setting, text })
}

/// The suffix is its operator's word, so that it may well be one under which others register names.
fn suffix(text: &str) -> Result<HostName, InvalidPublic> {
    let wrong = |error: InvalidDomain| InvalidPublic::Suffix(values::no_host(&error));
    let host: HostName = text.parse().map_err(|error| wrong(InvalidDomain::Host(error)))?;
    if host.as_str().contains('_') {
        return Err(wrong(InvalidDomain::Underscore(host.to_string())));
    }
    Ok(host)
}

/// The server and what it starts have to mean the same place, wherever they run.
fn absolute(setting: &'static str, path: &str) -> Result<PathBuf, InvalidPublic> {
    let path = Path::new(path);
    std::path::absolute(path).map_err(|_| InvalidPublic::NoCurrentDirectory { setting, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn listening() -> PublicFlags {
        PublicFlags { https_listen: some("0.0.0.0:443"), http_listen: some("0.0.0.0:80"), ..PublicFlags::default() }
    }

    fn refused(flags: PublicFlags) -> InvalidPublic {
        settle(flags, PublicFlags::default()).unwrap_err()
    }

    #[test]
    fn nothing_is_published_unless_said() {
        assert_eq!(settle(PublicFlags::default(), PublicFlags::default()), Ok(PublicArgs::default()));
        let empty = PublicFlags { https_listen: some(""), preview_suffix: some(""), ..PublicFlags::default() };
        assert_eq!(settle(empty, PublicFlags::default()), Ok(PublicArgs::default()));
    }

    #[test]
    fn everything_said_is_settled_and_a_flag_wins() {
        let flags = PublicFlags {
            tls_cert: some("/a.pem"),
            tls_key: some("b.pem"),
            acme_directory: some("https://acme.example:14000/dir"),
            acme_email: some("ops@example.com"),
            preview_suffix: some("Preview.Example.Com."),
            ..listening()
        };
        let file =
            PublicFlags { https_listen: some("127.0.0.1:8443"), acme_ca: some("/ca.pem"), ..PublicFlags::default() };
        let settled = settle(flags, file).unwrap();
        assert_eq!(settled.https_listen, Some("0.0.0.0:443".parse().unwrap()));
        let tls = settled.tls.unwrap();
        assert!(tls.chain == Path::new("/a.pem") && tls.key.is_absolute(), "{tls:?}");
        let acme = settled.acme.unwrap();
        assert_eq!(
            (acme.directory.as_str(), acme.ca.as_deref()),
            ("https://acme.example:14000/dir", Some(Path::new("/ca.pem")))
        );
        assert_eq!(settled.preview_suffix.unwrap().as_str(), "preview.example.com");
    }

    #[test]
    fn what_makes_no_sense_together_is_refused() {
        let needs = |given, needed| InvalidPublic::Needs { given, needed };
        let directory = some("https://acme.example/directory");
        for (flags, expected) in [
            (PublicFlags { tls_cert: some("a"), ..listening() }, needs("tls_cert", "tls_key")),
            (PublicFlags { tls_key: some("a"), ..listening() }, needs("tls_key", "tls_cert")),
            (
                PublicFlags { tls_key: some("a"), tls_cert: some("b"), ..PublicFlags::default() },
                needs("tls_cert", "https_listen"),
            ),
            (PublicFlags { acme_ca: some("a"), ..listening() }, needs("acme_ca", "acme_directory")),
            (PublicFlags { acme_email: some("a@b"), ..listening() }, needs("acme_email", "acme_directory")),
            (
                PublicFlags { https_listen: None, acme_directory: directory.clone(), ..listening() },
                needs("acme_directory", "https_listen"),
            ),
            (
                PublicFlags { http_listen: None, acme_directory: directory.clone(), ..listening() },
                InvalidPublic::NoChallenges,
            ),
            (
                PublicFlags { preview_suffix: some("preview.example"), ..PublicFlags::default() },
                needs("preview_suffix", "https_listen or http_listen"),
            ),
            (
                PublicFlags { http_listen: some("0.0.0.0:443"), ..listening() },
                InvalidPublic::SameAddress("0.0.0.0:443".parse().unwrap()),
            ),
        ] {
            assert_eq!(refused(flags), expected);
        }
        let any = PublicFlags { https_listen: some("127.0.0.1:0"), http_listen: some("127.0.0.1:0"), ..listening() };
        assert!(settle(any, PublicFlags::default()).is_ok(), "free ports are never the same");
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_name() {
        for text in ["443", ":443", "example.com:443", "0.0.0.0", "0.0.0.0:65536"] {
            let error = refused(PublicFlags { https_listen: some(text), ..PublicFlags::default() }).to_string();
            assert!(error.starts_with("https_listen: "), "{error}");
        }
        for text in ["acme.example", "http://acme.example/dir", "https://", "/dir"] {
            let error = refused(PublicFlags { acme_directory: some(text), ..listening() });
            assert!(matches!(&error, InvalidPublic::Directory(why) if why.contains(text)), "{text}: {error}");
        }
        for text in ["ops", "@example.com", "ops@", "a b@example.com", "a@b@c", "a@example.com?x"] {
            let acme_directory = some("https://acme.example/dir");
            let error = refused(PublicFlags { acme_directory, acme_email: some(text), ..listening() });
            assert!(matches!(error, InvalidPublic::Email(_)), "{text}: {error}");
        }
        for text in ["previews", "vm.internal", "*.example.com", "203.0.113.7", "a_b.example"] {
            let error = refused(PublicFlags { preview_suffix: some(text), ..listening() });
            assert!(matches!(error, InvalidPublic::Suffix(_)), "{text}: {error}");
        }
    }
}
