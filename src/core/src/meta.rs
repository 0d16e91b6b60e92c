//! Metadata as in Kubernetes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Who and when an object is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique among the objects of its kind in its namespace; a DNS label.
    #[serde(default)]
    pub name: String,
    /// The namespace the object lives in; "default" unless given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Unique over all time. Set by Ostler.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Revision of the store at which the object was last written. Set by Ostler.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Moves by one whenever the spec changes. Set by Ostler.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub generation: u64,
    /// Key-value pairs to select objects by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Key-value pairs for tools and people; never selected by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// When the object was created. Set by Ostler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// When deletion was asked for; the object goes when its finalizers are done. Set by Ostler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<Timestamp>,
    /// How long a deletion waits before it kills, seconds; overrides spec.stop.gracePeriod. Set by Ostler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_grace_period_seconds: Option<u64>,
    /// What has to happen before the object may go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
    /// The objects this one belongs to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<OwnerReference>,
    /// Who set what. Set by Ostler.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub managed_fields: Vec<ManagedFields>,
}

/// A link from an object to the one it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OwnerReference {
    /// API version of the owner.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// Uid of the owner.
    pub uid: String,
    /// Whether the owner manages the object; at most one does.
    #[serde(default)]
    pub controller: bool,
}

/// Who last wrote an object through which operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedFields {
    /// Name of the writer, such as "ostler apply".
    pub manager: String,
    /// "Apply" or "Update".
    pub operation: String,
    /// When it last changed something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// The fields it set, in Kubernetes' notation: `f:NAME` is a field, `k:{"name":"X"}` the item of that name.
    #[serde(default, rename = "fieldsV1", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<serde_json::Map<String, serde_json::Value>>"))]
    pub fields_v1: Option<serde_json::Value>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Metadata {
    /// Whether deletion was asked for.
    pub fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }
}
