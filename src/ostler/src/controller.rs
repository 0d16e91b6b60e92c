//! The controller's process: wires store, driver, controller and API together.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ostler_config::{Config, Live, OnShutdown};
use ostler_engine::driver::{KeeperDriver, KeeperProgram};
use ostler_engine::probe::{AllowList, Meter};
use ostler_engine::usage::{self, Sampler};
use ostler_engine::{Clock, Controller, Ended, Options, Start, StartFailed, Tuning};
use ostler_keeper::wire;
use ostler_server::{Daemon, Service, grpc};
use ostler_store::{DiskStore, OpenError, Store};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::flags::{Missing, Received, Shared};
use crate::{VERSION, story};

/// Why the controller's process ends early.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Flags(#[from] Missing),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Start(#[from] StartFailed),
    #[error("cannot talk to the keeper")]
    Keeper(#[source] io::Error),
    #[error("cannot make the socket {path}")]
    Bind { path: String, source: io::Error },
    #[error("the store takes no writes")]
    Store(#[from] ostler_store::Error),
    #[error("{message}{}", hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default())]
    Sources { message: String, hint: Option<String> },
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
    #[error(transparent)]
    Telemetry(#[from] ostler_telemetry::Error),
}

/// Runs the controller for the keeper that started this process.
pub(crate) fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    crate::memory::settle();
    let flags = Received::read(args);
    match begin(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Also without a subscriber: this is what the person who typed `ostler serve` has to see.
            eprintln!("error: {}", story(&why));
            ExitCode::from(u8::try_from(ostler_keeper::CANNOT_BEGIN).unwrap_or(1))
        }
    }
}

