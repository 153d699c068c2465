//! `nft -f -`: the fixed rules are loaded as the text that an operator would read.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::process::{Command, Stdio};

use crate::error::KernelError;
use crate::namespace;

/// Loads a file of rules inside the namespace, as one transaction.
pub(crate) fn load(inside: BorrowedFd<'_>, place: &str, rules: &str) -> Result<(), KernelError> {
    let output = namespace::enter(inside, || -> io::Result<std::process::Output> {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let written = match child.stdin.take() {
            Some(mut stdin) => stdin.write_all(rules.as_bytes()),
            None => Ok(()),
        };
        let output = child.wait_with_output()?;
        // A closed pipe means that nft gave up early; its own words say why.
        match written {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(output),
        }
    })
    .map_err(|source| KernelError::Refused { action: "enter the namespace", place: place.to_owned(), source })?
    .map_err(KernelError::NoNft)?;
    if output.status.success() {
        return Ok(());
    }
    let complaint: String = String::from_utf8_lossy(&output.stderr).chars().take(400).collect();
    Err(KernelError::Rules { place: place.to_owned(), complaint: complaint.trim().to_owned() })
}
