//! How entries look inside sled's one tree. Pure.
//!
//! ```text
//! e<key>             crc32 u32, revision u64, 0 u8, value
//! e<key>             crc32 u32, revision u64, 1 u8, length u32        the value is in pieces
//! c<key> 0 <n u32be> the n-th piece of 5 KiB
//! m                  format u32, revision u64, count u64, sum u64, crc32 u32
//! ```
//! Integers are little endian unless marked. An entry's CRC covers key, revision and value. `sum` adds up a CRC of every
//! key and value: together with `count` it notices entries that went missing without a trace.
//!
//! Pieces are small because sled rewrites a whole leaf, about twenty records, as one message, and moves messages above
//! 128 KiB into files of their own, which it never syncs.

use bytes::Bytes;
use sled::{Batch, IVec};

use crate::core::Stored;
use crate::{Event, EventKind, Key, Revision};

/// The version of this layout.
pub(crate) const FORMAT: u32 = 1;

pub(crate) const META: &[u8] = b"m";
pub(crate) const ENTRY: u8 = b'e';
const PIECE: u8 = b'c';
const PIECE_BYTES: usize = 5 << 10;
const HEADER: usize = 4 + 8 + 1;
const WHOLE: u8 = 0;
const PIECES: u8 = 1;
const META_BYTES: usize = 4 + 8 + 8 + 8 + 4;

/// What the tree must add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) revision: Revision,
    pub(crate) count: u64,
    pub(crate) sum: u64,
}

impl Meta {
    pub(crate) fn add(&mut self, key: &Key, value: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(digest(key, value));
    }

    pub(crate) fn subtract(&mut self, key: &Key, value: &[u8]) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(digest(key, value));
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(META_BYTES);
        out.extend(FORMAT.to_le_bytes());
        out.extend(self.revision.to_le_bytes());
        out.extend(self.count.to_le_bytes());
        out.extend(self.sum.to_le_bytes());
        out.extend(crc32fast::hash(&out).to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let mut input = Input(bytes);
        let bad = || "the summary record is malformed".to_owned();
        let format = input.u32().ok_or_else(bad)?;
        let revision = input.u64().ok_or_else(bad)?;
        let count = input.u64().ok_or_else(bad)?;
        let sum = input.u64().ok_or_else(bad)?;
        let crc = input.u32().ok_or_else(bad)?;
        if !input.0.is_empty() || crc32fast::hash(&bytes[..META_BYTES - 4]) != crc {
            return Err("the summary record fails its checksum".to_owned());
        }
        if format != FORMAT {
            return Err(format!("the summary record has the unknown format {format}"));
        }
        Ok(Self { revision, count, sum })
    }
}

fn digest(key: &Key, value: &[u8]) -> u64 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key.as_str().as_bytes());
    crc.update(&[0]);
    crc.update(value);
    crc.finalize().into()
}

fn entry_crc(key: &Key, revision: Revision, value: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key.as_str().as_bytes());
    crc.update(&revision.to_le_bytes());
    crc.update(value);
    crc.finalize()
}

fn entry_key(key: &Key) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.as_str().len());
    out.push(ENTRY);
    out.extend(key.as_str().as_bytes());
    out
}

fn piece_key(key: &Key, n: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(6 + key.as_str().len());
    out.push(PIECE);
    out.extend(key.as_str().as_bytes());
    // Keys hold no control characters, so no other key's pieces can come between.
    out.push(0);
    out.extend((n as u32).to_be_bytes());
    out
}

/// How many pieces a value of this length is stored in; 0 when it is stored with its entry.
fn pieces(length: usize) -> usize {
    if length <= PIECE_BYTES { 0 } else { length.div_ceil(PIECE_BYTES) }
}

/// Adds an event to a batch, replacing whatever the batch says of the key so far. The value of the event becomes one
/// that shares sled's buffer, so that sled's cache costs nothing on top of the index.
pub(crate) fn encode(event: &mut Event, batch: &mut Batch) {
    let key = &event.key;
    let before = event.prior.as_ref().map_or(0, |prior| pieces(prior.len()));
    let now = match &mut event.kind {
        EventKind::Put(value) => {
            let (pieces, record) = put(key, value, event.revision, batch);
            if pieces == 0 {
                *value = Bytes::from_owner(record).slice(HEADER..);
            }
            pieces
        }
        EventKind::Delete => {
            batch.remove(entry_key(key));
            0
        }
    };
    for n in now..before {
        batch.remove(piece_key(key, n));
    }
}

