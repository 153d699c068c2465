//! `vpn up`: a session and a link that last as long as the command.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;
use warren_model::cidr::PRIVATE_RANGES;
use warren_model::client_config::ClientConfig;
use warren_model::keypair::PrivateKey;
use warren_model::wire::{OpenedSession, Session};
use warren_model::{Code, SessionId};
use zeroize::Zeroizing;

use super::quick::{Config, Quick};
use super::{UpArgs, close, is, is_gone, left, routes};
use crate::cli::Context;
use crate::cli::failure::Failure;
use crate::cli::output::{note, read};
use crate::cli::render::{printable, time};
use crate::client::Client;
use crate::client::route::Route;

/// How often the server is asked how the session is: before the first handshake, and after it.
const AT_FIRST: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(3);
/// How long a handshake may take before something is said.
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn up(context: &Context, args: UpArgs) -> Result<(), Failure> {
    let quick = Quick::find()?;
    left::clear(&quick, &context.client).await;
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|error| Failure::Said(format!("no random numbers: {error}")))?;
    let key = PrivateKey::from_random(&bytes);
    // From here on a signal is a wish to leave, and whatever was begun is taken back.
    let mut leaving = Leaving::new()?;
    let opened: OpenedSession = read(args.asked.open(&context.client, Some(&key.public_key())).await?)?;
    let (stayed, down) = stay(context, &quick, &args, &opened, &key, &mut leaving).await;
    // The key that opened it was all that could close it, and took it along.
    let closed = match &stayed {
        Ok(End::KeyGone) => Ok(()),
        _ => close(&context.client, &opened.session_id).await,
    };
    let (said, failures) = outcome(stayed, [down, closed]);
    if let Some(said) = said {
        note(said);
    }
    let mut failures = failures.into_iter();
    let first = failures.next();
    // The first failure is the answer; the others must not be lost.
    failures.filter_map(|failure| failure.report(context.output.json)).for_each(|report| note(&report));
    first.map_or(Ok(()), Err)
}

/// What a person is told of the end, and all that failed, in its order: how it came to the end, and what was to be taken
/// back after it.
fn outcome(stayed: Result<End, Failure>, after: [Result<(), Failure>; 2]) -> (Option<&'static str>, Vec<Failure>) {
    let after: Vec<_> = after.into_iter().filter_map(Result::err).collect();
    match stayed {
        // It would not be true.
        Ok(End::Left) if !after.is_empty() => (None, after),
        stayed => match stayed.and_then(End::said) {
            Ok(said) => (Some(said), after),
            Err(failure) => (None, [failure].into_iter().chain(after).collect()),
        },
    }
}

/// Names the routes of this machine that are in the way of what is to be routed.
fn refuse_overlap(opened: &OpenedSession) -> Result<(), Failure> {
    let ranges: Vec<Ipv4Net> = four(&opened.allowed_ips).collect();
    let Some(found) = routes::overlapping(&ranges) else {
        note("The routes of this machine cannot be read here: see yourself that none covers the network.");
        return Ok(());
    };
    match overlap(opened, &ranges, &found) {
        Some(text) => Err(Failure::Said(text)),
        None => Ok(()),
    }
}

/// What is said of routes that are in the way, if there are any.
fn overlap(opened: &OpenedSession, ranges: &[Ipv4Net], found: &[routes::Route]) -> Option<String> {
    let found: Vec<_> = found.iter().map(|route| format!("{} on {}", route.range, route.link)).collect();
    if found.is_empty() {
        return None;
    }
    let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
    let six: Vec<_> =
        opened.allowed_ips.iter().filter(|net| matches!(net, IpNet::V6(_))).map(ToString::to_string).collect();
    Some(format!(
        "{} of network {} overlaps routes of this machine ({}), and what is behind those could no longer be reached: add \
         --ula to route {} alone, which overlaps nothing",
        ranges.join(" and "),
        printable(&opened.session.network.name),
        found.join(", "),
        six.join(" and ")
    ))
}

fn four(nets: &[IpNet]) -> impl Iterator<Item = Ipv4Net> {
    nets.iter().filter_map(|net| match net {
        IpNet::V4(four) => Some(*four),
        IpNet::V6(_) => None,
    })
}

/// How it came to the end, and whether the link could be taken down after it.
async fn stay(
    context: &Context,
    quick: &Quick,
    args: &UpArgs,
    opened: &OpenedSession,
    key: &PrivateKey,
    leaving: &mut Leaving,
) -> (Result<End, Failure>, Result<(), Failure>) {
    let mut config = match begin(quick, args, opened, key).await {
        Ok(config) => config,
        Err(failure) => return (Err(failure), Ok(())),
    };
    let stayed = match say(context, opened, &config, args.ula) {
        Ok(()) => wait(&context.client, opened, leaving, AT_FIRST).await,
        Err(failure) => Err(failure),
    };
    (stayed, quick.down(&mut config).await)
}

