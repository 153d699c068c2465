//! Files in running machines. Contents are streamed both ways, however large.

use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use warren_model::access::{AccessError, ByteStream, FileInfo, WriteOptions};
use warren_model::{Code, wire};

use super::inside::running;
use crate::caller::Caller;
use crate::error::{Answer, ApiError};
use crate::extract::{JsonBody, Named, Query};
use crate::state::{Api, Shared};

/// The permission bits in octal, and the size when a file was opened.
pub(crate) const FILE_MODE: &str = "x-file-mode";
pub(crate) const FILE_SIZE: &str = "x-file-size";

/// PATH_MAX of Linux (`include/uapi/linux/limits.h`), less its final zero.
const LONGEST_PATH: usize = 4095;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PathQuery {
    /// An absolute path in the machine.
    #[param(pattern = "^/[^\\u0000]*$", max_length = 4095)]
    path: String,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct WriteQuery {
    /// An absolute path in the machine.
    #[param(pattern = "^/[^\\u0000]*$", max_length = 4095)]
    path: String,
    /// Permission bits in octal, `0755`; 0644 for a new file, unchanged for an old one, when absent.
    mode: Option<String>,
    /// Make the directories above it.
    parents: Option<bool>,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct RemoveQuery {
    /// An absolute path in the machine.
    #[param(pattern = "^/[^\\u0000]*$", max_length = 4095)]
    path: String,
    /// Remove a directory with everything in it.
    recursive: Option<bool>,
}

/// Read a file
///
/// `x-file-mode` holds the permission bits in octal and `x-file-size` the size when it was opened.
#[utoipa::path(get, path = "/v1/machines/{machine}/files", operation_id = "read_file", tag = "files",
    params(("machine" = String, Path, description = "Id or name"), PathQuery),
    responses((status = 200, content_type = "application/octet-stream", body = [u8])))]
pub(crate) async fn read(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Query(query): Query<PathQuery>,
) -> Answer<Response> {
    check_path(&query.path)?;
    let machine = running(&api, &caller, &given).await?;
    let (info, content) = api.access.read_file(machine.id, &query.path).await?;
    let mode = HeaderValue::from_str(&format!("{:04o}", info.mode & 0o7777)).map_err(|_| ApiError::internal())?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("x-file-mode"), mode),
        (HeaderName::from_static("x-file-size"), HeaderValue::from(info.size)),
    ];
    Ok((headers, Body::from_stream(content)).into_response())
}

/// Write a file
///
/// The body is the content. The file is replaced as a whole.
#[utoipa::path(put, path = "/v1/machines/{machine}/files", operation_id = "write_file", tag = "files",
    params(("machine" = String, Path, description = "Id or name"), WriteQuery),
    request_body(content = [u8], content_type = "application/octet-stream"),
    responses((status = 200, body = FileInfo)))]
pub(crate) async fn write(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Query(query): Query<WriteQuery>,
    request: Request,
) -> Answer<Json<FileInfo>> {
    check_path(&query.path)?;
    let mode = query.mode.as_deref().map(|text| {
        let octal = (1..=5).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        let mode = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten().filter(|mode| *mode <= 0o7777);
        mode.ok_or_else(|| ApiError::new(Code::InvalidQuery, "mode is octal permission bits, such as 0644"))
    });
    let options = WriteOptions { mode: mode.transpose()?, parents: query.parents.unwrap_or(false) };
    let machine = running(&api, &caller, &given).await?;
    let content = body_of(request, api.config.idle_timeout);
    Ok(Json(api.access.write_file(machine.id, &query.path, options, content).await?))
}

/// Remove a file or directory
#[utoipa::path(delete, path = "/v1/machines/{machine}/files", operation_id = "remove_file", tag = "files",
    params(("machine" = String, Path, description = "Id or name"), RemoveQuery),
    responses((status = 204, description = "Removed")))]
pub(crate) async fn remove(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Query(query): Query<RemoveQuery>,
) -> Answer<StatusCode> {
    check_path(&query.path)?;
    let machine = running(&api, &caller, &given).await?;
    let removal = api.access.remove(machine.id, &query.path, query.recursive.unwrap_or(false));
    bounded(&api, removal).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List a directory
#[utoipa::path(get, path = "/v1/machines/{machine}/files/list", operation_id = "list_directory", tag = "files",
    params(("machine" = String, Path, description = "Id or name"), PathQuery),
    responses((status = 200, body = wire::Page<FileInfo>)))]
