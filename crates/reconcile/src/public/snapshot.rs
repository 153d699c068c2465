//! What the edge is to publish, as it follows from the records. Pure.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::num::NonZeroU32;
use std::sync::Arc;

use warren_ingress::{Auth, Certificate, InvalidSecretHash, Site, SiteLimits, Snapshot};
use warren_model::domain::{Domain, DomainAuth, DomainLimits};
use warren_model::record::{Machine, Network, Power, Protocol};
use warren_model::{MachineId, NetworkId};

/// A domain that leads somewhere.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Published {
    pub domain: Arc<Domain>,
    pub network: Arc<Network>,
    pub site: Site,
}

/// Where the domains lead. One is left out whose machine is not there, or is not what the domain says.
pub(super) fn published<'a>(
    domains: impl Iterator<Item = &'a Arc<Domain>>,
    machine: impl Fn(MachineId) -> Option<Arc<Machine>>,
    network: impl Fn(NetworkId) -> Option<Arc<Network>>,
) -> Vec<Published> {
    domains
        .filter_map(|domain| {
            let machine = machine(domain.machine)?;
            let network = network(domain.network)?;
            let whole = machine.power != Power::Gone && machine.network == network.id && !network.deleting;
            let own = [machine.account, network.account] == [domain.account; 2];
            if !whole || !own || !declares(&machine, domain.port) {
                return None;
            }
            match site(domain, &machine, &network) {
                Ok(site) => Some(Published { domain: Arc::clone(domain), network, site }),
                // It is not opened to everybody for that.
                Err(error) => {
                    tracing::error!(host = %domain.host, %error, "what it asks for cannot be read, so it is not published");
                    None
                }
            }
        })
        .collect()
}

/// All that is to be published but the challenges of ACME, as parts that are shared with whoever made them.
#[derive(Default)]
pub(super) struct Content {
    pub published: Vec<Published>,
    pub certificates: Vec<Arc<Certificate>>,
    pub https_port: Option<u16>,
}

/// What was to be published the last time, and its generation.
#[derive(Default)]
pub(super) struct Last(Option<(Content, u64)>);

impl Content {
    pub fn is_empty(&self) -> bool {
        self.published.is_empty() && self.certificates.is_empty() && self.https_port.is_none()
    }

    pub fn snapshot(&self, challenges: BTreeMap<String, String>) -> Snapshot {
        Snapshot {
            sites: self.published.iter().map(|one| one.site.clone()).collect(),
            certificates: self.certificates.iter().map(|one| Certificate::clone(one)).collect(),
            challenges,
            https_port: self.https_port,
        }
    }

    /// Whether nothing was made anew. A certificate that says the same as another one may be another.
    fn is(&self, other: &Self) -> bool {
        let mut certificates = self.certificates.iter().zip(&other.certificates);
        self.certificates.len() == other.certificates.len()
            && certificates.all(|(one, other)| Arc::ptr_eq(one, other))
            && (&self.published, self.https_port) == (&other.published, other.https_port)
    }
}

impl Last {
    /// The generation of what is to be published now, which `write` finds out. It is not asked where nothing has changed.
    pub fn follow(&mut self, content: Content, write: impl FnOnce(&Content) -> u64) -> (&Content, u64) {
        let generation = match self.0.take() {
            Some((last, generation)) if last.is(&content) => generation,
            _ => write(&content),
        };
        let (content, generation) = self.0.insert((content, generation));
        (content, *generation)
    }
}