/// Brings the link up.
async fn begin(quick: &Quick, args: &UpArgs, opened: &OpenedSession, key: &PrivateKey) -> Result<Config, Failure> {
    refuse_public(opened)?;
    if !args.ula {
        refuse_overlap(opened)?;
    }
    let link = link(opened)?;
    let mut config = Config::write(args.config_dir.as_deref(), &opened.session_id, &link, &text(args, opened, key))?;
    quick.up(&mut config).await?;
    Ok(config)
}

/// A network has private addresses; whoever names others wants more of this machine's traffic than its operator knows.
fn refuse_public(opened: &OpenedSession) -> Result<(), Failure> {
    let private: Vec<IpNet> =
        PRIVATE_RANGES.iter().copied().chain(["fc00::/7"]).filter_map(|range| range.parse().ok()).collect();
    let all = opened.allowed_ips.iter().chain(&opened.addresses);
    match all.copied().find(|net| !private.iter().any(|range| range.contains(net))) {
        None => Ok(()),
        Some(net) => Err(Failure::Said(format!("the server wants {net} in the tunnel, which is no private range"))),
    }
}

/// `wg-7k2m9q4x`, by the end of the session's id: a link's name has at most 15 bytes.
fn link(opened: &OpenedSession) -> Result<String, Failure> {
    let id: SessionId = opened.session_id.parse().map_err(|_| {
        Failure::Said(format!("the server named the session {:?}, which is no id", printable(&opened.session_id)))
    })?;
    let id = id.to_string();
    Ok(format!("wg-{}", &id[id.len() - 8..]))
}

/// The configuration, put together here out of parts that were read: what `wg-quick` takes it runs as root.
fn text(args: &UpArgs, opened: &OpenedSession, key: &PrivateKey) -> Zeroizing<String> {
    let six_only = |net: &&IpNet| !args.ula || matches!(net, IpNet::V6(_));
    let addresses: Vec<_> = opened.addresses.iter().filter(six_only).copied().collect();
    let allowed_ips: Vec<_> = opened.allowed_ips.iter().filter(six_only).copied().collect();
    let wanted = |address: &&IpAddr| args.asked.dns && (!args.ula || address.is_ipv6());
    let dns: Vec<IpAddr> = opened.dns.iter().filter(wanted).copied().collect();
    let private_key = key.to_base64();
    let config = ClientConfig {
        private_key: Some(private_key.as_str()),
        notes: &[],
        addresses: &addresses,
        dns: &dns,
        server_public_key: &opened.server_public_key,
        allowed_ips: &allowed_ips,
        endpoint: &opened.endpoint,
    };
    Zeroizing::new(config.to_string())
}

fn say(context: &Context, opened: &OpenedSession, config: &Config, ula: bool) -> Result<(), Failure> {
    let session = &opened.session;
    if context.output.json {
        return context.output.json(&json!({
            "session_id": opened.session_id,
            "network": session.network,
            "interface": config.link(),
            "config": config.path(),
            "addresses": opened.addresses,
            "allowed_ips": opened.allowed_ips,
            "expires_at": session.expires_at,
        }));
    }
    let own = match ula {
        true => session.private_ip6.to_string(),
        false => format!("{} and {}", session.private_ip, session.private_ip6),
    };
    context.output.text(&printable(&format!(
        "joined {} as {own} over {}, until {}",
        session.network.name,
        config.link(),
        time(session.expires_at)
    )))?;
    let (family, field) = if ula { ("IPv6", "private_ip6") } else { ("private", "private_ip") };
    note(&format!(
        "Machines answer at their {family} addresses (`warren machine show NAME --json`, {field}). Ctrl-C leaves and \
         closes the session."
    ));
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Ctrl-C, or a signal.
    Left,
    Expired,
    /// By somebody else, or because nothing came for too long.
    Closed,
    /// The key that opened it is not valid any more.
    KeyGone,
}

impl End {
    /// What a person is told; an error where the session ended before its time.
    fn said(self) -> Result<&'static str, Failure> {
        match self {
            Self::Left => Ok("Left the network."),
            Self::Expired => Ok("The session has expired."),
            Self::Closed => Err(Failure::Said(
                "the session was closed, by somebody else or because nothing came from here for too long (--idle)"
                    .to_owned(),
            )),
            Self::KeyGone => Err(Failure::Said(
                "the session has ended with the key that opened it, which was revoked or has expired: give a valid one \
                 with --key or WARREN_API_KEY"
                    .to_owned(),
            )),
        }
    }
}

