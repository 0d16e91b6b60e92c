//! Backups: one text file that a person can read and that proves itself intact.
//!
//! ```text
//! {"format":"ostler-backup","version":1,"revision":42,"time":1795264000,"entries":2}
//! {"key":"processes/default/web","revision":40,"text":"…"}
//! {"key":"secrets/default/tls","revision":42,"base64":"…"}
//! {"entries":2,"crc32":"9ae0daaf"}
//! ```
//! `time` is in seconds since the Unix epoch; the CRC-32 covers every byte before the footer. A backup is written to a
//! temporary name, synced and renamed, so under its final name it is whole. Only the owner can read it: it holds secrets.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{BackupError, Entry, Key, Revision, Snapshot};

const FORMAT: &str = "ostler-backup";
const VERSION: u32 = 1;
/// The file name extension of backups that the store makes by itself.
pub const EXTENSION: &str = "ostler-backup";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<'a> {
    #[serde(borrow)]
    format: Cow<'a, str>,
    version: u32,
    revision: Revision,
    time: u64,
    entries: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    revision: Revision,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    base64: Option<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Footer<'a> {
    entries: usize,
    #[serde(borrow)]
    crc32: Cow<'a, str>,
}

/// What a backup says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The store's revision that it holds.
    pub revision: Revision,
    /// When it was made, to the second.
    pub time: SystemTime,
    /// How many entries it holds.
    pub entries: usize,
}

/// Writes `snapshot` into the new file `to`, durably, and returns its revision.
pub fn write(snapshot: &Snapshot, to: &Path) -> Result<Revision, BackupError> {
    if to.exists() {
        return Err(failed("create", to)(io::ErrorKind::AlreadyExists.into()));
    }
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = write_file(snapshot, &partial)
        .map_err(failed("write", &partial))
        .and_then(|()| fs::rename(&partial, to).map_err(failed("rename to", to)));
    if let Err(error) = written {
        // Best effort: the disk may be full, and what was written of the file is part of that.
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    let parent = parent(to);
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed("sync", parent))?;
    Ok(snapshot.revision)
}

fn write_file(snapshot: &Snapshot, path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut out = Summed { inner: BufWriter::with_capacity(1 << 16, file), crc: crc32fast::Hasher::new() };
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    out.line(&Header {
        format: FORMAT.into(),
        version: VERSION,
        revision: snapshot.revision,
        time,
        entries: snapshot.entries.len(),
    })?;
    for entry in &snapshot.entries {
        let text = std::str::from_utf8(&entry.value).ok();
        out.line(&Line {
            key: entry.key.as_str().into(),
            revision: entry.revision,
            text: text.map(Cow::from),
            base64: match text {
                Some(_) => None,
                None => Some(BASE64.encode(&entry.value).into()),
            },
        })?;
    }
    let crc32 = format!("{:08x}", out.crc.clone().finalize()).into();
    out.line(&Footer { entries: snapshot.entries.len(), crc32 })?;
    let file = out.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_data()
}

struct Summed<W> {
    inner: W,
    crc: crc32fast::Hasher,
}

impl<W: Write> Summed<W> {
    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.crc.update(&bytes);
        self.inner.write_all(&bytes)
    }
}

/// Reads the whole backup and checks everything that can be checked.
pub fn verify(path: &Path) -> Result<Summary, BackupError> {
    scan(path, |_| {})
}

/// The state that a backup holds, checked.
pub fn read(path: &Path) -> Result<Snapshot, BackupError> {
    let mut entries = Vec::new();
    let summary = scan(path, |entry| entries.push(entry))?;
    Ok(Snapshot { entries, revision: summary.revision })
}

