//! A connection to a server that HTTP is spoken over.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Either, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use warren_http::closing::LastWord;
use warren_http::request::once_more;
use warren_model::policy::HostName;

use crate::proxy::conn::{Conn, Shared};
use crate::proxy::gate::{Gate, Passage};
use crate::proxy::way::{Ahead, Connected, NoWay, Way};

/// The most that is buffered of a message's headers, in bytes, and how many there may be.
pub(crate) const MAX_HEAD: usize = 64 << 10;
pub(crate) const MAX_HEADERS: usize = 100;

/// A request's body on its way out.
pub(crate) type Outgoing = Either<Incoming, Empty<Bytes>>;

/// An open connection to the server of a name.
pub(crate) struct Upstream {
    host: HostName,
    port: u16,
    sender: SendRequest<Outgoing>,
    pub passage: Arc<dyn Passage>,
    _driver: AbortOnDropHandle<()>,
}

impl Upstream {
    /// Connects. When the connection is revoked, `cut` is cancelled.
    pub async fn reach<G: Gate>(way: &Way<G>, shared: Arc<Shared>, cut: CancellationToken) -> Result<Self, NoWay> {
        let Connected { stream, passage } = way.connect(Ahead::Nothing).await?;
        let io = TokioIo::new(LastWord::new(Conn::server(stream, shared.clone(), passage.clone())));
        let handshake = http1::Builder::new()
            .preserve_header_case(true)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .handshake::<_, Outgoing>(io)
            .await;
        let (sender, connection) = handshake.map_err(|error| way.broken(&error))?;
        let held = passage.clone();
        let driver = tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection.with_upgrades());
            tokio::select! {
                biased;
                () = held.revoked().cancelled() => {
                    shared.reset.store(true, Relaxed);
                    cut.cancel();
                }
                // How it ended shows in the responses.
                _ = &mut connection => {}
            }
        });
        let driver = AbortOnDropHandle::new(driver);
        Ok(Self { host: way.host.clone(), port: way.port, sender, passage, _driver: driver })
    }

    /// Sends a request over `held`, or over a new connection where that is none, or one to somebody else, or was closed
    /// by the server in between.
    pub async fn send<G: Gate>(
        held: &mut Option<Self>,
        way: &Way<G>,
        request: Request<Incoming>,
        shared: &Arc<Shared>,
        cut: &CancellationToken,
    ) -> Result<Response<Incoming>, NoWay> {
        let mut request = request.map(Either::Left);
        if let Some(open) = held.as_mut().filter(|open| open.host == way.host && open.port == way.port)
            && open.sender.ready().await.is_ok()
        {
            let again = repeatable(&request);
            match open.sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut error) => match error.take_message().or(again) {
                    Some(unsent) => request = unsent,
                    None => {
                        // What it was still to be sent goes nowhere.
                        *held = None;
                        return Err(way.broken(error.error()));
                    }
                },
            }
        }
        // The old connection ends before the new one begins.
        *held = None;
        let open = held.insert(Self::reach(way, shared.clone(), cut.clone()).await?);
        match open.sender.send_request(request).await {
            Ok(response) => Ok(response),
            Err(error) => {
                *held = None;
                Err(way.broken(&error))
            }
        }
    }
}

fn repeatable(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    if request.body().is_end_stream() { once_more(request, Either::Right(Empty::new())) } else { None }
}
