//! The server's advice names routes and fields of the HTTP API; a person at a prompt has commands and flags.

/// What is called otherwise on a command line.
const FIELDS: [(&str, &str); 6] = [
    ("_seconds is 5 to 86400", " is 5s to 24h"),
    ("leave private_ip out", "leave --ip out"),
    ("leave 'x-warren-account' out", "leave --account out"),
    ("add ?force=true (--force)", "add --force"),
    ("memory_mib is", "--memory is"),
    (
        "free to take: map {} without proving anything",
        "free to take, and no TXT record is needed: `warren domain map {} MACHINE:PORT`",
    ),
];

/// Between a method and the rest of a route.
const BELOW: &str = " /v1/";

/// Routes below `/v1/`, and the commands that ask for them. `*` stands for one name.
const ROUTES: [(&str, &str); 31] = [
    ("GET accounts", "account ls"),
    ("GET accounts/*", "account show *"),
    ("GET audit-log", "audit log"),
    ("PUT audit/schedule", "audit schedule"),
    ("GET denials", "denials"),
    ("GET domain-claims", "domain claims"),
    ("POST domain-claims", "domain verify HOST"),
    ("DELETE domain-claims/*", "domain disclaim *"),
    ("GET domains", "domain ls"),
    ("GET domains/*", "domain show *"),
    ("PATCH domains/*", "domain set *"),
    ("DELETE domains/*", "domain unmap *"),
    ("GET identities", "identity ls"),
    ("GET identities/*", "identity show *"),
    ("GET identities/*/grants", "identity grants *"),
    ("GET identities/*/tokens", "token ls *"),
    ("GET images", "image ls"),
    ("POST images/*/build", "image build *"),
    ("GET keys", "key ls"),
    ("GET machines", "machine ls"),
    ("GET machines/*", "machine show *"),
    ("PATCH machines/*", "machine set *"),
    ("POST machines/*/start", "machine start *"),
    ("POST machines/*/stop", "machine stop *"),
    ("GET networks", "network ls"),
    ("GET networks/*", "network show *"),
    ("GET policy/versions", "policy history"),
    ("GET sessions", "vpn ls"),
    ("GET sessions/*", "vpn show *"),
    ("GET topology", "topology"),
    ("GET whoami", "whoami"),
];

/// The same advice, in commands and flags.
pub fn in_commands(detail: &str) -> String {
    routes(&FIELDS.iter().fold(detail.to_owned(), |said, (api, command)| replace(&said, api, command)))
}

/// Replaces `api` by `command`; `{}` in both stands for one word.
fn replace(said: &str, api: &str, command: &str) -> String {
    let Some((head, tail)) = api.split_once("{}") else { return said.replace(api, command) };
    let Some((before, rest)) = said.split_once(head) else { return said.to_owned() };
    match rest.split_once(tail) {
        Some((word, after)) if !word.contains(char::is_whitespace) => {
            format!("{before}{}{after}", command.replace("{}", word))
        }
        _ => said.to_owned(),
    }
}

/// Puts the command in the place of every route that one is known for.
fn routes(said: &str) -> String {
    let Some((at, method)) = next_route(said) else { return said.to_owned() };
    let path = &said[at + method.len() + BELOW.len()..];
    let end = path.find(|c: char| c.is_whitespace() || ",;:()\"'`".contains(c)).unwrap_or(path.len());
    let (path, after) = path.split_at(path[..end].trim_end_matches('.').len());
    match named(after).or_else(|| Some((command(method, path)?, after.to_owned()))) {
        Some((command, after)) => format!("{}`warren {command}`{}", &said[..at], routes(&after)),
        None => format!("{}{}", &said[..said.len() - after.len()], routes(after)),
    }
}

/// The first route, and its method.
fn next_route(said: &str) -> Option<(usize, &'static str)> {
    let methods = ["GET", "POST", "PUT", "PATCH", "DELETE"].into_iter();
    methods.filter_map(|method| Some((said.find(&format!("{method}{BELOW}"))?, method))).min()
}

