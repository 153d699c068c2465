//! Which system calls a machine may make: everything that programs on a computer of their own make, and nothing that
//! speaks to the host as a whole (modules, clocks, BPF, keyrings) or opens up rarely used parts of the kernel.
//!
//! What the kernel checks against the machine's own user namespace anyway is allowed. New namespaces and mounts are
//! not: they multiply what an attacker can reach, and a machine is a boundary.

use serde_json::{Value, json};

/// By purpose; names that a kernel or the 32-bit interface lacks are passed over by the runtime.
const ALLOWED: &[&str] = &[
    // Files and directories.
    "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat \
     faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat \
     fcntl fcntl64 fdatasync fgetxattr file_getattr file_setattr flistxattr flock fremovexattr fsetxattr fstat \
     fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 \
     getxattr getxattrat lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr _llseek \
     lremovexattr lseek lsetxattr lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open \
     openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv \
     removexattr removexattrat rename renameat renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice \
     stat stat64 statfs statfs64 statmount listmount statx symlink symlinkat sync sync_file_range syncfs tee \
     truncate truncate64 umask unlink unlinkat ustat utime utimensat utimensat_time64 utimes vmsplice write \
     writev",
    // Waiting and notification.
    "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old \
     eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch _newselect \
     pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4 timerfd_create \
     timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 io_cancel io_destroy io_getevents \
     io_pgetevents io_pgetevents_time64 io_setup io_submit",
    // Memory.
    "brk cachestat get_mempolicy madvise map_shadow_stack mbind membarrier memfd_create memfd_secret mincore \
     mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc \
     pkey_free pkey_mprotect process_madvise process_mrelease remap_file_pages set_mempolicy \
     set_mempolicy_home_node",
    // Processes, threads and their identity.
    "alarm arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 \
     futex_wait futex_waitv futex_wake getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups \
     getgroups32 getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 \
     getrlimit get_robust_list getrusage getsid get_thread_area gettid getuid getuid32 ioprio_get ioprio_set \
     kcmp kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr \
     lsm_list_modules lsm_set_self_attr modify_ldt pause pidfd_getfd pidfd_open pidfd_send_signal prctl \
     prlimit64 process_vm_readv process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending \
     rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
     rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam sched_get_priority_max \
     sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
     sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp setfsgid setfsgid32 \
     setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid setregid32 \
     setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid \
     set_thread_area set_tid_address setuid setuid32 sigaction sigaltstack signal sigpending sigprocmask \
     sigreturn sigsuspend tgkill tkill uretprobe vfork wait4 waitid waitpid chroot",
    // Time; reading it only.
    "clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 \
     getitimer gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun timer_gettime \
     timer_gettime64 timer_settime timer_settime64 times",
    // Sockets.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
     recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown",
    // Between processes.
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend \
     mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop \
     semtimedop_time64 shmat shmctl shmdt shmget",
    // The system.
    "getrandom sysinfo syslog uname olduname ugetrlimit",
];

/// Domains of execution that programs ask for (personality(2)): Linux, 32 bits, no randomised addresses, and asking.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

/// `CLONE_NEWTIME | NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET`. For clone(2) the lowest byte is
/// the exit signal, so `CLONE_NEWTIME` (0x80) cannot be asked for there.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// The families of sockets that programs on a network use: `AF_UNIX`, `AF_INET`, `AF_INET6`, `AF_NETLINK`, `AF_PACKET`.
/// For others the kernel loads modules that hardly anybody uses (`AF_ALG`, `AF_RDS`, `AF_TIPC`, `AF_CAN`), and
/// `AF_VSOCK` reaches the hypervisor under the host, past every network namespace.
const FAMILIES: [u64; 5] = [1, 2, 10, 16, 17];
/// A subvolume inside a machine would have a quota of its own, so that the disk's limit would not count for it:
/// `BTRFS_IOC_SNAP_CREATE`, `SUBVOL_CREATE`, and their second versions.
const SUBVOLUME_REQUESTS: [u64; 4] = [0x5000_9401, 0x5000_940e, 0x5000_9417, 0x5000_9418];
/// `TIOCSTI` and `TIOCLINUX` put input into a terminal that somebody else types on.
const TERMINAL_INJECTION: [u64; 2] = [0x5412, 0x541c];

const EPERM: u32 = libc::EPERM as u32;
const ENOSYS: u32 = libc::ENOSYS as u32;

