//! `vpn`: operators in a network, over WireGuard.
//!
//! | module | holds |
//! | --- | --- |
//! | [`up`] | `vpn up`: a session that lasts as long as the command |
//! | [`quick`] | the configuration file and `wg-quick` |
//! | [`left`] | what a `vpn up` that was killed left behind |
//! | [`routes`] | which of this machine's routes a network would cover |

mod left;
mod quick;
mod routes;
mod up;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use warren_model::Code;
use warren_model::session::WireGuardKey;
use warren_model::wire::{OpenSession, OpenSessionOnly, OpenedSession, Page, Session, SessionOnly};

use super::Context;
use super::failure::Failure;
use super::machine::several;
use super::output::{note, read};
use super::render::{bytes, first_of, maybe_time, printable, sheet, table, time};
use super::values;
use crate::client::Client;
use crate::client::error::ClientError;
use crate::client::route::Route;

#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum VpnCommand {
    /// Join a network from this machine, until Ctrl-C
    #[command(after_help = "\
Makes a key pair here (the private key stays here), opens a session, and brings up a WireGuard link with `wg-quick`. When
it ends, so do the link and the session; what one that was killed left, the next one takes away. Where a route of this
machine overlaps what the session would route, --ula leaves IPv4 out: the IPv6 range of a network is nobody else's.

Examples:
  warren vpn up agents
  warren vpn up agents --only worker:8080       reaches one port of one machine
  warren vpn up agents --ula                    by IPv6 alone
  warren vpn up agents --ttl 8h --idle 2h")]
    Up(UpArgs),
    /// Open a session, and print the configuration for `wg-quick` or another WireGuard
    #[command(after_help = "\
Without --public-key the server makes the key pair: the private key is in what is printed, and nowhere else.

Examples:
  warren vpn open agents > wg.conf
  warren vpn open agents --only worker:5432 --ttl 8h > wg.conf
  warren vpn open agents --public-key hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
  warren vpn open agents --json | jq -r .client_config > wg.conf")]
    Open(OpenArgs),
    /// List sessions, in one network or all
    #[command(after_help = "\
NAME is what a session is called as a member, such as in denials; REACHABLE says whether machines may open connections to the
operator. REFUSED counts packets that the server's end of the tunnel withheld, of the operator and for it, since WireGuard
last started there; what policy refuses is among `warren denials`.

Examples:
  warren vpn ls
  warren vpn ls agents
  warren vpn ls --json | jq '.items[] | select(.reachable)'
  warren vpn ls --json | jq '.items[] | select(.hindrance) | {name, hindrance}'")]
    Ls {
        /// A network's name or id [default: every one]
        network: Option<String>,
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Show a session
    #[command(after_help = "\
Examples:
  warren vpn show session-7k2m9q4x
  warren vpn show ses_01jd8m… --json | jq .status")]
    Show {
        /// Its id, or the name that it has as a member
        session: String,
    },
    /// Close sessions: at once nothing of them passes any more
    #[command(after_help = "Examples:\n  warren vpn close ses_01jd8m…\n  warren vpn close session-7k2m9q4x")]
    Close {
        /// Their ids, or the names that they have as members
        #[arg(required = true, value_name = "SESSION")]
        sessions: Vec<String>,
    },
}

/// What a session is asked to be.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Asked {
    /// The network's name or id
    network: String,
    /// How long the session lives, such as 30m or 8h; 5s to 24h, and no longer than the key that opens it [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    ttl: Option<Duration>,
    /// It ends when no data came from here for so long; 5s to 24h [default: 30m]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    idle: Option<Duration>,
    /// The only machine that it reaches, or the only port of one (1 to 65535, over TCP and UDP)
    #[arg(long, value_name = "MACHINE[:PORT]", value_parser = only)]
    only: Option<OpenSessionOnly>,
    /// Machines may open connections to this machine, as far as policy allows
    #[arg(long)]
    reachable: bool,
    /// Ask the network's resolver for every name of this machine, those outside too; not together with --only
    #[arg(long)]
    dns: bool,
}

#[derive(Debug, Clone, PartialEq, Args)]
pub struct UpArgs {
    #[command(flatten)]
    asked: Asked,
    /// Leave IPv4 out of the tunnel; the way to the server may be IPv4 all the same
    #[arg(long)]
    ula: bool,
    /// Keep a copy of the configuration here meanwhile; `wg-quick` gets the one in a directory that nobody else can write
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Args)]
pub struct OpenArgs {
    #[command(flatten)]
    asked: Asked,
    /// Your own public key; the private one stays with you
    #[arg(long, value_name = "KEY")]
    public_key: Option<WireGuardKey>,
}

