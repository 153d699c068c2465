//! What a fuzz target calls: bytes that another process or machine had a part in. Not part of the interface.

use crate::denied::{headers_in_report, parse};
use crate::netlink::{Attributes, be32, be64, native32, text};

/// The attributes of a netlink message, and what is in them; `Ok` where there are any.
pub fn attributes(bytes: &[u8]) -> Result<u64, u64> {
    let count = walk(Attributes(bytes), 0);
    for (wanted, payload) in Attributes(bytes) {
        assert!(Attributes(bytes).find(wanted).is_some());
        assert!(text(payload).is_none_or(|text| text.len() <= payload.len()));
        assert_eq!(be64(payload).is_some(), payload.len() >= 8);
        assert_eq!((be32(payload).is_some(), native32(payload).is_some()), (payload.len() >= 4, payload.len() >= 4));
    }
    if count > 0 { Ok(count) } else { Err(0) }
}

/// How many attributes there are, those inside others included.
fn walk(attributes: Attributes<'_>, depth: u32) -> u64 {
    let (mut count, mut length) = (0, 0);
    for (_, payload) in attributes {
        count += 1;
        length += 4 + payload.len();
        if depth < 3 {
            count += walk(Attributes(payload), depth + 1);
        }
    }
    assert!(length <= attributes.0.len(), "attributes overlap");
    count
}

/// A report of a refused packet, as it comes from the kernel; the number of its protocol where it can be read.
pub fn report(bytes: &[u8]) -> Result<u64, u64> {
    match headers_in_report(bytes) {
        Some(Some(headers)) => Ok(headers.protocol.into()),
        Some(None) => Err(1),
        None => Err(0),
    }
}

/// The headers of a refused packet.
pub fn packet(bytes: &[u8]) -> Result<u64, u64> {
    let headers = parse(bytes).ok_or(0u64)?;
    assert_eq!(headers.source.is_ipv4(), headers.destination.is_ipv4());
    assert_eq!(headers.source.is_ipv4(), bytes[0] >> 4 == 4);
    assert!(headers.source_port.is_some() || headers.destination_port.is_none());
    // What follows is not looked at.
    let longer = [bytes, &[0xff; 64]].concat();
    if headers.destination_port.is_some() {
        assert_eq!(parse(&longer), Some(headers));
    }
    Ok(u64::from(headers.protocol) << 2
        | u64::from(headers.source_port.is_some()) << 1
        | u64::from(headers.destination_port.is_some()))
}
