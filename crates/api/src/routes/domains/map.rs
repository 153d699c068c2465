//! Mapping names to ports, changing that and taking it back.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;
use warren_model::domain::{Domain, DomainAuth, DomainLimits, MAX_DOMAINS, MAX_DOMAINS_OF_SERVER};
use warren_model::policy::HostName;
use warren_model::record::{DeclaredPort, EventKind, Machine, Power, Protocol};
use warren_model::wire::{AskLimits, RequireAuth};
use warren_model::{Code, DomainId, MachineId, wire};
use warren_store::{Store, TxnBuilder, TxnOutcome, Versioned, domain as records, schema};

use super::{find, host_name, publishing, room, view};
use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named};
use crate::idempotency::{self, Created, Draft, Idempotency};
use crate::mutation::{ATTEMPTS, Deed, News, contended};
use crate::publisher::PublicInfo;
use crate::routes::{Made, power, wanted};
use crate::state::{Api, Shared};
use crate::{resolve, secret};

/// Random letters at the end of a preview's name.
const LETTERS: usize = 6;
/// Characters of a label (RFC 1035 §2.3.4).
const LABEL: usize = 63;

/// Map a host name to a machine's port
///
/// From then on the port is public, under this name and no other. The account has to have proved that the name is its
/// own, unless it is below the server's preview suffix. Answers when the edge serves it; its certificate may still be
/// on its way, see `certificate`.
#[utoipa::path(post, path = "/v1/domains", operation_id = "create_domain", tag = "domains",
    request_body = wire::CreateDomain, responses(
        (status = 201, body = wire::Domain, description = "Created"),
        (status = 200, body = wire::Domain, description = "Created before with this Idempotency-Key")))]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    idempotency: Idempotency,
    JsonBody { value, bytes }: JsonBody<wire::CreateDomain>,
) -> Answer<Response> {
    let made = make(&api, &caller, &idempotency, &value, &bytes, Undeclared::Refuse).await?;
    Ok(made.respond(|domain| format!("/v1/domains/{}", domain.host)))
}

/// What is done about a port that the machine does not declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undeclared {
    Refuse,
    /// Declare it, for clients that say so by mapping it.
    Declare,
}

/// Maps a name, unless the request's idempotency key has mapped one already.
pub(crate) async fn make(
    api: &Api,
    caller: &Caller,
    idempotency: &Idempotency,
    value: &wire::CreateDomain,
    bytes: &[u8],
    undeclared: Undeclared,
) -> Answer<Made<wire::Domain>> {
    let deadline = Instant::now() + api.config.operation_deadline;
    let info = publishing(api)?;
    let host = value.host.as_deref().map(host_name).transpose()?;
    let auth = value.auth.as_ref().map(auth).transpose()?.flatten();
    let allowance = Allowance::usual().with(value.limits)?;
    let asked = Asked { host, auth, allowance, undeclared, value };
    let created = idempotency.create(api, caller, bytes, |now| draft(api, caller, &info, &asked, now)).await?;
    match created {
        Created::Now { thing, .. } => {
            wait_until_served(api, &thing.host, deadline).await?;
            Ok(Made::Now(view(api, thing).await?))
        }
        Created::Before(id) => {
            let found = find(api, caller.account, &id).await.map_err(idempotency::gone("domain"))?;
            wait_until_served(api, &found.record.host, deadline).await?;
            Ok(Made::Before(view(api, found.record).await?))
        }
    }
}

/// What is asked for, parsed.
struct Asked<'a> {
    host: Option<HostName>,
    auth: Option<DomainAuth>,
    allowance: Allowance,
    undeclared: Undeclared,
    value: &'a wire::CreateDomain,
}

