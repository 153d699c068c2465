//! Orders at an authority that speaks ACME.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinSet;
use warren_certs::Certificate;
use warren_certs::acme::{Account, AcmeError, Challenges, Outlook};
use warren_certs::renewal::{self, Window};
use warren_model::AccountId;
use warren_model::policy::HostName;

use super::files::{FilesError, Folder};
use super::orders::Setback;
use super::{Certificates, Held, Name, Source, State};
use crate::public::AcmeSettings;
use crate::world::{World, lock};

/// Orders that run at once, of all accounts and of one. One can take minutes, when an authority waits for a name that
/// does not answer.
const ORDERS: usize = 8;
const ORDERS_OF_ACCOUNT: usize = 4;
/// How often it is looked what is due.
const LOOKS_EVERY: Duration = Duration::from_secs(5);
/// How long the edge may take until it answers a challenge.
const PUBLISHES_WITHIN: Duration = Duration::from_secs(10);
/// When something is tried again that fails until somebody changes something, and when an authority that does not say
/// when to renew is asked again.
const MUCH_LATER: SignedDuration = SignedDuration::from_hours(24);

/// Why a name has no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error(transparent)]
    Acme(#[from] AcmeError),
    #[error("{0}")]
    Kept(String),
    #[error("something went wrong on the host: its operator finds the cause in the server's log")]
    Panicked,
}

/// What is to be done for a name.
pub(super) enum Job {
    /// With the certificate that it replaces.
    Order(HostName, Option<Arc<Certificate>>),
    AskWhen(HostName, Arc<Certificate>),
}

pub(super) enum Outcome {
    Ordered(HostName, Result<Certificate, OrderError>),
    Asked(HostName, Option<Window>),
}

/// Orders what is due, and asks when to renew; for ever.
pub(crate) async fn keep(world: Arc<World>) {
    let public = &world.public;
    let (Some(settings), Some(folder), true) = (&public.settings.acme, &public.certificates.acme, public.is_on())
    else {
        return;
    };
    let office =
        Arc::new(Office { settings: settings.clone(), folder: folder.clone(), account: AsyncMutex::default() });
    let mut jobs = JoinSet::new();
    loop {
        let free = ORDERS.saturating_sub(jobs.len());
        let due = public.certificates.jobs(Timestamp::now(), free);
        // Before anything is ordered, so that a server that ends does not forget it.
        let certificates = Arc::clone(&public.certificates);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || certificates.keep_memory()).await {
            tracing::error!(%error, "what was ordered cannot be kept, and will not be known after a restart");
        }
        for job in due {
            let (world, office) = (Arc::clone(&world), Arc::clone(&office));
            let broken = job.broken();
            jobs.spawn(async move { whole(broken, office.carry_out(&world, job)).await });
        }
        tokio::select! {
            Some(done) = jobs.join_next(), if !jobs.is_empty() => {
                if let Ok(outcome) = done {
                    public.certificates.settle(outcome, Timestamp::now());
                    public.changed();
                }
            }
            () = public.wanted.notified() => {}
            () = tokio::time::sleep(LOOKS_EVERY) => {}
        }
    }
}

/// What a name needs of the authority, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    First,
    Renewal,
    When,
}