/// The command that the server itself names after a route, and what follows: ` (warren domain unmap a.example), …`.
fn named(after: &str) -> Option<(String, String)> {
    let (inside, rest) = after.strip_prefix(" (warren ")?.split_once(')')?;
    // What comes after a comma is no part of the command.
    let (command, more) = inside.split_at(inside.find(", ").unwrap_or(inside.len()));
    Some((command.to_owned(), format!("{more}{rest}")))
}

fn command(method: &str, path: &str) -> Option<String> {
    let path = path.split('?').next().unwrap_or_default();
    let given: Vec<&str> = path.split('/').collect();
    ROUTES.iter().find_map(|(route, command)| {
        let wanted = route.strip_prefix(method)?.strip_prefix(' ')?.split('/');
        let mut name = "";
        let fits = wanted.clone().count() == given.len()
            && wanted.zip(&given).all(|(want, part)| {
                let any = want == "*";
                if any {
                    name = part;
                }
                any || want == *part
            });
        fits.then(|| command.replace('*', &placeholder(name)))
    })
}

/// A name; `{identity}` in a route that names nobody is `IDENTITY` in a command.
fn placeholder(name: &str) -> String {
    match name.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
        Some(name) => name.to_uppercase(),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn advice_names_commands_instead_of_routes_and_fields() {
        for (detail, said) in [
            (
                "there is no machine \"x\" in this account: see GET /v1/machines",
                "there is no machine \"x\" in this account: see `warren machine ls`",
            ),
            (
                "machine x is stopped: start it with POST /v1/machines/x/start",
                "machine x is stopped: start it with `warren machine start x`",
            ),
            ("choose another address, or leave private_ip out", "choose another address, or leave --ip out"),
            (
                "this account has not proved that a.example is its own: POST /v1/domain-claims (warren domain verify \
                 a.example) says which TXT record does, or take a name below preview.example",
                "this account has not proved that a.example is its own: `warren domain verify a.example` says which TXT \
                 record does, or take a name below preview.example",
            ),
            (
                "declare it with PATCH /v1/machines/mch_01 (warren machine set web --port web=80/http, with its other ports)",
                "declare it with `warren machine set web --port web=80/http`, with its other ports",
            ),
            ("see GET /v1/identities/{identity}/tokens", "see `warren token ls IDENTITY`"),
            (
                "every name below preview.example is free to take: map a.preview.example without proving anything",
                "every name below preview.example is free to take, and no TXT record is needed: `warren domain map \
                 a.preview.example MACHINE:PORT`",
            ),
            ("ask GET /v1/unheard/of, or GET /v1/keys.", "ask GET /v1/unheard/of, or `warren key ls`."),
            ("nothing to say", "nothing to say"),
        ] {
            assert_eq!(in_commands(detail), said);
        }
    }

    /// Every line of the API's source that may be told to somebody.
    fn told(folder: &Path, lines: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            // Clients of other products have no commands, and the table is of routes.
            if path.is_dir() && !path.ends_with("compat") {
                told(&path, lines);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("table.rs") {
                let text = std::fs::read_to_string(path).unwrap();
                let code = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
                lines.extend(code.map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_route_that_the_server_speaks_of_has_its_command() {
        let mut lines = Vec::new();
        told(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/api/src"), &mut lines);
        let mut routes: Vec<String> = lines.iter().filter(|line| next_route(line).is_some()).cloned().collect();
        let lists = lines.iter().filter_map(|line| line.split_once("not_found(")?.1.split_once("\"/v1/"));
        routes.extend(lists.filter_map(|(_, list)| Some(format!("see GET /v1/{}", list.split_once('"')?.0))));
        assert!(routes.len() > 20, "{routes:#?}");
        for route in routes {
            assert!(next_route(&in_commands(&route)).is_none(), "no command for what is in: {route}");
        }
    }
}
