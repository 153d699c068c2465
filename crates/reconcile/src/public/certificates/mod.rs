//! Which certificate each public name has, and where it comes from.
//!
//! The operator's own certificate is for the names that it covers. All others are had from an authority by ACME, where one
//! is named ([`acme`]), else from the server's own authority.

pub(crate) mod acme;
mod files;
pub(in crate::public) mod orders;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use warren_certs::authority::{Authority, LEAF_LIFETIME};
use warren_certs::renewal::{self, Window};
use warren_certs::{Certificate, own};
use warren_ingress::Certificate as Given;
use warren_model::AccountId;
use warren_model::domain::{CertificateState, DomainCertificate};
use warren_model::policy::HostName;

use super::{OwnFiles, PublicSettings};
use crate::world::lock;
pub(crate) use acme::keep;
use files::{Files, Folder};
use orders::{Holder, Memory, OrderLimits, Setback};

/// How often the operator's files are read again.
const READ_EVERY: SignedDuration = SignedDuration::from_secs(5);
/// How often the files of names that are public no more are looked through.
const CLEANED_EVERY: SignedDuration = SignedDuration::from_hours(1);
/// When something on this host is tried again that should not have failed.
const AGAIN: SignedDuration = SignedDuration::from_secs(30);

pub(super) struct Certificates {
    files: Files,
    own: Option<OwnFiles>,
    acme: Option<Folder>,
    limits: OrderLimits,
    authority_name: String,
    https: bool,
    http: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    own: Own,
    authority: Option<Authority>,
    /// Why there is none.
    authority_problem: Option<String>,
    /// When what is on disk was looked through.
    cleaned_at: Option<Timestamp>,
    /// Who has the names that are public.
    holders: BTreeMap<HostName, Holder>,
    /// What was ordered of the authority, once that is read, and whether it is on disk as it is here.
    memory: Option<Memory>,
    kept: bool,
    /// The names for which the authority is being asked, and for whom; they may be public no more.
    under_way: BTreeMap<HostName, AccountId>,
    /// When it was whose turn to ask, the latest with the highest number.
    turns: BTreeMap<AccountId, u64>,
    /// The names that are public, but for those that the operator's certificate covers.
    names: BTreeMap<HostName, Name>,
}

#[derive(Default)]
struct Own {
    held: Option<Held>,
    problem: Option<String>,
    read_at: Option<Timestamp>,
}

/// A certificate, and the same as the edge is given it.
#[derive(Clone)]
struct Held {
    certificate: Arc<Certificate>,
    given: Arc<Given>,
}

/// What is known of one name's certificate.
#[derive(Default)]
struct Name {
    held: Option<Held>,
    /// Whether what is on disk was looked at.
    looked: bool,
    /// How often in a row the next one could not be had, why, and when it is tried again.
    failures: u32,
    problem: Option<String>,
    not_before: Option<Timestamp>,
    /// When the authority would like it to be renewed, and when it is asked again.
    window: Option<Window>,
    ask_at: Option<Timestamp>,
    /// Why it is not ordered yet.
    waits: Option<String>,
}

/// Where a name's certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Own,
    Acme,
    Internal,
    /// The operator's certificate cannot be read.
    Nowhere,
}

impl Held {
    /// The error is for a person: the edge would not take it.
    fn new(certificate: Certificate) -> Result<Self, String> {
        let given =
            Given { chain_pem: certificate.chain_pem().to_owned(), key_pem: certificate.key_pem().expose().to_owned() };
        match given.check() {
            Ok(()) => Ok(Self { certificate: Arc::new(certificate), given: Arc::new(given) }),
            Err(error) => Err(warren_model::problem::chain(&error)),
        }
    }

    fn not_after(&self) -> Timestamp {
        self.certificate.validity().not_after
    }
}

impl Certificates {
    pub fn new(settings: &PublicSettings) -> Self {
        let files = Files::new(settings.directory.clone());
        Self {
            own: settings.own.clone(),
            acme: settings.acme.as_ref().map(|acme| files.acme(acme.directory.url())),
            limits: settings.acme.as_ref().map(|acme| acme.limits).unwrap_or_default(),
            files,
            authority_name: settings.authority_name.clone(),
            https: settings.https.is_some(),
            http: settings.http.is_some(),
            state: Mutex::default(),
        }
    }

