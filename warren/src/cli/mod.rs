//! The commands: their arguments, what they ask for, how the answer is shown.
//!
//! | module | holds |
//! | --- | --- |
//! | [`account`], [`identity`], [`network`], [`machine`], [`image`] | the commands named so |
//! | [`vpn`] | `vpn`: operators' sessions |
//! | [`exec`] | `exec` and `shell`: a command's streams, signals and status |
//! | [`copy`] | `cp` |
//! | [`domain`] | `domain`: what is public |
//! | [`policy`], [`explain`], [`denials`] | `policy`; `explain` and `reach`; `denials` |
//! | [`audit`] | `audit`: reports, their verification, the log of mutations |
//! | [`observe`], [`topology`] | `topology`, `events`, `logs`, `ports`, `traffic` |
//! | `host`, [`config`], `public` | `up`, `doctor`, `demo`, `uninstall` and the server's settings (feature `server`) |
//! | [`render`], [`output`], [`progress`], [`follow`] | data to text, and where it goes |
//! | [`failure`], [`usage`], [`advice`] | exit statuses and messages |

pub mod account;
pub mod advice;
pub mod audit;
#[cfg(feature = "server")]
pub mod config;
pub mod copy;
pub mod denials;
pub mod domain;
pub mod exec;
pub mod explain;
pub mod failure;
pub mod follow;
#[cfg(feature = "server")]
pub mod host;
pub mod identity;
pub mod image;
pub mod machine;
pub mod network;
pub mod observe;
pub mod output;
pub mod policy;
pub mod progress;
#[cfg(feature = "server")]
pub mod public;
pub mod render;
pub mod terminal;
pub mod topology;
pub mod usage;
pub mod values;
pub mod vpn;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

use self::failure::Failure;
use self::output::{Output, note};
use crate::client::Client;
use crate::client::target::Wanted;

#[cfg(feature = "server")]
const EXAMPLES: &str = "\
Examples:
  warren up &                                   start a server on this host
  warren machine create worker                  a machine in your private network
  warren exec worker -- python3 --version       run a command in it
  warren topology                               see what there is

`warren COMMAND --help` has more examples. Every command takes --json.";
#[cfg(not(feature = "server"))]
const EXAMPLES: &str = "\
Examples:
  warren --url http://127.0.0.1:7070 whoami     ask a server, here through an SSH tunnel
  warren machine create worker                  a machine in your private network
  warren exec worker -- python3 --version       run a command in it
  warren topology                               see what there is

`warren COMMAND --help` has more examples. Every command takes --json.";

