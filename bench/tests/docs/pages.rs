//! The documentation as pages, blocks, links and anchors. Reads Markdown, runs nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::common::{bench, skip};

/// The documentation.
pub struct Pages {
    pub all: Vec<Page>,
    /// Whether it is in the source tree, with all else that it links to.
    pub is_tree: bool,
}

pub struct Page {
    pub file: PathBuf,
    /// As a person calls it, such as `docs/faq.md`.
    pub name: String,
    pub text: String,
}

/// Of the tree, or from beside a copy of the programs; nothing, said loudly, where neither can be read.
pub fn pages(test: &str) -> Option<Pages> {
    let copy = bench();
    let copy = copy.parent().unwrap();
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let is_there = |root: &Path| root.join("docs/getting-started.md").exists();
    let (root, is_tree) = match (is_there(copy), is_there(tree)) {
        (true, _) => (copy, false),
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

/// A fenced block.
pub struct Block {
    /// `docs/faq.md:12`
    pub place: String,
    pub info: String,
    pub text: String,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Ci,
    ByHand,
}

impl Block {
    pub fn language(&self) -> &str {
        self.info.split(' ').next().unwrap_or_default()
    }

    pub fn kind(&self) -> Option<Kind> {
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

pub fn blocks(pages: &Pages) -> Vec<Block> {
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

/// Every link of a page, with its place.
pub fn links(page: &Page) -> Vec<(String, String)> {
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
pub fn anchors(markdown: &str) -> BTreeSet<String> {
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
