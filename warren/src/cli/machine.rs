//! `machine`.

pub(super) mod several;

use clap::{Args, Subcommand, ValueEnum};
use warren_model::wire::{CreateMachine, Machine, Port, UpdateMachine};

use super::failure::Failure;
use super::render::{maybe_time, ports, sheet, table, time};
use super::{Context, image, values};
use crate::client::route::Route;

#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum MachineCommand {
    /// Make a machine; answers when commands can run in it
    #[command(after_help = "\
Without arguments it gets a name, an address in the network `default` and the image `debian`. An image that is not there \
yet is built first.

Examples:
  warren machine create
  warren machine create worker --network lab --ip 192.168.10.10
  warren machine create web --port web=8080/http --tag public --label team=search
  warren machine create big --cpus 4 --memory 8192 --disk 40")]
    Create(CreateArgs),
    /// List the machines
    #[command(after_help = "\
Examples:
  warren machine ls
  warren machine ls --network lab --state running
  warren machine ls --label team=search --json")]
    Ls(ListArgs),
    /// Show a machine
    #[command(
        after_help = "Examples:\n  warren machine show worker\n  warren machine show worker --json | jq -r .private_ip"
    )]
    Show {
        /// Its name or id
        machine: String,
    },
    /// Start stopped machines; their disks and addresses are as they were
    #[command(after_help = "Examples:\n  warren machine start worker")]
    Start(several::Machines),
    /// Stop machines; they keep their disks and addresses, and lose their memory
    #[command(after_help = "Examples:\n  warren machine stop worker\n  warren machine stop one two three")]
    Stop(several::Machines),
    /// Stop machines and start them again
    #[command(after_help = "Examples:\n  warren machine restart worker")]
    Restart(several::Machines),
    /// Give a machine another name, and with it another `.internal` name
    #[command(after_help = "\
DNS answers to the new name at once, and to the old one no more. What the machine itself calls its hostname changes when
it starts next.

Examples:
  warren machine rename worker crawler")]
    Rename {
        /// Its name or id
        machine: String,
        /// The new name
        name: String,
    },
    /// Change a machine's declared ports, tags or labels
    #[command(after_help = "\
What is given takes the place of all ports, tags or labels that the machine had.

Examples:
  warren machine set web --port web=8080/http --port metrics=9100
  warren machine set web --tag public --tag blue
  warren machine set web --clear labels")]
    Set(SetArgs),
    /// Remove machines with their disks
    #[command(after_help = "Examples:\n  warren machine rm worker\n  warren machine rm one two three")]
    Rm(several::Machines),
}

#[derive(Debug, Clone, PartialEq, Args)]
pub struct CreateArgs {
    /// 1 to 63 of a-z, 0-9 and '-'; made up when absent
    pub name: Option<String>,
    /// Its network, by name or id [default: default]
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// An address of the network; given by kind when absent
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<String>,
    /// What its disk starts as [default: debian]
    #[arg(long, value_name = "NAME")]
    pub image: Option<String>,
    /// Processors, 0.1 to 1024; fractions are allowed [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus: Option<f64>,
    /// Memory in MiB, 64 to 16777216 [default: 512]
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// Disk in GiB, 1 to 1024, the image included [default: 10, where the host can limit disks]
    #[arg(long, value_name = "GIB")]
    pub disk: Option<u64>,
    /// A port it will listen on (1 to 65535; tcp, udp, http or https), such as web=8080/http; a fact for others, not an
    /// opening
    #[arg(long = "port", value_name = "NAME=PORT/PROTOCOL", value_parser = values::port)]
    pub ports: Vec<Port>,
    /// A tag
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// A label
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::pair)]
    pub labels: Vec<(String, String)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ListArgs {
    /// Only in this network
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// Only with this tag
    #[arg(long, value_name = "TAG")]
    pub tag: Option<String>,
    /// Only with this label; with any value when only its key is given
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub label: Option<String>,
    /// Only in this state
    #[arg(long, value_name = "STATE",
          value_parser = ["creating", "running", "stopping", "stopped", "starting", "failed", "deleting"])]
    pub state: Option<String>,
    /// Show at most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true).args(["ports", "tags", "labels", "clear"])))]
