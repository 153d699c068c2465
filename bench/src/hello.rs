//! How TLS begins, and nothing of what follows: a proxy that goes by the server name copies from there on, so what is
//! measured is the copying and not the encryption of the two ends.

use std::io::{self, Read, Write};

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const TLS_1_2: [u8; 2] = [3, 3];
const TLS_1_3: [u8; 2] = [3, 4];
/// TLS_AES_128_GCM_SHA256 (RFC 8446 §B.4).
const SUITE: [u8; 2] = [0x13, 0x01];

/// Sends a ClientHello for the name and waits until the server has answered.
pub fn greet(stream: &mut (impl Read + Write), name: &str) -> io::Result<()> {
    stream.write_all(&client_hello(name))?;
    read_record(stream)
}

/// Takes a ClientHello and answers it.
pub fn answer(stream: &mut (impl Read + Write)) -> io::Result<()> {
    read_record(stream)?;
    stream.write_all(&server_hello())
}

/// What a client of TLS 1.3 says first (RFC 8446 §4.1.2).
pub fn client_hello(name: &str) -> Vec<u8> {
    let host = vector16(&[&[0], vector16(name.as_bytes()).as_slice()].concat());
    let key_share = vector16(&[&[0, 0x1d], vector16(&[7; 32]).as_slice()].concat());
    let extensions = [
        extension(0, &host),
        // supported_groups: x25519; signature_algorithms: ecdsa_secp256r1_sha256; supported_versions: TLS 1.3.
        extension(10, &vector16(&[0, 0x1d])),
        extension(13, &vector16(&[4, 3])),
        extension(43, &[&[2], TLS_1_3.as_slice()].concat()),
        extension(51, &key_share),
    ]
    .concat();
    let session = [&[32], [5; 32].as_slice()].concat();
    let rest = [session, vector16(&SUITE), vec![1, 0], vector16(&extensions)].concat();
    handshake(CLIENT_HELLO, &[TLS_1_2.as_slice(), &[9; 32], &rest].concat())
}

/// What a server of TLS 1.3 says first (RFC 8446 §4.1.3).
fn server_hello() -> Vec<u8> {
    let key_share = [&[0, 0x1d], vector16(&[8; 32]).as_slice()].concat();
    let extensions = [extension(43, &TLS_1_3), extension(51, &key_share)].concat();
    let session = [&[32], [5; 32].as_slice()].concat();
    let rest = [session, SUITE.to_vec(), vec![0], vector16(&extensions)].concat();
    handshake(SERVER_HELLO, &[TLS_1_2.as_slice(), &[6; 32], &rest].concat())
}

/// A message in a record of its own (RFC 8446 §4 and §5.1).
fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let message = [&[kind, 0], vector16(body).as_slice()].concat();
    [&[HANDSHAKE, 3, 1], vector16(&message).as_slice()].concat()
}

fn extension(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[0, kind], vector16(content).as_slice()].concat()
}

/// The bytes, with their number in front; the messages of this file are far shorter than 64 KiB.
fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

fn read_record(stream: &mut impl Read) -> io::Result<()> {
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    if header[0] != HANDSHAKE {
        return Err(io::Error::other(format!("this is not how TLS begins: {header:?}")));
    }
    let length = u16::from_be_bytes([header[3], header[4]]);
    stream.read_exact(&mut vec![0; length.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_has_the_lengths_that_it_says() {
        let hello = client_hello("www.example.com");
        assert_eq!(usize::from(u16::from_be_bytes([hello[3], hello[4]])), hello.len() - 5);
        assert_eq!(usize::from(u16::from_be_bytes([hello[7], hello[8]])), hello.len() - 9);
        let name = b"\0\0\0\x14\0\x12\0\0\x0fwww.example.com";
        assert!(hello.windows(name.len()).any(|window| window == name));
    }
}
