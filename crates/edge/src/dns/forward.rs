//! Asking the resolvers outside, for networks whose machines may look up more than their own names.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode as UpstreamCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use crate::dns::answer::{self, Outcome, prohibited};
use crate::dns::network::Network;
use crate::dns::stats::QueryCounters;
use crate::dns::upstream::{self, Said};
use crate::dns::wire::{ExtendedError, MAX_UDP, Query, ResponseCode, extended_error};

/// All of one question's time: below the five seconds after which the resolvers of libc ask again.
const DEADLINE: Duration = Duration::from_millis(4500);
/// How long one resolver may take over UDP before the next is asked.
const TRY: Duration = Duration::from_millis(1400);
/// How often all the resolvers are tried.
const ROUNDS: usize = 2;
/// How many messages that are not the answer are read before a resolver is given up: someone is guessing.
const STRANGERS: usize = 32;

/// Answers a question that [`answer::respond`] said to forward; `None` when there is nothing to send.
pub(crate) async fn answer(network: Arc<Network>, source: IpAddr, packet: Vec<u8>, udp: bool) -> Option<Vec<u8>> {
    let query = Query::parse(&packet).ok()?;
    let mut counted = QueryCounters::default();
    let result = look_up(&network, source, &query).await;
    let mut buffer = vec![0; MAX_UDP];
    // What is allowed may have changed while the question was under way.
    let now = network.zone.load_full();
    if let Outcome::Reply { length, kind } = answer::respond(&now, &packet, &mut buffer, udp) {
        counted.count(kind);
        network.stats.add(&counted);
        buffer.truncate(length);
        return Some(buffer);
    }
    let (code, error) = match result {
        Ok(message) => match upstream::first_not_global(&message) {
            None => {
                counted.forwarded += 1;
                network.stats.add(&counted);
                let limit = if udp { query.head.udp_limit() } else { usize::from(u16::MAX) };
                return upstream::relay(&query.head, &message, limit);
            }
            Some(address) => {
                counted.prohibited += 1;
                let text = format!("{} leads to {address}, which is not a public address", query.name);
                (ResponseCode::NxDomain, prohibited(text))
            }
        },
        Err(error) => {
            counted.failed += 1;
            (ResponseCode::ServFail, error.explain(&query))
        }
    };
    network.stats.add(&counted);
    let length = answer::refuse(&query.head, &mut buffer, udp, code, error);
    buffer.truncate(length);
    (length > 0).then_some(buffer)
}

/// Why no resolver outside answered.
#[derive(Debug, thiserror::Error)]
enum LookUpError {
    #[error("too many questions of this network are being looked up at the same time")]
    Busy,
    #[error("no resolver answered in time")]
    Silent,
    #[error("the resolvers answered {0}")]
    Failure(UpstreamCode),
    #[error("the resolvers could not be reached: {0}")]
    Network(#[source] io::Error),
}

impl LookUpError {
    fn explain(&self, query: &Query<'_>) -> ExtendedError {
        let code = match self {
            Self::Busy => 0,
            Self::Silent | Self::Failure(_) => extended_error::NO_REACHABLE_AUTHORITY,
            Self::Network(_) => extended_error::NETWORK_ERROR,
        };
        ExtendedError { code, text: format!("{}: {self}", query.name) }
    }
}

async fn look_up(network: &Network, source: IpAddr, query: &Query<'_>) -> Result<Box<Message>, LookUpError> {
    let _slot = network.lookups.take(source).ok_or(LookUpError::Busy)?;
    let _place = network.shared.lookups.try_acquire().map_err(|_| LookUpError::Busy)?;
    let resolvers = network.zone.load().forward.clone();
    let deadline = Instant::now() + DEADLINE;
    let mut error = LookUpError::Silent;
    for resolver in std::iter::repeat_n(&*resolvers, ROUNDS).flatten() {
        match timeout_at(deadline, ask(*resolver, query.head.question)).await {
            Ok(Ok(message)) => return Ok(message),
            Ok(Err(failed)) => error = failed,
            Err(_) => break,
        }
    }
    Err(error)
}

async fn ask(resolver: SocketAddr, question: &[u8]) -> Result<Box<Message>, LookUpError> {
    let said = match timeout(TRY, ask_udp(resolver, question)).await {
        Ok(said) => said.map_err(LookUpError::Network)?,
        Err(_) => return Err(LookUpError::Silent),
    };
    let said = match said {
        // Also what to do when strangers guess: a TCP connection cannot be answered from off the path.
        Said::Truncated | Said::Nothing => match timeout(TRY, ask_tcp(resolver, question)).await {
            Ok(said) => said.map_err(LookUpError::Network)?,
            Err(_) => return Err(LookUpError::Silent),
        },
        said => said,
    };
    match said {
        Said::Answer(message) => Ok(message),
        Said::Failure(code) => Err(LookUpError::Failure(code)),
        Said::Truncated | Said::Nothing => Err(LookUpError::Silent),
    }
}

/// Asks from a socket, and so from a source port, of its own (RFC 5452 §9.2).
async fn ask_udp(resolver: SocketAddr, question: &[u8]) -> io::Result<Said> {
    let any: IpAddr = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    // Connected, the socket takes messages from this resolver only.
    socket.connect(resolver).await?;
    let id = random_id()?;
    socket.send(&upstream::ask(id, question)).await?;
    let mut buffer = [0; MAX_UDP + 1];
    for _ in 0..STRANGERS {
        let length = socket.recv(&mut buffer).await?;
        match upstream::read(id, question, &buffer[..length.min(MAX_UDP)]) {
            Said::Nothing => {}
            said => return Ok(said),
        }
    }
    Ok(Said::Nothing)
}

async fn ask_tcp(resolver: SocketAddr, question: &[u8]) -> io::Result<Said> {
    let mut stream = TcpStream::connect(resolver).await?;
    let id = random_id()?;
    let message = upstream::ask(id, question);
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend((message.len() as u16).to_be_bytes());
    framed.extend(message);
    stream.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(upstream::read(id, question, &answer))
}

fn random_id() -> io::Result<u16> {
    Ok(getrandom::u32()? as u16)
}
