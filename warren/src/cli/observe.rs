//! `events`, `logs`, `ports`, `traffic`.

use std::io::{IsTerminal, Write};

use clap::Args;
use http::{HeaderValue, Method};
use http_body_util::BodyExt;
use serde_json::Value;
use warren_model::access::ListeningPort;
use warren_model::wire::{Event, Traffic};

use super::failure::Failure;
use super::follow::follow;
use super::render::{bytes, printable, table, time, traffic_row};
use super::{Context, values};
use crate::client::Payload;
use crate::client::error::ClientError;
use crate::client::route::Route;

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  warren logs worker
  warren logs worker --follow
  warren logs worker --tail 4k
  warren logs worker --raw | less -R")]
pub struct LogsArgs {
    /// Its name or id
    pub machine: String,
    /// Go on with what is written from now on
    #[arg(long, short)]
    pub follow: bool,
    /// Only so many bytes from the end, such as 4k; up to 16M [default: 64k]
    #[arg(long, value_name = "BYTES", value_parser = values::byte_count)]
    pub tail: Option<u64>,
    /// Send control characters to a terminal as they are: what runs in the machine can steer it with them
    #[arg(long)]
    pub raw: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "Examples:\n  warren ports worker")]
pub struct PortsArgs {
    /// Its name or id
    pub machine: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "Examples:\n  warren traffic worker\n  warren traffic worker --json | jq .egress.sent_bytes")]
pub struct TrafficArgs {
    /// Its name or id
    pub machine: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  warren events
  warren events --follow --json
  warren events --after 1200")]
pub struct EventsArgs {
    /// Go on with what happens from now on, one event a line
    #[arg(long, short)]
    pub follow: bool,
    /// Only what happened after this revision
    #[arg(long, value_name = "REVISION")]
    pub after: Option<u64>,
    /// Show at most so many: the newest, or with --after the first ones after it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "follow")]
    pub limit: Option<u32>,
}

pub async fn logs(context: &Context, args: LogsArgs) -> Result<(), Failure> {
    let route = Route::new(&["machines", &args.machine, "logs"])
        .maybe("tail", args.tail)
        .maybe("follow", args.follow.then_some(true));
    let response = context.client.send(Method::GET, &route, Payload::Nothing).await?;
    let mut body = response.into_body();
    let mut all = Vec::new();
    let mut shown = (!args.raw && std::io::stdout().is_terminal()).then(Shown::default);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ClientError::BrokenOff(error.into()))?;
        let Ok(data) = frame.into_data() else { continue };
        match (context.output.json, args.follow) {
            (false, _) => match &mut shown {
                Some(shown) => write(shown.push(&data).as_bytes())?,
                None => write(&data)?,
            },
            (true, false) => all.extend_from_slice(&data),
            (true, true) => {
                all.extend_from_slice(&data);
                while let Some(end) = all.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = all.drain(..=end).collect();
                    context.output.text(&log_line(&line).to_string())?;
                }
            }
        }
    }
    if let (false, Some(shown)) = (context.output.json, shown) {
        write(shown.finish().as_bytes())?;
    }
    match (context.output.json, args.follow) {
        (true, false) => context.output.json(&serde_json::json!({ "logs": String::from_utf8_lossy(&all) })),
        (true, true) if !all.is_empty() => context.output.text(&log_line(&all).to_string()),
        _ => Ok(()),
    }
}

pub async fn ports(context: &Context, args: PortsArgs) -> Result<(), Failure> {
    let answer = context.client.get(&Route::new(&["machines", &args.machine, "ports"])).await?;
    context.output.list(super::output::read(answer)?, &format!("Nothing listens in {}.", args.machine), render_ports)
}

pub async fn traffic(context: &Context, args: TrafficArgs) -> Result<(), Failure> {
    let answer = context.client.get(&Route::new(&["machines", &args.machine, "traffic"])).await?;
    context.output.object(answer, render_traffic)
}

pub async fn events(context: &Context, args: EventsArgs) -> Result<(), Failure> {
    let Context { client, output } = context;
    let route = Route::new(&["events"]);
    if args.follow {
        let place = |event: &Value| event.get("revision").and_then(Value::as_u64).map(HeaderValue::from);
        return follow(context, &route.maybe("after", args.after), args.after.is_some(), place, render_event).await;
    }
    let route = route.query("follow", false).maybe("after", args.after);
    let limit = args.limit.map(|limit| limit as usize);
    // The server lists the oldest first.
    let newest = limit.filter(|_| args.after.is_none());
    let mut page = client.list(&route, limit.filter(|_| newest.is_none())).await?;
    if let Some(newest) = newest {
        page.items.drain(..page.items.len().saturating_sub(newest));
    }
    output.list(page, "Nothing has happened.", render_events)
}

/// What a machine wrote, made fit for a terminal as it comes: lines and tabs stay, every other control character is
/// shown and not sent.
#[derive(Debug, Default)]
struct Shown {
    /// The beginning of a character, or a carriage return, whose other part is still to come.
    rest: Vec<u8>,
}

impl Shown {
    fn push(&mut self, data: &[u8]) -> String {
        self.rest.extend_from_slice(data);
        let kept = match self.rest.utf8_chunks().last() {
            Some(chunk) if is_begun(chunk.invalid()) => chunk.invalid().len(),
            Some(chunk) if chunk.invalid().is_empty() && chunk.valid().ends_with('\r') => 1,
            _ => 0,
        };
        let rest = self.rest.split_off(self.rest.len() - kept);
        let whole = std::mem::replace(&mut self.rest, rest);
        Self::show(&whole)
    }

