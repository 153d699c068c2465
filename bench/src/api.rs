//! A client of Warren's API: one connection that is kept alive, over the Unix socket.

use std::path::Path;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

pub struct Client {
    runtime: Runtime,
    requests: SendRequest<Full<Bytes>>,
    authorization: String,
}

impl Client {
    pub fn connect(socket: &Path, key: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let requests = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await?;
            let (requests, connection) = handshake(TokioIo::new(stream)).await?;
            // Its end shows in the next request.
            tokio::spawn(connection);
            anyhow::Ok(requests)
        });
        let requests = requests.with_context(|| format!("nothing answers at {}", socket.display()))?;
        Ok(Self { runtime, requests, authorization: format!("Bearer {key}") })
    }

    pub fn post<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let answer = self.send(Method::POST, path, Some(serde_json::to_vec(body)?))?;
        serde_json::from_slice(&answer).with_context(|| format!("POST {path} answered something unexpected"))
    }

    /// An answer of one document a line.
    pub fn post_lines<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> anyhow::Result<Vec<T>> {
        let answer = self.send(Method::POST, path, Some(serde_json::to_vec(body)?))?;
        let lines = answer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines: Result<Vec<T>, _> = lines.map(serde_json::from_slice).collect();
        lines.with_context(|| format!("POST {path} answered something unexpected"))
    }

    pub fn put<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let answer = self.send(Method::PUT, path, Some(serde_json::to_vec(body)?))?;
        serde_json::from_slice(&answer).with_context(|| format!("PUT {path} answered something unexpected"))
    }

    pub fn delete(&mut self, path: &str) -> anyhow::Result<()> {
        self.send(Method::DELETE, path, None).map(drop)
    }

    pub fn get_text(&mut self, path: &str) -> anyhow::Result<String> {
        Ok(String::from_utf8(self.send(Method::GET, path, None)?.into())?)
    }

    /// How a GET is answered, whether it is refused or not.
    pub fn status(&mut self, path: &str) -> anyhow::Result<StatusCode> {
        Ok(self.exchange(Method::GET, path, None)?.0)
    }

    fn send(&mut self, method: Method, path: &str, body: Option<Vec<u8>>) -> anyhow::Result<Bytes> {
        let (status, answer) = self.exchange(method.clone(), path, body)?;
        if !status.is_success() || status == StatusCode::ACCEPTED {
            bail!("{method} {path} answered {status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(answer)
    }

    fn exchange(&mut self, method: Method, path: &str, body: Option<Vec<u8>>) -> anyhow::Result<(StatusCode, Bytes)> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "warren")
            .header(header::AUTHORIZATION, &self.authorization);
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::from(body.unwrap_or_default()))?;
        self.runtime.block_on(async {
            self.requests.ready().await?;
            let answer = self.requests.send_request(request).await?;
            let status = answer.status();
            Ok((status, answer.into_body().collect().await?.to_bytes()))
        })
    }
}
