//! Apply: what a set of manifests would change, and changing it all at once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use ostler_core::config;
use ostler_core::kinds::{
    Instance, Job, JobSpec, Namespace, PAUSED_AT, PortNumber, Process, ProcessSpec, SET, STOPPED_AT, Secret,
    TRACEPARENT,
};
use ostler_core::object::{Applicable, DecodeError, decode, key};
use ostler_core::plan::process::instance_name;
use ostler_core::{Kind, Metadata, fields};
use ostler_engine::vault::Vault;
use ostler_gitops::Item;
use ostler_store::{Entry, Expect, Key, Op, Revision};
use serde_json::Value;

use crate::dependencies;
use crate::error::{ApiError, Cause, Reason};
use crate::ownership::{self, Mode, Written};
use crate::secrets;
use crate::select::Selection;
use crate::service::{Service, join_trace, now};
use crate::sets::{self, Set};

/// What applying one object came to, or would come to.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    /// JSON before and after.
    pub(crate) before: Option<Entry>,
    pub(crate) after: Bytes,
    pub(crate) effects: Vec<Effect>,
    /// What changes without a restart.
    pub(crate) in_place: Vec<String>,
    /// What the manifest leaves out.
    pub(crate) defaulted: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Created,
    Configured,
    Unchanged,
}

/// What will happen to one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) kind: EffectKind,
    pub(crate) instance: String,
    pub(crate) why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EffectKind {
    Start,
    Restart,
    Stop,
}

/// The most objects in one request.
const MOST: usize = 10_000;

/// How objects are applied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How<'a> {
    pub(crate) manager: &'a str,
    /// Fields that others set otherwise are taken over.
    pub(crate) force: bool,
    /// Decide everything, change nothing.
    pub(crate) dry_run: bool,
    /// The set that the objects belong to from now on.
    pub(crate) set: Option<Set<'a>>,
}

/// What a request came to, or would come to.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) objects: Vec<Applied>,
    /// What leaves the set.
    pub(crate) pruned: Vec<Item>,
    /// What has left the set and stays.
    pub(crate) kept: Vec<Item>,
    /// Why it would not be done; only of a dry run.
    pub(crate) refused: String,
}

impl Service {
    pub(crate) async fn apply(&self, objects: &[Bytes], how: How<'_>) -> Result<(Decided, Revision), ApiError> {
        let How { manager, force, dry_run, set } = how;
        if objects.len() > MOST {
            return Err(ApiError::bad(format!("{} objects in one request, at most {MOST} are allowed", objects.len())));
        }
        let mut wanted = parse(objects)?;
        if let Some(set) = set {
            set.check(&wanted)?;
        }
        for want in &mut wanted {
            want.set_membership(set);
        }
        if wanted.iter().any(|want| want.object.kind() == Kind::Secret) {
            let others = !self.store.list(&Selection::all(Kind::Secret, "").prefix()).entries.is_empty();
            self.controller.vault().prepare(others)?;
        }
        self.transact(|| {
            let (mut ops, objects) = self.decide(&wanted, manager, Mode::Apply { force }, dry_run)?;
            let mut decided = Decided { objects, pruned: Vec::new(), kept: Vec::new(), refused: String::new() };
            if let Some(set) = set.filter(|set| set.prune) {
                ops.extend(self.prune(set, dry_run, &mut decided)?);
            }
            if dry_run {
                ops.clear();
            }
            Ok((ops, decided))
        })
        .await
    }

