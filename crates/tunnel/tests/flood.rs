//! What garbage takes: alone in its process, whose memory is looked at.

mod common;

use common::{SERVER4, World, answers, at_host, eventually};

#[test]
fn a_flood_of_garbage_takes_no_memory_and_operators_go_on() {
    let world = World::new();
    let _router = world.network(1);
    let _operator = world.join();
    answers(&world.laptop, SERVER4);
    let socket = world.laptop.enter(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    let flood = |rounds: u32| {
        let mut seed = 0x2545_f491_u32;
        for round in 0..rounds {
            let mut datagram = [0u8; 1500];
            for byte in datagram.iter_mut() {
                seed ^= seed << 13;
                seed ^= seed >> 17;
                seed ^= seed << 5;
                *byte = seed as u8;
            }
            // Half of them look like messages.
            datagram[..4].copy_from_slice(&[(round % 8) as u8, 0, 0, 0]);
            let length = [148, 92, 64, 32, 16, 3, 1500, 1][round as usize / 8 % 8];
            let _ = socket.send_to(&datagram[..length], at_host());
        }
    };
    flood(2_000);
    let before = resident();
    flood(60_000);
    // A gateway that gets less time than the flood does not see all of it.
    eventually("garbage", || {
        flood(1_000);
        let status = world.gateway.status();
        status.garbage > 10_000 && status.foreign > 1_000
    });
    let grown = resident().saturating_sub(before);
    assert!(grown < 2 << 20, "{grown} bytes more");
    answers(&world.laptop, SERVER4);
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
