//! From an `Instance` to the keeper's Spawn: environment, expansion, user and limits of the log.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::sync::OnceLock;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use ostler_core::Timestamp;
use ostler_core::config::{self, Resolved};
use ostler_core::expand::expand;
use ostler_core::kinds::{Enforcement, HookKind, Instance, ProcessSpec, WhenBlocked};
use ostler_core::plan::instance::{StartError, StartErrorKind};
use ostler_keeper::wire;
use ostler_probe::{Prober, Surroundings};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the logs of an instance are, relative to the state directory.
pub fn log_dir(namespace: &str, name: &str) -> String {
    format!("logs/{namespace}/{name}")
}

/// The policy of a spec for its logs, as the keeper takes it.
pub(crate) fn log_settings(spec: &ProcessSpec) -> wire::LogSettings {
    wire::LogSettings {
        max_size: spec.logs.max_size.0,
        max_files: spec.logs.max_files,
        max_age_seconds: spec.logs.max_age.as_secs(),
        drop_when_blocked: spec.logs.when_blocked == WhenBlocked::Drop,
    }
}

/// The limits that hold for an instance now, as the keeper takes them.
pub(crate) fn limits(instance: &Instance) -> Option<wire::Limits> {
    let spec = &instance.spec.template;
    let limits = spec.limits_in_effect(instance.status.resources.as_deref())?;
    let required = spec.resources.as_ref().is_some_and(|it| it.enforcement == Enforcement::Require);
    Some(wire::Limits {
        memory: limits.memory.map(|bytes| bytes.0),
        cpu: limits.cpu.map(|cpu| cpu.0),
        processes: limits.processes,
        io_weight: limits.io_weight.map(u32::from),
        open_files: limits.open_files,
        nice: limits.nice.map(i32::from),
        required,
    })
}