async fn draft(
    api: &Api,
    caller: &Caller,
    info: &PublicInfo,
    asked: &Asked<'_>,
    now: Timestamp,
) -> Answer<Draft<Domain>> {
    let port = asked.value.port;
    let machine = resolve::machine(api, caller, &asked.value.machine).await?;
    let declared = declared(&machine.record, port, asked.undeclared)?;
    let host = match &asked.host {
        Some(host) => host.clone(),
        None => preview(info, &machine.record, port)?,
    };
    let room = room::find(api, caller, info, &host).await?;
    if api.store.count(schema::domains_of(caller.account).as_str()).await? >= MAX_DOMAINS {
        return Err(ApiError::new(
            Code::QuotaExceeded,
            format!("an account has at most {MAX_DOMAINS} domains: unmap one that is not needed"),
        ));
    }
    if api.store.count(schema::domains().as_str()).await? >= MAX_DOMAINS_OF_SERVER {
        return Err(ApiError::new(
            Code::QuotaExceeded,
            format!("a server has at most {MAX_DOMAINS_OF_SERVER} domains: its operator can unmap some"),
        ));
    }
    let domain = Domain {
        id: DomainId::from_ulid(secret::ulid(now)?),
        account: caller.account,
        host,
        network: declared.network,
        machine: declared.id,
        port,
        auth: asked.auth.clone(),
        limits: asked.allowance.limits,
        burst_asked_for: Some(asked.allowance.burst_asked_for),
        proof: room.proof,
        created_at: now,
        created_by: caller.must_be_key()?,
    };
    let txn = room
        .take(TxnBuilder::new())?
        // Also where it stays as it is, so that it is not deleted, or loses the port, at the same time.
        .unchanged(&machine)
        .put(&schema::machine(declared.id), &declared)?;
    let deed = Deed { caller, now, action: "domain.map" };
    let txn = records::put(txn, &domain)?;
    let txn = deed.record(txn, domain.id, &told(&domain), [published(&domain, &declared)])?;
    Ok(Draft { id: domain.id.to_string(), thing: domain, txn })
}

/// Change where a domain leads, what it asks for or what it lets through
#[utoipa::path(patch, path = "/v1/domains/{domain}", operation_id = "update_domain", tag = "domains",
    params(("domain" = String, Path, description = "Id or host name")),
    request_body = wire::UpdateDomain, responses((status = 200, body = wire::Domain)))]
pub(crate) async fn update(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    JsonBody { value, .. }: JsonBody<wire::UpdateDomain>,
) -> Answer<Json<wire::Domain>> {
    let deadline = Instant::now() + api.config.operation_deadline;
    publishing(&api)?;
    if value.machine.is_some() && value.port.is_none() {
        return Err(ApiError::invalid("name the port too, when the domain is to lead to another machine"));
    }
    let auth = value.auth.as_ref().map(auth).transpose()?;
    for _ in 0..ATTEMPTS {
        let now = Timestamp::now();
        let read = find(&api, caller.account, &given).await?;
        let mut domain = read.record.clone();
        if value.limits.is_some() {
            let Allowance { limits, burst_asked_for } = Allowance::of(&domain).with(value.limits)?;
            (domain.limits, domain.burst_asked_for) = (limits, Some(burst_asked_for));
        }
        domain.auth = auth.clone().unwrap_or(domain.auth);
        let named = value.machine.clone().unwrap_or_else(|| domain.machine.to_string());
        let machine = resolve::machine(&api, &caller, &named).await?;
        domain.port = value.port.unwrap_or(domain.port);
        declared(&machine.record, domain.port, Undeclared::Refuse)?;
        (domain.machine, domain.network) = (machine.record.id, machine.record.network);
        if domain == read.record {
            wait_until_served(&api, &domain.host, deadline).await?;
            return Ok(Json(view(&api, domain).await?));
        }
        let txn = TxnBuilder::new().unchanged(&machine).put(&schema::machine(domain.machine), &machine.record)?;
        let txn = records::replace(txn, &read, &domain)?;
        let deed = Deed { caller: &caller, now, action: "domain.update" };
        let left = domain.machine != read.record.machine;
        let moved = left || domain.port != read.record.port;
        let news = left.then(|| withdrawn(&read.record, "leads to another machine"));
        let news = news.into_iter().chain(moved.then(|| published(&domain, &machine.record)));
        let txn = deed.record(txn, domain.id, &told(&domain), news)?;
        if let TxnOutcome::Committed(_) = txn.commit(&*api.store).await? {
            wait_until_served(&api, &domain.host, deadline).await?;
            return Ok(Json(view(&api, domain).await?));
        }
    }
    Err(contended())
}

/// Unmap a domain
///
/// Answers when nothing is served under the name any more; its open connections are cut.
#[utoipa::path(delete, path = "/v1/domains/{domain}", operation_id = "delete_domain", tag = "domains",
    params(("domain" = String, Path, description = "Id or host name")),
    responses((status = 204, description = "Unmapped")))]
