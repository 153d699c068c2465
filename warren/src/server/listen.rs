//! Where the API listens: a TCP port and a Unix socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// How many connections each listener holds at once; more wait to be accepted.
const CONNECTIONS: usize = 4096;
/// How long a client may take to send the head of a request.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// The pause after a failed accept, so that a lack of descriptors does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Something that accepts connections.
pub trait Accept {
    type Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Connection>> + Send;
}

impl Accept for TcpListener {
    type Connection = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Self::Connection> {
        let (connection, _) = TcpListener::accept(self).await?;
        // An exec is many small writes in both directions.
        connection.set_nodelay(true)?;
        Ok(connection)
    }
}

impl Accept for UnixListener {
    type Connection = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Self::Connection> {
        Ok(UnixListener::accept(self).await?.0)
    }
}

/// Serves until it is cancelled, and then until every request under way has been answered.
pub async fn serve(listener: impl Accept, router: Router, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut server = Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = shutdown.cancelled() => break,
        };
        let Some((connection, place)) = accepted else { continue };
        let service = TowerToHyperService::new(router.clone());
        let served = server.serve_connection_with_upgrades(TokioIo::new(connection), service).into_owned();
        let watched = graceful.watch(served);
        tokio::spawn(async move {
            // A client that goes away or speaks nonsense is its own affair.
            let _ = watched.await;
            drop(place);
        });
    }
    graceful.shutdown().await;
}

async fn accept<A: Accept>(
    listener: &A,
    places: &Arc<Semaphore>,
) -> Option<(A::Connection, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok(connection) => Some((connection, place)),
        Err(error) => {
            tracing::warn!(%error, "a connection was not accepted");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn server() -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        let task = tokio::spawn(serve(listener, router, shutdown.clone()));
        (address, shutdown, task)
    }

    #[tokio::test]
    async fn requests_are_answered_and_idle_connections_end_with_the_server() {
        let (address, shutdown, task) = server().await;
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 1024];
        let count = client.read(&mut answer).await.unwrap();
        assert!(String::from_utf8_lossy(&answer[..count]).ends_with("here"));
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_never_finishes_its_request_is_hung_up_on() {
        let (address, _shutdown, _task) = server().await;
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(HEAD_WITHIN * 3, client.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the connection stayed open");
    }
}
