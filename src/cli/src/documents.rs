//! Manifests for the commands that take `-f`: reading them, putting them into a namespace, and finding the place that an
//! error of the server speaks of.

use std::path::PathBuf;

use bytes::Bytes;
use ostler_manifest::{Document, Input};
use ostler_rpc::v1;

use crate::ctx::Settings;
use crate::error::Error;
use crate::kinds::Kind;

/// `-f` and `-R`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FileArgs {
    /// File or directory with manifests (.yaml, .yml, .json), or - for stdin; repeatable
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required = true)]
    filename: Vec<PathBuf>,
    /// Go into subdirectories too
    #[arg(short = 'R', long)]
    recursive: bool,
}

impl FileArgs {
    pub(crate) fn new(filename: Vec<PathBuf>, recursive: bool) -> Self {
        FileArgs { filename, recursive }
    }

    /// All documents, in order, each with its namespace.
    pub(crate) fn load(&self, settings: &Settings) -> Result<Vec<Document>, Error> {
        let inputs: Vec<Input> = self
            .filename
            .iter()
            .map(|path| {
                if path.as_os_str() == "-" {
                    Input::Stdin
                } else {
                    Input::Path { path: path.clone(), recursive: self.recursive }
                }
            })
            .collect();
        let mut documents = ostler_manifest::load(&inputs).map_err(|diagnostics| {
            Error::Manifest(diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        })?;
        if documents.is_empty() {
            return Err(Error::failed("there are no objects in what was given", "files end in .yaml, .yml or .json"));
        }
        for document in &mut documents {
            place(document, settings)?;
        }
        Ok(documents)
    }
}

/// Settles the namespace of a document.
fn place(document: &mut Document, settings: &Settings) -> Result<(), Error> {
    if !Kind::parse(&document.kind).is_none_or(Kind::is_namespaced) {
        return Ok(());
    }
    match (&document.namespace, &settings.namespace) {
        (Some(own), Some(wanted)) if own != wanted => Err(Error::failed(
            format!(
                "the namespace from the provided object \"{own}\" does not match the namespace \"{wanted}\" ({})",
                at(document, "metadata.namespace")
            ),
            format!("pass -n {own}, or none"),
        )),
        (Some(_), _) => Ok(()),
        (None, _) => {
            let namespace = settings.namespace();
            document.json["metadata"]["namespace"] = namespace.into();
            document.namespace = Some(namespace.to_owned());
            Ok(())
        }
    }
}

/// "web.yaml:12:7" of a field, or of the field around it.
pub(crate) fn at(document: &Document, field: &str) -> String {
    let (line, column) = document.place(field);
    format!("{}:{line}:{column}", document.origin.file)
}

/// The objects as the API takes them.
pub(crate) fn encode(documents: &[Document]) -> Vec<Bytes> {
    documents.iter().map(|document| document.json.to_string().into()).collect()
}

/// "process/web"
pub(crate) fn show(document: &Document) -> String {
    format!("{}/{}", document.kind.to_lowercase(), document.name)
}

/// Gives the causes of a refused apply their places in the files.
pub(crate) fn locate(error: Error, documents: &[Document]) -> Error {
    let Error::Server(mut server) = error else { return error };
    let bullet = |cause: &v1::Cause| {
        let message =
            if cause.field.is_empty() { cause.message.clone() } else { format!("{}: {}", cause.field, cause.message) };
        match documents.get(cause.object as usize) {
            Some(document) => format!("{}: {}: {message}", at(document, &cause.field), show(document)),
            None => message,
        }
    };
    server.bullets = Some(server.causes.iter().map(bullet).collect());
    Error::Server(server)
}
