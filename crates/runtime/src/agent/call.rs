//! One JSON document each way.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use warren_guest::protocol::{LONGEST_ANSWER, LONGEST_FRAME_JSON, LONGEST_REQUEST, Refusal};
use warren_guest::stream::{collect, send};
use warren_model::Code;
use warren_model::access::AccessError;

use super::link::Link;

/// How long a call may take.
pub const CALL: Duration = Duration::from_secs(30);

/// The longest sentence of an agent that is shown to anybody, in characters.
const LONGEST_DETAIL: usize = 500;

/// Asks, and takes the answer.
pub async fn call<T: DeserializeOwned>(
    link: &Link,
    operation: &'static str,
    request: &impl Serialize,
    within: Duration,
) -> Result<T, AccessError> {
    match tokio::time::timeout(within, exchange(link, operation, request)).await {
        Ok(answer) => answer,
        Err(_) => Err(link.late(within).await),
    }
}

/// The same for the question whether anybody is there.
pub async fn call_once<T: DeserializeOwned>(
    link: &Link,
    operation: &'static str,
    request: &impl Serialize,
    within: Duration,
) -> Result<T, AccessError> {
    let answer = tokio::time::timeout(within, exchange(link, operation, request)).await;
    answer.unwrap_or_else(|_| Err(AccessError::new(Code::AgentUnavailable, "nobody answers")))
}

/// Reads why something was refused.
pub async fn refusal(link: &Link, mut body: h2::RecvStream) -> AccessError {
    match collect(&mut body, LONGEST_FRAME_JSON).await {
        Ok(json) => parse_refusal(link, &json),
        Err(error) => link.broken(error),
    }
}

/// The same, from its JSON. The agent only says what can go wrong inside a machine.
pub fn parse_refusal(link: &Link, json: &[u8]) -> AccessError {
    let Ok(Refusal { code, detail }) = serde_json::from_slice(json) else {
        return link.broken("its refusal is not one");
    };
    let known = matches!(
        code,
        Code::CommandNotFound
            | Code::CommandNotExecutable
            | Code::UserNotFound
            | Code::DirectoryNotFound
            | Code::PathInvalid
            | Code::PathNotFound
            | Code::PathDenied
            | Code::PathConflict
            | Code::MachineDiskFull
            | Code::LimitOutOfRange
            | Code::InvalidRequest
            | Code::InvalidName
            | Code::RouteNotFound
            | Code::Internal
    );
    match (known, code) {
        // The agent's own failure is not this server's.
        (true, Code::Internal | Code::RouteNotFound) => AccessError::new(Code::AgentUnavailable, plain(&detail)),
        (true, code) => AccessError::new(code, plain(&detail)),
        (false, code) => link.broken(format_args!("it refuses with {code}")),
    }
}

/// Text of a machine, fit for a log and a terminal.
pub fn plain(text: &str) -> String {
    text.chars().take(LONGEST_DETAIL).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A request as JSON, if it is not too long.
pub fn to_json(request: &impl Serialize) -> Result<Vec<u8>, AccessError> {
    match serde_json::to_vec(request) {
        Ok(json) if json.len() <= LONGEST_REQUEST => Ok(json),
        Ok(json) => {
            let detail = format!("{} bytes are more than a machine is told at once ({LONGEST_REQUEST})", json.len());
            Err(AccessError::new(Code::InvalidRequest, detail))
        }
        Err(error) => Err(AccessError::new(Code::InvalidRequest, error.to_string())),
    }
}

async fn exchange<T: DeserializeOwned>(
    link: &Link,
    operation: &'static str,
    request: &impl Serialize,
) -> Result<T, AccessError> {
    let json = to_json(request)?;
    let mut asked = link.ask(operation, false).await?;
    let mut answer = std::pin::pin!(asked.response);
    // An agent that refuses early does not take the rest; its answer says why, and so does its failure.
    let early = tokio::select! {
        biased;
        answer = &mut answer => Some(answer),
        _ = send(&mut asked.body, json.into(), true) => None,
    };
    let answer = match early {
        Some(answer) => answer,
        None => answer.await,
    };
    let response = answer.map_err(|error| link.broken(error))?;
    let mut body = match response.status().as_u16() {
        200 => response.into_body(),
        422 => return Err(refusal(link, response.into_body()).await),
        status => return Err(link.broken(format_args!("it answers with status {status}"))),
    };
    let json = collect(&mut body, LONGEST_ANSWER).await.map_err(|error| link.broken(error))?;
    drop(asked.place);
    serde_json::from_slice(&json).map_err(|error| link.broken(format_args!("its answer is not one: {error}")))
}
