//! The part of the host's APT configuration that building an image needs: where it gets this release from, and how it
//! reaches that (proxies, certificates, credentials).

use std::io;
use std::path::{Path, PathBuf};

/// What a build is given, as files.
#[derive(Debug, Default)]
pub(super) struct AptConfiguration {
    /// Source lists; empty when the host has none for this release, and the public mirror is to be used.
    pub sources: Vec<PathBuf>,
    /// Options, in the format of apt.conf(5).
    pub options: PathBuf,
}

/// Collects it into `scratch`.
///
/// `dump` is what `apt-config dump` printed.
pub(super) fn collect(apt: &Path, suite: &str, dump: &str, scratch: &Path) -> io::Result<AptConfiguration> {
    let mut files = vec![apt.join("sources.list")];
    match std::fs::read_dir(apt.join("sources.list.d")) {
        Ok(entries) => {
            let mut found = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
            found.sort();
            files.append(&mut found);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let (mut lines, mut stanzas) = (String::new(), String::new());
    for file in files {
        let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if !matches!(extension, "list" | "sources") || !file.is_file() {
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(&file)?).into_owned();
        if extension == "list" {
            for line in text.lines().filter(|line| line_serves(line, suite)) {
                lines.push_str(line.trim());
                lines.push('\n');
            }
        } else {
            for stanza in stanzas_of(&text).filter(|stanza| stanza_serves(stanza, suite)) {
                stanzas.push_str(&stanza);
                stanzas.push('\n');
            }
        }
    }
    let mut collected = AptConfiguration { sources: Vec::new(), options: scratch.join("apt.conf") };
    for (name, content) in [("host.list", lines), ("host.sources", stanzas)] {
        if !content.is_empty() {
            let path = scratch.join(name);
            std::fs::write(&path, content)?;
            collected.sources.push(path);
        }
    }
    let mut options = transport_options(dump);
    // Credentials are read where they are, and are never copied into the image.
    for (key, path) in [("netrc", apt.join("auth.conf")), ("netrcparts", apt.join("auth.conf.d"))] {
        if path.exists() {
            options.push_str(&format!("Dir::Etc::{key} \"{}\";\n", path.display()));
        }
    }
    std::fs::write(&collected.options, options)?;
    Ok(collected)
}

/// The names under which a release's own archive, its updates and its security fixes are listed.
fn is_of_release(listed: &str, suite: &str) -> bool {
    listed.strip_prefix(suite).is_some_and(|rest| matches!(rest, "" | "-updates" | "-security" | "/updates"))
}

/// Whether a line of a sources.list(5) is about this release of Debian itself, whose own section is `main`.
fn line_serves(line: &str, suite: &str) -> bool {
    let line = line.trim();
    let Some(rest) = line.strip_prefix("deb ") else { return false };
    let rest = rest.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
        None => rest,
    };
    let mut words = rest.split_whitespace().skip(1);
    words.next().is_some_and(|listed| is_of_release(listed, suite)) && words.any(|component| component == "main")
}

fn stanzas_of(text: &str) -> impl Iterator<Item = String> {
    let mut stanzas = vec![String::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            stanzas.push(String::new());
        } else if let Some(last) = stanzas.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    stanzas.into_iter().filter(|stanza| !stanza.is_empty())
}

/// The same for a stanza in the deb822 format. All of its suites have to be of the release.
fn stanza_serves(stanza: &str, suite: &str) -> bool {
    let field = |name: &str| {
        stanza.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let words =
        |name: &str| field(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    let (suites, enabled) = (words("Suites"), field("Enabled"));
    words("Types").iter().any(|kind| kind == "deb")
        && !enabled.is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "no" | "false" | "0" | "off"))
        && !suites.is_empty()
        && suites.iter().all(|listed| is_of_release(listed, suite))
        && words("Components").iter().any(|component| component == "main")
}

/// The options about fetching. Hooks and whatever else the host does with its own packages are not for the image.
fn transport_options(dump: &str) -> String {
    let mut options = String::new();
    for line in dump.lines().filter(|line| line.starts_with("Acquire::") && line.ends_with(';')) {
        options.push_str(line);
        options.push('\n');
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_release_itself_is_taken_from_lists() {
        for good in [
            "deb http://deb.debian.org/debian bookworm main",
            "deb [signed-by=/a.gpg arch=amd64] https://mirror.example/d bookworm-updates main contrib",
            "deb http://security.debian.org/debian-security bookworm-security main",
        ] {
            assert!(line_serves(good, "bookworm"), "{good}");
        }
        for bad in [
            "# deb http://deb.debian.org/debian bookworm main",
            "deb-src http://deb.debian.org/debian bookworm main",
            "deb http://deb.debian.org/debian trixie main",
            "deb http://apt.postgresql.org/pub/repos/apt bookworm-pgdg main",
            "deb https://download.docker.com/linux/debian bookworm stable",
        ] {
            assert!(!line_serves(bad, "bookworm"), "{bad}");
        }
    }

    #[test]
    fn stanzas_are_taken_whole_with_their_keys_and_disabled_ones_are_not() {
        let text = "# a comment\nTypes: deb\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n\n\
                    Types: deb\nURIs: http://x.example\nSuites: bookworm\nComponents: main\nEnabled: no\n\n\
                    Types: deb\nURIs: http://y.example\nSuites: nodistro\nComponents: main\n";
        let taken: Vec<String> = stanzas_of(text).filter(|stanza| stanza_serves(stanza, "bookworm")).collect();
        assert_eq!(taken.len(), 1);
        assert!(taken[0].contains("PGP PUBLIC KEY") && taken[0].ends_with(" abc\n"));
    }

    #[test]
    fn proxies_are_passed_on_and_hooks_are_not() {
        let dump =
            "Acquire::http::Proxy \"http://p:1\";\nDPkg::Post-Invoke:: \"rm -rf /\";\nAPT::Architecture \"amd64\";\n";
        assert_eq!(transport_options(dump), "Acquire::http::Proxy \"http://p:1\";\n");
    }

    #[test]
    fn a_host_without_this_release_leaves_the_choice_to_mmdebstrap() {
        let directory = tempfile::tempdir().unwrap();
        let collected = collect(directory.path(), "bookworm", "", directory.path()).unwrap();
        assert!(collected.sources.is_empty());
        assert_eq!(std::fs::read_to_string(collected.options).unwrap(), "");
    }
}
