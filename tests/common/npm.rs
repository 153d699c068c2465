//! What npm installs for tests: once, below `target/`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::text;

/// A directory of this name where `recipe` is installed. Where it is not, `prepare` puts there what the command needs,
/// and the command is run in it, for at most 300 seconds.
pub fn installed(name: &str, recipe: &[u8], prepare: impl FnOnce(&Path), command: &[&str]) -> Result<PathBuf, String> {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let place = all.join(name);
    std::fs::create_dir_all(&place).unwrap();
    // Two processes may share a target directory; the lock goes with the file.
    let turn = std::fs::File::create(place.join("turn")).unwrap();
    turn.lock().unwrap();
    // Written last, so that an installation that broke off is made again.
    let done = place.join("done");
    if std::fs::read(&done).is_ok_and(|installed| installed == recipe) {
        return Ok(place);
    }
    prepare(&place);
    let output = Command::new("timeout")
        .args(["--kill-after=10", "300"])
        .args(command)
        .current_dir(&place)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| missing(&format!("timeout: {error}")))?;
    let Output { status, stdout, stderr } = output;
    if !status.success() {
        return Err(missing(&format!("{}: {status}: {}{}", command.join(" "), text(&stdout), text(&stderr))));
    }
    std::fs::write(done, recipe).unwrap();
    Ok(place)
}

fn missing(error: &str) -> String {
    format!("this test needs npm (scripts/install-deps.sh), and once the npm registry, for the client: {error}")
}
