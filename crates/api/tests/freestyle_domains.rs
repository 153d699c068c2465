//! Domains as the client of Freestyle's maps and verifies them.

mod common;

use common::dns::Dns;
use common::{Answered, Lab, lab_with, request};
use serde_json::{Value, json};

async fn public() -> (Lab, Dns) {
    let dns = Dns::start().await;
    let lab = lab_with(|config| config.resolvers = vec![dns.address]).await;
    lab.publisher.listen();
    (lab, dns)
}

/// Sent as the client sends it: no media type where there is no body.
async fn call(lab: &Lab, method: &str, path: &str, body: Option<Value>) -> Answered {
    call_as(lab, &lab.root, method, path, body).await
}

async fn call_as(lab: &Lab, key: &str, method: &str, path: &str, body: Option<Value>) -> Answered {
    let path = format!("/compat/freestyle{path}");
    lab.call(request(method, &path, key, body.map(|body| body.to_string()))).await
}

async fn vm(lab: &Lab, body: Value) -> Answered {
    call(lab, "POST", "/v1/vms", Some(body)).await
}

#[tokio::test]
async fn a_domain_is_mapped_listed_and_taken_back() {
    let (lab, _dns) = public().await;
    let id = vm(&lab, json!({})).await.expect(200).at("/id");
    let body = || Some(json!({ "domain": "app.preview.example", "vmId": id, "vmPort": 3000 }));
    let made = call(&lab, "POST", "/domains/v1/mappings/app.preview.example", body()).await.expect(200);
    assert_eq!((made.at("/domain"), made.at("/vmId")), ("app.preview.example".into(), id.clone()));
    assert_eq!((made.at("/vmPort"), made.at("/ownershipId")), ("3000".into(), "preview.example".into()));
    made.at("/createdAt").parse::<jiff::Timestamp>().unwrap();
    assert!(lab.publisher.serves("app.preview.example"));
    // By mapping it the client declared the port, which it cannot do otherwise.
    assert_eq!(lab.get(&lab.root, &format!("/v1/machines/{id}")).await.at("/ports/0/port"), "3000");
    let started = call(&lab, "POST", &format!("/v1/vms/{id}/start"), Some(json!({}))).await.expect(200);
    assert_eq!(started.body["domains"], json!(["app.preview.example"]));

    call(&lab, "POST", "/domains/v1/mappings/app.preview.example", body()).await.said("DOMAIN_ALREADY_EXISTS");
    let listed = call(&lab, "GET", "/domains/v1/mappings?limit=10&offset=0", None).await.expect(200);
    assert_eq!(listed.body, json!([made.body]));
    for (query, count) in [
        ("domain=app.preview.example", 1),
        ("domain=b.example", 0),
        ("domainOwnership=preview.example", 1),
        ("domainOwnership=b.example", 0),
        ("offset=1", 0),
    ] {
        let some = call(&lab, "GET", &format!("/domains/v1/mappings?{query}"), None).await.expect(200);
        assert_eq!(some.body.as_array().unwrap().len(), count, "{query}");
    }
    let other = lab.account("other").await;
    assert_eq!(call_as(&lab, &other, "GET", "/domains/v1/mappings", None).await.expect(200).body, json!([]));
    call_as(&lab, &other, "DELETE", "/domains/v1/mappings/app.preview.example", None).await.said("NOT_FOUND");

    let unmapped = call(&lab, "DELETE", "/domains/v1/mappings/app.preview.example", None).await.expect(200);
    assert_eq!(unmapped.body, json!({}));
    assert!(!lab.publisher.serves("app.preview.example"));
    call(&lab, "DELETE", "/domains/v1/mappings/app.preview.example", None).await.said("NOT_FOUND");
}

#[tokio::test]
async fn ports_are_declared_by_being_mapped_under_a_free_name_and_only_so_many() {
    let (lab, _dns) = public().await;
    let ports: Vec<_> =
        (1..256).map(|n| json!({ "name": format!("tcp-{}", n + 2999), "port": n, "protocol": "tcp" })).collect();
    let made = lab.post(&lab.root, "/v1/machines", json!({ "name": "m", "ports": ports })).await.expect(201);
    let map = async |host: &str, port: u16| {
        let body = Some(json!({ "vmId": made.at("/id"), "vmPort": port }));
        call(&lab, "POST", &format!("/domains/v1/mappings/{host}.preview.example"), body).await
    };
    map("a", 3000).await.expect(200);
    let machine = lab.get(&lab.root, "/v1/machines/m").await.expect(200);
    assert_eq!(machine.body["ports"][255], json!({ "name": "tcp-3000-1", "port": 3000, "protocol": "tcp" }));
    map("b", 3000).await.expect(200);
    map("c", 3001).await.said("INVALID_DOMAIN");
}

