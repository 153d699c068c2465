//! One connection of a client.

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures::future::Either;
use http::StatusCode;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use crate::activity::Activity;
use crate::admit::Admitted;
use crate::counters::{Share, State};
use crate::forward::{answer, refuse};
use crate::gather::Gathered;
use crate::headers::Origin;
use crate::limits::{MAX_ERROR_RESETS, MAX_HEAD, MAX_HEADERS, MAX_PENDING_RESETS, MAX_STREAMS};
use crate::shared::Shared;
use crate::streams::Streams;
use crate::strict::{Strict, Verdicts};

/// What one stream of HTTP/2 may hold back, and one connection, in bytes.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const SEND_BUFFER: usize = 128 << 10;
/// How often it is asked whether the other end of an HTTP/2 connection is still there, and how long it may take to say.
const PING: Duration = Duration::from_secs(20);
/// How long an HTTP/2 connection without requests is kept.
const UNUSED: Duration = Duration::from_secs(60);
/// How often the streams of an HTTP/2 connection are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Who is at the other end of a connection.
pub(crate) struct Client {
    pub ingress: Arc<Shared>,
    pub origin: Origin,
    pub secure: bool,
    /// What the connection is for, where it is encrypted.
    pub name: Option<Box<str>>,
    counted: Mutex<Option<Arc<Share>>>,
    requests: AtomicU64,
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
            let answer = match verdicts.next() {
                Ok(()) => Either::Left(answer(&self, activity.clone(), request)),
                Err(refusal) => Either::Right(ready(refuse(&self, refusal))),
            };
            let verdicts = verdicts.clone();
            async move {
                let response = answer.await;
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
        let (client, streams, io) = (self.clone(), Streams::default(), Gathered::new(io));
        let _guard = streams.guard();
        let beginning = streams.clone();
        let service = service_fn(move |request| {
            client.requests.fetch_add(1, Relaxed);
            let answer = answer(&client, beginning.begin(UNUSED), request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = http2::Builder::new(streams.clone())
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
            .serve_connection(TokioIo::new(io.clone()), service);
        let mut connection = pin!(connection);
        let mut timer = pin!(sleep(header));
        // When to see whether the connection is used, and how many requests there were the last time.
        let (mut review, mut before, mut leaving) = (timer.deadline(), 0, false);
        let mut looked = None;
        loop {
            let mut polled = false;
            let woken = poll_fn(|cx| {
                if polled {
                    return Poll::Ready(Woken::ForMore);
                }
                polled = true;
                let ended = connection.as_mut().poll(cx).is_ready();
                let out = io.poll_out(cx);
                if ended || matches!(out, Poll::Ready(Err(_))) {
                    // A connection that broke concerns nobody but the client.
                    return Poll::Ready(Woken::AtTheEnd);
                }
                if looked.is_none() && streams.open() > 0 {
                    let now = Instant::now();
                    looked = Some(now);
                    timer.as_mut().reset(review.min(now + LOOK));
                }
                timer.as_mut().poll(cx).map(|()| Woken::InTime)
            });
            match woken.await {
                Woken::AtTheEnd => return,
                // What else is ready by now is served in the same go, and answers that are ready are written in one.
                Woken::ForMore if streams.open() > 1 => yield_now().await,
                Woken::ForMore => {}
                Woken::InTime => {
                    let now = Instant::now();
                    if let Some(last) = looked {
                        streams.look(now - last);
                        looked = (streams.open() > 0).then_some(now);
                        if looked.is_none() {
                            io.give_back();
                        }
                    }
                    if now >= review {
                        let requests = self.requests.load(Relaxed);
                        let unused = requests == before && streams.open() == 0;
                        // Who has not asked for anything by now was not going to.
                        if unused && (leaving || requests == 0) {
                            return;
                        }
                        if unused {
                            connection.as_mut().graceful_shutdown();
                            leaving = true;
                        }
                        before = requests;
                        review = now + UNUSED;
                    }
                    timer.as_mut().reset(looked.map_or(review, |last| review.min(last + LOOK)));
                }
            }
        }
    }
}

/// Why a connection of HTTP/2 is looked at again.
enum Woken {
    /// Something came, or an answer is ready.
    ForMore,
    InTime,
    AtTheEnd,
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(share) = self.counted.get_mut().unwrap_or_else(PoisonError::into_inner) {
            share.state.connections.fetch_sub(1, Relaxed);
        }
    }
}
