//! `ostler events`: what happened, oldest first.

use ostler_rpc::v1;

use crate::client::{Client, selector};
use crate::ctx::Ctx;
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
  ostler events -A --types Warning")]
pub(crate) struct Args {
    /// Only what happened to this object
    #[arg(long = "for", value_name = "KIND/NAME")]
    about: Option<String>,
    /// Only these types
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = ["Normal", "Warning"])]
    types: Vec<String>,
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

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let mut fields = Vec::new();
    if let Some(about) = &args.about {
        let (kind, name) = about
            .split_once('/')
            .ok_or_else(|| Error::usage(format!("\"{about}\" is not KIND/NAME"), "write for example process/web"))?;
        fields.push(format!("involvedObject.kind={}", kinds::parse(kind)?.name()));
        fields.push(format!("involvedObject.name={name}"));
    }
    if let [only] = args.types.as_slice() {
        fields.push(format!("type={only}"));
    }
    let namespace = if args.all_namespaces { "" } else { ctx.settings.namespace() };
    let wanted = v1::Selector { fields: fields.join(","), ..selector(Kind::Event, namespace) };
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
