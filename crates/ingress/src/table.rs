//! What is published now, as requests look it up.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use rustls::ServerConfig;

use crate::certificates::{Certificates, Tls};
use crate::counters::State;
use crate::limits::Limits;
use crate::rate::Rate;
use crate::snapshot::{Site, Snapshot, SnapshotError};
use crate::upstream::Target;

pub(crate) struct Table {
    pub sites: HashMap<Box<str>, Arc<Live>>,
    pub certificates: Arc<Certificates>,
    pub tls: Arc<ServerConfig>,
    pub challenges: HashMap<Box<str>, Bytes>,
    pub https_port: Option<u16>,
}

/// A site with what is kept of it.
pub(crate) struct Live {
    pub site: Site,
    pub rate: Rate,
    /// Stays as long as the site's id is published.
    pub state: Arc<State>,
    /// Stays as long as requests are to go to the same place, from the same people.
    pub target: Arc<Target>,
}

impl Table {
    /// Keeps of `before` what is still true.
    pub fn build(
        snapshot: &Snapshot,
        tls: &Tls,
        limits: &Limits,
        before: Option<&Self>,
    ) -> Result<Self, SnapshotError> {
        let certificates = Arc::new(tls.certificates(&snapshot.certificates)?);
        let config = tls.config(certificates.clone()).map_err(|error| SnapshotError::Tls(error.into()))?;
        if snapshot.https_port == Some(0) {
            return Err(SnapshotError::NoHttpsPort);
        }
        for token in snapshot.challenges.keys() {
            let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            if token.is_empty() || !token.bytes().all(valid) {
                return Err(SnapshotError::Token(token.clone()));
            }
        }
        let states: HashMap<&str, &Arc<State>> = before
            .iter()
            .flat_map(|before| before.sites.values())
            .map(|live| (live.site.id.as_str(), &live.state))
            .collect();
        let mut sites = HashMap::with_capacity(snapshot.sites.len());
        let mut ids = BTreeSet::new();
        for site in &snapshot.sites {
            check(site)?;
            if !ids.insert(&site.id) {
                return Err(SnapshotError::DuplicateId(site.id.clone()));
            }
            let old = before.and_then(|before| before.sites.get(site.host.as_str()));
            let target = match old.filter(|old| same_target(&old.site, site)) {
                Some(old) => old.target.clone(),
                None => Arc::new(Target::new(site, limits)),
            };
            let state = states.get(site.id.as_str()).map(|state| (*state).clone()).unwrap_or_default();
            let rate = Rate::new(site.limits.requests_per_second, site.limits.burst);
            let live = Arc::new(Live { site: site.clone(), rate, state, target });
            if sites.insert(site.host.as_str().into(), live).is_some() {
                return Err(SnapshotError::DuplicateHost(site.host.clone()));
            }
        }
        let challenge = |(token, answer): (&String, &String)| (token.as_str().into(), Bytes::from(answer.clone()));
        let challenges = snapshot.challenges.iter().map(challenge).collect();
        Ok(Self { sites, certificates, tls: config, challenges, https_port: snapshot.https_port })
    }

    /// Ends what goes to targets that `after` does not have.
    pub fn close_all_but(&self, after: &Self) {
        for live in self.sites.values() {
            let kept = after.sites.get(live.site.host.as_str());
            if kept.is_none_or(|kept| !Arc::ptr_eq(&kept.target, &live.target)) {
                live.target.close();
            }
        }
    }
}

fn check(site: &Site) -> Result<(), SnapshotError> {
    if site.addresses.is_empty() {
        return Err(SnapshotError::NoAddress(site.host.clone()));
    }
    if site.port == 0 {
        return Err(SnapshotError::NoPort(site.host.clone()));
    }
    Ok(())
}

/// Who was let in by other credentials is not let go on.
fn same_target(old: &Site, new: &Site) -> bool {
    let target = |site: &Site| (site.id.clone(), site.network, site.addresses.clone(), site.port, site.auth.clone());
    target(old) == target(new)
}
