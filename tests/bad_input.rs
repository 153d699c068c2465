//! Wrong input of every kind: a code of its own, a fitting status, a sentence that says what to do, and no change.

mod common;

use common::{Options, Server, text};
use serde_json::{Value, json};

/// Everything that a refused request must not have changed.
fn state(server: &Server) -> String {
    [["network", "ls"], ["machine", "ls"], ["account", "ls"], ["image", "ls"]]
        .map(|arguments| server.json(&arguments).to_string())
        .join("\n")
}

#[test]
fn every_kind_of_wrong_input_is_refused_by_its_code() {
    let server = Server::start();
    server.ok(&["network", "create", "lab", "--cidr", "192.168.10.0/24"]);
    server.ok(&["machine", "create", "taken", "--network", "lab", "--ip", "192.168.10.10"]);
    let before = state(&server);
    let long = "x".repeat(64);
    let rows: &[(&str, u16, &[&str])] = &[
        ("cidr_malformed", 422, &["network", "create", "n", "--cidr", "10.0.0.0"]),
        ("cidr_malformed", 422, &["network", "create", "n", "--cidr", "10.0.0.1/16"]),
        ("cidr_malformed", 422, &["network", "create", "n", "--cidr", "10.0.0.0/33"]),
        ("cidr_malformed", 422, &["network", "create", "n", "--cidr", "fd00::/64"]),
        ("cidr_malformed", 422, &["network", "create", "n", "--cidr", ""]),
        ("cidr_not_private", 422, &["network", "create", "n", "--cidr", "8.8.8.0/24"]),
        ("cidr_not_private", 422, &["network", "create", "n", "--cidr", "172.32.0.0/16"]),
        ("cidr_not_private", 422, &["network", "create", "n", "--cidr", "169.254.0.0/16"]),
        ("cidr_not_private", 422, &["network", "create", "n", "--cidr", "127.0.0.0/8"]),
        ("cidr_too_wide", 422, &["network", "create", "n", "--cidr", "0.0.0.0/0"]),
        ("cidr_too_wide", 422, &["network", "create", "n", "--cidr", "10.0.0.0/7"]),
        ("cidr_too_narrow", 422, &["network", "create", "n", "--cidr", "10.0.0.0/30"]),
        ("cidr_too_narrow", 422, &["network", "create", "n", "--cidr", "10.0.0.1/32"]),
        ("address_malformed", 422, &["machine", "create", "m", "--network", "lab", "--ip", "192.168.10"]),
        ("address_malformed", 422, &["machine", "create", "m", "--network", "lab", "--ip", "fd00::1"]),
        ("address_outside_network", 422, &["machine", "create", "m", "--network", "lab", "--ip", "192.168.11.10"]),
        ("address_reserved", 422, &["machine", "create", "m", "--network", "lab", "--ip", "192.168.10.0"]),
        ("address_reserved", 422, &["machine", "create", "m", "--network", "lab", "--ip", "192.168.10.1"]),
        ("address_reserved", 422, &["machine", "create", "m", "--network", "lab", "--ip", "192.168.10.255"]),
        ("address_taken", 409, &["machine", "create", "m", "--network", "lab", "--ip", "192.168.10.10"]),
        ("invalid_name", 422, &["network", "create", "Not_A_Label"]),
        ("invalid_name", 422, &["network", "rename", "lab", "la b"]),
        ("invalid_name", 422, &["machine", "create", "m-"]),
        ("invalid_name", 422, &["machine", "create", &long]),
        ("invalid_name", 422, &["machine", "create", "a.b"]),
        ("invalid_name", 422, &["machine", "create", ""]),
        ("invalid_name", 422, &["machine", "rename", "taken", "A"]),
        ("invalid_name", 422, &["machine", "create", "m", "--tag", "a b"]),
        ("image_not_found", 404, &["image", "rm", "../debian"]),
        ("invalid_name", 422, &["account", "create", "A"]),
        ("invalid_name", 422, &["key", "create", "--name", "a b"]),
        ("name_in_use", 409, &["network", "create", "lab"]),
        ("name_in_use", 409, &["network", "rename", "default", "lab"]),
        ("name_in_use", 409, &["machine", "create", "taken"]),
        ("name_in_use", 409, &["account", "create", "default"]),
        ("invalid_port", 422, &["machine", "create", "m", "--port", "a=80", "--port", "b=80"]),
        ("not_found", 404, &["machine", "create", "m", "--network", "nowhere"]),
        ("not_found", 404, &["machine", "start", "nobody"]),
        ("not_found", 404, &["network", "rm", "nowhere"]),
        ("image_not_found", 404, &["machine", "create", "m", "--image", "nothing"]),
        ("image_not_found", 404, &["image", "rm", "nothing"]),
        ("image_not_found", 404, &["image", "build", "nothing"]),
        // More than any host has that these tests run on.
        ("limit_unavailable", 422, &["machine", "create", "m", "--cpus", "1024"]),
        ("limit_unavailable", 422, &["machine", "create", "m", "--memory", "16777216"]),
        ("limit_out_of_range", 422, &["machine", "create", "m", "--cpus", "0.01"]),
        ("limit_out_of_range", 422, &["machine", "create", "m", "--cpus", "4096"]),
        ("limit_out_of_range", 422, &["machine", "create", "m", "--memory", "1"]),
        ("limit_out_of_range", 422, &["machine", "create", "m", "--disk", "2000"]),
        ("network_not_empty", 409, &["network", "rm", "lab"]),
        ("forwarding_required", 409, &["network", "create", "n", "--egress", "open"]),
    ];
    for (code, status, arguments) in rows {
        let problem = server.refused(arguments);
        assert_eq!((&problem["code"], &problem["status"]), (&json!(code), &json!(status)), "{arguments:?}: {problem}");
        assert!(problem["request_id"].is_string() && problem["title"].is_string(), "{problem}");
        assert_eq!(problem["type"], format!("urn:warren:problem:{code}"));
    }
    let taken = server.refused(&["machine", "create", "m", "--network", "lab", "--ip", "192.168.10.10"]);
    assert!(taken["detail"].as_str().unwrap().contains("taken"), "the holder is named: {taken}");
    assert_eq!(state(&server), before);
}

