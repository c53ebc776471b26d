//! The host tools that a build calls, and how to get them.

use crate::error::Error;
use rustix::process::geteuid;
use std::env;
use std::path::{Path, PathBuf};

/// A program of the host and the Debian package that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// The program's file name.
    pub program: &'static str,
    /// The package that installs it on Debian and Ubuntu.
    pub package: &'static str,
    /// Whether only a build that does not run as root needs it.
    pub unprivileged_only: bool,
}

/// Every tool that building the `debian` package calls.
pub const REQUIRED_TOOLS: &[Tool] = &[
    Tool { program: "mmdebstrap", package: "mmdebstrap", unprivileged_only: false },
    Tool { program: "mke2fs", package: "e2fsprogs", unprivileged_only: false },
    Tool { program: "tar", package: "tar", unprivileged_only: false },
    Tool { program: "newuidmap", package: "uidmap", unprivileged_only: true },
    Tool { program: "setpriv", package: "util-linux", unprivileged_only: false },
    Tool { program: "unshare", package: "util-linux", unprivileged_only: false },
];

/// Makes `unshare` run a program that may give files any owner there, all of which are the user's outside.
pub(crate) const AS_ROOT_OF_A_USER_NAMESPACE: [&str; 3] =
    ["--user", "--map-root-user", "--map-auto"];

/// The tools of [`REQUIRED_TOOLS`] that this user needs and this machine lacks.
#[must_use]
pub fn missing() -> Vec<Tool> {
    let root = geteuid().is_root();
    REQUIRED_TOOLS
        .iter()
        .copied()
        .filter(|tool| !(root && tool.unprivileged_only) && find(tool.program).is_none())
        .collect()
}

/// The program and arguments that install `tools`, through `sudo` where the user is not root.
#[must_use]
pub fn install_command(tools: &[Tool]) -> Vec<String> {
    let mut words = Vec::new();
    if !geteuid().is_root() {
        words.push("sudo".to_owned());
    }
    words.extend(["apt-get", "install", "--yes"].map(str::to_owned));
    words.extend(tools.iter().map(|tool| tool.package.to_owned()));
    words
}

/// Fails with the line that installs what is missing.
pub(crate) fn require() -> Result<(), Error> {
    let tools = missing();
    if tools.is_empty() {
        return Ok(());
    }
    Err(Error::MissingTools {
        tools: tools.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", "),
        command: install_command(&tools).join(" "),
    })
}

/// Finds a program as a shell would, and in the administrator's directories, which a user's PATH often leaves out.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_shell_and_not_nonsense() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-here").is_none());
    }

    #[test]
    fn the_install_line_names_packages_not_programs() {
        let words = install_command(&REQUIRED_TOOLS[1..2]);
        assert_eq!(words.last().map(String::as_str), Some("e2fsprogs"));
        assert!(words.contains(&"apt-get".to_owned()));
    }
}
