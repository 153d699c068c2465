//! Room for connections to machines, of which a network has only so many at once.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use warren_model::NetworkNumber;

use crate::upstream::{Dial, Target, Upstream};

type Targets = HashMap<NetworkNumber, Vec<Weak<Target>>>;

/// Makes connections, at the cost of unused ones of the same network where there is no room for more: what one site keeps
/// to be faster is not what another one cannot have.
pub(crate) struct Room {
    dial: Arc<dyn Dial>,
    /// Weak, since a target's connections hold on to this.
    targets: Arc<ArcSwap<Targets>>,
}

impl Room {
    pub fn new(dial: Arc<dyn Dial>) -> Self {
        Self { dial, targets: Arc::default() }
    }

    /// Only these give up connections from now on.
    pub fn share_among<'a>(&self, targets: impl Iterator<Item = (NetworkNumber, &'a Arc<Target>)>) {
        let mut by_network = Targets::new();
        for (network, target) in targets {
            by_network.entry(network).or_default().push(Arc::downgrade(target));
        }
        self.targets.store(Arc::new(by_network));
    }
}

impl Dial for Room {
    fn dial(&self, network: NetworkNumber, to: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Upstream>>> {
        let first = self.dial.dial(network, to);
        let (dial, targets) = (self.dial.clone(), self.targets.clone());
        Box::pin(async move {
            match first.await {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    give_up_one(&targets.load_full(), network);
                    // It takes a moment until there is room. Without anything to give up, somebody may be done by then.
                    dial.dial_patiently(network, to).await
                }
                outcome => outcome,
            }
        })
    }
}

/// Closes the connection to the network that has been unused the longest.
fn give_up_one(targets: &Targets, network: NetworkNumber) {
    let there = targets.get(&network).into_iter().flatten().filter_map(Weak::upgrade);
    let mut spare: Vec<_> = there.filter_map(|target| Some((target.oldest_spare()?, target))).collect();
    spare.sort_by_key(|(since, _)| *since);
    // Others may have taken or closed some meanwhile.
    let _was_open = spare.iter().any(|(_, target)| target.give_up_spare());
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use http::Request;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::sync::{OwnedSemaphorePermit, Semaphore};
    use tokio::time::timeout;

    use super::*;
    use crate::body::Sent;
    use crate::limits::Limits;
    use crate::problem::Refusal;
    use crate::snapshot::{Site, SiteLimits};
    use crate::upstream::Link;

    /// Has room for two connections to each network, all to machines that answer.
    #[derive(Default)]
    struct Few {
        rooms: Mutex<HashMap<NetworkNumber, Arc<Semaphore>>>,
        /// The ports that are connected to, by age.
        open: Arc<Mutex<Vec<u16>>>,
    }

    impl Few {
        fn room(&self, network: NetworkNumber) -> Arc<Semaphore> {
            self.rooms.lock().unwrap().entry(network).or_insert_with(|| Arc::new(Semaphore::new(2))).clone()
        }

        fn open(&self) -> Vec<u16> {
            self.open.lock().unwrap().clone()
        }
    }

    fn machine(port: u16, open: Arc<Mutex<Vec<u16>>>, room: OwnedSemaphorePermit) -> Box<dyn Upstream> {
        let (near, mut machine) = duplex(4096);
        open.lock().unwrap().push(port);
        tokio::spawn(async move {
            let mut read = Vec::new();
            while machine.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
                if read.ends_with(b"\r\n\r\n") {
                    read.clear();
                    machine.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
            }
            open.lock().unwrap().retain(|other| *other != port);
            drop(room);
        });
        Box::new(near)
    }

    impl Dial for Few {
        fn dial(&self, network: NetworkNumber, to: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Upstream>>> {
            let (room, open) = (self.room(network).try_acquire_owned(), self.open.clone());
            Box::pin(async move {
                let room = room.map_err(|_| io::Error::from(io::ErrorKind::ResourceBusy))?;
                Ok(machine(to.port(), open, room))
            })
        }

        fn dial_patiently(
            &self,
            network: NetworkNumber,
            to: SocketAddr,
        ) -> BoxFuture<'static, io::Result<Box<dyn Upstream>>> {
            let (room, open) = (self.room(network).acquire_owned(), self.open.clone());
            Box::pin(async move {
                let room = timeout(Duration::from_secs(2), room).await;
                let room = room.map_err(|_| io::Error::from(io::ErrorKind::ResourceBusy))?;
                Ok(machine(to.port(), open, room.unwrap()))
            })
        }
    }

    fn number(number: u16) -> NetworkNumber {
        NetworkNumber::new(number).unwrap()
    }

    fn target(network: u16, port: u16) -> Arc<Target> {
        let site = Site {
            host: "a.example".parse().unwrap(),
            id: port.to_string(),
            network: number(network),
            addresses: vec![[10, 0, 0, 2].into()],
            port,
            auth: None,
            limits: SiteLimits::default(),
        };
        Arc::new(Target::new(&site, &Limits::default()))
    }

    /// Asks, and reads the whole answer; the connection is in use until it is given back.
    async fn ask(target: &Arc<Target>, dial: &Arc<dyn Dial>) -> Result<Link, Refusal> {
        let mut request = Request::new(Sent::Empty);
        request.headers_mut().insert("host", "a.example".parse().unwrap());
        let attempt = target.attempt(request);
        let (mut response, link) = target.complete(attempt, dial, &Limits::default()).await?;
        while response.body_mut().frame().await.is_some() {}
        Ok(link)
    }

    #[tokio::test]
    async fn what_a_site_does_not_use_is_not_what_another_one_of_the_network_lacks() {
        let few = Arc::new(Few::default());
        let room = Room::new(few.clone());
        let [first, second, third, elsewhere] = [(1, 1), (1, 2), (1, 3), (2, 4)].map(|(net, port)| target(net, port));
        let targets = [(1, &first), (1, &second), (1, &third), (2, &elsewhere)];
        room.share_among(targets.into_iter().map(|(network, target)| (number(network), target)));
        let dial: Arc<dyn Dial> = Arc::new(room);
        let ask = |target| ask(target, &dial);

        for target in [&elsewhere, &first, &second] {
            target.give_back(ask(target).await.unwrap());
        }
        assert_eq!(few.open(), [4, 1, 2]);
        let third_link = ask(&third).await.expect("there is room");
        assert_eq!(few.open(), [4, 2, 3], "the oldest of the network is closed, and it alone");

        let second_link = ask(&second).await.expect("its own connection is still there");
        assert_eq!(ask(&first).await.map(drop), Err(Refusal::Busy), "what is in use is not closed");
        assert_eq!(few.open(), [4, 2, 3]);
        drop((second_link, third_link));
    }
}