fn scan(path: &Path, mut each: impl FnMut(Entry)) -> Result<Summary, BackupError> {
    let file = File::open(path).map_err(failed("open", path))?;
    let mut lines = Lines { path, input: BufReader::with_capacity(1 << 16, file), buffer: Vec::new(), number: 0 };
    let mut crc = crc32fast::Hasher::new();
    if !lines.advance()? {
        return Err(lines.bad("it is empty"));
    }
    crc.update(&lines.buffer);
    let (revision, time, count) = {
        let header: Header<'_> = lines.parse("the header")?;
        if header.format != FORMAT {
            return Err(lines.bad("it is some other kind of file"));
        }
        if header.version > VERSION {
            return Err(BackupError::Format { path: path.to_owned(), found: header.version, supported: VERSION });
        }
        (header.revision, header.time, header.entries)
    };
    let mut last: Option<Key> = None;
    for _ in 0..count {
        if !lines.advance()? {
            return Err(lines.bad("it ends too early"));
        }
        crc.update(&lines.buffer);
        let entry = lines.entry()?;
        if entry.revision > revision {
            return Err(lines.bad("an entry is newer than the whole"));
        }
        if last.as_ref().is_some_and(|last| *last >= entry.key) {
            return Err(lines.bad("the entries are out of order"));
        }
        last = Some(entry.key.clone());
        each(entry);
    }
    if !lines.advance()? {
        return Err(lines.bad("it ends too early"));
    }
    let footer: Footer<'_> = lines.parse("the footer")?;
    if footer.entries != count {
        return Err(lines.bad("header and footer disagree on the number of entries"));
    }
    if footer.crc32 != format!("{:08x}", crc.finalize()) {
        return Err(lines.bad("the checksum does not match"));
    }
    if lines.advance()? {
        return Err(lines.bad("there is something after the footer"));
    }
    Ok(Summary { revision, time: UNIX_EPOCH + Duration::from_secs(time), entries: count })
}

struct Lines<'a> {
    path: &'a Path,
    input: BufReader<File>,
    /// The current line, with its newline.
    buffer: Vec<u8>,
    number: usize,
}

impl Lines<'_> {
    /// False at the end of the file. A last line without a newline was cut off.
    fn advance(&mut self) -> Result<bool, BackupError> {
        self.buffer.clear();
        self.number += 1;
        let read = self.input.read_until(b'\n', &mut self.buffer);
        if read.map_err(failed("read", self.path))? == 0 {
            return Ok(false);
        }
        if self.buffer.last() != Some(&b'\n') {
            return Err(self.bad("the line is cut off"));
        }
        Ok(true)
    }

    fn parse<'a, T: Deserialize<'a>>(&'a self, what: &str) -> Result<T, BackupError> {
        serde_json::from_slice(&self.buffer).map_err(|error| self.bad(format!("{what}: {error}")))
    }

    fn entry(&self) -> Result<Entry, BackupError> {
        let line: Line<'_> = self.parse("the entry")?;
        let value = match (line.text, line.base64) {
            (Some(text), None) => Bytes::copy_from_slice(text.as_bytes()),
            (None, Some(encoded)) => {
                BASE64.decode(encoded.as_bytes()).map_err(|error| self.bad(format!("the value: {error}")))?.into()
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(self.bad("an entry needs exactly one of text and base64"));
            }
        };
        let key = Key::from(line.key.as_ref());
        if let Some(flaw) = key.flaw() {
            return Err(self.bad(format!("the key {flaw}")));
        }
        Ok(Entry { key, value, revision: line.revision })
    }

    fn bad(&self, why: impl Into<String>) -> BackupError {
        BackupError::Damaged { path: self.path.to_owned(), why: why.into(), line: self.number }
    }
}

/// The name in `dir` of the backup of `revision`: sorts by revision.
pub fn path_for(dir: &Path, revision: Revision) -> PathBuf {
    dir.join(format!("{revision:020}.{EXTENSION}"))
}

/// Where a backup of the state at `revision` goes in `dir` that the store shall not remove by itself.
pub fn kept_path_for(dir: &Path, revision: Revision, label: &str) -> PathBuf {
    dir.join(format!("{revision:020}-{label}.{EXTENSION}"))
}

/// The backups in `dir`, newest first, those that are kept for ever included. A missing directory has none.
pub fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for item in listing {
        let path = item?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        if path.extension().is_some_and(|e| e == EXTENSION)
            && stem.is_some_and(|stem| {
                let (revision, label) = stem.split_once('-').map_or((stem, None), |(r, label)| (r, Some(label)));
                revision.len() == 20 && revision.bytes().all(|b| b.is_ascii_digit()) && label != Some("")
            })
        {
            found.push(path);
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// The newest backup in `dir` that verifies.
pub fn newest_good(dir: &Path) -> Option<PathBuf> {
    list(dir).ok()?.into_iter().find(|path| verify(path).is_ok())
}

/// Removes all but the newest `keep` of the store's own backups in `dir`, and what interrupted ones left.
pub(crate) fn prune(dir: &Path, keep: usize) -> io::Result<()> {
    let own = |path: &PathBuf| path.file_stem().is_some_and(|stem| stem.len() == 20);
    for old in list(dir)?.iter().filter(|path| own(path)).skip(keep) {
        fs::remove_file(old)?;
    }
    for item in fs::read_dir(dir)? {
        let path = item?.path();
        if path.extension().is_some_and(|e| e == "partial") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> BackupError + 'a {
    move |source| BackupError::Io { action, path: path.to_owned(), source }
}
