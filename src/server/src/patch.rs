//! Patch: changing part of one object.

use bytes::Bytes;
use ostler_core::Kind;
use ostler_core::kinds::SET;
use ostler_store::Revision;
use serde_json::Value;

use crate::apply::{Applied, live, parse};
use crate::error::{ApiError, Cause, Reason};
use crate::ownership::{self, Mode};
use crate::service::Service;

/// What to do to an object.
#[derive(Debug)]
pub(crate) enum Patch {
    /// RFC 7386.
    Merge(Value),
    /// RFC 6902.
    Json(json_patch::Patch),
    /// The whole object.
    Replace(Value),
}

impl Service {
    /// Patches one object; `expected` is the revision that it must have been written at.
    pub(crate) async fn patch(
        &self,
        (kind, namespace, name): (Kind, &str, &str),
        patch: &Patch,
        expected: Option<Revision>,
        dry_run: bool,
        manager: &str,
    ) -> Result<(Applied, Revision), ApiError> {
        if matches!(kind, Kind::Instance | Kind::Event) {
            return Err(ApiError::new(Reason::Forbidden, format!("{kind} objects are made by Ostler"))
                .hint("change the object that it belongs to"));
        }
        self.transact(|| {
            let entry = self.get(kind, namespace, name)?;
            if expected.is_some_and(|expected| expected != entry.revision) {
                let message = format!("{} {name:?} was changed meanwhile", kind.resource());
                return Err(ApiError::new(Reason::Conflict, message).hint("look at it again, and try again"));
            }
            let vault = self.controller.vault();
            if kind == Kind::Secret {
                vault.prepare(true)?;
            }
            let live = live(kind, &entry.value, vault)
                .map_err(|why| ApiError::new(Reason::InternalError, format!("{} in the store: {why}", entry.key)))?
                .to_json();
            let identity = |object: &Value| {
                let metadata = &object["metadata"];
                [&object["apiVersion"], &object["kind"], &metadata["name"], &metadata["namespace"]].map(Value::clone)
            };
            let mut after = ownership::with_content(&live, &ownership::content(&live));
            // An object leaves its set when the label is taken away.
            if let Some(set) = live["metadata"]["labels"].get(SET) {
                after["metadata"]["labels"][SET] = set.clone();
            }
            match patch {
                Patch::Merge(patch) => json_patch::merge(&mut after, patch),
                Patch::Json(patch) => json_patch::patch(&mut after, patch)
                    .map_err(|why| ApiError::new(Reason::Invalid, format!("the patch does not fit: {why}")))?,
                Patch::Replace(object) => after.clone_from(object),
            }
            if identity(&after) != identity(&live) {
                let message = "apiVersion, kind, name and namespace of an object cannot be changed".to_owned();
                let causes = vec![Cause { object: 0, field: String::new(), message: message.clone() }];
                return Err(ApiError { causes, ..ApiError::new(Reason::Invalid, message) });
            }
            let wanted = parse(&[Bytes::from(after.to_string())])?;
            let (mut ops, mut applied) = self.decide(&wanted, manager, Mode::Update, dry_run)?;
            if dry_run {
                ops.clear();
            }
            let applied = applied.pop().ok_or_else(|| ApiError::not_found(kind, name))?;
            Ok((ops, applied))
        })
        .await
    }
}
