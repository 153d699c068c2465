//! The server, from its settings to its last breath. This file is the wiring diagram:
//!
//! ```text
//! api ──── writes ──── store ──── watched by ──── reconcile ──── kernel   (namespaces, links, rules)
//!  │                                                  ├───────── runtime  (images, disks, containers)
//!  └── exec, files, shell ── runtime::agent ──────────┘  └────── edge     (its own process: DNS)
//! ```

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use warren_api::{ApiConfig, bootstrap};
use warren_kernel::Kernel;
use warren_model::access::{Images, MachineAccess};
use warren_model::policy::PrivateRanges;
use warren_reconcile::{AuditSettings, Auditor, Parts, TunnelSettings, World};
use warren_runtime::agent::AgentHub;
use warren_runtime::disk::Pool;
use warren_runtime::driver::{CgroupParent, ContainerConfig, ContainerDriver, Driver, find_program};
use warren_runtime::image::ImageStore;
use warren_store::{SqliteStore, Store};

use super::boundaries::LiveBoundaries;
use super::host::LiveHost;
use super::layout::{Layout, Traces};
use super::publisher::{self, LivePublisher};
use super::tunnels::LiveTunnels;
use super::{edge_config, listen, mounts, resolvers};
use crate::cli::config::UpArgs;

/// How long requests that are under way may take to end when the server is told to end.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long a machine may take to end when the server is told to end the machines too.
const STOP_GRACE: Duration = Duration::from_secs(10);

pub fn up(args: UpArgs) -> anyhow::Result<()> {
    super::logging::start(&args);
    if !args.listen.ip().is_loopback() {
        bail!(
            "{} is not a loopback address, and the API speaks plain HTTP: listen on 127.0.0.1 or [::1], and put a \
             proxy with TLS before it for others",
            args.listen.ip()
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the server makes namespaces and mounts, so it has to run as root: run it with sudo");
    }
    // Machines pass through directories that are made here, as users that own nothing.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // Read before the mount namespace changes: `ip netns exec` puts a namespace's own file there.
    let resolvers = match args.resolvers.is_empty() {
        true => resolvers::of_this_host(),
        false => args.resolvers.clone(),
    };
    if find_program(&args.runtime).is_none() {
        bail!(
            "the OCI runtime {:?} is not installed, and machines are made with it: install it (`apt-get install runc`), \
             or name another one with --runtime",
            args.runtime
        );
    }
    let layout = Layout::new(args.data_dir.clone());
    layout.create()?;
    // Before anything else of the other server is run into, such as its address.
    let _lock = layout.lock()?;
    std::fs::create_dir_all(&args.pool_dir)
        .with_context(|| format!("cannot make the pool directory {}", args.pool_dir.display()))?;
    let listener = StdTcpListener::bind(args.listen)
        .with_context(|| format!("cannot listen on {}; choose another address with --listen", args.listen))?;
    if !mounts::enter_lasting_namespace(&[layout.directory(), &args.pool_dir])? {
        tracing::warn!(
            "the mount namespace of PID 1 cannot be entered: machines outlive the server only as long as the mount \
             namespace that it was started in"
        );
    }
    raise_open_files()?;
    if !warren_kernel::return_unused_memory() {
        tracing::debug!("the allocator does not take its options: the server holds more memory than it uses");
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(args, layout, listener, resolvers))
}

async fn run(args: UpArgs, layout: Layout, listener: StdTcpListener, resolvers: Vec<SocketAddr>) -> anyhow::Result<()> {
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&layout.store())?);
    let boot = bootstrap::ensure(store.as_ref(), Timestamp::now()).await?;
    let installation = boot.installation.clone();
    match boot.root_key {
        Some(key) => layout.write_root_key(&key)?,
        None if !layout.root_key().exists() => {
            tracing::warn!("{} is gone; a new root key is made", layout.root_key().display());
            layout.write_root_key(&bootstrap::new_root_key(store.as_ref()).await?)?;
        }
        None => {}
    }

    let cgroup_parent = match layout.read_traces()? {
        Some(traces) => traces.cgroup_parent,
        None => CgroupParent::detect()?,
    };
    let mut traces = Traces {
        installation: installation.id.clone(),
        ula: installation.ula,
        pool_dir: args.pool_dir.clone(),
        cgroup_parent: cgroup_parent.clone(),
        runtime: args.runtime.clone(),
    };
    layout.write_traces(&traces)?;
    let run_directory = installation.id.run_directory();
    mounts::volatile_directory(&run_directory)?;

    let kernel = Kernel::new(installation.id.clone(), installation.ula)?;
    let forwarding = allow_forwarding(&kernel, args.forwarding)?;
    let pool = Pool::open(&args.pool_dir, &installation.id).await?;
    let images: Arc<dyn Images> = Arc::new(ImageStore::open(Arc::clone(&pool))?);
    let agents = AgentHub::new(run_directory.join("agents"))?;
    let driver = ContainerDriver::new(ContainerConfig {
        installation: installation.id.clone(),
        runtime: args.runtime.clone(),
        run_dir: run_directory.clone(),
        cgroup_parent,
    })?;
    // The remembered one may be gone, after a reboot for example.
    traces.cgroup_parent = driver.cgroup_parent().clone();
    layout.write_traces(&traces)?;
    let driver: Arc<dyn Driver> = Arc::new(driver);
    if let Err(error) = driver.check().await {
        tracing::warn!(%error, "machines cannot be made until this is mended; `warren doctor` tells how");
    }

    let private_ranges: PrivateRanges = args.private_ranges.iter().copied().collect();
    let (world, mut tasks) = warren_reconcile::start(Parts {
        installation: installation.clone(),
        store: Arc::clone(&store),
        kernel,
        pool,
        driver: Arc::clone(&driver),
        agents: agents.clone(),
        edge: edge_config(&installation.id, layout.edge_log())?,
        resolvers: resolvers.clone(),
        private_ranges: private_ranges.clone(),
        run_directory,
        audit_log: layout.audit_log(),
        denials_log: layout.denials_log(),
        tunnel: TunnelSettings { listen: args.vpn_listen, key: layout.tunnel_key()? },
        public: publisher::settings(&args.public, layout.public(), &installation.id)?,
    })
    .await?;

    let shutdown = CancellationToken::new();
    let mut config = ApiConfig::new(installation, env!("CARGO_PKG_VERSION"));
    config.shutdown = shutdown.clone();
    config.machines_per_account = args.machines_per_account;
    config.networks_per_account = args.networks_per_account;
    config.private_ranges = private_ranges;
    config.cors_origins = args.cors_origins.clone();
    config.resolvers = resolvers;
    let access: Arc<dyn MachineAccess> = Arc::new(agents);
    let host = Arc::new(LiveHost::new(Arc::clone(&world), forwarding));
    let boundaries = Arc::new(LiveBoundaries::new(Arc::clone(&world)));
    let settings =
        AuditSettings { directory: layout.audits(), api: listener.local_addr()?, version: env!("CARGO_PKG_VERSION") };
    let auditor = Auditor::new(Arc::clone(&world), settings);
    tasks.spawn(Arc::clone(&auditor).keep_schedules());
    let tunnels = Arc::new(LiveTunnels::new(Arc::clone(&world), args.vpn_endpoint.clone()));
    let publisher = Arc::new(LivePublisher::new(Arc::clone(&world), &args.public));
    let parts = warren_api::Parts { store, access, images, host, boundaries, audits: auditor, tunnels, publisher };
    let router = warren_api::router(config, parts);
    let socket = layout.socket();
    tokio::select! {
        served = serve(router, listener, &socket, shutdown) => served?,
        // A server that only half works is worse than one that is started again.
        error = first_panic(&mut tasks) => bail!("a part of the server ended by itself: {error}"),
    }

    // From here on nothing changes the host any more; machines, links and rules stay as they are.
    tasks.shutdown().await;
    if args.stop_machines {
        stop_machines(&world).await?;
    }
    Ok(())
}

