//! `network`.

use clap::{Subcommand, ValueEnum};
use warren_model::record::Egress;
use warren_model::wire::{CreateNetwork, Network, Rename};

use super::Context;
use super::failure::Failure;
use super::render::{egress, sheet, table, time};
use crate::client::route::Route;

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum NetworkCommand {
    /// Make a private network
    #[command(after_help = "\
A range may overlap every other network's: networks never meet.

Examples:
  warren network create lab
  warren network create lab --cidr 192.168.10.0/24
  warren network create crawlers --egress open")]
    Create {
        /// 1 to 63 of a-z, 0-9 and '-'
        name: String,
        /// A private IPv4 range from /8 to /29; a free 10.N.0.0/16 when absent
        #[arg(long)]
        cidr: Option<String>,
        /// Whether its machines may reach the public internet [default: deny]
        #[arg(long, value_enum)]
        egress: Option<EgressChoice>,
    },
    /// List the networks
    #[command(after_help = "Examples:\n  warren network ls\n  warren network ls --json")]
    Ls {
        /// Show at most so many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: Option<u32>,
    },
    /// Show a network
    #[command(after_help = "Examples:\n  warren network show lab")]
    Show {
        /// Its name or id
        network: String,
    },
    /// Give a network another name
    #[command(after_help = "Examples:\n  warren network rename lab research")]
    Rename {
        /// Its name or id
        network: String,
        /// The new name
        name: String,
    },
    /// Remove a network; refused while it has members, unless forced
    #[command(after_help = "Examples:\n  warren network rm lab\n  warren network rm lab --force")]
    Rm {
        /// Its name or id
        network: String,
        /// Remove its machines with it
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EgressChoice {
    /// No route out at all
    Deny,
    /// The public internet, and nothing private
    Open,
}

impl From<EgressChoice> for Egress {
    fn from(choice: EgressChoice) -> Self {
        match choice {
            EgressChoice::Deny => Self::Deny,
            EgressChoice::Open => Self::Open,
        }
    }
}

pub async fn run(context: &Context, command: NetworkCommand) -> Result<(), Failure> {
    let Context { client, output } = context;
    match command {
        NetworkCommand::Create { name, cidr, egress } => {
            let body = CreateNetwork { name, cidr, egress: egress.map(Egress::from) };
            let answer = client.post(&Route::new(&["networks"]), &body).await?;
            output.object(answer, render_network)
        }
        NetworkCommand::Ls { limit } => {
            let page = client.list(&Route::new(&["networks"]), limit.map(|limit| limit as usize)).await?;
            output.list(page, "There are no networks; `warren network create NAME` makes one.", render_networks)
        }
        NetworkCommand::Show { network } => {
            let answer = client.get(&Route::new(&["networks", &network])).await?;
            output.object(answer, render_network)
        }
        NetworkCommand::Rename { network, name } => {
            let answer = client.patch(&Route::new(&["networks", &network]), &Rename { name }).await?;
            output.object(answer, render_network)
        }
        NetworkCommand::Rm { network, force } => {
            let route = Route::new(&["networks", &network]).maybe("force", force.then_some(true));
            let answer = client.delete(&route).await?;
            output.done(answer, &format!("removed {network}"))
        }
    }
}

fn render_network(network: &Network) -> String {
    let mut rows = vec![
        ("id", network.id.clone()),
        ("name", network.name.clone()),
        ("cidr", network.cidr.clone()),
        ("cidr6", network.cidr6.clone()),
        ("gateway", format!("{}, {}", network.gateway, network.gateway6)),
        ("egress", egress(network.egress).to_owned()),
        ("members", network.members.to_string()),
        ("number", network.number.to_string()),
        ("created", time(network.created_at)),
    ];
    rows.extend(network.warnings.iter().map(|warning| ("warning", warning.clone())));
    sheet(&rows)
}

fn render_networks(networks: &[Network]) -> String {
    let row = |network: &Network| {
        vec![
            network.name.clone(),
            network.cidr.clone(),
            network.cidr6.clone(),
            egress(network.egress).to_owned(),
            network.members.to_string(),
            network.id.clone(),
        ]
    };
    table(&["name", "cidr", "cidr6", "egress", "members", "id"], &[4], networks.iter().map(row))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn network(name: &str) -> Network {
        Network {
            id: "net_01".into(),
            name: name.into(),
            number: 1,
            cidr: "192.168.10.0/24".into(),
            cidr6: "fd12:3456:789a:1::/80".into(),
            gateway: "192.168.10.1".parse().unwrap(),
            gateway6: "fd12:3456:789a:1::1".parse().unwrap(),
            egress: Egress::Deny,
            members: 2,
            created_at: "2026-11-20T09:30:00Z".parse().unwrap(),
            warnings: vec![],
        }
    }

    #[test]
    fn a_network_shows_its_ranges_and_warnings() {
        let mut lab = network("lab");
        lab.warnings = vec!["192.168.10.0/24 overlaps the host's route 192.168.0.0/16 dev eth0".into()];
        insta::assert_snapshot!(render_network(&lab), @r"
        id       net_01
        name     lab
        cidr     192.168.10.0/24
        cidr6    fd12:3456:789a:1::/80
        gateway  192.168.10.1, fd12:3456:789a:1::1
        egress   deny
        members  2
        number   1
        created  2026-11-20 09:30:00Z
        warning  192.168.10.0/24 overlaps the host's route 192.168.0.0/16 dev eth0
        ");
    }

    #[test]
    fn networks_stand_in_columns() {
        let mut open = network("crawlers");
        open.egress = Egress::Open;
        open.members = 120;
        insta::assert_snapshot!(render_networks(&[network("lab"), open]), @r"
        NAME      CIDR             CIDR6                  EGRESS  MEMBERS  ID
        lab       192.168.10.0/24  fd12:3456:789a:1::/80  deny          2  net_01
        crawlers  192.168.10.0/24  fd12:3456:789a:1::/80  open        120  net_01
        ");
    }
}
