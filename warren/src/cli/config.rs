//! The settings of `warren up`: flags win over the environment, that over the file, that over the defaults.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use serde::Deserialize;
use warren_model::client_config::{Endpoint, InvalidEndpoint};

use super::public::{self, InvalidPublic, PublicArgs, PublicFlags};
use crate::client::target::DEFAULT_DATA_DIR;

/// Where the API listens unless told otherwise.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7070);
/// Where operators' WireGuard is answered unless told otherwise.
pub const DEFAULT_VPN_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 51820);
/// The OCI runtime unless told otherwise: a program found on the search path, or an absolute path.
pub const DEFAULT_RUNTIME: &str = "runc";
/// What is logged unless told otherwise.
pub const DEFAULT_LOG: &str = "info";
/// How many machines, and how many networks, an account may have unless told otherwise.
pub const DEFAULT_PER_ACCOUNT: usize = 1000;

/// Everything that `warren up` needs to know, settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpArgs {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    /// Holds images and machine disks; several servers may share it.
    pub pool_dir: PathBuf,
    /// Consent to switching IP forwarding on in the namespace that Warren runs in.
    pub forwarding: bool,
    pub runtime: String,
    /// Where names outside are resolved; those of the host's own when empty.
    pub resolvers: Vec<SocketAddr>,
    /// Private ranges that policies may open.
    pub private_ranges: Vec<IpNet>,
    /// Origins whose pages may call the API from a browser: `https://app.example`, or `*` for all.
    pub cors_origins: Vec<String>,
    /// Where operators' WireGuard is answered.
    pub vpn_listen: SocketAddr,
    /// Where operators reach it; found out when absent.
    pub vpn_endpoint: Option<Endpoint>,
    /// Where and how machines' ports are made public.
    pub public: PublicArgs,
    /// End the machines when the server is told to end.
    pub stop_machines: bool,
    /// How many machines an account may have.
    pub machines_per_account: usize,
    /// How many networks an account may have.
    pub networks_per_account: usize,
    pub log_format: LogFormat,
    /// A level, or directives of `tracing_subscriber::EnvFilter`.
    pub log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// What was said by flags, or by the environment where no flag was given.
#[derive(Debug, Clone, Default, Args)]
pub struct UpFlags {
    /// Where the server keeps its data, its key and its socket [default: /var/lib/warren]
    #[arg(long, value_name = "DIR", env = "WARREN_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the API listens; port 0 takes a free one [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDR:PORT", env = "WARREN_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Where images and machine disks are kept; servers on one host may share it [default: DIR/pool]
    #[arg(long, value_name = "DIR", env = "WARREN_POOL_DIR")]
    pub pool_dir: Option<PathBuf>,
    /// Consent to switching IP forwarding on, which machines with `open` egress need
    #[arg(long, value_name = "BOOL", env = "WARREN_FORWARDING", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub forwarding: Option<bool>,
    /// The OCI runtime: runc, crun, youki, or a path [default: runc]
    #[arg(long, value_name = "PROGRAM", env = "WARREN_RUNTIME")]
    pub runtime: Option<String>,
    /// Where names outside are resolved: IP[:PORT], again for more [default: the host's own resolvers]
    #[arg(long = "resolver", value_name = "IP[:PORT]", env = "WARREN_RESOLVERS", value_delimiter = ',',
          value_parser = super::values::resolver)]
    pub resolvers: Vec<SocketAddr>,
    /// A private range that policies may let machines reach, again for more [default: none]
    #[arg(long = "private-range", value_name = "CIDR", env = "WARREN_PRIVATE_RANGES", value_delimiter = ',',
          value_parser = range)]
    pub private_ranges: Vec<IpNet>,
    /// An origin whose pages may call the API from a browser, such as https://app.example, again for more; or * for
    /// every one [default: none]
    #[arg(long = "cors-origin", value_name = "ORIGIN", env = "WARREN_CORS_ORIGINS", value_delimiter = ',',
          value_parser = origin)]
    pub cors_origins: Vec<String>,
    /// Where the WireGuard of operators is answered, over UDP [default: 0.0.0.0:51820]
    #[arg(long, value_name = "ADDR:PORT", env = "WARREN_VPN_LISTEN", value_parser = vpn_listen)]
    pub vpn_listen: Option<SocketAddr>,
    /// Where operators reach that, such as vpn.example.com:51820 [default: the host that a client asks]
    #[arg(long, value_name = "HOST:PORT", env = "WARREN_VPN_ENDPOINT")]
    pub vpn_endpoint: Option<Endpoint>,
    #[command(flatten)]
    pub public: PublicFlags,
    /// A file with settings; every setting is explained in docs/warren.toml
    #[arg(long, value_name = "FILE", env = "WARREN_CONFIG")]
    pub config: Option<PathBuf>,
    /// End the machines when the server ends, instead of leaving them running
    #[arg(long, value_name = "BOOL", env = "WARREN_STOP_MACHINES", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub stop_machines: Option<bool>,
    /// How many machines an account may have [default: 1000]
    #[arg(long, value_name = "N", env = "WARREN_MACHINES_PER_ACCOUNT")]
    pub machines_per_account: Option<usize>,
    /// How many networks an account may have, its own `default` among them [default: 1000]
    #[arg(long, value_name = "N", env = "WARREN_NETWORKS_PER_ACCOUNT")]
    pub networks_per_account: Option<usize>,
    /// How log lines look on stderr [default: text]
    #[arg(long, value_name = "FORMAT", env = "WARREN_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace, or directives such as warren_api=debug,info [default: info]
    #[arg(long, value_name = "LEVEL", env = "WARREN_LOG")]
    pub log: Option<String>,
}

