//! `domain`: host names that lead from the public internet to a machine's port.
//!
//! | module | holds |
//! | --- | --- |
//! | [`claims`] | `verify`, `claims`, `disclaim`: whose a name is |

mod claims;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Subcommand};
use http::Method;
use serde_json::Value;
use warren_model::wire::{AskLimits, CreateDomain, Domain, Page, RequireAuth, UpdateDomain};

use super::failure::Failure;
use super::output::{note, read};
use super::render::{bytes, first_of, printable, sheet, table, time};
use super::{Context, values};
use crate::client::route::Route;
use crate::client::{Payload, read_all};

/// What `domain set` can change; it needs one of them.
const CHANGES: [&str; 9] = [
    "to",
    "open",
    "auth_bearer_file",
    "auth_basic_file",
    "requests_per_second",
    "burst",
    "max_body",
    "idle",
    "concurrent",
];

const NOTHING: &str = "\
Nothing is public. `warren domain map` makes a port public, on a server that was started with --https-listen ADDR:PORT, such as
0.0.0.0:443, or with --http-listen for plain HTTP; without these it publishes nothing (`warren up --help`).";

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum DomainCommand {
    /// Make a declared port of a machine public under a host name
    #[command(
        allow_missing_positional = true,
        after_help = "\
HOST is a name that `warren domain verify` has shown to be yours, or one below the server's preview suffix, which needs no
proof; it has to lead to the server in DNS. Without HOST a preview gets a name of its own, such as
worker-8080-qwerty.preview.example. PORT is 1 to 65535, and one that the machine declares as http or tcp (`warren machine
set MACHINE --port web=8080/http`). Nothing else is public by default.

Examples:
  warren domain map app.example.com worker:8080
  warren domain map worker:8080
  warren domain map app.example.com worker:8080 --auth-bearer-file token.txt
  warren domain map app.example.com worker:8080 --requests-per-second 50 --max-body 1M"
    )]
    Map {
        /// The host name, such as app.example.com; one below the preview suffix is made up when absent
        #[arg(value_parser = values::host)]
        host: Option<String>,
        /// A machine's name or id, and one of the ports that it declares, such as worker:8080
        #[arg(value_name = "MACHINE:PORT", value_parser = target)]
        to: Target,
        #[command(flatten)]
        auth: AuthArgs,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Change where a domain leads, what it asks for or what it lets through; the rest stays
    #[command(group = ArgGroup::new("change").required(true).multiple(true).args(CHANGES), after_help = "\
Examples:
  warren domain set app.example.com --to worker-2:8080
  warren domain set app.example.com --open
  warren domain set app.example.com --requests-per-second 50")]
    Set {
        /// Its host name or id
        host: String,
        /// Another machine and port
        #[arg(long, value_name = "MACHINE:PORT", value_parser = target)]
        to: Option<Target>,
        /// Ask for nothing any more
        #[arg(long, conflicts_with_all = ["auth_bearer_file", "auth_basic_file"])]
        open: bool,
        #[command(flatten)]
        auth: AuthArgs,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Show which TXT record proves that a name is yours; once it is set, look for it
    #[command(after_help = "\
The first time it says what to set. Run it again when that is done: the server asks its resolvers (--resolver of `warren
up`, else those of its host) for the record. A name that was verified covers every name below it; names below the server's
preview suffix need no record.

Exit status: 0 when the name is verified; 4 when it is not yet, also the first time and with --json, which writes the claim
with what is missing in `detail`; 1 when the server refuses the name.

Examples:
  warren domain verify example.com
  warren domain verify example.com --json | jq -r .record.value")]
    Verify {
        /// The host name, such as example.com
        #[arg(value_parser = values::host)]
        host: String,
    },
    /// List the names that were claimed with `verify`
    #[command(after_help = "Examples:\n  warren domain claims")]
    Claims {
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Drop a claim; what was mapped because of it stays mapped
    #[command(after_help = "Examples:\n  warren domain disclaim example.com")]
    Disclaim {
        /// The host name
        host: String,
    },
    /// List everything that the account has public
    #[command(after_help = "\
What nobody reaches, because the server does not listen or the edge does not serve it, is said below the table; with --json in
`hindrance`.

Examples:
  warren domain ls
  warren domain ls --json | jq -r '.items[].url'
  warren domain ls --json | jq '.items[] | select(.hindrance) | {host, hindrance}'")]
    Ls {
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Show a domain
    #[command(after_help = "Examples:\n  warren domain show app.example.com")]
    Show {
        /// Its host name or id
        host: String,
    },
    /// Make a domain lead nowhere any more; open connections are cut
    #[command(after_help = "Examples:\n  warren domain unmap app.example.com")]
    Unmap {
        /// Its host name or id
        host: String,
    },
    /// Print the root certificate of the server's own authority, for clients that are to trust it
    #[command(after_help = "\
Examples:
  warren domain ca > warren-ca.pem
  warren domain ca > ca.pem && curl --cacert ca.pem https://worker-8080-qwerty.preview.example")]
    Ca,
}

/// A machine and a port of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    machine: String,
    port: u16,
}

/// What a request has to bring. Secrets come from files, since command lines are seen by others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[group(multiple = false)]
pub struct AuthArgs {
    /// Ask for `Authorization: Bearer TOKEN`, with the token in this file: 16 to 512 characters
    #[arg(long, value_name = "FILE")]
    auth_bearer_file: Option<PathBuf>,
    /// Ask for a user and password, with USER:PASSWORD in this file: 1 to 64 and 8 to 256 characters
    #[arg(long, value_name = "FILE")]
    auth_basic_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct LimitArgs {
    /// Requests a second from all clients together, 1 to 1000000 [default: 500]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests_per_second: Option<u32>,
    /// Requests at once before that counts, from the rate to 2000000 [default: what was given before, or twice the rate]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    burst: Option<u32>,
    /// The largest body of a request, such as 64k, 10M or 2G; 1k to 64G [default: 100M]
    #[arg(long, value_name = "SIZE", value_parser = values::byte_count)]
    max_body: Option<u64>,
    /// How long nothing may move in a connection, such as 90s or 5m; 1s to 1h [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = values::seconds)]
    idle: Option<u32>,
    /// Requests and WebSockets under way, 1 to 8192 [default: 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8192))]
    concurrent: Option<u32>,
}

/// `worker:8080`
fn target(text: &str) -> Result<Target, String> {
    let (machine, port) = text.rsplit_once(':').ok_or_else(|| {
        format!("{text:?} names no port; write MACHINE:PORT, such as worker:8080, after the host name if there is one")
    })?;
    let port =
        port.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("{port:?} is no port; use 1 to 65535"))?;
    if machine.is_empty() || machine.contains(':') {
        return Err(format!("{machine:?} is no machine; write MACHINE:PORT, such as worker:8080"));
    }
    Ok(Target { machine: machine.to_owned(), port })
}

impl AuthArgs {
    fn read(&self) -> Result<Option<RequireAuth>, Failure> {
        if let Some(path) = &self.auth_bearer_file {
            return Ok(Some(RequireAuth::Bearer { token: secret(path)? }));
        }
        let Some(path) = &self.auth_basic_file else { return Ok(None) };
        let text = secret(path)?;
        let (user, password) = text
            .split_once(':')
            .ok_or_else(|| Failure::Usage(format!("{} does not hold USER:PASSWORD on one line", path.display())))?;
        Ok(Some(RequireAuth::Basic { user: user.to_owned(), password: password.to_owned() }))
    }
}

/// The one line of a file, without its end.
fn secret(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::local(format!("cannot read {}", path.display()), error))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

impl LimitArgs {
    fn asked(&self) -> Option<AskLimits> {
        let limits = AskLimits {
            requests_per_second: self.requests_per_second,
            burst: self.burst,
            max_body_bytes: self.max_body,
            idle_seconds: self.idle,
            concurrent: self.concurrent,
        };
        (limits != AskLimits::default()).then_some(limits)
    }
}

pub async fn run(context: &Context, command: DomainCommand) -> Result<(), Failure> {
    let Context { client, output } = context;
    match command {
        DomainCommand::Map { host, to, auth, limits } => {
            let Target { machine, port } = to;
            let body = CreateDomain { host, machine, port, auth: auth.read()?, limits: limits.asked() };
            let answer = client.post(&Route::new(&["domains"]), &body).await?;
            output.object(answer, render_domain)
        }
        DomainCommand::Set { host, to, open, auth, limits } => {
            let auth = if open { Some(RequireAuth::Open {}) } else { auth.read()? };
            let (machine, port) = to.map(|to| (to.machine, to.port)).unzip();
            let body = UpdateDomain { machine, port, auth, limits: limits.asked() };
            let answer = client.patch(&Route::new(&["domains", &host]), &body).await?;
            output.object(answer, render_domain)
        }
        DomainCommand::Verify { host } => claims::verify(context, host).await,
        DomainCommand::Claims { limit } => claims::list(context, limit).await,
        DomainCommand::Disclaim { host } => claims::disclaim(context, &host).await,
        DomainCommand::Ls { limit } => {
            let page = client.list(&Route::new(&["domains"]), limit.map(|limit| limit as usize)).await?;
            let wrong = if output.json { String::new() } else { wrong(&page)? };
            output.list(page, NOTHING, render_domains)?;
            if !wrong.is_empty() {
                note(&wrong);
            }
            Ok(())
        }
        DomainCommand::Show { host } => {
            let answer = client.get(&Route::new(&["domains", &host])).await?;
            output.object(answer, render_domain)
        }
        DomainCommand::Unmap { host } => {
            let answer = client.delete(&Route::new(&["domains", &host])).await?;
            output.done(answer, &format!("{host} leads nowhere any more"))
        }
        DomainCommand::Ca => {
            let route = Route::new(&["domains", "authority"]);
            let response = client.send(Method::GET, &route, Payload::Nothing).await?;
            let pem = String::from_utf8_lossy(&read_all(response.into_body()).await?).into_owned();
            if output.json { output.json(&serde_json::json!({ "pem": pem })) } else { output.text(&pem) }
        }
    }
}

fn certificate(domain: &Domain) -> String {
    let until = domain.certificate.not_after.map(|end| format!(" until {}", time(end))).unwrap_or_default();
    // What keeps the domain from being served is said of the domain.
    let detail = domain.certificate.detail.as_ref().filter(|detail| domain.hindrance.as_ref() != Some(*detail));
    let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
    printable(&format!("{}{until}{detail}", domain.certificate.state))
}

fn render_domain(domain: &Domain) -> String {
    let traffic = &domain.traffic;
    let limits = &domain.limits;
    sheet(&[
        ("id", domain.id.clone()),
        ("host", domain.host.clone()),
        ("url", domain.url.clone()),
        ("to", format!("{}:{} in network {}", domain.machine.name, domain.port, domain.network.name)),
        ("auth", domain.auth.clone().unwrap_or_else(|| "none: everybody may ask".to_owned())),
        ("certificate", certificate(domain)),
        ("served", domain.hindrance.as_ref().map(|reason| format!("no: {reason}")).unwrap_or_default()),
        (
            "limits",
            format!(
                "{}/s, {} at once, {} under way, bodies to {}, {} s idle",
                limits.requests_per_second,
                limits.burst,
                limits.concurrent,
                bytes(limits.max_body_bytes),
                limits.idle_seconds
            ),
        ),
        ("requests", format!("{} came, {} under way", traffic.requests, traffic.open)),
        ("refused", refused(domain)),
        ("traffic", format!("{} sent, {} received", bytes(traffic.sent_bytes), bytes(traffic.received_bytes))),
        ("created", time(domain.created_at)),
    ])
}

/// Requests that no machine answered.
fn refused(domain: &Domain) -> String {
    match domain.traffic.refused {
        0 => "none".to_owned(),
        count => format!(
            "{count} of these: turned away by authentication or limits, or the machine did not answer on port {}",
            domain.port
        ),
    }
}

/// What keeps domains of a list from being served as they should, once for each reason.
fn wrong(page: &Page<Value>) -> Result<String, Failure> {
    let (mut unserved, mut reasons) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::<_, Vec<_>>::new());
    for item in &page.items {
        let domain: Domain = read(item.clone())?;
        if let Some(reason) = domain.hindrance {
            unserved.entry(reason).or_default().push(domain.host);
        } else if let Some(reason) = domain.certificate.detail {
            reasons.entry(reason).or_default().push(domain.host);
        }
    }
    let unserved =
        unserved.iter().map(|(reason, hosts)| format!("warning: nobody reaches {}: {reason}", first_of(hosts)));
    let reasons = reasons.iter().map(|(reason, hosts)| format!("{}: {reason}", hosts.join(", ")));
    let lines: Vec<_> = unserved.chain(reasons).map(|line| printable(&line)).collect();
    Ok(lines.join("\n"))
}

fn render_domains(domains: &[Domain]) -> String {
    let row = |domain: &Domain| {
        vec![
            domain.url.clone(),
            format!("{}:{}", domain.machine.name, domain.port),
            domain.auth.clone().unwrap_or_else(|| "none".to_owned()),
            domain.certificate.state.to_string(),
            domain.traffic.requests.to_string(),
            domain.traffic.refused.to_string(),
            bytes(domain.traffic.sent_bytes),
        ]
    };
    table(&["url", "to", "auth", "certificate", "requests", "refused", "sent"], &[4, 5, 6], domains.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn domain() -> Domain {
        serde_json::from_value(json!({
            "id": "dom_01",
            "host": "app.example.com",
            "url": "https://app.example.com:8443",
            "machine": { "id": "mch_01", "name": "worker" },
            "network": { "id": "net_01", "name": "agents" },
            "port": 8080,
            "limits": { "requests_per_second": 500, "burst": 1000, "max_body_bytes": 104_857_600, "idle_seconds": 300,
                "concurrent": 512 },
            "proof": "txt",
            "certificate": { "state": "valid", "not_after": "2027-01-01T00:00:00Z" },
            "traffic": { "requests": 12, "refused": 3, "sent_bytes": 2048, "received_bytes": 10, "open": 1 },
            "created_at": "2026-11-20T09:30:00Z",
            "created_by": "key_01",
        }))
        .unwrap()
    }

    #[test]
    fn a_domain_shows_where_it_leads_and_what_it_lets_through() {
        insta::assert_snapshot!(render_domain(&domain()), @r"
        id           dom_01
        host         app.example.com
        url          https://app.example.com:8443
        to           worker:8080 in network agents
        auth         none: everybody may ask
        certificate  valid until 2027-01-01 00:00:00Z
        limits       500/s, 1000 at once, 512 under way, bodies to 100.0 MiB, 300 s idle
        requests     12 came, 1 under way
        refused      3 of these: turned away by authentication or limits, or the machine did not answer on port 8080
        traffic      2.0 KiB sent, 10 B received
        created      2026-11-20 09:30:00Z
        ");
    }

    #[test]
    fn everything_that_is_public_stands_in_one_table() {
        let mut other = domain();
        other.auth = Some("bearer".into());
        other.certificate.state = warren_model::domain::CertificateState::Pending;
        insta::assert_snapshot!(render_domains(&[domain(), other]), @r"
        URL                           TO           AUTH    CERTIFICATE  REQUESTS  REFUSED     SENT
        https://app.example.com:8443  worker:8080  none    valid              12        3  2.0 KiB
        https://app.example.com:8443  worker:8080  bearer  pending            12        3  2.0 KiB
        ");
    }

    #[test]
    fn what_is_wrong_with_several_domains_is_said_once() {
        let mut pending = domain();
        pending.certificate.detail = Some("it waits for its turn".into());
        let other = Domain { host: "b.example".into(), ..pending.clone() };
        let items = [domain(), pending, other].map(|domain| serde_json::to_value(domain).unwrap()).to_vec();
        let said = wrong(&Page { items, next: None }).unwrap();
        assert_eq!(said, "app.example.com, b.example: it waits for its turn");
    }

    #[test]
    fn domains_that_nobody_reaches_are_a_warning_with_what_to_do() {
        let mut unserved = domain();
        unserved.hindrance = Some("this server publishes nothing: start it with --https-listen".into());
        unserved.certificate.detail = unserved.hindrance.clone();
        let shown = render_domain(&unserved);
        assert_eq!(shown.matches("publishes nothing").count(), 1, "{shown}");
        assert!(
            shown.contains("served       no: this server publishes nothing: start it with --https-listen"),
            "{shown}"
        );
        let page = |hosts: &[&str]| {
            let named = hosts.iter().map(|host| Domain { host: (*host).to_owned(), ..unserved.clone() });
            Page { items: named.map(|domain| serde_json::to_value(domain).unwrap()).collect(), next: None }
        };
        let why = "this server publishes nothing: start it with --https-listen";
        assert_eq!(wrong(&page(&["a.b", "c.d"])).unwrap(), format!("warning: nobody reaches a.b, c.d: {why}"));
    }

    #[test]
    fn what_a_resolver_said_cannot_steer_a_terminal() {
        let mut failed = domain();
        failed.certificate.detail = Some("\u{1b}[2Jgone".into());
        assert!(!render_domain(&failed).contains('\u{1b}'));
    }

    #[test]
    fn a_target_is_a_machine_and_a_port() {
        assert_eq!(target("worker:8080"), Ok(Target { machine: "worker".into(), port: 8080 }));
        for bad in ["worker", "worker:", ":8080", "worker:0", "worker:65536", "worker:web", "a:b:1"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_one_line_of_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        for (content, user, password) in [("a:b:c\n", "a", "b:c"), ("a:b c\r\n", "a", "b c"), ("a:", "a", "")] {
            std::fs::write(&path, content).unwrap();
            let auth = AuthArgs { auth_basic_file: Some(path.clone()), ..AuthArgs::default() }.read().unwrap();
            let expected = RequireAuth::Basic { user: user.into(), password: password.into() };
            assert_eq!(auth, Some(expected), "{content:?}");
        }
        std::fs::write(&path, "token\n").unwrap();
        let auth = AuthArgs { auth_bearer_file: Some(path.clone()), ..AuthArgs::default() }.read().unwrap();
        assert_eq!(auth, Some(RequireAuth::Bearer { token: "token".into() }));
        let refused = AuthArgs { auth_basic_file: Some(path), ..AuthArgs::default() }.read().unwrap_err();
        assert!(matches!(&refused, Failure::Usage(text) if !text.contains("token")), "{refused}");
        assert_eq!(AuthArgs::default().read().unwrap(), None);
    }
}
