//! One connection of a client.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task_local;
use tokio::time::sleep;

use crate::activity::Activity;
use crate::admit::Admitted;
use crate::counters::{Share, State};
use crate::forward::{answer, refuse};
use crate::headers::Origin;
use crate::limits::{MAX_ERROR_RESETS, MAX_HEAD, MAX_HEADERS, MAX_PENDING_RESETS, MAX_STREAMS};
use crate::shared::Shared;
use crate::strict::{Strict, Verdicts};

/// What one stream of HTTP/2 may hold back, and one connection, in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const SEND_BUFFER: usize = 128 << 10;
/// How often it is asked whether the other end of an HTTP/2 connection is still there, and how long it may take to say.
const PING: Duration = Duration::from_secs(20);
/// How long an HTTP/2 connection without requests is kept.
const UNUSED: Duration = Duration::from_secs(60);

task_local! {
    /// What moves on the stream that a task is for.
    static STREAM: Arc<Activity>;
}

/// Who is at the other end of a connection.
pub(crate) struct Client {
    pub ingress: Arc<Shared>,
    pub origin: Origin,
    pub secure: bool,
    /// What the connection is for, where it is encrypted.
    pub name: Option<Box<str>>,
    counted: Mutex<Option<Arc<Share>>>,
    requests: AtomicU64,
    open: AtomicU32,
    admitted: Admitted,
}

impl Client {
    pub fn new(ingress: Arc<Shared>, address: IpAddr, name: Option<Box<str>>, admitted: Admitted) -> Self {
        let secure = name.is_some();
        Self {
            ingress,
            origin: Origin::new(address, secure),
            secure,
            name,
            counted: Mutex::default(),
            requests: AtomicU64::new(0),
            open: AtomicU32::new(0),
            admitted,
        }
    }

    /// Counts the connection for a site, and no longer for another. What the client's source has of the site is kept
    /// with the connection: requests need not look it up.
    pub fn counts_for(&self, state: &Arc<State>) -> Arc<Share> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = counted.as_ref().filter(|share| Arc::ptr_eq(&share.state, state)) {
            return share.clone();
        }
        state.connections.fetch_add(1, Relaxed);
        let share = Share::of(state, self.admitted.source());
        if let Some(before) = counted.replace(share.clone()) {
            before.state.connections.fetch_sub(1, Relaxed);
        }
        share
    }

    /// Serves HTTP/1.1 until the connection ends or becomes a WebSocket.
    pub async fn serve_http1(
        self: Arc<Self>,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        activity: Arc<Activity>,
    ) {
        let header = self.ingress.limits.header;
        let moving = activity.clone();
        let verdicts = Arc::new(Verdicts::new());
        let io = Strict::new(io, verdicts.clone());
        let service = service_fn(move |request| {
            let (client, activity, verdicts) = (self.clone(), activity.clone(), verdicts.clone());
            async move {
                let response = match verdicts.next() {
                    Ok(()) => answer(&client, activity, request).await,
                    Err(refusal) => refuse(&client, refusal),
                };
                verdicts.decide(response.status() == StatusCode::SWITCHING_PROTOCOLS);
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD)
            .max_buf_size(MAX_HEAD + 8192)
            .header_read_timeout(header)
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        tokio::select! {
            biased;
            // A connection that broke concerns nobody but the client.
            _ = connection => {}
            () = moving.stopped() => {}
        }
    }

    /// Serves HTTP/2 until the connection ends.
    pub async fn serve_http2(self: Arc<Self>, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let header = self.ingress.limits.header;
        let client = self.clone();
        let service = service_fn(move |request| {
            let client = client.clone();
            client.requests.fetch_add(1, Relaxed);
            async move {
                let _open = Open::new(&client.open);
                let activity = STREAM.try_with(Arc::clone).unwrap_or_else(|_| Arc::new(Activity::new(UNUSED)));
                Ok::<_, Infallible>(answer(&client, activity, request).await)
            }
        });
        let connection = http2::Builder::new(Streams)
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD as u32)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_ERROR_RESETS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .serve_connection(TokioIo::new(io), service);
        let mut connection = pin!(connection);
        let mut patience = header;
        let mut leaving = false;
        loop {
            let before = self.requests.load(Relaxed);
            tokio::select! {
                biased;
                _ = &mut connection => return,
                () = sleep(patience) => {}
            }
            let unused = self.requests.load(Relaxed) == before && self.open.load(Relaxed) == 0;
            // Who has not asked for anything by now was not going to.
            if unused && (leaving || before == 0) {
                return;
            }
            if unused {
                connection.as_mut().graceful_shutdown();
                leaving = true;
            }
            patience = UNUSED;
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(share) = self.counted.get_mut().unwrap_or_else(PoisonError::into_inner) {
            share.state.connections.fetch_sub(1, Relaxed);
        }
    }
}

struct Open<'a>(&'a AtomicU32);

impl<'a> Open<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Runs each stream of HTTP/2 in a task of its own, as long as something moves on it.
#[derive(Clone)]
struct Streams;

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let activity = Arc::new(Activity::new(UNUSED));
        let watched = {
            let activity = activity.clone();
            async move {
                tokio::select! {
                    biased;
                    () = stream => {}
                    () = activity.stopped() => {}
                }
            }
        };
        tokio::spawn(STREAM.scope(activity, watched));
    }
}
