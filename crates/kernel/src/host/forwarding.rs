//! IP forwarding in the host's namespace: switched on only with consent, and only Warren's links gain by it.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use warren_model::InstallationId;

use super::{Host, refused};
use crate::error::KernelError;
use crate::namespace::{self, file};
use crate::record::write_file;
use crate::{names, route};

const SETTINGS: [(&str, &str); 2] = [("ipv4", "ipv4/conf/all/forwarding"), ("ipv6", "ipv6/conf/all/forwarding")];

/// Whether the host forwards, in all of its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardingState {
    pub ipv4: bool,
    pub ipv6: bool,
}

/// IP forwarding of the host.
///
/// What was on before stays as it is. What Warren switches on serves only Warren's own links: a rule drops what would
/// pass between two others, and interfaces that took router advertisements go on doing so (`accept_ra=2`, see the
/// kernel's `ip-sysctl.rst`).
pub struct HostForwarding<'a> {
    pub(crate) host: &'a Host,
}

impl HostForwarding<'_> {
    pub fn state(&self) -> Result<ForwardingState, KernelError> {
        let (ipv4, ipv6) =
            route::forwarding(&mut self.host.lock().route).map_err(refused("say whether it forwards"))?;
        Ok(ForwardingState { ipv4, ipv6 })
    }

    /// Fine if forwarding is on. Else switches it on with consent, and without refuses and changes nothing.
    pub fn enable(&self, consent: bool) -> Result<(), KernelError> {
        let ForwardingState { ipv4, ipv6 } = self.state()?;
        if ipv4 && ipv6 {
            return Ok(());
        }
        if !consent {
            return refuse_unless_on(ipv4, ipv6);
        }
        let installation = &self.host.installation;
        let (before4, before6) = switched_on(installation)?;
        record(installation, before4 || !ipv4, before6 || !ipv6)?;
        {
            // The rule that closes it to others is there before there is anything to close.
            let mut state = self.host.lock();
            self.host.ensure_rules(&mut state)?;
        }
        if !ipv6 {
            keep_router_advertisements(self.host)?;
        }
        let off = [ipv4, ipv6];
        let settings: Vec<_> =
            SETTINGS.iter().zip(off).filter(|(_, on)| !on).map(|((_, setting), _)| (*setting, "1")).collect();
        namespace::set_sysctls(self.host.namespace.as_fd(), "the host's namespace", &settings)
    }

    /// Switches off again what Warren switched on, and removes the host's rules if no uplink needs them.
    pub fn restore(&self) -> Result<(), KernelError> {
        let installation = &self.host.installation;
        let (four, six) = switched_on(installation)?;
        let settings: Vec<_> = SETTINGS
            .iter()
            .zip([four, six])
            .filter(|(_, ours)| *ours)
            .map(|((_, setting), _)| (*setting, "0"))
            .collect();
        if settings.is_empty() {
            return Ok(());
        }
        namespace::set_sysctls(self.host.namespace.as_fd(), "the host's namespace", &settings)?;
        record(installation, false, false)?;
        let mut state = self.host.lock();
        self.host.remove_unused_rules(&mut state)
    }
}

pub(super) fn refuse_unless_on(ipv4: bool, ipv6: bool) -> Result<(), KernelError> {
    let missing: Vec<_> =
        [("IPv4", ipv4), ("IPv6", ipv6)].iter().filter(|(_, on)| !on).map(|(name, _)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(KernelError::ForwardingOff { missing: missing.join(" and ") }) }
}

/// What Warren switched on in this boot, for IPv4 and IPv6.
pub(super) fn switched_on(installation: &InstallationId) -> Result<(bool, bool), KernelError> {
    let path = path(installation);
    match fs::read_to_string(&path) {
        Ok(text) => Ok((text.contains("ipv4"), text.contains("ipv6"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok((false, false)),
        Err(error) => Err(file("read", &path)(error)),
    }
}

fn record(installation: &InstallationId, four: bool, six: bool) -> Result<(), KernelError> {
    let path = path(installation);
    if !four && !six {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file("remove", &path)(error)),
            _ => Ok(()),
        };
    }
    let words: Vec<_> = [("ipv4", four), ("ipv6", six)].iter().filter(|(_, on)| *on).map(|(word, _)| *word).collect();
    write_file(&path, &words.join("\n"))
}

fn path(installation: &InstallationId) -> PathBuf {
    names::run_directory(installation).join("forwarding")
}

fn keep_router_advertisements(host: &Host) -> Result<(), KernelError> {
    const INTERFACES: &str = "/proc/sys/net/ipv6/conf";
    namespace::enter(host.namespace.as_fd(), || {
        let entries = match fs::read_dir(INTERFACES) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(file("list", Path::new(INTERFACES)))?,
        };
        for entry in entries.flatten() {
            let setting = entry.path().join("accept_ra");
            if fs::read_to_string(&setting).is_ok_and(|value| value.trim() == "1") {
                fs::write(&setting, "2").map_err(file("write", &setting))?;
            }
        }
        Ok(())
    })
    .map_err(refused("be entered"))?
}
