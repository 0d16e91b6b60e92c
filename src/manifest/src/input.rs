//! Gets the bytes of the inputs: bounded, from regular files, directories and standard input.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::diagnostic::Report;
use crate::tree::{Budget, MAX_DEPTH};
use crate::{Input, MAX_FILE, MAX_TOTAL};

/// A file that was read.
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// What relative paths are resolved against; absolute.
    pub(crate) base: PathBuf,
    /// Whether it has to be JSON.
    pub(crate) json: bool,
}

type Visit<'a> = dyn FnMut(Loaded, &mut Budget, &mut Report) + 'a;

/// What errors call an input.
pub(crate) fn name(input: &Input) -> String {
    match input {
        Input::Path { path, .. } => path.display().to_string(),
        Input::Stdin => "<stdin>".to_owned(),
        Input::Text { name, .. } | Input::Files { name, .. } => name.clone(),
    }
}

/// Reads the files of an input one after another, so that one at a time is in memory, and reports what cannot be read.
pub(crate) fn each(input: &Input, budget: &mut Budget, report: &mut Report, visit: &mut Visit<'_>) {
    let name = name(input);
    let loaded = match input {
        Input::Path { path, recursive } => match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                let mut found = Vec::new();
                let errors = report.len();
                list(path, *recursive, 0, &mut found, report);
                if found.is_empty() && report.len() == errors {
                    let hint =
                        if *recursive { None } else { Some("use -R to look into its directories too".to_owned()) };
                    report.whole(&name, "there are no .yaml, .yml or .json files in this directory", hint);
                }
                for file in found {
                    one(file.display().to_string(), read_file(&file, budget), budget, report, visit);
                }
                return;
            }
            Ok(_) => read_file(path, budget),
            Err(error) => Err(cannot("cannot read this", &error)),
        },
        Input::Stdin => read(io::stdin().lock(), budget).and_then(|bytes| {
            let base = std::env::current_dir().map_err(|error| cannot("there is no current directory", &error))?;
            Ok(Loaded { name: String::new(), bytes, base, json: false })
        }),
        Input::Text { name, text, base } => text_at_hand(name, text, base, budget),
        Input::Files { files, .. } => {
            for file in files {
                let loaded = text_at_hand(&file.name, &file.bytes, &file.base, budget);
                one(file.name.clone(), loaded, budget, report, visit);
            }
            return;
        }
    };
    one(name, loaded, budget, report, visit);
}

fn text_at_hand(name: &str, text: &[u8], base: &Path, budget: &mut Budget) -> Result<Loaded, (String, Option<String>)> {
    let bytes = read(text, budget)?;
    let json = Path::new(name).extension().is_some_and(|extension| extension == "json");
    Ok(Loaded { name: String::new(), bytes, base: absolute(base)?, json })
}

fn one(
    name: String,
    loaded: Result<Loaded, (String, Option<String>)>,
    budget: &mut Budget,
    report: &mut Report,
    visit: &mut Visit<'_>,
) {
    match loaded {
        Ok(loaded) => visit(Loaded { name, ..loaded }, budget, report),
        Err((message, hint)) => report.whole(&name, &message, hint),
    }
}

/// The manifests of a directory, in the order of their names.
fn list(directory: &Path, recursive: bool, depth: usize, found: &mut Vec<PathBuf>, report: &mut Report) {
    let name = directory.display().to_string();
    let entry = |entry: io::Result<fs::DirEntry>| entry.and_then(|entry| Ok((entry.file_type()?, entry.path())));
    let entries = fs::read_dir(directory).and_then(|entries| entries.map(entry).collect::<io::Result<Vec<_>>>());
    let mut entries = match entries {
        Ok(entries) => entries,
        Err(error) => return report.whole(&name, &cannot("cannot list this directory", &error).0, None),
    };
    entries.sort_by(|a, b| a.1.file_name().cmp(&b.1.file_name()));
    for (kind, path) in entries {
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        if kind.is_dir() || (kind.is_symlink() && path.is_dir()) {
            if recursive && kind.is_dir() {
                if depth == MAX_DEPTH {
                    let message = format!("directories nested more than {MAX_DEPTH} levels deep");
                    report.whole(&path.display().to_string(), &message, None);
                } else {
                    list(&path, recursive, depth + 1, found, report);
                }
            }
        } else if path
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
        {
            found.push(path);
        }
    }
}

/// Reads a regular file.
pub(crate) fn read_file(path: &Path, budget: &mut Budget) -> Result<Loaded, (String, Option<String>)> {
    // Looked at before it is opened, because opening a device may do something.
    let metadata = fs::metadata(path).map_err(|error| cannot("cannot read this file", &error))?;
    regular(&metadata)?;
    // It may have been replaced since: never wait for the writer of a FIFO.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|error| cannot("cannot read this file", &error))?;
    let metadata = file.metadata().map_err(|error| cannot("cannot read this file", &error))?;
    regular(&metadata)?;
    if metadata.len() > MAX_FILE {
        return Err(too_large());
    }
    let bytes = read(file, budget)?;
    let base = absolute(path.parent().unwrap_or(Path::new("")))?;
    let json = path.extension().is_some_and(|extension| extension == "json");
    Ok(Loaded { name: String::new(), bytes, base, json })
}

fn regular(metadata: &fs::Metadata) -> Result<(), (String, Option<String>)> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(());
    }
    let (what, hint) = if kind.is_fifo() {
        ("a pipe", Some("read it from standard input: -f -".to_owned()))
    } else if kind.is_dir() {
        ("a directory", None)
    } else if kind.is_socket() {
        ("a socket", None)
    } else {
        ("a device", Some("read it from standard input: -f -".to_owned()))
    };
    Err((format!("this is {what}, not a regular file"), hint))
}

fn read(from: impl Read, budget: &mut Budget) -> Result<Vec<u8>, (String, Option<String>)> {
    let mut bytes = Vec::new();
    let limit = MAX_FILE.min(budget.bytes);
    from.take(limit + 1).read_to_end(&mut bytes).map_err(|error| cannot("cannot read this", &error))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(too_large());
    }
    match budget.bytes.checked_sub(bytes.len() as u64) {
        Some(left) => budget.bytes = left,
        None => {
            return Err((
                format!("more than {} MiB of manifests at once", MAX_TOTAL >> 20),
                Some("apply them in parts".to_owned()),
            ));
        }
    }
    Ok(bytes)
}

/// An absolute directory whose name can be written into an object.
fn absolute(path: &Path) -> Result<PathBuf, (String, Option<String>)> {
    // An empty path is the current directory, which `absolute` refuses.
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let path = std::path::absolute(path).map_err(|error| cannot("there is no current directory", &error))?;
    if path.to_str().is_none() {
        return Err(("the name of the directory it is in is not UTF-8".to_owned(), None));
    }
    Ok(path)
}

fn too_large() -> (String, Option<String>) {
    (format!("larger than {} MiB", MAX_FILE >> 20), Some("split it, or check that it is a manifest".to_owned()))
}

fn cannot(what: &str, error: &io::Error) -> (String, Option<String>) {
    let text = error.to_string();
    let why = text.split(" (os error").next().unwrap_or_default();
    (format!("{what}: {why}"), None)
}
