//! Generates what is checked in: gRPC code and the keeper's wire types from `proto/`, schemas of the kinds in `api/`.
//!
//! Uses protox, so no protoc is needed on any machine. Everything is generated into memory first and then compared or
//! written, so `--check` and writing cannot disagree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ostler_core::Kind;
use ostler_core::kinds::{ConfigMap, CronJob, Event, External, Instance, Job, Namespace, Process, Secret, Source};
use prost::Message;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

/// Writes every generated file, or with `check` fails naming those that differ.
pub(crate) fn run(root: &Path, check: bool) -> anyhow::Result<()> {
    let mut files = protos(root)?;
    files.extend(schemas()?);
    let mut stale = Vec::new();
    for (path, content) in &files {
        let path = root.join(path);
        if fs::read(&path).is_ok_and(|old| old == *content) {
            continue;
        }
        if check {
            stale.push(path.display().to_string());
        } else {
            fs::create_dir_all(path.parent().context("generated files have a folder")?)?;
            fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
            println!("wrote {}", path.display());
        }
    }
    if !stale.is_empty() {
        bail!("stale, run `cargo xtask gen`:\n  {}", stale.join("\n  "));
    }
    Ok(())
}

fn protos(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let include = root.join("proto");
    let scratch = std::env::temp_dir().join(format!("ostler-gen-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let generated = (|| {
        let api = protox::compile(["ostler/v1/ostler.proto"], [&include])?;
        tonic_prost_build::configure()
            .out_dir(&scratch)
            .bytes(".ostler.v1.Object.json")
            .bytes(".ostler.v1.ApplyRequest.objects")
            .bytes(".ostler.v1.LogChunk.data")
            .compile_fds(api.clone())?;
        let keeper = protox::compile(["ostler/keeper/v1/keeper.proto"], [&include])?;
        prost_build::Config::new().out_dir(&scratch).compile_fds(keeper)?;
        let read = |name: &str| fs::read(scratch.join(name)).with_context(|| format!("generated {name}"));
        anyhow::Ok(BTreeMap::from([
            (PathBuf::from("src/rpc/src/gen/ostler.v1.rs"), read("ostler.v1.rs")?),
            (PathBuf::from("src/rpc/src/gen/ostler.v1.fds"), api.encode_to_vec()),
            (PathBuf::from("src/keeper/src/gen/ostler.keeper.v1.rs"), read("ostler.keeper.v1.rs")?),
        ]))
    })();
    fs::remove_dir_all(&scratch)?;
    generated
}

/// One JSON Schema per kind, of what may be written in a manifest or read from the API.
fn schemas() -> anyhow::Result<BTreeMap<PathBuf, Vec<u8>>> {
    Kind::ALL.into_iter().map(|kind| Ok((schema_path(kind), pretty(&schema(kind)?)?))).collect()
}

/// Where the schema of a kind is published.
fn schema_path(kind: Kind) -> PathBuf {
    PathBuf::from(format!("api/{}.v1.json", kind.singular()))
}

fn pretty(schema: &Value) -> anyhow::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(schema)?;
    text.push(b'\n');
    Ok(text)
}

/// The schema of a kind: what its types say, and what only the kind itself knows.
fn schema(kind: Kind) -> anyhow::Result<Value> {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let root = match kind {
        Kind::Namespace => generator.into_root_schema_for::<Namespace>(),
        Kind::ConfigMap => generator.into_root_schema_for::<ConfigMap>(),
        Kind::Secret => generator.into_root_schema_for::<Secret>(),
        Kind::Process => generator.into_root_schema_for::<Process>(),
        Kind::Job => generator.into_root_schema_for::<Job>(),
        Kind::CronJob => generator.into_root_schema_for::<CronJob>(),
        Kind::Instance => generator.into_root_schema_for::<Instance>(),
        Kind::Source => generator.into_root_schema_for::<Source>(),
        Kind::External => generator.into_root_schema_for::<External>(),
        Kind::Event => generator.into_root_schema_for::<Event>(),
    };
    let mut root = root.to_value();
    for (field, value) in [("apiVersion", kind.api_version()), ("kind", kind.name())] {
        let pointer = format!("/properties/{field}");
        let property = root.pointer_mut(&pointer).with_context(|| format!("{kind} has no {field}"))?;
        *property = json!({"type": "string", "const": value});
    }
    // Reading fills in an empty name so that the error can name the field; a manifest without one is refused.
    let metadata = root.pointer_mut("/$defs/Metadata").context("every kind has metadata")?;
    metadata["required"] = json!(["name"]);
    if let Some(exit) = root.pointer_mut("/$defs/Exit") {
        // Its status is flattened into it, which additionalProperties cannot see.
        exit["unevaluatedProperties"] = json!(false);
    }
    let object = root.as_object_mut().context("a kind is an object")?;
    let version = kind.api_version().rsplit('/').next();
    object.insert(
        "x-kubernetes-group-version-kind".to_owned(),
        json!([{"group": kind.group(), "version": version, "kind": kind.name()}]),
    );
    join_lines(&mut root);
    Ok(root)
}

