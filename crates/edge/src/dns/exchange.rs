//! One question, asked of one resolver outside.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode as UpstreamCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use crate::dns::upstream::{self, Said};
use crate::dns::wire::MAX_UDP;

/// All of one question's time: below the five seconds after which the resolvers of libc ask again.
const DEADLINE: Duration = Duration::from_millis(4500);
/// How long one resolver may take over UDP before the next is asked.
const TRY: Duration = Duration::from_millis(1400);
/// How often all the resolvers are tried.
const ROUNDS: usize = 2;
/// How many messages that are not the answer are read before a resolver is given up: someone is guessing.
const STRANGERS: usize = 32;

/// Why no resolver outside answered.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum AskError {
    #[error("no resolver answered in time")]
    Silent,
    #[error("the resolvers answered {0}")]
    Failure(UpstreamCode),
    #[error("the resolvers could not be reached: {0}")]
    Network(io::ErrorKind),
}

/// Asks the resolvers one after the other until one answers. `question`: name, type and class in wire form.
pub(crate) async fn ask(resolvers: &[SocketAddr], question: &[u8]) -> Result<Box<Message>, AskError> {
    let deadline = Instant::now() + DEADLINE;
    let mut error = AskError::Silent;
    for resolver in std::iter::repeat_n(resolvers, ROUNDS).flatten() {
        match timeout_at(deadline, ask_one(*resolver, question)).await {
            Ok(Ok(message)) => return Ok(message),
            Ok(Err(failed)) => error = failed,
            Err(_) => break,
        }
    }
    Err(error)
}

async fn ask_one(resolver: SocketAddr, question: &[u8]) -> Result<Box<Message>, AskError> {
    let network = |error: io::Error| AskError::Network(error.kind());
    let said = match timeout(TRY, ask_udp(resolver, question)).await {
        Ok(said) => said.map_err(network)?,
        Err(_) => return Err(AskError::Silent),
    };
    let said = match said {
        // Also what to do when strangers guess: a TCP connection cannot be answered from off the path.
        Said::Truncated | Said::Nothing => match timeout(TRY, ask_tcp(resolver, question)).await {
            Ok(said) => said.map_err(network)?,
            Err(_) => return Err(AskError::Silent),
        },
        said => said,
    };
    match said {
        Said::Answer(message) => Ok(message),
        Said::Failure(code) => Err(AskError::Failure(code)),
        Said::Truncated | Said::Nothing => Err(AskError::Silent),
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
