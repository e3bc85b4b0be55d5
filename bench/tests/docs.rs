//! The documentation keeps its word: commands tagged `ci` run and succeed, the flags of the others exist, and links lead
//! somewhere.
//!
//! Pages are README.md and docs/*.md, of the tree or beside a copy of the programs. Each block of commands says by its
//! info string whether it is run here: `sh ci`, or `sh by-hand` where it needs root, long, or another host.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{bench, run, skip, text, wait};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A block of commands ends well within this.
const BOUND: Duration = Duration::from_secs(60);

const PROGRAMS: [&str; 4] = [
    "throng-server",
    "throng-client",
    "throng-bench",
    "throng-tune",
];

#[test]
fn every_block_of_commands_says_whether_it_is_run() {
    let Some(pages) = pages("every_block_of_commands_says_whether_it_is_run") else {
        return;
    };
    let of_commands = ["", "sh", "bash", "shell", "console"];
    let wrong: Vec<String> = blocks(&pages)
        .iter()
        .filter(|block| of_commands.contains(&block.language()) && block.kind().is_none())
        .map(|block| {
            format!(
                "{}: a block of commands starts with ```sh ci (it is run by this test) or ```sh by-hand, \
                 and output with ```text; this one with ```{}",
                block.place, block.info
            )
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn commands_that_are_run_succeed() {
    const TEST: &str = "commands_that_are_run_succeed";
    let (Some(pages), Some(programs)) = (pages(TEST), programs(TEST)) else {
        return;
    };
    if !common::has_engine("uring", TEST) {
        return;
    }
    let blocks = blocks(&pages);
    let ci: Vec<&Block> = blocks
        .iter()
        .filter(|block| block.kind() == Some(Kind::Ci))
        .collect();
    assert!(!ci.is_empty(), "no block is tagged `sh ci`");
    let wrong: Vec<String> = ci
        .into_iter()
        .filter_map(|block| {
            let said = play(block, &programs).err()?;
            Some(format!("{}: {said}\n{}", block.place, block.text))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn flags_that_commands_use_exist() {
    const TEST: &str = "flags_that_commands_use_exist";
    let (Some(pages), Some(programs)) = (pages(TEST), programs(TEST)) else {
        return;
    };
    let mut help = Help {
        programs,
        said: BTreeMap::new(),
    };
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for block in blocks(&pages) {
        for command in commands(&block) {
            looked_at += 1;
            let said = help.of(&command);
            for flag in command.flags() {
                if !names(&said, flag) {
                    wrong.push(format!("{}: no {flag} in `{command}`", block.place));
                }
            }
        }
    }
    assert!(looked_at > 50, "only {looked_at} commands were found");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn links_lead_somewhere() {
    let Some(pages) = pages("links_lead_somewhere") else {
        return;
    };
    if !pages.is_tree {
        return skip("links_lead_somewhere", "the source tree cannot be reached");
    }
    let anchors: BTreeMap<PathBuf, BTreeSet<String>> = pages
        .all
        .iter()
        .map(|page| (page.file.canonicalize().unwrap(), anchors(&page.text)))
        .collect();
    let mut wrong = Vec::new();
    for page in &pages.all {
        for (place, link) in links(page) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => page.file.clone(),
                path => page.file.parent().unwrap().join(path),
            };
            let Ok(target) = target.canonicalize() else {
                wrong.push(format!("{place}: no file {path}"));
                continue;
            };
            let is_there = anchors.get(&target).is_none_or(|all| all.contains(anchor));
            if !anchor.is_empty() && !is_there {
                wrong.push(format!(
                    "{place}: no heading #{anchor} in {}",
                    target.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The documentation.
struct Pages {
    all: Vec<Page>,
    /// Whether it is in the source tree, with all else that it links to.
    is_tree: bool,
}

struct Page {
    file: PathBuf,
    /// As a person calls it, such as `docs/faq.md`.
    name: String,
    text: String,
}

/// Of the tree, or from beside a copy of the programs; nothing, said loudly, where neither can be read.
fn pages(test: &str) -> Option<Pages> {
    let copy = beside();
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let is_there = |root: &Path| root.join("docs/getting-started.md").exists();
    let (root, is_tree) = match (is_there(&copy), is_there(tree)) {
        (true, _) => (copy.as_path(), false),
        (_, true) => (tree, true),
        _ => {
            skip(
                test,
                "neither the source tree nor a copy of docs/ can be read",
            );
            return None;
        }
    };
    let mut names: Vec<String> = std::fs::read_dir(root.join("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.sort();
    names.insert(0, "README.md".into());
    let all = names
        .into_iter()
        .map(|name| {
            let file = root.join(&name);
            let text = std::fs::read_to_string(&file).unwrap();
            Page { file, name, text }
        })
        .collect();
    Some(Pages { all, is_tree })
}

/// Where the programs are built, or copied to.
fn beside() -> PathBuf {
    bench().parent().unwrap().to_owned()
}

/// The directory with all programs; nothing, said loudly, where one is missing.
fn programs(test: &str) -> Option<PathBuf> {
    let directory = beside();
    for program in PROGRAMS {
        if !directory.join(program).exists() {
            skip(
                test,
                &format!("no {program} beside throng-bench: cargo build --workspace"),
            );
            return None;
        }
    }
    Some(directory)
}

/// A fenced block.
struct Block {
    /// `docs/faq.md:12`
    place: String,
    info: String,
    text: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Ci,
    ByHand,
}

impl Block {
    fn language(&self) -> &str {
        self.info.split(' ').next().unwrap_or_default()
    }

    fn kind(&self) -> Option<Kind> {
        match self.info.as_str() {
            "sh ci" => Some(Kind::Ci),
            "sh by-hand" => Some(Kind::ByHand),
            _ => None,
        }
    }
}

fn parsed(page: &Page) -> impl Iterator<Item = (Event<'_>, String)> {
    Parser::new_ext(&page.text, Options::ENABLE_TABLES)
        .into_offset_iter()
        .map(|(event, range)| {
            let line = page.text[..range.start].matches('\n').count() + 1;
            (event, format!("{}:{line}", page.name))
        })
}

fn blocks(pages: &Pages) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for page in &pages.all {
        let mut is_inside = false;
        for (event, place) in parsed(page) {
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    let info = match kind {
                        CodeBlockKind::Fenced(info) => info.into_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    let text = String::new();
                    blocks.push(Block { place, info, text });
                    is_inside = true;
                }
                Event::End(TagEnd::CodeBlock) => is_inside = false,
                Event::Text(text) if is_inside => blocks.last_mut().unwrap().text += &text,
                _ => {}
            }
        }
    }
    blocks
}

/// Runs a block in a directory of its own, with the programs on the path.
fn play(block: &Block, programs: &Path) -> Result<(), String> {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    std::fs::create_dir(path("here")).unwrap();
    std::fs::write(path("script"), with_free_ports(&block.text)).unwrap();
    let output = File::create(path("output")).unwrap();
    let searched = std::env::var("PATH").unwrap_or_default();
    let mut child = Command::new("bash")
        .args(["-euo", "pipefail"])
        .arg(path("script"))
        .current_dir(path("here"))
        .env("PATH", format!("{}:{searched}", programs.display()))
        // The lock that lets one heavy run at a time load the machine would wait for those of others.
        .env("TMPDIR", scratch.path())
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .process_group(0)
        .spawn()
        .unwrap();
    let group = Pid::from_raw(child.id() as i32);
    let status = wait(&mut child, BOUND);
    // Whatever it has left behind ends here.
    let left = killpg(group, Signal::SIGKILL).is_ok();
    if status.is_none() {
        child.wait().unwrap();
    }
    let said = std::fs::read(path("output")).unwrap();
    let said = String::from_utf8_lossy(&said);
    match status {
        None => Err(format!("still running after {BOUND:?}: {said}")),
        Some(status) if !status.success() => Err(format!("{status}: {said}")),
        Some(_) if left => Err(format!("leaves processes behind: {said}")),
        Some(_) => Ok(()),
    }
}

/// The pages say port 7000 and its like; here these may be in use.
fn with_free_ports(script: &str) -> String {
    let mut script = script.to_owned();
    for port in (7000..7100).map(|port| format!(":{port}")) {
        if script.contains(&port) {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            script = script.replace(&port, &format!(":{}", free.local_addr().unwrap().port()));
        }
    }
    script
}

/// A program of Throng and what follows it on its line.
struct Words {
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

    fn flags(&self) -> impl Iterator<Item = &str> {
        self.arguments
            .iter()
            .take_while(|word| *word != "--")
            .filter(|word| word.starts_with("--"))
            .map(|word| word.split('=').next().unwrap())
    }

    /// The words that may name a command and one of its own.
    fn subcommand(&self) -> Vec<String> {
        self.arguments
            .iter()
            .take(2)
            .take_while(|word| word.bytes().all(|byte| byte.is_ascii_lowercase()))
            .cloned()
            .collect()
    }
}

/// Every command line of a program of Throng in a block of commands, or after `$` in one of output.
fn commands(block: &Block) -> Vec<Words> {
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

/// What programs say to `--help`, each asked once.
struct Help {
    programs: PathBuf,
    said: BTreeMap<String, String>,
}

impl Help {
    /// The help that has the flags of a command.
    fn of(&mut self, command: &Words) -> String {
        let mut subcommand = command.subcommand();
        let mut said = loop {
            match self.ask(command.program, &subcommand) {
                Some(said) => break said,
                None => subcommand.pop().unwrap(),
            };
        };
        // What follows the target is for the client.
        if subcommand == ["remote"] {
            said += &self.ask("throng-client", &[]).unwrap();
        }
        said
    }

    /// Nothing where there is no such subcommand.
    fn ask(&mut self, program: &str, subcommand: &[String]) -> Option<String> {
        let key = format!("{program} {}", subcommand.join(" "));
        if let Some(said) = self.said.get(&key) {
            return Some(said.clone());
        }
        let mut command = Command::new(self.programs.join(program));
        command
            .args(subcommand)
            .arg("--help")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = run(command, BOUND);
        output.status.success().then(|| {
            self.said.insert(key.clone(), text(&output));
            self.said[&key].clone()
        })
    }
}

/// Whether a help text has that flag and not only a longer one.
fn names(help: &str, flag: &str) -> bool {
    help.match_indices(flag).any(|(at, _)| {
        let next = help[at + flag.len()..].chars().next();
        next.is_none_or(|next| !next.is_ascii_alphanumeric() && next != '-')
    })
}

/// Every link of a page, with its place.
fn links(page: &Page) -> Vec<(String, String)> {
    parsed(page)
        .filter_map(|(event, place)| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                Some((place, dest_url.into_string()))
            }
            _ => None,
        })
        .collect()
}

/// The anchors of a page's headings, as GitHub and its like make them.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut heading: Option<String> = None;
    for event in Parser::new(markdown) {
        match (event, &mut heading) {
            (Event::Start(Tag::Heading { .. }), _) => heading = Some(String::new()),
            (Event::Text(text) | Event::Code(text), Some(heading)) => *heading += &text,
            (Event::End(TagEnd::Heading(_)), _) => {
                let anchor = anchor(&heading.take().unwrap());
                let again = (1..).map(|n| format!("{anchor}-{n}"));
                let mut names = std::iter::once(anchor.clone()).chain(again);
                anchors.insert(names.find(|name| !anchors.contains(name)).unwrap());
            }
            _ => {}
        }
    }
    anchors
}

fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|&letter| letter.is_alphanumeric() || " -_".contains(letter))
        .map(|letter| if letter == ' ' { '-' } else { letter })
        .collect()
}

#[test]
fn headings_have_the_anchors_that_links_use() {
    let found = anchors("# The report: `compare /hold/0`\n## Is it sound?\n## Is it sound?\n");
    let expected = ["the-report-compare-hold0", "is-it-sound", "is-it-sound-1"];
    assert_eq!(found, expected.map(String::from).into());
}

#[test]
fn a_block_that_fails_or_leaves_something_behind_is_found() {
    let said = |text: &str| {
        let (place, info) = (String::new(), "sh ci".to_owned());
        let text = text.to_owned();
        play(&Block { place, info, text }, Path::new("/nonexistent"))
    };
    assert_eq!(said("true | cat"), Ok(()));
    assert!(said("false | cat\ntrue").is_err());
    assert!(said("cat $UNSET").is_err());
    assert!(said("sleep 60 &").unwrap_err().contains("leaves"));
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
