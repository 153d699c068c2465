//! Running a probe in a machine: one process of the agent's own program, spoken to in lines.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use warren_guest::protocol;
use warren_model::MemberId;
use warren_model::access::{ExecCommand, ExecInput, ExecOutput, ExecSession, MachineAccess};
use warren_model::probe::{self, Arrivals, Attempts, LONGEST_LINE, Listening, MOST_ATTEMPTS, Observations, Setup};

/// How long a probe may take to start.
const STARTING: Duration = Duration::from_secs(20);
/// How long it may take to tell what came in.
const COLLECTING: Duration = Duration::from_secs(10);
/// How much of what a probe writes to stderr is told.
const COMPLAINT: usize = 300;

/// Why a machine was not probed, in words for a report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ProbeFailure(pub String);

/// Starts probes.
#[async_trait]
pub(crate) trait Prober: Send + Sync {
    async fn start(&self, machine: MemberId, setup: &Setup) -> Result<(Listening, Box<dyn Probe>), ProbeFailure>;
}

/// A probe that listens. Dropping it ends it.
#[async_trait]
pub(crate) trait Probe: Send {
    async fn attempt(&mut self, attempts: &Attempts) -> Result<Observations, ProbeFailure>;
    /// Ends it, and tells what came in.
    async fn collect(self: Box<Self>) -> Result<Arrivals, ProbeFailure>;
}

/// Probes over the machines' agents.
pub(crate) struct InMachines(pub Arc<dyn MachineAccess>);

#[async_trait]
impl Prober for InMachines {
    async fn start(&self, member: MemberId, setup: &Setup) -> Result<(Listening, Box<dyn Probe>), ProbeFailure> {
        let machine = member.machine().ok_or_else(|| ProbeFailure("it is no machine".to_owned()))?;
        let command = ExecCommand {
            argv: vec![protocol::INIT.to_owned(), probe::COMMAND.to_owned()],
            env: Default::default(),
            cwd: Some("/".to_owned()),
            user: None,
            timeout_ms: Some(setup.lifetime_ms),
            terminal: None,
            settle: false,
        };
        let starting = async {
            let session = self.0.exec(machine, command).await.map_err(|error| ProbeFailure(error.detail))?;
            let mut running = Running { session, text: BytesMut::new(), complaint: Vec::new() };
            running.say(setup).await?;
            let listening: Listening = running.answer().await?;
            Ok((listening, running))
        };
        let (listening, running) = timeout(STARTING, starting)
            .await
            .map_err(|_| ProbeFailure("its probe did not start in time".to_owned()))??;
        Ok((listening, Box::new(running)))
    }
}

struct Running {
    session: ExecSession,
    /// What came and is no whole line yet.
    text: BytesMut,
    complaint: Vec<u8>,
}

#[async_trait]
impl Probe for Running {
    async fn attempt(&mut self, attempts: &Attempts) -> Result<Observations, ProbeFailure> {
        self.say(attempts).await?;
        // The probe bounds each attempt; a round of many takes several of these bounds.
        let rounds = u64::try_from(MOST_ATTEMPTS / 256).unwrap_or(u64::MAX).saturating_add(3);
        let longest = Duration::from_millis(probe::PATIENCE_MS.saturating_mul(rounds));
        let answer = timeout(longest, self.answer::<Observations>()).await;
        let observations = answer.map_err(|_| ProbeFailure("its probe did not come to an end".to_owned()))??;
        if observations.outcomes.len() != attempts.attempts.len() {
            return Err(ProbeFailure("its probe answered for other attempts than it was asked to make".to_owned()));
        }
        Ok(observations)
    }

    async fn collect(mut self: Box<Self>) -> Result<Arrivals, ProbeFailure> {
        self.input(ExecInput::StdinClosed).await?;
        let answer = timeout(COLLECTING, self.answer()).await;
        answer.map_err(|_| ProbeFailure("its probe did not tell what came in".to_owned()))?
    }
}

impl Running {
    async fn say(&self, request: &impl Serialize) -> Result<(), ProbeFailure> {
        let mut line = serde_json::to_vec(request).map_err(|error| ProbeFailure(error.to_string()))?;
        line.push(b'\n');
        self.input(ExecInput::Stdin(Bytes::from(line))).await
    }

    async fn input(&self, input: ExecInput) -> Result<(), ProbeFailure> {
        let gone = |_| ProbeFailure("its probe ended too early".to_owned());
        self.session.input.send(input).await.map_err(gone)
    }

    /// The next line, read as this. What a machine says is bounded and never trusted to be well-formed.
    async fn answer<T: DeserializeOwned>(&mut self) -> Result<T, ProbeFailure> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line = self.text.split_to(end + 1);
                return serde_json::from_slice(&line)
                    .map_err(|_| ProbeFailure("its probe says what no probe says".to_owned()));
            }
            if self.text.len() > LONGEST_LINE {
                return Err(ProbeFailure("its probe says more than a probe says".to_owned()));
            }
            match self.session.output.recv().await {
                Some(ExecOutput::Stdout(bytes)) => self.text.extend_from_slice(&bytes),
                Some(ExecOutput::Stderr(bytes)) => {
                    let room = COMPLAINT.saturating_sub(self.complaint.len());
                    self.complaint.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                Some(ExecOutput::Exit(exit)) => return Err(self.ended(exit.status)),
                None => return Err(ProbeFailure("the connection to its agent broke off".to_owned())),
            }
        }
    }

    fn ended(&self, status: i32) -> ProbeFailure {
        let said = String::from_utf8_lossy(&self.complaint);
        // This is how an agent from before there were probes refuses to be run again.
        if status == 2 && said.contains("first process of a machine") {
            return ProbeFailure("its agent is older than the audit: restart the machine".to_owned());
        }
        let said: String = said.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        ProbeFailure(format!("its probe ended with status {status}: {said}"))
    }
}