/// Doc comments are wrapped for their file; descriptions are wrapped by whoever shows them.
fn join_lines(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text.split("\n\n").map(|part| part.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
            }
            map.values_mut().for_each(join_lines);
        }
        Value::Array(items) => items.iter_mut().for_each(join_lines),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published schema of a kind.
    fn published(kind: Kind) -> Value {
        let path = crate::root().join(schema_path(kind));
        serde_json::from_slice(&fs::read(path).expect("schemas are checked in")).expect("schemas are JSON")
    }

    fn validator(kind: Kind) -> jsonschema::Validator {
        jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012)
            .build(&published(kind))
            .expect("published schemas are schemas")
    }

    /// The examples, defaults filled in or as they are written.
    fn examples() -> Vec<ostler_manifest::Document> {
        let input = ostler_manifest::Input::Path { path: crate::root().join("manifests"), recursive: true };
        ostler_manifest::load(&[input]).unwrap_or_else(|errors| panic!("{}", errors[0]))
    }

    #[test]
    fn what_is_generated_is_checked_in() {
        run(&crate::root(), true).unwrap();
    }

    #[test]
    fn schemas_are_the_same_on_every_run() {
        assert_eq!(schemas().unwrap(), schemas().unwrap());
    }

    #[test]
    fn every_example_satisfies_its_schema_as_written_and_with_defaults() {
        let documents = examples();
        assert!(documents.len() >= 8, "{}", documents.len());
        for document in documents {
            let kind = Kind::parse(&document.kind).unwrap();
            let full = ostler_core::Applicable::from_json(&document.json).unwrap().to_json();
            for json in [&document.json, &full] {
                let errors: Vec<String> = validator(kind)
                    .iter_errors(json)
                    .map(|error| format!("{}: {error}", error.instance_path()))
                    .collect();
                assert!(errors.is_empty(), "{}: {errors:?}", document.origin.file);
            }
        }
    }

    #[test]
    fn mistakes_do_not_satisfy_the_schema() {
        let good = json!({"apiVersion": "ostler.dev/v1", "kind": "Process", "metadata": {"name": "web"},
            "spec": {"command": ["sleep", "1"], "ports": [{"name": "http", "port": "auto"}], "stop": {"gracePeriod": "5s"}}});
        let validator = validator(Kind::Process);
        assert!(validator.is_valid(&good));
        for (pointer, field, value) in [
            ("", "kind", json!("Proces")),
            ("", "apiVersion", json!("v1")),
            ("", "spek", json!({})),
            ("/metadata", "nmae", json!("x")),
            ("/spec", "replicas", json!("3")),
            ("/spec", "replicas", json!(-1)),
            ("/spec", "command", json!("sleep 1")),
            ("/spec", "restartPolicy", json!("always")),
            ("/spec/stop", "gracePeriode", json!("5s")),
            ("/spec/stop", "gracePeriod", json!(5)),
            ("/spec/stop", "gracePeriod", json!("5")),
            ("/spec/ports/0", "port", json!(0)),
            ("/spec/ports/0", "port", json!("any")),
            ("/spec/ports/0", "port", json!(65536)),
        ] {
            let mut bad = good.clone();
            bad.pointer_mut(pointer).unwrap()[field] = value.clone();
            assert!(!validator.is_valid(&bad), "{pointer}/{field}: {value}");
        }
        for pointer in ["", "/metadata", "/spec"] {
            for field in ["kind", "metadata", "spec", "name", "command"] {
                let mut bad = good.clone();
                let removed = bad.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(field);
                assert!(removed.is_none() || !validator.is_valid(&bad), "{pointer}/{field}");
            }
        }
    }

    #[test]
    fn schemas_refuse_unknown_fields_everywhere() {
        for kind in Kind::ALL {
            let schema = published(kind);
            let definitions = schema["$defs"].as_object().unwrap();
            for (name, definition) in definitions.iter().chain([(&kind.name().to_owned(), &schema)]) {
                if definition.get("properties").is_some() {
                    let closed = definition.get("additionalProperties") == Some(&json!(false))
                        || definition.get("unevaluatedProperties") == Some(&json!(false));
                    assert!(closed, "{kind}: {name}");
                }
            }
        }
    }
}
