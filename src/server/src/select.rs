//! Which objects a request means.

use std::collections::BTreeMap;

use ostler_core::labels::{FieldSelector, LabelSelector};
use ostler_core::suggest::nearest;
use ostler_core::{Kind, Timestamp};
use ostler_store::Key;
use serde::Deserialize;

use crate::error::ApiError;

/// Objects of one kind, narrowed down.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The kind.
    pub kind: Kind,
    /// The namespace; empty: all.
    pub namespace: String,
    /// When not empty: only these.
    pub names: Vec<String>,
    labels: LabelSelector,
    fields: FieldSelector,
    /// Events: those that happened last then or later.
    since: Option<Timestamp>,
}

/// The part of an object that selectors look at; everything else is skipped unread.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
    #[serde(default, rename = "involvedObject")]
    involved: Involved,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    topic: String,
    #[serde(default, rename = "type")]
    event_type: String,
    #[serde(default, rename = "lastTimestamp")]
    last: Option<Timestamp>,
}

#[derive(Default, Deserialize)]
struct Meta {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    process: String,
    #[serde(default)]
    job: Share,
}

#[derive(Default, Deserialize)]
struct Share {
    #[serde(default)]
    name: String,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    phase: String,
}

#[derive(Default, Deserialize)]
struct Involved {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
}

fn known_fields(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Namespace => &["metadata.name", "status.phase"],
        Kind::Source => &["metadata.name"],
        Kind::External => &["metadata.name", "metadata.namespace", "status.phase"],
        Kind::Process | Kind::ConfigMap | Kind::Job | Kind::CronJob => &["metadata.name", "metadata.namespace"],
        Kind::Secret => &["metadata.name", "metadata.namespace", "type"],
        Kind::Instance => &["metadata.name", "metadata.namespace", "status.phase", "owner"],
        Kind::Event => &[
            "metadata.name",
            "metadata.namespace",
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "reason",
            "topic",
            "type",
        ],
    }
}

/// The kind that a word means, or an error with the nearest one.
pub(crate) fn kind(word: &str) -> Result<Kind, ApiError> {
    Kind::parse(word).ok_or_else(|| {
        let words = Kind::ALL.into_iter().flat_map(|kind| [kind.plural(), kind.singular()]);
        let error = ApiError::bad(format!("the server doesn't have a resource type {word:?}"));
        match nearest(word, words) {
            Some(near) => error.hint(format!("did you mean {near:?}?")),
            None => error.hint(format!("there are {}", Kind::ALL.map(Kind::plural).join(", "))),
        }
    })
}

impl Selection {
    /// Reads the selectors of a request.
    pub fn parse(selector: &ostler_rpc::v1::Selector) -> Result<Self, ApiError> {
        let kind = kind(&selector.kind)?;
        let since = match selector.since.as_str() {
            "" => None,
            _ if kind != Kind::Event => {
                return Err(ApiError::bad(format!("a time can be asked for only of events, not of {}", kind.plural())));
            }
            text => Some(text.parse().map_err(ApiError::bad)?),
        };
        Ok(Self {
            kind,
            namespace: if kind.is_namespaced() { selector.namespace.clone() } else { String::new() },
            names: selector.names.clone(),
            labels: LabelSelector::parse(&selector.labels).map_err(ApiError::bad)?,
            fields: FieldSelector::parse(&selector.fields, known_fields(kind)).map_err(ApiError::bad)?,
            since,
        })
    }

    /// Everything of a kind in a namespace.
    pub(crate) fn all(kind: Kind, namespace: &str) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            names: Vec::new(),
            labels: LabelSelector::default(),
            fields: FieldSelector::default(),
            since: None,
        }
    }

    /// Whether anything narrows it down within its namespace.
    pub(crate) fn is_narrow(&self) -> bool {
        !self.names.is_empty() || !self.labels.is_empty() || !self.fields.is_empty() || self.since.is_some()
    }

    /// What the keys of everything that can match begin with.
    pub(crate) fn prefix(&self) -> String {
        let plural = self.kind.plural();
        if self.namespace.is_empty() { format!("{plural}/") } else { format!("{plural}/{}/", self.namespace) }
    }

    /// Whether an object matches.
    pub(crate) fn matches(&self, key: &Key, value: &[u8]) -> bool {
        if !self.names.is_empty() && !self.names.iter().any(|name| name == key.name()) {
            return false;
        }
        if self.labels.is_empty() && self.fields.is_empty() && self.since.is_none() {
            return true;
        }
        let Ok(head) = serde_json::from_slice::<Head>(value) else { return false };
        self.since.is_none_or(|since| head.last.is_some_and(|last| last >= since))
            && self.labels.matches(&head.metadata.labels)
            && self.fields.matches(|field| {
                match field {
                    "metadata.name" => &head.metadata.name,
                    "metadata.namespace" => &head.metadata.namespace,
                    "status.phase" => &head.status.phase,
                    "owner" if head.spec.process.is_empty() => &head.spec.job.name,
                    "owner" => &head.spec.process,
                    "involvedObject.kind" => &head.involved.kind,
                    "involvedObject.namespace" => &head.involved.namespace,
                    "involvedObject.name" => &head.involved.name,
                    "involvedObject.uid" => &head.involved.uid,
                    "reason" => &head.reason,
                    "topic" => &head.topic,
                    _ => &head.event_type,
                }
                .clone()
            })
    }
}
