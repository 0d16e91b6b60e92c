//! What runs is what would have run: arguments, environment and the rules of restarts and stops, after Ostler's own
//! reading of the manifest.

use ostler_core::Span;
use ostler_core::expand::expand;
use ostler_core::kinds::{FailurePolicy, Process, RestartPolicy};
use ostler_core::object::decode;
use ostler_import::{Effect, Error, Format, Imported, import, to_yaml};
use ostler_manifest::{Input, load};

/// The processes of a text, as the daemon would have them.
fn processes(imported: &Imported) -> Vec<Process> {
    let text = to_yaml(&imported.objects).unwrap().into_bytes();
    let documents = load(&[Input::Text { name: "x".to_owned(), text, base: "/base".into() }]).unwrap();
    let processes = documents.iter().filter(|document| document.kind == "Process");
    processes.map(|document| decode(&document.json).unwrap()).collect()
}

fn one(format: Format, text: &str) -> (Process, Imported) {
    let imported = import("web.service", text, Some(format)).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut processes = processes(&imported);
    assert_eq!(processes.len(), 1, "{text}");
    (processes.remove(0), imported)
}

/// Arguments as the process gets them, with the variables of a machine.
fn arguments(process: &Process) -> Vec<String> {
    let outside = [("HOME", "/home/me"), ("OSTLER_ORDINAL", "2"), ("REGION", "eu"), ("PORT", "5000")];
    let mut variables: Vec<(String, String)> =
        outside.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let lookup = |variables: &[(String, String)], name: &str| {
        variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    for variable in &process.spec.env {
        let value = expand(&variable.value, |name| lookup(&variables, name));
        variables.push((variable.name.clone(), value));
    }
    process.spec.command.iter().map(|word| expand(word, |name| lookup(&variables, name))).collect()
}

#[test]
fn arguments_are_what_the_other_manager_would_have_given() {
    for (format, text, expected) in [
        (Format::Procfile, "web: ./run 'a b' --x=1", &["/base/run", "a b", "--x=1"][..]),
        (Format::Procfile, "web: run -p $PORT | tee log", &["sh", "-c", "run -p $PORT | tee log"]),
        (Format::Procfile, "web: echo $(date) $$", &["sh", "-c", "echo $(date) $$"]),
        (
            Format::ProcessCompose,
            "processes: {w: {command: 'run {{.PC_REPLICA_NUM}} \"$(date)\" $$X', replicas: 3}}",
            &["bash", "-c", "run 2 \"$(date)\" $X"],
        ),
        (
            Format::ProcessCompose,
            "disable_env_expansion: true\nprocesses: {w: {entrypoint: [run, a b], command: 'c $$ d'}}",
            &["run", "a b", "c $$ d"],
        ),
        (
            Format::Supervisord,
            "[program:w]\ncommand=run %(program_name)s %(process_num)d %(ENV_HOME)s 5%% $(x) \"a b\" ; comment\n",
            &["run", "w", "2", "/home/me", "5%", "$(x)", "a b"],
        ),
        (
            Format::Pm2,
            r#"{"apps": [{"script": "app.js", "args": "-a 'b c' $(x)", "node_args": "--inspect"}]}"#,
            &["node", "--inspect", "app.js", "-a", "b c", "$(x)"],
        ),
        (Format::Pm2, r#"{"script": "./bin/app", "args": ["a b", 3]}"#, &["/base/bin/app", "a b", "3"]),
        (Format::Pm2, r#"{"pm2": [{"script": "x.py"}]}"#, &["python3", "x.py"]),
        (Format::Pm2, "apps:\n  - script: npm\n    args: run start\n", &["npm", "run", "start"]),
        (
            Format::Systemd,
            "[Service]\nEnvironment=A=x\\\\y \"O=-a -b\"\nExecStart=/bin/x $O ${A}z $$5 %p 'a b' 50%%\n",
            &["/bin/x", "-a", "-b", "x\\yz", "$5", "web", "a b", "50%"],
        ),
        (
            Format::Systemd,
            "[Service]\nExecStart=/bin/x $OPTS --a=${B}c \"d e\" $$\n",
            &["sh", "-c", "exec /bin/x $OPTS \"--a=${B}c\" 'd e' '$'"],
        ),
        (Format::Systemd, "[Service]\nExecStart=:/bin/x $A $(b)\n", &["/bin/x", "$A", "$(b)"]),
        (
            Format::Hsu,
            "managed_processes:\n- id: w\n  management: {control: {executable: ./run, arguments: ['$(x)', '$$'], \
             working_directory: sub}}\n",
            &["/base/sub/run", "$(x)", "$$"],
        ),
    ] {
        assert_eq!(arguments(&one(format, text).0), expected, "{text}");
    }
}

#[test]
fn restarts_and_stops_follow_the_defaults_of_the_other_manager() {
    let rules = |format, text| {
        let spec = one(format, text).0.spec;
        (spec.restart_policy, spec.stop.signal, spec.stop.grace_period)
    };
    let text = |text: &str| text.to_owned();
    for (format, input, policy, signal, grace) in [
        (Format::Procfile, "web: x", RestartPolicy::Always, "SIGTERM", Span::from_secs(10)),
        (Format::ProcessCompose, "processes: {w: {command: x}}", RestartPolicy::Never, "SIGTERM", Span::from_secs(10)),
        (Format::Supervisord, "[program:w]\ncommand=x\n", RestartPolicy::OnFailure, "SIGTERM", Span::from_secs(10)),
        (Format::Pm2, r#"{"script": "x.js"}"#, RestartPolicy::Always, "SIGINT", Span::from_millis(1600)),
        (Format::Systemd, "[Service]\nExecStart=/x\n", RestartPolicy::Never, "SIGTERM", Span::from_secs(90)),
    ] {
        assert_eq!(rules(format, input), (policy, text(signal), grace), "{format}");
    }
}

#[test]
fn delays_grow_as_they_did() {
    let (process, _) = one(
        Format::Systemd,
        "[Service]\nExecStart=/x\nRestart=always\nRestartSec=1\nRestartSteps=4\nRestartMaxDelaySec=16\n",
    );
    let backoff = process.spec.backoff;
    assert_eq!((backoff.initial, backoff.max), (Span::from_secs(1), Span::from_secs(16)));
    assert!((backoff.factor - 2.0).abs() < 1e-9);
    let (process, _) =
        one(Format::Pm2, r#"{"script": "x.js", "restart_delay": 4000, "max_restarts": 3, "min_uptime": "5s"}"#);
    let backoff = process.spec.backoff;
    assert_eq!((backoff.initial, backoff.max, backoff.jitter), (Span::from_secs(4), Span::from_secs(4), 0.0));
    assert_eq!((backoff.max_retries, backoff.reset_after), (Some(3), Span::from_secs(5)));
}

#[test]
fn variables_that_a_command_uses_are_inherited() {
    let (process, _) = one(Format::Procfile, "web: X=1 run $REGION $X $HOME $PORT");
    assert_eq!(process.spec.inherit_env, ["REGION"]);
    assert_eq!(process.spec.ports.len(), 1);
    let (process, _) = one(Format::Supervisord, "[program:w]\ncommand=x\nenvironment=A=\"%(ENV_REGION)s-1\"\n");
    assert_eq!(process.spec.inherit_env, ["REGION"]);
    assert_eq!(process.spec.env[0].value, "$(REGION)-1");
}

#[test]
fn what_does_not_start_by_itself_has_no_replicas_and_says_how_to_start_it() {
    let (process, imported) = one(Format::Supervisord, "[program:w]\ncommand=x\nnumprocs=3\nautostart=false\n");
    assert_eq!(process.spec.replicas, Some(0));
    assert!(imported.notes.iter().any(|note| note.message.contains("ostler scale process/w --replicas=3")));
}

#[test]
fn an_import_that_loses_nothing_has_hints_only() {
    for (format, text) in [
        (Format::Procfile, "web: ./run\n"),
        (
            Format::Supervisord,
            "[supervisord]\nnodaemon=true\n[program:w]\ncommand=x\nautorestart=true\nstopasgroup=true\n",
        ),
        (Format::Pm2, r#"{"apps": [{"name": "w", "script": "x.js", "env": {"A": 1}, "kill_timeout": 3000}]}"#),
        (
            Format::Systemd,
            "[Unit]\nAfter=network.target\n[Service]\nExecStart=/x\nUser=me\n[Install]\nWantedBy=multi-user.target\n",
        ),
    ] {
        let imported = one(format, text).1;
        let worse: Vec<_> = imported.notes.iter().filter(|note| note.effect != Effect::Hint).collect();
        assert!(worse.is_empty(), "{text}: {worse:?}");
    }
}

#[test]
fn pm2_watches_what_it_is_told_and_not_what_it_never_does() {
    let watch = |more: &str| {
        let text = format!(r#"{{"apps": [{{"name": "w", "script": "x.js", {more}}}]}}"#);
        let imported = import("ecosystem.json", &text, Some(Format::Pm2)).unwrap();
        let lost = imported.notes.iter().filter(|note| note.effect == Effect::Lost).count();
        (imported.objects[0]["spec"]["watch"].clone(), lost)
    };
    let everything = serde_json::json!({"paths": ["."], "exclude": [".*", "node_modules"]});
    assert_eq!(watch(r#""watch": true"#), (everything, 0));
    assert_eq!(watch(r#""watch": false, "ignore_watch": ["x"]"#), (serde_json::Value::Null, 0));
    let (found, lost) = watch(
        r#""watch": ["server", "conf/*.json"], "ignore_watch": ["./logs", "[\\/\\\\]\\./"], "watch_delay": 1000"#,
    );
    let wanted = serde_json::json!({
        "paths": ["."], "include": ["conf/*.json", "server/**"], "exclude": ["logs"], "debounce": "1s",
    });
    assert_eq!((found, lost), (wanted, 1));
}

#[test]
fn what_cannot_be_read_says_what_to_do() {
    let error = import("ecosystem.config.js", "module.exports = {}", None).unwrap_err();
    assert_eq!(error, Error::JavaScript);
    assert!(error.hint().unwrap().contains("JSON.stringify"));
    assert_eq!(import("<stdin>", "module.exports = {apps: []}\n", None), Err(Error::JavaScript));
    let error = import("notes.txt", "hello\n", None).unwrap_err();
    assert!(error.hint().unwrap().contains("--from hsu|process-compose|procfile"), "{error}");
    assert!(matches!(import("x.timer", "[Timer]\n", None), Err(Error::NotAService { .. })));
    assert_eq!(import("x.json", r#"{"apps": []}"#, None), Err(Error::Empty));
    let broken = import("x.yaml", "processes:\n  a: [\n", Some(Format::ProcessCompose));
    assert!(matches!(broken, Err(Error::Syntax { line: 2 | 3, .. })), "{broken:?}");
    assert!(matches!(import("Procfile", "web: x\n???\n", None), Err(Error::Syntax { line: 2, .. })));
}

#[test]
fn commands_around_a_service_become_hooks() {
    let unit = "[Service]\nEnvironment=DIR=/run/x\nExecStartPre=/bin/mkdir -p $DIR\nExecStartPre=-/bin/chown web $DIR\n\
                ExecStart=/bin/web\nExecStartPost=-/bin/register ${MAINPID}\nExecStop=/bin/kill -USR1 $MAINPID\n\
                ExecStopPost=/bin/rm -rf $DIR\nTimeoutStartSec=20\nTimeoutStopSec=40\n";
    let (process, imported) = one(Format::Systemd, unit);
    let lifecycle = process.spec.lifecycle.expect("there are hooks");
    let found: Vec<_> = lifecycle
        .hooks()
        .map(|(kind, hook)| {
            let command = hook.exec.as_ref().unwrap().command.join(" ");
            (kind.name(), command, hook.timeout, hook.failure_policy)
        })
        .collect();
    let hook = |name, command: &str, seconds, policy| (name, command.to_owned(), Span::from_secs(seconds), policy);
    assert_eq!(
        found,
        [
            hook("preStart", "sh -c /bin/mkdir -p $DIR && { /bin/chown web $DIR || true; }", 20, None),
            hook("postStart", "/bin/register $(OSTLER_PID)", 20, Some(FailurePolicy::Ignore)),
            hook("preStop", "/bin/kill -USR1 $(OSTLER_PID)", 40, None),
            hook("postStop", "/bin/rm -rf /run/x", 40, None),
        ]
    );
    assert!(process.spec.inherit_env.is_empty(), "{:?}", process.spec.inherit_env);
    assert!(!imported.notes.iter().any(|note| note.to_string().contains("no equivalent: Service.Exec")));
}

#[test]
fn files_of_variables_are_read_at_each_start() {
    let unit = "[Service]\nEnvironmentFile=/etc/gone\nEnvironmentFile=\nEnvironmentFile=-/etc/default/x\n\
                EnvironmentFile=/etc/x\nEnvironmentFile=/etc/x.d/*\nExecStart=/bin/x $OPTS\n";
    let (process, imported) = one(Format::Systemd, unit);
    let files: Vec<_> = process.spec.env_files.iter().map(|file| (file.path.as_str(), file.optional)).collect();
    assert_eq!(files, [("/etc/default/x", true), ("/etc/x", false)]);
    assert!(process.spec.inherit_env.is_empty(), "the variable is in one of the files, or nowhere");
    assert_eq!(imported.notes.len(), 1, "{:?}", imported.notes);
}
