//! What the tests of `throng-tune` share: a tree like `/`, the program run on it, and a network namespace of their own.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test program uses a part"
)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kernel_tuning::profile;
use kernel_tuning::setting::{Role, Scope};
use tempfile::TempDir;

/// Where a test runs again in its namespace: which one it is not to be.
const OUTSIDE: &str = "THRONG_TUNE_OUTSIDE";

/// A tree with every setting of the profiles at the kernel's default, and `throng-tune` for it.
pub struct Host {
    pub dir: TempDir,
}

impl Host {
    pub fn new() -> Self {
        let host = Self {
            dir: TempDir::new().unwrap(),
        };
        let demand = profile::reference();
        for setting in profile::settings(Role::Both) {
            let numbers = setting
                .default
                .iter()
                .map(|it| it.value(&demand).to_string());
            let path = host.sysctl(&setting.name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, numbers.collect::<Vec<_>>().join("\t") + "\n").unwrap();
        }
        host
    }

    /// One whose settings of a network namespace are the real ones of this process's, and the others its own.
    pub fn with_real_namespace() -> Self {
        let host = Self::new();
        for setting in profile::settings(Role::Both) {
            if setting.scope == Scope::Namespace {
                let path = host.sysctl(&setting.name);
                fs::remove_file(&path).unwrap();
                let real = Path::new("/proc/sys").join(setting.name.replace('.', "/"));
                symlink(real, path).unwrap();
            }
        }
        host
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn sysctl(&self, name: &str) -> PathBuf {
        self.root().join("proc/sys").join(name.replace('.', "/"))
    }

    pub fn state(&self) -> PathBuf {
        self.root().join("var/lib/throng/tune.json")
    }

    pub fn kept(&self) -> PathBuf {
        self.root().join("etc/sysctl.d/90-throng.conf")
    }

    /// Every setting and its value, numbers apart by a space.
    pub fn values(&self) -> Vec<(String, String)> {
        let settings = profile::settings(Role::Both).into_iter();
        settings
            .map(|setting| {
                let text = fs::read_to_string(self.sysctl(&setting.name)).unwrap_or_default();
                let words: Vec<_> = text.split_whitespace().collect();
                (setting.name, words.join(" "))
            })
            .collect()
    }

    pub fn value(&self, name: &str) -> String {
        let values = self.values().into_iter();
        values
            .filter(|(known, _)| known == name)
            .map(|(_, value)| value)
            .collect()
    }

    /// Runs a command line on this tree, for a host of 16 GiB.
    pub fn tune(&self, line: &str) -> Ended {
        Ended::of(self.command(line).output().unwrap())
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(program());
        command.args(line.split(' '));
        let is = |name: &&str| line.starts_with(*name);
        if !is(&"export") {
            command.arg("--root").arg(self.root());
        }
        if [
            "diff",
            "apply",
            "export sysctl",
            "export limits",
            "export systemd",
        ]
        .iter()
        .any(is)
        {
            command.args(["--ram-mib", "16384"]);
        }
        command.stdin(Stdio::null());
        command
    }
}

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ended {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Checks the exit code, and that all of `words` were said.
    pub fn expect(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        let said = format!("{}{}", self.out, self.err);
        // Text is wrapped.
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        for words in words {
            assert!(said.contains(words), "no {words:?} in {self:#?}");
        }
        self
    }
}

/// The binary, where the tests were built, or beside a copy of them.
pub fn program() -> PathBuf {
    let beside = std::env::current_exe().unwrap();
    let beside = beside
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("throng-tune");
    match beside.exists() {
        true => beside,
        false => env!("CARGO_BIN_EXE_throng-tune").into(),
    }
}

/// Says, past the capture of test output, that something could not be tested here. The test script counts these lines.
pub fn skip(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// True in namespaces made for `test`, of the network and with `also` of another kind (`m` for mounts). Elsewhere it runs
/// the test again in them, checks that it passes, and gives false; where none can be made, it says so.
pub fn in_namespace(test: &str, also: &str) -> bool {
    let here = fs::read_link("/proc/self/ns/net").unwrap();
    if let Some(outside) = std::env::var_os(OUTSIDE) {
        assert_ne!(
            here.as_os_str(),
            outside,
            "this would change settings of the host"
        );
        return true;
    }
    // As root, the kernel's own; else in a user namespace, where one may be made.
    let can_make = |flags: &String| {
        let made = Command::new("unshare")
            .args([flags, "true"])
            .stderr(Stdio::null())
            .status();
        made.is_ok_and(|status| status.success())
    };
    let flags = ["-n", "-rn"].map(|flags| format!("{flags}{also}"));
    let Some(flags) = flags.iter().find(|flags| can_make(flags)) else {
        skip(
            test,
            "no namespace can be made here (unshare -n as root, or -rn)",
        );
        return false;
    };
    let mut again = Command::new("unshare");
    again
        .arg(flags)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(OUTSIDE, here)
        .stdin(Stdio::null());
    let ended = Ended::of(again.output().unwrap());
    for line in ended
        .err
        .lines()
        .filter(|line| line.starts_with("SKIPPED "))
    {
        std::io::stderr()
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }
    ended.expect(0, &["1 passed"]);
    false
}
