//! Connections to machines, and what is kept of them between requests.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use warren_http::closing::LastWord;
use warren_http::request::once_more;
use warren_model::NetworkNumber;

use crate::body::Sent;
use crate::limits::{Limits, MAX_HEAD};
use crate::problem::Refusal;
use crate::snapshot::Site;

/// How long a connection may take after a response to be ready for the next request.
const SETTLE: Duration = Duration::from_secs(1);
/// A machine that kept a connection open for so many responses, and had the last one so recently, does not close it just
/// now; the next request over it need not be kept to be sent again.
const PROVEN: u64 = 3;
const RECENTLY: Duration = Duration::from_millis(500);

/// An open connection to a machine. What serves requests is better off with a socket that does not delay small writes.
pub trait Upstream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Upstream for T {}

/// Makes connections to machines.
pub trait Dial: Send + Sync {
    /// Connects to an address in a network. It may be dropped before it is done. [`io::ErrorKind::ResourceBusy`], at once,
    /// where there is no room for another connection.
    fn dial(&self, network: NetworkNumber, to: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Upstream>>>;

    /// The same, but where there is no room it is waited for, as long as makes sense.
    fn dial_patiently(
        &self,
        network: NetworkNumber,
        to: SocketAddr,
    ) -> BoxFuture<'static, io::Result<Box<dyn Upstream>>> {
        self.dial(network, to)
    }
}

/// Where the requests of a site go, with its connections.
pub(crate) struct Target {
    network: NetworkNumber,
    addresses: Arc<[SocketAddr]>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    closed: bool,
    /// The one that was used last comes last.
    spare: Vec<Spare>,
    most_spare: usize,
    next_task: u64,
    tasks: HashMap<u64, AbortHandle>,
    /// Whether they have ended.
    tracker: TaskTracker,
}

struct Spare {
    link: Link,
    since: Instant,
}

/// A connection that is in use. Dropping it closes it.
pub(crate) struct Link {
    sender: SendRequest<Sent>,
    /// Responses that came over it.
    served: u64,
    _driver: AbortOnDropHandle<()>,
}

/// A request that was sent if there was a connection for it.
pub(crate) enum Attempt {
    Sent {
        link: Link,
        /// In a box: requests hand this on, and are held in large numbers.
        response: BoxFuture<'static, Result<Response<Incoming>, TrySendError<Request<Sent>>>>,
        /// The same request, where it may be sent once more.
        again: Option<Box<Request<Sent>>>,
    },
    Unsent(Box<Request<Sent>>),
}

impl Target {
    pub fn new(site: &Site, limits: &Limits) -> Self {
        let addresses = site.addresses.iter().map(|address| SocketAddr::new(*address, site.port)).collect();
        let inner = Inner { most_spare: limits.upstream_spare, ..Inner::default() };
        Self { network: site.network, addresses, inner: Mutex::new(inner) }
    }

    /// Sends a request over a connection that is open already, where there is one.
    pub fn attempt(&self, request: Request<Sent>) -> Attempt {
        let Some(Spare { mut link, since }) = self.take_spare() else {
            return Attempt::Unsent(Box::new(request));
        };
        let proven = link.served >= PROVEN && since.elapsed() < RECENTLY;
        let again = if proven { None } else { repeatable(&request).map(Box::new) };
        let response = Box::pin(link.sender.try_send_request(request));
        Attempt::Sent { link, response, again }
    }

    /// Waits for the response; sends the request over a new connection, where there was no other or it was closed just
    /// then.
    pub async fn complete(
        self: &Arc<Self>,
        attempt: Attempt,
        dial: &Arc<dyn Dial>,
        limits: &Limits,
    ) -> Result<(Response<Incoming>, Link), Refusal> {
        let request = match attempt {
            Attempt::Unsent(request) => request,
            Attempt::Sent { mut link, response, again } => match response.await {
                Ok(response) => {
                    link.served += 1;
                    return Ok((response, link));
                }
                Err(mut error) => error.take_message().map(Box::new).or(again).ok_or(Refusal::Broken)?,
            },
        };
        // Seldom, and large.
        Box::pin(async {
            let mut link = self.connect(dial.clone(), limits.connect).await?;
            let response = link.sender.send_request(*request).await.map_err(|_| Refusal::Broken)?;
            link.served += 1;
            Ok((response, link))
        })
        .await
    }

    /// Keeps a connection whose response ended.
    pub fn give_back(self: &Arc<Self>, mut link: Link) {
        if link.sender.is_closed() {
            return;
        }
        if link.sender.is_ready() {
            let mut inner = self.lock();
            if !inner.closed && inner.spare.len() < inner.most_spare {
                inner.spare.push(Spare { link, since: Instant::now() });
            }
            return;
        }
        let target = self.clone();
        self.spawn(async move {
            if matches!(timeout(SETTLE, link.sender.ready()).await, Ok(Ok(()))) {
                target.give_back(link);
            }
        });
    }

