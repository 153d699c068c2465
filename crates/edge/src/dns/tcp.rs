//! DNS over TCP (RFC 7766): questions of one connection are answered one after the other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::dns::answer::Outcome;
use crate::dns::stats::QueryCounters;
use crate::dns::wire::MAX_UDP;
use crate::dns::{forward, listed};
use crate::network::Network;

/// How long a connection may wait for a question, or for its answer to be taken.
const IDLE: Duration = Duration::from_secs(10);
/// How long a question may take from its first byte to its last.
const SLOW: Duration = Duration::from_secs(3);
/// The longest question, in bytes.
const MAX_QUESTION: usize = 4096;

pub(crate) async fn serve(network: Arc<Network>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                let network = network.clone();
                // Without a slot the connection is closed: the client asks again or over UDP.
                let Some(slot) = network.connections.take(peer.ip()) else { continue };
                connections.spawn(async move {
                    let Ok(_place) = network.shared.connections.try_acquire() else { return };
                    let _slot = slot;
                    // A broken connection concerns nobody but the client.
                    let _ = converse(&network, stream, peer.ip()).await;
                });
            }
            Err(error) => {
                tracing::warn!(network = %network.number, %error, "a DNS connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(network: &Arc<Network>, stream: TcpStream, source: std::net::IpAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(MAX_QUESTION, stream);
    let mut buffer = [0; MAX_UDP];
    loop {
        let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
        if length > MAX_QUESTION {
            return Ok(());
        }
        let mut packet = vec![0; length];
        timeout(SLOW, stream.read_exact(&mut packet)).await??;
        let mut counted = QueryCounters { received: 1, ..Default::default() };
        let outcome = {
            let (zone, outside) = (network.zone.load(), network.outside.load());
            listed::respond(network, (&zone, &outside), source, &packet, &mut buffer, false)
        };
        let local = match outcome {
            Outcome::Reply { length, kind } => {
                counted.count(kind);
                Some(buffer[..length].to_vec())
            }
            Outcome::Forward | Outcome::Outside => None,
            Outcome::Ignore => {
                counted.malformed += 1;
                network.stats.add(&counted);
                return Ok(());
            }
        };
        network.stats.add(&counted);
        let answer = match local {
            Some(answer) => Some(answer),
            None => forward::answer(network.clone(), source, packet, false).await,
        };
        let Some(answer) = answer else { return Ok(()) };
        let mut framed = Vec::with_capacity(answer.len() + 2);
        framed.extend((answer.len() as u16).to_be_bytes());
        framed.extend(answer);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
