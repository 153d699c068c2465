//! One terminal: its command, what it has shown last, and who is attached.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use warren_model::IdentityId;
use warren_model::access::{ExecInput, ExecOutput, TerminalSize};

/// Bytes of what was shown that are kept for those who attach later.
const SCROLLBACK: usize = 64 * 1024;
/// Pieces that wait for one who is attached.
const WAITING: usize = 64;

/// How long a session waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For one who is attached and does not read.
    pub slow: Duration,
    /// For somebody to attach.
    pub alone: Duration,
    /// Between two looks whether somebody is attached.
    pub look: Duration,
}

impl Patience {
    pub const USUAL: Self =
        Self { slow: Duration::from_secs(5), alone: Duration::from_secs(3600), look: Duration::from_secs(30) };
}

pub(crate) struct Session {
    pub id: String,
    user: String,
    /// Whose token opened it; `None` for a key.
    pub identity: Option<IdentityId>,
    exec: Option<String>,
    created_at: Timestamp,
    /// Empty until the command has started.
    input: OnceLock<mpsc::Sender<ExecInput>>,
    state: Mutex<State>,
    closed: CancellationToken,
    patience: Patience,
}

struct State {
    size: TerminalSize,
    shown: VecDeque<u8>,
    attached: Vec<Attached>,
    /// Since when nobody is attached.
    alone_since: Instant,
    next: u64,
    exit: Option<Exit>,
}

struct Attached {
    number: u64,
    size: TerminalSize,
    told: mpsc::Sender<Told>,
}

/// What one who is attached is told.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    Shown(Bytes),
    Exited(i32),
}

/// How a command ended; without a code where its machine was gone first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    pub code: Option<i32>,
    pub at: Timestamp,
}

/// A place among those who are attached.
pub(crate) struct Seat {
    pub number: u64,
    /// The last of what was shown before.
    pub before: Bytes,
    pub told: mpsc::Receiver<Told>,
}

impl Session {
    pub fn new(
        id: String,
        user: String,
        identity: Option<IdentityId>,
        exec: Option<String>,
        size: TerminalSize,
        now: Timestamp,
        patience: Patience,
    ) -> Arc<Self> {
        let state = State {
            size,
            shown: VecDeque::new(),
            attached: Vec::new(),
            alone_since: Instant::now(),
            next: 0,
            exit: None,
        };
        Arc::new(Self {
            id,
            user,
            identity,
            exec,
            created_at: now,
            input: OnceLock::new(),
            state: Mutex::new(state),
            closed: CancellationToken::new(),
            patience,
        })
    }

    pub fn begin(&self, input: mpsc::Sender<ExecInput>) {
        let _ = self.input.set(input);
    }

    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whether it is the one that is meant: a name is one of a user.
    pub fn is_called(&self, user: &str, id: &str) -> bool {
        self.user == user && self.id == id
    }

    pub fn exit(&self) -> Option<Exit> {
        self.state().exit
    }

    /// Ends the command.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// As the client lists it.
    pub fn view(&self) -> Value {
        let state = self.state();
        json!({
            "sessionId": self.id,
            "running": state.exit.is_none(),
            "exitCode": state.exit.and_then(|exit| exit.code),
            "exitedAtMs": state.exit.map(|exit| exit.at.as_millisecond()),
            "cols": state.size.cols,
            "rows": state.size.rows,
            "exec": self.exec,
            "createdAtMs": self.created_at.as_millisecond(),
            "attachedCount": state.attached.len(),
            "user": self.user,
            "suspended": false,
        })
    }

    /// Takes a place among those who are attached; `None` when the command has ended.
    pub fn sit_down(&self, size: TerminalSize) -> Option<Seat> {
        let mut state = self.state();
        if state.exit.is_some() {
            return None;
        }
        let (told, receiver) = mpsc::channel(WAITING);
        let number = state.next;
        state.next += 1;
        state.attached.push(Attached { number, size, told });
        // Under the same lock as the pieces, so that none is missed and none comes twice.
        let before: Vec<u8> = state.shown.iter().copied().collect();
        Some(Seat { number, before: before.into(), told: receiver })
    }

    pub fn stand_up(&self, number: u64) {
        self.state().leave(number);
    }

    /// Notes what size one who is attached has room for.
    pub fn resize(&self, number: u64, size: TerminalSize) {
        if let Some(attached) = self.state().attached.iter_mut().find(|attached| attached.number == number) {
            attached.size = size;
        }
    }

    /// What gives the terminal the size that everybody who is attached has room for; `None` where it has it.
    pub fn fitting(&self) -> Option<ExecInput> {
        let mut state = self.state();
        let rows = state.attached.iter().map(|attached| attached.size.rows).min()?;
        let cols = state.attached.iter().map(|attached| attached.size.cols).min()?;
        let fitting = TerminalSize { rows, cols };
        if state.size == fitting {
            return None;
        }
        state.size = fitting;
        Some(ExecInput::Resize(fitting))
    }

    /// Hands something to the command; waits until it takes it.
    pub async fn say(&self, input: ExecInput) {
        if let Some(sender) = self.input.get() {
            tokio::select! {
                _ = sender.send(input) => {}
                () = self.closed.cancelled() => {}
            }
        }
    }

