//! WebSockets, once both sides have agreed on one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::try_join;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::timeout;

use crate::activity::Activity;
use crate::client::Client;
use crate::counters::{Flight, State};
use crate::upstream::{Link, Target};

/// How long both sides may take to have switched.
const SWITCH: Duration = Duration::from_secs(10);

/// Both ends of what is to be a WebSocket, with what it holds on to until it ends.
pub(crate) struct Tunnel {
    pub to_client: OnUpgrade,
    pub to_machine: OnUpgrade,
    pub link: Link,
    pub client: Arc<Client>,
    pub flight: Flight,
    pub idle: Duration,
}

impl Tunnel {
    /// Carries it, in a task that ends with the target.
    pub fn carry(self, target: &Arc<Target>) {
        target.spawn(self.run());
    }

    async fn run(self) {
        let Self { to_client, to_machine, link, client, flight, idle } = self;
        let Ok(Ok((client_side, machine_side))) = timeout(SWITCH, try_join(to_client, to_machine)).await else {
            return;
        };
        let activity = Activity::new(idle);
        let state = flight.state();
        let mut client_side = Metered::new(client_side, state, |state| &state.bytes_in, &activity);
        let mut machine_side = Metered::new(machine_side, state, |state| &state.bytes_out, &activity);
        tokio::select! {
            // How it ended concerns only the two.
            _ = copy_bidirectional(&mut client_side, &mut machine_side) => {}
            () = activity.stopped() => {}
        }
        drop((link, client));
    }
}

/// Counts what is read.
struct Metered<'a> {
    io: TokioIo<Upgraded>,
    count: &'a AtomicU64,
    activity: &'a Activity,
}

impl<'a> Metered<'a> {
    fn new(io: Upgraded, state: &'a State, count: fn(&State) -> &AtomicU64, activity: &'a Activity) -> Self {
        Self { io: TokioIo::new(io), count: count(state), activity }
    }
}

impl AsyncRead for Metered<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        self.count.fetch_add((buffer.filled().len() - before) as u64, Relaxed);
        self.activity.touch();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
