//! VPCs: Warren's networks.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use warren_model::{Code, wire};

use super::code::Said;
use super::error::{Answer, Refusal, Saying as _};
use super::extract::Body;
use super::name;
use crate::caller::Caller;
use crate::extract::Named;
use crate::idempotency::Idempotency;
use crate::mutation::ATTEMPTS;
use crate::resolve;
use crate::routes::sessions::endpoint::AskedHost;
use crate::routes::sessions::{end, open};
use crate::routes::{networks, sessions};
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

/// The client sends nothing else.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OpenSession {}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CloseSession {
    session_id: String,
}

/// Open an operator's session into a VPC
#[utoipa::path(post, path = "/compat/freestyle/v1/vpcs/{network}/wireguard/ephemeral", responses((status = 200)))]
pub(crate) async fn open_session(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    host: AskedHost,
    Body { .. }: Body<OpenSession>,
) -> Answer<Json<Value>> {
    let vpc = resolve::network(&api, caller.account, &given).await?.record;
    let id = vpc.id.to_string();
    let asked = wire::OpenSession::default();
    let made = open::make(&api, &caller, &id, &host, &Idempotency::none(), &asked, &[]).await?;
    let opened = made.thing();
    Ok(Json(json!({
        "sessionId": opened.session_id,
        "clientConfig": opened.client_config,
        "vpcId": id,
        "endpointHost": opened.endpoint.host(),
        "endpointPort": opened.endpoint.port(),
        "listenPort": open::gateway(&api)?.listen.port(),
        "interfaceName": interface(&opened.session.name),
        "serverPublicKey": opened.server_public_key,
        "clientPublicKey": opened.session.public_key,
        "clientPrivateKey": opened.client_private_key,
        "serverTunnelIp": vpc.cidr.gateway(),
        "clientTunnelIp": opened.session.private_ip,
        "vpcIp": opened.session.private_ip,
        "clientAllowedIps": opened.allowed_ips,
        "vpcCidr": vpc.cidr.to_string(),
    })))
}

/// What the client may call its link; a link's name has at most 15 bytes.
fn interface(session: &str) -> String {
    format!("wg-{}", session.rsplit('-').next().unwrap_or_default())
}

/// Close an operator's session
#[utoipa::path(delete, path = "/compat/freestyle/v1/vpcs/{network}/wireguard/ephemeral", responses((status = 200)))]
pub(crate) async fn close_session(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Body { value, .. }: Body<CloseSession>,
) -> Answer<Json<Value>> {
    let vpc = resolve::network(&api, caller.account, &given).await?.record;
    let session = sessions::find(&api, &caller, &value.session_id).await;
    let session = session.not_found_as(Said::SessionNotFound)?.record;
    if session.network != vpc.id {
        return Err(Refusal::new(
            Code::NotFound,
            Said::SessionNotFound,
            format!("session {} is not in VPC {}", session.id, vpc.name),
        ));
    }
    end::close(&api, &caller, session.id).await?;
    Ok(Json(json!({})))
}

/// Configure a WireGuard peer of a VPC
#[utoipa::path(post, path = "/compat/freestyle/v1/vpcs/{network}/wireguard/peers", responses((status = 400)))]
pub(crate) async fn add_peer(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Json<Value>> {
    resolve::network(&api, caller.account, &given).await?;
    Err(Refusal::unsupported(
        Said::BadRequest,
        "this server has no WireGuard peers that last: open a session with vpc.wireguard.createEphemeral() instead",
    ))
}