/// Adds an entry to a batch and returns how many pieces it took, and its record.
pub(crate) fn put(key: &Key, value: &[u8], revision: Revision, batch: &mut Batch) -> (usize, IVec) {
    let pieces = pieces(value.len());
    let mut record = Vec::with_capacity(HEADER + if pieces == 0 { value.len() } else { 4 });
    record.extend(entry_crc(key, revision, value).to_le_bytes());
    record.extend(revision.to_le_bytes());
    if pieces == 0 {
        record.push(WHOLE);
        record.extend(value);
    } else {
        record.push(PIECES);
        record.extend((value.len() as u32).to_le_bytes());
        for (n, piece) in value.chunks(PIECE_BYTES).enumerate() {
            batch.insert(piece_key(key, n), piece);
        }
    }
    let record = IVec::from(record);
    batch.insert(entry_key(key), record.clone());
    (pieces, record)
}

/// Adds the removal of an entry, and of its pieces given its length, to a batch.
pub(crate) fn remove(key: &Key, length: usize, batch: &mut Batch) {
    batch.remove(entry_key(key));
    for n in 0..pieces(length) {
        batch.remove(piece_key(key, n));
    }
}

/// Why a record cannot be read.
pub(crate) enum Unreadable {
    /// The record itself is wrong.
    Bad(String),
    /// Its pieces could not be read.
    Sled(sled::Error),
}

/// Reads one entry back, checked. `fetch` reads another record of the tree.
pub(crate) fn decode(
    name: &[u8],
    record: IVec,
    fetch: impl Fn(&[u8]) -> sled::Result<Option<IVec>>,
) -> Result<(Key, Stored), Unreadable> {
    let name = name.get(1..).unwrap_or_default();
    let Ok(path) = std::str::from_utf8(name) else {
        return Err(Unreadable::Bad("a key is not UTF-8".to_owned()));
    };
    let key = Key::from(path);
    let bad = |why: &str| Unreadable::Bad(format!("{key} {why}"));
    if let Some(flaw) = key.flaw() {
        return Err(bad(flaw));
    }
    let mut input = Input(&record);
    let (Some(crc), Some(revision), Some(kind)) = (input.u32(), input.u64(), input.u8()) else {
        return Err(bad("has a malformed record"));
    };
    let value = match kind {
        // sled's own buffer: its cache then costs nothing on top of the index.
        WHOLE => Bytes::from_owner(record).slice(HEADER..),
        PIECES => {
            let length = input.u32().ok_or_else(|| bad("has a malformed record"))? as usize;
            if length > crate::MAX_VALUE_BYTES {
                return Err(bad("has an impossible length"));
            }
            let mut value = Vec::with_capacity(length);
            for n in 0..pieces(length) {
                let piece = fetch(&piece_key(&key, n)).map_err(Unreadable::Sled)?;
                value.extend_from_slice(&piece.ok_or_else(|| bad("has lost a piece"))?);
            }
            if value.len() != length {
                return Err(bad("has a piece of the wrong length"));
            }
            value.into()
        }
        _ => return Err(bad("has a record of unknown kind")),
    };
    if entry_crc(&key, revision, &value) != crc {
        return Err(bad("fails its checksum"));
    }
    Ok((key, Stored { value, revision }))
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_survives_a_round_trip_and_notices_every_flipped_bit() {
        let meta = Meta { revision: 7, count: 3, sum: u64::MAX };
        let bytes = meta.encode();
        assert_eq!(Meta::decode(&bytes), Ok(meta));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Meta::decode(&flipped).is_err(), "bit {bit}");
        }
        assert!(Meta::decode(&bytes[1..]).is_err());
    }

    #[test]
    fn adding_and_subtracting_entries_cancel_out_in_any_order() {
        let (a, b) = (Key::from("p/n/a"), Key::from("p/n/b"));
        let mut meta = Meta::default();
        meta.add(&a, b"1");
        meta.add(&b, b"2");
        meta.subtract(&a, b"1");
        let mut only_b = Meta::default();
        only_b.add(&b, b"2");
        assert_eq!(meta, only_b);
    }

    #[test]
    fn an_entry_notices_every_flipped_bit() {
        let key = Key::from("p/n/a");
        let record = {
            let mut out = entry_crc(&key, 9, b"value").to_le_bytes().to_vec();
            out.extend(9u64.to_le_bytes());
            out.push(WHOLE);
            out.extend(b"value");
            out
        };
        let name = entry_key(&key);
        let nothing = |_: &[u8]| Ok(None);
        assert!(matches!(decode(&name, record.clone().into(), nothing), Ok((k, s)) if k == key && s.value == "value"));
        for bit in 0..record.len() * 8 {
            let mut flipped = record.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&name, flipped.into(), nothing).is_err(), "bit {bit}");
        }
    }
}
