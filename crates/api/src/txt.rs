//! TXT records, asked of the server's own resolvers.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};

/// How long a look for records may take, all resolvers and tries together.
const LIMIT: Duration = Duration::from_secs(8);
/// How long one resolver may take over one question, and how often each is asked.
const TRY: Duration = Duration::from_secs(2);
const TRIES: usize = 2;

/// Claims that are looked at at once because somebody asked; one account has a quarter of that.
pub(crate) const AT_ONCE: usize = 32;

/// Why there are no records to read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TxtError {
    #[error("the server has no resolver: start it with --resolver")]
    NoResolver,
    #[error("{0} does not exist (NXDOMAIN)")]
    NoSuchName(String),
    #[error("{0} has no TXT record")]
    NoRecord(String),
    #[error("the resolvers answered {code} for {name}")]
    Failure { name: String, code: String },
    #[error("no resolver answered for {0} in time")]
    Silent(String),
    #[error("the resolvers could not be asked for {name}: {reason}")]
    Unreachable { name: String, reason: String },
    #[error("{0} is too long for DNS")]
    NotAName(String),
}

impl TxtError {
    /// Whether DNS said that there is no record, and not only that it has no answer.
    pub fn is_certain(&self) -> bool {
        matches!(self, Self::NoSuchName(_) | Self::NoRecord(_))
    }
}

/// The texts of every TXT record at a name, each put together from its parts (RFC 7208 §3.3). Nothing is remembered, so
/// that a record that was just set counts; the resolvers may still know an older answer.
pub(crate) async fn look_up(resolvers: &[SocketAddr], name: &str) -> Result<Vec<Vec<u8>>, TxtError> {
    if resolvers.is_empty() {
        return Err(TxtError::NoResolver);
    }
    let not_a_name = |_| TxtError::NotAName(name.to_owned());
    let query = Name::from_ascii(format!("{name}.")).map_err(not_a_name)?;
    let resolver = resolver(resolvers).map_err(|error| failed(name, error))?;
    let answer = match tokio::time::timeout(LIMIT, resolver.lookup(query, RecordType::TXT)).await {
        Ok(answer) => answer.map_err(|error| failed(name, error))?,
        Err(_) => return Err(TxtError::Silent(name.to_owned())),
    };
    let texts = answer.answers().iter().filter_map(|record| match &record.data {
        RData::TXT(text) => Some(text.txt_data.concat()),
        _ => None,
    });
    let texts: Vec<_> = texts.collect();
    if texts.is_empty() { Err(TxtError::NoRecord(name.to_owned())) } else { Ok(texts) }
}

fn resolver(resolvers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let servers = resolvers.iter().map(|address| {
        let mut server = NameServerConfig::udp_and_tcp(address.ip());
        for connection in &mut server.connections {
            connection.port = address.port();
        }
        server
    });
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.timeout = TRY;
    options.attempts = TRIES;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    builder.build()
}

fn failed(name: &str, error: NetError) -> TxtError {
    let name = name.to_owned();
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) if none.response_code == ResponseCode::NXDomain => {
            TxtError::NoSuchName(name)
        }
        NetError::Dns(DnsError::NoRecordsFound(_)) => TxtError::NoRecord(name),
        NetError::Dns(DnsError::ResponseCode(code)) => TxtError::Failure { name, code: said(code) },
        NetError::Timeout => TxtError::Silent(name),
        other => TxtError::Unreachable { name, reason: other.to_string() },
    }
}

/// The code as DNS writes it (RFC 1035 §4.1.1 and its mnemonics), which is what people search for.
fn said(code: ResponseCode) -> String {
    match code {
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        other => format!("{other:?}"),
    }
}
