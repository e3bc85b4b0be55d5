//! `throng-server ctl`: asks a running server's admin side, and shows what it says to people.
//!
//! Owns nothing and starts nothing: each question is a request of its own, answered in bounded time. `--json` gives the
//! answers as they come.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::admin::{Address, HEADER, Id};
use crate::inquiry::State;

/// Longer than the admin side takes for anything.
const PATIENCE: Duration = Duration::from_secs(15);
/// The time over which rates are taken.
const SECOND: Duration = Duration::from_secs(1);
/// Connections asked for at a time.
const PAGE: usize = 1000;

const EXAMPLES: &str = "\
Examples:
  throng-server ctl status                              connections, rates, workers and tables
  throng-server ctl --admin /run/throng/admin ready     exit status 0 while connections are accepted
  throng-server ctl connections --state sending         whose peers do not read
  throng-server ctl connections --idle 10m --limit 20   who was silent for ten minutes (needs --idle-timeout)
  throng-server ctl close 0-0-4711-3                    one of them, now

Exit status: 0 done; 1 not reached, not there, not ready; 2 bad usage.";

/// Asks a running server's admin side (its --admin).
#[derive(Debug, Parser)]
#[command(name = "throng-server ctl", bin_name = "throng-server ctl", version, after_help = EXAMPLES)]
struct Flags {
    /// The server's --admin: an address and port, or the path of a unix socket
    #[arg(
        long,
        global = true,
        value_name = "ADDRESS:PORT|PATH",
        default_value = "127.0.0.1:7070"
    )]
    admin: Address,
    /// What the server answers, as it is
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What the server is, has, and does
    Status,
    /// Whether it accepts connections
    Ready,
    /// Whether all its workers do their work
    Health,
    /// Its counts, as OpenMetrics text
    Metrics,
    /// Connections, one a line
    Connections(Wanted),
    /// One connection
    Inspect {
        /// From the list, such as 0-0-4711-3
        id: Id,
    },
    /// Closes one connection, whatever waits for it
    Close {
        /// From the list, such as 0-0-4711-3
        id: Id,
    },
}

#[derive(Debug, clap::Args)]
struct Wanted {
    /// Those that do this
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Those from this address or network; direct descriptors cannot say where they come from before Linux 6.8
    #[arg(long, value_name = "ADDRESS|NETWORK", value_parser = network)]
    source: Option<IpNet>,
    /// Those that were silent for so long; only a server with --idle-timeout remembers
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    idle: Option<Duration>,
    /// At most so many
    #[arg(long, value_name = "N", default_value = "100")]
    limit: NonZeroUsize,
    /// From where the last list ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "give an address, or a network such as 10.0.0.0/8".into())
}

