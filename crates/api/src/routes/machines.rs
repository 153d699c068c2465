//! Machines: list, show, and change what is only written down.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::Deserialize;
use warren_model::grant::GrantTarget;
use warren_model::record::{EventKind, Machine, MachineState, Power};
use warren_model::{Code, Label, LabelKey, Tag, Verb, wire};
use warren_store::{TxnBuilder, TxnOutcome, Typed, schema};

use super::domains::map;
use super::{power, views, wanted};
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named, Query};
use crate::mutation::{ATTEMPTS, Deed, News, contended};
use crate::state::{Api, Shared};
use crate::{policies, resolve};

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct MachineQuery {
    /// Items on a page, 1 to 1000; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<usize>,
    /// `next` of the page before.
    pub cursor: Option<String>,
    /// Only machines in this network, by id or name.
    pub network: Option<String>,
    /// Only machines with this tag; several, separated by commas, have to be there all.
    pub tag: Option<String>,
    /// Only machines with this label: `key=value`, or `key` for any value.
    pub label: Option<String>,
    /// Only machines in this state.
    pub state: Option<MachineState>,
}

/// List machines
#[utoipa::path(get, path = "/v1/machines", operation_id = "list_machines", tag = "machines",
    params(MachineQuery), responses((status = 200, body = wire::Page<wire::Machine>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<MachineQuery>,
) -> Answer<Json<wire::Page<wire::Machine>>> {
    let filters = (&query.network, &query.tag, &query.label, query.state);
    let scope = format!("machines {}", serde_json::to_string(&filters).unwrap_or_default());
    let paging = Paging::parse(&scope, caller.account, query.limit, query.cursor.as_deref())?;
    let network = match &query.network {
        // A token learns of a network only from a machine in it.
        Some(given) if caller.key().is_some() => Some(resolve::network(&api, caller.account, given).await?.record.id),
        _ => None,
    };
    let bad_filter = |error: warren_model::name::InvalidName| ApiError::new(Code::InvalidQuery, error.to_string());
    let tags = query.tag.iter().flat_map(|tags| tags.split(',')).map(str::parse::<Tag>);
    let tags = tags.collect::<Result<Vec<_>, _>>().map_err(bad_filter)?;
    let label = query.label.as_deref().map(|label| match label.split_once('=') {
        Some((key, value)) => key.parse::<LabelKey>().map(|key| (key, Some(value.to_owned()))),
        None => label.parse::<LabelKey>().map(|key| (key, None)),
    });
    let label = label.transpose().map_err(bad_filter)?;

    let mut networks = views::Networks::default();
    let (mut items, mut after) = (Vec::new(), paging.after.clone());
    loop {
        let (page, more) = by_name(&api, &caller, after, paging.limit).await?;
        let last = page.last().map(|(key, _)| key.clone());
        let length = page.len();
        for (index, (key, machine)) in page.into_iter().enumerate() {
            let Some(machine) = machine else { continue };
            let fits = network.is_none_or(|network| machine.network == network)
                && tags.iter().all(|tag| machine.tags.contains(tag))
                && label.as_ref().is_none_or(|(key, value)| {
                    let found = machine.labels.get(key);
                    found.is_some_and(|found| value.as_ref().is_none_or(|value| found.as_str() == value))
                });
            if !fits {
                continue;
            }
            let Some(view) = networks.machine(&api, &machine).await? else { continue };
            let named = |given: &String| *given == view.network.id || *given == view.network.name;
            if query.state.is_none_or(|state| view.state == state) && query.network.as_ref().is_none_or(named) {
                items.push(view);
            }
            if items.len() == paging.limit {
                let next = (more || index + 1 < length).then(|| paging.next(&key));
                return Ok(Json(wire::Page { items, next }));
            }
        }
        if !more {
            return Ok(Json(wire::Page { items, next: None }));
        }
        after = last;
    }
}

/// So many of the machines that the caller sees, by name, each with the key of its name; and whether there are more.
/// `None` for one that is just being removed.
async fn by_name(
    api: &Api,
    caller: &Caller,
    after: Option<String>,
    limit: usize,
) -> Answer<(Vec<(String, Option<Machine>)>, bool)> {
    let Some(targets) = caller.granted(Verb::View) else {
        let (page, more) = api.store.list_page(&schema::machine_names(caller.account), after, limit).await?;
        let mut machines = Vec::with_capacity(page.len());
        for name in page {
            let read = api.store.read(&schema::machine(name.record)).await?;
            machines.push((name.key, read.map(|read| read.record)));
        }
        return Ok((machines, more));
    };
    // From what was granted, so that nothing depends on what was not.
    let mut ids = BTreeSet::new();
    for target in targets {
        match target {
            GrantTarget::Machine(id) => drop(ids.insert(id)),
            GrantTarget::Network(id) => {
                let (members, _) = api.store.list_all(&schema::members(id)).await?;
                ids.extend(members.iter().filter_map(|member| schema::machine_of(&member.key)));
            }
        }
    }
    let mut machines = BTreeMap::new();
    for id in ids {
        let Some(read) = api.store.read(&schema::machine(id)).await? else { continue };
        let name = schema::machine_name(read.record.account, &read.record.name);
        machines.insert(name.as_str().to_owned(), Some(read.record));
    }
    let start = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut rest = machines.range((start, Bound::Unbounded)).map(|(key, machine)| (key.clone(), machine.clone()));
    let page: Vec<_> = rest.by_ref().take(limit).collect();
    let more = rest.next().is_some();
    Ok((page, more))
}

/// Show a machine
#[utoipa::path(get, path = "/v1/machines/{machine}", operation_id = "show_machine", tag = "machines",
    params(("machine" = String, Path, description = "Id or name")), responses((status = 200, body = wire::Machine)))]
