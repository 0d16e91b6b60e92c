//! After ten thousand checks of every outcome, nothing of them is left: no process, no descriptor, no task.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ostler_core::kinds::{ProbeKind, ProcessSpec};
use ostler_core::verdict::Outcome;
use ostler_probe::{Meter, Prober, Settings, Surroundings, Target};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

#[derive(Default)]
struct Count {
    all: AtomicUsize,
    passed: AtomicUsize,
    failed: AtomicUsize,
    cannot_run: AtomicUsize,
}

impl Count {
    fn judged(&self) -> usize {
        self.passed.load(Ordering::Relaxed) + self.failed.load(Ordering::Relaxed)
    }
}

impl Meter for Count {
    fn checked(&self, _: ProbeKind, _: &'static str, outcome: &Outcome, _: Duration) {
        self.all.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Outcome::Passed(_) => self.passed.fetch_add(1, Ordering::Relaxed),
            Outcome::Failed(_) => self.failed.fetch_add(1, Ordering::Relaxed),
            Outcome::CannotRun(_) => self.cannot_run.fetch_add(1, Ordering::Relaxed),
        };
    }
}

fn target(name: String, probe: &Value) -> Target {
    let mut probe = probe.clone();
    probe["interval"] = json!("100ms");
    probe["timeout"] = json!("300ms");
    probe["failureThreshold"] = json!(1000);
    let spec: ProcessSpec = serde_json::from_value(json!({"command": ["x"], "readinessProbe": probe})).unwrap();
    Target {
        id: name.clone().into(),
        uid: name,
        attempt: 1,
        age: Duration::ZERO,
        pid: 1,
        start_time: 1,
        cgroup: String::new(),
        ports: BTreeMap::new(),
        log_dir: "logs".to_owned(),
        surroundings: Ok(Surroundings {
            env: BTreeMap::from([("PATH".to_owned(), std::env::var("PATH").unwrap())]),
            working_dir: "/".into(),
            ..Surroundings::default()
        }),
        spec: Arc::new(spec),
        known: None,
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn children() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default().split_whitespace().count())
        .sum()
}

/// Processes that a command of this test has started.
fn offspring() -> usize {
    let marked =
        |environment: Vec<u8>| environment.split(|byte| *byte == 0).any(|it| it.starts_with(b"OSTLER_PROBE=leak-"));
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| fs::read(entry.path().join("environ")).is_ok_and(marked))
        .count()
}

async fn serve(listener: TcpListener, hang: bool) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer).await;
            if hang {
                // Until the other side has had enough.
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
            } else {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_checks_leave_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let (good, silent, closed) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let ports = [&good, &silent, &closed].map(|listener| listener.local_addr().unwrap().port());
    drop(closed);
    tokio::spawn(serve(good, false));
    tokio::spawn(serve(silent, true));
    let count = Arc::new(Count::default());
    let settings = Settings {
        state_dir: directory.path().to_owned(),
        allow: ostler_probe::AllowList::default(),
        meter: Some(Arc::clone(&count) as Arc<dyn Meter>),
        ..Settings::default()
    };
    let (prober, mut reports) = Prober::start(settings);
    // The first one starts what stays: the thread for commands, the runtime's own descriptors.
    prober.watch(target("leak-first".to_owned(), &json!({"exec": {"command": ["true"]}})));
    reports.recv().await.unwrap();
    prober.forget(&"leak-first".into());
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    until("nothing to be under way", || children() == 0).await;
    let (fds_before, tasks_before) = (descriptors(), tasks());

    let mut ids: Vec<Arc<str>> = Vec::new();
    for (kind, number, probe) in [
        ("good", 60, json!({"httpGet": {"port": ports[0]}})),
        ("silent", 60, json!({"httpGet": {"port": ports[1]}})),
        ("closed", 60, json!({"httpGet": {"port": ports[2]}})),
        ("tcp", 60, json!({"tcpSocket": {"port": ports[0]}})),
        ("mute", 20, json!({"grpc": {"port": ports[1]}})),
        ("true", 6, json!({"exec": {"command": ["true"]}})),
        ("hang", 6, json!({"exec": {"command": ["sh", "-c", "sleep 1000 & setsid sleep 1000 & sleep 1000"]}})),
        ("fork", 6, json!({"exec": {"command": ["sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & exit 1"]}})),
    ] {
        for index in 0..number {
            let target = target(format!("leak-{kind}-{index}"), &probe);
            ids.push(Arc::clone(&target.id));
            prober.watch(target);
        }
    }
    until("ten thousand checks", || count.judged() >= 10_000).await;
    // On a busy machine a command may not come to be started in time; anything else can always be run.
    let (judged, cannot_run) = (count.judged(), count.cannot_run.load(Ordering::Relaxed));
    assert!(cannot_run * 10 < judged, "{cannot_run} of {judged} could not be run");
    assert!(count.passed.load(Ordering::Relaxed) > 1000 && count.failed.load(Ordering::Relaxed) > 1000);
    for id in &ids {
        prober.forget(id);
    }
    until("no task to be left", || tasks() <= tasks_before).await;
    until("no process to be left", || children() == 0 && offspring() == 0).await;
    until("no descriptor to be left", || descriptors() <= fds_before).await;
    let checks = count.all.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(count.all.load(Ordering::Relaxed), checks, "what is forgotten is not checked");
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        let state = (descriptors(), children(), tokio::runtime::Handle::current().metrics().num_alive_tasks());
        assert!(began.elapsed() < Duration::from_secs(120), "never: {what}; descriptors, children, tasks: {state:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
