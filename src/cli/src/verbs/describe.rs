//! `ostler describe`: everything about an object on one page.

use std::fmt::Write as _;

use jiff::Timestamp;
use ostler_core::graph::Node;
use ostler_core::kinds::{
    Dependency, EndCause, FailurePolicy, GROUP, HookKind, HooksStatus, ProcessSpec, Severities, Severity,
    SourceRevision,
};
use ostler_core::restart;
use ostler_core::threshold::Rules;
use ostler_rpc::v1;
use serde_json::Value;

use crate::client::{Client, selector};
use crate::ctx::Ctx;
use crate::duration::{age, human};
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::output::jsonpath::text;
use crate::output::rows::{self, Columns};
use crate::output::table::{Cell, Printer, row};
use crate::targets;
use crate::verbs::top::bytes;
use crate::views;

/// Show everything about objects, with their events
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ostler describe process/web
  ostler describe instance web-0
  ostler describe source/apps")]
pub(crate) struct Args {
    /// KIND NAME…, KIND/NAME… or KIND
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// Those with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
}

/// "process/db (Ready, within 1m)"
fn depends_on(dependency: &Dependency) -> String {
    let within = dependency.timeout.map_or(String::new(), |timeout| format!(", within {timeout}"));
    format!("{} ({}{within})", dependency.shown(), dependency.condition().name())
}

/// So many events are shown, the latest.
const EVENTS: usize = 20;

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let namespace = ctx.settings.namespace().to_owned();
    let mut client = Client::connect(&ctx.settings).await?;
    let mut first = true;
    for target in targets::parse(&args.targets)? {
        let mut objects = Vec::new();
        if target.names.is_empty() {
            let wanted =
                v1::Selector { labels: args.selector.clone().unwrap_or_default(), ..selector(target.kind, &namespace) };
            objects = client.list(wanted).await?;
        }
        for name in &target.names {
            objects.push(client.get(target.kind, &namespace, name).await?);
        }
        for object in objects {
            if !std::mem::take(&mut first) {
                writeln!(ctx.out, "\n")?;
            }
            let page = page(&mut client, target.kind, &object).await?;
            ctx.out.write_all(page.as_bytes())?;
        }
    }
    if first {
        ctx.note("No resources found")?;
    }
    Ok(Exit::Ok)
}

async fn page(client: &mut Client, kind: Kind, object: &v1::Object) -> Result<String, Error> {
    let now = Timestamp::now();
    let value: Value = serde_json::from_slice(&object.json)?;
    let meta = views::parse::<views::Bare>(&object.json)?.metadata;
    let namespace = meta.namespace.clone().unwrap_or_default();
    let mut page = Page::default();
    page.identity(&meta, now);
    match kind {
        Kind::Process => {
            page.process(&value);
            page.needed_by(client, kind, &meta).await?;
            page.conditions(&value, now);
            let wanted =
                v1::Selector { fields: format!("owner={}", meta.name()), ..selector(Kind::Instance, &namespace) };
            page.table(Kind::Instance, "Instances", &client.list(wanted).await?, now)?;
        }
        Kind::Job => {
            page.job(&value, now);
            page.needed_by(client, kind, &meta).await?;
            page.conditions(&value, now);
            let wanted =
                v1::Selector { fields: format!("owner={}", meta.name()), ..selector(Kind::Instance, &namespace) };
            page.table(Kind::Instance, "Instances", &client.list(wanted).await?, now)?;
        }
        Kind::CronJob => {
            page.cronjob(&value, now);
            let mut jobs = client.list(selector(Kind::Job, &namespace)).await?;
            let uid = meta.uid.clone().unwrap_or_default();
            jobs.retain(|job| views::parse::<views::Bare>(&job.json).is_ok_and(|job| job.metadata.is_owned_by(&uid)));
            page.table(Kind::Job, "Jobs", &jobs, now)?;
        }
        Kind::Instance => {
            page.instance(&value, now);
            page.conditions(&value, now);
            page.probes(&value, now)?;
            if value["status"]["pid"].is_i64() {
                let names = vec![meta.name().to_owned()];
                let wanted = v1::Selector { names, ..selector(Kind::Instance, &namespace) };
                let mut api = client.api.clone();
                let request = v1::UsageRequest { selector: Some(wanted), pss: true };
                let told = client.once(api.usage(request)).await?;
                for usage in &told.instances {
                    page.usage(usage);
                }
            }
            page.history(&value, now)?;
            page.line("Logs", format_args!("ostler logs -n {namespace} {}", meta.name()));
        }
        Kind::Source => {
            page.source(&value, now);
            page.conditions(&value, now);
        }
        Kind::External => {
            page.line("Discovery", views::discovery(&value["spec"]["discovery"]));
            page.field("Interval", &value["spec"]["interval"]);
            let signals: Vec<String> =
                value["spec"]["allowedSignals"].as_array().into_iter().flatten().map(text).collect();
            page.line("Signals", if signals.is_empty() { "none are sent".to_owned() } else { signals.join(", ") });
            page.field("Status", &value["status"]["phase"]);
            page.field("PID", &value["status"]["pid"]);
            page.field("Since", &value["status"]["since"]);
            let candidates: Vec<String> =
                value["status"]["candidates"].as_array().into_iter().flatten().map(text).collect();
            if !candidates.is_empty() {
                page.line("Candidates", candidates.join(", "));
            }
            page.conditions(&value, now);
            if value["status"]["pid"].is_i64() {
                let names = vec![meta.name().to_owned()];
                let wanted = v1::Selector { names, ..selector(Kind::External, &namespace) };
                let mut api = client.api.clone();
                let request = v1::UsageRequest { selector: Some(wanted), pss: true };
                for usage in &client.once(api.usage(request)).await?.instances {
                    page.usage(usage);
                }
            }
        }
        Kind::ConfigMap | Kind::Secret => page.config(&value),
        Kind::Namespace => page.field("Status", &value["status"]["phase"]),
        Kind::Event => {
            for field in ["type", "reason", "message", "count", "firstTimestamp", "lastTimestamp"] {
                page.field(field, &value[field]);
            }
            page.field(
                "Object",
                &format!("{}/{}", text(&value["involvedObject"]["kind"]), text(&value["involvedObject"]["name"]))
                    .into(),
            );
            return Ok(page.text);
        }
    }
    let fields = format!("involvedObject.kind={},involvedObject.name={}", kind.name(), meta.name());
    let mut events = client.list(v1::Selector { fields, ..selector(Kind::Event, &namespace) }).await?;
    let last = |object: &v1::Object| {
        views::parse::<views::Event>(&object.json).ok().and_then(|event| event.last().map(str::to_owned))
    };
    events.sort_by_key(last);
    let skip = events.len().saturating_sub(EVENTS);
    page.table(Kind::Event, "Events", &events[skip..], now)?;
    Ok(page.text)
}