    pub(crate) fn decide(
        &self,
        wanted: &[Wanted],
        manager: &str,
        mode: Mode,
        dry_run: bool,
    ) -> Result<(Vec<Op>, Vec<Applied>), ApiError> {
        let mut ops = Vec::new();
        let mut applied = Vec::with_capacity(wanted.len());
        let mut causes = Vec::new();
        let mut conflicts = false;
        let together: Together<'_> = wanted.iter().map(|want| identity(&want.object)).collect();
        for (index, want) in wanted.iter().enumerate() {
            let mut complain = |field: &str, message: String| {
                causes.push(Cause { object: index, field: field.to_owned(), message });
            };
            let (kind, namespace, name) = identity(&want.object);
            if kind.is_namespaced()
                && let Err(message) = self.check_namespace(namespace, &together)
            {
                complain("metadata.namespace", message);
                continue;
            }
            let store_key: Key = key(kind, namespace, name).into();
            let before = self.store.get(&store_key);
            let live = match &before {
                None => None,
                Some(entry) => match live(kind, &entry.value, self.controller.vault()) {
                    Ok(live) => Some(live),
                    Err(why) => {
                        return Err(ApiError::new(Reason::InternalError, format!("{store_key} in the store: {why}")));
                    }
                },
            };
            if live.as_ref().is_some_and(|live| live.metadata().is_deleting()) {
                complain("", format!("{} {name:?} is being deleted; apply it again when it is gone", kind.resource()));
                continue;
            }
            if let Some(live) = &live
                && let Err(message) = sets::claim(&*self.store, want.set(), live, mode)
            {
                complain("", message);
                continue;
            }
            let (mut object, outcome) = match merge(want, live.as_ref(), manager, mode) {
                Ok(merged) => merged,
                Err(refused) => {
                    conflicts |= matches!(refused, Refused::Conflicts(_));
                    let (Refused::Conflicts(errors) | Refused::Invalid(errors)) = refused;
                    for (field, message) in errors {
                        complain(&field, message);
                    }
                    continue;
                }
            };
            let effects = match (&object, &live) {
                (Applicable::Process(new), Some(Applicable::Process(old))) => self.effects(new, Some(old)),
                (Applicable::Process(new), _) => self.effects(new, None),
                (Applicable::Job(new), None) => first_runs(new),
                (Applicable::ConfigMap(_) | Applicable::Secret(_), Some(_)) if outcome == Outcome::Configured => {
                    self.dependents(&object)
                }
                (
                    Applicable::Namespace(_)
                    | Applicable::ConfigMap(_)
                    | Applicable::Secret(_)
                    | Applicable::Job(_)
                    | Applicable::CronJob(_)
                    | Applicable::Source(_)
                    | Applicable::External(_),
                    _,
                ) => Vec::new(),
            };
            if let Some(message) = self.name_taken(kind, namespace, name, &together) {
                complain("metadata.name", message);
                continue;
            }
            if outcome != Outcome::Unchanged && !dry_run {
                join_trace(object.metadata_mut());
            }
            // Who owns a field may change while nothing else does.
            let is_same = outcome == Outcome::Unchanged
                && live.as_ref().is_some_and(|live| live.metadata().managed_fields == object.metadata().managed_fields);
            if let (Applicable::Secret(secret), false) = (&mut object, is_same) {
                secrets::seal(secret, self.controller.vault())?;
            }
            let after: Bytes = match &before {
                Some(entry) if is_same => entry.value.clone(),
                Some(_) | None => serde_json::to_vec(&object.to_json()).unwrap_or_default().into(),
            };
            if !is_same {
                let expect = before.as_ref().map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
                ops.push(Op::put(store_key, after.clone(), expect));
            }
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            let (in_place, defaulted) = match outcome {
                Outcome::Unchanged => (Vec::new(), Vec::new()),
                Outcome::Created | Outcome::Configured => {
                    (in_place(&object, live.as_ref()), want.defaulted(&object, live.as_ref()))
                }
            };
            applied.push(Applied { kind, namespace, name, outcome, before, after, effects, in_place, defaulted });
        }
        if !ops.is_empty() {
            self.check_ports(wanted, &mut causes);
            let objects: Vec<&Applicable> = wanted.iter().map(|want| &want.object).collect();
            ops.extend(dependencies::check(&self.store, &objects, &mut causes));
        }
        if causes.is_empty() {
            return Ok((ops, applied));
        }
        let error = invalid(causes);
        Err(if conflicts {
            let hint =
                "agree on the value, leave the field out of the manifest, or take it over with --force-conflicts";
            ApiError { reason: Reason::Conflict, ..error }.hint(hint)
        } else {
            error
        })
    }