pub(crate) async fn delete(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<StatusCode> {
    let deadline = Instant::now() + api.config.operation_deadline;
    for _ in 0..ATTEMPTS {
        let read = find(&api, caller.account, &given).await?;
        let txn = withdraw(&*api.store, TxnBuilder::new(), &caller, Timestamp::now(), &read).await?;
        if let TxnOutcome::Committed(_) = txn.commit(&*api.store).await? {
            let host = &read.record.host;
            let within = deadline.saturating_duration_since(Instant::now());
            return match api.publisher.withdrawn(host, within).await {
                Ok(()) => Ok(StatusCode::NO_CONTENT),
                Err(reason) => Err(ApiError::new(
                    Code::DeadlineExceeded,
                    format!("{host} was unmapped, but the edge may still serve it: {reason}"),
                )),
            };
        }
    }
    Err(contended())
}

/// Takes every domain of a machine back that is being deleted. Whoever commits this changes the machine's record too.
pub(crate) async fn withdraw_all(
    store: &dyn Store,
    mut txn: TxnBuilder,
    caller: &Caller,
    now: Timestamp,
    machine: MachineId,
) -> Answer<TxnBuilder> {
    for read in records::at(store, machine).await? {
        txn = withdraw(store, txn, caller, now, &read).await?;
    }
    Ok(txn)
}

/// Refuses ports for a machine that lack one to which a domain leads.
pub(crate) async fn refuse_lost_ports(api: &Api, machine: &Machine) -> Answer<()> {
    for Domain { host, port, .. } in records::at(&*api.store, machine.id).await?.into_iter().map(|read| read.record) {
        if !serves(machine, port) {
            return Err(ApiError::new(
                Code::PortPublished,
                format!(
                    "{host} leads to port {port} of machine {}: unmap it first with DELETE /v1/domains/{host} (warren \
                     domain unmap {host}), or keep the port as tcp or http",
                    machine.name
                ),
            ));
        }
    }
    Ok(())
}

async fn withdraw(
    store: &dyn Store,
    txn: TxnBuilder,
    caller: &Caller,
    now: Timestamp,
    read: &Versioned<Domain>,
) -> Answer<TxnBuilder> {
    let domain = &read.record;
    let deed = Deed { caller, now, action: "domain.unmap" };
    let txn = records::remove(store, txn, read).await?;
    deed.record(txn, domain.id, &told(domain), [withdrawn(domain, "leads nowhere any more")])
}

async fn wait_until_served(api: &Api, host: &HostName, deadline: Instant) -> Answer<()> {
    let within = deadline.saturating_duration_since(Instant::now());
    api.publisher.published(host, within).await.map_err(|reason| {
        ApiError::new(
            Code::DeadlineExceeded,
            format!("{host} is mapped, and the edge does not serve it yet: {reason}; GET /v1/domains/{host} says more"),
        )
    })
}

/// The machine, if the edge can speak HTTP to this port of it.
fn declared(machine: &Machine, port: u16, undeclared: Undeclared) -> Answer<Machine> {
    if machine.power == Power::Gone {
        return Err(power::being_deleted(machine));
    }
    if port == 0 {
        return Err(ApiError::new(Code::InvalidPort, "port 0 is not a port: use 1 to 65535"));
    }
    if serves(machine, port) {
        return Ok(machine.clone());
    }
    if undeclared == Undeclared::Declare {
        return declare(machine.clone(), port);
    }
    let (name, id) = (&machine.name, machine.id);
    Err(ApiError::new(
        Code::PortNotDeclared,
        format!(
            "machine {name} does not declare port {port} as tcp or http, and only what is declared is made public: \
             declare it with PATCH /v1/machines/{id} (warren machine set {name} --port web={port}/http, with its other \
             ports)"
        ),
    ))
}

fn declare(mut machine: Machine, port: u16) -> Answer<Machine> {
    if machine.ports.len() >= wanted::PORTS {
        return Err(ApiError::new(
            Code::InvalidPort,
            format!(
                "machine {} declares {} ports already: take one back that is not needed",
                machine.name,
                wanted::PORTS
            ),
        ));
    }
    let mut names = (0..).map(|n| if n == 0 { format!("tcp-{port}") } else { format!("tcp-{port}-{n}") });
    let free = |name: &String| machine.ports.iter().all(|known| known.name.as_str() != name);
    let name = names.find(free).ok_or_else(ApiError::internal)?;
    let name = name.parse().map_err(|_| ApiError::internal())?;
    machine.ports.push(DeclaredPort { name, port, protocol: Protocol::Tcp });
    Ok(machine)
}

/// Whether the port is declared, as something that speaks HTTP without TLS.
fn serves(machine: &Machine, port: u16) -> bool {
    let speaks = |protocol| matches!(protocol, Protocol::Tcp | Protocol::Http);
    machine.ports.iter().any(|declared| declared.port == port && speaks(declared.protocol))
}

/// A name below the preview suffix that nobody guesses by chance: `worker-8080-qwerty.preview.example`.
fn preview(info: &PublicInfo, machine: &Machine, port: u16) -> Answer<HostName> {
    let suffix = info.suffix.as_ref().ok_or_else(|| {
        ApiError::invalid("name a host: this server has no preview suffix (--preview-suffix) to make one up below")
    })?;
    let letters: String = secret::random::<LETTERS>()?.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    let rest = format!("-{port}-{letters}");
    let name: String = machine.name.as_str().chars().take(LABEL - rest.len()).collect();
    let label = format!("{}{rest}", name.trim_end_matches('-'));
    host_name(&format!("{label}.{suffix}"))
}

fn auth(asked: &RequireAuth) -> Answer<Option<DomainAuth>> {
    let auth = match asked {
        RequireAuth::Open {} => return Ok(None),
        RequireAuth::Bearer { token } => DomainAuth::bearer(token),
        RequireAuth::Basic { user, password } => DomainAuth::basic(user, password),
    };
    auth.map(Some).map_err(|error| ApiError::invalid(error.to_string()))
}

/// What a domain lets through, and what of that was asked for.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    limits: DomainLimits,
    burst_asked_for: bool,
}

