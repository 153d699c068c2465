//! A network's TUN device, which somebody with privileges opened.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::packet::virtio::HEADER;
use crate::sys;

#[derive(Debug)]
pub struct Tun {
    device: OwnedFd,
    /// What `epoll` calls it.
    pub token: u64,
    /// The largest packet, in bytes.
    pub mtu: usize,
}

impl Tun {
    pub fn new(device: OwnedFd, token: u64, mtu: u16) -> io::Result<Self> {
        let flags = sys::tun_flags(device.as_fd())?;
        let wanted = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
        if flags & wanted != wanted {
            let what = "the device is not one with IFF_TUN, IFF_NO_PI and IFF_VNET_HDR";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        fcntl_setfl(&device, fcntl_getfl(&device)? | OFlags::NONBLOCK)?;
        Ok(Self { device, token, mtu: usize::from(mtu) })
    }

    /// One packet, without waiting; its length.
    pub fn read(&self, header: &mut [u8; HEADER], packet: &mut [u8]) -> rustix::io::Result<usize> {
        loop {
            let parts = &mut [IoSliceMut::new(header), IoSliceMut::new(packet)];
            match rustix::io::readv(&self.device, parts) {
                Err(rustix::io::Errno::INTR) => {}
                read => return read.map(|length| length.saturating_sub(HEADER)),
            }
        }
    }

    /// One packet, in pieces, of which the first is the virtio header. False when the device did not take it.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> bool {
        rustix::io::retry_on_intr(|| rustix::io::writev(&self.device, pieces)).is_ok()
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
