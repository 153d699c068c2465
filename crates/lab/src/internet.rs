//! An internet of one namespace, with addresses that look global and some that must never be reached.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::{Lab, Namespace, outside};

/// A global address of the internet.
pub const PUBLIC_V4: &str = "1.1.1.1";
/// A global address of the internet.
pub const PUBLIC_V6: &str = "2606:4700:4700::1111";
/// Addresses that answer on the internet's side although they are not global: what `open` egress must not reach.
pub const NOT_GLOBAL: [&str; 6] =
    ["10.99.0.1", "172.16.9.9", "192.168.77.1", "100.64.3.3", "169.254.169.254", "fd00:ec2::254"];

const PATIENCE: Duration = Duration::from_secs(1);
/// Whoever is connected gets its answer, on however busy a machine.
const ANSWERS: Duration = Duration::from_secs(20);

/// A namespace with an HTTP server on port 80 of all of its addresses, which answers with the caller's address.
pub struct Internet {
    pub namespace: Namespace,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Internet {
    pub fn new(lab: &Lab) -> Self {
        let namespace = lab.namespace("internet");
        for address in [PUBLIC_V4, PUBLIC_V6].iter().chain(&NOT_GLOBAL) {
            namespace.run(&format!("ip addr add {address} dev lo"));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let listener = namespace.enter(|| TcpListener::bind("[::]:80")).expect("port 80 of a new namespace is free");
        listener.set_nonblocking(true).expect("a listener can be nonblocking");
        let server = std::thread::spawn({
            let stop = stop.clone();
            move || serve(&listener, &stop)
        });
        Self { namespace, stop, server: Some(server) }
    }

    /// A namespace whose default routes (IPv4 and IPv6) lead to this internet, with one global address of each family,
    /// [`outside::HOST`]. One host per internet.
    pub fn host(&self, lab: &Lab, name: &str) -> Namespace {
        let host = lab.namespace(name);
        outside::join(lab, &host, &self.namespace);
        host
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// Fetches from an [`Internet`], inside the namespace that the caller is in: the address it saw, or `None` when nobody
/// took the connection within a second.
pub fn fetch(address: &str) -> Option<IpAddr> {
    let address: IpAddr = address.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, 80), PATIENCE).ok()?;
    stream.set_read_timeout(Some(ANSWERS)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.lines().last()?.parse().ok()
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, from)) => {
                std::thread::spawn(move || answer(stream, from));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(2)),
            Err(_) => return,
        }
    }
}

fn answer(mut stream: TcpStream, from: SocketAddr) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(ANSWERS));
    let Ok(reading) = stream.try_clone() else { return };
    let head = BufReader::new(reading).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let _ = head.count();
    let body = from.ip().to_canonical().to_string();
    let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
}
