//! A DNS server in the lab's internet, which remembers what it was asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use warren_lab::{Internet, PUBLIC_V4, PUBLIC_V6};

use crate::common::eventually;

/// Leads to the internet's public addresses.
pub const GOOD: &str = "www.example.";
/// Leads to an address that is not public.
pub const REBINDING: &str = "rebind.example.";
/// Where the second one leads; it answers in the internet.
pub const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Answers on port 53 of the internet's public addresses until it is dropped.
pub struct Resolver {
    asked: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

impl Resolver {
    pub fn new(internet: &Internet) -> Self {
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        // A socket for each address: one for all would answer from another one than it was asked at.
        let servers = [PUBLIC_V4, PUBLIC_V6].map(|address| {
            let address: IpAddr = address.parse().unwrap();
            let mut socket = None;
            // A busy kernel takes a while until a new IPv6 address can be used.
            eventually(Duration::from_secs(30), || {
                socket = internet.namespace.enter(|| UdpSocket::bind((address, 53))).ok();
                socket.is_some()
            });
            let socket = socket.unwrap_or_else(|| panic!("{address} cannot be listened on"));
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let (asked, stop) = (Arc::clone(&asked), Arc::clone(&stop));
            std::thread::spawn(move || serve(&socket, &asked, &stop))
        });
        Self { asked, stop, servers: servers.into() }
    }

    /// Whether anybody ever asked for this name.
    pub fn was_asked(&self, name: &str) -> bool {
        self.asked.lock().unwrap().iter().any(|asked| asked.eq_ignore_ascii_case(name))
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for server in self.servers.drain(..) {
            let _ = server.join();
        }
    }
}

fn serve(socket: &UdpSocket, asked: &Mutex<Vec<String>>, stop: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
        asked.lock().unwrap().push(query.queries[0].name().to_ascii());
        let _ = socket.send_to(&answer(&query).to_vec().unwrap(), from);
    }
}

fn answer(query: &Message) -> Message {
    let question = query.queries[0].clone();
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    let name = question.name().to_ascii().to_ascii_lowercase();
    let addresses = match (name.as_str(), question.query_type()) {
        (GOOD, RecordType::A) => vec![RData::A(A(PUBLIC_V4.parse().unwrap()))],
        (GOOD, RecordType::AAAA) => vec![RData::AAAA(AAAA(PUBLIC_V6.parse::<Ipv6Addr>().unwrap()))],
        (REBINDING, RecordType::A) => vec![RData::A(A(PRIVATE))],
        (GOOD | REBINDING, _) => Vec::new(),
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            Vec::new()
        }
    };
    let records = addresses.into_iter().map(|data| Record::from_rdata(question.name().clone(), 60, data));
    answer.add_answers(records.collect::<Vec<_>>());
    answer.add_query(question);
    answer
}