/// The settings file. Its keys are the flags' names with underscores.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    pool_dir: Option<PathBuf>,
    forwarding: Option<bool>,
    runtime: Option<String>,
    resolvers: Option<Vec<String>>,
    private_ranges: Option<Vec<String>>,
    cors_origins: Option<Vec<String>>,
    vpn_listen: Option<String>,
    vpn_endpoint: Option<String>,
    https_listen: Option<String>,
    http_listen: Option<String>,
    tls_cert: Option<String>,
    tls_key: Option<String>,
    acme_directory: Option<String>,
    acme_ca: Option<String>,
    acme_email: Option<String>,
    preview_suffix: Option<String>,
    stop_machines: Option<bool>,
    machines_per_account: Option<usize>,
    networks_per_account: Option<usize>,
    log_format: Option<LogFormat>,
    log: Option<String>,
}

/// Why the settings are not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the settings in {path}: {source}")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the settings in {path} are not valid: {source}")]
    Malformed {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("resolvers: {0}")]
    Resolver(String),
    #[error("private_ranges: {0}")]
    PrivateRange(String),
    #[error("cors_origins: {0}")]
    CorsOrigin(String),
    #[error("vpn_listen: {0}")]
    VpnListen(String),
    #[error("vpn_endpoint: {0}")]
    VpnEndpoint(InvalidEndpoint),
    #[error(transparent)]
    Public(#[from] InvalidPublic),
    #[error("{setting} must not be empty; leave it out for {default}")]
    Empty { setting: &'static str, default: &'static str },
    #[error("there is no current directory to start {path} from: {source}")]
    NoCurrentDirectory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Reads the file if one is named, and settles every setting.
pub fn settle(flags: UpFlags) -> Result<UpArgs, ConfigError> {
    let file = match &flags.config {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
            parse(path, &text)?
        }
        None => File::default(),
    };
    merge(flags, file)
}

fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    toml::from_str(text).map_err(|source| ConfigError::Malformed { path: path.to_owned(), source: Box::new(source) })
}