impl Allowance {
    fn usual() -> Self {
        Self { limits: DomainLimits::default(), burst_asked_for: false }
    }

    fn of(domain: &Domain) -> Self {
        Self { limits: domain.limits, burst_asked_for: !domain.burst_follows() }
    }

    /// With what is asked for now. A burst that nobody ever asked for follows the rate.
    fn with(self, asked: Option<AskLimits>) -> Answer<Self> {
        let Some(asked) = asked else { return Ok(self) };
        let Self { limits: before, burst_asked_for } = self;
        let requests_per_second = asked.requests_per_second.unwrap_or(before.requests_per_second);
        let burst = match (asked.burst, burst_asked_for) {
            (Some(burst), _) => burst,
            (None, true) => before.burst,
            (None, false) => DomainLimits::usual_burst(requests_per_second),
        };
        let limits = DomainLimits {
            requests_per_second,
            burst,
            max_body_bytes: asked.max_body_bytes.unwrap_or(before.max_body_bytes),
            idle_seconds: asked.idle_seconds.unwrap_or(before.idle_seconds),
            concurrent: asked.concurrent.unwrap_or(before.concurrent),
        };
        limits.check().map_err(|error| {
            let stays =
                if asked.burst.is_none() && error.limit == "burst" { "; name one that fits the new rate" } else { "" };
            ApiError::new(Code::LimitOutOfRange, format!("{error}{stays}"))
        })?;
        Ok(Self { limits, burst_asked_for: burst_asked_for || asked.burst.is_some() })
    }
}

/// What the audit log says of a domain: no secret, and no hash of one.
fn told(domain: &Domain) -> serde_json::Value {
    json!({
        "host": domain.host,
        "machine": domain.machine,
        "port": domain.port,
        "auth": domain.auth.as_ref().map(DomainAuth::as_str),
        "limits": domain.limits,
    })
}

fn withdrawn(domain: &Domain, what: &str) -> News {
    News {
        kind: EventKind::DomainWithdrawn,
        account: domain.account,
        network: Some(domain.network),
        machine: Some(domain.machine),
        message: format!("{} {what}: port {} is not public under it", domain.host, domain.port),
    }
}

fn published(domain: &Domain, machine: &Machine) -> News {
    News {
        kind: EventKind::DomainPublished,
        account: domain.account,
        network: Some(domain.network),
        machine: Some(domain.machine),
        message: format!("port {} of machine {} is public as {}", domain.port, machine.name, domain.host),
    }
}
