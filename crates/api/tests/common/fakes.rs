//! Machines, images, a host and a reconciler without a kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use jiff::Timestamp;
use tokio::sync::mpsc;
use warren_api::{Boundaries, DenialFilter, Host};
use warren_model::access::{
    AccessError, ByteStream, ExecCommand, ExecExit, ExecInput, ExecOutput, ExecSession, FileInfo, FileKind,
    HostCapacity, ImageInfo, ImageProgress, Images, ListeningPort, MachineAccess, WriteOptions,
};
use warren_model::allocate::{MemberKind, REST};
use warren_model::audit::{AuditKey, AuditPlace, AuditProgress, AuditScope, Audits, SignedReport, Verdict};
use warren_model::denial::Denial;
use warren_model::record::{AddressHold, Failure, MachineState, MachineStatus, Power};
use warren_model::{
    AccountId, Code, ImageName, ImageReference, MachineId, MemberNumber, NetworkCidr, NetworkId, NetworkNumber, wire,
};
use warren_store::{SqliteStore, Store, TxnBuilder, Typed, schema};

#[derive(Default)]
pub struct FakeHost {
    pub forwards: AtomicBool,
    pub not_ready: AtomicBool,
    pub routes: Mutex<Vec<String>>,
    pub addresses: Mutex<BTreeSet<IpAddr>>,
}

#[async_trait]
impl Host for FakeHost {
    fn overlapping_routes(&self, cidr: NetworkCidr) -> Vec<String> {
        let routes = self.routes.lock().unwrap();
        routes.iter().filter(|route| cidr.overlaps(route.parse().unwrap())).cloned().collect()
    }

    fn addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.lock().unwrap().clone()
    }

    fn forwarding(&self) -> bool {
        self.forwards.load(Ordering::Relaxed)
    }

    async fn traffic(&self, _: NetworkNumber, member: MemberNumber) -> Option<wire::Traffic> {
        let private = wire::Counters { sent_bytes: u64::from(member.get()), ..Default::default() };
        Some(wire::Traffic { private, ..Default::default() })
    }

    async fn readiness(&self) -> Result<(), String> {
        if self.not_ready.load(Ordering::Relaxed) { Err("runc is missing: apt install runc".into()) } else { Ok(()) }
    }

    fn metrics(&self) -> String {
        "# TYPE host_things gauge\nhost_things 7\n# EOF\n".into()
    }
}

/// Boundaries that enforce at once, unless told that they are stuck, and know the denials that a test puts in.
#[derive(Default)]
pub struct FakeBoundaries {
    pub stuck: AtomicBool,
    pub denials: Mutex<Vec<Denial>>,
    pub flows: Mutex<Vec<wire::LiveFlow>>,
    /// The versions that were waited for.
    pub asked: Mutex<Vec<(AccountId, u64)>>,
    pub news: Mutex<Vec<mpsc::UnboundedSender<Denial>>>,
}

impl FakeBoundaries {
    pub fn refuse(&self, denial: Denial) {
        self.denials.lock().unwrap().push(denial.clone());
        self.news.lock().unwrap().retain(|follower| follower.send(denial.clone()).is_ok());
    }
}

#[async_trait]
impl Boundaries for FakeBoundaries {
    async fn enforced(&self, account: AccountId, version: u64, _: Duration) -> Result<(), String> {
        self.asked.lock().unwrap().push((account, version));
        if self.stuck.load(Ordering::Relaxed) { Err("the edge does not answer".into()) } else { Ok(()) }
    }

    async fn denials(&self, account: AccountId, filter: DenialFilter, limit: usize) -> Vec<Denial> {
        let all = self.denials.lock().unwrap();
        let wanted = all.iter().filter(|denial| {
            denial.account == account
                && filter.machine.is_none_or(|machine| denial.member == Some(machine.into()))
                && filter.after.is_none_or(|after| denial.id > after)
        });
        let wanted: Vec<_> = wanted.cloned().collect();
        match filter.after {
            Some(_) => wanted.into_iter().take(limit).collect(),
            None => wanted[wanted.len().saturating_sub(limit)..].to_vec(),
        }
    }

