//! Checks against real servers that fail and recover, with thresholds exact to the count.

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ostler_core::kinds::{Health, ProbeKind, ProbeStatus, ProcessSpec};
use ostler_probe::{News, Prober, Report, Settings, Surroundings, Target};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::TcpListenerStream;

struct Probed {
    directory: tempfile::TempDir,
    prober: Prober,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Probed {
    fn start(probe: Value, ports: &[(&str, u16)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { state_dir: directory.path().to_owned(), ..Settings::default() };
        let (prober, reports) = Prober::start(settings);
        prober.watch(target(probe, ports));
        Self { directory, prober, reports }
    }

    /// The next verdict, which has to be this one.
    async fn is(&mut self, expected: Health) -> ProbeStatus {
        let report = tokio::time::timeout(Duration::from_secs(60), self.reports.recv());
        let report = report.await.expect("a verdict within a minute").expect("a prober");
        let News::Verdict(ProbeKind::Readiness, status) = report.news else { panic!("{report:?}") };
        assert_eq!(status.verdict, expected, "{status:?}");
        status
    }

    /// From well to failed, in as many steps as the threshold says.
    async fn fails(&mut self) -> ProbeStatus {
        assert_eq!(self.is(Health::Warning).await.failures, 1);
        assert_eq!(self.is(Health::Critical).await.failures, 2);
        let status = self.is(Health::Failed).await;
        assert_eq!((status.failures, status.passed), (3, false));
        status
    }

    async fn recovers(&mut self) -> ProbeStatus {
        let status = self.is(Health::Healthy).await;
        assert_eq!((status.successes, status.failures, status.passed), (2, 0, true));
        status
    }
}

fn target(mut probe: Value, ports: &[(&str, u16)]) -> Target {
    let usual = json!({"interval": "100ms", "timeout": "10s", "failureThreshold": 3, "successThreshold": 2});
    for (name, value) in usual.as_object().unwrap() {
        if probe.get(name).is_none() {
            probe[name] = value.clone();
        }
    }
    let spec: ProcessSpec = serde_json::from_value(json!({"command": ["x"], "readinessProbe": probe})).unwrap();
    Target {
        id: "default/web-0".into(),
        uid: "u".to_owned(),
        attempt: 1,
        age: Duration::ZERO,
        pid: 1,
        start_time: 1,
        cgroup: String::new(),
        ports: ports.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect::<BTreeMap<_, _>>(),
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

/// Answers one request with what is to be said now; what it was asked goes to `asked`.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, say: String, asked: mpsc::UnboundedSender<String>) {
    let mut buffer = [0; 4096];
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
            _ => return,
        }
    }
    let _ = asked.send(String::from_utf8_lossy(&request).into_owned());
    let _ = stream.write_all(say.as_bytes()).await;
    let _ = stream.shutdown().await;
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine";
const ILL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nill";
const BROKEN: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";

async fn http(say: watch::Receiver<&'static str>) -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, (*say.borrow()).to_owned(), asked.clone()));
        }
    });
    (port, requests)
}

#[tokio::test]
async fn http_fails_and_recovers_at_the_exact_count() {
    let (say, said) = watch::channel(OK);
    let (port, mut requests) = http(said).await;
    let get = json!({"port": "web", "path": "/health?deep=1", "bodyMatch": "^fine$",
        "httpHeaders": [{"name": "X-Token", "value": "t"}, {"name": "Host", "value": "example.com"}]});
    let mut probed = Probed::start(json!({"httpGet": get}), &[("web", port)]);
    probed.recovers().await;
    let request = requests.recv().await.unwrap().to_ascii_lowercase();
    assert!(request.starts_with("get /health?deep=1 http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nhost: example.com\r\n") && request.contains("\r\nx-token: t\r\n"), "{request}");
    say.send(BROKEN).unwrap();
    assert_eq!(probed.fails().await.output, "HTTP 503 Service Unavailable: busy");
    say.send(OK).unwrap();
    probed.recovers().await;
    say.send(ILL).unwrap();
    assert!(probed.fails().await.output.contains("does not match"));
    probed.prober.forget(&"default/web-0".into());
}

