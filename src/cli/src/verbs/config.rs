//! `ostler config`: the daemon's configuration, and changes while it runs.

use ostler_rpc::v1;
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::output::json::{write_pretty, yaml};
use crate::output::table::{Printer, row};

/// Show or change the configuration of the running daemon
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Defaults, then the file, then the environment, then flags, then what was set at run time: the
last one that has a key decides.

Examples:
  ostler config show --origin
  ostler config set log=debug tick=500ms    # until the daemon ends
  ostler config unset log tick
  ostler config reload                      # now, rather than when the change is noticed")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show every value
    Show {
        /// Say where each value is from
        #[arg(long)]
        origin: bool,
        /// Print YAML or JSON
        #[arg(short, long, value_parser = ["yaml", "json"])]
        output: Option<String>,
    },
    /// Change values until the daemon ends; lists are separated by commas
    Set {
        /// Key and value, such as tick=2s
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = assignment)]
        values: Vec<(String, String)>,
    },
    /// Take back what was set at run time
    Unset {
        /// Keys, such as tick
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Read the configuration file again
    Reload,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, such as tick=2s")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let client = Client::connect(&ctx.settings).await?;
    let mut api = client.api.clone();
    match args.command {
        Command::Show { origin, output } => {
            let config = client.once(api.get_config(v1::GetConfigRequest {})).await?;
            show(ctx, &config, origin, output.as_deref())?;
        }
        Command::Set { values } => {
            let keys: Vec<String> = values.iter().map(|(key, _)| key.clone()).collect();
            let request = v1::SetConfigRequest { set: values.into_iter().collect(), unset: Vec::new() };
            let config = client.once(api.set_config(request)).await?;
            changed(ctx, &config, &keys)?;
        }
        Command::Unset { keys } => {
            let request = v1::SetConfigRequest { unset: keys.clone(), ..v1::SetConfigRequest::default() };
            let config = client.once(api.set_config(request)).await?;
            changed(ctx, &config, &keys)?;
        }
        Command::Reload => {
            let config = client.once(api.reload_config(v1::ReloadConfigRequest {})).await?;
            if !config.file_error.is_empty() {
                let hint = "the values before stay in force; correct the file".to_owned();
                return Err(Error::Failed { message: config.file_error, hint });
            }
            ctx.line(format_args!("{} read", config.file))?;
            note_pending(ctx, &config)?;
        }
    }
    Ok(Exit::Ok)
}

/// A value as the daemon sent it.
fn value(json: &str) -> Result<Value, Error> {
    Ok(serde_json::from_str(json)?)
}

/// A value as people write it for `config set`.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        Value::Null => String::new(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

fn changed(ctx: &mut Ctx, config: &v1::ConfigResponse, keys: &[String]) -> Result<(), Error> {
    for setting in config.settings.iter().filter(|setting| keys.contains(&setting.key)) {
        let value = plain(&value(&setting.value)?);
        ctx.line(format_args!("{}={value} ({})", setting.key, setting.origin))?;
    }
    note_pending(ctx, config)
}

/// Says what does not count yet.
fn note_pending(ctx: &mut Ctx, config: &v1::ConfigResponse) -> Result<(), Error> {
    for setting in config.settings.iter().filter(|setting| !setting.running.is_empty()) {
        let running = plain(&value(&setting.running)?);
        ctx.note(format_args!("{} stays \"{running}\" until the daemon is started again", setting.key))?;
    }
    Ok(())
}

fn show(ctx: &mut Ctx, config: &v1::ConfigResponse, origin: bool, output: Option<&str>) -> Result<(), Error> {
    if !config.file_error.is_empty() {
        ctx.note(format_args!("the file is bad, and the values before stay in force:\n{}", config.file_error))?;
    }
    if origin && output.is_none() {
        let mut rows = vec![row(["KEY", "VALUE", "ORIGIN", "NOTE"])];
        for setting in &config.settings {
            let note = if setting.running.is_empty() {
                String::new()
            } else {
                format!("needs a restart of the daemon; running with {:?}", plain(&value(&setting.running)?))
            };
            rows.push(row([&setting.key, &plain(&value(&setting.value)?), &setting.origin, &note]));
        }
        Printer::new(ctx.terminal.color).print(&mut *ctx.out, &rows)?;
        return Ok(());
    }
    let shown = if origin {
        let mut settings = Map::new();
        for setting in &config.settings {
            let mut one = json!({"value": value(&setting.value)?, "origin": setting.origin});
            if !setting.running.is_empty() {
                one["running"] = value(&setting.running)?;
            }
            settings.insert(setting.key.clone(), one);
        }
        let mut shown = json!({"file": config.file, "settings": settings});
        if !config.file_error.is_empty() {
            shown["fileError"] = Value::from(config.file_error.as_str());
        }
        shown
    } else {
        let pairs = config.settings.iter().map(|setting| Ok((setting.key.clone(), value(&setting.value)?)));
        Value::Object(pairs.collect::<Result<_, Error>>()?)
    };
    if output == Some("json") {
        write_pretty(&mut *ctx.out, &shown)?;
    } else {
        write!(ctx.out, "{}", yaml(&shown)?)?;
    }
    if !origin {
        note_pending(ctx, config)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_they_are_set() {
        assert_eq!(plain(&json!(["a", "b"])), "a,b");
        assert_eq!(plain(&json!("1s")), "1s");
        assert_eq!(plain(&json!(7)), "7");
        assert_eq!(assignment("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(assignment("a").is_err());
    }
}
