//! Accepting connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::activity::Activity;
use crate::client::Client;
use crate::host::normal;
use crate::shared::Shared;
use crate::socket::Socket;

/// How long nothing is accepted after the system could not give a socket.
const RESPITE: Duration = Duration::from_millis(50);
/// How often unused connections to machines are looked through, or more often where they are kept for less.
const SWEEP: Duration = Duration::from_secs(5);
/// A fatal alert, unrecognized_name (RFC 8446 §6, RFC 6066 §3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Http,
    Https,
}

/// Serves until it is dropped, and with it every connection.
pub(crate) async fn serve(shared: Arc<Shared>, listener: std::net::TcpListener, kind: Kind) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // So that nothing of it is kept.
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, from)) => {
                connections.spawn(connection(shared.clone(), stream, from, kind));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection to a published name can be accepted");
                sleep(RESPITE).await;
            }
        }
    }
}

/// Closes unused connections to machines, for ever.
pub(crate) async fn sweep(shared: Arc<Shared>) {
    let idle = shared.limits.upstream_idle;
    let mut sweep = interval(idle.clamp(Duration::from_millis(1), SWEEP));
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        sweep.tick().await;
        for live in shared.table.load_full().sites.values() {
            live.target.sweep(idle);
        }
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, from: SocketAddr, kind: Kind) {
    let address: IpAddr = from.ip().to_canonical();
    let Some(admitted) = shared.admission.admit(address) else {
        shared.connections_refused.fetch_add(1, Relaxed);
        return;
    };
    // Without it small answers wait for acknowledgements; where it fails the socket is gone.
    let _ = stream.set_nodelay(true);
    let limits = shared.limits;
    let activity = Arc::new(Activity::new(limits.header));
    let socket = Socket::new(stream, activity.clone(), limits.farewell);
    match kind {
        Kind::Http => {
            let client = Arc::new(Client::new(shared, address, None, admitted));
            client.serve_http1(socket, activity).await;
        }
        Kind::Https => {
            let Ok(Some((name, stream))) = timeout(limits.handshake, handshake(&shared, socket)).await else {
                shared.handshakes_failed.fetch_add(1, Relaxed);
                return;
            };
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let client = Arc::new(Client::new(shared, address, Some(name), admitted));
            match http2 {
                true => client.serve_http2(stream).await,
                false => client.serve_http1(stream, activity).await,
            }
        }
    }
}

/// The encrypted stream with the name that it is for; `None` where there is none.
async fn handshake(shared: &Shared, socket: Socket) -> Option<(Box<str>, TlsStream<Socket>)> {
    let started = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket).await.ok()?;
    let table = shared.table.load_full();
    let name = started.client_hello().server_name().and_then(normal).map(|name| Box::<str>::from(&*name));
    let Some(name) = name.filter(|name| table.certificates.of(name).is_some()) else {
        let mut socket = started.io;
        // Who has left needs no reason.
        let _ = socket.write_all(&UNRECOGNIZED_NAME).await;
        let _ = socket.shutdown().await;
        return None;
    };
    let stream = started.into_stream(table.tls.clone()).await.ok()?;
    Some((name, stream))
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
