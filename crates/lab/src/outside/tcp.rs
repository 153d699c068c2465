//! What is spoken on which port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;

use super::SSH_ON_443;
use super::authority::Authority;
use super::log::{Log, Seen};
use super::web::{self, Connection};

/// Which server answers on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http,
    Tls,
    Ssh,
    PostgreSql,
    /// Says back what it hears; after a first line `ticks` it only speaks.
    Anything,
}

/// A TLS record that holds handshake messages (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
const BANNER: &[u8] = b"SSH-2.0-OpenSSH_9.6\r\n";

pub(crate) async fn listen(listener: TcpListener, speaks: Speaks, authority: Arc<Authority>, log: Arc<Log>) {
    while let Ok((stream, from)) = listener.accept().await {
        let Ok(to) = stream.local_addr() else { continue };
        let _ = stream.set_nodelay(true);
        let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let connection = Connection { log: Arc::clone(&log), to: plain(to), from: plain(from), server_name: None };
        log.add(Seen::Opened { to: connection.to, from: connection.from });
        let authority = Arc::clone(&authority);
        tokio::spawn(async move {
            let _ = serve(stream, speaks, connection.clone(), &authority).await;
            connection.closed();
        });
    }
}

async fn serve(mut stream: TcpStream, speaks: Speaks, connection: Connection, authority: &Authority) -> Option<()> {
    match speaks {
        Speaks::Http => web::serve(stream, &connection).await,
        Speaks::Tls if connection.to.ip() == SSH_ON_443 => talk(stream, &connection, BANNER).await,
        Speaks::Tls => serve_tls(stream, connection, authority).await,
        Speaks::Ssh => talk(stream, &connection, BANNER).await,
        Speaks::PostgreSql => {
            // Length and code of the request for TLS (PostgreSQL 16 §55.7), which is declined.
            let mut asked = [0; 8];
            stream.read_exact(&mut asked).await.ok()?;
            connection.heard(&asked);
            if asked == [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f] {
                stream.write_all(b"N").await.ok()?;
            }
            talk(stream, &connection, b"").await
        }
        Speaks::Anything => talk(stream, &connection, b"").await,
    }
}

/// Says something first, and then back what it hears.
async fn talk(mut stream: TcpStream, connection: &Connection, first: &[u8]) -> Option<()> {
    stream.write_all(first).await.ok()?;
    let mut buffer = [0; 16_384];
    loop {
        let length = stream.read(&mut buffer).await.ok().filter(|length| *length > 0)?;
        connection.heard(&buffer[..length]);
        if &buffer[..length] == b"ticks\n" {
            return web::ticks(stream, "").await;
        }
        stream.write_all(&buffer[..length]).await.ok()?;
    }
}

async fn serve_tls(stream: TcpStream, mut connection: Connection, authority: &Authority) -> Option<()> {
    let mut first = [0; 256];
    let length = stream.peek(&mut first).await.ok()?;
    if length == 0 || first[0] != HANDSHAKE {
        return talk(stream, &connection, b"").await;
    }
    let started = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await.ok()?;
    let name = started.client_hello().server_name().map(str::to_owned);
    connection.log.add(Seen::Hello { to: connection.to, from: connection.from, server_name: name.clone() });
    let config = authority.serving(name.as_deref().unwrap_or("nameless.example"))?;
    connection.server_name = name;
    let stream = started.into_stream(config).await.ok()?;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let answer = service_fn(move |request: Request<Incoming>| {
            let connection = connection.clone();
            async move {
                let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
                connection.requested(format!("{} {} HTTP/2\r\nhost: {host}\r\n", request.method(), request.uri()));
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(connection.page(&host, request.uri().path())))))
            }
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        return server.serve_connection(TokioIo::new(stream), answer).await.ok();
    }
    web::serve(stream, &connection).await
}
