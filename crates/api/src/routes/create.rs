//! Making a machine: choose, write everything in one transaction, and wait until it runs or is gone again.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use warren_model::allocate::MemberKind;
use warren_model::record::{EventKind, Failure, Limits, Machine, MachineState, MachineStatus, Power};
use warren_model::{AccountId, Code, Label, MachineId, wire};
use warren_store::{Revision, TxnBuilder, TxnOutcome, Typed, schema};

use super::domains::map;
use super::sessions::end;
use super::wanted::{self, Wanted};
use super::{Made, power, views};
use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::extract::JsonBody;
use crate::idempotency::{self, Claim, Created, Draft, Idempotency, Seen};
use crate::members::{self, Seat};
use crate::mutation::{ATTEMPTS, Deed, News, contended};
use crate::policies::{self, InForce};
use crate::state::{Api, Shared};
use crate::wait::{self, TooLate};
use crate::{resolve, secret};

/// How long an image may take to build while a create waits for it.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);
/// How long the removal of a machine that failed is waited for.
const UNDO_LIMIT: Duration = Duration::from_secs(60);
/// Slots of host uids: each is 65,536 wide; the lowest are left to the host's own users.
const UID_SLOTS: std::ops::RangeInclusive<u16> = 8..=32767;

/// Create a machine
///
/// Answers when commands can be run in it. An image that is missing and can be built is built first. When the
/// machine cannot be started, nothing of it stays.
#[utoipa::path(post, path = "/v1/machines", operation_id = "create_machine", tag = "machines",
    request_body = wire::CreateMachine, responses(
        (status = 201, body = wire::Machine, description = "Created and running"),
        (status = 200, body = wire::Machine, description = "Created before with this Idempotency-Key")))]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    idempotency: Idempotency,
    JsonBody { value, bytes }: JsonBody<wire::CreateMachine>,
) -> Answer<Response> {
    let made = make(&api, &caller, &idempotency, &value, &bytes).await?;
    Ok(made.respond(|machine| format!("/v1/machines/{}", machine.id)))
}

/// Makes a machine and waits until it runs, unless the request's idempotency key has made one already.
pub(crate) async fn make(
    api: &Api,
    caller: &Caller,
    idempotency: &Idempotency,
    value: &wire::CreateMachine,
    bytes: &[u8],
) -> Answer<Made<wire::Machine>> {
    let wanted = Wanted::parse(value)?;
    if let Seen::Before(id) = idempotency.look(api, caller, bytes, Timestamp::now()).await? {
        return again(api, caller, &id).await;
    }
    let limits = wanted::limits(value, api.images.capacity().await)?;
    if api.images.get(&wanted.image).await?.is_none() {
        refuse_unknown_image(api, &wanted)?;
        // Everything else that can be refused is refused before an image is built for it.
        let turn = api.turns.take(caller.account).await;
        let now = Timestamp::now();
        if let Seen::Before(id) = idempotency.look(api, caller, bytes, now).await? {
            drop(turn);
            return again(api, caller, &id).await;
        }
        choose(api, caller, &wanted, limits, now).await?;
        drop(turn);
        build_image(api, &wanted).await?;
    }

    let deadline = Instant::now() + api.config.operation_deadline;
    let created = idempotency.create(api, caller, bytes, |now| draft(api, caller, value, &wanted, limits, now)).await?;
    match created {
        Created::Now { thing, claim, revision } => {
            Ok(Made::Now(wait_until_running(api, caller, &thing, &claim, revision, deadline).await?))
        }
        Created::Before(id) => again(api, caller, &id).await,
    }
}

async fn draft(
    api: &Api,
    caller: &Caller,
    value: &wire::CreateMachine,
    wanted: &Wanted,
    limits: Limits,
    now: Timestamp,
) -> Answer<Draft<Machine>> {
    let choice = choose(api, caller, wanted, limits, now).await?;
    let deed = Deed { caller, now, action: "machine.create" };
    let txn = deed.record(choice.put()?, choice.machine.id, value, [choice.news()])?;
    Ok(Draft { id: choice.machine.id.to_string(), thing: choice.machine, txn })
}

/// What a new machine was given, and what must still be so when it is written.
struct Choice {
    machine: Machine,
    seat: Seat,
    /// Says who may give the machine's tags; `None` when it has none.
    policy: Option<InForce>,
}

