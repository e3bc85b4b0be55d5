//! The status page of a real server in a real browser: it shows what the server has, asks nobody else, and complains of
//! nothing, in the light, in the dark and on a phone.
//!
//! To see it: `SCREENSHOTS=/tmp/shots cargo test -p throng-server --test page`.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../../bench/tests/browser/chromium.rs"]
mod chromium;
mod common;

use std::cell::RefCell;
use std::io::Read;
use std::path::PathBuf;

use chromium::{Browser, View, installed};
use common::{Server, for_each_engine, skip};

const VIEWS: [View; 3] = [
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
];

/// What is there once it has looked twice.
const SCRIPT: &str = r##"(async () => {
    const figures = () => Object.fromEntries([...document.querySelectorAll("#figures div")]
        .map(box => [box.querySelector("dt").textContent, box.querySelector("dd").textContent]));
    const rows = id => [...document.querySelectorAll(`#${id} tbody tr`)]
        .map(row => [...row.cells].map(cell => cell.textContent));
    for (let tries = 0; tries < 200 && (figures()["accepted/s"] ?? "–") === "–"; tries++) {
        await new Promise(done => setTimeout(done, 50));
    }
    return {
        phase: document.getElementById("phase").textContent,
        figures: figures(), workers: rows("workers"), tables: rows("tables"), reasons: rows("reasons"),
        viewport: document.documentElement.clientWidth, content: document.documentElement.scrollWidth,
    };
})()"##;

/// Once it has seen the server, has its only connection closed, and waits until the server is gone.
const FAREWELL: &str = r##"(async () => {
    const phase = () => document.getElementById("phase").textContent;
    const until = async condition => {
        for (let tries = 0; tries < 400 && !condition(); tries++) {
            await new Promise(done => setTimeout(done, 50));
        }
    };
    await until(() => phase() === "serving");
    const { connections: [{ id }] } = await (await fetch("connections")).json();
    await fetch(`connections/${id}/close`, { method: "POST", headers: { "X-Throng": "test" } });
    await until(() => phase() === "does not answer");
    return { phase: phase(), is_gone: document.body.className, figures: document.getElementById("figures").textContent };
})()"##;

#[test]
fn the_page_shows_that_the_server_has_gone() {
    let Some(program) = installed() else {
        return skip(
            "the_page_shows_that_the_server_has_gone",
            "chromium is not installed",
        );
    };
    let mut browser = Browser::start(&program).unwrap();
    let server = Server::start("epoll", &["--admin", "127.0.0.1:0"]);
    let mut held = server.connect();
    let url = format!("http://{}/", server.admin);
    let end = std::thread::spawn(move || {
        // Heartbeats, and the end. Where the page does not bring it, the wait has a bound.
        let _ = held.read_to_end(&mut Vec::new());
        assert_eq!(server.stop().0.code(), Some(0));
    });
    let seen = browser.look_at(&url, &VIEWS[0], FAREWELL, None).unwrap();
    end.join().unwrap();
    let page = &seen.value;
    assert_eq!(page["phase"], "does not answer", "{page}");
    assert_eq!(page["is_gone"], "gone", "{page}");
    let figures = page["figures"].as_str().unwrap();
    assert!(figures.contains("connections"), "{page}");
    assert!(browser.end().is_empty());
}

#[test]
fn the_page_shows_what_the_server_has() {
    let Some(program) = installed() else {
        return skip(
            "the_page_shows_what_the_server_has",
            "chromium is not installed",
        );
    };
    let browser = RefCell::new(Browser::start(&program).unwrap());
    let pictures = std::env::var_os("SCREENSHOTS").map(PathBuf::from);
    if let Some(directory) = &pictures {
        std::fs::create_dir_all(directory).unwrap();
    }
    for_each_engine(|engine| {
        let flags = [
            "--admin",
            "127.0.0.1:0",
            "--cores",
            "0,0",
            "--heartbeat",
            "200ms",
        ];
        let server = Server::start(engine, &flags);
        let _held: Vec<_> = (0..25).map(|_| server.connect()).collect();
        drop(server.connect());
        for view in VIEWS {
            let picture = pictures.as_ref();
            let picture = picture.map(|d| d.join(format!("admin-{engine}-{}.png", view.name)));
            let url = format!("http://{}/", server.admin);
            let seen = browser
                .borrow_mut()
                .look_at(&url, &view, SCRIPT, picture.as_deref())
                .unwrap_or_else(|error| panic!("{engine}, {}: {error}", view.name));
            let at = format!("{engine}, {}: {seen:#?}", view.name);
            assert!(seen.complaints.is_empty(), "{at}");
            let own = |request: &String| *request == url || *request == format!("{url}status");
            assert!(seen.requests.iter().all(own), "{at}");
            let page = &seen.value;
            assert_eq!(page["phase"], "serving", "{at}");
            assert_eq!(page["figures"]["connections"], "25", "{at}");
            assert_ne!(page["figures"]["heartbeats/s"], "–", "{at}");
            assert_eq!(page["workers"].as_array().unwrap().len(), 2, "{at}");
            assert!(!page["tables"].as_array().unwrap().is_empty(), "{at}");
            assert!(
                page["reasons"][0][0]
                    .as_str()
                    .unwrap()
                    .starts_with("closed: "),
                "{at}"
            );
            assert!(
                page["content"].as_f64() <= page["viewport"].as_f64(),
                "{at}"
            );
        }
    });
    let left = browser.into_inner().end();
    assert!(left.is_empty(), "left behind: {left:#?}");
}
