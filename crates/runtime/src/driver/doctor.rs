//! What the host lacks for running machines, found by trying where that is cheap, and the command that mends it.

use std::path::Path;

use serde::Serialize;

use super::container::cgroup::CgroupParent;
use crate::disk;
use crate::helper::find_program;

/// One thing that Warren needs of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub name: String,
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// The command that mends it.
    pub remedy: Option<String>,
}

/// Looks at everything that images, disks and containers need. Changes nothing. Blocks for some milliseconds.
pub fn doctor() -> Vec<Finding> {
    vec![
        privileges(),
        program("OCI runtime", "runc", "apt-get install runc"),
        program("image builder", "mmdebstrap", "apt-get install mmdebstrap"),
        program("btrfs tools", "mkfs.btrfs", "apt-get install btrfs-progs"),
        btrfs(),
        loop_devices(),
        user_namespaces(),
        shifted_mounts(),
        cgroups(),
        seccomp(),
    ]
}

fn finding(name: &str, outcome: Result<String, String>, remedy: &str) -> Finding {
    let ok = outcome.is_ok();
    Finding {
        name: name.to_owned(),
        ok,
        detail: outcome.unwrap_or_else(|detail| detail),
        remedy: (!ok).then(|| remedy.to_owned()),
    }
}

fn privileges() -> Finding {
    let root = nix::unistd::geteuid().is_root();
    let outcome = if root { Ok("runs as root".to_owned()) } else { Err("does not run as root".to_owned()) };
    finding("privileges", outcome, "sudo warren doctor")
}

fn program(name: &str, program: &str, remedy: &str) -> Finding {
    let found = find_program(program).map(|path| path.display().to_string());
    finding(name, found.ok_or_else(|| format!("{program} is not installed")), remedy)
}

fn btrfs() -> Finding {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let outcome = if known.lines().any(|line| line.trim() == "btrfs") {
        Ok("the kernel has it".to_owned())
    } else {
        Err("the kernel has not loaded it; without it disks cannot be limited".to_owned())
    };
    finding("btrfs", outcome, "modprobe btrfs")
}

fn loop_devices() -> Finding {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/loop-control");
    let outcome = opened.map(|_| "available".to_owned()).map_err(|error| format!("/dev/loop-control: {error}"));
    finding("loop devices", outcome, "modprobe loop")
}

fn user_namespaces() -> Finding {
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let outcome = match most.trim().parse::<u64>() {
        Ok(0) => Err("they are switched off".to_owned()),
        Ok(most) => Ok(format!("up to {most}")),
        Err(_) => Err("the kernel has none".to_owned()),
    };
    finding("user namespaces", outcome, "sysctl -w user.max_user_namespaces=65536")
}

fn shifted_mounts() -> Finding {
    // Any file system that can do it will do: the root of most hosts, or one in memory.
    let tried = ["/", "/run"].map(|path| disk::probe_shifted_mount(Path::new(path)));
    let outcome = match tried {
        [Ok(()), _] | [_, Ok(())] => Ok("work".to_owned()),
        [Err(error), Err(_)] => Err(format!("are refused: {error}")),
    };
    finding("idmapped mounts", outcome, "apt-get install linux-image-amd64  # Linux 5.15 or later, then reboot")
}

fn cgroups() -> Finding {
    let outcome = match CgroupParent::detect() {
        Err(error) => Err(error.to_string()),
        Ok(parent) => {
            let version = match parent {
                CgroupParent::V1 { .. } => "version 1",
                CgroupParent::V2 { .. } => "version 2",
            };
            match parent.missing_controllers() {
                missing if missing.is_empty() => Ok(version.to_owned()),
                missing => Err(format!("{version}, without {}", missing.join(", "))),
            }
        }
    };
    finding("cgroups", outcome, "add cgroup_enable=memory to the kernel's command line, then reboot")
}

fn seccomp() -> Finding {
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
    let outcome = actions.map(|_| "available".to_owned()).map_err(|_| "the kernel has no filters".to_owned());
    finding("seccomp", outcome, "apt-get install linux-image-amd64  # a kernel with CONFIG_SECCOMP_FILTER, then reboot")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_a_remedy_and_what_is_there_does_not() {
        for finding in doctor() {
            assert_eq!(finding.ok, finding.remedy.is_none(), "{finding:?}");
        }
    }
}
