//! `ostler create configmap` and `ostler create secret`: objects from literals and files, as kubectl makes them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ostler_core::config;
use serde_json::{Value, json};

use super::Common;
use crate::ctx::Settings;
use crate::error::Error;

/// Make a ConfigMap
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ostler create configmap app --from-literal=LEVEL=debug
  ostler create configmap app --from-file=conf.d --from-file=main=app.conf
  ostler create configmap app --from-env-file=app.env")]
pub(super) struct ConfigMapArgs {
    /// Name of the ConfigMap
    name: String,
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Make a Secret
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What stands on a command line can be seen by every user while the command runs, and stays in
the shell's history: prefer --from-file and --from-env-file. `generic` before the name, as with
kubectl, is understood.

Examples:
  ostler create secret db --from-env-file=db.env
  ostler create secret tls --type=kubernetes.io/tls --from-file=tls.crt --from-file=tls.key
  ostler create secret generic db --from-literal=password=...")]
pub(super) struct SecretArgs {
    /// Name of the Secret
    #[arg(required = true, num_args = 1..=2, value_name = "[generic] NAME")]
    name: Vec<String>,
    /// What kind of secret it is
    #[arg(long = "type", value_name = "TYPE", default_value = "Opaque")]
    secret_type: String,
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Where values come from.
#[derive(Debug, clap::Args)]
struct Sources {
    /// A key and its value; repeatable
    #[arg(long = "from-literal", value_name = "KEY=VALUE")]
    literals: Vec<String>,
    /// A file, under its own name or another key, or every file of a directory; repeatable
    #[arg(long = "from-file", value_name = "[KEY=]PATH")]
    files: Vec<String>,
    /// A file of NAME=value lines; repeatable
    #[arg(long = "from-env-file", value_name = "FILE")]
    env_files: Vec<PathBuf>,
}

pub(super) fn config_map(settings: &Settings, args: &ConfigMapArgs) -> Result<Value, Error> {
    let (mut data, mut binary) = (BTreeMap::new(), BTreeMap::new());
    for (key, bytes) in args.sources.read()? {
        match String::from_utf8(bytes) {
            Ok(text) => drop(data.insert(key, text)),
            Err(error) => drop(binary.insert(key, config::encode(error.as_bytes()))),
        }
    }
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": args.name, "namespace": settings.namespace()}});
    for (field, values) in [("data", data), ("binaryData", binary)] {
        if !values.is_empty() {
            object[field] = json!(values);
        }
    }
    Ok(object)
}

pub(super) fn secret(settings: &Settings, args: &SecretArgs) -> Result<Value, Error> {
    let name = match args.name.as_slice() {
        [name] => name,
        [word, name] if word == "generic" => name,
        [word, ..] => {
            return Err(Error::usage(
                format!("\"{word}\" before the name is not understood"),
                "write generic, or only the name",
            ));
        }
        [] => return Err(Error::usage("a name is needed".to_owned(), "write ostler create secret NAME")),
    };
    let data: BTreeMap<String, String> =
        args.sources.read()?.into_iter().map(|(key, bytes)| (key, config::encode(&bytes))).collect();
    Ok(json!({"apiVersion": "v1", "kind": "Secret", "type": args.secret_type,
        "metadata": {"name": name, "namespace": settings.namespace()}, "data": data}))
}

impl Sources {
    /// Every key once. No error repeats a value.
    fn read(&self) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        let mut found = BTreeMap::new();
        let mut put = |key: String, bytes: Vec<u8>| match found.insert(key.clone(), bytes) {
            None => Ok(()),
            Some(_) => Err(Error::usage(format!("key \"{key}\" is given twice"), "give each key once")),
        };
        for literal in &self.literals {
            let (key, value) = literal.split_once('=').ok_or_else(|| {
                Error::usage("--from-literal needs KEY=VALUE".to_owned(), "write --from-literal=KEY=VALUE")
            })?;
            put(key.to_owned(), value.as_bytes().to_vec())?;
        }
        for source in &self.files {
            let (key, path) = match source.split_once('=') {
                Some((key, path)) => (Some(key), Path::new(path)),
                None => (None, Path::new(source)),
            };
            if path.is_dir() {
                if key.is_some() {
                    return Err(Error::usage(
                        format!("{} is a directory, which has no key", path.display()),
                        "leave the key out",
                    ));
                }
                for entry in fs::read_dir(path).map_err(|why| unreadable(path, &why))?.flatten() {
                    let file = entry.path();
                    let key = entry.file_name().to_string_lossy().into_owned();
                    // As kubectl does: what cannot be a key is not one of the files that are meant.
                    if file.is_file() && ostler_core::name::config_key(&key).is_ok() {
                        put(key, fs::read(&file).map_err(|why| unreadable(&file, &why))?)?;
                    }
                }
                continue;
            }
            let own = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let key = key.map_or(own, str::to_owned);
            put(key, fs::read(path).map_err(|why| unreadable(path, &why))?)?;
        }
        for path in &self.env_files {
            let text = fs::read_to_string(path).map_err(|why| unreadable(path, &why))?;
            let pairs = config::parse_env_file(&text)
                .map_err(|why| Error::usage(format!("{}: {why}", path.display()), "each line is NAME=value"))?;
            for (key, value) in pairs {
                put(key, value.into_bytes())?;
            }
        }
        Ok(found)
    }
}

fn unreadable(path: &Path, why: &std::io::Error) -> Error {
    Error::usage(format!("cannot read {}: {why}", path.display()), "name a file that can be read")
}
