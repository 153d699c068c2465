//! What the API asks of a machine, passed on to its agent.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use warren_guest::protocol::{
    Attributes, Empty, LONGEST_PATH, Listing, LogsRequest, MOST_ENTRIES, MOST_PORTS, PathRequest, Ports, WriteRequest,
    operation,
};
use warren_model::access::{
    AccessError, ByteStream, ExecCommand, ExecSession, FileInfo, ListeningPort, MachineAccess, WriteOptions,
};
use warren_model::record::Protocol;
use warren_model::{Code, MachineId};

use super::call::{self, CALL, plain};
use super::link::Link;
use super::{AgentHub, exec, files};

/// An agent dials again within half a second after this daemon has started.
const DIALING: Duration = Duration::from_secs(2);

/// The longest name of an entry, in bytes: 255 of the kernel's, each replaced by three where it is not UTF-8.
const LONGEST_NAME: usize = 3 * 255;

impl AgentHub {
    /// The connection of a machine, if need be after a moment.
    pub(super) async fn link(&self, machine: MachineId) -> Result<Arc<Link>, AccessError> {
        let open = self.machine(machine).ok_or_else(|| {
            AccessError::new(Code::MachineNotRunning, "the machine is not running: start it first".to_owned())
        })?;
        let current = open.link.borrow().clone();
        match current {
            Some(link) => Ok(link),
            None => open.wait_for_link(DIALING).await.ok_or_else(|| {
                AccessError::new(
                    Code::AgentUnavailable,
                    "the machine's agent is not connected: try again, or restart it",
                )
            }),
        }
    }

    async fn about<T: serde::de::DeserializeOwned>(
        &self,
        machine: MachineId,
        operation: &'static str,
        path: &str,
        deep: bool,
    ) -> Result<(T, Arc<Link>), AccessError> {
        let request = PathRequest { path: checked(path)?.to_owned(), deep };
        let link = self.link(machine).await?;
        Ok((call::call(&link, operation, &request, CALL).await?, link))
    }
}

#[async_trait]
impl MachineAccess for AgentHub {
    async fn exec(&self, machine: MachineId, command: ExecCommand) -> Result<ExecSession, AccessError> {
        let link = self.link(machine).await?;
        exec::start(link, command).await
    }

    async fn read_file(&self, machine: MachineId, path: &str) -> Result<(FileInfo, ByteStream), AccessError> {
        let path = checked(path)?;
        let link = self.link(machine).await?;
        let (attributes, content) = files::read(link, path).await?;
        Ok((info(path, attributes), content))
    }

    async fn write_file(
        &self,
        machine: MachineId,
        path: &str,
        options: WriteOptions,
        content: ByteStream,
    ) -> Result<FileInfo, AccessError> {
        let request = WriteRequest { path: checked(path)?.to_owned(), options };
        let link = self.link(machine).await?;
        let attributes = files::write(link, &request, content).await?;
        Ok(info(path, attributes))
    }

    async fn list_directory(&self, machine: MachineId, path: &str) -> Result<Vec<FileInfo>, AccessError> {
        let (listing, link): (Listing, _) = self.about(machine, operation::LIST, path, false).await?;
        if listing.entries.len() > MOST_ENTRIES {
            return Err(link.broken("a listing has more entries than one may have"));
        }
        let parent = path.trim_end_matches('/');
        let entries = listing.entries.into_iter().map(|entry| {
            let name = entry.name;
            let valid = !name.is_empty() && name.len() <= LONGEST_NAME && !name.contains(['/', '\0']);
            if !valid || name == "." || name == ".." {
                return Err(link.broken("a listing has an entry with no name that an entry can have"));
            }
            let path = format!("{parent}/{name}");
            Ok(bounded(entry.attributes).into_info(name, path))
        });
        entries.collect()
    }

    async fn stat(&self, machine: MachineId, path: &str) -> Result<FileInfo, AccessError> {
        let (attributes, _) = self.about(machine, operation::STAT, path, false).await?;
        Ok(info(path, attributes))
    }

    async fn make_directory(&self, machine: MachineId, path: &str, parents: bool) -> Result<FileInfo, AccessError> {
        let (attributes, _) = self.about(machine, operation::MAKE_DIRECTORY, path, parents).await?;
        Ok(info(path, attributes))
    }

    async fn remove(&self, machine: MachineId, path: &str, recursive: bool) -> Result<(), AccessError> {
        let (Empty {}, _) = self.about(machine, operation::REMOVE, path, recursive).await?;
        Ok(())
    }

    async fn listening_ports(&self, machine: MachineId) -> Result<Vec<ListeningPort>, AccessError> {
        let link = self.link(machine).await?;
        let Ports { mut ports } = call::call(&link, operation::PORTS, &Empty {}, CALL).await?;
        let possible = |port: &ListeningPort| matches!(port.protocol, Protocol::Tcp | Protocol::Udp) && port.port > 0;
        if ports.len() > MOST_PORTS || !ports.iter().all(possible) {
            return Err(link.broken("it lists ports that cannot be"));
        }
        for port in &mut ports {
            port.process = port.process.take().map(|name| plain(&name).chars().take(64).collect());
        }
        Ok(ports)
    }

    async fn logs(&self, machine: MachineId, tail: u64, follow: bool) -> Result<ByteStream, AccessError> {
        let link = self.link(machine).await?;
        files::logs(link, LogsRequest { tail, follow }).await
    }
}

/// Refuses what cannot be a path before a machine is asked.
fn checked(path: &str) -> Result<&str, AccessError> {
    let why = if !path.starts_with('/') {
        "a path in a machine is absolute: begin it with /"
    } else if path.contains('\0') {
        "a path holds no NUL"
    } else if path.len() > LONGEST_PATH {
        "a path has at most 4095 bytes"
    } else {
        return Ok(path);
    };
    Err(AccessError::new(Code::PathInvalid, why))
}

fn info(path: &str, attributes: Attributes) -> FileInfo {
    let name = path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/");
    bounded(attributes).into_info(name.to_owned(), path.to_owned())
}

/// What the kernel of a machine could have said.
fn bounded(mut attributes: Attributes) -> Attributes {
    attributes.mode &= 0o7777;
    attributes.target = attributes.target.take().map(|target| target.chars().take(LONGEST_PATH).collect());
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_path_is_refused_before_the_machine_is_asked() {
        for bad in ["", "etc", "../etc", "/a\0b", &format!("/{}", "a".repeat(5000))] {
            assert_eq!(checked(bad).unwrap_err().code, Code::PathInvalid);
        }
        assert!(checked("/etc/../etc").is_ok());
    }
}