/// Asks the server how the session is, so often until it heard from here.
async fn wait(
    client: &Client,
    opened: &OpenedSession,
    leaving: &mut Leaving,
    at_first: Duration,
) -> Result<End, Failure> {
    let route = Route::new(&["sessions", &opened.session_id]);
    let expires_at = opened.session.expires_at;
    let patience = Instant::now() + PATIENCE;
    let (mut every, mut told) = (at_first, false);
    loop {
        let left = expires_at.duration_since(Timestamp::now());
        let Ok(left) = Duration::try_from(left) else { return Ok(End::Expired) };
        if left.is_zero() {
            return Ok(End::Expired);
        }
        tokio::select! {
            () = leaving.next() => return Ok(End::Left),
            // Looks at the clock at least so often: the machine may have slept meanwhile.
            () = tokio::time::sleep(left.min(every)) => {}
        }
        let asked = tokio::select! {
            () = leaving.next() => return Ok(End::Left),
            asked = client.get(&route) => asked,
        };
        match asked {
            Err(error) if is_gone(&error) && expires_at <= Timestamp::now() => return Ok(End::Expired),
            Err(error) if is_gone(&error) => return Ok(End::Closed),
            Err(error) if is(&error, Code::Unauthorized) => return Ok(End::KeyGone),
            // The server may be on its way back; the tunnel does not need it.
            Err(_) => every = LATER,
            Ok(answer) => {
                let session: Session = read(answer)?;
                let heard = session.status.is_some_and(|status| status.last_handshake_at.is_some());
                if heard || told {
                    every = LATER;
                } else if Instant::now() >= patience {
                    told = true;
                    note(&format!(
                        "The server has not heard from here yet: see that UDP to {} gets through, or start the server \
                         with --vpn-endpoint HOST:PORT where it is reached elsewhere.",
                        opened.endpoint
                    ));
                }
            }
        }
    }
}

/// The signals that end the command.
struct Leaving {
    #[cfg(unix)]
    signals: [tokio::signal::unix::Signal; 3],
}