async fn choose(api: &Api, caller: &Caller, wanted: &Wanted, limits: Limits, now: Timestamp) -> Answer<Choice> {
    let network = resolve::network(api, caller.account, &wanted.network).await?;
    let mut policy = None;
    if !wanted.tags.is_empty() {
        let in_force = policies::in_force(api, caller.account).await?;
        policies::refuse_foreign_tags(&in_force.edition.policy, caller, &wanted.tags)?;
        policy = Some(in_force);
    }
    let quota = api.config.machines_per_account;
    if api.store.count(schema::machine_names(caller.account).as_str()).await? >= quota {
        return Err(ApiError::new(
            Code::QuotaExceeded,
            format!("an account has at most {quota} machines: delete one that is not needed"),
        ));
    }
    let name = match &wanted.name {
        Some(name) => {
            power::refuse_taken_name(api, caller.account, name).await?;
            name.clone()
        }
        None => free_name(api, caller.account).await?,
    };
    let seat = members::choose(api, network, MemberKind::Machine, wanted.address, now).await?;
    let machine = Machine {
        id: MachineId::from_ulid(secret::ulid(now)?),
        account: caller.account,
        network: seat.network.record.id,
        name,
        member: seat.number,
        ipv4: seat.ipv4,
        image: wanted.image.clone(),
        limits,
        ports: wanted.ports.clone(),
        tags: wanted.tags.clone(),
        labels: wanted.labels.clone(),
        uid_slot: free_uid_slot(api).await?,
        power: Power::On,
        boot: 1,
        created_at: now,
    };
    Ok(Choice { machine, seat, policy })
}

impl Choice {
    fn put(&self) -> Answer<TxnBuilder> {
        let machine = &self.machine;
        let (name, member) =
            (schema::machine_name(machine.account, &machine.name), schema::member(machine.network, machine.id));
        let slot = schema::uid_slot(machine.uid_slot);
        let status =
            MachineStatus { state: MachineState::Creating, boot: machine.boot, failure: None, started_at: None };
        let txn = TxnBuilder::new();
        let txn = match &self.policy {
            Some(policy) => policy.same(txn, machine.account),
            None => txn,
        };
        Ok(self
            .seat
            .put(txn, machine.id)?
            .absent(&name)
            .absent(&slot)
            .put(&schema::machine(machine.id), machine)?
            .put(&name, &machine.id)?
            .put(&member, &())?
            .put(&slot, &machine.id)?
            .put(&schema::status(machine.id), &status)?)
    }

    fn news(&self) -> News {
        let Machine { account, network, id, name, ipv4, .. } = &self.machine;
        News {
            kind: EventKind::MachineCreated,
            account: *account,
            network: Some(*network),
            machine: Some(*id),
            message: format!("machine {name} was created in network {} with {ipv4}", self.seat.network.record.name),
        }
    }
}

async fn free_uid_slot(api: &Api) -> Answer<u16> {
    let slots = u32::from(UID_SLOTS.end() - UID_SLOTS.start()) + 1;
    for _ in 0..ATTEMPTS {
        // Below 32,768, so it fits.
        let slot = UID_SLOTS.start() + (u32::from_be_bytes(secret::random()?) % slots) as u16;
        if api.store.read(&schema::uid_slot(slot)).await?.is_none() {
            return Ok(slot);
        }
    }
    Err(ApiError::new(Code::QuotaExceeded, "this host has no range of uids left: delete machines that are not needed"))
}

async fn free_name(api: &Api, account: AccountId) -> Answer<Label> {
    for attempt in 0..ATTEMPTS {
        let name = made_up(secret::random()?, attempt >= 4);
        if api.store.read(&schema::machine_name(account, &name)).await?.is_none() {
            return Ok(name);
        }
    }
    Err(contended())
}

const ADJECTIVES: [&str; 32] = [
    "able", "amber", "brave", "bright", "brisk", "calm", "clear", "clever", "cosy", "deft", "eager", "fair", "fleet",
    "fond", "gentle", "glad", "grand", "hardy", "honest", "jolly", "keen", "kind", "lively", "lucid", "mellow", "neat",
    "nimble", "proud", "quick", "quiet", "steady", "sunny",
];
const NOUNS: [&str; 32] = [
    "badger", "beaver", "bison", "crane", "dove", "falcon", "ferret", "finch", "fox", "gopher", "hare", "heron",
    "ibex", "jackal", "koala", "lark", "lemur", "lynx", "marten", "mole", "newt", "otter", "owl", "panda", "plover",
    "rabbit", "robin", "seal", "stoat", "swift", "vole", "wren",
];

/// `quick-otter`, or `quick-otter-3fa2` where the short ones are taken.
fn made_up(random: [u8; 4], long: bool) -> Label {
    let [adjective, noun, high, low] = random;
    let short = format!("{}-{}", ADJECTIVES[usize::from(adjective % 32)], NOUNS[usize::from(noun % 32)]);
    let name = if long { format!("{short}-{high:02x}{low:02x}") } else { short };
    match name.parse() {
        Ok(label) => label,
        Err(_) => unreachable!("lower-case words and hex digits between hyphens are a label"),
    }
}

fn refuse_unknown_image(api: &Api, wanted: &Wanted) -> Answer<()> {
    let image = &wanted.image;
    if api.images.can_build(image) {
        return Ok(());
    }
    Err(ApiError::new(
        Code::ImageNotFound,
        format!("there is no image {image}, and Warren cannot build it: see GET /v1/images, or import it"),
    ))
}

