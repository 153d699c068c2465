//! What it costs to know a token and what was granted to its identity: a request that the authorization table refuses
//! to a token, against one that needs no secret. Neither does anything else.

use std::time::Instant;

use anyhow::ensure;
use http::StatusCode;
use serde_json::{Value, json};

use crate::api::Client;
use crate::interrupt;
use crate::options::Options;
use crate::report::{Row, Unit, Wanted};
use crate::server::Server;
use crate::stats::{Samples, in_turn};

/// Networks that the token's identity was granted.
const GRANTS: usize = 100;
const CALLS: usize = 2000;

pub fn measure(options: &Options, server: &Server, client: &mut Client) -> anyhow::Result<Row> {
    eprintln!("checking a token");
    let identity: Value = client.post("/v1/identities", &json!({}))?;
    let path = format!("/v1/identities/{}", identity["id"].as_str().unwrap_or_default());
    for n in 0..GRANTS {
        let name = format!("granted-{n}");
        let _: Value = client.post("/v1/networks", &json!({ "name": name, "cidr": "10.200.0.0/24" }))?;
        let _: Value = client.put(&format!("{path}/networks/{name}"), &json!({ "verbs": ["view"] }))?;
    }
    let token: Value = client.post(&format!("{path}/tokens"), &json!({}))?;
    let mut holder = server.client_with(token["token"].as_str().unwrap_or_default())?;
    let mut anyone = server.client()?;
    let calls = options.many(CALLS);
    let pairs = in_turn(
        options.pairs(),
        || time(&mut holder, "/v1/networks", StatusCode::FORBIDDEN, calls),
        || time(&mut anyone, "/healthz", StatusCode::OK, calls),
    )?;
    // The server does not keep a connection for long over which nobody asks.
    let mut client = server.client()?;
    client.delete(&path)?;
    for n in 0..GRANTS {
        client.delete(&format!("/v1/networks/granted-{n}"))?;
    }
    let what = format!("a token with {GRANTS} grants is checked and refused / no check");
    Ok(Row::compared("token", what, Unit::Microseconds, pairs, Wanted::MoreAtMost(20.0)))
}

/// The median of so many requests on one connection, in microseconds.
fn time(client: &mut Client, path: &str, expected: StatusCode, calls: usize) -> anyhow::Result<f64> {
    let mut taken = Vec::with_capacity(calls);
    for _ in 0..calls {
        interrupt::check()?;
        let began = Instant::now();
        let status = client.status(path)?;
        taken.push(began.elapsed().as_secs_f64() * 1e6);
        ensure!(status == expected, "GET {path} answered {status}");
    }
    Ok(Samples::new(taken)?.median())
}
