//! `ostler edit`: an object in an editor.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use ostler_rpc::v1;
use ostler_rpc::v1::patch_request::Type;
use serde_json::Value;

use super::patch::{named, report};
use crate::client::{Client, reference};
use crate::ctx::Ctx;
use crate::error::Error;
use crate::exit::Exit;
use crate::output::json::yaml;

/// Change an object in an editor
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The editor is $OSTLER_EDITOR, $VISUAL or $EDITOR, else vi. Nothing changes when the file is left
as it is, or emptied. What cannot be taken is shown above the text, to be mended.

Examples:
  ostler edit process/web
  EDITOR='sed -i s/replicas:.*/replicas:\\ 3/' ostler edit process/web")]
pub(crate) struct Args {
    /// KIND/NAME, or KIND NAME
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
}

const HEAD: &str = "\
# Save and leave to apply the change; leave without a change, or empty the file, to change nothing.
# Lines that begin with # are ignored.
";

pub(crate) async fn run(ctx: &mut Ctx, args: Args) -> Result<Exit, Error> {
    let mut client = Client::connect(&ctx.settings).await?;
    for target in named(&args.targets)? {
        for name in &target.names {
            let object = reference(target.kind, ctx.settings.namespace(), name);
            edit(ctx, &mut client, object).await?;
        }
    }
    Ok(Exit::Ok)
}

async fn edit(ctx: &mut Ctx, client: &mut Client, wanted: v1::Reference) -> Result<(), Error> {
    let mut api = client.api.clone();
    // Whoever opens a Secret in an editor asks for its values.
    let look = v1::GetRequest { object: Some(wanted.clone()), show_secrets: true };
    let mut found = client.once(api.get(look.clone())).await?;
    let original = editable(&found)?;
    let name = format!("{}-{}.yaml", wanted.kind.to_lowercase(), wanted.name);
    let directory = Scratch::new()?;
    let path = directory.0.join(name);
    let mut text = original.clone();
    let mut complaint = String::new();
    loop {
        let head: String = complaint.lines().flat_map(|line| ["# ", line, "\n"]).collect();
        write(&path, &format!("{HEAD}{head}{text}"))?;
        open_editor(&path)?;
        let edited = std::fs::read_to_string(&path).map_err(|why| lost(&path, &why))?;
        let edited: String =
            edited.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
        if edited.trim().is_empty() || edited == original {
            ctx.note("Edit cancelled, no changes made.")?;
            return Ok(());
        }
        if edited == text && !complaint.is_empty() {
            return Err(Error::failed(format!("nothing was changed: {}", complaint.trim_end()), ""));
        }
        text = edited;
        let object: Value = match serde_yaml::from_str(&text) {
            Ok(object) => object,
            Err(why) => {
                complaint = format!("not YAML: {why}");
                continue;
            }
        };
        let request = v1::PatchRequest {
            object: Some(wanted.clone()),
            r#type: Type::Replace.into(),
            patch: object.to_string().into(),
            field_manager: "ostler edit".to_owned(),
            dry_run: false,
            revision: found.revision,
        };
        match send(client, ctx, request, &look, &mut found, &original).await {
            Ok(answer) => return report(ctx, &answer, "edited", false),
            Err(error @ Error::Server(_)) if !error.is_conflict() => complaint = error.to_string(),
            Err(error) => return Err(error),
        }
    }
}

/// Sends the edited object. What is no concern of people, such as the status, may have moved since it was looked at.
async fn send(
    client: &mut Client,
    ctx: &Ctx,
    mut request: v1::PatchRequest,
    look: &v1::GetRequest,
    found: &mut v1::Object,
    original: &str,
) -> Result<v1::PatchResponse, Error> {
    loop {
        request.revision = found.revision;
        match super::patch::send(client, ctx, request.clone()).await {
            Err(error) if error.is_conflict() => {
                let mut api = client.api.clone();
                *found = client.once(api.get(look.clone())).await?;
                if found.revision == request.revision || editable(found)? != original {
                    return Err(error);
                }
            }
            answer => return answer,
        }
    }
}

/// What people may change, as YAML.
fn editable(object: &v1::Object) -> Result<String, Error> {
    let mut object: Value = serde_json::from_slice(&object.json)?;
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "labels" | "annotations"));
    }
    yaml(&object)
}

/// A private directory that goes with the command.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Result<Self, Error> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = std::env::temp_dir().join(format!("ostler-edit-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(|why| lost(&path, &why))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover in the temporary directory harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).map_err(|why| lost(path, &why))
}

fn lost(path: &Path, why: &std::io::Error) -> Error {
    Error::failed(format!("cannot use {}: {why}", path.display()), "")
}

/// Runs the editor, which may be a command with arguments, through the shell as git does.
fn open_editor(path: &Path) -> Result<(), Error> {
    let editor = ["OSTLER_EDITOR", "VISUAL", "EDITOR"]
        .into_iter()
        .filter_map(std::env::var_os)
        .find(|editor| !editor.is_empty())
        .unwrap_or_else(|| OsString::from("vi"));
    let mut script = editor.clone();
    script.push(" \"$@\"");
    let status = Command::new("sh").arg("-c").arg(script).arg(&editor).arg(path).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let editor = editor.to_string_lossy();
            Err(Error::failed(format!("the editor \"{editor}\" ended with {status}"), "nothing was changed"))
        }
        Err(why) => Err(Error::failed(format!("cannot run sh: {why}"), "")),
    }
}
