//! Carrying a connection whose name is allowed: what is spoken on it is checked first, and as long as it can be seen.

use std::time::Duration;

use bytes::BufMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use warren_model::denial::Layer;
use warren_model::policy::Application;

use crate::proxy::copy::{End, Side, Watch, Watched, both_ways, reset};
use crate::proxy::gate::{Denied, Gate};
use crate::proxy::http::{self, Destination, Tunnel};
use crate::proxy::problem;
use crate::proxy::sniff::{First, first, without_empty_lines};
use crate::proxy::tls::{
    ACCESS_DENIED, AnswerReader, ClientHello, HelloReader, Hidden, MAX_HELLO, ServerName, Unreadable,
};
use crate::proxy::way::{Ahead, Connected, NoWay, Way};

/// How much is read at once before a connection is carried, in bytes.
const CHUNK: usize = 16 << 10;
/// What is read of a refused client so that it gets the refusal, in bytes.
const FAREWELL: u64 = 64 << 10;

/// Carries a connection of which nothing was answered yet.
pub(crate) async fn carry<G: Gate>(way: Way<G>, client: Side, ahead: Ahead) {
    match way.application {
        Application::Tls => carry_tls(&way, client, ahead, true).await,
        Application::Http => carry_http(way, client).await,
        Application::Tcp => carry_any(way, client, ahead).await,
    }
}

/// HTTP, or nothing.
async fn carry_http<G: Gate>(way: Way<G>, mut client: Side) {
    let deadline = Instant::now() + way.proxy.limits.request;
    loop {
        // They mean nothing to a server, and whoever sends nothing else must not make each look longer.
        let empty = client.ahead.len() - without_empty_lines(&client.ahead).len();
        client.ahead.drain(..empty);
        match first(&client.ahead) {
            First::Http1 => break,
            First::Http2 => return refuse_http2(&way, client).await,
            First::Likely | First::Unlikely if client.ahead.first() != Some(&22) => {
                match read_more(&mut client, deadline).await {
                    Read::Some => {}
                    // Who connects and says nothing was refused nothing.
                    Read::Closed | Read::TimedOut if client.ahead.is_empty() => return,
                    Read::Closed | Read::TimedOut => break,
                }
            }
            _ => {
                let (host, port) = (&way.host, way.port);
                let reason =
                    format!("rule {} lets HTTP to {host} on port {port} through, and this is not HTTP", way.rule);
                let denied = way.deny(Layer::Http, reason);
                return refuse(&way, client, &denied).await;
            }
        }
    }
    let proxy = way.proxy.clone();
    match http::serve(Destination::Fixed(way), client).await {
        Some(Tunnel::WebSocket { client, server, upstream }) => {
            http::carry_websocket(&proxy, client, server, upstream).await;
        }
        // A connection to a name never asks for another one.
        Some(Tunnel::Connect { .. }) | None => {}
    }
}

/// HTTP/2 without TLS: its requests cannot be checked here, and clients fall back to HTTP/1.1 when told so.
async fn refuse_http2<G: Gate>(way: &Way<G>, client: Side) {
    /// SETTINGS without settings, and GOAWAY with HTTP_1_1_REQUIRED (RFC 9113 §6.5, §6.8, §7).
    const HTTP_1_1_REQUIRED: [u8; 26] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13];
    let reason = format!("HTTP/2 without TLS to {} cannot be checked: use HTTP/1.1", way.host);
    way.deny(Layer::Http, reason);
    farewell(client.stream, &HTTP_1_1_REQUIRED, way.proxy.limits.farewell).await;
}