pub struct SetArgs {
    /// Its name or id
    pub machine: String,
    /// A port it listens on, in place of all it declared
    #[arg(long = "port", value_name = "NAME=PORT/PROTOCOL", value_parser = values::port)]
    pub ports: Vec<Port>,
    /// A tag, in place of all it had
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// A label, in place of all it had
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::pair)]
    pub labels: Vec<(String, String)>,
    /// Leave none of these
    #[arg(long, value_enum, value_name = "WHAT")]
    pub clear: Vec<Clear>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Clear {
    Ports,
    Tags,
    Labels,
}

impl From<CreateArgs> for CreateMachine {
    fn from(args: CreateArgs) -> Self {
        Self {
            name: args.name,
            network: args.network,
            private_ip: args.ip,
            image: args.image,
            cpus: args.cpus,
            memory_mib: args.memory,
            disk_gib: args.disk,
            ports: args.ports,
            tags: args.tags,
            labels: args.labels.into_iter().collect(),
        }
    }
}

impl From<SetArgs> for UpdateMachine {
    fn from(args: SetArgs) -> Self {
        fn change<T>(given: Vec<T>, clear: bool) -> Option<Vec<T>> {
            (clear || !given.is_empty()).then_some(given)
        }
        Self {
            name: None,
            ports: change(args.ports, args.clear.contains(&Clear::Ports)),
            tags: change(args.tags, args.clear.contains(&Clear::Tags)),
            labels: change(args.labels, args.clear.contains(&Clear::Labels)).map(|pairs| pairs.into_iter().collect()),
        }
    }
}

pub async fn run(context: &Context, command: MachineCommand) -> Result<(), Failure> {
    let Context { client, output } = context;
    match command {
        MachineCommand::Create(args) => {
            let body = CreateMachine::from(args);
            let default = warren_model::ImageName::default_image();
            image::ensure(client, body.image.as_deref().unwrap_or(default.as_str()), output.json).await?;
            let answer = client.post(&Route::new(&["machines"]), &body).await?;
            output.object(answer, render_machine)
        }
        MachineCommand::Ls(args) => {
            let route = Route::new(&["machines"])
                .maybe("network", args.network)
                .maybe("tag", args.tag)
                .maybe("label", args.label)
                .maybe("state", args.state);
            let page = client.list(&route, args.limit.map(|limit| limit as usize)).await?;
            output.list(page, "There are no machines; `warren machine create` makes one.", render_machines)
        }
        MachineCommand::Show { machine } => {
            let answer = client.get(&Route::new(&["machines", &machine])).await?;
            output.object(answer, render_machine)
        }
        MachineCommand::Start(machines) => several::power(context, machines, "start").await,
        MachineCommand::Stop(machines) => several::power(context, machines, "stop").await,
        MachineCommand::Restart(machines) => several::power(context, machines, "restart").await,
        MachineCommand::Rename { machine, name } => {
            let body = UpdateMachine { name: Some(name), ..UpdateMachine::default() };
            let answer = client.patch(&Route::new(&["machines", &machine]), &body).await?;
            output.object(answer, render_machine)
        }
        MachineCommand::Set(args) => {
            let route = Route::new(&["machines", &args.machine]);
            let answer = client.patch(&route, &UpdateMachine::from(args)).await?;
            output.object(answer, render_machine)
        }
        MachineCommand::Rm(machines) => several::remove(context, machines).await,
    }
}

fn render_machine(machine: &Machine) -> String {
    let disk = machine.disk_gib.map_or_else(|| "not limited".to_owned(), |disk| format!("{disk} GiB"));
    let labels = machine.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ");
    let failure = machine.failure.as_ref().map(|failure| format!("{} ({})", failure.detail, failure.code));
    sheet(&[
        ("id", machine.id.clone()),
        ("name", machine.name.clone()),
        ("state", machine.state.as_str().to_owned()),
        ("failure", failure.unwrap_or_default()),
        ("network", machine.network.name.clone()),
        ("private ip", format!("{}, {}", machine.private_ip, machine.private_ip6)),
        ("address", machine.address.clone()),
        ("hostname", machine.hostname.clone()),
        ("image", machine.image.clone()),
        ("cpus", machine.cpus.to_string()),
        ("memory", format!("{} MiB", machine.memory_mib)),
        ("disk", disk),
        ("ports", ports(&machine.ports)),
        ("tags", machine.tags.join(", ")),
        ("labels", labels),
        ("created", time(machine.created_at)),
        ("started", maybe_time(machine.started_at)),
    ])
}