    fn check_namespace(&self, namespace: &str, together: &Together<'_>) -> Result<(), String> {
        let applied_too = together.contains(&(Kind::Namespace, "", namespace));
        match self.store.get(&key(Kind::Namespace, "", namespace).into()) {
            Some(entry) => match serde_json::from_slice::<Namespace>(&entry.value) {
                Ok(object) if object.metadata.is_deleting() => Err(format!("namespace {namespace:?} is being deleted")),
                _ => Ok(()),
            },
            None if applied_too => Ok(()),
            None => Err(format!(
                "namespace {namespace:?} not found; apply it first, or together: apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}"
            )),
        }
    }

    /// Instances are named after what they belong to, so a Process and a Job cannot have the same name.
    fn name_taken(&self, kind: Kind, namespace: &str, name: &str, together: &Together<'_>) -> Option<String> {
        let other = match kind {
            Kind::Process => Kind::Job,
            Kind::Job => Kind::Process,
            Kind::Namespace
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::CronJob
            | Kind::Instance
            | Kind::Source
            | Kind::External
            | Kind::Event => return None,
        };
        let taken = together.contains(&(other, namespace, name))
            || self.store.get(&key(other, namespace, name).into()).is_some();
        taken.then(|| {
            format!("there is a {other} {name:?}, whose instances have the names that those of this {kind} would have")
        })
    }

    /// Two processes cannot have the same fixed port.
    fn check_ports(&self, wanted: &[Wanted], causes: &mut Vec<Cause>) {
        if !wanted
            .iter()
            .any(|want| matches!(&want.object, Applicable::Process(process) if !process.spec.ports.is_empty()))
        {
            return;
        }
        let replaced: BTreeSet<(&str, &str)> = wanted
            .iter()
            .map(|want| (want.object.metadata().namespace.as_str(), want.object.metadata().name.as_str()))
            .collect();
        let mut holders: BTreeMap<u16, String> = BTreeMap::new();
        for entry in self.store.list(&Selection::all(Kind::Process, "").prefix()).entries {
            if replaced.contains(&(entry.key.namespace(), entry.key.name())) {
                continue;
            }
            if let Ok(process) = serde_json::from_slice::<Process>(&entry.value) {
                for number in fixed_ports(&process.spec) {
                    holders.insert(number, format!("process {}/{}", entry.key.namespace(), entry.key.name()));
                }
            }
        }
        for entry in self.store.list(&Selection::all(Kind::Instance, "").prefix()).entries {
            if let Ok(instance) = serde_json::from_slice::<Instance>(&entry.value)
                && !replaced.contains(&(instance.metadata.namespace.as_str(), instance.spec.process.as_str()))
            {
                for number in instance.spec.ports.values() {
                    holders
                        .entry(*number)
                        .or_insert_with(|| format!("instance {}/{}", entry.key.namespace(), entry.key.name()));
                }
            }
        }
        for (index, want) in wanted.iter().enumerate() {
            let Applicable::Process(process) = &want.object else { continue };
            for (place, port) in process.spec.ports.iter().enumerate() {
                let PortNumber::Fixed(number) = port.port else { continue };
                if let Some(holder) = holders.get(&number.get()) {
                    causes.push(Cause {
                        object: index,
                        field: format!("spec.ports[{place}].port"),
                        message: format!("port {number} is taken by {holder}"),
                    });
                } else {
                    let metadata = &process.metadata;
                    holders.insert(number.get(), format!("process {}/{}", metadata.namespace, metadata.name));
                }
            }
        }
    }

