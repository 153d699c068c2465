//! The one thread that writes.
//!
//! It takes the jobs that wait, does each in a savepoint of one transaction, commits that with one sync of the disk,
//! shows the new revisions to watchers and then answers. A job that fails is undone alone. When the transaction as a
//! whole fails, each job is tried again in one of its own, so that nobody gets an error that somebody else caused.
//!
//! Between the groups it ends leases whose time is over, and does one bounded step of keeping the history short.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use super::command::{Command, HistoryLimit, Sweep, Swept};
use super::draft::Draft;
use super::error::failed;
use super::fail;
use super::file::Claim;
use super::lease::{Clocks, End};
use super::read::{self, Ledger};
use super::watch::{Feed, Head};
use crate::StoreError;

/// How many jobs share one transaction.
const GROUP: usize = 128;
/// When work that nobody waits for is tried again after it failed.
const RETRY: Duration = Duration::from_secs(1);

/// A command with the place for its answer.
pub(super) trait Job: Send {
    /// Does the work and keeps the answer until [`Job::answer`].
    fn apply(&mut self, draft: &mut Draft<'_>) -> Result<(), StoreError>;
    /// Makes this error the answer.
    fn refuse(&mut self, error: StoreError);
    fn answer(&mut self);
}

pub(super) struct Asked<C: Command> {
    command: C,
    outcome: Option<Result<C::Answer, StoreError>>,
    reply: Option<oneshot::Sender<Result<C::Answer, StoreError>>>,
}

impl<C: Command> Asked<C> {
    pub fn new(command: C) -> (Self, oneshot::Receiver<Result<C::Answer, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        (Self { command, outcome: None, reply: Some(reply) }, answer)
    }

    /// Work of the writer's own.
    fn own(command: C) -> Self {
        Self { command, outcome: None, reply: None }
    }
}

impl<C: Command> Job for Asked<C> {
    fn apply(&mut self, draft: &mut Draft<'_>) -> Result<(), StoreError> {
        self.outcome = Some(Ok(self.command.apply(draft)?));
        Ok(())
    }

    fn refuse(&mut self, error: StoreError) {
        self.outcome = Some(Err(error));
    }

    fn answer(&mut self) {
        if let (Some(reply), Some(outcome)) = (self.reply.take(), self.outcome.take()) {
            // Whoever asked may be gone; what was done stays done.
            let _ = reply.send(outcome);
        }
    }
}

pub(super) struct Writer {
    connection: Connection,
    jobs: Receiver<Box<dyn Job>>,
    ledger: Ledger,
    clocks: Clocks,
    history: HistoryLimit,
    sweep_due: bool,
    /// How many changes were made since the last step of shortening the history.
    grown: u64,
    /// Nothing that nobody waits for is tried before.
    resting_until: Option<Instant>,
    feed: Arc<Feed>,
    head: watch::Sender<Head>,
    // Last, so that the file is given up only after the connection is closed.
    _claim: Claim,
}

impl Writer {
    /// # Errors
    /// When the file cannot be read.
    pub fn new(
        connection: Connection,
        claim: Claim,
        jobs: Receiver<Box<dyn Job>>,
        history: HistoryLimit,
        feed: Arc<Feed>,
    ) -> Result<(Self, watch::Receiver<Head>), StoreError> {
        let ledger = read::ledger(&connection).map_err(failed("read the ledger"))?;
        let clocks = Clocks::load(&connection)?;
        let (head, seen) = watch::channel(Head { revision: ledger.revision, oldest: ledger.oldest });
        let writer = Self {
            connection,
            jobs,
            ledger,
            clocks,
            history,
            sweep_due: true,
            grown: 0,
            resting_until: None,
            feed,
            head,
            _claim: claim,
        };
        Ok((writer, seen))
    }

