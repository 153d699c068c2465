//! `vpc.wireguard` of the client `freestyle@0.1.63`.

mod common;

use common::{Answered, Lab, lab, request};
use serde_json::{Value, json};
use warren_model::keypair::PrivateKey;

const PREFIX: &str = "/compat/freestyle";

async fn send(lab: &Lab, key: &str, method: &str, path: &str, body: Option<Value>) -> Answered {
    let body = body.map(|body| body.to_string());
    let mut request = request(method, &format!("{PREFIX}{path}"), key, body);
    // The client sends no media type where it sends no body, and a proxy may lose it.
    request.headers_mut().remove("content-type");
    lab.call(request).await
}

async fn vpc(lab: &Lab) -> String {
    let body = json!({ "name": "agent-network", "cidr": "192.168.10.0/24" });
    send(lab, &lab.root, "POST", "/v1/vpcs", Some(body)).await.expect(200).at("/vpcId")
}

#[tokio::test]
async fn a_connection_has_every_field_that_the_client_knows() {
    let lab = lab().await;
    let vpc = vpc(&lab).await;
    let path = format!("/v1/vpcs/{vpc}/wireguard/ephemeral");
    let made = send(&lab, &lab.root, "POST", &path, Some(json!({}))).await.expect(200);
    let session = lab.get(&lab.root, &format!("/v1/sessions/{}", made.at("/sessionId"))).await.expect(200);

    let (config, private) = (made.at("/clientConfig"), made.at("/clientPrivateKey"));
    assert!(config.contains(&format!("PrivateKey = {private}\n")), "{config}");
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(&private).unwrap();
    let public = PrivateKey::from_random(&bytes.try_into().unwrap()).public_key().to_string();
    let cidr6 = lab.get(&lab.root, &format!("/v1/networks/{vpc}")).await.at("/cidr6").replace("/80", "/64");
    assert_eq!(
        made.body,
        json!({
            "sessionId": session.at("/id"),
            "clientConfig": config,
            "vpcId": vpc,
            "endpointHost": "vpn.example",
            "endpointPort": 51820,
            "listenPort": 51820,
            "interfaceName": session.at("/name").replace("session-", "wg-"),
            "serverPublicKey": common::FakeTunnels::public_key().to_string(),
            "clientPublicKey": public,
            "clientPrivateKey": private,
            "serverTunnelIp": "192.168.10.1",
            "clientTunnelIp": "192.168.10.2",
            "vpcIp": "192.168.10.2",
            "clientAllowedIps": ["192.168.10.0/24", cidr6],
            "vpcCidr": "192.168.10.0/24",
        })
    );
    assert!(made.at("/interfaceName").len() <= 15);

    let close = Some(json!({ "sessionId": session.at("/id") }));
    let closed = send(&lab, &lab.root, "DELETE", &path, close.clone()).await.expect(200);
    assert_eq!(closed.body, json!({}));
    assert!(lab.tunnels.was_cut(&session.at("/id")));
    send(&lab, &lab.root, "DELETE", &path, close).await.said("SESSION_NOT_FOUND");
    // The client may also send no body at all.
    send(&lab, &lab.root, "POST", &path, None).await.expect(200);
}

#[tokio::test]
async fn what_is_refused_is_said_in_codes_that_the_client_knows() {
    let lab = lab().await;
    let (vpc, other) = (vpc(&lab).await, lab.account("other").await);
    let path = format!("/v1/vpcs/{vpc}/wireguard/ephemeral");
    let id = send(&lab, &lab.root, "POST", &path, None).await.expect(200).at("/sessionId");
    let second = send(&lab, &lab.root, "POST", "/v1/vpcs", Some(json!({}))).await.expect(200).at("/vpcId");
    let before = lab.stored().await;

    let body = Some(json!({ "sessionId": id }));
    send(&lab, &lab.root, "POST", "/v1/vpcs/none/wireguard/ephemeral", None).await.said("NOT_FOUND");
    send(&lab, &other, "POST", &path, None).await.said("NOT_FOUND");
    send(&lab, &other, "DELETE", &path, body.clone()).await.said("NOT_FOUND");
    send(&lab, "", "POST", &path, None).await.said("UNAUTHORIZED");
    // Of another VPC, and of another account in a VPC of its own.
    let elsewhere = format!("/v1/vpcs/{second}/wireguard/ephemeral");
    send(&lab, &lab.root, "DELETE", &elsewhere, body.clone()).await.said("SESSION_NOT_FOUND");
    let own = lab.get(&other, "/v1/networks/default").await.at("/id");
    send(&lab, &other, "DELETE", &format!("/v1/vpcs/{own}/wireguard/ephemeral"), body).await.said("SESSION_NOT_FOUND");
    for wrong in [None, Some(json!({})), Some(json!({ "sessionId": 1 })), Some(json!({ "sessionId": id, "x": 1 }))] {
        send(&lab, &lab.root, "DELETE", &path, wrong).await.said("INVALID_PARAMETERS");
    }
    send(&lab, &lab.root, "POST", &path, Some(json!({ "ttl": 1 }))).await.said("INVALID_PARAMETERS");
    send(&lab, &lab.root, "POST", &format!("/v1/vpcs/{vpc}/wireguard/peers"), None).await.said("BAD_REQUEST");
    *lab.tunnels.gateway.lock().unwrap() = Err("0.0.0.0:51820 is in use".into());
    send(&lab, &lab.root, "POST", &path, None).await.said("SERVICE_UNAVAILABLE");
    assert_eq!(lab.stored().await, before);
}