fn merge(flags: UpFlags, file: File) -> Result<UpArgs, ConfigError> {
    let data_dir = flags.data_dir.or(file.data_dir).unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR));
    let data_dir = absolute("data_dir", DEFAULT_DATA_DIR, data_dir)?;
    let pool_dir = flags.pool_dir.or(file.pool_dir).unwrap_or_else(|| data_dir.join("pool"));
    let runtime = flags.runtime.or(file.runtime).unwrap_or_else(|| DEFAULT_RUNTIME.to_owned());
    if runtime.is_empty() {
        return Err(ConfigError::Empty { setting: "runtime", default: DEFAULT_RUNTIME });
    }
    let resolvers = either(flags.resolvers, file.resolvers, super::values::resolver).map_err(ConfigError::Resolver)?;
    let private_ranges = either(flags.private_ranges, file.private_ranges, range).map_err(ConfigError::PrivateRange)?;
    let cors_origins = either(flags.cors_origins, file.cors_origins, origin).map_err(ConfigError::CorsOrigin)?;
    let vpn_listen = match (flags.vpn_listen, file.vpn_listen) {
        (Some(listen), _) => listen,
        (None, Some(text)) => vpn_listen(&text).map_err(ConfigError::VpnListen)?,
        (None, None) => DEFAULT_VPN_LISTEN,
    };
    let vpn_endpoint = match (flags.vpn_endpoint, file.vpn_endpoint.filter(|text| !text.is_empty())) {
        (None, Some(text)) => Some(text.parse().map_err(ConfigError::VpnEndpoint)?),
        (flag, _) => flag,
    };
    let of_file = PublicFlags {
        https_listen: file.https_listen,
        http_listen: file.http_listen,
        tls_cert: file.tls_cert,
        tls_key: file.tls_key,
        acme_directory: file.acme_directory,
        acme_ca: file.acme_ca,
        acme_email: file.acme_email,
        preview_suffix: file.preview_suffix,
    };
    let public = public::settle(flags.public, of_file)?;
    Ok(UpArgs {
        vpn_listen,
        vpn_endpoint,
        pool_dir: absolute("pool_dir", "DIR/pool", pool_dir)?,
        data_dir,
        listen: flags.listen.or(file.listen).unwrap_or(DEFAULT_LISTEN),
        forwarding: flags.forwarding.or(file.forwarding).unwrap_or(false),
        runtime,
        resolvers,
        private_ranges,
        cors_origins,
        public,
        stop_machines: flags.stop_machines.or(file.stop_machines).unwrap_or(false),
        machines_per_account: flags.machines_per_account.or(file.machines_per_account).unwrap_or(DEFAULT_PER_ACCOUNT),
        networks_per_account: flags.networks_per_account.or(file.networks_per_account).unwrap_or(DEFAULT_PER_ACCOUNT),
        log_format: flags.log_format.or(file.log_format).unwrap_or_default(),
        log: flags.log.or(file.log).unwrap_or_else(|| DEFAULT_LOG.to_owned()),
    })
}

/// What the flags list, or what the file lists where they list nothing.
fn either<T>(
    flags: Vec<T>,
    file: Option<Vec<String>>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    match flags.is_empty() {
        true => file.unwrap_or_default().iter().map(|text| read(text)).collect(),
        false => Ok(flags),
    }
}

/// The server and what it starts have to mean the same place, wherever they run.
fn absolute(setting: &'static str, default: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.as_os_str().is_empty() {
        return Err(ConfigError::Empty { setting, default });
    }
    std::path::absolute(&path).map_err(|source| ConfigError::NoCurrentDirectory { path, source })
}

/// A range with no bits set beyond its prefix: `192.168.0.0/16`.
fn range(text: &str) -> Result<IpNet, String> {
    let range: IpNet = text.parse().map_err(|_| format!("{text:?} is no range; write one such as 192.168.0.0/16"))?;
    if range == range.trunc() {
        Ok(range)
    } else {
        Err(format!("{range} is an address; its range is {}", range.trunc()))
    }
}

/// Operators are told the port, so it cannot be any.
fn vpn_listen(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) => Err("the port has to be one that operators can be told, not 0".to_owned()),
        Err(_) => Err(format!("{text:?} is not ADDR:PORT; write it like 0.0.0.0:51820 or [::]:51820")),
    }
}

