//! Accounts: for the root key only.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use warren_model::record::{Account, EventKind};
use warren_model::{AccountId, Code, Label, wire};
use warren_store::{TxnBuilder, Typed, schema};

use super::{ListQuery, SECRET_NOT_REPEATED, created, replayed};
use crate::caller::Caller;
use crate::cursor::Paging;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named, Query};
use crate::idempotency::{self, Created, Draft, Idempotency};
use crate::mutation::{Deed, News};
use crate::state::{Api, Shared};
use crate::{bootstrap, numbers, resolve, secret};

/// List accounts
#[utoipa::path(get, path = "/v1/accounts", operation_id = "list_accounts", tag = "accounts",
    params(ListQuery), responses((status = 200, body = wire::Page<wire::Account>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Answer<Json<wire::Page<wire::Account>>> {
    let paging = Paging::parse("accounts", caller.account, query.limit, query.cursor.as_deref())?;
    let (page, more) = api.store.list_page(&schema::accounts(), paging.after.clone(), paging.limit).await?;
    let next = page.last().filter(|_| more).map(|last| paging.next(&last.key));
    Ok(Json(wire::Page { items: page.into_iter().map(|read| view(read.record)).collect(), next }))
}

/// Create an account
///
/// It gets a key, whose secret is only in this answer, and a network `default`, 10.0.0.0/16.
#[utoipa::path(post, path = "/v1/accounts", operation_id = "create_account", tag = "accounts",
    request_body = wire::CreateAccount, responses(
        (status = 201, body = wire::Account, description = "Created"),
        (status = 200, body = wire::Account, description = "Created before with this Idempotency-Key")))]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    idempotency: Idempotency,
    JsonBody { value, bytes }: JsonBody<wire::CreateAccount>,
) -> Answer<Response> {
    let name: Label = value.name.parse().map_err(super::wanted::bad_name)?;
    let made = idempotency.create(&api, &caller, &bytes, |now| draft(&api, &caller, &value, &name, now));
    match made.await? {
        Created::Now { thing: (account, secret), .. } => {
            let mut answer = view(account);
            answer.key = Some(secret);
            Ok(created(format!("/v1/accounts/{}", answer.id), &answer))
        }
        Created::Before(id) => again(&api, &id).await,
    }
}

/// An account, and the secret of its first key.
async fn draft(
    api: &Api,
    caller: &Caller,
    value: &wire::CreateAccount,
    name: &Label,
    now: Timestamp,
) -> Answer<Draft<(Account, String)>> {
    if api.store.read(&schema::account_name(name)).await?.is_some() {
        return Err(ApiError::new(
            Code::NameInUse,
            format!("there is an account named {name} already: choose another name"),
        ));
    }
    let account = Account { id: AccountId::from_ulid(secret::ulid(now)?), name: name.clone(), created_at: now };
    let number = numbers::choose(api).await?;
    let network = bootstrap::default_network(account.id, number.number, now)?;
    let (secret, key) = bootstrap::new_key(account.id, false, now)?;
    let mut txn = TxnBuilder::new()
        .absent(&schema::account_name(name))
        .put(&schema::account(account.id), &account)?
        .put(&schema::account_name(name), &account.id)?;
    txn = number.put(bootstrap::put_network(txn, &network)?)?;
    txn = bootstrap::put_key(txn, &key)?;
    let deed = Deed { caller, now, action: "account.create" };
    let news = [
        News {
            kind: EventKind::AccountCreated,
            account: account.id,
            network: None,
            machine: None,
            message: format!("account {name} was created"),
        },
        News {
            kind: EventKind::NetworkCreated,
            account: account.id,
            network: Some(network.id),
            machine: None,
            message: format!("network {} was created with {}", network.name, network.cidr),
        },
    ];
    let txn = deed.record(txn, account.id, value, news)?;
    Ok(Draft { id: account.id.to_string(), thing: (account, secret), txn })
}

async fn again(api: &Shared, id: &str) -> Answer<Response> {
    let account = resolve::account(api, id).await.map_err(idempotency::gone("account"))?;
    let mut answer = view(account.record);
    answer.detail = Some(SECRET_NOT_REPEATED.to_owned());
    Ok(replayed(&answer))
}

/// Show an account
#[utoipa::path(get, path = "/v1/accounts/{account}", operation_id = "show_account", tag = "accounts",
    params(("account" = String, Path, description = "Id or name")), responses((status = 200, body = wire::Account)))]
pub(crate) async fn show(State(api): State<Shared>, Named(account): Named) -> Answer<Json<wire::Account>> {
    Ok(Json(view(resolve::account(&api, &account).await?.record)))
}

fn view(account: Account) -> wire::Account {
    wire::Account {
        id: account.id.to_string(),
        name: account.name.to_string(),
        created_at: account.created_at,
        key: None,
        detail: None,
    }
}
