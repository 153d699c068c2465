//! Which part of the dialect a request is about, as far as it decides how a refusal is said.

use http::Method;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// `POST /v1/vms`
    Create,
    /// `POST /v1/vms/{id}/start`
    Start,
    Exec,
    Files,
    Pty,
    Snapshots,
    /// Everything else about a machine.
    Machine,
    Vpc,
    Identity,
    Domain,
    Other,
}

impl Place {
    #[cfg(test)]
    pub const ALL: [Self; 11] = [
        Self::Create,
        Self::Start,
        Self::Exec,
        Self::Files,
        Self::Pty,
        Self::Snapshots,
        Self::Machine,
        Self::Vpc,
        Self::Identity,
        Self::Domain,
        Self::Other,
    ];

    /// Of a path without the prefix.
    pub fn of(method: &Method, path: &str) -> Self {
        let mut parts = path.split('/').skip(1);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("v1"), Some("vms"), None, _) if method == Method::POST => Self::Create,
            (Some("v1"), Some("vms"), Some("snapshots"), _) => Self::Snapshots,
            (Some("v1"), Some("vms"), _, Some("start")) => Self::Start,
            (Some("v1"), Some("vms"), _, Some("exec-await")) => Self::Exec,
            (Some("v1"), Some("vms"), _, Some("files")) => Self::Files,
            (Some("v1"), Some("vms"), _, Some("pty")) => Self::Pty,
            (Some("v1"), Some("vms"), ..) => Self::Machine,
            (Some("v1"), Some("vpcs"), ..) => Self::Vpc,
            (Some("identity"), ..) => Self::Identity,
            (Some("domains"), ..) => Self::Domain,
            _ => Self::Other,
        }
    }

    /// Whether the thing in the path is a machine.
    pub fn is_about_a_machine(self) -> bool {
        matches!(self, Self::Start | Self::Exec | Self::Files | Self::Pty | Self::Machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_in_the_place_that_its_segments_say() {
        let of = |method: Method, path: &str| Place::of(&method, path);
        assert_eq!(of(Method::POST, "/v1/vms"), Place::Create);
        assert_eq!(of(Method::GET, "/v1/vms"), Place::Machine);
        assert_eq!(of(Method::GET, "/v1/vms/m/files/%2Fa"), Place::Files);
        assert_eq!(of(Method::GET, "/v1/vms/m/pty/sessions"), Place::Pty);
        assert_eq!(of(Method::GET, "/v1/vms/snapshots/sc-1"), Place::Snapshots);
        assert_eq!(of(Method::POST, "/v1/vpcs"), Place::Vpc);
        assert_eq!(of(Method::GET, ""), Place::Other);
    }
}
