//! `httpGet`: one request on a connection of its own.

use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use ostler_core::allow::Allow;
use ostler_core::kinds::{HttpGet, Scheme};
use ostler_core::verdict::Outcome;
use regex::bytes::Regex;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{net, tls};

/// So much of a body is looked at, bytes.
const BODY: usize = 64 << 10;
/// So many redirects are followed.
const REDIRECTS: usize = 10;

/// An answer.
struct Answer {
    status: StatusCode,
    location: Option<String>,
    body: Vec<u8>,
}

/// Where a request goes.
struct Place {
    scheme: Scheme,
    host: Option<String>,
    port: u16,
    path: String,
}

/// Whether the answer is as it should be.
pub(crate) async fn check(get: &HttpGet, port: u16, body_match: Option<&Regex>, allow: &[Allow]) -> Outcome {
    let mut place = Place { scheme: get.scheme, host: get.host.clone(), port, path: get.path.clone() };
    for _ in 0..=REDIRECTS {
        let answer = match ask(get, &place, allow).await {
            Ok(answer) => answer,
            Err(outcome) => return outcome,
        };
        if answer.status.is_redirection()
            && let Some(next) = answer.location.as_deref().and_then(|location| place.follow(location))
        {
            place = next;
            continue;
        }
        return judge(get, &answer, body_match);
    }
    Outcome::Failed(format!("more than {REDIRECTS} redirects"))
}

fn judge(get: &HttpGet, answer: &Answer, body_match: Option<&Regex>) -> Outcome {
    let status = answer.status;
    let text = String::from_utf8_lossy(&answer.body);
    let said = text.trim();
    if !get.expected_status.iter().any(|range| range.contains(status.as_u16())) {
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        return Outcome::Failed(format!("HTTP {status}{said}"));
    }
    match body_match {
        Some(regex) if !regex.is_match(&answer.body) => {
            Outcome::Failed(format!("HTTP {status}, but the body does not match {:?}: {said}", regex.as_str()))
        }
        Some(_) | None => Outcome::Passed(format!("HTTP {status}")),
    }
}

impl Place {
    /// The place that a redirect points to, if it is on the same host.
    fn follow(&self, location: &str) -> Option<Self> {
        if !location.contains("://") && !location.starts_with("//") {
            let path = if location.starts_with('/') {
                location.to_owned()
            } else {
                let directory = self.path.split(['?', '#']).next()?.rsplit_once('/')?.0;
                format!("{directory}/{location}")
            };
            let path = path.split('#').next()?.to_owned();
            return Some(Self { scheme: self.scheme, host: self.host.clone(), port: self.port, path });
        }
        let absolute = if location.starts_with("//") { format!("http:{location}") } else { location.to_owned() };
        let uri: Uri = absolute.parse().ok()?;
        let scheme = match uri.scheme_str()? {
            _ if location.starts_with("//") => self.scheme,
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        if !uri.host()?.eq_ignore_ascii_case(self.name()) {
            return None;
        }
        let usual = match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Some(Self { scheme, host: self.host.clone(), port: uri.port_u16().unwrap_or(usual), path })
    }

    fn name(&self) -> &str {
        self.host.as_deref().unwrap_or("127.0.0.1")
    }

    fn request(&self, get: &HttpGet) -> Result<Request<Empty<Bytes>>, String> {
        let name = self.name();
        let name = if name.contains(':') && !name.starts_with('[') { format!("[{name}]") } else { name.to_owned() };
        let mut request = Request::get(self.path.as_str())
            .header(HOST, format!("{name}:{}", self.port))
            .header(USER_AGENT, concat!("ostler-probe/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "*/*")
            .header(CONNECTION, "close")
            .body(Empty::new())
            .map_err(|why| why.to_string())?;
        let headers = request.headers_mut();
        for header in &get.http_headers {
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|why| why.to_string())?;
            let value = HeaderValue::from_bytes(header.value.as_bytes()).map_err(|why| why.to_string())?;
            if [HOST, USER_AGENT, ACCEPT].contains(&name) {
                headers.insert(name, value);
            } else {
                headers.append(name, value);
            }
        }
        Ok(request)
    }
}

async fn ask(get: &HttpGet, place: &Place, allow: &[Allow]) -> Result<Answer, Outcome> {
    let request = place.request(get).map_err(Outcome::CannotRun)?;
    let addresses: Vec<SocketAddr> = net::addresses(place.host.as_deref(), place.port, allow).await?;
    let stream = net::connect(&addresses).await?;
    match place.scheme {
        Scheme::Http => exchange(stream, request).await,
        Scheme::Https => {
            let host = place.name().trim_start_matches('[').trim_end_matches(']');
            exchange(tls::connect(stream, host).await?, request).await
        }
    }
}

/// Sends the request and reads the answer. Both ends of the connection are driven here, so nothing outlives the call.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
) -> Result<Answer, Outcome> {
    let failed = |why: hyper::Error| {
        let why = std::error::Error::source(&why).map_or_else(|| why.to_string(), |source| format!("{why}: {source}"));
        Outcome::Failed(format!("no HTTP answer: {why}"))
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let talk = async {
        let response = sender.send_request(request).await?;
        read(response).await
    };
    tokio::pin!(talk, connection);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut talk => return answer.map_err(failed),
            // Its end, good or bad, is seen by the one who talks.
            _ = &mut connection, if open => open = false,
        }
    }
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Answer, hyper::Error> {
    let (head, mut body) = response.into_parts();
    let location = head.headers.get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut answer = Answer { status: head.status, location, body: Vec::new() };
    while answer.body.len() < BODY
        && let Some(frame) = body.frame().await
    {
        if let Some(data) = frame?.data_ref() {
            let room = BODY - answer.body.len();
            answer.body.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_followed_on_the_same_host_only() {
        let place = Place { scheme: Scheme::Http, host: None, port: 8080, path: "/a/b?c=/d".to_owned() };
        for (location, expected) in [
            ("/x", Some("8080 /x")),
            ("x?y#z", Some("8080 /a/x?y")),
            ("http://127.0.0.1:9/x", Some("9 /x")),
            ("http://127.0.0.1/", Some("80 /")),
            ("https://127.0.0.1/", Some("443 /")),
            ("//127.0.0.1:7/q", Some("7 /q")),
            ("http://localhost:8080/x", None),
            ("http://169.254.169.254/latest", None),
            ("//example.com/", None),
            ("ftp://127.0.0.1/", None),
        ] {
            let found = place.follow(location).map(|next| format!("{} {}", next.port, next.path));
            assert_eq!(found.as_deref(), expected, "{location}");
        }
    }
}