    fn follow(&self, account: AccountId) -> BoxStream<'static, Denial> {
        let (send, receive) = mpsc::unbounded_channel();
        self.news.lock().unwrap().push(send);
        let of_account = move |denial: &Denial| std::future::ready(denial.account == account);
        futures::stream::unfold(receive, |mut receive| async { Some((receive.recv().await?, receive)) })
            .filter(of_account)
            .boxed()
    }

    async fn gather(&self, machine: MachineId, since: Timestamp) -> Vec<Denial> {
        let all = self.denials.lock().unwrap();
        all.iter().filter(|denial| denial.member == Some(machine.into()) && denial.time >= since).cloned().collect()
    }

    async fn flows(&self, _: AccountId) -> Vec<wire::LiveFlow> {
        self.flows.lock().unwrap().clone()
    }
}

/// Every audit passes, unless there is one already; the log has two lines.
#[derive(Default)]
pub struct FakeAudits {
    pub running: AtomicBool,
}

#[async_trait]
impl Audits for FakeAudits {
    fn place(&self, _: AccountId) -> Result<AuditPlace, AccessError> {
        match self.running.load(Ordering::Relaxed) {
            true => Err(AccessError::new(Code::AuditRunning, "wait until it has ended")),
            false => Ok(Box::new(())),
        }
    }

    async fn run(
        &self,
        _: AuditPlace,
        scope: AuditScope,
        progress: mpsc::Sender<AuditProgress>,
    ) -> Result<SignedReport, AccessError> {
        let _ = progress.send(AuditProgress { stage: "probing".into(), fraction: 0.5 }).await;
        Ok(SignedReport {
            result: Verdict::Pass,
            number: 1,
            summary: format!("{:?} {}", scope.network, scope.across_accounts),
            report: "{}".into(),
            signature: "{}".into(),
            page: "<html>".into(),
        })
    }

    async fn public_key(&self) -> Result<AuditKey, AccessError> {
        Ok(AuditKey { id: "01".into(), key: "warren-audit-ed25519 00".into() })
    }

    async fn log(&self, after: u64) -> Result<BoxStream<'static, std::io::Result<Bytes>>, AccessError> {
        let lines = (after + 1..=2).map(|number| Ok(Bytes::from(format!("{{\"number\":{number}}}\n"))));
        Ok(futures::stream::iter(lines).boxed())
    }
}

/// `cat` copies stdin, `hang` never ends, `env` says what it was given, `slow` takes too long, everything else exits
/// with 7. A shell runs the last of its arguments.
pub struct FakeMachines;

#[async_trait]
impl MachineAccess for FakeMachines {
    async fn exec(&self, _: MachineId, command: ExecCommand) -> Result<ExecSession, AccessError> {
        if command.argv[0] == "nothing" {
            return Err(AccessError::new(Code::CommandNotFound, "nothing was not found: install it"));
        }
        let (input, mut given) = mpsc::channel(4);
        let (send, output) = mpsc::channel(4);
        tokio::spawn(async move {
            let exit = |status| ExecOutput::Exit(ExecExit { status, signal: None, timed_out: false });
            let program = match command.argv[0].as_str() {
                "/bin/sh" => command.argv.last().unwrap().as_str(),
                program => program,
            };
            match program {
                "slow" => {
                    let exit = ExecExit { status: 124, signal: None, timed_out: true };
                    let _ = send.send(ExecOutput::Exit(exit)).await;
                }
                "cat" => {
                    while let Some(item) = given.recv().await {
                        match item {
                            ExecInput::Stdin(piece) => send.send(ExecOutput::Stdout(piece)).await.unwrap(),
                            ExecInput::StdinClosed => break,
                            ExecInput::Signal(_) => {
                                let _ = send.send(exit(143)).await;
                                return;
                            }
                            ExecInput::Resize(_) => {}
                        }
                    }
                    let _ = send.send(exit(0)).await;
                }
                "hang" => std::future::pending::<()>().await,
                "lost" => {}
                "env" => {
                    let text = format!("{:?} {:?} {}", command.user, command.cwd, command.settle);
                    let _ = send.send(ExecOutput::Stderr(text.into())).await;
                    let _ = send.send(exit(0)).await;
                }
                _ => {
                    let _ = send.send(exit(7)).await;
                }
            }
        });
        Ok(ExecSession { input, output })
    }

    async fn read_file(&self, _: MachineId, path: &str) -> Result<(FileInfo, ByteStream), AccessError> {
        if path == "/directory" || path == "/panic" {
            return Err(AccessError::new(Code::PathConflict, format!("{path} is a directory")));
        }
        if path == "/missing" {
            return Err(AccessError::new(Code::PathNotFound, "there is nothing at /missing"));
        }
        let pieces = (0..64).map(|_| Ok(Bytes::from(vec![b'x'; 64 * 1024])));
        Ok((info(path, 64 * 64 * 1024), futures::stream::iter(pieces).boxed()))
    }

