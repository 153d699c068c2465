//! The `warren` command: the server of a host and the client of any server.
//!
//! | module | holds |
//! | --- | --- |
//! | [`cli`] | every command: its arguments, what it asks for, how the answer is shown |
//! | [`client`] | how a server is reached |
//! | `server` | what `warren up` runs (feature `server`) |

mod cli;
mod client;
#[cfg(feature = "server")]
mod server;

fn main() {
    // Not a return: a thread that waits for stdin must not hold up the end.
    std::process::exit(cli::run(std::env::args_os()));
}