impl Certificates {
    /// What is due, at most so much of it. Each is under way until it is settled. Accounts take turns, so that many names
    /// of one do not keep the others waiting.
    pub(super) fn jobs(&self, now: Timestamp, most: usize) -> Vec<Job> {
        let mut state = lock(&self.state);
        let State { names, holders, memory, kept, under_way, turns, own, .. } = &mut *state;
        let Some(memory) = memory.as_mut().filter(|_| most > 0) else { return Vec::new() };
        let mut waiting: BTreeMap<AccountId, Vec<(Need, HostName)>> = BTreeMap::new();
        let due = |host: &HostName| !under_way.contains_key(host) && self.source(own, host) == Source::Acme;
        for (host, name) in names.iter_mut().filter(|(host, _)| due(host)) {
            if !self.http {
                name.problem = Some(
                    "an authority verifies names over plain HTTP, and this server has no listener for that: start it \
                     with --http-listen"
                        .to_owned(),
                );
            } else if let (Some(need), Some(holder)) = (name.need(host, now), holders.get(host)) {
                waiting.entry(holder.account).or_default().push((need, host.clone()));
            }
        }
        // The next one is the last.
        waiting.values_mut().for_each(|queue| queue.sort_unstable_by(|one, other| other.cmp(one)));
        let mut jobs = Vec::new();
        while jobs.len() < most {
            let busy = |account: &AccountId| under_way.values().filter(|other| *other == account).count();
            let may = waiting.keys().filter(|account| busy(account) < ORDERS_OF_ACCOUNT);
            let Some(account) = may.min_by_key(|account| (busy(account), turns.get(account))).copied() else { break };
            let Some((need, host)) = waiting.get_mut(&account).and_then(Vec::pop) else {
                waiting.remove(&account);
                continue;
            };
            let (Some(name), Some(holder)) = (names.get_mut(&host), holders.get(&host)) else { continue };
            if need == Need::First {
                if let Err(wait) = memory.order(self.limits, *holder, &host, now) {
                    (name.not_before, name.waits) = (Some(wait.until), Some(wait.to_string()));
                    continue;
                }
                (*kept, name.waits) = (false, None);
            }
            let held = name.held.as_ref().map(|held| Arc::clone(&held.certificate));
            jobs.push(match (need, held) {
                (Need::When, Some(held)) => Job::AskWhen(host.clone(), held),
                (_, held) => Job::Order(host.clone(), held),
            });
            under_way.insert(host, account);
            let turn = turns.values().max().map_or(0, |last| last + 1);
            turns.insert(account, turn);
        }
        jobs
    }

    pub(super) fn settle(&self, outcome: Outcome, now: Timestamp) {
        let mut state = lock(&self.state);
        let State { names, memory, kept, under_way, .. } = &mut *state;
        match outcome {
            Outcome::Asked(host, window) => {
                under_way.remove(&host);
                let Some(name) = names.get_mut(&host) else { return };
                let pause = window.as_ref().map_or(MUCH_LATER, |window| window.ask_again);
                name.ask_at = now.checked_add(pause).ok();
                name.window = window;
            }
            Outcome::Ordered(host, outcome) => {
                under_way.remove(&host);
                *kept = false;
                let outcome = outcome.and_then(|certificate| Held::new(certificate).map_err(OrderError::Kept));
                let memory = memory.get_or_insert_default();
                match outcome {
                    Ok(held) => {
                        tracing::info!(%host, not_after = %held.not_after(), "its certificate was issued");
                        memory.issued(&host);
                        if let Some(name) = names.get_mut(&host) {
                            *name = Name { held: Some(held), looked: true, ..Name::default() };
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%host, %error, "its certificate was not issued");
                        // Also of a name that is public no more: it may be again, in a second.
                        let failures = memory.setback(&host).map_or(1, |before| before.failures.saturating_add(1));
                        let setback = set_back(&error, failures, &host, now);
                        if let Some(name) = names.get_mut(&host) {
                            name.set_back(&setback);
                        }
                        let placed = !matches!(&error, OrderError::Acme(error) if error.is_before_order());
                        memory.failed(&host, placed, setback, now);
                    }
                }
            }
        }
    }

    /// Writes down what was ordered, unless that is done.
    pub(super) fn keep_memory(&self) -> Result<(), FilesError> {
        let mut state = lock(&self.state);
        let (Some(folder), Some(memory), false) = (&self.acme, state.memory.clone(), state.kept) else { return Ok(()) };
        // What cannot be written is not tried again before something changes.
        state.kept = true;
        drop(state);
        folder.keep_orders(&memory)
    }
}

impl Name {
    fn need(&self, host: &HostName, now: Timestamp) -> Option<Need> {
        match &self.held {
            Some(_) if self.ask_at.is_none_or(|at| at <= now) => Some(Need::When),
            held if self.is_due(host, now) => Some(if held.is_some() { Need::Renewal } else { Need::First }),
            _ => None,
        }
    }
}

fn set_back(error: &OrderError, failures: u32, host: &HostName, now: Timestamp) -> Setback {
    let outlook = match error {
        OrderError::Acme(error) => error.outlook(),
        OrderError::Kept(_) | OrderError::Panicked => Outlook::TryLater { not_before: None },
    };
    let not_before = match outlook {
        Outlook::TryLater { not_before } => renewal::after_failure(failures, now, not_before, host),
        // The account was forgotten: that was what stood in the way. Once, for another may not be known either.
        Outlook::NewAccount if failures == 1 => now,
        Outlook::NewAccount => renewal::after_failure(failures, now, None, host),
        Outlook::Never => now.checked_add(MUCH_LATER).unwrap_or(now),
    };
    Setback { failures, problem: error.to_string(), not_before }
}

