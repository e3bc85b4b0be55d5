//! The programs of Throng in commands, their flags, and what `--help` says of these.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::PROGRAMS;
use crate::common::{BOUND, run, text};
use crate::pages::Block;

/// A program of Throng and what follows it on its line.
pub struct Words {
    program: &'static str,
    arguments: Vec<String>,
}

impl std::fmt::Display for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.program, self.arguments.join(" "))
    }
}

impl Words {
    /// Nothing where no program of Throng is called; cargo's flags are not theirs.
    fn of(line: &[String]) -> Option<Words> {
        if line.iter().any(|word| word == "cargo") {
            return None;
        }
        let (at, program) = line.iter().enumerate().find_map(|(at, word)| {
            let name = word.rsplit('/').next()?;
            Some((at, *PROGRAMS.iter().find(|program| **program == name)?))
        })?;
        let arguments = line[at + 1..].to_vec();
        Some(Words { program, arguments })
    }

    pub fn flags(&self) -> impl Iterator<Item = &str> {
        self.arguments
            .iter()
            .take_while(|word| *word != "--")
            .filter(|word| word.starts_with("--"))
            .map(|word| word.split('=').next().unwrap())
    }
}

/// Every command line of a program of Throng in a block of commands, or after `$` in one of output.
pub fn commands(block: &Block) -> Vec<Words> {
    let joined = block.text.replace("\\\n", " ");
    let is_of_commands = block.kind().is_some();
    joined
        .lines()
        .filter_map(|line| match is_of_commands {
            true => Some(line),
            false => line.strip_prefix("$ "),
        })
        .map(|line| {
            format!(" {line}")
                .split(" #")
                .next()
                .unwrap()
                .replace(';', " ; ")
        })
        // A line of a text in quotes that goes over several has no words.
        .filter_map(|line| shell_words::split(&line).ok())
        .flat_map(|words| {
            let ends = ["|", "||", "&&", "&", ";", ">", ">>", "<"];
            words
                .split(|word| ends.contains(&word.as_str()))
                .filter_map(Words::of)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// What programs say to `--help`, each asked once; nothing where there is no such command.
pub struct Help {
    pub programs: PathBuf,
    pub said: BTreeMap<String, Option<String>>,
}

impl Help {
    /// The help that has the flags of a command: the program's, or that of all commands named in it.
    pub fn of(&mut self, command: &Words) -> String {
        let mut path = vec![command.program];
        let mut said = self.ask(&path).unwrap();
        for word in &command.arguments {
            if !word.bytes().all(|byte| byte.is_ascii_lowercase()) {
                continue;
            }
            path.push(word);
            match self.ask(&path) {
                Some(more) if path.len() == 2 => said = more,
                Some(more) => said += &more,
                None => drop(path.pop()),
            }
        }
        // What follows the target is for the client.
        if path == ["throng-bench", "remote"] {
            said += &self.ask(&["throng-client"]).unwrap();
        }
        said
    }

    fn ask(&mut self, path: &[&str]) -> Option<String> {
        let programs = &self.programs;
        let asked = self.said.entry(path.join(" ")).or_insert_with(|| {
            let mut command = Command::new(programs.join(path[0]));
            command
                .args(&path[1..])
                .arg("--help")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let output = run(command, BOUND);
            output.status.success().then(|| text(&output))
        });
        asked.clone()
    }
}

/// Whether a help text has that flag and not only a longer one.
pub fn names(help: &str, flag: &str) -> bool {
    help.match_indices(flag).any(|(at, _)| {
        let next = help[at + flag.len()..].chars().next();
        next.is_none_or(|next| !next.is_ascii_alphanumeric() && next != '-')
    })
}

#[test]
fn the_flags_of_a_command_are_found() {
    let block = |info: &str, text: &str| Block {
        place: String::new(),
        info: info.to_owned(),
        text: text.to_owned(),
    };
    let said =
        "$ throng-tune watch --count 6\n  --not-a-flag\n$ cargo test -p throng-server --lib\n";
    let done = "ip netns exec far target/release/throng-bench remote --agent a:1 \\\n    b:2 --hold=5s | head --lines 3\n\
                sleep 1; throng-client a:1 --tui   # isn't --this\n";
    for (block, flags) in [
        (block("text", said), vec!["--count"]),
        (
            block("sh by-hand", done),
            vec!["--agent", "--hold", "--tui"],
        ),
    ] {
        let commands = commands(&block);
        let found: Vec<&str> = commands.iter().flat_map(Words::flags).collect();
        assert_eq!(found, flags);
    }
    assert!(names("  --hold <TIME>  For how long", "--hold"));
    assert!(!names("  --hold-off <TIME>", "--hold"));
}