/// Code and status; method, path, headers and body.
type Refused<'a> = (&'a str, u16, &'a str, &'a str, &'a [&'a str], &'a str);

#[test]
fn a_request_that_is_not_understood_is_refused_by_its_code() {
    let server = Server::start();
    let before = state(&server);
    let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(1 << 20));
    let key = "Idempotency-Key: one";
    let rows: &[Refused] = &[
        ("body_too_large", 413, "POST", "/v1/networks", &[], &large),
        // Without a length beforehand, so that only reading tells.
        ("body_too_large", 413, "POST", "/v1/networks", &["Transfer-Encoding: chunked"], &large),
        ("invalid_json", 400, "POST", "/v1/networks", &[], "{\"name\":"),
        ("invalid_json", 400, "POST", "/v1/networks", &[], "name=n"),
        ("invalid_json", 400, "POST", "/v1/machines", &[], "\u{0}"),
        ("invalid_request", 422, "POST", "/v1/networks", &[], r#"["n"]"#),
        ("invalid_request", 422, "POST", "/v1/networks", &[], "{}"),
        ("invalid_request", 422, "POST", "/v1/networks", &[], r#"{"name":1}"#),
        ("invalid_request", 422, "POST", "/v1/networks", &[], r#"{"name":"n","colour":"red"}"#),
        ("invalid_request", 422, "POST", "/v1/machines", &[], r#"{"name":"m","Memory_MiB":512}"#),
        ("invalid_request", 422, "POST", "/v1/machines", &[], r#"{"name":"m","cpus":"two"}"#),
        ("invalid_request", 422, "POST", "/v1/machines", &[], r#"{"ports":[{"name":"a","port":1,"x":1}]}"#),
        ("invalid_request", 422, "POST", "/v1/machines", &[], r#"{"name":"a","name":"b"}"#),
        ("invalid_name", 422, "POST", "/v1/machines", &[], r#"{"image":"../debian"}"#),
        ("invalid_port", 422, "POST", "/v1/machines", &[], r#"{"ports":[{"name":"a","port":0,"protocol":"tcp"}]}"#),
        ("unsupported_media_type", 415, "POST", "/v1/networks", &["Content-Type: text/plain"], r#"{"name":"n"}"#),
        ("invalid_query", 400, "GET", "/v1/networks?colour=red", &[], ""),
        ("invalid_query", 400, "GET", "/v1/networks?limit=many", &[], ""),
        ("invalid_query", 400, "GET", "/v1/networks?limit=0", &[], ""),
        ("invalid_cursor", 400, "GET", "/v1/networks?cursor=nonsense", &[], ""),
        ("route_not_found", 404, "GET", "/v1/nowhere", &[], ""),
        ("route_not_found", 404, "GET", "/v1/../../etc/passwd", &[], ""),
        ("method_not_allowed", 405, "PUT", "/v1/networks", &[], "{}"),
        ("not_found", 404, "GET", "/v1/machines/%2e%2e%2f", &[], ""),
        ("idempotency_key_invalid", 400, "POST", "/v1/networks", &["Idempotency-Key: a b"], r#"{"name":"n"}"#),
        ("idempotency_key_invalid", 400, "POST", "/v1/networks", &[key, key], r#"{"name":"n"}"#),
        ("not_found", 404, "GET", "/v1/networks", &["X-Warren-Account: nobody"], ""),
    ];
    for (code, status, method, path, headers, body) in rows {
        let (answered, problem) = server.http(method, path, headers, body.as_bytes());
        let what = format!("{method} {path} {headers:?} {}", body.chars().take(80).collect::<String>());
        assert_eq!((&problem["code"], answered), (&json!(code), *status), "{what}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{what}: {problem}");
        assert!(problem["request_id"].is_string() && problem["status"] == *status, "{what}: {problem}");
    }
    assert_eq!(state(&server), before);
}

#[test]
fn the_same_request_twice_creates_once() {
    let server = Server::start();
    let key = ["Idempotency-Key: once"];
    let (status, first) = server.http("POST", "/v1/machines", &key, br#"{"name":"m"}"#);
    assert_eq!(status, 201, "{first}");
    let (status, again) = server.http("POST", "/v1/machines", &key, br#"{"name":"m"}"#);
    assert_eq!((status, &again["id"]), (200, &first["id"]), "{again}");
    let (status, other) = server.http("POST", "/v1/machines", &key, br#"{"name":"other"}"#);
    assert_eq!((status, &other["code"]), (409, &json!("idempotency_key_reused")));
    assert_eq!(server.json(&["machine", "ls"])["items"].as_array().unwrap().len(), 1);

    // A secret is shown once, and the answer that is repeated says so.
    let (status, account) = server.http("POST", "/v1/accounts", &["Idempotency-Key: a"], br#"{"name":"acme"}"#);
    assert!(status == 201 && account["key"].is_string(), "{account}");
    let (status, again) = server.http("POST", "/v1/accounts", &["Idempotency-Key: a"], br#"{"name":"acme"}"#);
    assert_eq!((status, &again["id"], again["key"].as_str()), (200, &account["id"], None));
    assert!(again["detail"].as_str().unwrap().contains("not repeated"), "{again}");
}

#[test]
fn what_a_machine_cannot_do_is_refused_by_its_code() {
    let server = Server::start();
    server.ok(&["machine", "create", "a"]);
    let rows: &[(&str, u16, Value)] = &[
        ("command_not_found", 422, json!({"command": ["/nowhere"]})),
        ("command_not_executable", 422, json!({"command": ["/etc/passwd"]})),
        ("user_not_found", 422, json!({"command": ["true"], "user": "nobody-knows"})),
        ("directory_not_found", 422, json!({"command": ["true"], "cwd": "/nowhere"})),
        ("invalid_request", 422, json!({"command": []})),
        ("invalid_request", 422, json!({"command": ["true"], "colour": "red"})),
    ];
    for (code, status, body) in rows {
        let (answered, problem) = server.http("POST", "/v1/machines/a/exec", &[], body.to_string().as_bytes());
        assert_eq!((&problem["code"], answered), (&json!(code), *status), "{body}: {problem}");
    }
    server.ok(&["machine", "stop", "a"]);
    let (status, problem) = server.http("POST", "/v1/machines/a/exec", &[], br#"{"command":["true"]}"#);
    assert_eq!((status, &problem["code"]), (409, &json!("machine_not_running")));
    assert!(problem["detail"].as_str().unwrap().contains("start"), "{problem}");
    for arguments in [["ports", "a"], ["traffic", "nobody"]] {
        server.refused(&arguments);
    }
}

#[test]
fn an_account_has_no_more_than_its_quota() {
    let server = Server::start_with(Options {
        arguments: ["--machines-per-account", "1", "--networks-per-account", "2"].map(str::to_owned).into(),
        ..Options::default()
    });
    server.ok(&["machine", "create", "a", "--memory", "64"]);
    server.ok(&["network", "create", "second"]);
    let before = state(&server);
    server.refused_as("quota_exceeded", &["machine", "create", "b"]);
    server.refused_as("quota_exceeded", &["network", "create", "third"]);
    assert_eq!(state(&server), before);
    // Each account has its own.
    server.ok(&["account", "create", "acme"]);
    server.ok(&["--account", "acme", "network", "create", "second"]);
    server.ok(&["machine", "rm", "a"]);
    server.ok(&["machine", "create", "b", "--memory", "64"]);
}

#[test]
fn wrong_usage_and_a_server_that_is_away_have_exit_statuses_of_their_own() {
    let mut server = Server::start();
    assert_eq!(server.run(&["network", "create"]).status.code(), Some(2));
    assert_eq!(server.run(&["no-such-command"]).status.code(), Some(2));
    assert_eq!(server.run(&["machine", "create", "m", "--ip"]).status.code(), Some(2));
    assert_eq!(server.run(&["machine", "create", "m", "--port", "a=0"]).status.code(), Some(2));
    server.kill();
    let output = server.run(&["network", "ls"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("warren up"), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
    server.up().unwrap();
}

#[test]
fn another_accounts_things_do_not_exist() {
    let mut server = Server::start();
    server.ok(&["network", "create", "secret"]);
    let network = server.json(&["network", "show", "secret"])["id"].as_str().unwrap().to_owned();
    let machine = server.json(&["machine", "create", "hidden"])["id"].as_str().unwrap().to_owned();
    let key = server.json(&["key", "create"])["id"].as_str().unwrap().to_owned();
    let before = state(&server);
    server.act_as_new("stranger");
    let stranger = format!("X-API-Key: {}", server.key.as_deref().unwrap());
    let absent = |mut problem: Value, name: &str| {
        problem["request_id"] = Value::Null;
        problem.to_string().replace(name, "NAME")
    };
    // Exactly the answer that a thing gets which was never there.
    let nobody = |thing: &str| format!("{}00000000000000000000000000", &thing[..4]);
    let body = |thing: &str| match thing.starts_with("mch") {
        true => r#"{"command":["true"]}"#,
        false => "{}",
    };
    let rows = [
        ("GET", "/v1/networks/{}", &network),
        ("DELETE", "/v1/networks/{}", &network),
        ("DELETE", "/v1/networks/{}?force=true", &network),
        ("GET", "/v1/machines/{}", &machine),
        ("DELETE", "/v1/machines/{}", &machine),
        ("POST", "/v1/machines/{}/stop", &machine),
        ("POST", "/v1/machines/{}/start", &machine),
        ("POST", "/v1/machines/{}/exec", &machine),
        ("GET", "/v1/machines/{}/files?path=/etc/passwd", &machine),
        ("DELETE", "/v1/machines/{}/files?path=/etc/passwd", &machine),
        ("GET", "/v1/machines/{}/ports", &machine),
        ("GET", "/v1/machines/{}/logs", &machine),
        ("GET", "/v1/machines/{}/traffic", &machine),
        ("DELETE", "/v1/keys/{}", &key),
    ];
    for (method, path, thing) in rows {
        let other = nobody(thing);
        let ask = |id: &str| server.http(method, &path.replace("{}", id), &[&stranger], body(id).as_bytes());
        let (status, problem) = ask(thing);
        assert_eq!((status, &problem["code"]), (404, &json!("not_found")), "{method} {path}: {problem}");
        assert_eq!(absent(problem, thing), absent(ask(&other).1, &other), "{method} {path}");
    }
    // Nor can they be named where something new is made.
    server.refused_as("not_found", &["machine", "create", "m", "--network", &network]);
    // Their names are free, though.
    server.ok(&["network", "create", "secret"]);
    server.ok(&["network", "rm", "secret"]);
    let lists = [server.json(&["network", "ls"]), server.json(&["machine", "ls"]), server.json(&["topology"])];
    for list in lists {
        assert!(!list.to_string().contains("secret") && !list.to_string().contains("hidden"), "{list}");
    }
    let events = server.json(&["events"]).to_string();
    assert!(!events.contains("hidden") && !events.contains(&machine), "{events}");
    assert_eq!(server.run(&["exec", &machine, "--", "true"]).status.code(), Some(125));
    server.key = None;
    server.ok(&["machine", "show", "hidden"]);
    let after = state(&server).replace(&server.json(&["account", "show", "stranger"]).to_string(), "");
    assert_eq!(after.lines().take(2).collect::<Vec<_>>(), before.lines().take(2).collect::<Vec<_>>());
}

#[test]
fn a_key_that_is_not_valid_is_unauthorized_without_saying_why() {
    let mut server = Server::start();
    server.act_as_new("acme");
    let first = server.key.clone().unwrap();
    let second = server.json(&["key", "create", "--name", "ci"]);
    let (secret, id) = (second["key"].as_str().unwrap().to_owned(), second["id"].as_str().unwrap().to_owned());
    let ask = |line: &str| server.http("GET", "/v1/networks", &[line], b"");
    assert_eq!(ask(&format!("Authorization: Bearer {secret}")).0, 200);
    server.ok(&["key", "revoke", &id]);
    let answers = [
        format!("Authorization: Bearer {secret}"),
        format!("X-API-Key: {secret}"),
        "X-API-Key: wk_wrong".to_owned(),
        "X-API-Key;".to_owned(),
        "Authorization: Basic YTpi".to_owned(),
    ]
    .map(|line| ask(&line));
    for (status, problem) in &answers {
        assert_eq!((*status, &problem["code"]), (401, &json!("unauthorized")), "{problem}");
        assert_eq!(problem["detail"], answers[0].1["detail"], "it says which");
    }
    // Secrets are nowhere to be read again.
    let listed = server.json(&["key", "ls"]).to_string();
    assert!(!listed.contains(&secret) && !listed.contains(&first), "{listed}");
    let stored = std::fs::read(server.data_dir().join("warren.db")).unwrap();
    assert!(!text(&stored).contains(&secret));
    assert!(!server.log().contains(&secret));

    // What is the root key's is forbidden, and so is acting in another account.
    for (method, path) in [
        ("GET", "/v1/accounts"),
        ("POST", "/v1/accounts"),
        ("GET", "/v1/accounts/default"),
        ("GET", "/metrics"),
        ("PUT", "/v1/images/mine"),
        ("DELETE", "/v1/images/debian"),
    ] {
        let (status, problem) = server.http(method, path, &[&format!("X-API-Key: {first}")], b"{}");
        assert_eq!((status, &problem["code"]), (403, &json!("forbidden")), "{method} {path}: {problem}");
    }
    let other = [&*format!("X-API-Key: {first}"), "X-Warren-Account: default"];
    assert_eq!(server.http("GET", "/v1/networks", &other, b"").1["code"], "forbidden");
    server.refused_as("forbidden", &["account", "ls"]);
    server.key = Some("wk_wrong".into());
    server.refused_as("unauthorized", &["network", "ls"]);
}