/// The command that starts `attempt` of an instance, or why that is impossible. `service` and `traceparent` are for what
/// the process tells of itself by OpenTelemetry.
pub(crate) fn command(
    instance: &Instance,
    given: &Resolved,
    attempt: u64,
    now: Timestamp,
    service: &str,
    traceparent: Option<String>,
) -> Result<wire::Spawn, StartError> {
    let spec = &instance.spec.template;
    let identity = identity(spec).map_err(|message| StartError { kind: StartErrorKind::BadUser, message, at: now })?;
    let failed = |kind| move |message| StartError { kind, message, at: now };
    let Environment { env, hidden } = environment(instance, &identity, given, service, traceparent)
        .map_err(failed(StartErrorKind::BadEnvironment))?;
    let shown = RefCell::new(None);
    let lookup = |name: &str| {
        if hidden.contains(name) {
            shown.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        env.get(name).cloned()
    };
    let words: Vec<&String> = match &spec.fallback {
        Some(fallback) if instance.status.fallback.is_some() => fallback.command.iter().collect(),
        Some(_) | None => spec.command.iter().chain(&spec.args).collect(),
    };
    let argv = words.into_iter().map(|word| expand(word, lookup).into_bytes()).collect();
    if let Some(name) = shown.into_inner() {
        let message = format!(
            "the command names $({name}), whose value comes from a Secret, and every user can see arguments; read it from the environment"
        );
        return Err(failed(StartErrorKind::SecretInCommand)(message));
    }
    let metadata = &instance.metadata;
    Ok(wire::Spawn {
        id: metadata.uid.clone(),
        attempt,
        name: format!("{}/{}", metadata.namespace, metadata.name),
        argv,
        env: env.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect(),
        working_dir: if spec.working_dir.is_empty() { "/".to_owned() } else { spec.working_dir.clone() },
        uid: identity.switch.then_some(identity.uid),
        gid: identity.switch.then_some(identity.gid),
        groups: identity.groups.clone(),
        log_dir: log_dir(&metadata.namespace, &metadata.name),
        log: Some(log_settings(spec)),
        limits: limits(instance),
        ..wire::Spawn::default()
    })
}

/// Lets a process whose probes listen to it speak by sd_notify(3), unless its manifest sends that elsewhere.
pub(crate) fn let_speak(command: &mut wire::Spawn, spec: &ProcessSpec, prober: &Prober) {
    let Some(probe) = spec.notify() else { return };
    if spec.env.iter().any(|variable| variable.name == "NOTIFY_SOCKET") {
        return;
    }
    let address = prober.notify_address(command.uid.is_some());
    command.env.push(format!("NOTIFY_SOCKET={address}").into_bytes());
    if let Some(watchdog) = probe.watchdog {
        command.env.push(format!("WATCHDOG_USEC={}", watchdog.as_micros()).into_bytes());
    }
}

/// What the commands of an instance's probes are run with, if it has such; or why they cannot be run.
pub(crate) fn surroundings(instance: &Instance, given: &Resolved) -> Result<Surroundings, String> {
    let spec = &instance.spec.template;
    if !spec.probes().any(|(_, probe)| probe.exec.is_some()) {
        return Ok(Surroundings::default());
    }
    beside(instance, given)
}

/// What a hook is run with, `more` besides what everything of the instance has; or why it cannot be run.
pub(crate) fn hook_surroundings(
    instance: &Instance,
    given: &Resolved,
    kind: HookKind,
    more: &[(&'static str, String)],
) -> Result<Surroundings, String> {
    let mut surroundings = beside(instance, given)?;
    let own = std::iter::once(("OSTLER_HOOK", kind.name().to_owned())).chain(more.iter().cloned());
    surroundings.env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    Ok(surroundings)
}

/// What a command beside the process is run with.
fn beside(instance: &Instance, given: &Resolved) -> Result<Surroundings, String> {
    let spec = &instance.spec.template;
    let identity = identity(spec)?;
    let Environment { env, hidden } = environment(instance, &identity, given, instance.spec.owner(), None)?;
    Ok(Surroundings {
        env,
        hidden,
        working_dir: if spec.working_dir.is_empty() { "/".into() } else { spec.working_dir.clone().into() },
        uid: identity.switch.then_some(identity.uid),
        gid: identity.switch.then_some(identity.gid),
        groups: identity.groups,
    })
}

/// Whose the files of a process are to be.
pub(crate) fn owner(spec: &ProcessSpec) -> Result<crate::files::Owner, String> {
    let identity = identity(spec)?;
    Ok(identity.switch.then_some((identity.uid, identity.gid)))
}

/// Whom a process runs as.
#[derive(Clone)]
struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// Whether that is somebody else than the daemon.
    switch: bool,
    name: String,
    home: String,
    shell: String,
}

/// Looks the user up; the daemon's own only once, because that is whom most processes run as.
fn identity(spec: &ProcessSpec) -> Result<Identity, String> {
    static OWN: OnceLock<Identity> = OnceLock::new();
    if spec.user.is_some() || spec.group.is_some() {
        return look_up(spec);
    }
    if let Some(own) = OWN.get() {
        return Ok(own.clone());
    }
    let own = look_up(spec)?;
    Ok(OWN.get_or_init(|| own).clone())
}

fn look_up(spec: &ProcessSpec) -> Result<Identity, String> {
    let lookup = |uid: Uid| User::from_uid(uid).ok().flatten();
    let user = match &spec.user {
        None => lookup(Uid::effective()),
        Some(wanted) => {
            match User::from_name(wanted).map_err(|why| format!("cannot look up user {wanted:?}: {why}"))? {
                Some(user) => Some(user),
                None => match wanted.parse().map(Uid::from_raw) {
                    // A number needs no entry in the user database.
                    Ok(uid) => Some(lookup(uid).unwrap_or_else(|| nameless(uid))),
                    Err(_) => return Err(format!("there is no user {wanted:?} on this machine")),
                },
            }
        }
    };
    let user = user.unwrap_or_else(|| nameless(Uid::effective()));
    let gid = match &spec.group {
        None if spec.user.is_none() => Gid::effective(),
        None => user.gid,
        Some(wanted) => {
            let found = Group::from_name(wanted).map_err(|why| format!("cannot look up group {wanted:?}: {why}"))?;
            match (found, wanted.parse()) {
                (Some(group), _) => group.gid,
                (None, Ok(gid)) => Gid::from_raw(gid),
                (None, Err(_)) => return Err(format!("there is no group {wanted:?} on this machine")),
            }
        }
    };
    let switch = user.uid != Uid::effective() || gid != Gid::effective();
    if switch && !Uid::effective().is_root() {
        return Err(format!(
            "the daemon runs as user {} and cannot start processes as user {}; run it as root",
            Uid::effective(),
            user.uid
        ));
    }
    let groups = if switch {
        let name = CString::new(user.name.as_str()).map_err(|_| "a user name with a NUL character".to_owned())?;
        getgrouplist(&name, gid).unwrap_or_else(|_| vec![gid]).into_iter().map(Gid::as_raw).collect()
    } else {
        Vec::new()
    };
    Ok(Identity {
        uid: user.uid.as_raw(),
        gid: gid.as_raw(),
        groups,
        switch,
        home: user.dir.display().to_string(),
        shell: user.shell.display().to_string(),
        name: user.name,
    })
}

fn nameless(uid: Uid) -> User {
    User {
        name: uid.to_string(),
        passwd: CString::default(),
        uid,
        gid: Gid::from_raw(uid.as_raw()),
        gecos: CString::default(),
        dir: "/".into(),
        shell: "/bin/sh".into(),
    }
}

/// Variables, and which of them hold something of a Secret.
struct Environment {
    env: BTreeMap<String, String>,
    hidden: BTreeSet<String>,
}

/// The most bytes that a file with variables may have.
const ENV_FILE: u64 = 1 << 20;

/// The whole environment. Later entries win: what everybody gets, what is taken from the daemon, what Ostler sets,
/// files, ConfigMaps and Secrets, what the manifest says.
fn environment(
    instance: &Instance,
    identity: &Identity,
    given: &Resolved,
    service: &str,
    traceparent: Option<String>,
) -> Result<Environment, String> {
    let spec = &instance.spec;
    let mut env = BTreeMap::new();
    let mut hidden = BTreeSet::new();
    let mut set = |name: &str, value: String| env.insert(name.to_owned(), value);
    set("PATH", PATH.to_owned());
    set("HOME", identity.home.clone());
    set("USER", identity.name.clone());
    set("LOGNAME", identity.name.clone());
    set("SHELL", identity.shell.clone());
    set("LANG", "C.UTF-8".to_owned());
    for name in &spec.template.inherit_env {
        if let Ok(value) = std::env::var(name) {
            set(name, value);
        }
    }
    set("OSTLER_INSTANCE", instance.metadata.name.clone());
    match &spec.job {
        None => set("OSTLER_PROCESS", spec.process.clone()),
        Some(share) => {
            set("OSTLER_JOB", share.name.clone());
            set("JOB_COMPLETION_INDEX", share.index.to_string())
        }
    };
    set("OSTLER_NAMESPACE", instance.metadata.namespace.clone());
    set("OSTLER_ORDINAL", spec.ordinal.to_string());
    if let Some(directory) = &given.directory {
        set("OSTLER_FILES_DIR", directory.clone());
    }
    if let Some(traceparent) = traceparent {
        set("TRACEPARENT", traceparent);
    }
    set("OTEL_RESOURCE_ATTRIBUTES", resource_attributes(instance, service));
    for (index, port) in spec.template.ports.iter().enumerate() {
        let Some(number) = spec.ports.get(&port.name) else { continue };
        if index == 0 {
            set("PORT", number.to_string());
        }
        set(&format!("PORT_{}", port.name.to_ascii_uppercase().replace('-', "_")), number.to_string());
    }
    for file in &spec.template.env_files {
        env.extend(env_file(&file.path, file.optional)?);
    }
    for (name, variable) in &given.env_from {
        env.insert(name.clone(), variable.value.clone());
        if variable.secret {
            hidden.insert(name.clone());
        }
    }
    for variable in &spec.template.env {
        let (value, secret) = if variable.value_from.is_some() {
            let Some(found) = given.env.get(&variable.name) else { continue };
            (found.value.clone(), found.secret)
        } else {
            let secret = config::names_in(&variable.value).iter().any(|name| hidden.contains(name));
            (expand(&variable.value, |name| env.get(name).cloned()), secret)
        };
        env.insert(variable.name.clone(), value);
        if secret {
            hidden.insert(variable.name.clone());
        } else {
            hidden.remove(&variable.name);
        }
    }
    Ok(Environment { env, hidden })
}

/// The variables of a file, but for those that Ostler sets itself.
fn env_file(path: &str, optional: bool) -> Result<Vec<(String, String)>, String> {
    let bad = |why: String| format!("cannot read the environment file {path}: {why}");
    match std::fs::metadata(path) {
        Ok(file) if !file.is_file() => return Err(bad("it is not a file".to_owned())),
        Ok(file) if file.len() > ENV_FILE => return Err(bad(format!("more than {ENV_FILE} bytes"))),
        Ok(_) => {}
        Err(why) if optional && why.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(why) => return Err(bad(why.to_string())),
    }
    let text = std::fs::read_to_string(path).map_err(|why| bad(why.to_string()))?;
    let mut read = config::parse_env_file(&text).map_err(bad)?;
    read.retain(|(name, _)| !config::is_reserved(name));
    Ok(read)
}

/// Names the instance in what its process tells of itself by OpenTelemetry. Names and uids need no escaping.
fn resource_attributes(instance: &Instance, service: &str) -> String {
    let metadata = &instance.metadata;
    format!(
        "service.name={service},service.namespace={},service.instance.id={},ostler.instance={}",
        metadata.namespace, metadata.uid, metadata.name
    )
}

/// Why the keeper could not start a process, in words and by kind.
pub(crate) fn start_error(error: &wire::SpawnError, at: Timestamp) -> StartError {
    use wire::spawn_error::Stage;
    let errno = nix::errno::Errno::from_raw(error.errno);
    let path = &error.path;
    let exhausted = matches!(
        errno,
        nix::errno::Errno::EAGAIN | nix::errno::Errno::ENOMEM | nix::errno::Errno::EMFILE | nix::errno::Errno::ENFILE
    );
    let (kind, what) = match error.stage() {
        Stage::Exec => (
            match errno {
                nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR => StartErrorKind::CommandNotFound,
                nix::errno::Errno::EACCES | nix::errno::Errno::EPERM => StartErrorKind::PermissionDenied,
                nix::errno::Errno::ENOEXEC | nix::errno::Errno::E2BIG => StartErrorKind::BadFormat,
                _ => StartErrorKind::Other,
            },
            format!("cannot execute {path}"),
        ),
        Stage::WorkingDir => {
            (StartErrorKind::BadWorkingDirectory, format!("cannot enter the working directory {path}"))
        }
        Stage::User => (StartErrorKind::BadUser, format!("cannot become the user: {path}")),
        Stage::Cgroup => (StartErrorKind::Other, format!("cannot make the cgroup {path}")),
        Stage::Pipe => (StartErrorKind::Other, "cannot make the pipes for its output".to_owned()),
        Stage::Fork => (StartErrorKind::Other, "cannot make a process".to_owned()),
        Stage::Journal => (StartErrorKind::Other, format!("cannot write the journal {path}")),
        Stage::Limits if errno == nix::errno::Errno::EOPNOTSUPP => {
            let message = format!(
                "it may not run without limits that cannot be enforced here: {path}; spec.resources.enforcement: \
                 BestEffort would run it without them"
            );
            return StartError { kind: StartErrorKind::LimitsNotEnforceable, message, at };
        }
        Stage::Limits => (StartErrorKind::Other, format!("cannot set its limits: {path}")),
        Stage::Unspecified => (StartErrorKind::Other, format!("cannot start {path}")),
    };
    let kind = if exhausted { StartErrorKind::ResourcesExhausted } else { kind };
    StartError { kind, message: format!("{what}: {}", errno.desc()), at }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn instance(template: &serde_json::Value) -> Instance {
        serde_json::from_value(json!({
            "apiVersion": "ostler.dev/v1", "kind": "Instance",
            "metadata": {"name": "web-1", "namespace": "default", "uid": "u"},
            "spec": {"process": "web", "ordinal": 1, "revision": "r", "ports": {"http": 20001, "admin-ui": 20002}, "template": template},
        }))
        .unwrap()
    }

    fn env(spawn: &wire::Spawn) -> BTreeMap<String, String> {
        let pair = |bytes: &Vec<u8>| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            let (name, value) = text.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        };
        spawn.env.iter().map(pair).collect()
    }

    #[test]
    fn ports_and_identity_are_injected_and_expanded() {
        let spawn = command(
            &instance(&json!({
                "command": ["serve", "--port=$(PORT)", "$(GREETING)", "$(NOPE)"],
                "env": [{"name": "GREETING", "value": "I am $(OSTLER_INSTANCE)"}],
                "ports": [{"name": "http", "port": "auto"}, {"name": "admin-ui", "port": "auto"}],
            })),
            &Resolved::default(),
            7,
            Timestamp::default(),
            "web",
            Some("00-a-b-01".to_owned()),
        )
        .unwrap();
        let argv: Vec<_> = spawn.argv.iter().map(|word| std::str::from_utf8(word).unwrap()).collect();
        assert_eq!(argv, ["serve", "--port=20001", "I am web-1", "$(NOPE)"]);
        let env = env(&spawn);
        assert_eq!((env["PORT_HTTP"].as_str(), env["PORT_ADMIN_UI"].as_str()), ("20001", "20002"));
        assert_eq!((env["OSTLER_ORDINAL"].as_str(), env["OSTLER_PROCESS"].as_str()), ("1", "web"));
        assert_eq!(env["TRACEPARENT"], "00-a-b-01");
        assert_eq!(
            env["OTEL_RESOURCE_ATTRIBUTES"],
            "service.name=web,service.namespace=default,service.instance.id=u,ostler.instance=web-1"
        );
        assert_eq!(spawn.log_dir, "logs/default/web-1");
    }

    #[test]
    fn nothing_of_our_own_environment_leaks_unless_named() {
        // Cargo sets this for tests.
        assert!(std::env::var("CARGO_MANIFEST_DIR").is_ok());
        let plain =
            command(&instance(&json!({"command": ["x"]})), &Resolved::default(), 1, Timestamp::default(), "x", None)
                .unwrap();
        assert!(!env(&plain).contains_key("CARGO_MANIFEST_DIR"));
        let named = json!({"command": ["x"], "inheritEnv": ["CARGO_MANIFEST_DIR", "NOT_SET_ANYWHERE"]});
        let named = env(&command(&instance(&named), &Resolved::default(), 1, Timestamp::default(), "x", None).unwrap());
        assert!(named.contains_key("CARGO_MANIFEST_DIR") && !named.contains_key("NOT_SET_ANYWHERE"));
    }

    #[test]
    fn an_unknown_user_is_a_start_error() {
        let error = command(
            &instance(&json!({"command": ["x"], "user": "no-such-user"})),
            &Resolved::default(),
            1,
            Timestamp::default(),
            "x",
            None,
        );
        assert_eq!(error.unwrap_err().kind, StartErrorKind::BadUser);
    }

    #[test]
    fn errors_of_exec_are_told_apart() {
        use wire::spawn_error::Stage;
        let error = |stage: Stage, errno: i32| {
            let error =
                wire::SpawnError { stage: stage.into(), errno, path: "/x".to_owned(), ..wire::SpawnError::default() };
            start_error(&error, Timestamp::default()).kind
        };
        assert_eq!(error(Stage::Exec, 2), StartErrorKind::CommandNotFound);
        assert_eq!(error(Stage::Exec, 13), StartErrorKind::PermissionDenied);
        assert_eq!(error(Stage::Exec, 8), StartErrorKind::BadFormat);
        assert_eq!(error(Stage::WorkingDir, 2), StartErrorKind::BadWorkingDirectory);
        assert_eq!(error(Stage::Fork, 11), StartErrorKind::ResourcesExhausted);
    }
}