    /// Runs a task that ends when the target is closed, if it is not yet.
    pub fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) -> Option<JoinHandle<()>> {
        let mut inner = self.lock();
        if inner.closed {
            return None;
        }
        let id = inner.next_task;
        inner.next_task += 1;
        let listed = Listed { target: Arc::downgrade(self), id };
        let task = tokio::spawn(inner.tracker.track_future(async move {
            let _listed = listed;
            work.await;
        }));
        inner.tasks.insert(id, task.abort_handle());
        Some(task)
    }

    /// Ends everything that is under way, for good. It has ended when what is returned is empty.
    pub fn close(&self) -> TaskTracker {
        self.end(true)
    }

    /// Ends everything that is under way; later requests make connections again. It has ended when what is returned is empty.
    pub fn cut(&self) -> TaskTracker {
        self.end(false)
    }

    fn end(&self, for_good: bool) -> TaskTracker {
        let mut inner = self.lock();
        inner.closed |= for_good;
        let (tasks, spare) = (std::mem::take(&mut inner.tasks), std::mem::take(&mut inner.spare));
        let tracker = std::mem::take(&mut inner.tracker);
        drop(inner);
        tasks.into_values().for_each(|task| task.abort());
        drop(spare);
        tracker.close();
        tracker
    }

    /// Since when the connection has been unused that has been so the longest.
    pub fn oldest_spare(&self) -> Option<Instant> {
        self.lock().spare.first().map(|spare| spare.since)
    }

    /// Closes the connection that has been unused the longest, if there is one.
    pub fn give_up_spare(&self) -> bool {
        let mut inner = self.lock();
        let open = inner.spare.iter().position(|spare| !spare.link.sender.is_closed());
        let given_up = open.map(|open| inner.spare.remove(open));
        drop(inner);
        given_up.is_some()
    }

    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Closes connections that were not used for so long.
    pub fn sweep(&self, idle: Duration) {
        let mut old = Vec::new();
        let mut inner = self.lock();
        let unused = inner.spare.partition_point(|spare| spare.since.elapsed() > idle);
        old.extend(inner.spare.drain(..unused));
        let (open, closed) =
            std::mem::take(&mut inner.spare).into_iter().partition(|spare| !spare.link.sender.is_closed());
        inner.spare = open;
        old.extend::<Vec<_>>(closed);
        drop(inner);
    }

    fn take_spare(&self) -> Option<Spare> {
        let mut inner = self.lock();
        loop {
            let spare = inner.spare.pop()?;
            if spare.link.sender.is_ready() {
                return Some(spare);
            }
        }
    }

    async fn connect(self: &Arc<Self>, dial: Arc<dyn Dial>, patience: Duration) -> Result<Link, Refusal> {
        let (told, connected) = oneshot::channel();
        let (network, addresses) = (self.network, self.addresses.clone());
        let driver = self.spawn(async move {
            let stream = match reach(&*dial, network, &addresses, patience).await {
                Ok(stream) => stream,
                Err(refusal) => return drop(told.send(Err(refusal))),
            };
            let io = TokioIo::new(LastWord::new(stream));
            let handshake = http1::Builder::new().max_buf_size(MAX_HEAD).handshake::<_, Sent>(io).await;
            match handshake {
                Ok((sender, connection)) => {
                    if told.send(Ok(sender)).is_ok() {
                        // How it ended shows in the responses.
                        let _ = connection.with_upgrades().await;
                    }
                }
                Err(_) => drop(told.send(Err(Refusal::Broken))),
            }
        });
        let driver = AbortOnDropHandle::new(driver.ok_or(Refusal::Unknown)?);
        let sender = connected.await.map_err(|_| Refusal::Unreachable)??;
        Ok(Link { sender, served: 0, _driver: driver })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task in the list of its target, until it is dropped.
struct Listed {
    target: Weak<Target>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        if let Some(target) = self.target.upgrade() {
            target.lock().tasks.remove(&self.id);
        }
    }
}

async fn reach(
    dial: &dyn Dial,
    network: NetworkNumber,
    addresses: &[SocketAddr],
    patience: Duration,
) -> Result<Box<dyn Upstream>, Refusal> {
    let mut refusal = Refusal::Unreachable;
    for address in addresses {
        match timeout(patience, dial.dial(network, *address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => refusal = Refusal::Late,
            // There is no more room for connections to the network, whatever the address.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ResourceBusy => return Err(Refusal::Busy),
            Ok(Err(_)) => {}
            Err(_) => refusal = Refusal::Late,
        }
    }
    Err(refusal)
}

fn repeatable(request: &Request<Sent>) -> Option<Request<Sent>> {
    if matches!(request.body(), Sent::Empty) { once_more(request, Sent::Empty) } else { None }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// Makes one connection.
    struct Once(Mutex<Option<DuplexStream>>);

    impl Dial for Once {
        fn dial(&self, _: NetworkNumber, _: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Upstream>>> {
            let stream = self.0.lock().unwrap().take().ok_or(io::ErrorKind::ConnectionRefused.into());
            Box::pin(async { stream.map(|stream| Box::new(stream) as Box<dyn Upstream>) })
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_not_ready_yet_is_kept_when_it_is() {
        let (near, mut machine) = duplex(4096);
        let dial: Arc<dyn Dial> = Arc::new(Once(Mutex::new(Some(near))));
        let target = Arc::new(Target {
            network: NetworkNumber::new(1).unwrap(),
            addresses: [SocketAddr::from(([10, 0, 1, 2], 80))].into(),
            inner: Mutex::new(Inner { most_spare: 1, ..Inner::default() }),
        });
        let answer = async {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(machine.read_u8().await.unwrap());
            }
            machine.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await.unwrap();
        };
        let limits = Limits::default();
        let attempt = target.attempt(Request::new(Sent::Empty));
        let (sent, ()) = tokio::join!(target.complete(attempt, &dial, &limits), answer);
        let (mut response, link) = sent.unwrap();
        target.give_back(link);
        assert!(target.take_spare().is_none(), "a response is still under way on it");
        machine.write_all(b"cd").await.unwrap();
        while response.body_mut().frame().await.is_some() {}
        let kept = async {
            while target.take_spare().is_none() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SETTLE, kept).await.expect("it is kept for the next request");
    }
}