    /// What a changed ConfigMap or Secret does to instances.
    fn dependents(&self, object: &Applicable) -> Vec<Effect> {
        let metadata = object.metadata();
        let Some(origin) = config::Origin::of(object.kind()) else { return Vec::new() };
        let name = metadata.name.as_str();
        let why = format!("{} {name:?} changed", object.kind().singular());
        let mut effects = Vec::new();
        for entry in self.store.list(&Selection::all(Kind::Process, &metadata.namespace).prefix()).entries {
            let Ok(process) = serde_json::from_slice::<Process>(&entry.value) else { continue };
            let stopped = process.metadata.annotations.contains_key(STOPPED_AT) || process.metadata.is_deleting();
            if stopped || !config::restarts_on(&process.spec, origin, name) {
                continue;
            }
            effects.extend((0..process.spec.replicas()).map(|ordinal| Effect {
                kind: EffectKind::Restart,
                instance: instance_name(&process.metadata.name, ordinal),
                why: why.clone(),
            }));
        }
        effects
    }

    /// What a changed process does to instances.
    fn effects(&self, new: &Process, old: Option<&Process>) -> Vec<Effect> {
        let name = &new.metadata.name;
        let stopped = new.metadata.annotations.contains_key(STOPPED_AT);
        let existing: BTreeMap<u32, Instance> = if old.is_some() {
            let prefix = format!("{}/{}/{name}-", Kind::Instance.plural(), new.metadata.namespace);
            let entries = self.store.list(&prefix).entries;
            entries
                .iter()
                .filter_map(|entry| serde_json::from_slice::<Instance>(&entry.value).ok())
                .filter(|instance| instance.spec.process == *name)
                .map(|instance| (instance.spec.ordinal, instance))
                .collect()
        } else {
            BTreeMap::new()
        };
        let update = &new.spec.update;
        let paused = update.paused || new.metadata.annotations.contains_key(PAUSED_AT);
        let causes = old.filter(|_| !paused).map(|old| new.spec.restart_causes(&old.spec)).unwrap_or_default();
        let mut effects = Vec::new();
        let wanted = new.spec.replicas();
        for ordinal in 0..wanted {
            let instance = instance_name(name, ordinal);
            match existing.get(&ordinal) {
                None if !stopped => {
                    let why =
                        if old.is_some() { format!("spec.replicas is now {wanted}") } else { "new process".to_owned() };
                    effects.push(Effect { kind: EffectKind::Start, instance, why });
                }
                Some(running)
                    if !causes.is_empty()
                        && ordinal >= update.partition
                        && running.spec.stopped_at.is_none()
                        && !stopped =>
                {
                    let why = format!("{} changed", causes.join(", "));
                    effects.push(Effect { kind: EffectKind::Restart, instance, why });
                }
                None | Some(_) => {}
            }
        }
        for (_, instance) in existing.range(wanted..) {
            let why = format!("spec.replicas is now {wanted}");
            effects.push(Effect { kind: EffectKind::Stop, instance: instance.metadata.name.clone(), why });
        }
        effects
    }
}

/// What changes of a Process without a restart.
fn in_place(new: &Applicable, old: Option<&Applicable>) -> Vec<String> {
    let (Applicable::Process(after), Some(Applicable::Process(before))) = (new, old) else { return Vec::new() };
    let causes = after.spec.restart_causes(&before.spec);
    let content = |object: &Process| ownership::content(&serde_json::to_value(object).unwrap_or_default());
    let (set, gone) = fields::changes(&content(before), &content(after));
    let restarts = |path: &str| {
        causes
            .iter()
            .any(|cause| path.strip_prefix(cause).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])))
    };
    let paths: BTreeSet<String> = set.shown().chain(gone.shown()).filter(|path| !restarts(path)).collect();
    paths.into_iter().collect()
}

/// What a new Job starts with.
fn first_runs(job: &Job) -> Vec<Effect> {
    let count = if job.spec.is_suspended() { 0 } else { job.spec.parallelism.min(job.spec.completions) };
    (0..count)
        .map(|ordinal| Effect {
            kind: EffectKind::Start,
            instance: instance_name(&job.metadata.name, ordinal),
            why: "new job".to_owned(),
        })
        .collect()
}

/// What of a Job cannot be changed: its runs are parts of one whole.
fn frozen(new: &JobSpec, old: &JobSpec) -> FieldErrors {
    let mut errors = Vec::new();
    let mut check = |field: &str, same: bool| {
        if !same {
            let message = "cannot be changed in a Job that exists; delete it first, or give the new one another name";
            errors.push((format!("spec.{field}"), message.to_owned()));
        }
    };
    check("completions", new.completions == old.completions);
    check("template", new.template == old.template);
    errors
}

