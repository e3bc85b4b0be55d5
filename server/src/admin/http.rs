//! Requests in, answers out: the paths of the admin side.
//!
//! Reads are GET, what changes something is POST. A page of another site may have its visitor's browser ask here. So a POST
//! must have the header `x-throng`, which such a page cannot add; and where peers, or the server itself, are shown, the host
//! must be an address or `localhost`: the page's own name can be made to mean this host, and the browser would then let it
//! read the answer.

use std::net::IpAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderMap, HeaderValue,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::http::uri::Authority;
use hyper::{Method, Response, StatusCode};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::desk::{Account, Busy, Cursor, Desk, Id, Phase, Served, Silent};
use super::{metrics, status};
use crate::inquiry::{Filter, State};

/// The header that a POST must have; what it says does not matter.
pub(crate) const HEADER: &str = "x-throng";
/// Connections in a page where nothing is said, and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

type Answer = Response<Full<Bytes>>;

pub(super) async fn answer(desk: &Desk, head: &Parts) -> Answer {
    let path = head.uri.path();
    let one = path.strip_prefix("/connections/");
    let closed = one.and_then(|rest| rest.strip_suffix("/close"));
    let is_post = closed.is_some();
    let (is_allowed, allowed) = match is_post {
        true => (head.method == Method::POST, "POST"),
        false => (
            matches!(head.method, Method::GET | Method::HEAD),
            "GET, HEAD",
        ),
    };
    if !is_allowed {
        let why = format!("use {allowed}");
        let mut answer = refuse(StatusCode::METHOD_NOT_ALLOWED, &why);
        let headers = answer.headers_mut();
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
        return answer;
    }
    let is_for_anybody = match path {
        // Counts alone; and a scraper or a probe may know this host by a name.
        "/healthz" | "/readyz" | "/metrics" => true,
        "/" | "/status" | "/connections" => false,
        _ if one.is_some() => false,
        _ => {
            let all = "there are /metrics, /healthz, /readyz, /status, /connections, /connections/ID, and POST /connections/ID/close";
            return refuse(StatusCode::NOT_FOUND, all);
        }
    };
    if !is_for_anybody && !is_addressed(&head.headers) {
        let why = "the host must be an address or localhost: a name may be that of a page of another site";
        return refuse(StatusCode::FORBIDDEN, why);
    }
    if path == "/" {
        let page = include_str!("page.html");
        return text(StatusCode::OK, "text/html; charset=utf-8", page);
    }
    let Some(served) = desk.served() else {
        // It lives, and does nothing else yet.
        return match path {
            "/healthz" => plain(StatusCode::OK, "ok"),
            _ => plain(StatusCode::SERVICE_UNAVAILABLE, "starting"),
        };
    };
    match path {
        "/healthz" => health(desk, served).await,
        "/readyz" => match served.phase() {
            Phase::Serving => plain(StatusCode::OK, "ready"),
            Phase::Starting => plain(StatusCode::SERVICE_UNAVAILABLE, "starting"),
            Phase::Draining => plain(StatusCode::SERVICE_UNAVAILABLE, "draining"),
        },
        "/metrics" => match metrics::exposition(served, desk.accounts(served).await) {
            Ok(said) => text(StatusCode::OK, metrics::CONTENT_TYPE, said),
            Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        },
        "/status" => {
            let accounts = desk.accounts(served).await;
            as_json(StatusCode::OK, &status::Status::new(served, &accounts))
        }
        "/connections" => list(desk, served, head.uri.query().unwrap_or("")).await,
        _ => {
            let id = closed.or(one).unwrap_or("");
            connection(desk, served, head, id, is_post).await
        }
    }
}

/// Whether all workers do their work.
async fn health(desk: &Desk, served: &Served) -> Answer {
    let accounts = desk.accounts(served).await;
    let silent = accounts.iter().position(Account::is_silent);
    match silent {
        // Those that drain end one by one.
        Some(worker) if served.phase() != Phase::Draining => {
            plain(StatusCode::SERVICE_UNAVAILABLE, &Silent(worker).to_string())
        }
        _ => plain(StatusCode::OK, "ok"),
    }
}

/// What `/connections` may be asked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    state: Option<State>,
    source: Option<String>,
    idle: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

impl Query {
    fn read(self) -> Result<(Filter, Cursor, usize), String> {
        let source = self.source.map(|text| {
            let network = text
                .parse::<IpNet>()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| {
                format!("source `{text}`: give an address, or a network such as 10.0.0.0/8")
            })
        });
        let idle = self.idle.map(|text| {
            let time = humantime::parse_duration(&text);
            time.map_err(|error| format!("idle `{text}`: {error}; give a time such as 30s"))
        });
        let filter = Filter {
            state: self.state,
            source: source.transpose()?,
            idle_ms: idle
                .transpose()?
                .map(|time: Duration| time.as_millis() as u64),
        };
        let cursor = self.cursor.map(|text| text.parse::<Cursor>()).transpose()?;
        match self.limit.unwrap_or(PAGE) {
            limit @ 1..=MAX_PAGE => Ok((filter, cursor.unwrap_or_default(), limit)),
            limit => Err(format!("limit {limit}: give a number from 1 to {MAX_PAGE}")),
        }
    }
}

