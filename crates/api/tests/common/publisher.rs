//! A public edge that serves at once, unless told that it is stuck, and does not listen unless told where.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use warren_api::{PublicInfo, Publisher};
use warren_model::domain::DomainStatus;
use warren_model::policy::HostName;

pub struct FakePublisher {
    pub info: Mutex<PublicInfo>,
    pub stuck: AtomicBool,
    pub served: Mutex<BTreeSet<HostName>>,
    pub known: Mutex<BTreeMap<HostName, DomainStatus>>,
    pub authority: Mutex<Option<String>>,
}

impl Default for FakePublisher {
    fn default() -> Self {
        Self {
            info: Mutex::new(PublicInfo::nothing()),
            stuck: AtomicBool::new(false),
            served: Mutex::default(),
            known: Mutex::default(),
            authority: Mutex::default(),
        }
    }
}

impl FakePublisher {
    /// HTTPS on port 8443, and names below `preview.example` for everybody.
    pub fn listen(&self) {
        *self.info.lock().unwrap() = PublicInfo {
            https: Some(8443),
            http: Some(80),
            suffix: Some("preview.example".parse().unwrap()),
            hindrance: None,
        };
    }

    pub fn serves(&self, host: &str) -> bool {
        self.served.lock().unwrap().contains(&host.parse().unwrap())
    }

    fn done(&self) -> Result<(), String> {
        if self.stuck.load(Ordering::Relaxed) { Err("the edge does not answer".into()) } else { Ok(()) }
    }
}

#[async_trait]
impl Publisher for FakePublisher {
    fn info(&self) -> PublicInfo {
        self.info.lock().unwrap().clone()
    }

    async fn published(&self, host: &HostName, _: Duration) -> Result<(), String> {
        self.done()?;
        self.served.lock().unwrap().insert(host.clone());
        Ok(())
    }

    async fn withdrawn(&self, host: &HostName, _: Duration) -> Result<(), String> {
        self.done()?;
        self.served.lock().unwrap().remove(host);
        Ok(())
    }

    async fn status(&self, hosts: &[HostName]) -> BTreeMap<HostName, DomainStatus> {
        let known = self.known.lock().unwrap();
        hosts.iter().filter_map(|host| Some((host.clone(), known.get(host)?.clone()))).collect()
    }

    fn authority_pem(&self) -> Option<String> {
        self.authority.lock().unwrap().clone()
    }
}