    async fn write_file(
        &self,
        _: MachineId,
        path: &str,
        options: WriteOptions,
        mut content: ByteStream,
    ) -> Result<FileInfo, AccessError> {
        assert_ne!(path, "/panic", "the caller has to survive this");
        let mut size = 0;
        while let Some(piece) = content.next().await {
            let piece =
                piece.map_err(|error| AccessError::new(Code::PathConflict, format!("it broke off: {error}")))?;
            size += piece.len() as u64;
        }
        Ok(FileInfo { mode: options.mode.unwrap_or(0o644), ..info(path, size) })
    }

    async fn list_directory(&self, _: MachineId, path: &str) -> Result<Vec<FileInfo>, AccessError> {
        assert_ne!(path, "/panic", "the caller has to survive this");
        if path == "/directory" {
            return Ok(vec![info("/a", 1), FileInfo { kind: FileKind::Directory, ..info("/b", 0) }]);
        }
        Ok(vec![info("/a", 1), info("/b", 2)])
    }

    async fn stat(&self, _: MachineId, path: &str) -> Result<FileInfo, AccessError> {
        if path == "/slow" {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        Ok(info(path, 3))
    }

    async fn make_directory(&self, _: MachineId, path: &str, _: bool) -> Result<FileInfo, AccessError> {
        Ok(FileInfo { kind: FileKind::Directory, ..info(path, 0) })
    }

    async fn remove(&self, _: MachineId, _: &str, recursive: bool) -> Result<(), AccessError> {
        if recursive { Ok(()) } else { Err(AccessError::new(Code::PathConflict, "it is a directory: add recursive")) }
    }

    async fn listening_ports(&self, _: MachineId) -> Result<Vec<ListeningPort>, AccessError> {
        let protocol = warren_model::record::Protocol::Tcp;
        Ok(vec![ListeningPort { protocol, address: [0, 0, 0, 0].into(), port: 8080, process: None, pid: None }])
    }

    async fn logs(&self, _: MachineId, tail: u64, follow: bool) -> Result<ByteStream, AccessError> {
        let first = futures::stream::iter([Ok(Bytes::from(format!("last {tail}\n")))]);
        Ok(if follow { first.chain(futures::stream::pending()).boxed() } else { first.boxed() })
    }
}

fn info(path: &str, size: u64) -> FileInfo {
    FileInfo {
        name: path.trim_start_matches('/').into(),
        path: path.into(),
        kind: FileKind::File,
        size,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified: 0,
        target: None,
    }
}

/// Has `debian`; can build `slim`, which works, and `broken`, which does not.
#[derive(Default)]
pub struct FakeImages(Mutex<Vec<String>>);

fn image(name: &ImageName) -> ImageInfo {
    ImageInfo {
        name: name.to_string(),
        digest: "d".into(),
        size: 1,
        source: "build".into(),
        created_at: Timestamp::UNIX_EPOCH,
    }
}

#[async_trait]
impl Images for FakeImages {
    async fn list(&self) -> Result<Vec<ImageInfo>, AccessError> {
        Ok(vec![image(&ImageName::default_image())])
    }

    async fn get(&self, name: &ImageName) -> Result<Option<ImageInfo>, AccessError> {
        let there = name.as_str() == "debian" || self.0.lock().unwrap().iter().any(|made| made == name.as_str());
        Ok(there.then(|| image(name)))
    }

    fn can_build(&self, name: &ImageName) -> bool {
        ["debian", "slim", "broken"].contains(&name.as_str())
    }

    async fn build(&self, name: &ImageName, progress: mpsc::Sender<ImageProgress>) -> Result<ImageInfo, AccessError> {
        let _ = progress.send(ImageProgress { stage: "unpacking".into(), fraction: Some(0.5) }).await;
        if name.as_str() == "broken" {
            return Err(AccessError::new(Code::ImageBuildFailed, "the mirror does not answer"));
        }
        self.0.lock().unwrap().push(name.to_string());
        Ok(image(name))
    }