/// Kind, namespace and name of all that is applied at once.
type Together<'a> = HashSet<(Kind, &'a str, &'a str)>;

fn identity(object: &Applicable) -> (Kind, &str, &str) {
    let metadata = object.metadata();
    (object.kind(), metadata.namespace.as_str(), metadata.name.as_str())
}

/// One object of a request.
pub(crate) struct Wanted {
    object: Applicable,
    /// What its manifest says, without defaults.
    content: Value,
}

impl Wanted {
    /// What its manifest leaves out, as far as that is new.
    fn defaulted(&self, object: &Applicable, live: Option<&Applicable>) -> Vec<String> {
        // The values of a Secret are nobody's business.
        if object.kind() == Kind::Secret {
            return Vec::new();
        }
        let content = |object: &Applicable| ownership::content(&object.to_json());
        fields::defaulted(&content(object), &self.content, &live.map(content).unwrap_or_default())
    }

    /// The set that it is to be in.
    fn set(&self) -> Option<&str> {
        self.object.metadata().labels.get(SET).map(String::as_str)
    }

    /// Puts it into a set, whatever its manifest says.
    fn set_membership(&mut self, set: Option<Set<'_>>) {
        let labels = &mut self.object.metadata_mut().labels;
        labels.remove(SET);
        labels.extend(set.map(|set| (SET.to_owned(), set.name.to_owned())));
    }
}

pub(crate) fn parse(objects: &[Bytes]) -> Result<Vec<Wanted>, ApiError> {
    let mut wanted = Vec::with_capacity(objects.len());
    let mut causes = Vec::new();
    let mut seen: HashMap<(Kind, String, String), usize> = HashMap::new();
    for (index, bytes) in objects.iter().enumerate() {
        let mut complain = |field: String, message: String| causes.push(Cause { object: index, field, message });
        let value: Value = match serde_json::from_slice(bytes) {
            Ok(value) => value,
            Err(why) => {
                complain(String::new(), format!("not JSON: {why}"));
                continue;
            }
        };
        match Applicable::from_json(&value) {
            Ok(mut object) => {
                let kind = object.kind();
                let metadata = object.metadata_mut();
                if kind.is_namespaced() && metadata.namespace.is_empty() {
                    "default".clone_into(&mut metadata.namespace);
                }
                let identity = (kind, metadata.namespace.clone(), metadata.name.clone());
                if let Some(first) = seen.insert(identity, index) {
                    complain(
                        "metadata.name".to_owned(),
                        format!("the same object as number {} of this request", first + 1),
                    );
                }
                // What is given as text is stored as bytes, and so are its keys owned.
                let written = if kind == Kind::Secret { object.to_json() } else { value };
                wanted.push(Wanted { object, content: ownership::content(&written) });
            }
            Err(errors) => {
                for error in errors {
                    complain(error.field, error.message);
                }
            }
        }
    }
    if causes.is_empty() { Ok(wanted) } else { Err(invalid(causes)) }
}

fn invalid(causes: Vec<Cause>) -> ApiError {
    let message = match causes.as_slice() {
        [Cause { field, message, .. }] if field.is_empty() => message.clone(),
        [Cause { field, message, .. }] => format!("{field}: {message}"),
        many => format!("{} errors, nothing was changed", many.len()),
    };
    ApiError { causes, ..ApiError::new(Reason::Invalid, message) }
}

