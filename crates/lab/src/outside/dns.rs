//! DNS servers that write down every question.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::svcb::{EchConfigList, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HTTPS, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::log::{Log, Seen};
use super::names::{Answer, Names};

/// What is needed to answer.
#[derive(Clone)]
pub(crate) struct Dns {
    pub(crate) names: Arc<Names>,
    pub(crate) log: Arc<Log>,
}

impl Dns {
    pub(crate) async fn serve_udp(self, socket: UdpSocket, server: IpAddr) {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            if let Some(answer) = self.answer(&buffer[..length], server, false) {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    }

    pub(crate) async fn serve_tcp(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(self.clone().converse(stream));
        }
    }

    async fn converse(self, mut stream: TcpStream) {
        let Ok(local) = stream.local_addr().map(|local| SocketAddr::ip(&local).to_canonical()) else { return };
        while let Ok(length) = stream.read_u16().await {
            let mut query = vec![0; usize::from(length)];
            if stream.read_exact(&mut query).await.is_err() {
                return;
            }
            let Some(answer) = self.answer(&query, local, true) else { return };
            let Ok(length) = u16::try_from(answer.len()) else { return };
            if stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, bytes: &[u8], server: IpAddr, tcp: bool) -> Option<Vec<u8>> {
        let query = Message::from_vec(bytes).ok()?;
        let question = query.queries.first()?.clone();
        let name = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let kind = question.query_type();
        self.log.add(Seen::Query { server, name: name.clone(), kind: kind.to_string(), tcp });
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        match self.names.get(&name) {
            Some(record) => {
                let mut owner = question.name().clone();
                if let Answer::Alias(target) = &record.answer {
                    let target = Name::from_ascii(format!("{target}.")).ok()?;
                    answer.add_answer(Record::from_rdata(owner, record.ttl, RData::CNAME(CNAME(target.clone()))));
                    owner = target;
                }
                for data in self.records(&name, kind, &record.answer) {
                    answer.add_answer(Record::from_rdata(owner.clone(), record.ttl, data));
                }
            }
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        answer.add_query(question);
        answer.to_vec().ok()
    }

    fn records(&self, name: &str, kind: RecordType, answer: &Answer) -> Vec<RData> {
        let data = |address| match address {
            IpAddr::V4(v4) => RData::A(A(v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
        };
        match kind {
            RecordType::A | RecordType::AAAA => {
                self.names.addresses_of(name, kind == RecordType::AAAA).into_iter().map(data).collect()
            }
            RecordType::HTTPS if matches!(answer, Answer::WithEch(_)) => {
                let keys = SvcParamValue::EchConfigList(EchConfigList(vec![0, 4, 0xfe, 0x0d, 0, 0]));
                vec![RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), vec![(SvcParamKey::EchConfigList, keys)])))]
            }
            RecordType::TXT => vec![RData::TXT(TXT::new(vec!["an answer to whoever asks".to_owned()]))],
            _ => Vec::new(),
        }
    }
}