    /// The root of the server's own authority, once it is made, if that is where certificates come from.
    pub fn authority_pem(&self) -> Option<String> {
        lock(&self.state).authority.as_ref().map(|authority| authority.root_pem().to_owned())
    }

    /// What the edge needs for these names as of now. Makes what can be made here, and notes what has to be ordered. Reads
    /// and writes files.
    pub fn prepare(&self, hosts: &BTreeMap<HostName, Holder>, now: Timestamp) -> Vec<Arc<Given>> {
        if !self.https {
            return Vec::new();
        }
        let mut given = self.prepare_all(hosts, now);
        // Each by itself: whoever asks for a status does not wait until all of them are made.
        given.extend(hosts.keys().filter_map(|host| self.prepare_one(&mut lock(&self.state), host, now)));
        given
    }

    /// What concerns no single name.
    fn prepare_all(&self, hosts: &BTreeMap<HostName, Holder>, now: Timestamp) -> Vec<Arc<Given>> {
        let mut state = lock(&self.state);
        self.read_own(&mut state.own, now);
        match &self.acme {
            None => self.ensure_authority(&mut state, now),
            Some(_) if state.memory.is_some() => {}
            Some(folder) => (state.memory, state.kept) = (Some(folder.orders()), true),
        }
        let is_clean =
            state.cleaned_at.is_some_and(|at| (SignedDuration::ZERO..CLEANED_EVERY).contains(&now.duration_since(at)));
        if !is_clean {
            state.cleaned_at = Some(now);
            self.clean(&state.own, hosts, now);
        }
        state.holders.clone_from(hosts);
        state.names.retain(|host, _| hosts.contains_key(host));
        let accounts: BTreeSet<AccountId> = hosts.values().map(|holder| holder.account).collect();
        state.turns.retain(|account, _| accounts.contains(account));
        state.own.held.iter().map(|held| Arc::clone(&held.given)).collect()
    }

    /// Removes what no name needs, in the folder that is used and in those that were.
    fn clean(&self, own: &Own, hosts: &BTreeMap<HostName, Holder>, now: Timestamp) {
        let used = self.acme.clone().unwrap_or_else(|| self.files.internal());
        let needed = hosts.keys().filter(|host| self.source(own, host) != Source::Own).cloned().collect();
        for folder in self.files.folders() {
            folder.clean(if folder == used { &needed } else { const { &BTreeSet::new() } }, now);
        }
    }

    fn prepare_one(&self, state: &mut State, host: &HostName, now: Timestamp) -> Option<Arc<Given>> {
        let source = self.source(&state.own, host);
        if source == Source::Own {
            state.names.remove(host);
            return None;
        }
        let name = state.names.entry(host.clone()).or_default();
        match source {
            Source::Own => {}
            Source::Acme => {
                if !name.looked
                    && let Some(setback) = state.memory.as_ref().and_then(|memory| memory.setback(host))
                {
                    name.set_back(setback);
                }
                self.acme.iter().for_each(|folder| name.look(folder, host));
            }
            Source::Internal => {
                name.look(&self.files.internal(), host);
                match &state.authority {
                    Some(authority) if name.is_due(host, now) => self.issue(authority, name, host, now),
                    Some(_) => {}
                    None => name.problem.clone_from(&state.authority_problem),
                }
            }
            Source::Nowhere => *name = Name { problem: state.own.problem.clone(), ..Name::default() },
        }
        name.held.as_ref().map(|held| Arc::clone(&held.given))
    }

    /// What is known of a name's certificate, for whoever mapped it.
    pub fn status(&self, host: &HostName, now: Timestamp) -> DomainCertificate {
        let told = |state, detail, not_after| DomainCertificate { state, detail, not_after };
        if !self.https {
            return told(CertificateState::None, None, None);
        }
        let state = lock(&self.state);
        let name = state.names.get(host);
        let (held, problem) = match self.source(&state.own, host) {
            Source::Own => (state.own.held.as_ref(), state.own.problem.clone()),
            _ => (name.and_then(|name| name.held.as_ref()), name.and_then(|name| name.problem.clone())),
        };
        match (held.map(Held::not_after), problem) {
            (Some(not_after), problem) if not_after > now => told(CertificateState::Valid, problem, Some(not_after)),
            (not_after, Some(problem)) => told(CertificateState::Failed, Some(problem), not_after),
            (Some(not_after), None) => {
                told(CertificateState::Failed, Some("it has expired".to_owned()), Some(not_after))
            }
            (None, None) => told(CertificateState::Pending, name.and_then(|name| name.waits.clone()), None),
        }
    }

