//! Rules for probes.

use super::Findings;
use crate::kinds::{Check, HttpGet, PortRef, Probe, ProbeKind, ProcessSpec};
use crate::time::Span;

const CHECKS: &str = "httpGet, tcpSocket, grpc, exec, logLine, notify, resources, process";

/// Checks one probe of a spec.
pub(super) fn check(spec: &ProcessSpec, kind: ProbeKind, probe: &Probe, found: &mut Findings) {
    let field = |name: &str| format!("spec.{}Probe{}{name}", kind.name(), if name.is_empty() { "" } else { "." });
    let checks: Vec<Check<'_>> = probe.checks().collect();
    match checks.as_slice() {
        [] => found.add(field(""), format!("needs one of {CHECKS}")),
        [_] => {}
        [first, others @ ..] => {
            for other in others {
                let message = format!("there is {} already; a probe checks one thing", first.name());
                found.add(field(other.name()), message);
            }
        }
    }
    for check in checks {
        self::target(spec, check, &|name| field(&format!("{}.{name}", check.name())), found);
    }
    if probe.interval < Span::from_millis(100) {
        found.add(field("interval"), "at least 100ms");
    }
    if probe.timeout == Span::ZERO {
        found.add(field("timeout"), "must not be zero");
    }
    for (name, threshold) in
        [("failureThreshold", probe.failure_threshold), ("successThreshold", probe.success_threshold)]
    {
        if !(1..=1000).contains(&threshold) {
            found.add(field(name), "from 1 to 1000");
        }
    }
    if !(0.0..=1.0).contains(&probe.jitter) {
        found.add(field("jitter"), "from 0 to 1");
    }
}

pub(super) fn target(spec: &ProcessSpec, check: Check<'_>, field: &dyn Fn(&str) -> String, found: &mut Findings) {
    match check {
        Check::HttpGet(get) => {
            port(spec, &get.port, field, found);
            host(get.host.as_deref(), field, found);
            http(get, field, found);
        }
        Check::TcpSocket(socket) => {
            port(spec, &socket.port, field, found);
            host(socket.host.as_deref(), field, found);
        }
        Check::Grpc(grpc) => {
            port(spec, &grpc.port, field, found);
            host(grpc.host.as_deref(), field, found);
        }
        Check::Exec(exec) => {
            if exec.command.first().is_none_or(String::is_empty) {
                found.add(field("command"), "a program is needed, such as command: [\"pg_isready\", \"-q\"]");
            }
            for (index, word) in exec.command.iter().enumerate() {
                if word.contains('\0') {
                    found.add(field(&format!("command[{index}]")), "must not contain a NUL character");
                }
            }
        }
        Check::LogLine(line) => {
            if line.pattern.is_none() && line.failure_pattern.is_none() {
                found.add(field("pattern"), "a regular expression is needed here or in failurePattern");
            }
            for (name, pattern) in [("pattern", &line.pattern), ("failurePattern", &line.failure_pattern)] {
                expression(pattern.as_deref(), &field(name), found);
            }
        }
        Check::Notify(notify) => {
            if notify.watchdog.is_some_and(|watchdog| watchdog < Span::from_millis(100)) {
                found.add(field("watchdog"), "at least 100ms");
            }
        }
        Check::Resources(resources) => {
            if resources.iter().next().is_none() {
                found.add(field("memory"), "one of memory, cpu, processes, threads and openFiles is needed");
            }
        }
        Check::Process(_) => {}
    }
}

fn port(spec: &ProcessSpec, port: &PortRef, field: &dyn Fn(&str) -> String, found: &mut Findings) {
    let PortRef::Name(name) = port else { return };
    if !spec.ports.iter().any(|port| port.name == *name) {
        let names: Vec<&str> = spec.ports.iter().map(|port| port.name.as_str()).collect();
        let known =
            if names.is_empty() { "there are none".to_owned() } else { format!("there are {}", names.join(", ")) };
        found.add(field("port"), format!("{name:?} is not the name of one of spec.ports; {known}"));
    }
}

fn host(host: Option<&str>, field: &dyn Fn(&str) -> String, found: &mut Findings) {
    let odd = |host: &str| host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/@?#".contains(c));
    if host.is_some_and(odd) {
        found.add(field("host"), "must be a host name or an address, such as localhost or ::1");
    }
}

fn http(get: &HttpGet, field: &dyn Fn(&str) -> String, found: &mut Findings) {
    if !get.path.starts_with('/') || get.path.contains(|c: char| c.is_control() || c == ' ' || !c.is_ascii()) {
        found.add(field("path"), "must begin with / and have no spaces; write others than ASCII letters as %XX");
    }
    if get.expected_status.is_empty() {
        found.add(field("expectedStatus"), "at least one; \"200-399\" is the default");
    }
    for (index, header) in get.http_headers.iter().enumerate() {
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if header.name.is_empty() || !header.name.chars().all(token) {
            found.add(field(&format!("httpHeaders[{index}].name")), "is no name of an HTTP header");
        }
        if header.value.contains(|c: char| c.is_control() && c != '\t') {
            found.add(field(&format!("httpHeaders[{index}].value")), "must not contain control characters");
        }
    }
    expression(get.body_match.as_deref(), &field("bodyMatch"), found);
}

