//! Command lines that cannot be read, said like every other failure.

use std::ffi::OsString;

use clap::error::ErrorKind;

use super::failure::Failure;

/// Whether JSON was asked for on a command line that could not be read. What stands after `--` is a command's own.
pub fn wants_json(args: &[OsString]) -> bool {
    args.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json")
}

/// What clap has to say in several paragraphs, in one sentence. `None` for help and versions, which are no failures.
pub fn failure(error: &clap::Error) -> Option<Failure> {
    if !error.use_stderr() {
        return None;
    }
    // Here it shows all of the help.
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Some(Failure::Usage("a command is missing: --help lists them".to_owned()));
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.starts_with("For more information"));
    let said = paragraphs.map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    Some(Failure::Usage(said.filter(|paragraph| !paragraph.is_empty()).collect::<Vec<_>>().join("; ")))
}
