use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Instant;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use rustix::net::{SocketFlags, bind, socket_with};

use super::*;

/// Time in which anything is done, on however busy a machine.
const SOON: Duration = Duration::from_secs(30);

/// A socket as the daemon makes it, with an address and without a port.
fn socket() -> OwnedFd {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    setsockopt(&socket, IpBindAddressNoPort, &true).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket
}

fn pool(count: usize) -> Arc<Pool> {
    let pool = Pool::new(Handle::current());
    pool.add(Prepared::new((0..count).map(|_| socket()).collect()).unwrap());
    pool
}

fn listener() -> (TcpListener, SocketAddrV4) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    match listener.local_addr().unwrap() {
        SocketAddr::V4(address) => (listener, address),
        SocketAddr::V6(_) => unreachable!(),
    }
}

/// How a connection ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Here,
    There,
    BothHalves,
    /// The machine sends what nobody reads.
    Unread,
    /// The machine resets.
    Reset,
    /// The machine never closes.
    Never,
    /// What was written here is not read there.
    Unsent,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_is_used_again_and_nothing_of_the_connection_before_is_seen() {
    use End::*;
    let pool = pool(1);
    let mut held = Vec::new();
    for (round, end) in [Here, There, BothHalves, Unread, Reset, Never, Unsent].into_iter().cycle().take(21).enumerate()
    {
        let (listener, address) = listener();
        let said = format!("round {round}");
        let begun = Instant::now();
        let expected = said.clone();
        let machine = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = vec![0; expected.len()];
            stream.read_exact(&mut heard).unwrap();
            assert_eq!(heard, expected.as_bytes(), "{end:?}");
            stream.write_all(&heard).unwrap();
            stream
        });
        let mut connection = loop {
            match pool.clone().connect_patiently(address).await {
                // The connection before is still given its time, which a busy machine makes longer.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && begun.elapsed() < SOON => {}
                connected => break connected.unwrap(),
            }
        };
        connection.write_all(said.as_bytes()).await.unwrap();
        let mut heard = vec![0; said.len()];
        connection.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, said.as_bytes(), "{end:?}");
        let mut machine = machine.join().unwrap();
        match end {
            Here => {}
            There => {
                drop(machine);
                assert_eq!(connection.read(&mut [0]).await.unwrap(), 0);
                held.truncate(4);
                continue;
            }
            BothHalves => {
                machine.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(connection.read(&mut [0]).await.unwrap(), 0);
                connection.shutdown().await.unwrap();
                assert_eq!(machine.read(&mut [0]).unwrap(), 0);
            }
            Unread => machine.write_all(b"old words that nobody asked for").unwrap(),
            Reset => {
                // Closing with something unread in the socket is a reset.
                connection.write_all(b"unread").await.unwrap();
                machine.peek(&mut [0]).unwrap();
                drop(machine);
                assert!(connection.read(&mut [0]).await.is_err());
                continue;
            }
            Never => {}
            Unsent => {
                let flood = async { while connection.write_all(&[7; 65536]).await.is_ok() {} };
                assert!(timeout(Duration::from_millis(50), flood).await.is_err());
            }
        }
        drop(connection);
        if matches!(end, Here) {
            assert_eq!(machine.read(&mut [0]).unwrap(), 0, "it is closed, not broken");
        } else {
            held.push(machine);
        }
    }
    assert_eq!(pool.status(), PoolStatus { sockets: 1, most_used: 1 });
}

#[tokio::test]
async fn a_connection_that_is_refused_or_given_up_leaves_its_socket() {
    let pool = pool(1);
    for _ in 0..3 {
        let (listener, address) = listener();
        drop(listener);
        let refused = pool.clone().connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        // Nobody answers there (RFC 5737), or it is refused at once.
        let nobody = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9);
        let _ = timeout(Duration::from_millis(5), pool.clone().connect(nobody)).await;
    }
    let (listener, address) = listener();
    let mut connection = pool.clone().connect(address).await.unwrap();
    connection.write_all(b"still").await.unwrap();
    let mut heard = [0; 5];
    listener.accept().unwrap().0.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still");
}

#[tokio::test]
async fn who_comes_when_all_are_in_use_waits_and_is_refused_in_the_end() {
    let pool = pool(2);
    let (listener, address) = listener();
    let first = pool.clone().connect(address).await.unwrap();
    let _second = pool.clone().connect(address).await.unwrap();
    let hasty = timeout(PATIENCE / 2, pool.clone().connect(address)).await.expect("it waits");
    assert_eq!(hasty.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    assert_eq!(pool.clone().connect_patiently(address).await.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    let waiting = tokio::spawn(pool.clone().connect_patiently(address));
    tokio::time::sleep(Duration::from_millis(20)).await;
    // Closed on both sides, the socket is free at once.
    drop((listener.accept().unwrap(), first));
    waiting.await.unwrap().unwrap();
    pool.add(Prepared::new(vec![socket()]).unwrap());
    pool.clone().connect(address).await.unwrap();
    assert_eq!(pool.status(), PoolStatus { sockets: 3, most_used: 3 });
}

#[tokio::test]
async fn a_closed_pool_connects_nobody_and_keeps_nothing() {
    let pool = pool(2);
    let (_listener, address) = listener();
    let open = pool.clone().connect(address).await.unwrap();
    pool.close();
    assert!(pool.clone().connect(address).await.is_err());
    drop(open);
    let farewell = async {
        while Arc::strong_count(&pool) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, farewell).await.expect("the connection holds on to the pool");
    assert!(pool.state().free.is_empty());
}

#[tokio::test]
async fn only_sockets_of_tcp_over_ipv4_are_taken() {
    let udp = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    assert!(Prepared::new(vec![udp.into()]).is_err());
    assert!(Prepared::new(vec![listener().0.into()]).is_err());
    assert_eq!(Prepared::new(vec![socket()]).unwrap().count(), 1);
}

/// Takes what the other side does not read, until nothing moves any more; how many bytes that are.
fn fill(mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> usize {
    let (mut taken, mut rests) = (0, 0);
    while rests < 10 {
        match write(&[7; 65536]) {
            Ok(count) => (taken, rests) = (taken + count, 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                rests += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{error}"),
        }
    }
    taken
}

/// The kernel would grow the buffers of a fast connection to megabytes (tcp_rmem and tcp_wmem, tcp(7)).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_reads_is_bounded_both_ways_also_after_much_was_read_fast() {
    const FAST: usize = 64 << 20;
    let pool = pool(1);
    let (listener, address) = listener();
    let machine = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for _ in 0..FAST >> 20 {
            stream.write_all(&[7; 1 << 20]).unwrap();
        }
        stream
    });
    let mut connection = pool.clone().connect(address).await.unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut left = FAST;
    while left > 0 {
        left -= connection.read(&mut buffer).await.unwrap();
    }
    let mut machine = machine.join().unwrap();
    machine.set_nonblocking(true).unwrap();
    // What waits on the machine's side counts on top.
    sockopt::set_socket_send_buffer_size(&machine, 16 << 10).unwrap();
    sockopt::set_socket_recv_buffer_size(&machine, 16 << 10).unwrap();
    let most = 3 * WAITING;
    let unread = fill(|bytes| machine.write(bytes));
    assert!((1..=most).contains(&unread), "{unread} bytes wait for the client");
    let stream = connection.stream_mut().unwrap();
    let unread = fill(|bytes| stream.try_write(bytes));
    assert!((1..=most).contains(&unread), "{unread} bytes wait for the machine");
}
