//! `ostler info`: the daemon at a glance.

use ostler_rpc::v1;
use serde_json::json;

use crate::client::Client;
use crate::ctx::Ctx;
use crate::duration::human;
use crate::error::Error;
use crate::exit::Exit;
use crate::output::json::write_pretty;

/// Show the daemon: its processes, store, cgroups and limits
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "status",
    after_help = "\
Examples:
  ostler info
  ostler info -o json"
)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(short, long, value_parser = ["json"])]
    output: Option<String>,
}

pub(crate) async fn run(ctx: &mut Ctx, args: &Args) -> Result<Exit, Error> {
    let client = Client::connect(&ctx.settings).await?;
    let mut api = client.api.clone();
    let info = client.once(api.info(v1::InfoRequest {})).await?;
    let started = jiff::Timestamp::from_nanosecond(info.started_at.into()).unwrap_or_default();
    if args.output.is_some() {
        let value = json!({
            "version": info.version, "stateDir": info.state_dir, "socket": ctx.settings.socket(),
            "controllerPid": info.controller_pid, "keeperPid": info.keeper_pid, "keeperVersion": info.keeper_version,
            "cgroups": info.cgroups, "bootId": info.boot_id, "startedAt": started.to_string(),
            "revision": info.revision, "store": info.store, "instances": info.instances,
            "openFilesLimit": info.open_files_limit,
            "usageSamples": info.usage_samples, "usageCpuNanos": info.usage_cpu_time,
        });
        write_pretty(&mut *ctx.out, &value)?;
        return Ok(Exit::Ok);
    }
    let up = human(jiff::Timestamp::now().as_second() - started.as_second());
    let socket = ctx.settings.socket();
    let lines = [
        ("Version", info.version),
        ("State directory", info.state_dir),
        ("Socket", socket.display().to_string()),
        ("Controller", format!("pid {}, up {up}", info.controller_pid)),
        ("Keeper", format!("pid {}, version {}", info.keeper_pid, info.keeper_version)),
        ("Store", format!("{}, revision {}", info.store, info.revision)),
        ("Instances", info.instances.to_string()),
        ("Cgroups", info.cgroups),
        ("Open files", info.open_files_limit.to_string()),
        ("Boot", info.boot_id),
    ];
    for (name, value) in lines {
        writeln!(ctx.out, "{:<17}{value}", format!("{name}:"))?;
    }
    Ok(Exit::Ok)
}
