//! Metrics, traces and the output of processes, at real receivers: a collector (rotel), Prometheus and its promtool.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ostler_tests::{Daemon, LIMIT, Setup, free_port as port, manifest, proc, skipped, wait_until};

/// A program in PATH, or one that CI has installed below `target/tools`.
fn tool(name: &str) -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let installed = fs::read_dir(tools.join("rotel/lib")).into_iter().flatten().flatten();
    let installed = installed.map(|python| python.path().join("site-packages/rotel").join(name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).map(|directory| directory.join(name)).collect();
    installed.chain(path).find(|program| program.is_file())
}

/// Where a test has nothing to talk to it checks nothing, visibly; in CI, which installs everything, that is a failure.
fn absent(test: &str, program: &str) {
    let required = std::env::var_os("OSTLER_TEST_RECEIVERS").is_some_and(|value| value == "required");
    assert!(!required, "there is no {program}, which this run requires");
    skipped(test, &format!("there is no {program}; .ci/run installs it"));
}

/// A program that ends with the test.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(program: &Path, args: &[&str], log: PathBuf) -> Self {
        let file = File::create(&log).unwrap();
        let child = Command::new(program)
            .args(args)
            .current_dir(log.parent().unwrap())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn collector(program: &Path, daemon: &Daemon, port: u16) -> Running {
    let grpc = format!("127.0.0.1:{port}");
    let http = format!("127.0.0.1:{}", self::port());
    let args = [
        "start",
        "--debug-log=traces",
        "--debug-log=metrics",
        "--debug-log=logs",
        "--debug-log-verbosity=detailed",
        "--exporter=blackhole",
        "--otlp-grpc-endpoint",
        &grpc,
        "--otlp-http-endpoint",
        &http,
    ];
    let mut running = Running::start(program, &args, daemon.path().join(format!("rotel-{port}.log")));
    wait_until("the collector to listen", || {
        if let Some(status) = running.child.try_wait().unwrap() {
            panic!("the collector ended with {status}: {}", running.text());
        }
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
    });
    running
}

fn http(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}

/// The value of the first series that begins like this.
fn value(metrics: &str, series: &str) -> Option<f64> {
    metrics.lines().find(|line| line.starts_with(series))?.rsplit(' ').next()?.parse().ok()
}

/// One span as the collector writes it down.
#[derive(Debug, Default)]
struct Span {
    trace: String,
    parent: String,
    id: String,
    name: String,
    text: String,
}

/// What a collector wrote down, read only once: it writes much.
struct Heard {
    file: File,
    /// The beginning of a line whose end has not come.
    part: String,
    text: String,
    spans: Vec<Span>,
}

impl Heard {
    fn of(collector: &Running) -> Self {
        Self { file: File::open(&collector.log).unwrap(), part: String::new(), text: String::new(), spans: Vec::new() }
    }

    /// Takes in what is new.
    fn listen(&mut self) -> &mut Self {
        let mut new = Vec::new();
        self.file.read_to_end(&mut new).unwrap();
        self.part.push_str(&String::from_utf8_lossy(&new));
        let Some(end) = self.part.rfind('\n') else { return self };
        let rest = self.part.split_off(end + 1);
        for line in std::mem::replace(&mut self.part, rest).lines() {
            self.line(line);
            self.text.push_str(line);
            self.text.push('\n');
        }
        self
    }

    fn line(&mut self, line: &str) {
        let field = |name: &str| {
            let (key, value) = line.trim().split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        };
        // Links are written with a dash before their names.
        if let Some(trace) = field("Trace ID") {
            self.spans.push(Span { trace, ..Span::default() });
        } else if let Some(span) = self.spans.last_mut() {
            if let Some(parent) = field("Parent ID") {
                span.parent = parent;
            } else if let Some(id) = field("ID") {
                span.id = id;
            } else if let Some(name) = field("Name").filter(|_| span.name.is_empty()) {
                span.name = name;
            }
            span.text.push_str(line);
            span.text.push('\n');
        }
    }

    /// Log records are written with such fields, too, which are empty.
    fn spans(&self) -> impl Iterator<Item = &Span> + Clone {
        self.spans.iter().filter(|span| span.trace.len() == 32 && !span.id.is_empty())
    }

