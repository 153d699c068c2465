//! How the edge gives up every privilege, before it reads a single byte from a machine.
//!
//! Afterwards it is an unprivileged user in a session of its own, with no capability and no way to one, in an empty
//! root directory that nothing can be put into, and with a system call filter: it can use the sockets and files
//! that it holds and is handed, make Internet sockets, and little else.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Descriptors that the edge may hold. The eight sockets of each of 65,535 networks are half of them at most, and those of
/// the public side to machines a quarter (`public::dial`); the rest is for connections and lookups.
const DESCRIPTORS: u64 = 1 << 20;

/// Which privilege could not be given up. The process must end.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("the edge has to be started by root, to become an unprivileged user")]
    NotRoot,
    #[error("the edge must not become user or group 0")]
    ToRoot,
    #[error("the edge has {0} threads where it gives up its privileges; each thread has its own")]
    Threads(usize),
    #[error("could not {step}")]
    Step {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("could not install the system call filter")]
    Filter(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Closes everything that was inherited, leaves the session, and makes room for descriptors. Needs root, and
/// refuses before anything else to become root again.
pub(crate) fn detach(uid: u32, gid: u32) -> Result<(), ConfineError> {
    if !Uid::effective().is_root() {
        return Err(ConfineError::NotRoot);
    }
    if uid == 0 || gid == 0 {
        return Err(ConfineError::ToRoot);
    }
    let threads = fs::read_dir("/proc/self/task").map_err(at("count the threads"))?.count();
    if threads != 1 {
        return Err(ConfineError::Threads(threads));
    }
    close_inherited().map_err(at("close what was inherited"))?;
    // Fails when the process leads a group already, and then it is in no session that matters to it.
    let _ = nix::unistd::setsid();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(at("read the limit of descriptors"))?;
    let highest = fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let wanted = DESCRIPTORS.min(highest.unwrap_or(DESCRIPTORS)).max(hard);
    // Where root lacks CAP_SYS_RESOURCE, the hard limit has to do.
    setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted)
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
        .map_err(at("raise the limit of descriptors"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(at("switch core dumps off"))
}

/// Gives up everything. `empty` is a directory in which a root directory can be made for a moment.
pub(crate) fn confine(uid: u32, gid: u32, empty: &Path) -> Result<(), ConfineError> {
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .and_then(|text| text.trim().parse::<u32>().map_err(io::Error::other))
        .map_err(at("read which capabilities exist"))?;
    enter_empty_root(empty)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));

    for capability in 0..=last.min(63) {
        rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << capability))
            .map_err(at("empty the bounding set"))?;
    }
    let secure = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    rustix::thread::set_capabilities_secure_bits(secure).map_err(at("lock the secure bits"))?;
    rustix::thread::clear_ambient_capability_set().map_err(at("clear the ambient capabilities"))?;

    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    nix::unistd::setgroups(&[]).map_err(at("leave all groups"))?;
    nix::unistd::setresgid(gid, gid, gid).map_err(at("change the group"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(at("change the user"))?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).map_err(at("drop the capabilities"))?;

    rustix::thread::set_no_new_privs(true).map_err(at("rule out new privileges"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(at("rule out memory dumps"))?;
    let filter = filter().map_err(|error| ConfineError::Filter(error.into()))?;
    seccompiler::apply_filter(&filter).map_err(|error| ConfineError::Filter(error.into()))
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |error| ConfineError::Step { step, source: error.into() }
}

fn close_inherited() -> io::Result<()> {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect();
    for descriptor in open {
        // The one that the directory was read through is among them, and closed by now.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

/// Makes a directory, enters it, and removes it: what is left is a root in which nothing is and nothing can be made.
fn enter_empty_root(parent: &Path) -> Result<(), ConfineError> {
    let directory = parent.join(format!(".edge-root-{}", nix::unistd::getpid()));
    fs::create_dir(&directory).map_err(at("make an empty root directory"))?;
    let entered = nix::unistd::chdir(&directory).map_err(at("enter the empty root directory"));
    fs::remove_dir(&directory).map_err(at("remove the empty root directory"))?;
    entered?;
    nix::unistd::chroot(".").map_err(at("change the root directory"))?;
    nix::unistd::chdir("/").map_err(at("change to the root directory"))
}

/// Refuses, with EPERM, the system calls that a resolver has no use for and that a bug in it could be turned into
/// something else with: running programs, looking into other processes, namespaces, mounts, kernel interfaces, and
/// sockets that are not of the Internet.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    const REFUSED: [libc::c_long; 41] = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal,
        libc::SYS_kill,
        libc::SYS_kcmp,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_open_by_handle_at,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_quotactl,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_memfd_create,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let not = |family: libc::c_int| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family as u64);
    let foreign = SeccompRule::new(vec![not(libc::AF_INET)?, not(libc::AF_INET6)?])?;
    rules.insert(libc::SYS_socket, vec![foreign]);
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), architecture)?.try_into()
}
