//! The dialect of npm `freestyle@0.1.63`: what each call answers, and that no refusal is one that the client cannot
//! read. `tests/freestyle.rs` of the repository runs the real client.

mod common;

use std::time::Duration;

use axum::body::Body;
use common::{Answered, Lab, lab, lab_with, request, with_header};
use http::Request;
use serde_json::{Value, json};

const BASE: &str = "/compat/freestyle";

fn at(path: &str) -> String {
    format!("{BASE}{path}")
}

async fn post(lab: &Lab, path: &str, body: Value) -> Answered {
    lab.post(&lab.root, &at(path), body).await
}

/// As the client sends a call without a body: no content type, and a length of zero.
async fn bare(lab: &Lab, method: &str, path: &str) -> Answered {
    lab.call(with_header(request(method, &at(path), &lab.root, None), "content-length", "0")).await
}

async fn get(lab: &Lab, path: &str) -> Answered {
    lab.get(&lab.root, &at(path)).await
}

async fn vm(lab: &Lab) -> String {
    post(lab, "/v1/vms", json!({})).await.expect(200).at("/id")
}

fn nic(vpc: &str, ipv4: impl Into<Value>) -> Value {
    json!({ "nics": [{ "default": true, "vpc": vpc, "mode": "routed", "ipv4": ipv4.into() }] })
}

#[tokio::test]
async fn two_vpcs_may_have_one_name_and_one_range() {
    let lab = lab().await;
    let body = json!({ "name": "agent-network", "cidr": "192.168.10.0/24" });
    let one = post(&lab, "/v1/vpcs", body.clone()).await.expect(200);
    let two = post(&lab, "/v1/vpcs", body).await.expect(200);
    assert_eq!(one.body.as_object().unwrap().len(), 1);
    assert_ne!(one.at("/vpcId"), two.at("/vpcId"));
    let named = lab.get(&lab.root, "/v1/networks/agent-network").await.expect(200);
    assert_eq!(named.at("/id"), one.at("/vpcId"));
    post(&lab, "/v1/vpcs", json!({ "cidr": "10.0.0.0/16" })).await.expect(200);
    post(&lab, "/v1/vpcs", json!({ "cidr": "8.8.8.0/24" })).await.said("INVALID_PARAMETERS");
}

#[tokio::test]
async fn a_machine_is_made_listed_stopped_started_and_deleted() {
    let lab = lab().await;
    let vpc = post(&lab, "/v1/vpcs", json!({ "cidr": "192.168.10.0/24" })).await.expect(200).at("/vpcId");
    let made = post(&lab, "/v1/vms", nic(&vpc, "192.168.10.10")).await.expect(200);
    let id = made.at("/id");
    assert_eq!(made.body, json!({ "id": id, "domains": [], "snapshotId": null }));
    let native = lab.get(&lab.root, &format!("/v1/machines/{id}")).await.expect(200);
    assert_eq!((native.at("/private_ip"), native.at("/network/id")), ("192.168.10.10".into(), vpc.clone()));
    post(&lab, "/v1/vms", nic(&vpc, true)).await.expect(200);

    let info = get(&lab, &format!("/v1/vms/{id}")).await.expect(200);
    assert_eq!((info.at("/state"), info.at("/recreate")), ("running".into(), "false".into()));
    let stopped = bare(&lab, "POST", &format!("/v1/vms/{id}/stop")).await.expect(200);
    assert_eq!(stopped.body, json!({ "vmId": id, "vmInstanceId": info.at("/vmInstanceId") }));
    let listed = get(&lab, "/v1/vms").await.expect(200);
    assert_eq!(
        (listed.at("/totalCount"), listed.at("/runningCount"), listed.at("/stoppedCount")),
        ("2".into(), "1".into(), "1".into())
    );
    assert!(listed.at("/vms/0/sizing/memSizeMib").parse::<u64>().unwrap() > 0);
    post(&lab, &format!("/v1/vms/{id}/exec-await"), json!({ "command": "true" })).await.said("VM_NOT_RUNNING");
    let exited = bare(&lab, "POST", &format!("/v1/vms/{id}/await")).await.expect(200);
    assert_eq!(exited.body, json!({ "id": id, "exitStatus": "stopped" }));
    let started = post(&lab, &format!("/v1/vms/{id}/start"), json!({ "idleTimeoutSeconds": 60 })).await.expect(200);
    assert_eq!(started.body, json!({ "id": id, "domains": [], "console_url": null }));
    bare(&lab, "POST", &format!("/v1/vms/{id}/start")).await.expect(200);
    assert_ne!(get(&lab, &format!("/v1/vms/{id}")).await.at("/vmInstanceId"), info.at("/vmInstanceId"));
    assert_eq!(bare(&lab, "POST", &format!("/v1/vms/{id}/kill")).await.expect(200).body, json!({ "id": id }));
    assert_eq!(bare(&lab, "POST", &format!("/v1/vms/{id}/optimize")).await.expect(200).body, json!({}));
    let deleted = bare(&lab, "DELETE", &format!("/v1/vms/{id}")).await.expect(200);
    assert_eq!(deleted.body, json!({ "id": id, "recreate": false }));
    bare(&lab, "DELETE", &format!("/v1/vms/{id}")).await.said("VM_NOT_FOUND");
    get(&lab, &format!("/v1/vms/{id}")).await.said("VM_NOT_FOUND");
}

