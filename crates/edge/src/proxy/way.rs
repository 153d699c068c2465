//! One connection of a member to a name outside, from the first decision on.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use warren_model::Code;
use warren_model::denial::Layer;
use warren_model::policy::{Application, HostName, RuleId};

use crate::proxy::dial::{DialError, dial};
use crate::proxy::gate::{Decision, Denied, Gate, Limits, LookUpError, Passage, Refusal};

/// What all connections of one listener share.
pub(crate) struct Proxy<G> {
    pub gate: Arc<G>,
    pub limits: Limits,
}

/// Who goes where, and by which rule.
pub(crate) struct Way<G> {
    pub proxy: Arc<Proxy<G>>,
    pub source: IpAddr,
    /// The address that was dialled, where there was one.
    pub to: Option<IpAddr>,
    pub host: HostName,
    pub port: u16,
    pub rule: RuleId,
    /// What may be spoken.
    pub application: Application,
}

/// A connection to a server outside.
pub(crate) struct Connected {
    pub stream: TcpStream,
    pub passage: Arc<dyn Passage>,
}

/// How far the way to the server was gone before the client's first bytes.
pub(crate) enum Ahead {
    Nothing,
    LookedUp(Vec<IpAddr>),
    Connected(Connected),
}

/// Why there is no connection to the server.
#[derive(Debug)]
pub(crate) enum NoWay {
    Denied(Box<Denied>),
    Failed { code: Code, detail: String },
}

impl<G: Gate> Way<G> {
    /// The way to this host, if policy allows it now; else the refusal, which is recorded. `to`: the address that was
    /// dialled, where there was one.
    pub fn ask(
        proxy: Arc<Proxy<G>>,
        source: IpAddr,
        to: Option<IpAddr>,
        host: HostName,
        port: u16,
        layer: Layer,
    ) -> Result<Self, Box<Denied>> {
        let Decision { allowed, rule, application, reason } = proxy.gate.admit(source, &host, port);
        match rule {
            Some(rule) if allowed => Ok(Self { proxy, source, to, host, port, rule, application }),
            rule => {
                let (name, port) = (Some(host.to_string()), Some(port));
                Err(Box::new(proxy.gate.refuse(Refusal { source, to, name, port, layer, rule, reason })))
            }
        }
    }

    /// Records that what is said on this way is not what its rule lets through.
    pub fn deny(&self, layer: Layer, reason: String) -> Denied {
        self.refuse(layer, self.host.to_string(), Some(self.rule.clone()), reason)
    }

    /// Records that another name than the allowed one was asked for.
    ///
    /// What policy says about that name is in the record, since it may be allowed by itself.
    pub fn deny_other(&self, layer: Layer, other: &str, reason: String) -> Denied {
        let decision = other.parse().ok().map(|host: HostName| self.proxy.gate.judge(self.source, &host, self.port));
        let (rule, reason) = match decision {
            Some(decision) if !decision.allowed => (decision.rule, format!("{reason}; {}", decision.reason)),
            _ => (Some(self.rule.clone()), reason),
        };
        self.refuse(layer, other.to_owned(), rule, reason)
    }

    fn refuse(&self, layer: Layer, name: String, rule: Option<RuleId>, reason: String) -> Denied {
        let (source, to, port) = (self.source, self.to, Some(self.port));
        self.proxy.gate.refuse(Refusal { source, to, name: Some(name), port, layer, rule, reason })
    }

    /// What the host's addresses are now.
    pub async fn look_up(&self) -> Result<Vec<IpAddr>, NoWay> {
        self.proxy.gate.look_up(&self.host).await.map_err(|error| match error {
            LookUpError::Refused(reason) => self.not_global(reason),
            LookUpError::Failed(_) => {
                NoWay::Failed { code: Code::UpstreamFailed, detail: format!("Policy allows it, but {error}.") }
            }
        })
    }

    /// Connects to the host, at an address that it has now.
    pub async fn connect(&self, ahead: Ahead) -> Result<Connected, NoWay> {
        let addresses = match ahead {
            Ahead::Connected(connected) => return Ok(connected),
            Ahead::LookedUp(addresses) => Some(addresses),
            Ahead::Nothing => None,
        };
        let gate = &*self.proxy.gate;
        // Registered first, so that a change of policy from here on ends it.
        let opened = gate.open(self.source, &self.host, self.port, &self.rule, self.application);
        let Some(passage) = opened.filter(|passage| !passage.revoked().is_cancelled()) else {
            return Err(self.revoked());
        };
        let connecting = async {
            let addresses = match addresses {
                Some(addresses) => addresses,
                None => self.look_up().await?,
            };
            let dialled = dial(gate, &addresses, self.port, &self.proxy.limits).await;
            dialled.map_err(|error| match error {
                DialError::Forbidden => self.not_global(format!("{} has no public address", self.host)),
                DialError::TimedOut(_) => self.failed(Code::UpstreamTimeout, &error),
                DialError::Failed(_) => self.failed(Code::UpstreamFailed, &error),
            })
        };
        let stream = tokio::select! {
            biased;
            () = passage.revoked().cancelled() => return Err(self.revoked()),
            stream = connecting => stream?,
        };
        Ok(Connected { stream, passage })
    }

    /// The server failed after it was connected to.
    pub fn broken(&self, error: &dyn std::error::Error) -> NoWay {
        self.failed(Code::UpstreamFailed, error)
    }

    fn failed(&self, code: Code, error: &dyn std::error::Error) -> NoWay {
        let (host, port) = (&self.host, self.port);
        tracing::debug!(source = %self.source, %host, port, %error, "a server outside failed");
        let detail = format!("Policy allows it, but {host} on port {port} cannot be reached: {error}.");
        NoWay::Failed { code, detail }
    }

    fn not_global(&self, reason: String) -> NoWay {
        let rule = Some(RuleId::builtin("not-global"));
        NoWay::Denied(Box::new(self.refuse(Layer::Egress, self.host.to_string(), rule, reason)))
    }

    fn revoked(&self) -> NoWay {
        let decision = self.proxy.gate.judge(self.source, &self.host, self.port);
        let (rule, reason) = match decision.allowed {
            true => (None, format!("policy for {} changed meanwhile: connect again", self.host)),
            false => (decision.rule, decision.reason),
        };
        NoWay::Denied(Box::new(self.refuse(Layer::Tcp, self.host.to_string(), rule, reason)))
    }
}
