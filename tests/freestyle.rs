//! The client that people already have: npm `freestyle@0.1.63` against a server, in a Node that has its WebSocket.
//!
//! The article's second and third examples are played by `warren demo --client`, and followed in the quick start.

mod common;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Options, Server, npm, text};

/// A script that has not ended by then hangs, in seconds: the client repeats for ever what it does not understand.
const LIMIT: &str = "120";

/// Runs a script that is beside the client, in the server's namespace, as an owner of an account. Answers what it printed.
#[track_caller]
fn passes(server: &Server, script: &Path) -> String {
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", server.host.name()))
        .args(["timeout", "--kill-after=10", LIMIT])
        .arg(npm::node())
        .arg(script)
        .current_dir(npm::client())
        .env("FREESTYLE_API_URL", format!("{}/compat/freestyle", server.url()))
        .env("FREESTYLE_API_KEY", server.key.as_deref().expect("an account"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    let (status, script) = (output.status, script.display());
    assert!(status.success(), "{script}: {status}: {said}{errors}\n{}", server.log());
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
fn an_example_of_the_article_can_be_run_again() {
    let server = server();
    // The second run finds the names of the first one taken, and the range in use.
    for _ in 0..2 {
        let said = passes(&server, Path::new("article-1.mjs"));
        assert!(said.contains("Directory listing for"), "{said:?}");
    }
    assert_eq!(server.json(&["network", "ls"])["items"].as_array().unwrap().len(), 3);
}

#[test]
fn the_example_of_the_documentation_runs_as_it_is_written() {
    let page = include_str!("../docs/freestyle.md");
    let example = page.split_once("```js\n").and_then(|(_, rest)| rest.split_once("```")).unwrap().0;
    // Node finds packages from where the script is.
    let mut script = tempfile::Builder::new().suffix(".mjs").tempfile_in(npm::client()).unwrap();
    script.write_all(example.as_bytes()).unwrap();
    let said = passes(&server(), script.path());
    assert!(said.contains("Directory listing for"), "{said:?}");
}

#[test]
fn machines_files_identities_and_errors_are_what_the_client_knows() {
    let server = server();
    passes(&server, Path::new("calls.mjs"));
}

#[test]
fn domains_are_mapped_verified_and_taken_back() {
    // Nobody answers there, so that no record is found.
    let resolver = ["--resolver", "127.0.0.1:9"];
    let public = ["--https-listen", "127.0.0.1:0", "--preview-suffix", "preview.example"];
    let arguments = resolver.iter().chain(&public).map(|argument| (*argument).to_owned()).collect();
    let mut server = Server::start_with(Options { arguments, ..Options::default() });
    server.act_as_new("product");
    passes(&server, Path::new("domains.mjs"));
}

#[test]
fn a_terminal_is_opened_left_and_found_again_by_the_client() {
    let server = server();
    passes(&server, Path::new("pty.mjs"));
}
