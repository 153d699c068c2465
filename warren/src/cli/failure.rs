//! How a command ends when it does not end well: one exit status and one message.

use std::io;

use serde_json::Value;
use warren_model::Problem;

use super::advice::in_commands;
use super::render::printable;
use crate::client::error::{ClientError, Refusal};

/// Done.
pub const DONE: i32 = 0;
/// Refused or failed.
pub const FAILED: i32 = 1;
/// Wrong usage, as clap has it.
pub const WRONG_USAGE: i32 = 2;
/// The server was not reached.
pub const NOT_REACHED: i32 = 3;
/// Nothing failed, and what was asked about is not so yet.
pub const NOT_YET: i32 = 4;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Something on this machine, such as a file that cannot be read.
    #[error("{what}: {source}")]
    Local {
        what: String,
        #[source]
        source: io::Error,
    },
    /// A sentence that says it all.
    #[error("{0}")]
    Said(String),
    /// What a host command (`warren up`, …) reports.
    #[cfg_attr(not(feature = "server"), allow(dead_code))]
    #[error("{0:#}")]
    Host(anyhow::Error),
    /// Everything has been said; only the exit status is left.
    #[error("exit status {0}")]
    Silent(i32),
}

impl Failure {
    pub fn local(what: impl Into<String>, source: io::Error) -> Self {
        Self::Local { what: what.into(), source }
    }

    /// A failed write to stdout. Whoever reads it may stop reading: that is no failure.
    pub fn stdout(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe => Self::Silent(DONE),
            _ => Self::local("cannot write to stdout", source),
        }
    }

    pub fn exit_status(&self) -> i32 {
        match self {
            Self::Usage(_) | Self::Client(ClientError::Usage(_)) => WRONG_USAGE,
            Self::Client(ClientError::NotReached { .. }) => NOT_REACHED,
            Self::Silent(status) => *status,
            Self::Client(_) | Self::Local { .. } | Self::Said(_) | Self::Host(_) => FAILED,
        }
    }

    /// The stable code of a refusal.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Client(ClientError::Refused(refusal)) => Some(refusal.code()),
            _ => None,
        }
    }

    /// What goes to stderr: a problem document with `--json`, else a sentence. Nothing when all has been said.
    pub fn report(&self, json: bool) -> Option<String> {
        match self {
            Self::Silent(_) => None,
            _ if json => Some(self.document().to_string()),
            _ => Some(format!("warren: {}", self.sentence())),
        }
    }

    fn sentence(&self) -> String {
        match self.code() {
            Some("unauthorized") => {
                "the key is missing or not valid: give one with --key or WARREN_API_KEY (unauthorized)".to_owned()
            }
            Some(_) => lines(&in_commands(&self.to_string())),
            None => lines(&self.to_string()),
        }
    }

    fn document(&self) -> Value {
        let made_up = |code, title| Refusal::made_up(code, title, None, &self.to_string()).document;
        match self {
            Self::Client(ClientError::Refused(refusal)) => refusal.document.clone(),
            Self::Client(ClientError::NotReached { .. }) => made_up("server_not_reached", "The server was not reached"),
            Self::Client(ClientError::BrokenOff(_)) => made_up("connection_broken", "The connection broke off"),
            Self::Client(ClientError::NotUnderstood(_)) => made_up("unexpected_answer", "The answer is not understood"),
            Self::Usage(_) | Self::Client(ClientError::Usage(_)) => made_up("wrong_usage", "Wrong usage"),
            Self::Host(error) => match error.downcast_ref::<Problem>() {
                Some(problem) => Refusal::from(problem.clone()).document,
                None => made_up("failed", "It failed"),
            },
            Self::Local { .. } | Self::Said(_) | Self::Silent(_) => made_up("failed", "It failed"),
        }
    }
}

/// What may have lines of another program, fit for a terminal: all but the first stand apart.
fn lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::Code;

    fn refused(code: Code) -> Failure {
        ClientError::from(Problem::new(code, "Say which.")).into()
    }

    #[test]
    fn each_kind_of_failure_has_its_exit_status() {
        assert_eq!(refused(Code::NotFound).exit_status(), 1);
        assert_eq!(Failure::Usage(String::new()).exit_status(), 2);
        let error = ClientError::NotReached { target: "t".into(), hint: "h".into(), source: "refused".into() };
        assert_eq!(Failure::from(error).exit_status(), 3);
        assert_eq!(Failure::stdout(io::ErrorKind::BrokenPipe.into()).exit_status(), 0);
        assert!(Failure::stdout(io::ErrorKind::BrokenPipe.into()).report(false).is_none());
    }

    #[test]
    fn with_json_the_problem_document_is_reported_as_it_came() {
        let report = refused(Code::NetworkNotEmpty).report(true).unwrap();
        let document: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(document["code"], "network_not_empty");
        assert_eq!(document["status"], 409);
        assert_eq!(document["detail"], "Say which.");
    }

    #[test]
    fn a_person_is_told_commands_and_a_program_what_the_server_said() {
        let failure = Failure::from(ClientError::from(Problem::new(Code::NotFound, "none: see GET /v1/machines")));
        assert_eq!(failure.report(false).unwrap(), "warren: none: see `warren machine ls` (not_found)");
        assert!(failure.report(true).unwrap().contains("none: see GET /v1/machines"));
    }

    #[test]
    fn a_refusal_cannot_steer_the_terminal() {
        let failure = Failure::from(ClientError::from(Problem::new(Code::ImageInvalid, "cksum for \u{1b}[2J")));
        assert_eq!(failure.report(false).unwrap(), "warren: cksum for \u{241b}[2J (image_invalid)");
    }

    #[test]
    fn what_a_build_wrote_stands_line_by_line_below_what_failed() {
        let said = "the image debian could not be built: `mmdebstrap` said\nI: one\nE: \u{1b}[2Jtwo\nand failed (exit status: 25)";
        let problem = Problem::new(Code::ImageBuildFailed, said);
        let by_server = Failure::from(ClientError::from(problem.clone())).report(false).unwrap();
        insta::assert_snapshot!(by_server, @r"
        warren: the image debian could not be built: `mmdebstrap` said
          I: one
          E: ␛[2Jtwo
          and failed (exit status: 25) (image_build_failed)
        ");
        assert_eq!(Failure::Host(problem.into()).report(false).unwrap(), by_server);
    }

    #[test]
    fn a_missing_key_is_answered_with_where_to_put_one() {
        let report = refused(Code::Unauthorized).report(false).unwrap();
        assert!(report.contains("WARREN_API_KEY"), "{report}");
    }
}
