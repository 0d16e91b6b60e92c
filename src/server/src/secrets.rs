//! Secrets on their way in and out: sealed before they are stored, opened to compare or when somebody asks to see them,
//! and without values everywhere else.

use bytes::Bytes;
use ostler_core::Kind;
use ostler_core::config;
use ostler_core::kinds::{Hidden, Secret};
use ostler_engine::place;
use ostler_engine::vault::{Vault, VaultError};
use serde_json::Value;

use crate::error::{ApiError, Reason};
use crate::service::Service;

impl From<VaultError> for ApiError {
    fn from(error: VaultError) -> Self {
        Self::new(Reason::InternalError, error.to_string())
    }
}

/// What a read shows of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reveal {
    /// Their sizes.
    Sizes,
    /// Everything.
    Values,
}

impl Reveal {
    pub(crate) fn new(show: bool) -> Self {
        if show { Self::Values } else { Self::Sizes }
    }
}

/// A Secret as it is applied becomes one as it is stored.
pub(crate) fn seal(secret: &mut Secret, vault: &Vault) -> Result<(), VaultError> {
    let metadata = &secret.metadata;
    for (key, value) in &mut secret.data {
        let plain = config::decode(&value.0).unwrap_or_default();
        value.0 = vault.seal(&place(&metadata.namespace, &metadata.name, key), &plain)?;
    }
    Ok(())
}

/// A Secret as it is stored becomes one as it is applied.
pub(crate) fn open(secret: &mut Secret, vault: &Vault) -> Result<(), VaultError> {
    let metadata = &secret.metadata;
    for (key, value) in &mut secret.data {
        value.0 = config::encode(&vault.open(&place(&metadata.namespace, &metadata.name, key), &value.0)?);
    }
    Ok(())
}

impl Service {
    /// An object of the store as a read shows it.
    pub(crate) fn shown(&self, kind: Kind, json: &Bytes, reveal: Reveal) -> Result<Bytes, ApiError> {
        if kind != Kind::Secret {
            return Ok(json.clone());
        }
        let broken =
            |why: serde_json::Error| ApiError::new(Reason::InternalError, format!("a secret in the store: {why}"));
        let mut secret: Secret = serde_json::from_slice(json).map_err(broken)?;
        match reveal {
            Reveal::Values => open(&mut secret, self.controller.vault())?,
            Reveal::Sizes => {
                for value in secret.data.values_mut() {
                    *value = Hidden(redacted(&value.0));
                }
            }
        }
        Ok(serde_json::to_vec(&secret).map_err(broken)?.into())
    }

    /// A Secret before and after a change, without values, but with a word at those that differ.
    pub(crate) fn shown_change(
        &self,
        before: Option<&Bytes>,
        after: &Bytes,
    ) -> Result<(Option<Bytes>, Bytes), ApiError> {
        let vault = self.controller.vault();
        let read = |json: &Bytes| serde_json::from_slice::<Secret>(json).ok();
        let opened = |json: Option<&Bytes>| {
            json.and_then(read).and_then(|mut secret| open(&mut secret, vault).ok().map(|()| secret.data))
        };
        let (old, new) = (opened(before), opened(Some(after)));
        let before = before.map(|json| self.shown(Kind::Secret, json, Reveal::Sizes)).transpose()?;
        let after = self.shown(Kind::Secret, after, Reveal::Sizes)?;
        let (Some(old), Some(new), Ok(mut value)) = (old, new, serde_json::from_slice::<Value>(&after)) else {
            return Ok((before, after));
        };
        if let Some(data) = value.get_mut("data").and_then(Value::as_object_mut) {
            for (key, value) in data {
                let changed = old.get(key).is_some_and(|old| new.get(key) != Some(old));
                if let (true, Some(text)) = (changed, value.as_str()) {
                    *value = text.replace('>', ", changed>").into();
                }
            }
        }
        Ok((before, serde_json::to_vec(&value).unwrap_or_default().into()))
    }
}

/// What is shown instead of a sealed value. It is not base64, so that it is never taken for the value.
fn redacted(sealed: &str) -> String {
    match Vault::size(sealed) {
        Some(size) => format!("<redacted: {size} bytes>"),
        None => "<redacted>".to_owned(),
    }
}
