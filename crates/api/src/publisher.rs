//! What the API must know of the public edge.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use warren_model::domain::DomainStatus;
use warren_model::policy::HostName;

/// Where this server publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicInfo {
    /// The port of HTTPS, where there is a listener.
    pub https: Option<u16>,
    /// The port of plain HTTP, where there is a listener.
    pub http: Option<u16>,
    /// Every name below it is free to take.
    pub suffix: Option<HostName>,
    /// Why a listener is not there that should be, for a person. Nothing is mapped meanwhile.
    pub hindrance: Option<String>,
}

impl PublicInfo {
    /// Of a server without public listeners.
    pub fn nothing() -> Self {
        Self { https: None, http: None, suffix: None, hindrance: None }
    }

    pub fn can_publish(&self) -> bool {
        self.hindrance.is_none() && (self.https.is_some() || self.http.is_some())
    }

    /// Where a host name is served: over HTTPS if that is there.
    pub fn url(&self, host: &HostName) -> String {
        match (self.https, self.http) {
            (Some(443) | None, None) | (Some(443), _) => format!("https://{host}"),
            (Some(port), _) => format!("https://{host}:{port}"),
            (None, Some(80)) => format!("http://{host}"),
            (None, Some(port)) => format!("http://{host}:{port}"),
        }
    }
}

/// The public edge as the API sees it; the wiring implements it.
#[async_trait]
pub trait Publisher: Send + Sync + 'static {
    fn info(&self) -> PublicInfo;

    /// Waits until the edge serves the mapping that the store holds now; its certificate may still be on its way. The
    /// error says why it does not yet.
    async fn published(&self, host: &HostName, within: Duration) -> Result<(), String>;

    /// Waits until nothing is served under the name, and connections to it have ended. The error says why not yet.
    async fn withdrawn(&self, host: &HostName, within: Duration) -> Result<(), String>;

    /// What is known of these names; one of which nothing is known may be left out.
    async fn status(&self, hosts: &[HostName]) -> BTreeMap<HostName, DomainStatus>;

    /// The root certificate of the server's own authority as PEM, where certificates come from that.
    fn authority_pem(&self) -> Option<String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_port_where_it_is_not_the_usual_one() {
        let url = |https, http| PublicInfo { https, http, ..PublicInfo::nothing() }.url(&"a.example".parse().unwrap());
        assert_eq!(url(Some(443), Some(80)), "https://a.example");
        assert_eq!(url(Some(8443), Some(80)), "https://a.example:8443");
        assert_eq!(url(None, Some(80)), "http://a.example");
        assert_eq!(url(None, Some(8080)), "http://a.example:8080");
    }

    #[test]
    fn nothing_is_mapped_while_a_listener_is_missing() {
        let some = PublicInfo { https: Some(443), ..PublicInfo::nothing() };
        assert!(some.can_publish() && !PublicInfo::nothing().can_publish());
        assert!(!PublicInfo { hindrance: Some("port 80 is taken".to_owned()), ..some }.can_publish());
    }
}
