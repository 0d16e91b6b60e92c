//! Whole commands against a daemon that runs nothing: what they ask, print, and end with.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::Arc;

use clap::Parser;
use ostler_rpc::v1;
use serde_json::{Value, json};
use tonic::Code;

use crate::cli::Cli;
use crate::client::selector;
use crate::ctx::{Ctx, Terminal};
use crate::fake::{Fake, Shared, with_details};
use crate::kinds::Kind;
use crate::watch::{Change, Watcher};

#[derive(Clone, Default)]
struct Buffer(Rc<RefCell<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a command did.
#[derive(Debug)]
struct Ran {
    code: u8,
    out: Vec<u8>,
    err: String,
}

impl Ran {
    fn out(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn ran(dir: &std::path::Path, words: &[&str]) -> Ran {
    let cli = Cli::try_parse_from(["ostler"].iter().chain(words)).unwrap();
    let mut settings = cli.global.settings();
    settings.state_dir = dir.to_owned();
    settings.server = None;
    let (out, err) = (Buffer::default(), Buffer::default());
    let mut ctx = Ctx::new(settings, Terminal::default(), Box::new(out.clone()), Box::new(err.clone()));
    let exit = runtime().block_on(crate::dispatch(&mut ctx, cli.command));
    let err = String::from_utf8(err.0.take()).unwrap();
    Ran { code: exit.code(), out: out.0.take(), err }
}

impl Fake {
    fn run(&self, words: &[&str]) -> Ran {
        ran(self.path(), words)
    }

    fn with(objects: &[Value]) -> Self {
        let fake = Fake::start();
        for object in objects {
            fake.shared.put(object);
        }
        fake
    }
}

fn instance(name: &str, phase: &str) -> Value {
    let (process, ordinal) = name.rsplit_once('-').unwrap();
    let ordinal: u64 = ordinal.parse().unwrap();
    json!({"apiVersion": "ostler.dev/v1", "kind": "Instance",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"process": process, "ordinal": ordinal},
        "status": {"phase": phase, "ready": phase == "Running", "pid": 7, "restarts": 0}})
}

fn process(name: &str, ready: bool) -> Value {
    json!({"apiVersion": "ostler.dev/v1", "kind": "Process",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1},
        "spec": {"replicas": 1, "command": ["true"]},
        "status": {"observedGeneration": 1, "updatedReplicas": 1, "readyReplicas": u8::from(ready), "conditions": [
            {"type": "Ready", "status": if ready { "True" } else { "False" }, "reason": "R", "message": "1 of 1 not ready"}]}})
}

#[test]
fn get_prints_every_format() {
    let fake = Fake::with(&[instance("web-10", "Running"), instance("web-2", "Backoff")]);
    let table = fake.run(&["get", "instances"]);
    assert_eq!(
        table.out(),
        "NAME     READY   STATUS    RESTARTS   PID   AGE\n\
         web-2    false   Backoff   0          7     <unknown>\n\
         web-10   true    Running   0          7     <unknown>\n"
    );
    assert_eq!((table.code, table.err.as_str()), (0, ""));
    let list: Value = serde_json::from_slice(&fake.run(&["get", "inst", "-o", "json"]).out).unwrap();
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("List"), 2));
    assert_eq!(list["items"][0]["metadata"]["resourceVersion"], "1");
    let single: Value = serde_json::from_slice(&fake.run(&["get", "inst", "web-2", "-o", "json"]).out).unwrap();
    assert_eq!((&single["kind"], &single["metadata"]["resourceVersion"]), (&json!("Instance"), &json!("2")));
    assert_eq!(fake.run(&["get", "inst/web-2", "-o", "jsonpath={.status.phase}"]).out(), "Backoff");
    assert_eq!(fake.run(&["get", "inst", "-o", "name"]).out(), "instance/web-10\ninstance/web-2\n");
    assert!(fake.run(&["get", "inst/web-2", "-o", "yaml"]).out().contains("\n  phase: Backoff\n"));
    let sorted = fake.run(&["get", "inst", "--sort-by", ".status.phase", "--no-headers", "-o", "wide"]);
    assert!(sorted.out().starts_with("web-2 "), "{}", sorted.out());
}