/// Text that grows by sections.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// The keys of a ConfigMap or Secret, and how much each holds; never what.
    fn config(&mut self, value: &Value) {
        self.field("Type", &value["type"]);
        self.field("Immutable", &value["immutable"]);
        let entries = ["data", "binaryData"].iter().filter_map(|field| Some((*field, value[*field].as_object()?)));
        let mut any = false;
        for (field, values) in entries {
            for (key, value) in values {
                if !std::mem::replace(&mut any, true) {
                    self.text.push_str("Data:\n");
                }
                let text = value.as_str().unwrap_or_default();
                // A Secret is read without values.
                let size = match text.strip_prefix("<redacted: ").and_then(|rest| rest.strip_suffix('>')) {
                    Some(size) => size.to_owned(),
                    None if field == "data" => format!("{} bytes", text.len()),
                    None => format!("{} bytes", ostler_core::config::decode(text).map_or(0, |bytes| bytes.len())),
                };
                let _ = writeln!(self.text, "  {key}: {size}");
            }
        }
        if !any {
            self.line("Data", "<none>");
        }
    }

    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.text, "{:<16}{value}", format!("{name}:"));
    }

    /// A line, unless there is nothing to say.
    fn field(&mut self, name: &str, value: &Value) {
        if !value.is_null() {
            self.line(name, text(value));
        }
    }

    fn identity(&mut self, meta: &views::Metadata, now: Timestamp) {
        self.line("Name", meta.name());
        if let Some(namespace) = &meta.namespace {
            self.line("Namespace", namespace);
        }
        let indent = format!("\n{:16}", "");
        self.line("Labels", views::pairs(meta.labels.as_ref(), &indent).unwrap_or_else(|| "<none>".into()));
        self.line("Annotations", views::pairs(meta.annotations.as_ref(), &indent).unwrap_or_else(|| "<none>".into()));
        if let Some(created) = &meta.creation_timestamp {
            self.line("Created", format_args!("{created} ({} ago)", age(Some(created), now)));
        }
        if let Some(deleted) = &meta.deletion_timestamp {
            self.line("Deleting", format_args!("since {deleted} ({})", age(Some(deleted), now)));
        }
        if let Some(generation) = meta.generation.filter(|generation| *generation > 0) {
            self.line("Generation", generation);
        }
    }

    /// What is run, from the spec of a Process or the template of an Instance.
    fn template(&mut self, spec: &Value) {
        let words = |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().map(text).collect() };
        let mut command = words(&spec["command"]);
        command.extend(words(&spec["args"]));
        self.line("Command", rows::command(Some(&command)));
        self.field("Directory", &spec["workingDir"]);
        self.field("User", &spec["user"]);
        self.field("Group", &spec["group"]);
        let pairs = |value: &Value, of: &str| -> Vec<String> {
            let items = value.as_array().into_iter().flatten();
            items.map(|item| format!("{}={}", text(&item["name"]), text(&item[of]))).collect()
        };
        let env = pairs(&spec["env"], "value");
        if !env.is_empty() {
            self.line("Environment", env.join(&format!("\n{:16}", "")));
        }
        let inherited = words(&spec["inheritEnv"]);
        if !inherited.is_empty() {
            self.line("Inherited", inherited.join(", "));
        }
        let ports = pairs(&spec["ports"], "port");
        if !ports.is_empty() {
            self.line("Ports", ports.join(", "));
        }
        self.field("Restart policy", &spec["restartPolicy"]);
        let backoff = &spec["backoff"];
        if backoff.is_object() {
            let retries = match &backoff["maxRetries"] {
                Value::Null => String::new(),
                limit => format!(", at most {} retries", text(limit)),
            };
            self.line(
                "Backoff",
                format_args!(
                    "{} × {} up to {}, jitter {}, reset after {}{retries}",
                    text(&backoff["initial"]),
                    text(&backoff["factor"]),
                    text(&backoff["max"]),
                    text(&backoff["jitter"]),
                    text(&backoff["resetAfter"])
                ),
            );
        }
        let breaker = &spec["circuitBreaker"];
        if breaker.is_object() {
            self.line(
                "Circuit breaker",
                format_args!(
                    "opens after {} failures in {}, for {}",
                    text(&breaker["failures"]),
                    text(&breaker["window"]),
                    text(&breaker["cooldown"])
                ),
            );
        }
        self.restarts(spec);
        self.thresholds(spec);
        let stop = &spec["stop"];
        if stop.is_object() {
            self.line("Stop", format_args!("{}, SIGKILL after {}", text(&stop["signal"]), text(&stop["gracePeriod"])));
        }
        self.hooks(spec);
    }

    /// What runs around the life of an instance.
    fn hooks(&mut self, spec: &Value) {
        let Ok(spec) = serde_json::from_value::<ProcessSpec>(spec.clone()) else { return };
        for (kind, hook) in spec.lifecycle.iter().flat_map(|lifecycle| lifecycle.hooks()) {
            let what = match (&hook.exec, &hook.http_get) {
                (Some(exec), _) => rows::command(Some(&exec.command)),
                (None, Some(get)) => format!("GET {}", get.path),
                (None, None) => continue,
            };
            let ignored = if hook.failure_policy == Some(FailurePolicy::Ignore) { ", failures ignored" } else { "" };
            self.line(kind.reason(), format_args!("{what}, at most {}{ignored}", hook.timeout));
        }
    }

    /// What has come of them.
    fn hook_results(&mut self, status: &Value, now: Timestamp) {
        let Ok(hooks) = serde_json::from_value::<HooksStatus>(status["hooks"].clone()) else { return };
        for kind in HookKind::ALL {
            let Some(status) = hooks.get(kind) else { continue };
            let word = if status.succeeded { "succeeded" } else { "failed" };
            let at = status.at.map(|at| at.to_string());
            let ago = at.map_or(String::new(), |at| format!(" {} ago", age(Some(&at), now)));
            let said = if status.message.is_empty() { String::new() } else { format!(": {}", status.message) };
            self.line("Hook", format_args!("{} of attempt {} {word}{ago}{said}", kind.name(), status.attempt));
        }
    }

    /// The policy that follows each end, as it comes out when everything is multiplied.
    fn restarts(&mut self, spec: &Value) {
        if let Some(words) = spec["fallback"]["command"].as_array() {
            let words: Vec<String> = words.iter().map(text).collect();
            self.line("Fallback", rows::command(Some(&words)));
        }
        // A newer daemon may know more than this program; then the fields above have to do.
        let Ok(spec) = serde_json::from_value::<ProcessSpec>(spec.clone()) else { return };
        let Some(restart) = &spec.restart else { return };
        let Severities { warning, critical, emergency } = &restart.severities;
        let profile =
            restart.profile.map_or("none".to_owned(), |kind| format!("{} × {}", kind.name(), kind.multiplier()));
        self.line(
            "Restarts",
            format_args!("profile {profile}; warning × {warning}, critical × {critical}, emergency × {emergency}"),
        );
        let mut rows = vec![row(["AFTER", "FIRST DELAY", "FACTOR", "UP TO", "RETRIES", "COUNTED"])];
        for cause in EndCause::ALL {
            let policy = restart::policy(&spec, cause, Severity::Critical);
            let backoff = &policy.backoff;
            rows.push(row([
                cause.name(),
                &backoff.initial.to_string(),
                &format!("× {}", backoff.factor),
                &backoff.max.to_string(),
                &backoff.max_retries.map_or("no limit".to_owned(), |most| most.to_string()),
                if policy.own_count { "by itself" } else { "with others" },
            ]));
        }
        // Writing into memory does not fail.
        let _ = self.rows("Restart policies, critical ends", &rows);
    }

    /// From which use on something is done, and what.
    fn thresholds(&mut self, spec: &Value) {
        let Ok(spec) = serde_json::from_value::<ProcessSpec>(spec.clone()) else { return };
        if let Some(limits) = spec.limits() {
            let limits: Vec<String> =
                limits.iter().map(|(kind, value)| format!("{} {}", kind.name(), kind.show(value))).collect();
            self.line("Limits", limits.join(", "));
        }
        let Some(rules) = Rules::of(&spec, None) else { return };
        let mut rows = vec![row(["OF", "WARNING", "CRITICAL", "FOR", "POLICY"])];
        for (threshold, lasting) in &rules.thresholds {
            let show = |level: Option<u64>| level.map_or("-".to_owned(), |level| threshold.measure.show(level));
            rows.push(row([
                threshold.measure.name(),
                &show(threshold.warning),
                &show(threshold.critical),
                &lasting.to_string(),
                threshold.policy.name(),
            ]));
        }
        let title = format!(
            "Thresholds, from {} after a start, what is shorter than {} aside",
            rules.startup_grace, rules.spike_tolerance
        );
        // Writing into memory does not fail.
        let _ = self.rows(&title, &rows);
    }

    fn process(&mut self, value: &Value) {
        let (spec, status) = (&value["spec"], &value["status"]);
        let count = |field: &str| status[field].as_u64().unwrap_or(0);
        self.line(
            "Replicas",
            format_args!(
                "{} desired | {} total | {} updated | {} ready | {} available",
                spec["replicas"].as_u64().unwrap_or(1),
                count("replicas"),
                count("updatedReplicas"),
                count("readyReplicas"),
                count("availableReplicas")
            ),
        );
        self.field("Revision", &status["revision"]);
        if let Some(group) = value["metadata"]["labels"][GROUP].as_str() {
            self.line("Group", group);
        }
        self.depends_on(&spec["dependsOn"]);
        self.template(spec);
    }

    /// Who depends on a Process or Job.
    async fn needed_by(&mut self, client: &mut Client, kind: Kind, meta: &views::Metadata) -> Result<(), Error> {
        let namespace = meta.namespace.clone().unwrap_or_default();
        let mut names = Vec::new();
        for (other, path) in [(Kind::Process, "/spec/dependsOn"), (Kind::Job, "/spec/template/dependsOn")] {
            for object in client.list(selector(other, "")).await? {
                let value: Value = serde_json::from_slice(&object.json)?;
                let list = value.pointer(path).cloned().unwrap_or(Value::Array(Vec::new()));
                let list: Vec<Dependency> = serde_json::from_value(list)?;
                let own = text(&value["metadata"]["namespace"]);
                let this = Node::new(kind, namespace.as_str(), meta.name());
                if let Some(dependency) = list.iter().find(|it| Node::of(it, &own) == this) {
                    let node = Node::new(other, own.as_str(), text(&value["metadata"]["name"]));
                    names.push(format!("{} ({})", node.seen_from(&namespace), dependency.condition().name()));
                }
            }
        }
        if !names.is_empty() {
            self.line("Needed by", names.join(", "));
        }
        Ok(())
    }

    fn depends_on(&mut self, list: &Value) {
        let list: Result<Vec<Dependency>, _> = serde_json::from_value(list.clone());
        let words = list.unwrap_or_default().iter().map(depends_on).collect::<Vec<_>>();
        if !words.is_empty() {
            self.line("Depends on", words.join(", "));
        }
    }

    fn source(&mut self, value: &Value, now: Timestamp) {
        let (spec, status) = (&value["spec"], &value["status"]);
        self.field("Directory", &spec["path"]);
        self.field("Into namespace", &spec["namespace"]);
        self.field("Interval", &spec["interval"]);
        let prune = if spec["prune"] == false {
            "off".to_owned()
        } else if spec["allowPrune"] == true {
            "on, without a limit".to_owned()
        } else {
            format!("on, at most {} of the objects at a time", text(&spec["maxDeletions"]))
        };
        self.line("Prune", prune);
        self.line("Drift", if spec["healDrift"] == false { "reported" } else { "healed" });
        if spec["suspend"] == true {
            self.line("Suspended", "yes");
        }
        let others: Vec<String> = spec["dependsOn"].as_array().into_iter().flatten().map(text).collect();
        if !others.is_empty() {
            self.line("Depends on", others.join(", "));
        }
        self.line("Status", format_args!("{}, {}", text(&status["sync"]), text(&status["health"])));
        self.field("Objects", &status["objects"]);
        for (title, revision, at) in [
            ("In directory", "revision", ""),
            ("Last attempted", "lastAttemptedRevision", "lastAttemptedAt"),
            ("In force", "lastAppliedRevision", "lastAppliedAt"),
        ] {
            let Ok(revision) = serde_json::from_value::<SourceRevision>(status[revision].clone()) else { continue };
            let ago = status[at].as_str().map_or(String::new(), |at| format!(", {} ago", age(Some(at), now)));
            let commit = if revision.commit.is_empty() { String::new() } else { format!(" ({})", revision.hash) };
            self.line(title, format_args!("{}{commit}{ago}", revision.short()));
        }
        for (number, drift) in status["drift"].as_array().into_iter().flatten().enumerate() {
            self.line(if number == 0 { "Drifted" } else { "" }, text(drift));
        }
    }

    /// What a Job does, from its spec or the template of a CronJob.
    fn job_spec(&mut self, spec: &Value) {
        self.field("Completions", &spec["completions"]);
        self.field("Parallelism", &spec["parallelism"]);
        self.field("Backoff limit", &spec["backoffLimit"]);
        let backoff = &spec["backoff"];
        if backoff.is_object() {
            self.line(
                "Retries",
                format_args!(
                    "after {} × {} up to {}, jitter {}",
                    text(&backoff["initial"]),
                    text(&backoff["factor"]),
                    text(&backoff["max"]),
                    text(&backoff["jitter"])
                ),
            );
        }
        self.field("Active deadline", &spec["activeDeadline"]);
        self.field("TTL", &spec["ttlAfterFinished"]);
        self.depends_on(&spec["template"]["dependsOn"]);
        self.template(&spec["template"]);
    }

    fn time(&mut self, name: &str, value: &Value, now: Timestamp) {
        if let Some(at) = value.as_str() {
            self.line(name, format_args!("{at} ({} ago)", age(Some(at), now)));
        }
    }

    fn job(&mut self, value: &Value, now: Timestamp) {
        let (spec, status) = (&value["spec"], &value["status"]);
        for owner in value["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
            let kind = text(&owner["kind"]).to_lowercase();
            self.line("Controlled by", format_args!("{kind}/{}", text(&owner["name"])));
        }
        let job = serde_json::from_value::<views::Job>(value.clone()).unwrap_or_default();
        self.line("Status", job.summary());
        self.field("Suspend", &spec["suspend"]);
        let count = |field: &str| status[field].as_u64().unwrap_or(0);
        self.line(
            "Runs",
            format_args!("{} active | {} succeeded | {} failed", count("active"), count("succeeded"), count("failed")),
        );
        self.time("Started", &status["startTime"], now);
        self.time("Completed", &status["completionTime"], now);
        self.field("Next retry", &status["nextRetryTime"]);
        self.job_spec(spec);
    }

    fn cronjob(&mut self, value: &Value, now: Timestamp) {
        let (spec, status) = (&value["spec"], &value["status"]);
        let view = serde_json::from_value::<views::CronJob>(value.clone()).unwrap_or_default();
        self.line("Schedule", view.spec.when());
        self.field("Time zone", &spec["timeZone"]);
        self.field("Concurrency", &spec["concurrencyPolicy"]);
        self.field("Start deadline", &spec["startingDeadline"]);
        self.field("Suspend", &spec["suspend"]);
        self.line(
            "History",
            format_args!(
                "{} that succeeded, {} that failed",
                text(&spec["successfulJobsHistoryLimit"]),
                text(&spec["failedJobsHistoryLimit"])
            ),
        );
        self.time("Last schedule", &status["lastScheduleTime"], now);
        self.time("Last success", &status["lastSuccessfulTime"], now);
        self.field("Next schedule", &status["nextScheduleTime"]);
        self.job_spec(&spec["jobTemplate"]["spec"]);
    }

    fn instance(&mut self, value: &Value, now: Timestamp) {
        let (spec, status) = (&value["spec"], &value["status"]);
        if spec["job"].is_object() {
            self.line("Controlled by", format_args!("job/{}", text(&spec["job"]["name"])));
            self.field("Index", &spec["job"]["index"]);
        } else {
            self.line("Controlled by", format_args!("process/{}", text(&spec["process"])));
        }
        let mut phase = text(&status["phase"]);
        if let Some(reason) = status["reason"].as_str().filter(|reason| !reason.is_empty() && *reason != phase) {
            let _ = write!(phase, " ({reason})");
        }
        self.line("Status", phase);
        self.field("Message", &status["message"]);
        self.field("Ready", &status["ready"]);
        self.field("PID", &status["pid"]);
        if let Some(started) = status["startedAt"].as_str() {
            self.line("Started", format_args!("{started} ({} ago)", age(Some(started), now)));
        }
        self.field("Attempt", &status["attempt"]);
        self.field("Restarts", &status["restarts"]);
        if let Ok(exit) = serde_json::from_value::<views::LastExit>(status["lastExit"].clone()) {
            let why = exit.error.clone().or_else(|| exit.unknown.clone());
            let why = why.map_or(String::new(), |why| format!(": {why}"));
            let at = exit.at.as_deref();
            let ago = at.map_or(String::new(), |at| format!(" at {at} ({} ago)", age(Some(at), now)));
            let cause = match (&exit.cause, &exit.severity) {
                (Some(cause), Some(severity)) => format!("; {cause}, {severity}"),
                (_, _) => String::new(),
            };
            self.line("Last exit", format_args!("{}{why}{ago}{cause}", exit.text()));
        }
        self.hook_results(status, now);
        if let Some(since) = status["fallback"]["since"].as_str() {
            self.line("In its place", format_args!("the fallback, since {since} ({} ago)", age(Some(since), now)));
        }
        let resources = &status["resources"];
        let adjusted: Vec<String> = resources["adjusted"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|it| format!("{} {}%", text(&it["resource"]), text(&it["percent"])))
            .collect();
        if !adjusted.is_empty() {
            self.line("Adjusted", format_args!("{} of what is declared", adjusted.join(", ")));
        }
        if let Some(since) = resources["throttled"]["since"].as_str() {
            let (cpu, of) = (text(&resources["throttled"]["cpu"]), text(&resources["throttled"]["resource"]));
            self.line("Throttled", format_args!("to {cpu} for {of}, since {since} ({} ago)", age(Some(since), now)));
        }
        self.field("Next start", &status["nextStartAt"]);
        let breaker = &status["breaker"];
        if let Some(until) = breaker["openUntil"].as_str() {
            self.line("Breaker", format_args!("open until {until}"));
        } else if breaker["halfOpen"] == true {
            self.line("Breaker", "half open: this attempt is the trial");
        }
        self.field("Stopped by hand", &spec["stoppedAt"]);
        if let Some(stopping) = status["stopping"].as_object() {
            let field = |name: &str| stopping.get(name).map(text).unwrap_or_default();
            self.line(
                "Stopping",
                format_args!("{} since {}, SIGKILL at {}", field("reason"), field("since"), field("killAt")),
            );
        }
        if let Some(ports) = spec["ports"].as_object().filter(|ports| !ports.is_empty()) {
            let ports: Vec<String> = ports.iter().map(|(name, port)| format!("{name}={}", text(port))).collect();
            self.line("Ports", ports.join(", "));
        }
        self.field("Revision", &status["revision"]);
        let mut template = spec["template"].clone();
        if let Some(template) = template.as_object_mut() {
            // Shown above as the numbers this instance has.
            template.remove("ports");
        }
        self.template(&template);
    }

    fn usage(&mut self, usage: &v1::InstanceUsage) {
        let cpu = usage.cpu.map_or_else(|| "not measured yet".to_owned(), |cpu| format!("{cpu}m"));
        self.line("CPU", format_args!("{cpu}, {:.1} s in all", usage.cpu_time as f64 / 1e9));
        let mut memory = bytes(usage.rss);
        if let Some(pss) = usage.pss {
            let _ = write!(memory, ", shared pages divided {}", bytes(pss));
        }
        if let Some(growth) = usage.rss_per_hour {
            let verb = if growth < 0.0 { "shrinks" } else { "grows" };
            let _ = write!(memory, ", {verb} {}/h", bytes(growth.abs() as u64));
        }
        if let Some(seconds) = usage.memory_limit_in {
            let _ = write!(memory, ", limit in {}", human(i64::try_from(seconds).unwrap_or(i64::MAX)));
        }
        self.line("Memory", memory);
        let storage = match (usage.read_bytes, usage.written_bytes) {
            (Some(read), Some(written)) => format!("{} read, {} written", bytes(read), bytes(written)),
            _ => "unknown".to_owned(),
        };
        self.line("Storage", storage);
        let network = match &usage.network {
            Some(v1::instance_usage::Network::NetworkCounted(counted)) => {
                format!("{} received, {} sent", bytes(counted.received), bytes(counted.sent))
            }
            Some(v1::instance_usage::Network::NetworkUnsupported(why)) => format!("Unsupported: {why}"),
            None => "unknown".to_owned(),
        };
        self.line("Network", network);
        let files = usage.open_files.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
        self.line("Tree", format_args!("{} processes, {} threads, {files} open files", usage.processes, usage.threads));
    }

    fn rows(&mut self, title: &str, rows: &[Vec<Cell>]) -> Result<(), Error> {
        let mut out = Vec::new();
        Printer::new(false).print(&mut out, rows)?;
        let _ = writeln!(self.text, "{title}:");
        for line in String::from_utf8_lossy(&out).lines() {
            let _ = writeln!(self.text, "  {line}");
        }
        Ok(())
    }

    fn conditions(&mut self, value: &Value, now: Timestamp) {
        let conditions: Vec<views::Condition> =
            serde_json::from_value(value["status"]["conditions"].clone()).unwrap_or_default();
        if conditions.is_empty() {
            return;
        }
        let mut rows = vec![row(["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"])];
        for condition in &conditions {
            let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
            rows.push(row([
                &or_empty(&condition.r#type),
                &or_empty(&condition.status),
                &age(condition.last_transition_time.as_deref(), now),
                &or_empty(&condition.reason),
                &or_empty(&condition.message),
            ]));
        }
        // Writing into memory does not fail.
        let _ = self.rows("Conditions", &rows);
    }

    /// What the probes check, and what they had found when their verdicts last changed.
    fn probes(&mut self, value: &Value, now: Timestamp) -> Result<(), Error> {
        let (template, status) = (&value["spec"]["template"], &value["status"]["probes"]);
        let mut rows = vec![row(["PROBE", "CHECK", "EVERY", "VERDICT", "SINCE", "CHECKS", "FAILED", "OUTPUT"])];
        for kind in ["startup", "readiness", "liveness"] {
            let (probe, found) = (&template[format!("{kind}Probe")], &status[kind]);
            let Some(fields) = probe.as_object() else { continue };
            let check = fields.iter().find(|(_, field)| field.is_object()).map(|(name, _)| name.as_str());
            let number = |field: &str| found[field].as_u64().unwrap_or(0);
            let failed = match number("failures") {
                0 => number("failed").to_string(),
                row => format!("{} ({row} in a row)", number("failed")),
            };
            rows.push(row([
                kind,
                check.unwrap_or_default(),
                &text(&probe["interval"]),
                found["verdict"].as_str().unwrap_or("Unknown"),
                &age(found["since"].as_str(), now),
                &number("checks").to_string(),
                &failed,
                found["output"].as_str().unwrap_or_default(),
            ]));
        }
        if rows.len() > 1 {
            self.rows("Probes", &rows)?;
        }
        let notify = &status["notify"];
        if notify.is_object() {
            self.field("Says", &notify["text"]);
            self.field("Main PID", &notify["mainPid"]);
        }
        Ok(())
    }

    fn history(&mut self, value: &Value, now: Timestamp) -> Result<(), Error> {
        let Some(entries) = value["status"]["history"].as_array().filter(|entries| !entries.is_empty()) else {
            return Ok(());
        };
        let mut rows = vec![row(["AGE", "PHASE", "REASON", "MESSAGE"])];
        for entry in entries {
            let field = |name: &str| entry[name].as_str().unwrap_or_default();
            let reason = if field("reason") == field("phase") { "" } else { field("reason") };
            rows.push(row([&age(entry["at"].as_str(), now), field("phase"), reason, field("message")]));
        }
        self.rows("History", &rows)
    }

    fn table(&mut self, kind: Kind, title: &str, objects: &[v1::Object], now: Timestamp) -> Result<(), Error> {
        if objects.is_empty() {
            self.line(title, "<none>");
            return Ok(());
        }
        let mut rows = Vec::new();
        for object in objects {
            rows.push(rows::row(kind, &object.json, Columns::default(), now)?);
        }
        rows.sort_by(|a, b| a.order.cmp(&b.order));
        let mut cells = vec![rows::headers(kind, Columns::default())];
        cells.extend(rows.into_iter().map(|row| row.cells));
        self.rows(title, &cells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    #[test]
    fn an_instance_tells_its_life() {
        let value = json!({
            "spec": {"process": "web", "template": {"command": ["sh", "-c", "exit 1"], "restartPolicy": "Always"}},
            "status": {"phase": "Backoff", "reason": "CrashLoop", "restarts": 2, "attempt": 3,
                "lastExit": {"attempt": 3, "code": 1, "at": "2026-01-01T00:59:00Z"},
                "history": [{"phase": "Running", "at": "2026-01-01T00:58:00Z", "reason": "Started"}]}
        });
        let mut page = Page::default();
        page.instance(&value, now());
        page.history(&value, now()).unwrap();
        assert_eq!(
            page.text,
            "Controlled by:  process/web\nStatus:         Backoff (CrashLoop)\nAttempt:        3\nRestarts:       \
             2\nLast exit:      code 1 at 2026-01-01T00:59:00Z (60s ago)\nCommand:        sh -c 'exit 1'\nRestart \
             policy: Always\nHistory:\n  AGE   PHASE     REASON    MESSAGE\n  2m    Running   Started\n"
        );
    }

    #[test]
    fn usage_says_where_memory_goes_and_what_the_kernel_does_not_count() {
        let mut page = Page::default();
        page.usage(&v1::InstanceUsage {
            cpu: Some(120),
            cpu_time: 2_500_000_000,
            rss: 100 << 20,
            pss: Some(90 << 20),
            rss_per_hour: Some(12.0 * f64::from(1 << 20)),
            memory_limit_in: Some(3 * 3600),
            open_files: Some(9),
            processes: 2,
            threads: 5,
            network: Some(v1::instance_usage::Network::NetworkUnsupported("shared".into())),
            ..v1::InstanceUsage::default()
        });
        assert_eq!(
            page.text,
            "CPU:            120m, 2.5 s in all\nMemory:         100Mi, shared pages divided 90Mi, grows 12Mi/h, limit \
             in 3h\nStorage:        unknown\nNetwork:        Unsupported: shared\nTree:           2 processes, 5 \
             threads, 9 open files\n"
        );
    }

    #[test]
    fn the_policy_that_follows_each_end_is_shown_as_it_comes_out() {
        let mut page = Page::default();
        page.restarts(&json!({"command": ["x"], "fallback": {"command": ["safe", "mode"]},
            "backoff": {"initial": "1s", "max": "1m", "maxRetries": 3},
            "restart": {"profile": "Scheduler", "onLiveness": {"initial": "10s", "factor": 1.5}}}));
        let shown: Vec<String> =
            page.text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            shown,
            [
                "Fallback: safe mode",
                "Restarts: profile Scheduler × 2.5; warning × 0.5, critical × 1, emergency × 2",
                "Restart policies, critical ends:",
                "AFTER FIRST DELAY FACTOR UP TO RETRIES COUNTED",
                "Crash 2s500ms × 2 2m30s 8 with others",
                "ExecFailure 2s500ms × 2 2m30s 8 with others",
                "Startup 2s500ms × 2 2m30s 8 with others",
                "Liveness 25s × 1.5 2m30s 8 by itself",
                "Resource 2s500ms × 2 2m30s 8 with others",
            ]
        );
        let mut plain = Page::default();
        plain.restarts(&json!({"command": ["x"]}));
        assert_eq!(plain.text, "");
    }

    #[test]
    fn hooks_are_shown_with_what_came_of_them() {
        let mut page = Page::default();
        page.hooks(&json!({"command": ["x"], "lifecycle": {
            "preStart": {"exec": {"command": ["mkdir", "-p", "/x"]}, "failurePolicy": "Ignore"},
            "preStop": {"httpGet": {"port": 80, "path": "/bye"}, "timeout": "5s"}}}));
        page.hook_results(
            &json!({"hooks": {"preStart": {"attempt": 3, "succeeded": false, "message": "exit code 1"}}}),
            now(),
        );
        let shown: Vec<String> =
            page.text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            shown,
            [
                "PreStart: mkdir -p /x, at most 30s, failures ignored",
                "PreStop: GET /bye, at most 5s",
                "Hook: preStart of attempt 3 failed: exit code 1",
            ]
        );
    }

    #[test]
    fn limits_and_thresholds_are_shown_with_what_is_done() {
        let mut page = Page::default();
        page.thresholds(&json!({"command": ["x"], "resources": {"limits": {"memory": "512Mi", "processes": 9},
            "thresholds": {"memory": {"warning": "400Mi", "critical": "480Mi", "policy": "Restart", "for": "1m"},
                "cpu": {"critical": "500m"}}}}));
        let shown: Vec<String> =
            page.text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            shown,
            [
                "Limits: memory 512Mi, processes 9",
                "Thresholds, from 2m after a start, what is shorter than 30s aside:",
                "OF WARNING CRITICAL FOR POLICY",
                "memory 400Mi 480Mi 1m Restart",
                "cpu - 500m 5m Alert",
            ]
        );
        let mut plain = Page::default();
        plain.thresholds(&json!({"command": ["x"]}));
        assert_eq!(plain.text, "");
    }

    #[test]
    fn an_empty_object_is_described_without_failing() {
        let mut page = Page::default();
        page.process(&json!({}));
        page.instance(&json!({}), now());
        page.conditions(&json!({}), now());
        assert!(page.text.contains("Replicas:       1 desired | 0 total"));
    }
}
