//! The streams of a connection of HTTP/2: each in a task of its own, as long as something moves on it.
//!
//! One look at all of them now and then takes the place of timers for each, which are much of what a short request costs.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use hyper::rt::Executor;

use crate::activity::{Activity, Rest, Verdict};

/// Runs them, and looks after them. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Streams {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    open: AtomicUsize,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    /// That of the request which the library is about to run.
    next: Option<Arc<Activity>>,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
}

struct Entry {
    activity: Arc<Activity>,
    rest: Rest,
    stopped: bool,
    waker: Option<Waker>,
}

impl Streams {
    /// What moves on the stream of a request that has just come. The library runs it next.
    pub fn begin(&self, patience: Duration) -> Arc<Activity> {
        let activity = Arc::new(Activity::new(patience));
        self.lock().next = Some(activity.clone());
        activity
    }

    /// How many there are.
    pub fn open(&self) -> usize {
        self.inner.open.load(Relaxed)
    }

    /// Looks at all, so long after the last time, and ends those on which nothing moves.
    pub fn look(&self, passed: Duration) {
        let mut woken = Vec::new();
        for entry in self.lock().entries.iter_mut().flatten() {
            match entry.activity.look(&mut entry.rest, passed) {
                Verdict::GoesOn => continue,
                Verdict::Late => entry.rest = Rest::default(),
                Verdict::Stopped => entry.stopped = true,
            }
            woken.extend(entry.waker.clone());
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Looks after them until it is dropped, and ends what is left then: the connection is gone.
    pub fn guard(&self) -> Guard {
        Guard(self.clone())
    }

    fn end(&self) {
        let mut woken = Vec::new();
        for entry in self.lock().entries.iter_mut().flatten() {
            entry.stopped = true;
            woken.extend(entry.waker.clone());
        }
        woken.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.inner.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> Option<Place> {
        let mut watched = self.lock();
        let activity = watched.next.take()?;
        let entry = Some(Entry { activity, rest: Rest::default(), stopped: false, waker: None });
        let index = match watched.free.pop() {
            Some(index) => {
                watched.entries[index] = entry;
                index
            }
            None => {
                watched.entries.push(entry);
                watched.entries.len() - 1
            }
        };
        self.inner.open.fetch_add(1, Relaxed);
        Some(Place { streams: self.clone(), index })
    }
}

/// See [`Streams::guard`].
pub(crate) struct Guard(Streams);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A stream that is watched, until it is dropped.
struct Place {
    streams: Streams,
    index: usize,
}

impl Place {
    /// Whether the stream may go on. Remembers whom to wake when it may not, once.
    fn goes_on(&self, waker: &Waker) -> bool {
        let mut watched = self.streams.lock();
        let Some(entry) = watched.entries[self.index].as_mut() else { return false };
        if entry.waker.is_none() {
            // A task has the same waker all its life.
            entry.waker = Some(waker.clone());
        }
        !entry.stopped
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut watched = self.streams.lock();
        watched.entries[self.index] = None;
        watched.free.push(self.index);
        drop(watched);
        self.streams.inner.open.fetch_sub(1, Relaxed);
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let place = self.enter();
        // A large future is moved once, and not at every step on the way into its task.
        let mut stream = Box::pin(stream);
        tokio::spawn(async move {
            poll_fn(|cx| {
                if place.as_ref().is_some_and(|place| !place.goes_on(cx.waker())) {
                    return Poll::Ready(());
                }
                stream.as_mut().poll(cx)
            })
            .await;
        });
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::task::yield_now;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_stream_on_which_nothing_moves_is_ended_and_its_neighbour_is_not() {
        let streams = Streams::default();
        let still = streams.begin(3 * SECOND);
        streams.execute(pending());
        let lively = streams.begin(3 * SECOND);
        streams.execute(pending());
        yield_now().await;
        for _ in 0..3 {
            streams.look(SECOND);
            lively.touch();
            yield_now().await;
            assert_eq!(streams.open(), 2, "the first look only remembers");
        }
        streams.look(SECOND);
        yield_now().await;
        assert_eq!(streams.open(), 1);
        assert_eq!((Arc::strong_count(&still), Arc::strong_count(&lively)), (1, 2));
    }

    #[tokio::test]
    async fn who_waits_for_an_answer_is_told_that_it_is_late_and_goes_on() {
        let streams = Streams::default();
        let activity = streams.begin(SECOND);
        streams.execute(async move {
            let waiting = activity.wait();
            poll_fn(|_| if waiting.is_late() { Poll::Ready(()) } else { Poll::Pending }).await;
            drop(waiting);
            pending::<()>().await;
        });
        yield_now().await;
        let looks = |count| {
            let streams = streams.clone();
            async move {
                for _ in 0..count {
                    streams.look(SECOND);
                    yield_now().await;
                }
                streams.open()
            }
        };
        assert_eq!(looks(3).await, 1, "what follows has its whole time");
        assert_eq!(looks(2).await, 0);
    }

    #[tokio::test]
    async fn no_stream_outlives_its_connection() {
        let streams = Streams::default();
        let guard = streams.guard();
        for _ in 0..2 {
            streams.begin(SECOND);
            streams.execute(pending());
        }
        yield_now().await;
        // One that did not run yet ends, too.
        streams.begin(SECOND);
        streams.execute(pending());
        drop(guard);
        yield_now().await;
        assert_eq!(streams.open(), 0);
    }

    #[tokio::test]
    async fn places_are_used_again() {
        let streams = Streams::default();
        for _ in 0..100 {
            streams.begin(SECOND);
            streams.execute(async {});
            yield_now().await;
        }
        assert_eq!((streams.open(), streams.lock().entries.len()), (0, 1));
    }
}
