//! `ostler create`: makes objects from what is given on the command line.

mod config;
mod job;

use std::fmt::Write as _;

use bytes::Bytes;
use ostler_rpc::v1;
use serde_json::Value;

use crate::client::{Client, reference, show};
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::Kind;
use crate::output::json::{write_pretty, yaml};
use crate::verbs::apply::MANAGER;

/// Make an object from flags and files
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ostler create configmap app --from-literal=LEVEL=debug --from-file=app.conf
  ostler create secret db --from-env-file=db.env --dry-run -o yaml
  ostler create job backup-now --from=cronjob/backup")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    #[command(visible_alias = "cm")]
    Configmap(config::ConfigMapArgs),
    Secret(config::SecretArgs),
    Job(job::Args),
}

/// What every one of them takes.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Print what would be made, make nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the object: yaml or json
    #[arg(short, long, value_name = "FORMAT", value_parser = ["yaml", "json"])]
    output: Option<String>,
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let (kind, object, common) = match args.what {
        What::Configmap(args) => (Kind::ConfigMap, config::config_map(&ctx.settings, &args)?, args.common),
        What::Secret(args) => (Kind::Secret, config::secret(&ctx.settings, &args)?, args.common),
        What::Job(args) => (Kind::Job, job::job(ctx, &args).await?, args.common),
    };
    create(ctx, kind, &object, &common).await
}

async fn create(ctx: &mut Ctx, kind: Kind, object: &Value, common: &Common) -> Result<Exit, Error> {
    check(object)?;
    if !common.dry_run {
        let answer = make(ctx, kind, object).await?;
        if common.output.is_none() {
            for applied in &answer.results {
                ctx.line(format_args!("{} created", applied.object.as_ref().map(show).unwrap_or_default()))?;
            }
        }
    } else if common.output.is_none() {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        ctx.line(format_args!("{}/{name} created (dry run)", kind.singular()))?;
    }
    if let Some(format) = &common.output {
        print(ctx, object, format)?;
    }
    Ok(Exit::Ok)
}

/// Refuses an object that the daemon would refuse for what it says.
pub(super) fn check(object: &Value) -> Result<(), Error> {
    let Err(errors) = ostler_core::object::Applicable::from_json(object) else { return Ok(()) };
    let mut text = String::new();
    for error in errors {
        let _ = write!(text, "{}{}: {}", if text.is_empty() { "" } else { "; " }, error.field, error.message);
    }
    Err(Error::usage(text, "nothing was made"))
}

/// Applies an object that must not exist yet. Its fields belong to `ostler apply`: a manifest that is applied later adopts
/// it.
pub(super) async fn make(ctx: &Ctx, kind: Kind, object: &Value) -> Result<v1::ApplyResponse, Error> {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    let (name, namespace) = (text("name"), text("namespace"));
    let client = Client::connect(&ctx.settings).await?;
    let mut api = client.api.clone();
    match client
        .once(api.get(v1::GetRequest { object: Some(reference(kind, namespace, name)), show_secrets: false }))
        .await
    {
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
        Ok(_) => {
            return Err(Error::failed(
                format!("{} \"{name}\" exists already", kind.resource()),
                format!("choose another name, or delete it first: ostler delete {}/{name}", kind.singular()),
            ));
        }
    }
    let objects = vec![Bytes::from(object.to_string())];
    let request = v1::ApplyRequest { objects, field_manager: MANAGER.into(), ..v1::ApplyRequest::default() };
    client.once(api.apply(request)).await
}

/// Writes an object as "yaml" or "json".
pub(super) fn print(ctx: &mut Ctx, object: &Value, format: &str) -> Result<(), Error> {
    if format == "json" {
        write_pretty(&mut *ctx.out, object)?;
    } else {
        ctx.out.write_all(yaml(object)?.as_bytes())?;
    }
    Ok(())
}