/// `worker` or `worker:8080`
fn only(text: &str) -> Result<OpenSessionOnly, String> {
    let (machine, port) = match text.split_once(':') {
        Some((machine, port)) => {
            let number = port.parse().ok().filter(|port| *port > 0);
            (machine, Some(number.ok_or_else(|| format!("{port:?} is no port; write MACHINE or MACHINE:PORT"))?))
        }
        None => (text, None),
    };
    if machine.is_empty() {
        return Err("name a machine: MACHINE or MACHINE:PORT".to_owned());
    }
    Ok(OpenSessionOnly { machine: machine.to_owned(), port })
}

impl Asked {
    fn body(&self, public_key: Option<&WireGuardKey>) -> OpenSession {
        OpenSession {
            ttl_seconds: self.ttl.map(|length| length.as_secs()),
            idle_seconds: self.idle.map(|length| length.as_secs()),
            public_key: public_key.map(ToString::to_string),
            only: self.only.clone(),
            reachable: self.reachable.then_some(true),
            dns: self.dns.then_some(true),
        }
    }

    /// Opens a session; answers what the server said.
    async fn open(&self, client: &Client, public_key: Option<&WireGuardKey>) -> Result<Value, ClientError> {
        client.post(&Route::new(&["networks", &self.network, "sessions"]), &self.body(public_key)).await
    }
}

pub async fn run(context: &Context, command: VpnCommand) -> Result<(), Failure> {
    let Context { client, output } = context;
    match command {
        VpnCommand::Up(args) => up::up(context, args).await,
        VpnCommand::Open(args) => open(context, args).await,
        VpnCommand::Ls { network, limit } => {
            let route = match &network {
                Some(network) => Route::new(&["networks", network, "sessions"]),
                None => Route::new(&["sessions"]),
            };
            let page = client.list(&route, limit.map(|limit| limit as usize)).await?;
            let out = if output.json { String::new() } else { left_out(&page)? };
            output.list(page, "No sessions are open; `warren vpn up` opens one.", render)?;
            if !out.is_empty() {
                note(&out);
            }
            Ok(())
        }
        VpnCommand::Show { session } => {
            let answer = client.get(&Route::new(&["sessions", &session])).await?;
            output.object(answer, show)
        }
        VpnCommand::Close { sessions } => {
            let one = sessions.len() == 1;
            let act = async |session: &str| {
                client.delete(&Route::new(&["sessions", session])).await?;
                Ok(if one { json!({}) } else { json!({ "session": session }) })
            };
            several::each(context, sessions, act, |session, _| Ok(format!("closed {session}"))).await
        }
    }
}

async fn open(context: &Context, args: OpenArgs) -> Result<(), Failure> {
    let Context { client, output } = context;
    let answer = args.asked.open(client, args.public_key.as_ref()).await?;
    let opened: OpenedSession = read(answer.clone())?;
    let shown = match (output.json, io::stdout().is_terminal()) {
        (true, _) => output.json(&answer),
        // What came over the network cannot steer a terminal.
        (false, true) => output.text(&opened.client_config.lines().map(printable).collect::<Vec<_>>().join("\n")),
        (false, false) => output.text(&opened.client_config),
    };
    if let Err(failure) = shown {
        // Nobody has read it, and it is not shown again.
        close(client, &opened.session_id).await?;
        return Err(failure);
    }
    if !output.json {
        let (id, until) = (&opened.session_id, time(opened.session.expires_at));
        note(&printable(&format!("Session {id} is open until {until}; `warren vpn close {id}` closes it.")));
        if args.public_key.is_some() {
            note("Put your private key where the configuration says so, and bring it up: wg-quick up ./wg.conf");
        } else if io::stdout().is_terminal() {
            note(
                "This holds a private key: whoever has it is in the network. Keep it where only you can read it: \
                 (umask 077; warren vpn open NETWORK > wg.conf)",
            );
        } else {
            note("What was written holds a private key: let nobody else read it. Bring it up: wg-quick up ./wg.conf");
        }
    }
    Ok(())
}