#[cfg(unix)]
impl Leaving {
    fn new() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |source| Failure::local("cannot wait for signals", source);
        let of = |kind| signal(kind).map_err(failed);
        Ok(Self { signals: [of(SignalKind::interrupt())?, of(SignalKind::terminate())?, of(SignalKind::hangup())?] })
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Leaving {
    fn new() -> Result<Self, Failure> {
        Ok(Self {})
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::Asked;
    use super::super::tests::server;
    use super::*;

    fn opened() -> OpenedSession {
        let key = PrivateKey::from_random(&[9; 32]).public_key().to_string();
        let document = json!({
            "id": "ses_01jd8m00000000000000000001", "session_id": "ses_01jd8m00000000000000000001",
            "name": "session-00000001", "network": { "id": "net_01", "name": "agents" }, "only": null,
            "reachable": false,
            "private_ip": "10.0.5.10", "private_ip6": "fd00::5", "public_key": key,
            "created_at": "2026-11-20T09:30:00Z", "expires_at": "2026-11-20T10:30:00Z", "idle_seconds": 1800,
            "opened_by": "key_01", "operator": "anna", "status": null,
            "client_config": "[Interface]\nPostUp = reboot\n",
            "endpoint": "vpn.example:51820", "server_public_key": key,
            "addresses": ["10.0.5.10/32", "fd00::5/128"], "allowed_ips": ["10.0.0.0/16", "fd00::/64"],
            "dns": ["10.0.0.1", "fd00::1"],
        });
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn the_configuration_is_made_of_what_was_read_and_of_the_key_that_stays_here() {
        let key = PrivateKey::from_random(&[1; 32]);
        let asked = Asked { network: "agents".into(), ttl: None, idle: None, only: None, reachable: false, dns: false };
        let mut args = UpArgs { asked, ula: false, config_dir: None };
        let both = text(&args, &opened(), &key);
        assert!(both.contains(&format!("PrivateKey = {}\n", key.to_base64().as_str())), "{}", both.as_str());
        assert!(both.contains("Address = 10.0.5.10/32, fd00::5/128\n") && !both.contains("PostUp"));
        assert!(!both.contains("DNS"), "it was not asked for");
        (args.ula, args.asked.dns) = (true, true);
        let six = text(&args, &opened(), &key);
        assert!(!six.contains("10.0."), "{}", six.as_str());
        assert!(six.contains("AllowedIPs = fd00::/64\n") && six.contains("DNS = fd00::1\n"), "{}", six.as_str());
    }

    #[test]
    fn only_what_will_be_routed_is_in_the_way_of_other_routes() {
        let mut opened = opened();
        let in_the_way = |opened: &OpenedSession| {
            let ranges: Vec<_> = four(&opened.allowed_ips).collect();
            let own = [routes::Route { range: "10.0.0.0/24".parse().unwrap(), link: "docker0".into() }];
            let found: Vec<_> = own.into_iter().filter(|route| route.overlaps(&ranges)).collect();
            overlap(opened, &ranges, &found)
        };
        insta::assert_snapshot!(in_the_way(&opened).unwrap(), @"10.0.0.0/16 of network agents overlaps routes of this machine (10.0.0.0/24 on docker0), and what is behind those could no longer be reached: add --ula to route fd00::/64 alone, which overlaps nothing");
        // A session for one machine routes that machine alone.
        opened.allowed_ips = vec!["10.0.1.7/32".parse().unwrap(), "fd00::7/128".parse().unwrap()];
        assert_eq!(in_the_way(&opened), None);
        opened.allowed_ips = vec!["10.0.0.7/32".parse().unwrap(), "fd00::7/128".parse().unwrap()];
        assert!(in_the_way(&opened).unwrap().starts_with("10.0.0.7/32 of network agents overlaps"));
    }

    #[tokio::test]
    async fn a_session_whose_key_is_gone_ends_and_says_so() {
        let mut opened = opened();
        opened.session.expires_at = Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let mut leaving = Leaving::new().unwrap();
        for (answer, expected, says) in [
            (
                "HTTP/1.1 401 Unauthorized\r\ncontent-length: 23\r\nconnection: close\r\n\r\n{\"code\":\"unauthorized\"}",
                End::KeyGone,
                "ended with the key that opened it",
            ),
            (
                "HTTP/1.1 404 Not Found\r\ncontent-length: 20\r\nconnection: close\r\n\r\n{\"code\":\"not_found\"}",
                End::Closed,
                "was closed",
            ),
        ] {
            let (client, _asked, _directory) = server(answer);
            let every = Duration::from_millis(10);
            let end = tokio::time::timeout(Duration::from_secs(10), wait(&client, &opened, &mut leaving, every)).await;
            let end = end.unwrap().unwrap();
            assert_eq!(end, expected);
            let failure = end.said().unwrap_err();
            assert_eq!(failure.exit_status(), 1);
            assert!(failure.to_string().contains(says), "{failure}");
        }
    }

    #[test]
    fn nothing_that_failed_is_lost_when_more_fails_after_it() {
        let failed = |what: &str| Failure::Said(what.to_owned());
        let told = |stayed, down: Result<(), Failure>, closed: Result<(), Failure>| {
            let (said, failures) = outcome(stayed, [down, closed]);
            (said, failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        };
        let (said, failures) = told(Err(failed("no stdout")), Err(failed("no down")), Err(failed("no close")));
        assert_eq!((said, failures.as_str()), (None, "no stdout; no down; no close"));
        let (said, failures) = told(Ok(End::Closed), Err(failed("no down")), Ok(()));
        assert!(said.is_none() && failures.contains("was closed") && failures.ends_with("; no down"), "{failures}");
        // Why it ended is told also where that is no failure; that the network was left only where it was.
        let (said, failures) = told(Ok(End::Expired), Err(failed("no down")), Ok(()));
        assert!(said.is_some_and(|said| said.contains("expired")) && failures == "no down", "{failures}");
        assert_eq!(told(Ok(End::Left), Err(failed("no down")), Ok(())), (None, "no down".to_owned()));
        assert_eq!(told(Ok(End::Left), Ok(()), Ok(())), (Some("Left the network."), String::new()));
    }

    #[test]
    fn a_link_is_named_by_its_session_and_by_nothing_that_a_server_could_make_up() {
        let mut opened = opened();
        assert_eq!(link(&opened).unwrap(), "wg-00000001");
        opened.session_id = "../../etc/passwd".into();
        assert!(link(&opened).is_err());
    }

    #[test]
    fn a_server_cannot_take_more_than_private_addresses_into_the_tunnel() {
        assert!(refuse_public(&opened()).is_ok());
        for wide in ["0.0.0.0/0", "10.0.0.0/7", "192.0.2.0/24", "::/0", "2001:db8::/64"] {
            let mut opened = opened();
            opened.allowed_ips.push(wide.parse().unwrap());
            assert!(refuse_public(&opened).is_err(), "{wide}");
        }
    }

    #[test]
    fn a_server_cannot_put_commands_into_what_is_run_as_root() {
        for (field, value) in [
            ("endpoint", json!("vpn.example:51820\nPostUp = reboot")),
            ("server_public_key", json!("key\nPostUp = reboot")),
            ("addresses", json!(["10.0.5.10/32\nPostUp = reboot"])),
            ("allowed_ips", json!(["0.0.0.0/0\nPostUp = reboot"])),
            ("dns", json!(["10.0.0.1\nPostUp = reboot"])),
        ] {
            let mut document = serde_json::to_value(opened()).unwrap();
            document[field] = value;
            assert!(read::<OpenedSession>(document).is_err(), "{field}");
        }
    }
}
