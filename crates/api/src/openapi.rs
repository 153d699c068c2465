//! The OpenAPI 3.1 document, put together from the same table as the router.
//!
//! It is committed as `openapi/warren.json`, and a test compares. To write it anew after a change:
//! `UPDATE_OPENAPI=1 cargo test -p warren-api --test openapi`.

use std::sync::OnceLock;

use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ContentBuilder, Object, OpenApi, Ref, RefOr, Required, ResponseBuilder, Schema, Type, schema::SchemaType,
};
use utoipa::{OpenApi as _, ToSchema};
use warren_model::problem::TextError;
use warren_model::wire::{ExecControl, ExecEvent, ImageEvent};
use warren_model::{Code, Problem};

use crate::guard::ACCOUNT_HEADER;
use crate::table::{self, CallerKind, Row};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Warren",
        version = "1",
        description = "Private networks for AI agents. JSON in snake_case; unknown fields are refused. A thing is \
                       named by its id or its name. Refusals are problem documents (RFC 9457) with a stable `code`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(Problem, TextError, Code, ExecControl, ExecEvent, ImageEvent)),
    tags(
        (name = "server"), (name = "accounts"), (name = "keys"), (name = "identities"), (name = "networks"), (name = "sessions"),
        (name = "machines"),
        (name = "exec"), (name = "files"), (name = "images"), (name = "events"), (name = "domains"),
        (name = "policy"), (name = "audit"),
    )
)]
struct Base;

/// Requests whose body may be left out, because nothing in it has to be said.
const BODY_OPTIONAL: [&str; 11] = [
    "create_machine",
    "create_key",
    "update_machine",
    "test_policy",
    "run_audit",
    "create_identity",
    "update_identity",
    "create_token",
    "grant_machine",
    "grant_network",
    "open_session",
];

/// The document of the whole API. What speaks like other products is described by them.
pub fn openapi() -> OpenApi {
    let mut document = Base::openapi();
    let mut components = document.components.take().unwrap_or_default();
    for route in table::all().filter(|route| route.row.is_native()) {
        let (schemas, paths, _) = (route.handler)();
        components.schemas.extend(schemas);
        for (path, mut item) in paths.paths {
            for operation in operations(&mut item) {
                complete(operation, route.row);
            }
            match document.paths.paths.get_mut(&path) {
                Some(known) => known.merge_operations(item),
                None => {
                    document.paths.paths.insert(path, item);
                }
            }
        }
    }
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let header = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
    components.security_schemes.insert("bearer".to_owned(), RefOr::T(bearer));
    components.security_schemes.insert("key".to_owned(), RefOr::T(header));
    document.components = Some(components);
    document
}

/// The document as it is served and committed.
pub(crate) fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| openapi().to_pretty_json().map(|text| text + "\n").unwrap_or_default())
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete].into_iter().flatten()
}

/// Adds what every operation has: how it refuses, who may call it, and the headers it takes.
fn complete(operation: &mut Operation, row: &Row) {
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
    let refusal =
        ResponseBuilder::new().description("Refused or failed").content("application/problem+json", problem).build();
    operation.responses.responses.insert("default".to_owned(), RefOr::T(refusal));

    let mut headers = Vec::new();
    if row.allows(CallerKind::Nobody) {
        operation.security = Some(Vec::new());
    } else {
        let schemes = ["bearer", "key"].map(|scheme| SecurityRequirement::new(scheme, Vec::<String>::new()));
        operation.security = Some(schemes.into());
        headers.push(header(
            ACCOUNT_HEADER,
            "^[a-z0-9_-]{1,63}$",
            "Id or name of the account to act in; for the root key.",
        ));
    }
    let id = operation.operation_id.as_deref().unwrap_or_default();
    if row.method == "POST" && id.starts_with("create_") {
        headers.push(header(
            "Idempotency-Key",
            "^[!-~]{1,255}$",
            "1 to 255 visible ASCII characters. The same request with the same key creates once, for 24 hours.",
        ));
    }
    if BODY_OPTIONAL.contains(&id)
        && let Some(RefOr::T(body)) = &mut operation.request_body
    {
        body.required = Some(Required::False);
    }
    operation.parameters.get_or_insert_default().extend(headers.into_iter().map(RefOr::T));
}

fn header(name: &str, pattern: &str, description: &str) -> Parameter {
    let mut text = Object::with_type(SchemaType::Type(Type::String));
    text.pattern = Some(pattern.to_owned());
    let text = Schema::Object(text);
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(text))
        .build()
}
