//! Users and groups of the machine, from its own `/etc/passwd` and `/etc/group`.
//!
//! Parsed here because a static binary has no name service switch. Both files are the machine's and may hold anything.

use std::io::Read;

/// A file that is longer than this is read up to here. In bytes.
const LONGEST: u64 = 4 << 20;

/// As many groups as the kernel lets a process have (`NGROUPS_MAX`).
const MOST_GROUPS: usize = 65_536;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, the primary one first.
    pub groups: Vec<u32>,
    pub home: String,
    pub shell: String,
}

/// Looks a user up by name or number. `None` when there is no such name; a number needs no entry. Blocking.
pub fn find(user: &str) -> Option<Account> {
    find_in(user, &read("/etc/passwd"), &read("/etc/group"))
}

fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = crate::files::open_regular(std::path::Path::new(path)) {
        let _ = file.take(LONGEST).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find_in(user: &str, passwd: &str, group: &str) -> Option<Account> {
    let number: Option<u32> = user.bytes().all(|b| b.is_ascii_digit()).then(|| user.parse().ok()).flatten();
    let mut entries = passwd.lines().filter_map(parse_user);
    let known = match number {
        None => entries.find(|account| account.name == user),
        Some(uid) => entries.find(|account| account.uid == uid),
    };
    let mut account = match (known, number) {
        (Some(account), _) => account,
        // The kernel reserves the highest number for "leave it as it is".
        (None, Some(uid)) if uid != u32::MAX => unnamed(uid),
        // A machine may lack the file altogether, and still has root.
        (None, None) if user == "root" => unnamed(0),
        _ => return None,
    };
    account.groups = vec![account.gid];
    for (gid, members) in group.lines().filter_map(parse_group) {
        let member = members.split(',').any(|name| name == account.name);
        if member && !account.groups.contains(&gid) && account.groups.len() < MOST_GROUPS {
            account.groups.push(gid);
        }
    }
    Some(account)
}

fn unnamed(uid: u32) -> Account {
    let (name, home) = if uid == 0 { ("root".to_owned(), "/root") } else { (uid.to_string(), "/") };
    Account { name, uid, gid: uid, groups: Vec::new(), home: home.into(), shell: "/bin/sh".into() }
}

fn parse_user(line: &str) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields[..] else { return None };
    let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    Some(Account {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        groups: Vec::new(),
        home: or(home, "/"),
        shell: or(shell, "/bin/sh"),
    })
}

fn parse_group(line: &str) -> Option<(u32, &str)> {
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nworker:x:1000:1001:,,,:/home/worker:\nbroken\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:worker\nworker:x:1001:\ndocker:x:999:other,worker\n";

    #[test]
    fn a_user_is_found_by_name_and_by_number_with_all_groups() {
        let worker = find_in("worker", PASSWD, GROUP).unwrap();
        assert_eq!((worker.uid, worker.gid, worker.groups.clone()), (1000, 1001, vec![1001, 50, 999]));
        assert_eq!((worker.home.as_str(), worker.shell.as_str()), ("/home/worker", "/bin/sh"));
        assert_eq!(find_in("1000", PASSWD, GROUP).unwrap(), worker);
    }

    #[test]
    fn a_number_needs_no_entry_but_a_name_does() {
        assert_eq!(find_in("4711", PASSWD, GROUP).unwrap().gid, 4711);
        assert!(find_in("nobody-here", PASSWD, GROUP).is_none());
        assert!(find_in("4294967295", PASSWD, GROUP).is_none());
        assert!(find_in("", PASSWD, GROUP).is_none());
        assert_eq!(find_in("root", "", "").unwrap().uid, 0);
    }

    proptest! {
        #[test]
        fn any_text_in_the_files_is_survived(user in ".{0,20}", passwd in ".{0,200}", group in ".{0,200}") {
            let _ = find_in(&user, &passwd, &group);
        }
    }
}