#[tokio::test]
async fn a_create_that_is_repeated_answers_the_machine_that_it_made() {
    let lab = lab().await;
    let vpc = post(&lab, "/v1/vpcs", json!({ "cidr": "192.168.10.0/24" })).await.expect(200).at("/vpcId");
    let body = nic(&vpc, "192.168.10.10");
    let one = post(&lab, "/v1/vms", body.clone()).await.expect(200);
    assert_eq!(post(&lab, "/v1/vms", body.clone()).await.expect(200).body, one.body);
    // Other words, and another key, ask for another machine.
    let mut other = body.clone();
    other["name"] = "other".into();
    post(&lab, "/v1/vms", other).await.said("CONFLICT");
    let key = lab.post(&lab.root, "/v1/keys", json!({})).await.expect(201).at("/key");
    lab.post(&key, &at("/v1/vms"), body.clone()).await.said("CONFLICT");
    bare(&lab, "DELETE", &format!("/v1/vms/{}", one.at("/id"))).await.expect(200);
    assert_ne!(post(&lab, "/v1/vms", body).await.expect(200).at("/id"), one.at("/id"));
    // One that does not run any more is no answer.
    let body = nic(&vpc, "192.168.10.11");
    let stopped = post(&lab, "/v1/vms", body.clone()).await.expect(200).at("/id");
    bare(&lab, "POST", &format!("/v1/vms/{stopped}/stop")).await.expect(200);
    post(&lab, "/v1/vms", body).await.said("VM_EXIT_DURING_START");
    // Without an address there is nothing to tell by.
    assert_ne!(vm(&lab).await, vm(&lab).await);
}

#[tokio::test]
async fn two_creates_at_once_that_are_one_make_one() {
    let lab = lab().await;
    let vpc = post(&lab, "/v1/vpcs", json!({ "cidr": "192.168.10.0/24" })).await.expect(200).at("/vpcId");
    let body = nic(&vpc, "192.168.10.10");
    let (one, two) = tokio::join!(post(&lab, "/v1/vms", body.clone()), post(&lab, "/v1/vms", body));
    assert_eq!(one.expect(200).body, two.expect(200).body);
    assert_eq!(get(&lab, "/v1/vms").await.at("/totalCount"), "1");
}

#[tokio::test]
async fn a_create_that_is_repeated_is_within_the_quota() {
    let lab = lab_with(|config| config.machines_per_account = 1).await;
    let vpc = post(&lab, "/v1/vpcs", json!({ "cidr": "192.168.10.0/24" })).await.expect(200).at("/vpcId");
    let body = nic(&vpc, "192.168.10.10");
    let (one, two) = tokio::join!(post(&lab, "/v1/vms", body.clone()), post(&lab, "/v1/vms", body.clone()));
    let one = one.expect(200);
    assert_eq!(one.body, two.expect(200).body);
    assert_eq!(post(&lab, "/v1/vms", body).await.expect(200).body, one.body);
    post(&lab, "/v1/vms", nic(&vpc, "192.168.10.11")).await.said("VM_LIMIT_EXCEEDED");
}

