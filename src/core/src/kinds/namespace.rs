//! Namespace: a room for names.

use serde::{Deserialize, Serialize};

use crate::meta::Metadata;

/// A room for names. Deleting it deletes what lives in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Namespace {
    /// "v1".
    pub api_version: String,
    /// "Namespace".
    pub kind: String,
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// Nothing can be set yet.
    #[serde(default)]
    pub spec: NamespaceSpec,
    /// Written by Ostler.
    #[serde(default)]
    pub status: NamespaceStatus,
}

/// Nothing can be set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceSpec {}

/// What Ostler says of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceStatus {
    /// Active, or Terminating while what lives in it goes.
    #[serde(default)]
    pub phase: NamespacePhase,
}

/// Whether a namespace takes new objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum NamespacePhase {
    /// It does.
    #[default]
    Active,
    /// It is being deleted and does not.
    Terminating,
}
