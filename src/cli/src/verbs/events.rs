//! `ostler events`: what happened, oldest first.

use std::time::Duration;

use jiff::Timestamp;
use ostler_core::Topic;
use ostler_core::suggest::nearest;
use ostler_rpc::v1;

use crate::client::{Client, selector};
use crate::ctx::Ctx;
use crate::duration;
use crate::error::Error;
use crate::exit::Exit;
use crate::kinds::{self, Kind};
use crate::output::Format;
use crate::verbs::get::{Show, Watching, print_objects, watch};

/// Show what happened
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ostler events
  ostler events --for process/web -w
  ostler events -A --types Warning
  ostler events -w --topic restart,health --since 10m")]
pub(crate) struct Args {
    /// Only what happened to this object
    #[arg(long = "for", value_name = "KIND/NAME")]
    about: Option<String>,
    /// Only these types
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = ["Normal", "Warning"])]
    types: Vec<String>,
    /// Only about these: lifecycle, health, resources, restart, config, storage, source, external
    #[arg(long, value_name = "TOPIC", value_delimiter = ',', value_parser = topic)]
    topic: Vec<Topic>,
    /// Only what happened within this time: 10m, 2h
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    since: Option<Duration>,
    /// Go on showing what happens
    #[arg(short, long)]
    watch: bool,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// wide, json, yaml, name or jsonpath='{…}'
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    /// No line of headers
    #[arg(long)]
    no_headers: bool,
}

fn topic(word: &str) -> Result<Topic, String> {
    Topic::parse(word).ok_or_else(|| {
        let names = Topic::ALL.map(Topic::name);
        match nearest(word, names) {
            Some(near) => format!("there is no such topic; did you mean {near}?"),
            None => format!("there is no such topic; there are {}", names.join(", ")),
        }
    })
}

/// The moment so long before another; the beginning of time when there is none.
fn ago(now: Timestamp, span: Duration) -> String {
    now.checked_sub(span).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let mut fields = Vec::new();
    if let Some(about) = &args.about {
        let (kind, name) = about
            .split_once('/')
            .ok_or_else(|| Error::usage(format!("\"{about}\" is not KIND/NAME"), "write for example process/web"))?;
        fields.push(format!("involvedObject.kind={}", kinds::parse(kind)?.name()));
        fields.push(format!("involvedObject.name={name}"));
    }
    if !args.types.is_empty() {
        fields.push(format!("type in ({})", args.types.join(",")));
    }
    if !args.topic.is_empty() {
        let names: Vec<_> = args.topic.iter().map(|topic| topic.name()).collect();
        fields.push(format!("topic in ({})", names.join(",")));
    }
    let since = args.since.map(|since| ago(Timestamp::now(), since)).unwrap_or_default();
    let namespace = if args.all_namespaces { "" } else { ctx.settings.namespace() };
    let wanted = v1::Selector { fields: fields.join(","), since, ..selector(Kind::Event, namespace) };
    let show = Show {
        format: args.output.unwrap_or_default(),
        no_headers: args.no_headers,
        all_namespaces: args.all_namespaces,
        ..Show::default()
    };
    if args.watch {
        watch(ctx, Kind::Event, wanted, &show, Watching::Everything).await?;
        return Ok(Exit::Ok);
    }
    let mut client = Client::connect(&ctx.settings).await?;
    let objects = client.list(wanted).await?;
    print_objects(ctx, &[(Kind::Event, objects)], &show, false)?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_topic_is_answered_with_the_nearest() {
        assert_eq!(topic("Health"), Ok(Topic::Health));
        assert!(topic("restarts").unwrap_err().ends_with("did you mean restart?"));
        assert!(topic("weather-report").unwrap_err().contains("lifecycle, health"));
    }

    #[test]
    fn a_time_before_all_times_is_the_beginning() {
        let now = Timestamp::from_second(1000).unwrap();
        assert_eq!(ago(now, Duration::from_secs(400)), "1970-01-01T00:10:00Z");
        assert_eq!(ago(now, Duration::MAX), "1970-01-01T00:00:00Z");
    }
}
