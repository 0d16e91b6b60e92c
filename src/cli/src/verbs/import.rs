//! `ostler import`: configuration of other process managers as manifests; needs no daemon.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser as _;
use ostler_import::{Effect, Format, Imported};
use ostler_manifest::{Input, MAX_FILE};

use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::output::json;

/// Turn the configuration of another process manager into manifests
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The manifests go to stdout. What has no equivalent, or means nearly the same only, goes to
stderr, with its line. Nothing is started, and nothing but the named files is read. Relative
paths are seen from the directory of the manifest: keep it where the file was.

Examples:
  ostler import Procfile > web.yaml
  ostler import /etc/supervisor/conf.d/*.conf --strict
  ostler import --from systemd - < web.service
  ostler import process-compose.yaml | ostler apply -f -")]
pub(crate) struct Args {
    /// Files to read, or - for stdin
    #[arg(value_name = "FILE|-", required = true)]
    files: Vec<PathBuf>,
    /// What the files are; found by name and content unless given
    #[arg(long, value_name = "KIND", default_value = "auto", value_parser = kinds())]
    from: String,
    /// How to print
    #[arg(short, long, value_name = "yaml|json", default_value = "yaml", value_parser = ["yaml", "json"])]
    output: String,
    /// Fail, and print nothing, when anything has no equivalent or is only nearly the same
    #[arg(long)]
    strict: bool,
}

fn kinds() -> impl clap::builder::TypedValueParser<Value = String> {
    let names = std::iter::once("auto").chain(Format::ALL.into_iter().map(Format::name));
    PossibleValuesParser::new(names).map(|name| name)
}

pub(crate) fn run(ctx: &mut Ctx, args: &Args) -> Result<Exit, Error> {
    let from = Format::ALL.into_iter().find(|format| format.name() == args.from);
    let mut objects = Vec::new();
    let mut counts = [0; 2];
    for path in &args.files {
        let (name, text) = read(path)?;
        let imported = ostler_import::import(&name, &text, from).map_err(|error| refused(&name, &error))?;
        report(ctx, &name, &imported, &mut counts)?;
        objects.extend(imported.objects);
    }
    if let Some(namespace) = &ctx.settings.namespace {
        for object in objects.iter_mut().filter(|object| object["kind"] != "Namespace") {
            object["metadata"]["namespace"] = namespace.as_str().into();
        }
    }
    let yaml = ostler_import::to_yaml(&objects)?;
    check(&yaml)?;
    let [lost, near] = counts;
    if args.strict && lost + near > 0 {
        return Err(Error::failed(
            format!("{lost} keys have no equivalent and {near} are approximated"),
            "without --strict the manifests are printed all the same",
        ));
    }
    match args.output.as_str() {
        "json" if objects.len() == 1 => json::write_pretty(&mut *ctx.out, &objects[0])?,
        "json" => json::write_pretty(&mut *ctx.out, &json::list(&objects))?,
        _ => ctx.out.write_all(yaml.as_bytes())?,
    }
    Ok(Exit::Ok)
}

/// The name and the text of a file.
fn read(path: &Path) -> Result<(String, String), Error> {
    let failed = |source| Error::File { what: "cannot read", path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let name = if path.as_os_str() == "-" {
        io::stdin().lock().take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
        "<stdin>".to_owned()
    } else {
        File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(failed)?;
        path.display().to_string()
    };
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::failed(format!("{name} is larger than {} MiB", MAX_FILE >> 20), ""));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::failed(format!("{name} is not text in UTF-8"), "save it as UTF-8"))?;
    Ok((name, text))
}

fn refused(name: &str, error: &ostler_import::Error) -> Error {
    let place = match error {
        ostler_import::Error::Syntax { line, .. } => format!("{name}:{line}"),
        ostler_import::Error::Unrecognised
        | ostler_import::Error::JavaScript
        | ostler_import::Error::NotAService { .. }
        | ostler_import::Error::Empty => name.to_owned(),
    };
    Error::failed(format!("{place}: {error}"), error.hint().unwrap_or_default())
}

/// Says what is different, a line each.
fn report(ctx: &mut Ctx, name: &str, imported: &Imported, counts: &mut [usize; 2]) -> Result<(), Error> {
    for note in &imported.notes {
        match note.effect {
            Effect::Lost => counts[0] += 1,
            Effect::Approximated => counts[1] += 1,
            Effect::Hint => {}
        }
        match note.line {
            0 => writeln!(ctx.err, "{name}: {note}")?,
            line => writeln!(ctx.err, "{name}:{line}: {note}")?,
        }
    }
    Ok(())
}

/// What is printed has to be what `validate` accepts.
fn check(yaml: &str) -> Result<(), Error> {
    let input = Input::Text { name: "<imported>".to_owned(), text: yaml.as_bytes().to_vec(), base: "/".into() };
    match ostler_manifest::load(&[input]) {
        Ok(_) => Ok(()),
        Err(found) => {
            let places: Vec<String> = found.iter().map(ToString::to_string).collect();
            Err(Error::Manifest(format!("the manifests that came out are not valid:\n{}", places.join("\n"))))
        }
    }
}