fn expression(pattern: Option<&str>, field: &str, found: &mut Findings) {
    let Some(pattern) = pattern else { return };
    if let Err(why) = regex::bytes::RegexBuilder::new(pattern).size_limit(1 << 20).build() {
        let why = why.to_string();
        // The first lines draw the place; the last one says it.
        let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
        found.add(field, format!("is no regular expression: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The fields that are wrong when a process with the port `web` has this readiness probe.
    fn wrong(probe: &serde_json::Value) -> Vec<String> {
        let spec = json!({"command": ["x"], "ports": [{"name": "web", "port": "auto"}], "readinessProbe": probe});
        let spec: ProcessSpec = serde_json::from_value(spec).unwrap_or_else(|why| panic!("{probe}: {why}"));
        let mut found = Findings(Vec::new());
        check(&spec, ProbeKind::Readiness, spec.readiness_probe.as_ref().unwrap(), &mut found);
        let fields = found.0.iter().map(|error| error.field.trim_start_matches("spec.readinessProbe"));
        fields.map(|field| field.trim_start_matches('.').to_owned()).collect()
    }

    #[test]
    fn what_can_be_checked_is_right() {
        for probe in [
            json!({"process": {}}),
            json!({"notify": {}}),
            json!({"notify": {"watchdog": "100ms"}}),
            json!({"httpGet": {"port": "web"}}),
            json!({"httpGet": {"port": 8080, "host": "::1", "path": "/a?b=%20", "scheme": "HTTPS", "bodyMatch": "^ok$",
                "expectedStatus": [204, "300-399"], "httpHeaders": [{"name": "X-Token", "value": "a\tb"}]}}),
            json!({"tcpSocket": {"port": 1, "host": "localhost"}}),
            json!({"grpc": {"port": 65535, "service": "shop.v1"}}),
            json!({"exec": {"command": ["true"]}}),
            json!({"logLine": {"pattern": "ready"}}),
            json!({"logLine": {"failurePattern": "(?i)fatal"}}),
            json!({"process": {}, "interval": "100ms", "timeout": "1us", "failureThreshold": 1000, "jitter": 1}),
        ] {
            assert_eq!(wrong(&probe), [""; 0], "{probe}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_field() {
        for (probe, fields) in [
            (json!({}), &[""][..]),
            (json!({"process": {}, "exec": {"command": ["true"]}}), &["process"]),
            (json!({"process": {}, "interval": "99ms"}), &["interval"]),
            (json!({"process": {}, "timeout": "0s"}), &["timeout"]),
            (json!({"process": {}, "failureThreshold": 0}), &["failureThreshold"]),
            (json!({"process": {}, "successThreshold": 1001}), &["successThreshold"]),
            (json!({"process": {}, "jitter": 1.1}), &["jitter"]),
            (json!({"process": {}, "jitter": -0.1}), &["jitter"]),
            (json!({"notify": {"watchdog": "99ms"}}), &["notify.watchdog"]),
            (json!({"tcpSocket": {"port": "metrics"}}), &["tcpSocket.port"]),
            (json!({"tcpSocket": {"port": 1, "host": ""}}), &["tcpSocket.host"]),
            (json!({"grpc": {"port": 1, "host": "http://a"}}), &["grpc.host"]),
            (json!({"httpGet": {"port": 1, "path": "health"}}), &["httpGet.path"]),
            (json!({"httpGet": {"port": 1, "path": "/a b"}}), &["httpGet.path"]),
            (json!({"httpGet": {"port": 1, "expectedStatus": []}}), &["httpGet.expectedStatus"]),
            (json!({"httpGet": {"port": 1, "bodyMatch": "("}}), &["httpGet.bodyMatch"]),
            (
                json!({"httpGet": {"port": 1, "httpHeaders": [{"name": "a b"}, {"name": "c", "value": "d\r\ne"}]}}),
                &["httpGet.httpHeaders[0].name", "httpGet.httpHeaders[1].value"],
            ),
            (json!({"exec": {"command": []}}), &["exec.command"]),
            (json!({"exec": {"command": [""]}}), &["exec.command"]),
            (json!({"exec": {"command": ["a", "b\0"]}}), &["exec.command[1]"]),
            (json!({"logLine": {}}), &["logLine.pattern"]),
            (
                json!({"logLine": {"pattern": "[", "failurePattern": "a{100000}{1000}"}}),
                &["logLine.pattern", "logLine.failurePattern"],
            ),
        ] {
            assert_eq!(wrong(&probe), fields, "{probe}");
        }
    }
}
