//! What the kernel reports of packets that machines sent.

use warren_fuzz::{Target, run};
use warren_kernel::fuzz;

const MEMORY: u64 = 1 << 20;
const PORTS: [u8; 8] = [0x9c, 0x40, 0x15, 0x38, 0, 0, 0, 0];

fn four(protocol: u8, options: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() as u8 / 4;
    let head = [0x40 | words, 0, 0, 28, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 2, 10, 0, 0, 3];
    [&head[..], options, &PORTS].concat()
}

fn six(next: u8, extensions: &[u8]) -> Vec<u8> {
    let mut head = vec![0x60, 0, 0, 0, 0, 8, next, 64];
    head.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2].repeat(2));
    [&head, extensions, &PORTS].concat()
}

fn packets() -> Vec<Vec<u8>> {
    vec![
        four(6, &[]),
        four(17, &[1; 12]),
        four(1, &[]),
        six(17, &[]),
        six(58, &[]),
        six(0, &[43, 0, 0, 0, 0, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 7]),
        six(51, &[6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ]
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() + 4) as u16;
    let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), payload].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[test]
fn headers_of_packets() {
    run(&Target {
        name: "headers_of_packets",
        seeds: packets(),
        words: &[&[0x45], &[0x60], &[0, 0, 0, 0, 0, 0, 0, 0], &[44, 0, 0, 8], &[51, 255], &[60, 0]],
        longest: 1024,
        memory: MEMORY,
        parse: &fuzz::packet,
    });
}

#[test]
fn reports_of_packets() {
    let report = |packet: &Vec<u8>| {
        let before = [attribute(10, b"policy\0"), attribute(4, &[0, 0, 0, 7]), attribute(12, &[0, 0, 1, 0])].concat();
        [&[2, 0, 0, 5][..], &before, &attribute(9, packet)].concat()
    };
    run(&Target {
        name: "reports_of_packets",
        seeds: packets().iter().map(report).collect(),
        words: &[&[4, 0, 9, 0], &[8, 0, 4, 0], &[0, 0, 0, 0], &[255, 255, 9, 0]],
        longest: 2048,
        memory: MEMORY,
        parse: &fuzz::report,
    });
}

#[test]
fn netlink_attributes() {
    let inner = [attribute(1, b"eth0\0"), attribute(2, &7u32.to_ne_bytes())].concat();
    let nested = [attribute(3, &[0; 8]), attribute(0x8004, &inner)].concat();
    run(&Target {
        name: "netlink_attributes",
        seeds: vec![nested, inner],
        words: &[&[4, 0, 1, 0], &[0, 0, 0, 0], &[3, 0, 1, 0], &[255, 255, 1, 0], &[8, 0, 4, 128]],
        longest: 2048,
        memory: MEMORY,
        parse: &fuzz::attributes,
    });
}
