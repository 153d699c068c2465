//! IP forwarding in the host's namespace: switched on only with consent, and only Warren's links gain by it.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use warren_model::InstallationId;

use super::{Host, refused};
use crate::error::KernelError;
use crate::namespace::{self, file};
use crate::record::{Record, write_file};
use crate::route;

const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];
const SETTINGS: &str = "/proc/sys/net";

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

    /// Fine if forwarding is on. Else switches it on with consent, and without refuses and changes nothing. Consent
    /// lasts as long as this handle: what somebody switches off is switched on again with the next uplink.
    pub fn enable(&self, consent: bool) -> Result<(), KernelError> {
        let mut state = self.host.lock();
        state.consent = consent;
        let (ipv4, ipv6) = route::forwarding(&mut state.route).map_err(refused("say whether it forwards"))?;
        refuse_unless_on(ipv4, ipv6)
            .or_else(|refusal| if consent { self.host.forward(&mut state) } else { Err(refusal) })
    }

    /// Switches off again what Warren switched on, puts back the settings that depend on it, and removes the host's
    /// rules if no uplink needs them.
    pub fn restore(&self) -> Result<(), KernelError> {
        let mut state = self.host.lock();
        let installation = &self.host.installation;
        let switched = Switched::read(installation)?;
        if self.host.is_recorded_place()? {
            namespace::enter(self.host.namespace.as_fd(), || switched.undo()).map_err(refused("be entered"))??;
        }
        Switched::default().write(installation)?;
        state.intact_at = None;
        self.host.remove_unused_rules(&mut state)
    }
}

impl Host {
    /// Switches on what is off. The rule that closes it to others is there before there is anything to close.
    pub(super) fn forward(&self, state: &mut super::State) -> Result<(), KernelError> {
        self.settle_here()?;
        let installation = &self.installation;
        let mut switched = Switched::read(installation)?;
        let (four, six) = route::forwarding(&mut state.route).map_err(refused("say whether it forwards"))?;
        let off: Vec<&str> =
            FAMILIES.into_iter().zip([four, six]).filter(|(_, on)| !on).map(|(family, _)| family).collect();
        namespace::enter(self.namespace.as_fd(), || off.iter().try_for_each(|family| switched.remember(family)))
            .map_err(refused("be entered"))??;
        switched.write(installation)?;
        // What is there may not close it.
        state.intact_at = None;
        self.ensure_rules(state)?;
        namespace::enter(self.namespace.as_fd(), || {
            if off.contains(&"ipv6") {
                // Before forwarding is on, which would end the routes that were learned.
                for kept in switched.kept.iter().filter(|kept| kept.ours == "2") {
                    set(&kept.setting, "2")?;
                }
            }
            off.iter().try_for_each(|family| set(&format!("{family}/conf/all/forwarding"), "1"))
        })
        .map_err(refused("be entered"))?
    }
}

pub(super) fn refuse_unless_on(ipv4: bool, ipv6: bool) -> Result<(), KernelError> {
    let missing: Vec<_> =
        [("IPv4", ipv4), ("IPv6", ipv6)].iter().filter(|(_, on)| !on).map(|(name, _)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(KernelError::ForwardingOff { missing: missing.join(" and ") }) }
}

/// What Warren switched on in this boot.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Switched {
    pub(super) ipv4: bool,
    pub(super) ipv6: bool,
    kept: Vec<Kept>,
}

/// A setting that would not be as before when forwarding is switched off again.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    /// Below `/proc/sys/net`.
    setting: String,
    before: String,
    /// What it is when forwarding is off again; any other value is somebody else's, and stays.
    ours: &'static str,
}