    fn source(&self, own: &Own, host: &HostName) -> Source {
        match &own.held {
            Some(held) if held.certificate.covers(host) => Source::Own,
            // Nobody knows which names it is for.
            None if self.own.is_some() => Source::Nowhere,
            _ if self.acme.is_some() => Source::Acme,
            _ => Source::Internal,
        }
    }

    /// Reads the operator's files, if it is time to. While they cannot be used, the certificate from before stays.
    fn read_own(&self, own: &mut Own, now: Timestamp) {
        let Some(files) = &self.own else { return };
        let is_fresh =
            own.read_at.is_some_and(|at| (SignedDuration::ZERO..READ_EVERY).contains(&now.duration_since(at)));
        if is_fresh {
            return;
        }
        own.read_at = Some(now);
        let read = own::read(&files.certificate, &files.key, now).map_err(|error| error.to_string());
        let problem = match read {
            Ok(read) if own.held.as_ref().is_some_and(|held| *held.certificate == read.certificate) => None,
            Ok(read) => {
                read.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                match Held::new(read.certificate) {
                    Ok(held) => {
                        tracing::info!(file = %files.certificate.display(), not_after = %held.not_after(), "a certificate was read");
                        own.held = Some(held);
                        None
                    }
                    Err(reason) => {
                        Some(format!("the certificate in {} cannot be used: {reason}", files.certificate.display()))
                    }
                }
            }
            Err(error) => Some(error),
        };
        if let Some(problem) = problem.as_ref().filter(|problem| own.problem.as_ref() != Some(*problem)) {
            tracing::warn!(problem, "the certificate for public names cannot be used");
        }
        own.problem = problem;
    }

    fn ensure_authority(&self, state: &mut State, now: Timestamp) {
        if state.authority.is_some() {
            return;
        }
        let had = match self.files.authority() {
            Ok(Some(authority)) => Ok(authority),
            Ok(None) => {
                Authority::create(&self.authority_name, now).map_err(|error| error.to_string()).and_then(|authority| {
                    self.files.keep_authority(&authority).map_err(|error| error.to_string())?;
                    tracing::info!("an authority for public names was made");
                    Ok(authority)
                })
            }
            Err(error) => Err(error.to_string()),
        };
        match had {
            Ok(authority) => state.authority = Some(authority),
            Err(reason) => {
                let problem = format!("the server's own authority cannot be used: {reason}");
                if state.authority_problem.as_ref() != Some(&problem) {
                    tracing::error!("{problem}");
                }
                state.authority_problem = Some(problem);
            }
        }
    }

    fn issue(&self, authority: &Authority, name: &mut Name, host: &HostName, now: Timestamp) {
        let made = authority.issue(host, LEAF_LIFETIME, now).map_err(|error| error.to_string());
        let kept = made.and_then(|certificate| {
            self.files.internal().keep(host, &certificate).map_err(|error| error.to_string())?;
            Held::new(certificate)
        });
        match kept {
            Ok(held) => *name = Name { held: Some(held), looked: true, ..Name::default() },
            Err(reason) => {
                tracing::error!(%host, reason, "there is no certificate for it");
                name.failures += 1;
                name.not_before = now.checked_add(AGAIN).ok();
                name.problem = Some(reason);
            }
        }
    }
}

impl Name {
    /// Takes what is on disk, once.
    fn look(&mut self, folder: &Folder, host: &HostName) {
        if std::mem::replace(&mut self.looked, true) {
            return;
        }
        self.held = folder.certificate(host).and_then(|certificate| Held::new(certificate).ok());
    }

    fn set_back(&mut self, setback: &Setback) {
        (self.failures, self.not_before) = (setback.failures, Some(setback.not_before));
        self.problem = Some(setback.problem.clone());
    }

    /// Whether another one is to be had now.
    fn is_due(&self, host: &HostName, now: Timestamp) -> bool {
        self.due_at(host).is_none_or(|due| due <= now)
    }

    /// When another one is to be had; `None`: at once.
    fn due_at(&self, host: &HostName) -> Option<Timestamp> {
        let due = self.held.as_ref().map(|held| renewal::due(held.certificate.validity(), self.window.as_ref(), host));
        due.max(self.not_before)
    }
}

#[cfg(test)]
mod tests;