#[test]
fn get_says_what_is_missing_and_what_was_meant() {
    let fake = Fake::with(&[process("web", true)]);
    let none = fake.run(&["get", "instances"]);
    assert_eq!((none.code, none.out(), none.err.as_str()), (0, "", "No resources found in default namespace.\n"));
    let ran = fake.run(&["get", "process", "wbe", "web"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out().contains("\nweb "), "{}", ran.out());
    assert_eq!(
        ran.err,
        "Error from server (NotFound): processes.ostler.dev \"wbe\" not found\nhint: did you mean \"web\"?\n"
    );
    assert_eq!(fake.run(&["get", "process", "x", "--ignore-not-found"]).code, 0);
    assert_eq!(fake.run(&["get", "procces"]).code, 2);
}

#[test]
fn without_a_daemon_the_error_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let ran = ran(dir.path(), &["get", "instances"]);
    assert_eq!(ran.code, 3);
    assert!(ran.err.starts_with("error: cannot reach the daemon at "), "{}", ran.err);
    assert!(ran.err.contains("hint: start it with: ostler serve --state-dir "), "{}", ran.err);
}

const MANIFEST: &str = "\
apiVersion: ostler.dev/v1
kind: Process
metadata:
  name: web
spec:
  command: [\"true\"]
  ports:
    - name: http
      port: 80
";

fn manifest(fake: &Fake) -> String {
    let path = fake.path().join("web.yaml");
    std::fs::write(&path, MANIFEST).unwrap();
    path.to_str().unwrap().to_owned()
}

fn applied(result: v1::applied::Result) -> v1::ApplyResponse {
    let object = |command: &str| v1::Object {
        json: json!({"kind": "Process", "metadata": {"name": "web"}, "spec": {"command": [command]}})
            .to_string()
            .into(),
        revision: 1,
    };
    let changed = result != v1::applied::Result::Unchanged;
    v1::ApplyResponse {
        results: vec![v1::Applied {
            object: Some(v1::Reference { kind: "Process".into(), namespace: "default".into(), name: "web".into() }),
            result: result.into(),
            before: Some(object("a")),
            after: Some(object(if changed { "b" } else { "a" })),
            effects: vec![v1::Effect {
                kind: v1::effect::Kind::Restart.into(),
                instance: "web-0".into(),
                why: "spec.command changed".into(),
            }],
            ..v1::Applied::default()
        }],
        revision: 1,
        ..v1::ApplyResponse::default()
    }
}

#[test]
fn apply_prints_one_line_per_object_and_effects_with_v() {
    let fake = Fake::start();
    let file = manifest(&fake);
    fake.shared.world().apply = Some(Ok(applied(v1::applied::Result::Configured)));
    assert_eq!(fake.run(&["apply", "-f", &file]).out(), "process/web configured\n");
    fake.shared.world().apply = Some(Ok(applied(v1::applied::Result::Configured)));
    assert_eq!(
        fake.run(&["apply", "-f", &file, "--dry-run", "-v"]).out(),
        "process/web configured (dry run)\n  will restart web-0 (spec.command changed)\n"
    );
    let world = fake.shared.world();
    let sent: Value = serde_json::from_slice(&world.applies[0].objects[0]).unwrap();
    assert_eq!(sent["metadata"]["namespace"], "default");
    assert!(!world.applies[0].dry_run && world.applies[1].dry_run);
}

#[test]
fn what_the_server_refuses_is_shown_at_its_place_in_the_file() {
    let fake = Fake::start();
    let file = manifest(&fake);
    let details = v1::Status {
        reason: "Invalid".into(),
        causes: vec![v1::Cause {
            object: 0,
            field: "spec.ports[0].port".into(),
            message: "80 is taken by process/db".into(),
        }],
        hint: "use auto".into(),
    };
    fake.shared.world().apply = Some(Err(with_details(Code::InvalidArgument, "process \"web\" is invalid", &details)));
    let ran = fake.run(&["apply", "-f", &file]);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.err,
        format!(
            "Error from server (Invalid): process \"web\" is invalid\n  * {file}:9:13: process/web: \
             spec.ports[0].port: 80 is taken by process/db\nhint: use auto\n"
        )
    );
}

