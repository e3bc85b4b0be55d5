//! The documentation keeps its word: commands tagged `ci` run and succeed, the flags of the others exist, and links lead
//! somewhere.
//!
//! Pages are README.md and docs/*.md, of the tree or beside a copy of the programs. Each block of commands says by its
//! info string whether it is run here: `sh ci`, or `sh by-hand` where it needs root, long, or another host.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "docs/flags.rs"]
mod flags;
#[path = "docs/pages.rs"]
mod pages;
#[path = "docs/play.rs"]
mod play;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use common::{bench, skip};
use flags::{Help, commands, names};
use pages::{Block, Kind, anchors, blocks, links, pages};
use play::play;

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
            // A machine that is busy with other things starves a server for seconds at times: once more.
            let again = |said: String| {
                eprintln!("{}: once more, after {said}", block.place);
                play(block, &programs)
            };
            let said = play(block, &programs).or_else(again).err()?;
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

/// The directory with all programs; nothing, said loudly, where one is missing.
fn programs(test: &str) -> Option<PathBuf> {
    let directory = bench().parent().unwrap().to_owned();
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