async fn first_panic(tasks: &mut JoinSet<()>) -> JoinError {
    loop {
        match tasks.join_next().await {
            Some(Err(error)) => return error,
            // A task may have nothing to do on this host.
            Some(Ok(())) => {}
            None => std::future::pending().await,
        }
    }
}

/// Every network needs five descriptors and every machine two, so a thousand networks need more than is usual.
fn raise_open_files() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the number of open files")
}

/// Whether networks may be `open`: the host forwards already, or the operator consented to switching it on.
fn allow_forwarding(kernel: &Kernel, consent: bool) -> anyhow::Result<bool> {
    let forwarding = kernel.forwarding();
    if consent {
        forwarding.enable(true).context("cannot switch IP forwarding on")?;
    }
    let state = forwarding.state()?;
    Ok(state.ipv4 && state.ipv6)
}

async fn serve(
    router: axum::Router,
    listener: StdTcpListener,
    socket: &Path,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let tcp = TcpListener::from_std(listener)?;
    let address = tcp.local_addr()?;
    // The lock is ours, so a socket that is there belongs to a server that is gone.
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", socket.display()));
        }
        _ => {}
    }
    let unix = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    // Whoever connects still needs a key.
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))?;

    let over_tcp = tokio::spawn(listen::serve(tcp, router.clone(), shutdown.clone()));
    let over_unix = tokio::spawn(listen::serve(unix, router, shutdown.clone()));
    {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "ready http://{address}")?;
        stdout.flush()?;
    }
    tracing::info!(%address, socket = %socket.display(), "the server is ready");

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("the server ends");
    shutdown.cancel();
    let goodbye = async {
        let _ = over_tcp.await;
        let _ = over_unix.await;
    };
    if tokio::time::timeout(GOODBYE, goodbye).await.is_err() {
        tracing::warn!("some requests were still under way");
    }
    Ok(())
}

async fn stop_machines(world: &World) -> anyhow::Result<()> {
    let running = world.driver.observe().await?;
    let stops = running.keys().map(|id| world.driver.stop(*id, STOP_GRACE));
    for outcome in futures::future::join_all(stops).await {
        outcome?;
    }
    tracing::info!(machines = running.len(), "the machines have ended");
    Ok(())
}