#[tokio::test]
async fn a_domain_is_verified_as_the_client_tells_to() {
    let (lab, dns) = public().await;
    let id = vm(&lab, json!({})).await.expect(200).at("/id");
    let body = || Some(json!({ "domain": "shop.example.com", "vmId": id, "vmPort": 443 }));
    call(&lab, "POST", "/domains/v1/mappings/shop.example.com", body()).await.said("DOMAIN_OWNERSHIP_NOT_VERIFIED");

    let example = || Some(json!({ "domain": "example.com" }));
    let begun = call(&lab, "POST", "/domains/v1/verifications", example()).await.expect(200);
    assert_eq!(begun.at("/domain"), "example.com");
    assert!(begun.at("/accountId").starts_with("acc_"));
    let code = begun.at("/verificationCode");
    assert_eq!(call(&lab, "POST", "/domains/v1/verifications", example()).await.expect(200).body, begun.body);
    let listed = call(&lab, "GET", "/domains/v1/verifications", None).await.expect(200);
    assert_eq!(listed.at("/0/verificationCode"), code);
    let failed = call(&lab, "PUT", "/domains/v1/verifications", example()).await.said("VERIFICATION_FAILED");
    for name in ["_warren.example.com", "_freestyle_custom_hostname.example.com"] {
        assert!(failed.at("/message").contains(&format!("{name} does not exist (NXDOMAIN)")), "{}", failed.text);
    }
    assert_eq!(call(&lab, "GET", "/domains/v1/domains", None).await.expect(200).body, json!([]));

    dns.says("_freestyle_custom_hostname.example.com", &code);
    let verified = call(&lab, "PUT", "/domains/v1/verifications", Some(json!({ "id": begun.at("/id") }))).await;
    assert_eq!(verified.expect(200).body, json!({ "domain": "example.com" }));
    assert_eq!(call(&lab, "GET", "/domains/v1/verifications", None).await.expect(200).body, json!([]));
    let owned = call(&lab, "GET", "/domains/v1/domains?limit=5", None).await.expect(200);
    assert_eq!((owned.at("/0/domain"), owned.at("/0/verifiedDns")), ("example.com".into(), "true".into()));

    let made = call(&lab, "POST", "/domains/v1/mappings/shop.example.com", body()).await.expect(200);
    assert_eq!(made.at("/ownershipId"), owned.at("/0/id"));

    let cancel = |code: &str| Some(json!({ "domain": "example.com", "verificationCode": code }));
    call(&lab, "DELETE", "/domains/v1/verifications", cancel("other")).await.said("VERIFICATION_NOT_FOUND");
    let cancelled = call(&lab, "DELETE", "/domains/v1/verifications", cancel(&code)).await.expect(200);
    assert_eq!(cancelled.body, json!({ "domain": "example.com", "verificationCode": code }));
    call(&lab, "DELETE", "/domains/v1/verifications", cancel(&code)).await.said("VERIFICATION_NOT_FOUND");
    call(&lab, "PUT", "/domains/v1/verifications", example()).await.said("VERIFICATION_NOT_FOUND");
}

#[tokio::test]
async fn the_record_of_the_other_client_proves_nothing_for_a_claim_that_it_did_not_make() {
    let (lab, dns) = public().await;
    let claimed = lab.post(&lab.root, "/v1/domain-claims", json!({ "host": "example.com" })).await.expect(201);
    dns.says("_freestyle_custom_hostname.example.com", &claimed.at("/record/value"));
    let looked = lab.post(&lab.root, "/v1/domain-claims", json!({ "host": "example.com" })).await.expect(200);
    assert_eq!(looked.at("/state"), "pending");
    // It makes the same claim, and from then on both records do.
    let example = || Some(json!({ "domain": "example.com" }));
    let begun = call(&lab, "POST", "/domains/v1/verifications", example()).await.expect(200);
    assert_eq!(begun.at("/verificationCode"), claimed.at("/record/value"));
    call(&lab, "PUT", "/domains/v1/verifications", example()).await.expect(200);
}

