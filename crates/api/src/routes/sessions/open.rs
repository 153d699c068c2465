//! Opening a session: choose, write everything in one transaction, and wait until the operator's packets pass.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;
use warren_model::allocate::MemberKind;
use warren_model::client_config::ClientConfig;
use warren_model::keypair::{self, PrivateKey};
use warren_model::record::{ApiKey, EventKind, Machine, Network, Power};
use warren_model::session::{
    DEFAULT_IDLE_SECONDS, DEFAULT_TTL_SECONDS, KEY_REST_DAYS, KeyHold, MAX_SESSIONS, MAX_TTL_SECONDS, Session,
    SessionScope, WireGuardKey,
};
use warren_model::{Code, SessionId, wire};
use warren_store::{TxnBuilder, Typed, Versioned, schema, session as records};
use zeroize::Zeroizing;

use super::endpoint::{self, AskedHost};
use super::view::{self, Views};
use super::{end, find};
use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::idempotency::{self, Claim, Created, Draft, Idempotency};
use crate::members::{self, Seat};
use crate::mutation::{Deed, News};
use crate::routes::Made;
use crate::state::Api;
use crate::tunnels::GatewayInfo;
use crate::{resolve, secret};

/// Seconds that a session lives, and that it may be idle.
const LIFETIME: std::ops::RangeInclusive<u64> = 5..=MAX_TTL_SECONDS;

/// Why a repeated answer has no private key in it.
const KEY_NOT_REPEATED: &str = "the private key was in the first answer only and is stored nowhere: close this session \
                                and open another one if it was lost";

/// Opens a session and waits until its packets pass, unless the request's idempotency key has opened one already.
pub(crate) async fn make(
    api: &Api,
    caller: &Caller,
    network: &str,
    host: &AskedHost,
    idempotency: &Idempotency,
    value: &wire::OpenSession,
    bytes: &[u8],
) -> Answer<Made<wire::OpenedSession>> {
    let wanted = Wanted::parse(value)?;
    let deadline = Instant::now() + api.config.operation_deadline;
    let created = idempotency.create(api, caller, bytes, |now| draft(api, caller, network, &wanted, now)).await?;
    match created {
        Created::Now { thing: (session, private_key), claim, .. } => {
            wait_until_open(api, caller, &session, &claim, deadline).await?;
            Ok(Made::Now(answer(api, &session, host, &wanted, private_key.as_ref()).await?))
        }
        Created::Before(id) => again(api, caller, &id, host, &wanted, deadline).await,
    }
}

/// A session, and its private key where the operator has not got it.
async fn draft(
    api: &Api,
    caller: &Caller,
    network: &str,
    wanted: &Wanted,
    now: Timestamp,
) -> Answer<Draft<(Session, Option<PrivateKey>)>> {
    let network = resolve::network(api, caller.account, network).await?;
    let choice = choose(api, caller, network, wanted, &gateway(api)?, now).await?;
    let (txn, news) = (choice.put()?, choice.news(api).await?);
    let Choice { session, private_key, .. } = choice;
    let deed = Deed { caller, now, action: "session.open" };
    let txn = deed.record(txn, session.id, &audited(api, caller, &session).await?, [news])?;
    Ok(Draft { id: session.id.to_string(), thing: (session, private_key), txn })
}

/// What is asked for, parsed.
struct Wanted {
    ttl_seconds: u64,
    idle_seconds: u64,
    public_key: Option<WireGuardKey>,
    /// A machine's id or name, and a port.
    only: Option<(String, Option<u16>)>,
    reachable: bool,
    dns: bool,
}

impl Wanted {
    fn parse(asked: &wire::OpenSession) -> Answer<Self> {
        let public_key = asked.public_key.as_deref().map(|text| {
            let key = text.parse::<WireGuardKey>();
            let key = key.map_err(|error| ApiError::new(Code::InvalidPublicKey, error.to_string()))?;
            match keypair::is_usable(&key) {
                true => Ok(key),
                false => Err(ApiError::new(
                    Code::InvalidPublicKey,
                    "this is not the public key of any private key: `wg genkey | tee private | wg pubkey` makes one",
                )),
            }
        });
        let only = asked.only.as_ref().map(|only| match only.port {
            Some(0) => Err(ApiError::new(Code::InvalidPort, "a port is 1 to 65535, not 0")),
            port => Ok((only.machine.clone(), port)),
        });
        let dns = asked.dns.unwrap_or(false);
        if dns && asked.only.is_some() {
            return Err(ApiError::invalid(
                "with `only`, nothing passes to the network's resolver: leave `dns` out, or open the session for the whole \
                 network",
            ));
        }
        Ok(Self {
            ttl_seconds: seconds("ttl_seconds", asked.ttl_seconds, DEFAULT_TTL_SECONDS)?,
            idle_seconds: seconds("idle_seconds", asked.idle_seconds, DEFAULT_IDLE_SECONDS)?,
            public_key: public_key.transpose()?,
            only: only.transpose()?,
            reachable: asked.reachable.unwrap_or(false),
            dns,
        })
    }
}