#[test]
fn a_namespace_that_contradicts_the_manifest_is_refused() {
    let fake = Fake::start();
    let path = fake.path().join("n.yaml");
    std::fs::write(&path, MANIFEST.replace("name: web", "name: web\n  namespace: prod")).unwrap();
    let file = path.to_str().unwrap();
    let ran = fake.run(&["apply", "-n", "test", "-f", file]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("\"prod\" does not match the namespace \"test\""), "{}", ran.err);
    assert!(fake.shared.world().applies.is_empty());
}

#[test]
fn diff_ends_with_0_1_or_more() {
    let fake = Fake::start();
    let file = manifest(&fake);
    fake.shared.world().apply = Some(Ok(applied(v1::applied::Result::Unchanged)));
    let same = fake.run(&["diff", "-f", &file]);
    assert_eq!((same.code, same.out()), (0, ""));
    fake.shared.world().apply = Some(Ok(applied(v1::applied::Result::Configured)));
    let differs = fake.run(&["diff", "-f", &file]);
    assert_eq!(differs.code, 1);
    assert!(differs.out().contains("-  - a\n+  - b\n"), "{}", differs.out());
    assert!(differs.out().ends_with("will restart web-0 (spec.command changed)\n"), "{}", differs.out());
    fake.shared.world().apply = Some(Err(with_details(Code::InvalidArgument, "no", &v1::Status::default())));
    assert_eq!(fake.run(&["diff", "-f", &file]).code, 2);
    assert_eq!(fake.run(&["diff", "-f", "/nonexistent.yaml"]).code, 2);
}

/// Runs `work` with the daemon's world in another thread while `words` run in this one.
fn while_running(fake: &Fake, words: &[&str], work: impl FnOnce(Arc<Shared>) + Send + 'static) -> Ran {
    let shared = fake.shared.clone();
    let worker = std::thread::spawn(move || work(shared));
    let ran = fake.run(words);
    worker.join().unwrap();
    ran
}

#[test]
fn wait_ends_when_the_condition_comes_true() {
    let fake = Fake::with(&[process("web", false)]);
    let words = ["wait", "process/web", "--for=condition=Ready", "--timeout=20s"];
    let ran = while_running(&fake, &words, |shared| {
        shared.until(|world| world.watches > 0);
        shared.put(&process("web", true));
    });
    assert_eq!((ran.code, ran.out()), (0, "process/web condition met\n"), "{}", ran.err);
    assert_eq!(fake.run(&["wait", "process/web", "--for=jsonpath={.spec.replicas}=1"]).code, 0);
    assert_eq!(fake.run(&["wait", "process/web", "--for=condition=Ready", "--timeout=0"]).code, 0);
    assert_eq!(fake.run(&["wait", "process/web", "--for=delete", "--timeout=0"]).code, 4);
    let absent = fake.run(&["wait", "process/db", "--for=condition=Ready"]);
    assert_eq!(absent.code, 1);
    assert_eq!(fake.run(&["wait", "process/db", "--for=delete"]).out(), "process/db condition met\n");
}

#[test]
fn wait_says_how_things_are_when_time_is_over() {
    let fake = Fake::with(&[process("web", false)]);
    let ran = fake.run(&["wait", "process/web", "--for=condition=Ready", "--timeout=100ms"]);
    assert_eq!(ran.code, 4);
    assert_eq!(ran.err, "error: timed out waiting for the condition on process/web (1 of 1 not ready)\n");
}

#[test]
fn wait_survives_a_daemon_that_comes_back_without_its_history() {
    let mut fake = Fake::with(&[process("web", false)]);
    let dir = fake.path().to_owned();
    let waiter =
        std::thread::spawn(move || ran(&dir, &["wait", "process/web", "--for=condition=Ready", "--timeout=30s"]));
    fake.shared.until(|world| world.watches > 0);
    fake.kill();
    fake.shared.forget_history();
    fake.shared.put(&process("web", true));
    fake.restart();
    let ran = waiter.join().unwrap();
    assert_eq!((ran.code, ran.out()), (0, "process/web condition met\n"), "{}", ran.err);
}