#[tokio::test]
async fn redirects_are_followed_on_the_host_and_elsewhere_are_the_answer() {
    let (_well, said) = watch::channel(OK);
    let (port, mut requests) = http(said).await;
    let target: &'static str =
        Box::leak(format!("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{port}/there\r\n\r\n").into_boxed_str());
    let (say, said) = watch::channel(target);
    let (front, _asked) = http(said).await;
    let mut probed = Probed::start(json!({"httpGet": {"port": front, "expectedStatus": [200]}}), &[]);
    probed.recovers().await;
    assert!(requests.recv().await.unwrap().starts_with("GET /there "));
    say.send("HTTP/1.1 302 Found\r\nlocation: http://example.com/\r\n\r\n").unwrap();
    assert_eq!(probed.fails().await.output, "HTTP 302 Found");
}

#[tokio::test]
async fn https_accepts_a_self_signed_certificate_on_loopback() {
    let key = rcgen::generate_simple_self_signed(vec!["nobody.example".to_owned()]).unwrap();
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(Arc::new(
        tokio_rustls::rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![key.cert.der().clone()], key.signing_key.serialize_der().try_into().unwrap())
    .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, _requests) = mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, asked) = (acceptor.clone(), asked.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    answer(stream, OK.to_owned(), asked).await;
                }
            });
        }
    });
    let mut probed = Probed::start(json!({"httpGet": {"port": port, "scheme": "HTTPS", "host": "localhost"}}), &[]);
    probed.recovers().await;
    serving.abort();
    assert!(probed.fails().await.output.contains("cannot connect"));
}

