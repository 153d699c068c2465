//! What is published now, as requests look it up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use rustls::ServerConfig;
use tokio_util::task::TaskTracker;

use crate::certificates::{Certificates, Tls};
use crate::counters::{SiteCounters, State};
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
        let certificates = tls.certificates(&snapshot.certificates, before.map(|before| &before.certificates))?;
        let config = match before.filter(|before| Arc::ptr_eq(&before.certificates, &certificates)) {
            Some(before) => before.tls.clone(),
            None => tls.config(certificates.clone()).map_err(|error| SnapshotError::Tls(error.into()))?,
        };
        if snapshot.https_port == Some(0) {
            return Err(SnapshotError::NoHttpsPort);
        }
        let challenges = read_challenges(&snapshot.challenges)?;
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
            let live = match old.filter(|old| old.site == *site) {
                Some(old) => old.clone(),
                None => {
                    let target = match old.filter(|old| same_target(&old.site, site)) {
                        Some(old) => old.target.clone(),
                        None => Arc::new(Target::new(site, limits)),
                    };
                    let state = states.get(site.id.as_str()).map(|state| (*state).clone()).unwrap_or_default();
                    let rate = Rate::new(site.limits.requests_per_second, site.limits.burst);
                    Arc::new(Live { site: site.clone(), rate, state, target })
                }
            };
            if sites.insert(site.host.as_str().into(), live).is_some() {
                return Err(SnapshotError::DuplicateHost(site.host.clone()));
            }
        }
        Ok(Self { sites, certificates, tls: config, challenges, https_port: snapshot.https_port })
    }

    /// The same with these challenges and no others.
    pub fn with_challenges(&self, challenges: &BTreeMap<String, String>) -> Result<Self, SnapshotError> {
        Ok(Self {
            sites: self.sites.clone(),
            certificates: self.certificates.clone(),
            tls: self.tls.clone(),
            challenges: read_challenges(challenges)?,
            https_port: self.https_port,
        })
    }

    /// Ends what goes to targets that `after` does not have. It has ended when all of what is returned is empty.
    pub fn close_all_but(&self, after: &Self) -> Vec<TaskTracker> {
        let gone = self.sites.values().filter(|live| {
            let kept = after.sites.get(live.site.host.as_str());
            kept.is_none_or(|kept| !Arc::ptr_eq(&kept.target, &live.target))
        });
        gone.map(|live| live.target.close()).collect()
    }
}

impl Live {
    pub fn counters(&self) -> SiteCounters {
        self.state.read(&self.site.id, &self.site.host)
    }
}