impl Job {
    /// How it ends where something panics.
    pub(super) fn broken(&self) -> Outcome {
        match self {
            Self::Order(host, _) => Outcome::Ordered(host.clone(), Err(OrderError::Panicked)),
            Self::AskWhen(host, _) => Outcome::Asked(host.clone(), None),
        }
    }
}

/// A panic costs this attempt, and neither the name nor its account a place.
pub(super) async fn whole(broken: Outcome, work: impl Future<Output = Outcome>) -> Outcome {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("an order of a certificate panicked");
        broken
    })
}

/// Who deals with the authority.
struct Office {
    settings: AcmeSettings,
    folder: Folder,
    account: AsyncMutex<Option<Account>>,
}

impl Office {
    async fn carry_out(&self, world: &World, job: Job) -> Outcome {
        match job {
            Job::Order(host, before) => {
                let outcome = self.order(world, &host, before.as_deref()).await;
                Outcome::Ordered(host, outcome)
            }
            Job::AskWhen(host, certificate) => {
                // An authority that cannot be asked is asked again; until then its certificates are renewed as usual.
                let window = match self.account().await {
                    Ok(account) => account.renewal_window(&certificate).await.unwrap_or_default(),
                    Err(_) => None,
                };
                Outcome::Asked(host, window)
            }
        }
    }

    async fn order(
        &self,
        world: &World,
        host: &HostName,
        before: Option<&Certificate>,
    ) -> Result<Certificate, OrderError> {
        let names = std::slice::from_ref(host);
        let board = Board(world);
        let account = self.account().await?;
        let issued = match before {
            Some(before) => account.renew(names, before, &board).await,
            None => account.issue(names, &board).await,
        };
        if let Err(error) = &issued
            && error.outlook() == Outlook::NewAccount
        {
            self.forget(&account).await;
        }
        let certificate = issued?;
        let (folder, host, issued) = (self.folder.clone(), host.clone(), certificate.clone());
        let kept = tokio::task::spawn_blocking(move || folder.keep(&host, &issued)).await;
        let kept = kept.map_err(|error| OrderError::Kept(error.to_string()))?;
        if let Err(error) = kept {
            // It can be used all the same, until the server ends.
            tracing::error!(%error, "a certificate cannot be kept");
        }
        Ok(certificate)
    }

    /// The account at the authority; it is made with the first order.
    async fn account(&self) -> Result<Account, OrderError> {
        let mut known = self.account.lock().await;
        if let Some(account) = &*known {
            return Ok(account.clone());
        }
        let directory = &self.settings.directory;
        let account = match self.folder.account() {
            Some(credentials) => match Account::open(directory, &credentials).await {
                Err(error) if error.outlook() == Outlook::NewAccount => self.register().await?,
                opened => opened?,
            },
            None => self.register().await?,
        };
        *known = Some(account.clone());
        Ok(account)
    }

    async fn register(&self) -> Result<Account, OrderError> {
        let account = Account::create(&self.settings.directory, self.settings.email.as_ref()).await?;
        // Before it is used: an account whose key is lost is of no use to anybody.
        self.folder.keep_account(account.credentials()).map_err(|error| OrderError::Kept(error.to_string()))?;
        tracing::info!(directory = self.settings.directory.url(), "an account was made at the authority");
        Ok(account)
    }

    /// The authority does not know the account: the next order makes another one.
    async fn forget(&self, account: &Account) {
        let mut known = self.account.lock().await;
        if known.as_ref().is_some_and(|known| known.credentials() == account.credentials()) {
            match self.register().await {
                Ok(another) => *known = Some(another),
                Err(error) => tracing::warn!(%error, "no account can be made at the authority"),
            }
        }
    }
}

/// Has challenges answered by the edge.
struct Board<'a>(&'a World);

#[async_trait]
impl Challenges for Board<'_> {
    async fn publish(
        &self,
        token: &str,
        key_authorization: &str,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let public = &self.0.public;
        lock(&public.challenges).insert(token.to_owned(), key_authorization.to_owned());
        public.changed();
        let mut served = public.served.subscribe();
        let answered =
            served.wait_for(|served| served.as_ref().is_some_and(|served| served.challenges.contains(token)));
        match tokio::time::timeout(PUBLISHES_WITHIN, answered).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(public.hindrance(None).into()),
        }
    }

    async fn withdraw(&self, token: &str) {
        lock(&self.0.public.challenges).remove(token);
        self.0.public.changed();
    }
}