/// `scheme://host[:port]` as browsers send it (RFC 6454 §6.2), or `*`.
fn origin(text: &str) -> Result<String, String> {
    let bad = || format!("{text:?} is no origin; write one such as https://app.example or http://localhost:3000, or *");
    if text == "*" {
        return Ok(text.to_owned());
    }
    let uri: http::Uri = text.parse().map_err(|_| bad())?;
    let authority = uri.authority().ok_or_else(bad)?.as_str();
    let scheme = uri.scheme_str().ok_or_else(bad)?;
    if text == format!("{scheme}://{authority}") && !authority.contains('@') && text == text.to_ascii_lowercase() {
        Ok(text.to_owned())
    } else {
        Err(bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENTED: &str = include_str!("../../../docs/warren.toml");

    fn file(text: &str) -> Result<File, ConfigError> {
        parse(Path::new("warren.toml"), text)
    }

    #[test]
    fn without_anything_the_defaults_hold() {
        let settled = merge(UpFlags::default(), File::default()).unwrap();
        let expected = UpArgs {
            data_dir: "/var/lib/warren".into(),
            listen: DEFAULT_LISTEN,
            pool_dir: "/var/lib/warren/pool".into(),
            forwarding: false,
            runtime: "runc".into(),
            resolvers: vec![],
            private_ranges: vec![],
            cors_origins: vec![],
            vpn_listen: "0.0.0.0:51820".parse().unwrap(),
            vpn_endpoint: None,
            public: PublicArgs::default(),
            stop_machines: false,
            machines_per_account: 1000,
            networks_per_account: 1000,
            log_format: LogFormat::Text,
            log: "info".into(),
        };
        assert_eq!(settled, expected);
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = file("data_dir = '/a'\nlisten = '127.0.0.1:1'\nforwarding = true\nlog_format = 'json'").unwrap();
        let flags =
            UpFlags { listen: Some("127.0.0.1:2".parse().unwrap()), forwarding: Some(false), ..UpFlags::default() };
        let settled = merge(flags, file).unwrap();
        assert_eq!(settled.data_dir, Path::new("/a"));
        assert_eq!(settled.pool_dir, Path::new("/a/pool"), "the pool follows the data directory");
        assert_eq!(settled.listen.port(), 2);
        assert!(!settled.forwarding, "a flag can take back what the file says");
        assert_eq!(settled.log_format, LogFormat::Json);
        assert_eq!(settled.runtime, "runc");
    }

    #[test]
    fn resolvers_are_addresses_with_or_without_a_port() {
        let settled = merge(UpFlags::default(), file("resolvers = ['192.0.2.1', '[fd00::1]:5353']").unwrap()).unwrap();
        assert_eq!(settled.resolvers, ["192.0.2.1:53".parse().unwrap(), "[fd00::1]:5353".parse().unwrap()]);
        let flags = UpFlags { resolvers: vec!["192.0.2.9:53".parse().unwrap()], ..UpFlags::default() };
        let settled = merge(flags, file("resolvers = ['192.0.2.1']").unwrap()).unwrap();
        assert_eq!(settled.resolvers.len(), 1, "a flag wins");
        assert!(merge(UpFlags::default(), file("resolvers = ['dns.example']").unwrap()).is_err());
        assert!(file("resolvers = '192.0.2.1'").is_err());
    }

    #[test]
    fn private_ranges_are_ranges_and_none_unless_named() {
        let settled =
            merge(UpFlags::default(), file("private_ranges = ['192.168.0.0/16', 'fd00::/8']").unwrap()).unwrap();
        assert_eq!(settled.private_ranges, ["192.168.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        let flags = UpFlags { private_ranges: vec!["10.0.0.0/8".parse().unwrap()], ..UpFlags::default() };
        let settled = merge(flags, file("private_ranges = ['fd00::/8']").unwrap()).unwrap();
        assert_eq!(settled.private_ranges, ["10.0.0.0/8".parse().unwrap()], "a flag wins");
        for wrong in ["192.168.0.1/16", "192.168.0.1", "lan", ""] {
            let error = merge(UpFlags::default(), file(&format!("private_ranges = ['{wrong}']")).unwrap()).unwrap_err();
            assert!(error.to_string().contains("private_ranges"), "{error}");
        }
    }

    #[test]
    fn where_operators_come_in_is_an_address_and_where_they_find_it_may_be_a_name() {
        let settled =
            merge(UpFlags::default(), file("vpn_listen = '[::]:5182'\nvpn_endpoint = 'vpn.example:443'").unwrap());
        let settled = settled.unwrap();
        assert_eq!((settled.vpn_listen.to_string(), settled.vpn_listen.port()), ("[::]:5182".into(), 5182));
        assert_eq!(settled.vpn_endpoint.unwrap().to_string(), "vpn.example:443");
        let flags = UpFlags { vpn_endpoint: Some("192.0.2.1:1".parse().unwrap()), ..UpFlags::default() };
        let settled = merge(flags, file("vpn_endpoint = 'vpn.example:443'").unwrap()).unwrap();
        assert_eq!(settled.vpn_endpoint.unwrap().host(), "192.0.2.1", "a flag wins");
        for wrong in ["vpn_listen = '0.0.0.0:0'", "vpn_listen = ':51820'", "vpn_endpoint = 'vpn.example'"] {
            let error = merge(UpFlags::default(), file(wrong).unwrap()).unwrap_err().to_string();
            assert!(error.starts_with(wrong.split(' ').next().unwrap()), "{error}");
        }
    }

    #[test]
    fn an_unknown_or_malformed_setting_is_refused_with_its_place() {
        let error = file("listen = '127.0.0.1:1'\nlisten_adress = 'x'").unwrap_err().to_string();
        assert!(error.contains("warren.toml") && error.contains("listen_adress"), "{error}");
        assert!(file("listen = 'nowhere'").is_err());
        assert!(file("forwarding = 'yes'").is_err());
    }

    #[test]
    fn empty_settings_are_refused() {
        assert!(merge(UpFlags { runtime: Some(String::new()), ..UpFlags::default() }, File::default()).is_err());
        assert!(merge(UpFlags { data_dir: Some(PathBuf::new()), ..UpFlags::default() }, File::default()).is_err());
    }

    #[test]
    fn relative_directories_are_made_absolute() {
        let flags = UpFlags { data_dir: Some("d".into()), pool_dir: Some("p".into()), ..UpFlags::default() };
        let settled = merge(flags, File::default()).unwrap();
        assert!(settled.data_dir.is_absolute() && settled.pool_dir.is_absolute());
    }

    #[test]
    fn the_documented_file_holds_every_setting_with_its_default() {
        let uncommented: String = DOCUMENTED
            .lines()
            .map(|line| {
                line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#']) && !rest.is_empty()).unwrap_or(line)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let documented = file(&uncommented).unwrap();
        let File { data_dir, listen, pool_dir, forwarding, runtime, resolvers, .. } = &documented;
        let File { stop_machines, machines_per_account, networks_per_account, log_format, log, .. } = &documented;
        assert!(data_dir.is_some() && listen.is_some() && pool_dir.is_some() && forwarding.is_some());
        assert!(resolvers.is_some() && documented.private_ranges.is_some() && documented.cors_origins.is_some());
        assert!(runtime.is_some() && stop_machines.is_some() && log_format.is_some() && log.is_some());
        assert!(documented.vpn_listen.is_some() && documented.vpn_endpoint.is_some());
        let File { https_listen, http_listen, tls_cert, tls_key, .. } = &documented;
        let File { acme_directory, acme_ca, acme_email, preview_suffix, .. } = &documented;
        for setting in
            [https_listen, http_listen, tls_cert, tls_key, acme_directory, acme_ca, acme_email, preview_suffix]
        {
            assert!(setting.is_some());
        }
        assert!(machines_per_account.is_some() && networks_per_account.is_some());
        let defaults = merge(UpFlags::default(), File::default()).unwrap();
        assert_eq!(merge(UpFlags::default(), documented).unwrap(), defaults);
        assert_eq!(file(DOCUMENTED).unwrap(), File::default(), "as committed, it changes nothing");
    }

    #[test]
    fn an_origin_is_written_as_browsers_send_it() {
        for good in ["*", "https://app.example", "http://localhost:3000", "http://[::1]:8080"] {
            assert_eq!(origin(good).as_deref(), Ok(good));
        }
        for bad in ["", "app.example", "https://app.example/", "https://App.example", "https://a@b", "null", "/x"] {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let flags = UpFlags { config: Some("/nonexistent/warren.toml".into()), ..UpFlags::default() };
        let error = settle(flags).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/warren.toml"), "{error}");
    }
}
