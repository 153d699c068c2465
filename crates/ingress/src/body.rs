//! Bodies on their way. They are counted and bounded, and never collected.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use crate::activity::Activity;
use crate::counters::{Flight, State};
use crate::headers::rewrite_trailers;
use crate::limits::Limits;
use crate::pace::Pace;
use crate::problem::Refusal;
use crate::table::Live;
use crate::upstream::Link;

/// The body of a response: a machine's, or one of ours.
pub(crate) enum Reply {
    Whole(Option<Bytes>),
    Passed(Outbound),
}

/// What comes from a machine, with what it holds on to until it ended.
pub(crate) struct Outbound {
    incoming: Incoming,
    ended: bool,
    live: Arc<Live>,
    flight: Flight,
    activity: Arc<Activity>,
    link: Option<Link>,
}

impl Reply {
    pub fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    pub fn passed(incoming: Incoming, live: Arc<Live>, flight: Flight, activity: Arc<Activity>, link: Link) -> Self {
        Self::Passed(Outbound { incoming, ended: false, live, flight, activity, link: Some(link) })
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let body = match &mut *self {
            Self::Whole(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Passed(body) => body,
        };
        let frame = ready!(Pin::new(&mut body.incoming).poll_frame(cx));
        body.activity.touch();
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    body.flight.state().bytes_out.fetch_add(data.len() as u64, Relaxed);
                }
            }
            Some(Err(_)) => body.link = None,
            None => body.ended = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Passed(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Passed(body) => body.incoming.size_hint(),
        }
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        // A connection on which something is still to come is closed instead.
        if let Some(link) = self.link.take().filter(|_| self.ended || self.incoming.is_end_stream()) {
            self.live.target.give_back(link);
        }
    }
}

/// The body of a request on its way to a machine.
pub(crate) enum Sent {
    Empty,
    Passed(Box<Inbound>),
}

pub(crate) struct Inbound {
    incoming: Incoming,
    /// Bytes that may still come.
    left: u64,
    state: Arc<State>,
    activity: Arc<Activity>,
    outcome: Outcome,
    pace: Pace,
    /// Only once something had to be waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

/// Why the body of a request came to no good end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome(Arc<OnceLock<Refusal>>);

impl Outcome {
    pub fn get(&self) -> Option<Refusal> {
        self.0.get().copied()
    }
}

/// The body of a request came to no good end; see [`Outcome`].
#[derive(Debug, thiserror::Error)]
#[error("the body of the request came to no good end")]
pub(crate) struct Interrupted;

impl Sent {
    pub fn passed(
        incoming: Incoming,
        most: u64,
        limits: &Limits,
        state: Arc<State>,
        activity: Arc<Activity>,
        outcome: Outcome,
    ) -> Self {
        let pace = Pace::new(limits);
        Self::Passed(Box::new(Inbound { incoming, left: most, state, activity, outcome, pace, timer: None }))
    }
}

impl Inbound {
    fn end(&mut self, why: Refusal) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        let _ = self.outcome.0.set(why);
        Poll::Ready(Some(Err(Interrupted)))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(_))) => self.end(Refusal::Body),
            Poll::Ready(Some(Ok(mut frame))) => {
                self.activity.touch();
                let count = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.pace.came(count, Instant::now);
                self.state.bytes_in.fetch_add(count, Relaxed);
                let Some(left) = self.left.checked_sub(count) else { return self.end(Refusal::TooLarge) };
                self.left = left;
                if let Some(trailers) = frame.trailers_mut() {
                    rewrite_trailers(trailers);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => {
                let until = self.pace.wait(Instant::now);
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(Duration::ZERO)));
                if let Some(until) = until {
                    timer.as_mut().reset(until);
                }
                ready!(timer.as_mut().poll(cx));
                self.end(Refusal::Slow)
            }
        }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Interrupted>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Passed(body) => body.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Passed(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Passed(body) => body.incoming.size_hint(),
        }
    }
}