/// TLS to the rule's name. Where the rule is for TLS only (`strict`), a name has to be there.
async fn carry_tls<G: Gate>(way: &Way<G>, mut client: Side, ahead: Ahead, strict: bool) {
    let deadline = Instant::now() + way.proxy.limits.hello;
    let mut reader = HelloReader::new();
    let hello = match read_hello(&mut reader, &mut client, deadline).await {
        Ok(hello) => hello,
        Err(NoHello::Silent) => return client.reset(),
        Err(error) => {
            let (rule, host, port) = (&way.rule, &way.host, way.port);
            let reason = format!("rule {rule} lets TLS to {host} on port {port} through, and {error}");
            let denied = way.deny(Layer::Tls, reason);
            return refuse(way, client, &denied).await;
        }
    };
    if let Some(denied) = check_hello(way, &hello, strict) {
        return refuse(way, client, &denied).await;
    }
    // Whatever follows the message waits for the server's answer.
    let rest = client.ahead.split_off(reader.consumed());
    let hello_bytes = std::mem::replace(&mut client.ahead, rest);
    let Some(Connected { stream, passage }) = connect(way, &mut client, ahead).await else { return };
    let mut server = Side::new(stream);
    let handshake = tokio::select! {
        biased;
        () = passage.revoked().cancelled() => Err(Broken),
        result = async {
            server.stream.write_all(&hello_bytes).await?;
            passage.add_sent(hello_bytes.len() as u64);
            if !asks_again(&mut client.stream, &mut server.stream, |count| passage.add_received(count)).await? {
                return Ok(None);
            }
            second_hello(way, &hello, &mut client, strict).await
        } => result,
    };
    match handshake {
        Ok(None) => {
            both_ways(&mut client, &mut server, &*passage, way.proxy.limits.idle, None).await;
        }
        Ok(Some(_)) => {
            server.reset();
            farewell(client.stream, &ACCESS_DENIED, way.proxy.limits.farewell).await;
        }
        Err(Broken) => {
            client.reset();
            server.reset();
        }
    }
}

/// A socket failed or took too long.
struct Broken;

impl From<std::io::Error> for Broken {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

/// Passes the server's answer on as far as it takes to see whether it wants another ClientHello.
async fn asks_again(client: &mut TcpStream, server: &mut TcpStream, count: impl Fn(u64)) -> Result<bool, Broken> {
    /// How long a server may take to answer.
    const ANSWER: Duration = Duration::from_secs(60);
    let deadline = Instant::now() + ANSWER;
    let mut answer = AnswerReader::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = timeout_at(deadline, server.read(&mut buffer)).await.map_err(|_| Broken)??;
        if read == 0 {
            return Ok(false);
        }
        timeout_at(deadline, client.write_all(&buffer[..read])).await.map_err(|_| Broken)??;
        count(read as u64);
        if let Some(again) = answer.push(&buffer[..read]) {
            return Ok(again);
        }
    }
}

/// Reads the ClientHello that the server asked for. Without this check it could have another name.
async fn second_hello<G: Gate>(
    way: &Way<G>,
    before: &ClientHello,
    client: &mut Side,
    strict: bool,
) -> Result<Option<Denied>, Broken> {
    let deadline = Instant::now() + way.proxy.limits.hello;
    let mut reader = HelloReader::second(before.early_data);
    match read_hello(&mut reader, client, deadline).await {
        Ok(hello) => Ok(check_hello(way, &hello, strict)),
        // Often the client's alert: it does not want to go on.
        Err(_) => Err(Broken),
    }
}

