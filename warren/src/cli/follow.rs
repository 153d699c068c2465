//! What goes on for ever: events and denials, one a line.

use std::time::Duration;

use futures::StreamExt;
use http::header::{HeaderMap, HeaderName};
use http::{HeaderValue, Method};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Context;
use super::failure::Failure;
use crate::client::Payload;
use crate::client::error::ClientError;
use crate::client::route::Route;

/// How long to wait before a stream that broke off is taken up again.
const RESUME_AFTER: Duration = Duration::from_secs(1);
/// How often in a row that is tried.
const RESUME_ATTEMPTS: u32 = 30;

/// Shows documents as they come, and takes the stream up again where it broke off.
///
/// `place` is how the server knows a document, so that it goes on after it. `begins` says that the route itself names a
/// place to begin at.
pub async fn follow<T: DeserializeOwned>(
    context: &Context,
    route: &Route,
    begins: bool,
    place: impl Fn(&Value) -> Option<HeaderValue>,
    render: impl Fn(&T) -> String,
) -> Result<(), Failure> {
    let Context { client, output } = context;
    let mut last: Option<HeaderValue> = None;
    let mut attempts = 0;
    loop {
        let mut headers = HeaderMap::new();
        if let Some(last) = &last {
            headers.insert(HeaderName::from_static("last-event-id"), last.clone());
        }
        let broken = match client.documents(Method::GET, route, Payload::Nothing, headers).await {
            Ok(mut documents) => loop {
                match documents.next().await {
                    Some(Ok(document)) => {
                        attempts = 0;
                        last = place(&document).or(last);
                        output.line(document, &render)?;
                    }
                    Some(Err(error)) => break error,
                    None => break ClientError::BrokenOff("the server ended the stream".into()),
                }
            },
            // The first attempt tells the caller at once.
            Err(error) if last.is_none() && attempts == 0 => return Err(error.into()),
            Err(error) => error,
        };
        let lasting = !matches!(broken, ClientError::BrokenOff(_) | ClientError::NotReached { .. });
        attempts += 1;
        // Without a place to go on from, something could be missed in silence.
        if lasting || attempts > RESUME_ATTEMPTS || (last.is_none() && !begins) {
            return Err(broken.into());
        }
        tokio::time::sleep(RESUME_AFTER).await;
    }
}
