use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use rustix::net::{SocketFlags, bind, socket_with};

use super::*;

/// A socket as the daemon makes it, with an address and without a port.
fn socket() -> OwnedFd {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    setsockopt(&socket, IpBindAddressNoPort, &true).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket
}

fn pool(count: usize) -> Arc<Pool> {
    let pool = Pool::new(Handle::current());
    pool.add((0..count).map(|_| socket()).collect()).unwrap();
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
        let expected = said.clone();
        let machine = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = vec![0; expected.len()];
            stream.read_exact(&mut heard).unwrap();
            assert_eq!(heard, expected.as_bytes(), "{end:?}");
            stream.write_all(&heard).unwrap();
            stream
        });
        let mut connection = pool.clone().connect(address).await.unwrap();
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
                tokio::time::sleep(Duration::from_millis(5)).await;
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
    let (_listener, address) = listener();
    let first = pool.clone().connect(address).await.unwrap();
    let _second = pool.clone().connect(address).await.unwrap();
    assert_eq!(pool.clone().connect(address).await.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    let waiting = tokio::spawn(pool.clone().connect(address));
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(first);
    waiting.await.unwrap().unwrap();
    pool.add(vec![socket()]).unwrap();
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
    tokio::time::sleep(FAREWELL * 2).await;
    assert!(pool.state().free.is_empty());
}

#[tokio::test]
async fn only_sockets_of_tcp_over_ipv4_are_taken() {
    let pool = Pool::new(Handle::current());
    let udp = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    assert!(pool.add(vec![udp.into()]).is_err());
    assert!(pool.add(vec![listener().0.into()]).is_err());
    assert_eq!(pool.status().sockets, 0);
}
