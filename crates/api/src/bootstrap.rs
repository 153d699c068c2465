//! What exists from the first start: the installation, the account `default` with its network, and the root key.

use jiff::Timestamp;
use warren_model::record::{Account, ApiKey, Egress, Installation, Network};
use warren_model::{
    AccountId, EventId, InstallationId, KeyId, Label, MemberNumber, NetworkCidr, NetworkId, NetworkNumber, UlaPrefix,
};
use warren_store::session::{self, Why};
use warren_store::{Store, StoreError, TxnBuilder, TxnOutcome, Typed, Versioned, domain, schema};

use crate::secret::{self, NoRandomness};

/// The account that the root key acts in, and the network of every account that is used when none is named.
pub const DEFAULT: &str = "default";

/// How often a transaction that met another one is tried again.
const ATTEMPTS: usize = 16;

/// Why an installation could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Random(#[from] NoRandomness),
    #[error("the store has no installation yet: start the server once")]
    NotInstalled,
    #[error("something else keeps changing the store")]
    Contended,
}

/// What [`ensure`] found or made.
pub struct Bootstrap {
    pub installation: Installation,
    /// The root key's secret; only when it was made now, since it is stored nowhere.
    pub root_key: Option<String>,
}

/// Makes the installation, or finds it made, and brings what an older Warren wrote up to date. Safe to call at every start.
///
/// # Errors
/// When the store fails, or the kernel has no random bytes.
pub async fn ensure(store: &dyn Store, now: Timestamp) -> Result<Bootstrap, BootstrapError> {
    for _ in 0..ATTEMPTS {
        if let Some(found) = store.read(&schema::installation()).await? {
            domain::complete(store).await?;
            return Ok(Bootstrap { installation: found.record, root_key: None });
        }
        let installation = Installation {
            id: InstallationId::from_random(u32::from_be_bytes(secret::random()?)),
            ula: UlaPrefix::from_random(secret::random()?),
            created_at: now,
        };
        let account = Account { id: AccountId::from_ulid(secret::ulid(now)?), name: default_label(), created_at: now };
        let network = default_network(account.id, NetworkNumber::FIRST, now)?;
        let (secret, key) = new_key(account.id, true, now)?;
        let mut txn = TxnBuilder::new()
            .absent(&schema::installation())
            .put(&schema::installation(), &installation)?
            .put(&schema::account(account.id), &account)?
            .put(&schema::account_name(&account.name), &account.id)?;
        txn = put_network(txn, &network)?;
        txn = put_key(txn, &key)?;
        if let Some(next) = NetworkNumber::FIRST.next() {
            txn = txn.put(&schema::next_network(), &next)?;
        }
        if let TxnOutcome::Committed(_) = txn.commit(store).await? {
            return Ok(Bootstrap { installation, root_key: Some(secret) });
        }
    }
    Err(BootstrapError::Contended)
}

/// Makes a new root key and revokes every earlier one: for an operator who has lost `root.key`.
///
/// # Errors
/// When the store fails or was never set up, or the kernel has no random bytes.
pub async fn new_root_key(store: &dyn Store) -> Result<String, BootstrapError> {
    for _ in 0..ATTEMPTS {
        let now = Timestamp::now();
        let account =
            store.read(&schema::account_name(&default_label())).await?.ok_or(BootstrapError::NotInstalled)?.record;
        let (secret, key) = new_key(account, true, now)?;
        let mut txn = put_key(TxnBuilder::new(), &key)?;
        for mut old in keys(store, account).await? {
            if old.record.root && old.record.revoked_at.is_none() {
                txn = txn.unchanged(&old);
                // Whoever opens a session writes this.
                if let Some(place) = store.read(&schema::api_key_hash(account, old.record.id)).await? {
                    txn = txn.unchanged(&place);
                }
                old.record.revoked_at = Some(now);
                txn = txn.put(&schema::api_key(&old.record.hash), &old.record)?;
                for open in session::opened_by(store, old.record.id).await? {
                    let id = EventId::from_ulid(secret::ulid(now)?);
                    let event = session::event(id, &open.session.record, &Why::KeyRevoked, now);
                    // Nobody can be asked who came.
                    txn = open.maybe_heard().close(txn, now)?.put(&schema::event(id), &event)?;
                }
            }
        }
        if let TxnOutcome::Committed(_) = txn.commit(store).await? {
            return Ok(secret);
        }
    }
    Err(BootstrapError::Contended)
}

/// Every key of an account, by id.
pub(crate) async fn keys(store: &dyn Store, account: AccountId) -> Result<Vec<Versioned<ApiKey>>, StoreError> {
    let (hashes, _) = store.list_all(&schema::api_key_hashes(account)).await?;
    let mut keys = Vec::with_capacity(hashes.len());
    for hash in hashes {
        keys.extend(store.read(&schema::api_key(&hash.record)).await?);
    }
    Ok(keys)
}

/// A key and its secret.
pub(crate) fn new_key(account: AccountId, root: bool, now: Timestamp) -> Result<(String, ApiKey), NoRandomness> {
    let secret = secret::new_secret(secret::KEY)?;
    let key = ApiKey {
        id: KeyId::from_ulid(secret::ulid(now)?),
        account,
        name: None,
        root,
        hash: secret::hash(&secret),
        created_at: now,
        expires_at: None,
        revoked_at: None,
    };
    Ok((secret, key))
}

pub(crate) fn put_key(txn: TxnBuilder, key: &ApiKey) -> Result<TxnBuilder, StoreError> {
    txn.put(&schema::api_key(&key.hash), key)?.put(&schema::api_key_hash(key.account, key.id), &key.hash)
}

/// The network that an account starts with.
pub(crate) fn default_network(
    account: AccountId,
    number: NetworkNumber,
    now: Timestamp,
) -> Result<Network, NoRandomness> {
    Ok(Network {
        id: NetworkId::from_ulid(secret::ulid(now)?),
        account,
        name: default_label(),
        number,
        cidr: NetworkCidr::default_range(),
        egress: Egress::Deny,
        created_at: now,
        deleting: false,
    })
}

/// Writes a new network, its name, its number and where its members' numbers begin.
pub(crate) fn put_network(txn: TxnBuilder, network: &Network) -> Result<TxnBuilder, StoreError> {
    txn.absent(&schema::network_name(network.account, &network.name))
        .absent(&schema::network_number(network.number))
        .put(&schema::network(network.id), network)?
        .put(&schema::network_name(network.account, &network.name), &network.id)?
        .put(&schema::network_number(network.number), &network.id)?
        .put(&schema::next_member(network.id), &MemberNumber::FIRST)
}

pub(crate) fn default_label() -> Label {
    match DEFAULT.parse() {
        Ok(label) => label,
        Err(_) => unreachable!("`default` is a DNS label"),
    }
}
