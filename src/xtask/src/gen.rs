//! Generates what is checked in: gRPC code and the keeper's wire types from `proto/`, schemas of the kinds in `api/`.
//!
//! Uses protox, so no protoc is needed on any machine. Everything is generated into memory first and then compared or
//! written, so `--check` and writing cannot disagree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use prost::Message;

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
        tonic_prost_build::configure().out_dir(&scratch).bytes(".ostler.v1.Object.json").bytes(".ostler.v1.ApplyRequest.objects").bytes(".ostler.v1.LogChunk.data").compile_fds(api.clone())?;
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

fn schemas() -> anyhow::Result<BTreeMap<PathBuf, Vec<u8>>> {
    Ok(BTreeMap::new())
}