/// Private networks with real computers for AI agents, on your own Linux hosts
#[derive(Debug, Parser)]
#[command(name = "warren", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Default, Args)]
pub struct Globals {
    /// The server: http://…, https://… or unix:///path/api.sock [default: the socket in WARREN_DATA_DIR]
    #[arg(long, global = true, value_name = "URL", env = "WARREN_URL", help_heading = "Server")]
    pub url: Option<String>,
    /// The API key [default: root.key beside the socket, when readable]
    #[arg(
        long,
        global = true,
        value_name = "KEY",
        env = "WARREN_API_KEY",
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub key: Option<String>,
    /// Act in this account (root key only)
    #[arg(long, global = true, value_name = "NAME", help_heading = "Server")]
    pub account: Option<String>,
    /// Write JSON: one object, or {"items":[…],"next":…}; failures as problem documents on stderr
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the server on this host, in the foreground
    #[cfg(feature = "server")]
    #[command(after_help = "\
Stdout carries one line, `ready http://ADDR:PORT`; everything else goes to stderr.

Examples:
  warren up
  warren up --data-dir /srv/warren --listen 127.0.0.1:0
  warren up --forwarding                        lets networks with open egress reach the internet
  warren up --resolver 9.9.9.9 --resolver [2620:fe::fe]:53
  warren up --https-listen 0.0.0.0:443 --http-listen 0.0.0.0:80 --preview-suffix preview.example.com
  warren up --config /etc/warren/warren.toml")]
    Up(Box<config::UpFlags>),
    /// Accounts: the tenants that own networks and machines (root key only)
    #[command(
        subcommand,
        after_help = "\
Examples:
  warren account create acme
  warren account ls
  warren --account acme network ls                   act in it, with the root key"
    )]
    Account(account::AccountCommand),
    /// API keys of the account
    #[command(
        subcommand,
        after_help = "\
Examples:
  warren key create --name ci --expires-in 90d
  warren key ls
  warren key revoke key_01jd8m…"
    )]
    Key(account::KeyCommand),
    /// Identities: who may operate machines without a key of the account
    #[command(
        subcommand,
        after_help = "\
Examples:
  warren identity create alice
  warren identity grant alice worker --verbs exec,files
  warren token create alice --ttl 1h
  warren identity revoke alice worker"
    )]
    Identity(identity::IdentityCommand),
    /// Tokens of identities
    #[command(
        subcommand,
        after_help = "\
Examples:
  warren token create alice --ttl 1h --json | jq -r .token
  warren token ls alice
  warren token revoke tok_01jd8m…"
    )]
    Token(identity::TokenCommand),
    /// Private networks
    #[command(
        subcommand,
        after_help = "\
Examples:
  warren network create agents --cidr 192.168.10.0/24
  warren network ls
  warren network rm agents"
    )]
    Network(network::NetworkCommand),
    /// Machines: computers on a private network
    #[command(
        subcommand,
        after_help = "\
Examples:
  warren machine create worker --network agents --port web=8080/http
  warren machine ls
  warren machine stop worker"
    )]
    Machine(machine::MachineCommand),
    /// Operators in private networks, over WireGuard
    #[command(
        subcommand,
        after_help = "\
Examples:
  warren vpn up agents                          until Ctrl-C
  warren vpn open agents --ttl 8h > wg.conf     for wg-quick
  warren vpn ls
  warren vpn close session-7k2m9q4x"
    )]
    Vpn(vpn::VpnCommand),
    /// Run a command in a machine
    Exec(exec::ExecArgs),
    /// Open a shell in a machine
    Shell(exec::ShellArgs),
    /// Copy files and directories into, out of and between machines
    Cp(copy::CopyArgs),
    /// Show what a machine wrote to its console
    Logs(observe::LogsArgs),
    /// Show which ports are listening in a machine
    Ports(observe::PortsArgs),
    /// Show how much a machine sent and received
    Traffic(observe::TrafficArgs),
    /// Images that machines are made from
    #[command(
        subcommand,
        after_help = "\
Examples:
  warren image pull alpine:3.20
  warren image ls"
    )]
    Image(image::ImageCommand),
    /// Policies: what may talk to what
    #[command(
        subcommand,
        after_help = "\
Examples:
  warren policy apply policy.yaml --dry-run
  warren policy apply policy.yaml
  warren policy rollback 1"
    )]
    Policy(policy::PolicyCommand),
    /// Ask whether the policy in force allows something, and why
    Explain(explain::ExplainArgs),
    /// Show what every machine reaches by the policy in force
    Reach(explain::ReachArgs),
    /// Show what was refused by policy
    Denials(denials::DenialsArgs),
    /// Audits: prove from inside every machine that the policy holds
    #[command(
        subcommand,
        after_help = "\
Examples:
  warren audit run --report proof/
  warren audit key > audit.pub
  warren audit verify proof/ --key audit.pub"
    )]
    Audit(audit::AuditCommand),
    /// Domains: host names that lead from the public internet to a machine's port
    #[command(
        subcommand,
        after_help = "\
Examples:
  warren domain map worker:8080                          a preview, below the server's suffix
  warren domain verify example.com                       a name of your own: proved with a TXT record
  warren domain map app.example.com worker:8080
  warren domain ls                                       everything that is public"
    )]
    Domain(domain::DomainCommand),
    /// Draw every network with what is in it
    Topology(topology::TopologyArgs),
    /// Show what happened
    Events(observe::EventsArgs),
    /// Say which server, account and key are used
    #[command(after_help = "Examples:\n  warren whoami\n  warren --account acme whoami --json")]
    Whoami,
    /// Say what this host lacks to run Warren, and the command that mends it
    #[cfg(feature = "server")]
    #[command(after_help = "Examples:\n  warren doctor\n  warren doctor --json | jq '.items[] | select(.ok | not)'")]
    Doctor,
    /// Show in one run, on this host, what Warren does; leaves nothing behind
    #[cfg(feature = "server")]
    #[command(after_help = "Examples:\n  warren demo\n  warren demo --pool-dir /var/lib/warren/pool")]
    Demo(host::DemoArgs),
    /// End and remove every trace of one installation, also when its server is dead
    #[cfg(feature = "server")]
    #[command(after_help = "Examples:\n  warren uninstall --yes\n  warren uninstall --data-dir /srv/warren --yes")]
    Uninstall(host::UninstallArgs),
    /// Print the completions of a shell
    #[command(after_help = "\
Examples:
  warren completion bash > /etc/bash_completion.d/warren
  warren completion zsh > \"${fpath[1]}/_warren\"
  warren completion fish > ~/.config/fish/completions/warren.fish")]
    Completion {
        /// Whose completions
        shell: clap_complete::Shell,
    },
    /// Say the version of this command, and of the server when it answers
    #[command(after_help = "Examples:\n  warren version\n  warren version --json")]
    Version,
    /// DNS and proxies, without privilege; started by the server
    #[cfg(feature = "server")]
    #[command(hide = true)]
    Edge(host::EdgeArgs),
}

/// What a client command works with.
pub struct Context {
    pub client: Client,
    pub output: Output,
}