fn seconds(field: &str, asked: Option<u64>, usual: u64) -> Answer<u64> {
    let seconds = asked.unwrap_or(usual);
    if LIFETIME.contains(&seconds) {
        return Ok(seconds);
    }
    Err(ApiError::invalid(format!("{field} is {} to {}, not {seconds}", LIFETIME.start(), LIFETIME.end())))
}

/// The server's end of the tunnels, or why there is none.
pub(crate) fn gateway(api: &Api) -> Answer<GatewayInfo> {
    api.tunnels.gateway().map_err(|reason| {
        ApiError::new(Code::VpnUnavailable, format!("operators cannot join networks on this server: {reason}"))
    })
}

/// What a new session was given, and what must still be so when it is written.
struct Choice {
    session: Session,
    /// `None` where the operator has it.
    private_key: Option<PrivateKey>,
    seat: Seat,
    key: Versioned<ApiKey>,
    /// Where the key is found by its id.
    key_place: Versioned<String>,
    only: Option<Versioned<Machine>>,
    /// What was known of the operator's public key.
    public_key: Option<Versioned<KeyHold>>,
}

async fn choose(
    api: &Api,
    caller: &Caller,
    network: Versioned<Network>,
    wanted: &Wanted,
    gateway: &GatewayInfo,
    now: Timestamp,
) -> Answer<Choice> {
    let only = match &wanted.only {
        Some((machine, _)) => Some(machine_of(api, caller, &network.record, machine).await?),
        None => None,
    };
    if api.store.count(schema::sessions_of(caller.account).as_str()).await? >= MAX_SESSIONS {
        return Err(ApiError::new(
            Code::SessionLimit,
            format!(
                "an account has at most {MAX_SESSIONS} sessions, in all its networks: close one that is not needed"
            ),
        ));
    }
    let (public_key, known, private_key) = match wanted.public_key {
        Some(key) => (key, free_key(api, caller, &key, gateway).await?, None),
        None => {
            let made = PrivateKey::from_random(&Zeroizing::new(secret::random()?));
            (made.public_key(), None, Some(made))
        }
    };
    // It may have been revoked since the request came in.
    let hash = caller.key_hash().ok_or_else(ApiError::internal)?;
    let key = api.store.read(&schema::api_key(&hash)).await?;
    let key = key.filter(|key| key.record.is_valid(now)).ok_or_else(ApiError::unauthorized)?;
    let key_place = schema::api_key_hash(key.record.account, key.record.id);
    let key_place = api.store.read(&key_place).await?.ok_or_else(ApiError::unauthorized)?;
    let life = SignedDuration::from_secs(i64::try_from(wanted.ttl_seconds).unwrap_or(i64::MAX));
    let expires_at = now.checked_add(life).map_err(|_| ApiError::internal())?;
    let seat = members::choose(api, network, MemberKind::Session, None, now).await?;
    let session = Session {
        id: SessionId::from_ulid(secret::ulid(now)?),
        account: caller.account,
        network: seat.network.record.id,
        member: seat.number,
        ipv4: seat.ipv4,
        public_key,
        only: only.as_ref().map(|machine| SessionScope {
            machine: machine.record.id,
            port: wanted.only.as_ref().and_then(|(_, port)| *port),
        }),
        reachable: wanted.reachable,
        created_at: now,
        // A key opens nothing that outlives it.
        expires_at: key.record.expires_at.map_or(expires_at, |end| end.min(expires_at)),
        idle_seconds: wanted.idle_seconds,
        opened_by: key.record.id,
    };
    Ok(Choice { session, private_key, seat, key, key_place, only, public_key: known })
}

