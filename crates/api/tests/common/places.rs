//! Two networks with machines in them, and a policy that is about them.

use serde_json::{Value, json};

use super::{Answered, Lab, lab};

pub const POLICY: &str = r#"networks:
  dev: {intra: deny}
tagOwners:
  agent: [platform]
  db: [platform]
forbid:
  - {id: no-prod, from: net:dev, to: net:prod}
allow:
  - {id: agent-db, from: dev/tag:agent, to: dev/tag:db, ports: [tcp/5432]}
  - {id: gh, from: dev/tag:agent, to: {name: "*.github.com"}, ports: [tcp/443]}
tests:
  - {from: dev/tag:agent, to: dev/tag:db, port: tcp/5432, expect: allow, by: agent-db}
  - {from: net:dev, to: net:prod, port: tcp/5432, expect: deny, by: no-prod}
"#;

/// Networks dev and prod, with an agent and a database in dev and a database in prod.
pub async fn places() -> Lab {
    let lab = lab().await;
    lab.post(&lab.root, "/v1/keys", json!({ "name": "platform" })).await.expect(201);
    for (name, cidr) in [("dev", "192.168.10.0/24"), ("prod", "192.168.20.0/24")] {
        lab.post(&lab.root, "/v1/networks", json!({ "name": name, "cidr": cidr })).await.expect(201);
    }
    let sql =
        json!([{ "name": "sql", "port": 5432, "protocol": "tcp" }, { "name": "ui", "port": 80, "protocol": "http" }]);
    for (name, network, tag) in [("agent", "dev", "agent"), ("db", "dev", "db"), ("store", "prod", "db")] {
        let body = json!({ "name": name, "network": network, "tags": [tag], "ports": sql });
        lab.post(&lab.root, "/v1/machines", body).await.expect(201);
    }
    lab
}

pub async fn apply(lab: &Lab, text: &str) -> Answered {
    lab.put(&lab.root, "/v1/policy", json!({ "text": text })).await
}

pub fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}