/// The same for the same content, so that a daemon that comes back can tell whether the edge already has it.
pub(super) fn generation(content: &Content) -> u64 {
    let mut hasher = DefaultHasher::new();
    // Everything in a snapshot can be written as JSON, and in one way only.
    serde_json::to_vec(&content.snapshot(BTreeMap::new())).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

/// Likewise.
pub(super) fn generation_of_challenges(challenges: &BTreeMap<String, String>) -> u64 {
    let mut hasher = DefaultHasher::new();
    challenges.hash(&mut hasher);
    hasher.finish()
}

fn declares(machine: &Machine, port: u16) -> bool {
    let speaks = |protocol| matches!(protocol, Protocol::Tcp | Protocol::Http);
    machine.ports.iter().any(|declared| declared.port == port && speaks(declared.protocol))
}

fn site(domain: &Domain, machine: &Machine, network: &Network) -> Result<Site, InvalidSecretHash> {
    let auth = match &domain.auth {
        None => None,
        Some(DomainAuth::Bearer { hash }) => Some(Auth::Bearer { token: hash.parse()? }),
        Some(DomainAuth::Basic { user, hash }) => Some(Auth::Basic { user: user.clone(), password: hash.parse()? }),
    };
    Ok(Site {
        host: domain.host.clone(),
        id: domain.id.to_string(),
        network: network.number,
        addresses: vec![machine.ipv4.into()],
        port: domain.port,
        auth,
        limits: limits(&domain.limits),
    })
}

fn limits(limits: &DomainLimits) -> SiteLimits {
    let some = |number: u32| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
    SiteLimits {
        requests_per_second: some(limits.requests_per_second),
        burst: some(limits.burst),
        max_body_bytes: limits.max_body_bytes,
        idle_seconds: some(limits.idle_seconds),
        concurrent: some(limits.concurrent),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use ulid::Ulid;
    use warren_model::domain::DomainProof;
    use warren_model::record::{DeclaredPort, Egress};
    use warren_model::{AccountId, DomainId, KeyId};

    use super::*;
    use crate::samples;

    fn domain(machine: &Machine, port: u16) -> Domain {
        Domain {
            id: DomainId::from_ulid(Ulid::from_parts(1, 9)),
            account: machine.account,
            host: "app.preview.example".parse().unwrap(),
            network: machine.network,
            machine: machine.id,
            port,
            auth: None,
            limits: DomainLimits::default(),
            burst_asked_for: None,
            proof: DomainProof::Suffix,
            created_at: Timestamp::UNIX_EPOCH,
            created_by: KeyId::from_ulid(Ulid::from_parts(1, 8)),
        }
    }

    fn sites(domain: Domain, machine: Option<Machine>, network: Option<Network>) -> Vec<Site> {
        let (machine, network) = (machine.map(Arc::new), network.map(Arc::new));
        let domains = [Arc::new(domain)];
        let of = published(domains.iter(), |_| machine.clone(), |_| network.clone());
        of.into_iter().map(|one| one.site).collect()
    }

    #[test]
    fn a_domain_leads_to_the_port_of_its_machine_in_its_network() {
        let (machine, network) = (samples::machine(20, "web", Power::On), samples::network(Egress::Deny));
        let sites = sites(domain(&machine, 8080), Some(machine), Some(network));
        let [site] = &sites[..] else { panic!("{sites:?}") };
        assert_eq!(site.addresses, ["192.168.10.20".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!((site.network.get(), site.port, site.auth.is_none()), (1, 8080, true));
        assert_eq!(site.limits, SiteLimits::default());
    }

    #[test]
    fn a_machine_that_stopped_keeps_its_domain_and_one_that_goes_loses_it() {
        let network = samples::network(Egress::Deny);
        for (power, there) in [(Power::On, 1), (Power::Off, 1), (Power::Gone, 0)] {
            let machine = samples::machine(20, "web", power);
            assert_eq!(sites(domain(&machine, 8080), Some(machine), Some(network.clone())).len(), there, "{power:?}");
        }
        let machine = samples::machine(20, "web", Power::On);
        assert_eq!(sites(domain(&machine, 8080), None, Some(network)), []);
    }

    #[test]
    fn what_does_not_belong_together_is_not_published() {
        let machine = samples::machine(20, "web", Power::On);
        let network = samples::network(Egress::Deny);
        let base = domain(&machine, 8080);
        let other = AccountId::from_ulid(Ulid::from_parts(7, 7));
        let published = |domain: &Domain, machine: &Machine, network: &Network| {
            !sites(domain.clone(), Some(machine.clone()), Some(network.clone())).is_empty()
        };
        assert!(published(&base, &machine, &network));
        assert!(!published(&Domain { account: other, ..base.clone() }, &machine, &network), "another account's domain");
        assert!(
            !published(&base, &Machine { account: other, ..machine.clone() }, &network),
            "another account's machine"
        );
        assert!(
            !published(&base, &machine, &Network { account: other, ..network.clone() }),
            "another account's network"
        );
        let elsewhere = NetworkId::from_ulid(Ulid::from_parts(5, 5));
        assert!(!published(&base, &Machine { network: elsewhere, ..machine.clone() }, &network), "another network");
        assert!(!published(&base, &machine, &Network { deleting: true, ..network.clone() }), "a network that goes");
        assert!(!published(&domain(&machine, 9999), &machine, &network), "a port that nobody declared");
    }

    #[test]
    fn a_secret_that_cannot_be_read_opens_nothing() {
        let machine = samples::machine(20, "web", Power::On);
        let network = samples::network(Egress::Deny);
        let with = |auth: DomainAuth| {
            let domain = Domain { auth: Some(auth), ..domain(&machine, 8080) };
            sites(domain, Some(machine.clone()), Some(network.clone()))
        };
        assert_eq!(with(DomainAuth::Bearer { hash: "what".to_owned() }), []);
        let auth = |auth| with(auth)[0].auth.clone();
        let token = warren_ingress::SecretHash::of(b"0123456789abcdef");
        assert_eq!(auth(DomainAuth::bearer("0123456789abcdef").unwrap()), Some(Auth::Bearer { token }));
        let Some(Auth::Basic { user, password }) = auth(DomainAuth::basic("ann", "correct horse").unwrap()) else {
            panic!("it asks for a password")
        };
        assert!(user == "ann" && password.matches(b"correct horse"));
    }

    /// One site, with a certificate.
    fn content(port: u16, certificate: &Arc<Certificate>, https_port: u16) -> Content {
        let machine = samples::machine(20, "web", Power::On);
        let ports = vec![DeclaredPort { port, ..machine.ports[0].clone() }];
        let machine = Arc::new(Machine { ports, ..machine });
        let network = Arc::new(samples::network(Egress::Deny));
        let domains = [Arc::new(domain(&machine, port))];
        let published = published(domains.iter(), |_| Some(machine.clone()), |_| Some(network.clone()));
        assert_eq!(published.len(), 1);
        Content { published, certificates: vec![certificate.clone()], https_port: Some(https_port) }
    }

    fn certificate() -> Arc<Certificate> {
        Arc::new(Certificate { chain_pem: "chain".to_owned(), key_pem: "key".to_owned() })
    }

    #[test]
    fn the_same_content_has_the_same_generation() {
        let generation = |port, https_port| generation(&content(port, &certificate(), https_port));
        assert_eq!(generation(8080, 443), generation(8080, 443));
        assert_ne!(generation(8080, 443), generation(8080, 8443));
        assert_ne!(generation(8080, 443), generation(8081, 443));
        let of = |challenges: &[(&str, &str)]| {
            let owned = challenges.iter().map(|(token, answer)| ((*token).to_owned(), (*answer).to_owned()));
            generation_of_challenges(&owned.collect())
        };
        assert_eq!(of(&[("a", "b")]), of(&[("a", "b")]));
        assert_ne!(of(&[("a", "b")]), of(&[("a", "c")]));
        assert_ne!(of(&[("a", "b")]), of(&[]));
    }

    #[test]
    fn what_did_not_change_is_not_written_again_and_what_did_is() {
        let (one, other) = (certificate(), certificate());
        let mut last = Last::default();
        assert_eq!(last.follow(content(8080, &one, 443), |_| 1).1, 1);
        assert_eq!(last.follow(content(8080, &one, 443), |_| panic!("nothing has changed")).1, 1);
        for (generation, now) in [
            (2, content(8081, &one, 443)),
            (3, content(8081, &one, 8443)),
            (4, content(8081, &other, 8443)),
            (5, Content { certificates: Vec::new(), ..content(8081, &other, 8443) }),
            (6, Content::default()),
        ] {
            assert_eq!(last.follow(now, |_| generation).1, generation);
        }
    }
}
