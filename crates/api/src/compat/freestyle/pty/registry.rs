//! The sessions of all machines, by user and name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use warren_model::access::{ExecCommand, TerminalSize};
use warren_model::{Code, MachineId};

use super::super::code::Said;
use super::super::error::{Answer, Refusal};
use super::session::{self, Patience, Session};
use crate::caller::Caller;
use crate::error::ApiError;
use crate::guard::shares;
use crate::places::{Place, Places};
use crate::secret;
use crate::state::Shared;

/// Sessions of all machines whose command runs.
const TOTAL: usize = 1024;
/// Sessions of one machine whose command runs, and those of which it is still known how it ended.
const PER_MACHINE: usize = 16;
/// Of those whose command runs, what the tokens of one identity may have opened.
const PER_IDENTITY: usize = 4;
/// Seconds for which it is known how a session ended.
const KNOWN_SECONDS: i64 = 60;
/// Characters of a session's name.
const LONGEST_ID: usize = 64;

pub(crate) struct Sessions {
    by_machine: Mutex<HashMap<MachineId, Vec<Arc<Session>>>>,
    places: Arc<Places>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { by_machine: Mutex::default(), places: Places::new(TOTAL) }
    }
}

impl Sessions {
    /// A machine's sessions, the oldest first.
    pub fn of(&self, machine: MachineId) -> Vec<Arc<Session>> {
        self.locked().get(&machine).cloned().unwrap_or_default()
    }

    pub fn find(&self, machine: MachineId, user: &str, id: &str) -> Option<Arc<Session>> {
        self.locked().get(&machine)?.iter().find(|session| session.is_called(user, id)).cloned()
    }

    pub fn forget(&self, machine: MachineId, session: &Arc<Session>) {
        let mut all = self.locked();
        if let Some(sessions) = all.get_mut(&machine) {
            sessions.retain(|known| !Arc::ptr_eq(known, session));
            if sessions.is_empty() {
                all.remove(&machine);
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<MachineId, Vec<Arc<Session>>>> {
        let mut all = self.by_machine.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Timestamp::now();
        all.retain(|_, sessions| {
            sessions.retain(|session| {
                session.exit().is_none_or(|exit| now.as_second() - exit.at.as_second() < KNOWN_SECONDS)
            });
            !sessions.is_empty()
        });
        all
    }

    /// Puts a session in, if there is room and its user has no other of its name.
    fn add(&self, machine: MachineId, session: &Arc<Session>) -> Answer<()> {
        let mut all = self.locked();
        let sessions = all.entry(machine).or_default();
        let same = |known: &Arc<Session>| known.is_called(session.user(), &session.id);
        if sessions.iter().any(|known| same(known) && known.exit().is_none()) {
            return Err(Refusal::new(
                Code::NameInUse,
                Said::SessionAlreadyExists,
                "a terminal session of this name and user runs in the machine: attach to it, or choose another name",
            ));
        }
        let running = || sessions.iter().filter(|known| known.exit().is_none());
        if session.identity.is_some()
            && running().filter(|known| known.identity == session.identity).count() >= PER_IDENTITY
        {
            return Err(full(&format!(
                "this token's identity has {PER_IDENTITY} terminal sessions in the machine: close one"
            )));
        }
        if running().count() >= PER_MACHINE {
            return Err(full(&format!("the machine has {PER_MACHINE} terminal sessions: close one")));
        }
        sessions.retain(|known| !same(known));
        if sessions.iter().filter(|session| session.exit().is_some()).count() >= PER_MACHINE {
            let oldest = sessions.iter().position(|session| session.exit().is_some()).unwrap_or_default();
            sessions.remove(oldest);
        }
        sessions.push(session.clone());
        Ok(())
    }

    fn place(&self, caller: &Caller) -> Answer<Place> {
        let free = self.places.take();
        // The operator's own key is bounded by what is free only.
        let free = free.and_then(|mut place| {
            let free = caller.root || shares(caller).all(|holder| place.assign(holder));
            free.then_some(place)
        });
        free.ok_or_else(|| full("too many terminal sessions are open: close one"))
    }
}

/// What is to be opened.
pub(super) struct Opening {
    pub machine: MachineId,
    pub id: Option<String>,
    pub user: Option<String>,
    pub exec: Option<String>,
    pub size: TerminalSize,
}

/// Starts a command and the task that goes on with it.
pub(super) async fn open(
    api: &Shared,
    caller: &Caller,
    opening: Opening,
    command: ExecCommand,
) -> Answer<Arc<Session>> {
    let Opening { machine, id, user, exec, size } = opening;
    let now = Timestamp::now();
    let id = match id {
        Some(id) => is_id(&id).then_some(id).ok_or_else(|| {
            let rule = format!("a session is named by 1 to {LONGEST_ID} letters, digits, '.', '_' and '-'");
            Refusal::new(Code::InvalidRequest, Said::InvalidSessionId, rule)
        })?,
        None => format!("pty-{}", secret::ulid(now).map_err(ApiError::from)?.to_string().to_lowercase()),
    };
    let place = api.freestyle.terminals.place(caller)?;
    let identity = caller.token().map(|(_, identity)| identity);
    let session = Session::new(id, super::or_root(user), identity, exec, size, now, Patience::USUAL);
    // In before its command starts, so that no two of a name do.
    api.freestyle.terminals.add(machine, &session)?;
    // In a task of its own, so that a client that hangs up does not leave it half open.
    let opening = tokio::spawn(begin(api.clone(), caller.clone(), machine, session.clone(), command, place));
    opening.await.map_err(|_| ApiError::internal())??;
    Ok(session)
}

async fn begin(
    api: Shared,
    caller: Caller,
    machine: MachineId,
    session: Arc<Session>,
    command: ExecCommand,
    place: Place,
) -> Result<(), ApiError> {
    match api.access.exec(machine, command).await {
        Ok(running) => {
            session.begin(running.input);
            tokio::spawn(async move {
                let over = async {
                    tokio::select! {
                        () = caller.over(&api) => {}
                        () = api.config.shutdown.cancelled() => {}
                    }
                };
                session::run(session, running.output, over).await;
                drop(place);
            });
            Ok(())
        }
        Err(error) => {
            api.freestyle.terminals.forget(machine, &session);
            session.end(None).await;
            Err(error.into())
        }
    }
}

fn is_id(text: &str) -> bool {
    (1..=LONGEST_ID).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn full(detail: &str) -> Refusal {
    Refusal::new(Code::QuotaExceeded, Said::SessionCapReached, detail)
}