fn begin(flags: &Received) -> Result<(), Failed> {
    let shared = flags.shared()?;
    let socket = flags.fd("keeper-fd")?;
    let lock = flags.fd("lock-fd")?;
    let live = Live::resume(shared.given.clone(), &shared.state_dir);
    let running = live.running();
    let telemetry = ostler_telemetry::begin(&crate::observe::settings(&shared.state_dir, &running))?;
    let filter = crate::observe::subscribe(&running.log, telemetry.as_ref());
    if let Some(why) = live.show().error {
        warn!("the configuration file is bad, and the values before stay in force: {why}");
    }
    let (tune, tuned) = tokio::sync::watch::channel(tuning(&running));
    let allow = AllowList::default();
    let allowed = allow.clone();
    let live = live.applied_by(move |config| {
        filter(&config.log);
        allowed.set(&config.probe_allow);
        tune.send_if_modified(|now| {
            let new = tuning(config);
            std::mem::replace(now, new) != new
        });
    });
    let configured = Configured { live: Arc::new(live), tuning: tuned, allow };
    let mut options = ostler_store::Options::new(shared.state_dir.join("store"));
    options.on_commit = ostler_telemetry::metrics().map(|_| crate::observe::committed as fn(_, _));
    let store = Arc::new(DiskStore::open(&options)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("controller")
        .enable_all()
        .build()
        .map_err(Failed::Threads)?;
    let output = telemetry
        .as_ref()
        .and_then(ostler_telemetry::Telemetry::records)
        .map(|records| crate::output::forward(records, Arc::clone(&store) as Arc<dyn Store>, shared.state_dir.clone()));
    let ended = runtime.block_on(async {
        let program = KeeperProgram { program: shared.program.clone(), args: shared.to_args("keeper") };
        let driver = KeeperDriver::connect(socket, lock, program, VERSION).map_err(Failed::Keeper)?;
        operate(&shared, Arc::clone(&store) as Arc<dyn Store>, driver, configured).await
    });
    // Closed before the keeper may end: whoever starts the next daemon finds everything in place.
    if let Err(why) = store.close() {
        error!(%why, "the store was not closed properly");
    }
    let (ended, mut driver) = ended?;
    if ended == Ended::Shutdown {
        use ostler_engine::driver::Driver as _;
        let _enter = runtime.enter();
        driver.submit(wire::Shutdown { exit_code: 0 }.into());
        driver.flush();
    }
    drop(output);
    if let Some(telemetry) = telemetry {
        telemetry.end();
    }
    runtime.shutdown_background();
    Ok(())
}

/// The configuration, and where its changes arrive.
struct Configured {
    live: Arc<Live>,
    tuning: tokio::sync::watch::Receiver<Tuning>,
    allow: AllowList,
}

fn tuning(config: &Config) -> Tuning {
    Tuning {
        tick: config.tick.to_std(),
        stop_on_terminate: config.on_shutdown == OnShutdown::Stop,
        shutdown_deadline: config.shutdown_deadline,
    }
}

async fn operate(
    shared: &Shared,
    store: Arc<dyn Store>,
    driver: KeeperDriver,
    configured: Configured,
) -> Result<(Ended, KeeperDriver), Failed> {
    let options = Options { state_dir: shared.state_dir.clone(), tuning: configured.tuning };
    let live = configured.live;
    let sampler = Sampler::start(usage::Settings::default()).unwrap_or_else(|why| {
        error!(%why, "cannot start a thread; the usage of instances is not known");
        Sampler::off()
    });
    let probes = ostler_engine::probe::Settings {
        state_dir: shared.state_dir.clone(),
        allow: configured.allow,
        meter: ostler_telemetry::metrics().map(|metrics| Arc::new(crate::observe::Checks(metrics)) as Arc<dyn Meter>),
        ..ostler_engine::probe::Settings::default()
    };
    let start = Start { options, store: Arc::clone(&store), driver, clock: Clock::system(), sampler, probes };
    let (controller, handle) = Controller::new(start).await?;
    let running = tokio::spawn(controller.run());
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let daemon = Daemon {
        version: VERSION.to_owned(),
        state_dir: shared.state_dir.clone(),
        program: shared.program.clone(),
        started_at: i64::try_from(started.as_nanos()).unwrap_or(i64::MAX),
        config: Arc::clone(&live),
    };
    // Before anybody can know of this process.
    let asked = match signal(SignalKind::hangup()) {
        Ok(asked) => Some(asked),
        Err(why) => {
            warn!(%why, "SIGHUP does nothing");
            None
        }
    };
    tokio::spawn(reload(Arc::clone(&live), asked));
    tokio::spawn(crate::memory::tidy(Arc::clone(&store)));
    tokio::spawn({
        let (store, handle) = (Arc::clone(&store), handle.clone());
        async move {
            if let Err(why) = ostler_engine::external::run(store, handle).await {
                error!(%why, "Externals are not looked for");
            }
        }
    });
    tokio::spawn(ostler_engine::filewatch::run(Arc::clone(&store), handle.clone(), shared.state_dir.clone()));
    let service = Service::new(store, handle, daemon).await?;
    let watched: Vec<PathBuf> = live.running().watch.into_iter().map(PathBuf::from).collect();
    service.start_sources(&watched).await.map_err(|why| Failed::Sources { message: why.message, hint: why.hint })?;
    let path = shared.state_dir.join("ostler.sock");
    let listener = grpc::bind(&path).map_err(|source| Failed::Bind { path: path.display().to_string(), source })?;
    info!(socket = %path.display(), version = VERSION, "ready");
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(grpc::serve(service, listener, async {
        // Either way it is time to end.
        let _ = ended.await;
    }));
    let outcome = match running.await {
        Ok(outcome) => outcome,
        // The keeper starts another controller, which begins from what is stored.
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    };
    if matches!(outcome.0, Ended::Shutdown) {
        // Clients need not find out by a refused connection.
        let _ = std::fs::remove_file(&path);
    }
    let _ = end.send(());
    match serving.await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => error!(%why, "the API ended with an error"),
        Err(why) => error!(%why, "the API ended with a panic"),
    }
    Ok(outcome)
}

/// How often the configuration file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Reads the configuration file again when it has changed, and on SIGHUP.
async fn reload(live: Arc<Live>, mut asked: Option<Signal>) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let hangup = async {
            match &mut asked {
                Some(asked) => asked.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = looks.tick() => ostler_server::reload_config(&live, false),
            _ = hangup => ostler_server::reload_config(&live, true),
        }
    }
}
