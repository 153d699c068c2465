//! The caller's terminal: its size, and raw mode that always ends.

use std::io::{self, IsTerminal};
use std::sync::Once;

use warren_model::access::TerminalSize;

/// The size that is told where there is no terminal to ask.
const FALLBACK: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// While this lives, every key goes to the command as it is. Ends when dropped and when the process panics; whoever
/// ends the process on a signal drops it first.
pub struct RawMode(());

impl RawMode {
    /// `None` when stdin is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let earlier = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                let _ = crossterm::terminal::disable_raw_mode();
                earlier(panic);
            }));
        });
        crossterm::terminal::enable_raw_mode()?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // There is nothing left to try when even this fails.
        let _ = crossterm::terminal::disable_raw_mode();
    }
}

/// The terminal's size now.
pub fn size() -> TerminalSize {
    match crossterm::terminal::size() {
        Ok((cols, rows)) if cols > 0 && rows > 0 => TerminalSize { rows, cols },
        _ => FALLBACK,
    }
}

/// Whether a person sits at both ends.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}
