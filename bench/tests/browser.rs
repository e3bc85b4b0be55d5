//! The pages of all commands in a real browser: charts are there, nothing is asked of the network, nothing is complained
//! of, in the light, in the dark and on a phone.
//!
//! To see them: `SCREENSHOTS=/tmp/shots cargo test -p throng-bench --test browser`.
#![allow(clippy::unwrap_used)]

#[path = "browser/chromium.rs"]
mod chromium;
mod common;

use std::path::{Path, PathBuf};

use bench::report::recorded::write_html;
use chromium::{Browser, Seen, View, installed};
use common::recorded::RECORDED;
use common::skip;
use serde_json::Value;

const VIEWS: [View; 4] = [
    View {
        name: "light",
        width: 1200,
        height: 900,
        is_phone: false,
        theme: "light",
    },
    View {
        name: "dark",
        width: 1200,
        height: 900,
        is_phone: false,
        theme: "dark",
    },
    View {
        name: "phone",
        width: 390,
        height: 844,
        is_phone: true,
        theme: "light",
    },
    View {
        name: "phone-dark",
        width: 390,
        height: 844,
        is_phone: true,
        theme: "dark",
    },
];

/// What there is, as the browser has it.
const SCRIPT: &str = r#"(() => {
    const root = document.documentElement;
    const charts = [...document.querySelectorAll("figure > svg")].map(svg => {
        const box = svg.getBoundingClientRect();
        const drawn = [...svg.querySelectorAll("rect, circle, line, polyline, polygon, path, text")];
        const seen = drawn.filter(one => { const its = one.getBoundingClientRect(); return its.width + its.height > 0; });
        const named = svg.getAttribute("aria-labelledby").split(" ").map(id => document.getElementById(id));
        const inside = seen.filter(one => one.getBoundingClientRect().right <= box.right + 1);
        return {
            role: svg.getAttribute("role"),
            words: named.map(one => one ? one.textContent.trim() : ""),
            width: box.width, height: box.height,
            drawn: seen.length, inside: inside.length,
            letters: [...svg.querySelectorAll("text")].map(text => getComputedStyle(text).fill)[0],
        };
    });
    window.scrollTo(10000, 0);
    return {
        headline: document.querySelector(".headline").innerText,
        figures: document.querySelectorAll("figure").length,
        charts,
        background: getComputedStyle(document.body).backgroundColor,
        letters: getComputedStyle(document.body).color,
        viewport: root.clientWidth, content: root.scrollWidth, scrolled: window.scrollX,
        loaded: performance.getEntriesByType("resource").length,
    };
})()"#;

#[test]
fn every_page_is_right_in_a_browser() {
    let test = "every_page_is_right_in_a_browser";
    let Some(program) = installed() else {
        return skip(test, "chromium is not installed");
    };
    let mut browser = Browser::start(&program).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let pictures = std::env::var_os("SCREENSHOTS").map(PathBuf::from);
    if let Some(directory) = &pictures {
        std::fs::create_dir_all(directory).unwrap();
    }
    for (command, report) in RECORDED {
        let json = directory.path().join(format!("{command}.json"));
        let html = json.with_extension("html");
        std::fs::write(&json, report).unwrap();
        write_html(&json, &html).unwrap();
        let seen = VIEWS.map(|view| {
            let picture = pictures.as_ref();
            let picture =
                picture.map(|directory| directory.join(format!("{command}-{}.png", view.name)));
            let seen = browser.look(&html, &view, SCRIPT, picture.as_deref());
            let seen = seen.unwrap_or_else(|error| panic!("{command}, {}: {error}", view.name));
            is_whole(command, &view, &html, &seen);
            seen.value
        });
        let [light, dark, ..] = seen;
        for of in ["/background", "/letters", "/charts/0/letters"] {
            let [light, dark] = [&light, &dark].map(|seen| seen.pointer(of));
            assert!(
                light.is_some() && light != dark,
                "{command}, {of}: {light:?}"
            );
        }
    }
    let left = browser.end();
    assert!(left.is_empty(), "left behind: {left:#?}");
}

fn is_whole(command: &str, view: &View, html: &Path, seen: &Seen) {
    let at = format!("{command}, {}", view.name);
    assert!(seen.complaints.is_empty(), "{at}: {:#?}", seen.complaints);
    let own = format!("file://{}", html.display());
    assert_eq!(seen.requests, [own], "{at}");
    let value = &seen.value;
    assert_eq!(value["loaded"], 0, "{at}");
    assert!(value["headline"].as_str().unwrap().len() > 10, "{at}");

    let charts = value["charts"].as_array().unwrap();
    assert!(!charts.is_empty(), "{at}: no chart");
    assert_eq!(value["figures"], charts.len(), "{at}");
    for chart in charts {
        let figure = |name: &str| chart[name].as_f64().unwrap();
        assert_eq!(chart["role"], "img", "{at}: {chart}");
        let words = chart["words"].as_array().unwrap();
        let is_said = |word: &Value| !word.as_str().unwrap().is_empty();
        assert!(
            words.len() == 2 && words.iter().all(is_said),
            "{at}: {chart}"
        );
        assert!(
            figure("width") > 250.0 && figure("height") > 50.0,
            "{at}: {chart}"
        );
        assert!(figure("drawn") > 4.0, "{at}: {chart}");
        assert_eq!(chart["drawn"], chart["inside"], "{at}: cut off: {chart}");
    }

    let width = |name: &str| value[name].as_f64().unwrap();
    // A desktop's scroll bar stands beside the page, a phone's upon it.
    let scroll_bar = if view.is_phone { 0.0 } else { 20.0 };
    let narrower = f64::from(view.width) - width("viewport");
    assert!((0.0..=scroll_bar).contains(&narrower), "{at}: {value}");
    assert!(width("content") <= width("viewport"), "{at}: {value}");
    assert_eq!(width("scrolled"), 0.0, "{at}");
}
