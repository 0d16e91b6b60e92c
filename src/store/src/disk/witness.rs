//! What is remembered beside sled's files, so that their loss is noticed.
//!
//! `head` says how far the store had got. sled takes a damaged tail for a torn write and drops it silently; only
//! somebody else can know that it had been acknowledged. It is overwritten in place after every batch, without a sync:
//! after kill -9 it is exact; after a power loss it may be behind, which is harmless, and only what it says was synced
//! is held against the files.
//!
//! `clean` is there between a clean end and the next start and holds a checksum of every file, so that damage is found
//! before sled, which repairs in place, is let near them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::Revision;

/// What `head` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) format: u32,
    /// The kernel's identity when it was written.
    pub(crate) boot_id: String,
    /// The last revision that had been handed to the kernel.
    pub(crate) persisted: Revision,
    /// The last revision that had been synced.
    pub(crate) durable: Revision,
}

impl Head {
    /// The least revision that an undamaged store has, given the kernel that runs now.
    pub(crate) fn at_least(&self, boot_id: &str) -> Revision {
        if self.boot_id == boot_id { self.persisted } else { self.durable }
    }

    fn encode(&self) -> String {
        let line = format!(
            "ostler-store {} boot {} persisted {:020} durable {:020}",
            self.format, self.boot_id, self.persisted, self.durable
        );
        let crc = crc32fast::hash(line.as_bytes());
        format!("{line} crc32 {crc:08x}\n")
    }

    fn decode(text: &str) -> Option<Self> {
        let (line, crc) = text.strip_suffix('\n')?.split_once(" crc32 ")?;
        if crc != format!("{:08x}", crc32fast::hash(line.as_bytes())) {
            return None;
        }
        let words: Vec<_> = line.split(' ').collect();
        let ["ostler-store", format, "boot", boot_id, "persisted", persisted, "durable", durable] = words[..] else {
            return None;
        };
        Some(Self {
            format: format.parse().ok()?,
            boot_id: boot_id.to_owned(),
            persisted: persisted.parse().ok()?,
            durable: durable.parse().ok()?,
        })
    }
}

/// Reads `head`: `Ok(None)` when there is none, an `InvalidData` error when it is damaged.
pub(crate) fn read_head(dir: &Path) -> io::Result<Option<Head>> {
    match fs::read(dir.join("head")) {
        Ok(bytes) => std::str::from_utf8(&bytes)
            .ok()
            .and_then(Head::decode)
            .map(Some)
            .ok_or_else(|| io::ErrorKind::InvalidData.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The open `head` file.
pub(crate) struct HeadFile {
    file: File,
    /// What is in it.
    pub(crate) head: Head,
}

impl HeadFile {
    /// Replaces the file, durably.
    pub(crate) fn create(dir: &Path, head: Head) -> io::Result<Self> {
        let temporary = dir.join("head.new");
        let mut file = create_private(&temporary)?;
        file.write_all(head.encode().as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join("head"))?;
        sync_dir(dir)?;
        Ok(Self { file, head })
    }

    /// Goes on with the file that `head` was read from.
    pub(crate) fn open(dir: &Path, head: Head) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open(dir.join("head"))?;
        Ok(Self { file, head })
    }

    /// Overwrites the file; not synced.
    pub(crate) fn update(&mut self, persisted: Revision, durable: Revision) -> io::Result<()> {
        self.head.persisted = persisted;
        self.head.durable = durable;
        // The length never changes as the numbers have a fixed width, so one write in place is all or nothing.
        self.file.write_all_at(self.head.encode().as_bytes(), 0)
    }
}

/// One line per file in `files`: checksum, length, name.
fn inventory(files: &Path) -> io::Result<String> {
    let mut lines = Vec::new();
    for path in walk(files)? {
        let mut file = File::open(&path)?;
        let mut crc = crc32fast::Hasher::new();
        let mut length = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            crc.update(&buffer[..read]);
            length += read;
        }
        let name = path.strip_prefix(files).unwrap_or(&path);
        lines.push(format!("{:08x} {length} {}\n", crc.finalize(), name.display()));
    }
    lines.sort_unstable();
    let text = lines.concat();
    let crc = crc32fast::hash(text.as_bytes());
    Ok(format!("{text}{crc:08x}\n"))
}

/// What `clean` has to say about the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Clean {
    /// There is none: the store was not closed, or it is unreadable itself.
    Unknown,
    /// The files are as they were when the store was closed.
    Yes,
    /// They are not; which and how, for a person.
    No(String),
}

pub(crate) fn check_clean(dir: &Path, files: &Path) -> io::Result<Clean> {
    let recorded = match fs::read_to_string(dir.join("clean")) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
            return Ok(Clean::Unknown);
        }
        Err(error) => return Err(error),
    };
    let whole = recorded
        .strip_suffix('\n')
        .and_then(|text| text.rsplit_once('\n'))
        .is_some_and(|(lines, crc)| crc == format!("{:08x}", crc32fast::hash(format!("{lines}\n").as_bytes())));
    if !whole {
        return Ok(Clean::Unknown);
    }
    let found = inventory(files)?;
    if found == recorded {
        return Ok(Clean::Yes);
    }
    let name = |line: &str| line.splitn(3, ' ').nth(2).unwrap_or_default().to_owned();
    let differs = recorded
        .lines()
        .find(|line| line.contains(' ') && !found.lines().any(|l| l == *line))
        .map(|line| format!("the file {} is not as it was when the store was closed", name(line)));
    Ok(Clean::No(differs.unwrap_or_else(|| "there are files that were not there when the store was closed".to_owned())))
}

/// Syncs all files and records that they are whole. Nobody may have them open for writing.
pub(crate) fn mark_clean(dir: &Path, files: &Path) -> io::Result<()> {
    sync_tree(files)?;
    let temporary = dir.join("clean.new");
    let mut file = create_private(&temporary)?;
    file.write_all(inventory(files)?.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join("clean"))?;
    sync_dir(dir)
}

/// Must be durable before anybody writes: a `clean` that comes back after a power loss would accuse good files.
pub(crate) fn unmark_clean(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join("clean")) {
        Ok(()) => sync_dir(dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Syncs every file and directory below `dir`, and itself.
pub(crate) fn sync_tree(dir: &Path) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let item = item?;
        if item.file_type()?.is_dir() {
            sync_tree(&item.path())?;
        } else {
            File::open(item.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// All files below `dir`.
pub(crate) fn walk(dir: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for item in fs::read_dir(dir)? {
        let item = item?;
        if item.file_type()?.is_dir() {
            found.extend(walk(&item.path())?);
        } else {
            found.push(item.path());
        }
    }
    Ok(found)
}

pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// The identity of the running kernel; changes with every boot.
pub(crate) fn boot_id() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head { format: 1, boot_id: "b00".to_owned(), persisted: 12, durable: 10 }
    }

    #[test]
    fn a_head_survives_a_round_trip_and_notices_every_changed_byte() {
        let text = head().encode();
        assert_eq!(Head::decode(&text), Some(head()));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let read = std::str::from_utf8(&bytes).ok().and_then(Head::decode);
            assert_eq!(read, None, "byte {at}");
        }
    }

    #[test]
    fn only_what_was_synced_is_expected_back_after_a_reboot() {
        assert_eq!(head().at_least("b00"), 12);
        assert_eq!(head().at_least("b01"), 10);
    }
}