fn render_machines(machines: &[Machine]) -> String {
    let row = |machine: &Machine| {
        vec![
            machine.name.clone(),
            machine.state.as_str().to_owned(),
            machine.network.name.clone(),
            machine.private_ip.to_string(),
            machine.hostname.clone(),
            machine.image.clone(),
            ports(&machine.ports),
            machine.tags.join(","),
        ]
    };
    let headings = ["name", "state", "network", "private ip", "hostname", "image", "ports", "tags"];
    table(&headings, &[], machines.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::Code;
    use warren_model::record::{Failure as MachineFailure, MachineState, Protocol};
    use warren_model::wire::Reference;

    fn machine(name: &str) -> Machine {
        Machine {
            id: "mch_01".into(),
            name: name.into(),
            state: MachineState::Running,
            failure: None,
            private_ip: "192.168.10.10".parse().unwrap(),
            private_ip6: "fd12:3456:789a:1::2ad".parse().unwrap(),
            address: "1:0001.0000.02AD".into(),
            hostname: format!("{name}.vm.internal"),
            network: Reference { id: "net_01".into(), name: "lab".into() },
            image: "debian".into(),
            cpus: 0.5,
            memory_mib: 512,
            disk_gib: None,
            ports: vec![Port { name: "web".into(), port: 8080, protocol: Protocol::Http }],
            tags: vec!["blue".into(), "public".into()],
            labels: [("team".to_owned(), "search".to_owned())].into(),
            created_at: "2026-11-20T09:30:00Z".parse().unwrap(),
            started_at: None,
        }
    }

    #[test]
    fn a_machine_shows_everything_that_it_has() {
        insta::assert_snapshot!(render_machine(&machine("worker")), @r"
        id          mch_01
        name        worker
        state       running
        network     lab
        private ip  192.168.10.10, fd12:3456:789a:1::2ad
        address     1:0001.0000.02AD
        hostname    worker.vm.internal
        image       debian
        cpus        0.5
        memory      512 MiB
        disk        not limited
        ports       web 8080/http
        tags        blue, public
        labels      team=search
        created     2026-11-20 09:30:00Z
        ");
    }

    #[test]
    fn a_failed_machine_says_why() {
        let mut failed = machine("worker");
        failed.state = MachineState::Failed;
        failed.failure = Some(MachineFailure {
            code: Code::RuntimeMissing,
            detail: "runc is not installed: apt install runc".into(),
        });
        let shown = render_machine(&failed);
        assert!(shown.contains("failure     runc is not installed: apt install runc (runtime_missing)\n"), "{shown}");
    }

    #[test]
    fn machines_stand_in_columns() {
        let mut other = machine("db");
        other.ports.clear();
        other.tags.clear();
        insta::assert_snapshot!(render_machines(&[machine("worker"), other]), @r"
        NAME    STATE    NETWORK  PRIVATE IP     HOSTNAME            IMAGE   PORTS          TAGS
        worker  running  lab      192.168.10.10  worker.vm.internal  debian  web 8080/http  blue,public
        db      running  lab      192.168.10.10  db.vm.internal      debian
        ");
    }

    #[test]
    fn set_changes_only_what_is_named() {
        let args = SetArgs {
            machine: "web".into(),
            ports: vec![],
            tags: vec!["blue".into()],
            labels: vec![],
            clear: vec![Clear::Labels],
        };
        let body = serde_json::to_value(UpdateMachine::from(args)).unwrap();
        assert_eq!(body, serde_json::json!({"tags": ["blue"], "labels": {}}));
    }
}
