//! From what a caller asks for to what the kernel is told.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::errno::Errno;
use warren_guest::protocol::{EXEC_MARKER, LONGEST_PATH, Refusal, shown};
use warren_model::Code;
use warren_model::access::ExecCommand;

use crate::account::Account;
use crate::spawn::{Plan, Stage};
use crate::startup::Limits;

/// Where programs are looked for when neither the machine nor the caller says it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Lays out a command. `inherited` is the machine's own environment.
pub fn plan(
    command: &ExecCommand,
    account: Account,
    serial: u64,
    stdio: [OwnedFd; 3],
    limits: Limits,
    inherited: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Plan, Refusal> {
    let environment = environment(command, &account, serial, inherited)?;
    let program = command.argv.first().filter(|program| !program.is_empty());
    let program = program.ok_or_else(|| Refusal::new(Code::InvalidRequest, "name the program to run"))?;
    let path = environment.get("PATH").map_or(PATH, |path| path.to_str().unwrap_or(PATH));
    let directory = match &command.cwd {
        Some(directory) if directory.starts_with('/') && directory.len() <= LONGEST_PATH => directory.as_str(),
        Some(directory) => {
            return Err(Refusal::new(
                Code::DirectoryNotFound,
                format!("{:?} is not an absolute path", shown(directory)),
            ));
        }
        None => account.home.as_str(),
    };
    let mut list = Vec::with_capacity(environment.len());
    for (name, value) in &environment {
        let mut entry = name.clone().into_bytes();
        entry.push(b'=');
        entry.extend_from_slice(value.as_encoded_bytes());
        list.push(text(entry, "a variable")?);
    }
    Ok(Plan {
        candidates: candidates(program, path)?,
        argv: command.argv.iter().map(|arg| text(arg.as_bytes(), "an argument")).collect::<Result<_, _>>()?,
        environment: list,
        directory: text(directory, "the directory")?,
        or_root: command.cwd.is_none(),
        account,
        stdio,
        terminal: command.terminal.is_some(),
        limits,
    })
}

/// Says why the child could not execute.
pub fn refusal(command: &ExecCommand, stage: Stage, errno: Errno) -> Refusal {
    let named = command.argv.first().map_or("", String::as_str);
    let program = shown(named);
    match (stage, errno) {
        (Stage::Execute, Errno::ENOENT | Errno::ENOTDIR) => missing_program(named),
        (Stage::Execute, Errno::E2BIG) => {
            Refusal::new(Code::InvalidRequest, "the arguments and the environment are longer than the kernel takes")
        }
        (Stage::Execute, Errno::ENOEXEC) => Refusal::new(
            Code::CommandNotExecutable,
            format!("{program} is no program for this machine, or a script without a first line that names its shell"),
        ),
        (Stage::Execute, errno) => {
            Refusal::new(Code::CommandNotExecutable, format!("{program} cannot be executed: {}", errno.desc()))
        }
        (Stage::Directory, errno) => Refusal::new(
            Code::DirectoryNotFound,
            format!("cannot start in {}: {}", shown(command.cwd.as_deref().unwrap_or("/")), errno.desc()),
        ),
        (Stage::Account, errno) => Refusal::new(
            Code::UserNotFound,
            format!("cannot become {}: {}", shown(command.user.as_deref().unwrap_or("root")), errno.desc()),
        ),
        (Stage::Setup, errno) => Refusal::new(Code::Internal, format!("the command was not set up: {}", errno.desc())),
    }
}

fn missing_program(program: &str) -> Refusal {
    // A script whose interpreter is missing fails with the same number as a file that is missing.
    if program.contains('/') && Path::new(program).exists() {
        let detail = format!("{} is there, but the interpreter or loader that it names is not", shown(program));
        return Refusal::new(Code::CommandNotExecutable, detail);
    }
    let place = if program.contains('/') { "" } else { " in any directory of PATH" };
    Refusal::new(Code::CommandNotFound, format!("there is no {}{place}", shown(program)))
}

fn environment(
    command: &ExecCommand,
    account: &Account,
    serial: u64,
    inherited: impl Iterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, OsString>, Refusal> {
    let mut environment = BTreeMap::from([("PATH".to_owned(), PATH.into()), ("LANG".to_owned(), "C.UTF-8".into())]);
    for (name, value) in inherited {
        if let Ok(name) = name.into_string() {
            environment.insert(name, value);
        }
    }
    for (name, value) in
        [("HOME", &account.home), ("USER", &account.name), ("LOGNAME", &account.name), ("SHELL", &account.shell)]
    {
        environment.insert(name.to_owned(), value.into());
    }
    if command.terminal.is_some() {
        environment.insert("TERM".to_owned(), "xterm-256color".into());
    }
    for (name, value) in &command.env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Refusal::new(Code::InvalidRequest, format!("{:?} is not a variable's name", shown(name))));
        }
        environment.insert(name.clone(), value.into());
    }
    environment.insert(EXEC_MARKER.to_owned(), serial.to_string().into());
    Ok(environment)
}

