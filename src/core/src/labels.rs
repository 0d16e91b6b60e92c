//! Selectors over labels and fields, in Kubernetes' syntax.

use std::collections::{BTreeMap, BTreeSet};

/// A condition on labels: `a=b,c!=d,e in (f,g),h notin (i),j,!k`. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    Missing(String),
}

impl LabelSelector {
    /// Reads a selector.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut all = Vec::new();
        for part in split(text) {
            let part = part.trim();
            if part.is_empty() {
                if text.trim().is_empty() {
                    continue;
                }
                return Err(format!("{text:?} has an empty requirement"));
            }
            all.push(Requirement::parse(part)?);
        }
        Ok(Self(all))
    }

    /// Whether labels satisfy every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Missing(key) => !labels.contains_key(key),
        })
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Splits at commas that are not inside parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

impl Requirement {
    fn parse(part: &str) -> Result<Self, String> {
        let key = |text: &str| {
            let text = text.trim();
            crate::name::qualified(text).map(|()| text.to_owned()).map_err(|why| format!("in {part:?}: {why}"))
        };
        let value = |text: &str| {
            let text = text.trim();
            crate::name::label_value(text).map(|()| text.to_owned()).map_err(|why| format!("in {part:?}: {why}"))
        };
        if let Some(rest) = part.strip_prefix('!') {
            return Ok(Self::Missing(key(rest)?));
        }
        if let Some((left, right)) = part.split_once("!=") {
            return Ok(Self::NotIn(key(left)?, BTreeSet::from([value(right)?])));
        }
        if let Some((left, right)) = part.split_once("==").or_else(|| part.split_once('=')) {
            return Ok(Self::In(key(left)?, BTreeSet::from([value(right)?])));
        }
        if let Some((left, list)) = part.strip_suffix(')').and_then(|part| part.split_once('(')) {
            let values = list.split(',').map(value).collect::<Result<_, _>>()?;
            if let Some(left) = left.trim_end().strip_suffix(" notin") {
                return Ok(Self::NotIn(key(left)?, values));
            }
            if let Some(left) = left.trim_end().strip_suffix(" in") {
                return Ok(Self::In(key(left)?, values));
            }
            return Err(format!("{part:?} is not a requirement; write key in (a,b) or key notin (a,b)"));
        }
        Ok(Self::Exists(key(part)?))
    }
}

/// A condition on fields: `status.phase=Running,topic in (health,restart)`. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<(String, bool, BTreeSet<String>)>);

impl FieldSelector {
    /// Reads a selector; a field that is not in `known` is refused.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self, String> {
        let mut all = Vec::new();
        for part in split(text).into_iter().map(str::trim).filter(|part| !part.is_empty()) {
            let (field, equal, values) = field_requirement(part).ok_or_else(|| {
                format!("{part:?} is not a requirement; write field=value, field!=value or field in (a,b)")
            })?;
            if !known.contains(&field) {
                return Err(format!("field label not supported: {field}; supported are {}", known.join(", ")));
            }
            all.push((field.to_owned(), equal, values));
        }
        Ok(Self(all))
    }

    /// Whether an object satisfies every requirement; `value` gives its fields, empty when absent.
    pub fn matches(&self, value: impl Fn(&str) -> String) -> bool {
        self.0.iter().all(|(field, equal, wanted)| wanted.contains(&value(field)) == *equal)
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The field, whether it has to be one of the values (or none of them), and the values.
fn field_requirement(part: &str) -> Option<(&str, bool, BTreeSet<String>)> {
    if let Some((left, list)) = part.strip_suffix(')').and_then(|part| part.split_once('(')) {
        let values = list.split(',').map(|value| value.trim().to_owned()).collect();
        let left = left.trim_end();
        return match left.strip_suffix(" notin") {
            Some(field) => Some((field.trim(), false, values)),
            None => Some((left.strip_suffix(" in")?.trim(), true, values)),
        };
    }
    let (equal, (field, value)) = match part.split_once("!=") {
        Some(pair) => (false, pair),
        None => (true, part.split_once("==").or_else(|| part.split_once('='))?),
    };
    Some((field.trim(), equal, BTreeSet::from([value.trim().to_owned()])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_selectors_follow_kubernetes() {
        let labels = BTreeMap::from([("tier".to_owned(), "web".to_owned()), ("env".to_owned(), "prod".to_owned())]);
        for (selector, matches) in [
            ("", true),
            ("tier=web", true),
            ("tier==web,env!=dev", true),
            ("tier in (web, db)", true),
            ("tier notin (web,db)", false),
            ("nope notin (a)", true),
            ("tier", true),
            ("!tier", false),
            ("!nope", true),
            ("tier=db", false),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap().matches(&labels), matches, "{selector}");
        }
        for bad in ["=x", "a=b,,c", "a in b)", "a of (b)", "a=b c"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let known = ["metadata.name", "status.phase"];
        let selector = FieldSelector::parse("status.phase!=Running", &known).unwrap();
        assert!(selector.matches(|_| "Failed".to_owned()));
        assert!(!selector.matches(|_| "Running".to_owned()));
        let several = FieldSelector::parse("status.phase in (Failed, Lost),metadata.name notin (a)", &known).unwrap();
        assert!(several.matches(|field| if field == "status.phase" { "Lost" } else { "b" }.to_owned()));
        assert!(!several.matches(|field| if field == "status.phase" { "Running" } else { "b" }.to_owned()));
        assert!(!several.matches(|field| if field == "status.phase" { "Lost" } else { "a" }.to_owned()));
        for bad in ["status.phase", "status.phase of (a)", "(a)"] {
            assert!(FieldSelector::parse(bad, &known).is_err(), "{bad}");
        }
        assert!(FieldSelector::parse("spec.x=1", &known).unwrap_err().starts_with("field label not supported: spec.x"));
    }
}