impl Globals {
    pub fn wanted(&self) -> Wanted {
        let data_dir = std::env::var_os("WARREN_DATA_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Wanted { url: given(&self.url), key: given(&self.key), account: given(&self.account), data_dir }
    }

    pub fn context(&self) -> Result<Context, Failure> {
        // A key that was to come from somewhere and did not must not turn into the root key.
        if self.key.as_deref() == Some("") {
            let text = "the key is empty: set WARREN_API_KEY or --key to one, or unset it to use root.key";
            return Err(Failure::Usage(text.to_owned()));
        }
        Ok(Context { client: Client::new(&self.wanted().find()?)?, output: Output { json: self.json } })
    }
}

/// Runs one command line; answers its exit status.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            let failure = usage::failure(&error).filter(|_| usage::wants_json(&args));
            if let Some(report) = failure.and_then(|failure| failure.report(true)) {
                note(&report);
                return error.exit_code();
            }
            // Help goes to stdout and may find nobody reading; there is nobody left to tell.
            let _ = error.print();
            return error.exit_code();
        }
    };
    let json = cli.globals.json;
    // A command in a machine has statuses of its own, so Warren's own failures must not look like one of them.
    let in_machine = matches!(cli.command, Command::Exec(_));
    match dispatch(cli) {
        Ok(status) => status,
        Err(failure) => {
            if let Some(report) = failure.report(json) {
                note(&report);
            }
            if in_machine { exec::exit_status(&failure) } else { failure.exit_status() }
        }
    }
}

fn dispatch(cli: Cli) -> Result<i32, Failure> {
    let Cli { globals, command } = cli;
    match command {
        #[cfg(feature = "server")]
        Command::Up(flags) => host::up(*flags)?,
        #[cfg(feature = "server")]
        Command::Edge(args) => host::edge(args)?,
        #[cfg(feature = "server")]
        Command::Uninstall(args) => host::uninstall(args)?,
        #[cfg(feature = "server")]
        Command::Doctor => host::doctor(globals.json)?,
        #[cfg(feature = "server")]
        Command::Demo(args) => host::demo(args)?,
        Command::Completion { shell } => completion(shell)?,
        Command::Image(image::ImageCommand::Build(args)) => image::build(&globals, args)?,
        Command::Audit(command) => {
            if let Err(command) = audit::offline(Output { json: globals.json }, command)? {
                return with_server(globals, Command::Audit(command));
            }
        }
        command => return with_server(globals, command),
    }
    Ok(failure::DONE)
}

/// The commands that talk to a server.
fn with_server(globals: Globals, command: Command) -> Result<i32, Failure> {
    let context = globals.context()?;
    block_on(async {
        match command {
            Command::Account(command) => account::account(&context, command).await?,
            Command::Key(command) => account::key(&context, command).await?,
            Command::Identity(command) => identity::identity(&context, command).await?,
            Command::Token(command) => identity::token(&context, command).await?,
            Command::Whoami => account::whoami(&context).await?,
            Command::Version => account::version(&context).await?,
            Command::Network(command) => network::run(&context, command).await?,
            Command::Machine(command) => machine::run(&context, command).await?,
            Command::Vpn(command) => vpn::run(&context, command).await?,
            Command::Image(command) => image::run(&context, command).await?,
            Command::Exec(args) => return exec::exec(&context, args).await,
            Command::Shell(args) => return exec::shell(&context, args).await,
            Command::Cp(args) => copy::run(&context, args).await?,
            Command::Logs(args) => observe::logs(&context, args).await?,
            Command::Ports(args) => observe::ports(&context, args).await?,
            Command::Traffic(args) => observe::traffic(&context, args).await?,
            Command::Policy(command) => return policy::run(&context, command).await,
            Command::Explain(args) => explain::explain(&context, args).await?,
            Command::Reach(args) => explain::reach(&context, args).await?,
            Command::Denials(args) => denials::run(&context, args).await?,
            Command::Audit(command) => return audit::run(&context, command).await,
            Command::Domain(command) => domain::run(&context, command).await?,
            Command::Events(args) => observe::events(&context, args).await?,
            Command::Topology(args) => topology::run(&context, args).await?,
            Command::Completion { shell } => completion(shell)?,
            #[cfg(feature = "server")]
            Command::Up(_) | Command::Edge(_) | Command::Uninstall(_) | Command::Doctor | Command::Demo(_) => {
                return Err(Failure::Said("this command needs no server".to_owned()));
            }
        }
        Ok(failure::DONE)
    })
}

/// Runs a client command. Threads that wait for stdin are left to the end of the process.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local("cannot start", error))?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

fn completion(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "warren", &mut script);
    io::Write::write_all(&mut io::stdout().lock(), &script).map_err(Failure::stdout)
}

#[cfg(test)]
mod tests;