async fn machine_of(api: &Api, caller: &Caller, network: &Network, given: &str) -> Answer<Versioned<Machine>> {
    let machine = resolve::machine(api, caller, given).await?;
    if machine.record.network != network.id {
        return Err(ApiError::invalid(format!(
            "machine {} is not in network {}: a session reaches machines of its own network only",
            machine.record.name, network.name
        )));
    }
    if machine.record.power == Power::Gone {
        return Err(ApiError::new(Code::MachineBusy, format!("machine {} is being deleted", machine.record.name)));
    }
    Ok(machine)
}

/// What is known of the key, where that does not keep it from being used.
async fn free_key(
    api: &Api,
    caller: &Caller,
    key: &WireGuardKey,
    gateway: &GatewayInfo,
) -> Answer<Option<Versioned<KeyHold>>> {
    if *key == gateway.public_key {
        return Err(ApiError::new(
            Code::InvalidPublicKey,
            "this is the server's own public key: send yours, which `wg pubkey` makes of your private key",
        ));
    }
    let known = api.store.read(&schema::session_key(key)).await?;
    let is_free = |hold: &KeyHold| hold.session.is_none() && hold.account == caller.account;
    if known.as_ref().is_none_or(|hold| is_free(&hold.record)) {
        return Ok(known);
    }
    // Whose it is stays unsaid: it may be another account's, whose operator's program may go on calling with it.
    Err(ApiError::new(
        Code::PublicKeyInUse,
        format!(
            "a session has this public key, or it rests for {KEY_REST_DAYS} days after one of another account's: make another \
             key pair, or close the session that has it"
        ),
    ))
}

impl Choice {
    fn put(&self) -> Answer<TxnBuilder> {
        let session = &self.session;
        let public_key = schema::session_key(&session.public_key);
        let txn = match &self.public_key {
            Some(read) => TxnBuilder::new().unchanged(read),
            None => TxnBuilder::new().absent(&public_key),
        };
        let mut txn = self
            .seat
            .put(txn, session.id)?
            // Its place is written as it was, so that it cannot be revoked at the same time. The key itself is not: whoever
            // has it would have to prove it anew.
            .unchanged(&self.key)
            .unchanged(&self.key_place)
            .put(&schema::api_key_hash(session.account, self.key.record.id), &self.key_place.record)?;
        if let Some(machine) = &self.only {
            // Likewise, so that it is not deleted without the session.
            txn = txn.unchanged(machine).put(&schema::machine(machine.record.id), &machine.record)?;
        }
        // A key that rests was used before, and one that was made here is nobody else's.
        let heard = self.public_key.is_some() || self.private_key.is_some();
        Ok(records::put(txn, session, heard)?)
    }

    async fn news(&self, api: &Api) -> Answer<News> {
        let Session { id, account, network, ipv4, expires_at, opened_by, .. } = &self.session;
        let operator = view::operator(api, *account, *opened_by).await?;
        let reachable = if self.session.reachable { ", reachable" } else { "" };
        let only = match (&self.only, self.session.only.and_then(|only| only.port)) {
            (Some(machine), Some(port)) => format!(", for {}:{port} only", machine.record.name),
            (Some(machine), None) => format!(", for {} only", machine.record.name),
            (None, _) => String::new(),
        };
        Ok(News {
            kind: EventKind::SessionOpened,
            account: *account,
            network: Some(*network),
            machine: None,
            message: format!(
                "{} ({id}) was opened by {operator} in network {} with {ipv4}, until {expires_at:.0}{only}{reachable}",
                self.session.name(),
                self.seat.network.record.name
            ),
        })
    }
}

/// What the audit log says of a session: who is behind it and what it reaches, and none of its keys.
pub(super) async fn audited(api: &Api, caller: &Caller, session: &Session) -> Answer<Value> {
    let by = match caller.key() {
        Some(key) => view::operator(api, caller.account, key).await?,
        None => String::new(),
    };
    Ok(json!({
        "operator": view::operator(api, session.account, session.opened_by).await?,
        "by": by,
        "network": session.network,
        "address": session.ipv4,
        "only": session.only,
        "reachable": session.reachable,
        "expires_at": session.expires_at,
        "idle_seconds": session.idle_seconds,
    }))
}

