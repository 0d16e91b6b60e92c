//! ConfigMaps and Secrets as the controller holds them: what a process gets from them, and whom a change concerns.
//!
//! Secrets are held as the store has them, sealed, and opened each time something is started with them.

use std::sync::Arc;

use ostler_core::config::{self, Contents, Origin, Resolved};
use ostler_core::kinds::{ConfigMap, ProcessSpec, Secret};
use ostler_store::Op;
use tracing::error;

use super::world::{Id, World, id};
use super::{Controller, Request};
use crate::driver::Driver;
use crate::vault::{Vault, plain_hash};

/// The content of a ConfigMap or Secret.
#[derive(Debug)]
pub(crate) enum Held {
    Plain(Arc<Contents>),
    Sealed(Box<Secret>),
}

/// The place that a value of a secret is sealed for.
pub fn place(namespace: &str, name: &str, key: &str) -> String {
    format!("secrets/{namespace}/{name}/{key}")
}

impl World {
    /// Takes in a ConfigMap or Secret as it is in the store; nothing when it is gone.
    pub(crate) fn put_config(
        &mut self,
        origin: Origin,
        id: &Id,
        value: Option<&[u8]>,
    ) -> Result<(), serde_json::Error> {
        let Some(value) = value else {
            self.config.remove(&(origin, id.clone()));
            return Ok(());
        };
        let held = match origin {
            Origin::ConfigMap => Held::Plain(Arc::new(config::contents(&serde_json::from_slice::<ConfigMap>(value)?))),
            Origin::Secret => Held::Sealed(serde_json::from_slice(value)?),
        };
        self.config.insert((origin, id.clone()), held);
        Ok(())
    }

    /// What a spec gets from the ConfigMaps and Secrets of its namespace.
    pub(crate) fn resolve(&self, namespace: &str, spec: &ProcessSpec, vault: &Vault) -> Resolved {
        config::resolve(spec, |origin, name| {
            let Some(held) = self.config.get(&(origin, id(namespace, name))) else { return Ok(None) };
            let secret = match held {
                Held::Plain(contents) => return Ok(Some(Arc::clone(contents))),
                Held::Sealed(secret) => secret,
            };
            let opened: Result<Contents, _> = secret
                .data
                .iter()
                .map(|(key, value)| Ok((key.clone(), vault.open(&place(namespace, name, key), &value.0)?)))
                .collect();
            match opened {
                Ok(contents) => Ok(Some(Arc::new(contents))),
                Err(why) => {
                    let why: crate::vault::VaultError = why;
                    Err(format!("secret {name:?}: {why}"))
                }
            }
        })
    }

    /// The processes, and their instances, that a change of a ConfigMap or Secret concerns.
    pub(crate) fn dependents(&self, origin: Origin, namespace: &str, name: &str) -> Vec<Request> {
        let uses = |spec: &ProcessSpec| config::references(spec).contains(&(origin, name));
        let processes = self
            .processes
            .iter()
            .filter(|(_, entry)| entry.object.metadata.namespace == namespace && uses(&entry.object.spec));
        let instances = self
            .instances
            .iter()
            .filter(|(_, entry)| entry.object.metadata.namespace == namespace && uses(&entry.object.spec.template));
        // What replaces comes before what starts: nothing is started with new content under an old revision.
        processes
            .map(|(id, _)| Request::Process(id.clone()))
            .chain(instances.map(|(id, _)| Request::Instance(id.clone())))
            .collect()
    }

    /// The ConfigMaps and Secrets of a namespace.
    pub(crate) fn config_of(&self, namespace: &str) -> Vec<Op> {
        let inside = |id: &Id| id.strip_prefix(namespace).is_some_and(|rest| rest.starts_with('/'));
        self.config
            .iter()
            .filter(|((_, id), _)| inside(id))
            .map(|((origin, id), _)| {
                let key = format!("{}/{id}", origin.kind().plural());
                Op::delete(key.as_str().into(), ostler_store::Expect::Any)
            })
            .collect()
    }
}

impl<D: Driver> Controller<D> {
    /// The hash that what ConfigMaps and Secrets give a process adds to its revision, and what is missing. While
    /// something is missing, the hash stays as it was: a deletion alone replaces nothing.
    pub(crate) fn config_state(&self, namespace: &str, spec: &ProcessSpec, before: &str) -> (String, Option<String>) {
        if !config::refers(spec) {
            return (String::new(), None);
        }
        let resolved = self.world.resolve(namespace, spec, &self.vault);
        if resolved.missing.is_some() {
            return (before.to_owned(), resolved.missing);
        }
        if resolved.restarts_on.is_empty() {
            return (String::new(), None);
        }
        if !resolved.has_secrets {
            return (plain_hash(&resolved.restarts_on), None);
        }
        match self.vault.hash(&resolved.restarts_on) {
            Ok(hash) => (hash, None),
            Err(why) => {
                error!(%why, "secrets are of no use");
                (before.to_owned(), Some(why.to_string()))
            }
        }
    }
}
