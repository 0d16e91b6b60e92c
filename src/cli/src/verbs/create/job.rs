//! `ostler create job --from`: runs now what a CronJob would run at its next time.

use ostler_core::kinds::{CronJob, INSTANTIATED_FROM};
use serde_json::{Value, json};

use super::Common;
use crate::client::Client;
use crate::ctx::Ctx;
use crate::error::Error;
use crate::kinds::{self, Kind};

/// Make a Job from a CronJob, now
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The schedule goes on as if nothing had been made: the Job belongs to itself, is not counted by
the CronJob's limits, and stays when the CronJob is deleted.

Examples:
  ostler create job backup-now --from=cronjob/backup
  ostler create job backup-now --from=cronjob/backup && ostler logs job/backup-now -f")]
pub(super) struct Args {
    /// Name of the Job
    name: String,
    /// The CronJob it is made from
    #[arg(long, value_name = "cronjob/NAME")]
    from: String,
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) async fn job(ctx: &Ctx, args: &Args) -> Result<Value, Error> {
    let name = source(&args.from)?;
    let namespace = ctx.settings.namespace();
    let found = Client::connect(&ctx.settings).await?.get(Kind::CronJob, namespace, name).await?;
    let cronjob: CronJob = serde_json::from_slice(&found.json)?;
    let template = cronjob.spec.job_template;
    let mut annotations = template.metadata.annotations;
    annotations.insert(INSTANTIATED_FROM.to_owned(), name.to_owned());
    let mut metadata = json!({"name": args.name, "namespace": namespace, "annotations": annotations});
    if !template.metadata.labels.is_empty() {
        metadata["labels"] = json!(template.metadata.labels);
    }
    Ok(json!({
        "apiVersion": Kind::Job.api_version(), "kind": Kind::Job.name(), "metadata": metadata,
        "spec": serde_json::to_value(template.spec)?,
    }))
}

/// The name in "cronjob/NAME".
fn source(from: &str) -> Result<&str, Error> {
    let wrong = || Error::usage(format!("--from={from} names no cronjob"), "write --from=cronjob/NAME");
    let (kind, name) = from.split_once('/').ok_or_else(wrong)?;
    if kinds::parse(kind)? != Kind::CronJob || name.is_empty() || name.contains('/') {
        return Err(wrong());
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cronjob_can_be_the_source() {
        assert_eq!(source("cronjob/backup").unwrap(), "backup");
        assert_eq!(source("cj/backup").unwrap(), "backup");
        for wrong in ["backup", "job/backup", "cronjob/", "cronjob/a/b", "nonsense/a"] {
            assert!(source(wrong).is_err(), "{wrong}");
        }
    }
}