    async fn import(
        &self,
        name: &ImageName,
        mut archive: ByteStream,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, AccessError> {
        let mut size = 0;
        while let Some(piece) = archive.next().await {
            size += piece.map_err(|error| AccessError::new(Code::ImageInvalid, error.to_string()))?.len() as u64;
            let _ = progress.send(ImageProgress { stage: "reading".into(), fraction: None }).await;
        }
        self.0.lock().unwrap().push(name.to_string());
        Ok(ImageInfo { size, ..image(name) })
    }

    async fn pull(
        &self,
        name: &ImageName,
        reference: &ImageReference,
        progress: mpsc::Sender<ImageProgress>,
    ) -> Result<ImageInfo, AccessError> {
        let _ = progress.send(ImageProgress { stage: "layer 1 of 1".into(), fraction: Some(0.5) }).await;
        if reference.host() == "lost.example" {
            return Err(AccessError::new(Code::RegistryUnavailable, "lost.example cannot be reached"));
        }
        self.0.lock().unwrap().push(name.to_string());
        Ok(ImageInfo { source: reference.to_string(), ..image(name) })
    }

    async fn remove(&self, name: &ImageName) -> Result<(), AccessError> {
        self.0.lock().unwrap().retain(|made| made != name.as_str());
        Ok(())
    }

    async fn capacity(&self) -> HostCapacity {
        HostCapacity { cpus: 2.0, memory_mib: 4096, disk_gib: None }
    }
}

/// What the crate's documentation asks of a reconciler. A machine whose name begins with `fail` fails, and one whose
/// name begins with `stuck` is left as it is.
pub async fn reconcile(store: Arc<SqliteStore>) {
    let mut watch = store.watch("", 1).await.unwrap();
    while let Ok(changes) = watch.next().await {
        for change in changes {
            if let Some(id) = change.key.strip_prefix("machine/") {
                let id = id.parse().unwrap();
                while !machine(&store, id).await {}
            }
            for prefix in ["network/", "member/"] {
                if let Some(id) = change.key.strip_prefix(prefix).and_then(|rest| rest.split('/').next()) {
                    network(&store, id.parse().unwrap()).await;
                }
            }
        }
    }
}

/// Whether nothing came in between.
async fn machine(store: &SqliteStore, id: MachineId) -> bool {
    let Some(read) = store.read(&schema::machine(id)).await.unwrap() else { return true };
    let machine = &read.record;
    if machine.name.as_str().starts_with("stuck") {
        return true;
    }
    let txn = TxnBuilder::new().unchanged(&read);
    let txn = if machine.power == Power::Gone {
        let until = Timestamp::now() + REST;
        let rest = AddressHold { kind: MemberKind::Machine, holder: None, resting_until: Some(until) };
        txn.delete(&schema::machine(id))
            .delete(&schema::status(id))
            .delete(&schema::machine_name(machine.account, &machine.name))
            .delete(&schema::member(machine.network, id))
            .delete(&schema::uid_slot(machine.uid_slot))
            .put(&schema::address(machine.network, machine.ipv4), &rest)
            .unwrap()
    } else {
        let fails = machine.name.as_str().starts_with("fail");
        let failure = Failure { code: Code::RuntimeMissing, detail: "runc is missing: apt install runc".into() };
        let (state, failure) = match machine.power {
            Power::Off => (MachineState::Stopped, None),
            _ if fails => (MachineState::Failed, Some(failure)),
            _ => (MachineState::Running, None),
        };
        let status = MachineStatus { state, boot: machine.boot, failure, started_at: Some(Timestamp::now()) };
        let before = store.read(&schema::status(id)).await.unwrap().map(|read| read.record);
        if before.is_some_and(|before| before.state == state && before.boot == status.boot) {
            return true;
        }
        txn.put(&schema::status(id), &status).unwrap()
    };
    matches!(txn.commit(store).await.unwrap(), warren_store::TxnOutcome::Committed(_))
}

async fn network(store: &SqliteStore, id: NetworkId) {
    let Some(read) = store.read(&schema::network(id)).await.unwrap() else { return };
    if !read.record.deleting {
        return;
    }
    let network = &read.record;
    let mut txn = TxnBuilder::new()
        .unchanged(&read)
        .empty(&schema::members(id))
        .delete(&schema::network(id))
        .delete(&schema::network_name(network.account, &network.name))
        .delete(&schema::network_number(network.number))
        .delete(&schema::next_member(id));
    for hold in store.list_all(&schema::addresses(id)).await.unwrap().0 {
        txn = txn.delete(&schema::address(id, schema::address_of(&hold.key).unwrap()));
    }
    txn.commit(store).await.unwrap();
}
