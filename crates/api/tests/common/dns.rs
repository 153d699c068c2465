//! A DNS server on the loopback that knows TXT records.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

/// What a name answers. One that is not known does not exist.
#[derive(Debug, Clone)]
pub enum Txt {
    Says(Vec<String>),
    /// It exists, without a TXT record.
    Nothing,
    Fails,
    Silent,
}

pub struct Dns {
    pub address: SocketAddr,
    names: Arc<Mutex<BTreeMap<String, Txt>>>,
    _tasks: JoinSet<()>,
}

impl Dns {
    pub async fn start() -> Self {
        // The same port over both, which somebody else may have over TCP.
        let (socket, listener) = loop {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()).await {
                break (socket, listener);
            }
        };
        let address = socket.local_addr().unwrap();
        let names: Arc<Mutex<BTreeMap<String, Txt>>> = Arc::default();
        let mut tasks = JoinSet::new();
        let known = Arc::clone(&names);
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                if let Some(bytes) = answer(&known, &buffer[..length], true) {
                    socket.send_to(&bytes, from).await.unwrap();
                }
            }
        });
        let known = Arc::clone(&names);
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                while let Ok(length) = stream.read_u16().await {
                    let mut query = vec![0; usize::from(length)];
                    stream.read_exact(&mut query).await.unwrap();
                    let Some(bytes) = answer(&known, &query, false) else { break };
                    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
                    stream.write_all(&[&length[..], &bytes].concat()).await.unwrap();
                }
            }
        });
        Self { address, names, _tasks: tasks }
    }

    pub fn set(&self, name: &str, answer: Txt) {
        self.names.lock().unwrap().insert(name.to_owned(), answer);
    }

    pub fn says(&self, name: &str, text: &str) {
        self.set(name, Txt::Says(vec![text.to_owned()]));
    }
}

/// An answer of more than 512 bytes comes over TCP only (RFC 1035 §4.2.1).
fn answer(names: &Mutex<BTreeMap<String, Txt>>, bytes: &[u8], udp: bool) -> Option<Vec<u8>> {
    let query = Message::from_vec(bytes).ok()?;
    let question = query.queries.first()?.clone();
    let name = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.metadata.recursion_desired = true;
    answer.metadata.recursion_available = true;
    assert_eq!(question.query_type(), RecordType::TXT);
    match names.lock().unwrap().get(&name) {
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(Txt::Fails) => answer.metadata.response_code = ResponseCode::ServFail,
        Some(Txt::Silent) => return None,
        Some(Txt::Nothing) => {}
        Some(Txt::Says(texts)) => {
            for text in texts {
                // In parts of 255 bytes at most, as long ones have to be.
                let parts = text.as_bytes().chunks(255).map(|part| String::from_utf8(part.to_vec()).unwrap());
                let data = RData::TXT(TXT::new(parts.collect()));
                answer.add_answer(Record::from_rdata(question.name().clone(), 60, data));
            }
        }
    }
    answer.add_query(question);
    let whole = answer.to_vec().ok()?;
    if udp && whole.len() > 512 {
        answer.answers.clear();
        answer.metadata.truncation = true;
        return answer.to_vec().ok();
    }
    Some(whole)
}
