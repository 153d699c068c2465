//! What the caller's system tells this process, passed on to the command.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use warren_model::access::Signal;
use warren_model::wire::ExecControl;

/// How long passing a signal on may take: a command that does not read its stdin may block the way, and the caller
/// wants an end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something to tell the server, and who waits for it to be told.
pub struct Control {
    pub control: ExecControl,
    pub sent: oneshot::Sender<()>,
}

/// Passes on signals, and with a terminal its changes of size. Ends only when this process has to: with its exit
/// status.
pub async fn forward(on_terminal: bool, controls: mpsc::Sender<Control>) -> i32 {
    let mut events = match Events::new() {
        Ok(events) => events,
        // Signals then end this process, and with it the command.
        Err(_) => return std::future::pending().await,
    };
    loop {
        match events.next().await {
            Event::Resize if on_terminal => {
                let size = crate::cli::terminal::size();
                tell(&controls, ExecControl::Resize { size }).await;
            }
            Event::Resize => {}
            // Keys come as bytes in raw mode, so this was meant for this process.
            Event::Signal(_, status) if on_terminal => return status,
            Event::Signal(signal, status) => {
                if !tell(&controls, ExecControl::Signal { signal }).await {
                    return status;
                }
            }
        }
    }
}

enum Event {
    Resize,
    /// With the exit status of a process that it ends.
    Signal(Signal, i32),
}

async fn tell(controls: &mpsc::Sender<Control>, control: ExecControl) -> bool {
    let (sent, was_sent) = oneshot::channel();
    let told = async { controls.send(Control { control, sent }).await.is_ok() && was_sent.await.is_ok() };
    tokio::time::timeout(PATIENCE, told).await.unwrap_or(false)
}

#[cfg(unix)]
struct Events {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    resize: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Events {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            resize: signal(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> Event {
        tokio::select! {
            _ = self.interrupt.recv() => Event::Signal(Signal::Int, 130),
            _ = self.terminate.recv() => Event::Signal(Signal::Term, 143),
            _ = self.hangup.recv() => Event::Signal(Signal::Hup, 129),
            _ = self.quit.recv() => Event::Signal(Signal::Quit, 131),
            _ = self.resize.recv() => Event::Resize,
        }
    }
}

#[cfg(not(unix))]
struct Events {
    size: warren_model::access::TerminalSize,
}

#[cfg(not(unix))]
impl Events {
    fn new() -> std::io::Result<Self> {
        Ok(Self { size: crate::cli::terminal::size() })
    }

    /// Sizes are asked for, since nothing tells of them.
    async fn next(&mut self) -> Event {
        loop {
            tokio::select! {
                Ok(()) = tokio::signal::ctrl_c() => return Event::Signal(Signal::Int, 130),
                () = tokio::time::sleep(Duration::from_millis(500)) => {
                    let size = crate::cli::terminal::size();
                    if size != self.size {
                        self.size = size;
                        return Event::Resize;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_told_is_noticed() {
        let (controls, queue) = mpsc::channel(1);
        drop(queue);
        assert!(!tell(&controls, ExecControl::StdinClosed).await);
    }

    #[tokio::test]
    async fn a_blocked_way_is_given_up() {
        let (controls, _queue) = mpsc::channel(1);
        assert!(!tell(&controls, ExecControl::Signal { signal: Signal::Int }).await);
    }
}