async fn list(desk: &Desk, served: &Served, query: &str) -> Answer {
    let query: Result<Query, _> = serde_urlencoded::from_str(query);
    let read = query.map_err(|error| {
        format!("{error}; what can be asked is state (open, sending, finishing, closing), source, idle, limit and cursor")
    });
    match read.and_then(Query::read) {
        Ok((_, cursor, _)) if cursor.worker >= served.cores.len() => {
            let why = format!(
                "cursor: there is no worker {}; give what the last page says is `next`",
                cursor.worker
            );
            refuse(StatusCode::BAD_REQUEST, &why)
        }
        Ok((filter, cursor, limit)) => match desk.list(served, &filter, cursor, limit).await {
            Ok(listing) => as_json(StatusCode::OK, &listing),
            Err(Busy) => {
                let why = "others look through the connections: ask again in a second";
                refuse(StatusCode::SERVICE_UNAVAILABLE, why)
            }
        },
        Err(why) => refuse(StatusCode::BAD_REQUEST, &why),
    }
}

async fn connection(desk: &Desk, served: &Served, head: &Parts, id: &str, is_post: bool) -> Answer {
    let id: Id = match id.parse() {
        Ok(id) => id,
        Err(why) => return refuse(StatusCode::BAD_REQUEST, &why),
    };
    let gone = || {
        let why = format!("connection {id} is not there: it has ended, or never was");
        refuse(StatusCode::NOT_FOUND, &why)
    };
    if !is_post {
        return match desk.inspect(served, id).await {
            Ok(Some(connection)) => as_json(StatusCode::OK, &connection),
            Ok(None) => gone(),
            Err(silent) => refuse(StatusCode::GATEWAY_TIMEOUT, &silent.to_string()),
        };
    }
    if !head.headers.contains_key(HEADER) {
        let why = format!(
            "a POST needs the header {HEADER}: without, it may come from a page of another site"
        );
        return refuse(StatusCode::FORBIDDEN, &why);
    }
    match desk.close(served, id).await {
        Ok(true) => as_json(StatusCode::OK, &json!({ "closed": id })),
        Ok(false) => gone(),
        Err(silent) => refuse(
            StatusCode::GATEWAY_TIMEOUT,
            &format!("{silent}; it closes the connection when it does"),
        ),
    }
}

/// Whether the host is an address or `localhost`.
fn is_addressed(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).map(HeaderValue::as_bytes);
    let Some(Ok(host)) = host.map(Authority::try_from) else {
        return false;
    };
    let name = host.host();
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    name == "localhost" || bare.unwrap_or(name).parse::<IpAddr>().is_ok()
}

fn plain(status: StatusCode, said: &str) -> Answer {
    text(status, "text/plain; charset=utf-8", format!("{said}\n"))
}

fn refuse(status: StatusCode, why: &str) -> Answer {
    as_json(status, &json!({ "error": why }))
}

fn as_json(status: StatusCode, said: &impl Serialize) -> Answer {
    match serde_json::to_vec_pretty(said) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            text(status, "application/json", bytes)
        }
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

impl std::fmt::Display for Silent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Silent(worker) = self;
        write!(
            f,
            "worker {worker} does not answer within {:?}",
            super::desk::ANSWER
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<(Filter, Cursor, usize), String> {
        let query: Result<Query, _> = serde_urlencoded::from_str(query);
        query
            .map_err(|error| error.to_string())
            .and_then(Query::read)
    }

    #[test]
    fn queries_are_read_or_refused_by_name() {
        let (filter, _, limit) = read("state=sending&source=10.0.0.0/8&idle=30s&limit=7").unwrap();
        assert_eq!(
            (filter.state, filter.idle_ms, limit),
            (Some(State::Sending), Some(30_000), 7)
        );
        assert_eq!(
            read("source=%3A%3A1").unwrap().0.source,
            Some("::1/128".parse().unwrap())
        );
        assert_eq!(read("").unwrap().2, PAGE);
        for (wrong, named) in [
            ("state=asleep", "asleep"),
            ("source=nowhere", "nowhere"),
            ("idle=soon", "soon"),
            ("limit=0", "limit 0"),
            ("limit=1001", "1001"),
            ("cursor=x", "cursor"),
            ("colour=red", "colour"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(named), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_name_of_another_site_is_known() {
        let is_own = |host: &'static str| {
            let headers = [(HOST, HeaderValue::from_static(host))];
            is_addressed(&headers.into_iter().collect())
        };
        for own in [
            "127.0.0.1:7070",
            "localhost:7070",
            "localhost",
            "[::1]:7070",
            "[::1]",
        ] {
            assert!(is_own(own), "{own}");
        }
        for other in [
            "evil.example:7070",
            "evil.example",
            "localhost.evil.example",
            "",
        ] {
            assert!(!is_own(other), "{other}");
        }
        assert!(!is_addressed(&HeaderMap::new()));
    }
}