    fn finish(self) -> String {
        Self::show(&self.rest)
    }

    fn show(bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        let lines = text.split('\n').map(|line| {
            let columns = line.strip_suffix('\r').unwrap_or(line).split('\t').map(printable);
            columns.collect::<Vec<_>>().join("\t")
        });
        let shown = lines.collect::<Vec<_>>().join("\n");
        // One that ends no line is shown like any other.
        if text.ends_with('\r') { shown + &printable("\r") } else { shown }
    }
}

/// Whether more bytes could make a character of these.
fn is_begun(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

fn log_line(line: &[u8]) -> Value {
    let text = String::from_utf8_lossy(line);
    serde_json::json!({ "line": text.trim_end_matches(['\n', '\r']) })
}

fn write(data: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(data).and_then(|()| stdout.flush()).map_err(Failure::stdout)
}

fn render_ports(ports: &[ListeningPort]) -> String {
    let row = |port: &ListeningPort| {
        vec![
            port.port.to_string(),
            port.protocol.as_str().to_owned(),
            port.address.to_string(),
            port.process.clone().unwrap_or_default(),
            port.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        ]
    };
    table(&["port", "protocol", "address", "process", "pid"], &[0, 4], ports.iter().map(row))
}

fn render_traffic(traffic: &Traffic) -> String {
    let rows = [traffic_row("private", &traffic.private), traffic_row("egress", &traffic.egress)];
    let mut text = table(&["", "sent", "packets", "received", "packets"], &[1, 2, 3, 4], rows);
    if !traffic.names.is_empty() {
        let rows = traffic.names.iter().map(|rule| {
            let (sent, received) = (bytes(rule.sent_bytes), bytes(rule.received_bytes));
            vec![rule.rule.clone(), sent, received, rule.open.to_string(), rule.opened.to_string()]
        });
        text.push('\n');
        text.push_str(&table(&["names, by rule", "sent", "received", "open", "in all"], &[1, 2, 3, 4], rows));
    }
    if traffic.refused > 0 {
        text.push_str(&format!("\nrefused {} times: warren denials\n", traffic.refused));
    }
    text
}

fn render_events(events: &[Event]) -> String {
    events.iter().map(|event| render_event(event) + "\n").collect()
}

fn render_event(event: &Event) -> String {
    let kind = serde_json::to_value(event.kind).ok();
    let kind = kind.as_ref().and_then(Value::as_str).unwrap_or_default();
    format!("{}  {kind:<16}  {}", time(event.time), printable(&event.message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::record::{EventKind, Protocol};
    use warren_model::wire::{Counters, NameTraffic};

    #[test]
    fn listening_ports_stand_in_columns() {
        let port = |port, process: Option<&str>, pid| ListeningPort {
            protocol: Protocol::Tcp,
            address: "0.0.0.0".parse().unwrap(),
            port,
            process: process.map(str::to_owned),
            pid,
        };
        insta::assert_snapshot!(render_ports(&[port(80, None, None), port(8080, Some("python3"), Some(42))]), @r"
        PORT  PROTOCOL  ADDRESS  PROCESS  PID
          80  tcp       0.0.0.0
        8080  tcp       0.0.0.0  python3   42
        ");
    }

    #[test]
    fn traffic_tells_private_from_egress() {
        let private = Counters { sent_bytes: 1536, sent_packets: 3, received_bytes: 5 << 20, received_packets: 4000 };
        let rule = NameTraffic { rule: "api".into(), open: 1, opened: 3, sent_bytes: 2048, received_bytes: 10 << 20 };
        let traffic = Traffic { private, egress: Counters::default(), names: vec![rule], refused: 7 };
        insta::assert_snapshot!(render_traffic(&traffic), @r"
                    SENT  PACKETS  RECEIVED  PACKETS
        private  1.5 KiB        3   5.0 MiB     4000
        egress       0 B        0       0 B        0

        NAMES, BY RULE     SENT  RECEIVED  OPEN  IN ALL
        api             2.0 KiB  10.0 MiB     1       3

        refused 7 times: warren denials
        ");
    }

    #[test]
    fn a_log_cannot_steer_the_terminal_however_it_is_cut() {
        let log = "plain\ttext\r\n\u{1b}]0;title\u{7}\u{9b}2J a\rb \u{20ac}\n\u{8}end\r".as_bytes();
        let expected = "plain\ttext\n\u{241b}]0;title\u{2407}\u{fffd}2J a\u{240d}b \u{20ac}\n\u{2408}end\u{240d}";
        for size in 1..=log.len() {
            let mut shown = Shown::default();
            let mut text: String = log.chunks(size).map(|part| shown.push(part)).collect();
            text += &shown.finish();
            assert_eq!(text, expected, "in pieces of {size}");
        }
        let mut shown = Shown::default();
        assert_eq!(shown.push(b"\x9b2J\xe2\x82"), "\u{fffd}2J");
        assert_eq!(shown.finish(), "\u{fffd}", "a character that is never completed");
    }

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            id: "evt_01".into(),
            revision: 7,
            time: "2026-11-20T09:30:00Z".parse().unwrap(),
            kind: EventKind::DriftRepaired,
            network: None,
            machine: None,
            message: "the link of worker was gone and is back\x1b[2J".into(),
        };
        let shown = render_event(&event);
        assert_eq!(shown, "2026-11-20 09:30:00Z  drift_repaired    the link of worker was gone and is back\u{241b}[2J");
    }
}