#[test]
fn a_watch_that_starts_anew_reports_each_state_once_and_what_is_missing() {
    let mut fake = Fake::with(&[instance("a-0", "Running"), instance("b-0", "Running")]);
    let settings = Cli::try_parse_from(["ostler", "--state-dir", fake.path().to_str().unwrap(), "get", "inst"]);
    let settings = settings.unwrap().global.settings();
    let runtime = runtime();
    let mut watcher = Watcher::new(&settings, selector(Kind::Instance, "default"));
    let mut next = || {
        runtime.block_on(async {
            match watcher.next().await.unwrap() {
                Change::Present(seen) => format!("+{}", seen.name),
                Change::Gone(seen) => format!("-{}", seen.name),
                Change::Synced => "synced".into(),
            }
        })
    };
    assert_eq!([next(), next(), next()], ["+a-0", "+b-0", "synced"]);
    fake.shared.put(&instance("a-0", "Backoff"));
    assert_eq!(next(), "+a-0");
    fake.kill();
    fake.shared.remove(Kind::Instance, "b-0");
    fake.shared.put(&instance("c-0", "Running"));
    fake.shared.forget_history();
    fake.restart();
    assert_eq!([next(), next(), next()], ["+c-0", "-b-0", "synced"]);
}

#[test]
fn logs_pass_bytes_unchanged() {
    let fake = Fake::with(&[instance("web-0", "Running")]);
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(1000).collect();
    fake.shared.world().logs = bytes.clone();
    let ran = fake.run(&["logs", "web-0", "--tail", "5", "--stream", "stderr"]);
    assert_eq!((ran.code, ran.out == bytes), (0, true));
    let request = fake.shared.world().log_requests[0].clone();
    assert_eq!((request.tail_lines, request.stream, request.follow), (Some(5), 2, false));
}

#[test]
fn following_goes_on_exactly_where_a_broken_stream_ended() {
    let fake = Fake::with(&[instance("web-0", "Running")]);
    let bytes: Vec<u8> = (0..100_u8).collect();
    {
        let mut world = fake.shared.world();
        world.logs = bytes.clone();
        world.cut_logs_after = Some(4);
    }
    let ran = fake.run(&["logs", "web-0", "-f"]);
    assert_eq!((ran.code, ran.out), (0, bytes), "{}", ran.err);
    let world = fake.shared.world();
    let resumed: Vec<_> = world.log_requests.iter().map(|it| it.resume.map(|position| position.offset)).collect();
    assert_eq!(resumed, [None, Some(28), Some(56), Some(84)]);
}

#[test]
fn logs_of_a_process_have_prefixes_when_there_are_several() {
    let fake = Fake::with(&[process("web", true), instance("web-0", "Running")]);
    fake.shared.world().logs = b"hi\n".to_vec();
    assert_eq!(fake.run(&["logs", "process/web"]).out(), "hi\n");
    fake.shared.put(&instance("web-1", "Running"));
    assert_eq!(fake.run(&["logs", "process/web"]).out(), "[web-0] hi\n[web-1] hi\n");
    assert_eq!(fake.run(&["logs", "process/web", "--prefix=false"]).out(), "hi\nhi\n");
    let mistaken = fake.run(&["logs", "web"]);
    assert_eq!(mistaken.code, 1);
    assert!(
        mistaken.err.contains("hint: of all instances of the process: ostler logs process/web"),
        "{}",
        mistaken.err
    );
}

