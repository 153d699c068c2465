//! The two system calls that no safe wrapper gives as they are needed: `recvmmsg(2)` and `sendmmsg(2)` with the control
//! messages of UDP's GSO and GRO (udp(7)) and of the address that a datagram came to (ip(7), ipv6(7)). Their buffers
//! are made once.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr;

use crate::device::DeviceKind;

/// What one message holds: as much as a datagram can.
const MESSAGE: usize = 65_535;
/// Messages of one call. With GRO each of them is a burst, so that few fill the caches.
pub const RECEIVED: usize = 8;
/// Messages of one call.
pub const SENT: usize = 64;
/// Bytes of control messages: a segment size, and the larger of the addresses.
const CONTROL: usize = 64;

/// Where a peer is, and which of our addresses it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    pub to: SocketAddr,
    /// The address that its packets came to, and the interface where that is needed to say which one is meant.
    pub from: Option<(IpAddr, u32)>,
}

/// A datagram, or several of the same size from the same sender.
#[derive(Debug, Clone)]
pub struct Received {
    /// Where it stands in [`Receiver::buffer`].
    pub at: Range<usize>,
    /// The size of each datagram but the last.
    pub segment: usize,
    pub endpoint: Endpoint,
}

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// Receives bursts.
pub struct Receiver {
    pub buffer: Box<[u8]>,
    headers: Box<[libc::mmsghdr; RECEIVED]>,
    vectors: Box<[libc::iovec; RECEIVED]>,
    names: Box<[libc::sockaddr_storage; RECEIVED]>,
    controls: Box<[Control; RECEIVED]>,
    received: Vec<Received>,
}

/// Sends bursts.
pub struct Sender {
    headers: Box<[libc::mmsghdr; SENT]>,
    vectors: Box<[libc::iovec; SENT]>,
    names: Box<[libc::sockaddr_storage; SENT]>,
    controls: Box<[Control; SENT]>,
}

/// Datagrams of the same size, but for the last, to the same peer.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub at: Range<usize>,
    pub segment: usize,
    pub endpoint: Endpoint,
}

impl Receiver {
    pub fn new() -> Self {
        // SAFETY: all of these are plain C structures, for which zeros are a value.
        unsafe {
            Self {
                buffer: vec![0; RECEIVED * MESSAGE].into(),
                headers: Box::new(zeroed()),
                vectors: Box::new(zeroed()),
                names: Box::new(zeroed()),
                controls: Box::new(zeroed()),
                received: Vec::with_capacity(RECEIVED),
            }
        }
    }

    /// Takes what is there, without waiting. Messages that were cut off, and those without a sender, are left out.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<(&[Received], &mut [u8])> {
        for place in 0..RECEIVED {
            let part = &mut self.buffer[place * MESSAGE..(place + 1) * MESSAGE];
            self.vectors[place] = libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() };
            let header = &mut self.headers[place].msg_hdr;
            header.msg_name = ptr::from_mut(&mut self.names[place]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = ptr::from_mut(&mut self.vectors[place]);
            header.msg_iovlen = 1;
            header.msg_control = self.controls[place].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
            header.msg_flags = 0;
        }
        // SAFETY: every header points to a name, a vector, a control buffer and a part of the buffer, with their
        // lengths, which all belong to `self` and stay where they are during the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                RECEIVED as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        self.received.clear();
        for place in 0..count {
            let header = &self.headers[place];
            let length = header.msg_len as usize;
            if header.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
                continue;
            }
            let Some(to) = read_name(&self.names[place]) else { continue };
            let (segment, from) = read_control(&header.msg_hdr);
            let segment = if segment == 0 { length } else { segment };
            let at = place * MESSAGE..place * MESSAGE + length;
            self.received.push(Received { at, segment: segment.max(1), endpoint: Endpoint { to, from } });
        }
        Ok((&self.received, &mut self.buffer))
    }
}

impl Sender {
    pub fn new() -> Self {
        // SAFETY: all of these are plain C structures, for which zeros are a value.
        unsafe {
            Self {
                headers: Box::new(zeroed()),
                vectors: Box::new(zeroed()),
                names: Box::new(zeroed()),
                controls: Box::new(zeroed()),
            }
        }
    }

