//! VPCs: Warren's networks.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use warren_model::{Code, wire};

use super::code::Said;
use super::error::{Answer, Refusal};
use super::extract::Body;
use super::name;
use crate::caller::Caller;
use crate::extract::Named;
use crate::idempotency::Idempotency;
use crate::mutation::ATTEMPTS;
use crate::resolve;
use crate::routes::networks;
use crate::state::Shared;

/// What a VPC without a usable name is called.
const NAME: &str = "vpc";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateVpc {
    name: Option<String>,
    /// The client says 10.0.0.0/16 where its caller says nothing.
    cidr: Option<String>,
}

/// Create a VPC
#[utoipa::path(post, path = "/compat/freestyle/v1/vpcs", responses((status = 200)))]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    Body { value, .. }: Body<CreateVpc>,
) -> Answer<Json<Value>> {
    let base = value.name.as_deref().and_then(name::nearest).map_or_else(|| NAME.to_owned(), |name| name.to_string());
    // A name that was asked for may be in use, since the client's names are not unique.
    let mut wanted = match value.name {
        Some(_) => base.clone(),
        None => name::another(&base)?,
    };
    for _ in 0..ATTEMPTS {
        let asked = wire::CreateNetwork { name: wanted, cidr: value.cidr.clone(), egress: None };
        match networks::make(&api, &caller, &Idempotency::none(), &asked, &[]).await {
            Ok(made) => return Ok(Json(json!({ "vpcId": made.thing().id }))),
            Err(error) if error.problem.code == Code::NameInUse => wanted = name::another(&base)?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(crate::mutation::contended().into())
}

/// Open an operator's session into a VPC
#[utoipa::path(post, path = "/compat/freestyle/v1/vpcs/{network}/wireguard/ephemeral", responses((status = 400)))]
pub(crate) async fn open_session(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<Value>> {
    no_wireguard(&api, &caller, &given).await
}

/// Close an operator's session
#[utoipa::path(delete, path = "/compat/freestyle/v1/vpcs/{network}/wireguard/ephemeral", responses((status = 400)))]
pub(crate) async fn close_session(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
) -> Answer<Json<Value>> {
    no_wireguard(&api, &caller, &given).await
}

/// Configure a WireGuard peer of a VPC
#[utoipa::path(post, path = "/compat/freestyle/v1/vpcs/{network}/wireguard/peers", responses((status = 400)))]
pub(crate) async fn add_peer(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    no_wireguard(&api, &caller, &given).await
}

async fn no_wireguard(api: &Shared, caller: &Caller, vpc: &str) -> Answer<Json<Value>> {
    resolve::network(api, caller.account, vpc).await?;
    Err(Refusal::unsupported(
        Said::BadRequest,
        "this server has no WireGuard sessions: reach the machine with exec or a pty instead",
    ))
}
