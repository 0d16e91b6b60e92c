//! The table of each kind: its columns, and the row of an object.

use jiff::Timestamp;
use serde_json::Value;

use super::table::{Cell, Style, status};
use crate::duration::{age, human};
use crate::error::Error;
use crate::kinds::Kind;
use crate::views::{self, Metadata};

/// What to show beside the columns of the kind.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Columns {
    pub(crate) wide: bool,
    pub(crate) namespace: bool,
    pub(crate) labels: bool,
    /// Names as `process/web`, where one output has several kinds.
    pub(crate) kind: bool,
}

/// A row, and what to order it by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) order: (String, String, u64),
    pub(crate) cells: Vec<Cell>,
}

/// The headers of a kind's table.
pub(crate) fn headers(kind: Kind, columns: Columns) -> Vec<Cell> {
    let (plain, wide): (&[&str], &[&str]) = match kind {
        Kind::Process => (&["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "STATUS", "AGE"], &["COMMAND"]),
        Kind::Job => (&["NAME", "STATUS", "COMPLETIONS", "DURATION", "AGE"], &["FAILED", "COMMAND"]),
        Kind::CronJob => (
            &["NAME", "SCHEDULE", "TIMEZONE", "SUSPEND", "ACTIVE", "LAST SCHEDULE", "AGE"],
            &["NEXT SCHEDULE", "POLICY", "COMMAND"],
        ),
        Kind::Instance => (
            &["NAME", "READY", "STATUS", "RESTARTS", "PID", "AGE"],
            &["PROCESS", "EXIT", "PORTS", "REVISION", "REASON", "COMMAND"],
        ),
        Kind::Namespace => (&["NAME", "STATUS", "AGE"], &[]),
        Kind::ConfigMap => (&["NAME", "DATA", "AGE"], &[]),
        Kind::Secret => (&["NAME", "TYPE", "DATA", "AGE"], &[]),
        Kind::Source => (&["NAME", "SYNC", "HEALTH", "OBJECTS", "REVISION", "APPLIED", "AGE"], &["PATH", "MESSAGE"]),
        Kind::External => (&["NAME", "STATUS", "PID", "SINCE", "AGE"], &["DISCOVERY", "MESSAGE"]),
        Kind::Event => {
            (&["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"], &["TOPIC", "COUNT", "FIRST SEEN", "NAME"])
        }
    };
    let mut cells: Vec<Cell> = Vec::new();
    if columns.namespace && kind.is_namespaced() {
        cells.push("NAMESPACE".into());
    }
    cells.extend(plain.iter().map(|text| Cell::from(*text)));
    if columns.wide {
        cells.extend(wide.iter().map(|text| Cell::from(*text)));
    }
    if columns.labels {
        cells.push("LABELS".into());
    }
    cells
}

/// The row of an object.
pub(crate) fn row(kind: Kind, json: &[u8], columns: Columns, now: Timestamp) -> Result<Row, Error> {
    let (metadata, order, plain, wide) = match kind {
        Kind::Process => process(&views::parse(json)?, columns, now),
        Kind::Job => job(&views::parse(json)?, columns, now),
        Kind::CronJob => cronjob(&views::parse(json)?, columns, now),
        Kind::Instance => instance(&views::parse(json)?, columns, now),
        Kind::Namespace => namespace(&views::parse(json)?, columns, now),
        Kind::ConfigMap => config(Kind::ConfigMap, &views::parse(json)?, columns, now),
        Kind::Secret => config(Kind::Secret, &views::parse(json)?, columns, now),
        Kind::Source => source(&views::parse(json)?, columns, now),
        Kind::External => external(&views::parse(json)?, columns, now),
        Kind::Event => event(&views::parse(json)?, now),
    };
    let mut cells = Vec::new();
    if columns.namespace && kind.is_namespaced() {
        cells.push(metadata.namespace.clone().into());
    }
    cells.extend(plain);
    if columns.wide {
        cells.extend(wide);
    }
    if columns.labels {
        cells.push(metadata.labels.into());
    }
    Ok(Row { order: (metadata.namespace, order.0, order.1), cells })
}

/// What all kinds show.
struct Common {
    namespace: String,
    labels: String,
}

impl Common {
    fn of(metadata: &Metadata) -> Self {
        Common { namespace: metadata.namespace.clone().unwrap_or_default(), labels: metadata.labels_text() }
    }
}

type Parts = (Common, (String, u64), Vec<Cell>, Vec<Cell>);

fn name(kind: Kind, metadata: &Metadata, columns: Columns) -> Cell {
    if columns.kind { format!("{}/{}", kind.singular(), metadata.name()).into() } else { metadata.name().into() }
}

/// Text, or kubectl's word for nothing.
fn or_none(text: &str) -> Cell {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

fn process(process: &views::Process, columns: Columns, now: Timestamp) -> Parts {
    let empty = views::ProcessStatus::default();
    let seen = process.status.as_ref().unwrap_or(&empty);
    let wanted = process.spec.replicas.unwrap_or(1);
    let plain = vec![
        name(Kind::Process, &process.metadata, columns),
        format!("{}/{wanted}", seen.ready_replicas.unwrap_or(0)).into(),
        seen.updated_replicas.unwrap_or(0).to_string().into(),
        seen.available_replicas.unwrap_or(0).to_string().into(),
        status(process.summary()),
        age(process.metadata.creation_timestamp.as_deref(), now).into(),
    ];
    let wide = vec![or_none(&short_command(process.spec.command.as_deref()))];
    (Common::of(&process.metadata), (process.metadata.name().to_owned(), 0), plain, wide)
}

fn job(job: &views::Job, columns: Columns, now: Timestamp) -> Parts {
    let seen = &job.status;
    let end = seen.completion_time.as_deref().or_else(|| job.failed_at());
    let duration = match (seen.start_time.as_deref(), end.map(str::parse::<Timestamp>)) {
        (None, _) => String::new(),
        (Some(start), Some(Ok(end))) => age(Some(start), end),
        (Some(start), Some(Err(_)) | None) => age(Some(start), now),
    };
    let plain = vec![
        name(Kind::Job, &job.metadata, columns),
        status(job.summary()),
        format!("{}/{}", seen.succeeded, job.spec.completions.unwrap_or(1)).into(),
        or_none(&duration),
        age(job.metadata.creation_timestamp.as_deref(), now).into(),
    ];
    let wide = vec![seen.failed.to_string().into(), or_none(&command(job.spec.template.command.as_deref()))];
    (Common::of(&job.metadata), (job.metadata.name().to_owned(), 0), plain, wide)
}

fn cronjob(cronjob: &views::CronJob, columns: Columns, now: Timestamp) -> Parts {
    let (spec, seen) = (&cronjob.spec, &cronjob.status);
    let next = seen.next_schedule_time.as_deref().and_then(|at| at.parse::<Timestamp>().ok());
    let next = next.map(|next| format!("in {}", human((next.as_second() - now.as_second()).max(0))));
    let last = seen.last_schedule_time.as_deref().map(|at| age(Some(at), now));
    let plain = vec![
        name(Kind::CronJob, &cronjob.metadata, columns),
        or_none(&spec.when()),
        or_none(spec.time_zone.as_deref().unwrap_or_default()),
        if spec.suspend == Some(true) { "True" } else { "False" }.into(),
        seen.active.len().to_string().into(),
        or_none(&last.unwrap_or_default()),
        age(cronjob.metadata.creation_timestamp.as_deref(), now).into(),
    ];
    let wide = vec![
        or_none(&next.unwrap_or_default()),
        spec.concurrency_policy.as_deref().unwrap_or("Allow").into(),
        or_none(&command(spec.job_template.spec.template.command.as_deref())),
    ];
    (Common::of(&cronjob.metadata), (cronjob.metadata.name().to_owned(), 0), plain, wide)
}

fn instance(instance: &views::Instance, columns: Columns, now: Timestamp) -> Parts {
    let empty = views::InstanceStatus::default();
    let seen = instance.status.as_ref().unwrap_or(&empty);
    let deleting = instance.metadata.deletion_timestamp.is_some();
    let phase = if deleting && instance.phase() == "Stopping" { "Terminating" } else { instance.phase() };
    let exit = seen.last_exit.as_ref();
    let restarts = match (seen.restarts.unwrap_or(0), exit.and_then(|exit| exit.at.as_deref())) {
        (0, _) => "0".to_owned(),
        (count, None) => count.to_string(),
        (count, Some(at)) => format!("{count} ({} ago)", age(Some(at), now)),
    };
    let plain = vec![
        name(Kind::Instance, &instance.metadata, columns),
        if instance.ready() { "true" } else { "false" }.into(),
        status(phase),
        restarts.into(),
        seen.pid.filter(|pid| *pid > 0).map_or_else(|| "-".to_owned(), |pid| pid.to_string()).into(),
        age(instance.metadata.creation_timestamp.as_deref(), now).into(),
    ];
    let ports = instance
        .spec
        .ports
        .as_ref()
        .map(|ports| ports.iter().map(|(name, port)| format!("{name}:{port}")).collect::<Vec<_>>().join(","));
    let revision = match &seen.revision {
        Some(Value::String(revision)) => revision.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let template = instance.spec.template.as_ref().and_then(|template| template.command.as_deref());
    let mut reason = seen.reason.clone().filter(|reason| reason != phase).unwrap_or_default();
    if let (Some(next), "Backoff") = (&seen.next_start_at, phase)
        && let Ok(next) = next.parse::<Timestamp>()
    {
        let left = human((next.as_second() - now.as_second()).max(0));
        reason = if reason.is_empty() { format!("next in {left}") } else { format!("{reason} (next in {left})") };
    }
    let wide = vec![
        or_none(instance.process()),
        exit.map_or_else(|| "<none>".into(), |exit| exit.text().into()),
        or_none(&ports.unwrap_or_default()),
        or_none(&revision),
        or_none(&reason),
        or_none(&short_command(template)),
    ];
    // web-2 before web-10
    let order = (instance.process().to_owned(), instance.spec.ordinal.unwrap_or(0));
    (Common::of(&instance.metadata), order, plain, wide)
}

fn namespace(namespace: &views::Namespace, columns: Columns, now: Timestamp) -> Parts {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    let phase = match (phase, &namespace.metadata.deletion_timestamp) {
        (_, Some(_)) => "Terminating",
        (Some(phase), None) => phase,
        (None, None) => "Active",
    };
    let plain = vec![
        name(Kind::Namespace, &namespace.metadata, columns),
        status(phase),
        age(namespace.metadata.creation_timestamp.as_deref(), now).into(),
    ];
    (Common::of(&namespace.metadata), (namespace.metadata.name().to_owned(), 0), plain, Vec::new())
}

fn config(kind: Kind, object: &views::Config, columns: Columns, now: Timestamp) -> Parts {
    let mut plain = vec![name(kind, &object.metadata, columns)];
    if kind == Kind::Secret {
        plain.push(or_none(object.r#type.as_deref().unwrap_or_default()));
    }
    plain.push((object.data.len() + object.binary_data.len()).to_string().into());
    plain.push(age(object.metadata.creation_timestamp.as_deref(), now).into());
    (Common::of(&object.metadata), (object.metadata.name().to_owned(), 0), plain, Vec::new())
}

fn source(source: &views::Source, columns: Columns, now: Timestamp) -> Parts {
    let empty = views::SourceStatus::default();
    let seen = source.status.as_ref().unwrap_or(&empty);
    let revision = seen.last_applied_revision.as_ref().map(ostler_core::kinds::SourceRevision::short);
    let sync = if source.spec.suspend { "Suspended" } else { seen.sync.as_deref().unwrap_or("Unknown") };
    let plain = vec![
        name(Kind::Source, &source.metadata, columns),
        status(sync),
        status(seen.health.as_deref().unwrap_or("Progressing")),
        seen.objects.unwrap_or(0).to_string().into(),
        or_none(&revision.unwrap_or_default()),
        seen.last_applied_at.as_deref().map_or_else(|| "<never>".into(), |at| age(Some(at), now).into()),
        age(source.metadata.creation_timestamp.as_deref(), now).into(),
    ];
    let synced =
        views::condition(seen.conditions.as_ref(), "Synced").and_then(|condition| condition.message.as_deref());
    let message = synced.and_then(|message| message.lines().next()).unwrap_or_default();
    let wide = vec![or_none(source.spec.path.as_deref().unwrap_or_default()), or_none(message)];
    (Common::of(&source.metadata), (source.metadata.name().to_owned(), 0), plain, wide)
}

fn external(external: &views::External, columns: Columns, now: Timestamp) -> Parts {
    let empty = views::ExternalStatus::default();
    let seen = external.status.as_ref().unwrap_or(&empty);
    let plain = vec![
        name(Kind::External, &external.metadata, columns),
        status(seen.phase.as_deref().unwrap_or("NotFound")),
        or_none(&seen.pid.map(|pid| pid.to_string()).unwrap_or_default()),
        seen.since.as_deref().map_or_else(|| "<unknown>".into(), |at| age(Some(at), now).into()),
        age(external.metadata.creation_timestamp.as_deref(), now).into(),
    ];
    let ready = views::condition(seen.conditions.as_ref(), "Ready").and_then(|condition| condition.message.as_deref());
    let wide = vec![or_none(&external.discovery()), or_none(ready.unwrap_or_default())];
    (Common::of(&external.metadata), (external.metadata.name().to_owned(), 0), plain, wide)
}

fn event(event: &views::Event, now: Timestamp) -> Parts {
    let kind = event.r#type.as_deref().unwrap_or("Normal");
    let style = if kind == "Warning" { Style::Busy } else { Style::Plain };
    let plain = vec![
        age(event.last(), now).into(),
        Cell { text: kind.into(), style },
        event.reason.clone().unwrap_or_default().into(),
        event.object().into(),
        event.message.clone().unwrap_or_default().into(),
    ];
    let wide = vec![
        event.topic.as_deref().unwrap_or("lifecycle").into(),
        event.count.unwrap_or(1).to_string().into(),
        age(event.first_timestamp.as_deref().or(event.last()), now).into(),
        event.metadata.name().into(),
    ];
    let micros = event.last().and_then(|at| at.parse::<Timestamp>().ok()).map_or(0, Timestamp::as_microsecond);
    (Common::of(&event.metadata), (String::new(), micros.max(0) as u64), plain, wide)
}

/// The argument list as one line, quoted where a shell would need it.
pub(crate) fn command(words: Option<&[String]>) -> String {
    let quote = |word: &String| {
        let plain = !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "-_./:=,@%+$()".contains(c));
        if plain { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) }
    };
    words.unwrap_or_default().iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// Of a command with a script in it, the first line.
fn short_command(words: Option<&[String]>) -> String {
    let command = command(words);
    match command.split_once('\n') {
        Some((first, _)) => format!("{}…", first.trim_end()),
        None => command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_takes_one_line_of_a_table() {
        let words = ["sh", "-c", "while true; do\n  work\ndone\n"].map(str::to_owned);
        assert_eq!(short_command(Some(&words)), "sh -c 'while true; do…");
        assert_eq!(short_command(Some(&words[..2])), "sh -c");
    }

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    fn texts(cells: &[Cell]) -> Vec<&str> {
        cells.iter().map(|cell| cell.text.as_str()).collect()
    }

    const INSTANCE: &str = r#"{"metadata":{"name":"web-10","namespace":"default","labels":{"a":"b"},
        "creationTimestamp":"2026-01-01T00:50:00.000000Z","ownerReferences":[{"kind":"Process","name":"web"}]},
        "spec":{"ordinal":10,"ports":{"http":8080},"template":{"command":["sh","-c","sleep 1"]}},
        "status":{"phase":"Backoff","reason":"CrashLoop","restarts":3,"ready":false,
        "lastExit":{"attempt":3,"code":1,"at":"2026-01-01T00:59:50Z"},"nextStartAt":"2026-01-01T01:00:20Z",
        "revision":"ab12"}}"#;

    #[test]
    fn instances_show_life_and_wide_shows_why() {
        let columns = Columns { wide: true, namespace: true, labels: true, kind: true };
        let row = row(Kind::Instance, INSTANCE.as_bytes(), columns, now()).unwrap();
        assert_eq!(
            texts(&row.cells),
            [
                "default",
                "instance/web-10",
                "false",
                "Backoff",
                "3 (10s ago)",
                "-",
                "10m",
                "web",
                "code 1",
                "http:8080",
                "ab12",
                "CrashLoop (next in 20s)",
                "sh -c 'sleep 1'",
                "a=b"
            ]
        );
        assert_eq!(row.cells.len(), headers(Kind::Instance, columns).len());
        assert_eq!(row.order, ("default".into(), "web".into(), 10));
    }

    #[test]
    fn processes_show_their_counts() {
        let json = r#"{"metadata":{"name":"web","creationTimestamp":"2025-12-30T01:00:00Z"},"spec":{"replicas":3},
            "status":{"readyReplicas":2,"availableReplicas":2,"updatedReplicas":3,"conditions":[
            {"type":"Available","status":"False","reason":"InstancesNotReady"}]}}"#;
        let row = row(Kind::Process, json.as_bytes(), Columns::default(), now()).unwrap();
        assert_eq!(texts(&row.cells), ["web", "2/3", "3", "2", "InstancesNotReady", "2d"]);
        assert_eq!(headers(Kind::Process, Columns::default()).len(), row.cells.len());
    }

    #[test]
    fn events_name_their_object() {
        let json = r#"{"involvedObject":{"kind":"Instance","name":"web-0"},"type":"Warning","reason":"Crashed",
            "message":"exited with code 1","count":4,"lastTimestamp":"2026-01-01T00:59:00Z"}"#;
        let row = row(Kind::Event, json.as_bytes(), Columns { wide: true, ..Columns::default() }, now()).unwrap();
        assert_eq!(
            texts(&row.cells),
            ["60s", "Warning", "Crashed", "instance/web-0", "exited with code 1", "lifecycle", "4", "60s", ""]
        );
    }

    #[test]
    fn an_empty_object_still_has_a_row_of_every_kind() {
        let columns = Columns { wide: true, labels: true, ..Columns::default() };
        for kind in Kind::ALL {
            let row = row(kind, b"{}", columns, now()).unwrap();
            assert_eq!(row.cells.len(), headers(kind, columns).len(), "{kind:?}");
        }
    }
}
