//! What the API may ask about the public edge.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use warren_api::{PublicInfo, Publisher};
use warren_certs::acme::Directory;
use warren_model::InstallationId;
use warren_model::domain::DomainStatus;
use warren_model::policy::HostName;
use warren_reconcile::{AcmeSettings, OrderLimits, OwnFiles, PublicListeners, PublicSettings, World};

use crate::cli::public::PublicArgs;

/// The public edge, through the parts that keep it.
pub struct LivePublisher {
    world: Arc<World>,
    suffix: Option<HostName>,
}

impl LivePublisher {
    pub fn new(world: Arc<World>, args: &PublicArgs) -> Self {
        Self { world, suffix: args.preview_suffix.clone() }
    }
}

/// What the reconciler has to know of the settings. The directory is where certificates are kept.
pub fn settings(
    args: &PublicArgs,
    directory: PathBuf,
    installation: &InstallationId,
) -> anyhow::Result<PublicSettings> {
    let acme = match &args.acme {
        None => None,
        Some(acme) => Some(AcmeSettings {
            directory: Directory::new(&acme.directory, acme.ca.as_deref()).context("acme_directory")?,
            email: acme.email.clone(),
            limits: OrderLimits::default(),
        }),
    };
    Ok(PublicSettings {
        https: args.https_listen,
        http: args.http_listen,
        directory,
        own: args.tls.as_ref().map(|own| OwnFiles { certificate: own.chain.clone(), key: own.key.clone() }),
        acme,
        authority_name: format!("Warren {installation}"),
    })
}

#[async_trait]
impl Publisher for LivePublisher {
    fn info(&self) -> PublicInfo {
        let (listeners, hindrance) = match self.world.public_listeners() {
            Ok(listeners) => (listeners, None),
            Err(reason) => (PublicListeners::default(), Some(reason)),
        };
        PublicInfo {
            https: listeners.https.map(|address| address.port()),
            http: listeners.http.map(|address| address.port()),
            suffix: self.suffix.clone(),
            hindrance,
        }
    }

    async fn published(&self, host: &HostName, within: Duration) -> Result<(), String> {
        self.world.domain_published(host, within).await
    }

    async fn withdrawn(&self, host: &HostName, within: Duration) -> Result<(), String> {
        self.world.domain_withdrawn(host, within).await
    }

    async fn status(&self, hosts: &[HostName]) -> BTreeMap<HostName, DomainStatus> {
        self.world.domain_statuses(hosts).await
    }

    fn authority_pem(&self) -> Option<String> {
        self.world.certificate_authority()
    }
}
