//! Which server is meant, and with which key.

use std::fmt;
use std::path::{Path, PathBuf};

use http::Uri;

use super::error::{ClientError, deepest};
use super::route::Route;

/// Where a server keeps its data unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/warren";
/// The port of a URL that names none.
pub const DEFAULT_PORT: u16 = 7070;

/// A server and the right to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    pub target: Target,
    pub key: Option<String>,
    /// The account to act in, by id or name; only the root key may choose.
    pub account: Option<String>,
}

/// What the caller said, by flags and environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub url: Option<String>,
    pub key: Option<String>,
    pub account: Option<String>,
    pub data_dir: Option<PathBuf>,
}

impl Wanted {
    /// The URL, else the socket in the data directory; the key, else `root.key` beside that socket when readable.
    pub fn find(&self) -> Result<Access, ClientError> {
        let target = match &self.url {
            Some(url) => Target::parse(url)?,
            None => Target::Unix(self.data_dir().join("api.sock")),
        };
        let key = match (&self.key, &target) {
            (Some(key), _) => Some(key.trim().to_owned()),
            (None, Target::Unix(socket)) => read_root_key(socket),
            // A key from this disk is never sent to a server that was only named.
            (None, Target::Tcp { .. }) => None,
        };
        Ok(Access { target, key, account: self.account.clone() })
    }

    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR))
    }
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Unix(PathBuf),
    Tcp {
        secure: bool,
        /// A name or an address, without brackets.
        host: String,
        port: u16,
        /// What comes before `/v1`, for a server behind a proxy: empty, or `/prefix`.
        prefix: String,
    },
}

impl Target {
    /// Reads `http://host[:port][/prefix]`, `https://…` or `unix:///path`.
    pub fn parse(url: &str) -> Result<Self, ClientError> {
        let refused = |why: &str| {
            ClientError::Usage(format!(
                "{url:?} is not a server's URL: {why}; write http://127.0.0.1:7070, https://host or unix:///path/api.sock"
            ))
        };
        if let Some(path) = url.strip_prefix("unix://") {
            if !path.starts_with('/') {
                return Err(refused("the socket's path has to be absolute"));
            }
            if !cfg!(unix) {
                return Err(refused("this system has no Unix sockets that Warren can use"));
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let uri: Uri = url.parse().map_err(|_| refused("it cannot be read"))?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(refused("it has to start with http://, https:// or unix://")),
        };
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(refused("a key belongs in --key or WARREN_API_KEY"));
        }
        if uri.query().is_some() {
            return Err(refused("it has a query"));
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(refused("it names no host"));
        }
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { DEFAULT_PORT });
        let prefix = uri.path().trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Ok(Self::Tcp { secure, host, port, prefix })
    }

    /// The URI that a request for `route` carries.
    pub fn uri(&self, route: &Route) -> Uri {
        let text = match self {
            Self::Unix(_) => format!("http://localhost{route}"),
            Self::Tcp { secure, prefix, .. } => {
                let scheme = if *secure { "https" } else { "http" };
                format!("{scheme}://{}{prefix}{route}", self.authority())
            }
        };
        // Every part has been read as a URI before or is escaped.
        text.parse().unwrap_or_else(|_| Uri::from_static("http://localhost/"))
    }

    /// What to try when nobody answers.
    pub fn hint(&self, error: &(dyn std::error::Error + 'static)) -> String {
        match self {
            Self::Unix(socket) if deepest(error).contains("ermission denied") => format!(
                "The socket {} is not yours to use: run this as root, or give --url and --key",
                socket.display()
            ),
            Self::Unix(_) => {
                "Is `warren up` running? Start it, or name another server with --url or WARREN_URL, or its data directory \
                 with WARREN_DATA_DIR"
                    .to_owned()
            }
            Self::Tcp { .. } => "Is `warren up` running there? Check --url or WARREN_URL".to_owned(),
        }
    }

    fn authority(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { secure, prefix, .. } => {
                write!(f, "{}://{}{prefix}", if *secure { "https" } else { "http" }, self.authority())
            }
        }
    }
}

fn read_root_key(socket: &Path) -> Option<String> {
    let text = std::fs::read_to_string(socket.with_file_name("root.key")).ok()?;
    let key = text.trim();
    (!key.is_empty()).then(|| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(url: &str) -> (bool, String, u16, String) {
        match Target::parse(url).unwrap() {
            Target::Tcp { secure, host, port, prefix } => (secure, host, port, prefix),
            Target::Unix(path) => panic!("{path:?}"),
        }
    }

    #[test]
    fn urls_are_read() {
        assert_eq!(tcp("http://127.0.0.1"), (false, "127.0.0.1".into(), 7070, String::new()));
        assert_eq!(tcp("https://warren.example/a/v1/"), (true, "warren.example".into(), 443, "/a".into()));
        assert_eq!(tcp("http://[::1]:99/"), (false, "::1".into(), 99, String::new()));
        for bad in ["127.0.0.1:7070", "ftp://x", "unix://relative", "http://", "http://key@host", "http://h/?a=b", ""] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_request_goes_to_the_whole_address() {
        let target = Target::parse("http://[::1]:99/pre").unwrap();
        assert_eq!(target.uri(&Route::new(&["whoami"])), "http://[::1]:99/pre/v1/whoami");
        assert_eq!(target.to_string(), "http://[::1]:99/pre");
    }

    #[cfg(unix)]
    #[test]
    fn without_a_url_the_socket_of_the_data_directory_and_its_key_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = Wanted { data_dir: Some(dir.path().to_owned()), ..Wanted::default() };
        assert_eq!(wanted.find().unwrap().key, None);
        std::fs::write(dir.path().join("root.key"), "wrn_secret\n").unwrap();
        let access = wanted.find().unwrap();
        assert_eq!(access.target, Target::Unix(dir.path().join("api.sock")));
        assert_eq!(access.key.as_deref(), Some("wrn_secret"));
        let other = Wanted { key: Some("mine".into()), ..wanted.clone() };
        assert_eq!(other.find().unwrap().key.as_deref(), Some("mine"));
        let named = Wanted { url: Some("http://127.0.0.1:1".into()), ..wanted };
        assert_eq!(named.find().unwrap().key, None, "a key from the disk goes to no server that was only named");
    }
}
