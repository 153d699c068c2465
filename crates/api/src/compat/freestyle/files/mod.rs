//! Files of machines, as JSON.

mod acting;
mod encode;

use axum::Json;
use axum::body::Body as ResponseBody;
use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::header;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use warren_model::access::{ByteStream, FileInfo, FileKind, WriteOptions};
use warren_model::record::Machine;
use warren_model::{Code, LinuxUser, Verb};

use super::error::Answer;
use super::extract::{AsUser, Body};
use super::wanted::decode;
use crate::caller::Caller;
use crate::error::ApiError;
use crate::extract::NamedPair;
use crate::routes::files::check_path;
use crate::routes::inside::running;
use crate::state::Shared;

/// How many times as large as other bodies one with a file may be.
const WITH_A_FILE: usize = 32;

/// What is at a path.
enum Found {
    File(ByteStream),
    Directory(Vec<Entry>),
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    name: String,
    kind: &'static str,
}

#[derive(Serialize)]
struct Listing {
    files: Vec<Entry>,
}

/// Read a file, or list a directory
///
/// The whole path is one segment.
#[utoipa::path(get, path = "/compat/freestyle/v1/vms/{machine}/files/{filepath}", responses((status = 200)))]
pub(crate) async fn read(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(given, path): NamedPair,
    AsUser(user): AsUser,
) -> Answer<Response> {
    check_path(&path)?;
    let machine = running(&api, &caller, &given).await?;
    let found = match somebody_else(&caller, &machine, user)? {
        Some(user) => acting::read(&api, machine.id, user, path).await?,
        None => match api.access.read_file(machine.id, &path).await {
            Ok((_, content)) => Found::File(content),
            // Something else than a file: what listing it says is what there is to say.
            Err(error) if error.code == Code::PathConflict => {
                let items = api.access.list_directory(machine.id, &path).await.map_err(ApiError::from)?;
                Found::Directory(
                    items.into_iter().map(|FileInfo { name, kind, .. }| Entry { name, kind: called(kind) }).collect(),
                )
            }
            Err(error) => return Err(ApiError::from(error).into()),
        },
    };
    Ok(match found {
        Found::File(content) => {
            let body = ResponseBody::from_stream(encode::as_json(content));
            ([(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Found::Directory(files) => Json(Listing { files }).into_response(),
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    content: String,
    encoding: Option<String>,
}

/// Write a file
///
/// With the directories above it.
#[utoipa::path(put, path = "/compat/freestyle/v1/vms/{machine}/files/{filepath}", responses((status = 200)))]
pub(crate) async fn write(
    State(api): State<Shared>,
    caller: Caller,
    NamedPair(given, path): NamedPair,
    AsUser(user): AsUser,
    request: Request,
) -> Answer<Json<Value>> {
    check_path(&path)?;
    let machine = running(&api, &caller, &given).await?;
    let user = somebody_else(&caller, &machine, user)?;
    let Body { value, bytes, place } = Body::<Content, WITH_A_FILE>::from_request(request, &api).await?;
    drop(bytes);
    let content = decode(value.content, value.encoding.as_deref())?;
    match user {
        Some(user) => acting::write(&api, machine.id, user, path, content).await?,
        None => {
            let options = WriteOptions { mode: None, parents: true };
            let content = futures::stream::iter([Ok(content)]).boxed();
            let written = api.access.write_file(machine.id, &path, options, content);
            match tokio::time::timeout(api.config.operation_deadline, written).await {
                Ok(written) => written.map(drop).map_err(ApiError::from)?,
                Err(_) => return Err(too_slow().into()),
            }
        }
    }
    drop(place);
    Ok(Json(json!({})))
}

/// The user that the call acts as, unless that is root, as whom files are read and written by themselves.
fn somebody_else(caller: &Caller, machine: &Machine, asked: Option<String>) -> Result<Option<String>, ApiError> {
    let user = caller.act_as(machine, Verb::Files, asked)?;
    Ok(user.filter(|user| user != LinuxUser::ROOT))
}

fn too_slow() -> ApiError {
    ApiError::new(Code::DeadlineExceeded, "the machine took too long: see whether it was done before trying again")
}

/// The client tells directories from all the rest.
fn called(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Directory => "directory",
        FileKind::File | FileKind::Symlink | FileKind::Other => "file",
    }
}