pub(crate) async fn show(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<wire::Machine>> {
    let machine = resolve::machine(&api, &caller, &given).await?;
    Ok(Json(views::read_machine(&api, &machine.record).await?))
}

/// Rename a machine, or change its ports, tags or labels
#[utoipa::path(patch, path = "/v1/machines/{machine}", operation_id = "update_machine", tag = "machines",
    params(("machine" = String, Path, description = "Id or name")),
    request_body = wire::UpdateMachine, responses((status = 200, body = wire::Machine)))]
pub(crate) async fn update(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    JsonBody { value, .. }: JsonBody<wire::UpdateMachine>,
) -> Answer<Json<wire::Machine>> {
    let name = value.name.as_deref().map(str::parse::<Label>).transpose().map_err(wanted::bad_name)?;
    let ports = value.ports.as_deref().map(wanted::ports).transpose()?;
    let tags = value.tags.as_deref().map(wanted::tags).transpose()?;
    let labels = value.labels.as_ref().map(wanted::labels).transpose()?;
    let id = resolve::machine(&api, &caller, &given).await?.record.id.to_string();
    for _ in 0..ATTEMPTS {
        let now = Timestamp::now();
        let read = resolve::machine(&api, &caller, &id).await?;
        if read.record.power == Power::Gone {
            return Err(power::being_deleted(&read.record));
        }
        let mut machine = read.record.clone();
        let before = machine.name.clone();
        machine.name = name.clone().unwrap_or(machine.name);
        machine.ports = ports.clone().unwrap_or(machine.ports);
        machine.tags = tags.clone().unwrap_or(machine.tags);
        machine.labels = labels.clone().unwrap_or(machine.labels);
        if machine.ports != read.record.ports {
            map::refuse_lost_ports(&api, &machine).await?;
        }
        if machine != read.record {
            let mut txn = TxnBuilder::new().unchanged(&read).put(&schema::machine(machine.id), &machine)?;
            if machine.tags != read.record.tags {
                let policy = policies::in_force(&api, caller.account).await?;
                let changed = machine.tags.symmetric_difference(&read.record.tags);
                policies::refuse_foreign_tags(&policy.edition.policy, &caller, changed)?;
                txn = policy.same(txn, caller.account);
            }
            let mut news = None;
            if machine.name != before {
                power::refuse_taken_name(&api, caller.account, &machine.name).await?;
                let name = schema::machine_name(caller.account, &machine.name);
                txn = txn.absent(&name).put(&name, &machine.id)?;
                txn = txn.delete(&schema::machine_name(caller.account, &before));
                news = Some(News {
                    kind: EventKind::MachineRenamed,
                    account: machine.account,
                    network: Some(machine.network),
                    machine: Some(machine.id),
                    message: format!("machine {before} is now named {}", machine.name),
                });
            }
            let deed = Deed { caller: &caller, now, action: "machine.update" };
            let txn = deed.record(txn, machine.id, &value, news)?;
            if !matches!(txn.commit(&*api.store).await?, TxnOutcome::Committed(_)) {
                continue;
            }
        }
        return Ok(Json(views::read_machine(&api, &machine).await?));
    }
    Err(contended())
}
