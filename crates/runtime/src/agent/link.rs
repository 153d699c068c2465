//! One connection of one agent.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::{Method, Request};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use warren_guest::protocol::{self, Empty, Hello, operation};
use warren_model::access::AccessError;
use warren_model::{Code, MachineId};

use super::call;
use super::flood::FloodGuard;

/// A connection that has not said hello after this is dropped.
const MEETING: Duration = Duration::from_secs(5);

/// Bytes that the agent may send of one stream before anybody reads them.
const STREAM_WINDOW: u32 = 512 << 10;

/// The connection holds all of its streams, so that a reader who does not read cannot stop the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * protocol::MOST_STREAMS;

/// What small pieces may cost in memory on top of their content, in bytes.
const PIECES: usize = 64 << 20;

/// Requests that wait for a place longer than this are refused.
const WAIT_FOR_PLACE: Duration = Duration::from_secs(5);

/// While something is under way, the other end is asked this often whether it is there (PING: RFC 9113, section 6.7),
/// and has as long again to answer. A machine that is short of CPU time needs some.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The longest release name.
const LONGEST_VERSION: usize = 64;

/// Asks the agent at the other end.
#[derive(Debug)]
pub struct Link {
    machine: MachineId,
    requests: SendRequest<Bytes>,
    places: Arc<Semaphore>,
    version: String,
    over: CancellationToken,
}

/// A request under way.
pub struct Asked {
    pub response: ResponseFuture,
    pub body: SendStream<Bytes>,
    /// Held until the request is over.
    pub place: OwnedSemaphorePermit,
}

impl Link {
    /// Shakes hands with whoever is at the other end. The second moves the connection's bytes, and ends with it.
    pub async fn open(
        machine: MachineId,
        stream: UnixStream,
    ) -> Result<(Arc<Self>, impl Future<Output = ()> + Send + 'static), AccessError> {
        let unavailable = |error: h2::Error| AccessError::new(Code::AgentUnavailable, error.to_string());
        let handshake = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(protocol::LARGEST_HTTP2_FRAME)
            .max_header_list_size(16 << 10)
            .data_frame_budget(PIECES)
            .enable_push(false)
            .handshake(FloodGuard::new(stream))
            .await;
        let (requests, mut connection) = handshake.map_err(unavailable)?;
        let over = CancellationToken::new();
        let places = Arc::new(Semaphore::new(protocol::MOST_STREAMS as usize));
        let silence = silence(connection.ping_pong(), Arc::clone(&places));
        let mut link = Self { machine, requests, places, version: String::new(), over: over.clone() };
        let mut moving = Box::pin(async move {
            tokio::select! {
                // In this order: after a halt of this process, an answer that is there is taken before it counts as late.
                biased;
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%machine, %error, "an agent's connection ended");
                    }
                }
                () = over.cancelled() => {}
                () = silence => {
                    tracing::warn!(%machine, "an agent's connection was dropped: it has not answered for {KEEPALIVE:?}");
                    over.cancel();
                }
            }
        });
        let hello = tokio::select! {
            hello = call::call::<Hello>(&link, operation::HELLO, &Empty {}, MEETING) => hello?,
            () = &mut moving => return Err(link.broken("the connection ended before its hello")),
        };
        if hello.protocol != protocol::PROTOCOL {
            let detail = format!(
                "the agent speaks version {} and not {}: restart the machine",
                hello.protocol,
                protocol::PROTOCOL
            );
            return Err(AccessError::new(Code::AgentUnavailable, detail));
        }
        let readable = |c: &char| c.is_ascii_alphanumeric() || ".-+_".contains(*c);
        link.version = hello.version.chars().filter(readable).take(LONGEST_VERSION).collect();
        Ok((Arc::new(link), moving))
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// Ends the connection.
    pub fn give_up(&self) {
        self.over.cancel();
    }

    /// Ends the connection, because of what came over it. The answer is for who asked.
    pub fn broken(&self, why: impl std::fmt::Display) -> AccessError {
        if !self.over.is_cancelled() {
            tracing::warn!(machine = %self.machine, %why, "an agent's connection was dropped");
        }
        self.give_up();
        AccessError::new(Code::AgentUnavailable, format!("the machine's agent does not answer as it should: {why}"))
    }

    /// Begins a request. `end` says that nothing follows.
    pub async fn ask(&self, operation: &'static str, end: bool) -> Result<Asked, AccessError> {
        let waiting = async {
            let place = Arc::clone(&self.places).acquire_owned().await.map_err(|error| self.broken(error))?;
            let mut requests = self.requests.clone().ready().await.map_err(|error| self.broken(error))?;
            let mut request = Request::new(());
            *request.method_mut() = Method::POST;
            *request.uri_mut() = http::Uri::from_static(operation);
            let (response, body) = requests.send_request(request, end).map_err(|error| self.broken(error))?;
            Ok(Asked { response, body, place })
        };
        match tokio::time::timeout(WAIT_FOR_PLACE, waiting).await {
            Ok(asked) => asked,
            Err(_) => Err(AccessError::new(
                Code::ServerBusy,
                format!("{} things are under way in this machine already: wait for one to end", protocol::MOST_STREAMS),
            )),
        }
    }

    /// Waits for the head of an answer. When it does not come, asks whether anybody is there at all.
    pub async fn head(&self, response: ResponseFuture, within: Duration) -> Result<(bool, RecvStream), AccessError> {
        match tokio::time::timeout(within, response).await {
            Ok(Ok(response)) => match response.status().as_u16() {
                200 => Ok((true, response.into_body())),
                422 => Ok((false, response.into_body())),
                status => Err(self.broken(format_args!("it answers with status {status}"))),
            },
            Ok(Err(error)) => Err(self.broken(error)),
            Err(_) => Err(self.late(within).await),
        }
    }

    /// What to say after something took too long: an agent that is not there loses its connection.
    pub async fn late(&self, within: Duration) -> AccessError {
        let hello = Box::pin(call::call_once::<Hello>(self, operation::HELLO, &Empty {}, MEETING)).await;
        match hello {
            Ok(_) => AccessError::new(Code::DeadlineExceeded, format!("the machine did not do it within {within:?}")),
            Err(error) => self.broken(error.detail),
        }
    }
}

/// Ends when something is under way, and the other end does not answer. A process that is stopped keeps its connection
/// and would otherwise hold up its callers for ever.
async fn silence(pings: Option<PingPong>, places: Arc<Semaphore>) {
    // There is one for each connection, and this is the first to take it.
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(KEEPALIVE).await;
        if places.available_permits() == protocol::MOST_STREAMS as usize {
            continue;
        }
        match tokio::time::timeout(KEEPALIVE, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection is over, and says so itself.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
