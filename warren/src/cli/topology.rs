//! `topology`: every network with what is in it, as a tree.

use std::fmt::Write;

use clap::Args;
use warren_model::wire::{NetworkTopology, Resource};

use super::Context;
use super::failure::Failure;
use super::render::{egress, ports, printable};
use crate::client::route::Route;

#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(after_help = "\
Examples:
  warren topology
  warren topology --network lab
  warren topology --json | jq -r '.items[].resources[].private_ip'")]
pub struct TopologyArgs {
    /// Only this network, by name or id
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
}

pub async fn run(context: &Context, args: TopologyArgs) -> Result<(), Failure> {
    let mut page = context.client.list(&Route::new(&["topology"]), None).await?;
    if let Some(wanted) = &args.network {
        let is_wanted = |item: &serde_json::Value| {
            ["id", "name"].iter().any(|key| item["network"][key].as_str() == Some(wanted.as_str()))
        };
        page.items.retain(is_wanted);
        if page.items.is_empty() {
            // Let the server say that there is no such network.
            context.client.get(&Route::new(&["networks", wanted])).await?;
        }
    }
    context.output.list(page, "There are no networks; `warren network create NAME` makes one.", render)
}

fn render(networks: &[NetworkTopology]) -> String {
    let trees: Vec<String> = networks.iter().map(tree).collect();
    trees.join("\n")
}

fn tree(topology: &NetworkTopology) -> String {
    let network = &topology.network;
    let mut text = format!(
        "{}  {}  {}  egress {}\n",
        printable(&network.name),
        printable(&topology.private_cidr),
        printable(&network.cidr6),
        egress(network.egress)
    );
    let line = |text: &mut String, bough: &str, rest: &str| {
        // Writing into a String does not fail.
        let _ = writeln!(text, "{bough} {}", rest.trim_end());
    };
    let gateway = format!("gateway  {}  {}", network.gateway, network.gateway6);
    let bough = |last: bool| if last { "└──" } else { "├──" };
    line(&mut text, bough(topology.resources.is_empty()), &gateway);
    let widths = widths(&topology.resources);
    for (index, resource) in topology.resources.iter().enumerate() {
        let row = cells(resource).iter().zip(&widths).fold(String::new(), |row, (cell, width)| {
            let missing = width - cell.chars().count();
            row + cell + &" ".repeat(missing + 2)
        });
        line(&mut text, bough(index + 1 == topology.resources.len()), &row);
    }
    text
}

fn cells(resource: &Resource) -> [String; 8] {
    [
        resource.kind.clone(),
        resource.name.clone(),
        resource.state.as_str().to_owned(),
        resource.private_ip.to_string(),
        resource.private_ip6.to_string(),
        resource.address.clone(),
        resource.hostname.clone(),
        ports(&resource.ports),
    ]
    .map(|cell| printable(&cell))
}

fn widths(resources: &[Resource]) -> [usize; 8] {
    resources.iter().map(cells).fold([0; 8], |mut widths, cells| {
        for (width, cell) in widths.iter_mut().zip(&cells) {
            *width = (*width).max(cell.chars().count());
        }
        widths
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::network::tests::network;
    use warren_model::record::{MachineState, Protocol};
    use warren_model::wire::Port;

    fn resource(name: &str, last: u8, state: MachineState) -> Resource {
        Resource {
            kind: "vm".into(),
            id: format!("mch_{last}"),
            name: name.into(),
            private_ip: format!("192.168.10.{last}").parse().unwrap(),
            private_ip6: format!("fd12:3456:789a:1::{last:x}").parse().unwrap(),
            address: format!("1:0001.0000.{last:04X}"),
            hostname: format!("{name}.vm.internal"),
            state,
            ports: vec![],
        }
    }

    #[test]
    fn a_tree_shows_both_addresses_names_ports_and_state() {
        let mut web = resource("web", 10, MachineState::Running);
        web.ports = vec![
            Port { name: "http".into(), port: 8080, protocol: Protocol::Http },
            Port { name: "metrics".into(), port: 9100, protocol: Protocol::Tcp },
        ];
        let lab = NetworkTopology {
            network: network("lab"),
            private_cidr: "192.168.10.0/24".into(),
            resources: vec![web, resource("database", 173, MachineState::Stopped)],
        };
        let empty =
            NetworkTopology { network: network("empty"), private_cidr: "192.168.10.0/24".into(), resources: vec![] };
        insta::assert_snapshot!(render(&[lab, empty]), @r"
        lab  192.168.10.0/24  fd12:3456:789a:1::/80  egress deny
        ├── gateway  192.168.10.1  fd12:3456:789a:1::1
        ├── vm  web       running  192.168.10.10   fd12:3456:789a:1::a   1:0001.0000.000A  web.vm.internal       http 8080/http, metrics 9100/tcp
        └── vm  database  stopped  192.168.10.173  fd12:3456:789a:1::ad  1:0001.0000.00AD  database.vm.internal

        empty  192.168.10.0/24  fd12:3456:789a:1::/80  egress deny
        └── gateway  192.168.10.1  fd12:3456:789a:1::1
        ");
    }
}
