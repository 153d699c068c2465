//! The images of the host. They are shared by all accounts, so only the root key replaces or removes one.

use std::future::Future;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use http::{StatusCode, header};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc;
use warren_model::access::{AccessError, ImageInfo, ImageProgress};
use warren_model::record::Power;
use warren_model::reference::InvalidReference;
use warren_model::wire::{self, ImageEvent};
use warren_model::{Code, ImageName, ImageReference};
use warren_store::{TxnBuilder, Typed, schema};

use super::files;
use super::wanted::bad_name;
use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named};
use crate::mutation::Deed;
use crate::state::{Api, Shared};

/// Lines that a client may be behind before progress is left out.
const BEHIND: usize = 64;

/// List images
#[utoipa::path(get, path = "/v1/images", operation_id = "list_images", tag = "images",
    responses((status = 200, body = wire::Page<ImageInfo>)))]
pub(crate) async fn list(State(api): State<Shared>) -> Answer<Json<wire::Page<ImageInfo>>> {
    Ok(Json(wire::Page { items: api.images.list().await?, next: None }))
}

/// Show an image
#[utoipa::path(get, path = "/v1/images/{image}", operation_id = "show_image", tag = "images",
    params(("image" = String, Path, description = "Name")), responses((status = 200, body = ImageInfo)))]
pub(crate) async fn show(State(api): State<Shared>, Named(given): Named) -> Answer<Json<ImageInfo>> {
    let name = parse(&given)?;
    api.images.get(&name).await?.map(Json).ok_or_else(|| not_found(&name))
}

/// Build an image
///
/// Joins a build that is under way. The answer is one `ImageEvent` a line; the last is `done` or `failed`. The build
/// goes on when the client goes away.
#[utoipa::path(post, path = "/v1/images/{image}/build", operation_id = "build_image", tag = "images",
    params(("image" = String, Path, description = "Name")),
    responses((status = 200, content_type = "application/x-ndjson", body = ImageEvent)))]
pub(crate) async fn build(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<Response> {
    let name = parse(&given)?;
    let there = api.images.get(&name).await?.is_some();
    if !there && !api.images.can_build(&name) {
        return Err(not_found(&name));
    }
    if !there {
        audit(&api, &caller, "image.build", &name, &()).await?;
    }
    Ok(report(move |progress| async move { api.images.build(&name, progress).await }))
}

/// Import an image
///
/// The body is a root file system archive: tar, plain or compressed with gzip, zstd or xz. The answer is one
/// `ImageEvent` a line; the last is `done` or `failed`.
#[utoipa::path(put, path = "/v1/images/{image}", operation_id = "import_image", tag = "images",
    params(("image" = String, Path, description = "Name")),
    request_body(content = [u8], content_type = "application/octet-stream"),
    responses((status = 200, content_type = "application/x-ndjson", body = ImageEvent)))]
pub(crate) async fn import(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    request: Request,
) -> Answer<Response> {
    let name: ImageName = given.parse().map_err(bad_name)?;
    audit(&api, &caller, "image.import", &name, &()).await?;
    let archive = files::body_of(request, api.config.idle_timeout);
    Ok(report(move |progress| async move { api.images.import(&name, archive, progress).await }))
}

/// Pull an image from a registry
///
/// Public images of OCI and Docker registries; only a registry on the server's own host may do without https. Of the
/// image's configuration (environment, working directory, user, command) nothing is taken over. The answer is one
/// `ImageEvent` a line; the last is `done` or `failed`.
#[utoipa::path(post, path = "/v1/images/{image}/pull", operation_id = "pull_image", tag = "images",
    params(("image" = String, Path, description = "The name that it gets")),
    request_body = wire::PullImage,
    responses((status = 200, content_type = "application/x-ndjson", body = ImageEvent)))]
pub(crate) async fn pull(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    JsonBody { value, .. }: JsonBody<wire::PullImage>,
) -> Answer<Response> {
    let name: ImageName = given.parse().map_err(bad_name)?;
    let reference: ImageReference =
        value.reference.parse().map_err(|error: InvalidReference| ApiError::new(error.code(), error.to_string()))?;
    audit(&api, &caller, "image.pull", &name, &value).await?;
    Ok(report(move |progress| async move { api.images.pull(&name, &reference, progress).await }))
}

/// Remove an image
///
/// Refused while a machine was made from it.
#[utoipa::path(delete, path = "/v1/images/{image}", operation_id = "remove_image", tag = "images",
    params(("image" = String, Path, description = "Name")), responses((status = 204, description = "Removed")))]
pub(crate) async fn remove(State(api): State<Shared>, caller: Caller, Named(given): Named) -> Answer<StatusCode> {
    let name = parse(&given)?;
    if api.images.get(&name).await?.is_none() {
        return Err(not_found(&name));
    }
    let (machines, _) = api.store.list_all(&schema::machines()).await?;
    let users = machines.iter().filter(|read| read.record.image == name && read.record.power != Power::Gone).count();
    if users > 0 {
        return Err(ApiError::new(
            Code::ImageInUse,
            match users {
                1 => format!("a machine was made from image {name}: delete it first"),
                _ => format!("{users} machines were made from image {name}: delete them first"),
            },
        ));
    }
    audit(&api, &caller, "image.remove", &name, &()).await?;
    api.images.remove(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A text that is no image name names no image.
fn parse(given: &str) -> Answer<ImageName> {
    given
        .parse()
        .map_err(|error: warren_model::name::InvalidName| ApiError::new(Code::ImageNotFound, error.to_string()))
}

fn not_found(name: &ImageName) -> ApiError {
    ApiError::new(Code::ImageNotFound, format!("there is no image {name}: see GET /v1/images, or pull or import it"))
}

/// Images are not in the store, so the entry is written before the deed.
async fn audit(
    api: &Api,
    caller: &Caller,
    action: &'static str,
    name: &ImageName,
    request: &impl Serialize,
) -> Answer<()> {
    let deed = Deed { caller, now: Timestamp::now(), action };
    deed.record(TxnBuilder::new(), name, request, None)?.commit(&*api.store).await?;
    Ok(())
}

/// Runs a long operation in a task of its own and tells the client how far it comes. A slow client misses progress
/// and delays nothing.
fn report<F>(operation: impl FnOnce(mpsc::Sender<ImageProgress>) -> F) -> Response
where
    F: Future<Output = Result<ImageInfo, AccessError>> + Send + 'static,
{
    let (progress, mut made) = mpsc::channel(16);
    let (lines, told) = mpsc::channel(BEHIND);
    let operation = operation(progress);
    tokio::spawn(async move {
        let relay = async {
            while let Some(progress) = made.recv().await {
                let _ = lines.try_send(ImageEvent::Progress { progress });
            }
        };
        let (result, ()) = tokio::join!(operation, relay);
        let last = match result {
            Ok(image) => ImageEvent::Done { image },
            Err(error) => ImageEvent::Failed { problem: error.into() },
        };
        let _ = lines.send(last).await;
    });
    let body = futures::stream::unfold(told, |mut told| async move { told.recv().await.map(|line| (line, told)) }).map(
        |line| {
            let mut line = serde_json::to_vec(&line).map_err(std::io::Error::other)?;
            line.push(b'\n');
            Ok::<_, std::io::Error>(Bytes::from(line))
        },
    );
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(body)).into_response()
}
