//! Secrets at rest: every value is sealed with a key that is kept in a file beside the store, never in it.
//!
//! ChaCha20-Poly1305 with a random nonce. What was sealed opens only at the place it was sealed for, so values cannot be
//! swapped in the store. The key is 32 random bytes in hexadecimal, made with the first secret, readable by its owner
//! only; whoever loses it loses the secrets. It is not part of backups.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ostler_core::config;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

/// What sealed text begins with: the version of the format.
const MARK: &str = "sealed:v1:";
/// Bytes by which sealing makes a value longer.
const OVERHEAD: usize = NONCE_LEN + 16;
const KEY_LEN: usize = 32;

/// Why a secret cannot be sealed or opened. Never with a value.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// There is no key file although something was sealed with it.
    #[error("the key file {path} is missing; put it back, secrets cannot be read without it")]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It cannot be read or made.
    #[error("cannot use the key file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not what was written.
    #[error("the key file {path} {why}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The value was not sealed with this key, not for this place, or is damaged.
    #[error("{place} cannot be opened with the key in {path}: it was sealed with another one, or is damaged")]
    NotOpened {
        /// Key of the secret in the store, and key in it.
        place: String,
        /// The key file.
        path: PathBuf,
    },
    /// The system has no randomness.
    #[error("the system yields no random numbers")]
    Random,
}

/// Seals and opens.
#[derive(Debug)]
pub struct Vault {
    path: PathBuf,
    keys: Mutex<Option<Keys>>,
}

#[derive(Clone)]
struct Keys {
    seal: LessSafeKey,
    hash: hmac::Key,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

impl Vault {
    /// A vault whose key is in `path`. Nothing is read before it is needed.
    pub fn new(path: PathBuf) -> Self {
        Self { path, keys: Mutex::new(None) }
    }

    /// Makes sure that there is a key to seal with. Where something is sealed already, another key would never open it,
    /// so none is made.
    pub fn prepare(&self, something_is_sealed: bool) -> Result<(), VaultError> {
        self.keys(!something_is_sealed).map(drop)
    }