    async fn tell(&self, piece: Bytes) {
        let everybody: Vec<_> = {
            let mut state = self.state();
            state.keep(&piece);
            state.attached.iter().map(|attached| (attached.number, attached.told.clone())).collect()
        };
        for (number, told) in everybody {
            let sent = tokio::time::timeout(self.patience.slow, told.send(Told::Shown(piece.clone()))).await;
            if !matches!(sent, Ok(Ok(()))) {
                // It can attach again, and is shown the last of what it missed.
                self.state().leave(number);
            }
        }
    }

    /// Tells everybody that it is over.
    pub async fn end(&self, code: Option<i32>) {
        let everybody = {
            let mut state = self.state();
            state.exit = Some(Exit { code, at: Timestamp::now() });
            state.shown = VecDeque::new();
            std::mem::take(&mut state.attached)
        };
        for attached in everybody {
            if let Some(code) = code {
                let _ = tokio::time::timeout(self.patience.slow, attached.told.send(Told::Exited(code))).await;
            }
        }
    }

    fn is_alone(&self) -> bool {
        let state = self.state();
        state.attached.is_empty() && state.alone_since.elapsed() > self.patience.alone
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, piece: &[u8]) {
        let piece = &piece[piece.len().saturating_sub(SCROLLBACK)..];
        let too_much = (self.shown.len() + piece.len()).saturating_sub(SCROLLBACK);
        self.shown.drain(..too_much);
        self.shown.extend(piece);
    }

    fn leave(&mut self, number: u64) {
        self.attached.retain(|attached| attached.number != number);
        self.alone_since = Instant::now();
    }
}

/// Moves what the command shows until it ends, or is ended: it goes with the receiver.
pub(super) async fn run(session: Arc<Session>, mut output: mpsc::Receiver<ExecOutput>, over: impl Future<Output = ()>) {
    let mut look = tokio::time::interval(session.patience.look);
    let move_all = async {
        loop {
            tokio::select! {
                item = output.recv() => match item {
                    Some(ExecOutput::Stdout(piece) | ExecOutput::Stderr(piece)) => session.tell(piece).await,
                    Some(ExecOutput::Exit(exit)) => return Some(exit.status),
                    None => return None,
                },
                _ = look.tick() => if session.is_alone() {
                    return None;
                },
            }
        }
    };
    let code = tokio::select! {
        code = move_all => code,
        () = session.closed.cancelled() => None,
        () = over => None,
    };
    drop(output);
    session.closed.cancel();
    session.end(code).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

    fn session() -> Arc<Session> {
        let little = Duration::from_millis(20);
        let patience = Patience { slow: little, alone: little, look: little / 4 };
        Session::new("a".into(), "root".into(), None, None, SIZE, Timestamp::UNIX_EPOCH, patience)
    }

    #[tokio::test]
    async fn who_attaches_later_is_shown_the_last_of_it_once() {
        let session = session();
        session.tell(Bytes::from(vec![b'x'; SCROLLBACK])).await;
        session.tell(Bytes::from_static(b"last")).await;
        let mut seat = session.sit_down(SIZE).unwrap();
        assert_eq!((seat.before.len(), &seat.before[SCROLLBACK - 5..]), (SCROLLBACK, &b"xlast"[..]));
        session.tell(Bytes::from_static(b"new")).await;
        assert!(matches!(seat.told.recv().await, Some(Told::Shown(piece)) if piece == "new"));
        session.end(Some(3)).await;
        assert!(matches!(seat.told.recv().await, Some(Told::Exited(3))));
        assert!(seat.told.recv().await.is_none() && session.sit_down(SIZE).is_none());
    }

    #[tokio::test]
    async fn one_who_does_not_read_is_left_behind() {
        let session = session();
        let mut stuck = session.sit_down(SIZE).unwrap();
        for _ in 0..=WAITING {
            session.tell(Bytes::from_static(b"x")).await;
        }
        assert_eq!(session.view()["attachedCount"], 0);
        while stuck.told.recv().await.is_some() {}
    }

    #[test]
    fn the_terminal_is_as_small_as_the_smallest() {
        let session = session();
        let to = |rows, cols| Some(ExecInput::Resize(TerminalSize { rows, cols }));
        let small = session.sit_down(TerminalSize { rows: 10, cols: 100 }).unwrap();
        assert_eq!(session.fitting(), to(10, 100));
        let _large = session.sit_down(TerminalSize { rows: 50, cols: 90 }).unwrap();
        assert_eq!(session.fitting(), to(10, 90));
        assert_eq!(session.fitting(), None);
        session.stand_up(small.number);
        assert_eq!(session.fitting(), to(50, 90));
    }

    #[tokio::test]
    async fn a_session_that_nobody_wants_ends() {
        let session = session();
        let (_sender, output) = mpsc::channel(1);
        let started = Instant::now();
        run(session.clone(), output, std::future::pending()).await;
        assert!(started.elapsed() > session.patience.alone && session.exit().is_some());
    }
}
