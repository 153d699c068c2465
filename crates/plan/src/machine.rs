//! What to do next for one machine.

use std::fmt;

use warren_model::record::{MachineState, Power};

/// What the machine's owner wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DesiredMachine {
    pub power: Power,
    /// The boot that is wanted; a running machine of an earlier one is restarted.
    pub boot: u64,
}

/// What is there of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ObservedMachine {
    pub disk: bool,
    /// The disk is mounted where the driver expects the root.
    pub root: bool,
    pub container: Container,
    /// The boot that the container belongs to, as far as it was recorded.
    pub boot: Option<u64>,
    pub link: Link,
    /// The network's rules let packets of this member pass.
    pub admitted: bool,
    /// The directory through which the agent dials is open.
    pub agent_open: bool,
    pub agent_connected: bool,
    /// The agent was given the machine's present names and facts.
    pub configured: bool,
    /// The network's DNS view says about this machine what it should.
    pub published: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Container {
    #[default]
    Absent,
    /// It exists with its namespaces; nothing of the image runs.
    Created,
    Running,
    /// Its PID 1 has ended; the runtime still knows it.
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Link {
    #[default]
    Absent,
    /// It is there, but not as it should be.
    Broken,
    Ready,
}

macro_rules! steps {
    ($($(#[$meta:meta])* $variant:ident = $text:literal,)*) => {
        /// One thing to do for a machine.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum MachineStep {
            $($(#[$meta])* $variant,)*
        }

        impl MachineStep {
            pub const ALL: &'static [MachineStep] = &[$(MachineStep::$variant),*];

            pub fn as_str(self) -> &'static str {
                match self { $(MachineStep::$variant => $text,)* }
            }
        }
    };
}

steps! {
    CreateDisk = "create-disk",
    MountRoot = "mount-root",
    OpenAgent = "open-agent",
    /// Lets packets pass; before the link, so that policy is there before the first packet.
    Admit = "admit",
    CreateContainer = "create-container",
    AttachLink = "attach-link",
    StartContainer = "start-container",
    AwaitAgent = "await-agent",
    Configure = "configure",
    /// Brings the network's DNS view up to date, in either direction.
    Publish = "publish",
    /// Asks the machine to end, then ends it.
    StopContainer = "stop-container",
    /// Ends it at once.
    RemoveContainer = "remove-container",
    DetachLink = "detach-link",
    CloseAgent = "close-agent",
    UnmountRoot = "unmount-root",
    Expel = "expel",
    RemoveDisk = "remove-disk",
    /// Removes the records.
    Forget = "forget",
}

impl fmt::Display for MachineStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The steps from what is there to what is wanted; none when they agree.
pub fn plan(desired: DesiredMachine, observed: &ObservedMachine) -> Vec<MachineStep> {
    match desired.power {
        Power::On => plan_on(desired, observed),
        Power::Off => plan_off(observed),
        Power::Gone => plan_gone(observed),
    }
}

/// The state to show while the steps are being done, given the state that is shown now.
pub fn transition(power: Power, shown: MachineState) -> MachineState {
    match (power, shown) {
        (Power::Gone, _) => MachineState::Deleting,
        (Power::Off, MachineState::Stopped) => MachineState::Stopped,
        (Power::Off, _) => MachineState::Stopping,
        (Power::On, MachineState::Creating) => MachineState::Creating,
        (Power::On, _) => MachineState::Starting,
    }
}

/// Steps that leave a running machine running: they mend or refresh, and the machine stays `running` meanwhile.
pub fn keeps_running(steps: &[MachineStep]) -> bool {
    use MachineStep::*;
    steps
        .iter()
        .all(|step| matches!(step, OpenAgent | Admit | AttachLink | AwaitAgent | Configure | Publish | UnmountRoot))
}

fn plan_on(desired: DesiredMachine, observed: &ObservedMachine) -> Vec<MachineStep> {
    use MachineStep::*;
    let mut steps = Vec::new();
    let stale = observed.boot.is_some_and(|boot| boot != desired.boot);
    let container = match observed.container {
        Container::Running | Container::Created if stale => {
            steps.push(StopContainer);
            Container::Absent
        }
        Container::Dead => {
            steps.push(RemoveContainer);
            Container::Absent
        }
        // Without its root it can never be started.
        Container::Created if !observed.root => {
            steps.push(RemoveContainer);
            Container::Absent
        }
        other => other,
    };
    let fresh = container == Container::Absent;
    if fresh {
        push_unless(&mut steps, observed.disk, CreateDisk);
        push_unless(&mut steps, observed.root, MountRoot);
    }
    push_unless(&mut steps, observed.agent_open, OpenAgent);
    push_unless(&mut steps, observed.admitted, Admit);
    push_unless(&mut steps, !fresh, CreateContainer);
    push_unless(&mut steps, !fresh && observed.link == Link::Ready, AttachLink);
    push_unless(&mut steps, container == Container::Running, StartContainer);
    let connected = container == Container::Running && observed.agent_connected;
    push_unless(&mut steps, connected, AwaitAgent);
    push_unless(&mut steps, connected && observed.configured, Configure);
    push_unless(&mut steps, observed.published, Publish);
    // The machine has a mount of its own by now; the host's would only be copied into every machine that follows.
    push_unless(&mut steps, !(observed.root || fresh), UnmountRoot);
    steps
}

fn plan_off(observed: &ObservedMachine) -> Vec<MachineStep> {
    use MachineStep::*;
    let mut steps = Vec::new();
    match observed.container {
        Container::Absent => {}
        Container::Dead | Container::Created => steps.push(RemoveContainer),
        Container::Running => steps.push(StopContainer),
    }
    push_unless(&mut steps, observed.link == Link::Absent, DetachLink);
    push_unless(&mut steps, !observed.agent_open, CloseAgent);
    push_unless(&mut steps, !observed.root, UnmountRoot);
    push_unless(&mut steps, observed.published, Publish);
    steps
}

fn plan_gone(observed: &ObservedMachine) -> Vec<MachineStep> {
    use MachineStep::*;
    let mut steps = Vec::new();
    push_unless(&mut steps, observed.published, Publish);
    push_unless(&mut steps, observed.container == Container::Absent, RemoveContainer);
    push_unless(&mut steps, observed.link == Link::Absent, DetachLink);
    push_unless(&mut steps, !observed.admitted, Expel);
    push_unless(&mut steps, !observed.agent_open, CloseAgent);
    push_unless(&mut steps, !observed.root, UnmountRoot);
    push_unless(&mut steps, !observed.disk, RemoveDisk);
    steps.push(Forget);
    steps
}

fn push_unless(steps: &mut Vec<MachineStep>, done: bool, step: MachineStep) {
    if !done {
        steps.push(step);
    }
}