    /// Works until the last sender of jobs is gone and its jobs are done.
    pub fn run(mut self) {
        loop {
            let first = match self.wait() {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.end_leases();
            if let Some(first) = first {
                self.serve(first);
            }
            self.sweep();
        }
    }

    /// The next job, or nothing when there is other work to do.
    fn wait(&self) -> Result<Box<dyn Job>, RecvTimeoutError> {
        let now = Instant::now();
        let own_work = if self.sweep_due { Some(now) } else { self.clocks.first_end() };
        match own_work.map(|due| self.resting_until.map_or(due, |rest| due.max(rest))) {
            Some(due) => self.jobs.recv_timeout(due.saturating_duration_since(now)),
            None => self.jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn serve(&mut self, first: Box<dyn Job>) {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(job) = self.jobs.try_recv()
        {
            group.push(job);
        }
        if let Err(error) = self.commit(group.iter_mut().map(Box::as_mut)) {
            if let [job] = group.as_mut_slice() {
                job.refuse(error);
            } else {
                for job in &mut group {
                    if let Err(error) = self.commit([job.as_mut()]) {
                        job.refuse(error);
                    }
                }
            }
        }
        for job in &mut group {
            job.answer();
        }
        fail::point("group-answered");
    }

    /// Ends some of the leases whose time is over, each in a revision of its own.
    fn end_leases(&mut self) {
        if self.is_resting() {
            return;
        }
        let ended = self.clocks.ended(Instant::now(), GROUP);
        if ended.is_empty() {
            return;
        }
        let mut jobs: Vec<_> = ended.into_iter().map(|lease| Asked::own(End { lease })).collect();
        let result = self
            .commit(jobs.iter_mut().map(|job| job as &mut (dyn Job + 'static)))
            .and_then(|()| jobs.into_iter().try_for_each(|job| job.outcome.unwrap_or(Ok(()))));
        if let Err(error) = result {
            self.rest("end leases", &error);
        }
    }

    /// Does one step of keeping the history short.
    fn sweep(&mut self) {
        if !self.sweep_due || self.is_resting() {
            return;
        }
        // Twice what was added, else a history could grow faster than it is shortened.
        let step = self.history.step.max(usize::try_from(self.grown * 2).unwrap_or(usize::MAX));
        let mut job = Asked::own(Sweep { limit: HistoryLimit { step, ..self.history } });
        let result =
            self.commit([&mut job as &mut (dyn Job + 'static)]).and_then(|()| job.outcome.unwrap_or(Ok(Swept::Clean)));
        match result {
            Ok(swept) => {
                self.sweep_due = swept == Swept::MoreToDo;
                self.grown = 0;
            }
            Err(error) => self.rest("shorten its history", &error),
        }
    }

    fn is_resting(&self) -> bool {
        self.resting_until.is_some_and(|until| Instant::now() < until)
    }

    fn rest(&mut self, what: &'static str, error: &StoreError) {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::warn!(%error, cause, "the store could not {what}; it will try again");
        self.resting_until = Some(Instant::now() + RETRY);
    }

    /// Does the jobs in one transaction and publishes what they changed. On an error none of them was done; else each
    /// has its answer.
    fn commit<'j>(&mut self, jobs: impl IntoIterator<Item = &'j mut (dyn Job + 'static)>) -> Result<(), StoreError> {
        if !self.connection.is_autocommit() {
            self.execute("ROLLBACK").map_err(failed("undo a transaction"))?;
        }
        self.execute("BEGIN IMMEDIATE").map_err(failed("begin a transaction"))?;
        fail::point("group-begun");
        let mut draft = Draft::new(&self.connection, self.ledger);
        let filled =
            fill(&mut draft, jobs).and_then(|()| if draft.ledger == self.ledger { Ok(()) } else { draft.close() });
        let Draft { ledger, commits, leases, .. } = draft;
        let committed = filled.and_then(|()| self.execute("COMMIT").map_err(failed("commit a transaction")));
        if let Err(error) = committed {
            // Most errors leave the transaction open; the worst of them end it.
            if !self.connection.is_autocommit()
                && let Err(error) = self.execute("ROLLBACK")
            {
                tracing::error!(%error, "the store could not undo a transaction; it will try again");
            }
            return Err(error);
        }
        fail::point("group-committed");
        self.sweep_due |= ledger.oldest != self.ledger.oldest
            || ledger.changes > self.history.kept.saturating_add(self.history.slack);
        self.grown += commits.iter().map(|commit| commit.changes.len() as u64).sum::<u64>();
        self.ledger = ledger;
        for event in leases {
            self.clocks.note(event);
        }
        self.feed.push(commits);
        let head = Head { revision: ledger.revision, oldest: ledger.oldest };
        self.head.send_if_modified(|seen| std::mem::replace(seen, head) != head);
        fail::point("group-published");
        Ok(())
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }
}

/// Does each job in a savepoint.
///
/// # Errors
/// Only those after which the transaction cannot go on; the others become the answer of their job.
fn fill<'j>(
    draft: &mut Draft<'_>,
    jobs: impl IntoIterator<Item = &'j mut (dyn Job + 'static)>,
) -> Result<(), StoreError> {
    let execute = |connection: &Connection, sql| connection.prepare_cached(sql)?.execute([]).map(drop);
    for job in jobs {
        execute(draft.connection, "SAVEPOINT job").map_err(failed("set a savepoint"))?;
        let mark = draft.mark();
        if let Err(error) = job.apply(draft) {
            if draft.connection.is_autocommit() {
                // SQLite gave up the whole transaction, with the work of the jobs before.
                return Err(error);
            }
            draft.back_to(mark);
            execute(draft.connection, "ROLLBACK TO job").map_err(failed("go back to a savepoint"))?;
            job.refuse(error);
        }
        execute(draft.connection, "RELEASE job").map_err(failed("release a savepoint"))?;
        fail::point("job-applied");
    }
    Ok(())
}