/// Asks. `args` begins with the program's name and `ctl`.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let flags = match Flags::try_parse_from(args.into_iter().skip(1)) {
        Ok(flags) => flags,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting");
    let said = runtime.and_then(|runtime| runtime.block_on(ask(&flags)));
    match said {
        Ok(said) => {
            // A reader that has gone is not told.
            let _ = std::io::stdout().write_all(said.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What there is to be shown.
async fn ask(flags: &Flags) -> anyhow::Result<String> {
    let at = &flags.admin;
    let get = |path: &str| request(at, Method::GET, path.to_owned());
    match &flags.what {
        What::Ready => get("/readyz").await,
        What::Health => get("/healthz").await,
        What::Metrics => get("/metrics").await,
        What::Status if flags.json => get("/status").await,
        What::Status => {
            let before = parse(&get("/status").await?)?;
            tokio::time::sleep(SECOND).await;
            Ok(status(&before, &parse(&get("/status").await?)?))
        }
        What::Connections(wanted) => {
            let found = list(at, wanted).await?;
            match flags.json {
                true => Ok(format!("{found:#}\n")),
                false => Ok(connections(&found)),
            }
        }
        What::Inspect { id } => get(&format!("/connections/{id}")).await,
        What::Close { id } => {
            let said = request(at, Method::POST, format!("/connections/{id}/close")).await?;
            Ok(if flags.json {
                said
            } else {
                format!("closed {id}\n")
            })
        }
    }
}

/// All pages, as one.
async fn list(at: &Address, wanted: &Wanted) -> anyhow::Result<Value> {
    let limit = wanted.limit.get();
    let mut cursor = wanted.cursor.clone();
    let (mut all, mut unknown) = (Vec::new(), 0);
    loop {
        let mut query = vec![("limit", (limit - all.len()).min(PAGE).to_string())];
        let state = wanted
            .state
            .and_then(|state| serde_json::to_value(state).ok());
        query.extend(state.and_then(|s| Some(("state", s.as_str()?.to_owned()))));
        query.extend(wanted.source.map(|network| ("source", network.to_string())));
        let idle = wanted.idle.map(|time| format!("{}ms", time.as_millis()));
        query.extend(idle.map(|idle| ("idle", idle)));
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let path = format!("/connections?{}", serde_urlencoded::to_string(&query)?);
        let mut page = parse(&request(at, Method::GET, path).await?)?;
        if let Some(found) = page["connections"].as_array_mut() {
            all.append(found);
        }
        unknown += page["unknown"].as_u64().unwrap_or(0);
        cursor = page["next"].as_str().map(str::to_owned);
        let is_silent = page["silent_workers"]
            .as_array()
            .is_some_and(|w| !w.is_empty());
        if cursor.is_none() || all.len() >= limit || is_silent {
            page["connections"] = Value::Array(all);
            page["unknown"] = unknown.into();
            return Ok(page);
        }
    }
}

fn parse(said: &str) -> anyhow::Result<Value> {
    serde_json::from_str(said).context("the answer is no JSON: is a Throng server there?")
}

async fn request(at: &Address, method: Method, path: String) -> anyhow::Result<String> {
    let asked = async {
        let unreached = || format!("no server answers at {at}: was it started with --admin {at}?");
        match at {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await.with_context(unreached)?;
                exchange(stream, method, &path, &address.to_string()).await
            }
            Address::Unix(file) => {
                let stream = UnixStream::connect(file).await.with_context(unreached)?;
                exchange(stream, method, &path, "localhost").await
            }
        }
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(said) => said,
        Err(_) => bail!("no answer from {at} within {PATIENCE:?}"),
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    method: Method,
    path: &str,
    host: &str,
) -> anyhow::Result<String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, host)
        .header(HEADER, "ctl")
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    let said = String::from_utf8_lossy(&body).into_owned();
    match status {
        StatusCode::OK => Ok(said),
        _ => {
            let why: Option<Value> = serde_json::from_str(&said).ok();
            let why = why.and_then(|v| v["error"].as_str().map(str::to_owned));
            let line = Some(said.trim_end()).filter(|said| !said.contains('\n'));
            match why.or(line.map(str::to_owned)) {
                Some(why) => bail!(why),
                None => bail!("{status} is the answer: is a Throng server there?"),
            }
        }
    }
}

/// For people: `now`, and the rates since `before`, a second ago.
fn status(before: &Value, now: &Value) -> String {
    let of = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
    let seconds = (of(now, "/uptime_seconds") - of(before, "/uptime_seconds")).max(0.001);
    let rate = |path: &str| ((of(now, path) - of(before, path)) / seconds).max(0.0);
    let closed = |value: &Value| -> f64 {
        let reasons = value.pointer("/total/closed").and_then(Value::as_object);
        reasons.map_or(0.0, |all| all.values().filter_map(Value::as_f64).sum())
    };
    let word = |path: &str| now.pointer(path).and_then(Value::as_str).unwrap_or("?");
    let up = Duration::from_secs(of(now, "/uptime_seconds") as u64);
    let mut said = format!(
        "{} since {}: {} {} on {} (throng {}, pid {})\n",
        word("/phase"),
        humantime::format_duration(up),
        word("/engine"),
        word("/protocol"),
        word("/listen"),
        word("/version"),
        of(now, "/pid"),
    );
    // Writing to a string does not fail.
    let _ = writeln!(
        said,
        "  connections  {} held, {} at most; {:.1} accepted and {:.1} closed a second",
        of(now, "/held"),
        of(now, "/held_max"),
        rate("/total/accepted"),
        ((closed(now) - closed(before)) / seconds).max(0.0),
    );
    let _ = writeln!(
        said,
        "  traffic      {:.0} bytes in and {:.0} bytes out a second",
        rate("/total/bytes_in"),
        rate("/total/bytes_out"),
    );
    if of(now, "/total/heartbeats_sent") > 0.0 {
        let late = |name: &str| of(now, &format!("/total/heartbeat_lateness_us/{name}")) / 1e3;
        let _ = writeln!(
            said,
            "  heartbeats   {:.1} a second, late by {:.1} ms in the median, {:.1} p99, {:.1} at most",
            rate("/total/heartbeats_sent"),
            late("p50"),
            late("p99"),
            late("max"),
        );
    }
    if now["resident_bytes"].is_u64() {
        let mib = of(now, "/resident_bytes") / f64::from(1 << 20);
        let _ = writeln!(said, "  memory       {mib:.1} MiB");
    }
    for worker in now["workers"].as_array().into_iter().flatten() {
        let _ = write!(
            said,
            "  worker {:<5} {} held on core {}",
            of(worker, "/worker"),
            of(worker, "/held"),
            of(worker, "/core")
        );
        let tables: Vec<String> = worker["tables"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|t| format!("{}/{}", of(t, "/used"), of(t, "/slots")))
            .collect();
        let _ = write!(said, ", slots used {}", tables.join(" "));
        if worker["answers"] == false {
            let doing = worker["doing"].as_str().unwrap_or("");
            let _ = write!(said, "; DOES NOT ANSWER: {doing}");
        }
        said.push('\n');
    }
    said
}

fn connections(found: &Value) -> String {
    let all = found["connections"].as_array();
    let mut said = format!(
        "{:<18} {:<10} {:<28} {:>10} {:>10} {:>10}\n",
        "ID", "STATE", "PEER", "IDLE MS", "IN", "OUT"
    );
    for one in all.into_iter().flatten() {
        let word = |name: &str| one[name].as_str().unwrap_or("-").to_owned();
        let count = |name: &str| one[name].as_u64().map_or("-".to_owned(), |n| n.to_string());
        let _ = writeln!(
            said,
            "{:<18} {:<10} {:<28} {:>10} {:>10} {:>10}",
            word("id"),
            word("state"),
            word("peer"),
            count("idle_ms"),
            count("input_bytes"),
            count("output_bytes"),
        );
    }
    if let Some(next) = found["next"].as_str() {
        let _ = writeln!(said, "there are more: --cursor {next}");
    }
    if let Some(unknown @ 1..) = found["unknown"].as_u64() {
        let _ = writeln!(
            said,
            "{unknown} more may be meant: of direct descriptors the address is not known (--descriptors fd), \
             and how long somebody was silent only with --idle-timeout"
        );
    }
    for worker in found["silent_workers"].as_array().into_iter().flatten() {
        let _ = writeln!(
            said,
            "worker {worker} does not answer: its connections are missing"
        );
    }
    said
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use serde_json::json;

    #[test]
    fn usage_is_consistent() {
        Flags::command().debug_assert();
        for wrong in [
            "",
            "close 17",
            "connections --idle soon",
            "--admin 7070 status",
        ] {
            let args = std::iter::once("ctl").chain(wrong.split_whitespace());
            assert!(Flags::try_parse_from(args).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_are_those_between_two_looks() {
        let at = |seconds: f64, accepted: u64, closed: u64| {
            json!({
                "phase": "serving", "uptime_seconds": seconds, "held": 9, "held_max": 12,
                "total": {"accepted": accepted, "closed": {"reset": closed, "finished": 1}},
                "workers": [{"worker": 0, "core": 1, "held": 9, "answers": false, "doing": "asleep",
                    "tables": [{"slots": 64, "used": 10}]}],
            })
        };
        let said = status(&at(10.0, 100, 5), &at(12.0, 300, 6));
        for expected in [
            "serving since 12s",
            "9 held, 12 at most; 100.0 accepted and 0.5 closed a second",
            "slots used 10/64; DOES NOT ANSWER: asleep",
        ] {
            assert!(said.contains(expected), "{expected} in {said}");
        }
    }
}