async fn build_image(api: &Api, wanted: &Wanted) -> Answer<()> {
    let image = &wanted.image;
    let (progress, mut ignored) = mpsc::channel(16);
    let listener = tokio::spawn(async move { while ignored.recv().await.is_some() {} });
    let built = tokio::time::timeout(BUILD_LIMIT, api.images.build(image, progress)).await;
    listener.abort();
    match built {
        Ok(built) => Ok(built.map(drop)?),
        Err(_) => Err(ApiError::new(
            Code::DeadlineExceeded,
            format!("image {image} took too long to build: POST /v1/images/{image}/build shows how far it comes"),
        )),
    }
}

enum End {
    Made(Box<MachineStatus>),
    Failed(Failure),
    Deleted,
}

async fn wait_until_running(
    api: &Api,
    caller: &Caller,
    machine: &Machine,
    claim: &Claim,
    since: Revision,
    deadline: Instant,
) -> Answer<wire::Machine> {
    let end = wait::machine(api, machine.id, since, deadline, |seen| {
        let wanted = seen.machine.filter(|wanted| wanted.record.power != Power::Gone);
        let (Some(_), Some(status)) = (wanted, seen.status) else { return Some(End::Deleted) };
        match status.record.state {
            // Stopped: somebody asked for that while it was being created.
            MachineState::Running | MachineState::Stopped => Some(End::Made(Box::new(status.record))),
            MachineState::Failed => Some(End::Failed(status.record.failure.unwrap_or_else(power::unexplained))),
            _ => None,
        }
    });
    match end.await? {
        Ok(End::Made(status)) => {
            let network = api.store.read(&schema::network(machine.network)).await?.ok_or_else(ApiError::internal)?;
            let record = api.store.read(&schema::machine(machine.id)).await?.map(|read| read.record);
            Ok(views::machine(api, record.as_ref().unwrap_or(machine), Some(&*status), &network.record))
        }
        Ok(End::Deleted) => Err(deleted_meanwhile(machine)),
        Ok(End::Failed(failure)) => {
            let gone = undo(api, caller, machine.id, claim).await?;
            let rest = if gone { "nothing of it stays" } else { "what is left of it is being removed" };
            Err(ApiError::new(
                failure.code,
                format!("machine {} could not be started and {rest}: {}", machine.name, failure.detail),
            ))
        }
        Err(TooLate) => Err(ApiError::new(
            Code::DeadlineExceeded,
            format!(
                "machine {} is still being created, and that goes on: GET /v1/machines/{} says how far it is",
                machine.name, machine.id
            ),
        )),
    }
}

fn deleted_meanwhile(machine: &Machine) -> ApiError {
    ApiError::new(Code::NotFound, format!("machine {} was deleted while it was being created", machine.name))
}

/// Asks for the removal of a machine that failed; whether it is gone.
async fn undo(api: &Api, caller: &Caller, id: MachineId, claim: &Claim) -> Answer<bool> {
    let deadline = Instant::now() + UNDO_LIMIT;
    for _ in 0..ATTEMPTS {
        let Some(read) = api.store.read(&schema::machine(id)).await? else { return Ok(true) };
        let mut machine = read.record.clone();
        machine.power = Power::Gone;
        let now = Timestamp::now();
        let txn = TxnBuilder::new().unchanged(&read).put(&schema::machine(id), &machine)?;
        let txn = map::withdraw_all(&*api.store, txn, caller, now, id).await?;
        let (txn, sessions) = end::close_only_for(api, txn, caller, now, id).await?;
        let deed = Deed { caller, now, action: "machine.create.undo" };
        let txn = deed.record(claim.undo(txn), id, &(), [power::deleted(&machine)])?;
        if let TxnOutcome::Committed(revision) = txn.commit(&*api.store).await? {
            let gone = power::wait_until_gone(api, id, revision, deadline).await?.is_ok();
            let cut = end::cut(api, &sessions, deadline).await.is_ok();
            return Ok(gone && cut);
        }
    }
    Err(contended())
}

/// The answer to a create that was made before: the machine as it is, once it is no longer being created.
pub(crate) async fn again(api: &Api, caller: &Caller, id: &str) -> Answer<Made<wire::Machine>> {
    let deadline = Instant::now() + api.config.operation_deadline;
    let since = api.store.revision().await?;
    let gone = idempotency::gone("machine");
    let machine = resolve::machine(api, caller, id).await.map_err(&gone)?.record;
    let settled = wait::machine(api, machine.id, since, deadline, |seen| match seen.status {
        Some(status) if status.record.state == MachineState::Creating => None,
        _ => Some(()),
    });
    if settled.await?.is_err() {
        return Err(ApiError::new(
            Code::DeadlineExceeded,
            format!(
                "machine {} is still being created: GET /v1/machines/{} says how far it is",
                machine.name, machine.id
            ),
        ));
    }
    let machine = resolve::machine(api, caller, id).await.map_err(gone)?.record;
    Ok(Made::Before(views::read_machine(api, &machine).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_made_up_name_is_a_label() {
        for n in 0..=255u8 {
            made_up([n, n.wrapping_mul(7), n, n], n % 2 == 0);
        }
    }
}
