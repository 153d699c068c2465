//! What the tests against an authority share: answers on the challenge port, and an ACME server that says what a test
//! writes. All of it is on loopback, on ports that were free, and ends with its value.
#![allow(dead_code)]

pub mod stub;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use warren_certs::acme::Challenges;
use warren_model::policy::HostName;

pub fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

/// A task that ends with the value.
pub struct Task(JoinHandle<()>);

impl Task {
    pub fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A web server for challenges, as the edge will be one.
pub struct Answers {
    pub port: u16,
    state: Arc<Mutex<State>>,
    _task: Task,
}

#[derive(Default)]
struct State {
    published: BTreeMap<String, String>,
    /// Every token that was ever published, and every one that was withdrawn.
    seen: Vec<String>,
    withdrawn: Vec<String>,
    /// Hosts for which a challenge was fetched.
    hosts: BTreeSet<String>,
    /// What is answered instead of the truth.
    lie: Option<String>,
    refuse: bool,
}

impl Answers {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let task = Task::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&shared)));
            }
        });
        Self { port, state, _task: task }
    }

    pub fn lie(&self, body: &str) {
        self.state.lock().unwrap().lie = Some(body.to_owned());
    }

    pub fn refuse_to_publish(&self) {
        self.state.lock().unwrap().refuse = true;
    }

    pub fn hosts(&self) -> BTreeSet<String> {
        self.state.lock().unwrap().hosts.clone()
    }

    /// How many tokens were published; all of them are withdrawn, each once.
    pub fn all_withdrawn(&self) -> usize {
        let state = self.state.lock().unwrap();
        assert!(state.published.is_empty(), "still published: {:?}", state.published);
        assert_eq!(state.seen, state.withdrawn);
        state.seen.len()
    }
}

#[async_trait]
impl Challenges for Answers {
    async fn publish(
        &self,
        token: &str,
        key_authorization: &str,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut state = self.state.lock().unwrap();
        state.seen.push(token.to_owned());
        if state.refuse {
            return Err("the edge is away".into());
        }
        state.published.insert(token.to_owned(), key_authorization.to_owned());
        Ok(())
    }

    async fn withdraw(&self, token: &str) {
        let mut state = self.state.lock().unwrap();
        state.published.remove(token);
        state.withdrawn.push(token.to_owned());
    }
}

async fn answer(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) if head.len() < 8192 => head.push(byte),
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let token = path.strip_prefix("/.well-known/acme-challenge/").unwrap_or_default();
    let host = head.lines().find_map(|line| line.strip_prefix("Host: ")).unwrap_or_default();
    let body = {
        let mut state = state.lock().unwrap();
        state.hosts.insert(host.split(':').next().unwrap_or_default().to_owned());
        let truth = state.published.get(token).cloned();
        truth.map(|truth| state.lie.clone().unwrap_or(truth))
    };
    let answer = match body {
        Some(body) => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()),
        None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
    };
    let _ = stream.write_all(answer.as_bytes()).await;
}
