//! The caller's terminal while a command has it, and after.
#![cfg(unix)]

#[allow(dead_code)]
mod fake;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use fake::Fake;
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};

struct Terminal {
    screen: File,
    slave: OwnedFd,
}

impl Terminal {
    fn open() -> Self {
        let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(Some(&size), None).unwrap();
        Self { screen: master.into(), slave }
    }

    fn run(&self, server: &Fake) -> Child {
        self.run_with(server, &["exec", "--tty", "worker", "--", "terminal"])
    }

    fn run_with(&self, server: &Fake, args: &[&str]) -> Child {
        let end = || Stdio::from(self.slave.try_clone().unwrap());
        Command::new(env!("CARGO_BIN_EXE_warren"))
            .env("WARREN_URL", &server.url)
            .args(args)
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap()
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave).unwrap().local_flags.contains(LocalFlags::ICANON)
    }

    fn read(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        self.screen.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }
}

#[test]
fn keys_go_to_the_command_as_they_are_and_the_terminal_is_restored() {
    let server = Fake::start();
    let mut terminal = Terminal::open();
    assert!(!terminal.is_raw());
    let mut child = terminal.run(&server);
    assert_eq!(terminal.read(8), "40 120\r\n");
    // An interrupt key is a byte like any other.
    terminal.screen.write_all(b"a\x03b").unwrap();
    assert_eq!(terminal.read(3), "a\x03b", "nothing is echoed here and nothing is interpreted");
    assert!(terminal.is_raw());
    terminal.screen.write_all(b"x").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
    assert!(!terminal.is_raw());
}

#[test]
fn a_signal_ends_the_command_and_restores_the_terminal() {
    let server = Fake::start();
    let mut terminal = Terminal::open();
    let mut child = terminal.run(&server);
    terminal.read(8);
    terminal.screen.write_all(b"a").unwrap();
    terminal.read(1);
    assert!(terminal.is_raw());
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(!terminal.is_raw());
}

#[test]
fn a_log_on_a_terminal_is_shown_and_steers_nothing_unless_it_is_to() {
    let server = Fake::start();
    let mut terminal = Terminal::open();
    let mut child = terminal.run_with(&server, &["logs", "worker"]);
    let shown = "\u{241b}[2Jhidden\tcolumn\r\n";
    assert_eq!(terminal.read(shown.len()), shown);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut child = terminal.run_with(&server, &["logs", "worker", "--raw"]);
    let raw = "\x1b[2Jhidden\tcolumn\r\n";
    assert_eq!(terminal.read(raw.len()), raw);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
