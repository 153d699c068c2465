//! The listeners: who connects, and to what.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use warren_model::denial::Layer;
use warren_model::policy::RuleId;

use crate::proxy::carry::carry;
use crate::proxy::copy::{Side, reset};
use crate::proxy::gate::{Gate, Limits, Refusal};
use crate::proxy::http::{self, Destination, Tunnel};
use crate::proxy::way::{Ahead, Proxy, Way};

/// Serves connections to synthetic addresses until it is dropped, with all of them. The local address of a connection
/// is the one that the member dialled.
pub(crate) async fn serve_transparent<G: Gate>(gate: Arc<G>, listener: TcpListener) {
    transparent(gate, listener, Limits::ORDINARY).await;
}

/// Serves the proxy on the gateway until it is dropped, with all its connections.
pub(crate) async fn serve_explicit<G: Gate>(gate: Arc<G>, listener: TcpListener) {
    explicit(gate, listener, Limits::ORDINARY).await;
}

pub(super) async fn transparent<G: Gate>(gate: Arc<G>, listener: TcpListener, limits: Limits) {
    accept(gate, listener, limits, attend_transparent).await;
}

pub(super) async fn explicit<G: Gate>(gate: Arc<G>, listener: TcpListener, limits: Limits) {
    accept(gate, listener, limits, attend_explicit).await;
}

async fn accept<G, F, A>(gate: Arc<G>, listener: TcpListener, limits: Limits, attend: A)
where
    G: Gate,
    A: Fn(Arc<Proxy<G>>, Accepted) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let proxy = Arc::new(Proxy { gate, limits });
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                // A connection that is gone already concerns nobody.
                let (Ok(()), Ok(to)) = (stream.set_nodelay(true), stream.local_addr()) else { continue };
                let accepted = Accepted { to, source: peer, stream };
                let Some(place) = proxy.gate.place(peer.ip().to_canonical()) else {
                    refuse_full(&proxy, accepted);
                    continue;
                };
                let attended = attend(proxy.clone(), accepted);
                connections.spawn(async move {
                    let _place = place;
                    attended.await;
                });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "a proxied connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

struct Accepted {
    stream: TcpStream,
    source: SocketAddr,
    to: SocketAddr,
}

fn refuse_full<G: Gate>(proxy: &Proxy<G>, accepted: Accepted) {
    let (source, to) = (accepted.source.ip().to_canonical(), accepted.to.ip().to_canonical());
    proxy.gate.refuse(Refusal {
        source,
        to: Some(to),
        name: proxy.gate.name_of(source, to).map(|host| host.to_string()),
        port: Some(accepted.to.port()),
        layer: Layer::Tcp,
        rule: Some(RuleId::builtin("connection-limit")),
        reason: "too many connections by name are open: close some, or try again later".to_owned(),
    });
    reset(&accepted.stream);
}

async fn attend_transparent<G: Gate>(proxy: Arc<Proxy<G>>, Accepted { stream, source, to }: Accepted) {
    let (source, address, port) = (source.ip().to_canonical(), to.ip().to_canonical(), to.port());
    let Some(host) = proxy.gate.name_of(source, address) else {
        proxy.gate.refuse(Refusal {
            source,
            to: Some(address),
            name: None,
            port: Some(port),
            layer: Layer::Tcp,
            rule: None,
            reason: format!("{address} stands for no name: ask the resolver for one first"),
        });
        return reset(&stream);
    };
    match Way::ask(proxy, source, Some(address), host, port, Layer::Tcp) {
        Ok(way) => carry(way, Side::new(stream), Ahead::Nothing).await,
        Err(_) => reset(&stream),
    }
}

async fn attend_explicit<G: Gate>(proxy: Arc<Proxy<G>>, Accepted { stream, source, .. }: Accepted) {
    let source = source.ip().to_canonical();
    let destination = Destination::Any { proxy: proxy.clone(), source };
    match http::serve(destination, Side::new(stream)).await {
        Some(Tunnel::Connect { client, way, ahead }) => {
            if let Some(client) = http::into_side(client).await {
                carry(way, client, ahead).await;
            }
        }
        Some(Tunnel::WebSocket { client, server, upstream }) => {
            http::carry_websocket(&proxy, client, server, upstream).await;
        }
        None => {}
    }
}