#[test]
fn delete_waits_until_the_objects_are_gone() {
    let fake = Fake::with(&[process("web", true)]);
    let ran = while_running(&fake, &["delete", "process/web", "--grace-period", "2s"], |shared| {
        shared.until(|world| world.watches > 0);
        shared.remove(Kind::Process, "web");
    });
    assert_eq!((ran.code, ran.out()), (0, "process/web deleted\n"), "{}", ran.err);
    assert_eq!(fake.shared.world().deletes[0].grace_period_ms, Some(2000));
    assert_eq!(fake.run(&["delete", "process/web"]).code, 1);
    assert_eq!(fake.run(&["delete", "process/web", "--ignore-not-found"]).code, 0);
    assert_eq!(fake.run(&["delete", "processes"]).code, 2);
}

#[test]
fn stop_waits_for_every_instance_and_not_for_those_of_others() {
    let fake = Fake::with(&[process("web", true), instance("web-0", "Running"), instance("db-0", "Running")]);
    let ran = while_running(&fake, &["stop", "process/web", "--timeout", "20s"], |shared| {
        shared.until(|world| world.watches > 0 && !world.acts.is_empty());
        shared.put(&instance("web-0", "Stopping"));
        shared.put(&instance("web-0", "Stopped"));
    });
    assert_eq!((ran.code, ran.out()), (0, "process/web stopped\n"), "{}", ran.err);
    fake.shared.put(&instance("web-0", "Stuck"));
    let stuck = fake.run(&["stop", "process/web"]);
    assert_eq!(stuck.code, 1);
    assert!(stuck.err.contains("instance/web-0 cannot be killed"), "{}", stuck.err);
    assert_eq!(fake.run(&["stop", "process/web", "--no-wait"]).code, 0);
}

#[test]
fn the_smaller_verbs_say_what_they_did() {
    let fake = Fake::with(&[process("web", true)]);
    assert_eq!(fake.run(&["signal", "hup", "process/web"]).out(), "instance/web-0 sent SIGHUP\n");
    let scaled = fake.run(&["scale", "process/wbe", "--replicas=2"]);
    assert_eq!(scaled.code, 1);
    assert!(scaled.err.ends_with("hint: did you mean \"web\"?\n"), "{}", scaled.err);
    assert_eq!(fake.run(&["upgrade"]).out(), "daemon upgraded from 1 to 2\n");
    assert_eq!(fake.run(&["store", "backup"]).out(), "/b (2 entries at revision 4)\n");
    assert!(fake.run(&["version"]).out().ends_with("\nServer: 9.9.9\n"));
    assert!(fake.run(&["info"]).out().starts_with("Version:         9.9.9\n"));
    assert_eq!(
        fake.run(&["top", "--sort-by", "cpu"]).out(),
        "node: 2 CPUs, load 0.50, memory 2.0Gi of 8.0Gi\n\n\
         NAME    CPU(cores)   CPU%    MEMORY(bytes)   FILES   READ   WRITTEN   PROCESSES   THREADS\n\
         web-0   250m         25.0%   5Mi             12      0Ki    3Mi       2           3\n"
    );
    let listed: serde_json::Value = serde_json::from_str(fake.run(&["top", "-o", "json"]).out()).unwrap();
    assert_eq!(listed["items"][0]["cpu"], "250m");
    assert_eq!(listed["items"][0]["rss"], 5 << 20);
    assert!(fake.run(&["completion", "bash"]).out().contains("ostler"));
    let described = fake.run(&["describe", "process/web"]);
    assert!(described.out().starts_with("Name:           web\nNamespace:      default\n"), "{}", described.out());
    assert!(described.out().ends_with("Instances:      <none>\nEvents:         <none>\n"), "{}", described.out());
}

#[test]
fn wait_waits_for_the_daemon_too() {
    let mut fake = Fake::with(&[process("web", true)]);
    fake.kill();
    let dir = fake.path().to_owned();
    let waiter =
        std::thread::spawn(move || ran(&dir, &["wait", "process/web", "--for=condition=Ready", "--timeout=30s"]));
    fake.restart();
    let ran = waiter.join().unwrap();
    assert_eq!((ran.code, ran.out()), (0, "process/web condition met\n"), "{}", ran.err);
    fake.kill();
    assert_eq!(fake.run(&["wait", "process/web", "--for=delete", "--timeout=50ms"]).code, 3);
}