#[tokio::test]
async fn a_create_that_is_repeated_answers_a_machine_with_its_files() {
    let lab = lab().await;
    let vpc = post(&lab, "/v1/vpcs", json!({ "cidr": "192.168.10.0/24" })).await.expect(200).at("/vpcId");
    let mut body = nic(&vpc, "192.168.10.10");
    body["additionalFiles"] = json!({ "/a": { "content": "a" } });
    let one = post(&lab, "/v1/vms", body.clone()).await.expect(200);
    let native = format!("/v1/machines/{}", one.at("/id"));
    let labels = async || lab.get(&lab.root, &native).await.expect(200).body["labels"].clone();
    let mut before = labels().await;
    assert_eq!(before["freestyle/filled"], "true");
    assert_eq!(post(&lab, "/v1/vms", body.clone()).await.expect(200).body, one.body);
    // As one whose server ended while it was being filled.
    before.as_object_mut().unwrap().remove("freestyle/filled");
    lab.patch(&lab.root, &native, json!({ "labels": before })).await.expect(200);
    assert_eq!(post(&lab, "/v1/vms", body).await.expect(200).body, one.body);
    assert_eq!(labels().await["freestyle/filled"], "true");
}

#[tokio::test]
async fn a_machine_gets_its_size_its_name_and_its_files() {
    let lab = lab().await;
    let body = json!({
        "name": "My Agent", "template": { "vcpuCount": 2, "memSizeGb": 1 }, "idleTimeoutSeconds": 300,
        "additionalFiles": { "/run.sh": { "content": "aGk=", "encoding": "base64", "executable": true } },
    });
    let id = post(&lab, "/v1/vms", body).await.expect(200).at("/id");
    let native = lab.get(&lab.root, &format!("/v1/machines/{id}")).await.expect(200);
    assert_eq!(
        (native.at("/name"), native.at("/cpus"), native.at("/memory_mib")),
        ("my-agent".into(), "2.0".into(), "1024".into())
    );
    assert_eq!(get(&lab, &format!("/v1/vms/{id}")).await.at("/name"), "My Agent");
    // Names are not unique there.
    let again = post(&lab, "/v1/vms", json!({ "name": "my-agent" })).await.expect(200).at("/id");
    assert_eq!(get(&lab, &format!("/v1/vms/{again}")).await.at("/name"), "my-agent");
    assert_ne!(lab.get(&lab.root, &format!("/v1/machines/{again}")).await.at("/name"), "my-agent");
}

