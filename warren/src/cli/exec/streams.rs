//! The caller's stdin, stdout and stderr, each where it can block without holding up anything else.

use std::io::{self, Read, Write};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// How much of stdin travels in one frame, in bytes.
const CHUNK: usize = 32 << 10;
/// How many chunks may wait in either direction.
const WAITING: usize = 8;
/// How much of each stream a collected answer holds, in bytes; as much as the API's own.
const COLLECTED: usize = 1 << 20;

/// What was collected.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// There was more.
    pub truncated: bool,
}

/// Where a command's output goes.
pub enum Sink {
    Streams { queue: mpsc::Sender<(Kind, Bytes)>, done: oneshot::Receiver<io::Result<()>> },
    Collect(Written),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Stdout,
    Stderr,
}

impl Sink {
    /// To the caller's own streams, as it comes.
    pub fn streams() -> Self {
        let (queue, mut chunks) = mpsc::channel::<(Kind, Bytes)>(WAITING);
        let (tell, done) = oneshot::channel();
        std::thread::spawn(move || {
            let written = (|| {
                while let Some((kind, bytes)) = chunks.blocking_recv() {
                    match kind {
                        Kind::Stdout => {
                            let mut stdout = io::stdout().lock();
                            stdout.write_all(&bytes)?;
                            stdout.flush()?;
                        }
                        // A closed stderr ends no command, as in a shell that ignores SIGPIPE.
                        Kind::Stderr => drop(io::stderr().lock().write_all(&bytes)),
                    }
                }
                Ok(())
            })();
            let _ = tell.send(written);
        });
        Self::Streams { queue, done }
    }

    /// Into memory, up to a bound.
    pub fn collect() -> Self {
        Self::Collect(Written::default())
    }

    /// False when nobody takes it any more.
    pub async fn stdout(&mut self, bytes: Bytes) -> bool {
        self.put(Kind::Stdout, bytes).await
    }

    pub async fn stderr(&mut self, bytes: Bytes) -> bool {
        self.put(Kind::Stderr, bytes).await
    }

    /// Waits until all of it is out.
    pub async fn finish(self) -> io::Result<Written> {
        match self {
            Self::Streams { queue, done } => {
                drop(queue);
                done.await.unwrap_or(Ok(()))?;
                Ok(Written::default())
            }
            Self::Collect(written) => Ok(written),
        }
    }

    async fn put(&mut self, kind: Kind, bytes: Bytes) -> bool {
        match self {
            Self::Streams { queue, .. } => queue.send((kind, bytes)).await.is_ok(),
            Self::Collect(written) => {
                let held = if kind == Kind::Stdout { &mut written.stdout } else { &mut written.stderr };
                let room = COLLECTED - held.len();
                held.extend_from_slice(&bytes[..bytes.len().min(room)]);
                written.truncated |= bytes.len() > room;
                true
            }
        }
    }
}

/// The caller's stdin in chunks; the channel ends with it. An error is the last item.
pub fn stdin() -> mpsc::Receiver<io::Result<Bytes>> {
    let (chunks, receiver) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; CHUNK];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if chunks.blocking_send(Ok(Bytes::copy_from_slice(&buffer[..count]))).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let _ = chunks.blocking_send(Err(error));
                    return;
                }
            }
        }
    });
    receiver
}

/// An empty stdin.
pub fn nothing() -> mpsc::Receiver<io::Result<Bytes>> {
    mpsc::channel(1).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn collected_output_is_bounded_and_says_so() {
        let mut sink = Sink::collect();
        assert!(sink.stderr(Bytes::from_static(b"e")).await);
        for _ in 0..3 {
            assert!(sink.stdout(Bytes::from(vec![b'x'; COLLECTED / 2])).await);
        }
        let written = sink.finish().await.unwrap();
        assert_eq!((written.stdout.len(), written.stderr.len(), written.truncated), (COLLECTED, 1, true));
    }

    #[tokio::test]
    async fn an_empty_stdin_ends_at_once() {
        assert!(nothing().recv().await.is_none());
    }
}
