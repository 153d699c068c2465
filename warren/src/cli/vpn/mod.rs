//! `vpn`: operators in a network, over WireGuard.
//!
//! | module | holds |
//! | --- | --- |
//! | [`up`] | `vpn up`: a session that lasts as long as the command |
//! | [`quick`] | the configuration file and `wg-quick` |
//! | [`routes`] | which of this machine's routes a network would cover |

mod quick;
mod routes;
mod up;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use warren_model::Code;
use warren_model::session::WireGuardKey;
use warren_model::wire::{OpenSession, OpenSessionOnly, OpenedSession, Session};

use super::Context;
use super::failure::Failure;
use super::machine::several;
use super::output::{note, read};
use super::render::{bytes, maybe_time, printable, table, time};
use super::values;
use crate::client::Client;
use crate::client::error::ClientError;
use crate::client::route::Route;

#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum VpnCommand {
    /// Join a network from this machine, until Ctrl-C
    #[command(after_help = "\
Makes a key pair here (the private key stays here), opens a session, and brings up a WireGuard link with `wg-quick`. When
it ends, so do the link and the session. Where a route of this machine covers addresses of the network, --ula leaves its
IPv4 range out: the IPv6 range of a network is nobody else's.

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
    #[command(after_help = "Examples:\n  warren vpn ls\n  warren vpn ls agents")]
    Ls {
        /// A network's name or id [default: every one]
        network: Option<String>,
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
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
    /// How long the session lives, such as 30m or 8h, at most 24h [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    ttl: Option<Duration>,
    /// It ends when no data came for so long [default: 30m]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    idle: Option<Duration>,
    /// The only machine that it reaches, or the only port of one
    #[arg(long, value_name = "MACHINE[:PORT]", value_parser = only)]
    only: Option<OpenSessionOnly>,
    /// Machines may open connections to this machine, as far as policy allows
    #[arg(long)]
    reachable: bool,
    /// Ask the network's resolver for every name of this machine, those outside too
    #[arg(long)]
    dns: bool,
}

#[derive(Debug, Clone, PartialEq, Args)]
pub struct UpArgs {
    #[command(flatten)]
    asked: Asked,
    /// Leave the network's IPv4 range out
    #[arg(long)]
    ula: bool,
    /// Where the configuration is kept meanwhile [default: a directory that is made for it]
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
            output.list(page, "No sessions are open; `warren vpn up` opens one.", render)
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

fn render(sessions: &[Session]) -> String {
    let row = |session: &Session| {
        let only = session.only.as_ref().map(|only| match only.port {
            Some(port) => format!("{}:{port}", only.machine.name),
            None => only.machine.name.clone(),
        });
        let status = session.status.as_ref();
        vec![
            session.id.clone(),
            session.network.name.clone(),
            session.operator.clone(),
            session.private_ip.to_string(),
            only.unwrap_or_else(|| "everything".to_owned()),
            status.and_then(|status| status.endpoint).map(|from| from.to_string()).unwrap_or_default(),
            maybe_time(status.and_then(|status| status.last_data_at)),
            status.map(|status| bytes(status.traffic.sent_bytes)).unwrap_or_default(),
            status.map(|status| bytes(status.traffic.received_bytes)).unwrap_or_default(),
            time(session.expires_at),
        ]
    };
    let headings =
        ["session", "network", "operator", "address", "reaches", "from", "last data", "sent", "received", "until"];
    table(&headings, &[7, 8], sessions.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::wire::{Counters, Reference, SessionOnly, SessionStatus};

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
            status: Some(SessionStatus {
                endpoint: Some("198.51.100.7:40000".parse().unwrap()),
                traffic: Counters { sent_bytes: 2048, received_bytes: 1, ..Counters::default() },
                refused_packets: 0,
                last_handshake_at: None,
                last_data_at: Some(at("2026-11-20T09:31:00Z")),
            }),
        };
        let machine = Reference { id: "mch_01".into(), name: "worker".into() };
        let other = Session { only: Some(SessionOnly { machine, port: Some(8080) }), status: None, ..one.clone() };
        insta::assert_snapshot!(render(&[one, other]), @r"
        SESSION  NETWORK  OPERATOR  ADDRESS    REACHES      FROM                LAST DATA                SENT  RECEIVED  UNTIL
        ses_01   agents   anna      10.0.5.10  everything   198.51.100.7:40000  2026-11-20 09:31:00Z  2.0 KiB       1 B  2026-11-20 10:30:00Z
        ses_01   agents   anna      10.0.5.10  worker:8080                                                               2026-11-20 10:30:00Z
        ");
    }
}
