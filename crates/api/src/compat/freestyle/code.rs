//! The codes that the client knows, as far as Warren says them.

macro_rules! codes {
    ($($variant:ident = $text:literal, $status:literal;)*) => {
        /// A code of the client's list, with its HTTP status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Said { $($variant),* }

        impl Said {
            #[cfg(test)]
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status),* }
            }
        }
    };
}

codes! {
    AccessDenied = "ACCESS_DENIED", 403;
    AlreadyInProgress = "ALREADY_IN_PROGRESS", 409;
    BadRequest = "BAD_REQUEST", 400;
    Conflict = "CONFLICT", 409;
    CreateSnapshotBadRequest = "CREATE_SNAPSHOT_BAD_REQUEST", 400;
    CreateVmBadRequest = "CREATE_VM_BAD_REQUEST", 400;
    CustomSizingNotAllowed = "CUSTOM_SIZING_NOT_ALLOWED", 403;
    DomainAlreadyExists = "DOMAIN_ALREADY_EXISTS", 400;
    DomainOwnershipNotVerified = "DOMAIN_OWNERSHIP_NOT_VERIFIED", 401;
    ExecTimedOut = "EXEC_TIMED_OUT", 408;
    ExecutionError = "EXECUTION_ERROR", 500;
    FailedToCreateVerificationCode = "FAILED_TO_CREATE_VERIFICATION_CODE", 400;
    FailedToProvisionCertificate = "FAILED_TO_PROVISION_CERTIFICATE", 422;
    FileNotFound = "FILE_NOT_FOUND", 404;
    FilesBadRequest = "FILES_BAD_REQUEST", 400;
    Forbidden = "FORBIDDEN", 403;
    IdentityNotFound = "IDENTITY_NOT_FOUND", 404;
    InternalError = "INTERNAL_ERROR", 500;
    InvalidBase64Content = "INVALID_BASE64_CONTENT", 400;
    InvalidDomain = "INVALID_DOMAIN", 400;
    InvalidDomains = "INVALID_DOMAINS", 400;
    InvalidFilePath = "INVALID_FILE_PATH", 400;
    InvalidGitRepoSpecError = "INVALID_GIT_REPO_SPEC_ERROR", 400;
    InvalidParameters = "INVALID_PARAMETERS", 400;
    InvalidSessionId = "INVALID_SESSION_ID", 400;
    JobNotFound = "JOB_NOT_FOUND", 404;
    LimitExceeded = "LIMIT_EXCEEDED", 403;
    NoDefaultSnapshotAvailable = "NO_DEFAULT_SNAPSHOT_AVAILABLE", 404;
    NoLocalStorageCapacity = "NO_LOCAL_STORAGE_CAPACITY", 503;
    NotFound = "NOT_FOUND", 404;
    PermissionAlreadyExists = "PERMISSION_ALREADY_EXISTS", 409;
    ResizeFailed = "RESIZE_FAILED", 500;
    RootfsStorageQuotaExceeded = "ROOTFS_STORAGE_QUOTA_EXCEEDED", 403;
    ServiceUnavailable = "SERVICE_UNAVAILABLE", 503;
    SessionAlreadyExists = "SESSION_ALREADY_EXISTS", 409;
    SessionCapReached = "SESSION_CAP_REACHED", 429;
    SessionExpired = "SESSION_EXPIRED", 410;
    SessionNotFound = "SESSION_NOT_FOUND", 404;
    SessionUserMismatch = "SESSION_USER_MISMATCH", 403;
    SnapshotNotFound = "SNAPSHOT_NOT_FOUND", 404;
    SnapshotVmBadRequest = "SNAPSHOT_VM_BAD_REQUEST", 400;
    SuspendFailedVmResumed = "SUSPEND_FAILED_VM_RESUMED", 500;
    TimeoutLimitExceeded = "TIMEOUT_LIMIT_EXCEEDED", 403;
    Unauthorized = "UNAUTHORIZED", 401;
    UserNotFound = "USER_NOT_FOUND", 404;
    ValidationError = "VALIDATION_ERROR", 400;
    VerificationFailed = "VERIFICATION_FAILED", 400;
    VerificationNotFound = "VERIFICATION_NOT_FOUND", 404;
    VmAccessDenied = "VM_ACCESS_DENIED", 403;
    VmExitDuringStart = "VM_EXIT_DURING_START", 500;
    VmLimitExceeded = "VM_LIMIT_EXCEEDED", 403;
    VmNotFound = "VM_NOT_FOUND", 404;
    VmNotRunning = "VM_NOT_RUNNING", 400;
    VmPermissionNotFound = "VM_PERMISSION_NOT_FOUND", 404;
    VmStartTimeout = "VM_START_TIMEOUT", 504;
    VpcForkUnsupported = "VPC_FORK_UNSUPPORTED", 400;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_knows_every_code_with_its_status() {
        let known = include_str!("../../../tests/freestyle/codes.json");
        let known: std::collections::BTreeMap<String, u16> = serde_json::from_str(known).unwrap();
        assert_eq!(known.len(), 327);
        for code in Said::ALL {
            assert_eq!(known.get(code.as_str()), Some(&code.status()), "{}", code.as_str());
        }
    }
}
