//! ConfigMap and Secret: what processes are configured with, in Kubernetes' shape; and how a Process refers to them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::meta::Metadata;

/// Settings that are no secret, for the environment of processes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMap {
    /// "v1".
    pub api_version: String,
    /// "ConfigMap".
    pub kind: String,
    /// Name, namespace, labels, annotations.
    pub metadata: Metadata,
    /// Text by key. Keys have letters, digits, `-`, `_` and `.`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// Bytes by key, in base64. A key is either here or in `data`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub binary_data: BTreeMap<String, String>,
    /// Neither the content nor this may change any more; only deletion is possible.
    #[serde(default, skip_serializing_if = "is_false")]
    pub immutable: bool,
}

/// Passwords, tokens and keys, for the environment of processes. Encrypted in the store; reads show keys and sizes
/// only, unless `--show-secrets` is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Secret {
    /// "v1".
    pub api_version: String,
    /// "Secret".
    pub kind: String,
    /// Name, namespace, labels, annotations.
    pub metadata: Metadata,
    /// What kind of secret; Opaque unless given. `kubernetes.io/tls`, `kubernetes.io/basic-auth`,
    /// `kubernetes.io/ssh-auth` and `kubernetes.io/dockerconfigjson` need the keys they need in Kubernetes.
    #[serde(default = "opaque", rename = "type")]
    pub secret_type: String,
    /// Values by key, in base64. Keys have letters, digits, `-`, `_` and `.`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, Hidden>,
    /// Values as plain text, for manifests; they are put into `data`, over what is there, and never shown.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub string_data: BTreeMap<String, Hidden>,
    /// Neither the content nor this may change any more; only deletion is possible.
    #[serde(default, skip_serializing_if = "is_false")]
    pub immutable: bool,
}

fn opaque() -> String {
    "Opaque".to_owned()
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Text that no message and no log may show.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// Where the value of one variable comes from: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVarSource {
    /// A key of a ConfigMap of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeySelector>,
    /// A key of a Secret of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeySelector>,
}

/// One key of a ConfigMap or Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeySelector {
    /// Name of the ConfigMap or Secret.
    pub name: String,
    /// The key.
    pub key: String,
    /// Without the object or the key, start without the variable; otherwise the start waits for them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub optional: bool,
    /// What a change of the value does to what runs.
    #[serde(default, skip_serializing_if = "OnChange::is_default")]
    pub on_change: OnChange,
}

/// Every key of a ConfigMap or Secret as a variable: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvFromSource {
    /// Put before every key.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// A ConfigMap of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<ObjectSelector>,
    /// A Secret of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<ObjectSelector>,
}

/// A whole ConfigMap or Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectSelector {
    /// Its name.
    pub name: String,
    /// Start without it when it does not exist; otherwise the start waits for it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub optional: bool,
    /// What a change of the content does to what runs.
    #[serde(default, skip_serializing_if = "OnChange::is_default")]
    pub on_change: OnChange,
}

/// What a change of a ConfigMap or Secret does to processes that use it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum OnChange {
    /// They are replaced like after a change of their manifest.
    #[default]
    Restart,
    /// Nothing: each has the new content from its next start.
    Ignore,
}

impl OnChange {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What ConfigMaps and Secrets hold, as a file or as a directory of files; exactly one of the two references. The files
/// are in a private directory of each instance, in memory where the machine has a place for that, and gone with the
/// instance; the process finds the directory in OSTLER_FILES_DIR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigFile {
    /// Where, relative to the private directory: a file when the reference names a key, else a directory with a file for
    /// every key.
    pub path: String,
    /// A ConfigMap of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<FileSelector>,
    /// A Secret of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<FileSelector>,
    /// Permissions of the files in octal: "0400" unless given, "0500", "0600" or "0700". They belong to the user of the
    /// process.
    #[serde(default, skip_serializing_if = "FileMode::is_default")]
    pub mode: FileMode,
    /// What a change of the content does to what runs.
    #[serde(default, skip_serializing_if = "OnFileChange::is_default")]
    pub on_change: OnFileChange,
    /// The signal for `onChange: Signal`; SIGHUP unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
}

impl ConfigFile {
    /// The signal that tells of new content.
    pub fn signal(&self) -> &str {
        self.signal.as_deref().unwrap_or("SIGHUP")
    }
}

/// What of a ConfigMap or Secret becomes files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileSelector {
    /// Name of the ConfigMap or Secret.
    pub name: String,
    /// The key; every key unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Without the object or the key, start without the file; otherwise the start waits for them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub optional: bool,
}

/// Permissions of a file that only its owner may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum FileMode {
    /// May be read.
    #[default]
    #[serde(rename = "0400")]
    Read,
    /// May be read and executed.
    #[serde(rename = "0500")]
    ReadExecute,
    /// May be read and written; what is written is gone with the next start.
    #[serde(rename = "0600")]
    ReadWrite,
    /// May be read, written and executed.
    #[serde(rename = "0700")]
    All,
}

impl FileMode {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// As the system calls take it.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Read => 0o400,
            Self::ReadExecute => 0o500,
            Self::ReadWrite => 0o600,
            Self::All => 0o700,
        }
    }
}

/// What a change of a ConfigMap or Secret does to processes that have it as files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum OnFileChange {
    /// They are replaced like after a change of their manifest.
    #[default]
    Restart,
    /// The files are replaced, all at one moment, and then the main process gets `signal`, once.
    Signal,
    /// Nothing: each has the new content from its next start.
    Ignore,
}

impl OnFileChange {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Variables from a file, one `NAME=value` a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvFile {
    /// The file, read at each start; relative to the directory of the manifest.
    pub path: String,
    /// Start without it when it does not exist; otherwise the start fails and is tried again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub optional: bool,
}