pub(crate) async fn list(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Query(query): Query<PathQuery>,
) -> Answer<Json<wire::Page<FileInfo>>> {
    check_path(&query.path)?;
    let machine = running(&api, &caller, &given).await?;
    Ok(Json(wire::Page { items: api.access.list_directory(machine.id, &query.path).await?, next: None }))
}

/// Show what is at a path
#[utoipa::path(get, path = "/v1/machines/{machine}/files/stat", operation_id = "stat_file", tag = "files",
    params(("machine" = String, Path, description = "Id or name"), PathQuery),
    responses((status = 200, body = FileInfo)))]
pub(crate) async fn stat(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    Query(query): Query<PathQuery>,
) -> Answer<Json<FileInfo>> {
    check_path(&query.path)?;
    let machine = running(&api, &caller, &given).await?;
    Ok(Json(api.access.stat(machine.id, &query.path).await?))
}

/// Make a directory
#[utoipa::path(post, path = "/v1/machines/{machine}/files/directories", operation_id = "make_directory", tag = "files",
    params(("machine" = String, Path, description = "Id or name")),
    request_body = wire::MakeDirectory, responses((status = 201, body = FileInfo)))]
pub(crate) async fn make_directory(
    State(api): State<Shared>,
    caller: Caller,
    Named(given): Named,
    JsonBody { value, .. }: JsonBody<wire::MakeDirectory>,
) -> Answer<(StatusCode, Json<FileInfo>)> {
    check_path(&value.path)?;
    let machine = running(&api, &caller, &given).await?;
    let making = api.access.make_directory(machine.id, &value.path, value.parents);
    let info = bounded(&api, making).await?;
    Ok((StatusCode::CREATED, Json(info)))
}

/// A machine that does not answer must not keep a request for ever.
async fn bounded<T>(api: &Api, work: impl Future<Output = Result<T, AccessError>>) -> Answer<T> {
    let done = tokio::time::timeout(api.config.operation_deadline, work).await;
    done.map_err(|_| {
        ApiError::new(Code::DeadlineExceeded, "the machine took too long: see whether it was done before trying again")
    })?
    .map_err(ApiError::from)
}

/// Refuses what no file can be called.
pub(crate) fn check_path(path: &str) -> Answer<()> {
    if path.starts_with('/') && path.len() <= LONGEST_PATH && !path.contains('\0') {
        return Ok(());
    }
    Err(ApiError::new(
        Code::PathInvalid,
        format!("a path begins with '/', has at most {LONGEST_PATH} bytes and no zero byte"),
    ))
}

/// A request's body as a stream that ends with an error when it rests too long.
pub(super) fn body_of(request: Request, idle: Duration) -> ByteStream {
    idle_bound(request.into_body().into_data_stream().map(|piece| piece.map_err(std::io::Error::other)), idle).boxed()
}

fn idle_bound(
    stream: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    idle: Duration,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    futures::stream::unfold(Some(Box::pin(stream)), move |stream| async move {
        let mut stream = stream?;
        match tokio::time::timeout(idle, stream.next()).await {
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(stream))),
            Ok(Some(Err(error))) => Some((Err(error), None)),
            Ok(None) => None,
            Err(_) => Some((Err(std::io::ErrorKind::TimedOut.into()), None)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_absolute_and_bounded() {
        assert!(check_path("/").is_ok() && check_path("/etc/../x").is_ok());
        for bad in ["", "x", "./x", "/a\0b", &format!("/{}", "x".repeat(LONGEST_PATH))] {
            assert_eq!(check_path(bad).unwrap_err().problem.code, Code::PathInvalid);
        }
    }

    #[tokio::test]
    async fn a_body_that_rests_too_long_ends_with_an_error() {
        let stalled = futures::stream::iter([Ok(Bytes::from_static(b"a"))]).chain(futures::stream::pending());
        let pieces: Vec<_> = idle_bound(stalled, Duration::from_millis(20)).collect().await;
        assert_eq!(pieces.len(), 2);
        assert_eq!(pieces[1].as_ref().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    }
}
