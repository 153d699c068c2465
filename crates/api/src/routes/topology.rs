//! Everything of an account in one call.

use axum::Json;
use axum::extract::State;
use warren_model::wire;
use warren_store::{Typed, schema};

use super::{ListQuery, networks, views};
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::Answer;
use crate::extract::Query;
use crate::state::Shared;

/// Show every network with what is in it
#[utoipa::path(get, path = "/v1/topology", operation_id = "show_topology", tag = "networks",
    params(ListQuery), responses((status = 200, body = wire::Page<wire::NetworkTopology>)))]
pub(crate) async fn show(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Answer<Json<wire::Page<wire::NetworkTopology>>> {
    let paging = Paging::parse("topology", caller.account, query.limit, query.cursor.as_deref())?;
    let (records, next) = networks::page(&api, &caller, &paging).await?;
    let mut items = Vec::with_capacity(records.len());
    for record in &records {
        let (members, _) = api.store.list_all(&schema::members(record.id)).await?;
        let mut resources = Vec::with_capacity(members.len());
        for id in members.iter().filter_map(|member| schema::machine_of(&member.key)) {
            let Some(machine) = api.store.read(&schema::machine(id)).await?.map(|read| read.record) else { continue };
            let status = api.store.read(&schema::status(id)).await?.map(|read| read.record);
            resources.push(wire::Resource {
                kind: "vm".to_owned(),
                id: machine.id.to_string(),
                name: machine.name.to_string(),
                private_ip: machine.ipv4,
                private_ip6: machine.ipv6(api.config.installation.ula, record.number),
                address: machine.address(record.number).to_string(),
                hostname: machine.hostname(),
                state: views::state(&machine, status.as_ref()),
                ports: views::ports(&machine),
            });
        }
        resources.sort_by_key(|resource| resource.private_ip);
        let network = views::network(&api, record).await?;
        items.push(wire::NetworkTopology { private_cidr: network.cidr.clone(), network, resources });
    }
    Ok(Json(wire::Page { items, next }))
}
