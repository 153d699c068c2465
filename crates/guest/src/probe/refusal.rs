//! What the kernel knows of an ICMP error that a socket met (ip(7), `IP_RECVERR`).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use warren_model::probe::Outcome;

/// `SO_EE_ORIGIN_ICMP` and `SO_EE_ORIGIN_ICMP6` of linux/errqueue.h.
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;
/// "Destination unreachable" (RFC 792, RFC 4443 §3.1).
const UNREACHABLE_V4: u8 = 3;
const UNREACHABLE_V6: u8 = 1;

/// Asks the kernel to keep errors with whoever sent them.
pub fn keep(socket: BorrowedFd<'_>, four: bool) -> io::Result<()> {
    if four {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
    }
    Ok(())
}

/// What an error means for an attempt: by what the kernel kept of it, else by its number.
pub fn meaning(socket: BorrowedFd<'_>, error: &io::Error) -> Outcome {
    kept(socket).unwrap_or_else(|| by_number(error))
}

fn kept(socket: BorrowedFd<'_>) -> Option<Outcome> {
    let mut payload = [0; 256];
    let mut pieces = [io::IoSliceMut::new(&mut payload)];
    let mut space = cmsg_space!([u8; 256]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags).ok()?;
    for control in message.cmsgs().ok()? {
        match control {
            ControlMessageOwned::Ipv4RecvErr(error, offender) if error.ee_origin == ORIGIN_ICMP => {
                let by = offender.map(|offender| IpAddr::from(u32::from_be(offender.sin_addr.s_addr).to_be_bytes()));
                return Some(by_icmp_v4(error.ee_type, error.ee_code, by));
            }
            ControlMessageOwned::Ipv6RecvErr(error, offender) if error.ee_origin == ORIGIN_ICMP6 => {
                let by = offender.map(|offender| IpAddr::from(offender.sin6_addr.s6_addr));
                return Some(by_icmp_v6(error.ee_type, error.ee_code, by));
            }
            _ => {}
        }
    }
    None
}

/// RFC 1122 §3.2.2.1 and RFC 1812 §5.2.7.1: 9, 10 and 13 are "administratively prohibited", 3 is a closed port.
fn by_icmp_v4(kind: u8, code: u8, by: Option<IpAddr>) -> Outcome {
    match (kind, code) {
        (UNREACHABLE_V4, 9 | 10 | 13) => Outcome::Prohibited { by },
        (UNREACHABLE_V4, 3) => Outcome::Reset,
        _ => Outcome::Unreachable { by },
    }
}

/// RFC 4443 §3.1: 1 is "administratively prohibited", 5 and 6 are refusals by policy and by route, 4 is a closed port.
fn by_icmp_v6(kind: u8, code: u8, by: Option<IpAddr>) -> Outcome {
    match (kind, code) {
        (UNREACHABLE_V6, 1 | 5 | 6) => Outcome::Prohibited { by },
        (UNREACHABLE_V6, 4) => Outcome::Reset,
        _ => Outcome::Unreachable { by },
    }
}

fn by_number(error: &io::Error) -> Outcome {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED | Errno::ECONNRESET | Errno::EPIPE) => Outcome::Reset,
        Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::ENOPROTOOPT | Errno::EACCES) => {
            Outcome::Unreachable { by: None }
        }
        Some(Errno::ETIMEDOUT) => Outcome::Silent,
        _ => Outcome::NotTried { why: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prohibited_counts_as_prohibited() {
        for code in 0..=15 {
            let prohibited = matches!(by_icmp_v4(3, code, None), Outcome::Prohibited { .. });
            assert_eq!(prohibited, [9, 10, 13].contains(&code), "{code}");
        }
        assert_eq!(by_icmp_v4(3, 3, None), Outcome::Reset);
        assert_eq!(by_icmp_v6(1, 4, None), Outcome::Reset);
        assert!(matches!(by_icmp_v6(1, 1, None), Outcome::Prohibited { .. }));
        assert!(matches!(by_icmp_v4(11, 13, None), Outcome::Unreachable { .. }));
    }
}
