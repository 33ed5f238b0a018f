//! Who a container runs as, from the pod's security context, the image's user and its account files.

use crate::{Error, Result, Security};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

impl User {
    /// Refuses numbers that a pod with `count` users and groups of its own does not have.
    pub(crate) fn check_within(&self, count: u32) -> Result<()> {
        let outside = |field, id: u32| {
            let message = format!("{id} is not among the {count} that a pod with hostUsers: false has");
            Err(Error::Invalid { field, message })
        };
        if self.uid >= count {
            return outside("securityContext.runAsUser", self.uid);
        }
        match [self.gid].iter().chain(&self.groups).find(|group| **group >= count) {
            Some(group) => outside("securityContext.runAsGroup", *group),
            None => Ok(()),
        }
    }
}

/// `/etc/passwd` and `/etc/group` of an image; empty where it has none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Accounts {
    pub(crate) passwd: String,
    pub(crate) group: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// The user and groups of a container whose image says `image_user` (`""`, `name`, `uid`, each with an
/// optional `:group`).
pub(crate) fn resolve(security: &Security, image_user: &str, accounts: &Accounts) -> Result<User> {
    let (image_name, image_group) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image_user, None),
    };
    // A uid from the pod leaves nothing of the image's user, not its group either.
    let (wanted, wanted_group) = match security.run_as_user {
        Some(uid) => (uid.to_string(), None),
        None => (image_name.to_owned(), image_group.filter(|group| !group.is_empty())),
    };
    let account = find_account(&wanted, accounts);
    let uid = match (&account, wanted.as_str()) {
        (Some(account), _) => account.uid,
        (None, "") => 0,
        (None, number) => number.parse().map_err(|_| no_such("user", number))?,
    };
    if security.run_as_non_root && uid == 0 {
        return Err(Error::Invalid {
            field: "securityContext.runAsNonRoot",
            message: "container has runAsNonRoot and image will run as root".into(),
        });
    }
    let gid = match (security.run_as_group, wanted_group) {
        (Some(gid), _) => gid,
        (None, Some(group)) => find_group(group, accounts)?,
        (None, None) => account.as_ref().map_or(0, |account| account.gid),
    };

    let mut groups = vec![gid];
    if let (true, Some(account)) = (security.merge_image_groups, &account) {
        groups.extend(member_of(account.name, accounts));
    }
    groups.extend(&security.supplemental_groups);
    let mut seen = Vec::new();
    groups.retain(|group| {
        !seen.contains(group) && {
            seen.push(*group);
            true
        }
    });
    Ok(User { uid, gid, groups })
}

fn no_such(kind: &str, name: &str) -> Error {
    Error::Invalid { field: "user", message: format!("no {kind} {name:?} in the image") }
}

/// By name first, then by number, as runc and Docker look it up.
fn find_account<'a>(wanted: &str, accounts: &'a Accounts) -> Option<Account<'a>> {
    let wanted = if wanted.is_empty() { "0" } else { wanted };
    let all = || accounts.passwd.lines().filter_map(parse_account);
    let number = wanted.parse::<u32>().ok();
    all().find(|a| a.name == wanted).or_else(|| all().find(|a| Some(a.uid) == number))
}

fn parse_account(line: &str) -> Option<Account<'_>> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Account { name, uid, gid })
}

/// `name:password:gid:member,member`
fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or("")))
}

fn find_group(wanted: &str, accounts: &Accounts) -> Result<u32> {
    let named = accounts.group.lines().filter_map(parse_group).find(|(name, ..)| *name == wanted);
    match named {
        Some((_, gid, _)) => Ok(gid),
        None => wanted.parse().map_err(|_| no_such("group", wanted)),
    }
}

fn member_of(user: &str, accounts: &Accounts) -> Vec<u32> {
    let groups = accounts.group.lines().filter_map(parse_group);
    groups.filter(|(.., members)| members.split(',').any(|m| m == user)).map(|(_, gid, _)| gid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/false\nbroken line\n".into(),
            group: "root:x:0:\nwheel:x:10:root,web\nweb:x:102:\nlogs:x:103:web\n".into(),
        }
    }

    #[track_caller]
    fn check(name: &str, security: Security, image_user: &str, expected: (u32, u32, &[u32])) {
        let user = resolve(&security, image_user, &accounts()).unwrap();
        assert_eq!((user.uid, user.gid, &user.groups[..]), expected, "{name}");
    }

    #[test]
    fn user_comes_from_pod_or_image() {
        let none = Security::default;
        let uid = |uid| Security { run_as_user: Some(uid), ..none() };
        check("nobody says anything", none(), "", (0, 0, &[0, 10]));
        check("image by name", none(), "web", (101, 102, &[102, 10, 103]));
        check("image by number", none(), "101", (101, 102, &[102, 10, 103]));
        check("image by unknown number", none(), "7777", (7777, 0, &[0]));
        check("image with group name", none(), "web:logs", (101, 103, &[103, 10]));
        check("image with group number", none(), "5:6", (5, 6, &[6]));
        check("pod overrides the image", uid(101), "root:logs", (101, 102, &[102, 10, 103]));
        check("pod by unknown number", uid(1000), "web", (1000, 0, &[0]));
        let both = Security { run_as_group: Some(20), ..uid(1000) };
        check("pod with group", both, "web", (1000, 20, &[20]));
        let extra = Security { supplemental_groups: vec![5, 10, 5], ..none() };
        check("supplemental groups add up", extra, "web", (101, 102, &[102, 10, 103, 5]));
        let strict = Security { supplemental_groups: vec![5], merge_image_groups: false, ..none() };
        check("strict policy", strict, "web", (101, 102, &[102, 5]));
    }

    #[test]
    fn numbers_beyond_the_pods_own_are_refused() {
        let user = |uid, group| User { uid, gid: 1, groups: vec![1, group] };
        assert!(user(65535, 65535).check_within(65536).is_ok());
        let refused = |user: User| user.check_within(65536).unwrap_err().to_string();
        assert!(refused(user(65536, 1)).starts_with("invalid securityContext.runAsUser: 65536 is not among"));
        assert!(
            refused(user(1, 70000)).starts_with("invalid securityContext.runAsGroup: 70000 is not among")
        );
    }

    #[test]
    fn unknown_names_and_unwanted_root_are_refused() {
        let refused = |security: Security, user: &str| resolve(&security, user, &accounts()).is_err();
        assert!(refused(Security::default(), "nobody"));
        assert!(refused(Security::default(), "web:nogroup"));
        let non_root = Security { run_as_non_root: true, ..Default::default() };
        assert!(refused(non_root.clone(), ""));
        assert!(refused(non_root.clone(), "root"));
        assert!(!refused(non_root, "web"));
    }
}
