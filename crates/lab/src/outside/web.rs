//! HTTP/1.1 as plainly as it can be served: every byte is written down, and what a strict server would refuse is
//! answered, so that a request which should not have come is seen.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use futures::{SinkExt as _, StreamExt as _};

use super::log::{Log, Seen};

const TICK: Duration = Duration::from_millis(20);

/// One connection as the outside sees it.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) log: Arc<Log>,
    pub(crate) to: SocketAddr,
    pub(crate) from: SocketAddr,
    pub(crate) server_name: Option<String>,
}

impl Connection {
    pub(crate) fn heard(&self, bytes: &[u8]) {
        self.log.add(Seen::Data { to: self.to, from: self.from, bytes: bytes.to_vec() });
    }

    pub(crate) fn requested(&self, head: String) {
        let (to, from, server_name) = (self.to, self.from, self.server_name.clone());
        self.log.add(Seen::Request { to, from, server_name, head });
    }

    pub(crate) fn closed(&self) {
        self.log.add(Seen::Closed { to: self.to, from: self.from });
    }

    /// What the answer to an ordinary request says: which address was asked, and for which host.
    pub(crate) fn page(&self, host: &str, path: &str) -> String {
        format!("{} {host} {path}\n", self.to.ip().to_canonical())
    }
}

/// The bytes of a download, each following from its place.
pub(crate) fn pattern(from: u64, length: usize) -> Vec<u8> {
    let byte = |place: u64| (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (from..).take(length).map(byte).collect()
}

/// Answers requests until the connection ends.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, connection: &Connection) -> Option<()> {
    let mut waiting = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = waiting.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            read_more(&mut stream, connection, &mut waiting).await?;
        };
        let head = String::from_utf8_lossy(&waiting[..end]).into_owned();
        waiting.drain(..end);
        connection.requested(head.clone());
        if header(&head, "transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            while !waiting.windows(5).any(|window| window == b"0\r\n\r\n") {
                read_more(&mut stream, connection, &mut waiting).await?;
            }
            let end = waiting.windows(5).position(|window| window == b"0\r\n\r\n")? + 5;
            waiting.drain(..end);
        } else if let Some(length) = header(&head, "content-length").and_then(|value| value.parse::<usize>().ok()) {
            while waiting.len() < length {
                read_more(&mut stream, connection, &mut waiting).await?;
            }
            waiting.drain(..length);
        }
        let target = head.split_whitespace().nth(1).unwrap_or("/").to_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let parameter = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default().to_owned()
        };
        match path {
            "/redirect" => {
                let answer =
                    format!("HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", parameter("to"));
                stream.write_all(answer.as_bytes()).await.ok()?;
            }
            "/bytes" => {
                let count = parameter("count").parse().unwrap_or(0);
                download(&mut stream, count, parameter("rate").parse().unwrap_or(u64::MAX)).await?;
            }
            "/ticks" => return ticks(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await,
            "/ws" => {
                let key = derive_accept_key(header(&head, "sec-websocket-key").unwrap_or_default().as_bytes());
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: {key}\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).await.ok()?;
                return echo_messages(stream, connection).await;
            }
            _ => {
                let body = connection.page(&header(&head, "host").unwrap_or_default(), &target);
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.ok()?;
            }
        }
        stream.flush().await.ok()?;
    }
}

/// A line every 20 ms for as long as somebody takes it.
pub(crate) async fn ticks<S: AsyncWrite + Unpin>(mut stream: S, head: &str) -> Option<()> {
    stream.write_all(head.as_bytes()).await.ok()?;
    for number in 0u64.. {
        stream.write_all(format!("tick {number}\n").as_bytes()).await.ok()?;
        stream.flush().await.ok()?;
        tokio::time::sleep(TICK).await;
    }
    None
}

/// The value of a header of HTTP/1.1, the first one of that name.
fn header(head: &str, name: &str) -> Option<String> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

async fn read_more<S: AsyncRead + Unpin>(stream: &mut S, connection: &Connection, waiting: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 16_384];
    let length = stream.read(&mut buffer).await.ok().filter(|length| *length > 0)?;
    connection.heard(&buffer[..length]);
    waiting.extend_from_slice(&buffer[..length]);
    Some(())
}

/// `rate` is in bytes a second.
async fn download<S: AsyncWrite + Unpin>(stream: &mut S, count: u64, rate: u64) -> Option<()> {
    const PIECE: u64 = 32_768;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {count}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    let start = tokio::time::Instant::now();
    let mut sent = 0;
    while sent < count {
        let length = PIECE.min(count - sent);
        stream.write_all(&pattern(sent, length as usize)).await.ok()?;
        stream.flush().await.ok()?;
        sent += length;
        if rate < u64::MAX {
            tokio::time::sleep_until(start + Duration::from_secs_f64(sent as f64 / rate as f64)).await;
        }
    }
    Some(())
}

async fn echo_messages<S: AsyncRead + AsyncWrite + Unpin>(stream: S, connection: &Connection) -> Option<()> {
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    while let Some(message) = socket.next().await {
        let message = message.ok()?;
        if message.is_text() || message.is_binary() {
            connection.heard(&message.clone().into_data());
            socket.send(message).await.ok()?;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_is_the_same_in_whatever_pieces() {
        assert_eq!(pattern(0, 100), [pattern(0, 40), pattern(40, 60)].concat());
    }

    #[test]
    fn headers_are_found_whatever_their_case() {
        assert_eq!(header("GET / HTTP/1.1\r\nHOST: a.example\r\n\r\n", "host").unwrap(), "a.example");
    }
}
