//! Event: something that happened to an object. Kubernetes' core/v1 shape.

use serde::{Deserialize, Serialize};

use crate::meta::Metadata;
use crate::time::Timestamp;
use crate::topic::Topic;

/// Something that happened to an object. Repetitions are counted, not repeated; of each object the 64 latest events are
/// kept, and 4,000 in all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Event {
    /// "v1".
    pub api_version: String,
    /// "Event".
    pub kind: String,
    /// Set by Ostler.
    pub metadata: Metadata,
    /// What it happened to.
    pub involved_object: ObjectReference,
    /// Normal, or Warning when somebody may have to do something.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// One word in CamelCase for machines.
    pub reason: String,
    /// What it is about: `ostler events --topic` selects by it.
    #[serde(default)]
    pub topic: Topic,
    /// A sentence for people.
    pub message: String,
    /// How often it happened.
    pub count: u32,
    /// When it happened first.
    pub first_timestamp: Timestamp,
    /// When it happened last.
    pub last_timestamp: Timestamp,
}

/// Points at an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectReference {
    /// API version of the object.
    pub api_version: String,
    /// Kind of the object.
    pub kind: String,
    /// Namespace of the object; empty for kinds that have none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Uid of the object.
    pub uid: String,
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum EventType {
    /// As intended.
    #[default]
    Normal,
    /// Somebody may have to do something.
    Warning,
}
