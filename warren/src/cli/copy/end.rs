//! What a side of `warren cp` names.

use std::path::PathBuf;

/// One side of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Stdin or stdout.
    Stream,
    Local(PathBuf),
    Remote {
        machine: String,
        /// Absolute.
        path: String,
    },
}

impl End {
    /// `-`, `MACHINE:/path`, or anything else as a path here. A path here with a colon in it is written `./a:b`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        if text.is_empty() {
            return Err("a path is empty; write . for this directory".to_owned());
        }
        let Some((machine, path)) = text.split_once(':') else {
            return Ok(Self::Local(text.into()));
        };
        let is_drive = cfg!(windows) && machine.len() == 1 && path.starts_with('\\');
        if machine.contains(['/', '\\']) || machine.starts_with('.') || is_drive {
            return Ok(Self::Local(text.into()));
        }
        if machine.is_empty() {
            return Err(format!("{text:?} names no machine; write MACHINE:/path, or ./{text} for a file here"));
        }
        if !path.starts_with('/') {
            return Err(format!(
                "{path:?} in {machine} has to be absolute; write {machine}:/{path}, or ./{text} for a file here"
            ));
        }
        Ok(Self::Remote { machine: machine.to_owned(), path: path.to_owned() })
    }

    /// What the copy is called in a directory: the last step of the path. `None` where there is none, as in `/`.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Stream => None,
            Self::Local(path) => {
                let whole = std::path::absolute(path).ok()?;
                // `dir/..` has no name before the file system is asked.
                let whole = if path.ends_with("..") { path.canonicalize().ok()? } else { whole };
                whole.file_name()?.to_str().map(str::to_owned)
            }
            Self::Remote { path, .. } => {
                let last = path.trim_end_matches('/').rsplit('/').next()?;
                (!matches!(last, "" | "." | "..")).then(|| last.to_owned())
            }
        }
    }

    /// Whether `other` is inside it, in the same machine.
    pub fn holds(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Remote { machine: a, path: outer }, Self::Remote { machine: b, path: inner }) => {
                let steps = |path: &str| {
                    let steps = path.split('/').filter(|step| !matches!(*step, "" | "."));
                    steps.map(str::to_owned).collect::<Vec<_>>()
                };
                a == b && steps(inner).starts_with(&steps(outer))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(machine: &str, path: &str) -> End {
        End::Remote { machine: machine.into(), path: path.into() }
    }

    #[test]
    fn sides_are_told_apart() {
        assert_eq!(End::parse("-"), Ok(End::Stream));
        assert_eq!(End::parse("worker:/srv/a:b"), Ok(remote("worker", "/srv/a:b")));
        assert_eq!(End::parse("mch_01abc:/"), Ok(remote("mch_01abc", "/")));
        for local in ["notes.txt", "./a:b", "/tmp/a:b", "../x:/y", "-x", "dir/a:/b"] {
            assert_eq!(End::parse(local), Ok(End::Local(local.into())), "{local}");
        }
        for bad in ["", ":/path", "worker:", "worker:relative"] {
            assert!(End::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_copy_is_called_like_its_source() {
        assert_eq!(remote("m", "/var/log/").name().as_deref(), Some("log"));
        assert_eq!(remote("m", "/").name(), None);
        assert_eq!(remote("m", "/srv/..").name(), None);
        assert_eq!(End::Local("a/b.txt".into()).name().as_deref(), Some("b.txt"));
        let here = std::env::current_dir().unwrap();
        let here = here.file_name().unwrap().to_str().unwrap();
        assert_eq!(End::Local(".".into()).name().as_deref(), Some(here));
        assert_eq!(End::Stream.name(), None);
    }

    #[test]
    fn a_copy_into_itself_is_noticed() {
        assert!(remote("m", "/a").holds(&remote("m", "/a/b")));
        assert!(remote("m", "/a/").holds(&remote("m", "/a")));
        assert!(!remote("m", "/a").holds(&remote("m", "/ab")));
        assert!(!remote("m", "/a").holds(&remote("n", "/a/b")));
    }
}
