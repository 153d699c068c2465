//! The edge alone, with the command line that `warren edge` has: for tests.

use std::path::PathBuf;
use std::process::ExitCode;

use warren_edge::{EdgeConfig, run};

fn main() -> ExitCode {
    let Some(config) = parse(std::env::args().skip(1)) else {
        eprintln!("usage: warren-edge edge --control PATH [--uid N] [--gid N]");
        return ExitCode::from(2);
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut source: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = source {
                eprintln!("{error}");
                source = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<EdgeConfig> {
    if arguments.next()? != "edge" {
        return None;
    }
    let (mut control, mut uid, mut gid) = (None, 65534, 65534);
    while let Some(option) = arguments.next() {
        let value = arguments.next()?;
        match option.as_str() {
            "--control" => control = Some(PathBuf::from(value)),
            "--uid" => uid = value.parse().ok()?,
            "--gid" => gid = value.parse().ok()?,
            _ => return None,
        }
    }
    Some(EdgeConfig { control: control?, uid, gid })
}
