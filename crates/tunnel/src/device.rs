//! A network's device, which somebody with privileges opened.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::packet::frame::{LONGEST, Stations, head_length, read_head};
use crate::packet::virtio::Header;
use crate::peer::PeerError;
use crate::sys;

/// A hardware address of Ethernet, as its bytes go over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

/// What the packets of a device stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// `IFF_TUN`: nothing, they are IP packets.
    Tun,
    /// `IFF_TAP`: Ethernet frames.
    Tap,
}

/// How a network's device is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// One with `IFF_TUN`. `mtu` is the device's: the largest IP packet, in bytes.
    Tun { mtu: u16 },
    /// One with `IFF_TAP`. Every peer has a MAC address of its own there, from which its packets come, so that the
    /// kernel can tell peers apart by interface, MAC and IP address. They go to `router`, which is the device's own
    /// MAC address. `mtu` is the device's: the largest IP packet, in bytes, without the Ethernet header.
    ///
    /// Nothing here answers ARP and neighbour solicitations: the kernel has to be told the peers' MAC addresses
    /// (permanent neighbours). Of the frames that the kernel sends, those that carry neither IPv4 nor IPv6, and those
    /// to a multicast or broadcast MAC address, are dropped and counted as
    /// [`unrouted`](crate::GatewayStatus::unrouted). The others go to the peer whose IP address they have, whatever
    /// MAC address they go to.
    Tap { mtu: u16, router: Mac },
}

impl Device {
    pub fn kind(&self) -> DeviceKind {
        match self {
            Self::Tun { .. } => DeviceKind::Tun,
            Self::Tap { .. } => DeviceKind::Tap,
        }
    }
}

impl Mac {
    /// Whether this can be the address of one station (IEEE 802: neither a group's nor zero).
    fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// A device in use.
#[derive(Debug)]
pub struct OpenDevice {
    descriptor: OwnedFd,
    /// What `epoll` calls it.
    pub token: u64,
    /// The largest packet, in bytes.
    pub mtu: usize,
    /// The other end of a TAP device.
    router: Option<Mac>,
}

impl OpenDevice {
    pub fn new(descriptor: OwnedFd, token: u64, device: Device) -> io::Result<Self> {
        let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let flags = sys::tun_flags(descriptor.as_fd())?;
        let all = |wanted: libc::c_int| flags & wanted as u16 == wanted as u16;
        let (mtu, router) = match device {
            Device::Tun { mtu } if all(libc::IFF_TUN) => (mtu, None),
            Device::Tap { mtu, router } if all(libc::IFF_TAP) => (mtu, Some(router)),
            Device::Tun { .. } => return invalid("the device is not one with IFF_TUN"),
            Device::Tap { .. } => return invalid("the device is not one with IFF_TAP"),
        };
        if !all(libc::IFF_NO_PI | libc::IFF_VNET_HDR) {
            return invalid("the device is not one with IFF_NO_PI and IFF_VNET_HDR");
        }
        if router.is_some_and(|router| !router.is_station()) {
            return invalid("the MAC address of the router is not one of a station");
        }
        fcntl_setfl(&descriptor, fcntl_getfl(&descriptor)? | OFlags::NONBLOCK)?;
        Ok(Self { descriptor, token, mtu: usize::from(mtu), router })
    }

    /// Between whom frames of a peer with this MAC address go; nothing where there are no frames.
    pub fn stations(&self, mac: Option<Mac>) -> Result<Option<Stations>, PeerError> {
        let Some(router) = self.router else { return Ok(None) };
        let mac = mac.filter(|mac| mac.is_station() && *mac != router).ok_or(PeerError::NoMac)?;
        Ok(Some(Stations::new(router.0, mac.0)))
    }

    /// One IP packet, without waiting, and its length; nothing when what came is none for any peer.
    pub fn read(&self, head: &mut [u8; LONGEST], packet: &mut [u8]) -> rustix::io::Result<Option<(Header, usize)>> {
        let is_frame = self.router.is_some();
        loop {
            let parts = &mut [IoSliceMut::new(&mut head[..head_length(is_frame)]), IoSliceMut::new(packet)];
            match rustix::io::readv(&self.descriptor, parts) {
                Err(rustix::io::Errno::INTR) => {}
                read => return read.map(|length| read_head(head, length, is_frame)),
            }
        }
    }

    /// One packet, in pieces, of which the first is its head. False when the device did not take it.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> bool {
        rustix::io::retry_on_intr(|| rustix::io::writev(&self.descriptor, pieces)).is_ok()
    }
}

impl AsFd for OpenDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
