//! Which names there is room for: whether an account may take one, and why.

use warren_model::domain::{DomainProof, is_below, is_reserved};
use warren_model::policy::HostName;
use warren_model::{AccountId, Code};
use warren_store::{StoreError, TxnBuilder, Typed, Versioned, domain as records, schema};

use super::claims;
use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::publisher::PublicInfo;
use crate::state::Api;

/// A name that an account may take, and what must still be so when it does.
#[derive(Debug)]
pub(crate) struct Room {
    pub proof: DomainProof,
    host: HostName,
    /// Below the suffix: with what the name is taken.
    label: Option<Label>,
}

/// The name directly below the suffix at or below which a name is.
#[derive(Debug)]
struct Label {
    host: HostName,
    account: AccountId,
    /// Whose it was.
    read: Option<Versioned<AccountId>>,
}

impl Room {
    /// Adds that the name is free, and that its label is or becomes the account's.
    pub fn take(&self, txn: TxnBuilder) -> Result<TxnBuilder, StoreError> {
        let txn = txn.absent(&schema::domain(&self.host));
        let Some(Label { host, account, read }) = &self.label else { return Ok(txn) };
        let key = schema::domain_label(host);
        // Also where it was the account's: whoever removes its last name meanwhile must not take it away.
        txn.same(&key, read.as_ref()).put(&key, account)
    }
}

/// Whether a name can be taken by this account, and why it may.
pub(crate) async fn find(api: &Api, caller: &Caller, info: &PublicInfo, host: &HostName) -> Answer<Room> {
    let suffix = info.suffix.as_ref().filter(|suffix| is_below(host, suffix));
    let room = match suffix.filter(|suffix| !is_kept(api, host, suffix)) {
        Some(suffix) => below_suffix(api, caller.account, host, suffix).await?,
        None if claims::covered(api, caller.account, host).await? => {
            Room { proof: DomainProof::Txt, host: host.clone(), label: None }
        }
        None => return Err(not_verified(info, host, suffix)),
    };
    match api.store.read(&schema::domain(host)).await? {
        None => Ok(room),
        Some(read) if read.record.account == caller.account => Err(ApiError::new(
            Code::DomainTaken,
            format!(
                "{host} leads to port {} of machine {} already: change that with PATCH /v1/domains/{host} (warren domain \
                 set {host}), or unmap it first",
                read.record.port, read.record.machine
            ),
        )),
        Some(_) => Err(ApiError::new(
            Code::DomainTaken,
            format!("{host} is mapped already, and not by this account: the server's operator can take it back"),
        )),
    }
}

fn not_verified(info: &PublicInfo, host: &HostName, below: Option<&HostName>) -> ApiError {
    let detail = match (below, &info.suffix) {
        (Some(suffix), _) => format!(
            "{host} is kept for whoever owns {suffix}, as clients take it for the owner's own: take another name below \
             {suffix}"
        ),
        (None, suffix) => {
            let free = suffix.as_ref().map(|suffix| format!(", or take a name below {suffix}")).unwrap_or_default();
            format!(
                "this account has not proved that {host} is its own: POST /v1/domain-claims (warren domain verify \
                 {host}) says which TXT record does{free}"
            )
        }
    };
    ApiError::new(Code::DomainNotVerified, detail)
}

/// Whether a name below the suffix is not free to take, as it is or seems to be the operator's.
pub(super) fn is_kept(api: &Api, host: &HostName, suffix: &HostName) -> bool {
    let endpoint = api.tunnels.endpoint().and_then(|endpoint| endpoint.host().parse::<HostName>().ok());
    let endpoint = endpoint.filter(|own| is_below(own, suffix));
    is_reserved(host, suffix) || endpoint.is_some_and(|own| label(&own, suffix) == label(host, suffix))
}

/// A page may set cookies for every name below its own, and for those above it up to the suffix: all names at and below one
/// label are one account's.
async fn below_suffix(api: &Api, account: AccountId, host: &HostName, suffix: &HostName) -> Answer<Room> {
    let label = label(host, suffix);
    let read = api.store.read(&schema::domain_label(&label)).await?;
    if read.as_ref().is_none_or(|read| read.record != account) {
        // Names may be older than such records, or proved when the suffix was another one. A record may also have
        // outlived its names.
        let is_other = |mark: &Versioned<AccountId>| mark.record != account;
        if records::find_in_tree(&*api.store, &label, is_other).await?.is_some() {
            return Err(no_room(&label));
        }
    }
    Ok(Room { proof: DomainProof::Suffix, host: host.clone(), label: Some(Label { host: label, account, read }) })
}

/// The name directly below the suffix at or below which this one is.
fn label(host: &HostName, suffix: &HostName) -> HostName {
    let below = records::upwards(host).take_while(|name| is_below(name, suffix));
    below.last().unwrap_or_else(|| host.clone())
}

/// Which name that is stays unsaid: it may be hard to guess on purpose.
fn no_room(label: &HostName) -> ApiError {
    ApiError::new(Code::DomainTaken, format!("another account has {label}, or a name below it: take another one"))
}