/// The files that a program's name can mean, as execvp(3) looks for it.
fn candidates(program: &str, path: &str) -> Result<Vec<CString>, Refusal> {
    if program.contains('/') {
        return Ok(vec![text(program, "the program")?]);
    }
    let in_directory = |directory: &str| match directory {
        // An empty entry means the current directory.
        "" => text(program, "the program"),
        directory => text(format!("{}/{program}", directory.trim_end_matches('/')), "the program"),
    };
    path.split(':').map(in_directory).collect()
}

fn text(bytes: impl Into<Vec<u8>>, what: &str) -> Result<CString, Refusal> {
    let bytes = OsString::from_vec(bytes.into()).into_vec();
    CString::new(bytes).map_err(|_| Refusal::new(Code::InvalidRequest, format!("{what} holds a NUL")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn limits() -> Limits {
        Limits { open_files: None, spared_when_memory_is_short: false }
    }

    fn stdio() -> [OwnedFd; 3] {
        [(); 3].map(|()| std::io::stderr().as_fd().try_clone_to_owned().unwrap())
    }

    fn command(argv: &[&str]) -> ExecCommand {
        let argv: Vec<String> = argv.iter().map(|arg| (*arg).to_owned()).collect();
        serde_json::from_value(serde_json::json!({ "argv": argv })).unwrap()
    }

    fn planned(command: &ExecCommand) -> Result<Plan, Refusal> {
        let machine = [(OsString::from("PATH"), OsString::from("/opt/bin::/bin/")), ("HOME".into(), "/x".into())];
        plan(command, crate::account::find("root").unwrap(), 7, stdio(), limits(), machine.into_iter())
    }

    fn strings(list: &[CString]) -> Vec<&str> {
        list.iter().map(|text| text.to_str().unwrap()).collect()
    }

    #[test]
    fn a_program_is_looked_for_along_the_path_that_the_command_gets() {
        let mut ls = command(&["ls"]);
        assert_eq!(strings(&planned(&ls).unwrap().candidates), ["/opt/bin/ls", "ls", "/bin/ls"]);
        ls.env.insert("PATH".into(), "/only".into());
        assert_eq!(strings(&planned(&ls).unwrap().candidates), ["/only/ls"]);
        assert_eq!(strings(&planned(&command(&["./ls"])).unwrap().candidates), ["./ls"]);
    }

    #[test]
    fn the_caller_wins_over_the_user_who_wins_over_the_machine() {
        let mut env = command(&["env"]);
        let plan = planned(&env).unwrap();
        let variables = strings(&plan.environment);
        assert!(variables.contains(&"HOME=/root") && variables.contains(&"WARREN_EXEC=7"), "{variables:?}");
        env.env.insert("HOME".into(), "/here".into());
        assert!(strings(&planned(&env).unwrap().environment).contains(&"HOME=/here"));
    }

    #[test]
    fn a_name_without_end_is_shown_in_part() {
        let long = "n".repeat(200_000);
        let mut bad = command(&[&long]);
        (bad.cwd, bad.user) = (Some(long.clone()), Some(long.clone()));
        let mut details = vec![planned(&bad).map(drop).unwrap_err().detail];
        for stage in [Stage::Account, Stage::Directory, Stage::Execute] {
            for errno in [Errno::ENOENT, Errno::ENAMETOOLONG, Errno::ENOEXEC] {
                details.push(refusal(&bad, stage, errno).detail);
            }
        }
        let mut bad = command(&["a"]);
        bad.env.insert(format!("{long}="), String::new());
        details.push(planned(&bad).map(drop).unwrap_err().detail);
        for detail in details {
            let length = detail.chars().count();
            assert!(detail.contains("nnn…") && length < 400, "{length} characters");
        }
    }

    #[test]
    fn what_the_kernel_could_not_be_told_is_refused() {
        for (argv, cwd) in [(vec![], None), (vec![""], None), (vec!["a\0b"], None), (vec!["a"], Some("b"))] {
            let mut bad = command(&argv);
            bad.cwd = cwd.map(str::to_owned);
            assert!(planned(&bad).is_err(), "{argv:?}");
        }
        let mut bad = command(&["a"]);
        bad.env.insert("A=B".into(), String::new());
        assert_eq!(planned(&bad).map(drop).unwrap_err().code, Code::InvalidRequest);
    }
}
