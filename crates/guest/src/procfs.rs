//! Processes and sockets as `/proc` shows them (proc(5)). All of it blocks, and all of it may vanish while it is read.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::Path;

use warren_guest::protocol::EXEC_MARKER;

/// The most of one file that is read, in bytes.
const LONGEST: u64 = 16 << 20;

/// The most processes that a walk looks at.
const MOST_PROCESSES: usize = 32_768;

/// The state of a TCP socket that listens, and of a UDP socket that is not connected, in `/proc/net`.
const TCP_LISTEN: &str = "0A";
const UDP_UNCONNECTED: &str = "07";

/// One line of `/proc/net/{tcp,udp}{,6}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    pub address: std::net::IpAddr,
    pub port: u16,
    pub inode: u64,
}

/// The direct children of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let mut found = Vec::new();
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return found };
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(text) => found.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            // The kernel was built without CONFIG_PROC_CHILDREN.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && thread.path().exists() => {
                return processes().filter(|other| stat(*other).is_some_and(|stat| stat.parent == pid)).collect();
            }
            Err(_) => {}
        }
    }
    found
}

/// `roots` and everything below them.
pub fn descendants(roots: &[i32]) -> Vec<i32> {
    let mut all = roots.to_vec();
    let mut seen: HashSet<i32> = roots.iter().copied().collect();
    let mut next = 0;
    while next < all.len() && all.len() < MOST_PROCESSES {
        all.extend(children(all[next]).into_iter().filter(|child| seen.insert(*child)));
        next += 1;
    }
    all
}

/// Whether a process is there and has not ended.
pub fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// The session of a process.
pub fn session(pid: i32) -> Option<i32> {
    nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).ok().map(nix::unistd::Pid::as_raw)
}

/// What the environment that a process was started with says about the command that started it.
pub fn exec_marker(pid: i32) -> Option<u64> {
    let environment = read(Path::new(&format!("/proc/{pid}/environ")))?;
    let mark = environment
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(EXEC_MARKER.as_bytes())?.strip_prefix(b"="))?;
    std::str::from_utf8(mark).ok()?.parse().ok()
}

/// The name of a process.
pub fn name(pid: i32) -> Option<String> {
    let name = read(Path::new(&format!("/proc/{pid}/comm")))?;
    let name = String::from_utf8_lossy(&name);
    Some(name.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).take(64).collect())
}

/// The TCP sockets that listen.
pub fn listening_tcp() -> Vec<Socket> {
    [("/proc/self/net/tcp", TCP_LISTEN), ("/proc/self/net/tcp6", TCP_LISTEN)].into_iter().flat_map(sockets).collect()
}

/// The UDP sockets that take from anybody.
pub fn bound_udp() -> Vec<Socket> {
    let files = [("/proc/self/net/udp", UDP_UNCONNECTED), ("/proc/self/net/udp6", UDP_UNCONNECTED)];
    files.into_iter().flat_map(sockets).collect()
}

/// The inodes of the sockets that a process holds.
pub fn sockets_of(pid: i32) -> impl Iterator<Item = u64> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|descriptor| {
        let target = fs::read_link(descriptor.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

/// Which process holds each of these sockets: the one with the lowest number.
pub fn holders(inodes: &HashSet<u64>) -> HashMap<u64, i32> {
    let mut holders = HashMap::new();
    for pid in processes() {
        if holders.len() == inodes.len() {
            break;
        }
        for inode in sockets_of(pid).filter(|inode| inodes.contains(inode)) {
            holders.entry(inode).or_insert(pid);
        }
    }
    holders
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(MOST_PROCESSES)
}

struct Stat {
    state: char,
    parent: i32,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = read(Path::new(&format!("/proc/{pid}/stat")))?;
    parse_stat(&String::from_utf8_lossy(&text))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name is in parentheses and may hold parentheses and spaces.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    Some(Stat { state: fields.next()?.chars().next()?, parent: fields.next()?.parse().ok()? })
}

fn sockets((file, state): (&str, &str)) -> Vec<Socket> {
    let text = read(Path::new(file)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().skip(1).filter_map(|line| parse_socket(line, state)).collect()
}

fn parse_socket(line: &str, wanted: &str) -> Option<Socket> {
    let fields: Vec<&str> = line.split_ascii_whitespace().take(10).collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    if *state != wanted {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    Some(Socket {
        address: parse_address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        inode: inode.parse().ok()?,
    })
}

/// The kernel prints addresses as 32-bit words in the byte order of the processor.
fn parse_address(text: &str) -> Option<std::net::IpAddr> {
    if !text.is_ascii() {
        return None;
    }
    let word = |at: usize| u32::from_str_radix(text.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(std::net::IpAddr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for index in 0..4 {
                octets[index * 4..][..4].copy_from_slice(&word(index * 8)?);
            }
            Some(std::net::IpAddr::from(octets))
        }
        _ => None,
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_listening_socket_is_read_as_the_kernel_prints_it() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 22 1 0 100";
        let socket = parse_socket(line, TCP_LISTEN).unwrap();
        assert_eq!((socket.address.to_string().as_str(), socket.port, socket.inode), ("127.0.0.1", 8080, 22));
        assert!(parse_socket(&line.replace(" 0A ", " 01 "), TCP_LISTEN).is_none());
        assert_eq!(parse_address("00000000000000000000000001000000").unwrap().to_string(), "::1");
    }

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_state() {
        let stat = parse_stat("12 (a) Z 1 (b)) S 7 12 12 0").unwrap();
        assert_eq!((stat.state, stat.parent), ('S', 7));
    }

    #[test]
    fn this_process_is_alive_and_has_a_session() {
        let pid = std::process::id() as i32;
        assert!(is_alive(pid) && session(pid).is_some() && name(pid).is_some());
        assert!(descendants(&[pid]).contains(&pid));
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "\\PC{0,120}") {
            let _ = parse_socket(&line, TCP_LISTEN);
            let _ = parse_stat(&line);
            let _ = parse_address(&line);
        }
    }
}
