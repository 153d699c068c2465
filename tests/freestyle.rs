//! The client that people already have: npm `freestyle@0.1.63` against a server, in a Node that has its WebSocket.
//!
//! The package is installed from npm once, below `target/`, at the versions of `tests/freestyle/package-lock.json`.

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Options, Server, eventually, npm, text};
use warren_lab::Namespace;

/// A script that has not ended by then hangs: the client repeats for ever what it does not understand.
const LIMIT: Duration = Duration::from_secs(120);

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/freestyle")
}

/// Where the package is installed; it is installed first where it is not, or not at these versions.
fn installed() -> &'static Path {
    static INSTALLED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    INSTALLED.get_or_init(install).as_ref().unwrap_or_else(|error| panic!("{error}"))
}

fn install() -> Result<PathBuf, String> {
    let lock = std::fs::read(sources().join("package-lock.json")).unwrap();
    let prepare = |place: &Path| {
        for file in ["package.json", "package-lock.json"] {
            std::fs::copy(sources().join(file), place.join(file)).unwrap();
        }
    };
    let command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-timeout=60000"];
    let place = npm::installed("freestyle", &lock, prepare, &[&command[..], &["--fetch-retries=1"]].concat())?;
    for file in std::fs::read_dir(sources()).unwrap() {
        let file = file.unwrap();
        if file.path().extension().is_some_and(|extension| extension == "mjs") {
            place_file(&place.join(file.file_name()), &std::fs::read(file.path()).unwrap());
        }
    }
    Ok(place)
}

/// Puts a script where it is run from, whole at any time: a script of another process may be about to read it.
fn place_file(path: &Path, content: &[u8]) {
    let part = path.with_extension(std::process::id().to_string());
    std::fs::write(&part, content).unwrap();
    std::fs::rename(part, path).unwrap();
}

/// Node 22, as the packages bring it for this kind of processor.
fn node() -> PathBuf {
    let found = ["x64", "arm64"].map(|kind| installed().join(format!("node_modules/node-linux-{kind}/bin/node")));
    found.into_iter().find(|path| path.exists()).expect("npm brought a node for this machine")
}

/// Runs one of the scripts beside the server, as an owner of an account.
fn run(server: &Server, script: &str, environment: &[(&str, &str)]) -> Output {
    let Server { host, .. } = server;
    let mut command = in_namespace(host);
    command
        .arg(node())
        .arg(installed().join(script))
        .current_dir(installed())
        .env("FREESTYLE_API_URL", format!("{}/compat/freestyle", server.url()))
        .env("FREESTYLE_API_KEY", server.key.as_deref().expect("an account"))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Read while it runs: one that has more to say than a pipe holds would wait for ever.
    let stdout = drain(child.stdout.take().unwrap());
    let stderr = drain(child.stderr.take().unwrap());
    let ended = eventually(LIMIT, || child.try_wait().unwrap().is_some());
    if !ended {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let output = Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() };
    if !ended {
        panic!("{script} hangs: {}{}\n{}", text(&output.stdout), text(&output.stderr), server.log());
    }
    output
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        pipe.read_to_end(&mut all).unwrap();
        all
    })
}

fn in_namespace(host: &Namespace) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", host.name()));
    command
}

#[track_caller]
fn passes(server: &Server, script: &str) -> String {
    let output = run(server, script, &[]);
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{script}: {said}{errors}\n{}", server.log());
    // The client tells of what it is about to repeat for ever.
    assert!(!errors.contains("retrying"), "{errors}");
    said
}

fn server() -> Server {
    let mut server = Server::start();
    server.act_as_new("product");
    server
}

#[test]
fn the_first_example_of_the_article_prints_the_page() {
    let server = server();
    // The second run finds the names of the first one taken, and the range in use.
    for _ in 0..2 {
        let said = passes(&server, "article-1.mjs");
        assert!(said.contains("Directory listing for"), "{said:?}");
    }
    assert_eq!(server.json(&["network", "ls"])["items"].as_array().unwrap().len(), 3);
}

#[test]
fn the_second_example_of_the_article_lets_an_operator_in_and_out_again() {
    let server = server();
    let said = passes(&server, "article-2.mjs");
    for line in ["[Interface]", "PrivateKey = ", "Address = 192.168.10.", "[Peer]", "AllowedIPs = 192.168.10.0/24"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(said.lines().any(|line| line.starts_with("ses_")), "{said}");
    assert!(server.json(&["vpn", "ls"])["items"].as_array().unwrap().is_empty());
}

#[test]
fn the_third_example_of_the_article_hands_a_machine_to_a_client() {
    let server = server();
    let said = passes(&server, "article-3.mjs");
    let made: serde_json::Value = serde_json::from_str(said.trim()).unwrap();
    let (token, machine) = (made["token"].as_str().unwrap(), made["vmId"].as_str().unwrap());
    let environment = [("TOKEN", token), ("VM_ID", machine)];
    let output = run(&server, "article-3-client.mjs", &environment);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(text(&output.stdout).trim(), "/root");
}

#[test]
fn the_example_of_the_documentation_runs_as_it_is_written() {
    let page = include_str!("../docs/freestyle.md");
    let example = page.split_once("```js\n").and_then(|(_, rest)| rest.split_once("```")).unwrap().0;
    place_file(&installed().join("documented.mjs"), example.as_bytes());
    let said = passes(&server(), "documented.mjs");
    assert!(said.contains("Directory listing for"), "{said:?}");
}

#[test]
fn machines_files_identities_and_errors_are_what_the_client_knows() {
    let server = server();
    passes(&server, "calls.mjs");
}

#[test]
fn domains_are_mapped_verified_and_taken_back() {
    // Nobody answers there, so that no record is found.
    let resolver = ["--resolver", "127.0.0.1:9"];
    let public = ["--https-listen", "127.0.0.1:0", "--preview-suffix", "preview.example"];
    let arguments = resolver.iter().chain(&public).map(|argument| (*argument).to_owned()).collect();
    let mut server = Server::start_with(Options { arguments, ..Options::default() });
    server.act_as_new("product");
    passes(&server, "domains.mjs");
}

#[test]
fn a_terminal_is_opened_left_and_found_again_by_the_client() {
    let server = server();
    passes(&server, "pty.mjs");
}
