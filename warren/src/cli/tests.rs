//! Every command line of the contract, parsed.

use std::time::Duration;

use super::*;
use clap::error::ErrorKind;

fn parse(line: &str) -> Command {
    match Cli::try_parse_from(words(line)) {
        Ok(cli) => cli.command,
        Err(error) => panic!("{line}: {error}"),
    }
}

fn refused(line: &str) -> i32 {
    match Cli::try_parse_from(words(line)) {
        Ok(cli) => panic!("{line}: {cli:?}"),
        Err(error) => error.exit_code(),
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

/// Work without a server, and so without its key: there `--key` is the key that a report is checked with.
const WITHOUT_SERVER: [&str; 2] = ["verify", "verify-log"];

/// clap would take the value of the one for the other.
#[test]
fn no_argument_shares_its_name_with_one_that_every_command_takes() {
    fn walk(command: &clap::Command, global: &[&str]) {
        let own = command.get_arguments().filter(|argument| !argument.is_global_set());
        for argument in
            own.filter(|argument| argument.get_id() != "key" || !WITHOUT_SERVER.contains(&command.get_name()))
        {
            assert!(!global.contains(&argument.get_id().as_str()), "{} {}", command.get_name(), argument.get_id());
        }
        command.get_subcommands().for_each(|subcommand| walk(subcommand, global));
    }
    let cli = Cli::command();
    let global: Vec<_> =
        cli.get_arguments().filter(|argument| argument.is_global_set()).map(|a| a.get_id().as_str()).collect();
    assert!(global.contains(&"key"));
    walk(&cli, &global);
}

#[test]
fn every_command_has_help_with_examples() {
    fn walk(path: &str, command: &clap::Command) {
        let subcommands: Vec<_> = command.get_subcommands().filter(|sub| sub.get_name() != "help").collect();
        if !command.is_hide_set() && path != "warren" {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                help.contains("Examples:\n  warren ") || help.contains("Examples:\n  tar "),
                "{path} has no examples"
            );
        }
        for subcommand in subcommands {
            assert!(subcommand.get_about().is_some() || subcommand.is_hide_set(), "{path} {}", subcommand.get_name());
            walk(&format!("{path} {}", subcommand.get_name()), subcommand);
        }
    }
    walk("warren", &Cli::command());
}

#[test]
fn examples_in_help_can_be_run() {
    fn walk(command: &clap::Command, lines: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        lines.extend(help.lines().filter_map(|line| line.trim_start().strip_prefix("warren ")).map(str::to_owned));
        command.get_subcommands().for_each(|subcommand| walk(subcommand, lines));
    }
    let mut lines = Vec::new();
    walk(&Cli::command(), &mut lines);
    assert!(lines.len() > 40, "{}", lines.len());
    for line in lines {
        // What a shell would do with the line: a comment after the command, a pipe, a redirection.
        let command = line.split("   ").next().unwrap_or_default();
        let command = command.split([';', '|', '>', '<', '&']).next().unwrap_or_default();
        if let Err(error) = Cli::try_parse_from(words(&format!("warren {command}"))) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn accounts_and_keys() {
    use account::{AccountCommand, KeyCommand};
    let Command::Account(command) = parse("warren account create acme") else { panic!() };
    assert_eq!(command, AccountCommand::Create { name: "acme".into() });
    assert!(matches!(parse("warren account ls --limit 5"), Command::Account(AccountCommand::Ls { limit: Some(5) })));
    assert!(matches!(parse("warren account show acme"), Command::Account(AccountCommand::Show { .. })));
    let Command::Key(command) = parse("warren key create --name ci --expires-in 90d") else { panic!() };
    let expected = KeyCommand::Create { name: Some("ci".into()), expires_in: Some(Duration::from_secs(90 * 86_400)) };
    assert_eq!(command, expected);
    assert!(matches!(parse("warren key ls"), Command::Key(KeyCommand::Ls { limit: None })));
    assert!(matches!(parse("warren key revoke key_01"), Command::Key(KeyCommand::Revoke { .. })));
    assert_eq!(refused("warren account create"), 2);
    assert_eq!(refused("warren account ls --limit 0"), 2);
}

#[test]
fn networks() {
    use network::{EgressChoice, NetworkCommand};
    let Command::Network(command) = parse("warren network create lab --cidr 192.168.10.0/24 --egress open") else {
        panic!()
    };
    let expected = NetworkCommand::Create {
        name: "lab".into(),
        cidr: Some("192.168.10.0/24".into()),
        egress: Some(EgressChoice::Open),
    };
    assert_eq!(command, expected);
    for line in ["network ls", "network show lab", "network rename lab other", "network rm lab"] {
        assert!(matches!(parse(&format!("warren {line}")), Command::Network(_)));
    }
    let Command::Network(command) = parse("warren network rm lab --force") else { panic!() };
    assert_eq!(command, NetworkCommand::Rm { network: "lab".into(), force: true });
    assert_eq!(refused("warren network create lab --egress some"), 2);
}

#[test]
fn policies() {
    use policy::PolicyCommand;
    let Command::Policy(command) = parse("warren policy apply p.yaml --dry-run") else { panic!() };
    assert_eq!(command, PolicyCommand::Apply { file: "p.yaml".into(), dry_run: true });
    let Command::Policy(command) = parse("warren policy diff 3") else { panic!() };
    assert_eq!(command, PolicyCommand::Diff { a: Some(3), b: None });
    for line in
        ["show", "show --version 3", "history --limit 2", "diff", "diff 1 2", "rollback 1", "test", "test -", "apply -"]
    {
        assert!(matches!(parse(&format!("warren policy {line}")), Command::Policy(_)), "{line}");
    }
    let Command::Explain(args) = parse("warren explain dev/tag:agent net:prod --port tcp/5432 --json") else {
        panic!()
    };
    assert_eq!((args.from.as_str(), args.to.as_str(), args.port.as_str()), ("dev/tag:agent", "net:prod", "tcp/5432"));
    let Command::Reach(args) = parse("warren reach --network dev") else { panic!() };
    assert_eq!(args.network.as_deref(), Some("dev"));
    let Command::Denials(args) = parse("warren denials --machine m --follow") else { panic!() };
    assert_eq!((args.machine.as_deref(), args.follow, args.limit), (Some("m"), true, None));
    for line in [
        "policy",
        "policy apply",
        "policy rollback",
        "policy rollback x",
        "policy rollback -1",
        "policy diff a",
        "policy show --version x",
        "explain a b",
        "explain a --port tcp/1",
        "denials --limit 0",
        "denials --limit 1001",
        "denials --follow --limit 5",
    ] {
        assert_eq!(refused(&format!("warren {line}")), 2, "{line}");
    }
}

#[test]
fn operators() {
    use vpn::VpnCommand;
    for line in [
        "open agents",
        "open agents --ttl 1h --idle 30m --reachable --dns",
        "open agents --only worker:8080 --public-key hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=",
        "up agents --ttl 1h --idle 30m --only worker:1 --reachable --ula --config-dir /etc/wireguard",
        "ls",
        "ls agents --limit 5",
        "show ses_01",
    ] {
        assert!(matches!(parse(&format!("warren vpn {line}")), Command::Vpn(_)), "{line}");
    }
    let Command::Vpn(command) = parse("warren vpn close ses_01 session-2") else { panic!() };
    assert_eq!(command, VpnCommand::Close { sessions: vec!["ses_01".into(), "session-2".into()] });
    for line in [
        "",
        "open",
        "open a b",
        "open a --only :1",
        "open a --public-key x",
        "up a --public-key x",
        "close",
        "show",
        "open a --ula",
    ] {
        assert_eq!(refused(&format!("warren vpn {line}")), 2, "{line}");
    }
}

#[test]
fn identities() {
    use identity::IdentityCommand;
    for line in [
        "create alice",
        "grant alice worker --verbs exec,files --user www-data",
        "grant alice --network agents",
        "set alice --name bob",
        "set alice --metadata a=b",
        "revoke alice worker",
    ] {
        assert!(matches!(parse(&format!("warren identity {line}")), Command::Identity(_)), "{line}");
    }
    assert!(matches!(parse("warren identity ls"), Command::Identity(IdentityCommand::Ls { limit: None })));
    for line in ["set alice", "set", "grant alice", "grant alice w --verbs exce", "grant alice w --network n"] {
        assert_eq!(refused(&format!("warren identity {line}")), 2, "{line}");
    }
}

#[test]
fn the_verbs_of_a_grant_are_offered_by_completion() {
    for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "warren", &mut script);
        let script = String::from_utf8(script).unwrap();
        let line =
            script.lines().find(|line| line.contains("files") && line.contains("ports") && line.contains("shell"));
        assert!(line.is_some(), "{shell}");
    }
}

#[test]
fn machines() {
    use machine::MachineCommand;
    use warren_model::wire::CreateMachine;
    let line = "warren machine create worker --network lab --ip 192.168.10.10 --image debian --cpus 0.5 --memory 512 \
                --disk 4 --port web=8080/http --port db=5432 --tag a --tag b --label k=v --label x=y=z";
    let Command::Machine(MachineCommand::Create(args)) = parse(line) else { panic!() };
    let body = serde_json::to_value(CreateMachine::from(args)).unwrap();
    let expected = serde_json::json!({
        "name": "worker",
        "network": "lab",
        "private_ip": "192.168.10.10",
        "image": "debian",
        "cpus": 0.5,
        "memory_mib": 512,
        "disk_gib": 4,
        "ports": [
            {"name": "web", "port": 8080, "protocol": "http"},
            {"name": "db", "port": 5432, "protocol": "tcp"},
        ],
        "tags": ["a", "b"],
        "labels": {"k": "v", "x": "y=z"},
    });
    assert_eq!(body, expected);
    let Command::Machine(MachineCommand::Create(args)) = parse("warren machine create") else { panic!() };
    assert_eq!(serde_json::to_value(CreateMachine::from(args)).unwrap(), serde_json::json!({}));

    let verbs = [
        "ls",
        "show m",
        "start m",
        "stop m n",
        "restart m n o",
        "rename m n",
        "rm m n",
        "set m --tag t",
        "set m --clear tags",
    ];
    for verb in verbs {
        assert!(matches!(parse(&format!("warren machine {verb}")), Command::Machine(_)));
    }
    let filters = "warren machine ls --network lab --tag t --label k=v --state running --limit 10";
    assert!(matches!(parse(filters), Command::Machine(MachineCommand::Ls(_))));
    for line in
        ["create a b", "create --cpus x", "create --port web", "create --label k", "set m", "ls --state up", "rm"]
    {
        assert_eq!(refused(&format!("warren machine {line}")), 2, "{line}");
    }
}

#[test]
fn exec_and_shell() {
    let line = "warren exec --user nobody --env A=1 --env B=2=3 --cwd /srv --timeout 30s --tty --no-settle worker -- ls --json -x";
    let Command::Exec(args) = parse(line) else { panic!() };
    assert_eq!(args.machine, "worker");
    assert_eq!(args.command, ["ls", "--json", "-x"], "what stands after -- is the command's");
    assert_eq!(args.env, [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2=3".to_owned())]);
    assert_eq!((args.user.as_deref(), args.cwd.as_deref()), (Some("nobody"), Some("/srv")));
    assert_eq!(args.timeout, Some(Duration::from_secs(30)));
    assert!(args.tty && args.no_settle && !args.no_stdin);
    assert!(matches!(parse("warren exec worker --timeout 5m -- true"), Command::Exec(_)));
    assert!(matches!(parse("warren shell worker"), Command::Shell(_)));
    for line in ["exec worker", "exec worker --", "exec worker --frob", "exec -- true", "exec --timeout 1y w -- true"] {
        assert_eq!(refused(&format!("warren {line}")), 2, "{line}");
    }
}

#[test]
fn a_command_that_begins_with_a_word_needs_no_dashes_before_it() {
    for (line, command) in [
        ("exec worker ls -l --json /srv", &["ls", "-l", "--json", "/srv"][..]),
        ("exec --json worker --timeout 5m grep -- -x", &["grep", "--", "-x"]),
        ("exec worker -- -odd --", &["-odd", "--"]),
    ] {
        let Command::Exec(args) = parse(&format!("warren {line}")) else { panic!("{line}") };
        assert_eq!((args.machine.as_str(), args.command), ("worker", command.iter().map(|&w| w.to_owned()).collect()));
    }
}

#[test]
fn a_variable_has_a_name_that_a_shell_could_use() {
    for line in ["exec --env 1A=x w true", "exec -e =x w true", "exec -e A-B=x w true", "shell --env A.B w"] {
        assert_eq!(refused(&format!("warren {line}")), 2, "{line}");
    }
    let error = Cli::try_parse_from(["warren", "exec", "-e", "BAD NAME=1", "w", "true"]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("\"BAD NAME\" is not the name of a variable"), "{error}");
}

#[test]
fn copies_and_what_is_observed() {
    let Command::Cp(args) = parse("warren cp - worker:/tmp/x") else { panic!() };
    assert_eq!((args.source.as_str(), args.destination.as_str()), ("-", "worker:/tmp/x"));
    let Command::Logs(args) = parse("warren logs worker --follow --tail 4k") else { panic!() };
    assert_eq!((args.follow, args.tail), (true, Some(4096)));
    assert!(matches!(parse("warren ports worker"), Command::Ports(_)));
    assert!(matches!(parse("warren traffic worker"), Command::Traffic(_)));
    assert!(matches!(parse("warren topology"), Command::Topology(_)));
    let Command::Events(args) = parse("warren events --follow --after 7") else { panic!() };
    assert_eq!((args.follow, args.after), (true, Some(7)));
    assert_eq!(refused("warren events --follow --limit 5"), 2);
    assert_eq!(refused("warren cp a"), 2);
}

#[test]
fn images() {
    use image::ImageCommand;
    let Command::Image(ImageCommand::Build(args)) = parse("warren image build debian --pool-dir /p") else { panic!() };
    assert_eq!((args.image.as_str(), args.pool_dir), ("debian", Some("/p".into())));
    let Command::Image(ImageCommand::Import(args)) = parse("warren image import - --name box") else { panic!() };
    assert_eq!(args.name.unwrap().as_str(), "box");
    let Command::Image(ImageCommand::Pull(args)) = parse("warren image pull alpine:3.20") else { panic!() };
    assert_eq!((args.reference.image_name().unwrap().as_str(), args.name), ("alpine:3.20", None));
    assert_eq!(refused("warren image pull http://r.io/x"), 2);
    assert!(matches!(parse("warren image ls"), Command::Image(ImageCommand::Ls)));
    assert!(matches!(parse("warren image rm box"), Command::Image(ImageCommand::Rm { .. })));
    assert_eq!(refused("warren image build ../x"), 2);
}

#[test]
fn globals_go_anywhere() {
    for line in ["warren --json --url http://h:1 network ls", "warren network ls --url http://h:1 --json"] {
        let cli = Cli::try_parse_from(words(line)).unwrap();
        assert!(cli.globals.json);
        assert_eq!(cli.globals.url.as_deref(), Some("http://h:1"));
    }
    let cli = Cli::try_parse_from(words("warren whoami --key k --account acme")).unwrap();
    assert_eq!((cli.globals.key.as_deref(), cli.globals.account.as_deref()), (Some("k"), Some("acme")));
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(matches!(parse(&format!("warren completion {shell}")), Command::Completion { .. }));
    }
    assert_eq!(refused("warren completion tcsh"), 2);
}

#[test]
fn a_command_line_that_cannot_be_read_is_one_problem_for_a_program() {
    let said = |line: &str| {
        let args: Vec<OsString> = words(line).into_iter().map(OsString::from).collect();
        let error = Cli::try_parse_from(&args).unwrap_err();
        assert!(usage::wants_json(&args), "{line}");
        let failure = usage::failure(&error).unwrap();
        assert_eq!((failure.exit_status(), error.exit_code()), (2, 2), "{line}");
        let problem: serde_json::Value = serde_json::from_str(&failure.report(true).unwrap()).unwrap();
        assert_eq!(
            (&problem["code"], &problem["type"]),
            (&"wrong_usage".into(), &"urn:warren:problem:wrong_usage".into())
        );
        problem["detail"].as_str().unwrap().to_owned()
    };
    let lines = [
        "warren --json no-such-command",
        "warren vpn ls --limt 5 --json",
        "warren --json account create",
        "warren network ls --limit 0 --json",
        "warren identity grant alice worker --verbs exce --json",
        "warren machine --json",
        "warren domain set a.example --json",
        "warren domain map 203.0.113.7 worker:8080 --json",
        "warren exec --json",
    ];
    let all: String = lines.iter().map(|line| format!("{line}\n  {}\n", said(line))).collect();
    insta::assert_snapshot!(all, @r#"
    warren --json no-such-command
      unrecognized subcommand 'no-such-command'; Usage: warren [OPTIONS] <COMMAND>
    warren vpn ls --limt 5 --json
      unexpected argument '--limt' found; tip: a similar argument exists: '--limit'; Usage: warren vpn ls --limit <N> [NETWORK]
    warren --json account create
      the following required arguments were not provided: <NAME>; Usage: warren account create <NAME>
    warren network ls --limit 0 --json
      invalid value '0' for '--limit <N>': 0 is not in 1..=4294967295
    warren identity grant alice worker --verbs exce --json
      invalid value 'exce' for '--verbs <VERBS>' [possible values: view, exec, shell, files, start, stop, ports]; tip: a similar value exists: 'exec'
    warren machine --json
      'warren machine' requires a subcommand but one was not provided [subcommands: create, ls, show, start, stop, restart, rename, set, rm, help]; Usage: warren machine [OPTIONS] <COMMAND>
    warren domain set a.example --json
      the following required arguments were not provided: <--to <MACHINE:PORT>|--open|--auth-bearer-file <FILE>|--auth-basic-file <FILE>|--requests-per-second <N>|--burst <N>|--max-body <SIZE>|--idle <TIME>|--concurrent <N>>; Usage: warren domain set --json <--to <MACHINE:PORT>|--open|--auth-bearer-file <FILE>|--auth-basic-file <FILE>|--requests-per-second <N>|--burst <N>|--max-body <SIZE>|--idle <TIME>|--concurrent <N>> <HOST>
    warren domain map 203.0.113.7 worker:8080 --json
      invalid value '203.0.113.7' for '[HOST]': "203.0.113.7" is an address; write a name that leads to the server in DNS, such as app.example.com
    warren exec --json
      the following required arguments were not provided: <MACHINE> <CMD>...; Usage: warren exec --json <MACHINE> <CMD>...
    "#);
    // What a machine is to run has words of its own, and help is no failure.
    let args: Vec<OsString> = words("warren exec --frob w -- ls --json").into_iter().map(OsString::from).collect();
    assert!(!usage::wants_json(&args));
    assert!(usage::failure(&Cli::try_parse_from(words("warren --help --json")).unwrap_err()).is_none());
}

#[test]
fn help_and_version_are_no_failures_and_nothing_is_wrong_usage() {
    let kind = |line: &str| Cli::try_parse_from(words(line)).unwrap_err().kind();
    assert_eq!(kind("warren --help"), ErrorKind::DisplayHelp);
    assert_eq!(kind("warren --version"), ErrorKind::DisplayVersion);
    assert_eq!((refused("warren --help"), refused("warren --version")), (0, 0));
    assert_eq!((refused("warren"), refused("warren no-such-command"), refused("warren machine")), (2, 2, 2));
}

#[cfg(feature = "server")]
#[test]
fn the_host_commands() {
    let line = "warren up --data-dir /d --listen 127.0.0.1:0 --pool-dir /p --forwarding --runtime crun --stop-machines \
                --log-format json --log debug";
    let Command::Up(flags) = parse(line) else { panic!() };
    let settled = config::settle(config::UpFlags { config: None, ..*flags }).unwrap();
    assert_eq!(settled.listen.to_string(), "127.0.0.1:0");
    assert!(settled.forwarding && settled.stop_machines);
    assert_eq!((settled.runtime.as_str(), settled.log_format), ("crun", config::LogFormat::Json));
    let Command::Up(flags) = parse("warren up --forwarding=false") else { panic!() };
    assert_eq!(flags.forwarding, Some(false));
    let Command::Edge(args) = parse("warren edge --control /c --uid 1 --gid 2") else { panic!() };
    assert_eq!((args.uid, args.gid), (1, 2));
    let Command::Uninstall(args) = parse("warren uninstall --data-dir /d --yes") else { panic!() };
    assert_eq!((args.data_dir, args.yes), ("/d".into(), true));
    assert!(matches!(parse("warren doctor"), Command::Doctor));
    assert!(matches!(parse("warren demo --pool-dir /p"), Command::Demo(_)));
    let Command::Up(flags) = parse("warren up --resolver 192.0.2.1 --resolver [fd00::1]:5353") else { panic!() };
    assert_eq!(flags.resolvers, ["192.0.2.1:53".parse().unwrap(), "[fd00::1]:5353".parse().unwrap()]);
    let Command::Up(flags) = parse("warren up --vpn-listen [::]:5182 --vpn-endpoint vpn.example:443") else { panic!() };
    let settled = config::settle(config::UpFlags { config: None, ..*flags }).unwrap();
    assert_eq!((settled.vpn_listen.port(), settled.vpn_endpoint.unwrap().port()), (5182, 443));
    for line in [
        "up --vpn-listen 51820",
        "up --vpn-listen 0.0.0.0:0",
        "up --vpn-endpoint vpn.example",
        "up --resolver dns.example",
        "up --resolver",
        "up --listen nowhere",
        "up --log-format xml",
        "edge",
        "uninstall",
    ] {
        assert_eq!(refused(&format!("warren {line}")), 2, "{line}");
    }
}

#[test]
fn domains() {
    use domain::DomainCommand;
    let parse = |line: &str| match parse(line) {
        Command::Domain(command) => command,
        other => panic!("{line}: {other:?}"),
    };
    assert!(matches!(parse("warren domain map a.example w:80"), DomainCommand::Map { host: Some(_), .. }));
    assert!(matches!(parse("warren domain map w:80"), DomainCommand::Map { host: None, .. }));
    for line in [
        "map a.example w:80 --auth-bearer-file f --requests-per-second 5 --burst 9 --max-body 1M --idle 90s --concurrent 2",
        "map w:80 --auth-basic-file f",
        "set a.example --to w:80 --open",
        "verify a.example",
        "claims --limit 3",
        "disclaim a.example",
        "ls",
        "show a.example",
        "unmap a.example",
        "ca",
    ] {
        parse(&format!("warren domain {line}"));
    }
    for line in [
        "map",
        "map a.example",
        "map a.example w:0",
        "map a.example w:80 b",
        "map w:80 --auth-bearer-file f --auth-basic-file f",
        "set a.example --open --auth-basic-file f",
        "set a.example",
        "map a_b.example w:80",
        "map w:80 a.example",
        "map w:80 --requests-per-second 0",
        "map w:80 --concurrent 8193",
        "map w:80 --idle 2h",
        "map w:80 --max-body much",
        "verify",
        "ls --limit 0",
    ] {
        assert_eq!(refused(&format!("warren domain {line}")), 2, "{line}");
    }
}