#[tokio::test]
async fn a_machine_is_made_with_its_domains_or_not_at_all() {
    let (lab, _dns) = public().await;
    let domains = |list: Value| json!({ "domains": list });
    let app = json!({ "domain": "app.preview.example", "vmPort": 3000 });
    let made = vm(&lab, domains(json!([app, { "domain": "tls.preview.example" }]))).await.expect(200);
    assert_eq!(made.body["domains"], json!(["app.preview.example", "tls.preview.example"]));
    let mapped = lab.get(&lab.root, "/v1/domains/tls.preview.example").await.expect(200);
    assert_eq!((mapped.at("/machine/id"), mapped.at("/port")), (made.at("/id"), "443".into()));
    let other = lab.account("other").await;
    let taken = call_as(&lab, &other, "POST", "/v1/vms", Some(domains(json!([app])))).await;
    taken.said("INVALID_DOMAINS");
    for list in [
        json!([app]),
        json!([{ "domain": "b.preview.example" }, { "domain": "b.preview.example", "vmPort": 0 }]),
        json!([{ "domain": "c.preview.example" }, { "domain": "not_a_name.example" }]),
        json!([{ "domain": "shop.example.com" }]),
    ] {
        vm(&lab, domains(list.clone())).await.said("INVALID_DOMAINS");
        let machines = lab.get(&lab.root, "/v1/machines").await.expect(200);
        assert_eq!(machines.body["items"].as_array().unwrap().len(), 1, "{list}");
    }
    assert_eq!(lab.get(&lab.root, "/v1/domains").await.expect(200).body["items"].as_array().unwrap().len(), 2);

    let gone = call(&lab, "DELETE", &format!("/v1/vms/{}", made.at("/id")), None).await;
    gone.expect(200);
    assert_eq!(lab.keys_below("domain").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_create_that_is_sent_again_maps_nothing_anew() {
    let (lab, _dns) = public().await;
    let vpc = json!({ "name": "n", "cidr": "10.9.0.0/24" });
    let vpc = call(&lab, "POST", "/v1/vpcs", Some(vpc)).await.expect(200).at("/vpcId");
    let nics = json!([{ "default": true, "vpc": vpc, "mode": "routed", "ipv4": "10.9.0.20" }]);
    let body = json!({ "nics": nics, "domains": [{ "domain": "app.preview.example", "vmPort": 80 }] });
    let first = vm(&lab, body.clone()).await.expect(200);
    assert_eq!(vm(&lab, body).await.expect(200).body, first.body);
    assert_eq!(lab.keys_below("domain/").await.len(), 1);
}

#[tokio::test]
async fn what_a_domain_cannot_be_is_said_in_the_clients_words() {
    let (lab, _dns) = public().await;
    let id = vm(&lab, json!({})).await.expect(200).at("/id");
    let target = |port: Value| Some(json!({ "vmId": id, "vmPort": port }));
    let map = async |host: &str, body| call(&lab, "POST", &format!("/domains/v1/mappings/{host}"), body).await;
    map("co.uk", target(json!(80))).await.said("INVALID_DOMAIN");
    map("a.preview.example", target(json!(0))).await.said("INVALID_DOMAIN");
    map("a.preview.example", Some(json!({ "deploymentId": "x" }))).await.said("INVALID_DOMAIN");
    map("a.preview.example", Some(json!({ "domain": "b.preview.example", "vmId": id }))).await.said("INVALID_DOMAIN");
    map("a.preview.example", Some(json!({ "vmId": "none", "vmPort": 80 }))).await.said("VM_NOT_FOUND");
    for domain in ["co.uk", "a.preview.example"] {
        let begun = call(&lab, "POST", "/domains/v1/verifications", Some(json!({ "domain": domain }))).await;
        begun.said("FAILED_TO_CREATE_VERIFICATION_CODE");
    }
    call(&lab, "POST", "/domains/v1/certs/a.example/wildcard", None).await.said("FAILED_TO_PROVISION_CERTIFICATE");
}