/// The profile, as the OCI runtime specification has it (`linux.seccomp`).
pub fn profile() -> Value {
    let mut rules = vec![
        json!({ "names": allowed(), "action": "SCMP_ACT_ALLOW" }),
        json!({ "names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [masked(0, NEW_NAMESPACES, 0)] }),
        // Their arguments are in memory, where a filter cannot look; the C library falls back to clone, and to the
        // calls of their own that sockets have on 32-bit x86 since Linux 4.3.
        json!({ "names": ["clone3", "socketcall"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }),
        json!({ "names": ["io_uring_setup", "io_uring_enter", "io_uring_register"],
                "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }),
    ];
    for family in FAMILIES {
        // The kernel looks at the lower half of it.
        rules.push(json!({ "names": ["socket", "socketpair"], "action": "SCMP_ACT_ALLOW",
                           "args": [masked(0, u64::from(u32::MAX), family)] }));
    }
    for personality in PERSONALITIES {
        rules.push(json!({ "names": ["personality"], "action": "SCMP_ACT_ALLOW",
                           "args": [argument(0, personality, "SCMP_CMP_EQ")] }));
    }
    rules.extend(ioctl_rules());
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures(),
        "syscalls": rules,
    })
}

/// The kernel looks at the lower half of the request only, and so must the filter. A rule can name what is refused only
/// where the default is to allow, so each refused request is cut out by the bits in which it differs: for every request
/// and bit, what differs from it there is allowed by a rule of its own; refused requests of one family share theirs.
fn ioctl_rules() -> Vec<Value> {
    let refused: Vec<u64> = SUBVOLUME_REQUESTS.into_iter().chain(TERMINAL_INJECTION).collect();
    allowed_prefixes(&refused)
        .into_iter()
        .map(
            |(mask, value)| json!({ "names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [masked(1, mask, value)] }),
        )
        .collect()
}

/// The fewest (mask, value) pairs over 32 bits, by leading bits, that match every number but the refused ones.
fn allowed_prefixes(refused: &[u64]) -> Vec<(u64, u64)> {
    fn descend(prefix: u64, bits: u32, refused: &[u64], found: &mut Vec<(u64, u64)>) {
        let mask = if bits == 0 { 0 } else { (u64::from(u32::MAX) << (32 - bits)) & u64::from(u32::MAX) };
        if !refused.iter().any(|number| number & mask == prefix) {
            found.push((mask, prefix));
        } else if bits < 32 {
            descend(prefix, bits + 1, refused, found);
            descend(prefix | 1 << (31 - bits), bits + 1, refused, found);
        }
    }
    let mut found = Vec::new();
    descend(0, 0, refused, &mut found);
    found
}

fn allowed() -> Vec<&'static str> {
    ALLOWED.iter().flat_map(|names| names.split_whitespace()).collect()
}

fn argument(index: u32, value: u64, operator: &str) -> Value {
    json!({ "index": index, "value": value, "op": operator })
}

fn masked(index: u32, mask: u64, value: u64) -> Value {
    json!({ "index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" })
}

fn architectures() -> Vec<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "aarch64" => vec!["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "riscv64" => vec!["SCMP_ARCH_RISCV64"],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_listed_twice_and_none_that_reaches_the_host() {
        let all = allowed();
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        for forbidden in [
            "mount",
            "umount2",
            "unshare",
            "setns",
            "bpf",
            "init_module",
            "finit_module",
            "delete_module",
            "kexec_load",
            "keyctl",
            "add_key",
            "request_key",
            "perf_event_open",
            "userfaultfd",
            "open_by_handle_at",
            "settimeofday",
            "clock_settime",
            "reboot",
            "swapon",
            "pivot_root",
            "iopl",
            "ioperm",
            "quotactl",
            "acct",
            "nfsservctl",
            "open_tree",
            "move_mount",
            "fsopen",
            "mount_setattr",
            "clone",
            "clone3",
            "socket",
            "socketpair",
            "socketcall",
            "ioctl",
            "personality",
        ] {
            assert!(!all.contains(&forbidden), "{forbidden}");
        }
    }

    #[test]
    fn exactly_the_refused_requests_match_no_rule() {
        let refused = [0x5000_9401, 0x5000_940e, 0x5412];
        let prefixes = allowed_prefixes(&refused);
        let matches = |number: u64| prefixes.iter().any(|(mask, value)| number & mask == *value);
        for number in refused {
            assert!(!matches(number));
            assert!(matches(number ^ 1) || refused.contains(&(number ^ 1)));
            assert!(matches(number ^ 0x8000_0000));
        }
        for number in [0, 0x5413, 0x5000_9402, u64::from(u32::MAX)] {
            assert!(matches(number));
        }
    }
}