    fn says(&self, text: &str) -> bool {
        self.text.contains(text)
    }
}

const QUICK: [(&str, &str); 2] = [("OTEL_METRIC_EXPORT_INTERVAL", "500"), ("OTEL_BSP_SCHEDULE_DELAY", "100")];

fn setup(args: &[&str]) -> Setup {
    QUICK.iter().fold(Setup::default().args(args), |setup, (name, value)| setup.env(name, value))
}

#[test]
fn a_collector_receives_the_story_of_a_process() {
    let Some(rotel) = tool("rotel-agent") else {
        return absent("a_collector_receives_the_story_of_a_process", "rotel");
    };
    let (port, metrics_port) = (port(), port());
    let endpoint = format!("http://127.0.0.1:{port}");
    let listen = format!("127.0.0.1:{metrics_port}");
    let daemon = setup(&["--otlp-endpoint", &endpoint, "--otlp-logs", "--metrics-listen", &listen]).prepare();
    let collector = collector(&rotel, &daemon, port);
    daemon.serve();

    let script = "echo context=$TRACEPARENT resource=$OTEL_RESOURCE_ATTRIBUTES; echo on-stderr >&2; exec sleep 1000";
    let manifest = format!(
        "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {{name: web}}\nspec:\n  command: [sh, -c, {script:?}]\n  workingDir: /\n  backoff: {{initial: 100ms}}\n  readinessProbe: {{exec: {{command: ['true']}}, interval: 200ms}}\n"
    );
    fs::write(daemon.path().join("web.yaml"), manifest).unwrap();
    let output = daemon
        .client()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .args(["apply", "-f", "web.yaml", "--wait", "--timeout", "1m"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let victim = daemon.running("web-0");
    let uid = daemon.instance("web-0").uid().to_owned();

    // One trace from the command to Ready, over three processes.
    let story =
        ["ostler apply", "ostler.v1.Ostler/Apply", "store.commit", "reconcile Process", "reconcile Instance", "spawn"];
    let mut heard = Heard::of(&collector);
    let first = wait_until("the spans of the apply", || {
        let mut spans = heard.listen().spans();
        let root = spans.clone().find(|span| span.name == "ostler apply")?;
        let trace = root.trace.clone();
        let names: Vec<&str> = spans.clone().filter(|it| it.trace == trace).map(|it| it.name.as_str()).collect();
        let ready = spans.any(|span| {
            span.trace == trace && span.name == "reconcile Process" && span.text.contains("ready.to: Bool(true)")
        });
        (ready && story.iter().all(|name| names.contains(name))).then_some(trace)
    });
    wait_until("the span of the verdict that made it ready", || {
        let is_verdict = |span: &Span| {
            span.trace == first
                && span.name == "verdict"
                && span.text.contains("ostler.verdict.from: Str(Unknown)")
                && span.text.contains("ostler.verdict.to: Str(Healthy)")
        };
        heard.listen().spans().any(is_verdict).then_some(())
    });
    let one = |name: &str| heard.spans().find(|span| span.trace == first && span.name == name).unwrap();
    assert_eq!(one("ostler.v1.Ostler/Apply").parent, one("ostler apply").id);
    assert_eq!(one("store.commit").parent, one("ostler.v1.Ostler/Apply").id);
    let spawn = one("spawn");
    assert!(heard.spans().any(|span| span.id == spawn.parent && span.name == "reconcile Instance"), "{spawn:?}");
    assert!(spawn.text.contains(&victim.pid.to_string()), "{}", spawn.text);
    let context = format!("context=00-{first}-{}-01", spawn.id);

    // The process was told where to go on, and who it is; and what it said has arrived.
    let printed = wait_until("its output", || {
        String::from_utf8(daemon.output("web-0", "stdout")).ok().filter(|text| text.contains("resource="))
    });
    assert!(printed.contains(&context), "{printed} has no {context}");
    assert!(printed.contains(&format!("service.instance.id={uid}")), "{printed}");
    wait_until("its output at the collector", || {
        let heard = heard.listen();
        (heard.says(&context) && heard.says("on-stderr")).then_some(())
    });

    // A crash is a trace of its own, linked to the apply.
    proc::signal(victim, libc::SIGKILL);
    daemon.instance_when("web-0", "running again", |it| it.restarts() == 1 && it.ready());
    wait_until("the spans of the restart", || {
        let mut spans = heard.listen().spans();
        let crash =
            spans.clone().find(|span| span.trace != first && span.text.contains("ostler.exit: Str(Signal(9))"))?;
        let again = spans.clone().any(|span| span.trace == crash.trace && span.name == "spawn");
        let linked = spans.any(|span| span.trace == crash.trace && span.text.contains(&first));
        (again && linked).then_some(())
    });
    wait_until("the metrics of the restart", || {
        let heard = heard.listen();
        (heard.says("ostler.process.restarts") && heard.says("process.cpu.time")).then_some(())
    });
    // Reading costs no span, and neither do looks that change nothing: what is stopping is looked at every
    // tick.
    daemon.apply(
        "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {name: slow}\nspec:\n  command: [sh, -c, 'trap \"\" TERM; echo deaf; while :; do sleep 1; done']\n  workingDir: /\n  stop: {gracePeriod: 1h}\n",
    );
    wait_until("it to be deaf", || Some(()).filter(|()| daemon.output("slow-0", "stdout").starts_with(b"deaf")));
    daemon.ok(&["stop", "process/slow", "--no-wait"]);
    let slow = daemon.phase("slow-0", "Stopping");
    let mut plans_after_a_marker = || {
        let applies = |heard: &Heard| heard.spans().filter(|it| it.name == "ostler.v1.Ostler/Apply").count();
        let before = applies(heard.listen());
        daemon.apply(&manifest::sleeper("marker").to_string());
        wait_until("the span of the marker", || (applies(heard.listen()) > before).then_some(()));
        heard.spans().filter(|it| it.name == "reconcile Instance" && it.text.contains(slow.uid())).count()
    };
    let before = plans_after_a_marker();
    assert!(before > 0);
    let looks = looks(metrics_port);
    wait_until("more looks", || (self::looks(metrics_port)? >= looks? + 3.0).then_some(()));
    daemon.ok(&["get", "instances"]);
    assert_eq!(plans_after_a_marker(), before);
    assert!(!heard.spans().any(|span| span.name.ends_with("Ostler/List")));
}

/// How often instances were looked at.
fn looks(port: u16) -> Option<f64> {
    value(&http(port, "/metrics")?, "ostler_reconcile_duration_seconds_count{kind=\"Instance\"}")
}

#[test]
fn applying_the_same_again_is_no_change_also_when_traced() {
    // Nobody listens there: contexts are made all the same.
    let endpoint = format!("http://127.0.0.1:{}", port());
    let daemon = setup(&["--otlp-endpoint", &endpoint]).start();
    let web = manifest::sleeper("web").to_string();
    daemon.apply_ready(&web);
    let before = daemon.get("process", "web");
    let context = &before["metadata"]["annotations"]["ostler.dev/traceparent"];
    assert!(context.as_str().is_some_and(|it| it.starts_with("00-")), "{before}");
    assert!(daemon.apply(&web).contains("unchanged"));
    // Also what was read from the daemon, with the context of an older change in it.
    let mut copy = before.clone();
    copy["metadata"]["annotations"]["ostler.dev/traceparent"] =
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into();
    copy.as_object_mut().unwrap().remove("status");
    assert!(daemon.apply(&copy.to_string()).contains("unchanged"));
    let pid = daemon.running("web-0");
    daemon.ok(&["scale", "process/web", "--replicas", "2"]);
    daemon.phase("web-1", "Running");
    assert_ne!(daemon.get("process", "web")["metadata"]["annotations"]["ostler.dev/traceparent"], *context);
    // The context is no part of the revision.
    assert_eq!(daemon.running("web-0"), pid);
}

#[test]
fn prometheus_scrapes_what_happened() {
    let port = port();
    let daemon = setup(&["--metrics-listen", &format!("127.0.0.1:{port}")]).start();
    daemon.apply_ready(&manifest::sleeper("web").to_string());
    proc::signal(daemon.running("web-0"), libc::SIGKILL);
    daemon.instance_when("web-0", "running again", |it| it.restarts() == 1 && it.ready());
    daemon.apply_ready(
        "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {name: probed}\nspec: {command: [sleep, '1000'], workingDir: /, readinessProbe: {exec: {command: ['true']}, interval: 1s}}\n",
    );
    let metrics = wait_until("the metrics of a restart", || {
        let metrics = http(port, "/metrics")?;
        let restarts = value(&metrics, "ostler_process_restarts_total{module=\"default/web\",reason=\"Crashed\"}");
        let running = value(&metrics, "ostler_instances{phase=\"Running\"}");
        let sampled = value(&metrics, "ostler_module_memory_bytes{module=\"default/web\"}");
        (restarts == Some(1.0) && running == Some(2.0) && sampled.is_some_and(|it| it > 0.0)).then_some(metrics)
    });
    for (series, least) in [
        ("ostler_events_total{event=\"Started\",topic=\"lifecycle\"}", 2.0),
        ("ostler_processes{type=\"instance\"}", 1.0),
        ("ostler_process_lifetime_seconds_count{module=\"default/web\"}", 1.0),
        ("ostler_process_lifetime_seconds_bucket{module=\"default/web\",le=\"3600\"}", 1.0),
        ("ostler_process_uptime_seconds ", 0.0),
        ("ostler_system_load ", 0.0),
        ("ostler_memory_usage_bytes ", 1.0),
        ("ostler_process_memory_bytes{type=\"controller\"}", 1.0),
        ("ostler_process_memory_bytes{type=\"keeper\"}", 1.0),
        ("ostler_reconcile_duration_seconds_count{kind=\"Instance\"}", 1.0),
        ("ostler_queue_depth ", 0.0),
        ("ostler_spawn_duration_seconds_count{result=\"ok\"}", 2.0),
        ("ostler_store_commit_duration_seconds_count{durability=\"durable\"}", 1.0),
        ("ostler_api_calls_total{code=\"Ok\",method=\"ostler.v1.Ostler/Apply\"}", 1.0),
        ("ostler_watch_lag ", 0.0),
        ("ostler_probe_duration_seconds_count{mechanism=\"exec\",probe=\"readiness\",result=\"passed\"}", 1.0),
        ("ostler_probe_verdicts_total{probe=\"readiness\",verdict=\"Healthy\"}", 1.0),
        ("ostler_log_size_bytes ", 0.0),
        ("process_cpu_time_seconds_total{ostler_process_type=\"controller\"}", 0.0),
    ] {
        let found = value(&metrics, series);
        assert!(found.is_some_and(|found| found >= least), "{series} is {found:?} in\n{metrics}");
    }
    daemon.ok(&["stop", "process/web"]);
    let metrics = wait_until("what is documented, and nothing else", || {
        let metrics = http(port, "/metrics")?;
        (scraped(&metrics) == documented()).then_some(metrics)
    });
    // Each run of a CronJob has a Job with a name of its own; they are one series.
    daemon.apply(
        "apiVersion: ostler.dev/v1\nkind: CronJob\nmetadata: {name: tick}\nspec:\n  every: 1s\n  jobTemplate: {spec: {template: {command: ['true'], workingDir: /}}}\n",
    );
    wait_until("two runs of one series", || {
        let metrics = http(port, "/metrics")?;
        assert!(!metrics.contains("module=\"default/tick-"), "{metrics}");
        let runs = value(&metrics, "ostler_process_lifetime_seconds_count{module=\"default/tick\"}")?;
        (runs >= 2.0).then_some(())
    });
    daemon.ok(&["delete", "cronjob/tick"]);
    // What is gone is measured no more, and another controller goes on serving.
    daemon.ok(&["delete", "process/probed"]);
    wait_until("the usage to go", || {
        Some(http(port, "/metrics")?).filter(|metrics| !metrics.contains("ostler_module_memory_bytes{"))
    });
    daemon.kill_controller();
    wait_until("the next controller to serve", || http(port, "/metrics"));

    let Some(promtool) = tool("promtool") else {
        return absent("prometheus_scrapes_what_happened", "promtool");
    };
    let file = daemon.path().join("metrics.txt");
    fs::write(&file, &metrics).unwrap();
    let check = Command::new(&promtool).args(["check", "metrics"]).stdin(File::open(&file).unwrap()).output().unwrap();
    assert!(check.status.success() && check.stderr.is_empty(), "{}", String::from_utf8_lossy(&check.stderr));

    let Some(prometheus) = tool("prometheus") else {
        return absent("prometheus_scrapes_what_happened", "prometheus");
    };
    let config = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: ostler\n  static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
    );
    let config_file = daemon.path().join("prometheus.yml");
    fs::write(&config_file, config).unwrap();
    let own = self::port();
    let (config, listen) =
        (format!("--config.file={}", config_file.display()), format!("--web.listen-address=127.0.0.1:{own}"));
    let storage = format!("--storage.tsdb.path={}", daemon.path().join("tsdb").display());
    let _running = Running::start(&prometheus, &[&config, &listen, &storage], daemon.path().join("prometheus.log"));
    wait_until("Prometheus to have scraped", || {
        http(own, "/api/v1/query?query=ostler_process_memory_bytes").filter(|answer| answer.contains("controller"))
    });
}

/// Names of our metrics, as a scrape has them.
fn scraped(metrics: &str) -> BTreeSet<String> {
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ostler_")?.split(' ').next());
    types.map(|name| format!("ostler_{name}")).collect()
}

/// Names of our metrics, as the tables of the documentation have them.
fn documented() -> BTreeSet<String> {
    let text = fs::read_to_string(docs().join("telemetry.md")).unwrap();
    let first_cells = text.lines().filter_map(|line| line.strip_prefix("| `ostler_")?.split('|').next());
    let names = first_cells.flat_map(|cell| cell.split(',').map(|name| name.trim().trim_matches('`').to_owned()));
    names.map(|name| if name.starts_with("ostler_") { name } else { format!("ostler_{name}") }).collect()
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

#[test]
fn the_number_of_series_is_bounded() {
    let port = port();
    let daemon = setup(&["--metrics-listen", &format!("127.0.0.1:{port}"), "--metrics-max-series", "10"]).start();
    let many: Vec<String> = (0..25)
        .map(|number| {
            format!(
                "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {{name: job-{number}}}\nspec: {{command: ['true'], workingDir: /, restartPolicy: Never}}\n"
            )
        })
        .collect();
    daemon.apply(&many.join("---\n"));
    wait_until("all of them to have ended", || {
        let metrics = http(port, "/metrics")?;
        let series = metrics.lines().filter(|line| line.starts_with("ostler_process_lifetime_seconds_count{"));
        let (mut count, mut total) = (0, 0.0);
        for line in series {
            count += 1;
            total += line.rsplit(' ').next()?.parse::<f64>().ok()?;
        }
        assert!(count <= 11, "{metrics}");
        ((total - 25.0).abs() < 0.5).then_some(())
    });
}

#[test]
fn a_collector_that_dies_lies_and_returns_stops_nothing() {
    const NAME: &str = "a_collector_that_dies_lies_and_returns_stops_nothing";
    let Some(rotel) = tool("rotel-agent") else { return absent(NAME, "rotel") };
    let (port, metrics_port) = (port(), port());
    let endpoint = format!("http://127.0.0.1:{port}");
    let listen = format!("127.0.0.1:{metrics_port}");
    let daemon = setup(&["--otlp-endpoint", &endpoint, "--otlp-logs", "--metrics-listen", &listen]).prepare();
    let mut first = collector(&rotel, &daemon, port);
    daemon.serve();
    let controller = daemon.controller().expect("a controller");
    daemon.apply_ready(
        "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {name: web}\nspec: {command: [sleep, '1000'], workingDir: /, backoff: {initial: 0s}}\n",
    );
    let mut heard = Heard::of(&first);
    let with = crashes(&daemon, 10);
    wait_until("the collector to have heard of it", || {
        heard.listen().spans().any(|span| span.name == "spawn").then_some(())
    });

    // Its address goes to something that takes connections and says nothing, as a machine does that is out of memory.
    first.kill();
    let lying = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    daemon.apply_ready(
        "apiVersion: ostler.dev/v1\nkind: Process\nmetadata: {name: loud}\nspec: {command: [sh, -c, 'head -c 20000000 /dev/zero | tr \\\\0 x | fold -w 4000; echo written >&2; exec sleep 1000'], workingDir: /}\n",
    );
    let without = crashes(&daemon, 10);
    wait_until("all of the output to be taken", || {
        String::from_utf8_lossy(&daemon.output("loud-0", "stderr")).contains("written").then_some(())
    });
    wait_until("attempts that failed", || {
        let metrics = http(metrics_port, "/metrics")?;
        ["logs", "metrics", "traces"]
            .iter()
            .all(|signal| {
                let series = format!("ostler_telemetry_items_total{{outcome=\"failed\",signal=\"{signal}\"}}");
                value(&metrics, &series).is_some_and(|failed| failed > 0.0)
            })
            .then_some(())
    });
    println!("10 crashes until ready again: {with:?} with a collector, {without:?} with one that never answers");
    assert_eq!(daemon.controller(), Some(controller), "the controller was replaced");
    let rollup = fs::read_to_string(format!("/proc/{}/status", controller.pid)).unwrap();
    let anonymous = rollup.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kib: u64 = anonymous.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 64 << 10, "the controller has grown to {kib} KiB");

    // What happens once somebody listens again arrives.
    drop(lying);
    let second = collector(&rotel, &daemon, port);
    let mut heard = Heard::of(&second);
    wait_until("spans at the new collector", || {
        crashes(&daemon, 1);
        heard.listen().spans().any(|span| span.name == "spawn").then_some(())
    });
    // Output waited in its files meanwhile.
    wait_until("output at the new collector", || {
        let metrics = http(metrics_port, "/metrics")?;
        value(&metrics, "ostler_telemetry_items_total{outcome=\"sent\",signal=\"logs\"}").filter(|sent| *sent >= 100.0)
    });
    drop(second);
    let began = Instant::now();
    daemon.ok(&["shutdown"]);
    daemon.ends();
    assert!(began.elapsed() < LIMIT, "the end took {:?}", began.elapsed());
}

/// Crashes web-0 so often, and says how long it took until it was ready again.
fn crashes(daemon: &Daemon, rounds: u64) -> Duration {
    let began = Instant::now();
    for _ in 0..rounds {
        let restarts = daemon.instance("web-0").restarts();
        proc::signal(daemon.running("web-0"), libc::SIGKILL);
        daemon.instance_when("web-0", "running again", |it| it.restarts() > restarts && it.ready());
    }
    began.elapsed()
}

/// Names of the threads of a process.
fn threads(pid: i32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

#[test]
fn without_telemetry_nothing_of_it_runs_or_is_written() {
    let is_ours = |name: &String| ["telemetry", "OpenTelemetry", "output"].iter().any(|it| name.starts_with(it));
    let daemon = Setup::default().start();
    daemon.apply_ready(&manifest::shell("web", "echo told=$TRACEPARENT; exec sleep 1000").to_string());
    let said = wait_until("its output", || Some(daemon.output("web-0", "stdout")).filter(|said| !said.is_empty()));
    assert_eq!(String::from_utf8(said).unwrap(), "told=\n");
    assert!(daemon.get("process", "web")["metadata"]["annotations"]["ostler.dev/traceparent"].is_null());
    let without = threads(daemon.controller().unwrap().pid);
    assert!(!without.iter().any(is_ours), "{without:?}");
    let nobody = format!("http://127.0.0.1:{}", port());
    let daemon = setup(&["--metrics-listen", "127.0.0.1:0", "--otlp-endpoint", &nobody, "--otlp-logs"]).start();
    let controller = daemon.controller().unwrap();
    // A thread gives itself its name.
    wait_until("the threads of telemetry", || {
        (threads(controller.pid).iter().filter(|name| is_ours(name)).count() >= 4).then_some(())
    });
}

#[test]
fn an_address_that_is_taken_is_told_at_once() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let daemon = Setup::default().prepare();
    let output = daemon.cli(&["serve", "--metrics-listen", &address]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(output.stderr.contains(&address) && output.stderr.contains("--metrics-listen"), "{}", output.stderr);
    let output = daemon.cli(&["serve", "--otlp-endpoint", "collector:4317"]);
    assert_eq!(output.code, 2, "{}", output.stderr);
    assert!(output.stderr.contains("http://HOST:PORT"), "{}", output.stderr);
}

#[test]
fn alert_rules_and_dashboard_are_understood_by_prometheus() {
    let Some(promtool) = tool("promtool") else {
        return absent("alert_rules_and_dashboard_are_understood_by_prometheus", "promtool");
    };
    // What the dashboard asks for is checked as if it were rules, which promtool knows.
    let dashboard: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(docs().join("grafana-dashboard.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let rules: Vec<serde_json::Value> = targets
        .enumerate()
        .map(|(number, target)| serde_json::json!({"record": format!("panel:{number}"), "expr": target["expr"]}))
        .collect();
    assert!(rules.len() >= 12, "{rules:?}");
    let directory = tempfile::tempdir().unwrap();
    let panels = directory.path().join("panels.yaml");
    fs::write(&panels, serde_json::json!({"groups": [{"name": "panels", "rules": rules}]}).to_string()).unwrap();
    for file in [docs().join("ostler.rules.yaml"), panels] {
        let check = Command::new(&promtool).args(["check", "rules"]).arg(&file).output().unwrap();
        let said = [check.stdout, check.stderr].concat();
        assert!(check.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&said));
    }
    // They fire when they should.
    let tests = directory.path().join("tests.yaml");
    let rules = docs().join("ostler.rules.yaml").canonicalize().unwrap();
    fs::write(&tests, RULE_TESTS.replace("RULES", &rules.display().to_string())).unwrap();
    let check = Command::new(&promtool).args(["test", "rules"]).arg(&tests).output().unwrap();
    let said = [check.stdout, check.stderr].concat();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// For promtool: metrics minute by minute, and which alerts there are then. `web` is restarted every minute, `calm` is
/// restarted by hand as often.
const RULE_TESTS: &str = "
rule_files: [RULES]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'ostler_process_uptime_seconds', values: '0+60x30'}
      - {series: 'ostler_process_restarts_total{module=\"default/web\",reason=\"Crashed\"}', values: '0+1x30'}
      - {series: 'ostler_process_restarts_total{module=\"default/calm\",reason=\"Stopped\"}', values: '0+1x30'}
    alert_rule_test:
      - {alertname: OstlerDown, eval_time: 20m}
      - {alertname: OstlerQueueGrows, eval_time: 20m}
      - alertname: OstlerCrashLoop
        eval_time: 20m
        exp_alerts:
          - exp_labels: {severity: warning, module: default/web}
            exp_annotations:
              summary: default/web is restarted again and again
              description: 10 restarts in 10 minutes; ostler describe tells why.
  - interval: 1m
    input_series:
      - {series: 'ostler_queue_depth', values: '2000x30'}
    alert_rule_test:
      - alertname: OstlerDown
        eval_time: 10m
        exp_alerts:
          - exp_labels: {severity: critical}
            exp_annotations:
              summary: No metrics from Ostler
              description: The daemon does not run, or is not scraped. Its processes go on without it.
      - alertname: OstlerQueueGrows
        eval_time: 10m
        exp_alerts:
          - exp_labels: {severity: warning}
            exp_annotations:
              summary: Objects wait for a look for minutes
              description: The controller does not keep up with what changes.
";

/// Every metric that rules and dashboard ask for is one that the documentation lists.
#[test]
fn rules_and_dashboard_use_documented_metrics() {
    let listed = documented();
    let texts =
        ["grafana-dashboard.json", "ostler.rules.yaml"].map(|name| fs::read_to_string(docs().join(name)).unwrap());
    let mut used = 0;
    for text in texts {
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|it| it.starts_with("ostler_"))
        {
            let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            assert!(listed.contains(name), "{name} is not in docs/telemetry.md");
            used += 1;
        }
    }
    assert!(used > 10);
}