/// Whatever goes wrong with a create has a code that the client knows, or it would try again for ever.
#[tokio::test]
async fn every_failure_of_a_create_can_be_read() {
    let lab = lab_with(|config| {
        config.machines_per_account = 3;
        config.max_requests = 8;
        config.request_timeout = Duration::from_secs(2);
    })
    .await;
    let create = async |body: Value| post(&lab, "/v1/vms", body).await;
    create(nic("none", true)).await.said("NOT_FOUND");
    create(nic("default", "10.9.9.9")).await.said("CREATE_VM_BAD_REQUEST");
    create(nic("default", "nonsense")).await.said("CREATE_VM_BAD_REQUEST");
    create(json!({ "nonsense": 1 })).await.said("CREATE_VM_BAD_REQUEST");
    create(json!([])).await.said("CREATE_VM_BAD_REQUEST");
    let files: serde_json::Map<_, _> = (0..1001).map(|n| (format!("/{n}"), json!({ "content": "" }))).collect();
    create(json!({ "additionalFiles": files })).await.said("CREATE_VM_BAD_REQUEST");
    create(json!({ "snapshotId": "sc-1" })).await.said("SNAPSHOT_NOT_FOUND");
    create(json!({ "domains": [{ "domain": "a.example" }] })).await.said("INVALID_DOMAINS");
    create(json!({ "domains": [{ "domain": "a.example", "port": 80 }] })).await.said("CREATE_VM_BAD_REQUEST");
    create(json!({ "template": { "memSizeGb": 4096 } })).await.said("CUSTOM_SIZING_NOT_ALLOWED");
    create(json!({ "template": { "vcpuCount": -1 } })).await.said("CREATE_VM_BAD_REQUEST");
    create(json!({ "name": "fail" })).await.said("INTERNAL_ERROR");
    for (key, code) in [("", "UNAUTHORIZED"), ("wk_wrong", "UNAUTHORIZED")] {
        lab.post(key, &at("/v1/vms"), json!({})).await.said(code);
    }
    let identity = bare(&lab, "POST", "/identity/v1/identities").await.expect(200).at("/id");
    let token = bare(&lab, "POST", &format!("/identity/v1/identities/{identity}/tokens")).await.at("/token");
    lab.post(&token, &at("/v1/vms"), json!({})).await.said("FORBIDDEN");

    let large = json!({ "name": "x".repeat(17 * 1024 * 1024) });
    create(large).await.said("CREATE_VM_BAD_REQUEST");
    let body = |body: Body| request("POST", &at("/v1/vms"), &lab.root, None).map(|_| body);
    lab.call(body(Body::from("not json"))).await.said("CREATE_VM_BAD_REQUEST");
    let stalled = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    lab.call(body(stalled)).await.said("CREATE_VM_BAD_REQUEST");
    for _ in 0..3 {
        vm(&lab).await;
    }
    create(json!({})).await.said("VM_LIMIT_EXCEEDED");
    // More than there is room for: a share of the requests of one account.
    let key = lab.account("other").await;
    let stalled = (0..6).map(|_| {
        let body = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        lab.call(request("POST", &at("/v1/vms"), &key, None).map(|_| body))
    });
    let answers = futures::future::join_all(stalled).await;
    assert!(answers.iter().any(|answer| answer.code() == "SERVICE_UNAVAILABLE"));
    for answer in answers {
        let code = answer.code().to_owned();
        answer.said(&code);
    }
}

#[tokio::test]
async fn a_panic_and_a_call_that_is_not_there_can_be_read() {
    let lab = lab().await;
    let id = vm(&lab).await;
    get(&lab, &format!("/v1/vms/{id}/files/%2Fpanic")).await.said("INTERNAL_ERROR");
    let body = json!({ "additionalFiles": { "/panic": { "content": "" } } });
    post(&lab, "/v1/vms", body).await.said("INTERNAL_ERROR");
    for (method, path) in [
        ("GET", "/v1/vms/x/systemd/services"),
        ("GET", "/git/v1/repo"),
        ("PUT", "/v1/vms"),
        ("GET", ""),
        ("GET", "/"),
        ("POST", "/v1/cron/schedules"),
    ] {
        bare(&lab, method, path).await.said("NOT_FOUND");
    }
    get(&lab, "/auth/v1/background-requests/r").await.said("JOB_NOT_FOUND");
    // What only begins alike is not of this dialect.
    lab.get(&lab.root, "/compat/freestyler/v1/vms").await.refused("route_not_found");
}