fn read_challenges(challenges: &BTreeMap<String, String>) -> Result<HashMap<Box<str>, Bytes>, SnapshotError> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match challenges.keys().find(|token| token.is_empty() || !token.bytes().all(valid)) {
        Some(token) => Err(SnapshotError::Token(token.clone())),
        None => {
            let read = |(token, answer): (&String, &String)| (token.as_str().into(), Bytes::from(answer.clone()));
            Ok(challenges.iter().map(read).collect())
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
    (&old.id, old.network, &old.addresses, old.port, &old.auth)
        == (&new.id, new.network, &new.addresses, new.port, &new.auth)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::time::Duration;

    use super::*;
    use crate::snapshot::{Auth, Certificate, SecretHash, SiteLimits};

    fn site(host: &str) -> Site {
        Site {
            host: host.parse().unwrap(),
            id: host.to_owned(),
            network: warren_model::NetworkNumber::FIRST,
            addresses: vec![[10, 0, 0, 2].into()],
            port: 80,
            auth: None,
            limits: SiteLimits::default(),
        }
    }

    fn certificate() -> Certificate {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        Certificate { chain_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() }
    }

    #[test]
    fn what_a_change_does_not_concern_is_kept() {
        let (tls, limits) = (Tls::new().unwrap(), Limits::default());
        let build = |snapshot: &Snapshot, before| Table::build(snapshot, &tls, &limits, before).unwrap();
        let mut snapshot = Snapshot { certificates: vec![certificate()], ..Snapshot::default() };
        snapshot.sites = vec![site("a.example"), site("b.example")];
        let first = build(&snapshot, None);

        snapshot.challenges.insert("token".into(), "answer".into());
        snapshot.sites[1].limits.max_body_bytes = 1;
        snapshot.sites.push(site("c.example"));
        let second = build(&snapshot, Some(&first));
        assert!(Arc::ptr_eq(&first.tls, &second.tls), "sessions are kept");
        assert!(Arc::ptr_eq(&first.sites["a.example"], &second.sites["a.example"]));
        let [before, after] = [&first, &second].map(|table| &table.sites["b.example"]);
        assert_eq!(after.site.limits.max_body_bytes, 1);
        assert!(Arc::ptr_eq(&before.target, &after.target) && Arc::ptr_eq(&before.state, &after.state));

        snapshot.sites[1].auth = Some(Auth::Bearer { token: SecretHash::of(b"x") });
        snapshot.certificates.push(certificate());
        let third = build(&snapshot, Some(&second));
        assert!(!Arc::ptr_eq(&second.tls, &third.tls));
        let [before, after] = [&second, &third].map(|table| &table.sites["b.example"]);
        assert!(!Arc::ptr_eq(&before.target, &after.target), "who was let in without is not let go on");
        assert!(Arc::ptr_eq(&before.state, &after.state));
    }

    #[test]
    fn other_challenges_leave_everything_else_as_it_is() {
        let (tls, limits) = (Tls::new().unwrap(), Limits::default());
        let sites = vec![site("a.example")];
        let snapshot = Snapshot { certificates: vec![certificate()], sites, ..Snapshot::default() };
        let first = Table::build(&snapshot, &tls, &limits, None).unwrap();
        let challenges = [("token".to_owned(), "answer".to_owned())].into();
        let second = first.with_challenges(&challenges).unwrap();
        assert_eq!(second.challenges["token"], "answer");
        assert!(Arc::ptr_eq(&first.tls, &second.tls) && Arc::ptr_eq(&first.certificates, &second.certificates));
        assert!(Arc::ptr_eq(&first.sites["a.example"], &second.sites["a.example"]));
        assert!(second.with_challenges(&BTreeMap::new()).unwrap().challenges.is_empty());
        let invalid = [("to/ken".to_owned(), "answer".to_owned())].into();
        assert!(matches!(first.with_challenges(&invalid), Err(SnapshotError::Token(_))));
    }

    #[tokio::test]
    async fn what_is_closed_has_ended_when_it_is_said_to_have() {
        struct Open(Arc<AtomicBool>);

        impl Drop for Open {
            fn drop(&mut self) {
                self.0.store(false, Relaxed);
            }
        }

        let (tls, limits) = (Tls::new().unwrap(), Limits::default());
        let snapshot = Snapshot { sites: vec![site("a.example"), site("b.example")], ..Snapshot::default() };
        let before = Table::build(&snapshot, &tls, &limits, None).unwrap();
        let open = ["a.example", "b.example"].map(|host| {
            let open = Arc::new(AtomicBool::new(true));
            let connection = Open(open.clone());
            let work = async move {
                let _connection = connection;
                std::future::pending::<()>().await;
            };
            before.sites[host].target.spawn(work).unwrap();
            open
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        let snapshot = Snapshot { sites: vec![site("a.example")], ..Snapshot::default() };
        let after = Table::build(&snapshot, &tls, &limits, Some(&before)).unwrap();
        let connections = before.close_all_but(&after);
        for connections in connections {
            connections.wait().await;
        }
        assert_eq!(open.map(|open| open.load(Relaxed)), [true, false]);
        assert!(before.sites["b.example"].target.spawn(async {}).is_none());
    }
}
