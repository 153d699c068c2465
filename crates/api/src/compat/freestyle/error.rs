//! How this dialect refuses: `{"code","error","message","description"}` with a code that the client knows.
//!
//! A code that it does not know is worse than a wrong one: on that, on a body that is not JSON and on a dropped
//! connection the client repeats a create every two seconds for ever.

use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::json;
use warren_model::{Code, Problem};
use warren_store::StoreError;

use super::code::Said;
use super::place::Place;
use crate::error::ApiError;

/// A refusal on its way out, and how it is said where that does not follow from its code.
pub(crate) struct Refusal {
    error: ApiError,
    said: Option<Said>,
}

/// What handlers of this dialect return.
pub(crate) type Answer<T> = Result<T, Refusal>;

impl Refusal {
    pub fn new(code: Code, said: Said, detail: impl Into<String>) -> Self {
        Self { error: ApiError::new(code, detail), said: Some(said) }
    }

    /// What Warren does not do.
    pub fn unsupported(said: Said, detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, said, detail)
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self { error, said: None }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        ApiError::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.error.into_response();
        if let Some(said) = self.said {
            response.extensions_mut().insert(said);
        }
        response
    }
}

/// Says an error of the routes' own in another way than its code alone would be said.
pub(crate) trait Saying<T> {
    fn not_found_as(self, said: Said) -> Answer<T>;
}

impl<T> Saying<T> for crate::error::Answer<T> {
    fn not_found_as(self, said: Said) -> Answer<T> {
        self.map_err(|error| {
            let said = (error.problem.code == Code::NotFound).then_some(said);
            Refusal { error, said }
        })
    }
}

/// The answer that says a problem; its headers stay.
pub(crate) fn render(
    problem: &Problem,
    said: Option<Said>,
    place: Place,
    headers: &mut HeaderMap,
) -> (StatusCode, Vec<u8>) {
    let said = said.unwrap_or_else(|| translate(problem.code, place));
    let detail = match problem.code {
        Code::RouteNotFound | Code::MethodNotAllowed => "Warren has no such call: docs/freestyle.md lists those it has",
        _ => &problem.detail,
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let code = said.as_str();
    // Its types call the code `error`, its code reads `code`, and what it does not know it shows by `description`.
    let body = json!({ "code": code, "error": code, "message": detail, "description": detail });
    let status = StatusCode::from_u16(said.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, body.to_string().into_bytes())
}

/// How a code is said in a place.
fn translate(code: Code, place: Place) -> Said {
    match code {
        Code::Unauthorized => Said::Unauthorized,
        Code::Forbidden if place.is_about_a_machine() => Said::VmAccessDenied,
        Code::Forbidden | Code::TagNotOwned | Code::RangeNotPermitted | Code::PolicyDenied => Said::Forbidden,
        Code::NotFound if place.is_about_a_machine() => Said::VmNotFound,
        Code::NotFound if place == Place::Identity => Said::IdentityNotFound,
        Code::NotFound if place == Place::Snapshots => Said::SnapshotNotFound,
        Code::NotFound | Code::RouteNotFound | Code::MethodNotAllowed => Said::NotFound,
        Code::ImageNotFound => Said::NoDefaultSnapshotAvailable,
        Code::ServerBusy | Code::NotReady | Code::AgentUnavailable | Code::VpnUnavailable => Said::ServiceUnavailable,
        Code::DeadlineExceeded => match place {
            Place::Create | Place::Start => Said::VmStartTimeout,
            Place::Exec => Said::ExecTimedOut,
            _ => Said::ServiceUnavailable,
        },
        Code::NameInUse | Code::AddressTaken | Code::ForwardingRequired | Code::PublicKeyInUse => Said::Conflict,
        Code::QuotaExceeded | Code::NetworkFull | Code::NetworksExhausted if place == Place::Create => {
            Said::VmLimitExceeded
        }
        Code::QuotaExceeded | Code::NetworkFull | Code::NetworksExhausted | Code::SessionLimit => Said::LimitExceeded,
        Code::LimitUnavailable => Said::CustomSizingNotAllowed,
        Code::MachineNotRunning => Said::VmNotRunning,
        Code::MachineBusy => Said::AlreadyInProgress,
        Code::MachineFailed if matches!(place, Place::Create | Place::Start) => Said::VmExitDuringStart,
        Code::CommandNotFound | Code::CommandNotExecutable | Code::DirectoryNotFound => Said::ExecutionError,
        Code::UserNotFound => Said::UserNotFound,
        Code::PathInvalid => Said::InvalidFilePath,
        Code::PathNotFound => Said::FileNotFound,
        Code::PathDenied => Said::AccessDenied,
        Code::DomainTaken => Said::DomainAlreadyExists,
        Code::DomainNotVerified => Said::DomainOwnershipNotVerified,
        Code::DomainInvalid => Said::InvalidDomain,
        Code::IngressUnavailable => Said::ServiceUnavailable,
        Code::MachineDiskFull => Said::RootfsStorageQuotaExceeded,
        Code::HostDiskFull => Said::NoLocalStorageCapacity,
        other if other.status() < 500 => bad_request(place),
        _ => Said::InternalError,
    }
}

fn bad_request(place: Place) -> Said {
    match place {
        Place::Create => Said::CreateVmBadRequest,
        Place::Files => Said::FilesBadRequest,
        Place::Identity => Said::ValidationError,
        Place::Snapshots => Said::CreateSnapshotBadRequest,
        Place::Domain => Said::InvalidDomain,
        Place::Start | Place::Exec | Place::Pty | Place::Machine | Place::Vpc => Said::InvalidParameters,
        Place::Other => Said::BadRequest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_stays_a_fault_and_a_mistake_a_mistake() {
        for code in Code::ALL {
            for place in Place::ALL {
                let said = translate(*code, place);
                let a_command_that_cannot_run = said == Said::ExecutionError;
                if code.status() < 500 && !a_command_that_cannot_run {
                    assert!(said.status() < 500, "{code} in {place:?} is {}", said.as_str());
                }
                if code.status() >= 500 && *code != Code::MachineDiskFull && said != Said::ExecTimedOut {
                    assert!(said.status() >= 500, "{code} in {place:?} is {}", said.as_str());
                }
            }
        }
    }

    #[test]
    fn the_same_code_is_said_as_the_place_asks() {
        assert_eq!(translate(Code::NotFound, Place::Exec), Said::VmNotFound);
        assert_eq!(translate(Code::NotFound, Place::Create), Said::NotFound);
        assert_eq!(translate(Code::BodyTooLarge, Place::Create), Said::CreateVmBadRequest);
        assert_eq!(translate(Code::Forbidden, Place::Vpc), Said::Forbidden);
    }
}
