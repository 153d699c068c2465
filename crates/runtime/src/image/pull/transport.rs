//! HTTP to registries: TLS with the system's roots, and in the clear on this machine only.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::error::PullError;

/// How long one address may take to accept a connection, and TLS to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// How long a registry may be silent.
const SILENCE: Duration = Duration::from_secs(60);
const AGENT: &str = concat!("warren/", env!("CARGO_PKG_VERSION"));

/// Opens a connection for each request.
#[derive(Default)]
pub struct Transport {
    tls: OnceCell<TlsConnector>,
}

impl Transport {
    /// Sends a GET. With `plain` allowed, an `http` URL works on the loopback.
    ///
    /// # Errors
    ///
    /// Those that keep the head of an answer from coming; its status is the caller's.
    pub async fn get(&self, uri: &Uri, headers: HeaderMap, plain: bool) -> Result<Answer, PullError> {
        let url = || uri.to_string().chars().take(300).collect::<String>();
        let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
            return Err(PullError::Url { url: url() });
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let request = build(uri, authority.as_str(), headers).map_err(|_| PullError::Url { url: url() })?;
        let named = || authority.host().to_owned();
        let sent = if uri.scheme() == Some(&Scheme::HTTPS) {
            let tls = self.tls.get_or_try_init(connector).await?;
            let stream = connect(bare, uri.port_u16().unwrap_or(443), false).await?;
            let name = ServerName::try_from(bare.to_owned()).map_err(|_| PullError::Url { url: url() })?;
            let stream = timeout(CONNECT_LIMIT, tls.connect(name, stream)).await;
            let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            exchange(stream.map_err(|source| PullError::Connect { host: named(), source })?, request).await
        } else if uri.scheme() == Some(&Scheme::HTTP) && plain {
            exchange(connect(bare, uri.port_u16().unwrap_or(80), true).await?, request).await
        } else {
            return Err(PullError::Insecure { url: url() });
        };
        match sent {
            Some(Ok(response)) => Ok(Answer { host: named(), response }),
            Some(Err(source)) => Err(PullError::Http { host: named(), source }),
            None => Err(PullError::Silent { host: named(), seconds: SILENCE.as_secs() }),
        }
    }
}

/// An answer whose body has yet to come.
pub struct Answer {
    host: String,
    response: Response<Incoming>,
}

impl Answer {
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next bytes of the body; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        loop {
            let frame = timeout(SILENCE, self.response.frame())
                .await
                .map_err(|_| PullError::Silent { host: self.host.clone(), seconds: SILENCE.as_secs() })?;
            match frame.transpose().map_err(|source| PullError::Http { host: self.host.clone(), source })? {
                None => return Ok(None),
                Some(frame) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                },
            }
        }
    }

    /// The whole body, which has no more than `limit` bytes.
    pub async fn whole(&mut self, what: &'static str, limit: u64) -> Result<Bytes, PullError> {
        let mut whole = BytesMut::new();
        while let Some(data) = self.next().await? {
            if whole.len() as u64 + data.len() as u64 > limit {
                return Err(PullError::TooLarge { what, limit });
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    }
}

fn build(uri: &Uri, authority: &str, headers: HeaderMap) -> http::Result<Request<Empty<Bytes>>> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(path).body(Empty::new())?;
    *request.headers_mut() = headers;
    request.headers_mut().insert(header::HOST, HeaderValue::from_str(authority)?);
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
    Ok(request)
}

/// `None` when nothing comes.
async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Option<hyper::Result<Response<Incoming>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answered = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the body of the only answer, or when that is dropped; its errors reach the body's reader.
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    timeout(SILENCE, answered).await.ok()
}

async fn connect(host: &str, port: u16, loopback_only: bool) -> Result<TcpStream, PullError> {
    let failed = |source| PullError::Connect { host: host.to_owned(), source };
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.map_err(failed)?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        if loopback_only && !address.ip().to_canonical().is_loopback() {
            return Err(PullError::Insecure { url: format!("http://{host}") });
        }
        match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).map_err(failed)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed(last))
}

/// Trusts what the system trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` replace that.
async fn connector() -> Result<TlsConnector, PullError> {
    let found = crate::files::blocking(rustls_native_certs::load_native_certs).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(PullError::NoRoots);
    }
    let mut settings = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(PullError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(settings)))
}