#[tokio::test]
async fn a_command_is_a_text_for_a_shell() {
    let lab = lab().await;
    let id = vm(&lab).await;
    let path = format!("/v1/vms/{id}/exec-await");
    let exec = async |body: Value| post(&lab, &path, body).await;
    let answer = exec(json!({ "command": "pwd", "terminal": null, "timeoutMs": null })).await.expect(200);
    assert_eq!(answer.body, json!({ "stdout": "", "stderr": "", "statusCode": 7 }));
    // More time than there is becomes all there is.
    exec(json!({ "command": "pwd", "timeoutMs": 100_000_000 })).await.expect(200);
    exec(json!({ "command": "slow" })).await.said("EXEC_TIMED_OUT");
    for body in [json!({}), json!({ "command": "a", "timeoutMs": 0 }), json!({ "command": "a", "terminal": "t" })] {
        exec(body).await.said("INVALID_PARAMETERS");
    }
    let as_user = with_header(
        request("POST", &at(&path), &lab.root, Some(json!({ "command": "env" }).to_string())),
        "x-freestyle-vm-linux-user-id",
        "bob",
    );
    assert_eq!(lab.call(as_user).await.expect(200).at("/stderr"), r#"Some("bob") None true"#);
    post(&lab, "/v1/vms/none/exec-await", json!({ "command": "a" })).await.said("VM_NOT_FOUND");
}

#[tokio::test]
async fn files_are_json() {
    let lab = lab().await;
    let id = vm(&lab).await;
    let path = |file: &str| at(&format!("/v1/vms/{id}/files/{file}"));
    let read = lab.get(&lab.root, &path("%2Froot%2Fa.txt")).await.expect(200);
    assert_eq!(
        (read.at("/encoding"), read.at("/content").len()),
        ("base64".into(), (64 * 64 * 1024_usize).div_ceil(3) * 4)
    );
    let list = lab.get(&lab.root, &path("%2Fdirectory")).await.expect(200);
    assert_eq!(list.body, json!({ "files": [{ "name": "a", "kind": "file" }, { "name": "b", "kind": "directory" }] }));
    let body = json!({ "content": "aGk=", "encoding": "base64" });
    assert_eq!(lab.put(&lab.root, &path("%2Fa"), body).await.expect(200).body, json!({}));
    let large = json!({ "content": "A".repeat(20 * 1024 * 1024), "encoding": "base64" });
    lab.put(&lab.root, &path("%2Fa"), large).await.expect(200);
    lab.get(&lab.root, &path("%2Fmissing")).await.said("FILE_NOT_FOUND");
    lab.get(&lab.root, &path("relative")).await.said("INVALID_FILE_PATH");
    lab.put(&lab.root, &path("%2Fa"), json!({})).await.said("FILES_BAD_REQUEST");
    let body = json!({ "content": "%", "encoding": "base64" });
    lab.put(&lab.root, &path("%2Fa"), body).await.said("INVALID_BASE64_CONTENT");
    // As somebody else, through commands of theirs: in the fakes they end with 7.
    let as_bob = with_header(request("GET", &path("%2Fa"), &lab.root, None), "x-freestyle-vm-linux-user-id", "bob");
    lab.call(as_bob).await.said("FILES_BAD_REQUEST");
}

#[tokio::test]
async fn what_warren_does_not_have_says_so_in_the_clients_words() {
    let lab = lab().await;
    let id = vm(&lab).await;
    for (call, code) in [
        ("suspend", "SUSPEND_FAILED_VM_RESUMED"),
        ("resize", "RESIZE_FAILED"),
        ("fork", "VPC_FORK_UNSUPPORTED"),
        ("snapshot", "SNAPSHOT_VM_BAD_REQUEST"),
    ] {
        bare(&lab, "POST", &format!("/v1/vms/{id}/{call}")).await.said(code);
        bare(&lab, "POST", &format!("/v1/vms/none/{call}")).await.said("VM_NOT_FOUND");
    }
    assert_eq!(get(&lab, "/v1/vms/snapshots?includeDeleted=true").await.expect(200).body, json!({ "snapshots": [] }));
    get(&lab, "/v1/vms/snapshots/sc-1").await.said("SNAPSHOT_NOT_FOUND");
    post(&lab, "/v1/vms/snapshots", json!({ "template": {} })).await.said("CREATE_SNAPSHOT_BAD_REQUEST");
    for path in ["/domains/v1/mappings?limit=10&offset=0", "/domains/v1/domains", "/domains/v1/verifications"] {
        assert_eq!(get(&lab, path).await.expect(200).body, json!([]));
    }
    let mapping = json!({ "domain": "a.example", "vmId": id, "vmPort": 80 });
    post(&lab, "/domains/v1/mappings/a.example", mapping).await.said("SERVICE_UNAVAILABLE");
    bare(&lab, "DELETE", "/domains/v1/mappings/a.example").await.said("NOT_FOUND");
    post(&lab, "/domains/v1/verifications", json!({ "domain": "a" })).await.said("FAILED_TO_CREATE_VERIFICATION_CODE");
    bare(&lab, "POST", "/domains/v1/certs/a.example/wildcard").await.said("FAILED_TO_PROVISION_CERTIFICATE");
}

#[tokio::test]
async fn a_token_operates_the_machine_that_it_was_granted_and_nothing_else() {
    let lab = lab().await;
    let (id, other) = (vm(&lab).await, vm(&lab).await);
    let created = bare(&lab, "POST", "/identity/v1/identities").await.expect(200);
    assert_eq!(created.at("/managed"), "false");
    let identity = format!("/identity/v1/identities/{}", created.at("/id"));
    let permission = format!("{identity}/permissions/vm/{id}");
    get(&lab, &permission).await.said("VM_PERMISSION_NOT_FOUND");
    lab.put(&lab.root, &at(&permission), json!({})).await.said("VM_PERMISSION_NOT_FOUND");
    let granted = post(&lab, &permission, json!({})).await.expect(200);
    assert_eq!((granted.at("/vmId"), granted.at("/allowedUsers")), (id.clone(), "null".into()));
    post(&lab, &permission, json!({})).await.said("PERMISSION_ALREADY_EXISTS");
    assert_eq!(get(&lab, &permission).await.expect(200).body, granted.body);
    post(&lab, &format!("{identity}/permissions/vm/none"), json!({})).await.said("VM_NOT_FOUND");
    post(&lab, "/identity/v1/identities/none/permissions/vm/none", json!({})).await.said("IDENTITY_NOT_FOUND");
    post(&lab, &format!("{identity}/permissions/vm/{other}"), json!({ "allowedUsers": ["#"] }))
        .await
        .said("VALIDATION_ERROR");
    let listed = get(&lab, &format!("{identity}/permissions/vm?limit=10&offset=0")).await.expect(200);
    assert_eq!(listed.body, json!({ "permissions": [granted.body], "offset": 0, "total": 1 }));
    let none = get(&lab, &format!("{identity}/permissions/vm?offset=1")).await.expect(200);
    assert_eq!(none.body, json!({ "permissions": [], "offset": 1, "total": 1 }));

    let token = bare(&lab, "POST", &format!("{identity}/tokens")).await.expect(200);
    assert_eq!(get(&lab, &format!("{identity}/tokens")).await.body, json!({ "tokens": [{ "id": token.at("/id") }] }));
    let lives = lab.get(&lab.root, &format!("/v1/identities/{}/tokens", created.at("/id"))).await;
    let lives: (jiff::Timestamp, jiff::Timestamp) =
        (lives.at("/items/0/created_at").parse().unwrap(), lives.at("/items/0/expires_at").parse().unwrap());
    assert_eq!(lives.1.duration_since(lives.0).as_hours(), 30 * 24);

    let with_token = async |method: &str, path: &str, body: Option<Value>| {
        let request = request(method, &at(path), "", body.map(|body| body.to_string()));
        lab.call(with_header(request, "x-freestyle-identity-access-token", &token.at("/token"))).await
    };
    let command = || Some(json!({ "command": "pwd" }));
    let who = with_token("GET", "/auth/v1/whoami", None).await.expect(200);
    assert_eq!(who.at("/identityId"), created.at("/id"));
    with_token("POST", &format!("/v1/vms/{id}/exec-await"), command()).await.expect(200);
    with_token("GET", &format!("/v1/vms/{id}"), None).await.expect(200);
    with_token("GET", &format!("/v1/vms/{id}/files/%2Fdirectory"), None).await.expect(200);
    with_token("GET", &format!("/v1/vms/{id}/pty/sessions"), None).await.expect(200);
    with_token("POST", &format!("/v1/vms/{id}/start"), Some(json!({}))).await.expect(200);
    with_token("POST", &format!("/v1/vms/{id}/stop"), None).await.said("VM_ACCESS_DENIED");
    with_token("DELETE", &format!("/v1/vms/{id}"), None).await.said("VM_ACCESS_DENIED");
    with_token("GET", "/v1/vms", None).await.said("VM_ACCESS_DENIED");
    with_token("POST", "/v1/vpcs", Some(json!({}))).await.said("FORBIDDEN");
    with_token("POST", &format!("/v1/vms/{other}/exec-await"), command()).await.said("VM_NOT_FOUND");
    // The header is the dialect's, and says nothing to Warren's own calls.
    let native =
        with_header(request("GET", "/v1/whoami", "", None), "x-freestyle-identity-access-token", &token.at("/token"));
    lab.call(native).await.expect(401).refused("unauthorized");

    let bob = json!({ "allowedUsers": ["bob"] });
    assert_eq!(lab.put(&lab.root, &at(&permission), bob).await.expect(200).body["allowedUsers"], json!(["bob"]));
    with_token("GET", &format!("/v1/vms/{id}/files/%2Fa"), None).await.said("VM_ACCESS_DENIED");
    // What was granted natively does not grow when its users change.
    let native = format!("/v1/identities/{}/machines/{id}", created.at("/id"));
    lab.put(&lab.root, &native, json!({ "verbs": ["exec", "files"] })).await.expect(200);
    for (users, verbs) in [(json!(["root"]), json!(["exec", "files"])), (json!(["bob"]), json!(["exec"]))] {
        lab.put(&lab.root, &at(&permission), json!({ "allowedUsers": users })).await.expect(200);
        let grants = lab.get(&lab.root, &format!("/v1/identities/{}/grants", created.at("/id"))).await.expect(200);
        assert_eq!(grants.body["items"][0]["verbs"], verbs);
    }
    assert_eq!(bare(&lab, "DELETE", &permission).await.expect(200).body, json!({}));
    bare(&lab, "DELETE", &permission).await.said("VM_PERMISSION_NOT_FOUND");
    with_token("POST", &format!("/v1/vms/{id}/exec-await"), command()).await.said("VM_NOT_FOUND");
    bare(&lab, "DELETE", &format!("{identity}/tokens/none")).await.said("NOT_FOUND");
    assert_eq!(
        bare(&lab, "DELETE", &format!("{identity}/tokens/{}", token.at("/id"))).await.expect(200).body,
        json!({})
    );
    with_token("GET", "/auth/v1/whoami", None).await.said("UNAUTHORIZED");
    assert_eq!(get(&lab, &format!("{identity}/tokens")).await.body, json!({ "tokens": [] }));
    let identities = get(&lab, "/identity/v1/identities?offset=0").await.expect(200);
    assert_eq!(identities.at("/identities/0/id"), created.at("/id"));
    assert_eq!(bare(&lab, "DELETE", &identity).await.expect(200).body, json!({}));
    bare(&lab, "DELETE", &identity).await.said("IDENTITY_NOT_FOUND");
}

#[tokio::test]
async fn a_console_is_a_log() {
    let lab = lab().await;
    let id = vm(&lab).await;
    assert_eq!(get(&lab, "/observability/v1/logs").await.expect(200).at("/logs"), "[]");
    let all = get(&lab, &format!("/observability/v1/logs?vmId={id}&pageSize=10")).await.expect(200);
    assert!(!all.body["logs"].as_array().unwrap().is_empty(), "{}", all.text);
    all.at("/logs/0/timestamp").parse::<jiff::Timestamp>().unwrap();
    let none = get(&lab, &format!("/observability/v1/logs?vmId={id}&search=nowhere")).await.expect(200);
    assert_eq!(none.at("/logs"), "[]");
    get(&lab, "/observability/v1/logs?vmId=none").await.said("VM_NOT_FOUND");
}

#[tokio::test]
async fn browsers_may_send_what_the_client_sends() {
    let lab = lab_with(|config| config.cors_origins = vec!["https://app.example".into()]).await;
    let preflight = Request::options(at("/v1/vms"))
        .header("origin", "https://app.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "x-freestyle-identity-access-token,x-freestyle-sdk")
        .body(Body::empty())
        .unwrap();
    let answer = lab.call(preflight).await;
    let allowed = answer.headers["access-control-allow-headers"].to_str().unwrap().to_owned();
    for header in ["x-freestyle-identity-access-token", "x-freestyle-sdk", "x-freestyle-vm-linux-user-id"] {
        assert!(allowed.contains(header), "{allowed}");
    }
}
