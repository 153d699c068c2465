//! Serves one site from the command line, to be measured.
//!
//! `ingress LISTEN UPSTREAM CERT KEY THREADS [HOST]`: addresses with ports, PEM files, and the name that the site has
//! (`bench.example.com` unless said otherwise).

use std::env;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU32;
use std::sync::Arc;

use anyhow::Context;
use futures::future::BoxFuture;
use tokio::net::TcpStream;
use warren_ingress::{Certificate, Dial, Ingress, Kind, Limits, Site, SiteLimits, Snapshot, Upstream};
use warren_model::NetworkNumber;

struct Direct;

impl Dial for Direct {
    fn dial(&self, _: NetworkNumber, to: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Upstream>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Upstream>)
        })
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [listen, upstream, certificate, key, threads, rest @ ..] = &arguments[..] else {
        anyhow::bail!("usage: ingress LISTEN UPSTREAM CERT KEY THREADS [HOST]");
    };
    let upstream: SocketAddr = upstream.parse().context("UPSTREAM takes an address with a port")?;
    let host = rest.first().map_or("bench.example.com", String::as_str).parse()?;
    let limits = Limits { connections: u32::MAX, connections_per_source: u32::MAX, ..Limits::default() };
    let ingress = Ingress::new(limits, Arc::new(Direct))?;
    ingress.apply(&Snapshot {
        sites: vec![Site {
            host,
            id: "bench".to_owned(),
            network: NetworkNumber::FIRST,
            addresses: vec![upstream.ip()],
            port: upstream.port(),
            auth: None,
            limits: SiteLimits {
                requests_per_second: NonZeroU32::MAX,
                burst: NonZeroU32::MAX,
                concurrent: NonZeroU32::MAX,
                ..SiteLimits::default()
            },
        }],
        certificates: vec![Certificate {
            chain_pem: fs::read_to_string(certificate).context(certificate.clone())?,
            key_pem: fs::read_to_string(key).context(key.clone())?,
        }],
        ..Snapshot::default()
    })?;
    let listener = TcpListener::bind(listen).context("LISTEN")?;
    let threads = threads.parse().context("THREADS takes a number")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(async {
        tokio::spawn(ingress.sweep());
        tokio::spawn(ingress.serve(listener, Kind::Https)).await
    })??;
    Ok(())
}
