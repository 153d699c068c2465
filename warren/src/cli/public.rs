//! The settings of `warren up` that make machines' ports public.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use warren_model::policy::HostName;

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
    pub email: Option<String>,
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
    #[error("{given} goes with {missing}: give both, or neither")]
    Half { given: &'static str, missing: &'static str },
    #[error("{given} needs {needed}, which was not given")]
    Needs { given: &'static str, needed: &'static str },
    #[error(
        "acme_directory needs http_listen too: the authority asks there whether a name leads here (RFC 8555 section 8.3), \
         on port 80 of the name"
    )]
    NoChallenges,
    #[error("acme_directory: {0:?} is no https URL; write one such as https://acme-v02.api.letsencrypt.org/directory")]
    Directory(String),
    #[error("acme_email: {0:?} is no address; write one such as ops@example.com")]
    Email(String),
    #[error("preview_suffix: {0}")]
    Suffix(String),
    #[error("{setting}: there is no current directory to start {path} from")]
    NoCurrentDirectory { setting: &'static str, path: PathBuf },
}

/// Settles the settings: a flag wins over the file.
pub fn settle(flags: PublicFlags, file: PublicFlags) -> Result<PublicArgs, InvalidPublic> {
    let either = |flag: Option<String>, file: Option<String>| flag.or(file).filter(|text| !text.is_empty());
    let https_listen = address("https_listen", either(flags.https_listen, file.https_listen))?;
    let http_listen = address("http_listen", either(flags.http_listen, file.http_listen))?;
    if let Some(same) = https_listen.filter(|https| Some(*https) == http_listen && https.port() != 0) {
        return Err(InvalidPublic::SameAddress(same));
    }
    let tls = match (either(flags.tls_cert, file.tls_cert), either(flags.tls_key, file.tls_key)) {
        (None, None) => None,
        (Some(_), None) => return Err(InvalidPublic::Half { given: "tls_cert", missing: "tls_key" }),
        (None, Some(_)) => return Err(InvalidPublic::Half { given: "tls_key", missing: "tls_cert" }),
        (Some(chain), Some(key)) => {
            Some(OwnCertificate { chain: absolute("tls_cert", &chain)?, key: absolute("tls_key", &key)? })
        }
    };
    let acme = acme(
        either(flags.acme_directory, file.acme_directory),
        either(flags.acme_ca, file.acme_ca),
        either(flags.acme_email, file.acme_email),
    )?;
    for (given, is) in [("tls_cert", tls.is_some()), ("acme_directory", acme.is_some())] {
        if is && https_listen.is_none() {
            return Err(InvalidPublic::Needs { given, needed: "https_listen" });
        }
    }
    if acme.is_some() && http_listen.is_none() {
        return Err(InvalidPublic::NoChallenges);
    }
    let preview_suffix = either(flags.preview_suffix, file.preview_suffix).map(|text| suffix(&text)).transpose()?;
    if preview_suffix.is_some() && https_listen.or(http_listen).is_none() {
        return Err(InvalidPublic::Needs { given: "preview_suffix", needed: "https_listen or http_listen" });
    }
    Ok(PublicArgs { https_listen, http_listen, tls, acme, preview_suffix })
}

fn address(setting: &'static str, text: Option<String>) -> Result<Option<SocketAddr>, InvalidPublic> {
    let read = |text: String| text.parse().map_err(|_| InvalidPublic::Address { setting, text });
    text.map(read).transpose()
}

fn acme(directory: Option<String>, ca: Option<String>, email: Option<String>) -> Result<Option<Acme>, InvalidPublic> {
    let Some(directory) = directory else {
        return match (ca, email) {
            (None, None) => Ok(None),
            (Some(_), _) => Err(InvalidPublic::Needs { given: "acme_ca", needed: "acme_directory" }),
            (None, Some(_)) => Err(InvalidPublic::Needs { given: "acme_email", needed: "acme_directory" }),
        };
    };
    let uri: Option<http::Uri> = directory.parse().ok();
    if uri.is_none_or(|uri| uri.scheme_str() != Some("https") || uri.host().is_none_or(str::is_empty)) {
        return Err(InvalidPublic::Directory(directory));
    }
    let ca = ca.map(|path| absolute("acme_ca", &path)).transpose()?;
    let is_address = |email: &str| {
        let printable = email.bytes().all(|byte| byte.is_ascii_graphic() && !b",?&<>\"".contains(&byte));
        let halves = email.split_once('@').filter(|(user, host)| !user.is_empty() && !host.is_empty());
        printable && halves.is_some_and(|(_, host)| !host.contains('@'))
    };
    match email {
        Some(email) if !is_address(&email) => Err(InvalidPublic::Email(email)),
        email => Ok(Some(Acme { directory, ca, email })),
    }
}

/// The suffix is its operator's word, so that it may well be one under which others register names.
fn suffix(text: &str) -> Result<HostName, InvalidPublic> {
    let host: HostName =
        text.parse().map_err(|error: warren_model::policy::InvalidHost| InvalidPublic::Suffix(error.to_string()))?;
    if host.as_str().contains('_') {
        return Err(InvalidPublic::Suffix(format!("{host} has a '_', which names of web sites do not have")));
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
        let half = |given, missing| InvalidPublic::Half { given, missing };
        let needs = |given, needed| InvalidPublic::Needs { given, needed };
        let directory = some("https://acme.example/directory");
        for (flags, expected) in [
            (PublicFlags { tls_cert: some("a"), ..listening() }, half("tls_cert", "tls_key")),
            (PublicFlags { tls_key: some("a"), ..listening() }, half("tls_key", "tls_cert")),
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
            assert_eq!(error, InvalidPublic::Directory(text.into()));
        }
        for text in ["ops", "@example.com", "ops@", "a b@example.com", "a@b@c", "a@example.com?x"] {
            let acme_directory = some("https://acme.example/dir");
            let error = refused(PublicFlags { acme_directory, acme_email: some(text), ..listening() });
            assert_eq!(error, InvalidPublic::Email(text.into()));
        }
        for text in ["previews", "vm.internal", "*.example.com", "203.0.113.7", "a_b.example"] {
            let error = refused(PublicFlags { preview_suffix: some(text), ..listening() });
            assert!(matches!(error, InvalidPublic::Suffix(_)), "{text}: {error}");
        }
    }
}
