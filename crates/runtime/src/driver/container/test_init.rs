// The first process of the machines that tests run: says what it finds, in /report, and stays until it is asked to end.
// Compiled by the tests into a static program; not part of the crate.

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::fmt::Write;
use std::fs;

unsafe extern "C" {
    fn signal(signal: c_int, handler: extern "C" fn(c_int)) -> *mut c_void;
    fn syscall(number: c_long, ...) -> c_long;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn socketpair(domain: c_int, kind: c_int, protocol: c_int, descriptors: *mut c_int) -> c_int;
    fn ioctl(descriptor: c_int, request: c_ulong, ...) -> c_int;
    fn unshare(flags: c_int) -> c_int;
    fn mount(source: *const u8, target: *const u8, kind: *const u8, flags: c_ulong, data: *const u8) -> c_int;
    fn mknod(path: *const u8, mode: u32, device: u64) -> c_int;
    fn _exit(status: c_int) -> !;
}

extern "C" fn end(_: c_int) {
    unsafe { _exit(0) }
}

fn outcome(result: c_long) -> String {
    if result >= 0 {
        "ok".to_owned()
    } else {
        format!("{}", std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

/// 32-bit socketcall(`SYS_SOCKET`), with arguments that are nowhere: what a filter lets through is EFAULT.
#[cfg(target_arch = "x86_64")]
fn socketcall() -> i64 {
    let result: i64;
    unsafe {
        std::arch::asm!("xchg rsi, rbx", "int 0x80", "xchg rsi, rbx", inout("rax") 102_i64 => result,
            inout("rsi") 1_i64 => _, in("rcx") 0_i64, lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _);
    }
    result
}

fn main() {
    let mode = fs::read_to_string("/run/warren/mode").unwrap_or_default();
    if mode != "ignore" {
        unsafe { signal(15, end) };
    }
    if mode == "exit" {
        unsafe { _exit(3) }
    }
    let mut report = String::new();
    let mut say = |name: &str, value: String| writeln!(report, "{name}={}", value.trim().replace('\n', "|")).unwrap();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_else(|error| format!("error {error}"));
    let directory = fs::File::open("/").unwrap();
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&directory);
    let mut name = [0u8; 4096];
    name[8..11].copy_from_slice(b"sub");
    unsafe {
        say("pid", std::process::id().to_string());
        say("uid_map", read("/proc/self/uid_map"));
        say("hostname", read("/proc/sys/kernel/hostname"));
        say("status", read("/proc/self/status"));
        say("mountinfo", read("/proc/self/mountinfo"));
        say("limits", read("/proc/self/limits"));
        say("kcore", fs::read("/proc/kcore").map(|bytes| bytes.len()).unwrap_or(0).to_string());
        say("write_sysctl", fs::write("/proc/sys/kernel/domainname", "x").is_ok().to_string());
        say("write_agent_directory", fs::write("/run/warren/x", "x").is_ok().to_string());
        say("write_run", fs::write("/run/x", "x").is_ok().to_string());
        say("sysfs_net", fs::read_dir("/sys/class/net").map(|entries| entries.count()).unwrap_or(99).to_string());
        say("root", {
            let mut names: Vec<_> =
                fs::read_dir("/").unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names.join(" ")
        });
        say("unshare", outcome(unshare(0x1000_0000).into()));
        say(
            "mount",
            outcome(mount(b"x\0".as_ptr(), b"/tmp\0".as_ptr(), b"tmpfs\0".as_ptr(), 0, b"\0".as_ptr()).into()),
        );
        say("device", outcome(mknod(b"/tmp/sda\0".as_ptr(), 0o60666, 0x800).into()));
        say("vsock", outcome(socket(40, 1, 0).into()));
        // With bits that the kernel throws away.
        say("vsock_high", outcome(syscall(41, 0x1_0000_0028_u64, 1_u64, 0_u64)));
        for (name, family, kind) in
            [("appletalk", 5, 2), ("rds", 21, 5), ("can", 29, 3), ("tipc", 30, 5), ("bluetooth", 31, 3), ("alg", 38, 5)]
        {
            say(name, outcome(socket(family, kind, 0).into()));
        }
        let mut pair = [0; 2];
        say("pair_tipc", outcome(socketpair(30, 5, 0, pair.as_mut_ptr()).into()));
        say("pair_unix", outcome(socketpair(1, 1, 0, pair.as_mut_ptr()).into()));
        say("unix", outcome(socket(1, 1, 0).into()));
        say("tcp6", outcome(socket(10, 1, 0).into()));
        say("netlink", outcome(socket(16, 3, 0).into()));
        #[cfg(target_arch = "x86_64")]
        say("socketcall", (-socketcall()).to_string());
        say("ping", outcome(socket(2, 2, 1).into()));
        say("raw", outcome(socket(2, 3, 1).into()));
        say("packet", outcome(socket(17, 3, 0x0300).into()));
        say("port_80", std::net::TcpListener::bind("0.0.0.0:80").is_ok().to_string());
        // BTRFS_IOC_SUBVOL_CREATE, plain, and with bits that the kernel throws away; then one that is merely unknown.
        say("subvolume", outcome(ioctl(descriptor, 0x5000_940e, name.as_ptr()).into()));
        say("subvolume_high", outcome(syscall(16, descriptor, 0x1_5000_940e_u64, name.as_ptr())));
        say("unknown_ioctl", outcome(ioctl(descriptor, 0x5000_940d, name.as_ptr()).into()));
        say("bpf", outcome(syscall(321, 0, 0, 0)));
        say("clone3", outcome(syscall(435, 0, 0)));
        say("io_uring", outcome(syscall(425, 1, 0)));
        say("chown", std::os::unix::fs::chown("/etc/issue", Some(1000), Some(1000)).is_ok().to_string());
    }
    fs::write("/report.new", report).unwrap();
    fs::rename("/report.new", "/report").unwrap();
    loop {
        std::thread::park();
    }
}
