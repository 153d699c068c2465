//! The client that npm has, as `scripts/install-client.sh` installs it: once, where `make` has it too.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::text;

/// Where it is, with a Node and the scripts of `tests/freestyle`. It is installed first where it is not, or not at the
/// versions of the lock file there.
pub fn client() -> &'static Path {
    static CLIENT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    CLIENT.get_or_init(install).as_ref().unwrap_or_else(|error| panic!("{error}"))
}

fn install() -> Result<PathBuf, String> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("client");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/install-client.sh");
    let output = Command::new(&script).arg(&place).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{}: {error}", script.display()))?;
    if output.status.success() { Ok(place) } else { Err(text(&output.stderr)) }
}

/// Node 22, as the packages bring it for this kind of processor.
pub fn node() -> PathBuf {
    client().join("node_modules/.bin/node")
}
