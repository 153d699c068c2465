//! The command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Measures what Warren promises, and prints one table
#[derive(Debug, Parser)]
#[command(name = "warren-bench", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(flatten)]
    pub options: Options,
    #[command(subcommand)]
    pub hidden: Option<Hidden>,
}

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The program to measure
    #[arg(long, value_name = "PATH", default_value = "target/release/warren")]
    pub warren: PathBuf,
    /// Where the image `debian` is
    #[arg(long, value_name = "DIR", default_value = "target/pool")]
    pub pool_dir: PathBuf,
    /// The WireGuard of `cargo install gotatun-cli`
    #[arg(long, value_name = "PATH", default_value = "gotatun")]
    pub gotatun: PathBuf,
    /// The program that serves one site as Warren's ingress does: `cargo build --release -p warren-ingress --example
    /// ingress`
    #[arg(long, value_name = "PATH", default_value = "target/release/examples/ingress")]
    pub ingress: PathBuf,
    /// How often both sides of a comparison are measured
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pairs: u32,
    /// Only this figure; may be given several times
    #[arg(long, value_name = "NAME")]
    pub only: Vec<Name>,
    /// Short samples and three pairs: to see that everything can be measured, not for figures
    #[arg(long)]
    pub quick: bool,
    /// Write every sample to this file, too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    #[value(name = "throughput-1")]
    Throughput1,
    #[value(name = "throughput-4")]
    Throughput4,
    RoundTrip,
    #[value(name = "round-trip-1000")]
    RoundTrip1000,
    Create,
    Exec,
    Token,
    AddMember,
    Names,
    PolicyThroughput,
    PolicyRoundTrip,
    PolicyChange,
    ProxyRelay,
    ProxyHaproxy,
    ProxySquid,
    ProxyConnect,
    ProxyRevocation,
    Audit,
    TunnelWireguardGo,
    TunnelGotatun,
    TunnelMemory,
    TunnelHandshakes,
    SessionOpen,
    SessionMemory,
    IngressHaproxy,
    IngressCaddy,
    #[value(name = "ingress-h2-haproxy")]
    IngressH2Haproxy,
    #[value(name = "ingress-h2-caddy")]
    IngressH2Caddy,
}

impl Options {
    pub fn wants(&self, name: Name) -> bool {
        self.only.is_empty() || self.only.contains(&name)
    }

    /// How many pairs of samples.
    pub fn pairs(&self) -> usize {
        if self.quick { 3 } else { self.pairs as usize }
    }

    /// How long one sample of a throughput lasts.
    pub fn sample(&self) -> Duration {
        Duration::from_millis(if self.quick { 200 } else { 1000 })
    }

    /// How many of something that happens quickly make up one sample.
    pub fn many(&self, count: usize) -> usize {
        if self.quick { (count / 10).max(1) } else { count }
    }
}

/// What this program starts itself as.
#[derive(Debug, Subcommand)]
pub enum Hidden {
    /// Enters a namespace, binds its life to its parent's, and becomes a program
    #[command(hide = true)]
    Confined(Confined),
    /// One end of a measurement
    #[command(hide = true, subcommand)]
    Traffic(Role),
    /// One end of a tunnel, until stdin ends
    #[command(hide = true)]
    Tunnel(TunnelEnd),
}

#[derive(Debug, Args)]
pub struct Confined {
    #[arg(long)]
    pub netns: PathBuf,
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// One end of a tunnel of Warren's. Its peers come over stdin, a line each: public key, ranges, endpoint.
#[derive(Debug, Args)]
pub struct TunnelEnd {
    #[arg(long)]
    pub device: String,
    #[arg(long)]
    pub port: u16,
}

#[derive(Debug, Subcommand)]
pub enum Role {
    /// Takes bytes and gives them back, until stdin ends
    Serve {
        #[arg(long)]
        cpu: Option<usize>,
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// Every connection begins like TLS
        #[arg(long)]
        tls: bool,
    },
    /// Sends as much as it can
    Throughput {
        #[arg(long)]
        cpu: Option<usize>,
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        streams: usize,
        #[arg(long)]
        milliseconds: u64,
        /// Begins like TLS to this name
        #[arg(long)]
        hello: Option<String>,
    },
    /// Sends one byte and waits for it
    RoundTrips {
        #[arg(long)]
        cpu: Option<usize>,
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        count: usize,
    },
    /// Connects, begins like TLS and waits for the first byte
    Connects {
        #[arg(long)]
        cpu: Option<usize>,
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        count: usize,
        #[arg(long)]
        hello: String,
    },
    /// Copies between whoever connects and one server, and looks at nothing
    Relay {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        to: SocketAddr,
    },
}
