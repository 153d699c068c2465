//! Byte streams to a server: a Unix socket, TCP on the loopback, or TLS over TCP.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::error::ClientError;
use super::target::Target;

/// How long one address may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens streams to one target, whatever URI it is asked for.
#[derive(Clone)]
pub struct Connector {
    target: Arc<Target>,
    tls: Option<TlsConnector>,
}

impl Connector {
    pub fn new(target: &Target) -> Result<Self, ClientError> {
        let tls = match target {
            Target::Tcp { secure: true, .. } => Some(TlsConnector::from(Arc::new(tls_settings()?))),
            _ => None,
        };
        Ok(Self { target: Arc::new(target.clone()), tls })
    }

    async fn connect(self) -> io::Result<Stream> {
        match (&*self.target, self.tls) {
            (Target::Unix(path), _) => unix(path).await,
            (Target::Tcp { host, port, .. }, Some(tls)) => {
                let stream = tcp(host, *port, false).await?;
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the host is no DNS name"))?;
                Ok(Stream::new(tls.connect(name, stream).await?))
            }
            (Target::Tcp { host, port, .. }, None) => Ok(Stream::new(tcp(host, *port, true).await?)),
        }
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connector({})", self.target)
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// A stream of any of the kinds.
///
/// A server may refuse an upload before it has read all of it, and close (RFC 9112 section 9.5). Writing then fails
/// although the refusal waits to be read, and hyper would report only the write. So what nobody takes any more is dropped,
/// and reading tells how it ended: the answer, or an end without one.
pub struct Stream(TokioIo<Pin<Box<dyn Io>>>);

trait Io: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Io for T {}

impl Stream {
    fn new(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        Self(TokioIo::new(Box::pin(io)))
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.0).poll_write(cx, bytes) {
            Poll::Ready(Err(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Poll::Ready(Ok(bytes.len()))
            }
            written => written,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The sentence about a plaintext connection that was not made, if that is what went wrong.
pub fn find_insecure(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(current) = next {
        let inside = current.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        if let Some(insecure) = inside.and_then(|inner| inner.downcast_ref::<Insecure>()) {
            return Some(insecure.to_string());
        }
        next = current.source();
    }
    None
}

/// A key must not cross a network in the clear.
#[derive(Debug, thiserror::Error)]
#[error(
    "http://{host} is not on this machine, and the key would cross the network in the clear: use https://, or an SSH tunnel \
     (`ssh -L 7070:127.0.0.1:{port} {host}`) and http://127.0.0.1:7070"
)]
struct Insecure {
    host: String,
    port: u16,
}

async fn tcp(host: &str, port: u16, loopback_only: bool) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    if loopback_only && addresses.iter().any(|address| !address.ip().to_canonical().is_loopback()) {
        return Err(io::Error::other(Insecure { host: host.to_owned(), port }));
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} did not answer within 10 s")),
        }
    }
    Err(last)
}

#[cfg(unix)]
async fn unix(path: &std::path::Path) -> io::Result<Stream> {
    Ok(Stream::new(tokio::net::UnixStream::connect(path).await?))
}

#[cfg(not(unix))]
async fn unix(_: &std::path::Path) -> io::Result<Stream> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "Unix sockets need a Unix; name a server with --url"))
}

/// Trusts what the system trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` replace that.
fn tls_settings() -> Result<rustls::ClientConfig, ClientError> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(ClientError::Usage(
            "the system has no certificate authorities to trust: install ca-certificates or set SSL_CERT_FILE"
                .to_owned(),
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut settings = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ClientError::Usage(format!("TLS cannot be set up: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt;
    use http::Method;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use crate::client::error::ClientError;
    use crate::client::route::Route;
    use crate::client::target::{Access, Target};
    use crate::client::{Client, Payload, streamed};

    #[tokio::test]
    async fn a_refusal_in_the_middle_of_an_upload_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut some = [0; 4096];
            stream.read_exact(&mut some).await.unwrap();
            let body = r#"{"code":"path_not_found","detail":"/no/such: No such file or directory"}"#;
            let head = format!("HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        });
        let client = Client::new(&Access { target: Target::Unix(path), key: None, account: None }).unwrap();
        let chunks = futures::stream::repeat_with(|| Ok(vec![0; 65_536].into())).take(10_000);
        let payload = Payload::Bytes(streamed(chunks));
        let route = Route::new(&["files"]);
        let sent = client.send(Method::PUT, &route, payload);
        let answer = tokio::time::timeout(Duration::from_secs(30), sent).await.unwrap();
        let Err(ClientError::Refused(refusal)) = answer else { panic!("{answer:?}") };
        assert_eq!(refusal.code(), "path_not_found");
    }
}
