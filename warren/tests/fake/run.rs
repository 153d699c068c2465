//! The built command, run against the server.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::Fake;

pub fn warren(server: &Fake, args: &[&str]) -> Output {
    command(server).args(args).stdin(Stdio::null()).output().unwrap()
}

pub fn command(server: &Fake) -> Command {
    let mut command = bare();
    command.env("WARREN_URL", &server.url).env("WARREN_API_KEY", "wk_test");
    command
}

pub fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
    for name in ["WARREN_URL", "WARREN_API_KEY", "WARREN_DATA_DIR", "WARREN_CONFIG"] {
        command.env_remove(name);
    }
    command
}

pub fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn document(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