#[tokio::test]
async fn grpc_asks_for_the_service() {
    use tonic_health::ServingStatus;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (mut reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("shop", ServingStatus::Serving).await;
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let mut probed = Probed::start(json!({"grpc": {"port": port, "service": "shop"}}), &[]);
    probed.recovers().await;
    reporter.set_service_status("shop", ServingStatus::NotServing).await;
    assert_eq!(probed.fails().await.output, "NOT_SERVING");
    reporter.set_service_status("shop", ServingStatus::Serving).await;
    probed.recovers().await;
    reporter.clear_service_status("shop").await;
    assert!(probed.fails().await.output.contains("does not know the service"));
}

#[tokio::test]
async fn tcp_and_timeouts() {
    // On an address of its own nobody else gets the port meanwhile.
    let host = format!("127.{}.77.1", 2 + std::process::id() % 250);
    let listener = TcpListener::bind((host.as_str(), 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut probed = Probed::start(json!({"tcpSocket": {"port": port, "host": host}}), &[]);
    probed.recovers().await;
    drop(listener);
    probed.fails().await;
    let _again = TcpListener::bind((host.as_str(), port)).await.unwrap();
    probed.recovers().await;
    // Nobody accepts here, and so nobody answers.
    let mut silent = Probed::start(json!({"httpGet": {"port": port, "host": host}, "timeout": "200ms"}), &[]);
    assert_eq!(silent.is(Health::Warning).await.output, "no answer within 200ms");
}

#[tokio::test]
async fn exec_runs_in_the_process_surroundings() {
    let directory = tempfile::tempdir().unwrap();
    let flag = directory.path().join("flag");
    let script = format!("echo $GREETING $(pwd); test -e {}", flag.display());
    let mut target = target(json!({"exec": {"command": ["sh", "-c", script]}}), &[]);
    let surroundings = target.surroundings.as_mut().unwrap();
    surroundings.env.insert("GREETING".to_owned(), "hello".to_owned());
    surroundings.working_dir = "/usr".into();
    let mut probed = Probed::start(json!({"process": {}, "initialDelay": "1h"}), &[]);
    probed.prober.watch(target);
    assert_eq!(probed.is(Health::Warning).await.output, "exit code 1: hello /usr");
    assert_eq!(probed.is(Health::Critical).await.failures, 2);
    assert_eq!(probed.is(Health::Failed).await.failures, 3);
    std::fs::write(&flag, "").unwrap();
    assert_eq!(probed.recovers().await.output, "hello /usr");
}

/// A target that is known to be healthy, so that Unknown is a change.
fn healthy(name: &str, probe: Value) -> Target {
    let known = ProbeStatus { verdict: Health::Healthy, passed: true, ..ProbeStatus::default() };
    let known = ostler_core::kinds::ProbesStatus { attempt: 1, readiness: Some(known), ..Default::default() };
    Target { id: name.into(), uid: name.to_owned(), known: Some(Box::new(known)), ..target(probe, &[]) }
}

/// Keeps everybody from opening a file, as a disk does that does not answer, or lets them go on.
#[allow(unsafe_code, reason = "there is no other way to fcntl")]
fn hold_up(file: &std::fs::File, held: bool) {
    use std::os::fd::AsRawFd as _;
    const F_SETSIG: i32 = 10;
    let kind = if held { libc::F_WRLCK } else { libc::F_UNLCK };
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        // SAFETY: plain system calls on a descriptor that is open. The signal is one that is ignored unless asked for.
        let lease = unsafe {
            assert_eq!(libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG), 0);
            libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind)
        };
        if lease == 0 {
            return;
        }
        // A child of another test may have the file open until it calls exec.
        let why = std::io::Error::last_os_error();
        assert!(why.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < end, "{why}");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_loaded_holds_nobody_up_and_is_nobodys_fault() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    std::fs::copy("/bin/true", &program).unwrap();
    let file = std::fs::File::open(&program).unwrap();
    hold_up(&file, true);
    let mut probed = Probed::start(json!({"process": {}, "initialDelay": "1h"}), &[]);
    for index in 0..6 {
        let probe = json!({"exec": {"command": [program]}, "timeout": "300ms", "successThreshold": 1});
        probed.prober.watch(healthy(&format!("default/held-{index}"), probe));
    }
    let mut unknown = 0;
    while unknown < 6 {
        let status = probed.is(Health::Unknown).await;
        assert!(status.output.contains("could not be started within 300ms") && status.passed, "{status:?}");
        unknown += 1;
    }
    // All are held up; another command has a thread all the same.
    let free = json!({"exec": {"command": ["true"]}, "successThreshold": 5});
    probed.prober.watch(Target { id: "default/free".into(), ..target(free, &[]) });
    assert_eq!(probed.is(Health::Healthy).await.successes, 5);
    hold_up(&file, false);
    for _ in 0..6 {
        probed.is(Health::Healthy).await;
    }
}

/// Everything is what attempt 1 wrote to stdout.
const INDEX: &[u8] = b"ostlridx\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x80\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_on_a_disk_that_does_not_answer_is_nobodys_fault() {
    let mut probed = Probed::start(json!({"process": {}, "initialDelay": "1h"}), &[]);
    let state = probed.directory.path().to_owned();
    let line = |timeout: &str| json!({"logLine": {"pattern": "ready", "failurePattern": "fatal"}, "timeout": timeout, "successThreshold": 1});
    let logs = state.join("held");
    std::fs::create_dir(&logs).unwrap();
    let log = logs.join("00000001.log");
    assert!(std::process::Command::new("mkfifo").arg(&log).status().unwrap().success());
    let held = healthy("default/held", line("300ms"));
    probed.prober.watch(Target { log_dir: "held".to_owned(), ..held });
    let status = probed.is(Health::Unknown).await;
    assert!(status.output.contains("could not be read within 300ms") && status.passed, "{status:?}");
    std::fs::create_dir(state.join("free")).unwrap();
    std::fs::write(state.join("free/00000001.log"), "fatal\nready\n").unwrap();
    std::fs::write(state.join("free/00000001.idx"), INDEX).unwrap();
    let free = target(line("30s"), &[]);
    probed.prober.watch(Target { id: "default/free".into(), log_dir: "free".to_owned(), ..free });
    assert_eq!(probed.is(Health::Healthy).await.output, "ready");
    probed.prober.forget(&"default/held".into());
    // The thread waits for whoever opens the other end.
    std::fs::rename(&log, logs.join("gone")).unwrap();
    let open = || std::fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(logs.join("gone"));
    while open().is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_cannot_be_run_is_unknown() {
    for (probe, why) in [
        (json!({"exec": {"command": ["/no/such/program"]}}), "cannot execute"),
        (json!({"tcpSocket": {"port": 1, "host": "192.0.2.1"}}), "--probe-allow"),
        (json!({"tcpSocket": {"port": "gone"}}), "has no port"),
    ] {
        let mut probed = Probed::start(json!({"process": {}, "initialDelay": "1h"}), &[]);
        let mut target = target(probe, &[]);
        // Something has been found out before, so that this is a change.
        let known = ProbeStatus { verdict: Health::Healthy, passed: true, ..ProbeStatus::default() };
        target.known = Some(Box::new(ostler_core::kinds::ProbesStatus {
            attempt: 1,
            readiness: Some(known),
            ..ostler_core::kinds::ProbesStatus::default()
        }));
        probed.prober.watch(target);
        let status = probed.is(Health::Unknown).await;
        assert!(status.output.contains(why) && status.passed, "{status:?}");
    }
}
