mod common;
use std::io::{Read, Write};
use std::net::*;
use std::sync::Arc;
use std::time::Instant;
use common::Fixture;
use warren_model::policy::compile::*;
use warren_model::policy::*;
use warren_model::record::Egress;
#[test]
fn perf() {
    let fixtures: Vec<(&str, Fixture, _, _)> = ["fast", "only", "ct", "mark", "ctonly"].iter().map(|kind| {
        let fixture = Fixture::new();
        let mut spec = fixture.spec(1, "10.0.0.0/16", Egress::Deny);
        let members: Vec<_> = (2..1002).map(|n| fixture.member(&spec, n)).collect();
        let rules = Arc::make_mut(&mut spec.rules);
        if *kind != "fast" {
            rules.inside = if *kind != "except" { warren_model::policy::compile::Default::Refuse } else { warren_model::policy::compile::Default::Accept };
            for m in &members {
                let g = Group(100 + m.number.get());
                rules.groups.extend([(IpAddr::from(m.ipv4), g), (m.ipv6.into(), g)]);
            }
            for n in 0..10_000u32 {
                let (from, to) = (Group(102 + n % 1000), Group(102 + (n / 10 + 7) % 1000));
                let first = 1000 + (n / 1000) as u16 * 20;
                let last = if n % 10 == 0 { first + 5 } else { first };
                rules.exceptions.insert(Exception { from, to, carrier: Carrier::Tcp, ports: PortRange { first, last } });
            }
            if *kind != "except" {
                rules.exceptions.insert(Exception { from: Group(102), to: Group(103), carrier: Carrier::Tcp, ports: PortRange { first: 5432, last: 5432 } });
            }
        }
        fixture.kernel.create_network(&spec, &members).unwrap();
        if *kind == "ct" { fixture.in_router(&spec, "nft insert rule inet warren inside ct state established goto passing"); }
        if *kind == "mark" { fixture.in_router(&spec, "nft add set inet warren gen { type mark; elements = { 7 } }"); 
          fixture.in_router(&spec, "nft insert rule inet warren inside ct mark @gen goto passing"); 
          fixture.in_router(&spec, "nft insert rule inet warren inside tcp flags & (fin | syn | rst | ack) == syn ct mark set 7");  }
        if *kind == "ctonly" { fixture.in_router(&spec, "nft insert rule inet warren between ip daddr @receivers4 accept"); }
        let ms = [0, 1].map(|i: usize| fixture.machine(&spec, &members[i]));
        let target = SocketAddr::new(members[1].ipv4.into(), 5432);
        let listener = ms[1].enter(|| TcpListener::bind(target)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut s = stream.unwrap();
                std::thread::spawn(move || {
                    s.set_nodelay(true).unwrap();
                    let mut b = vec![0; 1 << 17];
                    loop {
                        let n = match s.read(&mut b) { Ok(n) if n > 0 => n, _ => return };
                        if n == 1 { s.write_all(&b[..1]).unwrap(); }
                    }
                });
            }
        });
        (*kind, fixture, ms, target)
    }).collect();
    for round in 0..4 {
        for (kind, _f, ms, target) in &fixtures {
            let (rr, gb, crr) = ms[0].enter(|| {
                let mut s = TcpStream::connect(target).unwrap();
                s.set_nodelay(true).unwrap();
                let mut b = [7u8];
                let mut times = Vec::new();
                for _ in 0..20_000 { let t = Instant::now(); s.write_all(&b).unwrap(); s.read_exact(&mut b).unwrap(); times.push(t.elapsed().as_nanos() as f64 / 1000.0); }
                times.sort_by(f64::total_cmp);
                let big = vec![0u8; 1 << 17];
                let t = Instant::now();
                let mut sent = 0u64;
                while t.elapsed().as_secs_f64() < 1.0 { s.write_all(&big).unwrap(); sent += big.len() as u64; }
                let gb = sent as f64 * 8.0 / t.elapsed().as_secs_f64() / 1e9;
                let t = Instant::now();
                let mut n = 0;
                while n < 50 { let mut s = TcpStream::connect(target).unwrap(); s.write_all(&b).unwrap(); s.read_exact(&mut b).unwrap(); n += 1; }
                (times[times.len() / 2], gb, n as f64 / 0.7)
            });
            println!("{round} {kind}: rr {rr:.2} us  {gb:.2} Gb/s  crr {crr:.0}/s");
        }
    }
}