    /// Seals a value for a place; [`Vault::prepare`] was called before.
    pub fn seal(&self, place: &str, value: &[u8]) -> Result<String, VaultError> {
        let keys = self.keys(false)?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| VaultError::Random)?;
        let mut sealed = value.to_vec();
        keys.seal
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place.as_bytes()), &mut sealed)
            .map_err(|_| VaultError::Random)?;
        Ok(format!("{MARK}{}", config::encode(&[&nonce[..], &sealed].concat())))
    }

    /// Opens what was sealed for a place.
    pub fn open(&self, place: &str, sealed: &str) -> Result<Vec<u8>, VaultError> {
        let keys = self.keys(false)?;
        let failed = || VaultError::NotOpened { place: place.to_owned(), path: self.path.clone() };
        let mut bytes = sealed.strip_prefix(MARK).and_then(config::decode).ok_or_else(failed)?;
        let nonce = bytes.get(..NONCE_LEN).and_then(|nonce| nonce.try_into().ok()).ok_or_else(failed)?;
        let plain = keys
            .seal
            .open_within(Nonce::assume_unique_for_key(nonce), Aad::from(place.as_bytes()), &mut bytes, NONCE_LEN..)
            .map_err(|_| failed())?;
        Ok(plain.to_vec())
    }

    /// How many bytes sealed text opens to, without opening it.
    pub fn size(sealed: &str) -> Option<usize> {
        config::decode(sealed.strip_prefix(MARK)?)?.len().checked_sub(OVERHEAD)
    }

    /// A hash that tells nobody without the key anything, not even whether a guess is right.
    pub fn hash(&self, content: &[u8]) -> Result<String, VaultError> {
        let tag = hmac::sign(&self.keys(false)?.hash, content);
        Ok(hex(&tag.as_ref()[..16]))
    }

    fn keys(&self, make: bool) -> Result<Keys, VaultError> {
        let mut held = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = &*held {
            return Ok(keys.clone());
        }
        let key = match self.read() {
            Err(VaultError::Missing { .. }) if make => self.make()?,
            read => read?,
        };
        let seal = UnboundKey::new(&CHACHA20_POLY1305, &key).map_err(|_| VaultError::Random)?;
        // A key of its own for another purpose.
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), b"ostler config hash");
        let keys = Keys { seal: LessSafeKey::new(seal), hash: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()) };
        Ok(held.insert(keys).clone())
    }

    fn read(&self) -> Result<[u8; KEY_LEN], VaultError> {
        let path = || self.path.clone();
        let file = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => VaultError::Missing { path: path() },
            _ => VaultError::File { path: path(), source },
        };
        let mode = fs::metadata(&self.path).map_err(file)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(VaultError::Bad { path: path(), why: "may be read by others than its owner; chmod 600 it" });
        }
        let text = fs::read_to_string(&self.path).map_err(file)?;
        unhex(text.trim()).ok_or(VaultError::Bad { path: path(), why: "does not hold 64 hexadecimal digits" })
    }

    /// Makes a key, on disk before anything is sealed with it.
    fn make(&self) -> Result<[u8; KEY_LEN], VaultError> {
        let file = |source| VaultError::File { path: self.path.clone(), source };
        let mut key = [0; KEY_LEN];
        SystemRandom::new().fill(&mut key).map_err(|_| VaultError::Random)?;
        // Never half a key under the name that counts.
        let scratch = self.path.with_extension("key.new");
        let _ = fs::remove_file(&scratch);
        let mut out = File::options().write(true).create_new(true).mode(0o600).open(&scratch).map_err(file)?;
        out.write_all(format!("{}\n", hex(&key)).as_bytes()).and_then(|()| out.sync_all()).map_err(file)?;
        fs::rename(&scratch, &self.path).map_err(file)?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(file)?;
        Ok(key)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<[u8; KEY_LEN]> {
    if text.len() != 2 * KEY_LEN || !text.is_ascii() {
        return None;
    }
    let mut key = [0; KEY_LEN];
    for (index, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(key)
}

/// A hash of what is no secret.
pub(crate) fn plain_hash(content: &[u8]) -> String {
    hex(&ring::digest::digest(&ring::digest::SHA256, content).as_ref()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault() -> (PathBuf, Vault) {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("ostler-vault-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        (directory.clone(), Vault::new(directory.join("secret.key")))
    }

    #[test]
    fn what_is_sealed_opens_at_its_place_only_and_with_its_key_only() {
        let (directory, vault) = vault();
        vault.prepare(false).unwrap();
        let sealed = vault.seal("secrets/default/db/password", b"hunter2").unwrap();
        assert!(!sealed.contains("hunter2") && !sealed.contains(&config::encode(b"hunter2")));
        assert_eq!(Vault::size(&sealed), Some(7));
        assert_ne!(vault.seal("secrets/default/db/password", b"hunter2").unwrap(), sealed);
        let again = Vault::new(directory.join("secret.key"));
        assert_eq!(again.open("secrets/default/db/password", &sealed).unwrap(), b"hunter2");
        assert_eq!(again.hash(b"x").unwrap(), vault.hash(b"x").unwrap());
        assert!(matches!(again.open("secrets/default/other/password", &sealed), Err(VaultError::NotOpened { .. })));
        let (elsewhere, other) = self::vault();
        other.prepare(false).unwrap();
        assert!(matches!(other.open("secrets/default/db/password", &sealed), Err(VaultError::NotOpened { .. })));
        let _ = (fs::remove_dir_all(directory), fs::remove_dir_all(elsewhere));
    }

    #[test]
    fn a_lost_key_is_not_replaced_to_open_something_and_an_open_one_is_refused() {
        let (directory, vault) = vault();
        assert!(matches!(vault.open("a", "sealed:v1:AAAA"), Err(VaultError::Missing { .. })));
        assert!(vault.prepare(true).is_err());
        assert!(!directory.join("secret.key").exists());
        vault.prepare(false).unwrap();
        let path = directory.join("secret.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Vault::new(path).prepare(false), Err(VaultError::Bad { .. })));
        let _ = fs::remove_dir_all(directory);
    }
}