    /// Hands the first of these to the kernel, without waiting, and says how many. At most [`SENT`] are looked at.
    pub fn send(&mut self, socket: BorrowedFd<'_>, buffer: &[u8], messages: &[Outgoing]) -> io::Result<usize> {
        let count = messages.len().min(SENT);
        for (place, message) in messages[..count].iter().enumerate() {
            let part = &buffer[message.at.clone()];
            // The kernel only reads from it.
            self.vectors[place] = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
            let name_length = write_name(&mut self.names[place], message.endpoint.to);
            let header = &mut self.headers[place].msg_hdr;
            header.msg_name = ptr::from_mut(&mut self.names[place]).cast();
            header.msg_namelen = name_length;
            header.msg_iov = ptr::from_mut(&mut self.vectors[place]);
            header.msg_iovlen = 1;
            header.msg_control = self.controls[place].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
            header.msg_flags = 0;
            let segment = if message.segment < part.len() { message.segment as u16 } else { 0 };
            write_control(header, segment, message.endpoint.from);
        }
        // SAFETY: every header points to a name, a vector and a control buffer of `self`, and to a part of `buffer`,
        // with their lengths; all of them stay where they are during the call.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count as libc::c_uint,
                (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Asks for GRO, and for the address that a datagram came to. An old kernel without GRO gives single datagrams.
pub fn prepare(socket: BorrowedFd<'_>, is_v6: bool) -> io::Result<()> {
    let _ = set(socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    if is_v6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
    } else {
        set(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    }
}

fn set(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the value is an int that outlives the call, with its size.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens a device as [`crate::Gateway`] needs it, in the calling thread's network namespace, with all offloads that the
/// kernel has. One of this name that was [kept](keep_device) and is not in use is attached to; else it is made. A device
/// that was made goes with the descriptor and all its duplicates. Needs `CAP_NET_ADMIN` there.
///
/// # Errors
///
/// When the name is too long, is that of a device of another kind or of one in use, or the kernel does not allow it.
pub fn open_device(name: &str, kind: DeviceKind) -> io::Result<OwnedFd> {
    // _IOW('T', 202, int) and _IOW('T', 208, unsigned int), from linux/if_tun.h, which also has the offloads:
    // checksums, TSO4, TSO6, ECN, and since Linux 6.2 USO4 and USO6.
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca_u32 as libc::Ioctl;
    const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0_u32 as libc::Ioctl;
    const OFFLOADS: [libc::c_ulong; 2] = [0x6f, 0x0f];

    let device = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: zeros are an ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // The last byte ends the name.
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of a device has 1 to 15 bytes"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let kind = match kind {
        DeviceKind::Tun => libc::IFF_TUN,
        DeviceKind::Tap => libc::IFF_TAP,
    };
    request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the kernel reads and writes an ifreq, which outlives the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, ptr::from_mut(&mut request)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the argument is a number.
    let set = |offloads: libc::c_ulong| unsafe { libc::ioctl(device.as_raw_fd(), TUNSETOFFLOAD, offloads) } == 0;
    if !OFFLOADS.into_iter().any(set) {
        return Err(io::Error::last_os_error());
    }
    Ok(device.into())
}

/// Says whether a device stays, with its addresses, routes and neighbours, when its descriptor goes (`TUNSETPERSIST`). It
/// can be opened again by its name then. One that is not to stay goes with its descriptor, or, when it is in nobody's
/// use, by `ip link delete`.
///
/// # Errors
///
/// When the descriptor is not one of a device.
pub fn keep_device(device: BorrowedFd<'_>, keep: bool) -> io::Result<()> {
    // _IOW('T', 203, int), from linux/if_tun.h.
    const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb_u32 as libc::Ioctl;
    // SAFETY: the argument is a number.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETPERSIST, libc::c_ulong::from(keep)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `TUNGETIFF`: the flags of the device behind a descriptor.
pub fn tun_flags(device: BorrowedFd<'_>) -> io::Result<u16> {
    // _IOR('T', 210, unsigned int), from linux/if_tun.h.
    const TUNGETIFF: libc::Ioctl = 0x8004_54d2_u32 as libc::Ioctl;
    // SAFETY: zeros are an ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    // SAFETY: the kernel writes an ifreq, which outlives the call.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), TUNGETIFF, ptr::from_mut(&mut request)) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: TUNGETIFF fills in this member of the union; any bytes are a number anyway.
    Ok(unsafe { request.ifr_ifru.ifru_flags } as u16)
}

fn read_name(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the kernel wrote an address of this family, and the storage has the size and the alignment.
            let name = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
            Some((address, u16::from_be(name.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let address = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(address, u16::from_be(name.sin6_port), 0, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn write_name(name: &mut libc::sockaddr_storage, address: SocketAddr) -> libc::socklen_t {
    match address {
        SocketAddr::V4(address) => {
            // SAFETY: the storage has the size and the alignment of every kind of address.
            let name = unsafe { &mut *ptr::from_mut(name).cast::<libc::sockaddr_in>() };
            name.sin_family = libc::AF_INET as libc::sa_family_t;
            name.sin_port = address.port().to_be();
            name.sin_addr.s_addr = u32::from(*address.ip()).to_be();
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(address) => {
            // SAFETY: as above.
            let name = unsafe { &mut *ptr::from_mut(name).cast::<libc::sockaddr_in6>() };
            name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            name.sin6_port = address.port().to_be();
            name.sin6_flowinfo = 0;
            name.sin6_addr.s6_addr = address.ip().octets();
            name.sin6_scope_id = address.scope_id();
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}

/// The size of the datagrams that GRO put together, or 0, and the address that they came to.
fn read_control(header: &libc::msghdr) -> (usize, Option<(IpAddr, u32)>) {
    let (mut segment, mut from) = (0, None);
    // SAFETY: the header is as the kernel left it: its control buffer holds whole messages, which these macros walk,
    // and the data of each has the type that goes with its level and kind. It may not be aligned.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = control.as_ref() {
            let data = libc::CMSG_DATA(control);
            match (message.cmsg_level, message.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    segment = usize::try_from(data.cast::<libc::c_int>().read_unaligned()).unwrap_or(0);
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    from = Some((IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr))), 0));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    let interface = if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
                    from = Some((IpAddr::V6(address), interface));
                }
                _ => {}
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    (segment, from)
}

/// Writes the control messages into the header's buffer of [`CONTROL`] bytes, and their length into the header.
fn write_control(header: &mut libc::msghdr, segment: u16, from: Option<(IpAddr, u32)>) {
    let mut length = 0;
    // SAFETY: the buffer has room for a segment size (24 bytes) and the larger of the addresses (40 bytes), and is
    // aligned as a cmsghdr has to be.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        let mut put = |level, kind, data: *const u8, size: usize| {
            (*control).cmsg_level = level;
            (*control).cmsg_type = kind;
            (*control).cmsg_len = libc::CMSG_LEN(size as u32) as _;
            ptr::copy_nonoverlapping(data, libc::CMSG_DATA(control), size);
            let space = libc::CMSG_SPACE(size as u32) as usize;
            length += space;
            control = control.cast::<u8>().add(space).cast();
        };
        if segment > 0 {
            put(libc::SOL_UDP, libc::UDP_SEGMENT, ptr::from_ref(&segment).cast(), size_of::<u16>());
        }
        match from {
            Some((IpAddr::V4(address), _)) => {
                let address = libc::in_addr { s_addr: u32::from(address).to_be() };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: address };
                put(libc::IPPROTO_IP, libc::IP_PKTINFO, ptr::from_ref(&info).cast(), size_of::<libc::in_pktinfo>());
            }
            Some((IpAddr::V6(address), interface)) => {
                let address = libc::in6_addr { s6_addr: address.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: interface };
                let size = size_of::<libc::in6_pktinfo>();
                put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, ptr::from_ref(&info).cast(), size);
            }
            None => {}
        }
    }
    header.msg_controllen = length as _;
    if length == 0 {
        header.msg_control = ptr::null_mut();
    }
}
