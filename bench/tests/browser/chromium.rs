//! A headless Chromium, spoken to over the DevTools protocol through a pipe: no port is opened, and the end of the pipe
//! is the end of the browser. Every wait has a bound.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Of each answer.
const BOUND: Duration = Duration::from_secs(60);

/// How a page is looked at.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pub name: &'static str,
    /// In CSS pixels.
    pub width: u32,
    pub height: u32,
    pub is_phone: bool,
    /// `light` or `dark`.
    pub theme: &'static str,
}

/// What came of it.
#[derive(Debug)]
pub struct Seen {
    /// What the script gave.
    pub value: Value,
    /// Messages of the console, exceptions and complaints of the browser itself.
    pub complaints: Vec<String>,
    /// Everything that was asked for, the page first.
    pub requests: Vec<String>,
}

/// A running browser, with a profile of its own; it ends when dropped.
pub struct Browser {
    child: Child,
    to: Option<ChildStdin>,
    from: Receiver<Value>,
    events: VecDeque<Value>,
    last_id: u64,
    profile: TempDir,
}

/// Debian's, if it is installed.
pub fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join("chromium"))
        .find(|file| file.is_file())
}

impl Browser {
    /// # Errors
    /// What it said instead of coming up.
    pub fn start(program: &Path) -> Result<Self, String> {
        let profile = tempfile::tempdir().unwrap();
        let said = profile.path().join("stderr");
        // The protocol is read from descriptor 3 and written to 4.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >&2"])
            .arg(program)
            .args(["--headless=new", "--remote-debugging-pipe", "--no-sandbox"])
            .args(["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .args([
                "--disable-breakpad",
                "--disable-sync",
                "--disable-extensions",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("HOME", profile.path())
            .env("XDG_RUNTIME_DIR", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&said).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let (sender, from) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while lines
                .read_until(0, &mut message)
                .is_ok_and(|count| count > 0)
            {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else {
                    break;
                };
                if sender.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let mut browser = Self {
            to: child.stdin.take(),
            child,
            from,
            events: VecDeque::new(),
            last_id: 0,
            profile,
        };
        match browser.ask(None, "Browser.getVersion", json!({})) {
            Ok(_) => Ok(browser),
            Err(error) => Err(format!(
                "{error}; it said: {}",
                std::fs::read_to_string(&said).unwrap_or_default().trim()
            )),
        }
    }

    /// As [`Browser::look_at`], at a file.
    ///
    /// # Errors
    /// As there.
    pub fn look(
        &mut self,
        page: &Path,
        view: &View,
        script: &str,
        picture: Option<&Path>,
    ) -> Result<Seen, String> {
        let url = format!("file://{}", page.display());
        self.look_at(&url, view, script, picture)
    }

    /// Opens `url` in a tab of its own, lets `script` say what is there, or what its promise comes to, and writes a picture
    /// of the whole page to `picture`, if one is wanted.
    ///
    /// # Errors
    /// What did not come in time, or what the browser refused.
    pub fn look_at(
        &mut self,
        url: &str,
        view: &View,
        script: &str,
        picture: Option<&Path>,
    ) -> Result<Seen, String> {
        let of = |value: &Value, name: &str| value[name].as_str().unwrap_or("").to_owned();
        let tab = self.ask(None, "Target.createTarget", json!({"url": "about:blank"}))?;
        let tab = of(&tab, "targetId");
        let attach = json!({"targetId": tab, "flatten": true});
        let session = of(
            &self.ask(None, "Target.attachToTarget", attach)?,
            "sessionId",
        );
        let on = Some(session.as_str());
        for domain in ["Page", "Runtime", "Log", "Network"] {
            self.ask(on, &format!("{domain}.enable"), json!({}))?;
        }
        let metrics = json!({
            "width": view.width, "height": view.height, "mobile": view.is_phone,
            "deviceScaleFactor": 1,
        });
        self.ask(on, "Emulation.setDeviceMetricsOverride", metrics)?;
        let theme = json!({"features": [{"name": "prefers-color-scheme", "value": view.theme}]});
        self.ask(on, "Emulation.setEmulatedMedia", theme)?;
        self.events.clear();
        self.ask(on, "Page.navigate", json!({"url": url}))?;
        self.event(&session, "Page.loadEventFired")?;
        let evaluate = json!({"expression": script, "returnByValue": true, "awaitPromise": true});
        let evaluated = self.ask(on, "Runtime.evaluate", evaluate)?;
        if !evaluated["exceptionDetails"].is_null() {
            return Err(format!("the script failed: {evaluated}"));
        }
        if let Some(file) = picture {
            let size = self.ask(on, "Page.getLayoutMetrics", json!({}))?;
            let size = &size["cssContentSize"];
            let clip = json!({
                "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1,
            });
            let shot = json!({"captureBeyondViewport": true, "clip": clip});
            let shot = self.ask(on, "Page.captureScreenshot", shot)?;
            let png = BASE64_STANDARD.decode(of(&shot, "data")).unwrap();
            std::fs::write(file, png).unwrap();
        }
        self.ask(None, "Target.closeTarget", json!({"targetId": tab}))?;
        let own = |event: &&Value| event["sessionId"] == session.as_str();
        let events = || self.events.iter().filter(own);
        let requests = events()
            .filter(|event| event["method"] == "Network.requestWillBeSent")
            .map(|event| of(&event["params"]["request"], "url"));
        let complaints = events().filter(|event| {
            let kinds = [
                "Runtime.consoleAPICalled",
                "Runtime.exceptionThrown",
                "Log.entryAdded",
            ];
            kinds.iter().any(|kind| event["method"] == *kind)
        });
        Ok(Seen {
            value: evaluated["result"]["value"].clone(),
            complaints: complaints.map(Value::to_string).collect(),
            requests: requests.collect(),
        })
    }

    /// Ends it, and says what is left of it after a time.
    pub fn end(mut self) -> Vec<String> {
        let _ = self.ask(None, "Browser.close", json!({}));
        drop(self.to.take());
        let deadline = Instant::now() + BOUND / 4;
        loop {
            let _ = self.child.try_wait();
            let left = self.processes();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// All that have its profile in their command line.
    fn processes(&self) -> Vec<String> {
        let profile = self.profile.path().to_str().unwrap();
        let directories = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = directories
            .filter_map(|directory| std::fs::read(directory.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
        lines.filter(|line| line.contains(profile)).collect()
    }

    fn ask(&mut self, session: Option<&str>, method: &str, params: Value) -> Result<Value, String> {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        let written = self.to.as_mut().unwrap().write_all(&bytes);
        written.map_err(|error| format!("{method}: the browser has ended ({error})"))?;
        let deadline = Instant::now() + BOUND;
        loop {
            let answer = self.receive(method, deadline)?;
            if answer["id"] != self.last_id {
                self.events.push_back(answer);
            } else if let Some(error) = answer.get("error") {
                return Err(format!("{method}: {error}"));
            } else {
                return Ok(answer["result"].clone());
            }
        }
    }

    fn event(&mut self, session: &str, method: &str) -> Result<(), String> {
        let deadline = Instant::now() + BOUND;
        let is_it = |event: &Value| event["method"] == method && event["sessionId"] == session;
        while !self.events.iter().any(is_it) {
            let event = self.receive(method, deadline)?;
            self.events.push_back(event);
        }
        Ok(())
    }

    fn receive(&self, what: &str, deadline: Instant) -> Result<Value, String> {
        let left = deadline.saturating_duration_since(Instant::now());
        let received = self.from.recv_timeout(left);
        received.map_err(|error| format!("{what}: no answer of the browser ({error})"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its children are of its group; the group is its own while it is not waited for.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        }
        let _ = self.child.wait();
        // Those who had gone into groups of their own end with its pipes.
        let deadline = Instant::now() + BOUND / 12;
        while !self.processes().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
