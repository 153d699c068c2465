//! Which names there is room for: whether an account may take one, and why.

use warren_model::domain::{Domain, DomainProof, is_below, is_reserved};
use warren_model::policy::HostName;
use warren_model::{AccountId, Code};
use warren_store::{StoreError, TxnBuilder, Typed, Versioned, schema};

use super::claims;
use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::publisher::PublicInfo;
use crate::state::Api;

/// How many names one read takes while those below a name are looked through.
const CHUNK: usize = 1000;

/// A name that an account may take, and what must still be so when it does.
#[derive(Debug)]
pub(crate) struct Room {
    pub proof: DomainProof,
    host: HostName,
    /// The names above it, and what they lead to.
    above: Vec<(HostName, Option<Versioned<Domain>>)>,
    /// Nobody has a name below it.
    empty: bool,
}

impl Room {
    /// Adds that the name is free, and that nobody took one above or below it meanwhile.
    pub fn same(&self, txn: TxnBuilder) -> TxnBuilder {
        let txn = txn.absent(&schema::domain(&self.host));
        let txn = self.above.iter().fold(txn, |txn, (host, read)| txn.same(&schema::domain(host), read.as_ref()));
        if self.empty { txn.empty(&schema::domains_below(&self.host)) } else { txn }
    }
}

/// Whether a name can be taken by this account, and why it may.
pub(crate) async fn find(api: &Api, caller: &Caller, info: &PublicInfo, host: &HostName) -> Answer<Room> {
    let suffix = info.suffix.as_ref().filter(|suffix| is_below(host, suffix));
    let room = match suffix.filter(|suffix| !is_kept(api, host, suffix)) {
        Some(suffix) => below_suffix(api, caller.account, host, suffix).await?,
        None if claims::covered(api, caller.account, host).await? => {
            Room { proof: DomainProof::Txt, host: host.clone(), above: Vec::new(), empty: false }
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
    // A page may set cookies for every name below its own.
    let near = |own: &HostName| own == host || is_below(own, host) || is_below(host, own);
    let endpoint = api.tunnels.gateway().ok().and_then(|gateway| gateway.endpoint);
    let endpoint = endpoint.and_then(|endpoint| endpoint.host().parse::<HostName>().ok());
    is_reserved(host, suffix) || endpoint.is_some_and(|own| is_below(&own, suffix) && near(&own))
}

/// A page may set cookies for every name below its own: what one account has below the suffix leaves others no room above
/// or below it.
async fn below_suffix(api: &Api, account: AccountId, host: &HostName, suffix: &HostName) -> Answer<Room> {
    let mut above = Vec::new();
    for parent in parents(host).take_while(|parent| is_below(parent, suffix)) {
        let read = api.store.read(&schema::domain(&parent)).await?;
        if read.as_ref().is_some_and(|read| read.record.account != account) {
            return Err(no_room(host));
        }
        above.push((parent, read));
    }
    let Some(empty) = all_below(api, account, host).await? else { return Err(no_room(host)) };
    Ok(Room { proof: DomainProof::Suffix, host: host.clone(), above, empty })
}

/// Which name that is stays unsaid: it may be hard to guess on purpose.
fn no_room(host: &HostName) -> ApiError {
    ApiError::new(
        Code::DomainTaken,
        format!("another account has {host}, or a name above or below it: take another one"),
    )
}

/// The nearest first.
fn parents(host: &HostName) -> impl Iterator<Item = HostName> {
    let above = |name: &HostName| name.as_str().split_once('.')?.1.parse().ok();
    std::iter::successors(above(host), above)
}

/// Whether there are no names below this one; `None` where one of them is not the account's.
async fn all_below(api: &Api, account: AccountId, host: &HostName) -> Result<Option<bool>, StoreError> {
    let (mut after, mut empty) = (None, true);
    loop {
        let (page, more) = api.store.list_page(&schema::domains_below(host), after, CHUNK).await?;
        if page.iter().any(|read| read.record != account) {
            return Ok(None);
        }
        empty &= page.is_empty();
        after = page.last().map(|last| last.key.clone());
        if !more {
            return Ok(Some(empty));
        }
    }
}
