//! Servers that publish, and what is asked of them.

use serde_json::json;

use super::dns::Dns;
use super::{Answered, Lab, lab, lab_with};

/// A server that publishes, with a machine `web` of the root key's account that declares port 8080.
pub async fn public() -> Lab {
    let lab = lab().await;
    lab.publisher.listen();
    machine(&lab, &lab.root, "web").await;
    lab
}

/// The same, with a DNS server to look for records at.
pub async fn provable() -> (Lab, Dns) {
    let dns = Dns::start().await;
    let lab = lab_with(|config| config.resolvers = vec![dns.address]).await;
    lab.publisher.listen();
    machine(&lab, &lab.root, "web").await;
    (lab, dns)
}

pub async fn machine(lab: &Lab, key: &str, name: &str) -> String {
    let ports = json!([{ "name": "web", "port": 8080, "protocol": "http" }, { "name": "db", "port": 5432, "protocol": "tcp" },
        { "name": "tls", "port": 8443, "protocol": "https" }, { "name": "dns", "port": 53, "protocol": "udp" }]);
    lab.post(key, "/v1/machines", json!({ "name": name, "ports": ports })).await.expect(201).at("/id")
}

pub async fn map(lab: &Lab, key: &str, host: &str) -> Answered {
    lab.post(key, "/v1/domains", json!({ "host": host, "machine": "web", "port": 8080 })).await
}

pub async fn claim(lab: &Lab, key: &str, host: &str) -> Answered {
    lab.post(key, "/v1/domain-claims", json!({ "host": host })).await
}

/// Claims a name and proves it.
pub async fn prove(lab: &Lab, dns: &Dns, key: &str, host: &str) {
    let claimed = claim(lab, key, host).await.expect(201);
    dns.says(&claimed.at("/record/name"), &claimed.at("/record/value"));
    assert_eq!(claim(lab, key, host).await.expect(200).at("/state"), "verified");
}