/// Why there is no ClientHello.
#[derive(Debug, thiserror::Error)]
enum NoHello {
    #[error("nothing was said")]
    Silent,
    #[error("the ClientHello broke off")]
    BrokeOff,
    #[error("the ClientHello did not arrive in time")]
    TimedOut,
    #[error("{0}")]
    Unreadable(#[from] Unreadable),
}

/// Reads until the message is complete; what was read stays in `client.ahead`.
async fn read_hello(reader: &mut HelloReader, client: &mut Side, deadline: Instant) -> Result<ClientHello, NoHello> {
    let mut seen = 0;
    loop {
        if let Some(hello) = reader.push(&client.ahead[seen..])? {
            return Ok(hello);
        }
        seen = client.ahead.len();
        match read_more(client, deadline).await {
            Read::Some => {}
            Read::Closed if client.ahead.is_empty() => return Err(NoHello::Silent),
            Read::Closed => return Err(NoHello::BrokeOff),
            Read::TimedOut => return Err(NoHello::TimedOut),
        }
    }
}

/// Refuses a ClientHello that is not for the name, or that may hide one.
fn check_hello<G: Gate>(way: &Way<G>, hello: &ClientHello, strict: bool) -> Option<Denied> {
    let host = &way.host;
    match (&hello.server_name, hello.hidden) {
        (ServerName::Host(name), Hidden::No | Hidden::Outer) if name == host => None,
        (ServerName::Absent, Hidden::No) if !strict => None,
        (ServerName::Host(name), _) if name != host => {
            let reason = format!("the TLS server name is {name}, and the connection is to {host}");
            Some(way.deny_other(Layer::Tls, name.as_str(), reason))
        }
        (ServerName::Other(name), _) => {
            let reason = format!("the TLS server name {name:?} is no host name, and the connection is to {host}");
            Some(way.deny_other(Layer::Tls, name, reason))
        }
        (ServerName::Absent, Hidden::No) => {
            let reason = format!("the ClientHello has no server name; the connection to {host} needs it");
            Some(way.deny(Layer::Tls, reason))
        }
        (ServerName::Absent | ServerName::Host(_), _) => {
            let reason = format!("the ClientHello to {host} hides its server name");
            Some(way.deny(Layer::Tls, reason))
        }
    }
}

/// Any protocol. TLS and HTTP are recognized, and checked.
async fn carry_any<G: Gate>(way: Way<G>, mut client: Side, mut ahead: Ahead) {
    let limits = way.proxy.limits;
    let mut latest = Instant::now() + limits.hello;
    let watch = loop {
        let deadline = match first(&client.ahead) {
            First::Tls => return carry_tls(&way, client, ahead, false).await,
            First::Http1 | First::Http2 => {
                // Each request finds its own connection.
                drop(ahead);
                return carry_http(way, client).await;
            }
            First::Other => break None,
            First::Unlikely => break Some(watch_for_http(&client.ahead)),
            First::Likely if client.ahead.is_empty() => match listen(&way, &mut client, ahead).await {
                Heard::Client(kept) => {
                    ahead = kept;
                    latest = Instant::now() + limits.hello;
                    continue;
                }
                Heard::Server(connected) => return carry_on(&way, client, connected, None).await,
                Heard::Nobody => return,
            },
            First::Likely if client.ahead[0] == 22 => latest,
            First::Likely => latest.min(Instant::now() + limits.rest),
        };
        match read_more(&mut client, deadline).await {
            Read::Some => {}
            _ if client.ahead[0] == 22 => {
                let reason = format!("a ClientHello to {} did not arrive in time", way.host);
                let denied = way.deny(Layer::Tls, reason);
                return refuse(&way, client, &denied).await;
            }
            // Not complete, and so no request yet; it must not become one behind our back.
            Read::Closed | Read::TimedOut => break Some(watch_for_http(&client.ahead)),
        }
    };
    let Some(connected) = connect(&way, &mut client, ahead).await else { return };
    carry_on(&way, client, connected, watch).await;
}

/// Copies from here on.
async fn carry_on<G: Gate>(way: &Way<G>, mut client: Side, connected: Connected, watch: Option<Watch>) {
    let Connected { stream, passage } = connected;
    let mut server = Side::new(stream);
    if both_ways(&mut client, &mut server, &*passage, way.proxy.limits.idle, watch).await == End::Refused {
        way.deny(Layer::Http, format!("a request to {} came in pieces, and could not be checked", way.host));
        client.reset();
        server.reset();
    }
}

/// Who spoke first.
enum Heard {
    Client(Ahead),
    Server(Connected),
    /// The connection is over.
    Nobody,
}

/// Waits for the first bytes of the client, or of the server where the client says nothing.
async fn listen<G: Gate>(way: &Way<G>, client: &mut Side, ahead: Ahead) -> Heard {
    let limits = &way.proxy.limits;
    let connected = match ahead {
        Ahead::Connected(connected) => connected,
        other => match read_more(client, Instant::now() + limits.silence).await {
            Read::Some => return Heard::Client(other),
            // Half closed before the first byte: the server may speak all the same.
            Read::Closed => {
                return connect(way, client, other).await.map_or(Heard::Nobody, Heard::Server);
            }
            Read::TimedOut => match connect(way, client, other).await {
                Some(connected) => connected,
                None => return Heard::Nobody,
            },
        },
    };
    let silent = Instant::now() + limits.idle;
    tokio::select! {
        biased;
        () = connected.passage.revoked().cancelled() => {}
        read = read_more(client, silent) => match read {
            Read::Some => return Heard::Client(Ahead::Connected(connected)),
            Read::Closed => return Heard::Server(connected),
            Read::TimedOut => {}
        },
        _ = connected.stream.ready(Interest::READABLE) => return Heard::Server(connected),
    }
    reset(&client.stream);
    reset(&connected.stream);
    Heard::Nobody
}

/// Refuses what turns into an HTTP request after its first bytes went on.
///
/// Empty lines before it are not kept, and trust nothing: a request may follow any number of them. What is kept is at
/// most the longest line that is waited for and what came last.
fn watch_for_http(begun: &[u8]) -> Watch {
    let mut line = without_empty_lines(begun).to_vec();
    Box::new(move |bytes| {
        line.extend_from_slice(if line.is_empty() { without_empty_lines(bytes) } else { bytes });
        match first(&line) {
            First::Likely | First::Unlikely => Watched::Continue,
            First::Http1 | First::Http2 => Watched::Refuse,
            First::Tls | First::Other => Watched::Trust,
        }
    })
}

/// Connects to the server; without one, the client is reset.
async fn connect<G: Gate>(way: &Way<G>, client: &mut Side, ahead: Ahead) -> Option<Connected> {
    match way.connect(ahead).await {
        Ok(connected) => Some(connected),
        Err(NoWay::Denied(_) | NoWay::Failed { .. }) => {
            reset(&client.stream);
            None
        }
    }
}

enum Read {
    Some,
    Closed,
    TimedOut,
}

/// Appends what the client sends next.
async fn read_more(client: &mut Side, deadline: Instant) -> Read {
    let room = CHUNK.min((MAX_HELLO + CHUNK).saturating_sub(client.ahead.len()));
    let before = client.ahead.len();
    client.ahead.reserve(room);
    match timeout_at(deadline, client.stream.read_buf(&mut (&mut client.ahead).limit(room))).await {
        Ok(Ok(count)) if count > 0 && client.ahead.len() > before => Read::Some,
        Ok(_) => Read::Closed,
        Err(_) => Read::TimedOut,
    }
}

/// Says no in the client's own protocol, where that can be told.
async fn refuse<G: Gate>(way: &Way<G>, client: Side, denied: &Denied) {
    let time = way.proxy.limits.farewell;
    match first(&client.ahead) {
        First::Tls => farewell(client.stream, &ACCESS_DENIED, time).await,
        First::Likely if client.ahead.first() == Some(&22) => farewell(client.stream, &ACCESS_DENIED, time).await,
        First::Http1 => farewell(client.stream, &problem::denied_bytes(denied), time).await,
        _ => client.reset(),
    }
}

/// Writes a last message and closes, so that it arrives: closing a socket with something unread in it is a reset.
async fn farewell(mut stream: TcpStream, message: &[u8], time: Duration) {
    let _ = timeout(time, async {
        stream.write_all(message).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(FAREWELL), &mut tokio::io::sink()).await
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lines_are_neither_kept_nor_looked_at_again_and_a_request_after_them_is_refused() {
        let mut watch = watch_for_http(b"\n");
        let began = std::time::Instant::now();
        for _ in 0..1 << 20 {
            assert_eq!(watch(b"\n"), Watched::Continue);
        }
        // Looking at all of it each time takes minutes.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(watch(b"\r\n\nGET / HT"), Watched::Continue);
        assert_eq!(watch(b"TP/1.1\r\n"), Watched::Refuse);
    }

    #[test]
    fn a_line_is_watched_only_until_it_can_be_no_request() {
        let mut watch = watch_for_http(b"x");
        let watched = (0..1 << 20).take_while(|_| watch(b"x") == Watched::Continue).count();
        assert!(watched < 64 << 10, "{watched} bytes were kept");
    }
}