impl Switched {
    pub(super) fn read(installation: &InstallationId) -> Result<Self, KernelError> {
        let path = path(installation);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(file("read", &path)(error)),
        }
    }

    pub(super) fn write(&self, installation: &InstallationId) -> Result<(), KernelError> {
        if *self == Self::default() {
            return Record::remove(&path(installation));
        }
        write_file(&path(installation), &self.to_text())
    }

    /// Remembers what switching on the family changes besides. Has to be called inside the namespace.
    ///
    /// IPv4: every link forwards, and `all/accept_redirects` turns over (`inet_forward_change`). IPv6: every link
    /// forwards (`addrconf_forward_change`), and one that takes router advertisements needs `accept_ra=2` to go on.
    fn remember(&mut self, family: &str) -> Result<(), KernelError> {
        *(if family == "ipv4" { &mut self.ipv4 } else { &mut self.ipv6 }) = true;
        let directory = format!("{family}/conf");
        let path = Path::new(SETTINGS).join(&directory);
        let links = match fs::read_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(file("list", &path))?,
        };
        for link in links.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            if link != "all" {
                self.keep(format!("{directory}/{link}/forwarding"), |before| (before != "0").then_some("0"));
            }
            if family == "ipv6" {
                self.keep(format!("{directory}/{link}/accept_ra"), |before| (before == "1").then_some("2"));
            }
        }
        if family == "ipv4" {
            self.keep(format!("{directory}/all/accept_redirects"), |before| (before != "1").then_some("1"));
        }
        Ok(())
    }

    fn keep(&mut self, setting: String, ours: impl FnOnce(&str) -> Option<&'static str>) {
        let Some(before) = get(&setting) else { return };
        if let Some(ours) = ours(&before)
            && !self.kept.iter().any(|kept| kept.setting == setting)
        {
            self.kept.push(Kept { setting, before, ours });
        }
    }

    /// Has to be called inside the namespace.
    fn undo(&self) -> Result<(), KernelError> {
        for (family, _) in FAMILIES.into_iter().zip([self.ipv4, self.ipv6]).filter(|(_, ours)| *ours) {
            set(&format!("{family}/conf/all/forwarding"), "0")?;
        }
        for Kept { setting, before, ours } in &self.kept {
            if get(setting).as_deref() == Some(*ours) {
                set(setting, before)?;
            }
        }
        Ok(())
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        for (family, _) in FAMILIES.into_iter().zip([self.ipv4, self.ipv6]).filter(|(_, ours)| *ours) {
            text.push_str(&format!("{family}\n"));
        }
        for Kept { setting, before, ours } in &self.kept {
            text.push_str(&format!("{setting} {before} {ours}\n"));
        }
        text
    }

    fn parse(text: &str) -> Self {
        let mut switched = Self::default();
        for line in text.lines() {
            // The kernel refuses white space in a link's name (`dev_valid_name`).
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["ipv4"] => switched.ipv4 = true,
                ["ipv6"] => switched.ipv6 = true,
                [setting, before, ours] => {
                    let Some(ours) = ["0", "1", "2"].into_iter().find(|known| *known == ours) else { continue };
                    switched.kept.push(Kept { setting: setting.to_owned(), before: before.to_owned(), ours });
                }
                _ => {}
            }
        }
        switched
    }
}

fn path(installation: &InstallationId) -> PathBuf {
    installation.run_directory().join("forwarding")
}

/// `None` when the link is gone, or the kernel has no such setting.
fn get(setting: &str) -> Option<String> {
    Some(fs::read_to_string(Path::new(SETTINGS).join(setting)).ok()?.trim().to_owned())
}

/// Fine when the link is gone.
fn set(setting: &str, value: &str) -> Result<(), KernelError> {
    let path = Path::new(SETTINGS).join(setting);
    match fs::write(&path, value) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file("write", &path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_switched_on_reads_back() {
        let kept = |setting: &str, before: &str, ours| Kept { setting: setting.into(), before: before.into(), ours };
        let switched = Switched {
            ipv4: true,
            ipv6: false,
            kept: vec![kept("ipv4/conf/eth0.7/forwarding", "1", "0"), kept("ipv4/conf/all/accept_redirects", "0", "1")],
        };
        assert_eq!(Switched::parse(&switched.to_text()), switched);
        assert_eq!(Switched::parse("ipv6\nnonsense\na b\n"), Switched { ipv6: true, ..Switched::default() });
    }
}