async fn wait_until_open(
    api: &Api,
    caller: &Caller,
    session: &Session,
    claim: &Claim,
    deadline: Instant,
) -> Answer<()> {
    let error = match passes(api, session, deadline).await {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    end::undo(api, caller, session.id, error.problem.detail.clone(), claim).await?;
    Err(ApiError::new(
        error.problem.code,
        format!("the session could not be opened and nothing of it stays: {}", error.problem.detail),
    ))
}

async fn passes(api: &Api, session: &Session, deadline: Instant) -> Answer<()> {
    tokio::select! {
        opened = tokio::time::timeout_at(deadline, api.tunnels.opened(session)) => match opened {
            Ok(opened) => Ok(opened?),
            Err(_) => Err(ApiError::new(
                Code::DeadlineExceeded,
                "the tunnel was not ready in time: the server's log says more",
            )),
        },
        () = api.config.shutdown.cancelled() => {
            Err(ApiError::new(Code::NotReady, "the server is shutting down: try again when it is back"))
        }
    }
}

/// The answer to a request that opened a session before.
async fn again(
    api: &Api,
    caller: &Caller,
    id: &str,
    host: &AskedHost,
    wanted: &Wanted,
    deadline: Instant,
) -> Answer<Made<wire::OpenedSession>> {
    let gone = idempotency::gone("session");
    let session = find(api, caller, id).await.map_err(&gone)?.record;
    passes(api, &session, deadline).await?;
    let session = find(api, caller, id).await.map_err(&gone)?.record;
    Ok(Made::Before(answer(api, &session, host, wanted, None).await?))
}

async fn answer(
    api: &Api,
    session: &Session,
    host: &AskedHost,
    wanted: &Wanted,
    private_key: Option<&PrivateKey>,
) -> Answer<wire::OpenedSession> {
    let gateway = gateway(api)?;
    let (endpoint, note) = endpoint::choose(&gateway, host);
    let gone = || ApiError::new(Code::NotFound, format!("session {} was closed while it was opened", session.id));
    let view = Views::without_status().session(api, session).await?.ok_or_else(gone)?;
    let network = api.store.read(&schema::network(session.network)).await?.ok_or_else(gone)?.record;
    let only = match session.only {
        Some(scope) => Some(api.store.read(&schema::machine(scope.machine)).await?.ok_or_else(gone)?.record),
        None => None,
    };
    let ways = Ways::of(api, session, &network, only.as_ref(), wanted.dns);
    // A repeated answer of a session whose private key the server made.
    let lost = private_key.is_none() && wanted.public_key.is_none();
    let mut notes: Vec<_> = note.into_iter().collect();
    if lost {
        notes.push(format!("Not complete: {KEY_NOT_REPEATED}."));
    }
    let private_key = private_key.map(PrivateKey::to_base64);
    let config = ClientConfig {
        private_key: private_key.as_ref().map(|text| text.as_str()),
        notes: &notes,
        addresses: &ways.addresses,
        dns: &ways.dns,
        server_public_key: &gateway.public_key,
        allowed_ips: &ways.allowed_ips,
        endpoint: &endpoint,
    };
    Ok(wire::OpenedSession {
        session_id: view.id.clone(),
        session: view,
        client_config: config.to_string(),
        client_private_key: private_key.as_ref().map(|text| text.to_string()),
        endpoint,
        server_public_key: gateway.public_key,
        addresses: ways.addresses,
        allowed_ips: ways.allowed_ips,
        dns: ways.dns,
        detail: lost.then(|| KEY_NOT_REPEATED.to_owned()),
    })
}

/// What goes through a session's tunnel.
struct Ways {
    addresses: Vec<IpNet>,
    allowed_ips: Vec<IpNet>,
    dns: Vec<IpAddr>,
}

impl Ways {
    fn of(api: &Api, session: &Session, network: &Network, only: Option<&Machine>, dns: bool) -> Self {
        let ula = api.config.installation.ula;
        let gateway: [IpAddr; 2] = [network.cidr.gateway().into(), ula.gateway(network.number).into()];
        let dns = if dns { gateway.to_vec() } else { Vec::new() };
        let allowed_ips = match only {
            Some(machine) => {
                let machine: [IpAddr; 2] = [machine.ipv4.into(), machine.ipv6(ula, network.number).into()];
                machine.map(IpNet::from).to_vec()
            }
            // The network's /80 and the one from which its resolver answers for names outside are in one /64.
            None => vec![network.cidr.net().into(), ula.tunnelled(network.number).into()],
        };
        let own = [session.ipv4.into(), session.ipv6(ula, network.number).into()];
        Self { addresses: own.map(|address: IpAddr| IpNet::from(address)).to_vec(), allowed_ips, dns }
    }
}