/// Closes a session that may be gone already.
async fn close(client: &Client, id: &str) -> Result<(), Failure> {
    match client.delete(&Route::new(&["sessions", id])).await {
        Err(error) if !is_gone(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

fn is_gone(error: &ClientError) -> bool {
    is(error, Code::NotFound)
}

fn is(error: &ClientError, code: Code) -> bool {
    matches!(error, ClientError::Refused(refusal) if refusal.code() == code.as_str())
}

fn reaches(session: &Session) -> String {
    match &session.only {
        None => "everything".to_owned(),
        Some(SessionOnly { machine, port: None }) => machine.name.clone(),
        Some(SessionOnly { machine, port: Some(port) }) => format!("{}:{port}", machine.name),
    }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

/// What keeps sessions of a list from passing anything, once for each reason.
fn left_out(page: &Page<Value>) -> Result<String, Failure> {
    let mut reasons = BTreeMap::<_, Vec<_>>::new();
    for item in &page.items {
        let session: Session = read(item.clone())?;
        if let Some(reason) = session.hindrance {
            reasons.entry(reason).or_default().push(session.name);
        }
    }
    let line = |(reason, names): (&String, &Vec<String>)| {
        printable(&format!("warning: nothing of {} passes: {reason}", first_of(names)))
    };
    Ok(reasons.iter().map(line).collect::<Vec<_>>().join("\n"))
}

fn render(sessions: &[Session]) -> String {
    let row = |session: &Session| {
        let status = session.status.as_ref();
        vec![
            session.id.clone(),
            session.name.clone(),
            session.network.name.clone(),
            session.operator.clone(),
            session.private_ip.to_string(),
            reaches(session),
            status.and_then(|status| status.endpoint).map(|from| from.to_string()).unwrap_or_default(),
            maybe_time(status.and_then(|status| status.last_data_at)),
            status.map(|status| bytes(status.traffic.sent_bytes)).unwrap_or_default(),
            status.map(|status| bytes(status.traffic.received_bytes)).unwrap_or_default(),
            status.map(|status| status.refused_packets.to_string()).unwrap_or_default(),
            yes(session.reachable),
            time(session.expires_at),
        ]
    };
    let headings = [
        "session",
        "name",
        "network",
        "operator",
        "address",
        "reaches",
        "from",
        "last data",
        "sent",
        "received",
        "refused",
        "reachable",
        "until",
    ];
    table(&headings, &[8, 9, 10], sessions.iter().map(row))
}

fn show(session: &Session) -> String {
    let status = session.status.as_ref();
    let way = |count: u64, packets: u64| format!("{}, {packets} packets", bytes(count));
    sheet(&[
        ("id", session.id.clone()),
        ("name", session.name.clone()),
        ("network", format!("{} ({})", session.network.name, session.network.id)),
        ("operator", format!("{} ({})", session.operator, session.opened_by)),
        ("addresses", format!("{}, {}", session.private_ip, session.private_ip6)),
        ("reaches", reaches(session)),
        ("reachable", yes(session.reachable)),
        ("public key", session.public_key.to_string()),
        ("opened", time(session.created_at)),
        ("until", time(session.expires_at)),
        ("idle", format!("ends after {} s without data", session.idle_seconds)),
        (
            "from",
            match (&session.hindrance, status) {
                (Some(reason), _) => format!("nothing passes: {reason}"),
                (None, None) => "the tunnel says nothing".to_owned(),
                (None, Some(status)) => {
                    status.endpoint.map_or_else(|| "not heard from yet".to_owned(), |from| from.to_string())
                }
            },
        ),
        ("handshake", maybe_time(status.and_then(|status| status.last_handshake_at))),
        ("last data", maybe_time(status.and_then(|status| status.last_data_at))),
        ("sent", status.map(|s| way(s.traffic.sent_bytes, s.traffic.sent_packets)).unwrap_or_default()),
        ("received", status.map(|s| way(s.traffic.received_bytes, s.traffic.received_packets)).unwrap_or_default()),
        ("refused", status.map(|status| format!("{} packets", status.refused_packets)).unwrap_or_default()),
    ])
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::client::target::{Access, Target};
    use std::sync::mpsc::Receiver;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use warren_model::wire::{Counters, Reference, SessionStatus};

    /// A server that answers every request alike, and what it is asked: `GET /v1/sessions/ses_01`.
    pub(super) fn server(answer: &'static str) -> (Client, Receiver<String>, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let (tell, asked) = std::sync::mpsc::channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..length]);
                let _ = tell.send(request.split(" HTTP/").next().unwrap_or_default().to_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let access = Access { target: Target::Unix(path), key: Some("wk_x".into()), account: None };
        (Client::new(&access).unwrap(), asked, directory)
    }

    #[test]
    fn what_a_session_is_for_is_a_machine_or_a_port_of_one() {
        let of = |text: &str| only(text).map(|only| (only.machine, only.port));
        assert_eq!(of("worker"), Ok(("worker".into(), None)));
        assert_eq!(of("worker:8080"), Ok(("worker".into(), Some(8080))));
        for bad in ["", ":80", "worker:", "worker:0", "worker:65536", "worker:web", "a:1:2"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sessions_show_who_is_where_and_what_they_reach() {
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
        let one = Session {
            id: "ses_01".into(),
            name: "session-01".into(),
            network: Reference { id: "net_01".into(), name: "agents".into() },
            only: None,
            reachable: false,
            private_ip: [10, 0, 5, 10].into(),
            private_ip6: "fd00::5".parse().unwrap(),
            public_key: WireGuardKey::from_bytes([7; 32]),
            created_at: at("2026-11-20T09:30:00Z"),
            expires_at: at("2026-11-20T10:30:00Z"),
            idle_seconds: 1800,
            opened_by: "key_01".into(),
            operator: "anna".into(),
            hindrance: None,
            status: Some(SessionStatus {
                endpoint: Some("198.51.100.7:40000".parse().unwrap()),
                traffic: Counters { sent_bytes: 2048, received_bytes: 1, ..Counters::default() },
                refused_packets: 5,
                last_handshake_at: None,
                last_data_at: Some(at("2026-11-20T09:31:00Z")),
            }),
        };
        let machine = Reference { id: "mch_01".into(), name: "worker".into() };
        let other = Session {
            only: Some(SessionOnly { machine, port: Some(8080) }),
            reachable: true,
            status: None,
            ..one.clone()
        };
        insta::assert_snapshot!(show(&one), @r"
        id          ses_01
        name        session-01
        network     agents (net_01)
        operator    anna (key_01)
        addresses   10.0.5.10, fd00::5
        reaches     everything
        reachable   no
        public key  BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=
        opened      2026-11-20 09:30:00Z
        until       2026-11-20 10:30:00Z
        idle        ends after 1800 s without data
        from        198.51.100.7:40000
        last data   2026-11-20 09:31:00Z
        sent        2.0 KiB, 0 packets
        received    1 B, 0 packets
        refused     5 packets
        ");
        insta::assert_snapshot!(show(&other), @r"
        id          ses_01
        name        session-01
        network     agents (net_01)
        operator    anna (key_01)
        addresses   10.0.5.10, fd00::5
        reaches     worker:8080
        reachable   yes
        public key  BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=
        opened      2026-11-20 09:30:00Z
        until       2026-11-20 10:30:00Z
        idle        ends after 1800 s without data
        from        the tunnel says nothing
        ");
        let out = ["session-01", "session-02"].map(|name| Session {
            name: name.into(),
            hindrance: Some("UDP port 0.0.0.0:51820 cannot be had".into()),
            ..one.clone()
        });
        assert!(show(&out[0]).contains("from        nothing passes: UDP port 0.0.0.0:51820 cannot be had\n"));
        let items = [&one, &out[0], &out[1]].map(|session| serde_json::to_value(session).unwrap()).to_vec();
        assert_eq!(
            left_out(&Page { items, next: None }).unwrap(),
            "warning: nothing of session-01, session-02 passes: UDP port 0.0.0.0:51820 cannot be had"
        );
        insta::assert_snapshot!(render(&[one, other]), @r"
        SESSION  NAME        NETWORK  OPERATOR  ADDRESS    REACHES      FROM                LAST DATA                SENT  RECEIVED  REFUSED  REACHABLE  UNTIL
        ses_01   session-01  agents   anna      10.0.5.10  everything   198.51.100.7:40000  2026-11-20 09:31:00Z  2.0 KiB       1 B        5  no         2026-11-20 10:30:00Z
        ses_01   session-01  agents   anna      10.0.5.10  worker:8080                                                                        yes        2026-11-20 10:30:00Z
        ");
    }
}