pub(crate) fn live(kind: Kind, json: &[u8], vault: &Vault) -> Result<Applicable, String> {
    let value: Value = serde_json::from_slice(json).map_err(|why| why.to_string())?;
    match kind {
        Kind::Namespace => decode(&value).map(Applicable::Namespace).map_err(|why| why.to_string()),
        Kind::ConfigMap => decode(&value).map(Applicable::ConfigMap).map_err(|why| why.to_string()),
        Kind::Secret => {
            let mut secret: Secret = decode(&value).map_err(|why| why.to_string())?;
            secrets::open(&mut secret, vault).map_err(|why| why.to_string())?;
            Ok(Applicable::Secret(Box::new(secret)))
        }
        Kind::Process => decode(&value).map(Applicable::Process).map_err(|why| why.to_string()),
        Kind::Job => decode(&value).map(Applicable::Job).map_err(|why| why.to_string()),
        Kind::CronJob => decode(&value).map(Applicable::CronJob).map_err(|why| why.to_string()),
        Kind::Source => decode(&value).map(Applicable::Source).map_err(|why| why.to_string()),
        Kind::External => decode(&value).map(Applicable::External).map_err(|why| why.to_string()),
        Kind::Instance | Kind::Event => Err("not an object that users apply".to_owned()),
    }
}

type FieldErrors = Vec<(String, String)>;

/// Why one object is not written.
enum Refused {
    /// It breaks rules.
    Invalid(FieldErrors),
    /// Others set fields otherwise.
    Conflicts(FieldErrors),
}

/// The object as it will be stored.
fn merge(
    want: &Wanted,
    live: Option<&Applicable>,
    manager: &str,
    mode: Mode,
) -> Result<(Applicable, Outcome), Refused> {
    let Some(live) = live else { return Ok((create(want, manager, mode), Outcome::Created)) };
    let before = live.to_json();
    let conflict = |conflict: fields::Conflict| {
        let field = fields::show(&conflict.path);
        let value = match fields::get(&before, &conflict.path) {
            Some(value) if live.kind() != Kind::Secret => format!("to {value} "),
            Some(_) | None => String::new(),
        };
        (field, format!("was set {value}by {:?}", conflict.manager))
    };
    let Written { content, managed } =
        ownership::write(&ownership::content(&before), live.metadata(), &want.content, manager, mode)
            .map_err(|conflicts| Refused::Conflicts(conflicts.into_iter().map(conflict).collect()))?;
    let mut merged = ownership::with_content(&before, &content);
    if live.kind() == Kind::Process && merged["spec"].get("replicas").is_none() {
        // Who leaves the number out leaves it to whoever set it last.
        merged["spec"]["replicas"] = before["spec"]["replicas"].clone();
    }
    let invalid =
        |errors: Vec<DecodeError>| Refused::Invalid(errors.into_iter().map(|it| (it.field, it.message)).collect());
    let mut object = Applicable::from_json(&merged).map_err(invalid)?;
    let spec_changed = carry_over(&mut object, live).map_err(Refused::Invalid)?;
    let old = live.metadata();
    let new = object.metadata_mut();
    let (mut labels, mut annotations) = (std::mem::take(&mut new.labels), std::mem::take(&mut new.annotations));
    labels.extend(sets::membership(&want.object, old, mode).map(|set| (SET.to_owned(), set)));
    annotations.extend(old.annotations.get(TRACEPARENT).map(|trace| (TRACEPARENT.to_owned(), trace.clone())));
    let changed = spec_changed || labels != old.labels || annotations != old.annotations;
    *new = Metadata { labels, annotations, managed_fields: managed, ..old.clone() };
    if !changed {
        return Ok((object, Outcome::Unchanged));
    }
    if spec_changed {
        new.generation += 1;
    }
    Ok((object, Outcome::Configured))
}

/// Takes over the status, and checks what may not change; whether something changed of what is declared.
fn carry_over(new: &mut Applicable, old: &Applicable) -> Result<bool, FieldErrors> {
    Ok(match (new, old) {
        (Applicable::Process(new), Applicable::Process(old)) => {
            new.status = old.status.clone();
            new.spec != old.spec
        }
        (Applicable::Job(new), Applicable::Job(old)) => {
            let errors = frozen(&new.spec, &old.spec);
            if !errors.is_empty() {
                return Err(errors);
            }
            new.status = old.status.clone();
            new.spec != old.spec
        }
        (Applicable::CronJob(new), Applicable::CronJob(old)) => {
            new.status = old.status.clone();
            new.spec != old.spec
        }
        (Applicable::Namespace(new), Applicable::Namespace(old)) => {
            new.status = old.status.clone();
            false
        }
        (Applicable::Source(new), Applicable::Source(old)) => {
            new.status = old.status.clone();
            new.spec != old.spec
        }
        (Applicable::External(new), Applicable::External(old)) => {
            new.status = old.status.clone();
            new.spec != old.spec
        }
        (Applicable::ConfigMap(new), Applicable::ConfigMap(old)) => {
            let content = (&new.data, &new.binary_data) != (&old.data, &old.binary_data);
            check_immutable(old.immutable, new.immutable, content)?;
            content || new.immutable != old.immutable
        }
        (Applicable::Secret(new), Applicable::Secret(old)) => {
            let bytes = |secret: &Secret| -> Vec<_> {
                secret.data.iter().map(|(key, value)| (key.clone(), config::decode(&value.0))).collect()
            };
            let content = bytes(new) != bytes(old);
            check_immutable(old.immutable, new.immutable, content)?;
            if new.secret_type != old.secret_type {
                let message = format!("cannot be changed from {}; delete the secret first", old.secret_type);
                return Err(vec![("type".to_owned(), message)]);
            }
            content || new.immutable != old.immutable
        }
        (
            Applicable::Process(_)
            | Applicable::Job(_)
            | Applicable::CronJob(_)
            | Applicable::Namespace(_)
            | Applicable::Source(_)
            | Applicable::External(_)
            | Applicable::ConfigMap(_)
            | Applicable::Secret(_),
            _,
        ) => unreachable!("one key has one kind"),
    })
}

/// The object as it will be stored the first time.
fn create(want: &Wanted, manager: &str, mode: Mode) -> Applicable {
    let mut object = want.object.clone();
    match &mut object {
        Applicable::Process(process) => {
            process.spec.replicas = Some(process.spec.replicas());
            process.status = ostler_core::kinds::ProcessStatus::default();
        }
        Applicable::Job(job) => job.status = ostler_core::kinds::JobStatus::default(),
        Applicable::CronJob(cronjob) => cronjob.status = ostler_core::kinds::CronJobStatus::default(),
        Applicable::Source(source) => source.status = ostler_core::kinds::SourceStatus::default(),
        Applicable::External(external) => external.status = ostler_core::kinds::ExternalStatus::default(),
        Applicable::Namespace(_) | Applicable::ConfigMap(_) | Applicable::Secret(_) => {}
    }
    // Nobody set anything of what does not exist: there are no conflicts.
    let nothing = Metadata::default();
    let managed = ownership::write(&Value::Null, &nothing, &want.content, manager, mode)
        .map(|written| written.managed)
        .unwrap_or_default();
    let metadata = object.metadata_mut();
    *metadata = Metadata {
        uid: uuid::Uuid::new_v4().to_string(),
        generation: 1,
        creation_timestamp: Some(now()),
        managed_fields: managed,
        ..given(metadata)
    };
    metadata.annotations.remove(TRACEPARENT);
    object
}

/// What is immutable stays as it is, and stays immutable.
fn check_immutable(was: bool, is: bool, changed: bool) -> Result<(), FieldErrors> {
    let error = |field: &str, message: &str| Err(vec![(field.to_owned(), message.to_owned())]);
    match (was, is) {
        (true, false) => error("immutable", "cannot be taken back; delete the object and apply it anew"),
        (true, true) if changed => error("data", "cannot be changed, the object is immutable; delete it first"),
        (true, true) | (false, _) => Ok(()),
    }
}

/// What a manifest may say of metadata.
fn given(metadata: &Metadata) -> Metadata {
    Metadata {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        ..Metadata::default()
    }
}

fn fixed_ports(spec: &ProcessSpec) -> impl Iterator<Item = u16> {
    spec.ports.iter().filter_map(|port| match port.port {
        PortNumber::Fixed(number) => Some(number.get()),
        PortNumber::Auto(_) => None,
    })
}
